//! The answer to a question, before any policy has looked at it.

use core::time::Duration;

use crate::clock::UnixTime;
use crate::cutoff::ScopeKind;
use crate::position::Position;

/// What a revocation set knows about one token.
///
/// Never a `bool`: there are four answers, and the two in the middle are where safety is lost if
/// somebody rounds them. Staleness never softens [`Verdict::Revoked`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a verdict that nobody looks at accepts every token"]
pub enum Verdict {
    /// The token must not be honored.
    Revoked {
        /// What says so.
        why: Why,
    },
    /// The token was not revoked when the ledger stood at `at`, and that is recent enough.
    NotRevoked {
        /// The position that the answer holds for.
        at: Position,
    },
    /// The filter matches and nothing exact is at hand to tell a revocation from a false positive.
    Suspect {
        /// How often a token that is not revoked meets this answer, 0 to 1.
        false_positive_rate: f64,
    },
    /// The set cannot say.
    Unknown {
        /// Why not.
        doubt: Doubt,
    },
}

/// What revoked a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `exp` lies at or before the horizon up to which the server forgets: expired for sure,
    /// whatever the device's clock says.
    Expired {
        /// The horizon.
        horizon: UnixTime,
    },
    /// A cutoff matches: the token was issued before it.
    Cutoff {
        /// What the cutoff speaks of.
        scope: ScopeKind,
        /// Tokens issued before this are revoked.
        not_before: UnixTime,
    },
    /// Its own `jti` was revoked.
    Token,
}

/// Why a set cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No base has been fetched, or no manifest has ever been satisfied.
    NoState,
    /// The last proof of currency is too old.
    Stale {
        /// How old it is.
        age: Duration,
    },
    /// The wall clock contradicts what was signed, so no age can be told.
    TimeUnknown,
    /// A revocation arrived that did not fit; another base is being fetched.
    Overflow,
    /// This device does not follow the token's realm.
    NotFollowed,
}

impl Verdict {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "revoked",
            Self::NotRevoked { .. } => "not-revoked",
            Self::Suspect { .. } => "suspect",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl Doubt {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoState => "no-state",
            Self::Stale { .. } => "stale",
            Self::TimeUnknown => "time-unknown",
            Self::Overflow => "overflow",
            Self::NotFollowed => "not-followed",
        }
    }
}

impl Why {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::Cutoff { .. } => "cutoff",
            Self::Token => "token",
        }
    }
}
