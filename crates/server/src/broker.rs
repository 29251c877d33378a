//! The way to the broker: publish until acknowledged, read back what is retained.
//!
//! All MQTT types stay in here. A publish counts only once its PUBACK came over the connection it
//! left on; any trouble fails everything outstanding, and the publisher, whose plan is idempotent,
//! begins again. What should stand on the broker is not known here.

mod listener;
pub use listener::{Hearing, Incoming, Listener};

#[cfg(feature = "embedded-broker")]
mod embedded;
#[cfg(feature = "embedded-broker")]
pub use embedded::{Door, EmbeddedBroker, EmbeddedBrokerError, LocalBroker};

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revocast_core::limits::{FETCH_WINDOW, SEALED_BYTES_MAX};
use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, pem};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::tls::{self, TlsError};

/// Publishes on their way at a time. More do not make a broker faster; a dozen lose little when it dies.
const IN_FLIGHT: u16 = 16;

/// How many of them are kept for what is not retained: a delta, which is news, never queues behind
/// the chunks of a new epoch.
const IN_FLIGHT_LIVE: u16 = 2;

/// How many are kept for answers to single devices, which wait for neither and hold up neither.
const IN_FLIGHT_ANSWERS: u16 = 2;

/// How many are kept for tokens of single devices.
const IN_FLIGHT_TOKENS: u16 = 4;

/// Pings queue behind data; a shorter time breaks connections over slow links.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// For connecting, and for every write after that.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest topic we publish to: prefix, realm and address with room.
const TOPIC_BYTES_MAX: usize = 1024;

/// Fixed header, topic length and packet id, rounded up.
const PACKET_OVERHEAD_BYTES: usize = 64;

/// Packets that are larger break the connection in both directions, so payloads are checked first.
const PACKET_BYTES_MAX: usize = SEALED_BYTES_MAX + TOPIC_BYTES_MAX + PACKET_OVERHEAD_BYTES;

/// First and longest pause between two attempts to connect. Publishers are few, and a fleet waits for them.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What is retained and has not come so long after a probe that was sent after the subscription is missing. Most brokers
/// keep the order and need none of it; those that read from a store of their own may be late.
const SETTLE: Duration = Duration::from_millis(250);

/// How long a broker may take to close a connection we end.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What is needed to reach a broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where it is.
    pub url: BrokerUrl,
    /// Name of this client; a second one with the same name would push this one out.
    pub client_id: String,
    /// A topic of this client alone, to which it publishes, not retained, what it wants to hear back: by that it knows
    /// when a broker has sent all it retains. Where access rules forbid it, it waits instead.
    pub probe: String,
    /// User and password, if the broker wants them.
    pub credentials: Option<Credentials>,
    /// Who vouches for the broker's certificate; required for `mqtts`.
    pub tls: Option<TlsRoots>,
}

/// `mqtt://host[:port]` or `mqtts://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    secure: bool,
    host: String,
    port: u16,
}

impl BrokerUrl {
    /// A broker on this machine, without TLS.
    #[must_use]
    pub fn local(address: std::net::SocketAddr) -> Self {
        let host = match address {
            std::net::SocketAddr::V4(address) => address.ip().to_string(),
            std::net::SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        Self { secure: false, host, port: address.port() }
    }

    /// Whether it is reached over TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(BrokerUrlError::Scheme)?;
        let secure = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(BrokerUrlError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(BrokerUrlError::Credentials);
        }
        let after_bracket = rest.rfind(']').map_or(0, |end| end + 1);
        let colon = rest.get(after_bracket..).and_then(|tail| tail.find(':')).map(|at| at + after_bracket);
        let (host, port) = match colon.and_then(|at| rest.split_at_checked(at)) {
            Some((host, port)) => {
                let port = port.trim_start_matches(':');
                (host, port.parse().map_err(|_| BrokerUrlError::Port { found: port.to_owned() })?)
            }
            None => (rest, if secure { 8883 } else { 1883 }),
        };
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'[' | b']' | b':');
        if host.is_empty() || !host.bytes().all(allowed) {
            return Err(BrokerUrlError::Host { found: host.to_owned() });
        }
        Ok(Self { secure, host: host.to_owned(), port })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Why a text is no broker URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BrokerUrlError {
    /// Neither of the two schemes.
    #[error("a broker URL begins with mqtt:// or mqtts://")]
    Scheme,
    /// Passwords in URLs end up in logs and process lists.
    #[error("a broker URL holds no credentials; give a user name and a password file instead")]
    Credentials,
    /// No host, or a character that no host name has.
    #[error("{found:?} is no host name or address")]
    Host {
        /// What stands there.
        found: String,
    },
    /// Not a number from 0 to 65535.
    #[error("{found:?} is no port number")]
    Port {
        /// What stands there.
        found: String,
    },
}

/// User name and password for the broker. The password is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.username)
    }
}

/// The certificates that vouch for a broker, and ours if it wants one.
#[derive(Clone)]
pub struct TlsRoots {
    roots: Arc<RootCertStore>,
    config: Arc<ClientConfig>,
}

impl TlsRoots {
    /// Reads certificates from a PEM file.
    pub fn from_pem_file(path: &Path) -> Result<Self, TlsRootsError> {
        let pem = std::fs::read(path).map_err(|source| TlsRootsError::Io { path: path.to_owned(), source })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|source| TlsRootsError::Pem { path: path.to_owned(), source })?;
            roots.add(certificate).map_err(|source| TlsRootsError::Certificate { path: path.to_owned(), source })?;
        }
        if roots.is_empty() {
            return Err(TlsRootsError::Empty { path: path.to_owned() });
        }
        let roots = Arc::new(roots);
        let config = trusting(&roots)
            .map_err(|source| TlsRootsError::Certificate { path: path.to_owned(), source })?
            .with_no_client_auth();
        Ok(Self { roots, config: Arc::new(config) })
    }

    /// Adds the certificate by which the broker knows us, from PEM files.
    pub fn with_identity(self, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { path: certificate.to_owned(), source };
        let (chain, secret) = tls::identity(certificate, key)?;
        let config =
            trusting(&self.roots).and_then(|builder| builder.with_client_auth_cert(chain, secret)).map_err(unusable)?;
        Ok(Self { config: Arc::new(config), ..self })
    }

    /// For connections to somebody else whom these certificates vouch for.
    pub(crate) fn client_config(&self) -> ClientConfig {
        ClientConfig::clone(&self.config)
    }
}

/// The provider is handed over: with none installed, or two, the plain builder panics.
fn trusting(roots: &Arc<RootCertStore>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(Arc::clone(roots)))
}

impl fmt::Debug for TlsRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsRoots(..)")
    }
}

/// Why a file of certificates cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum TlsRootsError {
    /// It cannot be read.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not PEM.
    #[error("{} is not PEM", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate in it cannot vouch for others.
    #[error("{} holds a certificate that cannot be a root", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Nothing in it.
    #[error("{} holds no certificate", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Whether there is a connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Trying for the first time.
    Connecting,
    /// There is one: the n-th since the start. With each new one the broker may have lost anything.
    Up {
        /// Its number, from 1.
        connection: u64,
    },
    /// There is none; the next attempt follows by itself.
    Down {
        /// What went wrong last.
        cause: String,
    },
}

impl LinkState {
    /// Whether it is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// Why something did not reach the broker, or did not come back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// There is no connection; wait for [`LinkState::Up`].
    #[error("there is no connection to the broker: {cause}")]
    Down {
        /// What went wrong last.
        cause: String,
    },
    /// The connection broke before the broker acknowledged. It may or may not have the message.
    #[error("the connection to the broker broke: {cause}")]
    Broken {
        /// How.
        cause: String,
    },
    /// Our own mistake: the packet would break the connection.
    #[error("a payload of {bytes} bytes for {topic} is more than {SEALED_BYTES_MAX}")]
    TooLarge {
        /// Where it should have gone.
        topic: String,
        /// Its size.
        bytes: usize,
    },
    /// Our own mistake: no broker takes such a topic.
    #[error("{topic:?} is no topic to publish to")]
    Topic {
        /// The topic.
        topic: String,
    },
    /// The broker's access rules do not let us read a topic.
    #[error("the broker refused a subscription to {topic}")]
    SubscribeRefused {
        /// The topic.
        topic: String,
    },
    /// Somebody else's: none of our objects is that large. It was not read.
    #[error("the broker sent {bytes} bytes, more than the {SEALED_BYTES_MAX} of any object")]
    Oversize {
        /// What it announced.
        bytes: u64,
    },
    /// The broker did not answer at all.
    #[error("the broker did not answer within {} ms", .after.as_millis())]
    Silent {
        /// How long we waited.
        after: Duration,
    },
}

/// A connection to a broker that renews itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
}

/// The task behind a [`Broker`].
#[derive(Debug)]
pub struct BrokerTask {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Broker {
    /// Begins to connect, for as long as the task lives. Needs a tokio runtime.
    #[must_use]
    pub fn connect(config: BrokerConfig) -> (Self, BrokerTask) {
        let shared = Arc::new(Shared {
            config,
            link: Mutex::default(),
            state: watch::Sender::new(LinkState::Connecting),
            retained: Semaphore::new(usize::from(IN_FLIGHT - IN_FLIGHT_LIVE - IN_FLIGHT_ANSWERS - IN_FLIGHT_TOKENS)),
            live: Semaphore::new(usize::from(IN_FLIGHT_LIVE)),
            answers: Semaphore::new(usize::from(IN_FLIGHT_ANSWERS)),
            tokens: Semaphore::new(usize::from(IN_FLIGHT_TOKENS)),
            reading: tokio::sync::Mutex::new(()),
            probes: AtomicBool::new(true),
        });
        let task = tokio::spawn(stay_connected(Arc::clone(&shared)));
        (Self { shared: Arc::clone(&shared) }, BrokerTask { shared, task })
    }

    /// Publishes at least once (`QoS` 1) and waits for the acknowledgement.
    ///
    /// An empty payload with `retain` removes what is retained. A `PUBACK` proves neither permission
    /// nor retention: read back what matters.
    pub async fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), BrokerError> {
        let lane = if retain { &self.shared.retained } else { &self.shared.live };
        self.publish_in(lane, topic, payload, retain).await
    }

    /// The same for what is not retained and may wait behind deltas: what goes to one device, and announcements.
    pub async fn publish_answer(&self, topic: &str, payload: Vec<u8>) -> Result<(), BrokerError> {
        self.publish_in(&self.shared.answers, topic, payload, false).await
    }

    /// The same for tokens.
    pub async fn publish_token(&self, topic: &str, payload: Vec<u8>) -> Result<(), BrokerError> {
        self.publish_in(&self.shared.tokens, topic, payload, false).await
    }

    async fn publish_in(
        &self,
        lane: &Semaphore,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), BrokerError> {
        check(topic, payload.len())?;
        // Closed is never: the semaphore lives as long as this.
        let _permit = lane.acquire().await.map_err(|_| self.shared.down())?;
        let (reply, answer) = oneshot::channel();
        {
            // Queue and list of replies under one lock, so that they have one order.
            let mut link = self.shared.link();
            let Some(link) = link.as_mut() else {
                return Err(self.shared.down());
            };
            link.client
                .try_publish(topic, QoS::AtLeastOnce, retain, payload)
                .map_err(|error| BrokerError::Broken { cause: error.to_string() })?;
            link.queued.push_back(reply);
        }
        answer.await.unwrap_or_else(|_| Err(self.shared.down()))
    }

    /// Hears what comes on some filters, over a connection of its own that renews itself: whatever somebody
    /// sends there cannot break the one that publishes. Needs a tokio runtime; ends when it is dropped.
    #[must_use]
    pub fn listen(&self, hearing: Hearing) -> Listener {
        Listener::start(self.shared.config.clone(), hearing)
    }

    /// Ends the session of another client by connecting under its name: a broker ends the former one (MQTT 3.1.1 section
    /// 3.1.4). Where it comes back from is its own matter; that it may not, the broker's access rules say.
    pub async fn take_over(&self, client_id: &str) -> Result<(), BrokerError> {
        let (client, mut events) = client(&self.shared.config, client_id);
        let connected = async {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        client.try_disconnect().map_err(|error| not_queued(&error))?;
                    }
                    Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(broken(&error)),
                }
            }
        };
        timeout(CONNECTION_TIMEOUT, connected).await.unwrap_or(Err(BrokerError::Silent { after: CONNECTION_TIMEOUT }))
    }

    /// Asks what is retained on some exact topics, over a connection of its own.
    ///
    /// The answers are in the order of `topics`. There is no "nothing there" in MQTT: `None` means that nothing came
    /// though a probe sent later had come back, or, where no probe comes back, for `patience` after the last message of
    /// its window. No bytes at all, which no broker retains, stand for a message that is larger than any of ours and
    /// was not read.
    pub async fn fetch_retained(
        &self,
        topics: &[String],
        patience: Duration,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, BrokerError> {
        for topic in topics {
            check(topic, 0)?;
        }
        // One at a time: two readers with one client id would push each other out.
        let _turn = self.shared.reading.lock().await;
        let mut reader = self.reader().await?;
        let mut found = Vec::with_capacity(topics.len());
        for window in topics.chunks(FETCH_WINDOW) {
            match reader.fetch(window, patience).await {
                Ok(answers) => found.extend(answers),
                // It broke the connection, and the client does not tell where it lies. Whoever can
                // put such a thing on our topics must not keep us from putting ours over it.
                Err(BrokerError::Oversize { .. }) => {
                    for topic in window {
                        reader = self.reader().await?;
                        match reader.fetch(std::slice::from_ref(topic), patience).await {
                            Ok(answers) => found.extend(answers),
                            Err(BrokerError::Oversize { bytes }) => {
                                tracing::warn!(topic, bytes, "larger than any of ours; somebody else put it there");
                                found.push((topic.clone(), Some(Vec::new())));
                            }
                            Err(error) => return Err(error),
                        }
                    }
                    reader = self.reader().await?;
                }
                Err(error) => {
                    if reader.probing.is_some_and(|probing| !probing.came_back) {
                        // Some brokers end the connection of whoever publishes where they may not.
                        self.shared.probes.store(false, Ordering::Relaxed);
                    }
                    return Err(error);
                }
            }
        }
        Ok(found)
    }

    async fn reader(&self) -> Result<Reader, BrokerError> {
        Reader::connect(&self.shared.config, self.shared.probes.load(Ordering::Relaxed)).await
    }

    /// Whether there is a connection, and news of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }
}

impl BrokerTask {
    /// Says goodbye to the broker and ends. What is not acknowledged by then fails.
    pub async fn stop(mut self) {
        let asked = self.shared.link().as_ref().is_some_and(|link| link.client.try_disconnect().is_ok());
        if asked {
            let _ = timeout(STOP_TIMEOUT, &mut self.task).await;
        }
        self.task.abort();
        self.shared.lost("the server is stopping");
    }
}

impl Drop for BrokerTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Reply = oneshot::Sender<Result<(), BrokerError>>;

#[derive(Debug)]
struct Shared {
    config: BrokerConfig,
    link: Mutex<Option<Link>>,
    state: watch::Sender<LinkState>,
    /// Permits to publish what is retained: keeps the client's queue from overflowing.
    retained: Semaphore,
    /// Permits to publish the rest.
    live: Semaphore,
    /// Permits to publish answers.
    answers: Semaphore,
    tokens: Semaphore,
    reading: tokio::sync::Mutex<()>,
    /// Whether probes may be sent, as far as is known.
    probes: AtomicBool,
}

/// What belongs to one connection and dies with it.
struct Link {
    client: AsyncClient,
    /// Publishes given to the client that have no packet id yet, in order.
    queued: VecDeque<Reply>,
    /// Publishes on the wire, by packet id.
    sent: HashMap<u16, Reply>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} queued, {} sent)", self.queued.len(), self.sent.len())
    }
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self) -> BrokerError {
        let cause = match &*self.state.borrow() {
            LinkState::Down { cause } => cause.clone(),
            LinkState::Connecting => "not connected yet".into(),
            LinkState::Up { .. } => "it has just been lost".into(),
        };
        BrokerError::Down { cause }
    }

    /// Forgets the connection; everything outstanding fails.
    fn lost(&self, cause: &str) {
        let link = self.link().take();
        self.state.send_replace(LinkState::Down { cause: cause.to_owned() });
        let Some(link) = link else { return };
        for reply in link.queued.into_iter().chain(link.sent.into_values()) {
            let _ = reply.send(Err(BrokerError::Broken { cause: cause.to_owned() }));
        }
    }

    fn take_in(&self, event: &Event) {
        let mut link = self.link();
        let Some(link) = link.as_mut() else { return };
        match event {
            Event::Outgoing(Outgoing::Publish(id)) => {
                if let Some(reply) = link.queued.pop_front() {
                    link.sent.insert(*id, reply);
                }
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(reply) = link.sent.remove(&ack.pkid) {
                    let _ = reply.send(Ok(()));
                }
            }
            // Nothing is subscribed to on this connection, and the rest is housekeeping.
            _ => {}
        }
    }
}

/// The one task that polls. Every connection gets a new event loop: what an old one still holds
/// belongs to publishes that have already failed.
async fn stay_connected(shared: Arc<Shared>) {
    let mut connections = 0;
    let mut failures = 0;
    loop {
        let (client, mut events) = client(&shared.config, &shared.config.client_id);
        let cause = loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    connections += 1;
                    failures = 0;
                    *shared.link() =
                        Some(Link { client: client.clone(), queued: VecDeque::new(), sent: HashMap::new() });
                    shared.state.send_replace(LinkState::Up { connection: connections });
                    tracing::info!(broker = %shared.config.url, connection = connections, "connected");
                }
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
                Ok(event) => shared.take_in(&event),
                Err(error) => break describe(&error),
            }
        };
        shared.lost(&cause);
        let pause = backoff(failures);
        failures = failures.saturating_add(1);
        tracing::warn!(broker = %shared.config.url, %cause, pause_ms = pause.as_millis() as u64, "not connected");
        tokio::time::sleep(pause).await;
    }
}

/// Exponential, with full jitter: publishers of many realms must not come back in step.
fn backoff(failures: u32) -> Duration {
    let ceiling = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    // Never nothing, or a broker that refuses at once would be asked in a tight loop.
    BACKOFF_MIN / 4 + ceiling.mul_f64(share)
}

fn client(config: &BrokerConfig, client_id: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(client_id, &config.url.host, config.url.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_session(true)
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some(Credentials { username, password }) = &config.credentials {
        options.set_credentials(username, password);
    }
    if let (true, Some(roots)) = (config.url.secure, &config.tls) {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&roots.config))));
    }
    let (client, mut events) = AsyncClient::new(options, usize::from(IN_FLIGHT) + 4 * FETCH_WINDOW);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECTION_TIMEOUT.as_secs());
    events.set_network_options(network);
    (client, events)
}

/// A short-lived second connection that reads what is retained.
struct Reader {
    client: AsyncClient,
    packets: mpsc::Receiver<Result<Packet, BrokerError>>,
    task: JoinHandle<()>,
    probe: String,
    probing: Option<Probing>,
}

/// Probes of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Probing {
    /// How many were sent: what the last one says.
    sent: u64,
    /// Whether one ever came back.
    came_back: bool,
}

impl Reader {
    async fn connect(config: &BrokerConfig, probes: bool) -> Result<Self, BrokerError> {
        let (client, mut events) = client(config, &format!("{}-r", config.client_id));
        // Room for every message of a window, twice, and its acknowledgements.
        let (packets, received) = mpsc::channel(4 * FETCH_WINDOW);
        let task = tokio::spawn(async move {
            loop {
                let packet = match events.poll().await {
                    Ok(Event::Incoming(packet)) => Ok(packet),
                    Ok(Event::Outgoing(_)) => continue,
                    Err(error) => Err(broken(&error)),
                };
                // A broker that sends more than was asked for loses the connection.
                if packet.is_err() | packets.try_send(packet).is_err() {
                    return;
                }
            }
        });
        let mut reader = Self { client, packets: received, task, probe: config.probe.clone(), probing: None };
        let until = Instant::now() + CONNECTION_TIMEOUT;
        match reader.next(until).await? {
            Some(Packet::ConnAck(_)) => {}
            Some(_) => return Err(BrokerError::Broken { cause: "the broker spoke before it accepted".into() }),
            None => return Err(BrokerError::Silent { after: CONNECTION_TIMEOUT }),
        }
        if probes {
            reader.client.try_subscribe(&reader.probe, QoS::AtMostOnce).map_err(|error| not_queued(&error))?;
            let granted = loop {
                match reader.next(until).await? {
                    Some(Packet::SubAck(ack)) => break !ack.return_codes.contains(&SubscribeReasonCode::Failure),
                    Some(_) => {}
                    None => return Err(BrokerError::Silent { after: CONNECTION_TIMEOUT }),
                }
            };
            reader.probing = granted.then(Probing::default);
        }
        Ok(reader)
    }

    /// Sends the next probe; what comes back once the broker has dealt with everything before it.
    fn send_probe(&mut self) -> Result<(), BrokerError> {
        let Some(probing) = &mut self.probing else { return Ok(()) };
        probing.sent += 1;
        let number = probing.sent.to_string();
        self.client.try_publish(&self.probe, QoS::AtMostOnce, false, number).map_err(|error| not_queued(&error))
    }

    /// Whether this is the probe that was sent last.
    fn is_back(&mut self, publish: &rumqttc::Publish) -> bool {
        let Some(probing) = &mut self.probing else { return false };
        let back = !publish.retain && publish.topic == self.probe && publish.payload == probing.sent.to_string();
        probing.came_back |= back;
        back
    }

    /// The next packet; `None` once it is too late.
    async fn next(&mut self, until: Instant) -> Result<Option<Packet>, BrokerError> {
        match timeout_at(until, self.packets.recv()).await {
            Ok(Some(Ok(packet))) => Ok(Some(packet)),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Err(BrokerError::Broken { cause: "the broker sent more than was asked for".into() }),
            Err(_) => Ok(None),
        }
    }

    async fn fetch(
        &mut self,
        topics: &[String],
        patience: Duration,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, BrokerError> {
        let mut found: Vec<(String, Option<Vec<u8>>)> = topics.iter().map(|topic| (topic.clone(), None)).collect();
        let filters = topics.iter().map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
        self.client.try_subscribe_many(filters).map_err(|error| not_queued(&error))?;
        self.send_probe()?;

        let mut subscribed = false;
        let mut waits = patience;
        let mut until = Instant::now() + waits;
        while !subscribed || found.iter().any(|(_, payload)| payload.is_none()) {
            match self.next(until).await? {
                Some(Packet::SubAck(ack)) => {
                    let refused = ack.return_codes.iter().position(|code| *code == SubscribeReasonCode::Failure);
                    if let Some(topic) = refused.and_then(|at| topics.get(at)) {
                        return Err(BrokerError::SubscribeRefused { topic: topic.clone() });
                    }
                    subscribed = true;
                    until = Instant::now() + waits;
                }
                Some(Packet::Publish(publish)) if publish.retain => {
                    // Copied: the payload pins the connection's read buffer.
                    if let Some((_, payload)) = found.iter_mut().find(|(topic, _)| *topic == publish.topic) {
                        *payload = Some(publish.payload.to_vec());
                        until = Instant::now() + waits;
                    }
                }
                Some(Packet::Publish(publish)) if self.is_back(&publish) => {
                    waits = waits.min(SETTLE);
                    if subscribed {
                        until = Instant::now() + waits;
                    }
                }
                Some(_) => {}
                None if subscribed => break,
                None => return Err(BrokerError::Silent { after: patience }),
            }
        }
        for topic in topics {
            self.client.try_unsubscribe(topic).map_err(|error| not_queued(&error))?;
        }
        Ok(found)
    }
}

/// The client's own queue is full, or its task has ended.
fn not_queued(error: &rumqttc::ClientError) -> BrokerError {
    BrokerError::Broken { cause: error.to_string() }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.client.try_disconnect();
        self.task.abort();
    }
}

fn check(topic: &str, payload: usize) -> Result<(), BrokerError> {
    if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX || topic.contains(['+', '#', '\0']) {
        return Err(BrokerError::Topic { topic: topic.to_owned() });
    }
    if payload > SEALED_BYTES_MAX {
        return Err(BrokerError::TooLarge { topic: topic.to_owned(), bytes: payload });
    }
    Ok(())
}

/// How a reader's connection ended.
fn broken(error: &ConnectionError) -> BrokerError {
    match error {
        ConnectionError::MqttState(StateError::Deserialization(PacketError::PayloadSizeLimitExceeded(bytes))) => {
            BrokerError::Oversize { bytes: *bytes as u64 }
        }
        other => BrokerError::Broken { cause: describe(other) },
    }
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
