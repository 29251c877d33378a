//! The management APIs of EMQX and `RabbitMQ`, as far as they end sessions.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::{Found, Sessions, SessionsError, SessionsFuture};
use crate::config::Management;

/// A management API that takes longer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections asked for at a time, and pages of them: half a million connections.
const PAGE: usize = 500;
const PAGES_MAX: usize = 1_000;

/// Bytes of one page: a kilobyte and more for each connection.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One management API and how to speak with it.
#[derive(Clone)]
struct Client {
    agent: Agent,
    url: String,
    authorization: String,
}

impl Client {
    fn new(management: &Management) -> Result<Self, ManagementError> {
        let Management { url, user, password, ca } = management;
        let mut config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        if let Some(path) = ca {
            let unusable = |what: String| ManagementError { path: path.clone(), what };
            let pem = fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let mut roots: Vec<Certificate<'static>> = Vec::new();
            for item in parse_pem(&pem) {
                if let PemItem::Certificate(root) = item.map_err(|error| unusable(error.to_string()))? {
                    roots.push(root);
                }
            }
            if roots.is_empty() {
                return Err(unusable("it holds no certificate".to_owned()));
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.root_certs(RootCerts::new_with_certs(&roots)).build());
        }
        let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose())));
        Ok(Self { agent: config.build().new_agent(), url: url.clone(), authorization })
    }

    fn delete(&self, path: &str) -> Result<u16, SessionsError> {
        let request = self.agent.delete(format!("{}{path}", self.url)).header("authorization", &self.authorization);
        request.call().map(|response| response.status().as_u16()).map_err(|error| unreachable(&error))
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, SessionsError> {
        let request = self.agent.get(format!("{}{path}", self.url)).header("authorization", &self.authorization);
        let mut response = request.call().map_err(|error| unreachable(&error))?;
        match response.status().as_u16() {
            200 => {}
            status => return Err(SessionsError::Refused { request: "GET", status }),
        }
        let read = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        read.map_err(|error| SessionsError::Unreadable { what: error.to_string() })
    }

    /// The client blocks, so it does that on a thread for it.
    async fn blocking(
        &self,
        ask: impl FnOnce(&Self) -> Result<Found, SessionsError> + Send + 'static,
    ) -> Result<Found, SessionsError> {
        let client = self.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&client)).await;
        asked.unwrap_or_else(|_| Err(SessionsError::Unreachable { cause: "the server is stopping".to_owned() }))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.url)
    }
}

fn unreachable(error: &ureq::Error) -> SessionsError {
    SessionsError::Unreachable { cause: error.to_string() }
}

/// What was deleted, by the answer: gone already is as good as deleted.
fn deleted(status: u16) -> Result<Found, SessionsError> {
    match status {
        200 | 202 | 204 => Ok(Found::Ended),
        404 => Ok(Found::Absent),
        status => Err(SessionsError::Refused { request: "DELETE", status }),
    }
}

/// A text as one segment of a path (RFC 3986 section 2.3).
fn segment(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |path, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            path + char::from(byte).encode_utf8(&mut [0; 4])
        }
        other => path + &format!("%{other:02X}"),
    })
}

/// EMQX 5: `DELETE /api/v5/clients/{clientid}`.
#[derive(Debug)]
pub struct Emqx(Client);

impl Emqx {
    /// The one with this management API; user and password are an API key and its secret.
    pub fn new(management: &Management) -> Result<Self, ManagementError> {
        Client::new(management).map(Self)
    }
}

impl Sessions for Emqx {
    fn end<'a>(&'a self, client_id: &'a str) -> SessionsFuture<'a> {
        let path = format!("/api/v5/clients/{}", segment(client_id));
        Box::pin(self.0.blocking(move |client| deleted(client.delete(&path)?)))
    }
}

/// `RabbitMQ`: a connection has a name of the broker's own, so it is looked for by the client id that it shows.
#[derive(Debug)]
pub struct RabbitMq(Client);

impl RabbitMq {
    /// The one with this management API; the user needs the tag `administrator`.
    pub fn new(management: &Management) -> Result<Self, ManagementError> {
        Client::new(management).map(Self)
    }
}

/// A page of connections, as far as it matters.
#[derive(Deserialize)]
struct Page {
    page_count: usize,
    items: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    name: String,
    #[serde(default)]
    client_properties: Properties,
}

#[derive(Default, Deserialize)]
struct Properties {
    client_id: Option<String>,
}

impl Sessions for RabbitMq {
    fn end<'a>(&'a self, client_id: &'a str) -> SessionsFuture<'a> {
        let wanted = client_id.to_owned();
        Box::pin(self.0.blocking(move |client| {
            let mut found = Found::Absent;
            for number in 1..=PAGES_MAX {
                let path = format!("/api/connections?page={number}&page_size={PAGE}&columns=name,client_properties");
                let page: Page = serde_json::from_slice(&client.get(&path)?)
                    .map_err(|error| SessionsError::Unreadable { what: error.to_string() })?;
                let names =
                    page.items.iter().filter(|one| one.client_properties.client_id.as_deref() == Some(&*wanted));
                for connection in names {
                    if deleted(client.delete(&format!("/api/connections/{}", segment(&connection.name)))?)?
                        == Found::Ended
                    {
                        found = Found::Ended;
                    }
                }
                if number >= page.page_count {
                    break;
                }
            }
            Ok(found)
        }))
    }
}

/// The certificates for the management API cannot be used; the operator's to mend.
#[derive(Debug, Error)]
#[error("{} cannot be used: {what}", .path.display())]
pub struct ManagementError {
    path: std::path::PathBuf,
    what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_connections_become_one_segment() {
        assert_eq!(segment("127.0.0.1:36349 -> 127.0.0.1:25674"), "127.0.0.1%3A36349%20-%3E%20127.0.0.1%3A25674");
        assert_eq!(
            (segment("../a/b"), segment("ü"), segment("gate-7")),
            ("..%2Fa%2Fb".into(), "%C3%BC".into(), "gate-7".into())
        );
    }

    /// As `RabbitMQ` 3.10.8 told it of an MQTT connection and of one that speaks AMQP.
    #[test]
    fn connections_are_read_as_rabbitmq_tells_them() {
        let told = r#"{"total_count":2,"item_count":2,"filtered_count":2,"page":1,"page_size":500,"page_count":1,"items":[
            {"client_properties":{"client_id":"gate-7","product":"MQTT client"},"name":"127.0.0.1:36349 -> 127.0.0.1:25674"},
            {"client_properties":{"capabilities":{"basic.nack":true},"product":"pika"},"name":"127.0.0.1:4 -> 127.0.0.1:5"}]}"#;
        let page: Page = serde_json::from_str(told).unwrap();
        let ids: Vec<_> = page.items.iter().map(|one| one.client_properties.client_id.as_deref()).collect();
        assert_eq!((page.page_count, ids), (1, vec![Some("gate-7"), None]));
    }
}
