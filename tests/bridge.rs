//! The bridge to what knows nothing but a topic and a `jti`, over Mosquitto, with the device of docs/examples.

use std::process::Command;

use revocast_tests::process::{
    AUDIENCE, Listener, Minted, Mosquitto, Process, REALM, Server, Site, Somebody, Via, mint, now, number, publish,
    tool, until_true,
};
use serde_json::{Value, json};

const TOPIC: &str = "jwt_revoked";

/// The realm believes the keys that Python made; those that are secret have no place in a public set.
fn believe(site: &Site, jwks: &str) {
    let set: Value = serde_json::from_str(&std::fs::read_to_string(jwks).expect("a key set")).expect("JSON");
    let keys = set.get("keys").and_then(Value::as_array).expect("keys");
    let public: Vec<&Value> = keys.iter().filter(|key| key.get("kty").is_some_and(|kind| kind != "oct")).collect();
    std::fs::create_dir_all(site.path("data/keys/jwks")).expect("a folder");
    let _ = site.write(&format!("data/keys/jwks/{REALM}.json"), json!({ "keys": public }).to_string());
}

/// A number in the server's metrics; 0 if it is not there.
fn counted(server: &Server, name: &str) -> u64 {
    let (_, text) = server.get("/metrics").expect("metrics");
    let text = text.as_str().expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_default()
}

fn heard(server: &Server, outcome: &str) -> u64 {
    counted(server, &format!("revocast_bridge_heard_total{{outcome=\"{outcome}\"}}"))
}

fn bare(tokens: &[Minted], alg: &str) -> Minted {
    tokens.iter().find(|token| token.alg == alg).expect("one of each").clone()
}

/// The device of thirty lines refuses what was announced. Reinstatements and cutoffs are not, and a server that is
/// started again does not tell its whole history once more.
#[test]
fn an_announced_revocation_reaches_the_simplest_device() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let (tokens, jwks) = mint(&site, 8);
    let mut server = site.found_with(Via::Broker(&mosquitto.url()), &["--bridge-out", "true", "--bridge-realm", REALM]);
    let listener = Listener::start(&mosquitto.url(), TOPIC);
    let address = mosquitto.address();
    let device = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/simple-device/simple_device.py");
    let mut command = Command::new(tool("REVOCAST_PYTHON"));
    command.args([device, "127.0.0.1", &address.port().to_string(), "simplest", &jwks, AUDIENCE]);
    let mut device = Process::start_listening("the simplest device", &mut command);
    assert_eq!(device.line().as_deref(), Some("listening"));
    for Minted { jti, token, .. } in &tokens {
        assert_eq!(device.answer(token), format!("accepted: {jti}"));
    }
    assert!(device.answer("a.b.c").starts_with("refused: "));

    server.wait_until_published();
    let [first, second, third, ..] = tokens.as_slice() else { panic!("eight tokens") };
    server.revoke(&first.jti, first.exp);
    let _ = server.post(&format!("/v1/realms/{REALM}/reinstatements"), &json!({ "jti": first.jti }));
    let _ = server.post(&format!("/v1/realms/{REALM}/cutoffs"), &json!({ "scope": "sub", "name": "nobody" }));
    server.revoke(&second.jti, second.exp);
    until_true("the device refuses it", || {
        device.answer(&second.token) == format!("refused: {} is revoked", second.jti)
    });

    server.kill_and_restart();
    server.wait_until_published();
    server.revoke(&third.jti, third.exp);
    until_true("the device refuses it", || device.answer(&third.token) == format!("refused: {} is revoked", third.jti));
    let told: Vec<String> = listener.heard().iter().map(|(_, jti)| String::from_utf8_lossy(jti).into_owned()).collect();
    assert_eq!(told, [&*first.jti, &*second.jti, &*third.jti], "each once, in order");
}

/// Whoever holds a token may end it. Nobody else can, and a bare `jti` means nothing here.
#[test]
fn a_signed_token_that_is_shown_is_revoked_on_every_device() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let stranger = Site::new();
    let ((tokens, jwks), (forged, _)) = (mint(&site, 4), mint(&stranger, 4));
    believe(&site, &jwks);
    let more = ["--bridge-in", "signed", "--bridge-realm", REALM];
    let server = site.found_with(Via::Broker(&mosquitto.url()), &more);
    let agent = site.agent_with("door", &mosquitto.url(), &["--jwks", &jwks, "--audience", AUDIENCE]);
    agent.wait_until_at(0);
    let told = || ["recorded", "passed_over", "refused", "known"].map(|outcome| heard(&server, outcome));
    let say = |text: &str| publish(&mosquitto.url(), TOPIC, text.as_bytes().to_vec(), false);
    // It listens once it answers at all.
    until_true("the bridge listens", || {
        say("somebody");
        heard(&server, "passed_over") > 0
    });
    let before = heard(&server, "passed_over");

    let shown = bare(&tokens, "EdDSA");
    say(&shown.jti);
    say(&bare(&forged, "EdDSA").token);
    // Its key is a secret that the server does not have.
    say(&bare(&tokens, "HS256").token);
    say("");
    until_true("all of it was looked at", || told() == [0, before + 1, 3, 0]);
    assert_eq!(server.head(), 0);
    assert_eq!(agent.verdict(&shown.jti, shown.exp), "not-revoked");

    for alg in ["EdDSA", "ES256", "RS256"] {
        let Minted { token, jti, exp, .. } = bare(&tokens, alg);
        say(&token);
        agent.wait_until_says("revoked", &jti, exp);
    }
    say(&shown.token);
    until_true("it is known already", || told() == [3, before + 1, 3, 1]);
    // The token itself vouched for its end.
    let again = server.post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": shown.jti, "exp": shown.exp }));
    assert_eq!((number(&again, "exp"), again.get("recorded")), (shown.exp, Some(&json!(false))));
}

/// Where the operator vouches for the topic, a bare `jti` is enough; a flood on it is cut off and disturbs nobody, and
/// what the bridge says itself does not come back as news.
#[test]
fn plain_jtis_are_taken_in_where_that_is_allowed_and_a_flood_is_limited() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let limits = ["--bridge-per-second", "200", "--bridge-per-day", "30"];
    let both = ["--bridge-in", "plain", "--bridge-out", "true", "--bridge-realm", REALM];
    let mut server = site.found_with(Via::Broker(&mosquitto.url()), &[&both[..], &limits[..]].concat());
    let agent = site.agent("door", &mosquitto.url());
    let (exp, lifetime) = (now() + 3_600, 30 * 24 * 3_600);
    until_true("the bridge listens", || {
        publish(&mosquitto.url(), TOPIC, b"stolen".to_vec(), false);
        heard(&server, "recorded") > 0
    });
    agent.wait_until_says("revoked", "stolen", exp);
    let held = server.post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": "stolen", "exp": exp }));
    assert!(number(&held, "exp") + 60 > now() + lifetime, "kept as long as any token can live: {held}");
    assert_eq!(held.get("recorded"), Some(&json!(false)));

    // A reinstatement holds against what was retained before.
    let known = heard(&server, "known");
    publish(&mosquitto.url(), TOPIC, b"stolen".to_vec(), true);
    until_true("it is known already", || heard(&server, "known") > known);
    let _ = server.post(&format!("/v1/realms/{REALM}/reinstatements"), &json!({ "jti": "stolen" }));
    agent.wait_until_says("not-revoked", "stolen", exp);
    server.kill_and_restart();
    until_true("it comes once more", || heard(&server, "known") == 1);
    let before = server.head();

    let flood = Somebody::new(&mosquitto.url());
    for number in 0..1_000 {
        flood.publish(TOPIC, format!("flood-{number}").into_bytes());
    }
    let sum = || ["recorded", "limited"].map(|outcome| heard(&server, outcome));
    until_true("all of it was looked at or dropped", || sum().iter().sum::<u64>() >= 1_000);
    let [recorded, limited] = sum();
    assert!((1..=30).contains(&recorded) && limited >= 970, "{recorded} {limited}");
    // Each was announced once, and what came back of that was recognized.
    until_true("all are announced", || counted(&server, "revocast_bridge_announced_total") == recorded);
    until_true("some came back", || heard(&server, "echo") > 0);
    assert_eq!((server.head(), heard(&server, "known")), (before + recorded, 1));
    let sequence = server.revoke("by-the-api", exp);
    agent.wait_until_at(sequence);
    assert_eq!(
        (agent.verdict("by-the-api", exp), agent.verdict("stolen", exp)),
        ("revoked".into(), "not-revoked".into())
    );
}

/// Without a word of the operator nothing is taken in and nothing is told.
#[test]
fn the_bridge_is_off_unless_it_is_asked_for() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let (tokens, jwks) = mint(&site, 4);
    believe(&site, &jwks);
    let server = site.found(Via::Broker(&mosquitto.url()));
    let listener = Listener::start(&mosquitto.url(), TOPIC);
    let shown = bare(&tokens, "EdDSA");
    publish(&mosquitto.url(), TOPIC, shown.token.clone().into_bytes(), false);
    publish(&mosquitto.url(), TOPIC, shown.jti.clone().into_bytes(), true);
    let agent = site.agent("door", &mosquitto.url());
    let sequence = server.revoke("another", now() + 3_600);
    agent.wait_until_at(sequence);
    assert_eq!((sequence, agent.verdict(&shown.jti, shown.exp)), (1, "not-revoked".to_owned()));
    assert_eq!(listener.heard().len(), 2, "only what was published here");
}
