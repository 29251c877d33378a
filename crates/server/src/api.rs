//! The HTTP API: requests in, JSON out, every refusal a problem document (RFC 9457).
//!
//! HTTP and JSON types stay in here. What is done is decided in [`service`](crate::service). Each room holds a group
//! of routes with the shapes of their bodies, and documents them: who may use an operation is part of that (`access`).
//!
//! | method and path | does |
//! | --- | --- |
//! | `GET /healthz` | 200 while the server serves; needs no credentials |
//! | `GET /readyz` | 200 while entries can be recorded and travel, else 503; needs no credentials |
//! | `GET /openapi.json` | the `OpenAPI` document of all of this; needs no credentials |
//! | `GET /v1/status` | realms, heads, what is published, the broker |
//! | `GET /v1/realms` | every realm |
//! | `POST /v1/realms` | founds a realm |
//! | `POST /v1/realms/{realm}/revocations` | revokes one token |
//! | `POST /v1/realms/{realm}/revocations/batch` | revokes up to 10,000 tokens, all or none |
//! | `POST /v1/realms/{realm}/reinstatements` | undoes a revoke |
//! | `POST /v1/realms/{realm}/cutoffs` | revokes every token in a scope issued before a time |
//! | `POST /v1/realms/{realm}/lifts` | ends a cutoff |
//! | `POST /v1/realms/{realm}/issued` | registers issued tokens, one JSON object a line, any number of them |
//! | `GET /v1/realms/{realm}/coverage` | how many tokens are registered, and up to when that is all of them |
//! | `PUT /v1/realms/{realm}/coverage` | records that all tokens issued before a time are registered |
//! | `GET /v1/realms/{realm}/fleet` | how its devices are, as they say themselves |
//! | `GET /metrics` | what is counted and measured, for Prometheus |
//! | `GET /` | a page for people; it asks for a credential |
//! | `GET /v1/realms/{realm}/jti?count=N` | `jti`s for new tokens, which no filter in force flags |
//! | `GET /v1/realms/{realm}/plan` | what the leader would publish now, and why |

mod listener;
pub(crate) use listener::serve;

mod problem;

mod extract;

mod access;

mod document;

mod health;

mod status;

mod realms;

mod revocations;

mod cutoffs;

mod issued;

mod fleet;

mod metrics;

mod page;

mod plan;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use revocast_core::limits::BODY_BYTES_MAX;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use self::access::{Guard, Rules};
use self::document::Served;
use self::problem::Problem;
use crate::config::ApiLimits;
use crate::service::Service;

/// The routes over a service.
pub fn router(service: Arc<Service>, limits: ApiLimits) -> Router {
    let timed = OpenApiRouter::new()
        .merge(status::routes())
        .merge(realms::routes())
        .merge(revocations::routes())
        .merge(cutoffs::routes())
        .merge(issued::routes())
        .merge(fleet::routes())
        .merge(metrics::routes())
        .merge(plan::routes())
        .layer(middleware::from_fn_with_state(limits.request_timeout, limit_time));
    // A report takes as long as it takes; only between two pieces of it the clock runs.
    let streamed =
        OpenApiRouter::new().merge(issued::streamed()).layer(Extension(issued::Idle(limits.request_timeout)));
    let slots = Arc::new(Semaphore::new(limits.concurrent_requests));
    let (guarded, mut document) =
        timed.merge(streamed).layer(middleware::from_fn_with_state(slots, limit_concurrency)).split_for_parts();
    document::complete(&mut document);
    // Health is not counted: it must answer under load.
    let (open, described) = OpenApiRouter::new().merge(health::routes()).split_for_parts();
    document.merge(described);
    let document = document::finish(document);
    let guard = Arc::new(Guard::new(Arc::clone(&service), Rules::of(&document)));
    guarded
        .layer(middleware::from_fn_with_state(guard, access::guard))
        .merge(open)
        .merge(page::routes())
        .route("/openapi.json", get(document::openapi).with_state(Served::new(&document)))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "path-unknown", "no such path"))
        .method_not_allowed_fallback(async || {
            let title = "the method is not allowed here";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&service), metrics::count))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CatchPanicLayer::custom(|_| {
            let title = "the server made a mistake";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title).into_response()
        }))
        .with_state(service)
}

async fn limit_concurrency(State(slots): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match slots.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_) => Problem::overloaded("all request slots are taken").into_response(),
    }
}

async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        // Whether an entry was recorded is not known; every request may be repeated.
        Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "the request took too long")
            .detail(format!("requests end after {} s; repeat it", limit.as_secs()))
            .into_response(),
    }
}

#[cfg(test)]
mod tests;
