//! What a header and a payload may say: members, their types, their sizes.

use std::borrow::Cow;

use revocast_core::limits::SCOPE_BYTES_MAX;
use revocast_core::{Claims, Jti, UnixTime};

use super::Rejection;
use super::keys::Algorithm;
use crate::json::{Json, JsonError, Members};
use crate::possession::Thumbprint;

/// Header parameters that ask for keys from elsewhere, or for rules that we do not follow: RFC 7515 section 4.1,
/// RFC 7797, RFC 7516 section 4.1.3. `cty` says that there is a token inside the token.
const FORBIDDEN: [&str; 10] = ["crit", "b64", "zip", "jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "cty"];

/// What a header says.
pub(super) struct Header<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<Cow<'a, str>>,
    pub(super) token_type: Option<Cow<'a, str>>,
}

impl<'a> Header<'a> {
    /// Reads a header that says nothing but `alg`, `kid` and `typ`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Rejection> {
        let (mut algorithm, mut kid, mut token_type) = (None, None, None);
        for (name, value) in object("header", bytes)? {
            let (place, name) = match &*name {
                "alg" => (&mut algorithm, "alg"),
                "kid" => (&mut kid, "kid"),
                "typ" => (&mut token_type, "typ"),
                other => {
                    let forbidden = FORBIDDEN.into_iter().find(|name| *name == other);
                    return Err(match forbidden {
                        Some(name) => Rejection::ForbiddenHeader { name },
                        None => Rejection::UnknownHeader { name: name.into_owned() },
                    });
                }
            };
            let text = value.into_text().filter(|text| text.len() <= SCOPE_BYTES_MAX);
            *place = Some(text.ok_or(Rejection::BadHeader { name })?);
        }
        let algorithm = algorithm.ok_or(Rejection::BadHeader { name: "alg" })?;
        let algorithm = Algorithm::from_name(&algorithm).ok_or(Rejection::UnsupportedAlgorithm)?;
        Ok(Self { algorithm, kid, token_type })
    }

    /// The same, kept.
    pub(super) fn to_owned(&self) -> Header<'static> {
        let owned = |text: &Option<Cow<'_, str>>| text.as_ref().map(|text| Cow::Owned(text.clone().into_owned()));
        Header { algorithm: self.algorithm, kid: owned(&self.kid), token_type: owned(&self.token_type) }
    }
}

/// The claims that have a meaning here.
pub(super) struct TokenClaims<'a> {
    pub(super) issuer: Cow<'a, str>,
    pub(super) jti: Cow<'a, str>,
    pub(super) audiences: Audiences<'a>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) iat: Option<UnixTime>,
    pub(super) not_before: Option<UnixTime>,
    pub(super) exp: UnixTime,
    pub(super) bound_to: Option<Thumbprint>,
}

/// Whom a token is for.
pub(super) enum Audiences<'a> {
    One(Cow<'a, str>),
    /// Texts only.
    Several(Vec<Json<'a>>),
}

impl Audiences<'_> {
    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self {
            Self::One(one) => (Some(&**one), [].as_slice()),
            Self::Several(several) => (None, several.as_slice()),
        };
        one.into_iter().chain(several.iter().filter_map(Json::as_str))
    }
}

impl<'a> TokenClaims<'a> {
    /// Reads the claims, whatever else stands beside them.
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Rejection> {
        let (mut issuer, mut jti, mut audiences, mut subject) = (None, None, None, None);
        let (mut client, mut party, mut bound_to) = (None, None, None);
        let (mut iat, mut not_before, mut exp) = (None, None, None);
        for (name, value) in object("payload", payload)? {
            match &*name {
                "iss" => issuer = Some(text("iss", value)?),
                "jti" => jti = Some(identity(value)?),
                "aud" => audiences = Some(audience(value)?),
                "sub" => subject = Some(scope("sub", value)?),
                "client_id" => client = Some(scope("client_id", value)?),
                "azp" => party = Some(scope("azp", value)?),
                "cnf" => bound_to = Some(binding(&value)?),
                "iat" => iat = Some(time("iat", &value)?),
                "nbf" => not_before = Some(time("nbf", &value)?),
                "exp" => exp = Some(time("exp", &value)?),
                _ => {}
            }
        }
        let missing = |name| Rejection::MissingClaim { name };
        Ok(Self {
            exp: exp.ok_or(missing("exp"))?,
            issuer: issuer.ok_or(missing("iss"))?,
            audiences: audiences.ok_or(missing("aud"))?,
            jti: jti.ok_or(missing("jti"))?,
            subject,
            client: client.or(party),
            iat,
            not_before,
            bound_to,
        })
    }

    /// What revocation is asked about.
    pub(super) fn asked<'s>(&'s self, kid: Option<&'s str>) -> Result<Claims<'s>, Rejection> {
        Ok(Claims {
            jti: Jti::new(&self.jti).map_err(Rejection::BadJti)?,
            iat: self.iat,
            exp: self.exp,
            sub: self.subject.as_deref(),
            kid,
            client: self.client.as_deref(),
        })
    }
}

fn text<'a>(name: &'static str, value: Json<'a>) -> Result<Cow<'a, str>, Rejection> {
    value.into_text().ok_or(Rejection::BadClaim { name })
}

/// What cannot name a token is told apart from what has the wrong type.
fn identity(value: Json<'_>) -> Result<Cow<'_, str>, Rejection> {
    let jti = text("jti", value)?;
    match Jti::new(&jti) {
        Ok(_) => Ok(jti),
        Err(error) => Err(Rejection::BadJti(error)),
    }
}

/// Longer ones could not be named by a cutoff.
fn scope<'a>(name: &'static str, value: Json<'a>) -> Result<Cow<'a, str>, Rejection> {
    text(name, value).and_then(
        |text| {
            if text.len() <= SCOPE_BYTES_MAX { Ok(text) } else { Err(Rejection::BadClaim { name }) }
        },
    )
}

fn time(name: &'static str, value: &Json<'_>) -> Result<UnixTime, Rejection> {
    value.as_seconds().map(UnixTime::from_secs).ok_or(Rejection::BadClaim { name })
}

fn audience(value: Json<'_>) -> Result<Audiences<'_>, Rejection> {
    match value {
        Json::String(one) => Ok(Audiences::One(one)),
        Json::Array(several) if several.iter().all(|item| item.as_str().is_some()) => Ok(Audiences::Several(several)),
        Json::Null | Json::Bool | Json::Integer(_) | Json::Number | Json::Array(_) | Json::Object(_) => {
            Err(Rejection::BadClaim { name: "aud" })
        }
    }
}

/// A binding that cannot be checked here must not pass as none.
fn binding(value: &Json<'_>) -> Result<Thumbprint, Rejection> {
    let jkt = match value {
        Json::Object(members) if members.len() == 1 => members.get("jkt").and_then(Json::as_str),
        Json::Null
        | Json::Bool
        | Json::Integer(_)
        | Json::Number
        | Json::String(_)
        | Json::Array(_)
        | Json::Object(_) => None,
    };
    jkt.and_then(Thumbprint::parse).ok_or(Rejection::BadClaim { name: "cnf" })
}

fn object<'a>(part: &'static str, bytes: &'a [u8]) -> Result<Members<'a>, Rejection> {
    match Json::parse(bytes) {
        Ok(json) => json.into_object().ok_or(Rejection::BadJson { part }),
        Err(JsonError::Duplicate { name }) => Err(Rejection::DuplicateName { part, name }),
        Err(JsonError::Syntax | JsonError::TooDeep) => Err(Rejection::BadJson { part }),
    }
}
