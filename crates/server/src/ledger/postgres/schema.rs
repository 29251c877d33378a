//! The tables, and how they come to be.
//!
//! Plain SQL: no sequences (their order is not that of commits), no extensions, no triggers. Text stands in `BYTEA`,
//! since a `jti` may hold what PostgreSQL's text cannot, and since bytes are ordered the same way everywhere. Every
//! step can be done twice, and the number of the layout is written last: on engines whose DDL is not part of a
//! transaction, and with two servers that start at once, the outcome is the same.

use super::PostgresError;
use super::session::{Database, Fault, News, Outcome};
use crate::ledger::LedgerError;

/// The layout that this release writes.
pub(super) const LAYOUT: i64 = STEPS.len().cast_signed() as i64;

/// Each brings the layout before it to the next.
const STEPS: &[&str] = &[LAYOUT_1, LAYOUT_2];

const FOUNDATION: &str = "
CREATE TABLE IF NOT EXISTS revocast_layout (
    one BOOLEAN PRIMARY KEY CHECK (one),
    layout INT8 NOT NULL
);
INSERT INTO revocast_layout (one, layout) VALUES (TRUE, 0) ON CONFLICT DO NOTHING;
";

// kind: 1 revoke, 2 reinstate, 3 cutoff, 4 lift, 5 resume.
// subject_kind: 0 realm, 1 sub, 2 kid, 3 client, 4 jti, 5 none.
// value: exp of 1 and 2, not_before of 3, term of 5.
// sum: see `ledger::columns`.
const LAYOUT_1: &str = "
CREATE TABLE IF NOT EXISTS revocast_realms (
    number INT8 PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    issuer BYTEA NOT NULL UNIQUE,
    function INT2 NOT NULL,
    key BYTEA NOT NULL,
    width INT2 NOT NULL,
    leeway INT8 NOT NULL,
    max_token_lifetime INT8 NOT NULL,
    created INT8 NOT NULL,
    term INT8 NOT NULL,
    head INT8 NOT NULL,
    stored INT8 NOT NULL,
    cutoffs INT8 NOT NULL,
    registered INT8 NOT NULL,
    covered_until INT8,
    sum INT8 NOT NULL
);
CREATE TABLE IF NOT EXISTS revocast_entries (
    realm INT8 NOT NULL,
    sequence INT8 NOT NULL,
    at INT8 NOT NULL,
    kind INT2 NOT NULL,
    subject_kind INT2 NOT NULL,
    subject BYTEA NOT NULL,
    value INT8 NOT NULL,
    reason BYTEA,
    actor BYTEA NOT NULL,
    sum INT8 NOT NULL,
    PRIMARY KEY (realm, sequence)
);
CREATE UNIQUE INDEX IF NOT EXISTS revocast_entries_by_subject
    ON revocast_entries (realm, subject_kind, subject, sequence);
CREATE INDEX IF NOT EXISTS revocast_entries_by_exp ON revocast_entries (realm, value, sequence) WHERE kind IN (1, 2);
CREATE TABLE IF NOT EXISTS revocast_objects (
    realm INT8 NOT NULL,
    address TEXT NOT NULL,
    bytes BYTEA NOT NULL,
    sum INT8 NOT NULL,
    PRIMARY KEY (realm, address)
);
CREATE TABLE IF NOT EXISTS revocast_issued (
    realm INT8 NOT NULL,
    fingerprint INT8 NOT NULL,
    name INT8 NOT NULL,
    iat INT8 NOT NULL,
    exp INT8 NOT NULL,
    sub BYTEA,
    sum INT4 NOT NULL,
    PRIMARY KEY (realm, fingerprint, name)
);
CREATE TABLE IF NOT EXISTS revocast_leader (
    one BOOLEAN PRIMARY KEY CHECK (one),
    server TEXT,
    address BYTEA,
    until TIMESTAMPTZ NOT NULL
);
INSERT INTO revocast_leader (one, server, address, until)
    VALUES (TRUE, NULL, NULL, '1970-01-01T00:00:00Z') ON CONFLICT DO NOTHING;
";

// Devices, the tokens of our issuer, and refresh tokens. A realm that issued nothing keeps its checksum.
// of_device: whether the family is that of a device.
// state: 0 live, 1 spent, 2 ended.
const LAYOUT_2: &str = "
ALTER TABLE revocast_realms ADD COLUMN IF NOT EXISTS devices INT8 NOT NULL DEFAULT 0;
ALTER TABLE revocast_realms ADD COLUMN IF NOT EXISTS tokens INT8 NOT NULL DEFAULT 0;
ALTER TABLE revocast_realms ADD COLUMN IF NOT EXISTS refreshes INT8 NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS revocast_devices (
    realm INT8 NOT NULL,
    id BYTEA NOT NULL,
    signing BYTEA NOT NULL,
    sealing BYTEA NOT NULL,
    subject BYTEA NOT NULL,
    audience BYTEA NOT NULL,
    enrolled_at INT8 NOT NULL,
    counter INT8 NOT NULL,
    holds BYTEA,
    held_until INT8,
    barred BOOLEAN NOT NULL,
    sum INT8 NOT NULL,
    PRIMARY KEY (realm, id)
);
CREATE INDEX IF NOT EXISTS revocast_devices_by_end ON revocast_devices (realm, held_until, id) WHERE NOT barred;
CREATE TABLE IF NOT EXISTS revocast_tokens (
    realm INT8 NOT NULL,
    jti BYTEA NOT NULL,
    iat INT8 NOT NULL,
    exp INT8 NOT NULL,
    sub BYTEA,
    kid BYTEA,
    client BYTEA,
    of_device BOOLEAN NOT NULL,
    parent BYTEA,
    family BYTEA NOT NULL,
    kept_until INT8 NOT NULL,
    sum INT8 NOT NULL,
    PRIMARY KEY (realm, jti)
);
CREATE INDEX IF NOT EXISTS revocast_tokens_by_family ON revocast_tokens (realm, family, kept_until);
CREATE INDEX IF NOT EXISTS revocast_tokens_by_end ON revocast_tokens (realm, kept_until);
CREATE TABLE IF NOT EXISTS revocast_refreshes (
    realm INT8 NOT NULL,
    hash BYTEA NOT NULL,
    exp INT8 NOT NULL,
    state INT2 NOT NULL,
    jti BYTEA NOT NULL,
    iat INT8 NOT NULL,
    sub BYTEA,
    kid BYTEA,
    client BYTEA,
    of_device BOOLEAN NOT NULL,
    family BYTEA NOT NULL,
    sum INT8 NOT NULL,
    PRIMARY KEY (realm, hash)
);
CREATE INDEX IF NOT EXISTS revocast_refreshes_by_family ON revocast_refreshes (realm, family) WHERE state = 0;
CREATE INDEX IF NOT EXISTS revocast_refreshes_by_end ON revocast_refreshes (realm, exp);
";

/// Attempts at making tables: each one that another server disturbs has brought that one forward.
const ATTEMPTS: usize = 20;

/// Makes what is missing; refuses what is newer.
pub(super) async fn prepare(database: &Database) -> Result<(), PostgresError> {
    for _ in 0..ATTEMPTS {
        let found = database.read(|session| async move {
            match session.row("SELECT layout FROM revocast_layout WHERE one", &[]).await {
                Ok(row) => Ok(row.map(|row| row.get::<_, i64>(0))),
                Err(fault) if fault.is_missing_table() => Ok(None),
                Err(fault) => Err(fault),
            }
        });
        match found.await? {
            Some(LAYOUT) => return Ok(()),
            Some(found) if found > LAYOUT => return Err(PostgresError::Newer { found }),
            Some(found) if found < 0 => {
                return Err(LedgerError::Damaged { what: format!("it has layout {found}") }.into());
            }
            Some(_) => advance(database).await?,
            // Alone, so that two that found it at once fail here and not in the middle of a step.
            None => database.read(|session| async move { unless_duplicate(session.batch(FOUNDATION).await) }).await?,
        }
    }
    Err(PostgresError::Unsettled)
}

/// Does the next step, under a lock that all servers take.
async fn advance(database: &Database) -> Result<(), LedgerError> {
    database
        .transact(|session| async move {
            let row = session.row("SELECT layout FROM revocast_layout WHERE one FOR UPDATE", &[]).await?;
            let held = row.map_or(0, |row| row.get::<_, i64>(0));
            let step = usize::try_from(held).ok().and_then(|held| STEPS.get(held));
            let Some(step) = step else { return Ok(((), News::No)) };
            session.batch(step).await?;
            session.change("UPDATE revocast_layout SET layout = $1 WHERE one", &[&(held + 1)]).await?;
            Ok(((), News::No))
        })
        .await
}

/// Another server was faster: what it made is looked at in the next round.
fn unless_duplicate(outcome: Outcome<()>) -> Outcome<()> {
    match outcome {
        Err(fault) if fault.is_duplicate() => Ok(()),
        other => other,
    }
}

impl From<Fault> for PostgresError {
    fn from(fault: Fault) -> Self {
        Self::Ledger(fault.into_error())
    }
}
