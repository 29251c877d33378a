use std::time::Duration;

use revocast_core::{Position, Verdict};
use ring::hmac;

use super::*;
use crate::policy::Policy;
use crate::validator::{KeySet, Rejected, RevokedPairs, Validator, ValidatorConfig};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://door.example";
const NOW: u64 = 1_800_000_000;
const CALL: Call<'static> = Call::Http { method: "POST", uri: "https://door.example/open" };

fn at(secs: u64) -> Now {
    Now::new(UnixTime::from_secs(secs).millis(), Duration::ZERO)
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn prover(seed: u8) -> Prover {
    Prover::from_seed(&[seed; 32])
}

/// A token bound to `jkt`, or to nothing.
fn token(jti: &str, jkt: Option<Thumbprint>) -> String {
    let cnf = jkt.map(|jkt| format!(r#","cnf":{{"jkt":"{jkt}"}}"#)).unwrap_or_default();
    let claims = format!(
        r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","jti":"{jti}","iat":{},"exp":{}{cnf}}}"#,
        NOW - 100,
        NOW + 10_000
    );
    let message = format!("{}.{}", b64(r#"{"alg":"HS256"}"#), b64(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]), message.as_bytes());
    format!("{message}.{}", b64(signature))
}

fn validator() -> Validator<RevokedPairs> {
    let keys = KeySet::from_jwks(format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, b64([7; 32])).as_bytes());
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], keys.unwrap());
    let revoked = [(ISSUER.to_owned(), "gone".to_owned())].into_iter().collect();
    Validator::new(rules, revoked, Policy::strict()).unwrap()
}

/// A callee that began to remember some time ago.
fn proofs() -> Proofs {
    Proofs::new(at(NOW - 1_000))
}

fn name<T>(outcome: &Result<T, Rejected>) -> &'static str {
    outcome.as_ref().map_or_else(Rejected::reason, |_| "accepted")
}

#[test]
fn a_bound_token_is_worth_nothing_without_a_proof() {
    let (validator, prover) = (validator(), prover(1));
    let bound = token("a", Some(prover.thumbprint()));
    assert_eq!(name(&validator.verify(at(NOW), &bound)), "proof-missing");
    // Whoever holds it may look at it.
    let held = validator.verify(at(NOW), Presented::held(&bound)).unwrap();
    assert_eq!((held.jti(), held.bound_to()), ("a", Some(prover.thumbprint())));
    assert_eq!(held.verdict(), Verdict::NotRevoked { at: Position::default() });

    let proof = prover.prove(at(NOW), &CALL, &bound).unwrap();
    let proofs = proofs();
    let shown = |proof: &str| name(&validator.verify(at(NOW), Presented::proven(&bound, proof, CALL, &proofs)));
    assert_eq!(shown(&proof), "accepted");
    assert_eq!(shown(&proof), "proof-replayed");
    assert_eq!(shown(&prover.prove(at(NOW), &CALL, &bound).unwrap()), "accepted", "another one counts");

    // Bound to nothing: a proof beside it proves nothing, and it is good without.
    let free = token("a", None);
    let proof = prover.prove(at(NOW), &CALL, &free).unwrap();
    let shown = validator.verify(at(NOW), Presented::proven(&free, &proof, CALL, &proofs));
    assert_eq!(name(&shown), "proof-without-binding");
    assert_eq!(name(&validator.verify(at(NOW), &free)), "accepted");
}

#[test]
fn a_proof_counts_for_one_key_one_token_and_one_call() {
    let (validator, ours, theirs) = (validator(), prover(1), prover(2));
    let bound = token("a", Some(ours.thumbprint()));
    let other = token("b", Some(ours.thumbprint()));
    let proofs = proofs();
    let judge =
        |proof: &str, call: Call<'_>| name(&validator.verify(at(NOW), Presented::proven(&bound, proof, call, &proofs)));
    let prove = |prover: &Prover, call: &Call<'_>, token: &str| prover.prove(at(NOW), call, token).unwrap();
    assert_eq!(judge(&prove(&theirs, &CALL, &bound), CALL), "proof-of-another-key");
    assert_eq!(judge(&prove(&ours, &CALL, &other), CALL), "proof-for-another-token");
    let http = |method, uri| Call::Http { method, uri };
    for call in [
        http("GET", "https://door.example/open"),
        http("post", "https://door.example/open"),
        http("POST", "https://door.example/open/"),
        http("POST", "https://door.example/OPEN"),
        http("POST", "https://door.example"),
        http("POST", "http://door.example/open"),
        http("POST", "https://door.example:444/open"),
        http("POST", "https://other.example/open"),
        http("POST", "/open"),
        http("POST", ""),
        Call::Mqtt { topic: "https://door.example/open", payload: b"" },
    ] {
        assert_eq!(judge(&prove(&ours, &call, &bound), CALL), "proof-for-another-call", "{call:?}");
    }
    for call in [
        http("POST", "https://door.example/open?how=slowly#now"),
        http("POST", "HTTPS://Door.Example/open"),
        http("POST", "https://door.example:443/open"),
    ] {
        assert_eq!(judge(&prove(&ours, &call, &bound), CALL), "accepted", "{call:?}");
        assert_eq!(judge(&prove(&ours, &CALL, &bound), call), "accepted", "{call:?}");
    }
    // Over MQTT topic and payload count to the letter.
    let message = |topic, payload| Call::Mqtt { topic, payload };
    let call = message("doors/7/open", b"now");
    for other in [message("doors/8/open", b"now"), message("doors/7/open", b"Now"), message("doors/7/open", b""), CALL]
    {
        assert_eq!(judge(&prove(&ours, &other, &bound), call), "proof-for-another-call", "{other:?}");
    }
    assert_eq!(judge(&prove(&ours, &call, &bound), call), "accepted");
}

#[test]
fn an_old_proof_counts_for_nothing() {
    let (validator, prover) = (validator(), prover(1));
    let bound = token("a", Some(prover.thumbprint()));
    let judge = |proofs: &Proofs, made: u64, shown: u64| {
        let proof = prover.prove(at(made), &CALL, &bound).unwrap();
        name(&validator.verify(at(shown), Presented::proven(&bound, &proof, CALL, proofs)))
    };
    let fresh = proofs();
    assert_eq!(judge(&fresh, NOW - 59, NOW), "accepted");
    assert_eq!(judge(&fresh, NOW - 60, NOW), "proof-stale");
    assert_eq!(judge(&fresh, NOW + 5, NOW), "accepted");
    assert_eq!(judge(&fresh, NOW + 6, NOW), "proof-early");
    assert_eq!(judge(&Proofs::with_window(at(NOW - 99), Duration::from_secs(5)), NOW - 5, NOW), "proof-stale");
    // What was made before a restart may have been shown before it.
    let restarted = Proofs::new(at(NOW));
    assert_eq!(judge(&restarted, NOW - 1, NOW + 1), "proof-stale");
    assert_eq!(judge(&restarted, NOW, NOW + 1), "proof-stale");
    assert_eq!(judge(&restarted, NOW + 1, NOW + 1), "accepted");
    // A clock that is set back does not bring old proofs back.
    let proofs = proofs();
    let proof = prover.prove(at(NOW), &CALL, &bound).unwrap();
    let shown = |now| name(&validator.verify(at(now), Presented::proven(&bound, &proof, CALL, &proofs)));
    assert_eq!(shown(NOW), "accepted");
    assert_eq!(judge(&proofs, NOW + 1_000, NOW + 1_000), "accepted");
    assert_eq!(shown(NOW), "proof-stale");
}

/// Shown again at any time at which it is still fresh, a proof is known.
#[test]
fn a_proof_is_remembered_for_as_long_as_it_is_fresh() {
    let proofs = Proofs::with_window(at(0), Duration::from_secs(10));
    let secs = UnixTime::from_secs;
    for start in 1..200 {
        for ahead in 0..=AHEAD_SECS {
            let name = sha256(format!("{start} {ahead}").as_bytes());
            let iat = secs(1_000 * start + ahead);
            for time in 1_000 * start..=1_000 * start + 30 {
                let expected = if time == 1_000 * start {
                    Ok(())
                } else if iat.plus(10) <= secs(time) {
                    Err("proof-stale")
                } else {
                    Err("proof-replayed")
                };
                // Each on a memory of its own clock, so that time only goes on.
                if ahead == start % (AHEAD_SECS + 1) {
                    let found = proofs.remember(secs(time), iat, &name).map_err(|error| error.name());
                    assert_eq!(found, expected, "{start} +{ahead} at {time}");
                }
            }
        }
    }
}

#[test]
fn a_full_memory_refuses_instead_of_forgetting() {
    let proofs = proofs();
    let time = UnixTime::from_secs(NOW);
    let name = |number: usize| sha256(&number.to_le_bytes());
    for number in 0..PROOFS_REMEMBERED_MAX {
        assert_eq!(proofs.remember(time, time, &name(number)), Ok(()));
    }
    assert_eq!(proofs.remember(time, time, &name(PROOFS_REMEMBERED_MAX)), Err(ProofError::TooMany));
    assert_eq!(proofs.remember(time, time, &name(0)), Err(ProofError::Replayed));
    // Once they are old, there is room again.
    let later = time.plus(200);
    assert_eq!(proofs.remember(later, later, &name(0)), Ok(()));
}

/// Makes proofs with any header and claims, signed by `prover(1)`.
fn forged(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = SigningKey::from_bytes(&[1; 32]).sign(message.as_bytes()).to_bytes();
    format!("{message}.{}", b64(signature))
}

#[test]
fn what_is_no_proof_is_refused() {
    let (validator, prover) = (validator(), prover(1));
    let bound = token("a", Some(prover.thumbprint()));
    let proofs = proofs();
    let judge = |proof: &str| name(&validator.verify(at(NOW), Presented::proven(&bound, proof, CALL, &proofs)));
    let x = b64(prover.public);
    let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#);
    let header = format!(r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{jwk}}}"#);
    let ath = text_digest(bound.as_bytes());
    let claims =
        |with: &str| format!(r#"{{"htm":"POST","htu":"https://door.example/open","iat":{NOW},"ath":"{ath}",{with}}}"#);
    let good = claims(r#""jti":"1""#);
    assert_eq!(judge(&forged(&header, &good)), "accepted");
    for header in [
        format!(r#"{{"typ":"JWT","alg":"EdDSA","jwk":{jwk}}}"#),
        format!(r#"{{"alg":"EdDSA","jwk":{jwk}}}"#),
        format!(r#"{{"typ":"dpop+jwt","alg":"none","jwk":{jwk}}}"#),
        format!(r#"{{"typ":"dpop+jwt","alg":"HS256","jwk":{jwk}}}"#),
        format!(r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{jwk},"crit":["jwk"]}}"#),
        r#"{"typ":"dpop+jwt","alg":"EdDSA"}"#.to_owned(),
        r#"{"typ":"dpop+jwt","alg":"EdDSA","jwk":"x"}"#.to_owned(),
        format!(r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{x}","d":"{x}"}}}}"#),
        format!(r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{{"kty":"oct","crv":"Ed25519","x":"{x}"}}}}"#),
        format!(r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{{"kty":"OKP","crv":"X25519","x":"{x}"}}}}"#),
        r#"{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}}"#.to_owned(),
        "[]".to_owned(),
    ] {
        assert_eq!(judge(&forged(&header, &good)), "bad-proof", "{header}");
    }
    for bad in [
        claims(r#""x":1"#),
        claims(r#""jti":"""#),
        claims(r#""jti":1"#),
        claims(&format!(r#""jti":"{}""#, "x".repeat(257))),
        claims(r#""jti":"2","topic":"doors","payload":"x""#),
        claims(r#""jti":"2","jti":"3""#),
        good.replace(r#""htm":"POST","#, ""),
        good.replace(r#""htu""#, r#""uri""#),
        good.replace(&format!(r#""iat":{NOW}"#), r#""iat":"now""#),
        good.replace(&format!(r#""iat":{NOW}"#), &format!(r#""iat":{NOW}.5"#)),
        good.replace(r#""ath""#, r#""hash""#),
        "7".to_owned(),
    ] {
        assert_eq!(judge(&forged(&header, &bad)), "bad-proof", "{bad}");
    }
    for text in ["", "a.b", "..", &"A".repeat(100_000), &format!("{} ", forged(&header, &good))] {
        assert_eq!(judge(text), "bad-proof");
    }
    // An address that brings its own query is not the one of the call.
    let asked = good.replace("/open", "/open?x").replace(r#""jti":"1""#, r#""jti":"4""#);
    assert_eq!(judge(&forged(&header, &asked)), "proof-for-another-call");
    // Another signature, and a key of small order, under which signatures mean nothing.
    let proof = forged(&header, &claims(r#""jti":"5""#));
    let (message, _) = proof.rsplit_once('.').unwrap();
    assert_eq!(judge(&format!("{message}.{}", b64([0; 64]))), "proof-signature");
    assert_eq!(judge(&format!("{message}.{}", b64([0; 63]))), "proof-signature");
    let mut identity = [0; 32];
    identity[0] = 1;
    let weak = header.replace(&x, &b64(identity));
    assert_eq!(judge(&forged(&weak, &good)), "proof-signature");
    // Each byte of a good one.
    let proof = forged(&header, &claims(r#""jti":"6""#));
    for place in 0..proof.len() {
        let mut bytes = proof.clone().into_bytes();
        bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
        assert_ne!(judge(&String::from_utf8(bytes).unwrap()), "accepted", "at {place}");
    }
    assert_eq!(judge(&proof), "accepted");
}

/// A proof that was refused for the token's own sake is not used up, and a token that is refused for its proof still
/// tells what is known of it.
#[test]
fn a_refused_token_uses_up_no_proof() {
    let (validator, prover) = (validator(), prover(1));
    let bound = token("gone", Some(prover.thumbprint()));
    let proofs = proofs();
    let proof = prover.prove(at(NOW + 9_990), &CALL, &bound).unwrap();
    let shown = |now| validator.verify(at(now), Presented::proven(&bound, &proof, CALL, &proofs));
    assert_eq!(name(&shown(NOW + 10_000)), "expired");
    assert_eq!(name(&shown(NOW + 9_999)), "revoked");
    let rejected = shown(NOW + 9_999).unwrap_err();
    assert_eq!((rejected.reason(), rejected.ask), ("proof-replayed", false));
    assert_eq!(rejected.token.unwrap().verdict().name(), "revoked");
}

/// RFC 8037 appendix A.3.
#[test]
fn the_thumbprint_is_that_of_the_standard() {
    let public = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
    let thumbprint = Thumbprint::of_ed25519(public.as_slice().try_into().unwrap());
    assert_eq!(thumbprint.to_string(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert_eq!(Thumbprint::parse("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"), Some(thumbprint));
    for bad in
        ["", "kPrK", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k=", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4l"]
    {
        assert_eq!(Thumbprint::parse(bad), None, "{bad}");
    }
}
