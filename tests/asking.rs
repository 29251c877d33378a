//! A device that cannot say asks the server, over a real broker: server, broker and devices in one process.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Claims, Config, Doubt, Hold, Jti, Now, Profile, RealmId, Trust, UnixMillis, UnixTime, Verdict};
use revocast_device::{
    AskError, ClientId, Clock, Device, DeviceConfig, KeySet, Link, LinkConfig, Policies, Policy, Rejection, Rule,
    SystemClock, Validator, ValidatorConfig, VolatileStore, random_seed,
};
use revocast_server::config::{Choices, PublishingConfig};
use revocast_server::keys::Keys;
use revocast_server::server::Server;
use revocast_server::service::{NewRealm, Revocation};
use revocast_tests::hs256;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://api.example";
const SECRET: [u8; 32] = [7; 32];

/// For whatever takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    server: Server,
    trust: Trust,
    revoked: Vec<String>,
    _folder: TempDir,
}

fn realm() -> RealmId {
    RealmId::new("doors").unwrap()
}

fn seconds() -> u64 {
    SystemClock::now().wall.floor().secs()
}

impl Scene {
    /// A server with its broker, and a realm in which two hundred tokens are revoked.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
        let local = Some(([127, 0, 0, 1], 0).into());
        let config = Choices {
            listen: local,
            embedded_broker: local,
            data: Some(folder.path().join("data")),
            keys: Some(folder.path().join("keys")),
            ..Choices::default()
        };
        let mut config = config.check().unwrap();
        config.publishing = PublishingConfig { heartbeat: Duration::from_secs(1), ..config.publishing };
        let server = Server::start(config, Arc::new(revocast_server::clock::SystemClock::new())).await.unwrap();
        server.service().create_realm(NewRealm::new(realm(), ISSUER)).await.unwrap();
        let revoked: Vec<String> = (0..200).map(|number| format!("revoked-{number}")).collect();
        let exp = UnixTime::from_secs(seconds() + 3_000);
        let revocations = revoked.iter().map(|jti| Revocation { jti: jti.clone(), exp, reason: None }).collect();
        server.service().revoke(realm(), revocations, "test").await.unwrap();
        Self { server, trust: keys.trust().unwrap(), revoked, _folder: folder }
    }

    fn config(&self, name: &str, profile: Profile) -> DeviceConfig {
        let broker = format!("mqtt://{}", self.server.broker_addr().unwrap()).parse().unwrap();
        // Deltas alone would leave a filter nothing to be unsure about: the first base holds them all.
        let replica = Config {
            hold: Hold::Profile(profile),
            epoch_jitter: Duration::ZERO,
            ..Config::exact(random_seed().unwrap())
        };
        DeviceConfig::new(broker, ClientId::new(name).unwrap(), realm(), self.trust.clone(), replica)
    }

    /// Waits until the server has answered so many questions, and not one more. An answer counts once the
    /// broker has acknowledged it, which may be after the device has it.
    async fn has_answered(&self, count: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.server.service().status().await.unwrap();
            let answered = status.realms[0].published.as_ref().unwrap().questions.answered;
            assert!(answered <= count && Instant::now() < until, "{answered} answered, not {count}");
            if answered == count {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A token of the issuer, good for half an hour.
fn token(jti: &str) -> String {
    token_of(ISSUER, jti)
}

fn token_of(issuer: &str, jti: &str) -> String {
    let (iat, exp) = (seconds() - 100, seconds() + 1_800);
    hs256(&SECRET, &format!(r#"{{"iss":"{issuer}","aud":"{AUDIENCE}","jti":"{jti}","iat":{iat},"exp":{exp}}}"#))
}

fn claims(jti: &str) -> Claims<'_> {
    Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(seconds() + 1_800))
}

fn validator(device: &Device, policies: impl Into<Policies>) -> Validator<revocast_device::Checker> {
    validator_of(ISSUER, device, policies)
}

fn validator_of(issuer: &str, device: &Device, policies: impl Into<Policies>) -> Validator<revocast_device::Checker> {
    let jwks = format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, URL_SAFE_NO_PAD.encode(SECRET));
    let rules = ValidatorConfig::new(issuer, [AUDIENCE], KeySet::from_jwks(jwks.as_bytes()).unwrap());
    Validator::new(rules, device.checker(), policies).unwrap()
}

/// Waits until a device stands at the head of the ledger, with a base below it.
async fn caught_up(device: &Device) {
    let until = Instant::now() + PATIENCE;
    let mut status = device.status();
    loop {
        let position = status.borrow_and_update().position;
        if position.sequence.0 == 200 && position.epoch.0 > 0 {
            return;
        }
        assert!(Instant::now() < until, "{:?}", device.status().borrow());
        let _ = timeout(Duration::from_millis(100), status.changed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_is_cleared_or_condemned_by_the_server_and_denied_without_it() {
    let scene = Scene::new().await;
    let device = Device::start(scene.config("door-1", Profile::Filter), VolatileStore).await.unwrap();
    caught_up(&device).await;
    let (checker, asker) = (device.checker(), device.asker());
    let validator = validator(&device, Policies::new(Policy::routine()).with("unlock", Policy::strict()));
    let verdict = |jti: &str| checker.check(SystemClock::now(), &claims(jti));
    let is_suspect = |jti: &str| matches!(verdict(jti), Verdict::Suspect { .. });
    // The filter says of every revoked token, and of one in a hundred others, that it may be revoked.
    let mut flagged = (0..).map(|number| format!("stranger-{number}")).filter(|jti| is_suspect(jti));
    let (first, second) = (flagged.next().unwrap(), flagged.next().unwrap());
    let [known, other, ..] = &scene.revoked[..] else { panic!("two hundred tokens") };
    assert!(is_suspect(known) && is_suspect(other));
    let rejected = validator.verify_for(SystemClock::now(), "unlock", &token(&first)).unwrap_err();
    assert_eq!((rejected.reason(), rejected.ask), ("suspect", true));

    // A token of another issuer is none of this server's business, whatever a policy says.
    let lax = Policy::strict().on_not_followed(Rule::Ask);
    let foreign = validator_of("https://other.example", &device, lax);
    let theirs = token_of("https://other.example", &first);
    let rejected = asker.verify_or_ask(&foreign, &SystemClock, "", &theirs).await.unwrap_err();
    assert_eq!(rejected.rejection, Rejection::Unknown { doubt: Doubt::NotFollowed });
    scene.has_answered(0).await;

    let decide = |jti: String| {
        let (asker, validator) = (asker.clone(), validator.clone());
        async move { asker.verify_or_ask(&validator, &SystemClock, "unlock", &token(&jti)).await }
    };
    assert_eq!(decide(first.clone()).await.unwrap().jti(), first);
    let rejected = decide(known.clone()).await.unwrap_err();
    assert!(matches!(rejected.rejection, Rejection::Revoked { .. }) && !rejected.ask, "{rejected:?}");
    scene.has_answered(2).await;
    // Known from now on, without asking again; what was not asked about is as uncertain as before.
    assert!(matches!(verdict(&first), Verdict::NotRevoked { .. }));
    assert!(matches!(verdict(known), Verdict::Revoked { .. }));
    assert!(is_suspect(&second) && is_suspect(other));
    assert!(decide(first.clone()).await.is_ok() && decide(known.clone()).await.is_err());
    scene.has_answered(2).await;

    // Revoked after it was cleared: the delta arrives as it would have anyway.
    let exp = UnixTime::from_secs(seconds() + 3_000);
    let revocation = Revocation { jti: first.clone(), exp, reason: None };
    scene.server.service().revoke(realm(), vec![revocation], "test").await.unwrap();
    let until = Instant::now() + PATIENCE;
    while !matches!(verdict(&first), Verdict::Revoked { .. }) {
        assert!(Instant::now() < until, "{:?}", verdict(&first));
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(decide(first).await.unwrap_err().reason(), "revoked");

    // Nobody answers: denied, and soon.
    scene.server.stop().await;
    let began = Instant::now();
    let rejected = decide(second.clone()).await.unwrap_err();
    assert_eq!(rejected.rejection, Rejection::Suspect);
    assert!(began.elapsed() < Duration::from_secs(8));
    let mut status = device.status();
    timeout(PATIENCE, status.wait_for(|status| !status.connected)).await.unwrap().unwrap();
    let error = asker.ask(&claims(&second)).await.unwrap_err();
    assert!(matches!(error, AskError::Unasked(revocast_core::Unasked::NotConnected)), "{error:?}");
    device.stop().await;
    assert!(matches!(asker.ask(&claims(&second)).await, Err(AskError::Stopped)));
}

/// A machine without a battery: it is 1970, but time passes.
struct NoBattery;

impl Clock for NoBattery {
    fn now(&self) -> Now {
        Now::new(UnixMillis::default(), SystemClock::now().uptime)
    }

    async fn until(&self, deadline: Option<Duration>) {
        SystemClock.until(deadline).await;
    }
}

/// Row 46: without a clock every answer is unknown, until one to an own nonce has told the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_46_a_device_without_a_clock_can_answer_after_one_question() {
    let scene = Scene::new().await;
    let config = scene.config("door-2", Profile::Exact);
    let link = LinkConfig::new(&config).unwrap();
    let device = Device::start_over(config, VolatileStore, NoBattery, |_| Link::start(link)).await.unwrap();
    caught_up(&device).await;
    let unknown = Verdict::Unknown { doubt: Doubt::TimeUnknown };
    let verdict = |jti: &str| device.checker().check(NoBattery.now(), &claims(jti));
    assert_eq!((verdict("good"), verdict("better")), (unknown, unknown));
    assert!(matches!(verdict(&scene.revoked[3]), Verdict::Revoked { .. }), "what is revoked needs no clock");

    let strict = validator(&device, Policy::strict());
    let asking = validator(&device, Policy::strict().on_time_unknown(Rule::Ask));
    let asker = device.asker();
    let good = token("good");
    let denied = asker.verify_or_ask(&strict, &NoBattery, "", &good).await.unwrap_err();
    assert_eq!(denied.rejection, Rejection::Unknown { doubt: Doubt::TimeUnknown });
    assert_eq!(asker.verify_or_ask(&asking, &NoBattery, "", &good).await.unwrap().jti(), "good");
    scene.has_answered(1).await;

    // From here on it answers by itself, about everything, and knows what has expired.
    assert!(matches!(verdict("better"), Verdict::NotRevoked { .. }));
    assert!(strict.verify(NoBattery.now(), &token("another")).is_ok());
    let (iat, exp) = (seconds() - 100, seconds() - 3);
    let over = format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","jti":"over","iat":{iat},"exp":{exp}}}"#);
    let rejected = strict.verify(NoBattery.now(), &hs256(&SECRET, &over)).unwrap_err();
    assert_eq!(rejected.reason(), "expired");
    scene.has_answered(1).await;
    device.stop().await;
    scene.server.stop().await;
}
