//! Keeps replicas in step over MQTT, validates JSON Web Tokens, answers: is this token revoked?
//!
//! A [`Device`] follows one realm. It restores what its [`Store`] kept, connects to a broker that
//! nobody needs to trust, verifies every byte that comes, and exposes each new revocation set to its
//! [`Checker`]s, which answer in nanoseconds, without a lock, connected or not.
//!
//! A [`Validator`] does the rest for a JSON Web Token: it checks form, signature and claims, asks a
//! checker, and lets a [`Policy`] decide.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use revocast_core::{Config, RealmId};
//! use revocast_device::{
//!     ClientId, Device, DeviceConfig, DiskStore, KeySet, Policy, SystemClock, Validator, ValidatorConfig,
//!     random_seed, trust_from_file,
//! };
//!
//! # async fn follow(jwks: &[u8], token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let config = DeviceConfig::new(
//!     "mqtt://broker.example".parse()?,
//!     ClientId::new("agent-7")?,
//!     RealmId::new("acme")?,
//!     trust_from_file(Path::new("trust.json"))?,
//!     Config::exact(random_seed()?),
//! );
//! // A small device says how much memory it gives instead, and holds the best that fits:
//! // Config::within(64 * 1024, random_seed()?)?
//! let device = Device::start(config, DiskStore::open(Path::new("state"))?).await?;
//!
//! let rules = ValidatorConfig::new("https://issuer.example", ["https://api.example"], KeySet::from_jwks(jwks)?);
//! let validator = Validator::new(rules, device.checker(), Policy::strict())?;
//! match validator.verify(SystemClock::now(), token) {
//!     Ok(token) => println!("accepted {}", token.jti()),
//!     Err(rejected) => println!("rejected: {rejected}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The notions
//!
//! - A **verdict** is what is known about a token; a **decision** is what to do about it. Between the
//!   two stands a [`Policy`], and there is no default one.
//! - A device without state, with state too old, or with a clock it cannot trust answers `Unknown`.
//!   It never says "not revoked" for want of knowledge, and never stops saying "revoked".
//! - A device that was given an [`Identity`] holds a token of its own, renewed in time: see
//!   [`Device::inbox`]. The issuer's keys come over the same link ([`Device::issuer_keys`]).
//! - Every [`Refusal`](revocast_core::Refusal) of something that arrived is counted, logged and
//!   reported; see [`Status`].
//!
//! # What is not done here
//!
//! Nothing is fetched over HTTP, unless a caller asks a `KeyAddress` to (feature `https-keys`). The device
//! reads no environment variable, prints nothing, and installs no process-wide cryptography.

mod clock;
pub use clock::{Clock, SystemClock};

mod config;
pub use config::{
    BrokerUrl, BrokerUrlError, ClientId, ClientIdError, Credentials, DEFAULT_PREFIX, DeviceConfig, Prefix, PrefixError,
    RandomError, TlsRoots, TlsRootsError, TokenFeed, TrustError, random_seed, trust_from_file, trust_from_json,
};

mod store;
pub use store::{Candidate, DiskStore, Heads, Slot, Store, StoreError, VolatileStore};

mod link;
pub use link::{Link, LinkConfig, LinkConfigError, LinkEvent, LinkStats, Transport};

mod checker;
pub use checker::{Checker, Exposure};

mod policy;
pub use policy::{AGING_AFTER, CLASSES_MAX, Decision, Policies, Policy, Reason, Rule};

mod json;

mod compact;

mod possession;
pub use possession::{Call, PROOF_WINDOW, PROOFS_REMEMBERED_MAX, Presented, ProofError, Proofs, Prover, Thumbprint};

mod validator;
pub use validator::{
    KeyError, KeySet, KeySetError, LIFETIME_MAX_DEFAULT, LiveKeys, Rejected, Rejection, Revocations, RevokedPairs,
    Token, Unchecked, Validator, ValidatorConfig, ValidatorError,
};

mod key_source;
#[cfg(feature = "https-keys")]
pub use key_source::KeyAddress;
pub use key_source::{KeyFile, KeySourceError};

mod identity;
pub use identity::{Enrollment, Identity, IdentityError, Malformed};

mod issuer_keys;

mod inbox;
pub use inbox::{HeldToken, Inbox, InboxConfig, InboxError, NotHeld, TokenState};

mod fallback;
pub use fallback::{AskError, Asker};

#[cfg(feature = "tower")]
mod layer;
#[cfg(feature = "tower")]
pub use layer::{Credential, CredentialError, Gate, NotAdmitted, RevocastLayer};

mod driver;
pub use driver::{Device, FoundState, StartError, Status};

/// The program in the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
