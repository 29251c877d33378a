//! `revocast fleet`: how the devices of a realm are, as they say themselves.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admin::{Api, check_realm, realms};
use crate::args::ServerArguments;
use crate::output::{Failure, Output};

/// Between two looks with `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);

pub fn run(output: Output, server: &ServerArguments, realm: Option<&str>, watch: bool) -> Result<ExitCode, Failure> {
    realm.map_or(Ok(()), check_realm)?;
    let api = Api::new(server)?;
    loop {
        show(output, &api, realm)?;
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn show(output: Output, api: &Api, realm: Option<&str>) -> Result<(), Failure> {
    let names = match realm {
        Some(realm) => vec![realm.to_owned()],
        None => realms(api)?.iter().filter_map(|realm| realm["name"].as_str().map(str::to_owned)).collect(),
    };
    if names.is_empty() {
        output.result("no realms; found one with: revocast realm create NAME --issuer ISS", &json!({}));
    }
    for name in names {
        let mut fleet = api.get(&format!("/v1/realms/{name}/fleet"))?;
        let words = describe(&name, &fleet);
        if let Some(members) = fleet.as_object_mut() {
            members.insert("realm".to_owned(), json!(name));
        }
        output.result(words, &fleet);
    }
    Ok(())
}

fn describe(realm: &str, fleet: &Value) -> String {
    let number = |name: &str| fleet[name].as_u64().unwrap_or_default();
    let mut words = format!("realm {realm}, head {}", number("head"));
    let (known, online, current) = (number("known"), number("online"), number("current"));
    if known == 0 {
        words.push_str("\n  no device has reported yet");
        return words;
    }
    let share = fleet["current_share"].as_f64().map(|share| format!(" ({:.1} %)", share * 100.0)).unwrap_or_default();
    let _ = write!(words, "\n  {online} of {known} devices online, {current} of them at the head{share}");
    if fleet["enrolled"] == json!(true) {
        let _ = write!(words, "; {} of those online prove themselves", number("proven"));
    }
    if number("beyond") > 0 {
        let _ = write!(words, "; {} claim what does not exist", number("beyond"));
    }
    let spread = &fleet["propagation"];
    if let [Some(p50), Some(p90), Some(p99)] = ["p50_ms", "p90_ms", "p99_ms"].map(|name| spread[name].as_u64()) {
        let revocations = spread["revocations"].as_u64().unwrap_or_default();
        let _ = write!(
            words,
            "\n  time to apply: p50 {p50} ms, p90 {p90} ms, p99 {p99} ms (the last {revocations} revocations, until reported)"
        );
    }
    let memory = &fleet["memory"];
    let kib = |name: &str| memory[name].as_f64().unwrap_or_default() / 1024.0;
    if online > 0 {
        let _ = write!(words, "\n  memory: median {:.1} KiB, largest {:.1} KiB", kib("median_bytes"), kib("max_bytes"));
    }
    let profiles: Vec<String> = list(fleet, "profiles")
        .filter(|profile| profile["devices"] != json!(0))
        .map(|profile| format!("{} {}", profile["profile"].as_str().unwrap_or_default(), profile["devices"]))
        .collect();
    if !profiles.is_empty() {
        let _ = write!(words, "\n  profiles: {}", profiles.join(", "));
    }
    for device in list(fleet, "refusing") {
        let (name, refusal) = (device["device"].as_str(), device["refusal"].as_str());
        let again = if device["repeated"] == json!(true) { ", again and again" } else { "" };
        let _ = write!(
            words,
            "\n  refusing: {} ({}, {} lately{again})",
            name.unwrap_or_default(),
            refusal.unwrap_or("other"),
            device["rise"]
        );
    }
    for device in list(fleet, "stalest") {
        let _ = write!(
            words,
            "\n  heard {} s ago: {} at {}.{}",
            device["silent_seconds"],
            device["device"].as_str().unwrap_or_default(),
            device["epoch"],
            device["sequence"]
        );
    }
    words
}

fn list<'a>(fleet: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    fleet[name].as_array().into_iter().flatten()
}
