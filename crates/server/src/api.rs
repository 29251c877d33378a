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
//! | `PUT /v1/realms/{realm}/keys` | takes in the next version of its keys, signed by its roots |
//! | `POST /v1/realms/{realm}/revocations` | revokes one token |
//! | `POST /v1/realms/{realm}/revocations/batch` | revokes up to 10,000 tokens, all or none |
//! | `POST /v1/realms/{realm}/revocations/import` | revokes a list, one JSON object a line, any number of them |
//! | `POST /v1/realms/{realm}/reinstatements` | undoes a revoke |
//! | `POST /v1/realms/{realm}/cutoffs` | revokes every token in a scope issued before a time |
//! | `POST /v1/realms/{realm}/lifts` | ends a cutoff |
//! | `POST /v1/realms/{realm}/issued` | registers issued tokens, one JSON object a line, any number of them |
//! | `GET /v1/realms/{realm}/coverage` | how many tokens are registered, and up to when that is all of them |
//! | `PUT /v1/realms/{realm}/coverage` | records that all tokens issued before a time are registered |
//! | `GET /v1/realms/{realm}/fleet` | how its devices are, as they say themselves |
//! | `GET /metrics` | what is counted and measured, for Prometheus |
//! | `GET /` | a page for people; it asks for a credential |
//! | `GET`, `PUT /v1/realms/{realm}/jwks.json` | the keys that sign the realm's tokens; to look needs no credentials |
//! | `GET /.well-known/jwks.json` | the keys with which this server signs tokens; needs no credentials |
//! | `POST /v1/realms/{realm}/oauth/revoke` | revokes a token that is shown (RFC 7009) |
//! | `POST /v1/realms/{realm}/oauth/introspect` | says whether a token is honored (RFC 7662) |
//! | `POST /v1/realms/{realm}/ssf/events` | takes security events (RFC 8935): cutoffs for their subjects |
//! | `PUT /v1/realms/{realm}/ssf/transmitter` | names whose events are believed |
//! | `POST /v1/hooks/emqx/authentication`, `…/authorization` | what EMQX asks before it lets a device in, or lets it do something |
//! | `POST /v1/hooks/mosquitto/user`, `…/superuser`, `…/acl` | the same as mosquitto-go-auth asks |
//! | `GET /v1/mirror/{realm}/{address}` | a published object as it stands on the broker; needs no credentials |
//! | `POST /v1/realms/{realm}/tokens` | issues a token of the server's own issuer |
//! | `POST /oauth2/token` | spends a refresh token: the next token (RFC 6749 section 6) |
//! | `POST`, `GET /v1/realms/{realm}/devices` | enrolls a device; lists them |
//! | `GET`, `DELETE /v1/realms/{realm}/devices/{device}` | shows a device; enrolls it no longer, and revokes its tokens |
//! | `POST /v1/realms/{realm}/devices/{device}/tokens` | issues a token to a device and delivers it |
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

mod wait;

mod revocations;

mod cutoffs;

mod stream;

mod issued;

mod fleet;

mod metrics;

mod page;

mod import;

mod mirror;

mod jwks;

mod oauth;

mod ssf;

mod tokens;

mod devices;

mod plan;

mod hooks;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use revocast_core::limits::BODY_BYTES_MAX;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use self::access::{Guard, Rules};
use self::document::Served;
use self::problem::Problem;
use crate::credentials::Gate;
use crate::hooks::Hooks;
use crate::service::Service;
use crate::tokens::Issuers;

/// The routes over a service, behind a gate.
pub fn router(service: Arc<Service>, gate: Arc<Gate>, issuers: Arc<Issuers>, hooks: Arc<Hooks>) -> Router {
    let (timed, mut document) = OpenApiRouter::new()
        .merge(status::routes())
        .merge(realms::routes())
        .merge(revocations::routes())
        .merge(cutoffs::routes())
        .merge(issued::routes())
        .merge(fleet::routes())
        .merge(metrics::routes())
        .merge(jwks::routes())
        .merge(ssf::routes())
        .merge(tokens::routes())
        .merge(devices::routes())
        .merge(plan::routes())
        .merge(hooks::routes(hooks))
        .merge(mirror::guarded_routes())
        .split_for_parts();
    // A report takes as long as it takes; only between two pieces of it the clock runs.
    let (streamed, described) = OpenApiRouter::new()
        .merge(issued::streamed())
        .merge(import::streamed())
        .layer(Extension(Arc::clone(&gate)))
        .split_for_parts();
    document.merge(described);
    document::complete(&mut document);
    let (open, described) =
        OpenApiRouter::new().merge(oauth::routes(&gate)).merge(mirror::routes()).merge(jwks::open()).split_for_parts();
    document.merge(described);
    // Health is not counted: it must answer under load.
    let (health, described) = health::routes().split_for_parts();
    document.merge(described);
    let document = document::finish(document);

    let guard = Arc::new(Guard::new(Arc::clone(&gate), Rules::of(&document)));
    let slots = Arc::new(Slots { taken: AtomicUsize::new(0), gate });
    let entrance = |guard: Option<&Arc<Guard>>, timed| {
        let entrance = Entrance { guard: guard.cloned(), slots: Arc::clone(&slots), timed };
        middleware::from_fn_with_state(entrance, enter)
    };
    // A layer of its own is boxed and copied with every request, and so is every layer within it: hence two of them.
    let around = (
        CatchPanicLayer::custom(|_| {
            let title = "the server made a mistake";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title).into_response()
        }),
        DefaultBodyLimit::max(BODY_BYTES_MAX),
        Extension(issuers),
        middleware::from_fn_with_state(Arc::clone(&service), metrics::count),
    );
    timed
        .layer(entrance(Some(&guard), true))
        .merge(streamed.layer(entrance(Some(&guard), false)))
        .merge(open.layer(entrance(None, true)))
        .merge(health)
        .merge(page::routes())
        .route("/openapi.json", get(document::openapi).with_state(Served::new(&document)))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "path-unknown", "no such path"))
        .method_not_allowed_fallback(async || {
            let title = "the method is not allowed here";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title)
        })
        .layer(around)
        .with_state(service)
}

/// Requests under way, and how many there may be.
struct Slots {
    taken: AtomicUsize,
    gate: Arc<Gate>,
}

/// One of them; given back when dropped.
struct Slot<'a>(&'a Slots);

impl Slots {
    /// Takes one, if one is left.
    fn take(&self) -> Option<Slot<'_>> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(self);
        (before < self.gate.limits().concurrent_requests).then_some(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request meets before a handler does.
#[derive(Clone)]
struct Entrance {
    /// Who lets it in; everybody is let in without one.
    guard: Option<Arc<Guard>>,
    slots: Arc<Slots>,
    /// Whether it must end in time.
    timed: bool,
}

/// Middleware: lets a request in, or answers it.
async fn enter(State(entrance): State<Entrance>, mut request: Request, next: Next) -> Response {
    let Entrance { guard, slots, timed } = entrance;
    if let Some(guard) = guard
        && let Err(denied) = guard.judge(&mut request).await
    {
        return Problem::from(denied).into_response();
    }
    let Some(_slot) = slots.take() else {
        return Problem::overloaded("all request slots are taken").into_response();
    };
    if !timed {
        return next.run(request).await;
    }
    let limit = slots.gate.limits().request_timeout;
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
