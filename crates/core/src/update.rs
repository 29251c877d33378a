//! What travels, as meaning; the bytes are drawn in `wire`.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use thiserror::Error;

use crate::clock::{UnixMillis, UnixTime};
use crate::cutoff::{Cutoff, Scope, ScopeKind};
use crate::filter::FilterParams;
use crate::limits::{DEVICE_ID_BYTES_MAX, TOKEN_TOPIC_BYTES_MAX};
use crate::position::{Epoch, Position, Sequence, Term};
use crate::refusal::Rank;
use crate::seal::{Digest, PublicKey};
use crate::token::{Claims, Fingerprint, Fingerprinter, RealmId};
use crate::verdict::Why;

/// What a publisher key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Indexes, deltas, and manifests that say something new.
    Content = 1,
    /// Manifests that renew what a content key has said, and say nothing new.
    Heartbeat = 2,
}

impl Role {
    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Content),
            2 => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

/// A key that may publish, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublisherKey {
    /// The key.
    pub key: PublicKey,
    /// [`Role`] as its number, so that the order on the wire is plain.
    pub role: u8,
    /// It may not sign after this.
    pub not_after: UnixTime,
}

/// What root keys say: who may publish, and what the realm's parameters are.
///
/// Version N+1 is signed by the thresholds of N and of N+1 (design rule 20).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Rises with every change.
    pub version: u64,
    /// When it was signed.
    pub issued_at: UnixMillis,
    /// When it must have been replaced.
    pub not_after: UnixTime,
    /// How many different roots must sign the next version.
    pub threshold: u8,
    /// The root keys, sorted.
    pub roots: Vec<PublicKey>,
    /// The publisher keys, sorted.
    pub publishers: Vec<PublisherKey>,
    /// The one `iss` of this realm.
    pub issuer: Box<str>,
    /// Function, key and width of the realm's fingerprints.
    pub fingerprinter: Fingerprinter,
    /// The clock difference, in seconds, that the server allows for before it forgets. A
    /// validator's leeway may not be larger.
    pub leeway: u32,
}

/// What is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Reign of the ledger.
    pub term: Term,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The last sequence that is published.
    pub sequence: Sequence,
    /// When it was sealed; rises strictly.
    pub issued_at: UnixMillis,
    /// When the next one is promised at the latest.
    pub next_update: UnixTime,
    /// Tokens with `exp` up to this are expired, whatever the device's clock says.
    pub horizon: UnixTime,
    /// Digest of the sealed index of `epoch`.
    pub index: Digest,
    /// The ladder: deltas that reach from the oldest base not yet retired to `sequence`, in order,
    /// without holes.
    pub ladder: Vec<Piece>,
}

impl Manifest {
    /// What orders manifests.
    #[must_use]
    pub const fn rank(&self) -> Rank {
        Rank { term: self.term, number: self.sequence.0, issued_at: self.issued_at }
    }
}

/// One retained catch-up delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// It begins after this sequence.
    pub from: Sequence,
    /// It ends with this one.
    pub to: Sequence,
    /// Bytes of the sealed delta.
    pub bytes: u32,
    /// Digest of the sealed delta.
    pub digest: Digest,
}

/// A part of a base that travels in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Artifact {
    /// The Bloom filter, as it stands in memory.
    Filter = 1,
    /// The sorted fingerprints, Rice coded.
    List = 2,
    /// Registered, unrevoked tokens that the filter would flag.
    Exceptions = 3,
    /// The cutoffs in force.
    Cutoffs = 4,
}

impl Artifact {
    /// The name in topics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::List => "list",
            Self::Exceptions => "exceptions",
            Self::Cutoffs => "cutoffs",
        }
    }

    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Filter),
            2 => Some(Self::List),
            3 => Some(Self::Exceptions),
            4 => Some(Self::Cutoffs),
            _ => None,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            "filter" => Some(Self::Filter),
            "list" => Some(Self::List),
            "exceptions" => Some(Self::Exceptions),
            "cutoffs" => Some(Self::Cutoffs),
            _ => None,
        }
    }
}

/// What an epoch is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Reign of the ledger.
    pub term: Term,
    /// Which epoch.
    pub epoch: Epoch,
    /// The base holds everything up to here.
    pub sequence: Sequence,
    /// When it was built.
    pub issued_at: UnixMillis,
    /// Entries with `exp` up to this were left out.
    pub horizon: UnixTime,
    /// Tokens issued before this were registered when the exceptions were computed; 0 for none.
    pub covered_until: UnixTime,
    /// Salt and geometry of the published filter.
    pub filter: FilterParams,
    /// Bytes of content in each chunk but the last.
    pub chunk_bytes: u32,
    /// The artifacts, sorted by kind, each once.
    pub artifacts: Vec<ArtifactSummary>,
}

/// One artifact as an index names it.
///
/// Its bytes are cut into chunks; the digests of the sealed chunks are written one after the other
/// and cut into chunks again, the *pages*; the index names the digests of the sealed pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactSummary {
    /// Which.
    pub artifact: Artifact,
    /// How many entries it holds.
    pub entries: u64,
    /// Its bytes, before it was cut.
    pub bytes: u64,
    /// Digests of the sealed pages.
    pub pages: Vec<Digest>,
}

/// A slice of an artifact, or of the digests of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Reign of the ledger.
    pub term: Term,
    /// Which epoch.
    pub epoch: Epoch,
    /// Which artifact.
    pub artifact: Artifact,
    /// Whether this is a page of digests.
    pub layer: Layer,
    /// Its number, from 0.
    pub number: u32,
    /// The slice.
    pub content: &'a [u8],
}

/// What a chunk is a slice of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Layer {
    /// The artifact itself.
    Content = 0,
    /// The digests of the artifact's chunks.
    Pages = 1,
}

impl Layer {
    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Content),
            1 => Some(Self::Pages),
            _ => None,
        }
    }
}

/// Net change over the sequences (from, to]: every key touched there, with its state as of `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Reign of the ledger.
    pub term: Term,
    /// It begins after this sequence.
    pub from: Sequence,
    /// It ends with this one.
    pub to: Sequence,
    /// When it was made.
    pub issued_at: UnixMillis,
    /// Keys whose `exp` lies at or before this may have been left out.
    pub horizon: UnixTime,
    /// Revoked as of `to`, sorted.
    pub revoked: Vec<Fingerprint>,
    /// Touched, but not revoked as of `to`, sorted.
    pub reinstated: Vec<Fingerprint>,
    /// Cutoffs in force as of `to` in the scopes touched, sorted.
    pub cutoffs: Vec<Cutoff>,
    /// Scopes touched in which no cutoff is in force as of `to`, sorted.
    pub lifts: Vec<Scope>,
}

impl Delta {
    /// How many statements it makes.
    #[must_use]
    pub fn statements(&self) -> usize {
        self.revoked.len() + self.reinstated.len() + self.cutoffs.len() + self.lifts.len()
    }
}

/// Where a replica stands, told to the server. Names only what is persisted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Reign of the ledger it follows.
    pub term: Term,
    /// Persisted position.
    pub position: Position,
    /// Time since the last proof of currency; `None` without one.
    pub age: Option<Duration>,
    /// [`Profile`](crate::Profile) as its number.
    pub profile: u8,
    /// Bytes the revocation set takes.
    pub memory_bytes: u64,
    /// Refusals since the start.
    pub refusals: u64,
    /// Number of the last refusal ([`Refusal::number`](crate::Refusal::number)).
    pub last_refusal: Option<u8>,
}

/// The name of a device in topics: `[A-Za-z0-9._-]{1,64}`. Held inline, so it is `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    // Field order is comparison order: the text, zero padded, then its length.
    text: [u8; DEVICE_ID_BYTES_MAX],
    len: u8,
}

impl DeviceId {
    /// Accepts letters, digits, hyphens, underscores and dots, 1 to 64 of them.
    pub fn new(text: &str) -> Result<Self, DeviceIdError> {
        Self::from_bytes(text.as_bytes())
    }

    /// The same, from bytes that crossed a wire.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DeviceIdError> {
        if bytes.is_empty() {
            return Err(DeviceIdError::Empty);
        }
        let mut text = [0; DEVICE_ID_BYTES_MAX];
        let Some(head) = text.get_mut(..bytes.len()) else {
            return Err(DeviceIdError::TooLong { bytes: bytes.len() });
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if let Some(&byte) = bytes.iter().find(|byte| !allowed(**byte)) {
            return Err(DeviceIdError::Character { byte });
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

    /// The text as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", self.as_str())
    }
}

/// Why a text is no device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceIdError {
    /// Nothing there.
    #[error("the device id is empty")]
    Empty,
    /// Longer than what brokers take.
    #[error("the device id has {bytes} bytes, more than {DEVICE_ID_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something that means more than itself in a topic.
    #[error("the device id holds byte 0x{byte:02x}; only letters, digits, hyphens, underscores and dots are allowed")]
    Character {
        /// The first one that is not allowed.
        byte: u8,
    },
}

/// Sixteen random bytes that bind an answer to its question.
pub type Nonce = [u8; 16];

/// What a device asks the server about one token.
///
/// The scopes stand in it so that the server can judge cutoffs for a device whose own are old. A device that
/// was enrolled signs it. In the name of another, anybody who may publish on its topic can ask, and learns
/// nothing but the state of a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub device: DeviceId,
    /// Binds the answer to this question.
    pub nonce: Nonce,
    /// Which token.
    pub fingerprint: Fingerprint,
    /// When it was issued, if it says so.
    pub iat: Option<UnixTime>,
    /// When it expires.
    pub exp: UnixTime,
    /// [`Fingerprinter::scope`] of its `sub`.
    pub sub: Option<u64>,
    /// The same of the key that signed it.
    pub kid: Option<u64>,
    /// The same of the client it was issued to.
    pub client: Option<u64>,
}

impl Question {
    /// The question about a token with these claims.
    #[must_use]
    pub fn new(device: DeviceId, nonce: Nonce, fingerprinter: &Fingerprinter, claims: &Claims<'_>) -> Self {
        let name = |kind: ScopeKind, text: Option<&str>| text.map(|text| Scope::new(fingerprinter, kind, text).name);
        Self {
            device,
            nonce,
            fingerprint: fingerprinter.fingerprint(claims.jti),
            iat: claims.iat,
            exp: claims.exp,
            sub: name(ScopeKind::Subject, claims.sub),
            kid: name(ScopeKind::KeyId, claims.kid),
            client: name(ScopeKind::Client, claims.client),
        }
    }

    /// Every scope that the token is in, the whole realm first.
    pub fn scopes(&self) -> impl Iterator<Item = Scope> {
        let named = [(ScopeKind::Subject, self.sub), (ScopeKind::KeyId, self.kid), (ScopeKind::Client, self.client)];
        let named = named.into_iter().filter_map(|(kind, name)| Some(Scope { kind, name: name? }));
        core::iter::once(Scope::REALM).chain(named)
    }

    /// Whether a cutoff in one of its scopes takes the token (design rule 16).
    #[must_use]
    pub fn precedes(&self, not_before: UnixTime) -> bool {
        self.iat.is_none_or(|iat| iat < not_before)
    }
}

/// What the server knows about one token.
///
/// Not a [`Verdict`](crate::Verdict): the server holds everything, so it is never in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a finding that nobody looks at accepts every token"]
pub enum Finding {
    /// Nothing stands against it.
    NotRevoked,
    /// It must not be honored.
    Revoked {
        /// What says so.
        why: Why,
    },
}

impl Finding {
    /// The name used in logs and JSON: that of the verdict.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotRevoked => "not-revoked",
            Self::Revoked { .. } => "revoked",
        }
    }
}

/// What the server answers to one question, sealed by a content key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub device: DeviceId,
    /// The question's.
    pub nonce: Nonce,
    /// The question's.
    pub fingerprint: Fingerprint,
    /// What is known. A horizon in it is that of the answer.
    pub finding: Finding,
    /// Reign of the ledger.
    pub term: Term,
    /// The finding holds as of this sequence, the last there was.
    pub sequence: Sequence,
    /// When that was.
    pub issued_at: UnixMillis,
    /// Tokens with `exp` up to this are expired, whatever the device's clock says.
    pub horizon: UnixTime,
}

/// What a device asks when it wants a new token, signed by its own key.
///
/// It does not name the token that it holds: the ledger knows, and a `jti` is nobody else's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renew {
    /// Who asks.
    pub device: DeviceId,
    /// Rises strictly from request to request, also across restarts; never 0. A request whose counter the server has
    /// seen is a replay.
    pub counter: u64,
    /// Binds the delivery to this request.
    pub nonce: Nonce,
    /// When it was made, by the device's clock. For people who look into it; nothing is decided by it.
    pub at: UnixMillis,
}

/// What the server sends to one device, sealed by a content key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// For whom.
    pub device: DeviceId,
    /// When it was made; rises strictly for each device.
    pub issued_at: UnixMillis,
    /// That of the [`Renew`] it answers; `None` if nobody asked.
    pub nonce: Option<Nonce>,
    /// Whether the content is enclosed for the device ([`enclose`](crate::enclose)), or clear.
    pub enclosed: bool,
    /// A [`Notice`], coded, and enclosed unless the operator wants tokens in clear.
    pub content: Vec<u8>,
}

impl Delivery {
    /// What an enclosure is bound to beside realm and device, so that it fits no other delivery:
    /// [`Delivery::issued_at`] (8), 1 with a nonce and 0 without (1), the nonce or zeros (16).
    #[must_use]
    pub fn bound(issued_at: UnixMillis, nonce: Option<&Nonce>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(25);
        bytes.extend_from_slice(&issued_at.millis().to_le_bytes());
        bytes.push(u8::from(nonce.is_some()));
        bytes.extend_from_slice(nonce.unwrap_or(&[0; 16]));
        bytes
    }
}

/// What a delivery tells its device.
#[derive(Clone, PartialEq, Eq)]
pub enum Notice {
    /// A token.
    Token {
        /// The compact JWS. What it says is for a validator to judge.
        token: Box<str>,
    },
    /// There is none.
    Refused {
        /// Why not.
        why: NoRenewal,
    },
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Whoever reads a log must not be able to use the token.
            Self::Token { .. } => f.write_str("Token(..)"),
            Self::Refused { why } => write!(f, "Refused({why:?})"),
        }
    }
}

/// Why a device gets no new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NoRenewal {
    /// The token that it holds was revoked.
    Revoked = 1,
    /// A cutoff takes its tokens, also a new one.
    CutOff = 2,
    /// Its counter is not above the last: a replay, or a device that was restored from a copy.
    Replayed = 3,
    /// The server has no time now. Ask again.
    Busy = 4,
}

impl NoRenewal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Revoked, Self::CutOff, Self::Replayed, Self::Busy];

    /// The name used in logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::CutOff => "cut-off",
            Self::Replayed => "replayed",
            Self::Busy => "busy",
        }
    }

    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Revoked),
            2 => Some(Self::CutOff),
            3 => Some(Self::Replayed),
            4 => Some(Self::Busy),
            _ => None,
        }
    }
}

impl fmt::Display for NoRenewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The public keys with which the realm's issuer signs tokens, for devices that cannot ask over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKeys {
    /// When they were sealed; an older set never replaces a later one.
    pub issued_at: UnixMillis,
    /// A JSON Web Key Set (RFC 7517) of public keys. What it says is for a validator to judge.
    pub jwks: Vec<u8>,
}

/// Where an object lies under a realm's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// `keys`, retained: the newest.
    Keys,
    /// `keys/{version}`, retained for good: for devices that missed more than one.
    KeysAt {
        /// Which version.
        version: u64,
    },
    /// `jwks`, retained: the issuer's public keys.
    IssuerKeys,
    /// `manifest`, retained.
    Manifest,
    /// `live`, deltas as they happen, not retained.
    Live,
    /// `ladder/{from}-{to}`, retained.
    Ladder {
        /// Begins after.
        from: Sequence,
        /// Ends with.
        to: Sequence,
    },
    /// `e/{epoch}/index`, retained.
    Index {
        /// Which epoch.
        epoch: Epoch,
    },
    /// `e/{epoch}/{artifact}/{n}`, retained; pages stand under `{artifact}-pages`.
    Chunk {
        /// Which epoch.
        epoch: Epoch,
        /// Which artifact.
        artifact: Artifact,
        /// Content or pages.
        layer: Layer,
        /// Its number.
        number: u32,
    },
    /// `devices/{id}/answer`, not retained: answers to this device. Whose topic it is, the link knows.
    Answer,
    /// Tokens for one device, or why there are none, not retained. Whose topic it is, the link knows
    /// ([`TokenTopic`]).
    Delivery,
}

impl Address {
    /// What is to be found there, in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::KeysAt { .. } => "keys of one version",
            Self::IssuerKeys => "issuer keys",
            Self::Manifest => "manifest",
            Self::Live => "live delta",
            Self::Ladder { .. } => "ladder piece",
            Self::Index { .. } => "index",
            Self::Chunk { layer: Layer::Content, .. } => "chunk",
            Self::Chunk { layer: Layer::Pages, .. } => "page",
            Self::Answer => "answer",
            Self::Delivery => "delivery",
        }
    }

    /// The MQTT topic: `{prefix}/{realm}/{address}`. Those of [`Address::Answer`] and [`Address::Delivery`] belong to
    /// one device: see [`DeviceTopic`] and [`TokenTopic`].
    #[must_use]
    pub fn topic(&self, prefix: &str, realm: &RealmId) -> String {
        format!("{prefix}/{realm}/{self}")
    }

    /// Reads a topic of this prefix and realm back; `None` if it is none of ours.
    #[must_use]
    pub fn from_topic(prefix: &str, realm: &RealmId, topic: &str) -> Option<Self> {
        let rest = topic.strip_prefix(prefix)?.strip_prefix('/')?;
        Self::parse(rest.strip_prefix(realm.as_str())?.strip_prefix('/')?)
    }

    /// Reads an address as [`fmt::Display`] writes it, and nothing else: one address, one text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let address = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("keys", None, ..) => Self::Keys,
            ("keys", Some(version), None, _) => Self::KeysAt { version: number(version)? },
            ("jwks", None, ..) => Self::IssuerKeys,
            ("manifest", None, ..) => Self::Manifest,
            ("live", None, ..) => Self::Live,
            ("ladder", Some(range), None, _) => {
                let (from, to) = range.split_once('-')?;
                Self::Ladder { from: Sequence(number(from)?), to: Sequence(number(to)?) }
            }
            ("e", Some(epoch), Some("index"), None) => Self::Index { epoch: Epoch(number(epoch)?) },
            ("e", Some(epoch), Some(artifact), Some(chunk)) => {
                let (name, layer) =
                    artifact.strip_suffix("-pages").map_or((artifact, Layer::Content), |name| (name, Layer::Pages));
                Self::Chunk {
                    epoch: Epoch(number(epoch)?),
                    artifact: Artifact::from_name(name)?,
                    layer,
                    number: number(chunk)?.try_into().ok()?,
                }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(address)
    }
}

/// Decimal digits without sign or leading zero.
fn number(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys => f.write_str("keys"),
            Self::KeysAt { version } => write!(f, "keys/{version}"),
            Self::Answer => f.write_str("answer"),
            Self::Delivery => f.write_str("delivery"),
            Self::IssuerKeys => f.write_str("jwks"),
            Self::Manifest => f.write_str("manifest"),
            Self::Live => f.write_str("live"),
            Self::Ladder { from, to } => write!(f, "ladder/{from}-{to}"),
            Self::Index { epoch } => write!(f, "e/{epoch}/index"),
            Self::Chunk { epoch, artifact, layer, number } => {
                let pages = match layer {
                    Layer::Content => "",
                    Layer::Pages => "-pages",
                };
                write!(f, "e/{epoch}/{}{pages}/{number}", artifact.name())
            }
        }
    }
}

/// What travels between one device and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceTopic {
    /// Device to server: where a replica stands.
    Report,
    /// Device to server: a question about one token.
    Ask,
    /// Server to device: the answer.
    Answer,
    /// Device to server: a request for a new token.
    Renew,
}

impl DeviceTopic {
    /// The last level of the topic.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Ask => "ask",
            Self::Answer => "answer",
            Self::Renew => "renew",
        }
    }

    /// The MQTT topic: `{prefix}/{realm}/devices/{device}/{name}`.
    #[must_use]
    pub fn topic(self, prefix: &str, realm: &RealmId, device: &DeviceId) -> String {
        format!("{prefix}/{realm}/devices/{device}/{}", self.name())
    }

    /// Reads realm and device out of a topic of this kind; `None` if it is none of ours.
    #[must_use]
    pub fn parse(self, prefix: &str, topic: &str) -> Option<(RealmId, DeviceId)> {
        let mut levels = topic.strip_prefix(prefix)?.strip_prefix('/')?.split('/');
        let (realm, devices, device) = (levels.next()?, levels.next()?, levels.next()?);
        let ours = devices == "devices" && levels.next() == Some(self.name()) && levels.next().is_none();
        if !ours {
            return None;
        }
        Some((RealmId::new(realm).ok()?, DeviceId::new(device).ok()?))
    }
}

/// Where tokens are delivered: a topic for each device, made from a template of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTopic(Box<str>);

/// Stands for the device in a template.
const DEVICE_PLACE: &str = "{device_id}";

/// Stands for the realm in a template.
const REALM_PLACE: &str = "{realm}";

impl TokenTopic {
    /// The template unless configured.
    pub const DEFAULT: &str = "device_tokens/{device_id}";

    /// Reads a template: levels of a topic, one of them `{device_id}`, and one of them `{realm}` if so wished.
    pub fn parse(text: &str) -> Result<Self, TokenTopicError> {
        if text.len() > TOKEN_TOPIC_BYTES_MAX {
            return Err(TokenTopicError::TooLong { bytes: text.len() });
        }
        if text.starts_with('$') {
            return Err(TokenTopicError::Level { level: text.split('/').next().unwrap_or_default().into() });
        }
        let (mut devices, mut realms) = (0, 0);
        for level in text.split('/') {
            match level {
                DEVICE_PLACE => devices += 1,
                REALM_PLACE => realms += 1,
                _ => {
                    let plain = |c: char| !c.is_control() && !matches!(c, '+' | '#' | '{' | '}');
                    if level.is_empty() || !level.chars().all(plain) {
                        return Err(TokenTopicError::Level { level: level.into() });
                    }
                }
            }
        }
        if devices != 1 || realms > 1 {
            return Err(TokenTopicError::Places { devices, realms });
        }
        Ok(Self(text.into()))
    }

    /// The topic of one device.
    #[must_use]
    pub fn topic(&self, realm: &RealmId, device: &DeviceId) -> String {
        self.filled(realm, device.as_str())
    }

    /// The topics of all devices of a realm: for the access rules of a broker, never for a subscription.
    #[must_use]
    pub fn filter(&self, realm: &RealmId) -> String {
        self.filled(realm, "+")
    }

    /// The template.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn filled(&self, realm: &RealmId, device: &str) -> String {
        self.0.replace(REALM_PLACE, realm.as_str()).replace(DEVICE_PLACE, device)
    }
}

impl Default for TokenTopic {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for TokenTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no template of topics. The operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenTopicError {
    /// Longer than brokers like topics.
    #[error("the token topic has {bytes} bytes, more than {TOKEN_TOPIC_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A level that is empty, a wildcard, the broker's own, or holds braces beside the two places.
    #[error(
        "the token topic has the level {level:?}; a level is {{device_id}}, {{realm}}, or text without +, #, braces and control characters, and the first does not begin with $"
    )]
    Level {
        /// The first such level.
        level: Box<str>,
    },
    /// The device does not stand in it once, or the realm more than once.
    #[error(
        "the token topic has {devices} levels {{device_id}} and {realms} levels {{realm}}; it takes exactly one of the former and at most one of the latter, as in {:?}",
        TokenTopic::DEFAULT
    )]
    Places {
        /// How often the device.
        devices: usize,
        /// How often the realm.
        realms: usize,
    },
}

/// What a device trusts before it has heard anything: pinned at manufacture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Root keys.
    pub roots: Vec<PublicKey>,
    /// How many of them must have signed the first `keys`.
    pub threshold: u8,
    /// No signed object can be older: the first floor under the clock.
    pub not_before: UnixTime,
}
