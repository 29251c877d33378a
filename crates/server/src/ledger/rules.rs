//! What a request does to a history, the same for every backend.
//!
//! A backend brings a [`Shelf`]: one realm inside one transaction. Nothing here does I/O itself.

use revocast_core::limits::{
    ACTOR_BYTES_MAX, BASE_ENTRIES_MAX, BATCH_REQUESTS_MAX, CUTOFFS_MAX, REASON_BYTES_MAX, SCOPE_BYTES_MAX,
};
use revocast_core::{Issuer, Jti, RealmId, Sequence, Term, UnixTime};

use super::lineage::{self, Cause, DESCENDANTS_MAX, Lineage};
use super::{Action, Entry, Expiry, LedgerError, RESUME_GAP, Realm, Receipt, Request, Scope, Statement};

/// The largest number a ledger stores: databases count in signed 64 bits.
pub(super) const NUMBER_MAX: u64 = i64::MAX as u64;

/// What a realm's row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) term: Term,
    /// The highest sequence ever assigned.
    pub(super) head: Sequence,
    /// Entries kept.
    pub(super) stored: u64,
    /// Scopes with a live cutoff.
    pub(super) cutoffs: u64,
    /// Devices enrolled.
    pub(super) devices: u64,
    /// Tokens kept that our issuer handed out.
    pub(super) tokens: u64,
    /// Refresh tokens kept.
    pub(super) refreshes: u64,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self { term: Term(1), head: Sequence(0), stored: 0, cutoffs: 0, devices: 0, tokens: 0, refreshes: 0 }
    }
}

/// What an entry speaks of. For one subject the entry with the highest sequence holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    Token(&'a str),
    Scope(&'a Scope),
}

impl<'a> Subject<'a> {
    pub(super) fn of(statement: &'a Statement) -> Option<Self> {
        match statement {
            Statement::Revoke { jti, .. } | Statement::Reinstate { jti, .. } => Some(Self::Token(jti)),
            Statement::Cutoff { scope, .. } | Statement::Lift { scope } => Some(Self::Scope(scope)),
            Statement::Resume { .. } => None,
        }
    }
}

/// The entry that holds for a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) sequence: Sequence,
    pub(super) standing: Standing,
}

/// What that entry says, without repeating the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Revoked { exp: UnixTime },
    Reinstated { exp: UnixTime },
    Cut { not_before: UnixTime },
    Lifted,
}

/// One realm inside one transaction.
pub(super) trait Shelf {
    /// How the storage fails.
    type Error;

    /// The entry that holds for `subject`, those of this transaction included.
    fn last(&mut self, subject: Subject<'_>) -> Result<Option<Last>, Self::Error>;

    /// The `exp` under which a token is registered, if it is.
    fn registered(&mut self, jti: &str) -> Result<Option<UnixTime>, Self::Error>;

    /// Keeps an entry.
    fn put(&mut self, entry: &Entry) -> Result<(), Self::Error>;
}

/// Why an append stopped: our refusal, or the storage's failure.
#[derive(Debug)]
pub(super) enum Halt<E> {
    Refused(LedgerError),
    Storage(E),
}

/// Refuses what is malformed, before any transaction begins.
pub(super) fn check(requests: &[Request]) -> Result<(), LedgerError> {
    if requests.len() > BATCH_REQUESTS_MAX {
        return Err(LedgerError::BatchTooLarge { requests: requests.len() });
    }
    for (index, request) in requests.iter().enumerate() {
        match &request.action {
            Action::Revoke { jti, .. } | Action::Reinstate { jti } => {
                Jti::new(jti).map_err(|source| LedgerError::Jti { index, source })?;
            }
            Action::Cutoff { scope, .. } | Action::Lift { scope } => match scope {
                Scope::Realm => {}
                Scope::Sub(text) | Scope::Kid(text) | Scope::Client(text) => {
                    if text.is_empty() || text.len() > SCOPE_BYTES_MAX {
                        return Err(LedgerError::ScopeLength { index, bytes: text.len() });
                    }
                }
            },
        }
        check_words(index, request.reason.as_deref(), &request.actor)?;
    }
    Ok(())
}

/// Refuses a reason or an actor that is too long.
pub(super) fn check_words(index: usize, reason: Option<&str>, actor: &str) -> Result<(), LedgerError> {
    let reason_bytes = reason.map_or(0, str::len);
    if reason_bytes > REASON_BYTES_MAX {
        return Err(LedgerError::ReasonTooLong { index, bytes: reason_bytes });
    }
    if actor.len() > ACTOR_BYTES_MAX {
        return Err(LedgerError::ActorTooLong { index, bytes: actor.len() });
    }
    Ok(())
}

/// Refuses a realm whose issuer cannot be used.
pub(super) fn check_realm(realm: &Realm) -> Result<(), LedgerError> {
    Issuer::new(&realm.issuer).map(|_| ()).map_err(LedgerError::Issuer)
}

/// Answers a request for a realm from the one that has its id, if any, and the one that has its issuer.
pub(super) fn found(
    asked: &Realm,
    by_id: Option<Realm>,
    by_issuer: Option<RealmId>,
) -> Result<Option<Realm>, LedgerError> {
    match (by_id, by_issuer) {
        (Some(realm), _) if realm.issuer == asked.issuer => Ok(Some(realm)),
        (Some(realm), _) => Err(LedgerError::RealmTaken { realm: realm.id, issuer: realm.issuer }),
        (None, Some(realm)) => Err(LedgerError::IssuerTaken { issuer: asked.issuer.clone(), realm }),
        (None, None) => Ok(None),
    }
}

/// Records what is new in `requests`, and revokes what descends from the tokens they revoke (design rule 22). After a
/// [`Halt`] the transaction, `counters` included, must be undone.
pub(super) fn append<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    requests: Vec<Request>,
) -> Result<Vec<Receipt>, Halt<S::Error>> {
    let mut receipts = Vec::with_capacity(requests.len());
    let mut descendants = 0;
    for request in requests {
        // Our issuer handed out nothing, so nothing descends from anything.
        if counters.tokens == 0 {
            receipts.push(record(shelf, realm, counters, now, request)?);
            continue;
        }
        let mut receipt = record(shelf, realm, counters, now, request.clone())?;
        let Request { action, reason, actor } = request;
        match action {
            Action::Revoke { jti, .. } => {
                let cause = Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                let toll = lineage::revoke_descendants(shelf, counters, &cause, &jti)?;
                receipt.recorded |= toll.recorded > 0;
                receipt.sequence = toll.sequence.map_or(receipt.sequence, |last| last.max(receipt.sequence));
                descendants += toll.recorded;
                if descendants > DESCENDANTS_MAX {
                    return Err(Halt::Refused(LedgerError::TooManyDescendants { tokens: descendants }));
                }
            }
            Action::Reinstate { jti } => lineage::reinstated(shelf, &jti)?,
            Action::Cutoff { .. } | Action::Lift { .. } => {}
        }
        receipts.push(receipt);
    }
    Ok(receipts)
}

/// Records what is new in one request, whatever else it means.
pub(super) fn record<S: Shelf>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    Request { action, reason, actor }: Request,
) -> Result<Receipt, Halt<S::Error>> {
    let last = match &action {
        Action::Revoke { jti, .. } | Action::Reinstate { jti } => shelf.last(Subject::Token(jti)),
        Action::Cutoff { scope, .. } | Action::Lift { scope } => shelf.last(Subject::Scope(scope)),
    }
    .map_err(Halt::Storage)?;
    let action = match action {
        Action::Revoke { jti, exp } => {
            let registered = shelf.registered(&jti).map_err(Halt::Storage)?;
            Action::Revoke { exp: vouch(realm, now, exp, registered), jti }
        }
        other @ (Action::Reinstate { .. } | Action::Cutoff { .. } | Action::Lift { .. }) => other,
    };
    Ok(match decide(realm, now, action, last) {
        Decision::Held { sequence, exp } => Receipt { sequence, recorded: false, exp },
        Decision::NothingToUndo => Receipt { sequence: counters.head, recorded: false, exp: None },
        Decision::Record { statement, exp } => {
            let sequence = number(realm.id, counters, &statement, last).map_err(Halt::Refused)?;
            shelf.put(&Entry { sequence, at: now, statement, reason, actor }).map_err(Halt::Storage)?;
            Receipt { sequence, recorded: true, exp }
        }
    })
}

/// The entry that begins a new term; moves `counters` to it.
pub(super) fn resume(
    realm: RealmId,
    counters: &mut Counters,
    now: UnixTime,
    beyond: Sequence,
) -> Result<Entry, LedgerError> {
    let after = counters.head.max(beyond);
    let exhausted = LedgerError::SequenceExhausted { realm, after };
    let sequence = after.0.checked_add(RESUME_GAP).filter(|&number| number <= NUMBER_MAX).ok_or(exhausted.clone())?;
    let term = Term(counters.term.0.checked_add(1).ok_or(exhausted)?);
    counters.term = term;
    counters.head = Sequence(sequence);
    counters.stored += 1;
    Ok(Entry {
        sequence: Sequence(sequence),
        at: now,
        statement: Statement::Resume { term },
        reason: None,
        actor: super::registry::OURSELVES.into(),
    })
}

/// What one request does, given the entry that holds for its subject.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// This is new.
    Record { statement: Statement, exp: Option<UnixTime> },
    /// An entry says so already.
    Held { sequence: Sequence, exp: Option<UnixTime> },
    /// Neither revoked nor cut off.
    NothingToUndo,
}

fn decide(realm: &Realm, now: UnixTime, action: Action, last: Option<Last>) -> Decision {
    match action {
        Action::Revoke { jti, exp } => revoke(realm, now, jti, exp, last),
        Action::Reinstate { jti } => match last {
            // Remembered as long as the revoke would have been: a device that still holds the
            // revoke must hear of this.
            Some(Last { standing: Standing::Revoked { exp }, .. }) => {
                Decision::Record { statement: Statement::Reinstate { jti, exp }, exp: Some(exp) }
            }
            Some(Last { standing: Standing::Reinstated { exp }, sequence }) => {
                Decision::Held { sequence, exp: Some(exp) }
            }
            Some(Last { standing: Standing::Cut { .. } | Standing::Lifted, .. }) | None => Decision::NothingToUndo,
        },
        Action::Cutoff { scope, not_before } => {
            let not_before = storable(not_before);
            match last {
                // Never lowered: only a lift ends it.
                Some(Last { standing: Standing::Cut { not_before: live }, sequence }) if live >= not_before => {
                    Decision::Held { sequence, exp: None }
                }
                _ => Decision::Record { statement: Statement::Cutoff { scope, not_before }, exp: None },
            }
        }
        Action::Lift { scope } => match last {
            Some(Last { standing: Standing::Cut { .. }, .. }) => {
                Decision::Record { statement: Statement::Lift { scope }, exp: None }
            }
            Some(Last { standing: Standing::Lifted, sequence }) => Decision::Held { sequence, exp: None },
            Some(Last { standing: Standing::Revoked { .. } | Standing::Reinstated { .. }, .. }) | None => {
                Decision::NothingToUndo
            }
        },
    }
}

/// What the registry makes of an `exp`: of two the later wins, and a registered token needs no raising.
///
/// One that is expired for everybody vouches for nothing: it may be swept at any moment, and what an append
/// does shall not depend on when.
fn vouch(realm: &Realm, now: UnixTime, exp: Expiry, registered: Option<UnixTime>) -> Expiry {
    match registered {
        Some(known) if known > realm.horizon(now) => Expiry::Vouched(exp.time().max(known)),
        Some(_) | None => exp,
    }
}

fn revoke(realm: &Realm, now: UnixTime, jti: String, exp: Expiry, last: Option<Last>) -> Decision {
    let asked = storable(exp.time());
    let raised = match exp {
        Expiry::Claimed(_) => asked.max(storable(realm.latest_exp(now))),
        Expiry::Vouched(_) => asked,
    };
    let exp = match last {
        // Compared with what was asked, not with the raised value: that rises with the clock, and
        // a repeated request would be recorded again every second. A token that was revoked
        // earlier was issued earlier, so the earlier raised value covers it.
        Some(Last { standing: Standing::Revoked { exp: held }, sequence }) if held >= asked => {
            return Decision::Held { sequence, exp: Some(held) };
        }
        // Of two the later wins, so that within one `jti` later entries are never forgotten first.
        Some(Last { standing: Standing::Revoked { exp: held } | Standing::Reinstated { exp: held }, .. }) => {
            raised.max(held)
        }
        Some(Last { standing: Standing::Cut { .. } | Standing::Lifted, .. }) | None => raised,
    };
    Decision::Record { statement: Statement::Revoke { jti, exp }, exp: Some(exp) }
}

/// The number of a new entry; moves `counters` to it.
pub(super) fn number(
    realm: RealmId,
    counters: &mut Counters,
    statement: &Statement,
    last: Option<Last>,
) -> Result<Sequence, LedgerError> {
    if counters.stored >= BASE_ENTRIES_MAX {
        return Err(LedgerError::RealmFull { realm });
    }
    let replaces_live = matches!(last, Some(Last { standing: Standing::Cut { .. }, .. }));
    match statement {
        Statement::Cutoff { .. } if !replaces_live => {
            if counters.cutoffs >= CUTOFFS_MAX as u64 {
                return Err(LedgerError::CutoffsFull { realm });
            }
            counters.cutoffs += 1;
        }
        Statement::Lift { .. } => counters.cutoffs = counters.cutoffs.saturating_sub(1),
        Statement::Cutoff { .. }
        | Statement::Revoke { .. }
        | Statement::Reinstate { .. }
        | Statement::Resume { .. } => {}
    }
    let after = counters.head;
    if after.0 >= NUMBER_MAX {
        return Err(LedgerError::SequenceExhausted { realm, after });
    }
    counters.head = Sequence(after.0 + 1);
    counters.stored += 1;
    Ok(counters.head)
}

/// A time as ledgers store it. Nothing that a clock will see is changed by this.
pub(super) fn storable(time: UnixTime) -> UnixTime {
    time.min(UnixTime::from_secs(NUMBER_MAX))
}
