//! `device enroll|list|dismiss|token` and `token issue`: what the server's own issuer is asked for.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::admin::{Api, check_realm, text};
use crate::args::{DeviceName, Enroll, IssueToken, ServerArguments};
use crate::output::{Failure, Output, read_file};

/// What `device keygen` prints is far smaller.
const ENROLLMENT_BYTES_MAX: u64 = 64 * 1024;

/// Devices asked for at a time.
const PAGE: usize = 1_000;

pub fn enroll(output: Output, arguments: &Enroll) -> Result<ExitCode, Failure> {
    let given = read_enrollment(&arguments.file)?;
    let realm = match (&arguments.realm, given.get("realm").and_then(Value::as_str)) {
        (Some(realm), _) => realm.clone(),
        (None, Some(realm)) => realm.to_owned(),
        (None, None) => return Err(Failure::plain("usage", "name the realm with --realm").usage()),
    };
    check_realm(&realm)?;
    let mut body = Map::new();
    for name in ["device", "realm", "signing_key", "sealing_key", "proof"] {
        body.extend(given.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    body.insert("audience".to_owned(), json!(arguments.audience));
    body.insert("replace".to_owned(), json!(arguments.replace));
    body.extend(arguments.subject.as_ref().map(|subject| ("subject".to_owned(), json!(subject))));
    let api = Api::new(&arguments.server)?;
    let device = api.post(&format!("/v1/realms/{realm}/devices"), &Value::Object(body))?;
    let words = format!(
        "device {} of realm {realm} is enrolled; its tokens speak of {} to {}",
        text(&device, "device"),
        text(&device, "subject"),
        arguments.audience.join(", ")
    );
    output.result(words, &device);
    Ok(ExitCode::SUCCESS)
}

fn read_enrollment(path: &Path) -> Result<Map<String, Value>, Failure> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let read = std::io::stdin().take(ENROLLMENT_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|error| Failure::new("unreadable-file", "standard input cannot be read", &error).usage())?;
        bytes
    } else {
        read_file(path, "the enrollment")?
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new("bad-enrollment", format!("{} is no enrollment", path.display()), &error)
            .help("the device prints it: revocast device keygen --id NAME --realm REALM --out FILE")
            .usage()
    })
}

pub fn list(output: Output, realm: &str, server: &ServerArguments) -> Result<ExitCode, Failure> {
    check_realm(realm)?;
    let api = Api::new(server)?;
    let (mut words, mut devices, mut after) = (String::new(), Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/realms/{realm}/devices?limit={PAGE}{after}"))?;
        for device in page.get("devices").and_then(Value::as_array).into_iter().flatten() {
            let held = match (device.get("held_until"), device.get("barred")) {
                (_, Some(Value::Bool(true))) => "its token is revoked".to_owned(),
                (Some(until), _) => format!("holds a token until {until}"),
                (None, _) => "holds no token".to_owned(),
            };
            let _ = writeln!(words, "{}  {}  {held}", text(device, "device"), text(device, "subject"));
            devices.push(device.clone());
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let words = if words.is_empty() { "no devices" } else { words.trim_end() };
    output.result(words, &Value::from(devices));
    Ok(ExitCode::SUCCESS)
}

pub fn dismiss(output: Output, name: &DeviceName, reason: Option<&str>) -> Result<ExitCode, Failure> {
    let (api, path) = name.place()?;
    let query = reason.map(|reason| format!("?reason={}", encoded(reason))).unwrap_or_default();
    let gone = api.delete(&format!("{path}{query}"))?;
    let words =
        format!("device {} is enrolled no longer; {} of its tokens are revoked", name.device, text(&gone, "revoked"));
    output.result(words, &gone);
    Ok(ExitCode::SUCCESS)
}

pub fn token(output: Output, name: &DeviceName, lifetime: Option<u64>) -> Result<ExitCode, Failure> {
    let (api, path) = name.place()?;
    let mut body = Map::new();
    body.extend(lifetime.map(|seconds| ("lifetime".to_owned(), json!(seconds))));
    let issued = api.post(&format!("{path}/tokens"), &Value::Object(body))?;
    let delivered = issued.get("delivered") == Some(&Value::Bool(true));
    let mut words = format!("token {} for device {} until {}", text(&issued, "jti"), name.device, text(&issued, "exp"));
    words.push_str(if delivered {
        ", delivered to the broker"
    } else {
        ", not delivered: the device gets one when it asks"
    });
    warn(&mut words, &issued);
    output.result(words, &issued);
    Ok(ExitCode::SUCCESS)
}

pub fn issue(output: Output, arguments: &IssueToken) -> Result<ExitCode, Failure> {
    check_realm(&arguments.realm)?;
    let mut body = Map::new();
    body.insert("sub".to_owned(), json!(arguments.sub));
    body.insert("aud".to_owned(), json!(arguments.audience));
    body.insert("refresh".to_owned(), json!(arguments.refresh));
    body.extend(arguments.lifetime.map(|seconds| ("lifetime".to_owned(), json!(seconds))));
    body.extend(arguments.client.as_ref().map(|client| ("client".to_owned(), json!(client))));
    if let Some(claims) = &arguments.claims {
        let claims: Map<String, Value> = serde_json::from_str(claims)
            .map_err(|error| Failure::new("bad-argument", "--claims is no JSON object", &error).usage())?;
        body.insert("claims".to_owned(), Value::Object(claims));
    }
    let api = Api::new(&arguments.server)?;
    let issued = api.post(&format!("/v1/realms/{}/tokens", arguments.realm), &Value::Object(body))?;
    // The token alone stands on standard output, so that it can be piped.
    let mut words = text(&issued, "token");
    if issued.get("refresh_token").is_some() {
        let _ = write!(words, "\n{}", text(&issued, "refresh_token"));
    }
    if let Some(warning) = issued.get("warning").and_then(Value::as_str) {
        eprintln!("revocast: {warning}");
    }
    output.result(words, &issued);
    Ok(ExitCode::SUCCESS)
}

fn warn(words: &mut String, issued: &Value) {
    if let Some(warning) = issued.get("warning").and_then(Value::as_str) {
        let _ = write!(words, "\n{warning}");
    }
}

/// A text in a query (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

impl DeviceName {
    /// The server and the path of the device there.
    fn place(&self) -> Result<(Api, String), Failure> {
        check_realm(&self.realm)?;
        revocast_core::DeviceId::new(&self.device)
            .map_err(|error| Failure::new("bad-argument", "the device", &error).usage())?;
        Ok((Api::new(&self.server)?, format!("/v1/realms/{}/devices/{}", self.realm, self.device)))
    }
}
