//! Every value that can be chosen, declared once.
//!
//! A row of the table below is a line of the config file, a variable and a flag at the same time. Their names follow
//! from the one that stands there: `broker_ca` is `broker_ca = "…"` in the file, `REVOCAST_BROKER_CA` in the
//! environment and `--broker-ca` on the command line. Secrets are in files, and only those are named here.

#![expect(clippy::doc_markdown, reason = "doc comments of the table are the help text, printed as they stand")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use revocast_core::limits::CHUNK_BYTES_DEFAULT;
use revocast_core::update::TokenTopic;
use serde::{Deserialize, Serialize};

/// Where the API listens unless told otherwise: this machine only.
pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8180);

/// First level of every topic unless chosen.
pub const PREFIX_DEFAULT: &str = "revocast";

/// What begins the name of every variable.
pub(super) const VARIABLE_PREFIX: &str = "REVOCAST_";

/// One value that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name in the file; those in the environment and on the command line follow from it.
    pub name: &'static str,
    /// What kind of value it takes, in a word: `FILE`, `SECONDS`.
    pub value: &'static str,
    /// What it is for, in a sentence.
    pub help: &'static str,
    /// When a change of it takes effect.
    pub effect: Effect,
}

/// When a change of a value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// When the server is told to read its configuration again.
    Reload,
    /// When the server is started again.
    Restart,
}

impl Setting {
    /// Its name in the environment.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Its name on the command line, without the two hyphens.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The setting of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is taken in on the topic of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BridgeIn {
    /// Nothing.
    Off,
    /// Tokens that an issuer of the realm has signed.
    Signed,
    /// Those, and bare `jti`s: whoever may publish there may revoke.
    Plain,
}

/// How live sessions of revoked devices are ended at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionsKind {
    /// They are not.
    Off,
    /// By a connection with the same client id, which every broker ends the former one for.
    Takeover,
    /// By the management API of EMQX 5.
    Emqx,
    /// By the management API of RabbitMQ.
    Rabbitmq,
}

/// Makes of the table: [`Choices`], [`SETTINGS`], and a way from a name to its field.
///
/// A row: help, name, type, default if there is one, kind of value, effect of a change.
macro_rules! settings {
    (@filled $type:ty) => { Option<$type> };
    (@filled $type:ty, $default:expr) => { $type };
    (@fill $given:expr) => { $given };
    (@fill $given:expr, $default:expr) => { $given.unwrap_or_else(|| $default) };
    (@default) => { None };
    (@default $default:expr) => { Some($default) };
    ($( $(#[doc = $help:literal])+ $name:ident: $type:ty $(= $default:expr)?, $value:literal, $effect:ident; )+) => {
        /// What was chosen, as far as it was: all of it optional, none of it checked.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Choices {
            $( $(#[doc = $help])+ pub $name: Option<$type>, )+
        }

        /// Every value that can be chosen.
        pub const SETTINGS: &[Setting] = &[ $( Setting {
            name: stringify!($name),
            value: $value,
            help: concat!($($help),+).trim_ascii_start(),
            effect: Effect::$effect,
        } ),+ ];

        /// What was chosen, and the defaults of what was not.
        pub(super) struct Filled {
            $( pub(super) $name: settings!(@filled $type $(, $default)?), )+
        }

        impl Choices {
            /// What holds where nothing is chosen.
            #[must_use]
            pub fn defaults() -> Self {
                Self { $( $name: settings!(@default $($default)?), )+ }
            }

            pub(super) fn fill(self) -> Filled {
                Filled { $( $name: settings!(@fill self.$name $(, $default)?), )+ }
            }

            /// Chooses a value by its name.
            pub(super) fn set(&mut self, name: &str, value: toml::Value) -> Result<(), toml::de::Error> {
                match name {
                    $( stringify!($name) => self.$name = Some(<$type>::deserialize(value)?), )+
                    unknown => return Err(serde::de::Error::custom(format!("unknown setting {unknown:?}"))),
                }
                Ok(())
            }

            /// Takes over what takes effect without a restart; gives everything that differs.
            pub fn adopt(&mut self, new: &Self) -> Vec<&'static Setting> {
                let mut differs = Vec::new();
                $( if self.$name != new.$name {
                    differs.extend(Setting::named(stringify!($name)));
                    match Effect::$effect {
                        Effect::Reload => self.$name.clone_from(&new.$name),
                        Effect::Restart => {}
                    }
                } )+
                differs
            }

            /// The value of that name, if it was chosen.
            #[must_use]
            pub fn value(&self, name: &str) -> Option<toml::Value> {
                match name {
                    // Fails only for paths that are not UTF-8, which no source can bring.
                    $( stringify!($name) => self.$name.as_ref().and_then(|value| toml::Value::try_from(value).ok()), )+
                    _ => None,
                }
            }
        }
    };
}

settings! {
    /// Folder of the ledger, and of what this server keeps beside it; keys are expected in DIR/keys
    data: PathBuf, "DIR", Restart;
    /// Folder of the keys, if not DIR/keys
    keys: PathBuf, "DIR", Restart;
    /// Ledger in a database: postgres://user@host:5432/name. Without it, it is a file in the data folder
    ledger: String, "URL", Restart;
    /// File with the password of that database
    ledger_password_file: PathBuf, "FILE", Restart;
    /// Certificates that vouch for that database, PEM; with them, TLS is required
    ledger_ca: PathBuf, "FILE", Restart;

    /// Address of the API; port 0 takes any free one
    listen: SocketAddr = LISTEN_DEFAULT, "ADDR", Restart;
    /// URL under which clients reach the API of this server; told to them by the other servers
    advertise: String, "URL", Restart;
    /// Certificate chain of the API, PEM; with it, the API speaks TLS
    tls_certificate: PathBuf, "FILE", Restart;
    /// Private key of that certificate, PEM
    tls_key: PathBuf, "FILE", Restart;
    /// Certificates that vouch for clients of the API, PEM; with them, a client needs a certificate
    tls_client_ca: PathBuf, "FILE", Restart;

    /// Broker to publish to: mqtt://host:1883 or mqtts://host:8883
    broker: String, "URL", Restart;
    /// Name of this server at the broker; a new one for each start unless given. Of servers on one ledger each has its own
    broker_client_id: String, "ID", Restart;
    /// User name at the broker
    broker_user: String, "NAME", Restart;
    /// File with the password at the broker
    broker_password_file: PathBuf, "FILE", Restart;
    /// Certificates that vouch for an mqtts broker, PEM
    broker_ca: PathBuf, "FILE", Restart;
    /// Certificate chain that this server shows to the broker, PEM
    broker_certificate: PathBuf, "FILE", Restart;
    /// Private key of that certificate, PEM
    broker_key: PathBuf, "FILE", Restart;
    /// Run a broker inside this process, at this address
    embedded_broker: SocketAddr, "ADDR", Restart;

    /// Whether the embedded broker lets devices in by their tokens, each to its own topics: true or false
    embedded_broker_auth: bool = false, "BOOL", Restart;

    /// Topic of the bridge, where plain jtis and signed tokens are announced and taken in
    bridge_topic: String = "jwt_revoked".into(), "TOPIC", Restart;
    /// Realm that the bridge speaks of
    bridge_realm: String, "NAME", Restart;
    /// What the bridge takes in as revocations: off, signed tokens, or plain jtis too
    bridge_in: BridgeIn = BridgeIn::Off, "off|signed|plain", Restart;
    /// Whether the bridge announces the jti of each token that is revoked: true or false
    bridge_out: bool = false, "BOOL", Restart;
    /// Messages a second that the bridge looks at; what comes beyond is dropped
    bridge_per_second: u32 = 50, "N", Restart;
    /// Revocations a day that the bridge records; what comes beyond is dropped
    bridge_per_day: u32 = 10_000, "N", Restart;

    /// How the live session of a revoked device is ended: off, takeover, emqx or rabbitmq
    sessions: SessionsKind = SessionsKind::Off, "off|takeover|emqx|rabbitmq", Restart;
    /// Management API of the broker, for emqx and rabbitmq: http://host:18083
    sessions_url: String, "URL", Restart;
    /// User name or API key there
    sessions_user: String, "NAME", Restart;
    /// File with its password
    sessions_password_file: PathBuf, "FILE", Restart;
    /// Certificates that vouch for an https management API, PEM
    sessions_ca: PathBuf, "FILE", Restart;

    /// First level of every topic
    prefix: String = PREFIX_DEFAULT.into(), "TOPIC", Restart;
    /// Largest content of one retained message, bytes
    chunk_bytes: usize = CHUNK_BYTES_DEFAULT, "BYTES", Restart;
    /// How often a manifest is sealed again without news, seconds
    heartbeat_seconds: u64 = 30, "SECONDS", Reload;
    /// How long superseded objects stay retained, seconds
    grace_seconds: u64 = 600, "SECONDS", Reload;
    /// Rate of false positives of the published filter; the best is chosen unless given
    false_positive_rate: f64, "RATE", Restart;
    /// An epoch older than this is rebuilt if anything in it has expired, seconds
    epoch_age_seconds: u64 = 24 * 3600, "SECONDS", Restart;
    /// An epoch is rebuilt when this share of its base has expired
    epoch_dead_share: f64 = 0.25, "SHARE", Restart;
    /// An epoch is rebuilt when what came since takes this share of its base
    epoch_recent_share: f64 = 0.25, "SHARE", Restart;
    /// How long a token of this server's issuer lives, unless the template of its realm or whoever asks says otherwise, seconds
    token_lifetime_seconds: u64 = 3600, "SECONDS", Restart;
    /// Topic on which a device awaits its tokens; {device_id} stands for it, {realm} for its realm
    token_topic: String = TokenTopic::DEFAULT.into(), "TEMPLATE", Restart;
    /// Whether tokens travel to devices in clear, for devices that cannot open them: true or false. Whoever reads the broker can use them
    clear_tokens: bool = false, "BOOL", Restart;
    /// How long the leading server leads without a sign of life, seconds
    lease_seconds: u64 = 6, "SECONDS", Restart;

    /// Longest time that one request may take, body included, seconds
    request_timeout_seconds: u64 = 30, "SECONDS", Reload;
    /// Requests served at a time; more are asked to come back
    concurrent_requests: usize = 512, "N", Reload;
    /// Requests a second that one credential may make, unless it says otherwise; unlimited unless given
    requests_per_second: u32, "N", Reload;
    /// Revocations a day that one credential may make, unless it says otherwise; unlimited unless given
    bulk_per_day: u64, "N", Reload;
    /// Whether a cutoff of a whole realm takes effect only when a second credential confirms it: true or false
    approve: bool = false, "BOOL", Restart;

    /// What is logged: error, warn, info, debug, trace, or targets with levels
    log: String, "LEVEL", Reload;
    /// How logs are written: text or json
    log_format: LogFormat, "FORMAT", Restart;
}
