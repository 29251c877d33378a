//! The vectors fix the format for any language: `tests/vectors/*.json`.
//!
//! They are made here (`REVOCAST_WRITE_VECTORS=1 just vectors` writes them anew) and checked three
//! times: the files are what this code makes, this code reads them as they say, and so does a second
//! reader that shares nothing with it, `tests/vectors/read.py`.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines, clippy::similar_names, clippy::many_single_char_names)] // a history is told in one piece

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use revocast_core::update::{Artifact, Chunk, Finding, Layer, Nonce, Question, Report};
use revocast_core::{
    Address, Claims, Cutoff, Delivery, DeviceId, DeviceKeys, Digest, EnvelopeKey, EnvelopePublicKey, Epoch, Filter,
    FilterBuf, FilterParams, Fingerprint, FingerprintFunction, Fingerprinter, IssuerKeys, Jti, Kind, Membership,
    NoRenewal, Notice, Position, Profile, PublicKey, RealmId, RealmKey, Refusal, Renew, Salt, Scope, ScopeKind, Sealed,
    Sequence, SigningKey, Term, UnixMillis, UnixTime, Why, Width, disclose, enclose, exceptions, rice, seal, wire,
};
use revocast_tests::Random;
use revocast_tests::follower::prompt;
use revocast_tests::forge::{Forge, START, horizon};
use serde_json::{Value, json};

const WIDTHS: [Width; 3] = [Width::W40, Width::W48, Width::W64];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value).try_into().unwrap()
}

/// 64 bits as hexadecimal, since JSON numbers lose bits in some languages.
fn wide(bits: u64) -> String {
    format!("{bits:016x}")
}

fn bits(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

fn width(value: &Value) -> Width {
    Width::from_bits(value.as_u64().unwrap() as u8).unwrap()
}

fn wides(list: &[Fingerprint]) -> Vec<String> {
    list.iter().map(|fingerprint| wide(fingerprint.bits())).collect()
}

fn vectors(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

// ---- Making them ---------------------------------------------------------------------------------

fn function_name(function: FingerprintFunction) -> &'static str {
    match function {
        FingerprintFunction::Xxh3 => "xxh3-64",
        FingerprintFunction::Sha256 => "sha256-64",
    }
}

fn fingerprints() -> Value {
    let mut made = Vec::new();
    let uuid = "550e8400-e29b-41d4-a716-446655440000";
    let lengths = [1, 3, 4, 8, 9, 16, 17, 64, 128, 129, 240, 241, 256];
    let long: String = (0..256_u32).map(|at| char::from(b'a' + (at * 7 % 26) as u8)).collect();
    let texts = lengths.iter().map(|length| &long[..*length]).chain([uuid, "Gerät-\u{1f512}"]);
    let keys = [[0; 16], [0xff; 16], core::array::from_fn(|at| at as u8)];
    for text in texts {
        for (number, key) in keys.into_iter().enumerate() {
            for function in [FingerprintFunction::Xxh3, FingerprintFunction::Sha256] {
                for width in WIDTHS {
                    let fingerprint =
                        Fingerprinter::new(function, RealmKey(key), width).fingerprint(Jti::new(text).unwrap());
                    made.push(json!({
                        "id": format!("{}-{}-{}-key{number}", function_name(function), width.bits(), text.len()),
                        "comment": format!("a jti of {} bytes", text.len()),
                        "function": function_name(function), "key": hex(&key), "width": width.bits(),
                        "bytes": hex(text.as_bytes()), "result": wide(fingerprint.bits()), "flags": [],
                    }));
                }
            }
        }
    }
    file("Fingerprint of a jti: the top W bits of a keyed hash, as a number.", &made)
}

fn scopes() -> Value {
    let kinds = [ScopeKind::Realm, ScopeKind::Subject, ScopeKind::KeyId, ScopeKind::Client];
    let key = core::array::from_fn(|at| at as u8);
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey(key), Width::W48);
    let mut made = Vec::new();
    for kind in kinds {
        for text in ["user-1", "", "ключ"] {
            made.push(json!({
                "id": format!("{}-{}", kind.name(), text.len()),
                "comment": "the whole realm has the name 0, whatever the text",
                "key": hex(&key), "kind": kind as u8, "bytes": hex(text.as_bytes()),
                "result": wide(Scope::new(&fingerprinter, kind, text).name), "flags": [],
            }));
        }
    }
    file("Name of the scope of a cutoff: 64 bits of SHA-256 over key, kind and text.", &made)
}

fn filters() -> Value {
    let mut random = Random::new(1);
    let mut made = Vec::new();
    for (blocks, probes, count) in [(4, 1, 1), (4, 3, 10), (8, 3, 100), (12, 5, 40), (16, 7, 0), (20, 6, 60)] {
        for width in WIDTHS {
            let salt = Salt(random.sixteen());
            let params = FilterParams::new(salt, blocks, probes).unwrap();
            let keys: Vec<Fingerprint> = (0..count).map(|_| Fingerprint::from_hash(random.bits(), width)).collect();
            let filter = FilterBuf::build(params, keys.iter().copied());
            let asked: Vec<Fingerprint> = (0..40).map(|_| Fingerprint::from_hash(random.bits(), width)).collect();
            let possible: Vec<bool> = asked.iter().map(|key| filter.query(*key) == Membership::Possible).collect();
            made.push(json!({
                "id": format!("filter-{blocks}-{probes}-{}", width.bits()),
                "comment": format!("{count} fingerprints in {blocks} lines, {probes} probes in each of two"),
                "salt": hex(&salt.0), "blocks": blocks, "probes": probes, "inserted": wides(&keys),
                "asked": wides(&asked), "bytes": hex(&filter.to_bytes()), "result": possible, "flags": [],
            }));
        }
    }
    file("Filters: which bits are set for some fingerprints, and what is asked of them.", &made)
}

fn lists() -> Value {
    let mut random = Random::new(2);
    let mut made = Vec::new();
    for width in WIDTHS {
        let top = u64::MAX >> (64 - width.bits());
        let mut cases: Vec<Vec<u64>> =
            vec![vec![], vec![0], vec![top], vec![0, top], vec![top - 1, top], (0..40).collect()];
        cases.push((0..5).map(|_| random.bits() & top).collect());
        cases.push((0..100).map(|_| random.bits() & top).collect());
        for (number, mut numbers) in cases.into_iter().enumerate() {
            numbers.sort_unstable();
            let keys: Vec<_> = numbers.iter().map(|bits| Fingerprint::from_bits(*bits, width).unwrap()).collect();
            let bytes = rice::encode(&keys, width).unwrap();
            made.push(json!({
                "id": format!("list-{}-{number}", width.bits()), "comment": format!("{} fingerprints", keys.len()),
                "width": width.bits(), "count": keys.len(), "bytes": hex(&bytes), "result": wides(&keys), "flags": [],
            }));
        }
    }
    for (id, comment, width, count, bytes) in [
        ("trailing", "a byte follows the last fingerprint", 48, 0, "00"),
        ("short", "the code ends within the only fingerprint", 48, 1, "0100000000"),
        ("truncated", "zero bits to the end", 40, 200, "00".repeat(1_020).leak()),
        ("overflow", "a quotient for which the width has no room", 48, 1, "02000000000000"),
        ("endless", "a quotient that never ends", 48, 1, "00000000000000"),
        ("padding", "a bit is set behind the last fingerprint", 48, 1, "01000000000080"),
        ("count", "more fingerprints than the bytes can hold", 64, 100_000_000, "ffff"),
    ] {
        made.push(json!({
            "id": id, "comment": comment, "width": width, "count": count, "bytes": bytes, "result": null,
            "flags": ["Malformed"],
        }));
    }
    file("Sorted fingerprints, Rice coded: one list in one way only.", &made)
}

/// One sealed object, and what a receiver with these keys makes of it.
struct Offer<'a> {
    id: String,
    comment: &'a str,
    kind: Kind,
    trusted: Vec<PublicKey>,
    need: u8,
    bytes: Vec<u8>,
}

fn forge() -> Forge {
    Forge::new(42)
}

fn bodies(forge: &Forge) -> Vec<(Kind, &'static str, Vec<u8>)> {
    let width = forge.fingerprinter.width();
    let sub = Scope::new(&forge.fingerprinter, ScopeKind::Subject, "user-1");
    let cutoffs = [
        Cutoff { scope: Scope::REALM, not_before: UnixTime::from_secs(1_700_000_000) },
        Cutoff { scope: sub, not_before: UnixTime::from_secs(1_767_225_601) },
    ];
    let epochal = forge.epoch(7, 1_000, &["a", "b", "c"], &cutoffs, 10);
    let mut delta = forge.delta_meant((1_000, 1_004), &["d", "e"], &["a"], 20);
    delta.cutoffs = cutoffs[..1].to_vec();
    delta.lifts = vec![sub];
    let one = forge.delta_meant((1_004, 1_005), &["f"], &[], 21);
    let rungs = [&delta, &one].map(|delta| (delta.from.0, delta.to.0, forge.delta(delta)));
    let named: Vec<_> = rungs.iter().map(|(from, to, bytes)| (*from, *to, &bytes[..])).collect();
    let manifest = forge.manifest_meant(&epochal, 1_005, &named, 30);
    let empty = forge.manifest_meant(&forge.epoch(1, 0, &[], &[], 0), 0, &[], 0);
    let chunk = |artifact, layer, number, content: &[u8]| {
        let chunk = Chunk { term: Term(1), epoch: Epoch(7), artifact, layer, number, content };
        wire::encode_chunk(&chunk).unwrap()
    };
    let report = |age, last_refusal| {
        let report = Report {
            term: Term(1),
            position: Position { epoch: Epoch(7), sequence: Sequence(1_005) },
            age,
            profile: 3,
            memory_bytes: 123_456,
            refusals: 2,
            last_refusal,
        };
        wire::encode_report(&report).unwrap()
    };
    let claims = Claims {
        iat: Some(UnixTime::from_secs(1_767_225_000)),
        sub: Some("user-1"),
        kid: Some("key-1"),
        client: Some("client-1"),
        ..Claims::new(Jti::new("d").unwrap(), UnixTime::from_secs(1_767_229_999))
    };
    let nonce = core::array::from_fn(|at| at as u8 + 1);
    let device = |name| DeviceId::new(name).unwrap();
    let question = Question::new(device("door-7.north_2"), nonce, &forge.fingerprinter, &claims);
    let bare = Question::new(device("d"), nonce, &forge.fingerprinter, &Claims::new(claims.jti, claims.exp));
    let asked = seal(Kind::Ask, &forge.realm, &wire::encode_question(&question).unwrap(), &[]);
    let answer = |finding| wire::encode_answer(&forge.answer_meant(&asked, finding, 1_005, 50)).unwrap();
    let cut = Why::Cutoff { scope: ScopeKind::Subject, not_before: UnixTime::from_secs(1_767_225_601) };
    let at = UnixMillis::from_millis(1_767_225_700_123);
    let renew = Renew { device: device("pump-1"), counter: 1 << 40, nonce, at };
    let delivery = |nonce, enclosed, content| {
        let delivery = Delivery { device: device("pump-1"), issued_at: at, nonce, enclosed, content };
        wire::encode_delivery(&delivery).unwrap()
    };
    let token = Notice::Token { token: "e30.e30.c2lnbmF0dXJl".into() };
    let clear = |notice| wire::encode_notice(notice).unwrap();
    let jwks = IssuerKeys { issued_at: at, jwks: br#"{"keys":[]}"#.to_vec() };
    vec![
        (Kind::Keys, "one root, a content key and a heartbeat key", wire::encode_keys(&forge.keys_meant(3)).unwrap()),
        (Kind::Manifest, "a manifest with a ladder of two pieces", wire::encode_manifest(&manifest).unwrap()),
        (Kind::Manifest, "the manifest of an empty history", wire::encode_manifest(&empty).unwrap()),
        (Kind::Index, "an epoch with filter, list and cutoffs", wire::encode_index(&epochal.index).unwrap()),
        (Kind::Chunk, "a chunk of a list", chunk(Artifact::List, Layer::Content, 2, &[1, 2, 3])),
        (Kind::Chunk, "a page of digests", chunk(Artifact::Filter, Layer::Pages, 0, &[0xab; 64])),
        (
            Kind::Chunk,
            "the cutoffs",
            chunk(Artifact::Cutoffs, Layer::Content, 0, &wire::encode_cutoffs(&cutoffs).unwrap()),
        ),
        (Kind::Delta, "all four kinds of statements", wire::encode_delta(&delta, width).unwrap()),
        (Kind::Delta, "one revocation", wire::encode_delta(&one, width).unwrap()),
        (Kind::Report, "a device in good standing", report(Some(std::time::Duration::from_millis(1_500)), Some(9))),
        (Kind::Report, "a device that has proven nothing", report(None, None)),
        (Kind::Ask, "a question with everything in it", wire::encode_question(&question).unwrap()),
        (Kind::Ask, "a question with nothing but a token and its end", wire::encode_question(&bare).unwrap()),
        (Kind::Answer, "not revoked", answer(Finding::NotRevoked)),
        (Kind::Answer, "revoked by its jti", answer(Finding::Revoked { why: Why::Token })),
        (Kind::Answer, "revoked by a cutoff", answer(Finding::Revoked { why: cut })),
        (Kind::Answer, "expired", answer(Finding::Revoked { why: Why::Expired { horizon: horizon(50) } })),
        (Kind::Renew, "a device that wants a token", wire::encode_renew(&renew).unwrap()),
        (Kind::Delivery, "an enclosed token that was asked for", delivery(Some(nonce), true, vec![0x5a; 70])),
        (Kind::Delivery, "a token in clear that nobody asked for", delivery(None, false, clear(&token))),
        (Kind::IssuerKeys, "no keys, which is a key set, too", wire::encode_issuer_keys(&jwks).unwrap()),
    ]
}

fn offers(forge: &Forge) -> Vec<Offer<'static>> {
    let (root, content) = (forge.root.public(), forge.content.public());
    let signer = |kind| {
        if kind == Kind::Keys { &forge.root } else { &forge.content }
    };
    // Those of devices may be signed, by keys that only the server knows.
    let unsigned = |kind| matches!(kind, Kind::Chunk | Kind::Report | Kind::Ask | Kind::Renew);
    let mut offers = Vec::new();
    for (number, (kind, comment, body)) in bodies(forge).into_iter().enumerate() {
        let keys: &[&SigningKey] = if unsigned(kind) { &[] } else { &[signer(kind)] };
        offers.push(Offer {
            id: format!("{kind}-{number}"),
            comment,
            kind,
            trusted: keys.iter().map(|key| key.public()).collect(),
            need: keys.len() as u8,
            bytes: seal(kind, &forge.realm, &body, keys),
        });
    }
    let (_, _, body) = bodies(forge).into_iter().rfind(|(kind, ..)| *kind == Kind::Delta).unwrap();
    let good = seal(Kind::Delta, &forge.realm, &body, &[&forge.content]);
    let mut add = |id: &str, comment, kind, trusted: Vec<PublicKey>, need, bytes| {
        offers.push(Offer { id: id.to_owned(), comment, kind, trusted, need, bytes });
    };
    let delta = Kind::Delta;
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let sealed = |body: &[u8]| seal(Kind::Delta, &forge.realm, body, &[&forge.content]);
    let put = |at: usize, lie: &[u8]| {
        let mut body = body.clone();
        body[at..at + lie.len()].copy_from_slice(lie);
        sealed(&body)
    };
    add("two-signatures", "two of two roots signed", Kind::Keys, vec![root, content], 2, {
        seal(Kind::Keys, &forge.realm, &bodies(forge)[0].2, &[&forge.root, &forge.content])
    });
    add(
        "extra-signature",
        "a stranger's signature beside a good one does no harm",
        delta,
        vec![content],
        1,
        seal(delta, &forge.realm, &body, &[&forge.heartbeat, &forge.content]),
    );
    add("no-bytes", "nothing", delta, vec![content], 1, Vec::new());
    add("no-magic", "another magic", delta, vec![content], 1, with(0, b'X'));
    add("format-2", "a format not spoken", delta, vec![content], 1, with(3, 2));
    add("kind-0", "an unknown kind", delta, vec![content], 1, with(4, 0));
    add("kind-12", "an unknown kind", delta, vec![content], 1, with(4, 12));
    add("realm-empty", "a realm id of no bytes", delta, vec![content], 1, with(5, 0));
    add("realm-long", "a realm id longer than the object", delta, vec![content], 1, with(5, 255));
    add("realm-upper", "a realm id with another character", delta, vec![content], 1, with(6, b'S'));
    add("count-17", "more signatures than allowed", delta, vec![content], 1, with(good.len() - 1, 17));
    add("count-16", "more signatures than the bytes hold", delta, vec![content], 1, with(good.len() - 1, 16));
    add("other-kind", "a delta where a manifest belongs", Kind::Manifest, vec![content], 1, good.clone());
    add("other-realm", "another realm's object", delta, vec![content], 1, {
        seal(delta, &RealmId::new("others").unwrap(), &body, &[&forge.content])
    });
    add("unsigned", "no signature", delta, vec![content], 1, seal(delta, &forge.realm, &body, &[]));
    add("stranger", "a signature by an unknown key", delta, vec![root], 1, good.clone());
    add("flipped-body", "one bit of the body", delta, vec![content], 1, with(20, good[20] ^ 1));
    add(
        "flipped-signature",
        "one bit of the signature",
        delta,
        vec![content],
        1,
        with(good.len() - 9, good[good.len() - 9] ^ 1),
    );
    add(
        "flipped-key-id",
        "one bit of the key id",
        delta,
        vec![content],
        1,
        with(good.len() - 73, good[good.len() - 73] ^ 1),
    );
    add(
        "relabeled",
        "signed as a delta, labeled a manifest",
        Kind::Manifest,
        vec![content],
        1,
        with(4, Kind::Manifest as u8),
    );
    add(
        "too-few",
        "one root of two signed",
        Kind::Keys,
        vec![root, content],
        2,
        seal(Kind::Keys, &forge.realm, &bodies(forge)[0].2, &[&forge.root]),
    );
    add("one-twice", "one root signed twice", Kind::Keys, vec![root, content], 2, {
        seal(Kind::Keys, &forge.realm, &bodies(forge)[0].2, &[&forge.root, &forge.root])
    });
    add("trailing", "a byte after the last field", delta, vec![content], 1, sealed(&[&body[..], &[0]].concat()));
    add("short", "a byte less than its fields take", delta, vec![content], 1, sealed(&body[..body.len() - 1]));
    add("no-range", "from equals to", delta, vec![content], 1, put(4, &1_005_u64.to_le_bytes()));
    add("count-lies", "2^32 - 1 revocations in a few bytes", delta, vec![content], 1, put(36, &[0xff; 4]));
    add("cutoffs-lie", "more cutoffs than allowed", delta, vec![content], 1, put(44, &[0xff; 2]));
    let mut manifest = bodies(forge)[1].2.clone();
    // The lowest byte of where the second piece begins.
    let begins = manifest.len() - 52;
    manifest[begins] ^= 1;
    add(
        "hole-in-ladder",
        "a piece does not begin where the last one ended",
        Kind::Manifest,
        vec![content],
        1,
        seal(Kind::Manifest, &forge.realm, &manifest, &[&forge.content]),
    );
    let mut index = bodies(forge)[3].2.clone();
    index[60] ^= 1;
    add(
        "odd-blocks",
        "a filter whose blocks do not fold evenly",
        Kind::Index,
        vec![content],
        1,
        seal(Kind::Index, &forge.realm, &index, &[&forge.content]),
    );
    let meant = |kind| bodies(forge).into_iter().find(|(of, ..)| *of == kind).unwrap().2;
    let mut change = |id: &str, comment, kind, change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = meant(kind);
        change(&mut body);
        add(id, comment, kind, vec![content], 1, seal(kind, &forge.realm, &body, &[&forge.content]));
    };
    change("counter-0", "a counter that never rose", Kind::Renew, &|body| body[..8].fill(0));
    change("device-long", "a device id longer than the body", Kind::Renew, &|body| body[32] += 1);
    change("device-short", "a byte behind the device id", Kind::Renew, &|body| body[32] -= 1);
    change("delivery-flags", "a flag that nothing means", Kind::Delivery, &|body| body[8] |= 4);
    change("delivery-nonce", "a nonce that is not there", Kind::Delivery, &|body| body[8] = 2);
    change("delivery-bare", "an enclosure without content", Kind::Delivery, &|body| body.truncate(32 + 48));
    change("delivery-long", "more than a delivery carries", Kind::Delivery, &|body| body.resize(32 + 8_242, 0));
    change("jwks-none", "no key set", Kind::IssuerKeys, &|body| body.truncate(8));
    change("jwks-long", "a key set larger than allowed", Kind::IssuerKeys, &|body| body.resize(8 + 16_385, b' '));
    change("jwks-no-text", "a key set that is no UTF-8", Kind::IssuerKeys, &|body| body[8] = 0xff);
    let mut keys = bodies(forge)[0].2.clone();
    keys[24] = 0;
    add("threshold-0", "a threshold of none", Kind::Keys, vec![root], 1, {
        seal(Kind::Keys, &forge.realm, &keys, &[&forge.root])
    });
    offers
}

fn sealed_objects() -> Value {
    let forge = forge();
    let made: Vec<Value> = offers(&forge)
        .into_iter()
        .map(|offer| {
            let trusted: Vec<String> = offer.trusted.iter().map(|key| hex(&key.0)).collect();
            let (result, flags) = match open(&offer.bytes, &forge.realm, offer.kind, &offer.trusted, offer.need) {
                Ok(meaning) => (meaning, Vec::new()),
                Err(refusal) => (Value::Null, vec![flag(&refusal)]),
            };
            json!({
                "id": offer.id, "comment": offer.comment, "kind": offer.kind.name(), "realm": forge.realm.as_str(),
                "width": forge.fingerprinter.width().bits(), "trusted": trusted, "need": offer.need,
                "bytes": hex(&offer.bytes), "result": result, "flags": flags,
            })
        })
        .collect();
    file(
        "Sealed objects of every kind, and what a receiver that expects `kind` of `realm`, signed by `need` of `trusted`, makes of them.",
        &made,
    )
}

/// Every token of these worlds that was issued before this is registered.
const COVERED_UNTIL: u64 = START + 50;

/// What a device of the covered profile says about every `jti` that a vector asks about, or why it refuses the base.
fn covered_answers(vector: &Value) -> Result<Vec<String>, Refusal> {
    let mut forge = forge();
    let function = match vector["function"].as_str().unwrap() {
        "xxh3-64" => FingerprintFunction::Xxh3,
        "sha256-64" => FingerprintFunction::Sha256,
        other => panic!("{other}"),
    };
    let wide = width(&vector["width"]);
    forge.fingerprinter = Fingerprinter::new(function, RealmKey(array(&vector["key"])), wide);
    let number = |name: &str| vector[name].as_u64().unwrap();
    let params =
        FilterParams::new(Salt(array(&vector["salt"])), number("blocks") as u32, number("probes") as u8).unwrap();
    let artifacts = [
        (Artifact::Filter, number("inserted"), unhex(&vector["filter"])),
        (Artifact::Exceptions, number("entries"), unhex(&vector["bytes"])),
        (Artifact::Cutoffs, 0, Vec::new()),
    ];
    let until = UnixTime::from_secs(number("covered_until"));
    let epochal = forge.epoch_from(1, 3, params, &artifacts, Some(until), 80);
    let mut device = forge.device(prompt(Profile::Covered), 100);
    device.serve(&forge.shelf(&epochal, &[], 3, 90));
    if let Some(refusal) = device.refused.pop() {
        return Err(refusal);
    }
    let fingerprints = |name: &str| -> Vec<Fingerprint> {
        vector[name].as_array().unwrap().iter().map(|key| Fingerprint::from_bits(bits(key), wide).unwrap()).collect()
    };
    let mut delta = forge.delta_meant((3, 4), &[], &[], 90);
    (delta.revoked, delta.reinstated) = (fingerprints("revoked"), fingerprints("reinstated"));
    assert!(device.give(Address::Live, &forge.delta(&delta)).is_empty());
    let asked = vector["asked"].as_array().unwrap().iter().zip(vector["iats"].as_array().unwrap());
    let answers = asked.map(|(jti, iat)| {
        let jti = Jti::new(jti.as_str().unwrap()).unwrap();
        let iat = iat.as_u64().map(UnixTime::from_secs);
        let claims = Claims { iat, ..Claims::new(jti, UnixTime::from_secs(START + 5_000)) };
        let (verdict, by) = device.exposed.explain(device.now(), &claims);
        format!("{} by {}", verdict.name(), by.name())
    });
    Ok(answers.collect())
}

/// Random worlds: a filter, the exceptions of good tokens that it matches, and what came since.
fn covered_worlds() -> Value {
    let mut random = Random::new(5);
    let mut made = Vec::new();
    let mut met = std::collections::BTreeMap::new();
    for world in 0..100 {
        let function = [FingerprintFunction::Xxh3, FingerprintFunction::Sha256][world % 2];
        let fingerprinter = Fingerprinter::new(function, RealmKey(random.sixteen()), WIDTHS[world % 3]);
        let (salt, blocks) = (Salt(random.sixteen()), 4 + 4 * random.below(2) as u32);
        let params = FilterParams::new(salt, blocks, 1 + random.below(3) as u8).unwrap();
        // The first are revoked in the base, of the others all but the strangers are registered.
        let jtis: Vec<String> = (0..600).map(|number| format!("w{world}-{number}")).collect();
        let print = |jti: &String| fingerprinter.fingerprint(Jti::new(jti).unwrap());
        let split = 200 + random.below(200) as usize;
        let (listed, others) = jtis.split_at(if world == 0 { 0 } else { split });
        let (good, strangers) = others.split_at(others.len() - 30);
        let mut keys: Vec<_> = listed.iter().map(print).collect();
        keys.sort_unstable();
        let filter = FilterBuf::build(params, keys.iter().copied());
        let flagged = |jti: &&String| filter.query(print(jti)) == Membership::Possible;
        let excepted: Vec<_> = good.iter().filter(flagged).map(print).collect();
        let filter_bytes = filter.to_bytes();
        let coded = exceptions::encode(&Digest::of(&filter_bytes), salt, &excepted, &keys).unwrap();
        // Since the base: some of the excepted and of the others were revoked, some of the listed reinstated.
        let some = |random: &mut Random, from: &[String], percent| -> Vec<String> {
            from.iter().filter(|_| random.chance(percent)).cloned().collect()
        };
        let revoked: Vec<String> = [some(&mut random, good, 10), some(&mut random, strangers, 10)].concat();
        let reinstated = some(&mut random, listed, 5);
        let sorted = |jtis: &[String]| {
            let mut keys: Vec<_> = jtis.iter().map(print).collect();
            keys.sort_unstable();
            wides(&keys)
        };
        let mut pick = |from: &[String], count| -> Vec<String> {
            let count = if from.is_empty() { 0 } else { count };
            (0..count).map(|_| random.pick(from).clone()).collect()
        };
        let matched: Vec<String> = good.iter().filter(flagged).cloned().collect();
        let asked = [
            pick(listed, 6),
            pick(&reinstated, 2),
            pick(&matched, 8),
            pick(good, 4),
            pick(strangers, 4),
            pick(&revoked, 2),
        ]
        .concat();
        let iats: Vec<Option<u64>> = asked
            .iter()
            .map(|jti| match random.below(4) {
                _ if good.contains(jti) => Some(START + 10),
                0 => None,
                1 => Some(COVERED_UNTIL),
                // A stranger is one that was issued after the coverage.
                _ if strangers.contains(jti) => Some(COVERED_UNTIL + 10),
                _ => Some(COVERED_UNTIL - 1),
            })
            .collect();
        let mut vector = json!({
            "id": format!("world-{world}"), "comment": "filter and exceptions, and what came since",
            "function": function_name(function), "key": hex(&fingerprinter.key().0),
            "width": fingerprinter.width().bits(), "salt": hex(&salt.0), "blocks": blocks, "probes": params.probes(),
            "inserted": keys.len(), "filter": hex(&filter_bytes), "entries": coded.entries, "bytes": hex(&coded.bytes),
            "covered_until": COVERED_UNTIL, "revoked": sorted(&revoked), "reinstated": sorted(&reinstated),
            "asked": asked, "iats": iats, "flags": [],
        });
        let answers = covered_answers(&vector).unwrap();
        for (jti, answer) in asked.iter().zip(&answers) {
            // The truth, which neither reader is told.
            let is_revoked = revoked.contains(jti) || listed.contains(jti) && !reinstated.contains(jti);
            let wrong = if is_revoked { "not-revoked" } else { "revoked" };
            assert!(!answer.starts_with(&format!("{wrong} ")), "world {world}: {jti} is {answer}");
            *met.entry(answer.clone()).or_insert(0) += 1;
        }
        vector["result"] = json!(answers);
        if world == 7 {
            made.extend(damaged_worlds(&vector));
        }
        made.push(vector);
    }
    let enough = ["revoked by recent", "not-revoked by recent", "not-revoked by exceptions", "revoked by coverage"];
    assert!(enough.iter().all(|answer| met.get(*answer).is_some_and(|count| *count > 50)), "{met:?}");
    assert!(met["suspect by filter"] > 50 && met["not-revoked by filter"] > 20, "{met:?}");
    file(
        "Filter and exceptions of a base, statements since, and what a device of the covered profile says about some tokens.",
        &made,
    )
}

/// The same world with its exceptions damaged, or those of another filter.
fn damaged_worlds(whole: &Value) -> Vec<Value> {
    let bytes = unhex(&whole["bytes"]);
    let with = |at: usize, byte: u8| {
        let mut damaged = bytes.clone();
        damaged[at] = byte;
        damaged
    };
    let damages: [(&str, &str, Vec<u8>); 6] = [
        ("another-filter", "the digest of another filter", with(0, bytes[0] ^ 1)),
        ("width-0", "keys of no bits", with(36, 0)),
        ("width-65", "keys of too many bits", with(36, 65)),
        ("half-a-head", "less than a head", bytes[..36].to_vec()),
        ("cut-short", "the last byte is missing", bytes[..bytes.len() - 1].to_vec()),
        ("trailing", "one byte more", [&bytes[..], &[0]].concat()),
    ];
    let damaged = damages.map(|(id, comment, bytes)| {
        let mut vector = whole.clone();
        (vector["id"], vector["comment"], vector["bytes"]) = (json!(id), json!(comment), json!(hex(&bytes)));
        let refusal = covered_answers(&vector).unwrap_err();
        (vector["result"], vector["flags"]) = (Value::Null, json!([flag(&refusal)]));
        vector
    });
    damaged.to_vec()
}

fn file(description: &str, vectors: &[Value]) -> Value {
    json!({ "format": 1, "description": description, "vectors": vectors })
}

/// What a device makes of a delivery's content, by a seed of its key.
fn disclosed(vector: &Value) -> Result<Value, &'static str> {
    let text = |name: &str| vector[name].as_str().unwrap();
    let (realm, device) = (RealmId::new(text("realm")).unwrap(), DeviceId::new(text("device")).unwrap());
    let nonce: Option<Nonce> = (!vector["nonce"].is_null()).then(|| array(&vector["nonce"]));
    let bound = Delivery::bound(UnixMillis::from_millis(vector["issued_at"].as_u64().unwrap()), nonce.as_ref());
    let key = EnvelopeKey::from_seed(array(&vector["seed"]));
    let plain = disclose(&key, &realm, &device, &bound, &unhex(&vector["bytes"])).map_err(|_| "Sealed")?;
    match wire::decode_notice(&plain).map_err(|_| "Malformed")? {
        Notice::Token { token } => Ok(json!({ "token": &*token })),
        Notice::Refused { why } => Ok(json!({ "refused": why as u8 })),
    }
}

fn envelopes() -> Value {
    let (realm, device) = (RealmId::new("fleet").unwrap(), DeviceId::new("pump-1").unwrap());
    let key = EnvelopeKey::from_seed([7; 32]);
    let at = UnixMillis::from_millis(1_767_225_700_123);
    let asked: Nonce = core::array::from_fn(|at| at as u8 + 1);
    let enclosed = |nonce: Option<&Nonce>, plain: &[u8], random: u8| {
        enclose(&key.public(), &realm, &device, &Delivery::bound(at, nonce), plain, [random; 32]).unwrap()
    };
    let token = wire::encode_notice(&Notice::Token { token: "e30.e30.c2lnbmF0dXJl".into() }).unwrap();
    let longest = wire::encode_notice(&Notice::Token { token: "a".repeat(8_192).into() }).unwrap();
    let mut made = Vec::new();
    let mut add = |id: &str, comment: &str, nonce: Option<Nonce>, place: (&str, &str), bytes: &[u8]| {
        let mut vector = json!({
            "id": id, "comment": comment, "seed": hex(&[7; 32]), "public": hex(key.public().as_bytes()),
            "realm": place.0, "device": place.1, "issued_at": at.millis(), "nonce": nonce.map(|nonce| hex(&nonce)),
            "bytes": hex(bytes),
        });
        let (result, flags) = match disclosed(&vector) {
            Ok(notice) => (notice, json!([])),
            Err(flag) => (Value::Null, json!([flag])),
        };
        vector["result"] = result;
        vector["flags"] = flags;
        made.push(vector);
    };
    let here = ("fleet", "pump-1");
    let good = enclosed(Some(&asked), &token, 1);
    add("asked", "a token that was asked for", Some(asked), here, &good);
    add("unasked", "a token that nobody asked for", None, here, &enclosed(None, &token, 2));
    add("longest", "the longest token", None, here, &enclosed(None, &longest, 3));
    for why in NoRenewal::ALL {
        let notice = wire::encode_notice(&Notice::Refused { why }).unwrap();
        add(why.name(), "no token", Some(asked), here, &enclosed(Some(&asked), &notice, 10 + why as u8));
    }
    add("other-nonce", "bound to a nonce, shown without", None, here, &good);
    add("other-realm", "bound to another realm", Some(asked), ("flee", "pump-1"), &good);
    add("other-device", "bound to another device", Some(asked), ("fleet", "pump-2"), &good);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    add("flipped-key", "one bit of the encapsulated key", Some(asked), here, &flipped(0));
    add("flipped-token", "one bit of the token", Some(asked), here, &flipped(33));
    add("flipped-tag", "one bit of the tag", Some(asked), here, &flipped(good.len() - 1));
    add("cut", "a byte less", Some(asked), here, &good[..good.len() - 1]);
    add("key-0", "an encapsulated key with which everybody could read", Some(asked), here, &{
        let mut bytes = good.clone();
        bytes[..32].fill(0);
        bytes
    });
    for (id, comment, plain) in [
        ("no-notice", "nothing was enclosed", &b""[..]),
        ("no-token", "a token of no bytes", &[1]),
        ("no-kind", "a notice of no kind", &[3, 1]),
        ("no-reason", "a reason that is none", &[2, 7]),
        ("two-reasons", "a byte after the reason", &[2, 1, 1]),
        ("no-jws", "a token with a space", b"\x01a b"),
    ] {
        add(id, comment, None, here, &enclosed(None, plain, 20));
    }
    file("What is enclosed for one device (HPKE), and what its holder of the key reads.", &made)
}

/// Whether a proof of enrollment holds.
fn proven(vector: &Value) -> bool {
    let text = |name: &str| vector[name].as_str().unwrap();
    let keys = DeviceKeys {
        realm: RealmId::new(text("realm")).unwrap(),
        device: DeviceId::new(text("device")).unwrap(),
        signing: PublicKey(array(&vector["signing"])),
        sealing: EnvelopePublicKey::parse(array(&vector["sealing"])).unwrap(),
    };
    keys.are_proven_by(&array(&vector["bytes"]))
}

fn enrollments() -> Value {
    let signer = SigningKey::from_seed([1; 32]);
    let keys = DeviceKeys {
        realm: RealmId::new("fleet").unwrap(),
        device: DeviceId::new("pump-1").unwrap(),
        signing: signer.public(),
        sealing: EnvelopeKey::from_seed([7; 32]).public(),
    };
    let proof = keys.prove(&signer);
    let mut flipped = proof;
    flipped[0] ^= 1;
    let other = DeviceKeys { device: DeviceId::new("pump-2").unwrap(), ..keys };
    let made = [
        ("good", "the keys as they were proven", &keys, proof),
        ("other-device", "proven for another device", &other, proof),
        ("other-signer", "proven by another key", &keys, keys.prove(&SigningKey::from_seed([2; 32]))),
        ("flipped", "one bit of the proof", &keys, flipped),
    ]
    .map(|(id, comment, keys, proof)| {
        let mut vector = json!({
            "id": id, "comment": comment, "realm": keys.realm.as_str(), "device": keys.device.as_str(),
            "signing": hex(&keys.signing.0), "sealing": hex(keys.sealing.as_bytes()), "bytes": hex(&proof), "flags": [],
        });
        vector["result"] = json!(proven(&vector));
        vector
    });
    file("What a device signs when it is enrolled.", &made)
}

/// All files, by name.
fn files() -> [(&'static str, Value); 8] {
    [
        ("fingerprints.json", fingerprints()),
        ("scopes.json", scopes()),
        ("filters.json", filters()),
        ("lists.json", lists()),
        ("exceptions.json", covered_worlds()),
        ("sealed.json", sealed_objects()),
        ("envelopes.json", envelopes()),
        ("enrollments.json", enrollments()),
    ]
}

// ---- Reading them --------------------------------------------------------------------------------

/// The name of a refusal as a flag.
fn flag(refusal: &Refusal) -> String {
    refusal
        .name()
        .split('-')
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}

fn open(bytes: &[u8], realm: &RealmId, kind: Kind, trusted: &[PublicKey], need: u8) -> Result<Value, Refusal> {
    let sealed = Sealed::expect(bytes, realm, kind)?;
    let body = match need {
        0 => sealed.unverified_body(),
        need => sealed.by_threshold(trusted, need)?.into_inner(),
    };
    let times = |cutoffs: &[Cutoff]| -> Vec<Value> {
        let one = |cutoff: &Cutoff| json!([cutoff.scope.kind as u8, wide(cutoff.scope.name), cutoff.not_before.secs()]);
        cutoffs.iter().map(one).collect()
    };
    Ok(match kind {
        Kind::Keys => {
            let keys = wire::decode_keys(body)?;
            let publishers: Vec<Value> = keys
                .publishers
                .iter()
                .map(|publisher| json!([hex(&publisher.key.0), publisher.role, publisher.not_after.secs()]))
                .collect();
            json!({
                "version": keys.version, "issued_at": keys.issued_at.millis(), "not_after": keys.not_after.secs(),
                "threshold": keys.threshold, "function": function_name(keys.fingerprinter.function()),
                "width": keys.fingerprinter.width().bits(), "key": hex(&keys.fingerprinter.key().0),
                "leeway": keys.leeway, "roots": keys.roots.iter().map(|root| hex(&root.0)).collect::<Vec<_>>(),
                "publishers": publishers, "issuer": &*keys.issuer,
            })
        }
        Kind::Manifest => {
            let manifest = wire::decode_manifest(body)?;
            let ladder: Vec<Value> = manifest
                .ladder
                .iter()
                .map(|piece| json!([piece.from.0, piece.to.0, piece.bytes, hex(&piece.digest.0)]))
                .collect();
            json!({
                "term": manifest.term.0, "epoch": manifest.epoch.0, "sequence": manifest.sequence.0,
                "issued_at": manifest.issued_at.millis(), "next_update": manifest.next_update.secs(),
                "horizon": manifest.horizon.secs(), "index": hex(&manifest.index.0), "ladder": ladder,
            })
        }
        Kind::Index => {
            let index = wire::decode_index(body)?;
            let artifacts: Vec<Value> = index
                .artifacts
                .iter()
                .map(|summary| {
                    let pages: Vec<String> = summary.pages.iter().map(|page| hex(&page.0)).collect();
                    json!([summary.artifact as u8, summary.entries, summary.bytes, pages])
                })
                .collect();
            json!({
                "term": index.term.0, "epoch": index.epoch.0, "sequence": index.sequence.0,
                "issued_at": index.issued_at.millis(), "horizon": index.horizon.secs(),
                "covered_until": index.covered_until.secs(), "salt": hex(&index.filter.salt().0),
                "blocks": index.filter.blocks(), "probes": index.filter.probes(), "chunk_bytes": index.chunk_bytes,
                "artifacts": artifacts,
            })
        }
        Kind::Chunk => {
            let chunk = wire::decode_chunk(body)?;
            json!({
                "term": chunk.term.0, "epoch": chunk.epoch.0, "artifact": chunk.artifact as u8,
                "layer": chunk.layer as u8, "number": chunk.number, "content": hex(chunk.content),
            })
        }
        Kind::Delta => {
            let delta = wire::decode_delta(body, Width::W48)?;
            let lifts: Vec<Value> = delta.lifts.iter().map(|lift| json!([lift.kind as u8, wide(lift.name)])).collect();
            json!({
                "term": delta.term.0, "from": delta.from.0, "to": delta.to.0, "issued_at": delta.issued_at.millis(),
                "horizon": delta.horizon.secs(), "revoked": wides(&delta.revoked),
                "reinstated": wides(&delta.reinstated), "cutoffs": times(&delta.cutoffs), "lifts": lifts,
            })
        }
        Kind::Report => {
            let report = wire::decode_report(body)?;
            json!({
                "term": report.term.0, "epoch": report.position.epoch.0, "sequence": report.position.sequence.0,
                "age": report.age.map(|age| age.as_millis() as u64), "profile": report.profile,
                "memory_bytes": report.memory_bytes, "refusals": report.refusals,
                "last_refusal": report.last_refusal,
            })
        }
        Kind::Ask => {
            let question = wire::decode_question(body, Width::W48)?;
            json!({
                "device": question.device.as_str(), "nonce": hex(&question.nonce),
                "fingerprint": wide(question.fingerprint.bits()), "exp": question.exp.secs(),
                "iat": question.iat.map(UnixTime::secs), "sub": question.sub.map(wide), "kid": question.kid.map(wide),
                "client": question.client.map(wide),
            })
        }
        Kind::Answer => {
            let answer = wire::decode_answer(body, Width::W48)?;
            let (finding, cutoff) = match answer.finding {
                Finding::NotRevoked => ("not-revoked", None),
                Finding::Revoked { why: Why::Cutoff { scope, not_before } } => {
                    ("cutoff", Some((scope as u8, not_before.secs())))
                }
                Finding::Revoked { why } => (why.name(), None),
            };
            json!({
                "device": answer.device.as_str(), "nonce": hex(&answer.nonce),
                "fingerprint": wide(answer.fingerprint.bits()), "finding": finding, "cutoff": cutoff,
                "term": answer.term.0, "sequence": answer.sequence.0, "issued_at": answer.issued_at.millis(),
                "horizon": answer.horizon.secs(),
            })
        }
        Kind::Renew => {
            let renew = wire::decode_renew(body)?;
            json!({
                "device": renew.device.as_str(), "counter": renew.counter, "nonce": hex(&renew.nonce),
                "at": renew.at.millis(),
            })
        }
        Kind::Delivery => {
            let delivery = wire::decode_delivery(body)?;
            json!({
                "device": delivery.device.as_str(), "issued_at": delivery.issued_at.millis(),
                "nonce": delivery.nonce.map(|nonce| hex(&nonce)), "enclosed": delivery.enclosed,
                "content": hex(&delivery.content),
            })
        }
        Kind::IssuerKeys => {
            let keys = wire::decode_issuer_keys(body)?;
            json!({ "issued_at": keys.issued_at.millis(), "jwks": std::str::from_utf8(&keys.jwks).unwrap() })
        }
    })
}

#[test]
fn the_files_are_what_this_code_makes() {
    for (name, made) in files() {
        let path = folder().join(name);
        let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
        if std::env::var_os("REVOCAST_WRITE_VECTORS").is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text,
            "{name} differs from what this code makes: the format changed, which devices in the field do not survive"
        );
    }
}

#[test]
fn fingerprints_and_scopes_are_read_as_they_say() {
    for vector in vectors("fingerprints.json") {
        let function = match vector["function"].as_str().unwrap() {
            "xxh3-64" => FingerprintFunction::Xxh3,
            "sha256-64" => FingerprintFunction::Sha256,
            other => panic!("{other}"),
        };
        let jti = String::from_utf8(unhex(&vector["bytes"])).unwrap();
        let fingerprinter = Fingerprinter::new(function, RealmKey(array(&vector["key"])), width(&vector["width"]));
        let claims = Claims::new(Jti::new(&jti).unwrap(), UnixTime::default());
        assert_eq!(wide(fingerprinter.fingerprint(claims.jti).bits()), vector["result"], "{}", vector["id"]);
    }
    for vector in vectors("scopes.json") {
        let key = RealmKey(array(&vector["key"]));
        let kind = ScopeKind::from_number(vector["kind"].as_u64().unwrap() as u8).unwrap();
        let text = String::from_utf8(unhex(&vector["bytes"])).unwrap();
        let scope = Scope::new(&Fingerprinter::new(FingerprintFunction::Sha256, key, Width::W64), kind, &text);
        assert_eq!(wide(scope.name), vector["result"], "{}", vector["id"]);
    }
}

#[test]
fn filters_and_lists_are_read_as_they_say() {
    for vector in vectors("filters.json") {
        let (blocks, probes) = (vector["blocks"].as_u64().unwrap() as u32, vector["probes"].as_u64().unwrap() as u8);
        let params = FilterParams::new(Salt(array(&vector["salt"])), blocks, probes).unwrap();
        let bytes = unhex(&vector["bytes"]);
        let filter = Filter::new(params, &bytes).unwrap();
        let ask =
            |key: &Value| filter.query(Fingerprint::from_bits(bits(key), Width::W64).unwrap()) == Membership::Possible;
        assert!(vector["inserted"].as_array().unwrap().iter().all(ask), "{}", vector["id"]);
        let answers: Vec<bool> = vector["asked"].as_array().unwrap().iter().map(ask).collect();
        assert_eq!(json!(answers), vector["result"], "{}", vector["id"]);
    }
    for vector in vectors("lists.json") {
        let (bytes, count) = (unhex(&vector["bytes"]), vector["count"].as_u64().unwrap());
        match rice::decode(&bytes, count, width(&vector["width"])) {
            Ok(keys) => assert_eq!(json!(wides(&keys)), vector["result"], "{}", vector["id"]),
            Err(error) => assert_eq!(vector["flags"], json!(["Malformed"]), "{}: {error}", vector["id"]),
        }
    }
}

#[test]
fn filters_with_exceptions_are_read_as_they_say() {
    for vector in vectors("exceptions.json") {
        let (result, flags) = match covered_answers(&vector) {
            Ok(answers) => (json!(answers), json!([])),
            Err(refusal) => (Value::Null, json!([flag(&refusal)])),
        };
        assert_eq!((&result, &flags), (&vector["result"], &vector["flags"]), "{}", vector["id"]);
    }
}

#[test]
fn envelopes_and_proofs_are_read_as_they_say() {
    for vector in vectors("envelopes.json") {
        let (result, flags) = match disclosed(&vector) {
            Ok(notice) => (notice, json!([])),
            Err(flag) => (Value::Null, json!([flag])),
        };
        assert_eq!((&result, &flags), (&vector["result"], &vector["flags"]), "{}", vector["id"]);
    }
    for vector in vectors("enrollments.json") {
        assert_eq!(json!(proven(&vector)), vector["result"], "{}", vector["id"]);
    }
}

#[test]
fn sealed_objects_are_read_as_they_say() {
    let mut flags = std::collections::BTreeSet::new();
    for vector in vectors("sealed.json") {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == vector["kind"]).unwrap();
        let realm = RealmId::new(vector["realm"].as_str().unwrap()).unwrap();
        let trusted: Vec<_> = vector["trusted"].as_array().unwrap().iter().map(|key| PublicKey(array(key))).collect();
        let need = vector["need"].as_u64().unwrap() as u8;
        match open(&unhex(&vector["bytes"]), &realm, kind, &trusted, need) {
            Ok(meaning) => {
                assert_eq!((&meaning, &vector["flags"]), (&vector["result"], &json!([])), "{}", vector["id"]);
            }
            Err(refusal) => {
                assert_eq!(
                    (&vector["result"], &vector["flags"]),
                    (&Value::Null, &json!([flag(&refusal)])),
                    "{}",
                    vector["id"]
                );
                flags.insert(flag(&refusal));
            }
        }
    }
    // What bytes alone can be refused for; the rest needs a history (tests/hostile.rs).
    let expected = ["Extraneous", "Format", "Malformed", "Threshold", "WrongKey", "WrongRealm"];
    assert_eq!(flags.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_reader_in_another_language_agrees() {
    let python = std::env::var_os("REVOCAST_PYTHON")
        .expect("REVOCAST_PYTHON names no Python; run this through tests/run, which sets it up");
    let output = Command::new(python).arg(folder().join("read.py")).arg(folder()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    let count: usize = files().iter().map(|(_, file)| file["vectors"].as_array().unwrap().len()).sum();
    assert_eq!(out.trim(), format!("{count} vectors read, 0 differ"));
}
