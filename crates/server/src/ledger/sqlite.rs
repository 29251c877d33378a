//! The embedded ledger: one `SQLite` file in the data folder, nothing to install.
//!
//! One thread owns the only connection that writes; it takes what has queued up, puts it into one
//! transaction and answers after the commit (group commit). A second thread reads, so that a long
//! scan never holds up an append. WAL with `synchronous=FULL`: an answered request survives a
//! power cut. After a failed write that is not plainly "disk full" nothing is written any more,
//! since memory and disk may then differ; a restart reads what the disk really holds.

mod issuance;
mod layouts;
mod registry;
mod whole;

use std::collections::{BTreeMap, btree_map};
use std::fs::{self, File, TryLockError};
use std::future::ready;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use revocast_core::{DeviceId, FingerprintFunction, Fingerprinter, RealmId, RealmKey, Sequence, Term, UnixTime, Width};
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::FromSql;
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, Transaction, params};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::registry::Sweep;
use super::calls::{Answer, Ask, Call, GROUP_REQUESTS_MAX, QUEUE_CALLS_MAX, Reply};
use super::columns::{self, Columns, KIND_CUTOFF, RealmRow, SUBJECT_JTI, entry_sum, object_sum, signed};
use super::postgres::{PostgresError, PostgresUrlError};
use super::rules::{self, Counters, Halt, Last, Shelf, Subject};
use super::{
    Bid, Cause, Compaction, Coverage, Device, Dismissal, Enrollment, Entry, Founding, Health, Issuance, Issued,
    IssuedToken, Leadership, Ledger, LedgerError, LedgerFuture, NewDevice, Object, Order, Realm, Receipt, Registration,
    Request, Sink, Source, Statement, TokenRecord, Visitor, lineage,
};

/// Marks a file as ours: "RVCL".
const APPLICATION_ID: i32 = 0x5256_434c;

/// Layout of the tables. A newer one is refused, never guessed at; layouts 1, without a registry, 2, without checksums,
/// and 3, without devices and the tokens of our issuer, are brought up to it.
const LAYOUT: i32 = 4;

const DATABASE_FILE: &str = "ledger.db";
const LOCK_FILE: &str = "revocast.lock";

/// Entries forgotten in one transaction, so that appends get their turn in between: at 16 µs each
/// (three trees change, two of them in random places) an append waits some 30 ms at most.
const EXPIRE_PIECE: usize = 2_000;

/// The log is moved into the file once it has so many pages (4 KiB each): what a crash leaves to be read at the next
/// start stays small.
const LOG_PAGES_MAX: i32 = 4_000;

/// Pages that the writing thread holds, in KiB; taken only as they are needed.
const WRITER_CACHE_KIB: i32 = 32 * 1024;

const SCHEMA: &str = "
CREATE TABLE realms (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    issuer TEXT NOT NULL UNIQUE,
    function INTEGER NOT NULL,
    key BLOB NOT NULL,
    width INTEGER NOT NULL,
    leeway INTEGER NOT NULL,
    max_token_lifetime INTEGER NOT NULL,
    created INTEGER NOT NULL,
    term INTEGER NOT NULL,
    head INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    cutoffs INTEGER NOT NULL,
    registered INTEGER NOT NULL DEFAULT 0,
    covered_until INTEGER,
    sum INTEGER NOT NULL DEFAULT 0,
    devices INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    refreshes INTEGER NOT NULL DEFAULT 0
) STRICT;

-- sum, here and elsewhere: see `ledger::columns`.
-- kind: 1 revoke, 2 reinstate, 3 cutoff, 4 lift, 5 resume.
-- subject_kind: 0 realm, 1 sub, 2 kid, 3 client, 4 jti, 5 none.
-- value: exp of 1 and 2, not_before of 3, term of 5.
CREATE TABLE entries (
    realm INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    subject_kind INTEGER NOT NULL,
    subject TEXT NOT NULL,
    value INTEGER NOT NULL,
    reason TEXT,
    actor TEXT NOT NULL,
    sum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (realm, sequence)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX entries_by_subject ON entries (realm, subject_kind, subject, sequence);
CREATE INDEX entries_by_exp ON entries (realm, value) WHERE kind IN (1, 2);

CREATE TABLE objects (
    realm INTEGER NOT NULL,
    address TEXT NOT NULL,
    bytes BLOB NOT NULL,
    sum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (realm, address)
) STRICT;
";

/// A ledger in a folder of its own.
#[derive(Debug)]
pub struct SqliteLedger {
    writes: Option<SyncSender<Write>>,
    reads: Option<SyncSender<Read>>,
    commits: watch::Sender<u64>,
    health: watch::Sender<Health>,
    threads: Vec<JoinHandle<()>>,
    /// The file, for visits: each has a connection of its own.
    path: PathBuf,
    visits: Mutex<Vec<JoinHandle<()>>>,
    /// Tells visits to end.
    closing: Arc<AtomicBool>,
    sweeps: Mutex<BTreeMap<RealmId, Sweep>>,
    // Held open, for the lock on it. Released by the system even after SIGKILL.
    _lock: File,
}

impl SqliteLedger {
    /// Opens the ledger in `folder`, or founds it there.
    ///
    /// Checks the whole file first: a ledger that lost something must not serve.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        make_folder(folder)?;
        let lock = lock(folder)?;
        let path = folder.join(DATABASE_FILE);
        if !path.try_exists().map_err(|source| OpenError::Io { path: path.clone(), source })? {
            found(folder, &path)?;
        }
        let mut writing = open_writer(&path)?;
        let log_is_long = Arc::new(AtomicBool::new(false));
        let is_long = Arc::clone(&log_is_long);
        let watch = move |_: &mut Wal, pages| {
            is_long.store(pages >= LOG_PAGES_MAX, Ordering::Relaxed);
            Ok(())
        };
        writing.wal_hook(Some(watch)).map_err(|error| open_error(&path, error))?;
        let reading = open_reader(&path)?;
        // The log has just come into being. `SQLite` asks for its name to be durable, and ignores the answer.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| OpenError::Io { path: folder.to_owned(), source })?;

        let commits = watch::Sender::new(0);
        let health = watch::Sender::new(Health::Good);
        let (writes, write_queue) = sync_channel(QUEUE_CALLS_MAX);
        let (reads, read_queue) = sync_channel(QUEUE_CALLS_MAX);
        let mut state = Writer { connection: writing, health: health.clone(), commits: commits.clone(), log_is_long };
        let threads = vec![
            spawn("ledger-writer", move || state.run(&write_queue))?,
            spawn("ledger-reader", move || read_all(&reading, &read_queue))?,
        ];
        Ok(Self {
            writes: Some(writes),
            reads: Some(reads),
            commits,
            health,
            threads,
            path,
            visits: Mutex::default(),
            closing: Arc::default(),
            sweeps: Mutex::default(),
            _lock: lock,
        })
    }

    fn write(&self, write: Write) -> Result<(), LedgerError> {
        send(self.writes.as_ref(), write)
    }

    /// A thread that reads on a connection of its own: the lock on the folder is given back only after it.
    fn joined_when_closed(&self, thread: JoinHandle<()>) {
        let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        visits.retain(|visit| !visit.is_finished());
        visits.push(thread);
    }

    /// Runs `work` in a write transaction of its own. It returns its value, and whether that is news.
    fn exclusive<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<(T, News)> + Send + 'static,
    ) -> LedgerFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.write(Write::Alone(Box::new(move |writer| {
            // Nobody listening any more is no reason not to do it.
            let _ = reply.send(writer.transact(work));
        })));
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> LedgerFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = send(
            self.reads.as_ref(),
            Box::new(move |connection: &Connection| {
                let _ = reply.send(work(connection).map_err(LedgerError::from));
            }) as Read,
        );
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }
}

impl Ledger for SqliteLedger {
    fn create_realm(&self, realm: Realm, objects: Vec<Object>) -> LedgerFuture<'_, Founding> {
        self.exclusive(move |transaction| {
            rules::check_realm(&realm)?;
            let by_id = find_realm(transaction, realm.id)?.map(|row| row.realm);
            let by_issuer = transaction
                .prepare_cached("SELECT id FROM realms WHERE issuer = ?1")?
                .query_row([&realm.issuer], |row| row.get::<_, String>(0))
                .optional()?
                .map(|id| realm_id(&id))
                .transpose()?;
            if let Some(realm) = rules::found(&realm, by_id, by_issuer)? {
                return Ok((Founding { realm, created: false }, News::No));
            }
            let row = RealmRow {
                number: transaction
                    .query_row("SELECT coalesce(max(number), 0) + 1 FROM realms", [], |row| row.get(0))?,
                realm: realm.clone(),
                counters: Counters::new(),
                coverage: Coverage::default(),
            };
            insert_realm(transaction, &row)?;
            put_objects(transaction, row.number, realm.id, objects)?;
            Ok((Founding { realm, created: true }, News::Yes))
        })
    }

    fn realms(&self) -> LedgerFuture<'_, Vec<Realm>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT_REALM} ORDER BY id"))?;
            let mut rows = statement.query([])?;
            let mut realms = Vec::new();
            while let Some(row) = rows.next()? {
                realms.push(realm_row(row)?.realm);
            }
            Ok(realms)
        })
    }

    fn realm(&self, realm: RealmId) -> LedgerFuture<'_, Realm> {
        self.read(move |connection| Ok(known_realm(connection, realm)?.realm))
    }

    fn append(&self, realm: RealmId, now: UnixTime, requests: Vec<Request>) -> LedgerFuture<'_, Vec<Receipt>> {
        let (reply, answer) = oneshot::channel();
        let sent = rules::check(&requests).and_then(|()| {
            let (ask, reply) = (Ask::Append(requests), Reply::Receipts(reply));
            self.write(Write::Call(Call { realm, now, ask, reply }))
        });
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn scan(&self, realm: RealmId, after: Sequence, limit: usize) -> LedgerFuture<'_, Vec<Entry>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let mut statement = connection.prepare_cached(&format!(
                "{SELECT_ENTRY} WHERE realm = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3"
            ))?;
            let mut rows = statement.query(params![number, signed(after.0), signed(limit as u64)])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(entry(realm, row)?);
            }
            Ok(entries)
        })
    }

    fn head(&self, realm: RealmId) -> LedgerFuture<'_, (Term, Sequence)> {
        self.read(move |connection| {
            let counters = known_realm(connection, realm)?.counters;
            Ok((counters.term, counters.head))
        })
    }

    fn register(&self, realm: RealmId, now: UnixTime, issued: Vec<Issued>) -> LedgerFuture<'_, Registration> {
        Box::pin(self.registered(realm, now, issued))
    }

    fn cover(&self, realm: RealmId, now: UnixTime, until: UnixTime) -> LedgerFuture<'_, Coverage> {
        Box::pin(self.covered(realm, now, until))
    }

    fn coverage(&self, realm: RealmId) -> LedgerFuture<'_, Coverage> {
        self.read(move |connection| Ok(known_realm(connection, realm)?.coverage))
    }

    fn visit_registered(&self, realm: RealmId, visitors: Vec<Visitor>) -> LedgerFuture<'_, Coverage> {
        Box::pin(self.visit(realm, visitors))
    }

    fn expire(&self, realm: RealmId, horizon: UnixTime) -> LedgerFuture<'_, usize> {
        Box::pin(async move {
            let mut dropped = 0;
            loop {
                let piece = self
                    .exclusive(move |transaction| Ok((expire_piece(transaction, realm, horizon)?, News::No)))
                    .await?;
                dropped += piece;
                if piece < EXPIRE_PIECE {
                    break;
                }
            }
            let piece = move |transaction: &Transaction<'_>| {
                Ok((issuance::expire_piece(transaction, realm, horizon)?, News::No))
            };
            while !self.exclusive(piece).await? {}
            self.sweep(realm, horizon).await?;
            Ok(dropped)
        })
    }

    fn resume(&self, realm: RealmId, now: UnixTime, beyond: Sequence) -> LedgerFuture<'_, (Term, Sequence)> {
        self.exclusive(move |transaction| {
            let mut row = known_realm(transaction, realm)?;
            let entry = rules::resume(realm, &mut row.counters, now, beyond)?;
            insert_entry(transaction, row.number, realm, &entry)?;
            update_realm(transaction, &row)?;
            Ok(((row.counters.term, row.counters.head), News::Yes))
        })
    }

    fn objects(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Object>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let mut statement =
                connection.prepare_cached(&format!("{SELECT_OBJECT} WHERE realm = ?1 ORDER BY address"))?;
            let mut rows = statement.query([number])?;
            let mut objects = Vec::new();
            while let Some(row) = rows.next()? {
                objects.push(object(realm, row)?);
            }
            Ok(objects)
        })
    }

    fn object(&self, realm: RealmId, address: String) -> LedgerFuture<'_, Option<Object>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let mut statement =
                connection.prepare_cached(&format!("{SELECT_OBJECT} WHERE realm = ?1 AND address = ?2"))?;
            let mut rows = statement.query((number, &address))?;
            rows.next()?.map(|row| object(realm, row)).transpose()
        })
    }

    fn store_objects(
        &self,
        realm: RealmId,
        term: Term,
        puts: Vec<Object>,
        deletes: Vec<String>,
    ) -> LedgerFuture<'_, ()> {
        let (reply, answer) = oneshot::channel();
        let sent = self.write(Write::Store(Store { realm, term, puts, deletes, reply }));
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn token(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, TokenRecord> {
        self.read(move |connection| {
            let row = known_realm(connection, realm)?;
            let mut statement = connection.prepare_cached(&format!(
                "{SELECT_ENTRY} INDEXED BY entries_by_subject
                 WHERE realm = ?1 AND subject_kind = {SUBJECT_JTI} AND subject = ?2 ORDER BY sequence DESC LIMIT 1"
            ))?;
            let mut rows = statement.query(params![row.number, jti])?;
            let entry = rows.next()?.map(|found| entry(realm, found)).transpose()?;
            let issued = registry::token(connection, &row, jti)?;
            Ok(TokenRecord { entry, issued })
        })
    }

    fn cutoffs(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Entry>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let mut statement = connection.prepare_cached(&format!(
                "{SELECT_ENTRY} AS one WHERE realm = ?1 AND subject_kind < {SUBJECT_JTI} AND kind = {KIND_CUTOFF}
                 AND NOT EXISTS (SELECT 1 FROM entries AS later INDEXED BY entries_by_subject
                     WHERE later.realm = ?1 AND later.subject_kind = one.subject_kind
                     AND later.subject = one.subject AND later.sequence > one.sequence)
                 ORDER BY sequence"
            ))?;
            let mut rows = statement.query([number])?;
            let mut cutoffs = Vec::new();
            while let Some(row) = rows.next()? {
                cutoffs.push(entry(realm, row)?);
            }
            Ok(cutoffs)
        })
    }

    /// The lock on the folder is the lease: whoever has this ledger open leads.
    fn lead(&self, bid: Bid) -> LedgerFuture<'_, Leadership> {
        Box::pin(ready(bid.check().map(|()| Leadership::Leading { took_over: false })))
    }

    fn step_down(&self, _server: String) -> LedgerFuture<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn dump(&self, sink: Sink) -> LedgerFuture<'_, ()> {
        Box::pin(self.show_all(sink))
    }

    fn restore(&self, source: Source) -> LedgerFuture<'_, ()> {
        self.exclusive(move |transaction| Ok((whole::restore(transaction, source)?, News::Yes)))
    }

    fn compact(&self) -> LedgerFuture<'_, Compaction> {
        Box::pin(self.tidy())
    }

    fn enroll(&self, realm: RealmId, now: UnixTime, device: NewDevice) -> LedgerFuture<'_, Enrollment> {
        Box::pin(async move {
            device.check()?;
            self.decided(realm, move |rows, realm, counters, _| lineage::enroll(rows, realm, counters, now, device))
                .await
        })
    }

    fn device(&self, realm: RealmId, id: DeviceId) -> LedgerFuture<'_, Option<Device>> {
        self.read(move |connection| issuance::find_device(connection, &known_realm(connection, realm)?, id))
    }

    fn devices(&self, realm: RealmId, after: Option<DeviceId>, limit: usize) -> LedgerFuture<'_, Vec<Device>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let select = connection.prepare_cached(&format!(
                "{} WHERE realm = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
                issuance::SELECT_DEVICE
            ))?;
            let after = after.as_ref().map_or("", DeviceId::as_str);
            issuance::all(select, params![number, after, signed(limit as u64)], realm, issuance::device)
        })
    }

    fn dismiss(
        &self,
        realm: RealmId,
        now: UnixTime,
        id: DeviceId,
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Dismissal> {
        Box::pin(async move {
            rules::check_words(0, reason.as_deref(), &actor)?;
            self.decided(realm, move |rows, realm, counters, _| {
                let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                lineage::dismiss(rows, counters, &cause, id)
            })
            .await
        })
    }

    fn withdraw(
        &self,
        realm: RealmId,
        now: UnixTime,
        refresh: [u8; 32],
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Option<Sequence>> {
        Box::pin(async move {
            rules::check_words(0, reason.as_deref(), &actor)?;
            self.decided(realm, move |rows, realm, counters, _| {
                let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                lineage::withdraw(rows, counters, &cause, &refresh)
            })
            .await
        })
    }

    fn issue(&self, realm: RealmId, now: UnixTime, order: Order) -> LedgerFuture<'_, Issuance> {
        let (reply, answer) = oneshot::channel();
        let (ask, reply) = (Ask::Issue(Box::new(order)), Reply::Issuance(reply));
        let sent = self.write(Write::Call(Call { realm, now, ask, reply }));
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn find_issued(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, Option<IssuedToken>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            issuance::find_token(connection, number, realm, &jti)
        })
    }

    fn expiring(
        &self,
        realm: RealmId,
        from: UnixTime,
        until: UnixTime,
        limit: usize,
    ) -> LedgerFuture<'_, Vec<(DeviceId, String, UnixTime)>> {
        self.read(move |connection| {
            let number = known_realm(connection, realm)?.number;
            let select = connection.prepare_cached(&format!(
                "{} INDEXED BY devices_by_end WHERE realm = ?1 AND held_until >= ?2 AND held_until < ?3 AND barred = 0
                 AND held_until IS NOT NULL ORDER BY held_until, id LIMIT ?4",
                issuance::SELECT_DEVICE
            ))?;
            let values = params![number, signed(from.secs()), signed(until.secs()), signed(limit as u64)];
            let devices = issuance::all(select, values, realm, issuance::device)?;
            let held = |device: Device| Some((device.id, device.holds?, device.held_until?));
            Ok(devices.into_iter().filter_map(held).collect())
        })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }
}

impl Drop for SqliteLedger {
    fn drop(&mut self) {
        // The threads end when their queues do. Waiting for them keeps the lock until the
        // connections are closed. The one that writes is closed last: only then does SQLite move
        // the log into the file, so that the file alone is the ledger.
        self.closing.store(true, Ordering::Release);
        for visit in self.visits.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = visit.join();
        }
        self.reads = None;
        if let Some(reader) = self.threads.pop() {
            let _ = reader.join();
        }
        self.writes = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Why a ledger could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Two servers on one folder would give one number to two entries. Stop the other one.
    #[error("another revocast serve uses this folder: {}", .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder or file cannot be used; the operator's permissions, most often.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is a database of something else.
    #[error("{} is not a revocast ledger (application id {found:#010x})", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: i32,
    },
    /// The file was written by a newer release. Use that one.
    #[error("{} has layout {found}; this release knows layouts up to {LAYOUT}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i32,
    },
    /// The file lost or changed some of its bytes. Restore a backup, or import an export, and resume beyond what was
    /// published.
    #[error("{} is damaged: {what}; restore a backup, or an export with `revocast ledger import`", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first finding.
        what: String,
    },
    /// The database does not do what durability needs, such as WAL on a network file system.
    #[error("{} cannot be made durable: {pragma} is {found} instead of {wanted}", .path.display())]
    NotDurable {
        /// The file.
        path: PathBuf,
        /// The setting.
        pragma: &'static str,
        /// What it stayed at.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A database of several servers cannot be used.
    #[error("the ledger's database cannot be used")]
    Postgres(#[from] PostgresError),
    /// Its URL cannot be.
    #[error("the URL of the ledger's database cannot be used")]
    Url(#[from] PostgresUrlError),
    /// The certificates that may vouch for it cannot be.
    #[error("ledger_ca cannot be used")]
    Roots(#[source] Cause),
    /// The database failed otherwise.
    #[error("{} cannot be opened", .path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
}

type Outcome<T> = Result<T, Halt<rusqlite::Error>>;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Whether a transaction recorded something that others wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    Yes,
    No,
}

enum Write {
    Call(Call),
    Store(Store),
    Alone(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// Published objects to keep and to drop, if the realm is still in `term`.
struct Store {
    realm: RealmId,
    term: Term,
    puts: Vec<Object>,
    deletes: Vec<String>,
    reply: oneshot::Sender<Result<(), LedgerError>>,
}

impl From<rusqlite::Error> for Halt<rusqlite::Error> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error)
    }
}

impl From<LedgerError> for Halt<rusqlite::Error> {
    fn from(error: LedgerError) -> Self {
        Self::Refused(error)
    }
}

fn send<T>(queue: Option<&SyncSender<T>>, item: T) -> Result<(), LedgerError> {
    queue.ok_or(LedgerError::Closed)?.try_send(item).map_err(|error| match error {
        TrySendError::Full(_) => LedgerError::Overloaded { waiting: QUEUE_CALLS_MAX },
        TrySendError::Disconnected(_) => LedgerError::Closed,
    })
}

fn read_all(connection: &Connection, queue: &Receiver<Read>) {
    while let Ok(read) = queue.recv() {
        read(connection);
    }
}

/// The thread that writes.
struct Writer {
    connection: Connection,
    /// Stopped after a failure that memory and disk may have survived differently; never good again.
    health: watch::Sender<Health>,
    commits: watch::Sender<u64>,
    /// The log has as many pages as it should.
    log_is_long: Arc<AtomicBool>,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Write>) {
        while let Ok(first) = queue.recv() {
            let mut next = Some(first);
            while let Some(write) = next.take() {
                match write {
                    Write::Alone(work) => work(self),
                    group @ (Write::Call(_) | Write::Store(_)) => next = self.group(group, queue),
                }
                self.shorten_log();
            }
        }
    }

    /// Moves a long log into the file, once everybody is answered.
    ///
    /// `SQLite` would do so within the commit, and say nothing when it fails. After a failed fsync here the file may
    /// lack what the log would then no longer hold.
    fn shorten_log(&mut self) {
        if !self.log_is_long.swap(false, Ordering::Relaxed) || *self.health.borrow() != Health::Good {
            return;
        }
        match self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            Ok(()) => {}
            // The log holds it all; the next commit tries again.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                tracing::error!(error = %error, "the disk of the ledger is full; its log stays long");
            }
            Err(error) => {
                tracing::error!(error = %error, "the ledger's log cannot be moved into its file; it stops writing");
                self.stop(error.to_string());
            }
        }
    }

    /// Writes nothing any more, not even the log into the file when it is closed: the next start reads what the disk
    /// really holds.
    fn stop(&mut self, cause: String) {
        if let Err(error) = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
            tracing::warn!(%error, "the ledger's log will be moved into its file all the same");
        }
        self.health.send_replace(Health::Stopped { cause });
    }

    /// Decides and stores what has queued up, in one transaction; returns what ended the group, if anything.
    ///
    /// With the entries of one group go the objects that tell of the group before: publishing costs no fsync of its own.
    fn group(&mut self, first: Write, queue: &Receiver<Write>) -> Option<Write> {
        let (mut replies, mut calls, mut requests_taken) = (Vec::new(), Vec::new(), 0);
        let (mut store_replies, mut calls_to_store) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        loop {
            match next.take() {
                Some(Write::Call(Call { realm, now, ask, reply })) => {
                    requests_taken += ask.requests();
                    replies.push(reply);
                    calls.push((realm, now, ask));
                }
                Some(Write::Store(Store { realm, term, puts, deletes, reply })) => {
                    requests_taken += 1;
                    store_replies.push(reply);
                    calls_to_store.push((realm, term, puts, deletes));
                }
                other @ (Some(Write::Alone(_)) | None) => {
                    next = other;
                    break;
                }
            }
            if requests_taken >= GROUP_REQUESTS_MAX {
                break;
            }
            next = queue.try_recv().ok();
        }

        let alone = calls.len() == 1 && calls_to_store.is_empty();
        let results = self.transact(|transaction| {
            let (answers, news) = decide_all(transaction, calls, alone)?;
            let mut outcomes = Vec::with_capacity(calls_to_store.len());
            for (realm, term, puts, deletes) in calls_to_store {
                outcomes.push(match store(transaction, realm, term, puts, deletes) {
                    Err(Halt::Refused(error)) => Err(error),
                    Err(halt @ Halt::Storage(_)) => return Err(halt),
                    Ok(()) => Ok(()),
                });
            }
            Ok(((answers, outcomes), news))
        });
        // Whoever does not listen any more needs no answer.
        match results {
            Ok((answers, outcomes)) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    reply.send(answer);
                }
                for (reply, outcome) in store_replies.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                for reply in replies {
                    reply.send(Err(error.clone()));
                }
                for reply in store_replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
        next
    }

    /// One durable transaction. Decides what a failure means for everything after it.
    fn transact<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> Outcome<(T, News)>) -> Result<T, LedgerError> {
        if *self.health.borrow() != Health::Good {
            return Err(LedgerError::Poisoned);
        }
        let outcome = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let outcome = outcome.map_err(Halt::Storage).and_then(|transaction| {
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
        match outcome {
            Ok((value, news)) => {
                if news == News::Yes {
                    self.commits.send_modify(|count| *count += 1);
                }
                Ok(value)
            }
            Err(Halt::Refused(error)) => Err(self.unless_stuck(error)),
            // Nothing of the transaction reached the log as committed, no fsync failed, and the
            // rollback ended it: the one failure after which going on is safe.
            Err(Halt::Storage(error)) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                tracing::error!(error = %error, "the disk of the ledger is full");
                Err(self.unless_stuck(LedgerError::StorageFull(Arc::new(error))))
            }
            Err(Halt::Storage(error)) => {
                tracing::error!(error = %error, "the ledger's storage failed; it stops writing");
                self.stop(error.to_string());
                Err(LedgerError::Storage(Arc::new(error)))
            }
        }
    }

    /// The error, unless the rollback that should have preceded it did not happen.
    fn unless_stuck(&mut self, error: LedgerError) -> LedgerError {
        if self.connection.is_autocommit() {
            error
        } else {
            self.stop(format!("no rollback was possible after: {error}"));
            LedgerError::Poisoned
        }
    }
}

/// Runs the calls of a group one after the other; a refused one leaves no trace among the others.
///
/// One that is alone is undone with the whole transaction. A savepoint would keep a copy of each page that it changes: a
/// sixth of what a large call takes.
fn decide_all(
    transaction: &Transaction<'_>,
    calls: Vec<(RealmId, UnixTime, Ask)>,
    alone: bool,
) -> Outcome<(Vec<Result<Answer, LedgerError>>, News)> {
    let mut realms: BTreeMap<RealmId, RealmRow> = BTreeMap::new();
    let mut answers = Vec::with_capacity(calls.len());
    let mut shelf = rows_of(transaction)?;
    let mut news = News::No;
    for (id, now, ask) in calls {
        if let btree_map::Entry::Vacant(place) = realms.entry(id)
            && let Some(row) = find_realm(transaction, id)?
        {
            place.insert(row);
        }
        let Some(row) = realms.get_mut(&id) else {
            answers.push(Err(LedgerError::RealmUnknown { realm: id }));
            continue;
        };
        // A single request that is refused has written nothing, unless it takes others with it.
        let undone_apart = !alone
            && match &ask {
                Ask::Append(requests) => requests.len() > 1 || row.counters.tokens > 0,
                Ask::Issue(_) => true,
            };
        if undone_apart {
            transaction.prepare_cached("SAVEPOINT call")?.execute([])?;
        }
        let (mut counters, mut coverage) = (row.counters, row.coverage);
        shelf.turn_to(row);
        match ask.decide(&mut shelf, &row.realm, &mut counters, &mut coverage, now) {
            Ok(answer) => {
                if counters.head != row.counters.head {
                    news = News::Yes;
                }
                (row.counters, row.coverage) = (counters, coverage);
                answers.push(Ok(answer));
            }
            Err(Halt::Refused(error)) if alone => return Err(Halt::Refused(error)),
            Err(Halt::Refused(error)) => {
                if undone_apart {
                    transaction.prepare_cached("ROLLBACK TO call")?.execute([])?;
                }
                answers.push(Err(error));
            }
            Err(Halt::Storage(halt)) => return Err(halt),
        }
        if undone_apart {
            transaction.prepare_cached("RELEASE call")?.execute([])?;
        }
    }
    for row in realms.values() {
        update_realm(transaction, row)?;
    }
    Ok((answers, news))
}

/// Keeps and drops objects. What it refuses it refuses before it has written anything.
fn store(
    transaction: &Transaction<'_>,
    realm: RealmId,
    term: Term,
    puts: Vec<Object>,
    deletes: Vec<String>,
) -> Outcome<()> {
    let RealmRow { number, counters, .. } = known_realm(transaction, realm)?;
    if counters.term != term {
        return Err(LedgerError::TermChanged { realm, current: counters.term, claimed: term }.into());
    }
    let mut delete = transaction.prepare_cached("DELETE FROM objects WHERE realm = ?1 AND address = ?2")?;
    for address in deletes {
        delete.execute(params![number, address])?;
    }
    put_objects(transaction, number, realm, puts)
}

/// The rows of one realm, inside a transaction.
struct Rows<'a> {
    connection: &'a Connection,
    last: CachedStatement<'a>,
    insert: CachedStatement<'a>,
    known: CachedStatement<'a>,
    realm: Option<Turned>,
}

/// The realm whose rows are meant.
#[derive(Clone, Copy)]
struct Turned {
    number: i64,
    id: RealmId,
    fingerprinter: Fingerprinter,
    /// It had registered tokens when the transaction began.
    registers: bool,
}

/// The rows of no realm yet.
fn rows_of<'a>(transaction: &'a Transaction<'_>) -> Outcome<Rows<'a>> {
    Ok(Rows {
        connection: transaction,
        // Named, since the planner prefers to walk the table backward: ORDER BY ... LIMIT looks cheap.
        last: transaction.prepare_cached(&format!(
            "{SELECT_ENTRY} INDEXED BY entries_by_subject
             WHERE realm = ?1 AND subject_kind = ?2 AND subject = ?3 ORDER BY sequence DESC LIMIT 1"
        ))?,
        insert: transaction.prepare_cached(INSERT_ENTRY)?,
        known: transaction.prepare_cached(&format!("{} {}", registry::SELECT_ISSUED, registry::IN_PLACE))?,
        realm: None,
    })
}

impl Rows<'_> {
    const fn turn_to(&mut self, row: &RealmRow) {
        let RealmRow { number, realm, coverage, .. } = row;
        self.realm = Some(Turned {
            number: *number,
            id: realm.id,
            fingerprinter: realm.fingerprinter,
            registers: coverage.registered > 0,
        });
    }

    /// No realm is turned to only before the first call.
    fn turned(&self) -> Outcome<Turned> {
        self.realm.ok_or_else(|| damaged("no realm is meant".into()))
    }
}

impl Shelf for Rows<'_> {
    type Error = Halt<rusqlite::Error>;

    fn last(&mut self, subject: Subject<'_>) -> Outcome<Option<Last>> {
        let (kind, text) = match subject {
            Subject::Token(jti) => (SUBJECT_JTI, jti),
            Subject::Scope(scope) => (scope.kind(), scope.text()),
        };
        let Turned { number, id, .. } = self.turned()?;
        let mut rows = self.last.query(params![number, kind, text])?;
        let Some(found) = rows.next()?.map(|row| entry(id, row)).transpose()? else {
            return Ok(None);
        };
        let columns = Columns::of(&found.statement);
        // The index is a copy that no checksum covers.
        match columns::standing(columns.kind, columns.value) {
            Some(standing) if (columns.subject_kind, columns.subject) == (kind, text) => {
                Ok(Some(Last { sequence: found.sequence, standing }))
            }
            Some(_) | None => Err(damaged(format!("the index of subjects names entry {} of another", found.sequence))),
        }
    }

    fn registered(&mut self, jti: &str) -> Outcome<Option<UnixTime>> {
        // Many realms have no registry, and need not pay for a lookup.
        if self.turned()?.registers { self.exp_of_jti(jti) } else { Ok(None) }
    }

    fn put(&mut self, entry: &Entry) -> Outcome<()> {
        let Turned { number, id, .. } = self.turned()?;
        put_entry(&mut self.insert, number, id, entry)
    }
}

const INSERT_ENTRY: &str = "INSERT INTO entries
    (realm, sequence, at, kind, subject_kind, subject, value, reason, actor, sum)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

const SELECT_ENTRY: &str = "SELECT sequence, at, kind, subject_kind, subject, value, reason, actor, sum FROM entries";

const SELECT_OBJECT: &str = "SELECT address, bytes, sum FROM objects";

fn insert_entry(connection: &Connection, number: i64, realm: RealmId, entry: &Entry) -> Outcome<()> {
    put_entry(&mut connection.prepare_cached(INSERT_ENTRY)?, number, realm, entry)
}

fn put_entry(insert: &mut CachedStatement<'_>, number: i64, realm: RealmId, entry: &Entry) -> Outcome<()> {
    let Columns { kind, subject_kind, subject, value } = Columns::of(&entry.statement);
    insert.execute(params![
        number,
        signed(entry.sequence.0),
        signed(entry.at.secs()),
        kind,
        subject_kind,
        subject,
        signed(value),
        entry.reason,
        entry.actor,
        entry_sum(realm, entry),
    ])?;
    Ok(())
}

/// A column, which a damaged file may hold in another type.
fn column<T: FromSql>(row: &Row<'_>, index: usize, what: &str) -> Outcome<T> {
    row.get(index).map_err(|error| match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => damaged(format!("{what}: {error}")),
        other => Halt::Storage(other),
    })
}

fn entry(realm: RealmId, row: &Row<'_>) -> Outcome<Entry> {
    let entry = unchecked_entry(realm, row)?;
    if entry_sum(realm, &entry) == column::<i64>(row, 8, "a checksum")? {
        Ok(entry)
    } else {
        Err(damaged(format!("entry {} of realm {realm} does not match its checksum", entry.sequence)))
    }
}

fn unchecked_entry(realm: RealmId, row: &Row<'_>) -> Outcome<Entry> {
    let sequence = Sequence(unsigned(column(row, 0, "a sequence")?, "a sequence")?);
    let at = UnixTime::from_secs(unsigned(column(row, 1, "a time")?, "a time")?);
    let (kind, subject_kind) = (column::<u8>(row, 2, "a kind")?, column::<u8>(row, 3, "a kind")?);
    let value = unsigned(column(row, 5, "a value")?, "a value")?;
    let statement = columns::statement(kind, subject_kind, column(row, 4, "a subject")?, value).ok_or_else(|| {
        damaged(format!("entry {sequence} of realm {realm} has kind {kind} about a subject of kind {subject_kind}"))
    })?;
    Ok(Entry { sequence, at, statement, reason: column(row, 6, "a reason")?, actor: column(row, 7, "an actor")? })
}

fn object(realm: RealmId, row: &Row<'_>) -> Outcome<Object> {
    let object = Object { address: column(row, 0, "an address")?, bytes: column(row, 1, "an object")? };
    if object_sum(realm, &object) == column::<i64>(row, 2, "a checksum")? {
        Ok(object)
    } else {
        Err(damaged(format!("object {} of realm {realm} does not match its checksum", object.address)))
    }
}

const SELECT_REALM: &str = "SELECT number, id, issuer, function, key, width, leeway, max_token_lifetime, created,
    term, head, stored, cutoffs, registered, covered_until, sum, devices, tokens, refreshes FROM realms";

fn find_realm(connection: &Connection, realm: RealmId) -> Outcome<Option<RealmRow>> {
    let mut statement = connection.prepare_cached(&format!("{SELECT_REALM} WHERE id = ?1"))?;
    let mut rows = statement.query([realm.as_str()])?;
    rows.next()?.map(realm_row).transpose()
}

fn known_realm(connection: &Connection, realm: RealmId) -> Outcome<RealmRow> {
    find_realm(connection, realm)?.ok_or(Halt::Refused(LedgerError::RealmUnknown { realm }))
}

fn realm_row(row: &Row<'_>) -> Outcome<RealmRow> {
    let found = unchecked_realm_row(row)?;
    if found.sum() == column::<i64>(row, 15, "a checksum")? {
        Ok(found)
    } else {
        Err(damaged(format!("the row of realm {} does not match its checksum", found.realm.id)))
    }
}

fn unchecked_realm_row(row: &Row<'_>) -> Outcome<RealmRow> {
    let id = realm_id(&column::<String>(row, 1, "a realm")?)?;
    let bad = |what: &str| damaged(format!("realm {id} has a {what} that does not exist"));
    let number = |index, what: &str| unsigned(column(row, index, what)?, what);
    let function = FingerprintFunction::from_number(column(row, 3, "a function")?);
    let key: [u8; 16] = column(row, 4, "a key")?;
    let width = Width::from_bits(column(row, 5, "a width")?).ok_or_else(|| bad("fingerprint width"))?;
    let span = |index| number(index, "a span").map(std::time::Duration::from_secs);
    let realm = Realm {
        id,
        issuer: column(row, 2, "an issuer")?,
        fingerprinter: Fingerprinter::new(function.ok_or_else(|| bad("fingerprint function"))?, RealmKey(key), width),
        leeway: span(6)?,
        max_token_lifetime: span(7)?,
        created: UnixTime::from_secs(number(8, "a time")?),
    };
    let counters = Counters {
        term: Term(u32::try_from(number(9, "a term")?).map_err(|_| bad("term"))?),
        head: Sequence(number(10, "a sequence")?),
        stored: number(11, "a count")?,
        cutoffs: number(12, "a count")?,
        devices: number(16, "a count")?,
        tokens: number(17, "a count")?,
        refreshes: number(18, "a count")?,
    };
    let until = column::<Option<i64>>(row, 14, "a time")?.map(|until| unsigned(until, "a time")).transpose()?;
    let coverage = Coverage { registered: number(13, "a count")?, covered_until: until.map(UnixTime::from_secs) };
    Ok(RealmRow { number: column(row, 0, "a number")?, realm, counters, coverage })
}

fn insert_realm(connection: &Connection, row: &RealmRow) -> Outcome<()> {
    let RealmRow { number, realm, counters, coverage } = row;
    connection.execute(
        "INSERT INTO realms (number, id, issuer, function, key, width, leeway, max_token_lifetime, created,
         term, head, stored, cutoffs, registered, covered_until, sum, devices, tokens, refreshes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
        params![
            number,
            realm.id.as_str(),
            realm.issuer,
            realm.fingerprinter.function() as u8,
            realm.fingerprinter.key().0,
            realm.fingerprinter.width().bits(),
            signed(realm.leeway.as_secs()),
            signed(realm.max_token_lifetime.as_secs()),
            signed(realm.created.secs()),
            counters.term.0,
            signed(counters.head.0),
            signed(counters.stored),
            signed(counters.cutoffs),
            signed(coverage.registered),
            coverage.covered_until.map(|until| signed(until.secs())),
            row.sum(),
            signed(counters.devices),
            signed(counters.tokens),
            signed(counters.refreshes),
        ],
    )?;
    Ok(())
}

fn put_objects(connection: &Connection, number: i64, realm: RealmId, objects: Vec<Object>) -> Outcome<()> {
    let mut put = connection.prepare_cached(
        "INSERT INTO objects (realm, address, bytes, sum) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (realm, address) DO UPDATE SET bytes = excluded.bytes, sum = excluded.sum",
    )?;
    for object in objects {
        put.execute(params![number, object.address, object.bytes, object_sum(realm, &object)])?;
    }
    Ok(())
}

/// Writes what a realm's row counts.
fn update_realm(connection: &Connection, row: &RealmRow) -> Outcome<()> {
    let RealmRow { number, counters, coverage, .. } = row;
    connection
        .prepare_cached(
            "UPDATE realms SET term = ?2, head = ?3, stored = ?4, cutoffs = ?5, registered = ?6, covered_until = ?7,
             sum = ?8, devices = ?9, tokens = ?10, refreshes = ?11 WHERE number = ?1",
        )?
        .execute(params![
            number,
            counters.term.0,
            signed(counters.head.0),
            signed(counters.stored),
            signed(counters.cutoffs),
            signed(coverage.registered),
            coverage.covered_until.map(|until| signed(until.secs())),
            row.sum(),
            signed(counters.devices),
            signed(counters.tokens),
            signed(counters.refreshes),
        ])?;
    Ok(())
}

/// Forgets what it has looked at itself: neither a damaged index nor a damaged `exp` ends a revoke early.
fn expire_piece(transaction: &Transaction<'_>, realm: RealmId, horizon: UnixTime) -> Outcome<usize> {
    let mut row = known_realm(transaction, realm)?;
    // Oldest sequence first within one `exp`: a revoke goes no later than what undoes it.
    let mut select = transaction.prepare_cached(&format!(
        "{SELECT_ENTRY} INDEXED BY entries_by_exp WHERE realm = ?1 AND kind IN (1, 2) AND value <= ?2
         ORDER BY value, sequence LIMIT ?3"
    ))?;
    let mut delete = transaction.prepare_cached("DELETE FROM entries WHERE realm = ?1 AND sequence = ?2")?;
    let mut sequences = Vec::new();
    let mut rows = select.query(params![row.number, signed(horizon.secs()), signed(EXPIRE_PIECE as u64)])?;
    while let Some(found) = rows.next()? {
        let Entry { sequence, statement, .. } = entry(realm, found)?;
        match statement {
            Statement::Revoke { exp, .. } | Statement::Reinstate { exp, .. } if exp <= horizon => {
                sequences.push(signed(sequence.0));
            }
            _ => return Err(damaged(format!("the index of expiry names entry {sequence}, which does not expire yet"))),
        }
    }
    for sequence in &sequences {
        delete.execute(params![row.number, sequence])?;
    }
    if !sequences.is_empty() {
        row.counters.stored = row.counters.stored.saturating_sub(sequences.len() as u64);
        update_realm(transaction, &row)?;
    }
    Ok(sequences.len())
}

fn realm_id(text: &str) -> Outcome<RealmId> {
    RealmId::new(text).map_err(|error| damaged(format!("a realm is named {text:?}: {error}")))
}

fn unsigned(number: i64, what: &str) -> Outcome<u64> {
    u64::try_from(number).map_err(|_| damaged(format!("{what} is negative: {number}")))
}

fn damaged(what: String) -> Halt<rusqlite::Error> {
    Halt::Refused(LedgerError::Damaged { what })
}

fn make_folder(folder: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt as _;

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| OpenError::Io { path: folder.to_owned(), source })
}

fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK_FILE);
    let file = private(File::options().create(true).truncate(false).write(true))
        .open(&path)
        .map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Makes an empty ledger beside its final name and moves it there when it is complete, so that an
/// empty or half-made file under that name is known to be damage and never taken for "new".
fn found(folder: &Path, path: &Path) -> Result<(), OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    for leftover in ["ledger.db-wal", "ledger.db-shm"] {
        let leftover = folder.join(leftover);
        if leftover.try_exists().map_err(io(&leftover))? {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                what: format!("it is missing, but {} is there", leftover.display()),
            });
        }
    }
    let draft = folder.join("ledger.db.new");
    for stale in [draft.clone(), folder.join("ledger.db.new-journal")] {
        match fs::remove_file(&stale) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OpenError::Io { path: stale, source }),
        }
    }
    // SQLite gives its own files the mode of this one.
    let file = private(File::options().create_new(true).write(true)).open(&draft).map_err(io(&draft))?;
    let write_schema = || -> rusqlite::Result<()> {
        let mut connection = Connection::open_with_flags(&draft, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.execute_batch(registry::SCHEMA)?;
        transaction.execute_batch(issuance::SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", LAYOUT)?;
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)
    };
    write_schema().map_err(|error| open_error(path, error))?;
    file.sync_all().map_err(io(&draft))?;
    fs::rename(&draft, path).map_err(io(path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let fail = |error| open_error(path, error);
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(fail)?;

    let length = fs::metadata(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?.len();
    if length == 0 {
        return Err(OpenError::Damaged { path: path.to_owned(), what: "it is empty".into() });
    }
    let found: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(fail)?;
    if found != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned(), found });
    }
    let layout: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fail)?;
    if layout > LAYOUT {
        return Err(OpenError::Newer { path: path.to_owned(), found: layout });
    }

    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(fail)?;
    require(path, "journal_mode", mode.to_lowercase(), "wal")?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(fail)?;
    require(path, "synchronous", synchronous.to_string(), "2")?;
    connection.pragma_update(None, "trusted_schema", false).map_err(fail)?;
    // Issued tokens fall into random pages: a call of 2,000 changes as many, 8 MB of them. With SQLite's 2 MB they
    // would be written to the log before the commit, some of them twice.
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB).map_err(fail)?;
    keep_prepared(&connection).map_err(fail)?;

    let finding: String = thread::scope(|scope| {
        // Without it the check only takes longer.
        let _ = thread::Builder::new().name("ledger-reading".to_owned()).spawn_scoped(scope, || read_through(path));
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    })
    .map_err(fail)?;
    if finding != "ok" {
        return Err(OpenError::Damaged { path: path.to_owned(), what: finding });
    }
    layouts::advance(&mut connection, layout).map_err(|halt| match halt {
        Halt::Refused(LedgerError::Damaged { what }) => OpenError::Damaged { path: path.to_owned(), what },
        Halt::Refused(error) => OpenError::Storage { path: path.to_owned(), source: Arc::new(error) },
        Halt::Storage(error) => open_error(path, error),
    })?;
    Ok(connection)
}

/// Reads a file from front to back, so that it is in the system's memory. The check asks for its pages in the order of
/// the trees, and a disk gives them ten times as slowly one by one.
fn read_through(path: &Path) {
    // What cannot be read the check finds out.
    let _ = File::open(path).and_then(|file| io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut io::sink()));
}

fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|error| open_error(path, error))?;
    keep_prepared(&connection).map_err(|error| open_error(path, error))?;
    Ok(connection)
}

/// What is prepared once stays prepared.
///
/// Otherwise `SQLite` plans anew whenever a value is bound that it thinks might matter, such as a realm numbered 1: nearly
/// half of what a lookup took. How each statement goes about it is fixed by the indexes it names.
fn keep_prepared(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn require(path: &Path, pragma: &'static str, found: String, wanted: &'static str) -> Result<(), OpenError> {
    if found == wanted { Ok(()) } else { Err(OpenError::NotDurable { path: path.to_owned(), pragma, found, wanted }) }
}

fn open_error(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::Damaged { path, what: error.to_string() }
        }
        _ => OpenError::Storage { path, source: Arc::new(error) },
    }
}

/// Readable and writable by the owner alone: realm keys are in there.
fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;

    options.mode(0o600)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    thread::Builder::new().name(name.into()).spawn(work).map_err(|source| OpenError::Io { path: name.into(), source })
}

#[cfg(test)]
mod tests {
    use revocast_core::RealmKey;
    use rusqlite::StatementStatus;

    use super::super::{Action, Expiry};
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn id() -> RealmId {
        RealmId::new("a").unwrap()
    }

    async fn opened(folder: &Path) -> SqliteLedger {
        let ledger = SqliteLedger::open(folder).unwrap();
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
        ledger.create_realm(Realm::new(id(), "https://a.example", fingerprinter, NOW), Vec::new()).await.unwrap();
        ledger
    }

    async fn revoke(ledger: &SqliteLedger, jti: String) -> Result<Receipt, LedgerError> {
        let exp = Expiry::Vouched(NOW.plus(60));
        let request = Request { action: Action::Revoke { jti, exp }, reason: None, actor: "test".into() };
        Ok(ledger.append(id(), NOW, vec![request]).await?[0])
    }

    async fn allow_pages(ledger: &SqliteLedger, pages: u64) {
        ledger
            .exclusive(move |transaction| {
                transaction.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
                Ok(((), News::No))
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_refuses_loudly_and_recovers_with_room() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = opened(folder.path()).await;
        // SQLite raises this to what the file already has, so the next page is the last.
        allow_pages(&ledger, 1).await;
        let mut acknowledged = 0;
        let error = loop {
            match revoke(&ledger, format!("{acknowledged:0100}")).await {
                Ok(receipt) => acknowledged = receipt.sequence.0,
                Err(error) => break error,
            }
            assert!(acknowledged < 10_000, "the limit does not work");
        };
        assert!(matches!(error, LedgerError::StorageFull(_)), "{error}");
        assert!(matches!(revoke(&ledger, "other".into()).await, Err(LedgerError::StorageFull(_)) | Ok(_)));
        let head = ledger.head(id()).await.unwrap().1;

        allow_pages(&ledger, 1_000_000).await;
        let after = revoke(&ledger, "with room".into()).await.unwrap();
        assert_eq!(after.sequence, Sequence(head.0 + 1));
        let entries = ledger.scan(id(), Sequence(0), usize::MAX).await.unwrap();
        assert!(entries.iter().map(|entry| entry.sequence.0).eq(1..=after.sequence.0));
    }

    #[tokio::test]
    async fn after_a_failed_write_nothing_is_written_until_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = opened(folder.path()).await;
        revoke(&ledger, "before".into()).await.unwrap();
        let failed = ledger
            .exclusive(|_| -> Outcome<((), News)> {
                // What SQLite reports for a failed fsync (SQLITE_IOERR_FSYNC).
                let error = rusqlite::ffi::Error::new(1_034);
                Err(Halt::Storage(rusqlite::Error::SqliteFailure(error, None)))
            })
            .await;
        assert!(matches!(failed, Err(LedgerError::Storage(_))), "{failed:?}");
        assert!(matches!(revoke(&ledger, "after".into()).await, Err(LedgerError::Poisoned)));
        assert!(matches!(ledger.expire(id(), NOW).await, Err(LedgerError::Poisoned)));
        assert!(!ledger.is_writable());
        assert!(matches!(&*ledger.health().borrow(), Health::Stopped { cause } if !cause.is_empty()));
        // What is safe goes on.
        assert_eq!(ledger.head(id()).await.unwrap().1, Sequence(1));
        drop(ledger);

        let ledger = SqliteLedger::open(folder.path()).unwrap();
        assert_eq!(revoke(&ledger, "after".into()).await.unwrap().sequence, Sequence(2));
    }

    /// A realm numbered 1 is one of those that `SQLite` would plan anew for.
    #[tokio::test]
    async fn a_statement_stays_prepared_whatever_is_bound_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = opened(folder.path()).await;
        let prepared_anew = ledger.exclusive(|transaction| {
            let row = known_realm(transaction, id())?;
            assert_eq!(row.number, 1);
            let mut rows = rows_of(transaction)?;
            rows.turn_to(&row);
            for jti in ["a", "b", "c"] {
                let _ = rows.last(Subject::Token(jti))?;
            }
            Ok((rows.last.get_status(StatementStatus::RePrepare), News::No))
        });
        assert_eq!(prepared_anew.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = opened(folder.path()).await;
        revoke(&ledger, "t".into()).await.unwrap();
        ledger
            .exclusive(|transaction| {
                transaction.execute("UPDATE entries SET kind = 2", [])?;
                Ok(((), News::No))
            })
            .await
            .unwrap();
        let error = ledger.scan(id(), Sequence(0), 10).await.unwrap_err().to_string();
        let told = "the ledger is damaged: entry 1 of realm a does not match its checksum; `revocast ledger verify` ";
        assert!(error.starts_with(told), "{error}");
        assert!(matches!(revoke(&ledger, "t".into()).await, Err(LedgerError::Damaged { .. })));
    }
}
