//! What a replica writes down, so that a restart loses nothing it had.
//!
//! Two byte strings: a *head*, small, written after every change; and a *base image*, large, written
//! when the epoch changes. The head names the base image by its digest and carries a digest of
//! itself. Where they are kept, and how a torn write is survived, is the device's business.

use alloc::sync::Arc;
use alloc::vec::Vec;

use bincode::{Decode, Encode};

use crate::base::{Base, Profile};
use crate::clock::{UnixMillis, UnixTime};
use crate::cutoff::{Scope, ScopeKind, StampedCutoff};
use crate::limits::{CUTOFFS_MAX, EARLY_RANGES_MAX, RECENT_ENTRIES_MAX, SEALED_BYTES_MAX, STATE_BYTES_MAX};
use crate::position::{Sequence, Term};
use crate::recent::{Stamped, State};
use crate::refusal::Refusal;
use crate::seal::{Digest, Digester};
use crate::token::{Fingerprint, RealmId};
use crate::wire::{Sink, WireError, take};

/// First bytes of a head.
const HEAD_MAGIC: [u8; 4] = *b"RVS1";

/// First bytes of a base image.
const BASE_MAGIC: [u8; 4] = *b"RVB2";

/// Bytes of the digest at the end of a head.
const DIGEST_BYTES: usize = 32;

/// What a replica asks its store to keep.
#[derive(Clone, Debug)]
pub struct Image {
    /// Rises with every image; of two good heads the one with the higher revision counts.
    pub revision: u64,
    /// The head.
    pub head: Vec<u8>,
    /// The base image that the head names, unless the store already confirmed it.
    pub base: Option<BaseImage>,
}

/// A range of sequences (from, to] whose statements are held ahead of a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EarlyRange {
    // Field order is comparison order.
    /// Reign of the ledger.
    pub term: Term,
    /// It begins after this sequence.
    pub from: Sequence,
    /// It ends with this one.
    pub to: Sequence,
}

/// A head, as meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose state this is.
    pub realm: RealmId,
    /// Digest of the roots that were pinned when it was gathered, and their threshold.
    pub trust: Digest,
    /// Rises with every image.
    pub revision: u64,
    /// What the base image holds.
    pub profile: Profile,
    /// Term and last sequence without a gap; `None` before the first base.
    pub position: Option<(Term, Sequence)>,
    /// Largest `gc_horizon` seen.
    pub horizon: UnixTime,
    /// Highest verified issued-at.
    pub floor: UnixMillis,
    /// Issued-at of the last manifest that the position satisfied.
    pub proof: Option<UnixMillis>,
    /// A revocation up to here did not fit.
    pub overflow: Option<Sequence>,
    /// Only a base ends that: what did not fit will not come again.
    pub lost: bool,
    /// The sealed keys.
    pub keys: Vec<u8>,
    /// The sealed manifest, the highest seen; empty before the first.
    pub manifest: Vec<u8>,
    /// Digest of the base image.
    pub base: Option<Digest>,
    /// Ranges held ahead of a gap, sorted.
    pub early: Vec<EarlyRange>,
    /// What came since the base, sorted by fingerprint.
    pub recent: Vec<Stamped>,
    /// Cutoffs and lifts since the base, sorted by scope.
    pub cutoffs: Vec<StampedCutoff>,
}

/// ```text
/// offset  size  head
/// 0       4     magic "RVS1"
/// 4       8     revision
/// 12      1     profile of the base image: 1 filter, 2 list, 3 exact, 4 covered, 5 folded, 6 folded twice
/// 13      1     flags: 1 position, 2 proof, 4 overflow, 8 base, 16 only a base ends the overflow
/// 14      4     term
/// 18      8     sequence
/// 26      8     gc_horizon, seconds
/// 34      8     floor, milliseconds
/// 42      8     proof: issued-at, milliseconds
/// 50      8     overflow: sequence
/// 58      32    digest of the base image
/// 90      32    digest of the pinned trust: SHA-256 of threshold (1) and roots (32 each), ascending
/// 122     1     R, bytes of the realm id
/// 123     4     K, bytes of the sealed keys
/// 127     4     M, bytes of the sealed manifest
/// 131     4     e, number of early ranges
/// 135     4     r, number of recent entries
/// 139     4     c, number of recent cutoffs
/// 143           realm id (R), sealed keys (K), sealed manifest (M)
///         20 e  early ranges: term (4), from (8), to (8)
///         17 r  recent: fingerprint (8), stamp (8), state (1: 0 reinstated, 1 revoked)
///         26 c  cutoffs: kind (1), scope (8), lifted (1), not-before (8), stamp (8)
/// end-32  32    SHA-256 of all before
/// ```
#[derive(Encode, Decode)]
struct HeadBytes {
    magic: [u8; 4],
    revision: u64,
    profile: u8,
    flags: u8,
    term: u32,
    sequence: u64,
    horizon: u64,
    floor: u64,
    proof: u64,
    overflow: u64,
    base: [u8; 32],
    trust: [u8; 32],
    realm: u8,
    keys: u32,
    manifest: u32,
    early: u32,
    recent: u32,
    cutoffs: u32,
}

const HAS_POSITION: u8 = 1;
const HAS_PROOF: u8 = 2;
const HAS_OVERFLOW: u8 = 4;
const HAS_BASE: u8 = 8;
const HAS_LOST: u8 = 16;

impl Head {
    /// Writes the head, its own digest last.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let (term, sequence) = self.position.unwrap_or_default();
        let mut out = Sink::default();
        out.put(HeadBytes {
            magic: HEAD_MAGIC,
            revision: self.revision,
            profile: self.profile as u8,
            flags: flag(self.position.is_some(), HAS_POSITION)
                | flag(self.proof.is_some(), HAS_PROOF)
                | flag(self.overflow.is_some(), HAS_OVERFLOW)
                | flag(self.base.is_some(), HAS_BASE)
                | flag(self.lost, HAS_LOST),
            term: term.0,
            sequence: sequence.0,
            horizon: self.horizon.secs(),
            floor: self.floor.millis(),
            proof: self.proof.unwrap_or_default().millis(),
            overflow: self.overflow.unwrap_or_default().0,
            base: self.base.unwrap_or_default().0,
            trust: self.trust.0,
            realm: self.realm.len() as u8,
            keys: self.keys.len() as u32,
            manifest: self.manifest.len() as u32,
            early: self.early.len() as u32,
            recent: self.recent.len() as u32,
            cutoffs: self.cutoffs.len() as u32,
        })?;
        out.extend(self.realm.as_bytes());
        out.extend(&self.keys);
        out.extend(&self.manifest);
        for range in &self.early {
            out.put((range.term.0, range.from.0, range.to.0))?;
        }
        for entry in &self.recent {
            out.put((entry.fingerprint.bits(), entry.stamp.0, u8::from(entry.state == State::Revoked)))?;
        }
        for cutoff in &self.cutoffs {
            let lifted = u8::from(cutoff.not_before.is_none());
            let not_before = cutoff.not_before.unwrap_or_default().secs();
            out.put((cutoff.scope.kind as u8, cutoff.scope.name, lifted, not_before, cutoff.stamp.0))?;
        }
        let digest = Digest::of(out.bytes());
        out.extend(&digest.0);
        Ok(out.into_bytes())
    }

    /// Reads a head back; any damage is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let damaged = |what| Refusal::DamagedState { what };
        if bytes.len() > STATE_BYTES_MAX {
            return Err(Refusal::EndlessData { bytes: bytes.len() as u64, max: STATE_BYTES_MAX as u64 });
        }
        let (content, digest) =
            bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(|| damaged("shorter than a head"))?;
        if Digest::of(content).0 != *digest {
            return Err(damaged("its digest does not match"));
        }
        Self::decode_content(content).map_err(|_| damaged("its fields make no sense"))
    }

    fn decode_content(mut bytes: &[u8]) -> Result<Self, WireError> {
        let range = |field| WireError::Range { field };
        let bytes = &mut bytes;
        let head: HeadBytes = take(bytes)?;
        if head.magic != HEAD_MAGIC {
            return Err(range("magic"));
        }
        let within = |field, count: u32, max: usize| {
            if count as usize > max {
                Err(WireError::Count { field, count: u64::from(count), max: max as u64 })
            } else {
                Ok(())
            }
        };
        within("keys", head.keys, SEALED_BYTES_MAX)?;
        within("manifest", head.manifest, SEALED_BYTES_MAX)?;
        within("early", head.early, EARLY_RANGES_MAX)?;
        within("recent", head.recent, RECENT_ENTRIES_MAX)?;
        within("cutoffs", head.cutoffs, 2 * CUTOFFS_MAX)?;
        let realm = RealmId::from_bytes(slice(bytes, head.realm.into())?).map_err(|_| range("realm"))?;
        let keys = slice(bytes, head.keys as usize)?.to_vec();
        let manifest = slice(bytes, head.manifest as usize)?.to_vec();
        let early = (0..head.early)
            .map(|_| {
                let (term, from, to) = take(bytes)?;
                Ok(EarlyRange { term: Term(term), from: Sequence(from), to: Sequence(to) })
            })
            .collect::<Result<Vec<_>, WireError>>()?;
        let recent = (0..head.recent)
            .map(|_| {
                let (fingerprint, stamp, state): (u64, u64, u8) = take(bytes)?;
                Ok(Stamped {
                    fingerprint: Fingerprint::from_bits(fingerprint, crate::token::Width::W64)
                        .ok_or(range("recent"))?,
                    stamp: Sequence(stamp),
                    state: if state == 0 { State::Reinstated } else { State::Revoked },
                })
            })
            .collect::<Result<Vec<_>, WireError>>()?;
        let cutoffs = (0..head.cutoffs)
            .map(|_| {
                let (kind, name, lifted, not_before, stamp): (u8, u64, u8, u64, u64) = take(bytes)?;
                let kind = ScopeKind::from_number(kind).ok_or(range("cutoffs"))?;
                Ok(StampedCutoff {
                    scope: Scope { kind, name },
                    not_before: (lifted == 0).then(|| UnixTime::from_secs(not_before)),
                    stamp: Sequence(stamp),
                })
            })
            .collect::<Result<Vec<_>, WireError>>()?;
        if !bytes.is_empty() {
            return Err(WireError::Trailing);
        }
        let has = |bit| head.flags & bit != 0;
        Ok(Self {
            realm,
            trust: Digest(head.trust),
            revision: head.revision,
            profile: Profile::from_number(head.profile).ok_or(range("profile"))?,
            position: has(HAS_POSITION).then_some((Term(head.term), Sequence(head.sequence))),
            horizon: UnixTime::from_secs(head.horizon),
            floor: UnixMillis::from_millis(head.floor),
            proof: has(HAS_PROOF).then(|| UnixMillis::from_millis(head.proof)),
            overflow: has(HAS_OVERFLOW).then_some(Sequence(head.overflow)),
            lost: has(HAS_LOST),
            keys,
            manifest,
            base: has(HAS_BASE).then_some(Digest(head.base)),
            early,
            recent,
            cutoffs,
        })
    }
}

/// A base as it is held, ready to be written down. Cheap to clone: nothing is copied before it is written.
///
/// ```text
/// offset  size  base image
/// 0       4     magic "RVB2"
/// 4       1     profile: 1 filter, 2 list, 3 exact, 4 covered, 5 folded, 6 folded twice
/// 5       1     1 if later revocations were folded into the filter, else 0
/// 6       8     sequence up to which they were; 0 if none were
/// 14      4     draw of the exceptions; 0 without
/// 18      4     I, bytes of the sealed index
/// 22      8     F, bytes of the filter as held; 0 where it is built again from the list
/// 30      8     L, bytes of the list or the exceptions, as an exact list stands in memory; 0 without
/// 38      8     C, bytes of the cutoffs artifact
/// 46      I     sealed index
///         F     filter
///         L     list or exceptions
///         C     cutoffs
/// ```
#[derive(Clone, Debug)]
pub struct BaseImage {
    digest: Digest,
    source: Source,
}

/// Where the bytes of a base image come from.
#[derive(Clone, Debug)]
enum Source {
    Held { index: Arc<[u8]>, base: Arc<Base>, cutoffs: Arc<[u8]> },
    Bytes(Arc<[u8]>),
}

/// Bytes of a base image before its parts.
const BASE_HEAD_BYTES: usize = 46;

impl BaseImage {
    /// The image of a base that is held.
    ///
    /// # Complexity
    ///
    /// One SHA-256 over all of it.
    pub(crate) fn new(index: Arc<[u8]>, base: Arc<Base>, cutoffs: Arc<[u8]>) -> Self {
        Self::digested(Source::Held { index, base, cutoffs })
    }

    /// An image that was written down before, for tools that copy state.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::digested(Source::Bytes(bytes.into()))
    }

    fn digested(source: Source) -> Self {
        let mut digester = Digester::default();
        source.visit(&mut |bytes| digester.update(bytes));
        Self { digest: digester.finish(), source }
    }

    /// What a head names it by: the SHA-256 of its bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Gives its bytes, one piece after the other.
    pub fn visit(&self, each: &mut dyn FnMut(&[u8])) {
        self.source.visit(each);
    }

    /// Its bytes in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.visit(&mut |piece| bytes.extend_from_slice(piece));
        bytes
    }
}

impl Source {
    fn visit(&self, each: &mut dyn FnMut(&[u8])) {
        match self {
            Self::Bytes(bytes) => each(bytes),
            Self::Held { index, base, cutoffs } => {
                let stored = base.stored();
                let mut head = Sink::default();
                let filter = stored.filter.map_or(0, |filter| filter.params().size_bytes());
                // Fixed-size numbers are never refused.
                let _ = head.put((
                    BASE_MAGIC,
                    base.profile() as u8,
                    u8::from(stored.folded_through.is_some()),
                    stored.folded_through.unwrap_or_default().0,
                    stored.draw,
                    index.len() as u32,
                    filter,
                    stored.list.len() as u64,
                    cutoffs.len() as u64,
                ));
                each(head.bytes());
                each(index);
                if let Some(filter) = stored.filter {
                    filter.lines().for_each(|line| each(line));
                }
                each(stored.list);
                each(cutoffs);
            }
        }
    }
}

/// The parts of a base image that was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredImage<'a> {
    /// What it holds.
    pub profile: Profile,
    /// Later revocations up to here were folded in.
    pub folded_through: Option<Sequence>,
    /// Draw of the exceptions.
    pub draw: u32,
    /// The sealed index.
    pub index: &'a [u8],
    /// The filter as held.
    pub filter: &'a [u8],
    /// The list or the exceptions.
    pub list: &'a [u8],
    /// The cutoffs artifact.
    pub cutoffs: &'a [u8],
}

impl<'a> StoredImage<'a> {
    /// Finds the parts; what they say is checked by whoever builds a base of them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Refusal> {
        type Numbers = ([u8; 4], u8, u8, u64, u32, u32, u64, u64, u64);
        let damaged = || Refusal::DamagedState { what: "a base image whose lengths make no sense" };
        let (head, mut rest) = bytes.split_at_checked(BASE_HEAD_BYTES).ok_or_else(damaged)?;
        let (magic, profile, folded, through, draw, index, filter, list, cutoffs): Numbers =
            take(&mut &*head).map_err(|_| damaged())?;
        if magic != BASE_MAGIC {
            return Err(Refusal::DamagedState { what: "a base image of another format" });
        }
        let mut part = |length: u64| {
            let length = usize::try_from(length).map_err(|_| damaged())?;
            slice(&mut rest, length).map_err(|_| damaged())
        };
        let image = Self {
            profile: Profile::from_number(profile).ok_or_else(damaged)?,
            folded_through: (folded != 0).then_some(Sequence(through)),
            draw,
            index: part(index.into())?,
            filter: part(filter)?,
            list: part(list)?,
            cutoffs: part(cutoffs)?,
        };
        if rest.is_empty() { Ok(image) } else { Err(damaged()) }
    }
}

fn slice<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (head, rest) = bytes.split_at_checked(length).ok_or(WireError::Short)?;
    *bytes = rest;
    Ok(head)
}
