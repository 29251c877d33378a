//! The link against a scripted broker: a few packets of MQTT 3.1.1, written by hand.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;

use revocast_core::replica::Config;
use revocast_core::{Trust, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const PATIENCE: Duration = Duration::from_mins(1);

/// What the broker does with subscriptions, and what it has seen.
#[derive(Default)]
struct Script {
    /// Topics whose retained message is announced as larger than anything.
    poisoned: BTreeSet<String>,
    /// Topics whose retained message is a malformed packet.
    malformed: BTreeSet<String>,
    /// Topics that may not be subscribed to.
    forbidden: BTreeSet<String>,
    /// Sent on every subscription, this many times.
    flood: usize,
    connections: usize,
    subscriptions: Vec<String>,
    published: Vec<(String, Vec<u8>)>,
    disconnects: usize,
}

type Shared = Arc<Mutex<Script>>;

async fn broker(script: Script) -> (SocketAddr, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(Mutex::new(script));
    let shared = Arc::clone(&script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&shared)));
        }
    });
    (address, script)
}

async fn serve(mut stream: TcpStream, script: Shared) -> std::io::Result<()> {
    loop {
        let (kind, body) = read_packet(&mut stream).await?;
        match kind >> 4 {
            1 => {
                script.lock().unwrap().connections += 1;
                stream.write_all(&[0x20, 2, 0, 0]).await?;
            }
            3 => {
                let length = usize::from(u16::from_le_bytes([body[1], body[0]]));
                let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
                let id = [body[2 + length], body[3 + length]];
                script.lock().unwrap().published.push((topic, body[4 + length..].to_vec()));
                stream.write_all(&[0x40, 2, id[0], id[1]]).await?;
            }
            8 => {
                let length = usize::from(u16::from_le_bytes([body[3], body[2]]));
                let topic = String::from_utf8(body[4..4 + length].to_vec()).unwrap();
                let (forbidden, answer) = {
                    let mut script = script.lock().unwrap();
                    script.subscriptions.push(topic.clone());
                    let answer = if script.poisoned.contains(&topic) {
                        // A publish of 256 MiB, as much of it as a header.
                        vec![0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1]
                    } else if script.malformed.contains(&topic) {
                        // A topic longer than its packet.
                        vec![0x30, 4, 0xff, 0xff, b'x', b'y']
                    } else {
                        publish(&topic, b"payload").repeat(1 + script.flood)
                    };
                    (script.forbidden.contains(&topic), answer)
                };
                let code = if forbidden { 0x80 } else { 1 };
                stream.write_all(&[0x90, 3, body[0], body[1], code]).await?;
                if !forbidden {
                    stream.write_all(&answer).await?;
                }
            }
            10 => stream.write_all(&[0xb0, 2, body[0], body[1]]).await?,
            12 => stream.write_all(&[0xd0, 0]).await?,
            14 => {
                script.lock().unwrap().disconnects += 1;
                return Ok(());
            }
            _ => {}
        }
    }
}

async fn read_packet(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((kind, body))
}

fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x30, (2 + topic.len() + payload.len()) as u8, 0, topic.len() as u8];
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn config(address: SocketAddr) -> LinkConfig {
    let trust = Trust { roots: Vec::new(), threshold: 1, not_before: UnixTime::default() };
    let url = format!("mqtt://{address}").parse().unwrap();
    let id = ClientId::new("device").unwrap();
    let device = DeviceConfig::new(url, id, RealmId::new("acme").unwrap(), trust, Config::exact(0));
    LinkConfig::new(&device).unwrap()
}

async fn next(link: &mut Link) -> LinkEvent {
    timeout(PATIENCE, link.next()).await.expect("nothing happened")
}

fn packet(address: Address) -> LinkEvent {
    LinkEvent::Packet { address, payload: b"payload".to_vec() }
}

const ADDRESSES: [Address; 3] = [Address::Live, Address::Keys, Address::Manifest];

#[tokio::test]
async fn what_is_retained_arrives_and_what_is_reported_leaves() {
    let (address, script) = broker(Script::default()).await;
    let mut link = Link::start(config(address));
    assert_eq!(next(&mut link).await, LinkEvent::Connected);
    link.subscribe(Address::Keys);
    assert_eq!(next(&mut link).await, packet(Address::Keys));
    // Asked for again, it is delivered again.
    link.subscribe(Address::Keys);
    assert_eq!(next(&mut link).await, packet(Address::Keys));
    link.unsubscribe(Address::Keys);
    link.report(b"report".to_vec());
    link.subscribe(Address::Manifest);
    assert_eq!(next(&mut link).await, packet(Address::Manifest));
    assert_eq!(link.stats(), LinkStats { connections: 1, ..LinkStats::default() });
    link.close().await;
    let said_goodbye = async {
        while script.lock().unwrap().disconnects == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, said_goodbye).await.expect("it left without a word");
    let script = script.lock().unwrap();
    assert_eq!(script.published, [("revocast/acme/devices/device/report".to_owned(), b"report".to_vec())]);
}

/// Row 8: an oversize retained message must not become a reconnect loop, and everything else must
/// work within 60 s.
#[tokio::test]
async fn an_oversize_retained_packet_is_quarantined_and_the_rest_works() {
    let poisoned = BTreeSet::from(["revocast/acme/manifest".to_owned()]);
    let (address, script) = broker(Script { poisoned, ..Script::default() }).await;
    let mut link = Link::start(config(address));
    let (mut arrived, mut oversize) = (BTreeSet::new(), None);
    let began = Instant::now();
    while arrived.len() < 2 || oversize.is_none() {
        match next(&mut link).await {
            LinkEvent::Connected => {
                arrived.clear();
                for address in ADDRESSES {
                    link.subscribe(address);
                }
            }
            LinkEvent::Packet { address, .. } => {
                arrived.insert(address);
            }
            LinkEvent::Oversize { address: Some(address), bytes } => oversize = Some((address, bytes)),
            LinkEvent::Oversize { address: None, .. } | LinkEvent::Disconnected { .. } => {}
        }
    }
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(oversize, Some((Address::Manifest, 0x0fff_ffff)));
    assert_eq!(arrived, BTreeSet::from([Address::Live, Address::Keys]));
    let stats = link.stats();
    assert_eq!(stats.quarantined, 1);
    assert!(stats.connections <= 3, "{stats:?}");
    assert_eq!(script.lock().unwrap().connections as u64, stats.connections);
}

#[tokio::test]
async fn a_malformed_packet_is_quarantined_too() {
    let malformed = BTreeSet::from(["revocast/acme/live".to_owned()]);
    let (address, _script) = broker(Script { malformed, ..Script::default() }).await;
    let mut link = Link::start(config(address));
    let mut arrived = BTreeSet::new();
    while arrived.len() < 2 || link.stats().quarantined == 0 {
        match next(&mut link).await {
            LinkEvent::Connected => {
                arrived.clear();
                for address in ADDRESSES {
                    link.subscribe(address);
                }
            }
            LinkEvent::Packet { address, .. } => {
                arrived.insert(address);
            }
            LinkEvent::Oversize { .. } => panic!("nothing was oversize"),
            LinkEvent::Disconnected { .. } => {}
        }
    }
    assert_eq!(arrived, BTreeSet::from([Address::Keys, Address::Manifest]));
}

/// Row 51: SUBACK 0x80.
#[tokio::test]
async fn a_refused_subscription_is_counted_and_tried_again() {
    let topic = "revocast/acme/live".to_owned();
    let (address, script) = broker(Script { forbidden: BTreeSet::from([topic.clone()]), ..Script::default() }).await;
    let mut link = Link::start(config(address));
    assert_eq!(next(&mut link).await, LinkEvent::Connected);
    link.subscribe(Address::Live);
    link.subscribe(Address::Keys);
    assert_eq!(next(&mut link).await, packet(Address::Keys));
    assert_eq!(link.stats().refused_subscriptions, 1);
    script.lock().unwrap().forbidden.clear();
    assert_eq!(next(&mut link).await, packet(Address::Live));
    let asked = script.lock().unwrap().subscriptions.iter().filter(|asked| **asked == topic).count();
    assert_eq!((asked, link.stats().connections), (2, 1));
}

/// Packets come faster than anybody takes them: the connection is dropped, nothing is lost silently.
#[tokio::test]
async fn a_flood_drops_the_connection_and_says_so() {
    let (address, script) = broker(Script { flood: 10 * WAITING_MAX, ..Script::default() }).await;
    let mut link = Link::start(config(address));
    assert_eq!(next(&mut link).await, LinkEvent::Connected);
    link.subscribe(Address::Keys);
    // Nobody listens until the connection is gone.
    let full = async {
        while link.events.len() < link.events.max_capacity() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, full).await.expect("nothing came");
    script.lock().unwrap().flood = 0;
    loop {
        match next(&mut link).await {
            LinkEvent::Disconnected { .. } => break,
            event => assert_eq!(event, packet(Address::Keys)),
        }
    }
    assert_eq!(next(&mut link).await, LinkEvent::Connected);
    assert_eq!(link.stats().overruns, 1);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_told_once_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut link = Link::start(config(address));
    assert!(matches!(next(&mut link).await, LinkEvent::Disconnected { .. }));
    assert!(matches!(next(&mut link).await, LinkEvent::Disconnected { .. }));
    // Closing does not wait for the next attempt.
    timeout(Duration::from_secs(5), link.close()).await.expect("it waited");
}

#[test]
fn tls_and_its_absence_must_agree_with_the_url() {
    let trust = Trust { roots: Vec::new(), threshold: 1, not_before: UnixTime::default() };
    let url = "mqtts://broker".parse().unwrap();
    let id = ClientId::new("device").unwrap();
    let device = DeviceConfig::new(url, id, RealmId::new("acme").unwrap(), trust, Config::exact(0));
    assert_eq!(LinkConfig::new(&device).unwrap_err(), LinkConfigError::NoRoots);
}

#[test]
fn a_token_is_shown_by_a_device_that_gets_one() {
    let trust = Trust { roots: Vec::new(), threshold: 1, not_before: UnixTime::default() };
    let url = "mqtt://broker".parse().unwrap();
    let id = ClientId::new("device").unwrap();
    let device = DeviceConfig::new(url, id, RealmId::new("acme").unwrap(), trust, Config::exact(0));
    assert_eq!(LinkConfig::new(&device.with_token_as_password()).unwrap_err(), LinkConfigError::NoToken);
}
