//! A realm's state as of one sequence, and what has been touched since the last delta.
//!
//! The ledger speaks of `jti`s; what is published speaks of fingerprints. The book stands between: it
//! keeps the last statement about every `jti`, and counts how many live ones share a fingerprint, so
//! that a reinstate is published only when none is left (design rule 5).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use revocast_core::limits::CUTOFFS_MAX;
use revocast_core::{Cutoff, Digest, Fingerprint, Fingerprinter, Jti, Scope, ScopeKind, Sequence, Term, UnixTime};

use crate::ledger::{self, Entry, Statement};

/// Names a `jti` in 16 bytes instead of up to 256; two that collide cannot be found.
type Name = [u8; 16];

/// The last statement about one `jti`.
#[derive(Clone, Copy, Debug)]
struct Token {
    fingerprint: Fingerprint,
    exp: UnixTime,
    revoked: bool,
}

/// One realm's state as of a sequence.
#[derive(Clone, Debug)]
pub struct Book {
    fingerprinter: Fingerprinter,
    sequence: Sequence,
    term: Term,
    tokens: HashMap<Name, Token>,
    /// How many live `jti`s share a fingerprint. Sorted, so that a base needs no sorting.
    live: BTreeMap<Fingerprint, u32>,
    cutoffs: BTreeMap<Scope, UnixTime>,
    touched: BTreeSet<Fingerprint>,
    touched_scopes: BTreeSet<Scope>,
}

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
            tokens: HashMap::new(),
            live: BTreeMap::new(),
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
        // The ledger admits valid jtis only; one that is not names no token anybody accepts.
        let Ok(valid) = Jti::new(jti) else { return };
        let fingerprint = self.fingerprinter.fingerprint(valid);
        let before = self.tokens.insert(name(jti), Token { fingerprint, exp, revoked }).is_some_and(|t| t.revoked);
        match (before, revoked) {
            (false, true) => *self.live.entry(fingerprint).or_default() += 1,
            (true, false) => self.release(fingerprint),
            (true, true) | (false, false) => {}
        }
        self.touched.insert(fingerprint);
    }

    fn release(&mut self, fingerprint: Fingerprint) {
        if let Some(count) = self.live.get_mut(&fingerprint) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&fingerprint);
            }
        }
    }

    /// Forgets tokens with `exp` up to `horizon`; returns how many revocations that ended.
    ///
    /// # Complexity
    ///
    /// Linear in the number of tokens: done when an epoch is built.
    pub fn forget(&mut self, horizon: UnixTime) -> usize {
        let mut ended = Vec::new();
        self.tokens.retain(|_, token| {
            let keep = token.exp > horizon;
            if !keep && token.revoked {
                ended.push(token.fingerprint);
            }
            keep
        });
        for fingerprint in &ended {
            self.release(*fingerprint);
        }
        ended.len()
    }

    /// How many tokens could be forgotten at `horizon`.
    ///
    /// # Complexity
    ///
    /// Linear in the number of tokens.
    #[must_use]
    pub fn forgettable(&self, horizon: UnixTime) -> Forgettable {
        let expired = self.tokens.values().filter(|token| token.exp <= horizon);
        expired.fold(Forgettable::default(), |Forgettable { tokens, revoked }, token| Forgettable {
            tokens: tokens + 1,
            revoked: revoked + usize::from(token.revoked),
        })
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
        self.live.contains_key(&fingerprint)
    }

    /// The cutoff in force in one scope.
    #[must_use]
    pub fn cutoff(&self, scope: &Scope) -> Option<UnixTime> {
        self.cutoffs.get(scope).copied()
    }

    /// The fingerprints of all live revocations, sorted.
    #[must_use]
    pub fn revoked(&self) -> Vec<Fingerprint> {
        self.live.keys().copied().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn revoked_len(&self) -> usize {
        self.live.len()
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

fn name(jti: &str) -> Name {
    let mut name = Name::default();
    for (to, from) in name.iter_mut().zip(Digest::of(jti.as_bytes()).0) {
        *to = from;
    }
    name
}
