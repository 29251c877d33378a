//! Processes that are killed, brokers that forget, and what must hold all the same: nothing that was
//! acknowledged is lost, and everything converges once the fault is over.
//!
//! Each test opens with its story. The rows are those of the table of attacks and faults.

use std::thread;
use std::time::Duration;

use revocast_tests::Random;
use revocast_tests::process::{
    Agent, Line, Listener, Mosquitto, REALM, Site, Via, now, number, publish, text, until_true,
};
use serde_json::{Value, json};

fn exp() -> u64 {
    now() + 3_600
}

/// The server has acknowledged, the broker is gone, and the server dies before it could say a word.
/// When both are back the revocation arrives.
#[test]
fn what_was_acknowledged_while_the_broker_was_dead_arrives() {
    let (site, mut mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(0);
    mosquitto.kill();
    let sequence = server.revoke("lost-on-the-way", exp());
    assert_eq!(agent.verdict("lost-on-the-way", exp()), "not-revoked", "it cannot know yet");
    server.kill();
    mosquitto.restart();
    server.start();
    agent.wait_until_says("revoked", "lost-on-the-way", exp());
    agent.wait_until_at(sequence);
}

/// The broker stands still (its connections live, nothing is answered), so the server has begun to
/// publish and waits. It dies there.
#[test]
fn what_was_acknowledged_while_the_broker_stood_still_arrives() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(0);
    server.wait_until_published();
    mosquitto.freeze();
    let exp = exp();
    let jtis: Vec<String> = (0..50).map(|number| format!("stuck-{number}")).collect();
    for jti in &jtis {
        server.revoke(jti, exp);
    }
    server.kill();
    mosquitto.thaw();
    server.start();
    agent.wait_until_at(jtis.len() as u64);
    assert_eq!(agent.missing(&jtis, exp), Vec::<&String>::new());
}

/// Row 34, where it is worst for whoever follows (`crash_points.rs` has the rest of it): an epoch is on its way in many small pieces
/// when the server dies, over and over. Devices never see half of one.
#[test]
fn a_server_killed_in_mid_publication_finishes_it_later() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let config = site.write("server.toml", "chunk_bytes = 2048\ngrace_seconds = 0\n");
    let mut server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(0);
    let exp = exp();
    let mut random = Random::new(43);
    let mut all: Vec<String> = Vec::new();
    for round in 0..8 {
        let jtis: Vec<String> = (0..2_000).map(|number| format!("p{round}-{number}")).collect();
        server.revoke_all(&jtis, exp);
        all.extend(jtis);
        thread::sleep(Duration::from_micros(random.below(1_200_000)));
        server.kill_and_restart();
        // Whatever it has by now, it never takes back.
        let first = agent.verdict("p0-0", exp);
        assert!(first == "revoked" || round == 0, "{first} in round {round}");
    }
    let head = server.head();
    assert_eq!(head, all.len() as u64);
    agent.wait_until_at(head);
    server.wait_until_published();
    let sample: Vec<&String> = all.iter().step_by(17).collect();
    assert_eq!(agent.missing(sample.iter().copied(), exp), Vec::<&String>::new());
    // A newcomer finds a whole base and a ladder that fits it.
    let newcomer = site.agent("newcomer", &mosquitto.url());
    newcomer.wait_until_at(head);
    assert_eq!(newcomer.missing(sample, exp), Vec::<&String>::new());
    assert_eq!(newcomer.verdict("never-revoked", exp), "not-revoked");
    assert_eq!(newcomer.status().get("last_refusal"), Some(&Value::Null), "{}", newcomer.status());
}

/// Row 38. The broker dies and comes back knowing nothing, again and again; meanwhile the API accepts.
/// Those who followed, and one who comes for the first time, end with everything.
#[test]
fn a_broker_that_forgets_everything_is_told_again() {
    let (site, mut mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let exp = exp();
    let first: Vec<String> = (0..1_500).map(|number| format!("base-{number}")).collect();
    server.revoke_all(&first, exp);
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(1_500);
    let mut jtis = Vec::new();
    for round in 0..5 {
        mosquitto.kill();
        let down = format!("down-{round}");
        server.revoke(&down, exp);
        // It says what is wrong, and goes on accepting.
        until_true("the server notices", || {
            let (code, status) = server.get("/v1/status").unwrap();
            code == 200 && status.pointer("/broker/connected") == Some(&json!(false))
        });
        let (code, problem) = server.get("/readyz").unwrap();
        assert_eq!((code, text(&problem, "type")), (503, "urn:revocast:problem:not-ready".to_owned()));
        assert!(text(&problem, "detail").contains("broker is not connected"), "{problem}");
        mosquitto.restart();
        let up = format!("up-{round}");
        server.revoke(&up, exp);
        jtis.extend([down, up]);
    }
    let head = server.head();
    assert_eq!(head, 1_510);
    agent.wait_until_at(head);
    assert_eq!(agent.missing(&jtis, exp), Vec::<&String>::new());
    server.wait_until_published();
    let newcomer = site.agent("newcomer", &mosquitto.url());
    newcomer.wait_until_at(head);
    assert_eq!(newcomer.missing(jtis.iter().chain(first.iter().step_by(50)), exp), Vec::<&String>::new());
    assert!(server.process().is_running());
}

/// Row 38, without a broken connection: somebody removes what is retained. The next look repairs it.
#[test]
fn what_somebody_removed_from_the_broker_is_put_back() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let config = site.write("server.toml", "heartbeat_seconds = 1\n");
    let server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    let exp = exp();
    let jtis: Vec<String> = (0..1_500).map(|number| format!("jti-{number}")).collect();
    server.revoke_all(&jtis, exp);
    let published = server.wait_until_published();
    let epoch = number(&published, "epoch");
    for topic in ["manifest".to_owned(), "keys".to_owned(), format!("e/{epoch}/index"), format!("e/{epoch}/list/0")] {
        publish(&mosquitto.url(), &format!("revocast/{REALM}/{topic}"), Vec::new(), true);
    }
    let newcomer = site.agent("newcomer", &mosquitto.url());
    newcomer.wait_until_at(1_500);
    assert_eq!(newcomer.missing(jtis.iter().step_by(50), exp), Vec::<&String>::new());
}

/// Row 50. A device on a thin line is killed again and again while a base comes in, the first time with
/// nothing, later with an older state. Half a base never answers: it says "unknown" or what the older
/// state says; in the end it has everything.
#[test]
fn a_device_killed_in_mid_download_never_answers_from_half_a_base() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let config = site.write("server.toml", "chunk_bytes = 2048\n");
    let server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    let exp = exp();
    let old: Vec<String> = (0..4_000).map(|number| format!("old-{number}")).collect();
    server.revoke_all(&old, exp);
    server.wait_until_published();

    let line = Line::to(mosquitto.address());
    let mut agent = site.agent("door", &line.url());
    let mut random = Random::new(50);
    for _ in 0..4 {
        // Some 15 KB are a base here: enough to begin with, never enough to finish.
        line.allow(1_000 + random.below(9_000));
        line.wait_until_used_up();
        assert_unknown(&agent);
        agent.kill();
        agent.start();
        assert_unknown(&agent);
    }
    line.allow(u64::MAX / 2);
    agent.wait_until_at(4_000);
    assert_eq!(agent.missing(old.iter().step_by(37), exp), Vec::<&String>::new());
    until_true("the state is written down", || number(&agent.status(), "persisted") > 0);

    // Off the line, much happens: what it missed is more than the ladder carries.
    agent.kill();
    let new: Vec<String> = (0..12_000).map(|number| format!("new-{number}")).collect();
    server.revoke_all(&new, exp);
    server.wait_until_published();
    let thin = Line::to(mosquitto.address());
    agent.move_to(&thin.url());
    for _ in 0..4 {
        agent.start();
        thin.allow(1_000 + random.below(12_000));
        thin.wait_until_used_up();
        let lost = agent.missing(old.iter().step_by(97), exp);
        assert_eq!(lost, Vec::<&String>::new(), "what it knew it knows");
        agent.kill();
    }
    thin.allow(u64::MAX / 2);
    agent.start();
    agent.wait_until_at(16_000);
    assert_eq!(agent.missing(old.iter().chain(&new).step_by(41), exp), Vec::<&String>::new());
    assert_eq!(agent.verdict("never-revoked", exp), "not-revoked");
}

#[track_caller]
fn assert_unknown(agent: &Agent) {
    let answer = agent.check("old-7", exp());
    assert_eq!((text(&answer, "verdict"), text(&answer, "decision")), ("unknown".to_owned(), "deny".to_owned()));
}

/// Row 8. Retained packets larger than any object lie on topics of ours. Each breaks the connection of
/// whoever subscribes there, after every reconnect again. The device finds out which, leaves them alone,
/// and follows the others; the server puts back what was overwritten.
#[test]
fn oversize_retained_packets_are_no_reconnect_loop() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let config = site.write("server.toml", "heartbeat_seconds = 1\n");
    let server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(0);
    let before = mosquitto.connects("door");
    for topic in ["live", "keys"] {
        publish(&mosquitto.url(), &format!("revocast/{REALM}/{topic}"), vec![b'x'; 3 * 1024 * 1024], true);
    }
    // Whoever was there got it as a live packet; whoever comes gets what is retained.
    let exp = exp();
    let sequence = server.revoke("in-spite-of-it", exp);
    agent.wait_until_says("revoked", "in-spite-of-it", exp);
    agent.wait_until_at(sequence);
    // Nothing of ours is retained on `live`, so there it stays; the keys are put back.
    let retained = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/keys"));
    until_true("the keys are put back", || retained.heard().last().is_some_and(|(_, keys)| keys.starts_with(b"RVC")));
    let newcomer = site.agent("newcomer", &mosquitto.url());
    newcomer.wait_until_at(sequence);
    assert_eq!(newcomer.verdict("in-spite-of-it", exp), "revoked");

    // Quiet from here on: what is quarantined stays so for 30 s at least.
    let settled = [mosquitto.connects("door"), mosquitto.connects("newcomer")];
    let published = number(&server.wait_until_published(), "issued_at_ms");
    until_true("three heartbeats", || number(&server.wait_until_published(), "issued_at_ms") > published + 3_000);
    let after = [mosquitto.connects("door"), mosquitto.connects("newcomer")];
    assert!(after[0] - before <= 8 && after[1] <= 8, "{before} connections before, then {settled:?}, then {after:?}");
    assert!(after[0] - settled[0] <= 1 && after[1] - settled[1] <= 1, "{settled:?}, then {after:?}");
    // The server reads back what it published, over a connection of its own for each look.
    let readers = mosquitto.connects_where(|name| name.ends_with("-r"));
    assert!(readers < 60, "the server came {readers} times to read");
}

/// Row 51. Two devices by one name push each other off the broker. They back off, and both know what
/// was revoked all the same.
#[test]
fn two_devices_with_one_name_do_not_storm_the_broker() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let one = site.agent_with("one", &mosquitto.url(), &["--client-id", "twin"]);
    one.wait_until_at(0);
    let other = site.agent_with("other", &mosquitto.url(), &["--client-id", "twin"]);
    other.wait_until_at(0);
    let exp = exp();
    server.revoke("seen-by-both", exp);
    for agent in [&one, &other] {
        agent.wait_until_says("revoked", "seen-by-both", exp);
    }
    let begun = std::time::Instant::now();
    let before = mosquitto.connects("twin");
    // A stretch of time is what the claim is about: connections in it, not when they happen.
    thread::sleep(Duration::from_secs(5));
    let after = mosquitto.connects("twin");
    let rate = (after - before) as f64 / begun.elapsed().as_secs_f64();
    assert!(rate < 5.0, "{rate:.1} connections a second; {before}, then {after}");
    assert_eq!(one.verdict("seen-by-both", exp), "revoked");
    assert_eq!(other.verdict("seen-by-both", exp), "revoked");
}
