//! Group commit: what has queued up becomes one transaction, and one wait for the disk serves all of it.
//!
//! One task of this process writes groups, one at a time; groups of other servers take turns with it on the rows of the
//! realms.

use std::collections::BTreeMap;
use std::sync::Arc;

use revocast_core::{RealmId, UnixTime};
use tokio::sync::mpsc;

use super::issuance::{Wanted, fetch};
use super::rows::{hold_realms, write};
use super::session::{Database, News, Outcome, Session};
use crate::ledger::LedgerError;
use crate::ledger::calls::{Answer, Ask, Call, GROUP_REQUESTS_MAX};
use crate::ledger::draft::Draft;
use crate::ledger::rules::Halt;

/// Ends when nobody can ask any more.
pub(super) async fn run(database: Arc<Database>, mut queue: mpsc::Receiver<Call>) {
    while let Some(first) = queue.recv().await {
        let mut requests = first.ask.requests();
        let mut group = vec![first];
        while requests < GROUP_REQUESTS_MAX
            && let Ok(next) = queue.try_recv()
        {
            requests += next.ask.requests();
            group.push(next);
        }
        let (calls, replies): (Vec<_>, Vec<_>) =
            group.into_iter().map(|Call { realm, now, ask, reply }| ((realm, now, ask), reply)).unzip();
        let calls = &calls;
        let answers = database.transact(|session| async move { decide_all(&session, calls).await }).await;
        match answers {
            Ok(answers) => replies.into_iter().zip(answers).for_each(|(reply, answer)| reply.send(answer)),
            Err(error) => replies.into_iter().for_each(|reply| reply.send(Err(error.clone()))),
        }
    }
}

/// Runs the calls of a group one after the other; a refused one leaves no trace among the others.
async fn decide_all(
    session: &Session,
    calls: &[(RealmId, UnixTime, Ask)],
) -> Outcome<(Vec<Result<Answer, LedgerError>>, News)> {
    let mut asked: BTreeMap<RealmId, Vec<(UnixTime, &Ask)>> = BTreeMap::new();
    for (realm, now, ask) in calls {
        asked.entry(*realm).or_default().push((*now, ask));
    }
    let ids: Vec<_> = asked.keys().map(RealmId::as_str).collect();
    let held = hold_realms(session, &ids).await?;
    let mut realms = BTreeMap::new();
    for (realm, row) in held {
        let mut wanted = Wanted::default();
        for &(now, ask) in asked.get(&realm).into_iter().flatten() {
            match ask {
                Ask::Append(requests) => wanted.requests(&row.realm, now, requests),
                Ask::Issue(order) => wanted.order(&row.realm, now, order),
            }
        }
        let fetched = Box::pin(fetch(session, &row, wanted)).await?;
        let draft = Draft::new(row.realm.fingerprinter, fetched);
        realms.insert(realm, (row, draft));
    }

    let mut answers = Vec::with_capacity(calls.len());
    for (id, now, ask) in calls {
        let Some((row, draft)) = realms.get_mut(id) else {
            answers.push(Err(LedgerError::RealmUnknown { realm: *id }));
            continue;
        };
        let (mut counters, mut coverage) = (row.counters, row.coverage);
        match ask.clone().decide(draft, &row.realm, &mut counters, &mut coverage, *now) {
            Ok(answer) => {
                draft.keep();
                (row.counters, row.coverage) = (counters, coverage);
                answers.push(Ok(answer));
            }
            Err(Halt::Refused(error)) => {
                draft.undo();
                answers.push(Err(error));
            }
            Err(Halt::Storage(never)) => match never {},
        }
    }

    let mut news = News::No;
    for (row, draft) in realms.into_values() {
        let changes = draft.changes();
        if !changes.entries.is_empty() {
            news = News::Yes;
        }
        if !changes.is_empty() {
            Box::pin(write(session, &row, &changes)).await?;
        }
    }
    Ok((answers, news))
}
