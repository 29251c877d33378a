//! Who publishes: of several servers on one ledger, the one that holds the lease.
//!
//! Every server takes requests; the ledger numbers them. One leads: it bids for the lease, renews it at a third of its
//! length and publishes while it holds it. It counts the lease by its own uptime from before it asked, so that it falls
//! silent before anybody else may begin. What makes a leader harmless that was paused and does not know it is the term:
//! whoever takes over a lease that ran out does so in a new one, and nothing is stored in an old one any more (design
//! rule 9). A ledger that only one process can open always grants the lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::keys::{KeyError, Keys};
use crate::ledger::{Bid, Leadership, Ledger, LedgerError};
use crate::minting::LiveFilters;
use crate::publisher::{self, Ended, Permit, Publishing, Signer};

/// A lease is renewed each time that this part of it has passed: two renewals may fail.
const RENEWALS: u32 = 3;

/// Pause before the next look at a ledger that failed, or for a key that is missing.
const RETRY: Duration = Duration::from_millis(500);

/// A follower asks at least this often: whoever stops in order is followed at once.
const LOOK: Duration = Duration::from_secs(1);

/// A follower asks again this long after the lease it heard of should have run out.
const AFTER: Duration = Duration::from_millis(50);

/// What this server is among those on its ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Office {
    /// It has not found out yet.
    Seeking,
    /// It publishes.
    Leading,
    /// Another one does.
    Following {
        /// Which.
        leader: String,
        /// Where it is reached, if it told.
        address: Option<String>,
    },
    /// It would publish if it could.
    Unable {
        /// Why it cannot.
        cause: String,
    },
}

impl Office {
    /// Whether it publishes.
    #[must_use]
    pub const fn is_leading(&self) -> bool {
        matches!(self, Self::Leading)
    }
}

/// A server that bids for the lease.
#[derive(Clone)]
pub struct Candidate {
    /// Its name, of this process alone.
    pub name: String,
    /// Where others send whoever asks for what only a leader can do.
    pub address: Option<String>,
    /// How long a lease is.
    pub lease: Duration,
    /// Where the lease is kept.
    pub ledger: Arc<dyn Ledger>,
    /// Uptime.
    pub clock: Arc<dyn Clock>,
    /// Without the publisher's key it does not bid.
    pub keys: Arc<Keys>,
    /// Whoever mints knows no filters while another server leads.
    pub filters: Arc<LiveFilters>,
    /// Where its office is told.
    pub office: watch::Sender<Office>,
    /// Until when it may publish.
    pub permit: Permit,
}

impl Candidate {
    /// A name that no other process has.
    #[must_use]
    pub fn fresh_name() -> String {
        let random = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        format!("{random:016x}")
    }

    fn tell(&self, office: Office) {
        self.office.send_if_modified(|told| {
            let changed = *told != office;
            if changed {
                tracing::info!(server = self.name, ?office, "the office of this server");
                *told = office;
            }
            changed
        });
    }

    fn signer(&self) -> Result<Signer, KeyError> {
        self.keys.publisher().map(|content| Signer { content })
    }

    /// Waits until the key file holds another key.
    async fn another_signer(&self, signer: &Signer) -> Signer {
        loop {
            sleep(LOOK).await;
            if let Ok(found) = self.signer()
                && found.content.public() != signer.content.public()
            {
                return found;
            }
        }
    }

    /// One bid. Whoever is granted the lease holds it until the uptime that is returned with the answer.
    async fn bid(&self) -> Result<(Leadership, Duration), LedgerError> {
        let until = self.clock.now().uptime + self.lease;
        let bid = Bid { server: self.name.clone(), address: self.address.clone(), lease: self.lease };
        let answer = timeout(self.lease, self.ledger.lead(bid)).await;
        Ok((answer.unwrap_or(Err(LedgerError::Closed))?, until))
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.clock.now().uptime)
    }
}

/// How a reign ended.
enum End {
    /// The server stops.
    Stopped(Ended),
    /// The lease was lost.
    Lost,
}

/// Bids, and publishes while this server leads, until `stop` is told or dropped. `publishing` makes what is needed
/// for one reign.
pub async fn run(candidate: Candidate, publishing: impl Fn(Signer) -> Publishing, mut stop: oneshot::Receiver<()>) {
    loop {
        let pause = match candidate.signer() {
            Err(error) => {
                let cause = publisher::chain(&error);
                tracing::error!(%cause, "nothing is published without the publisher's key; it is looked for again and again");
                candidate.tell(Office::Unable { cause });
                RETRY
            }
            Ok(signer) => match candidate.bid().await {
                Ok((Leadership::Leading { took_over }, until)) => {
                    if took_over {
                        tracing::warn!("the lease of the former leader had run out; every realm goes on in a new term");
                    }
                    match reign(&candidate, &publishing, signer, until, &mut stop).await {
                        End::Stopped(ended) => return step_down(&candidate, ended).await,
                        End::Lost => {
                            tracing::warn!("this server leads no more");
                            candidate.filters.clear();
                            candidate.tell(Office::Seeking);
                            continue;
                        }
                    }
                }
                Ok((Leadership::Following { leader, address, remaining }, _)) => {
                    candidate.tell(Office::Following { leader, address });
                    (remaining + AFTER).min(LOOK)
                }
                Err(error) => {
                    let cause = publisher::chain(&error);
                    tracing::warn!(%cause, "the ledger does not tell who leads");
                    candidate.tell(Office::Unable { cause });
                    RETRY
                }
            },
        };
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut stop => return,
        }
    }
}

/// Publishes for as long as the lease is renewed.
async fn reign(
    candidate: &Candidate,
    publishing: &impl Fn(Signer) -> Publishing,
    mut signer: Signer,
    mut until: Duration,
    stop: &mut oneshot::Receiver<()>,
) -> End {
    candidate.permit.renew(until);
    candidate.tell(Office::Leading);
    let begin = |signer: Signer| {
        let (end, ending) = oneshot::channel();
        (end, Running(tokio::spawn(publisher::run(publishing(signer), ending))))
    };
    let (mut end, mut running) = begin(signer.clone());
    let lost = loop {
        let renewal = async {
            // Counted from when the last one was asked for.
            sleep(candidate.left(until).saturating_sub(candidate.lease / RENEWALS * (RENEWALS - 1))).await;
            loop {
                match candidate.bid().await {
                    Ok(answer) => return answer,
                    Err(error) => {
                        tracing::warn!(cause = %publisher::chain(&error), "the lease was not renewed; trying again");
                        sleep(RETRY).await;
                    }
                }
            }
        };
        tokio::select! {
            (answer, renewed) = renewal => match answer {
                Leadership::Leading { took_over: false } => {
                    until = renewed;
                    candidate.permit.renew(until);
                }
                // Somebody else led in between, and is gone.
                Leadership::Leading { took_over: true } | Leadership::Following { .. } => break End::Lost,
            },
            () = sleep(candidate.left(until)) => break End::Lost,
            // What it has begun it finishes with the key it began with.
            next = candidate.another_signer(&signer) => {
                tracing::info!(key = %next.content.public().id(), "another publisher key; publishing goes on with it");
                drop(end);
                let _ = (&mut running.0).await;
                signer = next;
                (end, running) = begin(signer.clone());
            }
            // Without having been asked to: it found another term.
            _ = &mut running.0 => {
                candidate.permit.give_up();
                return End::Lost;
            }
            _ = &mut *stop => {
                drop(end);
                let ended = (&mut running.0).await;
                candidate.permit.give_up();
                return End::Stopped(ended.unwrap_or(Ended::Interrupted));
            }
        }
    };
    // Nothing new is begun without a permit. What the ledger is storing is waited for: it must not come after what the
    // next reign of this server stores.
    candidate.permit.give_up();
    drop(end);
    let _ = (&mut running.0).await;
    lost
}

/// The lease is given up, so that the next server need not wait, if nothing of this one can follow.
async fn step_down(candidate: &Candidate, ended: Ended) {
    if ended != Ended::InOrder {
        tracing::warn!("publishing did not end in time; the next leader waits until the lease has run out");
        return;
    }
    match timeout(candidate.lease, candidate.ledger.step_down(candidate.name.clone())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the lease was not given up; it runs out"),
        Err(_) => tracing::warn!("the lease was not given up in time; it runs out"),
    }
}

/// A publisher that ends with whoever holds this.
struct Running(JoinHandle<Ended>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}
