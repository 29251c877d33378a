//! A whole system in one thread under one seed: ledger, publisher, a broker that cannot be trusted,
//! devices with bad clocks and bad disks, and an attacker who has recorded everything.
//!
//! After every step each device is asked about tokens, and its answers are compared with an oracle of
//! plain lists. When the faults end, every device must reach the publisher. A failure prints the
//! command that replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::replica::Config;
use revocast_core::update::{DeviceId, Finding, Nonce, PublisherKey, Role};
use revocast_core::{
    Action, Address, Claims, Doubt, Event, FingerprintFunction, Fingerprinter, Hold, Jti, Kind, Now, Profile, RealmId,
    RealmKey, Replica, RevocationSet, Salt, Sealed, Sequence, SigningKey, Term, Trust, UnixMillis, UnixTime, Verdict,
    Why, Width, seal, wire,
};
use revocast_server::ledger::{self, Ledger as _, MemoryLedger, Realm, Request, Statement};
use revocast_server::publisher::{Plan, Publisher, Settings, Signer, Step};

use crate::forge::START;
use crate::{Random, ready};

/// Steps with faults.
const STEPS: u64 = 160;

/// Steps without faults in which everything must come to rest.
const STEPS_TO_REST: u64 = 400;

/// Leeway of the simulated realm, seconds.
const LEEWAY: u64 = 5;

/// No simulated token lives longer, seconds.
const LIFETIME: u64 = 120;

/// How long a simulated device believes what it has, seconds.
const STALENESS: u64 = 30;

/// Something that must never happen has happened.
#[derive(Debug)]
pub struct Violation {
    seed: u64,
    step: u64,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}, step {}: {}\nreplay: cargo run --release -p revocast-tests --bin sim -- --from {} --seeds 1 --trace",
            self.seed, self.step, self.what, self.seed
        )
    }
}

/// What a run has seen, so that a simulation in which nothing happens is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Questions asked.
    pub questions: u64,
    /// Answers "revoked".
    pub revoked: u64,
    /// Answers "not revoked".
    pub not_revoked: u64,
    /// Answers "suspect".
    pub suspect: u64,
    /// Answers "unknown".
    pub unknown: u64,
    /// Ledger entries.
    pub entries: u64,
    /// Epochs published.
    pub epochs: u64,
    /// Refusals by devices.
    pub refusals: u64,
    /// Restarts of devices.
    pub device_restarts: u64,
    /// Crashes of the server.
    pub server_crashes: u64,
    /// Questions that devices sent to the server.
    pub asked: u64,
    /// Those that it answered "not revoked" in time.
    pub cleared: u64,
    /// Those that it answered "revoked" in time.
    pub condemned: u64,
}

impl Tally {
    /// Adds another run's.
    pub const fn add(&mut self, other: &Self) {
        self.questions += other.questions;
        self.revoked += other.revoked;
        self.not_revoked += other.not_revoked;
        self.suspect += other.suspect;
        self.unknown += other.unknown;
        self.entries += other.entries;
        self.epochs += other.epochs;
        self.refusals += other.refusals;
        self.device_restarts += other.device_restarts;
        self.server_crashes += other.server_crashes;
        self.asked += other.asked;
        self.cleared += other.cleared;
        self.condemned += other.condemned;
    }
}

/// Runs one world to its end.
pub fn run(seed: u64, trace: bool) -> Result<Tally, Violation> {
    let mut world = World::new(seed, trace);
    for step in 0..STEPS {
        world.step = step;
        world.misbehave();
        world.advance();
        world.check()?;
    }
    world.end_faults();
    for step in 0..STEPS_TO_REST {
        world.step = STEPS + step;
        world.advance();
        world.check()?;
        if step > 20 && world.is_at_rest() {
            break;
        }
    }
    world.check_rest()?;
    Ok(world.tally)
}

/// One token, as its issuer knows it.
#[derive(Clone, Debug)]
struct Token {
    jti: String,
    sub: String,
    iat: u64,
    exp: u64,
}

/// The plain truth: what was acknowledged, in order.
#[derive(Debug, Default)]
struct Oracle {
    tokens: BTreeMap<String, Vec<(u64, bool)>>,
    cutoffs: BTreeMap<String, Vec<(u64, Option<u64>)>>,
    head: u64,
}

impl Oracle {
    fn record(&mut self, sequence: u64, statement: &Statement) {
        self.head = sequence;
        match statement {
            Statement::Revoke { jti, .. } => self.tokens.entry(jti.clone()).or_default().push((sequence, true)),
            Statement::Reinstate { jti, .. } => self.tokens.entry(jti.clone()).or_default().push((sequence, false)),
            Statement::Cutoff { scope, not_before } => {
                self.cutoffs.entry(format!("{scope:?}")).or_default().push((sequence, Some(not_before.secs())));
            }
            Statement::Lift { scope } => {
                self.cutoffs.entry(format!("{scope:?}")).or_default().push((sequence, None));
            }
            Statement::Resume { .. } => {}
        }
    }

    fn is_revoked(&self, token: &Token, as_of: u64) -> bool {
        let last = self.tokens.get(&token.jti).and_then(|said| said.iter().rfind(|(at, _)| *at <= as_of));
        if last.is_some_and(|(_, revoked)| *revoked) {
            return true;
        }
        let scopes = [format!("{:?}", ledger::Scope::Realm), format!("{:?}", ledger::Scope::Sub(token.sub.clone()))];
        scopes.iter().any(|scope| {
            let last = self.cutoffs.get(scope).and_then(|said| said.iter().rfind(|(at, _)| *at <= as_of));
            last.and_then(|(_, not_before)| *not_before).is_some_and(|not_before| token.iat < not_before)
        })
    }

    /// Whether something in (after, head] took back what stood against a token. A device may know of
    /// it ahead of a gap, and then goes by it.
    fn was_softened_after(&self, token: &Token, after: u64) -> bool {
        let reinstated = self.tokens.get(&token.jti).is_some_and(|said| said.iter().any(|(at, on)| *at > after && !on));
        let lifted = self.cutoffs.values().flatten().any(|(at, not_before)| *at > after && not_before.is_none());
        reinstated || lifted
    }

    fn was_ever_revoked(&self, token: &Token) -> bool {
        self.tokens.get(&token.jti).is_some_and(|said| said.iter().any(|(_, revoked)| *revoked))
    }
}

struct Server {
    publisher: Publisher,
    started: u64,
    /// The clock stands wrong by this many milliseconds.
    clock_error: i64,
}

struct Device {
    config: Config,
    replica: Option<Replica>,
    exposed: Option<Arc<RevocationSet>>,
    disk: Option<(Vec<u8>, Option<Vec<u8>>)>,
    started: u64,
    clock_error: i64,
    /// Whether the clock was right at every moment since the start.
    clock_honest: bool,
    connected: bool,
    subscribed: BTreeSet<Address>,
    refusals: BTreeMap<&'static str, u64>,
}

fn claims_of<'a>(token: &'a Token, jti: Jti<'a>) -> Claims<'a> {
    Claims {
        iat: Some(UnixTime::from_secs(token.iat)),
        sub: Some(&token.sub),
        ..Claims::new(jti, UnixTime::from_secs(token.exp))
    }
}

struct Parcel {
    due: u64,
    device: usize,
    address: Address,
    bytes: Arc<Vec<u8>>,
}

struct World {
    seed: u64,
    trace: bool,
    step: u64,
    random: Random,
    /// True time, milliseconds since 1970.
    time: u64,
    ledger: MemoryLedger,
    realm: Realm,
    content: SigningKey,
    trust: Trust,
    settings: Settings,
    server: Option<Server>,
    retained: BTreeMap<Address, Arc<Vec<u8>>>,
    /// Everything that was ever sent, for whoever wants to send it again.
    recorded: Vec<(Address, Arc<Vec<u8>>)>,
    parcels: Vec<Parcel>,
    devices: Vec<Device>,
    tokens: Vec<Token>,
    oracle: Oracle,
    /// True time and sequence of every manifest sealed.
    manifests: Vec<(u64, u64)>,
    /// What devices have asked: about which token, and what was acknowledged by then.
    questions: BTreeMap<(usize, Nonce), (Token, u64)>,
    /// Something that must never happen, found while a device acted.
    broken: Option<String>,
    faults: bool,
    tally: Tally,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let root = SigningKey::from_seed([7; 32]);
        let content = SigningKey::from_seed([8; 32]);
        let width = *random.pick(&[Width::W40, Width::W48, Width::W48, Width::W64]);
        let function = *random.pick(&[FingerprintFunction::Xxh3, FingerprintFunction::Sha256]);
        let fingerprinter = Fingerprinter::new(function, RealmKey(random.sixteen()), width);
        let id = RealmId::new("sim").expect("a valid name");
        let start = UnixTime::from_secs(START);
        let mut realm = Realm::new(id, "https://issuer.example", fingerprinter, start);
        realm.leeway = Duration::from_secs(LEEWAY);
        realm.max_token_lifetime = Duration::from_secs(LIFETIME);
        let ledger = MemoryLedger::new();
        ready(ledger.create_realm(realm.clone(), Vec::new())).expect("a new realm");
        let not_after = UnixTime::from_secs(START + 10 * 365 * 24 * 3600);
        let keys = revocast_core::Keys {
            version: 1,
            issued_at: start.millis(),
            not_after,
            threshold: 1,
            roots: vec![root.public()],
            publishers: vec![PublisherKey { key: content.public(), role: Role::Content as u8, not_after }],
            issuer: realm.issuer.as_str().into(),
            fingerprinter,
            leeway: LEEWAY as u32,
        };
        let keys = seal(Kind::Keys, &id, &wire::encode_keys(&keys).expect("valid keys"), &[&root]);
        let object = ledger::Object { address: Address::Keys.to_string(), bytes: keys };
        ready(ledger.store_objects(id, Term(1), vec![object], Vec::new())).expect("stored keys");
        let settings = Settings {
            chunk_bytes: 2_048,
            false_positive_rate: None,
            coverage_every: Duration::from_secs(20),
            heartbeat: Duration::from_secs(4),
            manifest_every: Duration::from_millis(300),
            grace: Duration::from_secs(12),
            recent_share: 0.25,
            dead_share: 0.25,
            epoch_age_max: Duration::from_secs(40),
            rate_excess: 2.0,
            restart_jump_max: Duration::from_hours(7 * 24),
        };
        let mut world = Self {
            seed,
            trace,
            step: 0,
            time: START * 1_000,
            ledger,
            realm,
            content,
            trust: Trust { roots: vec![root.public()], threshold: 1, not_before: start },
            settings,
            server: None,
            retained: BTreeMap::new(),
            recorded: Vec::new(),
            parcels: Vec::new(),
            devices: Vec::new(),
            tokens: Vec::new(),
            oracle: Oracle::default(),
            manifests: Vec::new(),
            questions: BTreeMap::new(),
            broken: None,
            faults: true,
            tally: Tally::default(),
            random,
        };
        for _ in 0..2 + world.random.below(3) {
            world.add_device();
        }
        world.start_server();
        world
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>4} {:>9.3}  {}", self.step, (self.time - START * 1_000) as f64 / 1_000.0, what());
        }
    }

    /// Rule 7: revocations are folded only where the issuer mints the `jti`s.
    fn may_fold(&self) -> bool {
        self.realm.fingerprinter.function() == FingerprintFunction::Xxh3
    }

    // ---- devices -----------------------------------------------------------------------------

    fn add_device(&mut self) {
        // A budget of 8 KiB holds some forty entries beside its base: it overflows, drops and folds.
        let hold = *self.random.pick(&[
            Hold::Profile(Profile::Filter),
            Hold::Profile(Profile::List),
            Hold::Profile(Profile::Exact),
            Hold::Profile(Profile::Covered),
            Hold::Profile(Profile::FoldedTwice),
            Hold::Budget(8 * 1024),
            Hold::Budget(16 * 1024),
        ]);
        let config = Config {
            hold,
            artifact_bytes_max: 1 << 20,
            staleness_max: Duration::from_secs(STALENESS),
            clock_skew: Duration::from_secs(3),
            epoch_jitter: Duration::from_secs(5),
            retry_after: Duration::from_millis(900),
            persist_every: Duration::from_millis(200),
            persist_proof_every: Duration::from_secs(8),
            report_every: Duration::from_secs(10),
            report_spread: Duration::from_secs(1),
            seed: self.random.bits(),
        };
        self.devices.push(Device {
            config,
            replica: None,
            exposed: None,
            disk: None,
            started: self.time,
            clock_error: 0,
            clock_honest: true,
            connected: false,
            subscribed: BTreeSet::new(),
            refusals: BTreeMap::new(),
        });
        let last = self.devices.len() - 1;
        self.start_device(last);
    }

    fn device_now(&self, device: usize) -> Now {
        let device = &self.devices[device];
        let wall = self.time.saturating_add_signed(device.clock_error);
        Now::new(UnixMillis::from_millis(wall), Duration::from_millis(self.time - device.started))
    }

    fn start_device(&mut self, at: usize) {
        self.devices[at].started = self.time;
        self.devices[at].clock_honest = self.devices[at].clock_error == 0;
        let now = self.device_now(at);
        let (realm, trust) = (self.realm.id, self.trust.clone());
        let device = &mut self.devices[at];
        let config = device.config.clone();
        let restored = device
            .disk
            .as_ref()
            .map(|(head, base)| Replica::restore(config.clone(), realm, trust.clone(), now, head, base.as_deref()));
        let replica = match restored {
            Some(restored) => restored.expect("a state that was written whole is read back"),
            None => Replica::new(config, realm, trust),
        };
        device.exposed = Some(Arc::new(replica.set().clone()));
        device.replica = Some(replica);
        self.connect(at);
    }

    fn stop_device(&mut self, at: usize) {
        let device = &mut self.devices[at];
        device.replica = None;
        device.exposed = None;
        self.disconnect(at);
        self.tally.device_restarts += 1;
    }

    fn connect(&mut self, at: usize) {
        if self.devices[at].replica.is_some() && !self.devices[at].connected {
            self.devices[at].connected = true;
            self.tell(at, Event::Connected);
        }
    }

    fn disconnect(&mut self, at: usize) {
        let was = std::mem::take(&mut self.devices[at].connected);
        self.devices[at].subscribed.clear();
        self.parcels.retain(|parcel| parcel.device != at);
        if was && self.devices[at].replica.is_some() {
            self.tell(at, Event::Disconnected);
        }
    }

    fn tell(&mut self, at: usize, event: Event<'_>) {
        let now = self.device_now(at);
        let Some(replica) = &mut self.devices[at].replica else {
            return;
        };
        replica.handle(now, event);
        self.perform(at);
    }

    /// The driver of a simulated device.
    fn perform(&mut self, at: usize) {
        while let Some(action) = self.devices[at].replica.as_mut().and_then(Replica::poll_action) {
            match action {
                Action::Expose(set) => self.devices[at].exposed = Some(set),
                Action::Subscribe(address) => {
                    self.devices[at].subscribed.insert(address);
                    if let Some(bytes) = self.retained.get(&address).cloned() {
                        self.send(at, address, &bytes);
                    }
                }
                Action::Unsubscribe(address) => {
                    self.devices[at].subscribed.remove(&address);
                }
                Action::Persist(image) => {
                    let fails = self.faults && self.random.chance(8);
                    if fails {
                        self.tell(at, Event::PersistFailed);
                    } else {
                        let device = &mut self.devices[at];
                        let base = match image.base {
                            Some(base) => Some(base.to_bytes()),
                            None => device.disk.take().and_then(|(_, base)| base),
                        };
                        device.disk = Some((image.head, base));
                        self.tell(at, Event::Persisted { revision: image.revision });
                    }
                }
                Action::Report(report) => {
                    let known = report.position.sequence.0 <= self.oracle.head;
                    assert!(known, "a report names a sequence that does not exist");
                }
                Action::Ask(sealed) => self.hear_question(at, &sealed),
                Action::Answered { nonce, finding } => self.judge_finding(at, &nonce, finding),
                Action::Refused(refusal) => {
                    self.say(|| format!("device {at} refuses: {refusal}"));
                    *self.devices[at].refusals.entry(refusal.name()).or_default() += 1;
                    self.tally.refusals += 1;
                }
            }
        }
    }

    // ---- questions ---------------------------------------------------------------------------

    /// A device asks the server about a token, if it may.
    fn wonder(&mut self, at: usize, token: &Token) {
        let now = self.device_now(at);
        let nonce = self.random.sixteen();
        let device = DeviceId::new(&format!("device-{at}")).expect("a valid name");
        let Ok(jti) = Jti::new(&token.jti) else { return };
        let claims = claims_of(token, jti);
        let Some(replica) = &mut self.devices[at].replica else { return };
        if replica.ask(now, nonce, device, &claims).is_ok() {
            self.tally.asked += 1;
            self.questions.insert((at, nonce), (token.clone(), self.oracle.head));
            self.perform(at);
        }
    }

    /// The server answers, as of all that is acknowledged, unless the question or the server is lost.
    fn hear_question(&mut self, at: usize, sealed: &[u8]) {
        if self.faults && self.random.chance(12) {
            return;
        }
        let Some(server) = &mut self.server else { return };
        let (started, error) = (server.started, server.clock_error);
        let now = self.server_now(started, error);
        let time = self.server.as_mut().map(|server| server.publisher.time_of_answers(now)).unwrap_or_default();
        self.serve();
        let Some(server) = &self.server else { return };
        let sealed = Sealed::expect(sealed, &self.realm.id, Kind::Ask).expect("a question of this realm");
        let width = self.realm.fingerprinter.width();
        let question = wire::decode_question(sealed.unverified_body(), width).expect("a question");
        if let Some(bytes) = server.publisher.answer(&question, time).expect("an answer that can be encoded") {
            let bytes = Arc::new(bytes);
            self.recorded.push((Address::Answer, Arc::clone(&bytes)));
            if self.devices[at].connected && self.devices[at].subscribed.contains(&Address::Answer) {
                self.send(at, Address::Answer, &bytes);
            }
        }
    }

    /// What a device was told is true as of some moment since it asked.
    fn judge_finding(&mut self, at: usize, nonce: &Nonce, finding: Option<Finding>) {
        let Some((token, head)) = self.questions.remove(&(at, *nonce)) else {
            // It was asked before the device restarted.
            return;
        };
        match finding {
            Some(Finding::NotRevoked) => {
                self.tally.cleared += 1;
                if self.oracle.is_revoked(&token, head) && !self.oracle.was_softened_after(&token, head) {
                    self.broken = Some(format!("device {at} was told that {token:?} is not revoked, but it is"));
                }
            }
            Some(Finding::Revoked { why }) => {
                self.tally.condemned += 1;
                let exact = self.realm.fingerprinter.width().is_exact();
                if why == Why::Token && exact && !self.oracle.was_ever_revoked(&token) {
                    self.broken = Some(format!("device {at} was told that {token:?} is revoked; it never was"));
                }
            }
            None => {}
        }
    }

    // ---- broker ------------------------------------------------------------------------------

    fn publish(&mut self, address: Address, bytes: Vec<u8>, retain: bool) {
        let bytes = Arc::new(bytes);
        self.recorded.push((address, Arc::clone(&bytes)));
        if retain {
            if bytes.is_empty() {
                self.retained.remove(&address);
            } else {
                self.retained.insert(address, Arc::clone(&bytes));
            }
        }
        for at in 0..self.devices.len() {
            if self.devices[at].connected && self.devices[at].subscribed.contains(&address) {
                self.send(at, address, &bytes);
            }
        }
    }

    /// Puts a packet on its way: it may be lost, come twice, come late.
    fn send(&mut self, device: usize, address: Address, bytes: &Arc<Vec<u8>>) {
        let copies = match (self.faults, self.random.below(100)) {
            (true, 0..12) => 0,
            (true, 12..20) => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay =
                if self.faults && self.random.chance(15) { self.random.below(6_000) } else { self.random.below(40) };
            self.parcels.push(Parcel { due: self.time + delay, device, address, bytes: Arc::clone(bytes) });
        }
    }

    fn deliver_due(&mut self) {
        loop {
            let due = self.parcels.iter().enumerate().filter(|(_, parcel)| parcel.due <= self.time);
            let Some(first) = due.min_by_key(|(_, parcel)| parcel.due).map(|(at, _)| at) else {
                return;
            };
            let Parcel { device, address, bytes, .. } = self.parcels.remove(first);
            if self.devices[device].connected {
                self.tell(device, Event::Packet { address, payload: &bytes });
            }
        }
    }

    // ---- server ------------------------------------------------------------------------------

    fn server_now(&self, started: u64, clock_error: i64) -> Now {
        let wall = self.time.saturating_add_signed(clock_error);
        Now::new(UnixMillis::from_millis(wall), Duration::from_millis(self.time - started))
    }

    fn start_server(&mut self) {
        let id = self.realm.id;
        if self.tally.server_crashes > 0 && self.random.chance(8) {
            // A failover that may have lost entries: the ledger goes on beyond what was published.
            let at = UnixTime::from_secs(self.time / 1_000);
            let (term, sequence) = ready(self.ledger.resume(id, at, Sequence(self.oracle.head))).expect("resumed");
            self.oracle.record(sequence.0, &Statement::Resume { term });
            self.say(|| format!("the ledger goes on in term {term} at {sequence}"));
        }
        let head = ready(self.ledger.head(id)).expect("a head");
        let objects = ready(self.ledger.objects(id)).expect("objects");
        let entries = ready(self.ledger.scan(id, Sequence(0), usize::MAX)).expect("entries");
        let now = self.server_now(self.time, 0);
        let signer = Signer { content: self.content.clone() };
        let mut publisher =
            Publisher::load(self.realm.clone(), self.settings.clone(), signer, now, head, objects, entries)
                .expect("a publisher that goes on");
        let standing = publisher.standing();
        publisher.reconcile(
            standing.into_iter().map(|(address, _)| {
                (address, self.retained.get(&address).map(|bytes| revocast_core::Digest::of(bytes)))
            }),
        );
        self.server = Some(Server { publisher, started: self.time, clock_error: 0 });
    }

    fn crash_server(&mut self) {
        self.say(|| "the server crashes".to_owned());
        self.server = None;
        self.tally.server_crashes += 1;
    }

    /// One round of publishing, which a crash may end at any step.
    fn serve(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let now = self.server_now(server.started, server.clock_error);
        let after = server.publisher.book().sequence();
        for entry in ready(self.ledger.scan(self.realm.id, after, usize::MAX)).expect("entries") {
            server.publisher.take(&entry).expect("an entry that can be published");
        }
        let live = server.publisher.plan_live(now).expect("a plan");
        if !self.execute(&mut server, &live) {
            return self.crash_server();
        }
        let salt = Salt(self.random.sixteen());
        let epoch = server.publisher.position().map(|position| position.epoch);
        let catalog = server.publisher.plan_catalog(now, || salt).expect("a plan");
        if server.publisher.position().map(|position| position.epoch) != epoch {
            self.tally.epochs += 1;
        }
        if let Some(manifest) = server.publisher.manifest()
            && !catalog.is_empty()
        {
            self.manifests.push((self.time, manifest.sequence.0));
        }
        if !self.execute(&mut server, &catalog) {
            return self.crash_server();
        }
        if !catalog.is_empty()
            && let Some(manifest) = server.publisher.manifest()
        {
            ready(self.ledger.expire(self.realm.id, manifest.horizon)).expect("expired entries are dropped");
        }
        self.server = Some(server);
    }

    /// Does what a plan says; `false` if the server crashed on the way.
    fn execute(&mut self, server: &mut Server, plan: &Plan) -> bool {
        let crash_at = (self.faults && self.random.chance(4)).then(|| self.random.below(plan.steps.len() as u64 + 2));
        let term = server.publisher.term();
        if crash_at == Some(0) {
            return false;
        }
        ready(self.ledger.store_objects(self.realm.id, term, plan.puts.clone(), Vec::new())).expect("stored objects");
        for (at, step) in plan.steps.iter().enumerate() {
            if crash_at == Some(at as u64 + 1) {
                return false;
            }
            match step {
                Step::Live { bytes } => self.publish(Address::Live, bytes.clone(), false),
                Step::Retain { address, bytes } => self.publish(*address, bytes.clone(), true),
                Step::Clear { address } => self.publish(*address, Vec::new(), true),
                Step::ReadBack { objects } => {
                    let stands = objects.iter().all(|(address, digest)| {
                        self.retained.get(address).is_some_and(|bytes| revocast_core::Digest::of(bytes) == *digest)
                    });
                    if !stands {
                        server.publisher.failed();
                        return true;
                    }
                }
            }
        }
        if crash_at.is_some() {
            return false;
        }
        ready(self.ledger.store_objects(self.realm.id, term, Vec::new(), plan.deletes.clone()))
            .expect("removed objects");
        server.publisher.done(plan);
        true
    }

    fn request(&mut self, action: ledger::Action) {
        let at = UnixTime::from_secs(self.time / 1_000);
        let head = self.oracle.head;
        let request = Request { action, reason: None, actor: "sim".to_owned() };
        if let Err(error) = ready(self.ledger.append(self.realm.id, at, vec![request])) {
            panic!("seed {}: the ledger refused: {error}", self.seed);
        }
        for entry in ready(self.ledger.scan(self.realm.id, Sequence(head), usize::MAX)).expect("entries") {
            self.say(|| format!("ledger {}: {:?}", entry.sequence, entry.statement));
            self.oracle.record(entry.sequence.0, &entry.statement);
            self.tally.entries += 1;
        }
    }

    fn issue(&mut self) {
        let number = self.tokens.len();
        let iat = self.time / 1_000;
        let exp = iat + 10 + self.random.below(LIFETIME - 10);
        let sub = format!("device-{}", self.random.below(6));
        self.tokens.push(Token { jti: format!("token-{number}"), sub, iat, exp });
    }

    fn recent_token(&mut self) -> Option<Token> {
        let alive: Vec<&Token> = self.tokens.iter().filter(|token| token.exp * 1_000 > self.time).collect();
        if alive.is_empty() { None } else { Some((*self.random.pick(&alive)).clone()) }
    }

    // ---- what happens ------------------------------------------------------------------------

    /// Requests always; faults while they last.
    fn misbehave(&mut self) {
        for _ in 0..self.random.below(4) {
            self.issue();
        }
        for _ in 0..self.random.below(5) {
            self.ask_for_something();
        }
        if self.random.chance(3) {
            // Many at once: deltas fill, rungs merge, epochs change.
            for _ in 0..self.random.below(400) {
                self.issue();
                let token = self.tokens[self.tokens.len() - 1].clone();
                self.revoke(&token);
            }
        }
        match self.random.below(100) {
            0..4 if self.server.is_some() => self.crash_server(),
            4..20 if self.server.is_none() => self.start_server(),
            20..24 => {
                self.say(|| "the broker loses everything".to_owned());
                self.retained.clear();
                for at in 0..self.devices.len() {
                    self.disconnect(at);
                }
                let standing = self.server.as_ref().map(|server| server.publisher.standing()).unwrap_or_default();
                if let Some(server) = &mut self.server {
                    server.publisher.reconcile(standing.into_iter().map(|(address, _)| (address, None)));
                }
            }
            24..32 => {
                let at = self.random.below(self.devices.len() as u64) as usize;
                self.disconnect(at);
            }
            32..50 => {
                let at = self.random.below(self.devices.len() as u64) as usize;
                self.connect(at);
            }
            50..55 => {
                let at = self.random.below(self.devices.len() as u64) as usize;
                self.say(|| format!("device {at} restarts"));
                self.stop_device(at);
                self.start_device(at);
            }
            55..60 => {
                let at = self.random.below(self.devices.len() as u64) as usize;
                let error = *self.random.pick(&[
                    0,
                    0,
                    2_000,
                    -2_000,
                    86_400_000,
                    -86_400_000,
                    -1_500_000_000_000,
                    1_500_000_000_000,
                ]);
                self.devices[at].clock_error = error;
                self.devices[at].clock_honest &= error == 0;
                self.say(|| format!("the clock of device {at} is wrong by {error} ms"));
            }
            60..62 => {
                let error = *self.random.pick(&[0, 3_600_000, -3_600_000, 86_400_000]);
                // At its start a server believes its clock: it has nothing to compare it with.
                let settled = self.time.saturating_sub(4_000);
                if let Some(server) = self.server.as_mut().filter(|server| server.started < settled) {
                    server.clock_error = error;
                }
            }
            62..80 => self.attack(),
            _ => {}
        }
    }

    fn revoke(&mut self, token: &Token) {
        self.request(ledger::Action::Revoke {
            jti: token.jti.clone(),
            exp: ledger::Expiry::Claimed(UnixTime::from_secs(token.exp)),
        });
    }

    fn ask_for_something(&mut self) {
        let Some(token) = self.recent_token() else { return };
        match self.random.below(100) {
            0..70 => self.revoke(&token),
            70..85 => self.request(ledger::Action::Reinstate { jti: token.jti }),
            85..92 => {
                let not_before = UnixTime::from_secs(self.time / 1_000 + 1);
                let scope = if self.random.chance(15) { ledger::Scope::Realm } else { ledger::Scope::Sub(token.sub) };
                self.request(ledger::Action::Cutoff { scope, not_before });
            }
            _ => {
                let scope = if self.random.chance(50) { ledger::Scope::Realm } else { ledger::Scope::Sub(token.sub) };
                self.request(ledger::Action::Lift { scope });
            }
        }
    }

    /// Sends something recorded, perhaps damaged, perhaps to where it does not belong.
    fn attack(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let (address, bytes) = self.random.pick(&self.recorded).clone();
        let address = if self.random.chance(30) { self.random.pick(&self.recorded).0 } else { address };
        let mut bytes = bytes.to_vec();
        if !bytes.is_empty() && self.random.chance(30) {
            let at = self.random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        if self.random.chance(20) {
            // A broker that keeps it for whoever comes next.
            self.retained.insert(address, Arc::new(bytes.clone()));
        }
        let device = self.random.below(self.devices.len() as u64) as usize;
        if self.devices[device].connected {
            self.tell(device, Event::Packet { address, payload: &bytes });
        }
    }

    fn advance(&mut self) {
        let span = 1 + self.random.below(1_500);
        let end = self.time + span;
        while self.time < end {
            self.time = (self.time + 1 + self.random.below(300)).min(end);
            self.serve();
            self.deliver_due();
            for at in 0..self.devices.len() {
                let now = self.device_now(at);
                let due = self.devices[at].replica.as_ref().and_then(Replica::deadline);
                if due.is_some_and(|due| due <= now.uptime) {
                    self.tell(at, Event::Elapsed);
                }
            }
        }
    }

    fn end_faults(&mut self) {
        self.say(|| "the faults end".to_owned());
        self.faults = false;
        if self.server.is_none() {
            self.start_server();
        }
        if let Some(server) = &mut self.server {
            server.clock_error = 0;
        }
        // A broker that was told lies keeps them until the publisher looks.
        let standing = self.server.as_ref().map(|server| server.publisher.standing()).unwrap_or_default();
        let found: Vec<_> = standing
            .into_iter()
            .map(|(address, _)| (address, self.retained.get(&address).map(|bytes| revocast_core::Digest::of(bytes))))
            .collect();
        if let Some(server) = &mut self.server {
            server.publisher.reconcile(found);
        }
        for at in 0..self.devices.len() {
            self.devices[at].clock_error = 0;
            self.disconnect(at);
            self.connect(at);
        }
    }

    // ---- what must hold ----------------------------------------------------------------------

    fn violation(&self, what: String) -> Violation {
        Violation { seed: self.seed, step: self.step, what }
    }

    fn ask(&self, at: usize, token: &Token) -> Option<Verdict> {
        let set = self.devices[at].exposed.as_ref()?;
        let jti = Jti::new(&token.jti).ok()?;
        Some(set.check(self.device_now(at), &claims_of(token, jti)))
    }

    fn check(&mut self) -> Result<(), Violation> {
        for at in 0..self.devices.len() {
            for _ in 0..6 {
                if self.tokens.is_empty() {
                    break;
                }
                // Mostly young tokens; sometimes one that has long been forgotten.
                let young = self.tokens.len().min(40) as u64;
                let back = if self.random.chance(80) {
                    self.random.below(young)
                } else {
                    self.random.below(self.tokens.len() as u64)
                };
                let token = self.tokens[self.tokens.len() - 1 - back as usize].clone();
                if let Some(verdict) = self.ask(at, &token) {
                    self.tally.questions += 1;
                    self.judge(at, &token, verdict)?;
                    let doubted = matches!(verdict, Verdict::Suspect { .. } | Verdict::Unknown { .. });
                    if self.random.chance(if doubted { 40 } else { 4 }) {
                        self.wonder(at, &token);
                    }
                }
            }
        }
        match self.broken.take() {
            Some(what) => Err(self.violation(what)),
            None => Ok(()),
        }
    }

    fn judge(&mut self, at: usize, token: &Token, verdict: Verdict) -> Result<(), Violation> {
        match verdict {
            Verdict::NotRevoked { at: position } => {
                self.tally.not_revoked += 1;
                let sequence = position.sequence.0;
                if self.oracle.is_revoked(token, sequence) && !self.oracle.was_softened_after(token, sequence) {
                    let what = format!("device {at} at {position} says that {token:?} is not revoked, but it is");
                    return Err(self.violation(what));
                }
                self.judge_freshness(at, position.sequence.0)?;
            }
            Verdict::Revoked { why: Why::Expired { horizon } } => {
                self.tally.revoked += 1;
                if horizon.secs() * 1_000 > self.time {
                    return Err(self.violation(format!("device {at} holds a horizon in the future: {horizon}")));
                }
            }
            Verdict::Revoked { why: Why::Token } => {
                self.tally.revoked += 1;
                if !self.oracle.was_ever_revoked(token) && self.realm.fingerprinter.width().is_exact() {
                    return Err(self.violation(format!("device {at} says that {token:?} is revoked; it never was")));
                }
            }
            Verdict::Revoked { why: Why::Cutoff { .. } } => self.tally.revoked += 1,
            Verdict::Suspect { .. } => self.tally.suspect += 1,
            Verdict::Unknown { doubt } => {
                self.tally.unknown += 1;
                // A small device of a realm that others choose `jti`s for may fold nothing.
                let small = matches!(self.devices[at].config.hold, Hold::Budget(_));
                if doubt == Doubt::Overflow && !small {
                    return Err(self.violation(format!("device {at} overflows in a world too small for it")));
                }
            }
        }
        Ok(())
    }

    /// An answer "not revoked" is never older than the device allows, whatever the broker held back.
    fn judge_freshness(&self, at: usize, sequence: u64) -> Result<(), Violation> {
        if !self.devices[at].clock_honest {
            return Ok(());
        }
        // The signing clock may run five seconds ahead.
        let oldest = self.time.saturating_sub((STALENESS + 6) * 1_000);
        let known = self.manifests.iter().filter(|(sealed, _)| *sealed <= oldest).map(|(_, sequence)| *sequence).max();
        if known.is_some_and(|known| sequence < known) {
            let what = format!("device {at} answers from sequence {sequence}; {known:?} is older than it may ignore");
            return Err(self.violation(what));
        }
        Ok(())
    }

    fn is_at_rest(&self) -> bool {
        let Some(manifest) = self.server.as_ref().and_then(|server| server.publisher.manifest()) else {
            return false;
        };
        manifest.sequence.0 == self.oracle.head
            && (0..self.devices.len()).all(|at| {
                let set = self.devices[at].exposed.as_ref();
                set.is_some_and(|set| {
                    set.position().sequence == manifest.sequence && set.doubt(self.device_now(at)).is_none()
                })
            })
    }

    fn check_rest(&self) -> Result<(), Violation> {
        let manifest = self.server.as_ref().and_then(|server| server.publisher.manifest());
        if manifest.is_none_or(|manifest| manifest.sequence.0 != self.oracle.head) {
            return Err(self.violation(format!("published {manifest:?}, acknowledged {}", self.oracle.head)));
        }
        for at in 0..self.devices.len() {
            let device = &self.devices[at];
            let Some(set) = &device.exposed else { continue };
            let small = matches!(device.config.hold, Hold::Budget(_));
            let excused = small && !self.may_fold() && set.doubt(self.device_now(at)) == Some(Doubt::Overflow);
            let resting = set.position().sequence.0 == self.oracle.head && set.doubt(self.device_now(at)).is_none();
            if !resting && !excused {
                let what = format!(
                    "device {at} ({}) came to rest at {} with doubt {:?}; the ledger is at {}; refusals {:?}",
                    set.base().map_or("nothing", |base| base.profile().name()),
                    set.position(),
                    set.doubt(self.device_now(at)),
                    self.oracle.head,
                    device.refusals
                );
                return Err(self.violation(what));
            }
            for token in &self.tokens {
                let Some(verdict) = self.ask(at, token) else { continue };
                let revoked = self.oracle.is_revoked(token, self.oracle.head);
                let wrong = match verdict {
                    Verdict::NotRevoked { .. } => revoked,
                    // Forgotten once it has expired, and then refused for that.
                    Verdict::Revoked { why: Why::Expired { .. } } | Verdict::Suspect { .. } => false,
                    // Fingerprints short enough to collide may make a stranger look revoked.
                    // So may a small device that had no room for what undid a revocation, until its next base.
                    Verdict::Revoked { .. } => !revoked && !small && self.realm.fingerprinter.width().is_exact(),
                    Verdict::Unknown { doubt: Doubt::Overflow } => self.may_fold() || !small,
                    Verdict::Unknown { .. } => true,
                };
                if wrong {
                    return Err(self.violation(format!("at rest, device {at} says {verdict:?} of {token:?}")));
                }
            }
        }
        Ok(())
    }
}
