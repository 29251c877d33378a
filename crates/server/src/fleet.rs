//! What the devices say of themselves: their reports, brought together. And what is really on the broker.
//!
//! [`Fleet`] is told what arrives and what was recorded, and time is an argument; it does no I/O. It keeps a small record
//! for each device and counts in fixed buckets, so that what it takes does not grow with the number of reports.
//! [`Lookout`] shares it with those who ask and those who wait; [`hear`] keeps it fed.
//!
//! Reports of enrolled devices count only if their key signed them (design rule 21). Those of others are claims: whoever
//! may publish on a device's topic reports in its name. Where a realm has enrolled devices, claims are shown and nobody
//! waits for them. Reports move displays, metrics and the answer to `wait=applied`, and nothing else: what is revoked,
//! published or forgotten never depends on them. Manifests and deltas are believed only if a publisher key signed them.

mod lookout;
pub use lookout::{Lookout, Reached, Wait, hear};

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use revocast_core::update::{DeviceTopic, Report};
use revocast_core::{
    Address, DeviceId, Kind, Position, Profile, PublicKey, RealmId, Refusal, Sealed, Sequence, Term, UnixMillis, Width,
    wire,
};

use crate::standing::Standing;

/// Devices of one realm that are remembered: some 20 MiB. Beyond it the stalest are forgotten until they report again.
pub const DEVICES_MAX: usize = 100_000;

/// A device that has reported within this time is online: two and a half times the interval of reports that devices
/// have by default, so that one report may be lost.
pub const ONLINE_WITHIN: Duration = Duration::from_secs(150);

/// Refusals that were reported within this time are shown.
pub const REFUSING_WITHIN: Duration = Duration::from_mins(10);

/// Revocations of a realm whose way to the devices is followed at a time.
const MARKS_MAX: usize = 128;

/// At most one revocation in this time is followed, so that one report covers few of them.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Devices in a list of the stalest, or of those that refuse.
pub const LISTED_MAX: usize = 10;

/// Refusals that one report can add: a hostile one shall not spoil a counter for good.
const REFUSALS_PER_REPORT_MAX: u64 = 1_000_000;

/// Bytes of a report, rounded up: an envelope with one signature, a realm id and 46 bytes.
pub const REPORT_BYTES_MAX: usize = 256;

/// Upper bounds, in milliseconds, of the buckets for the time that devices take to apply a revocation. What took longer
/// than the last is counted beyond it.
pub const APPLY_BOUNDS_MS: [u64; 20] = [
    50, 100, 200, 350, 500, 750, 1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 7_500, 10_000, 15_000, 30_000,
    60_000, 120_000, 300_000,
];

/// Buckets, the one beyond the last bound included.
pub const APPLY_BUCKETS: usize = APPLY_BOUNDS_MS.len() + 1;

/// Kinds of refusals, and one for numbers that this version has no name for.
pub const REFUSAL_KINDS: usize = Refusal::COUNT + 1;

/// What became of all that was heard, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Reports that were taken in.
    pub reports: u64,
    /// What was no report, manifest or delta of the realm its topic names, or too large for one.
    pub malformed: u64,
    /// What was of no realm of this server.
    pub foreign: u64,
    /// Manifests and deltas that no publisher key had signed.
    pub forged: u64,
    /// Reports of enrolled devices that their key had not signed.
    pub unproven: u64,
    /// Reports that claim less than the same device claimed before: it lost its state, or somebody speaks in its name.
    pub set_back: u64,
    /// Devices forgotten because there were too many.
    pub forgotten: u64,
}

/// The highest that was seen on the broker, signed by a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The ledger's term.
    pub term: Term,
    /// Everything up to here is on the broker.
    pub sequence: Sequence,
    /// When the last manifest was sealed.
    pub manifest_at: UnixMillis,
}

/// How long devices took to apply recent revocations.
///
/// From the moment at which this server had recorded the revocation (or, if another server took it, first saw it on the
/// broker) until the device's report of it arrived here. So it includes publishing, the broker, applying, and writing
/// down on the device, which may wait a second, and the report, which waits up to a second more so that a fleet does not
/// speak at once. A device that had been silent for longer than [`ONLINE_WITHIN`] is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// Recent revocations that some device has applied since.
    pub revocations: usize,
    /// Devices that applied each, by the time it took; see [`APPLY_BOUNDS_MS`].
    pub buckets: [u64; APPLY_BUCKETS],
}

impl Propagation {
    /// How many times a device has applied one.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The time within which this share was applied, rounded up to the bound of its bucket; `None` without samples.
    /// What lies beyond the last bound reads as that bound.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let samples = self.samples();
        let rank = ((samples as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                let last = APPLY_BOUNDS_MS.len() - 1;
                return APPLY_BOUNDS_MS.get(at.min(last)).copied().map(Duration::from_millis);
            }
        }
        None
    }
}

/// A device in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub device: DeviceId,
    /// How long ago it reported.
    pub silent: Duration,
    /// Term of its position.
    pub term: Term,
    /// Where it stood.
    pub position: Position,
    /// How old its last proof of currency is by now; `None` without one.
    pub age: Option<Duration>,
    /// Refusals since its start.
    pub refusals: u64,
    /// Refusals that its last reports added, within [`REFUSING_WITHIN`].
    pub rise: u64,
    /// Whether they rose in more than one report: once is harmless, repeated is an attack.
    pub repeated: bool,
    /// The name of the last refusal; `None` if there was none, or this version has no name for it.
    pub refusal: Option<&'static str>,
}

/// How the devices of a realm are.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Devices that are remembered.
    pub known: usize,
    /// Devices that reported within [`ONLINE_WITHIN`].
    pub online: usize,
    /// Of those, the ones whose report their enrolled key has signed; the others are claims.
    pub proven: usize,
    /// Whether the realm has enrolled devices, so that whoever waits waits for those that prove themselves.
    pub enrolled: bool,
    /// Of those online, the ones that stand at the ledger's head.
    pub current: usize,
    /// Of those, the ones that stand at or above the sequence that was asked for.
    pub reached: usize,
    /// Of those, the ones that claim a sequence that does not exist.
    pub beyond: usize,
    /// Devices whose refusals rose in more than one of their last reports.
    pub attacked: usize,
    /// Devices online by profile, the one that answers best first; those without a base are in none.
    pub profiles: [(Profile, usize); 6],
    /// Median of the memory that revocation sets take on devices online, bytes.
    pub memory_median: u64,
    /// The largest of them.
    pub memory_max: u64,
    /// How long devices took to apply recent revocations.
    pub propagation: Propagation,
    /// Those that have been silent longest, the stalest first.
    pub stalest: Vec<Listed>,
    /// Those whose refusals rose last, the largest rise first.
    pub refusing: Vec<Listed>,
    /// What is on the broker, if a manifest was seen.
    pub sighting: Option<Sighting>,
    /// Refusals that devices reported since the start, by number; each report's are attributed to the last it names.
    pub refusals: [u64; REFUSAL_KINDS],
    /// Times to apply since the start, by bucket, and their sum.
    pub applied: ([u64; APPLY_BUCKETS], Duration),
    /// What became of all that was heard.
    pub heard: Heard,
}

/// What is known of one device.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// When it reported, by the server's uptime.
    heard: Duration,
    term: Term,
    position: Position,
    /// At `heard`.
    age: Option<Duration>,
    memory_bytes: u64,
    refusals: u64,
    /// How much they rose within [`REFUSING_WITHIN`] of `rose`, and in how many reports.
    rise: u64,
    rises: u32,
    rose: Option<Duration>,
    last_refusal: Option<u8>,
    profile: Option<Profile>,
    proven: bool,
}

impl Record {
    fn is_online(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) <= ONLINE_WITHIN
    }

    fn is_refusing(&self, now: Duration) -> bool {
        self.rose.is_some_and(|rose| now.saturating_sub(rose) <= REFUSING_WITHIN)
    }

    fn listed(&self, now: Duration, device: DeviceId) -> Listed {
        let silent = now.saturating_sub(self.heard);
        let rise = if self.is_refusing(now) { self.rise } else { 0 };
        Listed {
            device,
            silent,
            term: self.term,
            position: self.position,
            age: self.age.map(|age| age + silent),
            refusals: self.refusals,
            rise,
            repeated: rise > 0 && self.rises > 1,
            refusal: self.last_refusal.and_then(Refusal::name_of),
        }
    }
}

/// A revocation on its way.
#[derive(Clone, Debug)]
struct Mark {
    sequence: Sequence,
    /// When it was recorded, by the server's uptime.
    at: Duration,
    buckets: [u32; APPLY_BUCKETS],
}

/// The devices of one realm.
#[derive(Debug)]
struct Devices {
    width: Width,
    /// The highest sequence that this server knows to exist.
    head: Sequence,
    records: HashMap<DeviceId, Record>,
    /// How many devices claim each sequence, so that a wait is not a walk over all of them.
    tally: BTreeMap<Sequence, usize>,
    marks: VecDeque<Mark>,
    sighting: Option<Sighting>,
    refusals: [u64; REFUSAL_KINDS],
    applied: [u64; APPLY_BUCKETS],
    applied_sum: Duration,
    /// Devices online that count, and when they were counted.
    online: Option<(Duration, usize)>,
    /// Whether only those count that prove themselves.
    enrolled: bool,
}

/// Devices online are counted again after this.
const COUNT_EVERY: Duration = Duration::from_secs(1);

impl Devices {
    fn new(width: Width) -> Self {
        Self {
            width,
            head: Sequence::default(),
            records: HashMap::new(),
            tally: BTreeMap::new(),
            marks: VecDeque::new(),
            sighting: None,
            refusals: [0; REFUSAL_KINDS],
            applied: [0; APPLY_BUCKETS],
            applied_sum: Duration::ZERO,
            online: None,
            enrolled: false,
        }
    }

    /// Whether anybody waits for this one.
    fn counts(enrolled: bool, now: Duration, record: &Record) -> bool {
        record.is_online(now) && (record.proven || !enrolled)
    }

    fn mark(&mut self, now: Duration, sequence: Sequence) {
        let newest = self.marks.back();
        if newest.is_some_and(|newest| newest.sequence >= sequence || now < newest.at + MARK_EVERY) {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { sequence, at: now, buckets: [0; APPLY_BUCKETS] });
    }

    /// Counts the revocations that a device has applied since its last report.
    fn sample(&mut self, now: Duration, after: Sequence, to: Sequence) {
        let first = self.marks.partition_point(|mark| mark.sequence <= after);
        for mark in self.marks.iter_mut().skip(first).take_while(|mark| mark.sequence <= to) {
            let took = now.saturating_sub(mark.at);
            let bucket = APPLY_BOUNDS_MS.partition_point(|bound| u128::from(*bound) < took.as_millis());
            if let (Some(recent), Some(ever)) = (mark.buckets.get_mut(bucket), self.applied.get_mut(bucket)) {
                *recent = recent.saturating_add(1);
                *ever += 1;
                self.applied_sum += took;
            }
        }
    }

    fn untally(&mut self, sequence: Sequence) {
        if let Some(count) = self.tally.get_mut(&sequence) {
            *count -= 1;
            if *count == 0 {
                self.tally.remove(&sequence);
            }
        }
    }

    /// Makes room: the stalest sixteenth goes at once, so that looking for them costs each new device little.
    fn forget_stalest(&mut self) -> u64 {
        let mut heard: Vec<Duration> = self.records.values().map(|record| record.heard).collect();
        let mut surplus = (heard.len() / 16).max(1);
        let (_, &mut latest, _) = heard.select_nth_unstable(surplus - 1);
        let mut gone = Vec::with_capacity(surplus);
        self.records.retain(|_, record| {
            let goes = surplus > 0 && record.heard <= latest;
            if goes {
                surplus -= 1;
                gone.push(record.position.sequence);
            }
            !goes
        });
        let forgotten = gone.len() as u64;
        for sequence in gone {
            self.untally(sequence);
        }
        forgotten
    }

    fn online(&mut self, now: Duration) -> usize {
        match self.online {
            Some((at, count)) if now < at + COUNT_EVERY => count,
            Some(_) | None => {
                let count = self.records.values().filter(|record| Self::counts(self.enrolled, now, record)).count();
                self.online = Some((now, count));
                count
            }
        }
    }
}

/// Every device of every realm, as they say themselves.
#[derive(Debug)]
pub struct Fleet {
    prefix: String,
    publishers: Vec<PublicKey>,
    realms: BTreeMap<RealmId, Devices>,
    heard: Heard,
    devices_max: usize,
}

impl Fleet {
    /// An empty one: topics begin with `prefix`, and what these keys signed is believed to be published.
    #[must_use]
    pub fn new(prefix: impl Into<String>, publishers: Vec<PublicKey>) -> Self {
        Self {
            prefix: prefix.into(),
            publishers,
            realms: BTreeMap::new(),
            heard: Heard::default(),
            devices_max: DEVICES_MAX,
        }
    }

    /// Takes in whose signatures are believed from now on; those of the one before are on their way still.
    pub fn believe(&mut self, publisher: PublicKey) {
        if self.publishers.first() != Some(&publisher) {
            self.publishers.insert(0, publisher);
            self.publishers.truncate(2);
        }
    }

    /// Takes in a realm of this server. What is heard of others is dropped.
    pub fn follow(&mut self, realm: RealmId, width: Width) {
        self.realms.entry(realm).or_insert_with(|| Devices::new(width));
    }

    /// The filters whose messages belong to [`Fleet::hear`].
    #[must_use]
    pub fn filters(&self) -> [String; 3] {
        ["devices/+/report", "live", "manifest"].map(|rest| format!("{}/+/{rest}", self.prefix))
    }

    /// Whether only devices of a realm count that prove themselves: once it has enrolled any.
    pub fn enroll(&mut self, realm: &RealmId, enrolled: bool) {
        if let Some(devices) = self.realms.get_mut(realm).filter(|devices| devices.enrolled != enrolled) {
            devices.enrolled = enrolled;
            devices.online = None;
        }
    }

    /// Takes in whatever came on one of the filters; `standing` is what a report is worth there. Nothing else about it
    /// is believed.
    pub fn hear(&mut self, now: Duration, topic: &str, payload: &[u8], standing: Standing) {
        let level = topic.strip_prefix(&*self.prefix).and_then(|rest| rest.strip_prefix('/')?.split('/').next());
        let Some(realm) = level.and_then(|level| RealmId::new(level).ok()) else {
            self.heard.malformed += 1;
            return;
        };
        let Some(width) = self.realms.get(&realm).map(|devices| devices.width) else {
            self.heard.foreign += 1;
            return;
        };
        match Address::from_topic(&self.prefix, &realm, topic) {
            Some(Address::Manifest) => self.hear_manifest(now, realm, payload),
            Some(Address::Live) => self.hear_delta(now, realm, width, payload),
            Some(_) => self.heard.malformed += 1,
            None => self.hear_report(now, topic, payload, standing),
        }
    }

    fn hear_report(&mut self, now: Duration, topic: &str, payload: &[u8], standing: Standing) {
        let report = DeviceTopic::Report.parse(&self.prefix, topic).and_then(|(realm, device)| {
            let bytes = payload.get(..payload.len().min(REPORT_BYTES_MAX + 1))?;
            let sealed = Sealed::expect(bytes, &realm, Kind::Report).ok()?;
            // Its standing says who signed it; it is decoded within its limits and believed in nothing else.
            let report = wire::decode_report(sealed.unverified_body()).ok()?;
            Some((realm, device, report))
        });
        match (report, standing) {
            (None, _) => self.heard.malformed += 1,
            (Some(_), Standing::Unproven) => self.heard.unproven += 1,
            (Some((realm, device, report)), Standing::Claimed) => self.report(now, realm, device, &report, false),
            (Some((realm, device, report)), Standing::Proven) => self.report(now, realm, device, &report, true),
        }
    }

    /// Takes in a report, which the device's own key has signed or not.
    pub fn report(&mut self, now: Duration, realm: RealmId, device: DeviceId, report: &Report, proven: bool) {
        let Some(devices) = self.realms.get_mut(&realm) else {
            self.heard.foreign += 1;
            return;
        };
        self.heard.reports += 1;
        let before = devices.records.get(&device).copied();
        if before.is_none() && devices.records.len() >= self.devices_max {
            self.heard.forgotten += devices.forget_stalest();
        }
        let (mut amount, mut times, mut last) = (0, 0, None);
        if let Some(before) = before {
            let (held, offered) = ((before.term, before.position.sequence), (report.term, report.position.sequence));
            self.heard.set_back += u64::from(offered < held);
            devices.untally(before.position.sequence);
            if before.is_online(now) {
                devices.sample(now, before.position.sequence, report.position.sequence);
            }
            // Fewer than before: it was started again and counts from zero.
            let base = if report.refusals < before.refusals { 0 } else { before.refusals };
            let added = (report.refusals - base).min(REFUSALS_PER_REPORT_MAX);
            if before.is_refusing(now) {
                (amount, times, last) = (before.rise, before.rises, before.rose);
            }
            if added > 0 {
                (amount, times, last) = (amount.saturating_add(added), times.saturating_add(1), Some(now));
                let kind = report.last_refusal.map_or(Refusal::COUNT, usize::from).min(Refusal::COUNT);
                if let Some(count) = devices.refusals.get_mut(kind) {
                    *count = count.saturating_add(added);
                }
            }
        }
        *devices.tally.entry(report.position.sequence).or_default() += 1;
        let enrolled = devices.enrolled;
        if let Some((_, online)) = &mut devices.online
            && (proven || !enrolled)
            && before.is_none_or(|before| !Devices::counts(enrolled, now, &before))
        {
            *online += 1;
        }
        devices.records.insert(
            device,
            Record {
                proven,
                heard: now,
                term: report.term,
                position: report.position,
                age: report.age,
                memory_bytes: report.memory_bytes,
                refusals: report.refusals,
                rise: amount,
                rises: times,
                rose: last,
                last_refusal: report.last_refusal,
                profile: Profile::from_number(report.profile),
            },
        );
    }

    /// Takes in that an entry was recorded just now: its way to the devices is timed.
    pub fn recorded(&mut self, now: Duration, realm: RealmId, sequence: Sequence) {
        if let Some(devices) = self.realms.get_mut(&realm) {
            devices.head = devices.head.max(sequence);
            devices.mark(now, sequence);
        }
    }

    /// Takes in that the ledger reaches this far. What claims to be beyond it does not exist, or not yet.
    pub fn reaches(&mut self, realm: &RealmId, head: Sequence) {
        if let Some(devices) = self.realms.get_mut(realm) {
            devices.head = devices.head.max(head);
        }
    }

    fn hear_manifest(&mut self, now: Duration, realm: RealmId, payload: &[u8]) {
        if payload.is_empty() {
            // Somebody cleared it; what was seen was seen.
            return;
        }
        let Some(body) = self.believed(&realm, Kind::Manifest, payload) else { return };
        let Ok(manifest) = wire::decode_manifest(body) else {
            self.heard.malformed += 1;
            return;
        };
        let Some(devices) = self.realms.get_mut(&realm) else { return };
        let seen = Sighting { term: manifest.term, sequence: manifest.sequence, manifest_at: manifest.issued_at };
        let Some(held) = &mut devices.sighting else {
            // What stood there before this server looked is not on its way.
            devices.sighting = Some(seen);
            return;
        };
        let (old, new) = ((held.term, held.sequence), (seen.term, seen.sequence));
        if new >= old {
            *held = seen;
        } else if seen.term == held.term {
            // A delta was faster.
            held.manifest_at = held.manifest_at.max(seen.manifest_at);
        }
        if new > old {
            devices.mark(now, seen.sequence);
        }
    }

    fn hear_delta(&mut self, now: Duration, realm: RealmId, width: Width, payload: &[u8]) {
        let Some(body) = self.believed(&realm, Kind::Delta, payload) else { return };
        let Ok(delta) = wire::decode_delta(body, width) else {
            self.heard.malformed += 1;
            return;
        };
        let Some(devices) = self.realms.get_mut(&realm) else { return };
        // Without a gap, or what lies in between may not be published; the manifest will tell.
        if let Some(held) = &mut devices.sighting
            && held.term == delta.term
            && (delta.from..delta.to).contains(&held.sequence)
        {
            held.sequence = delta.to;
            devices.mark(now, delta.to);
        }
    }

    /// The body, if one of the publishers signed it.
    fn believed<'a>(&mut self, realm: &RealmId, kind: Kind, payload: &'a [u8]) -> Option<&'a [u8]> {
        let verified = Sealed::expect(payload, realm, kind).and_then(|sealed| sealed.by_threshold(&self.publishers, 1));
        match verified {
            Ok(body) => Some(body.into_inner()),
            Err(Refusal::WrongKey { .. }) => {
                self.heard.forged += 1;
                None
            }
            Err(_) => {
                self.heard.malformed += 1;
                None
            }
        }
    }

    /// Counts what was dropped before it could be heard.
    pub fn dropped(&mut self, count: u64) {
        self.heard.malformed += count;
    }

    /// What of a realm was seen on the broker.
    #[must_use]
    pub fn sighting(&self, realm: &RealmId) -> Option<Sighting> {
        self.realms.get(realm)?.sighting
    }

    /// Whether a sequence was seen on the broker, by itself or within a later one that exists.
    #[must_use]
    pub fn is_published(&self, realm: &RealmId, sequence: Sequence) -> bool {
        self.realms.get(realm).is_some_and(|devices| {
            let seen = devices.sighting.map(|sighting| sighting.sequence);
            // A standing manifest beyond the head is that of another history: a ledger restored from a backup.
            seen.is_some_and(|seen| seen >= sequence && seen <= devices.head)
        })
    }

    /// Whether this share of the devices online has reported a sequence, or a later one that exists. Of no devices at
    /// all, none has. Where devices are enrolled, only those count that prove themselves.
    ///
    /// # Complexity
    ///
    /// Linear in the different sequences that devices claim at or above it; in all devices once a second, and once
    /// enough of them claim it.
    pub fn is_applied(&mut self, now: Duration, realm: &RealmId, sequence: Sequence, share: f64) -> bool {
        let Some(devices) = self.realms.get_mut(realm) else { return false };
        let exists = sequence..=devices.head.max(sequence);
        // Those that have gone silent or prove nothing claim it, too, so this is the most there can be.
        let most = devices.tally.range(exists.clone()).map(|(_, count)| count).sum();
        if !suffices(most, devices.online(now), share) {
            return false;
        }
        let enrolled = devices.enrolled;
        let online = devices.records.values().filter(|record| Devices::counts(enrolled, now, record));
        let (mut all, mut applied) = (0, 0);
        for record in online {
            all += 1;
            applied += usize::from(exists.contains(&record.position.sequence));
        }
        devices.online = Some((now, all));
        suffices(applied, all, share)
    }

    /// How the devices of a realm are; `None` for a realm that is not followed.
    ///
    /// # Complexity
    ///
    /// Linear in its devices.
    #[must_use]
    pub fn view(&self, now: Duration, realm: &RealmId, at_least: Sequence) -> Option<View> {
        let devices = self.realms.get(realm)?;
        let head = devices.head;
        let mut view = View {
            known: devices.records.len(),
            online: 0,
            proven: 0,
            enrolled: devices.enrolled,
            current: 0,
            reached: 0,
            beyond: 0,
            attacked: 0,
            profiles: Profile::BEST_FIRST.map(|profile| (profile, 0)),
            memory_median: 0,
            memory_max: 0,
            propagation: Propagation { revocations: 0, buckets: [0; APPLY_BUCKETS] },
            stalest: Vec::new(),
            refusing: Vec::new(),
            sighting: devices.sighting,
            refusals: devices.refusals,
            applied: (devices.applied, devices.applied_sum),
            heard: self.heard,
        };
        let mut memory = Vec::with_capacity(devices.records.len());
        let mut stalest = Vec::with_capacity(devices.records.len());
        let mut refusing = Vec::new();
        for (device, record) in &devices.records {
            stalest.push((record.heard, device));
            if record.is_refusing(now) {
                view.attacked += usize::from(record.rises > 1);
                refusing.push((std::cmp::Reverse(record.rise), device));
            }
            if !record.is_online(now) {
                continue;
            }
            view.online += 1;
            view.proven += usize::from(record.proven);
            let sequence = record.position.sequence;
            // Before its first base a device stands nowhere, and not at the head of an empty ledger.
            let stands = record.term > Term(0);
            view.current += usize::from(stands && sequence == head);
            view.beyond += usize::from(sequence > head);
            view.reached += usize::from(stands && sequence >= at_least && sequence <= head);
            memory.push(record.memory_bytes);
            if let Some((_, count)) = view.profiles.iter_mut().find(|(profile, _)| Some(*profile) == record.profile) {
                *count += 1;
            }
        }
        if !memory.is_empty() {
            let middle = memory.len() / 2;
            view.memory_median = *memory.select_nth_unstable(middle).1;
            view.memory_max = memory.iter().copied().max().unwrap_or_default();
        }
        for mark in &devices.marks {
            view.propagation.revocations += usize::from(mark.buckets.iter().any(|count| *count > 0));
            for (sum, count) in view.propagation.buckets.iter_mut().zip(mark.buckets) {
                *sum += u64::from(count);
            }
        }
        let listed = |device: &DeviceId| devices.records.get(device).map(|record| record.listed(now, *device));
        view.stalest = first(stalest).into_iter().filter_map(|(_, device)| listed(device)).collect();
        view.refusing = first(refusing).into_iter().filter_map(|(_, device)| listed(device)).collect();
        Some(view)
    }

    /// First level of every topic.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a realm is followed.
    #[must_use]
    pub fn follows(&self, realm: &RealmId) -> bool {
        self.realms.contains_key(realm)
    }

    /// The realms that are followed.
    pub fn realms(&self) -> impl Iterator<Item = &RealmId> {
        self.realms.keys()
    }
}

/// Whether so many of all are that share, and at least one.
fn suffices(some: usize, all: usize, share: f64) -> bool {
    let needed = (all as f64 * share).ceil().max(1.0);
    some as f64 >= needed
}

/// The first few in order.
fn first<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    if all.len() > LISTED_MAX {
        all.select_nth_unstable(LISTED_MAX);
        all.truncate(LISTED_MAX);
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests;
