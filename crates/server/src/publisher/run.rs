//! Executes plans: stores, publishes, reads back, and begins again when a connection breaks.
//!
//! One task a realm. Deltas go out as soon as they are cut; what is retained follows beside them, so
//! that a large epoch on its way never delays a revocation.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, mpsc as threads};
use std::time::Duration;

use revocast_core::limits::ASK_PATIENCE;
use revocast_core::update::{DeviceTopic, Question};
use revocast_core::{
    Address, Digest, FilterBuf, Fingerprint, Kind, Manifest, RealmId, Salt, Sealed, Sequence, UnixMillis, UnixTime,
    wire,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::Admission;
use super::{Built, Draft, Filtered, Plan, PublishError, Publisher, Settings, Signer, Step};
use crate::broker::{Broker, BrokerError, Hearing, Incoming, LinkState, Listener};
use crate::clock::Clock;
use crate::ledger::{Coverage, Ledger, LedgerError, Object, Realm, Visitor};
use crate::metrics::{Metrics, StepKind};
use crate::minting::LiveFilters;
use crate::service::{Published, PublishedRealms};

/// How long to wait for a retained message before taking it for missing.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(2);

/// Threads that look through the registry at the same time.
const VISITORS: usize = 2;

/// Entries read from the ledger at a time.
const SCAN_LIMIT: usize = 10_000;

/// Questions that wait for a realm's publisher, and answers on their way at a time. What comes beyond
/// is dropped and counted.
const QUESTIONS_MAX: usize = 64;

/// Questions that wait to be handed on. What comes beyond is dropped and counted: devices ask again.
const QUESTIONS_WAITING_MAX: usize = 256;

/// Bytes of a question that is looked at: four times the longest.
const QUESTION_BYTES_MAX: usize = 1024;

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
    pub settings: Settings,
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
    #[error(
        "the broker acknowledged {topic} ({bytes} bytes) but does not retain it; check its access rules and size limits"
    )]
    NotRetained {
        /// Its topic.
        topic: String,
        /// Its size.
        bytes: usize,
    },
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

/// Publishes every realm, those founded later included, until `stop` is told or dropped.
///
/// When this returns, nothing of it holds the ledger any more.
pub async fn run(publishing: Publishing, stop: oneshot::Receiver<()>) {
    let mut tasks = JoinSet::new();
    tokio::select! {
        never = tend(&publishing, &mut tasks) => match never {},
        _ = stop => {}
    }
    // Each may end anywhere: after a restart it goes on from what is stored.
    tasks.shutdown().await;
}

/// Starts a task for each realm and hands questions on to them.
async fn tend(publishing: &Publishing, tasks: &mut JoinSet<()>) -> Infallible {
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
                        tasks.spawn(keep_publishing(publishing.clone(), realm.id, questions));
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
        publishing.hand_on(&mut listener, &known, &mut wakes).await;
    }
}

/// Publishes one realm; after a failure it begins anew from what is stored.
async fn keep_publishing(publishing: Publishing, realm: RealmId, questions: mpsc::Receiver<Incoming>) {
    let mut backoff = BACKOFF_MIN;
    let mut desk = Desk { questions, admission: Admission::default(), waiting: Vec::new(), sending: JoinSet::new() };
    loop {
        let started = publishing.clock.now().uptime;
        let Err(error) = publish(&publishing, realm, &mut desk).await;
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
        sleep(backoff).await;
    }
}

/// An epoch on its way. It may take seconds, in which revocations go on.
type Building<'a> = Pin<Box<dyn Future<Output = Result<Built, RunError>> + Send + 'a>>;

type Catalog<'a> = Pin<Box<dyn Future<Output = (Plan, Result<(), RunError>)> + Send + 'a>>;

/// Where a realm's questions are taken in and answered.
struct Desk {
    questions: mpsc::Receiver<Incoming>,
    admission: Admission,
    waiting: Vec<Incoming>,
    sending: JoinSet<Result<(), BrokerError>>,
}

impl Desk {
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

async fn publish(publishing: &Publishing, realm: RealmId, desk: &mut Desk) -> Result<Infallible, RunError> {
    let mut wakes = publishing.ledger.subscribe();
    let mut link = publishing.broker.state();
    let mut publisher = publishing.load(realm).await?;
    publishing.filters.set(realm, publisher.filters());
    let mut reconciled = None;
    let mut catalog: Option<Catalog<'_>> = None;
    let mut building: Option<Building<'_>> = None;
    let mut audit_at = Duration::ZERO;
    loop {
        wakes.mark_unchanged();
        let state = link.borrow_and_update().clone();
        let connection = match state {
            LinkState::Up { connection } => connection,
            LinkState::Connecting | LinkState::Down { .. } => {
                catalog = None;
                publishing.tell(realm, |published| {
                    published.trouble = Some("there is no connection to the broker".to_owned());
                });
                let _ = link.changed().await;
                continue;
            }
        };
        let now = publishing.clock.now();
        if reconciled != Some(connection) || now.uptime >= audit_at {
            let whole = reconciled != Some(connection);
            match publishing.reconcile(&mut publisher, whole).await {
                Ok(()) => reconciled = Some(connection),
                Err(RunError::Broker(error)) => {
                    tracing::warn!(%realm, %error, "what the broker retains cannot be read");
                    sleep(BACKOFF_MIN).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            audit_at = now.uptime + publishing.settings.heartbeat;
        }
        let asked_by = publisher.time_of_answers(publishing.clock.now());
        publishing.catch_up(&mut publisher).await?;
        let live = publisher.plan_live(publishing.clock.now())?;
        if !live.is_empty() {
            match publishing.execute(realm, publisher.term(), &live).await {
                Ok(()) => publisher.done(&live),
                Err(RunError::Broker(error)) => {
                    // The ladder will carry it: it is stored.
                    tracing::warn!(%realm, %error, "a live delta was not sent");
                    publisher.failed();
                }
                Err(error) => return Err(error),
            }
        }
        publishing.answer(&publisher, desk, asked_by)?;
        if catalog.is_none() {
            let coverage = publishing.ledger.coverage(realm).await?;
            publisher.cover(coverage);
            if let Some(draft) = publisher.draft(publishing.clock.now())? {
                building = Some(Box::pin(publishing.build(realm, publisher.filters(), draft)));
            }
            let plan = publisher.plan_standing(publishing.clock.now())?;
            if !plan.is_empty() {
                let term = publisher.term();
                catalog = Some(Box::pin(async move {
                    let outcome = publishing.execute(realm, term, &plan).await;
                    (plan, outcome)
                }));
            }
        }
        // While a catalog is on its way its end is awaited, not the next deadline; before the first epoch, that.
        let until = publisher.deadline().min(audit_at).saturating_sub(publishing.clock.now().uptime);
        let waiting = catalog.is_none() && (building.is_none() || publisher.position().is_some());
        tokio::select! {
            built = finish_building(&mut building) => {
                building = None;
                publisher.install(publishing.clock.now(), built?);
                publishing.filters.set(realm, publisher.filters());
            }
            (plan, outcome) = finish(&mut catalog) => {
                catalog = None;
                match outcome {
                    Ok(()) => {
                        publisher.done(&plan);
                        publishing.committed(realm, &publisher).await;
                    }
                    Err(error @ (RunError::Broker(_) | RunError::NotRetained { .. })) => {
                        tracing::warn!(%realm, error = %chain(&error), "not everything was published; trying again");
                        publishing.metrics.publication_failed(realm);
                        publishing.tell(realm, |published| published.trouble = Some(chain(&error)));
                        publisher.failed();
                        sleep(BACKOFF_MIN).await;
                    }
                    Err(error) => return Err(error),
                }
            }
            _ = wakes.changed() => {}
            _ = link.changed() => {}
            Some(question) = desk.questions.recv() => desk.take_in(question),
            Some(sent) = desk.sending.join_next() => publishing.sent(realm, sent.is_ok_and(|sent| sent.is_ok())),
            () = sleep(until), if waiting => {}
        }
    }
}

async fn finish(catalog: &mut Option<Catalog<'_>>) -> (Plan, Result<(), RunError>) {
    match catalog {
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
        let mut entries = Vec::new();
        let mut after = Sequence(0);
        loop {
            let page = self.ledger.scan(id, after, SCAN_LIMIT).await?;
            let full = page.len() == SCAN_LIMIT;
            after = page.last().map_or(after, |entry| entry.sequence);
            entries.extend(page);
            if !full {
                break;
            }
        }
        let now = self.clock.now();
        Ok(Publisher::load(realm, self.settings.clone(), self.signer.clone(), now, head, objects, entries)?)
    }

    /// Hands questions on to the realms they belong to, until there may be a new realm.
    async fn hand_on(
        &self,
        listener: &mut Listener,
        known: &HashMap<RealmId, mpsc::Sender<Incoming>>,
        wakes: &mut watch::Receiver<u64>,
    ) {
        let until = Instant::now() + BACKOFF_MAX;
        loop {
            tokio::select! {
                changed = wakes.changed() => {
                    if changed.is_err() {
                        pending::<()>().await;
                    }
                    return;
                }
                question = listener.next() => {
                    // A question is never retained: whoever left one there wants it asked for ever.
                    if question.retained {
                        continue;
                    }
                    let Some((realm, _)) = DeviceTopic::Ask.parse(&self.prefix, &question.topic) else { continue };
                    let Some(asked) = known.get(&realm) else { continue };
                    if asked.try_send(question).is_err() {
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
                publisher.take(entry)?;
            }
            if page.len() < SCAN_LIMIT {
                return Ok(());
            }
        }
    }

    /// Compares what stands at the broker with what should: everything, or the manifest alone.
    async fn reconcile(&self, publisher: &mut Publisher, whole: bool) -> Result<(), RunError> {
        let realm = publisher.realm.id;
        let mut wanted: Vec<Address> = publisher.standing().into_iter().map(|(address, _)| address).collect();
        if !whole {
            wanted.retain(|address| matches!(address, Address::Manifest | Address::Keys));
        } else if !wanted.contains(&Address::Manifest) {
            wanted.push(Address::Manifest);
        }
        let found = self.fetch(realm, &wanted).await?;
        let manifest = found.iter().find(|(address, _)| *address == Address::Manifest);
        if let Some((_, Some(bytes))) = manifest
            && let Some(standing) = self.own_manifest(realm, bytes)
        {
            publisher.skip_epochs_through(standing.epoch);
            let (term, reached) = (publisher.term(), publisher.book().sequence());
            if standing.term > term || (standing.term == term && standing.sequence > reached) {
                return Err(PublishError::LedgerBehind { realm, head: reached, published: standing.sequence }.into());
            }
        }
        let digests = found.iter().map(|(address, bytes)| (*address, bytes.as_deref().map(Digest::of)));
        let missing = digests.clone().filter(|(_, digest)| digest.is_none()).count();
        publisher.reconcile(digests);
        if missing > 0 && !whole {
            // The manifest is gone without the connection having broken: so may be the rest.
            tracing::warn!(%realm, "the broker has lost what it retained; publishing it again");
            let rest: Vec<Address> = publisher.standing().into_iter().map(|(address, _)| address).collect();
            let found = self.fetch(realm, &rest).await?;
            publisher.reconcile(found.iter().map(|(address, bytes)| (*address, bytes.as_deref().map(Digest::of))));
        }
        Ok(())
    }

    /// A manifest at the broker, if our own key signed it.
    fn own_manifest(&self, realm: RealmId, bytes: &[u8]) -> Option<Manifest> {
        let sealed = Sealed::expect(bytes, &realm, Kind::Manifest).ok()?;
        let body = sealed.by_threshold(&[self.signer.content.public()], 1).ok()?;
        body.try_map(wire::decode_manifest).ok().map(revocast_core::Verified::into_inner)
    }

    async fn fetch(&self, realm: RealmId, addresses: &[Address]) -> Result<Vec<(Address, Option<Vec<u8>>)>, RunError> {
        let topics: Vec<String> = addresses.iter().map(|address| address.topic(&self.prefix, &realm)).collect();
        let found = self.broker.fetch_retained(&topics, READ_BACK_PATIENCE).await?;
        Ok(addresses.iter().copied().zip(found.into_iter().map(|(_, bytes)| bytes)).collect())
    }

    async fn execute(&self, realm: RealmId, term: revocast_core::Term, plan: &Plan) -> Result<(), RunError> {
        if !plan.puts.is_empty() {
            self.ledger.store_objects(realm, term, plan.puts.clone(), Vec::new()).await?;
        }
        let mut sending: JoinSet<Result<(), BrokerError>> = JoinSet::new();
        for step in &plan.steps {
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
                return Err(RunError::NotRetained { topic, bytes: bytes.as_ref().map_or(0, Vec::len) });
            }
        }
        Ok(())
    }

    /// The manifest stands: tell so, and let the ledger forget what it says is expired.
    async fn committed(&self, realm: RealmId, publisher: &Publisher) {
        let Some(manifest) = publisher.manifest() else { return };
        let trouble = publisher.clock_alarm().map(|alarm| alarm.to_string());
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
            };
        });
        if let Err(error) = self.ledger.expire(realm, manifest.horizon).await {
            tracing::warn!(%realm, %error, "expired entries were not dropped");
        }
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
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
