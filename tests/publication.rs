//! Publication as reconciliation: what the broker lost is put back soon, what it only pretends to keep is noticed, a
//! restored backup is refused, a missing key is waited for, and what would be done can be asked for.
//!
//! The rows are those of the table of attacks and faults.

use std::fs;
use std::time::{Duration, Instant};

use revocast_tests::process::{Listener, Mosquitto, REALM, Site, Via, now, number, revocast, text, until, until_true};
use serde_json::{Value, json};

fn exp() -> u64 {
    now() + 3_600
}

/// Row 38. The broker is killed and comes back empty, again and again, with a base of many pieces to be put back. Each
/// time all of it stands again soon. `REVOCAST_BROKER_ROUNDS` runs it longer.
#[test]
fn a_broker_that_lost_everything_is_whole_again_within_ten_seconds() {
    let rounds = std::env::var("REVOCAST_BROKER_ROUNDS").map_or(5, |text| text.parse().expect("a number"));
    let (site, mut mosquitto) = (Site::new(), Mosquitto::start());
    let config = site.write("server.toml", "chunk_bytes = 2048\n");
    let server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    let exp = exp();
    let jtis: Vec<String> = (0..4_000).map(|number| format!("base-{number}")).collect();
    server.revoke_all(&jtis, exp);
    let objects = number(&server.wait_until_published(), "objects");
    assert!(objects > 12, "{objects}");
    let mut took = Vec::new();
    for round in 0..rounds {
        mosquitto.kill();
        let sequence = server.revoke(&format!("down-{round}"), exp);
        mosquitto.restart();
        let back = Instant::now();
        // Asked of the broker itself: whatever the server says, somebody who comes now must find everything.
        let retained = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/manifest"));
        until_true("a manifest stands there", || {
            retained.heard().iter().any(|(_, bytes)| {
                let manifest = revocast_core::Sealed::parse(bytes).map(|sealed| sealed.unverified_body());
                manifest.is_ok_and(|body| {
                    revocast_core::wire::decode_manifest(body).is_ok_and(|manifest| manifest.sequence.0 >= sequence)
                })
            })
        });
        took.push(back.elapsed());
    }
    took.sort_unstable();
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    println!("{rounds} rounds, {objects} objects: p50 {:?}, p99 {p99:?}", took[took.len() / 2]);
    assert!(p99 <= Duration::from_secs(10), "{took:?}");
    let newcomer = site.agent("newcomer", &mosquitto.url());
    newcomer.wait_until_at(4_000 + rounds as u64);
    assert_eq!(newcomer.missing(jtis.iter().step_by(97), exp), Vec::<&String>::new());
}

/// Row 38. The broker is away while a hundred thousand tokens are revoked. The server does not queue them: they lie in
/// the ledger, and once the broker is back they go out as one base, not as a flood of deltas.
#[test]
fn what_is_revoked_while_the_broker_is_away_does_not_queue_up() {
    let (site, mut mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let exp = exp();
    server.revoke("before", exp);
    server.wait_until_published();
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(1);
    mosquitto.kill();
    let jtis: Vec<String> = (0..100_000).map(|number| format!("away-{number}")).collect();
    let (first, rest) = jtis.split_at(5_000);
    server.revoke_all(first, exp);
    let id = server.process().id();
    let before = resident_kib(id);
    server.revoke_all(rest, exp);
    let grown = resident_kib(id).saturating_sub(before);
    println!("{} more revocations without a broker: {grown} KiB more", rest.len());
    assert!(grown < 64 * 1_024, "{grown} KiB");
    mosquitto.restart();
    let sniffer = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/live"));
    agent.wait_until_at(100_001);
    let live = sniffer.heard().len();
    println!("{live} live deltas after the return");
    assert!(live <= 10, "{live}");
    assert_eq!(agent.missing(jtis.iter().step_by(997), exp), Vec::<&String>::new());
    let published = server.wait_until_published();
    assert!(number(&published, "epoch") > 1, "{published}");
}

/// Memory of a process that is really there.
fn resident_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Row 38. A broker acknowledges what its access rules drop. The server finds out by reading back, says which topic,
/// publishes no manifest that names what is not there, and goes on once the rules are mended.
#[test]
fn a_broker_that_acknowledges_and_drops_is_noticed() {
    let site = Site::new();
    let rules = |more: &str| {
        format!(
            "topic read revocast/#\ntopic readwrite revocast/_probe/#\ntopic readwrite revocast/{REALM}/manifest\n\
             topic readwrite revocast/{REALM}/keys/#\ntopic readwrite revocast/{REALM}/live\n\
             topic readwrite revocast/{REALM}/jwks\n\
             topic readwrite revocast/{REALM}/ladder/#\ntopic readwrite revocast/{REALM}/devices/#\n{more}"
        )
    };
    let acl = site.write("acl", rules(""));
    let mosquitto = Mosquitto::start_with(&format!("acl_file {acl}\n"));
    let server = site.found(Via::Broker(&mosquitto.url()));
    let exp = exp();
    let sequence = server.revoke("a", exp);
    let trouble = until("the trouble is told", || {
        let trouble = text(server.realm().get("published")?, "trouble");
        trouble.contains("does not retain").then_some(trouble)
    });
    assert!(trouble.contains("revocast/fleet/e/1/") && trouble.contains("access rules"), "{trouble}");
    let sniffer = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/manifest"));
    assert!(sniffer.heard().is_empty(), "a manifest names what is not there");
    let _ = site.write("acl", rules(&format!("topic readwrite revocast/{REALM}/e/#\n")));
    mosquitto.reload();
    let published = server.wait_until_published();
    assert_eq!(published.get("trouble"), None, "{published}");
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(sequence);
    assert_eq!(agent.verdict("a", exp), "revoked");
}

/// Row 40. The ledger's file is put back from a backup; the broker inside the server remembers nothing. The server
/// refuses to start, and says why. With the operator's word it goes on in a new term; devices follow, and what was
/// revoked in the backup never came out as good.
#[test]
fn a_restored_backup_is_refused_until_the_operator_confirms_it() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    let exp = exp();
    let kept: Vec<String> = (0..200).map(|number| format!("kept-{number}")).collect();
    let lost: Vec<String> = (0..100).map(|number| format!("lost-{number}")).collect();
    server.revoke_all(&kept, exp);
    server.wait_until_published();
    let mut agent = site.agent("door", &server.broker());
    agent.wait_until_at(200);
    assert!(server.process().stop().success());
    let ledger = || {
        let files = fs::read_dir(site.path("data")).expect("a folder").map(|file| file.expect("a file").path());
        files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ledger.db")))
    };
    let backup: Vec<_> = ledger().map(|path| (path.clone(), fs::read(path).expect("a ledger"))).collect();
    server.start();
    server.revoke_all(&lost, exp);
    server.wait_until_published();
    agent.wait_until_at(300);
    assert_eq!(agent.missing(kept.iter().chain(&lost), exp), Vec::<&String>::new());
    assert!(server.process().stop().success());

    for path in ledger() {
        fs::remove_file(path).expect("gone");
    }
    for (path, bytes) in &backup {
        fs::write(path, bytes).expect("restored");
    }
    let data = site.text("data");
    let serve = ["serve", "--data", &data, "--listen", "127.0.0.1:0", "--embedded-broker", "127.0.0.1:0"];
    for _ in 0..2 {
        revocast(serve).fails(1, &["ends at 200, but 300 was published", "restored from a backup", "--resume"]);
    }
    let server = site.serve_with(Via::Embedded, &["--resume"]);
    let published = until("it goes on", || {
        server.realm().get("published").filter(|published| number(published, "term") == 2).cloned()
    });
    assert!(number(&published, "sequence") > 1_000_000, "{published}");
    server.revoke_all(&lost, exp);
    agent.kill();
    agent.move_to(&server.broker());
    agent.start();
    // At no time does it say anything else of what the backup holds.
    let head = server.head();
    until_true("the device has moved to the new term", || {
        assert_eq!(agent.missing(kept.iter().step_by(40), exp), Vec::<&String>::new());
        let status = agent.status();
        number(&status, "sequence") >= head && status.get("doubt").is_some_and(Value::is_null)
    });
    assert_eq!(agent.missing(kept.iter().chain(&lost), exp), Vec::<&String>::new());
}

/// Row 42. The publisher's key is not there. The server takes requests and says what is missing; once the key is put
/// back it publishes by itself.
#[test]
fn a_missing_publisher_key_is_told_and_waited_for() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let exp = exp();
    let agent = site.agent("door", &mosquitto.url());
    let sequence = server.revoke("early", exp);
    agent.wait_until_at(sequence);
    assert!(server.process().stop().success());
    let (key, away) = (site.path("data/keys/publisher.key"), site.path("publisher.key.away"));
    fs::rename(&key, &away).expect("taken away");
    server.start();
    let sequence = server.revoke("late", exp);
    let ready = until("it says so", || {
        let (code, ready) = server.get("/readyz").ok()?;
        text(&ready, "detail").contains("publisher's key").then_some((code, ready))
    });
    assert_eq!(ready.0, 503, "{}", ready.1);
    assert!(text(&ready.1, "detail").contains("publisher.key"), "{}", ready.1);
    assert_eq!(agent.verdict("late", exp), "not-revoked", "nobody could tell it");
    fs::rename(&away, &key).expect("put back");
    agent.wait_until_says("revoked", "late", exp);
    agent.wait_until_at(sequence);
    until_true("it is ready", || server.get("/readyz").is_ok_and(|(code, _)| code == 200));
    let published = server.wait_until_published();
    assert!(number(&published, "heartbeat_age_ms") < 45_000, "{published}");
}

/// What would be published can be asked for, as text and as JSON, and is not done by that.
#[test]
fn a_plan_is_told_and_not_executed() {
    let (site, mut mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let exp = exp();
    server.revoke("a", exp);
    server.wait_until_published();
    let told = server.command(&["publish", "--dry-run", "--realm", REALM]).ok();
    assert!(told.stdout.starts_with("realm fleet: term 1, epoch 1, published to 1 of 1;"), "{}", told.stdout);
    assert!(told.stdout.contains("a new epoch is due: -"), "{}", told.stdout);
    let plan = |server: &revocast_tests::process::Server| {
        server
            .command(&["--json", "publish", "--dry-run"])
            .ok()
            .json()
            .pointer("/plans/0/plan")
            .cloned()
            .expect("a plan")
    };
    assert_eq!(plan(&server).pointer("/epoch_policy/entries"), Some(&json!(1)));
    // Without the broker nothing is done, and what would be done is told all the same.
    mosquitto.kill();
    until_true("it notices", || !server.get("/v1/status").unwrap().1["broker"]["connected"].as_bool().unwrap());
    let before = server.realm();
    let _ = plan(&server);
    let after = server.realm();
    assert_eq!(before.pointer("/published/issued_at_ms"), after.pointer("/published/issued_at_ms"));
    let unknown = server.command(&["publish", "--dry-run", "--realm", "nowhere"]);
    unknown.fails(1, &["nowhere"]);
    server.command(&["publish"]).fails(2, &["--dry-run"]);
}
