//! `issued import`: registers tokens from a file.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::admin::{Api, check_realm};
use crate::args::{IssuedCommand, ServerArguments};
use crate::output::{Failure, Output};
use crate::upload::{Input, RawLines, Tally, Upload, name};

pub fn run(output: Output, server: &ServerArguments, command: IssuedCommand) -> Result<ExitCode, Failure> {
    let IssuedCommand::Import { file, realm, complete_until, from_line } = command;
    check_realm(&realm)?;
    let api = Api::new(server)?;
    let input = Input::open(&file, output)?;
    let bar = input.bar();
    let upload = Upload {
        api: &api,
        path: format!("/v1/realms/{realm}/issued"),
        counts: &["registered", "repeated", "extended", "late", "expired", "refused"],
        from_line,
        keep_going: true,
        done: "registered",
    };
    let tally = upload.run(&mut RawLines::new(input), &bar)?;
    if tally.counts.iter().all(|(name, count)| *count == 0 || *name == "late") {
        let what = format!("{} names no token from line {from_line} on", name(&file));
        return Err(Failure::plain("nothing-to-import", what).usage());
    }
    let complete = tally.count("refused") == 0;
    let covered = match complete_until {
        Some(until) if complete => Some(api.put(&format!("/v1/realms/{realm}/coverage"), &json!({ "until": until }))?),
        Some(_) | None => None,
    };
    let covered = covered.as_ref().and_then(|covered| covered.get("covered_until"));
    let mut members = tally.value();
    members.insert("covered_until".to_owned(), covered.cloned().unwrap_or(Value::Null));
    output.result(words(&tally, covered), &Value::Object(members));
    if complete {
        return Ok(ExitCode::SUCCESS);
    }
    Err(tally.refusal(&file, if complete_until.is_some() { ", so the coverage was not moved" } else { "" }))
}

fn words(tally: &Tally, covered: Option<&Value>) -> String {
    let count = |name| tally.count(name);
    let mut words = format!(
        "registered {}, known already {}, extended {}, expired {}, refused {}",
        count("registered"),
        count("repeated"),
        count("extended"),
        count("expired"),
        count("refused")
    );
    let late = count("late");
    if late > 0 {
        let _ = write!(words, "\n{late} of them were issued before the coverage, which claimed to know them");
    }
    if let Some(until) = covered {
        let _ = write!(words, "\ncomplete until {until}");
    }
    words
}
