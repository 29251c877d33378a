//! Whose signatures are believed: the keys of each realm's issuer, and transmitters of security events.
//!
//! They stand in files below the folder of the keys, `jwks/{realm}.json` and `ssf/{realm}.json`, written by the API or
//! by hand and read again when they change. Several servers each have their own, like the other keys.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use revocast_core::{RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::keyset::{KeySet, KeySetError};
use crate::files;
use crate::issuer::{Keyring, KeyringError, Keyrings};
use crate::ledger::Realm;
use crate::stamp::Stamp;

/// A larger file is something else, and is not read.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Realms whose keys are kept in memory; those of others are read again.
const KEPT_MAX: usize = 1024;

/// Who sends security events about a realm's subjects (`OpenID` Shared Signals).
#[derive(Clone, Debug)]
pub struct Transmitter {
    /// The `iss` of its events.
    pub issuer: String,
    /// The `aud` that names this receiver.
    pub audience: String,
    /// Its keys.
    pub keys: KeySet,
}

/// The file of a transmitter.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransmitterFile {
    issuer: String,
    audience: String,
    jwks: Value,
}

/// Whose signatures are believed.
pub struct Issuers {
    folder: PathBuf,
    rings: Keyrings,
    keys: Kept<KeySet>,
    transmitters: Kept<Transmitter>,
}

type Kept<T> = Mutex<HashMap<RealmId, (Stamp, Arc<T>)>>;

impl Issuers {
    /// Those in the folder of the keys; where a realm has none, those of our own issuer are its keys.
    #[must_use]
    pub fn new(folder: &Path, rings: Keyrings) -> Self {
        Self { folder: folder.to_owned(), rings, keys: Mutex::default(), transmitters: Mutex::default() }
    }

    /// The keys with which our own issuer signs the tokens of a realm.
    pub fn ring(&self, realm: RealmId) -> Result<Arc<Keyring>, IssuersError> {
        Ok(self.rings.ring(realm)?)
    }

    /// The ring with which tokens of a realm are issued here; `None` where somebody else issues them.
    pub fn issuing(&self, realm: RealmId) -> Result<Option<Arc<Keyring>>, IssuersError> {
        let here = self.foreign(realm)?.is_none() || self.rings.has_own(realm)?;
        Ok(if here { Some(self.rings.ring(realm)?) } else { None })
    }

    /// The keys that sign the tokens of a realm: those that were set, and those of our own issuer unless it has none for
    /// this realm.
    pub fn keys(&self, realm: &Realm, now: UnixTime) -> Result<KeySet, IssuersError> {
        let foreign = self.foreign(realm.id)?;
        let Some(ring) = self.issuing(realm.id)? else {
            return Ok(foreign.map_or_else(KeySet::empty, |keys| KeySet::clone(&keys)));
        };
        let base = foreign.map_or_else(KeySet::empty, |keys| KeySet::clone(&keys));
        let life = realm.max_token_lifetime + realm.leeway;
        // Keys that signed or will sign are keys.
        base.with_own(ring.published(now, life))
            .map_err(|error| IssuersError::Unusable { path: self.folder.clone(), what: error.to_string() })
    }

    fn foreign(&self, realm: RealmId) -> Result<Option<Arc<KeySet>>, IssuersError> {
        read(&self.path("jwks", realm), realm, &self.keys, |value| KeySet::parse(&value))
    }

    /// Who sends events about a realm, if anybody.
    pub fn transmitter(&self, realm: RealmId) -> Result<Option<Arc<Transmitter>>, IssuersError> {
        read(&self.path("ssf", realm), realm, &self.transmitters, |value| {
            let file = TransmitterFile::deserialize(value)
                .map_err(|error| KeySetError::Key { index: 0, what: error.to_string() })?;
            Ok(Transmitter { issuer: file.issuer, audience: file.audience, keys: KeySet::parse(&file.jwks)? })
        })
    }

    /// Sets the keys that sign the tokens of a realm; durable when this returns.
    pub fn set_keys(&self, realm: RealmId, keys: &KeySet) -> Result<(), IssuersError> {
        write(&self.path("jwks", realm), keys.document())
    }

    /// Sets who sends events about a realm; durable when this returns.
    pub fn set_transmitter(&self, realm: RealmId, transmitter: &Transmitter) -> Result<(), IssuersError> {
        let Transmitter { issuer, audience, keys } = transmitter.clone();
        let file = TransmitterFile { issuer, audience, jwks: keys.document().clone() };
        // Texts and values always serialize; the default is never taken.
        write(&self.path("ssf", realm), &serde_json::to_value(&file).unwrap_or_default())
    }

    /// The name of a realm has no characters that mean something in a path.
    fn path(&self, kind: &str, realm: RealmId) -> PathBuf {
        self.folder.join(kind).join(format!("{realm}.json"))
    }
}

/// Reads a file, or what was read of it before if it has not changed.
fn read<T>(
    path: &Path,
    realm: RealmId,
    kept: &Kept<T>,
    parse: impl FnOnce(Value) -> Result<T, KeySetError>,
) -> Result<Option<Arc<T>>, IssuersError> {
    let Some(stamp) = Stamp::of(path) else {
        return Ok(None);
    };
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((seen, value)) = kept.get(&realm)
        && *seen == stamp
    {
        return Ok(Some(Arc::clone(value)));
    }
    let unusable = |what: String| IssuersError::Unusable { path: path.to_owned(), what };
    let text = File::open(path)
        .and_then(|file| io::read_to_string(io::Read::take(file, FILE_BYTES_MAX)))
        .map_err(|source| IssuersError::Io { path: path.to_owned(), source })?;
    let value = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    let value = Arc::new(parse(value).map_err(|error| unusable(error.to_string()))?);
    if kept.len() >= KEPT_MAX {
        kept.clear();
    }
    kept.insert(realm, (stamp, Arc::clone(&value)));
    Ok(Some(value))
}

/// Replaces a file as a whole.
fn write(path: &Path, value: &Value) -> Result<(), IssuersError> {
    let write = || {
        let folder = path.parent().unwrap_or(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // One at a time; released with the handle.
        let directory = File::open(folder)?;
        directory.lock()?;
        files::replace(path, 0o600, &format!("{value:#}\n"))
    };
    write().map_err(|source| IssuersError::Io { path: path.to_owned(), source })
}

/// Why keys on disk cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum IssuersError {
    /// A file cannot be read or written.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keys of our own issuer cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A file holds something else.
    #[error("{} cannot be used: {what}", .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        what: String,
    },
}
