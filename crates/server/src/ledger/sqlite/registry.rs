//! The registry's rows: one tree, ordered by fingerprint, with nothing beside it.
//!
//! An index by `exp` would double what a token costs on disk, so expired tokens are found by reading all of them,
//! now and then, in pieces, on the thread that reads.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;

use revocast_core::limits::ISSUED_BATCH_MAX;
use revocast_core::{Fingerprint, Jti, RealmId, UnixTime, Width};
use rusqlite::{Connection, Row, Transaction, params};
use tokio::sync::oneshot;

use super::{
    EXPIRE_PIECE, News, Outcome, Rows, SqliteLedger, Turned, Write, damaged, known_realm, open_reader, unsigned,
    update_realm,
};
use crate::ledger::LedgerError;
use crate::ledger::columns::{self, IssuedColumns, RealmRow, column, issued_sum, place, signed};
use crate::ledger::registry::{self, Coverage, Issued, Key, Register, Registration, Visitor};
use crate::ledger::rules::Halt;
use crate::ledger::sqlite;

/// Joins the schema of a new ledger.
///
/// `name` is the number of [`Key::name`], `fingerprint` that of [`place`].
pub(super) const SCHEMA: &str = "
CREATE TABLE issued (
    realm INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    name INTEGER NOT NULL,
    iat INTEGER NOT NULL,
    exp INTEGER NOT NULL,
    sub TEXT,
    sum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (realm, fingerprint, name)
) STRICT, WITHOUT ROWID;
";

/// Tokens shown to a visitor at a time: enough that the call costs nothing, and still in the cache.
const VISIT_BATCH: usize = 4_096;

/// Rows read at a time when looking for expired tokens: some ten milliseconds, in which other reads wait.
const SWEEP_PIECE: usize = 20_000;

/// Rows after which a sweep leaves the rest to the next call: whoever calls has other work to do.
const SWEEP_CALL: usize = 500_000;

/// How far the search for expired tokens has come in one realm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    horizon: UnixTime,
    /// The place to go on from; `None` once all were looked at.
    next: Option<(i64, i64)>,
}

impl SqliteLedger {
    pub(super) async fn registered(
        &self,
        realm: RealmId,
        now: UnixTime,
        issued: Vec<Issued>,
    ) -> Result<Registration, LedgerError> {
        if issued.len() > ISSUED_BATCH_MAX {
            return Err(LedgerError::IssuedTooMany { tokens: issued.len() });
        }
        self.decided(realm, move |rows, realm, counters, coverage| {
            registry::register(rows, realm, counters, coverage, now, issued)
        })
        .await
    }

    pub(super) async fn covered(
        &self,
        realm: RealmId,
        now: UnixTime,
        until: UnixTime,
    ) -> Result<Coverage, LedgerError> {
        self.exclusive(move |transaction| {
            let mut row = known_realm(transaction, realm)?;
            let coverage = row.coverage.moved(&row.realm, now, until)?;
            if coverage != row.coverage {
                row.coverage = coverage;
                update_realm(transaction, &row)?;
            }
            Ok((coverage, News::No))
        })
        .await
    }

    /// Freezes on the thread that writes, where no transaction can be under way, then reads elsewhere.
    pub(super) async fn visit(&self, realm: RealmId, visitors: Vec<Visitor>) -> Result<Coverage, LedgerError> {
        registry::check_visitors(&visitors)?;
        let (reply, frozen) = oneshot::channel();
        // Not a transaction: a ledger that stopped writing can still be read.
        self.write(Write::Alone(Box::new(move |writer| {
            let _ = reply.send(known_realm(&writer.connection, realm));
        })))?;
        let frozen = frozen.await.map_err(|_| LedgerError::Closed)?;
        let RealmRow { number, realm, coverage, .. } = frozen.map_err(LedgerError::from)?;

        let parts = visitors.len();
        let mut answers = Vec::with_capacity(parts);
        for (index, visitor) in visitors.into_iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            let width = realm.fingerprinter.width();
            let part = Part { realm: number, id: realm.id, width, bounds: registry::part(width, index, parts) };
            let (path, closing) = (self.path.clone(), Arc::clone(&self.closing));
            let thread = thread::Builder::new().name(format!("ledger-visit-{index}")).spawn(move || {
                let unwanted = || closing.load(Ordering::Acquire) || reply.is_closed();
                let seen = part.show(&path, visitor, &unwanted);
                let _ = reply.send(seen.map_err(LedgerError::from));
            });
            let thread = thread.map_err(|error| LedgerError::Storage(Arc::new(error)))?;
            self.joined_when_closed(thread);
            answers.push(answer);
        }
        for answer in answers {
            answer.await.map_err(|_| LedgerError::Closed)??;
        }
        Ok(coverage)
    }

    /// Forgets registered tokens, if it is time; a bounded piece of the way in one call.
    pub(super) async fn sweep(&self, realm: RealmId, horizon: UnixTime) -> Result<(), LedgerError> {
        // Taken out: whoever calls meanwhile starts anew, which only costs time, and so does a failure.
        let held = self.sweeps.lock().unwrap_or_else(PoisonError::into_inner).remove(&realm);
        let mut sweep = match held {
            Some(sweep) if sweep.next.is_some() || !registry::sweep_is_due(Some(sweep.horizon), horizon) => sweep,
            Some(_) | None => Sweep { horizon, next: Some((i64::MIN, i64::MIN)) },
        };
        let mut looked_at = 0;
        while let Some(from) = sweep.next
            && looked_at < SWEEP_CALL
        {
            let piece = self.read(move |connection| sweep_piece(connection, realm, from, horizon)).await?;
            looked_at += SWEEP_PIECE;
            sweep.next = piece.next;
            for keys in piece.expired.chunks(EXPIRE_PIECE) {
                let keys = keys.to_vec();
                self.exclusive(move |transaction| Ok((forget(transaction, realm, &keys, horizon)?, News::No))).await?;
            }
        }
        self.sweeps.lock().unwrap_or_else(PoisonError::into_inner).insert(realm, sweep);
        Ok(())
    }
}

pub(super) const INSERT_ISSUED: &str =
    "INSERT INTO issued (realm, fingerprint, name, iat, exp, sub, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const ENROLL: &str = "INSERT INTO issued (realm, fingerprint, name, iat, exp, sub, sum)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";

pub(super) const SELECT_ISSUED: &str = "SELECT fingerprint, name, iat, exp, sub, sum FROM issued";

/// What follows [`SELECT_ISSUED`] to find the token in one place.
pub(super) const IN_PLACE: &str = "WHERE realm = ?1 AND fingerprint = ?2 AND name = ?3";

/// A registered token as it stands in a row.
#[derive(Clone, Debug)]
pub(super) struct IssuedRow {
    pub(super) place: (i64, i64),
    pub(super) iat: i64,
    pub(super) exp: i64,
    pub(super) sub: Option<String>,
}

impl IssuedRow {
    /// From the columns of [`SELECT_ISSUED`], whatever the last of them says.
    pub(super) fn unchecked(row: &Row<'_>) -> Outcome<Self> {
        let number = |index| sqlite::column::<i64>(row, index, "a number of a token");
        let place = (number(0)?, number(1)?);
        Ok(Self { place, iat: number(2)?, exp: number(3)?, sub: sqlite::column(row, 4, "a sub")? })
    }

    pub(super) fn sum(&self, realm: RealmId) -> i32 {
        issued_sum(realm, IssuedColumns { place: self.place, iat: self.iat, exp: self.exp, sub: self.sub.as_deref() })
    }
}

pub(super) fn issued(realm: RealmId, row: &Row<'_>) -> Outcome<IssuedRow> {
    let found = IssuedRow::unchecked(row)?;
    if found.sum(realm) == sqlite::column::<i32>(row, 5, "a checksum")? {
        Ok(found)
    } else {
        let (fingerprint, name) = found.place;
        Err(damaged(format!("the token at {fingerprint}, {name} of realm {realm} does not match its checksum")))
    }
}

impl Register for Rows<'_> {
    fn enroll(&mut self, key: Key, issued: &Issued) -> Outcome<Option<UnixTime>> {
        let Turned { number, id, fingerprinter, .. } = self.turned()?;
        let (fingerprint, name) = place(key, fingerprinter.width());
        let (iat, exp) = (signed(issued.iat.secs()), signed(issued.exp.secs()));
        let row = IssuedRow { place: (fingerprint, name), iat, exp, sub: issued.sub.clone() };
        let mut enroll = self.connection.prepare_cached(ENROLL)?;
        let new = enroll.execute(params![number, fingerprint, name, iat, exp, row.sub, row.sum(id)])?;
        if new > 0 {
            return Ok(None);
        }
        let held = self.exp_of(key, fingerprinter.width())?;
        held.map(Some).ok_or_else(|| damaged(format!("the token at {fingerprint}, {name} is there and is not")))
    }

    fn prolong(&mut self, key: Key, exp: UnixTime) -> Outcome<()> {
        let Turned { number, id, fingerprinter, .. } = self.turned()?;
        let (fingerprint, name) = place(key, fingerprinter.width());
        if let Some(held) = self.issued(key, fingerprinter.width())? {
            let moved = IssuedRow { exp: signed(exp.secs()), ..held };
            let mut prolong = self.connection.prepare_cached(
                "UPDATE issued SET exp = ?4, sum = ?5 WHERE realm = ?1 AND fingerprint = ?2 AND name = ?3",
            )?;
            prolong.execute(params![number, fingerprint, name, moved.exp, moved.sum(id)])?;
        }
        Ok(())
    }
}

impl Rows<'_> {
    /// The token in one place of the registry.
    fn issued(&mut self, key: Key, width: Width) -> Outcome<Option<IssuedRow>> {
        let Turned { number, id, .. } = self.turned()?;
        let (fingerprint, name) = place(key, width);
        let mut rows = self.known.query(params![number, fingerprint, name])?;
        rows.next()?.map(|row| issued(id, row)).transpose()
    }

    fn exp_of(&mut self, key: Key, width: Width) -> Outcome<Option<UnixTime>> {
        let held = self.issued(key, width)?;
        held.map(|held| unsigned(held.exp, "a time").map(UnixTime::from_secs)).transpose()
    }

    /// What [`Shelf::registered`] asks for.
    pub(super) fn exp_of_jti(&mut self, jti: &str) -> Outcome<Option<UnixTime>> {
        let Turned { fingerprinter, .. } = self.turned()?;
        match Jti::new(jti) {
            Ok(jti) => self.exp_of(Key::of(&fingerprinter, jti), fingerprinter.width()),
            // Was refused before.
            Err(_) => Ok(None),
        }
    }
}

pub(super) fn fingerprint(column: i64, width: Width) -> Outcome<Fingerprint> {
    columns::fingerprint(column, width)
        .ok_or_else(|| damaged(format!("a registered token has fingerprint {column}, which is none of the realm's")))
}

/// What is kept of one token.
pub(super) fn token(connection: &Connection, row: &RealmRow, jti: String) -> Outcome<Option<Issued>> {
    let fingerprinter = &row.realm.fingerprinter;
    // What is no `jti` is not there either.
    let Ok(key) = Jti::new(&jti).map(|jti| Key::of(fingerprinter, jti)) else {
        return Ok(None);
    };
    let (fingerprint, name) = place(key, fingerprinter.width());
    let mut statement = connection.prepare_cached(&format!("{SELECT_ISSUED} {IN_PLACE}"))?;
    let mut rows = statement.query(params![row.number, fingerprint, name])?;
    let Some(held) = rows.next()?.map(|found| issued(row.realm.id, found)).transpose()? else {
        return Ok(None);
    };
    let time = |number| unsigned(number, "a time").map(UnixTime::from_secs);
    Ok(Some(Issued { jti, iat: time(held.iat)?, exp: time(held.exp)?, sub: held.sub }))
}

/// What one visitor is shown.
struct Part {
    realm: i64,
    id: RealmId,
    width: Width,
    /// First and last fingerprint.
    bounds: (u64, u64),
}

impl Part {
    fn show(&self, path: &Path, mut visitor: Visitor, unwanted: &dyn Fn() -> bool) -> Outcome<()> {
        let connection = open_reader(path).map_err(|error| LedgerError::Storage(Arc::new(error)))?;
        let mut statement = connection.prepare(&format!(
            "{SELECT_ISSUED} WHERE realm = ?1 AND fingerprint BETWEEN ?2 AND ?3 ORDER BY fingerprint"
        ))?;
        let (low, high) = (column(self.bounds.0, self.width), column(self.bounds.1, self.width));
        let mut rows = statement.query(params![self.realm, low, high])?;
        let mut batch = Vec::with_capacity(VISIT_BATCH);
        while let Some(row) = rows.next()? {
            let found = issued(self.id, row)?;
            let exp = UnixTime::from_secs(unsigned(found.exp, "a time")?);
            batch.push((fingerprint(found.place.0, self.width)?, exp));
            if batch.len() == VISIT_BATCH {
                if unwanted() {
                    return Err(LedgerError::Closed.into());
                }
                if !visitor(&batch) {
                    return Ok(());
                }
                batch.clear();
            }
        }
        if !batch.is_empty() {
            // It says itself whether it has seen enough.
            let _ = visitor(&batch);
        }
        Ok(())
    }
}

struct SweepPiece {
    expired: Vec<(i64, i64)>,
    next: Option<(i64, i64)>,
}

/// Looks for expired tokens among the next rows.
fn sweep_piece(connection: &Connection, realm: RealmId, from: (i64, i64), horizon: UnixTime) -> Outcome<SweepPiece> {
    let number = known_realm(connection, realm)?.number;
    let horizon = signed(horizon.secs());
    let mut statement = connection.prepare_cached(&format!(
        "{SELECT_ISSUED} WHERE realm = ?1 AND (fingerprint, name) >= (?2, ?3) ORDER BY fingerprint, name LIMIT ?4"
    ))?;
    let mut rows = statement.query(params![number, from.0, from.1, signed(SWEEP_PIECE as u64)])?;
    let (mut expired, mut last, mut count) = (Vec::new(), None, 0);
    while let Some(row) = rows.next()? {
        let found = issued(realm, row)?;
        if found.exp <= horizon {
            expired.push(found.place);
        }
        last = Some(found.place);
        count += 1;
    }
    Ok(SweepPiece { expired, next: last.filter(|_| count == SWEEP_PIECE).and_then(registry::after) })
}

/// Forgets tokens in these places, unless their `exp` has moved meanwhile.
fn forget(transaction: &Transaction<'_>, realm: RealmId, keys: &[(i64, i64)], horizon: UnixTime) -> Outcome<()> {
    let mut row = known_realm(transaction, realm)?;
    let mut delete = transaction
        .prepare_cached("DELETE FROM issued WHERE realm = ?1 AND fingerprint = ?2 AND name = ?3 AND exp <= ?4")?;
    let mut gone = 0;
    for (fingerprint, name) in keys {
        gone += delete.execute(params![row.number, fingerprint, name, signed(horizon.secs())])?;
    }
    row.coverage.registered = row.coverage.registered.saturating_sub(gone as u64);
    update_realm(transaction, &row)
}

/// For reads: whatever failed, nothing was written, so nothing must stop.
impl From<Halt<rusqlite::Error>> for LedgerError {
    fn from(halt: Halt<rusqlite::Error>) -> Self {
        match halt {
            Halt::Refused(error) => error,
            Halt::Storage(error) => Self::Storage(Arc::new(error)),
        }
    }
}
