//! The durable, ordered record of every realm, and the objects that were published from it.
//!
//! What a request does to a history is decided in one place for every backend (`rules`, `registry`, `lineage`); a
//! backend only keeps rows. Publishing is not done here: the publisher scans.

mod rules;

mod registry;
pub use registry::{Coverage, Issued, IssuedError, Registration, Visitor};

mod issuance;
pub use issuance::{
    AUDIENCES_MAX, DEVICES_MAX, Device, Dismissal, Enrollment, EnrollmentError, FAMILY_REFRESHES_MAX,
    FAMILY_TOKENS_MAX, Issuance, IssuedToken, NewDevice, NewRefresh, NewToken, NoToken, Order, OrderError,
    RefreshState, RefreshStep, RefreshToken, Renewal,
};

mod lineage;

mod columns;

mod lease;
pub use lease::{ADDRESS_BYTES_MAX, Bid, LEASE_MAX, LEASE_MIN, Leadership, SERVER_BYTES_MAX};

mod dump;
pub use dump::{Compaction, Enrolled, Inspection, Piece, RealmRecord, Sink, Source};

mod memory;
pub use memory::MemoryLedger;

mod sqlite;
pub use sqlite::{OpenError, SqliteLedger};

mod draft;

mod calls;

mod postgres;
pub use postgres::{PostgresConfig, PostgresError, PostgresLedger, PostgresUrlError};

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use revocast_core::limits::{
    ACTOR_BYTES_MAX, BASE_ENTRIES_MAX, BATCH_REQUESTS_MAX, CUTOFFS_MAX, ISSUED_BATCH_MAX, REASON_BYTES_MAX,
    REGISTRY_PARTS_MAX, SCOPE_BYTES_MAX,
};
use revocast_core::{DeviceId, Fingerprinter, IssuerError, JtiError, RealmId, Sequence, Term, UnixTime};
use thiserror::Error;
use tokio::sync::watch;

/// What a ledger's methods return: boxed, so that `Arc<dyn Ledger>` works.
pub type LedgerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

/// Leeway of a realm unless chosen: what validators commonly allow for clocks that differ.
pub const LEEWAY_DEFAULT: Duration = Duration::from_mins(1);

/// Longest token lifetime of a realm unless chosen: 30 days.
pub const MAX_TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_hours(30 * 24);

/// How far a ledger jumps when it goes on after a restore: wider than any history that could have
/// been published and lost (design rule 9).
pub const RESUME_GAP: u64 = 1_000_000;

/// Keeps the histories of many realms; what it acknowledged survives.
///
/// Every future resolves only when its effect is durable. Dropping a future neither cancels nor
/// undoes what it asked for.
pub trait Ledger: Send + Sync {
    /// Founds a realm, or finds it again if id and issuer are the same.
    ///
    /// `objects` are published from the first moment on: the `keys` of a realm are part of it. Of a
    /// realm that is found, parameters and objects are those it has.
    fn create_realm(&self, realm: Realm, objects: Vec<Object>) -> LedgerFuture<'_, Founding>;

    /// Every realm, ordered by id.
    fn realms(&self) -> LedgerFuture<'_, Vec<Realm>>;

    /// One realm.
    fn realm(&self, realm: RealmId) -> LedgerFuture<'_, Realm>;

    /// Records what is new in `requests`, all of them or none, and numbers it.
    ///
    /// A revoke takes with it what descends from its token (design rule 22): the receipt names the highest of those
    /// entries. A reinstate undoes the revoke of its own token alone.
    ///
    /// Repeating a request changes nothing; its receipt then says `recorded: false`.
    fn append(&self, realm: RealmId, now: UnixTime, requests: Vec<Request>) -> LedgerFuture<'_, Vec<Receipt>>;

    /// The entries after `after`, in order, at most `limit`. Fewer than `limit` means: that is all.
    fn scan(&self, realm: RealmId, after: Sequence, limit: usize) -> LedgerFuture<'_, Vec<Entry>>;

    /// The term, and the highest sequence ever assigned.
    fn head(&self, realm: RealmId) -> LedgerFuture<'_, (Term, Sequence)>;

    /// Registers issued tokens, all of them or none; repeating it changes nothing.
    ///
    /// Of two `exp`s for one token the later is kept. A revoke that would be forgotten before the token
    /// expires is recorded again with the later `exp`, in the same transaction.
    fn register(&self, realm: RealmId, now: UnixTime, issued: Vec<Issued>) -> LedgerFuture<'_, Registration>;

    /// Records the claim that every token with `iat` before `until` is registered. It never goes back.
    fn cover(&self, realm: RealmId, now: UnixTime, until: UnixTime) -> LedgerFuture<'_, Coverage>;

    /// How many tokens are registered, and up to when that is all of them. Cheap.
    fn coverage(&self, realm: RealmId) -> LedgerFuture<'_, Coverage>;

    /// Freezes the registry and shows it: every fingerprint to one visitor, and to each an equal part of the
    /// fingerprints, in order and at the same time. One visitor sees all.
    ///
    /// Returns the coverage as of the freeze, which no write was under way across: what was registered before it is
    /// shown, if it is not expired; what came later may be (design rule 18). Neither writes nor
    /// other reads wait. Dropping this future ends the visit.
    fn visit_registered(&self, realm: RealmId, visitors: Vec<Visitor>) -> LedgerFuture<'_, Coverage>;

    /// Forgets revokes and reinstates with `exp` at or below `horizon`; returns how many. What was kept of issued tokens
    /// and refresh tokens goes with them.
    ///
    /// Sequences are not reused, even when nothing is left. Registered tokens with such an `exp` go too, but only
    /// now and then: each time that the horizon has moved by an hour, and perhaps over several calls.
    fn expire(&self, realm: RealmId, horizon: UnixTime) -> LedgerFuture<'_, usize>;

    /// Begins a new term beyond `beyond`, the highest sequence known to have been published.
    fn resume(&self, realm: RealmId, now: UnixTime, beyond: Sequence) -> LedgerFuture<'_, (Term, Sequence)>;

    /// Everything that should stand on the broker for this realm, ordered by address.
    fn objects(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Object>>;

    /// One of them; `None` if nothing is stored there.
    fn object(&self, realm: RealmId, address: String) -> LedgerFuture<'_, Option<Object>> {
        let all = self.objects(realm);
        Box::pin(async move { Ok(all.await?.into_iter().find(|object| object.address == address)) })
    }

    /// Stores and removes published objects in one transaction, if the realm is still in `term`.
    fn store_objects(
        &self,
        realm: RealmId,
        term: Term,
        puts: Vec<Object>,
        deletes: Vec<String>,
    ) -> LedgerFuture<'_, ()>;

    /// What holds for one token, and what the registry knows of it.
    fn token(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, TokenRecord>;

    /// The live cutoffs, by sequence; at most [`CUTOFFS_MAX`].
    fn cutoffs(&self, realm: RealmId) -> LedgerFuture<'_, Vec<Entry>>;

    /// Takes, renews or hears of the leadership of all realms: one transaction, the ledger's own clock.
    ///
    /// A lease that was released is taken in the same term. To take one that ran out moves every realm to a new term in
    /// the same transaction, so that nothing of the former leader is stored any more.
    fn lead(&self, bid: Bid) -> LedgerFuture<'_, Leadership>;

    /// Gives the leadership up in order: all that was decided is stored and nothing is in flight, so whoever is next
    /// goes on in the same term. Without it nothing happens.
    fn step_down(&self, server: String) -> LedgerFuture<'_, ()>;

    /// Shows all that is kept as of one moment, piece by piece, to a sink that may end it. Neither writes nor reads
    /// wait.
    fn dump(&self, sink: Sink) -> LedgerFuture<'_, ()>;

    /// Keeps what a dump of another ledger showed: all of it or nothing, and only in a ledger that is empty.
    fn restore(&self, source: Source) -> LedgerFuture<'_, ()>;

    /// Gives back the room of what was forgotten. May take long, and writes wait.
    fn compact(&self) -> LedgerFuture<'_, Compaction>;

    /// Enrolls a device, or finds it again if all that is said of it is the same.
    ///
    /// Under a name that is taken another one is refused, unless it may replace that: then the tokens of that one are
    /// revoked in the same transaction.
    fn enroll(&self, realm: RealmId, now: UnixTime, device: NewDevice) -> LedgerFuture<'_, Enrollment>;

    /// One device; `None` if it is not enrolled.
    fn device(&self, realm: RealmId, id: DeviceId) -> LedgerFuture<'_, Option<Device>>;

    /// The devices whose names come after `after`, in order, at most `limit`. Fewer than `limit` means: that is all.
    fn devices(&self, realm: RealmId, after: Option<DeviceId>, limit: usize) -> LedgerFuture<'_, Vec<Device>>;

    /// Enrolls a device no longer, revokes its live tokens and ends its refresh tokens, all in one transaction.
    fn dismiss(
        &self,
        realm: RealmId,
        now: UnixTime,
        id: DeviceId,
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Dismissal>;

    /// Ends what a refresh token stands for: revokes the live tokens of its family and ends the refresh tokens of that,
    /// all in one transaction. One that was spent before, or has expired, does the same while it is remembered.
    ///
    /// Returns the highest entry about those tokens; `None` if none was live, or no such refresh token is known.
    fn withdraw(
        &self,
        realm: RealmId,
        now: UnixTime,
        refresh: [u8; 32],
        reason: Option<String>,
        actor: String,
    ) -> LedgerFuture<'_, Option<Sequence>>;

    /// Records a token that our issuer is about to hand out, with what it descends from, and registers it, all in one
    /// transaction with the revocations of the realm; or says why it may not be handed out.
    ///
    /// Only what is answered with [`Issuance::Issued`] may be signed: a revoke of what it continues, acknowledged
    /// before this was called, is seen; one that comes later revokes it as well. An answer that was lost is a token
    /// that nobody holds: ask for another one, under another `jti`.
    fn issue(&self, realm: RealmId, now: UnixTime, order: Order) -> LedgerFuture<'_, Issuance>;

    /// What is kept of a token that our issuer handed out: until it, and all that it descends from, is expired for
    /// everybody.
    fn find_issued(&self, realm: RealmId, jti: String) -> LedgerFuture<'_, Option<IssuedToken>>;

    /// The devices whose newest token ends in [`from`, `until`), with that token and its end, by end and name, at most
    /// `limit`. Those whose token was revoked are not among them.
    fn expiring(
        &self,
        realm: RealmId,
        from: UnixTime,
        until: UnixTime,
        limit: usize,
    ) -> LedgerFuture<'_, Vec<(DeviceId, String, UnixTime)>>;

    /// Tells whenever it becomes able or unable to record entries.
    fn health(&self) -> watch::Receiver<Health>;

    /// Whether entries can be recorded now.
    fn is_writable(&self) -> bool {
        matches!(*self.health().borrow(), Health::Good)
    }

    /// Wakes whenever a commit recorded something, of this server or another; now and then without need. The number
    /// only counts; read the ledger.
    fn subscribe(&self) -> watch::Receiver<u64>;
}

/// One issuer's realm and the parameters that live as long as it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// Its name.
    pub id: RealmId,
    /// The `iss` of its tokens; belongs to this realm only.
    pub issuer: String,
    /// Function, key and width of its fingerprints.
    pub fingerprinter: Fingerprinter,
    /// How much clocks may differ; whole seconds.
    pub leeway: Duration,
    /// No token of this issuer lives longer; whole seconds.
    pub max_token_lifetime: Duration,
    /// When it was founded.
    pub created: UnixTime,
}

impl Realm {
    /// A realm with the usual leeway and token lifetime.
    #[must_use]
    pub fn new(id: RealmId, issuer: impl Into<String>, fingerprinter: Fingerprinter, created: UnixTime) -> Self {
        Self {
            id,
            issuer: issuer.into(),
            fingerprinter,
            leeway: LEEWAY_DEFAULT,
            max_token_lifetime: MAX_TOKEN_LIFETIME_DEFAULT,
            created,
        }
    }

    /// The latest `exp` a token issued by now can have.
    #[must_use]
    pub fn latest_exp(&self, now: UnixTime) -> UnixTime {
        now.plus(self.max_token_lifetime.as_secs())
    }

    /// The latest `iat` that a token seen by now can have.
    #[must_use]
    pub fn latest_iat(&self, now: UnixTime) -> UnixTime {
        now.plus(self.leeway.as_secs())
    }

    /// The `gc_horizon` at `now`: a token with `exp` up to it is expired for everybody (design rule 13).
    #[must_use]
    pub fn horizon(&self, now: UnixTime) -> UnixTime {
        now.minus(self.leeway.as_secs())
    }
}

/// What became of a request for a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// The realm as it stands in the ledger.
    pub realm: Realm,
    /// Whether it is new.
    pub created: bool,
}

/// Something asked of a realm's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What shall be.
    pub action: Action,
    /// Why, in the words of whoever asks.
    pub reason: Option<String>,
    /// Who asks.
    pub actor: String,
}

/// What a [`Request`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// One token shall be honored no longer.
    Revoke {
        /// Which.
        jti: String,
        /// Until when it would have been.
        exp: Expiry,
    },
    /// A revoke was a mistake.
    Reinstate {
        /// Of which token.
        jti: String,
    },
    /// Every token in a scope issued before a time shall be honored no longer.
    Cutoff {
        /// Which tokens.
        scope: Scope,
        /// Those with an earlier `iat`, or none.
        not_before: UnixTime,
    },
    /// A cutoff shall end.
    Lift {
        /// Of which scope.
        scope: Scope,
    },
}

/// The `exp` of a token to be revoked, and how far it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Somebody said so. Raised to the latest `exp` that a token issued by now can have, since an
    /// early one would un-revoke.
    Claimed(UnixTime),
    /// The registry or the token's own signature says so.
    Vouched(UnixTime),
}

impl Expiry {
    /// The time itself.
    #[must_use]
    pub const fn time(self) -> UnixTime {
        match self {
            Self::Claimed(exp) | Self::Vouched(exp) => exp,
        }
    }
}

/// Which tokens a cutoff speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All of the realm.
    Realm,
    /// Those that speak of one `sub`.
    Sub(String),
    /// Those signed by one key.
    Kid(String),
    /// Those issued to one client.
    Client(String),
}

impl Scope {
    /// The number of its kind on the wire.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Realm => 0,
            Self::Sub(_) => 1,
            Self::Kid(_) => 2,
            Self::Client(_) => 3,
        }
    }

    /// Its text; empty for the whole realm.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Realm => "",
            Self::Sub(text) | Self::Kid(text) | Self::Client(text) => text,
        }
    }
}

/// What became of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The entry that holds what was asked. Where nothing was there to undo: the head, as of which
    /// that is so. A replica at or above it knows.
    pub sequence: Sequence,
    /// Whether that entry is new.
    pub recorded: bool,
    /// Until when the revoke, or what is left of it, is kept.
    pub exp: Option<UnixTime>,
}

/// One numbered line of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub sequence: Sequence,
    /// When it was recorded.
    pub at: UnixTime,
    /// What it says.
    pub statement: Statement,
    /// Why.
    pub reason: Option<String>,
    /// Who asked.
    pub actor: String,
}

/// What an [`Entry`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// This token is revoked until `exp` plus leeway.
    Revoke {
        /// Which.
        jti: String,
        /// Kept until then.
        exp: UnixTime,
    },
    /// This token is not revoked any more.
    Reinstate {
        /// Which.
        jti: String,
        /// The `exp` of the revoke it undoes: as long must it be remembered.
        exp: UnixTime,
    },
    /// Tokens in scope with an earlier `iat` are revoked.
    Cutoff {
        /// Which.
        scope: Scope,
        /// The time.
        not_before: UnixTime,
    },
    /// The cutoff of this scope is over.
    Lift {
        /// Which.
        scope: Scope,
    },
    /// The history goes on here, in a new term, after a restore that may have lost entries.
    Resume {
        /// The new term.
        term: Term,
    },
}

/// A published object: where it stands and its sealed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its address below the realm's topic prefix.
    pub address: String,
    /// The bytes as they travel.
    pub bytes: Vec<u8>,
}

/// What a ledger says of one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRecord {
    /// The entry that holds: a revoke or a reinstate. `None` if it was never revoked, or that is forgotten.
    pub entry: Option<Entry>,
    /// Its registration, if it is registered.
    pub issued: Option<Issued>,
}

/// Whether a ledger can record entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Good,
    /// Its database cannot be reached or does not take writes. It goes on by itself once that has changed.
    Away {
        /// How that showed.
        cause: String,
    },
    /// A write failed in a way after which memory and disk may differ. Nothing is written any more: the process must
    /// end, and what the disk says after a restart is the truth.
    Stopped {
        /// How it failed.
        cause: String,
    },
}

/// Why a ledger did not do what it was asked.
///
/// Cloneable, since one failed commit is the answer to many requests.
#[derive(Clone, Debug, Error)]
pub enum LedgerError {
    /// No such realm; the caller's mistake.
    #[error("realm {realm} does not exist")]
    RealmUnknown {
        /// What was asked for.
        realm: RealmId,
    },
    /// The name is in use for another issuer; choose another.
    #[error("realm {realm} exists already and belongs to issuer {issuer:?}")]
    RealmTaken {
        /// The name.
        realm: RealmId,
        /// Whose it is.
        issuer: String,
    },
    /// An issuer's tokens would have two histories.
    #[error("issuer {issuer:?} has a realm already: {realm}")]
    IssuerTaken {
        /// The issuer.
        issuer: String,
        /// Its realm.
        realm: RealmId,
    },
    /// The `iss` is empty or too long.
    #[error("the issuer of the realm cannot be used")]
    Issuer(#[source] IssuerError),
    /// The `jti` is empty or too long.
    #[error("request {index} names no token")]
    Jti {
        /// Which of the requests, counted from 0.
        index: usize,
        /// Why.
        #[source]
        source: JtiError,
    },
    /// The `sub`, `kid` or client of a cutoff is empty or too long.
    #[error("request {index} has a scope of {bytes} bytes; 1 to {SCOPE_BYTES_MAX} are possible")]
    ScopeLength {
        /// Which of the requests, counted from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// The reason is too long.
    #[error("request {index} has a reason of {bytes} bytes, more than {REASON_BYTES_MAX}")]
    ReasonTooLong {
        /// Which of the requests, counted from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// The name of the actor is too long.
    #[error("request {index} has an actor of {bytes} bytes, more than {ACTOR_BYTES_MAX}")]
    ActorTooLong {
        /// Which of the requests, counted from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// More requests than one transaction takes; split them.
    #[error("{requests} requests in one call, more than {BATCH_REQUESTS_MAX}")]
    BatchTooLarge {
        /// How many.
        requests: usize,
    },
    /// A token cannot be registered.
    #[error("token {index} cannot be registered")]
    Issued {
        /// Which of the tokens, counted from 0.
        index: usize,
        /// Why.
        #[source]
        source: IssuedError,
    },
    /// More issued tokens than one transaction takes; split them.
    #[error("{tokens} issued tokens in one call, more than {ISSUED_BATCH_MAX}")]
    IssuedTooMany {
        /// How many.
        tokens: usize,
    },
    /// Somebody said already that the registry is complete up to a later time, and exceptions rest on it.
    #[error("the registry of realm {realm} is complete up to {held}, which does not go back to {offered}")]
    CoverageBack {
        /// Which realm.
        realm: RealmId,
        /// Up to when it is.
        held: UnixTime,
        /// What was said now.
        offered: UnixTime,
    },
    /// Nobody knows which tokens will be issued. One of the two clocks is wrong.
    #[error("the registry of realm {realm} cannot be complete up to {offered}: it is {now}")]
    CoverageAhead {
        /// Which realm.
        realm: RealmId,
        /// What was said.
        offered: UnixTime,
        /// The server's time.
        now: UnixTime,
    },
    /// What was asked revokes more tokens that descend from those named than one transaction takes. Nothing was
    /// recorded; split the batch.
    #[error("at least {tokens} tokens descend from those that are named, more than one call can revoke")]
    TooManyDescendants {
        /// How many were counted before this was given up.
        tokens: usize,
    },
    /// A device cannot be enrolled as it is described.
    #[error("the device cannot be enrolled")]
    Enrollment(#[from] EnrollmentError),
    /// The name is in use for a device with other keys, another subject or another audience. Choose another name, or
    /// say that it shall be replaced.
    #[error("device {device} is enrolled already, with other keys, another subject or another audience")]
    DeviceTaken {
        /// The name.
        device: DeviceId,
    },
    /// The realm has as many devices as it can; dismiss some.
    #[error("realm {realm} has {DEVICES_MAX} devices, which is the limit")]
    DevicesFull {
        /// Which realm.
        realm: RealmId,
    },
    /// A token cannot be issued as it is described.
    #[error("the token cannot be issued")]
    Order(#[from] OrderError),
    /// More visitors than threads are worth; our own mistake.
    #[error("{visitors} visitors at a time, more than {REGISTRY_PARTS_MAX}")]
    TooManyVisitors {
        /// How many.
        visitors: usize,
    },
    /// The realm holds as many cutoffs as devices accept; lift some.
    #[error("realm {realm} has {CUTOFFS_MAX} live cutoffs, which is the limit")]
    CutoffsFull {
        /// Which realm.
        realm: RealmId,
    },
    /// The realm holds as many entries as a base can; split it, or wait until some expire.
    #[error("realm {realm} has {BASE_ENTRIES_MAX} entries, which is the limit")]
    RealmFull {
        /// Which realm.
        realm: RealmId,
    },
    /// No number is left; only reachable by resuming beyond a sequence that somebody made up.
    #[error("realm {realm} cannot go on after sequence {after}")]
    SequenceExhausted {
        /// Which realm.
        realm: RealmId,
        /// The last number.
        after: Sequence,
    },
    /// Another publisher has begun a new term; this one must stop.
    #[error("realm {realm} is in term {current}, not {claimed}")]
    TermChanged {
        /// Which realm.
        realm: RealmId,
        /// The ledger's.
        current: Term,
        /// The caller's.
        claimed: Term,
    },
    /// A server asks to lead under a name, an address or a lease that cannot be; our own mistake, or a configured
    /// address that is too long.
    #[error(
        "a name of {server} bytes, an address of {address} bytes and a lease of {lease:?} are asked for; \
         1 to {SERVER_BYTES_MAX}, 1 to {ADDRESS_BYTES_MAX}, {LEASE_MIN:?} to {LEASE_MAX:?} are possible"
    )]
    Bid {
        /// Length of the name.
        server: usize,
        /// Length of the address.
        address: usize,
        /// The lease.
        lease: Duration,
    },
    /// A dump is restored only where nothing can be lost: give an empty folder or database.
    #[error("the ledger is not empty: it has realm {realm}")]
    NotEmpty {
        /// A realm that is there.
        realm: RealmId,
    },
    /// What was to be restored cannot be read. Nothing was kept.
    #[error("what is restored cannot be read")]
    Unreadable(#[source] Cause),
    /// More requests wait than the queue holds; try again later.
    #[error("{waiting} requests wait for the ledger, which is the limit")]
    Overloaded {
        /// The queue's length.
        waiting: usize,
    },
    /// The disk, or a quota, is full. Nothing was recorded; works again once there is room.
    #[error("no room is left on the disk of the ledger")]
    StorageFull(#[source] Cause),
    /// A row cannot be what it claims to be: the file was damaged or edited. Stop the server, see what
    /// `revocast ledger verify` finds, and restore a backup or import an export.
    #[error("the ledger is damaged: {what}; `revocast ledger verify` tells all of it")]
    Damaged {
        /// Where.
        what: String,
    },
    /// The database failed. Whether this request was recorded is not known.
    #[error("the ledger's storage failed")]
    Storage(#[source] Cause),
    /// The database cannot be reached, or does not take writes. Nothing was recorded; works again by itself once it can.
    #[error("the ledger's database cannot be reached")]
    Away(#[source] Cause),
    /// A write failed earlier in a way after which memory and disk may differ. Restart: what the
    /// disk then says is the truth.
    #[error("the ledger stopped writing after a failure; restart the server")]
    Poisoned,
    /// The ledger is being closed.
    #[error("the ledger is closed")]
    Closed,
}

/// The cause of a failure in a backend, whose types stay there.
pub type Cause = Arc<dyn Error + Send + Sync>;

#[cfg(test)]
mod tests;
