//! The keys of a server, on disk.
//!
//! `root.key` says who may publish and can be moved offline once the realms are founded;
//! `publisher.key` seals what travels; `issuer.key` signs tokens; `admin.token` opens the API.
//! `trust.json` is what devices pin, `issuer.jwks.json` what validators load; both are public.
//!
//! # Shape
//!
//! A private key is two lines of text, so that it can be told apart, copied and typed:
//!
//! ```text
//! revocast-private-key 1 root          or publisher, or issuer
//! <32-byte Ed25519 seed (RFC 8032), base64url without padding, 43 characters>
//! ```

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::limits::ROOTS_MAX;
use revocast_core::{Digest, PublicKey, SigningKey, Trust, UnixTime};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::files;
use crate::stamp::Stamp;

const ROOT_FILE: &str = "root.key";
const PUBLISHER_FILE: &str = "publisher.key";
const NEXT_PUBLISHER_FILE: &str = "publisher.next.key";
const NEXT_ROOT_FILE: &str = "root.next.key";
const ISSUER_FILE: &str = "issuer.key";
const ADMIN_FILE: &str = "admin.token";
const TRUST_FILE: &str = "trust.json";
const JWKS_FILE: &str = "issuer.jwks.json";

/// First words of a private key file; the role follows.
const HEADER: &str = "revocast-private-key 1 ";

/// No key file is larger; a bigger one is something else and is not read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A bearer token shorter than this can be guessed.
const TOKEN_BYTES_MIN: usize = 32;

/// What a server needs to serve.
#[derive(Debug)]
pub struct Keys {
    folder: PathBuf,
    publisher: Mutex<Option<(Option<Stamp>, SigningKey)>>,
    issuer: IssuerKey,
    admin: AdminToken,
}

impl Keys {
    /// Makes new keys in `folder`. Never overwrites; `now` becomes the first floor under a device's clock.
    pub fn generate(folder: &Path, now: UnixTime) -> Result<Self, KeyError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io(folder))?;
        // All are looked for before one is written: a half-made set would be neither old nor new.
        for name in [ROOT_FILE, PUBLISHER_FILE, ISSUER_FILE, ADMIN_FILE, TRUST_FILE, JWKS_FILE] {
            let path = folder.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(KeyError::Exists { path });
            }
        }
        let mut seeds = [[0; 32]; 4];
        for seed in &mut seeds {
            getrandom::fill(seed).map_err(KeyError::Random)?;
        }
        let [root, publisher, issuer, admin] = seeds;
        let trust = Trust { threshold: 1, roots: vec![SigningKey::from_seed(root).public()], not_before: now };
        let jwks = IssuerKey(issuer).jwks();
        write_new(&folder.join(ROOT_FILE), 0o600, &key_text("root", root))?;
        write_new(&folder.join(PUBLISHER_FILE), 0o600, &key_text("publisher", publisher))?;
        write_new(&folder.join(ISSUER_FILE), 0o600, &key_text("issuer", issuer))?;
        write_new(&folder.join(ADMIN_FILE), 0o600, &format!("{}\n", URL_SAFE_NO_PAD.encode(admin)))?;
        write_new(&folder.join(TRUST_FILE), 0o644, &json_text(&TrustFile::of(&trust)))?;
        write_new(&folder.join(JWKS_FILE), 0o644, &format!("{jwks:#}\n"))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        Self::load(folder)
    }

    /// Reads the keys in `folder`. The root key may be elsewhere, and the publisher's key may come later.
    ///
    /// A private file that others can read is refused: it may have been read.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        let keys = Self {
            folder: folder.to_owned(),
            publisher: Mutex::new(None),
            issuer: IssuerKey(read_key(&folder.join(ISSUER_FILE), "issuer")?),
            admin: read_token(&folder.join(ADMIN_FILE))?,
        };
        // What is read when it is needed must do now, too.
        keys.trust()?;
        match keys.root() {
            Ok(_) | Err(KeyError::RootAbsent { .. }) => {}
            Err(error) => return Err(error),
        }
        match keys.publisher() {
            Ok(_) | Err(KeyError::PublisherAbsent { .. }) => Ok(keys),
            Err(error) => Err(error),
        }
    }

    /// The key that says who may publish; needed to found a realm and to replace keys. Read each time, since it comes
    /// and goes.
    pub fn root(&self) -> Result<SigningKey, KeyError> {
        let path = self.folder.join(ROOT_FILE);
        read_root(&path).map_err(|error| match error {
            KeyError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => KeyError::RootAbsent { path },
            other => other,
        })
    }

    /// The key that seals what travels. One that was not there yet, or has changed, is read again; if what stands there
    /// cannot be used, the one from before stays in force.
    pub fn publisher(&self) -> Result<SigningKey, KeyError> {
        let path = &self.folder.join(PUBLISHER_FILE);
        let seen = Stamp::of(path);
        let mut held = self.publisher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((stamp, key)) = held.as_ref()
            && *stamp == seen
        {
            return Ok(key.clone());
        }
        match (read_key(path, "publisher"), held.as_mut()) {
            (Ok(bytes), _) => {
                let key = SigningKey::from_seed(bytes);
                *held = Some((seen, key.clone()));
                Ok(key)
            }
            (Err(error), Some((stamp, key))) => {
                // Told once, not with every look.
                tracing::error!(%error, "the publisher's key cannot be read; the one from before stays in force");
                *stamp = seen;
                Ok(key.clone())
            }
            (Err(KeyError::Io { source, .. }), None) if source.kind() == io::ErrorKind::NotFound => {
                Err(KeyError::PublisherAbsent { path: path.clone() })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The key that signs tokens.
    #[must_use]
    pub const fn issuer(&self) -> &IssuerKey {
        &self.issuer
    }

    /// What opens the API.
    #[must_use]
    pub const fn admin(&self) -> &AdminToken {
        &self.admin
    }

    /// What devices pin. Read each time, since it changes with the root keys.
    pub fn trust(&self) -> Result<Trust, KeyError> {
        read_trust(&self.folder.join(TRUST_FILE))
    }
}

/// The folder of the keys while some of them are replaced: nobody else replaces any meanwhile.
#[derive(Debug)]
pub struct Rotation {
    folder: PathBuf,
    /// Held locked.
    _directory: File,
}

impl Rotation {
    /// Takes the folder; refused while another rotation, or a change of credentials, is under way.
    pub fn begin(folder: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: folder.to_owned(), source };
        let directory = File::open(folder).map_err(io)?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _directory: directory }),
            Err(TryLockError::WouldBlock) => Err(KeyError::Busy { folder: folder.to_owned() }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// The publisher key that an earlier try left.
    pub fn next_publisher(&self) -> Result<Option<NextKey>, KeyError> {
        self.find("publisher", NEXT_PUBLISHER_FILE)
    }

    /// The root key that an earlier try left.
    pub fn next_root(&self) -> Result<Option<NextKey>, KeyError> {
        self.find("root", NEXT_ROOT_FILE)
    }

    fn find(&self, role: &str, name: &str) -> Result<Option<NextKey>, KeyError> {
        let path = self.folder.join(name);
        match read_key(&path, role) {
            Ok(seed) => Ok(Some(NextKey { key: SigningKey::from_seed(seed), path })),
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a publisher key; durable when this returns, and not in force.
    pub fn make_publisher(&self) -> Result<NextKey, KeyError> {
        self.make("publisher", NEXT_PUBLISHER_FILE)
    }

    /// Makes a root key; durable when this returns, and not in force.
    pub fn make_root(&self) -> Result<NextKey, KeyError> {
        self.make("root", NEXT_ROOT_FILE)
    }

    fn make(&self, role: &str, name: &str) -> Result<NextKey, KeyError> {
        let path = self.folder.join(name);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        // Half of it, or lost, it would stop every later try, or be named by realms and sign nothing.
        files::replace(&path, 0o600, &key_text(role, seed))
            .map_err(|source| KeyError::Io { path: path.clone(), source })?;
        Ok(NextKey { key: SigningKey::from_seed(seed), path })
    }

    /// Puts a publisher key into force, in place of the one before; durable when this returns.
    pub fn enact_publisher(&self, next: &NextKey) -> Result<(), KeyError> {
        rename(&next.path, &self.folder.join(PUBLISHER_FILE))
    }

    /// Puts a root key into force, with what devices pin from now on; durable when this returns.
    ///
    /// The root key that stands in the folder and is pinned no more is kept under its own name: a ledger that is
    /// restored from an older copy still asks for it. One that is still pinned stays where it is, and the new one gets a
    /// name of its own.
    pub fn enact_root(&self, next: &NextKey, trust: &Trust) -> Result<EnactedRoot, KeyError> {
        let path = self.folder.join(TRUST_FILE);
        files::replace(&path, 0o644, &json_text(&TrustFile::of(trust)))
            .map_err(|source| KeyError::Io { path, source })?;
        let own_name = |key: PublicKey| self.folder.join(format!("root-{}.key", key.id()));
        let usual = self.folder.join(ROOT_FILE);
        let (path, before) = match read_root(&usual) {
            Ok(held) if trust.roots.contains(&held.public()) => (own_name(next.public()), None),
            Ok(held) => {
                let kept = own_name(held.public());
                rename(&usual, &kept)?;
                (usual, Some(kept))
            }
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => (usual, None),
            Err(error) => return Err(error),
        };
        rename(&next.path, &path)?;
        Ok(EnactedRoot { path, before })
    }
}

/// Durable when this returns.
fn rename(from: &Path, to: &Path) -> Result<(), KeyError> {
    fs::rename(from, to)
        .and_then(|()| files::sync_folder(to))
        .map_err(|source| KeyError::Io { path: to.to_owned(), source })
}

/// A key on its way into force: made, but not yet the one in use.
///
/// It stands beside the one in force until every realm names it, so that a rotation that was interrupted goes on with
/// the same key.
#[derive(Debug)]
pub struct NextKey {
    key: SigningKey,
    path: PathBuf,
}

impl NextKey {
    /// The key itself.
    #[must_use]
    pub const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Its public half, for the keys of the realms.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Where it waits.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where root keys stand after one of them was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnactedRoot {
    /// The new one.
    pub path: PathBuf,
    /// The one before, if it stood in the folder.
    pub before: Option<PathBuf>,
}

/// Reads a root key, wherever it is kept.
pub fn read_root(path: &Path) -> Result<SigningKey, KeyError> {
    read_key(path, "root").map(SigningKey::from_seed)
}

/// The Ed25519 key that signs tokens. Never printed.
#[derive(Clone)]
pub struct IssuerKey([u8; 32]);

impl IssuerKey {
    /// The 32-byte seed of RFC 8032, for the library that signs.
    #[must_use]
    pub const fn seed(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        SigningKey::from_seed(self.0).public()
    }

    /// Its name in JWT headers: the thumbprint of RFC 7638 (members as in RFC 8037, appendix A.3).
    #[must_use]
    pub fn kid(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.public().0);
        let thumbed = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        URL_SAFE_NO_PAD.encode(Digest::of(thumbed.as_bytes()).0)
    }

    /// The JWK set that validators load (RFC 7517, RFC 8037).
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.public().0);
        serde_json::json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.kid(), "use": "sig", "alg": "EdDSA" }
        ] })
    }
}

impl fmt::Debug for IssuerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuerKey({})", self.kid())
    }
}

/// The bearer token (RFC 6750) that opens the API. Never printed.
#[derive(Clone)]
pub struct AdminToken(String);

impl AdminToken {
    /// Accepts at least 32 characters of those that a bearer token may have.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
        let good = text.len() >= TOKEN_BYTES_MIN && text.bytes().all(allowed);
        good.then(|| Self(text.to_owned()))
    }

    /// Compares in a time that does not depend on where the first difference is.
    #[must_use]
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }

    /// The text, for clients on the same machine.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

/// Why keys could not be made or read. All but `Io` and `Random` are the operator's to mend.
#[derive(Debug, Error)]
pub enum KeyError {
    /// There is a key already. Choose another folder; a key is never overwritten.
    #[error("{} exists already; keys are never overwritten", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others may have read this private key.
    #[error("{path} can be read by others (mode {mode:03o}); if nobody has, run: chmod 600 {path}", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} is not what its name says: {what}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The root key is offline, as it should be most of the time. Bring it back to found a realm.
    #[error("the root key is not at {}; it is needed to found a realm", .path.display())]
    RootAbsent {
        /// Where it would be.
        path: PathBuf,
    },
    /// What seals everything that travels is not there. Put it back: the server goes on by itself.
    #[error("the publisher's key is not at {}; nothing can be published without it", .path.display())]
    PublisherAbsent {
        /// Where it would be.
        path: PathBuf,
    },
    /// Somebody else replaces keys, or changes credentials. It passes.
    #[error("keys or credentials in {} are being changed by somebody else", .folder.display())]
    Busy {
        /// The folder of the keys.
        folder: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
}

/// The shape of `trust.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    threshold: u8,
    roots: Vec<String>,
    not_before: u64,
}

impl TrustFile {
    fn of(trust: &Trust) -> Self {
        let roots = trust.roots.iter().map(|root| URL_SAFE_NO_PAD.encode(root.0)).collect();
        Self { threshold: trust.threshold, roots, not_before: trust.not_before.secs() }
    }
}

fn key_text(role: &str, seed: [u8; 32]) -> String {
    format!("{HEADER}{role}\n{}\n", URL_SAFE_NO_PAD.encode(seed))
}

fn json_text(value: &impl Serialize) -> String {
    // Numbers, strings and lists always serialize; the default is never taken.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), KeyError> {
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
        _ => KeyError::Io { path: path.to_owned(), source },
    })
}

fn read_key(path: &Path, role: &str) -> Result<[u8; 32], KeyError> {
    let text = read_private(path)?;
    let malformed = |what: String| KeyError::Malformed { path: path.to_owned(), what };
    let rest = text.strip_prefix(HEADER).ok_or_else(|| malformed(format!("it does not begin with {HEADER:?}")))?;
    let (found, seed) = rest.split_once('\n').ok_or_else(|| malformed("it has one line instead of two".into()))?;
    if found.trim_end() != role {
        return Err(malformed(format!("it is a {found:?} key, not a {role:?} key")));
    }
    let seed = URL_SAFE_NO_PAD.decode(seed.trim_end()).map_err(|_| malformed("the seed is not base64url".into()))?;
    let bytes = seed.len();
    seed.try_into().map_err(|_| malformed(format!("the seed has {bytes} bytes instead of 32")))
}

fn read_token(path: &Path) -> Result<AdminToken, KeyError> {
    AdminToken::new(read_private(path)?.trim_end()).ok_or_else(|| KeyError::Malformed {
        path: path.to_owned(),
        what: format!("a bearer token has at least {TOKEN_BYTES_MIN} characters of A-Z a-z 0-9 - . _ ~ + / ="),
    })
}

fn read_trust(path: &Path) -> Result<Trust, KeyError> {
    let malformed = |what: String| KeyError::Malformed { path: path.to_owned(), what };
    let file = File::open(path).map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    let text = read_text(path, file)?;
    let trust: TrustFile = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let mut roots = Vec::new();
    for root in &trust.roots {
        let bytes = URL_SAFE_NO_PAD.decode(root).ok().and_then(|bytes| bytes.try_into().ok());
        roots.push(PublicKey(bytes.ok_or_else(|| malformed(format!("root {root:?} is not 32 bytes in base64url")))?));
    }
    roots.sort_unstable();
    roots.dedup();
    if roots.len() != trust.roots.len() {
        return Err(malformed("a root key stands there twice".into()));
    }
    if roots.len() > ROOTS_MAX {
        return Err(malformed(format!("{} root keys, more than {ROOTS_MAX}", roots.len())));
    }
    if trust.threshold == 0 || usize::from(trust.threshold) > roots.len() {
        return Err(malformed(format!("a threshold of {} for {} root keys", trust.threshold, roots.len())));
    }
    Ok(Trust { roots, threshold: trust.threshold, not_before: UnixTime::from_secs(trust.not_before) })
}

/// Reads a file that must be the owner's alone. Looks at the open file, not at its name.
fn read_private(path: &Path) -> Result<String, KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::TooOpen { path: path.to_owned(), mode });
    }
    read_text(path, file)
}

fn read_text(path: &Path, file: File) -> Result<String, KeyError> {
    let mut text = String::new();
    let bytes = file
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(KeyError::Malformed { path: path.to_owned(), what: format!("it has over {FILE_BYTES_MAX} bytes") });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn made() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("deep/keys");
        Keys::generate(&keys, NOW).unwrap();
        (folder, keys)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_can_be_loaded_and_is_private() {
        let (_folder, path) = made();
        let keys = Keys::load(&path).unwrap();
        let trust = keys.trust().unwrap();
        assert_eq!(trust.roots, [keys.root().unwrap().public()]);
        assert_eq!((trust.threshold, trust.not_before), (1, NOW));
        assert_ne!(keys.publisher().unwrap().public(), keys.issuer().public());
        assert_eq!(mode(&path), 0o700);
        for private in [ROOT_FILE, PUBLISHER_FILE, ISSUER_FILE, ADMIN_FILE] {
            assert_eq!(mode(&path.join(private)), 0o600, "{private}");
        }
        let jwks: serde_json::Value = serde_json::from_slice(&fs::read(path.join(JWKS_FILE)).unwrap()).unwrap();
        assert_eq!(jwks, keys.issuer().jwks());
        let debug = format!("{keys:?}");
        assert!(!debug.contains(keys.admin().as_str()) && debug.contains("AdminToken(..)"), "{debug}");
    }

    #[test]
    fn two_sets_share_nothing() {
        let (_a, first) = made();
        let (_b, second) = made();
        let (first, second) = (Keys::load(&first).unwrap(), Keys::load(&second).unwrap());
        assert_ne!(first.publisher().unwrap().public(), second.publisher().unwrap().public());
        assert!(!first.admin().matches(second.admin().as_str().as_bytes()));
        assert!(first.admin().matches(first.admin().as_str().as_bytes()));
        assert!(!first.admin().matches(b""));
    }

    #[test]
    fn nothing_is_overwritten() {
        let (_folder, path) = made();
        let before = fs::read(path.join(ROOT_FILE)).unwrap();
        assert!(matches!(Keys::generate(&path, NOW), Err(KeyError::Exists { .. })));
        assert_eq!(fs::read(path.join(ROOT_FILE)).unwrap(), before);

        // One leftover is enough, and then nothing else is written either.
        let lone = tempfile::tempdir().unwrap();
        fs::write(lone.path().join(JWKS_FILE), "{}").unwrap();
        assert!(matches!(Keys::generate(lone.path(), NOW), Err(KeyError::Exists { .. })));
        assert!(!lone.path().join(ROOT_FILE).exists());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_folder, path) = made();
        let publisher = path.join(PUBLISHER_FILE);
        fs::set_permissions(&publisher, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::load(&path).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("(mode 640); if nobody has, run: chmod 600 {}", publisher.display())),
            "{error}"
        );
    }

    #[test]
    fn without_its_root_key_a_server_serves_but_founds_nothing() {
        let (_folder, path) = made();
        fs::remove_file(path.join(ROOT_FILE)).unwrap();
        let keys = Keys::load(&path).unwrap();
        assert!(matches!(keys.root(), Err(KeyError::RootAbsent { .. })));
        assert_eq!(keys.trust().unwrap().roots.len(), 1);
    }

    #[test]
    fn a_key_in_the_wrong_role_is_refused() {
        let (_folder, path) = made();
        fs::copy(path.join(ISSUER_FILE), path.join(PUBLISHER_FILE)).unwrap();
        let error = Keys::load(&path).unwrap_err().to_string();
        assert!(error.ends_with(r#"it is a "issuer" key, not a "publisher" key"#), "{error}");
    }

    #[test]
    fn a_publisher_key_that_replaces_another_is_taken_up_and_garbage_is_not() {
        let (_folder, path) = made();
        let keys = Keys::load(&path).unwrap();
        let before = keys.publisher().unwrap().public();
        let rotation = Rotation::begin(&path).unwrap();
        assert!(matches!(Rotation::begin(&path), Err(KeyError::Busy { .. })));
        assert!(rotation.next_publisher().unwrap().is_none());
        let next = rotation.make_publisher().unwrap();
        assert_eq!(rotation.next_publisher().unwrap().unwrap().public(), next.public());
        assert_eq!((keys.publisher().unwrap().public(), mode(next.path())), (before, 0o600));
        let public = next.public();
        rotation.enact_publisher(&next).unwrap();
        assert_eq!(keys.publisher().unwrap().public(), public);
        assert!(rotation.next_publisher().unwrap().is_none());
        fs::write(path.join(PUBLISHER_FILE), "garbage").unwrap();
        assert_eq!(keys.publisher().unwrap().public(), public);
        fs::remove_file(path.join(PUBLISHER_FILE)).unwrap();
        assert_eq!(keys.publisher().unwrap().public(), public);
    }

    #[test]
    fn a_root_key_that_replaces_another_is_pinned_and_the_one_before_is_kept() {
        let (_folder, path) = made();
        let keys = Keys::load(&path).unwrap();
        let rotation = Rotation::begin(&path).unwrap();
        let before = keys.root().unwrap().public();
        let public = rotation.make_root().unwrap().public();
        let trust = Trust { roots: vec![public], ..keys.trust().unwrap() };
        let own_name = |key: PublicKey| path.join(format!("root-{}.key", key.id()));
        let ended_well = || {
            assert_eq!((keys.root().unwrap().public(), keys.trust().unwrap()), (public, trust.clone()));
            assert_eq!(read_root(&own_name(before)).unwrap().public(), before);
            assert!(rotation.next_root().unwrap().is_none());
            assert_eq!((mode(&path.join(ROOT_FILE)), mode(&path.join(TRUST_FILE))), (0o600, 0o644));
        };
        let enact = || rotation.enact_root(&rotation.next_root().unwrap().unwrap(), &trust).unwrap();
        // Cut off after the first step, and after the second: what each left is gone on from.
        let text = fs::read_to_string(path.join(NEXT_ROOT_FILE)).unwrap();
        for step in 0..3 {
            if step >= 1 {
                files::replace(&path.join(TRUST_FILE), 0o644, &json_text(&TrustFile::of(&trust))).unwrap();
            }
            if step >= 2 {
                fs::rename(path.join(ROOT_FILE), own_name(before)).unwrap();
            }
            let kept = (step < 2).then(|| own_name(before));
            assert_eq!(enact(), EnactedRoot { path: path.join(ROOT_FILE), before: kept }, "{step}");
            ended_well();
            // As it was.
            fs::rename(own_name(before), path.join(ROOT_FILE)).unwrap();
            files::replace(&path.join(NEXT_ROOT_FILE), 0o600, &text).unwrap();
        }

        // One that is still pinned stays where it is.
        let trust = Trust { roots: vec![before, public], ..keys.trust().unwrap() };
        let enacted = rotation.enact_root(&rotation.next_root().unwrap().unwrap(), &trust).unwrap();
        assert_eq!(enacted, EnactedRoot { path: own_name(public), before: None });
        assert_eq!(keys.root().unwrap().public(), before);
    }

    #[test]
    fn damaged_files_are_named() {
        let seed = "A".repeat(43);
        let cases = [
            (PUBLISHER_FILE, String::new()),
            (PUBLISHER_FILE, format!("{HEADER}publisher")),
            (PUBLISHER_FILE, format!("{HEADER}publisher\n{}\n", &seed[1..])),
            (PUBLISHER_FILE, format!("{HEADER}publisher\n{seed}{seed}\n")),
            (PUBLISHER_FILE, "x".repeat(FILE_BYTES_MAX as usize + 1)),
            (ROOT_FILE, "garbage".into()),
            (ADMIN_FILE, "short".into()),
            (ADMIN_FILE, format!("{} {}", "x".repeat(20), "x".repeat(20))),
            (TRUST_FILE, "{}".into()),
            (TRUST_FILE, r#"{"threshold":0,"roots":[],"not_before":0}"#.into()),
            (TRUST_FILE, format!(r#"{{"threshold":2,"roots":["{seed}"],"not_before":0}}"#)),
            (TRUST_FILE, format!(r#"{{"threshold":2,"roots":["{seed}","{seed}"],"not_before":0}}"#)),
            (TRUST_FILE, format!(r#"{{"threshold":1,"roots":["{}"],"not_before":0}}"#, &seed[1..])),
            (TRUST_FILE, format!(r#"{{"threshold":1,"roots":["{seed}"],"not_before":0,"x":1}}"#)),
        ];
        for (name, text) in cases {
            let (_folder, path) = made();
            fs::write(path.join(name), &text).unwrap();
            let error = Keys::load(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Malformed { ref path, .. } if path.ends_with(name)),
                "{name} {text:?}: {error}"
            );
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037, appendices A.1 and A.3.
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let key = IssuerKey(seed.try_into().unwrap());
        assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
