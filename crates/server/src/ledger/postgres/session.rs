//! Connections and transactions: what is tried again, what is given up, and what nobody can know.
//!
//! A transaction that did not reach its commit left nothing, whatever happened to the connection. A commit without an
//! answer may have happened: that is told as it is, since whoever asks again gets the truth.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresConfig;
use crate::ledger::{Cause, Health, LedgerError};

/// Connections that are kept: one writes groups, one hears of what others wrote, the rest read.
const CONNECTIONS: usize = 8;

/// How long one connection, or one statement, may take. Longer means that the server is frozen or cut off.
pub(super) const STATEMENT_PATIENCE: Duration = Duration::from_secs(10);

/// How long a request waits for a database that went away; a failover of the usual kind takes longer than that,
/// a restart does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Attempts at one transaction that others collide with.
const ATTEMPTS: u32 = 12;

/// Unit of the pauses between them; times the number of the attempt, times a random part.
const PAUSE: Duration = Duration::from_millis(8);

pub(super) type Outcome<T> = Result<T, Fault>;

/// Why something did not happen.
#[derive(Debug)]
pub(super) enum Fault {
    /// We refuse, for good.
    Refused(LedgerError),
    /// The database said or did something.
    Database(tokio_postgres::Error),
    /// No connection.
    Unreachable(Cause),
    /// No answer.
    Silent,
}

impl From<LedgerError> for Fault {
    fn from(error: LedgerError) -> Self {
        Self::Refused(error)
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

/// The database gave no answer in time.
#[derive(Clone, Copy, Debug, Error)]
#[error("the database gave no answer within {} s", STATEMENT_PATIENCE.as_secs())]
struct NoAnswer;

/// The database takes no writes: a standby, or one that somebody made read-only.
#[derive(Clone, Copy, Debug, Error)]
#[error("the database is read-only")]
pub(super) struct ReadOnly;

/// An error of the database as people read it: the message of the server stands in the cause.
#[derive(Debug)]
struct Told(tokio_postgres::Error);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_db_error(), self.0.source()) {
            (Some(error), _) => write!(f, "{} ({})", error.message(), error.code().code()),
            (None, Some(source)) => write!(f, "{}: {source}", self.0),
            (None, None) => self.0.fmt(f),
        }
    }
}

impl std::error::Error for Told {}

pub(super) fn told(error: tokio_postgres::Error) -> Cause {
    Arc::new(Told(error))
}

/// What a fault means before a commit was asked for.
enum Meaning {
    /// Somebody else was in the way: try again soon.
    Collision(LedgerError),
    /// The database is away: try again while patience lasts.
    Away(LedgerError),
    /// This is the answer.
    Final(LedgerError),
}

impl Fault {
    /// Whether the server told that it undid the transaction because of others.
    fn is_collision(&self) -> bool {
        matches!(self.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED))
    }

    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Database(error) => error.code(),
            Self::Refused(_) | Self::Unreachable(_) | Self::Silent => None,
        }
    }

    /// Whether a row was there already that this wanted to make.
    pub(super) fn is_duplicate(&self) -> bool {
        matches!(
            self.code(),
            Some(&SqlState::UNIQUE_VIOLATION | &SqlState::DUPLICATE_TABLE | &SqlState::DUPLICATE_OBJECT)
        )
    }

    /// Whether something that this reads does not exist.
    pub(super) fn is_missing_table(&self) -> bool {
        matches!(self.code(), Some(&SqlState::UNDEFINED_TABLE))
    }

    fn meaning(self) -> Meaning {
        let collision = self.is_collision();
        match self {
            Self::Refused(error) => Meaning::Final(error),
            Self::Unreachable(cause) => Meaning::Away(LedgerError::Away(cause)),
            Self::Silent => Meaning::Away(LedgerError::Away(Arc::new(NoAnswer))),
            Self::Database(error) => match error.code() {
                Some(_) if collision => Meaning::Collision(LedgerError::Away(told(error))),
                Some(&SqlState::DISK_FULL) => Meaning::Final(LedgerError::StorageFull(told(error))),
                Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => Meaning::Away(LedgerError::Away(Arc::new(ReadOnly))),
                // Class 08: connection; 53: resources; 57: an operator's doing.
                // 25P03: the transaction stood still for so long that the server undid it.
                Some(code) if ["08", "25P03", "53", "57"].iter().any(|class| code.code().starts_with(class)) => {
                    Meaning::Away(LedgerError::Away(told(error)))
                }
                Some(_) => Meaning::Final(LedgerError::Storage(told(error))),
                // The connection broke, or was closed.
                None => Meaning::Away(LedgerError::Away(told(error))),
            },
        }
    }

    /// As an answer to whoever asked.
    pub(super) fn into_error(self) -> LedgerError {
        match self.meaning() {
            Meaning::Collision(error) | Meaning::Away(error) | Meaning::Final(error) => error,
        }
    }
}

/// What a failed commit means.
enum Committed {
    /// It was undone: try again.
    Collision,
    /// It was undone, and this is why.
    Refused(LedgerError),
    /// Nobody knows.
    Unknown(LedgerError),
}

fn uncommitted(fault: Fault) -> Committed {
    if fault.is_collision() {
        return Committed::Collision;
    }
    match fault {
        Fault::Database(error) => match error.code() {
            // An operator ends the connection, or the engine says itself that it does not know.
            Some(code) if code.code().starts_with("57") || code.code().starts_with("08") || code.code() == "40003" => {
                Committed::Unknown(LedgerError::Storage(told(error)))
            }
            Some(&SqlState::DISK_FULL) => Committed::Refused(LedgerError::StorageFull(told(error))),
            Some(_) => Committed::Refused(LedgerError::Away(told(error))),
            None => Committed::Unknown(LedgerError::Storage(told(error))),
        },
        Fault::Refused(error) => Committed::Refused(error),
        Fault::Unreachable(cause) => Committed::Unknown(LedgerError::Storage(cause)),
        Fault::Silent => Committed::Unknown(LedgerError::Storage(Arc::new(NoAnswer))),
    }
}

/// Whether a transaction recorded something that others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Yes,
    No,
}

/// Makes connections and transactions, and knows how the database is.
pub(super) struct Database {
    pool: Pool,
    /// For connections that are held for long: each has a connection of its own.
    visits: Pool,
    health: watch::Sender<Health>,
    pub(super) commits: watch::Sender<u64>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Database(..)")
    }
}

impl Database {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, Cause> {
        let pool = |size, idle: Duration| {
            let settings = ManagerConfig { recycling_method: RecyclingMethod::Fast };
            let manager = match &config.tls {
                Some(tls) => Manager::from_config(config.connection(), MakeRustlsConnect::new(tls.clone()), settings),
                None => Manager::from_config(config.connection(), NoTls, settings),
            };
            Pool::builder(manager)
                .max_size(size)
                .runtime(Runtime::Tokio1)
                .wait_timeout(Some(STATEMENT_PATIENCE))
                .create_timeout(Some(STATEMENT_PATIENCE))
                .recycle_timeout(Some(STATEMENT_PATIENCE))
                .post_create(Hook::async_fn(move |client, _| {
                    Box::pin(async move {
                        let found = client.query_one(DURABILITY, &[]).await.map_err(HookError::Backend)?;
                        let idle = format!("SET idle_in_transaction_session_timeout = {}", idle.as_millis());
                        if let Err(error) = client.batch_execute(&idle).await {
                            tracing::warn!(%error, "a server that is paused in a transaction may hold up the others");
                        }
                        not_durable(&found).map_or(Ok(()), |setting| Err(HookError::message(setting)))
                    })
                }))
                .build()
                .map_err(|error| Arc::new(error) as Cause)
        };
        Ok(Self {
            pool: pool(CONNECTIONS, IDLE_MAX)?,
            // Their transactions only read, and hold up nobody.
            visits: pool(2 * revocast_core::limits::REGISTRY_PARTS_MAX, Duration::ZERO)?,
            health: watch::Sender::new(Health::Good),
            commits: watch::Sender::new(0),
        })
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(super) fn is_good(&self) -> bool {
        *self.health.borrow() == Health::Good
    }

    /// Tells whoever watches, once for each change.
    pub(super) fn is_now(&self, health: Health) {
        self.health.send_if_modified(|held| {
            let changed = std::mem::discriminant(held) != std::mem::discriminant(&health);
            if changed {
                match &health {
                    Health::Good => tracing::info!("the ledger's database is back"),
                    Health::Away { cause } | Health::Stopped { cause } => {
                        tracing::error!(%cause, "the ledger's database is away");
                    }
                }
                *held = health;
            }
            changed
        });
    }

    pub(super) fn woken(&self) {
        self.commits.send_modify(|count| *count += 1);
    }

    /// A connection; of those that are kept, or one to be held for long.
    async fn connection(&self, long: bool) -> Outcome<Object> {
        let pool = if long { &self.visits } else { &self.pool };
        match pool.get().await {
            Ok(client) => Ok(client),
            Err(PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error))) => {
                Err(Fault::Unreachable(told(error)))
            }
            Err(error) => Err(Fault::Unreachable(Arc::new(error))),
        }
    }

    /// Reads outside of any transaction, or in one that only reads: again if the connection was a broken one.
    pub(super) async fn read<T, F, Fut>(&self, work: F) -> Result<T, LedgerError>
    where
        F: Fn(Arc<Session>) -> Fut,
        Fut: Future<Output = Outcome<T>> + Send,
    {
        let mut tries = Tries::new(self.is_good());
        loop {
            let outcome = match self.connection(false).await {
                Ok(client) => work(Session::of(client)).await,
                Err(fault) => Err(fault),
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(fault) => tries.after(self, fault).await?,
            }
        }
    }

    /// A transaction that may take as long as it likes, and is not tried again.
    pub(super) async fn long(&self) -> Result<Arc<Session>, LedgerError> {
        self.begin(true, "BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(Fault::into_error)
    }

    /// A snapshot: all that is read in it was true at one moment, which begins with the first statement.
    pub(super) async fn snapshot(&self) -> Result<Arc<Session>, LedgerError> {
        let mut tries = Tries::new(self.is_good());
        loop {
            match self.begin(true, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await {
                Ok(session) => return Ok(session),
                Err(fault) => tries.after(self, fault).await?,
            }
        }
    }

    async fn begin(&self, long: bool, begin: &str) -> Outcome<Arc<Session>> {
        let session = Session::of(self.connection(long).await?);
        session.unsettled();
        session.batch(begin).await?;
        Ok(session)
    }

    /// One durable transaction, tried again where that can help.
    pub(super) async fn transact<T, F, Fut>(&self, work: F) -> Result<T, LedgerError>
    where
        F: Fn(Arc<Session>) -> Fut,
        Fut: Future<Output = Outcome<(T, News)>> + Send,
    {
        let mut tries = Tries::new(self.is_good());
        loop {
            let fault = match self.begin(false, "BEGIN ISOLATION LEVEL READ COMMITTED").await {
                Err(fault) => fault,
                Ok(session) => match work(Arc::clone(&session)).await {
                    Err(fault) => {
                        // A connection that cannot even do this is closed when the session is dropped.
                        if session.batch("ROLLBACK").await.is_ok() {
                            session.settled();
                        }
                        fault
                    }
                    Ok((value, news)) => match session.batch("COMMIT").await {
                        Ok(()) => {
                            session.settled();
                            self.is_now(Health::Good);
                            if news == News::Yes {
                                self.woken();
                            }
                            return Ok(value);
                        }
                        Err(fault) => match uncommitted(fault) {
                            Committed::Collision => {
                                session.settled();
                                tries.collided().await?;
                                continue;
                            }
                            Committed::Refused(error) => return Err(error),
                            Committed::Unknown(error) => {
                                self.is_now(Health::Away { cause: described(&error) });
                                return Err(error);
                            }
                        },
                    },
                },
            };
            tries.after(self, fault).await?;
        }
    }
}

/// Patience with one request.
struct Tries {
    until: Instant,
    collisions: u32,
}

impl Tries {
    /// Nobody waits for a database that is known to be away.
    fn new(good: bool) -> Self {
        let patience = if good { PATIENCE } else { Duration::ZERO };
        Self { until: Instant::now() + patience, collisions: 0 }
    }

    async fn collided(&mut self) -> Result<(), LedgerError> {
        self.collisions += 1;
        if self.collisions >= ATTEMPTS {
            return Err(LedgerError::Away(Arc::new(Collisions)));
        }
        sleep(jitter(PAUSE * self.collisions)).await;
        Ok(())
    }

    /// Waits before the next attempt, or says why there is none.
    async fn after(&mut self, database: &Database, fault: Fault) -> Result<(), LedgerError> {
        match fault.meaning() {
            Meaning::Final(error) => Err(error),
            Meaning::Collision(_) => self.collided().await,
            Meaning::Away(error) => {
                if Instant::now() >= self.until {
                    database.is_now(Health::Away { cause: described(&error) });
                    return Err(error);
                }
                sleep(jitter(Duration::from_millis(200))).await;
                Ok(())
            }
        }
    }
}

/// Others were in the way every time.
#[derive(Clone, Copy, Debug, Error)]
#[error("{ATTEMPTS} attempts at one transaction collided with those of others")]
struct Collisions;

/// An error and its cause in one line.
fn described(error: &LedgerError) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Between half of a span and all of it: two that collided should not meet again.
fn jitter(span: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    span / 2 + span.mul_f64(f64::from(random) / f64::from(u32::MAX)) / 2
}

/// A transaction that stands still for longer is undone by the database: a server that was paused in the middle of one
/// would otherwise hold its locks, and nobody could take over from it. Shorter than a lease, longer than any pause of a
/// server that is merely busy.
const IDLE_MAX: Duration = Duration::from_secs(3);

const DURABILITY: &str = "SELECT current_setting('synchronous_commit', true), current_setting('fsync', true)";

/// The setting under which an answered request could be lost; engines that do not know these settings have none.
fn not_durable(found: &Row) -> Option<&'static str> {
    let is_off = |index| found.get::<_, Option<&str>>(index) == Some("off");
    if is_off(0) {
        Some("synchronous_commit is off")
    } else if is_off(1) {
        Some("fsync is off")
    } else {
        None
    }
}

/// A connection that is used for one thing. Dropped in the middle of a transaction it is closed, and the server
/// undoes what it had begun.
pub(super) struct Session {
    /// Taken only when it is dropped.
    client: Option<Object>,
    in_transaction: AtomicBool,
}

impl Session {
    fn of(client: Object) -> Arc<Self> {
        Arc::new(Self { client: Some(client), in_transaction: AtomicBool::new(false) })
    }

    fn unsettled(&self) {
        self.in_transaction.store(true, Ordering::Release);
    }

    fn settled(&self) {
        self.in_transaction.store(false, Ordering::Release);
    }

    fn client(&self) -> Outcome<&Object> {
        self.client.as_ref().ok_or(Fault::Silent)
    }

    /// Runs statements that return nothing.
    pub(super) async fn batch(&self, sql: &str) -> Outcome<()> {
        let client = self.client()?;
        Ok(timeout(STATEMENT_PATIENCE, client.batch_execute(sql)).await.map_err(|_| Fault::Silent)??)
    }

    /// Runs one that may take as long as it likes.
    pub(super) async fn long(&self, sql: &str) -> Outcome<()> {
        Ok(self.client()?.batch_execute(sql).await?)
    }

    pub(super) async fn rows(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Outcome<Vec<Row>> {
        let client = self.client()?;
        let rows = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, values).await
        };
        Ok(timeout(STATEMENT_PATIENCE, rows).await.map_err(|_| Fault::Silent)??)
    }

    pub(super) async fn row(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Outcome<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Returns how many rows were changed.
    pub(super) async fn change(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Outcome<u64> {
        let client = self.client()?;
        let changed = async {
            let statement = client.prepare_cached(sql).await?;
            client.execute(&statement, values).await
        };
        Ok(timeout(STATEMENT_PATIENCE, changed).await.map_err(|_| Fault::Silent)??)
    }

    /// Ends a transaction, keeping what it did.
    pub(super) async fn end(&self) -> Outcome<()> {
        self.batch("COMMIT").await?;
        self.settled();
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.in_transaction.load(Ordering::Acquire)
            && let Some(client) = self.client.take()
        {
            drop(Object::take(client));
        }
    }
}
