//! Sealed objects made by hand: what an honest publisher makes, and what others try.

use std::time::Duration;

use revocast_core::artifact::Cutting;
use revocast_core::replica::Config;
use revocast_core::update::{Answer, Artifact, Finding, Keys, Piece, PublisherKey, Role};
use revocast_core::{
    Address, Cutoff, Delta, Digest, Epoch, Filter, FilterBuf, FilterParams, Fingerprint, FingerprintFunction,
    Fingerprinter, Index, Jti, Kind, Manifest, Membership, RealmId, RealmKey, Salt, Sealed, Sequence, SigningKey, Term,
    Trust, UnixMillis, UnixTime, Width, exceptions, rice, seal, wire,
};

use crate::follower::{Follower, Shelf};

/// Seconds at which every forged world begins: 2026-01-01.
pub const START: u64 = 1_767_225_600;

/// A realm with its keys, from which sealed objects can be made at will.
#[derive(Clone, Debug)]
pub struct Forge {
    /// The realm.
    pub realm: RealmId,
    /// Root key.
    pub root: SigningKey,
    /// Content key.
    pub content: SigningKey,
    /// Heartbeat key.
    pub heartbeat: SigningKey,
    /// The realm's fingerprints.
    pub fingerprinter: Fingerprinter,
    /// Bytes of content in a chunk.
    pub chunk_bytes: u32,
}

/// An epoch's objects.
#[derive(Clone, Debug)]
pub struct Epochal {
    /// The index, as meaning.
    pub index: Index,
    /// Index, chunks and pages by address.
    pub objects: Vec<(Address, Vec<u8>)>,
    /// Digest of the sealed index.
    pub digest: Digest,
}

impl Forge {
    /// A realm whose keys follow from a seed.
    ///
    /// # Panics
    ///
    /// Never: the name is valid.
    #[must_use]
    pub fn new(seed: u8) -> Self {
        Self {
            realm: RealmId::new("sensors").expect("a valid name"),
            root: SigningKey::from_seed([seed; 32]),
            content: SigningKey::from_seed([seed ^ 0x55; 32]),
            heartbeat: SigningKey::from_seed([seed ^ 0xaa; 32]),
            fingerprinter: Fingerprinter::new(FingerprintFunction::Xxh3, RealmKey([seed; 16]), Width::W48),
            chunk_bytes: 2_048,
        }
    }

    /// What a device pins.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust { roots: vec![self.root.public()], threshold: 1, not_before: UnixTime::from_secs(START) }
    }

    /// The fingerprint of a `jti`.
    ///
    /// # Panics
    ///
    /// If it is no valid `jti`.
    #[must_use]
    pub fn fingerprint(&self, jti: &str) -> Fingerprint {
        self.fingerprinter.fingerprint(Jti::new(jti).expect("a valid jti"))
    }

    /// Sorted fingerprints of some `jti`s.
    #[must_use]
    pub fn fingerprints(&self, jtis: &[&str]) -> Vec<Fingerprint> {
        let mut list: Vec<_> = jtis.iter().map(|jti| self.fingerprint(jti)).collect();
        list.sort_unstable();
        list
    }

    /// The keys object, as meaning.
    #[must_use]
    pub fn keys_meant(&self, version: u64) -> Keys {
        let not_after = UnixTime::from_secs(START + 10 * 365 * 24 * 3600);
        let mut publishers = vec![
            PublisherKey { key: self.content.public(), role: Role::Content as u8, not_after },
            PublisherKey { key: self.heartbeat.public(), role: Role::Heartbeat as u8, not_after },
        ];
        publishers.sort_unstable();
        Keys {
            version,
            issued_at: UnixTime::from_secs(START).millis(),
            not_after,
            threshold: 1,
            roots: vec![self.root.public()],
            publishers,
            issuer: "https://issuer.example".into(),
            fingerprinter: self.fingerprinter,
            leeway: 60,
        }
    }

    /// The keys object, sealed by the root.
    ///
    /// # Panics
    ///
    /// Never: what is encoded is valid. So it is for all that follow.
    #[must_use]
    pub fn keys(&self, version: u64) -> Vec<u8> {
        let body = wire::encode_keys(&self.keys_meant(version)).expect("valid keys");
        seal(Kind::Keys, &self.realm, &body, &[&self.root])
    }

    /// A delta that revokes and reinstates, issued at second `at` after the start.
    #[must_use]
    pub fn delta_meant(&self, (from, to): (u64, u64), revoked: &[&str], reinstated: &[&str], at: u64) -> Delta {
        Delta {
            term: Term(1),
            from: Sequence(from),
            to: Sequence(to),
            issued_at: time(at),
            horizon: horizon(at),
            revoked: self.fingerprints(revoked),
            reinstated: self.fingerprints(reinstated),
            cutoffs: Vec::new(),
            lifts: Vec::new(),
        }
    }

    /// Seals a delta.
    ///
    /// # Panics
    ///
    /// If it is not valid.
    #[must_use]
    pub fn delta(&self, delta: &Delta) -> Vec<u8> {
        let body = wire::encode_delta(delta, self.fingerprinter.width()).expect("a valid delta");
        seal(Kind::Delta, &self.realm, &body, &[&self.content])
    }

    /// An epoch whose base holds these `jti`s at a sequence.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn epoch(&self, epoch: u64, sequence: u64, revoked: &[&str], cutoffs: &[Cutoff], at: u64) -> Epochal {
        self.epoch_covering(epoch, sequence, revoked, cutoffs, None, at)
    }

    /// The same, with exceptions for good tokens that the filter matches, if it covers any; and until when it does.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn epoch_covering(
        &self,
        epoch: u64,
        sequence: u64,
        revoked: &[&str],
        cutoffs: &[Cutoff],
        covered: Option<(&[&str], UnixTime)>,
        at: u64,
    ) -> Epochal {
        let keys = self.fingerprints(revoked);
        let params = FilterParams::for_target(keys.len() as u64, 0.01, Salt([epoch as u8; 16])).expect("a filter");
        let good = covered.map(|(good, until)| (self.fingerprints(good), until));
        let covered = good.as_ref().map(|(good, until)| (&good[..], *until));
        self.epoch_of(epoch, sequence, params, &keys, cutoffs, covered, at)
    }

    /// The same with this filter, of fingerprints; `keys` are sorted.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "an epoch is made of as many things")]
    pub fn epoch_of(
        &self,
        epoch: u64,
        sequence: u64,
        params: FilterParams,
        keys: &[Fingerprint],
        cutoffs: &[Cutoff],
        covered: Option<(&[Fingerprint], UnixTime)>,
        at: u64,
    ) -> Epochal {
        let filter = FilterBuf::build(params, keys.iter().copied()).to_bytes();
        let list = rice::encode(keys, self.fingerprinter.width()).expect("sorted keys");
        let count = keys.len() as u64;
        let cutoff_bytes = wire::encode_cutoffs(cutoffs).expect("valid cutoffs");
        let mut artifacts = vec![(Artifact::Filter, count, filter), (Artifact::List, count, list)];
        if let Some((good, _)) = covered {
            let (_, _, filter) = &artifacts[0];
            let view = Filter::new(params, filter).expect("a filter");
            let mut excepted = good.to_vec();
            excepted.retain(|&key| view.query(key) == Membership::Possible);
            let digest = Digest::of(filter);
            let coded = exceptions::encode(&digest, params.salt(), &excepted, keys).expect("no collision");
            artifacts.push((Artifact::Exceptions, coded.entries, coded.bytes));
        }
        artifacts.push((Artifact::Cutoffs, cutoffs.len() as u64, cutoff_bytes));
        self.epoch_from(epoch, sequence, params, &artifacts, covered.map(|(_, until)| until), at)
    }

    /// An epoch of artifacts as they are: kind, entries and bytes of each, ascending by kind.
    ///
    /// # Panics
    ///
    /// If they cannot be cut.
    #[must_use]
    pub fn epoch_from(
        &self,
        epoch: u64,
        sequence: u64,
        params: FilterParams,
        artifacts: &[(Artifact, u64, Vec<u8>)],
        covered_until: Option<UnixTime>,
        at: u64,
    ) -> Epochal {
        let cutting = Cutting { realm: self.realm, term: Term(1), epoch: Epoch(epoch), chunk_bytes: self.chunk_bytes };
        let cuts: Vec<_> = artifacts
            .iter()
            .map(|(artifact, entries, bytes)| cutting.cut(*artifact, *entries, bytes).expect("that can be cut"))
            .collect();
        let index = Index {
            term: Term(1),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
            issued_at: time(at),
            horizon: horizon(at),
            covered_until: covered_until.unwrap_or_default(),
            filter: params,
            chunk_bytes: self.chunk_bytes,
            artifacts: cuts.iter().map(|cut| cut.summary.clone()).collect(),
        };
        let mut objects: Vec<_> = cuts.into_iter().flat_map(|cut| cut.objects).collect();
        let sealed = self.index(&index);
        let digest = Digest::of(&sealed);
        objects.push((Address::Index { epoch: Epoch(epoch) }, sealed));
        Epochal { index, objects, digest }
    }

    /// Seals an index.
    ///
    /// # Panics
    ///
    /// If it is not valid.
    #[must_use]
    pub fn index(&self, index: &Index) -> Vec<u8> {
        let body = wire::encode_index(index).expect("a valid index");
        seal(Kind::Index, &self.realm, &body, &[&self.content])
    }

    /// A manifest that names an epoch and sealed ladder pieces.
    #[must_use]
    pub fn manifest_meant(&self, epochal: &Epochal, sequence: u64, ladder: &[(u64, u64, &[u8])], at: u64) -> Manifest {
        Manifest {
            term: Term(1),
            epoch: epochal.index.epoch,
            sequence: Sequence(sequence),
            issued_at: time(at),
            next_update: UnixTime::from_secs(START + at + 90),
            horizon: horizon(at),
            index: epochal.digest,
            ladder: ladder
                .iter()
                .map(|(from, to, bytes)| Piece {
                    from: Sequence(*from),
                    to: Sequence(*to),
                    bytes: bytes.len() as u32,
                    digest: Digest::of(bytes),
                })
                .collect(),
        }
    }

    /// Seals a manifest with the content key.
    ///
    /// # Panics
    ///
    /// If it is not valid.
    #[must_use]
    pub fn manifest(&self, manifest: &Manifest) -> Vec<u8> {
        let body = wire::encode_manifest(manifest).expect("a valid manifest");
        seal(Kind::Manifest, &self.realm, &body, &[&self.content])
    }
}

impl Forge {
    /// The answer to a sealed question, as of a sequence, given at second `at`.
    ///
    /// # Panics
    ///
    /// If it is no question.
    #[must_use]
    pub fn answer_meant(&self, question: &[u8], finding: Finding, sequence: u64, at: u64) -> Answer {
        let sealed = Sealed::expect(question, &self.realm, Kind::Ask).expect("a question of this realm");
        let question = wire::decode_question(sealed.unverified_body(), self.fingerprinter.width()).expect("a question");
        Answer {
            device: question.device,
            nonce: question.nonce,
            fingerprint: question.fingerprint,
            finding,
            term: Term(1),
            sequence: Sequence(sequence),
            issued_at: time(at),
            horizon: horizon(at),
        }
    }

    /// Seals an answer with the content key.
    ///
    /// # Panics
    ///
    /// If it is not valid.
    #[must_use]
    pub fn answer(&self, answer: &Answer) -> Vec<u8> {
        let body = wire::encode_answer(answer).expect("a valid answer");
        seal(Kind::Answer, &self.realm, &body, &[&self.content])
    }

    /// Everything a new device reads: keys, an epoch, a ladder, a manifest issued at second `at`.
    #[must_use]
    pub fn shelf(&self, epochal: &Epochal, ladder: &[Delta], sequence: u64, at: u64) -> Shelf {
        let mut objects: Shelf = epochal.objects.iter().cloned().collect();
        objects.insert(Address::Keys, self.keys(1));
        let sealed: Vec<(u64, u64, Vec<u8>)> =
            ladder.iter().map(|delta| (delta.from.0, delta.to.0, self.delta(delta))).collect();
        let named: Vec<(u64, u64, &[u8])> = sealed.iter().map(|(from, to, bytes)| (*from, *to, &bytes[..])).collect();
        objects.insert(Address::Manifest, self.manifest(&self.manifest_meant(epochal, sequence, &named, at)));
        for (from, to, bytes) in sealed {
            objects.insert(Address::Ladder { from: Sequence(from), to: Sequence(to) }, bytes);
        }
        objects
    }

    /// A connected device of this realm, `at` seconds after the start.
    #[must_use]
    pub fn device(&self, config: Config, at: u64) -> Follower {
        Follower::new(self.realm, self.trust(), config, at)
    }
}

/// A number of seconds after the start.
#[must_use]
pub const fn time(at: u64) -> UnixMillis {
    UnixTime::from_secs(START + at).millis()
}

/// What the server would forget up to, with a leeway of a minute.
#[must_use]
pub const fn horizon(at: u64) -> UnixTime {
    UnixTime::from_secs(START + at).minus(60)
}

/// Both clocks, `at` seconds after the start, on a machine that has been up for as long.
#[must_use]
pub const fn now(at: u64) -> revocast_core::Now {
    revocast_core::Now::new(time(at), Duration::from_secs(at))
}
