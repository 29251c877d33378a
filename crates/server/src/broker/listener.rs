//! Messages that others send, heard over a connection of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rumqttc::{Event, Packet, QoS, SubscribeReasonCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{BACKOFF_MAX, BrokerConfig, backoff, client, describe};

/// Messages that wait to be taken. What comes beyond is dropped and counted: devices ask again.
const WAITING_MAX: usize = 256;

/// Bytes of a payload that is looked at: four times the longest question.
const PAYLOAD_BYTES_MAX: usize = 1024;

/// A connection that lived this long was a good one.
const GOOD_LIFE: std::time::Duration = BACKOFF_MAX;

/// Something somebody sent. Nothing about it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Where.
    pub topic: String,
    /// What; a copy of its own.
    pub payload: Vec<u8>,
    /// When it arrived.
    pub at: Instant,
}

/// Hears what comes on one filter; see [`Broker::listen`](super::Broker::listen).
#[derive(Debug)]
pub struct Listener {
    messages: mpsc::Receiver<Incoming>,
    dropped: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(config: BrokerConfig, filter: String) -> Self {
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(listen(config, filter, sender, Arc::clone(&dropped)));
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
async fn listen(config: BrokerConfig, filter: String, sender: mpsc::Sender<Incoming>, dropped: Arc<AtomicU64>) {
    let mut failures: u32 = 0;
    loop {
        let (client, mut events) = client(&config, &format!("{}-q", config.client_id));
        let began = Instant::now();
        let cause = loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Err(error) = client.try_subscribe(&filter, QoS::AtLeastOnce) {
                        break error.to_string();
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack)))
                    if ack.return_codes.contains(&SubscribeReasonCode::Failure) =>
                {
                    break format!("the broker refused a subscription to {filter}; its access rules may be wrong");
                }
                // A question is never retained: whoever left one there wants it asked for ever.
                Ok(Event::Incoming(Packet::Publish(publish))) if !publish.retain => {
                    let fits = publish.payload.len() <= PAYLOAD_BYTES_MAX;
                    let message = fits.then(|| Incoming {
                        topic: publish.topic.clone(),
                        payload: publish.payload.to_vec(),
                        at: Instant::now(),
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
        tracing::warn!(broker = %config.url, %filter, %cause, pause_ms = pause.as_millis() as u64, "not listening");
        tokio::time::sleep(pause).await;
    }
}
