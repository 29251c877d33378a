//! Prints how many revocations a second become durable, single ones from many clients and many in few calls: through our
//! API, through our ledger, through nothing but the same `SQLite` tables, and in a Redis denylist that is fsynced as well.
//! What HTTP alone costs is seen on the same tables behind the same HTTP library, which asks nobody who they are and
//! publishes nothing.
//!
//! `cargo bench -p revocast-benches --bench ledger`; `REVOCAST_REDIS` names a `redis-server` that is not in the path.
//! `-- single` or `-- bulk` measures one of the two, with the name of an opponent (`bare`, `ledger`, `behind`, `api`,
//! `redis`) that one alone, for a profile. All write to one disk, in one run, by turns; the figures are medians
//! over the rounds. The clients are part of the process, so what they cost is taken from the two cores as well.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::{Listener as _, ListenerExt as _};
use axum::{Json, Router};
use revocast_benches::Keys;
use revocast_core::{FingerprintFunction, Fingerprinter, RealmId, RealmKey, UnixTime, Width};
use revocast_server::clock::SystemClock;
use revocast_server::config::Choices;
use revocast_server::keys::Keys as ServerKeys;
use revocast_server::ledger::{Action, Expiry, Ledger, Realm, Request, SqliteLedger};
use revocast_server::server::Server;
use rusqlite::{Connection, OpenFlags, params};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// Clients that revoke one token after the other.
const CLIENTS: usize = 64;

/// Each opponent is measured this often, for so long.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);

/// What they are called on the command line, and in the table.
const NAMES: [(&str, &str); OPPONENTS] = [
    ("bare", "bare SQLite"),
    ("ledger", "our ledger"),
    ("behind", "bare SQLite behind HTTP"),
    ("api", "our API"),
    ("redis", "Redis, appendfsync always"),
];
const OPPONENTS: usize = 5;

/// Rows of a bulk import, and how many go into one transaction.
const ROWS: usize = 100_000;
const BATCH: usize = 10_000;

/// Calls of a bulk import under way at a time, over HTTP: one is parsed while another is written.
const CALLS: usize = 2;

/// As many as a group of ours may have.
const GROUP_MAX: usize = 1_024;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        if wanted("single", &["single", "bulk"]) {
            single().await;
        }
        if wanted("bulk", &["single", "bulk"]) {
            bulk().await;
        }
    });
}

/// Whether the command line names this one of these, or none of them.
fn wanted(name: &str, among: &[&str]) -> bool {
    let named: Vec<String> = std::env::args().filter(|word| among.contains(&word.as_str())).collect();
    named.is_empty() || named.iter().any(|word| word == name)
}

/// Measures an opponent, if it is wanted.
async fn by_turns(rates: &mut [Vec<f64>; OPPONENTS], opponent: usize, rate: impl Future<Output = f64>) {
    if wanted(NAMES[opponent].0, &NAMES.map(|(word, _)| word)) {
        rates[opponent].push(rate.await);
    }
}

/// Single revocations, each durable before its client asks for the next.
async fn single() {
    let (bare, ours, served, redis) =
        (Bare::start().await, Ours::start().await, Served::start().await, Redis::start().await);
    let behind = Behind::start().await;
    let mut rates: [Vec<f64>; OPPONENTS] = Default::default();
    for round in 0..ROUNDS {
        // Drawn before anything is measured.
        let keys: Vec<_> =
            (0..CLIENTS).map(|client| Arc::new(Keys::new((round * CLIENTS + client) as u64, 40_000))).collect();
        let name = |client: usize| Arc::clone(&keys[client]);
        by_turns(&mut rates, 0, round_of(|client| bare.clone().revoke(name(client)))).await;
        by_turns(&mut rates, 1, round_of(|client| ours.clone().revoke(name(client)))).await;
        by_turns(&mut rates, 2, round_of(|client| behind.door().revoke(name(client)))).await;
        by_turns(&mut rates, 3, round_of(|client| served.door().revoke(name(client)))).await;
        by_turns(&mut rates, 4, round_of(|client| redis.door().revoke(name(client)))).await;
    }
    println!(
        "single revocations/s, {CLIENTS} clients, each waits for its answer; median of {ROUNDS} rounds of {ROUND:?}"
    );
    report(rates);
    served.stop().await;
}

/// Many revocations in few calls.
async fn bulk() {
    let (bare, ours, served, redis) =
        (Bare::start().await, Ours::start().await, Served::start().await, Redis::start().await);
    let behind = Behind::start().await;
    let mut rates: [Vec<f64>; OPPONENTS] = Default::default();
    for round in 0..ROUNDS {
        let keys = Keys::new(1_000_000 + round as u64, ROWS);
        by_turns(&mut rates, 0, rate(bare.import(&keys))).await;
        by_turns(&mut rates, 1, rate(ours.import(&keys))).await;
        by_turns(&mut rates, 2, rate(behind.door().import(&keys))).await;
        by_turns(&mut rates, 3, rate(served.door().import(&keys))).await;
        by_turns(&mut rates, 4, rate(redis.door().import(&keys))).await;
    }
    println!(
        "bulk import, rows/s: {ROWS} rows, {BATCH} in a transaction; median of {ROUNDS} rounds, each on top of the last"
    );
    report(rates);
    served.stop().await;
}

/// Rows a second of an import.
async fn rate(import: impl Future<Output = Duration>) -> f64 {
    ROWS as f64 / import.await.as_secs_f64()
}

fn report(mut rates: [Vec<f64>; OPPONENTS]) {
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let median = |rates: &[f64]| rates.get(rates.len() / 2).copied();
    let bare = median(&rates[0]);
    for ((_, name), rates) in NAMES.iter().zip(&rates) {
        let (Some(median), Some(least), Some(most)) = (median(rates), rates.first(), rates.last()) else { continue };
        let share = bare.map(|bare| format!(", {:>4.0} % of bare", 100.0 * median / bare)).unwrap_or_default();
        println!("  {name:<28} {median:>8.0} ({least:.0} to {most:.0}){share}");
    }
}

/// Lets all clients revoke until the round is over; returns the rate.
async fn round_of<F>(client: impl Fn(usize) -> F) -> f64
where
    F: Future<Output = usize> + Send + 'static,
{
    let begun = Instant::now();
    let mut clients: JoinSet<usize> = (0..CLIENTS).map(client).collect();
    let mut total = 0;
    while let Some(count) = clients.join_next().await {
        total += count.expect("a client");
    }
    total as f64 / begun.elapsed().as_secs_f64()
}

/// Revokes the keys one after the other until the round is over.
async fn until_over<F: Future<Output = ()>>(keys: Arc<Keys>, mut revoke: impl FnMut(String) -> F) -> usize {
    let begun = Instant::now();
    let mut count = 0;
    for key in keys.texts() {
        if begun.elapsed() >= ROUND {
            return count;
        }
        revoke(key.to_owned()).await;
        count += 1;
    }
    panic!("{count} keys are too few for one client");
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

fn exp() -> u64 {
    now() + 86_400
}

fn id() -> RealmId {
    RealmId::new("bench").expect("a name")
}

async fn founded(folder: &Path) -> SqliteLedger {
    let ledger = SqliteLedger::open(folder).expect("a ledger");
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    let realm = Realm::new(id(), "i", fingerprinter, UnixTime::from_secs(now()));
    ledger.create_realm(realm, vec![]).await.expect("a realm");
    ledger
}

// ---- nothing but the tables -----------------------------------------------------------------------

/// The same file, written by a thread that takes what has queued up and commits it together. It looks nothing up.
#[derive(Clone)]
struct Bare {
    queue: SyncSender<(Vec<String>, oneshot::Sender<()>)>,
    _folder: Arc<tempfile::TempDir>,
}

impl Bare {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.db");
        drop(founded(folder.path()).await);
        let (queue, calls) = sync_channel(4_096);
        thread::spawn(move || write_bare(&path, &calls));
        Self { queue, _folder: Arc::new(folder) }
    }

    async fn commit(&self, jtis: Vec<String>) {
        let (reply, durable) = oneshot::channel();
        self.queue.try_send((jtis, reply)).expect("room in the queue");
        durable.await.expect("a commit");
    }

    async fn revoke(self, keys: Arc<Keys>) -> usize {
        until_over(keys, |key| self.commit(vec![key])).await
    }

    async fn import(&self, keys: &Keys) -> Duration {
        let begun = Instant::now();
        for part in keys.texts().chunks(BATCH) {
            self.commit(part.iter().map(|&key| key.to_owned()).collect()).await;
        }
        begun.elapsed()
    }
}

fn write_bare(path: &Path, calls: &Receiver<(Vec<String>, oneshot::Sender<()>)>) {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).expect("the file");
    for (pragma, value) in [("journal_mode", "WAL"), ("synchronous", "FULL"), ("cache_size", "-32768")] {
        connection.pragma_update(None, pragma, value).expect("a setting");
    }
    // Whatever further columns there are hold a number that says nothing.
    let columns: Vec<String> = connection
        .prepare("SELECT name FROM pragma_table_info('entries')")
        .and_then(|mut names| names.query_map([], |row| row.get(0))?.collect())
        .expect("the columns");
    let named = ["realm", "sequence", "at", "kind", "subject_kind", "subject", "value", "reason", "actor"];
    let others: Vec<&String> = columns.iter().filter(|column| !named.contains(&column.as_str())).collect();
    let other_names: String = others.iter().flat_map(|column| [", ", column.as_str()]).collect();
    let other_values = ", 4294967296".repeat(others.len());
    let insert = format!(
        "INSERT INTO entries ({}{other_names}) VALUES (1, ?1, ?2, 1, 4, ?3, ?4, NULL, 'bench'{other_values})",
        named.join(", ")
    );
    let mut sequence = 0_i64;
    while let Ok(first) = calls.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX
            && let Ok(next) = calls.try_recv()
        {
            group.push(next);
        }
        let transaction = connection.transaction().expect("a transaction");
        {
            let mut insert = transaction.prepare_cached(&insert).expect("a statement");
            for jti in group.iter().flat_map(|(jtis, _)| jtis) {
                sequence += 1;
                insert.execute(params![sequence, now().cast_signed(), jti, exp().cast_signed()]).expect("a row");
            }
            let head = "UPDATE realms SET head = ?1, stored = ?1 WHERE number = 1";
            transaction.prepare_cached(head).expect("a statement").execute([sequence]).expect("a head");
        }
        transaction.commit().expect("a commit");
        for (_, reply) in group {
            let _ = reply.send(());
        }
    }
}

// ---- the tables behind HTTP -----------------------------------------------------------------------

/// The tables alone, with the paths and bodies of our API in front of them, and nothing else of it.
struct Behind {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Deserialize)]
struct Revoked {
    jti: String,
    #[expect(dead_code, reason = "read as the API reads it")]
    exp: u64,
}

#[derive(Deserialize)]
struct RevokedMany {
    revocations: Vec<Revoked>,
}

impl Behind {
    async fn start() -> Self {
        let bare = Bare::start().await;
        let one = async |State(bare): State<Bare>, Json(Revoked { jti, .. }): Json<Revoked>| {
            bare.commit(vec![jti]).await;
            (StatusCode::CREATED, Json(true))
        };
        let many = async |State(bare): State<Bare>, Json(RevokedMany { revocations }): Json<RevokedMany>| {
            bare.commit(revocations.into_iter().map(|revoked| revoked.jti).collect()).await;
            (StatusCode::CREATED, Json(true))
        };
        let router = Router::new()
            .route("/v1/realms/{realm}/revocations", post(one))
            .route("/v1/realms/{realm}/revocations/batch", post(many))
            .with_state(bare);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port").tap_io(|socket| {
            let _ = socket.set_nodelay(true);
        });
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, serving }
    }

    fn door(&self) -> Door {
        Door { address: self.address, token: "nobody asks".to_owned(), socket: None }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

// ---- our ledger -----------------------------------------------------------------------------------

/// The ledger as the server calls it.
#[derive(Clone)]
struct Ours {
    ledger: Arc<SqliteLedger>,
    _folder: Arc<tempfile::TempDir>,
}

impl Ours {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { ledger: Arc::new(founded(folder.path()).await), _folder: Arc::new(folder) }
    }

    async fn append(&self, jtis: Vec<String>) {
        let exp = Expiry::Vouched(UnixTime::from_secs(exp()));
        let requests = jtis
            .into_iter()
            .map(|jti| Request { action: Action::Revoke { jti, exp }, reason: None, actor: "bench".to_owned() })
            .collect();
        let receipts = self.ledger.append(id(), UnixTime::from_secs(now()), requests).await.expect("receipts");
        assert!(receipts.iter().all(|receipt| receipt.recorded), "it was there already");
    }

    async fn revoke(self, keys: Arc<Keys>) -> usize {
        until_over(keys, |key| self.append(vec![key])).await
    }

    async fn import(&self, keys: &Keys) -> Duration {
        let begun = Instant::now();
        for part in keys.texts().chunks(BATCH) {
            self.append(part.iter().map(|&key| key.to_owned()).collect()).await;
        }
        begun.elapsed()
    }
}

// ---- our API --------------------------------------------------------------------------------------

/// A whole server: API, ledger, publisher and broker in one process, publishing all the while.
struct Served {
    server: Server,
    token: String,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = folder.path().join("keys");
        ServerKeys::generate(&keys, UnixTime::from_secs(now())).expect("keys");
        let token = std::fs::read_to_string(keys.join("admin.token")).expect("a token").trim().to_owned();
        let config = Choices {
            listen: Some(([127, 0, 0, 1], 0).into()),
            data: Some(folder.path().join("data")),
            keys: Some(keys),
            embedded_broker: Some(([127, 0, 0, 1], 0).into()),
            ..Choices::default()
        };
        let config = config.check().expect("a configuration");
        let server = Server::start(config, Arc::new(SystemClock::new())).await.expect("a server");
        let started = Self { server, token, _folder: folder };
        let mut door = started.door();
        let realm = format!(r#"{{"name":"{}","issuer":"i"}}"#, id());
        door.ask("/v1/realms", &realm).await;
        started
    }

    fn door(&self) -> Door {
        Door { address: self.server.local_addr(), token: self.token.clone(), socket: None }
    }

    async fn stop(self) {
        self.server.stop().await;
    }
}

/// A client of HTTP that costs next to nothing: one connection that stays.
struct Door {
    address: SocketAddr,
    token: String,
    socket: Option<Wire>,
}

impl Door {
    async fn revoke(mut self, keys: Arc<Keys>) -> usize {
        let begun = Instant::now();
        let mut count = 0;
        for key in keys.texts() {
            if begun.elapsed() >= ROUND {
                return count;
            }
            self.ask(&format!("/v1/realms/{}/revocations", id()), &revocation(key)).await;
            count += 1;
        }
        panic!("{count} keys are too few for one client");
    }

    async fn import(self, keys: &Keys) -> Duration {
        let texts = keys.texts();
        let bodies = texts.chunks(BATCH).map(|part| {
            let revocations: Vec<String> = part.iter().map(|key| revocation(key)).collect();
            format!(r#"{{"revocations":[{}]}}"#, revocations.join(","))
        });
        let bodies: Vec<String> = bodies.collect();
        let (address, token) = (self.address, self.token);
        let begun = Instant::now();
        let mut calls = JoinSet::new();
        for call in 0..CALLS {
            let bodies: Vec<String> = bodies.iter().skip(call).step_by(CALLS).cloned().collect();
            let mut door = Self { address, token: token.clone(), socket: None };
            calls.spawn(async move {
                for body in bodies {
                    door.ask(&format!("/v1/realms/{}/revocations/batch", id()), &body).await;
                }
            });
        }
        while let Some(done) = calls.join_next().await {
            done.expect("all calls");
        }
        begun.elapsed()
    }

    /// Insists on 201.
    async fn ask(&mut self, path: &str, body: &str) {
        if self.socket.is_none() {
            self.socket = Some(Wire::connect(self.address).await);
        }
        let Some(socket) = &mut self.socket else { return };
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        socket.send(request.as_bytes()).await;
        let head = socket.until(b"\r\n\r\n").await;
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(head.starts_with("http/1.1 201"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        socket.skip(length.and_then(|length| length.trim().parse().ok()).expect("a length")).await;
    }
}

fn revocation(jti: &str) -> String {
    format!(r#"{{"jti":"{jti}","exp":{}}}"#, exp())
}

// ---- Redis ----------------------------------------------------------------------------------------

/// A private Redis that fsyncs its log before it answers.
struct Redis {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Redis {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let program = std::env::var_os("REVOCAST_REDIS").unwrap_or_else(|| "redis-server".into());
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--dir"]);
        command.arg(folder.path()).args(["--appendonly", "yes", "--appendfsync", "always"]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server");
        let redis = Self { process, address, _folder: folder };
        let begun = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "Redis does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        redis
    }

    const fn door(&self) -> RedisDoor {
        RedisDoor { address: self.address }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct RedisDoor {
    address: SocketAddr,
}

impl RedisDoor {
    async fn revoke(self, keys: Arc<Keys>) -> usize {
        let mut socket = Wire::connect(self.address).await;
        let begun = Instant::now();
        let mut count = 0;
        for key in keys.texts() {
            if begun.elapsed() >= ROUND {
                return count;
            }
            socket.send(set(key).as_bytes()).await;
            assert_eq!(socket.until(b"\r\n").await, b"+OK\r\n");
            count += 1;
        }
        panic!("{count} keys are too few for one client");
    }

    async fn import(self, keys: &Keys) -> Duration {
        let texts = keys.texts();
        let pipelines: Vec<String> =
            texts.chunks(BATCH).map(|part| part.iter().map(|key| set(key)).collect()).collect();
        let mut socket = Wire::connect(self.address).await;
        let begun = Instant::now();
        for pipeline in pipelines {
            socket.send(pipeline.as_bytes()).await;
            socket.skip(BATCH * b"+OK\r\n".len()).await;
        }
        begun.elapsed()
    }
}

/// A denylist as most people keep it.
fn set(jti: &str) -> String {
    format!("*5\r\n$3\r\nSET\r\n${}\r\n{jti}\r\n$1\r\n1\r\n$2\r\nEX\r\n$5\r\n86400\r\n", jti.len())
}

// ---- bytes ----------------------------------------------------------------------------------------

struct Wire {
    socket: TcpStream,
    /// Received and not looked at yet.
    buffer: Vec<u8>,
}

impl Wire {
    async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("a connection");
        socket.set_nodelay(true).expect("a socket");
        Self { socket, buffer: Vec::with_capacity(1 << 16) }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("it takes bytes");
    }

    async fn receive(&mut self) {
        let received = self.socket.read_buf(&mut self.buffer).await.expect("it answers");
        assert!(received > 0, "it closed the connection");
    }

    /// Everything up to the end of this mark.
    async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(begin) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return self.buffer.drain(..begin + mark.len()).collect();
            }
            self.receive().await;
        }
    }

    async fn skip(&mut self, mut bytes: usize) {
        loop {
            let here = bytes.min(self.buffer.len());
            self.buffer.drain(..here);
            bytes -= here;
            if bytes == 0 {
                return;
            }
            self.receive().await;
        }
    }
}
