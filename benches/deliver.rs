//! A thousand tokens to a thousand devices: granted by the ledger and registered, signed, enclosed, sealed, sent over the
//! embedded broker to a thousand connections, opened and disclosed by each device.
//!
//! `cargo bench -p revocast-benches --bench deliver`

use std::sync::Arc;
use std::time::{Duration, Instant};

use revocast_core::update::{Delivery, Notice};
use revocast_core::{DeviceId, EnvelopeKey, Kind, PublicKey, RealmId, Sealed, SigningKey, UnixTime, disclose, wire};
use revocast_server::broker::LinkState;
use revocast_server::clock::SystemClock;
use revocast_server::config::Choices;
use revocast_server::keys::Keys;
use revocast_server::ledger::NewDevice;
use revocast_server::server::Server;
use revocast_server::service::NewRealm;
use revocast_tests::process::{Listener, until, until_true};
use tokio::task::JoinSet;

const DEVICES: usize = 1_000;

/// Requests under way at a time, as from a server with that many clients.
const AT_ONCE: usize = 64;

/// What is promised.
const WITHIN: Duration = Duration::from_secs(10);

struct Bench {
    id: DeviceId,
    envelope: EnvelopeKey,
    listener: Listener,
}

impl Bench {
    /// What the device reads out of what it was sent.
    fn open(&self, realm: &RealmId, publisher: PublicKey) -> Option<Box<str>> {
        let (_, bytes) = self.listener.heard().into_iter().next()?;
        let sealed = Sealed::expect(&bytes, realm, Kind::Delivery).expect("a delivery");
        let body = sealed.by_threshold(&[publisher], 1).expect("sealed by the publisher");
        let delivery = body.try_map(wire::decode_delivery).expect("a delivery").into_inner();
        let bound = Delivery::bound(delivery.issued_at, delivery.nonce.as_ref());
        let plain = disclose(&self.envelope, realm, &self.id, &bound, &delivery.content).expect("enclosed for it");
        match wire::decode_notice(&plain).expect("a notice") {
            Notice::Token { token } => Some(token),
            Notice::Refused { why } => panic!("refused: {why}"),
        }
    }
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let keys = Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).expect("keys");
    let publisher = keys.publisher().expect("a key").public();
    let realm = RealmId::new("fleet").expect("a name");
    let server = runtime.block_on(async {
        let local = Some(([127, 0, 0, 1], 0).into());
        let config = Choices {
            listen: local,
            embedded_broker: local,
            data: Some(folder.path().join("data")),
            keys: Some(folder.path().join("keys")),
            ..Choices::default()
        };
        let clock = Arc::new(SystemClock::new());
        let server = Server::start(config.check().expect("a configuration"), clock).await.expect("a server");
        server.service().create_realm(NewRealm::new(realm, "https://issuer.example")).await.expect("a realm");
        let mut link = server.service().link();
        link.wait_for(LinkState::is_up).await.expect("a broker");
        server
    });
    until_true("it leads", || server.service().office().is_leading());
    let url = format!("mqtt://{}", server.broker_addr().expect("an embedded broker"));
    let devices: Vec<Bench> = (0..DEVICES)
        .map(|number| {
            let id = DeviceId::new(&format!("device-{number}")).expect("a name");
            let mut seed = [7; 32];
            seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let (signing, envelope) = (SigningKey::from_seed(seed), EnvelopeKey::from_seed(seed));
            let device = NewDevice {
                id,
                signing: signing.public(),
                sealing: envelope.public(),
                subject: id.to_string(),
                audience: vec!["https://api.example".to_owned()],
                replace: false,
                actor: "bench".to_owned(),
            };
            runtime.block_on(server.service().enroll(realm, device)).expect("enrolled");
            Bench { id, envelope, listener: Listener::start(&url, &format!("device_tokens/{id}")) }
        })
        .collect();
    println!("{DEVICES} devices are enrolled and listen");

    let began = Instant::now();
    let undelivered = runtime.block_on(async {
        let mut under_way = JoinSet::<bool>::new();
        let mut undelivered = 0;
        for device in &devices {
            if under_way.len() >= AT_ONCE {
                undelivered += usize::from(under_way.join_next().await.is_some_and(|sent| !sent.expect("no panic")));
            }
            let (service, id) = (Arc::clone(server.service()), device.id);
            under_way.spawn(async move {
                let issued = service.issue_to_device(realm, id, None, serde_json::Map::new(), "bench").await;
                issued.expect("a token").1
            });
        }
        while let Some(sent) = under_way.join_next().await {
            undelivered += usize::from(!sent.expect("no panic"));
        }
        undelivered
    });
    let sent = began.elapsed();
    let tokens: Vec<Box<str>> =
        devices.iter().map(|device| until("a token", || device.open(&realm, publisher))).collect();
    let took = began.elapsed();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{} tokens granted, signed, enclosed and acknowledged by the broker in {:.2} s ({undelivered} not), opened by \
         their devices {:.2} s after the first was asked for; load {}",
        tokens.len(),
        sent.as_secs_f64(),
        took.as_secs_f64(),
        load.trim()
    );
    assert!(took < WITHIN, "{DEVICES} tokens took {took:?}");
    runtime.block_on(server.stop());
}
