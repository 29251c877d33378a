//! `revocast device keygen`: who a device is, made where it runs.

use std::process::ExitCode;

use revocast_core::{DeviceId, RealmId};
use revocast_device::{Identity, IdentityError};
use serde_json::Value;

use crate::args::DeviceKeygen;
use crate::output::{Failure, Output};

/// Makes keys, and prints what the operator enrolls the device with: one JSON object, also without `--json`.
pub fn keygen(output: Output, arguments: &DeviceKeygen) -> Result<ExitCode, Failure> {
    let bad = |what: &str, error: &dyn std::error::Error| Failure::new("bad-argument", what, error).usage();
    let device = DeviceId::new(&arguments.id).map_err(|error| bad("--id", &error))?;
    let realm = RealmId::new(&arguments.realm).map_err(|error| bad("--realm", &error))?;
    let identity = Identity::generate(realm, device)
        .map_err(|error| Failure::new("no-random", "the keys cannot be made", &error))?;
    identity.save(&arguments.out).map_err(|error| failure(&error))?;
    let enrollment = identity.enrollment().to_json();
    let value = serde_json::from_str(&enrollment).unwrap_or(Value::Null);
    output.result(enrollment, &value);
    Ok(ExitCode::SUCCESS)
}

/// A failure to make or read an identity, with what to do.
pub fn failure(error: &IdentityError) -> Failure {
    let failure = Failure::new("identity", "the identity cannot be used", error).usage();
    match error {
        IdentityError::Exists { .. } => {
            failure.help("name another file; with other keys the device would have to be enrolled again")
        }
        IdentityError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failure.help("make one with: revocast device keygen --id NAME --realm REALM --out FILE")
        }
        IdentityError::Malformed { .. } => {
            failure.help("make another file with `revocast device keygen` and enroll the device again with --replace")
        }
        IdentityError::Io { .. } | IdentityError::TooOpen { .. } => failure,
    }
}
