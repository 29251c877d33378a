//! Many ask a ledger at once, over every backend, and the history that comes of it is checked as a whole: whatever the
//! order in which calls met, a token never comes of one that was revoked, and what came of it is revoked with it.
//!
//! `REVOCAST_LONG=1` runs 100,000 operations over each backend where CI runs some thousands.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use revocast_core::{
    DeviceId, EnvelopeKey, FingerprintFunction, Fingerprinter, PublicKey, RealmId, RealmKey, Sequence, UnixTime, Width,
};
use revocast_server::ledger::{
    Action, Expiry, Inspection, Issuance, Ledger, MemoryLedger, NewDevice, NewToken, NoToken, Order, Piece,
    PostgresConfig, PostgresLedger, Realm, Receipt, Renewal, Request, SqliteLedger, Statement,
};
use revocast_tests::Random;
use revocast_tests::postgres::{PASSWORD, Postgres};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// Who asks at once.
const CLIENTS: u64 = 32;

fn id() -> RealmId {
    RealmId::new("a").unwrap()
}

fn realm() -> Realm {
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    Realm::new(id(), "https://a.example", fingerprinter, NOW)
}

fn device(number: u64) -> DeviceId {
    DeviceId::new(&format!("device-{number}")).unwrap()
}

async fn enroll(ledger: &dyn Ledger, devices: u64) {
    for number in 0..devices {
        let new = NewDevice {
            id: device(number),
            signing: PublicKey([1; 32]),
            sealing: EnvelopeKey::from_seed([2; 32]).public(),
            subject: format!("subject-{number}"),
            audience: vec!["https://service.example".into()],
            replace: false,
            actor: "test".into(),
        };
        assert!(ledger.enroll(id(), NOW, new).await.unwrap().created);
    }
}

fn order(jti: &str, device: DeviceId, renewal: Option<Renewal>) -> Order {
    let token = NewToken {
        jti: jti.into(),
        iat: NOW,
        exp: NOW.plus(900),
        sub: Some(format!("subject of {device}")),
        kid: Some("a-key-of-ours".into()),
        client: None,
    };
    Order { token, device: Some(device), renewal, refresh: None, revoke_parent: false, actor: "test".into() }
}

fn revoke(jti: &str, exp: Expiry) -> Request {
    Request { action: Action::Revoke { jti: jti.into(), exp }, reason: None, actor: "test".into() }
}

/// A token that somebody was told is issued.
#[derive(Clone, Debug)]
struct Known {
    jti: String,
    device: u64,
}

/// One call, with readings of a clock that all share, before and after it.
#[derive(Clone, Debug)]
struct Event {
    began: u64,
    ended: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Revoked { jti: String },
    Issued { jti: String, device: u64, parent: Option<String>, counter: Option<u64>, replaces: bool },
    Refused { jti: String, why: NoToken },
}

/// Lets clients renew and revoke at once, and returns all that they were told.
async fn run(ledger: Arc<dyn Ledger>, devices: u64, operations: u64) -> Vec<Event> {
    enroll(&*ledger, devices).await;
    let clock = Arc::new(AtomicU64::new(0));
    let counters: Arc<Vec<AtomicU64>> = Arc::new((0..devices).map(|_| AtomicU64::new(0)).collect());
    let known: Arc<Mutex<Vec<Known>>> = Arc::default();
    let clients = (0..CLIENTS).map(|client| {
        let (ledger, clock, counters) = (Arc::clone(&ledger), Arc::clone(&clock), Arc::clone(&counters));
        let known = Arc::clone(&known);
        tokio::spawn(async move {
            let mut random = Random::new(client);
            let mut events = Vec::new();
            for number in 0..operations / CLIENTS {
                let jti = format!("{client}-{number}");
                // Mostly one of the newest: the interesting ones.
                let picked = {
                    let known = known.lock().unwrap();
                    let recent = (known.len() as u64).min(4 * devices);
                    (recent > 0).then(|| known[known.len() - 1 - random.below(recent) as usize].clone())
                };
                let choice = random.below(100);
                let began = clock.fetch_add(1, Ordering::SeqCst);
                let what = match picked {
                    Some(Known { jti, .. }) if choice < 20 => {
                        let _ = ledger.append(id(), NOW, vec![revoke(&jti, Expiry::Claimed(NOW))]).await.unwrap();
                        What::Revoked { jti }
                    }
                    Some(Known { jti: parent, device: of }) if choice < 85 => {
                        // Now and then one that was used before, as whoever replays a request would.
                        let back = if random.chance(5) { random.below(3) + 1 } else { 0 };
                        let counter = (counters[of as usize].fetch_add(1, Ordering::SeqCst) + 1).saturating_sub(back);
                        let renewal = Renewal { counter: Some(counter), parent: Some(parent.clone()) };
                        let replaces = random.chance(10);
                        let order = Order { revoke_parent: replaces, ..order(&jti, device(of), Some(renewal)) };
                        match ledger.issue(id(), NOW, order).await.unwrap() {
                            Issuance::Issued { sequence } => {
                                assert_eq!(sequence.is_some(), replaces);
                                known.lock().unwrap().push(Known { jti: jti.clone(), device: of });
                                let (parent, counter) = (Some(parent), Some(counter));
                                What::Issued { jti, device: of, parent, counter, replaces }
                            }
                            Issuance::Refused(why) => What::Refused { jti, why },
                        }
                    }
                    _ => {
                        let of = random.below(devices);
                        let issued = ledger.issue(id(), NOW, order(&jti, device(of), None)).await.unwrap();
                        assert_eq!(issued, Issuance::Issued { sequence: None });
                        known.lock().unwrap().push(Known { jti: jti.clone(), device: of });
                        What::Issued { jti, device: of, parent: None, counter: None, replaces: false }
                    }
                };
                let ended = clock.fetch_add(1, Ordering::SeqCst);
                events.push(Event { began, ended, what });
            }
            events
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.await.unwrap());
    }
    events
}

/// All that a ledger says in the end.
#[derive(Default)]
struct End {
    /// The parent of each token.
    tokens: BTreeMap<String, Option<String>>,
    revoked: BTreeSet<String>,
    registered: u64,
}

async fn read(ledger: &dyn Ledger) -> End {
    let pieces: Arc<Mutex<Vec<Piece>>> = Arc::default();
    let taken = Arc::clone(&pieces);
    ledger
        .dump(Box::new(move |piece| {
            taken.lock().unwrap().push(piece);
            true
        }))
        .await
        .unwrap();
    let (mut end, mut inspection) = (End::default(), Inspection::default());
    for piece in std::mem::take(&mut *pieces.lock().unwrap()) {
        inspection.take(&piece);
        match piece {
            Piece::Realm(record) => end.registered = record.coverage.registered,
            Piece::Entries(entries) => {
                for entry in entries {
                    match entry.statement {
                        Statement::Revoke { jti, .. } => end.revoked.insert(jti),
                        other => panic!("{other:?}"),
                    };
                }
            }
            Piece::Tokens(tokens) => end.tokens.extend(tokens.into_iter().map(|token| (token.jti, token.parent))),
            Piece::Issued(_) | Piece::Devices(_) | Piece::Refreshes(_) | Piece::Objects(_) => {}
        }
    }
    assert!(inspection.finish(), "{:?}", inspection.findings);
    end
}

/// Whether what clients were told, and what the ledger says in the end, can have happened in any order of the calls
/// that keeps what came after what.
fn check(events: &[Event], end: &End) {
    // When each token was known to be revoked for good, and by whose word.
    let (mut told_revoked, mut replaced) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    let mut refused = BTreeMap::<String, usize>::new();
    for Event { ended, what, .. } in events {
        match what {
            What::Revoked { jti } => {
                let first = told_revoked.entry(jti).or_insert(*ended);
                *first = (*first).min(*ended);
            }
            What::Issued { parent: Some(parent), replaces: true, .. } => {
                let first = replaced.entry(parent).or_insert(*ended);
                *first = (*first).min(*ended);
            }
            What::Refused { why, .. } => {
                *refused.entry(format!("{why:?}").split([' ', '{']).next().unwrap().into()).or_default() += 1;
            }
            What::Issued { .. } => {}
        }
    }
    let ancestors = |jti: &str| {
        let mut line = vec![jti.to_owned()];
        while let Some(Some(parent)) = line.last().and_then(|last| end.tokens.get(last)) {
            line.push(parent.clone());
        }
        line
    };

    let (mut granted, mut issued) = (BTreeMap::<u64, Vec<(u64, u64, u64)>>::new(), 0);
    for Event { began, ended, what } in events {
        match what {
            What::Revoked { jti } => assert!(end.revoked.contains(jti), "{jti} was acknowledged as revoked"),
            What::Refused { jti, .. } => assert!(!end.tokens.contains_key(jti), "{jti} was refused and is there"),
            What::Issued { jti, device, parent, counter, .. } => {
                issued += 1;
                assert_eq!(end.tokens.get(jti), Some(parent), "what {jti} came of");
                if let Some(counter) = counter {
                    granted.entry(*device).or_default().push((*counter, *began, *ended));
                }
                let Some(parent) = parent else { continue };
                for ancestor in ancestors(parent) {
                    if let Some(known) = told_revoked.get(ancestor.as_str()) {
                        assert!(
                            known > began,
                            "{jti} continues {parent}, and the revoke of {ancestor} was acknowledged at {known}, before \
                             that was asked for at {began}"
                        );
                    }
                }
                if let Some(known) = replaced.get(parent.as_str()) {
                    assert!(known > began, "{jti} continues {parent}, which was replaced at {known}");
                }
            }
        }
    }
    assert_eq!((end.tokens.len(), end.registered), (issued, issued as u64), "issued, and kept and registered");

    // A revoke takes all with it, and nothing else is revoked.
    for jti in end.tokens.keys() {
        let doomed = ancestors(jti).iter().any(|ancestor| told_revoked.contains_key(ancestor.as_str()));
        let is_revoked = end.revoked.contains(jti);
        assert!(is_revoked || !doomed, "{jti} descends from a revoked token, and is not revoked");
        assert!(!is_revoked || doomed || replaced.contains_key(jti.as_str()), "{jti} is revoked, and nobody asked");
    }

    // A counter is granted once, and none after a higher one.
    for (device, mut granted) in granted {
        granted.sort_unstable();
        assert!(granted.windows(2).all(|pair| pair[0].0 < pair[1].0), "device {device} was granted a counter twice");
        let mut higher = u64::MAX;
        for (counter, began, ended) in granted.into_iter().rev() {
            assert!(began < higher, "device {device} was granted {counter} after a higher one");
            higher = higher.min(ended);
        }
    }
    println!("{} operations: {issued} issued, {} revoked, refused {refused:?}", events.len(), end.revoked.len());
    for why in ["ParentRevoked", "Replayed"] {
        assert!(refused.get(why).is_some_and(|count| *count > 0), "{why} never came up: {refused:?}");
    }
}

/// Operations, and the devices among which they go.
fn size(few: u64) -> (u64, u64) {
    if std::env::var_os("REVOCAST_LONG").is_some() { (100_000, 200) } else { (few, 16) }
}

async fn race(name: &str, ledger: Arc<dyn Ledger>, few: u64) {
    let (operations, devices) = size(few);
    let begun = Instant::now();
    let events = run(Arc::clone(&ledger), devices, operations).await;
    println!("{name}: {operations} operations of {CLIENTS} clients in {:.1?}", begun.elapsed());
    check(&events, &read(&*ledger).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_token_comes_of_a_revoked_one_in_memory() {
    let ledger = MemoryLedger::new();
    ledger.create_realm(realm(), vec![]).await.unwrap();
    race("memory", Arc::new(ledger), 8_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_token_comes_of_a_revoked_one_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(folder.path()).unwrap());
    ledger.create_realm(realm(), vec![]).await.unwrap();
    race("file", ledger.clone(), 8_000).await;
    let before = read(&*ledger).await.revoked;
    drop(ledger);
    assert_eq!(read(&SqliteLedger::open(folder.path()).unwrap()).await.revoked, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_token_comes_of_a_revoked_one_in_a_database() {
    let server = Postgres::start();
    let config = PostgresConfig::new(&server.database(), Some(PASSWORD.into()), None).unwrap();
    let ledger = PostgresLedger::open(config).await.unwrap();
    ledger.create_realm(realm(), vec![]).await.unwrap();
    race("database", Arc::new(ledger), 4_000).await;
}

/// Bytes of the file once its log is in it.
async fn bytes(folder: &Path, ledger: SqliteLedger) -> u64 {
    ledger.compact().await.unwrap();
    drop(ledger);
    std::fs::metadata(folder.join("ledger.db")).unwrap().len()
}

/// A fleet that wakes up at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_devices_renew_at_once() {
    const DEVICES: u64 = 1_000;
    const WRITERS: u64 = 64;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(folder.path()).unwrap());
    ledger.create_realm(realm(), vec![]).await.unwrap();
    enroll(&*ledger, DEVICES).await;
    let rounds: u64 = if std::env::var_os("REVOCAST_LONG").is_some() { 20 } else { 2 };
    // As long as those that are drawn at random, in base64url.
    let jti = |number, round| format!("{number:011}{round:011}");
    let begun = Instant::now();
    for round in 0..rounds {
        let writers = (0..WRITERS).map(|writer| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                for number in (writer..DEVICES).step_by(WRITERS as usize) {
                    let renewal =
                        (round > 0).then(|| Renewal { counter: Some(round), parent: Some(jti(number, round - 1)) });
                    let order = order(&jti(number, round), device(number), renewal);
                    let issued = ledger.issue(id(), NOW, order).await.unwrap();
                    assert_eq!(issued, Issuance::Issued { sequence: None });
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    }
    let (tokens, took) = (rounds * DEVICES, begun.elapsed());
    println!("{tokens} tokens issued by {WRITERS} writers in {took:.2?}: {:.0}/s", tokens as f64 / took.as_secs_f64());
    assert!(took < Duration::from_secs(10) * rounds as u32, "{took:?}");
    assert_eq!(ledger.coverage(id()).await.unwrap().registered, tokens);

    let bare = tempfile::tempdir().unwrap();
    let empty = SqliteLedger::open(bare.path()).unwrap();
    empty.create_realm(realm(), vec![]).await.unwrap();
    enroll(&empty, DEVICES).await;
    let without = bytes(bare.path(), empty).await;
    let with = bytes(folder.path(), Arc::into_inner(ledger).unwrap()).await;
    println!("{} bytes on disk for each token, registration and indexes included", (with - without) / tokens);
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    jti: u8,
    days: u64,
    vouched: bool,
}

impl Ask {
    fn request(self) -> Request {
        let exp = NOW.plus(self.days * 24 * 60 * 60);
        revoke(&format!("t{}", self.jti), if self.vouched { Expiry::Vouched(exp) } else { Expiry::Claimed(exp) })
    }
}

/// Asks for all of it, every request twice or more, as clients do that lost an answer.
async fn repeated(ledger: &dyn Ledger, asks: &[Ask], again: &[usize]) -> (Vec<Receipt>, Vec<(Sequence, Statement)>) {
    ledger.create_realm(realm(), vec![]).await.unwrap();
    let mut receipts = Vec::new();
    for (index, ask) in asks.iter().enumerate() {
        receipts.extend(ledger.append(id(), NOW, vec![ask.request(); 2]).await.unwrap());
        let pair = &receipts[receipts.len() - 2..];
        assert!(!pair[1].recorded && (pair[0].sequence, pair[0].exp) == (pair[1].sequence, pair[1].exp), "{pair:?}");
        // One from before, much later: nothing is new, whatever has come since.
        let head = ledger.head(id()).await.unwrap();
        let earlier = asks[again[index % again.len()] % (index + 1)];
        let later = NOW.plus(3_600);
        let receipt = ledger.append(id(), later, vec![earlier.request()]).await.unwrap()[0];
        assert!(!receipt.recorded && ledger.head(id()).await.unwrap() == head, "{earlier:?}: {receipt:?}");
    }
    // Of all the ends that were asked for, and of what was made of them, the latest holds.
    for jti in asks.iter().map(|ask| ask.jti).collect::<BTreeSet<_>>() {
        let ends = asks.iter().filter(|ask| ask.jti == jti).map(|ask| {
            let exp = NOW.plus(ask.days * 24 * 60 * 60);
            if ask.vouched { exp } else { exp.max(realm().latest_exp(NOW)) }
        });
        let asked = asks.iter().filter(|ask| ask.jti == jti).map(|ask| NOW.plus(ask.days * 24 * 60 * 60)).max();
        let entry = ledger.token(id(), format!("t{jti}")).await.unwrap().entry.unwrap();
        let Statement::Revoke { exp, .. } = entry.statement else { panic!("{entry:?}") };
        assert!(Some(exp) >= asked && Some(exp) <= ends.max(), "t{jti} is kept until {exp}");
    }
    let entries = ledger.scan(id(), Sequence(0), usize::MAX).await.unwrap();
    (receipts, entries.into_iter().map(|entry| (entry.sequence, entry.statement)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_repeated_request_changes_nothing_and_the_later_end_holds(
        asks in prop::collection::vec((0..6_u8, 0..40_u64, any::<bool>()), 1..25),
        again in prop::collection::vec(any::<usize>(), 1..25),
    ) {
        let asks: Vec<_> = asks.into_iter().map(|(jti, days, vouched)| Ask { jti, days, vouched }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let in_memory = runtime.block_on(repeated(&MemoryLedger::new(), &asks, &again));
        let in_file = runtime.block_on(repeated(&SqliteLedger::open(folder.path()).unwrap(), &asks, &again));
        prop_assert_eq!(in_memory, in_file);
    }
}
