//! What holds for every history and every byte string, tried on many.
//!
//! `REVOCAST_LAWS_LONG=1` asks 10^8 questions where CI asks 10^6 (`just laws`).
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines, clippy::similar_names, clippy::many_single_char_names)] // a history is told in one piece

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use bloomfilter::Bloom;
use proptest::prelude::*;
use revocast_core::update::{
    Answer, Artifact, ArtifactSummary, Chunk, Finding, Keys, Layer, Manifest, Piece, PublisherKey, Question, Report,
    Role, TokenTopic,
};
use revocast_core::wire::{self, WireError};
use revocast_core::{
    Address, Claims, Cutoff, Delivery, Delta, DeviceId, Digest, Epoch, ExactList, Filter, FilterBuf, FilterParams,
    Fingerprint, FingerprintFunction, Fingerprinter, Hold, Index, IssuerKeys, Jti, Kind, Membership, NoRenewal, Notice,
    Position, Profile, PublicKey, RealmId, RealmKey, Renew, Salt, Scope, ScopeKind, Sealed, Sequence, SigningKey, Term,
    UnixMillis, UnixTime, Verdict, Why, Width, rice, seal,
};
use revocast_server::ledger::{self, Statement};
use revocast_server::publisher::merge;
use revocast_tests::Random;
use revocast_tests::follower::{Follower, Site, prompt, small_settings};
use revocast_tests::forge::{Forge, START, horizon, time};

const WIDTHS: [Width; 3] = [Width::W40, Width::W48, Width::W64];

fn is_revoked(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Revoked { .. })
}

fn is_good(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NotRevoked { .. })
}

fn site(seed: u64) -> Site {
    let mut random = Random::new(seed ^ 0x5117);
    let function = *random.pick(&[FingerprintFunction::Xxh3, FingerprintFunction::Sha256]);
    let width = *random.pick(&[Width::W40, Width::W48, Width::W48, Width::W64]);
    let mut settings = small_settings();
    settings.chunk_bytes = *random.pick(&[2_048, 4_096, 32_768]);
    Site::new(seed, Fingerprinter::new(function, RealmKey(random.sixteen()), width), settings, |realm| {
        realm.leeway = Duration::from_secs(5);
        realm.max_token_lifetime = Duration::from_mins(10);
    })
}

// ---- Codec ---------------------------------------------------------------------------------------

fn digest(random: &mut Random) -> Digest {
    Digest::of(&random.sixteen())
}

/// Small numbers and extreme ones.
fn number(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.below(3),
        1 => u64::MAX - random.below(3),
        2 => random.below(1 << 40),
        _ => random.bits(),
    }
}

fn ascending<T: Ord>(random: &mut Random, most: u64, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    let count = random.below(most + 1);
    (0..count).map(|_| one(random)).collect::<BTreeSet<T>>().into_iter().collect()
}

fn scope(random: &mut Random) -> Scope {
    match ScopeKind::from_number(random.below(4) as u8).unwrap() {
        ScopeKind::Realm => Scope::REALM,
        kind => Scope { kind, name: number(random) },
    }
}

fn some_keys(random: &mut Random) -> Keys {
    let mut roots = ascending(random, 16, |random| PublicKey(digest(random).0));
    if roots.is_empty() {
        roots.push(PublicKey([0; 32]));
    }
    let mut publishers = ascending(random, 16, |random| PublisherKey {
        key: PublicKey(digest(random).0),
        role: 1 + random.below(2) as u8,
        not_after: UnixTime::from_secs(number(random)),
    });
    if publishers.is_empty() {
        publishers.push(PublisherKey {
            key: PublicKey([0; 32]),
            role: Role::Content as u8,
            not_after: UnixTime::default(),
        });
    }
    let issuer: String = (0..=random.below(40)).map(|_| *random.pick(&['a', 'ß', '/', '\u{1f512}'])).collect();
    let function = *random.pick(&[FingerprintFunction::Xxh3, FingerprintFunction::Sha256]);
    Keys {
        version: number(random),
        issued_at: UnixMillis::from_millis(number(random)),
        not_after: UnixTime::from_secs(number(random)),
        threshold: 1 + random.below(roots.len() as u64) as u8,
        roots,
        publishers,
        issuer: issuer.into(),
        fingerprinter: Fingerprinter::new(function, RealmKey(random.sixteen()), *random.pick(&WIDTHS)),
        leeway: number(random) as u32,
    }
}

fn some_manifest(random: &mut Random) -> Manifest {
    let bounds = ascending(random, 20, |random| Sequence(number(random)));
    let ladder: Vec<Piece> = bounds
        .windows(2)
        .map(|pair| Piece { from: pair[0], to: pair[1], bytes: number(random) as u32, digest: digest(random) })
        .collect();
    Manifest {
        term: Term(number(random) as u32),
        epoch: Epoch(number(random)),
        sequence: ladder.last().map_or(Sequence(number(random)), |piece| piece.to),
        issued_at: UnixMillis::from_millis(number(random)),
        next_update: UnixTime::from_secs(number(random)),
        horizon: UnixTime::from_secs(number(random)),
        index: digest(random),
        ladder,
    }
}

fn some_index(random: &mut Random) -> Index {
    let chunk_bytes = 2_048 + random.below(256 * 1_024 - 2_048 + 1) as u32;
    let artifacts = ascending(random, 4, |random| 1 + random.below(4) as u8)
        .into_iter()
        .map(|kind| {
            let mut summary = ArtifactSummary {
                artifact: Artifact::from_number(kind).unwrap(),
                entries: random.below(100_000_001),
                bytes: random.below(4_000_000),
                pages: Vec::new(),
            };
            let pages = summary.page_count(chunk_bytes);
            summary.pages = (0..pages).map(|_| digest(random)).collect();
            summary
        })
        .collect();
    Index {
        term: Term(number(random) as u32),
        epoch: Epoch(number(random)),
        sequence: Sequence(number(random)),
        issued_at: UnixMillis::from_millis(number(random)),
        horizon: UnixTime::from_secs(number(random)),
        covered_until: UnixTime::from_secs(number(random)),
        filter: FilterParams::new(
            Salt(random.sixteen()),
            4 * (1 + random.below(1 << 21)) as u32,
            1 + random.below(7) as u8,
        )
        .unwrap(),
        chunk_bytes,
        artifacts,
    }
}

fn some_delta(random: &mut Random, width: Width) -> Delta {
    let fingerprint = |random: &mut Random| Fingerprint::from_hash(number(random) << (64 - width.bits()), width);
    let revoked = ascending(random, 30, fingerprint);
    let mut reinstated = ascending(random, 30, fingerprint);
    reinstated.retain(|key| !revoked.contains(key));
    let mut cutoffs: Vec<Cutoff> = ascending(random, 10, |random| Cutoff {
        scope: scope(random),
        not_before: UnixTime::from_secs(number(random)),
    });
    cutoffs.dedup_by_key(|cutoff| cutoff.scope);
    let mut lifts = ascending(random, 10, scope);
    lifts.retain(|lift| !cutoffs.iter().any(|cutoff| cutoff.scope == *lift));
    let from = number(random).min(u64::MAX - 1);
    Delta {
        term: Term(number(random) as u32),
        from: Sequence(from),
        to: Sequence(from + 1 + random.below((u64::MAX - from).min(9))),
        issued_at: UnixMillis::from_millis(number(random)),
        horizon: UnixTime::from_secs(number(random)),
        revoked,
        reinstated,
        cutoffs,
        lifts,
    }
}

fn some_report(random: &mut Random) -> Report {
    Report {
        term: Term(number(random) as u32),
        position: Position { epoch: Epoch(number(random)), sequence: Sequence(number(random)) },
        age: random.chance(70).then(|| Duration::from_millis(number(random).min(u64::MAX - 1))),
        profile: number(random) as u8,
        memory_bytes: number(random),
        refusals: number(random),
        last_refusal: random.chance(70).then(|| random.below(255) as u8),
    }
}

fn some_device(random: &mut Random) -> DeviceId {
    let name: String = (0..=random.below(64)).map(|_| *random.pick(&['a', 'Z', '0', '-', '_', '.'])).take(64).collect();
    DeviceId::new(&name).unwrap()
}

fn some_fingerprint(random: &mut Random, width: Width) -> Fingerprint {
    Fingerprint::from_hash(number(random) << (64 - width.bits()), width)
}

fn some_question(random: &mut Random, width: Width) -> Question {
    let some = |random: &mut Random| random.chance(60).then(|| number(random));
    Question {
        device: some_device(random),
        nonce: random.sixteen(),
        fingerprint: some_fingerprint(random, width),
        iat: some(random).map(UnixTime::from_secs),
        exp: UnixTime::from_secs(number(random)),
        sub: some(random),
        kid: some(random),
        client: some(random),
    }
}

fn some_answer(random: &mut Random, width: Width) -> Answer {
    let horizon = UnixTime::from_secs(number(random));
    let cutoff = Why::Cutoff { scope: scope(random).kind, not_before: UnixTime::from_secs(number(random)) };
    let finding = match random.below(4) {
        0 => Finding::NotRevoked,
        1 => Finding::Revoked { why: Why::Token },
        2 => Finding::Revoked { why: Why::Expired { horizon } },
        _ => Finding::Revoked { why: cutoff },
    };
    Answer {
        device: some_device(random),
        nonce: random.sixteen(),
        fingerprint: some_fingerprint(random, width),
        finding,
        term: Term(number(random) as u32),
        sequence: Sequence(number(random)),
        issued_at: UnixMillis::from_millis(number(random)),
        horizon,
    }
}

/// Bytes near some bytes: bits flipped, bytes set, cut, added, moved.
fn mutated(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(6) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = *random.pick(&[0, 1, 2, 0x7f, 0x80, 0xff]),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.bits() as u8),
            _ => {
                let other = random.below(bytes.len() as u64 + 1) as usize;
                let (low, high) = (at.min(other), at.max(other));
                let copied = bytes[low..high.min(low + 16)].to_vec();
                bytes.splice(low..low, copied);
            }
        }
    }
    bytes
}

fn codec_law<T: Debug + PartialEq>(
    seed: u64,
    mut one: impl FnMut(&mut Random) -> T,
    encode: impl Fn(&T) -> Result<Vec<u8>, WireError>,
    decode: impl Fn(&[u8]) -> Result<T, WireError>,
) {
    let mut random = Random::new(seed);
    let (mut refused, mut accepted) = (0, 0);
    for _ in 0..1_500 {
        let value = one(&mut random);
        let bytes = encode(&value).unwrap();
        assert_eq!(decode(&bytes).as_ref(), Ok(&value), "decode inverts encode");
        for _ in 0..12 {
            let other = mutated(&mut random, &bytes);
            match decode(&other) {
                Ok(read) => {
                    assert_eq!(encode(&read).as_deref(), Ok(&other[..]), "one value, one byte string: {read:?}");
                    accepted += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1_000 && accepted > 100, "{refused} refused, {accepted} accepted");
}

fn some_text(random: &mut Random, most: u64) -> String {
    (0..=random.below(most)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

fn some_renew(random: &mut Random) -> Renew {
    Renew {
        device: DeviceId::new(&some_text(random, 63)).unwrap(),
        counter: number(random).max(1),
        nonce: random.sixteen(),
        at: UnixMillis::from_millis(number(random)),
    }
}

fn some_delivery(random: &mut Random) -> Delivery {
    let enclosed = random.chance(50);
    let bytes = if enclosed { 49 } else { 1 } + random.below(200);
    Delivery {
        device: DeviceId::new(&some_text(random, 63)).unwrap(),
        issued_at: UnixMillis::from_millis(number(random)),
        nonce: random.chance(50).then(|| random.sixteen()),
        enclosed,
        content: (0..bytes).map(|_| random.bits() as u8).collect(),
    }
}

fn some_notice(random: &mut Random) -> Notice {
    if random.chance(70) {
        Notice::Token { token: some_text(random, 400).into() }
    } else {
        Notice::Refused { why: *random.pick(&NoRenewal::ALL) }
    }
}

fn some_issuer_keys(random: &mut Random) -> IssuerKeys {
    IssuerKeys { issued_at: UnixMillis::from_millis(number(random)), jwks: some_text(random, 400).into_bytes() }
}

#[test]
fn a_token_topic_names_one_device_and_nothing_else() {
    let (realm, device) = (RealmId::new("fleet").unwrap(), DeviceId::new("pump-1").unwrap());
    let topic = |template: &str| TokenTopic::parse(template).map(|topic| topic.topic(&realm, &device));
    assert_eq!(topic(TokenTopic::DEFAULT).unwrap(), "device_tokens/pump-1");
    assert_eq!(topic("a/{realm}/b/{device_id}/c").unwrap(), "a/fleet/b/pump-1/c");
    assert_eq!(TokenTopic::default().filter(&realm), "device_tokens/+");
    let long = format!("{}/{{device_id}}", "a".repeat(245));
    for refused in [
        "",
        "device_tokens",
        "/{device_id}",
        "a//{device_id}",
        "{device_id}/",
        "+/{device_id}",
        "#",
        "{device_id}/{device_id}",
        "{realm}/{realm}/{device_id}",
        "a-{device_id}",
        "{device}",
        "{device_id}/{other}",
        "$share/{device_id}",
        "a\n/{device_id}",
        &long,
    ] {
        assert!(TokenTopic::parse(refused).is_err(), "{refused:?}");
    }
}

#[test]
fn decode_inverts_encode_and_encoding_is_canonical() {
    codec_law(1, some_keys, wire::encode_keys, wire::decode_keys);
    codec_law(2, some_manifest, wire::encode_manifest, wire::decode_manifest);
    codec_law(3, some_index, wire::encode_index, wire::decode_index);
    for width in WIDTHS {
        codec_law(
            4,
            |random| some_delta(random, width),
            |delta| wire::encode_delta(delta, width),
            |bytes| wire::decode_delta(bytes, width),
        );
    }
    codec_law(5, some_report, wire::encode_report, wire::decode_report);
    for width in WIDTHS {
        let question = |random: &mut Random| some_question(random, width);
        codec_law(8, question, wire::encode_question, |bytes| wire::decode_question(bytes, width));
        let answer = |random: &mut Random| some_answer(random, width);
        codec_law(9, answer, wire::encode_answer, |bytes| wire::decode_answer(bytes, width));
    }
    codec_law(10, some_renew, wire::encode_renew, wire::decode_renew);
    codec_law(11, some_delivery, wire::encode_delivery, wire::decode_delivery);
    codec_law(12, some_notice, wire::encode_notice, wire::decode_notice);
    codec_law(13, some_issuer_keys, wire::encode_issuer_keys, wire::decode_issuer_keys);
    let cutoffs = |random: &mut Random| {
        let mut cutoffs = ascending(random, 30, |random| Cutoff {
            scope: scope(random),
            not_before: UnixTime::from_secs(number(random)),
        });
        cutoffs.dedup_by_key(|cutoff| cutoff.scope);
        cutoffs
    };
    codec_law(6, cutoffs, |cutoffs| wire::encode_cutoffs(cutoffs), wire::decode_cutoffs);
    // A chunk borrows what it carries.
    let mut random = Random::new(7);
    for _ in 0..5_000 {
        let content: Vec<u8> = (0..random.below(60)).map(|_| random.bits() as u8).collect();
        let chunk = Chunk {
            term: Term(number(&mut random) as u32),
            epoch: Epoch(number(&mut random)),
            artifact: Artifact::from_number(1 + random.below(4) as u8).unwrap(),
            layer: Layer::from_number(random.below(2) as u8).unwrap(),
            number: number(&mut random) as u32,
            content: &content,
        };
        let bytes = wire::encode_chunk(&chunk).unwrap();
        assert_eq!(wire::decode_chunk(&bytes), Ok(chunk));
        let other = mutated(&mut random, &bytes);
        if let Ok(read) = wire::decode_chunk(&other) {
            assert_eq!(wire::encode_chunk(&read), Ok(other));
        }
    }
}

#[test]
fn an_envelope_reads_back_and_any_other_bytes_are_refused_or_say_what_they_are() {
    let key = SigningKey::from_seed([1; 32]);
    let mut random = Random::new(8);
    for _ in 0..2_000 {
        let realm = RealmId::new(&"a-9".repeat(1 + random.below(21) as usize)).unwrap();
        let kind = *random.pick(&Kind::ALL);
        let body: Vec<u8> = (0..random.below(100)).map(|_| random.bits() as u8).collect();
        let signatures = random.below(3) as usize;
        let bytes = seal(kind, &realm, &body, &[&key, &key][..signatures]);
        let sealed = Sealed::expect(&bytes, &realm, kind).unwrap();
        assert_eq!((sealed.unverified_body(), sealed.signers().count()), (&body[..], signatures));
        assert_eq!(sealed.is_signed_by(&key.public()), signatures > 0);
        let other = mutated(&mut random, &bytes);
        let read = Sealed::parse(&other);
        if other != bytes
            && let Ok(read) = read
        {
            // Signatures cover every byte before them: whatever still verifies has lost or gained only
            // signatures.
            if let Ok(body_read) = read.by_threshold(&[key.public()], 1) {
                assert_eq!((read.kind(), read.realm(), *body_read.get()), (kind, realm, &body[..]));
            }
        }
    }
}

// ---- Structures ----------------------------------------------------------------------------------

#[test]
fn the_filter_has_no_false_negative_also_after_folds() {
    let mut random = Random::new(9);
    for _ in 0..60 {
        let width = *random.pick(&WIDTHS);
        let count = 1 + random.below(3_000);
        let rate = *random.pick(&[0.2, 0.05, 0.01, 0.001, 0.000_1]);
        let params = FilterParams::for_target(count, rate, Salt(random.sixteen())).unwrap();
        let keys: Vec<Fingerprint> = (0..count).map(|_| Fingerprint::from_hash(random.bits(), width)).collect();
        let mut oracle = Bloom::<u64>::new_for_fp_rate(count as usize, rate).unwrap();
        for key in &keys {
            oracle.set(&key.bits());
        }
        let whole = FilterBuf::build(params, keys.iter().copied());
        let bytes = whole.to_bytes();
        let view = Filter::new(params, &bytes).unwrap();
        let (once, twice) = (whole.fold().unwrap(), whole.fold().unwrap().fold().unwrap());
        assert_eq!(view.to_owned_folded(2).unwrap().to_bytes(), twice.to_bytes());
        for key in &keys {
            // Whatever the reference has, ours has: in memory, in place, folded once and twice.
            assert!(oracle.check(&key.bits()));
            for answer in [whole.query(*key), view.query(*key), once.query(*key), twice.query(*key)] {
                assert_eq!(answer, Membership::Possible);
            }
        }
        // Precision is lost by folding, recall never; and the reference is no better than asked.
        let strangers: Vec<_> = (0..20_000).map(|_| Fingerprint::from_hash(random.bits(), width)).collect();
        let flagged =
            |filter: &FilterBuf| strangers.iter().filter(|key| filter.query(**key) == Membership::Possible).count();
        let theirs = strangers.iter().filter(|key| oracle.check(&key.bits())).count();
        let [ours, folded] = [&whole, &once].map(flagged);
        let (_, allowed) = (theirs, 20_000.0 * rate);
        assert!(
            (ours as f64) < 1.6 * allowed + 6.0 * allowed.sqrt() + 3.0,
            "{ours} of 20,000 at {rate} ({count} keys), reference {theirs}"
        );
        assert!(folded >= ours);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_list_is_the_set(
        numbers in prop::collection::btree_set(any::<u64>(), 0..500),
        near in prop::collection::vec(0..3_u64, 0..500),
        asked in prop::collection::vec(any::<u64>(), 0..100),
        which in 0..3_usize,
    ) {
        let width = WIDTHS[which];
        let mut set: BTreeSet<Fingerprint> = numbers.iter().map(|hash| Fingerprint::from_hash(*hash, width)).collect();
        // Runs of neighbors as well.
        let mut bits = 0;
        for step in near {
            bits += step;
            set.insert(Fingerprint::from_bits(bits, width).unwrap());
        }
        let keys: Vec<Fingerprint> = set.iter().copied().collect();
        let list = ExactList::from_sorted(&keys, width).unwrap();
        prop_assert_eq!(list.len(), keys.len() as u64);
        prop_assert!(list.iter().eq(keys.iter().copied()));
        let read = ExactList::new(list.as_bytes().to_vec()).unwrap();
        prop_assert_eq!(read.verify(), Ok(()));
        for key in &keys {
            for neighbor in [key.bits().wrapping_sub(1), key.bits(), key.bits().wrapping_add(1)] {
                if let Some(neighbor) = Fingerprint::from_bits(neighbor, width) {
                    prop_assert_eq!(read.contains(neighbor), set.contains(&neighbor));
                }
            }
        }
        for hash in asked {
            let key = Fingerprint::from_hash(hash, width);
            prop_assert_eq!(list.contains(key), set.contains(&key));
        }
        let coded = rice::encode(&keys, width).unwrap();
        prop_assert_eq!(rice::decode(&coded, keys.len() as u64, width), Ok(keys));
    }
}

// ---- Histories -----------------------------------------------------------------------------------

/// What a ledger said about some tokens, as plain lists.
#[derive(Default)]
struct Oracle {
    tokens: Vec<Vec<(u64, bool)>>,
    /// Of the whole realm first, then of each `sub`.
    scopes: Vec<Vec<(u64, Option<u64>)>>,
}

const SUBS: u64 = 5;

fn sub(number: u64) -> String {
    format!("sub-{number}")
}

/// A token of a history: its `jti` is its number.
#[derive(Clone, Copy)]
struct Token {
    sub: u64,
    iat: u64,
    exp: u64,
}

impl Oracle {
    fn record(&mut self, sequence: u64, statement: &Statement) {
        let place = |scope: &ledger::Scope| match scope.text().strip_prefix("sub-") {
            Some(number) => 1 + number.parse::<usize>().unwrap(),
            None => 0,
        };
        match statement {
            Statement::Revoke { jti, .. } => self.tokens[jti.parse::<usize>().unwrap()].push((sequence, true)),
            Statement::Reinstate { jti, .. } => self.tokens[jti.parse::<usize>().unwrap()].push((sequence, false)),
            Statement::Cutoff { scope, not_before } => {
                self.scopes[place(scope)].push((sequence, Some(not_before.secs())));
            }
            Statement::Lift { scope } => self.scopes[place(scope)].push((sequence, None)),
            Statement::Resume { .. } => {}
        }
    }

    /// Whether a device at `sequence` must not call a token good: something up to there revokes it, and
    /// nothing later, of which the device may know early, has taken that back.
    fn must_not_pass(&self, number: usize, token: Token, sequence: u64) -> bool {
        let said = &self.tokens[number];
        let by_token = said.iter().rfind(|(at, _)| *at <= sequence).is_some_and(|(_, revoked)| *revoked)
            && !said.iter().any(|(at, revoked)| *at > sequence && !revoked);
        by_token
            || [0, 1 + token.sub as usize].into_iter().any(|place| {
                let said = &self.scopes[place];
                let last = said.iter().rfind(|(at, _)| *at <= sequence).and_then(|(_, not_before)| *not_before);
                let lifted = said.iter().any(|(at, not_before)| *at > sequence && not_before.is_none());
                last.is_some_and(|not_before| token.iat < not_before) && !lifted
            })
    }

    fn was_revoked_by_token(&self, number: usize) -> bool {
        self.tokens[number].iter().any(|(_, revoked)| *revoked)
    }

    fn is_revoked(&self, number: usize, token: Token) -> bool {
        self.must_not_pass(number, token, u64::MAX)
    }
}

/// A history in progress: a site, devices on a lossy link, and the oracle.
struct Play {
    random: Random,
    site: Site,
    devices: Vec<Follower>,
    tokens: Vec<Token>,
    oracle: Oracle,
    names: Vec<String>,
    subs: Vec<String>,
    /// Answers on their way, and whom they are for.
    answers: Vec<(usize, Vec<u8>)>,
    /// Answers as they were given, for whoever wants to give them again.
    given: Vec<(usize, Vec<u8>)>,
    asked: u64,
    good: u64,
    revoked: u64,
}

impl Play {
    fn new(seed: u64, tokens: usize) -> Self {
        let site = site(seed);
        let devices = [Profile::Exact, Profile::List, Profile::Filter].map(|profile| {
            let mut config = prompt(profile);
            config.epoch_jitter = Duration::from_secs(3);
            site.device(config)
        });
        let mut random = Random::new(seed);
        let now = site.seconds();
        let tokens: Vec<Token> = (0..tokens)
            .map(|_| Token {
                sub: random.below(SUBS),
                iat: now + random.below(60) - 20,
                exp: now + 20 + random.below(300),
            })
            .collect();
        Self {
            oracle: Oracle { tokens: vec![Vec::new(); tokens.len()], scopes: vec![Vec::new(); SUBS as usize + 1] },
            names: (0..tokens.len()).map(|number| number.to_string()).collect(),
            subs: (0..SUBS).map(sub).collect(),
            devices: devices.into(),
            random,
            site,
            tokens,
            answers: Vec::new(),
            given: Vec::new(),
            asked: 0,
            good: 0,
            revoked: 0,
        }
    }

    /// Some requests, some of what they lead to on its way to some devices, in some order.
    fn step(&mut self, lossy: bool) {
        let before = self.site.entries(0).last().map_or(0, |entry| entry.sequence.0);
        for _ in 0..self.random.below(25) {
            let number = self.random.below(self.tokens.len() as u64) as usize;
            let scope = match self.random.below(8) {
                0 => ledger::Scope::Realm,
                _ => ledger::Scope::Sub(sub(self.tokens[number].sub)),
            };
            let action = match self.random.below(100) {
                0..66 => {
                    let exp = UnixTime::from_secs(self.tokens[number].exp);
                    let exp = if self.random.chance(50) {
                        ledger::Expiry::Vouched(exp)
                    } else {
                        ledger::Expiry::Claimed(exp)
                    };
                    ledger::Action::Revoke { jti: self.names[number].clone(), exp }
                }
                66..90 => ledger::Action::Reinstate { jti: self.names[number].clone() },
                90..94 => {
                    let not_before = UnixTime::from_secs(self.site.seconds() + 1 - self.random.below(30));
                    ledger::Action::Cutoff { scope, not_before }
                }
                _ => ledger::Action::Lift { scope },
            };
            self.site.request(action);
        }
        for entry in self.site.entries(before) {
            self.oracle.record(entry.sequence.0, &entry.statement);
        }
        self.site.pass(self.random.below(4_000));
        let mut live = if self.random.chance(80) { self.site.publish() } else { Vec::new() };
        for at in 0..self.devices.len() {
            for swap in (1..live.len()).rev() {
                live.swap(swap, self.random.below(swap as u64 + 1) as usize);
            }
            let device = &mut self.devices[at];
            device.wall = self.site.time;
            device.uptime += Duration::from_secs(2);
            for bytes in &live {
                if !lossy || self.random.chance(70) {
                    device.hear(Address::Live, bytes);
                }
            }
            if lossy && self.random.chance(10) && !self.site.live.is_empty() {
                let replayed = self.random.pick(&self.site.live).clone();
                device.hear(Address::Live, &replayed);
            }
            device.tell(revocast_core::Event::Elapsed);
            if lossy {
                self.wonder(at);
            }
            let device = &mut self.devices[at];
            if !lossy || self.random.chance(50) {
                device.hear(Address::Manifest, &self.site.shelf[&Address::Manifest]);
                if !lossy || self.random.chance(60) {
                    device.serve(&self.site.shelf);
                }
            }
            if lossy && self.random.chance(5) {
                device.restart();
                device.wall = self.site.time;
                device.reconnect(&self.site.shelf);
            }
            if lossy {
                let error = *self.random.pick(&[0, 0, 0, 2_000, -400 * 86_400_000, 50_i64 * 365 * 86_400_000]);
                device.wall = device.wall.saturating_add_signed(error);
            }
        }
    }

    /// One device asks the server about some tokens. Answers come at once, later, never, or twice.
    fn wonder(&mut self, at: usize) {
        for _ in 0..self.random.below(4) {
            let number = self.random.below(self.tokens.len() as u64) as usize;
            let token = self.tokens[number];
            let claims = Claims {
                iat: Some(UnixTime::from_secs(token.iat)),
                sub: Some(&self.subs[token.sub as usize]),
                ..Claims::new(Jti::new(&self.names[number]).unwrap(), UnixTime::from_secs(token.exp))
            };
            let asked = self.devices[at].wonder(&claims);
            if let Some(answer) = asked.ok().and_then(|question| self.site.answer(&question)) {
                self.answers.push((at, answer));
            }
        }
        let mut kept = Vec::new();
        for (whose, answer) in std::mem::take(&mut self.answers) {
            match self.random.below(10) {
                0 => {}
                1..4 => kept.push((whose, answer)),
                _ => {
                    self.devices[whose].hear(Address::Answer, &answer);
                    self.given.push((whose, answer));
                }
            }
        }
        self.answers = kept;
        if self.random.chance(10) && !self.given.is_empty() {
            let (whose, answer) = self.random.pick(&self.given).clone();
            self.devices[whose].hear(Address::Answer, &answer);
        }
    }

    /// Asks every device about every token.
    fn ask_all(&mut self, seed: u64) {
        for (at, device) in self.devices.iter().enumerate() {
            let (now, sequence) = (device.now(), device.sequence());
            let exact = self.site.realm.fingerprinter.width().is_exact();
            for (number, token) in self.tokens.iter().enumerate() {
                let claims = Claims {
                    iat: Some(UnixTime::from_secs(token.iat)),
                    sub: Some(&self.subs[token.sub as usize]),
                    ..Claims::new(Jti::new(&self.names[number]).unwrap(), UnixTime::from_secs(token.exp))
                };
                let verdict = device.exposed.check(now, &claims);
                self.asked += 1;
                match verdict {
                    Verdict::NotRevoked { .. } => {
                        self.good += 1;
                        assert!(
                            !self.oracle.must_not_pass(number, *token, sequence),
                            "seed {seed}, device {at} at {sequence}: token {number} is revoked and reads as good"
                        );
                    }
                    Verdict::Revoked { why } => {
                        self.revoked += 1;
                        let wrong = why == Why::Token && exact && !self.oracle.was_revoked_by_token(number);
                        assert!(!wrong, "seed {seed}, device {at}: token {number} was never revoked");
                    }
                    Verdict::Suspect { .. } | Verdict::Unknown { .. } => {}
                }
            }
        }
    }
}

/// The law that all else is for. 10^6 questions; 10^8 with `REVOCAST_LAWS_LONG`.
#[test]
fn before_it_expires_a_revoked_token_never_comes_out_not_revoked() {
    let long = std::env::var_os("REVOCAST_LAWS_LONG").is_some();
    let target: u64 = if long { 100_000_000 } else { 1_000_000 };
    let begin = Instant::now();
    let (mut asked, mut good, mut revoked, mut histories, mut answered) = (0, 0, 0, 0, 0);
    while asked < target {
        let mut play = Play::new(histories, if long { 1_000 } else { 250 });
        for _ in 0..45 {
            play.step(true);
            play.ask_all(histories);
        }
        asked += play.asked;
        good += play.good;
        revoked += play.revoked;
        histories += 1;
        let told = play.devices.iter().flat_map(|device| &device.answered);
        answered += told.filter(|(_, finding)| *finding == Some(Finding::NotRevoked)).count();
    }
    println!(
        "{asked} questions over {histories} histories in {:.1?}: {good} not revoked, {revoked} revoked, \
         {answered} answers of the server that clear",
        begin.elapsed()
    );
    assert!(answered as u64 > 10 * histories, "{answered} in {histories} histories");
    assert!(good > asked / 20 && revoked > asked / 20, "{good} not revoked, {revoked} revoked of {asked}");
}

#[test]
fn a_snapshot_plus_deltas_equals_the_later_snapshot() {
    for seed in 0..25 {
        let mut play = Play::new(seed, 120);
        for _ in 0..30 {
            play.step(false);
        }
        play.site.pass(1_000);
        // Those that followed from the start by deltas, and new ones that fetch it all now.
        let live = play.site.publish();
        for device in &mut play.devices {
            device.wall = play.site.time;
            for bytes in &live {
                device.hear(Address::Live, bytes);
            }
            device.hear(Address::Manifest, &play.site.shelf[&Address::Manifest]);
            device.serve(&play.site.shelf);
        }
        for follower in &play.devices {
            let newcomer = play.site.device(follower.config.clone());
            assert_eq!(follower.sequence(), newcomer.sequence(), "seed {seed}");
            let exact = play.site.realm.fingerprinter.width().is_exact()
                && follower.config.hold == Hold::Profile(Profile::Exact);
            for (number, token) in play.tokens.iter().enumerate() {
                let claims = Claims {
                    iat: Some(UnixTime::from_secs(token.iat)),
                    sub: Some(&play.subs[token.sub as usize]),
                    ..Claims::new(Jti::new(&play.names[number]).unwrap(), UnixTime::from_secs(token.exp))
                };
                let [followed, fetched] = [follower, &newcomer].map(|device| device.check(&claims));
                if exact {
                    // Two that expired may be known to one and forgotten by the other: both refuse them.
                    assert_eq!(is_revoked(followed), is_revoked(fetched), "seed {seed}: {followed:?} {fetched:?}");
                }
                let revoked = play.oracle.is_revoked(number, *token);
                for verdict in [followed, fetched] {
                    assert!(!(revoked && is_good(verdict)), "seed {seed}: {number}");
                    let expired = token.exp <= follower.exposed.horizon().secs();
                    assert!(!exact || revoked || expired || is_good(verdict), "seed {seed}: {number} {verdict:?}");
                }
            }
        }
    }
}

#[test]
fn the_position_never_decreases_and_garbage_never_changes_the_set() {
    for seed in 0..25 {
        let mut play = Play::new(seed, 60);
        let mut random = Random::new(seed + 1_000);
        let mut reached = [Position::default(); 3];
        let mut refused = 0;
        for _ in 0..25 {
            play.step(true);
            for (device, reached) in play.devices.iter_mut().zip(&mut reached) {
                let position = device.exposed.position();
                assert!(position.sequence >= reached.sequence && position.epoch >= reached.epoch, "seed {seed}");
                *reached = position;
                let image = device.image();
                for _ in 0..6 {
                    let addresses: Vec<&Address> = play.site.shelf.keys().collect();
                    let address = **random.pick(&addresses);
                    let garbage = if random.chance(50) {
                        let other = mutated(&mut random, &play.site.shelf[&address]);
                        if play.site.shelf.values().any(|bytes| *bytes == other) {
                            continue;
                        }
                        other
                    } else {
                        (0..random.below(400)).map(|_| random.bits() as u8).collect()
                    };
                    let address = if random.chance(20) { Address::Live } else { address };
                    refused += device.give(address, &garbage).len();
                    assert_eq!(device.image(), image, "seed {seed}: {address}");
                }
            }
        }
        assert!(refused > 50, "seed {seed}: {refused}");
    }
}

#[test]
fn a_merged_delta_says_what_its_two_say_one_after_the_other() {
    let forge = Forge::new(77);
    let mut random = Random::new(77);
    let names: Vec<String> = (0..12).map(|number| format!("k{number}")).collect();
    let scopes: Vec<Scope> =
        [(ScopeKind::Realm, ""), (ScopeKind::Subject, "s"), (ScopeKind::KeyId, "k"), (ScopeKind::Client, "c")]
            .map(|(kind, text)| Scope::new(&forge.fingerprinter, kind, text))
            .into();
    let base = forge.epoch(1, 3, &["k0", "k1", "k2", "k3"], &[], 0);
    let shelf = forge.shelf(&base, &[], 3, 60);
    for _ in 0..150 {
        let mut one = |range: (u64, u64), at| {
            let mut delta = forge.delta_meant(range, &[], &[], at);
            for name in &names {
                match random.below(4) {
                    0 => delta.revoked.push(forge.fingerprint(name)),
                    1 => delta.reinstated.push(forge.fingerprint(name)),
                    _ => {}
                }
            }
            for scope in &scopes {
                match random.below(4) {
                    0 => {
                        let not_before = UnixTime::from_secs(START + random.below(5) * 100);
                        delta.cutoffs.push(Cutoff { scope: *scope, not_before });
                    }
                    1 => delta.lifts.push(*scope),
                    _ => {}
                }
            }
            delta.revoked.sort_unstable();
            delta.reinstated.sort_unstable();
            delta.cutoffs.sort_unstable();
            delta.lifts.sort_unstable();
            delta
        };
        let (a, b) = (one((3, 5), 50), one((5, 9), 55));
        let merged = merge(&a, &b);
        assert_eq!((merged.from, merged.to, merged.horizon), (Sequence(3), Sequence(9), horizon(55)));
        let follow = |deltas: &[&Delta]| {
            let mut device = forge.device(prompt(Profile::Exact), 60);
            device.serve(&shelf);
            for delta in deltas {
                assert!(device.give(Address::Live, &forge.delta(delta)).is_empty());
            }
            assert_eq!(device.sequence(), 9);
            let mut answers: Vec<bool> = Vec::new();
            for name in &names {
                for iat in [0, 50, 150, 250, 350, 450] {
                    for claimed in 0..8 {
                        let named = |bit: u32, text| (claimed & (1 << bit) != 0).then_some(text);
                        let claims = Claims {
                            iat: Some(UnixTime::from_secs(START + iat)),
                            sub: named(0, "s"),
                            kid: named(1, "k"),
                            client: named(2, "c"),
                            ..Claims::new(Jti::new(name).unwrap(), UnixTime::from_secs(u64::MAX))
                        };
                        answers.push(is_revoked(device.check(&claims)));
                    }
                }
            }
            answers
        };
        assert_eq!(follow(&[&merged]), follow(&[&a, &b]));
        assert_eq!(time(55), merged.issued_at);
    }
}
