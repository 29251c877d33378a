//! What handlers take from a request: the realm in its path, a body, a query; each read strictly or refused.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use revocast_core::RealmId;
use revocast_core::limits::{BATCH_REQUESTS_MAX, BODY_BYTES_MAX};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;

/// For a request that is well-formed and asks for what cannot be.
pub(super) const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

/// 201 if something is new, else 200: a request may be repeated.
pub(super) const fn created(new: bool) -> StatusCode {
    if new { StatusCode::CREATED } else { StatusCode::OK }
}

/// The realm in a path, for the document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only described; RealmPath reads it")]
pub(super) struct RealmParameter {
    /// Name of the realm.
    #[param(pattern = "^[a-z0-9-]{1,64}$", example = "fleet")]
    realm: String,
}

/// The realm named in the path.
pub(super) struct RealmPath(pub(super) RealmId);

impl<S: Send + Sync> FromRequestParts<S> for RealmPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let unknown =
            |detail: String| Problem::new(StatusCode::NOT_FOUND, "realm-unknown", "no such realm").detail(detail);
        let Path(name) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|error| unknown(error.body_text()))?;
        RealmId::new(&name).map(Self).map_err(|error| unknown(error.to_string()))
    }
}

/// A JSON body, read strictly.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        require_type(&request, "application/json")?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| unreadable(&rejection))?;
        let read: Result<Object<T>, _> = serde_json::from_slice(&bytes);
        read.map(|Object(body)| Self(body)).map_err(|error| malformed(&error))
    }
}

/// A JSON object, and nothing else: serde would take an array for a struct too, member by member.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

/// Refuses a body of another type than `wanted`.
pub(super) fn require_type(request: &Request, wanted: &'static str) -> Result<(), Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).map_or("", str::trim);
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", "the body is of another type");
    Err(problem.detail(match content_type {
        Some(found) => format!("it must be {wanted}, and the content type is {found:?}"),
        None => format!("it must be {wanted}, and there is no content type"),
    }))
}

pub(super) fn unreadable(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large").detail(format!(
            "a body has at most {BODY_BYTES_MAX} bytes; a batch at most {BATCH_REQUESTS_MAX} entries"
        ));
    }
    Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "the body ended early").detail(rejection.body_text())
}

fn malformed(error: &serde_json::Error) -> Problem {
    let (status, kind, title) = match error.classify() {
        serde_json::error::Category::Data => {
            (UNPROCESSABLE, "request-malformed", "the JSON is not what this request takes")
        }
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            (StatusCode::BAD_REQUEST, "json-malformed", "the body is not JSON")
        }
    };
    Problem::new(status, kind, title).detail(error.to_string())
}

/// A query that cannot be used, and why.
pub(super) fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(UNPROCESSABLE, "query-malformed", "the query cannot be used").detail(detail)
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        bad_query(rejection.body_text())
    }
}
