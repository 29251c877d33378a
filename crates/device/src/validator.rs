//! Validates JSON Web Tokens: form, signature, claims, revocation.
//!
//! The JWT library verifies signatures and nothing else: its own rules for claims are too soft
//! (absent `aud` and `iss` pass, `nbf` is not looked at, names may stand twice, the clock is hidden).
//! Revocation goes by (`iss`, decoded `jti`), never by the text of a token, since one token can be
//! spelled in many ways.
//!
//! Nothing is fetched and no file is opened, whatever a header asks for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::limits::{JTI_BYTES_MAX, SCOPE_BYTES_MAX};
use revocast_core::{
    Claims, Doubt, Issuer, IssuerError, Jti, JtiError, Now, Position, UnixMillis, UnixTime, Verdict, Why,
};
use thiserror::Error;

use crate::checker::Checker;
use crate::policy::{CLASSES_MAX, Decision, Policies, Policy, Reason};

mod crypto;
mod json;
mod keys;

use json::{Json, JsonError};
use keys::{Algorithm, NoKey};
pub use keys::{KeyError, KeySet, KeySetError, LiveKeys};

/// Bytes of a token. Larger ones do not fit the headers they travel in.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a header, in base64url. It is read before the signature is checked.
const HEADER_BYTES_MAX: usize = 2 * 1024;

/// The largest leeway, in seconds, that makes sense; a realm may allow less.
const LEEWAY_MAX: u32 = 3600;

/// Header parameters that ask for keys from elsewhere, or for rules that we do not follow.
const FORBIDDEN: [&str; 6] = ["crit", "b64", "jwk", "jku", "x5u", "x5c"];

/// What tells a validator which tokens are revoked.
pub trait Revocations: Send + Sync {
    /// Whether the token with these claims, issued by `issuer`, is revoked.
    fn check(&self, now: Now, issuer: &str, claims: &Claims<'_>) -> Verdict;

    /// The same, and how old the knowledge is that the answer comes from; `None` if it does not age.
    fn check_aged(&self, now: Now, issuer: &str, claims: &Claims<'_>) -> (Verdict, Option<Duration>) {
        (self.check(now, issuer, claims), None)
    }

    /// The time as far as it can be told; not before what is known to have been signed.
    fn time(&self, now: Now) -> UnixMillis {
        now.wall
    }

    /// The largest leeway, in seconds, that may be granted; `None` if nothing limits it.
    fn leeway_max(&self) -> Option<u32> {
        None
    }
}

impl Revocations for Checker {
    fn check(&self, now: Now, issuer: &str, claims: &Claims<'_>) -> Verdict {
        self.check_aged(now, issuer, claims).0
    }

    fn check_aged(&self, now: Now, issuer: &str, claims: &Claims<'_>) -> (Verdict, Option<Duration>) {
        // One set for both, or an old answer could be given a younger set's age.
        let set = self.load();
        let verdict = match set.issuer() {
            // A `jti` is unique only within its realm.
            Some(followed) if followed != issuer => Verdict::Unknown { doubt: Doubt::NotFollowed },
            Some(_) | None => set.check(now, claims),
        };
        (verdict, set.freshness().age(now))
    }

    fn time(&self, now: Now) -> UnixMillis {
        Self::time(self, now)
    }

    fn leeway_max(&self) -> Option<u32> {
        let set = self.load();
        set.issuer().map(|_| set.leeway_max())
    }
}

/// A plain list of revoked tokens, by issuer and `jti`. It is believed to be complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedPairs(HashMap<String, HashSet<String>>);

impl RevokedPairs {
    /// Reads a JSON array of `[issuer, jti]` pairs.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let pairs: Vec<(String, String)> = serde_json::from_slice(bytes)?;
        Ok(pairs.into_iter().collect())
    }

    /// Whether this token is in it.
    #[must_use]
    pub fn contains(&self, issuer: &str, jti: &str) -> bool {
        self.0.get(issuer).is_some_and(|jtis| jtis.contains(jti))
    }
}

impl FromIterator<(String, String)> for RevokedPairs {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let mut revoked = Self::default();
        for (issuer, jti) in pairs {
            revoked.0.entry(issuer).or_default().insert(jti);
        }
        revoked
    }
}

impl Revocations for RevokedPairs {
    fn check(&self, _now: Now, issuer: &str, claims: &Claims<'_>) -> Verdict {
        if self.contains(issuer, claims.jti.as_str()) {
            Verdict::Revoked { why: Why::Token }
        } else {
            Verdict::NotRevoked { at: Position::default() }
        }
    }
}

/// Nothing is known about revocations: every verdict is `Unknown`, and the policy decides.
#[derive(Clone, Copy, Debug)]
pub struct Unchecked;

impl Revocations for Unchecked {
    fn check(&self, _now: Now, _issuer: &str, _claims: &Claims<'_>) -> Verdict {
        Verdict::Unknown { doubt: Doubt::NotFollowed }
    }
}

/// The rules that tokens must meet.
#[derive(Clone, Debug)]
pub struct ValidatorConfig {
    issuer: String,
    audiences: Vec<String>,
    keys: LiveKeys,
    token_type: Option<String>,
    leeway: u32,
}

impl ValidatorConfig {
    /// Tokens of this issuer, for any of these audiences, signed with one of these keys: a [`KeySet`] that
    /// stays as it is, or [`LiveKeys`] that somebody keeps up to date.
    #[must_use]
    pub fn new<A: Into<String>>(
        issuer: impl Into<String>,
        audiences: impl IntoIterator<Item = A>,
        keys: impl Into<LiveKeys>,
    ) -> Self {
        let audiences = audiences.into_iter().map(Into::into).collect();
        Self { issuer: issuer.into(), audiences, keys: keys.into(), token_type: None, leeway: 0 }
    }

    /// Requires this `typ`, for example `at+jwt`; without it any or none is accepted.
    #[must_use]
    pub fn with_type(mut self, token_type: impl Into<String>) -> Self {
        self.token_type = Some(token_type.into());
        self
    }

    /// Lets clocks differ by this many seconds. None unless given.
    #[must_use]
    pub const fn with_leeway_secs(mut self, leeway: u32) -> Self {
        self.leeway = leeway;
        self
    }
}

/// Why a validator cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValidatorError {
    /// No token could match.
    #[error("the issuer to expect is not one")]
    Issuer(#[from] IssuerError),
    /// A token for anybody would be accepted here.
    #[error("at least one audience must be expected")]
    NoAudience,
    /// Larger than the realm's, or than anything sensible: an expired token could outlive its
    /// revocation, which the server forgets after the realm's leeway.
    #[error("a leeway of {leeway} s is more than the {most} s allowed")]
    Leeway {
        /// What was asked for.
        leeway: u32,
        /// What is allowed.
        most: u32,
    },
    /// More than anybody tells apart; they are looked for one by one.
    #[error("{classes} classes of operations, more than {CLASSES_MAX}")]
    Classes {
        /// How many there are.
        classes: usize,
    },
}

/// Validates tokens of one issuer. Takes no lock; share one between all threads.
#[derive(Clone, Debug)]
pub struct Validator<R> {
    config: ValidatorConfig,
    revocations: R,
    policies: Policies,
}

impl<R: Revocations> Validator<R> {
    /// Joins rules, knowledge of revocations, and what to do in doubt: one policy, or several.
    pub fn new(config: ValidatorConfig, revocations: R, policies: impl Into<Policies>) -> Result<Self, ValidatorError> {
        let policies = policies.into();
        Issuer::new(&config.issuer)?;
        if policies.classes() > CLASSES_MAX {
            return Err(ValidatorError::Classes { classes: policies.classes() });
        }
        if config.audiences.is_empty() {
            return Err(ValidatorError::NoAudience);
        }
        let most = revocations.leeway_max().unwrap_or(LEEWAY_MAX).min(LEEWAY_MAX);
        if config.leeway > most {
            return Err(ValidatorError::Leeway { leeway: config.leeway, most });
        }
        Ok(Self { config, revocations, policies })
    }

    /// Validates a token in its compact form (RFC 7515 section 3.1).
    ///
    /// `Ok` means: accept. In doubt the policy has the last word; where it says "ask", the rejection
    /// says so too ([`Rejected::ask`]) and stands until somebody answered.
    ///
    /// # Complexity
    ///
    /// One signature. Before it, at most 2 KiB of header are parsed; after it, at most 8 KiB of
    /// claims.
    pub fn verify(&self, now: Now, token: &str) -> Result<Token, Rejected> {
        self.verify_by(now, self.policies.default_policy(), token)
    }

    /// The same for an operation of some class; one without a policy of its own gets the default.
    pub fn verify_for(&self, now: Now, class: &str, token: &str) -> Result<Token, Rejected> {
        self.verify_by(now, self.policies.of(class), token)
    }

    fn verify_by(&self, now: Now, policy: &Policy, token: &str) -> Result<Token, Rejected> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Rejection::TooLarge { bytes: token.len() }.into());
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Rejection::MalformedToken)?;
        let (header, payload) = message.split_once('.').ok_or(Rejection::MalformedToken)?;
        if payload.contains('.') {
            return Err(Rejection::MalformedToken.into());
        }
        if header.len() > HEADER_BYTES_MAX {
            return Err(Rejection::TooLarge { bytes: header.len() }.into());
        }
        let header = Header::read(header)?;
        let keys = self.config.keys.load();
        let keys = keys.as_deref().ok_or(Rejection::KeyNotFound)?;
        let key = keys.choose(header.kid.as_deref(), header.algorithm).map_err(|none| match none {
            NoKey::NotFound => Rejection::KeyNotFound,
            NoKey::OtherAlgorithm => Rejection::AlgorithmMismatch,
        })?;
        let signature = decode("signature", signature)?;
        if !crypto::is_signed(key.algorithm.library(), &key.decoding, message.as_bytes(), &signature) {
            return Err(Rejection::BadSignature.into());
        }
        // From here on the issuer is speaking.
        if let Some(expected) = &self.config.token_type
            && !header.token_type.as_deref().is_some_and(|found| same_type(found, expected))
        {
            return Err(Rejection::WrongType.into());
        }
        let payload = decode("payload", payload)?;
        let claims = TokenClaims::read(&payload)?;
        if claims.issuer != self.config.issuer {
            return Err(Rejection::WrongIssuer.into());
        }
        // The name that the key has in the set, so that a token cannot leave a cutoff by its `kid`.
        let kid = key.kid.clone().or(header.kid);
        let token = self.judge(now, claims, kid, payload)?;
        match self.reject(now, policy, &token) {
            None => Ok(token.token),
            Some((rejection, ask)) => Err(Rejected { rejection, ask, token: Some(Box::new(token.token)) }),
        }
    }

    /// The policy of operations without a class.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        self.policies.default_policy()
    }

    /// All policies.
    #[must_use]
    pub const fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Asks whether the token is revoked, whatever else may be wrong with it.
    fn judge(&self, now: Now, claims: TokenClaims, kid: Option<String>, payload: Vec<u8>) -> Result<Judged, Rejection> {
        let asked = Claims {
            jti: Jti::new(&claims.jti).map_err(Rejection::BadJti)?,
            iat: claims.iat,
            exp: claims.exp,
            sub: claims.subject.as_deref(),
            kid: kid.as_deref(),
            client: claims.client.as_deref(),
        };
        let (verdict, age) = self.revocations.check_aged(now, &claims.issuer, &asked);
        Ok(Judged {
            age,
            not_before: claims.not_before,
            audiences: claims.audiences,
            token: Token {
                issuer: claims.issuer,
                jti: claims.jti,
                subject: claims.subject,
                client: claims.client,
                key_id: kid,
                issued_at: claims.iat,
                expires_at: claims.exp,
                verdict,
                payload,
            },
        })
    }

    /// The first rule that the token does not meet, and whether the policy would rather ask.
    fn reject(&self, now: Now, policy: &Policy, judged: &Judged) -> Option<(Rejection, bool)> {
        let token = &judged.token;
        let time = self.revocations.time(now).floor();
        // Rule 13: the realm's leeway may have become known only after the validator was made.
        let most = self.revocations.leeway_max().unwrap_or(LEEWAY_MAX);
        let leeway = u64::from(self.config.leeway.min(most));
        if !judged.audiences.iter().any(|audience| self.config.audiences.contains(audience)) {
            return Some((Rejection::WrongAudience, false));
        }
        if token.expires_at.plus(leeway) <= time {
            return Some((Rejection::Expired { exp: token.expires_at, time }, false));
        }
        if let Some(not_before) = judged.not_before.filter(|not_before| *not_before > time.plus(leeway)) {
            return Some((Rejection::NotYetValid { nbf: not_before, time }, false));
        }
        if let Some(iat) = token.issued_at.filter(|iat| *iat > time.plus(leeway)) {
            return Some((Rejection::IssuedInTheFuture { iat, time }, false));
        }
        let (reason, ask) = match policy.decide(&token.verdict, judged.age) {
            Decision::Accept => return None,
            Decision::Deny { reason } => (reason, false),
            Decision::Ask { reason } => (reason, true),
        };
        let rejection = match reason {
            Reason::Revoked { why } => Rejection::Revoked { why },
            Reason::Suspect => Rejection::Suspect,
            Reason::Unknown { doubt } => Rejection::Unknown { doubt },
            Reason::Aging { age } => Rejection::Aging { age },
        };
        Some((rejection, ask))
    }
}

/// A token whose signature holds, with what is left to check.
struct Judged {
    token: Token,
    age: Option<Duration>,
    not_before: Option<UnixTime>,
    audiences: Vec<String>,
}

/// A token whose signature holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    issuer: String,
    jti: String,
    subject: Option<String>,
    client: Option<String>,
    key_id: Option<String>,
    issued_at: Option<UnixTime>,
    expires_at: UnixTime,
    verdict: Verdict,
    payload: Vec<u8>,
}

impl Token {
    /// `iss`.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `jti`, decoded.
    #[must_use]
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// `sub`.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// `client_id`, or else `azp`.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        self.client.as_deref()
    }

    /// The `kid` of the key that signed it.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// `iat`, rounded down to seconds.
    #[must_use]
    pub const fn issued_at(&self) -> Option<UnixTime> {
        self.issued_at
    }

    /// The claims that its revocation depends on.
    pub fn claims(&self) -> Result<Claims<'_>, JtiError> {
        Ok(Claims {
            jti: Jti::new(&self.jti)?,
            iat: self.issued_at,
            exp: self.expires_at,
            sub: self.subject.as_deref(),
            kid: self.key_id.as_deref(),
            client: self.client.as_deref(),
        })
    }

    /// `exp`, rounded down to seconds.
    #[must_use]
    pub const fn expires_at(&self) -> UnixTime {
        self.expires_at
    }

    /// What is known about its revocation.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// All its claims: the JSON text that was signed, checked to be without duplicate names.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

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
    /// Not three parts with dots between them.
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
    /// The header asks for keys from elsewhere, or for extensions that are not understood here.
    #[error("the header's {name:?} is not accepted")]
    ForbiddenHeader {
        /// Which parameter.
        name: &'static str,
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
            Self::Revoked { .. } => "revoked",
            Self::Suspect => "suspect",
            Self::Unknown { .. } => "unknown",
            Self::Aging { .. } => "aging",
        }
    }
}

/// What we read of a header; the rest says nothing to us.
struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
    token_type: Option<String>,
}

impl Header {
    fn read(part: &str) -> Result<Self, Rejection> {
        let mut members = object("header", &decode("header", part)?)?;
        if let Some(name) = FORBIDDEN.into_iter().find(|name| members.contains_key(*name)) {
            return Err(Rejection::ForbiddenHeader { name });
        }
        let mut text = |name: &'static str| match members.remove(name) {
            None => Ok(None),
            Some(Json::String(text)) if text.len() <= SCOPE_BYTES_MAX => Ok(Some(text)),
            Some(_) => Err(Rejection::BadHeader { name }),
        };
        let algorithm = text("alg")?.ok_or(Rejection::BadHeader { name: "alg" })?;
        Ok(Self {
            algorithm: Algorithm::from_name(&algorithm).ok_or(Rejection::UnsupportedAlgorithm)?,
            kid: text("kid")?,
            token_type: text("typ")?,
        })
    }
}

/// The claims that have a meaning here.
struct TokenClaims {
    issuer: String,
    jti: String,
    audiences: Vec<String>,
    subject: Option<String>,
    client: Option<String>,
    iat: Option<UnixTime>,
    not_before: Option<UnixTime>,
    exp: UnixTime,
}

impl TokenClaims {
    fn read(payload: &[u8]) -> Result<Self, Rejection> {
        let mut members = object("payload", payload)?;
        let audiences = match members.remove("aud") {
            None => return Err(Rejection::MissingClaim { name: "aud" }),
            Some(Json::String(audience)) => vec![audience],
            Some(Json::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or(Rejection::BadClaim { name: "aud" })?
            }
            Some(Json::Null | Json::Bool | Json::Number(_) | Json::Object(_)) => {
                return Err(Rejection::BadClaim { name: "aud" });
            }
        };
        let time = |name: &'static str| match members.get(name) {
            None => Ok(None),
            Some(value) => {
                let seconds = value.as_seconds().ok_or(Rejection::BadClaim { name })?;
                Ok(Some(UnixTime::from_secs(seconds)))
            }
        };
        let (exp, not_before, iat) = (time("exp")?, time("nbf")?, time("iat")?);
        let mut text = |name: &'static str| match members.remove(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(Json::Null | Json::Bool | Json::Number(_) | Json::Array(_) | Json::Object(_)) => {
                Err(Rejection::BadClaim { name })
            }
        };
        let jti = text("jti")?.ok_or(Rejection::MissingClaim { name: "jti" })?;
        if jti.len() > JTI_BYTES_MAX {
            return Err(Rejection::BadJti(JtiError::TooLong { bytes: jti.len() }));
        }
        let mut scope = |name: &'static str| match text(name)? {
            // Longer ones could not be named by a cutoff.
            Some(text) if text.len() > SCOPE_BYTES_MAX => Err(Rejection::BadClaim { name }),
            scope => Ok(scope),
        };
        let (subject, client, party) = (scope("sub")?, scope("client_id")?, scope("azp")?);
        Ok(Self {
            issuer: text("iss")?.ok_or(Rejection::MissingClaim { name: "iss" })?,
            jti,
            audiences,
            subject,
            client: client.or(party),
            iat,
            not_before,
            exp: exp.ok_or(Rejection::MissingClaim { name: "exp" })?,
        })
    }
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, Rejection> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Rejection::BadBase64 { part })
}

fn object(part: &'static str, bytes: &[u8]) -> Result<BTreeMap<String, Json>, Rejection> {
    match Json::parse(bytes) {
        Ok(json) => json.into_object().ok_or(Rejection::BadJson { part }),
        Err(JsonError::Duplicate { name }) => Err(Rejection::DuplicateName { part, name }),
        Err(JsonError::Syntax | JsonError::TooDeep) => Err(Rejection::BadJson { part }),
    }
}

/// Media types without regard to case and to the part that may be left out (RFC 7515 section 4.1.9).
fn same_type(found: &str, expected: &str) -> bool {
    fn bare(text: &str) -> &str {
        match text.split_at_checked("application/".len()) {
            Some((head, rest)) if head.eq_ignore_ascii_case("application/") && !rest.contains('/') => rest,
            _ => text,
        }
    }
    bare(found).eq_ignore_ascii_case(bare(expected))
}

#[cfg(test)]
mod tests;
