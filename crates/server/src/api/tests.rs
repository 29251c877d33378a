//! Every refusal of the API, over the ledger in memory and a clock that stands still.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes};
use axum::http::{HeaderValue, Method, header};
use revocast_core::limits::BATCH_REQUESTS_MAX;
use revocast_core::{Now, RealmId, Sequence, UnixMillis, UnixTime, Width};
use serde_json::{Value, json};
use tower::ServiceExt as _;

mod access;
mod hooks;
mod hostile;
mod standards;
mod tokens;

use super::*;
use crate::broker::LinkState;
use crate::clock::Clock;
use crate::config::{ApiLimits, BridgeConfig, BridgeIn};
use crate::credentials::{Credential, CredentialsFile, Realms, Role, SecretHash};
use crate::fleet::{Fleet, Lookout};
use crate::hooks::HookTopics;
use crate::issuer::Keyrings;
use crate::keys::Keys;
use crate::leader::Office;
use crate::ledger::{Ledger, MemoryLedger, Statement};
use crate::metrics::Metrics;
use crate::minting::LiveFilters;
use crate::publisher::Settings;
use crate::service::{Issuing, LeaderView, Parcel, PublishedRealms};
use crate::standing::Standing;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3_600;
const LATER: u64 = NOW + DAY;

struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn now(&self) -> Now {
        let secs = self.0.load(Ordering::Relaxed);
        Now::new(UnixMillis::from_millis(secs * 1_000), Duration::from_secs(secs - NOW))
    }
}

struct Site {
    router: Router,
    gate: Arc<Gate>,
    ledger: Arc<MemoryLedger>,
    token: String,
    clock: Arc<SetClock>,
    link: tokio::sync::watch::Sender<LinkState>,
    published: tokio::sync::watch::Sender<PublishedRealms>,
    filters: Arc<LiveFilters>,
    lookout: Arc<Lookout>,
    metrics: Arc<Metrics>,
    keys: tempfile::TempDir,
}

/// A bridge of realm `fleet`, as hooks know it: tokens in, jtis out.
fn bridge() -> BridgeConfig {
    BridgeConfig {
        topic: "jwt_revoked".to_owned(),
        realm: RealmId::new("fleet").unwrap(),
        inward: BridgeIn::Signed,
        outward: true,
        per_second: 10,
        per_day: 10,
    }
}

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Value,
    bytes: Bytes,
}

/// Requests with a secret of their own.
struct Acting<'a> {
    site: &'a Site,
    secret: String,
}

impl Acting<'_> {
    async fn ask(&self, method: Method, path: &str, kind: &str, body: impl Into<HttpBody>) -> Answer {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.secret))
            .header(header::CONTENT_TYPE, kind);
        self.site.send(request.body(body.into()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, "application/json", body.to_string()).await
    }
}

impl Site {
    /// A server with realm `fleet`.
    async fn new() -> Self {
        let site = Self::empty();
        let founded = site.post("/v1/realms", &json!({"name": "fleet", "issuer": "https://iss.example"})).await;
        assert_eq!(founded.status, 201, "{}", founded.body);
        site
    }

    fn empty() -> Self {
        Self::with(ApiLimits::default(), |_| {})
    }

    fn with(limits: ApiLimits, prepare: impl FnOnce(&std::path::Path)) -> Self {
        Self::of(limits, false, prepare)
    }

    fn of(limits: ApiLimits, approve: bool, prepare: impl FnOnce(&std::path::Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        Keys::generate(&path, UnixTime::from_secs(NOW)).unwrap();
        prepare(&path);
        let keys = Arc::new(Keys::load(&path).unwrap());
        let ledger = Arc::new(MemoryLedger::new());
        let clock = Arc::new(SetClock(AtomicU64::new(NOW)));
        let link = tokio::sync::watch::Sender::new(LinkState::Up { connection: 1 });
        let published = tokio::sync::watch::Sender::new(PublishedRealms::new());
        let token = keys.admin().as_str().to_owned();
        let filters = Arc::new(LiveFilters::new());
        let link_state = link.subscribe();
        let fleet = Fleet::new("revocast", vec![keys.publisher().unwrap().public()]);
        let lookout = Arc::new(Lookout::new(fleet, clock.clone()));
        let metrics = Arc::new(Metrics::new(clock.now().wall));
        let issuers = Arc::new(Issuers::new(&path, Keyrings::new(&path, keys.issuer()).unwrap()));
        let leader = LeaderView {
            office: tokio::sync::watch::channel(Office::Leading).1,
            inquiries: Arc::default(),
            settings: tokio::sync::watch::channel(Settings::default()).1,
        };
        let (parcels, mut waiting) = tokio::sync::mpsc::channel::<Parcel>(8);
        // Whoever would deliver: here everything arrives.
        tokio::spawn(async move {
            while let Some(parcel) = waiting.recv().await {
                let _ = parcel.done.send(());
            }
        });
        let service = Service::new(
            ledger.clone(),
            keys,
            clock.clone(),
            link_state,
            published.subscribe(),
            Arc::clone(&filters),
            leader,
            Arc::clone(&lookout),
            Arc::clone(&metrics),
            Issuing { issuers: Arc::clone(&issuers), lifetime: Duration::from_hours(1), parcels },
        );
        let admin = crate::keys::AdminToken::new(&token).unwrap();
        let gate = Arc::new(Gate::open(&path, &admin, limits, approve, Arc::clone(&clock) as Arc<dyn Clock>).unwrap());
        let service = Arc::new(service);
        let hooks = Hooks::new(
            Arc::clone(&service),
            ledger.clone(),
            Arc::clone(&issuers),
            Arc::clone(&metrics),
            HookTopics {
                prefix: "revocast".to_owned(),
                tokens: revocast_core::update::TokenTopic::default(),
                bridge: Some(bridge()),
            },
        );
        let router = router(service, Arc::clone(&gate), issuers, Arc::new(hooks));
        Self { router, gate, ledger, token, clock, link, published, filters, lookout, metrics, keys: folder }
    }

    /// The same site, asked with another secret.
    fn acting(&self, secret: &str) -> Acting<'_> {
        Acting { site: self, secret: secret.to_owned() }
    }

    /// Adds a credential; returns its secret.
    fn credential(&self, name: &str, roles: &[Role], change: impl FnOnce(&mut Credential)) -> String {
        let (secret, hash) = SecretHash::draw(UnixTime::from_secs(NOW)).unwrap();
        let mut credential = Credential::new(name, roles.to_vec(), Realms::All, hash);
        change(&mut credential);
        CredentialsFile::change(&self.keys.path().join("keys"), |file| file.add(credential)).unwrap();
        secret
    }

    async fn send(&self, request: axum::http::Request<HttpBody>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 16 << 20).await.unwrap();
        // Some answers say nothing, and some are no text.
        let json = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.to_str().unwrap().contains("json"));
        let body = match serde_json::from_slice(&bytes) {
            Ok(body) => body,
            Err(_) if !json => Value::Null,
            Err(error) => panic!("not JSON: {error}: {bytes:?}"),
        };
        Answer { status: head.status.as_u16(), headers: head.headers, body, bytes }
    }

    fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(HttpBody::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(self.request(Method::POST, path).body(HttpBody::from(body.into())).unwrap()).await
    }

    async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).body(HttpBody::from(body.to_string())).unwrap()).await
    }

    async fn report(&self, lines: impl Into<Vec<u8>>) -> Answer {
        self.report_to(ISSUED, lines).await
    }

    async fn report_to(&self, path: &str, lines: impl Into<Vec<u8>>) -> Answer {
        self.send(self.lines(path, HttpBody::from(lines.into()))).await
    }

    fn lines(&self, path: &str, body: HttpBody) -> axum::http::Request<HttpBody> {
        let mut request = self.request(Method::POST, path);
        let kind = HeaderValue::from_static("application/x-ndjson");
        request.headers_mut().unwrap().insert(header::CONTENT_TYPE, kind);
        request.body(body).unwrap()
    }

    async fn registered(&self) -> u64 {
        self.ledger.coverage(RealmId::new("fleet").unwrap()).await.unwrap().registered
    }

    async fn revoke(&self, body: &Value) -> Answer {
        self.post(REVOCATIONS, body).await
    }

    async fn head(&self) -> u64 {
        self.ledger.head(RealmId::new("fleet").unwrap()).await.unwrap().1.0
    }
}

const REVOCATIONS: &str = "/v1/realms/fleet/revocations";
const BATCH: &str = "/v1/realms/fleet/revocations/batch";
const REINSTATEMENTS: &str = "/v1/realms/fleet/reinstatements";

const CUTOFFS: &str = "/v1/realms/fleet/cutoffs";
const LIFTS: &str = "/v1/realms/fleet/lifts";
const ISSUED: &str = "/v1/realms/fleet/issued";
const COVERAGE: &str = "/v1/realms/fleet/coverage";
const JTI: &str = "/v1/realms/fleet/jti";

/// A token issued ten seconds ago that expires in `exp` seconds, as a line of a report.
fn line(jti: &str, exp: u64) -> String {
    format!("{}\n", json!({"jti": jti, "iat": NOW - 10, "exp": NOW + exp}))
}

impl Answer {
    /// Asserts that this is a complete problem document; returns its detail.
    #[track_caller]
    fn problem(&self, status: u16, kind: &str) -> &str {
        assert_eq!(self.body["type"], format!("urn:revocast:problem:{kind}"), "{} {}", self.status, self.body);
        assert_eq!((self.status, &self.body["status"]), (status, &json!(status)));
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        assert!(self.body["title"].as_str().is_some_and(|title| !title.is_empty()));
        self.body["detail"].as_str().unwrap_or_default()
    }
}

#[tokio::test]
async fn a_revocation_is_recorded_once() {
    let site = Site::new().await;
    let body = json!({"jti": "t", "exp": LATER, "reason": "stolen"});
    let kept = NOW + 30 * DAY;
    let first = site.revoke(&body).await;
    assert_eq!((first.status, first.body), (201, json!({"sequence": 1, "exp": kept, "recorded": true})));
    // A second later the answer is the same, though an exp would now be raised further.
    site.clock.0.store(NOW + 1, Ordering::Relaxed);
    let again = site.revoke(&body).await;
    assert_eq!((again.status, again.body), (200, json!({"sequence": 1, "exp": kept, "recorded": false})));
    let entries = site.ledger.scan(RealmId::new("fleet").unwrap(), Sequence(0), 10).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].reason.as_deref(), entries[0].actor.as_str()), (Some("stolen"), "admin"));
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "t".into(), exp: UnixTime::from_secs(kept) });
}

#[tokio::test]
async fn a_reinstatement_undoes_it() {
    let site = Site::new().await;
    let nothing = site.post(REINSTATEMENTS, &json!({"jti": "t"})).await;
    assert_eq!((nothing.status, nothing.body), (200, json!({"sequence": 0, "exp": null, "recorded": false})));
    site.revoke(&json!({"jti": "t", "exp": LATER})).await;
    let undone = site.post(REINSTATEMENTS, &json!({"jti": "t", "reason": "a mistake"})).await;
    assert_eq!(undone.status, 201);
    assert_eq!((&undone.body["sequence"], &undone.body["recorded"]), (&json!(2), &json!(true)));
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let site = Site::new().await;
    let one = |jti: &str, exp| json!({"jti": jti, "exp": exp});
    let mixed = json!({"revocations": [one("t", LATER), one("u", LATER), one("t", LATER)]});
    let answer = site.post(BATCH, &mixed).await;
    assert_eq!((answer.status, &answer.body["recorded"]), (201, &json!(2)));
    let sequences: Vec<_> =
        answer.body["receipts"].as_array().unwrap().iter().map(|r| r["sequence"].as_u64()).collect();
    assert_eq!(sequences, [Some(1), Some(2), Some(1)]);
    assert_eq!(site.post(BATCH, &mixed).await.status, 200);

    let bad = json!({"revocations": [one("v", LATER), one("", LATER)]});
    assert_eq!(site.post(BATCH, &bad).await.problem(422, "jti-empty"), "request 1 names no token: the jti is empty");
    let expired = json!({"revocations": [one("v", LATER), one("w", 1)]});
    assert!(site.post(BATCH, &expired).await.problem(422, "token-expired").starts_with("revocation 1 has exp 1"));
    assert_eq!(site.head().await, 2);

    let full: Vec<_> = (0..BATCH_REQUESTS_MAX).map(|number| one(&format!("{number:036}"), LATER)).collect();
    let answer = site.post(BATCH, &json!({"revocations": full})).await;
    assert_eq!((answer.status, &answer.body["recorded"]), (201, &json!(BATCH_REQUESTS_MAX)));
    let over: Vec<_> = (0..=BATCH_REQUESTS_MAX).map(|number| one(&number.to_string(), LATER)).collect();
    site.post(BATCH, &json!({"revocations": over})).await.problem(413, "batch-too-large");
    assert_eq!(site.post(BATCH, &json!({"revocations": []})).await.status, 200);
}

#[tokio::test]
async fn bad_revocations_are_refused_and_change_nothing() {
    let site = Site::new().await;
    let long = "x".repeat(257);
    let cases = [
        (json!({"jti": "t"}), "request-malformed", "missing field `exp`"),
        (json!({"exp": LATER}), "request-malformed", "missing field `jti`"),
        (json!({"jti": "t", "exp": -1}), "request-malformed", "invalid value: integer `-1`"),
        (json!({"jti": "t", "exp": 1.5}), "request-malformed", "invalid type: floating point `1.5`"),
        (json!({"jti": "t", "exp": 1e30}), "request-malformed", "invalid type: floating point"),
        (json!({"jti": "t", "exp": "1900000000"}), "request-malformed", "invalid type: string"),
        (json!({"jti": "t", "exp": null}), "request-malformed", "invalid type: null"),
        (json!({"jti": 7, "exp": LATER}), "request-malformed", "invalid type: integer `7`"),
        (json!({"jti": "t", "exp": LATER, "x": 1}), "request-malformed", "unknown field `x`"),
        (json!([]), "request-malformed", "invalid type: sequence, expected a JSON object"),
        (json!(["t", LATER, null]), "request-malformed", "invalid type: sequence, expected a JSON object"),
        (json!("t"), "request-malformed", "invalid type: string"),
        (json!({"jti": "", "exp": LATER}), "jti-empty", "request 0 names no token: the jti is empty"),
        (json!({"jti": long, "exp": LATER}), "jti-too-long", "request 0 names no token: the jti has 257 bytes"),
        (json!({"jti": "t", "exp": 0}), "token-expired", "revocation 0 has exp 0"),
        (json!({"jti": "t", "exp": NOW - 60}), "token-expired", "revocation 0 has exp"),
        (
            json!({"jti": "t", "exp": LATER, "reason": "x".repeat(1025)}),
            "reason-too-long",
            "request 0 has a reason of 1025",
        ),
    ];
    for (body, kind, start) in cases {
        let answer = site.revoke(&body).await;
        let detail = answer.problem(422, kind);
        assert!(detail.starts_with(start), "{body}: {detail}");
    }
    let twice = site.post_text(REVOCATIONS, r#"{"jti":"t","jti":"u","exp":1900000000}"#).await;
    assert_eq!(twice.problem(422, "request-malformed"), "duplicate field `jti` at line 1 column 16");
    let escaped = site.post_text(REVOCATIONS, r#"{"jti":"t","exp":1900000000,"\u0065xp":1}"#).await;
    assert!(escaped.problem(422, "request-malformed").starts_with("duplicate field `exp`"));
    site.post(REINSTATEMENTS, &json!({"jti": ""})).await.problem(422, "jti-empty");
    site.post(REINSTATEMENTS, &json!({"jti": "t", "exp": 1})).await.problem(422, "request-malformed");
    assert_eq!(site.head().await, 0);
    // Within the leeway a token may still be honored somewhere, so it can be revoked.
    assert_eq!(site.revoke(&json!({"jti": "t", "exp": NOW - 59})).await.status, 201);
}

#[tokio::test]
async fn what_is_not_json_is_refused_with_its_place() {
    let site = Site::new().await;
    let deep = "[".repeat(100_000);
    let cases: [(&[u8], &str); 7] = [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"{\n  \"jti\": \"t\",\n  oops", "key must be a string at line 3 column 3"),
        (b"{\"jti\":\"t\",\"exp\":1900000000} x", "trailing characters at line 1 column 30"),
        (b"{\"jti\":\"\xff\"}", "invalid unicode code point at line 1 column 9"),
        (b"\xef\xbb\xbf{}", "expected value at line 1 column 1"),
        (b"{\"jti\":\"\\ud800\",\"exp\":1}", "unexpected end of hex escape"),
        (b"{\"jti\":\"t\",\"exp\":01}", "invalid number"),
    ];
    for (body, start) in cases {
        let answer = site.post_text(REVOCATIONS, body).await;
        let detail = answer.problem(400, "json-malformed");
        assert!(detail.starts_with(start), "{:?}: {detail}", String::from_utf8_lossy(body));
    }
    let answer = site.post_text(REVOCATIONS, format!(r#"{{"jti":{deep}"#)).await;
    assert!(matches!(answer.status, 400 | 422), "{}", answer.body);
    assert_eq!(site.head().await, 0);
}

#[tokio::test]
async fn bodies_have_a_type_and_a_limit() {
    let site = Site::new().await;
    let body = json!({"jti": "t", "exp": LATER}).to_string();
    for kind in [None, Some("text/plain"), Some("application/jsonx"), Some("application/x-www-form-urlencoded")] {
        let mut request = site.request(Method::POST, REVOCATIONS);
        request.headers_mut().unwrap().remove(header::CONTENT_TYPE);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        site.send(request.body(HttpBody::from(body.clone())).unwrap()).await.problem(415, "content-type");
    }
    let mut request = site.request(Method::POST, REVOCATIONS);
    request
        .headers_mut()
        .unwrap()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("Application/JSON; charset=utf-8"));
    assert_eq!(site.send(request.body(HttpBody::from(body)).unwrap()).await.status, 201);

    let large = format!(r#"{{"jti":"{}"}}"#, "x".repeat(BODY_BYTES_MAX));
    site.post_text(REVOCATIONS, large.clone()).await.problem(413, "body-too-large");
    // The same without a length announced.
    let chunks = large.into_bytes().chunks(64 * 1024).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let stream = Chunks(chunks.into_iter());
    let request = site.request(Method::POST, REVOCATIONS).body(HttpBody::new(stream)).unwrap();
    site.send(request).await.problem(413, "body-too-large");
}

#[tokio::test]
async fn nothing_is_done_without_credentials() {
    let site = Site::new().await;
    let paths = [
        (Method::GET, "/v1/status"),
        (Method::GET, "/v1/realms"),
        (Method::POST, "/v1/realms"),
        (Method::POST, REVOCATIONS),
        (Method::POST, BATCH),
        (Method::POST, REINSTATEMENTS),
        (Method::POST, CUTOFFS),
        (Method::POST, LIFTS),
        (Method::POST, ISSUED),
        (Method::GET, COVERAGE),
        (Method::PUT, COVERAGE),
        (Method::GET, JTI),
    ];
    let wrong = "x".repeat(43);
    let almost = format!("{}x", &site.token[..42]);
    let offers = [
        (None, "credentials-missing"),
        (Some("Basic YTpi".to_owned()), "credentials-missing"),
        (Some(site.token.clone()), "credentials-missing"),
        (Some("Bearer".to_owned()), "credentials-missing"),
        (Some("Bearer ".to_owned()), "credentials-wrong"),
        (Some(format!("Bearer {wrong}")), "credentials-wrong"),
        (Some(format!("Bearer {almost}")), "credentials-wrong"),
        (Some(format!("Bearer {}=", site.token)), "credentials-wrong"),
        (Some(format!("Bearer {} ", site.token)), "credentials-wrong"),
    ];
    for (method, path) in paths {
        for (offer, kind) in &offers {
            let mut request = site.request(method.clone(), path);
            request.headers_mut().unwrap().remove(header::AUTHORIZATION);
            if let Some(offer) = offer {
                request = request.header(header::AUTHORIZATION, offer);
            }
            let body = json!({"jti": "t", "exp": LATER}).to_string();
            let answer = site.send(request.body(HttpBody::from(body)).unwrap()).await;
            // Whitespace after the token is trimmed by HTTP itself, not here.
            answer.problem(401, kind);
            let challenge = answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap();
            assert!(challenge.starts_with(r#"Bearer realm="revocast""#), "{challenge}");
        }
    }
    assert_eq!(site.head().await, 0);
    let mut request = site.request(Method::GET, "/v1/realms");
    let lower = HeaderValue::from_str(&format!("bearer {}", site.token)).unwrap();
    request.headers_mut().unwrap().insert(header::AUTHORIZATION, lower);
    assert_eq!(site.send(request.body(HttpBody::empty()).unwrap()).await.status, 200);
}

/// Every operation that the document names: method, path for realm `fleet`, and what it says of it.
async fn operations(site: &Site) -> Vec<(Method, String, Value)> {
    let document = site.get("/openapi.json").await.body;
    assert_eq!(document["openapi"], "3.1.0");
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            operations.push((method, path.replace("{realm}", "fleet"), operation.clone()));
        }
    }
    operations
}

#[tokio::test]
async fn the_document_names_every_operation_and_what_it_answers() {
    let site = Site::new().await;
    let operations = operations(&site).await;
    let named: Vec<_> = operations.iter().map(|(method, path, _)| (method.clone(), path.as_str())).collect();
    for route in [
        (Method::GET, "/healthz"),
        (Method::GET, "/v1/status"),
        (Method::POST, "/v1/realms"),
        (Method::POST, REVOCATIONS),
        (Method::POST, ISSUED),
        (Method::PUT, COVERAGE),
    ] {
        assert!(named.contains(&route), "{route:?}");
    }
    for (method, path, operation) in &operations {
        let place = format!("{method} {path}");
        // Nothing is open to everybody, nor the admin's alone, because somebody forgot to say.
        assert!(operation["security"].is_array(), "{place} does not say who may use it");
        assert!(operation["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{place}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{place} {status}");
        }
        if operation["requestBody"].is_object() {
            assert!(["400", "413", "415"].iter().all(|status| operation["responses"][status].is_object()), "{place}");
        }
    }
}

#[tokio::test]
async fn unknown_places_and_methods_are_problems_too() {
    let site = Site::new().await;
    site.get("/nowhere").await.problem(404, "path-unknown");
    site.get("/v1/realms/fleet").await.problem(404, "path-unknown");
    let body = json!({"jti": "t", "exp": LATER});
    let unknown = site.post("/v1/realms/nowhere/revocations", &body).await;
    assert_eq!(unknown.problem(404, "realm-unknown"), "realm nowhere does not exist");
    site.post("/v1/realms/nowhere/reinstatements", &json!({"jti": "t"})).await.problem(404, "realm-unknown");
    site.post("/v1/realms/nowhere/cutoffs", &json!({"scope": "realm"})).await.problem(404, "realm-unknown");
    site.post("/v1/realms/nowhere/lifts", &json!({"scope": "realm"})).await.problem(404, "realm-unknown");
    site.report_to("/v1/realms/nowhere/issued", line("t", 60)).await.problem(404, "realm-unknown");
    site.report_to("/v1/realms/No/issued", line("t", 60)).await.problem(404, "realm-unknown");
    site.get("/v1/realms/nowhere/coverage").await.problem(404, "realm-unknown");
    site.put("/v1/realms/nowhere/coverage", &json!({"until": NOW})).await.problem(404, "realm-unknown");
    site.get("/v1/realms/nowhere/jti").await.problem(404, "realm-unknown");
    for name in ["", "Fleet", "a%2Fb", "%00", "%ff", "..", &"x".repeat(65)] {
        let answer = site.post(&format!("/v1/realms/{name}/revocations"), &body).await;
        answer.problem(404, "realm-unknown");
    }
    for (path, allowed) in [
        (REVOCATIONS, "POST"),
        ("/v1/realms", "GET,HEAD,POST"),
        ("/healthz", "GET,HEAD"),
        (ISSUED, "POST"),
        (COVERAGE, "GET,HEAD,PUT"),
    ] {
        let request = site.request(Method::DELETE, path).body(HttpBody::empty()).unwrap();
        let answer = site.send(request).await;
        answer.problem(405, "method-not-allowed");
        assert_eq!(answer.headers[header::ALLOW], allowed, "{path}");
    }
}

#[tokio::test]
async fn a_realm_is_founded_with_a_sealed_keys_object() {
    let site = Site::empty();
    let body = json!({"name": "fleet", "issuer": "https://iss.example", "fingerprint": "xxh3", "width": 64,
        "leeway": 5, "max_token_lifetime": 3600});
    let answer = site.post("/v1/realms", &body).await;
    let expected = json!({"name": "fleet", "issuer": "https://iss.example", "fingerprint": "xxh3", "width": 64,
        "leeway": 5, "max_token_lifetime": 3600, "created": NOW});
    assert_eq!((answer.status, answer.body), (201, expected.clone()));
    let again = site.post("/v1/realms", &json!({"name": "fleet", "issuer": "https://iss.example"})).await;
    assert_eq!((again.status, again.body), (200, expected.clone()));
    assert_eq!(site.get("/v1/realms").await.body, json!({"realms": [expected]}));

    // What a device does with it: only the pinned root is believed.
    let realm = RealmId::new("fleet").unwrap();
    let objects = site.ledger.objects(realm).await.unwrap();
    // The newest, and the first version for good: the same bytes.
    assert_eq!(objects.iter().map(|object| &object.address[..]).collect::<Vec<_>>(), ["keys", "keys/1"]);
    assert_eq!(objects[0].bytes, objects[1].bytes);
    let keys = Keys::load(&site.keys.path().join("keys")).unwrap();
    let sealed = revocast_core::Sealed::expect(&objects[0].bytes, &realm, revocast_core::Kind::Keys).unwrap();
    let trust = keys.trust().unwrap();
    let body = sealed.by_threshold(&trust.roots, trust.threshold).unwrap();
    let decoded = revocast_core::wire::decode_keys(body.get()).unwrap();
    assert_eq!((&*decoded.issuer, decoded.leeway, decoded.version), ("https://iss.example", 5, 1));
    assert_eq!(decoded.publishers[0].key, keys.publisher().unwrap().public());
    assert_eq!(decoded.fingerprinter, site.ledger.realm(realm).await.unwrap().fingerprinter);
    assert!(sealed.by_threshold(&[keys.publisher().unwrap().public()], 1).is_err());
}

#[tokio::test]
async fn realms_that_cannot_be_are_refused() {
    let site = Site::new().await;
    let cases = [
        (json!({"name": "fleet", "issuer": "https://other.example"}), 409, "realm-taken"),
        (json!({"name": "other", "issuer": "https://iss.example"}), 409, "issuer-taken"),
        (json!({"name": "", "issuer": "i"}), 422, "realm-name"),
        (json!({"name": "UPPER", "issuer": "i"}), 422, "realm-name"),
        (json!({"name": "a/b", "issuer": "i"}), 422, "realm-name"),
        (json!({"name": "x".repeat(65), "issuer": "i"}), 422, "realm-name"),
        (json!({"name": "b", "issuer": ""}), 422, "issuer"),
        (json!({"name": "b", "issuer": "x".repeat(1025)}), 422, "issuer"),
        (json!({"name": "b", "issuer": "i", "width": 32}), 422, "width"),
        (json!({"name": "b", "issuer": "i", "width": 300}), 422, "request-malformed"),
        (json!({"name": "b", "issuer": "i", "fingerprint": "md5"}), 422, "request-malformed"),
        (json!({"name": "b", "issuer": "i", "leeway": 86_401}), 422, "leeway"),
        (json!({"name": "b", "issuer": "i", "max_token_lifetime": 0}), 422, "max-token-lifetime"),
        (json!({"name": "b", "issuer": "i", "max_token_lifetime": u64::MAX}), 422, "max-token-lifetime"),
        (json!({"name": "b"}), 422, "request-malformed"),
    ];
    for (body, status, kind) in cases {
        site.post("/v1/realms", &body).await.problem(status, kind);
    }
    assert_eq!(site.ledger.realms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn without_the_root_key_nothing_is_founded() {
    let body = json!({"name": "fleet", "issuer": "https://iss.example"});
    let site = Site::with(ApiLimits::default(), |keys| {
        std::fs::remove_file(keys.join("root.key")).unwrap();
    });
    let answer = site.post("/v1/realms", &body).await;
    assert!(answer.problem(409, "root-key-absent").contains("needed to found a realm"));
    assert!(site.ledger.realms().await.unwrap().is_empty());

    let another = tempfile::tempdir().unwrap();
    Keys::generate(&another.path().join("k"), UnixTime::from_secs(NOW)).unwrap();
    let site = Site::with(ApiLimits::default(), |keys| {
        std::fs::copy(another.path().join("k/root.key"), keys.join("root.key")).unwrap();
    });
    site.post("/v1/realms", &body).await.problem(409, "root-not-trusted");
    assert!(site.ledger.realms().await.unwrap().is_empty());
}

#[tokio::test]
async fn health_and_status_tell_what_is_there() {
    let site = Site::new().await;
    site.revoke(&json!({"jti": "t", "exp": LATER})).await;
    for path in ["/healthz", "/readyz"] {
        let request = axum::http::Request::get(path).body(HttpBody::empty()).unwrap();
        assert_eq!(site.send(request).await.status, 200, "{path}");
    }
    let status = site.get("/v1/status").await.body;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["broker"], json!({"connected": true, "connection": 1}));
    assert_eq!(status["ledger"], json!({"writable": true}));
    let realm = &status["realms"][0];
    assert_eq!((&realm["name"], &realm["term"], &realm["head"]), (&json!("fleet"), &json!(1), &json!(1)));
    assert_eq!(realm["published"], Value::Null);

    site.link.send_replace(LinkState::Down { cause: "refused".into() });
    let detail = site.get("/readyz").await;
    assert_eq!(detail.problem(503, "not-ready"), "the broker is not connected: refused");
    // A broker that is down keeps nobody from revoking.
    assert_eq!(site.get("/healthz").await.status, 200);
    assert_eq!(site.revoke(&json!({"jti": "u", "exp": LATER})).await.status, 201);
    assert_eq!(site.get("/v1/status").await.body["broker"], json!({"connected": false, "trouble": "refused"}));
}

#[tokio::test]
async fn a_report_registers_tokens() {
    let site = Site::new().await;
    let report = format!("{}\n  \r\n{}{}", line("t", 60), line("u", 60), line("t", 90).trim_end());
    let answer = site.report(report.clone()).await;
    let expected = json!({"lines": 5, "registered": 2, "repeated": 0, "extended": 1, "late": 0, "expired": 0,
        "refused": 0, "problems": [], "covered_until": null});
    assert_eq!((answer.status, answer.body), (200, expected));
    // Again: nothing changes.
    let answer = site.report(report).await;
    assert_eq!((answer.status, &answer.body["repeated"], &answer.body["registered"]), (200, &json!(3), &json!(0)));
    assert_eq!(site.registered().await, 2);

    // In pieces of any size, over batches, and a `sub` that is told.
    let token = |number: usize| json!({"jti": number.to_string(), "iat": NOW, "exp": NOW + 9, "sub": "s"}).to_string();
    let many = (0..BATCH_REQUESTS_MAX).map(token).collect::<Vec<_>>().join("\n");
    let chunks: Vec<_> = many.into_bytes().chunks(777).map(<[u8]>::to_vec).collect();
    let answer = site.send(site.lines(ISSUED, HttpBody::new(Chunks(chunks.into_iter())))).await;
    assert_eq!((&answer.body["lines"], &answer.body["registered"]), (&json!(10_000), &json!(10_000)));
    assert_eq!(site.registered().await, 10_002);

    // A registered token vouches for its exp: this revoke is not kept for the longest lifetime.
    let revoked = site.revoke(&json!({"jti": "t", "exp": NOW + 5})).await;
    assert_eq!(revoked.body["exp"], json!(NOW + 90));
    assert_eq!(site.report("").await.body["lines"], json!(0));
    let status = site.get("/v1/status").await.body;
    assert_eq!(status["realms"][0]["registered"], json!(10_002));
    assert_eq!(status["realms"][0]["covered_until"], Value::Null);
}

#[tokio::test]
async fn a_bad_line_is_named_and_the_others_go_in() {
    let site = Site::new().await;
    let long = format!("{{\"jti\":\"{}\"}}\n", "x".repeat(5_000));
    let month = 30 * DAY;
    let bad = [
        ("oops\n".to_owned(), "expected value at column 1"),
        (r#"{"jti":"a","iat":1}"#.to_owned() + "\n", "missing field `exp` at column"),
        (r#"{"jti":"a","iat":1,"exp":2,"x":3}"#.to_owned() + "\n", "unknown field `x`"),
        (r#"{"jti":"a","iat":1,"exp":2}{}"#.to_owned() + "\n", "trailing characters at column"),
        (r#"{"jti":"","iat":1,"exp":2}"#.to_owned() + "\n", "the jti is empty"),
        (r#"{"jti":"a","iat":1,"exp":2,"sub":""}"#.to_owned() + "\n", "the sub has 0 bytes"),
        (line("a", month), "it lives 2592010 s, longer than the 2592000 s"),
        (format!("{}\n", json!({"jti": "a", "iat": NOW, "exp": NOW - 1})), "exp 1799999999 lies before iat"),
        (format!("{}\n", json!({"jti": "a", "iat": NOW + 61, "exp": NOW + 99})), "iat 1800000061 lies in the future"),
        (long, "the line has 5010 bytes, more than 4096"),
    ];
    let mut report = line("first", 60);
    for (text, _) in &bad {
        report += text;
    }
    report += &line("last", 60);
    let answer = site.report(report).await;
    assert_eq!((answer.status, &answer.body["registered"], &answer.body["expired"]), (200, &json!(2), &json!(0)));
    let problems = answer.body["problems"].as_array().unwrap();
    assert_eq!((problems.len(), &answer.body["refused"]), (bad.len(), &json!(bad.len())));
    for ((index, (_, start)), problem) in bad.iter().enumerate().zip(problems) {
        assert_eq!(problem["line"], json!(index + 2));
        assert!(problem["detail"].as_str().unwrap().starts_with(start), "{problem}");
    }
    let gone = format!("{}\n", json!({"jti": "gone", "iat": NOW - 100, "exp": NOW - 60}));
    assert_eq!(site.report(gone).await.body["expired"], json!(1));

    // All are counted, the first hundred told.
    let answer = site.report("x\n".repeat(3_000)).await;
    assert_eq!((&answer.body["refused"], &answer.body["lines"]), (&json!(3_000), &json!(3_000)));
    assert_eq!(answer.body["problems"].as_array().unwrap().len(), 100);
    assert_eq!(site.registered().await, 2);
    // A line that never ends takes no more memory than one that does.
    let endless = vec![vec![b'x'; 64 * 1024]; 100];
    let answer = site.send(site.lines(ISSUED, HttpBody::new(Chunks(endless.into_iter())))).await;
    assert_eq!(answer.body["problems"][0]["detail"], "the line has 6553600 bytes, more than 4096");
    let request = site.request(Method::POST, ISSUED).body(HttpBody::from(line("t", 60))).unwrap();
    let answer = site.send(request).await;
    assert!(answer.problem(415, "content-type").contains("application/x-ndjson"));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_says_how_far_it_came() {
    let site = Site::new().await;
    // The last line is whole by chance, and its end is not there: who knows what was to follow.
    let text = |[t, u, v]: [&str; 3]| format!("{}x\n{}{}", line(t, 60), line(u, 60), line(v, 60).trim_end());
    let expected = |answer: &Answer| {
        assert_eq!((&answer.body["lines_done"], &answer.body["registered"]), (&json!(3), &json!(2)));
        assert_eq!((&answer.body["refused"], &answer.body["problems"][0]["line"]), (&json!(1), &json!(2)));
    };
    let answer = site.send(site.lines(ISSUED, HttpBody::new(Torn(Some(text(["t", "u", "v"]).into()), true)))).await;
    assert!(answer.problem(400, "stream-broken").contains("cable"), "{}", answer.body);
    expected(&answer);
    assert_eq!(site.registered().await, 2);
    // The same if nothing more comes.
    let answer = site.send(site.lines(ISSUED, HttpBody::new(Torn(Some(text(["x", "y", "z"]).into()), false)))).await;
    assert_eq!(answer.problem(408, "request-timeout"), "nothing came for 30 s");
    expected(&answer);
    assert_eq!(site.registered().await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_report_may_take_longer_than_a_request() {
    let site = Site::new().await;
    let started = tokio::time::Instant::now();
    let slow = Slow { lines: (0..20).map(|number| line(&number.to_string(), 60)).collect(), sleep: None };
    let answer = site.send(site.lines(ISSUED, HttpBody::new(slow))).await;
    assert_eq!((answer.status, &answer.body["registered"]), (200, &json!(20)));
    assert!(started.elapsed() > 5 * ApiLimits::default().request_timeout);
}

#[tokio::test]
async fn coverage_is_moved_and_never_back() {
    let site = Site::new().await;
    assert_eq!(site.get(COVERAGE).await.body, json!({"registered": 0, "covered_until": null}));
    site.report(line("t", 60)).await;
    let moved = site.put(COVERAGE, &json!({"until": NOW})).await;
    assert_eq!((moved.status, moved.body), (200, json!({"registered": 1, "covered_until": NOW})));
    let back = site.put(COVERAGE, &json!({"until": NOW - 1})).await;
    assert!(back.problem(409, "coverage-back").contains("does not go back to 1799999999"));
    let ahead = site.put(COVERAGE, &json!({"until": NOW + 61})).await;
    assert!(ahead.problem(422, "coverage-ahead").contains("1800000061"));
    site.put(COVERAGE, &json!({})).await.problem(422, "request-malformed");
    site.put(COVERAGE, &json!({"until": -1})).await.problem(422, "request-malformed");
    assert_eq!(site.get(COVERAGE).await.body, json!({"registered": 1, "covered_until": NOW}));
    // Who comes late is heard of.
    let answer = site.report(line("late", 60)).await;
    assert_eq!((&answer.body["late"], &answer.body["covered_until"]), (&json!(1), &json!(NOW)));
    assert_eq!(site.get("/v1/status").await.body["realms"][0]["covered_until"], json!(NOW));
}

#[tokio::test]
async fn clean_jtis_are_given_while_the_filters_allow_it() {
    let site = Site::new().await;
    let one = site.get(JTI).await;
    assert_eq!((one.status, one.body["jtis"].as_array().unwrap().len()), (200, 1));
    assert_eq!(one.headers[header::CACHE_CONTROL], "no-store");
    let many = site.get(&format!("{JTI}?count=1000")).await;
    let jtis: std::collections::BTreeSet<_> =
        many.body["jtis"].as_array().unwrap().iter().map(|jti| jti.as_str().unwrap().to_owned()).collect();
    assert_eq!(jtis.len(), 1_000);
    for query in ["count=0", "count=1001", "count=-1", "count=x", "number=1"] {
        site.get(&format!("{JTI}?{query}")).await.problem(422, "query-malformed");
    }
    // A filter that flags everything: an error, and no search without end.
    let params = revocast_core::FilterParams::new(revocast_core::Salt([1; 16]), 4, 1).unwrap();
    let full = (0..20_000_u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
    let full = full.filter_map(|bits| revocast_core::Fingerprint::from_bits(bits, Width::W48));
    let full = Arc::new(revocast_core::FilterBuf::build(params, full));
    site.filters.set(RealmId::new("fleet").unwrap(), vec![full]);
    assert!(site.get(JTI).await.problem(503, "no-clean-jti").contains("100 jtis were drawn for realm fleet"));
}

#[tokio::test]
async fn a_cutoff_is_recorded_and_only_a_lift_ends_it() {
    let site = Site::new().await;
    // "Now" includes the tokens of this very second (design rule 16).
    let now = site.post(CUTOFFS, &json!({"scope": "sub", "name": "alice", "reason": "left"})).await;
    assert_eq!((now.status, now.body), (201, json!({"sequence": 1, "not_before": NOW + 1, "recorded": true})));
    let lower = site.post(CUTOFFS, &json!({"scope": "sub", "name": "alice", "not_before": 5})).await;
    assert_eq!((lower.status, lower.body), (200, json!({"sequence": 1, "not_before": NOW + 1, "recorded": false})));
    for (sequence, scope) in [(2, "kid"), (3, "client")] {
        let body = json!({"scope": scope, "name": "alice", "not_before": 7});
        let answer = site.post(CUTOFFS, &body).await;
        assert_eq!(answer.body, json!({"sequence": sequence, "not_before": 7, "recorded": true}));
    }
    let whole = site.post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW + 30 * DAY})).await;
    assert_eq!(whole.status, 201);
    let realm = RealmId::new("fleet").unwrap();
    let entries = site.ledger.scan(realm, Sequence(0), 10).await.unwrap();
    let scope = crate::ledger::Scope::Sub("alice".into());
    assert_eq!(entries[0].statement, Statement::Cutoff { scope, not_before: UnixTime::from_secs(NOW + 1) });
    assert_eq!((entries[0].reason.as_deref(), entries[0].actor.as_str()), (Some("left"), "admin"));

    let lifted = site.post(LIFTS, &json!({"scope": "sub", "name": "alice", "reason": "back"})).await;
    assert_eq!((lifted.status, lifted.body), (201, json!({"sequence": 5, "recorded": true})));
    let again = site.post(LIFTS, &json!({"scope": "sub", "name": "alice"})).await;
    assert_eq!((again.status, again.body), (200, json!({"sequence": 5, "recorded": false})));
    let nothing = site.post(LIFTS, &json!({"scope": "sub", "name": "bob"})).await;
    assert_eq!((nothing.status, nothing.body), (200, json!({"sequence": 5, "recorded": false})));
}

#[tokio::test]
async fn cutoffs_that_cannot_be_are_refused() {
    let site = Site::new().await;
    let cases = [
        (json!({}), "request-malformed", "missing field `scope`"),
        (json!({"scope": "planet"}), "request-malformed", "unknown variant `planet`"),
        (json!({"scope": "realm", "exp": 1}), "request-malformed", "unknown field `exp`"),
        (json!({"scope": "realm", "name": "x"}), "scope-name", "the whole realm has no name"),
        (json!({"scope": "sub"}), "scope-name", "its name is missing"),
        (json!({"scope": "kid", "name": ""}), "scope-length", "request 0 has a scope of 0 bytes"),
        (json!({"scope": "client", "name": "x".repeat(1_025)}), "scope-length", "request 0 has a scope of 1025"),
        (json!({"scope": "realm", "reason": "x".repeat(1_025)}), "reason-too-long", "request 0 has a reason"),
    ];
    for (body, kind, start) in cases {
        for path in [CUTOFFS, LIFTS] {
            let answer = site.post(path, &body).await;
            assert!(answer.problem(422, kind).starts_with(start), "{path} {body}: {}", answer.body);
        }
    }
    // Milliseconds: would revoke every token yet to be issued.
    let answer = site.post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW * 1_000})).await;
    assert!(answer.problem(422, "cutoff-ahead").starts_with("not_before 1800000000000 lies beyond"));
    site.post(LIFTS, &json!({"scope": "realm", "not_before": 1})).await.problem(422, "request-malformed");
    assert_eq!(site.head().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let site = Site::new().await;
    let request = site.request(Method::POST, REVOCATIONS).body(HttpBody::new(Never)).unwrap();
    site.send(request).await.problem(408, "request-timeout");
}

#[tokio::test]
async fn more_requests_than_slots_are_asked_to_come_back() {
    let site = Site::with(ApiLimits { concurrent_requests: 1, ..ApiLimits::default() }, |_| {});
    let stuck = site.request(Method::POST, "/v1/realms").body(HttpBody::new(Never)).unwrap();
    let stuck = tokio::spawn(site.router.clone().oneshot(stuck));
    // The spawned request runs up to its body, which holds the one slot.
    tokio::task::yield_now().await;
    let answer = site.get("/v1/realms").await;
    answer.problem(503, "overloaded");
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    assert_eq!(site.get("/healthz").await.status, 200);
    stuck.abort();
    let _ = stuck.await;
    assert_eq!(site.get("/v1/realms").await.status, 200);
}

/// A body in pieces, without a length.
struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl axum::body::HttpBody for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.next().map(|chunk| Ok(hyper::body::Frame::data(chunk.into()))))
    }
}

/// A body that begins, and then breaks or falls silent.
struct Torn(Option<Bytes>, bool);

impl axum::body::HttpBody for Torn {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(begin) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(begin)))),
            None if self.1 => std::task::Poll::Ready(Some(Err(std::io::Error::other("the cable was cut")))),
            None => std::task::Poll::Pending,
        }
    }
}

/// A body of which a line comes every ten seconds.
struct Slow {
    lines: std::collections::VecDeque<String>,
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl axum::body::HttpBody for Slow {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let pause = || Box::pin(tokio::time::sleep(Duration::from_secs(10)));
        let sleep = self.sleep.get_or_insert_with(pause);
        if sleep.as_mut().poll(context).is_pending() {
            return std::task::Poll::Pending;
        }
        self.sleep = None;
        std::task::Poll::Ready(self.lines.pop_front().map(|line| Ok(hyper::body::Frame::data(line.into()))))
    }
}

/// A body of which nothing ever comes.
struct Never;

impl axum::body::HttpBody for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

/// Takes in a report as if a device had sent it.
fn reports(site: &Site, device: &str, sequence: u64, refusals: u64) {
    let realm = RealmId::new("fleet").unwrap();
    let report = revocast_core::update::Report {
        term: revocast_core::Term(1),
        position: revocast_core::Position { epoch: revocast_core::Epoch(1), sequence: Sequence(sequence) },
        age: Some(Duration::from_secs(1)),
        profile: revocast_core::Profile::Exact as u8,
        memory_bytes: 4_096,
        refusals,
        last_refusal: (refusals > 0).then_some(9),
    };
    let body = revocast_core::wire::encode_report(&report).unwrap();
    let sealed = revocast_core::seal(revocast_core::Kind::Report, &realm, &body, &[]);
    site.lookout.take(&format!("revocast/fleet/devices/{device}/report"), &sealed, Standing::Claimed);
}

impl Site {
    async fn text(&self, path: &str) -> (axum::http::response::Parts, String) {
        let request = self.request(Method::GET, path).body(HttpBody::empty()).unwrap();
        let (head, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 16 << 20).await.unwrap();
        (head, String::from_utf8(bytes.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn the_fleet_is_what_devices_report() {
    let site = Site::new().await;
    let empty = site.get("/v1/realms/fleet/fleet").await;
    assert_eq!((empty.status, &empty.body["known"], &empty.body["head"]), (200, &json!(0), &json!(0)));
    assert_eq!(empty.body["current_share"], Value::Null, "of none there is no share");
    for jti in ["a", "b"] {
        let revoked = site.post("/v1/realms/fleet/revocations", &json!({"jti": jti, "exp": LATER})).await;
        assert_eq!(revoked.status, 201);
    }
    for (device, sequence) in [("one", 2), ("two", 2), ("three", 1)] {
        reports(&site, device, sequence, 0);
    }
    reports(&site, "three", 1, 5);
    let fleet = site.get("/v1/realms/fleet/fleet?at_least=1").await.body;
    assert_eq!((&fleet["online"], &fleet["current"], &fleet["reached"]), (&json!(3), &json!(2), &json!(3)));
    assert_eq!(
        fleet["refusing"],
        json!([{
            "device": "three", "silent_seconds": 0, "term": 1, "epoch": 1, "sequence": 1, "age_seconds": 1,
            "refusals": 5, "rise": 5, "repeated": false, "refusal": "rollback",
        }])
    );
    assert_eq!(fleet["heard"]["reports"], 4);
    assert_eq!(site.get("/v1/realms/fleet/fleet").await.body["reached"], 2, "the head is meant");
    assert_eq!(site.get("/v1/realms/other/fleet").await.status, 404);
    for query in ["at_least=x", "at_least=-1", "share=1"] {
        assert_eq!(site.get(&format!("/v1/realms/fleet/fleet?{query}")).await.status, 422, "{query}");
    }
}

#[tokio::test]
async fn the_documented_metrics_are_those_that_are_served() {
    let site = Site::new().await;
    let revoked = site.post("/v1/realms/fleet/revocations", &json!({"jti": "a", "exp": LATER})).await;
    assert_eq!(revoked.status, 201);
    reports(&site, "one", 0, 0);
    reports(&site, "one", 1, 3);
    let realm = RealmId::new("fleet").unwrap();
    site.published.send_modify(|realms| {
        let filter = crate::publisher::FilterHealth { fill: 0.5, rate: 0.011, meant: Some(0.01) };
        let published = crate::service::Published { revocations: 1, filter: Some(filter), ..Default::default() };
        realms.insert(realm, published);
    });
    site.metrics.published(realm, crate::metrics::StepKind::retain, 10);
    site.metrics.publication_failed(realm);
    site.metrics.bridge_heard(crate::metrics::BridgeOutcome::recorded, 1);
    site.metrics.hook_answered(crate::metrics::HookQuestion::connect, "allow");
    site.metrics.session_ended(crate::metrics::SessionOutcome::ended);
    let (head, text) = site.text("/metrics").await;
    assert_eq!(head.status, 200);
    assert!(head.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut served = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            assert!(served.insert(name, kind.to_owned()).is_none(), "{line}: twice");
        } else if !line.starts_with('#') {
            // name{labels} value
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = name.split('{').next().unwrap();
            let known = served.keys().any(|known| {
                name.strip_prefix(known.as_str()).is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
            });
            assert!(known, "{line}");
        }
    }
    let documented = include_str!("../../../../docs/metrics.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.trim().to_owned()))
    });
    assert_eq!(served, documented.collect());
    for sample in [
        "revocast_entries_total{realm=\"fleet\",kind=\"revoke\"} 1",
        "revocast_device_apply_seconds_count{realm=\"fleet\"} 1",
        "revocast_device_refusals_total{realm=\"fleet\",refusal=\"rollback\"} 3",
        "revocast_devices_current{realm=\"fleet\"} 1.0",
        "revocast_http_requests_total{method=\"POST\",route=\"/v1/realms/{realm}/revocations\",status=\"201\"} 1",
    ] {
        assert!(text.contains(sample), "{sample} is not in\n{text}");
    }
}

#[tokio::test]
async fn refused_credentials_are_counted_and_metrics_need_some() {
    let mut site = Site::new().await;
    let good = std::mem::replace(&mut site.token, "wrong".to_owned());
    assert_eq!(site.get("/metrics").await.status, 401);
    assert_eq!(site.get("/v1/status").await.status, 401);
    site.token = good;
    assert!(site.text("/metrics").await.1.contains("revocast_credentials_refused_total 2\n"));
}

#[tokio::test]
async fn the_page_comes_from_here_alone_and_loads_nothing_from_elsewhere() {
    let site = Site::empty();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/ui/style.css", "text/css; charset=utf-8"),
        ("/ui/page.js", "text/javascript; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ] {
        let (head, text) = site.text(path).await;
        assert_eq!((head.status.as_u16(), head.headers[header::CONTENT_TYPE].to_str().unwrap()), (200, kind));
        let policy = head.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(head.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let elsewhere = text.replace("http://www.w3.org/", "");
        assert!(!elsewhere.contains("://"), "{path} names another host");
        for sign in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", " onclick="]
        {
            assert!(!text.contains(sign), "{path} has {sign}");
        }
    }
}
