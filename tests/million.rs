//! A million tokens, one in a hundred revoked, followed by devices of every profile over the embedded broker.
//!
//! Every device is asked about every token: after it has caught up, after a token was revoked and another reinstated
//! and cutoffs came and went, after a restart without a broker, and after the server's own restart. What each step
//! took is printed; `--nocapture` shows it.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop
#![allow(clippy::too_many_lines)] // a history is told in one piece

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::{
    Claims, Config, FingerprintFunction, Hold, Jti, Profile, RealmId, Sequence, Trust, UnixTime, Verdict, Witness,
};
use revocast_device::{ClientId, Device, DeviceConfig, DiskStore, FoundState, SystemClock, random_seed};
use revocast_server::config::{Choices, PublishingConfig};
use revocast_server::keys::Keys;
use revocast_server::ledger::{Issued, Scope};
use revocast_server::publisher::Because;
use revocast_server::server::Server;
use revocast_server::service::{NewRealm, Published, Revocation};
use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

const TOKENS: usize = 1_000_000;
const REVOKED_EVERY: usize = 100;
const TOKENS_OF_A_SUBJECT: usize = 1_000;
const TOKENS_IN_A_BATCH: usize = 2_000;

/// For whatever takes a moment on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(2);

/// Threads that ask; each asks every device about its share of the tokens.
const ASKERS: usize = 2;

fn realm() -> RealmId {
    RealmId::new("million").unwrap()
}

fn now() -> UnixTime {
    SystemClock::now().wall.floor()
}

// ---- What is true --------------------------------------------------------------------------------

/// The tokens, and who is revoked: what every answer is held against.
struct World {
    jtis: Vec<String>,
    subjects: Vec<String>,
    /// Every token was issued in the 500 seconds from here on.
    issued: u64,
    revoked: Vec<bool>,
    cut_off: Vec<bool>,
}

impl World {
    fn new() -> Self {
        Self {
            jtis: (0..TOKENS).map(|number| format!("token-{number}")).collect(),
            subjects: (0..TOKENS / TOKENS_OF_A_SUBJECT).map(|number| format!("user-{number}")).collect(),
            issued: now().secs() - 1_000,
            revoked: (0..TOKENS).map(|number| number % REVOKED_EVERY == 37).collect(),
            cut_off: vec![false; TOKENS / TOKENS_OF_A_SUBJECT],
        }
    }

    fn iat(&self, number: usize) -> UnixTime {
        UnixTime::from_secs(self.issued + number as u64 % 500)
    }

    fn exp(&self, number: usize) -> UnixTime {
        self.iat(number).plus(7 * 24 * 3_600)
    }

    fn subject(&self, number: usize) -> &str {
        &self.subjects[number / TOKENS_OF_A_SUBJECT]
    }

    fn claims(&self, number: usize) -> Claims<'_> {
        Claims {
            iat: Some(self.iat(number)),
            sub: Some(self.subject(number)),
            ..Claims::new(Jti::new(&self.jtis[number]).unwrap(), self.exp(number))
        }
    }

    fn revocation(&self, number: usize) -> Revocation {
        Revocation { jti: self.jtis[number].clone(), exp: self.exp(number), reason: None }
    }

    fn is_revoked(&self, number: usize) -> bool {
        self.revoked[number] || self.cut_off[number / TOKENS_OF_A_SUBJECT]
    }

    /// The first good token at or after a number, of a subject without a cutoff.
    fn good_from(&self, number: usize) -> usize {
        (number..TOKENS).find(|number| !self.is_revoked(*number)).unwrap()
    }
}

/// What a verdict is, in a byte: a million of them are kept to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Said {
    Revoked,
    NotRevoked,
    Suspect,
    Unknown,
}

impl From<Verdict> for Said {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Revoked { .. } => Self::Revoked,
            Verdict::NotRevoked { .. } => Self::NotRevoked,
            Verdict::Suspect { .. } => Self::Suspect,
            Verdict::Unknown { .. } => Self::Unknown,
        }
    }
}

/// Everything that every device says.
type Answers = Vec<Vec<Said>>;

// ---- Devices -------------------------------------------------------------------------------------

/// How each device holds the realm, and what that must come to.
fn holds() -> Vec<(&'static str, Hold, Option<Profile>)> {
    let pinned = Profile::BEST_FIRST.map(|profile| (profile.name(), Hold::Profile(profile), Some(profile)));
    let kib = |kib: u64| Config::within(kib * 1024, 0).unwrap().hold;
    let within = [("within-64-kib", kib(64), None), ("within-32-kib", kib(32), None), ("within-16-kib", kib(16), None)];
    pinned.into_iter().chain(within).collect()
}

struct Fleet {
    devices: Vec<(&'static str, Device)>,
    expected: Vec<Option<Profile>>,
}

impl Fleet {
    /// Starts a device of each kind, each from the state it left in its folder.
    async fn start(broker: &str, trust: &Trust, folder: &Path) -> Self {
        let (mut devices, mut expected) = (Vec::new(), Vec::new());
        for (name, hold, profile) in holds() {
            let replica = Config { hold, epoch_jitter: Duration::ZERO, ..Config::exact(random_seed().unwrap()) };
            let (url, id) = (broker.parse().unwrap(), ClientId::new(name).unwrap());
            let config = DeviceConfig::new(url, id, realm(), trust.clone(), replica);
            let store = DiskStore::open(&folder.join(name)).unwrap();
            devices.push((name, Device::start(config, store).await.unwrap()));
            expected.push(profile);
        }
        Self { devices, expected }
    }

    fn profile(&self, at: usize) -> Option<Profile> {
        self.devices[at].1.checker().set().base().map(revocast_core::Base::profile)
    }

    fn says(&self, at: usize, world: &World, number: usize) -> Said {
        self.devices[at].1.checker().check(SystemClock::now(), &world.claims(number)).into()
    }

    /// Waits until something is true of every device.
    async fn until(&self, what: &str, is: impl Fn(usize) -> bool) {
        let until = Instant::now() + PATIENCE;
        for (at, (name, device)) in self.devices.iter().enumerate() {
            while !is(at) {
                assert!(Instant::now() < until, "{name}: {what}: {:?}", device.status().borrow());
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Waits until every device stands at a sequence, on an epoch, and believes itself.
    async fn stands(&self, published: &Published, head: Sequence) {
        self.until("it stands at the head", |at| {
            let checker = self.devices[at].1.checker();
            let position = checker.position();
            position.sequence >= head
                && position.epoch == published.position.epoch
                && checker.doubt(SystemClock::now()).is_none()
        })
        .await;
    }

    /// Waits until every device says this of a token.
    async fn all_say(&self, world: &World, number: usize, said: Said) {
        self.until(&format!("token {number} is {said:?}"), |at| self.says(at, world, number) == said).await;
    }

    /// Asks every device about every token.
    fn ask(&self, world: &World) -> Answers {
        let share = TOKENS / ASKERS;
        let shares: Vec<Answers> = block_in_place(|| {
            std::thread::scope(|scope| {
                let asker = |first: usize| {
                    move || {
                        let checkers = self.devices.iter().map(|(_, device)| device.checker());
                        checkers
                            .map(|checker| {
                                let at = SystemClock::now();
                                let numbers = first..first + share;
                                numbers.map(|number| Said::from(checker.check(at, &world.claims(number)))).collect()
                            })
                            .collect()
                    }
                };
                let asking: Vec<_> = (0..ASKERS).map(|asker_of| scope.spawn(asker(asker_of * share))).collect();
                asking.into_iter().map(|asking| asking.join().unwrap()).collect()
            })
        });
        (0..self.devices.len())
            .map(|at| shares.iter().flat_map(|answers| answers[at].iter().copied()).collect())
            .collect()
    }

    /// Holds every answer against the truth, and tells how often each device was unsure.
    fn judge(&self, world: &World, answers: &Answers) {
        for (at, said) in answers.iter().enumerate() {
            let (name, device) = &self.devices[at];
            let profile = self.profile(at).unwrap();
            let exact = matches!(profile, Profile::Exact | Profile::Covered);
            assert_eq!(said.len(), TOKENS);
            let (mut suspects, mut good) = (0_u64, 0_u64);
            for (number, said) in said.iter().enumerate() {
                let revoked = world.is_revoked(number);
                let right = match (revoked, said) {
                    (true, Said::Revoked) | (false, Said::NotRevoked) => true,
                    (_, Said::Suspect) => !exact,
                    (true, Said::NotRevoked) | (false, Said::Revoked) | (_, Said::Unknown) => false,
                };
                assert!(right, "{name} ({profile:?}): token {number}, revoked {revoked}, is {said:?}");
                suspects += u64::from(!revoked && *said == Said::Suspect);
                good += u64::from(!revoked);
            }
            let held = device.checker().set().base().and_then(revocast_core::Base::false_positive_rate);
            let rate = suspects as f64 / good as f64;
            println!(
                "  {name}: {}, {} bytes, {suspects} of {good} good tokens suspect ({rate:.2e}; its filter says {})",
                profile.name(),
                device.checker().set().size_bytes(),
                held.map_or("nothing".to_owned(), |held| format!("{held:.2e}")),
            );
            // The rate that it reports is the rate that it has.
            if let Some(held) = held.filter(|_| !exact) {
                assert!(rate < held * 1.25 + 1e-4 && held < rate * 1.25 + 1e-4, "{name}: {rate:e}, not {held:e}");
            }
        }
    }

    async fn stop(self) {
        for (_, device) in self.devices {
            device.stop().await;
        }
    }
}

// ---- The server ----------------------------------------------------------------------------------

async fn serve(folder: &Path) -> Server {
    let local = Some(([127, 0, 0, 1], 0).into());
    let config = Choices {
        listen: local,
        embedded_broker: local,
        data: Some(folder.join("data")),
        keys: Some(folder.join("keys")),
        ..Choices::default()
    };
    let mut config = config.check().unwrap();
    config.publishing = PublishingConfig { heartbeat: Duration::from_secs(1), ..config.publishing };
    Server::start(config, Arc::new(revocast_server::clock::SystemClock::new())).await.unwrap()
}

fn broker(server: &Server) -> String {
    format!("mqtt://{}", server.broker_addr().unwrap())
}

/// Waits until what is published is as it should be.
async fn published(server: &Server, what: &str, is: impl Fn(&Published) -> bool) -> Published {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = server.service().status().await.unwrap();
        let published = status.realms[0].published.clone();
        if let Some(published) = published.clone().filter(|published| is(published)) {
            return published;
        }
        assert!(Instant::now() < until, "{what}: {published:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Tells how long a step took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:>7.2} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

// ---- The test ------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_million_tokens_are_told_apart_by_devices_of_every_profile() {
    let mut steps = Steps(Instant::now());
    let folder = TempDir::new().unwrap();
    let keys = Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
    let server = serve(folder.path()).await;
    let service = Arc::clone(server.service());
    let parameters =
        NewRealm { fingerprint: FingerprintFunction::Xxh3, ..NewRealm::new(realm(), "https://issuer.example") };
    service.create_realm(parameters).await.unwrap();
    let mut world = World::new();
    let devices = folder.path().join("devices");
    std::fs::create_dir(&devices).unwrap();
    let fleet = Fleet::start(&broker(&server), &keys.trust().unwrap(), &devices).await;
    steps.done("server and devices started");

    // Issued: plain jtis, so that the filter has false positives.
    let mut new = 0;
    for first in (0..TOKENS).step_by(TOKENS_IN_A_BATCH) {
        let issued = (first..first + TOKENS_IN_A_BATCH)
            .map(|number| Issued {
                jti: world.jtis[number].clone(),
                iat: world.iat(number),
                exp: world.exp(number),
                sub: Some(world.subject(number).to_owned()),
            })
            .collect();
        new += service.register(realm(), issued).await.unwrap().new;
    }
    assert_eq!(new, TOKENS as u64);
    steps.done("a million tokens registered");

    // One in a hundred revoked, then all covered.
    let revocations: Vec<_> =
        (0..TOKENS).filter(|number| world.revoked[*number]).map(|number| world.revocation(number)).collect();
    assert_eq!(revocations.len(), TOKENS / REVOKED_EVERY);
    let receipts = service.revoke(realm(), revocations, "test").await.unwrap();
    let head = receipts.iter().map(|receipt| receipt.sequence).max().unwrap();
    let covered_until = UnixTime::from_secs(world.issued + 500);
    service.cover(realm(), covered_until).await.unwrap();
    steps.done("10,000 of them revoked, and all covered");
    let covering = published(&server, "an epoch covers every token", |published| {
        let chosen = published.choice.is_some_and(|choice| choice.exceptions && choice.revoked == head.0);
        published.position.sequence == head && chosen
    })
    .await;
    let choice = covering.choice.unwrap();
    println!("           {choice}");
    assert_eq!(
        (choice.because, choice.good, covering.revocations),
        (Because::Smallest, (TOKENS - 10_000) as u64, 10_000)
    );
    steps.done("an epoch that covers them published");
    fleet.stands(&covering, head).await;
    steps.done("every device stands on it");

    // What each holds, and what it says.
    for (at, expected) in fleet.expected.iter().enumerate() {
        assert!(
            expected.is_none() || fleet.profile(at) == *expected,
            "{}: {:?}",
            fleet.devices[at].0,
            fleet.profile(at)
        );
    }
    let named = |name: &str| fleet.devices.iter().position(|(found, _)| *found == name).unwrap();
    for (name, profile) in
        [("within-64-kib", Profile::List), ("within-32-kib", Profile::Covered), ("within-16-kib", Profile::FoldedTwice)]
    {
        let set = fleet.devices[named(name)].1.checker().set();
        let budget: u64 = name.trim_start_matches("within-").trim_end_matches("-kib").parse().unwrap();
        assert_eq!(fleet.profile(named(name)), Some(profile), "{name}");
        assert!(set.size_bytes() <= budget * 1024, "{name}: {} bytes", set.size_bytes());
    }
    fleet.judge(&world, &fleet.ask(&world));
    steps.done("nine million questions asked and judged");

    // The exceptions are in use: without them these good tokens would be suspects, or worse.
    let covered = fleet.devices[named("covered")].1.checker().set();
    assert_eq!(covered.base().unwrap().covered_until(), covered_until);
    let witnessed = |number: usize, witness| covered.explain(SystemClock::now(), &world.claims(number)).1 == witness;
    let excepted: Vec<usize> = block_in_place(|| {
        (0..TOKENS).filter(|number| !world.is_revoked(*number) && witnessed(*number, Witness::Exceptions)).collect()
    });
    let share = excepted.len() as f64 / choice.good as f64;
    println!("           {} good tokens are excepted ({share:.2e})", excepted.len());
    assert!(excepted.len() > 100 && share < choice.rate * 1.5, "{share:e} for a target of {:e}", choice.rate);
    let by_coverage =
        (0..TOKENS).filter(|number| world.revoked[*number]).all(|number| witnessed(number, Witness::Coverage));
    assert!(by_coverage, "a revoked token of the base is known by its coverage");
    steps.done("the covered profile explained every answer");

    // Live: a token that stands among the exceptions is revoked, one is reinstated, one subject is cut off for good,
    // another until the cutoff is lifted.
    let listed_as_good = *excepted.iter().find(|number| *number / TOKENS_OF_A_SUBJECT > 20).unwrap();
    service.revoke(realm(), vec![world.revocation(listed_as_good)], "test").await.unwrap();
    world.revoked[listed_as_good] = true;
    fleet.all_say(&world, listed_as_good, Said::Revoked).await;
    steps.done("a token among the exceptions revoked, and known to all");
    let reinstated = 500_037;
    assert!(world.is_revoked(reinstated));
    service.reinstate(realm(), world.jtis[reinstated].clone(), None, "test").await.unwrap();
    world.revoked[reinstated] = false;
    fleet.all_say(&world, reinstated, Said::NotRevoked).await;
    steps.done("a token reinstated, and known to all");
    // Some filter flags one token in twenty; these none does, so that all say the same before.
    let clean = |world: &World, from: usize| {
        (world.good_from(from)..from + TOKENS_OF_A_SUBJECT)
            .find(|&number| (0..fleet.devices.len()).all(|at| fleet.says(at, world, number) == Said::NotRevoked))
            .unwrap()
    };
    let (kept, lifted) = (clean(&world, 7_000), clean(&world, 8_000));
    for number in [kept, lifted] {
        let scope = Scope::Sub(world.subject(number).to_owned());
        let receipt = service.cut_off(realm(), scope, None, None, "test").await.unwrap();
        assert!(receipt.recorded);
        world.cut_off[number / TOKENS_OF_A_SUBJECT] = true;
        fleet.all_say(&world, number, Said::Revoked).await;
    }
    steps.done("two subjects cut off, and known to all");
    service.lift(realm(), Scope::Sub(world.subject(lifted).to_owned()), None, "test").await.unwrap();
    world.cut_off[lifted / TOKENS_OF_A_SUBJECT] = false;
    fleet.all_say(&world, lifted, Said::NotRevoked).await;
    steps.done("one cutoff lifted, and known to all");
    let answers = fleet.ask(&world);
    fleet.judge(&world, &answers);
    steps.done("nine million questions asked and judged, with a cutoff in force");

    // A restart of every device with nobody to talk to changes no answer.
    let positions: Vec<_> = fleet.devices.iter().map(|(_, device)| device.checker().position()).collect();
    fleet.stop().await;
    server.stop().await;
    drop(service);
    steps.done("devices and server stopped");
    let fleet = Fleet::start("mqtt://127.0.0.1:1", &keys.trust().unwrap(), &devices).await;
    for (at, (name, device)) in fleet.devices.iter().enumerate() {
        let status = device.status().borrow().clone();
        assert_eq!(status.found, FoundState::Restored { damaged: false }, "{name}");
        assert_eq!(device.checker().position(), positions[at], "{name}");
    }
    assert!(fleet.ask(&world) == answers, "a restart without a broker changed an answer");
    fleet.stop().await;
    steps.done("devices restarted without a broker: the same answers");

    // The server comes back from its ledger; the devices come back to it, and hear what is new.
    let server = serve(folder.path()).await;
    let fleet = Fleet::start(&broker(&server), &keys.trust().unwrap(), &devices).await;
    let standing = published(&server, "the server publishes again", |published| {
        published.position.epoch >= covering.position.epoch
    })
    .await;
    fleet.stands(&standing, positions[0].sequence).await;
    let back = fleet.ask(&world);
    if standing.position.epoch == covering.position.epoch {
        assert!(back == answers, "the server's restart changed an answer");
    }
    fleet.judge(&world, &back);
    steps.done("the server restarted and every device back: the same answers");
    let last = world.good_from(600_000);
    server.service().revoke(realm(), vec![world.revocation(last)], "test").await.unwrap();
    world.revoked[last] = true;
    fleet.all_say(&world, last, Said::Revoked).await;
    steps.done("one more revoked, and known to all");
    fleet.stop().await;
    server.stop().await;
}
