//! Judges a whole token that somebody shows: whose it is, and whether it is honored at this moment.
//!
//! For introspection and for brokers that ask who may connect. Devices judge by `revocast-device`; this asks the ledger
//! itself, so it is never in doubt.

use revocast_core::{Claims, Jti};
use serde::Deserialize;
use thiserror::Error;

use crate::ledger::Realm;
use crate::service::{Service, ServiceError};
use crate::tokens::{Audience, Date, Issuers, IssuersError, Token};

/// The claims of a token that matter to whoever asks about it.
#[derive(Clone, Debug, Deserialize)]
pub struct Shown {
    /// Its name.
    pub jti: String,
    /// Who issued it.
    pub iss: String,
    /// When it expires.
    pub exp: Date,
    /// When it was issued.
    pub iat: Option<Date>,
    /// From when on it is honored.
    pub nbf: Option<Date>,
    /// Whom it speaks of.
    pub sub: Option<String>,
    /// For whom it is.
    pub aud: Option<Audience>,
    /// To which client it was issued (RFC 9068).
    pub client_id: Option<String>,
    /// The same, as `OpenID` Connect calls it.
    pub azp: Option<String>,
    /// What it allows.
    pub scope: Option<String>,
}

impl Shown {
    /// To which client it was issued.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        self.client_id.as_deref().or(self.azp.as_deref())
    }
}

/// Gives the claims of a token if it is honored now: signed by the issuer of the realm, in its time, not revoked.
///
/// Of any other nothing is told.
pub async fn honored(
    service: &Service,
    issuers: &Issuers,
    realm: &Realm,
    text: &str,
) -> Result<Option<Shown>, JudgeError> {
    let keys = issuers.keys(realm, service.now())?;
    let Some(token) = Token::parse(text).ok().filter(|token| token.is_signed_by(&keys)) else { return Ok(None) };
    let Ok(shown) = token.claims::<Shown>() else { return Ok(None) };
    let now = service.now();
    let started = shown.nbf.is_none_or(|Date(nbf)| nbf <= realm.latest_iat(now));
    if shown.iss != realm.issuer || shown.exp.0 <= now || !started {
        return Ok(None);
    }
    let Ok(jti) = Jti::new(&shown.jti) else { return Ok(None) };
    let iat = shown.iat.map(|Date(iat)| iat);
    let sub = shown.sub.as_deref();
    let claims = Claims { iat, sub, kid: token.kid(), client: shown.client(), ..Claims::new(jti, shown.exp.0) };
    let revoked = service.is_revoked(realm.id, &claims).await?;
    Ok((!revoked).then_some(shown))
}

/// Why a token could not be judged. It says nothing about the token.
#[derive(Debug, Error)]
pub enum JudgeError {
    /// The keys of its issuer cannot be read; the operator's to mend.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// The ledger failed; ask again.
    #[error(transparent)]
    Service(#[from] ServiceError),
}
