//! What is recorded while this server leads, entry by entry.
//!
//! For what only one of several servers shall do about an entry: announcing it to plain devices, ending a session.
//! Nothing is kept across restarts or handed from leader to leader. Whoever begins to lead begins at the head, so that
//! nothing is told twice and no history floods whoever listens; what falls between two leaders is told by neither.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::{RealmId, Sequence};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::leader::Office;
use crate::ledger::{Entry, Ledger, LedgerError};

/// Entries read at a time.
const SCAN_LIMIT: usize = 256;

/// Pause before the next look at a ledger that failed, or at a realm that is not founded yet.
const RETRY: Duration = Duration::from_millis(500);

/// Looked at this often even if nothing wakes us.
const LOOK: Duration = Duration::from_secs(5);

/// The entries of one realm, in order.
pub struct News {
    ledger: Arc<dyn Ledger>,
    office: watch::Receiver<Office>,
    wakes: watch::Receiver<u64>,
    realm: RealmId,
    /// Everything up to here was told; `None` while another server leads.
    told: Option<Sequence>,
    waiting: VecDeque<Entry>,
}

impl News {
    /// Those of this realm, which may be founded later.
    #[must_use]
    pub fn of(ledger: Arc<dyn Ledger>, office: watch::Receiver<Office>, realm: RealmId) -> Self {
        let wakes = ledger.subscribe();
        Self { ledger, office, wakes, realm, told: None, waiting: VecDeque::new() }
    }

    /// The next entry. Losing the race in a `select!` loses nothing.
    pub async fn next(&mut self) -> Entry {
        loop {
            if !self.office.borrow_and_update().is_leading() {
                self.told = None;
                self.waiting.clear();
                // The sender lives as long as the server.
                if self.office.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            }
            if let Some(entry) = self.waiting.pop_front() {
                self.told = Some(entry.sequence);
                return entry;
            }
            if let Err(error) = self.look().await {
                tracing::warn!(realm = %self.realm, %error, "the ledger does not tell what is new; trying again");
                sleep(RETRY).await;
            }
        }
    }

    /// Whether this server leads.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        self.office.borrow().is_leading()
    }

    /// Fills what waits, or waits until there may be something.
    async fn look(&mut self) -> Result<(), LedgerError> {
        self.wakes.mark_unchanged();
        let Some(told) = self.told else {
            self.told = match self.ledger.head(self.realm).await {
                Ok((_, head)) => Some(head),
                // All of its history is yet to come.
                Err(LedgerError::RealmUnknown { .. }) => Some(Sequence::default()),
                Err(error) => return Err(error),
            };
            return Ok(());
        };
        match self.ledger.scan(self.realm, told, SCAN_LIMIT).await {
            Ok(entries) => self.waiting.extend(entries),
            Err(LedgerError::RealmUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
        if self.waiting.is_empty() {
            tokio::select! {
                _ = self.office.changed() => {}
                _ = timeout(LOOK, self.wakes.changed()) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use revocast_core::{FingerprintFunction, Fingerprinter, RealmKey, UnixTime, Width};

    use super::*;
    use crate::ledger::{Action, Expiry, MemoryLedger, Realm, Request, Statement};

    fn realm() -> RealmId {
        RealmId::new("r").unwrap()
    }

    async fn revoke(ledger: &MemoryLedger, jti: &str) {
        let exp = Expiry::Vouched(UnixTime::from_secs(10_000));
        let action = Action::Revoke { jti: jti.to_owned(), exp };
        let request = Request { action, reason: None, actor: "a".to_owned() };
        ledger.append(realm(), UnixTime::from_secs(1), vec![request]).await.unwrap();
    }

    async fn next(news: &mut News) -> String {
        match timeout(Duration::from_secs(20), news.next()).await.expect("nothing came").statement {
            Statement::Revoke { jti, .. } => jti,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_leader_tells_what_came_since_it_began_and_nothing_twice() {
        let ledger = Arc::new(MemoryLedger::new());
        let office = watch::Sender::new(Office::Leading);
        let mut news = News::of(ledger.clone(), office.subscribe(), realm());
        // The realm is founded later.
        assert!(timeout(Duration::from_millis(20), news.next()).await.is_err());
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48);
        let founded = Realm::new(realm(), "i", fingerprinter, UnixTime::from_secs(1));
        ledger.create_realm(founded, Vec::new()).await.unwrap();
        revoke(&ledger, "a").await;
        revoke(&ledger, "b").await;
        assert_eq!((next(&mut news).await, next(&mut news).await), ("a".to_owned(), "b".to_owned()));
        // Given up and tried again: nothing is lost and nothing comes twice.
        assert!(timeout(Duration::from_millis(20), news.next()).await.is_err());
        revoke(&ledger, "c").await;
        assert_eq!(next(&mut news).await, "c");

        // Another one leads for a while, and tells what comes meanwhile.
        office.send_replace(Office::Seeking);
        assert!(timeout(Duration::from_millis(20), news.next()).await.is_err());
        revoke(&ledger, "d").await;
        assert!(timeout(Duration::from_millis(20), news.next()).await.is_err());
        office.send_replace(Office::Leading);
        assert!(timeout(Duration::from_millis(20), news.next()).await.is_err());
        revoke(&ledger, "e").await;
        assert_eq!(next(&mut news).await, "e");
    }
}
