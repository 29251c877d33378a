//! A device's own token, with real processes over a real broker: the device makes its keys, is enrolled, gets a token
//! that nobody else can read, keeps it over restarts without a network, and stops when it is revoked.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_tests::process::{AUDIENCE, Agent, Listener, Mosquitto, REALM, Site, Via, revocast, text, until};
use serde_json::Value;

/// What the agent says of its own token.
fn token(agent: &Agent) -> Value {
    match agent.ask("GET", "/token", b"") {
        Ok((200, answer)) => answer,
        other => panic!("{other:?}"),
    }
}

/// Waits for a state, and gives what else is said.
#[track_caller]
fn until_token(agent: &Agent, state: &str) -> Value {
    until(state, || Some(token(agent)).filter(|answer| text(answer, "state") == state))
}

#[test]
fn a_device_gets_a_token_that_only_it_can_read_keeps_it_offline_and_stops_when_it_is_revoked() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let sniffed = Listener::start(&mosquitto.url(), "#");

    let identity = site.text("pump-1.identity");
    let make = ["device", "keygen", "--id", "pump-1", "--realm", REALM, "--out", &identity];
    let enrollment = site.write("pump-1.json", revocast(make).ok().stdout);
    revocast(make).fails(2, &["keys are never overwritten"]);
    let _ = server.command(&["device", "enroll", &enrollment, "--audience", AUDIENCE]).ok();

    let more = ["--identity", &identity, "--audience", AUDIENCE];
    let mut agent = site.agent_with("pump-1", &mosquitto.url(), &more);
    let first = until_token(&agent, "held");
    let (jwt, jti) = (text(&first, "token"), text(&first, "jti"));
    assert_eq!(jwt.split('.').count(), 3);
    // What it keeps can be looked at without showing the token.
    let inspected = revocast(["inspect", &site.text("pump-1/token")]).ok().stdout;
    assert!(inspected.contains("token bytes") && !inspected.contains("eyJ"), "{inspected}");
    until("the issuer's keys are kept", || site.path("pump-1/issuer-keys").exists().then_some(()));
    let keys = revocast(["inspect", &site.text("pump-1/issuer-keys")]).ok().stdout;
    assert!(keys.contains("issuer-keys") && keys.contains("OKP"), "{keys}");
    // Whoever shows it must prove that it is theirs: as a bearer's it is good for nothing.
    let judged = agent.verify(&jwt);
    assert_eq!(
        (text(&judged, "verdict"), text(&judged, "reason")),
        ("reject".into(), "proof-missing".into()),
        "{judged}"
    );

    // Killed, and started again while nobody can be reached: it is there at once.
    agent.kill();
    agent.move_to("mqtt://127.0.0.1:1");
    agent.start();
    assert_eq!(text(&token(&agent), "token"), jwt);
    agent.kill();
    agent.move_to(&mosquitto.url());
    agent.start();

    let exp = first.get("exp").and_then(Value::as_u64).unwrap();
    let _ = server.revoke(&jti, exp);
    let revoked = until_token(&agent, "revoked");
    assert_eq!((text(&revoked, "jti"), revoked.get("token")), (jti.clone(), None));

    // What it asks for from here on is refused, and it is told so: the server answers it alone.
    let asked = |part: &str| sniffed.heard().iter().filter(|(topic, _)| topic.contains(part)).count();
    let (requests, answers) = (asked("/renew"), asked("device_tokens/"));
    until("another request, and its answer", || {
        (asked("/renew") > requests && asked("device_tokens/") > answers).then_some(())
    });
    assert_eq!(text(&token(&agent), "state"), "revoked");
    let delivery = site.write("delivery", sniffed.wait_for("device_tokens/pump-1"));
    let words = revocast(["inspect", &delivery]).ok().stdout;
    assert!(words.contains("delivery") && words.contains("enclosed"), "{words}");

    // No reader of the broker, and no reader of the agent's log, has seen a token.
    let heard = sniffed.heard();
    assert!(heard.iter().any(|(topic, _)| topic == "device_tokens/pump-1"), "{:?}", heard.len());
    assert!(heard.iter().all(|(_, payload)| !payload.windows(3).any(|bytes| bytes == b"eyJ")));
    assert!(!agent.process().log().contains("eyJ"));
    assert!(agent.process().log().contains("this device's own token was revoked"));
}

#[test]
fn an_agent_without_an_identity_has_no_token_and_one_of_another_name_does_not_start() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let agent = site.agent("nobody", &mosquitto.url());
    let (status, problem) = agent.ask("GET", "/token", b"").unwrap();
    assert_eq!((status, text(&problem, "title")), (404, "no-identity".into()));

    let identity = site.text("pump-1.identity");
    let _ = revocast(["device", "keygen", "--id", "pump-1", "--realm", REALM, "--out", &identity]).ok();
    let start = |more: &[&str]| {
        let (state, trust, broker) = (site.text("state"), site.trust(), mosquitto.url());
        let mut arguments = vec!["agent", "--broker", &broker, "--realm", REALM, "--trust", &trust, "--state", &state];
        arguments.extend(more);
        revocast(arguments)
    };
    let other = ["--identity", &identity, "--client-id", "pump-2", "--audience", AUDIENCE];
    start(&other).fails(2, &["the identity is that of device pump-1, but the client id is pump-2"]);
    start(&["--identity", &identity]).fails(2, &["audience"]);
    start(&["--identity", &identity, "--audience", AUDIENCE, "--token-topic", "tokens/+"]).fails(2, &["{device_id}"]);
    start(&["--identity", &site.text("nowhere")]).fails(2, &["revocast device keygen"]);
}

/// While a device is away the key that signs tokens is replaced, and the key that seals everything: it comes back with what
/// it kept, believes the new keys by way of the old ones, and takes in the next token.
#[test]
fn keys_that_were_replaced_while_a_device_was_away_are_taken_up_by_way_of_those_it_kept() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let (identity, keys) = (site.text("pump-1.identity"), site.text("data/keys"));
    let make = ["device", "keygen", "--id", "pump-1", "--realm", REALM, "--out", &identity];
    let enrollment = site.write("pump-1.json", revocast(make).ok().stdout);
    let _ = server.command(&["device", "enroll", &enrollment, "--audience", AUDIENCE]).ok();
    let more = ["--identity", &identity, "--audience", AUDIENCE];
    let mut agent = site.agent_with("pump-1", &mosquitto.url(), &more);
    let first = until_token(&agent, "held");
    until("the issuer's keys are kept", || site.path("pump-1/issuer-keys").exists().then_some(()));
    agent.kill();

    let rotated = revocast(["--json", "issuer-key", "rotate", "--realm", REALM, "--now", "--keys", &keys]).ok().json();
    let _ = server.command(&["publisher-key", "rotate", "--keys", &keys]).ok();
    agent.start();
    // Its token is as good as before: the key that signed it is still published.
    assert_eq!(text(&until_token(&agent, "held"), "jti"), text(&first, "jti"));
    let next = until("the device takes in a token signed by the new key", || {
        let _ = server.command(&["device", "token", "pump-1", "--realm", REALM]).ok();
        let next = token(&agent);
        (text(&next, "state") == "held" && text(&next, "jti") != text(&first, "jti")).then_some(next)
    });
    let header = URL_SAFE_NO_PAD.decode(text(&next, "token").split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header.get("kid"), rotated.get("kid"), "{header} {rotated}");
}
