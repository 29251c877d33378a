//! A call that is decided before anything of it is written: the rules run over what stands there and what they have
//! changed so far, and what came of it is written at once.
//!
//! What stands there is in memory: of a backend that is a network away, it was fetched beforehand.

use std::collections::BTreeMap;
use std::convert::Infallible;

use revocast_core::{DeviceId, Fingerprinter, Jti, UnixTime};

use super::Entry;
use super::columns::{Columns, standing};
use super::issuance::{Device, IssuedToken, RefreshState, RefreshToken};
use super::lineage::Lineage;
use super::registry::{Issued, Key, Register};
use super::rules::{Last, Shelf, Subject};

/// A subject as rows name it.
pub(super) type Name = (u8, String);

pub(super) fn name_of(subject: Subject<'_>) -> Name {
    match subject {
        Subject::Token(jti) => (super::columns::SUBJECT_JTI, jti.to_owned()),
        Subject::Scope(scope) => (scope.kind(), scope.text().to_owned()),
    }
}

/// What stands in the rows of one realm, as far as somebody will ask for it.
pub(super) trait Base {
    /// See [`Shelf::last`].
    fn last(&self, name: &Name) -> Option<Last>;
    /// The `exp` in a place of the registry.
    fn exp(&self, key: Key) -> Option<UnixTime>;
    /// See [`Lineage::token`].
    fn token(&self, jti: &str) -> Option<IssuedToken>;
    /// See [`Lineage::family`].
    fn family(&self, family: &str, horizon: UnixTime) -> Vec<IssuedToken>;
    /// See [`Lineage::family_size`].
    fn family_size(&self, family: &str, horizon: UnixTime) -> usize;
    /// See [`Lineage::refresh`].
    fn refresh(&self, hash: &[u8; 32]) -> Option<RefreshToken>;
    /// See [`Lineage::live_refreshes`].
    fn live_refreshes(&self, family: &str) -> Vec<RefreshToken>;
    /// See [`Lineage::device`].
    fn device(&self, id: DeviceId) -> Option<Device>;
}

/// What a call changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) entries: Vec<Entry>,
    pub(super) enrolled: BTreeMap<Key, Issued>,
    /// Of tokens that were registered before.
    pub(super) prolonged: BTreeMap<Key, UnixTime>,
    pub(super) tokens: BTreeMap<String, IssuedToken>,
    /// New, or in a new state.
    pub(super) refreshes: BTreeMap<[u8; 32], RefreshToken>,
    /// `None`: gone.
    pub(super) devices: BTreeMap<DeviceId, Option<Device>>,
    lasts: BTreeMap<Name, Last>,
}

impl Changes {
    fn extend(&mut self, later: Self) {
        let Self { entries, enrolled, prolonged, tokens, refreshes, devices, lasts } = later;
        self.entries.extend(entries);
        self.enrolled.extend(enrolled);
        self.prolonged.extend(prolonged);
        self.tokens.extend(tokens);
        self.refreshes.extend(refreshes);
        self.devices.extend(devices);
        self.lasts.extend(lasts);
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { entries, enrolled, prolonged, tokens, refreshes, devices, lasts: _ } = self;
        entries.is_empty()
            && enrolled.is_empty()
            && prolonged.is_empty()
            && tokens.is_empty()
            && refreshes.is_empty()
            && devices.is_empty()
    }

    fn exp_of(&self, key: Key) -> Option<UnixTime> {
        self.prolonged.get(&key).copied().or_else(|| self.enrolled.get(&key).map(|issued| issued.exp))
    }

    fn family<'a>(&'a self, family: &'a str, horizon: UnixTime) -> impl Iterator<Item = &'a IssuedToken> {
        self.tokens.values().filter(move |token| token.family == family && token.kept_until > horizon)
    }
}

/// One realm inside one transaction.
#[derive(Debug)]
pub(super) struct Draft<B> {
    fingerprinter: Fingerprinter,
    base: B,
    kept: Changes,
    /// Of the call under way.
    call: Changes,
}

impl<B: Base> Draft<B> {
    pub(super) fn new(fingerprinter: Fingerprinter, base: B) -> Self {
        Self { fingerprinter, base, kept: Changes::default(), call: Changes::default() }
    }

    /// The call under way is done.
    pub(super) fn keep(&mut self) {
        let call = std::mem::take(&mut self.call);
        self.kept.extend(call);
    }

    /// The call under way leaves no trace.
    pub(super) fn undo(&mut self) {
        self.call = Changes::default();
    }

    /// All that was kept.
    pub(super) fn changes(self) -> Changes {
        self.kept
    }

    fn exp_of(&self, key: Key) -> Option<UnixTime> {
        let since = self.call.exp_of(key).or_else(|| self.kept.exp_of(key));
        since.or_else(|| self.base.exp(key))
    }
}

impl<B: Base> Shelf for Draft<B> {
    type Error = Infallible;

    fn last(&mut self, subject: Subject<'_>) -> Result<Option<Last>, Infallible> {
        let name = name_of(subject);
        let since = self.call.lasts.get(&name).or_else(|| self.kept.lasts.get(&name));
        Ok(since.copied().or_else(|| self.base.last(&name)))
    }

    fn registered(&mut self, jti: &str) -> Result<Option<UnixTime>, Infallible> {
        // What is no `jti` was refused before.
        let key = Jti::new(jti).ok().map(|jti| Key::of(&self.fingerprinter, jti));
        Ok(key.and_then(|key| self.exp_of(key)))
    }

    fn put(&mut self, entry: &Entry) -> Result<(), Infallible> {
        if let (Some(subject), Some(last)) = (Subject::of(&entry.statement), last_of(entry)) {
            self.call.lasts.insert(name_of(subject), last);
        }
        self.call.entries.push(entry.clone());
        Ok(())
    }
}

/// What an entry means for its subject.
pub(super) fn last_of(entry: &Entry) -> Option<Last> {
    let Columns { kind, value, .. } = Columns::of(&entry.statement);
    standing(kind, value).map(|standing| Last { sequence: entry.sequence, standing })
}

impl<B: Base> Register for Draft<B> {
    fn enroll(&mut self, key: Key, issued: &Issued) -> Result<Option<UnixTime>, Infallible> {
        let held = self.exp_of(key);
        if held.is_none() {
            self.call.enrolled.insert(key, issued.clone());
        }
        Ok(held)
    }

    fn prolong(&mut self, key: Key, exp: UnixTime) -> Result<(), Infallible> {
        match self.call.enrolled.get_mut(&key) {
            Some(issued) => issued.exp = exp,
            None => {
                self.call.prolonged.insert(key, exp);
            }
        }
        Ok(())
    }
}

impl<B: Base> Lineage for Draft<B> {
    fn token(&mut self, jti: &str) -> Result<Option<IssuedToken>, Infallible> {
        let since = self.call.tokens.get(jti).or_else(|| self.kept.tokens.get(jti));
        Ok(since.cloned().or_else(|| self.base.token(jti)))
    }

    fn family(&mut self, family: &str, horizon: UnixTime) -> Result<Vec<IssuedToken>, Infallible> {
        let mut all = self.base.family(family, horizon);
        all.extend(self.kept.family(family, horizon).chain(self.call.family(family, horizon)).cloned());
        Ok(all)
    }

    fn family_size(&mut self, family: &str, horizon: UnixTime) -> Result<usize, Infallible> {
        let since = self.kept.family(family, horizon).chain(self.call.family(family, horizon)).count();
        Ok(self.base.family_size(family, horizon) + since)
    }

    fn refresh(&mut self, hash: &[u8; 32]) -> Result<Option<RefreshToken>, Infallible> {
        let since = self.call.refreshes.get(hash).or_else(|| self.kept.refreshes.get(hash));
        Ok(since.cloned().or_else(|| self.base.refresh(hash)))
    }

    fn live_refreshes(&mut self, family: &str) -> Result<Vec<RefreshToken>, Infallible> {
        let before = self.base.live_refreshes(family);
        let mut all: BTreeMap<_, _> = before.into_iter().map(|refresh| (refresh.hash, refresh)).collect();
        for changes in [&self.kept, &self.call] {
            let of_family = changes.refreshes.values().filter(|refresh| refresh.family == family);
            all.extend(of_family.map(|refresh| (refresh.hash, refresh.clone())));
        }
        Ok(all.into_values().filter(|refresh| refresh.state == RefreshState::Live).collect())
    }

    fn device(&mut self, id: DeviceId) -> Result<Option<Device>, Infallible> {
        let since = self.call.devices.get(&id).or_else(|| self.kept.devices.get(&id));
        Ok(since.cloned().unwrap_or_else(|| self.base.device(id)))
    }

    fn put_token(&mut self, token: &IssuedToken) -> Result<(), Infallible> {
        self.call.tokens.insert(token.jti.clone(), token.clone());
        Ok(())
    }

    fn put_refresh(&mut self, refresh: &RefreshToken) -> Result<(), Infallible> {
        self.call.refreshes.insert(refresh.hash, refresh.clone());
        Ok(())
    }

    fn put_device(&mut self, device: &Device) -> Result<(), Infallible> {
        self.call.devices.insert(device.id, Some(device.clone()));
        Ok(())
    }

    fn remove_device(&mut self, id: DeviceId) -> Result<(), Infallible> {
        self.call.devices.insert(id, None);
        Ok(())
    }
}
