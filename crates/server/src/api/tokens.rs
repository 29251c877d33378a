//! Tokens of the server's own issuer, for whoever may hand them out.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use revocast_core::limits::SCOPE_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, RealmParameter, RealmPath, UNPROCESSABLE};
use super::problem::{Problem, ProblemBody};
use crate::ledger::AUDIENCES_MAX;
use crate::service::{LONG_LIFETIME, Minted, Service, TokenRequest};
use crate::tokens::Audience;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(issue))
}

/// A token that somebody asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenRequestBody {
    /// Whom it shall speak of.
    #[schema(min_length = 1, max_length = 4096)]
    sub: String,
    /// Whom it shall be for: a text, or a list of them.
    #[schema(value_type = Value)]
    aud: Audience,
    /// How long it shall live, seconds.
    #[schema(minimum = 1)]
    lifetime: Option<u64>,
    /// Claims besides those that the issuer sets.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    claims: Map<String, Value>,
    /// The client it is issued to (`client_id`): its tokens can be cut off together.
    #[schema(min_length = 1, max_length = 4096)]
    client: Option<String>,
    /// Whether a refresh token shall come with it, which the credential named by `client` can spend, or else the caller.
    #[serde(default)]
    refresh: bool,
}

/// A token.
#[derive(Serialize, ToSchema)]
struct TokenBody {
    /// The token itself.
    token: String,
    jti: String,
    exp: u64,
    /// Spent once, at `/oauth2/token`, it gets the next token and the next of its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// What is unwise about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// What is unwise about a token.
pub(super) fn warning(minted: &Minted) -> Option<String> {
    minted.long.then(|| {
        let hours = LONG_LIFETIME.as_secs() / 3_600;
        format!("it lives longer than {hours} hours; short tokens that are renewed do less harm when they are stolen")
    })
}

/// Answers that hold a token are kept by nobody (RFC 6749 section 5.1).
pub(super) const NOT_KEPT: [(HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// The members of an audience: at least one, none empty.
pub(super) fn audience(audience: Audience) -> Result<Vec<String>, Problem> {
    let unusable =
        |detail: String| Problem::new(UNPROCESSABLE, "audience", "the audience cannot be used").detail(detail);
    let named = match audience {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    };
    if named.is_empty() || named.len() > AUDIENCES_MAX {
        return Err(unusable(format!("it has {} members; 1 to {AUDIENCES_MAX} are possible", named.len())));
    }
    if named.iter().any(|name| name.is_empty() || name.len() > SCOPE_BYTES_MAX) {
        return Err(unusable(format!("a member has 1 to {SCOPE_BYTES_MAX} bytes")));
    }
    Ok(named)
}

/// Issues a token: registered, and clean against every filter in force, before it is signed.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/tokens", tag = "tokens", security(("bearer" = ["issuer"])),
    params(RealmParameter), request_body = TokenRequestBody,
    responses(
        (status = 201, body = TokenBody, description = "Issued."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "The realm's tokens are signed elsewhere, or a cutoff forbids it."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json",
            description = "Not now, or not here: a cutoff lies just ahead, or another server leads."),
    )
)]
async fn issue(
    State(service): State<Arc<Service>>,
    caller: Caller,
    RealmPath(realm): RealmPath,
    Body(body): Body<TokenRequestBody>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<TokenBody>), Problem> {
    let TokenRequestBody { sub, aud, lifetime, claims, client, refresh } = body;
    if sub.is_empty() {
        return Err(Problem::new(UNPROCESSABLE, "subject", "the subject cannot be used").detail("sub is empty"));
    }
    let request = TokenRequest {
        subject: sub,
        audience: audience(aud)?,
        lifetime: lifetime.map(Duration::from_secs),
        claims,
        client,
        refresh,
    };
    let minted = service.issue_token(realm, request, caller.name()).await?;
    let body = TokenBody {
        warning: warning(&minted),
        token: minted.token,
        jti: minted.jti,
        exp: minted.exp.secs(),
        refresh_token: minted.refresh,
    };
    Ok((StatusCode::CREATED, NOT_KEPT, Json(body)))
}
