//! Devices, and the tokens that our own issuer hands out: what a ledger is asked, and what it answers.
//!
//! What the answers are decided by is `lineage`. Refresh tokens are never seen here: only what SHA-256 makes of them.

use revocast_core::limits::SCOPE_BYTES_MAX;
use revocast_core::{DeviceId, EnvelopePublicKey, PublicKey, Sequence, UnixTime};
use thiserror::Error;

use super::registry::{Issued, IssuedError};
use super::{LedgerError, Realm, rules};

/// Devices that a realm can enroll.
pub const DEVICES_MAX: u64 = 10_000_000;

/// Audiences of one device: it speaks to a few services, and each name stands in every token.
pub const AUDIENCES_MAX: usize = 16;

/// Tokens of one family that are kept: a revoke of its root must fit into one transaction. At one every five minutes
/// these are those of a month.
pub const FAMILY_TOKENS_MAX: usize = 10_000;

/// Refresh tokens of one family that can be spent at a time: a client holds one.
pub const FAMILY_REFRESHES_MAX: usize = 100;

/// A device that our issuer gives tokens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub id: DeviceId,
    /// What it signs its requests with.
    pub signing: PublicKey,
    /// What its tokens are enclosed to.
    pub sealing: EnvelopePublicKey,
    /// The `sub` of its tokens.
    pub subject: String,
    /// The `aud` of its tokens.
    pub audience: Vec<String>,
    /// When it was enrolled with these keys.
    pub enrolled_at: UnixTime,
    /// The highest counter of a request that was granted; 0 before the first.
    pub counter: u64,
    /// The `jti` of its newest token.
    pub holds: Option<String>,
    /// The `exp` of that token.
    pub held_until: Option<UnixTime>,
    /// Its newest token was revoked: it is not given another one at its own request, also once that has expired and
    /// the revoke is forgotten. A reinstate of that token, a token that is issued to it without a request, or a new
    /// enrollment ends this.
    pub barred: bool,
}

/// A device to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Its name.
    pub id: DeviceId,
    /// What it signs its requests with.
    pub signing: PublicKey,
    /// What its tokens are enclosed to.
    pub sealing: EnvelopePublicKey,
    /// The `sub` of its tokens.
    pub subject: String,
    /// The `aud` of its tokens.
    pub audience: Vec<String>,
    /// Whether it may take the place of one with the same name and other keys, subject or audience. The live tokens of
    /// that one are revoked in the same transaction, and the counter begins anew.
    pub replace: bool,
    /// Who asks.
    pub actor: String,
}

impl NewDevice {
    /// Refuses what no device can be.
    pub fn check(&self) -> Result<(), LedgerError> {
        rules::check_words(0, None, &self.actor)?;
        let named = |bytes: usize| (1..=SCOPE_BYTES_MAX).contains(&bytes);
        if !named(self.subject.len()) {
            return Err(EnrollmentError::Subject { bytes: self.subject.len() }.into());
        }
        if self.audience.len() > AUDIENCES_MAX {
            return Err(EnrollmentError::Audiences { count: self.audience.len() }.into());
        }
        match self.audience.iter().map(String::len).find(|&bytes| !named(bytes)) {
            Some(bytes) => Err(EnrollmentError::Audience { bytes }.into()),
            None => Ok(()),
        }
    }

    pub(super) fn is(&self, device: &Device) -> bool {
        (self.signing, self.sealing) == (device.signing, device.sealing)
            && self.subject == device.subject
            && self.audience == device.audience
    }

    pub(super) fn enrolled(self, now: UnixTime) -> Device {
        let Self { id, signing, sealing, subject, audience, .. } = self;
        Device {
            id,
            signing,
            sealing,
            subject,
            audience,
            enrolled_at: now,
            counter: 0,
            holds: None,
            held_until: None,
            barred: false,
        }
    }
}

/// Why a device cannot be enrolled; the mistake of whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnrollmentError {
    /// The `sub` of its tokens would be empty or too long.
    #[error("its subject has {bytes} bytes; 1 to {SCOPE_BYTES_MAX} are possible")]
    Subject {
        /// Its length.
        bytes: usize,
    },
    /// Its tokens would speak to too many.
    #[error("it has {count} audiences; {AUDIENCES_MAX} are possible")]
    Audiences {
        /// How many.
        count: usize,
    },
    /// An `aud` of its tokens would be empty or too long.
    #[error("one of its audiences has {bytes} bytes; 1 to {SCOPE_BYTES_MAX} are possible")]
    Audience {
        /// Its length.
        bytes: usize,
    },
}

/// What became of a [`NewDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// The device as it stands in the ledger.
    pub device: Device,
    /// Whether it is new, or took the place of another.
    pub created: bool,
    /// The highest entry that was recorded, if tokens of the one before were revoked.
    pub sequence: Option<Sequence>,
}

/// What became of a device that shall be enrolled no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dismissal {
    /// It is gone.
    Dismissed {
        /// Tokens of it that were revoked by this.
        revoked: usize,
        /// The highest entry about them; the head, if there was none to revoke.
        sequence: Sequence,
    },
    /// No such device was enrolled. After an answer that was lost: it is gone.
    Unknown,
}

/// A token that our issuer is about to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Which; drawn at random, and never given out before.
    pub jti: String,
    /// When it is issued.
    pub iat: UnixTime,
    /// When it expires.
    pub exp: UnixTime,
    /// Whom it speaks of.
    pub sub: Option<String>,
    /// The key that signs it.
    pub kid: Option<String>,
    /// The client it is issued to.
    pub client: Option<String>,
}

/// What it takes to hand out one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The token.
    pub token: NewToken,
    /// The device it is for.
    pub device: Option<DeviceId>,
    /// What it continues. `None`: nobody asks for a continuation, so somebody who may decides it afresh.
    pub renewal: Option<Renewal>,
    /// The refresh tokens around it.
    pub refresh: Option<RefreshStep>,
    /// Whether the token that it continues is revoked in the same transaction: that one alone, not what descends from
    /// it.
    pub revoke_parent: bool,
    /// Who asks.
    pub actor: String,
}

/// What a token continues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// The counter of the device's request; `None` where the server renews unasked.
    pub counter: Option<u64>,
    /// The `jti` of the token that it continues. `None`: the device says that it holds none. Then what the ledger knows
    /// it to hold decides.
    pub parent: Option<String>,
}

/// Refresh tokens that change hands with a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefreshStep {
    /// SHA-256 of the one that is spent.
    pub spends: Option<[u8; 32]>,
    /// The one that is handed out.
    pub next: Option<NewRefresh>,
}

/// A refresh token to be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRefresh {
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// When it expires; by the server's clock alone.
    pub exp: UnixTime,
}

impl Order {
    /// Refuses what no token of `realm` can be at `now`.
    pub(super) fn check(&self, realm: &Realm, now: UnixTime) -> Result<(), LedgerError> {
        let NewToken { jti, iat, exp, sub, kid, client } = &self.token;
        let issued = Issued { jti: jti.clone(), iat: *iat, exp: *exp, sub: sub.clone() };
        issued.check(realm, now).map_err(OrderError::Token)?;
        for (what, text) in [("kid", kid), ("client", client)] {
            match text.as_ref().map(String::len) {
                Some(bytes) if bytes == 0 || bytes > SCOPE_BYTES_MAX => {
                    return Err(OrderError::Name { what, bytes }.into());
                }
                Some(_) | None => {}
            }
        }
        let ends = [Some(*exp), self.refresh.and_then(|step| step.next).map(|next| next.exp)];
        if let Some(exp) = ends.into_iter().flatten().find(|&exp| exp <= now) {
            return Err(OrderError::Expired { exp, now }.into());
        }
        let counted = self.renewal.as_ref().is_some_and(|renewal| renewal.counter.is_some());
        if counted && self.device.is_none() {
            return Err(OrderError::Counter.into());
        }
        rules::check_words(0, None, &self.actor)
    }
}

/// Why an order cannot be; a mistake of ours, or of whoever says what tokens look like.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OrderError {
    /// No token can be like this.
    #[error("{0}")]
    Token(#[source] IssuedError),
    /// A name is empty or too long.
    #[error("its {what} has {bytes} bytes; 1 to {SCOPE_BYTES_MAX} are possible")]
    Name {
        /// Which.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// It would be expired when it is handed out.
    #[error("it would expire at {exp}, and it is {now}")]
    Expired {
        /// Its `exp`, or that of its refresh token.
        exp: UnixTime,
        /// The server's time.
        now: UnixTime,
    },
    /// A counter is one of a device.
    #[error("its request has a counter and no device")]
    Counter,
    /// Something was said of this token, or of this refresh token, before. Draw another one.
    #[error("it was given out before")]
    Taken,
}

/// What became of an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuance {
    /// The token may be signed and handed out.
    Issued {
        /// The highest entry that was recorded with it: the revoke of its parent.
        sequence: Option<Sequence>,
    },
    /// It may not be.
    Refused(NoToken),
}

/// Why a token is not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoToken {
    /// The token that it continues, or the one that its refresh token came with, was revoked; or the device's newest
    /// one was.
    #[error("the token that it continues was revoked")]
    ParentRevoked,
    /// The token that it continues, or the new one, falls under a cutoff. If only the new one does, it can be issued
    /// once its `iat` has reached `not_before`.
    #[error("a cutoff revokes tokens from before {not_before}")]
    CutOff {
        /// Of the cutoff.
        not_before: UnixTime,
    },
    /// The request was granted before, or an older one is repeated.
    #[error("the request has a counter that is not above {counter}, which was granted already")]
    Replayed {
        /// The highest that was granted.
        counter: u64,
    },
    /// The token named is none of this device's, or is known no more.
    #[error("the token that it continues is none of the device's")]
    NotHeld,
    /// The token that it continues is expired beyond the leeway.
    #[error("the token that it continues has expired")]
    ParentExpired,
    /// No such device is enrolled.
    #[error("no such device is enrolled")]
    DeviceUnknown,
    /// No such refresh token was handed out, or it is expired for so long that it is forgotten.
    #[error("no such refresh token is known")]
    RefreshUnknown,
    /// The refresh token has expired.
    #[error("the refresh token has expired")]
    RefreshExpired,
    /// The refresh token was spent before. All that came of it was revoked in this transaction.
    #[error("the refresh token was spent before; all that came of it is revoked")]
    RefreshReused,
    /// So many tokens of one family are kept that a revoke would not fit into one transaction, or so many of its
    /// refresh tokens are live that nobody can be holding them. It passes as they expire.
    #[error("its family is as large as it can be ({tokens} tokens)")]
    FamilyFull {
        /// Tokens kept, as far as they were counted.
        tokens: usize,
    },
}

/// What a ledger keeps of a token that our issuer handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// Which.
    pub jti: String,
    /// When it was issued.
    pub iat: UnixTime,
    /// When it expires.
    pub exp: UnixTime,
    /// Whom it speaks of.
    pub sub: Option<String>,
    /// The key that signed it.
    pub kid: Option<String>,
    /// The client it was issued to.
    pub client: Option<String>,
    /// The device it was issued to.
    pub device: Option<DeviceId>,
    /// The token that it continues.
    pub parent: Option<String>,
    /// What holds all tokens that can descend from one another: the device, or the `jti` of the first of them.
    pub family: String,
    /// The latest `exp` of it and all it descends from: until then one of those may be revoked, and this with it.
    pub kept_until: UnixTime,
}

/// What a ledger keeps of a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// When it expires.
    pub exp: UnixTime,
    /// Whether it can be spent.
    pub state: RefreshState,
    /// The token that it was handed out with.
    pub jti: String,
    /// When that was issued.
    pub iat: UnixTime,
    /// Whom that speaks of.
    pub sub: Option<String>,
    /// The key that signed that.
    pub kid: Option<String>,
    /// The client that was issued to.
    pub client: Option<String>,
    /// The device that was issued to.
    pub device: Option<DeviceId>,
    /// The family of that.
    pub family: String,
}

/// Whether a refresh token can be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshState {
    /// It can.
    Live = 0,
    /// It was: whoever shows it again is a thief, or was robbed. A client that lost the answer and tries again cannot be
    /// told from them (RFC 9700 section 4.14).
    Spent = 1,
    /// It came with a token that was revoked, or its family was.
    Ended = 2,
}

impl RefreshState {
    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Live),
            1 => Some(Self::Spent),
            2 => Some(Self::Ended),
            _ => None,
        }
    }
}
