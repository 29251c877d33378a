//! What a question is asked about, and how a `jti` becomes a fingerprint.
//!
//! Checking a JWT's signature and claims is not done here; see the device crate's validator.

use core::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;
use xxhash_rust::xxh3;

use crate::clock::UnixTime;
use crate::limits::{ISSUER_BYTES_MAX, JTI_BYTES_MAX, REALM_BYTES_MAX};

/// The `jti` claim of a token (RFC 7519 section 4.1.7), decoded: 1 to 256 bytes of UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jti<'a>(&'a str);

impl<'a> Jti<'a> {
    /// Accepts 1 to [`JTI_BYTES_MAX`] bytes.
    pub const fn new(text: &'a str) -> Result<Self, JtiError> {
        match text.len() {
            0 => Err(JtiError::Empty),
            bytes if bytes > JTI_BYTES_MAX => Err(JtiError::TooLong { bytes }),
            _ => Ok(Self(text)),
        }
    }

    /// The text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Jti<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a text is no `jti`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JtiError {
    /// An empty `jti` names no token.
    #[error("the jti is empty")]
    Empty,
    /// Longer than any sane identifier; refused before it is hashed.
    #[error("the jti has {bytes} bytes, more than {JTI_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// The name of a realm: `[a-z0-9-]{1,64}`. Held inline, so it is `Copy` and costs no allocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmId {
    // Field order is comparison order: the text, zero padded, then its length.
    text: [u8; REALM_BYTES_MAX],
    len: u8,
}

impl RealmId {
    /// Accepts lower-case letters, digits and hyphens, 1 to 64 of them.
    pub fn new(text: &str) -> Result<Self, RealmIdError> {
        Self::from_bytes(text.as_bytes())
    }

    /// The same, from bytes that crossed a wire.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RealmIdError> {
        if bytes.is_empty() {
            return Err(RealmIdError::Empty);
        }
        let mut text = [0; REALM_BYTES_MAX];
        let Some(head) = text.get_mut(..bytes.len()) else {
            return Err(RealmIdError::TooLong { bytes: bytes.len() });
        };
        if let Some(&byte) = bytes.iter().find(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(RealmIdError::Character { byte });
        }
        head.copy_from_slice(bytes);
        Ok(Self { text, len: bytes.len() as u8 })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The constructor admitted ASCII only, so the default is never taken.
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Length of the text in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a realm id is never empty")]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// The text as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Display for RealmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RealmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmId({})", self.as_str())
    }
}

/// Why a text is no realm id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RealmIdError {
    /// Nothing there.
    #[error("the realm id is empty")]
    Empty,
    /// It would not fit the envelope.
    #[error("the realm id has {bytes} bytes, more than {REALM_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something that could mean another topic level, or look like another realm.
    #[error("the realm id holds byte 0x{byte:02x}; only a-z, 0-9 and - are allowed")]
    Character {
        /// The first one that is not allowed.
        byte: u8,
    },
}

/// An `iss` claim: 1 to 1024 bytes. Only its length is checked; RFC 7519 makes it a plain string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issuer<'a>(&'a str);

impl<'a> Issuer<'a> {
    /// Accepts 1 to [`ISSUER_BYTES_MAX`] bytes.
    pub const fn new(text: &'a str) -> Result<Self, IssuerError> {
        match text.len() {
            0 => Err(IssuerError::Empty),
            bytes if bytes > ISSUER_BYTES_MAX => Err(IssuerError::TooLong { bytes }),
            _ => Ok(Self(text)),
        }
    }

    /// The text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// Why a text is no issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IssuerError {
    /// Nothing there.
    #[error("the issuer is empty")]
    Empty,
    /// It would not fit the `keys` object.
    #[error("the issuer has {bytes} bytes, more than {ISSUER_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// The claims a revocation question depends on, taken from a token whose signature holds.
///
/// `exp` is required: a token without it could never be forgotten (design rule 23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims<'a> {
    /// Which token.
    pub jti: Jti<'a>,
    /// When it was issued, rounded down to seconds; absent counts as "before every cutoff".
    pub iat: Option<UnixTime>,
    /// When it expires.
    pub exp: UnixTime,
    /// Whom it speaks of.
    pub sub: Option<&'a str>,
    /// Which key signed it.
    pub kid: Option<&'a str>,
    /// Which client it was issued to (`client_id`, or `azp`).
    pub client: Option<&'a str>,
}

impl<'a> Claims<'a> {
    /// The least a question needs: an identity and an end.
    #[must_use]
    pub const fn new(jti: Jti<'a>, exp: UnixTime) -> Self {
        Self { jti, iat: None, exp, sub: None, kid: None, client: None }
    }
}

/// How many bits a fingerprint has: 40, 48 or 64 in a realm, fewer where it was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Width(u8);

impl Width {
    /// One wrong match in 2^20 at a million entries: too coarse to be called exact.
    pub const W40: Self = Self(40);
    /// The default of a realm: one wrong match in 2^28 at a million entries.
    pub const W48: Self = Self(48);
    /// All of them.
    pub const W64: Self = Self(64);

    /// Reads the width of a realm: 40, 48 or 64.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            40 | 48 | 64 => Some(Self(bits)),
            _ => None,
        }
    }

    /// Any width from 1 to 64: for lists whose entries were cut.
    #[must_use]
    pub const fn cut(bits: u8) -> Option<Self> {
        match bits {
            1..=64 => Some(Self(bits)),
            _ => None,
        }
    }

    /// The number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// Whether a match in a list of this width may be called "revoked" (design rule 15).
    #[must_use]
    pub const fn is_exact(self) -> bool {
        self.0 >= Self::W48.0
    }
}

/// The top [`Width`] bits of a keyed hash of a `jti`, moved down: a number below 2^W.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Takes the top `width` bits of `hash`.
    #[must_use]
    pub const fn from_hash(hash: u64, width: Width) -> Self {
        Self(hash >> (64 - width.bits()))
    }

    /// Takes a number that should be a fingerprint already; `None` if it has too many bits.
    #[must_use]
    pub const fn from_bits(bits: u64, width: Width) -> Option<Self> {
        if width.bits() < 64 && bits >> width.bits() != 0 { None } else { Some(Self(bits)) }
    }

    /// The number, below 2^W.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The top bits alone: a fingerprint of `from` bits becomes one of `to`, if that is fewer.
    #[must_use]
    pub const fn cut(self, from: Width, to: Width) -> Self {
        Self(self.0 >> from.bits().saturating_sub(to.bits()))
    }
}

/// Which keyed hash makes fingerprints; fixed for the life of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FingerprintFunction {
    /// xxh3-64 with a secret seed: a few nanoseconds; only where the issuer mints the `jti`s itself,
    /// since whoever may choose them can make them collide.
    Xxh3 = 1,
    /// SHA-256 over key and `jti`, truncated: for realms whose `jti`s somebody else may choose.
    Sha256 = 2,
}

impl FingerprintFunction {
    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Xxh3),
            2 => Some(Self::Sha256),
            _ => None,
        }
    }
}

/// The secret of a realm that keys its fingerprints: 16 bytes from a good random source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RealmKey(pub [u8; 16]);

impl fmt::Debug for RealmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RealmKey(..)")
    }
}

/// Turns `jti`s and scopes of one realm into fingerprints.
///
/// # Source
///
/// XXH3 by Yann Collet (seeded variant); FIPS 180-4 for SHA-256. `docs/wire.md` gives both byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprinter {
    function: FingerprintFunction,
    key: RealmKey,
    width: Width,
    // Derived from the key once: the xxh3 seed, and what is folded into its result so that all
    // 128 bits of the key matter.
    seed: u64,
    whitening: u64,
}

impl Fingerprinter {
    /// Binds function, key and width of a realm.
    #[must_use]
    pub const fn new(function: FingerprintFunction, key: RealmKey, width: Width) -> Self {
        let [seed, whitening] = halves(key.0);
        Self { function, key, width, seed, whitening }
    }

    /// The fingerprint of a token.
    ///
    /// # Complexity
    ///
    /// One pass over at most 256 bytes; allocates nothing.
    #[expect(clippy::inline_always, reason = "hashing is half of a question; a call adds a tenth, measured")]
    #[inline(always)]
    #[must_use]
    pub fn fingerprint(&self, jti: Jti<'_>) -> Fingerprint {
        let hash = match self.function {
            FingerprintFunction::Xxh3 => xxh3::xxh3_64_with_seed(jti.as_str().as_bytes(), self.seed) ^ self.whitening,
            FingerprintFunction::Sha256 => self.sha256(b'j', jti.as_str().as_bytes()),
        };
        Fingerprint::from_hash(hash, self.width)
    }

    /// The full 64-bit name of something a cutoff speaks of; `kind` keeps the kinds apart.
    ///
    /// Always SHA-256: a `sub` may be chosen by anybody, and cutoffs are few.
    #[must_use]
    pub fn scope(&self, kind: u8, text: &str) -> u64 {
        self.sha256(kind, text.as_bytes())
    }

    fn sha256(&self, kind: u8, bytes: &[u8]) -> u64 {
        let digest = Sha256::new().chain_update(self.key.0).chain_update([kind]).chain_update(bytes).finalize();
        // A digest has 32 bytes, so the default is never taken.
        u64::from_le_bytes(digest.0.first_chunk().copied().unwrap_or_default())
    }

    /// The function in use.
    #[must_use]
    pub const fn function(&self) -> FingerprintFunction {
        self.function
    }

    /// The key in use.
    #[must_use]
    pub const fn key(&self) -> RealmKey {
        self.key
    }

    /// The width in use.
    #[must_use]
    pub const fn width(&self) -> Width {
        self.width
    }
}

/// Both halves of a key as numbers, first half first.
const fn halves(key: [u8; 16]) -> [u64; 2] {
    match key.as_chunks::<8>() {
        ([first, second], _) => [u64::from_le_bytes(*first), u64::from_le_bytes(*second)],
        // Sixteen bytes are always two halves.
        _ => [0, 0],
    }
}
