//! What an operator chooses, checked once.
//!
//! [`ConfigFile`] is the TOML as written, all of it optional, so that the command line can
//! override it; [`ConfigFile::check`] makes a [`ServerConfig`] of it, or says what is wrong.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use revocast_core::limits::{CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use serde::Deserialize;
use thiserror::Error;

use crate::broker::{BrokerUrl, BrokerUrlError, Credentials, TlsRoots, TlsRootsError};

/// Where the API listens unless told otherwise: this machine only.
pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8180);

/// First level of every topic unless chosen.
pub const PREFIX_DEFAULT: &str = "revocast";

/// A longer prefix would crowd every packet.
const PREFIX_BYTES_MAX: usize = 256;

const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(30);
const HEARTBEAT_MAX: Duration = Duration::from_hours(1);

const GRACE_DEFAULT: Duration = Duration::from_mins(10);
const GRACE_MAX: Duration = Duration::from_hours(30 * 24);

/// A server that was down for longer is started by somebody who can confirm its clock.
const RESTART_JUMP_MAX: Duration = Duration::from_hours(7 * 24);

/// The rates that a filter with at most seven probes a line reaches, and that are of use.
const FALSE_POSITIVE_RATE_MIN: f64 = 1e-5;
const FALSE_POSITIVE_RATE_MAX: f64 = 0.1;

/// `revocast serve --config FILE`, as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Address of the API.
    pub listen: Option<SocketAddr>,
    /// URL under which others reach the API: where servers that do not lead send whoever must ask the leader.
    pub advertise: Option<String>,
    /// Folder of the ledger.
    pub data: Option<PathBuf>,
    /// Folder of the keys; `keys` in the data folder unless given.
    pub keys: Option<PathBuf>,
    /// The broker to publish to.
    pub broker: Option<BrokerSection>,
    /// Address of a broker inside this process, instead.
    pub embedded_broker: Option<SocketAddr>,
    /// First level of every topic.
    pub prefix: Option<String>,
    /// Largest content of one retained message.
    pub chunk_bytes: Option<usize>,
    /// How often a manifest is sealed again without news.
    pub heartbeat_seconds: Option<u64>,
    /// How long superseded objects stay retained.
    pub grace_seconds: Option<u64>,
    /// Rate of the published filter.
    pub false_positive_rate: Option<f64>,
    /// Limits of the API.
    pub limits: Option<LimitsSection>,
}

/// `[broker]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSection {
    /// `mqtt://host[:port]` or `mqtts://host[:port]`.
    pub url: Option<String>,
    /// Name of this client at the broker; made from the publisher's key unless given.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// File with the password, so that it stands in no process list.
    pub password_file: Option<PathBuf>,
    /// PEM file with the certificates that vouch for the broker.
    pub ca: Option<PathBuf>,
}

/// `[limits]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Longest time that one request may take, body included.
    pub request_timeout_seconds: Option<u64>,
    /// Requests served at a time; more are asked to come back.
    pub concurrent_requests: Option<usize>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address of the API; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Folder of the ledger.
    pub data: PathBuf,
    /// Folder of the keys.
    pub keys: PathBuf,
    /// Which broker.
    pub broker: BrokerChoice,
    /// How to publish.
    pub publishing: PublishingConfig,
    /// Limits of the API.
    pub limits: ApiLimits,
    /// The operator confirms that a ledger which ends before what was published shall go on in a
    /// new term (design rule 9). Never in a file: it is said once, on the command line.
    pub resume: bool,
    /// URL under which others reach the API; `None` takes the address it listens on, unless that is all of them.
    pub advertise: Option<String>,
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
    /// After a restart, how much later than the last signed time the clock may stand. Beyond it the
    /// operator confirms the clock, on the command line.
    pub restart_jump_max: Duration,
}

impl Default for PublishingConfig {
    fn default() -> Self {
        Self {
            prefix: PREFIX_DEFAULT.into(),
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            heartbeat: HEARTBEAT_DEFAULT,
            grace: GRACE_DEFAULT,
            false_positive_rate: None,
            restart_jump_max: RESTART_JUMP_MAX,
        }
    }
}

/// Limits of the API that a deployment chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Longest time that one request may take, body included.
    pub request_timeout: Duration,
    /// Requests served at a time; more are asked to come back.
    pub concurrent_requests: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        // A full batch over a slow line fits; 1,024 full bodies are 2 GiB, so that many is the most.
        Self { request_timeout: Duration::from_secs(30), concurrent_requests: 512 }
    }
}

impl ConfigFile {
    /// Reads TOML from a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|(line, what)| ConfigError::Toml { path: path.to_owned(), line, what })
    }

    /// Checks everything and fills in what was not chosen. Reads the password and the certificates.
    pub fn check(self) -> Result<ServerConfig, ConfigError> {
        let data = self.data.ok_or(ConfigError::Missing { what: "data", flag: "--data DIR" })?;
        let keys = self.keys.unwrap_or_else(|| data.join("keys"));
        let broker = match (self.broker, self.embedded_broker) {
            (Some(section), None) => BrokerChoice::Remote(section.check()?),
            (None, Some(address)) => BrokerChoice::Embedded(address),
            (Some(_), Some(_)) => return Err(ConfigError::TwoBrokers),
            (None, None) => {
                return Err(ConfigError::Missing { what: "broker", flag: "--broker URL or --embedded-broker ADDR" });
            }
        };
        let publishing = PublishingConfig {
            prefix: check_prefix(self.prefix.unwrap_or_else(|| PREFIX_DEFAULT.into()))?,
            chunk_bytes: within(
                "chunk_bytes",
                self.chunk_bytes.unwrap_or(CHUNK_BYTES_DEFAULT),
                CHUNK_BYTES_MIN,
                CHUNK_BYTES_MAX,
            )?,
            heartbeat: within(
                "heartbeat_seconds",
                self.heartbeat_seconds.map_or(HEARTBEAT_DEFAULT, Duration::from_secs),
                Duration::from_secs(1),
                HEARTBEAT_MAX,
            )?,
            grace: within(
                "grace_seconds",
                self.grace_seconds.map_or(GRACE_DEFAULT, Duration::from_secs),
                Duration::ZERO,
                GRACE_MAX,
            )?,
            false_positive_rate: self
                .false_positive_rate
                .map(|rate| within("false_positive_rate", rate, FALSE_POSITIVE_RATE_MIN, FALSE_POSITIVE_RATE_MAX))
                .transpose()?,
            restart_jump_max: RESTART_JUMP_MAX,
        };
        let limits = self.limits.unwrap_or_default();
        let defaults = ApiLimits::default();
        let limits = ApiLimits {
            request_timeout: within(
                "limits.request_timeout_seconds",
                limits.request_timeout_seconds.map_or(defaults.request_timeout, Duration::from_secs),
                Duration::from_secs(1),
                Duration::from_hours(1),
            )?,
            concurrent_requests: within(
                "limits.concurrent_requests",
                limits.concurrent_requests.unwrap_or(defaults.concurrent_requests),
                1,
                65_536,
            )?,
        };
        Ok(ServerConfig {
            listen: self.listen.unwrap_or(LISTEN_DEFAULT),
            data,
            keys,
            broker,
            publishing,
            limits,
            resume: false,
            advertise: self.advertise,
        })
    }

    /// The line counts from 1; 0 if the parser does not tell.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(0, |before| before.matches('\n').count() + 1);
            (line, error.message().to_owned())
        })
    }
}

impl BrokerSection {
    fn check(self) -> Result<RemoteBroker, ConfigError> {
        let text = self.url.ok_or(ConfigError::Missing { what: "broker.url", flag: "--broker URL" })?;
        let url: BrokerUrl = text.parse().map_err(|source| ConfigError::BrokerUrl { text, source })?;
        let credentials = match (self.username, self.password_file) {
            (None, None) => None,
            (Some(username), None) => Some(Credentials { username, password: String::new() }),
            (Some(username), Some(path)) => {
                let password =
                    fs::read_to_string(&path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
                // Editors end a file with a line break; a password does not.
                Some(Credentials { username, password: password.trim_end_matches(['\r', '\n']).to_owned() })
            }
            (None, Some(_)) => return Err(ConfigError::PasswordWithoutUser),
        };
        let tls = match (url.is_secure(), self.ca) {
            (true, Some(path)) => Some(TlsRoots::from_pem_file(&path).map_err(ConfigError::TlsRoots)?),
            (true, None) => {
                return Err(ConfigError::Missing { what: "broker.ca", flag: "--broker-ca FILE" });
            }
            (false, None) => None,
            (false, Some(_)) => return Err(ConfigError::CaWithoutTls),
        };
        let client_id = self.client_id.map(check_client_id).transpose()?;
        Ok(RemoteBroker { url, client_id, credentials, tls })
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
    /// The file is not TOML, or not of this shape.
    #[error("{} line {line}: {what}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// There is no default for this.
    #[error("{what} is not set; give {flag}, or {what} in the config file")]
    Missing {
        /// The setting.
        what: &'static str,
        /// What to give on the command line.
        flag: &'static str,
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
    #[error("broker.url is {text:?}")]
    BrokerUrl {
        /// As written.
        text: String,
        /// Why.
        #[source]
        source: BrokerUrlError,
    },
    /// A password alone is not allowed by MQTT 3.1.1.
    #[error("broker.password_file is set but broker.username is not")]
    PasswordWithoutUser,
    /// Certificates for a connection without TLS: somebody expects more than there is.
    #[error("broker.ca is set but broker.url is not mqtts://")]
    CaWithoutTls,
    /// The file of certificates cannot be used.
    #[error("broker.ca cannot be used")]
    TlsRoots(#[source] TlsRootsError),
    /// Topics could not be made of this.
    #[error("prefix is {prefix:?}; it has 1 to {PREFIX_BYTES_MAX} bytes, no + # $ and no empty level")]
    Prefix {
        /// As written.
        prefix: String,
    },
    /// No broker would take this name.
    #[error("broker.client_id is {client_id:?}; it has 1 to 64 printable characters")]
    ClientId {
        /// As written.
        client_id: String,
    },
}

fn within<T: PartialOrd + std::fmt::Debug>(what: &'static str, found: T, min: T, max: T) -> Result<T, ConfigError> {
    // Not negated: a NaN is in no range.
    if found >= min && found <= max {
        Ok(found)
    } else {
        let text = |value: T| format!("{value:?}");
        Err(ConfigError::OutOfRange { what, found: text(found), min: text(min), max: text(max) })
    }
}

fn check_prefix(prefix: String) -> Result<String, ConfigError> {
    let good = prefix.len() <= PREFIX_BYTES_MAX
        && prefix.split('/').all(|level| !level.is_empty())
        // $ begins topics of the broker's own; wildcards and control characters have no place in any.
        && !prefix.contains(|character: char| matches!(character, '+' | '#' | '$') || character.is_control());
    if good { Ok(prefix) } else { Err(ConfigError::Prefix { prefix }) }
}

fn check_client_id(client_id: String) -> Result<String, ConfigError> {
    let good = (1..=64).contains(&client_id.len()) && client_id.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(client_id) } else { Err(ConfigError::ClientId { client_id }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<ServerConfig, ConfigError> {
        ConfigFile::parse(text).expect("TOML").check()
    }

    fn refusal(text: &str) -> String {
        checked(text).expect_err(text).to_string()
    }

    #[test]
    fn the_least_is_a_folder_and_a_broker() {
        let config = checked("data = 'd'\nembedded_broker = '127.0.0.1:0'").unwrap();
        assert_eq!((config.listen, config.keys), (LISTEN_DEFAULT, PathBuf::from("d/keys")));
        assert_eq!(config.publishing, PublishingConfig::default());
        assert_eq!(config.limits, ApiLimits::default());
        assert!(refusal("embedded_broker = '127.0.0.1:0'").starts_with("data is not set; give --data DIR"));
        assert!(refusal("data = 'd'").starts_with("broker is not set; give --broker URL or"));
    }

    #[test]
    fn everything_can_be_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, "secret\n").unwrap();
        let text = format!(
            "listen = '0.0.0.0:1'\ndata = 'd'\nkeys = 'k'\nprefix = 'site/revocast'\nchunk_bytes = 2048\n\
             heartbeat_seconds = 5\ngrace_seconds = 0\nfalse_positive_rate = 1e-4\n\
             [broker]\nurl = 'mqtt://b'\nclient_id = 'c'\nusername = 'u'\npassword_file = '{}'\n\
             [limits]\nrequest_timeout_seconds = 1\nconcurrent_requests = 2\n",
            password.display()
        );
        let config = checked(&text).unwrap();
        let BrokerChoice::Remote(broker) = config.broker else { panic!("not remote") };
        let credentials = broker.credentials.unwrap();
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u", "secret"));
        assert!(!format!("{credentials:?}").contains("secret"));
        assert_eq!(config.publishing.heartbeat, Duration::from_secs(5));
        assert_eq!(config.limits.concurrent_requests, 2);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocast.toml");
        let told = |text: &str| {
            fs::write(&path, text).unwrap();
            ConfigFile::read(&path).unwrap_err().to_string()
        };
        let at = |line| format!("{} line {line}: ", path.display());
        let unknown = told("data = 'd'\n\nlisten_on = 'x'\n");
        assert!(unknown.starts_with(&format!("{}unknown field `listen_on`", at(3))), "{unknown}");
        let kind = told("data = 'd'\nchunk_bytes = 'many'\n");
        assert!(kind.starts_with(&format!("{}invalid type", at(2))), "{kind}");
        let twice = told("data = 'd'\ndata = 'e'\n");
        assert!(twice.starts_with(&format!("{}duplicate key", at(2))), "{twice}");
        assert!(told("data = \n").starts_with(&at(1)));
        assert!(matches!(ConfigFile::read(&folder.path().join("none")), Err(ConfigError::Io { .. })));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let base = "data = 'd'\nembedded_broker = '127.0.0.1:0'\n";
        for (line, start) in [
            ("chunk_bytes = 2047", "chunk_bytes is 2047; from 2048 to 262144 is possible"),
            ("chunk_bytes = 262145", "chunk_bytes is 262145"),
            ("heartbeat_seconds = 0", "heartbeat_seconds is 0ns"),
            ("heartbeat_seconds = 18446744073709551615", ""),
            ("grace_seconds = 99999999", "grace_seconds is 99999999s"),
            ("false_positive_rate = 0.0", "false_positive_rate is 0.0"),
            ("false_positive_rate = nan", "false_positive_rate is NaN"),
            ("false_positive_rate = 0.5", "false_positive_rate is 0.5"),
            ("limits = { concurrent_requests = 0 }", "limits.concurrent_requests is 0"),
        ] {
            let text = format!("{base}{line}\n");
            // What TOML's own numbers cannot hold is refused when it is read.
            let Ok(file) = ConfigFile::parse(&text) else { continue };
            let error = file.check().expect_err(line).to_string();
            assert!(error.starts_with(start), "{line}: {error}");
        }
        for prefix in ["", "/a", "a/", "a//b", "a/+", "#", "$SYS", "a\\u0000", &"x".repeat(257)] {
            assert!(refusal(&format!("{base}prefix = \"{prefix}\"")).starts_with("prefix is"), "{prefix}");
        }
    }

    #[test]
    fn brokers_that_cannot_be_are_refused() {
        let broker = |lines: &str| refusal(&format!("data = 'd'\n[broker]\n{lines}"));
        assert!(broker("").starts_with("broker.url is not set"));
        assert_eq!(broker("url = 'http://b'"), r#"broker.url is "http://b""#);
        assert!(broker("url = 'mqtts://b'").starts_with("broker.ca is not set; give --broker-ca FILE"));
        assert!(broker("url = 'mqtts://b'\nca = '/nonexistent'").starts_with("broker.ca cannot be used"));
        assert!(broker("url = 'mqtt://b'\nca = 'x'").starts_with("broker.ca is set but"));
        assert!(broker("url = 'mqtt://b'\npassword_file = 'x'").starts_with("broker.password_file is set but"));
        assert!(broker("url = 'mqtt://b'\nusername = 'u'\npassword_file = '/nonexistent'").ends_with("cannot be read"));
        assert!(broker("url = 'mqtt://b'\nclient_id = ''").starts_with("broker.client_id is"));
        let two = refusal("data = 'd'\nembedded_broker = '127.0.0.1:0'\n[broker]\nurl = 'mqtt://b'");
        assert!(two.starts_with("both a broker and"));
    }
}
