//! What an epoch was built with, as a device holds it: immutable, in one of several profiles.
//!
//! What lives here: what each profile holds and costs, how it is built while its artifacts stream in, and what it says
//! about a key. What came since, and whether it is fresh, is the set's business (`set`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::clock::UnixTime;
use crate::exact::{ExactList, ExactListBuilder};
use crate::exceptions::{ExceptionCut, Exceptions};
use crate::filter::{FilterBuf, FilterParams, GeometryError, LINE_BYTES, Membership, Salt};
use crate::position::{Epoch, Sequence, Term};
use crate::refusal::Refusal;
use crate::rice;
use crate::seal::{Digest, Digester};
use crate::token::{Fingerprint, Width};
use crate::update::{Artifact, ArtifactSummary, Index};
use crate::wire::{EXCEPTIONS_HEAD_BYTES, decode_exceptions_head};

/// What a device holds of a base, by its memory budget.
///
/// The bits are for a million revocations at the publisher's defaults; the README has a table from a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Profile {
    /// The published filter alone; a match is [`Verdict::Suspect`](crate::Verdict::Suspect).
    Filter = 1,
    /// The list, cut to 40 bits, alone: about 22 bits a revocation. A match is `Suspect`, for one good token in a
    /// million; some hundred nanoseconds a question.
    List = 2,
    /// The list and a filter built from it: about 41 bits a revocation; exact and fast.
    Exact = 3,
    /// The published filter and its exceptions: exact for registered tokens. Needs a publisher that knows them.
    Covered = 4,
    /// The filter, folded once to half its size: precision is lost, never recall.
    Folded = 5,
    /// The filter, folded twice.
    FoldedTwice = 6,
}

impl Profile {
    /// All profiles, the one that answers best first.
    pub const BEST_FIRST: [Self; 6] =
        [Self::Exact, Self::List, Self::Covered, Self::Filter, Self::Folded, Self::FoldedTwice];

    /// Reads the number used on the wire and on disk.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Filter),
            2 => Some(Self::List),
            3 => Some(Self::Exact),
            4 => Some(Self::Covered),
            5 => Some(Self::Folded),
            6 => Some(Self::FoldedTwice),
            _ => None,
        }
    }

    /// The name used on command lines and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::List => "list",
            Self::Exact => "exact",
            Self::Covered => "covered",
            Self::Folded => "folded",
            Self::FoldedTwice => "folded-twice",
        }
    }

    /// The artifacts this profile fetches, beside the cutoffs.
    #[must_use]
    pub const fn artifacts(self) -> &'static [Artifact] {
        match self {
            Self::List | Self::Exact => &[Artifact::List],
            Self::Covered => &[Artifact::Filter, Artifact::Exceptions],
            Self::Filter | Self::Folded | Self::FoldedTwice => &[Artifact::Filter],
        }
    }

    /// Whether it is a published filter, into which later revocations can be folded.
    pub(crate) const fn is_filter(self) -> bool {
        match self {
            Self::List | Self::Exact => false,
            Self::Filter | Self::Covered | Self::Folded | Self::FoldedTwice => true,
        }
    }

    /// How often the published filter is folded.
    const fn folds(self) -> u8 {
        match self {
            Self::Filter | Self::List | Self::Exact | Self::Covered => 0,
            Self::Folded => 1,
            Self::FoldedTwice => 2,
        }
    }

    /// Bytes that the base of this index takes in this profile, or a few more; `None` if the index does not offer it.
    #[must_use]
    pub fn size_bytes(self, index: &Index, width: Width) -> Option<u64> {
        let of = |artifact| index.artifacts.iter().find(|summary| summary.artifact == artifact);
        match self {
            Self::Exact => {
                let entries = of(Artifact::List)?.entries;
                let own = own_filter(entries, index.filter.salt()).ok()?;
                Some(own.size_bytes() + ExactList::<Vec<u8>>::size_bytes_of(entries, width)?)
            }
            Self::List => ExactList::<Vec<u8>>::size_bytes_of(of(Artifact::List)?.entries, list_width(width)),
            Self::Covered => {
                let exceptions = of(Artifact::Exceptions)?;
                // In memory an exception takes up to two and a half bits more than its code.
                let more = exceptions.entries.saturating_mul(5) / 16 + 64;
                Some(of(Artifact::Filter)?.bytes + exceptions.bytes + more)
            }
            Self::Filter => Some(of(Artifact::Filter)?.bytes),
            Self::Folded => Some(of(Artifact::Filter)?.bytes / 2),
            Self::FoldedTwice => Some(of(Artifact::Filter)?.bytes / 4),
        }
    }
}

/// The width to which the list profile cuts.
fn list_width(realm: Width) -> Width {
    realm.min(Width::W40)
}

/// The filter that the exact profile builds for itself has 85 bits for each eight revocations: a tenth more than a
/// rate of 1e-2 takes, and with it the profile stays below 41 bits.
const OWN_FILTER_BITS_OF_EIGHT: u64 = 85;

/// Probes in each line of that filter.
const OWN_FILTER_PROBES: u8 = 3;

/// Salt and geometry of that filter.
fn own_filter(entries: u64, salt: Salt) -> Result<FilterParams, GeometryError> {
    let four_blocks = 8 * 8 * 4 * LINE_BYTES as u64;
    let blocks = (entries * OWN_FILTER_BITS_OF_EIGHT).div_ceil(four_blocks).max(1) * 4;
    FilterParams::new(salt, u32::try_from(blocks).unwrap_or(u32::MAX), OWN_FILTER_PROBES)
}

/// What an epoch was built with, immutable.
#[derive(Clone, Debug)]
pub struct Base {
    term: Term,
    epoch: Epoch,
    sequence: Sequence,
    covered_until: UnixTime,
    lookup: Lookup,
}

/// How a base answers.
#[derive(Clone, Debug)]
enum Lookup {
    Approximate(Approximate),
    List(ExactList),
    Exact { filter: Arc<FilterBuf>, list: ExactList },
}

/// A published filter, as it came or folded.
#[derive(Clone, Debug)]
struct Approximate {
    filter: Arc<FilterBuf>,
    /// By the bits that are set.
    rate: f64,
    /// The rate that this size was meant to give.
    rate_meant: f64,
    /// Only beside the filter as it was published (design rule 17).
    exceptions: Option<Arc<Exceptions>>,
    /// Later revocations up to here were folded in.
    folded_through: Option<Sequence>,
}

/// What a base says about one key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum InBase {
    /// Not revoked as of the base, for sure.
    Absent {
        /// What says so.
        by: Witness,
    },
    /// Revoked as of the base.
    Certain {
        /// What says so.
        by: Witness,
    },
    /// One or the other.
    Possible { false_positive_rate: f64, by: Witness },
}

/// What gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// The horizon up to which everything is expired.
    Horizon,
    /// A cutoff.
    Cutoffs,
    /// What came since the base, or an answer to a question.
    Recent,
    /// The filter.
    Filter,
    /// The exact list.
    List,
    /// The exceptions.
    Exceptions,
    /// Filter and exceptions together: the filter matches, the token is covered and no exception.
    Coverage,
    /// Nothing: there is no state to answer from.
    Nothing,
}

impl Witness {
    /// The name used in logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Horizon => "horizon",
            Self::Cutoffs => "cutoffs",
            Self::Recent => "recent",
            Self::Filter => "filter",
            Self::List => "list",
            Self::Exceptions => "exceptions",
            Self::Coverage => "coverage",
            Self::Nothing => "nothing",
        }
    }
}

impl Base {
    /// Builds what `profile` holds from artifacts that are whole.
    ///
    /// The bytes were verified against `index` before.
    ///
    /// # Complexity
    ///
    /// Linear in the number of entries.
    pub fn build(
        profile: Profile,
        index: &Index,
        width: Width,
        artifacts: &[(Artifact, &[u8])],
    ) -> Result<Self, Refusal> {
        let mut builder = BaseBuilder::new(profile, index, width)?;
        for (artifact, bytes) in artifacts {
            builder.absorb(*artifact, 0, bytes)?;
        }
        builder.finish()
    }

    /// Reign of the ledger it was built in.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Which epoch it is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// It holds everything up to here.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Tokens issued before this are told apart exactly, where there are exceptions; 1970 where not.
    #[must_use]
    pub const fn covered_until(&self) -> UnixTime {
        match &self.lookup {
            Lookup::Approximate(Approximate { exceptions: Some(_), .. }) => self.covered_until,
            Lookup::Approximate(_) | Lookup::List(_) | Lookup::Exact { .. } => UnixTime::from_secs(0),
        }
    }

    /// What it holds.
    #[must_use]
    pub fn profile(&self) -> Profile {
        match &self.lookup {
            Lookup::List(_) => Profile::List,
            Lookup::Exact { .. } => Profile::Exact,
            Lookup::Approximate(Approximate { exceptions: Some(_), .. }) => Profile::Covered,
            Lookup::Approximate(Approximate { filter, .. }) => match filter.params().folds() {
                0 => Profile::Filter,
                1 => Profile::Folded,
                _ => Profile::FoldedTwice,
            },
        }
    }

    /// Whether it may hold a key: `false` is certain. For whoever checks a base before publishing it.
    #[must_use]
    pub fn may_hold(&self, fingerprint: Fingerprint, width: Width) -> bool {
        !matches!(self.query(fingerprint, width, None), InBase::Absent { .. })
    }

    /// The rate of false positives by the filter's measured fill; `None` without a published filter.
    #[must_use]
    pub const fn false_positive_rate(&self) -> Option<f64> {
        match &self.lookup {
            Lookup::Approximate(approximate) => Some(approximate.rate),
            Lookup::List(_) | Lookup::Exact { .. } => None,
        }
    }

    /// Whether so much was folded in that matches are twice as frequent as was meant: time for a new base.
    #[must_use]
    pub(crate) fn is_worn(&self) -> bool {
        match &self.lookup {
            Lookup::Approximate(held) => held.folded_through.is_some() && held.rate > 2.0 * held.rate_meant,
            Lookup::List(_) | Lookup::Exact { .. } => false,
        }
    }

    /// Later revocations up to here were folded into this device's copy.
    #[must_use]
    pub const fn folded_through(&self) -> Option<Sequence> {
        match &self.lookup {
            Lookup::Approximate(approximate) => approximate.folded_through,
            Lookup::List(_) | Lookup::Exact { .. } => None,
        }
    }

    /// Bytes it takes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match &self.lookup {
            Lookup::Approximate(Approximate { filter, exceptions, .. }) => {
                filter.params().size_bytes() + exceptions.as_ref().map_or(0, |exceptions| exceptions.size_bytes())
            }
            Lookup::List(list) => list.size_bytes(),
            Lookup::Exact { filter, list } => filter.params().size_bytes() + list.size_bytes(),
        }
    }

    /// The filter that every key of the base is in, if this profile has one.
    pub(crate) const fn filter(&self) -> Option<&Arc<FilterBuf>> {
        match &self.lookup {
            Lookup::Approximate(Approximate { filter, .. }) | Lookup::Exact { filter, .. } => Some(filter),
            Lookup::List(_) => None,
        }
    }

    /// Whether later revocations can be folded in: into a list nothing can be.
    pub(crate) const fn can_fold(&self) -> bool {
        matches!(self.lookup, Lookup::Approximate(_))
    }

    /// The same base with these later revocations, all up to `through`, in its filter. The exceptions go first: they
    /// are true of the filter as it was published (design rule 7). `None` where there is no filter to fold into.
    pub(crate) fn with_folded(
        &self,
        fingerprints: impl Iterator<Item = Fingerprint>,
        through: Sequence,
    ) -> Option<Self> {
        let Lookup::Approximate(held) = &self.lookup else { return None };
        let mut filter = (*held.filter).clone();
        fingerprints.for_each(|fingerprint| filter.insert(fingerprint));
        let lookup = Lookup::Approximate(Approximate {
            rate: filter.false_positive_rate(),
            rate_meant: held.rate_meant,
            filter: Arc::new(filter),
            exceptions: None,
            folded_through: held.folded_through.max(Some(through)),
        });
        Some(Self { lookup, ..*self })
    }

    /// What it says about a key of a token issued at `iat`.
    #[inline]
    pub(crate) fn query(&self, fingerprint: Fingerprint, width: Width, iat: Option<UnixTime>) -> InBase {
        match &self.lookup {
            Lookup::Exact { filter, list } => match filter.query(fingerprint) {
                Membership::Absent => InBase::Absent { by: Witness::Filter },
                Membership::Possible => Self::listed(list, fingerprint, width),
            },
            Lookup::List(list) => Self::listed(list, fingerprint, width),
            Lookup::Approximate(held) => match (held.filter.query(fingerprint), &held.exceptions) {
                (Membership::Absent, _) => InBase::Absent { by: Witness::Filter },
                (Membership::Possible, Some(exceptions)) if exceptions.contains(fingerprint) => {
                    InBase::Absent { by: Witness::Exceptions }
                }
                // Rule 17: it was registered, so it would be excepted were it not revoked.
                (Membership::Possible, Some(_)) if iat.is_some_and(|iat| iat < self.covered_until) => {
                    InBase::Certain { by: Witness::Coverage }
                }
                (Membership::Possible, _) => InBase::Possible { false_positive_rate: held.rate, by: Witness::Filter },
            },
        }
    }

    /// A match in a list of fewer than 48 bits is too often wrong to be called certain.
    fn listed(list: &ExactList, fingerprint: Fingerprint, width: Width) -> InBase {
        let held = list.width();
        if !list.contains(fingerprint.cut(width, held)) {
            InBase::Absent { by: Witness::List }
        } else if held.is_exact() {
            InBase::Certain { by: Witness::List }
        } else {
            let false_positive_rate = list.len() as f64 / (1_u64 << held.bits()) as f64;
            InBase::Possible { false_positive_rate, by: Witness::List }
        }
    }

    /// What of it is written down: the filter that cannot be built again, the list or the exceptions.
    pub(crate) fn stored(&self) -> StoredBase<'_> {
        let empty: &[u8] = &[];
        match &self.lookup {
            Lookup::Exact { list, .. } | Lookup::List(list) => {
                StoredBase { filter: None, list: list.as_bytes(), draw: 0, folded_through: None }
            }
            Lookup::Approximate(held) => StoredBase {
                filter: Some(&held.filter),
                list: held.exceptions.as_ref().map_or(empty, |exceptions| exceptions.list.as_bytes()),
                draw: held.exceptions.as_ref().map_or(0, |exceptions| exceptions.cut.draw()),
                folded_through: held.folded_through,
            },
        }
    }

    /// Goes on from what was written down; the bytes are those that were, or this refuses.
    pub(crate) fn restore(
        profile: Profile,
        index: &Index,
        width: Width,
        filter: &[u8],
        list: &[u8],
        (draw, folded_through): (u32, Option<Sequence>),
    ) -> Result<Self, Refusal> {
        let damaged = |what| Refusal::DamagedState { what };
        let read_list = || ExactList::new(list.to_vec()).map_err(|_| damaged("a list that is none"));
        let lookup = match profile {
            Profile::Exact => {
                let list = read_list().and_then(|list| of_width(list, width))?;
                let params =
                    own_filter(list.len(), index.filter.salt()).map_err(|_| damaged("a list too large to filter"))?;
                let mut filter = FilterBuf::new(params);
                list.iter().for_each(|fingerprint| filter.insert(fingerprint));
                Lookup::Exact { filter: Arc::new(filter), list }
            }
            Profile::List => Lookup::List(read_list().and_then(|list| of_width(list, list_width(width)))?),
            Profile::Filter | Profile::Covered | Profile::Folded | Profile::FoldedTwice => {
                let params = folded_params(index.filter, profile.folds())
                    .ok_or_else(|| damaged("a filter that does not fold"))?;
                let filter = FilterBuf::from_lines(params, filter).map_err(|_| damaged("a filter of another size"))?;
                let exceptions = match profile {
                    Profile::Covered => {
                        let list = read_list()?;
                        let cut = ExceptionCut::new(index.filter.salt(), draw, list.width());
                        Some(Arc::new(Exceptions { cut, list }))
                    }
                    Profile::Filter | Profile::List | Profile::Exact | Profile::Folded | Profile::FoldedTwice => None,
                };
                let entries = summary(index, Artifact::Filter).map_or(0, |summary| summary.entries);
                Lookup::Approximate(Approximate::new(entries, filter, exceptions, folded_through))
            }
        };
        Ok(Self::new(index, lookup))
    }

    const fn new(index: &Index, lookup: Lookup) -> Self {
        let (term, epoch, sequence) = (index.term, index.epoch, index.sequence);
        Self { term, epoch, sequence, covered_until: index.covered_until, lookup }
    }
}

impl Approximate {
    fn new(
        entries: u64,
        filter: FilterBuf,
        exceptions: Option<Arc<Exceptions>>,
        folded_through: Option<Sequence>,
    ) -> Self {
        Self {
            rate: filter.false_positive_rate(),
            rate_meant: filter.params().false_positive_rate(entries),
            filter: Arc::new(filter),
            exceptions,
            folded_through,
        }
    }
}

/// What of a base is written down.
pub(crate) struct StoredBase<'a> {
    pub(crate) filter: Option<&'a FilterBuf>,
    pub(crate) list: &'a [u8],
    pub(crate) draw: u32,
    pub(crate) folded_through: Option<Sequence>,
}

fn of_width(list: ExactList, width: Width) -> Result<ExactList, Refusal> {
    if list.width() == width { Ok(list) } else { Err(Refusal::DamagedState { what: "a list of another width" }) }
}

fn folded_params(params: FilterParams, folds: u8) -> Option<FilterParams> {
    (0..folds).try_fold(params, |params, _| params.folded())
}

fn summary(index: &Index, artifact: Artifact) -> Option<&ArtifactSummary> {
    index.artifacts.iter().find(|summary| summary.artifact == artifact)
}

/// Builds a base while its artifacts stream in, in little more than the memory it will take.
#[derive(Debug)]
pub struct BaseBuilder {
    term: Term,
    epoch: Epoch,
    sequence: Sequence,
    covered_until: UnixTime,
    entries: u64,
    salt: Salt,
    intake: Intake,
}

/// What is being built.
#[derive(Debug)]
enum Intake {
    Approximate { filter: FilterBuf, exceptions: Option<ExceptionsIntake> },
    List { list: ListIntake, own: Option<FilterBuf> },
}

/// A coded list on its way in.
#[derive(Debug)]
struct ListIntake {
    stream: rice::Stream,
    list: ExactListBuilder,
    from: Width,
    to: Width,
    taken: u64,
}

/// Coded exceptions on their way in.
#[derive(Debug)]
struct ExceptionsIntake {
    summary_entries: u64,
    summary_bytes: u64,
    head: Vec<u8>,
    rest: Option<(Digest, ExceptionCut, ListIntake)>,
}

const BAD_LIST: Refusal = Refusal::Malformed { what: "the list's bytes" };
const BAD_EXCEPTIONS: Refusal = Refusal::Malformed { what: "the bytes of the exceptions" };

impl BaseBuilder {
    /// Makes room for what `profile` holds of this index, which must be within the device's means.
    pub fn new(profile: Profile, index: &Index, width: Width) -> Result<Self, Refusal> {
        let named = |artifact| {
            summary(index, artifact)
                .ok_or(Refusal::Malformed { what: "an index without an artifact that this profile needs" })
        };
        let mut entries = 0;
        let intake = match profile {
            Profile::Exact | Profile::List => {
                let summary = named(Artifact::List)?;
                let to = if profile == Profile::List { list_width(width) } else { width };
                let own = match profile {
                    Profile::Exact => Some(
                        own_filter(summary.entries, index.filter.salt())
                            .map_err(|_| Refusal::Malformed { what: "a base too large to filter" })?,
                    ),
                    Profile::Filter | Profile::List | Profile::Covered | Profile::Folded | Profile::FoldedTwice => None,
                };
                // The list first: it compares the number of entries with the bytes they come in.
                let list = ListIntake::new(summary.entries, summary.bytes, width, to).ok_or(BAD_LIST)?;
                Intake::List { list, own: own.map(FilterBuf::new) }
            }
            Profile::Filter | Profile::Covered | Profile::Folded | Profile::FoldedTwice => {
                let summary = named(Artifact::Filter)?;
                // Before memory is taken: the geometry must be the one of the bytes to come.
                if summary.bytes != index.filter.size_bytes() {
                    return Err(Refusal::MixAndMatch { what: "the filter" });
                }
                entries = summary.entries;
                let params = folded_params(index.filter, profile.folds())
                    .ok_or(Refusal::Malformed { what: "a filter that does not fold" })?;
                let exceptions = match profile {
                    Profile::Covered => {
                        let summary = named(Artifact::Exceptions)?;
                        Some(ExceptionsIntake {
                            summary_entries: summary.entries,
                            summary_bytes: summary.bytes,
                            head: Vec::new(),
                            rest: None,
                        })
                    }
                    Profile::Filter | Profile::List | Profile::Exact | Profile::Folded | Profile::FoldedTwice => None,
                };
                Intake::Approximate { filter: FilterBuf::new(params), exceptions }
            }
        };
        Ok(Self {
            term: index.term,
            epoch: index.epoch,
            sequence: index.sequence,
            covered_until: index.covered_until,
            entries,
            salt: index.filter.salt(),
            intake,
        })
    }

    /// Whether the slices of this artifact must come in order. Those of a filter need not.
    #[must_use]
    pub const fn is_ordered(artifact: Artifact) -> bool {
        match artifact {
            Artifact::Filter => false,
            Artifact::List | Artifact::Exceptions | Artifact::Cutoffs => true,
        }
    }

    /// Takes a slice of an artifact that begins at `offset`.
    pub fn absorb(&mut self, artifact: Artifact, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        match (artifact, &mut self.intake) {
            (Artifact::Filter, Intake::Approximate { filter, .. }) => {
                filter.absorb(offset, bytes).map_err(|_| Refusal::Malformed { what: "the filter's bytes" })
            }
            (Artifact::List, Intake::List { list, own }) => list
                .absorb(offset, bytes, |fingerprint| {
                    if let Some(own) = own {
                        own.insert(fingerprint);
                    }
                })
                .ok_or(BAD_LIST),
            (Artifact::Exceptions, Intake::Approximate { exceptions: Some(exceptions), .. }) => {
                exceptions.absorb(self.salt, offset, bytes).ok_or(BAD_EXCEPTIONS)
            }
            // Not held in this profile.
            (Artifact::Filter | Artifact::List | Artifact::Exceptions | Artifact::Cutoffs, _) => Ok(()),
        }
    }

    /// Ends the base; all that the index announced must have come.
    pub fn finish(self) -> Result<Base, Refusal> {
        let lookup = match self.intake {
            Intake::List { list, own } => {
                let list = list.finish().ok_or(BAD_LIST)?;
                match own {
                    Some(own) => Lookup::Exact { filter: Arc::new(own), list },
                    None => Lookup::List(list),
                }
            }
            Intake::Approximate { filter, exceptions } => {
                let exceptions = match exceptions {
                    Some(intake) => Some(Arc::new(intake.finish(&filter)?)),
                    None => None,
                };
                Lookup::Approximate(Approximate::new(self.entries, filter, exceptions, None))
            }
        };
        let (term, epoch, sequence) = (self.term, self.epoch, self.sequence);
        Ok(Base { term, epoch, sequence, covered_until: self.covered_until, lookup })
    }
}

impl ListIntake {
    fn new(entries: u64, bytes: u64, from: Width, to: Width) -> Option<Self> {
        let stream = rice::Stream::new(entries, bytes, from).ok()?;
        Some(Self { stream, list: ExactListBuilder::new(entries, to).ok()?, from, to, taken: 0 })
    }

    fn absorb(&mut self, offset: u64, bytes: &[u8], mut each: impl FnMut(Fingerprint)) -> Option<()> {
        if offset != self.taken {
            return None;
        }
        self.taken += bytes.len() as u64;
        let Self { stream, list, from, to, .. } = self;
        let mut held = true;
        let read = stream.push(bytes, |fingerprint| {
            held &= list.push_cut(fingerprint.cut(*from, *to)).is_ok();
            each(fingerprint);
        });
        (held && read.is_ok()).then_some(())
    }

    fn finish(self) -> Option<ExactList> {
        self.stream.finish().ok()?;
        self.list.finish().ok()
    }
}

impl ExceptionsIntake {
    fn absorb(&mut self, salt: Salt, offset: u64, bytes: &[u8]) -> Option<()> {
        let mut bytes = bytes;
        let mut offset = offset;
        if self.rest.is_none() {
            if offset != self.head.len() as u64 {
                return None;
            }
            let (head, rest) = bytes.split_at_checked(EXCEPTIONS_HEAD_BYTES - self.head.len()).unwrap_or((bytes, &[]));
            self.head.extend_from_slice(head);
            let Some(head) = self.head.first_chunk() else { return Some(()) };
            let (filter, cut) = decode_exceptions_head(salt, head).ok()?;
            let bytes_left = self.summary_bytes.checked_sub(EXCEPTIONS_HEAD_BYTES as u64)?;
            let list = ListIntake::new(self.summary_entries, bytes_left, cut.width(), cut.width())?;
            self.rest = Some((filter, cut, list));
            bytes = rest;
            offset = EXCEPTIONS_HEAD_BYTES as u64;
        }
        let (_, _, list) = self.rest.as_mut()?;
        list.absorb(offset.checked_sub(EXCEPTIONS_HEAD_BYTES as u64)?, bytes, |_| ())
    }

    fn finish(self, filter: &FilterBuf) -> Result<Exceptions, Refusal> {
        let (digest, cut, list) = self.rest.ok_or(BAD_EXCEPTIONS)?;
        let mut digester = Digester::default();
        filter.lines().for_each(|line| digester.update(line));
        if digester.finish() != digest {
            return Err(Refusal::MixAndMatch { what: "the filter of the exceptions" });
        }
        Ok(Exceptions { cut, list: list.finish().ok_or(BAD_EXCEPTIONS)? })
    }
}
