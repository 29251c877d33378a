//! What came since the base, as an exact set of fingerprints.
//!
//! Every delta yields a new set that checkers may already be reading, so `recent` is shared and
//! copied on write: the top bits of a fingerprint pick a page, and a delta copies only the pages
//! it touches.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::position::Sequence;
use crate::token::{Fingerprint, Width};

/// Most pages, as bits of a fingerprint that pick one: at the limit of 65,536 entries a page holds 256 and is searched
/// in eight steps; copying the directory costs 256 reference counts.
const PAGE_BITS_MAX: u32 = 8;

/// Entries of a full page, from which on there are several: a small device has one page and little around it.
const PAGE_ENTRIES: usize = 256;

/// Entries by which a page grows. By doubling it would take up to twice the memory that a budget gives it.
const PAGE_GROWTH: usize = 8;

/// The state of one key as of some sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    // Of two statements with one stamp (an equivocation) revoked wins.
    /// A revocation was undone. Kept as a tombstone: the base may still hold the key.
    Reinstated,
    /// Revoked.
    Revoked,
}

/// The latest statement about one fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Which key.
    pub fingerprint: Fingerprint,
    /// The `to` of the delta that said so.
    pub stamp: Sequence,
    /// What it said.
    pub state: State,
}

/// A statement in sixteen bytes: fingerprint, then stamp and state in one number that orders as they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    fingerprint: Fingerprint,
    mark: u64,
}

/// Bytes of memory that a statement takes.
pub(crate) const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// The highest stamp that is told apart: what a ledger can count to. Of two beyond it "revoked" wins.
const STAMP_MAX: u64 = u64::MAX >> 1;

impl Entry {
    fn new(Stamped { fingerprint, stamp, state }: Stamped) -> Self {
        Self { fingerprint, mark: stamp.0.min(STAMP_MAX) << 1 | u64::from(state == State::Revoked) }
    }

    const fn state(self) -> State {
        if self.mark & 1 == 1 { State::Revoked } else { State::Reinstated }
    }

    const fn stamp(self) -> Sequence {
        Sequence(self.mark >> 1)
    }

    /// Whether it was stamped at or below `sequence`, for sure: beyond what a ledger can count to nobody can tell.
    const fn is_through(self, sequence: Sequence) -> bool {
        let stamp = self.stamp().0;
        stamp <= sequence.0 && stamp < STAMP_MAX
    }

    const fn stamped(self) -> Stamped {
        Stamped { fingerprint: self.fingerprint, stamp: self.stamp(), state: self.state() }
    }
}

/// An exact set of fingerprints with the latest statement about each.
///
/// # Complexity
///
/// A look-up is one binary search in a page; cloning costs one reference count a page.
#[derive(Clone, Debug)]
pub struct Recent {
    pages: Vec<Arc<Vec<Entry>>>,
    shift: u32,
    len: usize,
}

impl Recent {
    /// An empty set for fingerprints of this width, meant to hold up to `entries`.
    #[must_use]
    pub fn new(width: Width, entries: usize) -> Self {
        let empty = Arc::new(Vec::new());
        let page_bits = (entries / PAGE_ENTRIES).max(1).ilog2().min(PAGE_BITS_MAX);
        Self { pages: alloc::vec![empty; 1 << page_bits], shift: width.bits() - page_bits, len: 0 }
    }

    /// The latest statement about a key, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, fingerprint: Fingerprint) -> Option<State> {
        // Most of the time nothing, or next to nothing, has come since the base.
        if self.len == 0 {
            return None;
        }
        let page = self.pages.get(self.page(fingerprint))?;
        let at = page.binary_search_by_key(&fingerprint, |entry| entry.fingerprint).ok()?;
        page.get(at).map(|entry| entry.state())
    }

    /// Takes in a statement; the higher (stamp, state) wins, so any order gives one result.
    pub fn record(&mut self, statement: Stamped) {
        let entry = Entry::new(statement);
        let page = self.page(entry.fingerprint);
        let Some(page) = self.pages.get_mut(page) else { return };
        match page.binary_search_by_key(&entry.fingerprint, |held| held.fingerprint) {
            Ok(at) => {
                let newer = page.get(at).is_some_and(|held| held.mark < entry.mark);
                if newer && let Some(held) = Arc::make_mut(page).get_mut(at) {
                    *held = entry;
                }
            }
            Err(at) => {
                let page = Arc::make_mut(page);
                if page.len() == page.capacity() {
                    page.reserve_exact(PAGE_GROWTH);
                }
                page.insert(at, entry);
                self.len += 1;
            }
        }
    }

    /// Whether a statement about this key is held, so that a new one takes no more room.
    #[must_use]
    pub fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.get(fingerprint).is_some()
    }

    /// Forgets everything that a base at `sequence` covers.
    pub fn drop_through(&mut self, sequence: Sequence) {
        self.retain(|entry| !entry.is_through(sequence));
    }

    /// Drops what only softens: reinstatements. Their tokens read as revoked until the next base.
    pub fn drop_reinstated(&mut self) {
        self.retain(|entry| entry.state() == State::Revoked);
    }

    /// Every statement, sorted by fingerprint.
    pub fn iter(&self) -> impl Iterator<Item = Stamped> {
        self.pages.iter().flat_map(|page| page.iter().map(|entry| entry.stamped()))
    }

    /// How many keys are held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes it takes, its directory included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let pages = self.pages.iter().map(|page| page.capacity() * size_of::<Entry>()).sum::<usize>();
        (pages + self.pages.len() * size_of::<Arc<Vec<Entry>>>()) as u64
    }

    /// Whether nothing is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes out every revocation stamped at or below `sequence`, to be held elsewhere.
    pub(crate) fn take_revoked_through(&mut self, sequence: Sequence) -> Vec<Fingerprint> {
        let taken = |entry: &Entry| entry.state() == State::Revoked && entry.is_through(sequence);
        let entries = self.pages.iter().flat_map(|page| page.iter());
        let fingerprints = entries.filter(|entry| taken(entry)).map(|entry| entry.fingerprint).collect();
        self.retain(|entry| !taken(entry));
        fingerprints
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        for page in &mut self.pages {
            if page.iter().any(|entry| !keep(entry)) {
                let page = Arc::make_mut(page);
                page.retain(&keep);
                page.shrink_to_fit();
            }
        }
        self.len = self.pages.iter().map(|page| page.len()).sum();
    }

    #[inline]
    fn page(&self, fingerprint: Fingerprint) -> usize {
        // With one page and 64 bits nothing is left to shift.
        fingerprint.bits().checked_shr(self.shift).unwrap_or(0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_what_a_ledger_counts_to_nothing_is_forgotten_or_folded() {
        let key = |number| Fingerprint::from_hash(number, Width::W64);
        let mut recent = Recent::new(Width::W64, 100);
        for (number, stamp) in [(1, 5), (2, STAMP_MAX - 1), (3, STAMP_MAX), (4, u64::MAX)] {
            recent.record(Stamped { fingerprint: key(number), stamp: Sequence(stamp), state: State::Revoked });
        }
        // Told apart no more: "revoked" wins.
        recent.record(Stamped { fingerprint: key(4), stamp: Sequence(u64::MAX - 1), state: State::Reinstated });
        recent.record(Stamped { fingerprint: key(1), stamp: Sequence(6), state: State::Reinstated });
        assert_eq!(recent.get(key(1)), Some(State::Reinstated));
        let mut folded = recent.clone();
        assert_eq!(folded.take_revoked_through(Sequence(u64::MAX - 2)), [key(2)]);
        recent.drop_through(Sequence(u64::MAX - 2));
        for held in [&recent, &folded] {
            assert!([3, 4].into_iter().all(|number| held.get(key(number)) == Some(State::Revoked)));
        }
        assert_eq!((recent.len(), folded.len()), (2, 3));
    }
}
