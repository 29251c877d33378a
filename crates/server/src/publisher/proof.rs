//! Nothing is signed before it was read back with the device's own decoder.
//!
//! A body becomes a [`Proven`] one only here, by decoding it as a device does and asking it about
//! every live revocation; and only a proven body is sealed. An encoder that breaks stops publication
//! instead of telling a fleet that a revoked token is good.

use revocast_core::artifact::{Cut, Cutting};
use revocast_core::update::{Artifact, Layer};
use revocast_core::{
    Address, Base, Delta, Digest, Index, Kind, Manifest, Profile, RealmId, Refusal, Sealed, SigningKey, Width, seal,
    wire,
};
use thiserror::Error;

use super::book::Book;

/// A body that a device will understand as it was meant.
#[derive(Debug)]
pub struct Proven {
    kind: Kind,
    body: Vec<u8>,
}

impl Proven {
    /// Signs it.
    #[must_use]
    pub fn seal(&self, realm: &RealmId, keys: &[&SigningKey]) -> Vec<u8> {
        seal(self.kind, realm, &self.body, keys)
    }
}

/// What a device would have understood instead.
#[derive(Debug, Error)]
pub enum ProofError {
    /// It would have refused it.
    #[error("a device would refuse the {kind} that was just encoded")]
    Refused {
        /// What was encoded.
        kind: Kind,
        /// Why.
        #[source]
        cause: Refusal,
    },
    /// It would have read something else.
    #[error("a device would read another {kind} than was meant")]
    Different {
        /// What was encoded.
        kind: Kind,
    },
    /// A live revocation would not have been found.
    #[error("a device with profile {} would miss a live revocation", profile.name())]
    Missing {
        /// By which profile.
        profile: Profile,
    },
    /// The filter would flag far more tokens than it should.
    #[error("the filter flags {measured:.6} of all tokens where {target:.6} was asked for")]
    Polluted {
        /// The rate by its fill.
        measured: f64,
        /// The rate asked for.
        target: f64,
    },
}

/// Proves a delta against the book it was made from.
pub fn delta(body: Vec<u8>, meant: &Delta, book: &Book, width: Width) -> Result<Proven, ProofError> {
    let kind = Kind::Delta;
    let read = wire::decode_delta(&body, width).map_err(|error| ProofError::Refused { kind, cause: error.into() })?;
    let truthful = read.revoked.iter().all(|key| book.is_revoked(*key))
        && !read.reinstated.iter().any(|key| book.is_revoked(*key));
    if read != *meant || !truthful {
        return Err(ProofError::Different { kind });
    }
    Ok(Proven { kind, body })
}

/// Proves a merged delta: it says what the two it was made from say, the later one first.
pub fn merged(body: Vec<u8>, meant: &Delta, width: Width) -> Result<Proven, ProofError> {
    let kind = Kind::Delta;
    let read = wire::decode_delta(&body, width).map_err(|error| ProofError::Refused { kind, cause: error.into() })?;
    if read == *meant { Ok(Proven { kind, body }) } else { Err(ProofError::Different { kind }) }
}

/// Proves a manifest.
pub fn manifest(body: Vec<u8>, meant: &Manifest) -> Result<Proven, ProofError> {
    let kind = Kind::Manifest;
    let read = wire::decode_manifest(&body).map_err(|error| ProofError::Refused { kind, cause: error.into() })?;
    if read == *meant { Ok(Proven { kind, body }) } else { Err(ProofError::Different { kind }) }
}

/// Proves an index and everything it names: the chunks are put together again, and every live
/// revocation is looked up in what each profile would build from them.
pub fn index(
    body: Vec<u8>,
    meant: &Index,
    realm: RealmId,
    cuts: &[Cut],
    book: &Book,
    width: Width,
    target: f64,
) -> Result<Proven, ProofError> {
    let kind = Kind::Index;
    let refused = |cause: Refusal| ProofError::Refused { kind, cause };
    let read = wire::decode_index(&body).map_err(|error| refused(error.into()))?;
    if read != *meant {
        return Err(ProofError::Different { kind });
    }
    let cutting = Cutting::of(realm, &read);
    for profile in [Profile::Exact, Profile::List, Profile::Filter] {
        let (entries, bytes) = assemble(&read, cutting, cuts, profile.artifact())?;
        let base = Base::build(profile, &read, width, entries, &bytes).map_err(refused)?;
        if !book.revoked().into_iter().all(|key| base.may_hold(key, width)) {
            return Err(ProofError::Missing { profile });
        }
        // The list is exact both ways; a filter may flag more, at its rate.
        if profile == Profile::List && entries != book.revoked_len() as u64 {
            return Err(ProofError::Different { kind });
        }
        if let Some(measured) = base.false_positive_rate()
            && profile == Profile::Filter
            && measured > 2.0 * target
            && book.revoked_len() > 64
        {
            return Err(ProofError::Polluted { measured, target });
        }
    }
    let (_, cutoffs) = assemble(&read, cutting, cuts, Artifact::Cutoffs)?;
    let cutoffs = wire::decode_cutoffs(&cutoffs).map_err(|error| refused(error.into()))?;
    if cutoffs != book.cutoffs() {
        return Err(ProofError::Different { kind });
    }
    Ok(Proven { kind, body })
}

/// Puts an artifact together from its sealed chunks, checking each as a device does.
fn assemble(index: &Index, cutting: Cutting, cuts: &[Cut], artifact: Artifact) -> Result<(u64, Vec<u8>), ProofError> {
    let different = || ProofError::Different { kind: Kind::Chunk };
    let refused = |cause: Refusal| ProofError::Refused { kind: Kind::Chunk, cause };
    let summary = index.artifacts.iter().find(|summary| summary.artifact == artifact).ok_or_else(different)?;
    let cut = cuts.iter().find(|cut| cut.summary.artifact == artifact).ok_or_else(different)?;
    let mut content = Vec::new();
    let mut digests = Vec::new();
    let mut named = Vec::new();
    let mut pages = Vec::new();
    for (address, sealed) in &cut.objects {
        let Address::Chunk { layer, .. } = address else { return Err(different()) };
        let chunk = Sealed::expect(sealed, &cutting.realm, Kind::Chunk).map_err(refused)?;
        let chunk = wire::decode_chunk(chunk.unverified_body()).map_err(|error| refused(error.into()))?;
        match layer {
            Layer::Content => {
                content.extend_from_slice(chunk.content);
                digests.extend_from_slice(&Digest::of(sealed).0);
            }
            Layer::Pages => {
                named.extend_from_slice(chunk.content);
                pages.push(Digest::of(sealed));
            }
        }
    }
    let whole = named == digests && pages == summary.pages && cutting.is_named_by(summary, &content);
    if whole { Ok((summary.entries, content)) } else { Err(different()) }
}
