//! The server's own issuer over a real broker: enrolled, delivered, renewed, refused, and keys that change.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::update::{Delivery, DeviceTopic, NoRenewal, Nonce, Notice, Renew};
use revocast_core::{
    DeviceId, DeviceKeys, EnvelopeKey, Kind, PublicKey, RealmId, Sealed, SigningKey, UnixMillis, disclose, seal, wire,
};
use revocast_server::issuer;
use revocast_server::keys::{Keys, Rotation, read_root};
use revocast_server::rotation;
use revocast_server::tokens::{KeySet, Token};
use revocast_tests::process::{
    ISSUER, Listener, Mosquitto, REALM, Server, Site, Somebody, Via, now, number, revocast, text, until, until_true,
};
use serde_json::{Value, json};

/// Where this device awaits its tokens.
const TOPIC: &str = "device_tokens/pump-1";

fn realm() -> RealmId {
    RealmId::new(REALM).unwrap()
}

/// A device that is nothing but its keys.
struct Pump {
    id: DeviceId,
    signing: SigningKey,
    envelope: EnvelopeKey,
}

impl Pump {
    fn new(name: &str, seed: u8) -> Self {
        Self {
            id: DeviceId::new(name).unwrap(),
            signing: SigningKey::from_seed([seed; 32]),
            envelope: EnvelopeKey::from_seed([seed; 32]),
        }
    }

    /// What it prints for whoever enrolls it.
    fn enrollment(&self) -> String {
        let (signing, sealing) = (self.signing.public(), self.envelope.public());
        let keys = DeviceKeys { realm: realm(), device: self.id, signing, sealing };
        json!({
            "device": self.id.to_string(),
            "realm": REALM,
            "signing_key": URL_SAFE_NO_PAD.encode(signing.0),
            "sealing_key": URL_SAFE_NO_PAD.encode(sealing.as_bytes()),
            "proof": URL_SAFE_NO_PAD.encode(keys.prove(&self.signing)),
        })
        .to_string()
    }

    fn request(&self, counter: u64, key: &SigningKey) -> (Nonce, Vec<u8>) {
        let nonce = [counter as u8; 16];
        let at = UnixMillis::from_millis(now() * 1_000);
        let renew = Renew { device: self.id, counter, nonce, at };
        (nonce, seal(Kind::Renew, &realm(), &wire::encode_renew(&renew).unwrap(), &[key]))
    }

    /// Opens what was sent to it.
    fn open(&self, bytes: &[u8], publisher: PublicKey) -> (Delivery, Notice) {
        let sealed = Sealed::expect(bytes, &realm(), Kind::Delivery).unwrap();
        let body = sealed.by_threshold(&[publisher], 1).unwrap();
        let delivery = body.try_map(wire::decode_delivery).unwrap().into_inner();
        assert!(delivery.enclosed && delivery.device == self.id);
        let bound = Delivery::bound(delivery.issued_at, delivery.nonce.as_ref());
        let notice = disclose(&self.envelope, &realm(), &self.id, &bound, &delivery.content).unwrap();
        (delivery.clone(), wire::decode_notice(&notice).unwrap())
    }
}

/// What a token says, once its signature is verified by the keys that the realm publishes.
fn said(server: &Server, token: &str) -> Value {
    let (_, keys) = server.get(&format!("/v1/realms/{REALM}/jwks.json")).unwrap();
    let token = Token::parse(token).unwrap();
    assert!(token.is_signed_by(&KeySet::parse(&keys).unwrap()));
    token.claims().unwrap()
}

fn is_active(server: &Server, token: &str) -> bool {
    let url = format!("{}/v1/realms/{REALM}/oauth/introspect", server.url());
    let mut answer = ureq::post(&url)
        .header("authorization", format!("Bearer {}", server.token()))
        .send_form([("token", token)])
        .unwrap();
    let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    answer["active"] == json!(true)
}

#[test]
fn a_token_reaches_its_device_alone_and_a_revoked_device_gets_no_other() {
    let mosquitto = Mosquitto::start();
    let site = Site::new();
    let server = site.found(Via::Broker(&mosquitto.url()));
    let everything = Listener::start(&mosquitto.url(), "#");
    let pump = Pump::new("pump-1", 1);
    let file = site.write("pump.json", pump.enrollment());
    let enroll = ["device", "enroll", &file, "--audience", "https://api.example", "--subject", "pump"];
    let _ = server.command(&enroll).ok();
    let _ = server.command(&enroll).ok();
    let listed = server.command(&["--json", "device", "list", "--realm", REALM]).ok().json();
    assert_eq!(listed[0]["device"], json!("pump-1"), "{listed}");

    // Issued: sealed by the publisher, enclosed for the device, bound to its key.
    let publisher = Keys::load(&site.path("data/keys")).unwrap().publisher().unwrap().public();
    let issued = server.command(&["--json", "device", "token", "pump-1", "--realm", REALM]).ok().json();
    assert_eq!(issued["delivered"], json!(true), "{issued}");
    let (first, notice) = pump.open(&everything.wait_for(TOPIC), publisher);
    let Notice::Token { token: one } = notice else { panic!("{notice:?}") };
    let claims = said(&server, &one);
    let exp = number(&claims, "exp");
    assert_eq!((text(&claims, "iss"), text(&claims, "sub")), (ISSUER.to_owned(), "pump".to_owned()));
    assert_eq!((&claims["jti"], exp - number(&claims, "iat")), (&issued["jti"], 3_600));
    assert_eq!(claims["cnf"]["jkt"], json!(issuer::confirmation(&pump.signing.public())));

    // Renewed on request: the nonce comes back, the child is another token. What is forged is answered with nothing.
    let asking = Somebody::new(&mosquitto.url());
    let topic = DeviceTopic::Renew.topic("revocast", &realm(), &pump.id);
    let delivered = || everything.heard().into_iter().filter(|(topic, _)| topic == TOPIC).count();
    let ask = |counter: u64, key: &SigningKey| {
        let before = delivered();
        let (nonce, bytes) = pump.request(counter, key);
        asking.publish(&topic, bytes);
        (nonce, before)
    };
    let answered = |(nonce, before): (Nonce, usize)| {
        until_true("an answer", || delivered() > before);
        let (delivery, notice) = pump.open(&everything.wait_for(TOPIC), publisher);
        assert_eq!(delivery.nonce, Some(nonce));
        notice
    };
    let parent = text(&claims, "jti");
    let (_, before) = ask(1, &SigningKey::from_seed([9; 32]));
    let Notice::Token { token: two } = answered(ask(2, &pump.signing)) else { panic!("no token") };
    assert_eq!(delivered(), before + 1, "the forged request was answered");
    let child = text(&said(&server, &two), "jti");
    assert_ne!(child, parent);
    for counter in [2, 1] {
        let refused = answered(ask(counter, &pump.signing));
        assert_eq!(refused, Notice::Refused { why: NoRenewal::Replayed });
    }

    // Revoking the parent takes the child; from then on the device learns of it when it asks.
    assert!(is_active(&server, &two));
    let _ = server.revoke(&parent, exp);
    assert!(!is_active(&server, &one) && !is_active(&server, &two));
    // Its requests came fast enough to be held back for a moment; it asks again, as devices do.
    let mut counter = 10;
    let refused = until("word of the revocation", || {
        counter += 1;
        let asked = ask(counter, &pump.signing);
        std::thread::sleep(std::time::Duration::from_millis(300));
        (delivered() > asked.1).then(|| pump.open(&everything.wait_for(TOPIC), publisher).1)
    });
    assert_eq!(refused, Notice::Refused { why: NoRenewal::Revoked });

    // Deliveries rise in time, and in all that went over the broker no token can be read.
    let heard = everything.heard();
    let dates: Vec<UnixMillis> = heard
        .iter()
        .filter(|(topic, _)| topic == TOPIC)
        .map(|(_, bytes)| pump.open(bytes, publisher).0.issued_at)
        .collect();
    assert!(dates.first() == Some(&first.issued_at) && dates.is_sorted() && dates.len() > 4);
    let readable =
        |needle: &[u8]| heard.iter().find(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle));
    assert_eq!(readable(b"eyJ").map(|(topic, _)| topic), None);
    // Retained is nothing of it.
    let later = Listener::start(&mosquitto.url(), TOPIC);
    assert_eq!(later.heard(), []);

    let gone = server.command(&["--json", "device", "dismiss", "pump-1", "--realm", REALM, "--reason", "a test"]).ok();
    assert_eq!(number(&gone.json(), "revoked"), 0, "all were revoked before");
    server.command(&["device", "token", "pump-1", "--realm", REALM]).fails(1, &["pump-1 is not enrolled"]);
}

#[test]
fn issuer_keys_travel_to_devices_and_the_next_one_is_there_before_it_signs() {
    let mosquitto = Mosquitto::start();
    let site = Site::new();
    let server = site.found(Via::Broker(&mosquitto.url()));
    let keys = site.text("data/keys");
    let topic = format!("revocast/{REALM}/jwks");
    let listener = Listener::start(&mosquitto.url(), &topic);
    let publisher = Keys::load(&site.path("data/keys")).unwrap().publisher().unwrap().public();
    let kids = |bytes: &[u8]| {
        let sealed = Sealed::expect(bytes, &realm(), Kind::IssuerKeys).unwrap();
        let body =
            sealed.by_threshold(&[publisher], 1).unwrap().try_map(wire::decode_issuer_keys).unwrap().into_inner();
        let jwks: Value = serde_json::from_slice(&body.jwks).unwrap();
        jwks["keys"].as_array().unwrap().iter().map(|key| text(key, "kid")).collect::<Vec<_>>()
    };
    let first = kids(&listener.wait_for("jwks"));
    assert_eq!(first.len(), 1);
    let rotated =
        revocast(["--json", "issuer-key", "rotate", "--realm", REALM, "--alg", "ES256", "--keys", &keys]).ok();
    let next = text(&rotated.json(), "kid");
    until_true("the next key at the broker", || kids(&listener.wait_for("jwks")).contains(&next));
    let issue = ["token", "issue", "--realm", REALM, "--sub", "s", "--audience", "a"];
    let signed_by = || Token::parse(server.command(&issue).ok().stdout.trim()).unwrap().kid().unwrap().to_owned();
    assert_eq!(signed_by(), first[0], "it signs after the lead");
    let at_once = revocast(["--json", "issuer-key", "rotate", "--realm", REALM, "--now", "--keys", &keys]).ok();
    assert_eq!(signed_by(), text(&at_once.json(), "kid"));
    let removed = ["issuer-key", "remove", &next, "--realm", REALM, "--keys", &keys];
    revocast(removed).fails(1, &["signs, will sign, or has signed"]);
    let _ = revocast(removed.into_iter().chain(["--force"])).ok();
    until_true("no word of it any more", || !kids(&listener.wait_for("jwks")).contains(&next));
    revocast(["issuer-key", "generate", "--realm", "other", "--alg", "RS256", "--keys", &keys])
        .fails(2, &["openssl genpkey -algorithm RSA", "issuer-key import rsa.pem --realm other --alg RS256"]);
}

#[test]
fn a_publisher_key_is_replaced_while_one_device_follows_and_another_is_away() {
    let mosquitto = Mosquitto::start();
    let site = Site::new();
    let server = site.found(Via::Broker(&mosquitto.url()));
    let exp = now() + 3_600;
    let first = server.revoke("one", exp);
    let there = site.agent("there", &mosquitto.url());
    let mut away = site.agent("away", &mosquitto.url());
    there.wait_until_at(first);
    away.wait_until_at(first);
    away.kill();
    let keys = site.text("data/keys");
    let publisher = || Keys::load(&site.path("data/keys")).unwrap().publisher().unwrap().public();
    let before = publisher();
    // Three times, the last as if the key were stolen.
    for (round, more) in [&[][..], &[], &["--now"]].into_iter().enumerate() {
        let rotate =
            ["--json", "publisher-key", "rotate", "--keys", &keys].iter().chain(more).copied().collect::<Vec<_>>();
        let rotated = server.command(&rotate).ok().json();
        assert_eq!(number(&rotated["keys_versions"], REALM), round as u64 + 2, "{rotated}");
        let sequence = server.revoke(&format!("round-{round}"), exp);
        there.wait_until_at(sequence);
        assert_eq!(there.verdict(&format!("round-{round}"), exp), "revoked");
    }
    assert_ne!(publisher(), before);
    away.start();
    away.wait_until_at(server.head());
    assert_eq!((away.verdict("round-2", exp), away.verdict("one", exp)), ("revoked".into(), "revoked".into()));
    assert_eq!(away.verdict("never", exp), "not-revoked");
    // Without the root key nothing is named.
    std::fs::rename(site.path("data/keys/root.key"), site.path("root.key")).unwrap();
    server
        .command(&["publisher-key", "rotate", "--keys", &keys])
        .fails(1, &["without the root key", "name where it is: --root FILE"]);
}

#[test]
fn a_root_key_is_replaced_while_one_device_follows_and_another_is_away() {
    let mosquitto = Mosquitto::start();
    let broker = mosquitto.url();
    let site = Site::new();
    let server = site.found(Via::Broker(&broker));
    // What the devices were given on their first day.
    let first_day = site.write("first-day.json", std::fs::read(site.trust()).unwrap());
    let pinned = ["--trust", first_day.as_str()];
    let exp = now() + 3_600;
    let first = server.revoke("one", exp);
    let there = site.agent_with("there", &broker, &pinned);
    let mut away = site.agent_with("away", &broker, &pinned);
    there.wait_until_at(first);
    away.wait_until_at(first);
    away.kill();

    let keys = site.text("data/keys");
    let held = || Keys::load(&site.path("data/keys")).unwrap();
    let stolen = site.write("stolen.key", std::fs::read(site.path("data/keys/root.key")).unwrap());
    std::fs::set_permissions(&stolen, std::fs::Permissions::from_mode(0o600)).unwrap();
    for round in 0..3 {
        let before = held().root().unwrap().public();
        let rotated = server.command(&["--json", "root-key", "rotate", "--keys", &keys]).ok().json();
        assert_eq!(number(&rotated["keys_versions"], REALM), round + 2, "{rotated}");
        let after = held().root().unwrap().public();
        assert_eq!((text(&rotated, "root"), held().trust().unwrap().roots), (after.id().to_string(), vec![after]));
        assert_ne!(before, after);
        assert_eq!(text(&rotated, "before"), site.text(&format!("data/keys/root-{}.key", before.id())));
    }
    // What only the newest root has signed is believed by whoever followed, and the first one names nobody any more.
    let publisher = ["publisher-key", "rotate", "--now", "--keys", &keys];
    server
        .command(&[&publisher[..], &["--root", &stolen]].concat())
        .fails(1, &["devices would refuse them", "no trusted key signed"]);
    let _ = server.command(&publisher).ok();
    let sequence = server.revoke("two", exp);
    there.wait_until_at(sequence);
    assert_eq!((there.verdict("two", exp), there.verdict("never", exp)), ("revoked".into(), "not-revoked".into()));

    // Who was away, who comes with what was pinned on the first day, and who comes with what is pinned now.
    away.start();
    let late = site.agent_with("late", &broker, &pinned);
    let fresh = site.agent("fresh", &broker);
    for device in [&away, &late, &fresh] {
        device.wait_until_at(sequence);
        device.wait_until_says("revoked", "two", exp);
        assert_eq!(
            (device.verdict("one", exp), device.verdict("never", exp)),
            ("revoked".into(), "not-revoked".into())
        );
    }

    // The server that runs founds a realm with the new key. Without a root key nothing is made.
    let _ = server.command(&["realm", "create", "other", "--issuer", "https://other.example"]).ok();
    let (usual, offline) = (site.path("data/keys/root.key"), site.path("root.key"));
    std::fs::rename(&usual, &offline).unwrap();
    let rotate = ["--json", "root-key", "rotate", "--keys", &keys];
    server.command(&rotate).fails(1, &["without the root key", "--root FILE"]);
    assert!(!site.path("data/keys/root.next.key").exists());
    // A try that ended after one of two realms: the next goes on with its key.
    let left = {
        let rotation = Rotation::begin(&site.path("data/keys")).unwrap();
        server.command(&rotate).fails(1, &["are being changed by somebody else"]);
        let left = rotation.make_root().unwrap();
        let (root, url) = (read_root(&offline).unwrap(), server.url());
        let admin = format!("Bearer {}", std::fs::read_to_string(site.path("data/keys/admin.token")).unwrap().trim());
        let mirrored = ureq::get(format!("{url}/v1/mirror/{REALM}/keys")).header("authorization", &admin);
        let held = mirrored.call().unwrap().body_mut().read_to_vec().unwrap();
        let held = rotation::vouched(&held, &realm(), &[root.public()]).unwrap();
        let keys = rotation::with_roots(&held, vec![left.public()], UnixMillis::from_millis(now() * 1_000));
        let sealed = rotation::sign(&keys, &realm(), &[&root, left.key()]).unwrap();
        let put = ureq::put(format!("{url}/v1/realms/{REALM}/keys")).header("authorization", &admin);
        assert_eq!(put.header("content-type", "application/octet-stream").send(&sealed[..]).unwrap().status(), 200);
        left.public()
    };
    let rotated = server.command(&[&rotate[..], &["--root", &site.text("root.key")]].concat()).ok().json();
    assert_eq!((number(&rotated["keys_versions"], REALM), number(&rotated["keys_versions"], "other")), (6, 2));
    assert_eq!((text(&rotated, "root"), &rotated["before"]), (left.id().to_string(), &Value::Null));
    assert_eq!(held().root().unwrap().public(), left);
    let sequence = server.revoke("three", exp);
    there.wait_until_at(sequence);
}
