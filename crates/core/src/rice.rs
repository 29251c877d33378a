//! How sorted fingerprints travel: near the entropy, in order, and one list in one way only.
//!
//! Count, width and length stand around the code, in what carries it; here is only the code itself. In memory
//! fingerprints stand as an exact list (`exact`), which can be asked.

use alloc::vec::Vec;

use thiserror::Error;

use crate::limits::BASE_ENTRIES_MAX;
use crate::token::{Fingerprint, Width};

/// Why fingerprints cannot be coded, or bytes are not their code.
///
/// When decoding, the sender is wrong or hostile: every list has exactly one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RiceError {
    /// More entries than a base may have.
    #[error("{count} fingerprints, more than {BASE_ENTRIES_MAX}")]
    TooMany {
        /// The count announced.
        count: u64,
    },
    /// A fingerprint that is not above the one before it, or has more bits than the width. Only when encoding.
    #[error("fingerprint {index} is not above the one before it, or too wide")]
    Unsorted {
        /// Its place, from 0.
        index: u64,
    },
    /// Too few bytes for the count, known before any memory was taken.
    #[error("{found} bytes cannot hold {count} fingerprints, which take at least {needed}")]
    TooShort {
        /// The count announced.
        count: u64,
        /// Bytes that it takes at the least.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The code ends in the middle of a fingerprint.
    #[error("the code ends within fingerprint {index}")]
    Truncated {
        /// Its place, from 0.
        index: u64,
    },
    /// A gap that leads beyond the largest fingerprint of the width.
    #[error("fingerprint {index} lies beyond the width")]
    Overflow {
        /// Its place, from 0.
        index: u64,
    },
    /// Bytes after the last fingerprint.
    #[error("{bytes} bytes follow the last fingerprint")]
    Trailing {
        /// How many.
        bytes: u64,
    },
    /// The bits that fill the last byte are not zero.
    #[error("the last byte is not filled with zero bits")]
    Padding,
}

/// Low bits of each gap that are sent as they are.
///
/// The largest number of bits that keeps `count` quotients at or below 2 on average: log2 of 2^W / count, rounded
/// down. Within 0.3 % of the best parameter for hashed fingerprints, and computed without a fraction.
fn remainder_bits(count: u64, width: Width) -> u32 {
    width.bits().saturating_sub(ceil_log2(count))
}

/// The smallest `n` for which 2^n is at least `count`.
pub(crate) const fn ceil_log2(count: u64) -> u32 {
    if count <= 1 { 0 } else { u64::BITS - (count - 1).leading_zeros() }
}

/// The largest number of `width` bits.
pub(crate) const fn largest(width: Width) -> u64 {
    u64::MAX >> (u64::BITS - width.bits())
}

/// The lowest `bits` bits set; all of them from 64 on.
const fn low_mask(bits: u32) -> u64 {
    if bits >= u64::BITS { u64::MAX } else { (1 << bits) - 1 }
}

/// `value` shifted down; nothing is left from 64 on.
const fn shift_down(value: u64, bits: u32) -> u64 {
    if bits >= u64::BITS { 0 } else { value >> bits }
}

/// Codes sorted fingerprints.
///
/// # Shape
///
/// A stream of bits, the lowest bit of each byte first. For each fingerprint the gap to the one before it, less one
/// (for the first: the fingerprint itself), is split at k = W - ceil(log2(count)) bits: its quotient by 2^k as that
/// many zero bits and a one bit, then its lowest k bits, lowest first. Zero bits fill the last byte.
///
/// # Source
///
/// Rice, "Some Practical Universal Noiseless Coding Techniques" (1979); Golomb, "Run-Length Encodings" (1966).
pub fn encode(fingerprints: &[Fingerprint], width: Width) -> Result<Vec<u8>, RiceError> {
    let len = encoded_len(fingerprints, width)?;
    let k = remainder_bits(fingerprints.len() as u64, width);
    let mut writer = Writer { bytes: Vec::with_capacity(len), word: 0, filled: 0 };
    let mut next = 0;
    for fingerprint in fingerprints {
        let gap = fingerprint.bits().wrapping_sub(next);
        writer.zeros(shift_down(gap, k));
        writer.push(1, 1);
        writer.push(gap & low_mask(k), k);
        next = fingerprint.bits().wrapping_add(1);
    }
    Ok(writer.finish())
}

/// Bytes that [`encode`] will take; refuses what it refuses.
pub fn encoded_len(fingerprints: &[Fingerprint], width: Width) -> Result<usize, RiceError> {
    let count = fingerprints.len() as u64;
    if count > BASE_ENTRIES_MAX {
        return Err(RiceError::TooMany { count });
    }
    let k = remainder_bits(count, width);
    let mut quotients = 0_u64;
    let mut before = None;
    for (index, fingerprint) in fingerprints.iter().enumerate() {
        let bits = fingerprint.bits();
        if bits > largest(width) || before.is_some_and(|before| before >= bits) {
            return Err(RiceError::Unsorted { index: index as u64 });
        }
        let gap = before.map_or(bits, |before| bits - before - 1);
        quotients += shift_down(gap, k);
        before = Some(bits);
    }
    Ok((quotients + count * u64::from(k + 1)).div_ceil(8) as usize)
}

/// Decodes exactly `count` fingerprints out of exactly these bytes.
///
/// # Complexity
///
/// Linear in the bytes; memory is taken for what they can hold, never for what `count` claims.
pub fn decode(bytes: &[u8], count: u64, width: Width) -> Result<Vec<Fingerprint>, RiceError> {
    match decode_prefix(bytes, count, width)? {
        (fingerprints, []) => Ok(fingerprints),
        (_, rest) => Err(RiceError::Trailing { bytes: rest.len() as u64 }),
    }
}

/// Decodes `count` fingerprints and gives back the bytes behind them.
///
/// # Complexity
///
/// As [`decode`].
pub fn decode_prefix(bytes: &[u8], count: u64, width: Width) -> Result<(Vec<Fingerprint>, &[u8]), RiceError> {
    let mut decoder = Decoder::new(bytes, count, width)?;
    let mut fingerprints = Vec::with_capacity(count as usize);
    for fingerprint in &mut decoder {
        fingerprints.push(fingerprint?);
    }
    Ok((fingerprints, decoder.rest()))
}

/// Decodes fingerprints one by one, for whoever does not want them all in memory.
///
/// Ends after the first error. What came before an error is not to be used: bytes that do not decode to their end are
/// no list. Whoever expects the code to fill its bytes looks at [`Decoder::rest`] after the last.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    // Bits taken so far.
    at: u64,
    // Zero once an error was given.
    left: u64,
    count: u64,
    k: u32,
    width: Width,
    // The smallest number the next fingerprint may be; meaningless once `exhausted`.
    next: u64,
    // Whether 2^64 - 1 was given: nothing lies above it.
    exhausted: bool,
}

impl<'a> Decoder<'a> {
    /// Checks the count against the length and prepares to decode.
    pub fn new(bytes: &'a [u8], count: u64, width: Width) -> Result<Self, RiceError> {
        if count > BASE_ENTRIES_MAX {
            return Err(RiceError::TooMany { count });
        }
        let k = remainder_bits(count, width);
        let found = bytes.len() as u64;
        // Each takes at least its remainder and one bit.
        let needed = (count * u64::from(k + 1)).div_ceil(8);
        if found < needed {
            return Err(RiceError::TooShort { count, needed, found });
        }
        Ok(Self { bytes, at: 0, left: count, count, k, width, next: 0, exhausted: false })
    }

    /// Fingerprints still to come.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.left
    }

    /// The general way: long runs, wide remainders, the last bytes.
    #[cold]
    fn gap_bit_by_bit(&mut self, index: u64) -> Result<u64, RiceError> {
        let quotient_max = shift_down(largest(self.width), self.k);
        let mut quotient = 0;
        loop {
            let (word, bits) = self.window().ok_or(RiceError::Truncated { index })?;
            let zeros = word.trailing_zeros().min(bits);
            quotient += u64::from(zeros);
            self.at += u64::from(zeros);
            if quotient > quotient_max {
                return Err(RiceError::Overflow { index });
            }
            if zeros < bits {
                self.at += 1;
                break;
            }
        }
        let (mut remainder, mut filled) = (0, 0);
        while filled < self.k {
            let (word, bits) = self.window().ok_or(RiceError::Truncated { index })?;
            let taken = bits.min(self.k - filled);
            remainder |= (word & low_mask(taken)) << filled;
            filled += taken;
            self.at += u64::from(taken);
        }
        // With k = 64 the quotient is zero: the check above saw to it.
        Ok(quotient.checked_shl(self.k).unwrap_or(0) | remainder)
    }

    fn window(&self) -> Option<(u64, u32)> {
        window(self.bytes, self.at)
    }

    /// The bytes behind the last fingerprint that was given. A code that should fill its bytes leaves none.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at.div_ceil(8) as usize..).unwrap_or_default()
    }

    /// Looks at the bits between the last fingerprint and the next byte.
    fn check_padding(&self) -> Result<(), RiceError> {
        let last = self.bytes.get((self.at >> 3) as usize).copied().unwrap_or(0);
        if self.at & 7 != 0 && last >> (self.at & 7) != 0 { Err(RiceError::Padding) } else { Ok(()) }
    }

    #[inline]
    fn step(&mut self) -> Result<Fingerprint, RiceError> {
        let gap = match gap_in_word(self.bytes, self.at, self.k) {
            Some((gap, taken)) => {
                self.at += u64::from(taken);
                gap
            }
            None => self.gap_bit_by_bit(self.count - self.left)?,
        };
        let bits = self.next.checked_add(gap).filter(|&bits| bits <= largest(self.width) && !self.exhausted);
        let Some(fingerprint) = bits.and_then(|bits| Fingerprint::from_bits(bits, self.width)) else {
            return Err(RiceError::Overflow { index: self.count - self.left });
        };
        self.left -= 1;
        self.exhausted = fingerprint.bits() == u64::MAX;
        self.next = fingerprint.bits().wrapping_add(1);
        if self.left == 0 {
            self.check_padding()?;
        }
        Ok(fingerprint)
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<Fingerprint, RiceError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error ends it early.
        (0, Some(self.left as usize))
    }
}

/// The fast way: the gap that lies wholly in the word at bit `at`, and the bits it takes. `None` where it does not.
#[inline]
fn gap_in_word(bytes: &[u8], at: u64, k: u32) -> Option<(u64, u32)> {
    let (bytes, _) = bytes.get((at >> 3) as usize..)?.split_first_chunk::<8>()?;
    let shift = (at & 7) as u32;
    let word = u64::from_le_bytes(*bytes) >> shift;
    let quotient = word.trailing_zeros();
    let taken = quotient + 1 + k;
    // With this many bits both shifts below stay within the word.
    if taken > u64::BITS - shift || taken >= u64::BITS {
        return None;
    }
    let remainder = (word >> (quotient + 1)) & low_mask(k);
    Some(((u64::from(quotient) << k) | remainder, taken))
}

/// The bits from bit `at` on, at most 64, and how many there are; `None` at the end.
fn window(bytes: &[u8], at: u64) -> Option<(u64, u32)> {
    let rest = bytes.get((at >> 3) as usize..)?;
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(rest) {
        *to = *from;
    }
    let shift = (at & 7) as u32;
    let bits = (rest.len().min(8) as u32 * 8).checked_sub(shift).filter(|&bits| bits > 0)?;
    Some((u64::from_le_bytes(word) >> shift, bits))
}

/// Decodes a code that comes in pieces, for whoever has no room for all of it. Accepts what [`decode`] accepts.
///
/// What came before an error is not to be used.
#[derive(Clone, Debug)]
pub struct Stream {
    count: u64,
    left: u64,
    k: u32,
    width: Width,
    next: u64,
    exhausted: bool,
    // What the last piece broke off: its zero bits, whether its one bit has come, its low bits and their number.
    quotient: u64,
    ended: bool,
    remainder: u64,
    filled: u32,
}

impl Stream {
    /// Checks the count against the length that the whole code will have.
    pub fn new(count: u64, bytes: u64, width: Width) -> Result<Self, RiceError> {
        if count > BASE_ENTRIES_MAX {
            return Err(RiceError::TooMany { count });
        }
        let k = remainder_bits(count, width);
        let needed = (count * u64::from(k + 1)).div_ceil(8);
        if bytes < needed {
            return Err(RiceError::TooShort { count, needed, found: bytes });
        }
        let (quotient, ended, remainder, filled) = (0, false, 0, 0);
        Ok(Self { count, left: count, k, width, next: 0, exhausted: false, quotient, ended, remainder, filled })
    }

    /// Takes the next piece and gives every fingerprint that ends in it.
    ///
    /// # Complexity
    ///
    /// Linear in the piece; takes no memory.
    pub fn push(&mut self, piece: &[u8], mut each: impl FnMut(Fingerprint)) -> Result<(), RiceError> {
        let bits_all = piece.len() as u64 * 8;
        let mut at = 0;
        while self.left > 0 && at < bits_all {
            let gap = if self.quotient == 0
                && !self.ended
                && let Some((gap, taken)) = gap_in_word(piece, at, self.k)
            {
                at += u64::from(taken);
                gap
            } else {
                match self.gap_across(piece, &mut at)? {
                    Some(gap) => gap,
                    None => break,
                }
            };
            each(self.admit(gap)?);
        }
        // Nothing follows the last but the zero bits that fill its byte.
        if self.left == 0 && at < bits_all {
            let unread = bits_all - at;
            if unread >= 8 {
                return Err(RiceError::Trailing { bytes: unread / 8 });
            }
            if window(piece, at).is_some_and(|(word, _)| word != 0) {
                return Err(RiceError::Padding);
            }
        }
        Ok(())
    }

    /// All that was announced must have come.
    pub const fn finish(&self) -> Result<(), RiceError> {
        if self.left == 0 { Ok(()) } else { Err(RiceError::Truncated { index: self.count - self.left }) }
    }

    /// One gap bit by bit, remembering where a piece ends within it; `None` if this one does.
    #[cold]
    fn gap_across(&mut self, piece: &[u8], at: &mut u64) -> Result<Option<u64>, RiceError> {
        while !self.ended {
            let Some((word, bits)) = window(piece, *at) else { return Ok(None) };
            let zeros = word.trailing_zeros().min(bits);
            self.quotient += u64::from(zeros);
            *at += u64::from(zeros);
            if self.quotient > shift_down(largest(self.width), self.k) {
                return Err(RiceError::Overflow { index: self.count - self.left });
            }
            if zeros < bits {
                *at += 1;
                self.ended = true;
            }
        }
        while self.filled < self.k {
            let Some((word, bits)) = window(piece, *at) else { return Ok(None) };
            let taken = bits.min(self.k - self.filled);
            self.remainder |= (word & low_mask(taken)) << self.filled;
            self.filled += taken;
            *at += u64::from(taken);
        }
        // With k = 64 the quotient is zero: the check above saw to it.
        let gap = self.quotient.checked_shl(self.k).unwrap_or(0) | self.remainder;
        (self.quotient, self.ended, self.remainder, self.filled) = (0, false, 0, 0);
        Ok(Some(gap))
    }

    #[inline]
    fn admit(&mut self, gap: u64) -> Result<Fingerprint, RiceError> {
        let bits = self.next.checked_add(gap).filter(|&bits| bits <= largest(self.width) && !self.exhausted);
        let Some(fingerprint) = bits.and_then(|bits| Fingerprint::from_bits(bits, self.width)) else {
            return Err(RiceError::Overflow { index: self.count - self.left });
        };
        self.left -= 1;
        self.exhausted = fingerprint.bits() == u64::MAX;
        self.next = fingerprint.bits().wrapping_add(1);
        Ok(fingerprint)
    }
}

/// Collects bits, the lowest first.
struct Writer {
    bytes: Vec<u8>,
    word: u64,
    // Bits in `word`, below 64.
    filled: u32,
}

impl Writer {
    /// Adds the lowest `bits` bits of `value`, which has no others.
    fn push(&mut self, value: u64, bits: u32) {
        self.word |= value << self.filled;
        let total = self.filled + bits;
        if total < u64::BITS {
            self.filled = total;
            return;
        }
        self.bytes.extend_from_slice(&self.word.to_le_bytes());
        self.word = shift_down(value, u64::BITS - self.filled);
        self.filled = total - u64::BITS;
    }

    fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let run = count.min(63) as u32;
            self.push(0, run);
            count -= u64::from(run);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let used = self.filled.div_ceil(8) as usize;
        self.bytes.extend(self.word.to_le_bytes().into_iter().take(used));
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on should stop
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn list(width: Width, numbers: &[u64]) -> Vec<Fingerprint> {
        numbers.iter().map(|&bits| Fingerprint::from_bits(bits, width).expect("within the width")).collect()
    }

    fn hashed(width: Width, count: u64) -> Vec<Fingerprint> {
        let mut all: Vec<_> = (0..count)
            .map(|i| Fingerprint::from_hash(xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), 8), width))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Decodes in pieces of these sizes, one after the other, then in one piece.
    fn in_pieces(bytes: &[u8], count: u64, width: Width, sizes: &[usize]) -> Result<Vec<Fingerprint>, RiceError> {
        let mut stream = Stream::new(count, bytes.len() as u64, width)?;
        let (mut found, mut rest) = (Vec::new(), bytes);
        for &size in sizes {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            stream.push(piece, |fingerprint| found.push(fingerprint))?;
            rest = behind;
        }
        stream.push(rest, |fingerprint| found.push(fingerprint))?;
        stream.finish().map(|()| found)
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_gives(
            numbers in prop::collection::btree_set(any::<u64>(), 0..200),
            bits in 1_u8..=64,
            sizes in prop::collection::vec(0_usize..40, 0..40),
            damage in prop::option::of((any::<prop::sample::Index>(), 0_u8..8)),
        ) {
            let width = Width::cut(bits).expect("1 to 64");
            let mut keys: Vec<_> = numbers.iter().map(|&number| Fingerprint::from_hash(number, width)).collect();
            keys.dedup();
            let mut bytes = encode(&keys, width).expect("sorted");
            if let Some((place, bit)) = damage && !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << bit;
            }
            let whole = decode(&bytes, keys.len() as u64, width);
            let pieces = in_pieces(&bytes, keys.len() as u64, width, &sizes);
            match (&whole, &pieces) {
                (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
                (Err(_), Err(_)) => {}
                _ => prop_assert!(false, "{:?} and {:?}", whole, pieces),
            }
            bytes.push(0);
            prop_assert!(in_pieces(&bytes, keys.len() as u64, width, &sizes).is_err());
        }
    }

    #[test]
    fn the_code_is_pinned() {
        // Four entries of 40 bits: k = 38. 5 -> quotient 0: a one bit, then 5 in 38 bits; gap to 6, less one, is 0;
        // gap to 2^39 less one is 2^39 - 7: quotient 1; gap to 2^40 - 1 less one is 2^39 - 2: quotient 1.
        let fingerprints = list(Width::W40, &[5, 6, 1 << 39, (1 << 40) - 1]);
        let mut stream = 0_u128;
        let mut at = 0;
        for (zeros, low) in [(0, 5), (0, 0), (1, (1_u128 << 38) - 7), (1, (1 << 38) - 2)] {
            stream |= 1 << (at + zeros);
            if at + zeros + 1 + 38 <= 128 {
                stream |= low << (at + zeros + 1);
            }
            at += zeros + 1 + 38;
        }
        let bytes = encode(&fingerprints, Width::W40).expect("sorted");
        assert_eq!(bytes.len(), 20);
        // The first three fit into 128 bits.
        assert_eq!(bytes[..14], (stream & ((1 << 118) - 1)).to_le_bytes()[..14]);
        assert_eq!(bytes[14] & 0x3f, (stream >> 112) as u8 & 0x3f);
        assert_eq!(decode(&bytes, 4, Width::W40), Ok(fingerprints));
        assert_eq!(encode(&list(Width::W40, &[5]), Width::W40), Ok(vec![11, 0, 0, 0, 0, 0]));
        assert_eq!(encode(&[], Width::W48), Ok(vec![]));
    }

    #[test]
    fn sizes_are_near_the_entropy() {
        let thousand = encode(&hashed(Width::W48, 1_000), Width::W48).expect("sorted");
        assert!(thousand.len() <= 4_960, "{}", thousand.len());
        let million = hashed(Width::W48, 1_000_000);
        let bits = encode(&million, Width::W48).expect("sorted").len() as f64 * 8.0 / million.len() as f64;
        assert!(bits <= 29.8, "{bits}");
    }

    #[test]
    fn extremes_come_back() {
        for width in [Width::W40, Width::W48, Width::W64] {
            let top = largest(width);
            for numbers in [
                vec![],
                vec![0],
                vec![top],
                vec![0, top],
                vec![top - 1, top],
                (0..100).collect(),
                (0..100).map(|i| top - 99 + i).collect(),
                (0..63)
                    .map(|i| 1 << (i * width.bits() / 64))
                    .collect::<alloc::collections::BTreeSet<u64>>()
                    .into_iter()
                    .collect(),
            ] {
                let fingerprints = list(width, &numbers);
                let bytes = encode(&fingerprints, width).expect("sorted");
                assert_eq!(Ok(bytes.len()), encoded_len(&fingerprints, width));
                assert_eq!(decode(&bytes, numbers.len() as u64, width), Ok(fingerprints));
            }
        }
    }

    #[test]
    fn what_is_not_sorted_is_not_coded() {
        let wide = list(Width::W64, &[1 << 40]);
        assert_eq!(encode(&wide, Width::W40), Err(RiceError::Unsorted { index: 0 }));
        for numbers in [[7, 7], [8, 7]] {
            assert_eq!(encode(&list(Width::W40, &numbers), Width::W40), Err(RiceError::Unsorted { index: 1 }));
        }
    }

    #[test]
    fn a_count_that_the_bytes_cannot_hold_takes_no_memory() {
        let short = RiceError::TooShort { count: 100_000_000, needed: 275_000_000, found: 3 };
        assert_eq!(decode(&[1, 2, 3], 100_000_000, Width::W48), Err(short));
        let many = RiceError::TooMany { count: 100_000_001 };
        assert_eq!(decode(&[1, 2, 3], 100_000_001, Width::W48), Err(many));
        assert_eq!(decode(&[], u64::MAX, Width::W64), Err(RiceError::TooMany { count: u64::MAX }));
    }

    #[test]
    fn only_one_code_is_accepted() {
        let fingerprints = hashed(Width::W48, 21);
        let bytes = encode(&fingerprints, Width::W48).expect("sorted");
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode(&longer, 21, Width::W48), Err(RiceError::Trailing { bytes: 1 }));
        assert_eq!(decode(&[0], 0, Width::W48), Err(RiceError::Trailing { bytes: 1 }));
        // One entry of 48 bits takes 49: seven bits of padding.
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0x80], 1, Width::W48), Err(RiceError::Padding));
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 1], 1, Width::W48), Ok(list(Width::W48, &[1 << 47])));
        // A quotient that the width has no room for, and one that never ends.
        assert_eq!(decode(&[2, 0, 0, 0, 0, 0, 0, 0], 1, Width::W48), Err(RiceError::Overflow { index: 0 }));
        assert_eq!(decode(&[0; 7], 1, Width::W48), Err(RiceError::Overflow { index: 0 }));
        assert_eq!(decode(&[0; 1_000], 200, Width::W40), Err(RiceError::Overflow { index: 0 }));
    }

    #[test]
    fn what_stands_behind_a_code_is_given_back() {
        let fingerprints = hashed(Width::W48, 30);
        let mut bytes = encode(&fingerprints, Width::W48).expect("sorted");
        bytes.extend([0xff, 0, 7]);
        assert_eq!(decode_prefix(&bytes, 30, Width::W48), Ok((fingerprints, &[0xff, 0, 7][..])));
        assert_eq!(decode_prefix(&[9], 0, Width::W48), Ok((vec![], &[9][..])));
    }

    #[test]
    fn every_cut_is_refused() {
        let fingerprints = hashed(Width::W40, 50);
        let bytes = encode(&fingerprints, Width::W40).expect("sorted");
        for len in 0..bytes.len() {
            let refused = decode(&bytes[..len], 50, Width::W40);
            assert!(matches!(refused, Err(RiceError::TooShort { .. } | RiceError::Truncated { .. })), "{len}");
        }
    }

    #[test]
    fn a_full_range_leaves_no_room_for_another() {
        // 2^64 - 1 and then anything: the sum wraps, and must not come back as a small number.
        let bytes = encode(&list(Width::W64, &[u64::MAX - 1, u64::MAX]), Width::W64).expect("sorted");
        let mut raised = bytes.clone();
        // Raises the first value by one: k = 63, quotient 1, so its lowest bit is bit 2.
        raised[0] |= 4;
        assert_eq!(decode(&raised, 2, Width::W64), Err(RiceError::Overflow { index: 1 }));
    }

    fn widths() -> impl Strategy<Value = Width> {
        prop_oneof![Just(Width::W40), Just(Width::W48), Just(Width::W64)]
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(
            width in widths(),
            numbers in prop_oneof![
                prop::collection::btree_set(any::<u64>(), 0..300),
                prop::collection::btree_set(0..10_000_u64, 0..300),
            ],
        ) {
            let mut fingerprints: Vec<_> = numbers.iter().map(|bits| Fingerprint::from_hash(*bits, width)).collect();
            fingerprints.sort_unstable();
            fingerprints.dedup();
            let bytes = encode(&fingerprints, width).expect("sorted");
            prop_assert_eq!(Ok(bytes.len()), encoded_len(&fingerprints, width));
            prop_assert_eq!(decode(&bytes, fingerprints.len() as u64, width), Ok(fingerprints));
        }

        #[test]
        fn what_decodes_is_the_code_of_what_it_decodes_to(
            width in widths(),
            count in 0..12_u64,
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 0..80),
        ) {
            // Any prefix of noise, so that some of them end exactly.
            for len in 0..=bytes.len() {
                if let Ok(fingerprints) = decode(&bytes[..len], count, width) {
                    prop_assert!(fingerprints.is_sorted_by(|a, b| a < b));
                    prop_assert_eq!(encode(&fingerprints, width), Ok(bytes[..len].to_vec()));
                }
            }
        }
    }
}
