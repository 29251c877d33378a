//! The `OpenAPI` document: what the handlers say of themselves, and what every request may meet besides.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, Ref, Response as Documented, ResponseBuilder};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::access::BEARER;
use super::problem::ProblemBody;

/// What stands above the document.
const DESCRIPTION: &str = "Makes \"this token is revoked\" true on every device about a second after somebody says so. \
     Every refusal is a problem document (RFC 9457). Every request may be repeated: what is recorded already is not \
     recorded again.";

/// Describes what the layers around guarded handlers answer, so that no handler has to.
pub(super) fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let names_realm = path.contains("{realm}");
        for operation in operations(item) {
            let mut may = |status: &str, description: &str| {
                let responses = &mut operation.responses.responses;
                responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
            };
            may("401", "No credentials, or wrong ones.");
            may("403", "The credential has not the role, or is not for this realm; `needs` lists the roles that do.");
            may("408", "The request took too long; repeat it.");
            may("429", "The credential asks too often; come back after `Retry-After`.");
            may("500", "A mistake of the server.");
            may("503", "The server is overloaded or stopping; come back after `Retry-After`.");
            if names_realm {
                may("404", "No such realm.");
            }
            if operation.request_body.is_some() {
                let mut may = |status: &str, description: &str| {
                    let responses = &mut operation.responses.responses;
                    responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
                };
                may("400", "The body is not what its content type says, or ended early.");
                may("413", "The body is too large.");
                may("415", "The body is of another content type.");
                may("422", "The request asks for what cannot be; the type says what.");
                may("507", "No room is left; nothing was recorded.");
            }
        }
    }
}

/// The whole document, ready to be served.
pub(super) fn finish(mut document: OpenApi) -> Value {
    document.info =
        InfoBuilder::new().title("Revocast").description(Some(DESCRIPTION)).version(env!("CARGO_PKG_VERSION")).build();
    let components = document.components.get_or_insert_default();
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The secret of a credential; the roles listed with an operation are those that may use it."))
        .build();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    let basic = Http::builder()
        .scheme(HttpAuthScheme::Basic)
        .description(Some("Name and secret of a credential, for clients that speak OAuth 2.0."))
        .build();
    components.add_security_scheme("basic", SecurityScheme::Http(basic));
    // The router's way of saying that a parameter may hold slashes.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    // Maps of texts always serialize; the default is never taken.
    serde_json::to_value(&document).unwrap_or_default()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.head, &mut item.patch]
        .into_iter()
        .filter_map(Option::as_mut)
}

fn problem(description: &str) -> Documented {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemBody::name()))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", content).build()
}

/// The document as bytes, made once.
#[derive(Clone)]
pub(super) struct Served(Arc<[u8]>);

impl Served {
    pub(super) fn new(document: &Value) -> Self {
        // Serde's values always serialize; the default is never taken.
        Self(serde_json::to_vec(document).unwrap_or_default().into())
    }
}

/// `GET /openapi.json`
pub(super) async fn openapi(State(Served(bytes)): State<Served>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], bytes.to_vec()).into_response()
}
