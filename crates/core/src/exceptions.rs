//! The tokens that are certainly not revoked though the filter matches.
//!
//! Whoever knows every token that was issued knows every false positive. What lives here: how a fingerprint is cut for
//! the exceptions of one epoch, how the publisher finds the shortest cut, and the question. Which tokens are excepted
//! is the publisher's business.

use alloc::vec::Vec;

use thiserror::Error;

use crate::exact::ExactList;
use crate::filter::{Salt, fold_product, split_mix};
use crate::limits::BASE_ENTRIES_MAX;
use crate::rice::{self, RiceError, ceil_log2};
use crate::seal::Digest;
use crate::token::{Fingerprint, Width};
use crate::wire::{self, WireError};

/// How fingerprints are cut for the exceptions of one epoch.
///
/// # Shape
///
/// With `a` and `b` the halves of the epoch's salt (little-endian) and `m(z)` the `SplitMix64` step, as on
/// [`FilterParams`](crate::FilterParams):
///
/// ```text
/// x   = m(a ^ m(b + draw + 1))
/// key = top W bits of fold((fingerprint ^ x) * (m(x) | 1))
/// ```
///
/// All arithmetic is on unsigned 64-bit numbers, wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionCut {
    draw: u32,
    width: Width,
    add: u64,
    multiply: u64,
}

impl ExceptionCut {
    /// The `draw`-th way to cut to `width` under this salt.
    #[must_use]
    pub const fn new(salt: Salt, draw: u32, width: Width) -> Self {
        let both = u128::from_le_bytes(salt.0);
        let (low, high) = (both as u64, (both >> 64) as u64);
        let add = split_mix(low ^ split_mix(high.wrapping_add(draw as u64 + 1)));
        Self { draw, width, add, multiply: split_mix(add) | 1 }
    }

    /// Which way it is.
    #[must_use]
    pub const fn draw(&self) -> u32 {
        self.draw
    }

    /// Bits that are left of each fingerprint.
    #[must_use]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// What stands in the list for this fingerprint.
    #[inline]
    #[must_use]
    pub const fn key(&self, fingerprint: Fingerprint) -> Fingerprint {
        Fingerprint::from_hash(fold_product(fingerprint.bits() ^ self.add, self.multiply), self.width)
    }
}

/// The exceptions of one epoch, as a device holds them.
#[derive(Clone, Debug)]
pub struct Exceptions {
    pub(crate) cut: ExceptionCut,
    pub(crate) list: ExactList,
}

impl Exceptions {
    /// Whether a token with this fingerprint is excepted.
    ///
    /// Never for a revocation that the base was built with: the publisher checked all of them. May be true for a
    /// token that was never registered; it is not revoked either, or a later statement says so.
    ///
    /// # Complexity
    ///
    /// That of [`ExactList::contains`].
    #[inline]
    #[must_use]
    pub fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.list.contains(self.cut.key(fingerprint))
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes they take.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.list.size_bytes()
    }
}

/// Exceptions as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodedExceptions {
    /// How many keys the code holds; two excepted tokens may share one.
    pub entries: u64,
    /// The artifact's bytes.
    pub bytes: Vec<u8>,
}

/// Why exceptions cannot be coded; our own mistake, or a realm beyond its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExceptionsError {
    /// A fingerprint is both excepted and revoked: no cut keeps the two apart.
    #[error("a fingerprint is both excepted and revoked")]
    Collision,
    /// More than a base may have.
    #[error("{count} exceptions, more than {BASE_ENTRIES_MAX}")]
    TooMany {
        /// How many.
        count: u64,
    },
    /// The keys cannot be coded.
    #[error("the exceptions cannot be coded")]
    Code(#[from] RiceError),
    /// The head cannot be coded.
    #[error("the head of the exceptions cannot be coded")]
    Wire(#[from] WireError),
}

/// Ways to cut that are tried before a bit is added. Begun where one or two collisions are to be expected, a try
/// succeeds once in three to seven.
const DRAWS_MAX: u32 = 16;

/// Finds the shortest cut under which no excepted fingerprint meets a revoked one, and codes the exceptions.
///
/// `filter` is the digest of the filter's bytes: exceptions are true of that filter only. `revoked` is sorted.
///
/// # Complexity
///
/// Some ten passes over both, with a sort of the excepted in each.
pub fn encode(
    filter: &Digest,
    salt: Salt,
    excepted: &[Fingerprint],
    revoked: &[Fingerprint],
) -> Result<CodedExceptions, ExceptionsError> {
    let count = excepted.len() as u64;
    if count > BASE_ENTRIES_MAX {
        return Err(ExceptionsError::TooMany { count });
    }
    // Both counts are below 2^27, so the product is no surprise.
    let pairs = count * revoked.len() as u64;
    let first = ceil_log2(pairs).saturating_sub(1).max(ceil_log2(count)).max(1) as u8;
    for width in (first..=64).filter_map(Width::cut) {
        for draw in 0..DRAWS_MAX {
            let cut = ExceptionCut::new(salt, draw, width);
            let mut keys: Vec<Fingerprint> = excepted.iter().map(|&fingerprint| cut.key(fingerprint)).collect();
            keys.sort_unstable();
            keys.dedup();
            if revoked.iter().any(|&fingerprint| keys.binary_search(&cut.key(fingerprint)).is_ok()) {
                continue;
            }
            let mut bytes = wire::encode_exceptions_head(filter, &cut)?;
            bytes.extend_from_slice(&rice::encode(&keys, width)?);
            return Ok(CodedExceptions { entries: keys.len() as u64, bytes });
        }
    }
    Err(ExceptionsError::Collision)
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test that cannot go on should stop
mod tests {
    use super::*;

    fn hashed(seed: u64, count: u64) -> Vec<Fingerprint> {
        let hash = |i: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed);
        let mut all: Vec<_> = (0..count).map(|i| Fingerprint::from_hash(hash(i), Width::W48)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_cut_is_as_short_as_the_revocations_allow() {
        let (excepted, revoked) = (hashed(1, 14_000), hashed(2, 10_000));
        let coded = encode(&Digest::default(), Salt([7; 16]), &excepted, &revoked).expect("a cut");
        let (filter, cut) =
            wire::decode_exceptions_head(Salt([7; 16]), coded.bytes.first_chunk().expect("a head")).expect("a head");
        assert_eq!(filter, Digest::default());
        // 1.4e8 pairs need 27.06 bits for one collision to be expected.
        assert!((27..=29).contains(&cut.width().bits()), "{cut:?}");
        assert!(coded.bytes.len() * 8 <= 14_000 * 17, "{}", coded.bytes.len());
        let keys =
            rice::decode(coded.bytes.get(wire::EXCEPTIONS_HEAD_BYTES..).expect("keys"), coded.entries, cut.width());
        let list = ExactList::from_sorted(&keys.expect("a code"), cut.width()).expect("a list");
        let exceptions = Exceptions { cut, list };
        assert!(excepted.iter().all(|&fingerprint| exceptions.contains(fingerprint)));
        assert!(!revoked.iter().any(|&fingerprint| exceptions.contains(fingerprint)));
        assert_eq!(exceptions.len(), coded.entries);
    }

    #[test]
    fn nothing_that_is_revoked_can_be_excepted() {
        let both = hashed(3, 10);
        assert_eq!(
            encode(&Digest::default(), Salt([7; 16]), both.get(..1).expect("one"), &both),
            Err(ExceptionsError::Collision)
        );
    }

    #[test]
    fn no_exceptions_and_no_revocations_have_a_code() {
        let some = hashed(4, 3);
        for (excepted, revoked) in [(&some[..0], &some[..]), (&some[..], &some[..0]), (&some[..0], &some[..0])] {
            let coded = encode(&Digest::default(), Salt([1; 16]), excepted, revoked).expect("a code");
            assert!(coded.entries <= excepted.len() as u64);
            assert_eq!(coded.entries == 0, excepted.is_empty());
        }
    }
}
