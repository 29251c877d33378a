//! What the publisher decides, over the ledger in memory and a clock that is set.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use revocast_core::{FingerprintFunction, Fingerprinter, RealmId, RealmKey, Width};

use super::*;
use crate::ledger::{Action, Expiry, Ledger as _, LedgerFuture, MemoryLedger, Request};

const START: u64 = 1_800_000_000;
const YEAR: u64 = 365 * 24 * 3_600;
const HEARTBEAT: u64 = 30;

fn ready<T>(future: LedgerFuture<'_, T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value.unwrap(),
        Poll::Pending => panic!("the ledger in memory answers at once"),
    }
}

/// A publisher, its ledger, its clock, and what stands at the broker.
struct Bench {
    ledger: MemoryLedger,
    realm: Realm,
    settings: Settings,
    publisher: Publisher,
    /// Seconds since the start.
    uptime: u64,
    /// By how many seconds the clock is wrong.
    wrong: i64,
    shelf: BTreeMap<Address, Vec<u8>>,
    salt: u8,
}

impl Bench {
    fn new(settings: &Settings) -> Self {
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([3; 16]), Width::W48);
        let realm = Realm::new(RealmId::new("r").unwrap(), "i", fingerprinter, UnixTime::from_secs(START));
        let settings = Settings { manifest_every: Duration::ZERO, ..settings.clone() };
        let ledger = MemoryLedger::new();
        ready(ledger.create_realm(realm.clone(), Vec::new()));
        let publisher =
            load(&ledger, &realm, &settings, Now::new(UnixMillis::from_millis(START * 1_000), Duration::ZERO));
        let mut bench =
            Self { ledger, realm, settings, publisher, uptime: 0, wrong: 0, shelf: BTreeMap::new(), salt: 0 };
        bench.round();
        bench
    }

    fn now(&self) -> Now {
        let wall = (START + self.uptime).saturating_add_signed(self.wrong);
        Now::new(UnixMillis::from_millis(wall * 1_000), Duration::from_secs(self.uptime))
    }

    fn revoke(&self, names: impl Iterator<Item = String>, exp: u64) {
        let exp = Expiry::Vouched(UnixTime::from_secs(exp));
        let requests: Vec<Request> = names
            .map(|jti| Request { action: Action::Revoke { jti, exp }, reason: None, actor: "test".into() })
            .collect();
        for part in requests.chunks(5_000) {
            ready(self.ledger.append(self.realm.id, UnixTime::from_secs(START + self.uptime), part.to_vec()));
        }
    }

    fn catch_up(&mut self) {
        for entry in ready(self.ledger.scan(self.realm.id, self.publisher.book().sequence(), usize::MAX)) {
            self.publisher.take(&entry).unwrap();
        }
    }

    /// One round as a server does it; why an epoch was built, if one was.
    fn round(&mut self) -> Option<EpochCause> {
        self.catch_up();
        let live = self.publisher.plan_live(self.now()).unwrap();
        self.execute(&live);
        let mut cause = None;
        self.publisher.count_forgettable(self.now());
        let figures = self.publisher.epoch_figures(self.now());
        if let Some(draft) = self.publisher.draft(self.now()).unwrap() {
            cause = figures.due();
            self.salt += 1;
            let filtered = draft.filter(&Coverage::default(), || Salt([self.salt; 16])).unwrap();
            let built = filtered.build(&Coverage::default(), Vec::new()).unwrap();
            self.publisher.install(self.now(), built);
        }
        let plan = self.publisher.plan_standing(self.now()).unwrap();
        self.execute(&plan);
        cause
    }

    fn execute(&mut self, plan: &Plan) {
        ready(self.ledger.store_objects(self.realm.id, self.publisher.term(), plan.puts.clone(), Vec::new()));
        self.send(plan);
        ready(self.ledger.store_objects(self.realm.id, self.publisher.term(), Vec::new(), plan.deletes.clone()));
        self.publisher.done(plan);
    }

    fn send(&mut self, plan: &Plan) {
        for step in &plan.steps {
            match step {
                Step::Live { .. } | Step::ReadBack { .. } => {}
                Step::Retain { address, bytes } => {
                    self.shelf.insert(*address, bytes.clone());
                }
                Step::Clear { address } => {
                    self.shelf.remove(address);
                }
            }
        }
    }

    /// The server dies and begins again from what is stored.
    fn restart(&mut self) {
        self.publisher = load(&self.ledger, &self.realm, &self.settings, self.now());
        self.publisher.reconcile(self.shelf.iter().map(|(address, bytes)| (*address, Some(Digest::of(bytes)))));
    }

    fn pass(&mut self, seconds: u64) {
        self.uptime += seconds;
    }

    fn standing_manifest(&self) -> Manifest {
        let bytes = &self.shelf[&Address::Manifest];
        decode(Address::Manifest, bytes, self.realm.id, Kind::Manifest, wire::decode_manifest).unwrap()
    }

    fn epoch(&self) -> u64 {
        self.standing_manifest().epoch.0
    }
}

fn load(ledger: &MemoryLedger, realm: &Realm, settings: &Settings, now: Now) -> Publisher {
    let (head, objects) = (ready(ledger.head(realm.id)), ready(ledger.objects(realm.id)));
    let entries = ready(ledger.scan(realm.id, Sequence(0), usize::MAX));
    let signer = Signer { content: SigningKey::from_seed([7; 32]) };
    Publisher::load(realm.clone(), settings.clone(), signer, now, head, objects, entries).unwrap()
}

fn names(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{prefix}-{number}"))
}

#[test]
fn a_ladder_beyond_its_share_of_the_snapshot_calls_for_an_epoch() {
    let mut bench = Bench::new(&Settings::default());
    bench.revoke(names("base", 4_000), START + YEAR);
    assert_eq!(bench.round(), Some(EpochCause::Recent));
    let epoch = bench.epoch();
    let mut causes = Vec::new();
    for round in 0..60 {
        bench.pass(2);
        bench.revoke(names(&format!("more{round}"), 50), START + YEAR);
        let figures = bench.publisher.epoch_figures(bench.now());
        let cause = bench.round();
        if cause.is_none() {
            assert!(figures.ladder_bytes <= figures.ladder_bytes_max, "{figures:?}");
        }
        causes.extend(cause);
    }
    // A quarter of 4,000 are 1,000 more, which travel a little larger in many deltas than in one list.
    assert!((2..=5).contains(&causes.len()) && causes.iter().all(|cause| *cause == EpochCause::Recent), "{causes:?}");
    assert!(bench.epoch() > epoch);

    let mut generous = Bench::new(&Settings { recent_share: 1.0, ..Settings::default() });
    generous.revoke(names("base", 4_000), START + YEAR);
    generous.round();
    generous.revoke(names("more", 1_500), START + YEAR);
    generous.pass(2);
    assert_eq!(generous.round(), None);
}

#[test]
fn expired_entries_beyond_their_share_call_for_an_epoch() {
    let mut bench = Bench::new(&Settings::default());
    bench.revoke(names("long", 280), START + YEAR);
    bench.revoke(names("short", 120), START + 600);
    bench.round();
    bench.pass(400);
    bench.round();
    let epoch = bench.epoch();
    bench.pass(200 + 60);
    assert_eq!(bench.round(), Some(EpochCause::Dead));
    assert_eq!((bench.epoch(), bench.publisher.book().revoked_len()), (epoch + 1, 280));
    bench.pass(HEARTBEAT);
    assert_eq!(bench.round(), None, "nothing is expired any more");
}

#[test]
fn few_expired_entries_wait_until_the_epoch_is_old() {
    let mut bench = Bench::new(&Settings { epoch_age_max: Duration::from_hours(2), ..Settings::default() });
    bench.revoke(names("long", 50), START + YEAR);
    bench.revoke(names("short", 10), START + 600);
    bench.round();
    bench.pass(3_600);
    assert_eq!(bench.round(), None);
    bench.pass(3_600);
    assert_eq!(bench.round(), Some(EpochCause::Age));
    assert_eq!(bench.publisher.book().revoked_len(), 50);
    bench.pass(3 * 3_600);
    assert_eq!(bench.round(), None, "an old epoch in which nothing is expired stays");
}

#[test]
fn a_filter_worse_than_is_wanted_now_calls_for_an_epoch() {
    let mut bench = Bench::new(&Settings { false_positive_rate: Some(0.05), ..Settings::default() });
    bench.revoke(names("base", 4_000), START + YEAR);
    bench.round();
    // The operator wants a finer one from now on.
    bench.settings.false_positive_rate = Some(0.001);
    bench.restart();
    bench.pass(2);
    assert_eq!(bench.round(), Some(EpochCause::FilterHealth));
    let figures = bench.publisher.epoch_figures(bench.now());
    assert!(figures.filter_rate < 0.002, "{figures:?}");
    bench.pass(HEARTBEAT);
    assert_eq!(bench.round(), None);
}

/// Row 37. The clock of the server goes back by a day.
#[test]
fn a_clock_that_goes_back_a_day_is_told_and_signed_times_rise() {
    let mut bench = Bench::new(&Settings::default());
    let before = bench.standing_manifest();
    bench.wrong = -24 * 3_600;
    bench.pass(HEARTBEAT);
    bench.round();
    let after = bench.standing_manifest();
    assert!(after.issued_at > before.issued_at && after.horizon >= before.horizon, "{before:?} {after:?}");
    assert!(after.issued_at.since(before.issued_at) <= Duration::from_secs(HEARTBEAT + 5));
    assert!(matches!(bench.publisher.clock_alarm(), Some(ClockAlarm::WentBack { .. })));
}

/// Row 37. It runs ahead by ten years: nothing expires by that.
#[test]
fn a_clock_that_leaps_ten_years_is_told_and_held() {
    let mut bench = Bench::new(&Settings::default());
    bench.revoke(names("base", 100), START + YEAR);
    bench.round();
    let before = bench.standing_manifest();
    bench.wrong = 10 * YEAR.cast_signed();
    bench.pass(HEARTBEAT);
    bench.round();
    let after = bench.standing_manifest();
    assert!(after.issued_at.since(before.issued_at) <= Duration::from_secs(HEARTBEAT + 5), "{before:?} {after:?}");
    assert!(matches!(bench.publisher.clock_alarm(), Some(ClockAlarm::RanAhead { .. })));
    assert_eq!(bench.publisher.book().revoked_len(), 100);
    // Nor after a restart, with a leap of more than a week.
    bench.restart();
    bench.pass(HEARTBEAT);
    bench.round();
    assert!(bench.standing_manifest().issued_at.since(after.issued_at) <= Duration::from_secs(HEARTBEAT + 5));
    assert!(bench.publisher.clock_alarm().is_some());
}

/// Row 37. Up to five seconds are the ordinary adjustment of a clock; more is told.
#[test]
fn a_step_of_more_than_five_seconds_is_told() {
    for (wrong, told) in [(4, false), (-4, false), (20, true), (-20, true)] {
        let mut bench = Bench::new(&Settings::default());
        bench.pass(1);
        bench.wrong = wrong;
        bench.publisher.time_of_answers(bench.now());
        assert_eq!(bench.publisher.clock_alarm().is_some(), told, "{wrong} s");
    }
}

/// Row 35. Nothing can be stored, so nothing new is said; that what was said still holds is, at every heartbeat. What is
/// new is said once there is room, and no later manifest is dated before one of those.
#[test]
fn a_full_disk_ends_no_heartbeats() {
    let mut bench = Bench::new(&Settings::default());
    bench.revoke(names("base", 10), START + YEAR);
    bench.round();
    bench.pass(HEARTBEAT);
    bench.round();
    let before = bench.standing_manifest();
    bench.revoke(names("new", 1), START + YEAR);
    for beat in 1..=3 {
        bench.pass(HEARTBEAT);
        bench.catch_up();
        // Both are refused by the ledger.
        let live = bench.publisher.plan_live(bench.now()).unwrap();
        bench.publisher.not_stored(&live);
        let plan = bench.publisher.plan_standing(bench.now()).unwrap();
        assert!(!plan.puts.is_empty());
        bench.publisher.not_stored(&plan);
        let heartbeat = bench.publisher.plan_heartbeat(bench.now()).unwrap();
        assert!(heartbeat.puts.is_empty() && heartbeat.steps.len() == 1, "beat {beat}: {heartbeat:?}");
        bench.send(&heartbeat);
        assert!(bench.publisher.plan_heartbeat(bench.now()).unwrap().is_empty(), "once for each heartbeat");
    }
    let last = bench.standing_manifest();
    assert_eq!(
        (last.sequence, last.epoch, &last.ladder, last.index),
        (before.sequence, before.epoch, &before.ladder, before.index)
    );
    assert!(
        last.issued_at.since(before.issued_at) >= Duration::from_secs(3 * HEARTBEAT)
            && last.next_update > before.next_update
    );

    // The server dies, its clock goes back, and there is room again.
    bench.wrong = -2 * HEARTBEAT.cast_signed();
    bench.restart();
    bench.publisher.has_seen(&last);
    bench.round();
    let after = bench.standing_manifest();
    assert_eq!(after.sequence, Sequence(11));
    assert!(after.issued_at > last.issued_at, "{last:?} {after:?}");
}

/// A server dies after it had let an epoch stand and before it had cleared the one before. Only the objects in the
/// ledger tell of that one; it is cleared all the same, once its time has come.
#[test]
fn an_old_epoch_that_only_the_ledger_remembers_is_cleared() {
    let mut bench = Bench::new(&Settings::default());
    bench.revoke(names("base", 4_000), START + YEAR);
    bench.round();
    let old = bench.epoch();
    bench.pass(5);
    bench.revoke(names("more", 2_000), START + YEAR);
    assert!(bench.round().is_some());
    let of = |address: &Address, epoch: u64| matches!(address, Address::Index { epoch: of } | Address::Chunk { epoch: of, .. } if of.0 == epoch);
    let standing = |bench: &Bench, epoch: u64| bench.shelf.keys().filter(|address| of(address, epoch)).count();
    assert!(standing(&bench, old) > 1 && standing(&bench, old + 1) > 1);
    bench.restart();
    bench.pass(HEARTBEAT);
    bench.round();
    assert!(standing(&bench, old) > 1, "devices may still be fetching it");
    // First it is named no more, then what nobody names is cleared.
    for _ in 0..2 {
        bench.pass(bench.settings.grace.as_secs());
        bench.round();
    }
    assert_eq!(standing(&bench, old), 0);
    let stored = ready(bench.ledger.objects(bench.realm.id));
    let left = stored.iter().filter_map(|object| Address::parse(&object.address)).filter(|address| of(address, old));
    assert_eq!(left.count(), 0);
    assert!(standing(&bench, old + 1) > 1);
}

/// Row 38. After a long time without a broker there is much to cut. What waits to be sent live does not grow with it.
#[test]
fn however_much_was_cut_few_deltas_wait_to_be_sent() {
    let mut bench = Bench::new(&Settings { chunk_bytes: 4_096, ..Settings::default() });
    bench.revoke(names("away", 50_000), START + YEAR);
    bench.catch_up();
    assert!(bench.publisher.live.len() <= LIVE_DELTAS_MAX, "{}", bench.publisher.live.len());
    let plan = bench.publisher.plan_live(bench.now()).unwrap();
    assert!(plan.steps.len() <= LIVE_DELTAS_MAX);
    assert!(plan.puts.len() > 2 * LIVE_DELTAS_MAX, "the ladder carries all of it");
    bench.execute(&plan);
    assert!(bench.round().is_some(), "and is replaced by one base");
    assert_eq!(bench.standing_manifest().sequence, Sequence(50_000));
}
