//! What a token says, and the text of it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Digest, PublicKey, UnixTime};
use serde_json::{Map, Value, json};

use super::key::{TokenKey, TokenKeyError};

/// Whom a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// Nobody: whoever has it may use it.
    Anybody,
    /// The holder of the key with this thumbprint (RFC 7800, RFC 9449).
    Holder {
        /// `jkt`.
        thumbprint: String,
    },
}

/// The claims of a token that is about to be signed.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenClaims {
    /// `iss`: the realm's.
    pub issuer: String,
    /// `sub`: whom it speaks of.
    pub subject: String,
    /// `aud`: whom it is for.
    pub audience: Vec<String>,
    /// `jti`.
    pub jti: String,
    /// `iat` and `nbf`.
    pub iat: UnixTime,
    /// `exp`.
    pub exp: UnixTime,
    /// `client_id`: the client it is issued to, if any.
    pub client: Option<String>,
    /// `cnf`.
    pub bearer: Bearer,
    /// Those of the template and of the request.
    pub custom: Map<String, Value>,
}

/// The thumbprint of a device's signing key: RFC 7638 over its JWK (RFC 8037).
#[must_use]
pub fn confirmation(key: &PublicKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.0);
    let thumbed = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Digest::of(thumbed.as_bytes()).0)
}

/// The signed token, in compact form (RFC 7515).
pub fn sign(key: &TokenKey, typ: &str, claims: TokenClaims) -> Result<String, TokenKeyError> {
    let TokenClaims { issuer, subject, mut audience, jti, iat, exp, client, bearer, custom } = claims;
    let mut payload = custom;
    let mut set = |name: &str, value: Value| payload.insert(name.to_owned(), value);
    set("iss", issuer.into());
    set("sub", subject.into());
    // One is a text, several are a list (RFC 7519 section 4.1.3).
    set("aud", if audience.len() == 1 { audience.remove(0).into() } else { audience.into() });
    set("jti", jti.into());
    set("iat", iat.secs().into());
    set("nbf", iat.secs().into());
    set("exp", exp.secs().into());
    if let Some(client) = client {
        set("client_id", client.into());
    }
    if let Bearer::Holder { thumbprint } = bearer {
        set("cnf", json!({ "jkt": thumbprint }));
    }
    let header = json!({ "alg": key.algorithm().name(), "kid": key.kid(), "typ": typ });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(&header), encode(&Value::Object(payload)));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes())?);
    Ok(format!("{message}.{signature}"))
}

#[cfg(test)]
mod tests {
    use super::super::key::Algorithm;
    use super::*;
    use crate::tokens::{KeySet, Token};

    #[test]
    fn a_token_says_what_was_asked_for_and_nothing_overrides_it() {
        let key = TokenKey::generate(Algorithm::EdDsa).unwrap();
        let claims = TokenClaims {
            issuer: "i".into(),
            subject: "s".into(),
            audience: vec!["a".into()],
            jti: "j".into(),
            iat: UnixTime::from_secs(7),
            exp: UnixTime::from_secs(9),
            client: None,
            bearer: Bearer::Holder { thumbprint: "t".into() },
            custom: Map::from_iter([("sub".to_owned(), json!("other")), ("scope".to_owned(), json!("read"))]),
        };
        let text = sign(&key, "at+jwt", claims).unwrap();
        let token = Token::parse(&text).unwrap();
        assert!(token.is_signed_by(&KeySet::parse(&json!({ "keys": [key.jwk().unwrap()] })).unwrap()));
        assert_eq!((token.typ(), token.kid()), (Some("at+jwt"), Some(key.kid())));
        let said: Value = token.claims().unwrap();
        assert_eq!(
            said,
            json!({"iss": "i", "sub": "s", "aud": "a", "jti": "j", "iat": 7, "nbf": 7, "exp": 9, "cnf": {"jkt": "t"}, "scope": "read"})
        );
    }
}
