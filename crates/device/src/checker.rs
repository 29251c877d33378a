//! Where the question is asked: is this token revoked?
//!
//! A checker reads the set that the driver exposed last. What to do with the answer is decided in
//! [`policy`](crate::Policy).

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use revocast_core::{Claims, Doubt, Now, Position, RevocationSet, UnixMillis, Verdict};

/// Answers questions about the tokens of one realm. Cheap to clone; use one from any thread.
#[derive(Clone)]
pub struct Checker {
    shared: Arc<Shared>,
}

/// What checkers and the place of exposure share.
struct Shared {
    set: ArcSwap<RevocationSet>,
    /// Names the set that was exposed last, or one before it for a moment: unlike any other in this
    /// process, so that a thread can tell by one number whether it holds the newest.
    stamp: AtomicU64,
}

/// The next stamp; 0 is none.
static STAMPS: AtomicU64 = AtomicU64::new(1);

/// The set that a thread asked last, and its stamp.
struct Held {
    stamp: u64,
    set: Option<Arc<RevocationSet>>,
}

thread_local! {
    // Borrowing a set from `ArcSwap` takes an atomic exchange, as long as all the rest of a question.
    static HELD: RefCell<Held> = const { RefCell::new(Held { stamp: 0, set: None }) };
}

impl Checker {
    /// A checker over this set, and the place where newer ones are exposed.
    #[must_use]
    pub fn new(set: Arc<RevocationSet>) -> (Self, Exposure) {
        let stamp = STAMPS.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared { set: ArcSwap::new(set), stamp: AtomicU64::new(stamp) });
        (Self { shared: Arc::clone(&shared) }, Exposure { shared })
    }

    /// Answers for a token whose signature and claims were validated.
    ///
    /// The mistakes that are permissible are those of [`RevocationSet::check`]. `now` comes from
    /// [`SystemClock::now`](crate::SystemClock::now): its uptime must have the same zero as the driver's.
    ///
    /// # Complexity
    ///
    /// That of [`RevocationSet::check`], and one atomic read. Takes no lock, waits for nothing,
    /// allocates nothing. A thread keeps the set it asked last until it asks again or ends, so a
    /// thread that falls silent may keep an old base in memory.
    #[expect(clippy::inline_always, reason = "as RevocationSet::check, which it wraps")]
    #[inline(always)]
    pub fn check(&self, now: Now, claims: &Claims<'_>) -> Verdict {
        let stamp = self.shared.stamp.load(Ordering::Acquire);
        let held = HELD.try_with(|held| {
            let held = held.try_borrow().ok()?;
            let set = held.set.as_ref().filter(|_| held.stamp == stamp)?;
            Some(set.check(now, claims))
        });
        match held {
            Ok(Some(verdict)) => verdict,
            // Another set than last time, or a thread at its end.
            Ok(None) | Err(_) => self.check_newest(now, claims, stamp),
        }
    }

    /// How old the last proof of currency is; `None` without one.
    #[must_use]
    pub fn age(&self, now: Now) -> Option<Duration> {
        self.shared.set.load().freshness().age(now)
    }

    /// Takes hold of the newest set and asks it.
    #[inline(never)]
    fn check_newest(&self, now: Now, claims: &Claims<'_>, stamp: u64) -> Verdict {
        // Loaded after the stamp, so at least as new as it says.
        let set = self.shared.set.load_full();
        let verdict = set.check(now, claims);
        let _ = HELD.try_with(|held| {
            if let Ok(mut held) = held.try_borrow_mut() {
                *held = Held { stamp, set: Some(set) };
            }
        });
        verdict
    }

    /// Where the set stands: epoch of the base, last sequence without a gap.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.set.load().position()
    }

    /// Why an answer other than "revoked" cannot be given; `None` if it can.
    #[must_use]
    pub fn doubt(&self, now: Now) -> Option<Doubt> {
        self.shared.set.load().doubt(now)
    }

    /// The time as far as it can be told: the wall clock, but never before what was signed.
    #[must_use]
    pub fn time(&self, now: Now) -> UnixMillis {
        let set = self.shared.set.load();
        let freshness = set.freshness();
        freshness.wall(now).unwrap_or(freshness.floor)
    }

    /// The set itself, as it stands now: for many questions about one position, and for numbers.
    #[must_use]
    pub fn set(&self) -> Arc<RevocationSet> {
        self.shared.set.load_full()
    }

    /// The set as it stands now, for one question: cheaper than [`Checker::set`], and to be let go soon.
    pub(crate) fn load(&self) -> Guard<Arc<RevocationSet>> {
        self.shared.set.load()
    }

    /// The one `iss` of the realm, once its keys are known.
    #[must_use]
    pub fn issuer(&self) -> Option<Arc<str>> {
        self.shared.set.load().issuer().map(Arc::from)
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checker(at {})", self.position())
    }
}

/// Where new sets are exposed to the checkers that belong to it.
pub struct Exposure {
    shared: Arc<Shared>,
}

impl Exposure {
    /// Lets checkers see this set from now on. Questions under way are answered from the old one.
    pub fn expose(&mut self, set: Arc<RevocationSet>) {
        self.shared.set.store(set);
        // After the set: whoever sees the stamp finds this set or a newer one.
        self.shared.stamp.store(STAMPS.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }
}

impl fmt::Debug for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exposure(at {})", self.shared.set.load().position())
    }
}

#[cfg(test)]
mod tests {
    use revocast_core::{Jti, RealmId, Replica, Trust, UnixTime};

    use super::*;

    fn knows_nothing() -> Arc<RevocationSet> {
        let trust = Trust { roots: Vec::new(), threshold: 1, not_before: UnixTime::from_secs(5) };
        let config = revocast_core::Config::exact(0);
        Arc::new(Replica::new(config, RealmId::new("r").unwrap(), trust).set().clone())
    }

    #[test]
    fn a_checker_without_state_never_says_not_revoked() {
        let (checker, _exposure) = Checker::new(knows_nothing());
        let now = Now::new(UnixMillis::from_millis(10_000), Duration::ZERO);
        let claims = Claims::new(Jti::new("a").unwrap(), UnixTime::from_secs(100));
        assert_eq!(checker.check(now, &claims), Verdict::Unknown { doubt: Doubt::NoState });
        assert_eq!(checker.doubt(now), Some(Doubt::NoState));
        assert_eq!(checker.issuer(), None);
        assert_eq!(checker.position(), Position::default());
    }

    #[test]
    fn the_time_is_never_before_what_was_signed() {
        let (checker, _exposure) = Checker::new(knows_nothing());
        let at = |millis| Now::new(UnixMillis::from_millis(millis), Duration::ZERO);
        assert_eq!(checker.time(at(10_000)), UnixMillis::from_millis(10_000));
        assert_eq!(checker.time(at(0)), UnixMillis::from_millis(5_000));
    }

    #[test]
    fn checkers_cross_threads_and_are_swapped_for_all() {
        fn crosses<T: Clone + Send + Sync + 'static>(_: &T) {}
        let (checker, mut exposure) = Checker::new(knows_nothing());
        crosses(&checker);
        let (before, other) = (checker.set(), checker.clone());
        exposure.expose(knows_nothing());
        assert!(Arc::ptr_eq(&checker.set(), &other.set()));
        assert!(!Arc::ptr_eq(&checker.set(), &before));
    }
}
