//! Executes plans: stores, publishes, reads back, and begins again when a connection breaks.
//!
//! One task a realm. Deltas go out as soon as they are cut; what is retained follows beside them, and so does looking at
//! what the broker really retains, so that neither a large epoch on its way nor a look at one delays a revocation.

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, mpsc as threads};
use std::time::Duration;

use revocast_core::limits::ASK_PATIENCE;
use revocast_core::update::{DeviceTopic, Question};
use revocast_core::{
    Address, Digest, FilterBuf, Fingerprint, Kind, Manifest, PublicKey, RealmId, Salt, Sealed, Sequence, UnixMillis,
    UnixTime, wire,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::Admission;
use super::forecast::Inquirer;
use super::{
    Built, Draft, Filtered, HighWater, Inquiries, Permit, Plan, PublishError, Publisher, Settings, Signer, Step,
};
use crate::broker::{Broker, BrokerError, Hearing, Incoming, LinkState, Listener};
use crate::clock::Clock;
use crate::ledger::{Coverage, Ledger, LedgerError, Object, Realm, Statement, Visitor};
use crate::metrics::{Metrics, StepKind};
use crate::minting::LiveFilters;
use crate::service::{Published, PublishedRealms};
use crate::standing::{Standing, Standings};
use crate::tokens::Issuers;

/// How long to wait for a retained message before taking it for missing, where the broker gives no sign that nothing
/// more will come.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(2);

/// Objects read back with every heartbeat, besides manifest and keys: a megabyte in 30 s at the default chunk size. So
/// all that stands is looked at by turns, bit by bit.
const AUDIT_OBJECTS: usize = 32;

/// Objects asked for at a time when all are looked at.
const LOOK_OBJECTS: usize = 128;

/// When all are looked at and so many in one go are not there, the rest is not asked for: to publish is quicker.
const MISSING_MAX: usize = LOOK_OBJECTS / 4;

/// How long a realm may take to finish what it has begun when publishing ends.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Threads that look through the registry at the same time.
const VISITORS: usize = 2;

/// Between two writes of how far was published: each costs an fsync, which the ledger's would wait for.
const MARK_PAUSE: Duration = Duration::from_millis(250);

/// Between two live deltas while many come: a device checks a signature for each, and a small one takes milliseconds
/// for that.
const LIVE_PAUSE: Duration = Duration::from_millis(20);

/// The time for which pauses may be saved up: 25 deltas in a row go at once.
const LIVE_CREDIT: Duration = Duration::from_millis(500);

/// Between two looks for realms that were founded meanwhile.
const REALMS_PAUSE: Duration = Duration::from_millis(50);

/// Entries read from the ledger at a time.
const SCAN_LIMIT: usize = 10_000;

/// Questions that wait for a realm's publisher, and answers on their way at a time. What comes beyond
/// is dropped and counted.
const QUESTIONS_MAX: usize = 64;

/// Questions that wait to be handed on. What comes beyond is dropped and counted: devices ask again.
const QUESTIONS_WAITING_MAX: usize = 256;

/// Bytes of a question that is looked at: four times the longest.
const QUESTION_BYTES_MAX: usize = 1024;

/// How often it is looked whether the keys of the realm or of its issuer have changed.
const KEYS_LOOK: Duration = Duration::from_secs(2);

/// Pauses after a failure: the first, and the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What publishing needs.
#[derive(Clone)]
pub struct Publishing {
    /// Where entries come from and objects are stored.
    pub ledger: Arc<dyn Ledger>,
    /// Where objects go.
    pub broker: Broker,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What signs.
    pub signer: Signer,
    /// How a realm is published.
    pub settings: watch::Receiver<Settings>,
    /// First level of every topic.
    pub prefix: String,
    /// Where filters in force are told to whoever mints `jti`s.
    pub filters: Arc<LiveFilters>,
    /// Where progress is told.
    pub published: watch::Sender<PublishedRealms>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// The operator confirmed that a ledger which ends before what was published shall go on, in a
    /// new term.
    pub resume: bool,
    /// Until when this process may publish.
    pub permit: Permit,
    /// How far was published, as far as this machine knows.
    pub mark: Option<Arc<HighWater>>,
    /// Where forecasts are asked for.
    pub inquiries: Arc<Inquiries>,
    /// Whose signature a question needs.
    pub standings: Arc<Standings>,
    /// Whose keys sign tokens.
    pub issuers: Arc<Issuers>,
}

/// How publishing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to. All that was decided is stored, and nothing is on its way.
    InOrder,
    /// It was asked to, and something did not end in time.
    Interrupted,
    /// Another server may publish by now, or this one may no longer.
    Deposed,
}

/// Why a realm is not being published just now.
#[derive(Debug, Error)]
pub enum RunError {
    /// The ledger failed.
    #[error("the ledger failed")]
    Ledger(#[from] LedgerError),
    /// Nothing could be planned.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker acknowledged an object and does not retain it.
    #[error("the broker acknowledged {topic} but does not retain it; check its access rules and size limits")]
    NotRetained {
        /// Its topic.
        topic: String,
    },
    /// Another server leads, or the lease of this one ran out.
    #[error("this server leads no more")]
    Deposed,
    /// The runtime is ending, or a thread of it broke.
    #[error("the building of an epoch was interrupted")]
    Interrupted,
    /// The operating system gives no random bytes.
    #[error("no random bytes for a salt: {cause}")]
    NoEntropy {
        /// What it said.
        cause: String,
    },
}

/// Publishes every realm, those founded later included, until `stop` is told or dropped, or this server is deposed.
///
/// When this returns, nothing of it holds the ledger any more.
pub async fn run(publishing: Publishing, stop: oneshot::Receiver<()>) -> Ended {
    let mut tasks = JoinSet::new();
    let stopping = watch::Sender::new(false);
    let ended = tokio::select! {
        () = tend(&publishing, &mut tasks, &stopping) => Ended::Deposed,
        () = publishing.keep_mark() => Ended::Deposed,
        _ = stop => {
            stopping.send_replace(true);
            let ended = tokio::time::timeout(END_PATIENCE, async { while tasks.join_next().await.is_some() {} }).await;
            if ended.is_ok() { Ended::InOrder } else { Ended::Interrupted }
        }
    };
    // Each may end anywhere: whoever goes on does so from what is stored.
    tasks.shutdown().await;
    publishing.write_mark().await;
    ended
}

/// Starts a task for each realm and hands questions on to them, until one finds that this server is deposed.
async fn tend(publishing: &Publishing, tasks: &mut JoinSet<()>, stopping: &watch::Sender<bool>) {
    let mut known: HashMap<RealmId, mpsc::Sender<Incoming>> = HashMap::new();
    let mut wakes = publishing.ledger.subscribe();
    let mut dropped = 0;
    let mut listener = publishing.broker.listen(Hearing {
        name: "q",
        filters: vec![format!("{}/+/devices/+/ask", publishing.prefix)],
        payload_bytes_max: QUESTION_BYTES_MAX,
        waiting_max: QUESTIONS_WAITING_MAX,
        acknowledged: true,
    });
    loop {
        wakes.mark_unchanged();
        match publishing.ledger.realms().await {
            Ok(realms) => {
                for realm in realms {
                    known.entry(realm.id).or_insert_with(|| {
                        let (asked, questions) = mpsc::channel(QUESTIONS_MAX);
                        let inquiries = publishing.inquiries.take_over(realm.id);
                        let desk = Desk::new(questions, inquiries);
                        tasks.spawn(keep_publishing(publishing.clone(), realm.id, desk, stopping.subscribe()));
                        asked
                    });
                }
            }
            Err(error) => tracing::error!(%error, "realms cannot be read; trying again"),
        }
        if listener.dropped() > dropped {
            dropped = listener.dropped();
            tracing::warn!(dropped, "questions that were too large, or came too fast to be looked at");
        }
        tokio::select! {
            () = publishing.hand_on(&mut listener, &known, &mut wakes) => {}
            // They end by themselves only when deposed, or by a bug that has ended one realm.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a realm's publisher broke");
                }
                return;
            }
        }
    }
}

/// Publishes one realm; after a failure it begins anew from what is stored. Returns when it is asked to, or deposed.
async fn keep_publishing(publishing: Publishing, realm: RealmId, mut desk: Desk, mut stopping: watch::Receiver<bool>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = publishing.clock.now().uptime;
        let error = match publish(&publishing, realm, &mut desk, &mut stopping).await {
            Ok(()) => return,
            Err(RunError::Deposed | RunError::Ledger(LedgerError::TermChanged { .. })) => {
                tracing::warn!(%realm, "this server leads no more; publishing ends");
                return;
            }
            Err(error) => error,
        };
        tracing::error!(%realm, error = %chain(&error), "publishing stopped; beginning anew");
        publishing.metrics.publication_failed(realm);
        publishing.tell(realm, |published| published.trouble = Some(chain(&error)));
        if let RunError::Publish(PublishError::LedgerBehind { published, .. }) = error
            && publishing.resume
        {
            publishing.go_on_beyond(realm, published).await;
        }
        let lasted = publishing.clock.now().uptime.saturating_sub(started);
        backoff = if lasted > BACKOFF_MAX { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        tokio::select! {
            () = sleep(backoff) => {}
            () = asked(&mut stopping) => return,
        }
    }
}

/// An epoch on its way. It may take seconds, in which revocations go on.
type Building<'a> = Pin<Box<dyn Future<Output = Result<Built, RunError>> + Send + 'a>>;

/// What goes on beside live deltas: one thing at a time, and never given up half way, since what a ledger was asked to
/// store may still be stored afterwards.
type Work<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

/// What became of it.
enum Done {
    /// A plan was executed, or was not.
    Published(Plan, Result<(), RunError>),
    /// What stands at the broker was looked at.
    Looked(Result<Found, RunError>),
}

/// What was found at the broker: `None` where nothing is.
type Found = Vec<(Address, Option<Digest>)>;

/// How far the broker of a connection is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acquaintance {
    /// Nothing: it may hold something newer than the ledger, and nothing may be published before that is known.
    Stranger,
    /// Manifest and keys. Deltas may go out.
    Introduced {
        /// Number of the connection.
        connection: u64,
        /// Whether a manifest stands there. Without one everything is published anew.
        manifest: bool,
    },
    /// All that should stand there was looked at.
    Known {
        /// Number of the connection.
        connection: u64,
    },
}

impl Acquaintance {
    const fn connection(self) -> Option<u64> {
        match self {
            Self::Stranger => None,
            Self::Introduced { connection, .. } | Self::Known { connection } => Some(connection),
        }
    }
}

/// Where a realm's questions are taken in and answered.
struct Desk {
    questions: mpsc::Receiver<Incoming>,
    inquiries: mpsc::Receiver<Inquirer>,
    admission: Admission,
    waiting: Vec<Incoming>,
    sending: JoinSet<Result<(), BrokerError>>,
}

impl Desk {
    fn new(questions: mpsc::Receiver<Incoming>, inquiries: mpsc::Receiver<Inquirer>) -> Self {
        Self { questions, inquiries, admission: Admission::default(), waiting: Vec::new(), sending: JoinSet::new() }
    }

    /// Takes in what has come, besides the first.
    fn take_in(&mut self, first: Incoming) {
        self.waiting.push(first);
        while self.waiting.len() < QUESTIONS_MAX
            && let Ok(more) = self.questions.try_recv()
        {
            self.waiting.push(more);
        }
    }
}

/// A pause that grows while one thing fails again and again.
struct Retry {
    pause: Duration,
    /// The uptime from which on it may be tried again.
    from: Duration,
}

impl Retry {
    const NONE: Self = Self { pause: Duration::ZERO, from: Duration::ZERO };

    fn failed(&mut self, uptime: Duration) {
        self.pause = (self.pause * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        self.from = uptime + self.pause;
    }
}

async fn publish(
    publishing: &Publishing,
    realm: RealmId,
    desk: &mut Desk,
    stopping: &mut watch::Receiver<bool>,
) -> Result<(), RunError> {
    let mut wakes = publishing.ledger.subscribe();
    let mut link = publishing.broker.state();
    let mut settings = publishing.settings.clone();
    let mut publisher = publishing.load(realm).await?;
    publishing.filters.set(realm, publisher.filters());
    let mut course = Course {
        broker: Acquaintance::Stranger,
        retry: Retry::NONE,
        audit: Audit::default(),
        expired: UnixTime::default(),
    };
    let mut work: Option<Work<'_>> = None;
    let mut building: Option<Building<'_>> = None;
    let mut looked_at_keys = None;
    let mut live_from = Instant::now();
    loop {
        publishing.permitted()?;
        wakes.mark_unchanged();
        publisher.keep_pace(&settings.borrow_and_update());
        let state = link.borrow_and_update().clone();
        let LinkState::Up { connection } = state else {
            // Nothing is cut and nothing queues: the ledger holds it all.
            publishing.tell(realm, |published| {
                published.trouble = Some("there is no connection to the broker".to_owned());
            });
            tokio::select! {
                _ = link.changed() => {}
                Some(inquirer) = desk.inquiries.recv() => publishing.foretell(&publisher, inquirer),
                () = asked(stopping) => return finish_in_order(work).await,
                () = sleep(BACKOFF_MIN) => {}
            }
            continue;
        };
        let uptime = publishing.clock.now().uptime;
        if course.broker.connection() != Some(connection) && work.is_none() && uptime >= course.retry.from {
            course.introduce(publishing, &mut publisher, connection).await?;
        }
        let mut pausing = false;
        if course.broker.connection() == Some(connection) {
            // An answer tells all that was recorded before it.
            pausing = Instant::now() < live_from && desk.waiting.is_empty();
            if !pausing {
                let asked_by = publisher.time_of_answers(publishing.clock.now());
                publishing.catch_up(&mut publisher).await?;
                if publishing.send_live(&mut publisher).await? {
                    let credit = Instant::now().checked_sub(LIVE_CREDIT);
                    live_from = credit.map_or(live_from, |credit| live_from.max(credit)) + LIVE_PAUSE;
                }
                publishing.answer(&publisher, desk, asked_by)?;
            }
            if looked_at_keys.is_none_or(|at| uptime.saturating_sub(at) >= KEYS_LOOK) {
                looked_at_keys = Some(uptime);
                publishing.look_at_keys(&mut publisher).await?;
            }
            if work.is_none() {
                work = course.next(publishing, &mut publisher, &mut building).await?;
            }
        }
        // While something is on its way its end is awaited, not the next deadline; before the first epoch, that.
        let idle = work.is_none() && (building.is_none() || publisher.position().is_some());
        let due = publisher.deadline().min(course.audit.due);
        let due = if course.broker.connection().is_some() { due } else { Duration::ZERO };
        let until = due.max(course.retry.from).saturating_sub(publishing.clock.now().uptime);
        tokio::select! {
            Ok(()) = settings.changed() => {}
            built = finish_building(&mut building) => {
                building = None;
                publisher.install(publishing.clock.now(), built?);
                publishing.filters.set(realm, publisher.filters());
            }
            done = finish(&mut work) => {
                work = None;
                course.done(publishing, &mut publisher, connection, done).await?;
            }
            _ = wakes.changed(), if !pausing => {}
            // What was recorded meanwhile is read then.
            () = sleep_until(live_from), if pausing => {}
            _ = link.changed() => {}
            () = asked(stopping) => {
                let connected = course.broker.connection() == Some(connection);
                let last = if connected { publishing.send_last(&mut publisher).await } else { Ok(()) };
                finish_in_order(work).await?;
                return last;
            }
            Some(inquirer) = desk.inquiries.recv() => publishing.foretell(&publisher, inquirer),
            Some(question) = desk.questions.recv() => desk.take_in(question),
            Some(sent) = desk.sending.join_next() => publishing.sent(realm, sent.is_ok_and(|sent| sent.is_ok())),
            () = sleep(until), if idle => {}
            () = sleep(KEYS_LOOK) => {}
        }
    }
}

/// Waits until publishing shall end.
async fn asked(stopping: &mut watch::Receiver<bool>) {
    // Whoever would ask is gone: that ends it as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// How far one connection is known, and what is next.
struct Course {
    broker: Acquaintance,
    retry: Retry,
    audit: Audit,
    /// What expired up to here is forgotten already.
    expired: UnixTime,
}

impl Course {
    /// Gets to know the broker of a new connection.
    async fn introduce(
        &mut self,
        publishing: &Publishing,
        publisher: &mut Publisher,
        connection: u64,
    ) -> Result<(), RunError> {
        match publishing.introduce(publisher).await {
            Ok(manifest) => {
                self.broker = Acquaintance::Introduced { connection, manifest };
                self.retry = Retry::NONE;
                Ok(())
            }
            Err(RunError::Broker(error)) => {
                self.unread(publishing, publisher.realm.id, &error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn unread(&mut self, publishing: &Publishing, realm: RealmId, error: &BrokerError) {
        tracing::warn!(%realm, %error, "what the broker retains cannot be read");
        publishing.tell(realm, |published| {
            published.trouble = Some(format!("what the broker retains cannot be read: {error}"));
        });
        self.retry.failed(publishing.clock.now().uptime);
    }

    /// What is to be done beside live deltas, if anything is: a look at everything, a look at a part, or a publication.
    async fn next<'a>(
        &mut self,
        publishing: &'a Publishing,
        publisher: &mut Publisher,
        building: &mut Option<Building<'a>>,
    ) -> Result<Option<Work<'a>>, RunError> {
        let uptime = publishing.clock.now().uptime;
        if uptime < self.retry.from {
            return Ok(None);
        }
        let realm = publisher.realm.id;
        match self.broker {
            Acquaintance::Stranger => Ok(None),
            Acquaintance::Introduced { connection, manifest: false } => {
                // It has lost everything, or has never had it: nothing need be asked for.
                let nothing: Found = publisher.standing().iter().map(|(address, _)| (*address, None)).collect();
                self.audit.note(&publisher.reconcile(nothing));
                self.broker = Acquaintance::Known { connection };
                publishing.bring_up_to_date(publisher, building).await
            }
            Acquaintance::Introduced { manifest: true, .. } => {
                let all = publisher.standing().into_iter().map(|(address, _)| address).collect();
                Ok(Some(publishing.look(realm, all)))
            }
            Acquaintance::Known { .. } if uptime >= self.audit.due => {
                self.audit.due = uptime + publishing.settings.borrow().heartbeat;
                Ok(Some(publishing.look(realm, self.audit.window(publisher))))
            }
            Acquaintance::Known { .. } => publishing.bring_up_to_date(publisher, building).await,
        }
    }

    /// Takes in what became of that. `connection` is the one there is now.
    async fn done(
        &mut self,
        publishing: &Publishing,
        publisher: &mut Publisher,
        connection: u64,
        done: Done,
    ) -> Result<(), RunError> {
        let realm = publisher.realm.id;
        match done {
            Done::Published(plan, Ok(())) => {
                self.retry = Retry::NONE;
                publisher.done(&plan);
                publishing.committed(realm, publisher, &self.audit, &mut self.expired).await;
            }
            Done::Published(plan, Err(error)) => {
                publishing.not_published(publisher, &plan, error).await?;
                self.retry.failed(publishing.clock.now().uptime);
            }
            Done::Looked(Ok(found)) => {
                let lost = publisher.reconcile(found);
                self.audit.note(&lost);
                // Where something is missing without the connection having broken, so may be the rest.
                let whole = matches!(self.broker, Acquaintance::Known { .. }) && !lost.is_empty();
                if self.broker.connection() == Some(connection) {
                    self.broker = if whole {
                        tracing::warn!(%realm, "the broker has lost what it retained; looking at all of it");
                        Acquaintance::Introduced { connection, manifest: true }
                    } else {
                        Acquaintance::Known { connection }
                    };
                }
            }
            Done::Looked(Err(RunError::Broker(error))) => self.unread(publishing, realm, &error),
            Done::Looked(Err(error)) => return Err(error),
        }
        Ok(())
    }
}

/// What has begun comes to its end, so that nothing is stored or sent any more once this returns.
async fn finish_in_order(work: Option<Work<'_>>) -> Result<(), RunError> {
    if let Some(work) = work {
        work.await;
    }
    Ok(())
}

/// Where the periodic look at the broker stands.
#[derive(Debug, Default)]
struct Audit {
    /// The uptime of the next look.
    due: Duration,
    /// The last address that was looked at.
    cursor: Option<Address>,
    /// What the last look missed, in words.
    trouble: Option<String>,
}

impl Audit {
    /// Manifest and keys, and the next of what should stand.
    fn window(&mut self, publisher: &Publisher) -> Vec<Address> {
        let standing: Vec<Address> = publisher.standing().into_iter().map(|(address, _)| address).collect();
        let begin = standing.partition_point(|address| Some(*address) <= self.cursor);
        let heads = |address: &Address| matches!(address, Address::Manifest | Address::Keys);
        let next: Vec<Address> =
            standing.iter().skip(begin).filter(|address| !heads(address)).take(AUDIT_OBJECTS).copied().collect();
        // After the last it begins with the first again.
        self.cursor = if next.len() < AUDIT_OBJECTS { None } else { next.last().copied() };
        standing.into_iter().filter(heads).chain(next).collect()
    }

    /// Notes what the broker had acknowledged and does not hold.
    fn note(&mut self, lost: &[Address]) {
        self.trouble = lost.first().map(|first| {
            let count = lost.len();
            format!("the broker acknowledged {count} objects that do not stand there, {first} among them; publishing them again")
        });
    }
}

async fn finish(work: &mut Option<Work<'_>>) -> Done {
    match work {
        Some(running) => running.await,
        None => pending().await,
    }
}

async fn finish_building(building: &mut Option<Building<'_>>) -> Result<Built, RunError> {
    match building {
        Some(running) => running.await,
        None => pending().await,
    }
}

impl Publishing {
    /// Builds an epoch beside everything else: filter, then the registry, then the rest (design rule 18).
    async fn build(&self, realm: RealmId, mut minted: Vec<Arc<FilterBuf>>, draft: Draft) -> Result<Built, RunError> {
        let coverage = self.ledger.coverage(realm).await?;
        let mut entropy = Ok(());
        // Drawn in there: after the entries were frozen.
        let (filtered, entropy) = blocking(move || {
            let filtered = draft.filter(&coverage, || {
                draw_salt().unwrap_or_else(|error| {
                    entropy = Err(error);
                    Salt([0; 16])
                })
            });
            (filtered, entropy)
        })
        .await?;
        entropy?;
        let filtered = Arc::new(filtered?);
        minted.push(Arc::clone(filtered.filter()));
        self.filters.set(realm, minted);
        let (coverage, excepted) =
            if filtered.takes_exceptions() { self.excepted(realm, &filtered).await? } else { (coverage, Vec::new()) };
        // The visitors are gone, so this is the last one that holds it.
        let filtered = Arc::into_inner(filtered).ok_or(RunError::Interrupted)?;
        Ok(blocking(move || filtered.build(&coverage, excepted)).await??)
    }

    /// The registered tokens that need an exception, and what the registry covers.
    async fn excepted(
        &self,
        realm: RealmId,
        filtered: &Arc<Filtered>,
    ) -> Result<(Coverage, Vec<Fingerprint>), RunError> {
        let (found, finds) = threads::channel();
        let visitors = (0..VISITORS).map(|_| {
            let (filtered, found) = (Arc::clone(filtered), found.clone());
            let visit = move |tokens: &[(Fingerprint, UnixTime)]| {
                let needed = tokens.iter().filter(|(fingerprint, exp)| filtered.needs_exception(*fingerprint, *exp));
                // Nobody listens any more: there is nothing to look for.
                found.send(needed.map(|(fingerprint, _)| *fingerprint).collect::<Vec<_>>()).is_ok()
            };
            Box::new(visit) as Visitor
        });
        let coverage = self.ledger.visit_registered(realm, visitors.collect()).await?;
        drop(found);
        Ok((coverage, finds.iter().flatten().collect()))
    }

    async fn load(&self, id: RealmId) -> Result<Publisher, RunError> {
        let realm = self.ledger.realm(id).await?;
        let head = self.ledger.head(id).await?;
        let objects = self.ledger.objects(id).await?;
        if let Some(published) = self.mark.as_ref().and_then(|mark| mark.beyond(id, head)) {
            return Err(PublishError::LedgerBehind { realm: id, head: head.1, published }.into());
        }
        let now = self.clock.now();
        let mut loading =
            Publisher::begin(realm, self.settings.borrow().clone(), self.signer.clone(), now, head, objects)?;
        let mut page = self.ledger.scan(id, Sequence(0), SCAN_LIMIT).await?;
        loop {
            // Asked for at once, so that the ledger reads the next page while this one is taken in.
            let last = page.last().filter(|_| page.len() == SCAN_LIMIT).map(|entry| entry.sequence);
            let next = last.map(|last| self.ledger.scan(id, last, SCAN_LIMIT));
            for entry in &page {
                // An entry of a later term than was read has slipped in: somebody else has taken over.
                if matches!(entry.statement, Statement::Resume { term } if term > head.0) {
                    return Err(RunError::Deposed);
                }
                loading.read(entry)?;
            }
            match next {
                Some(next) => page = next.await?,
                None => break,
            }
        }
        // The term counts only if nobody can have taken over since it was read.
        self.permitted()?;
        Ok(loading.finish())
    }

    /// Whether this process may still publish.
    fn permitted(&self) -> Result<(), RunError> {
        if self.permit.is_valid(self.clock.now()) { Ok(()) } else { Err(RunError::Deposed) }
    }

    /// Takes up what root keys have said since, and changed keys of the issuer.
    async fn look_at_keys(&self, publisher: &mut Publisher) -> Result<(), RunError> {
        let realm = publisher.realm.id;
        if let Some(object) = self.ledger.object(realm, Address::Keys.to_string()).await? {
            publisher.adopt_keys(&object.bytes)?;
        }
        let now = self.clock.now();
        match self.issuers.keys(&publisher.realm, now.wall.floor()) {
            Ok(keys) => publisher.take_issuer_keys(now, keys.document().to_string().as_bytes(), !keys.is_empty()),
            Err(error) => tracing::error!(%realm, error = %chain(&error), "the keys of the issuer cannot be read"),
        }
        Ok(())
    }

    fn foretell(&self, publisher: &Publisher, inquirer: Inquirer) {
        // Whoever asked may have gone.
        let _ = inquirer.send(publisher.forecast(self.clock.now()));
    }

    /// Sends what is new to whoever listens. Returns whether anything was.
    async fn send_live(&self, publisher: &mut Publisher) -> Result<bool, RunError> {
        let live = publisher.plan_live(self.clock.now())?;
        if live.is_empty() {
            return Ok(false);
        }
        let realm = publisher.realm.id;
        match self.execute(realm, publisher.term(), &live).await {
            Ok(()) => publisher.done(&live),
            Err(RunError::Broker(error)) => {
                // The ladder will carry it: it is stored.
                tracing::warn!(%realm, %error, "a live delta was not sent");
                publisher.failed();
            }
            Err(error) => self.not_published(publisher, &live, error).await?,
        }
        Ok(true)
    }

    /// Sends what is new once more. The API has ended by now: it is all that was acknowledged.
    async fn send_last(&self, publisher: &mut Publisher) -> Result<(), RunError> {
        self.catch_up(publisher).await?;
        self.send_live(publisher).await.map(drop)
    }

    /// What is retained is brought up to date, if that is due.
    async fn bring_up_to_date<'a>(
        &'a self,
        publisher: &mut Publisher,
        building: &mut Option<Building<'a>>,
    ) -> Result<Option<Work<'a>>, RunError> {
        let realm = publisher.realm.id;
        publisher.cover(self.ledger.coverage(realm).await?);
        if let Some(draft) = publisher.draft(self.clock.now())? {
            *building = Some(Box::pin(self.build(realm, publisher.filters(), draft)));
        }
        let plan = publisher.plan_standing(self.clock.now())?;
        if plan.is_empty() {
            return Ok(None);
        }
        let term = publisher.term();
        Ok(Some(Box::pin(async move {
            let outcome = self.execute(realm, term, &plan).await;
            Done::Published(plan, outcome)
        })))
    }

    /// A plan came to nothing. What can be mended by trying again is; anything else begins anew.
    async fn not_published(&self, publisher: &mut Publisher, plan: &Plan, error: RunError) -> Result<(), RunError> {
        let realm = publisher.realm.id;
        match &error {
            RunError::Broker(_) | RunError::NotRetained { .. } => publisher.failed(),
            // Nothing new can be said; that what was said still holds can.
            RunError::Ledger(LedgerError::StorageFull(_)) => {
                publisher.not_stored(plan);
                let heartbeat = publisher.plan_heartbeat(self.clock.now())?;
                match self.execute(realm, publisher.term(), &heartbeat).await {
                    Ok(()) if !heartbeat.is_empty() => self.tell(realm, |published| {
                        published.at = publisher.committed_at().unwrap_or(published.at);
                    }),
                    Ok(()) => {}
                    Err(RunError::Broker(error)) => tracing::warn!(%realm, %error, "a heartbeat was not sent"),
                    Err(error) => return Err(error),
                }
            }
            _ => return Err(error),
        }
        tracing::warn!(%realm, error = %chain(&error), "not everything was published; trying again");
        self.metrics.publication_failed(realm);
        self.tell(realm, |published| published.trouble = Some(chain(&error)));
        Ok(())
    }

    /// Hands questions on to the realms they belong to, until there may be a new realm.
    async fn hand_on(
        &self,
        listener: &mut Listener,
        known: &HashMap<RealmId, mpsc::Sender<Incoming>>,
        wakes: &mut watch::Receiver<u64>,
    ) {
        let begun = Instant::now();
        let mut until = begun + BACKOFF_MAX;
        loop {
            tokio::select! {
                changed = wakes.changed() => {
                    if changed.is_err() {
                        pending::<()>().await;
                    }
                    // Most commits found no realm.
                    until = until.min(begun + REALMS_PAUSE);
                }
                question = listener.next() => {
                    // A question is never retained: whoever left one there wants it asked for ever.
                    if question.retained {
                        continue;
                    }
                    let Some((realm, device)) = DeviceTopic::Ask.parse(&self.prefix, &question.topic) else { continue };
                    let Some(asked) = known.get(&realm) else { continue };
                    // An enrolled device is asked for in its own name only.
                    let standing = self.standings.judge(realm, device, Kind::Ask, &question.payload).await;
                    if standing == Standing::Unproven || asked.try_send(question).is_err() {
                        self.sent(realm, false);
                    }
                }
                () = sleep_until(until) => return,
            }
        }
    }

    /// Answers what waits, as far as it may be answered. Nothing waits for the answers to be sent.
    fn answer(&self, publisher: &Publisher, desk: &mut Desk, at: UnixMillis) -> Result<(), RunError> {
        let realm = publisher.realm.id;
        for message in std::mem::take(&mut desk.waiting) {
            let question = self.admit(publisher, desk, &message);
            let answer = match &question {
                Some(question) => publisher.answer(question, at)?,
                None => None,
            };
            match (question, answer) {
                (Some(question), Some(bytes)) if desk.sending.len() < QUESTIONS_MAX => {
                    let topic = DeviceTopic::Answer.topic(&self.prefix, &realm, &question.device);
                    let broker = self.broker.clone();
                    desk.sending.spawn(async move { broker.publish_answer(&topic, bytes).await });
                }
                _ => {
                    tracing::debug!(%realm, topic = message.topic, "a question is not answered");
                    self.sent(realm, false);
                }
            }
        }
        Ok(())
    }

    fn admit(&self, publisher: &Publisher, desk: &mut Desk, message: &Incoming) -> Option<Question> {
        // Nobody waits for it any more.
        if message.at.elapsed() > ASK_PATIENCE {
            return None;
        }
        let (_, device) = DeviceTopic::Ask.parse(&self.prefix, &message.topic)?;
        let Realm { id, fingerprinter, .. } = &publisher.realm;
        desk.admission.admit(self.clock.now().uptime, id, device, &message.payload, fingerprinter.width())
    }

    fn sent(&self, realm: RealmId, answered: bool) {
        self.tell(realm, |published| {
            let questions = &mut published.questions;
            let count = if answered { &mut questions.answered } else { &mut questions.dropped };
            *count += 1;
        });
    }

    async fn catch_up(&self, publisher: &mut Publisher) -> Result<(), RunError> {
        loop {
            let page = self.ledger.scan(publisher.realm.id, publisher.book().sequence(), SCAN_LIMIT).await?;
            for entry in &page {
                // Not begun by this task, which would have begun anew: by whoever took over.
                if matches!(entry.statement, Statement::Resume { .. }) {
                    return Err(RunError::Deposed);
                }
                publisher.take(entry)?;
            }
            if page.len() < SCAN_LIMIT {
                return Ok(());
            }
        }
    }

    /// Reads what must be known before anything is published: whether the broker holds something newer than the ledger.
    /// Returns whether it holds a manifest at all.
    async fn introduce(&self, publisher: &mut Publisher) -> Result<bool, RunError> {
        let realm = publisher.realm.id;
        let found = self.fetch(realm, &[Address::Manifest, Address::Keys]).await?;
        let manifest = found.iter().find(|(address, _)| *address == Address::Manifest);
        let manifest = manifest.and_then(|(_, bytes)| bytes.as_deref());
        if let Some(standing) = manifest.and_then(|bytes| own_manifest(realm, &publisher.believed(), bytes)) {
            let (term, reached) = (publisher.term(), publisher.book().sequence());
            if standing.term > term || (standing.term == term && standing.sequence > reached) {
                // Another server may have published since this one read the ledger.
                self.permitted()?;
                return Err(PublishError::LedgerBehind { realm, head: reached, published: standing.sequence }.into());
            }
            publisher.has_seen(&standing);
        }
        publisher.reconcile(found.iter().map(|(address, bytes)| (*address, bytes.as_deref().map(Digest::of))));
        Ok(manifest.is_some())
    }

    /// Looks at what stands at these addresses.
    fn look(&self, realm: RealmId, addresses: Vec<Address>) -> Work<'_> {
        Box::pin(async move { Done::Looked(self.digests(realm, &addresses).await) })
    }

    async fn digests(&self, realm: RealmId, addresses: &[Address]) -> Result<Found, RunError> {
        let mut found = Found::with_capacity(addresses.len());
        let mut parts = addresses.chunks(LOOK_OBJECTS);
        for part in parts.by_ref() {
            let bytes = self.fetch(realm, part).await?;
            found.extend(bytes.into_iter().map(|(address, bytes)| (address, bytes.as_deref().map(Digest::of))));
            let missing = found.iter().rev().take(part.len()).filter(|(_, digest)| digest.is_none()).count();
            if missing > MISSING_MAX {
                break;
            }
        }
        found.extend(parts.flatten().map(|address| (*address, None)));
        Ok(found)
    }

    async fn fetch(&self, realm: RealmId, addresses: &[Address]) -> Result<Vec<(Address, Option<Vec<u8>>)>, RunError> {
        let topics: Vec<String> = addresses.iter().map(|address| address.topic(&self.prefix, &realm)).collect();
        let found = self.broker.fetch_retained(&topics, READ_BACK_PATIENCE).await?;
        Ok(addresses.iter().copied().zip(found.into_iter().map(|(_, bytes)| bytes)).collect())
    }

    async fn execute(&self, realm: RealmId, term: revocast_core::Term, plan: &Plan) -> Result<(), RunError> {
        self.permitted()?;
        if !plan.puts.is_empty() {
            self.ledger.store_objects(realm, term, plan.puts.clone(), Vec::new()).await?;
        }
        let mut sending: JoinSet<Result<(), BrokerError>> = JoinSet::new();
        for step in &plan.steps {
            self.permitted()?;
            match step {
                Step::Live { bytes } => {
                    let topic = Address::Live.topic(&self.prefix, &realm);
                    self.broker.publish(&topic, bytes.clone(), false).await?;
                    self.metrics.published(realm, StepKind::live, bytes.len());
                }
                Step::Retain { address: Address::Manifest, bytes } => {
                    // The commit point: everything before it is acknowledged.
                    settle(&mut sending).await?;
                    self.broker.publish(&Address::Manifest.topic(&self.prefix, &realm), bytes.clone(), true).await?;
                    self.metrics.published(realm, StepKind::retain, bytes.len());
                }
                Step::Retain { address, bytes } => {
                    let (broker, topic, bytes) =
                        (self.broker.clone(), address.topic(&self.prefix, &realm), bytes.clone());
                    let metrics = Arc::clone(&self.metrics);
                    sending.spawn(async move {
                        let size = bytes.len();
                        broker.publish(&topic, bytes, true).await?;
                        metrics.published(realm, StepKind::retain, size);
                        Ok(())
                    });
                }
                Step::ReadBack { objects } => {
                    settle(&mut sending).await?;
                    self.read_back(realm, objects).await?;
                    self.metrics.published(realm, StepKind::read_back, 0);
                }
                Step::Clear { address } => {
                    self.broker.publish(&address.topic(&self.prefix, &realm), Vec::new(), true).await?;
                    self.metrics.published(realm, StepKind::clear, 0);
                }
            }
        }
        settle(&mut sending).await?;
        if !plan.deletes.is_empty() {
            self.ledger.store_objects(realm, term, Vec::<Object>::new(), plan.deletes.clone()).await?;
        }
        Ok(())
    }

    async fn read_back(&self, realm: RealmId, objects: &[(Address, Digest)]) -> Result<(), RunError> {
        let addresses: Vec<Address> = objects.iter().map(|(address, _)| *address).collect();
        let found = self.fetch(realm, &addresses).await?;
        for ((address, digest), (_, bytes)) in objects.iter().zip(&found) {
            if bytes.as_deref().map(Digest::of) != Some(*digest) {
                let topic = address.topic(&self.prefix, &realm);
                return Err(RunError::NotRetained { topic });
            }
        }
        Ok(())
    }

    /// The manifest stands: tell so, and let the ledger forget what it says is expired.
    async fn committed(&self, realm: RealmId, publisher: &Publisher, audit: &Audit, expired: &mut UnixTime) {
        let Some(manifest) = publisher.manifest() else { return };
        let trouble = publisher.clock_alarm().map(|alarm| alarm.to_string()).or_else(|| audit.trouble.clone());
        let trouble = trouble.or_else(|| publisher.issuer_trouble().map(str::to_owned));
        let (sizes, choice) = (publisher.sizes(), publisher.choice());
        let trouble = trouble.or_else(|| match publisher.salts_refused() {
            0 => None,
            salts => Some(format!("{salts} filters matched twice as often as was meant and were built anew")),
        });
        self.tell(realm, |published| {
            *published = Published {
                term: manifest.term,
                position: publisher.position().unwrap_or_default(),
                at: manifest.issued_at,
                objects: publisher.standing().len(),
                revocations: publisher.book().revoked_len() as u64,
                sizes,
                filter: publisher.filter_health(),
                choice,
                trouble,
                questions: published.questions,
                keys_version: publisher.keys_version(),
            };
        });
        if let Some(mark) = &self.mark {
            mark.raise(realm, (manifest.term, manifest.sequence));
        }
        // Many manifests of one second have one horizon.
        if manifest.horizon > *expired {
            match self.ledger.expire(realm, manifest.horizon).await {
                Ok(_) => *expired = manifest.horizon,
                Err(error) => tracing::warn!(%realm, %error, "expired entries were not dropped"),
            }
        }
    }

    /// Writes down how far was published, whenever that has changed; never ends by itself.
    async fn keep_mark(&self) {
        let Some(mark) = &self.mark else { return pending().await };
        loop {
            mark.raised().await;
            // What could not be written is tried again, also if nothing new is published.
            while !self.write_mark().await {
                sleep(BACKOFF_MAX).await;
            }
            sleep(MARK_PAUSE).await;
        }
    }

    /// Whether it stands there now.
    async fn write_mark(&self) -> bool {
        let Some(mark) = self.mark.clone() else { return true };
        // The runtime is ending: the mark stays a moment behind.
        let Ok(written) = blocking(move || mark.write()).await else { return false };
        if let Err(error) = &written {
            tracing::warn!(%error, "how far was published is not written down");
        }
        written.is_ok()
    }

    async fn go_on_beyond(&self, realm: RealmId, published: Sequence) {
        match self.ledger.resume(realm, self.clock.unix_time(), published).await {
            Ok((term, sequence)) => tracing::warn!(%realm, %term, %sequence, "the ledger goes on in a new term"),
            Err(error) => tracing::error!(%realm, %error, "the ledger cannot go on"),
        }
    }

    fn tell(&self, realm: RealmId, change: impl FnOnce(&mut Published)) {
        self.published.send_modify(|realms| change(realms.entry(realm).or_default()));
    }
}

/// A manifest at the broker, if a key of ours signed it.
fn own_manifest(realm: RealmId, believed: &[PublicKey], bytes: &[u8]) -> Option<Manifest> {
    let sealed = Sealed::expect(bytes, &realm, Kind::Manifest).ok()?;
    let body = sealed.by_threshold(believed, 1).ok()?;
    body.try_map(wire::decode_manifest).ok().map(revocast_core::Verified::into_inner)
}

async fn settle(sending: &mut JoinSet<Result<(), BrokerError>>) -> Result<(), BrokerError> {
    while let Some(sent) = sending.join_next().await {
        sent.unwrap_or_else(|error| Err(BrokerError::Broken { cause: error.to_string() }))?;
    }
    Ok(())
}

/// Runs what takes long on a thread where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Interrupted)
}

/// A salt that was never used and cannot be foreseen.
fn draw_salt() -> Result<Salt, RunError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| RunError::NoEntropy { cause: error.to_string() })?;
    Ok(Salt(bytes))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
