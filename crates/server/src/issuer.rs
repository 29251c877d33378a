//! Signs tokens: the keys of each realm's issuer, and what a token says.
//!
//! Keys stand in files below the folder of the keys, `issuer/{realm}/{kid}.json`, and are read again when they change.
//! `issuer.key`, which `keygen` makes, counts as the oldest key of every realm. What a key is for follows from times
//! alone: it signs from its `signs_from` until the next key does, and is published before and after, so nothing has to
//! happen at the moment of a change, and several servers need not agree on one.
//!
//! Whether a token may be issued is decided by the [ledger](crate::ledger), in the transaction that registers it; how it
//! gets to a device, by [`delivery`](crate::delivery).

mod key;
pub use key::{Algorithm, SECRET_BYTES_MIN, TokenKey, TokenKeyError};

mod keyring;
pub use keyring::{Held, KEYS_MAX, Keyring, KeyringError, Keyrings, Standing};

mod template;
pub use template::{RESERVED, TYP_DEFAULT, Template, TemplateError};

mod claims;
pub use claims::{Bearer, TokenClaims, confirmation, sign};
