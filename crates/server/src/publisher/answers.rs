//! Answers to questions about single tokens: who may ask how often, and what the book says.
//!
//! Questions of enrolled devices arrive here only if their key signed them. Those of others are not signed, so whoever may
//! publish on a device's topic asks in its name. What that costs is bounded here; what it yields is the state of one
//! fingerprint.

use std::collections::HashMap;
use std::time::Duration;

use revocast_core::limits::{ASK_EVERY, ASKS_BURST};
use revocast_core::update::{Answer, DeviceId, Finding, Question};
use revocast_core::wire::{self, WireError};
use revocast_core::{
    Allowance, Kind, RealmId, Sealed, Sequence, SigningKey, Term, UnixMillis, UnixTime, Why, Width, seal,
};

use super::Book;

/// Two more in a row than a device asks: the network pushes together what was apart.
const DEVICE_BURST: u32 = ASKS_BURST + 2;

/// Answers to all devices of a realm: so many in a row, and so often in the long run. Each costs a
/// signature, some 20 microseconds, and a message.
const TOTAL_BURST: u32 = 256;
const TOTAL_EVERY: Duration = Duration::from_millis(4);

/// Devices whose allowance is remembered. One that is forgotten has long had its whole allowance again.
const DEVICES_MAX: usize = 8_192;

/// Decides which questions are answered.
#[derive(Debug, Default)]
pub struct Admission {
    devices: HashMap<DeviceId, Allowance>,
    total: Allowance,
}

impl Admission {
    /// The question in a message on this device's topic, if it is one and may be answered now.
    pub fn admit(
        &mut self,
        uptime: Duration,
        realm: &RealmId,
        device: DeviceId,
        payload: &[u8],
        width: Width,
    ) -> Option<Question> {
        let sealed = Sealed::expect(payload, realm, Kind::Ask).ok()?;
        // It may be signed by nobody; it is decoded within its limits and believed in nothing.
        let question = wire::decode_question(sealed.unverified_body(), width).ok()?;
        let allowed = question.device == device && self.spend(uptime, device);
        allowed.then_some(question)
    }

    fn spend(&mut self, uptime: Duration, device: DeviceId) -> bool {
        if self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(&device) {
            self.devices.retain(|_, allowance| !allowance.is_whole(uptime));
            if self.devices.len() >= DEVICES_MAX {
                return false;
            }
        }
        // The device first: one that asks too much shall not use up what others need.
        self.devices.entry(device).or_default().take(uptime, DEVICE_BURST, ASK_EVERY)
            && self.total.take(uptime, TOTAL_BURST, TOTAL_EVERY)
    }
}

/// What a book says about a question, as of a time and the horizon at that time.
pub fn find(book: &Book, question: &Question, horizon: UnixTime) -> Finding {
    if question.exp <= horizon {
        return Finding::Revoked { why: Why::Expired { horizon } };
    }
    let mut cutoffs = question.scopes().filter_map(|scope| Some((scope.kind, book.cutoff(&scope)?)));
    if let Some((scope, not_before)) = cutoffs.find(|(_, not_before)| question.precedes(*not_before)) {
        return Finding::Revoked { why: Why::Cutoff { scope, not_before } };
    }
    if book.is_revoked(question.fingerprint) {
        return Finding::Revoked { why: Why::Token };
    }
    Finding::NotRevoked
}

/// Where the book stands, and when.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Reign of the ledger.
    pub term: Term,
    /// The last entry there was at that time.
    pub sequence: Sequence,
    /// The time.
    pub at: UnixMillis,
    /// The horizon at that time.
    pub horizon: UnixTime,
}

/// The sealed answer to a question.
pub fn answer(
    book: &Book,
    question: &Question,
    standing: Standing,
    realm: &RealmId,
    key: &SigningKey,
) -> Result<Vec<u8>, WireError> {
    let Standing { term, sequence, at, horizon } = standing;
    let body = wire::encode_answer(&Answer {
        device: question.device,
        nonce: question.nonce,
        fingerprint: question.fingerprint,
        finding: find(book, question, horizon),
        term,
        sequence,
        issued_at: at,
        horizon,
    })?;
    Ok(seal(Kind::Answer, realm, &body, &[key]))
}

#[cfg(test)]
mod tests {
    use revocast_core::{Claims, FingerprintFunction, Fingerprinter, Jti, RealmKey, ScopeKind};

    use super::*;
    use crate::ledger::{Entry, Scope, Statement};

    fn fingerprinter() -> Fingerprinter {
        Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48)
    }

    fn question(device: &str, claims: &Claims<'_>) -> Question {
        Question::new(DeviceId::new(device).unwrap(), [7; 16], &fingerprinter(), claims)
    }

    fn claims(jti: &str) -> Claims<'_> {
        Claims::new(Jti::new(jti).unwrap(), UnixTime::from_secs(1_000))
    }

    fn sealed(question: &Question) -> Vec<u8> {
        seal(Kind::Ask, &realm(), &wire::encode_question(question).unwrap(), &[])
    }

    fn realm() -> RealmId {
        RealmId::new("r").unwrap()
    }

    #[test]
    fn the_book_is_asked_in_the_order_of_every_question() {
        let mut book = Book::new(fingerprinter(), Term(1));
        let statements = [
            Statement::Revoke { jti: "gone".into(), exp: UnixTime::from_secs(1_000) },
            Statement::Cutoff { scope: Scope::Sub("s".into()), not_before: UnixTime::from_secs(500) },
        ];
        for (at, statement) in statements.into_iter().enumerate() {
            let (sequence, at) = (Sequence(at as u64 + 1), UnixTime::from_secs(1));
            book.apply(&Entry { sequence, at, statement, reason: None, actor: String::new() });
        }
        let horizon = UnixTime::from_secs(900);
        let found = |claims: &Claims<'_>| find(&book, &question("d", claims), horizon);
        assert_eq!(found(&claims("good")), Finding::NotRevoked);
        assert_eq!(found(&claims("gone")), Finding::Revoked { why: Why::Token });
        let cut = Why::Cutoff { scope: ScopeKind::Subject, not_before: UnixTime::from_secs(500) };
        let with = |sub, iat| Claims { sub: Some(sub), iat, ..claims("good") };
        assert_eq!(found(&with("s", None)), Finding::Revoked { why: cut });
        assert_eq!(found(&with("s", Some(UnixTime::from_secs(499)))), Finding::Revoked { why: cut });
        assert_eq!(found(&with("s", Some(UnixTime::from_secs(500)))), Finding::NotRevoked);
        assert_eq!(found(&with("t", None)), Finding::NotRevoked);
        let late = Claims { exp: horizon, ..claims("gone") };
        assert_eq!(found(&late), Finding::Revoked { why: Why::Expired { horizon } });
    }

    #[test]
    fn a_device_that_asks_too_much_is_held_back_and_others_are_not() {
        let mut admission = Admission::default();
        let [greedy, modest] = ["greedy", "modest"].map(|name| DeviceId::new(name).unwrap());
        let mut ask = |at: u64, device: DeviceId| {
            let offer = sealed(&question(device.as_str(), &claims("a")));
            admission.admit(Duration::from_millis(at), &realm(), device, &offer, Width::W48).is_some()
        };
        assert_eq!((0..100).filter(|_| ask(0, greedy)).count(), DEVICE_BURST as usize);
        assert!(ask(0, modest));
        assert!(!ask(999, greedy) && ask(1_000, greedy) && !ask(1_000, greedy));
    }

    #[test]
    fn many_devices_together_are_held_back_and_none_takes_memory_for_ever() {
        let mut admission = Admission::default();
        let mut admitted = 0;
        for number in 0..3 * DEVICES_MAX {
            let device = DeviceId::new(&format!("d{number}")).unwrap();
            let offer = sealed(&question(device.as_str(), &claims("a")));
            let answered = admission.admit(Duration::ZERO, &realm(), device, &offer, Width::W48).is_some();
            admitted += usize::from(answered);
            assert!(admission.devices.len() <= DEVICES_MAX);
        }
        assert_eq!(admitted, TOTAL_BURST as usize);
        let device = DeviceId::new("later").unwrap();
        let offer = sealed(&question("later", &claims("a")));
        assert!(admission.admit(Duration::from_mins(1), &realm(), device, &offer, Width::W48).is_some());
        assert_eq!(admission.devices.len(), 1);
    }

    #[test]
    fn what_is_no_question_of_this_device_is_not_answered() {
        let mut admission = Admission::default();
        let device = DeviceId::new("d").unwrap();
        let good = sealed(&question("d", &claims("a")));
        let other = sealed(&question("e", &claims("a")));
        let elsewhere = seal(
            Kind::Ask,
            &RealmId::new("s").unwrap(),
            &wire::encode_question(&question("d", &claims("a"))).unwrap(),
            &[],
        );
        let mut admits = |bytes: &[u8]| admission.admit(Duration::ZERO, &realm(), device, bytes, Width::W48).is_some();
        for offer in [&[][..], b"garbage", &good[..good.len() - 1], &other, &elsewhere] {
            assert!(!admits(offer));
        }
        assert!(admits(&good));
    }
}
