//! Which `jti`s a new token may have: those that no filter in force flags.
//!
//! A token whose `jti` is clean is never a false positive, on any device that holds one of these filters. The
//! publisher says which filters those are; nothing here knows how they are made.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};

use revocast_core::{FilterBuf, Fingerprint, Jti, Membership, RealmId};

use crate::ledger::Realm;
use crate::service::ServiceError;

/// Draws for one `jti`. A filter that lets one in ten thousand pass fails here once in a million; one at
/// its target rate never does.
const ROLLS_MAX: u32 = 100;

/// The filters that devices may hold: of every epoch not retired, and of the one being built.
#[derive(Debug, Default)]
pub struct LiveFilters {
    realms: RwLock<BTreeMap<RealmId, Vec<Arc<FilterBuf>>>>,
}

impl LiveFilters {
    /// No filters yet, so everything is clean.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the filters of a realm.
    pub fn set(&self, realm: RealmId, filters: Vec<Arc<FilterBuf>>) {
        self.realms.write().unwrap_or_else(PoisonError::into_inner).insert(realm, filters);
    }

    /// Forgets all filters: another server publishes, and knows those in force.
    pub fn clear(&self) {
        self.realms.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether no filter of the realm says "possible".
    #[must_use]
    pub fn is_clean(&self, realm: RealmId, fingerprint: Fingerprint) -> bool {
        let realms = self.realms.read().unwrap_or_else(PoisonError::into_inner);
        let filters = realms.get(&realm).map_or(&[][..], Vec::as_slice);
        filters.iter().all(|filter| filter.query(fingerprint) == Membership::Absent)
    }

    /// Draws a `jti` that is clean: the text of a random UUID (version 4, RFC 9562).
    ///
    /// Gives up after a bounded number of draws, which a filter that is full would make endless.
    pub fn clean_jti(&self, realm: &Realm) -> Result<String, ServiceError> {
        for _ in 0..ROLLS_MAX {
            let jti = uuid()?;
            // 36 characters are always a `jti`.
            let fingerprint = Jti::new(&jti).ok().map(|jti| realm.fingerprinter.fingerprint(jti));
            if fingerprint.is_some_and(|fingerprint| self.is_clean(realm.id, fingerprint)) {
                return Ok(jti);
            }
        }
        Err(ServiceError::NoCleanJti { realm: realm.id, rolls: ROLLS_MAX })
    }
}

fn uuid() -> Result<String, ServiceError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(ServiceError::Random)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use revocast_core::{FilterParams, FingerprintFunction, Fingerprinter, RealmKey, Salt, UnixTime, Width};

    use super::*;

    fn realm() -> Realm {
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
        Realm::new(RealmId::new("a").unwrap(), "i", fingerprinter, UnixTime::from_secs(1))
    }

    /// A filter that flags about this share of all fingerprints.
    fn filter(inserted: u64) -> Arc<FilterBuf> {
        let params = FilterParams::new(Salt([inserted as u8; 16]), 4, 2).unwrap();
        let spread = (0..inserted).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
        Arc::new(FilterBuf::build(params, spread.filter_map(|bits| Fingerprint::from_bits(bits, Width::W48))))
    }

    #[test]
    fn a_jti_is_clean_against_every_filter() {
        let (filters, realm) = (LiveFilters::new(), realm());
        let both = vec![filter(500), filter(700)];
        assert!(both.iter().all(|filter| (0.1..0.8).contains(&filter.false_positive_rate())), "nothing is shown");
        filters.set(realm.id, both.clone());
        for _ in 0..200 {
            let jti = filters.clean_jti(&realm).unwrap();
            let fingerprint = realm.fingerprinter.fingerprint(Jti::new(&jti).unwrap());
            assert!(both.iter().all(|filter| filter.query(fingerprint) == Membership::Absent), "{jti}");
            assert_eq!((jti.len(), jti.as_bytes()[14]), (36, b'4'));
            assert!(matches!(jti.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{jti}");
        }
        // Those of one realm say nothing about another.
        let other = Realm { id: RealmId::new("b").unwrap(), ..realm };
        filters.set(other.id, vec![filter(20_000)]);
        assert!(filters.clean_jti(&other).is_err());
    }

    #[test]
    fn a_full_filter_is_an_error_and_no_loop() {
        let (filters, realm) = (LiveFilters::new(), realm());
        filters.set(realm.id, vec![filter(20_000)]);
        let error = filters.clean_jti(&realm).unwrap_err();
        assert!(matches!(error, ServiceError::NoCleanJti { rolls: ROLLS_MAX, .. }), "{error}");
        filters.set(realm.id, Vec::new());
        filters.clean_jti(&realm).unwrap();
    }
}
