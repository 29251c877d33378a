//! What an agent answers about tokens: for programs in other languages, and for proxies that ask before they let a
//! request through.
//!
//! Every path makes the same check as a [`Validator`] in the process would, by way of the same
//! [`RevocastLayer`] that a Rust service would use. Nothing is kept of an answer: the next request is asked about
//! again, since a token may be revoked in between.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::FormRejection;
use axum::extract::{Form, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use revocast_device::{
    Asker, Call, Checker, LiveKeys, NotAdmitted, Policy, Presented, Proofs, RevocastLayer, SystemClock, Token,
    Validator, ValidatorConfig,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::agent::Problem;
use crate::verify::Judged;

/// Paths that Envoy puts in front of the one that is asked for.
const ENVOY_PREFIX: &str = "/authz";

/// Claims that an introspection repeats (RFC 7662 section 2.2). Others may be private.
const INTROSPECTED: [&str; 10] = ["scope", "client_id", "username", "exp", "iat", "nbf", "sub", "aud", "iss", "jti"];

/// What tokens must meet, apart from the issuer, which the realm's keys name.
pub struct Rules {
    pub keys: LiveKeys,
    pub audiences: Vec<String>,
    pub token_type: Option<String>,
    pub leeway: u32,
    pub lifetime_max: Duration,
    /// Where callers reach what this agent answers for: proofs name it.
    pub origin: Option<String>,
}

/// Judges tokens, once it is known whose they must be.
pub struct Sidecar {
    checker: Checker,
    asker: Option<Asker>,
    rules: Option<Rules>,
    proofs: Arc<Proofs>,
    ready: OnceLock<Ready>,
}

/// Both ways to the same check.
struct Ready {
    validator: Validator<Checker>,
    layer: RevocastLayer<Checker>,
}

impl Sidecar {
    pub fn new(checker: Checker, asker: Option<Asker>, rules: Option<Rules>) -> Self {
        let proofs = Arc::new(Proofs::new(SystemClock::now()));
        Self { checker, asker, rules, proofs, ready: OnceLock::new() }
    }

    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/verify", post(verify))
            .route("/introspect", post(introspect))
            .route("/auth", get(auth))
            .route(ENVOY_PREFIX, any(authz))
            .route(&format!("{ENVOY_PREFIX}/"), any(authz))
            .route(&format!("{ENVOY_PREFIX}/{{*path}}"), any(authz))
            .with_state(self)
    }

    /// The check, once the realm's keys have told the issuer.
    fn ready(&self) -> Result<&Ready, Problem> {
        let Some(rules) = &self.rules else {
            let detail = "start the agent with --audience".to_owned();
            return Err(Problem(StatusCode::NOT_IMPLEMENTED, "no-audience", detail));
        };
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let Some(issuer) = self.checker.issuer() else {
            let detail = "the realm's keys have not arrived yet".to_owned();
            return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "no-state", detail));
        };
        let mut config = ValidatorConfig::new(&*issuer, rules.audiences.clone(), rules.keys.clone())
            .with_leeway_secs(rules.leeway)
            .with_lifetime_max(rules.lifetime_max);
        if let Some(token_type) = &rules.token_type {
            config = config.with_type(token_type);
        }
        let validator = Validator::new(config, self.checker.clone(), Policy::strict())
            .map_err(|error| Problem(StatusCode::INTERNAL_SERVER_ERROR, "bad-rules", error.to_string()))?;
        let mut layer = RevocastLayer::new(validator.clone());
        if let Some(asker) = &self.asker {
            layer = layer.with_asker(asker.clone());
        }
        if let Some(origin) = &rules.origin {
            layer = layer.with_proofs(Arc::clone(&self.proofs), origin);
        }
        Ok(self.ready.get_or_init(|| Ready { validator, layer }))
    }

    async fn judge(&self, presented: Presented<'_>) -> Result<Result<Token, revocast_device::Rejected>, Problem> {
        let validator = &self.ready()?.validator;
        Ok(match &self.asker {
            // Of no class in particular: the strict policy.
            Some(asker) => asker.verify_or_ask(validator, &SystemClock, "", presented).await,
            None => validator.verify(SystemClock::now(), presented),
        })
    }
}

/// `POST /verify`: the token is the body, and the answer says what is known of it. With a proof in the header `DPoP`,
/// for the call that `X-Original-Method` and `X-Original-URI` name, a bound token is good too.
async fn verify(
    State(sidecar): State<Arc<Sidecar>>,
    headers: HeaderMap,
    token: String,
) -> Result<Json<Value>, Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = sidecar.rules.as_ref().and_then(|rules| rules.origin.as_deref());
    let called = original(&headers).map(|(method, uri)| (method, uri.path().to_owned()));
    let uri = origin.zip(called.as_ref()).map(|(origin, (_, path))| format!("{}{path}", origin.trim_end_matches('/')));
    let token = token.trim();
    let presented = match (text("dpop"), &called, &uri) {
        (Some(proof), Some((method, _)), Some(uri)) => {
            Presented::proven(token, proof, Call::Http { method: method.as_str(), uri }, &sidecar.proofs)
        }
        _ => token.into(),
    };
    let outcome = sidecar.judge(presented).await?;
    Ok(Json(json!(Judged::of(&outcome))))
}

/// The form of RFC 7662 section 2.1; a hint about the type of the token helps nobody here.
#[derive(Deserialize)]
struct Introspected {
    token: String,
}

/// `POST /introspect`: RFC 7662. A token that is bound to a key is active, and the answer names the key (`cnf`): whoever
/// asks checks the proof (RFC 9449 section 6.2).
async fn introspect(
    State(sidecar): State<Arc<Sidecar>>,
    form: Result<Form<Introspected>, FormRejection>,
) -> Result<Response, Problem> {
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    let Ok(Form(Introspected { token })) = form else {
        let told =
            json!({ "error": "invalid_request", "error_description": "a form with one parameter token is needed" });
        return Ok((StatusCode::BAD_REQUEST, no_store, Json(told)).into_response());
    };
    let outcome = sidecar.judge(Presented::held(token.trim())).await?;
    let told = match outcome {
        // Nothing more: whoever guesses tokens learns nothing (section 2.2).
        Err(_) => json!({ "active": false }),
        Ok(token) => active(&token),
    };
    Ok((no_store, Json(told)).into_response())
}

fn active(token: &Token) -> Value {
    // The validator has read it as an object.
    let claims: Map<String, Value> = serde_json::from_slice(token.payload()).unwrap_or_default();
    let mut told: Map<String, Value> =
        claims.into_iter().filter(|(name, _)| INTROSPECTED.contains(&&**name) || name == "cnf").collect();
    told.insert("active".into(), true.into());
    told.insert("token_type".into(), if token.bound_to().is_some() { "DPoP" } else { "Bearer" }.into());
    Value::Object(told)
}

/// Scopes that a proxy wants, in the query of the path that it asks.
#[derive(Default, Deserialize)]
struct Wanted {
    scope: Option<String>,
}

/// `GET /auth`: what nginx's `auth_request` asks, with the headers of the request that it is about. 204, 401 or 403; nginx
/// takes anything else for a failure, and refuses.
async fn auth(
    State(sidecar): State<Arc<Sidecar>>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (method, uri) = original(&headers).unwrap_or_default();
    let answer = admit(&sidecar, method, uri, headers, wanted.scope.as_deref(), StatusCode::NO_CONTENT).await?;
    Ok(answer.unwrap_or_else(|(refused, mut answer)| {
        if answer.status() == StatusCode::BAD_REQUEST {
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
        }
        with_reason(answer, &refused)
    }))
}

/// Any method, any path below `/authz`: what Envoy's `ext_authz` filter asks over HTTP, in the form of the request that it
/// is about. 200 lets it through; every other answer goes to the caller as it is.
async fn authz(State(sidecar): State<Arc<Sidecar>>, request: Request) -> Result<Response, Problem> {
    let (Parts { method, uri, headers, .. }, _) = request.into_parts();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = path.strip_prefix(ENVOY_PREFIX).filter(|path| path.starts_with('/')).unwrap_or("/");
    let uri = path.parse().unwrap_or_default();
    let answer = admit(&sidecar, method, uri, headers, None, StatusCode::OK).await?;
    Ok(answer.unwrap_or_else(|(refused, answer)| with_reason(answer, &refused)))
}

/// Judges a request as a service behind the layer would.
async fn admit(
    sidecar: &Sidecar,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    scope: Option<&str>,
    good: StatusCode,
) -> Result<Result<Response, (NotAdmitted, Response)>, Problem> {
    let mut layer = sidecar.ready()?.layer.clone();
    for scope in scope.into_iter().flat_map(|scopes| scopes.split(' ')).filter(|scope| !scope.is_empty()) {
        layer = layer.with_scope(scope);
    }
    let (mut parts, ()) = axum::http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (method, uri, headers);
    Ok(match layer.admit(&parts).await {
        Ok(token) => Ok(told_of(&token, good)),
        Err(refused) => {
            let answer = layer.answer::<Body>(&refused);
            Err((refused, answer))
        }
    })
}

/// The request that a proxy asks about: `X-Original-Method` and `X-Original-URI`.
fn original(headers: &HeaderMap) -> Option<(Method, Uri)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let method = text("x-original-method")?.parse().ok()?;
    Some((method, text("x-original-uri")?.parse().ok()?))
}

/// What a service behind a proxy may want to know of the token.
fn told_of(token: &Token, status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut tell = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::try_from(printable(text)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    tell("x-revocast-jti", token.jti());
    tell("x-revocast-subject", token.subject().unwrap_or_default());
    tell("x-revocast-client", token.client().unwrap_or_default());
    tell("x-revocast-expires", &token.expires_at().secs().to_string());
    response
}

/// Percent-encodes what is no visible ASCII: whatever an issuer writes into a claim, it stays one value of one header.
fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            printed.push(char::from(byte));
        } else {
            // Writing to a string never fails.
            let _ = write!(printed, "%{byte:02X}");
        }
    }
    printed
}

fn with_reason(mut answer: Response, refused: &NotAdmitted) -> Response {
    let name = HeaderName::from_static("x-revocast-reason");
    answer.headers_mut().insert(name, HeaderValue::from_static(refused.reason()));
    answer
}
