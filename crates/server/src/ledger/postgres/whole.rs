//! All of the ledger at once: shown, restored, tidied.

use std::sync::Arc;

use revocast_core::{RealmId, UnixTime};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_postgres::Row;

use super::issuance::{self, SELECT_DEVICE, SELECT_REFRESH, SELECT_TOKEN, insert_tokens, put_devices, put_refreshes};
use super::rows::{
    IssuedRow, SELECT_ENTRY, SELECT_REALM, damaged, entry, insert_entries, insert_issued, insert_realm, issued_columns,
    object, put_objects, realm_row, unsigned,
};
use super::session::{Database, Fault, Outcome, Session};
use crate::ledger::columns::{IssuedColumns, RealmRow, column, fingerprint, signed};
use crate::ledger::dump::{Checked, Compaction, Enrolled, PIECE_ROWS, Piece, RealmRecord, Sink, Source};
use crate::ledger::{LedgerError, registry};

/// Pieces that are read or written ahead.
const AHEAD: usize = 2;

/// Objects read at a time: each may have a quarter of a megabyte.
const OBJECT_ROWS: usize = 32;

/// Reads everything in one snapshot.
pub(super) async fn dump(database: &Database, mut sink: Sink) -> Result<(), LedgerError> {
    let session = database.snapshot().await?;
    let (pieces, mut shown) = mpsc::channel::<Piece>(AHEAD);
    // Whoever takes a dump writes files or computes.
    let taking = spawn_blocking(move || {
        while let Some(piece) = shown.blocking_recv() {
            if !sink(piece) {
                break;
            }
        }
    });
    let read = read_all(&session, &pieces).await;
    drop(pieces);
    let taken = taking.await.map_err(|error| LedgerError::Storage(Arc::new(error)));
    read.map_err(Fault::into_error)?;
    // Whether this works is of no account: the connection is closed otherwise.
    let _ = session.end().await;
    taken
}

async fn read_all(session: &Session, pieces: &mpsc::Sender<Piece>) -> Outcome<()> {
    let rows = session.rows(SELECT_REALM, &[]).await?;
    let mut realms = rows.iter().map(realm_row).collect::<Outcome<Vec<_>>>()?;
    realms.sort_unstable_by_key(|row| row.realm.id);
    for row in realms {
        let RealmRow { number, realm, counters, coverage } = row;
        let (id, width) = (realm.id, realm.fingerprinter.width());
        // Nobody listens any more: nothing is left to do.
        if pieces.send(Piece::Realm(RealmRecord::of(realm, counters, coverage))).await.is_err() {
            return Ok(());
        }
        let limit = signed(PIECE_ROWS as u64);
        let mut after = Some(0_i64);
        while let Some(from) = after {
            let sql = format!("{SELECT_ENTRY} WHERE realm = $1 AND sequence > $2 ORDER BY sequence LIMIT $3");
            let rows = session.rows(&sql, &[&number, &from, &limit]).await?;
            let entries = rows.iter().map(|row| entry(id, row)).collect::<Outcome<Vec<_>>>()?;
            after = rows.last().filter(|_| rows.len() == PIECE_ROWS).map(|row| row.get(0));
            if !entries.is_empty() && pieces.send(Piece::Entries(entries)).await.is_err() {
                return Ok(());
            }
        }
        let mut after = Some((i64::MIN, i64::MIN));
        while let Some(from) = after {
            let rows = session
                .rows(
                    "SELECT fingerprint, name, iat, exp, sub, sum FROM revocast_issued
                     WHERE realm = $1 AND (fingerprint, name) >= ($2, $3) ORDER BY fingerprint, name LIMIT $4",
                    &[&number, &from.0, &from.1, &limit],
                )
                .await?;
            let mut issued = Vec::with_capacity(rows.len());
            for row in &rows {
                let IssuedRow { place, iat, exp, sub } = issued_columns(id, row)?;
                let bits = fingerprint(place.0, width)
                    .ok_or_else(|| damaged(format!("a token of realm {id} has fingerprint {}", place.0)))?;
                let time = |number| unsigned(number, "a time").map(UnixTime::from_secs);
                let name = place.1.cast_unsigned();
                issued.push(Enrolled { fingerprint: bits, name, iat: time(iat)?, exp: time(exp)?, sub });
            }
            let last = rows.last().filter(|_| rows.len() == PIECE_ROWS);
            after = last.and_then(|row| registry::after((row.get(0), row.get(1))));
            if !issued.is_empty() && pieces.send(Piece::Issued(issued)).await.is_err() {
                return Ok(());
            }
        }
        let all = Table { session, number, realm: id, pieces };
        if !all.show(SELECT_DEVICE, "id", issuance::device, Piece::Devices).await?
            || !all.show(SELECT_TOKEN, "jti", issuance::token, Piece::Tokens).await?
            || !all.show(SELECT_REFRESH, "hash", issuance::refresh, Piece::Refreshes).await?
        {
            return Ok(());
        }
        let rows = session.rows("SELECT address FROM revocast_objects WHERE realm = $1", &[&number]).await?;
        let mut addresses: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        addresses.sort_unstable();
        for part in addresses.chunks(OBJECT_ROWS) {
            let rows = session
                .rows(
                    "SELECT address, bytes, sum FROM revocast_objects WHERE realm = $1 AND address = ANY($2)",
                    &[&number, &part],
                )
                .await?;
            let mut objects = rows.iter().map(|row| object(id, row)).collect::<Outcome<Vec<_>>>()?;
            objects.sort_unstable_by(|one, other| one.address.cmp(&other.address));
            if pieces.send(Piece::Objects(objects)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The rows of one realm, on their way to whoever takes a dump.
struct Table<'a> {
    session: &'a Session,
    number: i64,
    realm: RealmId,
    pieces: &'a mpsc::Sender<Piece>,
}

impl Table<'_> {
    /// Shows rows in order of a column of bytes, which `select` names first; returns whether anybody wants more.
    async fn show<T>(
        &self,
        select: &str,
        column: &str,
        parse: fn(RealmId, &Row) -> Outcome<T>,
        piece: fn(Vec<T>) -> Piece,
    ) -> Outcome<bool> {
        let sql = format!("{select} WHERE realm = $1 AND {column} > $2 ORDER BY {column} LIMIT $3");
        let mut after = Some(Vec::new());
        while let Some(from) = after {
            let rows = self.session.rows(&sql, &[&self.number, &from, &signed(PIECE_ROWS as u64)]).await?;
            let found = rows.iter().map(|row| parse(self.realm, row)).collect::<Outcome<Vec<_>>>()?;
            after = rows.last().filter(|_| rows.len() == PIECE_ROWS).map(|row| row.get::<_, &[u8]>(0).to_vec());
            if !found.is_empty() && self.pieces.send(piece(found)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Writes everything in one transaction, which nobody sees until it is whole.
pub(super) async fn restore(database: &Database, source: Source) -> Result<(), LedgerError> {
    let session = database.long().await?;
    let (pieces, mut coming) = mpsc::channel(AHEAD);
    let reading = spawn_blocking(move || {
        for piece in Checked::new(source) {
            let is_last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || is_last {
                break;
            }
        }
    });
    let write = async {
        // Whoever founds a realm waits for this.
        session.row("SELECT layout FROM revocast_layout WHERE one FOR UPDATE", &[]).await?;
        if let Some(row) = session.row(&format!("{SELECT_REALM} ORDER BY id LIMIT 1"), &[]).await? {
            return Err(LedgerError::NotEmpty { realm: realm_row(&row)?.realm.id }.into());
        }
        let mut held: Option<RealmRow> = None;
        let mut number = 0;
        while let Some(piece) = coming.recv().await {
            match (piece?, &held) {
                (Piece::Realm(record), _) => {
                    number += 1;
                    let (counters, coverage) = (record.counters(), record.coverage);
                    let row = RealmRow { number, realm: record.realm, counters, coverage };
                    insert_realm(&session, &row).await?;
                    held = Some(row);
                }
                (Piece::Entries(entries), Some(row)) => {
                    insert_entries(&session, row.number, row.realm.id, &entries).await?;
                }
                (Piece::Issued(issued), Some(row)) => {
                    let width = row.realm.fingerprinter.width();
                    let columns =
                        |issued: &Enrolled| (column(issued.fingerprint.bits(), width), issued.name.cast_signed());
                    let issued: Vec<_> = issued
                        .iter()
                        .map(|issued| IssuedColumns {
                            place: columns(issued),
                            iat: signed(issued.iat.secs()),
                            exp: signed(issued.exp.secs()),
                            sub: issued.sub.as_deref(),
                        })
                        .collect();
                    insert_issued(&session, row.number, row.realm.id, &issued).await?;
                }
                (Piece::Objects(objects), Some(row)) => {
                    put_objects(&session, row.number, row.realm.id, &objects).await?;
                }
                (Piece::Devices(devices), Some(row)) => {
                    put_devices(&session, row.number, row.realm.id, &devices).await?;
                }
                (Piece::Tokens(tokens), Some(row)) => {
                    insert_tokens(&session, row.number, row.realm.id, &tokens).await?;
                }
                (Piece::Refreshes(refreshes), Some(row)) => {
                    put_refreshes(&session, row.number, row.realm.id, &refreshes).await?;
                }
                (_, None) => {}
            }
        }
        session.end().await
    };
    let written: Outcome<()> = write.await;
    // A session that did not end is closed, and the server undoes all of it.
    drop(coming);
    let read = reading.await.map_err(|error| LedgerError::Storage(Arc::new(error)));
    written.map_err(Fault::into_error)?;
    database.woken();
    read
}

const TABLES: [&str; 9] = [
    "revocast_layout",
    "revocast_realms",
    "revocast_entries",
    "revocast_objects",
    "revocast_issued",
    "revocast_devices",
    "revocast_tokens",
    "revocast_refreshes",
    "revocast_leader",
];

pub(super) async fn compact(database: &Database) -> Result<Compaction, LedgerError> {
    database
        .read(|session| async move {
            let before = size(&session).await;
            for table in TABLES {
                session.long(&format!("VACUUM (ANALYZE) {table}")).await?;
            }
            Ok(Compaction { before, after: size(&session).await })
        })
        .await
}

/// Bytes that the tables take with their indexes, where the engine tells.
async fn size(session: &Session) -> Option<u64> {
    let sizes = TABLES.map(|table| format!("pg_total_relation_size('{table}')")).join(" + ");
    let row = session.row(&format!("SELECT ({sizes})::INT8"), &[]).await.ok().flatten()?;
    u64::try_from(row.get::<_, i64>(0)).ok()
}
