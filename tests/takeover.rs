//! Several servers on one database and one broker: one leads, and whatever becomes of it nothing that was acknowledged
//! is lost, and no two versions of one thing are ever published.
//!
//! Rows 37 to 43 of the table of attacks and faults, those that need more than one server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use revocast_core::{Digest, Kind, Sealed, Width, wire};
use revocast_tests::postgres::Postgres;
use revocast_tests::process::{
    Heard, Listener, Mosquitto, REALM, Server, Site, Via, ask, now, number, publish, text, until, until_true,
};
use serde_json::{Value, json};

/// Two servers on one database and one broker.
struct Pair {
    site: Site,
    mosquitto: Mosquitto,
    servers: [Server; 2],
    // Dropped last.
    _postgres: Postgres,
}

impl Pair {
    fn start(lease_seconds: u64) -> Self {
        let (site, mosquitto, postgres) = (Site::new(), Mosquitto::start(), Postgres::start());
        let (url, password) = (postgres.database(), postgres.password_file().display().to_string());
        let lease = lease_seconds.to_string();
        let more = ["--ledger", &url, "--ledger-password-file", &password, "--lease-seconds", &lease];
        let more = [&more[..], &["--heartbeat-seconds", "2"]].concat();
        let broker = mosquitto.url();
        let first = site.found_with(Via::Broker(&broker), &more);
        let second = site.serve_beside("beside", Via::Broker(&broker), &more);
        until_true("the second follows", || leader(&second).is_some_and(|leader| !leader.leading && leader.named));
        Self { site, mosquitto, servers: [first, second], _postgres: postgres }
    }

    /// Which of the two leads, once one does.
    fn leading(&self) -> usize {
        until("one leads", || {
            self.servers.iter().position(|server| leader(server).is_some_and(|leader| leader.leading))
        })
    }
}

/// What a server says of who leads.
struct Leader {
    leading: bool,
    named: bool,
}

fn leader(server: &Server) -> Option<Leader> {
    let (_, status) = server.get("/v1/status").ok()?;
    let leading = status.pointer("/leader/leading").and_then(Value::as_bool)?;
    Some(Leader { leading, named: status.pointer("/leader/leader").is_some() })
}

/// Somebody who revokes one token after the other at whichever server answers, and repeats what was not answered.
struct Load {
    over: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(name: &str, servers: &[Server], exp: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let token = servers[0].token().to_owned();
        let urls: Vec<String> =
            servers.iter().map(|server| format!("{}/v1/realms/{REALM}/revocations", server.url())).collect();
        let writers = (0..2_usize).map(|writer| {
            let (over, urls, token, name) = (Arc::clone(&over), urls.clone(), token.clone(), name.to_owned());
            thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for count in 0..usize::MAX {
                    let jti = format!("{name}-{writer}-{count}");
                    let body = json!({ "jti": jti, "exp": exp }).to_string();
                    // Whether it was recorded is not known until somebody says so: it is asked again, of the other.
                    for attempt in writer.. {
                        if over.load(Ordering::Relaxed) {
                            return acknowledged;
                        }
                        let url = &urls[attempt % urls.len()];
                        match revoke(url, &token, &body) {
                            Ok(200 | 201) => {
                                acknowledged.push(jti);
                                break;
                            }
                            Ok(503 | 500 | 408) | Err(_) => thread::sleep(Duration::from_millis(20)),
                            Ok(other) => panic!("{jti}: {other}"),
                        }
                    }
                }
                acknowledged
            })
        });
        Self { over: Arc::clone(&over), writers: writers.collect() }
    }

    /// Ends it; everything that was acknowledged.
    fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    }
}

/// Asks with a patience of its own: a server that was paused does not answer for long.
fn revoke(url: &str, token: &str, body: &str) -> Result<u16, String> {
    let timeout = Some(Duration::from_secs(1));
    let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(timeout).build().new_agent();
    let request = agent.post(url).header("content-type", "application/json");
    let sent = request.header("authorization", format!("Bearer {token}")).send(body);
    sent.map(|response| response.status().as_u16()).map_err(|error| error.to_string())
}

/// Term and sequence of the manifest that a server says it published last.
fn published(server: &Server) -> Option<(u64, u64)> {
    let (_, status) = server.get("/v1/status").ok()?;
    let published = status.pointer("/realms/0/published").filter(|published| !published.is_null())?;
    Some((number(published, "term"), number(published, "sequence")))
}

/// Insists that nothing was ever published in two versions: no two manifests with one (term, sequence, time), no two
/// indexes of one (term, epoch), no two deltas over one (term, from, to). Returns how many there were of each.
fn assert_one_version(heard: &Heard) -> [usize; 3] {
    let mut seen: BTreeMap<(u8, u64, u64, u64), Digest> = BTreeMap::new();
    let mut counts = [0; 3];
    for (topic, bytes) in heard.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        let Ok(sealed) = Sealed::parse(bytes) else { continue };
        let body = sealed.unverified_body();
        let name = match sealed.kind() {
            Kind::Manifest => {
                let manifest = wire::decode_manifest(body).expect("a manifest");
                (0, u64::from(manifest.term.0), manifest.sequence.0, manifest.issued_at.millis())
            }
            Kind::Index => {
                let index = wire::decode_index(body).expect("an index");
                (1, u64::from(index.term.0), index.epoch.0, 0)
            }
            Kind::Delta => {
                let delta = wire::decode_delta(body, Width::W48).expect("a delta");
                (2, u64::from(delta.term.0), delta.from.0, delta.to.0)
            }
            _ => continue,
        };
        counts[usize::from(name.0)] += 1;
        let digest = Digest::of(bytes);
        let first = *seen.entry(name).or_insert(digest);
        assert_eq!(first, digest, "two versions of {name:?} on {topic}");
    }
    counts
}

/// Row 39. The leader dies under load, without a word. The other publishes within ten seconds, in a higher term;
/// whatever either of them acknowledged arrives; and what the dead one had said is refused when somebody says it again.
#[test]
fn a_killed_leader_is_replaced_within_ten_seconds_and_nothing_is_lost() {
    let mut pair = Pair::start(6);
    let exp = now() + 3_600;
    let agent = pair.site.agent("door", &pair.mosquitto.url());
    let sniffer = Listener::start(&pair.mosquitto.url(), "revocast/#");
    let old = pair.leading();
    pair.servers[old].wait_until_published();
    let load = Load::start("load", &pair.servers, exp);
    let before =
        until("something is published", || published(&pair.servers[old]).filter(|(_, sequence)| *sequence > 20));
    let stale = sniffer.wait_for("/manifest");
    pair.servers[old].kill();
    let dead = Instant::now();
    let new = 1 - old;
    let after = until("the other publishes", || published(&pair.servers[new]).filter(|after| after.0 > before.0));
    let took = dead.elapsed();
    println!("the other published in term {} after {} ms", after.0, took.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}");
    thread::sleep(Duration::from_millis(500));
    let acknowledged = load.end();
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    let head = pair.servers[new].head();
    agent.wait_until_at(head);
    assert_eq!(agent.missing(&acknowledged, exp), Vec::<&String>::new());
    assert_one_version(&sniffer.heard());

    // Somebody kept what the dead leader said.
    publish(&pair.mosquitto.url(), &format!("revocast/{REALM}/manifest"), stale, true);
    until_true("it is refused", || text(&agent.status(), "last_refusal") == "rollback");
    assert_eq!(agent.missing(&acknowledged, exp), Vec::<&String>::new());
    let newcomer = pair.site.agent("newcomer", &pair.mosquitto.url());
    newcomer.wait_until_at(head);
    assert_eq!(newcomer.missing(acknowledged.iter().step_by(7), exp), Vec::<&String>::new());
}

/// Row 39. The leader stands still past its lease, the other takes over, the first goes on. Nothing is published in two
/// versions, and the first one follows. `REVOCAST_TAKEOVER_ROUNDS` runs it longer.
#[test]
fn a_leader_that_was_paused_past_its_lease_does_no_harm() {
    let rounds = std::env::var("REVOCAST_TAKEOVER_ROUNDS").map_or(3, |text| text.parse().expect("a number"));
    let pair = Pair::start(2);
    let exp = now() + 3_600;
    let agent = pair.site.agent("door", &pair.mosquitto.url());
    let sniffer = Listener::start(&pair.mosquitto.url(), "revocast/#");
    let mut servers = pair.servers;
    let leading = |servers: &[Server; 2]| {
        until("one leads", || servers.iter().position(|server| leader(server).is_some_and(|leader| leader.leading)))
    };
    let first = leading(&servers);
    servers[first].wait_until_published();
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let old = leading(&servers);
        let new = 1 - old;
        let (term, _) = until("it has published", || published(&servers[old]));
        let load = Load::start(&format!("round{round}"), &servers, exp);
        // At another point of the lease each time.
        thread::sleep(Duration::from_millis(100 + 37 * (round % 60)));
        servers[old].process().signal("STOP");
        until_true("the other publishes", || published(&servers[new]).is_some_and(|after| after.0 > term));
        servers[old].process().signal("CONT");
        until_true("the first follows", || leader(&servers[old]).is_some_and(|leader| !leader.leading && leader.named));
        acknowledged.extend(load.end());
    }
    let head = servers[leading(&servers)].head();
    agent.wait_until_at(head);
    assert_eq!(agent.missing(&acknowledged, exp), Vec::<&String>::new());
    let [manifests, indexes, deltas] = assert_one_version(&sniffer.heard());
    println!("{rounds} rounds: {manifests} manifests, {indexes} indexes, {deltas} deltas; no two versions of any");
    assert!(manifests as u64 > rounds && indexes as u64 > rounds && deltas as u64 > rounds);
}

/// A leader that stops in order hands over: the other need not wait for the lease, and goes on in the same term. Before
/// that it follows: it takes requests, and sends on whoever asks for what only the leader knows.
#[test]
fn a_leader_that_stops_in_order_hands_over_at_once() {
    let mut pair = Pair::start(60);
    let exp = now() + 3_600;
    let agent = pair.site.agent("door", &pair.mosquitto.url());
    let old = pair.leading();
    let new = 1 - old;
    let follower = &pair.servers[new];
    let (code, ready) = follower.get("/readyz").unwrap();
    assert_eq!((code, ready.get("leading")), (200, Some(&json!(false))), "{ready}");
    let (code, problem) = follower.get(&format!("/v1/realms/{REALM}/jti")).unwrap();
    assert_eq!((code, text(&problem, "type")), (503, "urn:revocast:problem:not-leading".to_owned()));
    assert_eq!(text(&problem, "leader_address"), pair.servers[old].url(), "{problem}");
    let sequence = follower.revoke("through-the-follower", exp);
    agent.wait_until_at(sequence);
    assert_eq!(agent.verdict("through-the-follower", exp), "revoked");
    let (term, _) = until("it is published", || published(&pair.servers[old]).filter(|(_, at)| *at >= sequence));

    let stopped = Instant::now();
    assert!(pair.servers[old].process().stop().success());
    let (after, _) = until("the other publishes", || published(&pair.servers[new]));
    println!("handed over after {} ms", stopped.elapsed().as_millis());
    assert!(stopped.elapsed() < Duration::from_secs(15), "{:?}", stopped.elapsed());
    assert_eq!(after, term, "nothing was lost, so the term goes on");
    let sequence = pair.servers[new].revoke("afterwards", exp);
    agent.wait_until_at(sequence);
    assert_eq!(agent.verdict("afterwards", exp), "revoked");
    let (code, _) = ask("GET", &format!("{}/readyz", pair.servers[new].url()), None, b"").unwrap();
    assert_eq!(code, 200);
}
