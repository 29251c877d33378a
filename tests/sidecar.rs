//! An agent beside a program in another language: what it answers to questions about whole tokens.

use std::time::Duration;

use revocast_core::{Now, UnixTime};
use revocast_device::{Call, Prover};
use revocast_tests::process::{
    AUDIENCE, Agent, ISSUER, Mosquitto, REALM, Server, Site, Via, now, revocast, until_true,
};
use revocast_tests::signers::{Signer, jwks};
use serde_json::{Value, json};

const ORIGIN: &str = "https://api.example";

/// Server, broker and an agent that knows the keys of `signers`.
struct Scene {
    site: Site,
    mosquitto: Mosquitto,
    server: Server,
    agent: Agent,
    signer: Signer,
}

impl Scene {
    fn new() -> Self {
        let (site, mosquitto) = (Site::new(), Mosquitto::start());
        let server = site.found(Via::Broker(&mosquitto.url()));
        let [_, _, _, _, signer] = Signer::all();
        let keys = site.write("issuer.json", jwks(std::slice::from_ref(&signer)));
        let more = ["--jwks", &keys, "--audience", AUDIENCE, "--origin", ORIGIN];
        let agent = site.agent_with("door", &mosquitto.url(), &more);
        agent.wait_until_at(0);
        Self { site, mosquitto, server, agent, signer }
    }

    fn token(&self, jti: &str, more: &str) -> String {
        let now = now();
        let claims = format!(
            r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","jti":"{jti}","sub":"dévice\n7","iat":{},"exp":{}{more}}}"#,
            now - 10,
            now + 900
        );
        self.signer.token(claims)
    }

    /// Status, headers, body.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.agent.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = agent.run(request.body(body.to_owned()).expect("a request")).expect("an answer");
        let headers = answer.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()));
        let headers = headers.collect();
        Answer { status: answer.status().as_u16(), headers, body: answer.body_mut().read_to_string().expect("a body") }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

fn clock() -> Now {
    Now::new(UnixTime::from_secs(now()).millis(), Duration::ZERO)
}

#[test]
fn an_agent_answers_proxies_and_programs_in_other_languages() {
    let scene = Scene::new();
    let token = scene.token("one", r#","scope":"read","secret":"of the application""#);
    let bearer = format!("Bearer {token}");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let introspect = |token: &str| scene.ask("POST", "/introspect", &form, &format!("token={token}&token_type_hint=x"));

    // RFC 7662.
    let told = introspect(&token);
    assert_eq!((told.status, told.header("cache-control")), (200, "no-store"));
    let told = told.json();
    assert_eq!((&told["active"], &told["jti"], &told["scope"]), (&json!(true), &json!("one"), &json!("read")));
    assert_eq!((&told["iss"], &told["token_type"]), (&json!(ISSUER), &json!("Bearer")));
    assert_eq!(told.get("secret"), None, "private claims stay private");
    assert_eq!(introspect("nonsense").json(), json!({ "active": false }));
    assert_eq!(scene.ask("POST", "/introspect", &form, "hint=x").status, 400);
    assert_eq!(scene.ask("POST", "/introspect", &[], &token).status, 400);

    // nginx.
    let good = scene.ask("GET", "/auth", &[("authorization", &bearer)], "");
    assert_eq!((good.status, good.header("x-revocast-jti")), (204, "one"), "{good:?}");
    assert_eq!(
        good.header("x-revocast-subject"),
        "d%C3%A9vice%0A7",
        "one value of one header, whatever the claim says"
    );
    assert_eq!(scene.ask("GET", "/auth?scope=read", &[("authorization", &bearer)], "").status, 204);
    let missing = scene.ask("GET", "/auth?scope=read%20write", &[("authorization", &bearer)], "");
    assert_eq!((missing.status, missing.header("x-revocast-reason")), (403, "scope-missing"));
    let nothing = scene.ask("GET", "/auth", &[], "");
    assert_eq!((nothing.status, nothing.header("x-revocast-reason")), (401, "no-token"));
    assert!(nothing.header("www-authenticate").starts_with("Bearer realm="), "{nothing:?}");
    let twice = scene.ask("GET", "/auth", &[("authorization", &bearer), ("authorization", &bearer)], "");
    assert_eq!((twice.status, twice.header("x-revocast-reason")), (401, "bad-request"));

    // Envoy: any method, any path.
    for (method, path) in [("GET", "/authz/"), ("POST", "/authz/a/b?c=d"), ("DELETE", "/authz"), ("PUT", "/authz/x")] {
        let good = scene.ask(method, path, &[("authorization", &bearer)], "");
        assert_eq!((good.status, good.header("x-revocast-jti")), (200, "one"), "{method} {path}");
        assert_eq!(scene.ask(method, path, &[("authorization", "Bearer x")], "").status, 401, "{method} {path}");
    }

    // All of them hear of a revocation.
    let _ =
        scene.server.command(&["revoke", "--realm", REALM, "--jti", "one", "--exp", &(now() + 900).to_string()]).ok();
    until_true("the agent refuses", || scene.agent.verify(&token).get("reason") == Some(&json!("revoked")));
    assert_eq!(introspect(&token).json(), json!({ "active": false }));
    for path in ["/auth", "/authz/x"] {
        let refused = scene.ask("GET", path, &[("authorization", &bearer)], "");
        assert_eq!((refused.status, refused.header("x-revocast-reason")), (401, "revoked"), "{path}");
    }
}

#[test]
fn a_bound_token_is_good_with_a_proof_for_the_call_behind_the_proxy() {
    let scene = Scene::new();
    let prover = Prover::from_seed(&[1; 32]);
    let token = scene.token("bound", &format!(r#","cnf":{{"jkt":"{}"}}"#, prover.thumbprint()));
    let dpop = format!("DPoP {token}");
    let prove = |method, path| {
        let uri = format!("{ORIGIN}{path}");
        prover.prove(clock(), &Call::Http { method, uri: &uri }, &token).expect("a proof")
    };
    let auth = |method: &str, path: &str, proof: &str| {
        let headers =
            [("authorization", &*dpop), ("dpop", proof), ("x-original-method", method), ("x-original-uri", path)];
        let answer = scene.ask("GET", "/auth", &headers, "");
        (answer.status, answer.header("x-revocast-reason").to_owned())
    };
    let refused = |reason: &str| (401, reason.to_owned());
    // What was made within the second of the agent's start could have been shown before it.
    until_true("the agent takes proofs", || auth("POST", "/open?x=y", &prove("POST", "/open")).0 == 204);
    let proof = prove("POST", "/open");
    assert_eq!(auth("POST", "/open?x=y", &proof).0, 204);
    assert_eq!(auth("POST", "/open?x=y", &proof), refused("proof-replayed"));
    assert_eq!(auth("GET", "/open", &prove("POST", "/open")), refused("proof-for-another-call"));
    assert_eq!(auth("POST", "/close", &prove("POST", "/open")), refused("proof-for-another-call"));
    // A Host header says nothing about where the call went.
    let headers = [("authorization", &*dpop), ("dpop", &*prove("PUT", "/x")), ("host", "attacker.example")];
    assert_eq!(scene.ask("PUT", "/authz/x", &headers, "").status, 200);
    let bearer = scene.ask("GET", "/auth", &[("authorization", &format!("Bearer {token}"))], "");
    assert_eq!((bearer.status, bearer.header("x-revocast-reason")), (401, "proof-missing"));
    assert_eq!(scene.agent.verify(&token).get("reason"), Some(&json!("proof-missing")));
    // Whoever introspects is told about the binding and checks the proof (RFC 9449 section 6.2).
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let told = scene.ask("POST", "/introspect", &form, &format!("token={token}")).json();
    assert_eq!((&told["token_type"], &told["cnf"]["jkt"]), (&json!("DPoP"), &json!(prover.thumbprint().to_string())));
}

/// Keys that are replaced in the file hold without a restart, and a file that is no key set changes nothing.
#[test]
fn an_agent_reads_its_key_file_again() {
    let scene = Scene::new();
    let token = scene.token("one", "");
    assert_eq!(scene.agent.verify(&token).get("reason"), Some(&json!("accepted")));
    let [other, ..] = Signer::all();
    let _ = scene.site.write("issuer.json", jwks(std::slice::from_ref(&other)));
    until_true("the key is gone", || scene.agent.verify(&token).get("reason") == Some(&json!("key-not-found")));
    let _ = scene.site.write("issuer.json", jwks(std::slice::from_ref(&scene.signer)));
    until_true("the key is back", || scene.agent.verify(&token).get("reason") == Some(&json!("accepted")));
    assert!(scene.mosquitto.url().starts_with("mqtt://"));
}

#[test]
fn an_agent_answers_others_only_if_told_to() {
    let site = Site::new();
    let trust = site.write("trust.json", "{}");
    let agent = |more: &[&str]| {
        let base = ["agent", "--broker", "mqtt://127.0.0.1:1", "--realm", "acme", "--trust", &trust, "--state", "s"];
        revocast(base.iter().chain(more))
    };
    agent(&["--listen", "0.0.0.0:0"]).fails(2, &["loopback", "--allow-remote"]);
    agent(&["--allow-remote"]).fails(2, &["--listen"]);
}
