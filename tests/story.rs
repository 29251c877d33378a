//! The whole story of tokens, with real processes over Mosquitto: three devices are enrolled and get tokens that only they can
//! read, one calls another, tokens are renewed, one is revoked with all that came of it, keys are replaced while a device is
//! away, and everything converges. Nobody at the broker ever saw a token.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::collections::BTreeSet;

use revocast_tests::process::{
    AUDIENCE, Agent, Listener, Mosquitto, REALM, Server, Site, Via, number, revocast, text, until, until_true,
};
use serde_json::{Value, json};

/// Where callers reach the gate, as they see it: proofs name it.
const ORIGIN: &str = "https://gate.example";

/// A life of tokens in which renewals happen while somebody watches, and long enough that a slow machine keeps up.
const LIFETIME: &str = "60";

/// A device: its agent, with an identity of its own.
struct Device {
    agent: Agent,
    name: &'static str,
    jtis: BTreeSet<String>,
}

impl Device {
    fn enroll(site: &Site, server: &Server, broker: &str, name: &'static str) -> Self {
        let identity = site.text(&format!("{name}.identity"));
        let made = revocast(["device", "keygen", "--id", name, "--realm", REALM, "--out", &identity]).ok();
        let enrollment = site.write(&format!("{name}.json"), made.stdout);
        let _ = server.command(&["device", "enroll", &enrollment, "--audience", AUDIENCE]).ok();
        let more = ["--identity", &identity, "--audience", AUDIENCE, "--origin", ORIGIN];
        Self { agent: site.agent_with(name, broker, &more), name, jtis: BTreeSet::new() }
    }

    /// What it says of its own token; with a proof for a call to the gate.
    fn token(&mut self) -> Value {
        let path = format!("/token?method=POST&uri={ORIGIN}/open");
        let Ok((200, told)) = self.agent.ask("GET", &path, b"") else { panic!("{} does not answer", self.name) };
        if let Some(jti) = told.get("jti").and_then(Value::as_str) {
            self.jtis.insert(jti.to_owned());
        }
        told
    }

    /// Waits until it holds a token that is not one of those seen before.
    #[track_caller]
    fn wait_for_another(&mut self) -> Value {
        let seen = self.jtis.clone();
        until(&format!("{} holds another token", self.name), || {
            let told = self.token();
            (text(&told, "state") == "held" && !seen.contains(&text(&told, "jti"))).then_some(told)
        })
    }

    #[track_caller]
    fn wait_for_state(&mut self, state: &str) -> Value {
        until(&format!("{} is {state}", self.name), || Some(self.token()).filter(|told| text(told, "state") == state))
    }
}

/// Calls the gate with a token and a proof; says what it answers, and why.
fn call(gate: &Device, token: &str, proof: Option<&str>) -> (u16, String) {
    let scheme = if proof.is_some() { "DPoP" } else { "Bearer" };
    let mut headers = vec![
        ("authorization", format!("{scheme} {token}")),
        ("x-original-method", "POST".to_owned()),
        ("x-original-uri", "/open".to_owned()),
    ];
    headers.extend(proof.map(|proof| ("dpop", proof.to_owned())));
    let (status, told) = gate.agent.ask_as("/auth", &headers).unwrap();
    (status, told.get("x-revocast-reason").cloned().unwrap_or_default())
}

/// Waits until the gate lets the device in with the token that it has and a new proof.
#[track_caller]
fn opens(gate: &Device, caller: &mut Device) {
    let mut last = None;
    until_true(&format!("the gate opens for {}: {last:?}", caller.name), || {
        let told = caller.wait_for_state("held");
        let answer = call(gate, &text(&told, "token"), Some(&text(&told, "proof")));
        let open = answer.0 == 204;
        last = Some(answer);
        open
    });
}

/// What a broker is told that asks whether a client may connect.
fn hook(server: &Server, client: &str, password: &str) -> String {
    let asked = json!({ "username": REALM, "clientid": client, "password": password });
    let (status, told) = server.try_post("/v1/hooks/emqx/authentication", &asked).unwrap();
    assert_eq!(status, 200, "{told}");
    text(&told, "result")
}

/// The key that a token was signed with.
fn kid(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    text(&serde_json::from_slice(&header).unwrap(), "kid")
}

#[test]
fn three_devices_live_with_their_tokens_and_nobody_at_the_broker_sees_one() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let broker = mosquitto.url();
    let server = site.found_with(Via::Broker(&broker), &["--token-lifetime-seconds", LIFETIME]);
    let sniffed = Listener::start(&broker, "#");

    // Enrolled, each gets its token.
    let mut pump = Device::enroll(&site, &server, &broker, "pump");
    let mut valve = Device::enroll(&site, &server, &broker, "valve");
    let mut gate = Device::enroll(&site, &server, &broker, "gate");
    for device in [&mut pump, &mut valve, &mut gate] {
        let told = device.wait_for_another();
        assert_eq!(text(&told, "sub"), device.name);
    }

    // One calls another: the token, and a proof that it is the caller's, once.
    opens(&gate, &mut pump);
    opens(&gate, &mut valve);
    let told = pump.wait_for_state("held");
    let (token, proof) = (text(&told, "token"), text(&told, "proof"));
    assert_eq!(call(&gate, &token, Some(&proof)), (204, String::new()));
    assert_eq!(call(&gate, &token, Some(&proof)).0, 401, "a proof is good once");
    assert_eq!(call(&gate, &token, None).0, 401, "a bound token is no bearer's");
    let of_another = text(&valve.wait_for_state("held"), "proof");
    assert_eq!(call(&gate, &token, Some(&of_another)).0, 401, "a thief has another key");
    assert_eq!(hook(&server, "pump", &token), "allow");

    // Renewed by itself, ahead of its end.
    let first = text(&told, "jti");
    let renewed = pump.wait_for_another();
    assert!(number(&renewed, "exp") > number(&told, "exp"), "{renewed}");
    opens(&gate, &mut pump);

    // The first is revoked, and so is what came of it.
    let last = pump.wait_for_state("held");
    let exp = number(&told, "exp").to_string();
    let _ = server.command(&["revoke", "--realm", REALM, "--jti", &first, "--exp", &exp, "--reason", "stolen"]).ok();
    let revoked = pump.wait_for_state("revoked");
    assert_eq!(text(&revoked, "jti"), text(&last, "jti"), "the token that it holds descends from the first");
    until_true("the gate refuses", || {
        let answer = call(&gate, &text(&last, "token"), Some(&text(&last, "proof")));
        answer == (401, "revoked".to_owned())
    });
    opens(&gate, &mut valve);
    until_true("the pump is told that there is no renewal", || {
        pump.agent.process().log().contains("revoked") && text(&pump.token(), "state") == "revoked"
    });
    assert_eq!(hook(&server, "pump", &text(&last, "token")), "deny");
    assert_eq!(hook(&server, "valve", &text(&valve.wait_for_state("held"), "token")), "allow");

    // Both keys are replaced while one is away.
    valve.agent.kill();
    let before = kid(&text(&gate.wait_for_state("held"), "token"));
    let keys = site.text("data/keys");
    let _ = revocast(["issuer-key", "rotate", "--realm", REALM, "--now", "--keys", &keys]).ok();
    let _ = server.command(&["publisher-key", "rotate", "--keys", &keys, "--now"]).ok();
    let head = server.revoke("somebody-else", number(&last, "exp") + 3_600);
    gate.agent.wait_until_at(head);
    until_true("the gate has a token of the new key", || kid(&text(&gate.wait_for_state("held"), "token")) != before);
    valve.agent.start();
    valve.agent.wait_until_at(head);
    until_true("the valve has a token of the new key", || {
        let told = valve.token();
        text(&told, "state") == "held" && kid(&text(&told, "token")) != before
    });
    opens(&gate, &mut valve);
    assert_eq!(text(&pump.token(), "state"), "revoked", "nothing brings it back");

    // Whoever listens at the broker has seen no token, and no jti of one.
    let messages = sniffed.heard();
    let delivered = messages.iter().filter(|(topic, _)| topic.starts_with("device_tokens/")).count();
    assert!(delivered >= 5, "{delivered} deliveries");
    let jtis: BTreeSet<&String> = [&pump, &valve, &gate].into_iter().flat_map(|device| &device.jtis).collect();
    for (topic, payload) in &messages {
        let holds = |part: &[u8]| payload.windows(part.len()).any(|bytes| bytes == part);
        assert!(!holds(b"eyJ"), "a token in clear on {topic}");
        for jti in &jtis {
            assert!(!holds(jti.as_bytes()), "{jti} in clear on {topic}");
        }
    }
}
