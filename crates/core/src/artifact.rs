//! How an artifact is cut into chunks, named by an index, and put together again.
//!
//! Cutting is a function of the bytes and the index's parameters alone, so whoever holds an artifact
//! can always tell whether it is the one that a signed index names: a device does so when it reads
//! its own disk.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::limits::{ARTIFACT_BYTES_MAX, FETCH_WINDOW};
use crate::position::{Epoch, Term};
use crate::refusal::Refusal;
use crate::seal::{self, Digest, Kind, Sealed};
use crate::token::RealmId;
use crate::update::{Address, Artifact, ArtifactSummary, Chunk, Index, Layer};
use crate::wire::{self, WireError};

/// Bytes of a digest in a page.
const DIGEST_BYTES: usize = 32;

/// Digests that one page holds.
const fn digests_per_page(chunk_bytes: u32) -> u64 {
    chunk_bytes as u64 / DIGEST_BYTES as u64
}

impl ArtifactSummary {
    /// How many chunks the artifact is cut into.
    #[must_use]
    pub const fn chunk_count(&self, chunk_bytes: u32) -> u64 {
        if chunk_bytes == 0 { 0 } else { self.bytes.div_ceil(chunk_bytes as u64) }
    }

    /// How many pages the digests of those chunks are cut into.
    #[must_use]
    pub const fn page_count(&self, chunk_bytes: u32) -> u64 {
        let per_page = digests_per_page(chunk_bytes);
        if per_page == 0 { 0 } else { self.chunk_count(chunk_bytes).div_ceil(per_page) }
    }
}

/// An artifact ready to be published: how the index names it, and the sealed chunks and pages.
#[derive(Clone, Debug)]
pub struct Cut {
    /// For the index.
    pub summary: ArtifactSummary,
    /// For the broker: chunks first, then pages.
    pub objects: Vec<(Address, Vec<u8>)>,
}

/// Which epoch an artifact belongs to, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutting {
    /// Realm.
    pub realm: RealmId,
    /// Reign of the ledger.
    pub term: Term,
    /// Epoch.
    pub epoch: Epoch,
    /// Bytes of content in each chunk but the last.
    pub chunk_bytes: u32,
}

impl Cutting {
    /// How the artifacts of this index were cut.
    #[must_use]
    pub const fn of(realm: RealmId, index: &Index) -> Self {
        Self { realm, term: index.term, epoch: index.epoch, chunk_bytes: index.chunk_bytes }
    }

    /// Cuts an artifact.
    ///
    /// # Complexity
    ///
    /// One pass and one SHA-256 over the bytes; holds one copy of them.
    pub fn cut(&self, artifact: Artifact, entries: u64, bytes: &[u8]) -> Result<Cut, WireError> {
        let mut digests = Vec::new();
        let mut objects = Vec::new();
        self.layer(artifact, Layer::Content, bytes, |address, sealed| {
            digests.extend_from_slice(&Digest::of(&sealed).0);
            objects.push((address, sealed));
        })?;
        let mut pages = Vec::new();
        self.layer(artifact, Layer::Pages, &digests, |address, sealed| {
            pages.push(Digest::of(&sealed));
            objects.push((address, sealed));
        })?;
        Ok(Cut { summary: ArtifactSummary { artifact, entries, bytes: bytes.len() as u64, pages }, objects })
    }

    /// Whether these bytes are the artifact that `summary` names.
    #[must_use]
    pub fn is_named_by(&self, summary: &ArtifactSummary, bytes: &[u8]) -> bool {
        let mut digests = Vec::new();
        let mut pages = Vec::new();
        bytes.len() as u64 == summary.bytes
            && self
                .layer(summary.artifact, Layer::Content, bytes, |_, sealed| {
                    digests.extend_from_slice(&Digest::of(&sealed).0);
                })
                .is_ok()
            && self
                .layer(summary.artifact, Layer::Pages, &digests, |_, sealed| {
                    pages.push(Digest::of(&sealed));
                })
                .is_ok()
            && pages == summary.pages
    }

    fn layer(
        &self,
        artifact: Artifact,
        layer: Layer,
        bytes: &[u8],
        mut each: impl FnMut(Address, Vec<u8>),
    ) -> Result<(), WireError> {
        let size = slice_bytes(layer, self.chunk_bytes).max(1);
        for (number, content) in bytes.chunks(size).enumerate() {
            let number = number as u32;
            let chunk = Chunk { term: self.term, epoch: self.epoch, artifact, layer, number, content };
            let sealed = seal::seal(Kind::Chunk, &self.realm, &wire::encode_chunk(&chunk)?, &[]);
            each(Address::Chunk { epoch: self.epoch, artifact, layer, number }, sealed);
        }
        Ok(())
    }
}

/// Bytes of content in a full chunk or page.
const fn slice_bytes(layer: Layer, chunk_bytes: u32) -> usize {
    match layer {
        Layer::Content => chunk_bytes as usize,
        Layer::Pages => digests_per_page(chunk_bytes) as usize * DIGEST_BYTES,
    }
}

/// An artifact on its way in: which of its chunks are missing, and which are the right ones. Where the content goes is
/// said by whoever takes them.
#[derive(Debug)]
pub(crate) struct Assembly {
    cutting: Cutting,
    summary: ArtifactSummary,
    /// The digests of the chunks, one after the other.
    digests: Vec<u8>,
    pages: Missing,
    chunks: Missing,
    order: Option<Order>,
}

/// The numbers that have not come yet.
#[derive(Debug)]
struct Missing {
    flags: Vec<bool>,
    left: usize,
}

/// Content that must be taken in order: what came early waits.
#[derive(Debug)]
struct Order {
    next: u32,
    /// Chunks from `next` on that are asked for.
    window: u32,
    waiting: BTreeMap<u32, Vec<u8>>,
}

/// Bytes that may wait for a chunk before them, beside an eighth of the artifact: a download takes little more memory
/// than what it builds.
const WAITING_BYTES: u64 = 32 * 1024;

impl Missing {
    fn new(count: u64) -> Self {
        Self { flags: vec![true; count as usize], left: count as usize }
    }

    fn has(&self, number: u32) -> bool {
        self.flags.get(number as usize).copied().unwrap_or(false)
    }

    fn came(&mut self, number: u32) {
        if let Some(missing) = self.flags.get_mut(number as usize)
            && core::mem::take(missing)
        {
            self.left -= 1;
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.flags.iter().enumerate().filter(|(_, missing)| **missing).map(|(number, _)| number as u32)
    }
}

impl Assembly {
    /// Prepares to take an artifact; its size was checked against the device's means before. `ordered` says whether
    /// its content must be taken in order.
    pub(crate) fn new(cutting: Cutting, summary: ArtifactSummary, ordered: bool) -> Result<Self, Refusal> {
        if summary.bytes > ARTIFACT_BYTES_MAX {
            return Err(Refusal::TooLarge { bytes: summary.bytes, max: ARTIFACT_BYTES_MAX });
        }
        let chunks = summary.chunk_count(cutting.chunk_bytes);
        let waiting = (WAITING_BYTES + summary.bytes / 8) / u64::from(cutting.chunk_bytes.max(1));
        let window = 1 + waiting.min(FETCH_WINDOW as u64 - 1) as u32;
        Ok(Self {
            digests: vec![0; chunks as usize * DIGEST_BYTES],
            pages: Missing::new(summary.page_count(cutting.chunk_bytes)),
            chunks: Missing::new(chunks),
            order: ordered.then_some(Order { next: 0, window, waiting: BTreeMap::new() }),
            cutting,
            summary,
        })
    }

    /// Which artifact it is.
    pub(crate) const fn artifact(&self) -> Artifact {
        self.summary.artifact
    }

    /// What to ask for: pages, then the chunks whose digests are known and for which there is room.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = Address> {
        let per_page = self.per_page();
        let address = |layer, number| Address::Chunk {
            epoch: self.cutting.epoch,
            artifact: self.summary.artifact,
            layer,
            number,
        };
        let end = self.order.as_ref().map_or(u32::MAX, |order| order.next.saturating_add(order.window));
        let pages = self.pages.numbers().map(move |number| address(Layer::Pages, number));
        let chunks = self
            .chunks
            .numbers()
            .take_while(move |number| *number < end)
            .filter(move |number| !self.pages.has(number / per_page))
            .map(move |number| address(Layer::Content, number));
        pages.chain(chunks)
    }

    /// Takes in a chunk or page, if it is the one that was named and still missing; content goes to `deliver`, with
    /// the offset at which it begins.
    pub(crate) fn accept(
        &mut self,
        layer: Layer,
        number: u32,
        sealed: &[u8],
        deliver: impl FnMut(u64, &[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let (digest, what, missing) = match layer {
            Layer::Pages => (self.summary.pages.get(number as usize).copied(), "a page", self.pages.has(number)),
            Layer::Content => (self.digest(number), "a chunk", self.chunks.has(number)),
        };
        let Some(digest) = digest.filter(|_| missing) else { return Ok(()) };
        let body = Sealed::expect(sealed, &self.cutting.realm, Kind::Chunk)?.by_digest(&digest, what)?;
        let chunk = body.try_map(wire::decode_chunk)?.into_inner();
        let belongs = chunk.term == self.cutting.term
            && chunk.epoch == self.cutting.epoch
            && chunk.artifact == self.summary.artifact
            && chunk.layer == layer
            && chunk.number == number;
        let whole = match layer {
            Layer::Pages => self.digests.len() as u64,
            Layer::Content => self.summary.bytes,
        };
        let slice = slice_bytes(layer, self.cutting.chunk_bytes) as u64;
        let begin = u64::from(number) * slice;
        if !belongs || chunk.content.len() as u64 != whole.saturating_sub(begin).min(slice) {
            return Err(Refusal::MixAndMatch { what });
        }
        match layer {
            Layer::Pages => {
                for (to, from) in self.digests.iter_mut().skip(begin as usize).zip(chunk.content) {
                    *to = *from;
                }
                self.pages.came(number);
                Ok(())
            }
            Layer::Content => self.take(number, slice, chunk.content, deliver),
        }
    }

    fn take(
        &mut self,
        number: u32,
        slice: u64,
        content: &[u8],
        mut deliver: impl FnMut(u64, &[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some(order) = &mut self.order else {
            self.chunks.came(number);
            return deliver(u64::from(number) * slice, content);
        };
        // What nobody asked for finds no room; it will be asked for.
        if number >= order.next.saturating_add(order.window) {
            return Ok(());
        }
        self.chunks.came(number);
        if number != order.next {
            order.waiting.insert(number, content.to_vec());
            return Ok(());
        }
        deliver(u64::from(number) * slice, content)?;
        order.next += 1;
        while let Some(content) = order.waiting.remove(&order.next) {
            deliver(u64::from(order.next) * slice, &content)?;
            order.next += 1;
        }
        Ok(())
    }

    /// Whether all of it is there.
    pub(crate) const fn is_complete(&self) -> bool {
        self.chunks.left == 0
    }

    fn per_page(&self) -> u32 {
        digests_per_page(self.cutting.chunk_bytes).max(1) as u32
    }

    fn digest(&self, number: u32) -> Option<Digest> {
        if self.pages.has(number / self.per_page()) {
            return None;
        }
        let (digests, _) = self.digests.as_chunks::<DIGEST_BYTES>();
        digests.get(number as usize).copied().map(Digest)
    }
}
