//! Every command with input that cannot be used: an error that names the cause, an exit code that is
//! documented, nothing changed, and never a panic.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use revocast_tests::process::{
    AUDIENCE, Agent, ISSUER, Listener, Minted, Mosquitto, Process, REALM, Server, Site, Via, ask, free_port, mint, now,
    number, revocast, revocast_with, text, tool, until, until_true,
};
use serde_json::{Value, json};

#[test]
fn help_is_there_for_every_command() {
    let all = revocast(["--help"]).ok();
    for command in [
        "demo",
        "keygen",
        "serve",
        "config",
        "realm",
        "revoke",
        "reinstate",
        "cutoff",
        "lift",
        "issued",
        "ledger",
        "jti",
        "status",
        "agent",
        "verify",
        "inspect",
    ] {
        assert!(all.stdout.contains(command), "{command} is not told");
        let help = revocast([command, "--help"]).ok();
        assert!(help.stdout.contains("Usage: revocast"), "{help:?}");
    }
    assert!(all.stdout.contains("Exit codes:"), "{all:?}");
    revocast(["frobnicate"]).fails(2, &["frobnicate"]);
    revocast([] as [&str; 0]).fails(2, &["Usage"]);
}

#[test]
fn keys_are_never_overwritten_and_never_readable_by_others() {
    let site = Site::new();
    let before = std::fs::read(site.path("data/keys/root.key")).unwrap();
    revocast(["keygen", "--out", &site.text("data/keys")]).fails(1, &["exists already", "choose another folder"]);
    assert_eq!(std::fs::read(site.path("data/keys/root.key")).unwrap(), before);
    for name in ["root.key", "publisher.key", "issuer.key", "admin.token"] {
        let mode = std::fs::metadata(site.path("data/keys").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    revocast(["keygen", "--out", "/proc/nowhere"]).fails(1, &["/proc/nowhere"]);
}

#[test]
fn a_cutoff_reaches_a_device_and_a_lift_ends_it() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let agent = site.agent("door", &server.broker());
    let (iat, exp) = (now() - 100, now() + 1_000);
    let verdict = |sub: &str| {
        let path = format!("/check?jti=x&exp={exp}&iat={iat}&sub={sub}");
        text(&agent.ask("GET", &path, b"").unwrap().1, "verdict")
    };
    agent.wait_until_at(0);
    assert_eq!(verdict("alice"), "not-revoked");

    let cut = server.command(&["cutoff", "--realm", REALM, "--sub", "alice", "--reason", "left"]).ok();
    assert!(cut.stdout.starts_with("cut off sub alice: entry 1, tokens issued before "), "{cut:?}");
    until_true("the cutoff arrives", || verdict("alice") == "revoked");
    assert_eq!(verdict("bob"), "not-revoked");
    // Never lowered, and what holds is told.
    let lower = ["--json", "cutoff", "--realm", REALM, "--sub", "alice", "--not-before", "7"];
    let held = server.command(&lower).ok().json();
    assert_eq!((number(&held, "sequence"), held.get("recorded")), (1, Some(&json!(false))));
    assert!(number(&held, "not_before") > iat);
    let again = server.command(&["cutoff", "--realm", REALM, "--sub", "alice", "--not-before", "7"]).ok();
    assert!(again.stdout.starts_with("was cut off already: sub alice: entry 1,"), "{again:?}");

    let lifted = server.command(&["lift", "--realm", REALM, "--sub", "alice", "--reason", "back"]).ok();
    assert_eq!(lifted.stdout, "lifted the cutoff of sub alice: entry 2\n");
    until_true("the lift arrives", || verdict("alice") == "not-revoked");
    let lift = |scope: &[&str]| server.command(&[&["lift", "--realm", REALM], scope].concat());
    assert_eq!(lift(&["--whole-realm"]).ok().stdout, "the whole realm is not cut off; nothing to lift\n");

    for scope in [&["--whole-realm"][..], &["--kid", "k"], &["--client", "c"]] {
        let cut = server.command(&[&["--json", "cutoff", "--realm", REALM, "--not-before", "7"], scope].concat());
        assert_eq!(number(&cut.ok().json(), "not_before"), 7);
        assert_eq!(lift(scope).code, 0);
    }
    let cut = |more: &[&str]| server.command(&[&["cutoff", "--realm", REALM], more].concat());
    cut(&[]).fails(2, &["--whole-realm", "--sub"]);
    cut(&["--sub", "a", "--kid", "b"]).fails(2, &["--kid"]);
    cut(&["--sub", ""]).fails(1, &["422", "0 bytes"]);
    cut(&["--sub", "a", "--not-before", "1800000000000"]).fails(1, &["422", "lies beyond"]);
    server.command(&["cutoff", "--realm", "elsewhere", "--whole-realm"]).fails(1, &["404"]);
    server.command(&["lift", "--realm", "No", "--whole-realm"]).fails(2, &["--realm"]);
}

/// Lines of tokens that were issued a moment ago.
fn issued(from: u64, count: u64) -> String {
    let iat = now() - 10;
    let line = |number| json!({ "jti": format!("token-{number}"), "iat": iat, "exp": iat + 3_600 }).to_string() + "\n";
    (from..from + count).map(line).collect::<Vec<_>>().concat()
}

#[test]
fn issued_tokens_are_imported_in_parts() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    // More than two parts.
    let file = site.write("issued.ndjson", issued(0, 25_000));
    let import = |file: &str, more: &[&str]| {
        server.command(&[&["--json", "issued", "import", file, "--realm", REALM], more].concat())
    };
    let until = now() - 5;
    let done = import(&file, &["--complete-until", &until.to_string()]).ok();
    let value = done.json();
    assert_eq!((number(&value, "lines"), number(&value, "registered")), (25_000, 25_000));
    assert_eq!((number(&value, "covered_until"), number(&value, "refused")), (until, 0));
    // A program reads: no bar, nothing but the result.
    assert_eq!((done.stdout.lines().count(), &*done.stderr), (1, ""));
    let realm = server.realm();
    assert_eq!((number(&realm, "registered"), number(&realm, "covered_until")), (25_000, until));

    // Again, in words; and from a line on.
    let again = server.command(&["issued", "import", &file, "--realm", REALM]).ok();
    assert_eq!(again.stdout, "registered 0, known already 25000, extended 0, expired 0, refused 0\n");
    assert_eq!(number(&import(&file, &["--from-line", "24001"]).ok().json(), "repeated"), 1_000);
    import(&file, &["--from-line", "25001"]).fails(2, &["names no token from line 25001"]);

    // Late ones are told: the coverage claimed to know them.
    let late = site.write("late.ndjson", issued(50_000, 3));
    let late = server.command(&["issued", "import", &late, "--realm", REALM]).ok();
    assert!(late.stdout.contains("registered 3") && late.stdout.contains("3 of them were issued before"), "{late:?}");
    import(&file, &["--complete-until", "7"]).fails(1, &["409", "does not go back to 7"]);
    import(&file, &["--complete-until", &(now() + 1_000).to_string()]).fails(1, &["422", "it is"]);

    // A registered token vouches for its exp.
    let revoked =
        server.post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": "token-7", "exp": now() + 9 }));
    assert!(number(&revoked, "exp") < now() + 3_700, "{revoked}");

    // From standard input.
    let (url, token) = (server.url(), site.text("data/keys/admin.token"));
    let piped = ["--json", "issued", "import", "-", "--realm", REALM, "--server", &url, "--admin-token-file", &token];
    let ran = revocast_with(piped, issued(60_000, 2).trim_end().as_bytes()).ok();
    assert_eq!(number(&ran.json(), "registered"), 2);
    revocast_with(piped, b"").fails(2, &["standard input names no token"]);
}

#[test]
fn lines_that_are_refused_are_named_by_their_place_in_the_file() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let long = format!("{{\"jti\":\"{}\"}}\n", "x".repeat(100_000));
    let text =
        format!("{}oops\n\n{}{{\"jti\":\"a\"}}\n{long}{}", issued(0, 10_004), issued(20_000, 2), issued(30_000, 1));
    let file = site.write("issued.ndjson", text);
    let until = (now() - 5).to_string();
    let arguments = ["issued", "import", &file, "--realm", REALM, "--complete-until", &until];
    let ran = server.command(&arguments);
    ran.fails(1, &["3 lines of", "the coverage was not moved", "line 10005: expected value at column 1"]);
    ran.fails(1, &["line 10009: missing field `iat`", "line 10010: the line has 4097 bytes, more than 4096"]);
    assert!(ran.stdout.starts_with("registered 10007,"), "{ran:?}");
    let realm = server.realm();
    assert_eq!((number(&realm, "registered"), realm.get("covered_until")), (10_007, Some(&Value::Null)));
    let value = server.command(&[&["--json"], &arguments[..]].concat()).json();
    assert_eq!(number(&value, "refused"), 3);
    assert_eq!(value.pointer("/problems/1/line"), Some(&json!(10_009)));

    let import = |file: &str| server.command(&["issued", "import", file, "--realm", REALM]);
    import(&site.text("none")).fails(2, &["none", "cannot be read"]);
    import(&site.text("data")).fails(2, &["is a folder"]);
    import(&site.write("empty", "")).fails(2, &["empty names no token"]);
    import(&site.write("blank", "\n\n  \n")).fails(2, &["blank names no token"]);
    server.command(&["issued", "import", &file, "--realm", "elsewhere"]).fails(1, &["404", "elsewhere"]);
    server.command(&["issued", "import", &file, "--realm", "No"]).fails(2, &["--realm"]);
    server.command(&["issued", "import", &file, "--realm", REALM, "--from-line", "0"]).fails(2, &["--from-line"]);
}

/// The server is killed and comes back while an import is under way: nobody has to repeat anything.
#[test]
fn an_import_outlasts_a_restart_of_the_server() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    let file = site.write("issued.ndjson", issued(0, 30_000));
    let (url, token) = (server.url(), site.text("data/keys/admin.token"));
    let arguments =
        ["--json", "issued", "import", &file, "--realm", REALM, "--server", &url, "--admin-token-file", &token];
    let mut import = Process::start("import", Command::new(tool("REVOCAST_BIN")).args(arguments));
    until_true("a part of it is there", || number(&server.realm(), "registered") > 0);
    server.kill_and_restart();
    let value: Value = serde_json::from_str(&import.line().expect("a result")).unwrap();
    assert!(import.wait().success(), "{}", import.log());
    assert_eq!(number(&value, "registered") + number(&value, "repeated"), 30_000);
    assert_eq!(number(&server.realm(), "registered"), 30_000);

    // One that stays away: where to go on is told.
    server.kill();
    let ran = server.command(&["issued", "import", &file, "--realm", REALM, "--from-line", "11"]);
    ran.fails(1, &[&url, "all lines before line 11 are registered", "--from-line 11"]);
    server.command(&["issued", "import", &file, "--realm", REALM]).fails(1, &[&url, "revocast serve"]);
}

#[test]
fn jtis_are_drawn_for_new_tokens() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let one = server.command(&["jti", "--realm", REALM]).ok();
    assert_eq!((one.stdout.trim().len(), one.stdout.lines().count()), (36, 1), "{one:?}");
    let many = server.command(&["jti", "--realm", REALM, "--count", "1000"]).ok();
    let distinct: std::collections::BTreeSet<&str> = many.stdout.lines().collect();
    assert_eq!(distinct.len(), 1_000);
    let value = server.command(&["--json", "jti", "--realm", REALM, "--count", "2"]).ok().json();
    assert_eq!(value.get("jtis").and_then(Value::as_array).map(Vec::len), Some(2));
    server.command(&["jti", "--realm", REALM, "--count", "0"]).fails(2, &["--count"]);
    server.command(&["jti", "--realm", REALM, "--count", "1001"]).fails(2, &["1001"]);
    server.command(&["jti", "--realm", "elsewhere"]).fails(1, &["404", "elsewhere"]);
}

/// Arguments of a server that finds everything it needs.
fn serve(site: &Site) -> Vec<String> {
    ["serve", "--data", &site.text("data"), "--listen", "127.0.0.1:0", "--embedded-broker", "127.0.0.1:0"]
        .map(str::to_owned)
        .to_vec()
}

fn with(mut arguments: Vec<String>, name: &str, value: &str) -> Vec<String> {
    let place = arguments.iter().position(|argument| argument == name).expect("the argument");
    value.clone_into(&mut arguments[place + 1]);
    arguments
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();
    revocast(with(serve(&site), "--listen", &busy)).fails(1, &[&busy, "is in use", "--listen"]);
    revocast(with(serve(&site), "--embedded-broker", &busy)).fails(1, &[&busy, "in use"]);
    // With --json an error is an object on standard error.
    let mut arguments = with(serve(&site), "--listen", &busy);
    arguments.push("--json".to_owned());
    let ran = revocast(arguments);
    assert_eq!((ran.code, &*ran.stdout), (1, ""));
    let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(error.get("error"), Some(&json!("busy-port")), "{error}");

    let keyless = site.text("keyless");
    std::fs::create_dir(&keyless).unwrap();
    let _ = site.write("keyless/file", "");
    revocast(with(serve(&site), "--data", &keyless)).fails(1, &[&format!("revocast keygen --out {keyless}/keys")]);
    revocast(["serve", "--embedded-broker", "127.0.0.1:0"]).fails(2, &["--data DIR"]);
    revocast(["serve", "--data", &site.text("data")]).fails(2, &["--broker URL"]);
    revocast(["serve", "--data", &site.text("data"), "--broker", "http://b"]).fails(2, &["http://b", "mqtt://"]);
    revocast(["serve", "--data", &site.text("data"), "--broker", "mqtts://b"]).fails(2, &["--broker-ca FILE"]);
    let config = site.write("bad.toml", "data = 'd'\nchunk_bites = 3\n");
    revocast(["serve", "--config", &config]).fails(2, &["bad.toml line 2", "chunk_bites"]);
    revocast(["serve", "--config", &site.text("none.toml")]).fails(2, &["none.toml"]);
    let config = site.write("small.toml", "chunk_bytes = 17\n");
    let mut arguments = serve(&site);
    arguments.extend(["--config".to_owned(), config]);
    revocast(arguments).fails(2, &["chunk_bytes is 17", "2048"]);

    let key = site.path("data/keys/publisher.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    revocast(serve(&site)).fails(1, &["publisher.key", "mode 644", "chmod 600"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let whole = std::fs::read(&key).unwrap();
    for damaged in
        [&b""[..], b"garbage\n", &whole[..whole.len() - 5], &std::fs::read(site.path("data/keys/root.key")).unwrap()]
    {
        std::fs::write(&key, damaged).unwrap();
        revocast(serve(&site)).fails(1, &["publisher.key"]);
    }
    std::fs::write(&key, whole).unwrap();
    // Everything is as it was: it starts.
    let server = site.serve(Via::Embedded);
    assert_eq!(server.get("/v1/realms").unwrap().1, json!({ "realms": [] }));
}

#[test]
fn a_damaged_ledger_does_not_serve() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    let exp = now() + 1_000;
    let jtis: Vec<String> = (0..500).map(|number| format!("jti-{number}")).collect();
    server.revoke_all(&jtis, exp);
    assert!(server.process().stop().success());
    let path = site.path("data/ledger.db");
    assert!(!site.path("data/ledger.db-wal").exists(), "after a stop in order the file alone is the ledger");
    let whole = std::fs::read(&path).unwrap();
    let mut torn = whole.clone();
    let middle = torn.len() / 2 / 4_096 * 4_096;
    torn[middle..middle + 4_096].fill(0xff);
    for damaged in [&b"this was a ledger"[..], &whole[..whole.len() / 2], &torn] {
        std::fs::write(&path, damaged).unwrap();
        revocast(serve(&site)).fails(1, &["ledger"]);
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing is repaired by guessing");
    }
    std::fs::write(&path, &whole).unwrap();
    server.start();
    assert_eq!(server.head(), 500);
}

#[test]
fn a_server_without_its_broker_accepts_and_says_so() {
    let site = Site::new();
    let mut mosquitto = Mosquitto::start();
    mosquitto.kill();
    let server = site.found(Via::Broker(&mosquitto.url()));
    let sequence = server.revoke("before-the-broker", now() + 1_000);
    let status = until("the server notices", || {
        let status = server.command(&["--json", "status"]).ok().json();
        status.pointer("/broker/trouble").is_some().then_some(status)
    });
    assert_eq!(status.pointer("/broker/connected"), Some(&json!(false)));
    assert_eq!(ask("GET", &format!("{}/healthz", server.url()), None, b"").unwrap().0, 200);
    assert_eq!(ask("GET", &format!("{}/readyz", server.url()), None, b"").unwrap().0, 503);
    mosquitto.restart();
    let agent = site.agent("door", &mosquitto.url());
    agent.wait_until_at(sequence);
    assert_eq!(agent.verdict("before-the-broker", now() + 1_000), "revoked");
}

#[test]
fn requests_that_cannot_be_granted_say_why() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let exp = (now() + 1_000).to_string();
    let revoke =
        |realm: &str, jti: &str, exp: &str| server.command(&["revoke", "--realm", realm, "--jti", jti, "--exp", exp]);
    revoke("elsewhere", "x", &exp).fails(1, &["404", "realm elsewhere does not exist"]);
    revoke("Not A Realm", "x", &exp).fails(2, &["--realm"]);
    revoke(REALM, "", &exp).fails(1, &["422", "empty"]);
    revoke(REALM, &"x".repeat(257), &exp).fails(1, &["422", "257"]);
    revoke(REALM, "x", "1").fails(1, &["422", "past"]);
    revoke(REALM, "x", "soon").fails(2, &["--exp", "soon"]);
    server.command(&["revoke", "--realm", REALM, "--jti", "x"]).fails(2, &["--exp"]);
    server.command(&["revoke", "--realm", REALM, "--exp", &exp]).fails(2, &["--jti"]);
    server.command(&["revoke", "--realm", REALM]).fails(2, &["--token"]);
    for (token, word) in [
        ("x", "three parts"),
        ("a.!.c", "not base64url"),
        ("a.YQ.c", "not JSON"),
        ("a.e30.c", "no iss"),
        ("a.eyJpc3MiOiJpIn0.c", "no jti"),
        ("a.eyJpc3MiOiJpIiwianRpIjoiaiJ9.c", "exp"),
    ] {
        server.command(&["revoke", "--realm", REALM, "--token", token]).fails(2, &[word]);
    }
    // {"iss":"i","jti":"j","exp":9999999999}, which is no token of this realm.
    let foreign = "a.eyJpc3MiOiJpIiwianRpIjoiaiIsImV4cCI6OTk5OTk5OTk5OX0.c";
    server.command(&["revoke", "--realm", REALM, "--token", foreign]).fails(2, &["issued by i", ISSUER]);
    server.command(&["reinstate", "--realm", "elsewhere", "--jti", "x"]).fails(1, &["404"]);
    server.command(&["realm", "create", "UPPER", "--issuer", "https://other.example"]).fails(1, &["422", "realm"]);
    server.command(&["realm", "create", "other", "--issuer", ISSUER]).fails(1, &["409", REALM]);
    server.command(&["realm", "create", REALM, "--issuer", "https://other.example"]).fails(1, &["409", ISSUER]);
    server.command(&["realm", "create", "other", "--issuer", ""]).fails(1, &["422", "issuer"]);
    server.command(&["realm", "create", "other", "--issuer", "o", "--width", "41"]).fails(2, &["41"]);
    server.command(&["realm", "create", "other", "--issuer", "o", "--leeway", "100000"]).fails(1, &["422", "leeway"]);
    assert_eq!(server.head(), 0, "nothing of it was recorded");

    let wrong = site.write("wrong.token", "0123456789abcdef0123456789abcdef0123456789a\n");
    let with_token = |file: &str| revocast(["status", "--server", &server.url(), "--admin-token-file", file]);
    with_token(&wrong).fails(1, &["401", "--admin-token-file"]);
    with_token(&site.text("none")).fails(2, &["none", "cannot be read", "REVOCAST_ADMIN_TOKEN_FILE"]);
    with_token(&site.write("empty.token", "")).fails(1, &["401"]);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let token = site.text("data/keys/admin.token");
    revocast(["status", "--server", &nobody, "--admin-token-file", &token]).fails(1, &[&nobody, "revocast serve"]);
    revocast(["status", "--server", "not a url", "--admin-token-file", &token]).fails(2, &["not a url"]);
    let ran = revocast(["--json", "status", "--server", &nobody, "--admin-token-file", &token]);
    let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(text(&error, "error"), "server-unreachable");
}

#[test]
fn one_folder_serves_one_process() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    revocast(serve(&site)).fails(1, &["/data", "another revocast serve uses this folder"]);
    let agent = site.agent("door", &server.broker());
    agent.wait_until_at(0);
    let (broker, state, trust) = (server.broker(), site.text("door"), site.trust());
    let second = [
        "agent",
        "--broker",
        &broker,
        "--realm",
        REALM,
        "--trust",
        &trust,
        "--state",
        &state,
        "--listen",
        "127.0.0.1:0",
    ];
    revocast(second).fails(1, &["door", "in use by another process"]);
    // The first ones are not disturbed.
    let exp = now() + 1_000;
    server.revoke("x", exp);
    agent.wait_until_says("revoked", "x", exp);
}

#[test]
fn an_agent_that_cannot_start_says_why() {
    let site = Site::new();
    let (state, trust) = (site.text("door"), site.trust());
    let agent = |changes: &[(&str, &str)], more: &[&str]| {
        let mut arguments: Vec<String> = [
            "agent",
            "--broker",
            "mqtt://127.0.0.1:1",
            "--realm",
            REALM,
            "--trust",
            &trust,
            "--state",
            &state,
            "--listen",
            "127.0.0.1:0",
        ]
        .map(str::to_owned)
        .to_vec();
        for (name, value) in changes {
            arguments = with(arguments, name, value);
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        revocast(arguments)
    };
    agent(&[("--broker", "tcp://b")], &[]).fails(2, &["--broker", "mqtt://"]);
    agent(&[("--broker", "mqtt://user:secret@b")], &[]).fails(2, &["credentials"]);
    agent(&[("--broker", "mqtts://b")], &[]).fails(2, &["certificates", "--broker-ca FILE"]);
    agent(&[("--realm", "Fleet!")], &[]).fails(2, &["--realm"]);
    agent(&[("--trust", "/nonexistent/trust.json")], &[]).fails(2, &["--trust", "/nonexistent/trust.json"]);
    for text in ["", "{}", "[]", r#"{"threshold":2,"roots":[],"not_before":1}"#] {
        agent(&[("--trust", &site.write("bad-trust.json", text))], &[]).fails(2, &["--trust"]);
    }
    agent(&[("--listen", "0.0.0.0:0")], &[]).fails(2, &["loopback"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();
    agent(&[("--listen", &busy)], &[]).fails(1, &[&busy, "--listen"]);
    agent(&[("--state", "/proc/nowhere")], &[]).fails(1, &["/proc/nowhere"]);
    agent(&[], &["--client-id", "a/b"]).fails(2, &["--client-id"]);
    agent(&[], &["--prefix", "a//b"]).fails(2, &["--prefix"]);
    agent(&[], &["--jwks", &trust]).fails(2, &["--audience"]);
    agent(&[], &["--jwks", &trust, "--audience", "a"]).fails(2, &["trust.json"]);
}

/// A realm with twenty thousand revocations in its base; they are named `jti-0` and so on.
fn large(site: &Site) -> (Server, u64) {
    let server = site.found(Via::Embedded);
    let exp = now() + 3_000;
    let jtis: Vec<String> = (0..20_000).map(|number| format!("jti-{number}")).collect();
    server.revoke_all(&jtis, exp);
    until_true("they are in a base", || {
        // The filter of all of them has 24 KB.
        number(&server.wait_until_published(), "filter_bytes") > 20_000
    });
    (server, exp)
}

/// What an agent holds, once it is at the end and its base takes at least so many bytes.
fn held(agent: &Agent, base_bytes: u64) -> Value {
    agent.wait_until_at(20_000);
    until("the base that holds them all", || {
        let holding = agent.status().get("holding").cloned()?;
        (number(&holding, "base_bytes") >= base_bytes).then_some(holding)
    })
}

#[test]
fn an_agent_holds_the_best_that_fits_into_its_memory_and_asks_where_it_is_not_sure() {
    let site = Site::new();
    let (server, exp) = large(&site);
    let roomy = site.agent_with("roomy", &server.broker(), &["--memory", "1MiB"]);
    let small = site.agent_with("small", &server.broker(), &["--memory", "64KiB"]);
    let silent = site.agent_with("silent", &server.broker(), &["--profile", "folded-twice", "--no-ask"]);

    let holding = held(&roomy, 100_000);
    assert_eq!((text(&holding, "profile"), number(&holding, "budget")), ("exact".to_owned(), 1_048_576));
    let why = text(&holding, "why");
    assert!(why.starts_with("exact: ") && why.ends_with(" of 1,048,576 bytes; nothing answers better"), "{why}");

    let holding = held(&small, 20_000);
    assert_eq!((text(&holding, "profile"), number(&holding, "budget")), ("filter".to_owned(), 65_536));
    assert!(number(&holding, "bytes") <= 65_536 && holding.get("needed").is_some_and(Value::is_null), "{holding}");
    assert!(number(&holding, "base_bytes") <= number(&holding, "base_bytes_max"), "{holding}");
    let offers: Vec<(String, u64)> = holding["offers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|offer| (text(offer, "profile"), number(offer, "bytes")))
        .collect();
    let names: Vec<&str> = offers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["exact", "list", "filter", "folded", "folded-twice"]);
    let why = text(&holding, "why");
    assert!(why.starts_with("filter: ") && why.contains(" of 65,536 bytes; exact would take 1"), "{why}");

    let holding = held(&silent, 5_000);
    assert_eq!((text(&holding, "profile"), holding.get("budget")), ("folded-twice".to_owned(), Some(&Value::Null)));
    assert!(text(&holding, "why").ends_with(" bytes, as was asked for"), "{holding}");

    // The filter alone cannot say; the server can.
    let told = |answer: &Value| ["verdict", "decision", "asked"].map(|name| text(answer, name));
    assert_eq!(told(&small.check("jti-7", exp)), ["revoked", "deny", "revoked"]);
    let unsure = silent.check("jti-7", exp);
    assert_eq!(told(&unsure), ["suspect", "ask", ""], "{unsure}");
    assert_eq!(told(&roomy.check("jti-7", exp)), ["revoked", "deny", ""]);
    // One good token in a hundred is asked about, and then accepted.
    let good = (0..5_000).map(|number| format!("good-{number}"));
    let asked = good.map(|jti| small.check(&jti, exp)).find(|answer| answer.get("asked").is_some()).unwrap();
    assert_eq!(told(&asked), ["not-revoked", "accept", "not-revoked"]);
    // With nobody to ask, the answer is no.
    drop(server);
    until_true("the agent notices", || small.status().get("connected") == Some(&json!(false)));
    assert_eq!(told(&small.check("jti-8", exp)), ["suspect", "deny", "unanswered"]);
}

#[test]
fn a_memory_budget_that_holds_nothing_ends_the_agent_with_the_number_that_would_do() {
    let site = Site::new();
    let (server, exp) = large(&site);
    let (broker, trust) = (server.broker(), site.trust());
    let arguments = |state: &str, more: &[&str]| -> Vec<String> {
        let fixed = ["--json", "agent", "--broker", &broker, "--realm", REALM, "--trust", &trust, "--state", state];
        let listen = ["--listen", "127.0.0.1:0", "--epoch-jitter", "1"];
        fixed.iter().chain(&listen).chain(more).map(|&argument| argument.to_owned()).collect()
    };
    let agent = |name: &str, more: &[&str]| revocast(arguments(&site.text(name), more));
    // At once: below what any realm takes, or no size at all.
    agent("door", &["--memory", "8000"]).fails(2, &["budget-too-small", "8000 bytes", "8192 bytes would do"]);
    for wrong in ["64K", "64 KiB", "1GiB", "0x40", ""] {
        agent("door", &["--memory", wrong]).fails(2, &["--memory", "65536, 64KiB or 1MiB"]);
    }
    agent("door", &["--memory", "64KiB", "--profile", "exact"]).fails(2, &["--memory", "--profile"]);
    agent("door", &["--profile", "tiny"]).fails(2, &["covered", "folded", "folded-twice"]);

    // When the first index tells.
    let ran = agent("door", &["--memory", "8KiB"]);
    ran.fails(2, &["budget-too-small", "8192 bytes holds nothing of this realm", "--memory "]);
    let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    let needed = text(&error, "help").split(' ').find_map(|word| word.trim_end_matches(',').parse::<u64>().ok());
    let needed = needed.expect("the number that would do").to_string();
    assert!(ran.stderr.contains("give this device"), "the log says what to do: {ran:?}");
    let mut fits = site.agent_with("door", &broker, &["--memory", &needed]);
    let holding = held(&fits, 5_000);
    assert_eq!(text(&holding, "profile"), "folded-twice", "{holding}");
    assert_eq!(fits.verdict("jti-1", exp), "revoked");
    assert!(fits.process().stop().success());

    // At once, by what is stored; and nothing of that is lost.
    let ran = agent("door", &["--memory", "8KiB"]);
    ran.fails(2, &["budget-too-small", &format!("{needed} bytes would do")]);
    assert_eq!(ran.stdout, "", "it never answered");
    fits.start();
    assert_eq!(text(&held(&fits, 5_000), "profile"), "folded-twice");
}

#[test]
fn verify_says_why() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let (tokens, jwks) = mint(&site, 4);
    let [in_base, since, good] = [&tokens[0], &tokens[1], &tokens[2]];
    let jtis: Vec<String> = (0..2_000).map(|number| format!("jti-{number}")).collect();
    server.revoke_all(jtis.iter().chain([&in_base.jti]), in_base.exp);
    let iat = in_base.iat;
    until_true("the second in which they were issued is over", || now() > iat + 1);
    let issued = |token: &Minted| json!({ "jti": token.jti, "iat": iat, "exp": token.exp }).to_string() + "\n";
    let file = site.write("issued.ndjson", [issued(in_base), issued(since), issued(good)].concat());
    let until_when = (iat + 1).to_string();
    let import = ["issued", "import", &file, "--realm", REALM, "--complete-until", &until_when];
    let _ = server.command(&import).ok();
    let mut covered = site.agent_with("covered", &server.broker(), &["--profile", "covered"]);
    let mut exact = site.agent("exact", &server.broker());
    until_true("the base covers them", || {
        let holding = |agent: &Agent| agent.status().get("holding").cloned().unwrap_or_default();
        text(&holding(&covered), "profile") == "covered" && number(&holding(&exact), "base_bytes") > 1_000
    });
    let head = server.revoke(&since.jti, since.exp);
    for agent in [&mut covered, &mut exact] {
        agent.wait_until_at(head);
        assert!(agent.process().stop().success());
    }

    let rules = ["verify", "--jwks", &jwks, "--issuer", ISSUER, "--audience", AUDIENCE];
    let input = [&in_base.token, &since.token, &good.token, "garbage"].join("\n");
    let verify = |more: &[&str]| revocast_with(rules.iter().chain(more), input.as_bytes());
    let told = |state: &str| -> Vec<[Value; 4]> {
        let ran = verify(&["--state", &site.text(state), "--why"]);
        assert_eq!(ran.code, 3, "{ran:?}");
        for line in ran.objects() {
            let (epoch, sequence) = line["position"].as_str().unwrap().split_once('.').unwrap();
            assert!(epoch.parse::<u64>().unwrap() > 0 && sequence == head.to_string(), "{line}");
            assert!(line["age_seconds"].as_u64().is_some_and(|age| age < 60), "{line}");
        }
        let part = |line: &Value| ["revocation", "witness", "covered", "profile"].map(|name| line[name].clone());
        ran.objects().iter().map(part).collect()
    };
    let line = |revocation: &str, witness: &str, covered: bool, profile: &str| {
        [json!(revocation), json!(witness), json!(covered), json!(profile)]
    };
    let nothing = |profile: &str| [json!("unknown"), Value::Null, Value::Null, json!(profile)];
    assert_eq!(
        told("exact"),
        [
            line("revoked", "list", false, "exact"),
            line("revoked", "recent", false, "exact"),
            line("not-revoked", "filter", false, "exact"),
            nothing("exact"),
        ]
    );
    let by_cover = told("covered");
    assert_eq!(
        by_cover[..2],
        [line("revoked", "coverage", true, "covered"), line("revoked", "recent", true, "covered")]
    );
    // By the filter, or where it matches by chance, as an exception.
    assert!(by_cover[2][1] == json!("filter") || by_cover[2][1] == json!("exceptions"), "{by_cover:?}");
    assert_eq!((&by_cover[2][0], &by_cover[2][2]), (&json!("not-revoked"), &json!(true)));
    // Without the switch the lines are what they were.
    let plain = verify(&["--state", &site.text("exact")]);
    assert!(plain.objects().iter().all(|line| line.as_object().unwrap().len() == 5), "{plain:?}");
    verify(&["--why"]).fails(2, &["--state"]);
    let list = site.write("revoked.json", "[]");
    verify(&["--why", "--revoked", &list]).fails(2, &["--state"]);
}

#[test]
fn inspect_tells_what_each_profile_takes_and_reads_every_kind() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let passing = Listener::start(&server.broker(), "revocast/#");
    let exp = now() + 3_000;
    let jtis: Vec<String> = (0..2_000).map(|number| format!("jti-{number}")).collect();
    server.revoke_all(&jtis, exp);
    let file = site.write("issued.ndjson", issued(0, 3_000));
    let until_when = (now() - 5).to_string();
    let _ = server.command(&["issued", "import", &file, "--realm", REALM, "--complete-until", &until_when]).ok();
    let mut agent = site.agent_with("door", &server.broker(), &["--profile", "covered"]);
    until_true("the base is covered", || {
        agent.status().pointer("/holding/profile") == Some(&json!("covered"))
            && number(&agent.status()["holding"], "base_bytes") > 1_000
    });
    // Nobody registered it, so the device asks wherever the filter matches.
    let asked = (0..20_000).map(|number| agent.check(&format!("stranger-{number}"), exp));
    assert!(asked.into_iter().any(|answer| answer.get("asked").is_some()));

    let keys = site.write("keys.rvc", passing.wait_for("/keys"));
    let inspect = |part: &str, more: &[&str]| {
        let file = site.write("object.rvc", passing.wait_for(part));
        revocast([&["--json", "inspect", &file], more].concat()).ok().json()
    };
    let checked = ["--verify", &site.trust(), "--keys", &keys];
    let question = inspect("/ask", &checked);
    assert_eq!((text(&question, "kind"), text(&question, "device")), ("ask".to_owned(), "door".to_owned()));
    assert!(text(&question, "verified").starts_with("no:"), "{question}");
    let answer = inspect("/answer", &checked);
    assert_eq!((text(&answer, "kind"), text(&answer, "finding")), ("answer".to_owned(), "not-revoked".to_owned()));
    assert!(text(&answer, "verified").starts_with("by a publisher key"), "{answer}");
    let version = inspect("/keys/1", &checked);
    assert_eq!((text(&version, "kind"), number(&version, "version")), ("keys".to_owned(), 1));

    let profiles = |value: &Value, name: &str| -> Vec<String> {
        let lines = value[name].as_array().unwrap_or_else(|| panic!("no {name}: {value}"));
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    let index = inspect("/index", &checked);
    let lines = profiles(&index, "profiles");
    let names: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!(names, ["exact", "list", "covered", "filter", "folded", "folded-twice"], "{index}");
    assert!(lines.iter().all(|line| line.contains(" bytes, ") && line.ends_with(" bits a revocation")), "{lines:?}");
    let why = text(&index, "why_this_filter");
    assert!(why.contains("bits a revocation with its exceptions; the list takes "), "{why}");
    assert_eq!(number(&index, "covered_until").to_string(), until_when);

    assert!(agent.process().stop().success());
    let state = revocast(["--json", "inspect", &site.text("door")]).ok().json();
    assert_eq!((text(&state, "profile"), profiles(&state, "base_profiles")), ("covered".to_owned(), lines));
    let words = revocast(["inspect", &site.text("door")]).ok();
    assert!(words.stdout.contains("covered: ") && words.stdout.contains("why this filter"), "{words:?}");
}

/// The agent pins another site's roots: it follows nothing, says so, and vouches for no token.
#[test]
fn an_agent_that_trusts_somebody_else_answers_unknown() {
    let (site, other) = (Site::new(), Site::new());
    let server = site.found(Via::Embedded);
    let exp = now() + 1_000;
    server.revoke("x", exp);
    server.wait_until_published();
    let agent = other.agent("door", &server.broker());
    let status = until("it refuses", || {
        let status = agent.status();
        (number(&status, "refusals") > 0).then_some(status)
    });
    assert!(matches!(&*text(&status, "last_refusal"), "wrong-key" | "threshold"), "{status}");
    for jti in ["x", "y"] {
        let answer = agent.check(jti, exp);
        assert_eq!((text(&answer, "verdict"), text(&answer, "decision")), ("unknown".to_owned(), "deny".to_owned()));
        assert_eq!(text(&answer, "doubt"), "no-state");
    }
    assert_eq!(number(&agent.status(), "sequence"), 0);
}

#[test]
fn questions_that_cannot_be_answered_are_told_so() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let (tokens, jwks) = mint(&site, 4);
    let plain = site.agent("plain", &server.broker());
    plain.wait_until_at(0);
    let problem = |method: &str, path: &str, body: &[u8]| -> (u16, String) {
        let (status, problem) = plain.ask(method, path, body).unwrap();
        (status, text(&problem, "type"))
    };
    let named = |status: u16, name: &str| (status, format!("urn:revocast:problem:{name}"));
    assert_eq!(problem("GET", "/check", b""), named(422, "bad-question"));
    assert_eq!(problem("GET", "/check?jti=x", b""), named(422, "bad-question"));
    assert_eq!(problem("GET", "/check?jti=x&exp=-1", b""), named(422, "bad-question"));
    assert_eq!(problem("GET", "/check?jti=x&exp=1&exp=2", b""), named(422, "bad-question"));
    assert_eq!(problem("GET", "/check?jti=x&exp=1&colour=red", b""), named(422, "bad-question"));
    assert_eq!(problem("GET", "/check?jti=&exp=1", b""), named(422, "bad-jti"));
    assert_eq!(problem("GET", &format!("/check?jti={}&exp=1", "x".repeat(300)), b""), named(422, "bad-jti"));
    assert_eq!(problem("GET", "/nowhere", b""), named(404, "unknown-path"));
    assert_eq!(problem("POST", "/check", b""), named(405, "wrong-method"));
    assert_eq!(problem("POST", "/verify", tokens[0].token.as_bytes()), named(501, "no-audience"));

    let agent = site.agent_with("door", &server.broker(), &["--jwks", &jwks, "--audience", AUDIENCE]);
    agent.wait_until_at(0);
    assert_eq!(agent.ask("POST", "/verify", &vec![b'x'; 64 * 1024]).unwrap().0, 413);
    assert_eq!(agent.ask("POST", "/verify", b"\xff\xfe").unwrap().0, 400);
    for garbage in [&b""[..], b"x", b"a.b.c", &[b'.'; 9_000]] {
        let (status, answer) = agent.ask("POST", "/verify", garbage).unwrap();
        assert_eq!((status, text(&answer, "verdict")), (200, "reject".to_owned()));
    }
    // All scopes can be asked with, and an expired token is refused whatever else.
    let (status, answer) = agent.ask("GET", "/check?jti=x&exp=1&iat=1&sub=s&kid=k&client=c", b"").unwrap();
    assert_eq!(
        (status, text(&answer, "verdict"), text(&answer, "why")),
        (200, "revoked".to_owned(), "expired".to_owned())
    );
}

#[test]
fn what_is_not_ours_is_told_so() {
    let site = Site::new();
    revocast(["inspect", &site.text("none")]).fails(2, &["none", "cannot be read"]);
    std::fs::create_dir(site.path("empty")).unwrap();
    revocast(["inspect", &site.text("empty")]).fails(1, &["no whole state"]);
    for bytes in [&b""[..], b"RV", b"hello, world", &[0; 5_000]] {
        let file = site.write("object", bytes);
        revocast(["inspect", &file]).fails(1, &["neither a sealed object nor state"]);
    }
    for bytes in [
        &b"RVC"[..],
        b"RVC\x01\x02",
        b"RVC\x07\x02\x05fleet....",
        b"RVS1",
        b"RVB1",
        b"RVS1\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let file = site.write("object", bytes);
        let ran = revocast(["inspect", &file]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{bytes:?}: {ran:?}");
    }
    let file = site.write("object", b"RVC");
    revocast(["inspect", &file, "--verify", &site.text("none")]).fails(2, &["none"]);
    revocast(["inspect", &file, "--keys", &file]).fails(2, &["--verify"]);
}

/// `demo` brings everything itself and needs none of the ports that others may have taken.
#[test]
fn the_demo_ends_with_what_it_found_though_the_usual_ports_are_busy() {
    // Whoever holds one already does just as well.
    let _taken: Vec<Option<TcpListener>> =
        [1883, 8080, 8180, 8181].iter().map(|port| TcpListener::bind(("127.0.0.1", *port)).ok()).collect();
    let before = leftovers();
    let ran = revocast(["demo", "--devices", "3", "--revocations", "30", "--json"]).ok();
    let summary = ran.json();
    assert_eq!((number(&summary, "devices"), number(&summary, "revocations")), (3, 30));
    assert_eq!(summary.get("wrongly_accepted"), Some(&json!(0)), "{summary}");
    assert_eq!(summary.get("wrongly_refused"), Some(&json!(0)), "{summary}");
    for name in ["p50", "p99", "max"] {
        let millis = summary.pointer(&format!("/propagation_ms/{name}")).and_then(Value::as_f64);
        assert!(millis.is_some_and(|millis| millis > 0.0), "{name}: {summary}");
    }
    assert!(number(&summary, "snapshot_bytes") > 0 && number(&summary, "delta_bytes") > 0, "{summary}");
    assert!(number(&summary, "delta_bytes") <= 160, "{summary}");
    // One object on standard output, and nothing else: programs read it.
    assert_eq!(ran.objects().len(), 1);
    // Its own folder is gone; other demos may be running.
    until_true("the folder is removed", || leftovers().len() <= before.len() + 1);

    revocast(["demo", "--devices", "0"]).fails(2, &["--devices"]);
    revocast(["demo", "--revocations", "1000000"]).fails(2, &["--revocations"]);
}

fn leftovers() -> Vec<String> {
    let entries = std::fs::read_dir(std::env::temp_dir()).expect("a temporary folder");
    let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.starts_with("revocast-demo-")).collect()
}

/// A terminal that is closed, or `revocast serve | head`: whoever reads is gone, and nothing panics.
#[test]
fn nobody_has_to_listen() {
    let site = Site::new();
    let (tokens, jwks) = mint(&site, 400);
    let lines: Vec<&str> = tokens.iter().map(|token| &*token.token).collect();
    let input = site.write("tokens", lines.join("\n"));
    let script = format!(
        "'{}' verify --jwks '{jwks}' --issuer {ISSUER} --audience {AUDIENCE} < '{input}' | head -n 1",
        tool("REVOCAST_BIN").display()
    );
    // A process panics in its log if it does; the guard looks for it.
    let mut shell = Process::start("verify | head", Command::new("sh").args(["-c", &script]));
    let first: Value = serde_json::from_str(&shell.line().expect("a line")).unwrap();
    assert_eq!(number(&first, "line"), 1);
    assert!(shell.wait().success());
    assert!(!shell.log().contains("panicked"), "{}", shell.log());
}
