//! Refusals as problem documents (RFC 9457).

use std::error::Error;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use revocast_core::JtiError;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::judge::JudgeError;
use crate::keys::KeyError;
use crate::ledger::{LedgerError, NoToken};
use crate::rotation::RotationError;
use crate::service::ServiceError;
use crate::tokens::IssuersError;

/// After this a client that met an overload should come back.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(1);

/// A problem document (RFC 9457), as the `OpenAPI` document describes it.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "only described; Problem is written as one")]
pub(super) struct ProblemBody {
    /// What kind of problem: `urn:revocast:problem:` and its name.
    r#type: String,
    /// The kind in words.
    title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened this time.
    detail: Option<String>,
}

/// What a client is told when its request is refused.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: Option<String>,
    members: Map<String, Value>,
    retry: Option<Duration>,
    challenge: Option<&'static str>,
}

impl Problem {
    /// One kind has one title and one status; `detail` is about the occurrence.
    pub(super) fn new(status: StatusCode, kind: &'static str, title: &'static str) -> Self {
        Self { status, kind, title, detail: None, members: Map::new(), retry: None, challenge: None }
    }

    /// Adds members for programs (RFC 9457 section 3.2).
    pub(super) fn members(mut self, members: Map<String, Value>) -> Self {
        self.members.extend(members);
        self
    }

    /// Says when to come back (RFC 9110 section 10.2.3).
    pub(super) const fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// Says how to authenticate (RFC 9110 section 11.6.1).
    pub(super) const fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// RFC 7009 asks for 503: the client must assume that the token is not revoked.
    pub(super) fn overloaded(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "the server is overloaded");
        problem.detail(detail).retry(OVERLOAD_PAUSE)
    }

    /// A ledger that answers without a receipt has lost its mind, not the client.
    pub(super) fn no_receipt() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake")
            .detail("the ledger gave no receipt")
    }

    /// Its status and when to come back, for answers of another form.
    pub(super) const fn status_and_retry(&self) -> (StatusCode, Option<Duration>) {
        (self.status, self.retry)
    }

    /// What happened, in words.
    pub(super) fn text(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.title),
            None => self.title.to_owned(),
        }
    }

    #[cfg(test)]
    pub(super) const fn status_and_kind(&self) -> (StatusCode, &'static str) {
        (self.status, self.kind)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Document {
            r#type: String,
            title: &'static str,
            status: u16,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<String>,
            #[serde(flatten)]
            members: Map<String, Value>,
        }

        let document = Document {
            r#type: format!("urn:revocast:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
            members: self.members,
        };
        // Strings and numbers always serialize; the default is never taken.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if let Some(after) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, whole_seconds(after));
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let unprocessable = |kind, title| Self::new(StatusCode::UNPROCESSABLE_ENTITY, kind, title);
        let conflict = |kind, title| Self::new(StatusCode::CONFLICT, kind, title);
        let problem = match &error {
            ServiceError::Ledger(error) => of_ledger(error),
            ServiceError::Key(KeyError::RootAbsent { .. }) => {
                Self::new(StatusCode::CONFLICT, "root-key-absent", "the root key is not on this server")
            }
            ServiceError::MoreRootsNeeded { .. } => {
                Self::new(StatusCode::CONFLICT, "more-roots-needed", "more root keys must sign than are here")
            }
            ServiceError::RootNotTrusted { .. } => {
                Self::new(StatusCode::CONFLICT, "root-not-trusted", "devices do not trust the root key that is here")
            }
            ServiceError::Expired { .. } => unprocessable("token-expired", "the token is expired already"),
            ServiceError::CutoffAhead { .. } => unprocessable("cutoff-ahead", "the cutoff lies too far in the future"),
            ServiceError::NoCleanJti { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-clean-jti",
                "no jti is clean against the filters in force",
            ),
            ServiceError::NotLeading { leader, address } => {
                let mut members = Map::new();
                members.extend(leader.clone().map(|leader| ("leader".to_owned(), leader.into())));
                members.extend(address.clone().map(|address| ("leader_address".to_owned(), address.into())));
                let title = "only the leader of the servers on this ledger can do that";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-leading", title).members(members)
            }
            ServiceError::NotPublishing { .. } => {
                let title = "the realm is not being published just now";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-publishing", title).retry(OVERLOAD_PAUSE)
            }
            ServiceError::Leeway { .. } => unprocessable("leeway", "the leeway cannot be used"),
            ServiceError::MaxTokenLifetime { .. } => {
                unprocessable("max-token-lifetime", "the max_token_lifetime cannot be used")
            }
            ServiceError::Key(KeyError::PublisherAbsent { .. }) => {
                let title = "the publisher's key is not on this server";
                Self::new(StatusCode::CONFLICT, "publisher-key-absent", title)
            }
            ServiceError::NoToken(NoToken::CutOff { .. }) => conflict("cut-off", "a cutoff takes such tokens"),
            ServiceError::NoToken(_) => conflict("no-token", "the token cannot be issued"),
            ServiceError::IssuedElsewhere { .. } => {
                conflict("issued-elsewhere", "the tokens of this realm are signed elsewhere")
            }
            ServiceError::Held { ahead, .. } => {
                let title = "a cutoff lies just ahead; what is issued now would be revoked at once";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "cutoff-just-ahead", title).retry(*ahead)
            }
            ServiceError::NoIssuerKey { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-issuer-key", "no key signs tokens of this realm yet")
            }
            ServiceError::Lifetime { .. } => unprocessable("lifetime", "no token of this realm may live so long"),
            ServiceError::Claims(_) => unprocessable("claims", "the claims cannot be used"),
            ServiceError::Issuers(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "issuer-keys", "the keys of the issuer are not at hand")
            }
            ServiceError::RefreshForm => unprocessable("refresh-token", "the refresh token cannot be used"),
            ServiceError::DeviceUnknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "device-unknown", "no such device is enrolled")
            }
            ServiceError::Rotation(RotationError::Version { .. }) => {
                Self::new(StatusCode::CONFLICT, "keys-version", "another version of the keys comes next")
            }
            ServiceError::Rotation(_) => unprocessable("keys-refused", "devices would refuse the keys"),
            // What is in the way is a file on this server; the client can only come back.
            ServiceError::Key(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "keys-unusable", "the keys of this server cannot be used")
            }
            ServiceError::Random(_)
            | ServiceError::Sign(_)
            | ServiceError::Metrics
            | ServiceError::Encode(_)
            | ServiceError::Plan(_) => internal(),
        };
        if problem.status.is_server_error() {
            tracing::error!(error = %told(&error), "a request failed");
        }
        problem.detail(told(&error))
    }
}

impl From<IssuersError> for Problem {
    fn from(error: IssuersError) -> Self {
        tracing::error!(error = %told(&error), "keys of an issuer cannot be used");
        // What is in the way is a file on this server; the client can only come back.
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "issuer-keys", "the keys of the issuer are not at hand")
    }
}

impl From<JudgeError> for Problem {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Issuers(error) => error.into(),
            JudgeError::Service(error) => error.into(),
        }
    }
}

fn of_ledger(error: &LedgerError) -> Problem {
    let unprocessable = |kind, title| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, kind, title);
    let stopped = |kind, title| Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title);
    match error {
        LedgerError::RealmUnknown { .. } => Problem::new(StatusCode::NOT_FOUND, "realm-unknown", "no such realm"),
        LedgerError::RealmTaken { .. } => {
            Problem::new(StatusCode::CONFLICT, "realm-taken", "the realm belongs to another issuer")
        }
        LedgerError::IssuerTaken { .. } => {
            Problem::new(StatusCode::CONFLICT, "issuer-taken", "the issuer has another realm")
        }
        LedgerError::Issuer(_) => unprocessable("issuer", "the issuer cannot be used"),
        LedgerError::Jti { source: JtiError::Empty, .. } => unprocessable("jti-empty", "the jti is empty"),
        LedgerError::Jti { source: JtiError::TooLong { .. }, .. } => {
            unprocessable("jti-too-long", "the jti is too long")
        }
        LedgerError::Issued { .. } => unprocessable("issued", "the token cannot be registered"),
        LedgerError::CoverageBack { .. } => {
            Problem::new(StatusCode::CONFLICT, "coverage-back", "the coverage does not go back")
        }
        LedgerError::CoverageAhead { .. } => unprocessable("coverage-ahead", "the coverage lies in the future"),
        LedgerError::ScopeLength { .. } => unprocessable("scope-length", "the scope cannot be used"),
        LedgerError::ReasonTooLong { .. } => unprocessable("reason-too-long", "the reason is too long"),
        LedgerError::ActorTooLong { .. } => unprocessable("actor-too-long", "the actor's name is too long"),
        LedgerError::BatchTooLarge { .. } | LedgerError::IssuedTooMany { .. } => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch-too-large", "the batch is too large")
        }
        LedgerError::TooManyDescendants { .. } => {
            unprocessable("too-many-descendants", "more tokens descend from those named than one call can revoke")
        }
        LedgerError::Enrollment(_) => unprocessable("device", "the device cannot be enrolled"),
        LedgerError::DeviceTaken { .. } => {
            Problem::new(StatusCode::CONFLICT, "device-taken", "the device is enrolled already, otherwise")
        }
        LedgerError::DevicesFull { .. } => full("devices-full", "the realm has no room for another device"),
        LedgerError::Order(_) => unprocessable("token", "the token cannot be issued"),
        LedgerError::CutoffsFull { .. } => full("cutoffs-full", "the realm has no room for another cutoff"),
        LedgerError::RealmFull { .. } => full("realm-full", "the realm has no room for another entry"),
        LedgerError::SequenceExhausted { .. } => full("sequence-exhausted", "the realm has no numbers left"),
        LedgerError::StorageFull(_) => full("storage-full", "the ledger's disk is full; nothing was recorded"),
        LedgerError::Overloaded { .. } => Problem::overloaded(""),
        LedgerError::Storage(_) => stopped("ledger-failed", "the ledger's storage failed; it may be recorded or not"),
        LedgerError::Poisoned => stopped("ledger-stopped", "the ledger takes no entries until a restart"),
        LedgerError::Closed => stopped("stopping", "the server is stopping"),
        LedgerError::Away(_) => stopped("ledger-away", "the ledger cannot be reached; nothing was recorded"),
        LedgerError::TermChanged { .. }
        | LedgerError::Damaged { .. }
        | LedgerError::TooManyVisitors { .. }
        | LedgerError::Bid { .. }
        | LedgerError::NotEmpty { .. }
        | LedgerError::Unreadable(_) => internal(),
    }
}

/// Rounded up: who comes back a moment too early is refused again.
pub(super) fn whole_seconds(after: Duration) -> HeaderValue {
    HeaderValue::from(after.as_millis().div_ceil(1_000).max(1).try_into().unwrap_or(u64::MAX))
}

fn full(kind: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::INSUFFICIENT_STORAGE, kind, title)
}

fn internal() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake")
}

/// An error and its causes, in one line.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn failures_of_the_ledger_are_told_apart() {
        let cause = || Arc::new(io::Error::other("disk"));
        let cases = [
            (LedgerError::StorageFull(cause()), 507, "storage-full"),
            (LedgerError::Storage(cause()), 503, "ledger-failed"),
            (LedgerError::Away(cause()), 503, "ledger-away"),
            (LedgerError::Poisoned, 503, "ledger-stopped"),
            (LedgerError::Overloaded { waiting: 3 }, 503, "overloaded"),
            (LedgerError::Closed, 503, "stopping"),
            (LedgerError::Damaged { what: "row".into() }, 500, "internal"),
        ];
        for (error, status, kind) in cases {
            let problem = Problem::from(ServiceError::Ledger(error));
            assert_eq!(problem.status_and_kind(), (StatusCode::from_u16(status).unwrap(), kind));
        }
        let full = Problem::from(ServiceError::Ledger(LedgerError::StorageFull(cause())));
        assert_eq!(full.detail.as_deref(), Some("no room is left on the disk of the ledger: disk"));
        let overloaded = Problem::from(ServiceError::Ledger(LedgerError::Overloaded { waiting: 3 })).into_response();
        assert_eq!(overloaded.headers().get(header::RETRY_AFTER), Some(&HeaderValue::from_static("1")));
    }
}
