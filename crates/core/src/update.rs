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
use crate::limits::DEVICE_ID_BYTES_MAX;
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
/// The scopes stand in it so that the server can judge cutoffs for a device whose own are old. It is
/// not signed: devices have no keys of their own yet, so anybody who may publish on a device's topic
/// can ask in its name, and learns nothing but the state of a fingerprint.
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
}

impl Address {
    /// What is to be found there, in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::KeysAt { .. } => "keys of one version",
            Self::Manifest => "manifest",
            Self::Live => "live delta",
            Self::Ladder { .. } => "ladder piece",
            Self::Index { .. } => "index",
            Self::Chunk { layer: Layer::Content, .. } => "chunk",
            Self::Chunk { layer: Layer::Pages, .. } => "page",
            Self::Answer => "answer",
        }
    }

    /// The MQTT topic: `{prefix}/{realm}/{address}`. That of [`Address::Answer`] belongs to one device:
    /// see [`DeviceTopic`].
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
}

impl DeviceTopic {
    /// The last level of the topic.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Ask => "ask",
            Self::Answer => "answer",
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
