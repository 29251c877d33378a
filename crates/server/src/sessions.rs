//! Ends the live session of a device whose token was revoked.
//!
//! A broker asks who may come in when somebody comes, and never again: who is in stays in. So the server that leads follows
//! the ledger, and where an entry takes the newest token of an enrolled device, that device's session is ended at the
//! broker. That it does not come back is the broker's to ask ([`hooks`](crate::hooks)). An older token of the device is
//! none of its session's business: it was renewed since, and may have been revoked for just that.

mod management;
pub use management::{Emqx, ManagementError, RabbitMq};

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::{Claims, DeviceId, Jti, RealmId};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::broker::{Broker, BrokerError};
use crate::leader::Office;
use crate::ledger::{Device, Entry, Ledger, LedgerError, Scope, Statement};
use crate::metrics::{Metrics, SessionOutcome};
use crate::news::News;
use crate::service::is_revoked;

/// Devices that wait for their session to be ended. While there are more, the ledger is not read on.
const WAITING_MAX: usize = 1_024;

/// Sessions that are being ended at a time.
const AT_ONCE: usize = 8;

/// How often a session is tried to be ended, and the pause after the first failure; it doubles.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(500);

/// Devices read from the ledger at a time.
const PAGE: usize = 256;

/// How often is looked for realms that were founded since.
const LOOK: Duration = Duration::from_secs(5);

/// What ends sessions at a broker.
pub trait Sessions: Send + Sync + fmt::Debug {
    /// Ends the session of a client id, if it has one.
    fn end<'a>(&'a self, client_id: &'a str) -> SessionsFuture<'a>;
}

/// What became of a session.
pub type SessionsFuture<'a> = Pin<Box<dyn Future<Output = Result<Found, SessionsError>> + Send + 'a>>;

/// Whether there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was, and it is ended.
    Ended,
    /// There was none, as far as the broker tells.
    Absent,
}

/// Why a session was not ended. It is tried again a few times.
#[derive(Debug, Error)]
pub enum SessionsError {
    /// The management API cannot be reached; the operator's to mend if it lasts.
    #[error("the management API of the broker cannot be reached: {cause}")]
    Unreachable {
        /// How that showed.
        cause: String,
    },
    /// It answered with something else than it should: wrong credentials, most often.
    #[error("the management API of the broker answered {status} to {request}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The HTTP status.
        status: u16,
    },
    /// Its answer cannot be read.
    #[error("what the management API of the broker answered cannot be read: {what}")]
    Unreadable {
        /// What is wrong with it.
        what: String,
    },
    /// The broker let nobody take the session over.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Connects under the client id of the device, for which every broker ends the connection that was there.
#[derive(Debug)]
pub struct TakeOver(pub Broker);

impl Sessions for TakeOver {
    fn end<'a>(&'a self, client_id: &'a str) -> SessionsFuture<'a> {
        Box::pin(async move {
            self.0.take_over(client_id).await?;
            Ok(Found::Ended)
        })
    }
}

/// What it takes to find out whose sessions end.
#[derive(Clone)]
pub struct Watch {
    /// What ends them.
    pub sessions: Arc<dyn Sessions>,
    /// What is followed, and knows which tokens are revoked.
    pub ledger: Arc<dyn Ledger>,
    /// Whether this server leads.
    pub office: watch::Receiver<Office>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

/// Follows every realm, those founded later included, until it is dropped.
pub async fn run(watch: Watch) {
    let (queue, waiting) = mpsc::channel(WAITING_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(work(watch.clone(), waiting));
    let mut known = HashSet::new();
    let mut wakes = watch.ledger.subscribe();
    loop {
        wakes.mark_unchanged();
        match watch.ledger.realms().await {
            Ok(realms) => {
                for realm in realms.into_iter().map(|realm| realm.id) {
                    if known.insert(realm) {
                        let news = News::of(Arc::clone(&watch.ledger), watch.office.clone(), realm);
                        tasks.spawn(follow(watch.clone(), realm, news, queue.clone()));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "realms cannot be read; trying again"),
        }
        sleep(LOOK).await;
    }
}

/// Puts the devices of one realm into the queue whose tokens its entries take.
async fn follow(watch: Watch, realm: RealmId, mut news: News, queue: mpsc::Sender<DeviceId>) {
    loop {
        let Entry { sequence, statement, .. } = news.next().await;
        let mut tries = 1;
        while let Err(error) = watch.concerned(realm, &statement, &queue).await {
            tracing::warn!(%realm, %sequence, %error, "whose session an entry ends is not known yet");
            if tries == TRIES || !news.is_leading() {
                watch.metrics.session_ended(SessionOutcome::failed);
                break;
            }
            sleep(PAUSE * 2_u32.pow(tries)).await;
            tries += 1;
        }
    }
}

impl Watch {
    async fn concerned(
        &self,
        realm: RealmId,
        statement: &Statement,
        queue: &mpsc::Sender<DeviceId>,
    ) -> Result<(), LedgerError> {
        match statement {
            Statement::Revoke { jti, .. } => {
                let issued = self.ledger.find_issued(realm, jti.clone()).await?;
                let Some(device) = issued.and_then(|issued| issued.device) else { return Ok(()) };
                let enrolled = self.ledger.device(realm, device).await?;
                // Dismissed, or its newest token is gone.
                if enrolled.is_none_or(|enrolled| enrolled.holds.as_ref() == Some(jti)) {
                    let _ = queue.send(device).await;
                }
            }
            Statement::Cutoff { scope, .. } => {
                let mut after = None;
                loop {
                    let page = self.ledger.devices(realm, after, PAGE).await?;
                    for device in &page {
                        if self.is_cut_off(realm, device, scope).await? {
                            let _ = queue.send(device.id).await;
                        }
                    }
                    match page.last() {
                        Some(last) if page.len() == PAGE => after = Some(last.id),
                        Some(_) | None => return Ok(()),
                    }
                }
            }
            Statement::Reinstate { .. } | Statement::Lift { .. } | Statement::Resume { .. } => {}
        }
        Ok(())
    }

    /// Whether the newest token of a device is revoked, if a scope may hold it.
    async fn is_cut_off(&self, realm: RealmId, device: &Device, scope: &Scope) -> Result<bool, LedgerError> {
        let Some(jti) = &device.holds else { return Ok(false) };
        if matches!(scope, Scope::Sub(sub) if *sub != device.subject) {
            return Ok(false);
        }
        let Some(issued) = self.ledger.find_issued(realm, jti.clone()).await? else { return Ok(false) };
        let Ok(jti) = Jti::new(&issued.jti) else { return Ok(false) };
        let (sub, kid, client) = (issued.sub.as_deref(), issued.kid.as_deref(), issued.client.as_deref());
        let claims = Claims { iat: Some(issued.iat), sub, kid, client, ..Claims::new(jti, issued.exp) };
        is_revoked(&*self.ledger, realm, &claims).await
    }
}

/// Ends the sessions of those who wait.
async fn work(watch: Watch, mut waiting: mpsc::Receiver<DeviceId>) {
    let mut working = JoinSet::new();
    while let Some(device) = waiting.recv().await {
        while working.len() >= AT_ONCE {
            working.join_next().await;
        }
        while working.try_join_next().is_some() {}
        working.spawn(end(Arc::clone(&watch.sessions), Arc::clone(&watch.metrics), device));
    }
}

async fn end(sessions: Arc<dyn Sessions>, metrics: Arc<Metrics>, device: DeviceId) {
    for tries in 0..TRIES {
        if tries > 0 {
            sleep(PAUSE * 2_u32.pow(tries - 1)).await;
        }
        match sessions.end(device.as_str()).await {
            Ok(found) => {
                tracing::info!(%device, ?found, "the session of a revoked device");
                return metrics.session_ended(match found {
                    Found::Ended => SessionOutcome::ended,
                    Found::Absent => SessionOutcome::absent,
                });
            }
            Err(error) => {
                tracing::warn!(%device, %error, tries = tries + 1, "the session of a revoked device was not ended");
            }
        }
    }
    tracing::error!(%device, "the session of a revoked device stands; it was tried {TRIES} times to end it");
    metrics.session_ended(SessionOutcome::failed);
}

#[cfg(test)]
mod tests;
