//! Token revocation (RFC 7009) and introspection (RFC 7662), for clients that speak those and nothing else.
//!
//! Requests are forms and errors have the shape of RFC 6749 section 5.2, so this room answers for itself: the client
//! authenticates by HTTP Basic, by `client_id` and `client_secret` in the body, or with a bearer token; in each case with a
//! credential of this server.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Form, FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use revocast_core::RealmId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::{Caller, Denied, admit, basic, bearer};
use super::extract::{RealmParameter, RealmPath, require_type};
use super::problem::{Problem, whole_seconds};
use crate::credentials::{Gate, Offer, Role};
use crate::judge::{Shown, honored};
use crate::ledger::{Expiry, LedgerError, Realm};
use crate::service::{Service, ServiceError};
use crate::tokens::{Audience, Date, Issuers, Token};

/// Parameters of one form; there are four that mean something.
const PARAMETERS_MAX: usize = 32;

pub(super) fn routes(gate: &Arc<Gate>) -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(revoke))
        .routes(routes!(revoke_alias))
        .routes(routes!(introspect))
        .routes(routes!(token))
        .layer(Extension(Arc::clone(gate)))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described; the form is read parameter by parameter")]
struct TokenForm {
    /// The token itself: a JWT, or to be revoked also a refresh token of this server.
    token: String,
    /// Passed over: a token tells what it is.
    token_type_hint: Option<String>,
    /// Name of a credential, if it stands neither in the header nor in a bearer token.
    client_id: Option<String>,
    /// Its secret.
    client_secret: Option<String>,
}

/// An error (RFC 6749 section 5.2).
#[derive(Debug, Serialize, ToSchema)]
struct OAuthError {
    /// Which.
    error: &'static str,
    /// What happened.
    error_description: String,
}

#[derive(Debug)]
struct Refused {
    status: StatusCode,
    body: OAuthError,
    retry: Option<std::time::Duration>,
}

impl Refused {
    fn new(status: StatusCode, error: &'static str, description: impl Into<String>) -> Self {
        Self { status, body: OAuthError { error, error_description: description.into() }, retry: None }
    }

    fn request(description: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", description)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let (status, retry) = problem.status_and_retry();
        let error = match status {
            StatusCode::UNAUTHORIZED => "invalid_client",
            StatusCode::FORBIDDEN => "unauthorized_client",
            // RFC 7009 section 2.2.1: the client must assume that the token still exists.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "temporarily_unavailable",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request",
        };
        Self { retry, ..Self::new(status, error, problem.text()) }
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Missing => Self::new(StatusCode::UNAUTHORIZED, "invalid_client", "the client did not authenticate"),
            Denied::Wrong => Self::new(StatusCode::UNAUTHORIZED, "invalid_client", "no client of this server"),
            other => Problem::from(other).into(),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let unauthorized = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-store")], Json(self.body)).into_response();
        let headers = response.headers_mut();
        if unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="revocast""#));
        }
        if let Some(after) = self.retry {
            headers.insert(header::RETRY_AFTER, whole_seconds(after));
        }
        response
    }
}

/// A form whose client may ask, and the realm it asks about.
struct Asked {
    caller: Caller,
    realm: Realm,
    token: String,
}

async fn ask(
    service: &Service,
    gate: &Arc<Gate>,
    realm: Result<RealmPath, Problem>,
    roles: &[Role],
    request: Request,
) -> Result<Asked, Refused> {
    let RealmPath(realm) = realm?;
    let headers = request.headers().clone();
    let form = read_form(request).await?;
    let caller = authenticate(gate, &headers, &form, roles, Some(realm))?;
    let token = form.get("token").filter(|token| !token.is_empty()).cloned();
    let token = token.ok_or_else(|| Refused::request("the parameter token is missing"))?;
    let realm = service.realm(realm).await.map_err(Problem::from)?;
    Ok(Asked { caller, realm, token })
}

async fn read_form(request: Request) -> Result<BTreeMap<String, String>, Refused> {
    require_type(&request, "application/x-www-form-urlencoded")?;
    let Form(pairs) = Form::<Vec<(String, String)>>::from_request(request, &())
        .await
        .map_err(|rejection| Refused { status: rejection.status(), ..Refused::request(rejection.body_text()) })?;
    once(pairs)
}

/// Parameters stand once (RFC 6749 section 3.2).
fn once(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Refused> {
    if pairs.len() > PARAMETERS_MAX {
        return Err(Refused::request(format!("{} parameters, more than {PARAMETERS_MAX}", pairs.len())));
    }
    let mut form = BTreeMap::new();
    for (name, value) in pairs {
        if let Some(before) = form.insert(name, value) {
            drop(before);
            return Err(Refused::request("a parameter stands twice"));
        }
    }
    Ok(form)
}

/// One way of authenticating, and only one (RFC 6749 section 2.3).
fn authenticate(
    gate: &Arc<Gate>,
    headers: &HeaderMap,
    form: &BTreeMap<String, String>,
    roles: &[Role],
    realm: Option<RealmId>,
) -> Result<Caller, Refused> {
    let realm = realm.map(|realm| realm.to_string());
    let admit = |offer: Option<Offer<'_>>| admit(gate, offer, roles, realm.as_deref()).map_err(Refused::from);
    let in_body = form.get("client_secret");
    if in_body.is_some() && headers.contains_key(header::AUTHORIZATION) {
        return Err(Refused::request("the client authenticates in two ways; choose one"));
    }
    if let Some(secret) = in_body {
        let name = form.get("client_id").map_or("", String::as_str);
        return admit(Some(Offer::Named { name, secret: secret.as_bytes() }));
    }
    if let Some(secret) = bearer(headers) {
        return admit(Some(Offer::Secret(secret)));
    }
    let named = basic(headers);
    admit(named.as_ref().map(|(name, secret)| Offer::Named { name, secret: secret.as_bytes() }))
}

/// What a token must say to be revoked.
#[derive(Deserialize)]
struct Named {
    jti: Option<String>,
    exp: Option<Date>,
    iss: Option<String>,
    client_id: Option<String>,
    azp: Option<String>,
}

/// Revokes the token that is shown (RFC 7009).
///
/// What is no token, or is expired, is answered with 200: nothing is left to revoke. A token whose signature
/// verifies vouches for its own `exp`; of any other the `exp` is raised to the longest lifetime of the realm. One of
/// another issuer, or without `jti` or `exp`, is refused, since its client would think it revoked. A refresh token
/// takes with it all tokens that came of it, and those it came of. A revoker ends any of them, a client its own.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/oauth/revoke", tag = "oauth",
    security(("basic" = ["revoker", "client"]), ("bearer" = ["revoker", "client"])),
    params(RealmParameter),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "Not honored any more, if it ever was."),
        (status = 400, body = OAuthError, description = "`invalid_request`, `invalid_grant` or `unsupported_token_type`."),
        (status = 401, body = OAuthError, description = "`invalid_client`."),
        (status = 403, body = OAuthError, description = "`unauthorized_client`: the role or the realm."),
        (status = 404, body = OAuthError, description = "No such realm."),
        (status = 413, body = OAuthError, description = "The body is too large."),
        (status = 415, body = OAuthError, description = "The body is no form."),
        (status = 422, body = OAuthError, description = "The `jti` cannot be one."),
        (status = 429, body = OAuthError, description = "Too often; come back after `Retry-After`."),
        (status = 503, description = "Not now; the client must assume that the token is honored."),
        (status = 507, body = OAuthError, description = "No room is left; nothing was recorded."),
    )
)]
async fn revoke(
    State(service): State<Arc<Service>>,
    Extension(gate): Extension<Arc<Gate>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    realm: Result<RealmPath, Problem>,
    request: Request,
) -> Result<Response, Refused> {
    let Asked { caller, realm, token } = ask(&service, &gate, realm, &[Role::Revoker, Role::Client], request).await?;
    let done = || (StatusCode::OK, [(header::CACHE_CONTROL, "no-store")]).into_response();
    let refused = |error, what| Refused::new(StatusCode::BAD_REQUEST, error, what);
    let reason = Some("token revocation (RFC 7009)".to_owned());
    let may_revoke = |client: Option<&str>| {
        let may = caller.is(Role::Revoker) || client == Some(caller.name());
        if may { Ok(()) } else { Err(refused("invalid_grant", "no token of this client")) }
    };
    if let Ok((of, client)) = service.read_refresh(&token) {
        if of != realm.id {
            return Err(Refused::request("the refresh token is of another realm"));
        }
        may_revoke(Some(&client))?;
        caller.charge(1)?;
        service.withdraw(realm.id, &token, reason, caller.name()).await.map_err(Problem::from)?;
        return Ok(done());
    }
    let Ok(token) = Token::parse(&token) else {
        return Ok(done());
    };
    let unsupported = |what| refused("unsupported_token_type", what);
    let Ok(Named { jti, exp, iss, client_id, azp }) = token.claims::<Named>() else {
        return Err(unsupported("its jti, exp and iss cannot be read"));
    };
    if iss.is_some_and(|iss| iss != realm.issuer) {
        return Err(Refused::request("the token is of another issuer than this realm"));
    }
    let (Some(jti), Some(Date(exp))) = (jti, exp) else {
        return Err(unsupported("a token without jti and exp cannot be revoked; end it by a cutoff"));
    };
    if exp <= realm.horizon(service.now()) {
        return Ok(done());
    }
    let keys = issuers.keys(&realm, service.now()).map_err(Problem::from)?;
    let genuine = token.is_signed_by(&keys);
    // Of a forged one the claims say nothing about whose it is.
    may_revoke(client_id.as_deref().or(azp.as_deref()).filter(|_| genuine))?;
    let exp = if genuine { Expiry::Vouched(exp) } else { Expiry::Claimed(exp) };
    caller.charge(1)?;
    service.revoke_shown(realm.id, jti, exp, reason, caller.name()).await.map_err(Problem::from)?;
    Ok(done())
}

/// The same at a shorter path.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/revoke", tag = "oauth",
    security(("basic" = ["revoker", "client"]), ("bearer" = ["revoker", "client"])),
    params(RealmParameter),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "Not honored any more, if it ever was."),
        (status = 400, body = OAuthError, description = "`invalid_request`, `invalid_grant` or `unsupported_token_type`."),
        (status = 401, body = OAuthError, description = "`invalid_client`."),
        (status = 403, body = OAuthError, description = "`unauthorized_client`: the role or the realm."),
        (status = 404, body = OAuthError, description = "No such realm."),
        (status = 413, body = OAuthError, description = "The body is too large."),
        (status = 415, body = OAuthError, description = "The body is no form."),
        (status = 422, body = OAuthError, description = "The `jti` cannot be one."),
        (status = 429, body = OAuthError, description = "Too often; come back after `Retry-After`."),
        (status = 503, description = "Not now; the client must assume that the token is honored."),
        (status = 507, body = OAuthError, description = "No room is left; nothing was recorded."),
    )
)]
async fn revoke_alias(
    service: State<Arc<Service>>,
    gate: Extension<Arc<Gate>>,
    issuers: Extension<Arc<Issuers>>,
    realm: Result<RealmPath, Problem>,
    request: Request,
) -> Result<Response, Refused> {
    revoke(service, gate, issuers, realm, request).await
}

#[derive(Default, Serialize, ToSchema)]
struct Introspection {
    /// Whether it is honored: genuine, in its time, not revoked.
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// One or several.
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Says whether the token that is shown is honored (RFC 7662).
///
/// It is active only if its signature verifies with the keys of the realm, `iss`, `exp` and `nbf` hold, and neither its `jti`
/// nor a cutoff revokes it. Of any other token nothing is told but that it is not.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/oauth/introspect", tag = "oauth",
    security(("basic" = ["reader"]), ("bearer" = ["reader"])),
    params(RealmParameter),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = Introspection, description = "Whether it is honored, and its claims if so."),
        (status = 400, body = OAuthError, description = "`invalid_request`."),
        (status = 401, body = OAuthError, description = "`invalid_client`."),
        (status = 403, body = OAuthError, description = "`unauthorized_client`: the role or the realm."),
        (status = 404, body = OAuthError, description = "No such realm."),
        (status = 413, body = OAuthError, description = "The body is too large."),
        (status = 415, body = OAuthError, description = "The body is no form."),
        (status = 429, body = OAuthError, description = "Too often; come back after `Retry-After`."),
        (status = 503, description = "Not now."),
    )
)]
async fn introspect(
    State(service): State<Arc<Service>>,
    Extension(gate): Extension<Arc<Gate>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    realm: Result<RealmPath, Problem>,
    request: Request,
) -> Result<([(header::HeaderName, &'static str); 1], Json<Introspection>), Refused> {
    let Asked { realm, token, .. } = ask(&service, &gate, realm, &[Role::Reader], request).await?;
    let shown = honored(&service, &issuers, &realm, &token).await.map_err(Problem::from)?;
    // An answer is of this moment.
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(shown.map_or_else(Introspection::default, Introspection::from))))
}

impl From<Shown> for Introspection {
    fn from(shown: Shown) -> Self {
        let aud = shown.aud.as_ref().map(|audience| match audience {
            Audience::One(one) => one.as_str().into(),
            Audience::Many(many) => many.as_slice().into(),
        });
        let seconds = |date: Date| date.0.secs();
        Self {
            active: true,
            client_id: shown.client().map(str::to_owned),
            jti: Some(shown.jti),
            iss: Some(shown.iss),
            sub: shown.sub,
            aud,
            exp: Some(seconds(shown.exp)),
            iat: shown.iat.map(seconds),
            nbf: shown.nbf.map(seconds),
            scope: shown.scope,
        }
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described; the form is read parameter by parameter")]
struct RefreshForm {
    /// `refresh_token`.
    grant_type: String,
    /// The one that came with the last token.
    refresh_token: String,
    /// Name of a credential, if it stands neither in the header nor in a bearer token.
    client_id: Option<String>,
    /// Its secret.
    client_secret: Option<String>,
}

/// A token, as RFC 6749 section 5.1 has it.
#[derive(Serialize, ToSchema)]
struct Granted {
    access_token: String,
    /// `Bearer`.
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    /// Spent once.
    refresh_token: String,
}

/// Spends a refresh token: gets the next token, and the next refresh token (RFC 6749 section 6).
///
/// Each is spent once. One that is shown again was stolen, from the client or by it, and nobody can tell which: all tokens
/// that came of it are revoked (RFC 9700 section 4.14). A client that lost the answer is in the same place, and begins
/// anew.
#[utoipa::path(
    post, path = "/oauth2/token", tag = "oauth",
    security(("basic" = ["client", "issuer"]), ("bearer" = ["client", "issuer"])),
    request_body(content = RefreshForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = Granted, description = "The next token."),
        (status = 400, body = OAuthError,
            description = "`invalid_request`, `invalid_grant`, `invalid_scope` or `unsupported_grant_type`."),
        (status = 401, body = OAuthError, description = "`invalid_client`."),
        (status = 403, body = OAuthError, description = "`unauthorized_client`: the role or the realm."),
        (status = 413, body = OAuthError, description = "The body is too large."),
        (status = 415, body = OAuthError, description = "The body is no form."),
        (status = 429, body = OAuthError, description = "Too often; come back after `Retry-After`."),
        (status = 503, body = OAuthError, description = "Not now, or not here; the refresh token is not spent."),
        (status = 507, body = OAuthError, description = "No room is left; nothing was recorded."),
    )
)]
async fn token(
    State(service): State<Arc<Service>>,
    Extension(gate): Extension<Arc<Gate>>,
    request: Request,
) -> Result<([(header::HeaderName, &'static str); 1], Json<Granted>), Refused> {
    let headers = request.headers().clone();
    let form = read_form(request).await?;
    let grant = |error, what: String| Refused::new(StatusCode::BAD_REQUEST, error, what);
    let text = form.get("refresh_token").filter(|text| !text.is_empty());
    let said = text.and_then(|text| service.read_refresh(text).ok());
    let realm = said.as_ref().map(|(realm, _)| *realm);
    let caller = authenticate(&gate, &headers, &form, &[Role::Client, Role::Issuer], realm)?;
    match form.get("grant_type").map(String::as_str) {
        Some("refresh_token") => {}
        Some(other) => {
            return Err(grant("unsupported_grant_type", format!("{other:?}; refresh_token is the one there is")));
        }
        None => return Err(Refused::request("the parameter grant_type is missing")),
    }
    let Some(text) = text else {
        return Err(Refused::request("the parameter refresh_token is missing"));
    };
    if form.contains_key("scope") {
        return Err(grant(
            "invalid_scope",
            "a token gets what its refresh token came with; leave scope out".to_owned(),
        ));
    }
    // Of another client, or of none: what is said of it is the same.
    if said.is_none_or(|(_, client)| client != caller.name()) {
        return Err(grant("invalid_grant", "no refresh token of this client".to_owned()));
    }
    let minted = service.refresh(text, caller.name()).await.map_err(|error| match error {
        ServiceError::NoToken(why) => grant("invalid_grant", why.to_string()),
        ServiceError::RefreshForm | ServiceError::Ledger(LedgerError::RealmUnknown { .. }) => {
            grant("invalid_grant", "no refresh token of this client".to_owned())
        }
        other => Problem::from(other).into(),
    })?;
    let granted = Granted {
        access_token: minted.token,
        token_type: "Bearer",
        expires_in: minted.exp.secs() - minted.iat.secs(),
        refresh_token: minted.refresh.unwrap_or_default(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(granted)))
}
