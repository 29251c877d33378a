//! Devices and what the server knows of them: when they report, what waits for them, and what a crowd of them costs.

#![expect(clippy::unchecked_time_subtraction, reason = "a time that runs backward shall fail a test")]
#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use revocast_core::replica::Config;
use revocast_core::update::Report;
use revocast_core::{
    DeviceId, FingerprintFunction, Fingerprinter, Profile, RealmId, RealmKey, Sequence, UnixTime, Width,
};
use revocast_device::{BrokerUrl, ClientId, Device, DeviceConfig, VolatileStore};
use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::config::Choices;
use revocast_server::fleet::{Fleet, Reached, Wait};
use revocast_server::keys::Keys;
use revocast_server::server::Server;
use revocast_server::service::{NewRealm, Revocation};
use revocast_tests::follower::{Follower, Site, prompt, small_settings};

const SECOND: Duration = Duration::from_secs(1);

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([5; 16]), Width::W48)
}

fn site() -> Site {
    Site::new(1, fingerprinter(), small_settings(), |_| {})
}

/// As devices in the field are, but for what would make a test wait.
fn reporting(seed: u64) -> Config {
    Config {
        report_every: Duration::from_mins(1),
        report_spread: SECOND,
        persist_every: SECOND,
        seed,
        ..prompt(Profile::Exact)
    }
}

/// Lets time go on in small steps and notes when reports are made.
fn watch(device: &mut Follower, span: Duration, reports: &mut Vec<(Duration, Report)>) {
    let end = device.uptime + span;
    while device.uptime < end {
        device.pass(Duration::from_millis(50));
        let at = device.uptime;
        reports.extend(device.reports.drain(..).map(|report| (at, report)));
    }
}

#[test]
fn news_is_reported_within_two_seconds_and_the_rest_once_a_minute() {
    let mut site = site();
    let mut device = site.device(reporting(7));
    let mut reports = Vec::new();
    watch(&mut device, 5 * SECOND, &mut reports);
    // The keys alone are news, and then the first position.
    assert!(reports.len() <= 2, "{reports:?}");
    assert!(reports.last().is_some_and(|(at, report)| report.term.0 == 1 && *at <= 4 * SECOND), "{reports:?}");

    // Nothing new, for ten minutes: a report a minute, none later than that.
    reports.drain(..reports.len() - 1);
    watch(&mut device, Duration::from_mins(10), &mut reports);
    let gaps: Vec<Duration> = reports.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((10..=14).contains(&gaps.len()), "{gaps:?}");
    assert!(gaps.iter().all(|gap| (45 * SECOND..=61 * SECOND).contains(gap)), "{gaps:?}");

    // A revocation is written down within a second and reported within another.
    reports.clear();
    let revoked = site.revoke("a", site.seconds() + 3_600).sequence;
    let asked = device.uptime;
    for delta in site.publish() {
        device.hear(revocast_core::Address::Live, &delta);
    }
    watch(&mut device, 3 * SECOND, &mut reports);
    let (at, report) = reports[0];
    assert_eq!(report.position.sequence, revoked);
    assert!(at - asked <= 2 * SECOND + Duration::from_millis(100), "{:?}", at - asked);
}

#[test]
fn a_stream_of_revocations_is_reported_no_more_than_every_two_seconds() {
    let mut site = site();
    let mut device = site.device(reporting(8));
    let mut reports = Vec::new();
    watch(&mut device, 5 * SECOND, &mut reports);
    reports.clear();
    let began = device.uptime;
    for number in 0..300 {
        site.revoke(&format!("t{number}"), site.seconds() + 3_600);
        site.pass(100);
        for delta in site.publish() {
            device.hear(revocast_core::Address::Live, &delta);
        }
        watch(&mut device, Duration::from_millis(100), &mut reports);
    }
    let took = device.uptime - began;
    assert_eq!(took, 30 * SECOND);
    assert!(reports.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 2 * SECOND), "{reports:?}");
    // And not so seldom that whoever waits for it gives up.
    assert!((9..=16).contains(&reports.len()), "{}", reports.len());
    let newest = reports.last().unwrap().1.position.sequence.0;
    assert!(newest > 250, "{newest}");
}

#[test]
fn nothing_is_reported_while_there_is_no_link() {
    let site = site();
    let mut device = site.device(reporting(9));
    let mut reports = Vec::new();
    watch(&mut device, 5 * SECOND, &mut reports);
    reports.clear();
    device.tell(revocast_core::Event::Disconnected);
    watch(&mut device, Duration::from_mins(5), &mut reports);
    assert!(reports.is_empty());
    // Back again, without news, it has time: a quarter of a minute at most.
    device.reconnect(&site.shelf);
    watch(&mut device, 16 * SECOND, &mut reports);
    assert_eq!(reports.len(), 1, "{reports:?}");
}

/// Drops all of a fleet at once, with a revocation meanwhile or without; the reports that then reach the server, by
/// tenths of a second.
fn crowd_returns(devices: usize, revoke: bool) -> BTreeMap<u128, usize> {
    let mut site = site();
    let mut crowd: Vec<Follower> = (0..devices).map(|seed| site.device(reporting(seed as u64))).collect();
    let mut reports = Vec::new();
    for device in &mut crowd {
        watch(device, 5 * SECOND, &mut reports);
        device.tell(revocast_core::Event::Disconnected);
    }
    if revoke {
        site.revoke("meanwhile", site.seconds() + 3_600);
        site.publish();
    }
    let mut by_time = BTreeMap::new();
    for device in &mut crowd {
        let back = device.uptime;
        let mut reports = Vec::new();
        // Worse than it can be: links wait for a jittered while before they connect again, and these do not.
        device.reconnect(&site.shelf);
        watch(device, 20 * SECOND, &mut reports);
        assert!(!reports.is_empty());
        for (at, _) in reports {
            *by_time.entry((at - back).as_millis() / 100).or_default() += 1;
        }
    }
    by_time
}

/// Row 41: 1,000 devices that a broker dropped and that all come back in the same instant.
#[test]
fn a_thousand_devices_that_come_back_at_once_do_not_speak_at_once() {
    let most = |by_time: &BTreeMap<u128, usize>| by_time.values().copied().max().unwrap_or_default();
    let total = |by_time: &BTreeMap<u128, usize>| by_time.values().sum::<usize>();
    // Without news: spread over a quarter of a minute, less than 70 in a second on average.
    let quiet = crowd_returns(1_000, false);
    assert_eq!(total(&quiet), 1_000);
    assert!(most(&quiet) <= 25, "{quiet:?}");
    // With news: over the second in which each writes down and the one in which it reports.
    let news = crowd_returns(1_000, true);
    assert!(total(&news) <= 1_100, "{}", total(&news));
    assert!(most(&news) <= 200, "{news:?}");
    let in_a_second = |from: u128| news.range(from..from + 10).map(|(_, count)| count).sum::<usize>();
    let worst = (0..200).map(in_a_second).max().unwrap_or_default();
    println!(
        "reports in the worst second: {worst}; in the worst tenth: {} with news, {} without",
        most(&news),
        most(&quiet)
    );
    assert!(worst <= 1_000);
}

#[test]
fn what_a_fleet_takes_does_not_grow_with_its_reports() {
    let realm = RealmId::new("sensors").unwrap();
    let mut fleet = Fleet::new("revocast", Vec::new());
    fleet.follow(realm, Width::W48);
    let report = |sequence| Report {
        term: revocast_core::Term(1),
        position: revocast_core::Position { epoch: revocast_core::Epoch(1), sequence: Sequence(sequence) },
        age: None,
        profile: 3,
        memory_bytes: 1,
        refusals: sequence,
        last_refusal: Some(9),
    };
    let devices: Vec<DeviceId> = (0..1_000).map(|number| DeviceId::new(&format!("d{number}")).unwrap()).collect();
    let mut round = |sequence: u64| {
        fleet.recorded(Duration::from_secs(sequence), realm, Sequence(sequence));
        for device in &devices {
            fleet.report(Duration::from_secs(sequence), realm, *device, &report(sequence), false);
        }
    };
    // Until every list has its final size.
    (1..300).for_each(&mut round);
    let grown = allocation_counter::measure(|| (300..400).for_each(&mut round));
    assert_eq!(grown.bytes_current, 0, "{grown:?}");
}

// ---- a real server and real devices ----------------------------------------------------------------

struct Running {
    server: Server,
    realm: RealmId,
    trust: revocast_core::Trust,
    _folder: tempfile::TempDir,
}

async fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).unwrap();
    let trust = keys.trust().unwrap();
    let server = Server::start(config(folder.path()), Arc::new(SystemClock::new())).await.unwrap();
    let realm = RealmId::new("sensors").unwrap();
    server.service().create_realm(NewRealm::new(realm, "https://issuer.example")).await.unwrap();
    Running { server, realm, trust, _folder: folder }
}

fn config(folder: &Path) -> revocast_server::config::ServerConfig {
    Choices {
        listen: Some(([127, 0, 0, 1], 0).into()),
        data: Some(folder.join("data")),
        keys: Some(folder.join("keys")),
        embedded_broker: Some(([127, 0, 0, 1], 0).into()),
        ..Choices::default()
    }
    .check()
    .unwrap()
}

impl Running {
    async fn device(&self, name: &str) -> Device {
        let broker: BrokerUrl = format!("mqtt://{}", self.server.broker_addr().unwrap()).parse().unwrap();
        let replica = Config::exact(revocast_device::random_seed().unwrap());
        let config = DeviceConfig::new(broker, ClientId::new(name).unwrap(), self.realm, self.trust.clone(), replica);
        Device::start(config, VolatileStore).await.unwrap()
    }

    async fn online(&self, wanted: usize) {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let (_, view) = self.server.service().fleet(self.realm, None).await.unwrap();
            if view.online == wanted && view.current == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{view:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn revoke(&self, jti: &str) -> Sequence {
        let exp = SystemClock::new().unix_time().plus(3_600);
        let revocation = Revocation { jti: jti.to_owned(), exp, reason: None };
        self.server.service().revoke(self.realm, vec![revocation], "test").await.unwrap()[0].sequence
    }

    async fn wait(&self, sequence: Sequence, wait: Wait, patience: Duration) -> (Reached, Duration) {
        let began = Instant::now();
        let reached = self.server.service().wait(self.realm, sequence, wait, patience).await;
        (reached, began.elapsed())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_the_devices_have_applied_and_in_vain_when_one_is_away() {
    let running = start().await;
    let all = Wait::Applied { share: 1.0 };
    let patience = Duration::from_secs(30);
    // Nobody is there to apply it: it is published, and that is all that can be said.
    let first = running.revoke("before-anybody").await;
    assert_eq!(running.wait(first, Wait::Durable, patience).await.0, Reached::Durable);
    assert_eq!(running.wait(first, Wait::Published, patience).await.0, Reached::Published);
    assert_eq!(running.wait(first, all, Duration::from_millis(300)).await.0, Reached::Published);

    let mut devices = Vec::new();
    for name in ["door-1", "door-2", "door-3", "door-4"] {
        devices.push(running.device(name).await);
    }
    running.online(4).await;
    let second = running.revoke("while-they-listen").await;
    let (reached, took) = running.wait(second, all, patience).await;
    assert_eq!(reached, Reached::Applied, "{took:?}");
    for device in &devices {
        assert!(device.checker().position().sequence >= second);
    }
    let (_, view) = running.server.service().fleet(running.realm, Some(second)).await.unwrap();
    assert_eq!((view.reached, view.online), (4, 4));
    assert!(view.propagation.samples() >= 4, "{:?}", view.propagation);
    println!("applied by 4 of 4 after {took:?}; p50 {:?}", view.propagation.quantile(0.5));

    // One goes away. It still counts as online for a while, so not all have applied; three in four have.
    devices.pop().unwrap().stop().await;
    let third = running.revoke("while-one-is-away").await;
    let (reached, took) = running.wait(third, all, Duration::from_secs(4)).await;
    assert_eq!(reached, Reached::Published);
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert_eq!(running.wait(third, Wait::Applied { share: 0.75 }, patience).await.0, Reached::Applied);
    // What does not exist yet is waited for in vain.
    let never = Sequence(third.0 + 1_000);
    assert_eq!(running.wait(never, Wait::Published, Duration::from_millis(300)).await.0, Reached::Durable);
    for device in devices {
        device.stop().await;
    }
    running.server.stop().await;
}
