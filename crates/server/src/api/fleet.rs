//! How the devices of a realm are, as they say themselves.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use revocast_core::Sequence;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{RealmParameter, RealmPath};
use super::problem::Problem;
use crate::fleet::{APPLY_BOUNDS_MS, Listed, Propagation, View};
use crate::service::Service;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(fleet))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct FleetQuery {
    /// Also count the devices online that stand at or above this sequence [default: the head].
    at_least: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct FleetBody {
    /// Last sequence of the ledger.
    head: u64,
    /// Devices that have reported and are remembered.
    known: usize,
    /// Devices that reported within the last two and a half minutes. The shares below are of these.
    online: usize,
    /// Those whose reports their enrolled key has signed. The others are claims.
    proven: usize,
    /// Whether the realm has enrolled devices: then `wait=applied` waits for those that prove themselves.
    enrolled: bool,
    /// Those at the head.
    current: usize,
    /// Their share; absent when none is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_share: Option<f64>,
    /// Those at or above the sequence that was asked for.
    reached: usize,
    /// Their share; absent when none is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached_share: Option<f64>,
    /// Those that claim a sequence that does not exist.
    beyond: usize,
    /// Devices whose refusals rose in more than one report lately.
    attacked: usize,
    profiles: Vec<ProfileBody>,
    memory: MemoryBody,
    propagation: PropagationBody,
    /// At most ten, the one that is silent longest first.
    stalest: Vec<DeviceBody>,
    /// At most ten, the largest rise first.
    refusing: Vec<DeviceBody>,
    /// What was seen on the broker, signed by a publisher.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<SeenBody>,
    heard: HeardBody,
}

#[derive(Serialize, ToSchema)]
struct ProfileBody {
    profile: &'static str,
    devices: usize,
}

#[derive(Serialize, ToSchema)]
struct MemoryBody {
    median_bytes: u64,
    max_bytes: u64,
}

/// Time from recording a revocation until a device's report of it arrived, for recent revocations. It includes up to two
/// seconds that devices wait before they write down and report.
#[derive(Serialize, ToSchema)]
struct PropagationBody {
    /// Recent revocations that some device has applied.
    revocations: usize,
    /// How many times a device has applied one.
    samples: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p90_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ms: Option<u64>,
    buckets: Vec<BucketBody>,
}

#[derive(Serialize, ToSchema)]
struct BucketBody {
    /// Upper bound; absent for the last, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    up_to_ms: Option<u64>,
    count: u64,
}

#[derive(Serialize, ToSchema)]
struct DeviceBody {
    device: String,
    /// Since its last report.
    silent_seconds: u64,
    term: u32,
    epoch: u64,
    sequence: u64,
    /// How old its last proof of currency is; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
    /// Since its start.
    refusals: u64,
    /// Lately.
    rise: u64,
    /// Whether they rose in more than one report.
    repeated: bool,
    /// The last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
struct SeenBody {
    term: u32,
    sequence: u64,
    manifest_at_ms: u64,
}

/// Of all realms of this server, since its start.
#[derive(Serialize, ToSchema)]
struct HeardBody {
    reports: u64,
    malformed: u64,
    foreign: u64,
    forged: u64,
    unproven: u64,
    set_back: u64,
    forgotten: u64,
}

impl From<Listed> for DeviceBody {
    fn from(listed: Listed) -> Self {
        Self {
            device: listed.device.to_string(),
            silent_seconds: listed.silent.as_secs(),
            term: listed.term.0,
            epoch: listed.position.epoch.0,
            sequence: listed.position.sequence.0,
            age_seconds: listed.age.map(|age| age.as_secs()),
            refusals: listed.refusals,
            rise: listed.rise,
            repeated: listed.repeated,
            refusal: listed.refusal,
        }
    }
}

impl From<&Propagation> for PropagationBody {
    fn from(propagation: &Propagation) -> Self {
        let quantile = |share| propagation.quantile(share).map(|time| time.as_millis() as u64);
        let bounds = APPLY_BOUNDS_MS.into_iter().map(Some).chain([None]);
        Self {
            revocations: propagation.revocations,
            samples: propagation.samples(),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            buckets: bounds.zip(propagation.buckets).map(|(up_to_ms, count)| BucketBody { up_to_ms, count }).collect(),
        }
    }
}

impl FleetBody {
    fn new(head: Sequence, view: View) -> Self {
        let share = |some: usize| (view.online > 0).then(|| some as f64 / view.online as f64);
        Self {
            head: head.0,
            known: view.known,
            online: view.online,
            proven: view.proven,
            enrolled: view.enrolled,
            current: view.current,
            current_share: share(view.current),
            reached: view.reached,
            reached_share: share(view.reached),
            beyond: view.beyond,
            attacked: view.attacked,
            profiles: view
                .profiles
                .iter()
                .map(|(profile, devices)| ProfileBody { profile: profile.name(), devices: *devices })
                .collect(),
            memory: MemoryBody { median_bytes: view.memory_median, max_bytes: view.memory_max },
            propagation: PropagationBody::from(&view.propagation),
            stalest: view.stalest.into_iter().map(DeviceBody::from).collect(),
            refusing: view.refusing.into_iter().map(DeviceBody::from).collect(),
            seen: view.sighting.map(|sighting| SeenBody {
                term: sighting.term.0,
                sequence: sighting.sequence.0,
                manifest_at_ms: sighting.manifest_at.millis(),
            }),
            heard: HeardBody {
                reports: view.heard.reports,
                malformed: view.heard.malformed,
                foreign: view.heard.foreign,
                forged: view.heard.forged,
                unproven: view.heard.unproven,
                set_back: view.heard.set_back,
                forgotten: view.heard.forgotten,
            },
        }
    }
}

/// Tells how the devices of a realm are: who is online, who has applied what, how long it took, who refuses.
///
/// Reports of enrolled devices are signed; those of others are claims, and `proven` counts who is not among them.
#[utoipa::path(
    get, path = "/v1/realms/{realm}/fleet", tag = "fleet", security(("bearer" = ["reader"])),
    params(RealmParameter, FleetQuery),
    responses(
        (status = 200, body = FleetBody, description = "How they are."),
        (status = 422, body = super::problem::ProblemBody, content_type = "application/problem+json", description = "The query cannot be used."),
    )
)]
async fn fleet(
    State(service): State<Arc<Service>>,
    RealmPath(realm): RealmPath,
    query: Result<Query<FleetQuery>, QueryRejection>,
) -> Result<Json<FleetBody>, Problem> {
    let Query(FleetQuery { at_least }) = query?;
    let at_least = at_least.map(Sequence);
    let (head, view) = service.fleet(realm, at_least).await?;
    Ok(Json(FleetBody::new(head, view)))
}
