//! The loop that joins link, replica, checkers and store.
//!
//! It decides nothing: the replica does. The order on a delta is verify, decode, expose, persist,
//! report; writing happens on a thread of its own, so a slow disk delays no revocation, and a disk
//! that fails softens none.

use std::future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use revocast_core::limits::MEMORY_BUDGET_MIN;
use revocast_core::seal::{Kind, seal};
use revocast_core::state::Image;
use revocast_core::update::Report;
use revocast_core::wire::encode_report;
use revocast_core::{
    Action, Address, Base, DeviceId, Doubt, Epoch, Event, Hold, Holding, Now, Position, Profile, RealmId, Refusal,
    Replica, Sequence, Term, UnixMillis,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::checker::{Checker, Exposure};
use crate::clock::{Clock, SystemClock};
use crate::config::{DeviceConfig, TokenFeed};
use crate::fallback::{Asker, Waiting, Wish};
use crate::identity::Identity;
use crate::inbox::{Chore, Declined, Inbox, InboxError, Keeper};
use crate::issuer_keys::Feed;
use crate::link::{Link, LinkConfig, LinkConfigError, LinkEvent, LinkStats, Transport};
use crate::store::{Slot, Store, StoreError};
use crate::validator::LiveKeys;

/// Refusals of one kind are logged at most this often; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A device that follows one realm. It stops when this is dropped.
#[derive(Debug)]
pub struct Device {
    checker: Checker,
    asker: Asker,
    status: watch::Receiver<Status>,
    inbox: Option<Inbox>,
    issuer_keys: Option<LiveKeys>,
    proofs: mpsc::Sender<UnixMillis>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Device {
    /// Reads the stored state and begins to follow. Needs a tokio runtime.
    ///
    /// When this returns, checkers answer from the stored state, connected or not. Without any, or
    /// with state that is damaged, they answer `Unknown` until the device has caught up.
    ///
    /// A memory budget into which nothing of the stored base fits is refused ([`StartError::Budget`]). Where nothing is
    /// stored, the first index tells: see [`Holding::needed`] in [`Status::holding`].
    pub async fn start(config: DeviceConfig, store: impl Store + 'static) -> Result<Self, StartError> {
        let link = LinkConfig::new(&config)?;
        Self::start_over(config, store, SystemClock, |token| Link::start(link.with_token(token))).await
    }

    /// The same over another transport and clock. The transport is started once the state is loaded, and may show the
    /// device's own token.
    pub async fn start_over<T: Transport + 'static>(
        config: DeviceConfig,
        store: impl Store + 'static,
        clock: impl Clock + 'static,
        transport: impl FnOnce(Option<TokenFeed>) -> T,
    ) -> Result<Self, StartError> {
        let now = clock.now();
        let device = config.client_id.device();
        if let Some(inbox) = &config.inbox {
            inbox.check(config.realm, device)?;
        }
        let (restored, store, config) = spawn_blocking(move || {
            let mut store = store;
            let restored =
                restore(&config, &mut store, now).and_then(|restored| Ok((restored, aside(&config, &mut store)?)));
            (restored, store, config)
        })
        .await
        .map_err(|_| StartError::Interrupted)?;
        let (Restored { mut replica, found, realm }, aside) = restored?;
        let (checker, exposure) = Checker::new(Arc::new(replica.set().clone()));
        let identity = config.inbox.as_ref().map(|inbox| Arc::clone(&inbox.identity));
        if let Some(identity) = &identity {
            replica.sign_by(identity.signing().clone());
        }
        // Keys before the token that they have signed.
        let wanted = config.issuer_keys.is_some() || config.inbox.is_some();
        let feed =
            wanted.then(|| Feed::new(config.issuer_keys.unwrap_or_default(), &realm, aside.issuer_keys.as_deref()));
        let issuer_keys = feed.as_ref().map(|feed| feed.live().clone());
        let keeper = config.inbox.map(|inbox| {
            let keys = issuer_keys.clone().unwrap_or_default();
            let seed = config.replica.seed.rotate_left(32);
            Keeper::new(inbox, checker.clone(), keys, now, seed, aside.token.as_deref())
        });
        let inbox = keeper.as_ref().map(Keeper::inbox);
        let token = keeper.as_ref().map(Keeper::shown);
        let (asker, wishes) = Asker::new(checker.clone());
        let status = watch::Sender::new(Status::new(found, replica.holding()));
        let (stop, stopped) = oneshot::channel();
        let (proofs, proven) = mpsc::channel(1);
        let mut driver = Driver {
            held: Held::of(&replica),
            watcher: status.subscribe(),
            status,
            replica,
            realm,
            device,
            wishes,
            waiting: Waiting::default(),
            link: transport(token),
            clock,
            exposure,
            store: Arc::new(Mutex::new(store)),
            writing: None,
            identity,
            feed,
            keeper,
            online: false,
            asked_under: None,
            due: Due::default(),
            putting: None,
            proven,
            logged: [None; Refusal::COUNT],
        };
        // Whoever looks at once sees what was restored, not a device without state.
        driver.tell();
        let status = driver.watcher.clone();
        let task = tokio::spawn(driver.run(stopped));
        Ok(Self { checker, asker, status, inbox, issuer_keys, proofs, stop: Some(stop), task })
    }

    /// Where to ask questions. Remains usable after the device has stopped, and grows stale then.
    #[must_use]
    pub fn checker(&self) -> Checker {
        self.checker.clone()
    }

    /// Where to ask the server about a token, when this device cannot say.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// The device's own token; `None` unless [`DeviceConfig::with_inbox`] gave it an identity.
    #[must_use]
    pub fn inbox(&self) -> Option<Inbox> {
        self.inbox.clone()
    }

    /// The issuer's public keys, kept up to date; `None` unless they are followed ([`DeviceConfig::with_issuer_keys`], or
    /// for an inbox). After a restart those that were kept are in force at once, connected or not.
    #[must_use]
    pub fn issuer_keys(&self) -> Option<LiveKeys> {
        self.issuer_keys.clone()
    }

    /// How it goes, and news of it.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Tells the time for sure: from a radio clock, NTS, or a signed answer to a nonce of one's own.
    ///
    /// For devices whose wall clock cannot be trusted; uptime carries it on from here. Told a second
    /// time before the first was taken in, it is ignored.
    pub fn prove_time(&self, wall: UnixMillis) {
        let _ = self.proofs.try_send(wall);
    }

    /// Stops: writes down what is unwritten, says goodbye to the broker.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let _ = (&mut self.task).await;
    }
}

/// Why a device could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The link's configuration contradicts itself.
    #[error("the link cannot be started")]
    Link(#[from] LinkConfigError),
    /// The store cannot be read at all. Damaged state is no error: the device begins anew.
    #[error("the stored state cannot be read")]
    Store(#[from] StoreError),
    /// The memory budget holds nothing: of any realm, or of the base that is stored.
    #[error("a memory budget of {budget} bytes holds nothing of this realm; {needed} bytes would do")]
    Budget {
        /// What was given.
        budget: u64,
        /// What would do.
        needed: u64,
    },
    /// The inbox does not fit the device.
    #[error("the device cannot take in tokens")]
    Inbox(#[from] InboxError),
    /// The runtime is shutting down.
    #[error("the runtime ended before the state was loaded")]
    Interrupted,
}

/// How a device is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What was found at start.
    pub found: FoundState,
    /// Whether there is a connection to the broker.
    pub connected: bool,
    /// Why the last connection ended.
    pub last_loss: Option<String>,
    /// Term of the ledger it follows.
    pub term: Term,
    /// Where its set stands.
    pub position: Position,
    /// Why an answer other than "revoked" cannot be given; as of the last event.
    pub doubt: Option<Doubt>,
    /// What is held of the realm, what may be, and what each profile of the held base would take. Its `needed` is set
    /// while the newest base does not fit at all: then this device holds an older one, or answers `Unknown`.
    pub holding: Holding,
    /// Refusals since the start, by [`Refusal::number`].
    pub refusals: [u64; Refusal::COUNT],
    /// The last one.
    pub last_refusal: Option<Refusal>,
    /// Images written down since the start.
    pub persisted: u64,
    /// Images that could not be written down.
    pub persist_failures: u64,
    /// What the link has counted.
    pub link: LinkStats,
}

impl Status {
    fn new(found: FoundState, holding: Holding) -> Self {
        Self {
            found,
            connected: false,
            last_loss: None,
            term: Term::default(),
            position: Position::default(),
            doubt: Some(Doubt::NoState),
            holding,
            refusals: [0; Refusal::COUNT],
            last_refusal: None,
            persisted: 0,
            persist_failures: 0,
            link: LinkStats::default(),
        }
    }

    /// Refusals since the start, all kinds together.
    #[must_use]
    pub fn refusals_total(&self) -> u64 {
        self.refusals.iter().sum()
    }
}

/// What a device found in its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// Nothing: it starts for the first time, or keeps nothing.
    Nothing,
    /// State, verified.
    Restored {
        /// Whether a newer or other slot was damaged.
        damaged: bool,
    },
    /// No whole state: it began anew, or from what a head without its base still holds.
    Damaged {
        /// What was wrong with the newest that could be read at all.
        refusal: Option<Refusal>,
    },
}

struct Restored {
    replica: Replica,
    found: FoundState,
    realm: RealmId,
}

/// Goes on from the newest state that is whole, or anew.
fn restore(config: &DeviceConfig, store: &mut impl Store, now: Now) -> Result<Restored, StartError> {
    let realm = config.realm;
    // Made without `Config::within`, which refuses it.
    if let Hold::Budget(budget @ ..MEMORY_BUDGET_MIN) = config.replica.hold {
        return Err(StartError::Budget { budget, needed: MEMORY_BUDGET_MIN });
    }
    let heads = store.heads()?;
    let mut damaged = heads.damaged > 0;
    let mut refused = None;
    for candidate in &heads.candidates {
        let base = match &candidate.base {
            Some(digest) => store.base(digest)?,
            None => None,
        };
        let (replica, trust) = (config.replica.clone(), config.trust.clone());
        match Replica::restore(replica, realm, trust, now, &candidate.head, base.as_deref()) {
            Ok(replica) => {
                tracing::info!(%realm, revision = candidate.revision, damaged, "state restored");
                if candidate.base.is_some() && replica.set().base().is_none() {
                    tracing::warn!(%realm, "the stored base is for another profile or a larger budget; answering unknown until one is fetched");
                }
                return Ok(Restored { replica, found: FoundState::Restored { damaged }, realm });
            }
            // Nothing is damaged: its owner can give it more, and loses nothing meanwhile.
            Err(Refusal::TooLarge { bytes: needed, max: budget }) => return Err(StartError::Budget { budget, needed }),
            Err(refusal) => {
                tracing::error!(%realm, revision = candidate.revision, refusal = refusal.name(), %refusal, "stored state refused");
                damaged = true;
                refused.get_or_insert(refusal);
            }
        }
    }
    // Without its base a head still holds floors, horizon and the revocations since.
    for candidate in &heads.candidates {
        let (replica, trust) = (config.replica.clone(), config.trust.clone());
        if let Ok(replica) = Replica::salvage(replica, realm, trust, now, &candidate.head) {
            tracing::error!(%realm, revision = candidate.revision, "the stored base is lost; answering unknown until it is fetched");
            return Ok(Restored { replica, found: FoundState::Damaged { refusal: refused }, realm });
        }
    }
    let found = if damaged {
        tracing::error!(%realm, "no stored state can be used; beginning anew, and answering unknown until caught up");
        FoundState::Damaged { refusal: refused }
    } else {
        FoundState::Nothing
    };
    Ok(Restored { replica: Replica::new(config.replica.clone(), realm, config.trust.clone()), found, realm })
}

/// What is kept beside the replica's state.
#[derive(Default)]
struct Aside {
    token: Option<Vec<u8>>,
    issuer_keys: Option<Vec<u8>>,
}

/// Reads it, as far as it is of use. Damage is told and costs what is in that slot.
fn aside(config: &DeviceConfig, store: &mut impl Store) -> Result<Aside, StoreError> {
    let mut read = |slot, wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        match store.slot(slot) {
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(realm = %config.realm, %error, "begun anew without it");
                Ok(None)
            }
            other => other,
        }
    };
    let inbox = config.inbox.is_some();
    Ok(Aside {
        token: read(Slot::Token, inbox)?,
        issuer_keys: read(Slot::IssuerKeys, inbox || config.issuer_keys.is_some())?,
    })
}

/// What tells that another base is held than before, or that none fits: cheaper than to ask what is held.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    base: Option<(Term, Epoch, Profile, Option<Sequence>)>,
    needed: Option<u64>,
}

impl Held {
    fn of(replica: &Replica) -> Self {
        let parts = |base: &Base| (base.term(), base.epoch(), base.profile(), base.folded_through());
        Self { base: replica.set().base().map(parts), needed: replica.budget_needed() }
    }
}

/// An image on its way to the disk.
struct Writing {
    revision: u64,
    task: JoinHandle<Result<(), StoreError>>,
}

/// What is to be put into slots, the latest of each.
#[derive(Default)]
struct Due {
    token: Option<Vec<u8>>,
    issuer_keys: Option<Vec<u8>>,
}

/// Something on its way into a slot.
struct Putting {
    slot: Slot,
    task: JoinHandle<Result<(), StoreError>>,
}

struct Driver<T, C, S> {
    replica: Replica,
    /// What the status says of the holding.
    held: Held,
    realm: RealmId,
    device: DeviceId,
    wishes: mpsc::Receiver<Wish>,
    /// Who waits for which answer.
    waiting: Waiting,
    link: T,
    clock: C,
    exposure: Exposure,
    store: Arc<Mutex<S>>,
    writing: Option<Writing>,
    /// Who this device is, if it was told.
    identity: Option<Arc<Identity>>,
    feed: Option<Feed>,
    keeper: Option<Keeper>,
    online: bool,
    /// Version of the keys under which issuer keys and deliveries were subscribed: what those before could not verify
    /// may be good now.
    asked_under: Option<u64>,
    due: Due,
    putting: Option<Putting>,
    proven: mpsc::Receiver<UnixMillis>,
    status: watch::Sender<Status>,
    /// Keeps the status alive when nobody looks.
    watcher: watch::Receiver<Status>,
    /// When a refusal of each kind was last logged, by uptime.
    logged: [Option<Duration>; Refusal::COUNT],
}

impl<T: Transport, C: Clock, S: Store + 'static> Driver<T, C, S> {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            while let Some(action) = self.replica.poll_action() {
                self.perform(action);
            }
            self.tend();
            self.tell();
            let deadline = self.deadline();
            tokio::select! {
                event = self.link.next() => self.take_in(event),
                () = self.clock.until(deadline) => self.handle(Event::Elapsed),
                saved = saved(&mut self.writing) => self.written(saved),
                (slot, outcome) = put(&mut self.putting) => self.was_put(slot, &outcome),
                Some(wish) = self.wishes.recv() => self.ask(wish),
                Some(wall) = self.proven.recv() => self.handle(Event::TimeProven { wall }),
                _ = &mut stopped => break,
            }
        }
        self.write_down().await;
        self.link.close().await;
    }

    fn handle(&mut self, event: Event<'_>) {
        self.replica.handle(self.clock.now(), event);
    }

    fn deadline(&self) -> Option<Duration> {
        let keeper = self.keeper.as_ref().and_then(|keeper| keeper.deadline(self.clock.now(), self.can_ask()));
        self.replica.deadline().into_iter().chain(keeper).min()
    }

    /// Whether an answer to a request could arrive, and be believed.
    fn can_ask(&self) -> bool {
        self.online && self.replica.keys().is_some()
    }

    /// Sees to the issuer's keys and the device's own token.
    fn tend(&mut self) {
        let under = self.replica.keys().map(|keys| keys.version).filter(|_| self.online);
        if self.asked_under != under {
            self.asked_under = under;
            if under.is_some() {
                if self.feed.is_some() {
                    self.link.subscribe(Address::IssuerKeys);
                }
                if self.keeper.is_some() {
                    self.link.subscribe(Address::Delivery);
                }
            }
        }
        let (now, can_ask) = (self.clock.now(), self.can_ask());
        if let Some(keeper) = &mut self.keeper {
            keeper.settle(now, self.feed.as_ref().map_or(0, Feed::generation));
            while let Some(chore) = keeper.poll(now, can_ask) {
                match chore {
                    Chore::Keep(bytes) => self.due.token = Some(bytes),
                    Chore::Send(sealed) => self.link.renew(sealed),
                }
            }
        }
        self.put_next();
    }

    /// Takes in what arrived for others than the replica.
    fn hear(&mut self, address: Address, payload: &[u8]) {
        let now = self.clock.now();
        // An empty payload clears a retained message; it says nothing.
        let outcome = match (address, &mut self.feed, &mut self.keeper) {
            _ if payload.is_empty() => Ok(()),
            (Address::IssuerKeys, Some(feed), _) => feed.take(now, &self.replica, payload).map(|news| {
                if news {
                    tracing::info!(realm = %self.realm, "issuer keys taken in");
                    self.due.issuer_keys = Some(payload.to_vec());
                }
            }),
            (_, _, Some(keeper)) => match keeper.take(now, &self.replica, payload) {
                Err(Declined::Refusal(refusal)) => Err(refusal),
                Err(declined) => {
                    tracing::warn!(realm = %self.realm, "{declined}");
                    Ok(())
                }
                Ok(()) => Ok(()),
            },
            _ => Ok(()),
        };
        if let Err(refusal) = outcome {
            self.replica.count(refusal);
        }
    }

    /// Writes the next slot on a thread where waiting is allowed, one at a time.
    fn put_next(&mut self) {
        if self.putting.is_some() {
            return;
        }
        let token = self.due.token.take().map(|bytes| (Slot::Token, bytes));
        let next = token.or_else(|| self.due.issuer_keys.take().map(|bytes| (Slot::IssuerKeys, bytes)));
        let Some((slot, bytes)) = next else { return };
        let store = Arc::clone(&self.store);
        let task = spawn_blocking(move || store.lock().unwrap_or_else(PoisonError::into_inner).put(slot, &bytes));
        self.putting = Some(Putting { slot, task });
    }

    fn was_put(&mut self, slot: Slot, outcome: &Result<(), Option<StoreError>>) {
        if let Err(error) = outcome {
            let error = error.as_ref().map_or_else(|| "the writing thread failed".to_owned(), describe);
            tracing::warn!(realm = %self.realm, ?slot, error, "not written; what is known stays in force");
        }
        match (slot, &mut self.keeper) {
            (Slot::Token, Some(keeper)) => keeper.kept(self.clock.now(), outcome.is_ok()),
            // The next start begins without them; the server has them standing.
            (Slot::Token | Slot::IssuerKeys, _) => {}
        }
    }

    fn take_in(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected => {
                self.online = true;
                self.status.send_modify(|status| status.connected = true);
                self.handle(Event::Connected);
            }
            LinkEvent::Disconnected { why } => {
                self.status.send_modify(|status| {
                    status.connected = false;
                    status.last_loss = Some(why);
                });
                self.online = false;
                self.handle(Event::Disconnected);
            }
            LinkEvent::Packet { address: address @ (Address::IssuerKeys | Address::Delivery), payload } => {
                self.hear(address, &payload);
            }
            LinkEvent::Packet { address, payload } => self.handle(Event::Packet { address, payload: &payload }),
            LinkEvent::Oversize { address: Some(address), bytes } => self.handle(Event::Oversize { address, bytes }),
            // Whose it was is found out by the link; it is counted there.
            LinkEvent::Oversize { address: None, bytes: _ } => {}
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Expose(set) => self.exposure.expose(set),
            Action::Subscribe(address) => self.link.subscribe(address),
            Action::Unsubscribe(address) => self.link.unsubscribe(address),
            Action::Persist(image) => self.persist(image),
            Action::Report(report) => self.report(&report),
            Action::Ask(sealed) => self.link.ask(sealed),
            Action::Answered { nonce, finding } => self.waiting.answered(&nonce, finding),
            Action::Refused(refusal) => self.refused(refusal),
        }
    }

    /// Writes on a thread where waiting is allowed. A replica has one image on its way at a time.
    fn persist(&mut self, image: Image) {
        let store = Arc::clone(&self.store);
        let revision = image.revision;
        let task = spawn_blocking(move || store.lock().unwrap_or_else(PoisonError::into_inner).save(&image));
        self.writing = Some(Writing { revision, task });
    }

    fn written(&mut self, (revision, outcome): (u64, Result<(), Option<StoreError>>)) {
        match outcome {
            Ok(()) => {
                self.status.send_modify(|status| status.persisted += 1);
                self.handle(Event::Persisted { revision });
            }
            Err(error) => {
                let error = error.as_ref().map_or_else(|| "the writing thread failed".to_owned(), describe);
                tracing::warn!(realm = %self.realm, revision, error, "state not written; what is known stays in force");
                self.status.send_modify(|status| status.persist_failures += 1);
                self.handle(Event::PersistFailed);
            }
        }
    }

    fn report(&mut self, report: &Report) {
        match encode_report(report) {
            Ok(body) => {
                let signers: Vec<_> = self.identity.iter().map(|identity| identity.signing()).collect();
                self.link.report(seal(Kind::Report, &self.realm, &body, &signers));
            }
            Err(error) => tracing::warn!(realm = %self.realm, %error, "report not sent"),
        }
    }

    fn ask(&mut self, wish: Wish) {
        let Some(claims) = wish.claims() else { return };
        let outcome = self.replica.ask(self.clock.now(), wish.nonce, self.device, &claims);
        self.waiting.asked(wish, outcome);
    }

    fn refused(&mut self, refusal: Refusal) {
        let now = self.clock.now().uptime;
        let name = refusal.name();
        if let Some(logged) = self.logged.get_mut(usize::from(refusal.number()))
            && logged.is_none_or(|at| at + LOG_EVERY <= now)
        {
            *logged = Some(now);
            if let (Refusal::TooLarge { max: budget, .. }, Some(needed)) = (&refusal, self.replica.budget_needed()) {
                tracing::warn!(
                    realm = %self.realm, refusal = name, budget, needed,
                    "a memory budget of {budget} bytes holds nothing of the newest base; give this device {needed} bytes"
                );
            } else {
                tracing::warn!(realm = %self.realm, refusal = name, "{refusal}");
            }
        }
        self.status.send_modify(|status| status.last_refusal = Some(refusal));
    }

    /// Updates the status; those who watch it are woken only by a change.
    fn tell(&mut self) {
        let held = Held::of(&self.replica);
        // Only now: an index is decoded for it.
        let holding = (held != self.held).then(|| self.replica.holding());
        self.held = held;
        let bytes = self.replica.set().size_bytes();
        let link = self.link.stats();
        let (term, position) = (self.replica.term(), self.replica.set().position());
        let doubt = self.replica.set().doubt(self.clock.now());
        let refusals = self.replica.refusals();
        self.status.send_if_modified(|status| {
            // A growing age is no news.
            let same_doubt = status.doubt.as_ref().map(Doubt::name) == doubt.as_ref().map(Doubt::name);
            let changed = status.term != term
                || status.position != position
                || !same_doubt
                || holding.is_some()
                || status.link != link
                || status.refusals != *refusals;
            (status.term, status.position, status.link) = (term, position, link);
            status.doubt = doubt;
            if let Some(holding) = holding {
                status.holding = holding;
            }
            status.holding.bytes = bytes;
            status.refusals = *refusals;
            changed
        });
    }

    /// Before the end: waits for the image that is on its way, and writes what is not yet in one.
    async fn write_down(&mut self) {
        self.handle(Event::Disconnected);
        // Two rounds: the image on its way, and one more with what came after it was made.
        for _ in 0..2 {
            if self.writing.is_some() {
                let saved = saved(&mut self.writing).await;
                self.written(saved);
            }
            if let Some(due) = self.replica.deadline() {
                // Without a connection the only deadline is that of the next image. Nothing follows
                // after this, so there is no reason to wait for it.
                let now = self.clock.now();
                self.replica.handle(Now::new(now.wall, now.uptime.max(due)), Event::Elapsed);
            }
            while let Some(action) = self.replica.poll_action() {
                self.perform(action);
            }
        }
        if self.writing.is_some() {
            let saved = saved(&mut self.writing).await;
            self.written(saved);
        }
        self.online = false;
        // As many rounds as there are slots, and one for what is on its way.
        for _ in 0..3 {
            self.tend();
            if self.putting.is_some() {
                let (slot, outcome) = put(&mut self.putting).await;
                self.was_put(slot, &outcome);
            }
        }
        self.tell();
    }
}

/// Waits for what is on its way into a slot; for ever if there is nothing. Losing the race loses nothing.
async fn put(putting: &mut Option<Putting>) -> (Slot, Result<(), Option<StoreError>>) {
    let Some(on_its_way) = putting else {
        return future::pending().await;
    };
    let outcome = (&mut on_its_way.task).await;
    let slot = on_its_way.slot;
    *putting = None;
    (slot, flattened(outcome))
}

/// What became of a write on another thread; without an error if the thread itself failed.
fn flattened(outcome: Result<Result<(), StoreError>, JoinError>) -> Result<(), Option<StoreError>> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Some(error)),
        Err(_) => Err(None),
    }
}

/// Waits for the image on its way; for ever if there is none. Losing the race loses nothing.
async fn saved(writing: &mut Option<Writing>) -> (u64, Result<(), Option<StoreError>>) {
    let Some(on_its_way) = writing else {
        return future::pending().await;
    };
    let outcome = (&mut on_its_way.task).await;
    let revision = on_its_way.revision;
    *writing = None;
    (revision, flattened(outcome))
}

/// An error and its causes in one line.
fn describe(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
