//! Which subscriptions are let through, and when to try again.
//!
//! A packet that is too large, or malformed, breaks the connection; if it is retained, it does so
//! again after every reconnect. The client tells its size but not its topic. So after such a break
//! subscriptions go out one at a time, and the one whose answer breaks the connection again is
//! quarantined, for longer each time; the others work on. Time is told, as everywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use revocast_core::Address;

/// How long subscriptions go out one at a time after a break.
const CAUTION: Duration = Duration::from_secs(30);

/// How long nothing must happen after the acknowledgement before the next one goes out.
const QUIET: Duration = Duration::from_millis(400);

/// The same, where not even an acknowledgement comes.
const SILENT: Duration = Duration::from_secs(3);

/// First and longest quarantine.
const QUARANTINE_MIN: Duration = Duration::from_secs(30);
const QUARANTINE_MAX: Duration = Duration::from_hours(1);

/// After this much good conduct a quarantine is forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_hours(1);

/// Quarantines that are remembered; an attacker who fills more topics than this is caught again.
const REMEMBERED_MAX: usize = 256;

/// First and longest wait before a refused subscription is tried again.
const REFUSED_MIN: Duration = Duration::from_secs(2);
const REFUSED_MAX: Duration = Duration::from_mins(5);

/// First and longest pause between two attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A connection that lived this long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(30);

/// Lets subscriptions through.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Asked for on this connection and not taken back.
    wanted: BTreeSet<Address>,
    /// Let through on this connection.
    standing: BTreeSet<Address>,
    /// To be let through.
    queue: VecDeque<Address>,
    /// The one whose answer is watched; nothing else goes out meanwhile.
    watched: Option<Watched>,
    /// Until then subscriptions go out one at a time.
    cautious_until: Duration,
    quarantine: BTreeMap<Address, Sentence>,
    refused: BTreeMap<Address, Refused>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    address: Address,
    until: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sentence {
    until: Duration,
    strikes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    again_at: Duration,
    tries: u32,
}

impl Gate {
    /// Asks for a subscription.
    pub(super) fn subscribe(&mut self, now: Duration, address: Address) {
        self.wanted.insert(address);
        let held_back = self.is_quarantined(now, address)
            || self.refused.get(&address).is_some_and(|refused| refused.again_at > now);
        if !held_back && !self.queue.contains(&address) {
            self.queue.push_back(address);
        }
    }

    /// Takes a subscription back; says whether it had been let through.
    pub(super) fn unsubscribe(&mut self, address: Address) -> bool {
        self.wanted.remove(&address);
        self.queue.retain(|queued| *queued != address);
        self.refused.remove(&address);
        self.watched.take_if(|watched| watched.address == address);
        self.standing.remove(&address)
    }

    /// The next subscription to let through.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Address> {
        self.release(now);
        if self.watched.is_some_and(|watched| watched.until > now) {
            return None;
        }
        self.watched = None;
        let cautious = now < self.cautious_until;
        // Live deltas, answers and deliveries are not retained and may come at any time. Asked for last, they cannot
        // break the connection while another address is being watched.
        let retained = |address: &Address| !matches!(address, Address::Live | Address::Answer | Address::Delivery);
        let place = match self.queue.iter().position(retained) {
            Some(place) if cautious => place,
            _ => 0,
        };
        let address = self.queue.remove(place)?;
        self.standing.insert(address);
        if cautious || self.quarantine.contains_key(&address) {
            self.watched = Some(Watched { address, until: now + SILENT });
        }
        Some(address)
    }

    /// When to poll again, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let watched = self.watched.filter(|_| !self.queue.is_empty()).map(|watched| watched.until);
        let waiting = |address: &Address| {
            self.wanted.contains(address) && !self.standing.contains(address) && !self.queue.contains(address)
        };
        let sentences =
            self.quarantine.iter().filter(|(address, _)| waiting(address)).map(|(_, sentence)| sentence.until);
        let refused = self.refused.values().map(|refused| refused.again_at);
        watched.into_iter().chain(sentences).chain(refused).min()
    }

    /// The broker accepted a subscription.
    pub(super) fn acknowledged(&mut self, now: Duration, address: Address) {
        self.refused.remove(&address);
        if let Some(watched) = &mut self.watched
            && watched.address == address
        {
            watched.until = now + QUIET;
        }
    }

    /// The broker refused a subscription; it is tried again later.
    pub(super) fn refused(&mut self, now: Duration, address: Address) {
        self.standing.remove(&address);
        self.watched.take_if(|watched| watched.address == address);
        if !self.wanted.contains(&address) {
            return;
        }
        let tries = self.refused.get(&address).map_or(0, |refused| refused.tries);
        let wait = doubled(REFUSED_MIN, tries, REFUSED_MAX);
        self.refused.insert(address, Refused { again_at: now + wait, tries: tries.saturating_add(1) });
    }

    /// Something harmless arrived on an address.
    pub(super) fn arrived(&mut self, address: Address) {
        self.watched.take_if(|watched| watched.address == address);
    }

    /// The connection is gone; `hostile` says that a packet broke it. Names the address to blame,
    /// if it is known; it is quarantined then.
    pub(super) fn lost(&mut self, now: Duration, hostile: bool) -> Option<Address> {
        let watched = self.watched.take().filter(|watched| watched.until > now).map(|watched| watched.address);
        let standing = std::mem::take(&mut self.standing);
        self.wanted.clear();
        self.queue.clear();
        self.refused.clear();
        if !hostile {
            return None;
        }
        let only = standing.first().copied().filter(|_| standing.len() == 1);
        let culprit = watched.or(only);
        if let Some(address) = culprit {
            self.sentence(now, address);
        }
        if !standing.is_empty() {
            self.cautious_until = now + CAUTION;
        }
        culprit
    }

    fn is_quarantined(&self, now: Duration, address: Address) -> bool {
        self.quarantine.get(&address).is_some_and(|sentence| sentence.until > now)
    }

    fn sentence(&mut self, now: Duration, address: Address) {
        let strikes = self.quarantine.get(&address).map_or(0, |sentence| sentence.strikes);
        let until = now + doubled(QUARANTINE_MIN, strikes, QUARANTINE_MAX);
        self.quarantine.insert(address, Sentence { until, strikes: strikes.saturating_add(1) });
        if self.quarantine.len() > REMEMBERED_MAX {
            let oldest = self.quarantine.iter().min_by_key(|(_, sentence)| sentence.until).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                self.quarantine.remove(&oldest);
            }
        }
    }

    /// Lets go what has waited long enough.
    fn release(&mut self, now: Duration) {
        self.quarantine.retain(|_, sentence| sentence.until + FORGIVEN_AFTER > now);
        let served = self.quarantine.iter().filter(|(_, sentence)| sentence.until <= now).map(|(address, _)| *address);
        let again = self.refused.iter().filter(|(_, refused)| refused.again_at <= now).map(|(address, _)| *address);
        let released: Vec<Address> = served
            .chain(again)
            .filter(|address| self.wanted.contains(address) && !self.standing.contains(address))
            .filter(|address| !self.queue.contains(address))
            .collect();
        for address in released {
            if let Some(refused) = self.refused.get_mut(&address) {
                // Until the broker answers, nothing is due.
                refused.again_at = now + REFUSED_MAX;
            }
            self.queue.push_back(address);
        }
    }
}

/// When to connect again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a connection (or an attempt) that lived this long: exponential with full
    /// jitter, `share` being a random number from 0 to 1. Only a connection that lived for a while
    /// counts as a success, or two devices with one name would push each other out in a tight loop.
    pub(super) fn pause(&mut self, lived: Duration, share: f64) -> Duration {
        if lived >= GOOD_LIFE {
            self.failures = 0;
        }
        let most = doubled(BACKOFF_MIN, self.failures, BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        // Never nothing: a broker that refuses at once would be asked in a tight loop.
        (BACKOFF_MIN / 4 + most.mul_f64(share.clamp(0.0, 1.0))).min(BACKOFF_MAX)
    }

    /// What broke the last connection will not break the next.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // a test that goes back in time should stop
mod tests {
    use revocast_core::Sequence;

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn ladder(to: u64) -> Address {
        Address::Ladder { from: Sequence(0), to: Sequence(to) }
    }

    fn all(gate: &mut Gate, now: Duration) -> Vec<Address> {
        std::iter::from_fn(|| gate.poll(now)).collect()
    }

    /// A broker on which some addresses hold a retained packet that breaks the connection. Plays
    /// connections until one survives with everything that was asked for and is not poisoned;
    /// returns when that was, and how many connections it took.
    fn play(gate: &mut Gate, asked: &[Address], poisoned: &[Address]) -> (Duration, u32) {
        let mut now = START;
        let mut backoff = Backoff::default();
        for connection in 1..100 {
            let began = now;
            for address in asked {
                gate.subscribe(now, *address);
            }
            let broken = loop {
                match gate.poll(now) {
                    Some(address) => {
                        now += Duration::from_millis(1);
                        gate.acknowledged(now, address);
                        if poisoned.contains(&address) {
                            break true;
                        }
                    }
                    None if gate.queue.is_empty() => break false,
                    None => now = gate.deadline().unwrap(),
                }
            };
            if !broken {
                let good = asked.iter().filter(|address| !poisoned.contains(address));
                assert!(good.into_iter().all(|address| gate.standing.contains(address)));
                return (now, connection);
            }
            if gate.lost(now, true).is_some() {
                backoff.progress();
            }
            now += backoff.pause(now - began, 1.0);
        }
        panic!("a reconnect loop");
    }

    #[test]
    fn in_good_times_everything_is_let_through_at_once() {
        let mut gate = Gate::default();
        let asked = [Address::Live, Address::Keys, Address::Manifest];
        for address in asked {
            gate.subscribe(START, address);
        }
        assert_eq!(all(&mut gate, START), asked);
        assert_eq!(gate.deadline(), None);
        // Asking again subscribes again: what is retained is delivered again.
        gate.subscribe(START, Address::Manifest);
        assert_eq!(all(&mut gate, START), [Address::Manifest]);
    }

    #[test]
    fn the_poisoned_address_is_found_and_the_others_work_within_a_minute() {
        let mut asked = vec![Address::Live, Address::Keys, Address::Manifest];
        asked.extend((1..=8).map(ladder));
        for culprit in &asked {
            let mut gate = Gate::default();
            let (when, connections) = play(&mut gate, &asked, &[*culprit]);
            assert!(when - START < Duration::from_secs(10), "{culprit} took {:?}", when - START);
            assert!(connections <= 3, "{culprit} took {connections}");
        }
    }

    #[test]
    fn four_poisoned_addresses_are_found_within_a_minute() {
        let asked: Vec<_> =
            [Address::Live, Address::Keys, Address::Manifest].into_iter().chain((1..=8).map(ladder)).collect();
        let poisoned = [Address::Manifest, ladder(1), ladder(4), ladder(8)];
        let (when, connections) = play(&mut Gate::default(), &asked, &poisoned);
        assert!(when - START < Duration::from_mins(1), "{:?}", when - START);
        assert!(connections <= 6, "{connections}");
    }

    #[test]
    fn quarantine_grows_with_every_offence_and_ends_by_itself() {
        let mut gate = Gate::default();
        let mut now = START;
        for strike in 0..10 {
            gate.subscribe(now, Address::Manifest);
            assert_eq!(all(&mut gate, now), [Address::Manifest]);
            assert_eq!(gate.lost(now, true), Some(Address::Manifest));
            gate.subscribe(now, Address::Manifest);
            assert_eq!(all(&mut gate, now), []);
            let until = gate.deadline().unwrap();
            assert_eq!(until - now, (QUARANTINE_MIN * (1 << strike)).min(QUARANTINE_MAX));
            assert_eq!(all(&mut gate, until - Duration::from_millis(1)), []);
            // Nobody needs to ask again.
            assert_eq!(all(&mut gate, until), [Address::Manifest]);
            gate.lost(until, false);
            now = until;
        }
        now += QUARANTINE_MAX + FORGIVEN_AFTER;
        gate.release(now);
        assert!(gate.quarantine.is_empty());
    }

    #[test]
    fn who_served_a_quarantine_is_watched_alone() {
        let mut gate = Gate::default();
        gate.subscribe(START, Address::Manifest);
        all(&mut gate, START);
        gate.lost(START, true);
        let later = START + 2 * QUARANTINE_MIN;
        gate.subscribe(later, Address::Keys);
        gate.subscribe(later, Address::Manifest);
        gate.subscribe(later, Address::Live);
        assert_eq!(all(&mut gate, later), [Address::Keys, Address::Manifest]);
        gate.arrived(Address::Manifest);
        assert_eq!(all(&mut gate, later), [Address::Live]);
    }

    #[test]
    fn an_ordinary_loss_blames_nobody() {
        let mut gate = Gate::default();
        gate.subscribe(START, Address::Manifest);
        all(&mut gate, START);
        assert_eq!(gate.lost(START, false), None);
        gate.subscribe(START, Address::Manifest);
        gate.subscribe(START, Address::Keys);
        assert_eq!(all(&mut gate, START), [Address::Manifest, Address::Keys]);
    }

    #[test]
    fn a_break_before_any_subscription_blames_nobody() {
        let mut gate = Gate::default();
        assert_eq!(gate.lost(START, true), None);
        gate.subscribe(START, Address::Manifest);
        gate.subscribe(START, Address::Keys);
        assert_eq!(all(&mut gate, START).len(), 2);
    }

    #[test]
    fn refused_subscriptions_are_tried_again_ever_later() {
        let mut gate = Gate::default();
        gate.subscribe(START, Address::Live);
        assert_eq!(all(&mut gate, START), [Address::Live]);
        let mut now = START;
        let mut waits = Vec::new();
        for _ in 0..10 {
            gate.refused(now, Address::Live);
            // Asking does not help.
            gate.subscribe(now, Address::Live);
            assert_eq!(all(&mut gate, now), []);
            let again_at = gate.deadline().unwrap();
            waits.push(again_at - now);
            now = again_at;
            assert_eq!(all(&mut gate, now), [Address::Live]);
        }
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[9]), (REFUSED_MIN, REFUSED_MAX));
        gate.acknowledged(now, Address::Live);
        assert_eq!(gate.deadline(), None);
    }

    #[test]
    fn an_unsubscribed_address_is_forgotten() {
        let mut gate = Gate::default();
        gate.subscribe(START, ladder(1));
        assert!(!gate.unsubscribe(ladder(1)));
        assert_eq!(all(&mut gate, START), []);
        gate.subscribe(START, ladder(1));
        all(&mut gate, START);
        assert!(gate.unsubscribe(ladder(1)));
        gate.subscribe(START, ladder(2));
        all(&mut gate, START);
        gate.refused(START, ladder(2));
        gate.unsubscribe(ladder(2));
        assert_eq!(gate.deadline(), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut gate = Gate::default();
        for to in 0..1000 {
            gate.subscribe(START, ladder(to));
            let now = START + Duration::from_secs(to);
            while gate.poll(now).is_none() {}
            gate.lost(now, true);
        }
        assert_eq!(gate.quarantine.len(), REMEMBERED_MAX);
    }

    #[test]
    fn pauses_grow_up_to_the_limit_and_shrink_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.pause(Duration::ZERO, 1.0)).collect();
        assert!(pauses.is_sorted());
        assert!(pauses[0] <= Duration::from_millis(250));
        assert_eq!(pauses[11], BACKOFF_MAX);
        // Short-lived connections do not count: another device may have our name.
        assert_eq!(backoff.pause(Duration::from_secs(5), 1.0), BACKOFF_MAX);
        assert!(backoff.pause(GOOD_LIFE, 1.0) <= Duration::from_millis(250));
        // Even the luckiest draw leaves a pause.
        assert!(Backoff::default().pause(Duration::ZERO, 0.0) >= Duration::from_millis(50));
    }
}
