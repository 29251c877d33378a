//! What brokers call: HTTP authentication and authorization of EMQX 5, and of the plugin mosquitto-go-auth.
//!
//! The decision is that of [`hooks`](crate::hooks); here are only the shapes. Whatever goes wrong is a no in the terms of
//! the broker that asks.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Form, FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Body, UNPROCESSABLE};
use super::problem::Problem;
use crate::hooks::{Act, Decision, Hooks};
use crate::service::Service;

pub(super) fn routes(hooks: Arc<Hooks>) -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(emqx_authentication))
        .routes(routes!(emqx_authorization))
        .routes(routes!(mosquitto_user))
        .routes(routes!(mosquitto_superuser))
        .routes(routes!(mosquitto_acl))
        .layer(Extension(hooks))
}

/// A client that wants to connect. Members that are not listed are passed over.
#[derive(Deserialize, ToSchema)]
struct ClientBody {
    /// The realm.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    username: String,
    /// The device.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    clientid: String,
    /// Its token.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    password: String,
}

/// A client by its user name alone.
#[derive(Deserialize, ToSchema)]
struct UserBody {
    /// The realm.
    #[serde(rename = "username", deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    _username: String,
}

/// A client that wants to do something. Members that are not listed are passed over.
#[derive(Deserialize, ToSchema)]
struct ActBody {
    /// The realm.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    username: String,
    /// The device.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    clientid: String,
    /// What for.
    topic: String,
    /// Which of the two.
    action: Action,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = HookAction)]
enum Action {
    Publish,
    Subscribe,
}

/// A decision as EMQX reads it.
#[derive(Serialize, ToSchema)]
struct DecisionBody {
    /// `allow`, `deny`, or `ignore`: no device of a realm here, so the next one in the chain decides.
    result: &'static str,
    /// Never: nobody is beyond the rules.
    is_superuser: bool,
    /// When the session ends by itself, with its token (from EMQX 5.8 on); seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at: Option<u64>,
}

impl From<Decision> for Json<DecisionBody> {
    fn from(decision: Decision) -> Self {
        let expire_at = match decision {
            Decision::Allow { until } => until.map(revocast_core::UnixTime::secs),
            Decision::Deny | Decision::Ignore => None,
        };
        Json(DecisionBody { result: decision.name(), is_superuser: false, expire_at })
    }
}

/// Whether a client may connect (HTTP authentication of EMQX 5).
///
/// The user name is that of the realm, the client id that of the device, the password its token.
#[utoipa::path(
    post, path = "/v1/hooks/emqx/authentication", tag = "hooks",
    security(("bearer" = ["broker"]), ("basic" = ["broker"])), request_body = ClientBody,
    responses((status = 200, body = DecisionBody, description = "The decision."))
)]
async fn emqx_authentication(
    Extension(hooks): Extension<Arc<Hooks>>,
    Body(client): Body<ClientBody>,
) -> Json<DecisionBody> {
    hooks.connect(&client.username, &client.clientid, &client.password).await.into()
}

/// Whether a client may publish or subscribe (HTTP authorization of EMQX 5).
#[utoipa::path(
    post, path = "/v1/hooks/emqx/authorization", tag = "hooks",
    security(("bearer" = ["broker"]), ("basic" = ["broker"])), request_body = ActBody,
    responses((status = 200, body = DecisionBody, description = "The decision."))
)]
async fn emqx_authorization(Extension(hooks): Extension<Arc<Hooks>>, Body(asked): Body<ActBody>) -> Json<DecisionBody> {
    let act = match asked.action {
        Action::Publish => Act::Publish,
        Action::Subscribe => Act::Subscribe,
    };
    hooks.act(&asked.username, &asked.clientid, act, &asked.topic).await.into()
}

/// Something that a client of mosquitto wants to do.
#[derive(Deserialize, ToSchema)]
struct AccessBody {
    /// The realm.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    username: String,
    /// The device.
    #[serde(deserialize_with = "text")]
    #[schema(value_type = Option<String>)]
    clientid: String,
    /// What for.
    topic: String,
    /// 1 to read a message, 2 to write, 3 for both, 4 to subscribe.
    #[serde(deserialize_with = "access")]
    #[schema(value_type = u8, minimum = 1, maximum = 4)]
    acc: u8,
}

/// Whether a client may connect (`getuser` of mosquitto-go-auth).
///
/// The user name is that of the realm, the client id that of the device, the password its token.
#[utoipa::path(
    post, path = "/v1/hooks/mosquitto/user", tag = "hooks",
    security(("bearer" = ["broker"]), ("basic" = ["broker"])),
    request_body(content((ClientBody = "application/json"), (ClientBody = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "It may."))
)]
async fn mosquitto_user(
    Extension(hooks): Extension<Arc<Hooks>>,
    Either(client): Either<ClientBody>,
) -> Result<StatusCode, Problem> {
    told(hooks.connect(&client.username, &client.clientid, &client.password).await)
}

/// Whether a client is beyond all rules (`superuser` of mosquitto-go-auth): nobody is.
#[utoipa::path(
    post, path = "/v1/hooks/mosquitto/superuser", tag = "hooks",
    security(("bearer" = ["broker"]), ("basic" = ["broker"])),
    request_body(content((UserBody = "application/json"), (UserBody = "application/x-www-form-urlencoded"))),
    responses((status = 403, description = "It is not."))
)]
async fn mosquitto_superuser(Either(_): Either<UserBody>) -> Problem {
    denied()
}

/// Whether a client may read, write or subscribe (`aclcheck` of mosquitto-go-auth).
#[utoipa::path(
    post, path = "/v1/hooks/mosquitto/acl", tag = "hooks",
    security(("bearer" = ["broker"]), ("basic" = ["broker"])),
    request_body(content((AccessBody = "application/json"), (AccessBody = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "It may."))
)]
async fn mosquitto_acl(
    Extension(hooks): Extension<Arc<Hooks>>,
    Either(asked): Either<AccessBody>,
) -> Result<StatusCode, Problem> {
    let acts: &[Act] = match asked.acc {
        1 | 4 => &[Act::Subscribe],
        2 => &[Act::Publish],
        3 => &[Act::Subscribe, Act::Publish],
        other => {
            let problem = Problem::new(UNPROCESSABLE, "request-malformed", "the request is not what this takes");
            return Err(problem.detail(format!("acc is {other}; 1 to 4 are possible")));
        }
    };
    for act in acts {
        told(hooks.act(&asked.username, &asked.clientid, *act, &asked.topic).await)?;
    }
    Ok(StatusCode::OK)
}

/// Another backend of the plugin may still say yes to whom nobody here knows.
fn told(decision: Decision) -> Result<StatusCode, Problem> {
    if decision.is_allowed() { Ok(StatusCode::OK) } else { Err(denied()) }
}

fn denied() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "hook-denied", "the client may not do this")
}

/// A body in either of two forms that the plugin can send.
struct Either<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Either<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/x-www-form-urlencoded") {
            return Body::from_request(request, state).await.map(|Body(body)| Self(body));
        }
        match Form::<T>::from_request(request, state).await {
            Ok(Form(body)) => Ok(Self(body)),
            Err(rejection) => Err(Problem::new(rejection.status(), "form-malformed", "the form cannot be read")
                .detail(rejection.body_text())),
        }
    }
}

/// A text, or nothing: what a client did not send is null.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// A number, in a form as well.
fn access<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Number(u8),
        Text(String),
    }
    match Shape::deserialize(deserializer)? {
        Shape::Number(number) => Ok(number),
        Shape::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}
