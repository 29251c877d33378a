//! Takes in revocations over HTTP, keeps the ledger, publishes updates.

pub mod clock;

mod files;

mod stamp;

pub mod keys;

pub mod issuer;

pub mod rotation;

pub mod ledger;

pub mod broker;

pub mod config;

pub mod credentials;

pub mod tls;

pub mod tokens;

pub mod minting;

pub mod standing;

pub mod fleet;

pub mod metrics;

pub mod service;

pub mod delivery;

pub mod publisher;

pub mod leader;

pub mod news;

pub mod judge;

pub mod bridge;

pub mod hooks;

pub mod sessions;

pub mod api;

pub mod server;
