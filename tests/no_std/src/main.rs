//! Core at work without a standard library, a C library or an operating system's allocator.
//!
//! The program seals keys and a delta, lets a replica follow them, asks about two tokens and encloses a
//! third for a device. Its exit code tells how far it came: 0 to the end, otherwise the number of the step that went wrong. That it
//! links at all is the proof; that it runs shows that nothing was linked away.
#![no_std]
#![no_main]

extern crate alloc;

// Brings the standard library in, so that `prove` can see the build fail for it.
#[cfg(feature = "std")]
extern crate std;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the entry point is written for Linux on x86-64; core itself is not");

mod bare;

use alloc::sync::Arc;
use alloc::vec::Vec;
use alloc::{boxed::Box, vec};
use core::hint::black_box;
use core::time::Duration;

use revocast_core::update::{PublisherKey, Role};
use revocast_core::{
    Action, Address, Claims, Config, Delivery, Delta, DeviceId, Doubt, EnvelopeKey, Epoch, Event, FingerprintFunction,
    Fingerprinter, Jti, Keys, Kind, Notice, Now, RealmId, RealmKey, Replica, RevocationSet, Sealed, Sequence,
    SigningKey, Term, Trust, UnixMillis, UnixTime, Verdict, Width, disclose, enclose, seal, wire,
};

/// A Saturday in 2026; only its order to the other times matters.
const TODAY: UnixTime = UnixTime::from_secs(1_795_000_000);

/// Runs every step and tells which one failed first.
fn steps() -> Result<(), u8> {
    let realm = RealmId::new(black_box("bare")).map_err(|_| 1)?;
    let root = SigningKey::from_seed(black_box([1; 32]));
    let publisher = SigningKey::from_seed(black_box([2; 32]));
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey(black_box([3; 16])), Width::W48);
    let revoked = Jti::new(black_box("0b6f3f0e-1f50-4f27-a3b0-1f1f6e2c9a55")).map_err(|_| 2)?;
    let other = Jti::new(black_box("7a0b4f51-6c0e-4b8e-9a83-54b7e6f0c1d2")).map_err(|_| 2)?;

    let keys = Keys {
        version: 1,
        issued_at: TODAY.millis(),
        not_after: TODAY.plus(86_400),
        threshold: 1,
        roots: vec![root.public()],
        publishers: vec![PublisherKey {
            key: publisher.public(),
            role: Role::Content as u8,
            not_after: TODAY.plus(86_400),
        }],
        issuer: Box::from("https://issuer.example"),
        fingerprinter,
        leeway: 60,
    };
    let delta = Delta {
        term: Term(1),
        from: Sequence(0),
        to: Sequence(1),
        issued_at: TODAY.millis(),
        horizon: TODAY.minus(86_400),
        revoked: vec![fingerprinter.fingerprint(revoked)],
        reinstated: Vec::new(),
        cutoffs: Vec::new(),
        lifts: Vec::new(),
    };
    let keys = seal(Kind::Keys, &realm, &wire::encode_keys(&keys).map_err(|_| 3)?, &[&root]);
    let body = wire::encode_delta(&delta, Width::W48).map_err(|_| 4)?;
    let delta = seal(Kind::Delta, &realm, &body, &[&publisher]);
    let sealed = Sealed::parse(black_box(&delta)).map_err(|_| 5)?;
    if !sealed.is_signed_by(&publisher.public()) || sealed.is_signed_by(&root.public()) {
        return Err(6);
    }

    let trust = Trust { roots: vec![root.public()], threshold: 1, not_before: TODAY };
    let mut replica = Replica::new(Config::exact(black_box(4)), realm, trust);
    let now = |seconds| {
        let uptime = Duration::from_secs(seconds);
        Now::new(UnixMillis::from_millis(TODAY.millis().millis()).plus(uptime), uptime)
    };
    replica.handle(now(1), Event::Connected);
    for (address, payload) in [
        (Address::Keys, &keys),
        (Address::Live, &delta),
        // Decoders that must be linked in: what stands here is not what belongs here.
        (Address::Manifest, &delta),
        (Address::Index { epoch: Epoch(1) }, &keys),
    ] {
        let payload = black_box(payload.as_slice());
        replica.handle(now(2), Event::Packet { address, payload });
    }
    replica.handle(now(3), Event::Elapsed);

    let set = exposed(&mut replica).ok_or(7)?;
    let ask = |jti| set.check(now(4), &Claims::new(jti, TODAY.plus(3_600)));
    if !matches!(ask(revoked), Verdict::Revoked { .. }) {
        return Err(8);
    }
    // Without a base nothing is known about it, and that must never sound like "not revoked".
    if !matches!(ask(other), Verdict::Unknown { doubt: Doubt::NoState }) {
        return Err(9);
    }
    if replica.refusals().iter().all(|count| *count == 0) {
        return Err(10);
    }
    delivered(&replica, &realm, &publisher, now(5))
}

/// A token on its way to one device: enclosed, sealed, verified by the replica, and read.
fn delivered(replica: &Replica, realm: &RealmId, publisher: &SigningKey, now: Now) -> Result<(), u8> {
    let device = DeviceId::new(black_box("bare-1")).map_err(|_| 11)?;
    let key = EnvelopeKey::from_seed(black_box([5; 32]));
    let notice = Notice::Token { token: Box::from(black_box("e30.e30.c2ln")) };
    let bound = Delivery::bound(now.wall, None);
    let plain = wire::encode_notice(&notice).map_err(|_| 12)?;
    let content = enclose(&key.public(), realm, &device, &bound, &plain, black_box([6; 32])).map_err(|_| 13)?;
    let meant = Delivery { device, issued_at: now.wall, nonce: None, enclosed: true, content };
    let body = wire::encode_delivery(&meant).map_err(|_| 14)?;
    let sealed = seal(Kind::Delivery, realm, &body, &[publisher]);
    let verified = replica.verify(now, black_box(&sealed), Kind::Delivery).map_err(|_| 15)?;
    let read = verified.try_map(wire::decode_delivery).map_err(|_| 16)?.into_inner();
    let plain = disclose(&key, realm, &device, &bound, &read.content).map_err(|_| 17)?;
    if wire::decode_notice(&plain).ok() != Some(notice) {
        return Err(18);
    }
    let stranger = EnvelopeKey::from_seed(black_box([7; 32]));
    if disclose(&stranger, realm, &device, &bound, &read.content).is_ok() {
        return Err(19);
    }
    Ok(())
}

/// The last set the replica asked to expose.
fn exposed(replica: &mut Replica) -> Option<Arc<RevocationSet>> {
    let mut last = None;
    while let Some(action) = replica.poll_action() {
        if let Action::Expose(set) = action {
            last = Some(set);
        }
    }
    last
}
