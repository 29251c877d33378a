//! Puts the parts together: one process, from the API to the broker.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "embedded-broker")]
use std::sync::OnceLock;
use std::time::Duration;

#[cfg(feature = "embedded-broker")]
use base64::Engine as _;
#[cfg(feature = "embedded-broker")]
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{RealmId, Sequence};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::api;
use crate::bridge::{self, Bridge};
use crate::broker::{Broker, BrokerConfig, BrokerTask};
#[cfg(feature = "embedded-broker")]
use crate::broker::{BrokerUrl, Credentials, Door, EmbeddedBroker, EmbeddedBrokerError, LocalBroker as _};
use crate::clock::Clock;
use crate::config::{BrokerChoice, PublishingConfig, RemoteBroker, ServerConfig, SessionsConfig};
use crate::credentials::{CredentialsFileError, Gate};
use crate::delivery::{self, Delivering, PARCELS_WAITING_MAX};
use crate::fleet::{self, Fleet, Lookout};
use crate::hooks::{HookTopics, Hooks};
use crate::issuer::{KeyringError, Keyrings};
use crate::keys::{KeyError, Keys};
use crate::leader::{self, Candidate, Office};
use crate::ledger::{Health, Ledger, LedgerError, OpenError};
use crate::metrics::Metrics;
use crate::minting::LiveFilters;
use crate::news::News;
use crate::publisher::{HighWater, HighWaterError, Inquiries, Permit, Publishing, Settings, Signer};
use crate::service::{Issuing, LeaderView, PublishedRealms, Service};
use crate::sessions::{self, Emqx, ManagementError, RabbitMq, Sessions, TakeOver, Watch};
use crate::standing::Standings;
use crate::tls::{ServerTls, TlsError};
use crate::tokens::Issuers;

/// How long a task may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running server. Dropping it ends it at once; [`Server::stop`] ends it in order.
pub struct Server {
    address: SocketAddr,
    broker_address: Option<SocketAddr>,
    service: Arc<Service>,
    gate: Arc<Gate>,
    tls: Option<Arc<ServerTls>>,
    stopping: watch::Sender<bool>,
    api: JoinHandle<()>,
    stop_leader: Option<oneshot::Sender<()>>,
    leader: JoinHandle<()>,
    health: watch::Receiver<Health>,
    settings: watch::Sender<Settings>,
    /// What goes on beside: hearing the fleet, the bridge, ending sessions.
    beside: JoinSet<()>,
    /// Delivers tokens.
    delivery: JoinHandle<()>,
    broker: Option<BrokerTask>,
    #[cfg(feature = "embedded-broker")]
    embedded: Option<EmbeddedBroker>,
}

impl Server {
    /// Starts everything. When this returns the API answers; the broker may still be out of reach.
    ///
    /// Needs a tokio runtime with at least two threads: the publisher builds filters.
    #[expect(clippy::too_many_lines, reason = "the list of all parts, each put where it belongs once")]
    pub async fn start(config: ServerConfig, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let keys = Arc::new(Keys::load(&config.keys)?);
        let gate = Gate::open(&config.keys, keys.admin(), config.limits, config.approve, Arc::clone(&clock))?;
        let gate = Arc::new(gate);
        let tls = config.tls.map(ServerTls::load).transpose()?.map(Arc::new);
        let issuers = Arc::new(Issuers::new(&config.keys, Keyrings::new(&config.keys, keys.issuer())?));
        let ledger = config.ledger.open(&config.data).await?;
        let mark = Arc::new(high_water(&config.data)?);
        if !config.resume {
            reaches(ledger.as_ref(), &mark).await?;
        }
        let (listener, address) = bind(config.listen).await?;

        // Filled once the service is there; until then only this server is let in.
        #[cfg(feature = "embedded-broker")]
        let doorkeeper = Arc::new(OnceLock::new());
        #[cfg(feature = "embedded-broker")]
        let (remote, embedded, broker_address) = match config.broker {
            BrokerChoice::Remote(remote) => (remote, None, None),
            BrokerChoice::Embedded(listen) => {
                let own = config.embedded_broker_auth.then(own_credentials).transpose()?;
                let door = own.clone().map(|own| Door::new(own, Arc::clone(&doorkeeper)));
                let mut embedded = EmbeddedBroker::start(listen, door).await?;
                let address = embedded.ready().await?;
                (RemoteBroker { credentials: own, ..local(address) }, Some(embedded), Some(address))
            }
        };
        #[cfg(not(feature = "embedded-broker"))]
        let (remote, broker_address) = match config.broker {
            BrokerChoice::Remote(remote) => (remote, None),
            BrokerChoice::Embedded(_) => return Err(StartError::NoEmbeddedBroker),
        };
        let name = Candidate::fresh_name();
        let (broker, broker_task) = connect(remote, &name, &config.publishing.prefix)?;

        let (stopping, stop) = watch::channel(false);
        let published = watch::Sender::new(PublishedRealms::new());
        let filters = Arc::new(LiveFilters::new());
        let metrics = Arc::new(Metrics::new(clock.now().wall));
        let fleet = Fleet::new(config.publishing.prefix.clone(), Vec::new());
        let lookout = Arc::new(Lookout::new(fleet, Arc::clone(&clock)));
        let office = watch::Sender::new(Office::Seeking);
        let inquiries = Arc::new(Inquiries::default());
        let settings = watch::Sender::new(settings_of(&config.publishing));
        let (parcels, waiting) = mpsc::channel(PARCELS_WAITING_MAX);
        let service = Arc::new(Service::new(
            Arc::clone(&ledger),
            Arc::clone(&keys),
            Arc::clone(&clock),
            broker.state(),
            published.subscribe(),
            Arc::clone(&filters),
            LeaderView {
                office: office.subscribe(),
                inquiries: Arc::clone(&inquiries),
                settings: settings.subscribe(),
            },
            Arc::clone(&lookout),
            Arc::clone(&metrics),
            Issuing { issuers: Arc::clone(&issuers), lifetime: config.tokens.lifetime, parcels },
        ));
        let hooks = Arc::new(Hooks::new(
            Arc::clone(&service),
            Arc::clone(&ledger),
            Arc::clone(&issuers),
            Arc::clone(&metrics),
            HookTopics {
                prefix: config.publishing.prefix.clone(),
                tokens: config.tokens.topic.clone(),
                bridge: config.bridge.clone(),
            },
        ));
        let delivering = Delivering {
            service: Arc::clone(&service),
            broker: broker.clone(),
            keys: Arc::clone(&keys),
            clock: Arc::clone(&clock),
            office: office.subscribe(),
            prefix: config.publishing.prefix.clone(),
            topic: config.tokens.topic,
            clear: config.tokens.clear,
        };
        let delivery = tokio::spawn(delivery::run(delivering, waiting, stop.clone()));
        let mut beside = JoinSet::new();
        let standings = Arc::new(Standings::new(Arc::clone(&ledger), Arc::clone(&clock)));
        beside.spawn(fleet::hear(
            lookout,
            broker.clone(),
            Arc::clone(&ledger),
            Arc::clone(&keys),
            Arc::clone(&standings),
        ));
        if let Some(sessions) = config.sessions {
            let sessions: Arc<dyn Sessions> = match sessions {
                SessionsConfig::Takeover => Arc::new(TakeOver(broker.clone())),
                SessionsConfig::Emqx(management) => Arc::new(Emqx::new(&management)?),
                SessionsConfig::RabbitMq(management) => Arc::new(RabbitMq::new(&management)?),
            };
            beside.spawn(sessions::run(Watch {
                sessions,
                ledger: Arc::clone(&ledger),
                office: office.subscribe(),
                metrics: Arc::clone(&metrics),
            }));
        }
        if let Some(bridge) = config.bridge {
            let news = News::of(Arc::clone(&ledger), office.subscribe(), bridge.realm);
            let bridge = Bridge {
                config: bridge,
                service: Arc::clone(&service),
                issuers: Arc::clone(&issuers),
                broker: broker.clone(),
                ledger: Arc::clone(&ledger),
                clock: Arc::clone(&clock),
                metrics: Arc::clone(&metrics),
            };
            beside.spawn(bridge::run(bridge, news));
        }
        #[cfg(feature = "embedded-broker")]
        let _ = doorkeeper.set(Arc::clone(&hooks));
        let router = api::router(Arc::clone(&service), Arc::clone(&gate), Arc::clone(&issuers), hooks);
        let api = tokio::spawn(api::serve(listener, tls.clone(), router, stop));
        let (stop_leader, leader_stop) = oneshot::channel();
        let health = ledger.health();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let candidate = Candidate {
            name: format!("{name}@{address}"),
            address: config
                .advertise
                .or_else(|| (!address.ip().is_unspecified()).then(|| format!("{scheme}://{address}"))),
            lease: config.lease,
            ledger: Arc::clone(&ledger),
            clock: Arc::clone(&clock),
            keys,
            filters: Arc::clone(&filters),
            office,
            permit: Permit::new(),
        };
        let permit = candidate.permit.clone();
        let (prefix, pace, resume) = (config.publishing.prefix, settings.subscribe(), config.resume);
        let publish = move |signer: Signer| Publishing {
            ledger: Arc::clone(&ledger),
            broker: broker.clone(),
            clock: Arc::clone(&clock),
            signer,
            settings: pace.clone(),
            prefix: prefix.clone(),
            filters: Arc::clone(&filters),
            published: published.clone(),
            metrics: Arc::clone(&metrics),
            resume,
            permit: permit.clone(),
            mark: Some(Arc::clone(&mark)),
            inquiries: Arc::clone(&inquiries),
            standings: Arc::clone(&standings),
            issuers: Arc::clone(&issuers),
        };
        let leading = tokio::spawn(leader::run(candidate, publish, leader_stop));
        tracing::info!(%address, "serving");
        Ok(Self {
            address,
            broker_address,
            service,
            gate,
            tls,
            stopping,
            api,
            stop_leader: Some(stop_leader),
            leader: leading,
            health,
            settings,
            beside,
            delivery,
            broker: Some(broker_task),
            #[cfg(feature = "embedded-broker")]
            embedded,
        })
    }

    /// Where the API listens; with port 0 configured, the port that was free.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where the embedded broker listens, if there is one.
    #[must_use]
    pub const fn broker_addr(&self) -> Option<SocketAddr> {
        self.broker_address
    }

    /// What the API calls, for use in the same process.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Who may use the API and how much; credentials and limits can be changed in it.
    #[must_use]
    pub const fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// How the API speaks TLS, if it does; certificates can be read again in it.
    #[must_use]
    pub const fn tls(&self) -> Option<&Arc<ServerTls>> {
        self.tls.as_ref()
    }

    /// Waits until the server cannot go on, and tells why: after a failed write only a restart shows what the disk holds.
    pub async fn failed(&self) -> String {
        let mut health = self.health.clone();
        let stopped = health.wait_for(|health| matches!(health, Health::Stopped { .. })).await;
        match stopped.as_deref() {
            Ok(Health::Stopped { cause }) => cause.clone(),
            Ok(Health::Good | Health::Away { .. }) | Err(_) => std::future::pending().await,
        }
    }

    /// Takes over what takes effect without a restart ([`Effect::Reload`](crate::config::Effect)), and reads
    /// certificates and credentials again; no connection is dropped and no request lost. What cannot be used leaves
    /// in force what was there.
    pub fn reload(&self, config: &ServerConfig) -> Result<(), ReloadError> {
        if let Some(tls) = &self.tls {
            tls.reload()?;
        }
        self.gate.reload()?;
        self.gate.set_limits(config.limits);
        let settings = settings_of(&config.publishing);
        self.settings.send_if_modified(|held| {
            let changed = (held.heartbeat, held.grace) != (settings.heartbeat, settings.grace);
            (held.heartbeat, held.grace) = (settings.heartbeat, settings.grace);
            changed
        });
        Ok(())
    }

    /// Ends in order: requests under way, then the publisher, then the broker, then the ledger.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        if timeout(STOP_TIMEOUT, &mut self.api).await.is_err() {
            tracing::warn!("the API did not end in time");
        }
        drop(self.stop_leader.take());
        if timeout(STOP_TIMEOUT, &mut self.leader).await.is_err() {
            tracing::warn!("the publisher did not end in time");
        }
        // Awaited, since they hold the ledger.
        self.beside.shutdown().await;
        if timeout(STOP_TIMEOUT, &mut self.delivery).await.is_err() {
            tracing::warn!("what is on its way to devices did not end in time");
        }
        if let Some(broker) = self.broker.take() {
            broker.stop().await;
        }
        #[cfg(feature = "embedded-broker")]
        if let Some(embedded) = self.embedded.take() {
            embedded.stop().await;
        }
        tracing::info!("stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.api.abort();
        self.leader.abort();
        self.delivery.abort();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

/// How far was published, from the folder of this machine, which is made if it is not there.
fn high_water(data: &Path) -> Result<HighWater, StartError> {
    std::fs::create_dir_all(data).map_err(|source| StartError::Folder { path: data.to_owned(), source })?;
    Ok(HighWater::open(data)?)
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::Busy { address: listen },
        _ => StartError::Listen { address: listen, source },
    })?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address: listen, source })?;
    Ok((listener, address))
}

/// Begins to connect to the broker; `name` is of this process alone.
fn connect(remote: RemoteBroker, name: &str, prefix: &str) -> Result<(Broker, BrokerTask), StartError> {
    let RemoteBroker { url, client_id, credentials, tls, identity } = remote;
    let tls = match (tls, identity) {
        (Some(roots), Some((certificate, key))) => Some(roots.with_identity(&certificate, &key)?),
        (tls, _) => tls,
    };
    // Servers on one ledger share everything but this name. Within the 23 characters, with what is added for the
    // connections that read and listen, that every broker takes (MQTT 3.1.1, section 3.1.3.1).
    let client_id = client_id.unwrap_or_else(|| format!("rvc-{name}"));
    // No realm is named like this.
    let probe = format!("{prefix}/_probe/{client_id}");
    Ok(Broker::connect(BrokerConfig { url, client_id, probe, credentials, tls }))
}

/// How a realm is published, as it was configured.
fn settings_of(publishing: &PublishingConfig) -> Settings {
    Settings {
        // Checked against limits::CHUNK_BYTES_MAX.
        chunk_bytes: publishing.chunk_bytes as u32,
        false_positive_rate: publishing.false_positive_rate,
        heartbeat: publishing.heartbeat,
        grace: publishing.grace,
        epoch_age_max: publishing.epoch_age,
        dead_share: publishing.epoch_dead_share,
        recent_share: publishing.epoch_recent_share,
        restart_jump_max: publishing.restart_jump_max,
        ..Settings::default()
    }
}

/// Refuses a ledger that ends before what was published from it.
async fn reaches(ledger: &dyn Ledger, mark: &HighWater) -> Result<(), StartError> {
    for (realm, _, _) in mark.all() {
        match ledger.head(realm).await {
            Ok(head) => {
                if let Some(published) = mark.beyond(realm, head) {
                    return Err(StartError::LedgerBehind { realm, head: head.1, published });
                }
            }
            Err(LedgerError::RealmUnknown { .. }) => return Err(StartError::RealmLost { realm }),
            // It is looked at again before anything is published.
            Err(error) => {
                tracing::warn!(%realm, %error, "whether the ledger reaches what was published is not known yet");
            }
        }
    }
    Ok(())
}

/// Why something was not taken over while the server runs; the operator's to mend.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The certificates of the API cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsFileError),
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The keys that sign tokens cannot be used.
    #[error(transparent)]
    Keyrings(#[from] KeyringError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsFileError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The data folder cannot be made.
    #[error("the folder {} cannot be made", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// How far was published is not known.
    #[error(transparent)]
    HighWater(#[from] HighWaterError),
    /// The ledger was restored from a backup. Whoever has its newest state puts that back; whoever has not confirms that it
    /// shall go on beyond what was lost.
    #[error(
        "the ledger of realm {realm} ends at {head}, but {published} was published: it was restored from a backup. \
         Put its newest state back; or start once with --resume, which goes on in a new term, and revoke again what was lost"
    )]
    LedgerBehind {
        /// Which realm.
        realm: RealmId,
        /// Its last sequence.
        head: Sequence,
        /// The highest sequence that was published.
        published: Sequence,
    },
    /// The ledger was restored from a backup that is older than the realm, or another one took its place.
    #[error(
        "realm {realm} was published from here, but the ledger does not know it: it was restored from a backup. \
         Put its newest state back; or start once with --resume, and found the realm again"
    )]
    RealmLost {
        /// Which realm.
        realm: RealmId,
    },
    /// Another program listens there.
    #[error("{address} is in use; choose another with --listen, or port 0 for any free one")]
    Busy {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// The management API of the broker cannot be used.
    #[error(transparent)]
    Management(#[from] ManagementError),
    /// The embedded broker did not start.
    #[cfg(feature = "embedded-broker")]
    #[error(transparent)]
    EmbeddedBroker(#[from] EmbeddedBrokerError),
    /// This build has no broker inside.
    #[cfg(not(feature = "embedded-broker"))]
    #[error("this build has no embedded broker; give --broker URL")]
    NoEmbeddedBroker,
}

/// How this server alone is known to the broker inside it. No realm has such a name.
#[cfg(feature = "embedded-broker")]
fn own_credentials() -> Result<Credentials, StartError> {
    let mut password = [0; 32];
    getrandom::fill(&mut password).map_err(StartError::Random)?;
    let password = URL_SAFE_NO_PAD.encode(password);
    Ok(Credentials { username: "$revocast".to_owned(), password })
}

#[cfg(feature = "embedded-broker")]
fn local(address: SocketAddr) -> RemoteBroker {
    // A broker that listens everywhere is reached on this machine.
    let reachable = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port())
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => address,
    };
    RemoteBroker { url: BrokerUrl::local(reachable), client_id: None, credentials: None, tls: None, identity: None }
}

#[cfg(test)]
#[cfg(feature = "embedded-broker")]
mod tests {
    use std::path::Path;

    use revocast_core::UnixTime;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Choices;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn config(folder: &Path) -> ServerConfig {
        Choices {
            listen: Some(([127, 0, 0, 1], 0).into()),
            data: Some(folder.join("data")),
            keys: Some(folder.join("keys")),
            embedded_broker: Some(([127, 0, 0, 1], 0).into()),
            ..Choices::default()
        }
        .check()
        .unwrap()
    }

    async fn start(config: ServerConfig) -> Result<Server, StartError> {
        Server::start(config, Arc::new(SystemClock::new())).await
    }

    /// Waits until the broker has acknowledged a manifest at this sequence or above.
    async fn published(server: &Server, sequence: u64) -> revocast_core::Position {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = server.service().status().await.unwrap();
            let published = status.realms.first().and_then(|realm| realm.published.clone()).unwrap_or_default();
            if published.position.sequence.0 >= sequence {
                return published.position;
            }
            assert!(tokio::time::Instant::now() < until, "not published: {published:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(server: &Server, method: &str, path: &str, body: &str) -> String {
        let token = server.service().keys().admin().as_str().to_owned();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut socket = TcpStream::connect(server.local_addr()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
        let server = start(config(folder.path())).await.unwrap();
        let founded = ask(&server, "POST", "/v1/realms", r#"{"name":"fleet","issuer":"i"}"#).await;
        assert!(founded.starts_with("HTTP/1.1 201 "), "{founded}");
        let body = r#"{"jti":"t","exp":9999999999}"#;
        let revoked = ask(&server, "POST", "/v1/realms/fleet/revocations", body).await;
        assert!(revoked.ends_with(r#"{"sequence":1,"exp":9999999999,"recorded":true}"#), "{revoked}");
        let mut link = server.service().link();
        timeout(PATIENCE, link.wait_for(crate::broker::LinkState::is_up)).await.unwrap().unwrap();
        assert!(ask(&server, "GET", "/readyz", "").await.starts_with("HTTP/1.1 200 "));

        let position = published(&server, 1).await;

        // The folder belongs to this server while it runs.
        assert!(matches!(start(config(folder.path())).await, Err(StartError::Ledger(OpenError::InUse { .. }))));
        // A connection that is open and silent does not keep the server from stopping.
        let _idle = TcpStream::connect(server.local_addr()).await.unwrap();
        timeout(PATIENCE, server.stop()).await.unwrap();

        let server = start(config(folder.path())).await.unwrap();
        let again = ask(&server, "POST", "/v1/realms/fleet/revocations", body).await;
        assert!(again.ends_with(r#"{"sequence":1,"exp":9999999999,"recorded":false}"#), "{again}");
        // From what was stored: no new epoch, though this broker has never heard of it.
        assert_eq!(published(&server, 1).await, position);
        server.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_busy_address_is_named() {
        let folder = tempfile::tempdir().unwrap();
        Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let busy = start(ServerConfig { listen: address, ..config(folder.path()) }).await;
        assert!(matches!(busy, Err(StartError::Busy { address: named }) if named == address));
        let embedded = ServerConfig { broker: BrokerChoice::Embedded(address), ..config(folder.path()) };
        assert!(matches!(start(embedded).await, Err(StartError::EmbeddedBroker(EmbeddedBrokerError::Busy { .. }))));
        // Nothing of a failed start is left in the way.
        start(config(folder.path())).await.unwrap().stop().await;
    }

    #[tokio::test]
    async fn without_keys_nothing_starts() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(start(config(folder.path())).await, Err(StartError::Keys(KeyError::Io { .. }))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn garbage_on_the_socket_is_answered_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
        let server = start(config(folder.path())).await.unwrap();
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
        for garbage in [&b"\x16\x03\x01\x02\x00garbage\r\n\r\n"[..], b"GET\r\n\r\n", long.as_bytes()] {
            let mut socket = TcpStream::connect(server.local_addr()).await.unwrap();
            // The server may close before all of it is written.
            let _ = socket.write_all(garbage).await;
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("still open");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));
        }
        assert!(ask(&server, "GET", "/healthz", "").await.starts_with("HTTP/1.1 200 "));
        server.stop().await;
    }
}
