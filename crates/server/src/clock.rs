//! Where the server's time comes from: the one place that reads clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use revocast_core::{Now, UnixMillis, UnixTime};

/// Tells the time. Injected, so that tests need not wait.
pub trait Clock: Send + Sync {
    /// One reading of both clocks.
    fn now(&self) -> Now;

    /// The wall clock in whole seconds.
    fn unix_time(&self) -> UnixTime {
        self.now().wall.floor()
    }
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Uptime counts from here.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        // A clock before 1970 reads as 1970; publishing then holds, since times would fall.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Now::new(UnixMillis::from_millis(millis), self.started.elapsed())
    }
}
