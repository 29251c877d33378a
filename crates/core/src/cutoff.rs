//! Cutoffs: every token in a scope that was issued before a time is revoked.
//!
//! They are exact and few, so a sorted list serves. A cutoff names its scope by a keyed hash: a
//! device need not learn whom it speaks of, and every statement has one size.

use alloc::vec::Vec;

use crate::clock::UnixTime;
use crate::position::Sequence;
use crate::token::{Claims, Fingerprinter};

/// What a cutoff speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ScopeKind {
    /// Every token of the realm.
    Realm = 0,
    /// Tokens with one `sub`.
    Subject = 1,
    /// Tokens signed with one key.
    KeyId = 2,
    /// Tokens issued to one client.
    Client = 3,
}

impl ScopeKind {
    /// Reads the number used on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Realm),
            1 => Some(Self::Subject),
            2 => Some(Self::KeyId),
            3 => Some(Self::Client),
            _ => None,
        }
    }

    /// The name used in logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Realm => "realm",
            Self::Subject => "subject",
            Self::KeyId => "key-id",
            Self::Client => "client",
        }
    }
}

/// One scope, by kind and keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    // Field order is comparison order, and the order on the wire.
    /// What it speaks of.
    pub kind: ScopeKind,
    /// [`Fingerprinter::scope`] of the text; 0 for the whole realm.
    pub name: u64,
}

impl Scope {
    /// Every token of the realm.
    pub const REALM: Self = Self { kind: ScopeKind::Realm, name: 0 };

    /// The scope of `kind` that `text` names; the text is ignored for [`ScopeKind::Realm`].
    #[must_use]
    pub fn new(fingerprinter: &Fingerprinter, kind: ScopeKind, text: &str) -> Self {
        match kind {
            ScopeKind::Realm => Self::REALM,
            ScopeKind::Subject | ScopeKind::KeyId | ScopeKind::Client => {
                Self { kind, name: fingerprinter.scope(kind as u8, text) }
            }
        }
    }
}

/// Every token in `scope` whose `iat` lies before `not_before` is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cutoff {
    /// Which tokens.
    pub scope: Scope,
    /// Issued before this whole second. A cutoff "now" has the next one (design rule 16).
    pub not_before: UnixTime,
}

/// The latest statement about one scope since the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedCutoff {
    /// Which tokens.
    pub scope: Scope,
    /// The cutoff in force as of `stamp`; `None` if it was lifted.
    pub not_before: Option<UnixTime>,
    /// The `to` of the delta that said so.
    pub stamp: Sequence,
}

/// The cutoffs of a base and what came since, each scope once, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cutoffs {
    base: Vec<Cutoff>,
    recent: Vec<StampedCutoff>,
    live: Vec<Cutoff>,
}

impl Cutoffs {
    /// Replaces the base's cutoffs (sorted by scope, each scope once) and forgets what they cover.
    pub fn rebase(&mut self, base: Vec<Cutoff>, sequence: Sequence) {
        self.base = base;
        self.recent.retain(|statement| statement.stamp > sequence);
        self.settle();
    }

    /// Takes in a statement; the one with the higher stamp wins. At equal stamps (two deltas for
    /// one range: an equivocation) the stricter one does.
    ///
    /// # Complexity
    ///
    /// Linear in the number of cutoffs.
    pub fn record(&mut self, statement: StampedCutoff) {
        match self.recent.binary_search_by_key(&statement.scope, |held| held.scope) {
            Ok(at) => {
                if let Some(held) = self.recent.get_mut(at)
                    && (statement.stamp, statement.not_before) > (held.stamp, held.not_before)
                {
                    *held = statement;
                }
            }
            Err(at) => self.recent.insert(at, statement),
        }
        self.settle();
    }

    /// Drops what only softens: lifts. The cutoffs they undid are in force again.
    pub fn drop_lifts(&mut self) {
        self.recent.retain(|statement| statement.not_before.is_some());
        self.settle();
    }

    /// Bytes they take.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let cutoffs = (self.base.capacity() + self.live.capacity()) * size_of::<Cutoff>();
        (cutoffs + self.recent.capacity() * size_of::<StampedCutoff>()) as u64
    }

    /// How many statements are held, base and recent.
    #[must_use]
    pub fn statements(&self) -> usize {
        self.base.len() + self.recent.len()
    }

    /// What came since the base, sorted by scope.
    #[must_use]
    pub fn recent(&self) -> &[StampedCutoff] {
        &self.recent
    }

    /// The cutoffs in force, sorted by scope.
    #[must_use]
    pub fn live(&self) -> &[Cutoff] {
        &self.live
    }

    /// The first cutoff that revokes a token with these claims.
    ///
    /// # Complexity
    ///
    /// Nothing while no cutoff is in force; otherwise at most three SHA-256 of short texts and as
    /// many binary searches.
    #[inline]
    #[must_use]
    pub fn matching(&self, fingerprinter: &Fingerprinter, claims: &Claims<'_>) -> Option<Cutoff> {
        if self.live.is_empty() { None } else { self.search(fingerprinter, claims) }
    }

    fn search(&self, fingerprinter: &Fingerprinter, claims: &Claims<'_>) -> Option<Cutoff> {
        let named = [
            Some((ScopeKind::Realm, "")),
            claims.sub.map(|text| (ScopeKind::Subject, text)),
            claims.kid.map(|text| (ScopeKind::KeyId, text)),
            claims.client.map(|text| (ScopeKind::Client, text)),
        ];
        named.into_iter().flatten().find_map(|(kind, text)| {
            let cutoff = self.in_scope(Scope::new(fingerprinter, kind, text))?;
            // A token that does not say when it was issued counts as issued before.
            claims.iat.is_none_or(|iat| iat < cutoff.not_before).then_some(cutoff)
        })
    }

    /// The cutoff in force in one scope.
    pub(crate) fn in_scope(&self, scope: Scope) -> Option<Cutoff> {
        let at = self.live.binary_search_by_key(&scope, |cutoff| cutoff.scope).ok()?;
        self.live.get(at).copied()
    }

    /// Computes what is in force: the recent statement where there is one, the base's elsewhere.
    fn settle(&mut self) {
        let spoken = |scope: &Scope| self.recent.binary_search_by_key(scope, |held| held.scope).is_ok();
        let mut live: Vec<Cutoff> = self.base.iter().filter(|cutoff| !spoken(&cutoff.scope)).copied().collect();
        live.extend(
            self.recent.iter().filter_map(|held| Some(Cutoff { scope: held.scope, not_before: held.not_before? })),
        );
        live.sort_unstable();
        self.live = live;
    }
}
