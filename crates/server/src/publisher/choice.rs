//! Which filter serves a realm best: the smallest total, worked out from the realm's real numbers.
//!
//! A filter that matches less costs bits for every revocation; one that matches more costs an exception for every
//! good token that it matches. Where the good tokens are not known, nothing can be weighed, and the rate is the usual.

use std::fmt;

use revocast_core::{ExactList, FilterParams, GeometryError, Salt, Width};

/// Rate of the published filter where the good tokens are not known: a match costs a question, and one in a hundred
/// is what a filter in front of a list gives as well.
const RATE_DEFAULT: f64 = 0.01;

/// The rates that are weighed: from one in 16 down, each the fourth root of two below the one before.
const RATE_FIRST: f64 = 1.0 / 16.0;
const RATE_STEP: f64 = 0.840_896_415_253_714_6;
const RATES: usize = 64;

/// The filter chosen for an epoch, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Rate of false positives that the filter is built for.
    pub rate: f64,
    /// Whether exceptions go with it.
    pub exceptions: bool,
    /// Why.
    pub because: Because,
    /// Revocations, by fingerprint.
    pub revoked: u64,
    /// Registered tokens that are not revoked; 0 where they are not known.
    pub good: u64,
    /// Bytes of filter and exceptions in a device, as expected; 0 where they are not known.
    pub covered_bytes: u64,
    /// Bytes of the whole list in a device.
    pub list_bytes: u64,
}

/// Why a filter was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The operator pinned the rate.
    Pinned,
    /// The good tokens are not known, so there is nothing to weigh.
    NotCovered,
    /// Filter and exceptions are smallest in total.
    Smallest,
    /// So few of so many are revoked that the list is smaller than filter and exceptions.
    ListSmaller,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |bytes: u64| bytes as f64 * 8.0 / self.revoked.max(1) as f64;
        let (covered, list) = (bits(self.covered_bytes), bits(self.list_bytes));
        write!(f, "rate {:.2e}: ", self.rate)?;
        match self.because {
            Because::Pinned => write!(f, "pinned by the operator"),
            Because::NotCovered => write!(f, "the usual, since the good tokens are not known"),
            Because::Smallest => write!(
                f,
                "filter and exceptions take {covered:.1} bits a revocation, the least for {} revoked and {} good \
                 tokens; the list takes {list:.1}",
                self.revoked, self.good
            ),
            Because::ListSmaller => write!(
                f,
                "for {} revoked and {} good tokens the list takes {list:.1} bits a revocation, less than the \
                 {covered:.1} of filter and exceptions",
                self.revoked, self.good
            ),
        }
    }
}

/// Chooses for `revoked` revocations and, where they are known, `good` tokens that are not revoked.
///
/// # Complexity
///
/// Some sixty geometries, whatever the size of the realm.
pub fn choose(revoked: u64, good: Option<u64>, width: Width, pinned: Option<f64>) -> Result<Choice, GeometryError> {
    let list_bytes = ExactList::<Vec<u8>>::size_bytes_of(revoked, width).unwrap_or(u64::MAX);
    let plain = |rate, because| Choice {
        rate,
        exceptions: good.is_some(),
        because,
        revoked,
        good: good.unwrap_or(0),
        covered_bytes: 0,
        list_bytes,
    };
    if let Some(rate) = pinned {
        let covered_bytes = good.map_or(Ok(0), |good| covered_bytes(revoked, good, rate))?;
        return Ok(Choice { covered_bytes, ..plain(rate, Because::Pinned) });
    }
    let Some(good) = good else { return Ok(plain(RATE_DEFAULT, Because::NotCovered)) };
    let rates = std::iter::successors(Some(RATE_FIRST), |rate| Some(rate * RATE_STEP)).take(RATES);
    // A rate that no filter of the limits reaches is none to choose.
    let weighed = rates.filter_map(|rate| Some((covered_bytes(revoked, good, rate).ok()?, rate)));
    let least = weighed.min_by_key(|(bytes, _)| *bytes);
    Ok(match least {
        Some((covered_bytes, rate)) if covered_bytes <= list_bytes || revoked < 64 => {
            Choice { covered_bytes, ..plain(rate, Because::Smallest) }
        }
        Some((covered_bytes, _)) => {
            Choice { covered_bytes, exceptions: false, ..plain(RATE_DEFAULT, Because::ListSmaller) }
        }
        None => plain(RATE_DEFAULT, Because::NotCovered),
    })
}

/// Bytes of a filter of this rate with its exceptions, in a device.
fn covered_bytes(revoked: u64, good: u64, rate: f64) -> Result<u64, GeometryError> {
    let params = FilterParams::for_target(revoked, rate, Salt([0; 16]))?;
    // Not what was asked for: blocks come in fours.
    let exceptions = good as f64 * params.false_positive_rate(revoked);
    // A key is long enough to miss every revocation, and its list takes 2.3 bits beside what its count saves:
    // log2(exceptions * revoked) - log2(exceptions) + 2.3.
    let bits = (revoked.max(2) as f64).log2() + 2.3;
    Ok(params.size_bytes() + (exceptions * bits / 8.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_takes_sixteen_bits() {
        let choice = choose(10_000, Some(990_000), Width::W48, None).unwrap();
        assert_eq!(choice.because, Because::Smallest);
        assert!(choice.exceptions && (5e-4..3e-3).contains(&choice.rate), "{choice:?}");
        let bits = choice.covered_bytes as f64 * 8.0 / 10_000.0;
        assert!((15.0..17.0).contains(&bits), "{bits}");
        assert!(choice.to_string().contains("bits a revocation, the least for 10000 revoked"), "{choice}");
    }

    #[test]
    fn fewer_good_tokens_make_a_coarser_filter_and_more_a_finer_one() {
        let rate = |good| choose(10_000, Some(good), Width::W48, None).unwrap().rate;
        let rates: Vec<f64> = [90_000, 490_000, 990_000, 9_990_000].map(rate).to_vec();
        assert!(rates.is_sorted_by(|a, b| a > b), "{rates:?}");
    }

    #[test]
    fn where_next_to_nothing_is_revoked_the_list_is_smaller() {
        let choice = choose(100, Some(50_000_000_000), Width::W48, None).unwrap();
        assert_eq!((choice.because, choice.exceptions), (Because::ListSmaller, false), "{choice}");
        assert!(choice.covered_bytes > choice.list_bytes);
    }

    #[test]
    fn what_is_not_known_or_pinned_is_not_weighed() {
        let unknown = choose(10_000, None, Width::W48, None).unwrap();
        assert_eq!((unknown.because, unknown.rate, unknown.exceptions), (Because::NotCovered, 0.01, false));
        let pinned = choose(10_000, Some(990_000), Width::W48, Some(0.02)).unwrap();
        assert_eq!((pinned.because, pinned.rate, pinned.exceptions), (Because::Pinned, 0.02, true));
        assert!(pinned.covered_bytes > choose(10_000, Some(990_000), Width::W48, None).unwrap().covered_bytes);
        assert!(choose(10_000, None, Width::W48, Some(0.0)).is_ok(), "refused where the filter is built");
    }
}
