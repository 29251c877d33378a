//! How a realm comes to another publisher key, or to another root key: the next version of its `keys`, made where the
//! root keys are and taken in where the ledger is.
//!
//! Version N+1 is signed by the root thresholds of N and N+1 (design rule 20). The server that takes it in checks what
//! every device will check, so that nothing is published that a fleet would refuse. The root key need never be near it.

use std::time::Duration;

use revocast_core::limits::PUBLISHERS_MAX;
use revocast_core::update::{PublisherKey, Role};
use revocast_core::wire::{self, WireError};
use revocast_core::{Keys, Kind, PublicKey, RealmId, Refusal, Sealed, SigningKey, UnixMillis, seal};
use thiserror::Error;

/// How long a publisher key may sign, and the keys that name it hold. Long, since replacing it needs the root key, which
/// should be offline; the key is replaced when it must be, not by the calendar.
pub const PUBLISHER_KEY_LIFETIME: Duration = Duration::from_hours(5 * 365 * 24);

/// How far the clock of whoever made new keys may be ahead.
const AHEAD_MAX: Duration = Duration::from_mins(1);

/// The next version of a realm's keys, in which `publisher` may sign.
///
/// Those before it may sign for another `overlap`, so that whatever they have sealed is believed until it is sealed
/// again; without one they are named no more at once, which is for a key that was stolen.
#[must_use]
pub fn successor(held: &Keys, publisher: PublicKey, now: UnixMillis, overlap: Option<Duration>) -> Keys {
    let not_after = now.plus(PUBLISHER_KEY_LIFETIME).floor();
    let kept = overlap.map(|overlap| now.plus(overlap).floor());
    let mut publishers: Vec<PublisherKey> = held
        .publishers
        .iter()
        .filter(|old| old.key != publisher && old.not_after > now.floor())
        .filter_map(|old| Some(PublisherKey { not_after: old.not_after.min(kept?), ..*old }))
        .collect();
    // The latest are kept: those of rotations long ago are about to end.
    publishers.sort_by_key(|old| std::cmp::Reverse(old.not_after));
    publishers.truncate(PUBLISHERS_MAX - 1);
    publishers.push(PublisherKey { key: publisher, role: Role::Content as u8, not_after });
    publishers.sort_unstable();
    Keys { publishers, ..next_version(held, now) }
}

/// The next version of a realm's keys, in which others are its roots. Devices take it in if the roots of both versions
/// have signed it, as many as each version asks for.
#[must_use]
pub fn with_roots(held: &Keys, roots: Vec<PublicKey>, now: UnixMillis) -> Keys {
    Keys { roots, ..next_version(held, now) }
}

fn next_version(held: &Keys, now: UnixMillis) -> Keys {
    Keys {
        version: held.version + 1,
        // Rises even if the clock here is behind.
        issued_at: now.max(UnixMillis::from_millis(held.issued_at.millis() + 1)),
        not_after: held.not_after.max(now.plus(PUBLISHER_KEY_LIFETIME).floor()),
        ..held.clone()
    }
}

/// Signs the next version with root keys.
pub fn sign(keys: &Keys, realm: &RealmId, roots: &[&SigningKey]) -> Result<Vec<u8>, RotationError> {
    let body = wire::encode_keys(keys).map_err(RotationError::Encode)?;
    Ok(seal(Kind::Keys, realm, &body, roots))
}

/// Reads keys that a ledger or a server vouches for.
pub fn read(bytes: &[u8], realm: &RealmId) -> Result<Keys, RotationError> {
    let sealed = Sealed::expect(bytes, realm, Kind::Keys)?;
    Ok(wire::decode_keys(sealed.unverified_body()).map_err(Refusal::from)?)
}

/// Reads keys whose own roots have signed them, and one of `known` has: whoever is about to sign what comes after them
/// takes nobody's word for them.
pub fn vouched(bytes: &[u8], realm: &RealmId, known: &[PublicKey]) -> Result<Keys, RotationError> {
    let sealed = Sealed::expect(bytes, realm, Kind::Keys)?;
    let keys = sealed.by_threshold(known, 1)?.try_map(wire::decode_keys).map_err(Refusal::from)?.into_inner();
    sealed.by_threshold(&keys.roots, keys.threshold)?;
    Ok(keys)
}

/// What is to become of keys that somebody brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They are those in force.
    Known,
    /// They come next.
    Next(Keys),
}

/// Checks keys against those in force, as every device will.
pub fn check(held: &[u8], offered: &[u8], realm: &RealmId, now: UnixMillis) -> Result<Taken, RotationError> {
    if held == offered {
        return Ok(Taken::Known);
    }
    let held = read(held, realm)?;
    let sealed = Sealed::expect(offered, realm, Kind::Keys)?;
    let body = sealed.by_threshold(&held.roots, held.threshold)?;
    let keys = body.try_map(wire::decode_keys).map_err(Refusal::from)?.into_inner();
    sealed.by_threshold(&keys.roots, keys.threshold)?;
    if keys.version != held.version + 1 {
        return Err(RotationError::Version { held: held.version, offered: keys.version });
    }
    for (what, same) in [
        ("issuer", keys.issuer == held.issuer),
        ("fingerprint function", keys.fingerprinter == held.fingerprinter),
        ("leeway", keys.leeway == held.leeway),
    ] {
        if !same {
            return Err(RotationError::Changed { what });
        }
    }
    if keys.issued_at <= held.issued_at || keys.issued_at > now.plus(AHEAD_MAX) || keys.not_after <= now.floor() {
        return Err(RotationError::Time { issued_at: keys.issued_at, now });
    }
    let signs = |key: &PublisherKey| key.role == Role::Content as u8 && key.not_after > now.floor();
    if !keys.publishers.iter().any(signs) {
        return Err(RotationError::NoPublisher);
    }
    Ok(Taken::Next(keys))
}

/// Why keys are not taken in; whoever made them mends it.
#[derive(Debug, Error)]
pub enum RotationError {
    /// Not keys of this realm, or not signed by enough of its roots.
    #[error("devices would refuse them")]
    Refused(#[from] Refusal),
    /// Another version comes next: somebody else has rotated meanwhile, or this came too late.
    #[error("they are version {offered}, and after version {held} comes {}", .held + 1)]
    Version {
        /// Of those in force.
        held: u64,
        /// Of those offered.
        offered: u64,
    },
    /// Something that holds as long as the realm does.
    #[error("they change the {what} of the realm, which holds as long as the realm does")]
    Changed {
        /// What.
        what: &'static str,
    },
    /// Made in the future, before those in force, or expired already.
    #[error("they were made at {issued_at} by their clock, or are expired, and here it is {now}")]
    Time {
        /// When they were made.
        issued_at: UnixMillis,
        /// The server's time.
        now: UnixMillis,
    },
    /// Nobody could publish.
    #[error("they name no key that may publish")]
    NoPublisher,
    /// Our own mistake: they cannot be written down.
    #[error("the keys cannot be encoded")]
    Encode(#[source] WireError),
}

#[cfg(test)]
mod tests {
    use revocast_core::{FingerprintFunction, Fingerprinter, RealmKey, UnixTime, Width};

    use super::*;

    const NOW: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

    fn realm() -> RealmId {
        RealmId::new("fleet").unwrap()
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed([seed; 32])
    }

    fn first() -> Keys {
        Keys {
            version: 1,
            issued_at: NOW,
            not_after: NOW.plus(PUBLISHER_KEY_LIFETIME).floor(),
            threshold: 1,
            roots: vec![key(1).public()],
            publishers: vec![PublisherKey {
                key: key(2).public(),
                role: Role::Content as u8,
                not_after: NOW.plus(PUBLISHER_KEY_LIFETIME).floor(),
            }],
            issuer: "i".into(),
            fingerprinter: Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([3; 16]), Width::W48),
            leeway: 60,
        }
    }

    fn signed(keys: &Keys) -> Vec<u8> {
        sign(keys, &realm(), &[&key(1)]).unwrap()
    }

    #[test]
    fn the_key_before_signs_on_for_the_overlap_and_a_stolen_one_not_at_all() {
        let later = NOW.plus(Duration::from_secs(10));
        let day = Duration::from_hours(24);
        let next = successor(&first(), key(4).public(), later, Some(day));
        assert_eq!(check(&signed(&first()), &signed(&next), &realm(), later).unwrap(), Taken::Next(next.clone()));
        let named = |keys: &Keys, seed| {
            keys.publishers.iter().find(|found| found.key == key(seed).public()).map(|found| found.not_after)
        };
        assert_eq!(named(&next, 2), Some(later.plus(day).floor()));
        assert_eq!(named(&next, 4), Some(later.plus(PUBLISHER_KEY_LIFETIME).floor()));
        let at_once = successor(&next, key(5).public(), later, None);
        assert_eq!((at_once.version, at_once.publishers.len(), named(&at_once, 5).is_some()), (3, 1, true));
        // What has ended is named no more, and the time rises however slow the clock is.
        let much_later = successor(&next, key(5).public(), later.plus(2 * day), Some(day));
        assert_eq!(much_later.publishers.len(), 2);
        assert!(successor(&next, key(5).public(), UnixMillis::default(), None).issued_at > next.issued_at);
    }

    #[test]
    fn what_devices_would_refuse_is_not_taken_in() {
        let (held, later) = (signed(&first()), NOW.plus(Duration::from_secs(10)));
        let next = successor(&first(), key(4).public(), later, None);
        let told = |keys: &Keys| check(&held, &signed(keys), &realm(), later).unwrap_err();
        assert_eq!(check(&held, &held, &realm(), later).unwrap(), Taken::Known);
        let forged = sign(&next, &realm(), &[&key(9)]).unwrap();
        assert!(matches!(
            check(&held, &forged, &realm(), later),
            Err(RotationError::Refused(Refusal::WrongKey { .. }))
        ));
        let other = sign(&next, &RealmId::new("other").unwrap(), &[&key(1)]).unwrap();
        assert!(matches!(check(&held, &other, &realm(), later), Err(RotationError::Refused(_))));
        // New roots must have signed as well.
        let roots = with_roots(&first(), vec![key(8).public()], later);
        assert!(matches!(told(&roots), RotationError::Refused(_)));
        let by_new_alone = sign(&roots, &realm(), &[&key(8)]).unwrap();
        assert!(matches!(check(&held, &by_new_alone, &realm(), later), Err(RotationError::Refused(_))));
        let by_both = sign(&roots, &realm(), &[&key(1), &key(8)]).unwrap();
        // Nobody signs what comes after keys that a server made up.
        for known in [&[key(1).public()][..], &[key(9).public(), key(8).public()]] {
            assert_eq!(vouched(&by_both, &realm(), known).unwrap(), roots);
        }
        assert!(vouched(&by_both, &realm(), &[key(9).public()]).is_err());
        let made_up = Keys { version: 1_000, ..roots.clone() };
        for signers in [&[&key(9)][..], &[&key(1)], &[&key(9), &key(8)]] {
            let made_up = sign(&made_up, &realm(), signers).unwrap();
            assert!(vouched(&made_up, &realm(), &[key(1).public()]).is_err());
        }
        assert_eq!(check(&held, &by_both, &realm(), later).unwrap(), Taken::Next(roots));
        assert!(matches!(told(&Keys { version: 3, ..next.clone() }), RotationError::Version { held: 1, offered: 3 }));
        assert!(matches!(
            told(&Keys { issuer: "j".into(), ..next.clone() }),
            RotationError::Changed { what: "issuer" }
        ));
        assert!(matches!(told(&Keys { leeway: 61, ..next.clone() }), RotationError::Changed { what: "leeway" }));
        assert!(matches!(told(&Keys { issued_at: NOW, ..next.clone() }), RotationError::Time { .. }));
        let ahead = Keys { issued_at: later.plus(Duration::from_hours(1)), ..next.clone() };
        assert!(matches!(told(&ahead), RotationError::Time { .. }));
        let mut none = next.clone();
        none.publishers[0].not_after = UnixTime::from_secs(1);
        assert!(matches!(told(&none), RotationError::NoPublisher));
    }
}
