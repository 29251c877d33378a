//! How entries and registered tokens stand in the columns of a database, the same in each of them, and the
//! checksum that every row carries.
//!
//! A checksum is over what the row means, the realm's name included, and not over how a database stores it:
//! a row that was damaged, or that stands in another place than where it was put, does not match.

use std::mem::size_of;

use revocast_core::{DeviceId, DeviceIdError, Fingerprint, RealmId, Term, UnixTime, Width};
use xxhash_rust::xxh3::xxh3_64;

use super::issuance::{Device, IssuedToken, RefreshToken};
use super::registry::{Coverage, Key};
use super::rules::{Counters, Standing};
use super::{Entry, Object, Realm, Scope, Statement};

pub(super) const KIND_REVOKE: u8 = 1;
pub(super) const KIND_REINSTATE: u8 = 2;
pub(super) const KIND_CUTOFF: u8 = 3;
pub(super) const KIND_LIFT: u8 = 4;
pub(super) const KIND_RESUME: u8 = 5;

/// Scopes use the numbers of [`Scope::kind`], all below this one.
pub(super) const SUBJECT_JTI: u8 = 4;
pub(super) const SUBJECT_NONE: u8 = 5;

/// A statement, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns<'a> {
    pub(super) kind: u8,
    pub(super) subject_kind: u8,
    pub(super) subject: &'a str,
    /// `exp` of a revoke or reinstate, `not_before` of a cutoff, term of a resume.
    pub(super) value: u64,
}

impl<'a> Columns<'a> {
    pub(super) fn of(statement: &'a Statement) -> Self {
        let (kind, subject_kind, subject, value) = match statement {
            Statement::Revoke { jti, exp } => (KIND_REVOKE, SUBJECT_JTI, jti.as_str(), exp.secs()),
            Statement::Reinstate { jti, exp } => (KIND_REINSTATE, SUBJECT_JTI, jti.as_str(), exp.secs()),
            Statement::Cutoff { scope, not_before } => (KIND_CUTOFF, scope.kind(), scope.text(), not_before.secs()),
            Statement::Lift { scope } => (KIND_LIFT, scope.kind(), scope.text(), 0),
            Statement::Resume { term } => (KIND_RESUME, SUBJECT_NONE, "", u64::from(term.0)),
        };
        Self { kind, subject_kind, subject, value }
    }
}

/// A statement, put together; `None` if these columns make none.
pub(super) fn statement(kind: u8, subject_kind: u8, subject: String, value: u64) -> Option<Statement> {
    let scope = |subject| match subject_kind {
        0 => Some(Scope::Realm),
        1 => Some(Scope::Sub(subject)),
        2 => Some(Scope::Kid(subject)),
        3 => Some(Scope::Client(subject)),
        _ => None,
    };
    let time = UnixTime::from_secs(value);
    match (kind, subject_kind) {
        (KIND_REVOKE, SUBJECT_JTI) => Some(Statement::Revoke { jti: subject, exp: time }),
        (KIND_REINSTATE, SUBJECT_JTI) => Some(Statement::Reinstate { jti: subject, exp: time }),
        (KIND_CUTOFF, _) => scope(subject).map(|scope| Statement::Cutoff { scope, not_before: time }),
        (KIND_LIFT, _) => scope(subject).map(|scope| Statement::Lift { scope }),
        (KIND_RESUME, SUBJECT_NONE) => u32::try_from(value).ok().map(|term| Statement::Resume { term: Term(term) }),
        _ => None,
    }
}

/// What the entry that holds for a subject says; `None` if there is no such kind.
pub(super) fn standing(kind: u8, value: u64) -> Option<Standing> {
    let time = UnixTime::from_secs(value);
    match kind {
        KIND_REVOKE => Some(Standing::Revoked { exp: time }),
        KIND_REINSTATE => Some(Standing::Reinstated { exp: time }),
        KIND_CUTOFF => Some(Standing::Cut { not_before: time }),
        KIND_LIFT => Some(Standing::Lifted),
        _ => None,
    }
}

/// The columns of a key. Databases count in signed numbers: fingerprints of 64 bits move down by half of their range,
/// which keeps their order; shorter ones fit as they are, and in fewer bytes.
pub(super) fn place(key: Key, width: Width) -> (i64, i64) {
    (column(key.fingerprint.bits(), width), key.name.cast_signed())
}

const HALF: u64 = 1 << 63;

pub(super) const fn column(fingerprint: u64, width: Width) -> i64 {
    if width.bits() == u64::BITS { (fingerprint ^ HALF).cast_signed() } else { fingerprint.cast_signed() }
}

/// The fingerprint in a column; `None` if it is none of that width.
pub(super) fn fingerprint(column: i64, width: Width) -> Option<Fingerprint> {
    let bits = if width.bits() == u64::BITS { column.cast_unsigned() ^ HALF } else { column.cast_unsigned() };
    Fingerprint::from_bits(bits, width)
}

/// A number as databases keep it. Nothing that a ledger assigns is larger.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The bytes of one row, in an order that nothing else can spell.
struct Row(Vec<u8>);

impl Row {
    /// `table` tells rows of different tables apart.
    fn of(table: u8, realm: RealmId) -> Self {
        let mut row = Self(Vec::with_capacity(256));
        row.0.push(table);
        row.text(realm.as_str().as_bytes());
        row
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    fn maybe_text(&mut self, text: Option<&str>) {
        self.0.push(u8::from(text.is_some()));
        self.text(text.unwrap_or_default().as_bytes());
    }

    fn maybe_number(&mut self, number: Option<u64>) {
        self.0.push(u8::from(number.is_some()));
        self.number(number.unwrap_or_default());
    }

    /// A time as a database keeps it.
    fn time(&mut self, time: UnixTime) {
        self.number(signed(time.secs()).cast_unsigned());
    }

    fn sum(&self) -> i64 {
        xxh3_64(&self.0).cast_signed()
    }
}

pub(super) fn entry_sum(realm: RealmId, entry: &Entry) -> i64 {
    let Columns { kind, subject_kind, subject, value } = Columns::of(&entry.statement);
    let mut row = Row::of(1, realm);
    row.number(entry.sequence.0);
    row.number(signed(entry.at.secs()).cast_unsigned());
    row.0.extend_from_slice(&[kind, subject_kind]);
    row.text(subject.as_bytes());
    row.number(value);
    row.maybe_text(entry.reason.as_deref());
    row.text(entry.actor.as_bytes());
    row.sum()
}

pub(super) fn object_sum(realm: RealmId, object: &Object) -> i64 {
    let mut row = Row::of(2, realm);
    row.text(object.address.as_bytes());
    row.text(&object.bytes);
    row.sum()
}

/// What an issued token is in columns, beside its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct IssuedColumns<'a> {
    pub(super) place: (i64, i64),
    pub(super) iat: i64,
    pub(super) exp: i64,
    pub(super) sub: Option<&'a str>,
}

/// Half as long as the others: it is a good part of what a token takes on disk.
pub(super) fn issued_sum(realm: RealmId, issued: IssuedColumns<'_>) -> i32 {
    const _: () = assert!(size_of::<i32>() == 4, "the sum is cut to 32 bits");
    let mut row = Row::of(3, realm);
    for number in [issued.place.0, issued.place.1, issued.iat, issued.exp] {
        row.number(number.cast_unsigned());
    }
    row.maybe_text(issued.sub);
    row.sum() as i32
}

pub(super) fn device_sum(realm: RealmId, device: &Device) -> i64 {
    let mut row = Row::of(5, realm);
    row.text(device.id.as_bytes());
    row.0.extend_from_slice(&device.signing.0);
    row.0.extend_from_slice(device.sealing.as_bytes());
    row.text(device.subject.as_bytes());
    row.text(&list(&device.audience));
    row.time(device.enrolled_at);
    row.number(device.counter);
    row.maybe_text(device.holds.as_deref());
    row.maybe_number(device.held_until.map(|until| signed(until.secs()).cast_unsigned()));
    row.0.push(u8::from(device.barred));
    row.sum()
}

pub(super) fn token_sum(realm: RealmId, token: &IssuedToken) -> i64 {
    let mut row = Row::of(6, realm);
    row.text(token.jti.as_bytes());
    row.time(token.iat);
    row.time(token.exp);
    for text in [&token.sub, &token.kid, &token.client, &token.parent] {
        row.maybe_text(text.as_deref());
    }
    row.0.push(u8::from(token.device.is_some()));
    row.text(token.family.as_bytes());
    row.time(token.kept_until);
    row.sum()
}

pub(super) fn refresh_sum(realm: RealmId, refresh: &RefreshToken) -> i64 {
    let mut row = Row::of(7, realm);
    row.0.extend_from_slice(&refresh.hash);
    row.time(refresh.exp);
    row.0.push(refresh.state as u8);
    row.text(refresh.jti.as_bytes());
    row.time(refresh.iat);
    for text in [&refresh.sub, &refresh.kid, &refresh.client] {
        row.maybe_text(text.as_deref());
    }
    row.0.push(u8::from(refresh.device.is_some()));
    row.text(refresh.family.as_bytes());
    row.sum()
}

/// The device whose family this is, if it is one of a device.
pub(super) fn device_of(family: &str, of_device: bool) -> Result<Option<DeviceId>, DeviceIdError> {
    of_device.then(|| DeviceId::new(family)).transpose()
}

/// Texts in one column: each after its length, four bytes in little-endian.
pub(super) fn list(texts: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The texts in such a column; `None` if it holds something else.
pub(super) fn texts(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        texts.push(std::str::from_utf8(text).ok()?.to_owned());
        bytes = rest;
    }
    bytes.is_empty().then_some(texts)
}

/// A realm with its number in one database, which nobody else sees.
#[derive(Clone, Debug)]
pub(super) struct RealmRow {
    pub(super) number: i64,
    pub(super) realm: Realm,
    pub(super) counters: Counters,
    pub(super) coverage: Coverage,
}

impl RealmRow {
    /// Its number is in it as well: every other row is found by that.
    pub(super) fn sum(&self) -> i64 {
        let Self { number, realm, counters, coverage } = self;
        let mut row = Row::of(4, realm.id);
        row.number(number.cast_unsigned());
        row.text(realm.issuer.as_bytes());
        row.0.push(realm.fingerprinter.function() as u8);
        row.0.extend_from_slice(&realm.fingerprinter.key().0);
        for number in [
            u64::from(realm.fingerprinter.width().bits()),
            realm.leeway.as_secs(),
            realm.max_token_lifetime.as_secs(),
            realm.created.secs(),
            u64::from(counters.term.0),
            counters.head.0,
            counters.stored,
            counters.cutoffs,
            coverage.registered,
            // One more than any time that is kept.
            coverage.covered_until.map_or(u64::MAX, |until| signed(until.secs()).cast_unsigned()),
        ] {
            row.number(number);
        }
        let issued = [counters.devices, counters.tokens, counters.refreshes];
        // Rows from before there were any have sums without these.
        if issued != [0; 3] {
            for number in issued {
                row.number(number);
            }
        }
        row.sum()
    }
}
