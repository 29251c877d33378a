//! The state machine that follows a realm: told what happens, it says what to do.
//!
//! `handle(now, event)` takes in, `poll_action()` gives out, `deadline()` says when to wake it; any
//! order of calls is safe. What is wanted is never stored: it is derived, after every event, from
//! what is held and what the manifest names (`wanted`), and compared with what has been
//! asked for. So a lost answer, a lost connection or a restart needs no case of its own.
//!
//! The rules in the comments are those of `docs/architecture.md`, section "Rules".

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::base::{Base, Profile};
use crate::clock::{Now, UnixMillis, UnixTime};
use crate::cutoff::{Cutoffs, StampedCutoff};
use crate::hold::{BudgetTooSmall, Crowded, Hold, smallest_budget};
use crate::limits::{CUTOFFS_MAX, EARLY_RANGES_MAX, FETCH_WINDOW, MEMORY_BUDGET_MIN, SEALED_BYTES_MAX};
use crate::position::{Epoch, Position, Sequence, Term};
use crate::recent::{Recent, Stamped, State};
use crate::refusal::{Rank, Refusal};
use crate::seal::{Digest, Kind, Sealed, SigningKey, Verified};
use crate::set::{Freshness, RevocationSet};
use crate::state::{BaseImage, EarlyRange, Head, Image, StoredImage};
use crate::token::{Fingerprint, FingerprintFunction, RealmId, Width};
use crate::update::{
    Address, Artifact, ArtifactSummary, Delta, Finding, Index, Keys, Layer, Manifest, Nonce, Report, Role, Trust,
};
use crate::wire;

mod asking;
use asking::Asking;
pub use asking::Unasked;

mod download;
use download::{Download, Finished};

mod roots;
use roots::Climb;

/// How a device wants to follow a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to hold of a base.
    pub hold: Hold,
    /// The largest artifact to fetch, in bytes; a base beyond it is refused and the old one stays.
    pub artifact_bytes_max: u64,
    /// Proofs of currency older than this leave the set in doubt.
    pub staleness_max: Duration,
    /// How far this device's clock may lag behind the server's and still count as right.
    pub clock_skew: Duration,
    /// A move to a new epoch happens within this time of hearing of it, so that a fleet spreads out.
    pub epoch_jitter: Duration,
    /// Whatever was asked for and has not come after this is asked for again.
    pub retry_after: Duration,
    /// Changes are written down at most this often.
    pub persist_every: Duration,
    /// A manifest that proves currency and changes nothing is written down at most this often.
    pub persist_proof_every: Duration,
    /// A report is made at least this often while the link stands; devices spread out over the last quarter of it.
    pub report_every: Duration,
    /// News (another position is written down) is reported within this time, at a moment of its own on every device,
    /// and not again before twice this time has passed.
    pub report_spread: Duration,
    /// Seeds the jitter; take it from the operating system.
    pub seed: u64,
}

impl Config {
    /// The exact profile with the numbers that suit most devices.
    ///
    /// Artifacts up to 64 MiB, a day of staleness, a minute of clock skew, epoch changes spread over
    /// ten minutes, retries after 8 s, writes at most once a second (an hour for proofs alone),
    /// a report a minute, and of news within a second.
    #[must_use]
    pub const fn exact(seed: u64) -> Self {
        Self {
            hold: Hold::Profile(Profile::Exact),
            artifact_bytes_max: 64 * 1024 * 1024,
            staleness_max: Duration::from_hours(24),
            clock_skew: Duration::from_mins(1),
            epoch_jitter: Duration::from_mins(10),
            retry_after: Duration::from_secs(8),
            persist_every: Duration::from_secs(1),
            persist_proof_every: Duration::from_hours(1),
            report_every: Duration::from_mins(1),
            report_spread: Duration::from_secs(1),
            seed,
        }
    }

    /// The best profile that fits into `memory_budget` bytes, with the numbers of [`Config::exact`].
    pub const fn within(memory_budget: u64, seed: u64) -> Result<Self, BudgetTooSmall> {
        if memory_budget < MEMORY_BUDGET_MIN {
            return Err(BudgetTooSmall { budget: memory_budget, needed: MEMORY_BUDGET_MIN });
        }
        Ok(Self { hold: Hold::Budget(memory_budget), ..Self::exact(seed) })
    }

    /// What to hold of this index, if all that must be fetched for it may be; less than `crowded`, if that is given.
    fn choose(&self, index: &Index, width: Width, crowded: Option<Crowded>) -> Result<Profile, Refusal> {
        let profile = match crowded.and_then(|crowded| self.hold.next_roomier(crowded, index, width)) {
            Some(profile) => profile,
            None => self.hold.choose(index, width)?,
        };
        let fetched = |summary: &&ArtifactSummary| {
            summary.artifact == Artifact::Cutoffs || profile.artifacts().contains(&summary.artifact)
        };
        let largest = index.artifacts.iter().filter(fetched).map(|summary| summary.bytes).max().unwrap_or(0);
        if largest > self.artifact_bytes_max {
            return Err(Refusal::TooLarge { bytes: largest, max: self.artifact_bytes_max });
        }
        Ok(profile)
    }
}

/// What a replica holds, what it may, and what else it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The profile of the base; `None` before the first.
    pub profile: Option<Profile>,
    /// Bytes of base, recent and cutoffs.
    pub bytes: u64,
    /// The budget, if there is one.
    pub budget: Option<u64>,
    /// Bytes of it that a base may take.
    pub base_bytes_max: u64,
    /// What each profile of this base would take, the one that answers best first: the first that fits is held.
    pub offers: Vec<(Profile, u64)>,
    /// The budget that would do, if this one holds nothing of the newest base that was offered. What was held before
    /// stays.
    pub needed: Option<u64>,
}

/// What the driver tells a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The link stands; nothing is subscribed yet, whatever was before.
    Connected,
    /// The link is gone, and all subscriptions with it.
    Disconnected,
    /// Something arrived. Nothing about it is believed.
    Packet {
        /// The topic it arrived on.
        address: Address,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// Something larger than the link accepts lies at this address; it was not read.
    Oversize {
        /// The topic.
        address: Address,
        /// Its size.
        bytes: u64,
    },
    /// The image with this revision is safe on disk.
    Persisted {
        /// Its revision.
        revision: u64,
    },
    /// The image could not be written. What is known stays in force.
    PersistFailed,
    /// The embedder knows the time for sure (a signed answer to its own nonce, a radio clock, NTS).
    TimeProven {
        /// The time at this event.
        wall: UnixMillis,
    },
    /// Nothing happened, but the deadline passed.
    Elapsed,
}

/// What a replica asks of its driver, to be done in order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Let checkers see this set from now on.
    Expose(Arc<RevocationSet>),
    /// Subscribe to an address; what is retained there is delivered (again).
    Subscribe(Address),
    /// Unsubscribe from it.
    Unsubscribe(Address),
    /// Keep this image, then tell [`Event::Persisted`] or [`Event::PersistFailed`].
    Persist(Image),
    /// Tell the server.
    Report(Report),
    /// Send this sealed question to the server.
    Ask(Vec<u8>),
    /// A question is at its end. The set that knows the answer was exposed before.
    Answered {
        /// Which question.
        nonce: Nonce,
        /// What was found, by the server or here; `None` if no answer came in time.
        finding: Option<Finding>,
    },
    /// Log and count: this was not applied, or not wholly.
    Refused(Refusal),
}

/// Something asked for and not yet there.
#[derive(Clone, Copy, Debug)]
struct Ask {
    /// When, by uptime.
    since: Duration,
    /// How often it had to be asked for again.
    tries: u32,
    /// Whether the subscription stands. An answer that was refused ends it until the next try.
    subscribed: bool,
}

/// The keys in force, and how they arrived.
#[derive(Debug)]
struct HeldKeys {
    keys: Keys,
    digest: Digest,
    sealed: Vec<u8>,
}

/// The highest manifest seen.
#[derive(Debug)]
struct HeldManifest {
    manifest: Manifest,
    /// Digest of the body: sealing it again with another key changes nothing.
    digest: Digest,
    sealed: Vec<u8>,
    /// Uptime at which it first arrived.
    arrived: Duration,
    /// Uptime at which its successor is overdue; `None` once that was said.
    freeze_at: Option<Duration>,
}

/// What has changed and has not been told yet.
#[derive(Debug, Default)]
struct Dirty {
    /// Checkers should see another set.
    set: bool,
    /// Something is known that is not written down.
    content: bool,
    /// A proof of currency, or a horizon, is not written down; that can wait longer.
    proof: bool,
}

/// Something that did not fit.
#[derive(Clone, Copy, Debug)]
struct Overflow {
    /// Nothing above this.
    through: Sequence,
    /// Some of it was said by the second of two bodies for one range. It will not come again, so only a base ends
    /// this.
    lost: bool,
}

/// Deltas whose digests are remembered, to notice two that claim one range.
const SEEN_DELTAS: usize = 64;

/// Half a digest: two bodies that share it cannot be found either, and a small device has room for twice as many.
type Mark = [u8; 16];

fn mark(digest: &Digest) -> Mark {
    // A digest has 32 bytes, so the default is never taken.
    digest.0.first_chunk().copied().unwrap_or_default()
}

/// After this many unanswered tries the manifest is read again: it may name something else by now.
const TRIES_BEFORE_REREAD: u32 = 2;

/// A download whose parts do not come after this many tries gives way to a newer epoch.
const TRIES_BEFORE_NEWER: u32 = 3;

/// A device's copy of a realm.
#[derive(Debug)]
pub struct Replica {
    config: Config,
    realm: RealmId,
    trust: Trust,
    random: u64,

    keys: Option<HeldKeys>,
    manifest: Option<HeldManifest>,
    position: Option<(Term, Sequence)>,
    early: Vec<EarlyRange>,
    overflow: Option<Overflow>,
    /// Something did not fit beside the base that is held now.
    crowding: bool,
    set: RevocationSet,
    /// The base as it is written down.
    base_image: Option<BaseImage>,
    held_index: Arc<[u8]>,
    held_cutoffs: Arc<[u8]>,
    seen: VecDeque<(EarlyRange, Mark)>,

    asking: Asking,
    signer: Option<SigningKey>,
    climb: Climb,

    connected: bool,
    asks: BTreeMap<Address, Ask>,
    /// The manifest is wanted (again).
    reread: bool,
    /// Since when there has been a gap that nothing held can close.
    gap_since: Option<Duration>,
    download: Option<Download>,
    /// When to move to the manifest's epoch.
    move_at: Option<Duration>,
    /// An epoch whose base cannot be had, so that it is not fetched again and again.
    given_up: Option<(Term, Epoch)>,
    /// The budget that would do, if nothing of the last index fits into the one that is given.
    needed: Option<u64>,

    revision: u64,
    dirty: Dirty,
    persist_in_flight: Option<u64>,
    last_persist: Option<Duration>,
    persisted: Option<(Term, Position)>,
    in_flight_position: (Term, Position),
    /// The revision from which on the base is unwritten.
    base_unwritten: Option<u64>,

    /// When the next report is due.
    report_at: Option<Duration>,
    /// When the last one was made, and what it said.
    reported: Option<(Duration, (Term, Position))>,
    refusals: [u64; Refusal::COUNT],
    last_refusal: Option<u8>,
    actions: VecDeque<Action>,
}

impl Replica {
    /// A replica that knows nothing but whom to trust. It answers `Unknown` to everything.
    #[must_use]
    pub fn new(config: Config, realm: RealmId, trust: Trust) -> Self {
        let freshness = Freshness {
            proof: None,
            floor: trust.not_before.millis(),
            proven: None,
            staleness_max: config.staleness_max,
            clock_skew: config.clock_skew,
        };
        Self {
            realm,
            trust,
            random: config.seed,
            keys: None,
            manifest: None,
            position: None,
            early: Vec::new(),
            overflow: None,
            crowding: false,
            set: RevocationSet {
                fingerprinter: None,
                base: None,
                recent: Recent::new(Width::W64, config.hold.recent_entries_max(0)),
                cutoffs: Cutoffs::default(),
                horizon: UnixTime::default(),
                sequence: Sequence::default(),
                freshness,
                short: None,
                overflow: false,
                issuer: None,
                leeway: 0,
            },
            base_image: None,
            held_index: Arc::default(),
            held_cutoffs: Arc::default(),
            seen: VecDeque::new(),
            asking: Asking::default(),
            signer: None,
            climb: Climb::default(),
            connected: false,
            asks: BTreeMap::new(),
            reread: true,
            gap_since: None,
            download: None,
            move_at: None,
            given_up: None,
            needed: None,
            revision: 0,
            dirty: Dirty::default(),
            persist_in_flight: None,
            last_persist: None,
            persisted: None,
            in_flight_position: Default::default(),
            base_unwritten: None,
            report_at: None,
            reported: None,
            refusals: [0; Refusal::COUNT],
            last_refusal: None,
            actions: VecDeque::new(),
            config,
        }
    }

    /// A replica that goes on from what it wrote down.
    ///
    /// The digests of both images and the signatures of the keys are checked again. Manifest, index and base were
    /// verified when they arrived; since then their publisher's key may have rotated out, and the base may have
    /// been cut or folded, so the digests vouch for them. So they do for the chain of keys from those pinned to
    /// those held, unless others were pinned since. Damage is refused; the caller tries its other slot, then starts
    /// anew.
    ///
    /// A base that no longer fits the budget is dropped, and what came since stays in force; a budget into which
    /// nothing of it fits is refused ([`Refusal::TooLarge`], with the budget that would do).
    ///
    /// # Complexity
    ///
    /// Linear in the base: one SHA-256 and one decoding of it.
    pub fn restore(
        config: Config,
        realm: RealmId,
        trust: Trust,
        now: Now,
        head: &[u8],
        base: Option<&[u8]>,
    ) -> Result<Self, Refusal> {
        let head = Head::decode(head)?;
        belongs(&head, &realm, &trust)?;
        Self::rebuild(config, realm, trust, now, head, base)
    }

    /// A replica for questions only, out of the state of one that follows: for tools beside an agent.
    ///
    /// Trusts whoever can write that state; realm, profile and roots are taken from it.
    pub fn read(mut config: Config, now: Now, head: &[u8], base: Option<&[u8]>) -> Result<Self, Refusal> {
        let head = Head::decode(head)?;
        let keys = stored(&head.keys, &head.realm, Kind::Keys)?.try_map(wire::decode_keys)?.into_inner();
        let trust = Trust { roots: keys.roots, threshold: keys.threshold, not_before: UnixTime::default() };
        config.hold = Hold::Profile(head.profile);
        Self::rebuild(config, head.realm, trust, now, head, base)
    }

    fn rebuild(
        config: Config,
        realm: RealmId,
        trust: Trust,
        now: Now,
        head: Head,
        base: Option<&[u8]>,
    ) -> Result<Self, Refusal> {
        let serves = config.hold.accepts(head.profile);
        match (head.base, base) {
            // A base for another profile is of no use; what else is known stays in force.
            (Some(_), _) if !serves => Self::go_on(config, realm, trust, now, head, None),
            (Some(digest), Some(bytes)) if Digest::of(bytes) == digest => {
                let fits = fits(&config, &realm, &head, bytes)?;
                Self::go_on(config, realm, trust, now, head, fits.then_some(bytes))
            }
            (Some(_), _) => Err(Refusal::DamagedState { what: "the base image is missing or damaged" }),
            (None, _) => Self::go_on(config, realm, trust, now, head, None),
        }
    }

    /// A replica that goes on from a head whose base is lost.
    ///
    /// Floors, horizon, keys, the highest manifest and every revocation since the base stay in force;
    /// everything else is `Unknown` until a base has been fetched.
    pub fn salvage(config: Config, realm: RealmId, trust: Trust, now: Now, head: &[u8]) -> Result<Self, Refusal> {
        let head = Head::decode(head)?;
        belongs(&head, &realm, &trust)?;
        Self::go_on(config, realm, trust, now, head, None)
    }

    fn go_on(
        config: Config,
        realm: RealmId,
        trust: Trust,
        now: Now,
        head: Head,
        base: Option<&[u8]>,
    ) -> Result<Self, Refusal> {
        let mut replica = Self::new(config, realm, trust);
        replica.restore_keys(&head.keys)?;
        let width = replica.width();
        if !head.manifest.is_empty() {
            let body = stored(&head.manifest, &realm, Kind::Manifest)?;
            let digest = Digest::of(body.get());
            let manifest = body.try_map(wire::decode_manifest)?.into_inner();
            replica.set.horizon = manifest.horizon;
            replica.manifest =
                Some(HeldManifest { manifest, digest, sealed: head.manifest, arrived: now.uptime, freeze_at: None });
        }
        replica.revision = head.revision;
        replica.position = head.position;
        replica.set.sequence = head.position.map(|(_, sequence)| sequence).unwrap_or_default();
        replica.set.horizon = replica.set.horizon.max(head.horizon);
        replica.set.freshness.floor = replica.set.freshness.floor.max(head.floor);
        replica.set.freshness.proof = head.proof.map(|issued_at| (issued_at, now.uptime));
        replica.overflow = head.overflow.map(|through| Overflow { through, lost: head.lost });
        replica.set.overflow = head.overflow.is_some();
        replica.early = head.early;
        for entry in head.recent {
            if Fingerprint::from_bits(entry.fingerprint.bits(), width).is_none() {
                return Err(Refusal::DamagedState { what: "a fingerprint wider than the realm's" });
            }
            replica.set.recent.record(entry);
        }
        match base {
            Some(bytes) => replica.restore_base(bytes)?,
            None if head.base.is_some() => {
                // A position says that everything up to it is known, and a proof that it is current:
                // neither is true without the base.
                replica.position = None;
                replica.set.sequence = Sequence::default();
                replica.set.freshness.proof = None;
                replica.early.clear();
            }
            None => {}
        }
        for cutoff in head.cutoffs {
            replica.set.cutoffs.record(cutoff);
        }
        replica.persisted = replica.position.map(|(term, _)| (term, replica.set.position()));
        replica.dirty.set = true;
        replica.settle(now);
        Ok(replica)
    }

    fn restore_keys(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let pinned = (core::mem::take(&mut self.trust.roots), self.trust.threshold);
        // Rule 20: each version is signed by its own roots as well, so the last of a chain that was
        // verified link by link can be checked alone.
        let keys = stored(bytes, &self.realm, Kind::Keys)?.try_map(wire::decode_keys)?.into_inner();
        (self.trust.roots, self.trust.threshold) = (keys.roots, keys.threshold);
        // What was good when it was written stays good: expiry is for what arrives.
        let accepted = self.accept_keys(UnixMillis::default(), bytes, None);
        (self.trust.roots, self.trust.threshold) = pinned;
        accepted.map(|_| ())
    }

    fn restore_base(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let image = StoredImage::decode(bytes)?;
        let index = stored(image.index, &self.realm, Kind::Index)?.try_map(wire::decode_index)?.into_inner();
        let StoredImage { profile, filter, list, draw, folded_through, .. } = image;
        let base = Base::restore(profile, &index, self.width(), filter, list, (draw, folded_through))?;
        self.set.cutoffs.rebase(wire::decode_cutoffs(image.cutoffs)?, index.sequence);
        self.set.horizon = self.set.horizon.max(index.horizon);
        self.hold_base(base, image.index.into(), image.cutoffs.into());
        Ok(())
    }

    /// Puts a base in force.
    fn hold_base(&mut self, base: Base, index: Arc<[u8]>, cutoffs: Arc<[u8]>) {
        let base = Arc::new(base);
        self.held_index = index;
        self.held_cutoffs = cutoffs;
        let (index, cutoffs) = (Arc::clone(&self.held_index), Arc::clone(&self.held_cutoffs));
        self.base_image = Some(BaseImage::new(index, Arc::clone(&base), cutoffs));
        self.set.base = Some(base);
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event<'_>) {
        match event {
            Event::Connected => {
                self.connected = true;
                self.asks.clear();
                self.reread = true;
                // A fleet that a broker dropped comes back at once; what it has to say has time.
                self.report_at = Some(now.uptime + self.jitter(self.config.report_every / 4));
                // Live first: nothing may be missed between it and the manifest.
                if self.keys.is_some() {
                    self.actions.push_back(Action::Subscribe(Address::Live));
                    self.actions.push_back(Action::Subscribe(Address::Answer));
                    self.actions.push_back(Action::Subscribe(Address::Keys));
                }
            }
            Event::Disconnected => {
                self.connected = false;
                self.asks.clear();
                self.asking.end_all();
            }
            Event::Packet { address, payload } => self.on_packet(now, address, payload),
            Event::Oversize { address, bytes } => {
                self.refuse(Refusal::EndlessData { bytes, max: SEALED_BYTES_MAX as u64 });
                self.postpone(now, address);
            }
            Event::Persisted { revision } => self.on_persisted(now, revision),
            Event::PersistFailed => {
                self.persist_in_flight = None;
                self.dirty.content = true;
                // A disk that is full now is full in a moment, too.
                self.last_persist = Some(now.uptime + self.config.retry_after);
            }
            Event::TimeProven { wall } => {
                // A signed time is a floor for every other claim about the time.
                let wall = wall.max(self.set.freshness.floor);
                self.set.freshness.proven = Some((wall, now.uptime));
                self.dirty.set = true;
            }
            Event::Elapsed => {}
        }
        self.settle(now);
        self.pump(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if action.is_none() && self.actions.capacity() > 0 {
            // A small device does not keep the room that the largest batch has taken.
            self.actions = VecDeque::new();
        }
        action
    }

    /// The uptime at which to tell [`Event::Elapsed`] if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let retry = self.config.retry_after;
        let asked = self.asks.values().map(|ask| ask.since + retry);
        let frozen = self.manifest.as_ref().and_then(|held| held.freeze_at);
        let gap = self.gap_since.map(|since| since + retry);
        let download = self.move_at.filter(|_| self.download.is_none());
        let questions = self.asking.deadline().into_iter().chain(self.climb.deadline());
        let report = self.report_at.filter(|_| self.persisted.is_some());
        let online =
            asked.chain(gap).chain(frozen).chain(download).chain(questions).chain(report).filter(|_| self.connected);
        online.chain(self.persist_due()).min()
    }

    /// What checkers should see now.
    #[must_use]
    pub const fn set(&self) -> &RevocationSet {
        &self.set
    }

    /// Refusals since the start, by [`Refusal::number`].
    #[must_use]
    pub const fn refusals(&self) -> &[u64; Refusal::COUNT] {
        &self.refusals
    }

    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref().map(|held| &held.keys)
    }

    /// The highest manifest seen.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref().map(|held| &held.manifest)
    }

    /// What is held, and what else could be.
    ///
    /// # Complexity
    ///
    /// Decodes the index.
    #[must_use]
    pub fn holding(&self) -> Holding {
        let offers = self.offered();
        let width = self.width();
        let sizes = |index: &Index| {
            let sized = |profile: Profile| Some((profile, profile.size_bytes(index, width)?));
            Profile::BEST_FIRST.into_iter().filter_map(sized).collect()
        };
        Holding {
            profile: self.set.base().map(Base::profile),
            bytes: self.set.size_bytes(),
            budget: match self.config.hold {
                Hold::Profile(_) => None,
                Hold::Budget(bytes) => Some(bytes),
            },
            base_bytes_max: self.config.hold.base_bytes_max(),
            offers: offers.as_ref().map(sizes).unwrap_or_default(),
            needed: self.needed,
        }
    }

    /// The budget that would do, if this one holds nothing of the newest base that was offered; as in [`Holding`], but
    /// without decoding anything.
    #[must_use]
    pub const fn budget_needed(&self) -> Option<u64> {
        self.needed
    }

    /// The smallest budget that can hold something of the held base; `None` before the first.
    #[must_use]
    pub fn smallest_budget(&self) -> Option<u64> {
        self.offered().map(|index| smallest_budget(&index, self.width()))
    }

    /// The index of the held base.
    fn offered(&self) -> Option<Index> {
        let body = stored(&self.held_index, &self.realm, Kind::Index).ok()?;
        body.try_map(wire::decode_index).ok().map(Verified::into_inner)
    }

    /// Term of the held position; zero before the first base.
    #[must_use]
    pub fn term(&self) -> Term {
        self.position.map(|(term, _)| term).unwrap_or_default()
    }

    /// Signs questions with this key from here on: that of a device that was enrolled.
    pub fn sign_by(&mut self, key: SigningKey) {
        self.signer = Some(key);
    }

    // ---- packets -----------------------------------------------------------------------------

    fn on_packet(&mut self, now: Now, address: Address, payload: &[u8]) {
        // An empty payload clears a retained message; it says nothing.
        if payload.is_empty() {
            return;
        }
        let outcome = match address {
            Address::Keys => self.on_keys(now, payload),
            Address::KeysAt { version } => self.on_keys_at(now, version, payload),
            Address::Answer => self.on_answer(now, payload),
            // Whoever wants them has them verified ([`Replica::verify`]); a replica decides nothing by them.
            Address::IssuerKeys | Address::Delivery => Ok(()),
            Address::Manifest => self.on_manifest(now, payload),
            Address::Live => self.on_delta(now, payload, None),
            Address::Ladder { from, to } => self.on_delta(now, payload, Some((from, to))),
            Address::Index { epoch } => self.on_index(epoch, payload),
            Address::Chunk { artifact, layer, number, epoch } => self.on_chunk(epoch, artifact, layer, number, payload),
        };
        match outcome {
            Ok(()) => self.answered(address),
            Err(refusal) => {
                self.refuse(refusal);
                self.postpone(now, address);
            }
        }
    }

    fn on_keys(&mut self, now: Now, sealed: &[u8]) -> Result<(), Refusal> {
        match self.take_keys(now, sealed, None) {
            Ok(()) => {
                self.found_newest_keys();
                Ok(())
            }
            Err(refusal) => {
                self.miss_keys(&refusal, sealed);
                Err(refusal)
            }
        }
    }

    /// Takes in keys that arrived: the newest, or those of one version on the way there.
    fn take_keys(&mut self, now: Now, sealed: &[u8], step: Option<u64>) -> Result<(), Refusal> {
        let first = self.keys.is_none();
        if self.accept_keys(self.latest_time(now), sealed, step)? {
            self.dirty.content = true;
            self.dirty.set = true;
            if first && self.connected {
                self.actions.push_back(Action::Subscribe(Address::Live));
                self.actions.push_back(Action::Subscribe(Address::Answer));
            }
        }
        Ok(())
    }

    /// Checks and takes in keys; says whether they are new. On the way to the newest (`step`) they may
    /// have expired: what they sign is not believed then, but their successor is.
    fn accept_keys(&mut self, time: UnixMillis, bytes: &[u8], step: Option<u64>) -> Result<bool, Refusal> {
        let sealed = Sealed::expect(bytes, &self.realm, Kind::Keys)?;
        let body = match &self.keys {
            Some(held) => sealed.by_threshold(&held.keys.roots, held.keys.threshold)?,
            None => sealed.by_threshold(&self.trust.roots, self.trust.threshold)?,
        };
        let digest = Digest::of(body.get());
        let keys = body.try_map(wire::decode_keys)?.into_inner();
        let expired = step.is_none() && time > keys.not_after.millis();
        // Rule 20: the new roots sign as well, or nobody could ever sign the next version.
        sealed.by_threshold(&keys.roots, keys.threshold)?;
        if step.is_some_and(|version| version != keys.version) {
            return Err(Refusal::Extraneous { expected: "keys of one version", found: "keys of another version" });
        }
        if let Some(held) = &self.keys {
            let rank = |keys: &Keys| Rank { number: keys.version, ..Rank::default() };
            if keys.version < held.keys.version {
                return Err(Refusal::Rollback { what: "keys", held: rank(&held.keys), offered: rank(&keys) });
            }
            if keys.version == held.keys.version && !(expired && digest == held.digest) {
                return if digest == held.digest { Ok(false) } else { Err(Refusal::Equivocation { what: "keys" }) };
            }
            // They live as long as the realm does: every structure is built from them.
            if keys.fingerprinter != held.keys.fingerprinter || keys.issuer != held.keys.issuer {
                return Err(Refusal::Equivocation { what: "realm parameters" });
            }
        }
        if expired {
            return Err(Refusal::KeysExpired { not_after: keys.not_after });
        }
        if self.set.fingerprinter.is_none() {
            self.set.recent = Recent::new(keys.fingerprinter.width(), self.config.hold.recent_entries_max(0));
        }
        self.set.fingerprinter = Some(keys.fingerprinter);
        self.set.issuer = Some(Arc::from(&*keys.issuer));
        self.set.leeway = keys.leeway;
        self.set.freshness.floor = self.set.freshness.floor.max(keys.issued_at);
        self.keys = Some(HeldKeys { keys, digest, sealed: bytes.to_vec() });
        Ok(true)
    }

    fn on_manifest(&mut self, now: Now, bytes: &[u8]) -> Result<(), Refusal> {
        let (body, role) = self.by_publisher(self.latest_time(now), bytes, Kind::Manifest)?;
        let digest = Digest::of(body.get());
        let manifest = body.try_map(wire::decode_manifest)?.into_inner();
        match &self.manifest {
            Some(held) => {
                let (old, new) = (held.manifest.rank(), manifest.rank());
                if new < old {
                    return Err(Refusal::Rollback { what: "manifest", held: old, offered: new });
                }
                if new == old {
                    let same = digest == held.digest;
                    return if same { Ok(()) } else { Err(Refusal::Equivocation { what: "manifest" }) };
                }
                let same_epoch = manifest.term == held.manifest.term && manifest.epoch == held.manifest.epoch;
                if same_epoch && manifest.index != held.manifest.index {
                    return Err(Refusal::Equivocation { what: "index" });
                }
                if role == Role::Heartbeat && !renews(&held.manifest, &manifest) {
                    return Err(Refusal::WrongRole { kind: Kind::Manifest });
                }
            }
            None if role == Role::Heartbeat => return Err(Refusal::WrongRole { kind: Kind::Manifest }),
            None => {}
        }
        self.set.freshness.floor = self.set.freshness.floor.max(manifest.issued_at);
        self.raise_horizon(manifest.horizon);
        let patience = manifest.next_update.millis().since(manifest.issued_at) + self.config.clock_skew;
        self.manifest = Some(HeldManifest {
            manifest,
            digest,
            sealed: bytes.to_vec(),
            arrived: now.uptime,
            freeze_at: Some(now.uptime + patience),
        });
        self.dirty.proof = true;
        self.dirty.set = true;
        Ok(())
    }

    fn on_delta(&mut self, now: Now, bytes: &[u8], expected: Option<(Sequence, Sequence)>) -> Result<(), Refusal> {
        let named = expected.and_then(|(from, to)| {
            let manifest = self.manifest()?;
            manifest.ladder.iter().find(|piece| piece.from == from && piece.to == to).map(|piece| piece.digest)
        });
        let body = match named {
            Some(digest) => Sealed::expect(bytes, &self.realm, Kind::Delta)?.by_digest(&digest, "a ladder piece")?,
            None => self.by_content(now, bytes, Kind::Delta)?,
        };
        let digest = Digest::of(body.get());
        let width = self.width();
        let delta = body.try_map(|body| wire::decode_delta(body, width))?.into_inner();
        if expected.is_some_and(|(from, to)| from != delta.from || to != delta.to) {
            return Err(Refusal::Extraneous { expected: "ladder piece", found: "delta of another range" });
        }
        let range = EarlyRange { term: delta.term, from: delta.from, to: delta.to };
        if let Some((term, sequence)) = self.position
            && delta.term < term
        {
            let held = Rank { term, number: sequence.0, ..Rank::default() };
            let offered = Rank { term: delta.term, number: delta.to.0, ..Rank::default() };
            return Err(Refusal::Rollback { what: "delta", held, offered });
        }
        match self.seen.iter().find(|(seen, _)| *seen == range) {
            Some((_, seen)) if *seen != mark(&digest) => {
                // Rule 10: of two histories keep every revocation, and nothing that softens.
                if !self.apply(Delta { reinstated: Vec::new(), lifts: Vec::new(), ..delta }) {
                    self.overflow = self.overflow.map(|overflow| Overflow { lost: true, ..overflow });
                }
                return Err(Refusal::Equivocation { what: "delta" });
            }
            // Seen before: taking it in again changes nothing.
            Some(_) => {}
            None => self.remember(range, mark(&digest)),
        }
        self.set.freshness.floor = self.set.freshness.floor.max(delta.issued_at);
        self.raise_horizon(delta.horizon);
        self.dirty.set = true;
        let held = self.position;
        if held.is_some_and(|(term, sequence)| delta.term == term && delta.to <= sequence) {
            return Ok(());
        }
        let statements_held = self.apply(delta);
        if !statements_held {
            // Rule 8: what could not be held never advances the position.
            return Err(Refusal::Overflow { held: self.set.recent.len() });
        }
        let gap = held.filter(|(term, sequence)| range.term == *term && range.from > *sequence);
        self.admit(range);
        self.settle(now);
        // Said once per delta; the position tells whether it has closed meanwhile.
        match gap {
            Some((_, sequence)) if self.set.sequence < range.from => {
                self.refuse(Refusal::Gap { held: sequence, from: range.from });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Puts every statement of a delta into force; says whether all of them found room.
    fn apply(&mut self, delta: Delta) -> bool {
        self.dirty.content = true;
        self.dirty.set = true;
        let stamp = delta.to;
        let fresh_keys =
            |set: &RevocationSet, keys: &[Fingerprint]| keys.iter().filter(|key| !set.recent.holds(**key)).count();
        let mut most = self.recent_entries_max();
        let needed = fresh_keys(&self.set, &delta.revoked) + fresh_keys(&self.set, &delta.reinstated);
        let tight = self.set.recent.len() + needed > most
            || self.set.cutoffs.recent().len() + delta.cutoffs.len() + delta.lifts.len() > CUTOFFS_MAX;
        let mut held = true;
        if tight {
            // Rule 8: what only softens goes first, then what can be is folded into the filter.
            self.set.recent.drop_reinstated();
            self.set.cutoffs.drop_lifts();
            if self.set.recent.len() + fresh_keys(&self.set, &delta.revoked) > most {
                self.fold_recent();
                // Without its exceptions the base takes less.
                most = self.recent_entries_max();
            }
        } else {
            for fingerprint in delta.reinstated {
                self.set.recent.record(Stamped { fingerprint, stamp, state: State::Reinstated });
            }
            for scope in delta.lifts {
                self.set.cutoffs.record(StampedCutoff { scope, not_before: None, stamp });
            }
        }
        for fingerprint in delta.revoked {
            if self.set.recent.len() < most || self.set.recent.holds(fingerprint) {
                self.set.recent.record(Stamped { fingerprint, stamp, state: State::Revoked });
            } else {
                held = false;
            }
        }
        for cutoff in delta.cutoffs {
            let known = self.set.cutoffs.recent().iter().any(|held| held.scope == cutoff.scope);
            if known || self.set.cutoffs.recent().len() < CUTOFFS_MAX {
                self.set.cutoffs.record(StampedCutoff {
                    scope: cutoff.scope,
                    not_before: Some(cutoff.not_before),
                    stamp,
                });
            } else {
                held = false;
            }
        }
        if !held {
            let held = self.overflow.unwrap_or(Overflow { through: stamp, lost: false });
            self.overflow = Some(Overflow { through: held.through.max(stamp), ..held });
            self.crowding = true;
            self.set.overflow = true;
        }
        held
    }

    /// Entries that may be held beside the base.
    fn recent_entries_max(&self) -> usize {
        let base = self.set.base.as_ref().map_or(0, |base| base.size_bytes());
        self.config.hold.recent_entries_max(base + self.set.cutoffs.size_bytes())
    }

    /// Rule 7: whether the issuer mints the `jti`s. Somebody who may choose them could fill a filter.
    fn may_fold(&self) -> bool {
        self.keys().is_some_and(|keys| keys.fingerprinter.function() == FingerprintFunction::Xxh3)
    }

    /// Rule 7: moves revocations into this device's copy of the filter. Nothing above the position: a later base may
    /// lie below it.
    fn fold_recent(&mut self) {
        let (Some((_, sequence)), Some(base)) = (self.position, self.set.base.as_ref()) else { return };
        if !self.may_fold() || !base.can_fold() {
            return;
        }
        let base = Arc::clone(base);
        let folded = self.set.recent.take_revoked_through(sequence);
        if folded.is_empty() {
            return;
        }
        if let Some(base) = base.with_folded(folded.into_iter(), sequence) {
            self.hold_base(base, Arc::clone(&self.held_index), Arc::clone(&self.held_cutoffs));
            self.base_unwritten = Some(self.revision + 1);
        }
    }

    /// Remembers that everything in a range is held.
    fn admit(&mut self, range: EarlyRange) {
        self.early.push(range);
        self.early.sort_unstable();
        // Ranges that touch or overlap are one.
        let mut merged: Vec<EarlyRange> = Vec::with_capacity(self.early.len());
        for range in self.early.drain(..) {
            match merged.last_mut() {
                Some(last) if last.term == range.term && range.from <= last.to => last.to = last.to.max(range.to),
                _ => merged.push(range),
            }
        }
        // Beyond the limit the farthest is forgotten: what it said stays, the ladder closes the gap.
        merged.truncate(EARLY_RANGES_MAX);
        self.early = merged;
    }

    fn remember(&mut self, range: EarlyRange, mark: Mark) {
        if self.seen.len() == SEEN_DELTAS {
            self.seen.pop_front();
        }
        self.seen.push_back((range, mark));
    }

    fn on_index(&mut self, epoch: Epoch, bytes: &[u8]) -> Result<(), Refusal> {
        let Some(download) = &self.download else { return Ok(()) };
        if !download.awaits_index(epoch) {
            return Ok(());
        }
        // Rule 20: a verified manifest names it, so it counts, whoever signed it and when.
        let sealed = Sealed::expect(bytes, &self.realm, Kind::Index)?;
        let body = sealed.by_digest(&download.index_digest(), "the index")?;
        let index = body.try_map(wire::decode_index)?.into_inner();
        if index.term != download.term() || index.epoch != epoch {
            return Err(Refusal::MixAndMatch { what: "the index" });
        }
        let width = self.width();
        self.needed = self.config.hold.choose(&index, width).is_err().then(|| smallest_budget(&index, width));
        let refused = self
            .download
            .as_mut()
            .and_then(|download| download.accept_index(&self.config, self.realm, width, index, bytes).err());
        match refused {
            None => Ok(()),
            Some(refusal) => {
                self.give_up();
                Err(refusal)
            }
        }
    }

    fn on_chunk(
        &mut self,
        epoch: Epoch,
        artifact: Artifact,
        layer: Layer,
        number: u32,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let Some(download) = self.download.as_mut().filter(|download| download.epoch() == epoch) else {
            return Ok(());
        };
        let outcome = download.accept_chunk(artifact, layer, number, bytes);
        if download.is_broken() {
            self.give_up();
        }
        outcome
    }

    // ---- trust -------------------------------------------------------------------------------

    /// The body of an object of this realm that a content key signed, by the keys in force: for what a replica does not
    /// take in itself ([`Kind::Delivery`], [`Kind::IssuerKeys`]).
    ///
    /// Whether it is older than another, and for whom it is, is for the caller to see.
    pub fn verify<'a>(&self, now: Now, bytes: &'a [u8], kind: Kind) -> Result<Verified<&'a [u8]>, Refusal> {
        self.by_content(now, bytes, kind)
    }

    /// Counts and tells a refusal of something that is not told to [`Replica::handle`], so that reports name it.
    pub fn count(&mut self, refusal: Refusal) {
        self.refuse(refusal);
    }

    /// The body, if a publisher key signed it, and the strongest role of those that did.
    fn by_publisher<'a>(
        &self,
        time: UnixMillis,
        bytes: &'a [u8],
        kind: Kind,
    ) -> Result<(Verified<&'a [u8]>, Role), Refusal> {
        let sealed = Sealed::expect(bytes, &self.realm, kind)?;
        let Some(held) = &self.keys else {
            return Err(Refusal::WrongKey { kind });
        };
        let mut refusal = Refusal::WrongKey { kind };
        // Content keys stand before heartbeat keys, so the stronger role is found first.
        let mut publishers: Vec<_> = held.keys.publishers.iter().collect();
        publishers.sort_by_key(|publisher| publisher.role);
        for publisher in publishers {
            let Some(role) = Role::from_number(publisher.role) else {
                continue;
            };
            let Ok(body) = sealed.by_threshold(&[publisher.key], 1) else {
                continue;
            };
            // Keys on the way to the newest may have expired, and with them whatever they vouch for.
            let not_after = publisher.not_after.min(held.keys.not_after);
            if role == Role::Heartbeat && kind != Kind::Manifest {
                refusal = Refusal::WrongRole { kind };
            } else if time > not_after.millis() {
                refusal = Refusal::KeysExpired { not_after };
            } else {
                return Ok((body, role));
            }
        }
        Err(refusal)
    }

    fn by_content<'a>(&self, now: Now, bytes: &'a [u8], kind: Kind) -> Result<Verified<&'a [u8]>, Refusal> {
        match self.by_publisher(self.latest_time(now), bytes, kind)? {
            (body, Role::Content) => Ok(body),
            (_, Role::Heartbeat) => Err(Refusal::WrongRole { kind }),
        }
    }

    /// The latest time known for sure: the trusted clock, or what was signed.
    fn latest_time(&self, now: Now) -> UnixMillis {
        self.set.freshness.wall(now).unwrap_or(self.set.freshness.floor)
    }

    fn width(&self) -> Width {
        self.keys().map_or(Width::W64, |keys| keys.fingerprinter.width())
    }

    fn raise_horizon(&mut self, horizon: UnixTime) {
        if horizon > self.set.horizon {
            self.set.horizon = horizon;
            self.dirty.proof = true;
        }
    }

    // ---- consequences ------------------------------------------------------------------------

    /// Draws every conclusion from what is held.
    fn settle(&mut self, now: Now) {
        self.install_finished();
        self.absorb_early();
        self.renew_proof();
        self.plan_base(now);
        self.watch(now);
        self.asking.expire(now.uptime);
        self.set.settle();
    }

    /// Moves the position over every range that touches it.
    fn absorb_early(&mut self) {
        let Some((term, mut sequence)) = self.position else {
            return;
        };
        for range in &self.early {
            if range.term == term && range.from <= sequence && range.to > sequence {
                sequence = range.to;
            }
        }
        self.early.retain(|range| range.term > term || (range.term == term && range.to > sequence));
        let reached = |overflow: Overflow| self.set.sequence < overflow.through && overflow.through <= sequence;
        if self.overflow.is_some_and(|overflow| reached(overflow) && !overflow.lost) {
            // What did not fit has come again, and all of it is held.
            self.overflow = None;
            self.set.overflow = false;
            self.dirty.set = true;
        }
        if sequence != self.set.sequence {
            self.position = Some((term, sequence));
            self.set.sequence = sequence;
            self.dirty.content = true;
            self.dirty.set = true;
        }
    }

    /// Rule 1: a manifest proves currency only once the position has reached it.
    fn renew_proof(&mut self) {
        let (Some((term, sequence)), Some(held)) = (self.position, &self.manifest) else {
            return;
        };
        let reached = held.manifest.term == term && sequence >= held.manifest.sequence;
        let proof = (held.manifest.issued_at, held.arrived);
        let newer = self.set.freshness.proof.is_none_or(|(issued_at, _)| issued_at < proof.0);
        if reached && newer {
            self.set.freshness.proof = Some(proof);
            self.dirty.proof = true;
            self.dirty.set = true;
        }
    }

    /// Whether the ladder reaches down to the held position.
    fn ladder_reaches(&self) -> bool {
        let (Some((term, sequence)), Some(manifest)) = (self.position, self.manifest()) else {
            return false;
        };
        manifest.term == term
            && (sequence >= manifest.sequence || manifest.ladder.first().is_some_and(|first| first.from <= sequence))
    }

    /// Decides whether to fetch the manifest's base, and when.
    fn plan_base(&mut self, now: Now) {
        let Some(manifest) = self.manifest() else { return };
        let (term, epoch, index) = (manifest.term, manifest.epoch, manifest.index);
        if self.given_up == Some((term, epoch)) {
            return;
        }
        let held = self.set.base.as_ref().map(|base| (base.term(), base.epoch()));
        let newer = held.is_none_or(|held| held < (term, epoch));
        // Rule 8: what came since this base finds no room beside it; the same base is fetched in a smaller profile.
        let crowded = if held == Some((term, epoch)) && self.crowding { self.crowded() } else { None };
        if !newer && crowded.is_none() {
            self.move_at = None;
            return;
        }
        if self.download.as_ref().is_some_and(|download| download.term() < term) {
            self.download = None;
        }
        // Nothing to stand on, no other way up, or a filter that matches too much: at once. Otherwise at a time of
        // one's own.
        let worn = self.set.base.as_ref().is_some_and(|base| base.is_worn());
        let urgent = held.is_none() || worn || self.overflow.is_some() || !self.ladder_reaches();
        let move_at = match self.move_at {
            Some(at) if !urgent => at,
            _ if urgent => now.uptime,
            _ => now.uptime + self.jitter(self.config.epoch_jitter),
        };
        self.move_at = Some(move_at);
        if self.download.is_none() && move_at <= now.uptime {
            self.download = Some(Download::new(term, epoch, index, crowded));
        }
    }

    /// What is held, if there is something roomier.
    fn crowded(&self) -> Option<Crowded> {
        let profile = self.set.base.as_ref().filter(|base| base.folded_through().is_none())?.profile();
        let crowded = Crowded { profile, may_fold: self.may_fold() };
        self.offered().filter(|index| self.config.hold.next_roomier(crowded, index, self.width()).is_some())?;
        Some(crowded)
    }

    /// Rule 4: moves to a base that has arrived whole.
    fn install_finished(&mut self) {
        let Some(download) = self.download.take_if(|download| download.is_complete()) else {
            return;
        };
        let Finished { index, sealed_index, base, cutoffs } = match download.finish() {
            Ok(finished) => finished,
            Err(refusal) => {
                self.refuse(refusal);
                self.give_up();
                return;
            }
        };
        let cutoffs_meant = match wire::decode_cutoffs(&cutoffs) {
            Ok(cutoffs) => cutoffs,
            Err(error) => {
                self.refuse(error.into());
                self.give_up();
                return;
            }
        };
        // What was folded into the old filter stands nowhere else; a base below it would lose it (rules 4 and 7).
        if let Some(held) = &self.set.base
            && held.term() == index.term
            && held.folded_through().is_some_and(|folded| folded > index.sequence)
        {
            self.give_up();
            return;
        }
        if let Some(held) = &self.set.base
            && (held.term(), held.sequence()) > (index.term, index.sequence)
        {
            let held = Rank { term: held.term(), number: held.sequence().0, ..Rank::default() };
            let offered = Rank { term: index.term, number: index.sequence.0, ..Rank::default() };
            self.refuse(Refusal::Rollback { what: "base", held, offered });
            self.give_up();
            return;
        }
        let base_sequence = index.sequence;
        match self.position {
            // The base covers everything up to its sequence, so every statement up to there goes;
            // what was stated since stays in force.
            Some((term, sequence)) if term == index.term && sequence > base_sequence => {}
            _ => {
                if self.position.is_some_and(|(term, _)| term != index.term) {
                    // Another reign: nothing that softens is taken over, since the old one may have said
                    // it. What the new one said early is fetched again.
                    self.set.recent.drop_reinstated();
                    self.set.cutoffs.drop_lifts();
                    self.early.clear();
                }
                self.position = Some((index.term, base_sequence));
                self.set.sequence = base_sequence;
            }
        }
        self.set.recent.drop_through(base_sequence);
        self.set.cutoffs.rebase(cutoffs_meant, base_sequence);
        self.raise_horizon(index.horizon);
        self.hold_base(base, sealed_index.into(), cutoffs.into());
        if self.overflow.is_some_and(|overflow| overflow.through <= base_sequence) {
            self.overflow = None;
            self.set.overflow = false;
        }
        self.base_unwritten = Some(self.revision + 1);
        self.crowding = false;
        self.move_at = None;
        self.dirty.content = true;
        self.dirty.set = true;
    }

    /// Drops a download that cannot succeed and does not try that epoch again.
    fn give_up(&mut self) {
        if let Some(download) = self.download.take() {
            self.given_up = Some((download.term(), download.epoch()));
        } else if let Some(manifest) = self.manifest() {
            self.given_up = Some((manifest.term, manifest.epoch));
        }
        self.move_at = None;
    }

    /// Notices what does not come: the manifest, or what would close a gap.
    fn watch(&mut self, now: Now) {
        if let Some(held) = &mut self.manifest
            && held.freeze_at.is_some_and(|at| at <= now.uptime)
            && self.connected
        {
            held.freeze_at = None;
            let refusal =
                Refusal::Freeze { issued_at: held.manifest.issued_at, next_update: held.manifest.next_update };
            self.refuse(refusal);
            self.reread = true;
        }
        let gap = self.position.is_some() && (!self.early.is_empty() || self.overflow.is_some());
        match self.gap_since {
            _ if !gap => self.gap_since = None,
            None => self.gap_since = Some(now.uptime),
            Some(since) if since + self.config.retry_after <= now.uptime && self.connected => {
                self.gap_since = Some(now.uptime);
                self.reread = true;
            }
            Some(_) => {}
        }
    }

    // ---- asking ------------------------------------------------------------------------------

    /// What should be fetched, most urgent first; derived from what is held.
    fn wanted(&self) -> Vec<Address> {
        if self.keys.is_none() {
            return alloc::vec![self.climb.wanted().unwrap_or(Address::Keys)];
        }
        let mut wanted: Vec<Address> = self.climb.wanted().into_iter().collect();
        if self.reread {
            wanted.push(Address::Manifest);
        }
        if self.ladder_reaches()
            && let (Some((_, sequence)), Some(manifest)) = (self.position, self.manifest())
        {
            let missing = manifest.ladder.iter().filter(|piece| {
                piece.to > sequence
                    && !self
                        .early
                        .iter()
                        .any(|range| range.term == manifest.term && range.from <= piece.from && range.to >= piece.to)
            });
            wanted.extend(missing.map(|piece| Address::Ladder { from: piece.from, to: piece.to }));
        }
        if let Some(download) = &self.download {
            wanted.extend(download.wanted());
        }
        wanted.truncate(FETCH_WINDOW + 1);
        wanted
    }

    /// An answer came and was good: its subscription is no longer needed, unless it is for good.
    fn answered(&mut self, address: Address) {
        let asked = self.asks.remove(&address);
        match address {
            Address::Manifest => self.reread = false,
            Address::Keys | Address::Live | Address::Answer | Address::IssuerKeys | Address::Delivery => {}
            Address::KeysAt { .. } | Address::Ladder { .. } | Address::Index { .. } | Address::Chunk { .. } => {
                if asked.is_some_and(|ask| ask.subscribed) {
                    self.actions.push_back(Action::Unsubscribe(address));
                }
            }
        }
    }

    /// An answer came and was refused: asking again at once would bring the same.
    fn postpone(&mut self, now: Now, address: Address) {
        if let Some(ask) = self.asks.get_mut(&address) {
            ask.since = now.uptime;
            ask.tries += 1;
            if ask.subscribed && !is_lasting(address) {
                ask.subscribed = false;
                self.actions.push_back(Action::Unsubscribe(address));
            }
        }
    }

    /// Turns what is wanted, exposed and unwritten into actions.
    fn pump(&mut self, now: Now) {
        if self.dirty.set {
            self.dirty.set = false;
            self.actions.push_back(Action::Expose(Arc::new(self.set.clone())));
        }
        if self.connected {
            self.pump_asks(now);
        }
        self.pump_persist(now);
        self.pump_report(now);
        self.tell_findings();
    }

    fn pump_asks(&mut self, now: Now) {
        self.watch_climb(now);
        let wanted = self.wanted();
        let idle: Vec<Address> = self.asks.keys().filter(|address| !wanted.contains(address)).copied().collect();
        for address in idle {
            if let Some(ask) = self.asks.remove(&address)
                && ask.subscribed
                && !is_lasting(address)
            {
                self.actions.push_back(Action::Unsubscribe(address));
            }
        }
        let mut stuck = false;
        let mut overdue = Vec::new();
        for (address, ask) in &mut self.asks {
            if ask.since + self.config.retry_after <= now.uptime {
                if ask.subscribed {
                    ask.tries += 1;
                    overdue.push(*address);
                }
                ask.since = now.uptime;
                ask.subscribed = true;
                self.actions.push_back(Action::Subscribe(*address));
                let fetched = !matches!(address, Address::Manifest | Address::KeysAt { .. });
                stuck |= ask.tries >= TRIES_BEFORE_REREAD && fetched;
            }
        }
        for address in overdue {
            self.refuse(Refusal::SlowRetrieval { what: address.name(), patience: self.config.retry_after });
        }
        if stuck {
            // Rule 11: what is missing may have been superseded.
            self.reread = true;
            self.abandon_superseded();
        }
        for address in wanted {
            if self.asks.len() > FETCH_WINDOW {
                break;
            }
            if let Entry::Vacant(place) = self.asks.entry(address) {
                place.insert(Ask { since: now.uptime, tries: 0, subscribed: true });
                self.actions.push_back(Action::Subscribe(address));
            }
        }
    }

    /// Lets a download whose chunks do not come give way to a newer epoch.
    fn abandon_superseded(&mut self) {
        let tries =
            self.asks.iter().filter(|(address, _)| matches!(address, Address::Index { .. } | Address::Chunk { .. }));
        let stuck = tries.map(|(_, ask)| ask.tries).max().is_some_and(|tries| tries >= TRIES_BEFORE_NEWER);
        let newest = self.manifest().map(|manifest| (manifest.term, manifest.epoch));
        if stuck && self.download.as_ref().is_some_and(|download| newest > Some((download.term(), download.epoch()))) {
            self.download = None;
        }
    }

    // ---- writing down and reporting ----------------------------------------------------------

    /// When the next image is due, if anything is unwritten.
    fn persist_due(&self) -> Option<Duration> {
        if self.persist_in_flight.is_some() || self.keys.is_none() {
            return None;
        }
        let every = if self.dirty.content {
            self.config.persist_every
        } else if self.dirty.proof {
            self.config.persist_proof_every
        } else {
            return None;
        };
        Some(self.last_persist.map_or(Duration::ZERO, |last| last + every))
    }

    fn pump_persist(&mut self, now: Now) {
        if self.persist_due().is_none_or(|due| due > now.uptime) {
            return;
        }
        let Some(held) = &self.keys else { return };
        let state = Head {
            realm: self.realm,
            trust: trust_digest(&self.trust),
            revision: self.revision + 1,
            profile: self.set.base().map_or(Profile::Exact, Base::profile),
            position: self.position,
            horizon: self.set.horizon,
            floor: self.set.freshness.floor,
            proof: self.set.freshness.proof.map(|(issued_at, _)| issued_at),
            overflow: self.overflow.map(|overflow| overflow.through),
            lost: self.overflow.is_some_and(|overflow| overflow.lost),
            keys: held.sealed.clone(),
            manifest: self.manifest.as_ref().map(|held| held.sealed.clone()).unwrap_or_default(),
            base: self.base_image.as_ref().map(BaseImage::digest),
            early: self.early.clone(),
            recent: self.set.recent.iter().collect(),
            cutoffs: self.set.cutoffs.recent().to_vec(),
        };
        // Everything in a head is within its limits already.
        let Ok(bytes) = state.encode() else { return };
        self.revision += 1;
        self.dirty.content = false;
        self.dirty.proof = false;
        self.last_persist = Some(now.uptime);
        self.persist_in_flight = Some(self.revision);
        self.in_flight_position = (self.term(), self.set.position());
        let base = self.base_image.as_ref().filter(|_| self.base_unwritten.is_some()).cloned();
        self.actions.push_back(Action::Persist(Image { revision: self.revision, head: bytes, base }));
    }

    fn on_persisted(&mut self, now: Now, revision: u64) {
        if self.persist_in_flight != Some(revision) {
            return;
        }
        self.persist_in_flight = None;
        self.persisted = Some(self.in_flight_position);
        if self.base_unwritten.is_some_and(|since| since <= revision) {
            self.base_unwritten = None;
        }
        if self.persisted != self.reported.map(|(_, what)| what) {
            self.hasten_report(now);
        }
    }

    /// There is news to report: soon, but not in step with the rest of the fleet, and not too often.
    fn hasten_report(&mut self, now: Now) {
        let spread = self.config.report_spread;
        let earliest = self.reported.map_or(now.uptime, |(at, _)| now.uptime.max(at + 2 * spread));
        // One that is due by then anyway will say it.
        if self.report_at.is_none_or(|at| at > earliest + spread) {
            self.report_at = Some(earliest + self.jitter(spread));
        }
    }

    fn pump_report(&mut self, now: Now) {
        let Some((term, position)) = self.persisted.filter(|_| self.connected) else { return };
        if self.report_at.is_none_or(|at| at > now.uptime) {
            return;
        }
        self.reported = Some((now.uptime, (term, position)));
        let every = self.config.report_every;
        self.report_at = Some(now.uptime + every.saturating_sub(self.jitter(every / 4)));
        self.actions.push_back(Action::Report(Report {
            term,
            position,
            age: self.set.freshness.age(now),
            profile: self.set.base().map_or(0, |base| base.profile() as u8),
            memory_bytes: self.set.size_bytes(),
            refusals: self.refusals.iter().sum(),
            last_refusal: self.last_refusal,
        }));
    }

    fn refuse(&mut self, refusal: Refusal) {
        let number = refusal.number();
        if let Some(count) = self.refusals.get_mut(usize::from(number)) {
            *count = count.saturating_add(1);
        }
        self.last_refusal = Some(number);
        self.actions.push_back(Action::Refused(refusal));
    }

    /// A span below `most`, differently on every device.
    fn jitter(&mut self, most: Duration) -> Duration {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let most = most.as_millis().min(u128::from(u64::MAX)) as u64;
        Duration::from_millis(((u128::from(mixed) * u128::from(most)) >> 64) as u64)
    }
}

/// Whether a subscription stays for as long as the connection does.
const fn is_lasting(address: Address) -> bool {
    matches!(address, Address::Keys | Address::Manifest | Address::Live | Address::Answer)
}

/// Whether state is that of this realm, gathered under this trust.
fn belongs(head: &Head, realm: &RealmId, trust: &Trust) -> Result<(), Refusal> {
    if head.realm != *realm {
        return Err(Refusal::WrongRealm { found: head.realm });
    }
    if head.trust != trust_digest(trust) {
        return Err(Refusal::DamagedState { what: "it was written under another trust" });
    }
    Ok(())
}

/// Whether a stored base fits the budget of this device. A budget into which nothing of it fits is refused: its owner
/// can still change it.
fn fits(config: &Config, realm: &RealmId, head: &Head, base: &[u8]) -> Result<bool, Refusal> {
    if matches!(config.hold, Hold::Profile(_)) {
        return Ok(true);
    }
    let image = StoredImage::decode(base)?;
    let index = stored(image.index, realm, Kind::Index)?.try_map(wire::decode_index)?.into_inner();
    let keys = stored(&head.keys, realm, Kind::Keys)?.try_map(wire::decode_keys)?.into_inner();
    let width = keys.fingerprinter.width();
    config.hold.choose(&index, width)?;
    Ok(config.hold.fits(image.profile, &index, width))
}

/// The body of an object from an image whose digest was checked: it was verified when it arrived.
fn stored<'a>(bytes: &'a [u8], realm: &RealmId, kind: Kind) -> Result<Verified<&'a [u8]>, Refusal> {
    Sealed::expect(bytes, realm, kind)?.by_digest(&Digest::of(bytes), "a stored object")
}

/// Names the pinned roots and their threshold: state belongs to the trust under which it was gathered.
fn trust_digest(trust: &Trust) -> Digest {
    let mut roots = trust.roots.clone();
    roots.sort_unstable();
    let mut bytes = alloc::vec![trust.threshold];
    for root in roots {
        bytes.extend_from_slice(&root.0);
    }
    Digest::of(&bytes)
}

/// Whether a manifest says nothing but "still so": what a heartbeat key may sign.
fn renews(held: &Manifest, offered: &Manifest) -> bool {
    held.term == offered.term
        && held.epoch == offered.epoch
        && held.sequence == offered.sequence
        && held.horizon == offered.horizon
        && held.index == offered.index
        && held.ladder == offered.ladder
}
