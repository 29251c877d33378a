//! Whether the server lives, and whether it can do its work: for load balancers, without credentials.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Problem, ProblemBody};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

#[derive(Serialize, ToSchema)]
struct HealthBody {
    healthy: bool,
}

/// Answers while the server serves.
#[utoipa::path(
    get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, body = HealthBody, description = "It serves."))
)]
async fn healthz() -> Json<HealthBody> {
    Json(HealthBody { healthy: true })
}

#[derive(Serialize, ToSchema)]
struct ReadyBody {
    ready: bool,
    /// Whether this server is the one that publishes. One that follows takes requests all the same.
    leading: bool,
}

/// Tells whether entries can be recorded and travel.
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses(
        (status = 200, body = ReadyBody, description = "They can."),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "They cannot; the detail says why."),
    )
)]
async fn readyz(State(service): State<Arc<Service>>) -> Result<Json<ReadyBody>, Problem> {
    match service.unready() {
        None => Ok(Json(ReadyBody { ready: true, leading: service.office().is_leading() })),
        Some(why) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "the server is not ready").detail(why))
        }
    }
}
