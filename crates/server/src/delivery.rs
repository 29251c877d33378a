//! Tokens on their way to devices: when they are issued, ahead of their expiry, and when a device asks.
//!
//! What goes to a device is sealed by the publisher's key, enclosed for the device (RFC 9180) unless the operator wants
//! tokens in clear, sent at `QoS` 1 and never retained. A device that is away asks when it comes back: nothing waits for
//! it here. Of several servers the leader alone does all of this; what a device may get is decided by the
//! [ledger](crate::ledger).

use std::collections::{HashMap, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use revocast_core::limits::DEVICE_ID_BYTES_MAX;
use revocast_core::update::{Delivery, DeviceTopic, Nonce, Notice, Renew, TokenTopic};
use revocast_core::wire::{self, WireError};
use revocast_core::{DeviceId, Digest, EnvelopeError, Kind, RealmId, Sealed, UnixMillis, UnixTime, enclose, seal};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::broker::{Broker, BrokerError, Hearing, Incoming, Listener};
use crate::clock::Clock;
use crate::keys::{KeyError, Keys};
use crate::leader::Office;
use crate::ledger::{Device, Realm};
use crate::publisher::chain;
use crate::service::{Parcel, Service, ServiceError};

/// Parcels that wait to be taken.
pub const PARCELS_WAITING_MAX: usize = 64;

/// Parcels, requests and renewals under way at a time: what arrives together is granted in one transaction.
const UNDER_WAY_MAX: usize = 128;

/// Requests that wait to be taken. What comes beyond is dropped and counted: devices ask again, later and later.
const REQUESTS_WAITING_MAX: usize = 4_096;

/// Bytes of a request, rounded up: envelope, realm and device, and a `jti` of any length.
const REQUEST_BYTES_MAX: usize = 1_024 + DEVICE_ID_BYTES_MAX;

/// A request that has waited longer is dropped: the device asks again.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// How long the broker may take for one delivery.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked which tokens are about to expire.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Tokens that are renewed ahead in one look, and at a time.
const AHEAD_MAX: usize = 1_000;
const AHEAD_AT_ONCE: usize = 32;

/// The last part of a token's life in which it is renewed unasked: devices ask for themselves between 60 and 80 % of it,
/// so this is for those that did not get through.
const AHEAD_SHARE: u32 = 5;

/// Requests of one device that are answered at once, and the time after which one more is.
const BURST: u32 = 4;
const REFILL: Duration = Duration::from_secs(2);

/// Devices whose requests are counted. Beyond it all begin anew, each with its burst.
const METERED_MAX: usize = 100_000;

/// What delivering needs.
pub struct Delivering {
    /// Where tokens are granted.
    pub service: Arc<Service>,
    /// Where they go.
    pub broker: Broker,
    /// What seals them.
    pub keys: Arc<Keys>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether this server leads.
    pub office: watch::Receiver<Office>,
    /// First level of the topics on which devices ask.
    pub prefix: String,
    /// Where a device awaits its tokens.
    pub topic: TokenTopic,
    /// Whether tokens travel in clear: the operator's wish alone.
    pub clear: bool,
}

/// Sends what is handed over, answers what is asked and renews ahead, for as long as this server leads, until `stop`
/// is told. When this returns, nothing of it holds the ledger any more.
pub async fn run(delivering: Delivering, mut parcels: mpsc::Receiver<Parcel>, mut stop: watch::Receiver<bool>) {
    if delivering.clear {
        tracing::warn!("tokens travel in clear, as clear_tokens says: whoever reads the broker can use them");
    }
    let post = Arc::new(Post { delivering, last: AtomicU64::new(0) });
    let mut office = post.delivering.office.clone();
    let mut ended = std::pin::pin!(async move {
        // Whoever would say so is gone: that ends it as well.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    loop {
        tokio::select! {
            led = office.wait_for(Office::is_leading) => {
                if led.is_err() {
                    return;
                }
            }
            () = &mut ended => return,
            // Nobody sends it from here: whoever waits for it is told by its being dropped.
            Some(_) = parcels.recv() => continue,
        }
        let mut under_way = JoinSet::new();
        let go_on = tokio::select! {
            () = post.lead(&mut parcels, &mut under_way) => false,
            () = &mut ended => false,
            deposed = office.wait_for(|office| !office.is_leading()) => deposed.is_ok(),
        };
        under_way.shutdown().await;
        if !go_on {
            return;
        }
    }
}

/// What is shared by all that is on its way.
struct Post {
    delivering: Delivering,
    /// When the last delivery was made; each is dated later.
    last: AtomicU64,
}

impl Post {
    /// Everything that is under way is in `under_way`, so that it ends with whoever holds that.
    async fn lead(self: &Arc<Self>, parcels: &mut mpsc::Receiver<Parcel>, under_way: &mut JoinSet<Done>) {
        let mut listener = self.delivering.broker.listen(Hearing {
            name: "t",
            filters: vec![format!("{}/+/devices/+/{}", self.delivering.prefix, DeviceTopic::Renew.name())],
            payload_bytes_max: REQUEST_BYTES_MAX,
            waiting_max: REQUESTS_WAITING_MAX,
            acknowledged: true,
        });
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut due, mut looking, mut meters, mut dropped) = (VecDeque::new(), false, Meters::default(), 0);
        loop {
            let room = under_way.len() < UNDER_WAY_MAX;
            let post = Arc::clone(self);
            tokio::select! {
                Some(done) = under_way.join_next() => match done {
                    Ok(Done::Sent) => {}
                    Ok(Done::Admitted(admitted)) => {
                        let (realm, device, request) = *admitted;
                        if meters.admit(realm, device.id) {
                            under_way.spawn(async move { post.answer(realm, device, &request).await });
                        } else {
                            tracing::debug!(%realm, device = %device.id, "a device asks too often");
                        }
                    }
                    Ok(Done::Looked(found)) => {
                        due.extend(found);
                        looking = false;
                    }
                    Err(error) => {
                        tracing::error!(%error, "a delivery broke");
                        looking = false;
                    }
                },
                parcel = parcels.recv(), if room => match parcel {
                    Some(parcel) => drop(under_way.spawn(async move { post.send_parcel(parcel).await })),
                    // The service is gone, and the server ends.
                    None => return,
                },
                request = listener.next(), if room => drop(under_way.spawn(async move { post.admit(request).await })),
                _ = looks.tick(), if !looking && due.is_empty() => {
                    looking = true;
                    under_way.spawn(async move { Done::Looked(post.look().await) });
                    dropped = told_of_dropped(&listener, dropped);
                }
                () = ready(()), if under_way.len() < AHEAD_AT_ONCE && !due.is_empty() => {
                    if let Some((realm, device, jti)) = due.pop_front() {
                        under_way.spawn(async move { post.renew_one(realm, device, jti).await });
                    }
                }
            }
        }
    }

    async fn send_parcel(&self, parcel: Parcel) -> Done {
        let Parcel { realm, device, nonce, notice, done } = parcel;
        match self.send(realm, &device, nonce, &notice).await {
            // Whoever waited may have gone.
            Ok(()) => drop(done.send(())),
            Err(error) => {
                tracing::warn!(%realm, device = %device.id, error = %chain(&error), "a token was not delivered");
            }
        }
        Done::Sent
    }

    /// Seals and sends one notice, and waits until the broker has it.
    async fn send(
        &self,
        realm: RealmId,
        device: &Device,
        nonce: Option<Nonce>,
        notice: &Notice,
    ) -> Result<(), DeliveryError> {
        let Delivering { broker, keys, topic, clear, .. } = &self.delivering;
        let issued_at = self.date();
        let content = wire::encode_notice(notice)?;
        let content = if *clear {
            content
        } else {
            let mut randomness = [0; 32];
            getrandom::fill(&mut randomness).map_err(DeliveryError::Random)?;
            let bound = Delivery::bound(issued_at, nonce.as_ref());
            enclose(&device.sealing, &realm, &device.id, &bound, &content, randomness)?
        };
        let delivery = Delivery { device: device.id, issued_at, nonce, enclosed: !clear, content };
        let body = wire::encode_delivery(&delivery)?;
        let bytes = seal(Kind::Delivery, &realm, &body, &[&keys.publisher()?]);
        let topic = topic.topic(&realm, &device.id);
        let sent = broker.publish_token(&topic, bytes);
        timeout(SEND_PATIENCE, sent).await.map_err(|_| BrokerError::Silent { after: SEND_PATIENCE })??;
        Ok(())
    }

    /// Later than all before, whatever the clock does.
    fn date(&self) -> UnixMillis {
        let now = self.delivering.clock.now().wall.millis();
        let later = |last: u64| Some(now.max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).unwrap_or_default();
        UnixMillis::from_millis(now.max(last + 1))
    }

    /// Answers a request that its device has signed.
    async fn answer(&self, realm: RealmId, device: Device, request: &Renew) -> Done {
        if let Some(notice) = self.delivering.service.renew(realm, device.clone(), request).await
            && let Err(error) = self.send(realm, &device, Some(request.nonce), &notice).await
        {
            tracing::warn!(%realm, device = %device.id, error = %chain(&error), "an answer was not delivered");
        }
        Done::Sent
    }

    /// Whether a request is one: anything else is answered with nothing.
    async fn admit(&self, message: Incoming) -> Done {
        let Some(admitted) = self.verified(&message).await else {
            tracing::debug!(topic = message.topic, "no request of a device that is enrolled");
            return Done::Sent;
        };
        Done::Admitted(Box::new(admitted))
    }

    /// The device that has signed a request, and what it asks. Nothing is looked at before its signature.
    async fn verified(&self, message: &Incoming) -> Option<(RealmId, Device, Renew)> {
        // One that stands there is asked for ever; one that waited for long was asked again.
        if message.retained || message.at.elapsed() > REQUEST_PATIENCE {
            return None;
        }
        let (realm, id) = DeviceTopic::Renew.parse(&self.delivering.prefix, &message.topic)?;
        let device = self.delivering.service.device(realm, id).await.ok()?;
        let sealed = Sealed::expect(&message.payload, &realm, Kind::Renew).ok()?;
        let body = sealed.by_threshold(&[device.signing], 1).ok()?;
        let request = body.try_map(wire::decode_renew).ok()?.into_inner();
        (request.device == id).then_some((realm, device, request))
    }

    /// What is to be renewed unasked, because it is about to expire.
    async fn look(&self) -> Vec<(RealmId, DeviceId, String)> {
        let mut due = Vec::new();
        match self.delivering.service.realms().await {
            Ok(realms) => {
                for realm in realms {
                    match self.look_at(&realm).await {
                        Ok(found) => due.extend(found),
                        Err(error) => {
                            tracing::warn!(realm = %realm.id, error = %chain(&error), "which tokens expire is not known");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "which tokens expire is not known"),
        }
        due
    }

    async fn look_at(&self, realm: &Realm) -> Result<Vec<(RealmId, DeviceId, String)>, ServiceError> {
        let service = &self.delivering.service;
        let window = service.token_lifetime(realm)? / AHEAD_SHARE;
        let now = self.delivering.clock.unix_time();
        let ending = service.expiring(realm.id, window, AHEAD_MAX).await?;
        let due = ending.into_iter().filter(|(_, jti, exp)| is_due(jti, *exp, now, window));
        Ok(due.map(|(device, jti, _)| (realm.id, device, jti)).collect())
    }

    async fn renew_one(&self, realm: RealmId, id: DeviceId, jti: String) -> Done {
        let service = &self.delivering.service;
        let sent = async {
            let device = service.device(realm, id).await?;
            let notice = service.renew_ahead(realm, id, jti).await?;
            Ok::<_, ServiceError>(self.send(realm, &device, None, &notice).await)
        };
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%realm, device = %id, error = %chain(&error), "not delivered"),
            // It learns why when it asks.
            Err(error) => tracing::debug!(%realm, device = %id, error = %chain(&error), "not renewed ahead"),
        }
        Done::Sent
    }
}

/// What became of something under way.
enum Done {
    /// It was sent, or could not be, or there was nothing to send.
    Sent,
    /// A device that is enrolled has signed this request.
    Admitted(Box<(RealmId, Device, Renew)>),
    /// These are about to expire.
    Looked(Vec<(RealmId, DeviceId, String)>),
}

fn told_of_dropped(listener: &Listener, before: u64) -> u64 {
    let dropped = listener.dropped();
    if dropped > before {
        tracing::warn!(dropped, "requests for tokens that were too large, or came too fast to be looked at");
    }
    dropped
}

/// Whether a token is renewed now: at a moment of the window that its `jti` draws, so that tokens issued together are
/// not renewed together.
fn is_due(jti: &str, exp: UnixTime, now: UnixTime, window: Duration) -> bool {
    let drawn = u64::from(Digest::of(jti.as_bytes()).0[0]);
    // The last quarter of the window is left for a second try.
    let latest = window.as_secs() / 4;
    let before = latest + (window.as_secs() - latest) * drawn / 255;
    exp.secs() <= now.secs() + before
}

/// How often each device asks.
#[derive(Default)]
struct Meters(HashMap<(RealmId, DeviceId), (u32, Instant)>);

impl Meters {
    fn admit(&mut self, realm: RealmId, device: DeviceId) -> bool {
        if self.0.len() >= METERED_MAX {
            self.0.clear();
        }
        let now = Instant::now();
        let (left, since) = self.0.entry((realm, device)).or_insert((BURST, now));
        let refilled = (since.elapsed().as_millis() / REFILL.as_millis()) as u32;
        if refilled > 0 {
            *left = left.saturating_add(refilled).min(BURST);
            *since = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
}

/// Why something did not reach a device.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The broker is away.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Nothing can be sealed without the publisher's key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Our own mistake: a token that is too large, most often.
    #[error("it cannot be encoded")]
    Wire(#[from] WireError),
    /// The device's key cannot be used.
    #[error("it cannot be enclosed for the device")]
    Envelope(#[from] EnvelopeError),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_issued_together_are_renewed_at_different_moments_and_all_in_time() {
        let (window, exp) = (Duration::from_mins(12), UnixTime::from_secs(10_000));
        let due_at = |jti: &str| {
            (exp.secs() - 720..exp.secs()).find(|&now| is_due(jti, exp, UnixTime::from_secs(now), window)).unwrap()
        };
        let moments: Vec<u64> = (0..200).map(|number| due_at(&format!("jti-{number}"))).collect();
        let (first, last) = (moments.iter().min().unwrap(), moments.iter().max().unwrap());
        assert!(last - first > 400, "{first} to {last}");
        assert!(*last <= exp.secs() - 180, "{last} leaves no time for a second try");
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_asks_too_often_waits_and_others_do_not() {
        let mut meters = Meters::default();
        let realm = RealmId::new("fleet").unwrap();
        let (one, other) = (DeviceId::new("one").unwrap(), DeviceId::new("other").unwrap());
        assert!((0..BURST).all(|_| meters.admit(realm, one)));
        assert!(!meters.admit(realm, one) && meters.admit(realm, other));
        tokio::time::advance(REFILL).await;
        assert!(meters.admit(realm, one) && !meters.admit(realm, one));
    }
}
