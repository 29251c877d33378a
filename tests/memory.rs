//! What a device takes of its memory, counted by an allocator that counts.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::collections::BTreeSet;
use std::time::Duration;

use allocation_counter::measure;
use revocast_core::replica::Config;
use revocast_core::{
    Action, Address, Claims, Event, FingerprintFunction, Fingerprinter, Hold, Jti, Now, Profile, RealmKey, Refusal,
    Replica, UnixMillis, UnixTime, Verdict, Width,
};
use revocast_server::publisher::Settings;
use revocast_tests::follower::{Shelf, Site, prompt, small_settings};
use revocast_tests::forge::START;

const KIB: u64 = 1_024;

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([9; 16]), Width::W48)
}

/// A realm that has registered `registered` tokens and revoked the first `revoked` of them; published in chunks of the
/// usual size.
fn site(registered: usize, revoked: usize) -> (Site, Vec<String>) {
    let settings = Settings { chunk_bytes: 32 * 1_024, ..small_settings() };
    let mut site = Site::new(5, fingerprinter(), settings, |_| ());
    let jtis: Vec<String> = (0..registered).map(|number| format!("{number:08}-89ab-cdef")).collect();
    site.register(jtis.iter().map(String::as_str));
    site.pass(2_000);
    site.cover(1);
    for jti in &jtis[..revoked] {
        site.revoke(jti, START + 24 * 3_600);
    }
    site.publish();
    (site, jtis)
}

/// Follows a realm as a device does, and keeps nothing else.
fn follow(site: &Site, shelf: &Shelf, config: Config) -> Replica {
    let mut replica = Replica::new(config, site.realm.id, site.trust.clone());
    tell(&mut replica, now(site), shelf, Event::Connected);
    assert!(replica.set().base().is_some());
    replica
}

/// Tells a replica something and answers what it asks for then.
fn tell(replica: &mut Replica, now: Now, shelf: &Shelf, event: Event<'_>) {
    replica.handle(now, event);
    while let Some(action) = replica.poll_action() {
        match action {
            Action::Subscribe(address) => {
                if let Some(payload) = shelf.get(&address) {
                    replica.handle(now, Event::Packet { address, payload });
                }
            }
            Action::Persist(image) => replica.handle(now, Event::Persisted { revision: image.revision }),
            Action::Refused(refusal) => {
                assert!(matches!(refusal, Refusal::Overflow { .. } | Refusal::Gap { .. }), "{refusal}");
            }
            Action::Expose(_)
            | Action::Unsubscribe(_)
            | Action::Report(_)
            | Action::Ask(_)
            | Action::Answered { .. } => {}
        }
    }
}

fn now(site: &Site) -> Now {
    Now::new(UnixMillis::from_millis(site.time), Duration::from_millis(site.time - START * 1_000))
}

fn verdict(replica: &Replica, site: &Site, jti: &str) -> Verdict {
    let iat = Some(UnixTime::from_secs(START));
    let claims = Claims { iat, ..Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(START + 24 * 3_600)) };
    replica.set().check(now(site), &claims)
}

#[test]
fn a_download_takes_a_quarter_more_than_it_builds_and_64_kib() {
    let (site, _) = site(400_000, 100_000);
    for profile in Profile::BEST_FIRST {
        let mut held = None;
        let config = Config { artifact_bytes_max: 64 << 20, ..prompt(profile) };
        let counted = measure(|| held = Some(follow(&site, &site.shelf, config)));
        let (peak, rest) = (counted.bytes_max, counted.bytes_current.unsigned_abs());
        let base = held.unwrap().set().base().unwrap().size_bytes();
        println!("{}: base {base}, at rest {rest}, at the peak {peak}", profile.name());
        assert!(rest < base + 32 * KIB, "{}: {rest} at rest for a base of {base}", profile.name());
        assert!(peak <= rest * 5 / 4 + 64 * KIB, "{}: {peak} at the peak, {rest} at rest", profile.name());
    }
}

#[test]
fn sixty_four_kib_answer_exactly_for_twenty_thousand_revocations_and_sixteen_answer_safely() {
    let (site, jtis) = site(1_000_000, 20_000);
    for (budget, profile) in [(64 * KIB, Profile::Covered), (16 * KIB, Profile::FoldedTwice)] {
        let config = Config { hold: Hold::Budget(budget), ..Config::within(budget, 1).unwrap() };
        let mut held = None;
        let counted = measure(|| held = Some(follow(&site, &site.shelf, config)));
        let replica = held.unwrap();
        assert_eq!(replica.set().base().unwrap().profile(), profile, "{:?}", replica.holding());
        let rest = counted.bytes_current.unsigned_abs();
        assert!(rest <= budget, "{rest} bytes at rest, {budget} allowed");
        let (mut suspects, mut good) = (0_u32, 0_u32);
        for (number, jti) in jtis.iter().enumerate() {
            let revoked = number < 20_000;
            match verdict(&replica, &site, jti) {
                Verdict::Revoked { .. } => assert!(revoked, "{jti}"),
                Verdict::NotRevoked { .. } => {
                    assert!(!revoked, "{jti}");
                    good += 1;
                }
                Verdict::Suspect { .. } => {
                    assert_eq!(profile, Profile::FoldedTwice);
                    suspects += u32::from(!revoked);
                }
                Verdict::Unknown { doubt } => panic!("{doubt:?}"),
            }
        }
        let rate = f64::from(suspects) / f64::from(suspects + good);
        println!("{budget} bytes: {rest} at rest, {rate} of good tokens are suspect");
        if profile == Profile::Covered {
            assert_eq!((suspects, good), (0, 980_000));
        } else {
            let measured = replica.set().base().unwrap().false_positive_rate().unwrap();
            assert!((rate / measured - 1.0).abs() < 0.02, "{rate} of good tokens are suspect, {measured} was reported");
        }
    }
}

#[test]
fn what_came_since_the_base_stays_within_the_budget_and_nothing_is_lost() {
    // With exceptions, and from there into the filter; first a list, where one fits, then less of the same epoch.
    assert_eq!(profiles_within(16 * KIB), ["covered", "filter"]);
    assert_eq!(profiles_within(21 * KIB), ["covered", "filter", "list"]);
}

/// What a device of this budget holds while far more is revoked than fits beside its base.
fn profiles_within(budget: u64) -> Vec<&'static str> {
    let (mut site, jtis) = site(40_000, 3_000);
    let config = Config::within(budget, 1).unwrap();
    let mut replica = None;
    let mut revoked = 3_000;
    let shelf = site.shelf.clone();
    let counted = measure(|| replica = Some(follow(&site, &shelf, config)));
    let mut replica = replica.unwrap();
    let rest = counted.bytes_current;
    let mut grown = rest;
    let mut profiles = BTreeSet::new();
    // Far more than fits beside the base.
    for _ in 0..30 {
        for jti in &jtis[revoked..revoked + 50] {
            site.revoke(jti, START + 24 * 3_600);
        }
        revoked += 50;
        site.pass(9_000);
        let (deltas, now) = (site.publish(), now(&site));
        let counted = measure(|| {
            for delta in &deltas {
                tell(&mut replica, now, &site.shelf, Event::Packet { address: Address::Live, payload: delta });
            }
            let manifest = &site.shelf[&Address::Manifest];
            tell(&mut replica, now, &site.shelf, Event::Packet { address: Address::Manifest, payload: manifest });
            tell(&mut replica, now, &site.shelf, Event::Elapsed);
        });
        grown += counted.bytes_current;
        profiles.insert(replica.set().base().unwrap().profile().name());
        assert!(grown.unsigned_abs() <= budget, "{grown} bytes of {budget} after {revoked} revocations");
        for jti in &jtis[..revoked] {
            assert!(!matches!(verdict(&replica, &site, jti), Verdict::NotRevoked { .. }), "{jti}");
        }
    }
    println!("{profiles:?}, at last {:?}", replica.holding());
    assert_eq!(replica.set().doubt(now(&site)), None);
    let good = jtis[revoked..].iter().filter(|jti| matches!(verdict(&replica, &site, jti), Verdict::NotRevoked { .. }));
    assert!(good.count() > (jtis.len() - revoked) * 9 / 10, "most good tokens still are");
    profiles.into_iter().collect()
}
