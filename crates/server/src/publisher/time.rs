//! The server's clock, guarded: what is signed may not run ahead of true time.
//!
//! A horizon or an issued-at that is once too late cannot be taken back: every device keeps the
//! highest. So both advance at most as fast as uptime, plus five seconds (design rule 14).

use std::time::Duration;

use revocast_core::{Now, UnixMillis};

/// How much faster than uptime the wall clock may advance before it is held back.
const SLACK: Duration = Duration::from_secs(5);

/// What is wrong with the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockAlarm {
    /// It stands before a time that was already signed.
    #[error("the clock went back by {} s; signing goes on from the last signed time", by.as_secs())]
    WentBack {
        /// By how much.
        by: Duration,
    },
    /// It ran ahead of uptime.
    #[error("the clock is {} s ahead of the time that has passed; signed times are held back", by.as_secs())]
    RanAhead {
        /// By how much.
        by: Duration,
    },
}

/// Gives times to sign: strictly rising, never ahead of uptime.
#[derive(Clone, Debug)]
pub struct SigningClock {
    last: Option<UnixMillis>,
    /// A time believed to be true, and the uptime then.
    anchor: Option<(UnixMillis, Duration)>,
    restart_jump_max: Duration,
    alarm: Option<ClockAlarm>,
}

impl SigningClock {
    /// A clock that goes on after `last`, the highest time signed before.
    ///
    /// How long the server was down cannot be known, so after a restart the clock may stand up to
    /// `restart_jump_max` later than `last`; beyond, it is held. An operator who confirms the clock
    /// starts the server without that limit.
    #[must_use]
    pub const fn new(last: Option<UnixMillis>, restart_jump_max: Duration) -> Self {
        Self { last, anchor: None, restart_jump_max, alarm: None }
    }

    /// The time, without taking it: what horizons are computed from.
    pub fn read(&mut self, now: Now) -> UnixMillis {
        let (anchor, since) = *self.anchor.get_or_insert_with(|| {
            let anchor = match self.last {
                None => now.wall,
                Some(last) if now.wall > last.plus(self.restart_jump_max) => last,
                // A clock slightly behind what was signed is right: what was signed used the slack.
                // Anchoring there again would let the slack add up over restarts.
                Some(last) if now.wall.plus(SLACK) >= last => now.wall,
                Some(last) => last,
            };
            (anchor, now.uptime)
        });
        let passed = now.uptime.saturating_sub(since);
        let latest = anchor.plus(passed).plus(SLACK);
        let earliest = self.last.unwrap_or_default();
        self.alarm = if now.wall > latest {
            Some(ClockAlarm::RanAhead { by: now.wall.since(latest) })
        } else if now.wall.plus(SLACK) < earliest {
            Some(ClockAlarm::WentBack { by: earliest.since(now.wall) })
        } else {
            None
        };
        // While the clock stands before what was signed, uptime alone moves time on.
        let floor = if self.alarm.is_some() { anchor.plus(passed).min(latest) } else { UnixMillis::default() };
        now.wall.min(latest).max(floor).max(earliest)
    }

    /// A time to sign: later than every one before, by a millisecond if need be.
    pub fn take(&mut self, now: Now) -> UnixMillis {
        let read = self.read(now);
        let time = match self.last {
            Some(last) if read <= last => last.plus(Duration::from_millis(1)),
            _ => read,
        };
        self.last = Some(time);
        time
    }

    /// Something of ours was signed at this time, by whoever published before: nothing is dated before it.
    pub fn raise(&mut self, seen: UnixMillis) {
        self.last = Some(self.last.map_or(seen, |last| last.max(seen)));
    }

    /// What was wrong with the clock at the last reading.
    #[must_use]
    pub const fn alarm(&self) -> Option<ClockAlarm> {
        self.alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn at(wall: u64, uptime_secs: u64) -> Now {
        Now::new(UnixMillis::from_millis(wall), Duration::from_secs(uptime_secs))
    }

    fn clock(last: u64) -> SigningClock {
        SigningClock::new(Some(UnixMillis::from_millis(last)), Duration::from_hours(7 * 24))
    }

    #[test]
    fn signed_times_rise_strictly_even_if_the_clock_stands_still() {
        let mut clock = clock(1_000);
        let times: Vec<_> = (0..4).map(|_| clock.take(at(5_000, 0)).millis()).collect();
        assert_eq!(times, [5_000, 5_001, 5_002, 5_003]);
    }

    #[test]
    fn a_leap_of_the_clock_is_held_to_uptime_and_five_seconds() {
        let mut clock = clock(10 * DAY);
        assert_eq!(clock.take(at(10 * DAY + 1_000, 0)).millis(), 10 * DAY + 1_000);
        let held = clock.take(at(3_650 * DAY, 60)).millis();
        assert_eq!(held, 10 * DAY + 1_000 + 60_000 + 5_000);
        assert!(matches!(clock.alarm(), Some(ClockAlarm::RanAhead { .. })));
    }

    #[test]
    fn a_step_back_is_noticed_and_time_goes_on_with_uptime() {
        let mut clock = clock(10 * DAY);
        let before = clock.take(at(10 * DAY + 1_000, 0));
        let after = clock.take(at(9 * DAY, 30));
        assert!(after > before);
        assert_eq!(after.millis(), 10 * DAY + 1_000 + 30_000);
        assert!(matches!(clock.alarm(), Some(ClockAlarm::WentBack { .. })));
    }

    #[test]
    fn after_a_restart_a_week_is_believed_and_a_decade_waits_for_the_operator() {
        let mut week = clock(10 * DAY);
        assert_eq!(week.take(at(16 * DAY, 0)).millis(), 16 * DAY);
        let mut decade = clock(10 * DAY);
        assert!(decade.take(at(3_650 * DAY, 0)).millis() <= 10 * DAY + 5_000);
        assert!(decade.alarm().is_some());
        let last = Some(UnixMillis::from_millis(10 * DAY));
        let mut confirmed = SigningClock::new(last, Duration::MAX);
        assert_eq!(confirmed.take(at(3_650 * DAY, 1)).millis(), 3_650 * DAY);
        assert_eq!(confirmed.alarm(), None);
    }
}
