//! Calls that wait to be decided together: what many ask at once becomes one transaction, and one wait for the disk
//! serves all of it. Each is decided as if it were alone.

use revocast_core::{RealmId, UnixTime};
use tokio::sync::oneshot;

use super::issuance::{Issuance, Order};
use super::lineage::{self, Lineage};
use super::registry::Coverage;
use super::rules::{self, Counters, Halt};
use super::{LedgerError, Realm, Receipt, Request};

/// Requests that one commit may cover: more would delay the first of them for little gain.
pub(super) const GROUP_REQUESTS_MAX: usize = 1_024;

/// Calls that may wait. At ten thousand acknowledged a second this is less than half a second.
pub(super) const QUEUE_CALLS_MAX: usize = 4_096;

/// One call, and who waits for its answer.
pub(super) struct Call {
    pub(super) realm: RealmId,
    pub(super) now: UnixTime,
    pub(super) ask: Ask,
    pub(super) reply: Reply,
}

/// What is asked.
#[derive(Clone)]
pub(super) enum Ask {
    Append(Vec<Request>),
    Issue(Box<Order>),
}

/// What came of it.
pub(super) enum Answer {
    Receipts(Vec<Receipt>),
    Issuance(Issuance),
}

/// Where the answer goes.
pub(super) enum Reply {
    Receipts(oneshot::Sender<Result<Vec<Receipt>, LedgerError>>),
    Issuance(oneshot::Sender<Result<Issuance, LedgerError>>),
}

impl Reply {
    /// Nobody listening any more is no reason not to have done it.
    pub(super) fn send(self, answer: Result<Answer, LedgerError>) {
        match (self, answer) {
            (Self::Receipts(to), Ok(Answer::Receipts(receipts))) => drop(to.send(Ok(receipts))),
            (Self::Issuance(to), Ok(Answer::Issuance(issuance))) => drop(to.send(Ok(issuance))),
            (Self::Receipts(to), Err(error)) => drop(to.send(Err(error))),
            (Self::Issuance(to), Err(error)) => drop(to.send(Err(error))),
            // An answer to another question: whoever waits is told that the ledger is closed.
            (Self::Receipts(_), Ok(Answer::Issuance(_))) | (Self::Issuance(_), Ok(Answer::Receipts(_))) => {}
        }
    }
}

impl Ask {
    /// How much of a group it takes.
    pub(super) fn requests(&self) -> usize {
        match self {
            Self::Append(requests) => requests.len(),
            Self::Issue(_) => 1,
        }
    }

    /// Decides it. After a [`Halt`] all that it did must be undone, `counters` and `coverage` included.
    pub(super) fn decide<S: Lineage>(
        self,
        rows: &mut S,
        realm: &Realm,
        counters: &mut Counters,
        coverage: &mut Coverage,
        now: UnixTime,
    ) -> Result<Answer, Halt<S::Error>> {
        match self {
            Self::Append(requests) => rules::append(rows, realm, counters, now, requests).map(Answer::Receipts),
            Self::Issue(order) => lineage::issue(rows, realm, counters, coverage, now, *order).map(Answer::Issuance),
        }
    }
}
