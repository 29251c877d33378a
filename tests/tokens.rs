//! Hostile tokens, each refused for its own reason, by the library and by `revocast verify`; and mutants of good ones.
//!
//! The corpus is `tests/tokens/hostile.json`, for any validator in any language. It is made here
//! (`REVOCAST_WRITE_VECTORS=1 cargo test --test tokens` writes it anew) and always the same: keys are fixed, and
//! signatures that are not deterministic were made once.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines)] // a list is told in one piece

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use revocast_core::{Now, UnixTime};
use revocast_device::{KeySet, Policy, Rejected, RevokedPairs, Token, Validator, ValidatorConfig};
use revocast_tests::Random;
use revocast_tests::process::{Site, revocast_with};
use revocast_tests::signers::{AUDIENCE, ISSUER, NOW, Signer, b64, claims, jwks, unb64};
use serde_json::{Value, json};

const TYPE: &str = "at+jwt";

/// Signatures over `claims("good")` that cannot be made twice.
const ES256_SIGNATURE: &str = "ZSJ2FPbHSkKkRYlecJJQVTAIK_gvl1KATz4ONGMgmy0RALqY_RsQ-A5l74EnzS5lW8pSDWJTv_njbKLepXeobA";
const PS256_SIGNATURE: &str = "udCgi8xY6F8LYD7HPloRdcspSAl3xioxEGo2OG-t7pc_efLTu2Y-lR0yYnJn181OzRSDNDPq19WoD2hDwpJUMsKMjJt-j27CqgP-CPeihGivDfLqLZXzNgU9YXzOHDf1TWNcOWOHVxH-wnSzWivyvSISZo8ib5IO8v7YJyu41Btg5w3dG7OMIsC34rmhQoPvJszmiIP3ip5hHhBo7Cy6BOhromHjZuSgWhMTByhKmHBXx2UzKQLd9a4pMvPqQsMjeC4w6ZLt2vKQNy0FM0N4Ga_znDimrcJmWOQ38lIaExgKgI2Pnk3OO7TdB0Dq3hhteLbnpTv8NPKK6oJBIQMXDQ";

/// The order of the group of P-256 (FIPS 186-5), and that of the base point of Ed25519, little-endian.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
const ED25519_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// One token and what must become of it.
struct Case {
    id: String,
    reason: &'static str,
    token: String,
}

/// The corpus as it grows.
struct Corpus {
    signers: BTreeMap<&'static str, Signer>,
    cases: Vec<Case>,
}

impl Corpus {
    fn add(&mut self, reason: &'static str, id: impl Into<String>, token: impl Into<String>) {
        self.cases.push(Case { id: id.into(), reason, token: token.into() });
    }

    /// A token with this header, signed by HS256 so that only the header is to blame.
    fn header(&mut self, reason: &'static str, id: impl Into<String>, header: impl AsRef<[u8]>) {
        let token = self.signers["HS256"].raw(header, claims("good"));
        self.add(reason, id, token);
    }

    /// A token with these claims, signed by HS256 so that only they are to blame.
    fn payload(&mut self, reason: &'static str, id: impl Into<String>, payload: impl AsRef<[u8]>) {
        let token = self.signers["HS256"].token(payload);
        self.add(reason, id, token);
    }

    /// Good claims with one replaced, added, or (`""`) taken away.
    fn claim(&mut self, reason: &'static str, name: &str, value: &str) {
        let mut members: Vec<(String, String)> =
            serde_json::from_str::<serde_json::Map<String, Value>>(&claims("good"))
                .unwrap()
                .into_iter()
                .map(|(name, value)| (name, value.to_string()))
                .filter(|(found, _)| found != name)
                .collect();
        if !value.is_empty() {
            members.push((name.to_owned(), value.to_owned()));
        }
        let text: Vec<String> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        let mut short: String = value.chars().take(40).collect();
        if short.len() < value.len() {
            short = format!("{short}... of {} bytes", value.len());
        }
        let id = if value.is_empty() { format!("{name} is missing") } else { format!("{name} is {short}") };
        self.payload(reason, id, format!("{{{}}}", text.join(",")));
    }

    /// A good token, whose signature is always the same.
    fn good(&self, algorithm: &str) -> String {
        let signer = &self.signers[algorithm];
        let message = format!("{}.{}", b64(signer.header()), b64(claims("good")));
        match algorithm {
            "ES256" => format!("{message}.{ES256_SIGNATURE}"),
            "PS256" => format!("{message}.{PS256_SIGNATURE}"),
            _ => signer.token(claims("good")),
        }
    }
}

/// `order` minus a number, both big-endian.
fn minus(order: &[u8; 32], number: &[u8]) -> Vec<u8> {
    let mut result = order.to_vec();
    let mut borrow = 0;
    for place in (0..32).rev() {
        let difference = i16::from(order[place]) - i16::from(number[place]) - borrow;
        borrow = i16::from(difference < 0);
        result[place] = difference.rem_euclid(256) as u8;
    }
    result
}

/// The sum of two numbers, little-endian.
fn plus(one: &[u8], other: &[u8; 32]) -> Vec<u8> {
    let mut carry = 0;
    let sum = one.iter().zip(other).map(|(one, other)| {
        let sum = u16::from(*one) + u16::from(*other) + carry;
        carry = sum >> 8;
        sum as u8
    });
    sum.collect()
}

/// DER of an ECDSA signature.
fn der(fixed: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let mut value = bytes.to_vec();
        if value[0] >= 0x80 {
            value.insert(0, 0);
        }
        [vec![2, value.len() as u8], value].concat()
    };
    let body = [integer(&fixed[..32]), integer(&fixed[32..])].concat();
    [vec![0x30, body.len() as u8], body].concat()
}

fn corpus() -> Corpus {
    let signers = Signer::all().into_iter().map(|signer| (signer.algorithm, signer)).collect();
    let mut corpus = Corpus { signers, cases: Vec::new() };
    let all = ["HS256", "RS256", "PS256", "ES256", "EdDSA"];

    // What is accepted, so that the rest is refused for its own sake.
    for algorithm in all {
        let token = corpus.good(algorithm);
        corpus.add("accepted", format!("a good token of {algorithm}"), token);
    }

    // ---- Form.
    let good = corpus.good("HS256");
    let parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    let [header, payload, signature] = [&*parts[0], &*parts[1], &*parts[2]];
    for (id, token) in [
        ("nothing", String::new()),
        ("a dot", ".".to_owned()),
        ("three dots", "...".to_owned()),
        ("one part", header.to_owned()),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{good}.{signature}")),
        ("five parts, as an encrypted token has", format!("{header}..{payload}.{signature}.AAAA")),
        ("a dot at the end", format!("{good}.")),
        ("a dot in front", format!(".{good}")),
        ("JSON serialization", json!({ "protected": header, "payload": payload, "signature": signature }).to_string()),
        ("commas for dots", good.replace('.', ",")),
        ("spaces for dots", good.replace('.', " ")),
        ("fullwidth dots", good.replace('.', "\u{ff0e}")),
        ("escaped dots", good.replace('.', "%2E")),
        ("a disclosure behind it (SD-JWT)", format!("{good}~WyJhIiwiYiJd.AAAA~")),
    ] {
        corpus.add("malformed-token", id, token);
    }
    for (id, token) in [
        ("a space in front", format!(" {good}")),
        ("a space at the end", format!("{good} ")),
        ("a tab at the end", format!("{good}\t")),
        ("a NUL at the end", format!("{good}\0")),
        ("a scheme in front", format!("Bearer {good}")),
        ("quotes around it", format!("\"{good}\"")),
        ("padding of the header", format!("{header}=.{payload}.{signature}")),
        ("padding of the payload", format!("{header}.{payload}=.{signature}")),
        ("padding of the signature", format!("{good}=")),
        ("two characters of padding", format!("{good}==")),
        ("padding alone as a signature", format!("{header}.{payload}.=")),
        ("a plus in the signature", format!("{header}.{payload}.+{}", &signature[1..])),
        ("a slash in the signature", format!("{header}.{payload}./{}", &signature[1..])),
        ("a plus in the payload", format!("{header}.{}+.{signature}", &payload[..payload.len() - 1])),
        ("a slash in the header", format!("{}/.{payload}.{signature}", &header[..header.len() - 1])),
        ("an asterisk in the payload", format!("{header}.*{}.{signature}", &payload[1..])),
        ("a letter that is no ASCII", format!("{header}.{payload}.é{}", &signature[2..])),
        ("a zero width space", format!("{header}.\u{200b}{payload}.{signature}")),
        ("a byte order mark", format!("\u{feff}{good}")),
        ("a letter that looks like another", format!("{}.{payload}.{signature}", header.replacen('e', "\u{435}", 1))),
        ("percent encoding", format!("{header}.{payload}.%41{}", &signature[1..])),
        ("a character too many in the signature", format!("{good}AA")),
        ("one character as a signature", format!("{header}.{payload}.A")),
        ("one character as a payload", format!("{header}.A.{signature}")),
        ("one character as a header", format!("A.{payload}.{signature}")),
        ("a disclosure behind it without dots (SD-JWT)", format!("{good}~WyJhIiwiYiJd~")),
        ("no base64 at all", format!("{{\"alg\":\"none\"}}.{payload}.")),
    ] {
        corpus.add("bad-base64", id, token);
    }
    for (part, at) in [("header", 0), ("payload", 1), ("signature", 2)] {
        if let Some(spelled) = with_slack(&parts[at]) {
            let mut parts = parts.clone();
            parts[at] = spelled;
            corpus.add("bad-base64", format!("spare bits in the {part}"), parts.join("."));
        }
    }
    // A header and a payload whose last characters have bits to spare.
    let odd =
        corpus.signers["HS256"].raw(format!("{} ", corpus.signers["HS256"].header()), format!("{}  ", claims("good")));
    let odd: Vec<&str> = odd.split('.').collect();
    for (part, at) in [("header", 0), ("payload", 1)] {
        if let Some(spelled) = with_slack(odd[at]) {
            let mut parts = odd.clone();
            parts[at] = &spelled;
            corpus.add("bad-base64", format!("spare bits in another {part}"), parts.join("."));
        }
    }
    for (id, token) in [
        ("a payload of 8 KiB", format!("{header}.{}.{signature}", "A".repeat(8 * 1024))),
        ("a signature of 8 KiB", format!("{header}.{payload}.{}", "A".repeat(8 * 1024))),
        ("8193 dots", ".".repeat(8 * 1024 + 1)),
        ("a header of 2049 characters", format!("{}.{payload}.{signature}", "A".repeat(2049))),
    ] {
        corpus.add("too-large", id, token);
    }
    let long_header = format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"HS256","x":"{}"}}"#, "x".repeat(2048));
    corpus.header("too-large", "a signed header of 2 KiB", long_header);
    let many: Vec<String> = (0..10_000).map(|number| format!(r#","c{number}":1"#)).collect();
    let many = many.concat();
    let flooded = claims("good").replace('}', &format!("{}}}", many.get(..8_000).unwrap().rsplit_once(',').unwrap().0));
    corpus.payload("too-large", "a thousand signed claims", flooded);
    corpus.claim("too-large", "jti", &format!("\"{}\"", "x".repeat(64 * 128)));

    // ---- The header as JSON.
    for (id, header) in [
        ("no header", Vec::new()),
        ("a header that is no JSON", b"header".to_vec()),
        ("an array as header", br#"["HS256"]"#.to_vec()),
        ("a text as header", br#""HS256""#.to_vec()),
        ("a number as header", b"1".to_vec()),
        ("null as header", b"null".to_vec()),
        ("a byte order mark before the header", [b"\xef\xbb\xbf".as_slice(), header_of("HS256").as_bytes()].concat()),
        ("a header in UTF-16, little-endian", utf16(&header_of("HS256"), u16::to_le_bytes)),
        (
            "a header in UTF-16, most significant first",
            utf16(&header_of("HS256"), |unit| [(unit >> 8) as u8, unit as u8]),
        ),
        ("a header that is not UTF-8", b"{\"alg\":\"HS256\",\"kid\":\"\xff\"}".to_vec()),
        ("a header with an overlong character", b"{\"alg\":\"HS256\",\"kid\":\"\xc1\x81\"}".to_vec()),
        ("a lone surrogate in the header", br#"{"alg":"HS256","typ":"at+jwt","kid":"\ud800"}"#.to_vec()),
        ("surrogates in the wrong order", br#"{"alg":"HS256","typ":"at+jwt","kid":"\udc00\ud800"}"#.to_vec()),
        ("a comma too many", br#"{"alg":"HS256","typ":"at+jwt","kid":"HS256",}"#.to_vec()),
        ("a comment in the header", br#"{"alg":"HS256"/* none */,"typ":"at+jwt","kid":"HS256"}"#.to_vec()),
        ("single quotes", br"{'alg':'HS256','typ':'at+jwt','kid':'HS256'}".to_vec()),
        ("names without quotes", br#"{alg:"HS256",typ:"at+jwt",kid:"HS256"}"#.to_vec()),
        ("two headers", [header_of("HS256"), header_of("HS256")].concat().into_bytes()),
        ("something behind the header", format!("{}x", header_of("HS256")).into_bytes()),
        ("a header that ends early", br#"{"alg":"HS256","typ":"at+jwt","kid":"HS256""#.to_vec()),
        ("a line feed in a text", b"{\"alg\":\"HS256\",\"typ\":\"at+jwt\",\"kid\":\"HS\n256\"}".to_vec()),
        ("an escape that is none", br#"{"alg":"HS256","typ":"at+jwt","kid":"\x48"}"#.to_vec()),
        ("a header nested 17 deep", format!(r#"{{"alg":"HS256","x":{}1{}}}"#, "[".repeat(17), "]".repeat(17)).into()),
        ("a header nested 700 deep", format!(r#"{{"x":{}"#, "[".repeat(700)).into()),
        ("NaN in the header", br#"{"alg":"HS256","x":NaN}"#.to_vec()),
        ("a number beyond all in the header", br#"{"alg":"HS256","x":1e999}"#.to_vec()),
    ] {
        corpus.header("bad-json", id, header);
    }
    for (id, header) in [
        ("two alg", r#"{"alg":"none","alg":"HS256","typ":"at+jwt","kid":"HS256"}"#),
        ("two equal alg", r#"{"alg":"HS256","alg":"HS256","typ":"at+jwt","kid":"HS256"}"#),
        ("two alg, one of them escaped", r#"{"\u0061lg":"none","alg":"HS256","typ":"at+jwt","kid":"HS256"}"#),
        ("two kid", r#"{"alg":"HS256","typ":"at+jwt","kid":"RS256","kid":"HS256"}"#),
        ("two typ", r#"{"alg":"HS256","typ":"at+jwt","kid":"HS256","typ":"JWT"}"#),
        ("two names deep in the header", r#"{"alg":"HS256","jwk":{"kty":"oct","kty":"RSA"}}"#),
    ] {
        corpus.header("duplicate-name", id, header);
    }

    // ---- The algorithm.
    for none in ["none", "None", "NONE", "nOnE", "none ", " none", "n\\u006fne", "null", ""] {
        let header = format!(r#"{{"alg":"{none}","typ":"at+jwt","kid":"HS256"}}"#);
        corpus.add(
            "unsupported-algorithm",
            format!("{none:?}, unsigned"),
            format!("{}.{}.", b64(&header), b64(claims("good"))),
        );
        corpus.header("unsupported-algorithm", format!("{none:?}, signed"), header);
    }
    for other in [
        "hs256",
        "Hs256",
        "HS256 ",
        "HS256\\u0000",
        "HS1",
        "HS224",
        "SHA256",
        "ES512",
        "ES256K",
        "RS1",
        "rs256",
        "eddsa",
        "EDDSA",
        "Ed25519",
        "Ed448",
        "ML-DSA-65",
        "RSA-OAEP",
        "A128KW",
        "dir",
        "PBES2-HS256+A128KW",
        "ECDH-ES",
        "HS256,none",
    ] {
        corpus.header(
            "unsupported-algorithm",
            format!("the algorithm {other:?}"),
            format!(r#"{{"alg":"{other}","typ":"at+jwt","kid":"HS256"}}"#),
        );
    }
    for (id, header) in [
        ("no alg", r#"{"typ":"at+jwt","kid":"HS256"}"#),
        ("null as alg", r#"{"alg":null,"typ":"at+jwt","kid":"HS256"}"#),
        ("a list as alg", r#"{"alg":["HS256"],"typ":"at+jwt","kid":"HS256"}"#),
        ("a number as alg", r#"{"alg":256,"typ":"at+jwt","kid":"HS256"}"#),
        ("an object as alg", r#"{"alg":{"HS256":true},"typ":"at+jwt","kid":"HS256"}"#),
        ("true as alg", r#"{"alg":true,"typ":"at+jwt","kid":"HS256"}"#),
        ("a number as kid", r#"{"alg":"HS256","typ":"at+jwt","kid":0}"#),
        ("null as kid", r#"{"alg":"HS256","typ":"at+jwt","kid":null}"#),
        ("a list as kid", r#"{"alg":"HS256","typ":"at+jwt","kid":["HS256"]}"#),
        ("a number as typ", r#"{"alg":"HS256","typ":1,"kid":"HS256"}"#),
        ("a list as typ", r#"{"alg":"HS256","typ":["at+jwt"],"kid":"HS256"}"#),
    ] {
        corpus.header("bad-header", id, header);
    }
    corpus.header(
        "bad-header",
        "a kid of 1025 bytes",
        format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"{}"}}"#, "k".repeat(1025)),
    );

    // ---- The key decides about the algorithm.
    for claimed in all {
        for named in all.into_iter().filter(|named| *named != claimed) {
            let header = format!(r#"{{"alg":"{claimed}","typ":"at+jwt","kid":"{named}"}}"#);
            // By its own key, where that always gives the same signature; where it does not, by none.
            let token = match claimed {
                "ES256" | "PS256" => format!("{}.{}.{}", b64(&header), b64(claims("good")), b64([1; 64])),
                _ => corpus.signers[claimed].raw(&header, claims("good")),
            };
            corpus.add("algorithm-mismatch", format!("{claimed} by the key of {named}"), token);
        }
    }
    let jwk: Value = serde_json::from_str(&corpus.signers["RS256"].jwk).unwrap();
    let n = unb64(jwk["n"].as_str().unwrap());
    for (id, secret) in [
        ("the modulus of RS256", n.clone()),
        ("the JWK of RS256", corpus.signers["RS256"].jwk.clone().into_bytes()),
        ("the modulus of RS256 in base64url", b64(&n).into_bytes()),
        ("nothing", Vec::new()),
        ("the word secret", b"secret".to_vec()),
    ] {
        for kid in ["HS256", "RS256"] {
            let header = format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"{kid}"}}"#);
            let message = format!("{}.{}", b64(&header), b64(claims("good")));
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
            let token = format!("{message}.{}", b64(ring::hmac::sign(&key, message.as_bytes())));
            let reason = if kid == "HS256" { "bad-signature" } else { "algorithm-mismatch" };
            corpus.add(reason, format!("HS256 with {id} as the secret, kid {kid}"), token);
        }
    }
    for kid in [
        "",
        "hs256",
        "HS256 ",
        "HS256\\u0000",
        "../../../../etc/passwd",
        "/dev/null",
        "file:///dev/null",
        "https://attacker.example/k",
        "' OR '1'='1",
        "HS256' UNION SELECT 'AA",
        "; ls",
        "$(id)",
        "|cat /etc/passwd",
        "%00",
        "HS256\\nRS256",
        "*",
        "0",
        "undefined",
        "${jndi:ldap://attacker.example}",
    ] {
        let header = format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"{kid}"}}"#);
        corpus.header("key-not-found", format!("kid {kid:?}"), header);
    }

    // ---- Headers that ask for more.
    let attacker = r#"{"kty":"oct","k":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"}"#;
    for (name, value) in [
        ("crit", r#"["exp"]"#),
        ("crit", "[]"),
        ("crit", r#"["b64"],"b64":false"#),
        ("crit", r#"["http://example.com/UNDEFINED"],"http://example.com/UNDEFINED":true"#),
        ("b64", "false"),
        ("b64", "true"),
        ("zip", r#""DEF""#),
        ("jwk", attacker),
        ("jwk", "null"),
        ("jku", r#""https://attacker.example/jwks.json""#),
        ("jku", r#""http://127.0.0.1:22/""#),
        ("jku", r#""https://issuer.example/.well-known/jwks.json""#),
        ("x5u", r#""https://attacker.example/c.pem""#),
        ("x5c", r#"["MIIB"]"#),
        ("x5t", r#""AAAA""#),
        ("x5t#S256", r#""AAAA""#),
        ("cty", r#""JWT""#),
    ] {
        let header = format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"HS256","{name}":{value}}}"#);
        let short: String = value.chars().take(40).collect();
        corpus.header("forbidden-header", format!("{name} {short}"), header);
    }
    for name in [
        "nonce",
        "enc",
        "epk",
        "p2c",
        "apu",
        "iss",
        "exp",
        "jti",
        "Alg",
        "ALG",
        " alg",
        "alg\\u0000",
        "ppt",
        "svt",
        "__proto__",
        "",
    ] {
        let header = format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"HS256","{name}":1}}"#);
        corpus.header("unknown-header", format!("a member {name:?}"), header);
    }
    for typ in [
        "JWT",
        "jwt",
        "",
        "at+jwt ",
        "at jwt",
        "dpop+jwt",
        "secevent+jwt",
        "logout+jwt",
        "id+jwt",
        "application/x/at+jwt",
        "text/at+jwt",
        "application/",
    ] {
        let header = format!(r#"{{"alg":"HS256","typ":"{typ}","kid":"HS256"}}"#);
        corpus.header("wrong-type", format!("the type {typ:?}"), header);
    }
    corpus.header("wrong-type", "no type", r#"{"alg":"HS256","kid":"HS256"}"#);
    for typ in ["AT+JWT", "application/at+jwt", "Application/At+Jwt"] {
        let header = format!(r#"{{"alg":"HS256","typ":"{typ}","kid":"HS256"}}"#);
        corpus.header("accepted", format!("the type {typ:?}"), header);
    }
    corpus.header("accepted", "no kid, and one key of that algorithm", r#"{"alg":"HS256","typ":"at+jwt"}"#);
    corpus.header("accepted", "white space in the header", "\t{ \"alg\" : \"HS256\",\r\n \"typ\":\"at+jwt\" }\n");

    // ---- The signature.
    for algorithm in all {
        let token = corpus.good(algorithm);
        let (message, signature) = token.rsplit_once('.').unwrap();
        let bytes = unb64(signature);
        let flipped = |place: usize| {
            let mut bytes = bytes.clone();
            bytes[place] ^= 1;
            bytes
        };
        let (head, rest) = message.split_once('.').unwrap();
        for (id, message, bytes) in [
            ("no signature", message.to_owned(), Vec::new()),
            ("zeros", message.to_owned(), vec![0; bytes.len()]),
            ("ones", message.to_owned(), vec![0xff; bytes.len()]),
            ("its first bit", message.to_owned(), flipped(0)),
            ("its middle", message.to_owned(), flipped(bytes.len() / 2)),
            ("its last bit", message.to_owned(), flipped(bytes.len() - 1)),
            ("a byte too few", message.to_owned(), bytes[1..].to_vec()),
            ("a byte too many", message.to_owned(), [bytes.as_slice(), &[0]].concat()),
            ("a zero in front", message.to_owned(), [&[0], bytes.as_slice()].concat()),
            ("twice", message.to_owned(), bytes.repeat(2)),
            ("halves exchanged", message.to_owned(), [&bytes[bytes.len() / 2..], &bytes[..bytes.len() / 2]].concat()),
            ("over other claims", format!("{head}.{}", b64(claims("other"))), bytes.clone()),
            (
                "over the claims alone",
                format!("{}.{rest}", b64(format!(" {}", corpus.signers[algorithm].header()))),
                bytes.clone(),
            ),
        ] {
            corpus.add("bad-signature", format!("{algorithm}: {id}"), format!("{message}.{}", b64(bytes)));
        }
    }
    let es256 = corpus.good("ES256");
    let (message, signature) = es256.rsplit_once('.').unwrap();
    let fixed = unb64(signature);
    let zero = [0_u8; 32];
    for (id, bytes) in [
        ("DER instead of two numbers", der(&fixed)),
        ("r = 0", [&zero, &fixed[32..]].concat()),
        ("s = 0", [&fixed[..32], &zero].concat()),
        ("s = n", [&fixed[..32], &P256_ORDER].concat()),
        ("r = n", [&P256_ORDER, &fixed[32..]].concat()),
        ("r = n, s = n", [P256_ORDER, P256_ORDER].concat()),
        ("n - r", [&minus(&P256_ORDER, &fixed[..32]), &fixed[32..]].concat()),
        ("as of P-384", [&[0; 16], &fixed[..32], &[0; 16], &fixed[32..]].concat()),
    ] {
        corpus.add("bad-signature", format!("ES256: {id}"), format!("{message}.{}", b64(bytes)));
    }
    // Row 31: the second signature that every signature of ES256 implies is as good as the first.
    let twin = [&fixed[..32], &minus(&P256_ORDER, &fixed[32..])].concat();
    corpus.add("accepted", "ES256: n - s", format!("{message}.{}", b64(twin)));

    let eddsa = corpus.good("EdDSA");
    let (message, signature) = eddsa.rsplit_once('.').unwrap();
    let fixed = unb64(signature);
    let mut identity = [0; 32];
    identity[0] = 1;
    for (id, bytes) in [
        ("S + L", [&fixed[..32], &plus(&fixed[32..], &ED25519_ORDER)].concat()),
        ("S = 0 and R the identity", [identity, zero].concat()),
        ("R of small order", [&identity, &fixed[32..]].concat()),
        ("R not in its only encoding", [&[0xee_u8], &[0xff; 30][..], &[0x7f], &fixed[32..]].concat()),
        ("S = L", [&fixed[..32], &ED25519_ORDER].concat()),
    ] {
        corpus.add("bad-signature", format!("EdDSA: {id}"), format!("{message}.{}", b64(bytes)));
    }
    let rs256 = corpus.good("RS256");
    let (message, _) = rs256.rsplit_once('.').unwrap();
    let mut one = vec![0; 256];
    one[255] = 1;
    for (id, bytes) in [
        ("the number 1", one),
        ("the modulus", n.clone()),
        ("a signature of PS256 over another header", unb64(PS256_SIGNATURE)),
    ] {
        corpus.add("bad-signature", format!("RS256: {id}"), format!("{message}.{}", b64(bytes)));
    }

    // ---- The claims as JSON.
    let good = claims("good");
    let members = good[1..good.len() - 1].to_owned();
    for (id, payload) in [
        ("no claims", Vec::new()),
        ("claims that are no JSON", b"claims".to_vec()),
        ("a list of claims", format!("[{good}]").into_bytes()),
        ("a text as claims", br#""claims""#.to_vec()),
        ("null as claims", b"null".to_vec()),
        ("claims twice", format!("{good}{good}").into_bytes()),
        ("something behind the claims", format!("{good}\0").into_bytes()),
        ("a byte order mark before the claims", format!("\u{feff}{good}").into_bytes()),
        ("claims in UTF-16", utf16(&good, u16::to_le_bytes)),
        ("claims that are not UTF-8", [good.as_bytes(), b"\xff"].concat()),
        ("a byte of Latin-1", [b"{\"name\":\"\xe9\",", members.as_bytes(), b"}"].concat()),
        ("a lone surrogate", format!(r#"{{{members},"name":"\udead"}}"#).into_bytes()),
        ("half a surrogate pair in the jti", claims("\\ud83d").into_bytes()),
        ("a surrogate in UTF-8", [b"{\"name\":\"\xed\xa0\x80\",", members.as_bytes(), b"}"].concat()),
        ("claims nested 17 deep", format!(r#"{{{members},"x":{}{}}}"#, "[".repeat(16), "]".repeat(16)).into_bytes()),
        ("claims nested 5000 deep", format!(r#"{{{members},"x":{}"#, "[".repeat(5_000)).into_bytes()),
        ("objects nested 800 deep", format!("{}1{}", r#"{"a":"#.repeat(800), "}".repeat(800)).into_bytes()),
        ("a comment in the claims", format!("{{{members}}}// end").into_bytes()),
        ("a comma at the end", format!("{{{members},}}").into_bytes()),
        ("a number with a leading zero", format!(r#"{{{members},"x":01}}"#).into_bytes()),
        ("a hexadecimal number", format!(r#"{{{members},"x":0x10}}"#).into_bytes()),
        ("Infinity", format!(r#"{{{members},"x":Infinity}}"#).into_bytes()),
        ("a number beyond all", format!(r#"{{{members},"x":1{}}}"#, "0".repeat(400)).into_bytes()),
        ("a control character", format!("{{{members},\"x\":\"\u{1}\"}}").into_bytes()),
        ("claims that end early", good.as_bytes()[..good.len() - 1].to_vec()),
    ] {
        corpus.payload("bad-json", id, payload);
    }
    for (id, more) in [
        ("two exp", r#""exp":9999999999"#),
        ("two exp, one of them escaped", r#""\u0065xp":9999999999"#),
        ("two jti", r#""jti":"other""#),
        ("two jti, one of them escaped", r#""j\u0074i":"other""#),
        ("two equal iss", r#""iss":"https://issuer.example""#),
        ("two sub", r#""sub":"admin""#),
        ("two names in an object", r#""o":{"a":1,"a":2}"#),
        ("two names in an object in a list", r#""o":[1,[{"b":1,"c":2,"\u0062":3}]]"#),
        ("two names without meaning here", r#""x":1,"x":1"#),
        ("two empty names", r#""":1,"":1"#),
    ] {
        corpus.payload("duplicate-name", id, format!("{{{members},{more}}}"));
    }

    // ---- The claims.
    for name in ["exp", "iss", "aud", "jti"] {
        corpus.claim("missing-claim", name, "");
        corpus.claim("bad-claim", name, "null");
    }
    for name in ["exp", "nbf", "iat"] {
        for value in [
            r#""1800000100""#,
            "1800000100.0",
            "1800000100.5",
            "18e8",
            "1.8E+9",
            "-1",
            "-0",
            "9007199254740992",
            "18446744073709551615",
            "18446744073709551616",
            "1e300",
            "true",
            "false",
            "[1800000100]",
            "{}",
            r#""""#,
            r#""2027-01-15T08:00:00Z""#,
        ] {
            corpus.claim("bad-claim", name, value);
        }
    }
    corpus.claim("bad-claim", "nbf", "null");
    corpus.claim("bad-claim", "iat", "null");
    for (name, value) in [
        ("jti", "1"),
        ("jti", r#"["good"]"#),
        ("jti", r#"{"good":1}"#),
        ("iss", "1"),
        ("iss", r#"["https://issuer.example"]"#),
        ("aud", "1"),
        ("aud", r#"["https://api.example",1]"#),
        ("aud", r#"[["https://api.example"]]"#),
        ("aud", r#"{"https://api.example":1}"#),
        ("aud", "true"),
        ("sub", "1"),
        ("sub", "null"),
        ("sub", r#"["device-7"]"#),
        ("client_id", "7"),
        ("client_id", "[]"),
        ("azp", "false"),
        ("cnf", "null"),
        ("cnf", "{}"),
        ("cnf", r#""kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k""#),
        ("cnf", r#"{"jkt":1}"#),
        ("cnf", r#"{"jkt":"AAAA"}"#),
        ("cnf", r#"{"jwk":{"kty":"oct","k":"AA"}}"#),
        ("cnf", r#"{"x5t#S256":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}"#),
        ("cnf", r#"{"kid":"a"}"#),
        ("cnf", r#"{"jkt":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","kid":"a"}"#),
        ("cnf", r#"{"jkt":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k="}"#),
    ] {
        corpus.claim("bad-claim", name, value);
    }
    let long = format!("\"{}\"", "x".repeat(1025));
    for name in ["sub", "client_id", "azp"] {
        corpus.claim("bad-claim", name, &long);
    }
    corpus.claim("bad-jti", "jti", r#""""#);
    corpus.claim("bad-jti", "jti", &format!("\"{}\"", "x".repeat(257)));
    corpus.claim("bad-jti", "jti", &format!("\"{}\"", "\\u0000".repeat(257)));
    corpus.claim("bad-jti", "jti", &format!("\"{}\"", "\u{10ffff}".repeat(65)));
    corpus.claim("accepted", "jti", &format!("\"{}\"", "x".repeat(256)));
    for iss in [
        "https://issuer.example/",
        "https://ISSUER.example",
        "http://issuer.example",
        "https://issuer.example ",
        "https://issuer.example\\u0000",
        "https://issuer.example.attacker.example",
        "issuer.example",
        "",
        "https://issuer.example:443",
        "https://xn--issuer.example",
    ] {
        corpus.claim("wrong-issuer", "iss", &format!("\"{iss}\""));
    }
    for aud in [
        r#""https://api.example/""#,
        r#""https://API.example""#,
        r#""""#,
        "[]",
        r#"["https://other.example","https://issuer.example"]"#,
        r#""https://api.example https://other.example""#,
        r#""*""#,
        r#"["https://api.example "]"#,
        r#""https://api.exampl""#,
    ] {
        corpus.claim("wrong-audience", "aud", aud);
    }
    corpus.claim("accepted", "aud", r#"["https://other.example","https://api.example"]"#);
    for exp in [NOW, NOW - 1, NOW - 1_000_000, 0, 1] {
        corpus.claim("expired", "exp", &exp.to_string());
    }
    for later in [NOW + 1, NOW + 600, (1 << 53) - 1] {
        corpus.claim("not-yet-valid", "nbf", &later.to_string());
        corpus.claim("issued-in-the-future", "iat", &later.to_string());
    }
    // Milliseconds where seconds belong.
    corpus.claim("lives-too-long", "exp", &format!("{}", (NOW + 840) * 1_000));
    corpus.claim("lives-too-long", "exp", &format!("{}", (1_u64 << 53) - 1));
    corpus.claim("lives-too-long", "exp", &format!("{}", NOW - 60 + 30 * 86_400 + 1));
    corpus.claim("lives-too-long", "iat", "0");
    corpus.claim("accepted", "exp", &format!("{}", NOW - 60 + 30 * 86_400));
    corpus.claim("accepted", "iat", "");
    corpus.claim("accepted", "nbf", "");
    corpus.claim("accepted", "sub", "");
    corpus.claim("accepted", "groups", r#"[{"name":"a","of":[1,2.5,null,true]},{"name":"b"}]"#);
    corpus.claim("proof-missing", "cnf", r#"{"jkt":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}"#);

    // ---- Revocation, by the decoded jti.
    for spelled in ["gone", "\\u0067one", "\\u0067\\u006f\\u006e\\u0065", "go\\u006Ee"] {
        corpus.payload("revoked", format!("a revoked token, its jti written {spelled}"), claims(spelled));
    }
    for algorithm in ["RS256", "EdDSA"] {
        let token = corpus.signers[algorithm].token(claims("gone"));
        corpus.add("revoked", format!("a revoked token of {algorithm}"), token);
    }
    for alive in ["Gone", "gone ", "g one", "gon\\u0435"] {
        corpus.payload("accepted", format!("another jti, {alive:?}"), claims(alive));
    }
    corpus
}

fn header_of(algorithm: &str) -> String {
    format!(r#"{{"alg":"{algorithm}","typ":"at+jwt","kid":"{algorithm}"}}"#)
}

fn utf16(text: &str, bytes: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}

/// The same bytes in base64url with other spare bits, if the part has any.
fn with_slack(part: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = *part.as_bytes().last()?;
    let at = ALPHABET.iter().position(|byte| *byte == last)?;
    (!part.len().is_multiple_of(4)).then(|| format!("{}{}", &part[..part.len() - 1], char::from(ALPHABET[at ^ 1])))
}

/// The file, one token a line.
fn document(corpus: &Corpus) -> String {
    let keys: Vec<&str> = corpus.signers.values().map(|signer| signer.jwk.as_str()).collect();
    let cases: Vec<String> = corpus
        .cases
        .iter()
        .map(|Case { id, reason, token }| json!({ "id": id, "reason": reason, "token": token }).to_string())
        .collect();
    format!(
        "{{\"comment\":\"Tokens and what must become of them, judged at the time `at`; reasons are in docs/security.md.\",\n\
         \"issuer\":\"{ISSUER}\",\"audience\":\"{AUDIENCE}\",\"type\":\"{TYPE}\",\"at\":{NOW},\n\
         \"revoked\":[[\"{ISSUER}\",\"gone\"]],\n\"jwks\":{{\"keys\":[{}]}},\n\"tokens\":[\n{}\n]}}\n",
        keys.join(",\n"),
        cases.join(",\n")
    )
}

/// What the file says, read as anybody would.
fn read() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tokens/hostile.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn at(secs: u64) -> Now {
    Now::new(UnixTime::from_secs(secs).millis(), Duration::ZERO)
}

fn validator(jwks: &str) -> Validator<RevokedPairs> {
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], KeySet::from_jwks(jwks.as_bytes()).unwrap()).with_type(TYPE);
    Validator::new(rules, [(ISSUER.to_owned(), "gone".to_owned())].into_iter().collect(), Policy::strict()).unwrap()
}

fn reason(outcome: &Result<Token, Rejected>) -> &'static str {
    outcome.as_ref().map_or_else(Rejected::reason, |_| "accepted")
}

#[test]
fn the_corpus_is_what_is_made_here_and_no_token_stands_twice_in_it() {
    let corpus = corpus();
    let text = document(&corpus);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tokens/hostile.json");
    if std::env::var_os("REVOCAST_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == text, "REVOCAST_WRITE_VECTORS=1 writes it anew");
    let hostile = corpus.cases.iter().filter(|case| case.reason != "accepted");
    let (ids, tokens): (BTreeSet<_>, BTreeSet<_>) = hostile.clone().map(|case| (&case.id, &case.token)).unzip();
    let count = hostile.count();
    assert_eq!(tokens.len(), count, "each differs from all others");
    assert_eq!(ids.len(), count, "each has a name of its own");
    assert!(count >= 150, "{count}");
}

#[test]
fn each_hostile_token_is_refused_for_its_reason_by_the_library() {
    let file = read();
    let validator = validator(&file["jwks"].to_string());
    let mut reasons = BTreeMap::new();
    for case in file["tokens"].as_array().unwrap() {
        let outcome = validator.verify(at(NOW), case["token"].as_str().unwrap());
        assert_eq!(case["reason"], reason(&outcome), "{}: {outcome:?}", case["id"]);
        *reasons.entry(reason(&outcome)).or_insert(0) += 1;
    }
    println!("{reasons:?}");
}

#[test]
fn each_hostile_token_is_refused_for_its_reason_by_the_command() {
    let file = read();
    let site = Site::new();
    let (jwks, revoked) =
        (site.write("jwks.json", file["jwks"].to_string()), site.write("revoked.json", file["revoked"].to_string()));
    let cases = file["tokens"].as_array().unwrap();
    // Each on a line of its own; a line ends at a line feed, and no token here has one.
    let lines: Vec<&str> = cases.iter().map(|case| case["token"].as_str().unwrap()).collect();
    let input = lines.join("\n");
    let at = NOW.to_string();
    let rules = [
        "verify",
        "--jwks",
        &jwks,
        "--issuer",
        ISSUER,
        "--audience",
        AUDIENCE,
        "--type",
        TYPE,
        "--at",
        &at,
        "--revoked",
        &revoked,
    ];
    let ran = revocast_with(rules, input.as_bytes());
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let verdicts = ran.objects();
    assert_eq!(verdicts.len(), cases.len());
    for (verdict, case) in verdicts.iter().zip(cases) {
        assert_eq!(verdict["reason"], case["reason"], "{}", case["id"]);
        let accepted = case["reason"] == "accepted";
        assert_eq!(verdict["verdict"], if accepted { "accept" } else { "reject" }, "{}", case["id"]);
    }
}

/// One random change of a token; it may come out as it was.
fn mutant(token: &str, others: &[String], random: &mut Random) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = token.as_bytes().to_vec();
    let count = 1 + random.below(3);
    for _ in 0..count {
        let place = random.below(bytes.len() as u64) as usize;
        match random.below(12) {
            // Within the alphabet, so that what is behind the form is reached.
            0..=3 => bytes[place] = ALPHABET[random.below(64) as usize],
            4 => bytes[place] = random.below(128) as u8,
            5 => drop(bytes.remove(place)),
            6 => bytes.insert(place, ALPHABET[random.below(64) as usize]),
            7 => {
                let other = random.below(bytes.len() as u64) as usize;
                bytes.swap(place, other);
            }
            8 => bytes.truncate(place.max(1)),
            // A part of another good token.
            9 => {
                let other = &others[random.below(others.len() as u64) as usize];
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut parts: Vec<&str> = text.split('.').collect();
                let at = random.below(3) as usize;
                if let (Some(part), Some(theirs)) = (parts.get_mut(at), other.split('.').nth(at)) {
                    *part = theirs;
                }
                bytes = parts.join(".").into_bytes();
            }
            // A bit of what is decoded.
            _ => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
                let at = random.below(parts.len() as u64) as usize;
                let decoded = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &parts[at]);
                if let Ok(mut decoded) = decoded
                    && !decoded.is_empty()
                {
                    let place = random.below(decoded.len() as u64) as usize;
                    decoded[place] ^= 1 << random.below(8);
                    parts[at] = b64(decoded);
                }
                bytes = parts.join(".").into_bytes();
            }
        }
        if bytes.is_empty() {
            bytes.push(b'.');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// 20,000 mutants; `REVOCAST_LONG=1` makes it a million.
#[test]
fn no_mutant_of_a_good_token_is_accepted() {
    let signers = Signer::all();
    let validator = validator(&jwks(&signers));
    let good: Vec<String> = signers.iter().flat_map(|signer| ["a", "b"].map(|jti| signer.token(claims(jti)))).collect();
    for token in &good {
        assert_eq!(reason(&validator.verify(at(NOW), token)), "accepted");
    }
    let (mut random, mut same) = (Random::new(5), 0);
    let mut reasons = BTreeMap::new();
    let count = if std::env::var_os("REVOCAST_LONG").is_some() { 1_000_000 } else { 20_000 };
    let mut number = 0;
    while number < count {
        let mutant = mutant(&good[number % good.len()], &good, &mut random);
        // Byte for byte a good one: no mutant.
        if good.contains(&mutant) {
            same += 1;
            continue;
        }
        number += 1;
        let found = reason(&validator.verify(at(NOW), &mutant));
        assert_ne!(found, "accepted", "mutant {number}: {mutant}");
        *reasons.entry(found).or_insert(0) += 1;
    }
    println!("{count} mutants, and {same} that came out as they were; 0 mutants accepted: {reasons:?}");
    // They reach every step.
    for step in ["malformed-token", "bad-base64", "bad-json", "unsupported-algorithm", "key-not-found", "bad-signature"]
    {
        assert!(reasons.contains_key(step), "{step}: {reasons:?}");
    }
}

/// Row 31: whoever malleates a signature of ES256 gets the same token, and loses it with the other.
#[test]
fn a_malleated_signature_names_the_same_token() {
    let signers = Signer::all();
    let validator = validator(&jwks(&signers));
    let signer = signers.iter().find(|signer| signer.algorithm == "ES256").unwrap();
    for (jti, expected) in [("good", "accepted"), ("gone", "revoked")] {
        let token = signer.token(claims(jti));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let fixed = unb64(signature);
        let twin = format!("{message}.{}", b64([&fixed[..32], &minus(&P256_ORDER, &fixed[32..])].concat()));
        assert_ne!(twin, token);
        for token in [&token, &twin] {
            assert_eq!(reason(&validator.verify(at(NOW), token)), expected);
        }
    }
}
