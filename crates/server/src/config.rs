//! What an operator chooses, checked once.
//!
//! `settings` declares every value; `sources` reads them from file, environment and command line, the later of
//! which wins. [`Chosen::check`] makes a [`ServerConfig`] of that, or says everything that is wrong.

mod settings;
pub use settings::{
    BridgeIn, Choices, Effect, LISTEN_DEFAULT, LogFormat, PREFIX_DEFAULT, SETTINGS, SessionsKind, Setting,
};

mod sources;
pub use sources::{Chosen, Mistake, Mistakes, Origin};

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use revocast_core::RealmId;
use revocast_core::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use revocast_core::update::{TokenTopic, TokenTopicError};
use thiserror::Error;

use crate::broker::{BrokerUrl, BrokerUrlError, Credentials, TlsRoots, TlsRootsError};
use crate::ledger::{Ledger, OpenError, PostgresConfig, PostgresLedger, SqliteLedger};
use crate::service::MAX_TOKEN_LIFETIME_MAX;

/// A longer prefix would crowd every packet.
const PREFIX_BYTES_MAX: usize = 256;

const HEARTBEAT_MAX: Duration = Duration::from_hours(1);

const GRACE_MAX: Duration = Duration::from_hours(30 * 24);

/// A server that was down for longer is started by somebody who can confirm its clock.
const RESTART_JUMP_MAX: Duration = Duration::from_hours(7 * 24);

/// The rates that a filter with at most seven probes a line reaches, and that are of use.
const FALSE_POSITIVE_RATE_MIN: f64 = 1e-5;
const FALSE_POSITIVE_RATE_MAX: f64 = 0.1;

/// A younger epoch would be replaced before a fleet has moved to it.
const EPOCH_AGE_MIN: Duration = Duration::from_mins(1);
const EPOCH_AGE_MAX: Duration = Duration::from_hours(30 * 24);

/// A smaller share would rebuild the epoch for every few revocations.
const EPOCH_SHARE_MIN: f64 = 0.01;

/// A lease is renewed at a third of it, over a network, by a machine that is busy; and nobody publishes while it
/// runs out.
const LEASE_MIN: Duration = Duration::from_secs(2);
const LEASE_MAX: Duration = Duration::from_mins(1);

/// More messages of a bridge a second would crowd out the API; more revocations a day are an import.
const BRIDGE_PER_SECOND_MAX: u32 = 10_000;
const BRIDGE_PER_DAY_MAX: u32 = 10_000_000;

/// A file with a password is a line.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address of the API; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Folder of the ledger.
    pub data: PathBuf,
    /// Folder of the keys.
    pub keys: PathBuf,
    /// Where the ledger is.
    pub ledger: LedgerChoice,
    /// URL under which clients reach this server, if it was told.
    pub advertise: Option<String>,
    /// How the API speaks TLS, if it does.
    pub tls: Option<TlsFiles>,
    /// Which broker.
    pub broker: BrokerChoice,
    /// Whether the embedded broker lets devices in by their tokens only.
    pub embedded_broker_auth: bool,
    /// The bridge to plain publishers and devices, if there is one.
    pub bridge: Option<BridgeConfig>,
    /// How live sessions of revoked devices are ended, if they are.
    pub sessions: Option<SessionsConfig>,
    /// How to publish.
    pub publishing: PublishingConfig,
    /// How our own issuer hands out tokens.
    pub tokens: TokensConfig,
    /// How long the leading server leads without a sign of life.
    pub lease: Duration,
    /// Limits of the API.
    pub limits: ApiLimits,
    /// Whether a cutoff of a whole realm needs a second credential.
    pub approve: bool,
    /// What is logged: a level, or targets with levels.
    pub log: Option<String>,
    /// How logs are written.
    pub log_format: Option<LogFormat>,
    /// The operator confirms that a ledger which ends before what was published shall go on in a
    /// new term (design rule 9). Never in a file: it is said once, on the command line.
    pub resume: bool,
}

/// Where the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerChoice {
    /// A file in the data folder.
    Embedded,
    /// A database that speaks the PostgreSQL protocol.
    Postgres {
        /// `postgres://user@host:port/name`, without a password.
        url: String,
        /// The password, if it wants one.
        password: Option<Secret>,
        /// PEM file with the certificates that vouch for it; with them, TLS is required.
        ca: Option<PathBuf>,
    },
}

impl LedgerChoice {
    /// A database: its URL, the password if it wants one, the certificates that vouch for it.
    #[must_use]
    pub fn in_database(url: String, password: Option<String>, ca: Option<PathBuf>) -> Self {
        Self::Postgres { url, password: password.map(Secret), ca }
    }

    /// Opens the ledger, with `data` as the folder of an embedded one; founds it if there is none.
    pub async fn open(&self, data: &Path) -> Result<Arc<dyn Ledger>, OpenError> {
        match self {
            Self::Embedded => {
                let folder = data.to_owned();
                // Reads the whole file.
                let opened = tokio::task::spawn_blocking(move || SqliteLedger::open(&folder)).await;
                let path = data.to_owned();
                Ok(Arc::new(opened.map_err(|error| OpenError::Storage { path, source: Arc::new(error) })??))
            }
            Self::Postgres { url, password, ca } => {
                let roots = ca.as_deref().map(TlsRoots::from_pem_file).transpose();
                let tls = roots.map_err(|error| OpenError::Roots(Arc::new(error)))?.map(|roots| roots.client_config());
                let password = password.as_ref().map(|password| password.expose().to_owned());
                let config = PostgresConfig::new(url, password, tls)?;
                Ok(Arc::new(PostgresLedger::open(config).await?))
            }
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// For whoever has to prove that they know it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The files with which the API speaks TLS, PEM all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key of that certificate.
    pub key: PathBuf,
    /// Who vouches for clients; with it, a client needs a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Which broker to publish to.
#[derive(Clone, Debug)]
pub enum BrokerChoice {
    /// One that runs elsewhere.
    Remote(RemoteBroker),
    /// One inside this process, listening here; port 0 takes any free one.
    Embedded(SocketAddr),
}

/// How to reach a broker that runs elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteBroker {
    /// Where.
    pub url: BrokerUrl,
    /// Our name there, if chosen.
    pub client_id: Option<String>,
    /// User and password.
    pub credentials: Option<Credentials>,
    /// Who vouches for it.
    pub tls: Option<TlsRoots>,
    /// Files with our certificate chain and its private key, if the broker wants them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How plain publishers and devices are spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The topic, both ways.
    pub topic: String,
    /// The realm whose tokens it speaks of.
    pub realm: RealmId,
    /// What is taken in.
    pub inward: BridgeIn,
    /// Whether revocations are announced.
    pub outward: bool,
    /// Messages a second that are looked at.
    pub per_second: u32,
    /// Revocations a day that are recorded.
    pub per_day: u32,
}

/// How live sessions of revoked devices are ended.
#[derive(Clone, Debug)]
pub enum SessionsConfig {
    /// By connecting under the same client id, as the server's own user.
    Takeover,
    /// By the management API of EMQX.
    Emqx(Management),
    /// By the management API of `RabbitMQ`.
    RabbitMq(Management),
}

/// How to reach the management API of a broker.
#[derive(Clone, Debug)]
pub struct Management {
    /// Where: `http://host:port` or `https://host:port`, without a path.
    pub url: String,
    /// User name or API key.
    pub user: String,
    /// Its password or secret.
    pub password: Secret,
    /// Who vouches for it, if it is `https`.
    pub ca: Option<PathBuf>,
}

/// How to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishingConfig {
    /// First level of every topic.
    pub prefix: String,
    /// Largest content of one retained message.
    pub chunk_bytes: usize,
    /// How often a manifest is sealed again without news.
    pub heartbeat: Duration,
    /// How long superseded objects stay retained.
    pub grace: Duration,
    /// Rate of the published filter.
    pub false_positive_rate: Option<f64>,
    /// An epoch older than this is rebuilt, if anything in it has expired.
    pub epoch_age: Duration,
    /// An epoch is rebuilt when this share of its base has expired.
    pub epoch_dead_share: f64,
    /// An epoch is rebuilt when what came since takes this share of its base.
    pub epoch_recent_share: f64,
    /// After a restart, how much later than the last signed time the clock may stand. Beyond it the
    /// operator confirms the clock, on the command line.
    pub restart_jump_max: Duration,
}

/// How our own issuer hands out tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokensConfig {
    /// How long a token lives unless said otherwise.
    pub lifetime: Duration,
    /// Where a device awaits its tokens.
    pub topic: TokenTopic,
    /// Whether they travel there in clear.
    pub clear: bool,
}

/// Limits of the API that a deployment chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Longest time that one request may take, body included.
    pub request_timeout: Duration,
    /// Requests served at a time; more are asked to come back.
    pub concurrent_requests: usize,
    /// Requests a second of one credential, unless it says otherwise.
    pub requests_per_second: Option<u32>,
    /// Revocations a day of one credential, unless it says otherwise.
    pub bulk_per_day: Option<u64>,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Choices::defaults().fill().limits()
    }
}

impl settings::Filled {
    fn limits(&self) -> ApiLimits {
        // A full batch over a slow line fits; 1,024 full bodies are 2 GiB, so that many is the most.
        ApiLimits {
            request_timeout: Duration::from_secs(self.request_timeout_seconds),
            concurrent_requests: self.concurrent_requests,
            requests_per_second: self.requests_per_second,
            bulk_per_day: self.bulk_per_day,
        }
    }
}

impl Choices {
    /// Checks everything and fills in what was not chosen. Reads passwords and certificates.
    pub fn check(self) -> Result<ServerConfig, Mistakes> {
        Chosen::from(self).check()
    }
}

/// What [`Chosen::check`] does with what could be read.
fn check(chosen: &Chosen) -> Result<ServerConfig, Vec<Mistake>> {
    let mut check = Check { chosen, mistakes: Vec::new() };
    let mut given = chosen.config().clone().fill();
    let limits = given.limits();
    check.within("request_timeout_seconds", limits.request_timeout, Duration::from_secs(1), Duration::from_hours(1));
    check.within("concurrent_requests", limits.concurrent_requests, 1, 65_536);
    if let Some(rate) = limits.requests_per_second {
        check.within("requests_per_second", rate, 1, 1_000_000);
    }
    let publishing = PublishingConfig {
        prefix: given.prefix,
        chunk_bytes: given.chunk_bytes,
        heartbeat: Duration::from_secs(given.heartbeat_seconds),
        grace: Duration::from_secs(given.grace_seconds),
        false_positive_rate: given.false_positive_rate,
        epoch_age: Duration::from_secs(given.epoch_age_seconds),
        epoch_dead_share: given.epoch_dead_share,
        epoch_recent_share: given.epoch_recent_share,
        restart_jump_max: RESTART_JUMP_MAX,
    };
    check.publishing(&publishing);
    let tokens = TokensConfig {
        lifetime: Duration::from_secs(given.token_lifetime_seconds),
        topic: TokenTopic::parse(&given.token_topic).unwrap_or_else(|source| {
            check.mistake("token_topic", ConfigError::TokenTopic(source));
            TokenTopic::default()
        }),
        clear: given.clear_tokens,
    };
    check.within("token_lifetime_seconds", tokens.lifetime, Duration::from_secs(1), MAX_TOKEN_LIFETIME_MAX);
    let lease = Duration::from_secs(given.lease_seconds);
    check.within("lease_seconds", lease, LEASE_MIN, LEASE_MAX);
    if given.data.is_none() {
        check.missing("data", "--data DIR");
    }
    if given.advertise.as_ref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        check.mistake("advertise", ConfigError::Advertise { found: given.advertise.clone().unwrap_or_default() });
    }
    let tls = check.tls(given.tls_certificate, given.tls_key, given.tls_client_ca);
    let ledger = check.ledger(given.ledger, given.ledger_password_file, given.ledger_ca);
    let remote = RemoteSettings {
        client_id: given.broker_client_id,
        user: given.broker_user,
        password_file: given.broker_password_file,
        ca: given.broker_ca,
        certificate: given.broker_certificate,
        key: given.broker_key,
    };
    // One that was chosen nearer to the command line pushes out the other.
    if given.broker.is_some() && given.embedded_broker.is_some() {
        let (remote, embedded) = (chosen.origin("broker"), chosen.origin("embedded_broker"));
        if remote.same_place(&embedded) {
            check.mistake("broker", ConfigError::TwoBrokers);
        } else if remote > embedded {
            given.embedded_broker = None;
        } else {
            given.broker = None;
        }
    }
    let broker = match (given.broker, given.embedded_broker) {
        (Some(url), _) => check.remote(url, remote).map(BrokerChoice::Remote),
        (None, Some(address)) => Some(BrokerChoice::Embedded(address)),
        (None, None) => {
            check.missing("broker", "--broker URL or --embedded-broker ADDR");
            None
        }
    };
    let topics = (given.bridge_topic, publishing.prefix.as_str());
    let pace = (given.bridge_per_second, given.bridge_per_day);
    let bridge = check.bridge(topics, given.bridge_realm, (given.bridge_in, given.bridge_out), pace);
    let management = ManagementSettings {
        url: given.sessions_url,
        user: given.sessions_user,
        password_file: given.sessions_password_file,
        ca: given.sessions_ca,
    };
    let sessions = check.sessions(given.sessions, management);
    match (given.data, broker, ledger) {
        (Some(data), Some(broker), Some(ledger)) if check.mistakes.is_empty() => Ok(ServerConfig {
            listen: given.listen,
            keys: given.keys.unwrap_or_else(|| data.join("keys")),
            data,
            ledger,
            advertise: given.advertise,
            tls,
            broker,
            embedded_broker_auth: given.embedded_broker_auth,
            bridge,
            sessions,
            publishing,
            tokens,
            lease,
            limits,
            approve: given.approve,
            log: given.log,
            log_format: given.log_format,
            resume: false,
        }),
        _ => Err(check.mistakes),
    }
}

/// What is set for a broker beside its URL.
struct RemoteSettings {
    client_id: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// What is set for the management API of a broker.
struct ManagementSettings {
    url: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// Collects mistakes with the place where each was made.
struct Check<'a> {
    chosen: &'a Chosen,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn mistake(&mut self, setting: &'static str, error: ConfigError) {
        let origin = Some(self.chosen.origin(setting)).filter(|origin| *origin != Origin::Default);
        self.mistakes.push(Mistake { setting: Some(setting), origin, error: error.into() });
    }

    fn missing(&mut self, what: &'static str, flag: &'static str) {
        self.mistake(what, ConfigError::Missing { what, flag });
    }

    fn within<T: PartialOrd + fmt::Debug>(&mut self, what: &'static str, found: T, min: T, max: T) {
        // Not negated: a NaN is in no range.
        if found >= min && found <= max {
            return;
        }
        let text = |value: T| format!("{value:?}");
        self.mistake(what, ConfigError::OutOfRange { what, found: text(found), min: text(min), max: text(max) });
    }

    fn publishing(&mut self, config: &PublishingConfig) {
        if !good_prefix(&config.prefix) {
            self.mistake("prefix", ConfigError::Prefix { prefix: config.prefix.clone() });
        }
        self.within("chunk_bytes", config.chunk_bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        self.within("heartbeat_seconds", config.heartbeat, Duration::from_secs(1), HEARTBEAT_MAX);
        self.within("grace_seconds", config.grace, Duration::ZERO, GRACE_MAX);
        if let Some(rate) = config.false_positive_rate {
            self.within("false_positive_rate", rate, FALSE_POSITIVE_RATE_MIN, FALSE_POSITIVE_RATE_MAX);
        }
        self.within("epoch_age_seconds", config.epoch_age, EPOCH_AGE_MIN, EPOCH_AGE_MAX);
        self.within("epoch_dead_share", config.epoch_dead_share, EPOCH_SHARE_MIN, 1.0);
        self.within("epoch_recent_share", config.epoch_recent_share, EPOCH_SHARE_MIN, 1.0);
    }

    fn tls(
        &mut self,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        client_ca: Option<PathBuf>,
    ) -> Option<TlsFiles> {
        match (certificate, key, client_ca) {
            (None, None, None) => None,
            (Some(certificate), Some(key), client_ca) => {
                self.readable("tls_certificate", &certificate);
                self.readable("tls_key", &key);
                if let Some(client_ca) = &client_ca {
                    self.readable("tls_client_ca", client_ca);
                }
                Some(TlsFiles { certificate, key, client_ca })
            }
            (Some(_), None, _) => self.needs("tls_certificate", "tls_key"),
            (None, Some(_), _) => self.needs("tls_key", "tls_certificate"),
            (None, None, Some(_)) => self.needs("tls_client_ca", "tls_certificate"),
        }
    }

    fn ledger(
        &mut self,
        url: Option<String>,
        password_file: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Option<LedgerChoice> {
        let Some(url) = url else {
            return match (password_file, ca) {
                (None, None) => Some(LedgerChoice::Embedded),
                (Some(_), _) => self.needs("ledger_password_file", "ledger"),
                (None, Some(_)) => self.needs("ledger_ca", "ledger"),
            };
        };
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            self.mistake("ledger", ConfigError::LedgerUrl);
            return None;
        };
        let user = rest.split('/').next().and_then(|authority| authority.rsplit_once('@'));
        if user.is_some_and(|(user, _)| user.contains(':')) || rest.contains("password=") {
            self.mistake("ledger", ConfigError::LedgerPassword);
            return None;
        }
        let password = match password_file {
            Some(path) => Some(Secret(self.password("ledger_password_file", &path)?)),
            None => None,
        };
        if let Some(ca) = &ca {
            self.readable("ledger_ca", ca);
        }
        Some(LedgerChoice::Postgres { url, password, ca })
    }

    fn remote(&mut self, text: String, settings: RemoteSettings) -> Option<RemoteBroker> {
        let RemoteSettings { client_id, user, password_file, ca, certificate, key } = settings;
        let credentials = match (user, password_file) {
            (None, None) => None,
            (Some(username), None) => Some(Credentials { username, password: String::new() }),
            (Some(username), Some(path)) => {
                self.password("broker_password_file", &path).map(|password| Credentials { username, password })
            }
            // A password alone is not allowed by MQTT 3.1.1.
            (None, Some(_)) => self.needs("broker_password_file", "broker_user"),
        };
        if let Some(client_id) = client_id.as_ref().filter(|client_id| !good_client_id(client_id)) {
            self.mistake("broker_client_id", ConfigError::ClientId { client_id: client_id.clone() });
        }
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                self.readable("broker_certificate", &certificate);
                self.readable("broker_key", &key);
                Some((certificate, key))
            }
            (Some(_), None) => self.needs("broker_certificate", "broker_key"),
            (None, Some(_)) => self.needs("broker_key", "broker_certificate"),
        };
        let url: BrokerUrl = match text.parse() {
            Ok(url) => url,
            Err(source) => {
                self.mistake("broker", ConfigError::BrokerUrl { text, source });
                return None;
            }
        };
        if !url.is_secure() && identity.is_some() {
            self.mistake("broker_certificate", ConfigError::WithoutTls { what: "broker_certificate" });
        }
        let tls = match (url.is_secure(), ca) {
            (true, Some(path)) => match TlsRoots::from_pem_file(&path) {
                Ok(roots) => Some(roots),
                Err(error) => {
                    self.mistake("broker_ca", ConfigError::TlsRoots(error));
                    None
                }
            },
            (true, None) => {
                self.missing("broker_ca", "--broker-ca FILE");
                None
            }
            (false, None) => None,
            // Somebody expects more than there is.
            (false, Some(_)) => {
                self.mistake("broker_ca", ConfigError::WithoutTls { what: "broker_ca" });
                None
            }
        };
        Some(RemoteBroker { url, client_id, credentials, tls, identity })
    }

    /// The bridge, if anything of it is on.
    fn bridge(
        &mut self,
        (topic, prefix): (String, &str),
        realm: Option<String>,
        (inward, outward): (BridgeIn, bool),
        (per_second, per_day): (u32, u32),
    ) -> Option<BridgeConfig> {
        self.within("bridge_per_second", per_second, 1, BRIDGE_PER_SECOND_MAX);
        self.within("bridge_per_day", per_day, 1, BRIDGE_PER_DAY_MAX);
        if !good_prefix(&topic)
            || topic == prefix
            || topic.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        {
            self.mistake("bridge_topic", ConfigError::BridgeTopic { topic: topic.clone() });
        }
        let on = match (inward, outward) {
            (BridgeIn::Off, false) => return None,
            (BridgeIn::Signed | BridgeIn::Plain, _) => "bridge_in",
            (BridgeIn::Off, true) => "bridge_out",
        };
        let Some(realm) = realm else { return self.needs(on, "bridge_realm") };
        let Ok(realm) = RealmId::new(&realm) else {
            self.mistake("bridge_realm", ConfigError::Realm { realm });
            return None;
        };
        Some(BridgeConfig { topic, realm, inward, outward, per_second, per_day })
    }

    fn sessions(&mut self, kind: SessionsKind, settings: ManagementSettings) -> Option<SessionsConfig> {
        let ManagementSettings { url, user, password_file, ca } = settings;
        match kind {
            SessionsKind::Off => return None,
            SessionsKind::Takeover => return Some(SessionsConfig::Takeover),
            SessionsKind::Emqx | SessionsKind::Rabbitmq => {}
        }
        let (Some(url), Some(user), Some(path)) = (url, user, password_file) else {
            return self.needs("sessions", "one of sessions_url, sessions_user, sessions_password_file");
        };
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['/', '@', '?', '#', ' '])) {
            self.mistake("sessions_url", ConfigError::ManagementUrl { found: url.clone() });
        }
        if url.starts_with("https://") && ca.is_none() {
            self.missing("sessions_ca", "--sessions-ca FILE");
        }
        if let Some(ca) = &ca {
            self.readable("sessions_ca", ca);
        }
        let password = Secret(self.password("sessions_password_file", &path)?);
        let management = Management { url, user, password, ca };
        Some(match kind {
            SessionsKind::Rabbitmq => SessionsConfig::RabbitMq(management),
            SessionsKind::Emqx | SessionsKind::Off | SessionsKind::Takeover => SessionsConfig::Emqx(management),
        })
    }

    fn needs<T>(&mut self, what: &'static str, other: &'static str) -> Option<T> {
        self.mistake(what, ConfigError::Needs { what, other });
        None
    }

    fn readable(&mut self, setting: &'static str, path: &Path) {
        if let Err(source) = fs::File::open(path) {
            self.mistake(setting, ConfigError::Io { path: path.to_owned(), source });
        }
    }

    fn password(&mut self, setting: &'static str, path: &Path) -> Option<String> {
        use io::Read as _;
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text));
        if let Err(source) = read {
            self.mistake(setting, ConfigError::Io { path: path.to_owned(), source });
            return None;
        }
        // Editors end a file with a line break; a password does not.
        Some(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Why a configuration cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} has more than 1 MiB, so it is no config file", .path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not TOML, or the value not of the kind that is wanted.
    #[error("{what}")]
    Toml {
        /// What is wrong.
        what: String,
    },
    /// Nothing is called that.
    #[error("unknown setting {found}; {help}")]
    Unknown {
        /// The name.
        found: String,
        /// What may have been meant.
        help: String,
    },
    /// A variable that is set to nothing: what should have stood there got lost, most often.
    #[error("is empty; unset it, or give a value")]
    Empty,
    /// There is no default for this.
    #[error("{what} is not set; give {flag}, or {what} in the config file")]
    Missing {
        /// The setting.
        what: &'static str,
        /// What to give on the command line.
        flag: &'static str,
    },
    /// One does nothing without the other.
    #[error("{what} is set but {other} is not")]
    Needs {
        /// What is set.
        what: &'static str,
        /// What is not.
        other: &'static str,
    },
    /// A number out of its range.
    #[error("{what} is {found}; from {min} to {max} is possible")]
    OutOfRange {
        /// The setting.
        what: &'static str,
        /// What it is.
        found: String,
        /// Smallest value.
        min: String,
        /// Largest value.
        max: String,
    },
    /// Only one can be published to.
    #[error("both a broker and an embedded broker are set; choose one")]
    TwoBrokers,
    /// The URL of the broker cannot be used.
    #[error("broker is {text:?}")]
    BrokerUrl {
        /// As written.
        text: String,
        /// Why.
        #[source]
        source: BrokerUrlError,
    },
    /// The URL of the ledger cannot be used.
    #[error("a ledger is postgres://user@host:port/name, or unset for a file in the data folder")]
    LedgerUrl,
    /// Passwords in URLs end up in logs and process lists.
    #[error("a ledger URL holds no password; give ledger_password_file instead")]
    LedgerPassword,
    /// No client could follow it.
    #[error("advertise is {found:?}; it is a URL like https://host:port")]
    Advertise {
        /// As written.
        found: String,
    },
    /// Certificates for a connection without TLS: somebody expects more than there is.
    #[error("{what} is set but broker is not mqtts://")]
    WithoutTls {
        /// The setting.
        what: &'static str,
    },
    /// The file of certificates cannot be used.
    #[error("broker_ca cannot be used")]
    TlsRoots(#[source] TlsRootsError),
    /// Devices could not await tokens there.
    #[error("token_topic cannot be used")]
    TokenTopic(#[source] TokenTopicError),
    /// Topics could not be made of this.
    #[error("prefix is {prefix:?}; it has 1 to {PREFIX_BYTES_MAX} bytes, no + # $ and no empty level")]
    Prefix {
        /// As written.
        prefix: String,
    },
    /// Messages of the bridge would be taken for ours, or nobody could publish there.
    #[error(
        "bridge_topic is {topic:?}; it has 1 to {PREFIX_BYTES_MAX} bytes, no + # $, no empty level, and does not begin with the prefix"
    )]
    BridgeTopic {
        /// As written.
        topic: String,
    },
    /// No realm could have this name.
    #[error("bridge_realm is {realm:?}; a realm has 1 to 64 of a-z, 0-9 and -")]
    Realm {
        /// As written.
        realm: String,
    },
    /// The management API of the broker could not be reached there.
    #[error("sessions_url is {found:?}; it is http://host:port or https://host:port, without a path")]
    ManagementUrl {
        /// As written.
        found: String,
    },
    /// No broker would take this name.
    #[error("broker_client_id is {client_id:?}; it has 1 to 64 printable characters")]
    ClientId {
        /// As written.
        client_id: String,
    },
}

fn good_prefix(prefix: &str) -> bool {
    prefix.len() <= PREFIX_BYTES_MAX
        && prefix.split('/').all(|level| !level.is_empty())
        // $ begins topics of the broker's own; wildcards and control characters have no place in any.
        && !prefix.contains(|character: char| matches!(character, '+' | '#' | '$') || character.is_control())
}

fn good_client_id(client_id: &str) -> bool {
    (1..=64).contains(&client_id.len()) && client_id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
