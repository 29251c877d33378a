//! The commands that look at ledgers and move them, between a file and a database and back, over what a real server
//! has published.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use revocast_tests::postgres::Postgres;
use revocast_tests::process::{REALM, Ran, Server, Site, Via, now, number, revocast, until};
use serde_json::json;

fn ledger(command: &[&str], place: &[&str]) -> Ran {
    revocast(["--json", "ledger"].iter().chain(command).chain(place))
}

/// Revocations of every kind, a registered token, a device that holds a token, and an epoch that stands on the broker.
fn work(site: &Site, server: &Server) {
    let exp = now() + 10_000;
    let identity = site.text("pump.identity");
    let enrollment = revocast(["device", "keygen", "--id", "pump", "--realm", REALM, "--out", &identity]).ok().stdout;
    let enrollment = site.write("pump.json", enrollment);
    let _ = server.command(&["device", "enroll", &enrollment, "--audience", "https://api.example"]).ok();
    let _ = server.command(&["device", "token", "pump", "--realm", REALM]).ok();
    for jti in 0..50 {
        server.revoke(&format!("token-{jti}"), exp);
    }
    let _ = server.command(&["reinstate", "--realm", REALM, "--jti", "token-7", "--reason", "a mistake"]).ok();
    let _ = server.command(&["cutoff", "--realm", REALM, "--sub", "mallory"]).ok();
    let issued = json!({ "jti": "good", "iat": now() - 5, "exp": exp, "sub": "alice" }).to_string();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), issued + "\n").expect("written");
    let _ = server.command(&["issued", "import", &file.path().display().to_string(), "--realm", REALM]).ok();
    until("everything is published", || {
        let realm = server.realm();
        let published = realm.pointer("/published/position/sequence").or_else(|| realm.pointer("/published/sequence"));
        (published.and_then(serde_json::Value::as_u64) >= Some(52)).then_some(())
    });
}

fn export(to: &Path, place: &[&str]) -> Vec<u8> {
    let _ = ledger(&["export", &to.display().to_string()], place).ok();
    assert_eq!(fs::metadata(to).expect("an export").permissions().mode() & 0o777, 0o600);
    fs::read(to).expect("read")
}

#[test]
fn a_ledger_moves_to_a_database_and_back_without_losing_a_byte() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    work(&site, &server);
    let devices = server.command(&["device", "list", "--realm", REALM]).ok().stdout;
    assert!(devices.contains("pump"), "{devices}");
    let data = site.text("data");
    let file = &["--data", data.as_str()][..];
    // An embedded ledger belongs to its server.
    ledger(&["verify"], file).fails(1, &["ledger-in-use", "stop that server first"]);
    assert_eq!(server.process().stop().code(), Some(0));
    drop(server);

    let found = ledger(&["verify"], file).ok().json();
    assert_eq!((number(&found, "wrong"), number(&found, "realms"), number(&found, "entries")), (0, 1, 52));
    // The registered one, and that of the device.
    assert_eq!(number(&found, "issued"), 2);
    assert!(number(&found, "objects") > 3, "{found}");
    let first = export(&site.path("first.ndjson"), file);

    let postgres = Postgres::start();
    let (url, password) = (postgres.database(), postgres.password_file().display().to_string());
    let database = &["--ledger", url.as_str(), "--ledger-password-file", password.as_str()][..];
    let imported = ledger(&["import", &site.text("first.ndjson")], database).ok().json();
    assert_eq!(imported, found);
    assert_eq!(ledger(&["verify"], database).ok().json(), found);
    assert_eq!(export(&site.path("second.ndjson"), database), first);

    let other = site.text("other");
    let back = &["--data", other.as_str()][..];
    let _ = ledger(&["import", &site.text("second.ndjson")], back).ok();
    assert_eq!(export(&site.path("third.ndjson"), back), first);
    for place in [file, database, back] {
        let sizes = ledger(&["compact"], place).ok().json();
        assert!(number(&sizes, "before") > 0 && number(&sizes, "after") > 0, "{sizes}");
        assert_eq!(ledger(&["verify"], place).ok().json(), found);
    }

    // Nothing is imported over something, nor exported over a file.
    ledger(&["import", &site.text("first.ndjson")], database).fails(1, &["ledger-not-empty", REALM]);
    ledger(&["export", &site.text("first.ndjson")], back).fails(2, &["file-exists"]);
    assert_eq!(fs::read(site.path("first.ndjson")).unwrap(), first);

    // A server goes on where the file ended.
    let arguments = ["--ledger", &url, "--ledger-password-file", &password];
    let mut server = site.serve_with(Via::Embedded, &arguments);
    assert_eq!(server.revoke("token-3", now() + 10_000), 4);
    assert_eq!(server.command(&["device", "list", "--realm", REALM]).ok().stdout, devices);
    assert_eq!(server.revoke("a-new-one", now() + 10_000), 53);
    // Beside a server that runs on it, a database can be looked at.
    assert_eq!(number(&ledger(&["verify"], database).ok().json(), "entries"), 53);
    let log = server.process().log();
    assert!(!log.contains(revocast_tests::postgres::PASSWORD), "{log}");
    assert_eq!(server.process().stop().code(), Some(0));
}

#[test]
fn an_export_that_was_cut_or_touched_is_refused_whole() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    work(&site, &server);
    assert_eq!(server.process().stop().code(), Some(0));
    drop(server);
    let data = site.text("data");
    let good = export(&site.path("good.ndjson"), &["--data", &data]);
    let text = String::from_utf8(good.clone()).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();

    let without_end = lines[..lines.len() - 1].concat();
    let without_entry = [&lines[..3], &lines[4..]].concat().concat();
    let cases = [
        (text[..text.len() / 2].to_owned(), "the file ends here"),
        (without_end, "the file ends here"),
        (without_entry, "it does not hold as much as its last line says"),
        (text.replace("token-11", "token-99"), "it was changed"),
        (format!("{text}{}", lines[0]), "something stands after its last line"),
        (lines[1..].concat(), "it is no export of a ledger"),
        (text.replace("\"version\":1", "\"version\":2"), "it has version 2"),
        ("{\"jti\":\"t\"}\n".to_owned(), "line 1"),
        (String::new(), "line 1: the file ends here"),
        (format!("{}{}\n", lines[0], "x".repeat(1 << 20)), "is longer than"),
    ];
    for (index, (bad, why)) in cases.into_iter().enumerate() {
        let file = site.write("bad.ndjson", bad);
        let empty = site.text(&format!("empty-{index}"));
        ledger(&["import", &file], &["--data", &empty]).fails(1, &["line", why]);
        // What was begun left nothing, and the same folder takes the good one.
        let _ = ledger(&["import", &site.text("good.ndjson")], &["--data", &empty]).ok();
    }
}

#[test]
fn damage_is_told_and_ends_with_exit_code_1() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    work(&site, &server);
    assert_eq!(server.process().stop().code(), Some(0));
    drop(server);
    let data = site.text("data");
    let path = site.path("data/ledger.db");
    let good = fs::read(&path).unwrap();
    // One letter in the row of an entry.
    let place = good.windows(8).position(|bytes| bytes == b"token-11").unwrap();
    let mut bad = good.clone();
    bad[place + 6] = b'9';
    fs::write(&path, &bad).unwrap();
    ledger(&["verify"], &["--data", &data]).fails(1, &["ledger-damaged", "import an export"]);
    ledger(&["export", &site.text("bad.ndjson")], &["--data", &data]).fails(1, &["ledger-damaged"]);
    assert!(!site.path("bad.ndjson").exists() && !site.path("bad.ndjson.part").exists());

    // A half of it.
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    ledger(&["verify"], &["--data", &data]).fails(1, &["ledger-damaged", "revocast ledger import"]);
    fs::write(&path, &good).unwrap();
    let _ = ledger(&["verify"], &["--data", &data]).ok();
}

#[test]
fn places_that_cannot_be_are_refused() {
    let site = Site::new();
    let nowhere = site.text("nowhere");
    for command in [&["verify"][..], &["compact"], &["export", "/tmp/never-written"]] {
        ledger(command, &["--data", &nowhere]).fails(2, &["no-ledger", "nowhere"]);
    }
    assert!(!site.path("nowhere").exists());
    ledger(&["verify"], &[]).fails(2, &["--data"]);
    ledger(&["verify"], &["--data", "a", "--ledger", "postgres://b"]).fails(2, &["cannot be used with"]);
    let refused = |url: &str, why: &str| ledger(&["verify"], &["--ledger", url]).fails(2, &["bad-ledger", why]);
    refused("mysql://u@h/d", "does not begin with postgres://");
    refused("postgres://u:secret@h/d", "holds a password");
    refused("postgres://h/d", "names no user");
    refused("postgres://u@h/d?sslmode=require", "ledger_ca");
    // Nobody listens there.
    let port = revocast_tests::process::free_port();
    let gone = ledger(&["verify"], &["--ledger", &format!("postgres://u@127.0.0.1:{port}/d")]);
    gone.fails(1, &["ledger-not-opened", "cannot be reached"]);
    // A password that is wrong is not told.
    let postgres = Postgres::start();
    let wrong = site.write("password", "another secret\n");
    let refused = ledger(&["verify"], &["--ledger", &postgres.database(), "--ledger-password-file", &wrong]);
    refused.fails(1, &["ledger-not-opened", "password authentication failed"]);
    assert!(!refused.stderr.contains("another secret"), "{refused:?}");
    ledger(&["import", &site.text("missing.ndjson")], &["--data", &nowhere]).fails(2, &["unreadable-file"]);
}
