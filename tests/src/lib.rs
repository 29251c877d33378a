//! Support for the tests: a simulated world, sealed objects made by hand, waiting for futures that
//! are ready.

pub mod sim;

pub mod forge;

pub mod follower;

pub mod signers;

pub mod process;

pub mod strace;

pub mod postgres;

pub mod browser;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Digest, Fingerprint, Fingerprinter, Jti};

/// Takes the value of a future that is ready at once, as those of the memory ledger are.
///
/// # Panics
///
/// If it is not.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future that should have been ready is not"),
    }
}

/// A small deterministic random source: `SplitMix64` (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers, always.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// True with a chance of `percent` in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of some things.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len() as u64) as usize]
    }

    /// Sixteen bytes.
    pub fn sixteen(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.bits().to_le_bytes());
        bytes[8..].copy_from_slice(&self.bits().to_le_bytes());
        bytes
    }
}

/// Signs claims with HMAC-SHA-256 (RFC 2104), made of the digest at hand.
#[must_use]
pub fn hs256(secret: &[u8; 32], claims: &str) -> String {
    let parts = [r#"{"alg":"HS256"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = parts.join(".");
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (to, from) in block.iter_mut().zip(secret) {
            *to ^= from;
        }
        block
    };
    let inner = Digest::of(&[&pad(0x36)[..], signed.as_bytes()].concat());
    let code = Digest::of(&[&pad(0x5c)[..], &inner.0].concat());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(code.0))
}

/// Two `jti`s whose fingerprints of 40 bits are one: found by the birthday bound.
///
/// # Panics
///
/// If the fingerprints are wider.
#[must_use]
pub fn colliding(fingerprinter: &Fingerprinter) -> (String, String) {
    let text = |number: u64| format!("token-{number}");
    let mut all: Vec<(Fingerprint, u64)> = (0..4_000_000_u64)
        .map(|number| (fingerprinter.fingerprint(Jti::new(&text(number)).expect("a valid jti")), number))
        .collect();
    all.sort_unstable();
    let pair = all.windows(2).find(|pair| pair[0].0 == pair[1].0).expect("four million of 2^40 collide");
    (text(pair[0].1), text(pair[1].1))
}
