//! The revocation set: what a checker sees, immutable, at one position.
//!
//! A question walks one path (design rule 15): horizon, cutoffs, recent, freshness, list, exceptions, filter.
//! How a set comes to be is the replica's business.

use alloc::sync::Arc;
use core::time::Duration;

use crate::base::{Base, InBase, Witness};
use crate::clock::{Now, UnixMillis, UnixTime};
use crate::cutoff::Cutoffs;
use crate::filter::{FilterBuf, Membership};
use crate::position::{Position, Sequence};
use crate::recent::{Recent, State};
use crate::token::{Claims, Fingerprinter};
use crate::update::Question;
use crate::verdict::{Doubt, Verdict, Why};

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
        self.weigh(now, claims).0
    }

    /// The same answer, and what gave it.
    pub fn explain(&self, now: Now, claims: &Claims<'_>) -> (Verdict, Witness) {
        self.weigh(now, claims)
    }

    /// The long way, in the order of design rule 15.
    #[inline(never)]
    fn weigh(&self, now: Now, claims: &Claims<'_>) -> (Verdict, Witness) {
        if claims.exp <= self.horizon {
            return (Verdict::Revoked { why: Why::Expired { horizon: self.horizon } }, Witness::Horizon);
        }
        let Some(fingerprinter) = &self.fingerprinter else {
            return (Verdict::Unknown { doubt: Doubt::NoState }, Witness::Nothing);
        };
        if let Some(cutoff) = self.cutoffs.matching(fingerprinter, claims) {
            let why = Why::Cutoff { scope: cutoff.scope.kind, not_before: cutoff.not_before };
            return (Verdict::Revoked { why }, Witness::Cutoffs);
        }
        let fingerprint = fingerprinter.fingerprint(claims.jti);
        let recent = self.recent.get(fingerprint);
        if recent == Some(State::Revoked) {
            return (Verdict::Revoked { why: Why::Token }, Witness::Recent);
        }
        let Some(base) = &self.base else {
            return (Verdict::Unknown { doubt: Doubt::NoState }, Witness::Nothing);
        };
        let in_base = match recent {
            Some(State::Reinstated) => InBase::Absent { by: Witness::Recent },
            Some(State::Revoked) | None => base.query(fingerprint, fingerprinter.width(), claims.iat),
        };
        if let InBase::Certain { by } = in_base {
            return (Verdict::Revoked { why: Why::Token }, by);
        }
        if let Some(doubt) = self.doubt(now) {
            return (Verdict::Unknown { doubt }, Witness::Nothing);
        }
        match in_base {
            InBase::Possible { false_positive_rate, by } => (Verdict::Suspect { false_positive_rate }, by),
            InBase::Absent { by } | InBase::Certain { by } => (Verdict::NotRevoked { at: self.position() }, by),
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
            None => base.is_some_and(|base| {
                matches!(base.query(question.fingerprint, width, question.iat), InBase::Certain { .. })
            }),
        };
        certain.then_some(Why::Token)
    }

    /// Works out the short way again; after any change.
    pub(crate) fn settle(&mut self) {
        self.short = self.short_way();
    }

    fn short_way(&self) -> Option<Short> {
        // A list alone has no filter to ask, and no short way.
        let filter = self.base.as_ref()?.filter()?;
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

    /// Bytes it takes: base, `recent` and cutoffs.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let base = self.base.as_ref().map_or(0, |base| base.size_bytes());
        base + self.recent.size_bytes() + self.cutoffs.size_bytes()
    }

    /// What is held of a base; `None` before the first.
    #[must_use]
    pub fn base(&self) -> Option<&Base> {
        self.base.as_deref()
    }

    /// How old the last proof of currency is; `None` without one.
    #[must_use]
    pub fn age(&self, now: Now) -> Option<Duration> {
        self.freshness.age(now)
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
