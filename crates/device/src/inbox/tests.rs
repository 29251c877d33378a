use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::update::{Delta, Keys, PublisherKey, Role};
use revocast_core::{
    Address, Config, EnvelopePublicKey, Event, FingerprintFunction, Fingerprinter, Jti, RealmKey, Sealed, Sequence,
    SigningKey, Term, Trust, Width, enclose,
};
use serde_json::{Value, json};

use super::*;
use crate::checker::Exposure;
use crate::validator::KeySet;

/// A Saturday in 2026.
const TODAY: u64 = 1_795_000_000;

const HOUR: u64 = 3_600;

const AUDIENCE: &str = "https://api.example";

pub(crate) fn identity(number: u8) -> Identity {
    let device = DeviceId::new("device").unwrap();
    Identity::from_seeds(RealmId::new("acme").unwrap(), device, [number; 32], [number + 100; 32])
}

/// Signs tokens.
pub(crate) struct Issuer(SigningKey);

impl Issuer {
    pub(crate) fn new(number: u8) -> Self {
        Self(SigningKey::from_seed([number; 32]))
    }

    fn kid(&self) -> String {
        self.0.public().id().to_string()
    }

    pub(crate) fn jwks(&self) -> Vec<u8> {
        let x = URL_SAFE_NO_PAD.encode(self.0.public().0);
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.kid(), "alg": "EdDSA", "use": "sig" });
        json!({ "keys": [key] }).to_string().into_bytes()
    }

    /// The claims of a good token for an identity.
    pub(crate) fn claims(identity: &Identity, jti: &str, iat: u64, life: u64) -> Value {
        json!({
            "iss": "https://issuer.example", "aud": AUDIENCE, "sub": "pumps", "jti": jti, "iat": iat, "nbf": iat,
            "exp": iat + life, "cnf": { "jkt": identity.thumbprint().to_string() },
        })
    }

    pub(crate) fn sign(&self, claims: &Value) -> Box<str> {
        let header = json!({ "alg": "EdDSA", "kid": self.kid(), "typ": "at+jwt" });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(message.as_bytes()));
        format!("{message}.{signature}").into()
    }
}

/// Makes a delivery as the server does.
pub(crate) struct Sender {
    pub(crate) key: SigningKey,
    pub(crate) realm: RealmId,
    pub(crate) device: DeviceId,
    pub(crate) to: EnvelopePublicKey,
    pub(crate) issued_at: UnixMillis,
    pub(crate) nonce: Option<Nonce>,
    pub(crate) enclosed: bool,
}

impl Sender {
    pub(crate) fn new(key: SigningKey, identity: &Identity, issued_at: UnixMillis) -> Self {
        let keys = identity.public();
        Self { key, realm: keys.realm, device: keys.device, to: keys.sealing, issued_at, nonce: None, enclosed: true }
    }

    pub(crate) fn send(&self, notice: &Notice) -> Vec<u8> {
        let plain = wire::encode_notice(notice).unwrap();
        let bound = Delivery::bound(self.issued_at, self.nonce.as_ref());
        let content = if self.enclosed {
            enclose(&self.to, &self.realm, &self.device, &bound, &plain, [5; 32]).unwrap()
        } else {
            plain
        };
        let (device, issued_at, nonce, enclosed) = (self.device, self.issued_at, self.nonce, self.enclosed);
        let delivery = Delivery { device, issued_at, nonce, enclosed, content };
        seal(Kind::Delivery, &self.realm, &wire::encode_delivery(&delivery).unwrap(), &[&self.key])
    }
}

/// A keeper, a replica that knows the publisher's keys, a disk and a clock.
struct World {
    content: SigningKey,
    fingerprinter: Fingerprinter,
    issuer: Issuer,
    replica: Replica,
    exposure: Exposure,
    checker: Checker,
    keys: LiveKeys,
    config: InboxConfig,
    keeper: Keeper,
    kept: Option<Vec<u8>>,
    sent: Vec<Renew>,
    now: Now,
    generation: u64,
    sequence: u64,
}

impl World {
    fn new() -> Self {
        Self::with(InboxConfig::new(identity(1), [AUDIENCE]))
    }

    fn with(config: InboxConfig) -> Self {
        let now = Now::new(UnixTime::from_secs(TODAY).millis(), Duration::from_secs(1));
        let realm = config.identity.realm();
        let (root, content) = (SigningKey::from_seed([31; 32]), SigningKey::from_seed([32; 32]));
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([7; 16]), Width::W48);
        let later = UnixTime::from_secs(TODAY + 400 * 24 * HOUR);
        let meant = Keys {
            version: 1,
            issued_at: now.wall,
            not_after: later,
            threshold: 1,
            roots: vec![root.public()],
            publishers: vec![PublisherKey { key: content.public(), role: Role::Content as u8, not_after: later }],
            issuer: "https://issuer.example".into(),
            fingerprinter,
            leeway: 30,
        };
        let sealed = seal(Kind::Keys, &realm, &wire::encode_keys(&meant).unwrap(), &[&root]);
        let trust = Trust { roots: vec![root.public()], threshold: 1, not_before: UnixTime::from_secs(TODAY - HOUR) };
        let mut replica = Replica::new(Config::exact(1), realm, trust);
        replica.handle(now, Event::Packet { address: Address::Keys, payload: &sealed });
        let (checker, exposure) = Checker::new(Arc::new(replica.set().clone()));
        let issuer = Issuer::new(40);
        let keys = LiveKeys::new(KeySet::from_jwks(&issuer.jwks()).unwrap());
        let keeper = Keeper::new(config.clone(), checker.clone(), keys.clone(), now, 1, None);
        let (kept, sent, generation, sequence) = (None, Vec::new(), 0, 0);
        Self {
            content,
            fingerprinter,
            issuer,
            replica,
            exposure,
            checker,
            keys,
            config,
            keeper,
            kept,
            sent,
            now,
            generation,
            sequence,
        }
    }

    /// Does what the keeper wants; what it sends is read.
    fn run(&mut self) {
        self.keeper.settle(self.now, self.generation);
        while let Some(chore) = self.keeper.poll(self.now, true) {
            match chore {
                Chore::Keep(bytes) => {
                    self.kept = Some(bytes);
                    self.keeper.kept(self.now, true);
                }
                Chore::Send(sealed) => self.sent.push(self.read(&sealed)),
            }
        }
    }

    /// What the server makes of a request.
    fn read(&self, sealed: &[u8]) -> Renew {
        let identity = &self.config.identity;
        let sealed = Sealed::expect(sealed, &identity.realm(), Kind::Renew).unwrap();
        let body = sealed.by_threshold(&[identity.public().signing], 1).unwrap();
        body.try_map(wire::decode_renew).unwrap().into_inner()
    }

    fn pass(&mut self, span: Duration) {
        self.now = Now::new(self.now.wall.plus(span), self.now.uptime + span);
        self.run();
    }

    /// Another start of the same device, from what it had put away.
    fn restart(&mut self) {
        let (config, checker, keys) = (self.config.clone(), self.checker.clone(), self.keys.clone());
        self.keeper = Keeper::new(config, checker, keys, self.now, 2, self.kept.as_deref());
    }

    fn sender(&self) -> Sender {
        Sender::new(self.content.clone(), &self.config.identity, self.now.wall)
    }

    fn token(&self, jti: &str) -> Notice {
        let claims = Issuer::claims(&self.config.identity, jti, self.now.wall.floor().secs(), HOUR);
        Notice::Token { token: self.issuer.sign(&claims) }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Declined> {
        let taken = self.keeper.take(self.now, &self.replica, bytes);
        self.run();
        taken
    }

    /// Why a delivery is not taken in.
    fn declined(&mut self, bytes: &[u8]) -> Refusal {
        match self.take(bytes) {
            Err(Declined::Refusal(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn give(&mut self, jti: &str) {
        self.pass(Duration::from_millis(1));
        let bytes = self.sender().send(&self.token(jti));
        assert_eq!(self.take(&bytes), Ok(()));
    }

    fn state(&self) -> TokenState {
        self.keeper.inbox().current()
    }

    fn held(&self) -> String {
        match self.state() {
            TokenState::Held(held) => held.token().jti().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    /// A delta that revokes or reinstates one token reaches the device.
    fn publish(&mut self, revoked: &[&str], reinstated: &[&str]) {
        let prints =
            |jtis: &[&str]| jtis.iter().map(|jti| self.fingerprinter.fingerprint(Jti::new(jti).unwrap())).collect();
        let delta = Delta {
            term: Term(1),
            from: Sequence(self.sequence),
            to: Sequence(self.sequence + 1),
            issued_at: self.now.wall,
            horizon: UnixTime::default(),
            revoked: prints(revoked),
            reinstated: prints(reinstated),
            cutoffs: Vec::new(),
            lifts: Vec::new(),
        };
        self.sequence += 1;
        let body = wire::encode_delta(&delta, Width::W48).unwrap();
        let sealed = seal(Kind::Delta, &self.config.identity.realm(), &body, &[&self.content]);
        self.replica.handle(self.now, Event::Packet { address: Address::Live, payload: &sealed });
        self.exposure.expose(Arc::new(self.replica.set().clone()));
        self.run();
    }
}

#[test]
fn a_device_without_a_token_asks_at_once_and_holds_what_comes() {
    let mut world = World::new();
    let mut news = world.keeper.inbox().watch();
    assert_eq!(world.state(), TokenState::Absent { refused: None });
    assert_eq!(world.keeper.inbox().present(world.now), Err(NotHeld::Absent));
    world.run();
    let [request] = &world.sent[..] else { panic!("{:?}", world.sent) };
    assert_eq!(request.device.as_str(), "device");
    assert!(request.counter > 0);

    let nonce = Some(request.nonce);
    let notice = world.token("first");
    let bytes = Sender { nonce, ..world.sender() }.send(&notice);
    assert_eq!(world.take(&bytes), Ok(()));
    assert!(news.has_changed().unwrap());
    assert_eq!(world.held(), "first");
    let TokenState::Held(held) = news.borrow_and_update().clone() else { panic!() };
    let Notice::Token { token } = notice else { panic!() };
    assert_eq!((held.text(), held.since()), (&*token, world.now.wall));
    assert_eq!(world.keeper.inbox().present(world.now).unwrap(), &*token);
    assert_eq!(format!("{:?}", world.state()), "Held(HeldToken(first))");
    // Nothing more is asked for.
    world.pass(Duration::from_mins(1));
    assert_eq!(world.sent.len(), 1);
}

#[test]
fn a_token_is_renewed_between_three_and_four_fifths_of_its_life_each_device_at_its_own_moment() {
    let mut moments = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let mut world = World::new();
        world.keeper.random = seed;
        world.give("first");
        world.sent.clear();
        while world.sent.is_empty() {
            world.pass(Duration::from_secs(1));
            assert_eq!(world.held(), "first");
        }
        let passed = world.now.wall.floor().secs() - TODAY;
        assert!((HOUR * 6 / 10..=HOUR * 8 / 10 + 1).contains(&passed), "{passed}");
        moments.insert(passed / 30);
        world.give("second");
        assert_eq!(world.held(), "second");
    }
    assert!(moments.len() > 10, "{moments:?}");
}

#[test]
fn without_an_answer_it_asks_again_less_and_less_often_and_never_more_than_one_at_a_time() {
    let mut world = World::new();
    let mut times = Vec::new();
    while world.now.uptime < Duration::from_secs(4 * HOUR) {
        let before = world.sent.len();
        world.pass(Duration::from_millis(100));
        assert!(world.sent.len() <= before + 1);
        if world.sent.len() > before {
            times.push(world.now.uptime);
        }
    }
    let waits: Vec<f64> = times.windows(2).map(|pair| pair[1].abs_diff(pair[0]).as_secs_f64()).collect();
    let meant = std::iter::successors(Some(1.0_f64), |wait| Some((2.0 * wait).min(300.0)));
    for (number, (wait, meant)) in waits.iter().zip(meant).enumerate() {
        assert!((meant * 0.75 - 0.2..=meant * 1.25 + 0.2).contains(wait), "wait {number} took {wait} s");
    }
    assert!(waits.len() > 20);
    assert!(world.sent.windows(2).all(|pair| pair[0].counter < pair[1].counter && pair[0].nonce != pair[1].nonce));
}

#[test]
fn the_counter_is_safe_before_a_request_leaves_and_rises_over_any_crash() {
    let mut world = World::new();
    world.run();
    let mut highest = world.sent.last().unwrap().counter;
    for crash in 0..200 {
        world.now = Now::new(world.now.wall.plus(Duration::from_mins(10)), world.now.uptime + Duration::from_mins(10));
        world.keeper.settle(world.now, 0);
        // The process dies after some of its steps; the disk keeps what was safe by then.
        for step in 0..crash % 4 {
            match world.keeper.poll(world.now, true) {
                Some(Chore::Keep(bytes)) if step < crash % 4 - 1 => {
                    world.kept = Some(bytes);
                    world.keeper.kept(world.now, true);
                }
                Some(Chore::Send(sealed)) => {
                    let counter = world.read(&sealed).counter;
                    assert!(counter > highest, "{counter} after {highest}");
                    highest = counter;
                }
                Some(Chore::Keep(_)) | None => {}
            }
        }
        world.restart();
    }
    assert!(highest > world.sent[0].counter + 20);
    // A disk that takes nothing: nothing leaves.
    world.now = Now::new(world.now.wall.plus(Duration::from_mins(10)), world.now.uptime + Duration::from_mins(10));
    let mut tries = 0;
    for _ in 0..1_000 {
        while let Some(chore) = world.keeper.poll(world.now, true) {
            assert!(matches!(chore, Chore::Keep(_)), "{chore:?}");
            world.keeper.kept(world.now, false);
            tries += 1;
        }
        world.now = Now::new(world.now.wall, world.now.uptime + Duration::from_millis(100));
    }
    assert!((20..500).contains(&tries), "{tries} tries in 100 s");
}

#[test]
fn a_counter_that_cannot_be_read_goes_on_from_the_clock() {
    let mut world = World::new();
    world.give("first");
    world.run();
    let whole = world.kept.clone().unwrap();
    let used = world.keeper.counter;
    for damaged in [None, Some(vec![]), Some(b"RVT1".to_vec()), Some(b"XXXX".repeat(30)), Some(whole[..51].to_vec())] {
        world.kept = damaged;
        world.pass(Duration::from_secs(1));
        world.restart();
        assert_eq!(world.state(), TokenState::Absent { refused: None });
        world.sent.clear();
        world.run();
        assert_eq!(world.sent[0].counter, world.now.wall.millis());
        assert!(world.sent[0].counter > used);
    }
    // What another device kept is as good as nothing.
    let other = Identity::from_seeds(RealmId::new("acme").unwrap(), DeviceId::new("other").unwrap(), [1; 32], [2; 32]);
    assert_eq!(decode(&whole, &owner(&other)), None);
    assert!(decode(&whole, &world.keeper.owner).is_some());
}

#[test]
fn after_a_restart_offline_the_token_is_there_at_once_and_an_old_delivery_is_not_taken_again() {
    let mut world = World::new();
    let early = world.sender().send(&world.token("early"));
    world.give("first");
    world.pass(Duration::from_mins(1));
    world.restart();
    assert_eq!(world.held(), "first");
    assert!(world.keeper.inbox().present(world.now).is_ok());
    assert_eq!(world.keeper.deadline(world.now, false).map(|at| at > world.now.uptime), Some(true));
    assert_eq!(world.declined(&early).name(), "rollback");
    assert_eq!(world.held(), "first");
    // One that is over by then is told as such, and named in the request for another.
    world.now = Now::new(world.now.wall.plus(Duration::from_hours(2)), Duration::from_secs(1));
    world.restart();
    assert!(matches!(world.state(), TokenState::Expired { .. }));
    world.sent.clear();
    world.run();
}

#[test]
fn what_is_not_from_the_server_for_this_device_now_is_refused_and_changes_nothing() {
    let mut world = World::new();
    world.give("first");
    world.pass(Duration::from_secs(10));
    let good = world.sender();
    let token = world.token("second");
    let mut refuse = |sender: Sender, name: &str| {
        let before = (world.state(), world.keeper.issued_at);
        let refusal = world.declined(&sender.send(&token));
        assert_eq!(refusal.name(), name, "{refusal}");
        assert_eq!((world.state(), world.keeper.issued_at), before);
    };
    let like = || Sender { key: good.key.clone(), ..good };
    refuse(Sender { key: SigningKey::from_seed([9; 32]), ..like() }, "wrong-key");
    refuse(Sender { realm: RealmId::new("other").unwrap(), ..like() }, "wrong-realm");
    refuse(Sender { device: DeviceId::new("device2").unwrap(), ..like() }, "extraneous");
    refuse(Sender { enclosed: false, ..like() }, "extraneous");
    refuse(Sender { to: identity(2).public().sealing, ..like() }, "malformed");
    refuse(Sender { nonce: Some([1; 16]), ..like() }, "unasked");
    let older = UnixTime::from_secs(TODAY).millis();
    refuse(Sender { issued_at: older, ..like() }, "rollback");

    let sealed = good.send(&token);
    let mut random = 1_u64;
    for _ in 0..2_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut bytes = sealed.clone();
        let bit = (random >> 33) as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(world.take(&bytes).is_err(), "bit {bit}");
    }
    let mut long = sealed.clone();
    long.resize(300_000, 0);
    assert_eq!(world.declined(&long).name(), "endless-data");
    assert_eq!(world.held(), "first");
    // The untouched one is good, once.
    assert_eq!(world.take(&sealed), Ok(()));
    assert_eq!(world.held(), "second");
    assert_eq!(world.declined(&sealed).name(), "rollback");
}

#[test]
fn a_token_that_is_not_good_or_not_this_device_s_own_does_not_take_the_place_of_one_that_is() {
    let mut world = World::with(InboxConfig::new(identity(1), [AUDIENCE]).with_subject("pumps").with_type("at+jwt"));
    world.give("first");
    let mut offer = |change: &dyn Fn(&mut Value)| {
        world.pass(Duration::from_millis(5));
        let mut claims = Issuer::claims(&identity(1), "second", world.now.wall.floor().secs(), HOUR);
        change(&mut claims);
        let bytes = world.sender().send(&Notice::Token { token: world.issuer.sign(&claims) });
        let declined = world.take(&bytes).unwrap_err();
        assert_eq!(world.held(), "first");
        declined
    };
    let other = identity(2).thumbprint().to_string();
    assert_eq!(offer(&|claims| claims["cnf"]["jkt"] = json!(other)), Declined::Foreign("binding (cnf)"));
    let unbound = offer(&|claims| drop(claims.as_object_mut().unwrap().remove("cnf")));
    assert_eq!(unbound, Declined::Foreign("binding (cnf)"));
    assert_eq!(offer(&|claims| claims["sub"] = json!("valves")), Declined::Foreign("sub"));
    let rejected = |declined: Declined| match declined {
        Declined::Token(rejection) => rejection.name(),
        other => panic!("{other:?}"),
    };
    assert_eq!(rejected(offer(&|claims| claims["iss"] = json!("https://elsewhere.example"))), "wrong-issuer");
    assert_eq!(rejected(offer(&|claims| claims["aud"] = json!("https://other.example"))), "wrong-audience");
    assert_eq!(rejected(offer(&|claims| claims["exp"] = json!(TODAY - 100))), "expired");
    assert!(matches!(offer(&|claims| claims["exp"] = json!("soon")), Declined::Token(_)));
    world.publish(&["second"], &[]);
    world.pass(Duration::from_millis(5));
    let bytes = world.sender().send(&world.token("second"));
    assert!(matches!(world.take(&bytes), Err(Declined::Token(Rejection::Revoked { .. }))));
    assert_eq!(world.held(), "first");
}

#[test]
fn clear_tokens_are_taken_only_where_the_device_was_told_to() {
    let mut world = World::with(InboxConfig::new(identity(1), [AUDIENCE]).with_clear_deliveries());
    let notice = world.token("clear");
    let bytes = Sender { enclosed: false, ..world.sender() }.send(&notice);
    assert_eq!(world.take(&bytes), Ok(()));
    assert_eq!(world.held(), "clear");
}

#[test]
fn its_own_revocation_is_told_at_once_and_so_is_its_end() {
    let mut world = World::new();
    world.give("first");
    let inbox = world.keeper.inbox();
    let mut news = inbox.watch();
    world.publish(&["another"], &[]);
    assert!(!news.has_changed().unwrap());
    world.publish(&["first"], &[]);
    assert!(news.has_changed().unwrap());
    assert_eq!(*news.borrow_and_update(), TokenState::Revoked { jti: "first".into() });
    assert_eq!(inbox.present(world.now), Err(NotHeld::Revoked { jti: "first".into() }));
    // It asks for another, and says for which; a mistake that was undone counts as well.
    world.publish(&[], &["first"]);
    assert_eq!(world.held(), "first");
    assert!(inbox.present(world.now).is_ok());
    world.publish(&["first"], &[]);
    world.give("second");
    assert_eq!(world.held(), "second");

    let exp = UnixTime::from_secs(TODAY + HOUR);
    let over = Now::new(exp.millis(), world.now.uptime + Duration::from_secs(HOUR));
    // Also before the driver has come round to it.
    assert_eq!(inbox.present(over), Err(NotHeld::Expired { jti: "second".into(), exp }));
    assert_eq!(world.keeper.deadline(world.now, false).unwrap().as_secs(), over.uptime.as_secs());
    world.now = over;
    world.run();
    assert_eq!(world.state(), TokenState::Expired { jti: "second".into(), exp });
}

#[test]
fn even_between_two_looks_of_the_keeper_no_revoked_token_is_presented() {
    let mut world = World::new();
    world.give("first");
    let inbox = world.keeper.inbox();
    let delta = world.sequence;
    // The set is exposed before the keeper looks at it.
    let body = wire::encode_delta(
        &Delta {
            term: Term(1),
            from: Sequence(delta),
            to: Sequence(delta + 1),
            issued_at: world.now.wall,
            horizon: UnixTime::default(),
            revoked: vec![world.fingerprinter.fingerprint(Jti::new("first").unwrap())],
            reinstated: Vec::new(),
            cutoffs: Vec::new(),
            lifts: Vec::new(),
        },
        Width::W48,
    );
    let sealed = seal(Kind::Delta, &world.config.identity.realm(), &body.unwrap(), &[&world.content]);
    world.replica.handle(world.now, Event::Packet { address: Address::Live, payload: &sealed });
    world.exposure.expose(Arc::new(world.replica.set().clone()));
    assert!(matches!(inbox.current(), TokenState::Held(_)));
    assert!(matches!(inbox.present(world.now), Err(NotHeld::Revoked { .. })));
}

#[test]
fn the_server_s_reasons_for_no_token_are_heard() {
    let mut world = World::new();
    let refuse = |world: &mut World, why| {
        world.pass(Duration::from_mins(10));
        let nonce = world.sent.last().map(|request| request.nonce);
        let bytes = Sender { nonce, ..world.sender() }.send(&Notice::Refused { why });
        assert_eq!(world.take(&bytes), Ok(()));
    };
    refuse(&mut world, NoRenewal::Busy);
    assert_eq!(world.state(), TokenState::Absent { refused: Some(NoRenewal::Busy) });
    world.give("first");
    // The server knows of the revocation before the delta arrives.
    world.pass(Duration::from_mins(40));
    refuse(&mut world, NoRenewal::Revoked);
    assert_eq!(world.state(), TokenState::Revoked { jti: "first".into() });
    world.give("second");
    assert_eq!(world.held(), "second");
    world.pass(Duration::from_mins(40));
    refuse(&mut world, NoRenewal::Replayed);
    world.pass(Duration::from_mins(10));
    let last = world.sent.last().unwrap();
    assert!(last.counter + 700_000 > world.now.wall.millis(), "the counter goes on from the clock");
    refuse(&mut world, NoRenewal::CutOff);
    assert!(matches!(world.state(), TokenState::Expired { .. } | TokenState::Revoked { .. }));
}

#[test]
fn a_late_answer_is_as_good_as_one_in_time() {
    let mut world = World::new();
    world.run();
    for _ in 0..5 {
        world.pass(Duration::from_secs(40));
    }
    assert!(world.sent.len() >= 4);
    let nonce = Some(world.sent[0].nonce);
    let bytes = Sender { nonce, ..world.sender() }.send(&world.token("late"));
    assert_eq!(world.take(&bytes), Ok(()));
    assert_eq!(world.held(), "late");
}

#[test]
fn a_token_whose_key_is_not_there_yet_waits_for_it() {
    let mut world = World::new();
    world.give("first");
    world.pass(Duration::from_secs(1));
    world.issuer = Issuer::new(41);
    let bytes = world.sender().send(&world.token("second"));
    assert_eq!(world.take(&bytes), Ok(()));
    assert_eq!(world.held(), "first");
    world.keys.replace(KeySet::from_jwks(&world.issuer.jwks()).unwrap());
    world.run();
    assert_eq!(world.held(), "first", "nobody has said that the keys are others");
    world.generation += 1;
    world.run();
    assert_eq!(world.held(), "second");
}
