//! The shelf of a backend that is a network away: what the rules will ask is fetched beforehand, they run in memory,
//! and what came of it is written at once.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use revocast_core::{Fingerprinter, Jti, UnixTime};

use super::Entry;
use super::columns::{Columns, standing};
use super::registry::{Issued, Key, Register};
use super::rules::{Last, Shelf, Subject};

/// A subject as rows name it.
pub(super) type Name = (u8, String);

pub(super) fn name_of(subject: Subject<'_>) -> Name {
    match subject {
        Subject::Token(jti) => (super::columns::SUBJECT_JTI, jti.to_owned()),
        Subject::Scope(scope) => (scope.kind(), scope.text().to_owned()),
    }
}

/// What stands in the rows of one realm, as far as somebody will ask for it.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub(super) lasts: HashMap<Name, Last>,
    pub(super) exps: BTreeMap<Key, UnixTime>,
}

/// What a call changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) entries: Vec<Entry>,
    pub(super) enrolled: BTreeMap<Key, Issued>,
    /// Of tokens that were registered before.
    pub(super) prolonged: BTreeMap<Key, UnixTime>,
    lasts: HashMap<Name, Last>,
}

impl Changes {
    fn extend(&mut self, later: Self) {
        self.entries.extend(later.entries);
        self.enrolled.extend(later.enrolled);
        self.prolonged.extend(later.prolonged);
        self.lasts.extend(later.lasts);
    }

    fn exp_of(&self, key: Key) -> Option<UnixTime> {
        self.prolonged.get(&key).copied().or_else(|| self.enrolled.get(&key).map(|issued| issued.exp))
    }
}

/// One realm inside one transaction.
#[derive(Debug)]
pub(super) struct Draft {
    fingerprinter: Fingerprinter,
    fetched: Fetched,
    kept: Changes,
    /// Of the call under way.
    call: Changes,
}

impl Draft {
    pub(super) fn new(fingerprinter: Fingerprinter, fetched: Fetched) -> Self {
        Self { fingerprinter, fetched, kept: Changes::default(), call: Changes::default() }
    }

    /// The call under way is done.
    pub(super) fn keep(&mut self) {
        let call = std::mem::take(&mut self.call);
        self.kept.extend(call);
    }

    /// The call under way leaves no trace.
    pub(super) fn undo(&mut self) {
        self.call = Changes::default();
    }

    /// All that was kept.
    pub(super) fn changes(self) -> Changes {
        self.kept
    }

    fn exp_of(&self, key: Key) -> Option<UnixTime> {
        let since = self.call.exp_of(key).or_else(|| self.kept.exp_of(key));
        since.or_else(|| self.fetched.exps.get(&key).copied())
    }
}

impl Shelf for Draft {
    type Error = Infallible;

    fn last(&mut self, subject: Subject<'_>) -> Result<Option<Last>, Infallible> {
        let name = name_of(subject);
        let since = self.call.lasts.get(&name).or_else(|| self.kept.lasts.get(&name));
        Ok(since.or_else(|| self.fetched.lasts.get(&name)).copied())
    }

    fn registered(&mut self, jti: &str) -> Result<Option<UnixTime>, Infallible> {
        // What is no `jti` was refused before.
        let key = Jti::new(jti).ok().map(|jti| Key::of(&self.fingerprinter, jti));
        Ok(key.and_then(|key| self.exp_of(key)))
    }

    fn put(&mut self, entry: &Entry) -> Result<(), Infallible> {
        let Columns { kind, value, .. } = Columns::of(&entry.statement);
        if let (Some(subject), Some(standing)) = (Subject::of(&entry.statement), standing(kind, value)) {
            self.call.lasts.insert(name_of(subject), Last { sequence: entry.sequence, standing });
        }
        self.call.entries.push(entry.clone());
        Ok(())
    }
}

impl Register for Draft {
    fn enroll(&mut self, key: Key, issued: &Issued) -> Result<Option<UnixTime>, Infallible> {
        let held = self.exp_of(key);
        if held.is_none() {
            self.call.enrolled.insert(key, issued.clone());
        }
        Ok(held)
    }

    fn prolong(&mut self, key: Key, exp: UnixTime) -> Result<(), Infallible> {
        match self.call.enrolled.get_mut(&key) {
            Some(issued) => issued.exp = exp,
            None => {
                self.call.prolonged.insert(key, exp);
            }
        }
        Ok(())
    }
}
