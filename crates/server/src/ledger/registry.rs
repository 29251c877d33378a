//! The issued tokens that a realm knows of, and what knowing them changes; the same for every backend.
//!
//! Whoever knows all valid tokens knows all false positives of a filter. That claim is the *coverage*: every
//! token issued before a time is registered. A registered token also vouches for its `exp`. What is not here:
//! how exceptions are computed from it; that is the publisher's.

use revocast_core::limits::{REGISTRY_PARTS_MAX, SCOPE_BYTES_MAX};
use revocast_core::{Digest, Fingerprint, Fingerprinter, Jti, JtiError, UnixTime, Width};
use thiserror::Error;

use super::rules::{self, Counters, Halt, Last, Shelf, Standing, Subject};
use super::{Entry, LedgerError, Realm, Statement};

/// A token that was issued, as its issuer reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Which.
    pub jti: String,
    /// When it was issued.
    pub iat: UnixTime,
    /// When it expires.
    pub exp: UnixTime,
    /// Whom it speaks of, if its issuer tells.
    pub sub: Option<String>,
}

impl Issued {
    /// Refuses what no token of `realm` can be at `now`.
    ///
    /// The longest lifetime is a promise that safety rests on: a revoke that nobody vouches for is kept that
    /// long and no longer.
    pub fn check(&self, realm: &Realm, now: UnixTime) -> Result<(), IssuedError> {
        Jti::new(&self.jti)?;
        let (iat, exp) = (self.iat, self.exp);
        match self.sub.as_ref().map(String::len) {
            Some(bytes) if bytes == 0 || bytes > SCOPE_BYTES_MAX => return Err(IssuedError::Sub { bytes }),
            Some(_) | None => {}
        }
        if exp < iat {
            return Err(IssuedError::Backward { iat, exp });
        }
        let (lifetime, longest) = (exp.secs() - iat.secs(), realm.max_token_lifetime.as_secs());
        if lifetime > longest {
            return Err(IssuedError::Lifetime { lifetime, longest });
        }
        if iat > realm.latest_iat(now) {
            return Err(IssuedError::Future { iat, now, leeway: realm.leeway.as_secs() });
        }
        Ok(())
    }
}

/// Why a token cannot be registered; the mistake of whoever reports it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssuedError {
    /// The `jti` is empty or too long.
    #[error(transparent)]
    Jti(#[from] JtiError),
    /// The `sub` is empty or too long.
    #[error("the sub has {bytes} bytes; 1 to {SCOPE_BYTES_MAX} are possible")]
    Sub {
        /// Its length.
        bytes: usize,
    },
    /// It expires before it was issued.
    #[error("exp {exp} lies before iat {iat}")]
    Backward {
        /// Its `iat`.
        iat: UnixTime,
        /// Its `exp`.
        exp: UnixTime,
    },
    /// It lives longer than the realm promises. Found a realm with a longer `max_token_lifetime`.
    #[error("it lives {lifetime} s, longer than the {longest} s of its realm")]
    Lifetime {
        /// From `iat` to `exp`, in seconds.
        lifetime: u64,
        /// The realm's, in seconds.
        longest: u64,
    },
    /// It was issued later than any clock can say. One of the two clocks is wrong.
    #[error("iat {iat} lies in the future: it is {now}, and the leeway is {leeway} s")]
    Future {
        /// Its `iat`.
        iat: UnixTime,
        /// The server's time.
        now: UnixTime,
        /// The realm's leeway, in seconds.
        leeway: u64,
    },
}

/// What became of the tokens of one call, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Not known before.
    pub new: u64,
    /// Known, and nothing changed.
    pub repeated: u64,
    /// Known with an earlier `exp`; the later one is kept now.
    pub extended: u64,
    /// Of the new ones, those issued before the coverage: the claim that all of them are known was wrong.
    pub late: u64,
    /// Expired for everybody, so not stored.
    pub expired: u64,
}

impl std::ops::AddAssign for Registration {
    fn add_assign(&mut self, other: Self) {
        let Self { new, repeated, extended, late, expired } = other;
        self.new += new;
        self.repeated += repeated;
        self.extended += extended;
        self.late += late;
        self.expired += expired;
    }
}

/// How much of a realm's tokens its registry knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Tokens kept.
    pub registered: u64,
    /// Every token with an earlier `iat` is among them, or expired; by the word of their issuer.
    pub covered_until: Option<UnixTime>,
}

impl Coverage {
    /// The same with every token before `until` registered; never goes back, and never beyond what a clock
    /// can say, since nobody knows the future.
    pub(super) fn moved(self, realm: &Realm, now: UnixTime, until: UnixTime) -> Result<Self, LedgerError> {
        if until > realm.latest_iat(now) {
            return Err(LedgerError::CoverageAhead { realm: realm.id, offered: until, now });
        }
        match self.covered_until {
            Some(held) if until < held => Err(LedgerError::CoverageBack { realm: realm.id, held, offered: until }),
            Some(_) | None => Ok(Self { covered_until: Some(until), ..self }),
        }
    }
}

/// Is shown fingerprints and `exp`s of registered tokens, some thousand at a time and sorted by fingerprint;
/// returns whether it wants more.
pub type Visitor = Box<dyn FnMut(&[(Fingerprint, UnixTime)]) -> bool + Send>;

/// Refuses more visitors than threads are worth.
pub(super) fn check_visitors(visitors: &[Visitor]) -> Result<(), LedgerError> {
    if visitors.len() > REGISTRY_PARTS_MAX {
        return Err(LedgerError::TooManyVisitors { visitors: visitors.len() });
    }
    Ok(())
}

/// The first and the last fingerprint of part `index` of `parts` equal ones.
pub(super) fn part(width: Width, index: usize, parts: usize) -> (u64, u64) {
    // Wide enough for 2^64 times the number of parts; each quotient is at most 2^64 - 1 once reduced.
    let bound = |index: usize| (index as u128) * (1_u128 << width.bits()) / (parts.max(1) as u128);
    (bound(index) as u64, bound(index + 1).saturating_sub(1) as u64)
}

/// Where a token stands in a registry: its fingerprint, then what tells it from others with the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    // Field order is comparison order: visitors are shown tokens by fingerprint.
    pub(super) fingerprint: Fingerprint,
    /// The first eight bytes of SHA-256 over the `jti`. Two tokens that share both have one fingerprint, so every
    /// device takes them for one; to take them for one here keeps the later `exp`, which is harmless.
    pub(super) name: u64,
}

impl Key {
    pub(super) fn of(fingerprinter: &Fingerprinter, jti: Jti<'_>) -> Self {
        // A digest has 32 bytes, so the default is never taken.
        let name = Digest::of(jti.as_str().as_bytes()).0.first_chunk().copied().unwrap_or_default();
        Self { fingerprint: fingerprinter.fingerprint(jti), name: u64::from_le_bytes(name) }
    }
}

/// A shelf that keeps issued tokens as well.
pub(super) trait Register: Shelf {
    /// Keeps a token; if its place is taken, changes nothing and returns the `exp` held there.
    fn enroll(&mut self, key: Key, issued: &Issued) -> Result<Option<UnixTime>, Self::Error>;

    /// Moves the `exp` of a token that is kept.
    fn prolong(&mut self, key: Key, exp: UnixTime) -> Result<(), Self::Error>;
}

/// Whom the ledger names where it acts by itself.
pub(super) const OURSELVES: &str = "revocast";

/// Why a revoke was recorded again.
const PROLONGED: &str = "the registry says that the token expires later";

/// Registers tokens. After a [`Halt`] the transaction, `counters` and `coverage` included, must be undone.
pub(super) fn register<S: Register>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    coverage: &mut Coverage,
    now: UnixTime,
    issued: Vec<Issued>,
) -> Result<Registration, Halt<S::Error>> {
    let mut sorted = Vec::with_capacity(issued.len());
    for (index, issued) in issued.into_iter().enumerate() {
        issued.check(realm, now).map_err(|source| Halt::Refused(LedgerError::Issued { index, source }))?;
        let jti = Jti::new(&issued.jti);
        let jti = jti.map_err(|source| Halt::Refused(LedgerError::Jti { index, source }))?;
        sorted.push((Key::of(&realm.fingerprinter, jti), issued));
    }
    // Neighbors share pages of a tree.
    sorted.sort_by_key(|&(key, _)| key);

    let mut done = Registration::default();
    for (key, issued) in sorted {
        if issued.exp <= realm.horizon(now) {
            done.expired += 1;
            continue;
        }
        match shelf.enroll(key, &issued).map_err(Halt::Storage)? {
            None => {
                done.new += 1;
                coverage.registered += 1;
                if coverage.covered_until.is_some_and(|until| issued.iat < until) {
                    done.late += 1;
                }
            }
            Some(held) if held < issued.exp => {
                shelf.prolong(key, issued.exp).map_err(Halt::Storage)?;
                done.extended += 1;
            }
            Some(_) => {
                done.repeated += 1;
                continue;
            }
        }
        prolong_revoke(shelf, realm, counters, now, issued)?;
    }
    Ok(done)
}

/// Keeps a revoke as long as the token lives: one that ends earlier would be forgotten while devices still
/// honor the token.
fn prolong_revoke<S: Shelf>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    issued: Issued,
) -> Result<(), Halt<S::Error>> {
    // Nothing is kept, so nothing is revoked: an import into a young realm asks nothing.
    if counters.stored == 0 {
        return Ok(());
    }
    let Issued { jti, exp, .. } = issued;
    let last = shelf.last(Subject::Token(&jti)).map_err(Halt::Storage)?;
    match last {
        Some(Last { standing: Standing::Revoked { exp: held }, .. }) if held < exp => {
            let statement = Statement::Revoke { jti, exp };
            let sequence = rules::number(realm.id, counters, &statement, last).map_err(Halt::Refused)?;
            let (reason, actor) = (Some(PROLONGED.to_owned()), OURSELVES.to_owned());
            shelf.put(&Entry { sequence, at: now, statement, reason, actor }).map_err(Halt::Storage)
        }
        Some(_) | None => Ok(()),
    }
}

/// Seconds that the horizon must have moved before registered tokens are looked through again: that reads all
/// of them, and an hour's worth of expired ones costs little room.
const SWEEP_EVERY: u64 = 3_600;

/// Whether to look for expired tokens at `horizon`, after it was last done at `swept`.
pub(super) fn sweep_is_due(swept: Option<UnixTime>, horizon: UnixTime) -> bool {
    swept.is_none_or(|swept| horizon >= swept.plus(SWEEP_EVERY))
}

/// The place in a database after one, if there is any.
pub(super) fn after((fingerprint, name): (i64, i64)) -> Option<(i64, i64)> {
    match name.checked_add(1) {
        Some(name) => Some((fingerprint, name)),
        None => Some((fingerprint.checked_add(1)?, i64::MIN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_fingerprint_once() {
        for width in [Width::W40, Width::W48, Width::W64] {
            let last = u64::MAX >> (64 - width.bits());
            for parts in [1, 2, 3, 7, REGISTRY_PARTS_MAX] {
                let mut next = Some(0);
                for index in 0..parts {
                    let (low, high) = part(width, index, parts);
                    assert_eq!(Some(low), next, "{width:?} {index}/{parts}");
                    assert!(low <= high);
                    next = high.checked_add(1);
                }
                assert_eq!(next, last.checked_add(1), "{width:?} {parts}");
            }
        }
    }
}
