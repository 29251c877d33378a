//! This device's own token: held, renewed in time, looked at before every use.
//!
//! The server sends tokens to one device alone ([`Delivery`](revocast_core::Delivery)). Nothing about one is believed
//! before its seal, its enclosure and the token itself were checked; only then it takes the place of the one before.
//! [`Keeper`] decides and does no I/O; the driver sends and writes for it. What an application sees is an [`Inbox`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::limits::TOKEN_BYTES_MAX;
use revocast_core::update::Nonce;
use revocast_core::{
    Delivery, DeviceId, Digest, Kind, NoRenewal, Notice, Now, Rank, RealmId, Refusal, Renew, Replica, TokenTopic,
    UnixMillis, UnixTime, Verdict, Why, disclose, seal, wire,
};
use thiserror::Error;
use tokio::sync::watch;

use crate::checker::Checker;
use crate::config::{ShownToken, TokenFeed};
use crate::identity::Identity;
use crate::policy::Policy;
use crate::possession::Presented;
use crate::validator::{
    LIFETIME_MAX_DEFAULT, LiveKeys, Rejected, Rejection, Revocations, Token, Validator, ValidatorConfig,
};

/// Part of its life after which a token is renewed, in percent: at a moment between these, of its own on every device.
const RENEW_PERCENT: (u64, u64) = (60, 80);

/// First and longest wait for an answer, before a request is made again.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_mins(5);

/// Requests whose answers may still come. An answer that is late is as good as one in time.
const OPEN_MAX: usize = 8;

/// Clock difference to the issuer that is allowed for, in seconds, if the realm allows as much: a token comes in the
/// second in which it was made.
const LEEWAY_SECS: u32 = 60;

/// First bytes of what is kept.
const MAGIC: [u8; 4] = *b"RVT1";

/// Bytes before the token in what is kept.
const HEAD_BYTES: usize = 4 + 8 + 8 + 32;

/// How a device gets its tokens.
#[derive(Clone, Debug)]
pub struct InboxConfig {
    pub(crate) identity: Arc<Identity>,
    pub(crate) topic: TokenTopic,
    audiences: Vec<String>,
    subject: Option<String>,
    token_type: Option<String>,
    takes_clear: bool,
    lifetime_max: Duration,
}

impl InboxConfig {
    /// Tokens for this identity, each for at least one of these audiences. The identity must be that of the client id.
    #[must_use]
    pub fn new<A: Into<String>>(identity: Identity, audiences: impl IntoIterator<Item = A>) -> Self {
        Self {
            identity: Arc::new(identity),
            topic: TokenTopic::default(),
            audiences: audiences.into_iter().map(Into::into).collect(),
            subject: None,
            token_type: None,
            takes_clear: false,
            lifetime_max: LIFETIME_MAX_DEFAULT,
        }
    }

    /// Another template of the topics on which the server delivers than [`TokenTopic::DEFAULT`].
    #[must_use]
    pub fn with_topic(mut self, topic: TokenTopic) -> Self {
        self.topic = topic;
        self
    }

    /// Refuses tokens with another `sub`. Without it the binding to the device's key alone says whose a token is.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Requires this `typ`.
    #[must_use]
    pub fn with_type(mut self, token_type: impl Into<String>) -> Self {
        self.token_type = Some(token_type.into());
        self
    }

    /// Refuses tokens that live longer; as [`ValidatorConfig::with_lifetime_max`].
    #[must_use]
    pub const fn with_lifetime_max(mut self, most: Duration) -> Self {
        self.lifetime_max = most;
        self
    }

    /// Takes tokens that were not enclosed, too: every reader of the topic has them then.
    #[must_use]
    pub const fn with_clear_deliveries(mut self) -> Self {
        self.takes_clear = true;
        self
    }
}

/// Why a device cannot take in tokens as it was told to; the operator's to mend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InboxError {
    /// The server delivers to the device that was enrolled, and it would listen as another.
    #[error("the identity is that of device {identity}, but the client id is {client}; they must be the same")]
    OtherDevice {
        /// That of the identity.
        identity: Box<DeviceId>,
        /// The client id.
        client: Box<DeviceId>,
    },
    /// It was enrolled elsewhere.
    #[error("the identity is one of realm {identity}, but realm {followed} is followed")]
    OtherRealm {
        /// That of the identity.
        identity: Box<RealmId>,
        /// The one that is followed.
        followed: Box<RealmId>,
    },
    /// No token could be for it.
    #[error("at least one audience of the device's tokens must be named")]
    NoAudience,
}

impl InboxConfig {
    /// Whether it fits the device that follows `realm` under this name.
    pub(crate) fn check(&self, realm: RealmId, client: DeviceId) -> Result<(), InboxError> {
        let identity = &self.identity;
        if identity.device() != client {
            let identity = Box::new(identity.device());
            return Err(InboxError::OtherDevice { identity, client: Box::new(client) });
        }
        if identity.realm() != realm {
            let identity = Box::new(identity.realm());
            return Err(InboxError::OtherRealm { identity, followed: Box::new(realm) });
        }
        if self.audiences.is_empty() { Err(InboxError::NoAudience) } else { Ok(()) }
    }
}

/// A token that this device holds. Its text is never printed.
#[derive(Clone, PartialEq)]
pub struct HeldToken {
    text: Box<str>,
    token: Token,
    since: UnixMillis,
}

impl HeldToken {
    /// The compact JWS. Ask [`Inbox::present`] for it instead where it is used: that looks at it again.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    #[must_use]
    pub const fn token(&self) -> &Token {
        &self.token
    }

    /// When it came into force here, by the wall clock.
    #[must_use]
    pub const fn since(&self) -> UnixMillis {
        self.since
    }
}

impl fmt::Debug for HeldToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldToken({})", self.token.jti())
    }
}

/// How a device stands with its own token.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenState {
    /// It has none.
    Absent {
        /// Why the server did not give one when it was asked last.
        refused: Option<NoRenewal>,
    },
    /// It has one, and nothing is known against it.
    Held(Arc<HeldToken>),
    /// It was revoked, or cut off. It must not be used; a new one is asked for, which the server gives if the
    /// revocation was undone.
    Revoked {
        /// Its `jti`.
        jti: Box<str>,
    },
    /// It is over, and no new one has come.
    Expired {
        /// Its `jti`.
        jti: Box<str>,
        /// Its end.
        exp: UnixTime,
    },
}

impl TokenState {
    /// The name used in logs and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::Held(_) => "held",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "expired",
        }
    }
}

/// Why there is no token to show.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotHeld {
    /// None has come yet. The device asks for one by itself.
    #[error("this device has no token yet")]
    Absent,
    /// Its own token was revoked. Whoever revoked it can say why.
    #[error("the token of this device ({jti}) was revoked")]
    Revoked {
        /// Its `jti`.
        jti: Box<str>,
    },
    /// It is over. The device asks for another by itself.
    #[error("the token of this device ({jti}) expired at {exp}")]
    Expired {
        /// Its `jti`.
        jti: Box<str>,
        /// Its end.
        exp: UnixTime,
    },
}

/// Where an application finds the token of its device. Cheap to clone; use it from any thread.
#[derive(Clone, Debug)]
pub struct Inbox {
    state: watch::Receiver<TokenState>,
    checker: Checker,
    identity: Arc<Identity>,
}

impl Inbox {
    /// How it stands now.
    #[must_use]
    pub fn current(&self) -> TokenState {
        self.state.borrow().clone()
    }

    /// The same as a channel that tells every change: a new token, and at once when it is revoked, cut off or expired.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<TokenState> {
        self.state.clone()
    }

    /// The token to show to somebody, looked at once more: not expired, and not revoked as far as is known here.
    ///
    /// In doubt it is given: whether it is honored is for whoever is shown it to say. `now` is as for
    /// [`Checker::check`].
    pub fn present(&self, now: Now) -> Result<String, NotHeld> {
        let held = match self.current() {
            TokenState::Held(held) => held,
            TokenState::Absent { .. } => return Err(NotHeld::Absent),
            TokenState::Revoked { jti } => return Err(NotHeld::Revoked { jti }),
            TokenState::Expired { jti, exp } => return Err(NotHeld::Expired { jti, exp }),
        };
        match against(&self.checker, now, &held.token) {
            None => Ok(held.text.clone().into()),
            Some(Against::Revoked) => Err(NotHeld::Revoked { jti: held.token.jti().into() }),
            Some(Against::Expired) => {
                Err(NotHeld::Expired { jti: held.token.jti().into(), exp: held.token.expires_at() })
            }
        }
    }

    /// The keys of this device: for proofs that the token is its own.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// What speaks against a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    Revoked,
    Expired,
}

/// What is known against a token of this device's own.
fn against(checker: &Checker, now: Now, token: &Token) -> Option<Against> {
    let over = token.expires_at() <= checker.time(now).floor();
    // A token whose `jti` names nothing was never taken in.
    let verdict = token.claims().map(|claims| checker.check(now, &claims));
    match verdict {
        Ok(Verdict::Revoked { why: Why::Token | Why::Cutoff { .. } }) | Err(_) => Some(Against::Revoked),
        Ok(Verdict::Revoked { why: Why::Expired { .. } }) => Some(Against::Expired),
        Ok(Verdict::NotRevoked { .. } | Verdict::Suspect { .. } | Verdict::Unknown { .. }) => {
            over.then_some(Against::Expired)
        }
    }
}

/// Why a delivery was not taken in.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Declined {
    /// The delivery itself is not to be believed.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The token in it is not a good one.
    #[error("the token that was delivered is not good: {0}")]
    Token(Rejection),
    /// It is a good token of somebody else.
    #[error("the token that was delivered is not for this device: its {0} is another")]
    Foreign(&'static str),
}

/// What the driver does for a keeper.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// Put this into the token's slot, then tell [`Keeper::kept`].
    Keep(Vec<u8>),
    /// Send this request.
    Send(Vec<u8>),
}

/// What a token turned out to be.
enum Judged {
    Good(Box<Token>),
    /// No key at hand has signed it, perhaps not yet.
    Unjudged,
}

/// A request that leaves as soon as its counter is safe.
struct Prepared {
    counter: u64,
    revision: u64,
}

/// Decides about the device's token: what to take in, when to ask, what to tell.
pub(crate) struct Keeper {
    config: InboxConfig,
    owner: Digest,
    checker: Checker,
    keys: LiveKeys,
    validator: Option<Validator<Checker>>,
    state: watch::Sender<TokenState>,
    shown: watch::Sender<Option<ShownToken>>,
    random: u64,

    held: Option<Arc<HeldToken>>,
    /// Why the server gave none when it was asked last.
    refused: Option<NoRenewal>,
    /// A delivered token that no key at hand has signed: kept until the keys change.
    unjudged: Option<Box<str>>,
    /// Counts the changes of keys that were looked at.
    generation: Option<u64>,
    /// When to renew, by the time that is trusted.
    renew_at: UnixMillis,

    counter: u64,
    /// The counter is not known: the next goes on from the clock, which is above all that were ever used.
    counter_lost: bool,
    /// Of the last delivery that was believed.
    issued_at: UnixMillis,

    prepared: Option<Prepared>,
    open: VecDeque<Nonce>,
    wait: Duration,
    /// No request before this uptime.
    wait_until: Duration,

    /// What is to be kept; what is on its way; what is safe.
    revision: u64,
    writing: Option<u64>,
    written: u64,
    write_at: Duration,
}

impl Keeper {
    /// Goes on from what was kept. Damage, or what another device kept, is as good as nothing: then the counter goes on
    /// from the clock in milliseconds.
    pub(crate) fn new(
        config: InboxConfig,
        checker: Checker,
        keys: LiveKeys,
        now: Now,
        seed: u64,
        kept: Option<&[u8]>,
    ) -> Self {
        let owner = owner(&config.identity);
        let restored = kept.and_then(|bytes| decode(bytes, &owner));
        let (counter, issued_at, text) = restored.unwrap_or_default();
        let mut keeper = Self {
            config,
            owner,
            checker,
            keys,
            validator: None,
            state: watch::Sender::new(TokenState::Absent { refused: None }),
            shown: watch::Sender::new(None),
            random: seed,
            held: None,
            refused: None,
            unjudged: (!text.is_empty()).then(|| text.into()),
            generation: None,
            renew_at: UnixMillis::default(),
            counter,
            counter_lost: counter == 0,
            issued_at,
            prepared: None,
            open: VecDeque::new(),
            wait: WAIT_MIN,
            wait_until: Duration::ZERO,
            revision: 0,
            writing: None,
            written: 0,
            write_at: Duration::ZERO,
        };
        keeper.settle(now, 0);
        // It stands there as it was kept.
        keeper.written = keeper.revision;
        keeper
    }

    /// What applications hold.
    pub(crate) fn inbox(&self) -> Inbox {
        Inbox {
            state: self.state.subscribe(),
            checker: self.checker.clone(),
            identity: Arc::clone(&self.config.identity),
        }
    }

    /// What is shown to a broker that lets devices in by their tokens.
    pub(crate) fn shown(&self) -> TokenFeed {
        TokenFeed(self.shown.subscribe())
    }

    /// Takes in what arrived on the device's topic.
    pub(crate) fn take(&mut self, now: Now, replica: &Replica, bytes: &[u8]) -> Result<(), Declined> {
        let notice = self.open_delivery(now, replica, bytes)?;
        let taken = match notice {
            Notice::Token { token } => self.take_token(now, token),
            Notice::Refused { why } => {
                self.take_refusal(why);
                Ok(())
            }
        };
        self.tell(now);
        taken
    }

    /// Checks seal, address, order, nonce and enclosure, in this order; what was inside is the server's word then.
    fn open_delivery(&mut self, now: Now, replica: &Replica, bytes: &[u8]) -> Result<Notice, Refusal> {
        let identity = &self.config.identity;
        let body = replica.verify(now, bytes, Kind::Delivery)?;
        let delivery = body.try_map(wire::decode_delivery)?.into_inner();
        if delivery.device != identity.device() {
            return Err(Refusal::Extraneous { expected: "delivery to this device", found: "delivery to another" });
        }
        if delivery.issued_at <= self.issued_at {
            let rank = |issued_at| Rank { issued_at, ..Rank::default() };
            let (held, offered) = (rank(self.issued_at), rank(delivery.issued_at));
            return Err(Refusal::Rollback { what: "delivery", held, offered });
        }
        if delivery.nonce.is_some_and(|nonce| !self.open.contains(&nonce)) {
            return Err(Refusal::Unasked { what: "the nonce" });
        }
        let plain = if delivery.enclosed {
            let bound = Delivery::bound(delivery.issued_at, delivery.nonce.as_ref());
            disclose(identity.sealing(), &identity.realm(), &identity.device(), &bound, &delivery.content)
                .map_err(|_| Refusal::Malformed { what: "the enclosure does not open with this device's key" })?
        } else if self.config.takes_clear {
            delivery.content
        } else {
            return Err(Refusal::Extraneous { expected: "enclosed delivery", found: "clear delivery" });
        };
        let notice = wire::decode_notice(&plain)?;
        self.issued_at = delivery.issued_at;
        self.revision += 1;
        Ok(notice)
    }

    fn take_token(&mut self, now: Now, text: Box<str>) -> Result<(), Declined> {
        match self.judge(now, &text)? {
            Judged::Good(token) => self.hold(now, text, *token),
            // Asked for again only after a while: the keys may be on their way.
            Judged::Unjudged => self.unjudged = Some(text),
        }
        Ok(())
    }

    fn take_refusal(&mut self, why: NoRenewal) {
        tracing::warn!(device = %self.config.identity.device(), why = why.name(), "the server gave no token");
        self.refused = Some(why);
        match why {
            NoRenewal::Replayed => self.counter_lost = true,
            NoRenewal::Revoked | NoRenewal::CutOff | NoRenewal::Busy => {}
        }
    }

    /// Whether a token is good, and this device's own. What is merely in doubt is good enough to be held.
    fn judge(&mut self, now: Now, text: &str) -> Result<Judged, Declined> {
        let Some(validator) = self.validator() else { return Ok(Judged::Unjudged) };
        let token = match validator.verify(now, Presented::held(text)) {
            Ok(token) => Box::new(token),
            Err(Rejected {
                rejection: Rejection::Suspect | Rejection::Unknown { .. } | Rejection::Aging { .. },
                token: Some(token),
                ..
            }) => token,
            Err(Rejected { rejection: Rejection::KeyNotFound, .. }) => return Ok(Judged::Unjudged),
            Err(rejected) => return Err(Declined::Token(rejected.rejection)),
        };
        self.own(&token)?;
        Ok(Judged::Good(token))
    }

    fn own(&self, token: &Token) -> Result<(), Declined> {
        if token.bound_to() != Some(self.config.identity.thumbprint()) {
            return Err(Declined::Foreign("binding (cnf)"));
        }
        match &self.config.subject {
            Some(subject) if token.subject() != Some(subject) => Err(Declined::Foreign("sub")),
            Some(_) | None => Ok(()),
        }
    }

    /// The rules for tokens, once the realm's keys have told the issuer.
    fn validator(&mut self) -> Option<&Validator<Checker>> {
        if self.validator.is_none() {
            let issuer = self.checker.issuer()?;
            let audiences = self.config.audiences.clone();
            let most = self.checker.leeway_max().unwrap_or(LEEWAY_SECS);
            let mut rules = ValidatorConfig::new(&*issuer, audiences, self.keys.clone())
                .with_leeway_secs(most.min(LEEWAY_SECS))
                .with_lifetime_max(self.config.lifetime_max);
            if let Some(token_type) = &self.config.token_type {
                rules = rules.with_type(token_type.as_str());
            }
            self.validator = Validator::new(rules, self.checker.clone(), Policy::routine())
                .inspect_err(|error| tracing::error!(%error, "no token can be taken in by these rules"))
                .ok();
        }
        self.validator.as_ref()
    }

    fn hold(&mut self, now: Now, text: Box<str>, token: Token) {
        let end = token.expires_at().millis();
        let start = token.issued_at().map_or(now.wall, UnixTime::millis).min(end);
        let (least, most) = RENEW_PERCENT;
        let life = end.since(start);
        let share = least * 10 + self.below((most - least) * 10);
        self.renew_at = start.plus(life.mul_f64(share as f64 / 1_000.0));
        self.held = Some(Arc::new(HeldToken { text, token, since: now.wall }));
        self.refused = None;
        self.unjudged = None;
        self.prepared = None;
        self.open.clear();
        self.wait = WAIT_MIN;
        self.wait_until = Duration::ZERO;
        self.revision += 1;
    }

    /// Draws conclusions from what has changed outside: the set, the keys of the issuer (counted), the time.
    pub(crate) fn settle(&mut self, now: Now, generation: u64) {
        let ready = self.generation != Some(generation) && self.validator().is_some();
        if ready && let Some(text) = self.unjudged.take() {
            self.generation = Some(generation);
            match self.restore(now, text) {
                Ok(()) => {}
                Err(declined) => tracing::warn!(device = %self.config.identity.device(), %declined, "not held"),
            }
        }
        self.tell(now);
    }

    /// A token that was kept, or waited for its key. One that is over or revoked is held all the same, so that it can
    /// be told and named.
    fn restore(&mut self, now: Now, text: Box<str>) -> Result<(), Declined> {
        let outcome = self.validator().map(|validator| validator.verify(now, Presented::held(&text)));
        match outcome {
            Some(Err(Rejected {
                rejection: Rejection::Expired { .. } | Rejection::Revoked { .. },
                token: Some(token),
                ..
            })) if self.held.is_none() => {
                self.own(&token)?;
                self.hold(now, text, *token);
                Ok(())
            }
            Some(_) | None => self.take_token(now, text),
        }
    }

    /// Tells how it stands, if that has changed.
    fn tell(&mut self, now: Now) {
        let state = self.standing(now);
        let revoked = matches!(state, TokenState::Revoked { .. });
        let shown = self.held.as_ref().map(|held| (&held.text, revoked));
        self.shown.send_if_modified(|told| {
            let same = told.as_ref().map(|told| (&told.text, told.revoked)) == shown;
            if !same {
                *told = shown.map(|(text, revoked)| ShownToken { text: text.clone(), revoked });
            }
            !same
        });
        let device = self.config.identity.device();
        self.state.send_if_modified(|told| {
            if *told == state {
                return false;
            }
            match &state {
                TokenState::Absent { refused } => {
                    tracing::info!(%device, refused = refused.map(NoRenewal::name), "no token");
                }
                TokenState::Held(held) => {
                    tracing::info!(%device, jti = held.token.jti(), exp = held.token.expires_at().secs(), "token held");
                }
                TokenState::Revoked { jti } => tracing::warn!(%device, %jti, "this device's own token was revoked"),
                TokenState::Expired { jti, .. } => tracing::warn!(%device, %jti, "this device's own token expired"),
            }
            *told = state;
            true
        });
    }

    fn standing(&self, now: Now) -> TokenState {
        let Some(held) = &self.held else { return TokenState::Absent { refused: self.refused } };
        let jti = || held.token.jti().into();
        let told = matches!(self.refused, Some(NoRenewal::Revoked | NoRenewal::CutOff));
        match against(&self.checker, now, &held.token) {
            Some(Against::Revoked) => TokenState::Revoked { jti: jti() },
            Some(Against::Expired) => TokenState::Expired { jti: jti(), exp: held.token.expires_at() },
            None if told => TokenState::Revoked { jti: jti() },
            None => TokenState::Held(Arc::clone(held)),
        }
    }

    /// The next thing to do. Requests leave only over a link that stands, to a server whose answers could be believed.
    pub(crate) fn poll(&mut self, now: Now, online: bool) -> Option<Chore> {
        if online && self.prepared.is_none() && self.ask_at(now) <= now.uptime {
            let counter = self.next_counter(now);
            self.revision += 1;
            self.prepared = Some(Prepared { counter, revision: self.revision });
        }
        if self.written < self.revision && self.writing.is_none() && self.write_at <= now.uptime {
            self.writing = Some(self.revision);
            return Some(Chore::Keep(self.encode()));
        }
        // The counter is safe: also after a crash in the next moment a larger one will follow.
        let ready = self.prepared.take_if(|prepared| online && prepared.revision <= self.written)?;
        self.request(now, ready.counter).map(Chore::Send)
    }

    fn request(&mut self, now: Now, counter: u64) -> Option<Vec<u8>> {
        self.wait_until = now.uptime + self.spread(self.wait);
        self.wait = (2 * self.wait).min(WAIT_MAX);
        let mut nonce = Nonce::default();
        if let Err(error) = getrandom::fill(&mut nonce) {
            tracing::warn!(%error, "no random bytes for a request");
            return None;
        }
        let identity = &self.config.identity;
        let renew = Renew { device: identity.device(), counter, nonce, at: now.wall };
        let body = wire::encode_renew(&renew)
            .inspect_err(|error| tracing::warn!(%error, "a request for a token cannot be written"))
            .ok()?;
        if self.open.len() == OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back(nonce);
        Some(seal(Kind::Renew, &identity.realm(), &body, &[identity.signing()]))
    }

    fn next_counter(&mut self, now: Now) -> u64 {
        let least = if self.counter_lost { self.checker.time(now).millis() } else { 0 };
        self.counter_lost = false;
        self.counter = self.counter.saturating_add(1).max(least);
        self.counter
    }

    /// When the next request is due, by uptime.
    fn ask_at(&self, now: Now) -> Duration {
        let due = match &*self.state.borrow() {
            TokenState::Held(_) => now.uptime + self.renew_at.since(self.checker.time(now)),
            TokenState::Absent { .. } | TokenState::Revoked { .. } | TokenState::Expired { .. } => now.uptime,
        };
        due.max(self.wait_until)
    }

    /// What was to be kept is safe, or could not be written.
    pub(crate) fn kept(&mut self, now: Now, safe: bool) {
        let Some(revision) = self.writing.take() else { return };
        if safe {
            self.written = revision;
        } else {
            // Nothing leaves with a counter that could be used twice.
            self.write_at = now.uptime + self.spread(self.wait);
        }
    }

    /// The uptime at which to look again, if nothing else happens.
    pub(crate) fn deadline(&self, now: Now, online: bool) -> Option<Duration> {
        let ask = (online && self.prepared.is_none()).then(|| self.ask_at(now));
        let write = (self.written < self.revision && self.writing.is_none()).then_some(self.write_at);
        let over = match &*self.state.borrow() {
            TokenState::Held(held) => Some(now.uptime + held.token.expires_at().millis().since(self.checker.time(now))),
            TokenState::Absent { .. } | TokenState::Revoked { .. } | TokenState::Expired { .. } => None,
        };
        ask.into_iter().chain(write).chain(over).min()
    }

    /// A span within a quarter of this one.
    fn spread(&mut self, span: Duration) -> Duration {
        span.mul_f64(0.75 + self.below(1_000) as f64 / 2_000.0)
    }

    /// A number below `most`, different on every device.
    fn below(&mut self, most: u64) -> u64 {
        // A linear congruential generator (Knuth); nothing secret depends on it.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.random) * u128::from(most)) >> 64) as u64
    }

    /// ```text
    /// offset  size  what is kept
    /// 0       4     magic "RVT1"
    /// 4       8     counter of the last request
    /// 12      8     issued-at of the last delivery that was believed, milliseconds
    /// 20      32    SHA-256 of realm id, 00, device id: whose it is
    /// 52            the token, compact JWS; nothing without one
    /// ```
    fn encode(&self) -> Vec<u8> {
        // What was kept and could not be judged yet is kept on.
        let held = self.held.as_ref().map(|held| &held.text);
        let text = held.or(self.unjudged.as_ref()).map_or("", |text| text);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + text.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.counter.to_le_bytes());
        bytes.extend_from_slice(&self.issued_at.millis().to_le_bytes());
        bytes.extend_from_slice(&self.owner.0);
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// Counter, issued-at and token, if `owner` kept them.
fn decode<'a>(bytes: &'a [u8], owner: &Digest) -> Option<(u64, UnixMillis, &'a str)> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (counter, rest) = rest.split_first_chunk::<8>()?;
    let (issued_at, rest) = rest.split_first_chunk::<8>()?;
    let (kept_by, text) = rest.split_first_chunk::<32>()?;
    if *magic != MAGIC || *kept_by != owner.0 || text.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let issued_at = UnixMillis::from_millis(u64::from_le_bytes(*issued_at));
    Some((u64::from_le_bytes(*counter), issued_at, std::str::from_utf8(text).ok()?))
}

fn owner(identity: &Identity) -> Digest {
    let (realm, device) = (identity.realm(), identity.device());
    Digest::of(&[realm.as_bytes(), &[0], device.as_bytes()].concat())
}

#[cfg(test)]
pub(crate) mod tests;
