//! `revocast keygen`

use std::path::Path;
use std::process::ExitCode;

use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::keys::{KeyError, Keys};
use serde_json::json;

use crate::output::{Failure, Output};

pub fn run(output: Output, folder: &Path) -> Result<ExitCode, Failure> {
    let keys = Keys::generate(folder, SystemClock::new().unix_time()).map_err(|error| failure(&error))?;
    let file = |name: &str| folder.join(name).display().to_string();
    let publisher = keys.publisher().map_err(|error| failure(&error))?.public().id().to_string();
    let trust = keys.trust().map_err(|error| failure(&error))?;
    let roots: Vec<String> = trust.roots.iter().map(|root| root.id().to_string()).collect();
    let words = format!(
        "{root}       root key {id}: founds realms; keep a copy offline\n\
         {publisher}  publisher key {publishes}: signs what is published\n\
         {issuer}     issuer key {kid}: signs tokens\n\
         {admin}    bearer token of the API\n\
         {trust}     what devices pin\n\
         {jwks}  what validators of tokens need",
        root = file("root.key"),
        id = roots.join(", "),
        publisher = file("publisher.key"),
        publishes = publisher,
        issuer = file("issuer.key"),
        kid = keys.issuer().kid(),
        admin = file("admin.token"),
        trust = file("trust.json"),
        jwks = file("issuer.jwks.json"),
    );
    let value = json!({
        "folder": folder.display().to_string(),
        "roots": roots,
        "publisher": publisher,
        "issuer_kid": keys.issuer().kid(),
        "trust": file("trust.json"),
        "jwks": file("issuer.jwks.json"),
        "admin_token": file("admin.token"),
    });
    output.result(words, &value);
    Ok(ExitCode::SUCCESS)
}

/// A failure to make or read keys, with what to do.
pub fn failure(error: &KeyError) -> Failure {
    let failure = Failure::new("keys", "the keys cannot be used", error);
    match error {
        KeyError::Exists { .. } => failure.help("choose another folder; existing keys are never overwritten"),
        KeyError::Busy { .. } => failure.help("wait until that has ended, then run this again"),
        KeyError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path).display();
            failure.help(format!("make keys with: revocast keygen --out {folder}"))
        }
        _ => failure,
    }
}
