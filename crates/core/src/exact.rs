//! The exact half of a base: sorted fingerprints, asked in place.
//!
//! The same code serves the list (certainly revoked) and the exceptions (certainly not). How the fingerprints travel
//! is told elsewhere (`rice`); the two hold the same values in the same order.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::limits::BASE_ENTRIES_MAX;
use crate::rice::{ceil_log2, largest};
use crate::token::{Fingerprint, Width};

/// Why fingerprints make no list, or bytes are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExactListError {
    /// More entries than a base may have.
    #[error("{count} fingerprints, more than {BASE_ENTRIES_MAX}")]
    TooMany {
        /// The count announced.
        count: u64,
    },
    /// A fingerprint that is not above the one before it, or has more bits than the width.
    #[error("fingerprint {index} is not above the one before it, or too wide")]
    Unsorted {
        /// Its place, from 0.
        index: u64,
    },
    /// More or fewer fingerprints than announced.
    #[error("{found} fingerprints instead of {announced}")]
    Count {
        /// The count announced.
        announced: u64,
        /// The count given; one more stands for any number more.
        found: u64,
    },
    /// Bytes that do not begin with a list's header.
    #[error("the bytes do not begin with the header of an exact list")]
    Header,
    /// The bytes are longer or shorter than the header says.
    #[error("the exact list has {found} bytes instead of {expected}")]
    Length {
        /// What the header says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The bytes are not what the fingerprints in them would be written as: damaged, or made to mislead.
    #[error("the exact list is damaged at fingerprint {index}")]
    Damaged {
        /// The place, from 0, up to which all is well.
        index: u64,
    },
}

/// Bytes of the header.
const HEADER_BYTES: usize = 8;

/// Buckets between two samples: a quarter bit for each entry, and a question reads two or three words from there.
const SAMPLE_BUCKETS: u64 = 128;

/// Most low bits of an entry, so that they can be read as one word from any bit position within a byte.
const LOW_BITS_MAX: u32 = 56;

/// Bytes behind the last low bits, so that a whole word can be read there.
const LOW_PADDING_BYTES: u64 = 7;

/// Where things stand in a list of this many entries and this width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    count: u64,
    width: Width,
    /// Low bits of an entry; the bits above them name its bucket.
    low_bits: u32,
    buckets: u64,
    /// Offsets in bytes. The upper words begin behind the header.
    samples_at: usize,
    lows_at: usize,
    size: u64,
}

impl Geometry {
    fn new(count: u64, width: Width) -> Result<Self, ExactListError> {
        if count > BASE_ENTRIES_MAX {
            return Err(ExactListError::TooMany { count });
        }
        if count == 0 {
            let end = HEADER_BYTES;
            let size = end as u64;
            return Ok(Self { count, width, low_bits: 0, buckets: 0, samples_at: end, lows_at: end, size });
        }
        let low_bits = width.bits().saturating_sub(ceil_log2(count)).min(LOW_BITS_MAX);
        let buckets = 1 << (width.bits() - low_bits);
        // One bit for each entry, one for each bucket: below 2^29, so everything here fits.
        let samples_at = HEADER_BYTES as u64 + (count + buckets).div_ceil(64) * 8;
        let lows_at = samples_at + buckets.div_ceil(SAMPLE_BUCKETS) * 4;
        let size = lows_at + (count * u64::from(low_bits)).div_ceil(8) + LOW_PADDING_BYTES;
        Ok(Self { count, width, low_bits, buckets, samples_at: samples_at as usize, lows_at: lows_at as usize, size })
    }

    const fn low_mask(&self) -> u64 {
        (1 << self.low_bits) - 1
    }
}

/// A sorted set of fingerprints, Elias-Fano coded: about log2(2^W / n) + 2.3 bits for each.
///
/// Where fingerprints were cut, two may have become one; such an entry may stand in it twice.
///
/// `B` is whatever holds the bytes: a `Vec<u8>` for a list of one's own, a `&[u8]` for one read in place.
///
/// # Shape
///
/// All numbers are little-endian; bits are numbered from the lowest of the first byte. With n entries of W bits, each
/// is split at l = min(W - ceil(log2(n)), 56) bits into its bucket (above) and its low bits; there are b = 2^(W - l)
/// buckets.
///
/// ```text
/// count u32 | W u8 | 0 0 0
/// upper     for each bucket, in order: a one bit for each entry in it, then a zero bit; zero bits up to a multiple of 64
/// samples   u32 for each 128th bucket, from bucket 0: the bit of `upper` where it begins
/// lows      l bits for each entry, in order; zero bits up to a whole byte; 7 zero bytes
/// ```
///
/// An empty list is its header alone.
///
/// # Source
///
/// Elias, "Efficient Storage and Retrieval by Content and Address of Static Files" (1974); Fano, "On the Number of Bits
/// Required to Implement an Associative Memory" (1971); samples after Vigna, "Quasi-Succinct Indices" (2013).
#[derive(Clone)]
pub struct ExactList<B = Vec<u8>> {
    bytes: B,
    geometry: Geometry,
}

impl ExactList {
    /// Builds a list of fingerprints that rise strictly.
    pub fn from_sorted(fingerprints: &[Fingerprint], width: Width) -> Result<Self, ExactListError> {
        let mut builder = ExactListBuilder::new(fingerprints.len() as u64, width)?;
        for &fingerprint in fingerprints {
            builder.push(fingerprint)?;
        }
        builder.finish()
    }

    /// Bytes that a list of `count` fingerprints takes; `None` beyond the limit.
    #[must_use]
    pub fn size_bytes_of(count: u64, width: Width) -> Option<u64> {
        Geometry::new(count, width).ok().map(|geometry| geometry.size)
    }

    /// An empty list: contains nothing.
    #[must_use]
    pub fn empty(width: Width) -> Self {
        let geometry = Geometry {
            count: 0,
            width,
            low_bits: 0,
            buckets: 0,
            samples_at: HEADER_BYTES,
            lows_at: HEADER_BYTES,
            size: HEADER_BYTES as u64,
        };
        Self { bytes: header(&geometry).to_vec(), geometry }
    }

    /// Gives the bytes away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl<B: AsRef<[u8]>> ExactList<B> {
    /// Takes bytes whose header and length agree.
    ///
    /// What lies between is not looked at: whatever it is, questions end, within the length of the list, and nothing
    /// panics. Bytes that nobody vouches for should pass [`ExactList::verify`] once.
    pub fn new(bytes: B) -> Result<Self, ExactListError> {
        let all = bytes.as_ref();
        let Some((&[c0, c1, c2, c3, width, 0, 0, 0], _)) = all.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ExactListError::Header);
        };
        let width = Width::cut(width).ok_or(ExactListError::Header)?;
        let geometry = Geometry::new(u64::from(u32::from_le_bytes([c0, c1, c2, c3])), width)?;
        if all.len() as u64 != geometry.size {
            return Err(ExactListError::Length { expected: geometry.size, found: all.len() as u64 });
        }
        Ok(Self { bytes, geometry })
    }

    /// Checks every byte: the entries rise, the samples are right, all filling is zero. That they are the right entries
    /// only a digest can say.
    ///
    /// # Complexity
    ///
    /// Linear, and takes the memory of a second list.
    pub fn verify(&self) -> Result<(), ExactListError> {
        let mut builder = ExactListBuilder::new(self.geometry.count, self.geometry.width)?;
        for (index, fingerprint) in self.iter().enumerate() {
            builder.push_cut(fingerprint).map_err(|_| ExactListError::Damaged { index: index as u64 })?;
        }
        let index = builder.pushed;
        match builder.finish() {
            Ok(written) if written.bytes == self.bytes.as_ref() => Ok(()),
            _ => Err(ExactListError::Damaged { index }),
        }
    }

    /// Asks whether `fingerprint` is in the list. Neither kind of mistake is made about fingerprints; two tokens may
    /// share one.
    ///
    /// # Complexity
    ///
    /// Three places in memory, two or three words at each for hashed fingerprints; allocates nothing. Linear in the
    /// list at the worst, which takes a list that was made for it.
    #[inline]
    #[must_use]
    pub fn contains(&self, fingerprint: Fingerprint) -> bool {
        let geometry = &self.geometry;
        let bits = fingerprint.bits();
        if geometry.count == 0 || bits > largest(geometry.width) {
            return false;
        }
        // False if the bytes are not what they should be.
        self.search(bits >> geometry.low_bits, bits & geometry.low_mask()).unwrap_or(false)
    }

    /// The number of entries.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.geometry.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.geometry.count == 0
    }

    /// The width of the fingerprints.
    #[must_use]
    pub const fn width(&self) -> Width {
        self.geometry.width
    }

    /// Bytes it takes, header and index included.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.geometry.size
    }

    /// The bytes, as [`ExactList::new`] takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The same list, borrowed.
    #[must_use]
    pub fn view(&self) -> ExactList<&[u8]> {
        ExactList { bytes: self.bytes.as_ref(), geometry: self.geometry }
    }

    /// All fingerprints, from the smallest.
    #[must_use]
    pub fn iter(&self) -> ExactListIter<'_> {
        let list = self.view();
        ExactListIter { ones: list.upper(0).unwrap_or(0), list, word: 0, index: 0 }
    }

    fn search(&self, bucket: u64, low: u64) -> Option<bool> {
        let at = self.bucket_at(bucket)?;
        // Each zero before it ended a bucket, each one was an entry.
        let mut index = at.checked_sub(bucket)?;
        let mut word = at >> 6;
        let mut ones = self.upper(word)? >> (at & 63);
        let mut left = 64 - (at & 63);
        loop {
            let run = u64::from(ones.trailing_ones()).min(left);
            for _ in 0..run {
                let found = self.low(index)?;
                if found >= low {
                    return Some(found == low);
                }
                index += 1;
            }
            if run < left {
                return Some(false);
            }
            word += 1;
            ones = self.upper(word)?;
            left = 64;
        }
    }

    /// The bit of the upper part where a bucket begins: behind the `bucket`-th zero.
    #[inline]
    fn bucket_at(&self, bucket: u64) -> Option<u64> {
        let sample = self.geometry.samples_at + (bucket / SAMPLE_BUCKETS) as usize * 4;
        let from = u64::from(u32::from_le_bytes(*self.bytes.as_ref().get(sample..)?.first_chunk()?));
        let mut zeros_left = (bucket % SAMPLE_BUCKETS) as u32;
        if zeros_left == 0 {
            return Some(from);
        }
        let mut word = from >> 6;
        let mut zeros = !self.upper(word)? & (u64::MAX << (from & 63));
        loop {
            let sums = byte_sums(zeros);
            let total = (sums >> 56) as u32;
            if zeros_left <= total {
                return Some(word * 64 + u64::from(select(zeros, sums, zeros_left - 1)) + 1);
            }
            zeros_left -= total;
            word += 1;
            zeros = !self.upper(word)?;
        }
    }

    /// A word of the upper part; `None` behind its end.
    #[inline]
    fn upper(&self, word: u64) -> Option<u64> {
        let upper = self.bytes.as_ref().get(HEADER_BYTES..self.geometry.samples_at)?;
        let at = usize::try_from(word).ok()?.checked_mul(8)?;
        Some(u64::from_le_bytes(*upper.get(at..)?.first_chunk()?))
    }

    /// The low bits of an entry.
    #[inline]
    fn low(&self, index: u64) -> Option<u64> {
        let bit = index * u64::from(self.geometry.low_bits);
        let at = self.geometry.lows_at + (bit >> 3) as usize;
        let word = u64::from_le_bytes(*self.bytes.as_ref().get(at..)?.first_chunk()?);
        Some((word >> (bit & 7)) & self.geometry.low_mask())
    }
}

impl<B> fmt::Debug for ExactList<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExactList")
            .field("count", &self.geometry.count)
            .field("width", &self.geometry.width)
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<[u8]>, C: AsRef<[u8]>> PartialEq<ExactList<C>> for ExactList<B> {
    fn eq(&self, other: &ExactList<C>) -> bool {
        self.bytes.as_ref() == other.bytes.as_ref()
    }
}

impl<B: AsRef<[u8]>> Eq for ExactList<B> {}

impl<'a, B: AsRef<[u8]>> IntoIterator for &'a ExactList<B> {
    type Item = Fingerprint;
    type IntoIter = ExactListIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Walks an exact list in order.
#[derive(Clone, Debug)]
pub struct ExactListIter<'a> {
    list: ExactList<&'a [u8]>,
    // The word of the upper part that is being read, and those of its ones that are still to come.
    word: u64,
    ones: u64,
    // Place of the next entry.
    index: u64,
}

impl Iterator for ExactListIter<'_> {
    type Item = Fingerprint;

    #[inline]
    fn next(&mut self) -> Option<Fingerprint> {
        let geometry = &self.list.geometry;
        if self.index >= geometry.count {
            return None;
        }
        while self.ones == 0 {
            self.word += 1;
            self.ones = self.list.upper(self.word)?;
        }
        let at = self.word * 64 + u64::from(self.ones.trailing_zeros());
        self.ones &= self.ones - 1;
        let bucket = at.checked_sub(self.index).filter(|&bucket| bucket < geometry.buckets)?;
        let bits = (bucket << geometry.low_bits) | self.list.low(self.index)?;
        self.index += 1;
        Fingerprint::from_bits(bits, geometry.width)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Damaged bytes may end it early.
        (0, Some((self.list.geometry.count - self.index) as usize))
    }
}

/// Builds an exact list from fingerprints that come one by one, as a decoder gives them.
#[derive(Debug)]
pub struct ExactListBuilder {
    bytes: Vec<u8>,
    geometry: Geometry,
    pushed: u64,
    // The next fingerprint must be above this, or equal if it was cut.
    before: Option<u64>,
    // Buckets that have begun.
    begun: u64,
    // Low bits not yet written, below 8 of them.
    low_rest: u64,
    low_filled: u32,
    low_at: usize,
}

impl ExactListBuilder {
    /// Takes the memory for `count` fingerprints, which the caller has compared with what it received.
    pub fn new(count: u64, width: Width) -> Result<Self, ExactListError> {
        let geometry = Geometry::new(count, width)?;
        let mut bytes = vec![0; geometry.size as usize];
        for (to, from) in bytes.iter_mut().zip(header(&geometry)) {
            *to = from;
        }
        let low_at = geometry.lows_at;
        Ok(Self { bytes, geometry, pushed: 0, before: None, begun: 0, low_rest: 0, low_filled: 0, low_at })
    }

    /// Adds a fingerprint above all before it.
    #[inline]
    pub fn push(&mut self, fingerprint: Fingerprint) -> Result<(), ExactListError> {
        if self.before == Some(fingerprint.bits()) {
            return Err(ExactListError::Unsorted { index: self.pushed });
        }
        self.push_cut(fingerprint)
    }

    /// Adds a fingerprint that was cut, and so may equal the one before it.
    #[inline]
    pub fn push_cut(&mut self, fingerprint: Fingerprint) -> Result<(), ExactListError> {
        let bits = fingerprint.bits();
        if self.pushed >= self.geometry.count {
            return Err(ExactListError::Count { announced: self.geometry.count, found: self.pushed + 1 });
        }
        if bits > largest(self.geometry.width) || self.before.is_some_and(|before| before > bits) {
            return Err(ExactListError::Unsorted { index: self.pushed });
        }
        let bucket = bits >> self.geometry.low_bits;
        self.begin_through(bucket);
        let at = bucket + self.pushed;
        if let Some(byte) = self.bytes.get_mut(HEADER_BYTES + (at >> 3) as usize) {
            *byte |= 1 << (at & 7);
        }
        self.push_low(bits & self.geometry.low_mask());
        self.before = Some(bits);
        self.pushed += 1;
        Ok(())
    }

    /// Ends the list; all that was announced must have come.
    pub fn finish(mut self) -> Result<ExactList, ExactListError> {
        if self.pushed != self.geometry.count {
            return Err(ExactListError::Count { announced: self.geometry.count, found: self.pushed });
        }
        if let Some(last) = self.geometry.buckets.checked_sub(1) {
            self.begin_through(last);
        }
        if let Some(byte) = self.bytes.get_mut(self.low_at) {
            *byte |= self.low_rest as u8;
        }
        Ok(ExactList { bytes: self.bytes, geometry: self.geometry })
    }

    /// Writes the samples of all buckets up to this one.
    #[inline]
    fn begin_through(&mut self, bucket: u64) {
        // Only each 128th bucket has one: skip to it.
        while self.begun <= bucket {
            let at = self.geometry.samples_at + (self.begun / SAMPLE_BUCKETS) as usize * 4;
            // All entries so far lie in earlier buckets.
            let begins = (self.begun + self.pushed) as u32;
            if let Some(sample) = self.bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                *sample = begins.to_le_bytes();
            }
            self.begun += SAMPLE_BUCKETS;
        }
    }

    /// Writes the low bits, whole bytes at a time.
    #[inline]
    fn push_low(&mut self, low: u64) {
        // At most 7 and 56 bits.
        self.low_rest |= low << self.low_filled;
        self.low_filled += self.geometry.low_bits;
        // Bytes beyond the whole ones are written again by the next.
        if let Some(word) = self.bytes.get_mut(self.low_at..).and_then(<[u8]>::first_chunk_mut) {
            *word = self.low_rest.to_le_bytes();
        }
        let whole = self.low_filled / 8;
        self.low_at += whole as usize;
        self.low_rest >>= whole * 8;
        self.low_filled %= 8;
    }
}

fn header(geometry: &Geometry) -> [u8; HEADER_BYTES] {
    let [c0, c1, c2, c3] = (geometry.count as u32).to_le_bytes();
    [c0, c1, c2, c3, geometry.width.bits() as u8, 0, 0, 0]
}

/// One in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// In each byte, the ones of the word up to and including that byte.
#[inline]
const fn byte_sums(word: u64) -> u64 {
    let pairs = word - ((word >> 1) & (ONES * 0x55));
    let fours = (pairs & (ONES * 0x33)) + ((pairs >> 2) & (ONES * 0x33));
    ((fours + (fours >> 4)) & (ONES * 0x0f)).wrapping_mul(ONES)
}

/// The place of the `rank`-th one of a word, from 0; `sums` are its byte sums and hold more than `rank`.
///
/// # Source
///
/// Vigna, "Broadword Implementation of Rank/Select Queries" (2008).
#[inline]
const fn select(word: u64, sums: u64, rank: u32) -> u32 {
    // A byte's top bit stays where its sum is at most `rank`: all its ones come before the one that is sought.
    let before = (((ONES * 0x80) | (ONES.wrapping_mul(rank as u64))) - sums) & (ONES * 0x80);
    let place = before.count_ones() * 8;
    let mut rest = rank - ((sums << 8) >> place & 0xff) as u32;
    let mut bits = (word >> place) & 0xff;
    while rest > 0 {
        bits &= bits - 1;
        rest -= 1;
    }
    place + bits.trailing_zeros()
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on should stop
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn list(width: Width, numbers: &[u64]) -> Vec<Fingerprint> {
        numbers.iter().map(|&bits| Fingerprint::from_bits(bits, width).expect("within the width")).collect()
    }

    fn hashed(width: Width, seed: u64, count: u64) -> Vec<Fingerprint> {
        let mut all: Vec<_> = (0..count)
            .map(|i| Fingerprint::from_hash(xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed), width))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    #[test]
    fn the_layout_is_pinned() {
        // Three entries of 40 bits: l = 38, four buckets. Entries in buckets 0, 0 and 2.
        let built = ExactList::from_sorted(&list(Width::W40, &[1, 3, (2 << 38) | 5]), Width::W40).expect("sorted");
        let mut expected = vec![3, 0, 0, 0, 40, 0, 0, 0];
        // 1 1 0, 0, 1 0, 0
        expected.extend([0b001_0011, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 0, 0]);
        let lows = 1_u128 | 3 << 38 | 5 << 76;
        expected.extend(&lows.to_le_bytes()[..15]);
        expected.extend([0; 7]);
        assert_eq!(built.as_bytes(), expected);
        assert_eq!(ExactList::empty(Width::W48).as_bytes(), [0, 0, 0, 0, 48, 0, 0, 0]);
        assert_eq!(ExactList::from_sorted(&[], Width::W48), Ok(ExactList::empty(Width::W48)));
    }

    #[test]
    fn a_million_take_at_most_thirty_and_a_half_bits() {
        let entries = hashed(Width::W48, 1, 1_000_000);
        let built = ExactList::from_sorted(&entries, Width::W48).expect("sorted");
        let bits = built.size_bytes() as f64 * 8.0 / entries.len() as f64;
        assert!(bits <= 30.5, "{bits}");
        assert!(built.iter().eq(entries.iter().copied()));
        assert!(entries.iter().all(|&entry| built.contains(entry)));
        let known: BTreeSet<_> = entries.into_iter().collect();
        assert!(
            hashed(Width::W48, 2, 100_000).into_iter().all(|other| built.contains(other) == known.contains(&other))
        );
    }

    #[test]
    fn neighbors_of_entries_are_told_apart() {
        for width in [Width::W40, Width::W48, Width::W64] {
            let top = largest(width);
            for numbers in [
                vec![],
                vec![0],
                vec![top],
                vec![0, top],
                (0..1_000).collect(),
                (0..1_000).map(|i| top - 1_998 + 2 * i).collect(),
                (0..5_000).map(|i| i * (top / 5_000)).collect(),
                // All in one bucket but one, so that runs of ones and of zeros cross many words.
                (0..3_000).map(|i| 3 * i).chain([top / 3]).collect(),
            ] {
                let entries = list(width, &numbers);
                let known: BTreeSet<_> = numbers.iter().copied().collect();
                let built = ExactList::from_sorted(&entries, width).expect("sorted");
                assert_eq!(built.verify(), Ok(()));
                assert!(built.iter().eq(entries));
                let near = numbers.iter().flat_map(|&n| [n, n.saturating_sub(1), n.saturating_add(1).min(top)]);
                for number in near.chain([0, top, top / 2]) {
                    let asked = Fingerprint::from_bits(number, width).expect("within the width");
                    assert_eq!(built.contains(asked), known.contains(&number), "{number} of {}", numbers.len());
                }
            }
        }
        let narrow = ExactList::from_sorted(&list(Width::W40, &[7]), Width::W40).expect("sorted");
        assert!(!narrow.contains(Fingerprint::from_bits(7 | 1 << 40, Width::W48).expect("48 bits")));
    }

    #[test]
    fn what_is_not_sorted_or_not_announced_is_refused() {
        for numbers in [[7, 7], [8, 7]] {
            let refused = ExactList::from_sorted(&list(Width::W40, &numbers), Width::W40);
            assert_eq!(refused, Err(ExactListError::Unsorted { index: 1 }));
        }
        let wide = ExactList::from_sorted(&list(Width::W64, &[1 << 40]), Width::W40);
        assert_eq!(wide, Err(ExactListError::Unsorted { index: 0 }));
        let entry = Fingerprint::from_bits(1, Width::W40).expect("40 bits");
        let mut builder = ExactListBuilder::new(0, Width::W40).expect("within limits");
        assert_eq!(builder.push(entry), Err(ExactListError::Count { announced: 0, found: 1 }));
        let builder = ExactListBuilder::new(2, Width::W40).expect("within limits");
        assert_eq!(builder.finish(), Err(ExactListError::Count { announced: 2, found: 0 }));
        let many = ExactListBuilder::new(u64::MAX, Width::W40).map(|_| ());
        assert_eq!(many, Err(ExactListError::TooMany { count: u64::MAX }));
    }

    #[test]
    fn hostile_headers_and_lengths_are_refused() {
        let bytes = ExactList::from_sorted(&hashed(Width::W48, 3, 100), Width::W48).expect("sorted").into_bytes();
        for len in 0..bytes.len() {
            assert!(ExactList::new(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        let (expected, found) = (bytes.len() as u64, longer.len() as u64);
        assert_eq!(ExactList::new(longer), Err(ExactListError::Length { expected, found }));
        for (at, value) in [(4, 0), (4, 65), (4, 255), (5, 1), (6, 1), (7, 1)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(ExactList::new(other), Err(ExactListError::Header));
        }
        let mut claims = bytes.clone();
        claims[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(ExactList::new(claims), Err(ExactListError::TooMany { count: u64::from(u32::MAX) }));
    }

    #[test]
    fn a_flipped_bit_is_found_or_gives_another_whole_list() {
        let entries = hashed(Width::W40, 4, 300);
        let bytes = ExactList::from_sorted(&entries, Width::W40).expect("sorted").into_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(view) = ExactList::new(&flipped[..]) {
                // A flip may turn one list into another; then it is whole, and other.
                let (verified, same) = (view.verify(), view.iter().eq(entries.iter().copied()));
                assert!(matches!(verified, Err(ExactListError::Damaged { .. })) || !same, "{bit}");
                let known: BTreeSet<_> = view.iter().collect();
                let agrees = entries.iter().all(|entry| view.contains(*entry) == known.contains(entry));
                assert!(agrees || verified.is_err(), "{bit}");
            }
        }
    }

    #[test]
    fn selecting_agrees_with_counting() {
        for seed in 0..2_000_u64 {
            let word = xxhash_rust::xxh3::xxh3_64(&seed.to_le_bytes()) | 1 << (seed % 64);
            let word = if seed % 3 == 0 { word & word.rotate_left(7) | 1 } else { word };
            let places = (0..64).filter(|place| word >> place & 1 == 1);
            for (rank, place) in places.enumerate() {
                assert_eq!(select(word, byte_sums(word), rank as u32), place);
            }
        }
        assert_eq!(select(u64::MAX, byte_sums(u64::MAX), 63), 63);
    }

    proptest! {
        #[test]
        fn it_contains_what_was_put_in_and_nothing_else(
            numbers in prop_oneof![
                prop::collection::btree_set(any::<u64>(), 0..600),
                prop::collection::btree_set(0..2_000_u64, 0..600),
            ],
            others in prop::collection::vec(prop_oneof![any::<u64>(), 0..2_000_u64], 50),
        ) {
            for width in [Width::W48, Width::W64] {
                let shift = 64 - width.bits();
                let known: BTreeSet<_> = numbers.iter().map(|bits| bits >> shift).collect();
                let entries = list(width, &known.iter().copied().collect::<Vec<_>>());
                let built = ExactList::from_sorted(&entries, width).expect("sorted");
                prop_assert!(built.iter().eq(entries.iter().copied()));
                prop_assert!(entries.iter().all(|&entry| built.contains(entry)));
                for other in &others {
                    let asked = Fingerprint::from_hash(*other, width);
                    prop_assert_eq!(built.contains(asked), known.contains(&asked.bits()));
                }
            }
        }

        #[test]
        fn noise_behind_a_header_neither_panics_nor_hangs(
            count in 0..150_u64,
            noise in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 1_200),
            asked in prop::collection::vec(any::<u64>(), 50),
        ) {
            let mut bytes = ExactListBuilder::new(count, Width::W48).expect("within limits").bytes;
            let content = bytes.iter_mut().skip(HEADER_BYTES);
            content.zip(noise).for_each(|(to, from)| *to = from);
            let view = ExactList::new(&bytes[..]).expect("the header is right");
            prop_assert!(view.iter().count() as u64 <= count);
            for hash in asked {
                let _ = view.contains(Fingerprint::from_hash(hash, Width::W48));
            }
        }
    }
}
