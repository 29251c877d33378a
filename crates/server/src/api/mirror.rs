//! The published objects over HTTP, as they stand on the broker: for a CDN, and for devices that cannot reach a broker.
//!
//! Everything that the ledger keeps as published is served, the epochs in their grace period included, so that a device
//! that began with one manifest can finish. Objects are sealed, so anybody may serve and read them, but for the keys of a
//! realm: they hold the key of its fingerprints, without which nobody finds out whether a `jti` he knows is revoked.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Address, Digest, RealmId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Problem, ProblemBody};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(object))
}

/// What is not for everybody.
pub(super) fn guarded_routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(keys)).routes(routes!(keys_at))
}

/// How long a copy is good. A manifest is renewed as heartbeat, keys now and then; the rest never changes under its name.
const fn cached(address: Address) -> &'static str {
    match address {
        Address::Manifest => "public, max-age=1, must-revalidate",
        Address::IssuerKeys => "public, max-age=60, must-revalidate",
        Address::Keys | Address::Live | Address::Answer | Address::Delivery => "private, max-age=60, must-revalidate",
        Address::KeysAt { .. } => "private, max-age=31536000, immutable",
        Address::Ladder { .. } | Address::Index { .. } | Address::Chunk { .. } => "public, max-age=31536000, immutable",
    }
}

/// A published object.
///
/// The address is what follows the realm in the topic: `manifest`, `ladder/{from}-{to}`, `e/{epoch}/index`,
/// `e/{epoch}/{artifact}/{number}`. All but `manifest` never change and may be kept for good.
#[utoipa::path(
    get, path = "/v1/mirror/{realm}/{*address}", tag = "mirror", security(()),
    params(
        super::extract::RealmParameter,
        ("address" = String, Path, description = "What follows the realm in the topic; it may hold slashes."),
        ("if-none-match" = Option<String>, Header, description = "Entity tags of copies at hand."),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The sealed object.",
            headers(("etag" = String, description = "Its SHA-256."), ("cache-control" = String))),
        (status = 304, description = "The copy at hand is this one."),
        (status = 404, body = ProblemBody, content_type = "application/problem+json",
            description = "No such realm, or nothing is published there."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now."),
    )
)]
async fn object(
    State(service): State<Arc<Service>>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path((realm, address)) = path.map_err(|rejection| unknown(rejection.body_text()))?;
    let parsed = Address::parse(&address).ok_or_else(|| unknown(format!("{address:?} is no address")))?;
    if matches!(parsed, Address::Keys | Address::KeysAt { .. }) {
        // Only another spelling leads here, and around the credentials.
        return Err(unknown("keys have a path of their own".to_owned()));
    }
    serve(&service, &realm, parsed, &headers).await
}

/// The keys of a realm: who publishes, and how fingerprints are made.
#[utoipa::path(
    get, path = "/v1/mirror/{realm}/keys", tag = "mirror", security(("bearer" = ["reader"])),
    params(
        super::extract::RealmParameter,
        ("if-none-match" = Option<String>, Header, description = "Entity tags of copies at hand."),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The sealed keys.",
            headers(("etag" = String, description = "Its SHA-256."), ("cache-control" = String))),
        (status = 304, description = "The copy at hand is this one."),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No such realm."),
    )
)]
async fn keys(
    State(service): State<Arc<Service>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(realm) = path.map_err(|rejection| unknown(rejection.body_text()))?;
    serve(&service, &realm, Address::Keys, &headers).await
}

/// One version of the keys of a realm, for devices that missed some.
#[utoipa::path(
    get, path = "/v1/mirror/{realm}/keys/{version}", tag = "mirror", security(("bearer" = ["reader"])),
    params(
        super::extract::RealmParameter,
        ("version" = String, Path, description = "Which version, from 1."),
        ("if-none-match" = Option<String>, Header, description = "Entity tags of copies at hand."),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The sealed keys.",
            headers(("etag" = String, description = "Its SHA-256."), ("cache-control" = String))),
        (status = 304, description = "The copy at hand is this one."),
        (status = 404, body = ProblemBody, content_type = "application/problem+json",
            description = "No such realm, or no such version."),
    )
)]
async fn keys_at(
    State(service): State<Arc<Service>>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path((realm, version)) = path.map_err(|rejection| unknown(rejection.body_text()))?;
    let address = Address::parse(&format!("keys/{version}"));
    let address = address.ok_or_else(|| unknown(format!("{version:?} is no version")))?;
    serve(&service, &realm, address, &headers).await
}

fn unknown(detail: String) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "object-unknown", "nothing is published there").detail(detail)
}

async fn serve(service: &Service, realm: &str, address: Address, headers: &HeaderMap) -> Result<Response, Problem> {
    let realm = RealmId::new(realm).map_err(|error| {
        Problem::new(StatusCode::NOT_FOUND, "realm-unknown", "no such realm").detail(error.to_string())
    })?;
    let realm = service.realm(realm).await?;
    let bytes = service.object(realm.id, address).await?;
    let bytes = bytes.ok_or_else(|| unknown(format!("nothing stands at {address}")))?;
    let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(Digest::of(&bytes).0));
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value, &tag));
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
    };
    let cache = HeaderValue::from_static(cached(address));
    response.headers_mut().insert(header::CACHE_CONTROL, cache);
    // Base64 and quotes are always a header.
    response.headers_mut().extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    Ok(response)
}

/// Whether a list of entity tags names this one; weakly compared (RFC 9110 section 13.1.2).
fn names(list: &HeaderValue, tag: &str) -> bool {
    let tags = list.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.map(|one| one.strip_prefix("W/").unwrap_or(one)).any(|one| one == tag || one == "*")
}
