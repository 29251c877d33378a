//! All that a ledger keeps, as it moves from one to another, and what must be true of it.
//!
//! Pieces come in one order: a realm, then its entries, its registered tokens, its devices, the tokens and the refresh
//! tokens of its issuer, and its objects, then the next realm.
//! How they stand in a file is not decided here.

use std::collections::BTreeSet;

use revocast_core::{DeviceId, Fingerprint, RealmId, Sequence, Term, UnixTime};

use super::issuance::{Device, IssuedToken, RefreshToken};
use super::registry::Coverage;
use super::rules::Counters;
use super::{Cause, Entry, LedgerError, Object, Realm, Scope, Statement};

/// Rows in one piece: enough that a piece costs nothing, few enough to hold.
pub(super) const PIECE_ROWS: usize = 2_000;

/// Findings that are told in words; the rest are only counted.
const FINDINGS_MAX: usize = 100;

/// A piece of all that a ledger keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
// There are few realms, and each piece is moved once.
#[allow(clippy::large_enum_variant)]
pub enum Piece {
    /// A realm; what follows is its own, until the next.
    Realm(RealmRecord),
    /// Entries, by sequence.
    Entries(Vec<Entry>),
    /// Registered tokens, by fingerprint and name.
    Issued(Vec<Enrolled>),
    /// Devices, by name.
    Devices(Vec<Device>),
    /// Tokens that our issuer handed out, by `jti`.
    Tokens(Vec<IssuedToken>),
    /// Refresh tokens, by hash.
    Refreshes(Vec<RefreshToken>),
    /// Published objects, by address.
    Objects(Vec<Object>),
}

/// A realm, and what its row counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmRecord {
    /// Its parameters.
    pub realm: Realm,
    /// Its term.
    pub term: Term,
    /// The highest sequence ever assigned.
    pub head: Sequence,
    /// Entries kept.
    pub stored: u64,
    /// Scopes with a live cutoff.
    pub cutoffs: u64,
    /// Devices enrolled.
    pub devices: u64,
    /// Tokens kept that our issuer handed out.
    pub tokens: u64,
    /// Refresh tokens kept.
    pub refreshes: u64,
    /// How much of its tokens the registry knows.
    pub coverage: Coverage,
}

impl RealmRecord {
    pub(super) const fn of(realm: Realm, counters: Counters, coverage: Coverage) -> Self {
        let Counters { term, head, stored, cutoffs, devices, tokens, refreshes } = counters;
        Self { realm, term, head, stored, cutoffs, devices, tokens, refreshes, coverage }
    }

    pub(super) const fn counters(&self) -> Counters {
        let Self { term, head, stored, cutoffs, devices, tokens, refreshes, .. } = *self;
        Counters { term, head, stored, cutoffs, devices, tokens, refreshes }
    }
}

/// A registered token as it is kept: its `jti` is not, only what names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// The first eight bytes of SHA-256 over its `jti`, little-endian.
    pub name: u64,
    /// When it was issued.
    pub iat: UnixTime,
    /// When it expires.
    pub exp: UnixTime,
    /// Whom it speaks of, if its issuer told.
    pub sub: Option<String>,
}

/// Takes a dump piece by piece; returns whether it wants more.
pub type Sink = Box<dyn FnMut(Piece) -> bool + Send>;

/// Gives a dump piece by piece, or says why it cannot be read on.
pub type Source = Box<dyn Iterator<Item = Result<Piece, Cause>> + Send>;

/// What tidying a ledger brought, in bytes; `None` where its engine does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Size before.
    pub before: Option<u64>,
    /// Size after.
    pub after: Option<u64>,
}

/// What was found in a dump, and what is wrong with it.
///
/// The rules of a ledger, checked from outside: numbers rise and are at most the head, what is counted is there, nothing
/// stands twice.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Realms seen.
    pub realms: u64,
    /// Entries seen.
    pub entries: u64,
    /// Registered tokens seen.
    pub issued: u64,
    /// Devices seen.
    pub devices: u64,
    /// Tokens of our issuer seen.
    pub tokens: u64,
    /// Refresh tokens seen.
    pub refreshes: u64,
    /// Objects seen.
    pub objects: u64,
    /// Things that are wrong.
    pub wrong: u64,
    /// The first of them, in words.
    pub findings: Vec<String>,
    issuers: BTreeSet<String>,
    current: Option<Current>,
}

/// The realm whose pieces come.
#[derive(Debug)]
struct Current {
    record: RealmRecord,
    last: Sequence,
    term: Term,
    stored: u64,
    cut: BTreeSet<Scope>,
    registered: u64,
    token: Option<(Fingerprint, u64)>,
    devices: u64,
    device: Option<DeviceId>,
    tokens: u64,
    jti: Option<String>,
    refreshes: u64,
    hash: Option<[u8; 32]>,
    address: Option<String>,
}

impl Inspection {
    /// Looks at the next piece; returns whether all of it is as it should be.
    pub fn take(&mut self, piece: &Piece) -> bool {
        let before = self.wrong;
        match piece {
            Piece::Realm(record) => self.realm(record),
            Piece::Entries(entries) => {
                self.entries += self.each(entries, Current::entry);
            }
            Piece::Issued(issued) => {
                self.issued += self.each(issued, Current::issued);
            }
            Piece::Devices(devices) => {
                self.devices += self.each(devices, Current::device);
            }
            Piece::Tokens(tokens) => {
                self.tokens += self.each(tokens, Current::token);
            }
            Piece::Refreshes(refreshes) => {
                self.refreshes += self.each(refreshes, Current::refresh);
            }
            Piece::Objects(objects) => {
                self.objects += self.each(objects, Current::object);
            }
        }
        before == self.wrong
    }

    /// Everything has come; returns whether all of it was as it should be.
    pub fn finish(&mut self) -> bool {
        self.end_realm();
        self.wrong == 0
    }

    /// Notes something that is wrong.
    pub fn found(&mut self, finding: String) {
        self.wrong += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn realm(&mut self, record: &RealmRecord) {
        let earlier = self.current.as_ref().map(|current| current.record.realm.id);
        self.end_realm();
        self.realms += 1;
        let id = record.realm.id;
        if earlier.is_some_and(|earlier| earlier >= id) {
            self.found(format!("realm {id} stands twice, or after one that comes later"));
        }
        if !self.issuers.insert(record.realm.issuer.clone()) {
            self.found(format!("realm {id} has an issuer that another realm has"));
        }
        self.current = Some(Current {
            record: record.clone(),
            last: Sequence(0),
            term: Term(0),
            stored: 0,
            cut: BTreeSet::new(),
            registered: 0,
            token: None,
            devices: 0,
            device: None,
            tokens: 0,
            jti: None,
            refreshes: 0,
            hash: None,
            address: None,
        });
    }

    /// Looks at rows of the realm whose pieces come; returns how many they are.
    fn each<T>(&mut self, rows: &[T], look: impl Fn(&mut Current, &T, &mut dyn FnMut(String))) -> u64 {
        let Some(mut current) = self.current.take() else {
            self.found("something stands before the first realm".into());
            return 0;
        };
        for row in rows {
            look(&mut current, row, &mut |finding| self.found(finding));
        }
        self.current = Some(current);
        rows.len() as u64
    }

    fn end_realm(&mut self) {
        let Some(current) = self.current.take() else { return };
        let Current { record, stored, cut, registered, devices, tokens, refreshes, .. } = current;
        let id = record.realm.id;
        let counted = [
            ("entries", record.stored, stored),
            ("live cutoffs", record.cutoffs, cut.len() as u64),
            ("registered tokens", record.coverage.registered, registered),
            ("devices", record.devices, devices),
            ("tokens of its issuer", record.tokens, tokens),
            ("refresh tokens", record.refreshes, refreshes),
        ];
        for (what, told, there) in counted {
            if told != there {
                self.found(format!("realm {id} counts {told} {what}, and {there} are there"));
            }
        }
    }
}

impl Current {
    fn id(&self) -> RealmId {
        self.record.realm.id
    }

    fn entry(&mut self, entry: &Entry, tell: &mut dyn FnMut(String)) {
        let (id, sequence) = (self.id(), entry.sequence);
        if sequence <= self.last {
            tell(format!("entry {sequence} of realm {id} stands after entry {}", self.last));
        }
        if sequence > self.record.head {
            tell(format!("entry {sequence} of realm {id} is above its head {}", self.record.head));
        }
        match &entry.statement {
            Statement::Cutoff { scope, .. } => {
                self.cut.insert(scope.clone());
            }
            Statement::Lift { scope } => {
                self.cut.remove(scope);
            }
            Statement::Resume { term } => {
                if *term <= self.term || *term > self.record.term {
                    tell(format!("entry {sequence} of realm {id} begins term {term}, which cannot be"));
                }
                self.term = *term;
            }
            Statement::Revoke { .. } | Statement::Reinstate { .. } => {}
        }
        self.last = sequence;
        self.stored += 1;
    }

    fn issued(&mut self, issued: &Enrolled, tell: &mut dyn FnMut(String)) {
        let (id, place) = (self.id(), (issued.fingerprint, issued.name));
        let width = self.record.realm.fingerprinter.width();
        if Fingerprint::from_bits(issued.fingerprint.bits(), width).is_none() {
            tell(format!("a token of realm {id} has a fingerprint that is longer than {} bits", width.bits()));
        }
        // Names are ordered as databases order them.
        let order = |(fingerprint, name): (Fingerprint, u64)| (fingerprint, name.cast_signed());
        if self.token.is_some_and(|token| order(token) >= order(place)) {
            tell(format!("a token of realm {id} stands twice, or after one that comes later"));
        }
        if issued.exp < issued.iat {
            tell(format!("a token of realm {id} expires before it was issued"));
        }
        self.token = Some(place);
        self.registered += 1;
    }

    fn device(&mut self, device: &Device, tell: &mut dyn FnMut(String)) {
        let Device { id, holds, held_until, barred, .. } = device;
        if self.device.is_some_and(|last| last >= *id) {
            tell(format!("device {id} of realm {} stands twice, or after one that comes later", self.id()));
        }
        if holds.is_some() != held_until.is_some() || *barred && holds.is_none() {
            tell(format!("device {id} of realm {} holds half a token", self.id()));
        }
        self.device = Some(*id);
        self.devices += 1;
    }

    fn token(&mut self, token: &IssuedToken, tell: &mut dyn FnMut(String)) {
        let (id, jti) = (self.id(), &token.jti);
        if self.jti.as_ref().is_some_and(|last| last >= jti) {
            tell(format!("issued token {jti:?} of realm {id} stands twice, or after one that comes later"));
        }
        if token.exp < token.iat || token.kept_until < token.exp {
            tell(format!("issued token {jti:?} of realm {id} is kept for less long than it lives"));
        }
        if token.device.is_some_and(|device| device.as_str() != token.family) {
            tell(format!("issued token {jti:?} of realm {id} is in the family of another device"));
        }
        self.jti = Some(jti.clone());
        self.tokens += 1;
    }

    fn refresh(&mut self, refresh: &RefreshToken, tell: &mut dyn FnMut(String)) {
        let (id, jti) = (self.id(), &refresh.jti);
        if self.hash.is_some_and(|last| last >= refresh.hash) {
            tell(format!("the refresh token of {jti:?} of realm {id} stands twice, or after one that comes later"));
        }
        if refresh.device.is_some_and(|device| device.as_str() != refresh.family) {
            tell(format!("the refresh token of {jti:?} of realm {id} is in the family of another device"));
        }
        self.hash = Some(refresh.hash);
        self.refreshes += 1;
    }

    fn object(&mut self, object: &Object, tell: &mut dyn FnMut(String)) {
        if self.address.as_ref().is_some_and(|address| *address >= object.address) {
            tell(format!(
                "object {} of realm {} stands twice, or after one that comes later",
                object.address,
                self.id()
            ));
        }
        self.address = Some(object.address.clone());
    }
}

/// A source whose pieces are looked at before they are kept: the first that is wrong ends it.
pub(super) struct Checked {
    source: Source,
    inspection: Inspection,
    is_over: bool,
}

impl Checked {
    pub(super) fn new(source: Source) -> Self {
        Self { source, inspection: Inspection::default(), is_over: false }
    }

    fn finding(&self) -> LedgerError {
        LedgerError::Damaged { what: self.inspection.findings.first().cloned().unwrap_or_default() }
    }
}

impl Iterator for Checked {
    type Item = Result<Piece, LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        match self.source.next() {
            Some(Ok(piece)) if self.inspection.take(&piece) => Some(Ok(piece)),
            other => {
                self.is_over = true;
                match other {
                    Some(Err(cause)) => Some(Err(LedgerError::Unreadable(cause))),
                    None if self.inspection.finish() => None,
                    Some(Ok(_)) | None => Some(Err(self.finding())),
                }
            }
        }
    }
}
