//! The API of a real server against its own document, with requests that schemathesis makes up.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use revocast_tests::process::{Server, Site, Via, ask, tool};
use serde_json::Value;

/// What anybody may ask.
const PUBLIC: [&str; 5] = ["/healthz", "/readyz", "/.well-known/", "/v1/mirror/", "/jwks.json"];

/// Lets schemathesis ask a server; returns the requests and their statuses. Fails with its own report.
fn schemathesis(site: &Site, server: &Server, name: &str, more: &[&str]) -> Vec<(String, String, u64)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi");
    let reports = site.path(name);
    let output = Command::new(tool("REVOCAST_SCHEMATHESIS"))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &folder)
        .arg("--config-file")
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", server.url()), "--no-color", "--generation-deterministic"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-time", "45", "--report", "har", "--report-dir"])
        .arg(&reports)
        .args(more)
        .current_dir(site.path(""))
        .output()
        .expect("schemathesis runs");
    let report = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{complaint}");
    let file = std::fs::read_dir(&reports).expect("a folder of reports").next().expect("a report").expect("its name");
    let har: Value = serde_json::from_slice(&std::fs::read(file.path()).expect("a report")).expect("JSON");
    let entries = har.pointer("/log/entries").and_then(Value::as_array).expect("entries");
    let text = |entry: &Value, place: &str| entry.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
    let asked: Vec<_> = entries
        .iter()
        .map(|entry| {
            let path = text(entry, "/request/url").replacen(&server.url(), "", 1);
            let status = entry.pointer("/response/status").and_then(Value::as_u64).unwrap_or_default();
            (text(entry, "/request/method"), path, status)
        })
        .collect();
    assert!(asked.len() > 100, "only {} requests were made:\n{report}", asked.len());
    asked
}

#[test]
fn every_answer_is_one_that_the_document_names() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let bearer = format!("Authorization: Bearer {}", server.token());
    let asked = schemathesis(&site, &server, "with", &["-n", "10", "-H", &bearer]);
    let mut counts = BTreeMap::<u64, usize>::new();
    for (_, _, status) in &asked {
        *counts.entry(*status).or_default() += 1;
    }
    eprintln!("{} requests, by status: {counts:?}", asked.len());
    let failed: Vec<_> = asked.iter().filter(|(_, _, status)| *status >= 500).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // It got further than the door.
    assert!(asked.iter().any(|(method, path, status)| method == "POST" && path.contains("/fleet/") && *status < 300));
    assert_eq!(ask("GET", &format!("{}/healthz", server.url()), None, b"").expect("an answer").0, 200);
}

#[test]
fn nothing_is_granted_without_credentials() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let asked = schemathesis(&site, &server, "without", &["-c", checks, "-n", "5"]);
    let granted: Vec<_> = asked
        .iter()
        .filter(|(_, path, status)| *status < 300 && !PUBLIC.iter().any(|public| path.contains(public)))
        .collect();
    assert!(granted.is_empty(), "{granted:?}");
    let refused = asked.iter().filter(|(_, _, status)| *status == 401).count();
    assert!(refused > 50, "only {refused} of {} were refused", asked.len());
    assert_eq!(server.head(), 0);
}
