//! A question takes no memory: counted by an allocator that counts.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::time::Duration;

use revocast_core::{Address, Claims, Jti, Now, Profile, UnixTime, Verdict};
use revocast_device::{Checker, KeySet, Policy, RevokedPairs, Validator, ValidatorConfig};
use revocast_tests::follower::prompt;
use revocast_tests::forge::{Forge, START};
use revocast_tests::signers::{AUDIENCE, ISSUER, NOW, Signer, b64, claims, jwks};

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

/// What a whole token takes: its three parts decoded, a list of members for header and claims, and the texts that are
/// handed on. What is refused before its signature is checked takes no more than the parts.
#[test]
fn a_verified_token_takes_memory_a_few_times() {
    let signers = Signer::all();
    let keys = KeySet::from_jwks(jwks(&signers).as_bytes()).unwrap();
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], keys).with_type("at+jwt");
    let validator = Validator::new(rules, RevokedPairs::default(), Policy::strict()).unwrap();
    let now = Now::new(UnixTime::from_secs(NOW).millis(), Duration::ZERO);
    let count = |token: &str, accepted: bool| {
        let verify = || assert_eq!(validator.verify(now, token).is_ok(), accepted);
        // The first one of a thread sets up what `arc-swap` keeps for it.
        verify();
        allocation_counter::measure(verify)
    };
    for signer in &signers {
        let token = signer.token(claims("good"));
        let (message, _) = token.rsplit_once('.').unwrap();
        let accepted = count(&token, true);
        println!("{}: {accepted:?}", signer.algorithm);
        // Three parts, two lists of members, jti and sub; ring takes some for RSA.
        let most = if signer.algorithm.ends_with("S256") && signer.jwk.contains("RSA") { 30 } else { 7 };
        assert!(accepted.count_total <= most, "{}: {accepted:?}", signer.algorithm);
        assert!(accepted.bytes_max < 4_096, "{}: {accepted:?}", signer.algorithm);
        for refused in [
            format!("{message}.{}", b64([7; 64])),
            signer.raw(format!(r#"{{"alg":"{0}","kid":"{0}","x":1}}"#, signer.algorithm), claims("good")),
            "A".repeat(1 << 20),
            format!("{token}="),
            format!("{token}.x"),
        ] {
            let refused = count(&refused, false);
            assert!(refused.count_total <= accepted.count_total, "{refused:?}");
        }
    }
}
