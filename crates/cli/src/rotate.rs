//! `publisher-key rotate` and `root-key rotate`: a new key, named in every realm's next `keys`, then put into force.
//!
//! The order makes an interruption harmless: the new key is written beside the old one; every realm's next `keys` name
//! it, signed by the root keys; they are published; only then the new key takes the place of the old. Of publisher keys
//! both are named for a while. A new root key signs its own naming, beside those that were roots before it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use revocast_core::update::{PublisherKey, Role};
use revocast_core::{Keys, Kind, PublicKey, RealmId, Sealed, SigningKey, Trust};
use revocast_device::trust_from_file;
use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::keys::{KeyError, NextKey, read_root};
use revocast_server::rotation;
use serde_json::{Value, json};

use crate::admin::{Api, realms, text};
use crate::args::{RotatePublisher, RotateRoot};
use crate::keygen;
use crate::output::{Failure, Output};

/// How long the server may take to publish; it does so within seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// `publisher-key rotate`
pub fn publisher(output: Output, arguments: &RotatePublisher) -> Result<ExitCode, Failure> {
    let api = Api::new(&arguments.server)?;
    let roots = read_roots(&arguments.keys, &arguments.roots)?;
    let roots: Vec<&SigningKey> = roots.iter().collect();
    let realms = realm_ids(&api)?;
    let next = NextKey::publisher(&arguments.keys).map_err(|error| keygen::failure(&error))?;
    let overlap = (!arguments.now).then(|| Duration::from_secs(arguments.overlap));
    let public = next.public();
    let mut named = Vec::new();
    for realm in realms {
        let held = held_keys(&api, realm)?;
        let signs = |found: &PublisherKey| found.key == public && found.role == Role::Content as u8;
        if held.publishers.iter().any(signs) {
            named.push((realm, held.version));
            continue;
        }
        let keys = rotation::successor(&held, public, SystemClock::new().now().wall, overlap);
        hand_in(&api, realm, &keys, &roots)?;
        named.push((realm, keys.version));
    }
    wait_until_published(&api, &named, "publisher")?;
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
    output.result(words, &json!({ "publisher": public.id().to_string(), "keys_versions": versions(&named) }));
    Ok(ExitCode::SUCCESS)
}

/// `root-key rotate`
pub fn root(output: Output, arguments: &RotateRoot) -> Result<ExitCode, Failure> {
    let api = Api::new(&arguments.server)?;
    let realms = realm_ids(&api)?;
    let unusable = |error: KeyError| keygen::failure(&error);
    let trust = trust_from_file(&arguments.keys.join("trust.json"))
        .map_err(|error| Failure::new("keys", "what devices pin cannot be read", &error))?;
    let next = NextKey::root(&arguments.keys).map_err(unusable)?;
    let (public, old) = (next.public(), arguments.replace.as_deref());
    let now = SystemClock::new().now().wall;

    // All is looked at before anything is changed.
    let pinned = replaced(&trust.roots, public, old).map_err(|why| why.about("trust.json"))?;
    let mut due = Vec::new();
    let mut named = Vec::new();
    for realm in realms {
        let held = held_keys(&api, realm)?;
        match replaced(&held.roots, public, old).map_err(|why| why.about(realm.as_str()))? {
            None => named.push((realm, held.version)),
            Some(roots) => due.push((realm, rotation::with_roots(&held, roots, now))),
        }
    }
    if !due.is_empty() {
        let before = read_roots(&arguments.keys, &arguments.roots)?;
        let signers: Vec<&SigningKey> = before.iter().chain([next.key()]).collect();
        for (realm, keys) in due {
            hand_in(&api, realm, &keys, &signers)?;
            named.push((realm, keys.version));
        }
    }
    wait_until_published(&api, &named, "root")?;
    let roots = pinned.unwrap_or(trust.roots);
    let kept =
        next.enact_root(&Trust { roots, not_before: trust.not_before.max(now.floor()), ..trust }).map_err(unusable)?;
    let file = |name: &str| arguments.keys.join(name).display().to_string();
    let mut words = format!(
        "root key {} is in force in {} realms: {}, keep it offline\ndevices to come pin {}; those that are out there go on with theirs",
        public.id(),
        named.len(),
        file("root.key"),
        file("trust.json"),
    );
    if let Some(kept) = &kept {
        let _ = write!(words, "\nthe one before is kept as {}", kept.display());
    }
    let value = json!({
        "root": public.id().to_string(),
        "trust": file("trust.json"),
        "before": kept.map(|path| path.display().to_string()),
        "keys_versions": versions(&named),
    });
    output.result(words, &value);
    Ok(ExitCode::SUCCESS)
}

/// Why a root key cannot take the place of another.
#[derive(Debug, PartialEq, Eq)]
enum NotReplaced {
    /// Nobody said which.
    Several(Vec<PublicKey>),
    /// There is none with that name.
    Unknown(Vec<PublicKey>),
}

impl NotReplaced {
    fn about(&self, place: &str) -> Failure {
        let (what, Self::Several(roots) | Self::Unknown(roots)) = match self {
            Self::Several(_) => ("several root keys, and none was named", self),
            Self::Unknown(_) => ("no root key of that name", self),
        };
        let names: Vec<String> = roots.iter().map(|root| root.id().to_string()).collect();
        Failure::plain("which-root", format!("{place} has {what}"))
            .help(format!("name the one to be replaced with --replace; there: {}", names.join(", ")))
            .usage()
    }
}

/// These roots with `new` instead of the one whose name is `old`, or of the only one; `None` if `new` is among them.
fn replaced(roots: &[PublicKey], new: PublicKey, old: Option<&str>) -> Result<Option<Vec<PublicKey>>, NotReplaced> {
    if roots.contains(&new) {
        return Ok(None);
    }
    let old = match (old, roots) {
        (Some(name), _) => roots.iter().find(|root| root.id().to_string() == name),
        (None, [only]) => Some(only),
        (None, _) => return Err(NotReplaced::Several(roots.to_vec())),
    };
    let old = *old.ok_or_else(|| NotReplaced::Unknown(roots.to_vec()))?;
    let mut after: Vec<_> = roots.iter().copied().filter(|root| *root != old).chain([new]).collect();
    after.sort_unstable();
    Ok(Some(after))
}

fn realm_ids(api: &Api) -> Result<Vec<RealmId>, Failure> {
    let id = |realm: &Value| {
        RealmId::new(&text(realm, "name")).map_err(|error| Failure::new("bad-answer", "a realm's name", &error))
    };
    realms(api)?.iter().map(id).collect()
}

/// The root keys that sign.
fn read_roots(keys: &Path, named: &[PathBuf]) -> Result<Vec<SigningKey>, Failure> {
    let files = if named.is_empty() { vec![keys.join("root.key")] } else { named.to_vec() };
    let read = |path: &PathBuf| {
        read_root(path).map_err(|error| {
            Failure::new("no-root-key", "without the root key no keys of a realm are replaced", &error)
                .help("bring it here, or name where it is: --root FILE")
        })
    };
    files.iter().map(read).collect()
}

/// A realm's keys as they are in force.
fn held_keys(api: &Api, realm: RealmId) -> Result<Keys, Failure> {
    let held = api.get_bytes(&format!("/v1/mirror/{realm}/keys"))?;
    rotation::read(&held, &realm)
        .map_err(|error| Failure::new("bad-answer", format!("the keys of realm {realm}"), &error))
}

/// Signs the next version of a realm's keys and hands it to the server.
fn hand_in(api: &Api, realm: RealmId, keys: &Keys, roots: &[&SigningKey]) -> Result<(), Failure> {
    let sealed = rotation::sign(keys, &realm, roots)
        .map_err(|error| Failure::new("bad-answer", format!("the keys of realm {realm}"), &error))?;
    api.put_bytes(&format!("/v1/realms/{realm}/keys"), &sealed).map(drop)
}

fn wait_until_published(api: &Api, named: &[(RealmId, u64)], which: &str) -> Result<(), Failure> {
    let what = format!(
        "publish the new keys; the new {which} key is not in force yet, run this again when the server leads and reaches \
         its broker"
    );
    wait(&what, || {
        let status = api.get("/v1/status")?;
        Ok(named.iter().all(|(realm, version)| published(&status, *realm) == Some(*version)))
    })
}

fn versions(named: &[(RealmId, u64)]) -> serde_json::Map<String, Value> {
    named.iter().map(|(realm, version)| (realm.to_string(), json!(version))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_root_takes_the_place_of_the_one_that_is_meant() {
        let key = |seed| SigningKey::from_seed([seed; 32]).public();
        let sorted = |mut roots: Vec<PublicKey>| {
            roots.sort_unstable();
            roots
        };
        let three = sorted(vec![key(1), key(2), key(3)]);
        let name = key(2).id().to_string();
        assert_eq!(replaced(&[key(1)], key(9), None), Ok(Some(vec![key(9)])));
        assert_eq!(replaced(&three, key(9), Some(&name)), Ok(Some(sorted(vec![key(1), key(3), key(9)]))));
        assert_eq!(replaced(&three, key(3), None), Ok(None), "it is there already");
        assert_eq!(replaced(&three, key(9), None), Err(NotReplaced::Several(three.clone())));
        assert_eq!(replaced(&[key(1)], key(9), Some(&name)), Err(NotReplaced::Unknown(vec![key(1)])));
    }
}
