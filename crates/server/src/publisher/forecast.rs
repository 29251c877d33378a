//! What a publisher would do now, told without doing it: `revocast publish --dry-run`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revocast_core::{Address, Now, Position, RealmId, Sequence, Term};
use tokio::sync::{mpsc, oneshot};

use super::{EpochCause, EpochFigures, PublishError, Publisher, Step};

/// Steps that are told one by one. A broker that lost a large epoch is told all of it again: the rest is counted.
const STEPS_MAX: usize = 1_000;

/// What a publisher would do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Of which realm.
    pub realm: RealmId,
    /// Reign of the ledger.
    pub term: Term,
    /// The last entry that was read from it.
    pub head: Sequence,
    /// Position of the last manifest; `None` before the first.
    pub position: Option<Position>,
    /// What would be done, in this order.
    pub steps: Vec<Foreseen>,
    /// Steps beyond those.
    pub steps_left_out: usize,
    /// What decides about a new epoch.
    pub figures: EpochFigures,
    /// Why one is due, if it is.
    pub epoch_due: Option<EpochCause>,
    /// In how long a manifest is sealed even if nothing happens.
    pub next_manifest: Duration,
}

/// One thing that would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// What: `live`, `build`, `retain`, `read-back`, `manifest`, `clear`.
    pub step: &'static str,
    /// Below the realm's prefix, if it concerns one address.
    pub address: Option<String>,
    /// Sealed, as far as it is known before it is done.
    pub bytes: Option<u64>,
    /// Why.
    pub why: String,
}

/// Those who wait for the forecast of one realm. More than these are told that nobody answers.
const WAITING_MAX: usize = 16;

/// Whoever waits for a forecast.
pub(super) type Inquirer = oneshot::Sender<Result<Forecast, PublishError>>;

/// Where forecasts are asked for. A realm that is published by this process answers; another does not.
#[derive(Debug, Default)]
pub struct Inquiries {
    realms: Mutex<BTreeMap<RealmId, mpsc::Sender<Inquirer>>>,
}

impl Inquiries {
    /// Asks the publisher of a realm; `None` if this process does not publish it, or is about to begin or to end.
    pub async fn ask(&self, realm: RealmId) -> Option<Result<Forecast, PublishError>> {
        let desk = self.realms().get(&realm).cloned()?;
        let (reply, answer) = oneshot::channel();
        desk.try_send(reply).ok()?;
        answer.await.ok()
    }

    /// Takes the inquiries for a realm from now on.
    pub(super) fn take_over(&self, realm: RealmId) -> mpsc::Receiver<Inquirer> {
        let (sender, inquiries) = mpsc::channel(WAITING_MAX);
        self.realms().insert(realm, sender);
        inquiries
    }

    fn realms(&self) -> MutexGuard<'_, BTreeMap<RealmId, mpsc::Sender<Inquirer>>> {
        // Whoever panicked while holding this has changed nothing by halves.
        self.realms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// What would be planned now, without planning it.
    ///
    /// # Errors
    ///
    /// What is new cannot be encoded, which a plan would meet as well.
    pub fn forecast(&self, now: Now) -> Result<Forecast, PublishError> {
        let figures = self.epoch_figures(now);
        let epoch_due = figures.due().filter(|_| !self.drafting);
        let mut steps = Vec::new();
        if let Some((delta, bytes)) = self.next_delta()? {
            let why = format!("entries {} to {} are in no delta yet", delta.from.0 + 1, delta.to);
            let address = Some(Address::Live.to_string());
            steps.push(Foreseen { step: "live", address, bytes: Some(bytes), why });
        }
        if let Some(cause) = epoch_due {
            let epoch = self.highest_epoch.0 + 1;
            let why = format!("a new epoch of {} revocations is due: {cause}", self.book.revoked_len());
            steps.push(Foreseen { step: "build", address: Some(format!("e/{epoch}")), bytes: None, why });
        }
        let expired: Vec<Address> = self.expired_objects(now).collect();
        for step in self.publication(&expired) {
            steps.extend(match step {
                // The one that is sealed next takes its place.
                Step::Live { .. } | Step::Retain { address: Address::Manifest, .. } => None,
                Step::Retain { address, bytes } => Some(Foreseen {
                    step: "retain",
                    address: Some(address.to_string()),
                    bytes: Some(bytes.len() as u64),
                    why: "it does not stand at the broker".to_owned(),
                }),
                Step::ReadBack { objects } => Some(Foreseen {
                    step: "read-back",
                    address: None,
                    bytes: None,
                    why: format!("{} objects must stand before a manifest names them", objects.len()),
                }),
                Step::Clear { address } => Some(Foreseen {
                    step: "clear",
                    address: Some(address.to_string()),
                    bytes: None,
                    why: format!("nothing has named it for {} s", self.settings.grace.as_secs()),
                }),
            });
        }
        if self.catalog_due(now) {
            let why = match &self.manifest {
                None => "there is none of this term",
                Some(_) if self.stale => "it does not say what is new",
                Some(_) => "the last one is as old as a heartbeat",
            };
            // Before what is cleared, after everything else.
            let place = steps.iter().position(|step| step.step == "clear").unwrap_or(steps.len());
            let (address, why) = (Some(Address::Manifest.to_string()), why.to_owned());
            steps.insert(place, Foreseen { step: "manifest", address, bytes: None, why });
        }
        let steps_left_out = steps.len().saturating_sub(STEPS_MAX);
        steps.truncate(STEPS_MAX);
        Ok(Forecast {
            realm: self.realm.id,
            term: self.term(),
            head: self.book.sequence(),
            position: self.position(),
            steps,
            steps_left_out,
            figures,
            epoch_due,
            next_manifest: self.deadline().saturating_sub(now.uptime),
        })
    }
}
