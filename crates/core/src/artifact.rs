//! How an artifact is cut into chunks, named by an index, and put together again.
//!
//! Cutting is a function of the bytes and the index's parameters alone, so whoever holds an artifact
//! can always tell whether it is the one that a signed index names: a device does so when it reads
//! its own disk.

use alloc::vec;
use alloc::vec::Vec;

use crate::limits::ARTIFACT_BYTES_MAX;
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

/// An artifact on its way in. Nothing of it is consulted before all of it is there.
#[derive(Debug)]
pub(crate) struct Assembly {
    cutting: Cutting,
    summary: ArtifactSummary,
    digests: Part,
    content: Part,
}

/// One layer on its way in.
#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    slice: usize,
    missing: Vec<bool>,
    left: usize,
}

impl Part {
    fn new(bytes: usize, slice: usize, count: usize) -> Self {
        Self { bytes: vec![0; bytes], slice, missing: vec![true; count], left: count }
    }

    fn is_missing(&self, number: u32) -> bool {
        self.missing.get(number as usize).copied().unwrap_or(false)
    }

    fn fill(&mut self, number: u32, content: &[u8]) -> bool {
        let begin = number as usize * self.slice;
        let end = self.bytes.len().min(begin + self.slice);
        let Some(place) = self.bytes.get_mut(begin..end) else {
            return false;
        };
        let Some(missing) = self.missing.get_mut(number as usize) else {
            return false;
        };
        if place.len() != content.len() {
            return false;
        }
        place.copy_from_slice(content);
        if core::mem::take(missing) {
            self.left -= 1;
        }
        true
    }

    fn numbers_missing(&self) -> impl Iterator<Item = u32> {
        self.missing.iter().enumerate().filter(|(_, missing)| **missing).map(|(number, _)| number as u32)
    }
}

impl Assembly {
    /// Makes room for an artifact; its size was checked against the device's budget before.
    pub(crate) fn new(cutting: Cutting, summary: ArtifactSummary) -> Result<Self, Refusal> {
        if summary.bytes > ARTIFACT_BYTES_MAX {
            return Err(Refusal::TooLarge { bytes: summary.bytes, max: ARTIFACT_BYTES_MAX });
        }
        let chunks = summary.chunk_count(cutting.chunk_bytes) as usize;
        let pages = summary.page_count(cutting.chunk_bytes) as usize;
        Ok(Self {
            digests: Part::new(chunks * DIGEST_BYTES, slice_bytes(Layer::Pages, cutting.chunk_bytes), pages),
            content: Part::new(summary.bytes as usize, slice_bytes(Layer::Content, cutting.chunk_bytes), chunks),
            cutting,
            summary,
        })
    }

    /// What to ask for: pages, then the chunks whose digests are known.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = Address> {
        let per_page = digests_per_page(self.cutting.chunk_bytes).max(1) as u32;
        let address = |layer, number| Address::Chunk {
            epoch: self.cutting.epoch,
            artifact: self.summary.artifact,
            layer,
            number,
        };
        let pages = self.digests.numbers_missing().map(move |number| address(Layer::Pages, number));
        let chunks = self
            .content
            .numbers_missing()
            .filter(move |number| !self.digests.is_missing(number / per_page))
            .map(move |number| address(Layer::Content, number));
        pages.chain(chunks)
    }

    /// Takes in a chunk or page, if it is the one that was named and still missing.
    pub(crate) fn accept(&mut self, layer: Layer, number: u32, sealed: &[u8]) -> Result<(), Refusal> {
        let (digest, what) = match layer {
            Layer::Pages => (self.summary.pages.get(number as usize).copied(), "a page"),
            Layer::Content => (self.digest(number), "a chunk"),
        };
        let Some(digest) = digest else { return Ok(()) };
        let part = match layer {
            Layer::Pages => &mut self.digests,
            Layer::Content => &mut self.content,
        };
        if !part.is_missing(number) {
            return Ok(());
        }
        let body = Sealed::expect(sealed, &self.cutting.realm, Kind::Chunk)?.by_digest(&digest, what)?;
        let chunk = body.try_map(wire::decode_chunk)?.into_inner();
        let belongs = chunk.term == self.cutting.term
            && chunk.epoch == self.cutting.epoch
            && chunk.artifact == self.summary.artifact
            && chunk.layer == layer
            && chunk.number == number;
        if belongs && part.fill(number, chunk.content) { Ok(()) } else { Err(Refusal::MixAndMatch { what }) }
    }

    /// Whether all of it is there.
    pub(crate) const fn is_complete(&self) -> bool {
        self.content.left == 0
    }

    /// The artifact and how the index names it.
    pub(crate) fn into_parts(self) -> (ArtifactSummary, Vec<u8>) {
        (self.summary, self.content.bytes)
    }

    fn digest(&self, number: u32) -> Option<Digest> {
        let per_page = digests_per_page(self.cutting.chunk_bytes).max(1) as u32;
        if self.digests.is_missing(number / per_page) {
            return None;
        }
        let (digests, _) = self.digests.bytes.as_chunks::<DIGEST_BYTES>();
        digests.get(number as usize).copied().map(Digest)
    }
}
