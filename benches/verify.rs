//! A whole token verified, beside the bare check of its signature by the same library with the same key.
//!
//! `cargo bench -p revocast-benches --bench verify`
//!
//! The bare check gets key and signature as ready as they can be: parsed, decoded, nothing left to do but mathematics.
//! The rest is what form, header, claims and revocation cost. Refused tokens stand beside the accepted one.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ed25519_dalek::VerifyingKey;
use revocast_core::{Now, UnixTime};
use revocast_device::{KeySet, Policy, RevokedPairs, Validator, ValidatorConfig};
use revocast_tests::signers::{AUDIENCE, ISSUER, NOW, SECRET, Signer, b64, claims, jwks, unb64};
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};

fn verify(criterion: &mut Criterion) {
    let signers = Signer::all();
    let keys = KeySet::from_jwks(jwks(&signers).as_bytes()).expect("a key set");
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], keys).with_type("at+jwt");
    let revoked: RevokedPairs = [(ISSUER.to_owned(), "gone".to_owned())].into_iter().collect();
    let validator = Validator::new(rules, revoked, Policy::strict()).expect("a validator");
    let now = Now::new(UnixTime::from_secs(NOW).millis(), Duration::ZERO);
    let jti = "018f0b6e-7c2a-7cc3-98c4-dc0c0c07398f";
    for signer in &signers {
        let mut group = criterion.benchmark_group(format!("verify/{}", signer.algorithm));
        let token = signer.token(claims(jti));
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        let bare = bare(signer);
        let decoded = unb64(signature);
        assert!(bare(message.as_bytes(), &decoded), "{}", signer.algorithm);
        group.bench_function("bare signature", |bencher| {
            bencher.iter(|| bare(black_box(message.as_bytes()), black_box(&decoded)));
        });

        let mut forged = decoded.clone();
        forged[0] ^= 1;
        let unknown = format!(r#"{{"alg":"{0}","kid":"{0}","typ":"at+jwt","x":1}}"#, signer.algorithm);
        let long = format!(r#"{{"alg":"{0}","kid":"{0}","typ":"at+jwt"}}{1}"#, signer.algorithm, " ".repeat(1_500));
        for (name, token, accepted) in [
            ("accepted", token.clone(), true),
            ("revoked", signer.token(claims("gone")), false),
            ("of another issuer", signer.token(claims(jti).replace("issuer.example", "other.example")), false),
            ("forged", format!("{message}.{}", b64(&forged)), false),
            ("an unknown header", signer.raw(unknown, claims(jti)), false),
            ("too large", "A".repeat(100_000), false),
            ("no base64", format!("{token}="), false),
            (
                "a header and claims of 8 KiB that nobody signed",
                format!("{}.{}.AA", b64(&long), "e".repeat(6_000)),
                false,
            ),
        ] {
            assert_eq!(validator.verify(now, &token).is_ok(), accepted, "{name}");
            group.bench_function(name, |bencher| bencher.iter(|| validator.verify(now, black_box(&token))));
        }
        group.finish();
    }
}

type Bare = Box<dyn Fn(&[u8], &[u8]) -> bool>;

/// The check of a signature and nothing else.
fn bare(signer: &Signer) -> Bare {
    // Members of the JWK, without a parser for JSON.
    let member = |name: &str| {
        let (_, rest) = signer.jwk.split_once(&format!(r#""{name}":""#)).expect("a member");
        unb64(rest.split_once('"').expect("a text").0)
    };
    let rsa = |parameters: &'static RsaParameters| -> Bare {
        let (n, e) = (member("n"), member("e"));
        Box::new(move |message, signature| {
            RsaPublicKeyComponents { n: &n, e: &e }.verify(parameters, message, signature).is_ok()
        })
    };
    match signer.algorithm {
        "HS256" => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
            Box::new(move |message, signature| hmac::verify(&key, message, signature).is_ok())
        }
        "RS256" => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        "PS256" => rsa(&signature::RSA_PSS_2048_8192_SHA256),
        "ES256" => {
            let point = [&[4], member("x").as_slice(), &member("y")].concat();
            let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
            Box::new(move |message, signature| key.verify(message, signature).is_ok())
        }
        _ => {
            let key: [u8; 32] = member("x").try_into().expect("32 bytes");
            let key = VerifyingKey::from_bytes(&key).expect("a point");
            Box::new(move |message, signature| {
                ed25519_dalek::Signature::from_slice(signature)
                    .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
            })
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = verify
}
criterion_main!(benches);
