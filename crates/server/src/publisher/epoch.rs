//! An epoch on its way: frozen, built, proven, sealed; apart from the publisher, so that it may take seconds while
//! revocations go on.
//!
//! The order is that of design rule 18. First the entries are frozen and the salt is drawn; then the filter is built,
//! and whoever mints `jti`s avoids it from then on; then the registry is frozen. So a token is in the frozen
//! registry, or was minted clean of this filter, or is not covered.

use std::sync::Arc;

use revocast_core::artifact::{Cut, Cutting};
use revocast_core::update::Artifact;
use revocast_core::{
    Address, Cutoff, Digest, Epoch, FilterBuf, FilterParams, Fingerprint, Index, Membership, Salt, Sequence, Term,
    UnixMillis, UnixTime, exceptions, rice, wire,
};

use super::choice::{Choice, choose};
use super::policy::WATCHED_FROM;
use super::{PublishError, Signer, proof};
use crate::ledger::{Coverage, Realm};

/// Salts that are drawn before an epoch is given up. One that gives twice the rate meant is a fluke of one in many
/// billions, or an attack on the random source.
const SALTS_MAX: usize = 4;

/// What an epoch will be built from, frozen.
#[derive(Debug)]
pub struct Draft {
    pub(super) realm: Realm,
    pub(super) signer: Signer,
    pub(super) term: Term,
    pub(super) epoch: Epoch,
    pub(super) sequence: Sequence,
    pub(super) issued_at: UnixMillis,
    pub(super) horizon: UnixTime,
    pub(super) chunk_bytes: u32,
    pub(super) rate_pinned: Option<f64>,
    /// Sorted.
    pub(super) revoked: Vec<Fingerprint>,
    /// Sorted by scope.
    pub(super) cutoffs: Vec<Cutoff>,
}

/// A draft whose filter is built.
#[derive(Debug)]
pub struct Filtered {
    draft: Draft,
    choice: Choice,
    filter: Arc<FilterBuf>,
    salts_refused: usize,
}

/// An epoch ready to be put on the shelf.
#[derive(Debug)]
pub struct Built {
    pub(super) term: Term,
    pub(super) epoch: Epoch,
    pub(super) index: Index,
    pub(super) sealed: Vec<u8>,
    pub(super) objects: Vec<(Address, Vec<u8>)>,
    pub(super) filter: Arc<FilterBuf>,
    pub(super) choice: Choice,
    pub(super) registered: u64,
    /// Salts that gave a filter which matched twice as often as was meant; an alarm.
    pub(super) salts_refused: usize,
}

impl Draft {
    /// Builds the filter that serves best for this many registered tokens.
    ///
    /// Each salt is drawn now that the entries are frozen, and used for one filter. A filter that matches twice as
    /// often as was meant is thrown away with its salt.
    pub fn filter(self, coverage: &Coverage, mut salt: impl FnMut() -> Salt) -> Result<Filtered, PublishError> {
        let revoked = self.revoked.len() as u64;
        let good = coverage.covered_until.map(|_| coverage.registered.saturating_sub(revoked));
        let choice = choose(revoked, good, self.realm.fingerprinter.width(), self.rate_pinned)?;
        let mut refused = (0.0, choice.rate);
        for salts_refused in 0..SALTS_MAX {
            let params = FilterParams::for_target(revoked, choice.rate, salt())?;
            let filter = FilterBuf::build(params, self.revoked.iter().copied());
            let (measured, meant) = (filter.false_positive_rate(), params.false_positive_rate(revoked));
            if measured <= 2.0 * meant || revoked <= WATCHED_FROM {
                return Ok(Filtered { draft: self, choice, filter: Arc::new(filter), salts_refused });
            }
            tracing::error!(
                realm = %self.realm.id, measured, meant,
                "the filter matches more than twice as often as was meant; drawing another salt"
            );
            refused = (measured, meant);
        }
        let (measured, target) = refused;
        Err(proof::ProofError::Polluted { measured, target }.into())
    }
}

impl Filtered {
    /// The filter: from now on whoever mints avoids it.
    #[must_use]
    pub const fn filter(&self) -> &Arc<FilterBuf> {
        &self.filter
    }

    /// Whether exceptions go with it, so that the registry must be looked through.
    #[must_use]
    pub const fn takes_exceptions(&self) -> bool {
        self.choice.exceptions
    }

    /// Whether a registered token needs an exception: it lives, the filter matches, and it is not revoked.
    ///
    /// A token that shares its fingerprint with a revoked one gets none: nobody could tell the two apart.
    #[must_use]
    pub fn needs_exception(&self, fingerprint: Fingerprint, exp: UnixTime) -> bool {
        self.choice.exceptions
            && exp > self.draft.horizon
            && self.filter.query(fingerprint) == Membership::Possible
            && self.draft.revoked.binary_search(&fingerprint).is_err()
    }

    /// Builds, proves and seals everything. `excepted` are the tokens for which [`Filtered::needs_exception`] is true
    /// among all that were registered when `coverage` was read, or more of them.
    pub fn build(self, coverage: &Coverage, mut excepted: Vec<Fingerprint>) -> Result<Built, PublishError> {
        let Self { draft, choice, filter, salts_refused } = self;
        let width = draft.realm.fingerprinter.width();
        let cutting =
            Cutting { realm: draft.realm.id, term: draft.term, epoch: draft.epoch, chunk_bytes: draft.chunk_bytes };
        let entries = draft.revoked.len() as u64;
        let filter_bytes = filter.to_bytes();
        let list = rice::encode(&draft.revoked, width)?;
        let covered_until = coverage.covered_until.filter(|_| choice.exceptions);
        let mut cuts =
            vec![cutting.cut(Artifact::Filter, entries, &filter_bytes)?, cutting.cut(Artifact::List, entries, &list)?];
        excepted.sort_unstable();
        excepted.dedup();
        if covered_until.is_some() {
            let digest = Digest::of(&filter_bytes);
            let coded = exceptions::encode(&digest, filter.params().salt(), &excepted, &draft.revoked)?;
            cuts.push(cutting.cut(Artifact::Exceptions, coded.entries, &coded.bytes)?);
        }
        let cutoffs = wire::encode_cutoffs(&draft.cutoffs)?;
        cuts.push(cutting.cut(Artifact::Cutoffs, draft.cutoffs.len() as u64, &cutoffs)?);
        let index = Index {
            term: draft.term,
            epoch: draft.epoch,
            sequence: draft.sequence,
            issued_at: draft.issued_at,
            horizon: draft.horizon,
            covered_until: covered_until.unwrap_or_default(),
            filter: *filter.params(),
            chunk_bytes: draft.chunk_bytes,
            artifacts: cuts.iter().map(|cut| cut.summary.clone()).collect(),
        };
        let meant = proof::Meant {
            realm: draft.realm.id,
            width,
            revoked: &draft.revoked,
            excepted: &excepted,
            cutoffs: &draft.cutoffs,
        };
        let proven = proof::index(wire::encode_index(&index)?, &index, &cuts, &meant)?;
        let sealed = proven.seal(&draft.realm.id, &[&draft.signer.content]);
        Ok(Built {
            term: draft.term,
            epoch: draft.epoch,
            index,
            sealed,
            objects: cuts.into_iter().flat_map(|Cut { objects, .. }| objects).collect(),
            filter,
            choice,
            registered: coverage.registered,
            salts_refused,
        })
    }
}
