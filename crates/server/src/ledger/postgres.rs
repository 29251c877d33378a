//! The ledger of several servers: a database that speaks PostgreSQL's protocol.
//!
//! Plain SQL that PostgreSQL, CockroachDB and YugabyteDB take: no advisory locks, no extensions, no notifications on
//! which anything depends. A number is the counter of its realm's row, moved in the transaction that keeps the entry,
//! so that numbers have no holes and come in the order of commits. The database decides what is true: a lost connection
//! stops nothing for good, and what was asked during it is told as unknown or as not done.

mod issuance;
mod registry;
mod rows;
mod schema;
mod session;
mod whole;
mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::{DeviceId, RealmId, Sequence, Term, UnixTime};
use rustls::ClientConfig;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::config::SslMode;

use self::issuance::{SELECT_DEVICE, Wanted, decided, find_tokens};
use self::registry::Sweeps;
use self::rows::{
    SELECT_ENTRY, SELECT_REALM, damaged, entry, find_realm, hold_all_realms, hold_realm, insert_entries, insert_realm,
    issued_columns, known_realm, object, put_objects, realm_row, text, unsigned, update_realm,
};
use self::session::{Database, Fault, News, Outcome, ReadOnly, Session, told};
use super::calls::{Ask, Call, QUEUE_CALLS_MAX, Reply};
use super::columns::{KIND_CUTOFF, RealmRow, SUBJECT_JTI, place, signed};
use super::lease::{self, Lease, Ruling};
use super::registry::Key;
use super::rules::{self, Counters};
use super::{
    Bid, Cause, Compaction, Coverage, Device, Dismissal, Enrollment, Entry, Founding, Health, Issuance, Issued,
    IssuedToken, Leadership, Ledger, LedgerError, LedgerFuture, NewDevice, Object, Order, Realm, Receipt, Registration,
    Request, Sink, Source, TokenRecord, Visitor, lineage,
};

/// How often this server looks whether others recorded something: short beside the second in which a revocation
/// travels, and one row.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Entries forgotten in one transaction, so that appends get their turn in between.
const EXPIRE_PIECE: i64 = 2_000;

/// Rows that one statement reads: a longer scan is read in pieces.
const SCAN_PIECE: usize = 10_000;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing has come for this long is asked whether it lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// Where the database is, and how it is entered.
#[derive(Clone)]
pub struct PostgresConfig {
    connection: tokio_postgres::Config,
    tls: Option<ClientConfig>,
}

impl PostgresConfig {
    /// From a URL like `postgres://user@host:5432/database`, the password of that user, and how TLS is spoken; with
    /// that, every connection is encrypted and the server's name checked.
    ///
    /// A URL with a password in it is refused: URLs are seen in lists of processes and in logs.
    pub fn new(url: &str, password: Option<String>, tls: Option<ClientConfig>) -> Result<Self, PostgresUrlError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(PostgresUrlError::Scheme);
        }
        let mut connection =
            tokio_postgres::Config::from_str(url).map_err(|error| PostgresUrlError::Form { source: told(error) })?;
        if connection.get_password().is_some() {
            return Err(PostgresUrlError::Password);
        }
        if connection.get_hosts().is_empty() && connection.get_hostaddrs().is_empty() {
            return Err(PostgresUrlError::NoHost);
        }
        if connection.get_user().is_none() {
            return Err(PostgresUrlError::NoUser);
        }
        match (&tls, connection.get_ssl_mode()) {
            (Some(_), _) => {
                connection.ssl_mode(SslMode::Require);
            }
            (None, SslMode::Require) => return Err(PostgresUrlError::NoRoots),
            (None, _) => {
                connection.ssl_mode(SslMode::Disable);
            }
        }
        if let Some(password) = password {
            connection.password(password);
        }
        if connection.get_application_name().is_none() {
            connection.application_name("revocast");
        }
        connection.connect_timeout(CONNECT_TIMEOUT).keepalives_idle(KEEPALIVE_IDLE).tcp_user_timeout(KEEPALIVE_IDLE);
        Ok(Self { connection, tls })
    }

    fn connection(&self) -> tokio_postgres::Config {
        self.connection.clone()
    }
}

impl fmt::Debug for PostgresConfig {
    /// Where, and as whom; never the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("hosts", &self.connection.get_hosts())
            .field("ports", &self.connection.get_ports())
            .field("database", &self.connection.get_dbname())
            .field("user", &self.connection.get_user())
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a URL of a database cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum PostgresUrlError {
    /// It is of something else.
    #[error("it does not begin with postgres://")]
    Scheme,
    /// It cannot be read.
    #[error("it is not of the form postgres://user@host:port/database")]
    Form {
        /// Why.
        #[source]
        source: Cause,
    },
    /// Command lines and config files are read by many.
    #[error("it holds a password; put that in a file, and name the file in ledger_password_file")]
    Password,
    /// No server is named.
    #[error("it names no host")]
    NoHost,
    /// Nobody is named.
    #[error("it names no user")]
    NoUser,
    /// Encryption without knowing with whom is none.
    #[error("it asks for TLS; name the certificates that may vouch for the server in ledger_ca")]
    NoRoots,
}

/// Why a ledger in a database could not be opened.
#[derive(Debug, Error)]
pub enum PostgresError {
    /// It cannot be reached, or it refuses; where, as whom and why stands in the cause.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The tables were made by a newer release. Use that one.
    #[error("the ledger's database has layout {found}; this release knows layouts up to {}", schema::LAYOUT)]
    Newer {
        /// Its layout.
        found: i64,
    },
    /// Others change the tables all the time; start again once they are done.
    #[error("the tables of the ledger's database do not settle")]
    Unsettled,
    /// The URL holds something that no connection can be made of.
    #[error("no connection can be made")]
    Connection(#[source] Cause),
}

/// A ledger in a database that other servers may share.
#[derive(Debug)]
pub struct PostgresLedger {
    inner: Arc<Inner>,
    calls: mpsc::Sender<Call>,
    poll: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    database: Arc<Database>,
    sweeps: Sweeps,
}

impl PostgresLedger {
    /// Connects, and makes or renews the tables. Needs a tokio runtime, on which it keeps two tasks.
    pub async fn open(config: PostgresConfig) -> Result<Self, PostgresError> {
        let database = Arc::new(Database::new(&config).map_err(PostgresError::Connection)?);
        schema::prepare(&database).await?;
        let (calls, queue) = mpsc::channel(QUEUE_CALLS_MAX);
        // Ends with the last sender, once all that was asked is answered.
        tokio::spawn(writer::run(Arc::clone(&database), queue));
        let poll = tokio::spawn(poll(Arc::clone(&database)));
        Ok(Self { inner: Arc::new(Inner { database, sweeps: Sweeps::default() }), calls, poll })
    }

    /// Joins the next group.
    fn ask(&self, call: Call) -> Result<(), LedgerError> {
        self.calls.try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LedgerError::Overloaded { waiting: QUEUE_CALLS_MAX },
            mpsc::error::TrySendError::Closed(_) => LedgerError::Closed,
        })
    }

    /// Does something in a task of its own: whoever drops the future that is returned undoes nothing.
    fn run<T: Send + 'static>(&self, work: impl FnOnce(Arc<Inner>) -> LedgerFuture<'static, T>) -> LedgerFuture<'_, T> {
        let task = tokio::spawn(work(Arc::clone(&self.inner)));
        Box::pin(async move { task.await.map_err(|_| LedgerError::Closed)? })
    }
}

impl Drop for PostgresLedger {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

/// Looks at what all realms count, again and again: wakes whoever waits when others recorded something, and tells
/// when the database goes and comes.
async fn poll(database: Arc<Database>) {
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: Option<String> = None;
    loop {
        ticks.tick().await;
        let counted = database.read(|session| async move {
            // Terms and heads only rise, so their sums tell any change.
            let row = session
                .row(
                    "SELECT current_setting('transaction_read_only', true),
                     concat_ws(' ', count(*), sum(term), sum(head)) FROM revocast_realms",
                    &[],
                )
                .await?;
            let Some(row) = row else { return Ok(String::new()) };
            if row.get::<_, Option<&str>>(0) == Some("on") {
                return Err(Fault::Unreachable(Arc::new(ReadOnly)));
            }
            Ok(row.get(1))
        });
        // What failed has been told already.
        if let Ok(counted) = counted.await {
            database.is_now(Health::Good);
            if seen.as_ref().is_some_and(|seen| *seen != counted) {
                database.woken();
            }
            seen = Some(counted);
        }
    }
}

impl Ledger for PostgresLedger {
    fn create_realm(&self, realm: Realm, objects: Vec<Object>) -> LedgerFuture<'_, Founding> {
        self.run(|inner| Box::pin(async move { create_realm(&inner.database, &realm, &objects).await }))
    }

    fn realms(&self) -> LedgerFuture<'_, Vec<Realm>> {
        Box::pin(async move {
            let mut realms = self
                .inner
                .database
                .read(|session| async move {
                    let rows = session.rows(SELECT_REALM, &[]).await?;
                    rows.iter().map(|row| Ok(realm_row(row)?.realm)).collect::<Outcome<Vec<_>>>()
                })
                .await?;
            realms.sort_unstable_by_key(|realm| realm.id);
            Ok(realms)
        })
    }

    fn realm(&self, realm: RealmId) -> LedgerFuture<'_, Realm> {
        Box::pin(async move { Ok(self.inner.known(realm).await?.realm) })
    }

    fn append(&self, realm: RealmId, now: UnixTime, requests: Vec<Request>) -> LedgerFuture<'_, Vec<Receipt>> {
        let (reply, answer) = oneshot::channel();
        let sent = rules::check(&requests).and_then(|()| {
            let (ask, reply) = (Ask::Append(requests), Reply::Receipts(reply));
            self.ask(Call { realm, now, ask, reply })
        });
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn scan(&self, realm: RealmId, after: Sequence, limit: usize) -> LedgerFuture<'_, Vec<Entry>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let mut entries: Vec<Entry> = Vec::new();
            let mut after = signed(after.0);
            loop {
                let piece = SCAN_PIECE.min(limit - entries.len());
                let found = self
                    .inner
                    .database
                    .read(|session| async move { scan_piece(&session, realm, number, after, piece).await })
                    .await?;
                let is_all = found.len() < piece;
                after = found.last().map_or(after, |entry| signed(entry.sequence.0));
                entries.extend(found);
                if is_all || entries.len() >= limit {
                    return Ok(entries);
                }
            }
        })
    }

    fn head(&self, realm: RealmId) -> LedgerFuture<'_, (Term, Sequence)> {
        Box::pin(async move {
            let counters = self.inner.known(realm).await?.counters;
            Ok((counters.term, counters.head))
        })
    }

    fn register(&self, realm: RealmId, now: UnixTime, issued: Vec<Issued>) -> LedgerFuture<'_, Registration> {
        self.run(move |inner| Box::pin(async move { registry::register(&inner.database, realm, now, issued).await }))
    }

    fn cover(&self, realm: RealmId, now: UnixTime, until: UnixTime) -> LedgerFuture<'_, Coverage> {
        self.run(move |inner| Box::pin(async move { registry::cover(&inner.database, realm, now, until).await }))
    }

    fn coverage(&self, realm: RealmId) -> LedgerFuture<'_, Coverage> {
        Box::pin(async move { Ok(self.inner.known(realm).await?.coverage) })
    }

    fn visit_registered(&self, realm: RealmId, visitors: Vec<Visitor>) -> LedgerFuture<'_, Coverage> {
        Box::pin(async move { registry::visit(&self.inner.database, realm, visitors).await })
    }

    fn expire(&self, realm: RealmId, horizon: UnixTime) -> LedgerFuture<'_, usize> {
        self.run(move |inner| {
            Box::pin(async move {
                let mut dropped = 0;
                loop {
                    let piece = expire_piece(&inner.database, realm, signed(horizon.secs())).await?;
                    dropped += piece as usize;
                    if piece < EXPIRE_PIECE.cast_unsigned() {
                        break;
                    }
                }
                let limit = signed(horizon.secs());
                while !issuance::expire_piece(&inner.database, realm, limit, EXPIRE_PIECE).await? {}
                registry::sweep(&inner.database, &inner.sweeps, realm, horizon).await?;
                Ok(dropped)
            })
        })
    }

    fn resume(&self, realm: RealmId, now: UnixTime, beyond: Sequence) -> LedgerFuture<'_, (Term, Sequence)> {
        self.run(move |inner| {
            Box::pin(async move {
                inner
                    .database
                    .transact(|session| async move {
                        let mut row = hold_realm(&session, realm).await?;
                        resume(&session, &mut row, now, beyond).await?;
                        Ok(((row.counters.term, row.counters.head), News::Yes))
                    })
                    .await
            })
        })
    }

    fn objects(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Object>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let mut objects = self
                .inner
                .database
                .read(|session| async move {
                    let rows = session
                        .rows("SELECT address, bytes, sum FROM revocast_objects WHERE realm = $1", &[&number])
                        .await?;
                    rows.iter().map(|row| object(realm, row)).collect::<Outcome<Vec<_>>>()
                })
                .await?;
            // Not by the database, whose order depends on its locale.
            objects.sort_unstable_by(|one, other| one.address.cmp(&other.address));
            Ok(objects)
        })
    }

    fn object(&self, realm: RealmId, address: String) -> LedgerFuture<'_, Option<Object>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let address = &address;
            self.inner
                .database
                .read(|session| async move {
                    let select = "SELECT address, bytes, sum FROM revocast_objects WHERE realm = $1 AND address = $2";
                    let rows = session.rows(select, &[&number, address]).await?;
                    rows.first().map(|row| object(realm, row)).transpose()
                })
                .await
        })
    }

    fn store_objects(
        &self,
        realm: RealmId,
        term: Term,
        puts: Vec<Object>,
        deletes: Vec<String>,
    ) -> LedgerFuture<'_, ()> {
        self.run(move |inner| {
            Box::pin(async move {
                let (puts, deletes) = (&puts, &deletes);
                inner
                    .database
                    .transact(|session| async move {
                        let RealmRow { number, counters, .. } = hold_realm(&session, realm).await?;
                        if counters.term != term {
                            return Err(
                                LedgerError::TermChanged { realm, current: counters.term, claimed: term }.into()
                            );
                        }
                        if !deletes.is_empty() {
                            session
                                .change(
                                    "DELETE FROM revocast_objects WHERE realm = $1 AND address = ANY($2)",
                                    &[&number, deletes],
                                )
                                .await?;
                        }
                        put_objects(&session, number, realm, puts).await?;
                        Ok(((), News::No))
                    })
                    .await
            })
        })
    }

    fn token(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, TokenRecord> {
        Box::pin(async move {
            let row = self.inner.known(realm).await?;
            let (row, jti) = (&row, &jti);
            self.inner.database.read(|session| async move { token(&session, row, jti).await }).await
        })
    }

    fn cutoffs(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Entry>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            self.inner
                .database
                .read(|session| async move {
                    let sql = format!(
                        "{SELECT_ENTRY} AS one WHERE realm = $1 AND subject_kind < {SUBJECT_JTI} AND kind = {KIND_CUTOFF}
                         AND NOT EXISTS (SELECT 1 FROM revocast_entries AS later
                             WHERE later.realm = $1 AND later.subject_kind = one.subject_kind
                             AND later.subject = one.subject AND later.sequence > one.sequence)
                         ORDER BY sequence"
                    );
                    let rows = session.rows(&sql, &[&number]).await?;
                    rows.iter().map(|row| entry(realm, row)).collect()
                })
                .await
        })
    }

    fn lead(&self, bid: Bid) -> LedgerFuture<'_, Leadership> {
        self.run(|inner| {
            Box::pin(async move {
                bid.check()?;
                let bid = &bid;
                inner.database.transact(|session| async move { lead(&session, bid).await }).await
            })
        })
    }

    fn step_down(&self, server: String) -> LedgerFuture<'_, ()> {
        self.run(|inner| {
            Box::pin(async move {
                let server = &server;
                inner
                    .database
                    .transact(|session| async move {
                        let release =
                            "UPDATE revocast_leader SET server = NULL, address = NULL WHERE one AND server = $1";
                        session.change(release, &[server]).await?;
                        Ok(((), News::No))
                    })
                    .await
            })
        })
    }

    fn dump(&self, sink: Sink) -> LedgerFuture<'_, ()> {
        Box::pin(async move { whole::dump(&self.inner.database, sink).await })
    }

    fn restore(&self, source: Source) -> LedgerFuture<'_, ()> {
        self.run(|inner| Box::pin(async move { whole::restore(&inner.database, source).await }))
    }

    fn compact(&self) -> LedgerFuture<'_, Compaction> {
        self.run(|inner| Box::pin(async move { whole::compact(&inner.database).await }))
    }

    fn enroll(&self, realm: RealmId, now: UnixTime, device: NewDevice) -> LedgerFuture<'_, Enrollment> {
        self.run(move |inner| {
            Box::pin(async move {
                device.check()?;
                let want = |realm: &Realm, wanted: &mut Wanted| wanted.device(realm, now, device.id);
                decided(&inner.database, realm, want, |draft, realm, counters, _| {
                    lineage::enroll(draft, realm, counters, now, device.clone())
                })
                .await
            })
        })
    }

    fn device(&self, realm: RealmId, id: DeviceId) -> LedgerFuture<'_, Option<Device>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let sql = format!("{SELECT_DEVICE} WHERE realm = $1 AND id = $2");
            let (sql, id) = (&sql, &id);
            self.inner
                .database
                .read(|session| async move {
                    let row = session.row(sql, &[&number, &id.as_bytes()]).await?;
                    row.as_ref().map(|row| issuance::device(realm, row)).transpose()
                })
                .await
        })
    }

    fn devices(&self, realm: RealmId, after: Option<DeviceId>, limit: usize) -> LedgerFuture<'_, Vec<Device>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let sql = format!("{SELECT_DEVICE} WHERE realm = $1 AND id > $2 ORDER BY id LIMIT $3");
            let (sql, after) = (&sql, after.as_ref().map_or(&[][..], DeviceId::as_bytes));
            self.inner
                .database
                .read(|session| async move {
                    let rows = session.rows(sql, &[&number, &after, &signed(limit as u64)]).await?;
                    rows.iter().map(|row| issuance::device(realm, row)).collect()
                })
                .await
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
        self.run(move |inner| {
            Box::pin(async move {
                rules::check_words(0, reason.as_deref(), &actor)?;
                let want = |realm: &Realm, wanted: &mut Wanted| wanted.device(realm, now, id);
                decided(&inner.database, realm, want, |draft, realm, counters, _| {
                    let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                    lineage::dismiss(draft, counters, &cause, id)
                })
                .await
            })
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
        self.run(move |inner| {
            Box::pin(async move {
                rules::check_words(0, reason.as_deref(), &actor)?;
                let want = |realm: &Realm, wanted: &mut Wanted| wanted.refresh(realm, now, refresh);
                decided(&inner.database, realm, want, |draft, realm, counters, _| {
                    let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                    lineage::withdraw(draft, counters, &cause, &refresh)
                })
                .await
            })
        })
    }

    fn issue(&self, realm: RealmId, now: UnixTime, order: Order) -> LedgerFuture<'_, Issuance> {
        let (reply, answer) = oneshot::channel();
        let (ask, reply) = (Ask::Issue(Box::new(order)), Reply::Issuance(reply));
        let sent = self.ask(Call { realm, now, ask, reply });
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn find_issued(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, Option<IssuedToken>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let jtis = BTreeSet::from([jti]);
            let jtis = &jtis;
            let find = |session: Arc<Session>| async move { find_tokens(&session, number, realm, jtis).await };
            Ok(self.inner.database.read(find).await?.pop())
        })
    }

    fn expiring(
        &self,
        realm: RealmId,
        from: UnixTime,
        until: UnixTime,
        limit: usize,
    ) -> LedgerFuture<'_, Vec<(DeviceId, String, UnixTime)>> {
        Box::pin(async move {
            let number = self.inner.known(realm).await?.number;
            let sql = format!(
                "{SELECT_DEVICE} WHERE realm = $1 AND held_until >= $2 AND held_until < $3 AND NOT barred
                 ORDER BY held_until, id LIMIT $4"
            );
            let sql = &sql;
            let (from, until, limit) = (signed(from.secs()), signed(until.secs()), signed(limit as u64));
            let devices = self
                .inner
                .database
                .read(|session| async move {
                    let rows = session.rows(sql, &[&number, &from, &until, &limit]).await?;
                    rows.iter().map(|row| issuance::device(realm, row)).collect::<Outcome<Vec<_>>>()
                })
                .await?;
            let held = |device: Device| Some((device.id, device.holds?, device.held_until?));
            Ok(devices.into_iter().filter_map(held).collect())
        })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.database.health()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.database.commits.subscribe()
    }
}

impl Inner {
    async fn known(&self, realm: RealmId) -> Result<RealmRow, LedgerError> {
        self.database.read(|session| async move { known_realm(&session, realm).await }).await
    }
}

async fn create_realm(database: &Database, realm: &Realm, objects: &[Object]) -> Result<Founding, LedgerError> {
    rules::check_realm(realm)?;
    database
        .transact(|session| async move {
            // Numbers of realms are given one at a time.
            session.row("SELECT layout FROM revocast_layout WHERE one FOR UPDATE", &[]).await?;
            let by_id = find_realm(&session, realm.id).await?.map(|row| row.realm);
            let issuer = realm.issuer.as_bytes();
            let by_issuer = session.row(&format!("{SELECT_REALM} WHERE issuer = $1"), &[&issuer]).await?;
            let by_issuer = by_issuer.as_ref().map(realm_row).transpose()?.map(|row| row.realm.id);
            if let Some(realm) = rules::found(realm, by_id, by_issuer)? {
                return Ok((Founding { realm, created: false }, News::No));
            }
            let number = session.row("SELECT coalesce(max(number), 0) + 1 FROM revocast_realms", &[]).await?;
            let number = number.map_or(1, |row| row.get::<_, i64>(0));
            let row =
                RealmRow { number, realm: realm.clone(), counters: Counters::new(), coverage: Coverage::default() };
            insert_realm(&session, &row).await?;
            put_objects(&session, number, realm.id, objects).await?;
            Ok((Founding { realm: realm.clone(), created: true }, News::Yes))
        })
        .await
}

async fn scan_piece(session: &Session, realm: RealmId, number: i64, after: i64, limit: usize) -> Outcome<Vec<Entry>> {
    let sql = format!("{SELECT_ENTRY} WHERE realm = $1 AND sequence > $2 ORDER BY sequence LIMIT $3");
    let rows = session.rows(&sql, &[&number, &after, &signed(limit as u64)]).await?;
    rows.iter().map(|row| entry(realm, row)).collect()
}

async fn token(session: &Session, row: &RealmRow, jti: &str) -> Outcome<TokenRecord> {
    let realm = &row.realm;
    // What is no `jti` is not there.
    let Ok(name) = revocast_core::Jti::new(jti) else { return Ok(TokenRecord::default()) };
    let sql = format!(
        "{SELECT_ENTRY} WHERE realm = $1 AND subject_kind = {SUBJECT_JTI} AND subject = $2
         ORDER BY sequence DESC LIMIT 1"
    );
    let last = session.row(&sql, &[&row.number, &jti.as_bytes()]).await?;
    let (fingerprint, name) = place(Key::of(&realm.fingerprinter, name), realm.fingerprinter.width());
    let issued = session
        .row(
            "SELECT fingerprint, name, iat, exp, sub, sum FROM revocast_issued
             WHERE realm = $1 AND fingerprint = $2 AND name = $3",
            &[&row.number, &fingerprint, &name],
        )
        .await?;
    let issued = issued.as_ref().map(|row| issued_columns(realm.id, row)).transpose()?;
    let issued = issued
        .map(|kept| {
            let time = |number| unsigned(number, "a time").map(UnixTime::from_secs);
            Ok::<_, Fault>(Issued { jti: jti.to_owned(), iat: time(kept.iat)?, exp: time(kept.exp)?, sub: kept.sub })
        })
        .transpose()?;
    Ok(TokenRecord { entry: last.as_ref().map(|row| entry(realm.id, row)).transpose()?, issued })
}

/// Oldest sequence first within one `exp`: a revoke goes no later than what undoes it.
async fn expire_piece(database: &Database, realm: RealmId, horizon: i64) -> Result<u64, LedgerError> {
    database
        .transact(|session| async move {
            let mut row = hold_realm(&session, realm).await?;
            let dropped = session
                .change(
                    "DELETE FROM revocast_entries WHERE realm = $1 AND sequence IN (
                         SELECT sequence FROM revocast_entries WHERE realm = $1 AND kind IN (1, 2) AND value <= $2
                         ORDER BY value, sequence LIMIT $3)",
                    &[&row.number, &horizon, &EXPIRE_PIECE],
                )
                .await?;
            if dropped > 0 {
                row.counters.stored = row.counters.stored.saturating_sub(dropped);
                update_realm(&session, &row).await?;
            }
            Ok((dropped, News::No))
        })
        .await
}

async fn resume(session: &Session, row: &mut RealmRow, now: UnixTime, beyond: Sequence) -> Outcome<()> {
    let entry = rules::resume(row.realm.id, &mut row.counters, now, beyond)?;
    insert_entries(session, row.number, row.realm.id, &[entry]).await?;
    update_realm(session, row).await
}

/// Everything by the clock of the database, read once the row is held.
async fn lead(session: &Session, bid: &Bid) -> Outcome<(Leadership, News)> {
    let held = session.row("SELECT server, address FROM revocast_leader WHERE one FOR UPDATE", &[]).await?;
    let held = held.ok_or_else(|| damaged("the row of the leader is missing".into()))?;
    let clock = session
        .row(
            "SELECT extract(epoch FROM until - clock_timestamp())::FLOAT8,
             floor(extract(epoch FROM clock_timestamp()))::INT8 FROM revocast_leader WHERE one",
            &[],
        )
        .await?;
    let clock = clock.ok_or_else(|| damaged("the row of the leader is missing".into()))?;
    let remaining: f64 = clock.get(0);
    let now = UnixTime::from_secs(unsigned(clock.get(1), "the database's time")?);
    let held = held
        .get::<_, Option<String>>(0)
        .map(|server| {
            let address = held.get::<_, Option<&[u8]>>(1).map(|address| text(address, "an address")).transpose()?;
            let remaining = Duration::try_from_secs_f64(remaining.max(0.0)).unwrap_or(lease::LEASE_MAX);
            Ok::<_, Fault>(Lease { server, address, remaining })
        })
        .transpose()?;
    let new_terms = match lease::rule(bid, held) {
        Ruling::Follow(following) => return Ok((following, News::No)),
        Ruling::Grant { new_terms } => new_terms,
    };
    if new_terms {
        for mut row in hold_all_realms(session).await? {
            let beyond = row.counters.head;
            resume(session, &mut row, now, beyond).await?;
        }
    }
    let address = bid.address.as_deref().map(str::as_bytes);
    session
        .change(
            "UPDATE revocast_leader SET server = $1, address = $2,
             until = clock_timestamp() + $3::FLOAT8 * INTERVAL '1 second' WHERE one",
            &[&bid.server, &address, &bid.lease.as_secs_f64()],
        )
        .await?;
    let news = if new_terms { News::Yes } else { News::No };
    Ok((Leadership::Leading { took_over: new_terms }, news))
}
