//! The last statement about every `jti`, packed: 24 bytes each, sorted by fingerprint.
//!
//! Nearly all of them stand in one sorted list. What came lately stands in a tree beside it, which is merged into the
//! list, in place, whenever it has grown to a sixteenth of it.

use std::collections::BTreeMap;

use revocast_core::{Fingerprint, UnixTime};

/// The tree is not merged below this: for small realms it is all there is.
const LATELY_MIN: usize = 4_096;

/// The tree is merged when it has grown to this part of the list, so that each token is moved some sixteen times.
const LATELY_PART: usize = 16;

/// Tells a `jti` from others. Sorted by fingerprint first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) fingerprint: Fingerprint,
    /// Tells apart the few that share a fingerprint.
    pub(super) name: u64,
}

/// What was stated last: until when, and whether it is revoked, in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    /// Ledgers store times in signed 64 bits, so that the lowest bit is free.
    pub(super) fn new(exp: UnixTime, revoked: bool) -> Self {
        Self(exp.secs().min(u64::MAX >> 1) << 1 | u64::from(revoked))
    }

    const fn exp(self) -> UnixTime {
        UnixTime::from_secs(self.0 >> 1)
    }

    pub(super) const fn is_revoked(self) -> bool {
        self.0 & 1 == 1
    }
}

/// The tokens that a book knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    /// Sorted, each key once.
    list: Vec<(Key, State)>,
    /// Keys that are not in the list.
    lately: BTreeMap<Key, State>,
    /// Fingerprints with a token that is revoked.
    live: usize,
}

impl Tokens {
    /// States something about a token.
    pub(super) fn set(&mut self, key: Key, state: State) {
        let was_live = self.is_revoked(key.fingerprint);
        match self.place(key) {
            Ok(place) => self.list[place].1 = state,
            Err(_) => {
                self.lately.insert(key, state);
            }
        }
        match (was_live, self.is_revoked(key.fingerprint)) {
            (false, true) => self.live += 1,
            (true, false) => self.live -= 1,
            (true, true) | (false, false) => {}
        }
        if self.lately.len() > LATELY_MIN.max(self.list.len() / LATELY_PART) {
            let lately = std::mem::take(&mut self.lately);
            self.merge(lately.into_iter().collect());
        }
    }

    /// States many things, of which the later one holds where two speak of one token.
    pub(super) fn absorb(&mut self, pile: Vec<(Key, State)>) {
        // What stands in the tree came first, and sorting keeps the order of equals.
        let mut all: Vec<_> = std::mem::take(&mut self.lately).into_iter().collect();
        if all.is_empty() {
            all = pile;
        } else {
            all.extend(pile);
        }
        all.sort_by_key(|(key, _)| *key);
        all.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
        all.retain(|(key, state)| match self.place(*key) {
            Ok(place) => {
                self.list[place].1 = *state;
                false
            }
            Err(_) => true,
        });
        self.merge(all);
        self.count();
    }

    /// Merges sorted tokens, none of which is in the list, from the end, so that the list is not copied.
    fn merge(&mut self, mut sorted: Vec<(Key, State)>) {
        let Some(&filler) = sorted.last() else { return };
        let mut old = self.list.len();
        let mut new = old + sorted.len();
        // Not by doubling: half of it would stay empty.
        self.list.reserve_exact(sorted.len());
        self.list.resize(new, filler);
        while let Some(last) = sorted.last() {
            new -= 1;
            if old > 0 && self.list[old - 1].0 > last.0 {
                old -= 1;
                self.list[new] = self.list[old];
            } else {
                self.list[new] = *last;
                sorted.pop();
            }
        }
    }

    /// Whether any token with this fingerprint is revoked.
    pub(super) fn is_revoked(&self, fingerprint: Fingerprint) -> bool {
        let begin = self.list.partition_point(|(key, _)| key.fingerprint < fingerprint);
        let listed = self.list[begin..].iter().take_while(|(key, _)| key.fingerprint == fingerprint);
        let (first, last) = (Key { fingerprint, name: 0 }, Key { fingerprint, name: u64::MAX });
        listed
            .map(|(_, state)| state)
            .chain(self.lately.range(first..=last).map(|(_, state)| state))
            .any(|s| s.is_revoked())
    }

    /// The fingerprints with a token that is revoked, sorted.
    pub(super) fn revoked(&self) -> Vec<Fingerprint> {
        let mut revoked = Vec::with_capacity(self.live);
        let (mut list, mut lately) =
            (self.list.iter().copied().peekable(), self.lately.iter().map(|(k, s)| (*k, *s)).peekable());
        loop {
            let next = match (list.peek(), lately.peek()) {
                (Some((listed, _)), Some((recent, _))) if recent < listed => lately.next(),
                (None, _) => lately.next(),
                (Some(_), _) => list.next(),
            };
            let Some((key, state)) = next else { return revoked };
            if state.is_revoked() && revoked.last() != Some(&key.fingerprint) {
                revoked.push(key.fingerprint);
            }
        }
    }

    /// How many fingerprints [`Tokens::revoked`] gives.
    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Forgets tokens with `exp` up to `horizon`; returns how many of them were revoked.
    pub(super) fn forget(&mut self, horizon: UnixTime) -> usize {
        let mut ended = 0;
        let mut keep = |state: State| {
            let keep = state.exp() > horizon;
            ended += usize::from(!keep && state.is_revoked());
            keep
        };
        self.list.retain(|(_, state)| keep(*state));
        self.lately.retain(|_, state| keep(*state));
        if ended > 0 {
            self.count();
        }
        ended
    }

    /// What is stated of the tokens that could be forgotten at `horizon`.
    pub(super) fn forgettable(&self, horizon: UnixTime) -> impl Iterator<Item = State> {
        let states = self.list.iter().map(|(_, state)| state).chain(self.lately.values());
        states.copied().filter(move |state| state.exp() <= horizon)
    }

    fn count(&mut self) {
        self.live = self.revoked().len();
    }

    fn place(&self, key: Key) -> Result<usize, usize> {
        self.list.binary_search_by_key(&key, |(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use revocast_core::Width;

    use super::*;

    /// What a map and a pass over all of it say.
    #[derive(Default)]
    struct Model(BTreeMap<Key, (u64, bool)>);

    impl Model {
        fn revoked(&self) -> Vec<Fingerprint> {
            let mut revoked: Vec<_> =
                self.0.iter().filter(|(_, (_, revoked))| *revoked).map(|(key, _)| key.fingerprint).collect();
            revoked.dedup();
            revoked
        }
    }

    /// A small deterministic random source.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (self.0 >> 33) % end
        }
    }

    fn key(random: &mut Random) -> Key {
        let fingerprint = Fingerprint::from_bits(random.below(5_000), Width::W40).unwrap();
        // Some share a fingerprint.
        Key { fingerprint, name: random.below(3) }
    }

    fn statement(random: &mut Random) -> (Key, u64, bool) {
        (key(random), random.below(1_000), random.below(3) > 0)
    }

    #[test]
    fn a_token_takes_24_bytes() {
        assert_eq!(size_of::<(Key, State)>(), 24);
    }

    /// Statements one by one and in piles, and forgetting, in any order: what is revoked is what a plain map says.
    #[test]
    fn whatever_happens_it_says_what_a_plain_map_says() {
        for seed in 0..8 {
            let (mut random, mut tokens, mut model) = (Random(seed), Tokens::default(), Model::default());
            for step in 0..30 {
                match random.below(8) {
                    0 => {
                        let horizon = random.below(200);
                        let before = model.0.values().filter(|(_, revoked)| *revoked).count();
                        let forgettable = tokens.forgettable(UnixTime::from_secs(horizon)).count();
                        let known = model.0.len();
                        model.0.retain(|_, (exp, _)| *exp > horizon);
                        assert_eq!(forgettable, known - model.0.len());
                        let after = model.0.values().filter(|(_, revoked)| *revoked).count();
                        assert_eq!(tokens.forget(UnixTime::from_secs(horizon)), before - after);
                    }
                    1 | 2 => {
                        let pile: Vec<_> = (0..random.below(6_000)).map(|_| statement(&mut random)).collect();
                        model.0.extend(pile.iter().map(|(key, exp, revoked)| (*key, (*exp, *revoked))));
                        let state = |exp: u64, revoked| State::new(UnixTime::from_secs(exp), revoked);
                        tokens.absorb(pile.into_iter().map(|(key, exp, revoked)| (key, state(exp, revoked))).collect());
                    }
                    _ => {
                        for _ in 0..random.below(1_500) {
                            let (key, exp, revoked) = statement(&mut random);
                            model.0.insert(key, (exp, revoked));
                            tokens.set(key, State::new(UnixTime::from_secs(exp), revoked));
                        }
                    }
                }
                let revoked = model.revoked();
                assert_eq!(tokens.revoked(), revoked, "seed {seed}, step {step}");
                assert_eq!(tokens.live(), revoked.len(), "seed {seed}, step {step}");
                for bits in (0..5_000).step_by(7) {
                    let fingerprint = Fingerprint::from_bits(bits, Width::W40).unwrap();
                    assert_eq!(tokens.is_revoked(fingerprint), revoked.binary_search(&fingerprint).is_ok());
                }
            }
            assert!(tokens.list.len() > LATELY_MIN, "the list was used");
        }
    }
}
