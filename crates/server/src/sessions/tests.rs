//! Over the ledger in memory, with management APIs that say what the test wants; and the broker inside the process.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Mutex;

use revocast_core::{
    EnvelopeKey, FingerprintFunction, Fingerprinter, RealmKey, SigningKey, UnixMillis, UnixTime, Width,
};
use tokio::time::timeout;

use super::*;
use crate::config::{LedgerChoice, Management, SessionsConfig};
use crate::ledger::{Action, Expiry, Issuance, MemoryLedger, NewDevice, NewToken, Order, Realm, Renewal, Request};

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: u64 = 1_800_000_000;

fn realm() -> RealmId {
    RealmId::new("fleet").unwrap()
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_secs(NOW + secs)
}

/// Remembers whose session was to be ended; the first few times it fails.
#[derive(Debug, Default)]
struct Scripted {
    ended: Mutex<Vec<String>>,
    failures: Mutex<u32>,
}

impl Sessions for Scripted {
    fn end<'a>(&'a self, client_id: &'a str) -> SessionsFuture<'a> {
        Box::pin(async move {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(SessionsError::Unreachable { cause: "scripted".to_owned() });
            }
            self.ended.lock().unwrap().push(client_id.to_owned());
            Ok(Found::Ended)
        })
    }
}

struct Site {
    ledger: Arc<MemoryLedger>,
    sessions: Arc<Scripted>,
    _running: JoinSet<()>,
}

impl Site {
    /// A realm, and a server that leads and follows it.
    async fn new(failures: u32) -> Self {
        let ledger = Arc::new(MemoryLedger::new());
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48);
        ledger.create_realm(Realm::new(realm(), "i", fingerprinter, at(0)), Vec::new()).await.unwrap();
        let sessions = Arc::new(Scripted { failures: Mutex::new(failures), ..Scripted::default() });
        let mut running = JoinSet::new();
        running.spawn(run(Watch {
            sessions: Arc::clone(&sessions) as Arc<dyn Sessions>,
            ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
            office: watch::channel(Office::Leading).1,
            metrics: Arc::new(Metrics::new(UnixMillis::from_millis(0))),
        }));
        let site = Self { ledger, sessions, _running: running };
        // Only what is recorded from now on is followed: until the first device comes through, it has not begun.
        site.enroll("first").await;
        for number in 0.. {
            let jti = format!("first-{number}");
            site.issue("first", &jti, None).await;
            site.revoke(&jti).await;
            if timeout(Duration::from_millis(50), site.ends("first")).await.is_ok() {
                break;
            }
        }
        site
    }

    async fn enroll(&self, name: &str) {
        let device = NewDevice {
            id: DeviceId::new(name).unwrap(),
            signing: SigningKey::from_seed([7; 32]).public(),
            sealing: EnvelopeKey::from_seed([9; 32]).public(),
            subject: format!("sub-{name}"),
            audience: Vec::new(),
            replace: false,
            actor: "a".to_owned(),
        };
        self.ledger.enroll(realm(), at(0), device).await.unwrap();
    }

    async fn issue(&self, device: &str, jti: &str, parent: Option<&str>) {
        let token = NewToken {
            jti: jti.to_owned(),
            iat: at(10),
            exp: at(3_600),
            sub: Some(format!("sub-{device}")),
            kid: Some(format!("key-of-{device}")),
            client: None,
        };
        let order = Order {
            token,
            device: Some(DeviceId::new(device).unwrap()),
            renewal: parent.map(|parent| Renewal { counter: None, parent: Some(parent.to_owned()) }),
            refresh: None,
            revoke_parent: parent.is_some(),
            actor: "a".to_owned(),
        };
        let issued = self.ledger.issue(realm(), at(10), order).await.unwrap();
        assert!(matches!(issued, Issuance::Issued { .. }), "{issued:?}");
    }

    async fn append(&self, action: Action) {
        let request = Request { action, reason: None, actor: "a".to_owned() };
        self.ledger.append(realm(), at(20), vec![request]).await.unwrap();
    }

    async fn revoke(&self, jti: &str) {
        self.append(Action::Revoke { jti: jti.to_owned(), exp: Expiry::Claimed(at(100)) }).await;
    }

    fn was_ended(&self, name: &str) -> bool {
        self.sessions.ended.lock().unwrap().iter().any(|ended| ended == name)
    }

    /// Waits until the session of a device was ended.
    async fn ends(&self, name: &str) {
        let wait = async {
            while !self.was_ended(name) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("its session ends");
    }

    /// Lets everything that was recorded until now come through: another device is enrolled and revoked behind it.
    async fn settle(&self, marker: &str) {
        self.enroll(marker).await;
        self.issue(marker, marker, None).await;
        self.revoke(marker).await;
        self.ends(marker).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_a_device_ends_with_its_newest_token() {
    let site = Site::new(0).await;
    for name in ["gate", "door"] {
        site.enroll(name).await;
        site.issue(name, &format!("{name}-1"), None).await;
    }
    // Renewed, and the one before revoked for that: its session goes on.
    site.issue("gate", "gate-2", Some("gate-1")).await;
    site.revoke("nobody-s").await;
    site.settle("one").await;
    assert!(!site.was_ended("gate") && !site.was_ended("door"));
    site.revoke("gate-2").await;
    site.ends("gate").await;
    // A device that is dismissed has no newest token any more, and its tokens are revoked.
    let door = DeviceId::new("door").unwrap();
    site.ledger.dismiss(realm(), at(20), door, None, "a".to_owned()).await.unwrap();
    site.ends("door").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cutoff_ends_the_sessions_in_its_scope() {
    let site = Site::new(0).await;
    for name in ["gate", "door", "lamp"] {
        site.enroll(name).await;
        site.issue(name, &format!("{name}-1"), None).await;
    }
    // Before they were issued.
    site.append(Action::Cutoff { scope: Scope::Realm, not_before: at(10) }).await;
    site.settle("one").await;
    assert!(!["gate", "door", "lamp"].iter().any(|name| site.was_ended(name)));
    site.append(Action::Cutoff { scope: Scope::Sub("sub-door".to_owned()), not_before: at(11) }).await;
    site.ends("door").await;
    site.append(Action::Cutoff { scope: Scope::Kid("key-of-lamp".to_owned()), not_before: at(11) }).await;
    site.ends("lamp").await;
    site.settle("two").await;
    assert!(!site.was_ended("gate"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_answer_is_asked_again() {
    let site = Site::new(0).await;
    *site.sessions.failures.lock().unwrap() = 2;
    site.enroll("gate").await;
    site.issue("gate", "gate-1", None).await;
    site.revoke("gate-1").await;
    site.ends("gate").await;
    assert_eq!(*site.sessions.failures.lock().unwrap(), 0);
}

/// A management API that gives these answers, one after the other, and tells what it was asked.
fn api(answers: Vec<(u16, String)>) -> (Management, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let mut answers = VecDeque::from(answers);
        let mut asked = Vec::new();
        while let Some((status, body)) = answers.pop_front() {
            let (mut socket, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let (mut line, mut authorized) = (String::new(), String::new());
            reader.read_line(&mut line).unwrap();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                if header.trim().is_empty() {
                    break;
                }
                if let Some((name, value)) = header.split_once(':')
                    && name.eq_ignore_ascii_case("authorization")
                {
                    value.trim().clone_into(&mut authorized);
                }
            }
            asked.push(format!("{} {authorized}", line.trim().trim_end_matches(" HTTP/1.1")));
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let _ = reader.read(&mut [0; 16]);
        }
        asked
    });
    // A secret comes from a file only, so the configuration makes it.
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "pass\n").unwrap();
    let choices = crate::config::Choices {
        data: Some(folder.path().to_owned()),
        broker: Some("mqtt://b".to_owned()),
        sessions: Some(crate::config::SessionsKind::Emqx),
        sessions_url: Some(url),
        sessions_user: Some("key".to_owned()),
        sessions_password_file: Some(secret),
        ..Default::default()
    };
    let config = choices.check().unwrap();
    assert_eq!(config.ledger, LedgerChoice::Embedded);
    let Some(SessionsConfig::Emqx(management)) = config.sessions else { panic!("no management API") };
    (management, asked)
}

/// `key:pass`
const BASIC: &str = "Basic a2V5OnBhc3M=";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emqx_is_asked_to_end_a_client() {
    let (management, asked) = api(vec![(204, String::new()), (404, "{}".to_owned()), (401, "{}".to_owned())]);
    let emqx = Emqx::new(&management).unwrap();
    assert_eq!(emqx.end("gate-7").await.unwrap(), Found::Ended);
    assert_eq!(emqx.end("gate/7").await.unwrap(), Found::Absent);
    assert!(matches!(emqx.end("gate-7").await, Err(SessionsError::Refused { request: "DELETE", status: 401 })));
    let path = |name: &str| format!("DELETE /api/v5/clients/{name} {BASIC}");
    assert_eq!(asked.join().unwrap(), [path("gate-7"), path("gate%2F7"), path("gate-7")]);
    assert!(matches!(emqx.end("gate-7").await, Err(SessionsError::Unreachable { .. })), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_is_asked_which_connection_it_is() {
    let page = |of: usize, items: &str| (200, format!(r#"{{"page_count":{of},"items":[{items}]}}"#));
    let one = |name: &str, id: &str| format!(r#"{{"name":"{name}","client_properties":{{"client_id":"{id}"}}}}"#);
    let (management, asked) = api(vec![
        page(2, &one("a -> b", "door")),
        page(2, &format!(r#"{},{{"name":"amqp","client_properties":{{}}}}"#, one("c -> d", "gate"))),
        (204, String::new()),
        page(1, &one("a -> b", "door")),
        (200, "<html>".to_owned()),
        (403, String::new()),
    ]);
    let rabbit = RabbitMq::new(&management).unwrap();
    assert_eq!(rabbit.end("gate").await.unwrap(), Found::Ended);
    assert_eq!(rabbit.end("gate").await.unwrap(), Found::Absent);
    assert!(matches!(rabbit.end("gate").await, Err(SessionsError::Unreadable { .. })));
    assert!(matches!(rabbit.end("gate").await, Err(SessionsError::Refused { request: "GET", status: 403 })));
    let list =
        |page: u32| format!("GET /api/connections?page={page}&page_size=500&columns=name,client_properties {BASIC}");
    let end = format!("DELETE /api/connections/c%20-%3E%20d {BASIC}");
    assert_eq!(asked.join().unwrap(), [list(1), list(2), end, list(1), list(1), list(1)]);
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_ends_the_connection_of_a_client() {
    use crate::broker::{BrokerConfig, BrokerUrl, EmbeddedBroker, LinkState, LocalBroker as _};
    let mut local = EmbeddedBroker::start(([127, 0, 0, 1], 0).into(), None).await.unwrap();
    let url = BrokerUrl::local(local.ready().await.unwrap());
    let connect = |name: &str| {
        let probe = format!("revocast/_probe/{name}");
        Broker::connect(BrokerConfig { url: url.clone(), client_id: name.into(), probe, credentials: None, tls: None })
    };
    let ((server, _server), (device, _device)) = (connect("server"), connect("gate"));
    let reached = async |broker: &Broker, wanted: u64| {
        let mut state = broker.state();
        let up = state.wait_for(|state| matches!(state, LinkState::Up { connection } if *connection >= wanted));
        timeout(PATIENCE, up).await.expect("a connection").unwrap();
    };
    reached(&server, 1).await;
    reached(&device, 1).await;
    assert_eq!(TakeOver(server.clone()).end("gate").await.unwrap(), Found::Ended);
    // It was thrown out, and nothing keeps it from coming back here.
    reached(&device, 2).await;
    assert_eq!(*server.state().borrow(), LinkState::Up { connection: 1 });
    local.stop().await;
}
