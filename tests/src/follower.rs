//! A device and a server without a network between them, driven by hand.
//!
//! [`Follower`] is a replica with a disk and clocks that a test sets; it is handed objects one by one
//! or a whole shelf of them. [`Site`] is a ledger and a publisher whose retained objects are that shelf.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use revocast_core::limits::ISSUED_BATCH_MAX;
use revocast_core::replica::Config;
use revocast_core::update::{Finding, Nonce, PublisherKey, Report, Role};
use revocast_core::{
    Action, Address, Claims, DeviceId, Digest, Event, Fingerprint, Fingerprinter, Hold, Jti, Keys, Kind, Now, Profile,
    RealmId, Refusal, Replica, RevocationSet, Salt, Sealed, Sequence, SigningKey, Trust, Unasked, UnixMillis, UnixTime,
    Verdict, seal, wire,
};
use revocast_server::ledger::{
    self, Coverage, Entry, Issued, Ledger as _, MemoryLedger, Object, Realm, Receipt, Request,
};
use revocast_server::publisher::{Draft, Filtered, Plan, PublishError, Publisher, Settings, Signer, Step};

use crate::forge::START;
use crate::{Random, ready};

/// What is retained, by address.
pub type Shelf = BTreeMap<Address, Vec<u8>>;

/// A configuration in which nothing is put off: no jitter, every change written down at once.
#[must_use]
pub const fn prompt(profile: Profile) -> Config {
    Config {
        hold: Hold::Profile(profile),
        artifact_bytes_max: 1 << 20,
        staleness_max: Duration::from_hours(1),
        clock_skew: Duration::from_mins(1),
        epoch_jitter: Duration::ZERO,
        retry_after: Duration::from_secs(8),
        persist_every: Duration::ZERO,
        persist_proof_every: Duration::ZERO,
        report_every: Duration::from_hours(1),
        report_spread: Duration::ZERO,
        seed: 1,
    }
}

/// A replica, its disk, its clocks, and what it asked for.
#[derive(Debug)]
pub struct Follower {
    /// Whom it follows.
    pub realm: RealmId,
    /// What it pins.
    pub trust: Trust,
    /// How it follows.
    pub config: Config,
    /// Its name.
    pub device: DeviceId,
    /// The state machine.
    pub replica: Replica,
    /// What checkers see.
    pub exposed: Arc<RevocationSet>,
    /// Head and base image, as last written.
    pub disk: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// Whether writing fails.
    pub disk_fails: bool,
    /// What it asked for and nobody has answered.
    pub asked: VecDeque<Address>,
    /// Its subscriptions.
    pub subscribed: BTreeSet<Address>,
    /// Everything it refused.
    pub refused: Vec<Refusal>,
    /// Everything it reported.
    pub reports: Vec<Report>,
    /// Questions it sent, sealed.
    pub questions: Vec<Vec<u8>>,
    /// What came of its questions, in order.
    pub answered: Vec<(Nonce, Option<Finding>)>,
    /// How often it wrote.
    pub writes: u64,
    /// Its wall clock, milliseconds since 1970.
    pub wall: u64,
    /// Its uptime.
    pub uptime: Duration,
}

impl Follower {
    /// A connected device that knows nothing, `at` seconds after the start of time.
    ///
    /// # Panics
    ///
    /// Never: its name is valid.
    #[must_use]
    pub fn new(realm: RealmId, trust: Trust, config: Config, at: u64) -> Self {
        let replica = Replica::new(config.clone(), realm, trust.clone());
        let mut follower = Self {
            exposed: Arc::new(replica.set().clone()),
            realm,
            trust,
            config,
            device: DeviceId::new("door-1").expect("a valid name"),
            replica,
            disk: None,
            disk_fails: false,
            asked: VecDeque::new(),
            subscribed: BTreeSet::new(),
            refused: Vec::new(),
            reports: Vec::new(),
            questions: Vec::new(),
            answered: Vec::new(),
            writes: 0,
            wall: (START + at) * 1_000,
            uptime: Duration::ZERO,
        };
        follower.tell(Event::Connected);
        follower
    }

    /// One reading of both clocks.
    #[must_use]
    pub const fn now(&self) -> Now {
        Now::new(UnixMillis::from_millis(self.wall), self.uptime)
    }

    /// Tells the replica something and does what it asks; returns what it refused.
    pub fn tell(&mut self, event: Event<'_>) -> Vec<Refusal> {
        let before = self.refused.len();
        self.replica.handle(self.now(), event);
        self.perform();
        self.refused.get(before..).unwrap_or_default().to_vec()
    }

    fn perform(&mut self) {
        while let Some(action) = self.replica.poll_action() {
            match action {
                Action::Expose(set) => self.exposed = set,
                Action::Subscribe(address) => {
                    self.subscribed.insert(address);
                    self.asked.push_back(address);
                }
                Action::Unsubscribe(address) => {
                    self.subscribed.remove(&address);
                }
                Action::Persist(_) if self.disk_fails => self.replica.handle(self.now(), Event::PersistFailed),
                Action::Persist(image) => {
                    let base = match image.base {
                        Some(base) => Some(base.to_bytes()),
                        None => self.disk.take().and_then(|(_, base)| base),
                    };
                    self.disk = Some((image.head, base));
                    self.writes += 1;
                    self.replica.handle(self.now(), Event::Persisted { revision: image.revision });
                }
                Action::Report(report) => self.reports.push(report),
                Action::Ask(sealed) => self.questions.push(sealed),
                Action::Answered { nonce, finding } => self.answered.push((nonce, finding)),
                Action::Refused(refusal) => self.refused.push(refusal),
            }
        }
    }

    /// Hands over an object as if it came on this topic; returns what the replica refused.
    pub fn give(&mut self, address: Address, payload: &[u8]) -> Vec<Refusal> {
        self.tell(Event::Packet { address, payload })
    }

    /// Lets both clocks go on and the replica notice.
    pub fn pass(&mut self, span: Duration) -> Vec<Refusal> {
        self.wall += span.as_millis() as u64;
        self.uptime += span;
        self.tell(Event::Elapsed)
    }

    /// Answers what it asked for from a shelf, and what it asks for then, until it asks for nothing
    /// that is there.
    pub fn serve(&mut self, retained: &Shelf) {
        while let Some(address) = self.asked.pop_front() {
            if let Some(bytes) = retained.get(&address) {
                self.give(address, bytes);
            }
        }
    }

    /// The broker has lost nothing and the device reads it all again.
    pub fn reconnect(&mut self, retained: &Shelf) {
        self.tell(Event::Disconnected);
        self.subscribed.clear();
        self.asked.clear();
        self.tell(Event::Connected);
        self.serve(retained);
    }

    /// Hands over an object to whoever subscribed to its address.
    pub fn hear(&mut self, address: Address, bytes: &[u8]) {
        if self.subscribed.contains(&address) {
            self.give(address, bytes);
        }
    }

    /// Starts again from the disk.
    ///
    /// # Panics
    ///
    /// If the disk is not read back.
    pub fn restart(&mut self) {
        self.uptime = Duration::ZERO;
        self.asked.clear();
        self.subscribed.clear();
        self.replica = match &self.disk {
            Some((head, base)) => self.restored(head, base.as_deref()).expect("what was written is read back"),
            None => Replica::new(self.config.clone(), self.realm, self.trust.clone()),
        };
        self.exposed = Arc::new(self.replica.set().clone());
        self.perform();
    }

    /// What would come of these images.
    pub fn restored(&self, head: &[u8], base: Option<&[u8]>) -> Result<Replica, Refusal> {
        Replica::restore(self.config.clone(), self.realm, self.trust.clone(), self.now(), head, base)
    }

    /// Asks about a token that expires far in the future.
    ///
    /// # Panics
    ///
    /// If it is no valid `jti`.
    pub fn ask(&self, jti: &str) -> Verdict {
        self.check(&Claims::new(Jti::new(jti).expect("a valid jti"), UnixTime::from_secs(START + (1 << 32))))
    }

    /// Asks the exposed set.
    pub fn check(&self, claims: &Claims<'_>) -> Verdict {
        self.exposed.check(self.now(), claims)
    }

    /// Asks the server, with the number of the question as its nonce; gives the sealed question.
    pub fn wonder(&mut self, claims: &Claims<'_>) -> Result<Vec<u8>, Unasked> {
        let nonce = u128::from(self.questions.len() as u64 + 1).to_le_bytes();
        self.replica.ask(self.now(), nonce, self.device, claims)?;
        self.perform();
        Ok(self.questions.last().cloned().unwrap_or_default())
    }

    /// Everything the replica holds that counts, as text: what must not change by garbage.
    #[must_use]
    pub fn image(&self) -> String {
        format!(
            "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\nwrites {}",
            self.exposed,
            self.replica.manifest(),
            self.replica.keys(),
            self.replica.term(),
            self.disk,
            self.writes
        )
    }

    /// The last sequence it holds without a gap.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.exposed.position().sequence.0
    }

    /// The epoch it stands on.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.exposed.position().epoch.0
    }
}

/// A ledger, a publisher, and what stands at the broker.
#[derive(Debug)]
pub struct Site {
    /// The realm.
    pub realm: Realm,
    /// The ledger.
    pub ledger: MemoryLedger,
    /// What decides.
    pub publisher: Publisher,
    /// How it is published.
    pub settings: Settings,
    /// What devices pin.
    pub trust: Trust,
    /// What is retained.
    pub shelf: Shelf,
    /// Deltas as they were sent, oldest first.
    pub live: Vec<Vec<u8>>,
    /// True time, milliseconds since 1970.
    pub time: u64,
    /// The server's clock stands wrong by this many milliseconds.
    pub clock_error: i64,
    started: u64,
    content: SigningKey,
    random: Random,
}

impl Site {
    /// A realm without entries, published once. Everything follows from the seed.
    ///
    /// # Panics
    ///
    /// Never: what it founds is valid. So it is for all that follow, unless they say otherwise.
    #[must_use]
    pub fn new(seed: u64, fingerprinter: Fingerprinter, settings: Settings, change: impl FnOnce(&mut Realm)) -> Self {
        let (root, content) = (SigningKey::from_seed([7; 32]), SigningKey::from_seed([8; 32]));
        let id = RealmId::new("sensors").expect("a valid name");
        let start = UnixTime::from_secs(START);
        let mut realm = Realm::new(id, "https://issuer.example", fingerprinter, start);
        change(&mut realm);
        let not_after = start.plus(20 * 365 * 24 * 3_600);
        let keys = Keys {
            version: 1,
            issued_at: start.millis(),
            not_after,
            threshold: 1,
            roots: vec![root.public()],
            publishers: vec![PublisherKey { key: content.public(), role: Role::Content as u8, not_after }],
            issuer: realm.issuer.as_str().into(),
            fingerprinter,
            leeway: realm.leeway.as_secs() as u32,
        };
        let keys = seal(Kind::Keys, &id, &wire::encode_keys(&keys).expect("valid keys"), &[&root]);
        let ledger = MemoryLedger::new();
        let object = Object { address: Address::Keys.to_string(), bytes: keys };
        ready(ledger.create_realm(realm.clone(), vec![object])).expect("a new realm");
        let time = START * 1_000;
        let publisher = Self::load(&realm, &settings, &content, &ledger, Now::new(start.millis(), Duration::ZERO))
            .expect("an empty history");
        let mut site = Self {
            trust: Trust { roots: vec![root.public()], threshold: 1, not_before: start },
            realm,
            ledger,
            publisher,
            settings,
            shelf: Shelf::new(),
            live: Vec::new(),
            time,
            clock_error: 0,
            started: time,
            content,
            random: Random::new(seed),
        };
        site.publish();
        site
    }

    fn load(
        realm: &Realm,
        settings: &Settings,
        content: &SigningKey,
        ledger: &MemoryLedger,
        now: Now,
    ) -> Result<Publisher, PublishError> {
        let head = ready(ledger.head(realm.id)).expect("a head");
        let objects = ready(ledger.objects(realm.id)).expect("objects");
        let entries = ready(ledger.scan(realm.id, Sequence(0), usize::MAX)).expect("entries");
        let signer = Signer { content: content.clone() };
        Publisher::load(realm.clone(), settings.clone(), signer, now, head, objects, entries)
    }

    /// A device of this realm, connected and served from the shelf.
    #[must_use]
    pub fn device(&self, config: Config) -> Follower {
        let mut device = Follower::new(self.realm.id, self.trust.clone(), config, 0);
        device.wall = self.time;
        device.serve(&self.shelf);
        device
    }

    /// The server's reading of both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = self.time.saturating_add_signed(self.clock_error);
        Now::new(UnixMillis::from_millis(wall), Duration::from_millis(self.time - self.started))
    }

    /// Asks the ledger for something.
    ///
    /// # Panics
    ///
    /// If the ledger refuses.
    pub fn request(&mut self, action: ledger::Action) -> Receipt {
        let at = UnixTime::from_secs(self.time / 1_000);
        let request = Request { action, reason: None, actor: "test".to_owned() };
        let receipts = ready(self.ledger.append(self.realm.id, at, vec![request])).expect("an entry");
        *receipts.first().expect("one receipt")
    }

    /// Revokes a token whose `exp` is vouched for.
    pub fn revoke(&mut self, jti: &str, exp: u64) -> Receipt {
        let exp = ledger::Expiry::Vouched(UnixTime::from_secs(exp));
        self.request(ledger::Action::Revoke { jti: jti.to_owned(), exp })
    }

    /// Reinstates a token.
    pub fn reinstate(&mut self, jti: &str) -> Receipt {
        self.request(ledger::Action::Reinstate { jti: jti.to_owned() })
    }

    /// The entries that the ledger still holds after a sequence.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn entries(&self, after: u64) -> Vec<Entry> {
        ready(self.ledger.scan(self.realm.id, Sequence(after), usize::MAX)).expect("entries")
    }

    /// One round of publishing, as a server does it; returns the deltas that went out live.
    ///
    /// # Panics
    ///
    /// If there is no plan, or the shelf is not what the plan reads back.
    pub fn publish(&mut self) -> Vec<Vec<u8>> {
        let now = self.now();
        for entry in self.entries(self.publisher.book().sequence().0) {
            self.publisher.take(&entry).expect("an entry that can be published");
        }
        let live = self.publisher.plan_live(now).expect("a plan");
        let sent = self.execute(&live);
        if let Some(draft) = self.draft() {
            let filtered = self.filter(draft);
            self.finish(filtered);
        }
        let catalog = self.publisher.plan_standing(now).expect("a plan");
        self.execute(&catalog);
        if let Some(manifest) = self.publisher.manifest() {
            ready(self.ledger.expire(self.realm.id, manifest.horizon)).expect("expired entries are dropped");
        }
        self.live.extend_from_slice(&sent);
        sent
    }

    /// The first step of a new epoch, if one is due: its entries are frozen.
    ///
    /// # Panics
    ///
    /// If there is no plan.
    pub fn draft(&mut self) -> Option<Draft> {
        let coverage = ready(self.ledger.coverage(self.realm.id)).expect("a coverage");
        self.publisher.cover(coverage);
        self.publisher.draft(self.now()).expect("a draft")
    }

    /// The second: its filter is known, and whoever mints avoids it.
    ///
    /// # Panics
    ///
    /// If there is no filter.
    pub fn filter(&mut self, draft: Draft) -> Filtered {
        let coverage = ready(self.ledger.coverage(self.realm.id)).expect("a coverage");
        let random = &mut self.random;
        draft.filter(&coverage, || Salt(random.sixteen())).expect("a filter")
    }

    /// The third and the last: the registry is frozen, and the epoch built and put on the shelf.
    ///
    /// # Panics
    ///
    /// If it cannot be built.
    pub fn finish(&mut self, filtered: Filtered) {
        let filtered = Arc::new(filtered);
        let frozen = self.freeze(&filtered);
        self.build(filtered, frozen);
    }

    /// The third step: what the registry covers, and which tokens need an exception.
    ///
    /// # Panics
    ///
    /// If the ledger refuses.
    #[must_use]
    pub fn freeze(&self, filtered: &Arc<Filtered>) -> (Coverage, Vec<Fingerprint>) {
        let found = Arc::new(Mutex::new(Vec::new()));
        let visitor: ledger::Visitor = Box::new({
            let (filtered, found) = (Arc::clone(filtered), Arc::clone(&found));
            move |tokens| {
                let needed = tokens.iter().filter(|(fingerprint, exp)| filtered.needs_exception(*fingerprint, *exp));
                found.lock().expect("one thread").extend(needed.map(|(fingerprint, _)| *fingerprint));
                true
            }
        });
        let coverage = ready(self.ledger.visit_registered(self.realm.id, vec![visitor])).expect("a visit");
        let excepted = std::mem::take(&mut *found.lock().expect("one thread"));
        (coverage, excepted)
    }

    /// The last step: the epoch is built and put on the shelf.
    ///
    /// # Panics
    ///
    /// If it cannot be built, or somebody else holds the filter.
    pub fn build(&mut self, filtered: Arc<Filtered>, (coverage, excepted): (Coverage, Vec<Fingerprint>)) {
        let filtered = Arc::into_inner(filtered).expect("the visitor is gone");
        let built = filtered.build(&coverage, excepted).expect("an epoch");
        self.publisher.install(self.now(), built);
    }

    /// Registers tokens that were issued now and live for a day.
    ///
    /// # Panics
    ///
    /// If the ledger refuses.
    pub fn register<'a>(&mut self, jtis: impl IntoIterator<Item = &'a str>) {
        let now = UnixTime::from_secs(self.seconds());
        let exp = now.plus(24 * 3_600);
        let mut issued =
            jtis.into_iter().map(|jti| Issued { jti: jti.to_owned(), iat: now, exp, sub: None }).peekable();
        while issued.peek().is_some() {
            let some = issued.by_ref().take(ISSUED_BATCH_MAX).collect();
            ready(self.ledger.register(self.realm.id, now, some)).expect("registered tokens");
        }
    }

    /// Says that every token issued before this second, `at` seconds after the start, is registered.
    ///
    /// # Panics
    ///
    /// If the ledger refuses.
    pub fn cover(&mut self, at: u64) {
        let now = UnixTime::from_secs(self.seconds());
        ready(self.ledger.cover(self.realm.id, now, UnixTime::from_secs(START + at))).expect("a coverage");
    }

    fn execute(&mut self, plan: &Plan) -> Vec<Vec<u8>> {
        let (id, term) = (self.realm.id, self.publisher.term());
        ready(self.ledger.store_objects(id, term, plan.puts.clone(), Vec::new())).expect("stored objects");
        let mut sent = Vec::new();
        for step in &plan.steps {
            match step {
                Step::Live { bytes } => sent.push(bytes.clone()),
                Step::Retain { address, bytes } => {
                    self.shelf.insert(*address, bytes.clone());
                }
                Step::Clear { address } => {
                    self.shelf.remove(address);
                }
                Step::ReadBack { objects } => {
                    for (address, digest) in objects {
                        assert_eq!(self.shelf.get(address).map(|bytes| Digest::of(bytes)), Some(*digest), "{address}");
                    }
                }
            }
        }
        ready(self.ledger.store_objects(id, term, Vec::new(), plan.deletes.clone())).expect("removed objects");
        self.publisher.done(plan);
        sent
    }

    /// What the server answers to a sealed question now; `None` if it would not.
    ///
    /// # Panics
    ///
    /// If it is no question.
    pub fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        let sealed = Sealed::expect(question, &self.realm.id, Kind::Ask).expect("a question of this realm");
        let width = self.realm.fingerprinter.width();
        let question = wire::decode_question(sealed.unverified_body(), width).expect("a question");
        let now = self.now();
        let at = self.publisher.time_of_answers(now);
        self.publisher.answer(&question, at).expect("an answer that can be encoded")
    }

    /// Lets true time go on.
    pub const fn pass(&mut self, millis: u64) {
        self.time += millis;
    }

    /// Starts the server again from its ledger.
    pub fn restart(&mut self) -> Result<(), PublishError> {
        self.started = self.time;
        self.publisher = Self::load(&self.realm, &self.settings, &self.content, &self.ledger, self.now())?;
        let found: Vec<_> = self
            .publisher
            .standing()
            .into_iter()
            .map(|(address, _)| (address, self.shelf.get(&address).map(|bytes| Digest::of(bytes))))
            .collect();
        self.publisher.reconcile(found);
        Ok(())
    }

    /// True time in whole seconds.
    #[must_use]
    pub const fn seconds(&self) -> u64 {
        self.time / 1_000
    }
}

/// Settings in which everything is published at once and little is kept back.
#[must_use]
pub const fn small_settings() -> Settings {
    Settings {
        chunk_bytes: 2_048,
        false_positive_rate: None,
        heartbeat: Duration::from_secs(4),
        manifest_every: Duration::ZERO,
        grace: Duration::from_secs(12),
        recent_share: 0.25,
        dead_share: 0.25,
        epoch_age_max: Duration::from_mins(1),
        rate_excess: 2.0,
        coverage_every: Duration::from_secs(20),
        restart_jump_max: Duration::from_hours(7 * 24),
    }
}
