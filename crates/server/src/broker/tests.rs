//! Against the embedded broker, and against a socket that behaves badly.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Longer than any of these steps takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(address: SocketAddr, client_id: &str) -> BrokerConfig {
    let probe = format!("revocast/_probe/{client_id}");
    BrokerConfig { url: BrokerUrl::local(address), client_id: client_id.into(), probe, credentials: None, tls: None }
}

async fn up(broker: &Broker) -> u64 {
    let mut state = broker.state();
    let up = timeout(PATIENCE, state.wait_for(LinkState::is_up)).await.expect("no connection").unwrap().clone();
    match up {
        LinkState::Up { connection } => connection,
        LinkState::Connecting | LinkState::Down { .. } => unreachable!("waited for up"),
    }
}

#[cfg(feature = "embedded-broker")]
async fn local() -> (EmbeddedBroker, SocketAddr) {
    let mut broker = EmbeddedBroker::start(([127, 0, 0, 1], 0).into(), None).await.unwrap();
    let address = broker.ready().await.unwrap();
    assert_ne!(address.port(), 0);
    (broker, address)
}

#[test]
fn urls_are_read_strictly() {
    let read = |text: &str| text.parse::<BrokerUrl>().map(|url| url.to_string());
    assert_eq!(read("mqtt://host").unwrap(), "mqtt://host:1883");
    assert_eq!(read("mqtts://host.example/").unwrap(), "mqtts://host.example:8883");
    assert_eq!(read("mqtt://10.0.0.1:2000").unwrap(), "mqtt://10.0.0.1:2000");
    assert_eq!(read("mqtt://[::1]").unwrap(), "mqtt://[::1]:1883");
    assert_eq!(read("mqtts://[::1]:7").unwrap(), "mqtts://[::1]:7");
    assert_eq!(BrokerUrl::local("[::1]:7".parse().unwrap()), "mqtt://[::1]:7".parse().unwrap());
    for text in ["", "host", "http://host", "mqtt:/host", "tcp://host"] {
        assert_eq!(read(text), Err(BrokerUrlError::Scheme), "{text}");
    }
    assert_eq!(read("mqtt://user:secret@host"), Err(BrokerUrlError::Credentials));
    for text in ["mqtt://host:", "mqtt://host:x", "mqtt://host:65536", "mqtt://host:-1", "mqtt://host:1:2"] {
        assert!(matches!(read(text), Err(BrokerUrlError::Port { .. })), "{text}");
    }
    for text in ["mqtt://", "mqtt://:1", "mqtt://a b", "mqtt://a/b", "mqtt://a?b"] {
        assert!(matches!(read(text), Err(BrokerUrlError::Host { .. })), "{text}: {:?}", read(text));
    }
}

#[test]
fn a_pause_grows_and_has_a_limit() {
    for failures in 0..40 {
        let pause = backoff(failures);
        assert!(pause >= BACKOFF_MIN / 4 && pause <= BACKOFF_MAX + BACKOFF_MIN / 4, "{pause:?}");
    }
    assert!(backoff(0) <= BACKOFF_MIN + BACKOFF_MIN / 4);
}

#[test]
fn only_certificates_make_roots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    assert!(matches!(TlsRoots::from_pem_file(&path), Err(TlsRootsError::Io { .. })));
    std::fs::write(&path, "nothing here\n").unwrap();
    assert!(matches!(TlsRoots::from_pem_file(&path), Err(TlsRootsError::Empty { .. })));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
    assert!(matches!(TlsRoots::from_pem_file(&path), Err(TlsRootsError::Pem { .. })));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(matches!(TlsRoots::from_pem_file(&path), Err(TlsRootsError::Certificate { .. })));
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_retained_read_back_and_removed() {
    let (local, address) = local().await;
    let (broker, task) = Broker::connect(config(address, "publisher"));
    assert_eq!(up(&broker).await, 1);
    // Largest possible payloads, more of them than a window, all at once.
    let topics: Vec<String> = (0..20).map(|number| format!("revocast/a/e/1/list/{number}")).collect();
    let payload = |number: usize| vec![number as u8 + 1; SEALED_BYTES_MAX - number];
    let mut sends = tokio::task::JoinSet::new();
    for (number, topic) in topics.iter().enumerate() {
        let (broker, topic) = (broker.clone(), topic.clone());
        sends.spawn(async move { broker.publish(&topic, payload(number), true).await });
    }
    while let Some(sent) = sends.join_next().await {
        sent.unwrap().unwrap();
    }
    let found = broker.fetch_retained(&topics, PATIENCE).await.unwrap();
    for (number, (topic, found)) in found.into_iter().enumerate() {
        assert_eq!(topic, topics[number]);
        assert!(found == Some(payload(number)), "{topic}");
    }

    broker.publish(&topics[3], Vec::new(), true).await.unwrap();
    // Not retained: nobody finds it later.
    broker.publish("revocast/a/live", vec![1], false).await.unwrap();
    let asked = vec![topics[3].clone(), "revocast/a/live".into(), topics[4].clone()];
    let found = broker.fetch_retained(&asked, Duration::from_millis(300)).await.unwrap();
    assert!(found[0].1.is_none() && found[1].1.is_none() && found[2].1.is_some());
    assert!(broker.fetch_retained(&[], PATIENCE).await.unwrap().is_empty());
    task.stop().await;
    assert!(!broker.state().borrow().is_up());
    assert!(matches!(broker.publish("revocast/a/live", vec![1], false).await, Err(BrokerError::Down { .. })));
    local.stop().await;
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_readers_at_once_lose_nothing() {
    const CHUNKS: usize = 24;
    let (local, address) = local().await;
    let (broker, task) = Broker::connect(config(address, "publisher"));
    up(&broker).await;
    let topics: Vec<String> = (0..CHUNKS).map(|number| format!("revocast/a/e/1/list/{number}")).collect();
    for (number, topic) in topics.iter().enumerate() {
        broker.publish(topic, vec![number as u8; 33 * 1024], true).await.unwrap();
    }
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..50 {
        let topics = topics.clone();
        readers.spawn(async move {
            let mut reader = Reader::connect(&config(address, &format!("device-{reader}")), true).await.unwrap();
            let mut found = Vec::new();
            for window in topics.chunks(FETCH_WINDOW) {
                found.extend(reader.fetch(window, PATIENCE).await.unwrap());
            }
            found
        });
    }
    while let Some(found) = readers.join_next().await {
        for (number, (topic, payload)) in found.unwrap().into_iter().enumerate() {
            assert_eq!(payload, Some(vec![number as u8; 33 * 1024]), "{topic}");
        }
    }
    task.stop().await;
    local.stop().await;
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_found_again_and_is_empty() {
    let (local, address) = local().await;
    let (broker, task) = Broker::connect(config(address, "publisher"));
    up(&broker).await;
    broker.publish("revocast/a/keys", vec![1], true).await.unwrap();
    local.stop().await;
    let mut state = broker.state();
    timeout(PATIENCE, state.wait_for(|state| !state.is_up())).await.unwrap().unwrap();
    let lost = broker.publish("revocast/a/keys", vec![2], true).await;
    assert!(matches!(lost, Err(BrokerError::Down { .. } | BrokerError::Broken { .. })), "{lost:?}");

    let mut local = EmbeddedBroker::start(address, None).await.unwrap();
    local.ready().await.unwrap();
    assert!(up(&broker).await >= 2);
    let found = broker.fetch_retained(&["revocast/a/keys".into()], Duration::from_millis(300)).await.unwrap();
    assert_eq!(found[0].1, None);
    broker.publish("revocast/a/keys", vec![3], true).await.unwrap();
    task.stop().await;
    local.stop().await;
}

#[cfg(feature = "embedded-broker")]
#[tokio::test]
async fn a_busy_port_is_named() {
    let (local, address) = local().await;
    let error = EmbeddedBroker::start(address, None).await.unwrap_err();
    assert!(matches!(error, EmbeddedBrokerError::Busy { address: busy } if busy == address), "{error}");
    local.stop().await;
    EmbeddedBroker::start(address, None).await.unwrap().stop().await;
}

#[tokio::test]
async fn what_would_break_the_connection_is_refused_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (broker, _task) = Broker::connect(config(listener.local_addr().unwrap(), "publisher"));
    let large = broker.publish("a", vec![0; SEALED_BYTES_MAX + 1], true).await;
    assert_eq!(large, Err(BrokerError::TooLarge { topic: "a".into(), bytes: SEALED_BYTES_MAX + 1 }));
    for topic in ["", "a/+", "#", "a\0", &"x".repeat(TOPIC_BYTES_MAX + 1)] {
        let refused = broker.publish(topic, vec![], true).await;
        assert!(matches!(refused, Err(BrokerError::Topic { .. })), "{topic}");
        let refused = broker.fetch_retained(&[topic.to_owned()], PATIENCE).await;
        assert!(matches!(refused, Err(BrokerError::Topic { .. })), "{topic}");
    }
}

/// A broker accepts the connection, takes publishes, and dies without acknowledging them.
#[tokio::test]
async fn unacknowledged_publishes_fail_with_their_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (broker, task) = Broker::connect(config(listener.local_addr().unwrap(), "publisher"));
    let mut socket = accept(&listener).await;
    up(&broker).await;
    let mut sends = tokio::task::JoinSet::new();
    // More than fit the window: some are sent, some wait for a permit.
    for number in 0..30_u8 {
        let broker = broker.clone();
        sends.spawn(async move { broker.publish("a", vec![number], true).await });
    }
    let mut bytes = [0; 5];
    socket.read_exact(&mut bytes).await.unwrap();
    drop(socket);
    while let Some(sent) = sends.join_next().await {
        let sent = sent.unwrap();
        assert!(matches!(sent, Err(BrokerError::Broken { .. } | BrokerError::Down { .. })), "{sent:?}");
    }

    // The next connection begins clean: a publish is acknowledged by its own PUBACK.
    let mut socket = accept(&listener).await;
    assert_eq!(up(&broker).await, 2);
    let send = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish("a", vec![7], true).await }
    });
    let mut publish = [0; 8];
    socket.read_exact(&mut publish).await.unwrap();
    assert_eq!(publish, [0x33, 6, 0, 1, b'a', 0, 1, 7]);
    assert!(!send.is_finished());
    socket.write_all(&[0x40, 2, 0, 1]).await.unwrap();
    timeout(PATIENCE, send).await.unwrap().unwrap().unwrap();
    task.stop().await;
}

/// The chunks of an epoch wait for a slow broker; a delta overtakes those that are not on the wire yet.
#[tokio::test]
async fn a_delta_does_not_queue_behind_an_epoch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (broker, task) = Broker::connect(config(listener.local_addr().unwrap(), "publisher"));
    let mut socket = accept(&listener).await;
    up(&broker).await;
    let mut sends = tokio::task::JoinSet::new();
    for _ in 0..100_u8 {
        let broker = broker.clone();
        sends.spawn(async move { broker.publish("c", vec![1], true).await });
    }
    let retained = usize::from(IN_FLIGHT - IN_FLIGHT_LIVE - IN_FLIGHT_ANSWERS - IN_FLIGHT_TOKENS);
    let mut chunks = vec![0; 8 * retained];
    socket.read_exact(&mut chunks).await.unwrap();
    assert!(chunks.chunks(8).all(|packet| packet[..2] == [0x33, 6]));
    let delta = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish("d", vec![2], false).await }
    });
    let mut packet = [0; 8];
    timeout(PATIENCE, socket.read_exact(&mut packet)).await.expect("the delta waits").unwrap();
    assert_eq!((packet[0], packet[4], packet[7]), (0x32, b'd', 2));
    socket.write_all(&[0x40, 2, packet[5], packet[6]]).await.unwrap();
    timeout(PATIENCE, delta).await.unwrap().unwrap().unwrap();
    // Nor does an answer to a device.
    let answer = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish_answer("e", vec![3]).await }
    });
    timeout(PATIENCE, socket.read_exact(&mut packet)).await.expect("the answer waits").unwrap();
    assert_eq!((packet[0], packet[4], packet[7]), (0x32, b'e', 3));
    socket.write_all(&[0x40, 2, packet[5], packet[6]]).await.unwrap();
    timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
    sends.abort_all();
    task.stop().await;
}

/// A broker refuses to let us read: told apart from "nothing retained".
#[tokio::test]
async fn a_refused_subscription_is_not_taken_for_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(listener.local_addr().unwrap(), "publisher");
    let reading =
        tokio::spawn(async move { Reader::connect(&config, false).await?.fetch(&["a".into()], PATIENCE).await });
    let mut socket = accept(&listener).await;
    let mut subscribe = [0; 8];
    socket.read_exact(&mut subscribe).await.unwrap();
    socket.write_all(&[0x90, 3, subscribe[2], subscribe[3], 0x80]).await.unwrap();
    let refused = timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert_eq!(refused, Err(BrokerError::SubscribeRefused { topic: "a".into() }));
}

/// A broker floods the reader with what it never asked for: the fetch ends, it does not grow.
#[tokio::test]
async fn a_flood_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(listener.local_addr().unwrap(), "publisher");
    let reading =
        tokio::spawn(async move { Reader::connect(&config, false).await?.fetch(&["a".into()], PATIENCE).await });
    let mut socket = accept(&listener).await;
    // An announced length beyond every limit.
    let _ = socket.write_all(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await;
    let ended = timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert!(matches!(ended, Err(BrokerError::Broken { .. })), "{ended:?}");
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut socket, _) = timeout(PATIENCE, listener.accept()).await.expect("nobody connects").unwrap();
    let mut header = [0; 2];
    socket.read_exact(&mut header).await.unwrap();
    assert_eq!(header[0], 0x10, "not a CONNECT");
    let mut rest = vec![0; usize::from(header[1])];
    socket.read_exact(&mut rest).await.unwrap();
    socket.write_all(&[0x20, 2, 0, 0]).await.unwrap();
    socket
}
