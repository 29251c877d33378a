//! The bytes of every body, and the only place that knows the codec.
//!
//! Bodies are a head of fixed-size little-endian integers and arrays, then a tail of fixed-size
//! records or coded lists whose lengths the head gives. Nothing follows the tail. Decoding accepts
//! exactly what encoding makes, so that one value has one byte string: lists are strictly sorted,
//! padding and unused fields are zero. The layout is drawn on each head; `tests/vectors` fix it.
//!
//! Everything here is called after the signature or digest over the same bytes was checked.

use alloc::vec::Vec;
use core::time::Duration;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bincode::{Decode, Encode};
use thiserror::Error;

use crate::clock::{UnixMillis, UnixTime};
use crate::cutoff::{Cutoff, Scope, ScopeKind};
use crate::exceptions::ExceptionCut;
use crate::filter::{FilterParams, Salt};
use crate::limits::{
    ARTIFACT_BYTES_MAX, BASE_ENTRIES_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CUTOFFS_MAX, DELIVERY_CONTENT_BYTES_MAX,
    ENCLOSURE_BYTES, ISSUER_BYTES_MAX, ISSUER_KEYS_BYTES_MAX, LADDER_PIECES_MAX, PUBLISHERS_MAX, ROOTS_MAX,
    SEALED_BYTES_MAX, TOKEN_BYTES_MAX,
};
use crate::position::{Epoch, Position, Sequence, Term};
use crate::refusal::Refusal;
use crate::rice;
use crate::seal::{Digest, PublicKey};
use crate::token::{Fingerprint, FingerprintFunction, Fingerprinter, RealmKey, Width};
use crate::update::{
    Answer, Artifact, ArtifactSummary, Chunk, Delivery, Delta, DeviceId, Finding, Index, IssuerKeys, Keys, Layer,
    Manifest, NoRenewal, Nonce, Notice, Piece, PublisherKey, Question, Renew, Report, Role,
};
use crate::verdict::Why;

/// Bytes of a cutoff on the wire.
pub const CUTOFF_BYTES: usize = 17;

/// Bytes of a ladder piece in a manifest.
pub const PIECE_BYTES: usize = 52;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<SEALED_BYTES_MAX>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<SEALED_BYTES_MAX>();

/// Why bytes are no body, or a value cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes end too early.
    #[error("the body ends before its last field")]
    Short,
    /// Something follows the last field.
    #[error("bytes follow the last field")]
    Trailing,
    /// A field has a value that its type does not.
    #[error("{field} has a value outside its range")]
    Range {
        /// Which field.
        field: &'static str,
    },
    /// A list has more entries than allowed.
    #[error("{field} has {count} entries, more than {max}")]
    Count {
        /// Which list.
        field: &'static str,
        /// Its entries.
        count: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A list is not strictly sorted, or not without holes where that is required.
    #[error("{field} is out of order")]
    Order {
        /// Which list.
        field: &'static str,
    },
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::Malformed {
            what: match error {
                WireError::Short => "the body ends before its last field",
                WireError::Trailing => "bytes follow the last field",
                WireError::Range { field } | WireError::Count { field, .. } | WireError::Order { field } => field,
            },
        }
    }
}

/// Collects what the codec writes; cannot fail.
#[derive(Default)]
pub(crate) struct Sink(Vec<u8>);

impl Writer for Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl Sink {
    /// Writes fixed-size integers and arrays, which the codec has no reason to refuse.
    pub(crate) fn put(&mut self, value: impl Encode) -> Result<(), WireError> {
        bincode::encode_into_writer(value, &mut *self, CONFIG)
            .map_err(|_| WireError::Range { field: "a fixed-size field" })
    }

    /// Appends bytes as they are.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Takes one fixed-size value from the front.
pub(crate) fn take<T: Decode<()>>(bytes: &mut &[u8]) -> Result<T, WireError> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG).map_err(|_| WireError::Short)?;
    *bytes = bytes.get(used..).ok_or(WireError::Short)?;
    Ok(value)
}

fn finish(rest: &[u8]) -> Result<(), WireError> {
    if rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
}

const fn count(field: &'static str, count: usize, max: usize) -> Result<u32, WireError> {
    if count > max { Err(WireError::Count { field, count: count as u64, max: max as u64 }) } else { Ok(count as u32) }
}

fn ascending<T: Ord>(field: &'static str, list: &[T]) -> Result<(), WireError> {
    if list.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(WireError::Order { field }) }
}

/// ```text
/// offset  size  keys
/// 0       8     version
/// 8       8     issued-at, milliseconds
/// 16      8     not-after, seconds
/// 24      1     threshold, 1 to the number of roots
/// 25      1     number of roots, 1 to 16
/// 26      1     number of publisher keys, 1 to 16
/// 27      1     fingerprint function: 1 xxh3-64, 2 sha256-64
/// 28      1     fingerprint width: 40, 48 or 64
/// 29      16    fingerprint key
/// 45      4     leeway, seconds
/// 49      2     bytes of the issuer, 1 to 1024
/// 51      32 r  root keys, ascending
///         41 p  publisher keys: key (32), role (1: 1 content, 2 heartbeat), not-after (8); ascending
///         i     issuer, UTF-8
/// ```
#[derive(Encode, Decode)]
struct KeysHead {
    version: u64,
    issued_at: u64,
    not_after: u64,
    threshold: u8,
    roots: u8,
    publishers: u8,
    function: u8,
    width: u8,
    key: [u8; 16],
    leeway: u32,
    issuer: u16,
}

/// Encodes `keys`.
pub fn encode_keys(keys: &Keys) -> Result<Vec<u8>, WireError> {
    check_keys(keys)?;
    let mut out = Sink::default();
    out.put(KeysHead {
        version: keys.version,
        issued_at: keys.issued_at.millis(),
        not_after: keys.not_after.secs(),
        threshold: keys.threshold,
        roots: keys.roots.len() as u8,
        publishers: keys.publishers.len() as u8,
        function: keys.fingerprinter.function() as u8,
        width: keys.fingerprinter.width().bits() as u8,
        key: keys.fingerprinter.key().0,
        leeway: keys.leeway,
        issuer: keys.issuer.len() as u16,
    })?;
    for root in &keys.roots {
        out.put(root.0)?;
    }
    for publisher in &keys.publishers {
        out.put((publisher.key.0, publisher.role, publisher.not_after.secs()))?;
    }
    out.extend(keys.issuer.as_bytes());
    Ok(out.into_bytes())
}

/// Decodes `keys`.
pub fn decode_keys(mut body: &[u8]) -> Result<Keys, WireError> {
    let body = &mut body;
    let head: KeysHead = take(body)?;
    let function =
        FingerprintFunction::from_number(head.function).ok_or(WireError::Range { field: "fingerprint function" })?;
    let width = Width::from_bits(head.width).ok_or(WireError::Range { field: "fingerprint width" })?;
    count("roots", head.roots.into(), ROOTS_MAX)?;
    count("publisher keys", head.publishers.into(), PUBLISHERS_MAX)?;
    let roots = (0..head.roots).map(|_| take(body).map(PublicKey)).collect::<Result<_, _>>()?;
    let publishers = (0..head.publishers)
        .map(|_| {
            let (key, role, not_after): ([u8; 32], u8, u64) = take(body)?;
            Ok(PublisherKey { key: PublicKey(key), role, not_after: UnixTime::from_secs(not_after) })
        })
        .collect::<Result<_, WireError>>()?;
    let (issuer, rest) = body.split_at_checked(head.issuer.into()).ok_or(WireError::Short)?;
    finish(rest)?;
    let keys = Keys {
        version: head.version,
        issued_at: UnixMillis::from_millis(head.issued_at),
        not_after: UnixTime::from_secs(head.not_after),
        threshold: head.threshold,
        roots,
        publishers,
        issuer: core::str::from_utf8(issuer).map_err(|_| WireError::Range { field: "issuer" })?.into(),
        fingerprinter: Fingerprinter::new(function, RealmKey(head.key), width),
        leeway: head.leeway,
    };
    check_keys(&keys)?;
    Ok(keys)
}

fn check_keys(keys: &Keys) -> Result<(), WireError> {
    count("roots", keys.roots.len(), ROOTS_MAX)?;
    count("publisher keys", keys.publishers.len(), PUBLISHERS_MAX)?;
    count("issuer", keys.issuer.len(), ISSUER_BYTES_MAX)?;
    if keys.threshold == 0 || usize::from(keys.threshold) > keys.roots.len() {
        return Err(WireError::Range { field: "threshold" });
    }
    if keys.publishers.is_empty() || keys.publishers.iter().any(|key| Role::from_number(key.role).is_none()) {
        return Err(WireError::Range { field: "publisher keys" });
    }
    if keys.issuer.is_empty() {
        return Err(WireError::Range { field: "issuer" });
    }
    ascending("roots", &keys.roots)?;
    ascending("publisher keys", &keys.publishers)
}

/// ```text
/// offset  size  manifest
/// 0       4     term
/// 4       8     epoch
/// 12      8     sequence
/// 20      8     issued-at, milliseconds
/// 28      8     next-update, seconds
/// 36      8     gc_horizon, seconds
/// 44      32    digest of the sealed index
/// 76      2     number of ladder pieces, at most 64
/// 78      52 n  pieces: from (8), to (8), bytes (4), digest (32); each begins where the last ended,
///               the last ends with sequence
/// ```
#[derive(Encode, Decode)]
struct ManifestHead {
    term: u32,
    epoch: u64,
    sequence: u64,
    issued_at: u64,
    next_update: u64,
    horizon: u64,
    index: [u8; 32],
    pieces: u16,
}

/// Encodes a manifest.
pub fn encode_manifest(manifest: &Manifest) -> Result<Vec<u8>, WireError> {
    check_manifest(manifest)?;
    let mut out = Sink::default();
    out.put(ManifestHead {
        term: manifest.term.0,
        epoch: manifest.epoch.0,
        sequence: manifest.sequence.0,
        issued_at: manifest.issued_at.millis(),
        next_update: manifest.next_update.secs(),
        horizon: manifest.horizon.secs(),
        index: manifest.index.0,
        pieces: manifest.ladder.len() as u16,
    })?;
    for piece in &manifest.ladder {
        out.put((piece.from.0, piece.to.0, piece.bytes, piece.digest.0))?;
    }
    Ok(out.into_bytes())
}

/// Decodes a manifest.
pub fn decode_manifest(mut body: &[u8]) -> Result<Manifest, WireError> {
    let body = &mut body;
    let head: ManifestHead = take(body)?;
    count("ladder", head.pieces.into(), LADDER_PIECES_MAX)?;
    let ladder = (0..head.pieces)
        .map(|_| {
            let (from, to, bytes, digest) = take(body)?;
            Ok(Piece { from: Sequence(from), to: Sequence(to), bytes, digest: Digest(digest) })
        })
        .collect::<Result<_, WireError>>()?;
    finish(body)?;
    let manifest = Manifest {
        term: Term(head.term),
        epoch: Epoch(head.epoch),
        sequence: Sequence(head.sequence),
        issued_at: UnixMillis::from_millis(head.issued_at),
        next_update: UnixTime::from_secs(head.next_update),
        horizon: UnixTime::from_secs(head.horizon),
        index: Digest(head.index),
        ladder,
    };
    check_manifest(&manifest)?;
    Ok(manifest)
}

fn check_manifest(manifest: &Manifest) -> Result<(), WireError> {
    count("ladder", manifest.ladder.len(), LADDER_PIECES_MAX)?;
    let contiguous = manifest.ladder.iter().all(|piece| piece.from < piece.to)
        && manifest.ladder.windows(2).all(|pair| matches!(pair, [a, b] if a.to == b.from))
        && manifest.ladder.last().is_none_or(|last| last.to == manifest.sequence);
    if contiguous { Ok(()) } else { Err(WireError::Order { field: "ladder" }) }
}

/// ```text
/// offset  size  index
/// 0       4     term
/// 4       8     epoch
/// 12      8     sequence of the base
/// 20      8     issued-at, milliseconds
/// 28      8     gc_horizon, seconds
/// 36      8     covered_until, seconds; 0 without exceptions
/// 44      16    salt
/// 60      4     blocks of the filter
/// 64      1     probes of the filter, in each of two lines
/// 65      4     chunk size, 2 KiB to 256 KiB
/// 69      1     number of artifacts
/// 70            for each, ascending: kind (1), entries (8), bytes (8), number of pages (4),
///               digests of the sealed pages (32 each)
/// ```
#[derive(Encode, Decode)]
struct IndexHead {
    term: u32,
    epoch: u64,
    sequence: u64,
    issued_at: u64,
    horizon: u64,
    covered_until: u64,
    salt: [u8; 16],
    blocks: u32,
    probes: u8,
    chunk_bytes: u32,
    artifacts: u8,
}

/// Encodes an index.
pub fn encode_index(index: &Index) -> Result<Vec<u8>, WireError> {
    check_index(index)?;
    let mut out = Sink::default();
    out.put(IndexHead {
        term: index.term.0,
        epoch: index.epoch.0,
        sequence: index.sequence.0,
        issued_at: index.issued_at.millis(),
        horizon: index.horizon.secs(),
        covered_until: index.covered_until.secs(),
        salt: index.filter.salt().0,
        blocks: index.filter.blocks(),
        probes: index.filter.probes(),
        chunk_bytes: index.chunk_bytes,
        artifacts: index.artifacts.len() as u8,
    })?;
    for summary in &index.artifacts {
        out.put((summary.artifact as u8, summary.entries, summary.bytes, summary.pages.len() as u32))?;
        for page in &summary.pages {
            out.put(page.0)?;
        }
    }
    Ok(out.into_bytes())
}

/// Decodes an index.
pub fn decode_index(mut body: &[u8]) -> Result<Index, WireError> {
    let body = &mut body;
    let head: IndexHead = take(body)?;
    let filter = FilterParams::new(Salt(head.salt), head.blocks, head.probes)
        .map_err(|_| WireError::Range { field: "filter geometry" })?;
    let artifacts = (0..head.artifacts)
        .map(|_| {
            let (artifact, entries, bytes, pages): (u8, u64, u64, u32) = take(body)?;
            let artifact = Artifact::from_number(artifact).ok_or(WireError::Range { field: "artifact" })?;
            // Each page takes 32 bytes of what is left, so a lie about their number ends soon.
            let pages = (0..pages).map(|_| take(body).map(Digest)).collect::<Result<_, _>>()?;
            Ok(ArtifactSummary { artifact, entries, bytes, pages })
        })
        .collect::<Result<_, WireError>>()?;
    finish(body)?;
    let index = Index {
        term: Term(head.term),
        epoch: Epoch(head.epoch),
        sequence: Sequence(head.sequence),
        issued_at: UnixMillis::from_millis(head.issued_at),
        horizon: UnixTime::from_secs(head.horizon),
        covered_until: UnixTime::from_secs(head.covered_until),
        filter,
        chunk_bytes: head.chunk_bytes,
        artifacts,
    };
    check_index(&index)?;
    Ok(index)
}

fn check_index(index: &Index) -> Result<(), WireError> {
    let chunk_bytes = index.chunk_bytes as usize;
    if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes) {
        return Err(WireError::Range { field: "chunk size" });
    }
    if !index.artifacts.is_sorted_by(|a, b| a.artifact < b.artifact) {
        return Err(WireError::Order { field: "artifacts" });
    }
    index.artifacts.iter().try_for_each(|summary| {
        if summary.bytes > ARTIFACT_BYTES_MAX {
            return Err(WireError::Range { field: "bytes of an artifact" });
        }
        if summary.entries > BASE_ENTRIES_MAX {
            return Err(WireError::Range { field: "entries of an artifact" });
        }
        if summary.pages.len() as u64 != summary.page_count(index.chunk_bytes) {
            return Err(WireError::Range { field: "pages of an artifact" });
        }
        Ok(())
    })
}

/// ```text
/// offset  size  chunk
/// 0       4     term
/// 4       8     epoch
/// 12      1     artifact: 1 filter, 2 list, 3 exceptions, 4 cutoffs
/// 13      1     layer: 0 content, 1 page of digests
/// 14      4     number, from 0
/// 18            content
/// ```
#[derive(Encode, Decode)]
struct ChunkHead {
    term: u32,
    epoch: u64,
    artifact: u8,
    layer: u8,
    number: u32,
}

/// Encodes a chunk.
pub fn encode_chunk(chunk: &Chunk<'_>) -> Result<Vec<u8>, WireError> {
    count("content", chunk.content.len(), CHUNK_BYTES_MAX)?;
    let mut out = Sink::default();
    out.put(ChunkHead {
        term: chunk.term.0,
        epoch: chunk.epoch.0,
        artifact: chunk.artifact as u8,
        layer: chunk.layer as u8,
        number: chunk.number,
    })?;
    out.extend(chunk.content);
    Ok(out.into_bytes())
}

/// Decodes a chunk; its content stays where it is.
pub fn decode_chunk(body: &[u8]) -> Result<Chunk<'_>, WireError> {
    let mut rest = body;
    let head: ChunkHead = take(&mut rest)?;
    count("content", rest.len(), CHUNK_BYTES_MAX)?;
    Ok(Chunk {
        term: Term(head.term),
        epoch: Epoch(head.epoch),
        artifact: Artifact::from_number(head.artifact).ok_or(WireError::Range { field: "artifact" })?,
        layer: Layer::from_number(head.layer).ok_or(WireError::Range { field: "layer" })?,
        number: head.number,
        content: rest,
    })
}

/// ```text
/// offset  size  delta
/// 0       4     term
/// 4       8     from
/// 12      8     to
/// 20      8     issued-at, milliseconds
/// 28      8     gc_horizon, seconds
/// 36      4     a, number revoked
/// 40      4     b, number reinstated
/// 44      2     c, number of cutoffs
/// 46      2     d, number of lifts
/// 48            the revoked, Rice coded (see `rice`), padded to a byte
///               the reinstated, likewise
///         17 c  cutoffs: kind of scope (1), scope (8), not-before (8); ascending
///         9 d   lifts: kind of scope (1), scope (8); ascending
/// ```
#[derive(Encode, Decode)]
struct DeltaHead {
    term: u32,
    from: u64,
    to: u64,
    issued_at: u64,
    horizon: u64,
    revoked: u32,
    reinstated: u32,
    cutoffs: u16,
    lifts: u16,
}

/// Encodes a delta whose fingerprints have this width.
pub fn encode_delta(delta: &Delta, width: Width) -> Result<Vec<u8>, WireError> {
    check_delta(delta)?;
    let mut out = Sink::default();
    out.put(DeltaHead {
        term: delta.term.0,
        from: delta.from.0,
        to: delta.to.0,
        issued_at: delta.issued_at.millis(),
        horizon: delta.horizon.secs(),
        revoked: delta.revoked.len() as u32,
        reinstated: delta.reinstated.len() as u32,
        cutoffs: delta.cutoffs.len() as u16,
        lifts: delta.lifts.len() as u16,
    })?;
    put_fingerprints(&mut out, &delta.revoked, width)?;
    put_fingerprints(&mut out, &delta.reinstated, width)?;
    for cutoff in &delta.cutoffs {
        put_cutoff(&mut out, cutoff)?;
    }
    for lift in &delta.lifts {
        out.put((lift.kind as u8, lift.name))?;
    }
    Ok(out.into_bytes())
}

/// Decodes a delta whose fingerprints have this width.
pub fn decode_delta(mut body: &[u8], width: Width) -> Result<Delta, WireError> {
    let body = &mut body;
    let head: DeltaHead = take(body)?;
    count("cutoffs", head.cutoffs.into(), CUTOFFS_MAX)?;
    count("lifts", head.lifts.into(), CUTOFFS_MAX)?;
    let revoked = take_fingerprints(body, head.revoked, width)?;
    let reinstated = take_fingerprints(body, head.reinstated, width)?;
    let cutoffs = (0..head.cutoffs).map(|_| take_cutoff(body)).collect::<Result<_, _>>()?;
    let lifts = (0..head.lifts)
        .map(|_| {
            let (kind, name) = take(body)?;
            scope(kind, name)
        })
        .collect::<Result<_, _>>()?;
    finish(body)?;
    let delta = Delta {
        term: Term(head.term),
        from: Sequence(head.from),
        to: Sequence(head.to),
        issued_at: UnixMillis::from_millis(head.issued_at),
        horizon: UnixTime::from_secs(head.horizon),
        revoked,
        reinstated,
        cutoffs,
        lifts,
    };
    check_delta(&delta)?;
    Ok(delta)
}

fn check_delta(delta: &Delta) -> Result<(), WireError> {
    if delta.from >= delta.to {
        return Err(WireError::Range { field: "range of a delta" });
    }
    count("cutoffs", delta.cutoffs.len(), CUTOFFS_MAX)?;
    count("lifts", delta.lifts.len(), CUTOFFS_MAX)?;
    ascending("revoked", &delta.revoked)?;
    ascending("reinstated", &delta.reinstated)?;
    ascending("lifts", &delta.lifts)?;
    ascending_cutoffs(&delta.cutoffs)?;
    // A key has one state as of `to`; a delta that says both says nothing.
    let both = delta.reinstated.iter().any(|key| delta.revoked.binary_search(key).is_ok())
        || delta.lifts.iter().any(|lift| delta.cutoffs.binary_search_by_key(lift, |cutoff| cutoff.scope).is_ok());
    if both { Err(WireError::Order { field: "a key stated twice" }) } else { Ok(()) }
}

/// Each scope once, ascending.
fn ascending_cutoffs(cutoffs: &[Cutoff]) -> Result<(), WireError> {
    if cutoffs.is_sorted_by(|a, b| a.scope < b.scope) { Ok(()) } else { Err(WireError::Order { field: "cutoffs" }) }
}

fn take_fingerprints(body: &mut &[u8], count: u32, width: Width) -> Result<Vec<Fingerprint>, WireError> {
    let (list, rest) = rice::decode_prefix(body, u64::from(count), width)
        .map_err(|_| WireError::Range { field: "a coded list of fingerprints" })?;
    *body = rest;
    Ok(list)
}

fn put_fingerprints(out: &mut Sink, list: &[Fingerprint], width: Width) -> Result<(), WireError> {
    let coded = rice::encode(list, width).map_err(|_| WireError::Range { field: "fingerprints" })?;
    out.extend(&coded);
    Ok(())
}

fn put_cutoff(out: &mut Sink, cutoff: &Cutoff) -> Result<(), WireError> {
    out.put((cutoff.scope.kind as u8, cutoff.scope.name, cutoff.not_before.secs()))
}

fn take_cutoff(body: &mut &[u8]) -> Result<Cutoff, WireError> {
    let (kind, name, not_before) = take(body)?;
    Ok(Cutoff { scope: scope(kind, name)?, not_before: UnixTime::from_secs(not_before) })
}

fn scope(kind: u8, name: u64) -> Result<Scope, WireError> {
    let kind = ScopeKind::from_number(kind).ok_or(WireError::Range { field: "kind of scope" })?;
    if kind == ScopeKind::Realm && name != 0 {
        return Err(WireError::Range { field: "scope of the whole realm" });
    }
    Ok(Scope { kind, name })
}

/// Encodes the cutoffs artifact: cutoffs as in a delta, nothing else.
pub fn encode_cutoffs(cutoffs: &[Cutoff]) -> Result<Vec<u8>, WireError> {
    count("cutoffs", cutoffs.len(), CUTOFFS_MAX)?;
    ascending_cutoffs(cutoffs)?;
    let mut out = Sink::default();
    cutoffs.iter().try_for_each(|cutoff| put_cutoff(&mut out, cutoff))?;
    Ok(out.into_bytes())
}

/// Decodes the cutoffs artifact.
pub fn decode_cutoffs(mut bytes: &[u8]) -> Result<Vec<Cutoff>, WireError> {
    count("cutoffs", bytes.len() / CUTOFF_BYTES, CUTOFFS_MAX)?;
    let mut cutoffs = Vec::with_capacity(bytes.len() / CUTOFF_BYTES);
    while !bytes.is_empty() {
        cutoffs.push(take_cutoff(&mut bytes)?);
    }
    ascending_cutoffs(&cutoffs)?;
    Ok(cutoffs)
}

/// Bytes of the exceptions artifact before its keys.
///
/// ```text
/// offset  size  exceptions
/// 0       32    SHA-256 of the filter artifact that they belong to
/// 32      4     draw, which with the epoch's salt says how fingerprints are cut
/// 36      1     width of the keys, 1 to 64
/// 37            the keys, Rice coded (see `rice`), padded to a byte
/// ```
pub const EXCEPTIONS_HEAD_BYTES: usize = 37;

/// Encodes the head of the exceptions artifact.
pub fn encode_exceptions_head(filter: &Digest, cut: &ExceptionCut) -> Result<Vec<u8>, WireError> {
    let mut out = Sink::default();
    out.put((filter.0, cut.draw(), cut.width().bits() as u8))?;
    Ok(out.into_bytes())
}

/// Decodes the head of the exceptions artifact: the filter they belong to, and how they were cut.
pub fn decode_exceptions_head(
    salt: Salt,
    head: &[u8; EXCEPTIONS_HEAD_BYTES],
) -> Result<(Digest, ExceptionCut), WireError> {
    let (filter, draw, width) = take(&mut head.as_slice())?;
    let width = Width::cut(width).ok_or(WireError::Range { field: "width of the exceptions" })?;
    Ok((Digest(filter), ExceptionCut::new(salt, draw, width)))
}

/// ```text
/// offset  size  report
/// 0       4     term
/// 4       8     epoch
/// 12      8     sequence
/// 20      8     age, milliseconds; all ones without a proof of currency
/// 28      1     profile: 1 filter, 2 list, 3 exact, 4 covered, 5 folded, 6 folded twice
/// 29      8     bytes of memory
/// 37      8     refusals since the start
/// 45      1     last refusal; 255 for none
/// ```
#[derive(Encode, Decode)]
struct ReportBody {
    term: u32,
    epoch: u64,
    sequence: u64,
    age: u64,
    profile: u8,
    memory_bytes: u64,
    refusals: u64,
    last_refusal: u8,
}

/// Encodes a report.
pub fn encode_report(report: &Report) -> Result<Vec<u8>, WireError> {
    let mut out = Sink::default();
    out.put(ReportBody {
        term: report.term.0,
        epoch: report.position.epoch.0,
        sequence: report.position.sequence.0,
        age: report.age.map_or(u64::MAX, |age| age.as_millis().min(u128::from(u64::MAX - 1)) as u64),
        profile: report.profile,
        memory_bytes: report.memory_bytes,
        refusals: report.refusals,
        last_refusal: report.last_refusal.unwrap_or(u8::MAX),
    })?;
    Ok(out.into_bytes())
}

/// Decodes a report.
pub fn decode_report(mut body: &[u8]) -> Result<Report, WireError> {
    let head: ReportBody = take(&mut body)?;
    finish(body)?;
    Ok(Report {
        term: Term(head.term),
        position: Position { epoch: Epoch(head.epoch), sequence: Sequence(head.sequence) },
        age: (head.age != u64::MAX).then(|| Duration::from_millis(head.age)),
        profile: head.profile,
        memory_bytes: head.memory_bytes,
        refusals: head.refusals,
        last_refusal: (head.last_refusal != u8::MAX).then_some(head.last_refusal),
    })
}

/// ```text
/// offset  size  ask
/// 0       16    nonce
/// 16      8     fingerprint
/// 24      8     exp, seconds
/// 32      1     flags: 1 iat, 2 sub, 4 kid, 8 client
/// 33      8     iat, seconds
/// 41      8     scope of the sub
/// 49      8     scope of the kid
/// 57      8     scope of the client
/// 65      1     d, bytes of the device id, 1 to 64
/// 66      d     device id, [A-Za-z0-9._-]
/// ```
///
/// A field whose flag is not set is zero.
#[derive(Encode, Decode)]
struct QuestionHead {
    nonce: Nonce,
    fingerprint: u64,
    exp: u64,
    flags: u8,
    iat: u64,
    sub: u64,
    kid: u64,
    client: u64,
    device: u8,
}

const HAS_IAT: u8 = 1;
const HAS_SUB: u8 = 2;
const HAS_KID: u8 = 4;
const HAS_CLIENT: u8 = 8;

/// Encodes a question.
pub fn encode_question(question: &Question) -> Result<Vec<u8>, WireError> {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let mut out = Sink::default();
    out.put(QuestionHead {
        nonce: question.nonce,
        fingerprint: question.fingerprint.bits(),
        exp: question.exp.secs(),
        flags: flag(question.iat.is_some(), HAS_IAT)
            | flag(question.sub.is_some(), HAS_SUB)
            | flag(question.kid.is_some(), HAS_KID)
            | flag(question.client.is_some(), HAS_CLIENT),
        iat: question.iat.unwrap_or_default().secs(),
        sub: question.sub.unwrap_or_default(),
        kid: question.kid.unwrap_or_default(),
        client: question.client.unwrap_or_default(),
        device: question.device.as_bytes().len() as u8,
    })?;
    out.extend(question.device.as_bytes());
    Ok(out.into_bytes())
}

/// Decodes a question about a fingerprint of this width.
pub fn decode_question(mut body: &[u8], width: Width) -> Result<Question, WireError> {
    let head: QuestionHead = take(&mut body)?;
    let device = take_device(body, head.device)?;
    if head.flags & !(HAS_IAT | HAS_SUB | HAS_KID | HAS_CLIENT) != 0 {
        return Err(WireError::Range { field: "flags of a question" });
    }
    let field = |bit: u8, value: u64| match head.flags & bit {
        0 if value == 0 => Ok(None),
        0 => Err(WireError::Range { field: "a field that is not there" }),
        _ => Ok(Some(value)),
    };
    Ok(Question {
        device,
        nonce: head.nonce,
        fingerprint: fingerprint(head.fingerprint, width)?,
        iat: field(HAS_IAT, head.iat)?.map(UnixTime::from_secs),
        exp: UnixTime::from_secs(head.exp),
        sub: field(HAS_SUB, head.sub)?,
        kid: field(HAS_KID, head.kid)?,
        client: field(HAS_CLIENT, head.client)?,
    })
}

/// ```text
/// offset  size  answer
/// 0       16    nonce of the question
/// 16      8     fingerprint
/// 24      1     finding: 0 not revoked, 1 revoked by its jti, 2 by a cutoff, 3 expired
/// 25      1     kind of scope of the cutoff; 0 without one
/// 26      8     not-before of the cutoff, seconds; 0 without one
/// 34      4     term
/// 38      8     sequence
/// 46      8     issued-at, milliseconds
/// 54      8     gc_horizon, seconds
/// 62      1     d, bytes of the device id, 1 to 64
/// 63      d     device id, [A-Za-z0-9._-]
/// ```
#[derive(Encode, Decode)]
struct AnswerHead {
    nonce: Nonce,
    fingerprint: u64,
    finding: u8,
    scope: u8,
    not_before: u64,
    term: u32,
    sequence: u64,
    issued_at: u64,
    horizon: u64,
    device: u8,
}

/// Encodes an answer.
pub fn encode_answer(answer: &Answer) -> Result<Vec<u8>, WireError> {
    let (finding, scope, not_before) = match answer.finding {
        Finding::NotRevoked => (0, 0, 0),
        Finding::Revoked { why: Why::Token } => (1, 0, 0),
        Finding::Revoked { why: Why::Cutoff { scope, not_before } } => (2, scope as u8, not_before.secs()),
        Finding::Revoked { why: Why::Expired { horizon } } if horizon == answer.horizon => (3, 0, 0),
        Finding::Revoked { why: Why::Expired { .. } } => {
            return Err(WireError::Range { field: "horizon of a finding" });
        }
    };
    let mut out = Sink::default();
    out.put(AnswerHead {
        nonce: answer.nonce,
        fingerprint: answer.fingerprint.bits(),
        finding,
        scope,
        not_before,
        term: answer.term.0,
        sequence: answer.sequence.0,
        issued_at: answer.issued_at.millis(),
        horizon: answer.horizon.secs(),
        device: answer.device.as_bytes().len() as u8,
    })?;
    out.extend(answer.device.as_bytes());
    Ok(out.into_bytes())
}

/// Decodes an answer about a fingerprint of this width.
pub fn decode_answer(mut body: &[u8], width: Width) -> Result<Answer, WireError> {
    let head: AnswerHead = take(&mut body)?;
    let device = take_device(body, head.device)?;
    let horizon = UnixTime::from_secs(head.horizon);
    let finding = match (head.finding, head.scope, head.not_before) {
        (0, 0, 0) => Finding::NotRevoked,
        (1, 0, 0) => Finding::Revoked { why: Why::Token },
        (2, scope, not_before) => {
            let scope = ScopeKind::from_number(scope).ok_or(WireError::Range { field: "kind of scope" })?;
            Finding::Revoked { why: Why::Cutoff { scope, not_before: UnixTime::from_secs(not_before) } }
        }
        (3, 0, 0) => Finding::Revoked { why: Why::Expired { horizon } },
        (_, _, _) => return Err(WireError::Range { field: "finding" }),
    };
    Ok(Answer {
        device,
        nonce: head.nonce,
        fingerprint: fingerprint(head.fingerprint, width)?,
        finding,
        term: Term(head.term),
        sequence: Sequence(head.sequence),
        issued_at: UnixMillis::from_millis(head.issued_at),
        horizon,
    })
}

/// ```text
/// offset  size  renew
/// 0       8     counter, above 0
/// 8       16    nonce
/// 24      8     at, milliseconds
/// 32      1     d, bytes of the device id, 1 to 64
/// 33      d     device id, [A-Za-z0-9._-]
/// ```
#[derive(Encode, Decode)]
struct RenewHead {
    counter: u64,
    nonce: Nonce,
    at: u64,
    device: u8,
}

/// Encodes a request for a new token.
pub fn encode_renew(renew: &Renew) -> Result<Vec<u8>, WireError> {
    if renew.counter == 0 {
        return Err(WireError::Range { field: "counter" });
    }
    let mut out = Sink::default();
    out.put(RenewHead {
        counter: renew.counter,
        nonce: renew.nonce,
        at: renew.at.millis(),
        device: renew.device.as_bytes().len() as u8,
    })?;
    out.extend(renew.device.as_bytes());
    Ok(out.into_bytes())
}

/// Decodes a request for a new token.
pub fn decode_renew(mut body: &[u8]) -> Result<Renew, WireError> {
    let head: RenewHead = take(&mut body)?;
    if head.counter == 0 {
        return Err(WireError::Range { field: "counter" });
    }
    let (device, rest) = split_device(body, head.device)?;
    finish(rest)?;
    Ok(Renew { device, counter: head.counter, nonce: head.nonce, at: UnixMillis::from_millis(head.at) })
}

/// ```text
/// offset  size  delivery
/// 0       8     issued-at, milliseconds
/// 8       1     flags: 1 nonce, 2 enclosed
/// 9       16    nonce of the request that it answers; 0 without one
/// 25      1     d, bytes of the device id, 1 to 64
/// 26      d     device id, [A-Za-z0-9._-]
///               content: a notice, if it is clear; if it is enclosed, an encapsulated key (32) and a notice encrypted
///               with its tag (16 more), see `envelope`
/// ```
#[derive(Encode, Decode)]
struct DeliveryHead {
    issued_at: u64,
    flags: u8,
    nonce: Nonce,
    device: u8,
}

const HAS_NONCE: u8 = 1;
const IS_ENCLOSED: u8 = 2;

/// Encodes a delivery.
pub fn encode_delivery(delivery: &Delivery) -> Result<Vec<u8>, WireError> {
    check_delivery(delivery)?;
    let mut out = Sink::default();
    out.put(DeliveryHead {
        issued_at: delivery.issued_at.millis(),
        flags: if delivery.nonce.is_some() { HAS_NONCE } else { 0 } | if delivery.enclosed { IS_ENCLOSED } else { 0 },
        nonce: delivery.nonce.unwrap_or_default(),
        device: delivery.device.as_bytes().len() as u8,
    })?;
    out.extend(delivery.device.as_bytes());
    out.extend(&delivery.content);
    Ok(out.into_bytes())
}

/// Decodes a delivery; its content stays as it is.
pub fn decode_delivery(mut body: &[u8]) -> Result<Delivery, WireError> {
    let head: DeliveryHead = take(&mut body)?;
    let nonce = match head.flags & HAS_NONCE {
        0 if head.nonce != [0; 16] => return Err(WireError::Range { field: "a field that is not there" }),
        0 => None,
        _ => Some(head.nonce),
    };
    if head.flags & !(HAS_NONCE | IS_ENCLOSED) != 0 {
        return Err(WireError::Range { field: "flags of a delivery" });
    }
    let (device, content) = split_device(body, head.device)?;
    count("content", content.len(), DELIVERY_CONTENT_BYTES_MAX)?;
    let delivery = Delivery {
        device,
        issued_at: UnixMillis::from_millis(head.issued_at),
        nonce,
        enclosed: head.flags & IS_ENCLOSED != 0,
        content: content.to_vec(),
    };
    check_delivery(&delivery)?;
    Ok(delivery)
}

fn check_delivery(delivery: &Delivery) -> Result<(), WireError> {
    count("content", delivery.content.len(), DELIVERY_CONTENT_BYTES_MAX)?;
    let least = if delivery.enclosed { ENCLOSURE_BYTES } else { 0 };
    if delivery.content.len() > least { Ok(()) } else { Err(WireError::Short) }
}

/// Encodes what a delivery tells its device.
///
/// ```text
/// offset  size  notice
/// 0       1     1 a token, 2 none
/// 1             a token: the compact JWS, [A-Za-z0-9._-], 1 to 8192 bytes
///         1     none: 1 revoked, 2 cut off, 3 replayed, 4 not held, 5 busy, 6 expired
/// ```
pub fn encode_notice(notice: &Notice) -> Result<Vec<u8>, WireError> {
    let mut out = Sink::default();
    match notice {
        Notice::Token { token } => {
            check_token(token.as_bytes())?;
            out.put(1_u8)?;
            out.extend(token.as_bytes());
        }
        Notice::Refused { why } => out.put((2_u8, *why as u8))?,
    }
    Ok(out.into_bytes())
}

/// Decodes what a delivery tells its device.
pub fn decode_notice(mut bytes: &[u8]) -> Result<Notice, WireError> {
    let kind: u8 = take(&mut bytes)?;
    match kind {
        1 => {
            check_token(bytes)?;
            let token = core::str::from_utf8(bytes).map_err(|_| WireError::Range { field: "token" })?;
            Ok(Notice::Token { token: token.into() })
        }
        2 => {
            let why: u8 = take(&mut bytes)?;
            finish(bytes)?;
            let why = NoRenewal::from_number(why).ok_or(WireError::Range { field: "reason for no token" })?;
            Ok(Notice::Refused { why })
        }
        _ => Err(WireError::Range { field: "kind of notice" }),
    }
}

fn check_token(token: &[u8]) -> Result<(), WireError> {
    count("token", token.len(), TOKEN_BYTES_MAX)?;
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !token.is_empty() && token.iter().all(allowed) { Ok(()) } else { Err(WireError::Range { field: "token" }) }
}

/// Encodes the issuer's public keys.
///
/// ```text
/// offset  size  issuer-keys
/// 0       8     issued-at, milliseconds
/// 8             JSON Web Key Set, UTF-8, 1 to 16384 bytes
/// ```
pub fn encode_issuer_keys(keys: &IssuerKeys) -> Result<Vec<u8>, WireError> {
    check_jwks(&keys.jwks)?;
    let mut out = Sink::default();
    out.put(keys.issued_at.millis())?;
    out.extend(&keys.jwks);
    Ok(out.into_bytes())
}

/// Decodes the issuer's public keys.
pub fn decode_issuer_keys(mut body: &[u8]) -> Result<IssuerKeys, WireError> {
    let issued_at = take(&mut body)?;
    check_jwks(body)?;
    Ok(IssuerKeys { issued_at: UnixMillis::from_millis(issued_at), jwks: body.to_vec() })
}

fn check_jwks(jwks: &[u8]) -> Result<(), WireError> {
    count("issuer keys", jwks.len(), ISSUER_KEYS_BYTES_MAX)?;
    if jwks.is_empty() || core::str::from_utf8(jwks).is_err() {
        return Err(WireError::Range { field: "issuer keys" });
    }
    Ok(())
}

/// A device id at the front, and what follows it.
fn split_device(rest: &[u8], length: u8) -> Result<(DeviceId, &[u8]), WireError> {
    let (device, rest) = rest.split_at_checked(length.into()).ok_or(WireError::Short)?;
    let device = DeviceId::from_bytes(device).map_err(|_| WireError::Range { field: "device id" })?;
    Ok((device, rest))
}

/// A device id that fills the rest of a body.
fn take_device(rest: &[u8], length: u8) -> Result<DeviceId, WireError> {
    let (device, rest) = split_device(rest, length)?;
    finish(rest)?;
    Ok(device)
}

fn fingerprint(bits: u64, width: Width) -> Result<Fingerprint, WireError> {
    Fingerprint::from_bits(bits, width).ok_or(WireError::Range { field: "fingerprint" })
}
