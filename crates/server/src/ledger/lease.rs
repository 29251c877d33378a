//! Who leads: one server at a time publishes what a ledger says; the same rules for every backend.
//!
//! A lease is a row of the ledger and runs by the ledger's clock alone, so that the clocks of servers need not
//! agree. It is only a promise to keep quiet: what makes a leader that was paused past its lease harmless is the
//! term. Whoever takes over a lease that ran out moves every realm to a new term in the same transaction, and
//! [`store_objects`](super::Ledger::store_objects) refuses the old one (design rule 9).

use std::time::Duration;

use super::LedgerError;

/// Bytes of the name of a server.
pub const SERVER_BYTES_MAX: usize = 64;

/// Bytes of the address of a server: a URL with a long host name.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// The shortest lease: a busy database may take seconds for one renewal.
pub const LEASE_MIN: Duration = Duration::from_millis(100);

/// The longest lease: nobody publishes while it runs out.
pub const LEASE_MAX: Duration = Duration::from_mins(10);

/// A server that asks to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bid {
    /// Its name, of this process alone: a process that was started again is another server.
    pub server: String,
    /// Where the others send whoever asks for what only a leader can do.
    pub address: Option<String>,
    /// How long it leads without asking again.
    pub lease: Duration,
}

impl Bid {
    /// Refuses what no ledger would keep; our own mistake, or a configured address that is too long.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let address = self.address.as_ref().map_or(1, String::len);
        let good = (1..=SERVER_BYTES_MAX).contains(&self.server.len())
            && (1..=ADDRESS_BYTES_MAX).contains(&address)
            && (LEASE_MIN..=LEASE_MAX).contains(&self.lease);
        if good { Ok(()) } else { Err(LedgerError::Bid { server: self.server.len(), address, lease: self.lease }) }
    }
}

/// What became of a [`Bid`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This server leads until its lease runs out, counted from when it asked.
    Leading {
        /// Whether the lease of a former leader ran out without being released. Every realm was then resumed in a
        /// new term, in the same transaction.
        took_over: bool,
    },
    /// Another server leads.
    Following {
        /// Which.
        leader: String,
        /// Where it is reached, if it told.
        address: Option<String>,
        /// When its lease runs out unless it is renewed.
        remaining: Duration,
    },
}

/// A lease as a ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) server: String,
    pub(super) address: Option<String>,
    /// By the ledger's clock; zero once it ran out.
    pub(super) remaining: Duration,
}

/// What to do with a bid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// Keep the bid as the lease. With `new_terms` resume every realm first.
    Grant { new_terms: bool },
    /// Keep the lease as it is.
    Follow(Leadership),
}

/// Decides about a bid, given the lease that is kept; there is none after one was released.
pub(super) fn rule(bid: &Bid, held: Option<Lease>) -> Ruling {
    match held {
        None => Ruling::Grant { new_terms: false },
        // Also when it ran out: nobody has led since, so what this server has decided still stands.
        Some(held) if held.server == bid.server => Ruling::Grant { new_terms: false },
        Some(held) if held.remaining.is_zero() => Ruling::Grant { new_terms: true },
        Some(Lease { server, address, remaining }) => {
            Ruling::Follow(Leadership::Following { leader: server, address, remaining })
        }
    }
}
