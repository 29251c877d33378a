//! The agent's own token: who it is, and `GET /token` for programs beside it.
//!
//! The text of the token is given there and nowhere else, never in a log.

use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use revocast_core::{NoRenewal, TokenTopic};
use revocast_device::{Call, Identity, Inbox, InboxConfig, NotHeld, SystemClock, TokenState};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::Problem;
use crate::args::Agent;
use crate::device;
use crate::output::Failure;

/// The identity that was named, if one was.
pub fn identity(arguments: &Agent) -> Result<Option<Identity>, Failure> {
    let Some(path) = &arguments.identity else { return Ok(None) };
    Identity::load(path).map(Some).map_err(|error| device::failure(&error))
}

/// How this agent gets its tokens.
pub fn inbox(arguments: &Agent, identity: Identity) -> Result<InboxConfig, Failure> {
    let bad = |what: &str, error: &dyn std::error::Error| Failure::new("bad-argument", what, error).usage();
    let own = &arguments.token_audience;
    let audiences = if own.is_empty() { &arguments.audience } else { own };
    let topic = TokenTopic::parse(&arguments.token_topic).map_err(|error| bad("--token-topic", &error))?;
    let lifetime_max = Duration::from_secs(arguments.lifetime);
    let inbox = InboxConfig::new(identity, audiences.clone()).with_topic(topic).with_lifetime_max(lifetime_max);
    Ok(if arguments.clear_tokens { inbox.with_clear_deliveries() } else { inbox })
}

/// Where programs on this machine get the token. Whoever can ask has it; what it is bound to stays here.
pub fn router(inbox: Option<Inbox>) -> Router {
    Router::new().route("/token", get(token)).with_state(inbox)
}

/// A call that the token shall be shown at (RFC 9449).
#[derive(Deserialize)]
struct Called {
    method: Option<String>,
    uri: Option<String>,
}

/// With `?method=POST&uri=https://…` a proof for that call comes with it, for the header `DPoP`; it is good once.
async fn token(State(inbox): State<Option<Inbox>>, Query(called): Query<Called>) -> Response {
    let Some(inbox) = inbox else {
        let detail = "start the agent with --identity".to_owned();
        return Problem(StatusCode::NOT_FOUND, "no-identity", detail).into_response();
    };
    let mut standing = standing(&inbox);
    if let (Called { method: Some(method), uri: Some(uri) }, Some(token)) = (called, standing["token"].as_str()) {
        let call = Call::Http { method: &method, uri: &uri };
        match inbox.identity().prover().prove(SystemClock::now(), &call, token) {
            Ok(proof) => standing["proof"] = proof.into(),
            Err(error) => {
                return Problem(StatusCode::INTERNAL_SERVER_ERROR, "no-random", error.to_string()).into_response();
            }
        }
    }
    // No proxy and no browser keeps it.
    ([(header::CACHE_CONTROL, "no-store")], Json(standing)).into_response()
}

/// How it stands, looked at again just now.
fn standing(inbox: &Inbox) -> Value {
    match inbox.present(SystemClock::now()) {
        Ok(text) => match inbox.current() {
            TokenState::Held(held) if held.text() == text => json!({
                "state": "held", "token": text, "jti": held.token().jti(), "sub": held.token().subject(),
                "exp": held.token().expires_at().secs(), "since": held.since().floor().secs(),
            }),
            // Another has come in this very moment.
            _ => json!({ "state": "held", "token": text }),
        },
        Err(NotHeld::Absent) => {
            let refused = match inbox.current() {
                TokenState::Absent { refused } => refused.map(NoRenewal::name),
                TokenState::Held(_) | TokenState::Revoked { .. } | TokenState::Expired { .. } => None,
            };
            json!({ "state": "absent", "refused": refused })
        }
        Err(NotHeld::Revoked { jti }) => json!({ "state": "revoked", "jti": &*jti }),
        Err(NotHeld::Expired { jti, exp }) => json!({ "state": "expired", "jti": &*jti, "exp": exp.secs() }),
    }
}
