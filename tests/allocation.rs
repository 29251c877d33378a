//! A question takes no memory: counted by an allocator that counts.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use revocast_core::{Address, Claims, Jti, Profile, UnixTime, Verdict};
use revocast_device::Checker;
use revocast_tests::follower::prompt;
use revocast_tests::forge::{Forge, START};

#[test]
fn a_question_allocates_nothing() {
    let forge = Forge::new(3);
    let jtis: Vec<String> = (0..500).map(|number| format!("token-{number}")).collect();
    let texts: Vec<&str> = jtis.iter().map(String::as_str).collect();
    let base = forge.epoch(1, 500, &texts, &[], 90);
    let mut device = forge.device(prompt(Profile::Exact), 100);
    device.serve(&forge.shelf(&base, &[], 500, 100));
    // Recent entries as well, so that every room of the set is entered.
    let delta = forge.delta(&forge.delta_meant((500, 501), &["recent"], &["token-7"], 100));
    assert_eq!(device.give(Address::Live, &delta), []);

    let (checker, _exposure) = Checker::new(device.exposed.clone());
    let (now, exp) = (device.now(), UnixTime::from_secs(START + 3_600));
    let ask = |text: &str| checker.check(now, &Claims::new(Jti::new(text).unwrap(), exp));
    // The first question of a thread takes hold of the set.
    assert!(matches!(ask("recent"), Verdict::Revoked { .. }));

    let absent: Vec<String> = (0..5_000).map(|number| format!("other-{number}")).collect();
    let (mut revoked, mut good) = (0, 0);
    let counted = allocation_counter::measure(|| {
        for text in texts.iter().copied().chain(absent.iter().map(String::as_str)).chain(["recent"]) {
            match ask(text) {
                Verdict::Revoked { .. } => revoked += 1,
                Verdict::NotRevoked { .. } => good += 1,
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // All but the reinstated one, and the one that came since; everything else is good.
    assert_eq!((revoked, good), (500, 5_001));
}
