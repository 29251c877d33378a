//! The rules of the design, section 7: each is a test, as a law over random histories where it
//! speaks of orders of events.
//!
//! P is a device's gap-free sequence, S a base's sequence, H the `gc_horizon`.
//!
//! What rule 22 says of calls that come at once is in `histories.rs`.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines, clippy::similar_names, clippy::many_single_char_names)] // a history is told in one piece

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::limits::{ASK_PATIENCE, ASKS_OUTSTANDING_MAX, RECENT_ANSWERS_MAX, RECENT_ENTRIES_MAX};
use revocast_core::update::{Finding, PublisherKey, Role};
use revocast_core::{
    Address, Base, Claims, Config, Cutoff, Delta, DeviceId, Digest, Doubt, EnvelopeKey, Epoch, Event, FilterBuf,
    FilterParams, Fingerprint, FingerprintFunction, Fingerprinter, Hold, Jti, Kind, Membership, Now, Profile, RealmId,
    RealmIdError, RealmKey, Refusal, Salt, Scope, ScopeKind, Sequence, SigningKey, Term, Unasked, UnixMillis, UnixTime,
    Verdict, Why, Width, Witness, seal, wire,
};
use revocast_device::{KeySet, Policy, RevokedPairs, Validator, ValidatorConfig};
use revocast_server::ledger::{self, Issued, Ledger as _, LedgerError};
use revocast_server::minting::LiveFilters;
use revocast_server::publisher::{Book, Settings, SigningClock};
use revocast_tests::follower::{Follower, Shelf, Site, prompt, small_settings};
use revocast_tests::forge::{Epochal, Forge, START, horizon, time};
use revocast_tests::{Random, colliding, hs256, ready};

const SECOND: Duration = Duration::from_secs(1);

fn is_revoked(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Revoked { .. })
}

fn is_good(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NotRevoked { .. })
}

fn is_suspect(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Suspect { .. })
}

/// `name-0`, `name-1`, ...
fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

fn borrowed(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Claims of a token issued `iat` seconds after the start.
fn issued(jti: &str, iat: u64) -> Claims<'_> {
    let exp = UnixTime::from_secs(START + (1 << 32));
    Claims { iat: Some(UnixTime::from_secs(START + iat)), ..Claims::new(Jti::new(jti).unwrap(), exp) }
}

fn witness(device: &Follower, claims: &Claims<'_>) -> Witness {
    device.exposed.explain(device.now(), claims).1
}

fn names(refused: &[Refusal]) -> Vec<&'static str> {
    refused.iter().map(Refusal::name).collect()
}

fn fingerprinter(width: Width) -> Fingerprinter {
    Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([5; 16]), width)
}

fn site(seed: u64) -> Site {
    Site::new(seed, fingerprinter(Width::W48), small_settings(), |realm| {
        realm.leeway = Duration::from_secs(5);
        realm.max_token_lifetime = Duration::from_mins(10);
    })
}

// ---- Freshness -----------------------------------------------------------------------------------

#[test]
fn rule_01_a_manifest_proves_currency_only_once_its_sequence_is_reached() {
    let forge = Forge::new(1);
    let base = forge.epoch(1, 3, &["a"], &[], 0);
    let first = forge.delta_meant((3, 4), &["b"], &[], 20);
    let second = forge.delta_meant((4, 5), &["c"], &[], 3_650);
    let mut device = forge.device(prompt(Profile::Exact), 0);
    device.serve(&forge.shelf(&base, &[], 3, 10));
    assert!(matches!(device.ask("good"), Verdict::NotRevoked { at } if at.sequence == Sequence(3)));

    // A newer manifest whose delta is held back: the proof stays the old one, and runs out on time.
    let held_back = forge.shelf(&base, std::slice::from_ref(&first), 4, 20);
    device.give(Address::Manifest, &held_back[&Address::Manifest]);
    assert_eq!(device.exposed.freshness().proof.unwrap().0, time(10));
    device.pass(3_700 * SECOND);
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { age } } if age >= 3_690 * SECOND));
    // Deltas never renew freshness, however young they are; what they revoke is revoked all the same.
    device.give(Address::Live, &forge.delta(&second));
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { .. } }));
    assert!(is_revoked(device.ask("c")));
    // The gap closes: P passes the held manifest, so it counts, as old as it is.
    device.give(Address::Live, &forge.delta(&first));
    assert_eq!((device.sequence(), device.exposed.freshness().proof.unwrap().0), (5, time(20)));
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { .. } }));
    // A manifest at or below P proves it.
    let fresh = forge.shelf(&base, &[first, second], 5, 3_700);
    device.give(Address::Manifest, &fresh[&Address::Manifest]);
    assert!(matches!(device.ask("good"), Verdict::NotRevoked { at } if at.sequence == Sequence(5)));

    // The same as a law: the proof is the highest manifest so far, from the moment P satisfied it.
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut device = forge.device(prompt(Profile::List), 0);
        device.serve(&forge.shelf(&base, &[], 3, 1));
        let deltas: Vec<Delta> = (3..13).map(|from| forge.delta_meant((from, from + 1), &["x"], &[], from)).collect();
        let (mut held, mut proof) = ((3, 1), 1);
        for at in 2..60 {
            if random.chance(40) {
                let sequence = 3 + random.below(11);
                let manifest = forge.manifest_meant(&base, sequence, &[], at);
                device.give(Address::Manifest, &forge.manifest(&manifest));
                held = held.max((sequence, at));
            } else {
                device.give(Address::Live, &forge.delta(random.pick(&deltas)));
            }
            if device.sequence() >= held.0 {
                proof = held.1;
            }
            assert_eq!(device.exposed.freshness().proof.unwrap().0, time(proof), "seed {seed} at {at}");
        }
    }
}

#[test]
fn rule_02_age_is_the_larger_of_both_clocks_and_an_untrusted_clock_answers_nothing() {
    let forge = Forge::new(2);
    let base = forge.epoch(1, 3, &["a"], &[], 0);
    let shelf = forge.shelf(&base, &[], 3, 10_000_000);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut device = forge.device(prompt(Profile::Exact), 10_000_000);
        device.serve(&shelf);
        let arrived = device.uptime;
        for _ in 0..20 {
            device.uptime += Duration::from_secs(random.below(600));
            let offset = random.below(20_000).cast_signed() - 5_000;
            device.wall = time(10_000_000).millis().saturating_add_signed(offset * 1_000);
            let by_uptime = device.uptime.saturating_sub(arrived);
            match device.ask("good") {
                Verdict::NotRevoked { .. } => {
                    assert!((-60..=3_600).contains(&offset) && by_uptime <= 3_600 * SECOND, "{offset} {by_uptime:?}");
                }
                Verdict::Unknown { doubt: Doubt::Stale { age } } => {
                    assert_eq!(age, by_uptime.max(Duration::from_secs(offset.max(0) as u64)));
                    assert!(age > 3_600 * SECOND);
                }
                Verdict::Unknown { doubt: Doubt::TimeUnknown } => assert!(offset < -60),
                other => panic!("{other:?}"),
            }
            assert!(is_revoked(device.ask("a")), "no clock softens a revocation");
        }
    }
    // Implausibly far above the floor is as untrustworthy as below it.
    let mut device = forge.device(prompt(Profile::Exact), 10_000_000);
    device.serve(&shelf);
    device.wall += 401 * 24 * 3_600 * 1_000;
    assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::TimeUnknown });
    assert!(is_revoked(device.ask("a")));
    // Proven once, uptime carries the time: the wall clock is not asked any more.
    device.tell(Event::TimeProven { wall: time(10_000_100) });
    assert!(is_good(device.ask("good")));
    device.wall = 0;
    device.uptime += 3_000 * SECOND;
    assert!(is_good(device.ask("good")));
    device.uptime += 1_000 * SECOND;
    assert!(matches!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Stale { .. } }));
}

// ---- Deltas and bases ----------------------------------------------------------------------------

/// A random history over few keys and scopes, and what it says as of any sequence.
struct History {
    keys: Vec<BTreeMap<&'static str, bool>>,
    scopes: Vec<BTreeMap<&'static str, Option<u64>>>,
    length: u64,
}

const KEYS: [&str; 6] = ["k0", "k1", "k2", "k3", "k4", "k5"];
const SUBS: [&str; 2] = ["s0", "s1"];

impl History {
    fn new(random: &mut Random, length: u64) -> Self {
        let (mut keys, mut scopes) = (vec![BTreeMap::new()], vec![BTreeMap::new()]);
        for _ in 0..length {
            let (mut said, mut cut) = (BTreeMap::new(), BTreeMap::new());
            if random.chance(75) {
                said.insert(*random.pick(&KEYS), random.chance(55));
            } else {
                let not_before = random.chance(60).then(|| START + 100 * random.below(10));
                cut.insert(*random.pick(&SUBS), not_before);
            }
            keys.push(said);
            scopes.push(cut);
        }
        Self { keys, scopes, length }
    }

    fn key(&self, key: &str, as_of: u64) -> Option<bool> {
        (0..=as_of).rev().find_map(|at| self.keys[at as usize].get(key).copied())
    }

    // What was said last, if anything, and what that was: a cutoff or a lift.
    #[allow(clippy::option_option)]
    fn scope(&self, sub: &str, as_of: u64) -> Option<Option<u64>> {
        (0..=as_of).rev().find_map(|at| self.scopes[at as usize].get(sub).copied())
    }

    /// The net change over (from, to].
    fn delta(&self, forge: &Forge, from: u64, to: u64) -> Delta {
        let range = from + 1..=to;
        let touched = |key: &str| range.clone().any(|at| self.keys[at as usize].contains_key(key));
        let cut = |sub: &str| range.clone().any(|at| self.scopes[at as usize].contains_key(sub));
        let with = |state| -> Vec<&str> {
            KEYS.into_iter().filter(|key| touched(key) && self.key(key, to) == Some(state)).collect()
        };
        let mut delta = forge.delta_meant((from, to), &with(true), &with(false), 50 + to);
        for sub in SUBS.into_iter().filter(|sub| cut(sub)) {
            let scope = Scope::new(&forge.fingerprinter, ScopeKind::Subject, sub);
            match self.scope(sub, to).flatten() {
                Some(not_before) => {
                    delta.cutoffs.push(Cutoff { scope, not_before: UnixTime::from_secs(not_before) });
                }
                None => delta.lifts.push(scope),
            }
        }
        delta.cutoffs.sort_unstable();
        delta.lifts.sort_unstable();
        delta
    }

    fn base(&self, forge: &Forge, epoch: u64, sequence: u64) -> Epochal {
        let revoked: Vec<&str> = KEYS.into_iter().filter(|key| self.key(key, sequence) == Some(true)).collect();
        let mut cutoffs: Vec<Cutoff> = SUBS
            .into_iter()
            .filter_map(|sub| {
                let scope = Scope::new(&forge.fingerprinter, ScopeKind::Subject, sub);
                let not_before = UnixTime::from_secs(self.scope(sub, sequence)??);
                Some(Cutoff { scope, not_before })
            })
            .collect();
        cutoffs.sort_unstable();
        forge.epoch(epoch, sequence, &revoked, &cutoffs, 20 + epoch)
    }

    /// Compares every answer of a device with what the history says, each key and scope as of the
    /// highest of the given stamps at which the device was told of it.
    fn judge(&self, device: &Follower, base: u64, told: &BTreeSet<(u64, u64)>, what: &str) {
        let as_of = |touched: &dyn Fn(u64) -> bool| {
            let deltas = told.iter().filter(|(from, to)| (from + 1..=*to).any(touched));
            deltas.map(|(_, to)| *to).max().unwrap_or(0).max(base)
        };
        for key in KEYS {
            let at = as_of(&|at| self.keys[at as usize].contains_key(key));
            let expected = self.key(key, at) == Some(true);
            assert_eq!(is_revoked(device.ask(key)), expected, "{what}: {key} as of {at}");
        }
        for sub in SUBS {
            let at = as_of(&|at| self.scopes[at as usize].contains_key(sub));
            let expected = self.scope(sub, at).flatten();
            for iat in (0..=1_000).step_by(50).map(|iat| START + iat) {
                let claims = Claims {
                    iat: Some(UnixTime::from_secs(iat)),
                    sub: Some(sub),
                    ..Claims::new(Jti::new("never revoked").unwrap(), UnixTime::from_secs(u64::MAX))
                };
                let revoked = is_revoked(device.check(&claims));
                assert_eq!(revoked, expected.is_some_and(|not_before| iat < not_before), "{what}: {sub} as of {at}");
            }
        }
    }
}

#[test]
fn rule_03_in_any_order_the_statement_with_the_highest_to_wins_for_each_key() {
    let forge = Forge::new(3);
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let history = History::new(&mut random, 14);
        let mut device = forge.device(prompt(Profile::Exact), 100);
        device.serve(&forge.shelf(&history.base(&forge, 1, 2), &[], 2, 90));
        let (mut told, mut reached) = (BTreeSet::new(), 2);
        for _ in 0..random.below(24) {
            let from = random.below(history.length);
            let to = from + 1 + random.below((history.length - from).min(5));
            device.give(Address::Live, &forge.delta(&history.delta(&forge, from, to)));
            told.insert((from, to));
            // Dropped and repeated ones leave gaps or close them.
            while let Some((_, to)) = told.iter().find(|(from, to)| *from <= reached && *to > reached) {
                reached = *to;
            }
            assert_eq!(device.sequence(), reached, "seed {seed}");
            history.judge(&device, 2, &told, &format!("seed {seed}"));
        }
        // Any way of saying all of it ends in the same set.
        let mut from = 2;
        let mut rest = Vec::new();
        while from < history.length {
            let to = from + 1 + random.below((history.length - from).min(4));
            rest.push((from, to));
            from = to;
        }
        while !rest.is_empty() {
            let (from, to) = rest.swap_remove(random.below(rest.len() as u64) as usize);
            device.give(Address::Live, &forge.delta(&history.delta(&forge, from, to)));
        }
        assert_eq!(device.sequence(), history.length);
        history.judge(&device, history.length, &BTreeSet::new(), &format!("seed {seed} at the end"));
    }
}

#[test]
fn rule_04_moving_to_a_base_keeps_what_is_newer_and_never_goes_back() {
    let forge = Forge::new(4);
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let history = History::new(&mut random, 14);
        let mut device = forge.device(prompt(Profile::Exact), 100);
        let (mut base, mut epoch) = (random.below(4), 1);
        device.serve(&forge.shelf(&history.base(&forge, epoch, base), &[], base, 60));
        let (mut told, mut reached) = (BTreeSet::new(), base);
        for round in 0..12 {
            if random.chance(30) {
                // A new epoch, above or below P; of the ladder nothing comes.
                let next = base + random.below(history.length + 1 - base);
                epoch += 1;
                let mut shelf = forge.shelf(&history.base(&forge, epoch, next), &[], next, 60 + epoch);
                // The manifest's sequence never falls, so a base below it needs a ladder.
                let sequence = history.length;
                let rung = history.delta(&forge, next, sequence.max(next + 1).min(history.length));
                if next < sequence {
                    shelf = forge.shelf(&history.base(&forge, epoch, next), &[rung], sequence, 60 + epoch);
                    shelf.retain(|address, _| !matches!(address, Address::Ladder { .. }));
                }
                // While it is on its way the old set answers.
                let index = shelf.remove(&Address::Index { epoch: Epoch(epoch) }).unwrap();
                device.hear(Address::Manifest, &shelf[&Address::Manifest]);
                device.serve(&shelf);
                assert_eq!((device.epoch(), device.sequence()), (epoch - 1, reached), "seed {seed}");
                history.judge(&device, base, &told, &format!("seed {seed} round {round}, moving"));
                device.give(Address::Index { epoch: Epoch(epoch) }, &index);
                device.serve(&shelf);
                assert_eq!(device.epoch(), epoch, "seed {seed} round {round}");
                base = next;
                reached = reached.max(next);
            } else {
                let from = random.below(history.length);
                let to = from + 1 + random.below((history.length - from).min(5));
                device.give(Address::Live, &forge.delta(&history.delta(&forge, from, to)));
                told.insert((from, to));
            }
            while let Some((_, to)) = told.iter().find(|(from, to)| *from <= reached && *to > reached) {
                reached = *to;
            }
            assert_eq!(device.sequence(), reached, "seed {seed} round {round}");
            history.judge(&device, base, &told, &format!("seed {seed} round {round}"));
        }
    }
    // Within a term a base never gives way to one with a lower S, whatever a manifest names.
    let mut device = forge.device(prompt(Profile::Exact), 100);
    device.serve(&forge.shelf(&forge.epoch(1, 9, &["a"], &[], 0), &[], 9, 10));
    let lower = forge.epoch(2, 5, &[], &[], 0);
    let rung = forge.delta_meant((5, 10), &["a"], &[], 20);
    let shelf = forge.shelf(&lower, &[rung], 10, 20);
    device.hear(Address::Manifest, &shelf[&Address::Manifest]);
    device.serve(&shelf);
    assert_eq!((device.epoch(), device.sequence()), (1, 10));
    assert_eq!(names(&device.refused), ["rollback"]);
    assert!(is_revoked(device.ask("a")));
}

#[test]
fn rule_05_a_fingerprint_is_revoked_while_any_of_its_tokens_is() {
    let narrow = fingerprinter(Width::W40);
    let (one, other) = colliding(&narrow);
    let mut random = Random::new(5);
    for round in 0..200 {
        let mut site = Site::new(round, narrow, small_settings(), |_| ());
        let mut device = site.device(prompt(Profile::Exact));
        let mut standing = [false; 2];
        for _ in 0..12 {
            let which = random.below(2) as usize;
            let jti = [&one, &other][which];
            standing[which] = random.chance(50);
            if standing[which] {
                site.revoke(jti, START + 10_000);
            } else {
                site.reinstate(jti);
            }
            if random.chance(60) {
                for bytes in site.publish() {
                    let sealed = revocast_core::Sealed::parse(&bytes).unwrap();
                    let delta = wire::decode_delta(sealed.unverified_body(), Width::W40).unwrap();
                    let any = standing.contains(&true);
                    // A reinstate is published only when none is left.
                    assert_eq!((delta.revoked.len(), delta.reinstated.len()), (usize::from(any), usize::from(!any)));
                    device.hear(Address::Live, &bytes);
                }
                device.hear(Address::Manifest, &site.shelf[&Address::Manifest]);
                device.serve(&site.shelf);
                for jti in [&one, &other] {
                    let verdict = device.ask(jti);
                    assert_eq!(is_revoked(verdict), standing.contains(&true), "{verdict:?} {standing:?}");
                }
            }
            // The ledger's state stays per token.
            let last = |jti: &str| {
                site.entries(0).into_iter().rev().find_map(|entry| match entry.statement {
                    ledger::Statement::Revoke { jti: of, .. } if of == jti => Some(true),
                    ledger::Statement::Reinstate { jti: of, .. } if of == jti => Some(false),
                    _ => None,
                })
            };
            assert_eq!([&one, &other].map(|jti| last(jti) == Some(true)), standing);
            site.pass(1_000);
        }
    }
    // Likewise scopes: two names for the whole realm are one scope, and one lift ends it.
    let mut book = Book::new(narrow, Term(1));
    let entry = |sequence, statement| ledger::Entry {
        sequence: Sequence(sequence),
        at: UnixTime::from_secs(START),
        statement,
        reason: None,
        actor: String::new(),
    };
    let scope = ledger::Scope::Sub("s".to_owned());
    book.apply(&entry(1, ledger::Statement::Cutoff { scope: scope.clone(), not_before: UnixTime::from_secs(9) }));
    book.apply(&entry(2, ledger::Statement::Lift { scope }));
    let change = book.net_change();
    assert_eq!((change.cutoffs.len(), change.lifts.len()), (0, 1));
}

#[test]
fn rule_06_probes_depend_on_the_bits_of_the_fingerprint_and_the_salt_alone() {
    let mut random = Random::new(6);
    for width in [Width::W40, Width::W48, Width::W64] {
        for _ in 0..200 {
            let params = FilterParams::for_target(50, 0.05, Salt(random.sixteen())).unwrap();
            let hashes: Vec<u64> = (0..50).map(|_| random.bits()).collect();
            let inserted = hashes.iter().map(|hash| Fingerprint::from_hash(*hash, width));
            let filter = FilterBuf::build(params, inserted);
            for hash in hashes.into_iter().chain((0..200).map(|_| random.bits()).collect::<Vec<_>>()) {
                let fingerprint = Fingerprint::from_hash(hash, width);
                // Whatever the rest of the hash was, and however the number came about.
                let rest = random.bits() & (u64::MAX >> 1 >> (width.bits() - 1));
                let again = Fingerprint::from_hash((hash >> (64 - width.bits()) << (64 - width.bits())) | rest, width);
                let read = Fingerprint::from_bits(fingerprint.bits(), width).unwrap();
                assert_eq!((fingerprint, fingerprint), (again, read));
                assert_eq!(filter.query(fingerprint), filter.query(again));
                // Another salt is another filter of the same keys; the first does not change with it.
                let bytes = filter.to_bytes();
                let view = revocast_core::Filter::new(params, &bytes).unwrap();
                assert_eq!(view.query(read), filter.query(fingerprint));
            }
        }
    }
    // A false positive does not follow one token from epoch to epoch.
    let keys: Vec<Fingerprint> = (0..1_000).map(|_| Fingerprint::from_hash(random.bits(), Width::W48)).collect();
    let strangers: Vec<Fingerprint> = (0..40_000).map(|_| Fingerprint::from_hash(random.bits(), Width::W48)).collect();
    let [first, second] = [1, 2].map(|salt| {
        let params = FilterParams::for_target(1_000, 0.01, Salt([salt; 16])).unwrap();
        FilterBuf::build(params, keys.iter().copied())
    });
    let flagged: Vec<_> = strangers.iter().filter(|key| first.query(**key) == Membership::Possible).collect();
    let twice = flagged.iter().filter(|key| second.query(***key) == Membership::Possible).count();
    assert!(flagged.len() > 250 && twice < flagged.len() / 10, "{twice} of {}", flagged.len());
}

/// Two thousand revoked and twenty thousand registered tokens, all issued in the first 50 seconds: of such a base a
/// device of some ten kibibytes holds filter and exceptions, and ninety statements beside it.
struct Crowd {
    forge: Forge,
    revoked: Vec<String>,
    registered: Vec<String>,
}

const CROWD_COVERED: u64 = 50;

impl Crowd {
    fn new(forge: Forge) -> Self {
        Self { forge, revoked: numbered("r", 2_000), registered: numbered("g", 20_000) }
    }

    /// A base that also holds what was revoked by then; that is not registered as good any more.
    fn base(&self, epoch: u64, sequence: u64, more: &[&str], cutoffs: &[Cutoff], at: u64) -> Epochal {
        let since: BTreeSet<&str> = more.iter().copied().collect();
        let revoked: Vec<&str> = self.revoked.iter().map(String::as_str).chain(since.iter().copied()).collect();
        let good: Vec<&str> = self.registered.iter().map(String::as_str).filter(|jti| !since.contains(jti)).collect();
        let covered = Some((&good[..], UnixTime::from_secs(START + CROWD_COVERED)));
        self.forge.epoch_covering(epoch, sequence, &revoked, cutoffs, covered, at)
    }

    fn small() -> Config {
        Config { hold: Config::within(10_544, 1).unwrap().hold, ..prompt(Profile::Exact) }
    }

    /// A device that stands on a base at 3, and the good tokens that it knows by their exceptions.
    fn device(&self, config: Config, cutoffs: &[Cutoff]) -> (Follower, Vec<&str>) {
        let mut device = self.forge.device(config, 100);
        device.serve(&self.forge.shelf(&self.base(1, 3, &[], cutoffs, 60), &[], 3, 90));
        assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Covered));
        let good = self.registered.iter().map(String::as_str);
        let excepted: Vec<_> = good.filter(|jti| witness(&device, &issued(jti, 10)) == Witness::Exceptions).collect();
        assert!(excepted.len() > 100, "{} exceptions are in use", excepted.len());
        (device, excepted)
    }

    /// Revokes these, from one sequence to the next.
    fn revoke(&self, device: &mut Follower, from: u64, jtis: &[&str]) -> Vec<Refusal> {
        device.give(Address::Live, &self.forge.delta(&self.forge.delta_meant((from, from + 1), jtis, &[], 90)))
    }
}

/// How many of these are known to be good by their exceptions alone.
fn excepted_count(device: &Follower, jtis: &[String]) -> usize {
    jtis.iter().filter(|jti| witness(device, &issued(jti, 10)) == Witness::Exceptions).count()
}

fn folded_through(device: &Follower) -> Option<u64> {
    device.exposed.base().and_then(Base::folded_through).map(|sequence| sequence.0)
}

fn rate(device: &Follower) -> f64 {
    device.exposed.base().and_then(Base::false_positive_rate).unwrap()
}

#[test]
fn rule_07_what_was_folded_is_suspect_and_never_good() {
    let crowd = Crowd::new(Forge::new(7));
    let (mut device, excepted) = crowd.device(Crowd::small(), &[]);
    let rate_before = rate(&device);
    // A token that the exceptions call good is revoked; others are revoked and reinstated; one is known early, beyond
    // a gap; then come forty more.
    let (listed, early) = (excepted[0], "early");
    let (undone, first, second) = (numbered("u", 20), numbered("first", 40), numbered("second", 60));
    let delta = |from, to, revoked: &[&str], reinstated: &[&str]| {
        crowd.forge.delta(&crowd.forge.delta_meant((from, to), revoked, reinstated, 90))
    };
    device.give(Address::Live, &delta(3, 4, &[&borrowed(&undone)[..], &[listed]].concat(), &[]));
    assert_eq!(witness(&device, &issued(listed, 10)), Witness::Recent);
    device.give(Address::Live, &delta(4, 5, &[], &[&borrowed(&undone)[..], &["r-0"]].concat()));
    assert!(is_good(device.check(&issued("r-0", 10))));
    device.give(Address::Live, &delta(8, 9, &[early], &[]));
    crowd.revoke(&mut device, 5, &borrowed(&first));
    assert_eq!((device.sequence(), folded_through(&device)), (6, None), "there was room for it all");
    // These need room.
    crowd.revoke(&mut device, 6, &borrowed(&second));
    assert_eq!((device.sequence(), folded_through(&device)), (7, Some(6)), "nothing above P is folded");
    assert_eq!(device.exposed.recent_entries(), 61, "what came after, and what lies beyond the gap");
    assert_eq!(names(&device.refused), ["gap"]);
    let judge = |device: &Follower| {
        // The exceptions went first: with them the folded one would come out as good.
        assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Filter));
        assert!(is_suspect(device.check(&issued(listed, 10))), "{:?}", device.check(&issued(listed, 10)));
        assert!(is_suspect(device.check(&issued(excepted[1], 10))));
        assert!(first.iter().all(|jti| is_suspect(device.check(&issued(jti, 10)))));
        // The filter is no longer the published one, so a match proves nothing (rule 17).
        assert!(crowd.revoked.iter().all(|jti| is_suspect(device.check(&issued(jti, 10)))));
        assert!(second.iter().all(|jti| is_revoked(device.check(&issued(jti, 10)))));
        assert!(is_revoked(device.ask(early)), "exact, as it lies above P");
        // Folded tombstones would make nearly all of these suspects.
        let good = undone.iter().filter(|jti| is_good(device.ask(jti))).count();
        assert!(good >= 16, "{good} of 20 that were reinstated are good");
    };
    judge(&device);
    // The rate is that of the bits that are set now, and the true one.
    let Verdict::Suspect { false_positive_rate } = device.ask("first-0") else { panic!("a suspect") };
    assert_eq!(false_positive_rate.to_bits(), rate(&device).to_bits());
    assert!(false_positive_rate > rate_before);
    let strangers = 100_000;
    let suspects = (0..strangers).filter(|number| is_suspect(device.ask(&format!("stranger-{number}")))).count();
    let measured = suspects as f64 / f64::from(strangers);
    assert!((measured / false_positive_rate - 1.0).abs() < 0.15, "{measured} measured, {false_positive_rate} told");
    device.restart();
    assert_eq!((device.sequence(), folded_through(&device)), (7, Some(6)), "what was folded is written down");
    judge(&device);

    // A base below what was folded would lose it. It is good for others, and not for this device; also after a
    // restart.
    let meant = |from, to, revoked: &[&str]| crowd.forge.delta_meant((from, to), revoked, &[], 91);
    let by_seven: Vec<&str> = first.iter().chain(&second).map(String::as_str).collect();
    let ladder = [meant(5, 7, &by_seven), meant(7, 8, &["seventh"]), meant(8, 9, &[early])];
    let lower = crowd.forge.shelf(&crowd.base(2, 5, &[listed], &[], 91), &ladder, 9, 95);
    for _ in 0..2 {
        device.reconnect(&lower);
        assert_eq!((device.epoch(), device.sequence(), folded_through(&device)), (1, 9, Some(6)));
        judge(&device);
        device.restart();
    }
    let mut other = crowd.forge.device(prompt(Profile::Covered), 100);
    other.serve(&lower);
    assert_eq!((other.epoch(), other.sequence()), (2, 9));
    assert!(is_revoked(other.ask("first-0")));
    // One above it brings back the exact answers.
    let all: Vec<&str> = by_seven.iter().copied().chain([listed, "seventh", early]).collect();
    let higher = crowd.forge.shelf(&crowd.base(3, 9, &all, &[], 96), &[], 9, 97);
    device.reconnect(&higher);
    for _ in 0..3 {
        // The lower one, begun again after the restart, is not there any more and gives way.
        device.pass(8 * SECOND);
        device.serve(&higher);
    }
    assert_eq!((device.epoch(), device.sequence(), folded_through(&device)), (3, 9, None));
    assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Covered));
    assert!(all.iter().all(|jti| is_revoked(device.check(&issued(jti, 10)))));
    assert!(excepted_count(&device, &crowd.registered) > 100);
}

#[test]
fn rule_07_only_the_minted_are_folded_and_a_worn_filter_gives_way_at_once() {
    // Whoever may choose the jtis could fill the filter: no folding, an overflow instead.
    let mut foreign = Forge::new(7);
    foreign.fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    let crowd = Crowd::new(foreign);
    let (mut device, excepted) = crowd.device(Crowd::small(), &[]);
    crowd.revoke(&mut device, 3, &[excepted[0]]);
    crowd.revoke(&mut device, 4, &borrowed(&numbered("first", 40)));
    crowd.revoke(&mut device, 5, &borrowed(&numbered("second", 60)));
    assert_eq!((names(&device.refused), folded_through(&device)), (vec!["overflow"], None));
    assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Covered));
    assert_eq!(device.ask("stranger"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert!(is_revoked(device.check(&issued(excepted[0], 10))) && is_revoked(device.check(&issued("r-0", 10))));

    // A new epoch is moved to within ten minutes, and at once by whoever's filter matches twice as often as was meant.
    let crowd = Crowd::new(Forge::new(7));
    let jtis: Vec<Vec<String>> = (0..40).map(|round| numbered(&format!("round-{round}"), 60)).collect();
    let mut outcomes = BTreeSet::new();
    for rounds in [0, 2, 4, 8, 12, 16, 20, 40] {
        let config = Config { epoch_jitter: Duration::from_mins(10), seed: 3, ..Crowd::small() };
        let (mut device, _) = crowd.device(config, &[]);
        let meant = rate(&device);
        for (round, jtis) in jtis[..rounds].iter().enumerate() {
            crowd.revoke(&mut device, 3 + round as u64, &borrowed(jtis));
        }
        assert_eq!(names(&device.refused), <[&str; 0]>::default());
        let head = 3 + rounds as u64;
        let all: Vec<&str> = jtis[..rounds].iter().flatten().map(String::as_str).collect();
        assert!(!all.iter().any(|jti| is_good(device.check(&issued(jti, 10)))), "{rounds} rounds");
        let worn = rate(&device) > 2.0 * meant;
        let next = crowd.base(2, head, &all, &[], 95);
        let reach = crowd.forge.delta_meant((1, head.max(2)), &["any"], &[], 95);
        let ladder = if rounds == 0 { Vec::new() } else { vec![reach] };
        let shelf = crowd.forge.shelf(&next, &ladder, head, 97);
        device.hear(Address::Manifest, &shelf[&Address::Manifest]);
        device.serve(&shelf);
        assert_eq!(device.epoch() == 2, worn, "{rounds} rounds: {} where {meant} was meant", rate(&device));
        assert!(!all.iter().any(|jti| is_good(device.check(&issued(jti, 10)))), "{rounds} rounds");
        outcomes.insert((rounds > 2, worn));
    }
    assert!(outcomes.contains(&(true, false)) && outcomes.contains(&(true, true)), "folded and not worn; worn");
}

/// Deltas that revoke `count` numbered fingerprints each, as live objects.
fn flood(forge: &Forge, from: u64, to: u64, begin: u64, count: u64, reinstate: bool) -> Vec<u8> {
    let list: Vec<Fingerprint> =
        (begin..begin + count).map(|bits| Fingerprint::from_bits(bits * 1_000, Width::W48).unwrap()).collect();
    let mut delta = forge.delta_meant((from, to), &[], &[], 50);
    if reinstate {
        delta.reinstated = list;
    } else {
        delta.revoked = list;
    }
    forge.delta(&delta)
}

#[test]
fn rule_08_on_overflow_softness_goes_first_and_then_nothing_reads_as_good() {
    let forge = Forge::new(8);
    let base = forge.epoch(1, 3, &["a", "r"], &[], 0);
    let mut device = forge.device(prompt(Profile::Exact), 60);
    device.serve(&forge.shelf(&base, &[], 3, 50));
    let half = RECENT_ENTRIES_MAX as u64 / 2;
    // A reinstatement and half a load of others; then revocations that need the room.
    device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 4), &[], &["r"], 50)));
    assert!(is_good(device.ask("r")));
    device.give(Address::Live, &flood(&forge, 4, 5, 0, half, true));
    device.give(Address::Live, &flood(&forge, 5, 6, half, half, false));
    assert_eq!(names(&device.refused), <[&str; 0]>::default());
    assert_eq!((device.sequence(), device.exposed.recent_entries() as u64), (6, half));
    assert!(is_revoked(device.ask("r")), "what only softens was dropped: the base speaks again");
    assert!(is_good(device.ask("good")), "every revocation is still held");
    device.give(Address::Live, &flood(&forge, 6, 7, 2 * half, half, false));
    assert_eq!((device.sequence(), device.exposed.recent_entries()), (7, RECENT_ENTRIES_MAX));
    assert!(is_good(device.ask("good")));

    // One more cannot be held: nothing reads as good any more, what is known stays revoked.
    device.give(Address::Live, &forge.delta(&forge.delta_meant((7, 8), &["late"], &[], 50)));
    assert_eq!(names(&device.refused), ["overflow"]);
    assert_eq!(device.sequence(), 7, "what was not held never advances P");
    assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert_eq!(device.ask("late"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert!(is_revoked(device.ask("a")));
    // An early delta that does not fit either is dropped, and P does not pass it later.
    device.give(Address::Live, &forge.delta(&forge.delta_meant((9, 10), &["later"], &[], 50)));
    assert_eq!(device.sequence(), 7);
    // It survives a restart.
    device.restart();
    assert_eq!(device.ask("good"), Verdict::Unknown { doubt: Doubt::Overflow });
    // A base that covers it all ends it.
    let next = forge.epoch(2, 10, &["a", "late", "later"], &[], 60);
    device.reconnect(&forge.shelf(&next, &[], 10, 60));
    assert_eq!((device.epoch(), device.sequence()), (2, 10));
    assert!(is_good(device.ask("good")) && is_good(device.ask("r")));
    assert!(is_revoked(device.ask("late")) && is_revoked(device.ask("later")));
}

#[test]
fn rule_08_within_a_budget_softness_goes_first_then_it_folds_then_it_says_unknown() {
    assert!(Config::within(8 * 1024 - 1, 1).is_err(), "nothing fits into so little");
    let crowd = Crowd::new(Forge::new(8));
    let scope = Scope::new(&crowd.forge.fingerprinter, ScopeKind::Subject, "n");
    let cutoff = Cutoff { scope, not_before: UnixTime::from_secs(START + 40) };
    let (mut device, excepted) = crowd.device(Crowd::small(), &[cutoff]);
    let listed = excepted[0];
    let of_n = Claims { sub: Some("n"), ..issued("of-n", 10) };
    assert!(is_revoked(device.check(&of_n)));
    let delta = |from, revoked: &[&str], reinstated: &[&str]| {
        crowd.forge.delta_meant((from, from + 1), revoked, reinstated, 90)
    };
    // What softens: a lift, and sixty reinstatements; beside them thirty revocations.
    let mut softens = delta(3, &[], &borrowed(&crowd.revoked[..60]));
    softens.lifts = vec![scope];
    device.give(Address::Live, &crowd.forge.delta(&softens));
    crowd.revoke(&mut device, 4, &[listed]);
    crowd.revoke(&mut device, 5, &borrowed(&numbered("first", 20)));
    assert!(is_good(device.check(&of_n)) && is_good(device.check(&issued("r-0", 10))));
    assert_eq!(device.exposed.recent_entries(), 81);
    // First the softness goes, and that is enough: the base speaks again, and nothing is folded.
    crowd.revoke(&mut device, 6, &borrowed(&numbered("second", 30)));
    assert_eq!((device.exposed.recent_entries(), folded_through(&device)), (51, None));
    assert!(is_revoked(device.check(&of_n)) && is_revoked(device.check(&issued("r-0", 10))));
    assert_eq!(witness(&device, &issued(excepted[1], 10)), Witness::Exceptions);
    // Then it folds: what was exact becomes a suspect, and what comes is exact again.
    crowd.revoke(&mut device, 7, &borrowed(&numbered("third", 60)));
    assert_eq!((device.exposed.recent_entries(), folded_through(&device)), (60, Some(7)));
    assert!(is_suspect(device.check(&issued(listed, 10))) && is_suspect(device.ask("first-0")));
    assert!(is_revoked(device.ask("third-0")) && is_revoked(device.check(&of_n)));
    assert!(numbered("stranger", 100).iter().filter(|jti| is_good(device.ask(jti))).count() > 80);
    assert_eq!(names(&device.refused), <[&str; 0]>::default());
    // Then nothing helps: what cannot be held leaves everything unknown that is not known to be revoked.
    let fourth = numbered("fourth", 300);
    crowd.revoke(&mut device, 8, &borrowed(&fourth));
    assert_eq!((names(&device.refused), device.sequence()), (vec!["overflow"], 8), "P does not pass it");
    // Half of the budget is for keys, manifest and bookkeeping, of which cutoffs and spare room take little.
    assert!(device.exposed.size_bytes() <= 5 * 1024 + 256, "{} bytes", device.exposed.size_bytes());
    for jti in ["stranger-1", "r-0", "first-0", listed, "fourth-299"] {
        let verdict = device.check(&issued(jti, 10));
        assert!(verdict == Verdict::Unknown { doubt: Doubt::Overflow } || is_revoked(verdict), "{jti}: {verdict:?}");
    }
    assert_eq!(device.ask("stranger-1"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert!(is_revoked(device.check(&of_n)));
    device.restart();
    assert_eq!(device.ask("stranger-1"), Verdict::Unknown { doubt: Doubt::Overflow });
    assert!(!fourth.iter().any(|jti| is_good(device.ask(jti))));
    // A base that covers it all ends it, in a budget that it fits into.
    device.config.hold = Hold::Budget(12 * 1024);
    device.restart();
    assert_eq!(device.ask("stranger-1"), Verdict::Unknown { doubt: Doubt::Overflow });
    let since: Vec<String> = ["first", "second", "third"].into_iter().flat_map(|name| numbered(name, 60)).collect();
    let all: Vec<&str> = since.iter().chain(&fourth).map(String::as_str).chain([listed]).collect();
    device.reconnect(&crowd.forge.shelf(&crowd.base(2, 9, &all, &[], 96), &[], 9, 97));
    assert_eq!((device.epoch(), device.sequence()), (2, 9));
    assert!(fourth.iter().all(|jti| is_revoked(device.check(&issued(jti, 10)))) && is_good(device.check(&of_n)));
    assert!(excepted_count(&device, &crowd.registered) > 100);
}

#[test]
fn rule_09_a_history_that_may_have_lost_entries_goes_on_in_a_new_term() {
    let mut site = site(9);
    site.revoke("a", START + 500);
    site.publish();
    let mut device = site.device(prompt(Profile::Exact));
    let old = site.shelf.clone();
    // A copy of the ledger that lacks what was published must not go on by itself.
    let lost = ledger::MemoryLedger::new();
    ready(lost.create_realm(site.realm.clone(), Vec::new())).unwrap();
    let objects = ready(site.ledger.objects(site.realm.id)).unwrap();
    ready(lost.store_objects(site.realm.id, Term(1), objects, Vec::new())).unwrap();
    let ledger = std::mem::replace(&mut site.ledger, lost);
    let refused = site.restart().unwrap_err();
    assert!(refused.to_string().contains("has lost entries"), "{refused}");
    site.ledger = ledger;
    site.restart().unwrap();

    let published = site.publisher.manifest().unwrap().sequence;
    let at = UnixTime::from_secs(site.seconds());
    let (term, sequence) = ready(site.ledger.resume(site.realm.id, at, published)).unwrap();
    assert_eq!(term, Term(2));
    assert!(sequence.0 > published.0 + 1_000, "a wide gap");
    // Nobody who missed it can store or publish in the old term.
    let stale = ready(site.ledger.store_objects(site.realm.id, Term(1), Vec::new(), Vec::new()));
    assert!(matches!(stale, Err(LedgerError::TermChanged { .. })));
    let receipt = site.revoke("b", START + 500);
    assert_eq!(receipt.sequence.0, sequence.0 + 1, "sequences are never reused");
    site.pass(1_000);
    let live = site.publish();
    let manifest = site.publisher.manifest().unwrap().clone();
    assert_eq!((manifest.term, manifest.sequence), (Term(2), receipt.sequence));
    assert!(manifest.epoch > Epoch(1), "a new epoch");
    // The new term reaches the device, also when its deltas come first.
    device.wall = site.time;
    for bytes in live {
        device.hear(Address::Live, &bytes);
    }
    device.hear(Address::Manifest, &site.shelf[&Address::Manifest]);
    device.serve(&site.shelf);
    assert_eq!((device.replica.term(), device.sequence()), (Term(2), receipt.sequence.0));
    assert!(is_revoked(device.ask("a")) && is_revoked(device.ask("b")) && is_good(device.ask("good")));
    // Nothing of the old term is believed any more.
    let before = device.image();
    assert_eq!(names(&device.give(Address::Manifest, &old[&Address::Manifest])), ["rollback"]);
    let forged_in_time: Vec<_> = site.live.iter().take(1).cloned().collect();
    for bytes in forged_in_time {
        assert_eq!(names(&device.give(Address::Live, &bytes)), ["rollback"]);
    }
    assert_eq!(device.image(), before);
}

#[test]
fn rule_10_of_two_bodies_for_one_name_the_revocations_of_both_count() {
    let forge = Forge::new(10);
    let base = forge.epoch(1, 3, &["a"], &[], 0);
    let shelf = forge.shelf(&base, &[], 3, 50);
    let mut device = forge.device(prompt(Profile::Exact), 60);
    device.serve(&shelf);

    // Manifests: (term, sequence, issued-at); lower is refused, equal with another body as well.
    let offer = |sequence, at| forge.manifest(&forge.manifest_meant(&base, sequence, &[], at));
    assert_eq!(names(&device.give(Address::Manifest, &offer(3, 49))), ["rollback"]);
    assert_eq!(names(&device.give(Address::Manifest, &offer(2, 60))), ["rollback"]);
    assert_eq!(names(&device.give(Address::Manifest, &offer(3, 50))), <[&str; 0]>::default(), "the same bytes");
    let mut twin = forge.manifest_meant(&base, 3, &[], 50);
    twin.next_update = twin.next_update.plus(1);
    assert_eq!(names(&device.give(Address::Manifest, &forge.manifest(&twin))), ["equivocation"]);
    // One epoch with two indexes.
    let other = forge.epoch(1, 3, &["a", "z"], &[], 0);
    let manifest = forge.manifest(&forge.manifest_meant(&other, 3, &[], 51));
    assert_eq!(names(&device.give(Address::Manifest, &manifest)), ["equivocation"]);
    assert_eq!(device.replica.manifest().unwrap().index, base.digest);

    // Deltas: the union of the revocations, nothing that softens, whichever came first.
    for (first, second) in
        [((vec!["x"], vec!["a"]), (vec!["y"], vec!["x"])), ((vec!["y"], vec!["x"]), (vec!["x"], vec!["a"]))]
    {
        let mut device = forge.device(prompt(Profile::Exact), 60);
        device.serve(&shelf);
        let [first, second] = [first, second]
            .map(|(revoked, reinstated)| forge.delta(&forge.delta_meant((3, 4), &revoked, &reinstated, 55)));
        assert!(device.give(Address::Live, &first).is_empty());
        assert_eq!(names(&device.give(Address::Live, &second)), ["equivocation"]);
        assert_eq!(names(&device.give(Address::Live, &second)), ["equivocation"], "every time");
        assert!(is_revoked(device.ask("x")) && is_revoked(device.ask("y")));
        assert_eq!(device.sequence(), 4);
        device.restart();
        assert!(is_revoked(device.ask("x")) && is_revoked(device.ask("y")), "after a restart as well");
    }
    // Keys: one version with two bodies.
    let mut twin = forge.keys_meant(1);
    twin.leeway += 1;
    let twin = seal(Kind::Keys, &forge.realm, &wire::encode_keys(&twin).unwrap(), &[&forge.root]);
    assert_eq!(names(&device.give(Address::Keys, &twin)), ["equivocation"]);
}

#[test]
fn rule_10_what_the_other_body_revokes_and_cannot_be_held_leaves_everything_unknown() {
    let forge = Forge::new(10);
    let mut device = forge.device(prompt(Profile::Exact), 60);
    device.serve(&forge.shelf(&forge.epoch(1, 3, &["a"], &[], 0), &[], 3, 50));
    device.give(Address::Live, &flood(&forge, 3, 4, 0, RECENT_ENTRIES_MAX as u64 / 2, false));
    let half = RECENT_ENTRIES_MAX as u64 / 2;
    device.give(Address::Live, &flood(&forge, 4, 5, half, half, false));
    assert_eq!((device.sequence(), device.exposed.recent_entries()), (5, RECENT_ENTRIES_MAX));
    assert!(is_good(device.ask("x")));
    // The same range again, with another revocation, when there is no room left.
    let refused = device.give(Address::Live, &forge.delta(&forge.delta_meant((4, 5), &["x"], &[], 50)));
    assert_eq!(names(&refused), ["equivocation"]);
    for _ in 0..2 {
        assert_eq!(device.ask("x"), Verdict::Unknown { doubt: Doubt::Overflow });
        device.restart();
    }
    // It does not end as the position goes on, over one delta or over a range held early of which it was told twice.
    let key = |bits: u64| Fingerprint::from_bits(bits * 1_000, Width::W48).unwrap();
    let known = |from, to| Delta { revoked: vec![key(7)], ..forge.delta_meant((from, to), &[], &[], 50) };
    device.give(Address::Live, &forge.delta(&known(6, 7)));
    device.give(Address::Live, &forge.delta(&forge.delta_meant((6, 7), &["x"], &[], 51)));
    device.restart();
    device.give(Address::Live, &forge.delta(&known(5, 6)));
    assert_eq!(device.sequence(), 7);
    assert_eq!(device.ask("x"), Verdict::Unknown { doubt: Doubt::Overflow });
    // A base at or above it ends it.
    device.reconnect(&forge.shelf(&forge.epoch(2, 7, &["a", "x"], &[], 55), &[], 7, 58));
    assert!(is_revoked(device.ask("x")) && is_good(device.ask("good")));
}

#[test]
fn rule_11_the_ladder_reaches_every_epoch_not_retired_and_what_is_missing_is_looked_up_again() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let mut site = site(seed);
        let mut gone: BTreeMap<Address, u64> = BTreeMap::new();
        for number in 0..120 {
            for of in 0..random.below(30) {
                site.revoke(&format!("{number}-{of}"), site.seconds() + 30 + random.below(300));
            }
            let before = site.shelf.clone();
            site.pass(200 + random.below(2_000));
            site.publish();
            let manifest = site.publisher.manifest().unwrap().clone();
            let standing: BTreeSet<Address> =
                site.publisher.standing().into_iter().map(|(address, _)| address).collect();
            for address in &standing {
                assert!(site.shelf.contains_key(address), "{address} should stand");
                let Address::Index { .. } = address else { continue };
                let sealed = revocast_core::Sealed::parse(&site.shelf[address]).unwrap();
                let index = wire::decode_index(sealed.unverified_body()).unwrap();
                let first = manifest.ladder.first().map_or(manifest.sequence, |piece| piece.from);
                assert!(
                    first <= index.sequence,
                    "seed {seed}: the ladder begins at {first}, epoch {} at {}",
                    index.epoch,
                    index.sequence
                );
            }
            for piece in &manifest.ladder {
                let bytes = &site.shelf[&Address::Ladder { from: piece.from, to: piece.to }];
                assert_eq!((Digest::of(bytes), bytes.len() as u32), (piece.digest, piece.bytes));
            }
            // Nothing is cleared before its grace is over.
            for address in site.shelf.keys() {
                if standing.contains(address) {
                    gone.remove(address);
                } else {
                    gone.entry(*address).or_insert(site.time);
                }
            }
            for address in before.keys().filter(|address| !site.shelf.contains_key(address)) {
                let since = gone.remove(address).unwrap_or(site.time);
                assert!(
                    site.time - since >= 12_000,
                    "seed {seed}: {address} was cleared {} ms early",
                    12_000 - (site.time - since)
                );
            }
            // O(log n) of them, and never more than a quarter of a snapshot beyond one chunk.
            assert!(manifest.ladder.len() <= 29, "seed {seed}: {} pieces", manifest.ladder.len());
        }
    }

    // A device below the ladder's start fetches the newest base at once, whatever its jitter.
    let forge = Forge::new(11);
    let mut config = prompt(Profile::Exact);
    config.epoch_jitter = Duration::from_mins(10);
    let mut device = forge.device(config, 60);
    device.serve(&forge.shelf(&forge.epoch(1, 3, &["a"], &[], 0), &[], 3, 50));
    let next = forge.epoch(2, 8, &["b"], &[], 50);
    let within = forge.shelf(&next, &[forge.delta_meant((3, 8), &["b"], &["a"], 55)], 8, 55);
    let mut waits = device;
    waits.hear(Address::Manifest, &within[&Address::Manifest]);
    waits.serve(&within);
    assert_eq!((waits.epoch(), waits.sequence()), (1, 8), "the ladder leads there; the epoch can wait");
    let far = forge.epoch(3, 20, &["c"], &[], 55);
    let shelf = forge.shelf(&far, &[forge.delta_meant((15, 20), &["c"], &["b"], 56)], 20, 56);
    waits.hear(Address::Manifest, &shelf[&Address::Manifest]);
    waits.serve(&shelf);
    assert_eq!((waits.epoch(), waits.sequence()), (3, 20));

    // A piece that does not come means reading the manifest again.
    let later = forge.delta_meant((20, 21), &["d"], &[], 57);
    let mut shelf = forge.shelf(&far, &[later], 21, 57);
    let piece = shelf.remove(&Address::Ladder { from: Sequence(20), to: Sequence(21) }).unwrap();
    waits.hear(Address::Manifest, &shelf[&Address::Manifest]);
    waits.serve(&shelf);
    for _ in 0..4 {
        waits.pass(8 * SECOND);
    }
    assert!(waits.asked.contains(&Address::Manifest), "{:?}", waits.asked);
    assert!(names(&waits.refused).contains(&"slow-retrieval"));
    shelf.insert(Address::Ladder { from: Sequence(20), to: Sequence(21) }, piece);
    waits.serve(&shelf);
    assert_eq!(waits.sequence(), 21);
}

#[test]
fn rule_12_every_retained_payload_fits_the_chunk_size() {
    let mut most = BTreeMap::new();
    for (seed, chunk_bytes) in [(1, 2_048_u32), (2, 4_096), (3, 32_768)] {
        let mut settings = small_settings();
        settings.chunk_bytes = chunk_bytes;
        let mut site = Site::new(seed, fingerprinter(Width::W64), settings, |_| ());
        let mut random = Random::new(seed);
        for round in 0..60 {
            let burst = if random.chance(10) { 3_000 } else { random.below(40) };
            for of in 0..burst {
                let jti = format!("{round}-{of}");
                site.revoke(&jti, START + 100_000);
                if random.chance(10) {
                    site.reinstate(&jti);
                }
                if random.chance(5) && round < 20 {
                    let scope = ledger::Scope::Sub(format!("{round}-{of}"));
                    let not_before = UnixTime::from_secs(site.seconds() + 1);
                    site.request(ledger::Action::Cutoff { scope, not_before });
                }
            }
            site.pass(1_000);
            for live in site.publish() {
                assert!(live.len() <= chunk_bytes as usize, "a live delta of {} bytes", live.len());
            }
            for (address, bytes) in &site.shelf {
                // A chunk's content fits; envelope and head stand around it.
                let room = if matches!(address, Address::Chunk { .. }) { 64 } else { 0 };
                assert!(bytes.len() <= chunk_bytes as usize + room, "{address}: {} bytes", bytes.len());
                let longest = most.entry((chunk_bytes, address.name())).or_insert(0);
                *longest = bytes.len().max(*longest);
            }
        }
        assert!(site.publisher.manifest().unwrap().epoch > Epoch(1), "beyond the ladder's limit an epoch was forced");
    }
    // The largest of each were really near the limit, or the test has shown nothing.
    assert!(most[&(2_048, "ladder piece")] > 1_200 && most[&(2_048, "chunk")] > 2_048, "{most:?}");
    assert!(most[&(2_048, "page")] > 500, "{most:?}");
}

// ---- Forgetting ----------------------------------------------------------------------------------

#[test]
fn rule_13_nothing_is_forgotten_by_the_clock_of_a_device() {
    let forge = Forge::new(13);
    let base = forge.epoch(1, 3, &["a"], &[], 0);
    let mut device = forge.device(prompt(Profile::Exact), 100);
    device.serve(&forge.shelf(&base, &[], 3, 100));
    device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 4), &["b"], &[], 100)));
    let exp = |jti, exp| Claims::new(Jti::new(jti).unwrap(), exp);
    // Ten years on by its own clock, both are still revoked, and not for being expired.
    device.wall += 10 * 365 * 24 * 3_600 * 1_000;
    for jti in ["a", "b"] {
        let claims = exp(jti, horizon(100).plus(1));
        assert_eq!(device.check(&claims), Verdict::Revoked { why: Why::Token });
    }
    // Index, delta and manifest each raise H; the largest is kept, and persisted.
    let mut expected = horizon(100);
    for (at, carrier) in [(300, "delta"), (200, "delta"), (500, "manifest"), (900, "delta"), (600, "manifest")] {
        if carrier == "delta" {
            device.give(Address::Live, &forge.delta(&forge.delta_meant((at, at + 1), &["x"], &[], at)));
        } else {
            device.give(Address::Manifest, &forge.manifest(&forge.manifest_meant(&base, 3, &[], at)));
        }
        expected = expected.max(horizon(at));
        assert_eq!(device.exposed.horizon(), expected);
    }
    let next = forge.epoch(2, 5, &["a"], &[], 2_000);
    device.hear(Address::Manifest, &forge.manifest(&forge.manifest_meant(&next, 5, &[], 1_000)));
    let shelf: Shelf = next.objects.iter().cloned().collect();
    device.serve(&shelf);
    assert_eq!(device.exposed.horizon(), horizon(2_000), "the index carries it too");
    device.restart();
    assert_eq!(device.exposed.horizon(), horizon(2_000));
    // exp at H is refused without leeway, whatever the clock says; one second later it is not.
    for wall in [0, START * 1_000, device.wall, u64::MAX] {
        device.wall = wall;
        let expired = device.check(&exp("good", horizon(2_000)));
        assert_eq!(expired, Verdict::Revoked { why: Why::Expired { horizon: horizon(2_000) } });
        assert!(!is_revoked(device.check(&exp("good", horizon(2_000).plus(1)))));
    }

    // The server: H is now less the leeway, and only what expired at or before H is dropped.
    let mut site = site(13);
    let mut random = Random::new(13);
    for number in 0..300 {
        site.revoke(&number.to_string(), site.seconds() + random.below(40));
        let held = site.entries(0);
        site.pass(random.below(3_000));
        site.publish();
        let manifest = site.publisher.manifest().unwrap();
        assert_eq!(manifest.horizon, manifest.issued_at.floor().minus(5));
        let kept: BTreeSet<Sequence> = site.entries(0).iter().map(|entry| entry.sequence).collect();
        for entry in held {
            let ledger::Statement::Revoke { exp, .. } = entry.statement else {
                continue;
            };
            assert!(kept.contains(&entry.sequence) || exp <= manifest.horizon);
        }
    }
    assert!(site.entries(0).len() < 60, "and it is dropped");
}

#[test]
fn rule_14_signed_times_advance_no_faster_than_true_time_and_five_seconds() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut site = site(seed);
        // The first clock is believed: there is nothing to compare it with.
        let (mut last, mut horizon) = (site.publisher.manifest().unwrap().issued_at, UnixTime::default());
        for number in 0..80 {
            site.revoke(&number.to_string(), site.seconds() + 300);
            site.pass(500 + random.below(5_000));
            site.clock_error =
                *random.pick(&[0, 0, 3_000, -3_000, 3_600_000, -86_400_000, 400_000_000_000, i64::MIN / 4]);
            if random.chance(5) {
                site.clock_error = 0;
                site.restart().unwrap();
            }
            let before = site.live.len();
            site.publish();
            let manifest = site.publisher.manifest().unwrap();
            assert!(manifest.issued_at > last, "seed {seed}: strictly rising");
            assert!(
                manifest.issued_at.millis() <= site.time + 6_000,
                "seed {seed}: {} ahead of {}",
                manifest.issued_at,
                site.time
            );
            assert!(manifest.horizon >= horizon && manifest.horizon.secs() <= site.time / 1_000 + 1);
            (last, horizon) = (manifest.issued_at, manifest.horizon);
            for bytes in &site.live[before..] {
                let sealed = revocast_core::Sealed::parse(bytes).unwrap();
                let delta = wire::decode_delta(sealed.unverified_body(), Width::W48).unwrap();
                assert!(delta.issued_at.millis() <= site.time + 6_000 && delta.horizon.secs() <= site.time / 1_000 + 1);
            }
        }
    }
    // After a restart with a larger jump it holds until the operator confirms.
    let week = Duration::from_hours(168);
    let signed = time(0);
    let year = Now::new(time(365 * 24 * 3_600), Duration::ZERO);
    let mut clock = SigningClock::new(Some(signed), week);
    assert!(clock.take(year) <= signed.plus(6 * SECOND));
    assert!(clock.alarm().is_some());
    let mut confirmed = SigningClock::new(Some(signed), Duration::MAX);
    assert_eq!(confirmed.take(year), year.wall);
    assert_eq!(confirmed.alarm(), None);

    // Nothing but root-signed keys could lower a floor or H: no manifest or delta does.
    let forge = Forge::new(14);
    let base = forge.epoch(1, 3, &["a"], &[], 0);
    let mut device = forge.device(prompt(Profile::Exact), 1_000);
    device.serve(&forge.shelf(&base, &[], 3, 1_000));
    let (floor, held) = (device.exposed.freshness().floor, device.exposed.horizon());
    device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 4), &["b"], &[], 5)));
    let mut lower = forge.manifest_meant(&base, 4, &[], 5);
    lower.horizon = UnixTime::default();
    assert!(device.give(Address::Manifest, &forge.manifest(&lower)).is_empty(), "a higher sequence is newer");
    assert_eq!((device.exposed.freshness().floor, device.exposed.horizon()), (floor, held));
}

// ---- Asking the question -------------------------------------------------------------------------

#[test]
fn rule_15_the_question_is_answered_in_this_order() {
    let mut seen = BTreeMap::new();
    for width in [Width::W40, Width::W48, Width::W64] {
        let mut forge = Forge::new(15);
        forge.fingerprinter = fingerprinter(width);
        for profile in [Profile::Filter, Profile::List, Profile::Exact, Profile::Covered] {
            // 0 no base, 1 a base without the token, 2 a base with it.
            for in_base in 0..3 {
                // 0 nothing, 1 revoked, 2 reinstated since the base.
                for recent in 0..3 {
                    for (expired, cut, fresh) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
                        let mut device = forge.device(prompt(profile), 100);
                        device.give(Address::Keys, &forge.keys(1));
                        if in_base > 0 {
                            let revoked: &[&str] = if in_base == 2 { &["t", "other"] } else { &["other"] };
                            let covered = Some((&["good"][..], UnixTime::from_secs(START)));
                            let epoch = forge.epoch_covering(1, 3, revoked, &[], covered, 0);
                            device.serve(&forge.shelf(&epoch, &[], 3, 100));
                        }
                        let mut delta = forge.delta_meant((3, 4), &[], &[], 100);
                        match recent {
                            1 => delta.revoked = forge.fingerprints(&["t"]),
                            2 => delta.reinstated = forge.fingerprints(&["t"]),
                            _ => {}
                        }
                        if cut {
                            delta.cutoffs.push(Cutoff { scope: Scope::REALM, not_before: UnixTime::from_secs(START) });
                        }
                        device.give(Address::Live, &forge.delta(&delta));
                        if !fresh {
                            device.uptime += 4_000 * SECOND;
                        }
                        let exp = if expired { horizon(100) } else { horizon(100).plus(1) };
                        let claims = Claims {
                            iat: Some(UnixTime::from_secs(START - 1)),
                            ..Claims::new(Jti::new("t").unwrap(), exp)
                        };
                        let verdict = device.check(&claims);
                        let exact = match profile {
                            Profile::Exact => width.is_exact(),
                            Profile::Covered => true,
                            _ => false,
                        };
                        let expected = if expired {
                            matches!(verdict, Verdict::Revoked { why: Why::Expired { .. } })
                        } else if cut {
                            matches!(verdict, Verdict::Revoked { why: Why::Cutoff { scope: ScopeKind::Realm, .. } })
                        } else if recent == 1 || (recent == 0 && in_base == 2 && exact) {
                            verdict == Verdict::Revoked { why: Why::Token }
                        } else if in_base == 0 {
                            verdict == Verdict::Unknown { doubt: Doubt::NoState }
                        } else if !fresh {
                            matches!(verdict, Verdict::Unknown { doubt: Doubt::Stale { .. } })
                        } else if recent == 0 && in_base == 2 {
                            matches!(verdict, Verdict::Suspect { false_positive_rate } if false_positive_rate < 0.1)
                        } else {
                            is_good(verdict)
                        };
                        let case = (width, profile, in_base, recent, expired, cut, fresh);
                        assert!(expected, "{case:?}: {verdict:?}");
                        *seen.entry(verdict.name()).or_insert(0) += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen.values().sum::<u32>(), 3 * 4 * 3 * 3 * 8);
    assert_eq!(seen.len(), 4, "every kind of answer was met: {seen:?}");
}

#[test]
fn rule_16_a_cutoff_takes_every_token_issued_before_its_whole_second() {
    let forge = Forge::new(16);
    let at = START + 100;
    // "Now" in the middle of a second: the whole second is cut.
    let not_before = UnixMillis::from_millis(at * 1_000 + 999).floor().plus(1);
    assert_eq!(not_before, UnixTime::from_secs(at + 1));
    let named = [(ScopeKind::Realm, ""), (ScopeKind::Subject, "n"), (ScopeKind::KeyId, "n"), (ScopeKind::Client, "n")];
    for in_base in [false, true] {
        // All combinations of scopes, all of before, at, after and absent: any that matches revokes.
        for cut in 0..16_u32 {
            let scopes: Vec<Scope> = named
                .iter()
                .enumerate()
                .filter(|(bit, _)| cut & (1 << bit) != 0)
                .map(|(_, (kind, text))| Scope::new(&forge.fingerprinter, *kind, text))
                .collect();
            let mut cutoffs: Vec<Cutoff> = scopes.into_iter().map(|scope| Cutoff { scope, not_before }).collect();
            cutoffs.sort_unstable();
            let mut device = forge.device(prompt(Profile::Exact), 110);
            let base = forge.epoch(1, 3, &[], if in_base { &cutoffs } else { &[] }, 100);
            device.serve(&forge.shelf(&base, &[], 3, 110));
            if !in_base {
                let mut delta = forge.delta_meant((3, 4), &[], &[], 110);
                delta.cutoffs = cutoffs;
                device.give(Address::Live, &forge.delta(&delta));
            }
            for claimed in 0..8_u32 {
                for iat in [None, Some(0), Some(at - 1), Some(at), Some(at + 1), Some(at + 2), Some(u64::MAX)] {
                    let name = |bit: u32| (claimed & (1 << bit) != 0).then_some("n");
                    let claims = Claims {
                        iat: iat.map(UnixTime::from_secs),
                        sub: name(0),
                        kid: name(1),
                        client: name(2),
                        ..Claims::new(Jti::new("t").unwrap(), UnixTime::from_secs(u64::MAX))
                    };
                    let matched = cut & 1 != 0 || (cut >> 1) & claimed != 0;
                    let before = iat.is_none_or(|iat| iat < at + 1);
                    assert_eq!(is_revoked(device.check(&claims)), matched && before, "{cut:04b} {claimed:03b} {iat:?}");
                }
            }
        }
    }
    // A cutoff never lowers a live one in its scope; only a lift ends it.
    let mut site = site(16);
    let sub = || ledger::Scope::Sub("n".to_owned());
    let cutoff = |site: &mut Site, not_before| {
        site.request(ledger::Action::Cutoff { scope: sub(), not_before: UnixTime::from_secs(not_before) })
    };
    assert!(cutoff(&mut site, START + 50).recorded);
    assert!(!cutoff(&mut site, START + 40).recorded);
    assert!(cutoff(&mut site, START + 60).recorded);
    assert!(site.request(ledger::Action::Lift { scope: sub() }).recorded);
    assert!(cutoff(&mut site, START + 40).recorded);
    site.pass(1_000);
    site.publish();
    let device = site.device(prompt(Profile::Exact));
    let ask = |iat| {
        let claims = Claims {
            iat: Some(UnixTime::from_secs(START + iat)),
            sub: Some("n"),
            ..Claims::new(Jti::new("t").unwrap(), UnixTime::from_secs(u64::MAX))
        };
        is_revoked(device.check(&claims))
    };
    assert_eq!([39, 40, 55].map(ask), [true, false, false]);
}

/// A realm of our own issuer whose good tokens the publisher is told of, all issued within the first ten seconds.
fn registered_site(seed: u64, settings: Settings) -> Site {
    Site::new(seed, fingerprinter(Width::W48), settings, |realm| realm.leeway = Duration::from_secs(5))
}

#[test]
fn rule_17_a_match_counts_as_revoked_only_within_the_coverage() {
    let crowd = Crowd::new(Forge::new(17));
    let (mut device, excepted) = crowd.device(Crowd::small(), &[]);
    assert_eq!(device.exposed.base().unwrap().covered_until(), UnixTime::from_secs(START + CROWD_COVERED));
    // Tokens that were registered after the exceptions were computed, or never: the filter matches some of them.
    let late = numbered("late", 20_000);
    let late: Vec<&str> = late.iter().map(String::as_str).filter(|jti| is_suspect(device.ask(jti))).collect();
    assert!(late.len() > 100, "{} are matched", late.len());
    let without_iat = |jti| Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(START + (1 << 32)));
    for jti in crowd.revoked.iter().map(String::as_str) {
        assert_eq!(device.exposed.explain(device.now(), &issued(jti, 0)).1, Witness::Coverage);
        assert!(is_revoked(device.check(&issued(jti, CROWD_COVERED - 1))));
        // A token of the second itself need not have been registered.
        assert!(is_suspect(device.check(&issued(jti, CROWD_COVERED))));
        assert!(is_suspect(device.check(&issued(jti, CROWD_COVERED + 1))));
        assert!(is_suspect(device.check(&without_iat(jti))));
    }
    for jti in &late {
        for iat in [CROWD_COVERED, CROWD_COVERED + 1, 1 << 31] {
            assert!(is_suspect(device.check(&issued(jti, iat))), "{jti} was not covered");
        }
        assert!(is_suspect(device.check(&without_iat(jti))));
    }
    // An exception holds whenever its token was issued.
    assert!(excepted.iter().all(|jti| is_good(device.check(&issued(jti, 0))) && is_good(device.ask(jti))));
    // Only on the filter as it was published: not where there are no exceptions, not folded, not after folding.
    let shelf = crowd.forge.shelf(&crowd.base(1, 3, &[], &[], 60), &[], 3, 90);
    for profile in [Profile::Filter, Profile::Folded, Profile::FoldedTwice] {
        let mut device = crowd.forge.device(prompt(profile), 100);
        device.serve(&shelf);
        assert_eq!(device.exposed.base().unwrap().covered_until(), UnixTime::default());
        assert!(crowd.revoked.iter().all(|jti| is_suspect(device.check(&issued(jti, 0)))), "{profile:?}");
    }
    crowd.revoke(&mut device, 3, &borrowed(&numbered("first", 60)));
    crowd.revoke(&mut device, 4, &borrowed(&numbered("second", 60)));
    assert_eq!(folded_through(&device), Some(4));
    assert_eq!(device.exposed.base().unwrap().covered_until(), UnixTime::default());
    assert!(crowd.revoked.iter().all(|jti| is_suspect(device.check(&issued(jti, 0)))));

    // The publisher claims what the issuer claimed, and no more.
    let mut site = registered_site(17, small_settings());
    let (known, later) = (numbered("known", 3_000), numbered("later", 3_000));
    site.register(borrowed(&known));
    for jti in &known[..600] {
        site.revoke(jti, START + 9_000);
    }
    let settle = |site: &mut Site| {
        for _ in 0..3 {
            site.pass(21_000);
            site.publish();
        }
    };
    settle(&mut site);
    let mut device = site.device(prompt(Profile::Covered));
    assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Filter), "registered, and nobody said: all");
    assert!(known[..600].iter().all(|jti| is_suspect(device.check(&issued(jti, 0)))));
    site.cover(5);
    settle(&mut site);
    let registered_at = site.seconds() - START;
    site.register(borrowed(&later));
    settle(&mut site);
    device.wall = site.time;
    device.reconnect(&site.shelf);
    assert_eq!(device.exposed.base().unwrap().covered_until(), UnixTime::from_secs(START + 5));
    let doubted =
        |device: &Follower| later.iter().filter(|jti| is_suspect(device.check(&issued(jti, registered_at)))).count();
    assert!(known[..600].iter().all(|jti| is_revoked(device.check(&issued(jti, 0)))));
    assert!(known[600..].iter().all(|jti| is_good(device.check(&issued(jti, 0)))));
    assert!(!later.iter().any(|jti| is_revoked(device.check(&issued(jti, registered_at)))));
    assert!(doubted(&device) > 20, "{} of the later ones are matched", doubted(&device));
    site.cover(registered_at + 1);
    settle(&mut site);
    device.wall = site.time;
    device.reconnect(&site.shelf);
    assert_eq!(device.exposed.base().unwrap().covered_until(), UnixTime::from_secs(START + registered_at + 1));
    assert_eq!(doubted(&device), 0, "covered now");
    assert!(later.iter().all(|jti| is_good(device.check(&issued(jti, registered_at)))));
}

#[test]
fn rule_18_exceptions_are_computed_as_if_there_were_no_cutoffs() {
    let mut site = registered_site(18, small_settings());
    let known = numbered("known", 3_000);
    site.register(borrowed(&known));
    for jti in &known[..300] {
        site.revoke(jti, START + 9_000);
    }
    site.cover(1);
    site.pass(1_000);
    // The whole realm is cut off while the epoch is built.
    let not_before = UnixTime::from_secs(START + 5_000);
    site.request(ledger::Action::Cutoff { scope: ledger::Scope::Realm, not_before });
    for _ in 0..3 {
        site.pass(21_000);
        site.publish();
    }
    let mut device = site.device(prompt(Profile::Covered));
    assert_eq!(device.exposed.base().map(Base::profile), Some(Profile::Covered));
    let epoch = device.epoch();
    assert!(known.iter().all(|jti| is_revoked(device.check(&issued(jti, 0)))));
    // Lifted, the same base tells all of them apart.
    site.request(ledger::Action::Lift { scope: ledger::Scope::Realm });
    site.pass(1_000);
    site.publish();
    device.wall = site.time;
    device.reconnect(&site.shelf);
    assert_eq!(device.epoch(), epoch);
    assert!(known[..300].iter().all(|jti| is_revoked(device.check(&issued(jti, 0)))));
    assert!(known[300..].iter().all(|jti| is_good(device.check(&issued(jti, 0)))));
    let excepted = known.iter().filter(|jti| witness(&device, &issued(jti, 0)) == Witness::Exceptions).count();
    assert!(excepted > 20, "{excepted} of them by their exceptions");
}

/// How a token came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Issuance {
    /// By an issuer that looks at no filter, and registered at once.
    Plain,
    /// Drawn clean, and registered in the same step, as our own issuer does it.
    Minted,
    /// Drawn clean, and registered some time later.
    Reported,
}

/// An issuer that goes on while epochs are drafted, filtered and finished.
struct Race {
    site: Site,
    filters: LiveFilters,
    random: Random,
    /// Every token, with its `iat` in seconds after the start.
    tokens: Vec<(String, u64, Issuance)>,
    /// Which of them are not registered yet.
    unregistered: Vec<usize>,
    revoked: BTreeSet<usize>,
    covered: u64,
    building: bool,
    /// When each epoch was first seen to be published.
    begun: BTreeMap<u64, u64>,
}

const RACE_GRACE: u64 = 60;

impl Race {
    fn now(&self) -> u64 {
        self.site.seconds() - START
    }

    fn register(&self, which: usize) {
        let (jti, iat, _) = &self.tokens[which];
        let iat = UnixTime::from_secs(START + iat);
        let issued = Issued { jti: jti.clone(), iat, exp: iat.plus(24 * 3_600), sub: None };
        let now = UnixTime::from_secs(self.site.seconds());
        ready(self.site.ledger.register(self.site.realm.id, now, vec![issued])).unwrap();
    }

    /// Draws until no filter in force matches, if it shall be clean.
    fn draw(&mut self, issuance: Issuance) -> usize {
        let jti = loop {
            let jti = format!("{:016x}", self.random.bits());
            let fingerprint = self.site.realm.fingerprinter.fingerprint(Jti::new(&jti).unwrap());
            if issuance == Issuance::Plain || self.filters.is_clean(self.site.realm.id, fingerprint) {
                break jti;
            }
        };
        self.tokens.push((jti, self.now(), issuance));
        self.tokens.len() - 1
    }

    /// Something happens, most of it an issuance.
    fn go_on(&mut self) {
        for _ in 0..self.random.below(40) {
            match self.random.below(8) {
                0 | 1 => {
                    let which = self.draw(Issuance::Plain);
                    self.register(which);
                }
                2..=4 => {
                    let which = self.draw(Issuance::Minted);
                    self.register(which);
                }
                5 => {
                    let which = self.draw(Issuance::Reported);
                    self.unregistered.push(which);
                }
                6 if !self.unregistered.is_empty() => {
                    let at = self.random.below(self.unregistered.len() as u64) as usize;
                    let which = self.unregistered.swap_remove(at);
                    self.register(which);
                }
                _ if self.random.chance(30) => {
                    let which = self.random.below(self.tokens.len() as u64) as usize;
                    if !self.unregistered.contains(&which) {
                        let (jti, iat, _) = self.tokens[which].clone();
                        self.site.revoke(&jti, START + iat + 24 * 3_600);
                        self.revoked.insert(which);
                    }
                }
                _ => self.site.pass(self.random.below(1_500)),
            }
        }
    }

    /// The issuer claims what is true: nothing older than what it has not registered yet.
    fn cover(&mut self) {
        let oldest = self.unregistered.iter().map(|which| self.tokens[*which].1).min();
        let until = oldest.unwrap_or(self.now()).min(self.now());
        if until > self.covered {
            self.site.cover(until);
            self.covered = until;
        }
    }

    /// A round of publishing; where it built an epoch at one go, whoever mints is told.
    fn publish(&mut self) {
        self.site.publish();
        let (newest, now) = (self.site.publisher.position().unwrap().epoch.0, self.now());
        for epoch in 1..=newest {
            self.begun.entry(epoch).or_insert(now);
        }
        if !self.building {
            self.filters.set(self.site.realm.id, self.site.publisher.filters());
        }
    }

    fn take_in(&mut self) {
        for entry in self.site.entries(self.site.publisher.book().sequence().0) {
            self.site.publisher.take(&entry).unwrap();
        }
    }

    /// Holds every answer of a device against the truth; counts what the exceptions and the filter told apart.
    fn judge(&self, device: &Follower, seen: &mut BTreeMap<(&'static str, Issuance), u32>) {
        // Not retired: its successor came within the grace period, or none did.
        let in_force = self.begun.get(&(device.epoch() + 1)).is_none_or(|begun| begun + RACE_GRACE > self.now() + 20);
        let base = device.exposed.base().unwrap();
        for (which, (jti, iat, issuance)) in self.tokens.iter().enumerate() {
            let (verdict, by) = device.exposed.explain(device.now(), &issued(jti, *iat));
            if self.revoked.contains(&which) {
                let told = device.sequence() == self.site.publisher.book().sequence().0;
                assert!(!told || !is_good(verdict), "{jti} is revoked and comes out {verdict:?} by {by:?}");
                continue;
            }
            assert!(!is_revoked(verdict), "{jti}, issued at {iat}, is good and comes out {verdict:?} by {by:?}");
            // In the registry as it was frozen, or clean: not even a suspect, while its filter is in force.
            if *issuance == Issuance::Minted && in_force && base.profile() == Profile::Covered {
                assert!(is_good(verdict), "{jti} was minted at {iat} and comes out {verdict:?}");
            }
            *seen.entry((by.name(), *issuance)).or_default() += 1;
        }
    }
}

#[test]
fn rule_18_a_token_issued_at_any_point_of_building_is_no_covered_false_positive() {
    let mut seen = BTreeMap::new();
    let mut built = 0;
    for seed in 0..12 {
        let settings = Settings { grace: Duration::from_secs(RACE_GRACE), ..small_settings() };
        let site = registered_site(seed, settings);
        let mut race = Race {
            site,
            filters: LiveFilters::new(),
            random: Random::new(1_000 + seed),
            tokens: Vec::new(),
            unregistered: Vec::new(),
            revoked: BTreeSet::new(),
            covered: 0,
            building: false,
            begun: BTreeMap::new(),
        };
        let realm = race.site.realm.id;
        race.filters.set(realm, race.site.publisher.filters());
        for _ in 0..1_500 {
            let which = race.draw(Issuance::Plain);
            race.register(which);
        }
        for which in 0..400 {
            let (jti, iat, _) = race.tokens[which].clone();
            race.site.revoke(&jti, START + iat + 24 * 3_600);
            race.revoked.insert(which);
        }
        race.site.pass(2_000);
        race.cover();
        let mut devices = [race.site.device(prompt(Profile::Covered)), race.site.device(prompt(Profile::Covered))];
        for round in 0..14 {
            race.site.pass(21_000);
            race.go_on();
            race.cover();
            race.take_in();
            let Some(draft) = race.site.draft() else { continue };
            race.building = true;
            race.go_on();
            let filtered = race.site.filter(draft);
            // As the server does: whoever mints is told before the registry is frozen.
            let mut minted = race.site.publisher.filters();
            minted.push(Arc::clone(filtered.filter()));
            race.filters.set(realm, minted);
            race.go_on();
            race.cover();
            if race.random.chance(50) {
                race.publish();
            }
            race.go_on();
            let filtered = Arc::new(filtered);
            let frozen = race.site.freeze(&filtered);
            race.go_on();
            race.site.build(filtered, frozen);
            race.building = false;
            race.filters.set(realm, race.site.publisher.filters());
            race.go_on();
            race.site.pass(1_000);
            race.publish();
            built += 1;
            race.go_on();
            race.site.pass(1_000);
            race.publish();
            for (at, device) in devices.iter_mut().enumerate() {
                device.wall = race.site.time;
                device.tell(Event::Elapsed);
                // The second stays on its epoch for as long as it stands.
                race.judge(device, &mut seen);
                if at == 0 || round % 3 == 2 {
                    device.reconnect(&race.site.shelf);
                    assert_eq!(device.sequence(), race.site.publisher.book().sequence().0);
                    race.judge(device, &mut seen);
                }
            }
            for which in std::mem::take(&mut race.unregistered) {
                race.register(which);
            }
        }
    }
    assert!(built > 100, "{built} epochs");
    let count = |by, issuance| seen.get(&(by, issuance)).copied().unwrap_or(0);
    assert!(count("exceptions", Issuance::Plain) > 1_000 && count("filter", Issuance::Minted) > 1_000, "{seen:?}");
    // Minted before an epoch was filtered, and flagged by it.
    assert!(count("exceptions", Issuance::Minted) > 100 && count("exceptions", Issuance::Reported) > 10, "{seen:?}");
}

#[test]
fn rule_19_after_a_restart_everything_that_was_persisted_holds() {
    let forge = Forge::new(19);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let history = History::new(&mut random, 12);
        let mut config = prompt(Profile::Exact);
        // Written at once, or now and then to a disk that fails.
        config.persist_every = Duration::from_secs(random.below(3));
        let fails = config.persist_every > Duration::ZERO;
        let mut device = forge.device(config, 100);
        device.serve(&forge.shelf(&history.base(&forge, 1, 2), &[], 2, 90));
        device.pass(5 * SECOND);
        let mut told = BTreeSet::new();
        let mut persisted = (device.writes, device.image(), told.clone());
        for round in 0..30 {
            match random.below(10) {
                0..5 => {
                    let from = random.below(history.length);
                    let to = from + 1 + random.below((history.length - from).min(4));
                    device.give(Address::Live, &forge.delta(&history.delta(&forge, from, to)));
                    told.insert((from, to));
                }
                5 => device.disk_fails = fails && random.chance(50),
                6 => {
                    let manifest = forge.manifest_meant(&history.base(&forge, 1, 2), 2, &[], 91 + round);
                    device.give(Address::Manifest, &forge.manifest(&manifest));
                }
                7 => {
                    // What is held in memory counts at once; what is written, after a restart.
                    history.judge(&device, 2, &told, &format!("seed {seed} round {round}"));
                    let before = (device.sequence(), device.replica.manifest().map(revocast_core::Manifest::rank));
                    device.restart();
                    told = persisted.2.clone();
                    history.judge(&device, 2, &told, &format!("seed {seed} round {round}, restarted"));
                    assert!(
                        (device.sequence(), device.replica.manifest().map(revocast_core::Manifest::rank)) <= before
                    );
                    device.disk_fails = false;
                }
                _ => {
                    device.pass(SECOND);
                }
            }
            if device.writes != persisted.0 {
                persisted = (device.writes, device.image(), told.clone());
            }
            // A report names only what is persisted.
            if let Some(report) = device.reports.last() {
                let (head, base) = device.disk.clone().unwrap();
                let restored = device.restored(&head, base.as_deref()).unwrap();
                assert_eq!(report.position.epoch, restored.set().position().epoch);
                assert!(report.position.sequence <= restored.set().position().sequence);
            }
        }
    }
    // Early deltas, H, the highest manifest and the version of the keys, by name.
    let mut device = forge.device(prompt(Profile::Exact), 500);
    device.serve(&forge.shelf(&forge.epoch(1, 3, &["a"], &[], 0), &[], 3, 400));
    device.give(Address::Live, &forge.delta(&forge.delta_meant((7, 9), &["early"], &["a"], 450)));
    device.give(Address::Keys, &forge.keys(2));
    let manifest = forge.manifest_meant(&forge.epoch(1, 3, &["a"], &[], 0), 9, &[], 460);
    device.give(Address::Manifest, &forge.manifest(&manifest));
    device.restart();
    assert!(is_revoked(device.ask("early")));
    assert_eq!(device.exposed.horizon(), horizon(460));
    assert_eq!(device.replica.manifest(), Some(&manifest));
    assert_eq!(device.replica.keys().unwrap().version, 2);
    assert_eq!(device.sequence(), 3);
    device.tell(Event::Connected);
    assert_eq!(names(&device.give(Address::Keys, &forge.keys(1))), ["rollback"]);
    let older = forge.manifest_meant(&forge.epoch(1, 3, &["a"], &[], 0), 9, &[], 459);
    assert_eq!(names(&device.give(Address::Manifest, &forge.manifest(&older))), ["rollback"]);
    // The gap closes over what was early before the restart.
    device.give(Address::Live, &forge.delta(&forge.delta_meant((3, 7), &["b"], &[], 455)));
    assert_eq!(device.sequence(), 9);
    assert!(is_good(device.ask("a")) && is_revoked(device.ask("b")) && is_revoked(device.ask("early")));
}

// ---- Trust ---------------------------------------------------------------------------------------

/// Keys of some version: roots that sign from now on, and the content key.
fn keys(
    forge: &Forge,
    version: u64,
    roots: &[&SigningKey],
    threshold: u8,
    content: &SigningKey,
    signed_by: &[&SigningKey],
) -> Vec<u8> {
    let mut keys = forge.keys_meant(version);
    keys.roots = roots.iter().map(|root| root.public()).collect();
    keys.roots.sort_unstable();
    keys.threshold = threshold;
    keys.publishers =
        vec![PublisherKey { key: content.public(), role: Role::Content as u8, not_after: keys.not_after }];
    seal(Kind::Keys, &forge.realm, &wire::encode_keys(&keys).unwrap(), signed_by)
}

#[test]
fn rule_20_keys_are_handed_on_by_the_thresholds_of_both_versions() {
    let mut forge = Forge::new(20);
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|seed| SigningKey::from_seed([seed; 32]));
    let mut device = forge.device(prompt(Profile::Exact), 100);
    device.trust.roots = vec![a.public(), b.public()];
    device.trust.threshold = 2;
    device.restart();
    device.tell(Event::Connected);
    let content = forge.content.clone();
    // The first version: the pinned threshold, and its own.
    assert_eq!(names(&device.give(Address::Keys, &keys(&forge, 1, &[&a, &b], 2, &content, &[&a]))), ["threshold"]);
    assert_eq!(names(&device.give(Address::Keys, &keys(&forge, 1, &[&a, &b], 2, &content, &[&a, &a]))), ["threshold"]);
    let own = device.give(Address::Keys, &keys(&forge, 1, &[&a, &b, &c], 3, &content, &[&a, &b]));
    assert_eq!(names(&own), ["threshold"]);
    assert!(device.give(Address::Keys, &keys(&forge, 1, &[&a, &b], 2, &content, &[&a, &b])).is_empty());
    let base = forge.epoch(1, 3, &["revoked"], &[], 0);
    device.serve(&{
        let mut shelf = forge.shelf(&base, &[], 3, 100);
        shelf.remove(&Address::Keys);
        shelf
    });
    assert!(is_good(device.ask("good")));

    // N+1 by the thresholds of N and of N+1: each alone is not enough.
    let next = |signed_by: &[&SigningKey]| keys(&forge, 2, &[&c, &d], 2, &content, signed_by);
    for (signed_by, refusal) in [
        (&[&a, &b][..], "wrong-key"),
        (&[&c, &d][..], "wrong-key"),
        (&[&a, &b, &c][..], "threshold"),
        (&[&a, &c, &d][..], "threshold"),
    ] {
        let before = device.image();
        assert_eq!(names(&device.give(Address::Keys, &next(signed_by))), [refusal]);
        assert_eq!(device.image(), before);
    }
    // An extra stranger's signature beside enough good ones does no harm.
    assert!(device.give(Address::Keys, &next(&[&a, &e, &b, &c, &d])).is_empty());
    assert_eq!(device.replica.keys().unwrap().version, 2);
    // What lives as long as the realm cannot change with it.
    let mut changed = forge.keys_meant(3);
    changed.roots = vec![c.public(), d.public()];
    changed.roots.sort_unstable();
    changed.threshold = 2;
    for change in [0, 1] {
        let mut changed = changed.clone();
        match change {
            0 => changed.issuer = "https://other.example".into(),
            _ => changed.fingerprinter = fingerprinter(Width::W64),
        }
        let sealed = seal(Kind::Keys, &forge.realm, &wire::encode_keys(&changed).unwrap(), &[&c, &d]);
        assert_eq!(names(&device.give(Address::Keys, &sealed)), ["equivocation"]);
    }

    // A publisher key rotates out: what a verified manifest names by digest still counts, and what
    // stands on the disk is not lost with it.
    let successor = SigningKey::from_seed([9; 32]);
    assert!(device.give(Address::Keys, &keys(&forge, 3, &[&c, &d], 2, &successor, &[&c, &d])).is_empty());
    device.restart();
    assert!(is_revoked(device.ask("revoked")) && is_good(device.ask("good")), "{:?}", device.ask("good"));
    device.tell(Event::Connected);
    let old = forge.epoch(2, 5, &["revoked", "later"], &[], 100);
    let rung = forge.delta_meant((3, 5), &["later"], &[], 100);
    let sealed_rung = forge.delta(&rung);
    let retired = std::mem::replace(&mut forge.content, successor.clone());
    let mut shelf: Shelf = old.objects.iter().cloned().collect();
    let named = forge.manifest_meant(&old, 5, &[(3, 5, &sealed_rung)], 110);
    shelf.insert(Address::Manifest, forge.manifest(&named));
    shelf.insert(Address::Ladder { from: Sequence(3), to: Sequence(5) }, sealed_rung);
    device.serve(&shelf);
    assert_eq!((device.epoch(), device.sequence()), (2, 5), "refused: {:?}", names(&device.refused));
    assert!(is_revoked(device.ask("later")));
    // The key itself may sign nothing new.
    forge.content = retired;
    let refused = device.give(Address::Live, &forge.delta(&forge.delta_meant((5, 6), &["good"], &[], 120)));
    assert_eq!(names(&refused), ["wrong-key"]);
    device.restart();
    assert_eq!((device.epoch(), device.sequence()), (2, 5));

    // A second rotation of the roots: the pinned ones sign nothing any more, the chain holds.
    device.tell(Event::Connected);
    assert!(device.give(Address::Keys, &keys(&forge, 4, &[&e], 1, &successor, &[&c, &d, &e])).is_empty());
    device.restart();
    assert_eq!(device.replica.keys().unwrap().version, 4);
    assert!(is_revoked(device.ask("later")) && is_good(device.ask("good")));
}

/// Claims that expire far in the future.
fn asked(jti: &str) -> Claims<'_> {
    Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(START + (1 << 32)))
}

#[test]
fn rule_21_an_answer_counts_once_for_its_own_nonce_and_never_against_a_local_revocation() {
    let forge = Forge::new(21);
    let many: Vec<String> = (0..400).map(|number| format!("revoked-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let base = forge.epoch(1, 10, &many, &[], 0);
    let mut device = forge.device(prompt(Profile::Filter), 10);
    device.serve(&forge.shelf(&base, &[], 10, 10));
    let told = |device: &Follower| device.answered.last().unwrap().1;
    let answered = |device: &mut Follower, jti: &str, finding, sequence, at| {
        let question = device.wonder(&asked(jti)).unwrap();
        device.pass(SECOND);
        assert!(
            device
                .give(Address::Answer, &forge.answer(&forge.answer_meant(&question, finding, sequence, at)))
                .is_empty()
        );
    };
    let is_suspect = |verdict| matches!(verdict, Verdict::Suspect { .. });
    let strangers: Vec<String> =
        (0..).map(|number| format!("stranger-{number}")).filter(|jti| is_suspect(device.ask(jti))).take(3).collect();
    let [flagged, other, third] = [0, 1, 2].map(|at| &strangers[at][..]);
    let revoked = Finding::Revoked { why: Why::Token };

    // The filter cannot tell these two apart; the server can, and its word is kept.
    assert!(is_suspect(device.ask(flagged)) && is_suspect(device.ask("revoked-7")));
    answered(&mut device, flagged, Finding::NotRevoked, 10, 12);
    answered(&mut device, "revoked-7", revoked, 10, 12);
    assert!(is_good(device.ask(flagged)) && is_revoked(device.ask("revoked-7")));
    assert!(is_suspect(device.ask(other)) && is_suspect(device.ask("revoked-8")));
    // It proved that nothing was missing as of its time.
    assert_eq!(device.exposed.freshness().proof.unwrap().0, time(12));
    // What came later counts more, in either order; what came before counts less.
    device.give(Address::Live, &forge.delta(&forge.delta_meant((10, 11), &[flagged], &["revoked-7"], 13)));
    assert!(is_revoked(device.ask(flagged)) && is_good(device.ask("revoked-7")));
    answered(&mut device, other, Finding::NotRevoked, 13, 15);
    assert!(is_good(device.ask(other)));
    device.give(Address::Live, &forge.delta(&forge.delta_meant((11, 12), &[other], &[], 14)));
    assert!(is_good(device.ask(other)), "as of 13 it was not revoked, though 12 arrived later");
    device.give(Address::Live, &forge.delta(&forge.delta_meant((12, 13), &[other], &[], 15)));
    assert!(is_revoked(device.ask(other)), "of two statements as of 13 the one that revokes");
    // An answer from beyond this position proves no currency: something is missing here.
    let proof = device.exposed.freshness().proof;
    answered(&mut device, third, Finding::NotRevoked, 20, 20);
    assert_eq!(device.exposed.freshness().proof, proof);
    assert_eq!((device.sequence(), is_good(device.ask(third))), (13, true));
    // Never against what is known to be revoked here, whatever the server says.
    answered(&mut device, flagged, Finding::NotRevoked, 21, 21);
    assert_eq!(told(&device), Some(revoked));
    assert!(is_revoked(device.ask(flagged)));
    // A cutoff, or an end, is told and not kept: it says nothing about the key.
    let recent = device.exposed.recent_entries();
    let cut = Why::Cutoff { scope: ScopeKind::Realm, not_before: UnixTime::from_secs(START) };
    for why in [cut, Why::Expired { horizon: horizon(22) }] {
        answered(&mut device, "somebody", Finding::Revoked { why }, 21, 22);
        assert_eq!(told(&device), Some(Finding::Revoked { why }));
        assert_eq!(device.exposed.recent_entries(), recent);
    }
    // A local cutoff stands against the answer as well.
    let mut cutoff = forge.delta_meant((13, 14), &[], &[], 22);
    cutoff.cutoffs = vec![Cutoff { scope: Scope::REALM, not_before: UnixTime::from_secs(START + 5) }];
    device.give(Address::Live, &forge.delta(&cutoff));
    answered(&mut device, "somebody", Finding::NotRevoked, 21, 23);
    assert!(matches!(told(&device), Some(Finding::Revoked { why: Why::Cutoff { .. } })));
    let mut lift = forge.delta_meant((14, 15), &[], &[], 23);
    lift.lifts = vec![Scope::REALM];
    device.give(Address::Live, &forge.delta(&lift));

    // A restart keeps it with the rest; a base that covers it makes it void, and speaks for itself.
    device.restart();
    assert!(is_good(device.ask(third)) && is_revoked(device.ask(flagged)));
    let mut covered = many.clone();
    covered.push(third);
    let next = forge.epoch(2, 25, &covered, &[], 30);
    device.reconnect(&forge.shelf(&next, &[], 25, 31));
    assert_eq!((device.epoch(), device.sequence(), device.exposed.recent_entries()), (2, 25, 0));
    assert!(!is_good(device.ask(third)), "revoked at 25: the answer as of 20 is no longer heard");

    // Another term: what it says is told, and nothing of it is kept under the numbers of this one.
    let question = device.wonder(&asked(flagged)).unwrap();
    let mut meant = forge.answer_meant(&question, Finding::NotRevoked, 2_000_000, 32);
    meant.term = Term(2);
    assert!(device.give(Address::Answer, &forge.answer(&meant)).is_empty());
    assert_eq!((told(&device), device.exposed.recent_entries()), (Some(Finding::NotRevoked), 0));

    // Its memory is bounded: beyond a quarter of what deltas may need, answers are told and not kept.
    let load = forge.epoch(3, 30, &[], &[], 33);
    device.reconnect(&forge.shelf(&load, &[], 30, 34));
    device.give(Address::Live, &flood(&forge, 30, 31, 0, RECENT_ANSWERS_MAX as u64, false));
    assert_eq!(device.exposed.recent_entries(), RECENT_ANSWERS_MAX);
    answered(&mut device, third, revoked, 31, 35);
    assert_eq!((told(&device), device.exposed.recent_entries()), (Some(revoked), RECENT_ANSWERS_MAX));

    // Who may ask: connected, with keys, each question under its own nonce, a few at a time.
    let mut newcomer = forge.device(prompt(Profile::Filter), 10);
    assert_eq!(newcomer.wonder(&asked("a")), Err(Unasked::NoKeys));
    newcomer.give(Address::Keys, &forge.keys(1));
    for _ in 0..ASKS_OUTSTANDING_MAX {
        assert!(newcomer.wonder(&asked("a")).is_ok());
    }
    assert_eq!(newcomer.wonder(&asked("a")), Err(Unasked::TooMany));
    newcomer.pass(ASK_PATIENCE);
    assert_eq!(newcomer.answered.len(), ASKS_OUTSTANDING_MAX);
    assert!(newcomer.answered.iter().all(|(_, finding)| finding.is_none()));
    let allowed = (0..ASKS_OUTSTANDING_MAX).take_while(|_| newcomer.wonder(&asked("a")).is_ok()).count();
    assert_eq!(allowed, ASK_PATIENCE.as_secs() as usize, "one a second, after the first eight");
    assert_eq!(newcomer.wonder(&asked("a")), Err(Unasked::TooFast));
    let used = (newcomer.questions.len() as u128).to_le_bytes();
    let (now, name) = (newcomer.now(), newcomer.device);
    assert_eq!(newcomer.replica.ask(now, used, name, &asked("b")), Err(Unasked::NonceInUse));
    // The link is gone: nobody waits for what cannot come.
    newcomer.tell(Event::Disconnected);
    assert_eq!(newcomer.answered.len(), ASKS_OUTSTANDING_MAX + allowed);
    assert_eq!(newcomer.wonder(&asked("a")), Err(Unasked::NotConnected));

    // As a law: answers and deltas about one key, in any order, over base moves and restarts. The server's
    // word is always true as of its sequence; nothing that arrives later or earlier makes it hide more.
    let (mut cleared, mut kept) = (0, 0);
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let keys = ["x", "y", "z"];
        let length = 14;
        // state[sequence][key]: whether the key is revoked as of that sequence.
        let mut state = vec![[random.chance(50), random.chance(50), false]];
        for _ in 0..length {
            let mut next = *state.last().unwrap();
            let key = random.below(3) as usize;
            next[key] = !next[key];
            state.push(next);
        }
        let revoked_at = |sequence: usize| -> Vec<&str> {
            keys.iter().enumerate().filter(|(at, _)| state[sequence][*at]).map(|(_, key)| *key).collect()
        };
        let delta = |from: usize, to: usize| {
            let touched = |at: usize| (from..to).any(|sequence| state[sequence][at] != state[sequence + 1][at]);
            let split = |on: bool| -> Vec<&str> {
                let those = (0..3).filter(|at| touched(*at) && state[to][*at] == on);
                those.map(|at| keys[at]).collect()
            };
            forge.delta(&forge.delta_meant((from as u64, to as u64), &split(true), &split(false), 50))
        };
        let mut device = forge.device(prompt(*random.pick(&[Profile::Filter, Profile::Exact])), 60);
        device.serve(&forge.shelf(&forge.epoch(1, 0, &revoked_at(0), &[], 40), &[], 0, 50));
        let (mut head, mut epoch, mut held_back) = (0, 1, Vec::new());
        for step in 0..40 {
            match random.below(10) {
                0..3 => {
                    let from = random.below(head as u64 + 1) as usize;
                    let to = (from + 1 + random.below(3) as usize).min(head);
                    if from < to {
                        device.give(Address::Live, &delta(from, to));
                    }
                }
                3..5 => head = (head + 1).min(length),
                5..8 => {
                    // The server answers as of its head; the answer may be late.
                    device.pass(SECOND);
                    let key = random.below(3) as usize;
                    if let Ok(question) = device.wonder(&asked(keys[key])) {
                        let finding = if state[head][key] { revoked } else { Finding::NotRevoked };
                        let answer = forge.answer_meant(&question, finding, head as u64, 60 + step);
                        held_back.push(forge.answer(&answer));
                    }
                    if !held_back.is_empty() && random.chance(80) {
                        let which = random.below(held_back.len() as u64) as usize;
                        device.give(Address::Answer, &held_back.swap_remove(which));
                    }
                }
                8 => {
                    epoch += 1;
                    let base = forge.epoch(epoch, head as u64, &revoked_at(head), &[], 45);
                    device.reconnect(&forge.shelf(&base, &[], head as u64, 60 + step));
                }
                _ => {
                    device.restart();
                    device.tell(Event::Connected);
                }
            }
            let position = device.sequence() as usize;
            for (at, key) in keys.iter().enumerate() {
                // Good is what was good at the position, or at something later that it has been told.
                let ever_good = (position..=head).any(|sequence| !state[sequence][at]);
                let good = is_good(device.ask(key));
                assert!(!good || ever_good, "seed {seed}, step {step}: {key} at {position} of {head}");
                kept += u32::from(good && state[position][at]);
            }
        }
        // In the end everything arrives, and nothing an answer said is left to differ.
        let mut deltas: Vec<(usize, usize)> = (0..length).map(|from| (from, from + 1)).collect();
        while !deltas.is_empty() {
            let (from, to) = deltas.swap_remove(random.below(deltas.len() as u64) as usize);
            device.give(Address::Live, &delta(from, to));
        }
        assert_eq!(device.sequence(), length as u64, "seed {seed}");
        for (at, key) in keys.iter().enumerate() {
            let verdict = device.ask(key);
            assert!(!(state[length][at] && is_good(verdict)), "seed {seed}: {key} is revoked: {verdict:?}");
        }
        cleared += device.answered.iter().filter(|(_, finding)| *finding == Some(Finding::NotRevoked)).count();
    }
    assert!(cleared > 400 && kept > 50, "{cleared} cleared, {kept} good beyond their position");
}

#[test]
fn rule_23_realm_ids_are_plain_and_a_token_names_itself_and_its_end() {
    for byte in 0..=255_u8 {
        let plain = byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        for place in [0, 1, 63] {
            let mut text = [b'a'; 64];
            text[place] = byte;
            assert_eq!(RealmId::from_bytes(&text).is_ok(), plain, "byte {byte} at {place}");
        }
    }
    assert_eq!(RealmId::new(""), Err(RealmIdError::Empty));
    assert_eq!(RealmId::new(&"a".repeat(65)), Err(RealmIdError::TooLong { bytes: 65 }));
    assert!(RealmId::new(&"a".repeat(64)).is_ok());
    assert!(Jti::new("").is_err() && Jti::new(&"j".repeat(257)).is_err() && Jti::new(&"j".repeat(256)).is_ok());

    // The validator refuses a token that lacks either name or end, however well it is signed.
    let secret = [7; 32];
    let jwks = format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, URL_SAFE_NO_PAD.encode(secret));
    let rules = ValidatorConfig::new(
        "https://issuer.example",
        ["https://api.example"],
        KeySet::from_jwks(jwks.as_bytes()).unwrap(),
    );
    let validator = Validator::new(rules, RevokedPairs::default(), Policy::strict()).unwrap();
    let now = Now::new(time(100), Duration::ZERO);
    let base = format!(r#""iss":"https://issuer.example","aud":"https://api.example","iat":{START}"#);
    let (jti, exp) = (r#","jti":"t""#, format!(r#","exp":{}"#, START + 500));
    let verify = |rest: &str| validator.verify(now, &hs256(&secret, &format!("{{{base}{rest}}}")));
    let name = |rest: &str| verify(rest).unwrap_err().rejection.name();
    let whole = format!("{jti}{exp}");
    assert!(verify(&whole).is_ok(), "{:?}", verify(&whole));
    assert_eq!([name(jti), name(&exp), name("")], ["missing-claim"; 3]);
    assert_ne!(name(&format!(r#","jti":""{exp}"#)), "missing-claim", "an empty name is none either");
}

/// What rule 22 says of devices and their tokens, told anew.
#[derive(Debug, Default)]
struct Lines {
    /// The device and the parent of each token.
    tokens: BTreeMap<String, (usize, Option<String>)>,
    revoked: BTreeSet<String>,
    /// The newest token of each device, and whether that was revoked.
    holds: [Option<String>; 3],
    barred: [bool; 3],
}

impl Lines {
    fn revoke(&mut self, jti: &str) {
        let mut doomed = BTreeSet::from([jti.to_owned()]);
        loop {
            let comes_of = |parent: &Option<String>| parent.as_ref().is_some_and(|parent| doomed.contains(parent));
            let children: BTreeSet<_> = self
                .tokens
                .iter()
                .filter(|(_, (_, parent))| comes_of(parent))
                .map(|(child, _)| child.clone())
                .collect();
            let before = doomed.len();
            doomed.extend(children);
            if doomed.len() == before {
                break;
            }
        }
        for (barred, held) in self.barred.iter_mut().zip(&self.holds) {
            *barred |= held.as_ref().is_some_and(|held| doomed.contains(held));
        }
        self.revoked.extend(doomed);
    }

    fn issued(&mut self, jti: &str, device: usize, parent: Option<String>) {
        self.tokens.insert(jti.to_owned(), (device, parent));
        self.holds[device] = Some(jti.to_owned());
        self.barred[device] = false;
    }
}

#[test]
fn rule_22_no_token_comes_of_a_revoked_one_and_all_that_came_of_it_are_revoked() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let now = UnixTime::from_secs(START);
        let realm = RealmId::new("a").unwrap();
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48);
        let ledger = ledger::MemoryLedger::new();
        let founded = ledger::Realm::new(realm, "https://a.example", fingerprinter, now);
        ready(ledger.create_realm(founded, Vec::new())).unwrap();
        let devices = [0, 1, 2].map(|number| DeviceId::new(&format!("d{number}")).unwrap());
        for id in devices {
            let device = ledger::NewDevice {
                id,
                signing: SigningKey::from_seed([1; 32]).public(),
                sealing: EnvelopeKey::from_seed([2; 32]).public(),
                subject: id.to_string(),
                audience: Vec::new(),
                replace: false,
                actor: "test".into(),
            };
            ready(ledger.enroll(realm, now, device)).unwrap();
        }

        let (mut lines, mut counter) = (Lines::default(), 0);
        for number in 0..80 {
            let jti = format!("t{number}");
            let known: Vec<_> = lines.tokens.keys().cloned().collect();
            let device = random.below(3) as usize;
            let append = |action| {
                let request = ledger::Request { action, reason: None, actor: "test".into() };
                ready(ledger.append(realm, now, vec![request])).unwrap();
            };
            let order = |renewal, revoke_parent| {
                let token = ledger::NewToken {
                    jti: jti.clone(),
                    iat: now,
                    exp: now.plus(900),
                    sub: None,
                    kid: None,
                    client: None,
                };
                let device = Some(devices[device]);
                let actor = "test".into();
                let order = ledger::Order { token, device, renewal, refresh: None, revoke_parent, actor };
                ready(ledger.issue(realm, now, order)).unwrap()
            };
            match random.below(10) {
                0 | 1 if !known.is_empty() => {
                    let jti = random.pick(&known).clone();
                    append(ledger::Action::Revoke { jti: jti.clone(), exp: ledger::Expiry::Claimed(now) });
                    lines.revoke(&jti);
                }
                2 if !known.is_empty() => {
                    let jti = random.pick(&known).clone();
                    append(ledger::Action::Reinstate { jti: jti.clone() });
                    lines.revoked.remove(&jti);
                    if let Some(device) = lines.holds.iter().position(|held| held.as_ref() == Some(&jti)) {
                        lines.barred[device] = false;
                    }
                }
                3..=8 if !known.is_empty() => {
                    let parent = random.pick(&known).clone();
                    let replaces = random.chance(20);
                    counter += 1;
                    let renewal = ledger::Renewal { counter: Some(counter), parent: Some(parent.clone()) };
                    let why = if lines.tokens[&parent].0 != device {
                        Some(ledger::NoToken::NotHeld)
                    } else if lines.barred[device] || lines.revoked.contains(&parent) {
                        Some(ledger::NoToken::ParentRevoked)
                    } else {
                        None
                    };
                    match (order(Some(renewal), replaces), why) {
                        (ledger::Issuance::Refused(told), Some(why)) => assert_eq!(told, why, "seed {seed}"),
                        (ledger::Issuance::Issued { sequence }, None) => {
                            assert_eq!(sequence.is_some(), replaces);
                            if replaces {
                                lines.revoked.insert(parent.clone());
                            }
                            lines.issued(&jti, device, Some(parent));
                        }
                        (told, why) => panic!("seed {seed}, {jti}: {told:?} instead of {why:?}"),
                    }
                }
                _ => {
                    assert_eq!(order(None, false), ledger::Issuance::Issued { sequence: None });
                    lines.issued(&jti, device, None);
                }
            }
            let mut revoked = BTreeSet::new();
            for entry in ready(ledger.scan(realm, Sequence(0), usize::MAX)).unwrap() {
                match entry.statement {
                    ledger::Statement::Revoke { jti, .. } => revoked.insert(jti),
                    ledger::Statement::Reinstate { jti, .. } => revoked.remove(&jti),
                    other => panic!("{other:?}"),
                };
            }
            assert_eq!(revoked, lines.revoked, "seed {seed}, after {number} steps");
        }
    }
}
