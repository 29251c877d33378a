//! Keys that were missed, fetched one version after the other.
//!
//! The newest `keys` carry the signatures of the roots before them alone (design rule 20). A device
//! that missed a change of roots finds that nobody it trusts has signed, and goes up from what it
//! holds: `keys/{version}` stand for good. A device that holds none looks for the version that its
//! pinned roots have signed, from the first on.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Action, Replica, TRIES_BEFORE_REREAD};
use crate::clock::Now;
use crate::limits::{KEYS_BYTES_MAX, KEYS_STEPS_MAX};
use crate::refusal::Refusal;
use crate::update::Address;

/// First and longest rest after nothing was found: whoever can put false `keys` on the topic should
/// not keep devices busy.
const REST_MIN: Duration = Duration::from_mins(1);
const REST_MAX: Duration = Duration::from_hours(1);

/// The way from the keys held to the newest.
#[derive(Debug, Default)]
pub(super) struct Climb {
    /// The version asked for; `None` while there is no reason to, and while resting.
    next: Option<u64>,
    /// Versions asked for on this way.
    steps: u32,
    /// Ways in a row that ended without the newest keys.
    failures: u32,
    rest_until: Option<Duration>,
    /// The newest `keys`, which nobody trusted so far has signed.
    newest: Vec<u8>,
}

impl Climb {
    /// What to ask for.
    pub(super) fn wanted(&self) -> Option<Address> {
        self.next.map(|version| Address::KeysAt { version })
    }

    /// When the rest ends.
    pub(super) const fn deadline(&self) -> Option<Duration> {
        self.rest_until
    }

    /// Begins, unless it is on its way or resting.
    fn begin(&mut self, held: Option<u64>, newest: &[u8]) {
        self.newest.clear();
        // Larger than any keys can be: whatever it is, it will never be believed.
        if newest.len() <= KEYS_BYTES_MAX {
            self.newest.extend_from_slice(newest);
        }
        if self.next.is_none() && self.rest_until.is_none() {
            self.steps = 0;
            self.next = Some(held.unwrap_or_default().saturating_add(1));
        }
    }

    /// Goes on with the version after this one; says whether that is allowed.
    fn step(&mut self, version: u64) -> bool {
        self.steps += 1;
        self.next = Some(version.saturating_add(1)).filter(|_| self.steps < KEYS_STEPS_MAX);
        self.next.is_some()
    }

    fn rest(&mut self, uptime: Duration) {
        let rest = REST_MIN.saturating_mul(1 << self.failures.min(16)).min(REST_MAX);
        self.failures = self.failures.saturating_add(1);
        self.next = None;
        self.rest_until = Some(uptime + rest);
    }
}

impl Replica {
    /// The newest keys were refused: those in between may be missing.
    pub(super) fn miss_keys(&mut self, refusal: &Refusal, newest: &[u8]) {
        if is_untrusted(refusal) {
            let held = self.keys().map(|keys| keys.version);
            self.climb.begin(held, newest);
        }
    }

    /// The newest keys are held.
    pub(super) fn found_newest_keys(&mut self) {
        self.climb = Climb::default();
    }

    pub(super) fn on_keys_at(&mut self, now: Now, version: u64, sealed: &[u8]) -> Result<(), Refusal> {
        if self.climb.next != Some(version) {
            return Ok(());
        }
        match self.take_keys(now, sealed, Some(version)) {
            Ok(()) => {}
            // Not what the pinned roots have signed; perhaps the next one is.
            Err(refusal) if self.keys.is_none() && is_untrusted(&refusal) => {
                self.go_up(now, version);
                return Err(refusal);
            }
            Err(refusal) => return Err(refusal),
        }
        let newest = core::mem::take(&mut self.climb.newest);
        if self.take_keys(now, &newest, None).is_ok() {
            self.found_newest_keys();
            // What was refused before they were known may be good now.
            self.asks.remove(&Address::Manifest);
            self.reread = true;
        } else {
            self.climb.newest = newest;
            self.go_up(now, version);
        }
        Ok(())
    }

    fn go_up(&mut self, now: Now, version: u64) {
        if !self.climb.step(version) {
            self.rest_from_climbing(now);
        }
    }

    fn rest_from_climbing(&mut self, now: Now) {
        self.climb.rest(now.uptime);
        self.reread_keys();
    }

    /// Reads `keys` again: what stands there now may be signed by roots that are held by now.
    fn reread_keys(&mut self) {
        if self.connected && self.keys.is_some() {
            self.actions.push_back(Action::Subscribe(Address::Keys));
        }
    }

    /// Ends a way on which nothing comes, and a rest that is over.
    pub(super) fn watch_climb(&mut self, now: Now) {
        let asked = self.climb.wanted().and_then(|address| self.asks.get(&address));
        if asked.is_some_and(|ask| ask.tries >= TRIES_BEFORE_REREAD) {
            self.rest_from_climbing(now);
        }
        if self.connected && self.climb.rest_until.is_some_and(|until| until <= now.uptime) {
            self.climb.rest_until = None;
            self.reread_keys();
        }
    }
}

/// Whether nobody trusted, or too few of them, had signed.
const fn is_untrusted(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::WrongKey { .. } | Refusal::Threshold { .. })
}
