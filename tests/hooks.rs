//! The broker inside the server lets devices in by their tokens: with the real binary, an agent that shows a token which
//! `PyJWT` made, and one that shows those it is given.

use std::process::Command;

use revocast_tests::process::{
    AUDIENCE, Agent, Minted, Process, REALM, Server, Site, Via, mint, now, number, revocast, text, tool, until,
    until_true,
};
use serde_json::{Value, json};

/// The realm believes the keys that Python made; those that are secret have no place in a public set.
fn believe(site: &Site, jwks: &str) {
    let set: Value = serde_json::from_str(&std::fs::read_to_string(jwks).expect("a key set")).expect("JSON");
    let keys = set.get("keys").and_then(Value::as_array).expect("keys");
    let public: Vec<&Value> = keys.iter().filter(|key| key.get("kty").is_some_and(|kind| kind != "oct")).collect();
    std::fs::create_dir_all(site.path("data/keys/jwks")).expect("a folder");
    let _ = site.write(&format!("data/keys/jwks/{REALM}.json"), json!({ "keys": public }).to_string());
}

/// Connects with a password and hears what it may; what became of it in a word.
fn tries(server: &Server, client: &str, user: &str, password: &str, filter: &str) -> String {
    let script = "import sys, paho.mqtt.client as mqtt\n\
                  host, port, client, user, password, topic = sys.argv[1:]\n\
                  c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client, reconnect_on_failure=False)\n\
                  c.username_pw_set(user, password)\n\
                  def connected(c, _d, _f, reason, _p):\n\
                  \x20   if reason.is_failure: print('refused', flush=True); c.disconnect()\n\
                  \x20   else: c.subscribe(topic, qos=1)\n\
                  def subscribed(c, _d, _m, reasons, _p):\n\
                  \x20   print('no' if reasons[0].is_failure else 'hears', flush=True); c.disconnect()\n\
                  c.on_connect, c.on_subscribe = connected, subscribed\n\
                  c.connect(host, int(port)); c.loop_forever()\n";
    let broker = server.broker();
    let (host, port) = broker.trim_start_matches("mqtt://").rsplit_once(':').expect("a port");
    let mut command = Command::new(tool("REVOCAST_PYTHON"));
    command.args(["-c", script, host, port, client, user, password, filter]);
    Process::start("a client", &mut command).line().unwrap_or_else(|| "thrown out".to_owned())
}

#[test]
fn the_embedded_broker_lets_a_device_in_with_its_token_and_a_revoked_one_not_again() {
    let site = Site::new();
    let (tokens, jwks) = mint(&site, 8);
    believe(&site, &jwks);
    let server = site.found_with(Via::Embedded, &["--embedded-broker-auth", "true"]);
    // Those that EdDSA has signed have the subjects 3 and 7.
    let [.., other] = tokens.as_slice() else { panic!("eight tokens") };
    let Minted { token, jti, exp, .. } = &tokens[3];
    let password = site.write("device.token", token);
    let more = ["--broker-user", REALM, "--broker-password-file", &password, "--jwks", &jwks, "--audience", AUDIENCE];
    let mut agent = site.agent_with("subject-3", &server.broker(), &more);
    let sequence = server.revoke("another", now() + 3_600);
    agent.wait_until_at(sequence);
    until_true("its reports arrive", || {
        let fleet = server.get(&format!("/v1/realms/{REALM}/fleet")).expect("a fleet").1;
        fleet.get("online").and_then(Value::as_u64) == Some(1)
    });

    let manifest = format!("revocast/{REALM}/manifest");
    for (client, user, password, filter, outcome) in [
        ("subject-7", REALM, &other.token, &manifest, "hears"),
        ("subject-7", REALM, &other.token, &"device_tokens/subject-7".to_owned(), "hears"),
        ("subject-7", REALM, &other.token, &"device_tokens/+".to_owned(), "no"),
        ("subject-7", REALM, &other.token, &"#".to_owned(), "no"),
        ("subject-4", REALM, &other.token, &manifest, "refused"),
        ("subject-7", "elsewhere", &other.token, &manifest, "refused"),
        ("subject-7", "$revocast", &other.token, &manifest, "refused"),
        ("subject-7", REALM, &String::new(), &manifest, "refused"),
    ] {
        assert_eq!(tries(&server, client, user, password, filter), outcome, "{client} {user} {filter}");
    }

    // Its session goes on, and it knows; but it does not come back.
    let sequence = server.revoke(jti, *exp);
    agent.wait_until_at(sequence);
    assert_eq!(agent.verdict(jti, *exp), "revoked");
    agent.kill();
    assert_eq!(tries(&server, "subject-3", REALM, token, &manifest), "refused");
    agent.start();
    until_true("it is told why", || agent.process().log().to_lowercase().contains("not"));
    assert_eq!(agent.status().get("connected"), Some(&json!(false)));
}

/// What it was let in with at first is good no more; what it got since is.
#[test]
fn an_agent_shows_the_token_that_it_holds_to_the_broker() {
    let site = Site::new();
    let mut server = site.found_with(Via::Embedded, &["--embedded-broker-auth", "true"]);
    let identity = site.text("pump.identity");
    let made = revocast(["device", "keygen", "--id", "pump", "--realm", REALM, "--out", &identity]).ok();
    let enrollment = site.write("pump.json", made.stdout);
    let _ = server.command(&["device", "enroll", &enrollment, "--audience", AUDIENCE]).ok();
    let issue = ["--json", "token", "issue", "--realm", REALM, "--sub", "pump", "--audience", AUDIENCE];
    let first = server.command(&issue).ok().json();
    let password = site.write("first.token", text(&first, "token"));
    let more = [
        "--identity",
        &identity,
        "--audience",
        AUDIENCE,
        "--broker-token",
        "--broker-user",
        REALM,
        "--broker-password-file",
        &password,
    ];
    let mut agent = site.agent_with("pump", &server.broker(), &more);
    let held = |agent: &Agent| {
        until("it holds a token", || {
            let (_, told) = agent.ask("GET", "/token", b"").ok()?;
            (text(&told, "state") == "held").then_some(told)
        })
    };
    let own = held(&agent);
    let sequence = server.revoke(&text(&first, "jti"), number(&first, "exp"));
    agent.wait_until_at(sequence);
    agent.kill();
    agent.start();
    let sequence = server.revoke("another", now() + 3_600);
    agent.wait_until_at(sequence);
    assert_eq!(text(&held(&agent), "jti"), text(&own, "jti"));

    // Revoked while it is away, the broker does not take it; what its operator left it does, and it learns why.
    agent.kill();
    let second = server.command(&issue).ok().json();
    let _ = site.write("first.token", text(&second, "token"));
    let (jti, exp) = (text(&own, "jti"), number(&own, "exp"));
    let _ = server.revoke(&jti, exp);
    agent.start();
    let state =
        |agent: &Agent| agent.ask("GET", "/token", b"").map(|(_, told)| text(&told, "state")).unwrap_or_default();
    until_true("it knows that its token was revoked", || state(&agent) == "revoked");
    assert!(agent.process().log().contains("NotAuthorized"));

    // Now that it knows, it shows nothing else, and is let in once that was undone.
    assert!(server.process().stop().success());
    server.start();
    let refused = |agent: &mut Agent| agent.process().log().matches("NotAuthorized").count();
    let before = refused(&mut agent);
    until_true("it is refused again and again", || refused(&mut agent) > before + 3);
    assert_eq!(agent.status().get("connected"), Some(&json!(false)));
    let reinstate = ["reinstate", "--realm", REALM, "--jti", &jti];
    let _ = server.command(&reinstate).ok();
    until_true("it holds a token again", || state(&agent) == "held");
    assert_eq!(agent.status().get("connected"), Some(&json!(true)));
}
