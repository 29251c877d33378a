//! Who may ask the API for what: names, roles, realms, quotas.
//!
//! They stand in `credentials.json` in the folder of the keys; the file is read again whenever it has changed. The
//! admin's secret stands in `admin.token` beside it, so that a server without the file can be used.
//!
//! # Shape
//!
//! ```text
//! {"credentials": [{
//!   "name": "ci", "roles": ["revoker"], "realms": ["fleet"],              without realms: all
//!   "secrets": [{"sha256": "<base64url, 43 characters>", "created": 1800000000}],
//!   "expires": 1900000000, "requests_per_second": 50, "bulk_per_day": 100000, "approve": true   each optional
//! }]}
//! ```
//!
//! A secret is 256 random bits, so its SHA-256 is enough: a slow hash makes guessing expensive, and there is
//! nothing to guess. Two secrets may be valid at a time, so that one can be replaced while it is in use.

mod file;
pub use file::{CREDENTIALS_FILE, CredentialsFile, CredentialsFileError};

mod gate;
pub use gate::{Gate, Offer, Overrun};

mod approval;
pub use approval::{APPROVAL_TIME, Approval};

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Digest, RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq as _};

/// Bytes of a credential's name; it is the actor of ledger entries, alone or beside another.
pub const NAME_BYTES_MAX: usize = 64;

/// Secrets of one credential: the old one and the new one.
pub const SECRETS_MAX: usize = 2;

/// Realms in one credential; one that needs more is for all.
pub const REALMS_MAX: usize = 256;

/// The name of the credential whose secret `keygen` writes to `admin.token`.
pub const ADMIN: &str = "admin";

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Revokes, reinstates, cuts off, lifts.
    Revoker,
    /// Issues tokens, enrolls devices, reports issued tokens and draws `jti`s.
    Issuer,
    /// Spends the refresh tokens that were issued to it, and ends those and its tokens.
    Client,
    /// Looks: status, coverage, introspection.
    Reader,
    /// Is a broker: asks whom it may let in, and for what.
    Broker,
    /// All of that, founds realms and sets their keys.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [Self::Revoker, Self::Issuer, Self::Client, Self::Reader, Self::Broker, Self::Admin];

    /// Its name in files, in the document and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Revoker => "revoker",
            Self::Issuer => "issuer",
            Self::Client => "client",
            Self::Reader => "reader",
            Self::Broker => "broker",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("{text:?} is no role; roles are revoker, issuer, client, reader, broker, admin"))
    }
}

/// The realms that a credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realms {
    /// Every one, also those yet to be founded.
    All,
    /// These.
    Only(Vec<RealmId>),
}

impl Realms {
    /// Whether this realm is one of them.
    #[must_use]
    pub fn contain(&self, realm: RealmId) -> bool {
        match self {
            Self::All => true,
            Self::Only(realms) => realms.contains(&realm),
        }
    }
}

/// A secret as it is kept: its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretHash {
    digest: Digest,
    created: UnixTime,
}

impl SecretHash {
    /// Draws a secret; returns it beside what is kept of it.
    pub fn draw(now: UnixTime) -> Result<(String, Self), getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let secret = URL_SAFE_NO_PAD.encode(bytes);
        let hash = Self::of(&secret, now);
        Ok((secret, hash))
    }

    /// What is kept of a secret.
    #[must_use]
    pub fn of(secret: &str, created: UnixTime) -> Self {
        Self { digest: Digest::of(secret.as_bytes()), created }
    }

    /// When it was drawn.
    #[must_use]
    pub const fn created(&self) -> UnixTime {
        self.created
    }

    /// In a time that does not depend on where the first difference is.
    fn is_of(&self, offered: &Digest) -> Choice {
        self.digest.0.ct_eq(&offered.0)
    }
}

/// Somebody who may use the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Whom the ledger names as the actor.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// Where it may do it.
    pub realms: Realms,
    /// What proves it; the newest last.
    pub secrets: Vec<SecretHash>,
    /// From when on it is not accepted any more.
    pub expires: Option<UnixTime>,
    /// Requests a second, if not the server's default.
    pub requests_per_second: Option<u32>,
    /// Revocations a day, if not the server's default.
    pub bulk_per_day: Option<u64>,
    /// Whether a second credential must confirm its cutoffs of a whole realm.
    pub approve: bool,
}

impl Credential {
    /// A credential without limits of its own.
    #[must_use]
    pub fn new(name: impl Into<String>, roles: Vec<Role>, realms: Realms, secret: SecretHash) -> Self {
        Self {
            name: name.into(),
            roles,
            realms,
            secrets: vec![secret],
            expires: None,
            requests_per_second: None,
            bulk_per_day: None,
            approve: false,
        }
    }

    /// Whether one of `roles` is among its own; an admin has them all.
    #[must_use]
    pub fn has_one_of(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|own| *own == Role::Admin || roles.contains(own))
    }

    /// Whether it is accepted at `now`.
    #[must_use]
    pub fn is_valid(&self, now: UnixTime) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Takes a new secret; of two or more the oldest goes.
    pub fn rotate(&mut self, secret: SecretHash) {
        self.secrets.push(secret);
        let surplus = self.secrets.len().saturating_sub(SECRETS_MAX);
        self.secrets.drain(..surplus);
    }

    /// Compares with every secret, whichever fits.
    fn is_proven_by(&self, offered: &Digest) -> bool {
        let none = Choice::from(0);
        self.secrets.iter().fold(none, |found, secret| found | secret.is_of(offered)).into()
    }
}

/// Whether a credential can have this name: 1 to 64 characters of `a-z A-Z 0-9 . _ -`.
///
/// No colon, which ends the name in HTTP Basic (RFC 7617), and nothing that a log or a page has to quote.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}
