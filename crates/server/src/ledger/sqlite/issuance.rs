//! The rows of devices, of the tokens that our issuer handed out, and of refresh tokens.

use revocast_core::{DeviceId, EnvelopePublicKey, PublicKey, RealmId, UnixTime};
use rusqlite::{CachedStatement, Connection, Params, Row, Transaction, params};

use super::{
    EXPIRE_PIECE, News, Outcome, Rows, SqliteLedger, Turned, column, damaged, known_realm, rows_of, unsigned,
    update_realm,
};
use crate::ledger::columns::{RealmRow, device_of, device_sum, list, refresh_sum, signed, texts, token_sum};
use crate::ledger::issuance::{Device, IssuedToken, RefreshState, RefreshToken};
use crate::ledger::lineage::Lineage;
use crate::ledger::registry::Coverage;
use crate::ledger::rules::{Counters, Halt};
use crate::ledger::{LedgerError, Realm};

/// Joins the schema of a new ledger, and that of one of layout 3.
///
/// What the other indexes of `tokens` repeat of it is small: so it has numbers of its own, and is no tree by `jti`.
pub(super) const SCHEMA: &str = "
CREATE TABLE devices (
    realm INTEGER NOT NULL,
    id TEXT NOT NULL,
    signing BLOB NOT NULL,
    sealing BLOB NOT NULL,
    subject TEXT NOT NULL,
    audience BLOB NOT NULL,
    enrolled_at INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    holds TEXT,
    held_until INTEGER,
    barred INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    PRIMARY KEY (realm, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX devices_by_end ON devices (realm, held_until) WHERE held_until IS NOT NULL AND barred = 0;

-- of_device: whether the family is that of a device.
CREATE TABLE tokens (
    number INTEGER PRIMARY KEY,
    realm INTEGER NOT NULL,
    jti TEXT NOT NULL,
    iat INTEGER NOT NULL,
    exp INTEGER NOT NULL,
    sub TEXT,
    kid TEXT,
    client TEXT,
    of_device INTEGER NOT NULL,
    parent TEXT,
    family TEXT NOT NULL,
    kept_until INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX tokens_by_jti ON tokens (realm, jti);
CREATE INDEX tokens_by_family ON tokens (realm, family, kept_until);
CREATE INDEX tokens_by_end ON tokens (realm, kept_until);

-- state: 0 live, 1 spent, 2 ended.
CREATE TABLE refreshes (
    realm INTEGER NOT NULL,
    hash BLOB NOT NULL,
    exp INTEGER NOT NULL,
    state INTEGER NOT NULL,
    jti TEXT NOT NULL,
    iat INTEGER NOT NULL,
    sub TEXT,
    kid TEXT,
    client TEXT,
    of_device INTEGER NOT NULL,
    family TEXT NOT NULL,
    sum INTEGER NOT NULL,
    PRIMARY KEY (realm, hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX refreshes_by_family ON refreshes (realm, family) WHERE state = 0;
CREATE INDEX refreshes_by_end ON refreshes (realm, exp);
";

pub(super) const SELECT_DEVICE: &str = "SELECT id, signing, sealing, subject, audience, enrolled_at, counter, holds,
    held_until, barred, sum FROM devices";

pub(super) const SELECT_TOKEN: &str =
    "SELECT jti, iat, exp, sub, kid, client, of_device, parent, family, kept_until, sum FROM tokens";

pub(super) const SELECT_REFRESH: &str =
    "SELECT hash, exp, state, jti, iat, sub, kid, client, of_device, family, sum FROM refreshes";

fn time(row: &Row<'_>, index: usize) -> Outcome<UnixTime> {
    unsigned(column(row, index, "a time")?, "a time").map(UnixTime::from_secs)
}

pub(super) fn device(realm: RealmId, row: &Row<'_>) -> Outcome<Device> {
    let id: String = column(row, 0, "a device")?;
    let bad = |what: &str| damaged(format!("device {id:?} of realm {realm} has {what}"));
    let held_until = column::<Option<i64>>(row, 8, "a time")?.map(|until| unsigned(until, "a time")).transpose()?;
    let found = Device {
        id: DeviceId::new(&id).map_err(|_| bad("a name that no device can have"))?,
        signing: PublicKey(column(row, 1, "a key")?),
        sealing: EnvelopePublicKey::kept(column(row, 2, "a key")?),
        subject: column(row, 3, "a subject")?,
        audience: texts(&column::<Vec<u8>>(row, 4, "an audience")?).ok_or_else(|| bad("an audience that is none"))?,
        enrolled_at: time(row, 5)?,
        counter: column::<i64>(row, 6, "a counter")?.cast_unsigned(),
        holds: column(row, 7, "a jti")?,
        held_until: held_until.map(UnixTime::from_secs),
        barred: column(row, 9, "a mark")?,
    };
    if device_sum(realm, &found) == column::<i64>(row, 10, "a checksum")? {
        Ok(found)
    } else {
        Err(damaged(format!("device {} of realm {realm} does not match its checksum", found.id)))
    }
}

pub(super) fn token(realm: RealmId, row: &Row<'_>) -> Outcome<IssuedToken> {
    let family: String = column(row, 8, "a family")?;
    let device = device_of(&family, column(row, 6, "a mark")?);
    let found = IssuedToken {
        jti: column(row, 0, "a jti")?,
        iat: time(row, 1)?,
        exp: time(row, 2)?,
        sub: column(row, 3, "a sub")?,
        kid: column(row, 4, "a kid")?,
        client: column(row, 5, "a client")?,
        device: device.map_err(|_| damaged(format!("an issued token of realm {realm} has no device {family:?}")))?,
        parent: column(row, 7, "a parent")?,
        family,
        kept_until: time(row, 9)?,
    };
    if token_sum(realm, &found) == column::<i64>(row, 10, "a checksum")? {
        Ok(found)
    } else {
        Err(damaged(format!("issued token {:?} of realm {realm} does not match its checksum", found.jti)))
    }
}

pub(super) fn refresh(realm: RealmId, row: &Row<'_>) -> Outcome<RefreshToken> {
    let (family, jti): (String, String) = (column(row, 9, "a family")?, column(row, 3, "a jti")?);
    let bad = |what: &str| damaged(format!("the refresh token of {jti:?} of realm {realm} has {what}"));
    let device = device_of(&family, column(row, 8, "a mark")?);
    let state = RefreshState::from_number(column(row, 2, "a state")?);
    let found = RefreshToken {
        hash: column(row, 0, "a hash")?,
        exp: time(row, 1)?,
        state: state.ok_or_else(|| bad("a state that does not exist"))?,
        iat: time(row, 4)?,
        sub: column(row, 5, "a sub")?,
        kid: column(row, 6, "a kid")?,
        client: column(row, 7, "a client")?,
        device: device.map_err(|_| bad("no device"))?,
        family,
        jti: jti.clone(),
    };
    if refresh_sum(realm, &found) == column::<i64>(row, 10, "a checksum")? {
        Ok(found)
    } else {
        Err(bad("another checksum"))
    }
}

/// All rows that a statement finds, read by `parse`.
pub(super) fn all<T>(
    mut statement: CachedStatement<'_>,
    values: impl Params,
    realm: RealmId,
    parse: fn(RealmId, &Row<'_>) -> Outcome<T>,
) -> Outcome<Vec<T>> {
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(parse(realm, row)?);
    }
    Ok(found)
}

/// The same, where there can be one.
pub(super) fn one<T>(
    mut statement: CachedStatement<'_>,
    values: impl Params,
    realm: RealmId,
    parse: fn(RealmId, &Row<'_>) -> Outcome<T>,
) -> Outcome<Option<T>> {
    let mut rows = statement.query(values)?;
    rows.next()?.map(|row| parse(realm, row)).transpose()
}

pub(super) fn put_device(connection: &Connection, number: i64, realm: RealmId, device: &Device) -> Outcome<()> {
    let put = "INSERT OR REPLACE INTO devices
        (realm, id, signing, sealing, subject, audience, enrolled_at, counter, holds, held_until, barred, sum)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    connection.prepare_cached(put)?.execute(params![
        number,
        device.id.as_str(),
        device.signing.0,
        device.sealing.as_bytes(),
        device.subject,
        list(&device.audience),
        signed(device.enrolled_at.secs()),
        device.counter.cast_signed(),
        device.holds,
        device.held_until.map(|until| signed(until.secs())),
        device.barred,
        device_sum(realm, device),
    ])?;
    Ok(())
}

pub(super) fn put_token(connection: &Connection, number: i64, realm: RealmId, token: &IssuedToken) -> Outcome<()> {
    let put = "INSERT INTO tokens
        (realm, jti, iat, exp, sub, kid, client, of_device, parent, family, kept_until, sum)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    connection.prepare_cached(put)?.execute(params![
        number,
        token.jti,
        signed(token.iat.secs()),
        signed(token.exp.secs()),
        token.sub,
        token.kid,
        token.client,
        token.device.is_some(),
        token.parent,
        token.family,
        signed(token.kept_until.secs()),
        token_sum(realm, token),
    ])?;
    Ok(())
}

pub(super) fn put_refresh(connection: &Connection, number: i64, realm: RealmId, refresh: &RefreshToken) -> Outcome<()> {
    let put = "INSERT OR REPLACE INTO refreshes
        (realm, hash, exp, state, jti, iat, sub, kid, client, of_device, family, sum)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    connection.prepare_cached(put)?.execute(params![
        number,
        refresh.hash,
        signed(refresh.exp.secs()),
        refresh.state as u8,
        refresh.jti,
        signed(refresh.iat.secs()),
        refresh.sub,
        refresh.kid,
        refresh.client,
        refresh.device.is_some(),
        refresh.family,
        refresh_sum(realm, refresh),
    ])?;
    Ok(())
}

pub(super) fn find_device(connection: &Connection, row: &RealmRow, id: DeviceId) -> Outcome<Option<Device>> {
    device_in(connection, row.number, row.realm.id, id)
}

fn device_in(connection: &Connection, number: i64, realm: RealmId, id: DeviceId) -> Outcome<Option<Device>> {
    let select = connection.prepare_cached(&format!("{SELECT_DEVICE} WHERE realm = ?1 AND id = ?2"))?;
    one(select, params![number, id.as_str()], realm, device)
}

pub(super) fn find_token(
    connection: &Connection,
    number: i64,
    realm: RealmId,
    jti: &str,
) -> Outcome<Option<IssuedToken>> {
    let select =
        connection.prepare_cached(&format!("{SELECT_TOKEN} INDEXED BY tokens_by_jti WHERE realm = ?1 AND jti = ?2"))?;
    // The index is a copy that no checksum covers.
    match one(select, params![number, jti], realm, token)? {
        Some(found) if found.jti != jti => {
            Err(damaged(format!("the index of issued tokens names {:?} instead of {jti:?}", found.jti)))
        }
        found => Ok(found),
    }
}

impl Lineage for Rows<'_> {
    fn token(&mut self, jti: &str) -> Outcome<Option<IssuedToken>> {
        let Turned { number, id, .. } = self.turned()?;
        find_token(self.connection, number, id, jti)
    }

    fn family(&mut self, family: &str, horizon: UnixTime) -> Outcome<Vec<IssuedToken>> {
        let Turned { number, id, .. } = self.turned()?;
        let select = self.connection.prepare_cached(&format!(
            "{SELECT_TOKEN} INDEXED BY tokens_by_family WHERE realm = ?1 AND family = ?2 AND kept_until > ?3"
        ))?;
        let found = all(select, params![number, family, signed(horizon.secs())], id, token)?;
        match found.iter().find(|token| token.family != family) {
            Some(token) => Err(damaged(format!("the index of families names {:?} of another", token.jti))),
            None => Ok(found),
        }
    }

    fn family_size(&mut self, family: &str, horizon: UnixTime) -> Outcome<usize> {
        let Turned { number, .. } = self.turned()?;
        let mut count = self
            .connection
            .prepare_cached("SELECT count(*) FROM tokens WHERE realm = ?1 AND family = ?2 AND kept_until > ?3")?;
        let count: u32 = count.query_row(params![number, family, signed(horizon.secs())], |row| row.get(0))?;
        Ok(count as usize)
    }

    fn refresh(&mut self, hash: &[u8; 32]) -> Outcome<Option<RefreshToken>> {
        let Turned { number, id, .. } = self.turned()?;
        let select = self.connection.prepare_cached(&format!("{SELECT_REFRESH} WHERE realm = ?1 AND hash = ?2"))?;
        one(select, params![number, hash], id, refresh)
    }

    fn live_refreshes(&mut self, family: &str) -> Outcome<Vec<RefreshToken>> {
        let Turned { number, id, .. } = self.turned()?;
        let select = self.connection.prepare_cached(&format!(
            "{SELECT_REFRESH} INDEXED BY refreshes_by_family WHERE realm = ?1 AND family = ?2 AND state = 0"
        ))?;
        let found = all(select, params![number, family], id, refresh)?;
        match found.iter().find(|refresh| refresh.family != family) {
            Some(refresh) => Err(damaged(format!("the index of refresh tokens names {:?} of another", refresh.jti))),
            None => Ok(found),
        }
    }

    fn device(&mut self, device: DeviceId) -> Outcome<Option<Device>> {
        let Turned { number, id, .. } = self.turned()?;
        device_in(self.connection, number, id, device)
    }

    fn put_token(&mut self, token: &IssuedToken) -> Outcome<()> {
        let Turned { number, id, .. } = self.turned()?;
        put_token(self.connection, number, id, token)
    }

    fn put_refresh(&mut self, refresh: &RefreshToken) -> Outcome<()> {
        let Turned { number, id, .. } = self.turned()?;
        put_refresh(self.connection, number, id, refresh)
    }

    fn put_device(&mut self, device: &Device) -> Outcome<()> {
        let Turned { number, id, .. } = self.turned()?;
        put_device(self.connection, number, id, device)
    }

    fn remove_device(&mut self, device: DeviceId) -> Outcome<()> {
        let Turned { number, .. } = self.turned()?;
        let mut delete = self.connection.prepare_cached("DELETE FROM devices WHERE realm = ?1 AND id = ?2")?;
        delete.execute(params![number, device.as_str()])?;
        Ok(())
    }
}

impl SqliteLedger {
    /// Decides one call in a transaction of its own.
    pub(super) async fn decided<T: Send + 'static>(
        &self,
        realm: RealmId,
        call: impl FnOnce(&mut Rows<'_>, &Realm, &mut Counters, &mut Coverage) -> Result<T, Halt<Halt<rusqlite::Error>>>
        + Send
        + 'static,
    ) -> Result<T, LedgerError> {
        self.exclusive(move |transaction| {
            let mut row = known_realm(transaction, realm)?;
            let (mut counters, mut coverage) = (row.counters, row.coverage);
            let mut rows = rows_of(transaction)?;
            rows.turn_to(&row);
            let done = call(&mut rows, &row.realm, &mut counters, &mut coverage).map_err(|halt| match halt {
                Halt::Refused(error) => Halt::Refused(error),
                Halt::Storage(halt) => halt,
            })?;
            let news = if counters.head == row.counters.head { News::No } else { News::Yes };
            if (counters, coverage) != (row.counters, row.coverage) {
                (row.counters, row.coverage) = (counters, coverage);
                update_realm(transaction, &row)?;
            }
            Ok((done, news))
        })
        .await
    }
}

/// Forgets issued tokens and refresh tokens, each looked at itself; returns whether that was all.
pub(super) fn expire_piece(transaction: &Transaction<'_>, realm: RealmId, horizon: UnixTime) -> Outcome<bool> {
    let mut row = known_realm(transaction, realm)?;
    let values = params![row.number, signed(horizon.secs()), signed(EXPIRE_PIECE as u64)];
    let early = |what: &str| damaged(format!("an index of expiry names {what}, which does not expire yet"));

    let select = transaction.prepare_cached(&format!(
        "{SELECT_TOKEN} INDEXED BY tokens_by_end WHERE realm = ?1 AND kept_until <= ?2 ORDER BY kept_until LIMIT ?3"
    ))?;
    let tokens = all(select, values, realm, token)?;
    let mut delete = transaction.prepare_cached("DELETE FROM tokens WHERE realm = ?1 AND jti = ?2")?;
    for token in &tokens {
        if token.kept_until > horizon {
            return Err(early("an issued token"));
        }
        delete.execute(params![row.number, token.jti])?;
    }

    let select = transaction.prepare_cached(&format!(
        "{SELECT_REFRESH} INDEXED BY refreshes_by_end WHERE realm = ?1 AND exp <= ?2 ORDER BY exp LIMIT ?3"
    ))?;
    let refreshes = all(select, values, realm, refresh)?;
    let mut delete = transaction.prepare_cached("DELETE FROM refreshes WHERE realm = ?1 AND hash = ?2")?;
    for refresh in &refreshes {
        if refresh.exp > horizon {
            return Err(early("a refresh token"));
        }
        delete.execute(params![row.number, refresh.hash])?;
    }

    if !tokens.is_empty() || !refreshes.is_empty() {
        row.counters.tokens = row.counters.tokens.saturating_sub(tokens.len() as u64);
        row.counters.refreshes = row.counters.refreshes.saturating_sub(refreshes.len() as u64);
        update_realm(transaction, &row)?;
    }
    Ok(tokens.len() < EXPIRE_PIECE && refreshes.len() < EXPIRE_PIECE)
}
