//! Signatures: jsonwebtoken's interface for verifiers, over ring and the core's Ed25519.
//!
//! A verifier is made once for each key and holds it ready for use. Nothing is installed for the
//! process: nothing here depends on what other libraries of the program install.

use ed25519_dalek::VerifyingKey;
use jsonwebtoken::crypto::JwtVerifier;
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

/// A key and the one algorithm it is used with. It cannot sign.
pub(super) struct Strict {
    algorithm: Algorithm,
    key: Prepared,
}

/// A key as its algorithm wants it.
enum Prepared {
    Hmac(hmac::Key),
    Rsa { parameters: &'static RsaParameters, n: Vec<u8>, e: Vec<u8> },
    Ec(UnparsedPublicKey<Vec<u8>>),
    Ed25519(VerifyingKey),
}

impl Strict {
    /// Joins the two; `None` if they do not go together, or the key is none that a signature can mean
    /// something under.
    pub(super) fn new(algorithm: Algorithm, key: &DecodingKey) -> Option<Self> {
        if algorithm.family() != key.family() {
            return None;
        }
        let hmac = |with| Some(Prepared::Hmac(hmac::Key::new(with, key.try_get_as_bytes().ok()?)));
        let rsa = |parameters| match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                Some(Prepared::Rsa { parameters, n: n.clone(), e: e.clone() })
            }
            DecodingKeyKind::SecretOrDer(_) => None,
        };
        let ec = |with: &'static dyn VerificationAlgorithm| {
            Some(Prepared::Ec(UnparsedPublicKey::new(with, key.try_get_as_bytes().ok()?.to_vec())))
        };
        let prepared = match algorithm {
            Algorithm::HS256 => hmac(hmac::HMAC_SHA256),
            Algorithm::HS384 => hmac(hmac::HMAC_SHA384),
            Algorithm::HS512 => hmac(hmac::HMAC_SHA512),
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => ec(&signature::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => ec(&signature::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => ed25519(key.try_get_as_bytes().ok()?).map(Prepared::Ed25519),
            // The library may learn more; we verify what we know.
            _ => None,
        };
        Some(Self { algorithm, key: prepared? })
    }
}

impl JwtVerifier for Strict {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Strict {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let good = match &self.key {
            Prepared::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Prepared::Rsa { parameters, n, e } => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            Prepared::Ec(key) => key.verify(message, signature).is_ok(),
            // Strict, unlike ring's: no small order, one encoding.
            Prepared::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        };
        if good { Ok(()) } else { Err(SignatureError::new()) }
    }
}

/// A public key that is a point of large order.
fn ed25519(bytes: &[u8]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(bytes.try_into().ok()?).ok().filter(|key| !key.is_weak())
}
