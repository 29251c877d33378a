use revocast_core::update::{Delta, Manifest};
use revocast_core::{Digest, Epoch, SigningKey, UnixTime, seal};

use super::*;

const PREFIX: &str = "revocast";

fn realm() -> RealmId {
    RealmId::new("sensors").unwrap()
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(&format!("door-{number}")).unwrap()
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(PREFIX, vec![key().public()]);
    fleet.follow(realm(), Width::W48);
    fleet
}

fn at(sequence: u64) -> Report {
    Report {
        term: Term(1),
        position: Position { epoch: Epoch(1), sequence: Sequence(sequence) },
        age: Some(secs(1)),
        profile: Profile::Exact as u8,
        memory_bytes: 1_000,
        refusals: 0,
        last_refusal: None,
    }
}

fn sealed(report: &Report) -> Vec<u8> {
    seal(Kind::Report, &realm(), &wire::encode_report(report).unwrap(), &[])
}

fn topic(device: &DeviceId) -> String {
    DeviceTopic::Report.topic(PREFIX, &realm(), device)
}

fn manifest(sequence: u64, key: &SigningKey) -> Vec<u8> {
    let body = Manifest {
        term: Term(1),
        epoch: Epoch(1),
        sequence: Sequence(sequence),
        issued_at: UnixMillis::from_millis(1_000 + sequence),
        next_update: UnixTime::from_secs(100),
        horizon: UnixTime::from_secs(1),
        index: Digest::of(b"index"),
        ladder: Vec::new(),
    };
    seal(Kind::Manifest, &realm(), &wire::encode_manifest(&body).unwrap(), &[key])
}

fn delta(from: u64, to: u64, key: &SigningKey) -> Vec<u8> {
    let body = Delta {
        term: Term(1),
        from: Sequence(from),
        to: Sequence(to),
        issued_at: UnixMillis::from_millis(1_000 + to),
        horizon: UnixTime::from_secs(1),
        revoked: Vec::new(),
        reinstated: Vec::new(),
        cutoffs: Vec::new(),
        lifts: Vec::new(),
    };
    seal(Kind::Delta, &realm(), &wire::encode_delta(&body, Width::W48).unwrap(), &[key])
}

fn view(fleet: &Fleet, now: Duration) -> View {
    fleet.view(now, &realm(), Sequence(0)).unwrap()
}

fn spread(fleet: &mut Fleet, now: Duration, devices: std::ops::Range<usize>, report: &Report) {
    for number in devices {
        fleet.hear(now, &topic(&device(number)), &sealed(report), Standing::Claimed);
    }
}

#[test]
fn devices_are_online_while_they_report_and_current_at_the_head() {
    let mut fleet = fleet();
    fleet.recorded(secs(1), realm(), Sequence(7));
    spread(&mut fleet, secs(1), 0..6, &at(7));
    spread(&mut fleet, secs(1), 6..9, &at(5));
    spread(&mut fleet, secs(1), 9..10, &at(8));
    let seen = fleet.view(secs(1), &realm(), Sequence(5)).unwrap();
    assert_eq!((seen.known, seen.online, seen.current, seen.reached, seen.beyond), (10, 10, 6, 9, 1));
    let later = secs(1) + ONLINE_WITHIN;
    spread(&mut fleet, later, 0..4, &at(7));
    let seen = fleet.view(later + millis(1), &realm(), Sequence(7)).unwrap();
    assert_eq!((seen.known, seen.online, seen.current, seen.reached), (10, 4, 4, 4));
    // The stalest first, and its proof of currency has aged since.
    let stalest = seen.stalest.first().unwrap();
    assert_eq!((stalest.silent, stalest.age), (ONLINE_WITHIN + millis(1), Some(ONLINE_WITHIN + millis(1_001))));
    assert_eq!(seen.stalest.len(), LISTED_MAX);
    assert!(seen.stalest.is_sorted_by(|a, b| a.silent >= b.silent));
}

#[test]
fn profiles_and_memory_are_those_of_devices_online() {
    let mut fleet = fleet();
    for (number, (profile, memory_bytes)) in [(3, 100), (3, 200), (1, 300), (6, 4_000), (0, 0)].into_iter().enumerate()
    {
        let report = Report { profile, memory_bytes, ..at(1) };
        fleet.hear(secs(1), &topic(&device(number)), &sealed(&report), Standing::Claimed);
    }
    let seen = view(&fleet, secs(1));
    let count = |profile| seen.profiles.iter().find(|(found, _)| *found == profile).unwrap().1;
    assert_eq!((count(Profile::Exact), count(Profile::Filter), count(Profile::FoldedTwice)), (2, 1, 1));
    assert_eq!(seen.profiles.iter().map(|(_, count)| count).sum::<usize>(), 4, "one has no base yet");
    assert_eq!((seen.memory_median, seen.memory_max), (200, 4_000));
}

#[test]
fn the_time_to_apply_is_taken_when_a_report_first_covers_a_revocation() {
    let mut fleet = fleet();
    spread(&mut fleet, secs(1), 0..100, &at(1));
    fleet.recorded(secs(10), realm(), Sequence(2));
    spread(&mut fleet, secs(10) + millis(300), 0..90, &at(2));
    spread(&mut fleet, secs(10) + millis(1_800), 90..99, &at(2));
    // The same again says nothing new.
    spread(&mut fleet, secs(30), 0..90, &at(2));
    let seen = view(&fleet, secs(30)).propagation;
    assert_eq!((seen.revocations, seen.samples()), (1, 99));
    assert_eq!([0.5, 0.9, 0.99].map(|share| seen.quantile(share)), [350, 350, 2_000].map(|ms| Some(millis(ms))));
    // The last one was away for longer than a device may be and count as online.
    spread(&mut fleet, secs(10) + ONLINE_WITHIN, 99..100, &at(2));
    assert_eq!(view(&fleet, secs(30)).propagation.samples(), 99);
    // One report covers several revocations, of which one a second is followed.
    fleet.recorded(secs(200), realm(), Sequence(3));
    fleet.recorded(secs(200) + millis(500), realm(), Sequence(4));
    fleet.recorded(secs(201), realm(), Sequence(5));
    fleet.report(secs(201), realm(), device(99), &at(2), false);
    fleet.report(secs(202), realm(), device(99), &at(5), false);
    let seen = view(&fleet, secs(202));
    assert_eq!((seen.propagation.revocations, seen.propagation.samples()), (3, 101));
    assert_eq!(seen.applied.0.iter().sum::<u64>(), 101);
    assert_eq!(Propagation { revocations: 0, buckets: [0; APPLY_BUCKETS] }.quantile(0.5), None);
}

#[test]
fn what_took_longer_than_the_last_bucket_reads_as_its_bound() {
    let mut buckets = [0; APPLY_BUCKETS];
    *buckets.last_mut().unwrap() = 3;
    assert_eq!(Propagation { revocations: 1, buckets }.quantile(0.5), Some(secs(300)));
}

#[test]
fn a_sequence_is_applied_once_enough_of_those_online_report_it() {
    let mut fleet = fleet();
    let applied = |fleet: &mut Fleet, now, sequence, share| fleet.is_applied(now, &realm(), Sequence(sequence), share);
    fleet.recorded(secs(1), realm(), Sequence(5));
    // Of none, none has it.
    assert!(!applied(&mut fleet, secs(1), 5, 0.0));
    spread(&mut fleet, secs(1), 0..100, &at(4));
    assert!(applied(&mut fleet, secs(1), 4, 1.0) && !applied(&mut fleet, secs(1), 5, 0.0));
    spread(&mut fleet, secs(2), 0..99, &at(5));
    assert!(applied(&mut fleet, secs(2), 5, 0.99) && !applied(&mut fleet, secs(2), 5, 0.995));
    // The last one has gone silent: those that are online all have it.
    let later = secs(2) + ONLINE_WITHIN;
    assert!(applied(&mut fleet, later, 5, 1.0));
    // Those that went silent with it do not stand in for one that is there without it.
    let last = later + secs(60);
    spread(&mut fleet, last, 99..100, &at(4));
    assert!(!applied(&mut fleet, last, 5, 0.5));
    // What does not exist is not applied by whoever claims it.
    spread(&mut fleet, last, 99..100, &at(u64::MAX));
    assert!(!applied(&mut fleet, last, 5, 0.5));
    assert!(!fleet.is_applied(last, &RealmId::new("other").unwrap(), Sequence(0), 0.0));
}

#[test]
fn a_device_that_claims_less_than_before_is_counted_as_set_back() {
    let mut fleet = fleet();
    fleet.recorded(secs(1), realm(), Sequence(9));
    spread(&mut fleet, secs(1), 0..1, &at(9));
    spread(&mut fleet, secs(2), 0..1, &at(3));
    assert_eq!(view(&fleet, secs(2)).heard, Heard { reports: 2, set_back: 1, ..Heard::default() });
    assert_eq!(view(&fleet, secs(2)).current, 0);
    assert!(!fleet.is_applied(secs(2), &realm(), Sequence(9), 1.0));
    // Another term is another count.
    spread(&mut fleet, secs(3), 0..1, &Report { term: Term(2), ..at(2) });
    assert_eq!(view(&fleet, secs(3)).heard.set_back, 1);
}

#[test]
fn refusals_that_rise_name_their_device_and_cause() {
    let mut fleet = fleet();
    let rollback = Refusal::COUNT as u8 - 10;
    assert_eq!(Refusal::name_of(rollback), Some("rollback"));
    let refused = |refusals, last| Report { refusals, last_refusal: Some(last), ..at(1) };
    // What a device had refused before it was first heard of is not news.
    fleet.report(secs(1), realm(), device(0), &refused(40, rollback), false);
    assert!(view(&fleet, secs(1)).refusing.is_empty());
    fleet.report(secs(2), realm(), device(0), &refused(43, rollback), false);
    let seen = view(&fleet, secs(2));
    let listed = seen.refusing.first().unwrap();
    assert_eq!((listed.rise, listed.repeated, listed.refusal, seen.attacked), (3, false, Some("rollback"), 0));
    // It was started again and counts from zero; and again it refuses.
    fleet.report(secs(3), realm(), device(0), &refused(2, rollback), false);
    fleet.report(secs(3), realm(), device(1), &refused(0, 0), false);
    fleet.report(secs(4), realm(), device(1), &refused(u64::MAX, 250), false);
    let seen = view(&fleet, secs(4));
    assert_eq!(seen.attacked, 1);
    assert_eq!(
        seen.refusing.iter().map(|listed| (listed.rise, listed.refusal)).collect::<Vec<_>>(),
        [(REFUSALS_PER_REPORT_MAX, None), (5, Some("rollback"))]
    );
    assert_eq!(seen.refusals[usize::from(rollback)], 5);
    assert_eq!(seen.refusals[Refusal::COUNT], REFUSALS_PER_REPORT_MAX);
    assert!(view(&fleet, secs(5) + REFUSING_WITHIN).refusing.is_empty());
}

#[test]
fn the_stalest_make_room_and_the_count_of_each_sequence_stays_right() {
    let mut fleet = fleet();
    fleet.devices_max = 64;
    fleet.recorded(secs(0), realm(), Sequence(1_000));
    for number in 0..500 {
        fleet.report(secs(number / 3), realm(), device(number as usize), &at(number % 7), false);
        let devices = fleet.realms.get(&realm()).unwrap();
        assert!(devices.records.len() <= 64);
        assert_eq!(devices.tally.values().sum::<usize>(), devices.records.len());
    }
    let seen = view(&fleet, secs(166));
    assert_eq!(seen.heard.forgotten as usize + seen.known, 500);
    // Those that were heard last are still there.
    let devices = fleet.realms.get(&realm()).unwrap();
    assert!((460..500).all(|number| devices.records.contains_key(&device(number))));
}

#[test]
fn devices_that_were_all_heard_at_once_are_not_all_forgotten_at_once() {
    let mut fleet = fleet();
    fleet.devices_max = 32;
    spread(&mut fleet, secs(1), 0..33, &at(1));
    assert_eq!(view(&fleet, secs(1)).known, 31);
}

#[test]
fn garbage_is_dropped_and_counted() {
    let mut fleet = fleet();
    let good = sealed(&at(1));
    let door = topic(&device(0));
    let mut trailing = good.clone();
    trailing.push(0);
    let other = seal(Kind::Report, &RealmId::new("other").unwrap(), &wire::encode_report(&at(1)).unwrap(), &[]);
    let question = seal(Kind::Ask, &realm(), b"?", &[]);
    let malformed: &[(&str, &[u8])] = &[
        (&door, b""),
        (&door, b"garbage"),
        (&door, &good[..good.len() - 1]),
        (&door, &trailing),
        (&door, &[0xff; 4_096]),
        (&door, &other),
        (&door, &question),
        ("revocast/sensors/devices/two words/report", &good),
        ("revocast/sensors/devices/door-1/ask", &good),
        ("revocast/sensors/keys", &good),
        ("revocast/sensors/live", &good),
        ("revocast/sensors/manifest", b"garbage"),
        ("revocast/SENSORS/devices/door-1/report", &good),
        ("elsewhere/sensors/devices/door-1/report", &good),
        ("revocast", &good),
        ("", &good),
    ];
    for (topic, payload) in malformed {
        fleet.hear(secs(1), topic, payload, Standing::Claimed);
    }
    fleet.hear(secs(1), "revocast/other/devices/door-1/report", &other, Standing::Claimed);
    let expected = Heard { malformed: malformed.len() as u64, foreign: 1, ..Heard::default() };
    assert_eq!(view(&fleet, secs(1)).heard, expected);
    assert_eq!(view(&fleet, secs(1)).known, 0);
    fleet.hear(secs(1), &door, &good, Standing::Claimed);
    assert_eq!(view(&fleet, secs(1)).known, 1);
}

#[test]
fn only_what_a_publisher_signed_was_seen_and_a_delta_counts_without_a_gap() {
    let mut fleet = fleet();
    let stranger = SigningKey::from_seed([4; 32]);
    let (standing, live) = ("revocast/sensors/manifest", "revocast/sensors/live");
    fleet.recorded(secs(1), realm(), Sequence(20));
    fleet.hear(secs(1), standing, &manifest(9, &stranger), Standing::Claimed);
    fleet.hear(secs(1), live, &delta(0, 9, &stranger), Standing::Claimed);
    assert_eq!((fleet.sighting(&realm()), view(&fleet, secs(1)).heard.forged), (None, 2));
    // Before a manifest, nobody knows what a delta begins after.
    fleet.hear(secs(1), live, &delta(2, 3, &key()), Standing::Claimed);
    assert_eq!(fleet.sighting(&realm()), None);
    fleet.hear(secs(1), standing, &manifest(3, &key()), Standing::Claimed);
    let mut seen = |topic, payload: &[u8]| {
        fleet.hear(secs(1), topic, payload, Standing::Claimed);
        fleet.sighting(&realm()).unwrap().sequence.0
    };
    assert_eq!(seen(live, &delta(3, 5, &key())), 5);
    assert_eq!(seen(live, &delta(6, 7, &key())), 5, "6 may not be there");
    assert_eq!(seen(live, &delta(4, 6, &key())), 6);
    assert_eq!(seen(live, &delta(4, 6, &key())), 6);
    assert_eq!(seen(standing, &manifest(4, &key())), 6, "an old one takes nothing back");
    assert_eq!(seen(standing, b""), 6);
    assert_eq!(seen(standing, &manifest(8, &key())), 8);
    assert!(fleet.is_published(&realm(), Sequence(8)) && !fleet.is_published(&realm(), Sequence(9)));
    // A manifest beyond the ledger is that of another history, and says nothing of ours.
    fleet.hear(secs(1), standing, &manifest(21, &key()), Standing::Claimed);
    assert!(!fleet.is_published(&realm(), Sequence(8)));
    fleet.reaches(&realm(), Sequence(21));
    assert!(fleet.is_published(&realm(), Sequence(8)));
}

/// Design rule 21: whoever waits until devices have applied something waits for those that prove themselves, where there are
/// any; and of an enrolled device nothing counts that its key has not signed.
#[test]
fn where_devices_are_enrolled_only_those_that_prove_themselves_are_waited_for() {
    let mut fleet = fleet();
    fleet.recorded(secs(1), realm(), Sequence(5));
    let applied = |fleet: &mut Fleet, now| fleet.is_applied(now, &realm(), Sequence(5), 1.0);
    let says = |fleet: &mut Fleet, number, sequence, standing| {
        fleet.hear(secs(1), &topic(&device(number)), &sealed(&at(sequence)), standing);
    };
    says(&mut fleet, 0, 5, Standing::Claimed);
    assert!(applied(&mut fleet, secs(1)), "nobody is enrolled");
    fleet.enroll(&realm(), true);
    assert!(!applied(&mut fleet, secs(1)), "a claim");
    says(&mut fleet, 1, 5, Standing::Unproven);
    assert!(!applied(&mut fleet, secs(1)));
    says(&mut fleet, 1, 4, Standing::Proven);
    assert!(!applied(&mut fleet, secs(1)));
    says(&mut fleet, 1, 5, Standing::Unproven);
    assert!(!applied(&mut fleet, secs(1)));
    says(&mut fleet, 1, 5, Standing::Proven);
    assert!(applied(&mut fleet, secs(1)));
    // One that lags is waited for, and one that only claims to lag is not.
    says(&mut fleet, 2, 1, Standing::Claimed);
    assert!(applied(&mut fleet, secs(1)));
    says(&mut fleet, 3, 1, Standing::Proven);
    assert!(!applied(&mut fleet, secs(1)));
    let seen = view(&fleet, secs(1));
    assert_eq!((seen.online, seen.proven, seen.enrolled, seen.heard.unproven), (4, 2, true, 2));
    says(&mut fleet, 3, 5, Standing::Proven);
    assert!(applied(&mut fleet, secs(1)));
}
