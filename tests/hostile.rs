//! What a hostile broker, a damaged disk or a wrong clock can do, and what comes of it.
//!
//! First one test per [`Refusal`], in the order of the enum: refused by that name, counted, nothing
//! changed, and good objects are taken in afterwards. Then the rows of the table of attacks that core
//! and publisher can show by themselves.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines, clippy::similar_names, clippy::many_single_char_names)] // a history is told in one piece

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use revocast_core::artifact::{Cut, Cutting};
use revocast_core::limits::{CHUNK_BYTES_MAX, RECENT_ENTRIES_MAX, SEALED_BYTES_MAX};
use revocast_core::update::{Answer, Artifact, ArtifactSummary, Finding, Layer};
use revocast_core::{
    Address, Base, Claims, Cutoff, Delta, DeviceId, Digest, Doubt, Epoch, Event, Filter, FilterBuf, FilterParams,
    Fingerprint, FingerprintFunction, Fingerprinter, Index, Jti, Kind, Membership, Profile, RealmId, RealmKey, Refusal,
    Salt, Scope, ScopeKind, Sealed, Sequence, SigningKey, Term, UnixTime, Verdict, Width, Witness, rice, seal, wire,
};
use revocast_server::ledger::{self, Entry, Ledger as _, Statement};
use revocast_server::publisher::proof::Meant;
use revocast_server::publisher::{Book, Settings, proof};
use revocast_tests::follower::{Follower, Shelf, Site, prompt, small_settings};
use revocast_tests::forge::{Epochal, Forge, START, horizon, time};
use revocast_tests::{Random, colliding, ready};

const SECOND: Duration = Duration::from_secs(1);

fn is_revoked(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Revoked { .. })
}

fn is_good(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NotRevoked { .. })
}

fn names(refused: &[Refusal]) -> Vec<&'static str> {
    refused.iter().map(Refusal::name).collect()
}

/// A device in good standing: base at 3 with `a`, `b`, `c`; second 100.
fn scene() -> (Forge, Epochal, Follower) {
    scene_with(prompt(Profile::Exact))
}

fn scene_with(config: revocast_core::Config) -> (Forge, Epochal, Follower) {
    let forge = Forge::new(9);
    let base = forge.epoch(1, 3, &["a", "b", "c"], &[], 90);
    let mut device = forge.device(config, 100);
    device.serve(&forge.shelf(&base, &[], 3, 100));
    assert!(is_revoked(device.ask("a")) && is_good(device.ask("good")) && device.refused.is_empty());
    (forge, base, device)
}

/// Offers something that must be refused by this name, and by nothing else; nothing may change.
fn refuses(device: &mut Follower, name: &str, offer: impl FnOnce(&mut Follower) -> Vec<Refusal>) {
    let image = device.image();
    let (counts, before) = (*device.replica.refusals(), device.refused.len());
    offer(device);
    assert_eq!(names(&device.refused[before..]), [name]);
    let number = usize::from(device.refused[before].number());
    for (at, (was, is)) in counts.iter().zip(device.replica.refusals()).enumerate() {
        assert_eq!(*is, was + u64::from(at == number), "counted once, under its own number");
    }
    assert_eq!(device.image(), image);
}

/// Good objects are still taken in.
fn goes_on(forge: &Forge, device: &mut Follower) {
    let from = device.sequence();
    let next = forge.delta(&forge.delta_meant((from, from + 1), &["next"], &[], 100));
    assert!(is_good(device.ask("next")));
    assert!(device.give(Address::Live, &next).is_empty());
    assert_eq!(device.sequence(), from + 1);
    assert!(is_revoked(device.ask("next")) && is_revoked(device.ask("a")) && is_good(device.ask("good")));
}

// ---- One per refusal -----------------------------------------------------------------------------

#[test]
fn endless_data() {
    let (forge, base, mut device) = scene();
    let mut manifest = forge.manifest(&forge.manifest_meant(&base, 3, &[], 101));
    manifest.resize(SEALED_BYTES_MAX + 1, 0);
    for address in [Address::Manifest, Address::Keys, Address::Live] {
        refuses(&mut device, "endless-data", |device| device.give(address, &manifest));
        refuses(&mut device, "endless-data", |device| device.tell(Event::Oversize { address, bytes: 1 << 28 }));
    }
    goes_on(&forge, &mut device);
}

#[test]
fn malformed() {
    let (forge, _, mut device) = scene();
    let sealed = |kind, body: &[u8]| seal(kind, &forge.realm, body, &[&forge.content]);
    let good = forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100));
    let mut offers =
        vec![vec![0], b"RVC".to_vec(), vec![0xff; 300], good[..good.len() - 1].to_vec(), good[1..].to_vec()];
    // Signed by the right key and yet no delta: nothing, half of one, one and a byte, one that says nothing.
    let body = wire::encode_delta(&forge.delta_meant((3, 4), &["x"], &[], 100), Width::W48).unwrap();
    offers.push(sealed(Kind::Delta, &[]));
    offers.push(sealed(Kind::Delta, &body[..body.len() - 1]));
    offers.push(sealed(Kind::Delta, &[&body[..], &[0]].concat()));
    let mut backwards = body;
    backwards[4..12].copy_from_slice(&5_u64.to_le_bytes());
    offers.push(sealed(Kind::Delta, &backwards));
    for offer in offers {
        refuses(&mut device, "malformed", |device| device.give(Address::Live, &offer));
    }
    refuses(&mut device, "malformed", |device| device.give(Address::Manifest, &sealed(Kind::Manifest, &[1; 77])));
    goes_on(&forge, &mut device);
}

#[test]
fn format() {
    let (forge, _, mut device) = scene();
    let mut delta = forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100));
    for format in [0, 2, 255] {
        delta[3] = format;
        refuses(&mut device, "format", |device| device.give(Address::Live, &delta));
    }
    goes_on(&forge, &mut device);
}

#[test]
fn extraneous() {
    let (forge, base, mut device) = scene();
    let delta = forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100));
    let manifest = forge.manifest(&forge.manifest_meant(&base, 3, &[], 101));
    refuses(&mut device, "extraneous", |device| device.give(Address::Manifest, &delta));
    refuses(&mut device, "extraneous", |device| device.give(Address::Keys, &delta));
    refuses(&mut device, "extraneous", |device| device.give(Address::Live, &manifest));
    // The right kind under the name of another range.
    let elsewhere = Address::Ladder { from: Sequence(3), to: Sequence(5) };
    refuses(&mut device, "extraneous", |device| device.give(elsewhere, &delta));
    goes_on(&forge, &mut device);
}

#[test]
fn wrong_realm() {
    let (forge, base, mut device) = scene();
    let mut other = forge.clone();
    other.realm = RealmId::new("others").unwrap();
    let delta = other.delta(&other.delta_meant((3, 4), &[], &["a"], 100));
    let manifest = other.manifest(&other.manifest_meant(&base, 3, &[], 101));
    refuses(&mut device, "wrong-realm", |device| device.give(Address::Live, &delta));
    refuses(&mut device, "wrong-realm", |device| device.give(Address::Manifest, &manifest));
    refuses(&mut device, "wrong-realm", |device| device.give(Address::Keys, &other.keys(2)));
    goes_on(&forge, &mut device);
}

#[test]
fn wrong_key() {
    let (forge, base, mut device) = scene();
    let mut thief = forge.clone();
    thief.content = SigningKey::from_seed([77; 32]);
    thief.root = SigningKey::from_seed([78; 32]);
    let delta = thief.delta(&thief.delta_meant((3, 4), &[], &["a"], 100));
    let manifest = thief.manifest(&thief.manifest_meant(&base, 3, &[], 101));
    refuses(&mut device, "wrong-key", |device| device.give(Address::Live, &delta));
    refuses(&mut device, "wrong-key", |device| device.give(Address::Manifest, &manifest));
    refuses(&mut device, "wrong-key", |device| device.give(Address::Keys, &thief.keys(2)));
    // Unsigned, and signed by ours over other bytes under our id.
    let body = wire::encode_delta(&forge.delta_meant((3, 4), &[], &["a"], 100), Width::W48).unwrap();
    let unsigned = seal(Kind::Delta, &forge.realm, &body, &[]);
    refuses(&mut device, "wrong-key", |device| device.give(Address::Live, &unsigned));
    let good = forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100));
    let spliced = [&unsigned[..unsigned.len() - 1], &good[good.len() - 73..]].concat();
    refuses(&mut device, "wrong-key", |device| device.give(Address::Live, &spliced));
    goes_on(&forge, &mut device);
}

#[test]
fn wrong_role() {
    let (forge, base, mut device) = scene();
    // The heartbeat key renews and says nothing new: no delta, no higher sequence, no other index.
    let mut heartbeat = forge.clone();
    heartbeat.content = forge.heartbeat.clone();
    let delta = heartbeat.delta(&heartbeat.delta_meant((3, 4), &["x"], &[], 100));
    refuses(&mut device, "wrong-role", |device| device.give(Address::Live, &delta));
    let held = device.replica.manifest().unwrap().clone();
    let renewed = |change: &dyn Fn(&mut revocast_core::Manifest)| {
        let mut manifest = held.clone();
        manifest.issued_at = time(105);
        change(&mut manifest);
        heartbeat.manifest(&manifest)
    };
    let news: [fn(&mut revocast_core::Manifest); 4] = [
        |manifest| manifest.sequence = Sequence(9),
        |manifest| manifest.epoch = Epoch(2),
        |manifest| manifest.term = Term(2),
        |manifest| manifest.horizon = horizon(4_000),
    ];
    for change in news {
        let offer = renewed(&change);
        refuses(&mut device, "wrong-role", |device| device.give(Address::Manifest, &offer));
    }
    assert!(device.give(Address::Manifest, &renewed(&|_| ())).is_empty(), "a plain renewal is its right");
    assert_eq!(device.exposed.freshness().proof.unwrap().0, time(105));
    // To a device that knows nothing yet, it cannot say what is current.
    let mut newcomer = forge.device(prompt(Profile::Exact), 100);
    newcomer.give(Address::Keys, &forge.keys(1));
    let first = heartbeat.manifest(&forge.manifest_meant(&base, 3, &[], 101));
    refuses(&mut newcomer, "wrong-role", |device| device.give(Address::Manifest, &first));
    goes_on(&forge, &mut device);
}

#[test]
fn threshold() {
    let (forge, _, mut device) = scene();
    // Two roots must sign the next version from now on.
    let second = SigningKey::from_seed([66; 32]);
    let keys = |version, signed_by: &[&SigningKey]| {
        let mut keys = forge.keys_meant(version);
        keys.roots.push(second.public());
        keys.roots.sort_unstable();
        keys.threshold = 2;
        seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), signed_by)
    };
    assert!(device.give(Address::Keys, &keys(2, &[&forge.root, &second])).is_empty());
    let stranger = SigningKey::from_seed([67; 32]);
    // Too few; one key twice; one and a stranger.
    for signed_by in [&[&forge.root][..], &[&second], &[&second, &second], &[&forge.root, &stranger]] {
        let offer = keys(3, signed_by);
        refuses(&mut device, "threshold", |device| device.give(Address::Keys, &offer));
    }
    // One key under two ids.
    let mut twice = keys(3, &[&second, &second]);
    let at = twice.len() - 1 - 72;
    twice[at..at + 8].copy_from_slice(&forge.root.public().id().0);
    refuses(&mut device, "threshold", |device| device.give(Address::Keys, &twice));
    goes_on(&forge, &mut device);
}

/// `tuf:test_invalid_sig_in_valid_metadata`, `tuf:test_duplicate_keys`: what is too much does no harm, and does not count.
#[test]
fn row_03_what_is_signed_too_often_counts_once_and_invalid_signatures_do_no_harm() {
    let (forge, _, mut device) = scene();
    let second = SigningKey::from_seed([66; 32]);
    let two = |version| {
        let mut keys = forge.keys_meant(version);
        keys.roots.push(second.public());
        keys.roots.sort_unstable();
        keys.threshold = 2;
        keys
    };
    let sealed = |keys: &revocast_core::Keys, signed_by: &[&SigningKey]| {
        seal(Kind::Keys, &forge.realm, &wire::encode_keys(keys).unwrap(), signed_by)
    };
    assert!(device.give(Address::Keys, &sealed(&two(2), &[&forge.root, &second])).is_empty());
    // The signature of a third, and one more of a key that has signed: both spoiled.
    let spoil = |mut offer: Vec<u8>, pairs_from_end: usize| {
        let at = offer.len() - 1 - 72 * pairs_from_end + 8;
        offer[at] ^= 1;
        offer
    };
    let stranger = SigningKey::from_seed([67; 32]);
    for (version, offer) in [
        (3, spoil(sealed(&two(3), &[&forge.root, &second, &stranger]), 1)),
        (4, spoil(sealed(&two(4), &[&forge.root, &second, &forge.root]), 1)),
        (5, spoil(sealed(&two(5), &[&forge.root, &forge.root, &second]), 3)),
    ] {
        assert!(device.give(Address::Keys, &offer).is_empty(), "version {version}");
    }
    // A spoiled one does not count.
    let offer = spoil(sealed(&two(6), &[&forge.root, &second]), 1);
    refuses(&mut device, "threshold", |device| device.give(Address::Keys, &offer));
    // One root that stands there twice would be two: such keys cannot even be written down.
    let mut doubled = two(6);
    doubled.roots = vec![second.public(), second.public()];
    assert!(wire::encode_keys(&doubled).is_err());
    goes_on(&forge, &mut device);
}

#[test]
fn keys_expired() {
    let (forge, _, mut device) = scene();
    let mut keys = forge.keys_meant(2);
    keys.not_after = UnixTime::from_secs(START + 50);
    let late = seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), &[&forge.root]);
    refuses(&mut device, "keys-expired", |device| device.give(Address::Keys, &late));
    // A publisher key past its end signs nothing any more.
    let mut keys = forge.keys_meant(2);
    for publisher in &mut keys.publishers {
        publisher.not_after = UnixTime::from_secs(START + 200);
    }
    let short = seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), &[&forge.root]);
    assert!(device.give(Address::Keys, &short).is_empty());
    goes_on(&forge, &mut device);
    device.wall += 150_000;
    let delta = forge.delta(&forge.delta_meant((4, 5), &["x"], &[], 150));
    refuses(&mut device, "keys-expired", |device| device.give(Address::Live, &delta));
    assert!(device.give(Address::Keys, &forge.keys(3)).is_empty(), "the successor is taken in");
    device.wall = (START + 100) * 1_000;
    assert!(device.give(Address::Live, &delta).is_empty());
    assert!(is_revoked(device.ask("x")));
}

#[test]
fn rollback() {
    let (forge, base, mut device) = scene();
    assert!(device.give(Address::Keys, &forge.keys(5)).is_empty());
    let manifest = |sequence, at| forge.manifest(&forge.manifest_meant(&base, sequence, &[], at));
    for (sequence, at) in [(3, 99), (2, 100), (2, 500), (0, 0)] {
        refuses(&mut device, "rollback", |device| device.give(Address::Manifest, &manifest(sequence, at)));
    }
    refuses(&mut device, "rollback", |device| device.give(Address::Keys, &forge.keys(4)));
    let mut delta = forge.delta_meant((3, 4), &[], &["a"], 100);
    delta.term = Term(0);
    let delta = forge.delta(&delta);
    refuses(&mut device, "rollback", |device| device.give(Address::Live, &delta));
    goes_on(&forge, &mut device);
}

#[test]
fn equivocation() {
    let (forge, base, mut device) = scene();
    let mut twin = device.replica.manifest().unwrap().clone();
    twin.horizon = horizon(99);
    refuses(&mut device, "equivocation", |device| device.give(Address::Manifest, &forge.manifest(&twin)));
    let other = forge.epoch(1, 3, &[], &[], 90);
    let named = forge.manifest(&forge.manifest_meant(&other, 3, &[], 101));
    refuses(&mut device, "equivocation", |device| device.give(Address::Manifest, &named));
    let mut keys = forge.keys_meant(1);
    keys.leeway = 61;
    let keys = seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), &[&forge.root]);
    refuses(&mut device, "equivocation", |device| device.give(Address::Keys, &keys));
    // Two deltas for one range: here the set does change, to the union (rule 10), and never softer.
    assert!(device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100))).is_empty());
    let twin = forge.delta(&forge.delta_meant((3, 4), &["y"], &["x", "a"], 100));
    assert_eq!(names(&device.give(Address::Live, &twin)), ["equivocation"]);
    assert!(["a", "x", "y"].into_iter().all(|jti| is_revoked(device.ask(jti))));
    assert_eq!(device.replica.manifest().unwrap().index, base.digest);
    goes_on(&forge, &mut device);
}

#[test]
fn mix_and_match() {
    let (forge, _, mut device) = scene();
    // A new epoch whose index, page, chunk or ladder piece is another's.
    let (next, other) = (forge.epoch(2, 5, &["a", "d"], &[], 95), forge.epoch(2, 5, &["a", "e"], &[], 95));
    let (rung, wrong) = (forge.delta_meant((3, 5), &["d"], &[], 96), forge.delta_meant((3, 5), &["e"], &["a"], 96));
    let shelf = forge.shelf(&next, &[rung], 5, 101);
    device.give(Address::Manifest, &shelf[&Address::Manifest]);
    let piece = Address::Ladder { from: Sequence(3), to: Sequence(5) };
    refuses(&mut device, "mix-and-match", |device| device.give(piece, &forge.delta(&wrong)));
    let index = Address::Index { epoch: Epoch(2) };
    let wrong: Shelf = other.objects.into_iter().collect();
    refuses(&mut device, "mix-and-match", |device| device.give(index, &wrong[&index]));
    assert!(device.give(index, &shelf[&index]).is_empty());
    for layer in [Layer::Pages, Layer::Content] {
        let address = Address::Chunk { epoch: Epoch(2), artifact: Artifact::List, layer, number: 0 };
        refuses(&mut device, "mix-and-match", |device| device.give(address, &wrong[&address]));
        assert!(device.give(address, &shelf[&address]).is_empty());
    }
    device.pass(8 * SECOND);
    device.pass(8 * SECOND);
    device.serve(&shelf);
    assert_eq!((device.epoch(), device.sequence()), (2, 5));
    goes_on(&forge, &mut device);
}

#[test]
fn freeze() {
    let (forge, base, mut device) = scene();
    // The next manifest was promised within 90 s; a minute more is allowed for clocks.
    assert!(device.pass(149 * SECOND).is_empty());
    device.asked.clear();
    refuses(&mut device, "freeze", |device| device.pass(SECOND));
    assert!(device.asked.contains(&Address::Manifest), "it is looked up again");
    assert!(device.pass(SECOND).is_empty(), "and it is said once");
    // Replayed for ever, the old one never proves anything new: fresh, then stale, on time.
    let old = forge.manifest(&forge.manifest_meant(&base, 3, &[], 100));
    for hour in 0..10 {
        assert!(device.give(Address::Manifest, &old).is_empty());
        assert_eq!(is_good(device.ask("good")), hour == 0, "after {hour} h");
        assert!(is_revoked(device.ask("a")));
        device.pass(3_600 * SECOND);
    }
    let now = device.wall / 1_000 - START;
    device.give(Address::Manifest, &forge.manifest(&forge.manifest_meant(&base, 3, &[], now)));
    goes_on(&forge, &mut device);
}

#[test]
fn gap() {
    let (forge, _, mut device) = scene();
    // Refused is only the position: what the delta says is in force at once.
    let early = forge.delta(&forge.delta_meant((4, 6), &["early"], &["a"], 100));
    let before = device.exposed.position();
    assert_eq!(names(&device.give(Address::Live, &early)), ["gap"]);
    assert_eq!(device.refused.last(), Some(&Refusal::Gap { held: Sequence(3), from: Sequence(4) }));
    assert_eq!(device.exposed.position(), before);
    assert!(is_revoked(device.ask("early")) && is_revoked(device.ask("b")));
    // What could close it is looked for, until it comes.
    device.asked.clear();
    device.pass(8 * SECOND);
    assert!(device.asked.contains(&Address::Manifest));
    assert!(device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 4), &["a"], &[], 100))).is_empty());
    assert_eq!(device.sequence(), 6);
    assert!(is_good(device.ask("a")), "as of 6 it is reinstated, though 4 came later");
    device.give(Address::Live, &forge.delta(&forge.delta_meant((6, 7), &["a"], &[], 100)));
    goes_on(&forge, &mut device);
}

#[test]
fn slow_retrieval() {
    let (forge, base, mut device) = scene();
    let rung = forge.delta_meant((3, 4), &["x"], &[], 100);
    let shelf = forge.shelf(&base, &[rung], 4, 101);
    device.give(Address::Manifest, &shelf[&Address::Manifest]);
    let piece = Address::Ladder { from: Sequence(3), to: Sequence(4) };
    assert!(device.asked.contains(&piece));
    for _ in 0..3 {
        assert!(device.pass(7 * SECOND).is_empty());
        device.asked.clear();
        let before = device.refused.len();
        device.pass(SECOND);
        let slow = device.refused[before..].iter().filter(|refusal| refusal.name() == "slow-retrieval").count();
        assert!(slow >= 1, "{:?}", device.refused);
        assert!(device.asked.contains(&piece), "it is asked for again");
        assert!(is_good(device.ask("good")) && is_revoked(device.ask("a")), "answers never wait for it");
    }
    device.serve(&shelf);
    assert_eq!(device.sequence(), 4);
    goes_on(&forge, &mut device);
}

#[test]
fn overflow() {
    let (forge, _, mut device) = scene();
    let half = RECENT_ENTRIES_MAX as u64 / 2;
    let load = |from: u64, begin: u64, count: u64| {
        let mut delta = forge.delta_meant((from, from + 1), &[], &[], 100);
        delta.revoked =
            (begin..begin + count).map(|bits| Fingerprint::from_bits(bits * 999, Width::W48).unwrap()).collect();
        forge.delta(&delta)
    };
    assert!(device.give(Address::Live, &load(3, 0, half)).is_empty());
    assert!(device.give(Address::Live, &load(4, half, half)).is_empty());
    let image = device.exposed.position();
    assert_eq!(names(&device.give(Address::Live, &load(5, 2 * half, 1))), ["overflow"]);
    assert_eq!(device.exposed.position(), image, "the position does not move");
    assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert!(is_revoked(device.ask("a")));
    let next = forge.epoch(2, 6, &["a"], &[], 100);
    device.reconnect(&forge.shelf(&next, &[], 6, 102));
    goes_on(&forge, &mut device);
}

/// Row 49: a base larger than the device allows. Nothing is asked for beyond the index that says so, so
/// no memory is taken for it; the old base stays, and runs stale on time.
#[test]
fn too_large() {
    let mut config = prompt(Profile::Exact);
    config.artifact_bytes_max = 64;
    let (forge, _, mut device) = scene_with(config);
    let many: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let next = forge.epoch(2, 5, &many, &[], 95);
    let shelf = forge.shelf(&next, &[], 5, 101);
    device.give(Address::Manifest, &shelf[&Address::Manifest]);
    device.asked.clear();
    let index = Address::Index { epoch: Epoch(2) };
    refuses(&mut device, "too-large", |device| device.give(index, &shelf[&index]));
    assert!(matches!(device.refused.last(), Some(Refusal::TooLarge { max: 64, .. })));
    // It is dropped: no chunk is asked for, now or later, and one that comes is not looked at.
    device.asked.clear();
    for _ in 0..5 {
        device.pass(8 * SECOND);
    }
    assert!(!device.asked.iter().any(|address| matches!(address, Address::Chunk { .. } | Address::Index { .. })));
    device.serve(&shelf);
    for (address, bytes) in &shelf {
        device.give(*address, bytes);
    }
    assert_eq!(device.epoch(), 1);
    assert!(is_revoked(device.ask("a")) && is_good(device.ask("good")));
    device.pass(3_700 * SECOND);
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { .. } }));
    // One byte over any limit of the format is refused before the index is believed, whatever the budget.
    let (forge, base, mut device) = scene();
    let beyond: [fn(&mut ArtifactSummary); 2] = [
        |summary| summary.bytes = revocast_core::limits::ARTIFACT_BYTES_MAX + 1,
        |summary| summary.entries = revocast_core::limits::BASE_ENTRIES_MAX + 1,
    ];
    for change in beyond {
        let mut body = base.index.clone();
        body.epoch = Epoch(2);
        change(&mut body.artifacts[0]);
        assert!(wire::encode_index(&body).is_err(), "an honest publisher cannot even say it");
    }
    // A smaller base is welcome again.
    let small = forge.epoch(3, 5, &["a"], &[], 99);
    device.reconnect(&forge.shelf(&small, &[], 5, 110));
    assert_eq!(device.epoch(), 3);
    goes_on(&forge, &mut device);
}

#[test]
fn damaged_state() {
    let (_, _, device) = scene();
    let (head, base) = device.disk.clone().unwrap();
    let base = base.unwrap();
    assert!(device.restored(&head, Some(&base)).is_ok());
    let refused = |head: &[u8], base: Option<&[u8]>| device.restored(head, base).unwrap_err().name();
    for cut in 0..head.len() {
        assert_eq!(refused(&head[..cut], Some(&base)), "damaged-state");
    }
    for cut in 0..base.len() {
        assert_eq!(refused(&head, Some(&base[..cut])), "damaged-state");
    }
    assert_eq!(refused(&head, None), "damaged-state");
    assert_eq!(refused(&[], Some(&base)), "damaged-state");
    assert_eq!(refused(&vec![0; 5 << 20], Some(&base)), "endless-data");
    // State gathered under another trust is not taken over.
    let mut other = device;
    other.trust.roots = vec![SigningKey::from_seed([1; 32]).public()];
    assert_eq!(other.restored(&head, Some(&base)).unwrap_err().name(), "damaged-state");
}

#[test]
fn unasked() {
    let (forge, base, mut device) = scene();
    let claims = Claims::new(Jti::new("good").unwrap(), UnixTime::from_secs(START + 5_000));
    let question = device.wonder(&claims).unwrap();
    let meant = forge.answer_meant(&question, Finding::NotRevoked, 3, 101);
    let good = forge.answer(&meant);
    // Another nonce, another device, another token; nothing is learned from any of them.
    let changes: [fn(&mut Answer); 4] = [
        |answer| answer.nonce[0] ^= 1,
        |answer| answer.nonce = [0; 16],
        |answer| answer.device = DeviceId::new("door-2").unwrap(),
        |answer| answer.fingerprint = Fingerprint::from_bits(7, Width::W48).unwrap(),
    ];
    for change in changes {
        let mut other = meant;
        change(&mut other);
        let offer = forge.answer(&other);
        refuses(&mut device, "unasked", |device| device.give(Address::Answer, &offer));
    }
    // Another realm's, a thief's, one of the heartbeat key, and one from before what is held.
    let mut elsewhere = forge.clone();
    elsewhere.realm = RealmId::new("others").unwrap();
    refuses(&mut device, "wrong-realm", |device| device.give(Address::Answer, &elsewhere.answer(&meant)));
    for (key, name) in [(SigningKey::from_seed([77; 32]), "wrong-key"), (forge.heartbeat.clone(), "wrong-role")] {
        let mut thief = forge.clone();
        thief.content = key;
        refuses(&mut device, name, |device| device.give(Address::Answer, &thief.answer(&meant)));
    }
    let behind = forge.answer(&Answer { sequence: Sequence(2), ..meant });
    refuses(&mut device, "rollback", |device| device.give(Address::Answer, &behind));
    let dethroned = forge.answer(&Answer { term: Term(0), sequence: Sequence(99), ..meant });
    refuses(&mut device, "rollback", |device| device.give(Address::Answer, &dethroned));
    // An answer on another topic, another object on this one, and every flipped bit.
    refuses(&mut device, "extraneous", |device| device.give(Address::Live, &good));
    let manifest = forge.manifest(&forge.manifest_meant(&base, 3, &[], 101));
    refuses(&mut device, "extraneous", |device| device.give(Address::Answer, &manifest));
    let image = device.image();
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(device.give(Address::Answer, &flipped).len(), 1, "bit {bit}");
    }
    assert_eq!(device.image(), image);
    assert_eq!(device.answered, []);
    // The right one is taken in, once.
    assert!(device.give(Address::Answer, &good).is_empty());
    assert_eq!(device.answered, [(meant.nonce, Some(Finding::NotRevoked))]);
    refuses(&mut device, "unasked", |device| device.give(Address::Answer, &good));
    // So is one that comes too late: its question is over.
    let question = device.wonder(&claims).unwrap();
    let late = forge.answer(&forge.answer_meant(&question, Finding::NotRevoked, 3, 102));
    device.pass(5 * SECOND);
    assert_eq!(device.answered[1..], [(2_u128.to_le_bytes(), None)]);
    refuses(&mut device, "unasked", |device| device.give(Address::Answer, &late));
    // And every one after a restart, or to a device that never asked.
    let question = device.wonder(&claims).unwrap();
    let answer = forge.answer(&forge.answer_meant(&question, Finding::NotRevoked, 3, 106));
    device.restart();
    device.tell(Event::Connected);
    refuses(&mut device, "unasked", |device| device.give(Address::Answer, &answer));
    goes_on(&forge, &mut device);
}

// ---- Rows of the table of attacks ----------------------------------------------------------------

/// Row 1: every bit of every signed object, flipped: none is accepted, and nothing changes.
#[test]
fn row_01_no_flipped_bit_is_accepted() {
    let (forge, _, mut device) = scene();
    let next = forge.epoch(2, 5, &["a", "d"], &[], 95);
    let rung = forge.delta_meant((3, 5), &["d"], &["a"], 96);
    let shelf = forge.shelf(&next, std::slice::from_ref(&rung), 5, 101);
    let live = forge.delta(&forge.delta_meant((3, 4), &["x"], &["b"], 97));
    let mut offers = vec![
        (Address::Keys, forge.keys(2)),
        (Address::Live, live),
        (Address::Manifest, shelf[&Address::Manifest].clone()),
    ];
    for round in 0..2 {
        let mut flips = 0;
        for (address, bytes) in &offers {
            let image = device.image();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let refused = device.give(*address, &flipped);
                assert_eq!(refused.len(), 1, "{address}, bit {bit}: accepted");
                flips += 1;
            }
            assert_eq!(device.image(), image, "{address}");
        }
        assert!(flips > 2_000);
        if round == 0 {
            // With the manifest in place, what it names by digest: index and ladder piece.
            for (address, bytes) in std::mem::take(&mut offers) {
                assert!(device.give(address, &bytes).is_empty(), "{address}: the whole one is accepted");
            }
            offers = [Address::Index { epoch: Epoch(2) }, Address::Ladder { from: Sequence(3), to: Sequence(5) }]
                .map(|address| (address, shelf[&address].clone()))
                .to_vec();
        }
    }
    for _ in 0..3 {
        device.pass(8 * SECOND);
        device.serve(&shelf);
    }
    assert_eq!((device.epoch(), device.sequence()), (2, 5));
}

/// Row 1, the named cases of the TUF suite as far as they apply: unsigned metadata of each kind, a
/// wrong type in the right place, an unsigned or wrong first root.
#[test]
fn row_01_unsigned_and_mistyped_objects_are_refused() {
    let (forge, base, _) = scene();
    let shelf = forge.shelf(&base, &[], 3, 100);
    let stripped = |bytes: &[u8]| [&bytes[..bytes.len() - 73], &[0]].concat();
    let mut device = forge.device(prompt(Profile::Exact), 100);
    assert_eq!(names(&device.give(Address::Keys, &stripped(&shelf[&Address::Keys]))), ["wrong-key"]);
    let mut stranger = forge.clone();
    stranger.root = SigningKey::from_seed([5; 32]);
    assert_eq!(names(&device.give(Address::Keys, &stranger.keys(1))), ["wrong-key"]);
    // Before the keys are known nothing else is believed.
    assert_eq!(names(&device.give(Address::Manifest, &shelf[&Address::Manifest])), ["wrong-key"]);
    device.give(Address::Keys, &shelf[&Address::Keys]);
    assert_eq!(names(&device.give(Address::Manifest, &stripped(&shelf[&Address::Manifest]))), ["wrong-key"]);
    let live = forge.delta(&forge.delta_meant((3, 4), &["x"], &[], 100));
    assert_eq!(names(&device.give(Address::Live, &stripped(&live))), ["wrong-key"]);
    device.give(Address::Manifest, &shelf[&Address::Manifest]);
    let index = Address::Index { epoch: Epoch(1) };
    assert_eq!(names(&device.give(index, &stripped(&shelf[&index]))), ["mix-and-match"]);
    // One body under another kind: the signature says which kind it was made for.
    let manifest = wire::encode_manifest(device.replica.manifest().unwrap()).unwrap();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Manifest) {
        let mut relabeled = seal(kind, &forge.realm, &manifest, &[&forge.content]);
        relabeled[4] = Kind::Manifest as u8;
        assert_eq!(names(&device.give(Address::Manifest, &relabeled)), ["wrong-key"], "{kind}");
    }
}

/// Row 6: without a clock of its own a device believes nobody's manifests about the time, however many
/// come; the answer to its own nonce it does.
#[test]
fn row_06_only_an_answer_to_an_own_nonce_proves_the_time() {
    let (forge, base, mut device) = scene();
    device.wall = 0;
    assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::TimeUnknown });
    let first = device.wonder(&Claims::new(Jti::new("x").unwrap(), UnixTime::from_secs(START + 5_000))).unwrap();
    let first = forge.answer(&forge.answer_meant(&first, Finding::NotRevoked, 3, 101));
    device.pass(6 * SECOND);
    for at in 0..1_000 {
        device.give(Address::Manifest, &forge.manifest(&forge.manifest_meant(&base, 3, &[], 110 + at)));
        device.give(Address::Answer, &first);
        device.pass(SECOND);
        assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::TimeUnknown });
        assert!(is_revoked(device.ask("a")));
    }
    let claims = Claims::new(Jti::new("x").unwrap(), UnixTime::from_secs(START + 5_000));
    let question = device.wonder(&claims).unwrap();
    device.pass(2 * SECOND);
    device.give(Address::Answer, &forge.answer(&forge.answer_meant(&question, Finding::NotRevoked, 3, 1_112)));
    assert!(is_good(device.ask("good")));
    // Uptime carries it from there, and staleness is told on time: age counts from the question.
    assert_eq!(device.exposed.freshness().proof.unwrap().0, time(1_112));
    device.pass(3_597 * SECOND);
    assert!(is_good(device.ask("good")));
    device.pass(2 * SECOND);
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { .. } }), "{:?}", device.ask("good"));
}

/// Row 4: nothing older is taken in, also after a restart; the same bytes are no news; other bytes of
/// the same rank are an equivocation.
#[test]
fn row_04_what_is_older_stays_out_also_after_a_restart() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut site = Site::new(seed, fingerprinter(), small_settings(), |_| ());
        let mut device = site.device(prompt(Profile::Exact));
        let mut recorded: Vec<(Address, Vec<u8>)> = Vec::new();
        let mut highest = site.publisher.manifest().unwrap().rank();
        for number in 0..25 {
            site.revoke(&number.to_string(), START + 9_000);
            site.pass(1_000);
            let live = site.publish();
            recorded.extend(live.iter().map(|bytes| (Address::Live, bytes.clone())));
            recorded.extend(site.shelf.iter().map(|(address, bytes)| (*address, bytes.clone())));
            device.wall = site.time;
            if random.chance(70) {
                device.hear(Address::Manifest, &site.shelf[&Address::Manifest]);
                device.serve(&site.shelf);
            }
            if random.chance(20) {
                device.restart();
                device.reconnect(&Shelf::new());
            }
            highest = highest.max(device.replica.manifest().unwrap().rank());
            let before = device.exposed.position().sequence;
            for _ in 0..10 {
                let (address, bytes) = random.pick(&recorded).clone();
                device.give(address, &bytes);
                assert!(device.exposed.position().sequence >= before);
                highest = highest.max(device.replica.manifest().unwrap().rank());
                assert_eq!(device.replica.manifest().unwrap().rank(), highest, "never below what was held");
            }
            for revoked in 0..=number {
                let told = device.sequence() > revoked;
                assert!(!told || is_revoked(device.ask(&revoked.to_string())), "seed {seed}");
            }
        }
    }
    let (forge, base, mut device) = scene();
    let same = forge.manifest(&forge.manifest_meant(&base, 3, &[], 100));
    let older = forge.manifest(&forge.manifest_meant(&base, 3, &[], 99));
    let mut twin = forge.manifest_meant(&base, 3, &[], 100);
    twin.next_update = twin.next_update.plus(7);
    let twin = forge.manifest(&twin);
    for _ in 0..3 {
        let image = device.image();
        assert!(device.give(Address::Manifest, &same).is_empty());
        assert_eq!(device.image(), image);
        refuses(&mut device, "rollback", |device| device.give(Address::Manifest, &older));
        refuses(&mut device, "equivocation", |device| device.give(Address::Manifest, &twin));
        device.restart();
        device.tell(Event::Connected);
    }
}

/// Row 7: five versions of manifest, index, chunks and ladder in every combination: of 625 sets the
/// five are accepted whose parts belong together.
#[test]
fn row_07_of_all_mixtures_only_whole_versions_are_accepted() {
    let forge = Forge::new(7);
    // All of one shape, so that only their content tells them apart.
    let versions: Vec<Shelf> = (0..5)
        .map(|version| {
            let mut revoked = ["a", "b", "c", "d", "e"];
            revoked.rotate_left(version);
            let base = forge.epoch(1, 3, &revoked[..4], &[], 90);
            let rung = forge.delta_meant((3, 4), &[revoked[4]], &[], 95);
            forge.shelf(&base, &[rung], 4, 100)
        })
        .collect();
    let mut accepted = Vec::new();
    for mixture in 0..625 {
        let [manifest, index, chunk, ladder] = [0, 1, 2, 3].map(|part| mixture / 5_usize.pow(part) % 5);
        let mut mixed = Shelf::new();
        for (address, bytes) in &versions[0] {
            let version = match address {
                Address::Keys | Address::KeysAt { .. } => 0,
                Address::Manifest | Address::IssuerKeys | Address::Live | Address::Answer | Address::Delivery => {
                    manifest
                }
                Address::Index { .. } => index,
                Address::Chunk { .. } => chunk,
                Address::Ladder { .. } => ladder,
            };
            let bytes = versions[version].get(address).unwrap_or(bytes);
            mixed.insert(*address, bytes.clone());
        }
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.serve(&mixed);
        device.give(
            Address::Ladder { from: Sequence(3), to: Sequence(4) },
            &mixed[&Address::Ladder { from: Sequence(3), to: Sequence(4) }],
        );
        let whole = (device.epoch(), device.sequence()) == (1, 4);
        if whole {
            assert_eq!([index, chunk, ladder], [manifest; 3]);
            assert!(["a", "b", "c", "d", "e"].into_iter().all(|jti| is_revoked(device.ask(jti))));
            accepted.push(manifest);
        } else {
            assert!(!device.refused.is_empty());
            assert!(!is_good(device.ask("good")), "half a version answers nothing good");
        }
    }
    assert_eq!(accepted.len(), 5);
}

/// Row 8: lengths that lie, counts of 2^32, objects over every limit: refused, with nothing taken for
/// them; other topics go on working.
#[test]
fn row_08_lying_lengths_are_refused_and_cost_nothing() {
    let (forge, _, mut device) = scene();
    let sealed = |kind, body: &[u8]| seal(kind, &forge.realm, body, &[&forge.content]);
    let delta = wire::encode_delta(&forge.delta_meant((3, 4), &["x"], &["y"], 100), Width::W48).unwrap();
    let manifest = wire::encode_manifest(&forge.manifest_meant(&forge.epoch(1, 3, &[], &[], 0), 3, &[], 101)).unwrap();
    let put = |bytes: &[u8], at: usize, lie: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + lie.len()].copy_from_slice(lie);
        bytes
    };
    let lies: Vec<(Address, Vec<u8>)> = vec![
        // Counts of a delta: revoked, reinstated, cutoffs, lifts.
        (Address::Live, sealed(Kind::Delta, &put(&delta, 36, &[0xff; 4]))),
        (Address::Live, sealed(Kind::Delta, &put(&delta, 40, &[0xff; 4]))),
        (Address::Live, sealed(Kind::Delta, &put(&delta, 44, &[0xff; 2]))),
        (Address::Live, sealed(Kind::Delta, &put(&delta, 46, &[0xff; 2]))),
        (Address::Live, sealed(Kind::Delta, &put(&delta, 36, &100_000_000_u32.to_le_bytes()))),
        // Pieces of a manifest.
        (Address::Manifest, sealed(Kind::Manifest, &put(&manifest, 76, &[0xff; 2]))),
        // Lengths of the envelope: the realm's and the number of signatures.
        (Address::Live, put(&sealed(Kind::Delta, &delta), 5, &[64])),
        (Address::Live, put(&sealed(Kind::Delta, &delta), 5, &[255])),
    ];
    for (address, bytes) in lies {
        refuses(&mut device, "malformed", |device| device.give(address, &bytes));
    }
    let good = sealed(Kind::Delta, &delta);
    for count in [2, 15, 16, 17, 255] {
        let lie = put(&good, good.len() - 1, &[count]);
        let image = device.image();
        assert_eq!(device.give(Address::Live, &lie).len(), 1);
        assert_eq!(device.image(), image);
    }
    // An index that counts 2^32 pages, chunks of no size, or more than any device takes.
    let epochal = forge.epoch(2, 5, &["a"], &[], 95);
    let body = wire::encode_index(&epochal.index).unwrap();
    for (at, lie) in
        [(69, &[255_u8][..]), (87, &[0xff; 4]), (65, &[0; 4]), (65, &[0xff; 4]), (60, &[0xff; 4]), (79, &[0xff; 8])]
    {
        let index = sealed(Kind::Index, &put(&body, at, lie));
        let lying = Epochal { index: epochal.index.clone(), objects: Vec::new(), digest: Digest::of(&index) };
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.give(Address::Keys, &forge.keys(1));
        device.give(Address::Manifest, &forge.manifest(&forge.manifest_meant(&lying, 5, &[], 102)));
        let refused = device.give(Address::Index { epoch: Epoch(2) }, &index);
        assert!(matches!(names(&refused)[..], ["malformed" | "too-large"]), "{at}: {refused:?}");
    }
    // Chunk numbers nobody named, an oversize chunk, and an address of 2^32.
    let shelf = forge.shelf(&epochal, &[], 5, 102);
    device.give(Address::Manifest, &shelf[&Address::Manifest]);
    device.give(Address::Index { epoch: Epoch(2) }, &shelf[&Address::Index { epoch: Epoch(2) }]);
    let image = device.image();
    for number in [1, 7, u32::MAX] {
        for layer in [Layer::Content, Layer::Pages] {
            let address = Address::Chunk { epoch: Epoch(2), artifact: Artifact::List, layer, number };
            device.give(address, &vec![0; CHUNK_BYTES_MAX]);
        }
    }
    assert!(Address::parse("e/2/list/4294967296").is_none());
    assert_eq!(device.image(), image);
    device.tell(Event::Oversize { address: Address::Manifest, bytes: u64::MAX });
    device.serve(&shelf);
    assert_eq!(device.epoch(), 2, "all other topics went on");
}

/// Row 10: every object on every address. Only where it belongs is it applied; a delta is a delta, so the
/// live topic takes those of the ladder as well.
#[test]
fn row_10_every_object_counts_only_where_it_belongs() {
    let forge = Forge::new(10);
    let base = forge.epoch(1, 3, &["a"], &[], 90);
    let rung = forge.delta_meant((3, 5), &["b"], &[], 95);
    let mut objects: Vec<(Address, Vec<u8>)> = forge.shelf(&base, &[rung], 5, 100).into_iter().collect();
    objects.push((Address::Live, forge.delta(&forge.delta_meant((5, 6), &["c"], &[], 96))));
    let mut other = forge.clone();
    other.realm = RealmId::new("others").unwrap();
    let foreign = other.shelf(&other.epoch(1, 3, &["a"], &[], 90), &[], 3, 100);
    let foreign: Vec<(Address, Vec<u8>)> = foreign.into_iter().collect();
    let (mut crossed, mut applied) = (0, 0);
    for (address, _) in &objects {
        for (belongs, bytes) in objects.iter().chain(&foreign) {
            // A device in the midst of everything: keys, manifest and index held, all else awaited.
            let mut device = forge.device(prompt(Profile::Exact), 100);
            for known in [Address::Keys, Address::Manifest, Address::Index { epoch: Epoch(1) }] {
                let (_, bytes) = objects.iter().find(|(address, _)| *address == known).unwrap();
                device.give(known, bytes);
            }
            let image = device.image();
            device.give(*address, bytes);
            let same_place = address == belongs && !foreign.iter().any(|(_, other)| other == bytes);
            let delta_on_live = *address == Address::Live && matches!(belongs, Address::Ladder { .. });
            crossed += 1;
            if same_place || delta_on_live {
                applied += 1;
            } else {
                assert_eq!(device.image(), image, "{belongs} at {address}");
            }
            // Whatever came where: the rest arrives, and the set is the right one.
            for _ in 0..3 {
                device.pass(8 * SECOND);
                let shelf: Shelf = objects.iter().cloned().collect();
                device.serve(&shelf);
            }
            assert!(device.sequence() >= 5, "{belongs} at {address}: stuck at {}", device.sequence());
            assert!(is_revoked(device.ask("a")) && is_revoked(device.ask("b")) && is_good(device.ask("good")));
        }
    }
    assert_eq!(applied, objects.len() + 1);
    assert!(crossed > 100, "{crossed}");
}

/// Row 11: six messages in every order, with every drop and every repetition that six deliveries can
/// have (46,656 histories); then the broker's retained state arrives, and the device equals the server.
#[test]
fn row_11_after_any_loss_repetition_and_order_the_end_is_the_server_s() {
    let forge = Forge::new(11);
    let base = forge.epoch(1, 3, &["a"], &[], 90);
    let deltas = [
        forge.delta_meant((3, 4), &["b"], &["a"], 95),
        forge.delta_meant((4, 5), &["a", "c"], &[], 96),
        forge.delta_meant((5, 6), &[], &["b", "c"], 97),
    ];
    let merged = forge.delta_meant((3, 6), &["a"], &["b", "c"], 98);
    let last = forge.shelf(&base, std::slice::from_ref(&merged), 6, 101);
    let earlier = forge.shelf(&base, &deltas[..1], 4, 100);
    let piece = Address::Ladder { from: Sequence(3), to: Sequence(6) };
    let mut messages: Vec<(Address, Vec<u8>)> =
        deltas.iter().map(|delta| (Address::Live, forge.delta(delta))).collect();
    messages.push((Address::Manifest, earlier[&Address::Manifest].clone()));
    messages.push((Address::Manifest, last[&Address::Manifest].clone()));
    messages.push((piece, last[&piece].clone()));
    let mut origin = forge.device(prompt(Profile::List), 100);
    origin.serve(&forge.shelf(&base, &[], 3, 99));
    let disk = origin.disk.clone();
    let mut config = prompt(Profile::List);
    // Writing is not what this is about.
    config.persist_every = Duration::from_secs(1_000_000);
    config.persist_proof_every = Duration::from_secs(1_000_000);
    let run = |history: usize| {
        let mut device = forge.device(config.clone(), 100);
        device.disk.clone_from(&disk);
        device.restart();
        device.tell(Event::Connected);
        device.asked.clear();
        let mut highest = 3;
        for step in 0..6 {
            let (address, bytes) = &messages[history / 6_usize.pow(step) % 6];
            device.give(*address, bytes);
            // An empty payload clears a retained message; it says nothing.
            device.give(*address, &[]);
            assert!(device.sequence() >= highest, "history {history}");
            highest = device.sequence();
        }
        device.serve(&last);
        device.give(Address::Manifest, &last[&Address::Manifest]);
        device.serve(&last);
        assert_eq!((device.epoch(), device.sequence()), (1, 6), "history {history}");
        assert!(is_revoked(device.ask("a")), "history {history}");
        assert!(["b", "c", "good"].into_iter().all(|jti| is_good(device.ask(jti))), "history {history}");
    };
    std::thread::scope(|scope| {
        for half in 0..2 {
            let run = &run;
            scope.spawn(move || (half..46_656).step_by(2).for_each(run));
        }
    });
}

/// `keys` of a version with one root, signed by that and the one before.
fn rotated(forge: &Forge, version: u64, root: &SigningKey, before: &SigningKey, not_after: u64) -> Vec<u8> {
    let mut keys = forge.keys_meant(version);
    keys.roots = vec![root.public()];
    keys.not_after = UnixTime::from_secs(START + not_after);
    seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), &[before, root])
}

/// Everything that stands under a version number, and the last of it as `keys`.
fn all_versions(forge: &Forge, roots: &[SigningKey], not_after: &[u64]) -> Shelf {
    let mut shelf = Shelf::new();
    for (at, (root, not_after)) in roots.iter().zip(not_after).enumerate() {
        let (version, before) = (at as u64 + 1, roots.get(at.wrapping_sub(1)).unwrap_or(root));
        let sealed = rotated(forge, version, root, before, *not_after);
        shelf.insert(Address::KeysAt { version }, sealed.clone());
        shelf.insert(Address::Keys, sealed);
    }
    shelf
}

/// Serves a device until it asks for nothing that is there; tells what it asked for.
fn serve_and_count(device: &mut Follower, shelf: &Shelf) -> Vec<Address> {
    let mut asked = Vec::new();
    while let Some(address) = device.asked.pop_front() {
        asked.push(address);
        if let Some(bytes) = shelf.get(&address) {
            device.give(address, bytes);
        }
    }
    asked
}

const DAY: u64 = 24 * 3_600;

/// Row 14: root versions are handed on one by one, each by the roots before it, up to a limit; what has
/// expired leads on and vouches for nothing.
#[test]
fn row_14_missed_root_versions_are_made_up_for_one_by_one() {
    let mut forge = Forge::new(14);
    let roots: Vec<SigningKey> = (0..5).map(|seed| SigningKey::from_seed([100 + seed; 32])).collect();
    forge.root = roots[0].clone();
    let shelf = all_versions(&forge, &roots, &[9 * DAY; 5]);
    let at = |version| Address::KeysAt { version };
    let fresh = |pinned: &SigningKey| {
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.trust.roots = vec![pinned.public()];
        device.restart();
        device.tell(Event::Connected);
        device
    };
    let version = |device: &Follower| device.replica.keys().map(|keys| keys.version);

    // A device that pins any of the roots finds its version and goes up from there, however old it is.
    for (pinned, root) in roots.iter().enumerate() {
        let mut device = fresh(root);
        let asked = serve_and_count(&mut device, &shelf);
        assert_eq!(version(&device), Some(5), "pinned root {}", pinned + 1);
        assert!(asked.iter().filter(|address| matches!(address, Address::KeysAt { .. })).count() <= 4, "{asked:?}");
        let kinds: BTreeSet<&str> = names(&device.refused).into_iter().collect();
        assert!(kinds.is_subset(&BTreeSet::from(["wrong-key"])), "{kinds:?}");
    }
    // One whose roots signed none of it believes none of it, and does not ask for ever.
    let mut stranger = fresh(&SigningKey::from_seed([99; 32]));
    let asked = serve_and_count(&mut stranger, &shelf);
    assert_eq!((version(&stranger), asked.contains(&at(5))), (None, true));

    // A gap, a forgery or another version in between: no further than there, and on from there later.
    let mut holed = shelf.clone();
    let thief = SigningKey::from_seed([98; 32]);
    for offer in [
        None,
        Some(rotated(&forge, 3, &thief, &thief, 9 * DAY)),
        shelf.get(&at(4)).cloned(),
        shelf.get(&at(2)).cloned(),
    ] {
        match offer {
            Some(bytes) => holed.insert(at(3), bytes),
            None => holed.remove(&at(3)),
        };
        let mut device = fresh(&roots[0]);
        serve_and_count(&mut device, &holed);
        assert_eq!(version(&device), Some(2));
        let mut asked = 0;
        for _ in 0..3_600 {
            device.pass(8 * SECOND);
            asked += serve_and_count(&mut device, &holed).iter().filter(|address| **address == at(3)).count();
        }
        assert!((3..=60).contains(&asked), "asked {asked} times in eight hours");
        assert_eq!(version(&device), Some(2));
        for _ in 0..450 {
            device.pass(8 * SECOND);
            serve_and_count(&mut device, &shelf);
        }
        assert_eq!(version(&device), Some(5), "once it is there");
    }

    // What has expired on the way leads on: the last does not, and until then nothing is believed.
    let expired = all_versions(&forge, &roots, &[50, 60, 70, 80, 9 * DAY]);
    let mut device = fresh(&roots[0]);
    serve_and_count(&mut device, &expired);
    assert_eq!(version(&device), Some(5));
    let expired = all_versions(&forge, &roots, &[9 * DAY, 60, 70, 80, 90]);
    let mut device = fresh(&roots[0]);
    serve_and_count(&mut device, &expired);
    let base = forge.epoch(1, 3, &["a"], &[], 90);
    let manifest = forge.manifest(&forge.manifest_meant(&base, 3, &[], 100));
    assert_eq!(names(&device.give(Address::Manifest, &manifest)), ["keys-expired"]);
    assert_eq!(names(&device.give(Address::Keys, &expired[&Address::Keys])), ["keys-expired"]);

    // At most 1,024 steps on one way, so that nobody is led on for ever.
    let endless: Shelf = (1..1_100)
        .map(|version| (at(version), rotated(&forge, version, &roots[0], &roots[0], 9 * DAY)))
        .chain([(Address::Keys, rotated(&forge, 9_999, &thief, &thief, 9 * DAY))])
        .collect();
    let mut device = fresh(&roots[0]);
    let asked = serve_and_count(&mut device, &endless);
    let steps = asked.iter().filter(|address| matches!(address, Address::KeysAt { .. })).count();
    assert_eq!((steps, version(&device)), (1_024, Some(1_024)));
}

/// Row 47: an hour, a month, 400 days without a network, the last with three versions of the roots
/// missed. Staleness is told on time; catching up takes one snapshot and the roots.
#[test]
fn row_47_long_offline_catches_up() {
    let roots: Vec<SigningKey> = (0..4).map(|seed| SigningKey::from_seed([100 + seed; 32])).collect();
    for (span, missed) in [(3_600, 0), (30 * DAY, 0), (400 * DAY, 3)] {
        for restarted in [false, true] {
            let mut forge = Forge::new(47);
            forge.root = roots[0].clone();
            let mut config = prompt(Profile::Exact);
            config.staleness_max = Duration::from_secs(DAY);
            let mut device = forge.device(config, 100);
            let base = forge.epoch(1, 3, &["a", "b"], &[], 90);
            let mut shelf = forge.shelf(&base, &[], 3, 100);
            shelf.extend(all_versions(&forge, &roots[..1], &[50 * DAY]));
            device.serve(&shelf);
            assert!(is_good(device.ask("good")) && is_revoked(device.ask("a")));
            device.tell(Event::Disconnected);
            device.asked.clear();
            device.subscribed.clear();

            // The policy can go by this: good for a day, doubtful from then on, revoked throughout.
            let mut slept = 0;
            while slept < span {
                let nap = (span - slept).min(DAY / 2);
                device.pass(Duration::from_secs(nap));
                slept += nap;
                if restarted && slept == span {
                    device.restart();
                }
                assert!(is_revoked(device.ask("a")));
                match device.ask("good") {
                    Verdict::NotRevoked { .. } => assert!(slept <= DAY, "good after {slept} s"),
                    Verdict::Unknown { doubt: Doubt::Stale { age } } => assert!(age.as_secs() > DAY && slept > DAY),
                    other => panic!("after {slept} s: {other:?}"),
                }
            }

            // Meanwhile: many epochs, roots and publisher key handed on, the first versions expired.
            let now = 100 + span;
            let chain = &roots[..=missed];
            if missed > 0 {
                forge.content = SigningKey::from_seed([47; 32]);
            }
            let many: Vec<String> = (0..500).map(|number| format!("later-{number}")).collect();
            let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
            many.push("a");
            let next = forge.epoch(9, 900, &many, &[], now - 50);
            let rung = forge.delta_meant((900, 901), &["last"], &["later-0"], now - 20);
            let mut shelf = forge.shelf(&next, &[rung], 901, now - 10);
            let ends = [50 * DAY, 150 * DAY, 250 * DAY, 900 * DAY];
            shelf.extend(all_versions(&forge, chain, &ends[..chain.len()]));
            device.tell(Event::Connected);
            let asked = serve_and_count(&mut device, &shelf);
            assert_eq!((device.epoch(), device.sequence()), (9, 901), "refused: {:?}", names(&device.refused));
            assert!(["a", "later-1", "last"].into_iter().all(|jti| is_revoked(device.ask(jti))));
            assert!(["good", "b", "later-0"].into_iter().all(|jti| is_good(device.ask(jti))));
            let count = |is: fn(&Address) -> bool| asked.iter().filter(|address| is(address)).count();
            // The last one is remembered from when nobody trusted had signed it.
            assert_eq!(count(|address| matches!(address, Address::KeysAt { .. })), missed.saturating_sub(1));
            assert_eq!(count(|address| matches!(address, Address::Index { .. })), 1);
            let chunks: BTreeSet<&Address> =
                asked.iter().filter(|address| matches!(address, Address::Chunk { .. })).collect();
            let named = shelf.keys().filter(|address| {
                matches!(address, Address::Chunk { artifact: Artifact::List | Artifact::Cutoffs, .. })
            });
            assert_eq!(chunks.len(), count(|address| matches!(address, Address::Chunk { .. })), "nothing twice");
            assert_eq!(chunks.len(), named.count(), "one snapshot, and all of it");
            assert_eq!(device.replica.keys().unwrap().version, missed as u64 + 1);
            // It stays so over the next restart.
            device.restart();
            assert!(is_revoked(device.ask("last")) && is_good(device.ask("good")));
        }
    }
}

/// Row 18: clocks at 1970 and 2100 and all steps between: the floor never falls, nothing revoked reads
/// as good, and where the clock cannot be right, nothing does.
#[test]
fn row_18_no_clock_lowers_the_floor_or_softens_an_answer() {
    let (forge, base, mut device) = scene();
    let mut random = Random::new(18);
    let (mut floor, mut at) = (device.exposed.freshness().floor, 100);
    let year = 365 * 24 * 3_600 * 1_000;
    let (mut unknown, mut good) = (0, 0);
    for step in 0..10_000 {
        let truth = (START + at) * 1_000;
        device.wall = match random.below(6) {
            0 => 0,
            1 => truth + 75 * year,
            2 => random.below(truth * 2),
            3 => u64::MAX,
            _ => truth + random.below(2_000),
        };
        device.uptime += Duration::from_millis(random.below(2_000));
        match random.below(8) {
            0 => {
                at += random.below(30);
                device.give(Address::Manifest, &forge.manifest(&forge.manifest_meant(&base, 3, &[], at)));
            }
            1 => {
                let delta: Delta = forge.delta_meant((3, 3 + 1 + random.below(4)), &["x"], &[], random.below(at));
                device.give(Address::Live, &forge.delta(&delta));
            }
            2 if step % 50 == 0 => {
                device.restart();
                device.tell(Event::Connected);
            }
            _ => drop(device.tell(Event::Elapsed)),
        }
        let now = device.exposed.freshness().floor;
        assert!(now >= floor, "step {step}: the floor fell from {floor} to {now}");
        floor = now;
        assert!(is_revoked(device.ask("a")));
        let verdict = device.ask("good");
        let plausible = device.wall.saturating_add(60_000) >= floor.millis()
            && device.wall <= floor.millis() + 400 * 24 * 3_600 * 1_000;
        if !plausible {
            assert_eq!(verdict, Verdict::Unknown { doubt: Doubt::TimeUnknown }, "step {step}");
            unknown += 1;
        }
        good += u32::from(is_good(verdict));
        // Expired at or before H is refused whatever the clock says.
        let claims = Claims::new(Jti::new("good").unwrap(), device.exposed.horizon());
        assert!(is_revoked(device.check(&claims)));
    }
    assert!(unknown > 1_000 && good > 1_000, "{unknown} {good}");
}

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([3; 16]), Width::W48)
}

/// Row 22: whatever `exp` a caller names, the revocation is kept while any validator with allowed skew
/// could accept the token.
#[test]
fn row_22_a_false_early_exp_never_ends_a_revocation_early() {
    let (lifetime, leeway) = (120, 5);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut site = Site::new(seed, fingerprinter(), small_settings(), |realm| {
            realm.leeway = Duration::from_secs(leeway);
            realm.max_token_lifetime = Duration::from_secs(lifetime);
        });
        let mut device = site.device(prompt(Profile::Exact));
        let mut tokens: Vec<(String, u64)> = Vec::new();
        let (mut ended, mut kept) = (0, 0);
        for number in 0..160 {
            // Issued at most a lifetime before its end; revoked with whatever the caller says.
            let jti = number.to_string();
            let exp = site.seconds() + random.below(lifetime + 1);
            let lie = match random.below(5) {
                0 => 0,
                1 => site.seconds().saturating_sub(random.below(1_000)),
                2 => site.seconds() + 1,
                3 => exp,
                _ => random.below(exp + 1),
            };
            let claimed = ledger::Expiry::Claimed(UnixTime::from_secs(lie));
            site.request(ledger::Action::Revoke { jti: jti.clone(), exp: claimed });
            tokens.push((jti, exp));
            site.pass(random.below(4_000));
            for bytes in site.publish() {
                device.hear(Address::Live, &bytes);
            }
            device.wall = site.time;
            device.uptime += Duration::from_secs(1);
            device.hear(Address::Manifest, &site.shelf[&Address::Manifest]);
            device.serve(&site.shelf);
            let entries = site.entries(0);
            let held: BTreeSet<&str> = entries
                .iter()
                .filter_map(|entry| match &entry.statement {
                    Statement::Revoke { jti, .. } => Some(jti.as_str()),
                    _ => None,
                })
                .collect();
            for (jti, exp) in &tokens {
                // A validator may grant the leeway, and its clock may stand that far behind as well.
                let acceptable = site.seconds() < exp + leeway;
                let claims = Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(*exp));
                if acceptable {
                    assert!(held.contains(&jti[..]), "seed {seed}: the ledger forgot {jti}");
                    kept += 1;
                }
                assert!(is_revoked(device.check(&claims)), "seed {seed}: {jti} reads as good");
                ended += u32::from(!held.contains(&jti[..]));
            }
        }
        assert!(kept > 100 && ended > 100, "{kept} {ended}");
    }
}

/// Row 23: the server has dropped what expired; a device whose clock stands 400 days back, and whose
/// validator would still accept the tokens, answers that they are expired.
#[test]
fn row_23_a_slow_clock_resurrects_nothing() {
    let mut site = Site::new(23, fingerprinter(), small_settings(), |realm| {
        realm.leeway = Duration::from_secs(5);
        realm.max_token_lifetime = Duration::from_mins(2);
    });
    let mut devices = [Profile::Exact, Profile::List, Profile::Filter].map(|profile| site.device(prompt(profile)));
    let mut random = Random::new(23);
    let mut tokens = Vec::new();
    let (mut questions, mut expired, mut good) = (0_u64, 0_u64, 0_u64);
    while questions < 1_000_000 {
        for _ in 0..20 {
            let (jti, exp) = (format!("t{}", tokens.len()), site.seconds() + 1 + random.below(100));
            site.revoke(&jti, exp);
            tokens.push((jti, exp));
        }
        site.pass(2_000);
        let live = site.publish();
        for device in &mut devices {
            device.wall = site.time - 400 * 24 * 3_600 * 1_000;
            device.uptime += 2 * SECOND;
            // Once somebody even swore to the wrong time: what was signed is a floor under that, too.
            if random.chance(5) {
                device.tell(Event::TimeProven { wall: revocast_core::UnixMillis::from_millis(device.wall) });
            }
            for bytes in &live {
                device.hear(Address::Live, bytes);
            }
            device.hear(Address::Manifest, &site.shelf[&Address::Manifest]);
            device.serve(&site.shelf);
            for (jti, exp) in &tokens {
                let claims = Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(*exp));
                match device.check(&claims) {
                    Verdict::NotRevoked { at } => panic!("{jti} came back to life at {at}"),
                    Verdict::Revoked { why: revocast_core::Why::Expired { .. } } => expired += 1,
                    Verdict::Revoked { .. } | Verdict::Suspect { .. } | Verdict::Unknown { .. } => {}
                }
                questions += 1;
            }
            good += u64::from(is_good(device.ask("good")));
        }
    }
    assert!(expired > 500_000 && good > 50 && site.entries(0).len() < 2_000, "{expired} {good}");
}

// ---- Rows 24 to 27: what revocations can be made to do ---------------------------------------------

/// `jti`s that nobody would guess.
fn unguessable(random: &mut Random, count: usize) -> Vec<String> {
    (0..count).map(|_| format!("{:016x}{:016x}", random.bits(), random.bits())).collect()
}

/// `jti`s that set as many bits as possible in the filter that this salt will give: of 24 at a time the best.
fn evil_jtis(params: FilterParams, count: usize) -> Vec<String> {
    let mut polluted = FilterBuf::new(params);
    let candidate = |number: usize| format!("evil-{number}");
    let mut chosen = Vec::new();
    for round in 0..count {
        let bits = |number: &usize| {
            let mut with = polluted.clone();
            with.insert(fingerprinter().fingerprint(Jti::new(&candidate(*number)).unwrap()));
            with.bits_set()
        };
        let best = (round * 24..(round + 1) * 24).max_by_key(bits).unwrap();
        polluted.insert(fingerprinter().fingerprint(Jti::new(&candidate(best)).unwrap()));
        chosen.push(candidate(best));
    }
    chosen
}

/// `jti`s that between them set every bit of one victim under this salt.
fn jtis_against(victim: &str, params: FilterParams) -> Vec<String> {
    let lines = |jti: &str| {
        let fingerprint = fingerprinter().fingerprint(Jti::new(jti).unwrap());
        FilterBuf::build(params, [fingerprint]).to_bytes()
    };
    let mut open = lines(victim);
    let mut chosen = Vec::new();
    for number in 0_u32.. {
        let jti = format!("against-{number}");
        let hit = lines(&jti).iter().zip(&open).any(|(set, open)| set & open != 0);
        if hit {
            open.iter_mut().zip(lines(&jti)).for_each(|(open, set)| *open &= !set);
            chosen.push(jti);
        }
        if open.iter().all(|byte| *byte == 0) {
            break;
        }
    }
    chosen
}

/// Row 24: whoever may choose jtis, has them revoked and knows the salt in force pollutes a filter under that salt,
/// and makes a victim of his choice match it. The next filter has another salt, and knows nothing of it.
#[test]
fn row_24_an_evil_set_of_jtis_does_nothing_to_the_next_filter() {
    const EVIL: usize = 1_500;
    let target = 0.01;
    let mut site = Site::new(24, fingerprinter(), small_settings(), |_| ());
    let known = site.publisher.filters().last().unwrap().params().salt();
    let params = |salt| FilterParams::for_target(EVIL as u64, target, salt).unwrap();
    let evil = evil_jtis(params(known), EVIL);
    let fingerprints = |jtis: &[String]| -> Vec<Fingerprint> {
        jtis.iter().map(|jti| fingerprinter().fingerprint(Jti::new(jti).unwrap())).collect()
    };
    let meant = params(known).false_positive_rate(EVIL as u64);
    let polluted = FilterBuf::build(params(known), fingerprints(&evil)).false_positive_rate();
    assert!(polluted > 2.0 * meant, "the attack works where the salt is known: {polluted} where {meant} was meant");
    let victim = "victim";
    let against = jtis_against(victim, params(known));
    let hit = FilterBuf::build(params(known), fingerprints(&against));
    assert_eq!(hit.query(fingerprints(&[victim.to_owned()])[0]), Membership::Possible);
    assert!(against.len() < 8, "{against:?}");

    // Revoked in portions: every filter on the way, and the last with exactly the evil set.
    let mut rates = Vec::new();
    for portion in evil.chunks(EVIL / 3) {
        for jti in portion {
            site.revoke(jti, START + 9_000);
        }
        for _ in 0..3 {
            site.pass(21_000);
            site.publish();
        }
        let filter = site.publisher.filters().last().unwrap().clone();
        let entries = site.publisher.book().revoked_len() as u64;
        assert_ne!(filter.params().salt(), known);
        rates.push((filter.false_positive_rate(), filter.params().false_positive_rate(entries), entries));
    }
    assert_eq!(rates.last().unwrap().2, EVIL as u64);
    let fine = |(rate, meant, _): &(f64, f64, u64)| *rate <= 2.0 * meant && *rate <= 2.0 * target;
    assert!(rates.iter().all(fine), "{rates:?}");
    let device = site.device(prompt(Profile::Filter));
    assert!(evil.iter().all(|jti| matches!(device.ask(jti), Verdict::Suspect { .. }) || is_revoked(device.ask(jti))));
    let strangers = 100_000;
    let suspects = (0..strangers).filter(|number| !is_good(device.ask(&format!("stranger-{number}")))).count();
    let measured = suspects as f64 / f64::from(strangers);
    assert!(measured <= 2.0 * target, "{measured} measured on a device");
    assert_eq!(site.publisher.salts_refused(), 0);

    // A random source that gives the old salt again: such a filter is thrown away, and it is told.
    for repeats in [1, 3, usize::MAX] {
        let mut site = Site::new(24, fingerprinter(), small_settings(), |_| ());
        for jti in &evil {
            site.revoke(jti, START + 9_000);
        }
        site.pass(21_000);
        let standing = site.publisher.position().unwrap().epoch;
        for entry in site.entries(site.publisher.book().sequence().0) {
            site.publisher.take(&entry).unwrap();
        }
        let draft = site.draft().expect("so many revocations are worth an epoch");
        let coverage = ready(site.ledger.coverage(site.realm.id)).unwrap();
        let mut drawn = 0;
        let filtered = draft.filter(&coverage, || {
            drawn += 1;
            if drawn <= repeats { known } else { Salt([77; 16]) }
        });
        if repeats == usize::MAX {
            let refused = filtered.unwrap_err().to_string();
            assert!(refused.starts_with("the filter flags 0."), "{refused}");
            site.publisher.abandon();
            site.shelf.retain(|_, bytes| !bytes.is_empty());
            assert_eq!(site.publisher.position().unwrap().epoch, standing, "nothing polluted is ever published");
            // A source that works again ends it.
            site.pass(21_000);
            site.publish();
            assert!(site.publisher.position().unwrap().epoch > standing);
        } else {
            site.finish(filtered.unwrap());
            site.publish();
            assert_eq!((drawn, site.publisher.salts_refused()), (repeats + 1, repeats));
            assert_eq!(site.publisher.filters().last().unwrap().params().salt(), Salt([77; 16]));
        }
        let rate = site.publisher.filters().last().unwrap().false_positive_rate();
        assert!(rate <= 2.0 * target, "{rate}");
        let device = site.device(prompt(Profile::Filter));
        assert!(!evil.iter().any(|jti| is_good(device.ask(jti))));
    }
}

/// What an epoch on the shelf holds: its index, and its artifacts put together.
fn unpacked(shelf: &Shelf, realm: &RealmId, epoch: Epoch) -> (Index, BTreeMap<Artifact, Vec<u8>>) {
    let body = |address: &Address, kind| Sealed::expect(&shelf[address], realm, kind).unwrap().unverified_body();
    let index = wire::decode_index(body(&Address::Index { epoch }, Kind::Index)).unwrap();
    let mut artifacts: BTreeMap<Artifact, Vec<u8>> = BTreeMap::new();
    // Addresses of one artifact are sorted by number.
    for address in shelf.keys() {
        if let Address::Chunk { epoch: of, artifact, layer: Layer::Content, .. } = address
            && *of == epoch
        {
            let chunk = wire::decode_chunk(body(address, Kind::Chunk)).unwrap();
            artifacts.entry(*artifact).or_default().extend_from_slice(chunk.content);
        }
    }
    (index, artifacts)
}

/// Row 25: over random histories no token of a base is both revoked and excepted, and what is revoked never comes
/// out as good, also if the exceptions still list it.
#[test]
fn row_25_no_history_makes_a_revoked_token_an_exception() {
    let (mut bases, mut listed, mut beaten, mut reinstated) = (0, 0, 0, 0);
    for seed in 0..25 {
        let mut random = Random::new(2_500 + seed);
        let settings = Settings { coverage_every: Duration::from_secs(10), ..small_settings() };
        let mut site = Site::new(seed, fingerprinter(), settings, |_| ());
        let mut tokens: Vec<(String, u64)> = Vec::new();
        let mut revoked: BTreeSet<usize> = BTreeSet::new();
        let mut device = site.device(prompt(Profile::Covered));
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let now = site.seconds() - START;
            let new = unguessable(&mut random, 200);
            site.register(new.iter().map(String::as_str));
            tokens.extend(new.into_iter().map(|jti| (jti, now)));
            for _ in 0..random.below(90) {
                let which = random.below(tokens.len() as u64) as usize;
                if random.chance(70) {
                    site.revoke(&tokens[which].0, START + tokens[which].1 + 24 * 3_600);
                    revoked.insert(which);
                } else if revoked.remove(&which) {
                    site.reinstate(&tokens[which].0);
                    reinstated += 1;
                }
            }
            // Those who are listed as good are had revoked, some of them.
            for (which, (jti, iat)) in tokens.iter().enumerate() {
                let claims = claims_of(jti, *iat);
                if device.exposed.explain(device.now(), &claims).1 == Witness::Exceptions && random.chance(20) {
                    site.revoke(jti, START + iat + 24 * 3_600);
                    revoked.insert(which);
                }
            }
            site.pass(1_000 + random.below(15_000));
            if random.chance(60) {
                site.cover(site.seconds() - START);
            }
            site.publish();
            device.wall = site.time;
            device.tell(Event::Elapsed);
            if random.chance(70) {
                device.reconnect(&site.shelf);
            }
            // What was published, taken apart without the device's code.
            let epoch = site.publisher.position().unwrap().epoch;
            let (index, artifacts) = unpacked(&site.shelf, &site.realm.id, epoch);
            let summary = |artifact| index.artifacts.iter().find(|summary| summary.artifact == artifact);
            // Of nothing there is no chunk.
            let coded = artifacts.get(&Artifact::List).map_or(&[][..], Vec::as_slice);
            let list = rice::decode(coded, summary(Artifact::List).unwrap().entries, Width::W48).unwrap();
            let mut excepted = None;
            if let Some(bytes) = artifacts.get(&Artifact::Exceptions) {
                let head = bytes.first_chunk().unwrap();
                let (digest, cut) = wire::decode_exceptions_head(index.filter.salt(), head).unwrap();
                assert_eq!(digest, Digest::of(&artifacts[&Artifact::Filter]), "true of this filter only");
                let entries = summary(Artifact::Exceptions).unwrap().entries;
                let keys = rice::decode(&bytes[wire::EXCEPTIONS_HEAD_BYTES..], entries, cut.width()).unwrap();
                assert!(!list.iter().any(|key| keys.binary_search(&cut.key(*key)).is_ok()), "revoked and excepted");
                excepted = Some((cut, keys));
                bases += u32::from(seen.insert(epoch));
            }
            if device.epoch() != epoch.0 || device.sequence() != site.publisher.book().sequence().0 {
                continue;
            }
            for (which, (jti, iat)) in tokens.iter().enumerate() {
                let (verdict, by) = device.exposed.explain(device.now(), &claims_of(jti, *iat));
                let fingerprint = fingerprinter().fingerprint(Jti::new(jti).unwrap());
                let in_list =
                    excepted.as_ref().is_some_and(|(cut, keys)| keys.binary_search(&cut.key(fingerprint)).is_ok());
                if revoked.contains(&which) {
                    assert!(!is_good(verdict), "seed {seed}: {jti} is revoked and {verdict:?} by {by:?}");
                    // Listed as good, and revoked since: the exact revocation wins.
                    assert!(!in_list || by == Witness::Recent, "seed {seed}: {verdict:?} by {by:?}");
                    beaten += u32::from(in_list);
                } else {
                    assert!(!is_revoked(verdict), "seed {seed}: {jti} is good and {verdict:?} by {by:?}");
                    listed += u32::from(by == Witness::Exceptions);
                }
            }
        }
    }
    assert!(bases > 100 && listed > 1_000 && beaten > 20 && reinstated > 500, "{bases} {listed} {beaten} {reinstated}");
}

/// Claims of a token issued `iat` seconds after the start.
fn claims_of(jti: &str, iat: u64) -> Claims<'_> {
    let exp = UnixTime::from_secs(START + (1 << 32));
    Claims { iat: Some(UnixTime::from_secs(START + iat)), ..Claims::new(Jti::new(jti).unwrap(), exp) }
}

/// Row 25: of two tokens with one fingerprint a good one is never excepted while the other is revoked.
#[test]
fn row_25_what_collides_with_a_revocation_is_never_excepted() {
    let narrow = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([3; 16]), Width::W40);
    let (good, evil) = colliding(&narrow);
    let mut site = Site::new(25, narrow, small_settings(), |_| ());
    let others: Vec<String> = (0..2_000).map(|number| format!("other-{number}")).collect();
    site.register(others.iter().map(String::as_str).chain([good.as_str(), evil.as_str()]));
    for jti in &others[..500] {
        site.revoke(jti, START + 9_000);
    }
    site.pass(1_000);
    site.cover(1);
    let settle = |site: &mut Site, device: &mut Follower| {
        for _ in 0..3 {
            site.pass(21_000);
            site.publish();
        }
        device.wall = site.time;
        device.reconnect(&site.shelf);
    };
    let mut device = site.device(prompt(Profile::Covered));
    settle(&mut site, &mut device);
    assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Covered));
    let verdict = |device: &Follower, jti: &str| device.check(&claims_of(jti, 0));
    assert!(is_good(verdict(&device, &good)) && is_good(verdict(&device, &evil)));
    // Revoked after it may have been listed, and with the next base.
    site.revoke(&evil, START + 9_000);
    for step in 0..2 {
        if step == 1 {
            site.register(["one-more"]);
            for jti in &others[500..1_200] {
                site.revoke(jti, START + 9_000);
            }
        }
        let before = device.epoch();
        settle(&mut site, &mut device);
        assert_eq!(device.epoch() > before, step == 1, "in the base only the second time");
        assert!(is_revoked(verdict(&device, &evil)), "step {step}: {:?}", verdict(&device, &evil));
        assert!(is_revoked(verdict(&device, &good)), "nobody can tell the two apart");
        assert!(others[1_200..].iter().all(|jti| is_good(verdict(&device, jti))));
    }
}

/// Every run of 64 bits in these bytes, the lowest bit of each byte first, as fingerprints lie in a Rice code.
fn windows(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let whole = |at: usize| {
        let mut run = [0; 16];
        run.iter_mut().zip(&bytes[at..]).for_each(|(to, from)| *to = *from);
        u128::from_le_bytes(run)
    };
    (0..bytes.len().saturating_sub(7)).flat_map(move |at| (0..8).map(move |bit| (whole(at) >> bit) as u64))
}

/// Row 26: nothing that is published holds a jti, a sub, or an unkeyed hash of one, at whatever bit it may begin.
/// Guesses find nothing without the realm's key; with it, which stands in `keys`, each costs one hash.
#[test]
fn row_26_what_is_published_names_nobody_to_whoever_has_not_the_key() {
    for function in [FingerprintFunction::Xxh3, FingerprintFunction::Sha256] {
        let mut random = Random::new(26);
        let key = RealmKey(random.sixteen());
        let fingerprinter = Fingerprinter::new(function, key, Width::W48);
        let mut site = Site::new(26, fingerprinter, small_settings(), |_| ());
        let jtis = unguessable(&mut random, 3_000);
        let subs = unguessable(&mut random, 20);
        site.register(jtis.iter().map(String::as_str));
        for jti in &jtis[..600] {
            site.revoke(jti, START + 9_000);
        }
        for sub in &subs {
            let not_before = UnixTime::from_secs(START + 1);
            site.request(ledger::Action::Cutoff { scope: ledger::Scope::Sub(sub.clone()), not_before });
        }
        site.pass(1_000);
        site.cover(1);
        for round in 0..4 {
            site.revoke(&jtis[600 + round], START + 9_000);
            site.pass(21_000);
            site.publish();
        }
        let epoch = site.publisher.position().unwrap().epoch;
        let (index, artifacts) = unpacked(&site.shelf, &site.realm.id, epoch);
        assert!(artifacts.contains_key(&Artifact::Exceptions) && !artifacts[&Artifact::Cutoffs].is_empty());

        // Texts, and hashes of them without a key, whichever end comes first.
        let plain = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([0; 16]), Width::W64);
        let mut forbidden = BTreeSet::new();
        for text in jtis.iter().chain(&subs) {
            let digest = Digest::of(text.as_bytes());
            let hex = digest.to_string();
            let hashed = plain.fingerprint(Jti::new(text).unwrap()).bits();
            for run in [text.as_bytes(), &digest.0, &digest.0[24..], hex.as_bytes()] {
                let run: [u8; 8] = *run.first_chunk().unwrap();
                forbidden.extend([u64::from_le_bytes(run), u64::from_le_bytes(run).swap_bytes()]);
            }
            forbidden.extend([hashed, hashed.swap_bytes()]);
        }
        let finds = |bytes: &[u8]| windows(bytes).filter(|run| forbidden.contains(run)).count();
        let mut scanned = 0;
        for bytes in site.shelf.values().chain(&site.live) {
            assert_eq!(finds(bytes), 0);
            scanned += bytes.len();
        }
        assert!(scanned > 8_000, "{scanned} bytes");
        // It would have been found, at any bit.
        let mut leak = vec![0xa5; 40];
        for (at, byte) in Digest::of(jtis[7].as_bytes()).0[..8].iter().enumerate() {
            leak[10 + at] = leak[10 + at] & 0x07 | byte << 3;
            leak[11 + at] = leak[11 + at] & 0xf8 | byte >> 5;
        }
        assert_eq!(finds(&leak), 1);

        // Guessing all of them, with no key, with wrong ones and with the right one.
        let entries = index.artifacts.iter().find(|summary| summary.artifact == Artifact::List).unwrap().entries;
        let list = rice::decode(&artifacts[&Artifact::List], entries, Width::W48).unwrap();
        let filter = Filter::new(index.filter, &artifacts[&Artifact::Filter]).unwrap();
        let guess = |guesser: Fingerprinter| {
            let all: Vec<Fingerprint> = jtis.iter().map(|jti| guesser.fingerprint(Jti::new(jti).unwrap())).collect();
            let listed = all.iter().filter(|key| list.binary_search(key).is_ok()).count();
            let flagged = all.iter().filter(|key| filter.query(**key) == Membership::Possible).count();
            (listed, flagged)
        };
        let by_chance = jtis.len() as f64 * filter.false_positive_rate();
        let keys = std::iter::once(RealmKey([0; 16])).chain((0..20).map(|_| RealmKey(random.sixteen())));
        for (guesser, key) in keys.enumerate() {
            for function in [FingerprintFunction::Xxh3, FingerprintFunction::Sha256] {
                let (listed, flagged) = guess(Fingerprinter::new(function, key, Width::W48));
                assert_eq!(listed, 0, "guesser {guesser}");
                assert!((flagged as f64) < 2.0 * by_chance + 10.0, "{flagged} where {by_chance} are flagged by chance");
            }
        }
        let began = Instant::now();
        let (listed, flagged) = guess(fingerprinter);
        let cost = began.elapsed() / jtis.len() as u32;
        println!("{function:?}: with the key {listed} of {entries} found, {cost:?} a guess");
        assert!(entries > 600 && listed as u64 == entries && flagged >= listed, "{listed} of {entries}, {flagged}");
    }
}

/// Row 27: all combinations of scopes, each cut off in the base, since, in both, or lifted since, and tokens issued
/// before, at and after each cutoff, or at no known time: revoked if any scope of theirs says so.
#[test]
fn row_27_a_token_is_revoked_if_any_of_its_scopes_says_so() {
    const KINDS: [(ScopeKind, &str); 4] =
        [(ScopeKind::Realm, ""), (ScopeKind::Subject, "n"), (ScopeKind::KeyId, "n"), (ScopeKind::Client, "n")];
    let forge = Forge::new(27);
    let scope = |kind: usize| Scope::new(&forge.fingerprinter, KINDS[kind].0, KINDS[kind].1);
    let (mut revoked, mut good) = (0_u32, 0_u32);
    // A digit to the base of five for each scope: nothing, in the base, since, raised since, lifted since.
    for case in 0..5_usize.pow(4) {
        let (mut in_base, mut delta) = (Vec::new(), forge.delta_meant((3, 4), &[], &[], 90));
        let mut model = [None; 4];
        for (kind, not_before) in model.iter_mut().enumerate() {
            let time = |at: u64| UnixTime::from_secs(START + at + 10 * kind as u64);
            let cutoff = |at| Cutoff { scope: scope(kind), not_before: time(at) };
            let digit = case / 5_usize.pow(kind as u32) % 5;
            if matches!(digit, 1 | 3 | 4) {
                in_base.push(cutoff(20));
                *not_before = Some(time(20).secs());
            }
            if matches!(digit, 2 | 3) {
                delta.cutoffs.push(cutoff(24));
                *not_before = Some(time(24).secs());
            }
            if digit == 4 {
                delta.lifts.push(scope(kind));
                *not_before = None;
            }
        }
        in_base.sort_unstable();
        delta.cutoffs.sort_unstable();
        delta.lifts.sort_unstable();
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.serve(&forge.shelf(&forge.epoch(1, 3, &[], &in_base, 80), &[], 3, 90));
        if !delta.cutoffs.is_empty() || !delta.lifts.is_empty() {
            assert!(device.give(Address::Live, &forge.delta(&delta)).is_empty());
        }
        let edges = model.iter().flatten().flat_map(|edge| [edge - 1, *edge, edge + 1]);
        let iats: Vec<Option<u64>> = edges.chain([0, u64::MAX]).map(Some).chain([None]).collect();
        for claimed in 0..8_usize {
            for iat in &iats {
                let name = |bit: usize| (claimed & (1 << bit) != 0).then_some("n");
                let claims = Claims {
                    iat: iat.map(UnixTime::from_secs),
                    sub: name(0),
                    kid: name(1),
                    client: name(2),
                    ..Claims::new(Jti::new("t").unwrap(), UnixTime::from_secs(u64::MAX))
                };
                let applies = |kind: usize| kind == 0 || claimed & (1 << (kind - 1)) != 0;
                let before = |edge: u64| iat.is_none_or(|iat| iat < edge);
                let expected = (0..4).any(|kind| applies(kind) && model[kind].is_some_and(before));
                let verdict = device.check(&claims);
                assert_eq!(
                    is_revoked(verdict),
                    expected,
                    "case {case}, claims {claimed:03b}, iat {iat:?}: {verdict:?}"
                );
                assert!(expected || is_good(verdict));
                *(if expected { &mut revoked } else { &mut good }) += 1;
            }
        }
    }
    assert!(revoked > 10_000 && good > 10_000, "{revoked} {good}");
}

/// What is true of a realm, told in the plainest way: what is revoked, and where each scope is cut off.
#[derive(Default)]
struct Plain {
    revoked: BTreeSet<String>,
    cutoffs: BTreeMap<ledger::Scope, u64>,
}

impl Plain {
    fn revokes(&self, token: &Scoped) -> bool {
        let scopes = [
            Some(ledger::Scope::Realm),
            token.sub.map(|name| ledger::Scope::Sub(name.to_owned())),
            token.kid.map(|name| ledger::Scope::Kid(name.to_owned())),
            token.client.map(|name| ledger::Scope::Client(name.to_owned())),
        ];
        let cut = |scope: &ledger::Scope| {
            self.cutoffs.get(scope).is_some_and(|not_before| token.iat.is_none_or(|iat| iat < *not_before))
        };
        self.revoked.contains(&token.jti) || scopes.iter().flatten().any(cut)
    }
}

/// A token with scopes of its own.
struct Scoped {
    jti: String,
    iat: Option<u64>,
    sub: Option<&'static str>,
    kid: Option<&'static str>,
    client: Option<&'static str>,
}

/// Row 27 as a law: after any history of revokes, reinstates, cutoffs and lifts, a device says what the plainest
/// model says; before, on and after a change of epochs, and after a restart.
#[test]
fn row_27_any_history_of_cutoffs_and_lifts_comes_out_as_in_a_plain_model() {
    let (mut by_cutoff, mut asked, mut epochs) = (0_u32, 0_u32, BTreeSet::new());
    for seed in 0..30 {
        let mut random = Random::new(2_700 + seed);
        let settings = Settings { epoch_age_max: 20 * SECOND, ..small_settings() };
        let mut site = Site::new(seed, fingerprinter(), settings, |realm| realm.leeway = 5 * SECOND);
        let mut plain = Plain::default();
        let tokens: Vec<Scoped> = (0..60)
            .map(|number| Scoped {
                jti: format!("token-{number}"),
                iat: random.chance(90).then(|| START + random.below(200)),
                sub: *random.pick(&[None, Some("a"), Some("b")]),
                kid: *random.pick(&[None, Some("a"), Some("b")]),
                client: *random.pick(&[None, Some("a")]),
            })
            .collect();
        let profiles = [Profile::Exact, Profile::Filter, Profile::List];
        let mut devices = profiles.map(|profile| site.device(prompt(profile)));
        for step in 0..60 {
            for _ in 0..random.below(4) {
                let name = (*random.pick(&["a", "b"])).to_owned();
                let scope = match random.below(8) {
                    0 => ledger::Scope::Realm,
                    1..=3 => ledger::Scope::Sub(name),
                    4..=5 => ledger::Scope::Kid(name),
                    _ => ledger::Scope::Client(name),
                };
                let jti = random.pick(&tokens).jti.clone();
                match random.below(8) {
                    0..=1 => {
                        let not_before = START + random.below(200);
                        let at = UnixTime::from_secs(not_before);
                        site.request(ledger::Action::Cutoff { scope: scope.clone(), not_before: at });
                        // One that is in force is never lowered.
                        let held = plain.cutoffs.entry(scope).or_default();
                        *held = not_before.max(*held);
                    }
                    2..=4 => {
                        site.request(ledger::Action::Lift { scope: scope.clone() });
                        plain.cutoffs.remove(&scope);
                    }
                    5..=6 => {
                        site.revoke(&jti, START + 9_000);
                        plain.revoked.insert(jti);
                    }
                    _ => {
                        site.reinstate(&jti);
                        plain.revoked.remove(&jti);
                    }
                }
            }
            // Something to forget, so that epochs change.
            site.revoke(&format!("brief-{step}"), site.seconds() + 2);
            site.pass(1_000 + random.below(4_000));
            let live = site.publish();
            for (device, profile) in devices.iter_mut().zip(profiles) {
                device.wall = site.time;
                device.tell(Event::Elapsed);
                for bytes in &live {
                    device.hear(Address::Live, bytes);
                }
                match random.below(5) {
                    0 => device.restart(),
                    1 => *device = site.device(prompt(profile)),
                    _ => {}
                }
                if device.sequence() != site.publisher.book().sequence().0 || random.chance(20) {
                    device.reconnect(&site.shelf);
                }
                assert_eq!(device.sequence(), site.publisher.book().sequence().0, "seed {seed}, step {step}");
                epochs.insert((seed, device.epoch()));
                for token in &tokens {
                    let claims = Claims {
                        iat: token.iat.map(UnixTime::from_secs),
                        sub: token.sub,
                        kid: token.kid,
                        client: token.client,
                        ..Claims::new(Jti::new(&token.jti).unwrap(), UnixTime::from_secs(START + 9_000))
                    };
                    let (verdict, by) = device.exposed.explain(device.now(), &claims);
                    let expected = plain.revokes(token);
                    let exact = profile == Profile::Exact || by == Witness::Cutoffs || by == Witness::Recent;
                    let what = format!("seed {seed}, step {step}, {profile:?}, {}: {verdict:?}", token.jti);
                    assert!(if expected { !is_good(verdict) } else { !is_revoked(verdict) }, "{what}");
                    assert!(!exact || is_revoked(verdict) == expected, "{what}");
                    by_cutoff += u32::from(by == Witness::Cutoffs);
                    asked += 1;
                }
            }
        }
    }
    assert!(by_cutoff > asked / 10 && by_cutoff < asked * 9 / 10, "{by_cutoff} of {asked}");
    assert!(epochs.len() > 200, "{} epochs", epochs.len());
}

/// Row 43: what our own encoder got wrong is not signed: each artifact and each body with one bit
/// flipped is refused by the proof, or means the same.
#[test]
fn row_43_a_broken_encoding_stops_publication() {
    let forge = Forge::new(43);
    let mut book = Book::new(forge.fingerprinter, Term(1));
    let jtis: Vec<String> = (0..80).map(|number| format!("token-{number}")).collect();
    for (at, jti) in jtis.iter().enumerate() {
        let statement = Statement::Revoke { jti: jti.clone(), exp: UnixTime::from_secs(u64::MAX) };
        let sequence = Sequence(at as u64 + 1);
        book.apply(&Entry { sequence, at: UnixTime::from_secs(START), statement, reason: None, actor: String::new() });
    }
    let jtis: Vec<&str> = jtis.iter().map(String::as_str).collect();
    let good: Vec<String> = (0..2_000).map(|number| format!("good-{number}")).collect();
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let epochal = forge.epoch_covering(1, 80, &jtis, &[], Some((&good, UnixTime::from_secs(START))), 0);
    let index = &epochal.index;
    let cuts: Vec<Cut> = index
        .artifacts
        .iter()
        .map(|summary| Cut {
            summary: summary.clone(),
            objects: epochal
                .objects
                .iter()
                .filter(
                    |(address, _)| matches!(address, Address::Chunk { artifact, .. } if *artifact == summary.artifact),
                )
                .cloned()
                .collect(),
        })
        .collect();
    let body = wire::encode_index(index).unwrap();
    let content = |artifact: Artifact| -> Vec<u8> {
        let cut = cuts.iter().find(|cut| cut.summary.artifact == artifact).unwrap();
        let slices =
            cut.objects.iter().filter(|(address, _)| matches!(address, Address::Chunk { layer: Layer::Content, .. }));
        let slices = slices.flat_map(|(_, sealed)| {
            let sealed = Sealed::parse(sealed).unwrap();
            wire::decode_chunk(sealed.unverified_body()).unwrap().content.to_vec()
        });
        slices.collect()
    };
    let filter_bytes = content(Artifact::Filter);
    let filter = Filter::new(index.filter, &filter_bytes).unwrap();
    let (revoked, excepted) = (book.revoked(), forge.fingerprints(&good));
    let excepted: Vec<_> = excepted.into_iter().filter(|key| filter.query(*key) == Membership::Possible).collect();
    assert!(!excepted.is_empty(), "some good tokens are false positives");
    let built_from =
        Meant { realm: forge.realm, width: Width::W48, revoked: &revoked, excepted: &excepted, cutoffs: &[] };
    let prove = |body: &[u8], cuts: &[Cut]| proof::index(body.to_vec(), index, cuts, &built_from).is_ok();
    assert!(prove(&body, &cuts), "unbroken, it is proven");
    let flip = |bytes: &mut [u8], bit: usize| bytes[bit / 8] ^= 1 << (bit % 8);
    for bit in 0..body.len() * 8 {
        let mut broken = body.clone();
        flip(&mut broken, bit);
        assert!(!prove(&broken, &cuts), "index, bit {bit}");
    }
    let mut flips = 0;
    for (at, cut) in cuts.iter().enumerate() {
        for (object, (address, sealed)) in cut.objects.iter().enumerate() {
            for bit in 0..sealed.len() * 8 {
                let mut broken = cuts.clone();
                flip(&mut broken[at].objects[object].1, bit);
                assert!(!prove(&body, &broken), "{address}, bit {bit}");
                flips += 1;
            }
        }
    }
    assert!(flips > 4_000, "{flips}");
    // A breakage before the digests were computed: the artifact itself. Then only its meaning can tell.
    let cutting = Cutting::of(forge.realm, index);
    for artifact in [Artifact::Filter, Artifact::List, Artifact::Exceptions] {
        let at = index.artifacts.iter().position(|summary| summary.artifact == artifact).unwrap();
        let bytes = content(artifact);
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            flip(&mut broken, bit);
            let entries = index.artifacts[at].entries;
            let cut = cutting.cut(artifact, entries, &broken).unwrap();
            let mut meant = index.clone();
            meant.artifacts[at] = cut.summary.clone();
            let mut cuts = cuts.clone();
            cuts[at] = cut;
            let proven = proof::index(wire::encode_index(&meant).unwrap(), &meant, &cuts, &built_from);
            assert!(proven.is_err(), "{}, bit {bit}", artifact.name());
        }
    }
    // Deltas and manifests.
    let delta = forge.delta_meant((0, 80), &jtis, &["never revoked"], 0);
    let body = wire::encode_delta(&delta, Width::W48).unwrap();
    assert!(proof::delta(body.clone(), &delta, &book, Width::W48).is_ok());
    let manifest = forge.manifest_meant(&epochal, 80, &[], 0);
    let manifest_body = wire::encode_manifest(&manifest).unwrap();
    assert!(proof::manifest(manifest_body.clone(), &manifest).is_ok());
    for bit in 0..body.len() * 8 {
        let mut broken = body.clone();
        flip(&mut broken, bit);
        assert!(proof::delta(broken.clone(), &delta, &book, Width::W48).is_err(), "delta, bit {bit}");
        assert!(proof::merged(broken, &delta, Width::W48).is_err());
    }
    for bit in 0..manifest_body.len() * 8 {
        let mut broken = manifest_body.clone();
        flip(&mut broken, bit);
        assert!(proof::manifest(broken, &manifest).is_err(), "manifest, bit {bit}");
    }
    // Meant wrongly from the start: a delta that softens what the book holds revoked.
    let lie = forge.delta_meant((0, 80), &jtis[1..], &jtis[..1], 0);
    let body = wire::encode_delta(&lie, Width::W48).unwrap();
    assert!(proof::delta(body, &lie, &book, Width::W48).is_err());
}

/// Row 45: a state image of some 64 KiB, with a bit flipped in every byte of head and base (every bit of
/// every byte with `REVOCAST_LAWS_LONG`): never read back as something else, never a panic.
#[test]
fn row_45_a_flipped_bit_on_the_disk_is_noticed() {
    let forge = Forge::new(45);
    let jtis: Vec<String> = (0..14_500).map(|number| number.to_string()).collect();
    let jtis: Vec<&str> = jtis.iter().map(String::as_str).collect();
    let mut device = forge.device(prompt(Profile::Exact), 100);
    device.serve(&forge.shelf(&forge.epoch(1, 3, &jtis[..13_500], &[], 90), &[], 3, 100));
    for from in 3..8 {
        let some = &jtis[13_500 + from as usize * 100..][..100];
        device.give(Address::Live, &forge.delta(&forge.delta_meant((from, from + 1), some, &[], 100)));
    }
    let (head, base) = device.disk.clone().unwrap();
    let base = base.unwrap();
    assert!(device.restored(&head, Some(&base)).is_ok());
    assert!((60_000..80_000).contains(&(head.len() + base.len())), "{} + {}", head.len(), base.len());
    let long = std::env::var_os("REVOCAST_LAWS_LONG").is_some();
    let bits =
        |length: usize| -> Vec<usize> { (0..length * 8).filter(|bit| long || bit % 8 == (bit / 8) % 8).collect() };
    let check = |half: usize| {
        let (mut head, mut base) = (head.clone(), base.clone());
        for bit in bits(head.len()).into_iter().skip(half).step_by(2) {
            head[bit / 8] ^= 1 << (bit % 8);
            assert!(device.restored(&head, Some(&base)).is_err(), "head, bit {bit}");
            head[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in bits(base.len()).into_iter().skip(half).step_by(2) {
            base[bit / 8] ^= 1 << (bit % 8);
            assert!(device.restored(&head, Some(&base)).is_err(), "base, bit {bit}");
            base[bit / 8] ^= 1 << (bit % 8);
        }
    };
    std::thread::scope(|scope| {
        for half in 0..2 {
            let check = &check;
            scope.spawn(move || check(half));
        }
    });
}

/// Row 50: a reboot after any number of objects of a new epoch: nothing partial is consulted, the old
/// epoch answers, and the download begins again or goes on.
#[test]
fn row_50_a_reboot_in_mid_download_loses_nothing_and_uses_nothing_partial() {
    for profile in [Profile::Exact, Profile::List, Profile::Filter] {
        let forge = Forge::new(50);
        let old = forge.epoch(1, 3, &["old"], &[], 90);
        let many: Vec<String> = (0..4_000).map(|number| format!("new-{number}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        many.push("old");
        let next = forge.epoch(2, 9, &many, &[], 95);
        let shelf = forge.shelf(&next, &[], 9, 101);
        let mut cut = 0;
        loop {
            let mut device = forge.device(prompt(profile), 100);
            device.serve(&forge.shelf(&old, &[], 3, 100));
            device.give(Address::Manifest, &shelf[&Address::Manifest]);
            for _ in 0..cut {
                let Some(address) = device.asked.pop_front() else { break };
                if let Some(bytes) = shelf.get(&address) {
                    device.give(address, bytes);
                }
            }
            if device.epoch() == 2 {
                break;
            }
            device.restart();
            assert_eq!((device.epoch(), device.sequence()), (1, 3));
            assert!(matches!(device.ask("old"), Verdict::Revoked { .. } | Verdict::Suspect { .. }));
            assert!(!is_revoked(device.ask("new-1")), "cut at {cut}: nothing partial is consulted");
            device.reconnect(&shelf);
            assert_eq!((device.epoch(), device.sequence()), (2, 9), "cut at {cut}");
            for jti in ["old", "new-0", "new-3999"] {
                assert!(!is_good(device.ask(jti)));
            }
            cut += 1;
        }
        assert!(cut > 4, "{} had {cut} points to cut at", profile.name());
    }
}

/// Row 52: a hundred thousand random tokens get the same answer before and after a restart while
/// offline.
#[test]
fn row_52_a_restart_while_offline_changes_no_answer() {
    for profile in [Profile::Exact, Profile::List, Profile::Filter] {
        let mut site = Site::new(52, fingerprinter(), small_settings(), |_| ());
        let mut random = Random::new(52);
        for number in 0..3_000 {
            site.revoke(&format!("t{number}"), START + 100_000 + random.below(100_000));
            if number % 7 == 0 {
                site.reinstate(&format!("t{}", random.below(number + 1)));
            }
        }
        site.pass(1_000);
        site.publish();
        let mut device = site.device(prompt(profile));
        // And some that came since the base, with gaps.
        for number in 3_000..3_040 {
            site.revoke(&format!("t{number}"), START + 100_000);
            site.pass(1_000);
            for bytes in site.publish() {
                if random.chance(60) {
                    device.hear(Address::Live, &bytes);
                }
            }
        }
        let scope = ledger::Scope::Sub("s".to_owned());
        site.request(ledger::Action::Cutoff { scope, not_before: UnixTime::from_secs(START + 50) });
        for bytes in site.publish() {
            device.hear(Address::Live, &bytes);
        }
        let ask = |device: &Follower| -> Vec<Verdict> {
            let mut random = Random::new(53);
            (0..100_000)
                .map(|_| {
                    let jti = format!("t{}", random.below(6_000));
                    let claims = Claims {
                        iat: Some(UnixTime::from_secs(START + random.below(100))),
                        sub: Some(*random.pick(&["s", "other"])),
                        ..Claims::new(Jti::new(&jti).unwrap(), UnixTime::from_secs(START + random.below(200_000)))
                    };
                    device.check(&claims)
                })
                .collect()
        };
        device.tell(Event::Disconnected);
        let before = ask(&device);
        device.restart();
        assert_eq!(ask(&device), before);
        let kinds: BTreeSet<&str> = before.iter().map(Verdict::name).collect();
        assert!(kinds.contains("revoked") && kinds.contains("not-revoked"), "{kinds:?}");
    }
}

/// Row 8: an index that announces more cutoffs than there may be, or another size than theirs, takes no memory.
#[test]
fn row_08_cutoffs_of_an_impossible_size_are_not_fetched() {
    let forge = Forge::new(88);
    for (entries, bytes) in [(1_u64, 16_u64), (0, 1_000_000), (4_097, 4_097 * 17), (u64::from(u32::MAX), 900_000)] {
        let mut epochal = forge.epoch(1, 3, &["a"], &[], 0);
        let mut index = epochal.index.clone();
        let summary = index.artifacts.iter_mut().find(|summary| summary.artifact == Artifact::Cutoffs).unwrap();
        summary.bytes = bytes;
        summary.entries = entries.min(100_000_000);
        summary.pages = vec![Digest::default(); summary.page_count(index.chunk_bytes) as usize];
        let sealed = forge.index(&index);
        epochal.digest = Digest::of(&sealed);
        epochal.objects.pop();
        epochal.objects.push((Address::Index { epoch: Epoch(1) }, sealed));
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.serve(&forge.shelf(&epochal, &[], 3, 90));
        assert_eq!(names(&device.refused), ["malformed"], "{entries} in {bytes}");
        assert!(device.exposed.base().is_none());
    }
}
