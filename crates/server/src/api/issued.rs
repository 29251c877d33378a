//! The registry over HTTP: reports of issued tokens, read as a stream; its coverage; and `jti`s for new tokens.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body as HttpBody, Bytes, HttpBody as _};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use revocast_core::UnixTime;
use revocast_core::limits::{CLEAN_JTIS_MAX, ISSUED_BATCH_MAX, ISSUED_LINE_BYTES_MAX, ISSUED_PROBLEMS_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Body, RealmParameter, RealmPath, bad_query, require_type};
use super::problem::{Problem, ProblemBody};
use crate::ledger::{Coverage, Issued, Realm, Registration};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(coverage, cover)).routes(routes!(jtis))
}

/// Those that take as long as their body does; [`Idle`] limits the time between two pieces of it.
pub(super) fn streamed() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(register))
}

/// How long a streamed body may pause.
#[derive(Clone, Copy)]
pub(super) struct Idle(pub(super) Duration);

/// One line of a report.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuedLine {
    jti: String,
    iat: u64,
    exp: u64,
    sub: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct LineProblem {
    line: u64,
    detail: String,
}

/// What became of a report, as far as it came.
#[derive(Default, Serialize, ToSchema)]
struct Report {
    /// Lines read, blank ones included, so that this is the number of the last.
    lines: u64,
    #[serde(flatten, with = "RegistrationBody")]
    #[schema(value_type = RegistrationBody)]
    done: Registration,
    refused: u64,
    problems: Vec<LineProblem>,
}

#[derive(Serialize, ToSchema)]
#[serde(remote = "Registration")]
struct RegistrationBody {
    #[serde(rename = "registered")]
    new: u64,
    repeated: u64,
    extended: u64,
    late: u64,
    expired: u64,
}

/// What became of a whole report.
#[derive(Serialize, ToSchema)]
#[schema(as = RegistrationReport)]
struct ReportBody {
    #[serde(flatten)]
    report: Report,
    covered_until: Option<u64>,
}

impl Report {
    fn refuse(&mut self, line: u64, detail: String) {
        self.refused += 1;
        if self.problems.len() < ISSUED_PROBLEMS_MAX {
            self.problems.push(LineProblem { line, detail });
        }
    }

    /// The members of a problem document about a report that was not read to its end.
    fn members(&self, lines_done: u64) -> Map<String, Value> {
        let mut members = match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members,
            // Numbers and texts always serialize to an object.
            Ok(_) | Err(_) => Map::new(),
        };
        members.insert("lines_done".to_owned(), lines_done.into());
        members
    }
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
    Extension(Idle(idle)): Extension<Idle>,
    RealmPath(id): RealmPath,
    request: Request,
) -> Result<Json<ReportBody>, Problem> {
    require_type(&request, "application/x-ndjson")?;
    let realm = service.realm(id).await?;
    let (report, batch) = (Report::default(), Vec::new());
    let mut import = Import { service: &service, realm: &realm, idle, report, batch, durable: 0 };
    let read = match import.read(request.into_body()).await {
        Ok(()) => service.coverage(id).await.map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    match read {
        Ok(coverage) => {
            let covered_until = coverage.covered_until.map(UnixTime::secs);
            Ok(Json(ReportBody { report: import.report, covered_until }))
        }
        Err(problem) => Err(problem.members(import.report.members(import.durable))),
    }
}

/// A report on its way into the ledger.
struct Import<'a> {
    service: &'a Service,
    realm: &'a Realm,
    idle: Duration,
    report: Report,
    /// Read, and not written yet.
    batch: Vec<Issued>,
    /// The number of the line up to which everything is written or refused.
    durable: u64,
}

impl Import<'_> {
    async fn read(&mut self, mut body: HttpBody) -> Result<(), Problem> {
        let mut lines = Lines::default();
        loop {
            let piece = match timeout(self.idle, next(&mut body)).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    // What is complete goes in; the line that was broken off does not, whatever it looks like.
                    self.write().await?;
                    let title = "the report ended early";
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "stream-broken", title).detail(error.to_string()));
                }
                Err(_) => {
                    self.write().await?;
                    return Err(self.too_long("nothing came"));
                }
            };
            let mut rest: &[u8] = &piece;
            while lines.take(&mut rest) {
                self.line(lines.finish()).await?;
            }
        }
        if lines.is_begun() {
            self.line(lines.finish()).await?;
        }
        self.write().await
    }

    async fn line(&mut self, line: Line) -> Result<(), Problem> {
        self.report.lines += 1;
        let number = self.report.lines;
        match line.parse().and_then(|issued| match issued {
            Some(issued) => match issued.check(self.realm, self.service.now()) {
                Ok(()) => Ok(Some(issued)),
                Err(error) => Err(error.to_string()),
            },
            None => Ok(None),
        }) {
            Ok(Some(issued)) => self.batch.push(issued),
            Ok(None) => {}
            Err(detail) => self.report.refuse(number, detail),
        }
        if self.batch.len() == ISSUED_BATCH_MAX { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> Result<(), Problem> {
        if !self.batch.is_empty() {
            let batch = mem::take(&mut self.batch);
            let written = timeout(self.idle, self.service.register(self.realm.id, batch)).await;
            self.report.done += written.map_err(|_| self.too_long("the ledger did not answer"))??;
        }
        self.durable = self.report.lines;
        Ok(())
    }

    fn too_long(&self, what: &str) -> Problem {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "the request took too long")
            .detail(format!("{what} for {} s", self.idle.as_secs()))
    }
}

/// The next piece of a body; trailers are passed over.
async fn next(body: &mut HttpBody) -> Option<Result<Bytes, axum::Error>> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(piece)) => return Some(Ok(piece)),
            Ok(Err(_trailers)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Cuts pieces into lines; holds one line at a time, and never more than its limit.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    bytes: usize,
}

/// One line without its end.
enum Line {
    Text(Vec<u8>),
    TooLong { bytes: usize },
}

impl Lines {
    /// Moves bytes of `piece` into the line; true when it is complete.
    fn take(&mut self, piece: &mut &[u8]) -> bool {
        let end = piece.iter().position(|&byte| byte == b'\n');
        let (part, rest) = match end {
            Some(end) => (&piece[..end], &piece[end + 1..]),
            None => (*piece, &[][..]),
        };
        self.bytes += part.len();
        let room = ISSUED_LINE_BYTES_MAX.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        *piece = rest;
        end.is_some()
    }

    const fn is_begun(&self) -> bool {
        self.bytes > 0
    }

    fn finish(&mut self) -> Line {
        let (line, bytes) = (mem::take(&mut self.line), mem::take(&mut self.bytes));
        if bytes > ISSUED_LINE_BYTES_MAX { Line::TooLong { bytes } } else { Line::Text(line) }
    }
}

impl Line {
    /// The token it names; nothing if it is blank; or what is wrong with it.
    fn parse(self) -> Result<Option<Issued>, String> {
        let text = match self {
            Self::TooLong { bytes } => {
                return Err(format!("the line has {bytes} bytes, more than {ISSUED_LINE_BYTES_MAX}"));
            }
            Self::Text(text) => text,
        };
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        let line: IssuedLine = serde_json::from_slice(&text).map_err(|error| {
            // Its number among all lines is told beside.
            error.to_string().replace(" at line 1 column ", " at column ")
        })?;
        let IssuedLine { jti, iat, exp, sub } = line;
        Ok(Some(Issued { jti, iat: UnixTime::from_secs(iat), exp: UnixTime::from_secs(exp), sub }))
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
