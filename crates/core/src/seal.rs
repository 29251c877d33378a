//! The envelope: who says so, checked over the very bytes that arrived.
//!
//! ```text
//! offset      size  field
//! 0           3     magic "RVC"
//! 3           1     format, 1
//! 4           1     kind: 1 keys, 2 manifest, 3 index, 4 chunk, 5 delta, 6 report, 7 ask, 8 answer,
//!                   9 renew, 10 delivery, 11 issuer-keys
//! 5           1     R, length of the realm id, 1 to 64
//! 6           R     realm id, [a-z0-9-]
//! 6+R         B     body; its layout is drawn on each type in `wire`
//! 6+R+B       72 n  signatures: key id (8), Ed25519 signature (64)
//! end - 1     1     n, 0 to 16
//! ```
//!
//! A signature covers `"revocast/1/" kind-name "\0"` and all bytes before the signatures. A key id is
//! the first 8 bytes of the SHA-256 of the public key. The digest of an object is the SHA-256 of all
//! its bytes. What a body means is not decided here.

use alloc::vec::Vec;
use core::fmt;

use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};

use crate::limits::{REALM_BYTES_MAX, SEALED_BYTES_MAX, SIGNATURES_MAX};
use crate::refusal::Refusal;
use crate::token::RealmId;

/// First bytes of every sealed object.
const MAGIC: [u8; 3] = *b"RVC";

/// The format spoken here.
pub const FORMAT: u8 = 1;

/// Bytes of one (key id, signature) pair.
const SIGNATURE_BYTES: usize = 8 + 64;

/// Bytes before the realm id.
const FIXED_BYTES: usize = 6;

/// What a sealed object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Publisher keys and realm parameters, signed by root keys.
    Keys = 1,
    /// What is current, signed as heartbeat.
    Manifest = 2,
    /// What an epoch is made of.
    Index = 3,
    /// A slice of an artifact; unsigned, named by its digest.
    Chunk = 4,
    /// Net change over a range of sequences.
    Delta = 5,
    /// Device to server: where a replica stands.
    Report = 6,
    /// Device to server: a question about one token.
    Ask = 7,
    /// Server to one device: the answer to its question.
    Answer = 8,
    /// Device to server: a request for a new token, signed by the device's own key.
    Renew = 9,
    /// Server to one device: a token, or why there is none.
    Delivery = 10,
    /// The public keys that tokens of the realm are signed with.
    IssuerKeys = 11,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Keys,
        Self::Manifest,
        Self::Index,
        Self::Chunk,
        Self::Delta,
        Self::Report,
        Self::Ask,
        Self::Answer,
        Self::Renew,
        Self::Delivery,
        Self::IssuerKeys,
    ];

    /// The name in the signed prefix, in logs and in `inspect`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Manifest => "manifest",
            Self::Index => "index",
            Self::Chunk => "chunk",
            Self::Delta => "delta",
            Self::Report => "report",
            Self::Ask => "ask",
            Self::Answer => "answer",
            Self::Renew => "renew",
            Self::Delivery => "delivery",
            Self::IssuerKeys => "issuer-keys",
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Keys),
            2 => Some(Self::Manifest),
            3 => Some(Self::Index),
            4 => Some(Self::Chunk),
            5 => Some(Self::Delta),
            6 => Some(Self::Report),
            7 => Some(Self::Ask),
            8 => Some(Self::Answer),
            9 => Some(Self::Renew),
            10 => Some(Self::Delivery),
            11 => Some(Self::IssuerKeys),
            _ => None,
        }
    }

    /// What is signed before the object's own bytes, so that no signature fits two kinds.
    const fn domain(self) -> &'static [u8] {
        match self {
            Self::Keys => b"revocast/1/keys\0",
            Self::Manifest => b"revocast/1/manifest\0",
            Self::Index => b"revocast/1/index\0",
            Self::Chunk => b"revocast/1/chunk\0",
            Self::Delta => b"revocast/1/delta\0",
            Self::Report => b"revocast/1/report\0",
            Self::Ask => b"revocast/1/ask\0",
            Self::Answer => b"revocast/1/answer\0",
            Self::Renew => b"revocast/1/renew\0",
            Self::Delivery => b"revocast/1/delivery\0",
            Self::IssuerKeys => b"revocast/1/issuer-keys\0",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// SHA-256 of some bytes, unkeyed: it names them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Computes it.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).0)
    }
}

/// Computes a digest of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Digester(Sha256);

impl Digester {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces, one after the other.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// An Ed25519 public key as it stands on the wire. Whether it is a point is found out on use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The first 8 bytes of its SHA-256.
    #[must_use]
    pub fn id(&self) -> KeyId {
        // A digest has 32 bytes, so the default is never taken.
        KeyId(Digest::of(&self.0).0.first_chunk().copied().unwrap_or_default())
    }

    /// Whether this key's owner signed `message` (strict Ed25519, as for sealed objects).
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// Names a public key. Computed, never declared, so one key cannot pose as two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A private key that seals. Never printed.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Takes the 32-byte seed of RFC 8032.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs bytes that are no sealed object. They must begin in a way that nothing else which this key signs does:
    /// every sealed object is signed behind `revocast/1/`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

/// A value whose signature (or digest) was checked against what is trusted.
///
/// Only this module can make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Decodes what was verified; the result is as trustworthy as the bytes were.
    pub fn try_map<U, E>(self, decode: impl FnOnce(T) -> Result<U, E>) -> Result<Verified<U>, E> {
        decode(self.0).map(Verified)
    }

    /// The value, without the mark.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// The value, without the mark.
    pub const fn get(&self) -> &T {
        &self.0
    }
}

/// Seals a body: header, body, one signature per key.
///
/// At most [`SIGNATURES_MAX`] keys sign; more are ignored, and none is needed for a chunk.
#[must_use]
pub fn seal(kind: Kind, realm: &RealmId, body: &[u8], keys: &[&SigningKey]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sealed_bytes(realm, body.len(), keys.len()));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[FORMAT, kind as u8, realm.as_bytes().len() as u8]);
    bytes.extend_from_slice(realm.as_bytes());
    bytes.extend_from_slice(body);
    let message = prefixed(kind, &bytes);
    let mut count = 0;
    for key in keys.iter().take(SIGNATURES_MAX) {
        bytes.extend_from_slice(&key.public().id().0);
        bytes.extend_from_slice(&key.0.sign(&message).to_bytes());
        count += 1;
    }
    bytes.push(count);
    bytes
}

/// Bytes of a sealed object with a body of this length.
#[must_use]
pub const fn sealed_bytes(realm: &RealmId, body: usize, signatures: usize) -> usize {
    FIXED_BYTES + realm.len() + body + signatures * SIGNATURE_BYTES + 1
}

/// What a signature covers.
fn prefixed(kind: Kind, signed: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(kind.domain().len() + signed.len());
    message.extend_from_slice(kind.domain());
    message.extend_from_slice(signed);
    message
}

/// Sealed bytes whose fixed header was read and nothing else: not yet believed.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    kind: Kind,
    realm: RealmId,
    whole: &'a [u8],
    signed: &'a [u8],
    body: &'a [u8],
    signatures: &'a [[u8; SIGNATURE_BYTES]],
}

impl<'a> Sealed<'a> {
    /// Reads the envelope's fixed header and checks every length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        if bytes.len() > SEALED_BYTES_MAX {
            return Err(Refusal::EndlessData { bytes: bytes.len() as u64, max: SEALED_BYTES_MAX as u64 });
        }
        let Some(([m, a, g, format, kind, realm_len], _)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
            return Err(Refusal::Malformed { what: "shorter than an envelope" });
        };
        if [*m, *a, *g] != MAGIC {
            return Err(Refusal::Malformed { what: "the magic bytes are missing" });
        }
        if *format != FORMAT {
            return Err(Refusal::Format { found: *format, spoken: FORMAT });
        }
        let kind = Kind::from_number(*kind).ok_or(Refusal::Malformed { what: "an unknown kind" })?;
        let realm_len = usize::from(*realm_len);
        if realm_len > REALM_BYTES_MAX {
            return Err(Refusal::Malformed { what: "a realm id longer than 64 bytes" });
        }
        let count = usize::from(bytes.last().copied().unwrap_or_default());
        if count > SIGNATURES_MAX {
            return Err(Refusal::Malformed { what: "more than 16 signatures" });
        }
        let trailer = count * SIGNATURE_BYTES + 1;
        let cut = bytes
            .len()
            .checked_sub(trailer)
            .filter(|cut| *cut >= FIXED_BYTES + realm_len)
            .ok_or(Refusal::Malformed { what: "shorter than its lengths say" })?;
        let short = Refusal::Malformed { what: "shorter than its lengths say" };
        let (signed, rest) = bytes.split_at_checked(cut).ok_or_else(|| short.clone())?;
        let realm = signed.get(FIXED_BYTES..FIXED_BYTES + realm_len).ok_or_else(|| short.clone())?;
        let body = signed.get(FIXED_BYTES + realm_len..).ok_or(short)?;
        let realm =
            RealmId::from_bytes(realm).map_err(|_| Refusal::Malformed { what: "a realm id with other characters" })?;
        let (signatures, _count) = rest.as_chunks::<SIGNATURE_BYTES>();
        Ok(Self { kind, realm, whole: bytes, signed, body, signatures })
    }

    /// The same, and refuses another realm or kind than the one that belongs here.
    pub fn expect(bytes: &'a [u8], realm: &RealmId, kind: Kind) -> Result<Self, Refusal> {
        let sealed = Self::parse(bytes)?;
        if sealed.realm != *realm {
            return Err(Refusal::WrongRealm { found: sealed.realm });
        }
        if sealed.kind != kind {
            return Err(Refusal::Extraneous { expected: kind.name(), found: sealed.kind.name() });
        }
        Ok(sealed)
    }

    /// What it claims to be.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The realm it claims to belong to.
    #[must_use]
    pub const fn realm(&self) -> RealmId {
        self.realm
    }

    /// Ids of the keys that are said to have signed it.
    pub fn signers(&self) -> impl Iterator<Item = KeyId> + 'a {
        self.signatures.iter().map(|pair| KeyId(pair.first_chunk().copied().unwrap_or_default()))
    }

    /// The body, before anything was checked: only for tools that show damaged objects.
    #[must_use]
    pub const fn unverified_body(&self) -> &'a [u8] {
        self.body
    }

    /// Whether `key` made one of the signatures (strict Ed25519: no small order, no malleability).
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.matching(key, &prefixed(self.kind, self.signed))
    }

    /// The body, if at least `need` different keys among `keys` signed.
    ///
    /// An extra signature by a stranger, or a bad one, does no harm.
    pub fn by_threshold(&self, keys: &[PublicKey], need: u8) -> Result<Verified<&'a [u8]>, Refusal> {
        let message = prefixed(self.kind, self.signed);
        let mut distinct: Vec<&PublicKey> = keys.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let have = distinct.into_iter().filter(|key| self.matching(key, &message)).count() as u8;
        if have == 0 {
            return Err(Refusal::WrongKey { kind: self.kind });
        }
        // A threshold of none would trust everybody.
        if have < need.max(1) {
            return Err(Refusal::Threshold { have, need });
        }
        Ok(Verified(self.body))
    }

    /// The body, if the whole object has this digest; `what` names it in the refusal.
    pub fn by_digest(&self, digest: &Digest, what: &'static str) -> Result<Verified<&'a [u8]>, Refusal> {
        if Digest::of(self.whole) == *digest { Ok(Verified(self.body)) } else { Err(Refusal::MixAndMatch { what }) }
    }

    fn matching(&self, key: &PublicKey, message: &[u8]) -> bool {
        let id = key.id().0;
        let Ok(point) = ed25519_dalek::VerifyingKey::from_bytes(&key.0) else {
            return false;
        };
        self.signatures.iter().any(|pair| {
            pair.split_first_chunk::<8>().is_some_and(|(claimed, signature)| {
                *claimed == id
                    && signature.first_chunk::<64>().is_some_and(|signature| {
                        point.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
                    })
            })
        })
    }
}
