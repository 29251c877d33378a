//! Until when this process may publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use revocast_core::Now;

/// A lease of the ledger as its holder counts it: by uptime, from before it asked. Shared between whoever renews it and
/// whoever publishes.
///
/// It runs out here before it runs out in the ledger. A process that was paused and goes on finds it run out at its
/// next look, and what it sends in between is harmless: nothing is stored in a term that has ended (design rule 9).
#[derive(Clone, Debug, Default)]
pub struct Permit(Arc<AtomicU64>);

impl Permit {
    /// One that has run out.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One for ever: for a ledger that only one process can open, and for tests.
    #[must_use]
    pub fn endless() -> Self {
        let permit = Self::new();
        permit.renew(Duration::MAX);
        permit
    }

    /// It now runs until this uptime.
    pub fn renew(&self, until: Duration) {
        self.0.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// It has run out.
    pub fn give_up(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_valid(&self, now: Now) -> bool {
        now.uptime.as_millis() < u128::from(self.0.load(Ordering::Acquire))
    }
}
