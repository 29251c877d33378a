//! Which token came of which, and what that decides: whether one is handed out, and what a revoke takes with it. The
//! same for every backend.
//!
//! All tokens that can descend from one another are one *family*: those of a device, or those that began with one token
//! of somebody else. A family is small, so what descends from a token is found by reading it.

use std::collections::{BTreeMap, BTreeSet};

use revocast_core::{DeviceId, Jti, Sequence, UnixTime};

use super::issuance::{
    DEVICES_MAX, Device, Dismissal, Enrollment, FAMILY_REFRESHES_MAX, FAMILY_TOKENS_MAX, Issuance, IssuedToken,
    NewDevice, NewToken, NoToken, Order, OrderError, RefreshState, RefreshStep, RefreshToken, Renewal,
};
use super::registry::{Coverage, Issued, Key, Register};
use super::rules::{self, Counters, Halt, Last, Standing, Subject};
use super::{Action, Expiry, LedgerError, Realm, Request, Scope};

/// Tokens that one call may revoke because of others: its transaction must end, and the next call takes the rest.
pub(super) const DESCENDANTS_MAX: usize = 100_000;

/// Why a token was revoked that nobody named.
const DESCENDS: &str = "a token that it descends from was revoked";

/// Why the tokens of a device were revoked when another one took its place.
const REPLACED: &str = "the device was enrolled anew";

/// Why a family was revoked.
const REUSED: &str = "a refresh token was spent twice";

/// Why a parent was revoked.
const RENEWED: &str = "it was renewed";

/// One realm's devices, tokens and refresh tokens inside one transaction, those of this transaction included.
pub(super) trait Lineage: Register {
    /// One token, however old.
    fn token(&mut self, jti: &str) -> Result<Option<IssuedToken>, Self::Error>;

    /// The tokens of a family that are kept beyond `horizon`, in any order.
    fn family(&mut self, family: &str, horizon: UnixTime) -> Result<Vec<IssuedToken>, Self::Error>;

    /// How many they are.
    fn family_size(&mut self, family: &str, horizon: UnixTime) -> Result<usize, Self::Error>;

    /// One refresh token, however old.
    fn refresh(&mut self, hash: &[u8; 32]) -> Result<Option<RefreshToken>, Self::Error>;

    /// The refresh tokens of a family that are live, in any order.
    fn live_refreshes(&mut self, family: &str) -> Result<Vec<RefreshToken>, Self::Error>;

    /// One device.
    fn device(&mut self, id: DeviceId) -> Result<Option<Device>, Self::Error>;

    /// Keeps a token that was not there.
    fn put_token(&mut self, token: &IssuedToken) -> Result<(), Self::Error>;

    /// Keeps a refresh token, or its new state.
    fn put_refresh(&mut self, refresh: &RefreshToken) -> Result<(), Self::Error>;

    /// Keeps a device, or what became of it.
    fn put_device(&mut self, device: &Device) -> Result<(), Self::Error>;

    /// Forgets a device that is there.
    fn remove_device(&mut self, id: DeviceId) -> Result<(), Self::Error>;
}

type Outcome<T, S> = Result<T, Halt<<S as rules::Shelf>::Error>>;

/// What revoking several tokens came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Toll {
    /// Entries that are new.
    pub(super) recorded: usize,
    /// The highest entry that holds for one of them.
    pub(super) sequence: Option<Sequence>,
}

/// One call to a ledger, and what all that it revokes has in common.
pub(super) struct Cause<'a> {
    pub(super) realm: &'a Realm,
    pub(super) now: UnixTime,
    pub(super) reason: Option<&'a str>,
    pub(super) actor: &'a str,
}

/// Revokes what descends from `jti`, and ends what could continue it or them. Comes after the revoke of `jti` itself,
/// also where that holds already: it may have been recorded for this token alone.
pub(super) fn revoke_descendants<S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    jti: &str,
) -> Outcome<Toll, S> {
    let horizon = cause.realm.horizon(cause.now);
    let Some(root) = shelf.token(jti).map_err(Halt::Storage)?.filter(|token| token.kept_until > horizon) else {
        return Ok(Toll::default());
    };
    let family = shelf.family(&root.family, horizon).map_err(Halt::Storage)?;
    let doomed = descendants(&family, jti);
    let reason = cause.reason.unwrap_or(DESCENDS);
    let live = family.iter().filter(|token| token.jti != jti && doomed.contains(token.jti.as_str()));
    let toll = revoke_all(shelf, counters, &Cause { reason: Some(reason), ..*cause }, live)?;
    end(shelf, &root, &doomed)?;
    Ok(toll)
}

/// `jti` and all that came of it.
fn descendants<'a>(family: &'a [IssuedToken], jti: &'a str) -> BTreeSet<&'a str> {
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for token in family {
        if let Some(parent) = &token.parent {
            children.entry(parent).or_default().push(&token.jti);
        }
    }
    let (mut found, mut ahead) = (BTreeSet::from([jti]), vec![jti]);
    while let Some(parent) = ahead.pop() {
        for child in children.remove(parent).into_iter().flatten() {
            if found.insert(child) {
                ahead.push(child);
            }
        }
    }
    found
}

/// Revokes those of these tokens that somebody may still honor.
fn revoke_all<'a, S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    tokens: impl Iterator<Item = &'a IssuedToken>,
) -> Outcome<Toll, S> {
    let horizon = cause.realm.horizon(cause.now);
    let mut live: Vec<_> = tokens.filter(|token| token.exp > horizon).collect();
    // Whatever order a backend has: numbers are the same.
    live.sort_unstable_by(|one, other| (one.iat, &one.jti).cmp(&(other.iat, &other.jti)));
    let mut toll = Toll::default();
    for token in live {
        let receipt = rules::record(shelf, cause.realm, counters, cause.now, revoke(token, cause))?;
        toll.recorded += usize::from(receipt.recorded);
        toll.sequence = toll.sequence.max(Some(receipt.sequence));
    }
    Ok(toll)
}

fn revoke(token: &IssuedToken, cause: &Cause<'_>) -> Request {
    Request {
        action: Action::Revoke { jti: token.jti.clone(), exp: Expiry::Vouched(token.exp) },
        reason: cause.reason.map(str::to_owned),
        actor: cause.actor.to_owned(),
    }
}

/// Ends the refresh tokens that came with one of `doomed`, and bars the device if it holds one of them.
fn end<S: Lineage>(shelf: &mut S, root: &IssuedToken, doomed: &BTreeSet<&str>) -> Outcome<(), S> {
    for refresh in shelf.live_refreshes(&root.family).map_err(Halt::Storage)? {
        if doomed.contains(refresh.jti.as_str()) {
            shelf.put_refresh(&RefreshToken { state: RefreshState::Ended, ..refresh }).map_err(Halt::Storage)?;
        }
    }
    let Some(device) = root.device.map(|id| shelf.device(id)).transpose().map_err(Halt::Storage)?.flatten() else {
        return Ok(());
    };
    if !device.barred && device.holds.as_deref().is_some_and(|held| doomed.contains(held)) {
        shelf.put_device(&Device { barred: true, ..device }).map_err(Halt::Storage)?;
    }
    Ok(())
}

/// A revoke was a mistake: the device that holds the token may continue it again.
pub(super) fn reinstated<S: Lineage>(shelf: &mut S, jti: &str) -> Outcome<(), S> {
    let Some(id) = shelf.token(jti).map_err(Halt::Storage)?.and_then(|token| token.device) else { return Ok(()) };
    match shelf.device(id).map_err(Halt::Storage)? {
        Some(device) if device.barred && device.holds.as_deref() == Some(jti) => {
            shelf.put_device(&Device { barred: false, ..device }).map_err(Halt::Storage)
        }
        Some(_) | None => Ok(()),
    }
}

/// Enrolls a device, or finds it again. After a [`Halt`] the transaction, `counters` included, must be undone.
pub(super) fn enroll<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    device: NewDevice,
) -> Outcome<Enrollment, S> {
    let mut sequence = None;
    match shelf.device(device.id).map_err(Halt::Storage)? {
        Some(held) if device.is(&held) => return Ok(Enrollment { device: held, created: false, sequence: None }),
        Some(_) if !device.replace => {
            return Err(Halt::Refused(LedgerError::DeviceTaken { device: device.id }));
        }
        Some(held) => {
            let cause = Cause { realm, now, reason: Some(REPLACED), actor: &device.actor };
            let toll = revoke_device(shelf, counters, &cause, held.id)?;
            sequence = toll.sequence.filter(|_| toll.recorded > 0);
        }
        None if counters.devices >= DEVICES_MAX => {
            return Err(Halt::Refused(LedgerError::DevicesFull { realm: realm.id }));
        }
        None => counters.devices += 1,
    }
    let device = device.enrolled(now);
    shelf.put_device(&device).map_err(Halt::Storage)?;
    Ok(Enrollment { device, created: true, sequence })
}

/// Forgets a device, and revokes its live tokens. After a [`Halt`] the transaction must be undone.
pub(super) fn dismiss<S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    id: DeviceId,
) -> Outcome<Dismissal, S> {
    if shelf.device(id).map_err(Halt::Storage)?.is_none() {
        return Ok(Dismissal::Unknown);
    }
    let toll = revoke_device(shelf, counters, cause, id)?;
    shelf.remove_device(id).map_err(Halt::Storage)?;
    counters.devices = counters.devices.saturating_sub(1);
    Ok(Dismissal::Dismissed { revoked: toll.recorded, sequence: toll.sequence.unwrap_or(counters.head) })
}

/// Revokes all live tokens of a device and ends its refresh tokens.
fn revoke_device<S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    id: DeviceId,
) -> Outcome<Toll, S> {
    revoke_family(shelf, counters, cause, id.as_str(), Some(id))
}

/// Ends the family of a refresh token, whatever became of that one. After a [`Halt`] the transaction must be undone.
pub(super) fn withdraw<S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    hash: &[u8; 32],
) -> Outcome<Option<Sequence>, S> {
    let Some(refresh) = shelf.refresh(hash).map_err(Halt::Storage)? else { return Ok(None) };
    Ok(revoke_family(shelf, counters, cause, &refresh.family, refresh.device)?.sequence)
}

/// Revokes all live tokens of a family and ends its refresh tokens. A `jti` may be spelled like the name of a device:
/// the device tells which of the two families is meant.
fn revoke_family<S: Lineage>(
    shelf: &mut S,
    counters: &mut Counters,
    cause: &Cause<'_>,
    family: &str,
    device: Option<DeviceId>,
) -> Outcome<Toll, S> {
    let tokens = shelf.family(family, cause.realm.horizon(cause.now)).map_err(Halt::Storage)?;
    let toll = revoke_all(shelf, counters, cause, tokens.iter().filter(|token| token.device == device))?;
    for refresh in shelf.live_refreshes(family).map_err(Halt::Storage)? {
        if refresh.device == device {
            shelf.put_refresh(&RefreshToken { state: RefreshState::Ended, ..refresh }).map_err(Halt::Storage)?;
        }
    }
    let Some(held) = device.map(|id| shelf.device(id)).transpose().map_err(Halt::Storage)?.flatten() else {
        return Ok(toll);
    };
    if held.holds.is_some() && !held.barred {
        shelf.put_device(&Device { barred: true, ..held }).map_err(Halt::Storage)?;
    }
    Ok(toll)
}

/// What a new token continues.
struct Parent {
    jti: String,
    iat: UnixTime,
    sub: Option<String>,
    kid: Option<String>,
    client: Option<String>,
    family: String,
    /// As it is kept; `None` if only a refresh token remembers it.
    kept: Option<IssuedToken>,
}

impl Parent {
    fn of_token(token: IssuedToken) -> Self {
        let IssuedToken { jti, iat, sub, kid, client, family, .. } = token.clone();
        Self { jti, iat, sub, kid, client, family, kept: Some(token) }
    }

    fn of_refresh(refresh: &RefreshToken, kept: Option<IssuedToken>) -> Self {
        let RefreshToken { jti, iat, sub, kid, client, family, .. } = refresh.clone();
        Self { jti, iat, sub, kid, client, family, kept }
    }
}

/// Records a token that is about to be signed, or says why it may not be. After a [`Halt`] the transaction, `counters`
/// and `coverage` included, must be undone; after a refusal it must be kept, since it may have revoked a family.
pub(super) fn issue<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    coverage: &mut Coverage,
    now: UnixTime,
    order: Order,
) -> Outcome<Issuance, S> {
    order.check(realm, now).map_err(Halt::Refused)?;
    let (device, spent, parent) = match grant(shelf, realm, counters, now, &order)? {
        Ok(granted) => granted,
        Err(refusal) => return Ok(Issuance::Refused(refusal)),
    };
    let Order { token, renewal, refresh, revoke_parent, actor, .. } = order;
    let family = match (&device, &parent) {
        (Some(device), _) => device.id.as_str().to_owned(),
        (None, Some(parent)) => parent.family.clone(),
        (None, None) => token.jti.clone(),
    };
    let is_new = device.is_none() && parent.is_none();
    let next = refresh.and_then(|step| step.next);
    if !is_new && let Some(refusal) = crowded(shelf, realm, counters, now, &family, next.is_some() && spent.is_none())?
    {
        return Ok(Issuance::Refused(refusal));
    }

    register(shelf, coverage, realm, &token)?;
    let ancestors_until = parent.as_ref().and_then(|parent| parent.kept.as_ref()).map(|kept| kept.kept_until);
    let NewToken { jti, iat, exp, sub, kid, client } = token;
    let issued = IssuedToken {
        jti,
        iat,
        exp,
        sub,
        kid,
        client,
        device: device.as_ref().map(|device| device.id),
        parent: parent.as_ref().map(|parent| parent.jti.clone()),
        family,
        kept_until: ancestors_until.map_or(exp, |until| until.max(exp)),
    };
    shelf.put_token(&issued).map_err(Halt::Storage)?;
    counters.tokens += 1;
    if let Some(device) = device {
        let counter = renewal.and_then(|renewal| renewal.counter).unwrap_or(device.counter);
        let (holds, held_until) = (Some(issued.jti.clone()), Some(issued.exp));
        let holding = Device { counter, holds, held_until, barred: false, ..device };
        shelf.put_device(&holding).map_err(Halt::Storage)?;
    }
    if let Some(spent) = spent {
        shelf.put_refresh(&RefreshToken { state: RefreshState::Spent, ..spent }).map_err(Halt::Storage)?;
    }
    if let Some(next) = next {
        if shelf.refresh(&next.hash).map_err(Halt::Storage)?.is_some() {
            return Err(Halt::Refused(OrderError::Taken.into()));
        }
        let IssuedToken { jti, iat, sub, kid, client, device, family, .. } = issued;
        let (hash, exp, state) = (next.hash, rules::storable(next.exp), RefreshState::Live);
        let refresh = RefreshToken { hash, exp, state, jti, iat, sub, kid, client, device, family };
        shelf.put_refresh(&refresh).map_err(Halt::Storage)?;
        counters.refreshes += 1;
    }
    let replaced = parent.filter(|_| revoke_parent).and_then(|parent| parent.kept);
    let cause = Cause { realm, now, reason: Some(RENEWED), actor: &actor };
    let toll = revoke_all(shelf, counters, &cause, replaced.iter())?;
    Ok(Issuance::Issued { sequence: toll.sequence })
}

type Granted = (Option<Device>, Option<RefreshToken>, Option<Parent>);

/// Whether an order is granted: for which device, which refresh token it spends, and which token it continues.
fn grant<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    order: &Order,
) -> Outcome<Result<Granted, NoToken>, S> {
    let device = match order.device {
        None => None,
        Some(id) => match shelf.device(id).map_err(Halt::Storage)? {
            None => return Ok(Err(NoToken::DeviceUnknown)),
            found => found,
        },
    };
    let counter = order.renewal.as_ref().and_then(|renewal| renewal.counter);
    if let (Some(device), Some(counter)) = (&device, counter)
        && counter <= device.counter
    {
        return Ok(Err(NoToken::Replayed { counter: device.counter }));
    }
    let spent = match order.refresh {
        Some(RefreshStep { spends: Some(hash), .. }) => match spend(shelf, realm, counters, now, order, &hash)? {
            Ok(refresh) => Some(refresh),
            Err(refusal) => return Ok(Err(refusal)),
        },
        Some(RefreshStep { spends: None, .. }) | None => None,
    };
    let parent = match find_parent(shelf, realm, now, order, device.as_ref(), spent.as_ref())? {
        Ok(parent) => parent,
        Err(refusal) => return Ok(Err(refusal)),
    };

    let asked = order.renewal.is_some() || spent.is_some();
    if asked && device.as_ref().is_some_and(|device| device.barred) {
        return Ok(Err(NoToken::ParentRevoked));
    }
    if let Some(Parent { jti, iat, sub, kid, client, .. }) = &parent {
        let last = shelf.last(Subject::Token(jti)).map_err(Halt::Storage)?;
        if matches!(last, Some(Last { standing: Standing::Revoked { .. }, .. })) {
            return Ok(Err(NoToken::ParentRevoked));
        }
        if let Some(not_before) = cut(shelf, counters, *iat, [sub, kid, client])? {
            return Ok(Err(NoToken::CutOff { not_before }));
        }
    }
    let NewToken { iat, sub, kid, client, .. } = &order.token;
    if let Some(not_before) = cut(shelf, counters, *iat, [sub, kid, client])? {
        return Ok(Err(NoToken::CutOff { not_before }));
    }
    Ok(Ok((device, spent, parent)))
}

/// The refresh token that an order spends. One that was spent before takes its family with it.
fn spend<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &mut Counters,
    now: UnixTime,
    order: &Order,
    hash: &[u8; 32],
) -> Outcome<Result<RefreshToken, NoToken>, S> {
    let Some(refresh) = shelf.refresh(hash).map_err(Halt::Storage)? else {
        return Ok(Err(NoToken::RefreshUnknown));
    };
    if refresh.exp <= now {
        return Ok(Err(NoToken::RefreshExpired));
    }
    match refresh.state {
        RefreshState::Live => {}
        RefreshState::Ended => return Ok(Err(NoToken::ParentRevoked)),
        RefreshState::Spent => {
            let cause = Cause { realm, now, reason: Some(REUSED), actor: &order.actor };
            revoke_family(shelf, counters, &cause, &refresh.family, refresh.device)?;
            return Ok(Err(NoToken::RefreshReused));
        }
    }
    let named = order.renewal.as_ref().and_then(|renewal| renewal.parent.as_ref());
    if refresh.device != order.device || named.is_some_and(|named| *named != refresh.jti) {
        return Ok(Err(NoToken::NotHeld));
    }
    Ok(Ok(refresh))
}

/// The token that an order continues.
fn find_parent<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    now: UnixTime,
    order: &Order,
    device: Option<&Device>,
    spent: Option<&RefreshToken>,
) -> Outcome<Result<Option<Parent>, NoToken>, S> {
    let horizon = realm.horizon(now);
    if let Some(refresh) = spent {
        // A refresh token outlives the token that it came with.
        let kept = shelf.token(&refresh.jti).map_err(Halt::Storage)?.filter(|token| token.kept_until > horizon);
        return Ok(Ok(Some(Parent::of_refresh(refresh, kept))));
    }
    match &order.renewal {
        None => Ok(Ok(None)),
        Some(Renewal { parent: Some(jti), .. }) => {
            let token = shelf.token(jti).map_err(Halt::Storage)?;
            let token = token.filter(|token| token.device == order.device && token.kept_until > horizon);
            let Some(token) = token else { return Ok(Err(NoToken::NotHeld)) };
            // Whether it is revoked is asked before whether it has expired: that is what its holder must hear.
            let last = shelf.last(Subject::Token(jti)).map_err(Halt::Storage)?;
            let is_revoked = matches!(last, Some(Last { standing: Standing::Revoked { .. }, .. }));
            if token.exp <= horizon && !is_revoked {
                return Ok(Err(NoToken::ParentExpired));
            }
            Ok(Ok(Some(Parent::of_token(token))))
        }
        // What it was given last, whatever it says: a device whose token was revoked does not get another by keeping
        // silent about it.
        Some(Renewal { parent: None, .. }) => {
            let Some(held) = device.and_then(|device| device.holds.as_deref()) else { return Ok(Ok(None)) };
            let token = shelf.token(held).map_err(Halt::Storage)?;
            Ok(Ok(token.filter(|token| token.exp > horizon).map(Parent::of_token)))
        }
    }
}

/// The cutoff that a token falls under, if there is one.
fn cut<S: Lineage>(
    shelf: &mut S,
    counters: &Counters,
    iat: UnixTime,
    [sub, kid, client]: [&Option<String>; 3],
) -> Outcome<Option<UnixTime>, S> {
    if counters.cutoffs == 0 {
        return Ok(None);
    }
    for scope in scopes([sub, kid, client]) {
        match shelf.last(Subject::Scope(&scope)).map_err(Halt::Storage)? {
            Some(Last { standing: Standing::Cut { not_before }, .. }) if iat < not_before => {
                return Ok(Some(not_before));
            }
            Some(_) | None => {}
        }
    }
    Ok(None)
}

/// The scopes that a token is in.
pub(super) fn scopes([sub, kid, client]: [&Option<String>; 3]) -> impl Iterator<Item = Scope> {
    let named = [sub.clone().map(Scope::Sub), kid.clone().map(Scope::Kid), client.clone().map(Scope::Client)];
    std::iter::once(Scope::Realm).chain(named.into_iter().flatten())
}

/// Whether a family has no room for another token, or for another live refresh token if that is what it gets.
fn crowded<S: Lineage>(
    shelf: &mut S,
    realm: &Realm,
    counters: &Counters,
    now: UnixTime,
    family: &str,
    refreshes: bool,
) -> Outcome<Option<NoToken>, S> {
    // Where the whole realm has less than one family may have, nobody counts.
    let tokens = if counters.tokens < FAMILY_TOKENS_MAX as u64 {
        0
    } else {
        shelf.family_size(family, realm.horizon(now)).map_err(Halt::Storage)?
    };
    if tokens >= FAMILY_TOKENS_MAX
        || refreshes && shelf.live_refreshes(family).map_err(Halt::Storage)?.len() >= FAMILY_REFRESHES_MAX
    {
        return Ok(Some(NoToken::FamilyFull { tokens }));
    }
    Ok(None)
}

/// Registers the token in the transaction that issues it (design rule 17).
fn register<S: Lineage>(shelf: &mut S, coverage: &mut Coverage, realm: &Realm, token: &NewToken) -> Outcome<(), S> {
    let jti = Jti::new(&token.jti).map_err(|source| Halt::Refused(LedgerError::Jti { index: 0, source }))?;
    let key = Key::of(&realm.fingerprinter, jti);
    let issued = Issued { jti: token.jti.clone(), iat: token.iat, exp: token.exp, sub: token.sub.clone() };
    if shelf.token(&token.jti).map_err(Halt::Storage)?.is_some()
        || shelf.last(Subject::Token(&token.jti)).map_err(Halt::Storage)?.is_some()
        || shelf.enroll(key, &issued).map_err(Halt::Storage)?.is_some()
    {
        return Err(Halt::Refused(OrderError::Taken.into()));
    }
    coverage.registered += 1;
    Ok(())
}
