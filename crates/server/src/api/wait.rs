//! `?wait=`: how far an entry shall have come before its request is answered.
//!
//! An entry is durable before anything is waited for. Whatever happens then, the answer is that of a request without
//! `wait`, and says in `reached` how far the entry came in time.

use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use revocast_core::{RealmId, Sequence};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Caller;
use super::extract::bad_query;
use super::problem::Problem;
use crate::fleet::{Reached, Wait};
use crate::service::Service;

/// How long is waited unless said: what an operator watches without doubting.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(5);

/// Longest wait. A fleet that has not applied an entry by then is a matter for its status.
const PATIENCE_MAX: Duration = Duration::from_mins(5);

/// How far an entry can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    /// Recorded.
    Durable,
    /// Seen on the broker.
    Published,
    /// Reported by enough of the devices that are online.
    Applied,
}

/// `?wait=durable|published|applied&share=0.99&timeout=5s`
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// Answer only when the entry has come so far, or after the timeout; `reached` then says how far it came.
    wait: Option<Stage>,
    /// The share of the devices online that shall have applied it, above 0 and up to 1; 0.99 unless said. Only with
    /// `wait=applied`.
    #[param(exclusive_minimum = 0.0, maximum = 1.0)]
    share: Option<f64>,
    /// How long to wait at most: `5s`, `500ms`; 5 s unless said, 5 minutes at most, and well within the time that the
    /// server gives a request.
    #[param(pattern = "^[1-9][0-9]{0,5}(s|ms)$", example = "5s")]
    timeout: Option<String>,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    stage: Option<Stage>,
    share: f64,
    patience: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for Waiting {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(WaitQuery { wait, share, timeout }) = Query::<WaitQuery>::from_request_parts(parts, state).await?;
        if share.is_some() && wait != Some(Stage::Applied) {
            return Err(bad_query("a share is waited for only with wait=applied"));
        }
        if timeout.is_some() && wait.is_none() {
            return Err(bad_query("a timeout without wait"));
        }
        let share = share.unwrap_or(0.99);
        // Not negated: NaN is no share.
        if !(share > 0.0 && share <= 1.0) {
            return Err(bad_query(format!("a share of {share}; above 0 and up to 1 is possible")));
        }
        let patience = timeout.as_deref().map_or(Some(PATIENCE_DEFAULT), duration).filter(|time| *time <= PATIENCE_MAX);
        let patience = patience.ok_or_else(|| {
            bad_query(format!("a timeout is written like 5s or 500ms, up to {} s", PATIENCE_MAX.as_secs()))
        })?;
        // An entry that is durable is never answered with "took too long".
        let longest = Caller::from_request_parts(parts, state).await?.request_timeout() / 2;
        Ok(Self { stage: wait, share, patience: patience.min(longest) })
    }
}

impl Waiting {
    /// Waits for an entry; says how far it has come, if that was asked.
    pub(super) async fn reached(self, service: &Service, realm: RealmId, sequence: Sequence) -> Option<Stage> {
        let wait = match self.stage? {
            Stage::Durable => Wait::Durable,
            Stage::Published => Wait::Published,
            Stage::Applied => Wait::Applied { share: self.share },
        };
        Some(match service.wait(realm, sequence, wait, self.patience).await {
            Reached::Durable => Stage::Durable,
            Reached::Published => Stage::Published,
            Reached::Applied => Stage::Applied,
        })
    }
}

/// Reads `5s` or `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, Duration::from_millis(1)),
        None => (text.strip_suffix('s')?, Duration::from_secs(1)),
    };
    // Without the sign that `parse` would take.
    let number = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = number.then(|| digits.parse().ok()).flatten().filter(|number| *number > 0)?;
    unit.checked_mul(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_seconds_or_milliseconds_and_nothing_else() {
        for (text, millis) in [("5s", 5_000), ("500ms", 500), ("1ms", 1), ("300s", 300_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "ms", "0s", "-1s", "+1s", "1.5s", "5 s", "5m", "1h", "9999999s", "5S"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
