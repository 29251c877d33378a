//! Cutoffs and lifts: every token in a scope issued before a time.
//!
//! A cutoff weighs as many entries as it may spare, so that a quota for revocations bounds it too. Where the rule of
//! two is in force, one of a whole realm waits for a second credential.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use revocast_core::UnixTime;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, RealmParameter, RealmPath, UNPROCESSABLE, created};
use super::problem::{Problem, ProblemBody};
use super::wait::{Stage, WaitQuery, Waiting};
use crate::credentials::Approval;
use crate::ledger::Scope;
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(cut_off)).routes(routes!(lift))
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Scope)]
enum ScopeName {
    Realm,
    Sub,
    Kid,
    Client,
}

/// What a cutoff counts against a quota: about the tokens in its scope that live at a time, by order of magnitude.
const fn weight(scope: &Scope) -> usize {
    match scope {
        Scope::Sub(_) => 10,
        Scope::Client(_) => 1_000,
        Scope::Kid(_) | Scope::Realm => 10_000,
    }
}

/// The scope that two members name: a `name` for all but the whole realm.
fn scope(scope: ScopeName, name: Option<String>) -> Result<Scope, Problem> {
    let refused = |detail| Err(Problem::new(UNPROCESSABLE, "scope-name", "the scope cannot be used").detail(detail));
    match (scope, name) {
        (ScopeName::Realm, None) => Ok(Scope::Realm),
        (ScopeName::Realm, Some(_)) => refused("the whole realm has no name"),
        (ScopeName::Sub, Some(name)) => Ok(Scope::Sub(name)),
        (ScopeName::Kid, Some(name)) => Ok(Scope::Kid(name)),
        (ScopeName::Client, Some(name)) => Ok(Scope::Client(name)),
        (ScopeName::Sub | ScopeName::Kid | ScopeName::Client, None) => refused("its name is missing"),
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CutoffBody {
    scope: ScopeName,
    /// Which `sub`, `kid` or client; the whole realm has no name.
    #[schema(min_length = 1, max_length = 1024)]
    name: Option<String>,
    /// Tokens issued before this, seconds since 1970; all issued up to now unless said.
    not_before: Option<u64>,
    /// Why; kept in the ledger, at most 1,024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct CutoffReceiptBody {
    /// The entry that holds; a device at or above it knows.
    sequence: u64,
    /// What it says: a larger live one is never lowered.
    not_before: u64,
    /// Whether the entry is new.
    recorded: bool,
    /// How far it had come when this was answered; there if `wait` was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<Stage>,
}

#[derive(Serialize, ToSchema)]
struct WaitingBody {
    /// What the cutoff will say; whoever confirms it names the same time, or none.
    not_before: u64,
    /// Who asked first.
    asked_by: String,
    /// Until when another credential can confirm it.
    until: u64,
}

/// Revokes every token in a scope issued before a time.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/cutoffs", tag = "cutoffs", security(("bearer" = ["revoker"])),
    params(RealmParameter, WaitQuery), request_body = CutoffBody,
    responses(
        (status = 201, body = CutoffReceiptBody, description = "Recorded, and durable."),
        (status = 200, body = CutoffReceiptBody, description = "One as late or later was in force."),
        (status = 202, body = WaitingBody,
            description = "Not in force yet: a second credential must ask for the same, where the rule of two holds."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "One with another time waits for a second credential."),
    )
)]
async fn cut_off(
    State(service): State<Arc<Service>>,
    caller: Caller,
    waiting: Waiting,
    RealmPath(realm): RealmPath,
    Body(body): Body<CutoffBody>,
) -> Result<Response, Problem> {
    let scope = scope(body.scope, body.name)?;
    let mut not_before = body.not_before.map(UnixTime::from_secs);
    let mut actor = caller.name().to_owned();
    caller.charge(weight(&scope))?;
    if scope == Scope::Realm {
        // Before anything waits for it: a realm that is not there, a time that cannot be.
        service.check_cutoff(realm, not_before).await?;
        match caller.approve(realm, not_before) {
            None => {}
            Some(Approval::Given { not_before: asked, asked_by }) => {
                not_before = Some(asked);
                actor = format!("{asked_by}, confirmed by {actor}");
            }
            Some(Approval::Waiting { not_before, asked_by, until }) => {
                let body = WaitingBody { not_before: not_before.secs(), asked_by, until: until.secs() };
                return Ok((StatusCode::ACCEPTED, Json(body)).into_response());
            }
            Some(Approval::Differs { not_before, until }) => {
                let title = "another cutoff of this realm waits to be confirmed";
                let detail = format!("it has not_before {not_before}; confirm that one, or ask again after {until}");
                return Err(Problem::new(StatusCode::CONFLICT, "cutoff-waits", title).detail(detail));
            }
        }
    }
    let receipt = service.cut_off(realm, scope, not_before, body.reason, &actor).await?;
    let reached = waiting.reached(&service, realm, receipt.sequence).await;
    let body = CutoffReceiptBody {
        reached,
        sequence: receipt.sequence.0,
        not_before: receipt.not_before.secs(),
        recorded: receipt.recorded,
    };
    Ok((created(receipt.recorded), Json(body)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LiftBody {
    scope: ScopeName,
    /// Which `sub`, `kid` or client; the whole realm has no name.
    #[schema(min_length = 1, max_length = 1024)]
    name: Option<String>,
    /// Why; kept in the ledger, at most 1,024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct LiftReceiptBody {
    sequence: u64,
    recorded: bool,
    /// How far it had come when this was answered; there if `wait` was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<Stage>,
}

/// Ends a cutoff.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/lifts", tag = "cutoffs", security(("bearer" = ["revoker"])),
    params(RealmParameter, WaitQuery), request_body = LiftBody,
    responses(
        (status = 201, body = LiftReceiptBody, description = "Ended, and durable."),
        (status = 200, body = LiftReceiptBody, description = "None was in force."),
    )
)]
async fn lift(
    State(service): State<Arc<Service>>,
    caller: Caller,
    waiting: Waiting,
    RealmPath(realm): RealmPath,
    Body(body): Body<LiftBody>,
) -> Result<(StatusCode, Json<LiftReceiptBody>), Problem> {
    caller.charge(1)?;
    let receipt = service.lift(realm, scope(body.scope, body.name)?, body.reason, caller.name()).await?;
    let reached = waiting.reached(&service, realm, receipt.sequence).await;
    let body = LiftReceiptBody { sequence: receipt.sequence.0, recorded: receipt.recorded, reached };
    Ok((created(receipt.recorded), Json(body)))
}
