//! Lists of revoked tokens that another system kept: every format, hostile lines, lost connections, repetition.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Instant;

use revocast_tests::process::{
    Process, REALM, Ran, Server, Site, Via, now, number, revocast, revocast_with, tool, until_true,
};
use serde_json::{Value, json};

fn import(server: &Server, file: &str, more: &[&str]) -> Ran {
    server.command(&[&["--json", "import", file, "--realm", REALM], more].concat())
}

/// Recorded, repeated, expired, refused.
fn counts(ran: &Ran) -> [u64; 4] {
    let value: Value =
        serde_json::from_str(ran.stdout.lines().next().unwrap_or_default()).unwrap_or_else(|_| json!({}));
    ["recorded", "repeated", "expired", "refused"].map(|name| number(&value, name))
}

fn lines(from: u64, count: u64, exp: u64) -> String {
    (from..from + count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, r#"{{"jti":"token-{number}","exp":{exp}}}"#);
        text
    })
}

/// What is revoked, by asking for it again one by one: `recorded` is false.
fn revoked(server: &Server, jti: &str) -> bool {
    let path = format!("/v1/realms/{REALM}/revocations");
    server.post(&path, &json!({ "jti": jti, "exp": now() + 10 })).get("recorded") == Some(&json!(false))
}

#[test]
fn every_format_brings_the_same_tokens() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let exp = now() + 5_000;

    let ndjson = format!("{{\"jti\":\"n-1\",\"exp\":{exp},\"reason\":\"lost\"}}\n\n{{\"exp\":{exp},\"jti\":\"n-2\"}}");
    let ran = import(&server, &site.write("list.ndjson", ndjson), &[]).ok();
    assert_eq!(counts(&ran), [2, 0, 0, 0], "{ran:?}");

    // Columns in another order, a byte order mark, line ends of Windows, quotes over two lines, a column nobody uses.
    let csv = format!(
        "\u{feff}EXP,who,jti,reason\r\n{exp},alice,c-1,\"said \"\"no\"\",\nthen left\"\r\n\
         2033-05-18T03:33:20Z,bob, c-2 ,\r\n{},carol,c-3,x\r\n",
        now() - 100_000
    );
    let ran = import(&server, &site.write("list.csv", csv), &["--reason", "moved here"]).ok();
    assert_eq!(counts(&ran), [2, 0, 1, 0], "{ran:?}");
    assert_eq!(ran.json().get("unused_columns"), Some(&json!(["who"])));

    let keys = "denylist:r-1\ndenylist:r:2\n";
    let redis = ["--format", "redis", "--key", "denylist:{jti}"];
    let ran = import(&server, &site.write("keys", keys), &redis).ok();
    assert_eq!((counts(&ran), number(&ran.json(), "without_end")), ([2, 0, 0, 0], 2), "{ran:?}");
    let told = server.command(&[&["import", &site.text("keys"), "--realm", REALM][..], &redis].concat()).ok();
    assert!(
        told.stdout.contains("revoked already 2") && told.stdout.contains("2 keys came without an end"),
        "{told:?}"
    );

    let with_ttl = "revoked:t-1:x 300\nrevoked:t-2:x -1\nrevoked:t-3:x -2\n";
    let with_exp = format!("revoked:e-1:x {exp}\nrevoked:e-2:x -1\nrevoked:e-3:x -2\nrevoked:e-4:x 17\n");
    let pattern = ["--format", "redis", "--key", "revoked:{jti}:x", "--value"];
    let ran = import(&server, &site.write("ttl", with_ttl), &[&pattern[..], &["ttl"]].concat()).ok();
    assert_eq!((counts(&ran), number(&ran.json(), "without_end")), ([2, 0, 1, 0], 1), "{ran:?}");
    let ran = import(&server, &site.write("exp", with_exp), &[&pattern[..], &["exp"]].concat()).ok();
    assert_eq!((counts(&ran), number(&ran.json(), "without_end")), ([2, 0, 2, 0], 1), "{ran:?}");

    let all = ["n-1", "n-2", "c-1", "c-2", "r-1", "r:2", "t-1", "t-2", "e-1", "e-2"];
    assert_eq!(server.head(), all.len() as u64);
    assert!(all.iter().all(|jti| revoked(&server, jti)), "all of them are there");
    assert!(["c-3", "t-3", "e-3", "e-4"].iter().all(|jti| !revoked(&server, jti)), "what is over was passed over");

    // From a pipe.
    let (url, token) = (server.url(), site.text("data/keys/admin.token"));
    let piped = ["--json", "import", "-", "--realm", REALM, "--server", &url, "--admin-token-file", &token];
    assert_eq!(counts(&revocast_with(piped, lines(0, 3, exp).as_bytes()).ok()), [3, 0, 0, 0]);
}

#[test]
fn a_line_that_cannot_be_used_is_told_and_nothing_else_is_lost() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let exp = now() + 5_000;
    let long = "x".repeat(5_000);
    let bad = [
        ("{\"jti\":\"a\"}".to_owned(), "missing field `exp`"),
        (format!("{{\"jti\":\"a\",\"exp\":{exp},\"sub\":\"b\"}}"), "unknown field `sub`"),
        (format!("{{\"jti\":\"\",\"exp\":{exp}}}"), "jti"),
        (format!("{{\"jti\":\"a\",\"exp\":{exp}000}}"), "in milliseconds"),
        (format!("{{\"jti\":\"a\",\"exp\":\"{exp}\"}}"), "invalid type: string"),
        (format!("{{\"jti\":\"a\",\"exp\":{exp}.5}}"), "invalid type: floating point"),
        (format!("{{\"jti\":\"a\",\"jti\":\"b\",\"exp\":{exp}}}"), "duplicate field"),
        (format!("{{\"jti\":\"{long}\",\"exp\":{exp}}}"), "bytes, more than"),
        (format!("{{\"jti\":\"a\",\"exp\":{exp},\"reason\":\"{}\"}}", "r".repeat(1_025)), "the reason has 1025 bytes"),
        ("null".to_owned(), "invalid type: null"),
        ("oops".to_owned(), "expected value"),
    ];
    let mut text = String::new();
    for (number, (line, _)) in bad.iter().enumerate() {
        let _ = writeln!(text, "{line}\n{{\"jti\":\"good-{number}\",\"exp\":{exp}}}");
    }
    let file = site.write("bad.ndjson", text);
    // Without being told to go on it goes no further than the part it is in, and says from where.
    import(&server, &file, &[]).fails(1, &["line 1: missing field `exp`", "--from-line 1", "--keep-going"]);
    let ran = import(&server, &file, &["--keep-going"]);
    let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    let detail = error["detail"].as_str().unwrap();
    for (number, (_, why)) in bad.iter().enumerate() {
        let told = detail.lines().find(|line| line.contains(&format!("line {}: ", 2 * number + 1)));
        assert!(told.is_some_and(|told| told.contains(why)), "{why}: {detail}");
    }
    assert_eq!((ran.code, counts(&ran)), (1, [0, bad.len() as u64, 0, bad.len() as u64]), "{ran:?}");
    assert!((0..bad.len()).all(|number| revoked(&server, &format!("good-{number}"))));

    for (name, text, more, words) in [
        ("a.csv", "jti,exp\na,1999999999000\n", &[][..], &["line 2: exp 1999999999000 is in milliseconds"][..]),
        ("a.csv", "jti,exp\na,soon\n", &[], &["line 2: exp ", "soon", "is no time", "2033-05-18T03:33:20Z"]),
        ("a.csv", "jti,exp\na\n", &[], &["line 2: it has 1 fields, and the header 2"]),
        ("a.csv", "jti,exp\n\n\n\u{fffd},1999999999,c\n", &[], &["line 4: it has 3 fields"]),
        ("a.ndjson", "\u{0}\n", &[], &["line 1: "]),
        (
            "a",
            "other:1\n",
            &["--format", "redis", "--key", "deny:{jti}"],
            &["line 1: the key ", "other:1", "is not like deny:{jti}"],
        ),
        ("a", "deny:\n", &["--format", "redis", "--key", "deny:{jti}"], &["line 1: the key has no jti in it"]),
        ("a", "\"a\"\n", &["--format", "redis"], &["line 1: it is quoted for people"]),
        ("a", "a\n", &["--format", "redis", "--value", "ttl"], &["line 1: nothing stands behind the key"]),
        ("a", "a x\n", &["--format", "redis", "--value", "ttl"], &["line 1: ", "behind the key is no number"]),
        ("a", "a 1999999999\n", &["--format", "redis", "--value", "ttl"], &["--value exp"]),
        ("a", "a 1999999999000\n", &["--format", "redis", "--value", "exp"], &["EXPIRETIME"]),
    ] {
        import(&server, &site.write(name, text), more).fails(1, words);
    }
    for (name, text, more, words) in [
        ("a.csv", "token,exp\na,1\n", &[][..], &["no column is called jti", "token, exp"][..]),
        ("a.csv", "jti,jti,exp\na,b,1\n", &[], &["two columns are called jti"]),
        ("a.csv", "", &[], &["no column is called jti"]),
        ("a.ndjson", "\n\n", &[], &["names no token from line 1"]),
        ("a.ndjson", "x\n", &["--key", "x{jti}"], &["--key and --value are for --format redis"]),
        ("a", "x\n", &["--format", "redis", "--key", "x"], &["{jti}"]),
    ] {
        import(&server, &site.write(name, text), more).fails(2, words);
    }
    import(&server, &site.text("none.csv"), &[]).fails(2, &["none.csv", "cannot be read"]);
    let open = format!("jti,exp\na,{exp}\n\"b,{exp}\n{}", "c,1\n".repeat(20_000));
    import(&server, &site.write("open.csv", open), &[]).fails(1, &["is a quote not closed?"]);
    server.command(&["import", &file, "--realm", "elsewhere"]).fails(2, &["there is no realm elsewhere"]);
    assert_eq!(server.head(), bad.len() as u64 + 1, "nothing else was recorded");
}

/// The import is killed in the middle, the server is killed in the middle; both begin again. Nothing is there twice,
/// nothing is missing.
#[test]
fn an_import_that_was_killed_is_repeated_without_harm() {
    let site = Site::new();
    let mut server = site.found(Via::Embedded);
    let (count, exp) = (60_000, now() + 5_000);
    let file = site.write("list.ndjson", lines(0, count, exp));
    let (url, token) = (server.url(), site.text("data/keys/admin.token"));
    let start = || {
        let arguments = ["--json", "import", &file, "--realm", REALM, "--server", &url, "--admin-token-file", &token];
        Process::start("import", Command::new(tool("REVOCAST_BIN")).args(arguments))
    };
    let mut first = start();
    until_true("a part of it is there", || server.head() > 0);
    first.kill();
    let mut second = start();
    let before = server.head();
    until_true("more of it is there, or all", || server.head() > before || server.head() == count);
    server.kill_and_restart();
    let told: Value = serde_json::from_str(&second.line().expect("a result")).unwrap();
    assert!(second.wait().success(), "{}", second.log());
    assert_eq!(number(&told, "recorded") + number(&told, "repeated"), count, "{told}");
    // Every number was given once.
    assert_eq!(server.head(), count);
    let again = import(&server, &file, &[]).ok();
    assert_eq!(counts(&again), [0, count, 0, 0], "{again:?}");
    assert_eq!(counts(&import(&server, &file, &["--from-line", "59001"]).ok()), [0, 1_000, 0, 0]);
    assert_eq!(server.head(), count);
    server.kill();
    server.command(&["import", &file, "--realm", REALM]).fails(1, &[&url, "does not answer"]);
}

/// A server that is asked too often says when to come back, and is asked again no sooner.
#[test]
fn the_server_is_asked_again_when_it_said() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let mut asked = Vec::new();
        let realms = json!({ "realms": [{ "name": REALM, "max_token_lifetime": 60 }] }).to_string();
        let done =
            json!({ "lines": 1, "recorded": 1, "repeated": 0, "expired": 0, "refused": 0, "problems": [] }).to_string();
        for (status, more, body) in [
            ("200 OK", "", realms.as_str()),
            ("429 Too Many Requests", "retry-after: 1\r\n", "{}"),
            ("503 Service Unavailable", "retry-after: 1\r\n", "{}"),
            ("200 OK", "", done.as_str()),
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut buffer = [0; 4096];
            // A request of one packet or two: the body has one line.
            let whole = |head: &[u8]| head.ends_with(if head.starts_with(b"GET") { &b"\r\n\r\n"[..] } else { b"}\n" });
            while !whole(&head) {
                let read = stream.read(&mut buffer).unwrap();
                head.extend_from_slice(&buffer[..read]);
            }
            asked.push(Instant::now());
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\n{more}connection: close\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    });
    let site = Site::new();
    let file = site.write("list.ndjson", lines(0, 1, 1_999_999_999));
    let token = site.text("data/keys/admin.token");
    let ran =
        revocast(["--json", "import", &file, "--realm", REALM, "--server", &url, "--admin-token-file", &token]).ok();
    assert_eq!(counts(&ran), [1, 0, 0, 0]);
    let asked = server.join().unwrap();
    assert!(asked[2] - asked[1] >= std::time::Duration::from_secs(1), "{asked:?}");
    assert!(asked[3] - asked[2] >= std::time::Duration::from_secs(1), "{asked:?}");
}

/// A long list; `REVOCAST_IMPORT_LINES=1000000` makes it longer.
#[test]
fn a_long_list_arrives_whole_in_bounded_memory() {
    let count = std::env::var("REVOCAST_IMPORT_LINES").ok().and_then(|text| text.parse().ok()).unwrap_or(30_000_u64);
    let site = Site::new();
    let server = site.found(Via::Embedded);
    let exp = now() + 100_000;
    let file = site.write("list.ndjson", lines(0, count, exp));
    let (url, token) = (server.url(), site.text("data/keys/admin.token"));
    let arguments = ["--json", "import", &file, "--realm", REALM, "--server", &url, "--admin-token-file", &token];
    let begun = Instant::now();
    let mut import = Process::start("import", Command::new(tool("REVOCAST_BIN")).args(arguments));
    let mut most = 0;
    until_true("the import ends", || {
        most = most.max(resident_kib(import.id()));
        !import.is_running()
    });
    let told: Value = serde_json::from_str(&import.line().expect("a result")).unwrap();
    assert_eq!((number(&told, "recorded"), server.head()), (count, count), "{told}");
    let seconds = begun.elapsed().as_secs_f64();
    println!("{count} lines in {seconds:.1} s, {:.0} a second; import held {most} KiB", count as f64 / seconds);
    assert!(most < 128 * 1024, "{most} KiB");
}

/// What a process holds in memory, KiB.
fn resident_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}
