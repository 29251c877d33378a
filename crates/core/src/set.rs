//! The revocation set: what a checker sees, immutable, at one position.
//!
//! A question walks one path (design rule 15): horizon, cutoffs, recent, freshness, list, filter.
//! How a set comes to be is the replica's business.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::clock::{Now, UnixMillis, UnixTime};
use crate::cutoff::Cutoffs;
use crate::exact::ExactList;
use crate::filter::{FilterBuf, FilterParams, GeometryError, LINE_BYTES, Membership, Salt};
use crate::position::{Epoch, Position, Sequence, Term};
use crate::recent::{Recent, State};
use crate::refusal::Refusal;
use crate::rice;
use crate::token::{Claims, Fingerprint, Fingerprinter, Width};
use crate::update::{Artifact, Index, Question};
use crate::verdict::{Doubt, Verdict, Why};

/// What a device holds of a base, by its memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Profile {
    /// The published filter alone: about 10 bits a revocation at 1e-2; a match is [`Verdict::Suspect`].
    Filter = 1,
    /// The list alone: about 30 bits a revocation; exact, some hundred nanoseconds a question.
    List = 2,
    /// The list and a filter built from it: about 43 bits a revocation; exact and fast.
    Exact = 3,
}

impl Profile {
    /// Reads the number used on the wire and on disk.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Filter),
            2 => Some(Self::List),
            3 => Some(Self::Exact),
            _ => None,
        }
    }

    /// The name used on command lines and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::List => "list",
            Self::Exact => "exact",
        }
    }

    /// The artifact this profile fetches, beside the cutoffs.
    #[must_use]
    pub const fn artifact(self) -> Artifact {
        match self {
            Self::Filter => Artifact::Filter,
            Self::List | Self::Exact => Artifact::List,
        }
    }
}

/// Bits a revocation of the filter that the exact profile builds for itself: a third more than a rate
/// of 1e-2 takes. Half as many questions pass the first line and a quarter as many both, and what
/// passes costs several times what does not.
const OWN_FILTER_BITS: u64 = 13;

/// Probes in each line of that filter.
const OWN_FILTER_PROBES: u8 = 3;

/// Salt and geometry of that filter.
fn own_filter(entries: u64, salt: Salt) -> Result<FilterParams, GeometryError> {
    let blocks = (entries * OWN_FILTER_BITS).div_ceil(4 * 8 * LINE_BYTES as u64).max(1) * 4;
    FilterParams::new(salt, u32::try_from(blocks).unwrap_or(u32::MAX), OWN_FILTER_PROBES)
}

/// What an epoch was built with, immutable.
#[derive(Debug)]
pub struct Base {
    term: Term,
    epoch: Epoch,
    sequence: Sequence,
    lookup: Lookup,
}

/// How a base answers.
#[derive(Debug)]
enum Lookup {
    Filter { filter: FilterBuf, rate: f64 },
    List(ExactList),
    Exact { filter: Arc<FilterBuf>, list: ExactList },
}

/// What a base says about one key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum InBase {
    Absent,
    Certain,
    Possible { false_positive_rate: f64 },
}

impl Base {
    /// Builds what `profile` holds from the artifact that it fetches.
    ///
    /// `bytes` were verified against `index` before.
    ///
    /// # Complexity
    ///
    /// Linear in the number of entries.
    pub fn build(profile: Profile, index: &Index, width: Width, entries: u64, bytes: &[u8]) -> Result<Self, Refusal> {
        let lookup = match profile {
            Profile::Filter => {
                // Before memory is taken: the geometry must be the one of the bytes at hand.
                if bytes.len() as u64 != index.filter.size_bytes() {
                    return Err(Refusal::MixAndMatch { what: "the filter" });
                }
                let mut filter = FilterBuf::new(index.filter);
                filter.absorb(0, bytes).map_err(|_| Refusal::Malformed { what: "the filter's bytes" })?;
                let rate = filter.false_positive_rate();
                Lookup::Filter { filter, rate }
            }
            Profile::List => Lookup::List(exact_list(&decode_list(bytes, entries, width)?, width)?),
            Profile::Exact => {
                let keys = decode_list(bytes, entries, width)?;
                let params = own_filter(keys.len() as u64, index.filter.salt())
                    .map_err(|_| Refusal::Malformed { what: "a base too large to filter" })?;
                let filter = Arc::new(FilterBuf::build(params, keys.iter().copied()));
                Lookup::Exact { filter, list: exact_list(&keys, width)? }
            }
        };
        Ok(Self { term: index.term, epoch: index.epoch, sequence: index.sequence, lookup })
    }

    /// Reign of the ledger it was built in.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Which epoch it is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// It holds everything up to here.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Whether it may hold a key: `false` is certain. For whoever checks a base before publishing it.
    #[must_use]
    pub fn may_hold(&self, fingerprint: Fingerprint, width: Width) -> bool {
        self.query(fingerprint, width) != InBase::Absent
    }

    /// The rate of false positives by the filter's measured fill; `None` without a published filter.
    #[must_use]
    pub const fn false_positive_rate(&self) -> Option<f64> {
        match &self.lookup {
            Lookup::Filter { rate, .. } => Some(*rate),
            Lookup::List(_) | Lookup::Exact { .. } => None,
        }
    }

    /// Bytes it takes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match &self.lookup {
            Lookup::Filter { filter, .. } => filter.params().size_bytes(),
            Lookup::List(list) => list.size_bytes(),
            Lookup::Exact { filter, list } => filter.params().size_bytes() + list.size_bytes(),
        }
    }

    #[inline]
    fn query(&self, fingerprint: Fingerprint, width: Width) -> InBase {
        match &self.lookup {
            Lookup::Exact { filter, list } => match filter.query(fingerprint) {
                Membership::Absent => InBase::Absent,
                Membership::Possible => Self::listed(list, fingerprint, width),
            },
            Lookup::List(list) => Self::listed(list, fingerprint, width),
            Lookup::Filter { filter, rate } => match filter.query(fingerprint) {
                Membership::Absent => InBase::Absent,
                Membership::Possible => InBase::Possible { false_positive_rate: *rate },
            },
        }
    }

    /// A match in a list of fewer than 48 bits is too often wrong to be called certain.
    fn listed(list: &ExactList, fingerprint: Fingerprint, width: Width) -> InBase {
        if !list.contains(fingerprint) {
            InBase::Absent
        } else if width.is_exact() {
            InBase::Certain
        } else {
            InBase::Possible { false_positive_rate: list.len() as f64 / (1_u64 << width.bits()) as f64 }
        }
    }
}

fn exact_list(keys: &[Fingerprint], width: Width) -> Result<ExactList, Refusal> {
    ExactList::from_sorted(keys, width).map_err(|_| Refusal::Malformed { what: "a list that cannot be held" })
}

fn decode_list(bytes: &[u8], entries: u64, width: Width) -> Result<Vec<Fingerprint>, Refusal> {
    rice::decode(bytes, entries, width).map_err(|_| Refusal::Malformed { what: "the list's bytes" })
}

/// How current a set is, and what its device's clock may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The last manifest that the held position satisfied: when it was issued, and the uptime at
    /// which it first arrived. `None` before the first.
    pub proof: Option<(UnixMillis, Duration)>,
    /// Highest verified issued-at: the true time cannot be earlier.
    pub floor: UnixMillis,
    /// A moment at which the time was proven, and the uptime then; uptime carries it from there.
    pub proven: Option<(UnixMillis, Duration)>,
    /// Older proofs than this leave the set in doubt.
    pub staleness_max: Duration,
    /// How far a good clock may lag behind the server's.
    pub clock_skew: Duration,
}

/// A wall clock further than this above the highest signed time is a fault, not a long sleep.
const PLAUSIBLE_AHEAD: Duration = Duration::from_hours(400 * 24);

impl Freshness {
    /// The time, if it can be told: proven once and carried by uptime, or a plausible wall clock.
    #[must_use]
    pub fn wall(&self, now: Now) -> Option<UnixMillis> {
        if let Some((wall, at)) = self.proven {
            return Some(wall.plus(now.uptime.saturating_sub(at)).max(self.floor));
        }
        let not_behind = now.wall.plus(self.clock_skew) >= self.floor;
        let not_ahead = self.floor == UnixMillis::default() || now.wall <= self.floor.plus(PLAUSIBLE_AHEAD);
        (not_behind && not_ahead).then_some(now.wall.max(self.floor))
    }

    /// How old the last proof of currency is, by both clocks: the larger counts (design rule 2).
    #[must_use]
    pub fn age(&self, now: Now) -> Option<Duration> {
        let (issued_at, arrived) = self.proof?;
        let by_uptime = now.uptime.saturating_sub(arrived);
        Some(self.wall(now).map_or(by_uptime, |wall| wall.since(issued_at).max(by_uptime)))
    }

    /// Why the set should not be believed when it finds nothing; `None` if it should.
    #[must_use]
    pub fn doubt(&self, now: Now) -> Option<Doubt> {
        let Some((issued_at, arrived)) = self.proof else {
            return Some(Doubt::NoState);
        };
        let Some(wall) = self.wall(now) else {
            return Some(Doubt::TimeUnknown);
        };
        let age = wall.since(issued_at).max(now.uptime.saturating_sub(arrived));
        (age > self.staleness_max).then_some(Doubt::Stale { age })
    }
}

/// The moments at which [`Freshness::doubt`] finds nothing, worked out once: three comparisons instead
/// of some thirty steps in every question.
#[derive(Clone, Copy, Debug)]
struct Believed {
    wall_from: UnixMillis,
    wall_through: UnixMillis,
    /// Whole seconds, rounded down: one comparison, and never too long.
    uptime_before: u64,
}

impl Believed {
    fn new(freshness: &Freshness) -> Option<Self> {
        let Freshness { proof, floor, proven, staleness_max, clock_skew } = *freshness;
        let (issued_at, arrived) = proof?;
        // A clock behind the floor is read as the floor. A proven time goes the long way.
        if proven.is_some() || floor.since(issued_at) > staleness_max {
            return None;
        }
        let fresh = issued_at.plus(staleness_max);
        let plausible = if floor == UnixMillis::default() { fresh } else { floor.plus(PLAUSIBLE_AHEAD) };
        Some(Self {
            wall_from: floor.minus(clock_skew),
            wall_through: fresh.min(plausible),
            uptime_before: arrived.saturating_add(staleness_max).as_secs(),
        })
    }

    #[inline]
    fn at(&self, now: Now) -> bool {
        self.wall_from <= now.wall && now.wall <= self.wall_through && now.uptime.as_secs() < self.uptime_before
    }
}

/// What the short way of a question needs, side by side in memory.
#[derive(Clone, Debug)]
pub(crate) struct Short {
    horizon: UnixTime,
    believed: Believed,
    fingerprinter: Fingerprinter,
    filter: Arc<FilterBuf>,
    position: Position,
}

/// Base, recent and cutoffs of one realm at one position.
#[derive(Clone, Debug)]
pub struct RevocationSet {
    pub(crate) fingerprinter: Option<Fingerprinter>,
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) recent: Recent,
    pub(crate) cutoffs: Cutoffs,
    pub(crate) horizon: UnixTime,
    pub(crate) sequence: Sequence,
    pub(crate) freshness: Freshness,
    pub(crate) short: Option<Short>,
    pub(crate) overflow: bool,
    pub(crate) issuer: Option<Arc<str>>,
    pub(crate) leeway: u32,
}

impl RevocationSet {
    /// Answers the question: is this token revoked?
    ///
    /// A wrong [`Verdict::Revoked`] is permissible at the rate of fingerprint collisions (entries
    /// divided by 2^W), a [`Verdict::Suspect`] at the filter's rate; a wrong
    /// [`Verdict::NotRevoked`] never is, for any entry up to [`RevocationSet::position`].
    ///
    /// # Complexity
    ///
    /// One hash, one look-up in `recent`, one or two cache lines of the filter, and for one question
    /// in a hundred two cache lines of the list. Takes no lock and allocates nothing. Cutoffs add up
    /// to three SHA-256 while any is in force.
    #[expect(clippy::inline_always, reason = "the short way is some sixty instructions; a call adds thirty, measured")]
    #[inline(always)]
    pub fn check(&self, now: Now, claims: &Claims<'_>) -> Verdict {
        // The short way: the answer of the long one, where nothing is in doubt and nothing matches.
        if let Some(short) = &self.short
            && claims.exp > short.horizon
            && short.believed.at(now)
        {
            let fingerprint = short.fingerprinter.fingerprint(claims.jti);
            if self.recent.get(fingerprint).is_none() && short.filter.query(fingerprint) == Membership::Absent {
                return Verdict::NotRevoked { at: short.position };
            }
        }
        self.weigh(now, claims)
    }

    /// The long way, in the order of design rule 15.
    #[inline(never)]
    fn weigh(&self, now: Now, claims: &Claims<'_>) -> Verdict {
        if claims.exp <= self.horizon {
            return Verdict::Revoked { why: Why::Expired { horizon: self.horizon } };
        }
        let Some(fingerprinter) = &self.fingerprinter else {
            return Verdict::Unknown { doubt: Doubt::NoState };
        };
        if let Some(cutoff) = self.cutoffs.matching(fingerprinter, claims) {
            return Verdict::Revoked { why: Why::Cutoff { scope: cutoff.scope.kind, not_before: cutoff.not_before } };
        }
        let fingerprint = fingerprinter.fingerprint(claims.jti);
        let recent = self.recent.get(fingerprint);
        if recent == Some(State::Revoked) {
            return Verdict::Revoked { why: Why::Token };
        }
        let Some(base) = &self.base else {
            return Verdict::Unknown { doubt: Doubt::NoState };
        };
        let in_base = match recent {
            Some(State::Reinstated) => InBase::Absent,
            Some(State::Revoked) | None => base.query(fingerprint, fingerprinter.width()),
        };
        if in_base == InBase::Certain {
            return Verdict::Revoked { why: Why::Token };
        }
        if let Some(doubt) = self.doubt(now) {
            return Verdict::Unknown { doubt };
        }
        match in_base {
            InBase::Possible { false_positive_rate } => Verdict::Suspect { false_positive_rate },
            InBase::Absent | InBase::Certain => Verdict::NotRevoked { at: self.position() },
        }
    }

    /// What revokes the token in question for sure, as far as this set knows; the steps of
    /// [`RevocationSet::check`] that no doubt softens.
    pub(crate) fn known_revoked(&self, question: &Question) -> Option<Why> {
        if question.exp <= self.horizon {
            return Some(Why::Expired { horizon: self.horizon });
        }
        let cutoff = question.scopes().filter_map(|scope| self.cutoffs.in_scope(scope));
        if let Some(cutoff) = cutoff.into_iter().find(|cutoff| question.precedes(cutoff.not_before)) {
            return Some(Why::Cutoff { scope: cutoff.scope.kind, not_before: cutoff.not_before });
        }
        let (width, base) = (self.fingerprinter?.width(), self.base.as_ref());
        let certain = match self.recent.get(question.fingerprint) {
            Some(State::Revoked) => true,
            Some(State::Reinstated) => false,
            None => base.is_some_and(|base| base.query(question.fingerprint, width) == InBase::Certain),
        };
        certain.then_some(Why::Token)
    }

    /// Works out the short way again; after any change.
    pub(crate) fn settle(&mut self) {
        self.short = self.short_way();
    }

    fn short_way(&self) -> Option<Short> {
        let Lookup::Exact { filter, .. } = &self.base.as_ref()?.lookup else { return None };
        let believed = Believed::new(&self.freshness)?;
        let plain = !self.overflow && self.cutoffs.live().is_empty();
        plain.then_some(Short {
            horizon: self.horizon,
            believed,
            fingerprinter: self.fingerprinter?,
            filter: Arc::clone(filter),
            position: self.position(),
        })
    }

    /// Why an answer other than "revoked" cannot be given; `None` if it can.
    #[must_use]
    pub fn doubt(&self, now: Now) -> Option<Doubt> {
        if self.overflow { Some(Doubt::Overflow) } else { self.freshness.doubt(now) }
    }

    /// Where it stands: epoch of the base, last sequence without a gap.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.base.as_ref().map(|base| base.epoch()).unwrap_or_default(), sequence: self.sequence }
    }

    /// Tokens with `exp` up to this are expired, whatever the device's clock says.
    #[must_use]
    pub const fn horizon(&self) -> UnixTime {
        self.horizon
    }

    /// How current it is.
    #[must_use]
    pub const fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// The one `iss` that belongs to this realm, once its keys are known.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// The largest leeway, in seconds, that a validator may grant.
    #[must_use]
    pub const fn leeway_max(&self) -> u32 {
        self.leeway
    }

    /// How many keys have been stated since the base.
    #[must_use]
    pub const fn recent_entries(&self) -> usize {
        self.recent.len()
    }

    /// Bytes it takes, to within the pages of `recent`.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let base = self.base.as_ref().map_or(0, |base| base.size_bytes());
        base + (self.recent.len() * size_of::<crate::recent::Stamped>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SplitMix64`, so that the law is tried at moments nobody thought of.
    fn draw(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    #[test]
    fn the_short_way_to_believe_a_set_never_says_more_than_the_long_one() {
        let mut state = 7;
        let (mut believed, mut doubted) = (0_u32, 0_u32);
        for _ in 0..200_000 {
            let millis = |state: &mut u64, most: u64| UnixMillis::from_millis(draw(state) % most);
            let span = |state: &mut u64, most: u64| Duration::from_millis(draw(state) % most);
            let rounding = Duration::from_secs(1);
            let freshness = Freshness {
                proof: Some((millis(&mut state, 5_000), span(&mut state, 3_000))),
                floor: millis(&mut state, 6_000),
                proven: draw(&mut state)
                    .is_multiple_of(8)
                    .then(|| (millis(&mut state, 9_000), span(&mut state, 3_000))),
                staleness_max: span(&mut state, 4_000),
                clock_skew: span(&mut state, 2_000),
            };
            let now = Now::new(millis(&mut state, 12_000), span(&mut state, 8_000));
            if Believed::new(&freshness).is_some_and(|believed| believed.at(now)) {
                assert_eq!(freshness.doubt(now), None, "{freshness:?} at {now:?}");
                believed += 1;
            } else if freshness.proven.is_none() {
                // It says less only in the last second.
                let later = Now::new(now.wall, now.uptime + rounding);
                assert!(freshness.doubt(later).is_some(), "{freshness:?} at {now:?}");
                doubted += 1;
            }
        }
        assert!(believed > 10_000 && doubted > 10_000, "{believed} and {doubted}");
    }
}
