//! Signatures: jsonwebtoken's provider interface, over ring and the core's Ed25519.
//!
//! The provider is used directly and never installed for the process: nothing here depends on what
//! other libraries of the program install, or on whether they do.

use ed25519_dalek::VerifyingKey;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

/// What the validator verifies with. It cannot sign.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: refuse_to_sign,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Whether `signature` is one over `message`, made with `key` by `algorithm`.
pub(super) fn is_signed(algorithm: Algorithm, key: &DecodingKey, message: &[u8], signature: &Vec<u8>) -> bool {
    (PROVIDER.verifier_factory)(&algorithm, key).is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the library's signature")]
fn refuse_to_sign(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Err(ErrorKind::InvalidAlgorithm.into())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the library's signature")]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Strict { algorithm: *algorithm, key: key.clone() }))
}

/// A key and the one algorithm it is used with.
struct Strict {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Strict {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Strict {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let rsa = |parameters| rsa(&self.key, parameters, message, signature);
        let ec = |algorithm| ec(&self.key, algorithm, message, signature);
        let hmac = |algorithm| hmac(&self.key, algorithm, message, signature);
        let good = match self.algorithm {
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
            Algorithm::EdDSA => ed25519(&self.key, message, signature),
            // The library may learn more; we verify what we know.
            _ => None,
        };
        good.ok_or_else(SignatureError::new)
    }
}

fn hmac(key: &DecodingKey, algorithm: hmac::Algorithm, message: &[u8], signature: &[u8]) -> Option<()> {
    hmac::verify(&hmac::Key::new(algorithm, key.try_get_as_bytes().ok()?), message, signature).ok()
}

fn rsa(key: &DecodingKey, parameters: &'static RsaParameters, message: &[u8], signature: &[u8]) -> Option<()> {
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
        return None;
    };
    RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).ok()
}

fn ec(
    key: &DecodingKey,
    algorithm: &'static dyn VerificationAlgorithm,
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    UnparsedPublicKey::new(algorithm, key.try_get_as_bytes().ok()?).verify(message, signature).ok()
}

/// Strict, unlike ring's: no small order, one encoding.
fn ed25519(key: &DecodingKey, message: &[u8], signature: &[u8]) -> Option<()> {
    let key = VerifyingKey::from_bytes(key.try_get_as_bytes().ok()?.try_into().ok()?).ok()?;
    let signature = ed25519_dalek::Signature::from_bytes(signature.try_into().ok()?);
    key.verify_strict(message, &signature).ok()
}

/// Whether these bytes are a public key that a signature can mean something under.
pub(super) fn is_ed25519_key(bytes: &[u8; 32]) -> bool {
    VerifyingKey::from_bytes(bytes).is_ok_and(|key| !key.is_weak())
}
