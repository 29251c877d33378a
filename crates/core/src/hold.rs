//! How much memory a device gives to a realm, and what it holds for it.
//!
//! A fixed part of a budget is for keys, manifest and bookkeeping. At least an eighth is kept for what comes after a
//! base. Of the base the best profile is chosen that fits into the rest; what it leaves is for what comes after it.

use thiserror::Error;

use crate::base::Profile;
use crate::cutoff::Cutoff;
use crate::limits::{MEMORY_BUDGET_MIN, RECENT_ENTRIES_MAX};
use crate::recent::ENTRY_BYTES;
use crate::refusal::Refusal;
use crate::token::Width;
use crate::update::{Artifact, Index};
use crate::wire::CUTOFF_BYTES;

/// What a device wants to hold of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// This profile, whatever it takes. Where there are no exceptions, [`Profile::Covered`] is held as a filter.
    Profile(Profile),
    /// The best profile that fits into this many bytes, chosen anew with each epoch. Make one with
    /// [`Config::within`](crate::Config::within), which refuses what nothing fits into.
    ///
    /// It bounds what is held. While a new epoch is on its way the old one goes on answering, so for that time both
    /// are in memory.
    Budget(u64),
}

/// Bytes of a budget that neither base nor recent may take: keys, manifest, bookkeeping.
const FIXED_BYTES: u64 = 6 * 1024;

/// The share of a budget that is kept for what comes after a base.
const RECENT_SHARE: u64 = 8;

/// Entries that even the smallest device holds beside its base.
const RECENT_ENTRIES_MIN: u64 = 32;

impl Hold {
    /// Entries that may be held beside a base of this size: all that it leaves.
    #[must_use]
    pub fn recent_entries_max(self, base_bytes: u64) -> usize {
        match self {
            Self::Profile(_) => RECENT_ENTRIES_MAX,
            Self::Budget(bytes) => {
                let left = bytes.saturating_sub(FIXED_BYTES + base_bytes) / ENTRY_BYTES;
                left.clamp(RECENT_ENTRIES_MIN, RECENT_ENTRIES_MAX as u64) as usize
            }
        }
    }

    /// Bytes that a base may take.
    #[must_use]
    pub fn base_bytes_max(self) -> u64 {
        match self {
            Self::Profile(_) => u64::MAX,
            Self::Budget(bytes) => {
                let recent = (bytes / RECENT_SHARE).max(RECENT_ENTRIES_MIN * ENTRY_BYTES);
                bytes.saturating_sub(FIXED_BYTES + recent.min(RECENT_ENTRIES_MAX as u64 * ENTRY_BYTES))
            }
        }
    }

    /// What to hold of this index.
    pub(crate) fn choose(self, index: &Index, width: Width) -> Result<Profile, Refusal> {
        match self {
            Self::Profile(Profile::Covered) if Profile::Covered.size_bytes(index, width).is_none() => {
                Ok(Profile::Filter)
            }
            Self::Profile(profile) => Ok(profile),
            Self::Budget(budget) => Profile::BEST_FIRST
                .into_iter()
                .find(|profile| self.fits(*profile, index, width))
                .ok_or_else(|| Refusal::TooLarge { bytes: smallest_budget(index, width), max: budget }),
        }
    }

    /// The next profile after this one that leaves more room beside the same index, within a budget: one that takes
    /// less, or one that can be folded into, where that is allowed.
    pub(crate) fn next_roomier(self, crowded: Crowded, index: &Index, width: Width) -> Option<Profile> {
        let Self::Budget(_) = self else { return None };
        let Crowded { profile, may_fold } = crowded;
        let held = profile.size_bytes(index, width)?;
        let after = Profile::BEST_FIRST.into_iter().skip_while(|other| *other != profile).skip(1);
        after.into_iter().find(|other| {
            let folds = may_fold && other.is_filter() && !profile.is_filter();
            other
                .size_bytes(index, width)
                .is_some_and(|bytes| bytes < held || (folds && self.fits(*other, index, width)))
        })
    }

    /// Whether a base of this index that was stored in this profile still fits.
    pub(crate) fn fits(self, stored: Profile, index: &Index, width: Width) -> bool {
        stored.size_bytes(index, width).is_some_and(|bytes| bytes + cutoffs_bytes(index) <= self.base_bytes_max())
    }

    /// Whether a base that was stored in this profile still serves, if it fits.
    pub(crate) fn accepts(self, stored: Profile) -> bool {
        match self {
            // Without exceptions, or with later revocations folded in, a covered base is a filter.
            Self::Profile(Profile::Covered) => matches!(stored, Profile::Covered | Profile::Filter),
            Self::Profile(profile) => profile == stored,
            Self::Budget(_) => true,
        }
    }
}

/// A base beside which what came since found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded {
    /// What is held of it.
    pub(crate) profile: Profile,
    /// Whether later revocations may be folded into a filter.
    pub(crate) may_fold: bool,
}

/// Bytes that the cutoffs of a base take beside it: as they came, decoded, and in force.
fn cutoffs_bytes(index: &Index) -> u64 {
    let cutoffs = index.artifacts.iter().find(|summary| summary.artifact == Artifact::Cutoffs);
    cutoffs.map_or(0, |summary| summary.entries.saturating_mul(CUTOFF_BYTES as u64 + 2 * size_of::<Cutoff>() as u64))
}

/// The smallest budget that can hold something of this index.
#[must_use]
pub fn smallest_budget(index: &Index, width: Width) -> u64 {
    let sizes = Profile::BEST_FIRST.into_iter().filter_map(|profile| profile.size_bytes(index, width));
    let base = sizes.min().unwrap_or(0) + cutoffs_bytes(index) + FIXED_BYTES;
    // An eighth goes to what is recent, and at least its least.
    let shared = base.saturating_mul(RECENT_SHARE).div_ceil(RECENT_SHARE - 1);
    shared.max(base + RECENT_ENTRIES_MIN * ENTRY_BYTES).max(MEMORY_BUDGET_MIN)
}

/// A budget that not even the smallest profile of an empty realm fits into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a memory budget of {budget} bytes holds nothing; {needed} bytes would do")]
pub struct BudgetTooSmall {
    /// What was given.
    pub budget: u64,
    /// What would do.
    pub needed: u64,
}
