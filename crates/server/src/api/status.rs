//! How the server is: realms, heads, what is published, the broker.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use revocast_core::UnixMillis;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::issued::CoverageBody;
use super::problem::Problem;
use super::realms::RealmBody;
use crate::broker::LinkState;
use crate::leader::Office;
use crate::publisher::FilterHealth;
use crate::service::{Published, RealmStatus, Service};

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(status))
}

#[derive(Serialize, ToSchema)]
struct StatusBody {
    version: &'static str,
    /// The server's time, milliseconds since 1970: what ages are told against.
    now_ms: u64,
    leader: LeaderBody,
    ledger: LedgerBody,
    broker: BrokerBody,
    realms: Vec<RealmStatusBody>,
}

#[derive(Serialize, ToSchema)]
struct LeaderBody {
    /// Whether this server publishes.
    leading: bool,
    /// Which server does, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
    /// Where that one is reached, if it told.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Why this server could not publish if it had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl From<Office> for LeaderBody {
    fn from(office: Office) -> Self {
        let nothing = Self { leading: false, leader: None, address: None, trouble: None };
        match office {
            Office::Seeking => nothing,
            Office::Leading => Self { leading: true, ..nothing },
            Office::Following { leader, address } => Self { leader: Some(leader), address, ..nothing },
            Office::Unable { cause } => Self { trouble: Some(cause), ..nothing },
        }
    }
}

#[derive(Serialize, ToSchema)]
struct LedgerBody {
    writable: bool,
}

#[derive(Serialize, ToSchema)]
struct BrokerBody {
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct RealmStatusBody {
    #[serde(flatten)]
    realm: RealmBody,
    term: u32,
    head: u64,
    #[serde(flatten)]
    coverage: CoverageBody,
    published: Option<PublishedBody>,
}

#[derive(Serialize, ToSchema)]
struct PublishedBody {
    term: u32,
    epoch: u64,
    sequence: u64,
    issued_at_ms: u64,
    /// How old the last manifest is that the broker acknowledged.
    heartbeat_age_ms: u64,
    objects: usize,
    revocations: u64,
    snapshot_bytes: u64,
    filter_bytes: u64,
    ladder_bytes: u64,
    exceptions_bytes: u64,
    delta_bytes: u64,
    questions_answered: u64,
    questions_dropped: u64,
    /// Version of the realm's keys on the broker; absent while it is not known to hold the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_version: Option<u64>,
    /// Bytes of the snapshot, in bits, for each live revocation; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_revocation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_health: Option<FilterHealthBody>,
    /// Why the newest epoch has the filter it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// How good the filter of the newest epoch is, as its bits are and not as it was meant.
#[derive(Serialize, ToSchema)]
struct FilterHealthBody {
    /// Share of the bits that are set.
    fill: f64,
    /// Rate of false positives that these bits give.
    rate: f64,
    /// The rate it was built for; absent if it was built before the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    meant: Option<f64>,
}

impl RealmStatusBody {
    fn new(status: RealmStatus, now: UnixMillis) -> Self {
        let published = status.published.map(
            |Published {
                 term,
                 position,
                 at,
                 objects,
                 revocations,
                 sizes,
                 filter,
                 choice,
                 trouble,
                 questions,
                 keys_version,
             }| {
                PublishedBody {
                    term: term.0,
                    epoch: position.epoch.0,
                    sequence: position.sequence.0,
                    issued_at_ms: at.millis(),
                    heartbeat_age_ms: now.since(at).as_millis() as u64,
                    objects,
                    revocations,
                    snapshot_bytes: sizes.snapshot,
                    filter_bytes: sizes.filter,
                    ladder_bytes: sizes.ladder,
                    exceptions_bytes: sizes.exceptions,
                    delta_bytes: sizes.delta,
                    questions_answered: questions.answered,
                    questions_dropped: questions.dropped,
                    keys_version,
                    bits_per_revocation: (revocations > 0).then(|| sizes.snapshot as f64 * 8.0 / revocations as f64),
                    filter_health: filter.map(|FilterHealth { fill, rate, meant }| FilterHealthBody {
                        fill,
                        rate,
                        meant,
                    }),
                    filter: choice.map(|choice| choice.to_string()),
                    trouble,
                }
            },
        );
        let (term, head, coverage) = (status.term.0, status.head.0, status.coverage.into());
        Self { realm: status.realm.into(), term, head, coverage, published }
    }
}

/// Tells how the server is: of every realm that the credential is for, and the broker.
#[utoipa::path(
    get, path = "/v1/status", tag = "status", security(("bearer" = ["reader"])),
    responses((status = 200, body = StatusBody, description = "How it is."))
)]
async fn status(State(service): State<Arc<Service>>, caller: Caller) -> Result<Json<StatusBody>, Problem> {
    let status = service.status().await?;
    let broker = match status.broker {
        LinkState::Connecting => BrokerBody { connected: false, connection: None, trouble: None },
        LinkState::Up { connection } => BrokerBody { connected: true, connection: Some(connection), trouble: None },
        LinkState::Down { cause } => BrokerBody { connected: false, connection: None, trouble: Some(cause) },
    };
    let seen = status.realms.into_iter().filter(|status| caller.may_enter(status.realm.id));
    Ok(Json(StatusBody {
        version: env!("CARGO_PKG_VERSION"),
        now_ms: status.at.millis(),
        leader: status.office.into(),
        ledger: LedgerBody { writable: status.ledger_writable },
        broker,
        realms: seen.map(|realm| RealmStatusBody::new(realm, status.at)).collect(),
    }))
}
