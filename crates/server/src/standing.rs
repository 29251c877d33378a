//! The keys of enrolled devices, and what they make of a device's word.
//!
//! A report or a question of an enrolled device counts if that device's key signed it (design rule 21); those of others
//! are claims, as whoever may publish on a topic makes them. Keys are asked of the ledger and kept for a while. What
//! speaks against a kept one, such as a signature that does not fit, is looked up again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revocast_core::{DeviceId, Kind, PublicKey, RealmId, Sealed};

use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};

/// Devices whose key, or the lack of one, is kept: some 25 MiB. When there are more all are asked for again.
const KEPT_MAX: usize = 200_000;

/// How long one is kept.
const KEPT_FOR: Duration = Duration::from_mins(1);

/// One that was asked for so lately is not asked for again, whatever speaks against it: doubt costs a question to the
/// ledger, and anybody can raise it.
const LATELY: Duration = Duration::from_secs(1);

/// What a device's word is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The device is not enrolled: whoever may publish there says so.
    Claimed,
    /// The device's own key signed it.
    Proven,
    /// The device is enrolled, and its key did not sign it; or nobody could look.
    Unproven,
}

#[derive(Clone, Copy)]
struct Kept {
    key: Option<PublicKey>,
    since: Duration,
}

/// Knows whose signature a device's word needs.
pub struct Standings {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    kept: Mutex<HashMap<(RealmId, DeviceId), Kept>>,
}

impl Standings {
    /// An empty one over a ledger.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) -> Self {
        Self { ledger, clock, kept: Mutex::default() }
    }

    /// What an object of this kind is worth that came on a device's topic.
    pub async fn judge(&self, realm: RealmId, device: DeviceId, kind: Kind, payload: &[u8]) -> Standing {
        let fits = |key: &PublicKey| Sealed::expect(payload, &realm, kind).is_ok_and(|sealed| sealed.is_signed_by(key));
        // The last byte of an object counts its signatures.
        let signed = payload.last().is_some_and(|count| *count > 0);
        let now = self.clock.now().uptime;
        let kept = self.kept().get(&(realm, device)).copied();
        if let Some(Kept { key, since }) = kept.filter(|kept| now.saturating_sub(kept.since) < KEPT_FOR) {
            let told = match &key {
                Some(key) if fits(key) => return Standing::Proven,
                Some(_) => Standing::Unproven,
                None => Standing::Claimed,
            };
            // Somebody who signs may have been enrolled since.
            if (key.is_none() && !signed) || now.saturating_sub(since) < LATELY {
                return told;
            }
        }
        match self.look_up(realm, device, now).await {
            Ok(Some(key)) if fits(&key) => Standing::Proven,
            Ok(Some(_)) => Standing::Unproven,
            Ok(None) => Standing::Claimed,
            Err(error) => {
                tracing::debug!(%realm, %device, %error, "whether a device is enrolled is not known");
                Standing::Unproven
            }
        }
    }

    async fn look_up(&self, realm: RealmId, device: DeviceId, now: Duration) -> Result<Option<PublicKey>, LedgerError> {
        let key = match self.ledger.device(realm, device).await {
            Ok(enrolled) => enrolled.map(|enrolled| enrolled.signing),
            Err(LedgerError::RealmUnknown { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert((realm, device), Kept { key, since: now });
        Ok(key)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<(RealmId, DeviceId), Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Standings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Standings({})", self.kept().len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use revocast_core::{
        EnvelopeKey, FingerprintFunction, Fingerprinter, Now, RealmKey, SigningKey, UnixMillis, UnixTime, Width, seal,
    };

    use super::*;
    use crate::ledger::{MemoryLedger, NewDevice, Realm};

    struct SetClock(AtomicU64);

    impl Clock for SetClock {
        fn now(&self) -> Now {
            let millis = self.0.load(Ordering::Relaxed);
            Now::new(UnixMillis::from_millis(1_800_000_000_000 + millis), Duration::from_millis(millis))
        }
    }

    fn realm() -> RealmId {
        RealmId::new("fleet").unwrap()
    }

    fn gate() -> DeviceId {
        DeviceId::new("gate").unwrap()
    }

    async fn enroll(ledger: &MemoryLedger, key: &SigningKey) {
        let device = NewDevice {
            id: gate(),
            signing: key.public(),
            sealing: EnvelopeKey::from_seed([9; 32]).public(),
            subject: "s".to_owned(),
            audience: Vec::new(),
            replace: true,
            actor: "a".to_owned(),
        };
        ledger.enroll(realm(), UnixTime::from_secs(1_800_000_000), device).await.unwrap();
    }

    #[tokio::test]
    async fn the_word_of_an_enrolled_device_counts_if_its_key_signed_it() {
        let ledger = Arc::new(MemoryLedger::new());
        let clock = Arc::new(SetClock(AtomicU64::new(10_000)));
        let standings = Standings::new(ledger.clone(), clock.clone());
        let (old, new) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let said = |keys: &[&SigningKey]| seal(Kind::Report, &realm(), b"anything", keys);
        let (plain, by_old, by_new) = (said(&[]), said(&[&old]), said(&[&new]));
        let judge = async |payload: &[u8]| standings.judge(realm(), gate(), Kind::Report, payload).await;
        // Of a realm that is not here, and of a device that is not enrolled.
        assert_eq!(judge(&plain).await, Standing::Claimed);
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48);
        let founded = Realm::new(realm(), "i", fingerprinter, UnixTime::from_secs(1_800_000_000));
        ledger.create_realm(founded, Vec::new()).await.unwrap();
        assert_eq!(judge(&by_old).await, Standing::Claimed);

        // A signature is what speaks against what was kept, once it is not brand new.
        enroll(&ledger, &old).await;
        assert_eq!(judge(&by_old).await, Standing::Claimed);
        clock.0.store(11_000, Ordering::Relaxed);
        assert_eq!(judge(&by_old).await, Standing::Proven);
        for (payload, why) in [(&plain, "unsigned"), (&by_new, "by another"), (&b"garbage".to_vec(), "no object")] {
            assert_eq!(judge(payload).await, Standing::Unproven, "{why}");
        }
        let as_question = standings.judge(realm(), gate(), Kind::Ask, &by_old).await;
        assert_eq!(as_question, Standing::Unproven, "what was signed as a report is no question");
        let mut bent = by_old.clone();
        bent[12] ^= 1;
        assert_eq!(judge(&bent).await, Standing::Unproven);

        // New keys count at once, and the old ones no longer than they are kept.
        enroll(&ledger, &new).await;
        clock.0.store(12_500, Ordering::Relaxed);
        assert_eq!(judge(&by_new).await, Standing::Proven);
        assert_eq!(judge(&by_old).await, Standing::Unproven);
        enroll(&ledger, &old).await;
        clock.0.store(12_500 + KEPT_FOR.as_millis() as u64, Ordering::Relaxed);
        assert_eq!(judge(&by_new).await, Standing::Unproven);
        let dismissed = ledger.dismiss(realm(), UnixTime::from_secs(1_800_000_000), gate(), None, "a".to_owned()).await;
        assert!(dismissed.is_ok());
        clock.0.fetch_add(KEPT_FOR.as_millis() as u64, Ordering::Relaxed);
        assert_eq!(judge(&by_old).await, Standing::Claimed);
    }
}
