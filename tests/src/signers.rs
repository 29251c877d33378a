//! Keys that sign tokens as an issuer does, always the same ones, of every algorithm.
//!
//! Made for tests and benches, published with them, of no use elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair,
};

/// The `iss` of these tokens.
pub const ISSUER: &str = "https://issuer.example";

/// Whom they are for.
pub const AUDIENCE: &str = "https://api.example";

/// The time at which they are judged.
pub const NOW: u64 = 1_800_000_000;

/// The secret of HS256, and the seed of Ed25519.
pub const SECRET: [u8; 32] = [7; 32];

/// 2048 bits, PKCS #8.
const RSA_KEY: &str = include_str!("../../crates/device/src/validator/test_rsa_key.b64");

/// The key of RFC 7515 appendix A.3: `d`, `x`, `y`.
const EC_KEY: [&str; 3] = [
    "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
    "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
];

/// A key that signs, with the algorithm it signs by. Its `kid` is the name of the algorithm.
pub struct Signer {
    /// The name of the algorithm.
    pub algorithm: &'static str,
    /// What it is verified with, as a JWK.
    pub jwk: String,
    key: Key,
}

enum Key {
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ec(Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

/// base64url without padding.
#[must_use]
pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of base64url.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn unb64(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

impl Signer {
    /// HS256, RS256, PS256, ES256 and `EdDSA`. RS256 and PS256 share a key pair.
    #[must_use]
    pub fn all() -> [Self; 5] {
        [
            Self::hs256(),
            Self::rsa("RS256", &signature::RSA_PKCS1_SHA256),
            Self::rsa("PS256", &signature::RSA_PSS_SHA256),
            Self::es256(),
            Self::eddsa(),
        ]
    }

    fn hs256() -> Self {
        Self {
            algorithm: "HS256",
            jwk: format!(r#"{{"kty":"oct","kid":"HS256","alg":"HS256","k":"{}"}}"#, b64(SECRET)),
            key: Key::Hmac(hmac::Key::new(hmac::HMAC_SHA256, &SECRET)),
        }
    }

    fn rsa(algorithm: &'static str, padding: &'static dyn RsaEncoding) -> Self {
        let der = STANDARD.decode(RSA_KEY.replace('\n', "")).expect("base64");
        let pair = RsaKeyPair::from_pkcs8(&der).expect("an RSA key");
        let public = signature::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let (n, e) = (b64(public.n), b64(public.e));
        Self {
            algorithm,
            jwk: format!(r#"{{"kty":"RSA","kid":"{algorithm}","alg":"{algorithm}","n":"{n}","e":"{e}"}}"#),
            key: Key::Rsa(Box::new(pair), padding),
        }
    }

    fn es256() -> Self {
        let [d, x, y] = EC_KEY;
        let public = [&[4], unb64(x).as_slice(), &unb64(y)].concat();
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &unb64(d),
            &public,
            &SystemRandom::new(),
        );
        Self {
            algorithm: "ES256",
            jwk: format!(r#"{{"kty":"EC","crv":"P-256","kid":"ES256","alg":"ES256","x":"{x}","y":"{y}"}}"#),
            key: Key::Ec(Box::new(pair.expect("a key of P-256"))),
        }
    }

    fn eddsa() -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&SECRET).expect("a seed");
        let x = b64(pair.public_key());
        Self {
            algorithm: "EdDSA",
            jwk: format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"EdDSA","alg":"EdDSA","x":"{x}"}}"#),
            key: Key::Ed(Box::new(pair)),
        }
    }

    /// Signs some bytes.
    ///
    /// # Panics
    ///
    /// If the operating system gives no random bytes.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.key {
            Key::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
            Key::Rsa(pair, padding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*padding, &SystemRandom::new(), message, &mut signature).expect("a signature");
                signature
            }
            Key::Ec(pair) => pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec(),
            Key::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and payload.
    #[must_use]
    pub fn raw(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        format!("{message}.{}", b64(self.sign(message.as_bytes())))
    }

    /// The header of its tokens.
    #[must_use]
    pub fn header(&self) -> String {
        format!(r#"{{"alg":"{0}","typ":"at+jwt","kid":"{0}"}}"#, self.algorithm)
    }

    /// A token with these claims.
    #[must_use]
    pub fn token(&self, claims: impl AsRef<[u8]>) -> String {
        self.raw(self.header(), claims)
    }
}

/// The claims of a token as an issuer would fill them, with another `jti`.
#[must_use]
pub fn claims(jti: &str) -> String {
    format!(
        r#"{{"iss":"{ISSUER}","sub":"device-7","aud":"{AUDIENCE}","iat":{},"nbf":{},"exp":{},"jti":"{jti}"}}"#,
        NOW - 60,
        NOW - 60,
        NOW + 840
    )
}

/// All public halves as a key set.
#[must_use]
pub fn jwks(signers: &[Signer]) -> String {
    let keys: Vec<&str> = signers.iter().map(|signer| signer.jwk.as_str()).collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}
