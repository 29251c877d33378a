//! Rows in and out: every statement that more than one room uses.

use std::collections::{BTreeMap, HashMap};

use revocast_core::{FingerprintFunction, Fingerprinter, RealmId, RealmKey, Sequence, Term, UnixTime, Width};
use tokio_postgres::Row;

use super::issuance::{insert_tokens, put_devices, put_refreshes, remove_devices};
use super::session::{Fault, Outcome, Session};
use crate::ledger::columns::{
    self, Columns, IssuedColumns, RealmRow, entry_sum, issued_sum, object_sum, place, signed,
};
use crate::ledger::draft::{Changes, Name};
use crate::ledger::registry::{Coverage, Issued, Key};
use crate::ledger::rules::{Counters, Last};
use crate::ledger::{Entry, LedgerError, Object, Realm};

pub(super) const SELECT_REALM: &str = "SELECT number, id, issuer, function, key, width, leeway, max_token_lifetime,
    created, term, head, stored, cutoffs, registered, covered_until, sum, devices, tokens, refreshes
    FROM revocast_realms";

pub(super) const SELECT_ENTRY: &str =
    "SELECT sequence, at, kind, subject_kind, subject, value, reason, actor, sum FROM revocast_entries";

pub(super) fn damaged(what: String) -> Fault {
    Fault::Refused(LedgerError::Damaged { what })
}

pub(super) fn unsigned(number: i64, what: &str) -> Outcome<u64> {
    u64::try_from(number).map_err(|_| damaged(format!("{what} is negative: {number}")))
}

fn time(number: i64) -> Outcome<UnixTime> {
    unsigned(number, "a time").map(UnixTime::from_secs)
}

pub(super) fn text(bytes: &[u8], what: &str) -> Outcome<String> {
    String::from_utf8(bytes.to_owned()).map_err(|_| damaged(format!("{what} is not UTF-8")))
}

/// The row of a realm, if there is one.
pub(super) async fn find_realm(session: &Session, realm: RealmId) -> Outcome<Option<RealmRow>> {
    let row = session.row(&format!("{SELECT_REALM} WHERE id = $1"), &[&realm.as_str()]).await?;
    row.as_ref().map(realm_row).transpose()
}

pub(super) async fn known_realm(session: &Session, realm: RealmId) -> Outcome<RealmRow> {
    find_realm(session, realm).await?.ok_or(Fault::Refused(LedgerError::RealmUnknown { realm }))
}

/// The same, held until the end of the transaction: whoever changes anything of a realm holds its row, so that numbers
/// are given in the order of commits.
pub(super) async fn hold_realm(session: &Session, realm: RealmId) -> Outcome<RealmRow> {
    let row = session.row(&format!("{SELECT_REALM} WHERE id = $1 FOR UPDATE"), &[&realm.as_str()]).await?;
    row.as_ref().map(realm_row).transpose()?.ok_or(Fault::Refused(LedgerError::RealmUnknown { realm }))
}

/// Holds several, always in the same order, so that nobody waits in a circle.
pub(super) async fn hold_realms(session: &Session, ids: &[&str]) -> Outcome<BTreeMap<RealmId, RealmRow>> {
    let rows = session.rows(&format!("{SELECT_REALM} WHERE id = ANY($1) ORDER BY number FOR UPDATE"), &[&ids]).await?;
    rows.iter().map(|row| realm_row(row).map(|row| (row.realm.id, row))).collect()
}

/// Holds all.
pub(super) async fn hold_all_realms(session: &Session) -> Outcome<Vec<RealmRow>> {
    let rows = session.rows(&format!("{SELECT_REALM} ORDER BY number FOR UPDATE"), &[]).await?;
    rows.iter().map(realm_row).collect()
}

pub(super) fn realm_row(row: &Row) -> Outcome<RealmRow> {
    let id: &str = row.get(1);
    let id = RealmId::new(id).map_err(|error| damaged(format!("a realm is named {id:?}: {error}")))?;
    let bad = |what: &str| damaged(format!("realm {id} has a {what} that does not exist"));
    let small = |index| u8::try_from(row.get::<_, i16>(index)).ok();
    let function = small(3).and_then(FingerprintFunction::from_number).ok_or_else(|| bad("fingerprint function"))?;
    let key: [u8; 16] = row.get::<_, &[u8]>(4).try_into().map_err(|_| bad("fingerprint key"))?;
    let width = small(5).and_then(Width::from_bits).ok_or_else(|| bad("fingerprint width"))?;
    let span = |index| unsigned(row.get(index), "a span").map(std::time::Duration::from_secs);
    let realm = Realm {
        id,
        issuer: text(row.get(2), "an issuer")?,
        fingerprinter: Fingerprinter::new(function, RealmKey(key), width),
        leeway: span(6)?,
        max_token_lifetime: span(7)?,
        created: time(row.get(8))?,
    };
    let counters = Counters {
        term: Term(u32::try_from(row.get::<_, i64>(9)).map_err(|_| bad("term"))?),
        head: Sequence(unsigned(row.get(10), "a sequence")?),
        stored: unsigned(row.get(11), "a count")?,
        cutoffs: unsigned(row.get(12), "a count")?,
        devices: unsigned(row.get(16), "a count")?,
        tokens: unsigned(row.get(17), "a count")?,
        refreshes: unsigned(row.get(18), "a count")?,
    };
    let coverage = Coverage {
        registered: unsigned(row.get(13), "a count")?,
        covered_until: row.get::<_, Option<i64>>(14).map(time).transpose()?,
    };
    let found = RealmRow { number: row.get(0), realm, counters, coverage };
    if found.sum() == row.get::<_, i64>(15) {
        Ok(found)
    } else {
        Err(damaged(format!("the row of realm {id} does not match its checksum")))
    }
}

pub(super) async fn insert_realm(session: &Session, row: &RealmRow) -> Outcome<()> {
    let RealmRow { number, realm, counters, coverage } = row;
    session
        .change(
            "INSERT INTO revocast_realms (number, id, issuer, function, key, width, leeway, max_token_lifetime,
             created, term, head, stored, cutoffs, registered, covered_until, sum, devices, tokens, refreshes)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
            &[
                number,
                &realm.id.as_str(),
                &realm.issuer.as_bytes(),
                &i16::from(realm.fingerprinter.function() as u8),
                &realm.fingerprinter.key().0.as_slice(),
                &(realm.fingerprinter.width().bits() as i16),
                &signed(realm.leeway.as_secs()),
                &signed(realm.max_token_lifetime.as_secs()),
                &signed(realm.created.secs()),
                &i64::from(counters.term.0),
                &signed(counters.head.0),
                &signed(counters.stored),
                &signed(counters.cutoffs),
                &signed(coverage.registered),
                &coverage.covered_until.map(|until| signed(until.secs())),
                &row.sum(),
                &signed(counters.devices),
                &signed(counters.tokens),
                &signed(counters.refreshes),
            ],
        )
        .await?;
    Ok(())
}

/// Writes what a realm's row counts.
pub(super) async fn update_realm(session: &Session, row: &RealmRow) -> Outcome<()> {
    let RealmRow { number, counters, coverage, .. } = row;
    session
        .change(
            "UPDATE revocast_realms SET term = $2, head = $3, stored = $4, cutoffs = $5, registered = $6,
             covered_until = $7, sum = $8, devices = $9, tokens = $10, refreshes = $11 WHERE number = $1",
            &[
                number,
                &i64::from(counters.term.0),
                &signed(counters.head.0),
                &signed(counters.stored),
                &signed(counters.cutoffs),
                &signed(coverage.registered),
                &coverage.covered_until.map(|until| signed(until.secs())),
                &row.sum(),
                &signed(counters.devices),
                &signed(counters.tokens),
                &signed(counters.refreshes),
            ],
        )
        .await?;
    Ok(())
}

pub(super) fn entry(realm: RealmId, row: &Row) -> Outcome<Entry> {
    let sequence = Sequence(unsigned(row.get(0), "a sequence")?);
    let (kind, subject_kind): (i16, i16) = (row.get(2), row.get(3));
    let small = |number: i16| u8::try_from(number).unwrap_or(u8::MAX);
    let subject = text(row.get(4), "a subject")?;
    let statement = columns::statement(small(kind), small(subject_kind), subject, unsigned(row.get(5), "a value")?)
        .ok_or_else(|| damaged(format!("entry {sequence} has kind {kind} about a subject of kind {subject_kind}")))?;
    let reason = row.get::<_, Option<&[u8]>>(6).map(|reason| text(reason, "a reason")).transpose()?;
    let entry = Entry { sequence, at: time(row.get(1))?, statement, reason, actor: text(row.get(7), "an actor")? };
    if entry_sum(realm, &entry) == row.get::<_, i64>(8) {
        Ok(entry)
    } else {
        Err(damaged(format!("entry {sequence} of realm {realm} does not match its checksum")))
    }
}

/// Entries in one statement: a round trip for each would be felt.
pub(super) async fn insert_entries(session: &Session, number: i64, realm: RealmId, entries: &[Entry]) -> Outcome<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = entries.iter().map(|entry| Columns::of(&entry.statement)).collect();
    let sequences: Vec<_> = entries.iter().map(|entry| signed(entry.sequence.0)).collect();
    let times: Vec<_> = entries.iter().map(|entry| signed(entry.at.secs())).collect();
    let kinds: Vec<_> = all.iter().map(|columns| i16::from(columns.kind)).collect();
    let subject_kinds: Vec<_> = all.iter().map(|columns| i16::from(columns.subject_kind)).collect();
    let subjects: Vec<_> = all.iter().map(|columns| columns.subject.as_bytes()).collect();
    let values: Vec<_> = all.iter().map(|columns| signed(columns.value)).collect();
    let reasons: Vec<_> = entries.iter().map(|entry| entry.reason.as_deref().map(str::as_bytes)).collect();
    let actors: Vec<_> = entries.iter().map(|entry| entry.actor.as_bytes()).collect();
    let sums: Vec<_> = entries.iter().map(|entry| entry_sum(realm, entry)).collect();
    session
        .change(
            "INSERT INTO revocast_entries
             (realm, sequence, at, kind, subject_kind, subject, value, reason, actor, sum)
             SELECT $1::INT8, n.sequence, n.at, n.kind, n.subject_kind, n.subject, n.value, n.reason, n.actor, n.sum
             FROM unnest($2::INT8[], $3::INT8[], $4::INT2[], $5::INT2[], $6::BYTEA[], $7::INT8[], $8::BYTEA[],
                 $9::BYTEA[], $10::INT8[])
             AS n (sequence, at, kind, subject_kind, subject, value, reason, actor, sum)",
            &[&number, &sequences, &times, &kinds, &subject_kinds, &subjects, &values, &reasons, &actors, &sums],
        )
        .await?;
    Ok(())
}

pub(super) fn object(realm: RealmId, row: &Row) -> Outcome<Object> {
    let object = Object { address: row.get(0), bytes: row.get(1) };
    if object_sum(realm, &object) == row.get::<_, i64>(2) {
        Ok(object)
    } else {
        Err(damaged(format!("object {} of realm {realm} does not match its checksum", object.address)))
    }
}

pub(super) async fn put_objects(session: &Session, number: i64, realm: RealmId, objects: &[Object]) -> Outcome<()> {
    if objects.is_empty() {
        return Ok(());
    }
    // One statement cannot touch a row twice; of two the later holds.
    let objects: BTreeMap<_, _> = objects.iter().map(|object| (object.address.as_str(), object)).collect();
    let addresses: Vec<_> = objects.keys().copied().collect();
    let bytes: Vec<_> = objects.values().map(|object| object.bytes.as_slice()).collect();
    let sums: Vec<_> = objects.values().map(|object| object_sum(realm, object)).collect();
    session
        .change(
            "INSERT INTO revocast_objects (realm, address, bytes, sum)
             SELECT $1::INT8, n.address, n.bytes, n.sum FROM unnest($2::TEXT[], $3::BYTEA[], $4::INT8[])
             AS n (address, bytes, sum)
             ON CONFLICT (realm, address) DO UPDATE SET bytes = excluded.bytes, sum = excluded.sum",
            &[&number, &addresses, &bytes, &sums],
        )
        .await?;
    Ok(())
}

/// The entries that hold for these subjects.
pub(super) async fn lasts(session: &Session, row: &RealmRow, names: &[Name]) -> Outcome<HashMap<Name, Last>> {
    // Nothing is kept, so nothing holds: an import into a young realm asks nothing.
    if names.is_empty() || row.counters.stored == 0 {
        return Ok(HashMap::new());
    }
    let kinds: Vec<_> = names.iter().map(|(kind, _)| i16::from(*kind)).collect();
    let subjects: Vec<_> = names.iter().map(|(_, subject)| subject.as_bytes()).collect();
    let rows = session
        .rows(
            "SELECT w.nth, e.sequence, e.kind, e.value
             FROM unnest($2::INT8[], $3::INT2[], $4::BYTEA[]) AS w (nth, subject_kind, subject)
             CROSS JOIN LATERAL (SELECT sequence, kind, value FROM revocast_entries
                 WHERE realm = $1 AND subject_kind = w.subject_kind AND subject = w.subject
                 ORDER BY sequence DESC LIMIT 1) AS e",
            &[&row.number, &nths(names.len()), &kinds, &subjects],
        )
        .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let name = usize::try_from(row.get::<_, i64>(0)).ok().and_then(|nth| names.get(nth));
        let sequence = Sequence(unsigned(row.get(1), "a sequence")?);
        let kind: i16 = row.get(2);
        let standing = u8::try_from(kind).ok().zip(u64::try_from(row.get::<_, i64>(3)).ok());
        let standing = standing
            .and_then(|(kind, value)| columns::standing(kind, value))
            .ok_or_else(|| damaged(format!("entry {sequence} has kind {kind}")))?;
        if let Some(name) = name {
            found.insert(name.clone(), Last { sequence, standing });
        }
    }
    Ok(found)
}

/// The `exp`s under which these tokens are registered.
pub(super) async fn exps(session: &Session, row: &RealmRow, keys: &[Key]) -> Outcome<BTreeMap<Key, UnixTime>> {
    if keys.is_empty() || row.coverage.registered == 0 {
        return Ok(BTreeMap::new());
    }
    let places: Vec<_> = keys.iter().map(|key| place(*key, row.realm.fingerprinter.width())).collect();
    let (fingerprints, names): (Vec<_>, Vec<_>) = places.into_iter().unzip();
    let rows = session
        .rows(
            "SELECT w.nth, i.exp FROM unnest($2::INT8[], $3::INT8[], $4::INT8[]) AS w (nth, fingerprint, name)
             JOIN revocast_issued AS i ON i.realm = $1 AND i.fingerprint = w.fingerprint AND i.name = w.name",
            &[&row.number, &nths(keys.len()), &fingerprints, &names],
        )
        .await?;
    let mut found = BTreeMap::new();
    for row in &rows {
        let key = usize::try_from(row.get::<_, i64>(0)).ok().and_then(|nth| keys.get(nth));
        if let Some(key) = key {
            found.insert(*key, time(row.get(1))?);
        }
    }
    Ok(found)
}

/// 0, 1, 2, ...: what comes back says which of those asked for it answers.
fn nths(count: usize) -> Vec<i64> {
    (0..).take(count).collect()
}

/// Writes what a draft came to.
pub(super) async fn write(session: &Session, row: &RealmRow, changes: &Changes) -> Outcome<()> {
    let realm = &row.realm;
    let width = realm.fingerprinter.width();
    let enrolled: Vec<_> = changes.enrolled.iter().map(|(key, issued)| registered(*key, issued, width)).collect();
    let entries = insert_entries(session, row.number, realm.id, &changes.entries);
    let issued = insert_issued(session, row.number, realm.id, &enrolled);
    let prolonged = prolong(session, row, changes);
    let tokens: Vec<_> = changes.tokens.values().cloned().collect();
    let refreshes: Vec<_> = changes.refreshes.values().cloned().collect();
    let devices: Vec<_> = changes.devices.values().flatten().cloned().collect();
    let gone: Vec<_> = changes.devices.iter().filter(|(_, device)| device.is_none()).map(|(id, _)| *id).collect();
    tokio::try_join!(
        entries,
        issued,
        prolonged,
        put_devices(session, row.number, realm.id, &devices),
        remove_devices(session, row.number, &gone),
        insert_tokens(session, row.number, realm.id, &tokens),
        put_refreshes(session, row.number, realm.id, &refreshes),
        update_realm(session, row),
    )?;
    Ok(())
}

fn registered(key: Key, issued: &Issued, width: Width) -> IssuedColumns<'_> {
    IssuedColumns {
        place: place(key, width),
        iat: signed(issued.iat.secs()),
        exp: signed(issued.exp.secs()),
        sub: issued.sub.as_deref(),
    }
}

pub(super) async fn insert_issued(
    session: &Session,
    number: i64,
    realm: RealmId,
    issued: &[IssuedColumns<'_>],
) -> Outcome<()> {
    if issued.is_empty() {
        return Ok(());
    }
    let (fingerprints, names): (Vec<_>, Vec<_>) = issued.iter().map(|issued| issued.place).unzip();
    let iats: Vec<_> = issued.iter().map(|issued| issued.iat).collect();
    let exps: Vec<_> = issued.iter().map(|issued| issued.exp).collect();
    let subjects: Vec<_> = issued.iter().map(|issued| issued.sub.map(str::as_bytes)).collect();
    let sums: Vec<_> = issued.iter().map(|issued| issued_sum(realm, *issued)).collect();
    session
        .change(
            "INSERT INTO revocast_issued (realm, fingerprint, name, iat, exp, sub, sum)
             SELECT $1::INT8, n.fingerprint, n.name, n.iat, n.exp, n.sub, n.sum
             FROM unnest($2::INT8[], $3::INT8[], $4::INT8[], $5::INT8[], $6::BYTEA[], $7::INT4[])
             AS n (fingerprint, name, iat, exp, sub, sum)",
            &[&number, &fingerprints, &names, &iats, &exps, &subjects, &sums],
        )
        .await?;
    Ok(())
}

/// Rows are read before they are written: their checksums are over what they will be.
async fn prolong(session: &Session, row: &RealmRow, changes: &Changes) -> Outcome<()> {
    if changes.prolonged.is_empty() {
        return Ok(());
    }
    let width = row.realm.fingerprinter.width();
    let moved: BTreeMap<_, _> =
        changes.prolonged.iter().map(|(key, exp)| (place(*key, width), signed(exp.secs()))).collect();
    let (fingerprints, names): (Vec<_>, Vec<_>) = moved.keys().copied().unzip();
    let held = session
        .rows(
            "SELECT i.fingerprint, i.name, i.iat, i.exp, i.sub, i.sum
             FROM unnest($2::INT8[], $3::INT8[]) AS w (fingerprint, name)
             JOIN revocast_issued AS i ON i.realm = $1 AND i.fingerprint = w.fingerprint AND i.name = w.name",
            &[&row.number, &fingerprints, &names],
        )
        .await?;
    let (mut exps, mut sums, mut fingerprints, mut names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for held in &held {
        let held = issued_columns(row.realm.id, held)?;
        let exp = moved.get(&held.place).copied().unwrap_or(held.exp);
        let now = IssuedColumns { exp, sub: held.sub.as_deref(), place: held.place, iat: held.iat };
        fingerprints.push(held.place.0);
        names.push(held.place.1);
        exps.push(exp);
        sums.push(issued_sum(row.realm.id, now));
    }
    session
        .change(
            "UPDATE revocast_issued AS i SET exp = n.exp, sum = n.sum
             FROM unnest($2::INT8[], $3::INT8[], $4::INT8[], $5::INT4[]) AS n (fingerprint, name, exp, sum)
             WHERE i.realm = $1 AND i.fingerprint = n.fingerprint AND i.name = n.name",
            &[&row.number, &fingerprints, &names, &exps, &sums],
        )
        .await?;
    Ok(())
}

/// A registered token as it stands in a row.
#[derive(Clone, Debug)]
pub(super) struct IssuedRow {
    pub(super) place: (i64, i64),
    pub(super) iat: i64,
    pub(super) exp: i64,
    pub(super) sub: Option<String>,
}

/// From the columns fingerprint, name, iat, exp, sub, sum.
pub(super) fn issued_columns(realm: RealmId, row: &Row) -> Outcome<IssuedRow> {
    let place: (i64, i64) = (row.get(0), row.get(1));
    let sub = row.get::<_, Option<&[u8]>>(4).map(|sub| text(sub, "a sub")).transpose()?;
    let found = IssuedRow { place, iat: row.get(2), exp: row.get(3), sub };
    let columns = IssuedColumns { place, iat: found.iat, exp: found.exp, sub: found.sub.as_deref() };
    if issued_sum(realm, columns) == row.get::<_, i32>(5) {
        Ok(found)
    } else {
        Err(damaged(format!("the token at {}, {} of realm {realm} does not match its checksum", place.0, place.1)))
    }
}
