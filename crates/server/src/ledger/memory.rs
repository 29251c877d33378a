//! A ledger in memory, for simulations and tests: same semantics, nothing durable.
//!
//! Deterministic, and its futures are ready at once, so no runtime is needed to drive them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revocast_core::limits::ISSUED_BATCH_MAX;
use revocast_core::{DeviceId, Fingerprint, Jti, RealmId, Sequence, Term, UnixTime};
use tokio::sync::watch;

use super::draft::{Base, Changes, Draft, Name, last_of, name_of};
use super::dump::{Checked, Compaction, Enrolled, PIECE_ROWS, Piece, RealmRecord, Sink, Source};
use super::issuance::{
    Device, Dismissal, Enrollment, Issuance, IssuedToken, NewDevice, Order, RefreshState, RefreshToken,
};
use super::lease::{self, Bid, Leadership, Lease, Ruling};
use super::registry::{self, Coverage, Issued, Key, Registration, Visitor};
use super::rules::{self, Counters, Halt, Last, Standing, Subject};
use super::{
    Entry, Founding, Health, Ledger, LedgerError, LedgerFuture, Object, Realm, Receipt, Request, Statement,
    TokenRecord, lineage,
};

/// Tokens shown to a visitor at a time. Few, so that tests see several of them.
const VISIT_BATCH: usize = 100;

/// Keeps histories until it is dropped. Several servers may share one.
#[derive(Debug)]
pub struct MemoryLedger {
    realms: Mutex<BTreeMap<RealmId, Keeping>>,
    commits: watch::Sender<u64>,
    health: watch::Sender<Health>,
    leading: Mutex<Leading>,
}

/// The lease, and the clock by which it runs.
#[derive(Debug, Default)]
struct Leading {
    clock: Duration,
    /// With the reading of the clock at which it runs out.
    lease: Option<(Bid, Duration)>,
}

impl MemoryLedger {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            realms: Mutex::default(),
            commits: watch::Sender::new(0),
            health: watch::Sender::new(Health::Good),
            leading: Mutex::default(),
        }
    }

    /// Moves the clock of leases, which stands still otherwise.
    pub fn advance(&self, time: Duration) {
        self.leading().clock += time;
    }

    fn leading(&self) -> MutexGuard<'_, Leading> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new term in every realm, or in none.
    fn resume_all(&self, now: UnixTime) -> Result<(), LedgerError> {
        let mut realms = self.lock();
        let mut entries = Vec::with_capacity(realms.len());
        for (id, keeping) in realms.iter() {
            let mut counters = keeping.counters;
            let head = counters.head;
            let entry = rules::resume(*id, &mut counters, now, head)?;
            entries.push((counters, entry));
        }
        for (keeping, (counters, entry)) in realms.values_mut().zip(entries) {
            keeping.counters = counters;
            keeping.keep(vec![entry]);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RealmId, Keeping>> {
        // A panic elsewhere cannot leave this torn: every change is made on a copy or cannot fail.
        self.realms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        realm: RealmId,
        work: impl FnOnce(&mut Keeping) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.lock().get_mut(&realm).ok_or(LedgerError::RealmUnknown { realm }).and_then(work)
    }

    /// The value, once whoever waits for news has been woken.
    fn told<T>(&self, result: Result<(T, Recorded), LedgerError>) -> Result<T, LedgerError> {
        match result? {
            (value, Recorded::Entries) => self.woken(Ok(value)),
            (value, Recorded::Nothing) => Ok(value),
        }
    }

    fn woken<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_ok() {
            self.commits.send_modify(|count| *count += 1);
        }
        result
    }
}

/// Whether a call recorded entries.
enum Recorded {
    Entries,
    Nothing,
}

impl Default for MemoryLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger for MemoryLedger {
    fn create_realm(&self, realm: Realm, objects: Vec<Object>) -> LedgerFuture<'_, Founding> {
        let create = || {
            rules::check_realm(&realm)?;
            let mut realms = self.lock();
            let by_id = realms.get(&realm.id).map(|keeping| keeping.realm.clone());
            let by_issuer =
                realms.values().find(|keeping| keeping.realm.issuer == realm.issuer).map(|keeping| keeping.realm.id);
            if let Some(realm) = rules::found(&realm, by_id, by_issuer)? {
                return Ok(Founding { realm, created: false });
            }
            let mut keeping = Keeping::new(realm.clone());
            keeping.objects.extend(objects.into_iter().map(|object| (object.address, object.bytes)));
            realms.insert(realm.id, keeping);
            Ok(Founding { realm, created: true })
        };
        let result = match create() {
            Ok(founding) if founding.created => self.woken(Ok(founding)),
            other => other,
        };
        Box::pin(ready(result))
    }

    fn realms(&self) -> LedgerFuture<'_, Vec<Realm>> {
        let realms = self.lock().values().map(|keeping| keeping.realm.clone()).collect();
        Box::pin(ready(Ok(realms)))
    }

    fn realm(&self, realm: RealmId) -> LedgerFuture<'_, Realm> {
        Box::pin(ready(self.with(realm, |keeping| Ok(keeping.realm.clone()))))
    }

    fn append(&self, realm: RealmId, now: UnixTime, requests: Vec<Request>) -> LedgerFuture<'_, Vec<Receipt>> {
        let result = rules::check(&requests).and_then(|()| {
            self.with(realm, |keeping| {
                keeping.decide(|draft, realm, counters, _| rules::append(draft, realm, counters, now, requests))
            })
        });
        Box::pin(ready(self.told(result)))
    }

    fn scan(&self, realm: RealmId, after: Sequence, limit: usize) -> LedgerFuture<'_, Vec<Entry>> {
        Box::pin(ready(self.with(realm, |keeping| {
            // Saturating: after the last possible number nothing follows, and that one is never assigned.
            Ok(keeping
                .entries
                .range(Sequence(after.0.saturating_add(1))..)
                .take(limit)
                .map(|(_, e)| e.clone())
                .collect())
        })))
    }

    fn head(&self, realm: RealmId) -> LedgerFuture<'_, (Term, Sequence)> {
        Box::pin(ready(self.with(realm, |keeping| Ok((keeping.counters.term, keeping.counters.head)))))
    }

    fn register(&self, realm: RealmId, now: UnixTime, issued: Vec<Issued>) -> LedgerFuture<'_, Registration> {
        let result = self.with(realm, |keeping| {
            if issued.len() > ISSUED_BATCH_MAX {
                return Err(LedgerError::IssuedTooMany { tokens: issued.len() });
            }
            keeping.decide(|draft, realm, counters, coverage| {
                registry::register(draft, realm, counters, coverage, now, issued)
            })
        });
        Box::pin(ready(self.told(result)))
    }

    fn cover(&self, realm: RealmId, now: UnixTime, until: UnixTime) -> LedgerFuture<'_, Coverage> {
        Box::pin(ready(self.with(realm, |keeping| {
            keeping.coverage = keeping.coverage.moved(&keeping.realm, now, until)?;
            Ok(keeping.coverage)
        })))
    }

    fn coverage(&self, realm: RealmId) -> LedgerFuture<'_, Coverage> {
        Box::pin(ready(self.with(realm, |keeping| Ok(keeping.coverage))))
    }

    fn visit_registered(&self, realm: RealmId, visitors: Vec<Visitor>) -> LedgerFuture<'_, Coverage> {
        // Copied first: a visitor may come back to this ledger.
        let frozen = registry::check_visitors(&visitors).and_then(|()| {
            self.with(realm, |keeping| {
                let rows: Vec<_> = keeping.issued.iter().map(|(key, kept)| (key.fingerprint, kept.exp)).collect();
                Ok((rows, keeping.realm.fingerprinter.width(), keeping.coverage))
            })
        });
        Box::pin(ready(frozen.map(|(rows, width, coverage)| {
            let parts = visitors.len();
            for (index, visitor) in visitors.into_iter().enumerate() {
                let (low, high) = registry::part(width, index, parts);
                let begin = rows.partition_point(|(fingerprint, _)| fingerprint.bits() < low);
                let end = rows.partition_point(|(fingerprint, _)| fingerprint.bits() <= high);
                let part: &[(Fingerprint, UnixTime)] = rows.get(begin..end).unwrap_or_default();
                // It says itself whether it has seen enough.
                let _ = part.chunks(VISIT_BATCH).all(visitor);
            }
            coverage
        })))
    }

    fn expire(&self, realm: RealmId, horizon: UnixTime) -> LedgerFuture<'_, usize> {
        Box::pin(ready(self.with(realm, |keeping| Ok(keeping.expire(horizon)))))
    }

    fn resume(&self, realm: RealmId, now: UnixTime, beyond: Sequence) -> LedgerFuture<'_, (Term, Sequence)> {
        let result = self.with(realm, |keeping| {
            let entry = rules::resume(realm, &mut keeping.counters, now, beyond)?;
            keeping.keep(vec![entry]);
            Ok((keeping.counters.term, keeping.counters.head))
        });
        Box::pin(ready(self.woken(result)))
    }

    fn objects(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Object>> {
        Box::pin(ready(self.with(realm, |keeping| {
            Ok(keeping
                .objects
                .iter()
                .map(|(address, bytes)| Object { address: address.clone(), bytes: bytes.clone() })
                .collect())
        })))
    }

    fn store_objects(
        &self,
        realm: RealmId,
        term: Term,
        puts: Vec<Object>,
        deletes: Vec<String>,
    ) -> LedgerFuture<'_, ()> {
        Box::pin(ready(self.with(realm, |keeping| {
            let current = keeping.counters.term;
            if current != term {
                return Err(LedgerError::TermChanged { realm, current, claimed: term });
            }
            for address in deletes {
                keeping.objects.remove(&address);
            }
            keeping.objects.extend(puts.into_iter().map(|object| (object.address, object.bytes)));
            Ok(())
        })))
    }

    fn token(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, TokenRecord> {
        Box::pin(ready(self.with(realm, |keeping| {
            let last = keeping.lasts.get(&name_of(Subject::Token(&jti)));
            let entry = last.and_then(|last| keeping.entries.get(&last.sequence)).cloned();
            // What is no `jti` is not there either.
            let key = Jti::new(&jti).ok().map(|jti| Key::of(&keeping.realm.fingerprinter, jti));
            let issued = key.and_then(|key| keeping.issued.get(&key)).map(|kept| Issued { jti, ..kept.clone() });
            Ok(TokenRecord { entry, issued })
        })))
    }

    fn cutoffs(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Entry>> {
        Box::pin(ready(self.with(realm, |keeping| {
            let live = keeping.lasts.values().filter(|last| matches!(last.standing, Standing::Cut { .. }));
            let mut cutoffs: Vec<_> = live.filter_map(|last| keeping.entries.get(&last.sequence)).cloned().collect();
            cutoffs.sort_unstable_by_key(|entry| entry.sequence);
            Ok(cutoffs)
        })))
    }

    fn lead(&self, bid: Bid) -> LedgerFuture<'_, Leadership> {
        let lead = || {
            bid.check()?;
            let mut leading = self.leading();
            let clock = leading.clock;
            let held = leading.lease.clone().map(|(Bid { server, address, .. }, end)| Lease {
                server,
                address,
                remaining: end.saturating_sub(clock),
            });
            match lease::rule(&bid, held) {
                Ruling::Follow(following) => Ok(following),
                Ruling::Grant { new_terms } => {
                    if new_terms {
                        self.resume_all(UnixTime::from_secs(clock.as_secs()))?;
                    }
                    let end = clock + bid.lease;
                    leading.lease = Some((bid, end));
                    Ok(Leadership::Leading { took_over: new_terms })
                }
            }
        };
        let result = match lead() {
            Ok(Leadership::Leading { took_over: true }) => self.woken(Ok(Leadership::Leading { took_over: true })),
            other => other,
        };
        Box::pin(ready(result))
    }

    fn step_down(&self, server: String) -> LedgerFuture<'_, ()> {
        let mut leading = self.leading();
        if leading.lease.as_ref().is_some_and(|(bid, _)| bid.server == server) {
            leading.lease = None;
        }
        Box::pin(ready(Ok(())))
    }

    fn dump(&self, mut sink: Sink) -> LedgerFuture<'_, ()> {
        let mut pieces = Vec::new();
        for keeping in self.lock().values() {
            pieces.push(Piece::Realm(RealmRecord::of(keeping.realm.clone(), keeping.counters, keeping.coverage)));
            let entries: Vec<_> = keeping.entries.values().cloned().collect();
            pieces.extend(entries.chunks(PIECE_ROWS).map(|part| Piece::Entries(part.to_vec())));
            let mut issued: Vec<_> = keeping
                .issued
                .iter()
                .map(|(key, Issued { iat, exp, sub, .. })| Enrolled {
                    fingerprint: key.fingerprint,
                    name: key.name,
                    iat: *iat,
                    exp: *exp,
                    sub: sub.clone(),
                })
                .collect();
            // As databases order them.
            issued.sort_unstable_by_key(|issued| (issued.fingerprint, issued.name.cast_signed()));
            pieces.extend(issued.chunks(PIECE_ROWS).map(|part| Piece::Issued(part.to_vec())));
            let devices: Vec<_> = keeping.devices.values().cloned().collect();
            pieces.extend(devices.chunks(PIECE_ROWS).map(|part| Piece::Devices(part.to_vec())));
            let tokens: Vec<_> = keeping.tokens.values().cloned().collect();
            pieces.extend(tokens.chunks(PIECE_ROWS).map(|part| Piece::Tokens(part.to_vec())));
            let refreshes: Vec<_> = keeping.refreshes.values().cloned().collect();
            pieces.extend(refreshes.chunks(PIECE_ROWS).map(|part| Piece::Refreshes(part.to_vec())));
            let objects = keeping.objects.iter();
            let objects: Vec<_> =
                objects.map(|(address, bytes)| Object { address: address.clone(), bytes: bytes.clone() }).collect();
            pieces.extend(objects.chunks(PIECE_ROWS).map(|part| Piece::Objects(part.to_vec())));
        }
        let _ = pieces.into_iter().all(&mut sink);
        Box::pin(ready(Ok(())))
    }

    fn restore(&self, source: Source) -> LedgerFuture<'_, ()> {
        let restore = || {
            let mut restored: Vec<Keeping> = Vec::new();
            for piece in Checked::new(source) {
                match (piece?, restored.last_mut()) {
                    (Piece::Realm(record), _) => {
                        let mut keeping = Keeping::new(record.realm.clone());
                        keeping.counters = record.counters();
                        keeping.coverage = record.coverage;
                        restored.push(keeping);
                    }
                    (Piece::Entries(entries), Some(keeping)) => keeping.keep(entries),
                    (Piece::Issued(issued), Some(keeping)) => {
                        keeping.issued.extend(issued.into_iter().map(
                            |Enrolled { fingerprint, name, iat, exp, sub }| {
                                // What nobody asks for: a token is found by its key.
                                let jti = String::new();
                                (Key { fingerprint, name }, Issued { jti, iat, exp, sub })
                            },
                        ));
                    }
                    (Piece::Objects(objects), Some(keeping)) => {
                        keeping.objects.extend(objects.into_iter().map(|object| (object.address, object.bytes)));
                    }
                    (Piece::Devices(devices), Some(keeping)) => {
                        keeping.devices.extend(devices.into_iter().map(|device| (device.id, device)));
                    }
                    (Piece::Tokens(tokens), Some(keeping)) => tokens.into_iter().for_each(|token| keeping.know(token)),
                    (Piece::Refreshes(refreshes), Some(keeping)) => {
                        for refresh in refreshes {
                            keeping.hold(refresh);
                        }
                    }
                    (_, None) => {}
                }
            }
            let mut realms = self.lock();
            if let Some(realm) = realms.keys().next() {
                return Err(LedgerError::NotEmpty { realm: *realm });
            }
            realms.extend(restored.into_iter().map(|keeping| (keeping.realm.id, keeping)));
            Ok(())
        };
        let result = restore();
        Box::pin(ready(self.woken(result)))
    }

    fn compact(&self) -> LedgerFuture<'_, Compaction> {
        Box::pin(ready(Ok(Compaction { before: None, after: None })))
    }

    fn enroll(&self, realm: RealmId, now: UnixTime, device: NewDevice) -> LedgerFuture<'_, Enrollment> {
        let result = device.check().and_then(|()| {
            self.with(realm, |keeping| {
                keeping.decide(|draft, realm, counters, _| lineage::enroll(draft, realm, counters, now, device))
            })
        });
        Box::pin(ready(self.told(result)))
    }

    fn device(&self, realm: RealmId, id: DeviceId) -> LedgerFuture<'_, Option<Device>> {
        Box::pin(ready(self.with(realm, |keeping| Ok(keeping.devices.get(&id).cloned()))))
    }

    fn devices(&self, realm: RealmId, after: Option<DeviceId>, limit: usize) -> LedgerFuture<'_, Vec<Device>> {
        Box::pin(ready(self.with(realm, |keeping| {
            let later = keeping.devices.values().filter(|device| after.is_none_or(|after| device.id > after));
            Ok(later.take(limit).cloned().collect())
        })))
    }

    fn dismiss(
        &self,
        realm: RealmId,
        now: UnixTime,
        id: DeviceId,
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Dismissal> {
        let result = rules::check_words(0, reason.as_deref(), &actor).and_then(|()| {
            self.with(realm, |keeping| {
                keeping.decide(|draft, realm, counters, _| {
                    let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                    lineage::dismiss(draft, counters, &cause, id)
                })
            })
        });
        Box::pin(ready(self.told(result)))
    }

    fn withdraw(
        &self,
        realm: RealmId,
        now: UnixTime,
        refresh: [u8; 32],
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Option<Sequence>> {
        let result = rules::check_words(0, reason.as_deref(), &actor).and_then(|()| {
            self.with(realm, |keeping| {
                keeping.decide(|draft, realm, counters, _| {
                    let cause = lineage::Cause { realm, now, reason: reason.as_deref(), actor: &actor };
                    lineage::withdraw(draft, counters, &cause, &refresh)
                })
            })
        });
        Box::pin(ready(self.told(result)))
    }

    fn issue(&self, realm: RealmId, now: UnixTime, order: Order) -> LedgerFuture<'_, Issuance> {
        let result = self.with(realm, |keeping| {
            keeping
                .decide(|draft, realm, counters, coverage| lineage::issue(draft, realm, counters, coverage, now, order))
        });
        Box::pin(ready(self.told(result)))
    }

    fn find_issued(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, Option<IssuedToken>> {
        Box::pin(ready(self.with(realm, |keeping| Ok(keeping.tokens.get(&jti).cloned()))))
    }

    fn expiring(
        &self,
        realm: RealmId,
        from: UnixTime,
        until: UnixTime,
        limit: usize,
    ) -> LedgerFuture<'_, Vec<(DeviceId, String, UnixTime)>> {
        Box::pin(ready(self.with(realm, |keeping| {
            let ending = keeping.devices.values().filter(|device| !device.barred).filter_map(|device| {
                let (holds, end) = (device.holds.clone()?, device.held_until?);
                (from..until).contains(&end).then_some((device.id, holds, end))
            });
            let mut ending: Vec<_> = ending.collect();
            ending.sort_unstable_by_key(|&(id, _, end)| (end, id));
            ending.truncate(limit);
            Ok(ending)
        })))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }
}

/// Everything kept for one realm.
#[derive(Debug)]
struct Keeping {
    realm: Realm,
    counters: Counters,
    entries: BTreeMap<Sequence, Entry>,
    lasts: BTreeMap<Name, Last>,
    objects: BTreeMap<String, Vec<u8>>,
    issued: BTreeMap<Key, Issued>,
    coverage: Coverage,
    devices: BTreeMap<DeviceId, Device>,
    tokens: BTreeMap<String, IssuedToken>,
    /// The tokens of each family.
    families: BTreeMap<String, BTreeSet<String>>,
    refreshes: BTreeMap<[u8; 32], RefreshToken>,
    /// The live ones of each family.
    live_refreshes: BTreeMap<String, BTreeSet<[u8; 32]>>,
    /// The horizon when expired tokens were last looked for.
    swept: Option<UnixTime>,
}

impl Keeping {
    fn new(realm: Realm) -> Self {
        Self {
            realm,
            counters: Counters::new(),
            entries: BTreeMap::new(),
            lasts: BTreeMap::new(),
            objects: BTreeMap::new(),
            issued: BTreeMap::new(),
            coverage: Coverage::default(),
            devices: BTreeMap::new(),
            tokens: BTreeMap::new(),
            families: BTreeMap::new(),
            refreshes: BTreeMap::new(),
            live_refreshes: BTreeMap::new(),
            swept: None,
        }
    }

    /// Runs one call: keeps what it changed, or nothing if it was refused.
    fn decide<T>(
        &mut self,
        call: impl FnOnce(&mut Draft<&Self>, &Realm, &mut Counters, &mut Coverage) -> Result<T, Halt<Infallible>>,
    ) -> Result<(T, Recorded), LedgerError> {
        let (mut counters, mut coverage) = (self.counters, self.coverage);
        let mut draft = Draft::new(self.realm.fingerprinter, &*self);
        match call(&mut draft, &self.realm, &mut counters, &mut coverage) {
            Ok(value) => {
                draft.keep();
                let changes = draft.changes();
                let recorded = if changes.entries.is_empty() { Recorded::Nothing } else { Recorded::Entries };
                (self.counters, self.coverage) = (counters, coverage);
                self.change(changes);
                Ok((value, recorded))
            }
            Err(Halt::Refused(error)) => Err(error),
            Err(Halt::Storage(never)) => match never {},
        }
    }

    fn change(&mut self, changes: Changes) {
        self.keep(changes.entries);
        self.issued.extend(changes.enrolled);
        for (key, exp) in changes.prolonged {
            if let Some(issued) = self.issued.get_mut(&key) {
                issued.exp = exp;
            }
        }
        changes.tokens.into_values().for_each(|token| self.know(token));
        changes.refreshes.into_values().for_each(|refresh| self.hold(refresh));
        for (id, device) in changes.devices {
            match device {
                Some(device) => self.devices.insert(id, device),
                None => self.devices.remove(&id),
            };
        }
    }

    fn keep(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if let (Some(subject), Some(last)) = (Subject::of(&entry.statement), last_of(&entry)) {
                self.lasts.insert(name_of(subject), last);
            }
            self.entries.insert(entry.sequence, entry);
        }
    }

    fn know(&mut self, token: IssuedToken) {
        self.families.entry(token.family.clone()).or_default().insert(token.jti.clone());
        self.tokens.insert(token.jti.clone(), token);
    }

    fn hold(&mut self, refresh: RefreshToken) {
        let live = self.live_refreshes.entry(refresh.family.clone()).or_default();
        match refresh.state {
            RefreshState::Live => live.insert(refresh.hash),
            RefreshState::Spent | RefreshState::Ended => live.remove(&refresh.hash),
        };
        self.refreshes.insert(refresh.hash, refresh);
    }

    fn expire(&mut self, horizon: UnixTime) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, entry| match entry.statement {
            Statement::Revoke { exp, .. } | Statement::Reinstate { exp, .. } => exp > horizon,
            Statement::Cutoff { .. } | Statement::Lift { .. } | Statement::Resume { .. } => true,
        });
        self.lasts.retain(|_, last| match last.standing {
            Standing::Revoked { exp } | Standing::Reinstated { exp } => exp > horizon,
            Standing::Cut { .. } | Standing::Lifted => true,
        });
        let dropped = before - self.entries.len();
        self.counters.stored = self.counters.stored.saturating_sub(dropped as u64);

        self.tokens.retain(|_, token| token.kept_until > horizon);
        self.families.retain(|_, jtis| {
            jtis.retain(|jti| self.tokens.contains_key(jti));
            !jtis.is_empty()
        });
        self.counters.tokens = self.tokens.len() as u64;
        self.refreshes.retain(|_, refresh| refresh.exp > horizon);
        self.live_refreshes.retain(|_, hashes| {
            hashes.retain(|hash| self.refreshes.contains_key(hash));
            !hashes.is_empty()
        });
        self.counters.refreshes = self.refreshes.len() as u64;

        if registry::sweep_is_due(self.swept, horizon) {
            self.swept = Some(horizon);
            self.issued.retain(|_, issued| issued.exp > horizon);
            self.coverage.registered = self.issued.len() as u64;
        }
        dropped
    }

    fn family<'a>(&'a self, family: &str, horizon: UnixTime) -> impl Iterator<Item = &'a IssuedToken> {
        let jtis = self.families.get(family).into_iter().flatten();
        jtis.filter_map(|jti| self.tokens.get(jti)).filter(move |token| token.kept_until > horizon)
    }
}

impl Base for &Keeping {
    fn last(&self, name: &Name) -> Option<Last> {
        self.lasts.get(name).copied()
    }

    fn exp(&self, key: Key) -> Option<UnixTime> {
        self.issued.get(&key).map(|issued| issued.exp)
    }

    fn token(&self, jti: &str) -> Option<IssuedToken> {
        self.tokens.get(jti).cloned()
    }

    fn family(&self, family: &str, horizon: UnixTime) -> Vec<IssuedToken> {
        Keeping::family(self, family, horizon).cloned().collect()
    }

    fn family_size(&self, family: &str, horizon: UnixTime) -> usize {
        Keeping::family(self, family, horizon).count()
    }

    fn refresh(&self, hash: &[u8; 32]) -> Option<RefreshToken> {
        self.refreshes.get(hash).cloned()
    }

    fn live_refreshes(&self, family: &str) -> Vec<RefreshToken> {
        let hashes = self.live_refreshes.get(family).into_iter().flatten();
        hashes.filter_map(|hash| self.refreshes.get(hash)).cloned().collect()
    }

    fn device(&self, id: DeviceId) -> Option<Device> {
        self.devices.get(&id).cloned()
    }
}
