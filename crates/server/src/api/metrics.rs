//! Metrics: what Prometheus collects, and the counting of requests.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::problem::Problem;
use crate::metrics::CONTENT_TYPE;
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Tells everything that is counted and measured, in the format that Prometheus reads.
///
/// It names every realm, so the credential must be for all of them.
#[utoipa::path(
    get, path = "/metrics", tag = "metrics", security(("bearer" = ["reader"])),
    responses((status = 200, body = String, content_type = "application/openmetrics-text", description = "OpenMetrics text."))
)]
async fn metrics(State(service): State<Arc<Service>>, caller: Caller) -> Result<Response, Problem> {
    if !caller.is_for_all_realms() {
        let title = "the credential is not for all realms";
        return Err(Problem::new(StatusCode::FORBIDDEN, "realm-foreign", title)
            .detail("metrics name every realm, and this credential is for some"));
    }
    let text = service.metrics().await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))], text).into_response())
}

/// Counts and logs a request. Neither names anything that whoever asks can choose.
pub(super) async fn count(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    service.counters().answered(method, &route, status, took);
    tracing::debug!(method, route, status, took_ms = took.as_secs_f64() * 1_000.0, "answered");
    response
}

/// One of few names: anybody may send any method.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
