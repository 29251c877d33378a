//! What the benches share: the keys, and ours as a device builds it.
//!
//! All keys come from one seeded generator, so that two runs, and all opponents within one, see the same.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use revocast_core::{
    Action, Address, Claims, Config, Event, ExactList, FilterBuf, FilterParams, Fingerprint, FingerprintFunction,
    Fingerprinter, Hold, Jti, Membership, Now, Profile, RealmKey, Replica, Salt, UnixTime, Verdict, Width,
};
use revocast_device::Checker;
use revocast_tests::forge::{self, Forge};

/// Counts at which everything is measured: one that fits the caches, one that does not.
pub const COUNTS: [(&str, usize); 2] = [("10 thousand", 10_000), ("1 million", 1_000_000)];

/// Absent keys to rotate over: too many for a branch predictor to learn, or for a cache to keep their lines.
pub const ABSENT_KEYS: usize = 1 << 20;

/// The rate that filters in front of an exact list are built for, ours and the opponents'.
pub const RATE: f64 = 1e-2;

/// Texts of 36 characters that look like UUIDs of version 4, one behind the other in memory.
pub struct Keys {
    text: String,
}

impl Keys {
    const LEN: usize = 36;

    /// Draws `count` keys; another `seed` gives others.
    #[must_use]
    pub fn new(seed: u64, count: usize) -> Self {
        let mut random = SplitMix(seed);
        let mut text = String::with_capacity(count * Self::LEN);
        for _ in 0..count {
            let (high, low) = (random.next(), random.next());
            let written = write!(
                text,
                "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                high >> 32,
                (high >> 16) & 0xffff,
                high & 0xfff,
                0x8000 | (low >> 48) & 0x3fff,
                low & 0xffff_ffff_ffff,
            );
            debug_assert!(written.is_ok(), "writing to a string never fails");
        }
        Self { text }
    }

    /// The same keys in an order that says nothing about the order of insertion, again one behind the other: a key that
    /// is asked about has just been read from a token, so it should not cost a cache miss of its own.
    #[must_use]
    pub fn shuffled(&self) -> Self {
        let mut texts = self.texts();
        let mut random = SplitMix(3);
        for last in (1..texts.len()).rev() {
            let other = (random.next() % (last as u64 + 1)) as usize;
            texts.swap(last, other);
        }
        Self { text: texts.concat() }
    }

    /// All keys in order.
    #[must_use]
    pub fn texts(&self) -> Vec<&str> {
        self.text.as_bytes().chunks(Self::LEN).filter_map(|key| std::str::from_utf8(key).ok()).collect()
    }
}

/// Keys that are inserted.
#[must_use]
pub fn present_keys(count: usize) -> Keys {
    Keys::new(1, count)
}

/// Keys that are not.
#[must_use]
pub fn absent_keys() -> Keys {
    Keys::new(2, ABSENT_KEYS)
}

/// Goes round a list of keys for ever.
pub struct Rotation<'a> {
    texts: Vec<&'a str>,
    at: usize,
}

impl<'a> Rotation<'a> {
    /// Begins with the first.
    ///
    /// # Panics
    ///
    /// If there are no keys.
    #[must_use]
    pub fn new(texts: Vec<&'a str>) -> Self {
        assert!(!texts.is_empty(), "a rotation needs keys");
        Self { texts, at: 0 }
    }

    /// The next key.
    #[inline]
    pub fn next_key(&mut self) -> &'a str {
        let key = self.texts[self.at];
        self.at = if self.at + 1 == self.texts.len() { 0 } else { self.at + 1 };
        key
    }
}

/// The fingerprinter of the benches: xxh3, as where the issuer mints its own `jti`s.
#[must_use]
pub fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey(*b"key of the bench"), Width::W48)
}

/// The salt of the benches.
pub const SALT: Salt = Salt(*b"salt of a bench.");

/// Fingerprints in order, without repetition.
#[must_use]
pub fn fingerprints(keys: &Keys) -> Vec<Fingerprint> {
    let fingerprinter = fingerprinter();
    let jtis = keys.texts().into_iter().filter_map(|text| Jti::new(text).ok());
    let mut all: Vec<_> = jtis.map(|jti| fingerprinter.fingerprint(jti)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A filter of ours for these fingerprints.
///
/// # Panics
///
/// If the rate cannot be reached; the benches ask for none that cannot.
#[must_use]
pub fn filter(fingerprints: &[Fingerprint], rate: f64) -> FilterBuf {
    let params = FilterParams::for_target(fingerprints.len() as u64, rate, SALT).expect("a rate within reach");
    FilterBuf::build(params, fingerprints.iter().copied())
}

/// What a device of the exact profile holds of a base, without freshness, recent and cutoffs.
pub struct Exact {
    fingerprinter: Fingerprinter,
    filter: FilterBuf,
    list: ExactList,
}

impl Exact {
    /// Builds filter and list.
    ///
    /// # Panics
    ///
    /// If the fingerprints are not sorted.
    #[must_use]
    pub fn new(fingerprints: &[Fingerprint]) -> Self {
        Self {
            fingerprinter: fingerprinter(),
            filter: filter(fingerprints, RATE),
            list: ExactList::from_sorted(fingerprints, Width::W48).expect("sorted fingerprints"),
        }
    }

    /// Asks the filter alone, hash included.
    #[inline]
    #[must_use]
    pub fn maybe(&self, text: &str) -> bool {
        Jti::new(text).is_ok_and(|jti| self.filter.query(self.fingerprinter.fingerprint(jti)) == Membership::Possible)
    }

    /// Asks the filter and then the list, hash included.
    #[inline]
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        Jti::new(text).is_ok_and(|jti| {
            let fingerprint = self.fingerprinter.fingerprint(jti);
            match self.filter.query(fingerprint) {
                Membership::Absent => false,
                Membership::Possible => self.list.contains(fingerprint),
            }
        })
    }

    /// Asks the list alone, hash included.
    #[inline]
    #[must_use]
    pub fn listed(&self, text: &str) -> bool {
        Jti::new(text).is_ok_and(|jti| self.list.contains(self.fingerprinter.fingerprint(jti)))
    }
}

/// A replica that has caught up with a base of these keys, packet by packet, as a device does.
///
/// # Panics
///
/// If it does not catch up: then nothing that follows would measure anything.
#[must_use]
pub fn replica(forge: &Forge, keys: &Keys) -> Replica {
    replica_with(forge, keys, Profile::Exact)
}

/// The same in another profile.
///
/// # Panics
///
/// If it does not catch up.
#[must_use]
pub fn replica_with(forge: &Forge, keys: &Keys, profile: Profile) -> Replica {
    let texts = keys.texts();
    let epoch = forge.epoch(1, texts.len() as u64, &texts, &[], 0);
    let manifest = forge.manifest(&forge.manifest_meant(&epoch, texts.len() as u64, &[], 0));
    let mut retained: HashMap<Address, Vec<u8>> = epoch.objects.into_iter().collect();
    retained.insert(Address::Keys, forge.keys(1));
    retained.insert(Address::Manifest, manifest);
    let config = Config { hold: Hold::Profile(profile), ..Config::exact(0) };
    let mut replica = Replica::new(config, forge.realm, forge.trust());
    replica.handle(NOW, Event::Connected);
    while let Some(action) = replica.poll_action() {
        if let Action::Subscribe(address) = action
            && let Some(payload) = retained.get(&address)
        {
            replica.handle(NOW, Event::Packet { address, payload });
        }
    }
    assert!(replica.set().doubt(NOW).is_none(), "the replica has not caught up");
    replica
}

/// The moment at which everything is asked.
pub const NOW: Now = forge::now(1);

/// The realm of the benches, cut into chunks as large as by default.
#[must_use]
pub fn forge() -> Forge {
    Forge { chunk_bytes: 32 * 1024, ..Forge::new(1) }
}

/// A device's checker, as an application holds it.
pub struct Asked(Checker);

impl Asked {
    /// A checker over what a replica exposes.
    #[must_use]
    pub fn new(replica: &Replica) -> Self {
        let (checker, _exposure) = Checker::new(Arc::new(replica.set().clone()));
        Self(checker)
    }

    /// Asks the whole question: horizon, cutoffs, recent, freshness, filter, list.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "stands in for code of the application, which calls check itself")]
    #[must_use]
    pub fn is_revoked(&self, text: &str) -> bool {
        Jti::new(text).is_ok_and(|jti| {
            let claims = Claims::new(jti, UnixTime::from_secs(forge::START + 3_600));
            matches!(self.0.check(NOW, &claims), Verdict::Revoked { .. })
        })
    }
}

/// `SplitMix64` (Steele, Lea and Flood, 2014): small, seeded, the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
