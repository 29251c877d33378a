//! The server's own issuer: tokens, devices, refresh tokens, keys.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use revocast_core::{DeviceId, DeviceKeys, EnvelopeKey, SigningKey};

use super::*;
use crate::issuer::{Algorithm, Held, TokenKey};
use crate::tokens::tests::Signer;
use crate::tokens::{KeySet, Token};

const TOKENS: &str = "/v1/realms/fleet/tokens";
const DEVICES: &str = "/v1/realms/fleet/devices";
const INTROSPECT: &str = "/v1/realms/fleet/oauth/introspect";
const FORM: &str = "application/x-www-form-urlencoded";

/// What a token says, once its signature is verified by the keys that the realm publishes.
async fn said(site: &Site, token: &str) -> Value {
    let keys = KeySet::parse(&site.get("/v1/realms/fleet/jwks.json").await.body).unwrap();
    let token = Token::parse(token).unwrap();
    assert!(token.is_signed_by(&keys));
    token.claims().unwrap()
}

async fn is_active(site: &Site, token: &str) -> bool {
    let answer = site.acting(&site.token).ask(Method::POST, INTROSPECT, FORM, format!("token={token}")).await;
    answer.body["active"] == json!(true)
}

fn token_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body["token"].as_str().unwrap().to_owned()
}

/// A device's keys, and the request that enrolls it.
fn enrollment(name: &str, seed: u8) -> Value {
    let (signing, sealing) = (SigningKey::from_seed([seed; 32]), EnvelopeKey::from_seed([seed; 32]));
    let keys = DeviceKeys {
        realm: RealmId::new("fleet").unwrap(),
        device: DeviceId::new(name).unwrap(),
        signing: signing.public(),
        sealing: sealing.public(),
    };
    json!({
        "device": name,
        "signing_key": URL_SAFE_NO_PAD.encode(keys.signing.0),
        "sealing_key": URL_SAFE_NO_PAD.encode(keys.sealing.as_bytes()),
        "proof": URL_SAFE_NO_PAD.encode(keys.prove(&signing)),
        "subject": "pump",
        "audience": "https://api.example",
    })
}

fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

#[tokio::test]
async fn a_token_is_registered_and_says_what_was_asked_for() {
    let site = Site::new().await;
    let asked =
        json!({"sub": "alice", "aud": ["a", "b"], "lifetime": 600, "claims": {"scope": "read"}, "client": "app"});
    let answer = site.post(TOKENS, &asked).await;
    let token = token_of(&answer);
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    let claims = said(&site, &token).await;
    let jti = answer.body["jti"].clone();
    assert_eq!(
        claims,
        json!({"iss": "https://iss.example", "sub": "alice", "aud": ["a", "b"], "jti": jti, "iat": NOW, "nbf": NOW,
            "exp": NOW + 600, "scope": "read", "client_id": "app"})
    );
    assert_eq!((answer.body["exp"].as_u64(), site.registered().await), (Some(NOW + 600), 1));
    assert_eq!(Token::parse(&token).unwrap().typ(), Some("at+jwt"));
    assert!(is_active(&site, &token).await);
    let revoked = site.revoke(&json!({"jti": jti, "exp": NOW + 600})).await;
    assert_eq!((revoked.status, is_active(&site, &token).await), (201, false));
    // An hour unless said, and a warning beyond a day.
    let plain = site.post(TOKENS, &json!({"sub": "s", "aud": "a"})).await;
    assert_eq!((plain.body["exp"].as_u64(), plain.body.get("warning")), (Some(NOW + 3_600), None));
    let long = site.post(TOKENS, &json!({"sub": "s", "aud": "a", "lifetime": 25 * 3_600})).await;
    assert!(long.body["warning"].as_str().unwrap().contains("24 hours"));
}

#[tokio::test(start_paused = true)]
async fn what_no_token_may_be_is_refused() {
    let site = Site::new().await;
    let base = json!({"sub": "s", "aud": "a"});
    for (body, status, kind) in [
        (json!({"aud": "a"}), 422, "request-malformed"),
        (json!({"sub": "s", "aud": []}), 422, "audience"),
        (json!({"sub": "s", "aud": [""]}), 422, "audience"),
        (json!({"sub": "", "aud": "a"}), 422, "subject"),
        (with(base.clone(), "lifetime", json!(0)), 422, "lifetime"),
        (with(base.clone(), "lifetime", json!(31 * DAY)), 422, "lifetime"),
        (with(base.clone(), "claims", json!({"exp": 1})), 422, "claims"),
        (with(base.clone(), "claims", json!({"x": "x".repeat(5_000)})), 422, "claims"),
        (with(base.clone(), "role", json!("admin")), 422, "request-malformed"),
    ] {
        site.post(TOKENS, &body).await.problem(status, kind);
    }
    assert_eq!(site.registered().await, 0);
    // A cutoff just ahead is waited for, and one that stays ahead is told.
    site.post(CUTOFFS, &json!({"scope": "sub", "name": "s"})).await;
    let held = site.post(TOKENS, &base).await;
    held.problem(503, "cutoff-just-ahead");
    assert_eq!(held.headers[header::RETRY_AFTER], "1");
    assert_eq!(site.post(TOKENS, &with(base.clone(), "sub", json!("t"))).await.status, 201);
    site.clock.0.store(NOW + 1, Ordering::Relaxed);
    assert_eq!(site.post(TOKENS, &base).await.status, 201);
    site.post(CUTOFFS, &json!({"scope": "sub", "name": "u", "not_before": NOW + DAY})).await;
    site.post(TOKENS, &with(base.clone(), "sub", json!("u"))).await.problem(409, "cut-off");
    // Where somebody else's keys were set, that one issues.
    site.put("/v1/realms/fleet/jwks", &Signer::new(7).jwks("k")).await;
    site.post(TOKENS, &base).await.problem(409, "issued-elsewhere");
}

#[tokio::test]
async fn the_next_key_is_published_before_it_signs() {
    let site = Site::new().await;
    let first = token_of(&site.post(TOKENS, &json!({"sub": "s", "aud": "a"})).await);
    let key = Arc::new(TokenKey::generate(Algorithm::Es256).unwrap());
    let held =
        Held { key: Arc::clone(&key), created: UnixTime::from_secs(NOW), signs_from: UnixTime::from_secs(NOW + 60) };
    let realm = RealmId::new("fleet").unwrap();
    Keyrings::add(&site.keys.path().join("keys"), realm, &held).unwrap();
    let kids = async || {
        let keys = site.get("/v1/realms/fleet/jwks.json").await.body;
        let all = keys["keys"].as_array().unwrap().clone();
        assert_eq!(site.get("/.well-known/jwks.json").await.body["keys"].as_array().unwrap().len(), all.len());
        all.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(kids().await.contains(&key.kid().to_owned()));
    let signed_by = async || {
        let token = token_of(&site.post(TOKENS, &json!({"sub": "s", "aud": "a"})).await);
        said(&site, &token).await;
        Token::parse(&token).unwrap().kid().unwrap().to_owned()
    };
    assert_ne!(signed_by().await, key.kid());
    site.clock.0.store(NOW + 60, Ordering::Relaxed);
    assert_eq!(signed_by().await, key.kid());
    assert!(is_active(&site, &first).await, "what the key before signed is honored");
    // Until the longest of its tokens is expired.
    site.clock.0.store(NOW + 60 + 30 * DAY + 60, Ordering::Relaxed);
    assert_eq!(kids().await, [key.kid()]);
}

#[tokio::test]
async fn a_device_is_enrolled_with_a_proof_and_its_token_is_bound_to_it() {
    let site = Site::new().await;
    let body = enrollment("pump-1", 1);
    let enrolled = site.post(DEVICES, &body).await;
    assert_eq!(enrolled.status, 201, "{}", enrolled.body);
    assert_eq!(site.post(DEVICES, &body).await.status, 200, "repeated");
    for (name, member) in [
        ("device", json!("pump-2")),
        ("signing_key", enrollment("x", 2)["signing_key"].clone()),
        ("sealing_key", enrollment("x", 2)["sealing_key"].clone()),
        ("sealing_key", json!("A".repeat(43))),
        ("proof", json!("A".repeat(86))),
        ("realm", json!("other")),
        ("device", json!("a/b")),
    ] {
        site.post(DEVICES, &with(body.clone(), name, member)).await.problem(422, "enrollment");
    }
    let other = enrollment("pump-1", 2);
    site.post(DEVICES, &other).await.problem(409, "device-taken");
    let issued = site.post(&format!("{DEVICES}/pump-1/tokens"), &json!({})).await;
    assert_eq!((issued.status, &issued.body["delivered"]), (201, &json!(true)), "{}", issued.body);
    assert!(issued.body.get("token").is_none(), "it is for the device alone");
    let shown = site.get(&format!("{DEVICES}/pump-1")).await.body;
    assert_eq!((&shown["holds"], &shown["held_until"]), (&issued.body["jti"], &json!(NOW + 3_600)));
    let listed = site.get(&format!("{DEVICES}?limit=1")).await.body;
    assert_eq!((&listed["devices"][0], &listed["next"]), (&shown, &json!("pump-1")));
    // Replaced or dismissed, what it holds is revoked.
    let head = site.head().await;
    assert_eq!(site.post(DEVICES, &with(other, "replace", json!(true))).await.status, 201);
    assert_eq!(site.head().await, head + 1);
    site.post(&format!("{DEVICES}/pump-1/tokens"), &json!({})).await;
    let path = format!("{DEVICES}/pump-1?reason=stolen");
    let request = site.request(Method::DELETE, &path).body(HttpBody::empty()).unwrap();
    let gone = site.send(request).await;
    assert_eq!((gone.status, &gone.body["revoked"]), (200, &json!(1)), "{}", gone.body);
    site.get(&format!("{DEVICES}/pump-1")).await.problem(404, "device-unknown");
    site.post(&format!("{DEVICES}/pump-1/tokens"), &json!({})).await.problem(404, "device-unknown");
    site.get(&format!("{DEVICES}/a%2Fb")).await.problem(404, "device-unknown");
}

#[tokio::test]
async fn a_refresh_token_is_spent_once_and_a_second_time_revokes_what_came_of_it() {
    let site = Site::new().await;
    let secret = site.credential("app", &[Role::Client], |_| {});
    let asked = json!({"sub": "s", "aud": "a", "client": "app", "refresh": true, "claims": {"scope": "read"}});
    let first = site.post(TOKENS, &asked).await;
    let basic = |name: &str, secret: &str| format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")));
    let spend = async |refresh: &str, authorization: &str, more: &str| {
        let request = axum::http::Request::builder()
            .method(Method::POST)
            .uri("/oauth2/token")
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, FORM)
            .body(HttpBody::from(format!("refresh_token={refresh}{more}")))
            .unwrap();
        let answer = site.send(request).await;
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        answer
    };
    let grant = "&grant_type=refresh_token";
    let app = basic("app", &secret);
    let refresh = first.body["refresh_token"].as_str().unwrap().to_owned();
    let error = |answer: &Answer| (answer.status, answer.body["error"].as_str().unwrap_or_default().to_owned());
    let told = |status, name: &str| (status, name.to_owned());
    // Whoever else shows it, and whatever else it is shown for, gets nothing, and it is not spent.
    assert_eq!(error(&spend(&refresh, &basic("app", "wrong"), grant).await), told(401, "invalid_client"));
    let other = site.credential("other", &[Role::Client], |_| {});
    assert_eq!(error(&spend(&refresh, &basic("other", &other), grant).await), told(400, "invalid_grant"));
    let reader = site.credential("reader", &[Role::Reader], |_| {});
    assert_eq!(error(&spend(&refresh, &basic("reader", &reader), grant).await), told(403, "unauthorized_client"));
    assert_eq!(error(&spend(&refresh, &app, "").await), told(400, "invalid_request"));
    assert_eq!(error(&spend(&refresh, &app, "&grant_type=password").await), told(400, "unsupported_grant_type"));
    assert_eq!(error(&spend(&refresh, &app, "&grant_type=refresh_token&scope=all").await), told(400, "invalid_scope"));
    for wrong in ["garbage", &refresh[..refresh.len() - 4], &URL_SAFE_NO_PAD.encode("{}")] {
        assert_eq!(error(&spend(wrong, &app, grant).await), told(400, "invalid_grant"), "{wrong}");
    }
    // Long after the first token is expired.
    site.clock.0.store(NOW + DAY, Ordering::Relaxed);
    let second = spend(&refresh, &app, grant).await;
    assert_eq!((second.status, &second.body["token_type"]), (200, &json!("Bearer")), "{}", second.body);
    assert_eq!(second.body["expires_in"], json!(3_600));
    let access = second.body["access_token"].as_str().unwrap();
    let claims = said(&site, access).await;
    assert_eq!((&claims["sub"], &claims["client_id"], &claims["scope"]), (&json!("s"), &json!("app"), &json!("read")));
    assert!(is_active(&site, access).await);
    let next = second.body["refresh_token"].as_str().unwrap();
    assert_eq!(error(&spend(&refresh, &app, grant).await), told(400, "invalid_grant"));
    assert!(!is_active(&site, access).await, "all that came of it is revoked");
    assert_eq!(error(&spend(next, &app, grant).await), told(400, "invalid_grant"));
}

#[tokio::test]
async fn a_refresh_token_is_revoked_with_all_that_came_of_it() {
    const REVOKE: &str = "/v1/realms/fleet/oauth/revoke";
    let site = Site::new().await;
    let app = site.credential("app", &[Role::Client], |_| {});
    let other = site.credential("other", &[Role::Client], |_| {});
    let granted = async |client: &str| {
        let answer = site.post(TOKENS, &json!({"sub": "s", "aud": "a", "client": client, "refresh": true})).await;
        (token_of(&answer), answer.body["refresh_token"].as_str().unwrap().to_owned())
    };
    let revoke = async |secret: &str, path: &str, token: &str| {
        let answer = site.acting(secret).ask(Method::POST, path, FORM, format!("token={token}")).await;
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        (answer.status, answer.body["error"].as_str().unwrap_or_default().to_owned())
    };
    let spend = async |refresh: &str| {
        let body = format!("grant_type=refresh_token&refresh_token={refresh}");
        site.acting(&app).ask(Method::POST, "/oauth2/token", FORM, body).await
    };
    let (done, refused) = ((200, String::new()), (400, "invalid_grant".to_owned()));

    let (first, refresh) = granted("app").await;
    let second = spend(&refresh).await;
    let (access, next) =
        (second.body["access_token"].as_str().unwrap(), second.body["refresh_token"].as_str().unwrap());
    // Of somebody else, or changed: nothing happens.
    assert_eq!(revoke(&other, REVOKE, next).await, refused);
    assert_eq!(revoke(&app, REVOKE, &next[..next.len() - 4]).await, done);
    let head = site.head().await;
    assert!(is_active(&site, &first).await && is_active(&site, access).await);
    assert_eq!(revoke(&app, REVOKE, next).await, done);
    assert_eq!(site.head().await, head + 2);
    assert!(!is_active(&site, &first).await && !is_active(&site, access).await);
    assert_eq!(spend(next).await.body["error"], json!("invalid_grant"));
    assert_eq!(revoke(&app, REVOKE, next).await, done, "again");

    // A client ends tokens of its own, which their issuer says whose they are.
    let (mine, _) = granted("app").await;
    let (theirs, refresh) = granted("other").await;
    let signed_by_nobody = Signer::new(9).sign(
        &json!({"alg": "EdDSA"}),
        &json!({"iss": "https://iss.example", "jti": "t", "exp": NOW + 60, "client_id": "app"}),
    );
    assert_eq!(revoke(&app, REVOKE, &theirs).await, refused);
    assert_eq!(revoke(&app, REVOKE, &signed_by_nobody).await, refused);
    assert_eq!(revoke(&app, REVOKE, &mine).await, done);
    assert!(is_active(&site, &theirs).await && !is_active(&site, &mine).await);
    // A revoker ends anybody's, of the realm that it speaks of.
    let revoker = site.credential("revoker", &[Role::Revoker], |_| {});
    let body = json!({"name": "other", "issuer": "https://other.example"});
    assert_eq!(site.post("/v1/realms", &body).await.status, 201);
    let elsewhere = revoke(&revoker, "/v1/realms/other/oauth/revoke", &refresh).await;
    assert_eq!(elsewhere, (400, "invalid_request".to_owned()));
    assert_eq!(revoke(&revoker, "/v1/realms/fleet/revoke", &refresh).await, done);
    assert!(!is_active(&site, &theirs).await);
}

#[tokio::test]
async fn keys_of_a_realm_are_replaced_as_its_root_says() {
    let site = Site::new().await;
    let keys = Keys::load(&site.keys.path().join("keys")).unwrap();
    let realm = RealmId::new("fleet").unwrap();
    let put = async |bytes: Vec<u8>| {
        let request = axum::http::Request::builder()
            .method(Method::PUT)
            .uri("/v1/realms/fleet/keys")
            .header(header::AUTHORIZATION, format!("Bearer {}", site.token))
            .header(header::CONTENT_TYPE, "application/octet-stream");
        site.send(request.body(HttpBody::from(bytes)).unwrap()).await
    };
    let held = site.get("/v1/mirror/fleet/keys").await.bytes;
    let held = crate::rotation::read(&held, &realm).unwrap();
    let next = SigningKey::from_seed([9; 32]);
    let now = UnixMillis::from_millis((NOW + 5) * 1_000);
    let successor = crate::rotation::successor(&held, next.public(), now, Some(Duration::from_hours(1)));
    let forged = crate::rotation::sign(&successor, &realm, &[&next]).unwrap();
    put(forged).await.problem(422, "keys-refused");
    let signed = crate::rotation::sign(&successor, &realm, &[&keys.root().unwrap()]).unwrap();
    for _ in 0..2 {
        let answer = put(signed.clone()).await;
        assert_eq!((answer.status, answer.body), (200, json!({"version": 2})));
    }
    assert_eq!(site.get("/v1/mirror/fleet/keys").await.bytes, signed);
    assert_eq!(site.get("/v1/mirror/fleet/keys/2").await.bytes, signed);
    let again = crate::rotation::successor(&held, keys.publisher().unwrap().public(), now, None);
    put(crate::rotation::sign(&again, &realm, &[&keys.root().unwrap()]).unwrap()).await.problem(409, "keys-version");
    put(vec![0; 40]).await.problem(422, "keys-refused");
}
