//! Group commit: what has queued up becomes one transaction, and one wait for the disk serves all of it.
//!
//! One task of this process writes appends, one group at a time; groups of other servers take turns with it on the
//! rows of the realms.

use std::collections::BTreeMap;
use std::sync::Arc;

use revocast_core::{Jti, RealmId, UnixTime};
use tokio::sync::{mpsc, oneshot};

use super::rows::{fetch, hold_realms, write};
use super::session::{Database, News, Outcome, Session};
use crate::ledger::columns::RealmRow;
use crate::ledger::draft::{Draft, Name, name_of};
use crate::ledger::registry::Key;
use crate::ledger::rules::{self, Halt, Subject};
use crate::ledger::{Action, LedgerError, Receipt, Request};

/// Requests that one commit may cover: more would delay the first of them for little gain.
const GROUP_REQUESTS_MAX: usize = 1_024;

/// Calls that may wait. At some thousand acknowledged a second this is about a second.
pub(super) const QUEUE_CALLS_MAX: usize = 4_096;

pub(super) struct Append {
    pub(super) realm: RealmId,
    pub(super) now: UnixTime,
    pub(super) requests: Vec<Request>,
    pub(super) reply: oneshot::Sender<Answer>,
}

type Answer = Result<Vec<Receipt>, LedgerError>;
type Call = (RealmId, UnixTime, Vec<Request>);

/// Ends when nobody can append any more.
pub(super) async fn run(database: Arc<Database>, mut queue: mpsc::Receiver<Append>) {
    while let Some(first) = queue.recv().await {
        let mut requests = first.requests.len();
        let mut replies = vec![first.reply];
        let mut calls = vec![(first.realm, first.now, first.requests)];
        while requests < GROUP_REQUESTS_MAX
            && let Ok(next) = queue.try_recv()
        {
            requests += next.requests.len();
            replies.push(next.reply);
            calls.push((next.realm, next.now, next.requests));
        }
        let calls = &calls;
        let answers = database.transact(|session| async move { append_all(&session, calls).await }).await;
        match answers {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Nobody listening any more is no reason not to have done it.
                    let _ = reply.send(answer);
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Runs the calls of a group one after the other; a refused one leaves no trace among the others.
async fn append_all(session: &Session, calls: &[Call]) -> Outcome<(Vec<Answer>, News)> {
    let mut asked: BTreeMap<RealmId, Vec<&[Request]>> = BTreeMap::new();
    for (realm, _, requests) in calls {
        asked.entry(*realm).or_default().push(requests);
    }
    let ids: Vec<_> = asked.keys().map(RealmId::as_str).collect();
    let held = hold_realms(session, &ids).await?;
    let mut realms = BTreeMap::new();
    for (realm, row) in held {
        let requests = asked.get(&realm).map(|calls| calls.iter().copied().flatten()).into_iter().flatten();
        let (names, keys) = wanted(&row, requests);
        let fetched = fetch(session, &row, &names, &keys).await?;
        let draft = Draft::new(row.realm.fingerprinter, fetched);
        realms.insert(realm, (row, draft));
    }

    let mut answers = Vec::with_capacity(calls.len());
    for (id, now, requests) in calls {
        let Some((row, draft)) = realms.get_mut(id) else {
            answers.push(Err(LedgerError::RealmUnknown { realm: *id }));
            continue;
        };
        let mut counters = row.counters;
        match rules::append(draft, &row.realm, &mut counters, *now, requests.clone()) {
            Ok(receipts) => {
                draft.keep();
                row.counters = counters;
                answers.push(Ok(receipts));
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
            write(session, &row, &changes).await?;
        }
    }
    Ok((answers, news))
}

/// What the rules will ask for, each once.
fn wanted<'a>(row: &RealmRow, requests: impl Iterator<Item = &'a Request>) -> (Vec<Name>, Vec<Key>) {
    let (mut names, mut keys) = (Vec::new(), Vec::new());
    for request in requests {
        match &request.action {
            Action::Revoke { jti, .. } | Action::Reinstate { jti } => {
                names.push(name_of(Subject::Token(jti)));
                keys.extend(Jti::new(jti).ok().map(|jti| Key::of(&row.realm.fingerprinter, jti)));
            }
            Action::Cutoff { scope, .. } | Action::Lift { scope } => names.push(name_of(Subject::Scope(scope))),
        }
    }
    names.sort_unstable();
    names.dedup();
    keys.sort_unstable();
    keys.dedup();
    (names, keys)
}
