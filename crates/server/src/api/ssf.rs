//! Security events of an identity provider (`OpenID` Shared Signals), pushed to us (RFC 8935).
//!
//! `session-revoked` and `credential-change` become a cutoff for the subject they speak of; any other event is
//! acknowledged and passed over. Whose events are believed is set per realm: a transmitter with its keys.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use revocast_core::{RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Body, Object, RealmParameter, RealmPath, require_type};
use super::jwks::KeySetBody;
use super::problem::Problem;
use crate::ledger::{Realm, Scope};
use crate::service::Service;
use crate::tokens::{Audience, Date, Issuers, Token, Transmitter};

const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const CREDENTIAL_CHANGE: &str = "https://schemas.openid.net/secevent/caep/event-type/credential-change";

/// Events in one token. The standard says one.
const EVENTS_MAX: usize = 8;

/// Subjects of one event: an `aliases` identifier has two or three.
const SUBJECTS_MAX: usize = 8;

/// Tokens whose `jti` is remembered. Repeating one changes nothing anyway, unless its cutoff was lifted since.
const SEEN_MAX: usize = 4_096;

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(receive))
        .routes(routes!(set_transmitter))
        .layer(Extension(Arc::new(Seen::default())))
}

/// The tokens taken in last.
#[derive(Default)]
struct Seen(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    set: HashSet<(RealmId, String)>,
    order: VecDeque<(RealmId, String)>,
}

impl Seen {
    fn contains(&self, realm: RealmId, jti: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).set.contains(&(realm, jti.to_owned()))
    }

    fn insert(&self, realm: RealmId, jti: String) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { set, order } = &mut *seen;
        if set.insert((realm, jti.clone())) {
            order.push_back((realm, jti));
        }
        if order.len() > SEEN_MAX
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }
}

/// Why a token was not taken in (RFC 8935 section 2.4).
#[derive(Serialize, ToSchema)]
#[schema(as = SetError)]
struct RefusedBody {
    /// Which.
    err: &'static str,
    /// What happened.
    description: String,
}

enum Refused {
    Token { err: &'static str, description: String },
    Other(Problem),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Other(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Token { err, description } => {
                let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_LANGUAGE, "en")];
                (StatusCode::BAD_REQUEST, headers, Json(RefusedBody { err, description })).into_response()
            }
            Self::Other(problem) => problem.into_response(),
        }
    }
}

fn refused(err: &'static str, description: impl Into<String>) -> Refused {
    Refused::Token { err, description: description.into() }
}

/// A security event token (RFC 8417).
#[derive(Deserialize)]
struct EventToken {
    iss: String,
    jti: String,
    aud: Audience,
    iat: Date,
    sub_id: Option<Subject>,
    events: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Event {
    event_timestamp: Option<Date>,
    // Where it stood before the standard was final.
    subject: Option<Subject>,
}

/// A subject identifier (RFC 9493), as far as it may name a `sub` of ours.
#[derive(Deserialize)]
struct Subject {
    format: Option<String>,
    iss: Option<String>,
    sub: Option<String>,
    id: Option<String>,
    email: Option<String>,
    user: Option<Box<Self>>,
    identifiers: Option<Vec<Self>>,
}

impl Subject {
    /// The `sub`s of the realm that it names.
    fn subs(self, realm: &Realm) -> Vec<String> {
        match self.format.as_deref() {
            Some("iss_sub") => self.sub.filter(|_| self.iss.as_deref() == Some(&realm.issuer)).into_iter().collect(),
            Some("opaque") => self.id.into_iter().collect(),
            Some("email") => self.email.into_iter().collect(),
            Some("complex") => self.user.map_or_else(Vec::new, |user| user.subs(realm)),
            Some("aliases") => {
                let aliases = self.identifiers.into_iter().flatten().take(SUBJECTS_MAX);
                aliases.filter(|one| one.format.as_deref() != Some("aliases")).flat_map(|one| one.subs(realm)).collect()
            }
            Some(_) | None => Vec::new(),
        }
    }
}

/// Takes in a security event.
///
/// The body is the signed token itself. Sending one again changes nothing.
#[utoipa::path(
    post, path = "/v1/realms/{realm}/ssf/events", tag = "ssf", security(("bearer" = ["revoker"])),
    params(RealmParameter), request_body(content = String, content_type = "application/secevent+jwt"),
    responses(
        (status = 202, description = "Taken in, and durable where it is a cutoff."),
        (status = 400, body = RefusedBody,
            description = "`invalid_request`, `invalid_key`, `invalid_issuer` or `invalid_audience`."),
    )
)]
async fn receive(
    State(service): State<Arc<Service>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    Extension(seen): Extension<Arc<Seen>>,
    caller: Caller,
    RealmPath(realm): RealmPath,
    request: Request,
) -> Result<StatusCode, Refused> {
    let realm = service.realm(realm).await.map_err(Problem::from)?;
    require_type(&request, "application/secevent+jwt")?;
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| super::extract::unreadable(&rejection))?;
    let malformed = |error: &dyn std::fmt::Display| refused("invalid_request", error.to_string());
    let text = std::str::from_utf8(bytes.trim_ascii()).map_err(|error| malformed(&error))?;
    let token = Token::parse(text).map_err(|error| malformed(&error))?;
    if token.typ().is_none_or(|typ| !matches!(typ, "secevent+jwt" | "application/secevent+jwt")) {
        return Err(refused("invalid_request", "the typ of a security event token is secevent+jwt"));
    }
    let event: EventToken = token.claims().map_err(|error| malformed(&error))?;
    let Some(transmitter) = issuers.transmitter(realm.id).map_err(Problem::from)? else {
        return Err(refused("invalid_issuer", "this realm has no transmitter; an admin sets it at ssf/transmitter"));
    };
    if event.iss != transmitter.issuer {
        return Err(refused("invalid_issuer", "the iss is not that of this realm's transmitter"));
    }
    if !event.aud.contains(&transmitter.audience) {
        return Err(refused("invalid_audience", "the aud does not name this receiver"));
    }
    if !token.is_signed_by(&transmitter.keys) {
        return Err(refused("invalid_key", "no key of this realm's transmitter has signed it"));
    }
    if event.jti.is_empty() || event.jti.len() > revocast_core::limits::JTI_BYTES_MAX {
        return Err(refused("invalid_request", "the jti is empty or too long"));
    }
    if seen.contains(realm.id, &event.jti) {
        return Ok(StatusCode::ACCEPTED);
    }
    let jti = event.jti.clone();
    for (subject, not_before, reason) in cutoffs(event, &realm)? {
        caller.charge(10).map_err(Problem::from)?;
        let cut = service.cut_off(realm.id, Scope::Sub(subject), Some(not_before), Some(reason), caller.name()).await;
        match cut.map_err(Problem::from) {
            Ok(_) => {}
            Err(problem) if problem.status_and_retry().0 == StatusCode::UNPROCESSABLE_ENTITY => {
                return Err(refused("invalid_request", problem.text()));
            }
            Err(problem) => return Err(problem.into()),
        }
    }
    // Only now: what failed on the way is sent again.
    seen.insert(realm.id, jti);
    Ok(StatusCode::ACCEPTED)
}

/// What the events of a token ask for: whose tokens from before when are over, and why.
fn cutoffs(token: EventToken, realm: &Realm) -> Result<Vec<(String, UnixTime, String)>, Refused> {
    if token.events.is_empty() || token.events.len() > EVENTS_MAX {
        return Err(refused(
            "invalid_request",
            format!("{} events; 1 to {EVENTS_MAX} are possible", token.events.len()),
        ));
    }
    let mut subject_of_all = token.sub_id;
    let mut cutoffs = Vec::new();
    for (kind, event) in token.events {
        let name = match kind.as_str() {
            SESSION_REVOKED => "session-revoked",
            CREDENTIAL_CHANGE => "credential-change",
            // Of no consequence for revocation.
            _ => continue,
        };
        let event =
            Event::deserialize(event).map_err(|error| refused("invalid_request", format!("event {name}: {error}")))?;
        let subject = event.subject.or_else(|| subject_of_all.take());
        let subs = subject.map_or_else(Vec::new, |subject| subject.subs(realm));
        if subs.is_empty() {
            let description =
                format!("event {name} names no subject of this realm: iss_sub with its issuer, opaque, email");
            return Err(refused("invalid_request", description));
        }
        // Tokens of that very second are over too (design rule 16).
        let Date(at) = event.event_timestamp.unwrap_or(token.iat);
        let reason = format!("{name}, {}", token.jti);
        cutoffs.extend(subs.into_iter().map(|sub| (sub, at.plus(1), reason.clone())));
    }
    Ok(cutoffs)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Transmitter)]
struct TransmitterBody {
    /// The `iss` of its events.
    #[schema(min_length = 1, max_length = 1024)]
    issuer: String,
    /// The `aud` that names this receiver.
    #[schema(min_length = 1, max_length = 1024)]
    audience: String,
    /// Its public keys.
    #[schema(value_type = KeySetBody)]
    jwks: Object<KeySetBody>,
}

/// Sets whose security events are believed, in place of whoever it was before.
#[utoipa::path(
    put, path = "/v1/realms/{realm}/ssf/transmitter", tag = "ssf", security(("bearer" = ["admin"])),
    params(RealmParameter), request_body = TransmitterBody,
    responses((status = 204, description = "Set, and durable."))
)]
async fn set_transmitter(
    State(service): State<Arc<Service>>,
    Extension(issuers): Extension<Arc<Issuers>>,
    RealmPath(realm): RealmPath,
    Body(body): Body<TransmitterBody>,
) -> Result<StatusCode, Problem> {
    let realm = service.realm(realm).await?;
    let usable = |text: &str| (1..=1024).contains(&text.len());
    if !usable(&body.issuer) || !usable(&body.audience) {
        let title = "the transmitter cannot be used";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "transmitter", title)
            .detail("issuer and audience have 1 to 1024 bytes"));
    }
    let transmitter = Transmitter { issuer: body.issuer, audience: body.audience, keys: body.jwks.0.check()? };
    let kept = tokio::task::spawn_blocking(move || issuers.set_transmitter(realm.id, &transmitter)).await;
    kept.map_err(|_| Problem::overloaded("the server is stopping"))??;
    Ok(StatusCode::NO_CONTENT)
}
