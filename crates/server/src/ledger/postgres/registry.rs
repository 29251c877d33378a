//! The registry's rows: registering, showing, forgetting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use revocast_core::limits::ISSUED_BATCH_MAX;
use revocast_core::{Fingerprint, RealmId, UnixTime};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::issuance::{Wanted, decided};
use super::rows::{damaged, hold_realm, issued_columns, update_realm};
use super::session::{Database, Fault, News, Outcome};
use crate::ledger::columns::{column, fingerprint, signed};
use crate::ledger::registry::{self, Coverage, Issued, Registration, Visitor};
use crate::ledger::{LedgerError, Realm};

/// Tokens fetched, and shown to a visitor, at a time.
const VISIT_BATCH: i64 = 4_096;

/// Batches that are fetched ahead of a visitor.
const VISIT_AHEAD: usize = 2;

/// Tokens forgotten in one transaction, so that appends get their turn in between.
const SWEEP_PIECE: i64 = 2_000;

/// The horizon when expired tokens were last looked for, by realm.
pub(super) type Sweeps = Mutex<BTreeMap<RealmId, UnixTime>>;

pub(super) async fn register(
    database: &Database,
    realm: RealmId,
    now: UnixTime,
    issued: Vec<Issued>,
) -> Result<Registration, LedgerError> {
    if issued.len() > ISSUED_BATCH_MAX {
        return Err(LedgerError::IssuedTooMany { tokens: issued.len() });
    }
    let want = |realm: &Realm, wanted: &mut Wanted| issued.iter().for_each(|issued| wanted.token(realm, &issued.jti));
    decided(database, realm, want, |draft, realm, counters, coverage| {
        registry::register(draft, realm, counters, coverage, now, issued.clone())
    })
    .await
}

pub(super) async fn cover(
    database: &Database,
    realm: RealmId,
    now: UnixTime,
    until: UnixTime,
) -> Result<Coverage, LedgerError> {
    database
        .transact(|session| async move {
            let mut row = hold_realm(&session, realm).await?;
            let coverage = row.coverage.moved(&row.realm, now, until)?;
            if coverage != row.coverage {
                row.coverage = coverage;
                update_realm(&session, &row).await?;
            }
            Ok((coverage, News::No))
        })
        .await
}

/// Freezes under the lock that every registration takes, then reads in snapshots that began later.
pub(super) async fn visit(
    database: &Arc<Database>,
    realm: RealmId,
    visitors: Vec<Visitor>,
) -> Result<Coverage, LedgerError> {
    registry::check_visitors(&visitors)?;
    let frozen = database.transact(|session| async move { Ok((hold_realm(&session, realm).await?, News::No)) }).await?;
    let width = frozen.realm.fingerprinter.width();
    let parts = visitors.len();
    let mut showing = tokio::task::JoinSet::new();
    for (index, mut visitor) in visitors.into_iter().enumerate() {
        let (low, high) = registry::part(width, index, parts);
        let (low, high) = (column(low, width), column(high, width));
        let (database, number) = (Arc::clone(database), frozen.number);
        let (batches, mut shown) = mpsc::channel::<Vec<(Fingerprint, UnixTime)>>(VISIT_AHEAD);
        // Visitors compute; what they compute must not hold up connections.
        let visiting = spawn_blocking(move || {
            while let Some(batch) = shown.blocking_recv() {
                if !visitor(&batch) {
                    break;
                }
            }
        });
        showing.spawn(async move {
            let session = database.snapshot().await?;
            let read = async {
                let mut after = (low, i64::MIN);
                loop {
                    let rows = session
                        .rows(
                            "SELECT fingerprint, name, iat, exp, sub, sum FROM revocast_issued
                             WHERE realm = $1 AND (fingerprint, name) >= ($2, $3) AND fingerprint <= $4
                             ORDER BY fingerprint, name LIMIT $5",
                            &[&number, &after.0, &after.1, &high, &VISIT_BATCH],
                        )
                        .await?;
                    let mut batch = Vec::with_capacity(rows.len());
                    let mut last = None;
                    for row in &rows {
                        let found = issued_columns(realm, row)?;
                        let bits = fingerprint(found.place.0, width).ok_or_else(|| {
                            damaged(format!("a token has fingerprint {}, which is none of the realm's", found.place.0))
                        })?;
                        batch.push((bits, UnixTime::from_secs(found.exp.cast_unsigned())));
                        last = Some(found.place);
                    }
                    let is_full = signed(rows.len() as u64) == VISIT_BATCH;
                    // Whoever has seen enough listens no more.
                    if !batch.is_empty() && batches.send(batch).await.is_err() {
                        return Ok(());
                    }
                    match last.filter(|_| is_full).and_then(registry::after) {
                        Some(next) => after = next,
                        None => return Ok(()),
                    }
                }
            };
            let read: Outcome<()> = read.await;
            drop(batches);
            let ended = visiting.await.map_err(|error| LedgerError::Storage(Arc::new(error)));
            read.map_err(Fault::into_error)?;
            // Whether this works is of no account: the connection is closed otherwise.
            let _ = session.end().await;
            ended
        });
    }
    while let Some(shown) = showing.join_next().await {
        shown.map_err(|error| LedgerError::Storage(Arc::new(error)))??;
    }
    Ok(frozen.coverage)
}

/// Forgets registered tokens, if it is time.
pub(super) async fn sweep(
    database: &Database,
    sweeps: &Sweeps,
    realm: RealmId,
    horizon: UnixTime,
) -> Result<(), LedgerError> {
    let swept = sweeps.lock().unwrap_or_else(PoisonError::into_inner).get(&realm).copied();
    if !registry::sweep_is_due(swept, horizon) {
        return Ok(());
    }
    let limit = signed(horizon.secs());
    let mut after = Some((i64::MIN, i64::MIN));
    while let Some(from) = after {
        // Read beside everything else, so that the row of the realm is held only while tokens go.
        let expired = database
            .read(|session| async move {
                let rows = session
                    .rows(
                        "SELECT i.fingerprint, i.name FROM revocast_issued AS i
                         JOIN revocast_realms AS r ON r.number = i.realm AND r.id = $1
                         WHERE (i.fingerprint, i.name) >= ($2, $3) AND i.exp <= $4
                         ORDER BY i.fingerprint, i.name LIMIT $5",
                        &[&realm.as_str(), &from.0, &from.1, &limit, &SWEEP_PIECE],
                    )
                    .await?;
                Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(i64, i64)>>())
            })
            .await?;
        after =
            expired.last().copied().filter(|_| signed(expired.len() as u64) == SWEEP_PIECE).and_then(registry::after);
        if expired.is_empty() {
            break;
        }
        let (fingerprints, names): (Vec<_>, Vec<_>) = expired.into_iter().unzip();
        let (fingerprints, names) = (&fingerprints, &names);
        database
            .transact(|session| async move {
                let mut row = hold_realm(&session, realm).await?;
                let gone = session
                    .change(
                        "DELETE FROM revocast_issued AS i
                         USING unnest($2::INT8[], $3::INT8[]) AS w (fingerprint, name)
                         WHERE i.realm = $1 AND i.fingerprint = w.fingerprint AND i.name = w.name AND i.exp <= $4",
                        &[&row.number, fingerprints, names, &limit],
                    )
                    .await?;
                row.coverage.registered = row.coverage.registered.saturating_sub(gone);
                update_realm(&session, &row).await?;
                Ok(((), News::No))
            })
            .await?;
    }
    sweeps.lock().unwrap_or_else(PoisonError::into_inner).insert(realm, horizon);
    Ok(())
}
