//! Realms: found them, list them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::StatusCode;
use revocast_core::{FingerprintFunction, RealmId, Width};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, RealmParameter, RealmPath, UNPROCESSABLE, created, require_type, unreadable};
use super::problem::{Problem, ProblemBody};
use crate::ledger::{LEEWAY_DEFAULT, MAX_TOKEN_LIFETIME_DEFAULT, Realm};
use crate::service::{NewRealm, Service};

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(realms, create_realm)).routes(routes!(replace_keys))
}

/// A realm as it is shown: all but its fingerprint key, which is for devices alone.
#[derive(Serialize, ToSchema)]
pub(super) struct RealmBody {
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

#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FingerprintName {
    Xxh3,
    Sha256,
}

#[derive(Serialize, ToSchema)]
struct RealmsBody {
    realms: Vec<RealmBody>,
}

/// Lists the realms that the credential is for.
#[utoipa::path(
    get, path = "/v1/realms", tag = "realms", security(("bearer" = ["reader"])),
    responses((status = 200, body = RealmsBody, description = "The realms, by name."))
)]
async fn realms(State(service): State<Arc<Service>>, caller: Caller) -> Result<Json<RealmsBody>, Problem> {
    let realms = service.realms().await?;
    let seen = realms.into_iter().filter(|realm| caller.may_enter(realm.id));
    Ok(Json(RealmsBody { realms: seen.map(RealmBody::from).collect() }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRealmBody {
    #[schema(pattern = "^[a-z0-9-]{1,64}$", example = "fleet")]
    name: String,
    /// The `iss` of its tokens.
    #[schema(min_length = 1, max_length = 1024, example = "https://issuer.example")]
    issuer: String,
    /// How fingerprints are made; `sha256` unless said.
    fingerprint: Option<FingerprintName>,
    /// Bits of a fingerprint: 40, 48 or 64; 48 unless said.
    width: Option<u8>,
    /// Seconds by which clocks may differ; 60 unless said.
    #[schema(maximum = 86_400)]
    leeway: Option<u64>,
    /// Seconds that the tokens of this issuer live at most; 30 days unless said.
    #[schema(minimum = 1, maximum = 315_360_000)]
    max_token_lifetime: Option<u64>,
}

/// Founds a realm.
#[utoipa::path(
    post, path = "/v1/realms", tag = "realms", security(("bearer" = ["admin"])),
    request_body = NewRealmBody,
    responses(
        (status = 201, body = RealmBody, description = "Founded."),
        (status = 200, body = RealmBody, description = "It was there already, and stays as it is."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "Its name or issuer is taken, or the root key is not at hand."),
    )
)]
async fn create_realm(
    State(service): State<Arc<Service>>,
    caller: Caller,
    Body(body): Body<NewRealmBody>,
) -> Result<(StatusCode, Json<RealmBody>), Problem> {
    let refused = |kind, title, detail: String| Err(Problem::new(UNPROCESSABLE, kind, title).detail(detail));
    let id = match RealmId::new(&body.name) {
        Ok(id) => id,
        Err(error) => return refused("realm-name", "the name of the realm cannot be used", error.to_string()),
    };
    caller.enter(id)?;
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

/// Which keys of a realm are in force.
#[derive(Serialize, ToSchema)]
struct KeysBody {
    /// Their version.
    version: u64,
}

/// Takes in the next version of a realm's keys, sealed by its root keys: another publisher key, most often.
#[utoipa::path(
    put, path = "/v1/realms/{realm}/keys", tag = "realms", security(("bearer" = ["admin"])), params(RealmParameter),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The sealed `keys` object."),
    responses(
        (status = 200, body = KeysBody, description = "In force, and durable; published soon."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "Another version comes next."),
    )
)]
async fn replace_keys(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    request: Request,
) -> Result<Json<KeysBody>, Problem> {
    require_type(&request, "application/octet-stream")?;
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| unreadable(&rejection))?;
    let version = service.replace_keys(realm, bytes.to_vec()).await?;
    Ok(Json(KeysBody { version }))
}
