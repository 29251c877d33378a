//! Messages that others send, heard over a connection of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rumqttc::{Event, Packet, QoS, SubscribeFilter, SubscribeReasonCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{BACKOFF_MAX, BrokerConfig, backoff, client, describe};

/// A connection that lived this long was a good one.
const GOOD_LIFE: std::time::Duration = BACKOFF_MAX;

/// What shall be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hearing {
    /// Ends the client id, so that each listener of a server has its own.
    pub name: &'static str,
    /// The topic filters.
    pub filters: Vec<String>,
    /// Bytes of a payload that is looked at. What is larger is dropped and counted.
    pub payload_bytes_max: usize,
    /// Messages that wait to be taken. What comes beyond is dropped and counted.
    pub waiting_max: usize,
    /// Whether a message matters so much that the broker keeps it until it is acknowledged (`QoS` 1). Brokers keep few
    /// of them, so a burst of what does not matter so much fares better without.
    pub acknowledged: bool,
}

/// Something somebody sent. Nothing about it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Where.
    pub topic: String,
    /// What; a copy of its own.
    pub payload: Vec<u8>,
    /// When it arrived.
    pub at: Instant,
    /// Whether it stood there before, rather than being sent now.
    pub retained: bool,
}

/// Hears what comes on some filters; see [`Broker::listen`](super::Broker::listen).
#[derive(Debug)]
pub struct Listener {
    messages: mpsc::Receiver<Incoming>,
    dropped: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(config: BrokerConfig, hearing: Hearing) -> Self {
        let (sender, messages) = mpsc::channel(hearing.waiting_max);
        let dropped = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(listen(config, hearing, sender, Arc::clone(&dropped)));
        Self { messages, dropped, task }
    }

    /// The next message. Losing the race in a `select!` loses nothing.
    pub async fn next(&mut self) -> Incoming {
        match self.messages.recv().await {
            Some(message) => message,
            // The task ends only with the listener.
            None => std::future::pending().await,
        }
    }

    /// One that is waiting, if any.
    pub fn try_next(&mut self) -> Option<Incoming> {
        self.messages.try_recv().ok()
    }

    /// Messages that were too large, or came faster than they were taken.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls and awaits nothing else while a connection lives.
async fn listen(config: BrokerConfig, hearing: Hearing, sender: mpsc::Sender<Incoming>, dropped: Arc<AtomicU64>) {
    let Hearing { name, filters, payload_bytes_max, acknowledged, .. } = hearing;
    let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
    let subscriptions = || filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), qos));
    let mut failures: u32 = 0;
    loop {
        let (client, mut events) = client(&config, &format!("{}-{name}", config.client_id));
        let began = Instant::now();
        let cause = loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Err(error) = client.try_subscribe_many(subscriptions()) {
                        break error.to_string();
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack)))
                    if ack.return_codes.contains(&SubscribeReasonCode::Failure) =>
                {
                    break "the broker refused a subscription; its access rules may be wrong".to_owned();
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let fits = publish.payload.len() <= payload_bytes_max;
                    let message = fits.then(|| Incoming {
                        topic: publish.topic.clone(),
                        payload: publish.payload.to_vec(),
                        at: Instant::now(),
                        retained: publish.retain,
                    });
                    if message.is_none_or(|message| sender.try_send(message).is_err()) {
                        dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(_) => {}
                Err(error) => break describe(&error),
            }
        };
        failures = if began.elapsed() > GOOD_LIFE { 0 } else { failures.saturating_add(1) };
        let pause = backoff(failures);
        tracing::warn!(broker = %config.url, ?filters, %cause, pause_ms = pause.as_millis() as u64, "not listening");
        tokio::time::sleep(pause).await;
    }
}
