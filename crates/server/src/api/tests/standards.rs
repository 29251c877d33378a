//! RFC 7009, RFC 7662, RFC 8935, key sets and the mirror.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::ledger::Object;
use crate::tokens::tests::Signer;

const REVOKE: &str = "/v1/realms/fleet/oauth/revoke";
const INTROSPECT: &str = "/v1/realms/fleet/oauth/introspect";
const EVENTS: &str = "/v1/realms/fleet/ssf/events";
const FORM: &str = "application/x-www-form-urlencoded";
const ISSUER: &str = "https://iss.example";

/// A realm whose issuer signs with this key.
async fn signed() -> (Site, Signer) {
    let (site, signer) = (Site::new().await, Signer::new(7));
    let set = site.put("/v1/realms/fleet/jwks", &signer.jwks("k")).await;
    assert_eq!(set.status, 204, "{}", set.body);
    (site, signer)
}

fn claims(jti: &str) -> Value {
    json!({"iss": ISSUER, "jti": jti, "sub": "alice", "iat": NOW - 10, "exp": LATER, "azp": "app", "aud": ["a", "b"]})
}

fn token(signer: &Signer, claims: &Value) -> String {
    signer.sign(&json!({"alg": "EdDSA", "kid": "k", "typ": "JWT"}), claims)
}

async fn form(site: &Site, path: &str, body: &str) -> Answer {
    site.acting(&site.token).ask(Method::POST, path, FORM, body.to_owned()).await
}

async fn active(site: &Site, token: &str) -> Value {
    let answer = form(site, INTROSPECT, &format!("token={token}")).await;
    assert_eq!((answer.status, &answer.headers[header::CACHE_CONTROL]), (200, &HeaderValue::from_static("no-store")));
    if answer.body["active"] == json!(false) {
        assert_eq!(answer.body, json!({"active": false}), "of a token that is not honored nothing is told");
    }
    answer.body
}

#[tokio::test]
async fn a_token_that_is_shown_is_revoked_with_the_exp_it_vouches_for() {
    let (site, signer) = signed().await;
    let good = token(&signer, &claims("t"));
    let answer = form(&site, REVOKE, &format!("token={good}&token_type_hint=access_token&unknown=1")).await;
    assert_eq!((answer.status, answer.bytes.len()), (200, 0));
    assert_eq!(form(&site, REVOKE, &format!("token={good}")).await.status, 200);
    let realm = RealmId::new("fleet").unwrap();
    let entries = site.ledger.scan(realm, Sequence(0), 10).await.unwrap();
    assert_eq!(entries.len(), 1, "once");
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "t".into(), exp: UnixTime::from_secs(LATER) });
    // Of one that nobody vouches for the exp is raised: an early one would un-revoke.
    let forged = token(&Signer::new(8), &claims("u"));
    assert_eq!(form(&site, "/v1/realms/fleet/revoke", &format!("token={forged}")).await.status, 200);
    let entries = site.ledger.scan(realm, Sequence(1), 10).await.unwrap();
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "u".into(), exp: UnixTime::from_secs(NOW + 30 * DAY) });
}

#[tokio::test]
async fn what_is_no_token_any_more_is_answered_as_rfc_7009_says() {
    let (site, signer) = signed().await;
    let expired = json!({"iss": ISSUER, "jti": "old", "exp": NOW - 3_600});
    for nothing in ["garbage".to_owned(), "a.b.c".into(), token(&signer, &expired), "x".repeat(20_000)] {
        assert_eq!(form(&site, REVOKE, &format!("token={nothing}")).await.status, 200, "{nothing}");
    }
    let refused = async |body: &str, status: u16, error: &str| {
        let answer = form(&site, REVOKE, body).await;
        assert_eq!((answer.status, &answer.body["error"]), (status, &json!(error)), "{body}: {}", answer.body);
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    };
    refused("", 400, "invalid_request").await;
    refused("token=", 400, "invalid_request").await;
    refused("token=a&token=b", 400, "invalid_request").await;
    let without = token(&signer, &json!({"iss": ISSUER, "exp": LATER}));
    refused(&format!("token={without}"), 400, "unsupported_token_type").await;
    let foreign = token(&signer, &json!({"iss": "https://other.example", "jti": "t", "exp": LATER}));
    refused(&format!("token={foreign}"), 400, "invalid_request").await;
    let answer = site.acting(&site.token).ask(Method::POST, REVOKE, "application/json", "{}").await;
    assert_eq!((answer.status, &answer.body["error"]), (415, &json!("invalid_request")));
    let answer = site.acting(&site.token).ask(Method::POST, "/v1/realms/nowhere/oauth/revoke", FORM, "token=x").await;
    assert_eq!(answer.status, 404);
    assert_eq!(site.head().await, 0);
}

#[tokio::test]
async fn a_client_authenticates_in_one_of_three_ways() {
    let (site, signer) = signed().await;
    let secret = site.credential("client", &[Role::Revoker], |_| {});
    let good = token(&signer, &claims("t"));
    let send = async |authorization: Option<String>, body: String| {
        let mut request = axum::http::Request::post(REVOKE).header(header::CONTENT_TYPE, FORM);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        site.send(request.body(HttpBody::from(body)).unwrap()).await
    };
    let basic = |text: &str| Some(format!("Basic {}", STANDARD.encode(text)));
    let body = format!("token={good}");
    for answer in [
        send(basic(&format!("client:{secret}")), body.clone()).await,
        send(Some(format!("Bearer {secret}")), body.clone()).await,
        send(None, format!("{body}&client_id=client&client_secret={secret}")).await,
    ] {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    for answer in [
        send(None, body.clone()).await,
        send(None, format!("{body}&client_id=client")).await,
        send(None, format!("{body}&client_id=other&client_secret={secret}")).await,
        send(basic(&format!("other:{secret}")), body.clone()).await,
        send(basic("client"), body.clone()).await,
        send(Some("Basic !".into()), body.clone()).await,
        send(Some("Bearer x".into()), body.clone()).await,
    ] {
        assert_eq!((answer.status, &answer.body["error"]), (401, &json!("invalid_client")));
        assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Basic realm=\"revocast\"");
    }
    let both =
        send(basic(&format!("client:{secret}")), format!("{body}&client_id=client&client_secret={secret}")).await;
    assert_eq!((both.status, &both.body["error"]), (400, &json!("invalid_request")));
    let reader = site.credential("reader", &[Role::Reader], |_| {});
    let wrong_role = send(basic(&format!("reader:{reader}")), body).await;
    assert_eq!((wrong_role.status, &wrong_role.body["error"]), (403, &json!("unauthorized_client")));
    let entries = site.ledger.scan(RealmId::new("fleet").unwrap(), Sequence(0), 10).await.unwrap();
    assert_eq!((entries.len(), entries[0].actor.as_str()), (1, "client"));
}

#[tokio::test]
async fn a_revoked_token_is_never_active() {
    let (site, signer) = signed().await;
    let good = token(&signer, &claims("t"));
    let expected = json!({"active": true, "jti": "t", "iss": ISSUER, "sub": "alice", "aud": ["a", "b"], "exp": LATER,
        "iat": NOW - 10, "client_id": "app"});
    assert_eq!(active(&site, &good).await, expected);
    site.revoke(&json!({"jti": "t", "exp": LATER})).await;
    assert_eq!(active(&site, &good).await["active"], json!(false));
    site.post(REINSTATEMENTS, &json!({"jti": "t"})).await;
    assert_eq!(active(&site, &good).await["active"], json!(true));
    for scope in [
        json!({"scope": "realm"}),
        json!({"scope": "sub", "name": "alice"}),
        json!({"scope": "kid", "name": "k"}),
        json!({"scope": "client", "name": "app"}),
    ] {
        assert_eq!(site.post(CUTOFFS, &scope).await.status, 201);
        assert_eq!(active(&site, &good).await["active"], json!(false), "{scope}");
        // A reinstate lifts only the revoke of its own jti.
        site.post(REINSTATEMENTS, &json!({"jti": "t"})).await;
        assert_eq!(active(&site, &good).await["active"], json!(false), "{scope}");
        assert_eq!(site.post(LIFTS, &scope).await.status, 201);
        assert_eq!(active(&site, &good).await["active"], json!(true), "{scope}");
    }
    // One from before a cutoff, one after it, and one that does not say.
    site.post(CUTOFFS, &json!({"scope": "sub", "name": "alice", "not_before": NOW - 5})).await;
    let mut late = claims("late");
    late["iat"] = json!(NOW - 5);
    assert_eq!(active(&site, &token(&signer, &late)).await["active"], json!(true));
    late.as_object_mut().unwrap().remove("iat");
    assert_eq!(active(&site, &token(&signer, &late)).await["active"], json!(false));
    assert_eq!(active(&site, &good).await["active"], json!(false));
    site.post(CUTOFFS, &json!({"scope": "sub", "name": "bob"})).await;
    late["iat"] = json!(NOW - 5);
    assert_eq!(active(&site, &token(&signer, &late)).await["active"], json!(true));
}

#[tokio::test]
async fn a_token_that_cannot_be_verified_is_not_active() {
    let (site, signer) = signed().await;
    let with = |name: &str, value: Value| {
        let mut claims = claims("t");
        claims[name] = value;
        token(&signer, &claims)
    };
    for bad in [
        token(&Signer::new(8), &claims("t")),
        signer.sign(&json!({"alg": "none"}), &claims("t")),
        signer.sign(&json!({"alg": "EdDSA", "kid": "other"}), &claims("t")),
        with("exp", json!(NOW)),
        with("exp", Value::Null),
        with("exp", json!("soon")),
        with("iss", json!("https://other.example")),
        with("jti", json!("")),
        with("nbf", json!(NOW + 61)),
        "garbage".into(),
    ] {
        assert_eq!(active(&site, &bad).await, json!({"active": false}));
    }
    assert_eq!(active(&site, &with("nbf", json!(NOW + 60))).await["active"], json!(true));
}

#[tokio::test]
async fn a_realm_without_keys_of_its_own_has_those_of_the_server() {
    let site = Site::new().await;
    let keys = Keys::load(&site.keys.path().join("keys")).unwrap();
    let own = site.get("/.well-known/jwks.json").await;
    assert_eq!((own.status, &own.body), (200, &keys.issuer().jwks()));
    assert_eq!(site.get("/v1/realms/fleet/jwks.json").await.body, own.body);
    let signer = Signer::of(keys.issuer().seed());
    let minted = signer.sign(&json!({"alg": "EdDSA", "kid": keys.issuer().kid()}), &claims("t"));
    assert_eq!(active(&site, &minted).await["active"], json!(true));
    // Once it has its own, the server's are not its any more.
    let other = Signer::new(7).jwks("k");
    assert_eq!(site.put("/v1/realms/fleet/jwks", &other).await.status, 204);
    assert_eq!(site.get("/v1/realms/fleet/jwks.json").await.body, other);
    assert_eq!(active(&site, &minted).await["active"], json!(false));
    let secret = site.put("/v1/realms/fleet/jwks", &json!({"keys": [{"kty": "oct", "k": "AAAA"}]})).await;
    assert!(secret.problem(422, "jwks").contains("secret"));
    site.put("/v1/realms/nowhere/jwks", &other).await.problem(404, "realm-unknown");
    site.get("/v1/realms/nowhere/jwks.json").await.problem(404, "realm-unknown");
    assert_eq!(site.get("/v1/realms/fleet/jwks.json").await.body, other);
}

const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const CREDENTIAL_CHANGE: &str = "https://schemas.openid.net/secevent/caep/event-type/credential-change";

/// A realm with a transmitter.
async fn receiving() -> (Site, Signer) {
    let (site, signer) = (Site::new().await, Signer::new(9));
    let body = json!({"issuer": "https://idp.example", "audience": "https://us.example", "jwks": signer.jwks("t")});
    let set = site.put("/v1/realms/fleet/ssf/transmitter", &body).await;
    assert_eq!(set.status, 204, "{}", set.body);
    (site, signer)
}

fn event(kind: &str, jti: &str, subject: &Value, at: u64) -> Value {
    json!({"iss": "https://idp.example", "jti": jti, "aud": "https://us.example", "iat": NOW, "sub_id": subject,
        "events": {kind: {"event_timestamp": at}}})
}

fn set(signer: &Signer, claims: &Value) -> String {
    signer.sign(&json!({"alg": "EdDSA", "kid": "t", "typ": "secevent+jwt"}), claims)
}

async fn push(site: &Site, body: String) -> Answer {
    site.acting(&site.token).ask(Method::POST, EVENTS, "application/secevent+jwt", body).await
}

#[tokio::test]
async fn a_revoked_session_cuts_its_subject_off() {
    let (site, signer) = receiving().await;
    let subjects = [
        (json!({"format": "iss_sub", "iss": ISSUER, "sub": "alice"}), "alice"),
        (json!({"format": "opaque", "id": "bob"}), "bob"),
        (json!({"format": "email", "email": "carol@example.com"}), "carol@example.com"),
        (
            json!({"format": "complex", "user": {"format": "opaque", "id": "dave"}, "tenant": {"format": "opaque", "id": "x"}}),
            "dave",
        ),
        (json!({"format": "aliases", "identifiers": [{"format": "opaque", "id": "erin"}]}), "erin"),
    ];
    for (number, (subject, _)) in subjects.iter().enumerate() {
        let kind = [SESSION_REVOKED, CREDENTIAL_CHANGE][number % 2];
        let answer = push(&site, set(&signer, &event(kind, &format!("e{number}"), subject, NOW - 100))).await;
        assert_eq!((answer.status, answer.bytes.len()), (202, 0), "{}", answer.body);
    }
    let realm = RealmId::new("fleet").unwrap();
    let entries = site.ledger.scan(realm, Sequence(0), 10).await.unwrap();
    assert_eq!(entries.len(), subjects.len());
    for (entry, (_, sub)) in entries.iter().zip(&subjects) {
        let scope = crate::ledger::Scope::Sub((*sub).to_owned());
        // Tokens of that very second are over too.
        assert_eq!(entry.statement, Statement::Cutoff { scope, not_before: UnixTime::from_secs(NOW - 99) });
    }
    assert_eq!(entries[0].reason.as_deref(), Some("session-revoked, e0"));
    // Said again, nothing changes; not even after somebody lifted it.
    let again = set(&signer, &event(SESSION_REVOKED, "e0", &subjects[0].0, NOW - 100));
    assert_eq!(push(&site, again.clone()).await.status, 202);
    site.post(LIFTS, &json!({"scope": "sub", "name": "alice"})).await;
    assert_eq!(push(&site, again).await.status, 202);
    assert_eq!(site.head().await, subjects.len() as u64 + 1);
    // Of no consequence here, and acknowledged.
    let other = event(
        "https://schemas.openid.net/secevent/ssf/event-type/verification",
        "v",
        &json!({"format": "opaque", "id": "x"}),
        NOW,
    );
    assert_eq!(push(&site, set(&signer, &other)).await.status, 202);
    // Where it stood before the standard was final.
    let old = json!({"iss": "https://idp.example", "jti": "old", "aud": ["https://us.example"], "iat": NOW - 7,
        "events": {SESSION_REVOKED: {"subject": {"format": "opaque", "id": "frank"}}}});
    assert_eq!(push(&site, set(&signer, &old)).await.status, 202);
    let entries = site.ledger.scan(realm, Sequence(subjects.len() as u64 + 1), 10).await.unwrap();
    let scope = crate::ledger::Scope::Sub("frank".into());
    assert_eq!(entries[0].statement, Statement::Cutoff { scope, not_before: UnixTime::from_secs(NOW - 6) });
}

#[tokio::test]
async fn events_that_cannot_be_believed_are_refused_by_name() {
    let (site, signer) = receiving().await;
    let subject = json!({"format": "opaque", "id": "alice"});
    let good = event(SESSION_REVOKED, "e", &subject, NOW);
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        set(&signer, &changed)
    };
    let cases = [
        (String::new(), "invalid_request"),
        ("a.b.c".into(), "invalid_request"),
        (signer.sign(&json!({"alg": "EdDSA", "kid": "t", "typ": "JWT"}), &good), "invalid_request"),
        (signer.sign(&json!({"alg": "EdDSA", "kid": "t"}), &good), "invalid_request"),
        (set(&Signer::new(8), &good), "invalid_key"),
        (signer.sign(&json!({"alg": "none", "typ": "secevent+jwt"}), &good), "invalid_key"),
        (with("iss", json!("https://evil.example")), "invalid_issuer"),
        (with("aud", json!("https://them.example")), "invalid_audience"),
        (with("aud", Value::Null), "invalid_request"),
        (with("jti", json!("")), "invalid_request"),
        (with("jti", json!("x".repeat(257))), "invalid_request"),
        (with("events", json!({})), "invalid_request"),
        (with("events", json!([])), "invalid_request"),
        (with("events", json!({SESSION_REVOKED: 7})), "invalid_request"),
        // Milliseconds instead of seconds: would revoke every token yet to be issued.
        (with("events", json!({SESSION_REVOKED: {"event_timestamp": NOW * 1_000}})), "invalid_request"),
        (with("sub_id", Value::Null), "invalid_request"),
        (with("sub_id", json!({"format": "phone_number", "phone_number": "+1"})), "invalid_request"),
        (with("sub_id", json!({"format": "opaque", "id": ""})), "invalid_request"),
        (
            with("sub_id", json!({"format": "iss_sub", "iss": "https://other.example", "sub": "alice"})),
            "invalid_request",
        ),
    ];
    for (body, err) in cases {
        let answer = push(&site, body.clone()).await;
        assert_eq!((answer.status, &answer.body["err"]), (400, &json!(err)), "{body}: {}", answer.body);
        assert!(answer.body["description"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let typed = site.acting(&site.token).ask(Method::POST, EVENTS, "application/json", "{}").await;
    typed.problem(415, "content-type");
    assert_eq!(site.head().await, 0);
    // Without a transmitter nobody is believed.
    let (site, _) = signed().await;
    let answer = push(&site, set(&signer, &good)).await;
    assert_eq!((answer.status, &answer.body["err"]), (400, &json!("invalid_issuer")));
}

#[tokio::test]
async fn the_mirror_serves_what_stands_on_the_broker() {
    let site = Site::new().await;
    let realm = RealmId::new("fleet").unwrap();
    let (term, _) = site.ledger.head(realm).await.unwrap();
    let object = |address: &str, bytes: &[u8]| Object { address: address.into(), bytes: bytes.to_vec() };
    let puts = vec![
        object("manifest", b"one"),
        object("e/1/index", b"\0\xff"),
        object("ladder/0-5", b"l"),
        object("e/1/filter/0", b"c"),
    ];
    site.ledger.store_objects(realm, term, puts, Vec::new()).await.unwrap();
    let fetch = async |method: Method, address: &str, tag: Option<&str>| {
        let mut request = axum::http::Request::builder().method(method).uri(format!("/v1/mirror/fleet/{address}"));
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        site.send(request.body(HttpBody::empty()).unwrap()).await
    };
    let index = fetch(Method::GET, "e/1/index", None).await;
    assert_eq!((index.status, &index.bytes[..]), (200, &b"\0\xff"[..]));
    assert_eq!(index.headers[header::CONTENT_TYPE], "application/octet-stream");
    assert_eq!(index.headers[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
    for address in ["ladder/0-5", "e/1/filter/0"] {
        let answer = fetch(Method::GET, address, None).await;
        assert!(answer.headers[header::CACHE_CONTROL].to_str().unwrap().ends_with("immutable"), "{address}");
    }
    let manifest = fetch(Method::GET, "manifest", None).await;
    assert_eq!(manifest.headers[header::CACHE_CONTROL], "public, max-age=1, must-revalidate");
    let tag = manifest.headers[header::ETAG].to_str().unwrap().to_owned();
    for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".into()] {
        let same = fetch(Method::GET, "manifest", Some(&known)).await;
        assert_eq!((same.status, same.bytes.len()), (304, 0), "{known}");
        assert_eq!(same.headers[header::ETAG].to_str().unwrap(), tag);
    }
    site.ledger.store_objects(realm, term, vec![object("manifest", b"two")], Vec::new()).await.unwrap();
    let news = fetch(Method::GET, "manifest", Some(&tag)).await;
    assert_eq!((news.status, &news.bytes[..]), (200, &b"two"[..]));
    let head = fetch(Method::HEAD, "manifest", None).await;
    assert_eq!((head.status, head.bytes.len(), head.headers[header::CONTENT_LENGTH].to_str().unwrap()), (200, 0, "3"));
    for address in
        ["live", "e/2/index", "e/01/index", "../keys", "..%2fkeys", "%6beys", "keys%2f1", "manifest/", "x", "%00"]
    {
        fetch(Method::GET, address, None).await.problem(404, "object-unknown");
    }
    // The keys hold what fingerprints are made with: they are for readers.
    for (address, cached) in
        [("keys", "private, max-age=60, must-revalidate"), ("keys/1", "private, max-age=31536000, immutable")]
    {
        assert_eq!(fetch(Method::GET, address, None).await.status, 401, "{address}");
        let keys = site.get(&format!("/v1/mirror/fleet/{address}")).await;
        assert_eq!((keys.status, keys.headers[header::CACHE_CONTROL].to_str().unwrap()), (200, cached));
    }
    for address in ["keys/2", "keys/01", "keys/x"] {
        site.get(&format!("/v1/mirror/fleet/{address}")).await.problem(404, "object-unknown");
    }
    let answer = site.get("/v1/mirror/nowhere/manifest").await;
    answer.problem(404, "realm-unknown");
    site.get("/v1/mirror/No/manifest").await.problem(404, "realm-unknown");
}

#[tokio::test]
async fn a_request_may_wait_and_is_told_how_far_its_entry_came() {
    let site = Site::new().await;
    let body = json!({"jti": "t", "exp": LATER});
    for (query, reached) in
        [("", Value::Null), ("?wait=durable", json!("durable")), ("?wait=durable&timeout=1ms", json!("durable"))]
    {
        let answer = site.post(&format!("{REVOCATIONS}{query}"), &body).await;
        assert!(matches!(answer.status, 200 | 201), "{query}: {}", answer.body);
        assert_eq!((&answer.body["sequence"], &answer.body["reached"]), (&json!(1), &reached), "{query}");
    }
    for (path, body) in [
        (BATCH, json!({"revocations": [body]})),
        (REINSTATEMENTS, json!({"jti": "t"})),
        (CUTOFFS, json!({"scope": "realm"})),
        (LIFTS, json!({"scope": "realm"})),
    ] {
        let answer = site.post(&format!("{path}?wait=durable"), &body).await;
        assert_eq!(answer.body["reached"], "durable", "{path}: {}", answer.body);
        for query in [
            "wait=soon",
            "wait=",
            "wait=applied&share=0",
            "wait=applied&share=1.5",
            "wait=applied&share=NaN",
            "wait=published&share=0.5",
            "wait=published&timeout=5",
            "wait=published&timeout=301s",
            "timeout=5s",
            "share=0.5",
            "await=durable",
        ] {
            site.post(&format!("{path}?{query}"), &body).await.problem(422, "query-malformed");
        }
    }
    // Nobody publishes here, and no device is there: what is durable is answered as such, in time.
    for query in ["wait=published&timeout=20ms", "wait=applied&share=0.5&timeout=20ms"] {
        let answer = site.post(&format!("{LIFTS}?{query}"), &json!({"scope": "realm"})).await;
        assert_eq!((answer.status, &answer.body["reached"]), (200, &json!("durable")), "{query}");
    }
    // Refused before anything was recorded.
    assert_eq!(site.head().await, 4);
}
