//! Leader, broker and database are killed in turn under load. In the end every revocation that was acknowledged is
//! applied on every device, and none that a device had applied ever came out as good again.
//!
//! Twenty seconds here; `tests/chaos` runs it for two minutes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use revocast_tests::postgres::Postgres;
use revocast_tests::process::{Mosquitto, REALM, Server, Site, Via, now, until_true};
use serde_json::{Value, json};

/// Revocations that one writer asks for a second, so that the load outlives the test and not the machine.
const PAUSE: Duration = Duration::from_millis(10);

fn leads(server: &Server) -> bool {
    server.get("/v1/status").is_ok_and(|(_, status)| status.pointer("/leader/leading") == Some(&Value::Bool(true)))
}

/// Asks with a short patience: whoever was killed does not answer, and another may.
fn revoke(url: &str, token: &str, body: &str) -> Option<u16> {
    let timeout = Some(Duration::from_secs(2));
    let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(timeout).build().new_agent();
    let request = agent.post(url).header("content-type", "application/json");
    let sent = request.header("authorization", format!("Bearer {token}")).send(body);
    sent.ok().map(|response| response.status().as_u16())
}

/// Revokes one token after the other, and each until a server acknowledges it.
fn write(writer: usize, urls: &[String], token: &str, exp: u64, over: &AtomicBool, acknowledged: &Mutex<Vec<String>>) {
    let mut tries = writer;
    for count in 0..usize::MAX {
        let jti = format!("w{writer}-{count}");
        let body = json!({ "jti": jti, "exp": exp }).to_string();
        // Whether it was recorded is not known until somebody says so; to repeat it changes nothing.
        loop {
            if over.load(Ordering::Relaxed) {
                return;
            }
            if let Some(200 | 201) = revoke(&urls[tries % urls.len()], token, &body) {
                acknowledged.lock().expect("nobody failed").push(jti);
                break;
            }
            tries += 1;
            thread::sleep(PAUSE);
        }
        thread::sleep(PAUSE);
    }
}

#[test]
fn whatever_is_killed_every_acknowledged_revocation_is_applied_on_every_device() {
    let seconds = std::env::var("REVOCAST_CHAOS_SECONDS").map_or(20, |text| text.parse().expect("a number"));
    let (site, mut mosquitto, mut postgres) = (Site::new(), Mosquitto::start(), Postgres::start());
    let (ledger, password) = (postgres.database(), postgres.password_file().display().to_string());
    let more =
        ["--ledger", &ledger, "--ledger-password-file", &password, "--lease-seconds", "3", "--heartbeat-seconds", "2"];
    let broker = mosquitto.url();
    let first = site.found_with(Via::Broker(&broker), &more);
    let second = site.serve_beside("beside", Via::Broker(&broker), &more);
    let mut servers = [first, second];
    let agents: Vec<_> = (0..3).map(|number| site.agent(&format!("device-{number}"), &broker)).collect();
    let exp = now() + 3_600;

    let over = Arc::new(AtomicBool::new(false));
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let urls: Vec<String> =
        servers.iter().map(|server| format!("{}/v1/realms/{REALM}/revocations", server.url())).collect();
    let token = servers[0].token().to_owned();
    let writers: Vec<_> = (0..3_usize)
        .map(|writer| {
            let (over, acknowledged) = (Arc::clone(&over), Arc::clone(&acknowledged));
            let (urls, token) = (urls.clone(), token.clone());
            thread::spawn(move || write(writer, &urls, &token, exp, &over, &acknowledged))
        })
        .collect();

    // What each device has said "revoked" of: it must never say anything else again.
    let mut applied: Vec<BTreeSet<String>> = vec![BTreeSet::new(); agents.len()];
    let mut look = |sample: &[String]| {
        for (agent, applied) in agents.iter().zip(&mut applied) {
            for jti in sample.iter().chain(&applied.iter().take(5).cloned().collect::<Vec<_>>()) {
                match agent.verdict(jti, exp).as_str() {
                    "revoked" => {
                        applied.insert(jti.clone());
                    }
                    other => assert!(!applied.contains(jti), "{jti} was revoked and is {other}"),
                }
            }
        }
    };
    let (begin, mut kills) = (Instant::now(), [0; 3]);
    while begin.elapsed() < Duration::from_secs(seconds) {
        for (victim, count) in kills.iter_mut().enumerate() {
            match victim {
                0 => {
                    if let Some(leader) = servers.iter_mut().find(|server| leads(server)) {
                        leader.kill();
                        *count += 1;
                        thread::sleep(Duration::from_millis(300));
                        leader.start();
                    }
                }
                1 => {
                    mosquitto.kill();
                    *count += 1;
                    thread::sleep(Duration::from_millis(300));
                    mosquitto.restart();
                }
                _ => {
                    postgres.crash();
                    *count += 1;
                    thread::sleep(Duration::from_millis(300));
                    postgres.restart();
                }
            }
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_millis(2_500) {
                let sample: Vec<String> = acknowledged.lock().unwrap().iter().rev().take(5).cloned().collect();
                look(&sample);
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("a writer");
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    until_true("somebody leads", || servers.iter().any(leads));
    let head = servers.iter().find(|server| leads(server)).map_or(0, Server::head);
    for agent in &agents {
        agent.wait_until_at(head);
        assert_eq!(agent.missing(&acknowledged, exp), Vec::<&String>::new());
    }
    look(&acknowledged);
    assert!(kills.iter().all(|&kills| kills > 0) && acknowledged.len() > 50, "{kills:?}, {}", acknowledged.len());
    println!(
        "{} s: {} leaders, {} brokers, {} databases killed; {} acknowledged, all of them applied on {} devices",
        begin.elapsed().as_secs(),
        kills[0],
        kills[1],
        kills[2],
        acknowledged.len(),
        agents.len()
    );
}
