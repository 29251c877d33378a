//! Time as core sees it: told, never read.
//!
//! Tokens speak whole seconds ([`UnixTime`]); freshness needs milliseconds ([`UnixMillis`]). A
//! [`Now`] is one reading of both clocks a machine has: the wall clock, which anyone may have set
//! wrong, and the uptime, which only ever rises but begins at zero.

use core::fmt;
use core::time::Duration;

/// Whole seconds since 1970-01-01T00:00:00Z, as in `exp` and `iat` (RFC 7519 `NumericDate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// Takes seconds since the epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs)
    }

    /// Seconds since the epoch.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0
    }

    /// The first millisecond of this second.
    #[must_use]
    pub const fn millis(self) -> UnixMillis {
        UnixMillis(self.0.saturating_mul(1_000))
    }

    /// This time moved later, stopping at the end of time.
    #[must_use]
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This time moved earlier, stopping at 1970.
    #[must_use]
    pub const fn minus(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z; orders manifests and measures age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// Takes milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// The second this lies in, rounded down.
    #[must_use]
    pub const fn floor(self) -> UnixTime {
        UnixTime(self.0 / 1_000)
    }

    /// This time moved later, stopping at the end of time.
    #[must_use]
    pub const fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis_of(span)))
    }

    /// This time moved earlier, stopping at 1970.
    #[must_use]
    pub const fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis_of(span)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000, self.0 % 1_000)
    }
}

/// Whole milliseconds of a span, capped at the largest `u64`.
const fn millis_of(span: Duration) -> u64 {
    let millis = span.as_millis();
    if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 }
}

/// How often something may be done: a few times in a row, then once in a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// By uptime; what lies ahead of it was spent in advance.
    spent_until: Duration,
}

impl Allowance {
    /// Spends one, if there is one left at this uptime.
    pub fn take(&mut self, uptime: Duration, burst: u32, every: Duration) -> bool {
        let spent = self.spent_until.max(uptime).saturating_add(every);
        if spent > uptime.saturating_add(every.saturating_mul(burst)) {
            return false;
        }
        self.spent_until = spent;
        true
    }

    /// Whether nothing of it is spent.
    #[must_use]
    pub fn is_whole(&self, uptime: Duration) -> bool {
        self.spent_until <= uptime
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock: may be wrong, may jump in both directions.
    pub wall: UnixMillis,
    /// Time since this process (or device) started: never falls, says nothing about the date.
    pub uptime: Duration,
}

impl Now {
    /// Pairs the two readings.
    #[must_use]
    pub const fn new(wall: UnixMillis, uptime: Duration) -> Self {
        Self { wall, uptime }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_a_burst_and_then_one_in_a_span() {
        let second = Duration::from_secs(1);
        let mut allowance = Allowance::default();
        let mut taken = |at: u64| allowance.take(Duration::from_millis(at), 8, second);
        assert_eq!((0..20).filter(|_| taken(500)).count(), 8);
        assert!(!taken(1_499));
        assert!(taken(1_500) && !taken(1_500));
        assert_eq!((2_000..60_000).filter(|at| taken(*at)).count(), 59 - 1);
        assert!(!allowance.is_whole(Duration::from_secs(67)));
        assert!(allowance.is_whole(Duration::from_secs(68)));
        // After a long silence there are as many as at first, and no more.
        assert_eq!((0..20).filter(|_| allowance.take(100 * second, 8, second)).count(), 8);
        assert!(allowance.take(Duration::MAX, 8, second) || !allowance.is_whole(Duration::ZERO));
    }
}
