//! `issued import`: registers tokens from a file, in parts, so that a lost connection costs one part.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use revocast_core::limits::ISSUED_LINE_BYTES_MAX;
use serde_json::{Value, json};

use crate::admin::{Api, check_realm};
use crate::args::{IssuedCommand, ServerArguments};
use crate::output::{Failure, Output};

/// Lines sent at a time: some hundred milliseconds of work, so little to repeat.
const PART_LINES: u64 = 10_000;

/// Pauses before a part is sent again. Their sum outlasts a restart of the server.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Refused lines that are told in words; the rest are only counted.
const PROBLEMS_MAX: usize = 100;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

pub fn run(output: Output, server: &ServerArguments, command: IssuedCommand) -> Result<ExitCode, Failure> {
    let IssuedCommand::Import { file, realm, complete_until, from_line } = command;
    check_realm(&realm)?;
    let api = Api::new(server)?;
    let (input, bytes) = open(&file)?;
    let bar = bar(output, bytes);
    let mut import = Import {
        api: &api,
        path: format!("/v1/realms/{realm}/issued"),
        bar: &bar,
        tally: Tally::default(),
        problems: Vec::new(),
    };
    let imported = import.all(input, from_line);
    bar.finish_and_clear();
    let Import { tally, problems, .. } = import;
    let lines = imported?;
    if tally.is_empty() {
        let what = format!("{} names no token from line {from_line} on", name(&file));
        return Err(Failure::plain("nothing-to-import", what).usage());
    }
    let covered = match complete_until {
        Some(until) if tally.refused == 0 => {
            Some(api.put(&format!("/v1/realms/{realm}/coverage"), &json!({ "until": until }))?)
        }
        Some(_) | None => None,
    };
    let value = tally.value(lines, &problems, covered.as_ref());
    output.result(tally.words(covered.as_ref()), &value);
    if tally.refused == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let mut detail = format!("{} lines of {} were refused", tally.refused, name(&file));
    if complete_until.is_some() {
        detail.push_str(", so the coverage was not moved");
    }
    for (line, what) in &problems {
        let _ = write!(detail, "\n  line {line}: {what}");
    }
    let more = tally.refused.saturating_sub(problems.len() as u64);
    if more > 0 {
        let _ = write!(detail, "\n  and {more} more");
    }
    Err(Failure::plain("lines-refused", detail))
}

/// The lines, and how many bytes they are if that is known.
fn open(path: &Path) -> Result<(Box<dyn BufRead>, Option<u64>), Failure> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, std::io::stdin())), None));
    }
    let unreadable = |error: std::io::Error| {
        Failure::new("unreadable-file", format!("{} cannot be read", path.display()), &error).usage()
    };
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if about.is_dir() {
        return Err(Failure::plain("unreadable-file", format!("{} is a folder", path.display())).usage());
    }
    Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), about.is_file().then_some(about.len())))
}

fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

/// For people who watch: hidden where nobody does, and where a program reads.
fn bar(output: Output, bytes: Option<u64>) -> ProgressBar {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        // The templates stand above; a plain bar would do as well.
        Err(_) => bar,
    }
}

/// What the parts came to, together.
#[derive(Default)]
struct Tally {
    registered: u64,
    repeated: u64,
    extended: u64,
    late: u64,
    expired: u64,
    refused: u64,
}

impl Tally {
    fn add(&mut self, answer: &Value) {
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
        self.registered += number("registered");
        self.repeated += number("repeated");
        self.extended += number("extended");
        self.late += number("late");
        self.expired += number("expired");
        self.refused += number("refused");
    }

    /// Whether every line was blank.
    const fn is_empty(&self) -> bool {
        self.registered + self.repeated + self.extended + self.expired + self.refused == 0
    }

    fn words(&self, covered: Option<&Value>) -> String {
        let Self { registered, repeated, extended, late, expired, refused } = self;
        let mut words = format!(
            "registered {registered}, known already {repeated}, extended {extended}, expired {expired}, refused {refused}"
        );
        if *late > 0 {
            let _ = write!(words, "\n{late} of them were issued before the coverage, which claimed to know them");
        }
        if let Some(until) = covered.and_then(|covered| covered.get("covered_until")) {
            let _ = write!(words, "\ncomplete until {until}");
        }
        words
    }

    fn value(&self, lines: u64, problems: &[(u64, String)], covered: Option<&Value>) -> Value {
        let problems: Vec<Value> =
            problems.iter().map(|(line, detail)| json!({ "line": line, "detail": detail })).collect();
        json!({
            "lines": lines, "registered": self.registered, "repeated": self.repeated, "extended": self.extended,
            "late": self.late, "expired": self.expired, "refused": self.refused, "problems": problems,
            "covered_until": covered.and_then(|covered| covered.get("covered_until")),
        })
    }
}

struct Import<'a> {
    api: &'a Api,
    path: String,
    bar: &'a ProgressBar,
    tally: Tally,
    /// Refused lines, by their number in the file.
    problems: Vec<(u64, String)>,
}

impl Import<'_> {
    /// Sends all lines from `from` on; returns how many.
    fn all(&mut self, mut input: Box<dyn BufRead>, from: u64) -> Result<u64, Failure> {
        let unreadable = |line: u64, error: &std::io::Error| {
            let help = format!("what stands before it is registered; go on with: --from-line {line}");
            Failure::new("unreadable-file", format!("line {line} cannot be read"), error).help(help)
        };
        let mut part = Vec::new();
        let mut next = 1;
        while next < from {
            part.clear();
            if !self.line(&mut input, &mut part).map_err(|error| unreadable(next, &error))? {
                return Ok(0);
            }
            next += 1;
        }
        loop {
            part.clear();
            let mut lines = 0;
            while lines < PART_LINES {
                match self.line(&mut input, &mut part) {
                    Ok(true) => lines += 1,
                    Ok(false) => break,
                    Err(error) => {
                        self.send(next, &part)?;
                        return Err(unreadable(next + lines, &error));
                    }
                }
            }
            if lines == 0 {
                return Ok(next - from);
            }
            self.send(next, &part)?;
            next += lines;
        }
    }

    /// Appends the next line to `part`, cut where the server would refuse it anyway; false at the end.
    fn line(&self, input: &mut Box<dyn BufRead>, part: &mut Vec<u8>) -> std::io::Result<bool> {
        let limit = ISSUED_LINE_BYTES_MAX as u64 + 1;
        let mut read = input.by_ref().take(limit).read_until(b'\n', part)?;
        if read == 0 {
            return Ok(false);
        }
        let ended = part.last() == Some(&b'\n');
        if !ended {
            if read as u64 == limit {
                read += input.skip_until(b'\n')?;
            }
            part.push(b'\n');
        }
        self.bar.inc(read as u64);
        Ok(true)
    }

    /// Sends the part that begins with line `first`, and again if it got lost on the way: what is
    /// registered already then counts as known.
    fn send(&mut self, first: u64, part: &[u8]) -> Result<(), Failure> {
        let mut pauses = PAUSES.iter();
        loop {
            let (failure, done) = match self.api.post_lines(&self.path, part) {
                Ok((200, answer)) => {
                    self.count(first, &answer);
                    return Ok(());
                }
                Ok((status, answer)) => {
                    let done = answer.get("lines_done").and_then(Value::as_u64).unwrap_or(0);
                    let failure = Api::refusal(status, &answer);
                    // What a moment may change: an overload, a restart, a connection too slow.
                    if !matches!(status, 408 | 502..=504) {
                        return Err(stopped(failure, first, done));
                    }
                    (failure, done)
                }
                Err(failure) => (failure, 0),
            };
            match pauses.next() {
                Some(&pause) => std::thread::sleep(pause),
                None => return Err(stopped(failure, first, done)),
            }
        }
    }

    fn count(&mut self, first: u64, answer: &Value) {
        self.tally.add(answer);
        for problem in answer.get("problems").and_then(Value::as_array).into_iter().flatten() {
            let line = problem.get("line").and_then(Value::as_u64);
            let detail = problem.get("detail").and_then(Value::as_str);
            if let (Some(line), Some(detail)) = (line, detail)
                && self.problems.len() < PROBLEMS_MAX
            {
                self.problems.push((first + line - 1, detail.to_owned()));
            }
        }
    }
}

/// Says where to go on. Nothing to say before the first line: the whole command is repeated.
fn stopped(failure: Failure, first: u64, done: u64) -> Failure {
    match first + done {
        1 => failure,
        line => failure.help(format!("all lines before line {line} are registered; go on with: --from-line {line}")),
    }
}
