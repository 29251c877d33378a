//! Nothing is signed before it was read back with the device's own decoder.
//!
//! A body becomes a [`Proven`] one only here, by decoding it as a device does and asking it about
//! every live revocation; and only a proven body is sealed. An encoder that breaks stops publication
//! instead of telling a fleet that a revoked token is good.

use revocast_core::artifact::{Cut, Cutting};
use revocast_core::update::{Artifact, Layer};
use revocast_core::{
    Address, Base, Cutoff, Delta, Digest, Fingerprint, Index, Kind, Manifest, Profile, RealmId, Refusal, Sealed,
    SigningKey, Width, seal, wire,
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
    /// A good token that the filter flags would not have been found among the exceptions.
    #[error("a device with profile covered would take a good token for a revoked one")]
    NotExcepted,
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

/// What an epoch was built from: what a device must find in it.
#[derive(Clone, Copy, Debug)]
pub struct Meant<'a> {
    /// Which realm.
    pub realm: RealmId,
    /// Width of its fingerprints.
    pub width: Width,
    /// Every live revocation, sorted.
    pub revoked: &'a [Fingerprint],
    /// Every registered good token that the filter matches.
    pub excepted: &'a [Fingerprint],
    /// Every cutoff in force, sorted by scope.
    pub cutoffs: &'a [Cutoff],
}

/// Proves an index and everything it names: the chunks are put together again, every live revocation is looked up in
/// what each profile would build from them, and so is every excepted token where there are exceptions.
pub fn index(body: Vec<u8>, index: &Index, cuts: &[Cut], meant: &Meant<'_>) -> Result<Proven, ProofError> {
    let kind = Kind::Index;
    let refused = |cause: Refusal| ProofError::Refused { kind, cause };
    let read = wire::decode_index(&body).map_err(|error| refused(error.into()))?;
    if read != *index {
        return Err(ProofError::Different { kind });
    }
    let cutting = Cutting::of(meant.realm, &read);
    let mut artifacts = Vec::new();
    for summary in &read.artifacts {
        artifacts.push((summary.artifact, assemble(&read, cutting, cuts, summary.artifact)?));
    }
    for profile in Profile::BEST_FIRST {
        let held = |artifact: &Artifact| artifacts.iter().any(|(offered, _)| offered == artifact);
        if profile == Profile::Covered && !profile.artifacts().iter().all(held) {
            continue;
        }
        let needed = artifacts.iter().filter(|(artifact, _)| profile.artifacts().contains(artifact));
        let needed: Vec<(Artifact, &[u8])> = needed.map(|(artifact, (_, bytes))| (*artifact, &bytes[..])).collect();
        let base = Base::build(profile, &read, meant.width, &needed).map_err(refused)?;
        if base.profile() != profile {
            return Err(ProofError::Different { kind });
        }
        if !meant.revoked.iter().all(|key| base.may_hold(*key, meant.width)) {
            return Err(ProofError::Missing { profile });
        }
        if profile == Profile::Covered && meant.excepted.iter().any(|key| base.may_hold(*key, meant.width)) {
            return Err(ProofError::NotExcepted);
        }
    }
    let entries = |artifact| artifacts.iter().find(|(named, _)| *named == artifact).map(|(_, (entries, _))| *entries);
    // The list is exact both ways; a filter may flag more, at its rate.
    if entries(Artifact::List) != Some(meant.revoked.len() as u64) {
        return Err(ProofError::Different { kind });
    }
    let (_, cutoffs) = assemble(&read, cutting, cuts, Artifact::Cutoffs)?;
    let cutoffs = wire::decode_cutoffs(&cutoffs).map_err(|error| refused(error.into()))?;
    if cutoffs != meant.cutoffs {
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
