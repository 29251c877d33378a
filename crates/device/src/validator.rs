//! Validates JSON Web Tokens: form, signature, claims, revocation.
//!
//! The JWT library verifies signatures and nothing else: its own rules for claims are too soft
//! (absent `aud` and `iss` pass, `nbf` is not looked at, names may stand twice, the clock is hidden).
//! Revocation goes by (`iss`, decoded `jti`), never by the text of a token, since one token can be
//! spelled in many ways.
//!
//! Nothing is fetched and no file is opened, whatever a header asks for.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::signature::Verifier as _;
use revocast_core::{
    Claims, Doubt, Issuer, IssuerError, Jti, JtiError, Now, Position, UnixMillis, UnixTime, Verdict, Why,
};
use thiserror::Error;

use crate::checker::Checker;
use crate::compact::Compact;
use crate::json::Json;
use crate::policy::{CLASSES_MAX, Decision, Policies, Policy};
use crate::possession::{Presented, Thumbprint};

mod crypto;
mod form;
mod keys;
mod rejection;

use form::{Header, TokenClaims};
use keys::NoKey;
pub(crate) use keys::SET_BYTES_MAX;
pub use keys::{KeyError, KeySet, KeySetError, LiveKeys};
pub use rejection::{Rejected, Rejection};

/// The largest leeway, in seconds, that makes sense; a realm may allow less.
const LEEWAY_MAX: u32 = 3600;

/// How long a token may live unless configured: as long as a realm keeps revocations unless configured.
pub const LIFETIME_MAX_DEFAULT: Duration = Duration::from_hours(30 * 24);

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
    issuer: Arc<str>,
    audiences: Vec<String>,
    keys: LiveKeys,
    token_type: Option<String>,
    leeway: u32,
    lifetime_max: Duration,
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
        Self {
            issuer: issuer.into().into(),
            audiences,
            keys: keys.into(),
            token_type: None,
            leeway: 0,
            lifetime_max: LIFETIME_MAX_DEFAULT,
        }
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

    /// Refuses tokens that live longer than this from `iat` to `exp`; [`LIFETIME_MAX_DEFAULT`] unless given.
    ///
    /// Give the realm's longest lifetime: revocations by people who know no `exp` are kept that long, and a
    /// token that lives longer could outlive its own.
    #[must_use]
    pub const fn with_lifetime_max(mut self, most: Duration) -> Self {
        self.lifetime_max = most;
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

    /// Verifies a token in its compact form (RFC 7515 section 3.1).
    ///
    /// `Ok` means: accept. In doubt the policy has the last word; where it says "ask", the rejection
    /// says so too ([`Rejected::ask`]) and stands until somebody answered.
    ///
    /// A text is a token shown as a bearer does: one that is bound to a key is refused. See [`Presented`]
    /// for showing it with a proof, and for a holder that looks at its own.
    ///
    /// # Complexity
    ///
    /// One signature. Before it at most 8 KiB of base64url are decoded and 2 KiB of header parsed, after it
    /// the claims. A refused token takes the same steps and ends earlier. Takes no lock, unless a proof is
    /// checked.
    pub fn verify<'t>(&self, now: Now, token: impl Into<Presented<'t>>) -> Result<Token, Rejected> {
        self.verify_by(now, self.policies.default_policy(), token.into())
    }

    /// The same for an operation of some class; one without a policy of its own gets the default.
    pub fn verify_for<'t>(&self, now: Now, class: &str, token: impl Into<Presented<'t>>) -> Result<Token, Rejected> {
        self.verify_by(now, self.policies.of(class), token.into())
    }

    fn verify_by(&self, now: Now, policy: &Policy, presented: Presented<'_>) -> Result<Token, Rejected> {
        let compact = Compact::split(presented.token).map_err(Rejection::from)?;
        let keys = self.config.keys.load();
        let known = keys.as_deref().and_then(|keys| keys.known(compact.header_text));
        let (decoded, read);
        let (key, header) = if let Some(known) = known {
            known
        } else {
            decoded = compact.header().map_err(Rejection::from)?;
            read = Header::read(&decoded)?;
            let keys = keys.as_deref().ok_or(Rejection::KeyNotFound)?;
            let key = keys.choose(read.kid.as_deref(), read.algorithm).map_err(|none| match none {
                NoKey::NotFound => Rejection::KeyNotFound,
                NoKey::OtherAlgorithm => Rejection::AlgorithmMismatch,
            })?;
            (key, &read)
        };
        if let Some(expected) = &self.config.token_type
            && !header.token_type.as_deref().is_some_and(|found| same_type(found, expected))
        {
            return Err(Rejection::WrongType.into());
        }
        key.verifier.verify(compact.message, &compact.signature).map_err(|_| Rejection::BadSignature)?;
        if known.is_none() {
            key.remember(compact.header_text, header);
        }
        let payload = compact.payload;
        // From here on the issuer is speaking.
        let claims = TokenClaims::read(&payload)?;
        let time = self.revocations.time(now).floor();
        let fault = self.fault(time, &claims);
        if *claims.issuer != *self.config.issuer {
            // Of this issuer's tokens nothing is known here; where the time is not to blame, the issuer is.
            return Err(fault.unwrap_or(Rejection::WrongIssuer).into());
        }
        // The name that the key has in the set, so that a token cannot leave a cutoff by its `kid`.
        let kid = key.kid.clone().or_else(|| header.kid.as_deref().map(Arc::from));
        let (verdict, age) = self.revocations.check_aged(now, &claims.issuer, &claims.asked(kid.as_deref())?);
        let rejection = fault
            .or_else(|| presented.possession.check(time, presented.token, claims.bound_to).err().map(Rejection::Proof));
        let (rejection, ask) = match rejection {
            Some(rejection) => (Some(rejection), false),
            None => match policy.decide(&verdict, age) {
                Decision::Accept => (None, false),
                Decision::Deny { reason } => (Some(reason.into()), false),
                Decision::Ask { reason } => (Some(reason.into()), true),
            },
        };
        let mut token = Token::new(&self.config.issuer, claims, kid, verdict);
        token.payload = payload;
        match rejection {
            None => Ok(token),
            Some(rejection) => Err(Rejected { rejection, ask, token: Some(Box::new(token)) }),
        }
    }

    /// The first rule about its claims that a token does not meet, apart from revocation.
    fn fault(&self, time: UnixTime, claims: &TokenClaims<'_>) -> Option<Rejection> {
        // Rule 13: the realm's leeway may have become known only after the validator was made.
        let most = self.revocations.leeway_max().unwrap_or(LEEWAY_MAX);
        let leeway = u64::from(self.config.leeway.min(most));
        let exp = claims.exp;
        if exp.plus(leeway) <= time {
            return Some(Rejection::Expired { exp, time });
        }
        if let Some(nbf) = claims.not_before.filter(|nbf| *nbf > time.plus(leeway)) {
            return Some(Rejection::NotYetValid { nbf, time });
        }
        if let Some(iat) = claims.iat.filter(|iat| *iat > time.plus(leeway)) {
            return Some(Rejection::IssuedInTheFuture { iat, time });
        }
        let lifetime = Duration::from_secs(exp.secs().saturating_sub(claims.iat.unwrap_or(time).secs()));
        if lifetime > self.config.lifetime_max {
            return Some(Rejection::LivesTooLong { lifetime, most: self.config.lifetime_max });
        }
        if *claims.issuer != *self.config.issuer {
            return Some(Rejection::WrongIssuer);
        }
        if !claims.audiences.iter().any(|audience| self.config.audiences.iter().any(|ours| ours == audience)) {
            return Some(Rejection::WrongAudience);
        }
        None
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
}

/// A token whose signature holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    issuer: Arc<str>,
    jti: String,
    subject: Option<String>,
    client: Option<String>,
    key_id: Option<Arc<str>>,
    issued_at: Option<UnixTime>,
    expires_at: UnixTime,
    bound_to: Option<Thumbprint>,
    verdict: Verdict,
    payload: Vec<u8>,
}

impl Token {
    fn new(issuer: &Arc<str>, claims: TokenClaims<'_>, key_id: Option<Arc<str>>, verdict: Verdict) -> Self {
        Self {
            issuer: Arc::clone(issuer),
            jti: claims.jti.into_owned(),
            subject: claims.subject.map(Cow::into_owned),
            client: claims.client.map(Cow::into_owned),
            key_id,
            issued_at: claims.iat,
            expires_at: claims.exp,
            bound_to: claims.bound_to,
            verdict,
            payload: Vec::new(),
        }
    }

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

    /// `iat`.
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

    /// `exp`.
    #[must_use]
    pub const fn expires_at(&self) -> UnixTime {
        self.expires_at
    }

    /// The key that it is bound to (`cnf.jkt`), if it is.
    #[must_use]
    pub const fn bound_to(&self) -> Option<Thumbprint> {
        self.bound_to
    }

    /// What is known about its revocation.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the claim `scope` has this one among its words (RFC 8693 section 4.2).
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        let members = Json::parse(&self.payload).ok().and_then(Json::into_object);
        let scopes = members.as_ref().and_then(|members| members.get("scope")).and_then(Json::as_str);
        scopes.is_some_and(|scopes| scopes.split(' ').any(|found| found == scope))
    }

    /// All its claims: the JSON text that was signed, checked to be without duplicate names.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
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
