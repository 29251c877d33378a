//! Proof of possession: a token that is bound to a key is worth nothing without that key.
//!
//! A token says in `cnf.jkt` (RFC 7800, RFC 9449 section 6.1) which key it is bound to. Whoever shows it adds a
//! proof: a small token of its own, signed with that key, that names the call it is made for, the token it goes
//! with, and the time. The callee checks it offline and remembers it, so that it counts once.
//!
//! Over HTTP a proof is that of RFC 9449 (`DPoP`). Over MQTT, for which there is no standard, the same proof names the
//! topic and the digest of the payload in place of method and address: the broker is not trusted, so it must not be able to put
//! another payload beside a proof.

use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use revocast_core::limits::JTI_BYTES_MAX;
use revocast_core::{Now, UnixTime};
use ring::digest::{SHA256, digest};
use serde_json::json;
use thiserror::Error;

use crate::compact::Compact;
use crate::config::RandomError;
use crate::json::{Json, Members};

/// How long a proof is good for unless configured: the time that a call may take to arrive, and what clocks differ.
pub const PROOF_WINDOW: Duration = Duration::from_mins(1);

/// How far the clock of whoever makes a proof may be ahead.
const AHEAD_SECS: u64 = 5;

/// Proofs that a callee remembers, about 3 MB. At its limit it refuses: what it forgot could be shown again.
pub const PROOFS_REMEMBERED_MAX: usize = 65_536;

/// Bytes of a proof. One takes about 400.
const PROOF_BYTES_MAX: usize = 4 * 1024;

/// The SHA-256 of a public key in its only JSON form (RFC 7638): what a token is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// That of an Ed25519 key.
    #[must_use]
    pub fn of_ed25519(public: &[u8; 32]) -> Self {
        let x = URL_SAFE_NO_PAD.encode(public);
        Self(sha256(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#).as_bytes()))
    }

    /// Reads the base64url that stands in `cnf.jkt`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // Decoded bytes of 43 characters always fit.
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thumbprint({self})")
    }
}

/// The call that a proof is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call<'a> {
    /// An HTTP request.
    Http {
        /// Its method, as it is sent.
        method: &'a str,
        /// Its whole address, as the caller sees it: `https://host/path`. Query and fragment do not count.
        uri: &'a str,
    },
    /// An MQTT message.
    Mqtt {
        /// The topic it is published on.
        topic: &'a str,
        /// What is published beside token and proof.
        payload: &'a [u8],
    },
}

/// Makes proofs with a device's signing key.
///
/// The key may be the one that seals: what is sealed begins with a prefix that no token begins with.
pub struct Prover {
    key: SigningKey,
    public: [u8; 32],
}

impl Prover {
    /// Takes the 32-byte seed of the Ed25519 key (RFC 8032).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        Self { public: key.verifying_key().to_bytes(), key }
    }

    /// What tokens are bound to that only this key can show.
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint::of_ed25519(&self.public)
    }

    /// Makes a proof for one call with one token: the value of the header `DPoP`.
    pub fn prove(&self, now: Now, call: &Call<'_>, token: &str) -> Result<String, RandomError> {
        let mut jti = [0; 16];
        getrandom::fill(&mut jti).map_err(RandomError)?;
        let header = json!({
            "typ": "dpop+jwt", "alg": "EdDSA",
            "jwk": { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(self.public) },
        });
        let (jti, ath) = (URL_SAFE_NO_PAD.encode(jti), text_digest(token.as_bytes()));
        let iat = now.wall.floor().secs();
        let claims = match *call {
            Call::Http { method, uri } => {
                json!({ "htm": method, "htu": bare(uri), "iat": iat, "jti": jti, "ath": ath })
            }
            Call::Mqtt { topic, payload } => {
                json!({ "topic": topic, "payload": text_digest(payload), "iat": iat, "jti": jti, "ath": ath })
            }
        };
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(message.as_bytes()).to_bytes();
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prover({})", self.thumbprint())
    }
}

/// What a callee remembers of the proofs that it was shown. Shared by all that answer the same calls.
///
/// After a start nothing is remembered, so proofs that were made before, or in the same second, are refused: they could have been
/// shown already. Two callees that answer for one address and share no memory can each be shown the same proof.
pub struct Proofs {
    window_secs: u64,
    seen: Mutex<Seen>,
}

/// Proofs by their digest, in two generations: each is kept for at least one span after it was shown.
struct Seen {
    began: UnixTime,
    latest: UnixTime,
    turned: UnixTime,
    young: HashSet<u128>,
    old: HashSet<u128>,
}

impl Proofs {
    /// Begins to remember; proofs are good for [`PROOF_WINDOW`].
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self::with_window(now, PROOF_WINDOW)
    }

    /// The same with another window, at least a second.
    #[must_use]
    pub fn with_window(now: Now, window: Duration) -> Self {
        let began = now.wall.floor();
        let seen = Seen { began, latest: began, turned: began, young: HashSet::new(), old: HashSet::new() };
        Self { window_secs: window.as_secs().max(1), seen: Mutex::new(seen) }
    }

    /// Checks a proof that goes with a token, and remembers it. `time` is what the token's own times were compared with.
    pub(crate) fn check(
        &self,
        time: UnixTime,
        proof: &str,
        call: &Call<'_>,
        token: &str,
        bound_to: Thumbprint,
    ) -> Result<(), ProofError> {
        let read = Proof::read(proof)?;
        if read.signer != bound_to {
            return Err(ProofError::OtherKey);
        }
        if !read.is_for(call) {
            return Err(ProofError::OtherCall);
        }
        if read.token != text_digest(token.as_bytes()) {
            return Err(ProofError::OtherToken);
        }
        self.remember(time, read.iat, &read.name())
    }

    /// The time of a proof, and that it has not been shown before.
    fn remember(&self, time: UnixTime, iat: UnixTime, name: &[u8; 32]) -> Result<(), ProofError> {
        // Whoever panicked while holding it left it whole.
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A clock that is set back does not make old proofs new.
        let time = time.max(seen.latest);
        seen.latest = time;
        if iat.plus(self.window_secs) <= time || iat <= seen.began {
            return Err(ProofError::Stale { iat, time });
        }
        if iat > time.plus(AHEAD_SECS) {
            return Err(ProofError::Early { iat, time });
        }
        let span = self.window_secs + AHEAD_SECS;
        if time >= seen.turned.plus(span) {
            let old = if time >= seen.turned.plus(2 * span) { HashSet::new() } else { std::mem::take(&mut seen.young) };
            (seen.old, seen.young, seen.turned) = (old, HashSet::new(), time);
        }
        // Half of a SHA-256: nobody finds two proofs with the same.
        let name = u128::from_le_bytes(name.first_chunk().copied().unwrap_or_default());
        if seen.old.contains(&name) || seen.young.contains(&name) {
            return Err(ProofError::Replayed);
        }
        if seen.old.len() + seen.young.len() >= PROOFS_REMEMBERED_MAX {
            return Err(ProofError::TooMany);
        }
        seen.young.insert(name);
        Ok(())
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proofs(of {} s)", self.window_secs)
    }
}

/// A proof whose signature holds under the key that it carries.
struct Proof {
    signer: Thumbprint,
    jti: String,
    iat: UnixTime,
    /// The digest of the token it goes with, in base64url.
    token: String,
    about: About,
}

/// What it says it is for.
enum About {
    Http { method: String, uri: String },
    Mqtt { topic: String, payload: String },
}

impl Proof {
    fn read(text: &str) -> Result<Self, ProofError> {
        let malformed = |what| ProofError::Malformed { what };
        if text.len() > PROOF_BYTES_MAX {
            return Err(malformed("it is too large"));
        }
        let compact = Compact::split(text).map_err(|_| malformed("it is no compact token"))?;
        let header = compact.header().map_err(|_| malformed("it is no compact token"))?;
        let public = read_header(&header)?;
        let key = VerifyingKey::from_bytes(&public).map_err(|_| malformed("its key is none"))?;
        let signature = Signature::from_slice(&compact.signature).map_err(|_| ProofError::Signature)?;
        key.verify_strict(compact.message, &signature).map_err(|_| ProofError::Signature)?;

        let mut claims = members(&compact.payload).ok_or(malformed("its claims are no JSON object"))?;
        let mut text = |name: &str, what| {
            let found = claims.remove(name).and_then(Json::into_text);
            found.map(std::borrow::Cow::into_owned).ok_or(malformed(what))
        };
        let jti = text("jti", "its jti is missing or no text")?;
        let token = text("ath", "its ath is missing or no text")?;
        let about = match (text("htm", ""), text("htu", ""), text("topic", ""), text("payload", "")) {
            (Ok(method), Ok(uri), Err(_), Err(_)) => About::Http { method, uri },
            (Err(_), Err(_), Ok(topic), Ok(payload)) => About::Mqtt { topic, payload },
            _ => return Err(malformed("it names no call, or two")),
        };
        let iat = claims.get("iat").and_then(Json::as_seconds).ok_or(malformed("its iat is missing or no time"))?;
        if jti.is_empty() || jti.len() > JTI_BYTES_MAX {
            return Err(malformed("its jti has no sane length"));
        }
        let signer = Thumbprint::of_ed25519(&public);
        Ok(Self { signer, jti, iat: UnixTime::from_secs(iat), token, about })
    }

    fn is_for(&self, call: &Call<'_>) -> bool {
        match (&self.about, call) {
            (About::Http { method, uri }, Call::Http { method: called, uri: at }) => {
                method == called && same_address(uri, at)
            }
            (About::Mqtt { topic, payload }, Call::Mqtt { topic: published, payload: beside }) => {
                topic == published && *payload == text_digest(beside)
            }
            (About::Http { .. }, Call::Mqtt { .. }) | (About::Mqtt { .. }, Call::Http { .. }) => false,
        }
    }

    /// What tells it from every other proof.
    fn name(&self) -> [u8; 32] {
        sha256(&[&self.signer.0, self.jti.as_bytes()].concat())
    }
}

/// The public key in a proof's header, which must be exactly that of a proof.
fn read_header(bytes: &[u8]) -> Result<[u8; 32], ProofError> {
    let malformed = |what| ProofError::Malformed { what };
    let header = members(bytes).ok_or(malformed("its header is no JSON object"))?;
    let text = |members: &Members<'_>, name: &str, expected: &str| {
        members.get(name).and_then(Json::as_str).is_some_and(|found| found == expected)
    };
    if header.len() != 3 || !text(&header, "typ", "dpop+jwt") || !text(&header, "alg", "EdDSA") {
        return Err(malformed("its header is not that of a proof"));
    }
    let Some(Json::Object(jwk)) = header.get("jwk") else {
        return Err(malformed("its key is missing"));
    };
    // A private key has a member more.
    if jwk.len() != 3 || !text(jwk, "kty", "OKP") || !text(jwk, "crv", "Ed25519") {
        return Err(malformed("its key is no public Ed25519 key"));
    }
    let x = jwk.get("x").and_then(Json::as_str).and_then(|x| URL_SAFE_NO_PAD.decode(x).ok());
    x.and_then(|x| x.try_into().ok()).ok_or(malformed("its key is no public Ed25519 key"))
}

fn members(bytes: &[u8]) -> Option<Members<'_>> {
    Json::parse(bytes).ok()?.into_object()
}

/// An address without query and fragment (RFC 9449 section 4.2).
fn bare(uri: &str) -> &str {
    uri.split(['?', '#']).next().unwrap_or_default()
}

/// Whether a claimed address is the one called: scheme and host without regard to case, default ports left out, an empty path
/// like `/` (RFC 3986 section 6.2). The rest must be the same to the letter.
fn same_address(claimed: &str, called: &str) -> bool {
    fn normal(uri: &str) -> Option<(String, String, &str)> {
        let (scheme, rest) = uri.split_once("://")?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (scheme, mut authority) = (scheme.to_ascii_lowercase(), authority.to_ascii_lowercase());
        let default = match &*scheme {
            "https" => ":443",
            "http" => ":80",
            _ => "",
        };
        if let Some(host) = authority.strip_suffix(default) {
            authority = host.to_owned();
        }
        Some((scheme, authority, path))
    }
    bare(claimed) == claimed && normal(claimed).is_some() && normal(claimed) == normal(bare(called))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // SHA-256 has 32 bytes, so the default is never taken.
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

fn text_digest(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(sha256(bytes))
}

/// Why a proof does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The token is bound to a key, and nothing proves that whoever shows it has that key: it may be stolen.
    #[error("the token is bound to a key, and no proof of it was shown")]
    Missing,
    /// A proof beside a token that is bound to no key: it proves nothing.
    #[error("a proof was shown with a token that is bound to no key")]
    Unbound,
    /// Not a proof at all.
    #[error("the proof cannot be read: {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Forged or damaged.
    #[error("the proof's signature does not hold")]
    Signature,
    /// Made with another key than the token is bound to.
    #[error("the proof was made with another key")]
    OtherKey,
    /// Made for another method, address, topic or payload.
    #[error("the proof was made for another call")]
    OtherCall,
    /// Made to go with another token.
    #[error("the proof was made for another token")]
    OtherToken,
    /// Too old, or from before this callee began to remember. The caller makes a new one.
    #[error("the proof was made at {iat}, too long before {time}")]
    Stale {
        /// When it was made.
        iat: UnixTime,
        /// The time it was compared with.
        time: UnixTime,
    },
    /// The caller's clock is ahead by more than a few seconds.
    #[error("the proof was made at {iat}; it is {time}")]
    Early {
        /// When it was made.
        iat: UnixTime,
        /// The time it was compared with.
        time: UnixTime,
    },
    /// It was shown before: by a caller that uses one twice, or by whoever overheard it.
    #[error("the proof was shown before")]
    Replayed,
    /// More proofs in one window than a callee remembers.
    #[error("{PROOFS_REMEMBERED_MAX} proofs are remembered, which is the limit")]
    TooMany,
}

impl ProofError {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Missing => "proof-missing",
            Self::Unbound => "proof-without-binding",
            Self::Malformed { .. } => "bad-proof",
            Self::Signature => "proof-signature",
            Self::OtherKey => "proof-of-another-key",
            Self::OtherCall => "proof-for-another-call",
            Self::OtherToken => "proof-for-another-token",
            Self::Stale { .. } => "proof-stale",
            Self::Early { .. } => "proof-early",
            Self::Replayed => "proof-replayed",
            Self::TooMany => "proofs-full",
        }
    }
}

/// A token as it is shown, with what proves that whoever shows it may.
///
/// A text alone is a token shown as a bearer does: good unless it is bound to a key.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    pub(crate) token: &'a str,
    pub(crate) possession: Possession<'a>,
}

/// How a token was shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Possession<'a> {
    /// By whoever has it.
    Bearer,
    /// By nobody: its holder looks at it.
    Held,
    /// With a proof.
    Proven { proof: &'a str, call: Call<'a>, proofs: &'a Proofs },
}

impl<'a> Presented<'a> {
    /// With a proof for this call (`Authorization: DPoP`, and a header `DPoP`).
    #[must_use]
    pub const fn proven(token: &'a str, proof: &'a str, call: Call<'a>, proofs: &'a Proofs) -> Self {
        Self { token, possession: Possession::Proven { proof, call, proofs } }
    }

    /// A token that its own holder looks at, before it uses it: no proof is needed. Never for a token that came from elsewhere.
    #[must_use]
    pub const fn held(token: &'a str) -> Self {
        Self { token, possession: Possession::Held }
    }
}

impl<'a> From<&'a str> for Presented<'a> {
    fn from(token: &'a str) -> Self {
        Self { token, possession: Possession::Bearer }
    }
}

impl<'a> From<&'a String> for Presented<'a> {
    fn from(token: &'a String) -> Self {
        token.as_str().into()
    }
}

impl Possession<'_> {
    /// Whether a token with this binding may be shown like this. A proof counts once: it is remembered here.
    pub(crate) fn check(&self, time: UnixTime, token: &str, bound_to: Option<Thumbprint>) -> Result<(), ProofError> {
        match (self, bound_to) {
            (Self::Bearer, None) | (Self::Held, _) => Ok(()),
            (Self::Bearer, Some(_)) => Err(ProofError::Missing),
            (Self::Proven { .. }, None) => Err(ProofError::Unbound),
            (Self::Proven { proof, call, proofs }, Some(bound_to)) => proofs.check(time, proof, call, token, bound_to),
        }
    }
}

#[cfg(test)]
mod tests;
