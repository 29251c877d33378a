//! Public keys: those that sign the tokens of a realm, and those of this server.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Body, RealmParameter, RealmPath, UNPROCESSABLE};
use super::problem::{Problem, ProblemBody};
use crate::service::Service;
use crate::tokens::{Issuers, KeySet, KeySetError};

/// How long a validator may keep them: a new key is announced that long before it signs.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=300");

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(set_keys))
}

/// Those that anybody may read.
pub(super) fn open() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(keys)).routes(routes!(own_keys))
}

/// A JWK set (RFC 7517).
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeySetBody {
    /// Public keys: OKP with Ed25519, EC with P-256 or P-384, RSA.
    #[schema(value_type = Vec<Object>, min_items = 1, max_items = 32)]
    keys: Vec<Value>,
}

impl KeySetBody {
    pub(super) fn check(self) -> Result<KeySet, Problem> {
        let document = serde_json::json!({ "keys": self.keys });
        KeySet::parse(&document).map_err(|error| unusable(&error))
    }
}

fn unusable(error: &KeySetError) -> Problem {
    Problem::new(UNPROCESSABLE, "jwks", "the key set cannot be used").detail(error.to_string())
}

/// Public keys (RFC 7517). None where tokens are signed with a secret.
#[derive(Serialize, ToSchema)]
struct PublicKeysBody {
    #[schema(value_type = Vec<Object>)]
    keys: Vec<Value>,
}

fn served(keys: Vec<Value>) -> Response {
    let mut response = Json(PublicKeysBody { keys }).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, MAX_AGE);
    response
}

fn members(document: &Value) -> &[Value] {
    document.get("keys").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The keys that sign the tokens of a realm: those that were set, and those of the server's own issuer for it.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/jwks.json", tag = "keys", security(()), params(RealmParameter),
    responses(
        (status = 200, body = PublicKeysBody, description = "The keys."),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No such realm."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now."),
    )
)]
async fn keys(
    State(service): State<Arc<Service>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    RealmPath(realm): RealmPath,
) -> Result<Response, Problem> {
    let realm = service.realm(realm).await?;
    Ok(served(members(issuers.keys(&realm, service.now())?.document()).to_vec()))
}

/// The keys with which this server signs tokens, of all realms.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "keys", security(()),
    responses(
        (status = 200, body = PublicKeysBody, description = "The keys."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now."),
    )
)]
async fn own_keys(
    State(service): State<Arc<Service>>,
    Extension(issuers): Extension<Arc<Issuers>>,
) -> Result<Response, Problem> {
    let (now, mut keys) = (service.now(), Vec::new());
    for realm in service.realms().await? {
        if let Some(ring) = issuers.issuing(realm.id)? {
            let document = ring.jwks(now, realm.max_token_lifetime + realm.leeway);
            keys.extend_from_slice(members(&document));
        }
    }
    // Realms without keys of their own share one.
    keys.sort_by(|a, b| kid(a).cmp(kid(b)));
    keys.dedup_by(|a, b| kid(a) == kid(b));
    Ok(served(keys))
}

fn kid(key: &Value) -> &str {
    key.get("kid").and_then(Value::as_str).unwrap_or_default()
}

/// Sets the keys that sign the tokens of a realm, in place of those before.
#[utoipa::path(
    put, path = "/v1/realms/{realm}/jwks", tag = "keys", security(("bearer" = ["admin"])), params(RealmParameter),
    request_body = KeySetBody,
    responses((status = 204, description = "Set, and durable."))
)]
async fn set_keys(
    State(service): State<Arc<Service>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<KeySetBody>,
) -> Result<StatusCode, Problem> {
    let realm = service.realm(realm).await?;
    let keys = body.check()?;
    let kept = tokio::task::spawn_blocking(move || issuers.set_keys(realm.id, &keys)).await;
    kept.map_err(|_| Problem::overloaded("the server is stopping"))??;
    Ok(StatusCode::NO_CONTENT)
}
