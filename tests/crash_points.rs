//! Row 34: a server is killed at one system call after the other, and whatever it acknowledged is there afterwards.
//!
//! First it is counted which calls a server makes while it is founded, while it serves under load, and while it stops.
//! Then the points are spread over all of them, and at each one a server dies on entering the call: between two writes,
//! before an fsync, after the fsync and before the answer. A few clients write down every sequence that they were told
//! and every request that was never answered. After each death:
//!
//! - what was acknowledged reaches a device that was there all the time, without another request;
//! - every acknowledged entry is there under its number, no number was given twice, none left out;
//! - what was not acknowledged is there or not, and can be asked for again.
//!
//! In one of four cases the server that comes up after the crash is killed as well.
//!
//! 200 points by default; `REVOCAST_LONG=1` makes it 2,000, `REVOCAST_CRASH_POINTS=N` any number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use revocast_core::{RealmId, Sequence};
use revocast_server::ledger::{Ledger as _, SqliteLedger};
use revocast_tests::Random;
use revocast_tests::process::{Agent, Mosquitto, PATIENCE, REALM, Server, Site, Via, now, number, text, until_true};
use revocast_tests::strace::{Beside, Fault, Tracer, most_calls};
use serde_json::{Value, json};

/// The calls at which a server may die: those by which it changes something outside of itself.
const CALLS: [&str; 10] =
    ["write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "unlink", "sendto", "fallocate"];

/// Histories that run at the same time; most of their time they wait.
const LANES: usize = 3;

/// Deaths in one history: enough for one to build upon many others, few enough for its ledger to stay small.
const DEATHS: usize = 25;

/// Clients that revoke at the same time.
const WRITERS: u64 = 4;

/// Requests of each client while it is counted what a server does.
const COUNTED: usize = 60;

/// Requests of each client before a point is given up, twice what was counted and more: a server that did not get there
/// is killed where it is. And the longest time for that.
const REQUESTS_MAX: usize = 150;
const LOAD_MAX: Duration = Duration::from_secs(10);

/// Revocations in a call of the client that sends batches.
const BATCH: u64 = 3;

fn exp() -> u64 {
    now() + 3_600
}

/// When a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Between its very first call and the first revocation.
    Founding,
    /// While it starts on what a crash left, or under load.
    Serving,
    /// While it stops in order.
    Stopping,
}

/// Where a server dies.
#[derive(Clone, Debug)]
struct Point {
    phase: Phase,
    call: String,
    nth: u64,
}

impl Point {
    fn fault(&self) -> Fault {
        Fault::kill(&self.call, self.nth)
    }
}

/// How often the busiest thread makes each call, by phase.
type Counts = BTreeMap<Phase, BTreeMap<String, u64>>;

/// What clients know: by `jti` the sequence that they were told, or that no answer came.
type Told = BTreeMap<String, Option<u64>>;

#[test]
fn whatever_call_is_its_last_nothing_acknowledged_is_lost() {
    let points = points(&count(), wanted());
    let mut histories = Vec::new();
    for phase in [Phase::Founding, Phase::Serving, Phase::Stopping] {
        let of_phase: Vec<Point> = points.iter().filter(|point| point.phase == phase).cloned().collect();
        histories.extend(of_phase.chunks(DEATHS).map(<[Point]>::to_vec));
    }
    let total = points.len();
    let (reached, acknowledged, twice) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let queue = Mutex::new(histories.into_iter().enumerate());
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no lane failed").next();
                    let Some((seed, points)) = next else { return };
                    let outcome = match points.first().map(|point| point.phase) {
                        Some(Phase::Founding) => points.iter().map(founded_at).sum(),
                        _ => History::new(seed as u64).run(&points),
                    };
                    reached.fetch_add(outcome.reached, Ordering::Relaxed);
                    acknowledged.fetch_add(outcome.acknowledged, Ordering::Relaxed);
                    twice.fetch_add(outcome.twice, Ordering::Relaxed);
                }
            });
        }
    });
    let (reached, acknowledged) = (reached.into_inner(), acknowledged.into_inner());
    println!(
        "{total} deaths, {reached} of them at their call, {} followed by another one while starting; {acknowledged} \
         acknowledged, 0 lost; {} s",
        twice.into_inner(),
        began.elapsed().as_secs()
    );
    assert!(reached * 3 >= total as u64 * 2, "only {reached} of {total} points were reached");
    assert!(acknowledged > total as u64, "only {acknowledged} revocations were acknowledged");
}

fn wanted() -> u64 {
    let count = std::env::var("REVOCAST_CRASH_POINTS").ok().and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| if std::env::var_os("REVOCAST_LONG").is_some() { 2_000 } else { 200 })
}

/// Watches one server through its life.
fn count() -> Counts {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let log = site.path("calls.log");
    let told = || most_calls(&std::fs::read_to_string(&log).expect("a log"));
    let mut server = site.server(Via::Broker(&mosquitto.url()), &[]);
    let mut counts = Counts::new();

    assert!(server.start_beside(&Beside::log(&log, &CALLS)), "{}", server.process().log());
    found(&server);
    server.kill();
    counts.insert(Phase::Founding, told());

    assert!(server.start_beside(&Beside::log(&log, &CALLS)), "{}", server.process().log());
    let _ = load(&mut server, "counted", COUNTED);
    server.kill();
    counts.insert(Phase::Serving, told());

    server.start();
    let tracer = Tracer::log(server.process().id(), &log, &CALLS);
    assert!(server.process().stop().success());
    drop(tracer);
    counts.insert(Phase::Stopping, told());
    for (phase, calls) in &counts {
        println!("{phase:?}: {calls:?}");
    }
    counts
}

/// Spreads points over all calls of all phases: rare ones are all taken, the others share what is left.
fn points(counts: &Counts, wanted: u64) -> Vec<Point> {
    let mut calls: Vec<(Phase, &String, u64)> =
        counts.iter().flat_map(|(phase, calls)| calls.iter().map(|(call, &last)| (*phase, call, last))).collect();
    calls.sort_by_key(|(phase, _, last)| (*phase == Phase::Serving, *last));
    let (mut points, mut left) = (Vec::new(), wanted);
    let mut calls_left = calls.len() as u64;
    for (phase, call, last) in calls {
        // Under load the same call comes at another moment each time; elsewhere once is enough.
        let most = if phase == Phase::Serving && last >= WRITERS { u64::MAX } else { last };
        let share = (left / calls_left).min(most);
        points.extend((0..share).map(|place| Point { phase, call: call.clone(), nth: 1 + place * last / share }));
        left -= share;
        calls_left -= 1;
    }
    let mut random = Random::new(34);
    for place in (1..points.len()).rev() {
        points.swap(place, random.below(place as u64 + 1) as usize);
    }
    points
}

/// What became of some points.
#[derive(Default)]
struct Outcome {
    /// Deaths at the call that was meant, and not a little later.
    reached: u64,
    /// Revocations of which a client was told the sequence.
    acknowledged: u64,
    /// Deaths that were followed by another one.
    twice: u64,
}

impl std::iter::Sum for Outcome {
    fn sum<I: Iterator<Item = Self>>(outcomes: I) -> Self {
        outcomes.fold(Self::default(), |sum, outcome| Self {
            reached: sum.reached + outcome.reached,
            acknowledged: sum.acknowledged + outcome.acknowledged,
            twice: sum.twice + outcome.twice,
        })
    }
}

/// Founds the realm, unless that kills the server.
fn found(server: &Server) {
    let realm = json!({ "name": REALM, "issuer": revocast_tests::process::ISSUER });
    match server.try_post("/v1/realms", &realm) {
        Ok((200 | 201, _)) | Err(_) => {}
        Ok(other) => panic!("the realm is not founded: {other:?}"),
    }
}

/// A server dies while it makes its ledger, or its realm, or records its first entry. The next one finds half a
/// beginning and makes a whole of it.
fn founded_at(point: &Point) -> Outcome {
    let site = Site::new();
    let mut server = site.server(Via::Embedded, &[]);
    let mut first = None;
    if server.start_beside(&Beside::fault(&point.fault())) {
        found(&server);
        first = Client::of(&server).revoke(&["first".to_owned()], exp()).and_then(|told| told.first().copied());
    }
    let reached = u64::from(!server.process().is_running());
    server.kill();
    server.start();
    found(&server);
    let receipts = server.revoke_all(&["first".to_owned()], exp());
    let [receipt] = receipts.as_slice() else { panic!("{point:?}: {receipts:?}") };
    assert_eq!(number(receipt, "sequence"), 1, "{point:?}: {receipt}");
    assert!(first.is_none_or(|sequence| sequence == 1 && is_known(receipt)), "{point:?}: {first:?}, then {receipt}");
    server.wait_until_published();
    assert!(server.process().stop().success());
    verify_ledger(&site, 1);
    Outcome { reached, acknowledged: u64::from(first.is_some()), twice: 0 }
}

/// One ledger through many deaths, and a device that follows it.
struct History {
    site: Site,
    mosquitto: Mosquitto,
    server: Server,
    agent: Agent,
    random: Random,
    exp: u64,
    told: Told,
}

impl History {
    fn new(seed: u64) -> Self {
        let (site, mosquitto) = (Site::new(), Mosquitto::start());
        let server = site.found(Via::Broker(&mosquitto.url()));
        let agent = site.agent("door", &mosquitto.url());
        agent.wait_until_at(0);
        Self { site, mosquitto, server, agent, random: Random::new(seed), exp: exp(), told: Told::new() }
    }

    fn run(mut self, points: &[Point]) -> Outcome {
        let mut outcome = Outcome::default();
        for (round, point) in points.iter().enumerate() {
            let told = match point.phase {
                Phase::Founding => unreachable!("its histories are of one point each"),
                Phase::Serving => self.die_serving(&format!("r{round}"), point, &mut outcome),
                Phase::Stopping => self.die_stopping(&format!("r{round}"), point, &mut outcome),
            };
            if self.random.chance(25) {
                self.die_starting();
                outcome.twice += 1;
            }
            self.server.start();
            self.check(point, &told);
            self.told.extend(told);
            if round % 8 == 0 {
                self.server.wait_until_published();
            }
        }
        outcome.acknowledged = self.told.values().flatten().count() as u64;
        self.end();
        outcome
    }

    /// Starts on what the last crash left, and dies then or under load.
    fn die_serving(&mut self, name: &str, point: &Point, outcome: &mut Outcome) -> Told {
        self.server.kill();
        let up = self.server.start_beside(&Beside::fault(&point.fault()));
        let told = if up { load(&mut self.server, name, REQUESTS_MAX) } else { Told::new() };
        outcome.reached += u64::from(!self.server.process().is_running());
        self.server.kill();
        told
    }

    /// Records a little, and dies in an orderly end.
    fn die_stopping(&mut self, name: &str, point: &Point, outcome: &mut Outcome) -> Told {
        let jtis: Vec<String> = (0..20).map(|number| format!("{name}-{number}")).collect();
        let receipts = self.server.revoke_all(&jtis, self.exp);
        let told = jtis.into_iter().zip(receipts.iter().map(|receipt| Some(number(receipt, "sequence")))).collect();
        let tracer = Tracer::of_process(self.server.process().id(), &point.fault());
        // A signal ended it, or it ended before it came to that call.
        outcome.reached += u64::from(!self.server.process().stop().success());
        drop(tracer);
        told
    }

    /// Comes up after a crash and dies again at one of its first calls.
    fn die_starting(&mut self) {
        let call = *self.random.pick(&["write", "pwrite64", "fsync", "ftruncate"]);
        let fault = Fault::kill(call, 1 + self.random.below(4));
        self.server.start_beside(&Beside::fault(&fault));
        self.server.kill();
    }

    /// What must hold after a death.
    fn check(&mut self, point: &Point, told: &Told) {
        let known: Vec<(&String, u64)> = told.iter().filter_map(|(jti, told)| Some((jti, (*told)?))).collect();
        // Nobody asks for anything: the publisher goes on by itself.
        let highest = known.iter().map(|(_, sequence)| *sequence).max().unwrap_or(0);
        self.agent.wait_until_at(highest);
        for (jti, _) in known.iter().step_by(known.len() / 8 + 1) {
            assert_eq!(self.agent.verdict(jti, self.exp), "revoked", "{point:?}: {jti} was acknowledged");
        }
        let receipts = self.server.revoke_all(told.keys(), self.exp);
        for ((jti, told), receipt) in told.iter().zip(&receipts) {
            if let Some(sequence) = told {
                let found = (number(receipt, "sequence"), is_known(receipt));
                assert_eq!(found, (*sequence, true), "{point:?}: {jti} was acknowledged");
            }
        }
    }

    /// What must hold in the end.
    fn end(mut self) {
        let jtis: Vec<String> = self.told.keys().cloned().collect();
        let receipts = self.server.revoke_all(&jtis, self.exp);
        let mut numbers = BTreeSet::new();
        for ((jti, told), receipt) in self.told.iter().zip(&receipts) {
            let sequence = number(receipt, "sequence");
            assert!(is_known(receipt) && told.is_none_or(|told| told == sequence), "{jti}: {told:?}, then {receipt}");
            assert!(numbers.insert(sequence), "{sequence} was given twice");
        }
        let head = self.server.head();
        assert_eq!((numbers.len() as u64, numbers.last().copied().unwrap_or(0)), (head, head), "a number is left out");
        self.agent.wait_until_at(head);
        let sample = || jtis.iter().step_by(jtis.len() / 50 + 1);
        assert_eq!(self.agent.missing(sample(), self.exp), Vec::<&String>::new());
        // A delta that was stored and not sent before the death is a gap until the manifest tells of it; nothing else.
        let status = self.agent.status();
        assert!(matches!(text(&status, "last_refusal").as_str(), "" | "gap"), "{status}");
        // Whoever comes now finds it all standing.
        self.server.wait_until_published();
        let newcomer = self.site.agent("newcomer", &self.mosquitto.url());
        newcomer.wait_until_at(head);
        assert_eq!(newcomer.missing(sample(), self.exp), Vec::<&String>::new());
        assert_eq!(newcomer.verdict("never-revoked", self.exp), "not-revoked");
        assert!(self.server.process().stop().success());
        verify_ledger(&self.site, head);
    }
}

/// The ledger of a server that has ended holds every number up to `head`, once.
fn verify_ledger(site: &Site, head: u64) {
    let ledger = SqliteLedger::open(&site.path("data")).expect("a ledger that is whole");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let realm = RealmId::new(REALM).expect("a name");
    let entries = runtime.block_on(ledger.scan(realm, Sequence(0), usize::MAX >> 1)).expect("entries");
    assert!(entries.iter().map(|entry| entry.sequence.0).eq(1..=head), "numbers are missing or out of order");
}

fn is_known(receipt: &Value) -> bool {
    receipt.get("recorded") == Some(&json!(false))
}

/// Clients revoke until the server dies, or each of them has asked so often.
fn load(server: &mut Server, name: &str, requests: usize) -> Told {
    let over = Instant::now() + LOAD_MAX;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (client, name) = (Client::of(server), format!("{name}-w{writer}"));
            let size = if writer == 0 { BATCH } else { 1 };
            thread::spawn(move || client.write(&name, size, requests, over))
        })
        .collect();
    let told: Told = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    if told.values().any(Option::is_none) {
        until_true("a server that does not answer is gone", || !server.process().is_running());
    }
    told
}

/// One who revokes, over a connection that stays.
struct Client {
    agent: ureq::Agent,
    realm: String,
    authorization: String,
}

impl Client {
    fn of(server: &Server) -> Self {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Self {
            agent: agent.build().new_agent(),
            realm: format!("{}/v1/realms/{REALM}", server.url()),
            authorization: format!("Bearer {}", server.token()),
        }
    }

    /// Writes down what it is told, and ends with the first request that is not answered.
    fn write(&self, name: &str, size: u64, requests: usize, over: Instant) -> Told {
        let exp = exp();
        let mut told = Told::new();
        for count in 0..requests {
            let jtis: Vec<String> = (0..size).map(|place| format!("{name}-{count}-{place}")).collect();
            let Some(sequences) = self.revoke(&jtis, exp) else {
                told.extend(jtis.into_iter().map(|jti| (jti, None)));
                break;
            };
            told.extend(jtis.into_iter().zip(sequences.into_iter().map(Some)));
            if Instant::now() >= over {
                break;
            }
        }
        told
    }

    /// Returns the sequences, or nothing if the server died over it.
    fn revoke(&self, jtis: &[String], exp: u64) -> Option<Vec<u64>> {
        let one = |jti: &String| json!({ "jti": jti, "exp": exp });
        let (path, body) = match jtis {
            [jti] => ("revocations", one(jti)),
            _ => ("revocations/batch", json!({ "revocations": jtis.iter().map(one).collect::<Vec<_>>() })),
        };
        let request = self.agent.post(format!("{}/{path}", self.realm)).header("authorization", &self.authorization);
        let mut response = request.header("content-type", "application/json").send(body.to_string()).ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        assert_eq!(response.status(), 201, "{text}");
        let answer: Value = serde_json::from_str(&text).ok()?;
        let receipts = match answer.get("receipts").and_then(Value::as_array) {
            Some(receipts) => receipts.clone(),
            None => vec![answer],
        };
        assert_eq!(receipts.len(), jtis.len(), "{text}");
        Some(receipts.iter().map(|receipt| number(receipt, "sequence")).collect())
    }
}
