//! Reading the time, the one place where it is done.

use std::future;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use revocast_core::{Now, UnixMillis};

/// Gives readings of both clocks, and waits.
pub trait Clock: Send + Sync {
    /// One reading of both.
    fn now(&self) -> Now;

    /// Waits until the uptime has reached `deadline`; for ever if there is none.
    fn until(&self, deadline: Option<Duration>) -> impl Future<Output = ()> + Send;
}

/// The clocks of the operating system.
///
/// Uptime counts from the first reading in this process, the same for every `SystemClock`, so that a
/// question and the replica it is asked of speak of the same zero. It may stand still while the
/// machine sleeps; the wall clock makes up for that, since of two ages the larger counts.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

static START: OnceLock<Instant> = OnceLock::new();

impl SystemClock {
    /// One reading of both clocks.
    #[must_use]
    pub fn now() -> Now {
        // A wall clock before 1970 is as wrong as one at 1970.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let uptime = START.get_or_init(Instant::now).elapsed();
        Now::new(UnixMillis::from_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)), uptime)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Self::now()
    }

    async fn until(&self, deadline: Option<Duration>) {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline.saturating_sub(Self::now().uptime)).await,
            None => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_never_falls_and_is_one_for_all() {
        let first = Clock::now(&SystemClock);
        let second = SystemClock::now();
        assert!(second.uptime >= first.uptime);
        assert!(second.uptime < first.uptime + Duration::from_mins(1));
        // Later than this program was written.
        assert!(second.wall > UnixMillis::from_millis(1_700_000_000_000));
    }
}
