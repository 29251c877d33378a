//! Shares the fleet between what hears of it, those who look at it and those who wait for it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revocast_core::update::DeviceTopic;
use revocast_core::{Kind, PublicKey, RealmId, Sequence};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::{Fleet, View};
use crate::broker::{Broker, Hearing, Incoming, Listener};
use crate::clock::Clock;
use crate::keys::Keys;
use crate::ledger::{Ledger, LedgerError, Realm};
use crate::standing::{Standing, Standings};

/// Bytes of what is looked at: the longest manifest. A larger delta is not, and the manifest that follows it tells.
const PAYLOAD_BYTES_MAX: usize = 4 * 1024;

/// Messages that wait to be taken in: the reports of a fleet that speaks all at once.
const WAITING_MAX: usize = 1_024;

/// Messages taken in under one lock.
const TAKEN_AT_ONCE: usize = 64;

/// Realms and heads are read from the ledger at most this often.
const READ_EVERY: Duration = Duration::from_millis(500);

/// Whoever waits looks at most this often.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// How far a request may wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    /// Until the entry is recorded, as every request does.
    Durable,
    /// Until it was seen on the broker.
    Published,
    /// Until that share of the devices online, from 0 to 1, has reported it; one device at least.
    Applied {
        /// The share.
        share: f64,
    },
}

/// How far an entry has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    // Order of declaration is order of reaching.
    /// It is recorded.
    Durable,
    /// It was seen on the broker.
    Published,
    /// Enough devices have reported it.
    Applied,
}

impl Reached {
    /// The name in JSON and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Published => "published",
            Self::Applied => "applied",
        }
    }
}

/// A fleet that several look at.
pub struct Lookout {
    fleet: Mutex<Fleet>,
    clock: Arc<dyn Clock>,
    news: watch::Sender<()>,
}

impl Lookout {
    /// Shares a fleet.
    #[must_use]
    pub fn new(fleet: Fleet, clock: Arc<dyn Clock>) -> Self {
        Self { fleet: Mutex::new(fleet), clock, news: watch::Sender::new(()) }
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.clock.now().uptime
    }

    /// Takes in that this server has just recorded an entry.
    pub fn recorded(&self, realm: &Realm, sequence: Sequence) {
        let mut fleet = self.fleet();
        fleet.follow(realm.id, realm.fingerprinter.width());
        fleet.recorded(self.now(), realm.id, sequence);
        drop(fleet);
        self.news.send_replace(());
    }

    /// Takes in what came on a topic; `standing` is what a report is worth there.
    pub fn take(&self, topic: &str, payload: &[u8], standing: Standing) {
        self.fleet().hear(self.now(), topic, payload, standing);
        self.news.send_replace(());
    }

    /// How the devices of a realm are, whose ledger ends at `head`, and how many stand at or above `at_least`.
    #[must_use]
    pub fn view(&self, realm: &Realm, head: Sequence, at_least: Sequence) -> Option<View> {
        let mut fleet = self.fleet();
        fleet.follow(realm.id, realm.fingerprinter.width());
        fleet.reaches(&realm.id, head);
        fleet.view(self.now(), &realm.id, at_least)
    }

    /// Waits until an entry that exists has come so far, or time is up; says how far it has come.
    pub async fn wait(&self, realm: RealmId, sequence: Sequence, wait: Wait, patience: Duration) -> Reached {
        if wait == Wait::Durable {
            return Reached::Durable;
        }
        let until = Instant::now() + patience;
        let mut news = self.news.subscribe();
        self.fleet().reaches(&realm, sequence);
        loop {
            news.mark_unchanged();
            let reached = self.reached(&realm, sequence, wait);
            let enough = match wait {
                Wait::Durable => Reached::Durable,
                Wait::Published => Reached::Published,
                Wait::Applied { .. } => Reached::Applied,
            };
            if reached >= enough || Instant::now() >= until {
                return reached;
            }
            // The sender lives as long as this.
            let _ = timeout_at(until, news.changed()).await;
            sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
        }
    }

    fn reached(&self, realm: &RealmId, sequence: Sequence, wait: Wait) -> Reached {
        let mut fleet = self.fleet();
        if let Wait::Applied { share } = wait
            && fleet.is_applied(self.now(), realm, sequence, share)
        {
            return Reached::Applied;
        }
        if fleet.is_published(realm, sequence) { Reached::Published } else { Reached::Durable }
    }

    /// Takes in what has come.
    async fn take_in(&self, listener: &mut Listener, first: Incoming, standings: &Standings) {
        let mut taken = Vec::with_capacity(TAKEN_AT_ONCE);
        let mut next = Some(first);
        while let Some(message) = next {
            let standing = self.standing(&message, standings).await;
            taken.push((message, standing));
            next = if taken.len() < TAKEN_AT_ONCE { listener.try_next() } else { None };
        }
        let now = self.now();
        let mut fleet = self.fleet();
        for (message, standing) in taken {
            fleet.hear(now, &message.topic, &message.payload, standing);
        }
        drop(fleet);
        self.news.send_replace(());
    }

    /// What a report is worth. Of what is no report of a realm here, nobody needs to know.
    async fn standing(&self, message: &Incoming, standings: &Standings) -> Standing {
        let reporting = {
            let fleet = self.fleet();
            DeviceTopic::Report.parse(fleet.prefix(), &message.topic).filter(|(realm, _)| fleet.follows(realm))
        };
        match reporting {
            Some((realm, device)) => standings.judge(realm, device, Kind::Report, &message.payload).await,
            None => Standing::Claimed,
        }
    }

    /// Returns the publisher whose signatures are believed: its key may come later than the server, and may change.
    async fn read(&self, ledger: &dyn Ledger, keys: &Keys) -> Result<Option<PublicKey>, LedgerError> {
        let publisher = publisher(keys);
        if let Some(publisher) = publisher {
            self.fleet().believe(publisher);
        }
        for realm in ledger.realms().await? {
            let (_, head) = ledger.head(realm.id).await?;
            let enrolled = !ledger.devices(realm.id, None, 1).await?.is_empty();
            let mut fleet = self.fleet();
            fleet.follow(realm.id, realm.fingerprinter.width());
            fleet.reaches(&realm.id, head);
            fleet.enroll(&realm.id, enrolled);
        }
        self.news.send_replace(());
        Ok(publisher)
    }
}

impl fmt::Debug for Lookout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookout(..)")
    }
}

fn publisher(keys: &Keys) -> Option<PublicKey> {
    keys.publisher().ok().map(|key| key.public())
}

/// Feeds a lookout with what comes on the broker and what the ledger holds, until it is dropped.
pub async fn hear(
    lookout: Arc<Lookout>,
    broker: Broker,
    ledger: Arc<dyn Ledger>,
    keys: Arc<Keys>,
    standings: Arc<Standings>,
) {
    let filters = lookout.fleet().filters().to_vec();
    // What is lost here is only news about news: a device reports again, a manifest is renewed.
    let hearing = Hearing {
        name: "f",
        filters,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        waiting_max: WAITING_MAX,
        acknowledged: false,
    };
    let mut wakes = ledger.subscribe();
    let mut known = loop {
        match lookout.read(&*ledger, &keys).await {
            Ok(known) => break known,
            Err(error) => tracing::error!(%error, "realms cannot be read; trying again"),
        }
        tokio::time::sleep(READ_EVERY).await;
    };
    // Only now: what is retained comes once.
    let mut listener = broker.listen(hearing);
    let mut dropped = 0;
    let mut reading = interval(READ_EVERY);
    reading.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = listener.next() => lookout.take_in(&mut listener, message, &standings).await,
            _ = reading.tick() => {
                if known.is_none() || known != publisher(&keys) || wakes.has_changed().unwrap_or(false) {
                    wakes.mark_unchanged();
                    match lookout.read(&*ledger, &keys).await {
                        Ok(believed) => known = believed,
                        Err(error) => {
                            tracing::error!(%error, "realms cannot be read; trying again");
                            wakes.mark_changed();
                        }
                    }
                }
                let now = listener.dropped();
                if now > dropped {
                    lookout.fleet().dropped(now - dropped);
                    dropped = now;
                }
            }
        }
    }
}
