//! What brokers ask: every decision, in the terms of each broker.

use super::*;
use crate::tokens::tests::Signer;

const AUTHENTICATION: &str = "/v1/hooks/emqx/authentication";
const AUTHORIZATION: &str = "/v1/hooks/emqx/authorization";
const USER: &str = "/v1/hooks/mosquitto/user";
const ACL: &str = "/v1/hooks/mosquitto/acl";
const FORM: &str = "application/x-www-form-urlencoded";

/// A realm whose issuer signs with this key.
async fn signed() -> (Site, Signer) {
    let (site, signer) = (Site::new().await, Signer::new(7));
    assert_eq!(site.put("/v1/realms/fleet/jwks", &signer.jwks("k")).await.status, 204);
    (site, signer)
}

fn claims(jti: &str, sub: &str) -> Value {
    json!({"iss": "https://iss.example", "jti": jti, "sub": sub, "iat": NOW - 10, "exp": LATER})
}

fn sign(signer: &Signer, claims: &Value) -> String {
    signer.sign(&json!({"alg": "EdDSA", "kid": "k"}), claims)
}

async fn connects(site: &Site, user: &str, client: &str, password: &str) -> Value {
    let answer = site.post(AUTHENTICATION, &json!({"username": user, "clientid": client, "password": password})).await;
    assert_eq!((answer.status, &answer.body["is_superuser"]), (200, &json!(false)), "{}", answer.body);
    // The other broker is told the same.
    let body = json!({"username": user, "clientid": client, "password": password});
    let other = site.post(USER, &body).await.status;
    assert_eq!(other, if answer.body["result"] == "allow" { 200 } else { 403 }, "{user} {client}");
    answer.body
}

async fn may(site: &Site, user: &str, client: &str, action: &str, topic: &str) -> String {
    let body = json!({"username": user, "clientid": client, "action": action, "topic": topic});
    let answer = site.post(AUTHORIZATION, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let result = answer.body["result"].as_str().unwrap().to_owned();
    let acc = if action == "publish" { 2 } else { 4 };
    let other = site.post(ACL, &json!({"username": user, "clientid": client, "acc": acc, "topic": topic})).await.status;
    assert_eq!(other, if result == "allow" { 200 } else { 403 }, "{topic}");
    result
}

#[tokio::test]
async fn a_device_comes_in_with_a_token_that_is_honored_and_its_own() {
    let (site, signer) = signed().await;
    let token = sign(&signer, &claims("t", "gate"));
    let allowed = connects(&site, "fleet", "gate", &token).await;
    assert_eq!(allowed, json!({"result": "allow", "is_superuser": false, "expire_at": LATER}));

    let forged = sign(&Signer::new(8), &claims("t", "gate"));
    let past = sign(&signer, &json!({"iss": "https://iss.example", "jti": "o", "sub": "gate", "exp": NOW}));
    let foreign = sign(&signer, &json!({"iss": "https://other.example", "jti": "t", "sub": "gate", "exp": LATER}));
    let nameless = sign(&signer, &json!({"iss": "https://iss.example", "sub": "gate", "exp": LATER}));
    let nobodys = sign(&signer, &json!({"iss": "https://iss.example", "jti": "t", "exp": LATER}));
    for (client, password) in [
        ("door", &token),
        ("", &token),
        ("gate/#", &token),
        ("gate", &forged),
        ("gate", &past),
        ("gate", &foreign),
        ("gate", &nameless),
        ("gate", &nobodys),
        ("gate", &String::new()),
        ("gate", &"x".repeat(100_000)),
    ] {
        assert_eq!(connects(&site, "fleet", client, password).await["result"], "deny", "{client} {password:.40}");
    }
    // Whoever names no realm is for somebody else to judge; the plugin then asks its next backend.
    for user in ["revocast", "", "fleet/gate", "elsewhere"] {
        assert_eq!(connects(&site, user, "gate", &token).await["result"], "ignore", "{user}");
    }
    let none =
        site.post(AUTHENTICATION, &json!({"username": null, "clientid": "x", "password": null, "unknown": 1})).await;
    assert_eq!((none.status, &none.body["result"]), (200, &json!("ignore")));
    let (_, text) = site.text("/metrics").await;
    assert!(text.contains("revocast_hooks_total{question=\"connect\",decision=\"allow\"} 2\n"), "{text}");
}

#[tokio::test]
async fn a_revoked_device_does_not_come_back() {
    let (site, signer) = signed().await;
    let (one, other) = (sign(&signer, &claims("one", "gate")), sign(&signer, &claims("other", "gate")));
    assert_eq!(connects(&site, "fleet", "gate", &one).await["result"], "allow");
    assert_eq!(site.revoke(&json!({"jti": "one", "exp": LATER})).await.status, 201);
    assert_eq!(connects(&site, "fleet", "gate", &one).await["result"], "deny");
    assert_eq!(connects(&site, "fleet", "gate", &other).await["result"], "allow");
    assert_eq!(site.post(CUTOFFS, &json!({"scope": "sub", "name": "gate"})).await.status, 201);
    assert_eq!(connects(&site, "fleet", "gate", &other).await["result"], "deny");
    assert_eq!(site.post(LIFTS, &json!({"scope": "sub", "name": "gate"})).await.status, 201);
    assert_eq!(connects(&site, "fleet", "gate", &other).await["result"], "allow");
    // A file of keys that cannot be read lets nobody in.
    std::fs::write(site.keys.path().join("keys/jwks/fleet.json"), "{").unwrap();
    assert_eq!(connects(&site, "fleet", "gate", &other).await["result"], "deny");
}

#[tokio::test]
async fn a_device_hears_what_is_for_all_and_for_itself_and_speaks_in_its_own_name() {
    let (site, _) = signed().await;
    for topic in [
        "revocast/fleet/keys",
        "revocast/fleet/keys/+",
        "revocast/fleet/manifest",
        "revocast/fleet/live",
        "revocast/fleet/ladder/0-1",
        "revocast/fleet/e/#",
        "revocast/fleet/jwks",
        "revocast/fleet/devices/gate/answer",
        "device_tokens/gate",
        "jwt_revoked",
    ] {
        assert_eq!(may(&site, "fleet", "gate", "subscribe", topic).await, "allow", "{topic}");
    }
    for topic in [
        "#",
        "+/#",
        "revocast/#",
        "revocast/+/keys",
        "revocast/fleet/#",
        "revocast/fleet/+",
        "revocast/fleet/devices/+/answer",
        "revocast/fleet/devices/door/answer",
        "revocast/fleet/devices/gate/#",
        "revocast/fleet/devices/gate/report",
        "revocast/other/manifest",
        "revocast/fleet",
        "revocast/fleet/",
        "$share/group/revocast/fleet/live",
        "device_tokens/+",
        "device_tokens/door",
        "device_tokens/#",
        "elsewhere",
        "",
    ] {
        assert_eq!(may(&site, "fleet", "gate", "subscribe", topic).await, "deny", "{topic}");
    }
    for (topic, answer) in [
        ("revocast/fleet/devices/gate/report", "allow"),
        ("revocast/fleet/devices/gate/ask", "allow"),
        ("revocast/fleet/devices/gate/renew", "allow"),
        // A token proves itself.
        ("jwt_revoked", "allow"),
        ("revocast/fleet/devices/door/report", "deny"),
        ("revocast/fleet/devices/door/renew", "deny"),
        ("revocast/fleet/devices/gate/answer", "deny"),
        ("revocast/other/devices/gate/report", "deny"),
        ("revocast/fleet/manifest", "deny"),
        ("revocast/fleet/live", "deny"),
        ("revocast/fleet/jwks", "deny"),
        ("device_tokens/gate", "deny"),
        ("elsewhere", "deny"),
    ] {
        assert_eq!(may(&site, "fleet", "gate", "publish", topic).await, answer, "{topic}");
    }
    assert_eq!(may(&site, "fleet", "no name", "publish", "jwt_revoked").await, "deny");
    assert_eq!(may(&site, "revocast", "x", "publish", "revocast/fleet/manifest").await, "ignore");
}

#[tokio::test]
async fn brokers_ask_with_a_role_of_their_own_in_json_or_in_a_form() {
    let (site, signer) = signed().await;
    let secret = site.credential("mosquitto", &[Role::Broker], |_| {});
    let reader = site.credential("reader", &[Role::Reader], |_| {});
    let broker = site.acting(&secret);
    let token = sign(&signer, &claims("t", "gate"));
    let user = format!("username=fleet&clientid=gate&password={token}");
    assert_eq!(broker.ask(Method::POST, USER, FORM, user.clone()).await.status, 200);
    assert_eq!(site.acting(&reader).ask(Method::POST, USER, FORM, user.clone()).await.status, 403);
    let denied = broker.ask(Method::POST, USER, FORM, user.replace("gate", "door")).await;
    denied.problem(403, "hook-denied");
    for (acc, topic, status) in [
        ("1", "revocast/fleet/live", 200),
        ("4", "revocast/fleet/live", 200),
        ("2", "revocast/fleet/live", 403),
        ("3", "revocast/fleet/live", 403),
        ("3", "jwt_revoked", 200),
        ("0", "revocast/fleet/live", 422),
        ("5", "revocast/fleet/live", 422),
        ("x", "revocast/fleet/live", 422),
    ] {
        let body = format!("username=fleet&clientid=gate&acc={acc}&topic={topic}");
        let answer = broker.ask(Method::POST, ACL, FORM, body).await;
        assert_eq!(answer.status, status, "{acc} {topic}: {}", answer.body);
    }
    let superuser = broker.ask(Method::POST, "/v1/hooks/mosquitto/superuser", FORM, "username=fleet").await;
    superuser.problem(403, "hook-denied");
    // And by name and secret, which is all that some plugins can send.
    let basic = |pair: String| {
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(pair);
        let request = axum::http::Request::builder().method(Method::POST).uri(USER);
        let request = request.header(header::AUTHORIZATION, format!("Basic {pair}"));
        request.header(header::CONTENT_TYPE, FORM).body(HttpBody::from(user.clone())).unwrap()
    };
    assert_eq!(site.send(basic(format!("mosquitto:{secret}"))).await.status, 200);
    for pair in [format!("reader:{secret}"), format!("mosquitto:{reader}"), String::new(), ":".to_owned()] {
        assert_eq!(site.send(basic(pair.clone())).await.status, 401, "{pair}");
    }
    // Nothing else is open to a broker, and nowhere else will Basic do.
    assert_eq!(broker.ask(Method::GET, "/v1/status", "", "").await.status, 403);
}

/// An enrolled device has a `sub` of its own, and a token that was issued to another one is not its token.
#[tokio::test]
async fn an_enrolled_device_comes_in_with_what_was_issued_to_it() {
    use revocast_core::{DeviceId, EnvelopeKey, SigningKey};

    use crate::ledger::{Issuance, NewDevice, NewToken, Order};
    let (site, signer) = signed().await;
    let realm = RealmId::new("fleet").unwrap();
    let id = |name| DeviceId::new(name).unwrap();
    for (name, subject) in [("gate", "urn:gate"), ("door", "urn:door")] {
        let device = NewDevice {
            id: id(name),
            signing: SigningKey::from_seed([7; 32]).public(),
            sealing: EnvelopeKey::from_seed([9; 32]).public(),
            subject: subject.to_owned(),
            audience: Vec::new(),
            replace: false,
            actor: "a".to_owned(),
        };
        site.ledger.enroll(realm, UnixTime::from_secs(NOW), device).await.unwrap();
    }
    let sub = Some("urn:gate".to_owned());
    let (iat, exp) = (UnixTime::from_secs(NOW), UnixTime::from_secs(LATER));
    let token = NewToken { jti: "issued".to_owned(), iat, exp, sub, kid: None, client: None };
    let order = Order {
        token,
        device: Some(id("gate")),
        renewal: None,
        refresh: None,
        revoke_parent: false,
        actor: "a".to_owned(),
    };
    let issued = site.ledger.issue(realm, iat, order).await.unwrap();
    assert!(matches!(issued, Issuance::Issued { .. }), "{issued:?}");
    let issued = sign(&signer, &claims("issued", "urn:gate"));
    assert_eq!(connects(&site, "fleet", "gate", &issued).await["result"], "allow");
    for client in ["door", "urn:gate"] {
        assert_eq!(connects(&site, "fleet", client, &issued).await["result"], "deny", "{client}");
    }
    // Of another issuing server of the realm: its sub decides.
    let foreign = sign(&signer, &claims("foreign", "urn:door"));
    assert_eq!(connects(&site, "fleet", "door", &foreign).await["result"], "allow");
    assert_eq!(connects(&site, "fleet", "gate", &foreign).await["result"], "deny");
    let by_name = sign(&signer, &claims("by-name", "door"));
    assert_eq!(connects(&site, "fleet", "door", &by_name).await["result"], "deny", "it has another sub");
}
