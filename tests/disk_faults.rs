//! Row 35: the disk is full, or fails; and what an acknowledgement rests on.
//!
//! Whatever fails: no answer promises what is not on the disk, whoever asks is told what happened, and what was
//! acknowledged is there after a restart. A full disk passes: heartbeats go on, and with room again so do requests. A
//! failed fsync does not: what the system still has in memory and what the disk holds may differ from then on, so the
//! server ends by itself, and the next one reads what the disk says.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;

use revocast_core::{Kind, RealmId, Sealed, UnixMillis, wire};
use revocast_tests::process::{
    Listener, Mosquitto, REALM, Server, Site, Via, ask, now, number, text, until, until_true,
};
use revocast_tests::strace::{Fault, Tracer};
use serde_json::{Value, json};

/// The thread of the server that writes its ledger.
const WRITER: &str = "ledger-writer";

/// Room on the small disk: a ledger that is founded, and some hundred revocations.
const SMALL_DISK: &str = "size=4m";

/// Clients at the same time, and how often each asks.
const WRITERS: usize = 4;
const EACH: usize = 25;

fn exp() -> u64 {
    now() + 3_600
}

fn try_revoke(server: &Server, jti: &str) -> Result<(u16, Value), String> {
    server.try_post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": jti, "exp": exp() }))
}

/// Revokes one token after the other, until one is refused or nobody answers. What was acknowledged is added to `told`.
fn revoke_until_refused(server: &Server, name: &str, told: &mut BTreeMap<String, u64>) -> Option<(u16, Value)> {
    for count in 0..5_000 {
        // Long names, so that it takes pages.
        let jti = format!("{name}-{count:0200}");
        match try_revoke(server, &jti) {
            Ok((201, receipt)) => told.insert(jti, number(&receipt, "sequence")),
            Ok(refused) => return Some(refused),
            Err(_) => return None,
        };
    }
    panic!("five thousand revocations, and nothing failed");
}

fn assert_all_there(server: &Server, told: &BTreeMap<String, u64>) {
    let receipts = server.revoke_all(told.keys(), exp());
    for ((jti, sequence), receipt) in told.iter().zip(&receipts) {
        let found = (number(receipt, "sequence"), receipt.get("recorded"));
        assert_eq!(found, (*sequence, Some(&json!(false))), "{jti} was acknowledged");
    }
}

/// The time of the manifest that came last.
fn issued_at(listener: &Listener) -> UnixMillis {
    let bytes = listener.wait_for("manifest");
    let realm = RealmId::new(REALM).expect("a name");
    let sealed = Sealed::expect(&bytes, &realm, Kind::Manifest).expect("a manifest");
    wire::decode_manifest(sealed.unverified_body()).expect("a manifest").issued_at
}

/// Waits for two more heartbeats.
fn assert_heartbeats_go_on(listener: &Listener) {
    for _ in 0..2 {
        let before = issued_at(listener);
        until_true("a heartbeat", || issued_at(listener) > before);
    }
}

/// A site whose server sends a heartbeat each second, and somebody who hears them.
fn beating(site: &Site, mosquitto: &Mosquitto) -> (Server, Listener) {
    let config = site.write("server.toml", "heartbeat_seconds = 1\n");
    let server = site.found_with(Via::Broker(&mosquitto.url()), &["--config", &config]);
    server.wait_until_published();
    let listener = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/manifest"));
    (server, listener)
}

/// Nothing is ever written any more: no room. Every request is refused with 507, and nothing of it is recorded;
/// heartbeats go on; with room again everything goes on.
#[test]
fn without_room_requests_are_refused_and_heartbeats_go_on() {
    for nth in [1, 2, 5, 30] {
        let (site, mosquitto) = (Site::new(), Mosquitto::start());
        let (mut server, listener) = beating(&site, &mosquitto);
        let mut told = BTreeMap::new();
        let full = Tracer::of_thread(server.process().id(), WRITER, &Fault::from("pwrite64", "ENOSPC", nth));
        let (status, problem) = revoke_until_refused(&server, "filling", &mut told).expect("an answer");
        assert_eq!(
            (status, text(&problem, "type")),
            (507, "urn:revocast:problem:storage-full".to_owned()),
            "{problem}"
        );
        assert_eq!(try_revoke(&server, "too-much").map(|(status, _)| status), Ok(507));
        assert_heartbeats_go_on(&listener);
        assert_eq!(server.head(), told.len() as u64, "what was refused is not there");
        assert!(server.process().is_running());

        full.leave();
        let receipt = until("a request is granted again", || match try_revoke(&server, "with-room") {
            Ok((201, receipt)) => Some(receipt),
            Ok((507, _)) => None,
            other => panic!("{other:?}"),
        });
        assert_eq!(number(&receipt, "sequence"), told.len() as u64 + 1, "no number is left out");
        server.wait_until_published();
        server.kill_and_restart();
        assert_all_there(&server, &told);
    }
}

/// A disk that is really full: a file system of its own, of 4 MiB.
#[test]
fn a_disk_that_is_really_full_loses_nothing() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let Some(disk) = SmallDisk::mount(&site.path("disk")) else {
        // Only root may mount; what strace injects is tested all the same.
        println!("no small disk could be mounted here");
        return;
    };
    let config = site.write("server.toml", format!("heartbeat_seconds = 1\nkeys = {:?}\n", site.text("data/keys")));
    let mut server = site.server(Via::Broker(&mosquitto.url()), &["--config", &config]);
    server.keep_data_in(&disk.path);
    server.start();
    let founded = server.post("/v1/realms", &json!({ "name": REALM, "issuer": "i" }));
    assert_eq!(text(&founded, "name"), REALM);
    server.wait_until_published();
    let listener = Listener::start(&mosquitto.url(), &format!("revocast/{REALM}/manifest"));

    let mut told = BTreeMap::new();
    let (status, problem) = revoke_until_refused(&server, "filling", &mut told).expect("an answer");
    assert_eq!((status, text(&problem, "type")), (507, "urn:revocast:problem:storage-full".to_owned()), "{problem}");
    assert!(told.len() > 100, "only {} fitted", told.len());
    assert_heartbeats_go_on(&listener);

    disk.enlarge();
    until_true("a request is granted again", || matches!(try_revoke(&server, "with-room"), Ok((201, _))));
    server.wait_until_published();
    server.kill_and_restart();
    assert_all_there(&server, &told);
    server.process().stop();
    drop(disk);
}

/// A write or an fsync fails for another reason. The request is not granted, the server ends by itself and says why, and
/// after a restart everything that was acknowledged is there.
///
/// (The second fsync after a start is that of the folder. `SQLite` takes no notice of its failure, so the ledger makes the
/// folder durable itself when it opens.)
#[test]
fn after_a_failed_fsync_the_server_ends_and_the_next_one_has_it_all() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let mut told = BTreeMap::new();
    for (round, (call, errno, nth)) in
        [("fsync", "EIO", 1), ("fsync", "EIO", 4), ("fsync", "ENOSPC", 3), ("pwrite64", "EIO", 3)]
            .into_iter()
            .enumerate()
    {
        let tracer = Tracer::of_thread(server.process().id(), WRITER, &Fault::once(call, errno, nth));
        // It may end before the answer is on its way.
        if let Some((status, problem)) = revoke_until_refused(&server, &format!("round-{round}"), &mut told) {
            let kind = text(&problem, "type");
            let known =
                ["ledger-failed", "ledger-stopped", "stopping"].map(|kind| format!("urn:revocast:problem:{kind}"));
            assert!(status == 503 && known.contains(&kind), "{call} {errno}: {status} {problem}");
        }
        assert!(!server.process().wait().success(), "{call} {errno}: it ended as if all were well");
        let log = server.process().log();
        assert!(log.contains("restart"), "{call} {errno}: it does not say what helps:\n{log}");
        drop(tracer);
        server.start();
        assert_all_there(&server, &told);
    }
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(server.head());
    assert_eq!(agent.missing(told.keys().step_by(told.len() / 20 + 1), exp()), Vec::<&String>::new());
}

/// Several clients revoke at the same time. In the order in which the system saw it: for every request that was granted,
/// an fsync of the ledger came back between its arrival and its answer.
#[test]
fn every_acknowledgement_follows_an_fsync() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let log = site.path("calls.log");
    let calls = ["recvfrom", "read", "fsync", "fdatasync", "sendto", "write", "writev"];
    let tracer = Tracer::log(server.process().id(), &log, &calls);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (url, token) = (format!("{}/v1/realms/{REALM}/revocations", server.url()), server.token().to_owned());
            thread::spawn(move || {
                for count in 0..EACH {
                    let body = json!({ "jti": format!("w{writer}-{count}"), "exp": exp() }).to_string();
                    let answer = ask("POST", &url, Some(&token), body.as_bytes()).expect("an answer");
                    assert_eq!(answer.0, 201, "{answer:?}");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("a writer");
    }
    tracer.leave();
    let order = Order::read(&std::fs::read_to_string(&log).expect("a log"));
    assert_eq!(order.answers.len(), WRITERS * EACH, "every request and its answer are found");
    for (asked, answered) in &order.answers {
        let between = order.fsyncs.iter().any(|(begun, ended)| begun > asked && ended < answered);
        assert!(between, "asked in line {asked}, answered in line {answered}: nothing was made durable in between");
    }
    println!("{} fsyncs for {} acknowledgements", order.fsyncs.len(), order.answers.len());
}

/// What a log of calls shows, as numbers of lines.
#[derive(Default)]
struct Order {
    /// Of the ledger's log: when the call was made, when it came back.
    fsyncs: Vec<(usize, usize)>,
    /// When a request came, when it was granted.
    answers: Vec<(usize, usize)>,
}

impl Order {
    fn read(log: &str) -> Self {
        let mut order = Self::default();
        // By thread: the fsync it is in, the socket it reads from. By socket: the request that waits for an answer.
        let (mut fsyncs, mut requests): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) = Default::default();
        let mut reading: BTreeMap<&str, &str> = BTreeMap::new();
        for (line, text) in log.lines().enumerate() {
            let Some((thread, call)) = text.split_once(char::is_whitespace) else { continue };
            let call = call.trim_start();
            let is_fsync = call.starts_with("fsync(") || call.starts_with("fdatasync(");
            if is_fsync && call.contains("ledger.db-wal") {
                if call.contains("unfinished") {
                    fsyncs.insert(thread, line);
                } else if call.ends_with("= 0") {
                    order.fsyncs.push((line, line));
                }
            } else if call.contains("sync resumed") {
                if let Some(begun) = fsyncs.remove(thread).filter(|_| call.ends_with("= 0")) {
                    order.fsyncs.push((begun, line));
                }
            } else if call.contains("recvfrom resumed") || call.contains("read resumed") {
                if let Some(socket) = reading.remove(thread).filter(|_| call.contains("\"POST /v1/realms")) {
                    requests.insert(socket, line);
                }
            } else if let Some((socket, _)) = call.split_once('>') {
                // `recvfrom(12<socket:[3456]>, "POST ...`
                let socket = socket.split_once('<').map_or(socket, |(_, socket)| socket);
                reading.insert(thread, socket);
                if call.contains("\"POST /v1/realms") {
                    requests.insert(socket, line);
                } else if call.contains("HTTP/1.1 201")
                    && let Some(asked) = requests.remove(socket)
                {
                    order.answers.push((asked, line));
                }
            }
        }
        order
    }
}

/// A file system of its own, in memory.
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(path).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self { path: path.to_owned() })
    }

    fn enlarge(&self) {
        let status = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&self.path).status();
        assert!(status.is_ok_and(|status| status.success()), "the disk cannot be enlarged");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while a server that failed a test still uses it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
