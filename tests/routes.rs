//! The whole route through real processes: a revocation on its way from the command line through a
//! ledger and a broker to an agent that then refuses a token which somebody else's library signed.

use std::collections::BTreeMap;

use revocast_tests::process::{
    Agent, Listener, Minted, Mosquitto, REALM, Server, Site, Via, mint, now, number, revocast, text, until_true,
};
use serde_json::{Value, json};

#[test]
fn a_revocation_travels_over_the_embedded_broker() {
    let site = Site::new();
    let server = site.found(Via::Embedded);
    route(&site, server);
}

#[test]
fn a_revocation_travels_over_mosquitto() {
    let site = Site::new();
    let mosquitto = Mosquitto::start();
    let server = site.found(Via::Broker(&mosquitto.url()));
    route(&site, server);
}

fn route(site: &Site, mut server: Server) {
    let broker = server.broker();
    // Reports and live deltas are not retained: somebody has to be there before them.
    let passing = Listener::start(&broker, "revocast/#");
    let (tokens, jwks) = mint(site, 8);
    let mut agent = site.agent_with("door", &broker, &["--jwks", &jwks, "--audience", "https://api.example"]);
    agent.wait_until_at(0);
    for token in &tokens {
        let answer = agent.verify(&token.token);
        assert_eq!(answer, accepted(token), "{}", token.alg);
    }

    // By name, and by the token itself.
    let [first, second, others @ ..] = &tokens[..] else { panic!("eight tokens") };
    let exp = first.exp.to_string();
    let revoked = server.command(&["--json", "revoke", "--realm", REALM, "--jti", &first.jti, "--exp", &exp]).ok();
    assert_eq!(number(&revoked.json(), "sequence"), 1);
    assert_eq!(revoked.json().get("recorded"), Some(&json!(true)));
    let said = server.command(&["revoke", "--realm", REALM, "--token", &second.token, "--reason", "stolen"]).ok();
    assert!(said.stdout.starts_with(&format!("revoked {}: entry 2", second.jti)), "{said:?}");
    for token in [first, second] {
        until_true("the agent refuses", || agent.verify(&token.token) == refused(token));
    }
    for token in others {
        assert_eq!(agent.verify(&token.token), accepted(token));
    }
    // Again: nothing new is recorded.
    let again = server.command(&["--json", "revoke", "--realm", REALM, "--token", &first.token]).ok().json();
    assert_eq!((number(&again, "sequence"), again.get("recorded")), (1, Some(&json!(false))));

    // A mistake is undone.
    let undone = server.command(&["--json", "reinstate", "--realm", REALM, "--jti", &first.jti]).ok().json();
    assert_eq!(undone.get("recorded"), Some(&json!(true)));
    until_true("the agent accepts again", || agent.verify(&first.token) == accepted(first));
    assert_eq!(agent.verify(&second.token), refused(second));
    let nothing = server.command(&["reinstate", "--realm", REALM, "--jti", "never-seen"]).ok();
    assert!(nothing.stdout.contains("nothing to undo"), "{nothing:?}");

    // Many at once: more than a ladder should carry, so a new epoch follows.
    let jtis: Vec<String> = (0..1_200).map(|number| format!("batch-{number}")).collect();
    let receipts = server.revoke_all(&jtis, first.exp);
    assert_eq!(receipts.len(), jtis.len());
    let head = server.head();
    assert_eq!(head, 3 + 1_200);
    agent.wait_until_at(head);
    assert_eq!(agent.missing(&jtis, first.exp), Vec::<&String>::new());

    let published = server.wait_until_published();
    assert_eq!(number(&published, "revocations"), 1_201);
    // One more, which the ladder carries.
    let head = server.revoke("the-last", first.exp);
    agent.wait_until_at(head);
    assert_eq!(number(&server.wait_until_published(), "sequence"), head);
    status(&server, head);

    let objects = inspect_objects(site, &broker, &passing);
    inspect_state(site, &mut agent);
    drop(passing);

    restart_without_network(&mut agent, &mut server, &jtis, &tokens);
    assert!(objects >= 7, "{objects} kinds of objects were seen");
}

fn accepted(token: &Minted) -> Value {
    json!({ "verdict": "accept", "reason": "accepted", "jti": token.jti, "revocation": "not-revoked" })
}

fn refused(token: &Minted) -> Value {
    json!({ "verdict": "reject", "reason": "revoked", "jti": token.jti, "revocation": "revoked" })
}

fn status(server: &Server, head: u64) {
    let status = server.command(&["--json", "status"]).ok().json();
    let realm = status.pointer("/realms/0").cloned().unwrap_or_default();
    assert_eq!((text(&realm, "name"), number(&realm, "head")), (REALM.to_owned(), head));
    assert_eq!(status.pointer("/broker/connected"), Some(&json!(true)));
    assert_eq!(status.pointer("/ledger/writable"), Some(&json!(true)));
    let words = server.command(&["status"]).ok();
    assert!(words.stdout.contains(REALM), "{words:?}");
    let list = server.command(&["realm", "list"]).ok();
    assert_eq!(list.stdout.trim(), format!("{REALM}  https://issuer.example"));
    // Founding it again changes nothing.
    let _ = server.command(&["realm", "create", REALM, "--issuer", "https://issuer.example"]).ok();
}

/// Every kind of object that passes the broker is told in words, and holds against the trust file.
fn inspect_objects(site: &Site, broker: &str, passing: &Listener) -> usize {
    for part in ["/report", "/live", "/ladder/", "/manifest", "/index", "/list/", "/filter/"] {
        let _ = passing.wait_for(part);
    }
    let retained = Listener::start(broker, "revocast/#");
    let keys = site.write("keys.rvc", retained.wait_for("/keys"));
    let mut kinds = BTreeMap::new();
    for (topic, bytes) in passing.heard().into_iter().chain(retained.heard()) {
        // An empty payload removes what was retained; a probe asks whether the broker has sent all.
        if bytes.is_empty() || topic.starts_with("revocast/_probe/") {
            continue;
        }
        let file = site.write("object.rvc", bytes);
        let found = revocast(["--json", "inspect", &file]).ok().json();
        let kind = text(&found, "kind");
        assert_eq!(text(&found, "realm"), REALM, "{topic}: {found}");
        // One of each suffices: every call is a process.
        if kinds.insert(kind.clone(), topic.clone()).is_none() {
            let words = revocast(["inspect", &file]).ok();
            assert!(words.stdout.contains(&kind), "{words:?}");
            let verified = revocast(["--json", "inspect", &file, "--verify", &site.trust(), "--keys", &keys]).ok();
            let said = text(&verified.json(), "verified");
            let unsigned = kind == "chunk" || kind == "report";
            assert_eq!(said.starts_with("no:"), unsigned, "{kind}: {said}");
        }
        if kinds.len() == 7 {
            break;
        }
    }
    assert_eq!(
        kinds.keys().map(String::as_str).collect::<Vec<_>>(),
        ["chunk", "delta", "index", "issuer-keys", "keys", "manifest", "report"],
        "{kinds:?}"
    );

    // One byte less, or one that differs, is not what was signed.
    let whole = passing.wait_for("/manifest");
    let verify = |bytes: &[u8]| {
        let file = site.write("damaged.rvc", bytes);
        revocast(["inspect", &file, "--verify", &site.trust(), "--keys", &keys])
    };
    let _ = verify(&whole).ok();
    assert_eq!(verify(&whole[..whole.len() - 1]).code, 1);
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    assert_eq!(verify(&flipped).code, 1);
    kinds.len()
}

fn inspect_state(site: &Site, agent: &mut Agent) {
    until_true("the state is written down", || {
        number(&agent.status(), "persisted") > 0
            && revocast(["--json", "inspect", &site.text("door")]).json().get("base_bytes").is_some()
    });
    let found = revocast(["--json", "inspect", &site.text("door"), "--verify", &site.trust()]).ok().json();
    assert_eq!((text(&found, "kind"), text(&found, "realm")), ("state".to_owned(), REALM.to_owned()));
    assert!(text(&found, "verified").starts_with("by a publisher key"), "{found}");
    for name in ["head-a", "head-b", "base-a", "base-b"] {
        let file = site.path("door").join(name);
        if std::fs::metadata(&file).is_ok_and(|file| file.len() > 0) {
            let found = revocast(["inspect", &file.display().to_string()]).ok();
            assert!(found.stdout.contains("horizon"), "{name}: {found:?}");
        }
    }
    // Another site's roots vouch for none of it.
    let stranger = Site::new();
    revocast(["inspect", &site.text("door"), "--verify", &stranger.trust()]).fails(1, &["revocast: "]);
}

/// Row 52: with nobody to ask, an agent that was restarted says what it said before.
fn restart_without_network(agent: &mut Agent, server: &mut Server, jtis: &[String], tokens: &[Minted]) {
    let exp = now() + 3_000;
    let strangers: Vec<String> = (0..500).map(|number| format!("stranger-{number}")).collect();
    let answers = |agent: &Agent| -> Vec<(String, Value)> {
        let verdicts = jtis.iter().chain(&strangers).map(|jti| (jti.clone(), json!(agent.verdict(jti, exp))));
        let tokens = tokens.iter().map(|token| (token.jti.clone(), agent.verify(&token.token)));
        verdicts.chain(tokens).collect()
    };
    let before = answers(agent);
    let position = ["term", "epoch", "sequence"].map(|name| number(&agent.status(), name));
    assert_eq!(agent.process().stop().code(), Some(0));
    assert_eq!(server.process().stop().code(), Some(0));
    // Nobody listens there: not the server's broker, and not Mosquitto either.
    agent.move_to("mqtt://127.0.0.1:1");
    agent.start();
    assert_eq!(["term", "epoch", "sequence"].map(|name| number(&agent.status(), name)), position);
    assert_eq!(answers(agent), before);
    assert_eq!(agent.status().get("connected"), Some(&json!(false)));
    // Without a goodbye it is the same.
    agent.kill();
    agent.start();
    assert_eq!(answers(agent), before);
}
