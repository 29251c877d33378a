//! What the server does, whoever asks: the API speaks HTTP, this speaks meaning.

mod issuing;
pub use issuing::{Issuing, LONG_LIFETIME, Minted, Parcel, TokenRequest};

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use revocast_core::update::{PublisherKey, Role};
use revocast_core::wire::{self, WireError};
use revocast_core::{
    Address, Claims, DeviceId, FingerprintFunction, Fingerprinter, Issuer, Kind, Position, RealmId, RealmKey, Sequence,
    SigningKey, Term, Trust, UnixMillis, UnixTime, Width, seal,
};
use thiserror::Error;
use tokio::sync::watch;

use crate::broker::LinkState;
use crate::clock::Clock;
use crate::fleet::{Lookout, Reached, View, Wait};
use crate::issuer::{TemplateError, TokenKeyError};
use crate::keys::{KeyError, Keys};
use crate::leader::Office;
use crate::ledger::{
    Action, Coverage, Entry, Expiry, Founding, Issued, LEEWAY_DEFAULT, Ledger, LedgerError, MAX_TOKEN_LIFETIME_DEFAULT,
    NoToken, Object, Realm, Receipt, Registration, Request, Scope, Statement,
};
use crate::metrics::{EntryKind, Metrics};
use crate::minting::LiveFilters;
use crate::publisher::{Forecast, Inquiries, PublishError, Settings};
use crate::rotation::{self, PUBLISHER_KEY_LIFETIME, RotationError, Taken};
use crate::tokens::IssuersError;

/// Largest leeway of a realm: clocks that differ by more than a day are not clocks.
pub const LEEWAY_MAX: Duration = Duration::from_hours(24);

/// Longest token lifetime of a realm: every revocation is kept that long.
pub const MAX_TOKEN_LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// What a new realm shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRealm {
    /// Its name.
    pub id: RealmId,
    /// The `iss` of its tokens.
    pub issuer: String,
    /// How its fingerprints are made.
    pub fingerprint: FingerprintFunction,
    /// How many bits of them are used.
    pub width: Width,
    /// How much clocks may differ.
    pub leeway: Duration,
    /// No token of this issuer lives longer.
    pub max_token_lifetime: Duration,
}

impl NewRealm {
    /// A realm of a foreign issuer, who may choose any `jti`s: hence SHA-256.
    #[must_use]
    pub fn new(id: RealmId, issuer: impl Into<String>) -> Self {
        Self {
            id,
            issuer: issuer.into(),
            fingerprint: FingerprintFunction::Sha256,
            width: Width::W48,
            leeway: LEEWAY_DEFAULT,
            max_token_lifetime: MAX_TOKEN_LIFETIME_DEFAULT,
        }
    }
}

/// A token that shall be revoked, as somebody reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which.
    pub jti: String,
    /// When it expires, by the word of whoever reports it.
    pub exp: UnixTime,
    /// Why.
    pub reason: Option<String>,
}

/// What became of a cutoff that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutoffReceipt {
    /// The entry that holds.
    pub sequence: Sequence,
    /// What it says: a larger live one is never lowered.
    pub not_before: UnixTime,
    /// Whether it is new.
    pub recorded: bool,
}

/// What of a realm is on the broker; told by the publisher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The ledger's term at that time.
    pub term: Term,
    /// Epoch and sequence of the manifest that the broker acknowledged last.
    pub position: Position,
    /// When that manifest was sealed.
    pub at: UnixMillis,
    /// How many objects should be retained.
    pub objects: usize,
    /// Live revocations, by fingerprint.
    pub revocations: u64,
    /// Bytes of what stands at the broker.
    pub sizes: crate::publisher::Sizes,
    /// How good the filter of the newest epoch is.
    pub filter: Option<crate::publisher::FilterHealth>,
    /// Why the newest epoch has the filter it has; `None` if it was built before the start.
    pub choice: Option<crate::publisher::Choice>,
    /// What keeps the publisher from going on, if anything.
    pub trouble: Option<String>,
    /// Questions of devices since the start.
    pub questions: Questions,
    /// Version of the keys that the broker holds; `None` while it is not known to hold the newest.
    pub keys_version: Option<u64>,
}

impl Published {
    /// How old the last manifest is that a broker acknowledged.
    #[must_use]
    pub fn heartbeat_age(&self, now: UnixMillis) -> Duration {
        now.since(self.at)
    }
}

/// What became of the questions of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Answered, and the broker acknowledged it.
    pub answered: u64,
    /// Not answered: no question, too late, too often, or there was no way to send.
    pub dropped: u64,
}

/// What is published, by realm.
pub type PublishedRealms = BTreeMap<RealmId, Published>;

/// One realm in a [`Status`].
#[derive(Clone, Debug, PartialEq)]
pub struct RealmStatus {
    /// Its parameters.
    pub realm: Realm,
    /// The ledger's term.
    pub term: Term,
    /// The ledger's highest sequence.
    pub head: Sequence,
    /// What its registry knows.
    pub coverage: Coverage,
    /// What is on the broker, if anything yet.
    pub published: Option<Published>,
}

/// How the server is.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Every realm.
    pub realms: Vec<RealmStatus>,
    /// The connection to the broker.
    pub broker: LinkState,
    /// Whether the ledger takes entries.
    pub ledger_writable: bool,
    /// What this server is among those on the ledger.
    pub office: Office,
    /// The server's time.
    pub at: UnixMillis,
}

/// What the service knows of who leads.
#[derive(Debug)]
pub struct LeaderView {
    /// What this server is among those on the ledger.
    pub office: watch::Receiver<Office>,
    /// Where publishers tell what they would do.
    pub inquiries: Arc<Inquiries>,
    /// How realms are published.
    pub settings: watch::Receiver<Settings>,
}

/// Owns the ledger, the keys and the clock, and does what the API is asked for.
pub struct Service {
    ledger: Arc<dyn Ledger>,
    keys: Arc<Keys>,
    clock: Arc<dyn Clock>,
    broker: watch::Receiver<LinkState>,
    published: watch::Receiver<PublishedRealms>,
    filters: Arc<LiveFilters>,
    office: watch::Receiver<Office>,
    inquiries: Arc<Inquiries>,
    settings: watch::Receiver<Settings>,
    lookout: Arc<Lookout>,
    metrics: Arc<Metrics>,
    issuing: Issuing,
    rotating: tokio::sync::Mutex<()>,
    // Parameters of a realm never change, so what was read once holds.
    known: RwLock<BTreeMap<RealmId, Realm>>,
}

impl Service {
    /// Puts the parts together.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, and only a server and tests put them together"
    )]
    pub fn new(
        ledger: Arc<dyn Ledger>,
        keys: Arc<Keys>,
        clock: Arc<dyn Clock>,
        broker: watch::Receiver<LinkState>,
        published: watch::Receiver<PublishedRealms>,
        filters: Arc<LiveFilters>,
        leader: LeaderView,
        lookout: Arc<Lookout>,
        metrics: Arc<Metrics>,
        issuing: Issuing,
    ) -> Self {
        let LeaderView { office, inquiries, settings } = leader;
        Self {
            ledger,
            keys,
            clock,
            broker,
            published,
            filters,
            office,
            inquiries,
            settings,
            lookout,
            metrics,
            issuing,
            rotating: tokio::sync::Mutex::default(),
            known: RwLock::default(),
        }
    }

    /// What this server is among those on the ledger.
    #[must_use]
    pub fn office(&self) -> Office {
        self.office.borrow().clone()
    }

    /// Refuses what only the leader can do, and tells where that is.
    fn must_lead(&self) -> Result<(), ServiceError> {
        match self.office() {
            Office::Leading => Ok(()),
            Office::Following { leader, address } => Err(ServiceError::NotLeading { leader: Some(leader), address }),
            Office::Seeking | Office::Unable { .. } => Err(ServiceError::NotLeading { leader: None, address: None }),
        }
    }

    /// What the publisher of a realm would do now.
    pub async fn forecast(&self, realm: RealmId) -> Result<Forecast, ServiceError> {
        self.must_lead()?;
        let realm = self.realm(realm).await?.id;
        match self.inquiries.ask(realm).await {
            Some(forecast) => Ok(forecast?),
            None => Err(ServiceError::NotPublishing { realm }),
        }
    }

    /// The keys in use.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The state of the connection to the broker, and news of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.broker.clone()
    }

    /// Founds a realm and seals its `keys` object with the root key.
    ///
    /// Safe to repeat: a realm that is there stays as it is.
    pub async fn create_realm(&self, new: NewRealm) -> Result<Founding, ServiceError> {
        if new.leeway > LEEWAY_MAX {
            return Err(ServiceError::Leeway { found: new.leeway });
        }
        if new.max_token_lifetime.is_zero() || new.max_token_lifetime > MAX_TOKEN_LIFETIME_MAX {
            return Err(ServiceError::MaxTokenLifetime { found: new.max_token_lifetime });
        }
        match self.ledger.realm(new.id).await {
            // Found again, which needs no root key.
            Ok(realm) if realm.issuer == new.issuer => return Ok(Founding { realm, created: false }),
            Ok(_) | Err(LedgerError::RealmUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // Before anything is recorded: a realm without its `keys` object could never be published.
        let root = self.keys.root()?;
        let trust = self.keys.trust()?;
        if trust.threshold > 1 {
            return Err(ServiceError::MoreRootsNeeded { threshold: trust.threshold });
        }
        if !trust.roots.contains(&root.public()) {
            return Err(ServiceError::RootNotTrusted { root: root.public().id().to_string() });
        }
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(ServiceError::Random)?;
        let now = self.clock.now().wall;
        let realm = Realm {
            leeway: new.leeway,
            max_token_lifetime: new.max_token_lifetime,
            ..Realm::new(new.id, new.issuer, Fingerprinter::new(new.fingerprint, RealmKey(key), new.width), now.floor())
        };
        // Before it is encoded, which would refuse it less clearly.
        Issuer::new(&realm.issuer).map_err(LedgerError::Issuer)?;
        let bytes = self.keys_object(&realm, now, trust, &root)?;
        let at = |address: Address| Object { address: address.to_string(), bytes: bytes.clone() };
        // The newest, and the first for good: whoever was away for long comes back over it.
        let keys = vec![at(Address::Keys), at(Address::KeysAt { version: 1 })];
        Ok(self.ledger.create_realm(realm, keys).await?)
    }

    /// Every realm.
    pub async fn realms(&self) -> Result<Vec<Realm>, ServiceError> {
        Ok(self.ledger.realms().await?)
    }

    /// Records revocations, all of them or none; durable when this returns.
    pub async fn revoke(
        &self,
        realm: RealmId,
        revocations: Vec<Revocation>,
        actor: &str,
    ) -> Result<Vec<Receipt>, ServiceError> {
        let now = self.clock.unix_time();
        let parameters = self.realm(realm).await?;
        for (index, revocation) in revocations.iter().enumerate() {
            // By the clock of whoever is furthest behind, a token without this is not honored anyway.
            if revocation.exp <= parameters.horizon(now) {
                return Err(ServiceError::Expired { index, exp: revocation.exp, now, leeway: parameters.leeway });
            }
        }
        let requests = revocations
            .into_iter()
            .map(|Revocation { jti, exp, reason }| Request {
                action: Action::Revoke { jti, exp: Expiry::Claimed(exp) },
                reason,
                actor: actor.to_owned(),
            })
            .collect();
        self.record(realm, now, requests, actor).await
    }

    /// Undoes a revoke; durable when this returns.
    pub async fn reinstate(
        &self,
        realm: RealmId,
        jti: String,
        reason: Option<String>,
        actor: &str,
    ) -> Result<Receipt, ServiceError> {
        let request = Request { action: Action::Reinstate { jti }, reason, actor: actor.to_owned() };
        self.append_one(realm, self.clock.unix_time(), request).await
    }

    /// Revokes every token in a scope issued before a time, by default every one up to now (design rule 16);
    /// durable when this returns.
    pub async fn cut_off(
        &self,
        realm: RealmId,
        scope: Scope,
        not_before: Option<UnixTime>,
        reason: Option<String>,
        actor: &str,
    ) -> Result<CutoffReceipt, ServiceError> {
        let now = self.clock.unix_time();
        let latest = self.realm(realm).await?.latest_exp(now);
        let not_before = not_before.unwrap_or_else(|| now.plus(1));
        if not_before > latest {
            return Err(ServiceError::CutoffAhead { not_before, now, latest });
        }
        let request = Request { action: Action::Cutoff { scope, not_before }, reason, actor: actor.to_owned() };
        let Receipt { sequence, recorded, .. } = self.append_one(realm, now, request).await?;
        if recorded {
            return Ok(CutoffReceipt { sequence, not_before, recorded });
        }
        // A live one was larger, or the same. Entries of cutoffs stay, so it can still be read.
        let held = self.ledger.scan(realm, Sequence(sequence.0.saturating_sub(1)), 1).await?;
        match held.first() {
            Some(entry) if entry.sequence == sequence => match entry.statement {
                Statement::Cutoff { not_before, .. } => Ok(CutoffReceipt { sequence, not_before, recorded }),
                _ => Err(LedgerError::Damaged { what: format!("entry {sequence} should be a cutoff") }.into()),
            },
            Some(_) | None => Err(LedgerError::Damaged { what: format!("entry {sequence} is missing") }.into()),
        }
    }

    /// Refuses a cutoff that [`Service::cut_off`] would refuse.
    pub async fn check_cutoff(&self, realm: RealmId, not_before: Option<UnixTime>) -> Result<(), ServiceError> {
        let now = self.clock.unix_time();
        let latest = self.realm(realm).await?.latest_exp(now);
        match not_before {
            Some(not_before) if not_before > latest => Err(ServiceError::CutoffAhead { not_before, now, latest }),
            Some(_) | None => Ok(()),
        }
    }

    /// Revokes a token that was shown; nothing if it is expired for everybody. Durable when this returns.
    pub async fn revoke_shown(
        &self,
        realm: RealmId,
        jti: String,
        exp: Expiry,
        reason: Option<String>,
        actor: &str,
    ) -> Result<Option<Receipt>, ServiceError> {
        let now = self.clock.unix_time();
        if exp.time() <= self.realm(realm).await?.horizon(now) {
            return Ok(None);
        }
        let request = Request { action: Action::Revoke { jti, exp }, reason, actor: actor.to_owned() };
        Ok(Some(self.append_one(realm, now, request).await?))
    }

    /// Whether a token is revoked, by the ledger itself: its `jti`, or a cutoff that matches.
    pub async fn is_revoked(&self, realm: RealmId, claims: &Claims<'_>) -> Result<bool, ServiceError> {
        Ok(is_revoked(&*self.ledger, realm, claims).await?)
    }

    /// A published object as it stands on the broker.
    pub async fn object(&self, realm: RealmId, address: Address) -> Result<Option<Vec<u8>>, ServiceError> {
        let object = self.ledger.object(realm, address.to_string()).await?;
        Ok(object.map(|object| object.bytes))
    }

    /// Ends a cutoff; durable when this returns.
    pub async fn lift(
        &self,
        realm: RealmId,
        scope: Scope,
        reason: Option<String>,
        actor: &str,
    ) -> Result<Receipt, ServiceError> {
        let request = Request { action: Action::Lift { scope }, reason, actor: actor.to_owned() };
        self.append_one(realm, self.clock.unix_time(), request).await
    }

    async fn append_one(&self, realm: RealmId, now: UnixTime, request: Request) -> Result<Receipt, ServiceError> {
        let actor = request.actor.clone();
        let receipts = self.record(realm, now, vec![request], &actor).await?;
        // One request, one receipt.
        receipts.first().copied().ok_or(ServiceError::Ledger(LedgerError::Closed))
    }

    /// The one way into the ledger: recorded, counted, logged, and followed on its way to the devices.
    async fn record(
        &self,
        realm: RealmId,
        now: UnixTime,
        requests: Vec<Request>,
        actor: &str,
    ) -> Result<Vec<Receipt>, ServiceError> {
        let kinds: Vec<EntryKind> = requests.iter().map(|request| EntryKind::from(&request.action)).collect();
        let began = self.clock.now().uptime;
        let receipts = self.ledger.append(realm, now, requests).await?;
        let took = self.clock.now().uptime.saturating_sub(began);
        let recorded = || receipts.iter().zip(&kinds).filter(|(receipt, _)| receipt.recorded);
        self.metrics.appended(realm, recorded().map(|(_, kind)| *kind), took);
        if let Some((last, kind)) = recorded().max_by_key(|(receipt, _)| receipt.sequence) {
            let (sequence, entries, kind) = (last.sequence.0, recorded().count(), kind.name());
            tracing::info!(%realm, actor, kind, entries, sequence, "recorded");
            self.lookout.recorded(&self.realm(realm).await?, last.sequence);
        }
        Ok(receipts)
    }

    /// Waits until an entry has come so far, or time is up; says how far it has come.
    pub async fn wait(&self, realm: RealmId, sequence: Sequence, wait: Wait, patience: Duration) -> Reached {
        self.lookout.wait(realm, sequence, wait, patience).await
    }

    /// The ledger's head, how the devices of a realm are, and how many of them stand at or above a sequence, by default
    /// the head.
    pub async fn fleet(&self, realm: RealmId, at_least: Option<Sequence>) -> Result<(Sequence, View), ServiceError> {
        let parameters = self.realm(realm).await?;
        let (_, head) = self.ledger.head(realm).await?;
        let view = self.lookout.view(&parameters, head, at_least.unwrap_or(head));
        Ok((head, view.ok_or(LedgerError::RealmUnknown { realm })?))
    }

    /// Everything that is counted and measured, as text.
    pub async fn metrics(&self) -> Result<String, ServiceError> {
        let status = self.status().await?;
        let view =
            |realm: &RealmStatus| Some((realm.realm.id, self.lookout.view(&realm.realm, realm.head, realm.head)?));
        let views = status.realms.iter().filter_map(view).collect();
        self.metrics.encode(status, views, self.clock.now().wall).map_err(|_| ServiceError::Metrics)
    }

    /// Where requests are counted.
    #[must_use]
    pub fn counters(&self) -> &Metrics {
        &self.metrics
    }

    /// Registers issued tokens, all of them or none; durable when this returns.
    pub async fn register(&self, realm: RealmId, issued: Vec<Issued>) -> Result<Registration, ServiceError> {
        Ok(self.ledger.register(realm, self.clock.unix_time(), issued).await?)
    }

    /// Records that every token issued before `until` is registered; durable when this returns.
    pub async fn cover(&self, realm: RealmId, until: UnixTime) -> Result<Coverage, ServiceError> {
        Ok(self.ledger.cover(realm, self.clock.unix_time(), until).await?)
    }

    /// What the registry of a realm knows.
    pub async fn coverage(&self, realm: RealmId) -> Result<Coverage, ServiceError> {
        Ok(self.ledger.coverage(realm).await?)
    }

    /// Draws `jti`s that no filter in force flags.
    pub async fn clean_jtis(&self, realm: RealmId, count: usize) -> Result<Vec<String>, ServiceError> {
        let realm = self.realm(realm).await?;
        self.must_lead()?;
        (0..count).map(|_| self.filters.clean_jti(&realm)).collect()
    }

    /// The server's time.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        self.clock.unix_time()
    }

    /// The server's time, exactly.
    #[must_use]
    pub fn now_millis(&self) -> UnixMillis {
        self.clock.now().wall
    }

    /// How the server is.
    pub async fn status(&self) -> Result<Status, ServiceError> {
        let mut published = self.published.borrow().clone();
        let (office, now) = (self.office(), self.clock.now().wall);
        let heartbeat = self.settings.borrow().heartbeat;
        for realm in published.values_mut() {
            let age = realm.heartbeat_age(now);
            // A manifest lives for three heartbeats; half of that gives time to act.
            if office.is_leading() && realm.at != UnixMillis::default() && age > heartbeat * 3 / 2 {
                realm.trouble.get_or_insert_with(|| {
                    format!(
                        "the last manifest is {} s old, and devices await one every {} s",
                        age.as_secs(),
                        heartbeat.as_secs()
                    )
                });
            }
        }
        let mut realms = Vec::new();
        for realm in self.ledger.realms().await? {
            let (term, head) = self.ledger.head(realm.id).await?;
            let coverage = self.ledger.coverage(realm.id).await?;
            realms.push(RealmStatus { published: published.get(&realm.id).cloned(), realm, term, head, coverage });
        }
        Ok(Status {
            realms,
            broker: self.broker.borrow().clone(),
            ledger_writable: self.ledger.is_writable(),
            office,
            at: now,
        })
    }

    /// Why the server cannot do its work, if so: entries could not be recorded, or not travel.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if !self.ledger.is_writable() {
            return Some(LedgerError::Poisoned.to_string());
        }
        match self.office() {
            Office::Leading => {}
            // It takes requests, and somebody else publishes them.
            Office::Following { .. } => return None,
            Office::Seeking => return Some("it is not known yet who leads".into()),
            Office::Unable { cause } => return Some(format!("this server cannot publish: {cause}")),
        }
        match &*self.broker.borrow() {
            LinkState::Up { .. } => None,
            LinkState::Connecting => Some("the broker is not connected yet".into()),
            LinkState::Down { cause } => Some(format!("the broker is not connected: {cause}")),
        }
    }

    /// The parameters of a realm.
    pub async fn realm(&self, id: RealmId) -> Result<Realm, ServiceError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(realm) = known {
            return Ok(realm);
        }
        let realm = self.ledger.realm(id).await?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(id, realm.clone());
        Ok(realm)
    }

    /// Takes in the next version of a realm's keys, which its root keys have signed; durable when this returns, and
    /// published soon after. Returns the version in force.
    pub async fn replace_keys(&self, realm: RealmId, bytes: Vec<u8>) -> Result<u64, ServiceError> {
        // One after the other: two different ones of one version would set devices against each other.
        let _turn = self.rotating.lock().await;
        let realm = self.realm(realm).await?.id;
        let held = self.object(realm, Address::Keys).await?.unwrap_or_default();
        match rotation::check(&held, &bytes, &realm, self.clock.now().wall)? {
            Taken::Known => Ok(rotation::read(&held, &realm)?.version),
            Taken::Next(keys) => {
                let (term, _) = self.ledger.head(realm).await?;
                let at = |address: Address| Object { address: address.to_string(), bytes: bytes.clone() };
                let objects = vec![at(Address::Keys), at(Address::KeysAt { version: keys.version })];
                self.ledger.store_objects(realm, term, objects, Vec::new()).await?;
                tracing::warn!(%realm, version = keys.version, "the realm has new keys");
                Ok(keys.version)
            }
        }
    }

    fn keys_object(
        &self,
        realm: &Realm,
        now: UnixMillis,
        trust: Trust,
        root: &SigningKey,
    ) -> Result<Vec<u8>, ServiceError> {
        let not_after = now.plus(PUBLISHER_KEY_LIFETIME).floor();
        let keys = revocast_core::Keys {
            version: 1,
            issued_at: now,
            not_after,
            threshold: trust.threshold,
            roots: trust.roots,
            // One key for both roles: whoever may say something new may also renew it.
            publishers: vec![PublisherKey {
                key: self.keys.publisher()?.public(),
                role: Role::Content as u8,
                not_after,
            }],
            issuer: realm.issuer.as_str().into(),
            fingerprinter: realm.fingerprinter,
            // Checked against LEEWAY_MAX when the realm was asked for.
            leeway: u32::try_from(realm.leeway.as_secs()).unwrap_or(u32::MAX),
        };
        let body = wire::encode_keys(&keys).map_err(ServiceError::Encode)?;
        Ok(seal(Kind::Keys, &realm.id, &body, &[root]))
    }
}

/// Whether a token is revoked, by the ledger itself: its `jti`, or a cutoff that matches.
pub async fn is_revoked(ledger: &dyn Ledger, realm: RealmId, claims: &Claims<'_>) -> Result<bool, LedgerError> {
    let record = ledger.token(realm, claims.jti.as_str().to_owned()).await?;
    if let Some(Entry { statement: Statement::Revoke { .. }, .. }) = record.entry {
        return Ok(true);
    }
    // Read after the token: whatever was recorded by then is in one of the two.
    let cutoffs = ledger.cutoffs(realm).await?;
    let matches = |entry: &Entry| match &entry.statement {
        Statement::Cutoff { scope, not_before } => {
            let in_scope = match scope {
                Scope::Realm => true,
                Scope::Sub(text) => claims.sub == Some(text),
                Scope::Kid(text) => claims.kid == Some(text),
                Scope::Client(text) => claims.client == Some(text),
            };
            in_scope && claims.iat.is_none_or(|iat| iat < *not_before)
        }
        Statement::Revoke { .. } | Statement::Reinstate { .. } | Statement::Lift { .. } | Statement::Resume { .. } => {
            false
        }
    };
    Ok(cutoffs.iter().any(matches))
}

/// Why something was not done.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The key that is needed is not at hand.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token is expired already, whoever asks; nothing is left to revoke.
    #[error("revocation {index} has exp {exp}, which with a leeway of {} s is past: it is {now}", .leeway.as_secs())]
    Expired {
        /// Which of the revocations, counted from 0.
        index: usize,
        /// Its `exp`.
        exp: UnixTime,
        /// The server's time.
        now: UnixTime,
        /// The realm's leeway.
        leeway: Duration,
    },
    /// A cutoff that no token of today could outlive; milliseconds instead of seconds, most often. It would
    /// revoke every token yet to be issued.
    #[error("not_before {not_before} lies beyond {latest}, when every token issued by now is expired: it is {now}")]
    CutoffAhead {
        /// What was asked for.
        not_before: UnixTime,
        /// The server's time.
        now: UnixTime,
        /// The latest that is possible.
        latest: UnixTime,
    },
    /// The filters in force flag nearly everything. A new epoch ends it.
    #[error("{rolls} jtis were drawn for realm {realm}, and its filters flag each of them")]
    NoCleanJti {
        /// Which realm.
        realm: RealmId,
        /// How many were drawn.
        rolls: u32,
    },
    /// Only the leader knows. Ask it.
    #[error("this server does not lead; {}", match (.leader, .address) {
        (Some(leader), Some(address)) => format!("{leader} does, at {address}"),
        (Some(leader), None) => format!("{leader} does, and does not tell its address"),
        (None, _) => "who does is not known yet".to_owned(),
    })]
    NotLeading {
        /// Who does.
        leader: Option<String>,
        /// Where it is.
        address: Option<String>,
    },
    /// The realm's publisher is starting, or busy. Ask again.
    #[error("realm {realm} is not being published just now")]
    NotPublishing {
        /// Which realm.
        realm: RealmId,
    },
    /// What would be published cannot be encoded.
    #[error("no plan can be made")]
    Plan(#[from] PublishError),
    /// A leeway that no validator should have.
    #[error("a leeway of {} s is more than {} s", .found.as_secs(), LEEWAY_MAX.as_secs())]
    Leeway {
        /// What was asked for.
        found: Duration,
    },
    /// A lifetime that no token should have.
    #[error("a max_token_lifetime of {} s; from 1 to {} s is possible", .found.as_secs(), MAX_TOKEN_LIFETIME_MAX.as_secs())]
    MaxTokenLifetime {
        /// What was asked for.
        found: Duration,
    },
    /// One root key does not suffice; sign elsewhere.
    #[error("{threshold} root keys must sign a realm, and only one is here")]
    MoreRootsNeeded {
        /// How many.
        threshold: u8,
    },
    /// The root key is not one of those that devices pin: they would refuse all it signs.
    #[error("root key {root} does not stand in trust.json")]
    RootNotTrusted {
        /// Its id.
        root: String,
    },
    /// The ledger does not grant the token.
    #[error(transparent)]
    NoToken(#[from] NoToken),
    /// A cutoff lies ahead, and a token from before it would be revoked when it is handed out. Come back then.
    #[error("a cutoff revokes tokens from before {not_before}, which is {} ms ahead", .ahead.as_millis())]
    Held {
        /// Of the cutoff.
        not_before: UnixTime,
        /// How far ahead that is.
        ahead: Duration,
    },
    /// Another issuer signs the tokens of this realm: its keys were set. Ask it; or make a key for this realm here.
    #[error(
        "the tokens of realm {realm} are signed elsewhere; to issue them here make a key: revocast issuer-key generate --realm {realm}"
    )]
    IssuedElsewhere {
        /// Which realm.
        realm: RealmId,
    },
    /// Every key of the realm's issuer signs later. Wait, or make one that signs now.
    #[error("no key of realm {realm} signs yet; revocast issuer-key list --realm {realm} says from when on")]
    NoIssuerKey {
        /// Which realm.
        realm: RealmId,
    },
    /// A lifetime that no token of the realm may have.
    #[error("a lifetime of {} s; from 1 to {} s is possible in this realm", .found.as_secs(), .max.as_secs())]
    Lifetime {
        /// What was asked for.
        found: Duration,
        /// The longest.
        max: Duration,
    },
    /// Claims that no token can carry.
    #[error("the claims cannot be used")]
    Claims(#[from] TemplateError),
    /// The keys of the issuer cannot be used.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// A key of the issuer failed to sign.
    #[error("the token cannot be signed")]
    Sign(#[from] TokenKeyError),
    /// What was shown as a refresh token was never one of ours, or would be larger than any.
    #[error("it is no refresh token")]
    RefreshForm,
    /// The device is not enrolled, or no longer.
    #[error("device {device} is not enrolled in this realm")]
    DeviceUnknown {
        /// Which.
        device: DeviceId,
    },
    /// The keys of a realm that somebody brings cannot follow those in force.
    #[error("the keys are not taken in")]
    Rotation(#[from] RotationError),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// Our own mistake: a name that no metric can have.
    #[error("the metrics cannot be written down")]
    Metrics,
    /// Our own mistake: the object cannot be written down.
    #[error("the keys object cannot be encoded")]
    Encode(#[source] WireError),
}
