//! What a revocation set is, how it travels, how a replica follows it.
//!
//! This crate is the meaning of Revocast without its plumbing: it reads no clock, does no I/O, spawns
//! nothing, logs nothing, and does not panic on any input. It is `no_std` with `alloc` and has no
//! features, so the core that is tested is the core that ships.
//!
//! The modules, in reading order, follow a revocation from bytes to an answer:
//!
//! - a [`RevocationSet`] answers [`RevocationSet::check`] with a [`Verdict`];
//! - a [`Replica`] follows a realm: it is told [`Event`]s and gives [`Action`]s, one of which is to
//!   expose a new set;
//! - what it is told was sealed ([`seal`](mod@seal)) around bodies ([`wire`]) that mean updates ([`update`]).
//!
//! `docs/wire.md` draws every byte; `docs/architecture.md` has the map and the invariants.
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm
)]

extern crate alloc;

pub mod limits;

mod clock;
pub use clock::{Allowance, Now, UnixMillis, UnixTime};

mod token;
pub use token::{
    Claims, Fingerprint, FingerprintFunction, Fingerprinter, Issuer, IssuerError, Jti, JtiError, RealmId, RealmIdError,
    RealmKey, Width,
};

mod position;
pub use position::{Epoch, Position, Sequence, Term};

mod filter;
pub use filter::{Filter, FilterBuf, FilterParams, GeometryError, LINE_BYTES, Membership, Salt};

pub mod rice;

mod exact;
pub use exact::{ExactList, ExactListBuilder, ExactListError, ExactListIter};

pub mod exceptions;
pub use exceptions::{ExceptionCut, Exceptions};

mod cutoff;
pub use cutoff::{Cutoff, Cutoffs, Scope, ScopeKind, StampedCutoff};

mod verdict;
pub use verdict::{Doubt, Verdict, Why};

mod refusal;
pub use refusal::{Rank, Refusal};

pub mod seal;
pub use seal::{Digest, Digester, KeyId, Kind, PublicKey, Sealed, SigningKey, Verified, seal, sealed_bytes};

pub mod update;
pub use update::{
    Address, Delivery, Delta, DeviceId, DeviceIdError, Finding, Index, IssuerKeys, Keys, Manifest, NoRenewal, Notice,
    Renew, TokenTopic, TokenTopicError, Trust,
};

mod envelope;
pub use envelope::{EnvelopeError, EnvelopeKey, EnvelopePublicKey, disclose, enclose};

mod enrollment;
pub use enrollment::DeviceKeys;

pub mod wire;

pub mod artifact;

mod recent;
pub use recent::{Recent, Stamped, State};

mod base;
pub use base::{Base, BaseBuilder, Profile, Witness};

mod hold;
pub use hold::{BudgetTooSmall, Hold, smallest_budget};

mod set;
pub use set::{Freshness, RevocationSet};

pub mod state;

pub mod replica;
pub use replica::{Action, Config, Event, Holding, Replica, Unasked};
