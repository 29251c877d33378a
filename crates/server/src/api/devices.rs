//! Devices that the server's own issuer gives tokens to.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{DeviceId, DeviceKeys, EnvelopePublicKey, PublicKey, RealmId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, RealmParameter, RealmPath, UNPROCESSABLE, bad_query, created};
use super::problem::{Problem, ProblemBody};
use super::tokens::{NOT_KEPT, audience, warning};
use crate::ledger::{Device, Dismissal, NewDevice};
use crate::service::Service;
use crate::tokens::Audience;

/// Devices in one answer.
const LISTED_MAX: usize = 1_000;
const LISTED_DEFAULT: usize = 100;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(enroll, devices)).routes(routes!(device, dismiss)).routes(routes!(issue))
}

/// The device in a path, for the document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only described; DevicePath reads it")]
struct DeviceParameter {
    /// Name of the realm.
    #[param(pattern = "^[a-z0-9-]{1,64}$", example = "fleet")]
    realm: String,
    /// Name of the device.
    #[param(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "pump-1")]
    device: String,
}

type DevicePath = Path<(String, String)>;

fn place(Path((realm, device)): DevicePath) -> Result<(RealmId, DeviceId), Problem> {
    let unknown = |kind, title, detail: String| Problem::new(StatusCode::NOT_FOUND, kind, title).detail(detail);
    let realm = RealmId::new(&realm).map_err(|error| unknown("realm-unknown", "no such realm", error.to_string()))?;
    let device = DeviceId::new(&device)
        .map_err(|error| unknown("device-unknown", "no such device is enrolled", error.to_string()))?;
    Ok((realm, device))
}

/// What `revocast device keygen` prints, and what its tokens shall say.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EnrollmentBody {
    /// Its name: letters, digits, hyphens, underscores and dots.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "pump-1")]
    device: String,
    /// The realm it means, if it says so; another one is refused.
    realm: Option<String>,
    /// Its Ed25519 public key, base64url, 43 characters.
    signing_key: String,
    /// Its X25519 public key, base64url, 43 characters.
    sealing_key: String,
    /// The signature by the signing key that proves both, base64url, 86 characters.
    proof: String,
    /// The `sub` of its tokens; its name unless said.
    subject: Option<String>,
    /// The `aud` of its tokens: a text, or a list of them.
    #[schema(value_type = Value)]
    audience: Audience,
    /// Whether it may take the place of one of this name with other keys, whose tokens are then revoked.
    #[serde(default)]
    replace: bool,
}

/// A device.
#[derive(Serialize, ToSchema)]
struct DeviceBody {
    device: String,
    signing_key: String,
    sealing_key: String,
    subject: String,
    audience: Vec<String>,
    enrolled_at: u64,
    /// The highest counter of its requests that was granted.
    counter: u64,
    /// The `jti` of its newest token.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<String>,
    /// When that expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<u64>,
    /// Its newest token was revoked: it gets no other one by asking.
    barred: bool,
}

impl From<Device> for DeviceBody {
    fn from(device: Device) -> Self {
        Self {
            device: device.id.to_string(),
            signing_key: URL_SAFE_NO_PAD.encode(device.signing.0),
            sealing_key: URL_SAFE_NO_PAD.encode(device.sealing.as_bytes()),
            subject: device.subject,
            audience: device.audience,
            enrolled_at: device.enrolled_at.secs(),
            counter: device.counter,
            holds: device.holds,
            held_until: device.held_until.map(revocast_core::UnixTime::secs),
            barred: device.barred,
        }
    }
}

fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(UNPROCESSABLE, "enrollment", "the device cannot be enrolled like this").detail(detail)
}

fn bytes<const N: usize>(what: &str, text: &str) -> Result<[u8; N], Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    decoded.ok_or_else(|| refused(format!("{what} is not {N} bytes in base64url without padding")))
}

/// Enrolls a device: from now on the server issues tokens to it that it alone can open and use.
///
/// May be repeated. The proof shows that the device holds the keys; that it is the one it says to be is for the caller
/// to know.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/devices", tag = "devices", security(("bearer" = ["issuer"])),
    params(RealmParameter), request_body = EnrollmentBody,
    responses(
        (status = 200, body = DeviceBody, description = "It was enrolled already, with the same keys."),
        (status = 201, body = DeviceBody, description = "Enrolled, and durable."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "A device with other keys has this name."),
    )
)]
async fn enroll(
    State(service): State<Arc<Service>>,
    caller: Caller,
    RealmPath(realm): RealmPath,
    Body(body): Body<EnrollmentBody>,
) -> Result<(StatusCode, Json<DeviceBody>), Problem> {
    let EnrollmentBody { device, realm: meant, signing_key, sealing_key, proof, subject, audience: aud, replace } =
        body;
    if let Some(meant) = meant.filter(|meant| meant != realm.as_str()) {
        return Err(refused(format!("it is made for realm {meant:?}, and this is {realm}")));
    }
    let device = DeviceId::new(&device).map_err(|error| refused(error.to_string()))?;
    let signing = PublicKey(bytes("signing_key", &signing_key)?);
    let sealing = EnvelopePublicKey::parse(bytes("sealing_key", &sealing_key)?)
        .map_err(|error| refused(format!("sealing_key: {error}")))?;
    if !(DeviceKeys { realm, device, signing, sealing }).are_proven_by(&bytes("proof", &proof)?) {
        return Err(refused("the proof is not of these keys, this name and this realm"));
    }
    let realm = service.realm(realm).await?.id;
    let new = NewDevice {
        id: device,
        signing,
        sealing,
        subject: subject.unwrap_or_else(|| device.to_string()),
        audience: audience(aud)?,
        replace,
        actor: caller.name().to_owned(),
    };
    let enrollment = service.enroll(realm, new).await?;
    Ok((created(enrollment.created), Json(enrollment.device.into())))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DevicesQuery {
    /// Those whose names come after this one.
    after: Option<String>,
    /// How many; 100 unless said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Devices, by name.
#[derive(Serialize, ToSchema)]
struct DevicesBody {
    devices: Vec<DeviceBody>,
    /// What to ask for `after` to get the next; absent with the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Lists the devices of a realm.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/devices", tag = "devices", security(("bearer" = ["reader", "issuer"])),
    params(RealmParameter, DevicesQuery),
    responses((status = 200, body = DevicesBody, description = "Some of them, in the order of their names."))
)]
async fn devices(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    query: Result<Query<DevicesQuery>, QueryRejection>,
) -> Result<Json<DevicesBody>, Problem> {
    let Query(DevicesQuery { after, limit }) = query?;
    let limit = limit.unwrap_or(LISTED_DEFAULT);
    if !(1..=LISTED_MAX).contains(&limit) {
        return Err(bad_query(format!("a limit of {limit}; 1 to {LISTED_MAX} are possible")));
    }
    let after = after.map(|name| DeviceId::new(&name)).transpose().map_err(|error| bad_query(error.to_string()))?;
    let realm = service.realm(realm).await?.id;
    let found = service.devices(realm, after, limit).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|device| device.id.to_string());
    Ok(Json(DevicesBody { devices: found.into_iter().map(DeviceBody::from).collect(), next }))
}

/// Shows a device.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/devices/{device}", tag = "devices",
    security(("bearer" = ["reader", "issuer"])), params(DeviceParameter),
    responses((status = 200, body = DeviceBody, description = "The device."))
)]
async fn device(State(service): State<Arc<Service>>, path: DevicePath) -> Result<Json<DeviceBody>, Problem> {
    let (realm, device) = place(path)?;
    let realm = service.realm(realm).await?.id;
    Ok(Json(service.device(realm, device).await?.into()))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DismissQuery {
    /// Why; kept in the ledger.
    #[param(max_length = 256)]
    reason: Option<String>,
}

/// What became of a dismissed device.
#[derive(Serialize, ToSchema)]
struct DismissalBody {
    /// Its tokens that were revoked.
    revoked: usize,
    /// The highest entry about them.
    sequence: u64,
}

/// Enrolls a device no longer, and revokes its tokens.
#[utoipa::path(
    delete, path = "/v1/realms/{realm}/devices/{device}", tag = "devices",
    security(("bearer" = ["issuer", "revoker"])), params(DeviceParameter, DismissQuery),
    responses(
        (status = 200, body = DismissalBody, description = "Gone, and durable."),
        (status = 507, body = ProblemBody, content_type = "application/problem+json",
            description = "No room is left; nothing was recorded."),
    )
)]
async fn dismiss(
    State(service): State<Arc<Service>>,
    caller: Caller,
    path: DevicePath,
    query: Result<Query<DismissQuery>, QueryRejection>,
) -> Result<Json<DismissalBody>, Problem> {
    let Query(DismissQuery { reason }) = query?;
    let (realm, device) = place(path)?;
    let realm = service.realm(realm).await?.id;
    caller.charge(1)?;
    match service.dismiss(realm, device, reason, caller.name()).await? {
        Dismissal::Dismissed { revoked, sequence } => Ok(Json(DismissalBody { revoked, sequence: sequence.0 })),
        // Told as an error already.
        Dismissal::Unknown => Err(Problem::no_receipt()),
    }
}

/// What a token for a device shall be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeviceTokenRequestBody {
    /// How long it shall live, seconds.
    #[schema(minimum = 1)]
    lifetime: Option<u64>,
    /// Claims besides those that the issuer sets.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    claims: Map<String, Value>,
}

/// A token on its way to a device. It alone can open it, so it is not shown here.
#[derive(Serialize, ToSchema)]
struct DeviceTokenBody {
    jti: String,
    exp: u64,
    /// Whether the broker has it. If not, the device gets one when it asks.
    delivered: bool,
    /// What is unwise about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// Issues a token to a device and delivers it over the broker.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/devices/{device}/tokens", tag = "devices",
    security(("bearer" = ["issuer"])), params(DeviceParameter), request_body = DeviceTokenRequestBody,
    responses(
        (status = 201, body = DeviceTokenBody, description = "Issued."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "The realm's tokens are signed elsewhere, or a cutoff forbids it."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json",
            description = "Not now, or not here: a cutoff lies just ahead, or another server leads."),
    )
)]
async fn issue(
    State(service): State<Arc<Service>>,
    caller: Caller,
    path: DevicePath,
    Body(body): Body<DeviceTokenRequestBody>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<DeviceTokenBody>), Problem> {
    let (realm, device) = place(path)?;
    let realm = service.realm(realm).await?.id;
    let lifetime = body.lifetime.map(Duration::from_secs);
    let (minted, delivered) = service.issue_to_device(realm, device, lifetime, body.claims, caller.name()).await?;
    let body = DeviceTokenBody { warning: warning(&minted), jti: minted.jti, exp: minted.exp.secs(), delivered };
    Ok((StatusCode::CREATED, NOT_KEPT, Json(body)))
}
