//! The link to the broker: packets in, subscriptions and reports out.
//!
//! All MQTT types stay in here. One task polls the client and awaits nothing else; another decides
//! which subscriptions to let through ([`gate`]). What packets mean is not known here: whatever
//! arrives on one of the realm's topics is handed on, unbelieved.
//!
//! The link remembers no subscription across connections. After every [`LinkEvent::Connected`] the
//! replica asks anew for what it needs, so a lost session needs no case of its own.

mod gate;

use std::collections::VecDeque;
use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use revocast_core::limits::{FETCH_WINDOW, SEALED_BYTES_MAX};
use revocast_core::update::DeviceTopic;
use revocast_core::{Address, RealmId};
use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, QoS, StateError,
    SubscribeReasonCode, TlsConfiguration, Transport as MqttTransport,
};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::{BrokerUrl, ClientId, Credentials, DeviceConfig, Prefix, ShownToken, TlsRoots, TokenFeed};
use gate::{Backoff, Gate};

/// Outgoing publishes are rare reports and questions; the number is what packet ids are counted up to, and they
/// should not repeat within a window of subscriptions.
const IN_FLIGHT: u16 = 100;

/// Pings queue behind data; a shorter time breaks connections over slow links.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// For connecting, and for every write after that.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest topic that something may arrive on: prefix, realm and address with room.
const TOPIC_BYTES_MAX: usize = 1024;

/// Fixed header, topic length and packet id, rounded up.
const PACKET_OVERHEAD_BYTES: usize = 64;

/// Larger packets break the connection before they are read.
const PACKET_BYTES_MAX: usize = SEALED_BYTES_MAX + TOPIC_BYTES_MAX + PACKET_OVERHEAD_BYTES;

/// Packets that wait for the driver: what a few fetch windows deliver. Beyond it the connection is
/// dropped, since dropping packets would lose them silently and waiting would stop the pings.
const WAITING_MAX: usize = 8 * FETCH_WINDOW;

/// Requests that wait for the link task, and for the client. A replica asks for a dozen at a time.
const REQUESTS_MAX: usize = 1024;

/// How long a broker may take to close a connection we end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a driver needs of a connection; [`Link`] is the real one.
pub trait Transport: Send {
    /// The next thing that happened. Losing the race in a `select!` loses nothing.
    fn next(&mut self) -> impl Future<Output = LinkEvent> + Send;

    /// Subscribes to an address; what is retained there is delivered (again).
    fn subscribe(&mut self, address: Address);

    /// Unsubscribes from it.
    fn unsubscribe(&mut self, address: Address);

    /// Sends a sealed report, if there is a connection.
    fn report(&mut self, sealed: Vec<u8>);

    /// Sends a sealed question, if there is a connection.
    fn ask(&mut self, sealed: Vec<u8>);

    /// Sends a sealed request for a token, if there is a connection.
    fn renew(&mut self, sealed: Vec<u8>);

    /// What has been counted so far.
    fn stats(&self) -> LinkStats;

    /// Says goodbye.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What happened on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It stands; nothing is subscribed.
    Connected,
    /// It is gone; the next attempt follows by itself.
    Disconnected {
        /// What went wrong, in a line.
        why: String,
    },
    /// Something arrived on one of the realm's topics. Nothing about it is believed.
    Packet {
        /// The topic.
        address: Address,
        /// Its bytes, a copy of their own.
        payload: Vec<u8>,
    },
    /// Something larger than any object was announced; the connection was broken before reading it.
    Oversize {
        /// The topic, once it is known which one it was.
        address: Option<Address>,
        /// Its size.
        bytes: u64,
    },
}

/// What a link has counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Connections made.
    pub connections: u64,
    /// Packets on topics that are none of the realm's.
    pub ignored: u64,
    /// Connections broken by a packet that was too large or malformed.
    pub hostile: u64,
    /// Times an address was quarantined for that.
    pub quarantined: u64,
    /// Subscriptions that the broker refused.
    pub refused_subscriptions: u64,
    /// Connections dropped because packets came faster than they were taken in.
    pub overruns: u64,
}

/// What a link must know.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    broker: BrokerUrl,
    credentials: Option<Credentials>,
    shows_token: bool,
    /// Where the token is that is shown.
    token: Option<TokenFeed>,
    tls: Option<TlsRoots>,
    client_id: ClientId,
    prefix: Prefix,
    realm: RealmId,
    /// Where tokens of this device arrive.
    token_topic: Option<String>,
}

impl LinkConfig {
    /// Takes what concerns the link.
    pub fn new(config: &DeviceConfig) -> Result<Self, LinkConfigError> {
        if config.broker.is_secure() && config.tls.is_none() {
            return Err(LinkConfigError::NoRoots);
        }
        if !config.broker.is_secure() && config.tls.is_some() {
            return Err(LinkConfigError::NotSecure);
        }
        if config.shows_token && config.inbox.is_none() {
            return Err(LinkConfigError::NoToken);
        }
        Ok(Self {
            broker: config.broker.clone(),
            credentials: config.credentials.clone(),
            shows_token: config.shows_token,
            token: None,
            tls: config.tls.clone(),
            client_id: config.client_id.clone(),
            prefix: config.prefix.clone(),
            realm: config.realm,
            token_topic: config
                .inbox
                .as_ref()
                .map(|inbox| inbox.topic.topic(&config.realm, &config.client_id.device())),
        })
    }

    /// Takes the token to show from here, if one shall be shown ([`DeviceConfig::with_token_as_password`]).
    #[must_use]
    pub fn with_token(mut self, token: Option<TokenFeed>) -> Self {
        self.token = token.filter(|_| self.shows_token);
        self
    }

    /// What the broker is shown now, and whether that is the device's own token; `refused`: it would not have the token.
    fn credentials(&self, refused: bool) -> (Option<Credentials>, bool) {
        let shown = self.token.as_ref().and_then(|token| token.0.borrow().clone());
        match shown {
            Some(ShownToken { text, revoked }) if revoked || !refused || self.credentials.is_none() => {
                let username = self.credentials.as_ref().map_or(self.realm.as_str(), |named| &named.username);
                (Some(Credentials { username: username.to_owned(), password: text.into() }), true)
            }
            Some(_) | None => (self.credentials.clone(), false),
        }
    }

    fn device_topic(&self, which: DeviceTopic) -> String {
        which.topic(self.prefix.as_str(), &self.realm, &self.client_id.device())
    }

    /// Where an address lies; the topics of answers and deliveries are this device's own.
    fn topic(&self, address: Address) -> String {
        match address {
            Address::Answer => self.device_topic(DeviceTopic::Answer),
            // Asked for only where there is one.
            Address::Delivery => self.token_topic.clone().unwrap_or_default(),
            other => other.topic(self.prefix.as_str(), &self.realm),
        }
    }

    fn address(&self, topic: &str) -> Option<Address> {
        if self.token_topic.as_deref() == Some(topic) {
            return Some(Address::Delivery);
        }
        let (prefix, realm) = (self.prefix.as_str(), &self.realm);
        let ours = DeviceTopic::Answer.parse(prefix, topic) == Some((*realm, self.client_id.device()));
        if ours { Some(Address::Answer) } else { Address::from_topic(prefix, realm, topic) }
    }
}

/// Why a link cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LinkConfigError {
    /// Without certificates nobody can vouch for the broker.
    #[error("an mqtts:// broker needs the certificates that vouch for it")]
    NoRoots,
    /// Certificates were given, so somebody expects TLS.
    #[error("certificates were given, but an mqtt:// broker is reached without TLS")]
    NotSecure,
    /// A token shall be shown by a device that gets none.
    #[error("the broker shall be shown the device's own token, but the device has no identity to get one with")]
    NoToken,
}

/// A connection to the broker that renews itself.
#[derive(Debug)]
pub struct Link {
    events: mpsc::Receiver<LinkEvent>,
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Link {
    /// Begins to connect. Needs a tokio runtime; ends when it is dropped.
    #[must_use]
    pub fn start(config: LinkConfig) -> Self {
        let (events_in, events) = mpsc::channel(FETCH_WINDOW);
        let (requests, requests_out) = mpsc::channel(REQUESTS_MAX);
        let shared = Arc::new(Shared::default());
        let manager = Manager {
            config,
            events: events_in,
            requests: requests_out,
            shared: Arc::clone(&shared),
            gate: Gate::default(),
            backoff: Backoff::default(),
            started: Instant::now(),
            connected_at: None,
            token_refused: false,
        };
        Self { events, requests, shared, task: tokio::spawn(manager.run()) }
    }

    fn request(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            // The replica relies on being heard. A new connection makes it ask again for everything.
            self.shared.reset.store(true, Ordering::Relaxed);
        }
    }
}

impl Transport for Link {
    async fn next(&mut self) -> LinkEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The link task ends only with the link.
            None => future::pending().await,
        }
    }

    fn subscribe(&mut self, address: Address) {
        self.request(Request::Subscribe(address));
    }

    fn unsubscribe(&mut self, address: Address) {
        self.request(Request::Unsubscribe(address));
    }

    fn report(&mut self, sealed: Vec<u8>) {
        self.request(Request::Send(DeviceTopic::Report, sealed));
    }

    fn ask(&mut self, sealed: Vec<u8>) {
        self.request(Request::Send(DeviceTopic::Ask, sealed));
    }

    fn renew(&mut self, sealed: Vec<u8>) {
        self.request(Request::Send(DeviceTopic::Renew, sealed));
    }

    fn stats(&self) -> LinkStats {
        self.shared.stats()
    }

    async fn close(mut self) {
        self.events.close();
        let asked = self.requests.try_send(Request::Close).is_ok();
        if asked {
            let _ = timeout(2 * CLOSE_TIMEOUT, &mut self.task).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
enum Request {
    Subscribe(Address),
    Unsubscribe(Address),
    Send(DeviceTopic, Vec<u8>),
    Close,
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicU64,
    ignored: AtomicU64,
    hostile: AtomicU64,
    quarantined: AtomicU64,
    refused_subscriptions: AtomicU64,
    overruns: AtomicU64,
    /// A request was lost: begin again.
    reset: AtomicBool,
}

impl Shared {
    fn stats(&self) -> LinkStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            connections: read(&self.connections),
            ignored: read(&self.ignored),
            hostile: read(&self.hostile),
            quarantined: read(&self.quarantined),
            refused_subscriptions: read(&self.refused_subscriptions),
            overruns: read(&self.overruns),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the polling task tells.
#[derive(Debug)]
enum Polled {
    Event(Event),
    Lost(Loss),
}

/// How a connection ended.
#[derive(Debug)]
struct Loss {
    why: String,
    offence: Option<Offence>,
    overrun: bool,
    /// The broker would not let the device in.
    refused: bool,
}

impl Loss {
    /// We ended it.
    fn of_ours(why: &str) -> Self {
        Self { why: why.to_owned(), offence: None, overrun: false, refused: false }
    }

    /// The polling task ended without a word: the client panicked, over some packet.
    fn of_client() -> Self {
        Self { offence: Some(Offence::Malformed), ..Self::of_ours("the MQTT client failed") }
    }
}

/// A packet broke the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offence {
    Oversize(u64),
    Malformed,
}

/// Why a conversation ended.
enum End {
    Lost(Loss),
    Closed,
}

/// The task that decides what is subscribed and hands packets on.
struct Manager {
    config: LinkConfig,
    events: mpsc::Sender<LinkEvent>,
    requests: mpsc::Receiver<Request>,
    shared: Arc<Shared>,
    gate: Gate,
    backoff: Backoff,
    started: Instant,
    /// When the present connection was accepted, since the start.
    connected_at: Option<Duration>,
    /// The broker would not have the device's own token, when it was shown last.
    token_refused: bool,
}

/// A task that does not outlive whoever started it.
struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Manager {
    async fn run(mut self) {
        loop {
            // A new client for every connection: an old one would send again what is of no use now.
            let (credentials, own) = self.config.credentials(self.token_refused);
            let (client, events) = client(&self.config, credentials);
            let (polled_in, mut polled) = mpsc::channel(WAITING_MAX);
            let polling = Aborting(tokio::spawn(poll(events, polled_in)));
            self.connected_at = None;
            let end = self.converse(&client, &mut polled).await;
            let End::Lost(loss) = end else {
                say_goodbye(&client, &mut polled).await;
                return;
            };
            drop(polling);
            self.token_refused = own && loss.refused;
            let lived = self.connected_at.map_or(Duration::ZERO, |at| self.now().saturating_sub(at));
            if self.settle(loss, lived).await.is_err() || self.pause(lived).await.is_err() {
                return;
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// One connection, from the attempt to its end.
    async fn converse(&mut self, client: &AsyncClient, polled: &mut mpsc::Receiver<Polled>) -> End {
        let mut connected = false;
        // Subscriptions given to the client that have no packet id yet, and those not acknowledged.
        let mut queued = VecDeque::new();
        let mut sent: VecDeque<(u16, Address)> = VecDeque::new();
        self.shared.reset.store(false, Ordering::Relaxed);
        loop {
            if self.shared.reset.swap(false, Ordering::Relaxed) {
                return End::Lost(Loss::of_ours("requests came faster than they could be sent"));
            }
            let now = self.now();
            while connected && let Some(address) = self.gate.poll(now) {
                let topic = self.config.topic(address);
                if client.try_subscribe(topic, QoS::AtLeastOnce).is_err() {
                    // It never left, so it is not to blame for anything.
                    self.gate.unsubscribe(address);
                    return unsent(polled).await;
                }
                queued.push_back(address);
            }
            let wake = self.gate.deadline().filter(|_| connected).map(|at| self.started + at);
            tokio::select! {
                event = polled.recv() => match event {
                    Some(Polled::Event(Event::Incoming(Packet::ConnAck(_)))) => {
                        connected = true;
                        self.connected_at = Some(self.now());
                        count(&self.shared.connections);
                        tracing::info!(broker = %self.config.broker, "connected");
                        if self.events.send(LinkEvent::Connected).await.is_err() {
                            return End::Closed;
                        }
                    }
                    Some(Polled::Event(Event::Outgoing(Outgoing::Subscribe(id)))) => {
                        if let Some(address) = queued.pop_front() {
                            sent.push_back((id, address));
                        }
                    }
                    Some(Polled::Event(Event::Incoming(Packet::SubAck(ack)))) => {
                        let place = sent.iter().position(|(id, _)| *id == ack.pkid);
                        if let Some((_, address)) = place.and_then(|place| sent.remove(place)) {
                            self.acknowledged(address, ack.return_codes.contains(&SubscribeReasonCode::Failure));
                        }
                    }
                    Some(Polled::Event(Event::Incoming(Packet::Publish(publish)))) => {
                        let Some(address) = self.config.address(&publish.topic) else {
                            count(&self.shared.ignored);
                            continue;
                        };
                        self.gate.arrived(address);
                        // Copied: the payload pins the connection's read buffer.
                        let payload = publish.payload.to_vec();
                        if self.events.send(LinkEvent::Packet { address, payload }).await.is_err() {
                            return End::Closed;
                        }
                    }
                    // Everything else is housekeeping.
                    Some(Polled::Event(_)) => {}
                    Some(Polled::Lost(how)) => return End::Lost(how),
                    None => return End::Lost(Loss::of_client()),
                },
                request = self.requests.recv() => match request {
                    Some(Request::Subscribe(address)) if connected => self.gate.subscribe(self.now(), address),
                    Some(Request::Unsubscribe(address)) if connected => {
                        let topic = self.config.topic(address);
                        if self.gate.unsubscribe(address) && client.try_unsubscribe(topic).is_err() {
                            return unsent(polled).await;
                        }
                    }
                    Some(Request::Send(which, sealed)) if connected => {
                        let topic = self.config.device_topic(which);
                        if sealed.len() <= SEALED_BYTES_MAX
                            && client.try_publish(topic, QoS::AtLeastOnce, false, sealed).is_err()
                        {
                            return unsent(polled).await;
                        }
                    }
                    // Without a connection nothing can be asked for; the replica asks again when there is one.
                    Some(Request::Subscribe(_) | Request::Unsubscribe(_) | Request::Send(..)) => {}
                    Some(Request::Close) | None => return End::Closed,
                },
                () = wait_until(wake) => {}
            }
        }
    }

    fn acknowledged(&mut self, address: Address, refused: bool) {
        let now = self.now();
        if refused {
            count(&self.shared.refused_subscriptions);
            tracing::warn!(%address, "the broker refused a subscription; its access rules may be wrong");
            self.gate.refused(now, address);
        } else {
            self.gate.acknowledged(now, address);
        }
    }

    /// Draws the conclusions from a lost connection.
    async fn settle(&mut self, loss: Loss, lived: Duration) -> Result<(), mpsc::error::SendError<LinkEvent>> {
        if loss.overrun {
            count(&self.shared.overruns);
        }
        let culprit = self.gate.lost(self.now(), loss.offence.is_some());
        if loss.offence.is_some() {
            count(&self.shared.hostile);
        }
        if let Some(address) = culprit {
            count(&self.shared.quarantined);
            // The cause is found and will not be met again at once: no reason to stay away for long.
            self.backoff.progress();
            tracing::warn!(%address, why = loss.why, "quarantined");
        }
        if let Some(Offence::Oversize(bytes)) = loss.offence {
            self.events.send(LinkEvent::Oversize { address: culprit, bytes }).await?;
        }
        tracing::warn!(broker = %self.config.broker, why = loss.why, lived_ms = lived.as_millis() as u64, "not connected");
        self.events.send(LinkEvent::Disconnected { why: loss.why }).await
    }

    /// Waits before the next attempt. Requests that come meanwhile are void.
    async fn pause(&mut self, lived: Duration) -> Result<(), ()> {
        let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
        let pause = sleep(self.backoff.pause(lived, share));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return Ok(()),
                request = self.requests.recv() => match request {
                    Some(Request::Close) | None => return Err(()),
                    Some(Request::Subscribe(_) | Request::Unsubscribe(_) | Request::Send(..)) => {}
                },
            }
        }
    }
}

/// Polls, and awaits nothing else while the connection lives: waiting for room would stop the pings,
/// and a cancelled poll loses packets.
async fn poll(mut events: EventLoop, out: mpsc::Sender<Polled>) {
    loop {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(event) => match out.try_send(Polled::Event(event)) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    drop(events);
                    let why = format!("more than {WAITING_MAX} packets came faster than they were taken in");
                    let _ = out.send(Polled::Lost(Loss { overrun: true, ..Loss::of_ours(&why) })).await;
                    return;
                }
            },
            Err(error) => {
                let refused = matches!(error, ConnectionError::ConnectionRefused(_));
                let loss = Loss { offence: offence(&error), refused, ..Loss::of_ours(&describe(&error)) };
                // Packets that were read before the one that broke the connection are still good.
                let read = std::mem::take(&mut events.state.events);
                drop(events);
                for event in read {
                    if out.send(Polled::Event(event)).await.is_err() {
                        return;
                    }
                }
                let _ = out.send(Polled::Lost(loss)).await;
                return;
            }
        }
    }
}

/// What ended a connection on which nothing can be sent any more: mostly the polling task has a
/// reason to tell, which matters; if it lives, its queue is full.
async fn unsent(polled: &mut mpsc::Receiver<Polled>) -> End {
    let reason = async {
        loop {
            match polled.recv().await {
                Some(Polled::Lost(how)) => return how,
                // The replica asks again for whatever it still needs.
                Some(Polled::Event(_)) => {}
                None => return Loss::of_client(),
            }
        }
    };
    let stuck = || Loss::of_ours("requests came faster than they could be sent");
    End::Lost(timeout(CLOSE_TIMEOUT, reason).await.unwrap_or_else(|_| stuck()))
}

/// Ends the session; the polling task stops once the goodbye is on its way.
async fn say_goodbye(client: &AsyncClient, polled: &mut mpsc::Receiver<Polled>) {
    if client.try_disconnect().is_ok() {
        let ended = async { while polled.recv().await.is_some() {} };
        let _ = timeout(CLOSE_TIMEOUT, ended).await;
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

/// Whether a packet is to blame for the end of a connection.
fn offence(error: &ConnectionError) -> Option<Offence> {
    let ConnectionError::MqttState(StateError::Deserialization(error)) = error else {
        return None;
    };
    match error {
        PacketError::PayloadSizeLimitExceeded(bytes) => Some(Offence::Oversize(*bytes as u64)),
        PacketError::Io(_) | PacketError::OutgoingPacketTooLarge { .. } => None,
        _ => Some(Offence::Malformed),
    }
}

fn client(config: &LinkConfig, credentials: Option<Credentials>) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(config.client_id.as_str(), config.broker.host(), config.broker.port());
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_session(true)
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some(Credentials { username, password }) = credentials {
        options.set_credentials(username, password);
    }
    if let Some(roots) = &config.tls {
        options.set_transport(MqttTransport::tls_with_config(TlsConfiguration::Rustls(roots.client_config())));
    }
    let (client, mut events) = AsyncClient::new(options, REQUESTS_MAX);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECTION_TIMEOUT.as_secs());
    events.set_network_options(network);
    (client, events)
}

/// An error and its causes in one line, since none of it leaves this module as a type.
fn describe(error: &ConnectionError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
