use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use revocast_core::artifact::Cutting;
use revocast_core::update::{Artifact, Delta, Index, IssuerKeys, Keys, Manifest, Nonce, PublisherKey, Renew, Role};
use revocast_core::{
    Address, Claims, Config, Cutoff, Digest, Epoch, FilterParams, Fingerprint, FingerprintFunction, Fingerprinter, Jti,
    Notice, PublicKey, RealmKey, Salt, Sealed, Sequence, SigningKey, Trust, UnixMillis, UnixTime, Verdict, Width, rice,
    wire,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::config::{BrokerUrl, ClientId};
use crate::inbox::tests::{Issuer, Sender, identity};
use crate::inbox::{InboxConfig, NotHeld, TokenState};
use crate::store::{Candidate, DiskStore, Heads, VolatileStore};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a broker retains, who listens, and which device is connected to it.
#[derive(Clone, Default)]
struct Broker(Arc<Mutex<BrokerState>>);

#[derive(Default)]
struct BrokerState {
    retained: BTreeMap<Address, Vec<u8>>,
    subscribed: BTreeSet<Address>,
    device: Option<mpsc::UnboundedSender<LinkEvent>>,
    reports: Vec<Vec<u8>>,
    questions: Vec<Vec<u8>>,
    renewals: Vec<Vec<u8>>,
    closed: bool,
}

impl Broker {
    fn state(&self) -> std::sync::MutexGuard<'_, BrokerState> {
        self.0.lock().unwrap()
    }

    fn publish(&self, address: Address, payload: Vec<u8>) {
        let mut state = self.state();
        if state.subscribed.contains(&address)
            && let Some(device) = &state.device
        {
            let _ = device.send(LinkEvent::Packet { address, payload: payload.clone() });
        }
        if !matches!(address, Address::Live | Address::Delivery) {
            state.retained.insert(address, payload);
        }
    }

    /// A transport that is connected to this broker from the start.
    fn connect(&self) -> FakeLink {
        let (device, events) = mpsc::unbounded_channel();
        device.send(LinkEvent::Connected).unwrap();
        let mut state = self.state();
        state.subscribed.clear();
        state.device = Some(device);
        FakeLink { broker: self.clone(), events }
    }

    fn tell(&self, event: LinkEvent) {
        self.state().device.as_ref().unwrap().send(event).unwrap();
    }
}

struct FakeLink {
    broker: Broker,
    events: mpsc::UnboundedReceiver<LinkEvent>,
}

impl Transport for FakeLink {
    async fn next(&mut self) -> LinkEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => future::pending().await,
        }
    }

    fn subscribe(&mut self, address: Address) {
        let mut state = self.broker.state();
        state.subscribed.insert(address);
        if let (Some(payload), Some(device)) = (state.retained.get(&address), &state.device) {
            let _ = device.send(LinkEvent::Packet { address, payload: payload.clone() });
        }
    }

    fn unsubscribe(&mut self, address: Address) {
        self.broker.state().subscribed.remove(&address);
    }

    fn report(&mut self, sealed: Vec<u8>) {
        self.broker.state().reports.push(sealed);
    }

    fn ask(&mut self, sealed: Vec<u8>) {
        self.broker.state().questions.push(sealed);
    }

    fn renew(&mut self, sealed: Vec<u8>) {
        self.broker.state().renewals.push(sealed);
    }

    fn stats(&self) -> LinkStats {
        LinkStats::default()
    }

    async fn close(self) {
        self.broker.state().closed = true;
    }
}

/// A publisher of one realm with one epoch.
struct Publisher {
    realm: RealmId,
    root: SigningKey,
    content: SigningKey,
    fingerprinter: Fingerprinter,
    now: UnixMillis,
    sequence: u64,
    index: Digest,
    pieces: Vec<revocast_core::update::Piece>,
}

impl Publisher {
    fn new(broker: &Broker, revoked: &[&str]) -> Self {
        let realm = RealmId::new("acme").unwrap();
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([7; 16]), Width::W48);
        let mut publisher = Self {
            realm,
            root: SigningKey::from_seed([1; 32]),
            content: SigningKey::from_seed([2; 32]),
            fingerprinter,
            now: SystemClock::now().wall,
            sequence: revoked.len() as u64,
            index: Digest::default(),
            pieces: Vec::new(),
        };
        let later = publisher.now.floor().plus(86_400);
        let keys = Keys {
            version: 1,
            issued_at: publisher.now,
            not_after: later,
            threshold: 1,
            roots: vec![publisher.root.public()],
            publishers: vec![PublisherKey {
                key: publisher.content.public(),
                role: Role::Content as u8,
                not_after: later,
            }],
            issuer: "https://issuer.example".into(),
            fingerprinter,
            leeway: 60,
        };
        let body = wire::encode_keys(&keys).unwrap();
        broker.publish(Address::Keys, seal(Kind::Keys, &realm, &body, &[&publisher.root]));

        let mut list: Vec<Fingerprint> = revoked.iter().map(|jti| publisher.fingerprint(jti)).collect();
        list.sort_unstable();
        let cutting = Cutting { realm, term: Term(1), epoch: Epoch(1), chunk_bytes: 2048 };
        let none: [Cutoff; 0] = [];
        let list_bytes = rice::encode(&list, Width::W48).unwrap();
        let cuts = [
            cutting.cut(Artifact::List, list.len() as u64, &list_bytes).unwrap(),
            cutting.cut(Artifact::Cutoffs, 0, &wire::encode_cutoffs(&none).unwrap()).unwrap(),
        ];
        let index = Index {
            term: Term(1),
            epoch: Epoch(1),
            sequence: Sequence(publisher.sequence),
            issued_at: publisher.now,
            horizon: UnixTime::default(),
            covered_until: UnixTime::default(),
            filter: FilterParams::for_target(list.len().max(1) as u64, 0.01, Salt([3; 16])).unwrap(),
            chunk_bytes: 2048,
            artifacts: cuts.iter().map(|cut| cut.summary.clone()).collect(),
        };
        let sealed = publisher.seal(Kind::Index, &wire::encode_index(&index).unwrap());
        publisher.index = Digest::of(&sealed);
        broker.publish(Address::Index { epoch: Epoch(1) }, sealed);
        for (address, sealed) in cuts.into_iter().flat_map(|cut| cut.objects) {
            broker.publish(address, sealed);
        }
        publisher.manifest(broker);
        publisher
    }

    fn seal(&self, kind: Kind, body: &[u8]) -> Vec<u8> {
        seal(kind, &self.realm, body, &[&self.content])
    }

    fn fingerprint(&self, jti: &str) -> Fingerprint {
        self.fingerprinter.fingerprint(Jti::new(jti).unwrap())
    }

    fn manifest(&mut self, broker: &Broker) {
        self.now = self.now.plus(Duration::from_millis(1));
        let manifest = Manifest {
            term: Term(1),
            epoch: Epoch(1),
            sequence: Sequence(self.sequence),
            issued_at: self.now,
            next_update: self.now.floor().plus(60),
            horizon: UnixTime::default(),
            index: self.index,
            ladder: self.pieces.clone(),
        };
        broker.publish(Address::Manifest, self.seal(Kind::Manifest, &wire::encode_manifest(&manifest).unwrap()));
    }

    /// Revokes one token: ladder, live, manifest.
    fn revoke(&mut self, broker: &Broker, jti: &str) {
        let (from, to) = (Sequence(self.sequence), Sequence(self.sequence + 1));
        self.sequence = to.0;
        let delta = Delta {
            term: Term(1),
            from,
            to,
            issued_at: self.now,
            horizon: UnixTime::default(),
            revoked: vec![self.fingerprint(jti)],
            reinstated: Vec::new(),
            cutoffs: Vec::new(),
            lifts: Vec::new(),
        };
        let sealed = self.seal(Kind::Delta, &wire::encode_delta(&delta, Width::W48).unwrap());
        let (bytes, digest) = (sealed.len() as u32, Digest::of(&sealed));
        self.pieces.push(revocast_core::update::Piece { from, to, bytes, digest });
        broker.publish(Address::Ladder { from, to }, sealed.clone());
        broker.publish(Address::Live, sealed);
        self.manifest(broker);
    }

    fn trust(&self) -> Trust {
        Trust { roots: vec![self.root.public()], threshold: 1, not_before: UnixTime::from_secs(1_700_000_000) }
    }

    fn config(&self) -> DeviceConfig {
        let mut replica = Config::exact(1);
        replica.persist_every = Duration::ZERO;
        replica.report_spread = Duration::ZERO;
        replica.retry_after = Duration::from_millis(100);
        let broker: BrokerUrl = "mqtt://nowhere.invalid".parse().unwrap();
        DeviceConfig::new(broker, ClientId::new("device").unwrap(), self.realm, self.trust(), replica)
    }
}

fn verdict(device: &Device, jti: &str) -> Verdict {
    let now = SystemClock::now();
    device.checker().check(now, &Claims::new(Jti::new(jti).unwrap(), now.wall.floor().plus(3600)))
}

fn is_revoked(device: &Device, jti: &str) -> bool {
    matches!(verdict(device, jti), Verdict::Revoked { .. })
}

async fn until(device: &Device, what: impl FnMut(&Status) -> bool) -> Status {
    let mut status = device.status();
    let reached = timeout(PATIENCE, status.wait_for(what)).await;
    reached.expect("not reached in time").expect("the device has ended").clone()
}

async fn start(publisher: &Publisher, broker: &Broker, store: impl Store + 'static) -> Device {
    Device::start_over(publisher.config(), store, SystemClock, |_| broker.connect()).await.unwrap()
}

fn at(sequence: u64) -> impl FnMut(&Status) -> bool {
    move |status| status.position.sequence == Sequence(sequence) && status.doubt.is_none()
}

#[tokio::test]
async fn a_device_catches_up_then_follows_live() {
    let broker = Broker::default();
    let mut publisher = Publisher::new(&broker, &["a", "b"]);
    publisher.revoke(&broker, "c");
    let device = start(&publisher, &broker, VolatileStore).await;
    let status = until(&device, at(3)).await;
    assert!(status.connected);
    assert_eq!((status.term, status.found), (Term(1), FoundState::Nothing));
    for jti in ["a", "b", "c"] {
        assert!(is_revoked(&device, jti), "{jti}");
    }
    assert_eq!(verdict(&device, "d"), Verdict::NotRevoked { at: status.position });

    publisher.revoke(&broker, "d");
    until(&device, at(4)).await;
    assert!(is_revoked(&device, "d"));
    assert_eq!(device.checker().issuer().as_deref(), Some("https://issuer.example"));
    device.stop().await;
    assert!(broker.state().closed);
}

#[tokio::test]
async fn before_anything_is_known_nothing_is_not_revoked() {
    let broker = Broker::default();
    let publisher = Publisher::new(&Broker::default(), &[]);
    let device = start(&publisher, &broker, VolatileStore).await;
    assert_eq!(verdict(&device, "a"), Verdict::Unknown { doubt: Doubt::NoState });
    until(&device, |status| status.connected).await;
    assert_eq!(verdict(&device, "a"), Verdict::Unknown { doubt: Doubt::NoState });
}

/// Row 52.
#[tokio::test]
async fn a_restart_offline_answers_as_before() {
    let broker = Broker::default();
    let folder = TempDir::new().unwrap();
    let mut publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, DiskStore::open(folder.path()).unwrap()).await;
    until(&device, at(1)).await;
    publisher.revoke(&broker, "b");
    until(&device, at(2)).await;
    let before = device.status().borrow().position;
    let verdicts_before: Vec<Verdict> = (0..100_000).map(|n| verdict(&device, &format!("token-{n}"))).collect();
    device.stop().await;

    // Nothing retained, nobody there.
    let device = start(&publisher, &Broker::default(), DiskStore::open(folder.path()).unwrap()).await;
    assert_eq!(device.status().borrow().found, FoundState::Restored { damaged: false });
    assert_eq!(device.checker().position(), before);
    assert!(is_revoked(&device, "a") && is_revoked(&device, "b"));
    assert_eq!(verdict(&device, "c"), Verdict::NotRevoked { at: before });
    for (n, before) in verdicts_before.into_iter().enumerate() {
        assert_eq!(verdict(&device, &format!("token-{n}")), before);
    }
    device.stop().await;
}

#[tokio::test]
async fn stopping_writes_down_what_was_not_yet_due() {
    let broker = Broker::default();
    let folder = TempDir::new().unwrap();
    let mut publisher = Publisher::new(&broker, &["a"]);
    let mut config = publisher.config();
    config.replica.persist_every = Duration::from_hours(1);
    let store = DiskStore::open(folder.path()).unwrap();
    let device = Device::start_over(config, store, SystemClock, |_| broker.connect()).await.unwrap();
    until(&device, |status| status.persisted == 1).await;
    until(&device, at(1)).await;
    publisher.revoke(&broker, "b");
    until(&device, at(2)).await;
    device.stop().await;

    let device = start(&publisher, &Broker::default(), DiskStore::open(folder.path()).unwrap()).await;
    assert_eq!(device.checker().position().sequence, Sequence(2));
    assert!(is_revoked(&device, "b"));
}

#[tokio::test]
async fn damaged_state_is_said_so_and_never_means_not_revoked() {
    let broker = Broker::default();
    let folder = TempDir::new().unwrap();
    let publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, DiskStore::open(folder.path()).unwrap()).await;
    until(&device, at(1)).await;
    device.stop().await;
    for name in ["base-a", "base-b"] {
        std::fs::write(folder.path().join(name), b"rot").unwrap();
    }
    // The head written before the base arrived is all that is left.
    let device = start(&publisher, &Broker::default(), DiskStore::open(folder.path()).unwrap()).await;
    assert_eq!(device.status().borrow().found, FoundState::Restored { damaged: true });
    assert_eq!(verdict(&device, "b"), Verdict::Unknown { doubt: Doubt::NoState });
    device.stop().await;
    for name in ["head-a", "head-b"] {
        std::fs::write(folder.path().join(name), b"rot").unwrap();
    }
    let device = start(&publisher, &Broker::default(), DiskStore::open(folder.path()).unwrap()).await;
    assert_eq!(device.status().borrow().found, FoundState::Damaged { refusal: None });
    assert_eq!(verdict(&device, "b"), Verdict::Unknown { doubt: Doubt::NoState });
    device.stop().await;
    // With a broker it heals.
    let device = start(&publisher, &broker, DiskStore::open(folder.path()).unwrap()).await;
    until(&device, at(1)).await;
    assert!(is_revoked(&device, "a"));
}

#[tokio::test]
async fn state_of_another_trust_is_not_believed() {
    let broker = Broker::default();
    let folder = TempDir::new().unwrap();
    let publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, DiskStore::open(folder.path()).unwrap()).await;
    until(&device, at(1)).await;
    device.stop().await;
    let mut config = publisher.config();
    config.trust.roots = vec![PublicKey([9; 32])];
    let store = DiskStore::open(folder.path()).unwrap();
    let device = Device::start_over(config, store, SystemClock, |_| broker.connect()).await.unwrap();
    let found = device.status().borrow().found.clone();
    assert_eq!(
        found,
        FoundState::Damaged { refusal: Some(Refusal::DamagedState { what: "it was written under another trust" }) }
    );
    let status = until(&device, |status| status.refusals_total() > 0).await;
    assert_eq!(status.last_refusal, Some(Refusal::WrongKey { kind: Kind::Keys }));
    assert_eq!(verdict(&device, "a"), Verdict::Unknown { doubt: Doubt::NoState });
}

/// More than the smallest budgets hold.
fn many() -> Vec<String> {
    (0..2_000).map(|number| format!("revoked-{number}")).collect()
}

async fn start_within(
    publisher: &Publisher,
    broker: &Broker,
    budget: u64,
    store: impl Store + 'static,
) -> Result<Device, StartError> {
    let mut config = publisher.config();
    config.replica.hold = Hold::Budget(budget);
    Device::start_over(config, store, SystemClock, |_| broker.connect()).await
}

#[tokio::test]
async fn the_status_tells_what_is_held_within_a_budget_and_what_else_there_is() {
    let broker = Broker::default();
    let revoked = many();
    let publisher = Publisher::new(&broker, &revoked.iter().map(String::as_str).collect::<Vec<_>>());
    for (budget, profile) in [(64 * 1024, Profile::Exact), (18 * 1024, Profile::List)] {
        let device = start_within(&publisher, &broker, budget, VolatileStore).await.unwrap();
        let before = device.status().borrow().holding.clone();
        assert_eq!((before.profile, before.budget, before.offers), (None, Some(budget), Vec::new()));
        let holding = until(&device, at(2_000)).await.holding;
        assert_eq!((holding.profile, holding.budget, holding.needed), (Some(profile), Some(budget), None));
        assert_eq!(holding.bytes, device.checker().set().size_bytes());
        assert!(holding.bytes <= budget && holding.base_bytes_max < budget, "{holding:?}");
        let offered: Vec<Profile> = holding.offers.iter().map(|(profile, _)| *profile).collect();
        // This publisher has no filter to offer.
        assert_eq!(offered, [Profile::Exact, Profile::List]);
        let held = holding.offers.iter().find(|(_, bytes)| *bytes <= holding.base_bytes_max).unwrap();
        assert_eq!(held.0, profile, "{holding:?}");
        for jti in &revoked {
            assert!(!matches!(verdict(&device, jti), Verdict::NotRevoked { .. }), "{jti} within {budget} bytes");
        }
    }
}

#[tokio::test]
async fn the_first_index_tells_which_budget_would_do() {
    let broker = Broker::default();
    let revoked = many();
    let publisher = Publisher::new(&broker, &revoked.iter().map(String::as_str).collect::<Vec<_>>());
    let device = start_within(&publisher, &broker, 10 * 1024, VolatileStore).await.unwrap();
    let status = until(&device, |status| status.holding.needed.is_some()).await;
    let needed = status.holding.needed.unwrap();
    assert_eq!(status.last_refusal, Some(Refusal::TooLarge { bytes: needed, max: 10 * 1024 }));
    assert_eq!(status.holding.profile, None);
    for jti in ["revoked-1", "other"] {
        assert_eq!(verdict(&device, jti), Verdict::Unknown { doubt: Doubt::NoState });
    }
    // A little less does not do, and that number does.
    let device = start_within(&publisher, &broker, needed - 8, VolatileStore).await.unwrap();
    until(&device, |status| status.holding.needed == Some(needed)).await;
    let device = start_within(&publisher, &broker, needed, VolatileStore).await.unwrap();
    let status = until(&device, at(2_000)).await;
    assert_eq!((status.holding.profile, status.holding.needed), (Some(Profile::List), None));
}

/// A device is given less memory than when it wrote its state.
#[tokio::test]
async fn a_smaller_budget_drops_the_base_and_keeps_what_came_since() {
    let broker = Broker::default();
    let folder = TempDir::new().unwrap();
    let revoked = many();
    let mut publisher = Publisher::new(&broker, &revoked.iter().map(String::as_str).collect::<Vec<_>>());
    let store = || DiskStore::open(folder.path()).unwrap();
    let device = start_within(&publisher, &broker, 64 * 1024, store()).await.unwrap();
    until(&device, at(2_000)).await;
    publisher.revoke(&broker, "since");
    until(&device, at(2_001)).await;
    device.stop().await;

    // Nothing of it fits: refused before anything is lost, with the number that would do.
    let refused = start_within(&publisher, &Broker::default(), 10 * 1024, store()).await;
    let Err(StartError::Budget { budget: 10_240, needed }) = refused else { panic!("{refused:?}") };
    let words = format!("a memory budget of 10240 bytes holds nothing of this realm; {needed} bytes would do");
    assert_eq!(refused.unwrap_err().to_string(), words);

    // The list would fit, but it is not what was stored.
    let device = start_within(&publisher, &Broker::default(), needed, store()).await.unwrap();
    assert_eq!(device.status().borrow().found, FoundState::Restored { damaged: false });
    assert_eq!(device.status().borrow().holding.profile, None);
    assert!(is_revoked(&device, "since"));
    for jti in ["revoked-1", "other"] {
        assert_eq!(verdict(&device, jti), Verdict::Unknown { doubt: Doubt::NoState });
    }
    device.stop().await;
    // Written down like that, it is still so; and with a broker everything is there again.
    let device = start_within(&publisher, &broker, needed, store()).await.unwrap();
    assert!(is_revoked(&device, "since"));
    let status = until(&device, at(2_001)).await;
    assert_eq!(status.holding.profile, Some(Profile::List));
    assert!(is_revoked(&device, "since"));
    for jti in &revoked {
        assert!(!matches!(verdict(&device, jti), Verdict::NotRevoked { .. }), "{jti}");
    }
    assert!(matches!(verdict(&device, "other"), Verdict::NotRevoked { .. }));
    device.stop().await;

    // A larger one takes what is stored and keeps it.
    let device = start_within(&publisher, &Broker::default(), 64 * 1024, store()).await.unwrap();
    assert_eq!(device.status().borrow().holding.profile, Some(Profile::List));
    assert!(is_revoked(&device, "since"));
}

#[tokio::test]
async fn a_budget_below_the_least_does_not_start() {
    let publisher = Publisher::new(&Broker::default(), &[]);
    let refused = start_within(&publisher, &Broker::default(), 8_191, VolatileStore).await;
    assert!(matches!(refused, Err(StartError::Budget { budget: 8_191, needed: 8_192 })), "{refused:?}");
    assert!(start_within(&publisher, &Broker::default(), 8_192, VolatileStore).await.is_ok());
}

/// Fails until it is mended.
struct FailingStore(Arc<AtomicBool>);

impl Store for FailingStore {
    fn heads(&mut self) -> Result<Heads, StoreError> {
        Ok(Heads { candidates: Vec::<Candidate>::new(), damaged: 0 })
    }

    fn base(&mut self, _: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn save(&mut self, _: &Image) -> Result<(), StoreError> {
        if self.0.load(Ordering::Relaxed) {
            Ok(())
        } else {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            Err(StoreError::Io { step: "writing", path: "head-a".into(), source })
        }
    }

    fn slot(&mut self, _: Slot) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn put(&mut self, slot: Slot, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Damaged { path: format!("{slot:?}").into() })
    }
}

/// A device with an identity, and the issuer and server of its tokens.
struct Site {
    broker: Broker,
    publisher: Publisher,
    issuer: Issuer,
}

impl Site {
    fn new() -> Self {
        let broker = Broker::default();
        let publisher = Publisher::new(&broker, &["a"]);
        let site = Self { broker, publisher, issuer: Issuer::new(40) };
        site.publish_keys(&site.issuer, 1);
        site
    }

    /// Lets the issuer's keys stand at the broker.
    fn publish_keys(&self, issuer: &Issuer, later: u64) {
        let issued_at = self.publisher.now.plus(Duration::from_millis(later));
        let keys = IssuerKeys { issued_at, jwks: issuer.jwks() };
        let body = wire::encode_issuer_keys(&keys).unwrap();
        self.broker.publish(Address::IssuerKeys, self.publisher.seal(Kind::IssuerKeys, &body));
    }

    async fn start(&self, broker: &Broker, store: impl Store + 'static) -> Device {
        let config = self.publisher.config().with_inbox(InboxConfig::new(identity(1), ["https://api.example"]));
        Device::start_over(config, store, SystemClock, |_| broker.connect()).await.unwrap()
    }

    /// Waits for a request that the device's key has signed.
    async fn request(&self, number: usize) -> Renew {
        let sealed = timeout(PATIENCE, async {
            loop {
                if let Some(sealed) = self.broker.state().renewals.get(number).cloned() {
                    return sealed;
                }
                tokio::task::yield_now().await;
            }
        });
        let sealed = sealed.await.expect("no request in time");
        let sealed = Sealed::expect(&sealed, &self.publisher.realm, Kind::Renew).unwrap();
        let body = sealed.by_threshold(&[identity(1).public().signing], 1).unwrap();
        body.try_map(wire::decode_renew).unwrap().into_inner()
    }

    /// Delivers a token, signed by this issuer.
    fn deliver(&self, issuer: &Issuer, jti: &str, nonce: Option<Nonce>) {
        let now = SystemClock::now().wall;
        let token = issuer.sign(&Issuer::claims(&identity(1), jti, now.floor().secs(), 3_600));
        let sender = Sender { nonce, ..Sender::new(self.publisher.content.clone(), &identity(1), now) };
        self.broker
            .tell(LinkEvent::Packet { address: Address::Delivery, payload: sender.send(&Notice::Token { token }) });
    }
}

async fn holds(device: &Device, jti: &str) {
    let mut news = device.inbox().unwrap().watch();
    let held = news.wait_for(|state| matches!(state, TokenState::Held(held) if held.token().jti() == jti));
    timeout(PATIENCE, held).await.expect("not held in time").expect("the device has ended");
}

#[tokio::test]
async fn a_device_gets_its_token_keeps_it_over_a_restart_and_learns_of_its_revocation() {
    let mut site = Site::new();
    let folder = TempDir::new().unwrap();
    let device = site.start(&site.broker, DiskStore::open(folder.path()).unwrap()).await;
    let request = site.request(0).await;
    assert!(site.broker.state().subscribed.contains(&Address::Delivery));
    site.deliver(&site.issuer, "mine", Some(request.nonce));
    holds(&device, "mine").await;
    device.stop().await;

    // Nothing retained, nobody there: the token and the keys that it is checked with are on the disk.
    let device = site.start(&Broker::default(), DiskStore::open(folder.path()).unwrap()).await;
    let inbox = device.inbox().unwrap();
    assert!(matches!(inbox.current(), TokenState::Held(_)), "{:?}", inbox.current());
    assert!(inbox.present(SystemClock::now()).is_ok());
    device.stop().await;

    let device = site.start(&site.broker, DiskStore::open(folder.path()).unwrap()).await;
    until(&device, at(1)).await;
    let mut news = device.inbox().unwrap().watch();
    site.publisher.revoke(&site.broker, "mine");
    let told = news.wait_for(|state| matches!(state, TokenState::Revoked { .. }));
    timeout(PATIENCE, told).await.expect("not told in time").unwrap();
    assert!(matches!(device.inbox().unwrap().present(SystemClock::now()), Err(NotHeld::Revoked { .. })));
    // What it asks next, it asks with a higher counter, and says which token it had.
    let next = site.request(1).await;
    assert!(next.counter > request.counter);
    device.stop().await;
}

#[tokio::test]
async fn issuer_keys_come_over_the_link_only_forward_and_survive_a_restart() {
    let site = Site::new();
    let folder = TempDir::new().unwrap();
    let start = |broker: Broker| {
        let config = site.publisher.config().with_issuer_keys(LiveKeys::default());
        Device::start_over(config, DiskStore::open(folder.path()).unwrap(), SystemClock, move |_| broker.connect())
    };
    let device = start(site.broker.clone()).await.unwrap();
    let keys = device.issuer_keys().unwrap();
    assert!(device.inbox().is_none());
    until(&device, at(1)).await;
    let arrived = timeout(PATIENCE, async {
        while keys.keys().is_none() {
            tokio::task::yield_now().await;
        }
    });
    arrived.await.expect("no keys in time");
    let first = keys.keys().unwrap();
    let refused = |name| move |status: &Status| status.last_refusal.as_ref().map(Refusal::name) == Some(name);
    site.publish_keys(&Issuer::new(41), 0);
    until(&device, refused("rollback")).await;
    site.publish_keys(&Issuer::new(41), 1);
    until(&device, refused("equivocation")).await;
    let forged = seal(Kind::IssuerKeys, &site.publisher.realm, b"12345678{}", &[&SigningKey::from_seed([9; 32])]);
    site.broker.publish(Address::IssuerKeys, forged);
    until(&device, refused("wrong-key")).await;
    // Signed, later, and of no use: the set before stays in force.
    let broken = IssuerKeys { issued_at: site.publisher.now.plus(Duration::from_secs(1)), jwks: b"no json".to_vec() };
    let body = wire::encode_issuer_keys(&broken).unwrap();
    site.broker.publish(Address::IssuerKeys, site.publisher.seal(Kind::IssuerKeys, &body));
    until(&device, refused("malformed")).await;
    assert!(Arc::ptr_eq(&keys.keys().unwrap(), &first));
    site.publish_keys(&Issuer::new(41), 2);
    let replaced = timeout(PATIENCE, async {
        while Arc::ptr_eq(&keys.keys().unwrap(), &first) {
            tokio::task::yield_now().await;
        }
    });
    replaced.await.expect("not replaced in time");
    device.stop().await;

    let device = start(Broker::default()).await.unwrap();
    assert!(device.issuer_keys().unwrap().keys().is_some());
    device.stop().await;
}

#[tokio::test]
async fn a_device_with_an_identity_signs_its_reports_and_questions() {
    let site = Site::new();
    let device = site.start(&site.broker, VolatileStore).await;
    until(&device, at(1)).await;
    let now = SystemClock::now();
    let claims = Claims::new(Jti::new("x").unwrap(), now.wall.floor().plus(60));
    let asker = device.asker();
    let asking = asker.ask(&claims);
    let seen = async {
        loop {
            {
                let state = site.broker.state();
                if let (Some(report), Some(question)) = (state.reports.first(), state.questions.first()) {
                    return [(Kind::Report, report.clone()), (Kind::Ask, question.clone())];
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let said = tokio::select! {
        said = timeout(PATIENCE, seen) => said.expect("nothing said in time"),
        _ = asking => panic!("nobody answers"),
    };
    for (kind, bytes) in said {
        let sealed = Sealed::expect(&bytes, &site.publisher.realm, kind).unwrap();
        assert!(sealed.is_signed_by(&identity(1).public().signing), "{kind}");
    }
    device.stop().await;
}

#[tokio::test]
async fn a_disk_that_takes_nothing_lets_no_request_out_and_a_foreign_identity_does_not_start() {
    let site = Site::new();
    let store = FailingStore(Arc::new(AtomicBool::new(true)));
    let device = site.start(&site.broker, store).await;
    until(&device, at(1)).await;
    // A token that nobody asked for is held all the same.
    site.deliver(&site.issuer, "pushed", None);
    holds(&device, "pushed").await;
    assert!(site.broker.state().renewals.is_empty());
    device.stop().await;

    let start = |inbox: InboxConfig| {
        let config = site.publisher.config().with_inbox(inbox);
        Device::start_over(config, VolatileStore, SystemClock, |_| site.broker.connect())
    };
    let realm = site.publisher.realm;
    let other = |realm, device| Identity::from_seeds(realm, DeviceId::new(device).unwrap(), [1; 32], [2; 32]);
    let refused = start(InboxConfig::new(other(realm, "device2"), ["a"])).await;
    assert!(matches!(refused, Err(StartError::Inbox(InboxError::OtherDevice { .. }))), "{refused:?}");
    let refused = start(InboxConfig::new(other(RealmId::new("other").unwrap(), "device"), ["a"])).await;
    assert!(matches!(refused, Err(StartError::Inbox(InboxError::OtherRealm { .. }))), "{refused:?}");
    let refused = start(InboxConfig::new(other(realm, "device"), [""; 0])).await;
    assert!(matches!(refused, Err(StartError::Inbox(InboxError::NoAudience))), "{refused:?}");
}

#[tokio::test]
async fn a_full_disk_softens_nothing_and_is_tried_again() {
    let broker = Broker::default();
    let mut publisher = Publisher::new(&broker, &["a"]);
    let mended = Arc::new(AtomicBool::new(false));
    let mut config = publisher.config();
    config.replica.persist_every = Duration::from_millis(10);
    let store = FailingStore(Arc::clone(&mended));
    let device = Device::start_over(config, store, SystemClock, |_| broker.connect()).await.unwrap();
    until(&device, at(1)).await;
    publisher.revoke(&broker, "b");
    until(&device, at(2)).await;
    until(&device, |status| status.persist_failures > 2).await;
    assert!(is_revoked(&device, "a") && is_revoked(&device, "b"));
    assert!(broker.state().reports.is_empty(), "a report names only what is persisted");
    mended.store(true, Ordering::Relaxed);
    until(&device, |status| status.persisted > 0).await;
}

#[tokio::test]
async fn reports_name_what_is_persisted() {
    let broker = Broker::default();
    let publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, VolatileStore).await;
    until(&device, at(1)).await;
    let report = timeout(PATIENCE, async {
        loop {
            let last = broker.state().reports.last().cloned();
            if let Some(sealed) = last {
                let sealed = Sealed::expect(&sealed, &publisher.realm, Kind::Report).unwrap();
                let report = wire::decode_report(sealed.unverified_body()).unwrap();
                if report.position.sequence == Sequence(1) {
                    return report;
                }
            }
            tokio::task::yield_now().await;
        }
    });
    let report = report.await.expect("no report");
    assert_eq!((report.term, report.position.epoch), (Term(1), Epoch(1)));
    device.stop().await;
}

#[tokio::test]
async fn refusals_are_counted_and_harm_nothing() {
    let broker = Broker::default();
    let publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, VolatileStore).await;
    until(&device, at(1)).await;
    broker.tell(LinkEvent::Packet { address: Address::Live, payload: b"garbage".to_vec() });
    let malformed = Refusal::Malformed { what: "" }.number();
    until(&device, |status| status.refusals[usize::from(malformed)] == 1).await;
    let stranger = SigningKey::from_seed([9; 32]);
    let sealed = seal(Kind::Delta, &publisher.realm, b"", &[&stranger]);
    broker.tell(LinkEvent::Packet { address: Address::Live, payload: sealed });
    let status = until(&device, |status| status.refusals_total() == 2).await;
    assert_eq!(status.last_refusal, Some(Refusal::WrongKey { kind: Kind::Delta }));
    broker.tell(LinkEvent::Oversize { address: Some(Address::Manifest), bytes: 1 << 28 });
    broker.tell(LinkEvent::Oversize { address: None, bytes: 1 << 28 });
    let status = until(&device, |status| status.refusals_total() == 3).await;
    assert!(matches!(status.last_refusal, Some(Refusal::EndlessData { .. })));
    assert!(is_revoked(&device, "a"));
}

#[tokio::test]
async fn a_lost_connection_is_told_and_made_up_for() {
    let broker = Broker::default();
    let mut publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, VolatileStore).await;
    until(&device, at(1)).await;
    broker.tell(LinkEvent::Disconnected { why: "cut".into() });
    broker.state().subscribed.clear();
    let status = until(&device, |status| !status.connected).await;
    assert_eq!(status.last_loss.as_deref(), Some("cut"));
    publisher.revoke(&broker, "b");
    assert!(!is_revoked(&device, "b"));
    broker.tell(LinkEvent::Connected);
    until(&device, at(2)).await;
    assert!(is_revoked(&device, "b"));
}

/// Gives readings that are told.
struct ToldClock(Arc<Mutex<Now>>);

impl Clock for ToldClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }

    async fn until(&self, _: Option<Duration>) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Row 18: a device without a clock of its own.
#[tokio::test]
async fn a_clock_at_1970_is_in_doubt_until_the_time_is_proven() {
    let broker = Broker::default();
    let publisher = Publisher::new(&broker, &["a"]);
    let told = Arc::new(Mutex::new(Now::new(UnixMillis::default(), Duration::ZERO)));
    let clock = ToldClock(Arc::clone(&told));
    let device = Device::start_over(publisher.config(), VolatileStore, clock, |_| broker.connect()).await.unwrap();
    let unknown_time =
        |status: &Status| status.position.sequence == Sequence(1) && status.doubt == Some(Doubt::TimeUnknown);
    until(&device, unknown_time).await;
    let check = |jti: &str, exp: UnixTime| {
        device.checker().check(*told.lock().unwrap(), &Claims::new(Jti::new(jti).unwrap(), exp))
    };
    let exp = publisher.now.floor().plus(3600);
    assert_eq!(check("b", exp), Verdict::Unknown { doubt: Doubt::TimeUnknown });
    assert!(matches!(check("a", exp), Verdict::Revoked { .. }));
    device.prove_time(publisher.now.plus(Duration::from_secs(1)));
    until(&device, at(1)).await;
    assert!(matches!(check("b", exp), Verdict::NotRevoked { .. }));
    assert_eq!(device.checker().time(*told.lock().unwrap()), publisher.now.plus(Duration::from_secs(1)));
}

/// Row 33: every answer under way is that of one published set or the other.
#[tokio::test]
async fn answers_while_sets_are_swapped_come_from_one_of_them() {
    let broker = Broker::default();
    let mut publisher = Publisher::new(&broker, &["a"]);
    let device = start(&publisher, &broker, VolatileStore).await;
    until(&device, at(1)).await;
    let old = device.checker().set();
    publisher.revoke(&broker, "b");
    until(&device, at(2)).await;
    let new = device.checker().set();
    let (checker, mut exposure) = Checker::new(Arc::clone(&old));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let now = SystemClock::now();
                let exp = now.wall.floor().plus(3600);
                let check = |jti| checker.check(now, &Claims::new(Jti::new(jti).unwrap(), exp));
                while !done.load(Ordering::Relaxed) {
                    assert!(matches!(check("a"), Verdict::Revoked { .. }));
                    match check("b") {
                        Verdict::Revoked { .. } => {}
                        verdict => assert_eq!(verdict, Verdict::NotRevoked { at: old.position() }),
                    }
                    let verdict = check("c");
                    let either = [old.position(), new.position()].map(|at| Verdict::NotRevoked { at });
                    assert!(either.contains(&verdict), "{verdict:?}");
                }
            });
        }
        for round in 0..50_000 {
            exposure.expose(Arc::clone(if round % 2 == 0 { &new } else { &old }));
        }
        done.store(true, Ordering::Relaxed);
    });
}
