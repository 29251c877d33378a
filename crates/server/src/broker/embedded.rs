//! A broker inside the process, for the demo and for small sites.
//!
//! Nothing of it is kept on disk: after a restart the publisher finds nothing retained and
//! publishes everything again, the same way it repairs any broker.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::config::{BrokerConfig, StorageConfig};
use mqtt5::broker::{BrokerShutdownHandle, MqttBroker};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Credentials, PACKET_BYTES_MAX};
use crate::hooks::{Act, Hooks};

/// Devices at a time; each costs a socket and a few tens of kilobytes.
const CLIENTS_MAX: usize = 10_000;

/// Messages that may wait for one device. A window of chunks is eight; the rest is room for live
/// deltas while a device fetches.
const QUEUE_MESSAGES_MAX: usize = 1_024;

/// Retained messages: two epochs of the largest artifacts at the default chunk size.
const RETAINED_MESSAGES_MAX: usize = 100_000;

/// How long connections may take to close.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What we need of any broker inside the process: that it starts, tells when it is ready, and stops.
pub trait LocalBroker: Sized + Send {
    /// Binds `listen` (port 0 takes any free one) and begins to serve; everybody may come in unless there is a door.
    /// Needs a tokio runtime.
    fn start(listen: SocketAddr, door: Option<Door>) -> impl Future<Output = Result<Self, EmbeddedBrokerError>> + Send;

    /// Waits until connections are accepted, and tells where.
    fn ready(&mut self) -> impl Future<Output = Result<SocketAddr, EmbeddedBrokerError>> + Send;

    /// Ends every connection and frees the port.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// The broker in use: mqtt5.
pub struct EmbeddedBroker {
    address: SocketAddr,
    ready: watch::Receiver<bool>,
    shutdown: BrokerShutdownHandle,
    task: JoinHandle<()>,
}

impl LocalBroker for EmbeddedBroker {
    async fn start(listen: SocketAddr, door: Option<Door>) -> Result<Self, EmbeddedBrokerError> {
        probe(listen)?;
        let config = BrokerConfig::new()
            .with_bind_address(listen)
            .with_max_clients(CLIENTS_MAX)
            .with_max_packet_size(PACKET_BYTES_MAX)
            .with_max_retained_message_size(PACKET_BYTES_MAX)
            .with_max_retained_messages(RETAINED_MESSAGES_MAX)
            .with_client_channel_capacity(QUEUE_MESSAGES_MAX)
            .with_storage(
                StorageConfig::new().with_persistence(false).with_max_queued_messages_per_client(QUEUE_MESSAGES_MAX),
            )
            // Our clients do not look at them, and they would wake idle devices every few seconds.
            .with_sys_topics_enabled(false);
        let fail = |error: mqtt5::error::MqttError| EmbeddedBrokerError::Failed { cause: error.to_string() };
        let mut broker = MqttBroker::with_config(config).await.map_err(fail)?;
        if let Some(door) = door {
            broker = broker.with_auth_provider(Arc::new(door));
        }
        let address =
            broker.local_addr().ok_or_else(|| EmbeddedBrokerError::Failed { cause: "it listens nowhere".into() })?;
        let ready = broker.ready_receiver();
        let shutdown = broker.shutdown_handle();
        let task = tokio::spawn(async move {
            if let Err(error) = broker.run().await {
                tracing::error!(%error, "the embedded broker failed");
            }
        });
        Ok(Self { address, ready, shutdown, task })
    }

    async fn ready(&mut self) -> Result<SocketAddr, EmbeddedBrokerError> {
        match self.ready.wait_for(|ready| *ready).await {
            Ok(_) => Ok(self.address),
            Err(_) => Err(EmbeddedBrokerError::Failed { cause: "it ended before it was ready".into() }),
        }
    }

    async fn stop(mut self) {
        self.shutdown.shutdown();
        let _ = tokio::time::timeout(STOP_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmbeddedBroker({})", self.address)
    }
}

/// Lets in this server, and whom the hooks let in.
pub struct Door {
    own: Credentials,
    hooks: Arc<OnceLock<Arc<Hooks>>>,
}

/// Whether something is allowed, once that is known.
type Allowed<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

impl Door {
    /// A door that opens for these credentials, and for devices from when on the hooks are there.
    #[must_use]
    pub const fn new(own: Credentials, hooks: Arc<OnceLock<Arc<Hooks>>>) -> Self {
        Self { own, hooks }
    }

    fn is_own(&self, connect: &ConnectPacket) -> bool {
        let user = connect.username.as_deref() == Some(&*self.own.username);
        user && connect.password.as_deref().is_some_and(|password| password.ct_eq(self.own.password.as_bytes()).into())
    }

    /// The user is who it was let in as, so the server's own name is the server.
    async fn may(&self, client_id: &str, user: Option<&str>, act: Act, topic: &str) -> bool {
        match (user, self.hooks.get()) {
            (Some(user), _) if user == self.own.username => true,
            (Some(user), Some(hooks)) => hooks.act(user, client_id, act, topic).await.is_allowed(),
            (_, None) | (None, _) => false,
        }
    }
}

impl AuthProvider for Door {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        _: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = mqtt5::error::Result<AuthResult>> + Send + 'a>> {
        Box::pin(async move {
            let user = connect.username.as_deref().unwrap_or_default();
            if self.is_own(connect) {
                return Ok(AuthResult::success_with_user(user));
            }
            let password = connect.password.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
            let admitted = match (self.hooks.get(), password) {
                (Some(hooks), Some(password)) => hooks.connect(user, &connect.client_id, password).await.is_allowed(),
                (None, _) | (_, None) => false,
            };
            // The hooks know no realm of the server's own name, so nobody else is taken for the server.
            Ok(if admitted { AuthResult::success_with_user(user) } else { AuthResult::fail(ReasonCode::NotAuthorized) })
        })
    }

    fn authorize_publish<'a>(&'a self, client_id: &str, user: Option<&'a str>, topic: &'a str) -> Allowed<'a> {
        let client_id = client_id.to_owned();
        Box::pin(async move { self.may(&client_id, user, Act::Publish, topic).await })
    }

    fn authorize_subscribe<'a>(&'a self, client_id: &str, user: Option<&'a str>, filter: &'a str) -> Allowed<'a> {
        let client_id = client_id.to_owned();
        Box::pin(async move { self.may(&client_id, user, Act::Subscribe, filter).await })
    }
}

/// Why there is no embedded broker.
#[derive(Debug, Error)]
pub enum EmbeddedBrokerError {
    /// Another program listens there: another broker, most often.
    #[error("{address} is in use; choose another with --embedded-broker, or port 0 for any free one")]
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
    /// The broker itself failed.
    #[error("the embedded broker failed: {cause}")]
    Failed {
        /// How.
        cause: String,
    },
}

/// Finds out what is wrong with an address, which the broker's own error does not tell.
fn probe(address: SocketAddr) -> Result<(), EmbeddedBrokerError> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(EmbeddedBrokerError::Busy { address }),
        Err(source) => Err(EmbeddedBrokerError::Listen { address, source }),
    }
}
