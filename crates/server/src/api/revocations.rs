//! Revocations, one or many, and reinstatements.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use revocast_core::UnixTime;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, Object, RealmParameter, RealmPath, created};
use super::problem::Problem;
use super::wait::{Stage, WaitQuery, Waiting};
use crate::ledger::Receipt;
use crate::service::{Revocation, Service};

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(revoke)).routes(routes!(revoke_batch)).routes(routes!(reinstate))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevocationBody {
    /// The `jti` of the token; at most 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    jti: String,
    /// Its `exp`, seconds since 1970; it may be too late, never too early.
    exp: u64,
    /// Why; kept in the ledger, at most 1,024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

impl From<RevocationBody> for Revocation {
    fn from(body: RevocationBody) -> Self {
        Self { jti: body.jti, exp: UnixTime::from_secs(body.exp), reason: body.reason }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct ReceiptBody {
    /// The entry that holds what was asked; a device at or above it knows.
    sequence: u64,
    /// Until when it is kept.
    exp: Option<u64>,
    /// Whether the entry is new.
    recorded: bool,
    /// How far it had come when this was answered; there if `wait` was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<Stage>,
}

impl From<Receipt> for ReceiptBody {
    fn from(receipt: Receipt) -> Self {
        Self {
            sequence: receipt.sequence.0,
            exp: receipt.exp.map(UnixTime::secs),
            recorded: receipt.recorded,
            reached: None,
        }
    }
}

/// Revokes one token.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/revocations", tag = "revocations", security(("bearer" = ["revoker"])),
    params(RealmParameter, WaitQuery), request_body = RevocationBody,
    responses(
        (status = 201, body = ReceiptBody, description = "Recorded, and durable."),
        (status = 200, body = ReceiptBody, description = "It was recorded before."),
    )
)]
async fn revoke(
    State(service): State<Arc<Service>>,
    caller: Caller,
    waiting: Waiting,
    RealmPath(realm): RealmPath,
    Body(body): Body<RevocationBody>,
) -> Result<(StatusCode, Json<ReceiptBody>), Problem> {
    caller.charge(1)?;
    let receipts = service.revoke(realm, vec![body.into()], caller.name()).await?;
    let receipt = receipts.first().copied().ok_or_else(Problem::no_receipt)?;
    let reached = waiting.reached(&service, realm, receipt.sequence).await;
    Ok((created(receipt.recorded), Json(ReceiptBody { reached, ..receipt.into() })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    /// At most 10,000.
    #[schema(max_items = 10_000, value_type = Vec<RevocationBody>)]
    revocations: Vec<Object<RevocationBody>>,
}

#[derive(Serialize, ToSchema)]
struct ReceiptsBody {
    /// How many entries are new.
    recorded: usize,
    receipts: Vec<ReceiptBody>,
    /// How far the last of them had come when this was answered; there if `wait` was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<Stage>,
}

/// Revokes many tokens, all or none.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/revocations/batch", tag = "revocations", security(("bearer" = ["revoker"])),
    params(RealmParameter, WaitQuery), request_body = BatchBody,
    responses(
        (status = 201, body = ReceiptsBody, description = "Recorded, and durable: a receipt for each, in order."),
        (status = 200, body = ReceiptsBody, description = "All were recorded before."),
    )
)]
async fn revoke_batch(
    State(service): State<Arc<Service>>,
    caller: Caller,
    waiting: Waiting,
    RealmPath(realm): RealmPath,
    Body(body): Body<BatchBody>,
) -> Result<(StatusCode, Json<ReceiptsBody>), Problem> {
    let revocations: Vec<Revocation> = body.revocations.into_iter().map(|Object(one)| one.into()).collect();
    caller.charge(revocations.len())?;
    let receipts = service.revoke(realm, revocations, caller.name()).await?;
    let recorded = receipts.iter().filter(|receipt| receipt.recorded).count();
    let last = receipts.iter().map(|receipt| receipt.sequence).max().unwrap_or_default();
    let reached = waiting.reached(&service, realm, last).await;
    let receipts = receipts.into_iter().map(ReceiptBody::from).collect();
    Ok((created(recorded > 0), Json(ReceiptsBody { recorded, receipts, reached })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReinstatementBody {
    /// The `jti` of the token; at most 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    jti: String,
    /// Why; kept in the ledger, at most 1,024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Undoes a revoke that was a mistake.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/reinstatements", tag = "revocations", security(("bearer" = ["revoker"])),
    params(RealmParameter, WaitQuery), request_body = ReinstatementBody,
    responses(
        (status = 201, body = ReceiptBody, description = "Undone, and durable."),
        (status = 200, body = ReceiptBody, description = "Nothing was there to undo, or it was undone before."),
    )
)]
async fn reinstate(
    State(service): State<Arc<Service>>,
    caller: Caller,
    waiting: Waiting,
    RealmPath(realm): RealmPath,
    Body(body): Body<ReinstatementBody>,
) -> Result<(StatusCode, Json<ReceiptBody>), Problem> {
    caller.charge(1)?;
    let receipt = service.reinstate(realm, body.jti, body.reason, caller.name()).await?;
    let reached = waiting.reached(&service, realm, receipt.sequence).await;
    Ok((created(receipt.recorded), Json(ReceiptBody { reached, ..receipt.into() })))
}
