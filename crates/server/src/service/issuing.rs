//! Tokens of our own issuer: issued, refreshed, renewed. And the devices they are for.
//!
//! The order of things keeps a promise: first the ledger grants a token, in the transaction that registers it and checks
//! what could be against it; only then it is signed. What is granted and lost on the way is a token that nobody holds.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::update::{NoRenewal, Nonce, Notice, Renew};
use revocast_core::{DeviceId, Digest, RealmId, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Service, ServiceError};
use crate::issuer::{self, Bearer, Template, TokenClaims};
use crate::ledger::{
    Device, Dismissal, Enrollment, Issuance, NewDevice, NewRefresh, NewToken, NoToken, Order, Realm, RefreshStep,
    Renewal,
};
use crate::tokens::Issuers;

/// A token that lives longer is warned of: until it expires, whoever steals it has it.
pub const LONG_LIFETIME: Duration = Duration::from_hours(24);

/// How long a refresh token can be spent.
const REFRESH_LIFETIME: Duration = Duration::from_hours(14 * 24);

/// How long a token is held until a cutoff lies behind it (design rule 16). One "now" lies a second ahead; whoever asks
/// for a later one hears when to come back.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// A cutoff that lies further ahead is no accident of the moment: nobody is told to wait for it.
const AHEAD_MAX: Duration = Duration::from_mins(1);

/// How long whoever issues to a device waits for the broker.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a refresh token: what it says of its token, in base64.
const REFRESH_BYTES_MAX: usize = 8 * 1024;

/// What a service issues with.
pub struct Issuing {
    /// The keys.
    pub issuers: Arc<Issuers>,
    /// How long a token lives unless said otherwise.
    pub lifetime: Duration,
    /// Where what is for a device is handed over.
    pub parcels: mpsc::Sender<Parcel>,
}

/// Something for one device, to be sealed and sent.
#[derive(Debug)]
pub struct Parcel {
    /// Its realm.
    pub realm: RealmId,
    /// The device.
    pub device: Device,
    /// That of the request it answers.
    pub nonce: Option<Nonce>,
    /// What it is told.
    pub notice: Notice,
    /// Told once the broker has it.
    pub done: oneshot::Sender<()>,
}

/// A token that somebody asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRequest {
    /// Whom it shall speak of.
    pub subject: String,
    /// Whom it shall be for.
    pub audience: Vec<String>,
    /// How long it shall live, if not as the realm's tokens do.
    pub lifetime: Option<Duration>,
    /// Claims besides.
    pub claims: Map<String, Value>,
    /// The client it is issued to, if any.
    pub client: Option<String>,
    /// Whether a refresh token shall come with it; whoever spends that is the client.
    pub refresh: bool,
}

/// A token that was issued.
#[derive(Clone, PartialEq, Eq)]
pub struct Minted {
    /// The token.
    pub token: String,
    /// Which.
    pub jti: String,
    /// When it was issued.
    pub iat: UnixTime,
    /// When it expires.
    pub exp: UnixTime,
    /// What gets the next one.
    pub refresh: Option<String>,
    /// Whether it lives longer than is wise ([`LONG_LIFETIME`]).
    pub long: bool,
}

/// What a refresh token says of the token that it gets. Changing it makes another one, which no ledger knows.
#[derive(Clone, Serialize, Deserialize)]
struct RefreshText {
    /// 256 random bits.
    random: String,
    realm: String,
    sub: String,
    aud: Vec<String>,
    client: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lifetime: Option<u64>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    claims: Map<String, Value>,
}

/// What is to be minted.
struct Plan {
    subject: String,
    audience: Vec<String>,
    lifetime: Option<Duration>,
    claims: Map<String, Value>,
    client: Option<String>,
    device: Option<Device>,
    renewal: Option<Renewal>,
    refresh: bool,
    spends: Option<[u8; 32]>,
    actor: String,
}

impl Service {
    /// Issues a token to whoever asks for it.
    pub async fn issue_token(
        &self,
        realm: RealmId,
        request: TokenRequest,
        actor: &str,
    ) -> Result<Minted, ServiceError> {
        let TokenRequest { subject, audience, lifetime, claims, client, refresh } = request;
        let plan = Plan {
            subject,
            audience,
            lifetime,
            claims,
            client: client.or_else(|| refresh.then(|| actor.to_owned())),
            device: None,
            renewal: None,
            refresh,
            spends: None,
            actor: actor.to_owned(),
        };
        self.mint(&self.realm(realm).await?, plan).await
    }

    /// Which realm a refresh token belongs to, and to which client, by its own word.
    pub fn read_refresh(&self, text: &str) -> Result<(RealmId, String), ServiceError> {
        let said = RefreshText::read(text)?;
        let realm = RealmId::new(&said.realm).map_err(|_| ServiceError::RefreshForm)?;
        Ok((realm, said.client))
    }

    /// Issues the token that a refresh token gets, and the next refresh token. One that was spent before revokes all that
    /// came of it (RFC 9700 section 4.14).
    pub async fn refresh(&self, text: &str, actor: &str) -> Result<Minted, ServiceError> {
        let said = RefreshText::read(text)?;
        let realm = RealmId::new(&said.realm).map_err(|_| ServiceError::RefreshForm)?;
        let plan = Plan {
            subject: said.sub,
            audience: said.aud,
            lifetime: said.lifetime.map(Duration::from_secs),
            claims: said.claims,
            client: Some(said.client),
            device: None,
            renewal: None,
            refresh: true,
            spends: Some(Digest::of(text.as_bytes()).0),
            actor: actor.to_owned(),
        };
        self.mint(&self.realm(realm).await?, plan).await
    }

    /// Ends what a refresh token stands for: all that came of it is revoked, and nothing continues it; durable when this
    /// returns. Of one that no ledger knows nothing is left to end.
    pub async fn withdraw(
        &self,
        realm: RealmId,
        text: &str,
        reason: Option<String>,
        actor: &str,
    ) -> Result<(), ServiceError> {
        let (now, hash) = (self.clock.unix_time(), Digest::of(text.as_bytes()).0);
        let sequence = self.ledger.withdraw(realm, now, hash, reason, actor.to_owned()).await?;
        if let Some(sequence) = sequence {
            tracing::info!(%realm, actor, sequence = sequence.0, "a refresh token and what came of it are revoked");
            self.lookout.recorded(&self.realm(realm).await?, sequence);
        }
        Ok(())
    }

    /// Issues a token to a device and sends it there. Says whether the broker has it; the device asks for another one if
    /// it never gets it.
    pub async fn issue_to_device(
        &self,
        realm: RealmId,
        device: DeviceId,
        lifetime: Option<Duration>,
        claims: Map<String, Value>,
        actor: &str,
    ) -> Result<(Minted, bool), ServiceError> {
        let found = self.device(realm, device).await?;
        let minted = self.mint_for(realm, found.clone(), lifetime, claims, None, actor).await?;
        let notice = Notice::Token { token: minted.token.as_str().into() };
        let delivered = timeout(DELIVERY_PATIENCE, self.deliver(realm, found, None, notice)).await;
        Ok((minted, delivered.unwrap_or(false)))
    }

    /// Issues the next token of a device before the one it holds has expired, unasked.
    pub async fn renew_ahead(&self, realm: RealmId, device: DeviceId, jti: String) -> Result<Notice, ServiceError> {
        let found = self.device(realm, device).await?;
        let renewal = Renewal { counter: None, parent: Some(jti) };
        let minted = self.mint_for(realm, found, None, Map::new(), Some(renewal), "renewal").await?;
        Ok(Notice::Token { token: minted.token.into() })
    }

    /// Answers the request of a device for a new token; nothing if there is nothing to say to it.
    pub async fn renew(&self, realm: RealmId, device: Device, request: &Renew) -> Option<Notice> {
        let id = device.id;
        let renewal = Renewal { counter: Some(request.counter), parent: None };
        let why = match self.mint_for(realm, device, None, Map::new(), Some(renewal), "renewal").await {
            Ok(minted) => return Some(Notice::Token { token: minted.token.into() }),
            Err(ServiceError::NoToken(why)) => match why {
                NoToken::ParentRevoked => NoRenewal::Revoked,
                NoToken::CutOff { .. } => NoRenewal::CutOff,
                NoToken::Replayed { .. } => NoRenewal::Replayed,
                NoToken::FamilyFull { .. } => NoRenewal::Busy,
                // Dismissed meanwhile; and nobody names a token or spends a refresh token here.
                NoToken::DeviceUnknown
                | NoToken::NotHeld
                | NoToken::ParentExpired
                | NoToken::RefreshUnknown
                | NoToken::RefreshExpired
                | NoToken::RefreshReused => return None,
            },
            Err(error) => {
                tracing::warn!(%realm, device = %id, error = %crate::publisher::chain(&error), "no token for a device that asks for one");
                NoRenewal::Busy
            }
        };
        tracing::info!(%realm, device = %id, why = why.name(), "a renewal is refused");
        Some(Notice::Refused { why })
    }

    async fn mint_for(
        &self,
        realm: RealmId,
        device: Device,
        lifetime: Option<Duration>,
        claims: Map<String, Value>,
        renewal: Option<Renewal>,
        actor: &str,
    ) -> Result<Minted, ServiceError> {
        let plan = Plan {
            subject: device.subject.clone(),
            audience: device.audience.clone(),
            lifetime,
            claims,
            client: None,
            device: Some(device),
            renewal,
            refresh: false,
            spends: None,
            actor: actor.to_owned(),
        };
        self.mint(&self.realm(realm).await?, plan).await
    }

    /// Hands something for a device over to be sent; says whether the broker has it.
    pub async fn deliver(&self, realm: RealmId, device: Device, nonce: Option<Nonce>, notice: Notice) -> bool {
        let (done, sent) = oneshot::channel();
        let parcel = Parcel { realm, device, nonce, notice, done };
        // Whoever sends has gone, or could not send: dropped either way.
        self.issuing.parcels.send(parcel).await.is_ok() && sent.await.is_ok()
    }

    /// The one way to a token.
    async fn mint(&self, realm: &Realm, plan: Plan) -> Result<Minted, ServiceError> {
        Template::check(&plan.claims)?;
        let began = tokio::time::Instant::now();
        loop {
            // It alone knows the filters in force.
            self.must_lead()?;
            let ring =
                self.issuing.issuers.issuing(realm.id)?.ok_or(ServiceError::IssuedElsewhere { realm: realm.id })?;
            let template = ring.template();
            let iat = self.clock.unix_time();
            let key = ring.active(iat).ok_or(ServiceError::NoIssuerKey { realm: realm.id })?;
            let lifetime = plan.lifetime.or(template.lifetime).unwrap_or(self.issuing.lifetime);
            let lifetime = if plan.lifetime.is_none() { lifetime.min(realm.max_token_lifetime) } else { lifetime };
            if lifetime.is_zero() || lifetime > realm.max_token_lifetime {
                return Err(ServiceError::Lifetime { found: lifetime, max: realm.max_token_lifetime });
            }
            let jti = self.filters.clean_jti(realm)?;
            let exp = iat.plus(lifetime.as_secs());
            let next = plan.refresh.then(|| RefreshText::draw(realm.id, &plan)).transpose()?;
            let refresh = RefreshStep {
                spends: plan.spends,
                next: next.as_ref().map(|text| NewRefresh {
                    hash: Digest::of(text.as_bytes()).0,
                    exp: iat.plus(REFRESH_LIFETIME.as_secs()),
                }),
            };
            let continues = plan.renewal.is_some() || plan.spends.is_some();
            let order = Order {
                token: NewToken {
                    jti: jti.clone(),
                    iat,
                    exp,
                    sub: Some(plan.subject.clone()),
                    kid: Some(key.kid().to_owned()),
                    client: plan.client.clone(),
                },
                device: plan.device.as_ref().map(|device| device.id),
                renewal: plan.renewal.clone(),
                refresh: (plan.refresh || plan.spends.is_some()).then_some(refresh),
                revoke_parent: continues && template.revoke_on_renew,
                actor: plan.actor.clone(),
            };
            match self.ledger.issue(realm.id, iat, order).await? {
                Issuance::Issued { sequence } => {
                    if let Some(sequence) = sequence {
                        self.lookout.recorded(realm, sequence);
                    }
                }
                Issuance::Refused(NoToken::CutOff { not_before }) if not_before > iat => {
                    let ahead = not_before.millis().since(self.clock.now().wall);
                    if ahead > AHEAD_MAX {
                        return Err(ServiceError::NoToken(NoToken::CutOff { not_before }));
                    }
                    if began.elapsed() + ahead > HOLD_MAX {
                        return Err(ServiceError::Held { not_before, ahead });
                    }
                    tokio::time::sleep(ahead).await;
                    continue;
                }
                Issuance::Refused(why) => return Err(ServiceError::NoToken(why)),
            }
            let names: [(&str, &str); 3] = [
                ("realm", realm.id.as_str()),
                ("sub", &plan.subject),
                ("device", plan.device.as_ref().map_or("", |device| device.id.as_str())),
            ];
            let claims = TokenClaims {
                issuer: realm.issuer.clone(),
                subject: plan.subject.clone(),
                audience: plan.audience.clone(),
                jti: jti.clone(),
                iat,
                exp,
                client: plan.client.clone(),
                bearer: match &plan.device {
                    Some(device) => Bearer::Holder { thumbprint: issuer::confirmation(&device.signing) },
                    None => Bearer::Anybody,
                },
                custom: template.fill(&names, plan.claims.clone()),
            };
            let token = issuer::sign(key, &template.typ, claims)?;
            let long = lifetime > LONG_LIFETIME;
            if long {
                let (hours, actor) = (lifetime.as_secs() / 3_600, plan.actor.as_str());
                tracing::warn!(realm = %realm.id, jti, hours, actor, "a token that lives long; short ones that are renewed do less harm");
            }
            return Ok(Minted { token, jti, iat, exp, refresh: next, long });
        }
    }

    /// Enrolls a device, or finds it again; durable when this returns.
    pub async fn enroll(&self, realm: RealmId, device: NewDevice) -> Result<Enrollment, ServiceError> {
        let (id, actor) = (device.id, device.actor.clone());
        let enrollment = self.ledger.enroll(realm, self.clock.unix_time(), device).await?;
        if let Some(sequence) = enrollment.sequence {
            self.lookout.recorded(&self.realm(realm).await?, sequence);
        }
        if enrollment.created {
            tracing::info!(%realm, device = %id, actor, "enrolled");
        }
        Ok(enrollment)
    }

    /// A device that is enrolled.
    pub async fn device(&self, realm: RealmId, id: DeviceId) -> Result<Device, ServiceError> {
        let found = self.ledger.device(realm, id).await?;
        found.ok_or(ServiceError::DeviceUnknown { device: id })
    }

    /// The devices whose names come after `after`, at most `limit`.
    pub async fn devices(
        &self,
        realm: RealmId,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, ServiceError> {
        Ok(self.ledger.devices(realm, after, limit).await?)
    }

    /// Enrolls a device no longer and revokes its tokens; durable when this returns.
    pub async fn dismiss(
        &self,
        realm: RealmId,
        id: DeviceId,
        reason: Option<String>,
        actor: &str,
    ) -> Result<Dismissal, ServiceError> {
        let now = self.clock.unix_time();
        let dismissal = self.ledger.dismiss(realm, now, id, reason, actor.to_owned()).await?;
        match dismissal {
            Dismissal::Dismissed { revoked, sequence } => {
                tracing::info!(%realm, device = %id, actor, revoked, "dismissed");
                self.lookout.recorded(&self.realm(realm).await?, sequence);
                Ok(dismissal)
            }
            Dismissal::Unknown => Err(ServiceError::DeviceUnknown { device: id }),
        }
    }

    /// Devices whose newest token ends within `window`, with that token and its end, at most `limit`.
    pub async fn expiring(
        &self,
        realm: RealmId,
        window: Duration,
        limit: usize,
    ) -> Result<Vec<(DeviceId, String, UnixTime)>, ServiceError> {
        let now = self.clock.unix_time();
        Ok(self.ledger.expiring(realm, now, now.plus(window.as_secs()), limit).await?)
    }

    /// How long the tokens of a realm's devices live.
    pub fn token_lifetime(&self, realm: &Realm) -> Result<Duration, ServiceError> {
        let ring = self.issuing.issuers.ring(realm.id)?;
        Ok(ring.template().lifetime.unwrap_or(self.issuing.lifetime).min(realm.max_token_lifetime))
    }
}

impl RefreshText {
    fn read(text: &str) -> Result<Self, ServiceError> {
        if text.len() > REFRESH_BYTES_MAX {
            return Err(ServiceError::RefreshForm);
        }
        let said = URL_SAFE_NO_PAD.decode(text).map_err(|_| ServiceError::RefreshForm)?;
        serde_json::from_slice(&said).map_err(|_| ServiceError::RefreshForm)
    }

    fn draw(realm: RealmId, plan: &Plan) -> Result<String, ServiceError> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(ServiceError::Random)?;
        let said = Self {
            random: URL_SAFE_NO_PAD.encode(random),
            realm: realm.to_string(),
            sub: plan.subject.clone(),
            aud: plan.audience.clone(),
            client: plan.client.clone().unwrap_or_default(),
            lifetime: plan.lifetime.map(|lifetime| lifetime.as_secs()),
            claims: plan.claims.clone(),
        };
        // Texts and values always serialize; the default is never taken.
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&said).unwrap_or_default());
        if text.len() > REFRESH_BYTES_MAX { Err(ServiceError::RefreshForm) } else { Ok(text) }
    }
}
