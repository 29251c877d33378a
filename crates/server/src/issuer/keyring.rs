//! The keys of a realm's issuer, on disk and in time.
//!
//! # Shape
//!
//! `issuer/{realm}/{kid}.json`, mode 0600, one key each:
//!
//! ```text
//! {"alg": "EdDSA", "created": 1800000000, "signs_from": 1800003600, "private": "<PKCS #8, or a secret, in base64url>"}
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::key::{Algorithm, TokenKey, TokenKeyError};
use super::template::{TEMPLATE_FILE, Template, TemplateError};
use crate::files;
use crate::keys::IssuerKey;
use crate::stamp::Stamp;

/// Keys of one realm: all of them fit a signed object of 16 KiB, RSA keys of 4,096 bits included.
pub const KEYS_MAX: usize = 16;

/// Below the folder of the keys.
const FOLDER: &str = "issuer";

/// A larger file is something else, and is not read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Files of a realm's folder that are looked at; what else lies there is passed over.
const FILES_MAX: usize = 4 * KEYS_MAX;

/// What a key is for at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Published, so that validators have it when it signs.
    Next,
    /// It signs.
    Active,
    /// Published until every token that it signed is expired.
    Retiring {
        /// When that is.
        until: UnixTime,
    },
    /// No token that it signed is honored any more; it is not published.
    Over,
}

impl Standing {
    /// Its name in lists.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retiring { .. } => "retiring",
            Self::Over => "over",
        }
    }
}

/// A key and its time.
#[derive(Clone, Debug)]
pub struct Held {
    /// The key.
    pub key: Arc<TokenKey>,
    /// When it was made, or came here.
    pub created: UnixTime,
    /// From when on it signs, until the next one does.
    pub signs_from: UnixTime,
}

/// The keys of one realm's issuer, in the order in which they sign.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<Held>,
    template: Template,
}

impl Keyring {
    fn new(mut keys: Vec<Held>, template: Template) -> Self {
        keys.sort_by(|a, b| {
            let order = |held: &Held| (held.signs_from, held.created);
            order(a).cmp(&order(b)).then_with(|| a.key.kid().cmp(b.key.kid()))
        });
        Self { keys, template }
    }

    /// What every token of the realm says.
    #[must_use]
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// The key that signs now.
    #[must_use]
    pub fn active(&self, now: UnixTime) -> Option<&TokenKey> {
        self.keys.iter().rev().find(|held| held.signs_from <= now).map(|held| held.key.as_ref())
    }

    /// Every key with what it is for, in the order in which they sign. `life` is how long a token is honored at most,
    /// leeway included.
    pub fn standings(&self, now: UnixTime, life: Duration) -> impl Iterator<Item = (&Held, Standing)> {
        self.keys.iter().enumerate().map(move |(at, held)| {
            let standing = match self.keys.get(at + 1).map(|next| next.signs_from) {
                _ if held.signs_from > now => Standing::Next,
                Some(retired) if retired <= now => {
                    let until = retired.plus(life.as_secs());
                    if until > now { Standing::Retiring { until } } else { Standing::Over }
                }
                Some(_) | None => Standing::Active,
            };
            (held, standing)
        })
    }

    /// The keys that sign, will sign, or have signed tokens that are honored.
    pub fn published(&self, now: UnixTime, life: Duration) -> impl Iterator<Item = &TokenKey> {
        let standings = self.standings(now, life).filter(|(_, standing)| *standing != Standing::Over);
        standings.map(|(held, _)| held.key.as_ref())
    }

    /// The public ones of those, as a JWK set (RFC 7517). May be empty: a secret has no public half.
    #[must_use]
    pub fn jwks(&self, now: UnixTime, life: Duration) -> Value {
        json!({ "keys": self.published(now, life).filter_map(TokenKey::jwk).collect::<Vec<_>>() })
    }
}

/// The keyrings of all realms.
pub struct Keyrings {
    folder: PathBuf,
    oldest: Arc<TokenKey>,
    kept: Mutex<HashMap<RealmId, Kept>>,
}

/// What was read, and what the files looked like then.
struct Kept {
    seen: Vec<(String, Option<Stamp>)>,
    ring: Arc<Keyring>,
}

impl Keyrings {
    /// Those below the folder of the keys; `issuer` is the oldest key of every realm.
    pub fn new(folder: &Path, issuer: &IssuerKey) -> Result<Self, KeyringError> {
        let oldest = TokenKey::of_issuer(issuer)
            .map_err(|source| KeyringError::Key { path: folder.join("issuer.key"), source })?;
        Ok(Self { folder: folder.join(FOLDER), oldest: Arc::new(oldest), kept: Mutex::default() })
    }

    /// The keys of a realm, as they are now.
    ///
    /// Where files were changed and cannot be used, those from before stay in force, and the log says why.
    pub fn ring(&self, realm: RealmId) -> Result<Arc<Keyring>, KeyringError> {
        let folder = self.folder.join(realm.as_str());
        let seen = listing(&folder)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(&realm).filter(|found| found.seen == seen) {
            return Ok(Arc::clone(&found.ring));
        }
        match self.read(&folder, &seen) {
            Ok(ring) => {
                let ring = Arc::new(ring);
                kept.insert(realm, Kept { seen, ring: Arc::clone(&ring) });
                Ok(ring)
            }
            Err(error) => match kept.get_mut(&realm) {
                Some(found) => {
                    // Told once, not with every token.
                    tracing::error!(%realm, error = %crate::publisher::chain(&error), "issuer keys cannot be used; those from before stay in force");
                    found.seen = seen;
                    Ok(Arc::clone(&found.ring))
                }
                None => Err(error),
            },
        }
    }

    /// Whether a realm has keys of its own, beside the one that all share.
    pub fn has_own(&self, realm: RealmId) -> Result<bool, KeyringError> {
        Ok(self.ring(realm)?.keys.iter().any(|held| held.key.kid() != self.oldest.kid()))
    }

    fn read(&self, folder: &Path, seen: &[(String, Option<Stamp>)]) -> Result<Keyring, KeyringError> {
        let start = UnixTime::default();
        let mut keys = vec![Held { key: Arc::clone(&self.oldest), created: start, signs_from: start }];
        let mut template = Template::default();
        for (name, _) in seen {
            let path = folder.join(name);
            if name == TEMPLATE_FILE {
                let text = read_private(&path)?;
                template =
                    Template::parse(&text).map_err(|source| KeyringError::Template { path: path.clone(), source })?;
            } else {
                keys.push(read_key(&path)?);
            }
        }
        if keys.len() > KEYS_MAX {
            return Err(KeyringError::Full { folder: folder.to_owned(), keys: keys.len() });
        }
        Ok(Keyring::new(keys, template))
    }

    /// Adds a key to a realm's; durable when this returns. One that is there already is never replaced. `keys` is the
    /// folder of the keys.
    pub fn add(keys: &Path, realm: RealmId, held: &Held) -> Result<PathBuf, KeyringError> {
        let folder = keys.join(FOLDER).join(realm.as_str());
        let path = folder.join(format!("{}.json", held.key.kid()));
        let io = |source| KeyringError::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io)?;
        let directory = File::open(&folder).map_err(io)?;
        // Released with the handle, however this ends.
        directory.lock().map_err(io)?;
        if path.symlink_metadata().is_ok() {
            return Err(KeyringError::Known { kid: held.key.kid().to_owned() });
        }
        let count = listing(&folder)?.len() + 1;
        if count >= KEYS_MAX {
            return Err(KeyringError::Full { folder, keys: count });
        }
        let shape = KeyFile {
            alg: held.key.algorithm().name().to_owned(),
            created: held.created.secs(),
            signs_from: held.signs_from.secs(),
            private: URL_SAFE_NO_PAD.encode(held.key.private()),
        };
        // Texts and numbers always serialize; the default is never taken.
        let text = serde_json::to_string_pretty(&shape).unwrap_or_default();
        files::replace(&path, 0o600, &format!("{text}\n")).map_err(io)?;
        Ok(path)
    }

    /// Removes a key of a realm: it signs no more, and validators take nothing that it has signed as soon as they have
    /// heard of it. `keys` is the folder of the keys.
    pub fn remove(keys: &Path, realm: RealmId, kid: &str) -> Result<(), KeyringError> {
        let folder = keys.join(FOLDER).join(realm.as_str());
        let name = format!("{kid}.json");
        if !listing(&folder)?.iter().any(|(found, _)| *found == name) {
            return Err(KeyringError::Unknown { kid: kid.to_owned() });
        }
        let path = folder.join(name);
        let io = |source| KeyringError::Io { path: path.clone(), source };
        fs::remove_file(&path).map_err(io)?;
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io)
    }
}

/// The files of a realm that count, with what changes when they do; none if there is no folder.
fn listing(folder: &Path) -> Result<Vec<(String, Option<Stamp>)>, KeyringError> {
    let io = |source| KeyringError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut found = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let entry = entry.map_err(io)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if Path::new(&name).extension().is_some_and(|extension| extension == "json") {
            let stamp = Stamp::of(&entry.path());
            found.push((name, stamp));
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    alg: String,
    created: u64,
    signs_from: u64,
    private: String,
}

fn read_key(path: &Path) -> Result<Held, KeyringError> {
    let malformed = |what: String| KeyringError::Malformed { path: path.to_owned(), what };
    let file: KeyFile = serde_json::from_str(&read_private(path)?).map_err(|error| malformed(error.to_string()))?;
    let algorithm: Algorithm = file.alg.parse().map_err(malformed)?;
    let private = URL_SAFE_NO_PAD.decode(&file.private).map_err(|_| malformed("private is not base64url".into()))?;
    let key =
        TokenKey::new(algorithm, private).map_err(|source| KeyringError::Key { path: path.to_owned(), source })?;
    if path.file_stem().is_none_or(|stem| stem != key.kid()) {
        return Err(malformed(format!("it holds key {}, whose name it has not", key.kid())));
    }
    Ok(Held {
        key: Arc::new(key),
        created: UnixTime::from_secs(file.created),
        signs_from: UnixTime::from_secs(file.signs_from),
    })
}

/// Reads a file that must be the owner's alone. Looks at the open file, not at its name.
fn read_private(path: &Path) -> Result<String, KeyringError> {
    let io = |source| KeyringError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyringError::TooOpen { path: path.to_owned(), mode });
    }
    if about.len() > FILE_BYTES_MAX {
        let what = format!("it has {} bytes, more than {FILE_BYTES_MAX}", about.len());
        return Err(KeyringError::Malformed { path: path.to_owned(), what });
    }
    io::read_to_string(io::Read::take(file, FILE_BYTES_MAX)).map_err(io)
}

/// Why keys of an issuer cannot be used or changed; the operator's to mend.
#[derive(Debug, Error)]
pub enum KeyringError {
    /// A file cannot be read or written.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may have read this private key.
    #[error("{path} can be read by others (mode {mode:03o}); if nobody has, run: chmod 600 {path}", path = .path.display())]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds something else.
    #[error("{} cannot be used: {what}", .path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file holds a key that cannot sign.
    #[error("{} holds no key that can be used", .path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: TokenKeyError,
    },
    /// The template of the tokens cannot be used.
    #[error("{} cannot be used", .path.display())]
    Template {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TemplateError,
    },
    /// More keys than validators look at. Remove those that are over.
    #[error("{} holds {keys} keys, more than {KEYS_MAX}; remove those that are over", .folder.display())]
    Full {
        /// Where.
        folder: PathBuf,
        /// How many it would be.
        keys: usize,
    },
    /// The realm has this key already.
    #[error("key {kid} is there already")]
    Known {
        /// Which.
        kid: String,
    },
    /// The realm has no such key of its own.
    #[error("the realm has no key {kid} of its own")]
    Unknown {
        /// Which.
        kid: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(1_000);

    fn at(secs: u64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    fn realm() -> RealmId {
        RealmId::new("fleet").unwrap()
    }

    struct Site {
        folder: tempfile::TempDir,
        rings: Keyrings,
        shared: String,
    }

    fn site() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let keys = crate::keys::Keys::generate(&folder.path().join("keys"), at(1)).unwrap();
        let rings = Keyrings::new(&folder.path().join("keys"), keys.issuer()).unwrap();
        Site { folder, rings, shared: keys.issuer().kid() }
    }

    impl Site {
        fn keys(&self) -> PathBuf {
            self.folder.path().join("keys")
        }

        fn add(&self, algorithm: Algorithm, created: u64, signs_from: u64) -> String {
            let key = Arc::new(TokenKey::generate(algorithm).unwrap());
            let held = Held { key: Arc::clone(&key), created: at(created), signs_from: at(signs_from) };
            Keyrings::add(&self.keys(), realm(), &held).unwrap();
            key.kid().to_owned()
        }

        fn standings(&self, now: u64) -> Vec<(String, &'static str)> {
            let ring = self.rings.ring(realm()).unwrap();
            ring.standings(at(now), LIFE).map(|(held, standing)| (held.key.kid().to_owned(), standing.name())).collect()
        }
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_until_its_last_token_is_expired() {
        let site = site();
        assert_eq!(site.standings(100), [(site.shared.clone(), "active")]);
        let second = site.add(Algorithm::Es256, 100, 200);
        let ring = |now| (site.rings.ring(realm()).unwrap(), at(now));
        for (now, first, next) in [(100, "active", "next"), (199, "active", "next"), (200, "retiring", "active")] {
            assert_eq!(site.standings(now), [(site.shared.clone(), first), (second.clone(), next)], "{now}");
            let (ring, now) = ring(now);
            let signing = if first == "active" { &site.shared } else { &second };
            assert_eq!(ring.active(now).unwrap().kid(), signing);
            assert_eq!(ring.published(now, LIFE).count(), 2);
        }
        assert_eq!(site.standings(1_199)[0].1, "retiring");
        assert_eq!(site.standings(1_200)[0].1, "over");
        let (ring, now) = ring(1_200);
        let jwks = ring.jwks(now, LIFE);
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 1);
        assert_eq!(jwks["keys"][0]["kid"], second);
    }

    #[test]
    fn a_secret_signs_and_is_never_published() {
        let site = site();
        let secret = site.add(Algorithm::Hs256, 100, 100);
        let ring = site.rings.ring(realm()).unwrap();
        assert_eq!(ring.active(at(100)).unwrap().kid(), secret);
        assert!(!ring.jwks(at(100), LIFE).to_string().contains(&secret));
        assert_eq!(ring.jwks(at(9_999), LIFE), json!({ "keys": [] }));
    }

    #[test]
    fn keys_of_one_realm_are_not_those_of_another() {
        let site = site();
        site.add(Algorithm::EdDsa, 100, 100);
        let other = RealmId::new("other").unwrap();
        assert_eq!(site.rings.ring(other).unwrap().active(at(100)).unwrap().kid(), site.shared);
        assert!(site.rings.has_own(realm()).unwrap() && !site.rings.has_own(other).unwrap());
    }

    #[test]
    fn what_cannot_be_used_is_named_and_leaves_in_force_what_was() {
        let site = site();
        let kid = site.add(Algorithm::EdDsa, 100, 100);
        let path = site.keys().join("issuer/fleet").join(format!("{kid}.json"));
        let good = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for (text, what) in [
            ("{}".to_owned(), "missing field `alg`"),
            (good.replace("EdDSA", "none"), "\"none\" is no algorithm"),
            (good.replace("EdDSA", "ES256"), "holds no key that can be used"),
            (good.replace("private\": \"", "private\": \"AAAA"), "holds no key that can be used"),
        ] {
            fs::write(&path, &text).unwrap();
            let fresh = Keyrings {
                folder: site.keys().join(FOLDER),
                oldest: Arc::clone(&site.rings.oldest),
                kept: Mutex::default(),
            };
            let error = fresh.ring(realm()).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(site.standings(100).len(), 2);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&path, good.replace("EdDSA", "none")).unwrap();
        assert_eq!(site.standings(100).len(), 2, "what was read before stays in force");
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Keyrings::remove(&site.keys(), realm(), "x"), Err(KeyringError::Unknown { .. })));
        Keyrings::remove(&site.keys(), realm(), &kid).unwrap();
        assert_eq!(site.standings(100).len(), 1);
    }
}
