//! The approximate half of a base: a Bloom filter whose probes stay within two cache lines.
//!
//! What lives here: geometry and its rates, building, folding, asking. What does not: the fingerprint of a
//! token (`token`), the exact answer (`exact`), and how a filter travels (`update`).

use alloc::vec;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;

use thiserror::Error;

use crate::limits::{ARTIFACT_BYTES_MAX, PROBES_PER_LINE_MAX};
use crate::token::Fingerprint;

/// Bytes of one line: what a cache fetches at once, so that all probes of a line cost one latency.
pub const LINE_BYTES: usize = 64;

/// Bits of one line.
const LINE_BITS: u32 = 512;

/// Times a filter may be folded. Two are useful; a third would leave a filter that mostly says "possible".
const FOLDS_MAX: u8 = 2;

/// Blocks of the largest filter that may travel.
const BLOCKS_MAX: u32 = (ARTIFACT_BYTES_MAX / LINE_BYTES as u64) as u32;

/// Blocks come in fours, so that both folds halve evenly.
const BLOCKS_STEP: u32 = 1 << FOLDS_MAX;

/// An epoch's salt: 16 bytes drawn from the operating system after the entries were frozen, used once.
///
/// Not a secret: it travels in the index. It decides which tokens are false positives in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

/// What a filter says about a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an answer that is not looked at lets a revoked token pass"]
pub enum Membership {
    /// Never inserted: certain.
    Absent,
    /// Inserted, or a false positive.
    Possible,
}

/// Why numbers make no filter, or bytes do not match them.
///
/// Caused by a peer that sealed a wrong index, or by an operator who asked for the impossible.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum GeometryError {
    /// The number of blocks does not fold evenly, is zero, or is more than may travel.
    #[error("a filter of {blocks} blocks: must be a multiple of {BLOCKS_STEP} from {BLOCKS_STEP} to {BLOCKS_MAX}")]
    Blocks {
        /// The number given.
        blocks: u64,
    },
    /// No probes would accept everything; too many only cost time.
    #[error("{probes} probes in each line: must be 1 to {PROBES_PER_LINE_MAX}")]
    Probes {
        /// The number given.
        probes: u8,
    },
    /// A rate that is no probability, or one that no filter of these limits reaches.
    #[error("a false-positive rate of {rate} for {entries} entries cannot be reached with {BLOCKS_MAX} blocks")]
    Rate {
        /// The rate asked for.
        rate: f64,
        /// The entries it was asked for.
        entries: u64,
    },
    /// The bytes are longer or shorter than the geometry says.
    #[error("the filter has {found} bytes instead of {expected}")]
    Length {
        /// What the geometry says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A slice that reaches beyond the end of the published filter.
    #[error("{len} bytes at {offset} reach beyond the {size} bytes of the filter")]
    Slice {
        /// Where the slice begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// Size of the published filter.
        size: u64,
    },
    /// Folded as often as is useful, twice.
    #[error("the filter was folded {FOLDS_MAX} times already")]
    Folds,
}

/// Salt and geometry of a filter: all that a question needs besides the lines.
///
/// # Shape
///
/// A filter is `blocks` lines of 64 bytes. A fingerprint has two lines and `probes` bits in each; bit `b` of a line is
/// bit `b & 7` of its byte `b >> 3`. All arithmetic is on unsigned 64-bit numbers, wrapping. With `a` and `b` the
/// halves of the salt (little-endian) and `m(z)` the `SplitMix64` step (add `0x9E3779B97F4A7C15`, then its finalizer):
///
/// ```text
/// key  = [m(a), m(b) | 1, m(m(a) + b), m(m(b) + a) | 1]
/// word = fold((fingerprint ^ key[0]) * key[1])        the first line; key[2] and key[3] give the second
/// fold = low half of the 128-bit product ^ high half
/// block = (word * blocks) >> 64                       of the 128-bit product
/// bits = word * 0x9E3779B97F4A7C15
/// bit i = (bits >> (55 - 9 * i)) & 511                for i in 0 .. probes
/// ```
///
/// Because the block comes from the high bits, halving `blocks` sends a fingerprint from block `i` to `i / 2`: a
/// filter folds by `OR` of neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterParams {
    salt: Salt,
    // Blocks as held; `folds` halvings below what was published.
    blocks: u32,
    probes: u8,
    folds: u8,
    key: [u64; 4],
}

impl FilterParams {
    /// Accepts 4 to 2^23 blocks, in fours, and 1 to [`PROBES_PER_LINE_MAX`] probes in each line.
    pub const fn new(salt: Salt, blocks: u32, probes: u8) -> Result<Self, GeometryError> {
        if blocks == 0 || blocks > BLOCKS_MAX || !blocks.is_multiple_of(BLOCKS_STEP) {
            return Err(GeometryError::Blocks { blocks: blocks as u64 });
        }
        if probes == 0 || probes > PROBES_PER_LINE_MAX {
            return Err(GeometryError::Probes { probes });
        }
        Ok(Self { salt, blocks, probes, folds: 0, key: expand(salt) })
    }

    /// Chooses the geometry for `entries` at `false_positive_rate`: the fewest probes whose size is within 0.5 % of the
    /// smallest.
    ///
    /// Blocks come in fours; where rounding down leaves the rate within 3 % of what was asked for, it rounds down.
    pub fn for_target(entries: u64, false_positive_rate: f64, salt: Salt) -> Result<Self, GeometryError> {
        let unreachable = GeometryError::Rate { rate: false_positive_rate, entries };
        // Written so that NaN fails as well.
        if !(false_positive_rate > 0.0 && false_positive_rate < 1.0) {
            return Err(unreachable);
        }
        let entries = entries.max(1);
        let sizes = [1, 2, 3, 4, 5, 6, PROBES_PER_LINE_MAX]
            .map(|probes| (probes, smallest_blocks(entries, probes, false_positive_rate)));
        let smallest = sizes.iter().filter_map(|&(_, blocks)| blocks).min().ok_or(unreachable)?;
        let near = smallest + smallest / 200;
        let (probes, blocks) = sizes
            .iter()
            .find_map(|&(probes, blocks)| blocks.filter(|&blocks| blocks <= near).map(|blocks| (probes, blocks)))
            .ok_or(unreachable)?;
        Self::new(salt, blocks, probes)
    }

    /// The same filter at half the size: precision is lost, recall never. `None` after two folds.
    #[must_use]
    pub const fn folded(self) -> Option<Self> {
        if self.folds < FOLDS_MAX {
            Some(Self { blocks: self.blocks / 2, folds: self.folds + 1, ..self })
        } else {
            None
        }
    }

    /// The epoch's salt.
    #[must_use]
    pub const fn salt(&self) -> Salt {
        self.salt
    }

    /// Lines as held: what was published, halved by each fold.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Probes in each of the two lines.
    #[must_use]
    pub const fn probes(&self) -> u8 {
        self.probes
    }

    /// How often it was folded since it was published, 0 to 2.
    #[must_use]
    pub const fn folds(&self) -> u8 {
        self.folds
    }

    /// Bytes of the lines as held.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.blocks as u64 * LINE_BYTES as u64
    }

    /// Bytes of the filter as published, before any fold.
    #[must_use]
    pub const fn published_bytes(&self) -> u64 {
        self.size_bytes() << self.folds
    }

    /// The false-positive rate to expect once `inserted` different fingerprints are in.
    ///
    /// Exact for the mean over salts, with the number of fingerprints in a line binomial; what it leaves out is that
    /// both lines may be the same one, which matters below some 20 blocks.
    #[must_use]
    pub fn false_positive_rate(&self, inserted: u64) -> f64 {
        let line = line_rate(inserted, self.blocks, self.probes);
        line * line
    }

    /// The word that places `fingerprint` in its first line.
    #[inline]
    const fn first(&self, fingerprint: Fingerprint) -> u64 {
        let [add, multiply, ..] = self.key;
        fold_product(fingerprint.bits() ^ add, multiply)
    }

    /// The word that places `fingerprint` in its second line.
    #[inline]
    const fn second(&self, fingerprint: Fingerprint) -> u64 {
        let [.., add, multiply] = self.key;
        fold_product(fingerprint.bits() ^ add, multiply)
    }

    /// The block of a word.
    #[inline]
    const fn block(&self, word: u64) -> usize {
        ((word as u128 * self.blocks as u128) >> 64) as usize
    }

    /// Asks the lines, `PROBES` known to the compiler so that nothing loops.
    #[inline]
    fn ask<const PROBES: u32, L: Borrow<Line>>(&self, lines: &[L], fingerprint: Fingerprint) -> Membership {
        let first = self.first(fingerprint);
        if !all_set::<PROBES, L>(lines, self.block(first), first) {
            return Membership::Absent;
        }
        let second = self.second(fingerprint);
        if all_set::<PROBES, L>(lines, self.block(second), second) { Membership::Possible } else { Membership::Absent }
    }

    #[inline]
    fn query<L: Borrow<Line>>(&self, lines: &[L], fingerprint: Fingerprint) -> Membership {
        // What serves a rate of 1e-2, in front of an exact list, stands where it is asked; all else is a call away.
        if self.probes == 3 { self.ask::<3, L>(lines, fingerprint) } else { self.query_other(lines, fingerprint) }
    }

    #[inline(never)]
    fn query_other<L: Borrow<Line>>(&self, lines: &[L], fingerprint: Fingerprint) -> Membership {
        match self.probes {
            1 => self.ask::<1, L>(lines, fingerprint),
            2 => self.ask::<2, L>(lines, fingerprint),
            3 => self.ask::<3, L>(lines, fingerprint),
            4 => self.ask::<4, L>(lines, fingerprint),
            5 => self.ask::<5, L>(lines, fingerprint),
            6 => self.ask::<6, L>(lines, fingerprint),
            _ => self.ask::<7, L>(lines, fingerprint),
        }
    }
}

/// A filter read in place from bytes that somebody else holds: flash, a memory map, an artifact.
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    params: FilterParams,
    lines: &'a [Line],
}

impl<'a> Filter<'a> {
    /// Takes the lines; their length must be what `params` say. Any content is a filter.
    pub fn new(params: FilterParams, bytes: &'a [u8]) -> Result<Self, GeometryError> {
        let (lines, rest) = bytes.as_chunks::<LINE_BYTES>();
        if lines.len() as u64 != u64::from(params.blocks) || !rest.is_empty() {
            return Err(GeometryError::Length { expected: params.size_bytes(), found: bytes.len() as u64 });
        }
        Ok(Self { params, lines })
    }

    /// Asks whether `fingerprint` was inserted.
    ///
    /// A false [`Membership::Possible`] is permissible, at the rate that [`Filter::false_positive_rate`] gives; a
    /// false [`Membership::Absent`] never is.
    ///
    /// # Complexity
    ///
    /// Reads one line, and a second one only when the first passes; allocates nothing.
    ///
    /// # Source
    ///
    /// Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors" (1970); lines after Putze, Sanders and
    /// Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007); range reduction after Lemire (2019).
    #[inline]
    pub fn query(&self, fingerprint: Fingerprint) -> Membership {
        self.params.query(self.lines, fingerprint)
    }

    /// Salt and geometry.
    #[must_use]
    pub const fn params(&self) -> &FilterParams {
        &self.params
    }

    /// The rate that the bits now set give, whatever was meant. Reads the whole filter.
    #[must_use]
    pub fn false_positive_rate(&self) -> f64 {
        measured_rate(self.params.probes, self.lines)
    }

    /// Bits that are set.
    #[must_use]
    pub fn bits_set(&self) -> u64 {
        self.lines.iter().map(|line| u64::from(ones(line))).sum()
    }

    /// Copies the lines, halved `folds` times, into memory of their own.
    pub fn to_owned_folded(&self, folds: u8) -> Result<FilterBuf, GeometryError> {
        let mut params = self.params;
        for _ in 0..folds {
            params = params.folded().ok_or(GeometryError::Folds)?;
        }
        let mut filter = FilterBuf::new(params);
        for (index, line) in self.lines.iter().enumerate() {
            filter.merge(index >> folds, 0, line);
        }
        Ok(filter)
    }
}

impl fmt::Debug for Filter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("params", &self.params).finish_non_exhaustive()
    }
}

/// A filter that holds its lines, each aligned to a cache line.
#[derive(Clone, PartialEq, Eq)]
pub struct FilterBuf {
    params: FilterParams,
    lines: Vec<AlignedLine>,
}

impl FilterBuf {
    /// An empty filter: everything is [`Membership::Absent`].
    #[must_use]
    pub fn new(params: FilterParams) -> Self {
        Self { params, lines: vec![AlignedLine([0; LINE_BYTES]); params.blocks as usize] }
    }

    /// Builds a filter of `fingerprints`, in any order.
    ///
    /// # Complexity
    ///
    /// Linear. A filter beyond a core's own cache is filled region by region, with up to 16 MiB of scratch memory, so
    /// that insertions hit the cache.
    #[must_use]
    pub fn build(params: FilterParams, fingerprints: impl IntoIterator<Item = Fingerprint>) -> Self {
        let mut filter = Self::new(params);
        if params.size_bytes() <= REGIONS_FROM_BYTES {
            for fingerprint in fingerprints {
                filter.insert(fingerprint);
            }
        } else {
            filter.insert_by_region(fingerprints);
        }
        filter
    }

    /// Adds one fingerprint. Only ever to a device's own copy: a published filter gets no further bits.
    #[inline]
    pub fn insert(&mut self, fingerprint: Fingerprint) {
        self.place(self.params.first(fingerprint));
        self.place(self.params.second(fingerprint));
    }

    /// A filter of these lines, as [`FilterBuf::lines`] gave them: its own size, not the published one.
    pub fn from_lines(params: FilterParams, bytes: &[u8]) -> Result<Self, GeometryError> {
        let Filter { lines, .. } = Filter::new(params, bytes)?;
        Ok(Self { params, lines: lines.iter().map(|line| AlignedLine(*line)).collect() })
    }

    /// Takes a slice of a published filter as it streams in, folding it to this filter's size.
    ///
    /// Bits only add up, so a slice may come twice and slices in any order; once all have come, this filter equals the
    /// published one, folded.
    pub fn absorb(&mut self, offset: u64, bytes: &[u8]) -> Result<(), GeometryError> {
        let (size, len) = (self.params.published_bytes(), bytes.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(GeometryError::Slice { offset, len, size });
        }
        // The first piece ends where a line does; all later ones begin there.
        let begins = (offset % LINE_BYTES as u64) as usize;
        let (head, rest) = bytes.split_at_checked(LINE_BYTES - begins).unwrap_or((bytes, &[]));
        let line = (offset / LINE_BYTES as u64) as usize;
        self.merge(line >> self.params.folds, begins, head);
        for (index, piece) in rest.chunks(LINE_BYTES).enumerate() {
            self.merge((line + 1 + index) >> self.params.folds, 0, piece);
        }
        Ok(())
    }

    /// Halves the filter: neighboring blocks become one, with the bits of both, so that nothing inserted is lost.
    pub fn fold(&self) -> Result<Self, GeometryError> {
        let mut folded = Self::new(self.params.folded().ok_or(GeometryError::Folds)?);
        for (index, line) in self.lines.iter().enumerate() {
            folded.merge(index / 2, 0, &line.0);
        }
        Ok(folded)
    }

    /// Asks whether `fingerprint` was inserted; see [`Filter::query`].
    #[inline]
    pub fn query(&self, fingerprint: Fingerprint) -> Membership {
        self.params.query(&self.lines, fingerprint)
    }

    /// Salt and geometry.
    #[must_use]
    pub const fn params(&self) -> &FilterParams {
        &self.params
    }

    /// The rate that the bits now set give, whatever was meant. Reads the whole filter.
    #[must_use]
    pub fn false_positive_rate(&self) -> f64 {
        measured_rate(self.params.probes, &self.lines)
    }

    /// Bits that are set.
    #[must_use]
    pub fn bits_set(&self) -> u64 {
        self.lines.iter().map(|line| u64::from(ones(&line.0))).sum()
    }

    /// The lines as they travel, one after the other.
    pub fn lines(&self) -> impl Iterator<Item = &[u8; LINE_BYTES]> {
        self.lines.iter().map(|line| &line.0)
    }

    /// The lines as they travel.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.lines.len() * LINE_BYTES);
        for line in &self.lines {
            bytes.extend_from_slice(&line.0);
        }
        bytes
    }

    /// Collects what goes into each region of the filter, then fills one region after the other.
    fn insert_by_region(&mut self, fingerprints: impl IntoIterator<Item = Fingerprint>) {
        let mut regions: [Vec<u64>; REGIONS] = [const { Vec::new() }; REGIONS];
        let mut held = 0;
        for fingerprint in fingerprints {
            for word in [self.params.first(fingerprint), self.params.second(fingerprint)] {
                // The block rises with the word, so its top bits name the region.
                if let Some(region) = regions.get_mut((word >> REGION_SHIFT) as usize) {
                    region.push(word);
                }
            }
            held += 2;
            if held >= WORDS_HELD_MAX {
                self.fill(&mut regions);
                held = 0;
            }
        }
        self.fill(&mut regions);
    }

    fn fill(&mut self, regions: &mut [Vec<u64>]) {
        for region in regions {
            for word in region.drain(..) {
                self.place(word);
            }
        }
    }

    /// Sets the bits of a word in its line.
    #[inline]
    fn place(&mut self, word: u64) {
        let block = self.params.block(word);
        if let Some(line) = self.lines.get_mut(block) {
            for probe in 0..u32::from(self.params.probes) {
                let bit = probe_bit(word, probe);
                if let Some(byte) = line.0.get_mut(bit >> 3) {
                    *byte |= 1 << (bit & 7);
                }
            }
        }
    }

    /// ORs bytes into a line of this filter, beginning at its byte `begins`.
    fn merge(&mut self, index: usize, begins: usize, bytes: &[u8]) {
        if let Some(line) = self.lines.get_mut(index) {
            for (to, from) in line.0.iter_mut().skip(begins).zip(bytes) {
                *to |= from;
            }
        }
    }
}

impl fmt::Debug for FilterBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterBuf").field("params", &self.params).finish_non_exhaustive()
    }
}

/// Up to here a filter fits a core's own cache and insertion in any order is as fast.
const REGIONS_FROM_BYTES: u64 = 1 << 20;

/// Regions of a large filter: few enough that each keeps a cache line of its own while they are collected.
const REGIONS: usize = 64;

/// What is left of a word's 64 bits after those that name its region.
const REGION_SHIFT: u32 = 64 - REGIONS.ilog2();

/// Words collected before they are inserted: 16 MiB, several for each line of all but the largest filters.
const WORDS_HELD_MAX: usize = 2 << 20;

/// The golden ratio as a fraction of 2^64, as in `SplitMix64`; odd, with its bits well spread.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

type Line = [u8; LINE_BYTES];

/// A line where the memory is ours: aligned, so that it never straddles two cache lines.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
struct AlignedLine(Line);

impl Borrow<Line> for AlignedLine {
    #[inline]
    fn borrow(&self) -> &Line {
        &self.0
    }
}

/// Reads the bits of `word` without a branch between them: about half are set, which no predictor guesses.
#[inline]
fn all_set<const PROBES: u32, L: Borrow<Line>>(lines: &[L], block: usize, word: u64) -> bool {
    // The block is below the number of lines by construction; were it not, "possible" is the safe answer.
    let Some(line) = lines.get(block) else { return true };
    let (words, _) = line.borrow().as_chunks::<8>();
    let mut all = 1;
    for probe in 0..PROBES {
        let bit = probe_bit(word, probe);
        let bits = words.get(bit >> 6).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        all &= bits >> (bit & 63);
    }
    all & 1 == 1
}

/// Bit number `probe` of a word's line.
#[inline]
const fn probe_bit(word: u64, probe: u32) -> usize {
    ((word.wrapping_mul(GOLDEN) >> (55 - 9 * probe)) & 511) as usize
}

/// Multiplies to 128 bits and folds the halves together, so that every bit of the input reaches every bit.
#[inline]
pub(crate) const fn fold_product(value: u64, multiplier: u64) -> u64 {
    let product = value as u128 * multiplier as u128;
    product as u64 ^ (product >> 64) as u64
}

/// The four words of a salt; see [`FilterParams`].
const fn expand(salt: Salt) -> [u64; 4] {
    let both = u128::from_le_bytes(salt.0);
    let (low, high) = (both as u64, (both >> 64) as u64);
    let (first, second) = (split_mix(low), split_mix(high));
    [first, second | 1, split_mix(first.wrapping_add(high)), split_mix(second.wrapping_add(low)) | 1]
}

/// One step of `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) const fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Bits set in a line.
fn ones(line: &Line) -> u32 {
    let (words, _) = line.as_chunks::<8>();
    words.iter().map(|bytes| u64::from_le_bytes(*bytes).count_ones()).sum()
}

/// The rate that these lines give: each of the two is drawn at random, and its probes fall on its bits at random.
fn measured_rate<L: Borrow<Line>>(probes: u8, lines: &[L]) -> f64 {
    let pass: f64 =
        lines.iter().map(|line| power(f64::from(ones(line.borrow())) / f64::from(LINE_BITS), u64::from(probes))).sum();
    let line = pass / (lines.len().max(1) as f64);
    line * line
}

/// The smallest number of blocks, in fours, that keeps the rate; `None` if the limit does not.
fn smallest_blocks(entries: u64, probes: u8, rate: f64) -> Option<u32> {
    let reached = |steps: u32, rate: f64| {
        let line = line_rate(entries, steps * BLOCKS_STEP, probes);
        line * line <= rate
    };
    let (mut low, mut high) = (1, BLOCKS_MAX / BLOCKS_STEP);
    if !reached(high, rate) {
        return None;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if reached(middle, rate) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // Four blocks are 2 % of the filter of 10,000 entries, and 2 % of size are 9 % of rate: rounding only upwards
    // would be felt there.
    let rounded_down = high - u32::from(high > 1 && reached(high - 1, rate * 1.03));
    Some(rounded_down * BLOCKS_STEP)
}

/// The chance that a random line passes `probes` random probes after `inserted` fingerprints went in.
///
/// A line that took `j` fingerprints has had `j * probes` bits drawn. The chance that `d` given bits are all among
/// them is, by inclusion and exclusion, the sum over `i` of `(-1)^i * (d over i) * (1 - i/512)^(j * probes)`; `j` is
/// binomial, which turns the power into one with a fixed exponent; `d`, the number of different bits that
/// `probes` draws name, is summed over as well.
fn line_rate(inserted: u64, blocks: u32, probes: u8) -> f64 {
    let size = f64::from(LINE_BITS);
    // Chances of 0, 1, 2, ... different bits.
    let mut distinct = [0.0; PROBES_PER_LINE_MAX as usize + 1];
    if let Some(none) = distinct.first_mut() {
        *none = 1.0;
    }
    for _ in 0..probes {
        let mut entering = 0.0;
        for (count, chance) in distinct.iter_mut().enumerate() {
            let repeated = *chance * count as f64 / size;
            let fresh = *chance - repeated;
            *chance = entering + repeated;
            entering = fresh;
        }
    }
    let drawn = inserted.saturating_mul(2);
    let mut rate = 0.0;
    for (count, chance) in distinct.iter().enumerate() {
        let mut weight = *chance;
        for excluded in 0..=count {
            let missed = power(1.0 - excluded as f64 / size, u64::from(probes));
            rate += weight * power(1.0 - (1.0 - missed) / f64::from(blocks.max(1)), drawn);
            weight *= -((count - excluded) as f64) / (excluded + 1) as f64;
        }
    }
    // Rounding may leave a hair outside of what a probability can be.
    rate.clamp(0.0, 1.0)
}

/// `base` to the power of `exponent`, by squaring: core has no float functions.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on should stop
mod tests {
    use super::*;
    use crate::token::Width;

    const SALTS: [Salt; 4] =
        [Salt([0; 16]), Salt([0xff; 16]), Salt(*b"0123456789abcdef"), Salt(*b"\x01epoch-seven-now")];

    /// Fingerprints as a realm has them: a hash of a counter, cut to `width`.
    fn fingerprints(width: Width, seed: u64, count: u64) -> impl Iterator<Item = Fingerprint> + Clone {
        (0..count).map(move |i| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed);
            Fingerprint::from_hash(hash, width)
        })
    }

    fn rate_of(filter: &FilterBuf, width: Width, questions: u64) -> f64 {
        let hits = fingerprints(width, 999, questions).filter(|&fp| filter.query(fp) == Membership::Possible).count();
        hits as f64 / questions as f64
    }

    #[test]
    fn nothing_inserted_is_ever_absent_even_after_both_folds() {
        for probes in 1..=PROBES_PER_LINE_MAX {
            for (salt, width) in SALTS.into_iter().zip([Width::W40, Width::W48, Width::W64, Width::W48]) {
                let params = FilterParams::new(salt, 60, probes).expect("geometry");
                let keys = fingerprints(width, 1, 3_000);
                let whole = FilterBuf::build(params, keys.clone());
                let half = whole.fold().expect("one fold");
                let quarter = half.fold().expect("two folds");
                let bytes = half.to_bytes();
                let view = Filter::new(*half.params(), &bytes).expect("view");
                for key in keys {
                    for answer in [whole.query(key), half.query(key), quarter.query(key), view.query(key)] {
                        assert_eq!(answer, Membership::Possible);
                    }
                }
                assert_eq!(quarter.params().blocks(), 15);
                assert_eq!(quarter.fold(), Err(GeometryError::Folds));
            }
        }
    }

    #[test]
    fn a_folded_filter_equals_one_built_at_that_size() {
        let params = FilterParams::new(SALTS[2], 400, 3).expect("geometry");
        let keys = fingerprints(Width::W48, 2, 9_000);
        let folded = FilterBuf::build(params, keys.clone()).fold().expect("fold");
        assert_eq!(folded, FilterBuf::build(params.folded().expect("fold"), keys));
    }

    #[test]
    fn a_filter_folds_while_it_streams_in_whatever_the_slices() {
        let params = FilterParams::new(SALTS[3], 40, 5).expect("geometry");
        let whole = FilterBuf::build(params, fingerprints(Width::W48, 3, 1_000));
        let bytes = whole.to_bytes();
        let view = Filter::new(params, &bytes).expect("view");
        for piece in [1, 7, 64, 100, 1_000, 4_096] {
            let mut streamed = FilterBuf::new(params.folded().and_then(FilterParams::folded).expect("folds"));
            for (index, slice) in bytes.chunks(piece).enumerate() {
                streamed.absorb((index * piece) as u64, slice).expect("within the filter");
            }
            assert_eq!(streamed, whole.fold().and_then(|half| half.fold()).expect("folds"));
            assert_eq!(streamed, view.to_owned_folded(2).expect("folds"));
        }
        let mut other = FilterBuf::new(params);
        for (offset, len) in [(2_560, 1), (2_559, 2), (u64::MAX, 1), (0, 2_561)] {
            let refused = other.absorb(offset, &vec![1; len]);
            assert_eq!(refused, Err(GeometryError::Slice { offset, len: len as u64, size: 2_560 }));
        }
        assert_eq!(other.bits_set(), 0);
    }

    #[test]
    fn a_large_filter_is_built_the_same_region_by_region() {
        let params = FilterParams::new(SALTS[2], 20_000, 3).expect("geometry");
        assert!(params.size_bytes() > REGIONS_FROM_BYTES);
        let keys = fingerprints(Width::W48, 4, 1_100_000);
        let built = FilterBuf::build(params, keys.clone());
        let mut inserted = FilterBuf::new(params);
        keys.for_each(|key| inserted.insert(key));
        assert!(built == inserted);
    }

    #[test]
    fn the_measured_rate_is_within_five_percent_of_the_target() {
        // Averaged over salts: what a single one deviates by is chance, not a flaw of the mix.
        for width in [Width::W40, Width::W48] {
            for (target, entries, questions, bits_max) in
                [(1e-2, 10_000, 400_000, 9.75), (1e-2, 100_000, 400_000, 9.75), (1e-3, 100_000, 1_000_000, 14.75)]
            {
                let mut mean = 0.0;
                for salt in SALTS {
                    let params = FilterParams::for_target(entries, target, salt).expect("reachable");
                    let bits = params.size_bytes() as f64 * 8.0 / entries as f64;
                    assert!(bits <= bits_max, "{bits} bits at {target}");
                    let filter = FilterBuf::build(params, fingerprints(width, 5, entries));
                    let measured = rate_of(&filter, width, questions);
                    assert!((measured / filter.false_positive_rate() - 1.0).abs() < 0.08, "{measured} {salt:?}");
                    mean += measured / SALTS.len() as f64;
                }
                assert!((mean / target - 1.0).abs() < 0.05, "{mean} instead of {target} with {entries} at {width:?}");
            }
        }
    }

    #[test]
    fn the_measured_rate_holds_at_one_in_ten_thousand() {
        for width in [Width::W40, Width::W48] {
            let mut mean = 0.0;
            for salt in SALTS {
                let params = FilterParams::for_target(1_000_000, 1e-4, salt).expect("reachable");
                assert!(params.size_bytes() * 8 <= 20_000_000);
                let filter = FilterBuf::build(params, fingerprints(width, 5, 1_000_000));
                mean += rate_of(&filter, width, 20_000_000) / SALTS.len() as f64;
            }
            assert!((mean / 1e-4 - 1.0).abs() < 0.05, "{mean} at {width:?}");
        }
    }

    #[test]
    fn targets_choose_few_probes_and_small_sizes() {
        for (target, probes, bits_max) in [(1e-2, 3, 9.75), (1e-3, 5, 14.75), (1e-4, 6, 20.0)] {
            for entries in [10_000, 1_000_000, 10_000_000] {
                let params = FilterParams::for_target(entries, target, SALTS[0]).expect("reachable");
                let bits = params.size_bytes() as f64 * 8.0 / entries as f64;
                // Rounding to four blocks may make fewer probes as good for a small filter.
                assert!(params.probes() == probes || entries == 10_000, "{bits} bits");
                assert!(bits <= bits_max, "{bits} bits at {target}");
                let rate = params.false_positive_rate(entries);
                assert!((rate / target - 1.0).abs() < 0.04, "{rate}");
            }
        }
    }

    #[test]
    fn the_smallest_filter_serves_no_entries_and_one() {
        for entries in [0, 1] {
            let params = FilterParams::for_target(entries, 1e-2, SALTS[0]).expect("reachable");
            assert_eq!(params.blocks(), 4);
            assert!(params.false_positive_rate(entries) < 1e-2);
        }
        let empty = FilterBuf::new(FilterParams::new(SALTS[0], 4, 3).expect("geometry"));
        assert!(fingerprints(Width::W64, 6, 1_000).all(|key| empty.query(key) == Membership::Absent));
        assert_eq!(empty.bits_set(), 0);
    }

    #[test]
    fn hostile_geometry_is_refused() {
        for blocks in [0, 1, 2, 3, 5, 6, BLOCKS_MAX + 4, u32::MAX] {
            let refused = FilterParams::new(SALTS[0], blocks, 3);
            assert_eq!(refused, Err(GeometryError::Blocks { blocks: u64::from(blocks) }));
        }
        for probes in [0, 8, 255] {
            assert_eq!(FilterParams::new(SALTS[0], 4, probes), Err(GeometryError::Probes { probes }));
        }
        for rate in [0.0, -1.0, 1.0, f64::INFINITY, f64::NAN] {
            assert!(matches!(FilterParams::for_target(10, rate, SALTS[0]), Err(GeometryError::Rate { .. })));
        }
        assert!(matches!(FilterParams::for_target(u64::MAX, 1e-2, SALTS[0]), Err(GeometryError::Rate { .. })));
        let params = FilterParams::new(SALTS[0], 8, 7).expect("geometry");
        for found in [0, 1, 64, 511, 513, 1_024] {
            let refused = Filter::new(params, &vec![0xff; found]).map(|_| ());
            assert_eq!(refused, Err(GeometryError::Length { expected: 512, found: found as u64 }));
        }
        let bytes = [0xff; 512];
        let full = Filter::new(params, &bytes).expect("any content is a filter");
        assert!(fingerprints(Width::W64, 7, 100).all(|key| full.query(key) == Membership::Possible));
        assert!(full.false_positive_rate() > 0.999);
    }

    #[test]
    fn the_mixing_is_pinned() {
        // Worked out by another program from the description on `FilterParams`: for both lines the word, the block
        // of 1000, the bits of three probes.
        let params = FilterParams::new(Salt(*b"0123456789abcdef"), 1_000, 3).expect("geometry");
        let describe = |bits: u64| {
            let key = Fingerprint::from_bits(bits, Width::W64).expect("64 bits");
            [params.first(key), params.second(key)]
                .map(|word| (word, params.block(word), [probe_bit(word, 0), probe_bit(word, 1), probe_bit(word, 2)]))
        };
        assert_eq!(describe(0), VECTOR_ZERO);
        assert_eq!(describe(0x0000_1234_5678_9abc), VECTOR_48);
        assert_eq!(describe(u64::MAX), VECTOR_MAX);
    }

    type Vector = [(u64, usize, [usize; 3]); 2];
    const VECTOR_ZERO: Vector =
        [(0x8637_45cb_7443_3207, 524, [377, 38, 362]), (0xdcd5_23c9_eebd_efa1, 862, [15, 245, 2])];
    const VECTOR_48: Vector =
        [(0x7271_80bd_f4a6_07de, 447, [406, 353, 43]), (0xd4fd_d160_8f7a_fa2c, 831, [285, 408, 30])];
    const VECTOR_MAX: Vector =
        [(0x2737_340b_7aab_bb30, 153, [181, 309, 396]), (0xde86_cbb5_e930_0c49, 869, [304, 213, 404])];
}
