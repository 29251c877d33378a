//! Who may ask the API for what: names, roles, realms.

use std::fmt;
use std::str::FromStr;

use revocast_core::RealmId;
use serde::{Deserialize, Serialize};

/// The name of the credential whose secret `keygen` writes to `admin.token`.
pub const ADMIN: &str = "admin";

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Revokes, reinstates, cuts off, lifts.
    Revoker,
    /// Reports issued tokens and draws `jti`s.
    Issuer,
    /// Looks: status, coverage, introspection.
    Reader,
    /// All of that, founds realms and sets their keys.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Revoker, Self::Issuer, Self::Reader, Self::Admin];

    /// Its name in files, in the document and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Revoker => "revoker",
            Self::Issuer => "issuer",
            Self::Reader => "reader",
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
        found.ok_or_else(|| format!("{text:?} is no role; roles are revoker, issuer, reader, admin"))
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

/// Somebody who may use the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Whom the ledger names as the actor.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// Where it may do it.
    pub realms: Realms,
}

impl Credential {
    /// The credential of `admin.token`: everything, everywhere.
    #[must_use]
    pub fn admin() -> Self {
        Self { name: ADMIN.into(), roles: vec![Role::Admin], realms: Realms::All }
    }

    /// Whether one of `roles` is among its own; an admin has them all.
    #[must_use]
    pub fn has_one_of(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|own| *own == Role::Admin || roles.contains(own))
    }
}
