use std::time::{Duration, Instant};
use revocast_core::*;
use revocast_device::*;
#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).unwrap();
    let trust = Trust { roots: vec![], threshold: 1, not_before: UnixTime::default() };
    let config = DeviceConfig::new(url.parse().unwrap(), ClientId::new("probe").unwrap(), RealmId::new("acme").unwrap(), trust, Config::exact(0));
    let mut link = Link::start(LinkConfig::new(&config).unwrap());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(50) {
        let Ok(event) = tokio::time::timeout(Duration::from_secs(5), link.next()).await else { println!("{:?} quiet {:?}", began.elapsed(), link.stats()); continue };
        match &event {
            LinkEvent::Packet { address, payload } => println!("{:?} packet {address} {}", began.elapsed(), payload.len()),
            other => println!("{:?} {other:?}", began.elapsed()),
        }
        if event == LinkEvent::Connected {
            for a in [Address::Live, Address::Keys, Address::Manifest, Address::Index { epoch: Epoch(1) }, Address::Index { epoch: Epoch(2) }] { link.subscribe(a); }
        }
    }
}
