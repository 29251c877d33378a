//! Who may do what: roles, realms, limits, the rule of two.

use super::*;

/// A request to an operation that is refused, if at all, only after it was let in.
async fn attempt(site: &Site, secret: &str, method: &Method, path: &str, operation: &Value) -> Answer {
    let kinds = operation["requestBody"]["content"].as_object();
    let kind = kinds.and_then(|kinds| kinds.keys().next()).map_or("application/json", String::as_str);
    let path = path.replace("{address}", "manifest");
    site.acting(secret).ask(method.clone(), &path, kind, "").await
}

/// Roles that the document names for an operation; nothing if it is open to everybody.
fn roles(operation: &Value) -> Option<Vec<Role>> {
    let alternatives = operation["security"].as_array().unwrap();
    let bearer = alternatives.iter().find_map(|alternative| alternative["bearer"].as_array())?;
    Some(bearer.iter().map(|role| role.as_str().unwrap().parse().unwrap()).collect())
}

#[tokio::test]
async fn every_role_may_do_what_the_document_says_and_nothing_else() {
    let site = Site::new().await;
    let secrets: Vec<_> = Role::ALL.map(|role| (role, site.credential(&format!("the-{role}"), &[role], |_| {}))).into();
    let mut allowed = std::collections::BTreeMap::<Role, usize>::new();
    for (method, path, operation) in operations(&site).await {
        let place = format!("{method} {path}");
        let Some(needed) = roles(&operation) else {
            let answer = attempt(&site, "nobody", &method, &path, &operation).await;
            assert!(!matches!(answer.status, 401 | 403), "{place}: {}", answer.status);
            continue;
        };
        let refused = attempt(&site, "nobody", &method, &path, &operation).await;
        assert_eq!(refused.status, 401, "{place}");
        for (role, secret) in &secrets {
            let answer = attempt(&site, secret, &method, &path, &operation).await;
            let may = *role == Role::Admin || needed.contains(role);
            // Whatever else is wrong with an empty body is told only to those who may.
            assert_eq!(!matches!(answer.status, 401 | 403), may, "{role} {place}: {} {}", answer.status, answer.body);
            *allowed.entry(*role).or_default() += usize::from(may);
            if !may && !path.contains("/oauth") && !path.ends_with("/revoke") {
                let detail = answer.problem(403, "role-missing");
                assert!(detail.starts_with(&format!("credential the-{role} is {role}, and this needs")), "{detail}");
                assert_eq!(answer.body["needs"], json!(needed), "{place}");
            }
        }
    }
    assert!(allowed.values().all(|count| *count > 0), "{allowed:?}");
    assert!(allowed[&Role::Admin] > allowed[&Role::Revoker]);
    assert_eq!(site.head().await, 0);
}

/// Told beside the document, so that nobody moves an operation to another role by accident.
#[tokio::test]
async fn what_each_role_is_for_stays_as_it_is() {
    let site = Site::new().await;
    let mut found = Vec::new();
    for (method, path, operation) in operations(&site).await {
        let who = match roles(&operation) {
            Some(roles) => roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" "),
            None => "everybody".to_owned(),
        };
        found.push(format!("{method} {path} {who}"));
    }
    for line in [
        "GET /healthz everybody",
        "GET /readyz everybody",
        "GET /.well-known/jwks.json everybody",
        "GET /v1/realms/fleet/jwks.json everybody",
        "GET /v1/mirror/fleet/{address} everybody",
        "GET /v1/mirror/fleet/keys reader",
        "GET /v1/status reader",
        "GET /v1/realms reader",
        "POST /v1/realms admin",
        "POST /v1/realms/fleet/revocations revoker",
        "POST /v1/realms/fleet/revocations/batch revoker",
        "POST /v1/realms/fleet/reinstatements revoker",
        "POST /v1/realms/fleet/cutoffs revoker",
        "POST /v1/realms/fleet/lifts revoker",
        "POST /v1/realms/fleet/oauth/revoke revoker client",
        "POST /v1/realms/fleet/revoke revoker client",
        "POST /v1/realms/fleet/ssf/events revoker",
        "PUT /v1/realms/fleet/ssf/transmitter admin",
        "PUT /v1/realms/fleet/jwks admin",
        "POST /v1/realms/fleet/oauth/introspect reader",
        "POST /v1/realms/fleet/issued issuer",
        "GET /v1/realms/fleet/jti issuer",
        "GET /v1/realms/fleet/coverage reader issuer",
        "PUT /v1/realms/fleet/coverage issuer",
        "POST /v1/hooks/emqx/authentication broker",
        "POST /v1/hooks/emqx/authorization broker",
        "POST /v1/hooks/mosquitto/user broker",
        "POST /v1/hooks/mosquitto/acl broker",
        "PUT /v1/realms/fleet/keys admin",
        "POST /v1/realms/fleet/tokens issuer",
        "POST /v1/realms/fleet/devices issuer",
        "GET /v1/realms/fleet/devices reader issuer",
        "POST /oauth2/token client issuer",
    ] {
        assert!(found.iter().any(|other| other == line), "{line} is not in {found:#?}");
    }
}

#[tokio::test]
async fn a_credential_of_one_realm_is_nobody_in_another() {
    let site = Site::new().await;
    site.post("/v1/realms", &json!({"name": "other", "issuer": "https://other.example"})).await;
    let only = |credential: &mut Credential| credential.realms = Realms::Only(vec![RealmId::new("other").unwrap()]);
    let secret = site.credential("narrow", &Role::ALL, only);
    let acting = site.acting(&secret);
    for (method, path, operation) in operations(&site).await {
        if path.contains("/fleet/") && roles(&operation).is_some() {
            let answer = attempt(&site, &secret, &method, &path, &operation).await;
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
        }
    }
    let foreign = acting.post(REVOCATIONS, &json!({"jti": "t", "exp": LATER})).await;
    assert_eq!(foreign.problem(403, "realm-foreign"), "credential narrow is not for realm fleet");
    assert_eq!(site.head().await, 0);
    let own = acting.post("/v1/realms/other/revocations", &json!({"jti": "t", "exp": LATER})).await;
    assert_eq!(own.status, 201);
    // What it cannot enter it does not see.
    let realms = acting.ask(Method::GET, "/v1/realms", "", "").await.body;
    assert_eq!((realms["realms"].as_array().unwrap().len(), &realms["realms"][0]["name"]), (1, &json!("other")));
    let status = acting.ask(Method::GET, "/v1/status", "", "").await.body;
    assert_eq!((status["realms"].as_array().unwrap().len(), &status["realms"][0]["name"]), (1, &json!("other")));
    // Nor does it found others, though it is an admin.
    let founded = acting.post("/v1/realms", &json!({"name": "third", "issuer": "https://third.example"})).await;
    founded.problem(403, "realm-foreign");
}

#[tokio::test]
async fn every_entry_says_who_and_why() {
    let site = Site::new().await;
    let secret = site.credential("ci", &[Role::Revoker], |_| {});
    let acting = site.acting(&secret);
    acting.post(REVOCATIONS, &json!({"jti": "t", "exp": LATER, "reason": "stolen"})).await;
    acting.post(REINSTATEMENTS, &json!({"jti": "t", "reason": "found"})).await;
    acting.post(CUTOFFS, &json!({"scope": "sub", "name": "alice", "reason": "left"})).await;
    let entries = site.ledger.scan(RealmId::new("fleet").unwrap(), Sequence(0), 10).await.unwrap();
    let told: Vec<_> = entries.iter().map(|entry| (entry.actor.as_str(), entry.reason.as_deref())).collect();
    assert_eq!(told, [("ci", Some("stolen")), ("ci", Some("found")), ("ci", Some("left"))]);
}

#[tokio::test]
async fn a_rate_and_a_quota_are_told_with_when_to_come_back() {
    let site = Site::new().await;
    let narrow = |credential: &mut Credential| {
        credential.requests_per_second = Some(4);
        credential.bulk_per_day = Some(20);
    };
    let secret = site.credential("ci", &[Role::Revoker], narrow);
    let acting = site.acting(&secret);
    let batch = |from: u64, number: u64| {
        let one = |number| json!({"jti": format!("t{number}"), "exp": LATER});
        json!({"revocations": (from..from + number).map(one).collect::<Vec<_>>()})
    };
    assert_eq!(acting.post(BATCH, &batch(0, 20)).await.status, 201);
    let answer = acting.post(BATCH, &batch(20, 10)).await;
    assert!(answer.problem(429, "quota-exceeded").contains("has used up its quota of a day"));
    let after: u64 = answer.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((11 * 3_600..=12 * 3_600).contains(&after), "{after}");
    let answer = acting.post(BATCH, &batch(20, 21)).await;
    assert!(answer.problem(429, "quota-exceeded").contains("may record 20 entries a day; split the request"));
    assert!(!answer.headers.contains_key(header::RETRY_AFTER));
    assert_eq!(site.head().await, 20, "nothing of what was refused is recorded");
    // The fourth request was let in, the fifth is not.
    acting.post(BATCH, &batch(20, 10)).await.problem(429, "quota-exceeded");
    let answer = acting.post(BATCH, &batch(20, 10)).await;
    answer.problem(429, "rate-exceeded");
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    // Nobody else is kept waiting.
    assert_eq!(site.revoke(&json!({"jti": "x", "exp": LATER})).await.status, 201);
    site.clock.0.store(NOW + 12 * 3_600 + 5, Ordering::Relaxed);
    assert_eq!(acting.post(BATCH, &batch(20, 10)).await.status, 201);
}

#[tokio::test]
async fn a_cutoff_weighs_what_it_may_revoke() {
    let site = Site::new().await;
    let secret = site.credential("ci", &[Role::Revoker], |credential| credential.bulk_per_day = Some(50));
    let acting = site.acting(&secret);
    acting.post(CUTOFFS, &json!({"scope": "realm"})).await.problem(429, "quota-exceeded");
    acting.post(CUTOFFS, &json!({"scope": "client", "name": "app"})).await.problem(429, "quota-exceeded");
    for number in 0..5 {
        let answer = acting.post(CUTOFFS, &json!({"scope": "sub", "name": number.to_string()})).await;
        assert_eq!(answer.status, 201);
    }
    acting.post(CUTOFFS, &json!({"scope": "sub", "name": "six"})).await.problem(429, "quota-exceeded");
    assert_eq!(site.head().await, 5);
}

#[tokio::test]
async fn limits_change_while_the_server_serves() {
    let site = Site::new().await;
    site.gate.set_limits(ApiLimits { concurrent_requests: 0, ..ApiLimits::default() });
    site.get("/v1/realms").await.problem(503, "overloaded");
    site.gate.set_limits(ApiLimits { requests_per_second: Some(1), ..ApiLimits::default() });
    assert_eq!(site.get("/v1/realms").await.status, 200);
    site.get("/v1/realms").await.problem(429, "rate-exceeded");
    site.gate.set_limits(ApiLimits::default());
    assert_eq!(site.get("/v1/realms").await.status, 200);
}

#[tokio::test]
async fn a_whole_realm_is_cut_off_by_two() {
    let site = Site::of(ApiLimits::default(), true, |_| {});
    site.post("/v1/realms", &json!({"name": "fleet", "issuer": "https://iss.example"})).await;
    let (first, second) =
        (site.credential("a", &[Role::Revoker], |_| {}), site.credential("b", &[Role::Revoker], |_| {}));
    let reader = site.credential("r", &[Role::Reader], |_| {});
    let whole = json!({"scope": "realm"});
    let asked = site.acting(&first).post(CUTOFFS, &whole).await;
    let waiting = json!({"not_before": NOW + 1, "asked_by": "a", "until": NOW + 600});
    assert_eq!((asked.status, &asked.body), (202, &waiting));
    assert_eq!(site.acting(&first).post(CUTOFFS, &whole).await.status, 202, "nobody confirms their own");
    site.acting(&reader).post(CUTOFFS, &whole).await.problem(403, "role-missing");
    let other = site.acting(&second).post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW - 5})).await;
    other.problem(409, "cutoff-waits");
    assert_eq!(site.head().await, 0);
    site.clock.0.store(NOW + 30, Ordering::Relaxed);
    let given = site.acting(&second).post(CUTOFFS, &json!({"scope": "realm", "reason": "breach"})).await;
    assert_eq!((given.status, given.body), (201, json!({"sequence": 1, "not_before": NOW + 1, "recorded": true})));
    let entries = site.ledger.scan(RealmId::new("fleet").unwrap(), Sequence(0), 10).await.unwrap();
    assert_eq!((entries[0].actor.as_str(), entries[0].reason.as_deref()), ("a, confirmed by b", Some("breach")));
    // Nothing else waits for anybody.
    assert_eq!(site.acting(&first).post(CUTOFFS, &json!({"scope": "sub", "name": "s"})).await.status, 201);
    // What cannot be is refused before anybody waits for it.
    site.acting(&first)
        .post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW * 1_000}))
        .await
        .problem(422, "cutoff-ahead");
    site.acting(&first).post("/v1/realms/nowhere/cutoffs", &whole).await.problem(404, "realm-unknown");
}

#[tokio::test]
async fn one_credential_can_be_held_to_the_rule_of_two() {
    let site = Site::new().await;
    let held = site.credential("junior", &[Role::Revoker], |credential| credential.approve = true);
    assert_eq!(site.acting(&held).post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW})).await.status, 202);
    // The admin is not held to it, and does not take up what waits.
    let answer = site.post(CUTOFFS, &json!({"scope": "realm", "not_before": NOW})).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_secret_ends_with_its_credential() {
    let site = Site::new().await;
    let secret =
        site.credential("ci", &[Role::Reader], |credential| credential.expires = Some(UnixTime::from_secs(NOW + 9)));
    let acting = site.acting(&secret);
    assert_eq!(acting.ask(Method::GET, "/v1/realms", "", "").await.status, 200);
    site.clock.0.store(NOW + 9, Ordering::Relaxed);
    acting.ask(Method::GET, "/v1/realms", "", "").await.problem(401, "credentials-wrong");
    let removed = site.credential("gone", &[Role::Reader], |_| {});
    assert_eq!(site.acting(&removed).ask(Method::GET, "/v1/realms", "", "").await.status, 200);
    CredentialsFile::change(&site.keys.path().join("keys"), |file| file.remove("gone")).unwrap();
    site.acting(&removed).ask(Method::GET, "/v1/realms", "", "").await.problem(401, "credentials-wrong");
}
