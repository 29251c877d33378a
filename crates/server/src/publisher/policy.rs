//! When a new epoch is due, by figures that can be printed.
//!
//! Every device fetches every new epoch, so each cause has a limit below which it calls for none. All limits that an
//! operator may want to move stand in [`Settings`](super::Settings).

use std::fmt;
use std::time::Duration;

/// Expired entries below this are no reason for an epoch: together they are smaller than a chunk.
const DEAD_MIN: u64 = 64;

/// A filter this small may match twice as often as was meant by mere chance.
pub(super) const WATCHED_FROM: u64 = 64;

/// What decides whether a new epoch is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochFigures {
    /// Whether there is an epoch of the present term at all.
    pub standing: Standing,
    /// Bytes of the ladder since the newest base: what an exact device fetches beside it.
    pub ladder_bytes: usize,
    /// Up to here it may grow: a share of the snapshot.
    pub ladder_bytes_max: usize,
    /// Statements of the ladder since the newest base: what a device holds beside it.
    pub statements: usize,
    /// Up to here they may grow.
    pub statements_max: usize,
    /// Pieces of the ladder.
    pub pieces: usize,
    /// Up to here they may grow.
    pub pieces_max: usize,
    /// Live revocations, those included that are expired and not dropped yet.
    pub entries: u64,
    /// Of these, the ones that are expired.
    pub dead: u64,
    /// Up to here they may grow: a share of the entries.
    pub dead_max: u64,
    /// Whether anything could be dropped, revoked or not.
    pub droppable: bool,
    /// Time since the newest base was built, or since the start.
    pub age: Duration,
    /// With something to drop, a base does not get older than this.
    pub age_max: Duration,
    /// How often the newest filter matches a token that was never revoked, by its measured fill.
    pub filter_rate: f64,
    /// Up to here it may: a multiple of the rate that is wanted now.
    pub filter_rate_max: f64,
    /// Whether more tokens are covered than when the base was built.
    pub covers_more: bool,
    /// Registered tokens when it was built.
    pub registered_then: u64,
    /// Registered tokens now.
    pub registered: u64,
    /// New coverage waits at most this long for an epoch.
    pub coverage_every: Duration,
}

/// What the newest epoch is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Nothing,
    /// It belongs to an older term.
    OtherTerm,
    /// It belongs to the present term.
    Good,
}

/// Why a new epoch is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochCause {
    /// There is none yet.
    First,
    /// A new term begins with an epoch of its own (design rule 9).
    Term,
    /// The ladder has grown too large beside the snapshot.
    Recent,
    /// Devices would have to hold too many statements beside the base.
    Statements,
    /// The ladder has too many pieces for a manifest.
    Pieces,
    /// More tokens are covered.
    Coverage,
    /// Too large a share of the base is expired.
    Dead,
    /// The base is old and something in it is expired.
    Age,
    /// The filter matches much more often than is wanted.
    FilterHealth,
}

impl EpochFigures {
    /// Why a new epoch is due, if one is.
    #[must_use]
    pub fn due(&self) -> Option<EpochCause> {
        match self.standing {
            Standing::Nothing => return Some(EpochCause::First),
            Standing::OtherTerm => return Some(EpochCause::Term),
            Standing::Good => {}
        }
        // An eighth more tokens are worth an epoch, or as many as there are after some time.
        let grown = self.registered / 8 * 7 >= self.registered_then;
        let causes = [
            (self.ladder_bytes > self.ladder_bytes_max, EpochCause::Recent),
            (self.statements > self.statements_max, EpochCause::Statements),
            (self.pieces > self.pieces_max, EpochCause::Pieces),
            (self.covers_more && (grown || self.age >= self.coverage_every), EpochCause::Coverage),
            (self.dead >= DEAD_MIN && self.dead > self.dead_max, EpochCause::Dead),
            (self.age >= self.age_max && self.droppable, EpochCause::Age),
            (self.entries > WATCHED_FROM && self.filter_rate > self.filter_rate_max, EpochCause::FilterHealth),
        ];
        causes.into_iter().find_map(|(due, cause)| due.then_some(cause))
    }
}

impl EpochCause {
    /// One word for it, the same in logs, JSON and plans.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Term => "term",
            Self::Recent => "recent",
            Self::Statements => "statements",
            Self::Pieces => "pieces",
            Self::Coverage => "coverage",
            Self::Dead => "dead",
            Self::Age => "age",
            Self::FilterHealth => "filter-health",
        }
    }
}

impl fmt::Display for EpochCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
