//! How a ledger that an older release wrote becomes one of this layout: all of it in one transaction, or not at all.

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::registry::{IssuedRow, SELECT_ISSUED};
use super::{
    LAYOUT, Outcome, SELECT_ENTRY, SELECT_REALM, column, damaged, issuance, unchecked_entry, unchecked_realm_row,
};
use crate::ledger::Object;
use crate::ledger::columns::{entry_sum, object_sum};

/// Does nothing if the layout is this one.
pub(super) fn advance(connection: &mut Connection, layout: i32) -> Outcome<()> {
    if layout == LAYOUT {
        return Ok(());
    }
    tracing::info!(from = layout, to = LAYOUT, "bringing the ledger to a newer layout");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !(1..LAYOUT).contains(&layout) {
        return Err(damaged(format!("it has layout {layout}")));
    }
    if layout < 2 {
        add_registry(&transaction)?;
    }
    if layout < 3 {
        add_sums(&transaction)?;
    }
    add_issuance(&transaction)?;
    if layout < 3 {
        write_sums(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    Ok(transaction.commit()?)
}

/// From layout 1 to 2.
fn add_registry(transaction: &Transaction<'_>) -> Outcome<()> {
    Ok(transaction.execute_batch(
        "ALTER TABLE realms ADD COLUMN registered INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE realms ADD COLUMN covered_until INTEGER;
         CREATE TABLE issued (
             realm INTEGER NOT NULL,
             fingerprint INTEGER NOT NULL,
             name INTEGER NOT NULL,
             iat INTEGER NOT NULL,
             exp INTEGER NOT NULL,
             sub TEXT,
             PRIMARY KEY (realm, fingerprint, name)
         ) STRICT, WITHOUT ROWID;",
    )?)
}

/// Rows whose sums are written at a time: an update under a read of the same table would not be told what it meets.
const PIECE: usize = 10_000;

/// From layout 2 to 3, before the sums are there.
fn add_sums(transaction: &Transaction<'_>) -> Outcome<()> {
    for table in ["realms", "entries", "objects", "issued"] {
        transaction.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN sum INTEGER NOT NULL DEFAULT 0"))?;
    }
    Ok(())
}

/// From layout 3 to 4. A realm that issued nothing keeps its checksum.
fn add_issuance(transaction: &Transaction<'_>) -> Outcome<()> {
    for column in ["devices", "tokens", "refreshes"] {
        transaction.execute_batch(&format!("ALTER TABLE realms ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"))?;
    }
    Ok(transaction.execute_batch(issuance::SCHEMA)?)
}

/// Sums of rows that had none: what stands there now is taken to be right, since nothing says otherwise.
fn write_sums(transaction: &Transaction<'_>) -> Outcome<()> {
    let mut realms = Vec::new();
    let mut select = transaction.prepare(SELECT_REALM)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        realms.push(unchecked_realm_row(row)?);
    }
    for row in realms {
        let (number, id) = (row.number, row.realm.id);
        transaction.execute("UPDATE realms SET sum = ?2 WHERE number = ?1", params![number, row.sum()])?;

        let mut select = transaction
            .prepare(&format!("{SELECT_ENTRY} WHERE realm = ?1 AND sequence > ?2 ORDER BY sequence LIMIT {PIECE}"))?;
        let mut update = transaction.prepare("UPDATE entries SET sum = ?3 WHERE realm = ?1 AND sequence = ?2")?;
        let mut after = 0;
        loop {
            let mut sums = Vec::new();
            let mut rows = select.query(params![number, after])?;
            while let Some(row) = rows.next()? {
                after = column(row, 0, "a sequence")?;
                sums.push((after, entry_sum(id, &unchecked_entry(id, row)?)));
            }
            for (sequence, sum) in &sums {
                update.execute(params![number, sequence, sum])?;
            }
            if sums.len() < PIECE {
                break;
            }
        }

        let mut select = transaction.prepare(&format!(
            "{SELECT_ISSUED} WHERE realm = ?1 AND (fingerprint, name) > (?2, ?3)
             ORDER BY fingerprint, name LIMIT {PIECE}"
        ))?;
        let mut update =
            transaction.prepare("UPDATE issued SET sum = ?4 WHERE realm = ?1 AND fingerprint = ?2 AND name = ?3")?;
        let mut after = (i64::MIN, i64::MIN);
        loop {
            let mut sums = Vec::new();
            let mut rows = select.query(params![number, after.0, after.1])?;
            while let Some(row) = rows.next()? {
                let issued = IssuedRow::unchecked(row)?;
                after = issued.place;
                sums.push((after, issued.sum(id)));
            }
            for ((fingerprint, name), sum) in &sums {
                update.execute(params![number, fingerprint, name, sum])?;
            }
            if sums.len() < PIECE {
                break;
            }
        }

        let mut select = transaction.prepare("SELECT address FROM objects WHERE realm = ?1")?;
        let addresses = select.query_map([number], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        for address in addresses {
            let bytes = transaction.query_row(
                "SELECT bytes FROM objects WHERE realm = ?1 AND address = ?2",
                params![number, address],
                |row| row.get(0),
            )?;
            let object = Object { address, bytes };
            transaction.execute(
                "UPDATE objects SET sum = ?3 WHERE realm = ?1 AND address = ?2",
                params![number, object.address, object_sum(id, &object)],
            )?;
        }
    }
    Ok(())
}
