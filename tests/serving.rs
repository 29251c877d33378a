//! How an operator runs a server: configuration from three places, reading it again, ending in order.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use revocast_tests::process::{
    Mosquitto, Process, REALM, Site, Via, ask, configured, now, number, revocast, until_true,
};
use serde_json::{Value, json};

/// What `config print` says, as JSON.
fn printed(variables: &[(&str, &str)], arguments: &[&str]) -> Value {
    let mut command = configured(variables);
    command.args(["--json", "config", "print"]).args(arguments);
    let mut process = Process::start("config print", &mut command);
    let line = process.line().unwrap_or_else(|| panic!("{}", process.log()));
    assert!(process.wait().success(), "{}", process.log());
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// One command, an empty folder, nothing else installed: it serves, and the next time with the same keys.
#[test]
fn a_server_begins_with_an_empty_folder() {
    let site = Site::new();
    let fresh = site.text("fresh");
    let keys = ["root.key", "publisher.key", "issuer.key", "admin.token", "trust.json"];
    let serve = || {
        let mut command = configured(&[]);
        command.args(["serve", "--data", &fresh, "--listen", "127.0.0.1:0", "--embedded-broker", "127.0.0.1:0"]);
        let mut process = Process::start("serve", &mut command);
        assert!(process.line().is_some_and(|line| line.starts_with("api http://")), "{}", process.log());
        let log = process.log();
        assert!(process.stop().success(), "{}", process.log());
        let read = |name| std::fs::read(format!("{fresh}/keys/{name}")).expect(name);
        (log.contains("made new keys"), keys.map(read))
    };
    let (made, first) = serve();
    assert!(made);
    assert_eq!(serve(), (false, first));

    // A folder that lost its keys is not an empty one: devices would believe no others.
    std::fs::remove_dir_all(format!("{fresh}/keys")).expect("removed");
    revocast(["serve", "--data", &fresh, "--listen", "127.0.0.1:0", "--embedded-broker", "127.0.0.1:0"])
        .fails(1, &["keys", &format!("revocast keygen --out {fresh}/keys")]);
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let site = Site::new();
    let file = site.write("revocast.toml", "prefix = 'file'\nchunk_bytes = 2048\nheartbeat_seconds = 3\n");
    let variables = [("REVOCAST_PREFIX", "variable"), ("REVOCAST_CHUNK_BYTES", "4096"), ("REVOCAST_CONFIG", &file)];
    let printed = printed(&variables, &["--prefix", "flag", "--log-format", "json"]);
    let said = |name: &str| {
        let setting = &printed[name];
        (setting["value"].clone(), setting["origin"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(said("prefix"), ("flag".into(), "--prefix".into()));
    assert_eq!(said("chunk_bytes"), (4096.into(), "REVOCAST_CHUNK_BYTES".into()));
    assert_eq!(said("heartbeat_seconds"), (3.into(), format!("{file} line 3")));
    assert_eq!(said("grace_seconds"), (600.into(), "default".into()));
    assert_eq!(said("broker_user"), (Value::Null, "default".into()));
    assert_eq!(said("log_format"), ("json".into(), "--log-format".into()));
}

#[test]
fn what_is_printed_serves_as_a_config_file() {
    let site = Site::new();
    let flags = ["--data", &site.text("data"), "--embedded-broker", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
        .map(str::to_owned);
    let first = revocast(["config", "print"].map(str::to_owned).iter().chain(&flags)).ok();
    let file = site.write("printed.toml", &first.stdout);
    assert_eq!(revocast(["config", "check", &file]).ok().stdout, "the configuration is good\n");
    let second = revocast(["config", "print", &file]).ok();
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.filter_map(|line| Some(line.split_once(" # ")?.0.to_owned())).collect()
    };
    assert_eq!(values(&first.stdout), values(&second.stdout));
    assert!(!values(&first.stdout).is_empty());
    let mut server = Process::start("server", configured(&[]).args(["--json", "serve", "--config", &file]));
    assert!(server.line().is_some_and(|line| line.contains("\"api\"")), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn config_check_tells_all_mistakes_and_what_nothing_is_called_by() {
    let site = Site::new();
    let file = site.write("revocast.toml", "listne = 'x'\nchunk_bytes = 'many'\nbroker = 'http://b'\n");
    revocast(["config", "check", &file, "--grace-seconds", "-1", "--data", &site.text("data")]).fails(2, &["-1"]);
    let ran = revocast(["config", "check", &file, "--grace-seconds", "soon", "--data", &site.text("data")]);
    let lines: [String; 4] = [
        format!("{file} line 1: unknown setting listne; did you mean listen?"),
        format!("{file} line 2: chunk_bytes: invalid type"),
        format!("{file} line 3: broker is \"http://b\": a broker URL begins with mqtt:// or mqtts://"),
        "--grace-seconds: invalid type".to_owned(),
    ];
    ran.fails(1, &lines.each_ref().map(String::as_str));

    let data = site.text("data");
    let good = ["--data", &data, "--embedded-broker", "127.0.0.1:0"];
    let mut command: Command = configured(&[("REVOCAST_GRACE", "1")]);
    let mut process = Process::start("config check", command.args(["--json", "config", "check"]).args(good));
    let told: Value = serde_json::from_str(&process.line().expect("an answer")).expect("JSON");
    assert!(process.wait().success());
    assert_eq!(told["unknown_variables"], Value::from(vec!["REVOCAST_GRACE"]));
    // Keys that are not there, a password that cannot be read.
    revocast(["config", "check", "--data", &site.text("none"), "--embedded-broker", "127.0.0.1:0"])
        .fails(1, &["revocast keygen --out"]);
    let none = site.text("none");
    let broker = ["--broker", "mqtt://b", "--broker-user", "u", "--broker-password-file", &none];
    revocast(["config", "check", "--data", &data].iter().copied().chain(broker))
        .fails(1, &["--broker-password-file: ", "cannot be read: No such file"]);
}

// ---- Reading the configuration again --------------------------------------------------------------

/// A connection is open, requests go on, and the operator changes the file: what can change does, what cannot is named,
/// and nobody notices otherwise.
#[test]
fn a_hangup_reloads_without_dropping_a_connection_or_losing_a_request() {
    let site = Site::new();
    let file = site.write("revocast.toml", "heartbeat_seconds = 600\nlog = 'info'\n");
    let mut server = site.found_with(Via::Embedded, &["--config", &file]);
    let first = server.wait_until_published();
    let sealed = |server: &revocast_tests::process::Server| number(&server.wait_until_published(), "issued_at_ms");
    let before = number(&first, "issued_at_ms");

    let mut open = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    let ask_on = |open: &mut TcpStream| {
        open.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let read = open.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    assert!(ask_on(&mut open).starts_with("HTTP/1.1 200"));

    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (done, sent) = (&done, &sent);
        let (url, token) = (format!("{}/v1/realms/{REALM}/revocations", server.url()), server.token().to_owned());
        scope.spawn(move || {
            let exp = now() + 1_000;
            while !done.load(Ordering::Relaxed) {
                let jti = format!("jti-{}", sent.load(Ordering::Relaxed));
                let body = json!({ "jti": jti, "exp": exp }).to_string();
                let (status, answer) = ask("POST", &url, Some(&token), body.as_bytes()).unwrap();
                assert_eq!(status, 201, "{answer}");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..5 {
            let target = sent.load(Ordering::Relaxed) + 3;
            until_true("requests go on", || sent.load(Ordering::Relaxed) >= target);
            let _ = site.write("revocast.toml", format!("heartbeat_seconds = {}\nlog = 'debug'\n", 500 - round));
            hang_up(server.process_id());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(server.head(), sent.load(Ordering::Relaxed), "every request was answered, and recorded once");
    assert!(ask_on(&mut open).starts_with("HTTP/1.1 200"), "the connection is still open");
    until_true("the log tells it", || server.process().log().matches("configuration read again").count() >= 5);

    // A heartbeat that was far away comes now.
    server.wait_until_published();
    let before = before.max(sealed(&server));
    let _ = site.write("revocast.toml", "heartbeat_seconds = 1\nprefix = 'other'\n");
    server.process().signal("HUP");
    until_true("a heartbeat", || sealed(&server) > before);
    until_true("what cannot change is named", || {
        let log = server.process().log();
        log.contains(r#""setting":"prefix""#) && log.contains("takes effect with the next start")
    });

    // A file that cannot be used changes nothing.
    let _ = site.write("revocast.toml", "heartbeat_seconds = 0\nbrokr = 1\n");
    server.process().signal("HUP");
    until_true("both mistakes are told", || {
        let log = server.process().log();
        log.contains("the old one stays in force") && log.contains("heartbeat_seconds is 0") && log.contains("brokr")
    });
    let before = sealed(&server);
    until_true("heartbeats go on as before", || sealed(&server) > before);
    assert!(server.process().stop().success());
}

fn hang_up(id: u32) {
    assert!(Command::new("kill").args(["-HUP", &id.to_string()]).status().is_ok_and(|status| status.success()));
}

// ---- Ending ---------------------------------------------------------------------------------------

/// Asked to end under load: what was answered is there afterwards, and the exit code is 0.
#[test]
fn a_server_that_is_asked_to_end_under_load_loses_nothing() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    let (url, token, exp) = (server.url(), server.token().to_owned(), now() + 1_000);
    let answered = AtomicU64::new(0);
    let id = server.process_id();
    let kept: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let (url, token, answered) = (&url, &token, &answered);
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for number in 0.. {
                        let jti = format!("{client}-{number}");
                        let body = json!({ "jti": jti, "exp": exp }).to_string();
                        let path = format!("{url}/v1/realms/{REALM}/revocations");
                        match ask("POST", &path, Some(token), body.as_bytes()) {
                            Ok((201, _)) => kept.push(jti),
                            Ok(other) => panic!("{other:?}"),
                            // The server is gone.
                            Err(_) => break,
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    kept
                })
            })
            .collect();
        until_true("the load is on", || answered.load(Ordering::Relaxed) > 50);
        assert!(Command::new("kill").arg(id.to_string()).status().is_ok_and(|status| status.success()));
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let status = server.process().wait();
    assert_eq!(status.code(), Some(0), "{}", server.process().log());
    server.start();
    assert!(server.head() >= kept.len() as u64);
    for jti in kept {
        let again = server.post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": jti, "exp": exp }));
        assert_eq!(again.get("recorded"), Some(&json!(false)), "{jti}");
    }
}

/// Whoever listens hears of the last revocation too, although it was recorded between two live deltas.
#[test]
fn what_was_acknowledged_last_is_told_before_a_server_ends() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let mut server = site.found(Via::Broker(&mosquitto.url()));
    let agent = site.agent("door", &mosquitto.url());
    server.revoke("first", now() + 1_000);
    agent.wait_until_at(1);
    // More than go at once.
    for number in 2..=60 {
        assert_eq!(server.revoke(&format!("token-{number}"), now() + 1_000), number);
    }
    let process = server.process();
    assert!(process.stop().success(), "{}", process.log());
    agent.wait_until_at(60);
}

/// A server that still waits for its ledger has acknowledged nothing: it ends when asked to, in order.
#[test]
fn a_server_that_has_not_begun_yet_ends_when_asked_to() {
    let site = Site::new();
    // A database that takes the connection and says nothing.
    let database = TcpListener::bind("127.0.0.1:0").unwrap();
    let ledger = format!("postgres://revocast@{}/revocast", database.local_addr().unwrap());
    let mut command = configured(&[]);
    command.args(["serve", "--data", &site.text("data"), "--listen", "127.0.0.1:0", "--ledger", &ledger]);
    command.args(["--embedded-broker", "127.0.0.1:0"]);
    let mut process = Process::start("serve", &mut command);
    let (_connection, _) = database.accept().unwrap();
    assert_eq!(process.stop().code(), Some(0), "{}", process.log());
}

#[test]
fn the_second_request_to_end_is_obeyed_at_once() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    // A request that is under way, and takes its time: the server waits for it some seconds.
    let mut slow = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST /v1/realms/{REALM}/revocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{",
        server.token()
    );
    slow.write_all(head.as_bytes()).unwrap();
    // Once another one is answered, the first is being read.
    assert_eq!(server.get("/healthz").unwrap().0, 200);
    server.process().signal("TERM");
    until_true("it takes no more connections", || {
        TcpStream::connect(server.url().trim_start_matches("http://")).is_err()
    });
    assert!(server.process().is_running(), "it waits for the request that is under way");
    server.process().signal("TERM");
    let status = server.process().wait();
    assert_eq!(status.code(), Some(1), "{}", server.process().log());
    assert!(server.process().log().contains("asked to end twice"), "{}", server.process().log());
    server.start();
    assert_eq!(server.head(), 0);
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end() {
    let site = Site::new();
    let path = site.text("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let read = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    let mut command = configured(&[("NOTIFY_SOCKET", &path)]);
    let free = "127.0.0.1:0";
    command.args(["serve", "--data", &site.text("data"), "--embedded-broker", free, "--listen", free]);
    let mut server = Process::start("server", &mut command);
    assert!(server.line().is_some_and(|line| line.starts_with("api http://")), "{}", server.log());
    assert_eq!(heard(), "READY=1");
    server.signal("HUP");
    assert_eq!((heard(), heard()), ("RELOADING=1".to_owned(), "READY=1".to_owned()));
    server.signal("TERM");
    assert_eq!(heard(), "STOPPING=1");
    assert!(server.wait().success());

    // Nobody listens there: told, and no reason to stop.
    let nowhere = site.text("nowhere");
    let mut command = configured(&[("NOTIFY_SOCKET", &nowhere)]);
    command.args(["serve", "--data", &site.text("data"), "--embedded-broker", free, "--listen", free]);
    let mut server = Process::start("server", &mut command);
    assert!(server.line().is_some());
    until_true("it is told", || server.log().contains("the service manager cannot be told"));
    assert!(server.stop().success());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = site.text("data");
    revocast(["serve", "--data", &data, "--embedded-broker", "127.0.0.1:0", "--listen", &address])
        .fails(1, &[&address, "is in use", "--listen"]);
    revocast(["serve", "--data", &data, "--embedded-broker", &address, "--listen", "127.0.0.1:0"])
        .fails(1, &[&address, "in use"]);
}
