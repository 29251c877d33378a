//! Asking the server about one token, where the device cannot say by itself.
//!
//! A question goes over the connection that is there, and its answer is checked and taken in by the
//! replica like everything else that arrives. Here callers wait for it, and a policy's "ask" becomes
//! a yes or a no: without an answer it is a no.

use std::collections::HashMap;
use std::time::Duration;

use revocast_core::limits::{ASK_PATIENCE, ASKS_OUTSTANDING_MAX};
use revocast_core::update::Nonce;
use revocast_core::{Claims, Finding, Jti, Unasked, UnixTime};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::checker::Checker;
use crate::clock::Clock;
use crate::possession::Presented;
use crate::validator::{Rejected, Rejection, Revocations, Token, Validator};

/// How long a caller waits: for the answer, and for the driver to get round to it.
const PATIENCE: Duration = ASK_PATIENCE.saturating_add(Duration::from_secs(1));

/// Why nothing was found out. The token must not be honored then.
#[derive(Debug, Error)]
pub enum AskError {
    /// The question was not asked.
    #[error("the question was not asked")]
    Unasked(#[from] Unasked),
    /// More callers ask at once than may.
    #[error("{ASKS_OUTSTANDING_MAX} callers ask already, which is the limit")]
    Busy,
    /// The server did not answer, or its answer did not arrive.
    #[error("no answer came within {} s", ASK_PATIENCE.as_secs())]
    Unanswered,
    /// The device has stopped.
    #[error("the device has stopped")]
    Stopped,
    /// The operating system gave no random bytes for a nonce.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
}

/// What an asker wants of the driver.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) nonce: Nonce,
    claims: OwnedClaims,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Finding, AskError>>;

/// Claims that outlive the caller's token.
#[derive(Debug)]
struct OwnedClaims {
    jti: String,
    iat: Option<UnixTime>,
    exp: UnixTime,
    sub: Option<String>,
    kid: Option<String>,
    client: Option<String>,
}

impl Wish {
    /// The claims to ask about; `None` never happens, since they were claims before.
    pub(crate) fn claims(&self) -> Option<Claims<'_>> {
        let OwnedClaims { jti, iat, exp, sub, kid, client } = &self.claims;
        Some(Claims {
            jti: Jti::new(jti).ok()?,
            iat: *iat,
            exp: *exp,
            sub: sub.as_deref(),
            kid: kid.as_deref(),
            client: client.as_deref(),
        })
    }
}

/// The callers that wait for an answer, by nonce; as many as the replica keeps open.
#[derive(Debug, Default)]
pub(crate) struct Waiting(HashMap<Nonce, Reply>);

impl Waiting {
    /// Takes in what became of a wish.
    pub(crate) fn asked(&mut self, wish: Wish, outcome: Result<(), Unasked>) {
        match outcome {
            Ok(()) => drop(self.0.insert(wish.nonce, wish.reply)),
            // Whoever asked may have gone.
            Err(unasked) => drop(wish.reply.send(Err(unasked.into()))),
        }
    }

    /// Takes in what was found.
    pub(crate) fn answered(&mut self, nonce: &Nonce, finding: Option<Finding>) {
        if let Some(reply) = self.0.remove(nonce) {
            let _ = reply.send(finding.ok_or(AskError::Unanswered));
        }
    }
}

/// Asks the server about single tokens of one realm. Cheap to clone; use one from any task.
#[derive(Clone, Debug)]
pub struct Asker {
    wishes: mpsc::Sender<Wish>,
    checker: Checker,
}

impl Asker {
    /// An asker, and where a driver takes its wishes from.
    pub(crate) fn new(checker: Checker) -> (Self, mpsc::Receiver<Wish>) {
        let (wishes, taken) = mpsc::channel(ASKS_OUTSTANDING_MAX);
        (Self { wishes, checker }, taken)
    }

    /// What the server knows about a token of this realm, whose signature and claims were validated.
    ///
    /// The answer is worth as much as one from the device's own set, and never softer: a token that is
    /// known to be revoked here stays so. At most eight questions wait at a time, and in the long run
    /// one a second is asked. Losing the race in a `select!` loses the answer for this caller alone.
    pub async fn ask(&self, claims: &Claims<'_>) -> Result<Finding, AskError> {
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(AskError::Random)?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let claims = OwnedClaims {
            jti: claims.jti.as_str().to_owned(),
            iat: claims.iat,
            exp: claims.exp,
            sub: owned(claims.sub),
            kid: owned(claims.kid),
            client: owned(claims.client),
        };
        let (reply, answer) = oneshot::channel();
        self.wishes.try_send(Wish { nonce, claims, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::Stopped,
        })?;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(AskError::Stopped),
            Err(_) => Err(AskError::Unanswered),
        }
    }

    /// Validates a token for an operation of some class, and asks the server where the policy says so.
    ///
    /// `Ok` means: accept. Everything but the policy's "ask" is as [`Validator::verify_for`] has it;
    /// when nobody answers, the rejection stands. `validator` must ask this device's checker, and
    /// `clock` be that of the device ([`SystemClock`](crate::SystemClock) for a real one).
    pub async fn verify_or_ask<'t, R: Revocations>(
        &self,
        validator: &Validator<R>,
        clock: &impl Clock,
        class: &str,
        token: impl Into<Presented<'t>>,
    ) -> Result<Token, Rejected> {
        let presented = token.into();
        let rejected = match validator.verify_for(clock.now(), class, presented) {
            Err(rejected) if rejected.ask => rejected,
            decided => return decided,
        };
        let Some(doubted) = &rejected.token else { return Err(rejected) };
        // A `jti` is unique only within its realm: this server knows nothing about others.
        if self.checker.issuer().as_deref() != Some(doubted.issuer()) {
            return Err(rejected);
        }
        let Ok(claims) = doubted.claims() else { return Err(rejected) };
        match self.ask(&claims).await {
            Ok(Finding::NotRevoked) => {}
            Ok(Finding::Revoked { why }) => {
                return Err(Rejected { rejection: Rejection::Revoked { why }, ask: false, ..rejected });
            }
            Err(error) => {
                tracing::debug!(%error, "nobody answered; denied");
                return Err(rejected);
            }
        }
        // Time has passed, may be known only now, and with it whether the token is still in its time. What
        // the device would still rather ask about has just been answered.
        // A proof counts once, and has been checked.
        match validator.verify_for(clock.now(), class, Presented::held(presented.token)) {
            Err(Rejected { ask: true, token: Some(token), .. }) => Ok(*token),
            decided => decided,
        }
    }
}
