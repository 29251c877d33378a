//! Lists of revoked tokens that another system kept, read as a stream.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use revocast_core::limits::{BATCH_REQUESTS_MAX, REASON_BYTES_MAX};
use revocast_core::{Jti, UnixTime};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{RealmParameter, RealmPath, require_type};
use super::problem::{Problem, ProblemBody};
use super::revocations::RevocationBody;
use super::stream::{Intake, Progress, members, take_all};
use crate::credentials::Gate;
use crate::ledger::Realm;
use crate::service::{Revocation, Service};

/// From here on an `exp` is in milliseconds: in seconds it is the year 5138. One request for one token may say so,
/// and costs memory; of a million somebody wants to know.
const MILLISECONDS_FROM: u64 = 100_000_000_000;

/// A batch is written well within this.
const SPARE_SECONDS: u64 = 600;

pub(super) fn streamed() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(import))
}

/// What became of the tokens of a list.
#[derive(Default, Serialize, ToSchema)]
struct ImportedBody {
    /// Revoked now.
    recorded: u64,
    /// Revoked before.
    repeated: u64,
    /// Expired for everybody, so not recorded.
    expired: u64,
}

/// What became of a whole list.
#[derive(Serialize, ToSchema)]
#[schema(as = ImportReport)]
struct ReportBody {
    #[serde(flatten)]
    progress: Progress,
    #[serde(flatten)]
    done: ImportedBody,
}

/// Revokes every token of a list, line by line as it arrives.
///
/// What is recorded stays, whatever happens later: a list may be sent again, whole or from the line that a
/// problem names. One JSON object a line: `jti`, `exp` and, if there is one, `reason`.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/revocations/import", tag = "revocations", security(("bearer" = ["revoker"])),
    params(RealmParameter), request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, body = ReportBody, description = "Read to the end; what was refused is listed by line."),
        (status = 400, body = ProblemBody, content_type = "application/problem+json",
            description = "The stream broke off; `lines_done` says how far it came."),
    )
)]
async fn import(
    State(service): State<Arc<Service>>,
    Extension(gate): Extension<Arc<Gate>>,
    caller: Caller,
    RealmPath(id): RealmPath,
    request: Request,
) -> Result<Json<ReportBody>, Problem> {
    require_type(&request, "application/x-ndjson")?;
    let idle = gate.limits().request_timeout;
    let realm = service.realm(id).await?;
    let mut list = List { service: &service, caller: &caller, realm, done: ImportedBody::default() };
    let progress = take_all(&mut list, request.into_body(), idle).await?;
    Ok(Json(ReportBody { progress, done: list.done }))
}

/// Records revocations in a realm.
struct List<'a> {
    service: &'a Service,
    caller: &'a Caller,
    realm: Realm,
    done: ImportedBody,
}

impl Intake for List<'_> {
    type Line = RevocationBody;
    type Item = Revocation;

    const BATCH: usize = BATCH_REQUESTS_MAX;

    fn take(&mut self, line: RevocationBody) -> Result<Option<Revocation>, String> {
        let mut revocation = Revocation::from(line);
        Jti::new(&revocation.jti).map_err(|error| error.to_string())?;
        let reason_bytes = revocation.reason.as_ref().map_or(0, String::len);
        if reason_bytes > REASON_BYTES_MAX {
            return Err(format!("the reason has {reason_bytes} bytes, more than {REASON_BYTES_MAX}"));
        }
        if revocation.exp >= UnixTime::from_secs(MILLISECONDS_FROM) {
            return Err(format!("exp {} is in milliseconds; seconds since 1970 are wanted", revocation.exp));
        }
        let horizon = self.realm.horizon(self.service.now());
        if revocation.exp <= horizon {
            self.done.expired += 1;
            return Ok(None);
        }
        // Too late does no harm; one that expired before its batch is written would refuse the batch.
        revocation.exp = revocation.exp.max(horizon.plus(SPARE_SECONDS));
        Ok(Some(revocation))
    }

    async fn write(&mut self, batch: Vec<Revocation>) -> Result<(), Problem> {
        self.caller.charge(batch.len())?;
        let receipts = self.service.revoke(self.realm.id, batch, self.caller.name()).await?;
        let recorded = receipts.iter().filter(|receipt| receipt.recorded).count() as u64;
        self.done.recorded += recorded;
        self.done.repeated += receipts.len() as u64 - recorded;
        Ok(())
    }

    fn done(&self) -> Map<String, Value> {
        members(&self.done)
    }
}
