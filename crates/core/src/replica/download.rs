//! A base on its way in: index, pages, chunks.

use alloc::vec::Vec;

use super::Config;
use crate::artifact::{Assembly, Cutting};
use crate::cutoff::Cutoff;
use crate::position::{Epoch, Term};
use crate::refusal::Refusal;
use crate::seal::Digest;
use crate::set::{Base, Profile};
use crate::state::BaseImage;
use crate::token::{RealmId, Width};
use crate::update::{Address, Artifact, Index, Layer};
use crate::wire;

/// What has arrived of one epoch's base.
#[derive(Debug)]
pub(super) struct Download {
    term: Term,
    epoch: Epoch,
    index_digest: Digest,
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    index: Index,
    sealed_index: Vec<u8>,
    artifact: Assembly,
    cutoffs: Assembly,
}

/// A base that arrived whole, and the image of it.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) index: Index,
    pub(super) image: Vec<u8>,
    pub(super) base: Base,
    pub(super) cutoffs: Vec<Cutoff>,
}

impl Download {
    pub(super) const fn new(term: Term, epoch: Epoch, index_digest: Digest) -> Self {
        Self { term, epoch, index_digest, parts: None }
    }

    pub(super) const fn term(&self) -> Term {
        self.term
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) const fn index_digest(&self) -> Digest {
        self.index_digest
    }

    pub(super) fn awaits_index(&self, epoch: Epoch) -> bool {
        self.epoch == epoch && self.parts.is_none()
    }

    /// Takes in the index, if the device can afford what it names. No memory is taken before.
    pub(super) fn accept_index(
        &mut self,
        config: &Config,
        realm: RealmId,
        index: Index,
        sealed: &[u8],
    ) -> Result<(), Refusal> {
        let cutting = Cutting::of(realm, &index);
        let assembly = |artifact: Artifact| {
            let summary = index
                .artifacts
                .iter()
                .find(|summary| summary.artifact == artifact)
                .ok_or(Refusal::Malformed { what: "an index without an artifact that every device needs" })?;
            if summary.bytes > config.artifact_bytes_max {
                return Err(Refusal::TooLarge { bytes: summary.bytes, max: config.artifact_bytes_max });
            }
            Assembly::new(cutting, summary.clone())
        };
        let artifact = assembly(config.profile.artifact())?;
        let cutoffs = assembly(Artifact::Cutoffs)?;
        self.parts = Some(Parts { index, sealed_index: sealed.to_vec(), artifact, cutoffs });
        Ok(())
    }

    pub(super) fn accept_chunk(
        &mut self,
        artifact: Artifact,
        layer: Layer,
        number: u32,
        sealed: &[u8],
    ) -> Result<(), Refusal> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        match artifact {
            Artifact::Cutoffs => parts.cutoffs.accept(layer, number, sealed),
            Artifact::Filter | Artifact::List | Artifact::Exceptions => parts.artifact.accept(layer, number, sealed),
        }
    }

    /// What to ask for next, in order.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Address> {
        let index = self.parts.is_none().then_some(Address::Index { epoch: self.epoch });
        let parts = self.parts.iter().flat_map(|parts| parts.cutoffs.wanted().chain(parts.artifact.wanted()));
        // A window's worth is all that is ever asked for at a time.
        index.into_iter().chain(parts).take(crate::limits::FETCH_WINDOW)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts.artifact.is_complete() && parts.cutoffs.is_complete())
    }

    /// Decodes what arrived. Every byte was verified against the index before.
    pub(super) fn finish(self, profile: Profile, width: Width) -> Result<Finished, Refusal> {
        let Some(Parts { index, sealed_index, artifact, cutoffs }) = self.parts else {
            return Err(Refusal::Malformed { what: "a base without its index" });
        };
        let (summary, artifact) = artifact.into_parts();
        let (_, cutoffs) = cutoffs.into_parts();
        let image = BaseImage { index: &sealed_index, artifact: &artifact, cutoffs: &cutoffs }.encode()?;
        let base = Base::build(profile, &index, width, summary.entries, &artifact)?;
        Ok(Finished { base, cutoffs: wire::decode_cutoffs(&cutoffs)?, image, index })
    }
}
