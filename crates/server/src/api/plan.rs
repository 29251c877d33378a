//! What the leader would publish now: told, not done.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{RealmParameter, RealmPath};
use super::problem::Problem;
use crate::publisher::{EpochFigures, Forecast, Foreseen};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(plan))
}

#[derive(Serialize, ToSchema)]
struct PlanBody {
    term: u32,
    /// The last entry that was read from the ledger.
    head: u64,
    /// Epoch of the last manifest; none before the first.
    epoch: Option<u64>,
    /// Sequence of the last manifest.
    sequence: Option<u64>,
    /// In how long a manifest is sealed even if nothing happens.
    next_manifest_ms: u64,
    /// What would be done, in this order.
    steps: Vec<StepBody>,
    /// Steps beyond those.
    steps_left_out: usize,
    epoch_policy: PolicyBody,
}

#[derive(Serialize, ToSchema)]
struct StepBody {
    /// `live`, `build`, `retain`, `read-back`, `manifest` or `clear`.
    step: &'static str,
    /// Below the realm's prefix, if it concerns one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Sealed; not known of what is yet to be sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    why: String,
}

/// The figures that decide whether a new epoch is due, each beside its limit.
#[derive(Serialize, ToSchema)]
struct PolicyBody {
    /// Why one is due, if it is.
    due: Option<&'static str>,
    ladder_bytes: usize,
    ladder_bytes_max: usize,
    statements: usize,
    statements_max: usize,
    pieces: usize,
    pieces_max: usize,
    /// Live revocations, expired ones that are not dropped yet among them.
    entries: u64,
    dead: u64,
    dead_max: u64,
    age_seconds: u64,
    age_seconds_max: u64,
    filter_rate: f64,
    filter_rate_max: f64,
    registered: u64,
    registered_when_built: u64,
}

impl From<Forecast> for PlanBody {
    fn from(forecast: Forecast) -> Self {
        let Forecast { realm: _, term, head, position, steps, steps_left_out, figures, epoch_due, next_manifest } =
            forecast;
        let EpochFigures {
            standing: _,
            ladder_bytes,
            ladder_bytes_max,
            statements,
            statements_max,
            pieces,
            pieces_max,
            entries,
            dead,
            dead_max,
            droppable: _,
            age,
            age_max,
            filter_rate,
            filter_rate_max,
            covers_more: _,
            registered_then,
            registered,
            coverage_every: _,
        } = figures;
        Self {
            term: term.0,
            head: head.0,
            epoch: position.map(|position| position.epoch.0),
            sequence: position.map(|position| position.sequence.0),
            next_manifest_ms: u64::try_from(next_manifest.as_millis()).unwrap_or(u64::MAX),
            steps: steps
                .into_iter()
                .map(|Foreseen { step, address, bytes, why }| StepBody { step, address, bytes, why })
                .collect(),
            steps_left_out,
            epoch_policy: PolicyBody {
                due: epoch_due.map(crate::publisher::EpochCause::name),
                ladder_bytes,
                ladder_bytes_max,
                statements,
                statements_max,
                pieces,
                pieces_max,
                entries,
                dead,
                dead_max,
                age_seconds: age.as_secs(),
                age_seconds_max: age_max.as_secs(),
                filter_rate,
                filter_rate_max,
                registered,
                registered_when_built: registered_then,
            },
        }
    }
}

/// Tells what would be published now, and why. Only the leader knows.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/plan", tag = "status", security(("bearer" = ["reader"])),
    params(RealmParameter),
    responses((status = 200, body = PlanBody, description = "What would be done; nothing was."))
)]
async fn plan(State(service): State<Arc<Service>>, RealmPath(realm): RealmPath) -> Result<Json<PlanBody>, Problem> {
    Ok(Json(service.forecast(realm).await?.into()))
}
