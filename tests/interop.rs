//! Tokens that are not ours: `PyJWT` mints them, `revocast verify` and an agent judge them.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_tests::process::{
    AUDIENCE, ISSUER, Minted, Mosquitto, REALM, Ran, Site, Via, mint, mint_until, now, revocast, revocast_with,
    until_true,
};
use serde_json::{Value, json};

const ALGORITHMS: [&str; 4] = ["HS256", "RS256", "ES256", "EdDSA"];

/// `verify` with the rules of these tests and more.
#[track_caller]
fn verify(jwks: &str, more: &[&str], input: &[u8]) -> Ran {
    let rules = ["verify", "--jwks", jwks, "--issuer", ISSUER, "--audience", AUDIENCE];
    revocast_with(rules.iter().chain(more), input)
}

fn lines(tokens: &[Minted]) -> Vec<u8> {
    tokens.iter().flat_map(|token| format!("{}\n", token.token).into_bytes()).collect()
}

fn line(number: u64, verdict: &str, reason: &str, jti: Option<&str>, revocation: &str) -> Value {
    json!({ "line": number, "verdict": verdict, "reason": reason, "jti": jti, "revocation": revocation })
}

#[test]
fn tokens_of_pyjwt_are_accepted_before_and_refused_after_revocation() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let (tokens, jwks) = mint(&site, 8);
    assert_eq!(tokens.iter().map(|token| &*token.alg).collect::<BTreeSet<_>>(), BTreeSet::from(ALGORITHMS));
    let mut agent = site.agent_with("door", &mosquitto.url(), &["--jwks", &jwks, "--audience", AUDIENCE]);
    agent.wait_until_at(0);

    // Without a source nothing is known about revocation, and every line says so.
    let ran = verify(&jwks, &[], &lines(&tokens)).ok();
    for (number, (found, token)) in (1..).zip(ran.objects().iter().zip(&tokens)) {
        assert_eq!(*found, line(number, "accept", "accepted", Some(&token.jti), "unknown"), "{}", token.alg);
    }
    for token in &tokens {
        let answer = agent.verify(&token.token);
        assert_eq!(answer.get("verdict"), Some(&json!("accept")), "{}: {answer}", token.alg);
    }

    let (bad, good) = tokens.split_at(4);
    for token in bad {
        let _ = server.command(&["revoke", "--realm", REALM, "--token", &token.token]).ok();
    }
    for token in bad {
        until_true("the agent refuses", || agent.verify(&token.token).get("reason") == Some(&json!("revoked")));
    }
    for token in good {
        assert_eq!(agent.verify(&token.token).get("verdict"), Some(&json!("accept")), "{}", token.alg);
    }

    // By a list of pairs, and by what the agent left on disk.
    let pairs: Vec<Value> = bad.iter().map(|token| json!([ISSUER, token.jti])).collect();
    let list = site.write("revoked.json", json!(pairs).to_string());
    assert!(agent.process().stop().success());
    for source in [["--revoked", &list], ["--state", &site.text("door")]] {
        let ran = verify(&jwks, &source, &lines(&tokens));
        assert_eq!(ran.code, 3, "{ran:?}");
        for (number, (found, token)) in (1..).zip(ran.objects().iter().zip(&tokens)) {
            let expected = if number <= 4 {
                line(number, "reject", "revoked", Some(&token.jti), "revoked")
            } else {
                line(number, "accept", "accepted", Some(&token.jti), "not-revoked")
            };
            assert_eq!(*found, expected, "{} {source:?}", token.alg);
        }
        assert_eq!(ran.objects().len(), tokens.len());
    }
    // Of another issuer, so not these tokens.
    let pairs: Vec<Value> = bad.iter().map(|token| json!(["https://other.example", token.jti])).collect();
    let list = site.write("other.json", json!(pairs).to_string());
    let _ = verify(&jwks, &["--revoked", &list], &lines(&tokens)).ok();
}

/// Row 31. Revocation goes by the decoded `jti`, so no other spelling of a revoked token passes.
#[test]
fn one_token_in_many_spellings_stays_revoked() {
    let site = Site::new();
    let (tokens, jwks) = mint(&site, 4);
    let list: Vec<Value> = tokens.iter().map(|token| json!([ISSUER, token.jti])).collect();
    let list = site.write("revoked.json", json!(list).to_string());
    let judge = |token: &str| -> (Value, Value) {
        let of = |more: &[&str]| verify(&jwks, more, token.as_bytes()).objects().pop().expect("a line");
        (of(&[]), of(&["--revoked", &list]))
    };
    for token in &tokens {
        let (unchecked, checked) = judge(&token.token);
        assert_eq!(unchecked.get("verdict"), Some(&json!("accept")), "{}", token.alg);
        assert_eq!(checked.get("reason"), Some(&json!("revoked")), "{}", token.alg);

        // Spare bits of the last character of each part, padding, the other alphabet, white space.
        let parts: Vec<&str> = token.token.split('.').collect();
        let mut spellings = vec![format!("{}=", token.token), format!("{}==", token.token)];
        for at in 0..3 {
            if let Some(other) = with_spare_bits(parts[at]) {
                let mut parts = parts.clone();
                parts[at] = &other;
                spellings.push(parts.join("."));
            }
        }
        spellings.push(token.token.replacen('.', ". ", 1));
        spellings.push(format!("{}\u{0}", token.token));
        spellings.push(format!("{}.", token.token));
        if token.token.contains(['-', '_']) {
            spellings.push(token.token.replace('-', "+").replace('_', "/"));
        }
        for spelling in spellings {
            let (unchecked, checked) = judge(&spelling);
            for verdict in [unchecked, checked] {
                assert_eq!(verdict.get("verdict"), Some(&json!("reject")), "{} {spelling:?}", token.alg);
            }
        }
    }

    // The other signature that every ES256 signature implies: (r, n - s).
    let es256 = tokens.iter().find(|token| token.alg == "ES256").expect("ES256");
    let (_, checked) = judge(&with_other_s(&es256.token));
    assert_eq!(checked.get("verdict"), Some(&json!("reject")), "{checked}");
    assert!(matches!(checked.get("reason").and_then(Value::as_str), Some("revoked" | "bad-signature")), "{checked}");

    // A jti whose characters are escaped is the same jti: signed anew by whoever has the secret.
    let hs256 = tokens.iter().find(|token| token.alg == "HS256").expect("HS256");
    let escaped = escape_jti(&site, hs256);
    assert_ne!(escaped, hs256.token);
    let (unchecked, checked) = judge(&escaped);
    assert_eq!(unchecked, line(1, "accept", "accepted", Some(&hs256.jti), "unknown"));
    assert_eq!(checked, line(1, "reject", "revoked", Some(&hs256.jti), "revoked"));
}

/// The same bytes in base64url with other spare bits, if the part has any.
fn with_spare_bits(part: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    if part.len().is_multiple_of(4) {
        return None;
    }
    let last = *part.as_bytes().last()?;
    let at = ALPHABET.iter().position(|byte| *byte == last)?;
    let other = char::from(ALPHABET[at ^ 1]);
    Some(format!("{}{other}", &part[..part.len() - 1]))
}

/// The order of the group of P-256, big-endian (FIPS 186-5).
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

fn with_other_s(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').expect("a signature");
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let mut borrow = 0_i16;
    for (byte, order) in bytes[32..].iter_mut().zip(P256_ORDER).rev() {
        let difference = i16::from(order) - i16::from(*byte) - borrow;
        borrow = i16::from(difference < 0);
        *byte = difference.rem_euclid(256) as u8;
    }
    assert_eq!(borrow, 0, "s is below the order");
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Lets Python sign the same claims again, with the `jti` written in escapes.
fn escape_jti(site: &Site, token: &Minted) -> String {
    let program = site.write(
        "escape.py",
        r#"
import base64, hashlib, hmac, json, sys
jwks, token, jti = sys.argv[1:]
key = next(key for key in json.load(open(jwks))["keys"] if key["kty"] == "oct")["k"]
decode = lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
header, payload, _ = token.split(".")
escaped = "".join("\\u%04x" % ord(c) for c in jti)
payload = encode(decode(payload).decode().replace(jti, escaped).encode())
message = header + "." + payload
print(message + "." + encode(hmac.digest(decode(key), message.encode(), hashlib.sha256)))
"#,
    );
    let python = revocast_tests::process::tool("REVOCAST_PYTHON");
    let jwks = site.text("minted/jwks.json");
    let ran =
        std::process::Command::new(python).args([&program, &jwks, &token.token, &token.jti]).output().expect("Python");
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("a token").trim().to_owned()
}

#[test]
fn every_line_gets_a_verdict_whatever_is_on_it() {
    let site = Site::new();
    let (tokens, jwks) = mint(&site, 4);
    let good = &tokens[3];
    let mut input = Vec::new();
    let mut expected = Vec::new();
    let mut add = |bytes: &[u8], verdict: &str, reason: &str, jti: Option<&str>| {
        input.extend_from_slice(bytes);
        input.push(b'\n');
        expected.push(line(expected.len() as u64 + 1, verdict, reason, jti, "unknown"));
    };
    add(good.token.as_bytes(), "accept", "accepted", Some(&good.jti));
    add(b"", "reject", "malformed-token", None);
    add(b"garbage", "reject", "malformed-token", None);
    add(b"a.b.c.d", "reject", "malformed-token", None);
    add(b"\xff\xfe.\x80.\xc0", "reject", "bad-base64", None);
    add(&vec![b'a'; 1024 * 1024], "reject", "too-large", None);
    add(&vec![b'.'; 3 * 1024 * 1024], "reject", "too-large", None);
    add(format!("{}\r", good.token).as_bytes(), "accept", "accepted", Some(&good.jti));
    // The last line has no end.
    input.extend_from_slice(b"..");
    expected.push(line(expected.len() as u64 + 1, "reject", "bad-json", None, "unknown"));
    let ran = verify(&jwks, &[], &input);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let found = ran.objects();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    // To the letter, as it is documented.
    let first =
        format!(r#"{{"line":1,"verdict":"accept","reason":"accepted","jti":"{}","revocation":"unknown"}}"#, good.jti);
    assert_eq!(ran.stdout.lines().next(), Some(&*first));

    let nothing = verify(&jwks, &[], b"").ok();
    assert_eq!(nothing.stdout, "");
}

#[test]
fn time_type_issuer_and_audience_are_rules() {
    let site = Site::new();
    let exp = now() + 1_000;
    let (tokens, jwks) = mint_until(&site, 4, exp);
    let token = tokens[1].token.as_bytes();
    let reason = |more: &[&str]| -> (i32, String) {
        let ran = verify(&jwks, more, token);
        let reason = ran.json().get("reason").and_then(Value::as_str).expect("a reason").to_owned();
        (ran.code, reason)
    };
    let at = |time: u64| ["--at".to_owned(), time.to_string()];
    let judged = |time: u64, more: &[&str]| {
        let at = at(time);
        let arguments: Vec<&str> = at.iter().map(String::as_str).chain(more.iter().copied()).collect();
        reason(&arguments)
    };
    let accepted = || (0, "accepted".to_owned());
    let expired = || (3, "expired".to_owned());
    assert_eq!(reason(&[]), accepted());
    assert_eq!(judged(exp - 1, &[]), accepted());
    assert_eq!(judged(exp, &[]), expired());
    assert_eq!(judged(exp + 29, &["--leeway", "30"]), accepted());
    assert_eq!(judged(exp + 30, &["--leeway", "30"]), expired());
    assert_eq!(judged(exp - 5_000, &[]).0, 3, "issued in the future");
    assert_eq!(judged(0, &[]).0, 3);
    assert_eq!(judged(u64::MAX, &[]), expired());
    assert_eq!(reason(&["--type", "JWT"]), accepted());
    assert_eq!(reason(&["--type", "at+jwt"]).0, 3);
    // One of several audiences is enough.
    assert_eq!(reason(&["--audience", "https://other.example"]), accepted());

    let other = |issuer: &str, audience: &str| {
        let rules = ["verify", "--jwks", &jwks, "--issuer", issuer, "--audience", audience];
        let ran = revocast_with(rules, token);
        (ran.code, ran.json().get("reason").cloned().expect("a reason"))
    };
    assert_eq!(other(ISSUER, "https://other.example"), (3, json!("wrong-audience")));
    assert_eq!(other("https://other.example", AUDIENCE), (3, json!("wrong-issuer")));
}

#[test]
fn arguments_that_cannot_be_used_are_told_before_any_verdict() {
    let site = Site::new();
    let (tokens, jwks) = mint(&site, 4);
    let input = lines(&tokens);
    let fails = |more: &[&str], code: i32, words: &[&str]| {
        let ran = verify(&jwks, more, &input);
        ran.fails(code, words);
        assert_eq!(ran.stdout, "", "{more:?}");
    };
    fails(&["--revoked", &site.text("none.json")], 2, &["none.json", "cannot be read"]);
    let broken = site.write("broken.json", "[[\"only one\"]]");
    fails(&["--revoked", &broken], 2, &["broken.json", "[iss, jti] pairs"]);
    fails(&["--state", &site.text("nowhere")], 1, &["nowhere", "no whole state"]);
    fails(&["--leeway", "86400"], 2, &["86400", "3600"]);
    fails(&["--leeway=-1"], 2, &["--leeway"]);
    fails(&["--at", "yesterday"], 2, &["--at", "yesterday"]);
    fails(&["--revoked", &broken, "--state", &site.text("door")], 2, &["cannot be used with"]);

    let keys = |text: &str| {
        let file = site.write("keys.json", text);
        revocast(["verify", "--jwks", &file, "--issuer", ISSUER, "--audience", AUDIENCE])
    };
    keys("").fails(2, &["keys.json"]);
    keys("{}").fails(2, &["keys.json"]);
    keys(r#"{"keys":[]}"#).fails(2, &["keys.json"]);
    keys(r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#).fails(2, &["keys.json"]);
    revocast(["verify", "--jwks", &jwks, "--issuer", "", "--audience", AUDIENCE]).fails(2, &["issuer"]);
    revocast(["verify", "--jwks", &jwks, "--issuer", ISSUER]).fails(2, &["--audience"]);
}
