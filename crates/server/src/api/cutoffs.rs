//! Cutoffs and lifts: every token in a scope issued before a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use revocast_core::UnixTime;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{ACTOR, Body, RealmPath, UNPROCESSABLE, created};
use crate::ledger::Scope;
use crate::service::Service;

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ScopeName {
    Realm,
    Sub,
    Kid,
    Client,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CutoffBody {
    scope: ScopeName,
    name: Option<String>,
    not_before: Option<u64>,
    reason: Option<String>,
}

#[derive(Serialize)]
pub(super) struct CutoffReceiptBody {
    sequence: u64,
    not_before: u64,
    recorded: bool,
}

pub(super) async fn cut_off(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<CutoffBody>,
) -> Result<(StatusCode, Json<CutoffReceiptBody>), Problem> {
    let scope = scope(body.scope, body.name)?;
    let not_before = body.not_before.map(UnixTime::from_secs);
    let receipt = service.cut_off(realm, scope, not_before, body.reason, ACTOR).await?;
    let body = CutoffReceiptBody {
        sequence: receipt.sequence.0,
        not_before: receipt.not_before.secs(),
        recorded: receipt.recorded,
    };
    Ok((created(receipt.recorded), Json(body)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LiftBody {
    scope: ScopeName,
    name: Option<String>,
    reason: Option<String>,
}

#[derive(Serialize)]
pub(super) struct LiftReceiptBody {
    sequence: u64,
    recorded: bool,
}

pub(super) async fn lift(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<LiftBody>,
) -> Result<(StatusCode, Json<LiftReceiptBody>), Problem> {
    let receipt = service.lift(realm, scope(body.scope, body.name)?, body.reason, ACTOR).await?;
    let body = LiftReceiptBody { sequence: receipt.sequence.0, recorded: receipt.recorded };
    Ok((created(receipt.recorded), Json(body)))
}
