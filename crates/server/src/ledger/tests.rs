//! One suite for every backend, then what only a file can show.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use revocast_core::limits::{BATCH_REQUESTS_MAX, CUTOFFS_MAX, ISSUED_BATCH_MAX, JTI_BYTES_MAX};
use revocast_core::{FingerprintFunction, RealmKey, Width};

use super::*;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const DAY: u64 = 24 * 60 * 60;

fn id(name: &str) -> RealmId {
    RealmId::new(name).unwrap()
}

fn realm(name: &str) -> Realm {
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Sha256, RealmKey([7; 16]), Width::W48);
    Realm::new(id(name), format!("https://{name}.example"), fingerprinter, NOW)
}

fn request(action: Action) -> Request {
    Request { action, reason: Some("lost".into()), actor: "test".into() }
}

fn revoke(jti: &str, exp: Expiry) -> Request {
    request(Action::Revoke { jti: jti.into(), exp })
}

fn vouched(jti: &str, days: u64) -> Request {
    revoke(jti, Expiry::Vouched(NOW.plus(days * DAY)))
}

fn reinstate(jti: &str) -> Request {
    request(Action::Reinstate { jti: jti.into() })
}

fn cutoff(scope: Scope, not_before: u64) -> Request {
    request(Action::Cutoff { scope, not_before: UnixTime::from_secs(not_before) })
}

fn lift(scope: Scope) -> Request {
    request(Action::Lift { scope })
}

async fn one(ledger: &dyn Ledger, request: Request) -> Receipt {
    ledger.append(id("a"), NOW, vec![request]).await.unwrap()[0]
}

async fn statements(ledger: &dyn Ledger) -> Vec<(u64, Statement)> {
    let entries = ledger.scan(id("a"), Sequence(0), usize::MAX).await.unwrap();
    entries.into_iter().map(|entry| (entry.sequence.0, entry.statement)).collect()
}

fn fresh(sequence: u64, days: u64) -> Receipt {
    Receipt { sequence: Sequence(sequence), recorded: true, exp: Some(NOW.plus(days * DAY)) }
}

fn held(sequence: u64, days: u64) -> Receipt {
    Receipt { recorded: false, ..fresh(sequence, days) }
}

mod issuance;
use issuance::*;

#[path = "../../../../tests/src/postgres.rs"]
// Public where it lives, and not all of it is used here.
#[allow(dead_code, unreachable_pub)]
mod server;

/// A ledger in a database of its own.
async fn in_postgres(server: &server::Postgres) -> (PostgresLedger, String) {
    let url = server.database();
    (reopened(&url).await, url)
}

async fn reopened(url: &str) -> PostgresLedger {
    let config = PostgresConfig::new(url, Some(server::PASSWORD.into()), None).unwrap();
    PostgresLedger::open(config).await.unwrap()
}

/// Runs one story over each backend, with realm `a` founded; those after the semicolon only where one process has
/// the ledger to itself.
macro_rules! over_all {
    ($($name:ident)* ; $($alone:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                let ledger = super::MemoryLedger::new();
                super::Ledger::create_realm(&ledger, super::realm("a"), vec![]).await.unwrap();
                super::$name(&ledger).await;
            })*
            $(#[tokio::test]
            async fn $alone() {
                let ledger = super::MemoryLedger::new();
                super::Ledger::create_realm(&ledger, super::realm("a"), vec![]).await.unwrap();
                super::$alone(&ledger).await;
            })*
        }

        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let ledger = super::SqliteLedger::open(folder.path()).unwrap();
                super::Ledger::create_realm(&ledger, super::realm("a"), vec![]).await.unwrap();
                super::$name(&ledger).await;
            })*
            $(#[tokio::test]
            async fn $alone() {
                let folder = tempfile::tempdir().unwrap();
                let ledger = super::SqliteLedger::open(folder.path()).unwrap();
                super::Ledger::create_realm(&ledger, super::realm("a"), vec![]).await.unwrap();
                super::$alone(&ledger).await;
            })*
        }

        /// One server serves all stories, each with tables of its own: to found a server takes longer than any story.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn every_story_holds_on_postgres() {
            let server = server::Postgres::start();
            let url = server.database();
            $({
                eprintln!("story: {}", stringify!($name));
                let schema = stringify!($name);
                server.sql(&url, &format!("CREATE SCHEMA {schema}"));
                let ledger = reopened(&format!("{url}?options=-csearch_path%3D{schema}")).await;
                ledger.create_realm(realm("a"), vec![]).await.unwrap();
                $name(&ledger).await;
            })*
        }
    };
}

over_all! {
    a_realm_is_founded_once
    an_issuer_has_one_realm
    entries_are_numbered_without_holes
    a_repeated_revoke_changes_nothing
    a_later_exp_wins_and_an_earlier_one_is_ignored
    a_claimed_exp_is_raised_once_and_not_with_every_repeat
    a_reinstate_undoes_only_what_is_there
    a_revoke_after_a_reinstate_is_kept_at_least_as_long
    a_cutoff_is_never_lowered_and_only_a_lift_ends_it
    scopes_of_different_kinds_are_different
    cutoffs_have_a_limit
    a_batch_is_all_or_nothing
    malformed_requests_are_refused
    expired_entries_go_and_numbers_stay
    a_ledger_resumes_in_a_new_term_beyond_what_was_published
    a_term_that_is_over_cannot_publish
    realms_do_not_mix
    whoever_waits_is_woken
    a_realm_has_its_objects_from_the_first_moment
    extreme_numbers_are_kept_in_order
    text_of_any_kind_is_kept
    a_token_is_registered_once_and_keeps_its_later_exp
    what_no_token_can_be_is_not_registered
    coverage_never_goes_back_and_never_ahead_of_time
    a_token_that_comes_late_is_counted
    a_registered_token_vouches_for_its_exp
    a_revoke_is_kept_as_long_as_its_registered_token
    a_registration_that_is_refused_leaves_nothing
    registered_tokens_are_forgotten_once_an_hour
    every_registered_token_is_shown_once_in_order
    a_visitor_that_has_seen_enough_is_shown_no_more
    registries_of_realms_do_not_mix
    what_holds_for_a_token_is_told
    live_cutoffs_are_those_not_lifted
    whoever_leads_goes_on_leading
    a_bid_that_cannot_be_is_refused
    all_that_is_kept_is_shown_and_restored
    a_device_is_enrolled_once_and_replaced_only_on_purpose
    devices_are_listed_in_order
    what_no_device_can_be_is_not_enrolled
    a_dismissed_device_loses_its_tokens
    an_issued_token_is_registered_and_remembered
    what_cannot_be_issued_is_refused_and_leaves_nothing
    revoking_a_token_revokes_what_descends_from_it_and_nothing_else
    a_repeated_revoke_takes_what_has_come_since
    a_reinstate_lifts_only_the_revoke_of_its_own_token
    a_revoked_token_is_not_continued
    a_device_whose_token_was_revoked_stays_barred_after_that_has_expired
    a_token_under_a_cutoff_is_not_continued
    a_counter_is_granted_once
    a_token_is_continued_by_its_own_device_alone_while_it_lives
    what_replaces_a_token_outlives_it
    a_refresh_token_is_spent_once
    a_refresh_token_spent_twice_revokes_all_that_came_of_it
    a_refresh_token_ends_with_the_token_that_it_came_with
    a_withdrawn_refresh_token_takes_its_family_with_it
    a_lineage_is_kept_until_every_ancestor_has_expired
    tokens_that_end_soon_are_told
    calls_of_one_group_are_decided_one_after_the_other
    ;
    nobody_is_woken_for_nothing
    a_family_has_a_limit
}

async fn a_realm_is_founded_once(ledger: &dyn Ledger) {
    let again = Realm { leeway: Duration::from_secs(1), ..realm("a") };
    let founding = ledger.create_realm(again, vec![]).await.unwrap();
    assert_eq!(founding, Founding { realm: realm("a"), created: false });
    assert_eq!(ledger.realm(id("a")).await.unwrap(), realm("a"));

    let other = Realm { issuer: "https://other.example".into(), ..realm("a") };
    let error = ledger.create_realm(other, vec![]).await.unwrap_err();
    assert!(matches!(error, LedgerError::RealmTaken { ref issuer, .. } if issuer == "https://a.example"), "{error}");

    let nameless = Realm { issuer: String::new(), ..realm("b") };
    assert!(matches!(ledger.create_realm(nameless, vec![]).await, Err(LedgerError::Issuer(_))));
}

async fn an_issuer_has_one_realm(ledger: &dyn Ledger) {
    let second = Realm { id: id("b"), ..realm("a") };
    let error = ledger.create_realm(second, vec![]).await.unwrap_err();
    assert!(matches!(error, LedgerError::IssuerTaken { realm, .. } if realm == id("a")), "{error}");
    assert_eq!(ledger.realms().await.unwrap(), vec![realm("a")]);
}

async fn entries_are_numbered_without_holes(ledger: &dyn Ledger) {
    for number in 1..=3 {
        assert_eq!(one(ledger, vouched(&format!("t{number}"), number)).await, fresh(number, number));
    }
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(3)));
    let entries = ledger.scan(id("a"), Sequence(1), 1).await.unwrap();
    let statement = Statement::Revoke { jti: "t2".into(), exp: NOW.plus(2 * DAY) };
    let expected =
        Entry { sequence: Sequence(2), at: NOW, statement, reason: Some("lost".into()), actor: "test".into() };
    assert_eq!(entries, vec![expected]);
    assert!(ledger.scan(id("a"), Sequence(3), 10).await.unwrap().is_empty());
    assert!(ledger.scan(id("a"), Sequence(u64::MAX), 10).await.unwrap().is_empty());
}

async fn a_repeated_revoke_changes_nothing(ledger: &dyn Ledger) {
    assert_eq!(one(ledger, vouched("t", 5)).await, fresh(1, 5));
    assert_eq!(one(ledger, vouched("t", 5)).await, held(1, 5));
    // Also within one call.
    let receipts = ledger.append(id("a"), NOW, vec![vouched("u", 5), vouched("u", 5)]).await.unwrap();
    assert_eq!(receipts, vec![fresh(2, 5), held(2, 5)]);
    assert_eq!(statements(ledger).await.len(), 2);
}

async fn a_later_exp_wins_and_an_earlier_one_is_ignored(ledger: &dyn Ledger) {
    assert_eq!(one(ledger, vouched("t", 5)).await, fresh(1, 5));
    assert_eq!(one(ledger, vouched("t", 4)).await, held(1, 5));
    assert_eq!(one(ledger, vouched("t", 6)).await, fresh(2, 6));
    assert_eq!(one(ledger, vouched("t", 5)).await, held(2, 6));
}

async fn a_claimed_exp_is_raised_once_and_not_with_every_repeat(ledger: &dyn Ledger) {
    let claimed = |days| revoke("t", Expiry::Claimed(NOW.plus(days * DAY)));
    assert_eq!(one(ledger, claimed(1)).await, fresh(1, 30));
    let later = ledger.append(id("a"), NOW.plus(3_600), vec![claimed(1)]).await.unwrap();
    assert_eq!(later, vec![held(1, 30)]);
    // Beyond the longest lifetime: believed, since too late is safe.
    assert_eq!(one(ledger, claimed(31)).await, fresh(2, 31));
}

async fn a_reinstate_undoes_only_what_is_there(ledger: &dyn Ledger) {
    let nothing = Receipt { sequence: Sequence(0), recorded: false, exp: None };
    assert_eq!(one(ledger, reinstate("t")).await, nothing);
    assert_eq!(one(ledger, vouched("t", 5)).await, fresh(1, 5));
    assert_eq!(one(ledger, reinstate("t")).await, fresh(2, 5));
    assert_eq!(one(ledger, reinstate("t")).await, held(2, 5));
    let other = Receipt { sequence: Sequence(2), ..nothing };
    assert_eq!(one(ledger, reinstate("other")).await, other);
    let exp = NOW.plus(5 * DAY);
    let expected =
        vec![(1, Statement::Revoke { jti: "t".into(), exp }), (2, Statement::Reinstate { jti: "t".into(), exp })];
    assert_eq!(statements(ledger).await, expected);
}

async fn a_revoke_after_a_reinstate_is_kept_at_least_as_long(ledger: &dyn Ledger) {
    one(ledger, vouched("t", 9)).await;
    one(ledger, reinstate("t")).await;
    assert_eq!(one(ledger, vouched("t", 5)).await, fresh(3, 9));
}

async fn a_cutoff_is_never_lowered_and_only_a_lift_ends_it(ledger: &dyn Ledger) {
    let receipt = |sequence, recorded| Receipt { sequence: Sequence(sequence), recorded, exp: None };
    assert_eq!(one(ledger, lift(Scope::Realm)).await, receipt(0, false));
    assert_eq!(one(ledger, cutoff(Scope::Realm, 100)).await, receipt(1, true));
    assert_eq!(one(ledger, cutoff(Scope::Realm, 100)).await, receipt(1, false));
    assert_eq!(one(ledger, cutoff(Scope::Realm, 50)).await, receipt(1, false));
    assert_eq!(one(ledger, cutoff(Scope::Realm, 101)).await, receipt(2, true));
    assert_eq!(one(ledger, lift(Scope::Realm)).await, receipt(3, true));
    assert_eq!(one(ledger, lift(Scope::Realm)).await, receipt(3, false));
    assert_eq!(one(ledger, cutoff(Scope::Realm, 50)).await, receipt(4, true));
    let at = UnixTime::from_secs;
    let expected = vec![
        (1, Statement::Cutoff { scope: Scope::Realm, not_before: at(100) }),
        (2, Statement::Cutoff { scope: Scope::Realm, not_before: at(101) }),
        (3, Statement::Lift { scope: Scope::Realm }),
        (4, Statement::Cutoff { scope: Scope::Realm, not_before: at(50) }),
    ];
    assert_eq!(statements(ledger).await, expected);
}

async fn scopes_of_different_kinds_are_different(ledger: &dyn Ledger) {
    let scopes = [Scope::Realm, Scope::Sub("x".into()), Scope::Kid("x".into()), Scope::Client("x".into())];
    for (index, scope) in scopes.iter().enumerate() {
        let receipt = one(ledger, cutoff(scope.clone(), 9)).await;
        assert_eq!((receipt.sequence.0, receipt.recorded), (index as u64 + 1, true));
    }
    // Nor is a token named like one of them.
    assert!(!one(ledger, reinstate("x")).await.recorded);
    let scanned = statements(ledger).await;
    for (scope, (_, statement)) in scopes.into_iter().zip(scanned) {
        assert_eq!(statement, Statement::Cutoff { scope, not_before: UnixTime::from_secs(9) });
    }
}

async fn cutoffs_have_a_limit(ledger: &dyn Ledger) {
    let full = (0..CUTOFFS_MAX).map(|number| cutoff(Scope::Sub(number.to_string()), 1)).collect();
    ledger.append(id("a"), NOW, full).await.unwrap();
    let refused = ledger.append(id("a"), NOW, vec![cutoff(Scope::Realm, 1)]).await;
    assert!(matches!(refused, Err(LedgerError::CutoffsFull { .. })));
    // Raising a live one needs no room; lifting one makes room.
    assert!(one(ledger, cutoff(Scope::Sub("0".into()), 2)).await.recorded);
    assert!(one(ledger, lift(Scope::Sub("0".into()))).await.recorded);
    assert!(one(ledger, cutoff(Scope::Realm, 1)).await.recorded);
}

async fn a_batch_is_all_or_nothing(ledger: &dyn Ledger) {
    let full = (0..CUTOFFS_MAX).map(|number| cutoff(Scope::Sub(number.to_string()), 1)).collect();
    ledger.append(id("a"), NOW, full).await.unwrap();
    let before = ledger.head(id("a")).await.unwrap();
    let refused = ledger.append(id("a"), NOW, vec![vouched("t", 1), cutoff(Scope::Realm, 1)]).await;
    assert!(matches!(refused, Err(LedgerError::CutoffsFull { .. })));
    assert_eq!(ledger.head(id("a")).await.unwrap(), before);
    // The token of the refused batch is not known: its number is given to the next.
    assert_eq!(one(ledger, vouched("t", 1)).await, fresh(before.1.0 + 1, 1));
    assert_eq!(statements(ledger).await.len() as u64, before.1.0 + 1);
}

async fn malformed_requests_are_refused(ledger: &dyn Ledger) {
    let refusal = async |requests| ledger.append(id("a"), NOW, requests).await.unwrap_err();
    let long = "x".repeat(JTI_BYTES_MAX + 1);
    let empty_jti = refusal(vec![vouched("t", 1), vouched("", 1)]).await;
    assert!(matches!(empty_jti, LedgerError::Jti { index: 1, source: JtiError::Empty }));
    let long_jti = refusal(vec![reinstate(&long)]).await;
    assert!(matches!(long_jti, LedgerError::Jti { index: 0, source: JtiError::TooLong { .. } }));
    let empty_scope = refusal(vec![lift(Scope::Kid(String::new()))]).await;
    assert!(matches!(empty_scope, LedgerError::ScopeLength { bytes: 0, .. }));
    let reason = Request { reason: Some("x".repeat(REASON_BYTES_MAX + 1)), ..vouched("t", 1) };
    assert!(matches!(refusal(vec![reason]).await, LedgerError::ReasonTooLong { .. }));
    let actor = Request { actor: "x".repeat(ACTOR_BYTES_MAX + 1), ..vouched("t", 1) };
    assert!(matches!(refusal(vec![actor]).await, LedgerError::ActorTooLong { .. }));
    let many = vec![vouched("t", 1); BATCH_REQUESTS_MAX + 1];
    assert!(matches!(refusal(many).await, LedgerError::BatchTooLarge { .. }));
    let unknown = ledger.append(id("nowhere"), NOW, vec![vouched("t", 1)]).await.unwrap_err();
    assert!(matches!(unknown, LedgerError::RealmUnknown { realm } if realm == id("nowhere")));
    assert!(statements(ledger).await.is_empty());
    assert!(ledger.append(id("a"), NOW, Vec::new()).await.unwrap().is_empty());
}

async fn expired_entries_go_and_numbers_stay(ledger: &dyn Ledger) {
    ledger.append(id("a"), NOW, vec![vouched("t", 1), vouched("u", 2), cutoff(Scope::Realm, 5)]).await.unwrap();
    one(ledger, reinstate("t")).await;
    let exp = NOW.plus(DAY);
    assert_eq!(ledger.expire(id("a"), exp.minus(1)).await.unwrap(), 0);
    assert_eq!(ledger.expire(id("a"), exp).await.unwrap(), 2);
    assert_eq!(ledger.expire(id("a"), NOW.plus(2 * DAY)).await.unwrap(), 1);
    let cut = Statement::Cutoff { scope: Scope::Realm, not_before: UnixTime::from_secs(5) };
    assert_eq!(statements(ledger).await, vec![(3, cut)]);
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(4)));
    // Forgotten means unknown: the token can be revoked anew, under a new number.
    assert_eq!(one(ledger, vouched("t", 3)).await, fresh(5, 3));
}

async fn a_ledger_resumes_in_a_new_term_beyond_what_was_published(ledger: &dyn Ledger) {
    one(ledger, vouched("t", 1)).await;
    let first = 500 + RESUME_GAP;
    assert_eq!(ledger.resume(id("a"), NOW, Sequence(500)).await.unwrap(), (Term(2), Sequence(first)));
    // Something lower was published: the head counts.
    let second = first + RESUME_GAP;
    assert_eq!(ledger.resume(id("a"), NOW, Sequence(3)).await.unwrap(), (Term(3), Sequence(second)));
    assert_eq!(one(ledger, vouched("u", 1)).await, fresh(second + 1, 1));
    let scanned = statements(ledger).await;
    assert_eq!(scanned[1], (first, Statement::Resume { term: Term(2) }));
    assert_eq!(scanned[2], (second, Statement::Resume { term: Term(3) }));

    let exhausted = ledger.resume(id("a"), NOW, Sequence(u64::MAX)).await;
    assert!(matches!(exhausted, Err(LedgerError::SequenceExhausted { .. })));
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(3), Sequence(second + 1)));
}

async fn a_term_that_is_over_cannot_publish(ledger: &dyn Ledger) {
    let object = |address: &str, byte| Object { address: address.into(), bytes: vec![byte; 3] };
    let store = |term, puts, deletes| ledger.store_objects(id("a"), Term(term), puts, deletes);
    store(1, vec![object("manifest", 1), object("e/1/index", 1)], vec![]).await.unwrap();
    store(1, vec![object("manifest", 2)], vec!["e/1/index".into(), "never-there".into()]).await.unwrap();
    assert_eq!(ledger.objects(id("a")).await.unwrap(), vec![object("manifest", 2)]);

    ledger.resume(id("a"), NOW, Sequence(0)).await.unwrap();
    let over = store(1, vec![object("manifest", 3)], vec!["manifest".into()]).await.unwrap_err();
    assert!(matches!(over, LedgerError::TermChanged { current: Term(2), claimed: Term(1), .. }), "{over}");
    assert_eq!(ledger.objects(id("a")).await.unwrap(), vec![object("manifest", 2)]);
    store(2, vec![object("keys", 4)], vec![]).await.unwrap();
    assert_eq!(ledger.objects(id("a")).await.unwrap(), vec![object("keys", 4), object("manifest", 2)]);
    assert_eq!(ledger.object(id("a"), "keys".into()).await.unwrap(), Some(object("keys", 4)));
    assert_eq!(ledger.object(id("a"), "live".into()).await.unwrap(), None);
}

async fn realms_do_not_mix(ledger: &dyn Ledger) {
    ledger.create_realm(realm("b"), vec![]).await.unwrap();
    one(ledger, vouched("t", 1)).await;
    let other = ledger.append(id("b"), NOW, vec![reinstate("t"), vouched("t", 2)]).await.unwrap();
    assert_eq!((other[0].recorded, other[1]), (false, fresh(1, 2)));
    assert_eq!(ledger.expire(id("b"), NOW.plus(2 * DAY)).await.unwrap(), 1);
    assert_eq!(statements(ledger).await.len(), 1);
    assert_eq!(ledger.realms().await.unwrap(), vec![realm("a"), realm("b")]);
}

async fn whoever_waits_is_woken(ledger: &dyn Ledger) {
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    one(ledger, vouched("t", 1)).await;
    assert!(commits.has_changed().unwrap());
    commits.mark_unchanged();
    ledger.resume(id("a"), NOW, Sequence(0)).await.unwrap();
    assert!(commits.has_changed().unwrap());
}

async fn nobody_is_woken_for_nothing(ledger: &dyn Ledger) {
    one(ledger, vouched("t", 1)).await;
    register(ledger, vec![issued("t", DAY)]).await;
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    one(ledger, vouched("t", 1)).await;
    one(ledger, reinstate("u")).await;
    register(ledger, vec![issued("t", DAY), issued("t", 1)]).await;
    ledger.expire(id("a"), NOW).await.unwrap();
    assert!(!commits.has_changed().unwrap());
}

async fn a_realm_has_its_objects_from_the_first_moment(ledger: &dyn Ledger) {
    let keys = |byte| vec![Object { address: "keys".into(), bytes: vec![byte] }];
    assert!(ledger.create_realm(realm("b"), keys(1)).await.unwrap().created);
    // Repeating brings nothing new, and takes nothing away.
    assert!(!ledger.create_realm(realm("b"), keys(2)).await.unwrap().created);
    assert!(!ledger.create_realm(realm("a"), keys(3)).await.unwrap().created);
    assert_eq!(ledger.objects(id("b")).await.unwrap(), keys(1));
    assert!(ledger.objects(id("a")).await.unwrap().is_empty());
}

async fn extreme_numbers_are_kept_in_order(ledger: &dyn Ledger) {
    let end = UnixTime::from_secs(u64::MAX);
    let receipt = one(ledger, revoke("t", Expiry::Claimed(end))).await;
    assert_eq!(receipt.exp, Some(UnixTime::from_secs(i64::MAX as u64)));
    assert!(!one(ledger, revoke("t", Expiry::Claimed(end))).await.recorded);
    assert!(!one(ledger, revoke("t", Expiry::Vouched(UnixTime::from_secs(0)))).await.recorded);
    assert!(one(ledger, cutoff(Scope::Realm, u64::MAX)).await.recorded);
    assert!(!one(ledger, cutoff(Scope::Realm, u64::MAX)).await.recorded);
    assert_eq!(ledger.expire(id("a"), NOW.plus(1_000 * DAY)).await.unwrap(), 0);
    assert_eq!(statements(ledger).await.len(), 2);
}

async fn text_of_any_kind_is_kept(ledger: &dyn Ledger) {
    let jtis = ["a\0b", "a", "a\0c", "'; DROP TABLE entries; --", "\u{1f512}", "A", " a"];
    for (index, jti) in jtis.iter().enumerate() {
        assert_eq!(one(ledger, vouched(jti, 1)).await, fresh(index as u64 + 1, 1), "{jti:?}");
    }
    let exp = NOW.plus(DAY);
    let expected: Vec<_> = (1..).zip(jtis.map(|jti| Statement::Revoke { jti: jti.into(), exp })).collect();
    assert_eq!(statements(ledger).await, expected);
}

fn issued(jti: &str, exp: u64) -> Issued {
    Issued { jti: jti.into(), iat: NOW.minus(10), exp: NOW.plus(exp), sub: Some("user".into()) }
}

async fn register(ledger: &dyn Ledger, tokens: Vec<Issued>) -> Registration {
    ledger.register(id("a"), NOW, tokens).await.unwrap()
}

/// Everything that visitors are shown, part by part.
async fn shown(ledger: &dyn Ledger, realm: &str, parts: usize) -> (Vec<Vec<(u64, UnixTime)>>, Coverage) {
    let seen = Arc::new(std::sync::Mutex::new(vec![Vec::new(); parts]));
    let visitors = (0..parts).map(|part| {
        let seen = Arc::clone(&seen);
        Box::new(move |batch: &[(revocast_core::Fingerprint, UnixTime)]| {
            let batch = batch.iter().map(|(fingerprint, exp)| (fingerprint.bits(), *exp));
            seen.lock().unwrap()[part].extend(batch);
            true
        }) as Visitor
    });
    let coverage = ledger.visit_registered(id(realm), visitors.collect()).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    (seen, coverage)
}

fn fingerprint(realm: &Realm, jti: &str) -> u64 {
    realm.fingerprinter.fingerprint(revocast_core::Jti::new(jti).unwrap()).bits()
}

async fn a_token_is_registered_once_and_keeps_its_later_exp(ledger: &dyn Ledger) {
    let none = Registration::default();
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), Coverage::default());
    let two = vec![issued("t", 100), issued("u", 200)];
    assert_eq!(register(ledger, two.clone()).await, Registration { new: 2, ..none });
    assert_eq!(register(ledger, two).await, Registration { repeated: 2, ..none });
    let mixed = vec![issued("t", 50), issued("u", 300), issued("v", 1), issued("v", 2), issued("v", 2)];
    let done = register(ledger, mixed).await;
    assert_eq!(done, Registration { new: 1, repeated: 2, extended: 2, ..none });
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), Coverage { registered: 3, covered_until: None });
    let (seen, _) = shown(ledger, "a", 1).await;
    let realm = realm("a");
    let mut expected = [("t", 100), ("u", 300), ("v", 2)].map(|(jti, exp)| (fingerprint(&realm, jti), NOW.plus(exp)));
    expected.sort_unstable();
    assert_eq!(seen, vec![expected.to_vec()]);
    assert_eq!(register(ledger, vec![]).await, none);
    // Nothing of this is an entry.
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(0)));
}

async fn what_no_token_can_be_is_not_registered(ledger: &dyn Ledger) {
    let good = issued("t", 100);
    let month = 30 * DAY;
    let leeway = 60;
    let cases = [
        (Issued { jti: String::new(), ..good.clone() }, IssuedError::Jti(JtiError::Empty)),
        (Issued { sub: Some(String::new()), ..good.clone() }, IssuedError::Sub { bytes: 0 }),
        (Issued { sub: Some("x".repeat(SCOPE_BYTES_MAX + 1)), ..good.clone() }, IssuedError::Sub { bytes: 1_025 }),
        (
            Issued { exp: NOW.minus(11), ..good.clone() },
            IssuedError::Backward { iat: NOW.minus(10), exp: NOW.minus(11) },
        ),
        (
            Issued { exp: good.iat.plus(month + 1), ..good.clone() },
            IssuedError::Lifetime { lifetime: month + 1, longest: month },
        ),
        (
            Issued { iat: NOW.plus(61), exp: NOW.plus(100), ..good.clone() },
            IssuedError::Future { iat: NOW.plus(61), now: NOW, leeway },
        ),
    ];
    for (token, why) in cases {
        let error = ledger.register(id("a"), NOW, vec![good.clone(), token]).await.unwrap_err();
        assert!(matches!(&error, LedgerError::Issued { index: 1, source } if *source == why), "{error:?}");
    }
    let many = vec![good.clone(); ISSUED_BATCH_MAX + 1];
    let error = ledger.register(id("a"), NOW, many).await.unwrap_err();
    assert!(matches!(error, LedgerError::IssuedTooMany { tokens: 2_001 }), "{error}");
    let error = ledger.register(id("nowhere"), NOW, vec![good]).await.unwrap_err();
    assert!(matches!(error, LedgerError::RealmUnknown { .. }), "{error}");
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, 0);
    // The edges of what can be.
    let longest = Issued { exp: NOW.plus(60 + month), iat: NOW.plus(60), sub: None, jti: "x".repeat(JTI_BYTES_MAX) };
    assert_eq!(register(ledger, vec![longest]).await.new, 1);
}

async fn coverage_never_goes_back_and_never_ahead_of_time(ledger: &dyn Ledger) {
    let cover = |until| ledger.cover(id("a"), NOW, until);
    let at = |until| Coverage { registered: 0, covered_until: Some(until) };
    assert_eq!(cover(NOW.minus(100)).await.unwrap(), at(NOW.minus(100)));
    assert_eq!(cover(NOW.minus(100)).await.unwrap(), at(NOW.minus(100)));
    let error = cover(NOW.minus(101)).await.unwrap_err();
    let LedgerError::CoverageBack { realm, held, offered } = error else { panic!("{error}") };
    assert_eq!((realm, held, offered), (id("a"), NOW.minus(100), NOW.minus(101)));
    let error = cover(NOW.plus(61)).await.unwrap_err();
    assert!(matches!(error, LedgerError::CoverageAhead { offered, .. } if offered == NOW.plus(61)), "{error}");
    assert_eq!(cover(NOW.plus(60)).await.unwrap(), at(NOW.plus(60)));
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), at(NOW.plus(60)));
    assert!(matches!(ledger.cover(id("b"), NOW, NOW).await, Err(LedgerError::RealmUnknown { .. })));
    assert!(matches!(ledger.coverage(id("b")).await, Err(LedgerError::RealmUnknown { .. })));
}

async fn a_token_that_comes_late_is_counted(ledger: &dyn Ledger) {
    register(ledger, vec![issued("known", 100)]).await;
    ledger.cover(id("a"), NOW, NOW.minus(9)).await.unwrap();
    // All have iat = NOW - 10, which the coverage includes; one was known.
    let done = register(ledger, vec![issued("known", 200), issued("late", 100)]).await;
    assert_eq!(done, Registration { new: 1, extended: 1, late: 1, ..Registration::default() });
    let edge = Issued { iat: NOW.minus(9), ..issued("in time", 100) };
    assert_eq!(register(ledger, vec![edge]).await.late, 0);
    let expected = Coverage { registered: 3, covered_until: Some(NOW.minus(9)) };
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), expected);
}

async fn a_registered_token_vouches_for_its_exp(ledger: &dyn Ledger) {
    register(ledger, vec![issued("t", 5 * DAY), issued("u", 5 * DAY), issued("gone", 100)]).await;
    let claimed = |jti: &str, days| revoke(jti, Expiry::Claimed(NOW.plus(days * DAY)));
    // Not raised to the longest lifetime, and an earlier claim never wins.
    assert_eq!(one(ledger, claimed("t", 1)).await, fresh(1, 5));
    assert_eq!(one(ledger, claimed("t", 5)).await, held(1, 5));
    assert_eq!(one(ledger, claimed("t", 1)).await, held(1, 5));
    // A later one does: too late costs memory, too early would un-revoke.
    assert_eq!(one(ledger, claimed("t", 9)).await, fresh(2, 9));
    assert_eq!(one(ledger, vouched("u", 2)).await, fresh(3, 5));
    assert_eq!(one(ledger, claimed("unknown", 1)).await, fresh(4, 30));
    // What is expired for everybody vouches for nothing, swept or not.
    let later = NOW.plus(1_000);
    let receipts = ledger.append(id("a"), later, vec![claimed("gone", 1)]).await.unwrap();
    assert_eq!(receipts[0].exp, Some(later.plus(30 * DAY)));
    // After a reinstate the same, and kept no shorter than what was undone.
    assert_eq!(one(ledger, reinstate("t")).await, fresh(6, 9));
    assert_eq!(one(ledger, claimed("t", 1)).await, fresh(7, 9));
}

async fn a_revoke_is_kept_as_long_as_its_registered_token(ledger: &dyn Ledger) {
    one(ledger, vouched("t", 1)).await;
    one(ledger, vouched("long", 9)).await;
    one(ledger, vouched("undone", 1)).await;
    one(ledger, reinstate("undone")).await;
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    let tokens = vec![issued("t", 5 * DAY), issued("long", 5 * DAY), issued("undone", 5 * DAY), issued("u", 5 * DAY)];
    assert_eq!(register(ledger, tokens).await.new, 4);
    let entries = ledger.scan(id("a"), Sequence(4), 10).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "t".into(), exp: NOW.plus(5 * DAY) });
    assert_eq!((entries[0].sequence, entries[0].actor.as_str()), (Sequence(5), "revocast"));
    assert!(entries[0].reason.as_deref().is_some_and(|reason| reason.contains("expires later")));
    assert!(commits.has_changed().unwrap(), "the entry must travel");

    // Also when the registry learns of a later exp.
    assert_eq!(register(ledger, vec![issued("t", 7 * DAY)]).await.extended, 1);
    let entries = ledger.scan(id("a"), Sequence(5), 10).await.unwrap();
    assert_eq!(entries[0].statement, Statement::Revoke { jti: "t".into(), exp: NOW.plus(7 * DAY) });
    assert_eq!(register(ledger, vec![issued("t", 7 * DAY), issued("t", DAY)]).await.repeated, 2);

    // What this is for: the revoke is there as long as the token is honored.
    ledger.expire(id("a"), NOW.plus(6 * DAY)).await.unwrap();
    let left = statements(ledger).await;
    assert!(left.contains(&(6, Statement::Revoke { jti: "t".into(), exp: NOW.plus(7 * DAY) })), "{left:?}");
    assert_eq!(one(ledger, revoke("t", Expiry::Claimed(NOW))).await, held(6, 7));
}

async fn a_registration_that_is_refused_leaves_nothing(ledger: &dyn Ledger) {
    one(ledger, vouched("t", 1)).await;
    let last = Sequence(i64::MAX as u64 - RESUME_GAP);
    ledger.resume(id("a"), NOW, last).await.unwrap();
    // No number is left for the entry that the registration needs.
    let error = ledger.register(id("a"), NOW, vec![issued("u", 100), issued("t", 5 * DAY)]).await.unwrap_err();
    assert!(matches!(error, LedgerError::SequenceExhausted { .. }), "{error}");
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, 0);
    assert_eq!(shown(ledger, "a", 1).await.0, vec![vec![]]);
    assert_eq!(register(ledger, vec![issued("u", 100)]).await.new, 1);
}

async fn registered_tokens_are_forgotten_once_an_hour(ledger: &dyn Ledger) {
    let tokens = (1..=100).map(|number| issued(&format!("t{number}"), number * 60)).collect();
    register(ledger, tokens).await;
    ledger.cover(id("a"), NOW, NOW).await.unwrap();
    let registered = async || ledger.coverage(id("a")).await.unwrap().registered;
    // Returns the number of entries, and there are none.
    assert_eq!(ledger.expire(id("a"), NOW.plus(600)).await.unwrap(), 0);
    assert_eq!(registered().await, 90);
    ledger.expire(id("a"), NOW.plus(600 + 3_599)).await.unwrap();
    assert_eq!(registered().await, 90);
    ledger.expire(id("a"), NOW.plus(600 + 3_600)).await.unwrap();
    assert_eq!(registered().await, 30);
    let (seen, coverage) = shown(ledger, "a", 1).await;
    assert_eq!(coverage, Coverage { registered: 30, covered_until: Some(NOW) });
    assert_eq!(seen[0].len(), 30);
    assert!(seen[0].iter().all(|(_, exp)| *exp > NOW.plus(4_200)));

    // What is expired for everybody, by the realm's leeway, is not stored.
    let now = NOW.plus(1_000);
    let edge = |exp: u64| Issued { exp: now.minus(60).plus(exp), ..issued(&format!("edge{exp}"), 0) };
    let done = ledger.register(id("a"), now, vec![edge(0), edge(1)]).await.unwrap();
    assert_eq!((done.expired, done.new), (1, 1));
    assert_eq!(registered().await, 31);
}

async fn every_registered_token_is_shown_once_in_order(ledger: &dyn Ledger) {
    // All widths: the order of databases is that of signed numbers.
    for (name, width) in [("w40", Width::W40), ("w48", Width::W48), ("w64", Width::W64)] {
        let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([9; 16]), width);
        let realm = Realm { fingerprinter, ..realm(name) };
        ledger.create_realm(realm.clone(), vec![]).await.unwrap();
        let jtis: Vec<String> = (0..5_000).map(|number| format!("{name}-{number}")).collect();
        let mut expected = Vec::new();
        for part in jtis.chunks(ISSUED_BATCH_MAX) {
            let tokens = part.iter().map(|jti| issued(jti, 1_000)).collect();
            assert_eq!(ledger.register(id(name), NOW, tokens).await.unwrap().new, part.len() as u64);
            expected.extend(part.iter().map(|jti| (fingerprint(&realm, jti), NOW.plus(1_000))));
        }
        expected.sort_unstable();
        for parts in [1, 2, 3] {
            let (seen, coverage) = shown(ledger, name, parts).await;
            assert_eq!(coverage.registered, 5_000);
            assert_eq!(seen.concat(), expected, "{name}, {parts} parts");
            assert!(seen.iter().all(|part| part.len() > 5_000 / parts - 300), "equal parts");
        }
        assert_eq!(shown(ledger, name, 0).await.1.registered, 5_000);
    }
    let many = (0..17).map(|_| Box::new(|_: &[_]| true) as Visitor).collect();
    let error = ledger.visit_registered(id("w40"), many).await.unwrap_err();
    assert!(matches!(error, LedgerError::TooManyVisitors { visitors: 17 }), "{error}");
    let error = ledger.visit_registered(id("nowhere"), vec![]).await.unwrap_err();
    assert!(matches!(error, LedgerError::RealmUnknown { .. }), "{error}");
}

async fn a_visitor_that_has_seen_enough_is_shown_no_more(ledger: &dyn Ledger) {
    for part in 0..6 {
        let tokens = (0..ISSUED_BATCH_MAX).map(|number| issued(&format!("{part}-{number}"), 1_000)).collect();
        register(ledger, tokens).await;
    }
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let visitor: Visitor = Box::new(move |batch| {
        assert!(batch.len() < 12_000);
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        false
    });
    let coverage = ledger.visit_registered(id("a"), vec![visitor]).await.unwrap();
    assert_eq!(coverage.registered, 12_000);
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 1);
}

async fn registries_of_realms_do_not_mix(ledger: &dyn Ledger) {
    ledger.create_realm(realm("b"), vec![]).await.unwrap();
    register(ledger, vec![issued("t", 100)]).await;
    ledger.cover(id("b"), NOW, NOW).await.unwrap();
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), Coverage { registered: 1, covered_until: None });
    assert_eq!(ledger.coverage(id("b")).await.unwrap(), Coverage { registered: 0, covered_until: Some(NOW) });
    assert_eq!(shown(ledger, "b", 1).await.0, vec![vec![]]);
    ledger.expire(id("b"), NOW.plus(DAY)).await.unwrap();
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, 1);
    let receipts = ledger.append(id("b"), NOW, vec![revoke("t", Expiry::Claimed(NOW.plus(1)))]).await.unwrap();
    assert_eq!(receipts[0], fresh(1, 30));
}

async fn what_holds_for_a_token_is_told(ledger: &dyn Ledger) {
    let token = |jti: &str| ledger.token(id("a"), jti.into());
    assert_eq!(token("t").await.unwrap(), TokenRecord::default());
    register(ledger, vec![issued("t", 5 * DAY)]).await;
    let known = TokenRecord { entry: None, issued: Some(issued("t", 5 * DAY)) };
    assert_eq!(token("t").await.unwrap(), known);
    one(ledger, vouched("t", 6)).await;
    one(ledger, vouched("u", 1)).await;
    let exp = NOW.plus(6 * DAY);
    let entry = |sequence, statement| Entry {
        sequence: Sequence(sequence),
        at: NOW,
        statement,
        reason: Some("lost".into()),
        actor: "test".into(),
    };
    let revoked = entry(1, Statement::Revoke { jti: "t".into(), exp });
    assert_eq!(token("t").await.unwrap(), TokenRecord { entry: Some(revoked), ..known.clone() });
    one(ledger, reinstate("t")).await;
    let reinstated = entry(3, Statement::Reinstate { jti: "t".into(), exp });
    assert_eq!(token("t").await.unwrap(), TokenRecord { entry: Some(reinstated), ..known });
    // A scope of the same name is no token, and what cannot be one is unknown.
    one(ledger, cutoff(Scope::Sub("x".into()), 9)).await;
    for nothing in ["x", "", &"x".repeat(JTI_BYTES_MAX + 1)] {
        assert_eq!(token(nothing).await.unwrap(), TokenRecord::default());
    }
    assert!(matches!(ledger.token(id("b"), "t".into()).await, Err(LedgerError::RealmUnknown { .. })));
}

async fn live_cutoffs_are_those_not_lifted(ledger: &dyn Ledger) {
    let sequences = async || {
        let cutoffs = ledger.cutoffs(id("a")).await.unwrap();
        assert!(cutoffs.iter().all(|entry| matches!(entry.statement, Statement::Cutoff { .. })));
        cutoffs.iter().map(|entry| entry.sequence.0).collect::<Vec<_>>()
    };
    assert!(sequences().await.is_empty());
    let requests = vec![
        cutoff(Scope::Realm, 1),
        cutoff(Scope::Sub("x".into()), 2),
        vouched("x", 1),
        cutoff(Scope::Kid("x".into()), 3),
        cutoff(Scope::Sub("x".into()), 4),
        lift(Scope::Kid("x".into())),
    ];
    ledger.append(id("a"), NOW, requests).await.unwrap();
    assert_eq!(sequences().await, [1, 5]);
    one(ledger, lift(Scope::Realm)).await;
    one(ledger, cutoff(Scope::Kid("x".into()), 1)).await;
    assert_eq!(sequences().await, [5, 8]);
    assert!(matches!(ledger.cutoffs(id("b")).await, Err(LedgerError::RealmUnknown { .. })));
}

fn bid(server: &str) -> Bid {
    Bid { server: server.into(), address: Some(format!("http://{server}")), lease: Duration::from_secs(5) }
}

const LEADING: Leadership = Leadership::Leading { took_over: false };

async fn whoever_leads_goes_on_leading(ledger: &dyn Ledger) {
    assert_eq!(ledger.lead(bid("one")).await.unwrap(), LEADING);
    assert_eq!(ledger.lead(bid("one")).await.unwrap(), LEADING);
    ledger.step_down("one".into()).await.unwrap();
    ledger.step_down("one".into()).await.unwrap();
    assert_eq!(ledger.lead(bid("two")).await.unwrap(), LEADING);
    // Nothing of this is an entry, and nothing begins a term.
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(0)));
    assert!(ledger.is_writable());
}

async fn a_bid_that_cannot_be_is_refused(ledger: &dyn Ledger) {
    let cases = [
        bid(""),
        bid(&"x".repeat(SERVER_BYTES_MAX + 1)),
        Bid { address: Some(String::new()), ..bid("one") },
        Bid { address: Some("x".repeat(ADDRESS_BYTES_MAX + 1)), ..bid("one") },
        Bid { lease: Duration::ZERO, ..bid("one") },
        Bid { lease: Duration::MAX, ..bid("one") },
    ];
    for bid in cases {
        let refused = ledger.lead(bid.clone()).await;
        assert!(matches!(refused, Err(LedgerError::Bid { .. })), "{bid:?}");
    }
    assert_eq!(ledger.lead(Bid { address: None, ..bid("one") }).await.unwrap(), LEADING);
}

/// Something of everything.
async fn fill(ledger: &dyn Ledger) {
    let requests = vec![
        vouched("t", 1),
        vouched("u", 2),
        reinstate("u"),
        cutoff(Scope::Realm, 9),
        cutoff(Scope::Sub("s".into()), 9),
        lift(Scope::Realm),
        Request { reason: None, ..vouched("\u{1f512}\0'", 3) },
    ];
    ledger.append(id("a"), NOW, requests).await.unwrap();
    ledger.resume(id("a"), NOW, Sequence(0)).await.unwrap();
    one(ledger, vouched("v", 4)).await;
    register(ledger, vec![issued("t", 100), Issued { sub: None, ..issued("x", 200) }]).await;
    ledger.cover(id("a"), NOW, NOW).await.unwrap();
    let object = |address: &str, bytes| Object { address: address.into(), bytes };
    let objects = vec![object("manifest", vec![1, 2, 3]), object("e/1/index", vec![0; 5_000])];
    ledger.store_objects(id("a"), Term(2), objects, vec![]).await.unwrap();
    // More than one piece of each, and the widest fingerprints.
    let fingerprinter = Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([9; 16]), Width::W64);
    ledger.create_realm(Realm { fingerprinter, ..realm("b") }, vec![]).await.unwrap();
    let many = (0..4_500).map(|number| vouched(&number.to_string(), 1)).collect();
    ledger.append(id("b"), NOW, many).await.unwrap();
    for part in 0..3 {
        let tokens = (0..1_500).map(|number| issued(&format!("{part}-{number}"), 1_000)).collect();
        ledger.register(id("b"), NOW, tokens).await.unwrap();
    }
    ledger.create_realm(realm("c"), vec![]).await.unwrap();
}

/// Something of everything that our issuer hands out, for realm `a`; one entry among it.
async fn hand_out(ledger: &dyn Ledger) {
    enrolled(ledger, "d").await;
    enrolled(ledger, "e").await;
    issue(ledger, for_device("d", "d1")).await;
    issue(ledger, renewal("d", "d2", "d1", 1)).await;
    issue(ledger, for_device("e", "e1")).await;
    one(ledger, vouched("e1", 0)).await;
    issue(ledger, refreshed("r1", None, Some(1))).await;
    issue(ledger, refreshed("r2", Some(1), Some(2))).await;
}

/// All rows in order, however they were cut into pieces.
async fn dumped(ledger: &dyn Ledger) -> Result<Vec<Piece>, LedgerError> {
    let pieces = Arc::new(std::sync::Mutex::new(Vec::new()));
    let taken = Arc::clone(&pieces);
    let sink: Sink = Box::new(move |piece| {
        taken.lock().unwrap().push(piece);
        true
    });
    ledger.dump(sink).await?;
    let mut joined: Vec<Piece> = Vec::new();
    for piece in std::mem::take(&mut *pieces.lock().unwrap()) {
        match (joined.last_mut(), piece) {
            (Some(Piece::Entries(held)), Piece::Entries(more)) => held.extend(more),
            (Some(Piece::Issued(held)), Piece::Issued(more)) => held.extend(more),
            (Some(Piece::Objects(held)), Piece::Objects(more)) => held.extend(more),
            (_, piece) => joined.push(piece),
        }
    }
    Ok(joined)
}

fn source(pieces: Vec<Piece>) -> Source {
    // Pieces of a dump are small; joined they would not be.
    let cut = pieces.into_iter().flat_map(|piece| match piece {
        Piece::Entries(rows) => rows.chunks(700).map(|part| Piece::Entries(part.to_vec())).collect(),
        Piece::Issued(rows) => rows.chunks(700).map(|part| Piece::Issued(part.to_vec())).collect(),
        other => vec![other],
    });
    Box::new(cut.map(Ok))
}

async fn all_that_is_kept_is_shown_and_restored(ledger: &dyn Ledger) {
    fill(ledger).await;
    hand_out(ledger).await;
    let pieces = dumped(ledger).await.unwrap();
    let mut inspection = Inspection::default();
    assert!(pieces.iter().all(|piece| inspection.take(piece)) && inspection.finish(), "{:?}", inspection.findings);
    let Inspection { realms, entries, issued, devices, tokens, refreshes, objects, .. } = inspection;
    assert_eq!((realms, entries, issued, objects), (3, 4_510, 4_507, 2));
    assert_eq!((devices, tokens, refreshes), (2, 5, 2));

    let copy = MemoryLedger::new();
    copy.restore(source(pieces.clone())).await.unwrap();
    assert_eq!(dumped(&copy).await.unwrap(), pieces);
    assert_eq!(copy.head(id("a")).await.unwrap(), ledger.head(id("a")).await.unwrap());
    assert_eq!(copy.cutoffs(id("a")).await.unwrap(), ledger.cutoffs(id("a")).await.unwrap());
    assert_eq!(copy.objects(id("a")).await.unwrap(), ledger.objects(id("a")).await.unwrap());

    let again = ledger.restore(source(pieces.clone())).await.unwrap_err();
    assert!(matches!(again, LedgerError::NotEmpty { realm } if realm == id("a")), "{again}");
    ledger.compact().await.unwrap();
    assert_eq!(dumped(ledger).await.unwrap(), pieces);

    // A sink that has seen enough is shown no more.
    let shown = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&shown);
    let sink: Sink = Box::new(move |_| counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 1);
    ledger.dump(sink).await.unwrap();
    assert_eq!(shown.load(std::sync::atomic::Ordering::Relaxed), 2);
}

type Change = fn(&mut Vec<Piece>);

/// Into an empty ledger: what cannot be read, or cannot be, leaves nothing; what can be is all there.
async fn an_empty_ledger_is_restored_whole_or_not_at_all(ledger: &dyn Ledger) {
    let original = MemoryLedger::new();
    original.create_realm(realm("a"), vec![]).await.unwrap();
    fill(&original).await;
    hand_out(&original).await;
    let pieces = dumped(&original).await.unwrap();

    let cut: Vec<_> = pieces[..pieces.len() - 2].iter().cloned().map(Ok).collect();
    let broken = cut.into_iter().chain([Err(Arc::new(std::io::Error::other("torn")) as Cause)]);
    let refused = ledger.restore(Box::new(broken)).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Unreadable(cause) if cause.to_string() == "torn"), "{refused}");
    let wrong: [(&str, Change); 10] = [
        ("device e of realm a stands twice", |pieces| {
            let Piece::Devices(devices) = &mut pieces[3] else { panic!() };
            devices[0] = devices[1].clone();
        }),
        ("device d of realm a holds half a token", |pieces| {
            let Piece::Devices(devices) = &mut pieces[3] else { panic!() };
            devices[0].held_until = None;
        }),
        ("is kept for less long than it lives", |pieces| {
            let Piece::Tokens(tokens) = &mut pieces[4] else { panic!() };
            tokens[0].kept_until = NOW;
        }),
        ("counts 5 tokens of its issuer, and 4 are there", |pieces| {
            let Piece::Tokens(tokens) = &mut pieces[4] else { panic!() };
            tokens.pop();
        }),
        ("is in the family of another device", |pieces| {
            let Piece::Refreshes(refreshes) = &mut pieces[5] else { panic!() };
            refreshes[0].device = Some(device_id("d"));
        }),
        ("counts 2 entries, and 10 are there", |pieces| {
            let Piece::Realm(record) = &mut pieces[0] else { panic!() };
            record.stored = 2;
        }),
        ("entry 1 of realm a stands after entry 2", |pieces| {
            let Piece::Entries(entries) = &mut pieces[1] else { panic!() };
            entries.swap(0, 1);
        }),
        ("is above its head", |pieces| {
            let Piece::Realm(record) = &mut pieces[0] else { panic!() };
            record.head = Sequence(7);
        }),
        ("a token of realm a stands twice", |pieces| {
            let Piece::Issued(issued) = &mut pieces[2] else { panic!() };
            issued[1] = issued[0].clone();
        }),
        ("before the first realm", |pieces| {
            pieces.remove(0);
        }),
    ];
    for (finding, change) in wrong {
        let mut pieces = pieces.clone();
        change(&mut pieces);
        let refused = ledger.restore(source(pieces)).await.unwrap_err();
        assert!(matches!(&refused, LedgerError::Damaged { what } if what.contains(finding)), "{finding}: {refused}");
    }
    assert!(ledger.realms().await.unwrap().is_empty());

    ledger.restore(source(pieces.clone())).await.unwrap();
    assert_eq!(dumped(ledger).await.unwrap(), pieces);
    // And it goes on.
    let resumed = 7 + RESUME_GAP;
    assert_eq!(one(ledger, vouched("v", 4)).await, held(resumed + 1, 4));
    assert_eq!(one(ledger, vouched("w", 1)).await, fresh(resumed + 3, 1));
    issue(ledger, renewal("d", "d3", "d2", 2)).await;
    issue(ledger, refreshed("r3", Some(2), None)).await;
    assert_eq!(one(ledger, vouched("d1", 0)).await.sequence, Sequence(resumed + 6));
    assert_eq!(ledger.create_realm(realm("d"), vec![]).await.unwrap().realm, realm("d"));
    assert_eq!(register(ledger, vec![issued("t", 100)]).await.repeated, 1);
}

#[tokio::test]
async fn an_empty_file_is_restored_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    an_empty_ledger_is_restored_whole_or_not_at_all(&SqliteLedger::open(folder.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_is_restored_whole_or_not_at_all() {
    let server = server::Postgres::start();
    an_empty_ledger_is_restored_whole_or_not_at_all(&in_postgres(&server).await.0).await;
}

/// What a ledger that several servers share promises about leading. `pass` lets at least that much of the ledger's time go by.
async fn the_lease_of_a_leader_decides(ledger: &dyn Ledger, pass: impl AsyncFn(Duration)) {
    ledger.create_realm(realm("b"), vec![]).await.unwrap();
    one(ledger, vouched("t", 1)).await;
    assert_eq!(ledger.lead(bid("one")).await.unwrap(), LEADING);
    let Leadership::Following { leader, address, remaining } = ledger.lead(bid("two")).await.unwrap() else {
        panic!("two lead at once")
    };
    assert_eq!((leader.as_str(), address.as_deref()), ("one", Some("http://one")));
    assert!(!remaining.is_zero() && remaining <= bid("one").lease, "{remaining:?}");
    // Only who leads can give it up, and then the term goes on.
    ledger.step_down("two".into()).await.unwrap();
    assert!(matches!(ledger.lead(bid("two")).await.unwrap(), Leadership::Following { .. }));
    ledger.step_down("one".into()).await.unwrap();
    let short = |server| Bid { lease: LEASE_MIN, ..bid(server) };
    assert_eq!(ledger.lead(short("two")).await.unwrap(), LEADING);
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(1)));

    // A lease that ran out, and nobody else came: the leader goes on as if nothing had been.
    pass(2 * LEASE_MIN).await;
    assert_eq!(ledger.lead(short("two")).await.unwrap(), LEADING);
    assert_eq!(ledger.head(id("a")).await.unwrap().0, Term(1));

    // Somebody else comes: every realm begins a new term.
    let manifest = |byte| vec![Object { address: "manifest".into(), bytes: vec![byte] }];
    ledger.store_objects(id("a"), Term(1), manifest(1), vec![]).await.unwrap();
    pass(2 * LEASE_MIN).await;
    let mut commits = ledger.subscribe();
    commits.mark_unchanged();
    assert_eq!(ledger.lead(bid("one")).await.unwrap(), Leadership::Leading { took_over: true });
    assert!(commits.has_changed().unwrap(), "the new terms must travel");
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(2), Sequence(1 + RESUME_GAP)));
    assert_eq!(ledger.head(id("b")).await.unwrap(), (Term(2), Sequence(RESUME_GAP)));
    assert_eq!(statements(ledger).await[1], (1 + RESUME_GAP, Statement::Resume { term: Term(2) }));
    // What the former leader still has in hand is refused, and it learns who leads now.
    let late = ledger.store_objects(id("a"), Term(1), manifest(2), vec![]).await;
    assert!(matches!(late, Err(LedgerError::TermChanged { current: Term(2), claimed: Term(1), .. })), "{late:?}");
    assert_eq!(ledger.objects(id("a")).await.unwrap(), manifest(1));
    assert!(matches!(ledger.lead(bid("two")).await.unwrap(), Leadership::Following { leader, .. } if leader == "one"));
    // Whoever records goes on in the new term.
    assert_eq!(one(ledger, vouched("u", 1)).await, fresh(2 + RESUME_GAP, 1));
}

#[tokio::test]
async fn the_lease_in_memory_runs_by_its_own_clock() {
    let ledger = MemoryLedger::new();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    the_lease_of_a_leader_decides(&ledger, async |time| ledger.advance(time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_in_a_database_runs_by_its_clock() {
    let server = server::Postgres::start();
    let (ledger, url) = in_postgres(&server).await;
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    the_lease_of_a_leader_decides(&ledger, async |time| {
        // To move the end of the lease back is to let time go by.
        let move_back =
            format!("UPDATE revocast_leader SET until = until - {} * INTERVAL '1 second'", time.as_secs_f64());
        server.sql(&url, &move_back);
    })
    .await;
}

/// Two servers on one database: numbers have no holes and none is given twice, each server hears of the other, and both
/// read the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_give_numbers_without_holes() {
    const WRITERS: u64 = 16;
    const EACH: u64 = 20;
    let server = server::Postgres::start();
    let url = server.database();
    // Opened at once: neither disturbs the other where both make the tables.
    let (one, other) = tokio::join!(reopened(&url), reopened(&url));
    one.create_realm(realm("a"), vec![]).await.unwrap();
    other.create_realm(realm("b"), vec![]).await.unwrap();
    let ledgers = [Arc::new(one), Arc::new(other)];
    let mut heard = ledgers[1].subscribe();
    heard.mark_unchanged();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let ledger = Arc::clone(&ledgers[writer as usize % 2]);
            let realm = id(if writer % 4 < 2 { "a" } else { "b" });
            tokio::spawn(async move {
                let mut sequences = Vec::new();
                for number in 0..EACH {
                    let requests = vec![vouched(&format!("{writer}-{number}"), 1)];
                    sequences.push(ledger.append(realm, NOW, requests).await.unwrap()[0].sequence.0);
                }
                assert!(sequences.is_sorted());
                (realm, sequences)
            })
        })
        .collect();
    let mut all = std::collections::BTreeMap::<RealmId, Vec<u64>>::new();
    for writer in writers {
        let (realm, sequences) = writer.await.unwrap();
        all.entry(realm).or_default().extend(sequences);
    }
    for (realm, mut sequences) in all {
        sequences.sort_unstable();
        assert!(sequences.iter().copied().eq(1..=WRITERS / 2 * EACH), "{realm}");
        for ledger in &ledgers {
            let scanned = ledger.scan(realm, Sequence(0), usize::MAX).await.unwrap();
            assert!(scanned.iter().map(|entry| entry.sequence.0).eq(sequences.iter().copied()));
        }
    }
    heard.mark_unchanged();
    // Nothing of its own: what wakes it is what the other recorded.
    one_in(&*ledgers[0], "news").await;
    tokio::time::timeout(Duration::from_secs(20), heard.changed()).await.expect("it is heard of").unwrap();
}

async fn one_in(ledger: &dyn Ledger, jti: &str) -> Receipt {
    ledger.append(id("a"), NOW, vec![vouched(jti, 1)]).await.unwrap()[0]
}

/// The database ends in the middle of writes, and comes back. What was acknowledged is there; what was not may be; the
/// ledger tells how it is and goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_and_comes_loses_nothing_acknowledged() {
    let mut server = server::Postgres::start();
    let (ledger, _) = in_postgres(&server).await;
    let ledger = Arc::new(ledger);
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let writing = Arc::clone(&ledger);
        let (told, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let writer = tokio::spawn(async move {
            let mut done = Vec::new();
            let mut number = 0;
            loop {
                let jti = format!("{round}-{number}");
                match writing.append(id("a"), NOW, vec![vouched(&jti, 1)]).await {
                    Ok(receipts) => done.push((receipts[0].sequence, jti)),
                    Err(error) => return (done, error),
                }
                number += 1;
                let _ = told.send(());
            }
        });
        for _ in 0..5 {
            begun.recv().await.unwrap();
        }
        server.crash();
        let (done, error) = tokio::time::timeout(Duration::from_mins(1), writer).await.expect("it ends").unwrap();
        // Either the connection broke before a commit, or during one.
        assert!(matches!(error, LedgerError::Away(_) | LedgerError::Storage(_)), "{error}");
        acknowledged.extend(done);
        let away = tokio::time::timeout(Duration::from_mins(1), async {
            let mut health = ledger.health();
            health.wait_for(|health| matches!(health, Health::Away { .. })).await.unwrap().clone()
        });
        let Health::Away { cause } = away.await.expect("it is told") else { panic!("not away") };
        assert!(!cause.contains(server::PASSWORD), "{cause}");
        assert!(!ledger.is_writable());
        // While it is away nobody waits long.
        let asked = std::time::Instant::now();
        assert!(matches!(ledger.head(id("a")).await, Err(LedgerError::Away(_))));
        assert!(asked.elapsed() < Duration::from_secs(10));
        server.restart();
        let mut health = ledger.health();
        let back = health.wait_for(|health| *health == Health::Good);
        tokio::time::timeout(Duration::from_mins(1), back).await.expect("it comes back").unwrap();
    }
    let scanned = ledger.scan(id("a"), Sequence(0), usize::MAX).await.unwrap();
    assert!(scanned.iter().map(|entry| entry.sequence.0).eq(1..=scanned.len() as u64), "no holes");
    for (sequence, jti) in acknowledged {
        let entry = &scanned[sequence.0 as usize - 1];
        assert_eq!(entry.statement, Statement::Revoke { jti: jti.clone(), exp: NOW.plus(DAY) });
        // To repeat it changes nothing.
        assert_eq!(one_in(&*ledger, &jti).await, held(sequence.0, 1));
    }
}

/// A database that hangs is not waited for without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_is_told_as_away() {
    let server = server::Postgres::start();
    let (ledger, _) = in_postgres(&server).await;
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    server.freeze();
    let answer = tokio::time::timeout(Duration::from_mins(1), ledger.append(id("a"), NOW, vec![vouched("t", 1)]));
    let error = answer.await.expect("an answer").unwrap_err();
    assert!(matches!(error, LedgerError::Away(_) | LedgerError::Storage(_)), "{error}");
    server.thaw();
    let mut health = ledger.health();
    let back = health.wait_for(|health| *health == Health::Good);
    tokio::time::timeout(Duration::from_mins(1), back).await.expect("it comes back").unwrap();
    one_in(&ledger, "t").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_serve_is_refused() {
    let server = server::Postgres::start();
    let (ledger, url) = in_postgres(&server).await;
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    one_in(&ledger, "t").await;
    // A row that somebody touched.
    server.sql(&url, "UPDATE revocast_entries SET value = value + 1");
    let damaged = ledger.scan(id("a"), Sequence(0), 10).await.unwrap_err().to_string();
    assert!(damaged.contains("entry 1 of realm a does not match its checksum"), "{damaged}");
    drop(ledger);

    let open = async |url: &str| {
        let config = PostgresConfig::new(url, Some(server::PASSWORD.into()), None).unwrap();
        assert!(!format!("{config:?}").contains(server::PASSWORD), "{config:?}");
        let error = PostgresLedger::open(config).await.unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn Error), |error| (*error).source());
        let told = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        assert!(!told.contains(server::PASSWORD), "{told}");
        (error, told)
    };
    server.sql(&url, "UPDATE revocast_layout SET layout = 99");
    assert!(matches!(open(&url).await.0, PostgresError::Newer { found: 99 }));
    server.sql(&url, "UPDATE revocast_layout SET layout = -1");
    assert!(matches!(open(&url).await.0, PostgresError::Ledger(LedgerError::Damaged { .. })));

    let hasty = server.database();
    let name = hasty.rsplit('/').next().unwrap();
    server.sql(&url, &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    let (_, told) = open(&hasty).await;
    assert!(told.contains("synchronous_commit is off"), "{told}");
    let readonly = server.database();
    let name = readonly.rsplit('/').next().unwrap();
    server.sql(&url, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    let (_, told) = open(&readonly).await;
    assert!(told.contains("read-only"), "{told}");
    let (_, told) = open(&format!("{url}-that-is-not-there")).await;
    assert!(told.contains("does not exist"), "{told}");
}

#[tokio::test]
async fn a_reopened_registry_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    register(&ledger, vec![issued("t", 5 * DAY)]).await;
    ledger.cover(id("a"), NOW, NOW).await.unwrap();
    drop(ledger);
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    let coverage = Coverage { registered: 1, covered_until: Some(NOW) };
    assert_eq!(shown(&ledger, "a", 2).await.1, coverage);
    assert_eq!(register(&ledger, vec![issued("t", 5 * DAY)]).await.repeated, 1);
    assert_eq!(one(&ledger, revoke("t", Expiry::Claimed(NOW))).await, fresh(1, 5));
}

#[tokio::test]
async fn a_registry_is_swept_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    // More than one piece that is read, and more than one that is written.
    for part in 0..13_u64 {
        let lives = |number: u64| if number.is_multiple_of(3) { 10 } else { 9_000 };
        let tokens = (0..2_000).map(|number| issued(&format!("{part}-{number}"), lives(number))).collect();
        register(&ledger, tokens).await;
    }
    ledger.expire(id("a"), NOW.plus(10)).await.unwrap();
    let left = 13 * (2_000 - 667);
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, left);
    let (seen, _) = shown(&ledger, "a", 2).await;
    assert_eq!(seen.concat().len() as u64, left);
    assert!(seen.concat().iter().all(|(_, exp)| *exp == NOW.plus(9_000)));
}

/// A visit is under way, and neither writes nor reads wait for it; what they do is not lost either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_visit() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(folder.path()).unwrap());
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    for part in 0..5 {
        register(&*ledger, (0..2_000).map(|number| issued(&format!("{part}-{number}"), 1_000)).collect()).await;
    }
    let (begun, mut is_begun) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let mut seen = 0;
    let visitor: Visitor = Box::new(move |batch| {
        if seen == 0 {
            begun.send(()).unwrap();
            wait.recv().unwrap();
        }
        seen += batch.len();
        // What was registered before the freeze is shown, all of it.
        assert!(seen <= 10_000);
        true
    });
    let visiting = Arc::clone(&ledger);
    let visit = tokio::spawn(async move { visiting.visit_registered(id("a"), vec![visitor]).await });
    is_begun.recv().await.unwrap();
    assert_eq!(register(&*ledger, vec![issued("later", 1_000)]).await.new, 1);
    one(&*ledger, vouched("t", 1)).await;
    assert_eq!(statements(&*ledger).await.len(), 1);
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, 10_001);
    go_on.send(()).unwrap();
    assert_eq!(visit.await.unwrap().unwrap().registered, 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_is_closed_ends_its_visits() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    for part in 0..3 {
        register(&ledger, (0..2_000).map(|number| issued(&format!("{part}-{number}"), 1_000)).collect()).await;
    }
    let (begun, is_begun) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let visitor: Visitor = Box::new(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        begun.take().is_none_or(|begun| begun.send(()).is_ok())
    });
    {
        let visit = ledger.visit_registered(id("a"), vec![visitor]);
        tokio::pin!(visit);
        tokio::select! {
            _ = &mut visit => {}
            _ = is_begun => {}
        }
    }
    drop(ledger);
    let after = calls.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=2).contains(&after), "{after}");
    // Nothing holds the file any more.
    assert!(!folder.path().join("ledger.db-wal").exists());
    SqliteLedger::open(folder.path()).unwrap();
}

/// The tables of layout 1, from before there was a registry.
const SCHEMA_OF_LAYOUT_1: &str = "
CREATE TABLE realms (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    issuer TEXT NOT NULL UNIQUE,
    function INTEGER NOT NULL,
    key BLOB NOT NULL,
    width INTEGER NOT NULL,
    leeway INTEGER NOT NULL,
    max_token_lifetime INTEGER NOT NULL,
    created INTEGER NOT NULL,
    term INTEGER NOT NULL,
    head INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    cutoffs INTEGER NOT NULL
) STRICT;
CREATE TABLE entries (
    realm INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    subject_kind INTEGER NOT NULL,
    subject TEXT NOT NULL,
    value INTEGER NOT NULL,
    reason TEXT,
    actor TEXT NOT NULL,
    PRIMARY KEY (realm, sequence)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX entries_by_subject ON entries (realm, subject_kind, subject, sequence);
CREATE INDEX entries_by_exp ON entries (realm, value) WHERE kind IN (1, 2);
CREATE TABLE objects (
    realm INTEGER NOT NULL,
    address TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (realm, address)
) STRICT;
PRAGMA application_id = 1381385036;
PRAGMA user_version = 1;
";

#[tokio::test]
async fn a_ledger_from_before_the_registry_opens_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(SCHEMA_OF_LAYOUT_1).unwrap();
    let day = NOW.plus(DAY).secs();
    old.execute_batch(&format!(
        "INSERT INTO realms VALUES (1, 'a', 'https://a.example', 2, x'{}', 48, 60, 2592000, {now}, 1, 2, 2, 1);
         INSERT INTO entries VALUES (1, 1, {now}, 1, 4, 't', {day}, 'lost', 'test');
         INSERT INTO entries VALUES (1, 2, {now}, 3, 0, '', 7, NULL, 'test');
         INSERT INTO objects VALUES (1, 'manifest', x'010203');",
        "07".repeat(16),
        now = NOW.secs(),
    ))
    .unwrap();
    drop(old);

    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(ledger.realms().await.unwrap(), vec![realm("a")]);
    assert_eq!(ledger.head(id("a")).await.unwrap(), (Term(1), Sequence(2)));
    assert_eq!(ledger.objects(id("a")).await.unwrap().len(), 1);
    assert_eq!(ledger.coverage(id("a")).await.unwrap(), Coverage::default());
    assert_eq!(one(&ledger, vouched("t", 1)).await, held(1, 1));
    assert_eq!(one(&ledger, vouched("u", 1)).await, fresh(3, 1));
    assert_eq!(register(&ledger, vec![issued("t", 5 * DAY), issued("v", 100)]).await.new, 2);
    assert_eq!(one(&ledger, vouched("t", 1)).await, held(4, 5));
    ledger.create_realm(realm("b"), vec![]).await.unwrap();
    drop(ledger);

    // The tables are those of a new ledger, and the file says so.
    let fresh = tempfile::tempdir().unwrap();
    drop(SqliteLedger::open(fresh.path()).unwrap());
    let columns = |path: &Path| {
        let file = rusqlite::Connection::open(path).unwrap();
        let layout: i32 = file.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let mut statement = file
            .prepare(
                "SELECT m.name, c.name, c.type, c.\"notnull\", c.dflt_value, c.pk FROM sqlite_master m, pragma_table_info(m.name) c
                 WHERE m.type = 'table' ORDER BY m.name, c.cid",
            )
            .unwrap();
        let rows = statement.query_map([], |row| {
            let default: Option<String> = row.get(4)?;
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, bool>(3)?,
                default,
                row.get::<_, u8>(5)?,
            ))
        });
        (layout, rows.unwrap().collect::<Result<Vec<_>, _>>().unwrap())
    };
    assert_eq!(columns(&path), columns(&fresh.path().join("ledger.db")));
    assert_eq!(columns(&path).0, 4);
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(ledger.coverage(id("a")).await.unwrap().registered, 2);
}

#[tokio::test]
async fn a_ledger_from_before_the_checksums_gets_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    fill(&ledger).await;
    let before = dumped(&ledger).await.unwrap();
    drop(ledger);
    // What tells the two layouts apart is the column of sums.
    let old = rusqlite::Connection::open(&path).unwrap();
    without_issuance(&old);
    for table in ["realms", "entries", "objects", "issued"] {
        old.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN sum")).unwrap();
    }
    old.pragma_update(None, "user_version", 2).unwrap();
    drop(old);

    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(dumped(&ledger).await.unwrap(), before);
    assert!(!one(&ledger, vouched("v", 4)).await.recorded);
}

/// Takes from a file what layout 4 added.
fn without_issuance(file: &rusqlite::Connection) {
    for table in ["devices", "tokens", "refreshes"] {
        file.execute_batch(&format!("DROP TABLE {table}; ALTER TABLE realms DROP COLUMN {table}")).unwrap();
    }
}

#[tokio::test]
async fn a_ledger_from_before_our_issuer_hands_out_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    fill(&ledger).await;
    let before = dumped(&ledger).await.unwrap();
    drop(ledger);
    let old = rusqlite::Connection::open(&path).unwrap();
    without_issuance(&old);
    old.pragma_update(None, "user_version", 3).unwrap();
    drop(old);

    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(dumped(&ledger).await.unwrap(), before);
    hand_out(&ledger).await;
    let after = dumped(&ledger).await.unwrap();
    drop(ledger);
    assert_eq!(dumped(&SqliteLedger::open(folder.path()).unwrap()).await.unwrap(), after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_from_before_our_issuer_hands_out_tokens() {
    let server = server::Postgres::start();
    let (ledger, url) = in_postgres(&server).await;
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    fill(&ledger).await;
    let before = dumped(&ledger).await.unwrap();
    drop(ledger);
    for table in ["devices", "tokens", "refreshes"] {
        server.sql(&url, &format!("DROP TABLE revocast_{table}; ALTER TABLE revocast_realms DROP COLUMN {table}"));
    }
    server.sql(&url, "UPDATE revocast_layout SET layout = 1");
    let ledger = reopened(&url).await;
    assert_eq!(dumped(&ledger).await.unwrap(), before);
    hand_out(&ledger).await;
}

/// Everything that can be read, whatever the order of the tables in the file.
async fn content(folder: &Path) -> Result<Vec<Piece>, String> {
    let ledger = SqliteLedger::open(folder).map_err(|error| error.to_string())?;
    let mut pieces = Vec::new();
    for realm in ledger.realms().await.map_err(|error| error.to_string())? {
        let id = realm.id;
        let told = |error: LedgerError| error.to_string();
        let (term, head) = ledger.head(id).await.map_err(told)?;
        let coverage = ledger.coverage(id).await.map_err(told)?;
        pieces.push(Piece::Realm(RealmRecord {
            realm,
            term,
            head,
            stored: 0,
            cutoffs: 0,
            devices: 0,
            tokens: 0,
            refreshes: 0,
            coverage,
        }));
        pieces.push(Piece::Entries(ledger.scan(id, Sequence(0), usize::MAX).await.map_err(told)?));
        pieces.push(Piece::Objects(ledger.objects(id).await.map_err(told)?));
        pieces.push(Piece::Devices(ledger.devices(id, None, 9).await.map_err(told)?));
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let shown = Arc::clone(&seen);
        let visitor: Visitor = Box::new(move |batch| {
            shown.lock().unwrap().extend_from_slice(batch);
            true
        });
        ledger.visit_registered(id, vec![visitor]).await.map_err(told)?;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let enrolled = |(fingerprint, exp)| Enrolled { fingerprint, name: 0, iat: exp, exp, sub: None };
        pieces.push(Piece::Issued(seen.into_iter().map(enrolled).collect()));
    }
    Ok(pieces)
}

/// A small ledger with something of everything, closed; in a file without free pages.
async fn small_ledger(folder: &Path) {
    let ledger = SqliteLedger::open(folder).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    ledger
        .append(id("a"), NOW, vec![vouched("t", 1), cutoff(Scope::Sub("s".into()), 9), vouched("u", 2)])
        .await
        .unwrap();
    one(&ledger, reinstate("u")).await;
    register(&ledger, vec![issued("t", 100), issued("x", 200)]).await;
    hand_out(&ledger).await;
    ledger.cover(id("a"), NOW, NOW).await.unwrap();
    let object = Object { address: "manifest".into(), bytes: (0..=255).cycle().take(9_000).collect() };
    ledger.store_objects(id("a"), Term(1), vec![object], vec![]).await.unwrap();
}

/// A disk turns single bits over. The content stays what it was, or the ledger says that it is damaged.
///
/// `REVOCAST_LONG=1` turns over every bit.
#[tokio::test]
async fn a_flipped_bit_changes_nothing_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    small_ledger(folder.path()).await;
    let path = folder.path().join("ledger.db");
    let whole = content(folder.path()).await.unwrap();
    let good = fs::read(&path).unwrap();
    let long = std::env::var_os("REVOCAST_LONG").is_some();
    // A prime: over the pages, every place in a page and every bit in a byte comes up.
    let step = if long { 1 } else { 293 };
    let (mut noticed, mut harmless) = (0, 0);
    for bit in (0..good.len() * 8).step_by(step) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        for leftover in ["ledger.db-wal", "ledger.db-shm"] {
            let _ = fs::remove_file(folder.path().join(leftover));
        }
        match content(folder.path()).await {
            Ok(read) => {
                assert_eq!(read, whole, "bit {bit} changed what is read, and nobody noticed");
                harmless += 1;
            }
            Err(_) => noticed += 1,
        }
    }
    println!("{noticed} noticed, {harmless} without effect, of {} bits", good.len() * 8);
    assert!(noticed > harmless / 10, "{noticed} of {harmless} noticed: is this file read at all?");
}

/// The power fails while the log is written: what was committed last may be torn, and is cut off. What is before it
/// stands, and the ledger opens.
#[tokio::test]
async fn a_torn_log_is_cut_at_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    let mut states = vec![];
    for number in 0..12 {
        states.push(statements(&ledger).await);
        one(&ledger, vouched(&number.to_string(), 1)).await;
    }
    states.push(statements(&ledger).await);
    // As the disk has it while the server runs.
    let (file, log) = (folder.path().join("ledger.db"), folder.path().join("ledger.db-wal"));
    let (file, log) = (fs::read(file).unwrap(), fs::read(log).unwrap());
    drop(ledger);
    let step = if std::env::var_os("REVOCAST_LONG").is_some() { 1 } else { 1_009 };
    let mut lengths = std::collections::BTreeSet::new();
    for length in (0..=log.len()).rev().step_by(step) {
        let torn = tempfile::tempdir().unwrap();
        fs::write(torn.path().join("ledger.db"), &file).unwrap();
        fs::write(torn.path().join("ledger.db-wal"), &log[..length]).unwrap();
        let ledger = SqliteLedger::open(torn.path()).unwrap();
        // Cut before the realm was founded, there is no realm.
        if ledger.realms().await.unwrap().is_empty() {
            continue;
        }
        let read = statements(&ledger).await;
        assert!(states.contains(&read), "cut at {length}: {read:?}");
        lengths.insert(read.len());
        assert_eq!(ledger.head(id("a")).await.unwrap().1.0, read.len() as u64);
    }
    assert!(lengths.len() > 6 && lengths.contains(&12), "{lengths:?}");
}

#[test]
fn a_layout_that_never_was_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    drop(SqliteLedger::open(folder.path()).unwrap());
    let file = rusqlite::Connection::open(&path).unwrap();
    file.pragma_update(None, "user_version", 0).unwrap();
    drop(file);
    assert!(matches!(SqliteLedger::open(folder.path()), Err(OpenError::Damaged { .. })));
    let file = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(file.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_get_numbers_without_holes() {
    const WRITERS: u64 = 64;
    const EACH: u64 = 50;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(folder.path()).unwrap());
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    ledger.create_realm(realm("b"), vec![]).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let ledger = Arc::clone(&ledger);
            let realm = id(if writer % 2 == 0 { "a" } else { "b" });
            tokio::spawn(async move {
                let mut sequences = Vec::new();
                for number in 0..EACH {
                    let requests = vec![vouched(&format!("{writer}-{number}"), 1)];
                    sequences.push(ledger.append(realm, NOW, requests).await.unwrap()[0].sequence.0);
                }
                // Each writer waits for its answer, so it sees rising numbers.
                assert!(sequences.is_sorted());
                (realm, sequences)
            })
        })
        .collect();
    let mut all = std::collections::BTreeMap::<RealmId, Vec<u64>>::new();
    for writer in writers {
        let (realm, sequences) = writer.await.unwrap();
        all.entry(realm).or_default().extend(sequences);
    }
    for (realm, mut sequences) in all {
        sequences.sort_unstable();
        assert!(sequences.iter().copied().eq(1..=WRITERS / 2 * EACH), "{realm}");
        let scanned = ledger.scan(realm, Sequence(0), usize::MAX).await.unwrap();
        assert!(scanned.iter().map(|entry| entry.sequence.0).eq(sequences));
    }
}

#[tokio::test]
async fn a_reopened_ledger_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    one(&ledger, vouched("t", 1)).await;
    one(&ledger, cutoff(Scope::Client("c".into()), 5)).await;
    let object = Object { address: "manifest".into(), bytes: vec![1, 2, 3] };
    ledger.store_objects(id("a"), Term(1), vec![object.clone()], vec![]).await.unwrap();
    let before = statements(&ledger).await;
    drop(ledger);

    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(statements(&ledger).await, before);
    assert_eq!(ledger.realm(id("a")).await.unwrap(), realm("a"));
    assert_eq!(ledger.objects(id("a")).await.unwrap(), vec![object]);
    assert_eq!(one(&ledger, vouched("t", 1)).await, held(1, 1));
    assert_eq!(one(&ledger, vouched("u", 1)).await, fresh(3, 1));
}

#[tokio::test]
async fn expiry_goes_on_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    let many = (0..9_000).map(|number| vouched(&number.to_string(), 1 + number % 2)).collect();
    ledger.append(id("a"), NOW, many).await.unwrap();
    assert_eq!(ledger.expire(id("a"), NOW.plus(DAY)).await.unwrap(), 4_500);
    assert_eq!(statements(&ledger).await.len(), 4_500);
    assert_eq!(ledger.expire(id("a"), NOW.plus(2 * DAY)).await.unwrap(), 4_500);
    assert_eq!(ledger.head(id("a")).await.unwrap().1, Sequence(9_000));
}

#[tokio::test]
async fn a_second_server_on_one_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    let error = SqliteLedger::open(folder.path()).unwrap_err();
    assert!(error.to_string().starts_with("another revocast serve uses this folder"), "{error}");
    drop(ledger);
    SqliteLedger::open(folder.path()).unwrap();
}

#[test]
fn the_files_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("new/data");
    let _ledger = SqliteLedger::open(&data).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for file in fs::read_dir(&data).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_damaged_file_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    ledger.create_realm(realm("a"), vec![]).await.unwrap();
    let many = (0..5_000).map(|number| vouched(&number.to_string(), 1)).collect();
    ledger.append(id("a"), NOW, many).await.unwrap();
    drop(ledger);
    let good = fs::read(&path).unwrap();
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        SqliteLedger::open(folder.path()).unwrap_err()
    };

    let mut zeroed = good.clone();
    let middle = good.len() / 2 / 4096 * 4096;
    zeroed[middle..middle + 4096].fill(0);
    assert!(matches!(refusal(&zeroed), OpenError::Damaged { .. }));
    assert!(matches!(refusal(&good[..good.len() / 2]), OpenError::Damaged { .. }));
    // An empty file must not be taken for a new ledger: that would un-revoke everything.
    assert!(matches!(refusal(&[]), OpenError::Damaged { .. }));
    assert!(matches!(
        refusal(b"not a database, but long enough to have a header of its own ........ "),
        OpenError::Damaged { .. }
    ));

    fs::write(&path, &good).unwrap();
    let ledger = SqliteLedger::open(folder.path()).unwrap();
    assert_eq!(statements(&ledger).await.len(), 5_000);
}

#[test]
fn a_missing_file_beside_its_log_is_not_a_new_ledger() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ledger.db-wal"), [1]).unwrap();
    assert!(matches!(SqliteLedger::open(folder.path()), Err(OpenError::Damaged { .. })));
}

#[test]
fn a_crash_while_founding_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ledger.db.new"), b"half").unwrap();
    SqliteLedger::open(folder.path()).unwrap();
    assert!(!folder.path().join("ledger.db.new").exists());
}

#[test]
fn foreign_and_newer_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(foreign);
    assert!(matches!(SqliteLedger::open(folder.path()), Err(OpenError::Foreign { found: 0, .. })));

    fs::remove_file(&path).unwrap();
    drop(SqliteLedger::open(folder.path()).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    assert!(matches!(SqliteLedger::open(folder.path()), Err(OpenError::Newer { found: 99, .. })));
}
