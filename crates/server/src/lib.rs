//! Takes in revocations over HTTP, keeps the ledger, publishes updates.

pub mod keys;

pub mod ledger;

pub mod broker;
