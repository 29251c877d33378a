//! The HTTP API: requests in, JSON out, every refusal a problem document (RFC 9457).
//!
//! HTTP and JSON types stay in here. What is done is decided in [`service`](crate::service).
//!
//! | method and path | does |
//! | --- | --- |
//! | `GET /healthz` | 200 while the server serves; needs no credentials |
//! | `GET /readyz` | 200 while entries can be recorded and travel, else 503; needs no credentials |
//! | `GET /v1/status` | realms, heads, what is published, the broker |
//! | `GET /v1/realms` | every realm |
//! | `POST /v1/realms` | founds a realm |
//! | `POST /v1/realms/{realm}/revocations` | revokes one token |
//! | `POST /v1/realms/{realm}/revocations/batch` | revokes up to 10,000 tokens, all or none |
//! | `POST /v1/realms/{realm}/reinstatements` | undoes a revoke |
//! | `POST /v1/realms/{realm}/cutoffs` | revokes every token in a scope issued before a time |
//! | `POST /v1/realms/{realm}/lifts` | ends a cutoff |
//! | `POST /v1/realms/{realm}/issued` | registers issued tokens, one JSON object a line, any number of them |
//! | `GET /v1/realms/{realm}/coverage` | how many tokens are registered, and up to when that is all of them |
//! | `PUT /v1/realms/{realm}/coverage` | records that all tokens issued before a time are registered |
//! | `GET /v1/realms/{realm}/jti?count=N` | `jti`s for new tokens, which no filter in force flags |

mod listener;
pub(crate) use listener::serve;

mod problem;

mod cutoffs;

mod issued;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use revocast_core::limits::{BATCH_REQUESTS_MAX, BODY_BYTES_MAX};
use revocast_core::{FingerprintFunction, RealmId, UnixTime, Width};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use self::problem::Problem;
use crate::broker::LinkState;
use crate::config::ApiLimits;
use crate::ledger::{LEEWAY_DEFAULT, MAX_TOKEN_LIFETIME_DEFAULT, Realm, Receipt};
use crate::service::{NewRealm, Published, RealmStatus, Revocation, Service};

/// Whom the ledger names as the actor: there is one credential so far.
const ACTOR: &str = "admin";

/// The routes over a service.
pub fn router(service: Arc<Service>, limits: ApiLimits) -> Router {
    let slots = Arc::new(Semaphore::new(limits.concurrent_requests));
    let protected = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/realms", get(realms).post(create_realm))
        .route("/v1/realms/{realm}/revocations", post(revoke))
        .route("/v1/realms/{realm}/revocations/batch", post(revoke_batch))
        .route("/v1/realms/{realm}/reinstatements", post(reinstate))
        .route("/v1/realms/{realm}/cutoffs", post(cutoffs::cut_off))
        .route("/v1/realms/{realm}/lifts", post(cutoffs::lift))
        .route("/v1/realms/{realm}/coverage", get(issued::coverage).put(issued::cover))
        .route("/v1/realms/{realm}/jti", get(issued::jtis));
    // A report takes as long as it takes; only between two pieces of it the clock runs.
    let idle = limits.request_timeout;
    let register = post(async move |service, realm, request| issued::register(service, realm, request, idle).await);
    let streamed = Router::new().route("/v1/realms/{realm}/issued", register);
    let admitted = |router: Router<Arc<Service>>| {
        router
            .route_layer(middleware::from_fn_with_state(Arc::clone(&service), authenticate))
            // Health is not counted: it must answer under load.
            .route_layer(middleware::from_fn_with_state(Arc::clone(&slots), limit_concurrency))
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(admitted(protected))
        .layer(middleware::from_fn_with_state(idle, limit_time))
        .merge(admitted(streamed))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "path-unknown", "no such path"))
        .method_not_allowed_fallback(async || {
            let title = "the method is not allowed here";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CatchPanicLayer::custom(|_| {
            let title = "the server made a mistake";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title).into_response()
        }))
        .with_state(service)
}

async fn healthz() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "healthy": true }))
}

async fn readyz(State(service): State<Arc<Service>>) -> Result<Json<serde_json::Value>, Problem> {
    match service.unready() {
        None => Ok(Json(serde_json::json!({ "ready": true }))),
        Some(why) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "the server is not ready").detail(why))
        }
    }
}

#[derive(Serialize)]
struct StatusBody {
    version: &'static str,
    ledger: LedgerBody,
    broker: BrokerBody,
    realms: Vec<RealmStatusBody>,
}

#[derive(Serialize)]
struct LedgerBody {
    writable: bool,
}

#[derive(Serialize)]
struct BrokerBody {
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

#[derive(Serialize)]
struct RealmStatusBody {
    #[serde(flatten)]
    realm: RealmBody,
    term: u32,
    head: u64,
    #[serde(flatten)]
    coverage: issued::CoverageBody,
    published: Option<PublishedBody>,
}

#[derive(Serialize)]
struct PublishedBody {
    term: u32,
    epoch: u64,
    sequence: u64,
    issued_at_ms: u64,
    objects: usize,
    revocations: u64,
    snapshot_bytes: u64,
    filter_bytes: u64,
    ladder_bytes: u64,
    exceptions_bytes: u64,
    delta_bytes: u64,
    questions_answered: u64,
    questions_dropped: u64,
    /// Why the newest epoch has the filter it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl From<RealmStatus> for RealmStatusBody {
    fn from(status: RealmStatus) -> Self {
        let published = status.published.map(
            |Published { term, position, at, objects, revocations, sizes, choice, trouble, questions }| PublishedBody {
                term: term.0,
                epoch: position.epoch.0,
                sequence: position.sequence.0,
                issued_at_ms: at.millis(),
                objects,
                revocations,
                snapshot_bytes: sizes.snapshot,
                filter_bytes: sizes.filter,
                ladder_bytes: sizes.ladder,
                exceptions_bytes: sizes.exceptions,
                delta_bytes: sizes.delta,
                questions_answered: questions.answered,
                questions_dropped: questions.dropped,
                filter: choice.map(|choice| choice.to_string()),
                trouble,
            },
        );
        let (term, head, coverage) = (status.term.0, status.head.0, status.coverage.into());
        Self { realm: status.realm.into(), term, head, coverage, published }
    }
}

async fn status(State(service): State<Arc<Service>>) -> Result<Json<StatusBody>, Problem> {
    let status = service.status().await?;
    let broker = match status.broker {
        LinkState::Connecting => BrokerBody { connected: false, connection: None, trouble: None },
        LinkState::Up { connection } => BrokerBody { connected: true, connection: Some(connection), trouble: None },
        LinkState::Down { cause } => BrokerBody { connected: false, connection: None, trouble: Some(cause) },
    };
    Ok(Json(StatusBody {
        version: env!("CARGO_PKG_VERSION"),
        ledger: LedgerBody { writable: status.ledger_writable },
        broker,
        realms: status.realms.into_iter().map(RealmStatusBody::from).collect(),
    }))
}

/// A realm as it is shown: all but its fingerprint key, which is for devices alone.
#[derive(Serialize)]
struct RealmBody {
    name: String,
    issuer: String,
    fingerprint: FingerprintName,
    width: u32,
    leeway: u64,
    max_token_lifetime: u64,
    created: u64,
}

impl From<Realm> for RealmBody {
    fn from(realm: Realm) -> Self {
        Self {
            name: realm.id.to_string(),
            issuer: realm.issuer,
            fingerprint: match realm.fingerprinter.function() {
                FingerprintFunction::Xxh3 => FingerprintName::Xxh3,
                FingerprintFunction::Sha256 => FingerprintName::Sha256,
            },
            width: realm.fingerprinter.width().bits(),
            leeway: realm.leeway.as_secs(),
            max_token_lifetime: realm.max_token_lifetime.as_secs(),
            created: realm.created.secs(),
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FingerprintName {
    Xxh3,
    Sha256,
}

#[derive(Serialize)]
struct RealmsBody {
    realms: Vec<RealmBody>,
}

async fn realms(State(service): State<Arc<Service>>) -> Result<Json<RealmsBody>, Problem> {
    let realms = service.realms().await?;
    Ok(Json(RealmsBody { realms: realms.into_iter().map(RealmBody::from).collect() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRealmBody {
    name: String,
    issuer: String,
    fingerprint: Option<FingerprintName>,
    width: Option<u8>,
    leeway: Option<u64>,
    max_token_lifetime: Option<u64>,
}

async fn create_realm(
    State(service): State<Arc<Service>>,
    Body(body): Body<NewRealmBody>,
) -> Result<(StatusCode, Json<RealmBody>), Problem> {
    let refused = |kind, title, detail: String| Err(Problem::new(UNPROCESSABLE, kind, title).detail(detail));
    let id = match RealmId::new(&body.name) {
        Ok(id) => id,
        Err(error) => return refused("realm-name", "the name of the realm cannot be used", error.to_string()),
    };
    let Some(width) = body.width.map_or(Some(Width::W48), Width::from_bits) else {
        return refused("width", "the width cannot be used", "a width is 40, 48 or 64".into());
    };
    let new = NewRealm {
        id,
        issuer: body.issuer,
        fingerprint: match body.fingerprint {
            Some(FingerprintName::Xxh3) => FingerprintFunction::Xxh3,
            Some(FingerprintName::Sha256) | None => FingerprintFunction::Sha256,
        },
        width,
        leeway: body.leeway.map_or(LEEWAY_DEFAULT, Duration::from_secs),
        max_token_lifetime: body.max_token_lifetime.map_or(MAX_TOKEN_LIFETIME_DEFAULT, Duration::from_secs),
    };
    let founding = service.create_realm(new).await?;
    Ok((created(founding.created), Json(founding.realm.into())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationBody {
    jti: String,
    exp: u64,
    reason: Option<String>,
}

impl From<RevocationBody> for Revocation {
    fn from(body: RevocationBody) -> Self {
        Self { jti: body.jti, exp: UnixTime::from_secs(body.exp), reason: body.reason }
    }
}

#[derive(Serialize)]
struct ReceiptBody {
    sequence: u64,
    exp: Option<u64>,
    recorded: bool,
}

impl From<Receipt> for ReceiptBody {
    fn from(receipt: Receipt) -> Self {
        Self { sequence: receipt.sequence.0, exp: receipt.exp.map(UnixTime::secs), recorded: receipt.recorded }
    }
}

async fn revoke(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<RevocationBody>,
) -> Result<(StatusCode, Json<ReceiptBody>), Problem> {
    let receipts = service.revoke(realm, vec![body.into()], ACTOR).await?;
    let receipt = receipts.first().copied().ok_or_else(Problem::no_receipt)?;
    Ok((created(receipt.recorded), Json(receipt.into())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    revocations: Vec<RevocationBody>,
}

#[derive(Serialize)]
struct ReceiptsBody {
    recorded: usize,
    receipts: Vec<ReceiptBody>,
}

async fn revoke_batch(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<BatchBody>,
) -> Result<(StatusCode, Json<ReceiptsBody>), Problem> {
    let revocations: Vec<Revocation> = body.revocations.into_iter().map(Revocation::from).collect();
    let receipts = service.revoke(realm, revocations, ACTOR).await?;
    let recorded = receipts.iter().filter(|receipt| receipt.recorded).count();
    let receipts = receipts.into_iter().map(ReceiptBody::from).collect();
    Ok((created(recorded > 0), Json(ReceiptsBody { recorded, receipts })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReinstatementBody {
    jti: String,
    reason: Option<String>,
}

async fn reinstate(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<ReinstatementBody>,
) -> Result<(StatusCode, Json<ReceiptBody>), Problem> {
    let receipt = service.reinstate(realm, body.jti, body.reason, ACTOR).await?;
    Ok((created(receipt.recorded), Json(receipt.into())))
}

const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

const fn created(new: bool) -> StatusCode {
    if new { StatusCode::CREATED } else { StatusCode::OK }
}

async fn authenticate(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let offered = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    // The scheme's name is case-insensitive (RFC 9110 section 11.1).
    let token = offered
        .and_then(|value| value.split_at_checked(7))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token));
    let (kind, title, challenge) = match token {
        Some(token) if service.keys().admin().matches(token) => return next.run(request).await,
        Some(_) => (
            "credentials-wrong",
            "the bearer token is not that of this server",
            r#"Bearer realm="revocast", error="invalid_token""#,
        ),
        None => ("credentials-missing", "a bearer token is required", r#"Bearer realm="revocast""#),
    };
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, kind, title).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

async fn limit_concurrency(State(slots): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match slots.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_) => Problem::overloaded("all request slots are taken").into_response(),
    }
}

async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        // Whether an entry was recorded is not known; every request may be repeated.
        Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "the request took too long")
            .detail(format!("requests end after {} s; repeat it", limit.as_secs()))
            .into_response(),
    }
}

/// The realm named in the path.
struct RealmPath(RealmId);

impl<S: Send + Sync> FromRequestParts<S> for RealmPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let unknown =
            |detail: String| Problem::new(StatusCode::NOT_FOUND, "realm-unknown", "no such realm").detail(detail);
        let Path(name) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|error| unknown(error.body_text()))?;
        RealmId::new(&name).map(Self).map_err(|error| unknown(error.to_string()))
    }
}

/// A JSON body, read strictly.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        require_type(&request, "application/json")?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| unreadable(&rejection))?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| malformed(&error))
    }
}

/// Refuses a body of another type than `wanted`.
fn require_type(request: &Request, wanted: &'static str) -> Result<(), Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).map_or("", str::trim);
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", "the body is of another type");
    Err(problem.detail(match content_type {
        Some(found) => format!("it must be {wanted}, and the content type is {found:?}"),
        None => format!("it must be {wanted}, and there is no content type"),
    }))
}

fn unreadable(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large").detail(format!(
            "a body has at most {BODY_BYTES_MAX} bytes; a batch at most {BATCH_REQUESTS_MAX} entries"
        ));
    }
    Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "the body ended early").detail(rejection.body_text())
}

fn malformed(error: &serde_json::Error) -> Problem {
    let (status, kind, title) = match error.classify() {
        serde_json::error::Category::Data => {
            (UNPROCESSABLE, "request-malformed", "the JSON is not what this request takes")
        }
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            (StatusCode::BAD_REQUEST, "json-malformed", "the body is not JSON")
        }
    };
    Problem::new(status, kind, title).detail(error.to_string())
}

#[cfg(test)]
mod tests;
