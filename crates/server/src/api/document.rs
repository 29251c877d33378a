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

use super::access::{BASIC, BEARER};
use super::problem::ProblemBody;

/// What stands above the document.
const DESCRIPTION: &str = "Makes \"this token is revoked\" true on every device about a second after somebody says so. \
     Every refusal is a problem document (RFC 9457). Every request may be repeated: what is recorded already is not \
     recorded again.";

/// What every guarded operation may answer.
const ALWAYS: [(&str, &str); 6] = [
    ("401", "No credentials, or wrong ones."),
    ("403", "The credential has not the role, and `needs` lists those that have; or it is not for this realm."),
    ("408", "The request took too long; repeat it."),
    ("429", "The credential asks too often, or for too much; come back after `Retry-After`."),
    ("500", "A mistake of the server."),
    ("503", "The server is overloaded or stopping; come back after `Retry-After`."),
];

/// What one may answer that takes a body.
const WITH_BODY: [(&str, &str); 4] = [
    ("400", "The body is not what its content type says, or ended early."),
    ("413", "The body is too large."),
    ("415", "The body is of another content type."),
    ("507", "No room is left; nothing was recorded."),
];

/// Describes what the layers around guarded handlers answer, so that no handler has to.
pub(super) fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            let (body, asked) = (operation.request_body.is_some(), operation.parameters.is_some());
            let realm = path.contains("{realm}").then_some(("404", "No such realm, or nothing there."));
            let meaning =
                (body || asked).then_some(("422", "The request asks for what cannot be; the type says what."));
            let with_body = WITH_BODY.into_iter().filter(|_| body);
            for (status, description) in ALWAYS.into_iter().chain(with_body).chain(realm).chain(meaning) {
                let responses = &mut operation.responses.responses;
                responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
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
    components.add_security_scheme(BASIC, SecurityScheme::Http(basic));
    // The router's way of saying that a parameter may hold slashes.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    // Maps of texts always serialize; the default is never taken.
    let mut document = serde_json::to_value(&document).unwrap_or_default();
    unsign(&mut document);
    document
}

/// Numbers from 0 on are those of 64 bits without a sign: the macros know one name for both.
fn unsign(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let unsigned = members.get("minimum") == Some(&Value::from(0));
            if unsigned && members.get("format") == Some(&Value::from("int64")) {
                members.insert("format".to_owned(), "uint64".into());
            }
            members.values_mut().for_each(unsign);
        }
        Value::Array(items) => items.iter_mut().for_each(unsign),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
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
