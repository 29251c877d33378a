//! What a device is told at start: where the broker is, whom to trust, which realm to follow.
//!
//! Everything is parsed here, once. There is no default for whom to trust, nor for where state is
//! kept (see [`Store`](crate::Store)): both are decisions that somebody has to make.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use revocast_core::limits::{DEVICE_ID_BYTES_MAX, ROOTS_MAX};
use revocast_core::replica::Config as ReplicaConfig;
use revocast_core::{DeviceId, DeviceIdError, PublicKey, RealmId, Trust, UnixTime};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::watch;

use crate::inbox::InboxConfig;
use crate::validator::LiveKeys;

/// First level of every topic unless configured.
pub const DEFAULT_PREFIX: &str = "revocast";

/// Bytes of a client id. MQTT 3.1.1 obliges brokers to 23; all in the field take 64.
const CLIENT_ID_BYTES_MAX: usize = DEVICE_ID_BYTES_MAX;

/// Bytes of a prefix: with realm and address it stays far below what brokers accept.
const PREFIX_BYTES_MAX: usize = 256;

/// Bytes of a trust file: sixteen keys and room for white space.
const TRUST_FILE_BYTES_MAX: u64 = 16 * 1024;

/// How a device follows one realm.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    pub(crate) broker: BrokerUrl,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) shows_token: bool,
    pub(crate) tls: Option<TlsRoots>,
    pub(crate) client_id: ClientId,
    pub(crate) prefix: Prefix,
    pub(crate) realm: RealmId,
    pub(crate) trust: Trust,
    pub(crate) replica: ReplicaConfig,
    pub(crate) inbox: Option<InboxConfig>,
    pub(crate) issuer_keys: Option<LiveKeys>,
}

impl DeviceConfig {
    /// Takes what nobody else can decide; [`ReplicaConfig::exact`] suits most devices.
    #[must_use]
    pub fn new(broker: BrokerUrl, client_id: ClientId, realm: RealmId, trust: Trust, replica: ReplicaConfig) -> Self {
        Self {
            broker,
            credentials: None,
            shows_token: false,
            tls: None,
            client_id,
            prefix: Prefix::default(),
            realm,
            trust,
            replica,
            inbox: None,
            issuer_keys: None,
        }
    }

    /// User name and password for the broker.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Shows the device's own token to the broker as its password, for brokers that ask the server whom to let in. Needs an
    /// inbox. What [`with_credentials`](Self::with_credentials) named is shown while there is no token, and by turns with a
    /// token that the broker refused, but never in the place of one that is known to be revoked. The user name is of that,
    /// or the realm's name.
    #[must_use]
    pub const fn with_token_as_password(mut self) -> Self {
        self.shows_token = true;
        self
    }

    /// Who vouches for the broker's certificate; required for `mqtts`.
    #[must_use]
    pub fn with_tls(mut self, roots: TlsRoots) -> Self {
        self.tls = Some(roots);
        self
    }

    /// Holds a token of the device's own, and signs what the device says: see [`Device::inbox`](crate::Device::inbox).
    #[must_use]
    pub fn with_inbox(mut self, inbox: InboxConfig) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Keeps these keys up to date with what the realm's server publishes: those that tokens are signed with. Without it
    /// they are only followed for an inbox.
    #[must_use]
    pub fn with_issuer_keys(mut self, keys: LiveKeys) -> Self {
        self.issuer_keys = Some(keys);
        self
    }

    /// Another first part of the topics than [`DEFAULT_PREFIX`].
    #[must_use]
    pub fn with_prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }
}

/// A random seed for [`ReplicaConfig`], from the operating system.
pub fn random_seed() -> Result<u64, RandomError> {
    getrandom::u64().map_err(RandomError)
}

/// The operating system gave no random bytes.
#[derive(Debug, Error)]
#[error("the operating system gave no random bytes")]
pub struct RandomError(#[source] pub(crate) getrandom::Error);

/// `mqtt://host[:port]` or `mqtts://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    secure: bool,
    host: String,
    port: u16,
}

impl BrokerUrl {
    /// Whether it is reached over TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Host name or address; an IPv6 address stands in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port; 1883 or 8883 unless given.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
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
        // The colon of a port stands after the bracket that ends an IPv6 address.
        let split = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => Some((host, port)),
            _ => None,
        };
        let (host, port) = match split {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| BrokerUrlError::Port { found: port.to_owned() })?;
                (host, port)
            }
            None => (rest, if secure { 8883 } else { 1883 }),
        };
        let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let good = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
            }
        };
        if !good {
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

/// A device's own token, as it is shown to a broker.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ShownToken {
    pub(crate) text: Box<str>,
    /// It is known to be, so nothing else is shown instead.
    pub(crate) revoked: bool,
}

/// Where a [`Link`](crate::Link) finds the device's own token, as that changes. The token is never printed.
#[derive(Clone)]
pub struct TokenFeed(pub(crate) watch::Receiver<Option<ShownToken>>);

impl fmt::Debug for TokenFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenFeed(..)")
    }
}

/// The certificates that vouch for a broker, and the device's own if the broker wants one.
#[derive(Clone)]
pub struct TlsRoots {
    roots: Arc<RootCertStore>,
    config: Arc<ClientConfig>,
}

impl TlsRoots {
    /// Reads certificates from a PEM file.
    pub fn from_pem_file(path: &Path) -> Result<Self, TlsRootsError> {
        let bytes = std::fs::read(path).map_err(|source| TlsRootsError::Io { path: path.to_owned(), source })?;
        Self::from_pem(&bytes)
    }

    /// Reads certificates from PEM text.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, TlsRootsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bytes) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err(TlsRootsError::Empty);
        }
        let roots = Arc::new(roots);
        let config = Arc::new(client(&roots)?.with_no_client_auth());
        Ok(Self { roots, config })
    }

    /// Adds the certificate by which the broker knows this device, from PEM files of its chain and its private key.
    pub fn with_identity_files(self, certificate: &Path, key: &Path) -> Result<Self, TlsRootsError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| TlsRootsError::Io { path: path.to_owned(), source });
        self.with_identity(&read(certificate)?, &read(key)?)
    }

    /// Adds the certificate by which the broker knows this device, from PEM text of its chain and its private key.
    pub fn with_identity(self, certificate: &[u8], key: &[u8]) -> Result<Self, TlsRootsError> {
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() {
            return Err(TlsRootsError::Empty);
        }
        let secret = PrivateKeyDer::from_pem_slice(key)?;
        let config = client(&self.roots)?.with_client_auth_cert(chain, secret).map_err(TlsRootsError::Identity)?;
        Ok(Self { config: Arc::new(config), ..self })
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// The provider is handed over: with none installed, or two, the plain builder panics.
fn client(roots: &Arc<RootCertStore>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(Arc::clone(roots)))
}

impl fmt::Debug for TlsRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsRoots(..)")
    }
}

/// Why certificates cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum TlsRootsError {
    /// The file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text is not PEM.
    #[error("the certificates are not PEM")]
    Pem(#[from] pem::Error),
    /// A certificate in it cannot vouch for others.
    #[error("a certificate cannot be a root")]
    Certificate(#[from] rustls::Error),
    /// The device's certificate and its private key do not belong together.
    #[error("the certificate of this device cannot be used with its key")]
    Identity(#[source] rustls::Error),
    /// Nothing in it.
    #[error("there is no certificate")]
    Empty,
}

/// The stable name of a device: of its MQTT session and in the topic of its reports.
///
/// Two devices with one name push each other off the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientId(DeviceId);

impl ClientId {
    /// Accepts 1 to 64 letters, digits, hyphens, underscores and dots.
    pub fn new(text: &str) -> Result<Self, ClientIdError> {
        DeviceId::new(text).map(Self).map_err(|error| match error {
            DeviceIdError::Empty => ClientIdError::Empty,
            DeviceIdError::TooLong { bytes } => ClientIdError::TooLong { bytes },
            DeviceIdError::Character { byte } => ClientIdError::Character { byte },
        })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The name of the device in topics: the same.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no client id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientIdError {
    /// A broker would choose a name of its own, another one after each reconnect.
    #[error("the client id is empty")]
    Empty,
    /// Longer than brokers must accept.
    #[error("the client id has {bytes} bytes, more than {CLIENT_ID_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something that means more than itself in a topic.
    #[error("the client id holds byte 0x{byte:02x}; only letters, digits, hyphens, underscores and dots are allowed")]
    Character {
        /// The first one that is not allowed.
        byte: u8,
    },
}

/// The first part of every topic: one or more levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Accepts topic levels without wildcards, none of them empty, not beginning with `$`.
    pub fn new(text: &str) -> Result<Self, PrefixError> {
        if text.len() > PREFIX_BYTES_MAX {
            return Err(PrefixError::TooLong { bytes: text.len() });
        }
        if text.split('/').any(str::is_empty) {
            return Err(PrefixError::EmptyLevel);
        }
        match text.chars().find(|c| matches!(c, '+' | '#' | '\0') || c.is_control()) {
            Some(character) => Err(PrefixError::Character { character }),
            None if text.starts_with('$') => Err(PrefixError::Character { character: '$' }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(DEFAULT_PREFIX.to_owned())
    }
}

/// Why a text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// Longer than sensible.
    #[error("the prefix has {bytes} bytes, more than {PREFIX_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Nothing, or two slashes in a row, or one at an end.
    #[error("the prefix has an empty topic level")]
    EmptyLevel,
    /// A wildcard, a control character, or the sign of topics that belong to the broker.
    #[error("the prefix holds {character:?}")]
    Character {
        /// The first one that is not allowed.
        character: char,
    },
}

/// The JSON shape of a trust file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustShape {
    threshold: u8,
    roots: Vec<String>,
    not_before: u64,
}

/// Reads a trust file: the root keys that a device pins.
///
/// # Shape
///
/// `{"threshold":1,"roots":["<32 bytes, base64url without padding>"],"not_before":<seconds>}`, with
/// nothing else in it. `not_before` is when it was made: no signed object can be older.
pub fn trust_from_file(path: &Path) -> Result<Trust, TrustError> {
    let read = |source| TrustError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > TRUST_FILE_BYTES_MAX {
        return Err(TrustError::TooLarge { bytes });
    }
    trust_from_json(&std::fs::read(path).map_err(read)?)
}

/// The same, from the text of the file.
pub fn trust_from_json(bytes: &[u8]) -> Result<Trust, TrustError> {
    let shape: TrustShape = serde_json::from_slice(bytes)?;
    if shape.roots.is_empty() || shape.roots.len() > ROOTS_MAX {
        return Err(TrustError::Roots { count: shape.roots.len() });
    }
    let mut roots = Vec::with_capacity(shape.roots.len());
    for (number, text) in shape.roots.iter().enumerate() {
        let key = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(PublicKey)
            .ok_or(TrustError::Root { number })?;
        if roots.contains(&key) {
            // A threshold of two must mean two keys.
            return Err(TrustError::Twice { number });
        }
        roots.push(key);
    }
    if shape.threshold == 0 || usize::from(shape.threshold) > roots.len() {
        return Err(TrustError::Threshold { threshold: shape.threshold, roots: roots.len() });
    }
    Ok(Trust { roots, threshold: shape.threshold, not_before: UnixTime::from_secs(shape.not_before) })
}

/// Why a trust file cannot be used.
#[derive(Debug, Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error("the trust file {} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No trust file is that long.
    #[error("the trust file has {bytes} bytes, more than {TRUST_FILE_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Not the JSON it should be.
    #[error("the trust file is not of the shape {{\"threshold\":…,\"roots\":[…],\"not_before\":…}}")]
    Shape(#[from] serde_json::Error),
    /// None, or too many.
    #[error("the trust file names {count} root keys; 1 to {ROOTS_MAX} are allowed")]
    Roots {
        /// How many it names.
        count: usize,
    },
    /// Not 32 bytes in base64url without padding.
    #[error("root key {number} of the trust file is not 32 bytes in base64url")]
    Root {
        /// Its place in the list, from 0.
        number: usize,
    },
    /// Named a second time.
    #[error("root key {number} of the trust file stands there twice")]
    Twice {
        /// The second place, from 0.
        number: usize,
    },
    /// None, or more than there are keys.
    #[error("the trust file asks for {threshold} signatures of {roots} root keys")]
    Threshold {
        /// What it asks for.
        threshold: u8,
        /// How many keys it names.
        roots: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls_are_read_and_printed() {
        for (text, printed) in [
            ("mqtt://broker", "mqtt://broker:1883"),
            ("mqtts://broker.example:1", "mqtts://broker.example:1"),
            ("mqtt://127.0.0.1:0/", "mqtt://127.0.0.1:0"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
            ("mqtts://[::1]:99", "mqtts://[::1]:99"),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().map(|url| url.to_string()), Ok(printed.to_owned()));
        }
    }

    #[test]
    fn what_is_no_broker_url_is_refused() {
        for text in ["broker", "http://broker", "tcp://broker:1"] {
            assert_eq!(text.parse::<BrokerUrl>(), Err(BrokerUrlError::Scheme), "{text}");
        }
        assert_eq!("mqtt://u:p@broker".parse::<BrokerUrl>(), Err(BrokerUrlError::Credentials));
        for text in ["mqtt://broker:", "mqtt://broker:x", "mqtt://broker:65536", "mqtt://broker:-1"] {
            assert!(matches!(text.parse::<BrokerUrl>(), Err(BrokerUrlError::Port { .. })), "{text}");
        }
        for text in ["mqtt://", "mqtt://:1883", "mqtt://a/b", "mqtt://[x]", "mqtt://::1:1", "mqtt://a b"] {
            assert!(matches!(text.parse::<BrokerUrl>(), Err(BrokerUrlError::Host { .. })), "{text}");
        }
    }

    #[test]
    fn client_ids_and_prefixes_cannot_reach_other_topics() {
        assert!(ClientId::new("agent-7.lab_2").is_ok());
        assert_eq!(ClientId::new(""), Err(ClientIdError::Empty));
        assert_eq!(ClientId::new("a/b"), Err(ClientIdError::Character { byte: b'/' }));
        assert_eq!(ClientId::new("+"), Err(ClientIdError::Character { byte: b'+' }));
        assert_eq!(ClientId::new(&"x".repeat(65)), Err(ClientIdError::TooLong { bytes: 65 }));
        assert!(Prefix::new("site/revocast").is_ok());
        assert_eq!(Prefix::new(""), Err(PrefixError::EmptyLevel));
        assert_eq!(Prefix::new("a//b"), Err(PrefixError::EmptyLevel));
        assert_eq!(Prefix::new("a/"), Err(PrefixError::EmptyLevel));
        assert_eq!(Prefix::new("a/#"), Err(PrefixError::Character { character: '#' }));
        assert_eq!(Prefix::new("$SYS"), Err(PrefixError::Character { character: '$' }));
    }

    fn key(byte: u8) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([byte; 32])
    }

    #[test]
    fn a_trust_file_is_read_whole_or_not_at_all() {
        let text = format!(r#"{{"threshold":2,"roots":["{}","{}"],"not_before":1700000000}}"#, key(1), key(2));
        let trust = trust_from_json(text.as_bytes()).unwrap();
        assert_eq!(trust.roots, [PublicKey([1; 32]), PublicKey([2; 32])]);
        assert_eq!((trust.threshold, trust.not_before), (2, UnixTime::from_secs(1_700_000_000)));

        let with = |threshold: i32, roots: &str, extra: &str| {
            trust_from_json(
                format!(r#"{{"threshold":{threshold},"roots":[{roots}],"not_before":1{extra}}}"#).as_bytes(),
            )
        };
        let one = format!("\"{}\"", key(1));
        assert!(matches!(with(0, &one, ""), Err(TrustError::Threshold { threshold: 0, roots: 1 })));
        assert!(matches!(with(2, &one, ""), Err(TrustError::Threshold { threshold: 2, roots: 1 })));
        assert!(matches!(with(1, "", ""), Err(TrustError::Roots { count: 0 })));
        assert!(matches!(with(2, &format!("{one},{one}"), ""), Err(TrustError::Twice { number: 1 })));
        assert!(matches!(with(1, "\"AAAA\"", ""), Err(TrustError::Root { number: 0 })));
        assert!(matches!(with(1, &format!("\"{}=\"", key(1)), ""), Err(TrustError::Root { number: 0 })));
        assert!(matches!(with(-1, &one, ""), Err(TrustError::Shape(_))));
        assert!(matches!(with(1, &one, r#","treshold":1"#), Err(TrustError::Shape(_))));
        let many = vec![one; 17].join(",");
        assert!(matches!(with(1, &many, ""), Err(TrustError::Roots { count: 17 })));
    }

    #[test]
    fn text_without_certificates_is_refused() {
        assert!(matches!(TlsRoots::from_pem(b"nothing"), Err(TlsRootsError::Empty)));
    }
}
