//! Prints what a registered token costs on disk, how fast tokens are registered, how fast all of them are seen, and how
//! long an epoch with exceptions takes when one in a hundred is revoked.
//!
//! `cargo bench -p revocast-benches --bench registry`, with a number of tokens behind `--` for another one than a million.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use revocast_benches::{Keys, SALT};
use revocast_core::limits::ISSUED_BATCH_MAX;
use revocast_core::{
    Fingerprint, FingerprintFunction, Fingerprinter, Now, RealmId, RealmKey, Sequence, SigningKey, Term, UnixTime,
    Width,
};
use revocast_server::ledger::{
    Action, Entry, Expiry, Issued, Ledger as _, Realm, Request, SqliteLedger, Statement, Visitor,
};
use revocast_server::publisher::{Publisher, Settings, Signer};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// Tokens unless a number is given.
const TOKENS: usize = 1_000_000;

/// The best of these counts.
const ROUNDS: usize = 3;

fn main() {
    let tokens = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(TOKENS);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(measure(tokens));
}

async fn measure(tokens: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let realm = RealmId::new("bench").expect("a name");
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    let ledger = SqliteLedger::open(folder.path()).expect("a ledger");
    ledger.create_realm(Realm::new(realm, "i", fingerprinter, NOW), vec![]).await.expect("a realm");

    let keys = Keys::new(11, tokens);
    let texts = keys.texts();
    let (started, mut longest, mut lap) = (Instant::now(), Duration::ZERO, Instant::now());
    for (index, part) in texts.chunks(ISSUED_BATCH_MAX).enumerate() {
        let issued =
            part.iter().map(|text| Issued { jti: (*text).to_owned(), iat: NOW, exp: NOW.plus(86_400), sub: None });
        let issued = issued.collect();
        let begun = Instant::now();
        ledger.register(realm, NOW, issued).await.expect("registered");
        longest = longest.max(begun.elapsed());
        let done = (index + 1) * ISSUED_BATCH_MAX;
        if done.is_multiple_of(tokens.div_ceil(5).next_multiple_of(ISSUED_BATCH_MAX)) {
            println!("{done:>10} registered, the last at {:>8.0} rows/s", rate(tokens / 5, lap.elapsed()));
            lap = Instant::now();
        }
    }
    println!(
        "{tokens:>10} registered at {:.0} rows/s; the longest of {ISSUED_BATCH_MAX} took {longest:.1?}",
        rate(tokens, started.elapsed())
    );

    let begun = Instant::now();
    ledger.expire(realm, NOW).await.expect("nothing expires");
    println!("{:>10} a call that looks for expired tokens took {:.1?}", "", begun.elapsed());
    for parts in [1, 2, 4] {
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            best = best.min(visit(&ledger, realm, parts, tokens).await);
        }
        println!("{:>10} seen in {parts} parts in {best:.2?}: {:.1} million rows/s", "", rate(tokens, best) / 1e6);
    }
    let ledger = Arc::new(ledger);
    epoch(&ledger, realm, &texts).await;
    drop(ledger);
    let bytes = size(&folder.path().join("ledger.db"));
    println!("{:>10} {bytes} bytes on disk, {:.1} a token", "", bytes as f64 / tokens as f64);
    let begun = Instant::now();
    drop(SqliteLedger::open(folder.path()).expect("it opens again"));
    println!("{:>10} opened, checked and closed again in {:.2?}", "", begun.elapsed());
}

/// Builds an epoch as the publisher does, while somebody goes on revoking.
async fn epoch(ledger: &Arc<SqliteLedger>, id: RealmId, texts: &[&str]) {
    let revoked = texts.len() / 100;
    let entries = texts.iter().take(revoked).enumerate().map(|(index, text)| Entry {
        sequence: Sequence(index as u64 + 1),
        at: NOW,
        statement: Statement::Revoke { jti: (*text).to_owned(), exp: NOW.plus(86_400) },
        reason: None,
        actor: String::new(),
    });
    let realm = ledger.realm(id).await.expect("the realm");
    let signer = Signer { content: SigningKey::from_seed([3; 32]) };
    let now = Now::new(NOW.millis(), Duration::ZERO);
    let head = (Term(1), Sequence(revoked as u64));
    let mut publisher =
        Publisher::load(realm, Settings::default(), signer, now, head, vec![], entries).expect("a history");
    let coverage = ledger.cover(id, NOW, NOW).await.expect("a coverage");
    publisher.cover(coverage);

    // Somebody revokes all the while, one token after the other, each durable before the next.
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::clone(ledger));
    let appending = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (mut count, mut longest) = (0_u32, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let exp = Expiry::Vouched(NOW.plus(86_400));
                let action = Action::Revoke { jti: format!("while-{count}"), exp };
                let request = Request { action, reason: None, actor: "bench".to_owned() };
                let begun = Instant::now();
                runtime.block_on(stopped.append(id, NOW, vec![request])).expect("an entry");
                longest = longest.max(begun.elapsed());
                count += 1;
            }
            (count, longest)
        }
    });

    let begun = Instant::now();
    let draft = publisher.draft(now).expect("a draft").expect("an epoch is due");
    let filtered = Arc::new(draft.filter(&coverage, || SALT).expect("a filter"));
    let filter_took = begun.elapsed();
    let (found, finds) = mpsc::channel();
    let visitors = (0..2).map(|_| {
        let (filtered, found) = (Arc::clone(&filtered), found.clone());
        Box::new(move |tokens: &[(Fingerprint, UnixTime)]| {
            let needed = tokens.iter().filter(|(fingerprint, exp)| filtered.needs_exception(*fingerprint, *exp));
            found.send(needed.map(|(fingerprint, _)| *fingerprint).collect::<Vec<_>>()).is_ok()
        }) as Visitor
    });
    ledger.visit_registered(id, visitors.collect()).await.expect("a visit");
    drop(found);
    let excepted: Vec<Fingerprint> = finds.iter().flatten().collect();
    let (visited, count) = (begun.elapsed(), excepted.len());
    let filtered = Arc::into_inner(filtered).expect("the visitors are gone");
    let built = filtered.build(&coverage, excepted).expect("an epoch");
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (appended, longest) = appending.join().expect("a thread that ends");
    println!(
        "{:>10} {revoked} revoked: filter after {filter_took:.2?}, {count} exceptions found after {visited:.2?}, all built, \
         proven and sealed after {took:.2?}",
        ""
    );
    println!("{:>10} meanwhile {appended} revocations were recorded, the slowest in {longest:.1?}", "");
    publisher.install(now, built);
    println!("{:>10} {}", "", publisher.choice().expect("a choice"));
}

async fn visit(ledger: &SqliteLedger, realm: RealmId, parts: usize, tokens: usize) -> Duration {
    let seen = Arc::new(AtomicU64::new(0));
    let visitors = (0..parts).map(|_| {
        let seen = Arc::clone(&seen);
        Box::new(move |batch: &[_]| {
            seen.fetch_add(batch.len() as u64, Ordering::Relaxed);
            true
        }) as Visitor
    });
    let begun = Instant::now();
    ledger.visit_registered(realm, visitors.collect()).await.expect("a visit");
    let took = begun.elapsed();
    assert_eq!(seen.load(Ordering::Relaxed), tokens as u64, "all of them, once");
    took
}

fn rate(rows: usize, took: Duration) -> f64 {
    rows as f64 / took.as_secs_f64()
}

fn size(path: &Path) -> u64 {
    path.metadata().expect("a file").len()
}
