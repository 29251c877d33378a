use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::limits::SCOPE_BYTES_MAX;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RsaEncoding, RsaKeyPair,
};

use super::*;
use crate::compact::{HEADER_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::policy::Rule;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://api.example";
const NOW: u64 = 1_800_000_000;
const SECRET: [u8; 64] = [7; 64];

/// Made for these tests, of no use elsewhere.
const RSA_KEY: &str = include_str!("test_rsa_key.b64");

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> Now {
    at(NOW)
}

fn at(secs: u64) -> Now {
    Now::new(UnixTime::from_secs(secs).millis(), Duration::ZERO)
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// Something that signs, and the JWK of its public half.
struct Signer {
    algorithm: &'static str,
    jwk: String,
    sign: Sign,
}

impl Signer {
    fn hs(algorithm: &'static str, with: hmac::Algorithm) -> Self {
        let key = hmac::Key::new(with, &SECRET);
        Self {
            algorithm,
            jwk: format!(r#"{{"kty":"oct","kid":"{algorithm}","alg":"{algorithm}","k":"{}"}}"#, b64(SECRET)),
            sign: Box::new(move |message| hmac::sign(&key, message).as_ref().to_vec()),
        }
    }

    fn rsa(algorithm: &'static str, padding: &'static dyn RsaEncoding) -> Self {
        let der = base64::engine::general_purpose::STANDARD.decode(RSA_KEY.replace('\n', "")).unwrap();
        let key = RsaKeyPair::from_pkcs8(&der).unwrap();
        let public = signature::RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
        let (n, e) = (b64(public.n), b64(public.e));
        Self {
            algorithm,
            jwk: format!(r#"{{"kty":"RSA","kid":"{algorithm}","alg":"{algorithm}","n":"{n}","e":"{e}"}}"#),
            sign: Box::new(move |message| {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }),
        }
    }

    fn ec(algorithm: &'static str, curve: &str, with: &'static signature::EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(with, pkcs8.as_ref(), &random).unwrap();
        let point = &key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let (x, y) = (b64(x), b64(y));
        Self {
            algorithm,
            jwk: format!(r#"{{"kty":"EC","crv":"{curve}","kid":"{algorithm}","x":"{x}","y":"{y}"}}"#),
            sign: Box::new(move |message| key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()),
        }
    }

    fn ed() -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap();
        Self {
            algorithm: "EdDSA",
            jwk: format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"EdDSA","x":"{}"}}"#, b64(key.public_key())),
            sign: Box::new(move |message| key.sign(message).as_ref().to_vec()),
        }
    }

    fn token(&self, claims: &str) -> String {
        self.raw(&self.header(""), claims.as_bytes())
    }

    fn header(&self, more: &str) -> String {
        format!(r#"{{"alg":"{0}","kid":"{0}"{more}}}"#, self.algorithm)
    }

    fn raw(&self, header: &str, payload: &[u8]) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        format!("{message}.{}", b64((self.sign)(message.as_bytes())))
    }
}

fn all_signers() -> Vec<Signer> {
    vec![
        Signer::hs("HS256", hmac::HMAC_SHA256),
        Signer::hs("HS384", hmac::HMAC_SHA384),
        Signer::hs("HS512", hmac::HMAC_SHA512),
        Signer::rsa("RS256", &signature::RSA_PKCS1_SHA256),
        Signer::rsa("RS384", &signature::RSA_PKCS1_SHA384),
        Signer::rsa("RS512", &signature::RSA_PKCS1_SHA512),
        Signer::rsa("PS256", &signature::RSA_PSS_SHA256),
        Signer::rsa("PS384", &signature::RSA_PSS_SHA384),
        Signer::rsa("PS512", &signature::RSA_PSS_SHA512),
        Signer::ec("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
        Signer::ec("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        Signer::ed(),
    ]
}

fn keys(signers: &[Signer]) -> KeySet {
    let jwks: Vec<&str> = signers.iter().map(|signer| signer.jwk.as_str()).collect();
    KeySet::from_jwks(format!(r#"{{"keys":[{}]}}"#, jwks.join(",")).as_bytes()).unwrap()
}

fn rules(signers: &[Signer]) -> ValidatorConfig {
    ValidatorConfig::new(ISSUER, [AUDIENCE], keys(signers))
}

fn validator(signers: &[Signer]) -> Validator<RevokedPairs> {
    Validator::new(rules(signers), revoked("gone"), Policy::strict()).unwrap()
}

fn revoked(jti: &str) -> RevokedPairs {
    [(ISSUER.to_owned(), jti.to_owned())].into_iter().collect()
}

/// Good claims; `with` replaces or adds members, `null` takes one away.
fn claims(with: &str) -> String {
    let mut members = serde_json::json!({
        "iss": ISSUER, "aud": AUDIENCE, "jti": "good", "iat": NOW - 10, "exp": NOW + 10,
    });
    let changes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&format!("{{{with}}}")).unwrap();
    let object = members.as_object_mut().unwrap();
    for (name, value) in changes {
        if value.is_null() {
            object.remove(&name);
        } else {
            object.insert(name, value);
        }
    }
    members.to_string()
}

fn hs() -> [Signer; 1] {
    [Signer::hs("HS256", hmac::HMAC_SHA256)]
}

/// How a token with these claims is rejected.
fn reason(with: &str) -> &'static str {
    let signers = hs();
    outcome(validator(&signers).verify(now(), &signers[0].token(&claims(with))))
}

fn outcome(result: Result<Token, Rejected>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(rejected) => rejected.reason(),
    }
}

#[test]
fn each_algorithm_is_accepted_and_revocation_is_honored() {
    let signers = all_signers();
    let validator = validator(&signers);
    for signer in &signers {
        let token = validator.verify(now(), &signer.token(&claims(""))).unwrap();
        assert_eq!((token.jti(), token.key_id()), ("good", Some(signer.algorithm)));
        assert_eq!(token.verdict(), Verdict::NotRevoked { at: Position::default() });
        let gone = validator.verify(now(), &signer.token(&claims(r#""jti":"gone""#))).unwrap_err();
        assert_eq!(gone.rejection, Rejection::Revoked { why: Why::Token }, "{}", signer.algorithm);
        assert_eq!(gone.token.unwrap().jti(), "gone");
    }
}

#[test]
fn no_changed_byte_of_a_signature_or_message_passes() {
    let signers = all_signers();
    let validator = validator(&signers);
    for signer in &signers {
        let token = signer.token(&claims(""));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let with = |signature: &[u8]| outcome(validator.verify(now(), &format!("{message}.{}", b64(signature))));
        assert_eq!(with(&signature), "accepted");
        for place in [0, signature.len() / 2, signature.len() - 1] {
            let mut changed = signature.clone();
            changed[place] ^= 1;
            assert_eq!(with(&changed), "bad-signature", "{} at {place}", signer.algorithm);
        }
        assert_eq!(with(&[]), "bad-signature");
        assert_eq!(with(&signature[1..]), "bad-signature");
        assert_eq!(with(&vec![0; signature.len()]), "bad-signature");
        assert_eq!(with(&[signature.as_slice(), &[0]].concat()), "bad-signature");
        let other = signer.token(&claims(r#""sub":"somebody else""#));
        let (other, _) = other.rsplit_once('.').unwrap();
        let swapped = format!("{other}.{}", b64(&signature));
        assert_eq!(outcome(validator.verify(now(), &swapped)), "bad-signature", "{}", signer.algorithm);
    }
}

#[test]
fn the_key_decides_about_the_algorithm() {
    let signers = all_signers();
    let validator = validator(&signers);
    let hs = &signers[0];
    // The public key of RS256 as the secret of HS256, and every other confusion.
    for claimed in &signers {
        for named in &signers {
            let header = format!(r#"{{"alg":"{}","kid":"{}"}}"#, claimed.algorithm, named.algorithm);
            let result = outcome(validator.verify(now(), &claimed.raw(&header, claims("").as_bytes())));
            let same = claimed.algorithm == named.algorithm;
            assert_eq!(result, if same { "accepted" } else { "algorithm-mismatch" }, "{header}");
        }
    }
    for none in ["none", "None", "NONE", "nOnE", "", "hs256", "HS256 ", "HS1", "ES512", "RSA-OAEP"] {
        let header = format!(r#"{{"alg":"{none}","kid":"HS256"}}"#);
        assert_eq!(outcome(validator.verify(now(), &hs.raw(&header, claims("").as_bytes()))), "unsupported-algorithm");
        let unsigned = format!("{}.{}.", b64(header), b64(claims("")));
        assert_eq!(outcome(validator.verify(now(), &unsigned)), "unsupported-algorithm");
    }
}

#[test]
fn keys_are_found_by_name_or_because_there_is_no_other() {
    let signers = [Signer::hs("HS256", hmac::HMAC_SHA256), Signer::ed()];
    let validator = validator(&signers);
    let with = |header: &str| outcome(validator.verify(now(), &signers[0].raw(header, claims("").as_bytes())));
    assert_eq!(with(r#"{"alg":"HS256"}"#), "accepted");
    assert_eq!(with(r#"{"alg":"ES256"}"#), "key-not-found");
    assert_eq!(with(r#"{"alg":"HS256","kid":"other"}"#), "key-not-found");
    assert_eq!(with(r#"{"alg":"HS256","kid":"../../etc/passwd"}"#), "key-not-found");
    assert_eq!(with(r#"{"alg":"HS256","kid":"' OR 1=1 --"}"#), "key-not-found");
    // Without a name in the header, the key's own counts: cutoffs go by it.
    let token = signers[0].raw(r#"{"alg":"HS256"}"#, claims("").as_bytes());
    assert_eq!(validator.verify(now(), &token).unwrap().key_id(), Some("HS256"));
}

#[test]
fn headers_that_ask_for_more_are_refused() {
    let signers = hs();
    let validator = validator(&signers);
    let with = |header: &str| outcome(validator.verify(now(), &signers[0].raw(header, claims("").as_bytes())));
    for (name, value) in [
        ("crit", r#"["exp"]"#),
        ("b64", "false"),
        ("jwk", r#"{"kty":"oct","k":""}"#),
        ("jku", r#""https://attacker.example""#),
        ("x5u", r#""https://attacker.example""#),
        ("x5c", r#"["AAAA"]"#),
        ("x5t", r#""abc""#),
        ("x5t#S256", r#""abc""#),
        ("zip", r#""DEF""#),
        ("cty", r#""JWT""#),
    ] {
        assert_eq!(with(&signers[0].header(&format!(r#","{name}":{value}"#))), "forbidden-header", "{name}");
    }
    assert_eq!(with(r#"{"kid":"HS256"}"#), "bad-header");
    assert_eq!(with(r#"{"alg":null,"kid":"HS256"}"#), "bad-header");
    assert_eq!(with(r#"{"alg":["HS256"],"kid":"HS256"}"#), "bad-header");
    assert_eq!(with(r#"{"alg":"HS256","kid":1}"#), "bad-header");
    assert_eq!(with(r#"{"alg":"HS256","kid":"HS256","typ":1}"#), "bad-header");
    assert_eq!(with(r#"{"alg":"HS256","alg":"HS256"}"#), "duplicate-name");
    assert_eq!(with(r#"{"alg":"none","\u0061lg":"HS256"}"#), "duplicate-name");
    assert_eq!(with("[]"), "bad-json");
    assert_eq!(with("\u{feff}{}"), "bad-json");
    assert_eq!(with(&("[".repeat(40) + &"]".repeat(40))), "bad-json");
    // What means nothing to us may have meant something to whoever wrote it.
    assert_eq!(with(&signers[0].header(r#","nonce":1"#)), "unknown-header");
    assert_eq!(with(&signers[0].header(r#","ALG":"none""#)), "unknown-header");
}

#[test]
fn a_token_has_one_form() {
    let signers = hs();
    let validator = validator(&signers);
    let with = |token: &str| outcome(validator.verify(now(), token));
    let token = signers[0].token(&claims(""));
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(with(&token), "accepted");
    for malformed in ["", ".", "a.b", "....", &format!("{token}.{}", parts[2]), &token.replace('.', " ")] {
        assert_eq!(with(malformed), "malformed-token", "{malformed:?}");
    }
    for bad in [
        "..".to_owned(),
        format!("{token}="),
        format!(" {token}"),
        format!("{token}\n"),
        token.replacen('.', "=.", 1),
        format!("{}.{}.!!!", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], parts[2].replace(['-', '_'], "+") + "+/"),
    ] {
        let reason = with(&bad);
        assert!(matches!(reason, "bad-base64" | "bad-json"), "{bad:?} is {reason}");
    }
    let huge = format!("{}.{}.{}", parts[0], "A".repeat(TOKEN_BYTES_MAX), parts[2]);
    assert_eq!(with(&huge), "too-large");
    assert_eq!(with(&"A".repeat(1 << 20)), "too-large");
    let long_header = signers[0].header(&format!(r#","x":"{}""#, "x".repeat(HEADER_BYTES_MAX)));
    assert_eq!(with(&signers[0].raw(&long_header, claims("").as_bytes())), "too-large");
}

/// Row 31: bits that the last character of base64 has to spare.
#[test]
fn slack_bits_are_refused() {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let signers = hs();
    let validator = validator(&signers);
    // 32 bytes of signature: 43 characters, the last with two bits to spare.
    let token = signers[0].token(&claims(r#""jti":"gone""#));
    assert_eq!(outcome(validator.verify(now(), &token)), "revoked");
    let last = token.bytes().next_back().unwrap();
    let value = ALPHABET.iter().position(|character| *character == last).unwrap();
    for slack in 1..4 {
        let spelled = format!("{}{}", &token[..token.len() - 1], char::from(ALPHABET[value | slack]));
        assert_eq!(outcome(validator.verify(now(), &spelled)), "bad-base64");
    }
}

/// Row 31: ES256 signatures have a second spelling, (r, n - s). The token stays the same token.
#[test]
fn a_malleated_token_is_as_revoked_as_its_twin() {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
        0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let signers = [Signer::ec("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)];
    let validator = validator(&signers);
    for (jti, expected) in [("gone", "revoked"), ("good", "accepted")] {
        let token = signers[0].token(&claims(&format!(r#""jti":"{jti}""#)));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut borrow = 0;
        for place in (0..32).rev() {
            let difference = i16::from(ORDER[place]) - i16::from(signature[32 + place]) - borrow;
            borrow = i16::from(difference < 0);
            signature[32 + place] = difference.rem_euclid(256) as u8;
        }
        let twin = format!("{message}.{}", b64(signature));
        assert_ne!(twin, token);
        assert_eq!(outcome(validator.verify(now(), &token)), expected);
        assert_eq!(outcome(validator.verify(now(), &twin)), expected, "the malleated one");
    }
}

/// Row 31: one `jti`, many spellings.
#[test]
fn an_escaped_jti_is_the_same_jti() {
    let signers = hs();
    let validator = validator(&signers);
    let text = |jti: &str| format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","exp":{},"jti":"{jti}"}}"#, NOW + 10);
    for spelled in ["gone", r"\u0067one", r"\u0067\u006f\u006e\u0065", r"g\u006Fne"] {
        assert_eq!(outcome(validator.verify(now(), &signers[0].token(&text(spelled)))), "revoked", "{spelled}");
    }
    assert_eq!(outcome(validator.verify(now(), &signers[0].token(&text("Gone")))), "accepted");
}

#[test]
fn claims_must_be_there_and_be_what_they_should() {
    for name in ["iss", "aud", "jti", "exp"] {
        assert_eq!(reason(&format!(r#""{name}":null"#)), "missing-claim", "{name}");
    }
    for bad in [
        r#""exp":"1800000010""#,
        r#""exp":-1"#,
        r#""exp":1e300"#,
        r#""exp":18446744073709551615"#,
        r#""exp":9007199254740992"#,
        r#""exp":true"#,
        r#""exp":[1800000010]"#,
        r#""nbf":"0""#,
        r#""iat":{}"#,
        r#""iss":1"#,
        r#""iss":["https://issuer.example"]"#,
        r#""aud":1"#,
        r#""aud":["https://api.example",1]"#,
        r#""jti":1"#,
        r#""sub":1"#,
        r#""client_id":[]"#,
        r#""azp":false"#,
    ] {
        assert_eq!(reason(bad), "bad-claim", "{bad}");
    }
    assert_eq!(reason(&format!(r#""sub":"{}""#, "x".repeat(SCOPE_BYTES_MAX + 1))), "bad-claim");
    assert_eq!(reason(r#""jti":"""#), "bad-jti");
    assert_eq!(reason(&format!(r#""jti":"{}""#, "x".repeat(257))), "bad-jti");
    assert_eq!(reason(&format!(r#""jti":"{}""#, "x".repeat(256))), "accepted");
    assert_eq!(reason(r#""sub":"somebody","client_id":"app","azp":"other","nested":{"a":[1,{"b":null}]}"#), "accepted");
}

#[test]
fn payloads_that_are_no_sane_json_object_are_refused() {
    let signers = hs();
    let validator = validator(&signers);
    let with = |payload: &[u8]| outcome(validator.verify(now(), &signers[0].raw(&signers[0].header(""), payload)));
    let good = claims("");
    assert_eq!(with(good.as_bytes()), "accepted");
    let members = &good[1..good.len() - 1];
    assert_eq!(with(format!(r#"{{{members},"exp":9999999999}}"#).as_bytes()), "duplicate-name");
    assert_eq!(with(format!(r#"{{{members},"\u0065xp":9999999999}}"#).as_bytes()), "duplicate-name");
    assert_eq!(with(format!(r#"{{{members},"o":{{"a":1,"a":2}}}}"#).as_bytes()), "duplicate-name");
    assert_eq!(with(format!("{good} ").as_bytes()), "accepted");
    for bad in [format!("{good}{good}"), format!("\u{feff}{good}"), "[]".into(), "1".into(), String::new()] {
        assert_eq!(with(bad.as_bytes()), "bad-json", "{bad}");
    }
    assert_eq!(with(format!(r#"{{{members},"x":"\ud800"}}"#).as_bytes()), "bad-json");
    assert_eq!(with(&[good.as_bytes(), b"\xff"].concat()), "bad-json");
    let deep = format!(r#"{{{members},"x":{}{}}}"#, "[".repeat(16), "]".repeat(16));
    assert_eq!(with(deep.as_bytes()), "bad-json");
}

#[test]
fn issuer_audience_and_type_must_be_the_expected_ones() {
    assert_eq!(reason(r#""iss":"https://issuer.example/""#), "wrong-issuer");
    assert_eq!(reason(r#""aud":"https://api.example/""#), "wrong-audience");
    assert_eq!(reason(r#""aud":[]"#), "wrong-audience");
    assert_eq!(reason(r#""aud":["x","y"]"#), "wrong-audience");
    assert_eq!(reason(r#""aud":["x","https://api.example"]"#), "accepted");

    let signers = hs();
    let typed = Validator::new(rules(&signers).with_type("at+jwt"), revoked("gone"), Policy::strict()).unwrap();
    let with =
        |more: &str| outcome(typed.verify(now(), &signers[0].raw(&signers[0].header(more), claims("").as_bytes())));
    assert_eq!(with(r#","typ":"at+jwt""#), "accepted");
    assert_eq!(with(r#","typ":"AT+JWT""#), "accepted");
    assert_eq!(with(r#","typ":"application/at+jwt""#), "accepted");
    assert_eq!(with(r#","typ":"JWT""#), "wrong-type");
    assert_eq!(with(r#","typ":"""#), "wrong-type");
    assert_eq!(with(""), "wrong-type");
}

#[test]
fn times_are_compared_to_the_second() {
    let signers = hs();
    let strict = validator(&signers);
    let lax = Validator::new(rules(&signers).with_leeway_secs(5), revoked("gone"), Policy::strict()).unwrap();
    let token = |with: String| signers[0].token(&claims(&with));
    for (with, by_strict, by_lax) in [
        (format!(r#""exp":{}"#, NOW + 1), "accepted", "accepted"),
        (format!(r#""exp":{NOW}"#), "expired", "accepted"),
        (format!(r#""exp":{NOW}.9"#), "bad-claim", "bad-claim"),
        (format!(r#""iat":{}.0"#, NOW - 10), "bad-claim", "bad-claim"),
        (r#""nbf":17e8"#.to_owned(), "bad-claim", "bad-claim"),
        (format!(r#""exp":{}"#, NOW - 4), "expired", "accepted"),
        (format!(r#""exp":{}"#, NOW - 5), "expired", "expired"),
        (r#""exp":0"#.to_owned(), "expired", "expired"),
        (format!(r#""nbf":{NOW}"#), "accepted", "accepted"),
        (format!(r#""nbf":{}"#, NOW + 5), "not-yet-valid", "accepted"),
        (format!(r#""nbf":{}"#, NOW + 6), "not-yet-valid", "not-yet-valid"),
        (format!(r#""iat":{NOW}"#), "accepted", "accepted"),
        (format!(r#""iat":{}"#, NOW + 5), "issued-in-the-future", "accepted"),
        (format!(r#""iat":{}"#, NOW + 6), "issued-in-the-future", "issued-in-the-future"),
        (r#""iat":null"#.to_owned(), "accepted", "accepted"),
    ] {
        assert_eq!(outcome(strict.verify(now(), &token(with.clone()))), by_strict, "{with}");
        assert_eq!(outcome(lax.verify(now(), &token(with.clone()))), by_lax, "{with} with leeway");
    }
    // A clock at 1970 or far away does not panic.
    assert_eq!(outcome(strict.verify(at(0), &token(String::new()))), "issued-in-the-future");
    assert_eq!(outcome(strict.verify(at(u64::MAX / 1000), &token(String::new()))), "expired");
}

/// Answers what it is told to, and remembers nothing.
struct Says {
    verdict: Verdict,
    time: UnixMillis,
    leeway: Arc<AtomicU32>,
}

impl Revocations for Says {
    fn check(&self, _: Now, issuer: &str, _: &Claims<'_>) -> Verdict {
        assert_eq!(issuer, ISSUER);
        self.verdict
    }

    fn time(&self, now: Now) -> UnixMillis {
        now.wall.max(self.time)
    }

    fn leeway_max(&self) -> Option<u32> {
        Some(self.leeway.load(Ordering::Relaxed))
    }
}

fn says(verdict: Verdict) -> Says {
    Says { verdict, time: UnixMillis::default(), leeway: Arc::new(AtomicU32::new(60)) }
}

#[test]
fn the_policy_has_the_last_word() {
    let signers = hs();
    let token = signers[0].token(&claims(""));
    let judge = |verdict, policy| {
        let validator = Validator::new(rules(&signers), says(verdict), policy).unwrap();
        validator.verify(now(), &token).map_err(|rejected| (rejected.reason(), rejected.ask))
    };
    let suspect = Verdict::Suspect { false_positive_rate: 0.01 };
    let unknown = Verdict::Unknown { doubt: Doubt::TimeUnknown };
    let revoked = Verdict::Revoked { why: Why::Token };
    let strict = Policy::strict();
    assert_eq!(judge(suspect, strict).unwrap_err(), ("suspect", true));
    assert_eq!(judge(unknown, strict).unwrap_err(), ("unknown", false));
    assert_eq!(judge(revoked, strict).unwrap_err(), ("revoked", false));
    let open = strict.on_suspect(Rule::Accept).on_time_unknown(Rule::Accept);
    assert_eq!(judge(suspect, open).unwrap().verdict(), suspect);
    assert!(judge(unknown, open).is_ok());
    assert_eq!(judge(revoked, open).unwrap_err(), ("revoked", false));
}

#[test]
fn each_class_of_operation_has_its_policy() {
    /// Knowledge of some age.
    #[derive(Clone, Copy)]
    struct Aged(Duration);
    impl Revocations for Aged {
        fn check(&self, _: Now, _: &str, _: &Claims<'_>) -> Verdict {
            Verdict::NotRevoked { at: Position::default() }
        }

        fn check_aged(&self, now: Now, issuer: &str, claims: &Claims<'_>) -> (Verdict, Option<Duration>) {
            (self.check(now, issuer, claims), Some(self.0))
        }
    }
    let signers = hs();
    let token = signers[0].token(&claims(""));
    let policies = Policies::new(Policy::routine()).with("unlock", Policy::strict());
    let judge = |minutes, class: Option<&str>| {
        let aged = Aged(Duration::from_mins(minutes));
        let validator = Validator::new(rules(&signers), aged, policies.clone()).unwrap();
        let judged = match class {
            Some(class) => validator.verify_for(now(), class, &token),
            None => validator.verify(now(), &token),
        };
        judged.map(drop).map_err(|rejected| (rejected.reason(), rejected.ask))
    };
    for class in [None, Some("read"), Some("unlock")] {
        assert_eq!(judge(15, class), Ok(()));
    }
    assert_eq!(judge(16, Some("unlock")), Err(("aging", true)));
    assert_eq!((judge(16, None), judge(16, Some("read"))), (Ok(()), Ok(())));
    let many = (0..=CLASSES_MAX).fold(policies, |all, class| all.with(&class.to_string(), Policy::strict()));
    let refused = Validator::new(rules(&signers), Aged(Duration::ZERO), many).map(drop).unwrap_err();
    assert_eq!(refused, ValidatorError::Classes { classes: CLASSES_MAX + 2 });
}

/// Row 18: a clock that was reset does not bring expired tokens back.
#[test]
fn what_was_signed_is_a_floor_under_the_clock() {
    let signers = hs();
    let token = signers[0].token(&claims(r#""iat":null"#));
    let not_revoked = Verdict::NotRevoked { at: Position::default() };
    let floor = |secs| Says { time: UnixTime::from_secs(secs).millis(), ..says(not_revoked) };
    let judge =
        |floor| outcome(Validator::new(rules(&signers), floor, Policy::strict()).unwrap().verify(at(0), &token));
    assert_eq!(judge(floor(NOW)), "accepted");
    assert_eq!(judge(floor(NOW + 11)), "expired");
}

/// Rule 13: an expired token must not outlive its revocation, which the server forgets after the
/// realm's leeway.
#[test]
fn the_leeway_is_at_most_the_realms() {
    let signers = hs();
    let not_revoked = Verdict::NotRevoked { at: Position::default() };
    let refused = |leeway| {
        Validator::new(rules(&signers).with_leeway_secs(leeway), says(not_revoked), Policy::strict())
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(refused(61), ValidatorError::Leeway { leeway: 61, most: 60 });
    let unlimited = Validator::new(rules(&signers).with_leeway_secs(3601), RevokedPairs::default(), Policy::strict());
    assert_eq!(unlimited.map(|_| ()).unwrap_err(), ValidatorError::Leeway { leeway: 3601, most: 3600 });
    // And if it becomes known later, it holds from then on.
    let revocations = says(not_revoked);
    let most = Arc::clone(&revocations.leeway);
    let validator = Validator::new(rules(&signers).with_leeway_secs(60), revocations, Policy::strict()).unwrap();
    let token = signers[0].token(&claims(&format!(r#""exp":{}"#, NOW - 30)));
    assert_eq!(outcome(validator.verify(now(), &token)), "accepted");
    most.store(10, Ordering::Relaxed);
    assert_eq!(outcome(validator.verify(now(), &token)), "expired");
}

#[test]
fn a_validator_needs_an_issuer_and_an_audience() {
    let signers = hs();
    let made = |config| Validator::new(config, Unchecked, Policy::strict()).map(|_| ()).unwrap_err();
    assert_eq!(made(ValidatorConfig::new("", [AUDIENCE], keys(&signers))), ValidatorError::Issuer(IssuerError::Empty));
    assert_eq!(made(ValidatorConfig::new(ISSUER, [""; 0], keys(&signers))), ValidatorError::NoAudience);
}

#[test]
fn without_knowledge_nothing_is_accepted_unless_the_policy_says_so() {
    let signers = hs();
    let token = signers[0].token(&claims(""));
    let judge = |policy| outcome(Validator::new(rules(&signers), Unchecked, policy).unwrap().verify(now(), &token));
    assert_eq!(judge(Policy::strict()), "unknown");
    assert_eq!(judge(Policy::strict().on_not_followed(Rule::Accept)), "accepted");
}

/// A rejected token still tells what is known about its revocation.
#[test]
fn expired_and_revoked_are_both_told() {
    let signers = hs();
    let rejected =
        validator(&signers).verify(now(), &signers[0].token(&claims(r#""jti":"gone","exp":1"#))).unwrap_err();
    assert_eq!(rejected.reason(), "expired");
    let token = rejected.token.unwrap();
    assert_eq!((token.jti(), token.verdict()), ("gone", Verdict::Revoked { why: Why::Token }));
}

#[test]
fn revoked_pairs_go_by_issuer_and_jti() {
    let pairs = RevokedPairs::from_json(br#"[["a","1"],["b","2"],["a","1"]]"#).unwrap();
    assert!(pairs.contains("a", "1") && pairs.contains("b", "2"));
    assert!(!pairs.contains("a", "2") && !pairs.contains("b", "1") && !pairs.contains("c", "1"));
    for bad in [r#"{"a":"1"}"#, r#"[["a"]]"#, r#"[["a","b","c"]]"#, r#"[["a",1]]"#, "[", ""] {
        assert!(RevokedPairs::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
}

/// Any bytes: no panic. Changes every byte of a good token, and tries texts of every short length.
#[test]
fn no_text_makes_it_panic() {
    let signers = hs();
    let validator = validator(&signers);
    let token = signers[0].token(&claims(""));
    for place in 0..token.len() {
        for byte in [0, b'.', b'A', b'_', 0x7f] {
            let mut bytes = token.clone().into_bytes();
            bytes[place] = byte;
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(outcome(validator.verify(now(), &text)) == "accepted", text == token, "{text}");
        }
        assert_ne!(outcome(validator.verify(now(), &token[..place])), "accepted");
    }
    for text in ["é.é.é", "\u{10ffff}..", "...", "a.é.", "\0.\0.\0"] {
        assert_ne!(outcome(validator.verify(now(), text)), "accepted");
    }
}

#[test]
fn a_checker_answers_only_for_its_own_issuer() {
    // Without keys the realm's issuer is not known yet, and the verdict says that nothing is.
    let trust = revocast_core::Trust { roots: Vec::new(), threshold: 1, not_before: UnixTime::default() };
    let realm = revocast_core::RealmId::new("r").unwrap();
    let replica = revocast_core::Replica::new(revocast_core::Config::exact(0), realm, trust);
    let (checker, _exposure) = Checker::new(Arc::new(replica.set().clone()));
    let asked = Claims::new(Jti::new("a").unwrap(), UnixTime::from_secs(NOW));
    let verdict = Revocations::check(&checker, now(), ISSUER, &asked);
    assert_eq!(verdict, Verdict::Unknown { doubt: Doubt::NoState });
    assert_eq!(Revocations::leeway_max(&checker), None);
}

/// A token is judged by the keys that stand when it is shown, and by none before there are any.
#[test]
fn replaced_keys_hold_for_every_validator_at_once() {
    let (old, new) = (hs(), [Signer::ed()]);
    let live = LiveKeys::default();
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], live.clone());
    let validator = Validator::new(rules, revoked("gone"), Policy::strict()).unwrap();
    let other = validator.clone();
    let judge = |signer: &Signer| {
        let found = [&validator, &other].map(|it| outcome(it.verify(now(), &signer.token(&claims("")))));
        assert_eq!(found[0], found[1]);
        found[0]
    };
    assert!(live.keys().is_none());
    assert_eq!(judge(&old[0]), "key-not-found");
    live.replace(keys(&old));
    assert_eq!((judge(&old[0]), judge(&new[0])), ("accepted", "key-not-found"));
    live.replace(keys(&new));
    assert_eq!((judge(&old[0]), judge(&new[0])), ("key-not-found", "accepted"));
    assert_eq!(live.keys().unwrap().len(), 1);
}

/// Revocations by people who know no `exp` are kept for the realm's longest lifetime.
#[test]
fn a_token_that_lives_longer_than_revocations_are_kept_is_refused() {
    let signers = hs();
    let judge = |most: u64, with: String| {
        let rules = rules(&signers).with_lifetime_max(Duration::from_secs(most));
        let validator = Validator::new(rules, revoked("gone"), Policy::strict()).unwrap();
        outcome(validator.verify(now(), &signers[0].token(&claims(&with))))
    };
    let lives = |secs: u64| format!(r#""iat":{NOW},"exp":{}"#, NOW + secs);
    assert_eq!((judge(60, lives(60)), judge(60, lives(61))), ("accepted", "lives-too-long"));
    // Without `iat`, what is left of it counts.
    let left = |secs: u64| format!(r#""iat":null,"exp":{}"#, NOW + secs);
    assert_eq!((judge(60, left(60)), judge(60, left(61))), ("accepted", "lives-too-long"));
    let days = LIFETIME_MAX_DEFAULT.as_secs();
    assert_eq!(days, 30 * 86_400);
    assert_eq!((judge(days, lives(days)), judge(days, lives(days + 1))), ("accepted", "lives-too-long"));
}

/// A binding that cannot be checked must not pass as none.
#[test]
fn a_binding_must_be_one_that_can_be_checked() {
    let jkt = r#"{"jkt":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}"#;
    assert_eq!(reason(&format!(r#""cnf":{jkt}"#)), "proof-missing");
    for cnf in
        [r#"{"kid":"a"}"#, r#"{"x5t#S256":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}"#, "{}", "1", r#"{"jkt":"x"}"#]
    {
        assert_eq!(reason(&format!(r#""cnf":{cnf}"#)), "bad-claim", "{cnf}");
    }
}

/// A header is remembered with the key it went with, once a signature held. Nothing that is decided changes by it.
#[test]
fn a_known_header_changes_no_decision() {
    let signers = [Signer::hs("HS256", hmac::HMAC_SHA256), Signer::ed()];
    let live = LiveKeys::new(keys(&signers));
    let made = |config: ValidatorConfig| Validator::new(config, revoked("gone"), Policy::strict()).unwrap();
    let plain = made(ValidatorConfig::new(ISSUER, [AUDIENCE], live.clone()));
    let typed = made(ValidatorConfig::new(ISSUER, [AUDIENCE], live.clone()).with_type("at+jwt"));
    for round in 0..3 {
        for signer in &signers {
            let token = signer.token(&claims(""));
            let (message, _) = token.rsplit_once('.').unwrap();
            let forged = format!("{message}.{}", b64([0; 64]));
            assert_eq!(outcome(plain.verify(now(), &forged)), "bad-signature", "{round}");
            assert_eq!(outcome(plain.verify(now(), &token)), "accepted", "{round}");
            assert_eq!(plain.verify(now(), &token).unwrap().key_id(), Some(signer.algorithm));
            // The same header, which another validator with the same keys does not take.
            assert_eq!(outcome(typed.verify(now(), &token)), "wrong-type", "{round}");
            assert_eq!(outcome(plain.verify(now(), &signer.token(&claims(r#""jti":"gone""#)))), "revoked");
        }
        // Signed by one, named after the other.
        let confused = signers[1].raw(&signers[0].header(""), claims("").as_bytes());
        assert_eq!(outcome(plain.verify(now(), &confused)), "bad-signature");
    }
    // With the keys goes what was known of them.
    live.replace(keys(&signers[1..]));
    assert_eq!(outcome(plain.verify(now(), &signers[0].token(&claims("")))), "key-not-found");
    assert_eq!(outcome(plain.verify(now(), &signers[1].token(&claims("")))), "accepted");
}

/// Row 33: whatever set of keys is put in place meanwhile, each answer is that of one of them.
#[test]
fn replacing_keys_while_tokens_are_verified_tears_nothing() {
    let (old, new) = (hs(), [Signer::ed()]);
    let live = LiveKeys::new(keys(&old));
    let validator =
        Validator::new(ValidatorConfig::new(ISSUER, [AUDIENCE], live.clone()), revoked("gone"), Policy::strict());
    let validator = validator.unwrap();
    let tokens = [old[0].token(&claims("")), new[0].token(&claims("")), old[0].token(&claims(r#""jti":"gone""#))];
    let (sets, stop) = ([keys(&old), keys(&new)], std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000 {
                live.replace(sets[round % 2].clone());
            }
            stop.store(true, Ordering::Relaxed);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for (token, good) in tokens.iter().zip(["accepted", "accepted", "revoked"]) {
                        let found = outcome(validator.verify(now(), token));
                        assert!(found == good || found == "key-not-found", "{found}");
                    }
                }
            });
        }
    });
}
