//! Why something that arrived was not applied.
//!
//! Every refusal is named after its cause, and after the attack where there is one. All leave the
//! replica as it was. The names are one in code, tests, logs, metrics and reports.

use core::time::Duration;

use thiserror::Error;

use crate::clock::{UnixMillis, UnixTime};
use crate::position::{Sequence, Term};
use crate::seal::Kind;
use crate::token::RealmId;

/// Why an update was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A packet or object larger than anything of its kind may be.
    ///
    /// Caused by a hostile or misconfigured publisher; nothing was read of it.
    #[error("{bytes} bytes arrived where at most {max} are allowed")]
    EndlessData {
        /// Its size.
        bytes: u64,
        /// The most that is allowed there.
        max: u64,
    },
    /// The bytes are not what their kind looks like.
    ///
    /// Caused by damage, by garbage, or by somebody else's format on our topic.
    #[error("malformed: {what}")]
    Malformed {
        /// The first thing that was wrong.
        what: &'static str,
    },
    /// A format number this program does not speak.
    ///
    /// Caused by a newer publisher: update the device.
    #[error("format {found} is not spoken here; this program speaks format {spoken}")]
    Format {
        /// What the object says.
        found: u8,
        /// What this program speaks.
        spoken: u8,
    },
    /// A well-made object in the wrong place (extraneous: another kind, epoch, range or number).
    ///
    /// Caused by a broker that moves objects between topics.
    #[error("a {found} stands where {expected} belongs")]
    Extraneous {
        /// What belongs there.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// An object of another realm.
    #[error("the object belongs to another realm: {found}")]
    WrongRealm {
        /// The realm the object names.
        found: RealmId,
    },
    /// No trusted key made a signature over these bytes.
    ///
    /// Caused by forgery, damage, or a trust file that belongs to another server.
    #[error("no trusted key signed this {kind}")]
    WrongKey {
        /// What it claims to be.
        kind: Kind,
    },
    /// A trusted key signed what its role does not cover.
    #[error("the key that signed this {kind} may not sign it")]
    WrongRole {
        /// What it claims to be.
        kind: Kind,
    },
    /// Too few different root keys signed.
    #[error("{have} root keys signed where {need} must")]
    Threshold {
        /// Different trusted keys with a good signature.
        have: u8,
        /// How many it takes.
        need: u8,
    },
    /// The keys have run out.
    ///
    /// Caused by an operator who did not renew them, or by a broker that holds the renewal back.
    #[error("the keys expired at {not_after}")]
    KeysExpired {
        /// Their end.
        not_after: UnixTime,
    },
    /// Older than what this replica holds.
    ///
    /// Caused by a stale retained message or by replay; harmless once, an attack if it repeats.
    #[error("{what} {offered:?} is older than {held:?}, which this replica already holds")]
    Rollback {
        /// What went back.
        what: &'static str,
        /// Held: term, sequence (or version), issued-at.
        held: Rank,
        /// Offered.
        offered: Rank,
    },
    /// Two different objects that claim to be one and the same.
    ///
    /// Caused by a forked ledger, two publishers, or a stolen key. Revocations of both are kept.
    #[error("two different bodies claim to be the same {what}")]
    Equivocation {
        /// What there are two of.
        what: &'static str,
    },
    /// A part that is not the one its whole names: mix-and-match.
    #[error("{what} is not the one that was named")]
    MixAndMatch {
        /// Which part.
        what: &'static str,
    },
    /// No newer manifest came by the time the last one promised: freeze.
    #[error("no manifest since {issued_at}; the next was promised by {next_update}")]
    Freeze {
        /// When the last one was issued.
        issued_at: UnixMillis,
        /// When its successor was due.
        next_update: UnixTime,
    },
    /// A delta begins after the held sequence; what it says is in force, the position waits.
    #[error("the delta begins at {from}, but only {held} is held: a gap")]
    Gap {
        /// Last sequence without a gap.
        held: Sequence,
        /// Where the delta begins.
        from: Sequence,
    },
    /// A piece did not arrive in time: slow retrieval.
    #[error("{what} did not arrive within {patience:?}")]
    SlowRetrieval {
        /// What was asked for.
        what: &'static str,
        /// How long it was waited for.
        patience: Duration,
    },
    /// More came since the base than this replica may hold.
    #[error("a revocation does not fit beside the {held} entries already held")]
    Overflow {
        /// Entries held.
        held: usize,
    },
    /// A base larger than this device allows; the old one stays.
    #[error("the base takes {bytes} bytes, more than the {max} this device allows")]
    TooLarge {
        /// What it would take.
        bytes: u64,
        /// The device's budget.
        max: u64,
    },
    /// State read back from disk is not what was written.
    #[error("stored state: {what}")]
    DamagedState {
        /// The first thing that was wrong.
        what: &'static str,
    },
    /// An answer to a question that was never asked here, or is answered already.
    ///
    /// Caused by replay, by answers that came too late, or by a broker that mixes up devices.
    #[error("an answer to a question that is not open: {what} differs")]
    Unasked {
        /// The first thing in which it fits no open question.
        what: &'static str,
    },
}

/// The order of manifests and keys: term, then sequence (or version), then issued-at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    // Field order is comparison order.
    /// Term; zero where there is none.
    pub term: Term,
    /// Sequence of a manifest or delta; version of keys.
    pub number: u64,
    /// When it was issued; zero where it does not matter.
    pub issued_at: UnixMillis,
}

impl Refusal {
    /// How many kinds of refusal there are; see [`Refusal::number`].
    pub const COUNT: usize = 19;

    /// The name used in logs, metrics, tests and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match Self::name_of(self.number()) {
            Some(name) => name,
            // Every number has a name.
            None => "",
        }
    }

    /// The name of the refusal with this number, as a report carries it; `None` for one of a later version.
    #[must_use]
    pub const fn name_of(number: u8) -> Option<&'static str> {
        Some(match number {
            0 => "endless-data",
            1 => "malformed",
            2 => "format",
            3 => "extraneous",
            4 => "wrong-realm",
            5 => "wrong-key",
            6 => "wrong-role",
            7 => "threshold",
            8 => "keys-expired",
            9 => "rollback",
            10 => "equivocation",
            11 => "mix-and-match",
            12 => "freeze",
            13 => "gap",
            14 => "slow-retrieval",
            15 => "overflow",
            16 => "too-large",
            17 => "damaged-state",
            18 => "unasked",
            _ => return None,
        })
    }

    /// A number below [`Refusal::COUNT`], in the order of the enum; what reports carry.
    #[must_use]
    pub const fn number(&self) -> u8 {
        match self {
            Self::EndlessData { .. } => 0,
            Self::Malformed { .. } => 1,
            Self::Format { .. } => 2,
            Self::Extraneous { .. } => 3,
            Self::WrongRealm { .. } => 4,
            Self::WrongKey { .. } => 5,
            Self::WrongRole { .. } => 6,
            Self::Threshold { .. } => 7,
            Self::KeysExpired { .. } => 8,
            Self::Rollback { .. } => 9,
            Self::Equivocation { .. } => 10,
            Self::MixAndMatch { .. } => 11,
            Self::Freeze { .. } => 12,
            Self::Gap { .. } => 13,
            Self::SlowRetrieval { .. } => 14,
            Self::Overflow { .. } => 15,
            Self::TooLarge { .. } => 16,
            Self::DamagedState { .. } => 17,
            Self::Unasked { .. } => 18,
        }
    }
}
