//! All of the ledger at once: shown, restored, tidied.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use revocast_core::{RealmId, UnixTime};
use rusqlite::{Connection, ErrorCode, Row, Transaction, params};
use tokio::sync::oneshot;

use super::issuance::{self, SELECT_DEVICE, SELECT_REFRESH, SELECT_TOKEN};
use super::registry::{INSERT_ISSUED, IssuedRow, SELECT_ISSUED, fingerprint, issued};
use super::{
    Outcome, SELECT_ENTRY, SELECT_OBJECT, SELECT_REALM, SqliteLedger, Write, Writer, damaged, entry, insert_entry,
    insert_realm, object, open_reader, put_objects, realm_row, unsigned,
};
use crate::ledger::columns::{RealmRow, column, signed};
use crate::ledger::dump::{Checked, Compaction, Enrolled, PIECE_ROWS, Piece, RealmRecord, Sink, Source};
use crate::ledger::{Health, LedgerError};

impl SqliteLedger {
    /// On a thread and a connection of its own.
    pub(super) async fn show_all(&self, mut sink: Sink) -> Result<(), LedgerError> {
        let (reply, answer) = oneshot::channel();
        let (path, closing) = (self.path.clone(), Arc::clone(&self.closing));
        let thread = thread::Builder::new().name("ledger-dump".into()).spawn(move || {
            let mut wanted = |piece| !closing.load(Ordering::Acquire) && !reply.is_closed() && sink(piece);
            let shown = dump(&path, &mut wanted);
            let _ = reply.send(shown.map_err(LedgerError::from));
        });
        let thread = thread.map_err(|error| LedgerError::Storage(Arc::new(error)))?;
        self.joined_when_closed(thread);
        answer.await.map_err(|_| LedgerError::Closed)?
    }

    pub(super) async fn tidy(&self) -> Result<Compaction, LedgerError> {
        let (reply, answer) = oneshot::channel();
        let path = self.path.clone();
        self.write(Write::Alone(Box::new(move |writer| {
            let _ = reply.send(writer.compact(&path));
        })))?;
        answer.await.map_err(|_| LedgerError::Closed)?
    }
}

/// Shows everything in one read transaction.
fn dump(path: &Path, wanted: &mut dyn FnMut(Piece) -> bool) -> Outcome<()> {
    let mut connection = open_reader(path).map_err(|error| LedgerError::Storage(Arc::new(error)))?;
    let transaction = connection.transaction()?;
    // The database's own pages first: the indexes are copies that no checksum of ours covers.
    let finding: String = transaction.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if finding != "ok" {
        return Err(damaged(finding));
    }
    let mut realms = Vec::new();
    {
        let mut statement = transaction.prepare(&format!("{SELECT_REALM} ORDER BY id"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            realms.push(realm_row(row)?);
        }
    }
    for row in realms {
        if !dump_realm(&transaction, row, wanted)? {
            break;
        }
    }
    Ok(())
}

fn dump_realm(connection: &Connection, row: RealmRow, wanted: &mut dyn FnMut(Piece) -> bool) -> Outcome<bool> {
    let RealmRow { number, realm, counters, coverage } = row;
    let (id, width) = (realm.id, realm.fingerprinter.width());
    if !wanted(Piece::Realm(RealmRecord::of(realm, counters, coverage))) {
        return Ok(false);
    }

    let mut statement = connection.prepare(&format!("{SELECT_ENTRY} WHERE realm = ?1 ORDER BY sequence"))?;
    let mut rows = statement.query([number])?;
    let mut piece = Vec::new();
    while let Some(row) = rows.next()? {
        piece.push(entry(id, row)?);
        if piece.len() == PIECE_ROWS && !wanted(Piece::Entries(std::mem::take(&mut piece))) {
            return Ok(false);
        }
    }
    if !piece.is_empty() && !wanted(Piece::Entries(piece)) {
        return Ok(false);
    }

    let mut statement = connection.prepare(&format!("{SELECT_ISSUED} WHERE realm = ?1 ORDER BY fingerprint, name"))?;
    let mut rows = statement.query([number])?;
    let mut piece = Vec::new();
    while let Some(row) = rows.next()? {
        let IssuedRow { place, iat, exp, sub } = issued(id, row)?;
        let time = |number| unsigned(number, "a time").map(UnixTime::from_secs);
        let (fingerprint, name) = (fingerprint(place.0, width)?, place.1.cast_unsigned());
        piece.push(Enrolled { fingerprint, name, iat: time(iat)?, exp: time(exp)?, sub });
        if piece.len() == PIECE_ROWS && !wanted(Piece::Issued(std::mem::take(&mut piece))) {
            return Ok(false);
        }
    }
    if !piece.is_empty() && !wanted(Piece::Issued(piece)) {
        return Ok(false);
    }

    let more =
        show(connection, SELECT_DEVICE, "id", number, id, issuance::device, |rows| wanted(Piece::Devices(rows)))?
            && show(connection, SELECT_TOKEN, "jti", number, id, issuance::token, |rows| wanted(Piece::Tokens(rows)))?
            && show(connection, SELECT_REFRESH, "hash", number, id, issuance::refresh, |rows| {
                wanted(Piece::Refreshes(rows))
            })?;
    if !more {
        return Ok(false);
    }

    // One at a time: each may have a quarter of a megabyte.
    let mut statement = connection.prepare(&format!("{SELECT_OBJECT} WHERE realm = ?1 ORDER BY address"))?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        if !wanted(Piece::Objects(vec![object(id, row)?])) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Shows the rows of one table in order of a column; returns whether more is wanted.
fn show<T>(
    connection: &Connection,
    select: &str,
    order: &str,
    number: i64,
    realm: RealmId,
    parse: fn(RealmId, &Row<'_>) -> Outcome<T>,
    mut wanted: impl FnMut(Vec<T>) -> bool,
) -> Outcome<bool> {
    let mut statement = connection.prepare(&format!("{select} WHERE realm = ?1 ORDER BY {order}"))?;
    let mut rows = statement.query([number])?;
    let mut piece = Vec::new();
    while let Some(row) = rows.next()? {
        piece.push(parse(realm, row)?);
        if piece.len() == PIECE_ROWS && !wanted(std::mem::take(&mut piece)) {
            return Ok(false);
        }
    }
    Ok(piece.is_empty() || wanted(piece))
}

/// Writes everything, inside a transaction that whoever calls ends.
pub(super) fn restore(transaction: &Transaction<'_>, source: Source) -> Outcome<()> {
    if let Some(row) = transaction.prepare(&format!("{SELECT_REALM} LIMIT 1"))?.query([])?.next()? {
        return Err(LedgerError::NotEmpty { realm: realm_row(row)?.realm.id }.into());
    }
    let mut held: Option<RealmRow> = None;
    let mut number = 0;
    for piece in Checked::new(source) {
        match (piece?, &held) {
            (Piece::Realm(record), _) => {
                number += 1;
                let (counters, coverage) = (record.counters(), record.coverage);
                let row = RealmRow { number, realm: record.realm, counters, coverage };
                insert_realm(transaction, &row)?;
                held = Some(row);
            }
            (Piece::Entries(entries), Some(row)) => {
                for entry in &entries {
                    insert_entry(transaction, row.number, row.realm.id, entry)?;
                }
            }
            (Piece::Issued(issued), Some(row)) => {
                let width = row.realm.fingerprinter.width();
                let mut insert = transaction.prepare_cached(INSERT_ISSUED)?;
                for Enrolled { fingerprint, name, iat, exp, sub } in issued {
                    let place = (column(fingerprint.bits(), width), name.cast_signed());
                    let token = IssuedRow { place, iat: signed(iat.secs()), exp: signed(exp.secs()), sub };
                    let sum = token.sum(row.realm.id);
                    insert.execute(params![row.number, place.0, place.1, token.iat, token.exp, token.sub, sum])?;
                }
            }
            (Piece::Devices(devices), Some(row)) => {
                for device in &devices {
                    issuance::put_device(transaction, row.number, row.realm.id, device)?;
                }
            }
            (Piece::Tokens(tokens), Some(row)) => {
                for token in &tokens {
                    issuance::put_token(transaction, row.number, row.realm.id, token)?;
                }
            }
            (Piece::Refreshes(refreshes), Some(row)) => {
                for refresh in &refreshes {
                    issuance::put_refresh(transaction, row.number, row.realm.id, refresh)?;
                }
            }
            (Piece::Objects(objects), Some(row)) => put_objects(transaction, row.number, row.realm.id, objects)?,
            (_, None) => {}
        }
    }
    Ok(())
}

impl Writer {
    fn compact(&mut self, path: &Path) -> Result<Compaction, LedgerError> {
        if *self.health.borrow() != Health::Good {
            return Err(LedgerError::Poisoned);
        }
        let before = size(path);
        let tidied = self.connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);");
        match tidied {
            Ok(()) => Ok(Compaction { before, after: size(path) }),
            // Nothing of it was kept, as with any other transaction.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                Err(LedgerError::StorageFull(Arc::new(error)))
            }
            Err(error) => {
                self.health.send_replace(Health::Stopped { cause: error.to_string() });
                Err(LedgerError::Storage(Arc::new(error)))
            }
        }
    }
}

/// The file and its log.
fn size(path: &Path) -> Option<u64> {
    let log = path.with_extension("db-wal");
    let bytes = fs::metadata(path).ok()?.len();
    Some(bytes + fs::metadata(log).map_or(0, |log| log.len()))
}
