//! The registry over HTTP: reports of issued tokens, read as a stream; its coverage; and `jti`s for new tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use revocast_core::UnixTime;
use revocast_core::limits::{CLEAN_JTIS_MAX, ISSUED_BATCH_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Body, RealmParameter, RealmPath, bad_query, require_type};
use super::problem::{Problem, ProblemBody};
use super::stream::{Intake, Progress, members, take_all};
use crate::credentials::Gate;
use crate::ledger::{Coverage, Issued, Realm, Registration};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(coverage, cover)).routes(routes!(jtis))
}

/// Those that take as long as their body does; only the time between two pieces of it is limited.
pub(super) fn streamed() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(register))
}

/// One line of a report.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuedLine {
    jti: String,
    iat: u64,
    exp: u64,
    sub: Option<String>,
}

/// What became of the tokens of a report.
#[derive(Default, Serialize, ToSchema)]
struct RegistrationBody {
    registered: u64,
    repeated: u64,
    extended: u64,
    late: u64,
    expired: u64,
}

impl RegistrationBody {
    fn add(&mut self, more: Registration) {
        let Registration { new, repeated, extended, late, expired } = more;
        self.registered += new;
        self.repeated += repeated;
        self.extended += extended;
        self.late += late;
        self.expired += expired;
    }
}

/// What became of a whole report.
#[derive(Serialize, ToSchema)]
#[schema(as = RegistrationReport)]
struct ReportBody {
    #[serde(flatten)]
    progress: Progress,
    #[serde(flatten)]
    done: RegistrationBody,
    covered_until: Option<u64>,
}

/// Registers issued tokens line by line as they arrive.
///
/// What is written stays, whatever happens later: a report may be sent again, whole or from the line
/// that a problem names. One JSON object a line: `jti`, `iat`, `exp` and, if there is one, `sub`.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/issued", tag = "registry", security(("bearer" = ["issuer"])),
    params(RealmParameter), request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, body = ReportBody, description = "Read to the end; what was refused is listed by line."),
        (status = 400, body = ProblemBody, content_type = "application/problem+json",
            description = "The stream broke off; `lines_done` says how far it came."),
    )
)]
async fn register(
    State(service): State<Arc<Service>>,
    Extension(gate): Extension<Arc<Gate>>,
    RealmPath(id): RealmPath,
    request: Request,
) -> Result<Json<ReportBody>, Problem> {
    require_type(&request, "application/x-ndjson")?;
    let idle = gate.limits().request_timeout;
    let realm = service.realm(id).await?;
    let mut registry = Registry { service: &service, realm, done: RegistrationBody::default() };
    let progress = take_all(&mut registry, request.into_body(), idle).await?;
    let Registry { done, .. } = registry;
    let covered_until = service.coverage(id).await?.covered_until.map(UnixTime::secs);
    Ok(Json(ReportBody { progress, done, covered_until }))
}

/// Puts tokens into the registry of a realm.
struct Registry<'a> {
    service: &'a Service,
    realm: Realm,
    done: RegistrationBody,
}

impl Intake for Registry<'_> {
    type Line = IssuedLine;
    type Item = Issued;

    const BATCH: usize = ISSUED_BATCH_MAX;

    fn take(&mut self, line: IssuedLine) -> Result<Option<Issued>, String> {
        let IssuedLine { jti, iat, exp, sub } = line;
        let issued = Issued { jti, iat: UnixTime::from_secs(iat), exp: UnixTime::from_secs(exp), sub };
        issued.check(&self.realm, self.service.now()).map_err(|error| error.to_string())?;
        Ok(Some(issued))
    }

    async fn write(&mut self, batch: Vec<Issued>) -> Result<(), Problem> {
        self.done.add(self.service.register(self.realm.id, batch).await?);
        Ok(())
    }

    fn done(&self) -> Map<String, Value> {
        members(&self.done)
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct CoverageBody {
    registered: u64,
    covered_until: Option<u64>,
}

impl From<Coverage> for CoverageBody {
    fn from(coverage: Coverage) -> Self {
        Self { registered: coverage.registered, covered_until: coverage.covered_until.map(UnixTime::secs) }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCoverageBody {
    /// Seconds since 1970; not in the future.
    until: u64,
}

/// Tells how many tokens are registered, and up to when that is all of them.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/coverage", tag = "registry", security(("bearer" = ["reader", "issuer"])),
    params(RealmParameter),
    responses((status = 200, body = CoverageBody, description = "What the registry knows."))
)]
async fn coverage(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
) -> Result<Json<CoverageBody>, Problem> {
    Ok(Json(service.coverage(realm).await?.into()))
}

/// Records that every token issued before a time is registered.
#[utoipa::path(
    put, path = "/v1/realms/{realm}/coverage", tag = "registry", security(("bearer" = ["issuer"])),
    params(RealmParameter), request_body = NewCoverageBody,
    responses(
        (status = 200, body = CoverageBody, description = "Recorded, and durable."),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
            description = "It was complete up to a later time already."),
    )
)]
async fn cover(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<NewCoverageBody>,
) -> Result<Json<CoverageBody>, Problem> {
    Ok(Json(service.cover(realm, UnixTime::from_secs(body.until)).await?.into()))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct JtisQuery {
    /// How many; one unless said.
    #[param(minimum = 1, maximum = 1000)]
    count: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct JtisBody {
    jtis: Vec<String>,
}

/// Draws `jti`s for new tokens, which no filter in force flags.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/jti", tag = "registry", security(("bearer" = ["issuer"])),
    params(RealmParameter, JtisQuery),
    responses(
        (status = 200, body = JtisBody, description = "Each is good for one token."),
        (status = 422, body = ProblemBody, content_type = "application/problem+json",
            description = "The query cannot be used."),
    )
)]
async fn jtis(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    query: Result<Query<JtisQuery>, QueryRejection>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<JtisBody>), Problem> {
    let Query(query) = query?;
    let count = query.count.unwrap_or(1);
    if !(1..=CLEAN_JTIS_MAX).contains(&count) {
        return Err(bad_query(format!("a count of {count}; 1 to {CLEAN_JTIS_MAX} are possible")));
    }
    let jtis = service.clean_jtis(realm, count).await?;
    // Each answer is good once.
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(JtisBody { jtis })))
}
