//! From ledger entries to what stands on the broker: first a plan, then its execution.
//!
//! [`Publisher`] decides and does nothing: entries go in, a [`Plan`] comes out, a value that can be
//! printed, tested and thrown away. What it has decided lies on its *shelf*: every object that should
//! stand on the broker, by address. Objects are stored with the ledger before they are published, so
//! a restart, and a broker that lost everything, are met by publishing the same bytes again.
//!
//! [`run`](run::run) executes plans against a real broker.

mod time;
pub use time::{ClockAlarm, SigningClock};

mod book;
use book::Pile;
pub use book::{Book, Forgettable, NetChange};

pub mod proof;

mod choice;
pub use choice::{Because, Choice, choose};

mod policy;
pub use policy::{EpochCause, EpochFigures};

mod epoch;
pub use epoch::{Built, Draft, Filtered};

pub mod answers;

mod forecast;
pub use forecast::{Forecast, Foreseen, Inquiries};

mod mark;
pub use mark::{HighWater, HighWaterError};

mod permit;
pub use permit::Permit;

mod run;
pub(crate) use run::chain;
pub use run::{Ended, Publishing, RunError, run};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proof::ProofError;
use revocast_core::exceptions::ExceptionsError;
use revocast_core::limits::{CHUNK_BYTES_DEFAULT, ISSUER_KEYS_BYTES_MAX, LADDER_PIECES_MAX, RECENT_ENTRIES_MAX};
use revocast_core::update::{Artifact, IssuerKeys, Layer, Piece, Question, Role};
use revocast_core::wire::{self, WireError};
use revocast_core::{
    Address, Delta, Digest, Epoch, FilterBuf, GeometryError, Index, Keys, Kind, LINE_BYTES, Manifest, Now, Position,
    PublicKey, Refusal, Salt, Sealed, Sequence, SigningKey, Term, UnixMillis, UnixTime, rice, seal, sealed_bytes,
};
use thiserror::Error;

use crate::ledger::{Coverage, Entry, Object, Realm};

/// How a realm is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Bytes of content in a chunk; every retained payload fits it, envelope aside.
    pub chunk_bytes: u32,
    /// Rate of false positives of the published filter, if the operator pins it; else the best is chosen.
    pub false_positive_rate: Option<f64>,
    /// A manifest is sealed again after this, even without news.
    pub heartbeat: Duration,
    /// Ladder and manifest follow live deltas at most this often.
    pub manifest_every: Duration,
    /// Superseded pieces and epochs stay this long for those who are fetching them.
    pub grace: Duration,
    /// A ladder larger than this share of the snapshot calls for a new epoch: whoever was away fetches at most a
    /// snapshot and this share of it.
    pub recent_share: f64,
    /// A larger share of expired entries among those that devices hold calls for a new epoch.
    pub dead_share: f64,
    /// An epoch older than this is rebuilt, if anything in it has expired.
    pub epoch_age_max: Duration,
    /// A filter that matches so many times as often as is wanted calls for a new epoch.
    pub rate_excess: f64,
    /// An epoch at least this old is rebuilt once more tokens are covered; a much larger registry does not wait.
    pub coverage_every: Duration,
    /// After a restart, how much later than the last signed time the clock may stand.
    pub restart_jump_max: Duration,
}

impl Default for Settings {
    /// Chunks of 32 KiB, the best filter, heartbeats every 30 s, manifests at most once a second, ten
    /// minutes of grace; a new epoch for a quarter more, for a quarter expired, for a filter twice as bad as is wanted,
    /// after a day, and after an hour for new coverage; a week of downtime.
    fn default() -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES_DEFAULT as u32,
            false_positive_rate: None,
            heartbeat: Duration::from_secs(30),
            manifest_every: Duration::from_secs(1),
            grace: Duration::from_mins(10),
            recent_share: 0.25,
            dead_share: 0.25,
            epoch_age_max: Duration::from_hours(24),
            rate_excess: 2.0,
            coverage_every: Duration::from_hours(1),
            restart_jump_max: Duration::from_hours(7 * 24),
        }
    }
}

/// Bytes of a sealed delta or manifest that are not statements: envelope, head, signatures.
const ENVELOPE_BYTES: usize = 512;

/// A ladder smaller than this is left to grow, however small the snapshot.
///
/// A small device has room for some hundred statements beside its base, and 2 KiB of ladder are some three hundred.
const LADDER_BYTES_MIN: usize = 2 * 1024;

/// Deltas that wait to be sent live. After a long time without a broker there are more; those who listen then catch up
/// by the ladder, which holds all of them.
const LIVE_DELTAS_MAX: usize = 8;

/// Why nothing could be planned.
#[derive(Debug, Error)]
pub enum PublishError {
    /// A device would not understand what was encoded. Nothing was signed.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Something does not fit the format.
    #[error("cannot be encoded")]
    Wire(#[from] WireError),
    /// Too many entries for any filter.
    #[error("no filter can be built")]
    Geometry(#[from] GeometryError),
    /// A fingerprint that is both good and revoked, or too many of them; a bug.
    #[error("the exceptions cannot be coded")]
    Exceptions(#[from] ExceptionsError),
    /// Too many or unsorted fingerprints; a bug.
    #[error("the list cannot be coded")]
    List(#[from] rice::RiceError),
    /// An object stored with the ledger is not what was stored.
    #[error("the stored object at {address} is damaged")]
    DamagedObject {
        /// Where it should stand.
        address: String,
        /// What is wrong with it.
        #[source]
        cause: Refusal,
    },
    /// The root keys have not named the key that signs here: no device would believe it. Put the key back that they have
    /// named, or name this one: `revocast publisher-key rotate`.
    #[error("the keys of realm {realm} do not name publisher key {key}; no device would believe what it signs")]
    NotAPublisher {
        /// Which realm.
        realm: revocast_core::RealmId,
        /// The key that is here.
        key: String,
    },
    /// The ledger ends before what was published from it: it was restored from a backup, or another
    /// server has written since. Going on would reuse sequences.
    #[error("the ledger of realm {realm} ends at {head}, but {published} was published; it has lost entries")]
    LedgerBehind {
        /// Which realm.
        realm: revocast_core::RealmId,
        /// Its last sequence.
        head: Sequence,
        /// The highest sequence that was published.
        published: Sequence,
    },
}

/// One thing to do at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a delta to whoever listens now.
    Live {
        /// The sealed delta.
        bytes: Vec<u8>,
    },
    /// Let an object stand at an address.
    Retain {
        /// Where.
        address: Address,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Make sure that everything retained so far really stands there.
    ReadBack {
        /// Where, and what.
        objects: Vec<(Address, Digest)>,
    },
    /// Remove what nobody needs any more.
    Clear {
        /// Where.
        address: Address,
    },
}

/// What should happen next, in this order: puts, steps, deletes, then [`Publisher::done`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Objects to store with the ledger before anything is sent.
    pub puts: Vec<Object>,
    /// Objects to remove from there, after the steps.
    pub deletes: Vec<String>,
    /// What to do at the broker.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty() && self.steps.is_empty()
    }
}

/// An object that stands, should stand, or no longer should.
#[derive(Clone, Debug)]
struct Shelved {
    bytes: Vec<u8>,
    stored: bool,
    retained: bool,
    /// Uptime since which nothing refers to it.
    superseded: Option<Duration>,
}

/// A rung of the ladder.
#[derive(Clone, Debug)]
struct Rung {
    delta: Delta,
    bytes: u32,
    digest: Digest,
}

/// An epoch that devices may still stand on.
#[derive(Clone, Debug)]
struct Generation {
    term: Term,
    epoch: Epoch,
    sequence: Sequence,
    index: Digest,
    /// Bytes of the artifact that most devices fetch.
    snapshot_bytes: usize,
    built: Duration,
    superseded: Option<Duration>,
    covered_until: UnixTime,
    /// Registered tokens when it was built.
    registered: u64,
    filter: Arc<FilterBuf>,
    /// Known of what was built since the start.
    choice: Option<Choice>,
    /// How often the filter matches by mistake, by its fill.
    filter_rate: f64,
    /// How often it was meant to.
    filter_rate_meant: f64,
}

/// Signs what a realm publishes.
#[derive(Clone, Debug)]
pub struct Signer {
    /// Content key: indexes, deltas, manifests.
    pub content: SigningKey,
}

/// Decides what a realm publishes.
#[derive(Debug)]
pub struct Publisher {
    realm: Realm,
    settings: Settings,
    signer: Signer,
    clock: SigningClock,
    book: Book,
    /// Everything up to here is in a base or in the ladder.
    cut_to: Sequence,
    ladder: Vec<Rung>,
    /// Oldest first; the last is the one new devices fetch.
    generations: Vec<Generation>,
    highest_epoch: Epoch,
    coverage: Coverage,
    /// An epoch is being built.
    drafting: bool,
    /// Salts that had to be drawn again since the start.
    salts_refused: usize,
    shelf: BTreeMap<Address, Shelved>,
    live: Vec<Vec<u8>>,
    last_delta_bytes: u64,
    manifest: Option<(Manifest, Duration)>,
    /// The last one that the broker acknowledged, or that was stored to be sent, and the uptime then.
    committed: Option<(Manifest, Duration)>,
    /// What could be forgotten, and the uptime at which that was counted.
    forgettable: Option<(Forgettable, Duration)>,
    /// Something changed that the manifest does not say yet.
    stale: bool,
    /// Why the keys of the issuer do not travel, if so.
    issuer_trouble: Option<String>,
}

/// A publisher that is being loaded: it reads the entries that the ledger still holds, in order.
#[derive(Debug)]
pub struct Loading {
    publisher: Publisher,
    /// Entries that were published before.
    pile: Pile,
    now: Now,
    /// An entry came that was not.
    caught_up: bool,
}

impl Loading {
    /// Takes in the next entry.
    pub fn read(&mut self, entry: &Entry) -> Result<(), PublishError> {
        if !self.caught_up && entry.sequence <= self.publisher.cut_to {
            self.publisher.book.pile(entry, &mut self.pile);
            return Ok(());
        }
        self.catch_up();
        self.publisher.take(entry)
    }

    /// The publisher, once all entries are read.
    #[must_use]
    pub fn finish(mut self) -> Publisher {
        self.catch_up();
        self.publisher.mark_superseded(self.now);
        self.publisher
    }

    fn catch_up(&mut self) {
        if !self.caught_up {
            self.caught_up = true;
            self.publisher.book.absorb(std::mem::take(&mut self.pile));
            // What was published up to here is not touched any more.
            self.publisher.book.settle();
        }
    }
}

impl Publisher {
    /// Takes over how often it seals and how long it keeps; the rest of the settings holds until the next start.
    pub const fn keep_pace(&mut self, settings: &Settings) {
        self.settings.heartbeat = settings.heartbeat;
        self.settings.grace = settings.grace;
    }

    /// Goes on from what was stored: objects with the ledger, and the ledger itself.
    ///
    /// `entries` are all that the ledger still holds, in order; `head` is its last sequence, which may
    /// lie beyond the last entry when that has expired.
    pub fn load(
        realm: Realm,
        settings: Settings,
        signer: Signer,
        now: Now,
        head: (Term, Sequence),
        objects: Vec<Object>,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<Self, PublishError> {
        let mut loading = Self::begin(realm, settings, signer, now, head, objects)?;
        for entry in entries {
            loading.read(&entry)?;
        }
        Ok(loading.finish())
    }

    /// The same for a history too long to be held at once: its entries follow.
    pub fn begin(
        realm: Realm,
        settings: Settings,
        signer: Signer,
        now: Now,
        (term, head): (Term, Sequence),
        objects: Vec<Object>,
    ) -> Result<Loading, PublishError> {
        let mut publisher = Self {
            clock: SigningClock::new(None, settings.restart_jump_max),
            book: Book::new(realm.fingerprinter, term),
            realm,
            settings,
            signer,
            cut_to: Sequence(0),
            ladder: Vec::new(),
            generations: Vec::new(),
            highest_epoch: Epoch(0),
            coverage: Coverage::default(),
            drafting: false,
            salts_refused: 0,
            shelf: BTreeMap::new(),
            live: Vec::new(),
            last_delta_bytes: 0,
            manifest: None,
            committed: None,
            forgettable: None,
            stale: true,
            issuer_trouble: None,
        };
        for object in objects {
            // An address this version does not know is left alone.
            let Some(address) = Address::parse(&object.address) else { continue };
            let shelved = Shelved { bytes: object.bytes, stored: true, retained: false, superseded: Some(now.uptime) };
            publisher.shelf.insert(address, shelved);
        }
        publisher.keep_keys()?;
        publisher.load_manifest(now, term)?;
        publisher.load_issuer_keys();
        if publisher.cut_to > head {
            return Err(PublishError::LedgerBehind { realm: publisher.realm.id, head, published: publisher.cut_to });
        }
        Ok(Loading { publisher, pile: Pile::default(), now, caught_up: false })
    }

    /// Lets the present version of the keys stand under its number, too: for devices that come back
    /// when there are newer ones. Refuses to sign where they do not name the key that is here.
    fn keep_keys(&mut self) -> Result<(), PublishError> {
        let Some(keys) = self.keys()? else { return Ok(()) };
        let own = self.signer.content.public();
        if !content_keys(&keys).any(|key| key == own) {
            return Err(PublishError::NotAPublisher { realm: self.realm.id, key: own.id().to_string() });
        }
        let address = Address::KeysAt { version: keys.version };
        if let Some(shelved) = self.shelf.get(&Address::Keys).filter(|_| !self.shelf.contains_key(&address)) {
            self.put(address, shelved.bytes.clone());
        }
        Ok(())
    }

    /// What the root keys have said last; `None` where they have said nothing yet.
    fn keys(&self) -> Result<Option<Keys>, PublishError> {
        let Some(shelved) = self.shelf.get(&Address::Keys) else { return Ok(None) };
        decode(Address::Keys, &shelved.bytes, self.realm.id, Kind::Keys, wire::decode_keys).map(Some)
    }

    /// The version of the keys that the broker holds; `None` while it is not known to hold the newest.
    #[must_use]
    pub fn keys_version(&self) -> Option<u64> {
        let retained = |address: &Address| self.shelf.get(address).is_some_and(|shelved| shelved.retained);
        let version = self.keys().ok()??.version;
        (retained(&Address::Keys) && retained(&Address::KeysAt { version })).then_some(version)
    }

    /// The keys whose signature on what stands at the broker is believed: ours, and those named beside it.
    #[must_use]
    pub fn believed(&self) -> Vec<PublicKey> {
        let keys = self.keys().ok().flatten();
        let named = keys.iter().flat_map(content_keys);
        std::iter::once(self.signer.content.public()).chain(named).collect()
    }

    /// Takes in what the root keys have said, as it was stored with the ledger; it is published before anything that is
    /// signed by a key that it names.
    pub fn adopt_keys(&mut self, bytes: &[u8]) -> Result<(), PublishError> {
        let keys = decode(Address::Keys, bytes, self.realm.id, Kind::Keys, wire::decode_keys)?;
        if self.keys()?.is_some_and(|held| held.version >= keys.version) {
            return Ok(());
        }
        for address in [Address::Keys, Address::KeysAt { version: keys.version }] {
            let shelved = Shelved { bytes: bytes.to_vec(), stored: true, retained: false, superseded: None };
            self.shelf.insert(address, shelved);
        }
        self.stale = true;
        Ok(())
    }

    /// No set of issuer keys is dated before the one that was published last.
    fn load_issuer_keys(&mut self) {
        if let Some(held) = self.issuer_keys() {
            self.clock.raise(held.issued_at);
        }
    }

    fn issuer_keys(&self) -> Option<IssuerKeys> {
        let address = Address::IssuerKeys;
        let shelved = self.shelf.get(&address)?;
        // One that cannot be read is replaced.
        decode(address, &shelved.bytes, self.realm.id, Kind::IssuerKeys, wire::decode_issuer_keys).ok()
    }

    /// Takes in the public keys of the issuer, a JWK set; they are published if they have changed, or if another key
    /// sealed them.
    pub fn take_issuer_keys(&mut self, now: Now, jwks: &[u8], any: bool) {
        let room = (self.settings.chunk_bytes as usize).saturating_sub(ENVELOPE_BYTES).min(ISSUER_KEYS_BYTES_MAX);
        if jwks.len() > room {
            self.issuer_trouble =
                Some(format!("the keys of the issuer have {} bytes, more than the {room} that travel", jwks.len()));
            return;
        }
        self.issuer_trouble = None;
        let own = [self.signer.content.public()];
        let ours = |shelved: &Shelved| {
            Sealed::expect(&shelved.bytes, &self.realm.id, Kind::IssuerKeys)
                .and_then(|sealed| sealed.by_threshold(&own, 1))
                .is_ok()
        };
        let sealed = self.shelf.get(&Address::IssuerKeys).is_some_and(ours);
        let held = self.issuer_keys();
        if (sealed && held.as_ref().is_some_and(|held| held.jwks == jwks)) || (held.is_none() && !any) {
            return;
        }
        let keys = IssuerKeys { issued_at: self.clock.take(now), jwks: jwks.to_vec() };
        match wire::encode_issuer_keys(&keys) {
            Ok(body) => {
                self.put(Address::IssuerKeys, seal(Kind::IssuerKeys, &self.realm.id, &body, &[&self.signer.content]));
                self.stale = true;
            }
            Err(error) => self.issuer_trouble = Some(format!("the keys of the issuer cannot be encoded: {error}")),
        }
    }

    /// Why the keys of the issuer do not travel, if so.
    #[must_use]
    pub fn issuer_trouble(&self) -> Option<&str> {
        self.issuer_trouble.as_deref()
    }

    fn load_manifest(&mut self, now: Now, term: Term) -> Result<(), PublishError> {
        let Some(shelved) = self.shelf.get(&Address::Manifest) else { return Ok(()) };
        let manifest = decode(Address::Manifest, &shelved.bytes, self.realm.id, Kind::Manifest, wire::decode_manifest)?;
        self.clock = SigningClock::new(Some(manifest.issued_at), self.settings.restart_jump_max);
        let indexes: Vec<Address> =
            self.shelf.keys().filter(|address| matches!(address, Address::Index { .. })).copied().collect();
        for address in indexes {
            let Some(shelved) = self.shelf.get(&address) else { continue };
            let index = decode(address, &shelved.bytes, self.realm.id, Kind::Index, wire::decode_index)?;
            self.highest_epoch = self.highest_epoch.max(index.epoch);
            // An index that the manifest never named was being published when the server stopped.
            if index.epoch <= manifest.epoch {
                let filter = Arc::new(self.shelved_filter(address, &index)?);
                self.generations.push(Generation {
                    term: index.term,
                    epoch: index.epoch,
                    sequence: index.sequence,
                    index: Digest::of(&shelved.bytes),
                    snapshot_bytes: snapshot_bytes(&index),
                    built: now.uptime,
                    superseded: (index.epoch < manifest.epoch).then_some(now.uptime),
                    covered_until: index.covered_until,
                    registered: 0,
                    filter_rate: filter.false_positive_rate(),
                    filter_rate_meant: index.filter.false_positive_rate(entries_of(&index)),
                    filter,
                    choice: None,
                });
            }
        }
        self.generations.sort_by_key(|generation| generation.epoch);
        // In a new term nothing of the old one is built upon.
        if manifest.term != term {
            self.cut_to = manifest.sequence;
            return Ok(());
        }
        for piece in &manifest.ladder {
            self.load_rung(piece.from, piece.to)?;
        }
        let mut reached = manifest.sequence;
        // Deltas that were cut after the manifest was sealed.
        while let Some(to) = self.shelf.keys().find_map(|address| match address {
            Address::Ladder { from, to } if *from == reached => Some(*to),
            _ => None,
        }) {
            self.load_rung(reached, to)?;
            reached = to;
        }
        self.cut_to = reached;
        self.manifest = Some((manifest.clone(), now.uptime));
        self.committed = Some((manifest, now.uptime));
        Ok(())
    }

    /// The filter of an epoch, from its chunks.
    fn shelved_filter(&self, address: Address, index: &Index) -> Result<FilterBuf, PublishError> {
        let damaged =
            |what| PublishError::DamagedObject { address: address.to_string(), cause: Refusal::DamagedState { what } };
        let mut filter = FilterBuf::new(index.filter);
        for number in 0.. {
            let begin = u64::from(number) * u64::from(index.chunk_bytes);
            if begin >= index.filter.size_bytes() {
                break;
            }
            let (artifact, layer) = (Artifact::Filter, Layer::Content);
            let address = Address::Chunk { epoch: index.epoch, artifact, layer, number };
            let shelved = self.shelf.get(&address).ok_or_else(|| damaged("a chunk of its filter is missing"))?;
            let content = decode(address, &shelved.bytes, self.realm.id, Kind::Chunk, |body| {
                wire::decode_chunk(body).map(|chunk| chunk.content.to_vec())
            })?;
            filter.absorb(begin, &content).map_err(|_| damaged("its filter is longer than it should be"))?;
        }
        Ok(filter)
    }

    fn load_rung(&mut self, from: Sequence, to: Sequence) -> Result<(), PublishError> {
        let address = Address::Ladder { from, to };
        let Some(shelved) = self.shelf.get(&address) else {
            let cause = Refusal::DamagedState { what: "it is missing" };
            return Err(PublishError::DamagedObject { address: address.to_string(), cause });
        };
        let width = self.realm.fingerprinter.width();
        let delta =
            decode(address, &shelved.bytes, self.realm.id, Kind::Delta, |body| wire::decode_delta(body, width))?;
        self.ladder.push(Rung { delta, bytes: shelved.bytes.len() as u32, digest: Digest::of(&shelved.bytes) });
        Ok(())
    }

    /// Takes in the next entry of the ledger; cuts a delta when one is full.
    pub fn take(&mut self, entry: &Entry) -> Result<(), PublishError> {
        let new_term = matches!(entry.statement, crate::ledger::Statement::Resume { .. });
        self.book.apply(entry);
        if new_term {
            // Rule 9: a new reign begins with an epoch of its own; no delta leads there.
            self.book.settle();
            self.ladder.clear();
            self.live.clear();
            self.cut_to = self.book.sequence();
            self.manifest = None;
            self.committed = None;
            self.stale = true;
            return Ok(());
        }
        let (keys, scopes) = self.book.touched();
        let room = (self.settings.chunk_bytes as usize).saturating_sub(ENVELOPE_BYTES);
        // A coded fingerprint takes at most its width and two bits; a scope at most 17 bytes.
        let per_key = self.realm.fingerprinter.width().bits() as usize / 8 + 1;
        if (keys + 1) * per_key + (scopes + 1) * wire::CUTOFF_BYTES > room {
            self.cut(UnixMillis::default())?;
        }
        Ok(())
    }

    /// Cuts what was touched into a delta. `issued_at` 0 stands for "take a time when planning".
    fn cut(&mut self, issued_at: UnixMillis) -> Result<(), PublishError> {
        let to = self.book.sequence();
        if to <= self.cut_to {
            return Ok(());
        }
        // Before the first base nobody listens, and the base will hold it all.
        if self.generations.is_empty() {
            return Ok(());
        }
        let issued_at = if issued_at == UnixMillis::default() { self.last_time() } else { issued_at };
        let delta = self.change(issued_at);
        let width = self.realm.fingerprinter.width();
        let proven = proof::delta(wire::encode_delta(&delta, width)?, &delta, &self.book, width)?;
        let bytes = proven.seal(&self.realm.id, &[&self.signer.content]);
        self.book.settle();
        self.last_delta_bytes = bytes.len() as u64;
        if self.live.len() < LIVE_DELTAS_MAX {
            self.live.push(bytes.clone());
        }
        self.put_rung(delta, bytes);
        self.cut_to = to;
        self.stale = true;
        Ok(())
    }

    /// What was touched since the last delta, as one.
    fn change(&self, issued_at: UnixMillis) -> Delta {
        let NetChange { revoked, reinstated, cutoffs, lifts } = self.book.net_change();
        Delta {
            term: self.book.term(),
            from: self.cut_to,
            to: self.book.sequence(),
            issued_at,
            horizon: self.realm.horizon(issued_at.floor()),
            revoked,
            reinstated,
            cutoffs,
            lifts,
        }
    }

    /// The delta that would be cut now, and its size.
    fn next_delta(&self) -> Result<Option<(Delta, u64)>, PublishError> {
        if self.book.sequence() <= self.cut_to || self.generations.is_empty() {
            return Ok(None);
        }
        let delta = self.change(self.last_time());
        let body = wire::encode_delta(&delta, self.realm.fingerprinter.width())?;
        let bytes = sealed_bytes(&self.realm.id, body.len(), 1) as u64;
        Ok(Some((delta, bytes)))
    }

    /// The last time that was signed: true, if not the latest; what a delta cut in between carries.
    fn last_time(&self) -> UnixMillis {
        self.manifest.as_ref().map(|(manifest, _)| manifest.issued_at).unwrap_or_default()
    }

    fn put_rung(&mut self, delta: Delta, bytes: Vec<u8>) {
        let address = Address::Ladder { from: delta.from, to: delta.to };
        self.ladder.push(Rung { delta, bytes: bytes.len() as u32, digest: Digest::of(&bytes) });
        self.put(address, bytes);
    }

    fn put(&mut self, address: Address, bytes: Vec<u8>) {
        self.shelf.insert(address, Shelved { bytes, stored: false, retained: false, superseded: None });
    }

    /// Cuts what is new into deltas, to be stored and sent at once.
    ///
    /// After an error the publisher must be loaded anew: what it had decided is not complete.
    pub fn plan_live(&mut self, now: Now) -> Result<Plan, PublishError> {
        if self.book.sequence() > self.cut_to {
            let time = self.clock.take(now);
            self.cut(time)?;
        }
        let steps = std::mem::take(&mut self.live).into_iter().map(|bytes| Step::Live { bytes }).collect();
        Ok(Plan { puts: self.take_unstored(), deletes: Vec::new(), steps })
    }

    /// Brings what is retained up to date, if that is due: base, ladder, manifest. Builds the base at once, for whoever
    /// can wait for it and registers no tokens. `salt` is drawn from the operating system, after the entries of an
    /// epoch are fixed (attacks, section 6).
    ///
    /// After an error the publisher must be loaded anew.
    pub fn plan_catalog(&mut self, now: Now, salt: impl FnMut() -> Salt) -> Result<Plan, PublishError> {
        if let Some(draft) = self.draft(now)? {
            let coverage = Coverage::default();
            let built = draft.filter(&coverage, salt)?.build(&coverage, Vec::new())?;
            self.install(now, built);
        }
        self.plan_standing(now)
    }

    /// Brings ladder and manifest up to date, and what was installed, if that is due.
    ///
    /// After an error the publisher must be loaded anew.
    pub fn plan_standing(&mut self, now: Now) -> Result<Plan, PublishError> {
        let installed = self.generations.last().is_some_and(|current| current.term == self.book.term());
        if !installed || !self.catalog_due(now) {
            return Ok(Plan::default());
        }
        self.cut_now(now)?;
        self.merge_ladder(now)?;
        self.retire(now);
        if self.awaits_epoch() {
            return Ok(Plan::default());
        }
        self.seal_manifest(now)?;
        self.mark_superseded(now);
        self.stale = false;
        let deletes: Vec<Address> = self.expired_objects(now).collect();
        let steps = self.publication(&deletes);
        Ok(Plan { puts: self.take_unstored(), deletes: deletes.iter().map(ToString::to_string).collect(), steps })
    }

    /// Whether the ladder has outgrown what a manifest can name, so that nothing can be told before the epoch on its way
    /// is there. Deltas go on.
    fn awaits_epoch(&self) -> bool {
        self.drafting && self.ladder.len() > self.pieces_max()
    }

    /// What is not in a delta yet would be missing from the ladder for good.
    fn cut_now(&mut self, now: Now) -> Result<(), PublishError> {
        if self.book.sequence() > self.cut_to {
            let time = self.clock.take(now);
            self.cut(time)?;
        }
        Ok(())
    }

    fn take_unstored(&mut self) -> Vec<Object> {
        let unstored = self.shelf.iter_mut().filter(|(_, shelved)| !shelved.stored);
        unstored
            .map(|(address, shelved)| {
                shelved.stored = true;
                Object { address: address.to_string(), bytes: shelved.bytes.clone() }
            })
            .collect()
    }

    fn catalog_due(&self, now: Now) -> bool {
        let Some((_, sealed)) = self.manifest else { return true };
        let since = now.uptime.saturating_sub(sealed);
        (self.stale && since >= self.settings.manifest_every)
            || since >= self.settings.heartbeat
            || self.expired_objects(now).next().is_some()
    }

    /// Merges rungs while the last is not much smaller than the one before it: like the digits of a
    /// binary counter, so that there are O(log n) of them. No piece outgrows a chunk.
    fn merge_ladder(&mut self, now: Now) -> Result<(), PublishError> {
        let width = self.realm.fingerprinter.width();
        let pending = self.ladder.len();
        for _ in 0..pending {
            let [.., before, last] = self.ladder.as_slice() else { break };
            let room = (self.settings.chunk_bytes as usize).saturating_sub(ENVELOPE_BYTES);
            let fits = (before.bytes + last.bytes) as usize <= room;
            if before.delta.statements() > 2 * last.delta.statements() || !fits {
                break;
            }
            let mut delta = merge(&before.delta, &last.delta);
            delta.issued_at = self.clock.take(now);
            let proven = proof::merged(wire::encode_delta(&delta, width)?, &delta, width)?;
            self.ladder.truncate(self.ladder.len() - 2);
            self.put_rung(delta, proven.seal(&self.realm.id, &[&self.signer.content]));
        }
        Ok(())
    }

    /// Tells what is known of the issued tokens now.
    pub const fn cover(&mut self, coverage: Coverage) {
        self.coverage = coverage;
    }

    /// What decides whether a new epoch is due.
    #[must_use]
    pub fn epoch_figures(&self, now: Now) -> EpochFigures {
        let counted = || self.book.forgettable(self.realm.horizon(self.clock.clone().read(now).floor()));
        let Forgettable { tokens, revoked } = self.forgettable.map_or_else(counted, |(forgettable, _)| forgettable);
        let current = self.generations.last();
        let since = self.ladder.iter().filter(|rung| current.is_some_and(|current| rung.delta.to > current.sequence));
        let (ladder_bytes, statements) =
            since.fold((0, 0), |(bytes, n), rung| (bytes + rung.bytes as usize, n + rung.delta.statements()));
        let share = |whole: f64, share: f64| (whole * share) as u64;
        let snapshot_bytes = current.map_or(0, |current| current.snapshot_bytes);
        let entries = self.book.revoked_len() as u64;
        // What was built since the start was measured against its own target when it was.
        let rate_wanted = match (current, self.settings.false_positive_rate) {
            (Some(Generation { choice: None, .. }), Some(pinned)) => pinned,
            (Some(current), _) => current.filter_rate_meant,
            (None, _) => 1.0,
        };
        EpochFigures {
            standing: match current {
                None => policy::Standing::Nothing,
                Some(current) if current.term != self.book.term() => policy::Standing::OtherTerm,
                Some(_) => policy::Standing::Good,
            },
            ladder_bytes,
            ladder_bytes_max: (share(snapshot_bytes as f64, self.settings.recent_share) as usize)
                .max(LADDER_BYTES_MIN.min(self.settings.chunk_bytes as usize)),
            statements,
            statements_max: RECENT_ENTRIES_MAX / 2,
            pieces: self.ladder.len(),
            pieces_max: self.pieces_max() / 2,
            entries,
            dead: revoked as u64,
            dead_max: share(entries as f64, self.settings.dead_share),
            droppable: tokens > 0,
            age: current.map_or(Duration::ZERO, |current| now.uptime.saturating_sub(current.built)),
            age_max: self.settings.epoch_age_max,
            filter_rate: current.map_or(0.0, |current| current.filter_rate),
            filter_rate_max: rate_wanted * self.settings.rate_excess,
            covers_more: self
                .coverage
                .covered_until
                .is_some_and(|until| current.is_some_and(|current| until > current.covered_until)),
            registered_then: current.map_or(0, |current| current.registered),
            registered: self.coverage.registered,
            coverage_every: self.settings.coverage_every,
        }
    }

    /// Counts what could be forgotten, now and then: that takes a look at every token.
    fn count_forgettable(&mut self, now: Now) {
        let recent = |(_, at): (Forgettable, Duration)| now.uptime.saturating_sub(at) < self.settings.heartbeat;
        if !self.forgettable.is_some_and(recent) {
            let horizon = self.realm.horizon(self.clock.read(now).floor());
            self.forgettable = Some((self.book.forgettable(horizon), now.uptime));
        }
    }

    /// Pieces that a manifest of one chunk can name.
    fn pieces_max(&self) -> usize {
        let room = (self.settings.chunk_bytes as usize).saturating_sub(ENVELOPE_BYTES);
        LADDER_PIECES_MAX.min(room / wire::PIECE_BYTES)
    }

    /// Freezes what a new epoch is to be built from, if one is due and none is on its way.
    ///
    /// Until [`Publisher::install`] or [`Publisher::abandon`] deltas go on being cut; the new epoch is based where the
    /// book stands now.
    pub fn draft(&mut self, now: Now) -> Result<Option<Draft>, PublishError> {
        if self.drafting || !self.catalog_due(now) {
            return Ok(None);
        }
        self.cut_now(now)?;
        // A ladder that merging makes short enough calls for no epoch.
        self.merge_ladder(now)?;
        self.count_forgettable(now);
        let figures = self.epoch_figures(now);
        let Some(cause) = figures.due() else { return Ok(None) };
        tracing::info!(realm = %self.realm.id, epoch = self.highest_epoch.0 + 1, %cause, ?figures, "a new epoch is due");
        let issued_at = self.clock.take(now);
        let horizon = self.realm.horizon(issued_at.floor());
        self.book.forget(horizon);
        self.forgettable = None;
        self.book.settle();
        if self.generations.is_empty() {
            // Nobody listens yet: what comes from here on is the first that is cut.
            self.cut_to = self.book.sequence();
        }
        self.drafting = true;
        Ok(Some(Draft {
            realm: self.realm.clone(),
            signer: self.signer.clone(),
            term: self.book.term(),
            epoch: Epoch(self.highest_epoch.0 + 1),
            sequence: self.book.sequence(),
            issued_at,
            horizon,
            chunk_bytes: self.settings.chunk_bytes,
            rate_pinned: self.settings.false_positive_rate,
            revoked: self.book.revoked(),
            cutoffs: self.book.cutoffs(),
        }))
    }

    /// Puts an epoch that was built on the shelf, to be published with the next plan. One of an older term, or one
    /// that another copy of this ledger has published meanwhile, is thrown away.
    pub fn install(&mut self, now: Now, built: Built) {
        self.drafting = false;
        self.stale = true;
        if built.term != self.book.term() || built.epoch <= self.highest_epoch {
            return;
        }
        for generation in &mut self.generations {
            generation.superseded.get_or_insert(now.uptime);
        }
        self.salts_refused += built.salts_refused;
        self.generations.push(Generation {
            term: built.term,
            epoch: built.epoch,
            sequence: built.index.sequence,
            index: Digest::of(&built.sealed),
            snapshot_bytes: snapshot_bytes(&built.index),
            built: now.uptime,
            superseded: None,
            covered_until: built.index.covered_until,
            registered: built.registered,
            filter_rate: built.filter.false_positive_rate(),
            filter_rate_meant: built.index.filter.false_positive_rate(entries_of(&built.index)),
            filter: built.filter,
            choice: Some(built.choice),
        });
        for (address, bytes) in built.objects {
            self.put(address, bytes);
        }
        self.put(Address::Index { epoch: built.epoch }, built.sealed);
        self.highest_epoch = built.epoch;
    }

    /// A draft came to nothing; another may be made.
    pub const fn abandon(&mut self) {
        self.drafting = false;
    }

    /// The filters of all epochs not retired: what a new `jti` must not match.
    #[must_use]
    pub fn filters(&self) -> Vec<Arc<FilterBuf>> {
        self.generations.iter().map(|generation| Arc::clone(&generation.filter)).collect()
    }

    /// How good the filter of the newest epoch is; `None` before the first. Reads the whole filter.
    #[must_use]
    pub fn filter_health(&self) -> Option<FilterHealth> {
        let filter = &self.generations.last()?.filter;
        let bits = (filter.lines().count() * LINE_BYTES * 8) as f64;
        Some(FilterHealth {
            fill: filter.bits_set() as f64 / bits.max(1.0),
            rate: filter.false_positive_rate(),
            meant: self.choice().map(|choice| choice.rate),
        })
    }

    /// Why the newest epoch has the filter it has; `None` if it was built before the start.
    #[must_use]
    pub fn choice(&self) -> Option<Choice> {
        self.generations.last().and_then(|generation| generation.choice)
    }

    /// Filters since the start that matched twice as often as was meant and were thrown away: a reason for alarm.
    #[must_use]
    pub const fn salts_refused(&self) -> usize {
        self.salts_refused
    }

    /// Retires epochs after their grace period, and the rungs that only they needed (rule 11). When
    /// the ladder grows too long, the oldest go early: their devices fetch the newest base.
    fn retire(&mut self, now: Now) {
        let grace = self.settings.grace;
        let term = self.book.term();
        self.generations.retain(|generation| {
            generation
                .superseded
                .is_none_or(|since| generation.term == term && now.uptime.saturating_sub(since) < grace)
        });
        loop {
            let oldest = self.generations.first().map(|generation| generation.sequence).unwrap_or_default();
            self.ladder.retain(|rung| rung.delta.to > oldest && rung.delta.term == term);
            if self.ladder.len() <= self.pieces_max() || self.generations.len() < 2 {
                break;
            }
            self.generations.remove(0);
        }
    }

    fn seal_manifest(&mut self, now: Now) -> Result<(), PublishError> {
        let Some(current) = self.generations.last().cloned() else { return Ok(()) };
        let issued_at = self.clock.take(now);
        let manifest = Manifest {
            term: self.book.term(),
            epoch: current.epoch,
            sequence: self.cut_to,
            issued_at,
            next_update: self.next_update(issued_at),
            horizon: self.realm.horizon(issued_at.floor()),
            index: current.index,
            ladder: self
                .ladder
                .iter()
                .map(|rung| Piece { from: rung.delta.from, to: rung.delta.to, bytes: rung.bytes, digest: rung.digest })
                .collect(),
        };
        let proven = proof::manifest(wire::encode_manifest(&manifest)?, &manifest)?;
        self.put(Address::Manifest, proven.seal(&self.realm.id, &[&self.signer.content]));
        self.manifest = Some((manifest, now.uptime));
        Ok(())
    }

    /// A manifest lives for three heartbeats: two may be lost.
    fn next_update(&self, issued_at: UnixMillis) -> UnixTime {
        issued_at.plus(3 * self.settings.heartbeat).floor().plus(1)
    }

    /// Whether an address is part of what should stand now.
    fn is_current(&self, address: &Address) -> bool {
        match address {
            // Every version of the keys stays for good.
            Address::Keys | Address::KeysAt { .. } | Address::IssuerKeys | Address::Manifest => true,
            Address::Live | Address::Answer | Address::Delivery => false,
            Address::Ladder { from, to } => {
                self.ladder.iter().any(|rung| rung.delta.from == *from && rung.delta.to == *to)
            }
            Address::Index { epoch } | Address::Chunk { epoch, .. } => {
                self.generations.iter().any(|generation| generation.epoch == *epoch)
            }
        }
    }

    fn mark_superseded(&mut self, now: Now) {
        let current: Vec<Address> = self.shelf.keys().filter(|address| self.is_current(address)).copied().collect();
        for (address, shelved) in &mut self.shelf {
            if current.binary_search(address).is_ok() {
                shelved.superseded = None;
            } else {
                shelved.superseded.get_or_insert(now.uptime);
            }
        }
    }

    fn expired_objects(&self, now: Now) -> impl Iterator<Item = Address> {
        let grace = self.settings.grace;
        self.shelf
            .iter()
            .filter(move |(_, shelved)| {
                shelved.superseded.is_some_and(|since| now.uptime.saturating_sub(since) >= grace)
            })
            .map(|(address, _)| *address)
    }

    /// The order that makes a crash harmless: keys, chunks, index, ladder, all read back, then the
    /// manifest; at last what nobody needs any more.
    fn publication(&self, expired: &[Address]) -> Vec<Step> {
        let rank = |address: &Address| match address {
            Address::Keys | Address::KeysAt { .. } | Address::IssuerKeys => 0,
            Address::Chunk { .. } => 1,
            Address::Index { .. } => 2,
            Address::Ladder { .. } => 3,
            Address::Manifest | Address::Live | Address::Answer | Address::Delivery => 4,
        };
        let mut missing: Vec<(&Address, &Shelved)> =
            self.shelf.iter().filter(|(_, shelved)| !shelved.retained && shelved.superseded.is_none()).collect();
        missing.sort_by_key(|(address, _)| rank(address));
        let mut steps = Vec::new();
        let mut objects = Vec::new();
        for (address, shelved) in missing {
            if *address == Address::Manifest && !objects.is_empty() {
                steps.push(Step::ReadBack { objects: std::mem::take(&mut objects) });
            }
            steps.push(Step::Retain { address: *address, bytes: shelved.bytes.clone() });
            objects.push((*address, Digest::of(&shelved.bytes)));
        }
        steps.extend(expired.iter().map(|&address| Step::Clear { address }));
        steps
    }

    /// Everything of a plan was done.
    pub fn done(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if let Step::Retain { address, bytes } = step
                && let Some(shelved) = self.shelf.get_mut(address)
                && shelved.bytes == *bytes
            {
                shelved.retained = true;
                if *address == Address::Manifest {
                    self.committed.clone_from(&self.manifest);
                }
            }
        }
        for address in &plan.deletes {
            if let Some(address) = Address::parse(address) {
                self.shelf.remove(&address);
            }
        }
    }

    /// The steps of a plan were not all done: its objects are published again with the next.
    pub const fn failed(&mut self) {
        self.stale = true;
    }

    /// The objects of a plan could not be stored, so none of it was sent: they are stored with the next.
    pub fn not_stored(&mut self, plan: &Plan) {
        for object in &plan.puts {
            if let Some(shelved) = Address::parse(&object.address).and_then(|address| self.shelf.get_mut(&address))
                && shelved.bytes == object.bytes
            {
                shelved.stored = false;
            }
        }
        self.stale = true;
    }

    /// A manifest that says what the last one said, only later, if that is due: for as long as nothing new can be
    /// stored. It needs no storing itself, since nothing of what it says is news; that no later one is dated before it
    /// after a restart, [`Publisher::has_seen`] sees to.
    pub fn plan_heartbeat(&mut self, now: Now) -> Result<Plan, PublishError> {
        let Some((last, sent)) = self.committed.clone() else { return Ok(Plan::default()) };
        if last.term != self.book.term() || now.uptime.saturating_sub(sent) < self.settings.heartbeat {
            return Ok(Plan::default());
        }
        let issued_at = self.clock.take(now);
        let manifest = Manifest {
            issued_at,
            next_update: self.next_update(issued_at),
            horizon: self.realm.horizon(issued_at.floor()),
            ..last
        };
        let proven = proof::manifest(wire::encode_manifest(&manifest)?, &manifest)?;
        let bytes = proven.seal(&self.realm.id, &[&self.signer.content]);
        self.committed = Some((manifest, now.uptime));
        let steps = vec![Step::Retain { address: Address::Manifest, bytes }];
        Ok(Plan { puts: Vec::new(), deletes: Vec::new(), steps })
    }

    /// A manifest of ours stands at the broker: nothing is dated before it, and no epoch is numbered like one that was
    /// published.
    pub fn has_seen(&mut self, manifest: &Manifest) {
        self.clock.raise(manifest.issued_at);
        self.highest_epoch = self.highest_epoch.max(manifest.epoch);
    }

    /// What was found at the broker; whatever differs is published again with the next plan. Returns what the broker
    /// had acknowledged and does not hold.
    pub fn reconcile(&mut self, found: impl IntoIterator<Item = (Address, Option<Digest>)>) -> Vec<Address> {
        let mut lost = Vec::new();
        for (address, digest) in found {
            if let Some(shelved) = self.shelf.get_mut(&address) {
                let stands = digest == Some(Digest::of(&shelved.bytes));
                if shelved.retained && !stands {
                    lost.push(address);
                }
                shelved.retained = stands;
                self.stale |= !stands && shelved.superseded.is_none();
            }
        }
        lost
    }

    /// Everything that should stand at the broker now, with its digest.
    #[must_use]
    pub fn standing(&self) -> Vec<(Address, Digest)> {
        let current =
            self.shelf.iter().filter(|(address, shelved)| shelved.superseded.is_none() && self.in_catalog(address));
        current.map(|(address, shelved)| (*address, Digest::of(&shelved.bytes))).collect()
    }

    /// Whether the manifest refers to it, directly or not. A delta cut since does not stand yet.
    fn in_catalog(&self, address: &Address) -> bool {
        match address {
            Address::Ladder { to, .. } => self.manifest.as_ref().is_some_and(|(manifest, _)| *to <= manifest.sequence),
            Address::Keys
            | Address::KeysAt { .. }
            | Address::IssuerKeys
            | Address::Manifest
            | Address::Live
            | Address::Answer
            | Address::Delivery
            | Address::Index { .. }
            | Address::Chunk { .. } => true,
        }
    }

    /// The uptime at which to plan again if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let Some((_, sealed)) = self.manifest else { return Duration::ZERO };
        if self.awaits_epoch() {
            return Duration::MAX;
        }
        let next = if self.stale { self.settings.manifest_every } else { self.settings.heartbeat };
        sealed + next
    }

    /// Position of the manifest; `None` before the first.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.manifest.as_ref().map(|(manifest, _)| Position { epoch: manifest.epoch, sequence: manifest.sequence })
    }

    /// The manifest that was sealed last.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref().map(|(manifest, _)| manifest)
    }

    /// When the manifest was sealed that the broker acknowledged last.
    #[must_use]
    pub fn committed_at(&self) -> Option<UnixMillis> {
        self.committed.as_ref().map(|(manifest, _)| manifest.issued_at)
    }

    /// The realm's state.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Reign of the ledger.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.book.term()
    }

    /// The time that an answer given from here on may name. To be read before the ledger is: what it
    /// says by then was all there was at that time.
    pub fn time_of_answers(&mut self, now: Now) -> UnixMillis {
        self.clock.read(now)
    }

    /// The sealed answer to a question; `None` before anything is published, and while the ledger holds
    /// entries that no delta carries yet: an answer never knows more than what is stored for devices.
    pub fn answer(&self, question: &Question, at: UnixMillis) -> Result<Option<Vec<u8>>, PublishError> {
        if self.manifest.is_none() || self.cut_to != self.book.sequence() {
            return Ok(None);
        }
        let standing = answers::Standing {
            term: self.book.term(),
            sequence: self.book.sequence(),
            at,
            horizon: self.realm.horizon(at.floor()),
        };
        Ok(Some(answers::answer(&self.book, question, standing, &self.realm.id, &self.signer.content)?))
    }

    /// What is wrong with the clock, if anything.
    #[must_use]
    pub const fn clock_alarm(&self) -> Option<ClockAlarm> {
        self.clock.alarm()
    }

    /// Bytes of the shelved objects by what they are: snapshot (list and cutoffs), filter, ladder.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes { delta: self.last_delta_bytes, ..Sizes::default() };
        let newest = self.generations.last().map(|generation| generation.epoch);
        for (address, shelved) in &self.shelf {
            let bytes = shelved.bytes.len() as u64;
            match address {
                Address::Chunk { epoch, artifact: Artifact::Filter, .. } if Some(*epoch) == newest => {
                    sizes.filter += bytes;
                }
                Address::Chunk { epoch, artifact: Artifact::Exceptions, .. } if Some(*epoch) == newest => {
                    sizes.exceptions += bytes;
                }
                Address::Chunk { epoch, .. } | Address::Index { epoch } if Some(*epoch) == newest => {
                    sizes.snapshot += bytes;
                }
                Address::Ladder { .. } if shelved.superseded.is_none() => sizes.ladder += bytes,
                Address::Manifest => sizes.manifest += bytes,
                Address::Keys
                | Address::KeysAt { .. }
                | Address::IssuerKeys
                | Address::Answer
                | Address::Delivery
                | Address::Live
                | Address::Ladder { .. }
                | Address::Index { .. }
                | Address::Chunk { .. } => {}
            }
        }
        sizes
    }
}

/// Bytes on the wire, sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Index, list and cutoffs of the newest epoch: what an exact device fetches.
    pub snapshot: u64,
    /// The filter of the newest epoch.
    pub filter: u64,
    /// The exceptions of the newest epoch.
    pub exceptions: u64,
    /// The catch-up deltas.
    pub ladder: u64,
    /// The manifest.
    pub manifest: u64,
    /// The delta that was cut last.
    pub delta: u64,
}

/// How good a filter is, as it is and not as it was meant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FilterHealth {
    /// Share of its bits that are set.
    pub fill: f64,
    /// Rate of false positives that these bits give.
    pub rate: f64,
    /// The rate it was built for; `None` if it was built before the start.
    pub meant: Option<f64>,
}

/// One delta that says what two adjacent ones say; where both speak of a key, the later one counts.
#[must_use]
pub fn merge(first: &Delta, second: &Delta) -> Delta {
    fn without<T: Ord + Copy>(earlier: &[T], a: &[T], b: &[T]) -> Vec<T> {
        earlier.iter().filter(|key| a.binary_search(key).is_err() && b.binary_search(key).is_err()).copied().collect()
    }
    fn union<T: Ord + Copy>(mut kept: Vec<T>, later: &[T]) -> Vec<T> {
        kept.extend_from_slice(later);
        kept.sort_unstable();
        kept
    }
    let spoken: Vec<_> = second.cutoffs.iter().map(|cutoff| cutoff.scope).collect();
    let kept_cutoffs = first.cutoffs.iter().filter(|cutoff| {
        spoken.binary_search(&cutoff.scope).is_err() && second.lifts.binary_search(&cutoff.scope).is_err()
    });
    Delta {
        term: second.term,
        from: first.from,
        to: second.to,
        issued_at: second.issued_at,
        horizon: second.horizon.max(first.horizon),
        revoked: union(without(&first.revoked, &second.revoked, &second.reinstated), &second.revoked),
        reinstated: union(without(&first.reinstated, &second.revoked, &second.reinstated), &second.reinstated),
        cutoffs: union(kept_cutoffs.copied().collect(), &second.cutoffs),
        lifts: union(without(&first.lifts, &spoken, &second.lifts), &second.lifts),
    }
}

/// Revocations in a base.
fn entries_of(index: &Index) -> u64 {
    let list = index.artifacts.iter().find(|summary| summary.artifact == Artifact::List);
    list.map_or(0, |summary| summary.entries)
}

/// Bytes that a device with exact answers fetches: the cutoffs, and the list or, if smaller, filter and exceptions.
fn snapshot_bytes(index: &Index) -> usize {
    let bytes =
        |artifact| index.artifacts.iter().find(|summary| summary.artifact == artifact).map(|summary| summary.bytes);
    let list = bytes(Artifact::List).unwrap_or(0);
    let covered = bytes(Artifact::Exceptions).map(|exceptions| exceptions + bytes(Artifact::Filter).unwrap_or(0));
    (bytes(Artifact::Cutoffs).unwrap_or(0) + covered.map_or(list, |covered| covered.min(list))) as usize
}

/// The keys that may say something new.
fn content_keys(keys: &Keys) -> impl Iterator<Item = PublicKey> {
    keys.publishers.iter().filter(|publisher| publisher.role == Role::Content as u8).map(|publisher| publisher.key)
}

/// Opens an object of our own that was stored with the ledger.
fn decode<T>(
    address: Address,
    bytes: &[u8],
    realm: revocast_core::RealmId,
    kind: Kind,
    decode: impl FnOnce(&[u8]) -> Result<T, WireError>,
) -> Result<T, PublishError> {
    Sealed::expect(bytes, &realm, kind)
        .and_then(|sealed| decode(sealed.unverified_body()).map_err(Refusal::from))
        .map_err(|cause| PublishError::DamagedObject { address: address.to_string(), cause })
}

#[cfg(test)]
mod tests;
