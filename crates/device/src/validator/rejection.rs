//! Why a token is not to be honored. Each reason has one name, in code, documents, logs and metrics.

use std::time::Duration;

use revocast_core::{Doubt, JtiError, UnixTime, Why};
use thiserror::Error;

use super::Token;
use crate::compact::FormError;
use crate::policy::Reason;
use crate::possession::ProofError;

/// A token that is not to be honored.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{rejection}")]
pub struct Rejected {
    /// The first rule it does not meet.
    pub rejection: Rejection,
    /// Whether the policy would rather ask the server. Until it answered, the rejection stands.
    pub ask: bool,
    /// The token, if its signature holds and its claims make sense: for logs, and for asking.
    pub token: Option<Box<Token>>,
}

impl Rejected {
    /// The name of the rejection.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.rejection.name()
    }
}

impl From<Rejection> for Rejected {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, ask: false, token: None }
    }
}

/// Why a token is not to be honored.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Rejection {
    /// Longer than a token may be, or than its header may be.
    #[error("{bytes} bytes are more than a token may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not three parts with two dots between them.
    #[error("a token has three parts, separated by dots")]
    MalformedToken,
    /// A part is not base64url without padding, in its only spelling.
    #[error("the {part} is not base64url")]
    BadBase64 {
        /// Which part.
        part: &'static str,
    },
    /// A part is not a JSON object, or nested too deep.
    #[error("the {part} is not a JSON object of sane depth")]
    BadJson {
        /// Which part.
        part: &'static str,
    },
    /// Readers would disagree about which of the two counts.
    #[error("the name {name:?} stands twice in the {part}")]
    DuplicateName {
        /// Which part.
        part: &'static str,
        /// The name.
        name: String,
    },
    /// A header parameter has a type that it may not have.
    #[error("the header's {name:?} is missing or not a string")]
    BadHeader {
        /// Which parameter.
        name: &'static str,
    },
    /// The header asks for keys from elsewhere, or for rules that are not followed here.
    #[error("the header's {name:?} is not accepted")]
    ForbiddenHeader {
        /// Which parameter.
        name: &'static str,
    },
    /// The header says something that means nothing here. Whoever made it may have meant something by it.
    #[error("the header's {name:?} is not known")]
    UnknownHeader {
        /// Which parameter.
        name: String,
    },
    /// `none`, or an algorithm that is not spoken here.
    #[error("the algorithm is not supported")]
    UnsupportedAlgorithm,
    /// No key, or more than one, fits the header.
    #[error("no key fits the header")]
    KeyNotFound,
    /// The key that is meant belongs to another algorithm.
    #[error("the key is not for the header's algorithm")]
    AlgorithmMismatch,
    /// Forged, damaged, or signed by somebody else.
    #[error("the signature does not hold")]
    BadSignature,
    /// Another kind of token than expected, so that one kind cannot pose as another.
    #[error("the token is of another type")]
    WrongType,
    /// A claim that every token must have is missing.
    #[error("the claim {name:?} is missing")]
    MissingClaim {
        /// Which claim.
        name: &'static str,
    },
    /// A claim has a type or value that it may not have.
    #[error("the claim {name:?} has another type or size than it may")]
    BadClaim {
        /// Which claim.
        name: &'static str,
    },
    /// Its `jti` cannot name a token.
    #[error("the jti cannot name a token")]
    BadJti(#[source] JtiError),
    /// Issued by somebody else.
    #[error("the token is of another issuer")]
    WrongIssuer,
    /// Meant for somebody else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Over.
    #[error("the token expired at {exp}; it is {time}")]
    Expired {
        /// Its end.
        exp: UnixTime,
        /// The time it was compared with.
        time: UnixTime,
    },
    /// Not yet begun.
    #[error("the token is valid from {nbf} on; it is {time}")]
    NotYetValid {
        /// Its beginning.
        nbf: UnixTime,
        /// The time it was compared with.
        time: UnixTime,
    },
    /// The issuer's clock is ahead, or ours behind, by more than the leeway.
    #[error("the token was issued at {iat}; it is {time}")]
    IssuedInTheFuture {
        /// When it claims to have been issued.
        iat: UnixTime,
        /// The time it was compared with.
        time: UnixTime,
    },
    /// It may live longer than tokens of this issuer may.
    #[error("the token lives {} s, more than {} s", .lifetime.as_secs(), .most.as_secs())]
    LivesTooLong {
        /// From `iat` to `exp`; without `iat`, what is left of it.
        lifetime: Duration,
        /// The most.
        most: Duration,
    },
    /// It is bound to a key, and nothing proves that whoever shows it has that key.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Revoked.
    #[error("the token is revoked ({})", .why.name())]
    Revoked {
        /// What revoked it.
        why: Why,
    },
    /// It may be revoked, and the policy does not accept that.
    #[error("the token may be revoked")]
    Suspect,
    /// Nobody can tell whether it is revoked, and the policy does not accept that.
    #[error("whether the token is revoked is not known ({})", .doubt.name())]
    Unknown {
        /// Why not.
        doubt: Doubt,
    },
    /// It was not revoked when last heard of, and the policy wants to know more recently.
    #[error("whether the token is revoked was last known {} s ago", .age.as_secs())]
    Aging {
        /// How long ago that was.
        age: Duration,
    },
}

impl Rejection {
    /// Whether a proof is to blame, and not the token: another proof may do.
    #[must_use]
    pub const fn is_about_proof(&self) -> bool {
        matches!(self, Self::Proof(error) if !matches!(error, ProofError::Missing | ProofError::Unbound))
    }

    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too-large",
            Self::MalformedToken => "malformed-token",
            Self::BadBase64 { .. } => "bad-base64",
            Self::BadJson { .. } => "bad-json",
            Self::DuplicateName { .. } => "duplicate-name",
            Self::BadHeader { .. } => "bad-header",
            Self::ForbiddenHeader { .. } => "forbidden-header",
            Self::UnknownHeader { .. } => "unknown-header",
            Self::UnsupportedAlgorithm => "unsupported-algorithm",
            Self::KeyNotFound => "key-not-found",
            Self::AlgorithmMismatch => "algorithm-mismatch",
            Self::BadSignature => "bad-signature",
            Self::WrongType => "wrong-type",
            Self::MissingClaim { .. } => "missing-claim",
            Self::BadClaim { .. } => "bad-claim",
            Self::BadJti(_) => "bad-jti",
            Self::WrongIssuer => "wrong-issuer",
            Self::WrongAudience => "wrong-audience",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::IssuedInTheFuture { .. } => "issued-in-the-future",
            Self::LivesTooLong { .. } => "lives-too-long",
            Self::Proof(error) => error.name(),
            Self::Revoked { .. } => "revoked",
            Self::Suspect => "suspect",
            Self::Unknown { .. } => "unknown",
            Self::Aging { .. } => "aging",
        }
    }
}

impl From<FormError> for Rejection {
    fn from(error: FormError) -> Self {
        match error {
            FormError::TooLarge { bytes } => Self::TooLarge { bytes },
            FormError::Parts => Self::MalformedToken,
            FormError::Base64 { part } => Self::BadBase64 { part },
        }
    }
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Revoked { why } => Self::Revoked { why },
            Reason::Suspect => Self::Suspect,
            Reason::Unknown { doubt } => Self::Unknown { doubt },
            Reason::Aging { age } => Self::Aging { age },
        }
    }
}
