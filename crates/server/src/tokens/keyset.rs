//! Sets of public keys (RFC 7517), and what they verify (RFC 7518, RFC 8037).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::issuer::TokenKey;

/// Keys in one set. An issuer has two or three.
const KEYS_MAX: usize = 32;

/// Bytes of an RSA modulus: ring verifies up to 8,192 bits.
const RSA_BYTES_MAX: usize = 1024;

/// The public keys of an issuer.
#[derive(Clone, Debug)]
pub struct KeySet {
    document: Value,
    keys: Vec<Key>,
}

#[derive(Clone, Debug)]
struct Key {
    kid: Option<String>,
    alg: Option<String>,
    public: Public,
}

#[derive(Clone, Debug)]
enum Public {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Of our own issuer alone, and never in the document.
    Secret(hmac::Key),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<Value>,
    k: Option<Value>,
}

impl KeySet {
    /// No keys: they follow with [`KeySet::with_own`].
    #[must_use]
    pub fn empty() -> Self {
        Self { document: json!({ "keys": [] }), keys: Vec::new() }
    }

    /// Reads a JWK set. Keys for encryption are passed over; a secret one is refused.
    pub fn parse(document: &Value) -> Result<Self, KeySetError> {
        let entries = document.get("keys").and_then(Value::as_array).ok_or(KeySetError::NoKeys)?;
        if entries.is_empty() {
            return Err(KeySetError::NoKeys);
        }
        if entries.len() > KEYS_MAX {
            return Err(KeySetError::TooMany { keys: entries.len() });
        }
        let mut keys = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let jwk = Jwk::deserialize(entry).map_err(|error| KeySetError::Key { index, what: error.to_string() })?;
            if jwk.d.is_some() || jwk.k.is_some() || jwk.kty == "oct" {
                return Err(KeySetError::Secret { index });
            }
            if jwk.r#use.as_deref().is_none_or(|purpose| purpose == "sig") {
                keys.push(jwk.check().map_err(|what| KeySetError::Key { index, what: what.into() })?);
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoKeys);
        }
        Ok(Self { document: document.clone(), keys })
    }

    /// The set with keys of our own issuer besides. Secrets verify and do not stand in the document.
    pub fn with_own<'a>(mut self, own: impl Iterator<Item = &'a TokenKey>) -> Result<Self, KeySetError> {
        let mut entries = self.document.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
        for (index, key) in own.enumerate() {
            let key = match (key.jwk(), key.secret()) {
                (Some(jwk), _) => {
                    let unusable = |what: String| KeySetError::Key { index, what };
                    let key = Jwk::deserialize(&jwk).map_err(|error| unusable(error.to_string()))?;
                    entries.push(jwk);
                    key.check().map_err(|what| unusable(what.to_owned()))?
                }
                (None, Some(secret)) => Key {
                    kid: Some(key.kid().to_owned()),
                    alg: Some(key.algorithm().name().to_owned()),
                    public: Public::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret)),
                },
                (None, None) => continue,
            };
            self.keys.push(key);
        }
        self.document = json!({ "keys": entries });
        Ok(self)
    }

    /// The set as it was given.
    #[must_use]
    pub const fn document(&self) -> &Value {
        &self.document
    }

    /// Whether validators find no key in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.document.get("keys").and_then(Value::as_array).is_none_or(Vec::is_empty)
    }

    /// Whether a key of the set made this signature by this algorithm. A token that names its key means that one.
    pub(super) fn verifies(&self, alg: &str, kid: Option<&str>, message: &[u8], signature: &[u8]) -> bool {
        let named = |key: &&Key| match (&key.kid, kid) {
            (Some(own), Some(wanted)) => own == wanted,
            (None, _) | (_, None) => true,
        };
        self.keys.iter().filter(named).any(|key| key.verifies(alg, message, signature).is_some())
    }
}

impl Key {
    /// The algorithm must be one of this kind of key, and the one that the key names.
    fn verifies(&self, alg: &str, message: &[u8], signature: &[u8]) -> Option<()> {
        if self.alg.as_deref().is_some_and(|own| own != alg) {
            return None;
        }
        let plain = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).ok()
        };
        let rsa = |parameters: &'static RsaParameters, n: &[u8], e: &[u8]| {
            RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).ok()
        };
        match (&self.public, alg) {
            (Public::Ed25519(key), "EdDSA" | "Ed25519") => plain(&signature::ED25519, key),
            (Public::P256(key), "ES256") => plain(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Public::P384(key), "ES384") => plain(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Public::Rsa { n, e }, "RS256") => rsa(&signature::RSA_PKCS1_2048_8192_SHA256, n, e),
            (Public::Rsa { n, e }, "RS384") => rsa(&signature::RSA_PKCS1_2048_8192_SHA384, n, e),
            (Public::Rsa { n, e }, "RS512") => rsa(&signature::RSA_PKCS1_2048_8192_SHA512, n, e),
            (Public::Rsa { n, e }, "PS256") => rsa(&signature::RSA_PSS_2048_8192_SHA256, n, e),
            (Public::Rsa { n, e }, "PS384") => rsa(&signature::RSA_PSS_2048_8192_SHA384, n, e),
            (Public::Rsa { n, e }, "PS512") => rsa(&signature::RSA_PSS_2048_8192_SHA512, n, e),
            (Public::Secret(key), "HS256") => hmac::verify(key, message, signature).ok(),
            // The algorithm of another kind of key, or none that signs with a private one.
            _ => None,
        }
    }
}

impl Jwk {
    fn check(self) -> Result<Key, &'static str> {
        let decode = |part: Option<String>, bytes: usize, what| {
            let part = part.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
            part.filter(|part| part.len() == bytes).ok_or(what)
        };
        let point = |bytes| {
            let x = decode(self.x.clone(), bytes, "x is not a coordinate of its curve")?;
            let y = decode(self.y.clone(), bytes, "y is not a coordinate of its curve")?;
            // Uncompressed (SEC 1 section 2.3.3).
            Ok::<_, &'static str>([&[4], &x[..], &y[..]].concat())
        };
        let public = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Public::Ed25519(decode(self.x.clone(), 32, "x is not 32 bytes in base64url")?),
            ("EC", Some("P-256")) => Public::P256(point(32)?),
            ("EC", Some("P-384")) => Public::P384(point(48)?),
            ("RSA", _) => {
                let number = |part: Option<String>| {
                    let bytes = URL_SAFE_NO_PAD.decode(part?).ok()?;
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    bytes.get(zeros..).map(<[u8]>::to_vec)
                };
                let (n, e) = (number(self.n), number(self.e));
                let n = n.filter(|n| (256..=RSA_BYTES_MAX).contains(&n.len()));
                let e = e.filter(|e| (1..=5).contains(&e.len()));
                Public::Rsa { n: n.ok_or("n is not 2,048 to 8,192 bits")?, e: e.ok_or("e is no exponent")? }
            }
            _ => return Err("its kind is not OKP with Ed25519, EC with P-256 or P-384, or RSA"),
        };
        Ok(Key { kid: self.kid, alg: self.alg, public })
    }
}

/// Why keys cannot be used; whoever sets them mends it.
#[derive(Debug, Error)]
pub enum KeySetError {
    /// Nothing in it verifies a signature.
    #[error("it is no JWK set with a key for signatures")]
    NoKeys,
    /// More than an issuer has.
    #[error("it has {keys} keys, more than {KEYS_MAX}")]
    TooMany {
        /// How many.
        keys: usize,
    },
    /// A private or symmetric key. It has been shown to this server: replace it.
    #[error("key {index} is secret, and has no place in a public set; replace it")]
    Secret {
        /// Which, counted from 0.
        index: usize,
    },
    /// A key that cannot be used.
    #[error("key {index} cannot be used: {what}")]
    Key {
        /// Which, counted from 0.
        index: usize,
        /// Why.
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendices A.2 and A.3: RS256 and ES256.
    #[test]
    fn the_examples_of_rfc_7515_verify() {
        let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        let rsa = json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]});
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let token = super::super::Token::parse(&format!("eyJhbGciOiJSUzI1NiJ9.{payload}.{signature}")).unwrap();
        assert!(token.is_signed_by(&KeySet::parse(&rsa).unwrap()));

        let ec = json!({"keys": [{"kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]});
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let token = super::super::Token::parse(&format!("eyJhbGciOiJFUzI1NiJ9.{payload}.{signature}")).unwrap();
        assert!(token.is_signed_by(&KeySet::parse(&ec).unwrap()));
        assert!(!token.is_signed_by(&KeySet::parse(&rsa).unwrap()));
    }

    #[test]
    fn sets_that_cannot_be_are_refused() {
        let x = "A".repeat(43);
        let many: Vec<_> = (0..=KEYS_MAX).map(|_| json!({"kty": "OKP", "crv": "Ed25519", "x": x})).collect();
        let cases = [
            (json!({}), "it is no JWK set"),
            (json!({"keys": []}), "it is no JWK set"),
            (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "use": "enc"}]}), "it is no JWK set"),
            (json!({"keys": [{"kty": "oct", "k": "AA"}]}), "key 0 is secret"),
            (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "d": x}]}), "key 0 is secret"),
            (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}]}), "key 0 cannot be used: x is not 32"),
            (json!({"keys": [{"kty": "OKP", "crv": "X25519", "x": x}]}), "key 0 cannot be used: its kind"),
            (json!({"keys": [{"kty": "EC", "crv": "P-256", "x": x}]}), "key 0 cannot be used: y is not"),
            (json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}), "key 0 cannot be used: n is not"),
            (json!({"keys": [7]}), "key 0 cannot be used: invalid type"),
            (json!({"keys": many}), "it has 33 keys"),
        ];
        for (set, what) in cases {
            let error = KeySet::parse(&set).unwrap_err().to_string();
            assert!(error.starts_with(what), "{set}: {error}");
        }
    }
}
