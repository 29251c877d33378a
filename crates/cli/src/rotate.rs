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
use revocast_server::keys::{EnactedRoot, KeyError, NextKey, Rotation, read_root};
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
    let unusable = |error: KeyError| keygen::failure(&error);
    let api = Api::new(&arguments.server)?;
    let roots = read_roots(&arguments.keys, &arguments.roots)?;
    let known: Vec<PublicKey> = roots.iter().map(SigningKey::public).collect();
    let roots: Vec<&SigningKey> = roots.iter().collect();
    let realms = realm_ids(&api)?;
    let rotation = Rotation::begin(&arguments.keys).map_err(unusable)?;
    let next = match rotation.next_publisher().map_err(unusable)? {
        Some(next) => going_on(output, "publisher", next),
        None => rotation.make_publisher().map_err(unusable)?,
    };
    let overlap = (!arguments.now).then(|| Duration::from_secs(arguments.overlap));
    let public = next.public();
    let mut named = Vec::new();
    for realm in realms {
        let held = held_keys(&api, realm, &known)?;
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
    rotation.enact_publisher(&next).map_err(unusable)?;
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
    let unusable = |error: KeyError| keygen::failure(&error);
    let api = Api::new(&arguments.server)?;
    let rotation = Rotation::begin(&arguments.keys).map_err(unusable)?;
    let trust = trust_from_file(&arguments.keys.join("trust.json"))
        .map_err(|error| Failure::new("keys", "what devices pin cannot be read", &error))?;
    let left = rotation.next_root().map_err(unusable)?;
    let mut signers = match arguments.roots.as_slice() {
        [] => Vec::new(),
        named => read_roots(&arguments.keys, named)?,
    };

    // All is looked at before anything is changed, or made.
    let old = arguments.replace.as_deref();
    let new = left.as_ref().map(NextKey::public);
    let brought = signers.iter().map(SigningKey::public);
    let mut known: Vec<PublicKey> = trust.roots.iter().copied().chain(brought).chain(new).collect();
    let pinned = outgoing(&trust.roots, new, old).map_err(|why| why.about("trust.json"))?;
    let found = look(&api, &known, new, old)?;
    if signers.is_empty() && found.iter().any(|realm| realm.outgoing.is_some()) {
        signers = read_roots(&arguments.keys, &[])?;
    }
    let next = match left {
        Some(next) => going_on(output, "root", next),
        None => rotation.make_root().map_err(unusable)?,
    };

    let public = next.public();
    known.push(public);
    let signers: Vec<&SigningKey> = signers.iter().chain([next.key()]).collect();
    let named = name_root(&api, found, public, &signers)?;
    wait_until_published(&api, &named, "root")?;
    let pinned = Trust {
        roots: pinned.map_or_else(|| trust.roots.clone(), |old| replaced(&trust.roots, old, public)),
        not_before: trust.not_before.max(SystemClock::new().unix_time()),
        threshold: trust.threshold,
    };
    let EnactedRoot { path, before } = rotation.enact_root(&next, &pinned).map_err(unusable)?;
    // One may have been founded meanwhile, by the root key before.
    let named = name_root(&api, look(&api, &known, Some(public), old)?, public, &signers)?;
    wait_until_published(&api, &named, "root")?;

    let trust = arguments.keys.join("trust.json");
    let mut words = format!(
        "root key {} is in force in {} realms: {}, keep it offline\n\
         devices to come pin {}; those that are out there go on with theirs\n\
         servers with a folder of their own need a copy of that, and of the root key when they found a realm",
        public.id(),
        named.len(),
        path.display(),
        trust.display(),
    );
    if let Some(before) = &before {
        let _ = write!(words, "\nthe one before is kept as {}", before.display());
    }
    let value = json!({
        "root": public.id().to_string(),
        "file": path.display().to_string(),
        "trust": trust.display().to_string(),
        "before": before.map(|path| path.display().to_string()),
        "keys_versions": versions(&named),
    });
    output.result(words, &value);
    Ok(ExitCode::SUCCESS)
}

/// A realm that is to have a new root key.
struct Found {
    realm: RealmId,
    held: Keys,
    /// The root key that goes; nothing if the new one is there already.
    outgoing: Option<PublicKey>,
}

/// How all realms stand.
fn look(api: &Api, known: &[PublicKey], new: Option<PublicKey>, old: Option<&str>) -> Result<Vec<Found>, Failure> {
    let look = |realm: RealmId| {
        let held = held_keys(api, realm, known)?;
        let outgoing = outgoing(&held.roots, new, old).map_err(|why| why.about(realm.as_str()))?;
        Ok(Found { realm, held, outgoing })
    };
    realm_ids(api)?.into_iter().map(look).collect()
}

/// Hands in the next keys of those realms that do not name the new root key; returns the versions in which all do.
fn name_root(
    api: &Api,
    found: Vec<Found>,
    new: PublicKey,
    signers: &[&SigningKey],
) -> Result<Vec<(RealmId, u64)>, Failure> {
    let name = |Found { realm, held, outgoing }| {
        let Some(old) = outgoing else { return Ok((realm, held.version)) };
        let keys = rotation::with_roots(&held, replaced(&held.roots, old, new), SystemClock::new().now().wall);
        hand_in(api, realm, &keys, signers)?;
        Ok((realm, keys.version))
    };
    found.into_iter().map(name).collect()
}

/// Why it is not clear which root key goes.
#[derive(Debug, PartialEq, Eq)]
enum NotNamed {
    /// Nobody said.
    Several(Vec<PublicKey>),
    /// There is none with that name.
    Unknown(Vec<PublicKey>),
}

impl NotNamed {
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

/// Which of these roots goes: the one of that name, or the only one; none if `new` is among them.
fn outgoing(roots: &[PublicKey], new: Option<PublicKey>, old: Option<&str>) -> Result<Option<PublicKey>, NotNamed> {
    if new.is_some_and(|new| roots.contains(&new)) {
        return Ok(None);
    }
    match (old, roots) {
        (Some(name), _) => {
            let found = roots.iter().find(|root| root.id().to_string() == name);
            found.copied().map(Some).ok_or_else(|| NotNamed::Unknown(roots.to_vec()))
        }
        (None, [only]) => Ok(Some(*only)),
        (None, _) => Err(NotNamed::Several(roots.to_vec())),
    }
}

/// These roots with `new` in the place of `old`.
fn replaced(roots: &[PublicKey], old: PublicKey, new: PublicKey) -> Vec<PublicKey> {
    let mut after: Vec<_> = roots.iter().copied().filter(|root| *root != old).chain([new]).collect();
    after.sort_unstable();
    after
}

/// Says that an earlier try left a key: whoever could read the folder since may have it.
fn going_on(output: Output, role: &str, next: NextKey) -> NextKey {
    output.progress(format!(
        "goes on with {role} key {}, which an earlier try made; if others may have it and no realm names it, delete {} first",
        next.public().id(),
        next.path().display()
    ));
    next
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

/// A realm's keys as they are in force. Not by the server's word alone, since root keys will sign what is made of them:
/// their own roots have signed them, and one that is known here has.
fn held_keys(api: &Api, realm: RealmId, known: &[PublicKey]) -> Result<Keys, Failure> {
    let bytes = api.get_bytes(&format!("/v1/mirror/{realm}/keys"))?;
    rotation::vouched(&bytes, &realm, known).map_err(|error| {
        Failure::new("keys-not-vouched", format!("the keys of realm {realm}, as the server tells them"), &error)
            .help("nothing was signed for it; if other root keys founded it, name one of them with --root FILE")
    })
}

/// Signs the next version of a realm's keys and hands it to the server.
fn hand_in(api: &Api, realm: RealmId, keys: &Keys, roots: &[&SigningKey]) -> Result<(), Failure> {
    let sealed = rotation::sign(keys, &realm, roots)
        .map_err(|error| Failure::new("bad-answer", format!("the keys of realm {realm}"), &error))?;
    api.put_bytes(&format!("/v1/realms/{realm}/keys"), &sealed).map(drop)
}

fn wait_until_published(api: &Api, named: &[(RealmId, u64)], which: &str) -> Result<(), Failure> {
    let what = format!(
        "publish the new keys of every realm; run this again when it leads and reaches its broker, which goes on with the same \
         {which} key"
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
        let mut three = vec![key(1), key(2), key(3)];
        three.sort_unstable();
        let name = key(2).id().to_string();
        assert_eq!(outgoing(&[key(1)], Some(key(9)), None), Ok(Some(key(1))));
        assert_eq!(outgoing(&three, None, Some(&name)), Ok(Some(key(2))));
        assert_eq!(outgoing(&three, Some(key(3)), None), Ok(None), "it is there already");
        assert_eq!(outgoing(&three, Some(key(9)), None), Err(NotNamed::Several(three.clone())));
        assert_eq!(outgoing(&[key(1)], None, Some(&name)), Err(NotNamed::Unknown(vec![key(1)])));
        let after = replaced(&three, key(2), key(9));
        assert!(after.is_sorted() && after.len() == 3 && after.contains(&key(9)) && !after.contains(&key(2)));
    }
}
