//! Who this device is: the keys with which it signs and reads what is for it alone.
//!
//! Made once, on the device; the secret halves never leave it. The operator enrolls the public ones
//! ([`Identity::enrollment`]), and the server then knows the device by them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{DeviceId, DeviceIdError, DeviceKeys, EnvelopeKey, RealmId, RealmIdError, SigningKey};
use thiserror::Error;

use crate::config::RandomError;
use crate::possession::{Prover, Thumbprint};

/// Bytes of an identity file: three lines, of which the first holds two names.
const FILE_BYTES_MAX: u64 = 1024;

/// First word of an identity file.
const FIRST_WORDS: &str = "revocast device ";

/// The keys of a device in one realm. Never printed.
///
/// # Shape
///
/// ```text
/// revocast device {device id} of {realm id}
/// signing {32-byte Ed25519 seed (RFC 8032), base64url without padding, 43 characters}
/// sealing {32-byte seed of an X25519 key pair (RFC 9180 section 7.1.3), likewise}
/// ```
#[derive(Clone)]
pub struct Identity {
    realm: RealmId,
    device: DeviceId,
    signing_seed: [u8; 32],
    sealing_seed: [u8; 32],
    signing: SigningKey,
    sealing: EnvelopeKey,
}

impl Identity {
    /// Makes new keys, with random bytes of the operating system.
    pub fn generate(realm: RealmId, device: DeviceId) -> Result<Self, RandomError> {
        let mut seeds = [[0; 32]; 2];
        for seed in &mut seeds {
            getrandom::fill(seed).map_err(RandomError)?;
        }
        let [signing, sealing] = seeds;
        Ok(Self::from_seeds(realm, device, signing, sealing))
    }

    /// Takes keys that somebody else keeps: 32 random bytes for each.
    #[must_use]
    pub fn from_seeds(realm: RealmId, device: DeviceId, signing: [u8; 32], sealing: [u8; 32]) -> Self {
        Self {
            realm,
            device,
            signing_seed: signing,
            sealing_seed: sealing,
            signing: SigningKey::from_seed(signing),
            sealing: EnvelopeKey::from_seed(sealing),
        }
    }

    /// Writes the keys to a new file that only its owner can read. Never overwrites; when this returns, it has survived.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::Io { path: path.to_owned(), source };
        if path.symlink_metadata().is_ok() {
            return Err(IdentityError::Exists { path: path.to_owned() });
        }
        // Whole or not at all: a half-written identity would look like a damaged one.
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        let written = self.write(&unfinished).and_then(|()| fs::rename(&unfinished, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(failed(error));
        }
        #[cfg(unix)]
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        let text = format!(
            "{FIRST_WORDS}{} of {}\nsigning {}\nsealing {}\n",
            self.device,
            self.realm,
            URL_SAFE_NO_PAD.encode(self.signing_seed),
            URL_SAFE_NO_PAD.encode(self.sealing_seed)
        );
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// Reads the keys. A file that others can read is refused: it may have been read.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(IdentityError::TooOpen { path: path.to_owned(), mode });
            }
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).map_err(|what| IdentityError::Malformed { path: path.to_owned(), what })
    }

    fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let mut lines = text.lines();
        let names = lines.next().and_then(|line| line.strip_prefix(FIRST_WORDS)).ok_or(Malformed::FirstLine)?;
        let (device, realm) = names.split_once(" of ").ok_or(Malformed::FirstLine)?;
        let mut seed = |name: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let bytes = line.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok());
            bytes.ok_or(Malformed::Seed { name })
        };
        let (signing, sealing) = (seed("signing")?, seed("sealing")?);
        if lines.next().is_some() {
            return Err(Malformed::TooLong);
        }
        Ok(Self::from_seeds(RealmId::new(realm)?, DeviceId::new(device)?, signing, sealing))
    }

    /// Where it is enrolled.
    #[must_use]
    pub const fn realm(&self) -> RealmId {
        self.realm
    }

    /// Its name.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// The public halves, and whose they are.
    #[must_use]
    pub fn public(&self) -> DeviceKeys {
        DeviceKeys {
            realm: self.realm,
            device: self.device,
            signing: self.signing.public(),
            sealing: self.sealing.public(),
        }
    }

    /// What the operator hands to the server so that it knows this device.
    #[must_use]
    pub fn enrollment(&self) -> Enrollment {
        let keys = self.public();
        Enrollment { keys, proof: keys.prove(&self.signing) }
    }

    /// What tokens for this device are bound to (`cnf.jkt`).
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint::of_ed25519(&self.signing.public().0)
    }

    /// Makes the proofs with which a token of this device is shown to others.
    #[must_use]
    pub fn prover(&self) -> Prover {
        Prover::from_seed(&self.signing_seed)
    }

    /// Signs requests, reports and questions.
    pub(crate) const fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// Opens what was enclosed.
    pub(crate) const fn sealing(&self) -> &EnvelopeKey {
        &self.sealing
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.device, self.realm)
    }
}

/// The public keys of a device and the proof that it holds the secret ones: nothing in it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// The keys, and whose they are.
    pub keys: DeviceKeys,
    /// Ed25519 over all of them ([`DeviceKeys::prove`]).
    pub proof: [u8; 64],
}

impl Enrollment {
    /// One JSON object: the members of a request to enroll that come from the device. Binary ones are base64url without
    /// padding.
    ///
    /// # Shape
    ///
    /// `{"realm":"fleet","device":"pump-1","signing_key":"<32 bytes>","sealing_key":"<32 bytes>","proof":"<64 bytes>"}`
    #[must_use]
    pub fn to_json(&self) -> String {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // Names of devices and base64url need no escapes.
        format!(
            r#"{{"realm":"{}","device":"{}","signing_key":"{}","sealing_key":"{}","proof":"{}"}}"#,
            self.keys.realm,
            self.keys.device,
            text(&self.keys.signing.0),
            text(self.keys.sealing.as_bytes()),
            text(&self.proof)
        )
    }
}

/// Why keys could not be kept or read.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file system said no.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// There is an identity already. It is never overwritten: with it the device would lose its name.
    #[error("{} exists already; keys are never overwritten", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else may have read it, and can then be this device.
    #[error("{path} can be read by others (mode {mode:03o}); if nobody has, run: chmod 600 {path}", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not what was written. Make another, and enroll the device again.
    #[error("{} is no device identity", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong.
        #[source]
        what: Malformed,
    },
}

/// What is wrong with an identity file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// It does not begin as one.
    #[error("its first line is not {FIRST_WORDS:?}, a device id, \" of \" and a realm id")]
    FirstLine,
    /// The name of the realm is none.
    #[error("its realm is none")]
    Realm(#[from] RealmIdError),
    /// The name of the device is none.
    #[error("its device is none")]
    Device(#[from] DeviceIdError),
    /// A seed is missing or damaged.
    #[error("its line {name:?} is not 32 bytes in base64url")]
    Seed {
        /// Which.
        name: &'static str,
    },
    /// Something follows.
    #[error("it is longer than three lines")]
    TooLong,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on should stop

    use tempfile::TempDir;

    use super::*;

    fn made() -> Identity {
        Identity::generate(RealmId::new("fleet").unwrap(), DeviceId::new("pump-1").unwrap()).unwrap()
    }

    #[test]
    fn what_was_saved_is_the_same_device_again() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pump-1.identity");
        let identity = made();
        identity.save(&path).unwrap();
        let loaded = Identity::load(&path).unwrap();
        assert_eq!(loaded.public(), identity.public());
        assert_eq!(loaded.thumbprint(), identity.prover().thumbprint());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(made().public().signing != identity.public().signing);
        assert_eq!(format!("{identity:?}"), "Identity(pump-1 of fleet)");
    }

    #[test]
    fn an_identity_is_never_overwritten() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("identity");
        made().save(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(made().save(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[cfg(unix)]
    #[test]
    fn keys_that_others_can_read_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("identity");
        made().save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Identity::load(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn damaged_files_are_refused_with_what_is_wrong() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("identity");
        made().save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (text, what) in [
            (String::new(), Malformed::FirstLine),
            (text.replace("revocast device", "revocast server"), Malformed::FirstLine),
            (text.replace("of fleet", "of Fleet"), Malformed::Realm(RealmIdError::Character { byte: b'F' })),
            (text.replace("pump-1", "pump/1"), Malformed::Device(DeviceIdError::Character { byte: b'/' })),
            (text.replace("signing ", "signing"), Malformed::Seed { name: "signing" }),
            (format!("{}\n{}\n{}x", lines[0], lines[1], lines[2]), Malformed::Seed { name: "sealing" }),
            (format!("{text}more"), Malformed::TooLong),
            (text.clone() + &"\n".repeat(2_000), Malformed::TooLong),
        ] {
            assert_eq!(Identity::parse(&text).err(), Some(what), "{text}");
        }
        for cut in 0..text.trim_end().len() {
            assert!(Identity::parse(&text[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn an_enrollment_tells_the_public_keys_and_proves_them() {
        let identity = made();
        let enrollment = identity.enrollment();
        assert!(enrollment.keys.are_proven_by(&enrollment.proof));
        let json: serde_json::Value = serde_json::from_str(&enrollment.to_json()).unwrap();
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(json[name].as_str().unwrap()).unwrap();
        assert_eq!(json["device"], "pump-1");
        assert_eq!(bytes("signing_key"), identity.public().signing.0);
        assert_eq!(bytes("sealing_key"), identity.public().sealing.as_bytes());
        assert_eq!(bytes("proof"), enrollment.proof);
        let secrets = [identity.signing_seed, identity.sealing_seed].map(|seed| URL_SAFE_NO_PAD.encode(seed));
        assert!(secrets.iter().all(|secret| !enrollment.to_json().contains(secret)));
    }
}
