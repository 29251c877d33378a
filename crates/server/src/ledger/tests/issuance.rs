//! Stories of devices, and of the tokens that our issuer hands out.

use std::collections::BTreeSet;

use revocast_core::{EnvelopeKey, EnvelopePublicKey, PublicKey};

use super::*;

pub(super) fn device_id(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn sealing(seed: u8) -> EnvelopePublicKey {
    EnvelopeKey::from_seed([seed; 32]).public()
}

pub(super) fn new_device(name: &str) -> NewDevice {
    NewDevice {
        id: device_id(name),
        signing: PublicKey([1; 32]),
        sealing: sealing(2),
        subject: format!("{name}'s"),
        audience: vec!["https://one.example".into(), "two".into()],
        replace: false,
        actor: "test".into(),
    }
}

pub(super) async fn enrolled(ledger: &dyn Ledger, name: &str) -> Device {
    let enrollment = ledger.enroll(id("a"), NOW, new_device(name)).await.unwrap();
    assert!(enrollment.created);
    enrollment.device
}

/// A token of a quarter of an hour.
pub(super) fn token(jti: &str) -> NewToken {
    NewToken {
        jti: jti.into(),
        iat: NOW,
        exp: NOW.plus(900),
        sub: Some("s".into()),
        kid: Some("k".into()),
        client: Some("c".into()),
    }
}

pub(super) fn order(jti: &str) -> Order {
    let actor = "test".into();
    Order { token: token(jti), device: None, renewal: None, refresh: None, revoke_parent: false, actor }
}

pub(super) fn for_device(name: &str, jti: &str) -> Order {
    Order { device: Some(device_id(name)), ..order(jti) }
}

/// The request of a device to continue `parent`.
pub(super) fn renewal(name: &str, jti: &str, parent: &str, counter: u64) -> Order {
    let renewal = Renewal { counter: Some(counter), parent: Some(parent.into()) };
    Order { renewal: Some(renewal), ..for_device(name, jti) }
}

fn child(jti: &str, parent: &str) -> Order {
    Order { renewal: Some(Renewal { counter: None, parent: Some(parent.into()) }), ..order(jti) }
}

/// Spends the refresh token of one number and hands out that of another.
pub(super) fn refreshed(jti: &str, spends: Option<u8>, next: Option<u8>) -> Order {
    let next = next.map(|next| NewRefresh { hash: [next; 32], exp: NOW.plus(20 * DAY) });
    Order { refresh: Some(RefreshStep { spends: spends.map(|spends| [spends; 32]), next }), ..order(jti) }
}

pub(super) async fn issue_at(ledger: &dyn Ledger, now: UnixTime, order: Order) -> Issuance {
    ledger.issue(id("a"), now, order).await.unwrap()
}

pub(super) async fn issue(ledger: &dyn Ledger, order: Order) {
    assert_eq!(issue_at(ledger, NOW, order).await, Issuance::Issued { sequence: None });
}

async fn refused(ledger: &dyn Ledger, order: Order) -> NoToken {
    match issue_at(ledger, NOW, order).await {
        Issuance::Refused(why) => why,
        issued @ Issuance::Issued { .. } => panic!("{issued:?}"),
    }
}

/// Tokens that are revoked now, in order.
async fn revoked(ledger: &dyn Ledger) -> Vec<String> {
    let mut revoked = BTreeSet::new();
    for (_, statement) in statements(ledger).await {
        match statement {
            Statement::Revoke { jti, .. } => revoked.insert(jti),
            Statement::Reinstate { jti, .. } => revoked.remove(&jti),
            _ => false,
        };
    }
    revoked.into_iter().collect()
}

pub(super) async fn a_device_is_enrolled_once_and_replaced_only_on_purpose(ledger: &dyn Ledger) {
    let device = enrolled(ledger, "d").await;
    let expected = Device {
        id: device_id("d"),
        signing: PublicKey([1; 32]),
        sealing: sealing(2),
        subject: "d's".into(),
        audience: vec!["https://one.example".into(), "two".into()],
        enrolled_at: NOW,
        counter: 0,
        holds: None,
        held_until: None,
        barred: false,
    };
    assert_eq!(device, expected);
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, renewal("d", "t2", "t1", 7)).await;
    let again = ledger.enroll(id("a"), NOW.plus(9), new_device("d")).await.unwrap();
    assert_eq!((again.created, again.device.counter, again.device.enrolled_at), (false, 7, NOW));

    let others = [
        NewDevice { signing: PublicKey([3; 32]), ..new_device("d") },
        NewDevice { sealing: sealing(3), ..new_device("d") },
        NewDevice { subject: "other".into(), ..new_device("d") },
        NewDevice { audience: vec![], ..new_device("d") },
    ];
    for other in others.clone() {
        let taken = ledger.enroll(id("a"), NOW, other).await.unwrap_err();
        assert!(matches!(taken, LedgerError::DeviceTaken { device } if device == device_id("d")), "{taken}");
    }
    assert!(revoked(ledger).await.is_empty());

    let [other, ..] = others;
    let replaced = ledger.enroll(id("a"), NOW.plus(9), NewDevice { replace: true, ..other }).await.unwrap();
    assert_eq!((replaced.created, replaced.sequence), (true, Some(Sequence(2))));
    assert_eq!((replaced.device.counter, replaced.device.holds.clone()), (0, None));
    assert_eq!(ledger.device(id("a"), device_id("d")).await.unwrap(), Some(replaced.device));
    assert_eq!(revoked(ledger).await, ["t1", "t2"]);
    // A lost answer asks again, and finds the device.
    let other = NewDevice { signing: PublicKey([3; 32]), replace: true, ..new_device("d") };
    assert!(!ledger.enroll(id("a"), NOW.plus(10), other).await.unwrap().created);
}

pub(super) async fn devices_are_listed_in_order(ledger: &dyn Ledger) {
    for name in ["b", "a-1", "a", "Z", "a.2"] {
        enrolled(ledger, name).await;
    }
    let listed = async |after: Option<&str>, limit| {
        let devices = ledger.devices(id("a"), after.map(device_id), limit).await.unwrap();
        devices.into_iter().map(|device| device.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 10).await, ["Z", "a", "a-1", "a.2", "b"]);
    assert_eq!(listed(None, 2).await, ["Z", "a"]);
    assert_eq!(listed(Some("a"), 2).await, ["a-1", "a.2"]);
    assert!(listed(Some("b"), 2).await.is_empty());
    let unknown = ledger.devices(id("nowhere"), None, 1).await.unwrap_err();
    assert!(matches!(unknown, LedgerError::RealmUnknown { .. }), "{unknown}");
    assert_eq!(ledger.device(id("a"), device_id("c")).await.unwrap(), None);
}

pub(super) async fn what_no_device_can_be_is_not_enrolled(ledger: &dyn Ledger) {
    let refusal = async |device| ledger.enroll(id("a"), NOW, device).await.unwrap_err();
    let nobody = refusal(NewDevice { subject: String::new(), ..new_device("d") }).await;
    assert!(matches!(nobody, LedgerError::Enrollment(EnrollmentError::Subject { bytes: 0 })), "{nobody}");
    let many = refusal(NewDevice { audience: vec!["x".into(); AUDIENCES_MAX + 1], ..new_device("d") }).await;
    assert!(matches!(many, LedgerError::Enrollment(EnrollmentError::Audiences { count: 17 })), "{many}");
    let long = refusal(NewDevice { audience: vec!["x".repeat(SCOPE_BYTES_MAX + 1)], ..new_device("d") }).await;
    assert!(matches!(long, LedgerError::Enrollment(EnrollmentError::Audience { bytes: 1_025 })), "{long}");
    let actor = refusal(NewDevice { actor: "x".repeat(ACTOR_BYTES_MAX + 1), ..new_device("d") }).await;
    assert!(matches!(actor, LedgerError::ActorTooLong { .. }), "{actor}");
    assert!(ledger.devices(id("a"), None, 9).await.unwrap().is_empty());
}

pub(super) async fn a_dismissed_device_loses_its_tokens(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    enrolled(ledger, "e").await;
    // Spelled like the device, and none of its.
    issue(ledger, order("d")).await;
    let short = NewToken { iat: NOW.minus(100), exp: NOW.plus(1), ..token("old") };
    issue(ledger, Order { token: short, ..for_device("d", "old") }).await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, renewal("d", "t2", "t1", 1)).await;
    issue(ledger, for_device("e", "other")).await;
    let later = NOW.plus(100);
    let dismiss = async |name| ledger.dismiss(id("a"), later, device_id(name), None, "test".into()).await.unwrap();
    assert_eq!(dismiss("d").await, Dismissal::Dismissed { revoked: 2, sequence: Sequence(2) });
    assert_eq!(revoked(ledger).await, ["t1", "t2"]);
    assert_eq!(ledger.device(id("a"), device_id("d")).await.unwrap(), None);
    assert_eq!(dismiss("d").await, Dismissal::Unknown);
    assert_eq!(refused(ledger, renewal("d", "t3", "t2", 2)).await, NoToken::DeviceUnknown);
    // Enrolled again, it begins anew.
    enrolled(ledger, "d").await;
    assert_eq!(refused(ledger, renewal("d", "t3", "t2", 2)).await, NoToken::ParentRevoked);
    issue(ledger, for_device("d", "t3")).await;
    let long = ledger.dismiss(id("a"), NOW, device_id("e"), Some("x".repeat(9_999)), "test".into()).await;
    assert!(matches!(long, Err(LedgerError::ReasonTooLong { .. })));
}

pub(super) async fn an_issued_token_is_registered_and_remembered(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    ledger.cover(id("a"), NOW, NOW).await.unwrap();
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, renewal("d", "t2", "t1", 3)).await;
    issue(ledger, order("u1")).await;
    issue(ledger, child("u2", "u1")).await;

    let coverage = Coverage { registered: 4, covered_until: Some(NOW) };
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), coverage);
    let record = ledger.token(id("a"), "t2".into()).await.unwrap();
    let issued = Issued { jti: "t2".into(), iat: NOW, exp: NOW.plus(900), sub: Some("s".into()) };
    assert_eq!(record, TokenRecord { entry: None, issued: Some(issued) });
    assert_eq!(shown(ledger, "a", 1).await.0[0].len(), 4);

    let NewToken { jti, iat, exp, sub, kid, client } = token("t2");
    let (device, parent) = (Some(device_id("d")), Some("t1".into()));
    let expected = IssuedToken { jti, iat, exp, sub, kid, client, device, parent, family: "d".into(), kept_until: exp };
    assert_eq!(ledger.find_issued(id("a"), "t2".into()).await.unwrap(), Some(expected));
    let other = ledger.find_issued(id("a"), "u2".into()).await.unwrap().unwrap();
    assert_eq!((other.device, other.parent, other.family), (None, Some("u1".into()), "u1".into()));
    assert_eq!(ledger.find_issued(id("a"), "nothing".into()).await.unwrap(), None);
    let device = ledger.device(id("a"), device_id("d")).await.unwrap().unwrap();
    assert_eq!((device.counter, device.holds, device.held_until), (3, Some("t2".into()), Some(NOW.plus(900))));
    // Nothing was revoked, so nothing was numbered.
    assert_eq!(ledger.head(id("a")).await.unwrap().1, Sequence(0));
}

pub(super) async fn what_cannot_be_issued_is_refused_and_leaves_nothing(ledger: &dyn Ledger) {
    one(ledger, vouched("spoken-of", 1)).await;
    register(ledger, vec![issued("registered", 100)]).await;
    issue(ledger, refreshed("t", None, Some(1))).await;
    let with = |token| Order { token, ..order("x") };
    let wrong = [
        with(token("")),
        with(NewToken { exp: NOW.plus(31 * DAY), ..token("x") }),
        with(NewToken { iat: NOW.plus(1_000), exp: NOW.plus(2_000), ..token("x") }),
        with(NewToken { iat: NOW.minus(100), exp: NOW, ..token("x") }),
        with(NewToken { kid: Some(String::new()), ..token("x") }),
        with(NewToken { client: Some("x".repeat(SCOPE_BYTES_MAX + 1)), ..token("x") }),
        Order { actor: "x".repeat(ACTOR_BYTES_MAX + 1), ..order("x") },
        Order { renewal: Some(Renewal { counter: Some(1), parent: None }), ..order("x") },
        order("spoken-of"),
        order("registered"),
        order("t"),
        refreshed("x", None, Some(1)),
        Order {
            refresh: Some(RefreshStep { spends: None, next: Some(NewRefresh { hash: [9; 32], exp: NOW }) }),
            ..order("x")
        },
    ];
    let before = dumped(ledger).await.unwrap();
    for order in wrong {
        let told = format!("{order:?}");
        let error = ledger.issue(id("a"), NOW, order).await.unwrap_err();
        assert!(matches!(error, LedgerError::Order(_) | LedgerError::ActorTooLong { .. }), "{told}: {error}");
    }
    let unknown = ledger.issue(id("nowhere"), NOW, order("x")).await.unwrap_err();
    assert!(matches!(unknown, LedgerError::RealmUnknown { .. }), "{unknown}");
    assert_eq!(refused(ledger, for_device("nobody", "x")).await, NoToken::DeviceUnknown);
    assert_eq!(dumped(ledger).await.unwrap(), before);
}

pub(super) async fn revoking_a_token_revokes_what_descends_from_it_and_nothing_else(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    // t1 - t2 - t3 - t4, and t2 - u, and a family beside them.
    issue(ledger, for_device("d", "t1")).await;
    for (counter, (jti, parent)) in (1..).zip([("t2", "t1"), ("t3", "t2"), ("t4", "t3"), ("u", "t2")]) {
        issue(ledger, renewal("d", jti, parent, counter)).await;
    }
    issue(ledger, for_device("d", "v")).await;
    issue(ledger, order("w")).await;
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    let receipt = one(ledger, revoke("t2", Expiry::Claimed(NOW))).await;
    assert_eq!((receipt.sequence, receipt.recorded), (Sequence(4), true));
    assert!(commits.has_changed().unwrap());
    assert_eq!(revoked(ledger).await, ["t2", "t3", "t4", "u"]);
    // The registry vouches for what the issuer recorded.
    let entries = ledger.scan(id("a"), Sequence(0), 9).await.unwrap();
    let end = |statement: &Statement| matches!(statement, Statement::Revoke { exp, .. } if *exp == NOW.plus(900));
    assert!(entries.iter().all(|entry| end(&entry.statement) && entry.actor == "test"), "{entries:?}");
    assert!(entries.iter().all(|entry| entry.reason.as_deref() == Some("lost")));
    // In one batch, and again.
    let receipts = ledger.append(id("a"), NOW, vec![vouched("x", 1), vouched("t1", 1), vouched("w", 1)]).await.unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.sequence.0).collect::<Vec<_>>(), [5, 6, 7]);
    let again = one(ledger, vouched("t2", 0)).await;
    assert_eq!((again.sequence, again.recorded), (Sequence(4), false));
    assert_eq!(revoked(ledger).await, ["t1", "t2", "t3", "t4", "u", "w", "x"]);
}

pub(super) async fn a_repeated_revoke_takes_what_has_come_since(ledger: &dyn Ledger) {
    issue(ledger, order("t1")).await;
    // Replaced: t1 alone is revoked.
    let replaced = issue_at(ledger, NOW, Order { revoke_parent: true, ..child("t2", "t1") }).await;
    assert_eq!(replaced, Issuance::Issued { sequence: Some(Sequence(1)) });
    assert_eq!(revoked(ledger).await, ["t1"]);
    // Somebody means it: what came of it goes as well, though t1 is revoked already.
    let receipt = one(ledger, vouched("t1", 0)).await;
    assert_eq!((receipt.sequence, receipt.recorded), (Sequence(2), true));
    assert_eq!(revoked(ledger).await, ["t1", "t2"]);
}

pub(super) async fn a_reinstate_lifts_only_the_revoke_of_its_own_token(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, renewal("d", "t2", "t1", 1)).await;
    one(ledger, vouched("t1", 0)).await;
    one(ledger, reinstate("t1")).await;
    assert_eq!(revoked(ledger).await, ["t2"]);
    // It holds t2, which stays revoked; nor does it continue t1 instead.
    assert_eq!(refused(ledger, renewal("d", "t3", "t2", 2)).await, NoToken::ParentRevoked);
    assert_eq!(refused(ledger, renewal("d", "t3", "t1", 2)).await, NoToken::ParentRevoked);
    one(ledger, reinstate("t2")).await;
    issue(ledger, renewal("d", "t3", "t2", 2)).await;
    assert!(revoked(ledger).await.is_empty());
}

pub(super) async fn a_revoked_token_is_not_continued(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, order("u")).await;
    one(ledger, vouched("t1", 0)).await;
    one(ledger, vouched("u", 0)).await;
    assert_eq!(refused(ledger, renewal("d", "t2", "t1", 1)).await, NoToken::ParentRevoked);
    assert_eq!(refused(ledger, child("u2", "u")).await, NoToken::ParentRevoked);
    // Nor by keeping silent about it, nor unasked.
    let silent = |counter| Order { renewal: Some(Renewal { counter, parent: None }), ..for_device("d", "t2") };
    assert_eq!(refused(ledger, silent(Some(1))).await, NoToken::ParentRevoked);
    assert_eq!(refused(ledger, silent(None)).await, NoToken::ParentRevoked);
    // A refused request granted nothing: the counter stands.
    assert_eq!(ledger.device(id("a"), device_id("d")).await.unwrap().unwrap().counter, 0);
    // Whoever may decide it afresh does.
    issue(ledger, for_device("d", "t2")).await;
    issue(ledger, renewal("d", "t3", "t2", 1)).await;
}

pub(super) async fn a_device_whose_token_was_revoked_stays_barred_after_that_has_expired(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    one(ledger, vouched("t1", 0)).await;
    let later = NOW.plus(DAY);
    assert_eq!(ledger.expire(id("a"), later.minus(60)).await.unwrap(), 1);
    assert_eq!(ledger.find_issued(id("a"), "t1".into()).await.unwrap(), None);
    let token = NewToken { iat: later, exp: later.plus(900), ..token("t2") };
    let silent = Renewal { counter: Some(1), parent: None };
    let asked = Order { token, renewal: Some(silent), ..for_device("d", "t2") };
    assert_eq!(issue_at(ledger, later, asked.clone()).await, Issuance::Refused(NoToken::ParentRevoked));
    assert!(ledger.device(id("a"), device_id("d")).await.unwrap().unwrap().barred);
    // While one whose token just expired is given another.
    enrolled(ledger, "e").await;
    issue(ledger, for_device("e", "u1")).await;
    let asked = Order { device: Some(device_id("e")), ..asked };
    assert_eq!(issue_at(ledger, later, asked).await, Issuance::Issued { sequence: None });
}

pub(super) async fn a_token_under_a_cutoff_is_not_continued(ledger: &dyn Ledger) {
    issue(ledger, order("t1")).await;
    let scopes = [Scope::Realm, Scope::Sub("s".into()), Scope::Kid("k".into()), Scope::Client("c".into())];
    let not_before = NOW.plus(1);
    for scope in scopes {
        one(ledger, cutoff(scope.clone(), not_before.secs())).await;
        let fresh = NewToken { iat: not_before, sub: None, kid: None, client: None, ..token("t2") };
        let continued = Order { token: fresh.clone(), ..child("t2", "t1") };
        assert_eq!(refused(ledger, continued).await, NoToken::CutOff { not_before }, "{scope:?}");
        // The new token itself.
        assert_eq!(refused(ledger, order("t2")).await, NoToken::CutOff { not_before }, "{scope:?}");
        let waited = NewToken { jti: format!("{scope:?}"), iat: not_before, ..token("") };
        issue(ledger, Order { token: waited, ..order("") }).await;
        one(ledger, lift(scope)).await;
    }
    one(ledger, cutoff(Scope::Sub("another".into()), not_before.secs())).await;
    issue(ledger, child("t2", "t1")).await;
}

pub(super) async fn a_counter_is_granted_once(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, renewal("d", "t2", "t1", 5)).await;
    for counter in [0, 1, 5] {
        let replayed = refused(ledger, renewal("d", "t3", "t2", counter)).await;
        assert_eq!(replayed, NoToken::Replayed { counter: 5 });
    }
    // Unasked ones do not count, and do not set it back.
    let unasked = Renewal { counter: None, parent: Some("t2".into()) };
    issue(ledger, Order { renewal: Some(unasked), ..for_device("d", "t3") }).await;
    assert_eq!(refused(ledger, renewal("d", "t4", "t3", 5)).await, NoToken::Replayed { counter: 5 });
    issue(ledger, renewal("d", "t4", "t3", u64::MAX)).await;
    assert_eq!(refused(ledger, renewal("d", "t5", "t4", u64::MAX)).await, NoToken::Replayed { counter: u64::MAX });
    assert_eq!(ledger.device(id("a"), device_id("d")).await.unwrap().unwrap().counter, u64::MAX);
}

pub(super) async fn a_token_is_continued_by_its_own_device_alone_while_it_lives(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    enrolled(ledger, "e").await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, order("u1")).await;
    assert_eq!(refused(ledger, renewal("e", "x", "t1", 1)).await, NoToken::NotHeld);
    assert_eq!(refused(ledger, child("x", "t1")).await, NoToken::NotHeld);
    assert_eq!(refused(ledger, renewal("d", "x", "u1", 1)).await, NoToken::NotHeld);
    assert_eq!(refused(ledger, renewal("d", "x", "never", 1)).await, NoToken::NotHeld);
    assert_eq!(refused(ledger, renewal("nobody", "x", "t1", 1)).await, NoToken::DeviceUnknown);
    // Registered by another issuer's report, and no token of ours.
    register(ledger, vec![issued("foreign", 900)]).await;
    assert_eq!(refused(ledger, child("x", "foreign")).await, NoToken::NotHeld);
    // Within the leeway it still lives, and one that it held before does as well.
    issue(ledger, renewal("d", "t2", "t1", 1)).await;
    issue(ledger, renewal("d", "t3", "t1", 2)).await;
    let at = |secs: u64| NOW.plus(900 + secs);
    let late = |now: UnixTime, jti: &str, counter| Order {
        token: NewToken { iat: now, exp: now.plus(900), ..token(jti) },
        ..renewal("d", jti, "t3", counter)
    };
    assert_eq!(issue_at(ledger, at(59), late(at(59), "t4", 3)).await, Issuance::Issued { sequence: None });
    let expired = Order { renewal: late(at(60), "t5", 4).renewal, ..late(at(60), "t5", 4) };
    let answer = issue_at(ledger, at(60), expired).await;
    assert!(matches!(answer, Issuance::Refused(NoToken::ParentExpired | NoToken::NotHeld)), "{answer:?}");
}

pub(super) async fn what_replaces_a_token_outlives_it(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    let replacing = Order { revoke_parent: true, ..renewal("d", "t2", "t1", 1) };
    assert_eq!(issue_at(ledger, NOW, replacing).await, Issuance::Issued { sequence: Some(Sequence(1)) });
    let entries = ledger.scan(id("a"), Sequence(0), 9).await.unwrap();
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "t1".into(), exp: NOW.plus(900) });
    assert_eq!(entries.len(), 1);
    assert_eq!(refused(ledger, renewal("d", "t3", "t1", 2)).await, NoToken::ParentRevoked);
    let replacing = Order { revoke_parent: true, ..renewal("d", "t3", "t2", 2) };
    assert_eq!(issue_at(ledger, NOW, replacing).await, Issuance::Issued { sequence: Some(Sequence(2)) });
    // Without a parent there is nothing to revoke.
    issue(ledger, Order { revoke_parent: true, ..for_device("d", "t4") }).await;
}

pub(super) async fn a_refresh_token_is_spent_once(ledger: &dyn Ledger) {
    issue(ledger, refreshed("t1", None, Some(1))).await;
    issue(ledger, refreshed("t2", Some(1), Some(2))).await;
    let second = ledger.find_issued(id("a"), "t2".into()).await.unwrap().unwrap();
    assert_eq!((second.parent, second.family), (Some("t1".into()), "t1".into()));
    // It outlives the token that it came with.
    let later = NOW.plus(10 * DAY);
    ledger.expire(id("a"), later).await.unwrap();
    let third = NewToken { iat: later, exp: later.plus(900), ..token("t3") };
    let third = Order { token: third, ..refreshed("t3", Some(2), None) };
    assert_eq!(issue_at(ledger, later, third).await, Issuance::Issued { sequence: None });
    let third = ledger.find_issued(id("a"), "t3".into()).await.unwrap().unwrap();
    assert_eq!((third.parent, third.family), (Some("t2".into()), "t1".into()));

    assert_eq!(refused(ledger, refreshed("x", Some(9), None)).await, NoToken::RefreshUnknown);
    issue(ledger, refreshed("u1", None, Some(3))).await;
    let named = Renewal { counter: None, parent: Some("t3".into()) };
    let named = Order { renewal: Some(named), ..refreshed("x", Some(3), None) };
    assert_eq!(refused(ledger, named).await, NoToken::NotHeld);
    enrolled(ledger, "d").await;
    let of_device = Order { device: Some(device_id("d")), ..refreshed("x", Some(3), None) };
    assert_eq!(refused(ledger, of_device).await, NoToken::NotHeld);
    let end = NOW.plus(20 * DAY);
    let late = NewToken { iat: end, exp: end.plus(900), ..token("x") };
    let late = Order { token: late, ..refreshed("x", Some(3), None) };
    assert_eq!(issue_at(ledger, end, late.clone()).await, Issuance::Refused(NoToken::RefreshExpired));
    ledger.expire(id("a"), end).await.unwrap();
    assert_eq!(issue_at(ledger, end, late).await, Issuance::Refused(NoToken::RefreshUnknown));
}

pub(super) async fn a_refresh_token_spent_twice_revokes_all_that_came_of_it(ledger: &dyn Ledger) {
    issue(ledger, refreshed("t1", None, Some(1))).await;
    issue(ledger, refreshed("u1", None, Some(11))).await;
    issue(ledger, refreshed("t2", Some(1), Some(2))).await;
    issue(ledger, refreshed("t3", Some(2), Some(3))).await;
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    assert_eq!(refused(ledger, refreshed("x", Some(1), Some(9))).await, NoToken::RefreshReused);
    assert_eq!(revoked(ledger).await, ["t1", "t2", "t3"]);
    assert!(commits.has_changed().unwrap());
    assert_eq!(ledger.find_issued(id("a"), "x".into()).await.unwrap(), None);
    assert_eq!(refused(ledger, refreshed("x", Some(3), None)).await, NoToken::ParentRevoked);
    // Again: nothing is left to revoke.
    let head = ledger.head(id("a")).await.unwrap();
    assert_eq!(refused(ledger, refreshed("x", Some(2), None)).await, NoToken::RefreshReused);
    assert_eq!(ledger.head(id("a")).await.unwrap(), head);
    issue(ledger, refreshed("u2", Some(11), None)).await;
}

pub(super) async fn a_refresh_token_ends_with_the_token_that_it_came_with(ledger: &dyn Ledger) {
    issue(ledger, refreshed("t1", None, Some(1))).await;
    issue(ledger, refreshed("t2", Some(1), Some(2))).await;
    issue(ledger, refreshed("u1", None, Some(11))).await;
    // An ancestor.
    one(ledger, vouched("t1", 0)).await;
    assert_eq!(refused(ledger, refreshed("x", Some(2), None)).await, NoToken::ParentRevoked);
    one(ledger, vouched("u1", 0)).await;
    // Also once the revoke is forgotten.
    let later = NOW.plus(DAY);
    ledger.expire(id("a"), later).await.unwrap();
    assert!(statements(ledger).await.is_empty());
    let late = NewToken { iat: later, exp: later.plus(900), ..token("x") };
    let late = Order { token: late, ..refreshed("x", Some(11), None) };
    assert_eq!(issue_at(ledger, later, late).await, Issuance::Refused(NoToken::ParentRevoked));
    // A cutoff is asked what the refresh token remembers.
    issue(ledger, refreshed("v1", None, Some(21))).await;
    ledger.expire(id("a"), later).await.unwrap();
    one(ledger, cutoff(Scope::Sub("s".into()), NOW.plus(5).secs())).await;
    let token = NewToken { iat: later, exp: later.plus(900), sub: None, ..token("v2") };
    let late = Order { token, ..refreshed("v2", Some(21), None) };
    let cut = NoToken::CutOff { not_before: NOW.plus(5) };
    assert_eq!(issue_at(ledger, later, late).await, Issuance::Refused(cut));
}

pub(super) async fn a_withdrawn_refresh_token_takes_its_family_with_it(ledger: &dyn Ledger) {
    issue(ledger, refreshed("t1", None, Some(1))).await;
    issue(ledger, refreshed("u1", None, Some(11))).await;
    issue(ledger, refreshed("t2", Some(1), Some(2))).await;
    issue(ledger, child("t3", "t1")).await;
    let withdraw = async |now, number| {
        ledger.withdraw(id("a"), now, [number; 32], Some("left".into()), "test".into()).await.unwrap()
    };
    assert_eq!(withdraw(NOW, 9).await, None);
    assert!(revoked(ledger).await.is_empty());
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    assert_eq!(withdraw(NOW, 2).await, Some(Sequence(3)));
    assert!(commits.has_changed().unwrap());
    assert_eq!(revoked(ledger).await, ["t1", "t2", "t3"]);
    let entries = ledger.scan(id("a"), Sequence(0), 9).await.unwrap();
    assert!(entries.iter().all(|entry| entry.reason.as_deref() == Some("left") && entry.actor == "test"));
    assert_eq!(refused(ledger, refreshed("x", Some(2), None)).await, NoToken::ParentRevoked);
    // Again: it holds already. And by one that was spent: the whole family, whoever holds what is live.
    assert_eq!(withdraw(NOW, 2).await, Some(Sequence(3)));
    assert_eq!(ledger.head(id("a")).await.unwrap().1, Sequence(3));
    issue(ledger, refreshed("u2", Some(11), Some(12))).await;
    assert_eq!(withdraw(NOW, 11).await, Some(Sequence(5)));
    assert_eq!(refused(ledger, refreshed("x", Some(12), None)).await, NoToken::ParentRevoked);
    // Its tokens have expired, and it goes on living: nothing is left to revoke, and it ends.
    issue(ledger, refreshed("v1", None, Some(21))).await;
    let later = NOW.plus(DAY);
    ledger.expire(id("a"), later).await.unwrap();
    assert_eq!(withdraw(later, 21).await, None);
    let late = NewToken { iat: later, exp: later.plus(900), ..token("x") };
    let late = Order { token: late, ..refreshed("x", Some(21), None) };
    assert_eq!(issue_at(ledger, later, late).await, Issuance::Refused(NoToken::ParentRevoked));

    let long = ledger.withdraw(id("a"), NOW, [2; 32], Some("x".repeat(9_999)), "test".into()).await;
    assert!(matches!(long, Err(LedgerError::ReasonTooLong { .. })));
    let unknown = ledger.withdraw(id("nowhere"), NOW, [2; 32], None, "test".into()).await;
    assert!(matches!(unknown, Err(LedgerError::RealmUnknown { .. })));
}

pub(super) async fn a_lineage_is_kept_until_every_ancestor_has_expired(ledger: &dyn Ledger) {
    let long = NewToken { exp: NOW.plus(10 * DAY), ..token("t1") };
    issue(ledger, Order { token: long, ..order("t1") }).await;
    issue(ledger, child("t2", "t1")).await;
    issue(ledger, order("u1")).await;
    // t2 is expired, and what it became is not.
    let later = NOW.plus(800);
    let long = NewToken { iat: later, exp: later.plus(2 * DAY), ..token("t3") };
    issue_at(ledger, later, Order { token: long, ..child("t3", "t2") }).await;
    ledger.expire(id("a"), NOW.plus(DAY)).await.unwrap();
    assert!(ledger.find_issued(id("a"), "u1".into()).await.unwrap().is_none());
    let kept = ledger.find_issued(id("a"), "t2".into()).await.unwrap().unwrap();
    assert_eq!(kept.kept_until, NOW.plus(10 * DAY));
    let receipts = ledger.append(id("a"), NOW.plus(DAY), vec![vouched("t1", 10)]).await.unwrap();
    assert_eq!((receipts[0].sequence, receipts[0].recorded), (Sequence(2), true));
    assert_eq!(revoked(ledger).await, ["t1", "t3"]);
    ledger.expire(id("a"), NOW.plus(10 * DAY)).await.unwrap();
    for jti in ["t1", "t2", "t3"] {
        assert_eq!(ledger.find_issued(id("a"), jti.into()).await.unwrap(), None, "{jti}");
    }
}

pub(super) async fn tokens_that_end_soon_are_told(ledger: &dyn Ledger) {
    for (name, exp) in [("d", 300), ("c", 300), ("e", 100), ("f", 299), ("g", 400)] {
        enrolled(ledger, name).await;
        let token = NewToken { exp: NOW.plus(exp), ..token(&format!("{name}-1")) };
        issue(ledger, Order { token, ..for_device(name, "") }).await;
    }
    enrolled(ledger, "h").await;
    let expiring = async |from, until, limit| {
        let found = ledger.expiring(id("a"), NOW.plus(from), NOW.plus(until), limit).await.unwrap();
        found.into_iter().map(|(id, jti, exp)| format!("{id} {jti} {}", exp.secs() - NOW.secs())).collect::<Vec<_>>()
    };
    assert_eq!(expiring(100, 301, 9).await, ["e e-1 100", "f f-1 299", "c c-1 300", "d d-1 300"]);
    assert_eq!(expiring(101, 300, 9).await, ["f f-1 299"]);
    assert_eq!(expiring(100, 301, 3).await, ["e e-1 100", "f f-1 299", "c c-1 300"]);
    // Only the newest of each counts, and no device is served whose token was revoked.
    issue(ledger, renewal("f", "f-2", "f-1", 1)).await;
    one(ledger, vouched("c-1", 0)).await;
    assert_eq!(expiring(0, 301, 9).await, ["e e-1 100", "d d-1 300"]);
    assert_eq!(expiring(0, 1_000, 9).await, ["e e-1 100", "d d-1 300", "g g-1 400", "f f-2 900"]);
}

pub(super) async fn a_family_has_a_limit(ledger: &dyn Ledger) {
    issue(ledger, order("t")).await;
    let all: Vec<_> = (1..FAMILY_TOKENS_MAX).collect();
    for part in all.chunks(1_000) {
        let issued: Vec<_> =
            part.iter().map(|number| ledger.issue(id("a"), NOW, child(&number.to_string(), "t"))).collect();
        for issued in issued {
            assert_eq!(issued.await.unwrap(), Issuance::Issued { sequence: None });
        }
    }
    assert_eq!(refused(ledger, child("x", "t")).await, NoToken::FamilyFull { tokens: FAMILY_TOKENS_MAX });
    // Another one has room.
    issue(ledger, order("u")).await;
    issue(ledger, child("u2", "u")).await;
    // All of them go in one transaction.
    let receipt = one(ledger, vouched("t", 0)).await;
    assert_eq!(receipt.sequence, Sequence(FAMILY_TOKENS_MAX as u64));
    assert_eq!(revoked(ledger).await.len(), FAMILY_TOKENS_MAX);
}

/// Calls that come at once are decided in one transaction, and each as if it came after those before it.
pub(super) async fn calls_of_one_group_are_decided_one_after_the_other(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    issue(ledger, for_device("d", "t1")).await;
    issue(ledger, refreshed("u1", None, Some(1))).await;
    let now = NOW.plus(1);
    // None of these is polled before all are asked; a ledger may take them one by one or together.
    let one = ledger.issue(id("a"), now, renewal("d", "t2", "t1", 1));
    let replayed = ledger.issue(id("a"), now, renewal("d", "t2b", "t1", 1));
    let two = ledger.issue(id("a"), now, renewal("d", "t3", "t2", 2));
    let revoked_now = ledger.append(id("a"), now, vec![vouched("t2", 0), vouched("", 0)]);
    let kept = ledger.append(id("a"), now, vec![vouched("t2", 0)]);
    let after = ledger.issue(id("a"), now, renewal("d", "t4", "t3", 3));
    let spent = ledger.issue(id("a"), now, refreshed("u2", Some(1), Some(2)));
    let reused = ledger.issue(id("a"), now, refreshed("u3", Some(1), Some(3)));
    let ended = ledger.issue(id("a"), now, refreshed("u4", Some(2), None));
    assert_eq!(one.await.unwrap(), Issuance::Issued { sequence: None });
    assert_eq!(replayed.await.unwrap(), Issuance::Refused(NoToken::Replayed { counter: 1 }));
    assert_eq!(two.await.unwrap(), Issuance::Issued { sequence: None });
    assert!(matches!(revoked_now.await, Err(LedgerError::Jti { index: 1, .. })));
    assert_eq!(kept.await.unwrap()[0].sequence, Sequence(2));
    assert_eq!(after.await.unwrap(), Issuance::Refused(NoToken::ParentRevoked));
    assert_eq!(spent.await.unwrap(), Issuance::Issued { sequence: None });
    assert_eq!(reused.await.unwrap(), Issuance::Refused(NoToken::RefreshReused));
    assert_eq!(ended.await.unwrap(), Issuance::Refused(NoToken::ParentRevoked));
    assert_eq!(revoked(ledger).await, ["t2", "t3", "u1", "u2"]);
    let mut inspection = Inspection::default();
    let pieces = dumped(ledger).await.unwrap();
    assert!(pieces.iter().all(|piece| inspection.take(piece)) && inspection.finish(), "{:?}", inspection.findings);
    assert_eq!((inspection.tokens, inspection.refreshes, inspection.devices), (5, 2, 1));
}
