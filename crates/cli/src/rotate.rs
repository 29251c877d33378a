//! `publisher-key rotate`: a new key, named by the root keys in every realm, then put into force.
//!
//! The order makes an interruption harmless: the new key is written beside the old one; every realm's next `keys` name
//! both; they are published; only then the new key takes the place of the old, and what is current is sealed by it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use revocast_core::update::Role;
use revocast_core::{Kind, RealmId, Sealed, SigningKey};
use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::keys::{NextPublisher, read_root};
use revocast_server::rotation;
use serde_json::{Value, json};

use crate::admin::{Api, realms, text};
use crate::args::RotatePublisher;
use crate::keygen;
use crate::output::{Failure, Output};

/// How long the server may take to publish; it does so within seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

pub fn rotate(output: Output, arguments: &RotatePublisher) -> Result<ExitCode, Failure> {
    let api = Api::new(&arguments.server)?;
    let files = match arguments.roots.as_slice() {
        [] => vec![arguments.keys.join("root.key")],
        named => named.to_vec(),
    };
    let roots = files.iter().map(|path| root(path)).collect::<Result<Vec<_>, _>>()?;
    let roots: Vec<&SigningKey> = roots.iter().collect();
    let realms: Vec<RealmId> = realms(&api)?
        .iter()
        .map(|realm| {
            RealmId::new(&text(realm, "name")).map_err(|error| Failure::new("bad-answer", "a realm's name", &error))
        })
        .collect::<Result<_, _>>()?;
    let next = NextPublisher::begin(&arguments.keys).map_err(|error| keygen::failure(&error))?;
    let overlap = (!arguments.now).then(|| Duration::from_secs(arguments.overlap));
    let mut named = Vec::new();
    for realm in realms {
        named.push((realm, name(&api, realm, &next, &roots, overlap)?));
    }
    wait(
        &format!(
            "publish the new keys; the new publisher key is not in force yet, run this again when {}",
            "the server leads and reaches its broker"
        ),
        || {
            let status = api.get("/v1/status")?;
            Ok(named.iter().all(|(realm, version)| published(&status, *realm) == Some(*version)))
        },
    )?;
    let public = next.public();
    next.enact().map_err(|error| keygen::failure(&error))?;
    wait("seal with the new key, which is in force; look at revocast status", || {
        for (realm, _) in &named {
            let manifest = api.get_bytes(&format!("/v1/mirror/{realm}/manifest"))?;
            let sealed = Sealed::expect(&manifest, realm, Kind::Manifest);
            if !sealed.is_ok_and(|sealed| sealed.is_signed_by(&public)) {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let before = match overlap {
        Some(overlap) => format!("what the one before sealed is believed for another {} s", overlap.as_secs()),
        None => "nothing that the one before seals is believed any more".to_owned(),
    };
    let words = format!(
        "publisher key {} is in force in {} realms; {before}\nservers with a folder of their own need a copy of {}",
        public.id(),
        named.len(),
        arguments.keys.join("publisher.key").display()
    );
    let versions: serde_json::Map<String, Value> =
        named.iter().map(|(realm, version)| (realm.to_string(), json!(version))).collect();
    output.result(words, &json!({ "publisher": public.id().to_string(), "keys_versions": versions }));
    Ok(ExitCode::SUCCESS)
}

fn root(path: &Path) -> Result<SigningKey, Failure> {
    read_root(path).map_err(|error| {
        Failure::new("no-root-key", "without the root key nobody can be named as publisher", &error)
            .help("bring it here, or name where it is: --root FILE")
    })
}

/// Lets the realm's next keys name the new publisher, unless they do; returns their version.
fn name(
    api: &Api,
    realm: RealmId,
    next: &NextPublisher,
    roots: &[&SigningKey],
    overlap: Option<Duration>,
) -> Result<u64, Failure> {
    let unreadable =
        |error: &dyn std::error::Error| Failure::new("bad-answer", format!("the keys of realm {realm}"), error);
    let held = api.get_bytes(&format!("/v1/mirror/{realm}/keys"))?;
    let held = rotation::read(&held, &realm).map_err(|error| unreadable(&error))?;
    let publisher = next.public();
    let named = |role: u8| role == Role::Content as u8;
    if held.publishers.iter().any(|found| found.key == publisher && named(found.role)) {
        return Ok(held.version);
    }
    let keys = rotation::successor(&held, publisher, SystemClock::new().now().wall, overlap);
    let sealed = rotation::sign(&keys, &realm, roots).map_err(|error| unreadable(&error))?;
    api.put_bytes(&format!("/v1/realms/{realm}/keys"), &sealed)?;
    Ok(keys.version)
}

/// The version of a realm's keys that the broker holds.
fn published(status: &Value, realm: RealmId) -> Option<u64> {
    let realms = status.get("realms")?.as_array()?;
    let found = realms.iter().find(|found| text(found, "name") == realm.as_str())?;
    found.get("published")?.get("keys_version")?.as_u64()
}

fn wait(what: &str, done: impl Fn() -> Result<bool, Failure>) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > until {
            return Err(Failure::plain("not-published", format!("the server did not {what}")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
