//! One key that signs tokens (RFC 7518, RFC 8037), over ring.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::Digest;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair,
};
use ring::{hmac, rand};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use thiserror::Error;

use crate::keys::IssuerKey;

/// A shorter secret can be guessed from one token (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// A longer one is hashed down to 32 bytes anyway.
const SECRET_BYTES_MAX: usize = 512;

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037): small, fast, and nothing to choose.
    EdDsa,
    /// ECDSA over P-256.
    Es256,
    /// RSA with PKCS #1 v1.5.
    Rs256,
    /// RSA with PSS.
    Ps256,
    /// HMAC: whoever can verify can issue. For closed sites whose validators know nothing else.
    Hs256,
}

impl Algorithm {
    /// Every algorithm, the recommended one first.
    pub const ALL: [Self; 5] = [Self::EdDsa, Self::Es256, Self::Rs256, Self::Ps256, Self::Hs256];

    /// Its name in headers and key sets.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Hs256 => "HS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name() == text);
        found.ok_or_else(|| format!("{text:?} is no algorithm; there are EdDSA, ES256, RS256, PS256, HS256"))
    }
}

/// A key that signs tokens. Never printed.
pub struct TokenKey {
    algorithm: Algorithm,
    kid: String,
    pair: Pair,
    /// PKCS #8, or the secret itself.
    private: Vec<u8>,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Secret(hmac::Key),
}

impl TokenKey {
    /// Makes a new key. RSA keys are made elsewhere: the library that signs cannot make them.
    pub fn generate(algorithm: Algorithm) -> Result<Self, TokenKeyError> {
        let random = SystemRandom::new();
        let private = match algorithm {
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(&random).map(|der| der.as_ref().to_vec()),
            Algorithm::Es256 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map(|der| der.as_ref().to_vec())
            }
            Algorithm::Hs256 => {
                rand::generate::<[u8; SECRET_BYTES_MIN]>(&random).map(|secret| secret.expose().to_vec())
            }
            Algorithm::Rs256 | Algorithm::Ps256 => return Err(TokenKeyError::Rsa { algorithm }),
        };
        Self::new(algorithm, private.map_err(|_| TokenKeyError::Random)?)
    }

    /// Reads a key: PKCS #8, or the secret of an HMAC.
    pub fn new(algorithm: Algorithm, private: Vec<u8>) -> Result<Self, TokenKeyError> {
        let rejected = |error: ring::error::KeyRejected| TokenKeyError::Rejected { algorithm, what: error.to_string() };
        let pair = match algorithm {
            // OpenSSL writes version 1, without the public half.
            Algorithm::EdDsa => Pair::Ed25519(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private).map_err(rejected)?),
            Algorithm::Es256 => {
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private, &random);
                Pair::P256(pair.map_err(rejected)?)
            }
            // 2,048 to 4,096 bits, which ring checks.
            Algorithm::Rs256 | Algorithm::Ps256 => Pair::Rsa(RsaKeyPair::from_pkcs8(&private).map_err(rejected)?),
            Algorithm::Hs256 => {
                if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&private.len()) {
                    return Err(TokenKeyError::SecretLength { bytes: private.len() });
                }
                Pair::Secret(hmac::Key::new(hmac::HMAC_SHA256, &private))
            }
        };
        let kid = thumbprint(&pair, &private);
        Ok(Self { algorithm, kid, pair, private })
    }

    /// Reads what somebody exported: PEM with PKCS #8; for HS256 a key set with one key (RFC 7517), or the secret in
    /// base64url.
    pub fn import(algorithm: Algorithm, text: &str) -> Result<Self, TokenKeyError> {
        if algorithm == Algorithm::Hs256 {
            let secret = read_secret(text.trim()).ok_or(TokenKeyError::Secret)?;
            return Self::new(algorithm, secret);
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| TokenKeyError::Pem { what: error.to_string() })?;
        Self::new(algorithm, der.secret_pkcs8_der().to_vec())
    }

    /// The one key of a server's first days.
    pub fn of_issuer(issuer: &IssuerKey) -> Result<Self, TokenKeyError> {
        // PKCS #8 version 1 around the seed (RFC 8410 section 7).
        const HEAD: [u8; 16] =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        Self::new(Algorithm::EdDsa, [&HEAD[..], issuer.seed()].concat())
    }

    /// How it signs.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its name in headers: the thumbprint of RFC 7638.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The signature of a token's header and payload.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TokenKeyError> {
        let rsa = |pair: &RsaKeyPair, encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), message, &mut signature).map_err(|_| TokenKeyError::Random)?;
            Ok(signature)
        };
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| TokenKeyError::Random)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Rsa(pair) if self.algorithm == Algorithm::Ps256 => rsa(pair, &signature::RSA_PSS_SHA256),
            Pair::Rsa(pair) => rsa(pair, &signature::RSA_PKCS1_SHA256),
            Pair::Secret(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
        }
    }

    /// What validators need; `None` for a secret, which has no public half.
    #[must_use]
    pub fn jwk(&self) -> Option<Value> {
        let mut jwk = public(&self.pair)?;
        jwk["kid"] = self.kid.as_str().into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.name().into();
        Some(jwk)
    }

    /// The secret of an HMAC as a key (RFC 7518 section 6.4), for validators that are trusted with it; `None` for
    /// any other.
    #[must_use]
    pub fn secret_jwk(&self) -> Option<Value> {
        let secret = self.secret()?;
        let k = URL_SAFE_NO_PAD.encode(secret);
        Some(json!({ "kty": "oct", "k": k, "kid": self.kid, "use": "sig", "alg": self.algorithm.name() }))
    }

    /// The secret of an HMAC; `None` for any other.
    #[must_use]
    pub fn secret(&self) -> Option<&[u8]> {
        matches!(self.pair, Pair::Secret(_)).then_some(&self.private)
    }

    /// What is written to its file.
    pub(super) fn private(&self) -> &[u8] {
        &self.private
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({} {})", self.algorithm, self.kid)
    }
}

/// The members that make a public key, in the order in which they are thumbed.
fn public(pair: &Pair) -> Option<Value> {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match pair {
        Pair::Ed25519(pair) => Some(json!({ "crv": "Ed25519", "kty": "OKP", "x": text(pair.public_key().as_ref()) })),
        Pair::P256(pair) => {
            // Uncompressed (SEC 1 section 2.3.3): a marker and two coordinates of 32 bytes.
            let (x, y) = pair.public_key().as_ref().get(1..)?.split_at_checked(32)?;
            Some(json!({ "crv": "P-256", "kty": "EC", "x": text(x), "y": text(y) }))
        }
        Pair::Rsa(pair) => {
            let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public());
            Some(json!({ "e": text(&e), "kty": "RSA", "n": text(&n) }))
        }
        Pair::Secret(_) => None,
    }
}

/// RFC 7638: the SHA-256 of the required members, sorted, without spaces.
fn thumbprint(pair: &Pair, private: &[u8]) -> String {
    let thumbed = match public(pair) {
        // Written down member by member: the order is part of it.
        Some(jwk) => {
            let names: &[&str] = match pair {
                Pair::Ed25519(_) => &["crv", "kty", "x"],
                Pair::P256(_) => &["crv", "kty", "x", "y"],
                Pair::Rsa(_) => &["e", "kty", "n"],
                Pair::Secret(_) => &["k", "kty"],
            };
            let members: Vec<String> = names.iter().map(|name| format!(r#""{name}":{}"#, jwk[*name])).collect();
            format!("{{{}}}", members.join(","))
        }
        None => format!(r#"{{"k":"{}","kty":"oct"}}"#, URL_SAFE_NO_PAD.encode(private)),
    };
    URL_SAFE_NO_PAD.encode(Digest::of(thumbed.as_bytes()).0)
}

fn read_secret(text: &str) -> Option<Vec<u8>> {
    let Ok(document) = serde_json::from_str::<Value>(text) else {
        return URL_SAFE_NO_PAD.decode(text).ok();
    };
    let key = match document.get("keys").and_then(Value::as_array) {
        Some(keys) => match keys.as_slice() {
            [one] => one,
            _ => return None,
        },
        None => &document,
    };
    let k = key.get("k").and_then(Value::as_str).filter(|_| key.get("kty") == Some(&Value::from("oct")))?;
    URL_SAFE_NO_PAD.decode(k).ok()
}

/// Why a key cannot be made, read or used; the operator's to mend, but for `Random`.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// RSA keys are made with OpenSSL and imported.
    #[error("{algorithm} keys are made elsewhere and imported")]
    Rsa {
        /// What was asked for.
        algorithm: Algorithm,
    },
    /// Not PEM, or not PKCS #8: `openssl pkcs8 -topk8 -nocrypt` converts older forms.
    #[error("it is no private key in PEM, PKCS #8 without a password: {what}")]
    Pem {
        /// What is wrong.
        what: String,
    },
    /// A key of another kind, too short, or damaged.
    #[error("it is no key for {algorithm}: {what}")]
    Rejected {
        /// What it should be for.
        algorithm: Algorithm,
        /// Why not.
        what: String,
    },
    /// Neither base64url nor a key set with one secret.
    #[error("a secret is base64url without padding, or a key set with one key of type oct")]
    Secret,
    /// It can be guessed, or is no secret.
    #[error("the secret has {bytes} bytes; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are possible")]
    SecretLength {
        /// Its length.
        bytes: usize,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tokens::{KeySet, Token};

    /// `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`, made for these tests alone.
    pub(crate) const RSA_PEM: &str = include_str!("rsa-2048.pem");

    fn signed(key: &TokenKey) -> String {
        let header = json!({ "alg": key.algorithm().name(), "kid": key.kid(), "typ": "at+jwt" });
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode("{}"));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).unwrap()))
    }

    #[test]
    fn what_each_algorithm_signs_verifies_by_its_public_half() {
        let rsa = |algorithm| TokenKey::import(algorithm, RSA_PEM).unwrap();
        for key in [
            TokenKey::generate(Algorithm::EdDsa).unwrap(),
            TokenKey::generate(Algorithm::Es256).unwrap(),
            rsa(Algorithm::Rs256),
            rsa(Algorithm::Ps256),
        ] {
            let keys = KeySet::parse(&json!({ "keys": [key.jwk().unwrap()] })).unwrap();
            let token = Token::parse(&signed(&key)).unwrap();
            assert!(token.is_signed_by(&keys), "{key:?}");
            let again = TokenKey::new(key.algorithm(), key.private().to_vec()).unwrap();
            assert_eq!((again.kid(), again.jwk()), (key.kid(), key.jwk()));
            assert!(key.secret_jwk().is_none());
        }
    }

    #[test]
    fn a_secret_stands_in_no_key_set_but_its_own() {
        let key = TokenKey::generate(Algorithm::Hs256).unwrap();
        assert_eq!(key.jwk(), None);
        let secret = key.secret_jwk().unwrap();
        let imported = TokenKey::import(Algorithm::Hs256, &json!({ "keys": [secret] }).to_string()).unwrap();
        assert_eq!(imported.kid(), key.kid());
        let text = URL_SAFE_NO_PAD.encode(key.secret().unwrap());
        assert_eq!(TokenKey::import(Algorithm::Hs256, &format!("{text}\n")).unwrap().kid(), key.kid());
        assert!(!format!("{key:?}").contains(&text));
        for short in ["", "AAAA", &URL_SAFE_NO_PAD.encode([7; 31])] {
            let error = TokenKey::import(Algorithm::Hs256, short).unwrap_err();
            assert!(matches!(error, TokenKeyError::SecretLength { .. }), "{error}");
        }
        assert!(matches!(TokenKey::import(Algorithm::Hs256, "{}").unwrap_err(), TokenKeyError::Secret));
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037, appendix A.3.
        let seed: [u8; 32] =
            URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap().try_into().unwrap();
        let pem = [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &seed].concat();
        let key = TokenKey::new(Algorithm::EdDsa, pem).unwrap();
        assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn keys_that_cannot_be_are_refused_with_what_helps() {
        let rsa = TokenKey::generate(Algorithm::Rs256).unwrap_err();
        assert_eq!(rsa.to_string(), "RS256 keys are made elsewhere and imported");
        let told = |algorithm, text| TokenKey::import(algorithm, text).unwrap_err().to_string();
        assert!(told(Algorithm::EdDsa, "garbage").starts_with("it is no private key in PEM"));
        assert!(told(Algorithm::EdDsa, RSA_PEM).starts_with("it is no key for EdDSA"));
        assert!(told(Algorithm::Es256, RSA_PEM).starts_with("it is no key for ES256"));
        let short = include_str!("rsa-1024.pem");
        assert!(
            told(Algorithm::Ps256, short).starts_with("it is no key for PS256: TooSmall"),
            "{}",
            told(Algorithm::Ps256, short)
        );
    }
}
