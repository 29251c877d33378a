//! `credentials.json`: read, checked, replaced whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Digest, RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files;

use super::{ADMIN, Credential, REALMS_MAX, Realms, Role, SECRETS_MAX, SecretHash, is_name};

/// Name of the file in the folder of the keys.
pub const CREDENTIALS_FILE: &str = "credentials.json";

/// Credentials of one server. Each is compared with every secret that is offered.
const CREDENTIALS_MAX: usize = 256;

/// A larger file is something else, and is not read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What stands in `credentials.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialsFile {
    credentials: Vec<Credential>,
}

impl CredentialsFile {
    /// Reads it from the folder of the keys; no file is an empty one.
    ///
    /// A file that others can read is refused: whoever knows the hashes knows whom to look for.
    pub fn load(folder: &Path) -> Result<Self, CredentialsFileError> {
        let path = folder.join(CREDENTIALS_FILE);
        let io = |source| CredentialsFileError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io(error)),
        };
        let about = file.metadata().map_err(io)?;
        let mode = about.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CredentialsFileError::TooOpen { path, mode });
        }
        let malformed = |what: String| CredentialsFileError::Malformed { path: path.clone(), what };
        if about.len() > FILE_BYTES_MAX {
            return Err(malformed(format!("it has {} bytes, more than {FILE_BYTES_MAX}", about.len())));
        }
        let text = io::read_to_string(io::Read::take(file, FILE_BYTES_MAX)).map_err(io)?;
        let shape: FileShape = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let mut read = Self::default();
        for shape in shape.credentials {
            let name = shape.name.clone();
            let credential = shape.check().map_err(|what| malformed(format!("credential {name:?}: {what}")))?;
            read.add(credential).map_err(|error| malformed(error.to_string()))?;
        }
        Ok(read)
    }

    /// Changes it, while nobody else does: read, changed by `change`, and replaced as a whole.
    pub fn change<T>(
        folder: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, CredentialsFileError>,
    ) -> Result<T, CredentialsFileError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| CredentialsFileError::Io { path, source }
        };
        let directory = File::open(folder).map_err(io(folder))?;
        // Released with the handle, however this ends.
        directory.lock().map_err(io(folder))?;
        let mut file = Self::load(folder)?;
        let outcome = change(&mut file)?;
        let path = folder.join(CREDENTIALS_FILE);
        files::replace(&path, 0o600, &file.text()).map_err(io(&path))?;
        Ok(outcome)
    }

    /// Every credential, in the order of the file.
    #[must_use]
    pub fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    /// Adds one.
    pub fn add(&mut self, credential: Credential) -> Result<(), CredentialsFileError> {
        if !is_name(&credential.name) || credential.name == ADMIN {
            return Err(CredentialsFileError::Name { name: credential.name });
        }
        if self.credentials.iter().any(|other| other.name == credential.name) {
            return Err(CredentialsFileError::Taken { name: credential.name });
        }
        if self.credentials.len() >= CREDENTIALS_MAX {
            return Err(CredentialsFileError::Full);
        }
        self.credentials.push(credential);
        Ok(())
    }

    /// The one with this name.
    pub fn find(&mut self, name: &str) -> Result<&mut Credential, CredentialsFileError> {
        let found = self.credentials.iter_mut().find(|credential| credential.name == name);
        found.ok_or_else(|| CredentialsFileError::Unknown { name: name.to_owned() })
    }

    /// Removes the one with this name.
    pub fn remove(&mut self, name: &str) -> Result<(), CredentialsFileError> {
        self.find(name)?;
        self.credentials.retain(|credential| credential.name != name);
        Ok(())
    }

    fn text(&self) -> String {
        let shape = FileShape { credentials: self.credentials.iter().map(Shape::of).collect() };
        // Texts, numbers and lists always serialize; the default is never taken.
        let mut text = serde_json::to_string_pretty(&shape).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileShape {
    credentials: Vec<Shape>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    name: String,
    roles: Vec<Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    realms: Option<Vec<String>>,
    secrets: Vec<SecretShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_second: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bulk_per_day: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    approve: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretShape {
    sha256: String,
    created: u64,
}

impl Shape {
    fn of(credential: &Credential) -> Self {
        let secret = |secret: &SecretHash| SecretShape {
            sha256: URL_SAFE_NO_PAD.encode(secret.digest.0),
            created: secret.created.secs(),
        };
        Self {
            name: credential.name.clone(),
            roles: credential.roles.clone(),
            realms: match &credential.realms {
                Realms::All => None,
                Realms::Only(realms) => Some(realms.iter().map(RealmId::to_string).collect()),
            },
            secrets: credential.secrets.iter().map(secret).collect(),
            expires: credential.expires.map(UnixTime::secs),
            requests_per_second: credential.requests_per_second,
            bulk_per_day: credential.bulk_per_day,
            approve: credential.approve,
        }
    }

    fn check(self) -> Result<Credential, String> {
        let realms = match self.realms {
            None => Realms::All,
            Some(names) if names.len() > REALMS_MAX => {
                return Err(format!("{} realms, more than {REALMS_MAX}", names.len()));
            }
            Some(names) => {
                let realm = |name: &String| RealmId::new(name).map_err(|error| format!("realm {name:?}: {error}"));
                Realms::Only(names.iter().map(realm).collect::<Result<_, _>>()?)
            }
        };
        if self.roles.is_empty() {
            return Err("it has no role".into());
        }
        if self.secrets.len() > SECRETS_MAX {
            return Err(format!("{} secrets, more than {SECRETS_MAX}", self.secrets.len()));
        }
        if self.requests_per_second == Some(0) || self.bulk_per_day == Some(0) {
            return Err("a limit of 0; take away the role instead, or remove the credential".into());
        }
        let secret = |shape: SecretShape| {
            let bytes = URL_SAFE_NO_PAD.decode(&shape.sha256).ok().and_then(|bytes| bytes.try_into().ok());
            let digest = Digest(bytes.ok_or_else(|| format!("{:?} is no SHA-256 in base64url", shape.sha256))?);
            Ok::<_, String>(SecretHash { digest, created: UnixTime::from_secs(shape.created) })
        };
        Ok(Credential {
            name: self.name,
            roles: self.roles,
            realms,
            secrets: self.secrets.into_iter().map(secret).collect::<Result<_, _>>()?,
            expires: self.expires.map(UnixTime::from_secs),
            requests_per_second: self.requests_per_second,
            bulk_per_day: self.bulk_per_day,
            approve: self.approve,
        })
    }
}

/// Why credentials could not be read or changed; the operator's to mend.
#[derive(Debug, Error)]
pub enum CredentialsFileError {
    /// The file or its folder cannot be used.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read it.
    #[error("{path} can be read by others (mode {mode:03o}); run: chmod 600 {path}", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("{} cannot be used: {what}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The name cannot be used, or is the admin's.
    #[error("{name:?} cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, and not {ADMIN:?}")]
    Name {
        /// As given.
        name: String,
    },
    /// There is one with this name; rotate its secret, or remove it first.
    #[error("there is a credential {name:?} already")]
    Taken {
        /// The name.
        name: String,
    },
    /// There is none with this name.
    #[error("there is no credential {name:?}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// More than any server should have; remove some.
    #[error("there are {CREDENTIALS_MAX} credentials, which is the limit")]
    Full,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn credential(name: &str) -> Credential {
        let realms = Realms::Only(vec![RealmId::new("fleet").unwrap()]);
        Credential::new(name, vec![Role::Revoker, Role::Reader], realms, SecretHash::draw(NOW).unwrap().1)
    }

    #[test]
    fn what_is_written_is_read_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CredentialsFile::load(folder.path()).unwrap(), CredentialsFile::default());
        let all = Credential {
            realms: Realms::All,
            expires: Some(NOW),
            requests_per_second: Some(5),
            bulk_per_day: Some(7),
            approve: true,
            ..credential("b")
        };
        for credential in [credential("a"), all.clone()] {
            CredentialsFile::change(folder.path(), |file| file.add(credential)).unwrap();
        }
        let file = CredentialsFile::load(folder.path()).unwrap();
        assert_eq!((file.credentials().len(), &file.credentials()[1]), (2, &all));
        let path = folder.path().join(CREDENTIALS_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let taken = CredentialsFile::change(folder.path(), |file| file.add(credential("a")));
        assert!(matches!(taken, Err(CredentialsFileError::Taken { .. })));
        CredentialsFile::change(folder.path(), |file| file.remove("a")).unwrap();
        assert_eq!(CredentialsFile::load(folder.path()).unwrap().credentials(), [all]);
        let unknown = CredentialsFile::change(folder.path(), |file| file.remove("a"));
        assert!(matches!(unknown, Err(CredentialsFileError::Unknown { .. })));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let open = CredentialsFile::load(folder.path()).unwrap_err().to_string();
        assert!(open.contains("mode 644") && open.contains("chmod 600"), "{open}");
    }

    #[test]
    fn a_secret_is_replaced_while_it_is_in_use() {
        let mut credential = credential("a");
        let drawn: Vec<_> = (0..3).map(|_| SecretHash::draw(NOW).unwrap()).collect();
        credential.rotate(drawn[0].1);
        credential.rotate(drawn[1].1);
        let proven = |credential: &Credential, secret: &str| credential.is_proven_by(&Digest::of(secret.as_bytes()));
        assert!(proven(&credential, &drawn[0].0) && proven(&credential, &drawn[1].0));
        credential.rotate(drawn[2].1);
        assert!(!proven(&credential, &drawn[0].0), "the oldest of three is over");
        assert!(proven(&credential, &drawn[1].0) && proven(&credential, &drawn[2].0));
        assert_eq!(drawn[0].0.len(), 43);
        assert_ne!(drawn[0].0, drawn[1].0);
    }

    #[test]
    fn files_that_cannot_be_are_refused_by_name() {
        let good = r#"{"name":"a","roles":["reader"],"secrets":[]}"#;
        let hash = "A".repeat(43);
        let secret = format!(r#"{{"sha256":"{hash}","created":1}}"#);
        let cases = [
            ("", "EOF while parsing"),
            ("[]", "invalid"),
            (r#"{"credentials":[],"x":1}"#, "unknown field `x`"),
            (&format!(r#"{{"credentials":[{good},{good}]}}"#), r#"there is a credential "a" already"#),
            (&format!(r#"{{"credentials":[{}]}}"#, good.replace("\"a\"", "\"admin\"")), "cannot be a name"),
            (&format!(r#"{{"credentials":[{}]}}"#, good.replace("\"a\"", "\"a:b\"")), "cannot be a name"),
            (&format!(r#"{{"credentials":[{}]}}"#, good.replace("reader", "king")), "unknown variant `king`"),
            (&format!(r#"{{"credentials":[{}]}}"#, good.replace(r#"["reader"]"#, "[]")), "it has no role"),
            (
                &format!(r#"{{"credentials":[{}]}}"#, good.replace("[]", &format!("[{secret},{secret},{secret}]"))),
                "3 secrets, more than 2",
            ),
            (
                &format!(r#"{{"credentials":[{}]}}"#, good.replace("[]", &format!("[{}]", secret.replace('A', "!")))),
                "is no SHA-256",
            ),
            (
                &format!(r#"{{"credentials":[{}]}}"#, good.replace("\"roles\"", "\"realms\":[\"No\"],\"roles\"")),
                "realm \"No\"",
            ),
            (
                &format!(r#"{{"credentials":[{}]}}"#, good.replace("\"roles\"", "\"bulk_per_day\":0,\"roles\"")),
                "a limit of 0",
            ),
        ];
        for (text, what) in cases {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(CREDENTIALS_FILE);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = CredentialsFile::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(CREDENTIALS_FILE), "{text}: {error}");
        }
    }
}
