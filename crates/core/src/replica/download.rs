//! A base on its way in: index, pages, chunks.

use alloc::vec::Vec;

use super::Config;
use crate::artifact::{Assembly, Cutting};
use crate::base::{Base, BaseBuilder};
use crate::hold::Crowded;
use crate::limits::CUTOFFS_MAX;
use crate::position::{Epoch, Term};
use crate::refusal::Refusal;
use crate::seal::Digest;
use crate::token::{RealmId, Width};
use crate::update::{Address, Artifact, Index, Layer};
use crate::wire::CUTOFF_BYTES;

/// What has arrived of one epoch's base.
#[derive(Debug)]
pub(super) struct Download {
    term: Term,
    epoch: Epoch,
    index_digest: Digest,
    /// What is held of it already, and leaves too little room for what came since.
    crowded: Option<Crowded>,
    parts: Option<Parts>,
    /// Bytes that were named, came, and cannot be used: they would come again.
    broken: bool,
}

#[derive(Debug)]
struct Parts {
    index: Index,
    sealed_index: Vec<u8>,
    builder: BaseBuilder,
    artifacts: Vec<Assembly>,
    cutoffs: Vec<u8>,
}

/// A base that arrived whole.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) index: Index,
    pub(super) sealed_index: Vec<u8>,
    pub(super) base: Base,
    pub(super) cutoffs: Vec<u8>,
}

impl Download {
    pub(super) const fn new(term: Term, epoch: Epoch, index_digest: Digest, crowded: Option<Crowded>) -> Self {
        Self { term, epoch, index_digest, crowded, parts: None, broken: false }
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

    pub(super) const fn awaits_index(&self, epoch: Epoch) -> bool {
        self.epoch.0 == epoch.0 && self.parts.is_none()
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes in the index and decides what to hold of it. No memory is taken for what the device cannot afford.
    pub(super) fn accept_index(
        &mut self,
        config: &Config,
        realm: RealmId,
        width: Width,
        index: Index,
        sealed: &[u8],
    ) -> Result<(), Refusal> {
        let cutting = Cutting::of(realm, &index);
        let profile = config.choose(&index, width, self.crowded)?;
        let artifacts = [Artifact::Cutoffs].iter().chain(profile.artifacts()).map(|&artifact| {
            let summary = index
                .artifacts
                .iter()
                .find(|summary| summary.artifact == artifact)
                .ok_or(Refusal::Malformed { what: "an index without an artifact that every device needs" })?;
            // Before memory is taken: their entries have one size, and so many are allowed.
            let entries = summary.entries.min(CUTOFFS_MAX as u64);
            if artifact == Artifact::Cutoffs && summary.bytes != entries * CUTOFF_BYTES as u64 {
                return Err(Refusal::Malformed { what: "the size of the cutoffs" });
            }
            Assembly::new(cutting, summary.clone(), BaseBuilder::is_ordered(artifact))
        });
        let artifacts = artifacts.collect::<Result<_, _>>()?;
        let builder = BaseBuilder::new(profile, &index, width)?;
        let sealed_index = sealed.to_vec();
        self.parts = Some(Parts { index, sealed_index, builder, artifacts, cutoffs: Vec::new() });
        Ok(())
    }

    pub(super) fn accept_chunk(
        &mut self,
        artifact: Artifact,
        layer: Layer,
        number: u32,
        sealed: &[u8],
    ) -> Result<(), Refusal> {
        let Some(Parts { builder, artifacts, cutoffs, .. }) = &mut self.parts else { return Ok(()) };
        let Some(assembly) = artifacts.iter_mut().find(|assembly| assembly.artifact() == artifact) else {
            return Ok(());
        };
        let broken = &mut self.broken;
        assembly.accept(layer, number, sealed, |offset, content| {
            let taken = match artifact {
                Artifact::Cutoffs => {
                    cutoffs.extend_from_slice(content);
                    Ok(())
                }
                Artifact::Filter | Artifact::List | Artifact::Exceptions => builder.absorb(artifact, offset, content),
            };
            *broken |= taken.is_err();
            taken
        })
    }

    /// What to ask for next, in order.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Address> {
        let index = self.parts.is_none().then_some(Address::Index { epoch: self.epoch });
        let parts = self.parts.iter().flat_map(|parts| parts.artifacts.iter().flat_map(Assembly::wanted));
        // A window's worth is all that is ever asked for at a time.
        index.into_iter().chain(parts).take(crate::limits::FETCH_WINDOW)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts.artifacts.iter().all(Assembly::is_complete))
    }

    /// Ends the base. Every byte was verified against the index before.
    pub(super) fn finish(self) -> Result<Finished, Refusal> {
        let Some(Parts { index, sealed_index, builder, cutoffs, .. }) = self.parts else {
            return Err(Refusal::Malformed { what: "a base without its index" });
        };
        Ok(Finished { base: builder.finish()?, cutoffs, sealed_index, index })
    }
}
