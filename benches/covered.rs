//! Prints what exact answers about a million registered tokens cost, beside what else gives them; and asks about every
//! token.
//!
//! `cargo bench -p revocast-benches --bench covered`

use std::io::Write as _;
use std::time::Instant;

use clubcard::builder::{ApproximateRibbon, ClubcardBuilder, ExactRibbon};
use clubcard::{ApproximateSizeOf, AsQuery, Equation, Filterable, Membership as Card, Queryable};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use revocast_benches::{Keys, SALT, fingerprinter};
use revocast_core::artifact::Cutting;
use revocast_core::update::Artifact;
use revocast_core::{
    Base, Digest, Epoch, FilterBuf, FilterParams, Fingerprint, Index, Jti, Membership, Profile, RealmId, Sequence,
    Term, UnixMillis, UnixTime, exceptions, rice,
};
use revocast_server::publisher::choose;
use sha2::{Digest as _, Sha256};

const REGISTERED: usize = 1_000_000;

/// The revoked are the first of these many in a thousand; the order of the keys is random.
const SHARES: [(&str, usize); 5] = [("0.1 %", 1), ("1 %", 10), ("2 %", 20), ("5 %", 50), ("10 %", 100)];

fn main() {
    // Kept for ever, as clubcard's builder asks of what goes in.
    let keys: &'static Keys = Box::leak(Box::new(Keys::new(12, REGISTERED)));
    let (texts, fingerprinter) = (keys.texts(), fingerprinter());
    let all: Vec<Fingerprint> =
        texts.iter().map(|text| fingerprinter.fingerprint(Jti::new(text).expect("a valid jti"))).collect();
    println!("bits a revocation, {REGISTERED} registered; in memory, and as it travels");
    println!(
        "{:<7} {:>8} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9} {:>8} {:>7}",
        "revoked", "entropy", "covered", "travels", "rate", "excepted", "clubcard", "status", "list 48", "wrong"
    );
    for (name, per_mille) in SHARES {
        let revoked = REGISTERED * per_mille / 1_000;
        let covered = covered(&all, revoked);
        let bits = |bytes: u64| bytes as f64 * 8.0 / revoked as f64;
        println!(
            "{name:<7} {:>8.2} {:>9.2} {:>9.2} {:>9.2e} {:>8} {:>9.2} {:>9.2} {:>8.2} {:>7}",
            entropy(REGISTERED, revoked) / revoked as f64,
            bits(covered.memory),
            bits(covered.travels),
            covered.rate,
            covered.excepted,
            bits(card(&texts, revoked)),
            bits(status_list(revoked)),
            bits(covered.list),
            covered.wrong,
        );
    }
}

struct Covered {
    memory: u64,
    travels: u64,
    list: u64,
    rate: f64,
    excepted: u64,
    wrong: usize,
}

/// Builds what a publisher would, and asks a device's base about every token.
fn covered(all: &[Fingerprint], count: usize) -> Covered {
    let width = fingerprinter().width();
    let mut revoked = all[..count].to_vec();
    revoked.sort_unstable();
    revoked.dedup();
    let good = (all.len() - count) as u64;
    let choice = choose(revoked.len() as u64, Some(good), width, None).expect("a choice");
    let params = FilterParams::for_target(revoked.len() as u64, choice.rate, SALT).expect("a rate within reach");
    let filter = FilterBuf::build(params, revoked.iter().copied());
    let flagged = |key: &&Fingerprint| filter.query(**key) == Membership::Possible;
    let excepted: Vec<Fingerprint> =
        all[count..].iter().filter(flagged).filter(|key| revoked.binary_search(key).is_err()).copied().collect();
    let started = Instant::now();
    let bytes = filter.to_bytes();
    let coded = exceptions::encode(&Digest::of(&bytes), SALT, &excepted, &revoked).expect("no collision");
    eprintln!("{count} revoked: {choice}; exceptions coded in {:.0?}", started.elapsed());
    let list = rice::encode(&revoked, width).expect("sorted fingerprints");
    let realm = RealmId::new("bench").expect("a name");
    let cutting = Cutting { realm, term: Term(1), epoch: Epoch(1), chunk_bytes: 32 * 1024 };
    let entries = revoked.len() as u64;
    let cut = |artifact, entries, bytes: &[u8]| cutting.cut(artifact, entries, bytes).expect("it fits").summary;
    let index = Index {
        term: Term(1),
        epoch: Epoch(1),
        sequence: Sequence(1),
        issued_at: UnixMillis::default(),
        horizon: UnixTime::default(),
        covered_until: UnixTime::from_secs(1),
        filter: params,
        chunk_bytes: 32 * 1024,
        artifacts: vec![
            cut(Artifact::Filter, entries, &bytes),
            cut(Artifact::List, entries, &list),
            cut(Artifact::Exceptions, coded.entries, &coded.bytes),
        ],
    };
    let artifacts = [(Artifact::Filter, &bytes[..]), (Artifact::Exceptions, &coded.bytes[..])];
    let base = Base::build(Profile::Covered, &index, width, &artifacts).expect("a base");
    // Without an `iat` the base says "possible" of every revocation, and "absent" of every other token.
    let said = |key: &Fingerprint| base.may_hold(*key, width);
    let wrong =
        all[..count].iter().filter(|key| !said(key)).count() + all[count..].iter().filter(|key| said(key)).count();
    Covered {
        memory: base.size_bytes(),
        travels: (bytes.len() + coded.bytes.len()) as u64,
        list: list.len() as u64,
        rate: params.false_positive_rate(entries),
        excepted: coded.entries,
        wrong,
    }
}

/// The least that tells any `count` of `all` tokens from any other, in bits: log2 of "all over count".
fn entropy(all: usize, count: usize) -> f64 {
    (0..count).map(|drawn| ((all - drawn) as f64 / (count - drawn) as f64).log2()).sum()
}

/// Bytes of a Token Status List (draft-ietf-oauth-status-list): one bit a token, zlib at level 9. Tokens are numbered
/// as they were issued, and any of them is revoked.
fn status_list(count: usize) -> u64 {
    let mut bits = vec![0_u8; REGISTERED / 8];
    let mut state = 99_u64;
    let mut set = 0;
    while set < count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = ((u128::from(state) * REGISTERED as u128) >> 64) as usize;
        set += usize::from(bits[token / 8] & 1 << (token % 8) == 0);
        bits[token / 8] |= 1 << (token % 8);
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&bits).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything").len() as u64
}

/// Words of a row of clubcard's linear systems, as its own example has it.
const WORDS: usize = 4;

/// A token in clubcard's universe.
struct Token {
    text: &'static str,
    revoked: bool,
}

/// Every token of the bench belongs to it.
struct Everything;

impl ApproximateSizeOf for Everything {}

impl AsQuery<WORDS> for Token {
    fn as_query(&self, columns: usize) -> Equation<WORDS> {
        let digest: [u8; 32] = Sha256::digest(self.text.as_bytes()).into();
        let (words, _) = digest.as_chunks::<8>();
        let mut row = [0; WORDS];
        for (to, from) in row.iter_mut().zip(words) {
            *to = u64::from_le_bytes(*from);
        }
        row[0] |= 1;
        let start = row[WORDS - 1] as usize % columns.max(1);
        Equation::inhomogeneous(start, row, u8::from(!self.revoked))
    }

    fn block(&self) -> &[u8] {
        &[]
    }

    fn discriminant(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Filterable<WORDS> for Token {
    fn included(&self) -> bool {
        self.revoked
    }
}

impl Queryable<WORDS> for Token {
    type UniverseMetadata = Everything;
    type PartitionMetadata = ();

    fn in_universe(&self, _: &Everything) -> bool {
        true
    }
}

/// Bytes of a clubcard, by its own account, after it was asked about every token.
fn card(texts: &[&'static str], count: usize) -> u64 {
    let mut builder = ClubcardBuilder::new();
    let mut approximate = builder.new_approx_builder(&[]);
    for text in &texts[..count] {
        approximate.insert(Token { text, revoked: true });
    }
    approximate.set_universe_size(texts.len());
    builder.collect_approx_ribbons(vec![ApproximateRibbon::from(approximate)]);
    let mut exact = builder.new_exact_builder(&[]);
    for (number, text) in texts.iter().enumerate() {
        exact.insert(Token { text, revoked: number < count });
    }
    builder.collect_exact_ribbons(vec![ExactRibbon::from(exact)]);
    let card = builder.build::<Token>(Everything, ());
    for (number, text) in texts.iter().enumerate() {
        let said = matches!(card.contains(&Token { text, revoked: false }), Card::Member);
        assert_eq!(said, number < count, "clubcard is exact");
    }
    card.approximate_size_of() as u64
}
