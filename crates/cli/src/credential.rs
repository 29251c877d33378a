//! `revocast credential`: who may use the API of a server; works on the files, so that no server need run.

use std::path::Path;
use std::process::ExitCode;

use revocast_core::{RealmId, UnixTime};
use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::credentials::{
    Credential, CredentialsFile, CredentialsFileError, Realms, Role, SECRETS_MAX, SecretHash,
};
use serde_json::{Value, json};

use crate::args::{CredentialCommand, NewCredential};
use crate::output::{Failure, Output};

pub fn run(output: Output, folder: &Path, command: CredentialCommand) -> Result<ExitCode, Failure> {
    if !folder.is_dir() {
        let detail = format!("there is no folder {}", folder.display());
        return Err(Failure::plain("no-keys", detail).help("say where the keys are: --keys DIR").usage());
    }
    match command {
        CredentialCommand::Add(new) => add(output, folder, *new),
        CredentialCommand::List => list(output, folder),
        CredentialCommand::Rotate { name, retire } => rotate(output, folder, &name, retire),
        CredentialCommand::Remove { name } => {
            CredentialsFile::change(folder, |file| file.remove(&name)).map_err(|error| failure(&error))?;
            output.result(format!("credential {name} is removed"), &json!({ "name": name, "removed": true }));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn add(output: Output, folder: &Path, new: NewCredential) -> Result<ExitCode, Failure> {
    let (secret, hash) = draw()?;
    let realm = |name: &String| {
        RealmId::new(name).map_err(|error| Failure::new("bad-realm", format!("realm {name:?}"), &error).usage())
    };
    let realms = match new.realms.as_slice() {
        [] => Realms::All,
        names => Realms::Only(names.iter().map(realm).collect::<Result<_, _>>()?),
    };
    let credential = Credential {
        expires: new.expires.map(UnixTime::from_secs),
        requests_per_second: new.requests_per_second,
        bulk_per_day: new.bulk_per_day,
        approve: new.approve,
        ..Credential::new(&new.name, new.roles, realms, hash)
    };
    CredentialsFile::change(folder, |file| file.add(credential)).map_err(|error| failure(&error))?;
    told(output, &new.name, &secret);
    Ok(ExitCode::SUCCESS)
}

fn rotate(output: Output, folder: &Path, name: &str, retire: bool) -> Result<ExitCode, Failure> {
    if retire {
        let kept = CredentialsFile::change(folder, |file| {
            let secrets = &mut file.find(name)?.secrets;
            let old = secrets.len().saturating_sub(1);
            secrets.drain(..old);
            Ok(old)
        });
        let retired = kept.map_err(|error| failure(&error))?;
        let words = match retired {
            0 => format!("credential {name} has no older secret"),
            _ => format!("the older secret of credential {name} is not accepted any more"),
        };
        output.result(words, &json!({ "name": name, "retired": retired }));
        return Ok(ExitCode::SUCCESS);
    }
    let (secret, hash) = draw()?;
    let change = CredentialsFile::change(folder, |file| {
        file.find(name)?.rotate(hash);
        Ok(())
    });
    change.map_err(|error| failure(&error))?;
    told(output, name, &secret);
    Ok(ExitCode::SUCCESS)
}

/// The only time that a secret is shown: only its hash is kept.
fn told(output: Output, name: &str, secret: &str) {
    let words = format!("{secret}\nthe secret of credential {name}; it is shown this once");
    output.result(words, &json!({ "name": name, "secret": secret }));
}

fn list(output: Output, folder: &Path) -> Result<ExitCode, Failure> {
    let file = CredentialsFile::load(folder).map_err(|error| failure(&error))?;
    let now = SystemClock::new().unix_time();
    let (mut words, mut values) = (Vec::new(), Vec::new());
    for credential in file.credentials() {
        let roles: Vec<_> = credential.roles.iter().map(|role| role.name()).collect();
        let realms: Option<Vec<String>> = match &credential.realms {
            Realms::All => None,
            Realms::Only(realms) => Some(realms.iter().map(RealmId::to_string).collect()),
        };
        let mut notes = vec![format!("{} of {SECRETS_MAX} secrets", credential.secrets.len())];
        let valid = credential.is_valid(now);
        notes
            .extend(credential.expires.map(|at| if valid { format!("expires at {at}") } else { "expired".to_owned() }));
        notes.extend(credential.requests_per_second.map(|rate| format!("{rate} requests a second")));
        notes.extend(credential.bulk_per_day.map(|rate| format!("{rate} entries a day")));
        notes.extend(credential.approve.then(|| "cutoffs of a realm need a second credential".to_owned()));
        words.push(format!(
            "{}  {}  {}  {}",
            credential.name,
            roles.join(","),
            realms.as_ref().map_or_else(|| "all realms".to_owned(), |realms| realms.join(",")),
            notes.join(", ")
        ));
        let created: Vec<u64> = credential.secrets.iter().map(|secret| secret.created().secs()).collect();
        values.push(json!({
            "name": credential.name, "roles": roles, "realms": realms, "secrets_created": created,
            "expires": credential.expires.map(UnixTime::secs), "requests_per_second": credential.requests_per_second,
            "bulk_per_day": credential.bulk_per_day, "approve": credential.approve,
        }));
    }
    if words.is_empty() {
        words.push("no credentials but the admin's".to_owned());
    }
    output.result(words.join("\n"), &Value::from(values));
    Ok(ExitCode::SUCCESS)
}

fn draw() -> Result<(String, SecretHash), Failure> {
    SecretHash::draw(SystemClock::new().unix_time())
        .map_err(|error| Failure::new("no-random", "the operating system gave no random bytes", &error))
}

fn failure(error: &CredentialsFileError) -> Failure {
    let failure = Failure::new("credentials", "the credentials cannot be changed", error);
    match error {
        CredentialsFileError::Taken { name } => {
            failure.help(format!("give it a new secret: revocast credential rotate {name}"))
        }
        CredentialsFileError::Unknown { .. } => failure.help("see which there are: revocast credential list"),
        _ => failure,
    }
}

/// Roles on the command line.
pub fn role(text: &str) -> Result<Role, String> {
    text.parse()
}
