//! What a thousand devices that report cost the server: one report taken in, and the whole task that hears them from a
//! real broker, as processor time of its thread.
//!
//! `cargo bench -p revocast-benches --bench fleet`, with `REVOCAST_MOSQUITTO` set.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use revocast_core::update::{DeviceTopic, Report};
use revocast_core::{
    DeviceId, Epoch, FingerprintFunction, Fingerprinter, Kind, Position, RealmId, RealmKey, Sequence, Term, UnixTime,
    Width, seal, wire,
};
use revocast_server::broker::{Broker, BrokerConfig};
use revocast_server::clock::SystemClock;
use revocast_server::fleet::{Fleet, Lookout, hear};
use revocast_server::keys::Keys;
use revocast_server::ledger::{Ledger, MemoryLedger, Realm};
use revocast_server::standing::{Standing, Standings};
use revocast_tests::process::{Mosquitto, Somebody};

const DEVICES: usize = 1_000;
const PREFIX: &str = "revocast";

/// Reports a second from a thousand devices: at rest, and under an endless stream of revocations, when each reports as
/// often as it may (every two to three seconds).
const AT_REST: f64 = DEVICES as f64 / 60.0;
const AT_MOST: f64 = DEVICES as f64 / 2.5;

/// How long each load lasts.
const LASTS: Duration = Duration::from_secs(20);

fn realm() -> RealmId {
    RealmId::new("sensors").expect("a valid name")
}

fn topics() -> Vec<String> {
    let device = |number| DeviceId::new(&format!("device-{number}")).expect("a valid name");
    (0..DEVICES).map(|number| DeviceTopic::Report.topic(PREFIX, &realm(), &device(number))).collect()
}

fn report(sequence: u64) -> Vec<u8> {
    let body = wire::encode_report(&Report {
        term: Term(1),
        position: Position { epoch: Epoch(1), sequence: Sequence(sequence) },
        age: Some(Duration::from_secs(3)),
        profile: 3,
        memory_bytes: 40_000,
        refusals: 0,
        last_refusal: None,
    });
    seal(Kind::Report, &realm(), &body.expect("a valid report"), &[])
}

fn main() {
    let each = aggregate();
    println!("one report, parsed, decoded and counted: {:.2} us", each * 1e6);
    // Once at rest: a report a minute from each. Once more with a revocation every ten seconds, after each of which
    // everybody reports within a second. Once as often as devices may.
    let heard = Heard::start();
    let bursts = DEVICES as f64 / 10.0;
    for (what, rate) in [
        ("at rest", AT_REST),
        ("a revocation every ten seconds", AT_REST + bursts),
        ("revocations without end", AT_MOST),
    ] {
        let (cpu, reports, lasted) = heard.load(rate);
        println!(
            "{DEVICES} devices, {what}: {:.0} reports a second heard, {:.2} % of one core, {:.1} us a report",
            reports as f64 / lasted.as_secs_f64(),
            cpu.as_secs_f64() / lasted.as_secs_f64() * 100.0,
            cpu.as_secs_f64() / reports.max(1) as f64 * 1e6
        );
    }
}

/// Seconds that a report takes, best of nine rounds over all devices.
fn aggregate() -> f64 {
    let mut fleet = Fleet::new(PREFIX, Vec::new());
    fleet.follow(realm(), Width::W48);
    let topics = topics();
    let mut best = f64::MAX;
    for round in 1..=9_u64 {
        let payload = report(round);
        let now = Duration::from_secs(round * 2);
        // Each report covers a revocation that is followed.
        fleet.recorded(now, realm(), Sequence(round));
        let began = Instant::now();
        for topic in &topics {
            fleet.hear(now, black_box(topic), black_box(&payload), Standing::Claimed);
        }
        best = best.min(began.elapsed().as_secs_f64() / topics.len() as f64);
    }
    best
}

/// The task that hears, on a thread of its own.
struct Heard {
    mosquitto: Mosquitto,
    lookout: Arc<Lookout>,
    realm: Realm,
    thread: String,
}

impl Heard {
    fn start() -> Self {
        let mosquitto = Mosquitto::start();
        let folder = tempfile::tempdir().expect("a folder");
        let keys = Arc::new(Keys::generate(&folder.path().join("keys"), UnixTime::from_secs(1)).expect("keys"));
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([1; 16]), Width::W48);
        let realm = Realm::new(realm(), "https://issuer.example", fingerprinter, UnixTime::from_secs(1));
        let lookout = Arc::new(Lookout::new(Fleet::new(PREFIX, Vec::new()), Arc::new(SystemClock::new())));
        let (told, name) = std::sync::mpsc::channel();
        let (url, own, founded) = (mosquitto.url(), Arc::clone(&lookout), realm.clone());
        thread::spawn(move || {
            let link = fs::read_link("/proc/thread-self").expect("Linux");
            told.send(format!("/proc/{}/schedstat", link.display())).expect("somebody listens");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let ledger: Arc<dyn Ledger> = Arc::new(MemoryLedger::new());
                ledger.create_realm(founded, Vec::new()).await.expect("a realm");
                let (broker, _task) = Broker::connect(BrokerConfig {
                    url: url.parse().expect("a URL"),
                    client_id: "bench".to_owned(),
                    credentials: None,
                    tls: None,
                    probe: "revocast/_probe/bench".to_owned(),
                });
                let standings = Arc::new(Standings::new(Arc::clone(&ledger), Arc::new(SystemClock::new())));
                hear(own, broker, ledger, keys, standings).await;
            });
        });
        let heard = Self { mosquitto, lookout, realm, thread: name.recv().expect("a thread") };
        let somebody = Somebody::new(&heard.mosquitto.url());
        revocast_tests::process::until_true("reports are heard", || {
            somebody.publish(&topics()[0], report(0));
            heard.reports() > 0
        });
        heard
    }

    fn reports(&self) -> u64 {
        self.lookout.view(&self.realm, Sequence(0), Sequence(0)).map_or(0, |view| view.heard.reports)
    }

    /// Processor time of the thread that hears.
    fn cpu(&self) -> Duration {
        let text = fs::read_to_string(&self.thread).expect("a thread that runs");
        Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
    }

    /// Reports arrive at this rate for a while; what that cost, how many were heard, and how long it took.
    fn load(&self, rate: f64) -> (Duration, u64, Duration) {
        let somebody = Somebody::new(&self.mosquitto.url());
        let (topics, payload) = (topics(), report(1));
        let (cpu, reports, began) = (self.cpu(), self.reports(), Instant::now());
        for number in 0..(rate * LASTS.as_secs_f64()) as usize {
            let due = Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_sub(began.elapsed()));
            somebody.publish(&topics[number % DEVICES], payload.clone());
        }
        thread::sleep(LASTS.saturating_sub(began.elapsed()));
        (self.cpu().saturating_sub(cpu), self.reports() - reports, began.elapsed())
    }
}
