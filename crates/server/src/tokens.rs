//! Signed tokens that somebody shows: read strictly, verified over ring.
//!
//! Only what the API needs of them: whose they are, and whether they are genuine. Devices judge tokens by
//! `revocast-device`; that a token is honored is decided there.

mod keyset;
pub use keyset::{KeySet, KeySetError};

mod issuers;
pub use issuers::{Issuers, IssuersError, Transmitter};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::UnixTime;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// Bytes of a token. Those in the field have one or two thousand.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// First number that a double cannot tell from its neighbor.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A JSON Web Signature in its compact form (RFC 7515), not verified yet.
#[derive(Clone, Debug)]
pub struct Token {
    header: Header,
    payload: Vec<u8>,
    signed: String,
    signature: Vec<u8>,
}

#[derive(Clone, Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    // What must be understood and is not (RFC 7515 section 4.1.11).
    crit: Option<IgnoredAny>,
}

impl Token {
    /// Reads a token. Names that matter may not stand twice; what follows the signature is refused.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong { bytes: text.len() });
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let (head, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let signed_bytes = text.len() - text.rsplit('.').next().map_or(0, str::len) - 1;
        let signed = text.get(..signed_bytes).ok_or(TokenError::Form)?.to_owned();
        let header: Header = object(&head)?;
        Ok(Self { header, payload, signed, signature })
    }

    /// The claims that the caller wants. Any other is passed over.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, TokenError> {
        object(&self.payload)
    }

    /// The key that should have signed it, if the token says so.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// What it says to be.
    #[must_use]
    pub fn typ(&self) -> Option<&str> {
        self.header.typ.as_deref()
    }

    /// Whether one of these keys has signed it.
    #[must_use]
    pub fn is_signed_by(&self, keys: &KeySet) -> bool {
        self.header.crit.is_none()
            && keys.verifies(&self.header.alg, self.kid(), self.signed.as_bytes(), &self.signature)
    }
}

/// One JSON object; anything else, and what follows it, is refused.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TokenError> {
    // Serde would take an array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(TokenError::Form);
    }
    serde_json::from_slice(bytes).map_err(|source| TokenError::Json { source })
}

/// A `NumericDate` (RFC 7519 section 2), rounded down to seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub UnixTime);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        if seconds.is_sign_positive() && seconds < EXACT_MAX {
            Ok(Self(UnixTime::from_secs(seconds.floor() as u64)))
        } else {
            Err(D::Error::custom("a date from 1970 on is expected, in seconds"))
        }
    }
}

/// Whom a token is for: one, or several (RFC 7519 section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    /// Whether it is for this one.
    #[must_use]
    pub fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// Why something is no token; the fault of whoever shows it.
#[derive(Debug, Error)]
pub enum TokenError {
    /// Longer than any token.
    #[error("the token has {bytes} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not three parts in base64url, or not objects.
    #[error("it is not a signed token in compact form")]
    Form,
    /// A part is not the JSON that it should be.
    #[error("the token cannot be read")]
    Json {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    /// Signs tokens, as an issuer does.
    pub(crate) struct Signer(Ed25519KeyPair);

    impl Signer {
        pub(crate) fn new(seed: u8) -> Self {
            Self::of(&[seed; 32])
        }

        pub(crate) fn of(seed: &[u8; 32]) -> Self {
            Self(Ed25519KeyPair::from_seed_unchecked(seed).unwrap())
        }

        pub(crate) fn jwks(&self, kid: &str) -> Value {
            let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig", "alg": "EdDSA"}]})
        }

        pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
            self.sign_text(&header.to_string(), &claims.to_string())
        }

        pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
            format!("{signed}.{signature}")
        }
    }

    #[derive(Debug, Deserialize)]
    struct Wanted {
        jti: String,
        exp: Date,
    }

    #[test]
    fn a_token_is_verified_over_its_own_bytes() {
        let (signer, other) = (Signer::new(1), Signer::new(2));
        let text = signer.sign(&json!({"alg": "EdDSA", "kid": "k"}), &json!({"jti": "t", "exp": 1.5e9 + 0.5}));
        let token = Token::parse(&text).unwrap();
        let claims: Wanted = token.claims().unwrap();
        assert_eq!((claims.jti.as_str(), claims.exp), ("t", Date(UnixTime::from_secs(1_500_000_000))));
        let set = |signer: &Signer, kid| KeySet::parse(&signer.jwks(kid)).unwrap();
        assert!(token.is_signed_by(&set(&signer, "k")));
        assert!(!token.is_signed_by(&set(&signer, "another")), "another key was named");
        assert!(!token.is_signed_by(&set(&other, "k")));
        let changed = text.replacen("eyJ", "eyK", 1);
        assert!(!Token::parse(&changed).is_ok_and(|token| token.is_signed_by(&set(&signer, "k"))));
        for header in [
            json!({"alg": "none", "kid": "k"}),
            json!({"alg": "HS256", "kid": "k"}),
            json!({"alg": "ES256", "kid": "k"}),
            json!({"alg": "EdDSA", "kid": "k", "crit": ["exp"]}),
        ] {
            let text = signer.sign(&header, &json!({"jti": "t"}));
            assert!(!Token::parse(&text).unwrap().is_signed_by(&set(&signer, "k")), "{header}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let signer = Signer::new(1);
        let good = signer.sign(&json!({"alg": "EdDSA"}), &json!({"jti": "t", "exp": 1}));
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#);
        for text in [
            String::new(),
            ".".into(),
            "..".into(),
            "a.b".into(),
            format!("{good}.x"),
            format!("{good}="),
            format!("{good}\n"),
            good.replace('.', ":"),
            signer.sign_text("[]", "{}"),
            signer.sign_text("{}", "{}"),
            signer.sign_text(r#"{"alg":"EdDSA","alg":"none"}"#, "{}"),
            signer.sign_text(r#"["EdDSA",null,null,null]"#, "{}"),
            format!("{none}.{}.", "x".repeat(TOKEN_BYTES_MAX)),
        ] {
            assert!(Token::parse(&text).is_err(), "{text}");
        }
        for claims in
            [r#"{"jti":"t","exp":1,"\u006ati":"u"}"#, r#"["t",1]"#, r#"{"jti":"t","exp":-1}"#, r#"{"jti":7,"exp":1}"#]
        {
            let token = Token::parse(&signer.sign_text(r#"{"alg":"EdDSA"}"#, claims)).unwrap();
            assert!(token.claims::<Wanted>().is_err(), "{claims}");
        }
    }
}
