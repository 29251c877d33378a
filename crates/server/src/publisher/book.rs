//! A realm's state as of one sequence, and what has been touched since the last delta.
//!
//! The ledger speaks of `jti`s; what is published speaks of fingerprints. The book stands between: it
//! keeps the last statement about every `jti`, and counts how many live ones share a fingerprint, so
//! that a reinstate is published only when none is left (design rule 5).

mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};

use revocast_core::limits::CUTOFFS_MAX;
use revocast_core::{Cutoff, Fingerprint, Fingerprinter, Jti, Scope, ScopeKind, Sequence, Term, UnixTime};

use self::tokens::{Key, State, Tokens};
use crate::ledger::{self, Entry, Statement};

/// Statements that are sorted and merged at a time while a history is read.
const PILE_MAX: usize = 1 << 20;

/// One realm's state as of a sequence.
#[derive(Clone, Debug)]
pub struct Book {
    fingerprinter: Fingerprinter,
    sequence: Sequence,
    term: Term,
    tokens: Tokens,
    /// Names `jti`s in 8 bytes instead of up to 256, under a key that is drawn anew each time and never leaves the
    /// process. Two tokens are taken for one only if fingerprint and name are both the same, which nobody can bring about.
    names: RandomState,
    cutoffs: BTreeMap<Scope, UnixTime>,
    touched: BTreeSet<Fingerprint>,
    touched_scopes: BTreeSet<Scope>,
}

/// Statements about tokens that are taken in together.
#[derive(Debug, Default)]
pub(super) struct Pile(Vec<(Key, State)>);

/// What was touched since the last delta, with its state now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetChange {
    /// Revoked now, sorted.
    pub revoked: Vec<Fingerprint>,
    /// Touched and not revoked now, sorted.
    pub reinstated: Vec<Fingerprint>,
    /// Cutoffs in force now, sorted.
    pub cutoffs: Vec<Cutoff>,
    /// Scopes touched and without a cutoff now, sorted.
    pub lifts: Vec<Scope>,
}

/// Tokens that are expired for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgettable {
    /// All of them.
    pub tokens: usize,
    /// Of these, the revoked ones.
    pub revoked: usize,
}

impl Book {
    /// An empty history.
    #[must_use]
    pub fn new(fingerprinter: Fingerprinter, term: Term) -> Self {
        Self {
            fingerprinter,
            sequence: Sequence(0),
            term,
            tokens: Tokens::default(),
            names: RandomState::new(),
            cutoffs: BTreeMap::new(),
            touched: BTreeSet::new(),
            touched_scopes: BTreeSet::new(),
        }
    }

    /// Takes in the next entry. Entries at or below [`Book::sequence`] are known already.
    pub fn apply(&mut self, entry: &Entry) {
        if entry.sequence <= self.sequence {
            return;
        }
        self.sequence = entry.sequence;
        match &entry.statement {
            Statement::Revoke { jti, exp } => self.set_token(jti, *exp, true),
            Statement::Reinstate { jti, exp } => self.set_token(jti, *exp, false),
            Statement::Cutoff { scope, not_before } => {
                let scope = self.scope(scope);
                self.cutoffs.insert(scope, *not_before);
                self.touched_scopes.insert(scope);
            }
            Statement::Lift { scope } => {
                let scope = self.scope(scope);
                self.cutoffs.remove(&scope);
                self.touched_scopes.insert(scope);
            }
            Statement::Resume { term } => self.term = *term,
        }
    }

    fn set_token(&mut self, jti: &str, exp: UnixTime, revoked: bool) {
        let Some(key) = self.key(jti) else { return };
        self.tokens.set(key, State::new(exp, revoked));
        self.touched.insert(key.fingerprint);
    }

    /// `None` for what is no `jti`: the ledger admits none, and nobody accepts such a token.
    fn key(&self, jti: &str) -> Option<Key> {
        let valid = Jti::new(jti).ok()?;
        Some(Key { fingerprint: self.fingerprinter.fingerprint(valid), name: self.names.hash_one(jti) })
    }

    /// Puts the next entry of a history that was published before on a pile, and takes the pile in when it is large.
    ///
    /// Until [`Book::absorb`] has taken in the rest, the book does not know what lies on the pile.
    pub(super) fn pile(&mut self, entry: &Entry, pile: &mut Pile) {
        let (jti, exp, revoked) = match &entry.statement {
            Statement::Revoke { jti, exp } => (jti, *exp, true),
            Statement::Reinstate { jti, exp } => (jti, *exp, false),
            Statement::Cutoff { .. } | Statement::Lift { .. } | Statement::Resume { .. } => return self.apply(entry),
        };
        if entry.sequence <= self.sequence {
            return;
        }
        self.sequence = entry.sequence;
        if let Some(key) = self.key(jti) {
            pile.0.push((key, State::new(exp, revoked)));
        }
        if pile.0.len() >= PILE_MAX {
            self.absorb(std::mem::take(pile));
        }
    }

    /// Takes in what lies on a pile. Nothing is touched by it.
    pub(super) fn absorb(&mut self, pile: Pile) {
        self.tokens.absorb(pile.0);
    }

    /// Forgets tokens with `exp` up to `horizon`; returns how many revocations that ended.
    ///
    /// # Complexity
    ///
    /// Linear in the number of tokens: done when an epoch is built.
    pub fn forget(&mut self, horizon: UnixTime) -> usize {
        self.tokens.forget(horizon)
    }

    /// How many tokens could be forgotten at `horizon`.
    ///
    /// # Complexity
    ///
    /// Linear in the number of tokens.
    #[must_use]
    pub fn forgettable(&self, horizon: UnixTime) -> Forgettable {
        let mut forgettable = Forgettable::default();
        for state in self.tokens.forgettable(horizon) {
            forgettable.tokens += 1;
            forgettable.revoked += usize::from(state.is_revoked());
        }
        forgettable
    }

    /// What was touched since [`Book::settle`], with its state as of [`Book::sequence`].
    #[must_use]
    pub fn net_change(&self) -> NetChange {
        let mut change = NetChange::default();
        for &fingerprint in &self.touched {
            let list = if self.is_revoked(fingerprint) { &mut change.revoked } else { &mut change.reinstated };
            list.push(fingerprint);
        }
        for &scope in &self.touched_scopes {
            match self.cutoffs.get(&scope) {
                Some(&not_before) => change.cutoffs.push(Cutoff { scope, not_before }),
                None => change.lifts.push(scope),
            }
        }
        change
    }

    /// Everything touched so far is in a delta or a base.
    pub fn settle(&mut self) {
        self.touched.clear();
        self.touched_scopes.clear();
    }

    /// How many statements [`Book::net_change`] would make: keys and scopes.
    #[must_use]
    pub fn touched(&self) -> (usize, usize) {
        (self.touched.len(), self.touched_scopes.len())
    }

    /// The state is that of this sequence.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The reign the history is in.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Whether any live `jti` has this fingerprint.
    #[must_use]
    pub fn is_revoked(&self, fingerprint: Fingerprint) -> bool {
        self.tokens.is_revoked(fingerprint)
    }

    /// The cutoff in force in one scope.
    #[must_use]
    pub fn cutoff(&self, scope: &Scope) -> Option<UnixTime> {
        self.cutoffs.get(scope).copied()
    }

    /// The fingerprints of all live revocations, sorted.
    #[must_use]
    pub fn revoked(&self) -> Vec<Fingerprint> {
        self.tokens.revoked()
    }

    /// How many there are.
    #[must_use]
    pub const fn revoked_len(&self) -> usize {
        self.tokens.live()
    }

    /// The cutoffs in force, sorted by scope; the ledger keeps them within the limit.
    #[must_use]
    pub fn cutoffs(&self) -> Vec<Cutoff> {
        self.cutoffs.iter().take(CUTOFFS_MAX).map(|(&scope, &not_before)| Cutoff { scope, not_before }).collect()
    }

    fn scope(&self, scope: &ledger::Scope) -> Scope {
        let kind = match scope {
            ledger::Scope::Realm => ScopeKind::Realm,
            ledger::Scope::Sub(_) => ScopeKind::Subject,
            ledger::Scope::Kid(_) => ScopeKind::KeyId,
            ledger::Scope::Client(_) => ScopeKind::Client,
        };
        Scope::new(&self.fingerprinter, kind, scope.text())
    }
}
