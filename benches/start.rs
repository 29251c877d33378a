//! Prints what a server with many live revocations takes: memory, and the time until it serves and until all is published.
//!
//! `cargo bench -p revocast-benches --bench start -- 10000000`, a million unless a number is given. The ledger is filled by
//! one process and measured in others, so that nothing of the filling is in their memory.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use revocast_benches::Keys;
use revocast_core::limits::BATCH_REQUESTS_MAX;
use revocast_core::{FingerprintFunction, RealmId, UnixTime, Width};
use revocast_server::clock::SystemClock;
use revocast_server::config::Choices;
use revocast_server::keys::Keys as ServerKeys;
use revocast_server::ledger::{
    Action, Expiry, LEEWAY_DEFAULT, Ledger as _, MAX_TOKEN_LIFETIME_DEFAULT, Request, SqliteLedger,
};
use revocast_server::server::Server;
use revocast_server::service::NewRealm;

/// Revocations unless a number is given.
const REVOCATIONS: usize = 1_000_000;

/// How often a start is measured, besides the first, which publishes the first epoch: with the file in the system's
/// memory, and without it, as after the machine itself has started.
const STARTS: usize = 2;

/// Keys are drawn so many at a time.
const PART: usize = 1_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, folder, count] = arguments.as_slice() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (folder, count) = (Path::new(folder), count.parse().expect("a number"));
        match role.as_str() {
            "fill" => runtime.expect("a runtime").block_on(fill(folder, count)),
            _ => runtime.expect("a runtime").block_on(start(folder, count)),
        }
        return;
    }
    let count = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(REVOCATIONS);
    let folder = tempfile::tempdir().expect("a folder");
    let again = |role: &str| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(role).arg(folder.path()).arg(count.to_string());
        assert!(command.status().expect("a process").success(), "{role} failed");
    };
    again("start with nothing");
    again("fill");
    for _ in 0..=STARTS {
        again("start");
    }
    for _ in 0..STARTS {
        forget(&folder.path().join("data/ledger.db"));
        print!("from the disk: ");
        std::io::stdout().flush().expect("an output");
        again("start");
    }
}

/// Drops a file from the system's memory.
fn forget(path: &Path) {
    let file = File::open(path).expect("the ledger");
    file.sync_all().expect("it reaches the disk");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
}

fn id() -> RealmId {
    RealmId::new("bench").expect("a name")
}

fn now() -> UnixTime {
    UnixTime::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs())
}

async fn fill(folder: &Path, count: usize) {
    let ledger = SqliteLedger::open(&folder.join("data")).expect("a ledger");
    let begun = Instant::now();
    let exp = Expiry::Vouched(now().plus(7 * 86_400));
    for part in 0..count.div_ceil(PART) {
        let keys = Keys::new(part as u64, PART.min(count - part * PART));
        for batch in keys.texts().chunks(BATCH_REQUESTS_MAX) {
            let request = |jti: &&str| Request {
                action: Action::Revoke { jti: (*jti).to_owned(), exp },
                reason: None,
                actor: "bench".to_owned(),
            };
            ledger.append(id(), now(), batch.iter().map(request).collect()).await.expect("receipts");
        }
    }
    let took = begun.elapsed();
    drop(ledger);
    let bytes = std::fs::metadata(folder.join("data/ledger.db")).expect("a file").len();
    println!(
        "{count} revocations recorded at {:.0} rows/s; {:.1} bytes on disk each",
        count as f64 / took.as_secs_f64(),
        bytes as f64 / count as f64
    );
}

async fn start(folder: &Path, count: usize) {
    let begun = Instant::now();
    let keys = folder.join("keys");
    if !keys.exists() {
        ServerKeys::generate(&keys, now()).expect("keys");
    }
    let config = Choices {
        listen: Some(([127, 0, 0, 1], 0).into()),
        data: Some(folder.join("data")),
        keys: Some(keys),
        embedded_broker: Some(([127, 0, 0, 1], 0).into()),
        ..Choices::default()
    };
    let config = config.check().expect("a configuration");
    let server = Server::start(config, Arc::new(SystemClock::new())).await.expect("a server");
    let serving = begun.elapsed();
    let new = NewRealm {
        id: id(),
        issuer: "i".to_owned(),
        fingerprint: FingerprintFunction::Sha256,
        width: Width::W48,
        leeway: LEEWAY_DEFAULT,
        max_token_lifetime: MAX_TOKEN_LIFETIME_DEFAULT,
    };
    server.service().create_realm(new).await.expect("the realm");
    let asked = Instant::now();
    let (mut published, mut head) = (0, 1);
    let mut loaded = None;
    while published < head || loaded.is_none() {
        let status = server.service().status().await.expect("a status");
        if let Some(realm) = status.realms.first() {
            head = realm.head.0;
            published = realm.published.as_ref().map_or(0, |published| published.position.sequence.0);
            loaded =
                loaded.or_else(|| realm.published.as_ref().filter(|p| p.position.epoch.0 > 0).map(|_| begun.elapsed()));
        }
        assert!(asked.elapsed() < Duration::from_mins(10), "it is not published");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (resident, peak) = memory();
    println!(
        "{head} live: serves after {:.2} s, published after {:.2} s; {} MB resident ({:.1} bytes a revocation), {} MB at most",
        serving.as_secs_f64(),
        loaded.unwrap_or_default().as_secs_f64(),
        resident >> 20,
        resident as f64 / count.max(1) as f64,
        peak >> 20,
    );
    server.stop().await;
}

/// Resident bytes, now and at most.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    };
    (field("VmRSS:"), field("VmHWM:"))
}
