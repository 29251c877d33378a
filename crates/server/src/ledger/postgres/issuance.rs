//! The rows of devices, of the tokens that our issuer handed out, and of refresh tokens; and what of them the rules
//! will ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;

use revocast_core::{DeviceId, EnvelopePublicKey, Jti, PublicKey, RealmId, UnixTime};
use tokio_postgres::Row;

use super::rows::{damaged, exps, hold_realm, lasts, text, unsigned, write};
use super::session::{Database, Fault, News, Outcome, Session};
use crate::ledger::columns::{RealmRow, device_of, device_sum, list, refresh_sum, signed, texts, token_sum};
use crate::ledger::draft::{Base, Draft, Name, name_of};
use crate::ledger::issuance::{Device, IssuedToken, Order, RefreshState, RefreshToken, Renewal};
use crate::ledger::lineage;
use crate::ledger::registry::{Coverage, Key};
use crate::ledger::rules::{Counters, Halt, Last, Subject};
use crate::ledger::{Action, LedgerError, Realm, Request};

pub(super) const SELECT_DEVICE: &str = "SELECT id, signing, sealing, subject, audience, enrolled_at, counter, holds,
    held_until, barred, sum FROM revocast_devices";

pub(super) const SELECT_TOKEN: &str =
    "SELECT jti, iat, exp, sub, kid, client, of_device, parent, family, kept_until, sum FROM revocast_tokens";

pub(super) const SELECT_REFRESH: &str =
    "SELECT hash, exp, state, jti, iat, sub, kid, client, of_device, family, sum FROM revocast_refreshes";

fn time(row: &Row, index: usize) -> Outcome<UnixTime> {
    unsigned(row.get(index), "a time").map(UnixTime::from_secs)
}

fn maybe_text(row: &Row, index: usize, what: &str) -> Outcome<Option<String>> {
    row.get::<_, Option<&[u8]>>(index).map(|bytes| text(bytes, what)).transpose()
}

fn bytes(row: &Row, index: usize, what: &str) -> Outcome<[u8; 32]> {
    row.get::<_, &[u8]>(index).try_into().map_err(|_| damaged(format!("{what} has not 32 bytes")))
}

pub(super) fn device(realm: RealmId, row: &Row) -> Outcome<Device> {
    let id = text(row.get(0), "a device")?;
    let bad = |what: &str| damaged(format!("device {id:?} of realm {realm} has {what}"));
    let held_until = row.get::<_, Option<i64>>(8).map(|until| unsigned(until, "a time")).transpose()?;
    let found = Device {
        id: DeviceId::new(&id).map_err(|_| bad("a name that no device can have"))?,
        signing: PublicKey(bytes(row, 1, "a key")?),
        sealing: EnvelopePublicKey::kept(bytes(row, 2, "a key")?),
        subject: text(row.get(3), "a subject")?,
        audience: texts(row.get(4)).ok_or_else(|| bad("an audience that is none"))?,
        enrolled_at: time(row, 5)?,
        counter: row.get::<_, i64>(6).cast_unsigned(),
        holds: maybe_text(row, 7, "a jti")?,
        held_until: held_until.map(UnixTime::from_secs),
        barred: row.get(9),
    };
    if device_sum(realm, &found) == row.get::<_, i64>(10) {
        Ok(found)
    } else {
        Err(damaged(format!("device {} of realm {realm} does not match its checksum", found.id)))
    }
}

pub(super) fn token(realm: RealmId, row: &Row) -> Outcome<IssuedToken> {
    let family = text(row.get(8), "a family")?;
    let device = device_of(&family, row.get(6));
    let found = IssuedToken {
        jti: text(row.get(0), "a jti")?,
        iat: time(row, 1)?,
        exp: time(row, 2)?,
        sub: maybe_text(row, 3, "a sub")?,
        kid: maybe_text(row, 4, "a kid")?,
        client: maybe_text(row, 5, "a client")?,
        device: device.map_err(|_| damaged(format!("an issued token of realm {realm} has no device {family:?}")))?,
        parent: maybe_text(row, 7, "a parent")?,
        family,
        kept_until: time(row, 9)?,
    };
    if token_sum(realm, &found) == row.get::<_, i64>(10) {
        Ok(found)
    } else {
        Err(damaged(format!("issued token {:?} of realm {realm} does not match its checksum", found.jti)))
    }
}

pub(super) fn refresh(realm: RealmId, row: &Row) -> Outcome<RefreshToken> {
    let (family, jti) = (text(row.get(9), "a family")?, text(row.get(3), "a jti")?);
    let bad = |what: &str| damaged(format!("the refresh token of {jti:?} of realm {realm} has {what}"));
    let device = device_of(&family, row.get(8));
    let state = u8::try_from(row.get::<_, i16>(2)).ok().and_then(RefreshState::from_number);
    let found = RefreshToken {
        hash: bytes(row, 0, "a hash")?,
        exp: time(row, 1)?,
        state: state.ok_or_else(|| bad("a state that does not exist"))?,
        iat: time(row, 4)?,
        sub: maybe_text(row, 5, "a sub")?,
        kid: maybe_text(row, 6, "a kid")?,
        client: maybe_text(row, 7, "a client")?,
        device: device.map_err(|_| bad("no device"))?,
        family,
        jti: jti.clone(),
    };
    if refresh_sum(realm, &found) == row.get::<_, i64>(10) { Ok(found) } else { Err(bad("another checksum")) }
}

fn as_bytes(text: Option<&String>) -> Option<&[u8]> {
    text.map(String::as_bytes)
}

/// Devices as they are now, whether they were there before or not.
pub(super) async fn put_devices(session: &Session, number: i64, realm: RealmId, devices: &[Device]) -> Outcome<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = devices.iter().map(|device| device.id.as_bytes()).collect();
    let signing: Vec<_> = devices.iter().map(|device| device.signing.0.as_slice()).collect();
    let sealing: Vec<_> = devices.iter().map(|device| device.sealing.as_bytes().as_slice()).collect();
    let subjects: Vec<_> = devices.iter().map(|device| device.subject.as_bytes()).collect();
    let audiences: Vec<_> = devices.iter().map(|device| list(&device.audience)).collect();
    let times: Vec<_> = devices.iter().map(|device| signed(device.enrolled_at.secs())).collect();
    let counters: Vec<_> = devices.iter().map(|device| device.counter.cast_signed()).collect();
    let holds: Vec<_> = devices.iter().map(|device| as_bytes(device.holds.as_ref())).collect();
    let ends: Vec<_> = devices.iter().map(|device| device.held_until.map(|until| signed(until.secs()))).collect();
    let barred: Vec<_> = devices.iter().map(|device| device.barred).collect();
    let sums: Vec<_> = devices.iter().map(|device| device_sum(realm, device)).collect();
    session
        .change(
            "INSERT INTO revocast_devices
             (realm, id, signing, sealing, subject, audience, enrolled_at, counter, holds, held_until, barred, sum)
             SELECT $1::INT8, n.id, n.signing, n.sealing, n.subject, n.audience, n.enrolled_at, n.counter, n.holds,
                 n.held_until, n.barred, n.sum
             FROM unnest($2::BYTEA[], $3::BYTEA[], $4::BYTEA[], $5::BYTEA[], $6::BYTEA[], $7::INT8[], $8::INT8[],
                 $9::BYTEA[], $10::INT8[], $11::BOOLEAN[], $12::INT8[])
             AS n (id, signing, sealing, subject, audience, enrolled_at, counter, holds, held_until, barred, sum)
             ON CONFLICT (realm, id) DO UPDATE SET signing = excluded.signing, sealing = excluded.sealing,
                 subject = excluded.subject, audience = excluded.audience, enrolled_at = excluded.enrolled_at,
                 counter = excluded.counter, holds = excluded.holds, held_until = excluded.held_until,
                 barred = excluded.barred, sum = excluded.sum",
            &[
                &number, &ids, &signing, &sealing, &subjects, &audiences, &times, &counters, &holds, &ends, &barred,
                &sums,
            ],
        )
        .await?;
    Ok(())
}

pub(super) async fn remove_devices(session: &Session, number: i64, devices: &[DeviceId]) -> Outcome<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = devices.iter().map(DeviceId::as_bytes).collect();
    session.change("DELETE FROM revocast_devices WHERE realm = $1 AND id = ANY($2)", &[&number, &ids]).await?;
    Ok(())
}

pub(super) async fn insert_tokens(
    session: &Session,
    number: i64,
    realm: RealmId,
    tokens: &[IssuedToken],
) -> Outcome<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let jtis: Vec<_> = tokens.iter().map(|token| token.jti.as_bytes()).collect();
    let iats: Vec<_> = tokens.iter().map(|token| signed(token.iat.secs())).collect();
    let exps: Vec<_> = tokens.iter().map(|token| signed(token.exp.secs())).collect();
    let subs: Vec<_> = tokens.iter().map(|token| as_bytes(token.sub.as_ref())).collect();
    let kids: Vec<_> = tokens.iter().map(|token| as_bytes(token.kid.as_ref())).collect();
    let clients: Vec<_> = tokens.iter().map(|token| as_bytes(token.client.as_ref())).collect();
    let of_device: Vec<_> = tokens.iter().map(|token| token.device.is_some()).collect();
    let parents: Vec<_> = tokens.iter().map(|token| as_bytes(token.parent.as_ref())).collect();
    let families: Vec<_> = tokens.iter().map(|token| token.family.as_bytes()).collect();
    let ends: Vec<_> = tokens.iter().map(|token| signed(token.kept_until.secs())).collect();
    let checks: Vec<_> = tokens.iter().map(|token| token_sum(realm, token)).collect();
    session
        .change(
            "INSERT INTO revocast_tokens
             (realm, jti, iat, exp, sub, kid, client, of_device, parent, family, kept_until, sum)
             SELECT $1::INT8, n.jti, n.iat, n.exp, n.sub, n.kid, n.client, n.of_device, n.parent, n.family,
                 n.kept_until, n.sum
             FROM unnest($2::BYTEA[], $3::INT8[], $4::INT8[], $5::BYTEA[], $6::BYTEA[], $7::BYTEA[], $8::BOOLEAN[],
                 $9::BYTEA[], $10::BYTEA[], $11::INT8[], $12::INT8[])
             AS n (jti, iat, exp, sub, kid, client, of_device, parent, family, kept_until, sum)",
            &[&number, &jtis, &iats, &exps, &subs, &kids, &clients, &of_device, &parents, &families, &ends, &checks],
        )
        .await?;
    Ok(())
}

/// Refresh tokens as they are now. Of one that was there before only the state can be another.
pub(super) async fn put_refreshes(
    session: &Session,
    number: i64,
    realm: RealmId,
    refreshes: &[RefreshToken],
) -> Outcome<()> {
    if refreshes.is_empty() {
        return Ok(());
    }
    let hashes: Vec<_> = refreshes.iter().map(|refresh| refresh.hash.as_slice()).collect();
    let exps: Vec<_> = refreshes.iter().map(|refresh| signed(refresh.exp.secs())).collect();
    let states: Vec<_> = refreshes.iter().map(|refresh| refresh.state as i16).collect();
    let jtis: Vec<_> = refreshes.iter().map(|refresh| refresh.jti.as_bytes()).collect();
    let iats: Vec<_> = refreshes.iter().map(|refresh| signed(refresh.iat.secs())).collect();
    let subs: Vec<_> = refreshes.iter().map(|refresh| as_bytes(refresh.sub.as_ref())).collect();
    let kids: Vec<_> = refreshes.iter().map(|refresh| as_bytes(refresh.kid.as_ref())).collect();
    let clients: Vec<_> = refreshes.iter().map(|refresh| as_bytes(refresh.client.as_ref())).collect();
    let of_device: Vec<_> = refreshes.iter().map(|refresh| refresh.device.is_some()).collect();
    let families: Vec<_> = refreshes.iter().map(|refresh| refresh.family.as_bytes()).collect();
    let checks: Vec<_> = refreshes.iter().map(|refresh| refresh_sum(realm, refresh)).collect();
    session
        .change(
            "INSERT INTO revocast_refreshes
             (realm, hash, exp, state, jti, iat, sub, kid, client, of_device, family, sum)
             SELECT $1::INT8, n.hash, n.exp, n.state, n.jti, n.iat, n.sub, n.kid, n.client, n.of_device, n.family, n.sum
             FROM unnest($2::BYTEA[], $3::INT8[], $4::INT2[], $5::BYTEA[], $6::INT8[], $7::BYTEA[], $8::BYTEA[],
                 $9::BYTEA[], $10::BOOLEAN[], $11::BYTEA[], $12::INT8[])
             AS n (hash, exp, state, jti, iat, sub, kid, client, of_device, family, sum)
             ON CONFLICT (realm, hash) DO UPDATE SET state = excluded.state, sum = excluded.sum",
            &[&number, &hashes, &exps, &states, &jtis, &iats, &subs, &kids, &clients, &of_device, &families, &checks],
        )
        .await?;
    Ok(())
}

/// What the rules will ask for in one realm, as far as calls tell.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    names: BTreeSet<Name>,
    keys: BTreeSet<Key>,
    tokens: BTreeSet<String>,
    /// Tokens with which all goes that descends from them.
    doomed: BTreeSet<String>,
    refreshes: BTreeSet<[u8; 32]>,
    devices: BTreeSet<DeviceId>,
    /// Devices whose newest token is meant without being named.
    holders: BTreeSet<DeviceId>,
    /// Families of which every token is wanted.
    families: BTreeSet<String>,
    /// Families that shall grow.
    growing: BTreeSet<String>,
    /// Nobody asks for tokens that are kept up to then only.
    horizon: Option<UnixTime>,
}

impl Wanted {
    /// An entry about a token, and its registration.
    pub(super) fn token(&mut self, realm: &Realm, jti: &str) {
        self.names.insert(name_of(Subject::Token(jti)));
        self.keys.extend(Jti::new(jti).ok().map(|jti| Key::of(&realm.fingerprinter, jti)));
    }

    pub(super) fn requests(&mut self, realm: &Realm, now: UnixTime, requests: &[Request]) {
        self.at(realm, now);
        for request in requests {
            match &request.action {
                Action::Revoke { jti, .. } | Action::Reinstate { jti } => {
                    self.token(realm, jti);
                    self.tokens.insert(jti.clone());
                    if matches!(request.action, Action::Revoke { .. }) {
                        self.doomed.insert(jti.clone());
                    }
                }
                Action::Cutoff { scope, .. } | Action::Lift { scope } => {
                    self.names.insert(name_of(Subject::Scope(scope)));
                }
            }
        }
    }

    pub(super) fn order(&mut self, realm: &Realm, now: UnixTime, order: &Order) {
        self.at(realm, now);
        let Order { token, device, renewal, refresh, .. } = order;
        self.token(realm, &token.jti);
        self.tokens.insert(token.jti.clone());
        self.scopes([&token.sub, &token.kid, &token.client]);
        if let Some(device) = device {
            self.devices.insert(*device);
            self.growing.insert(device.as_str().to_owned());
        }
        match renewal {
            Some(Renewal { parent: Some(parent), .. }) => {
                self.tokens.insert(parent.clone());
            }
            Some(Renewal { parent: None, .. }) => self.holders.extend(*device),
            None => {}
        }
        if let Some(step) = refresh {
            self.refreshes.extend(step.spends);
            self.refreshes.extend(step.next.map(|next| next.hash));
        }
    }

    /// A device, all that it was given, and what can happen to that.
    pub(super) fn device(&mut self, realm: &Realm, now: UnixTime, id: DeviceId) {
        self.at(realm, now);
        self.devices.insert(id);
        self.families.insert(id.as_str().to_owned());
    }

    /// A refresh token, and all that can happen to its family.
    pub(super) fn refresh(&mut self, realm: &Realm, now: UnixTime, hash: [u8; 32]) {
        self.at(realm, now);
        self.refreshes.insert(hash);
    }

    /// Calls of one group are made at slightly different times: the earliest sees most.
    fn at(&mut self, realm: &Realm, now: UnixTime) {
        let horizon = realm.horizon(now);
        self.horizon = Some(self.horizon.map_or(horizon, |held| held.min(horizon)));
    }

    fn scopes(&mut self, claims: [&Option<String>; 3]) {
        self.names.extend(lineage::scopes(claims).map(|scope| name_of(Subject::Scope(&scope))));
    }
}

/// What stands in the rows of one realm, as far as the rules will ask for it.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    lasts: HashMap<Name, Last>,
    exps: BTreeMap<Key, UnixTime>,
    devices: BTreeMap<DeviceId, Device>,
    tokens: BTreeMap<String, IssuedToken>,
    refreshes: BTreeMap<[u8; 32], RefreshToken>,
    /// Of families that were not fetched whole.
    sizes: BTreeMap<String, usize>,
}

impl Base for Fetched {
    fn last(&self, name: &Name) -> Option<Last> {
        self.lasts.get(name).copied()
    }

    fn exp(&self, key: Key) -> Option<UnixTime> {
        self.exps.get(&key).copied()
    }

    fn token(&self, jti: &str) -> Option<IssuedToken> {
        self.tokens.get(jti).cloned()
    }

    fn family(&self, family: &str, horizon: UnixTime) -> Vec<IssuedToken> {
        let of_family = |token: &&IssuedToken| token.family == family && token.kept_until > horizon;
        self.tokens.values().filter(of_family).cloned().collect()
    }

    fn family_size(&self, family: &str, horizon: UnixTime) -> usize {
        match self.sizes.get(family) {
            Some(size) => *size,
            None => self.family(family, horizon).len(),
        }
    }

    fn refresh(&self, hash: &[u8; 32]) -> Option<RefreshToken> {
        self.refreshes.get(hash).cloned()
    }

    fn live_refreshes(&self, family: &str) -> Vec<RefreshToken> {
        let live = |refresh: &&RefreshToken| refresh.family == family && refresh.state == RefreshState::Live;
        self.refreshes.values().filter(live).cloned().collect()
    }

    fn device(&self, id: DeviceId) -> Option<Device> {
        self.devices.get(&id).cloned()
    }
}

/// Fetches what is wanted, and what that leads to.
pub(super) async fn fetch(session: &Session, row: &RealmRow, mut wanted: Wanted) -> Outcome<Fetched> {
    let mut fetched = Fetched::default();
    let Counters { devices, tokens, refreshes, .. } = row.counters;
    // Many realms issue nothing, and need not pay for asking.
    if devices + tokens + refreshes > 0 {
        fetch_lineage(session, row, &mut wanted, &mut fetched).await?;
    }
    let names: Vec<_> = wanted.names.into_iter().collect();
    let keys: Vec<_> = wanted.keys.into_iter().collect();
    (fetched.lasts, fetched.exps) = tokio::try_join!(lasts(session, row, &names), exps(session, row, &keys))?;
    Ok(fetched)
}

async fn fetch_lineage(session: &Session, row: &RealmRow, wanted: &mut Wanted, fetched: &mut Fetched) -> Outcome<()> {
    let (number, realm) = (row.number, row.realm.id);
    let (devices, tokens, refreshes) = tokio::try_join!(
        find_devices(session, number, realm, &wanted.devices),
        find_tokens(session, number, realm, &wanted.tokens),
        find_refreshes(session, number, realm, &wanted.refreshes),
    )?;

    // Who is to be barred or held to what was given last, and whose family is meant.
    let mut more_devices = BTreeSet::new();
    let mut more_tokens = BTreeSet::new();
    for device in devices {
        if wanted.holders.contains(&device.id) {
            more_tokens.extend(device.holds.clone());
        }
        fetched.devices.insert(device.id, device);
    }
    for refresh in &refreshes {
        // Spent before, or within this group: then all of the family goes.
        wanted.families.insert(refresh.family.clone());
        wanted.scopes([&refresh.sub, &refresh.kid, &refresh.client]);
        wanted.token(&row.realm, &refresh.jti);
        more_tokens.insert(refresh.jti.clone());
        more_devices.extend(refresh.device);
    }
    for token in &tokens {
        if wanted.doomed.contains(&token.jti) {
            wanted.families.insert(token.family.clone());
        }
        wanted.growing.insert(token.family.clone());
        more_devices.extend(token.device);
    }
    more_devices.retain(|id| !fetched.devices.contains_key(id));

    wanted.growing.retain(|family| !wanted.families.contains(family));
    let horizon = wanted.horizon.unwrap_or_default();
    let whole: Vec<_> = wanted.families.iter().map(String::as_bytes).collect();
    let growing: Vec<_> = wanted.growing.iter().map(String::as_bytes).collect();
    let (devices, held, kin, live, sizes) = tokio::try_join!(
        find_devices(session, number, realm, &more_devices),
        find_tokens(session, number, realm, &more_tokens),
        find_families(session, number, realm, &whole, horizon),
        find_live(session, number, realm, &whole, &growing),
        count_families(session, number, &growing, horizon),
    )?;
    fetched.devices.extend(devices.into_iter().map(|device| (device.id, device)));
    fetched.refreshes.extend(refreshes.into_iter().chain(live).map(|refresh| (refresh.hash, refresh)));
    for token in tokens.into_iter().chain(held).chain(kin) {
        wanted.token(&row.realm, &token.jti);
        if row.counters.cutoffs > 0 {
            wanted.scopes([&token.sub, &token.kid, &token.client]);
        }
        fetched.tokens.insert(token.jti.clone(), token);
    }
    fetched.sizes = sizes;
    Ok(())
}

async fn find_devices(
    session: &Session,
    number: i64,
    realm: RealmId,
    ids: &BTreeSet<DeviceId>,
) -> Outcome<Vec<Device>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<_> = ids.iter().map(DeviceId::as_bytes).collect();
    let rows = session.rows(&format!("{SELECT_DEVICE} WHERE realm = $1 AND id = ANY($2)"), &[&number, &ids]).await?;
    rows.iter().map(|row| device(realm, row)).collect()
}

pub(super) async fn find_tokens(
    session: &Session,
    number: i64,
    realm: RealmId,
    jtis: &BTreeSet<String>,
) -> Outcome<Vec<IssuedToken>> {
    if jtis.is_empty() {
        return Ok(Vec::new());
    }
    let jtis: Vec<_> = jtis.iter().map(String::as_bytes).collect();
    let rows = session.rows(&format!("{SELECT_TOKEN} WHERE realm = $1 AND jti = ANY($2)"), &[&number, &jtis]).await?;
    rows.iter().map(|row| token(realm, row)).collect()
}

async fn find_refreshes(
    session: &Session,
    number: i64,
    realm: RealmId,
    hashes: &BTreeSet<[u8; 32]>,
) -> Outcome<Vec<RefreshToken>> {
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let hashes: Vec<_> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
    let sql = format!("{SELECT_REFRESH} WHERE realm = $1 AND hash = ANY($2)");
    let rows = session.rows(&sql, &[&number, &hashes]).await?;
    rows.iter().map(|row| refresh(realm, row)).collect()
}

async fn find_families(
    session: &Session,
    number: i64,
    realm: RealmId,
    families: &[&[u8]],
    horizon: UnixTime,
) -> Outcome<Vec<IssuedToken>> {
    if families.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("{SELECT_TOKEN} WHERE realm = $1 AND family = ANY($2) AND kept_until > $3");
    let rows = session.rows(&sql, &[&number, &families, &signed(horizon.secs())]).await?;
    rows.iter().map(|row| token(realm, row)).collect()
}

async fn find_live(
    session: &Session,
    number: i64,
    realm: RealmId,
    whole: &[&[u8]],
    growing: &[&[u8]],
) -> Outcome<Vec<RefreshToken>> {
    let families: Vec<_> = whole.iter().chain(growing).copied().collect();
    if families.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("{SELECT_REFRESH} WHERE realm = $1 AND family = ANY($2) AND state = 0");
    let rows = session.rows(&sql, &[&number, &families]).await?;
    rows.iter().map(|row| refresh(realm, row)).collect()
}

async fn count_families(
    session: &Session,
    number: i64,
    families: &[&[u8]],
    horizon: UnixTime,
) -> Outcome<BTreeMap<String, usize>> {
    if families.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = session
        .rows(
            "SELECT w.family, (SELECT count(*) FROM revocast_tokens AS t
                 WHERE t.realm = $1 AND t.family = w.family AND t.kept_until > $3)
             FROM unnest($2::BYTEA[]) AS w (family)",
            &[&number, &families, &signed(horizon.secs())],
        )
        .await?;
    let count = |row: &Row| Ok((text(row.get(0), "a family")?, unsigned(row.get(1), "a count")? as usize));
    rows.iter().map(count).collect()
}

/// Decides one call in a transaction of its own.
pub(super) async fn decided<T: Send>(
    database: &Database,
    realm: RealmId,
    want: impl Fn(&Realm, &mut Wanted) + Sync,
    call: impl Fn(&mut Draft<Fetched>, &Realm, &mut Counters, &mut Coverage) -> Result<T, Halt<Infallible>> + Sync,
) -> Result<T, LedgerError> {
    let (want, call) = (&want, &call);
    database
        .transact(|session| async move {
            let mut row = hold_realm(&session, realm).await?;
            let mut wanted = Wanted::default();
            want(&row.realm, &mut wanted);
            let fetched = Box::pin(fetch(&session, &row, wanted)).await?;
            let mut draft = Draft::new(row.realm.fingerprinter, fetched);
            let (mut counters, mut coverage) = (row.counters, row.coverage);
            let done = match call(&mut draft, &row.realm, &mut counters, &mut coverage) {
                Ok(done) => done,
                Err(Halt::Refused(error)) => return Err(Fault::Refused(error)),
                Err(Halt::Storage(never)) => match never {},
            };
            draft.keep();
            let changes = draft.changes();
            let news = if changes.entries.is_empty() { News::No } else { News::Yes };
            (row.counters, row.coverage) = (counters, coverage);
            Box::pin(write(&session, &row, &changes)).await?;
            Ok((done, news))
        })
        .await
}

/// Forgets issued tokens and refresh tokens; returns whether that was all.
pub(super) async fn expire_piece(
    database: &Database,
    realm: RealmId,
    horizon: i64,
    limit: i64,
) -> Result<bool, LedgerError> {
    database
        .transact(|session| async move {
            let mut row = hold_realm(&session, realm).await?;
            if row.counters.tokens + row.counters.refreshes == 0 {
                return Ok((true, News::No));
            }
            let tokens = session
                .change(
                    "DELETE FROM revocast_tokens WHERE realm = $1 AND jti IN (
                         SELECT jti FROM revocast_tokens WHERE realm = $1 AND kept_until <= $2
                         ORDER BY kept_until LIMIT $3)",
                    &[&row.number, &horizon, &limit],
                )
                .await?;
            let refreshes = session
                .change(
                    "DELETE FROM revocast_refreshes WHERE realm = $1 AND hash IN (
                         SELECT hash FROM revocast_refreshes WHERE realm = $1 AND exp <= $2 ORDER BY exp LIMIT $3)",
                    &[&row.number, &horizon, &limit],
                )
                .await?;
            if tokens + refreshes > 0 {
                row.counters.tokens = row.counters.tokens.saturating_sub(tokens);
                row.counters.refreshes = row.counters.refreshes.saturating_sub(refreshes);
                super::update_realm(&session, &row).await?;
            }
            let limit = limit.cast_unsigned();
            Ok((tokens < limit && refreshes < limit, News::No))
        })
        .await
}
