//! Judges who asks, how often and for how much; everything in it can change while the server serves.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::Clock as MeterClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use revocast_core::{Digest, RealmId, UnixTime};

use super::approval::Approvals;
use super::{
    ADMIN, Approval, CREDENTIALS_FILE, Credential, CredentialsFile, CredentialsFileError, Realms, Role, SecretHash,
};
use crate::clock::Clock;
use crate::config::ApiLimits;
use crate::keys::AdminToken;
use crate::stamp::Stamp;

const DAY: Duration = Duration::from_hours(24);

/// What somebody offers as proof.
#[derive(Clone, Copy)]
pub enum Offer<'a> {
    /// A secret alone (RFC 6750).
    Secret(&'a [u8]),
    /// The name of a credential and its secret (RFC 7617, RFC 6749 section 2.3.1).
    Named {
        /// The name.
        name: &'a str,
        /// The secret.
        secret: &'a [u8],
    },
}

/// A limit was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// Room comes back with time.
    Wait(Duration),
    /// More at once than the limit ever allows.
    Never {
        /// The limit.
        limit: u32,
    },
}

/// Credentials, limits and the rule of two.
pub struct Gate {
    folder: PathBuf,
    admin: Arc<Credential>,
    book: RwLock<Book>,
    limits: RwLock<ApiLimits>,
    /// Whether every cutoff of a whole realm needs a second credential.
    approve: bool,
    approvals: Approvals,
    meters: Mutex<HashMap<String, Arc<Meter>>>,
    clock: Arc<dyn Clock>,
}

/// The credentials as last read, and what the file looked like then.
struct Book {
    credentials: Vec<Arc<Credential>>,
    seen: Option<Stamp>,
}

impl Gate {
    /// Reads the credentials in the folder of the keys.
    pub fn open(
        folder: &Path,
        admin: &AdminToken,
        limits: ApiLimits,
        approve: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CredentialsFileError> {
        let secret = SecretHash::of(admin.as_str(), UnixTime::from_secs(0));
        let gate = Self {
            folder: folder.to_owned(),
            admin: Arc::new(Credential::new(ADMIN, vec![Role::Admin], Realms::All, secret)),
            book: RwLock::new(Book { credentials: Vec::new(), seen: None }),
            limits: RwLock::new(limits),
            approve,
            approvals: Approvals::default(),
            meters: Mutex::default(),
            clock,
        };
        gate.reload()?;
        Ok(gate)
    }

    /// Reads the credentials again. If they cannot be used, those from before stay in force.
    pub fn reload(&self) -> Result<(), CredentialsFileError> {
        // Looked at before it is read: what changes meanwhile is read once more.
        let seen = Stamp::of(&self.folder.join(CREDENTIALS_FILE));
        let read = CredentialsFile::load(&self.folder);
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        // Told once, not with every request.
        book.seen = seen;
        book.credentials = read?.credentials().iter().cloned().map(Arc::new).collect();
        tracing::info!(credentials = book.credentials.len(), "credentials read");
        Ok(())
    }

    /// The limits in force.
    pub fn limits(&self) -> ApiLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits, from the next request on.
    pub fn set_limits(&self, limits: ApiLimits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The server's time.
    pub(crate) fn now(&self) -> UnixTime {
        self.clock.unix_time()
    }

    /// Whose proof this is. Compares with everybody's, in a time that does not tell whose was close.
    pub fn identify(&self, offer: Offer<'_>) -> Option<Arc<Credential>> {
        self.follow();
        let now = self.clock.unix_time();
        let (name, secret) = match offer {
            Offer::Secret(secret) => (None, secret),
            Offer::Named { name, secret } => (Some(name), secret),
        };
        let offered = Digest::of(secret);
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let everybody = book.credentials.iter().chain([&self.admin]);
        // All are compared, also after one has fit.
        let mut proven = None;
        for credential in everybody {
            if credential.is_proven_by(&offered) {
                proven = Some(Arc::clone(credential));
            }
        }
        proven.filter(|credential| credential.is_valid(now) && name.is_none_or(|name| name == credential.name))
    }

    /// Reads the file again if it has changed since.
    fn follow(&self) {
        let seen = Stamp::of(&self.folder.join(CREDENTIALS_FILE));
        if self.book.read().unwrap_or_else(PoisonError::into_inner).seen != seen
            && let Err(error) = self.reload()
        {
            tracing::error!(%error, "the credentials have changed and cannot be used; those from before stay in force");
        }
    }

    /// Counts one request of a credential.
    pub fn count_request(&self, credential: &Credential) -> Result<(), Overrun> {
        let meter = self.meter(credential);
        meter.requests.as_ref().map_or(Ok(()), |meter| take(meter, 1))
    }

    /// Counts entries that a credential wants recorded.
    pub fn count_entries(&self, credential: &Credential, entries: u32) -> Result<(), Overrun> {
        let meter = self.meter(credential);
        meter.entries.as_ref().map_or(Ok(()), |meter| take(meter, entries))
    }

    /// Asks for a cutoff of a whole realm; nothing if one credential is enough for it.
    pub fn approve(&self, credential: &Credential, realm: RealmId, not_before: Option<UnixTime>) -> Option<Approval> {
        let needed = self.approve || credential.approve;
        needed.then(|| self.approvals.ask(self.now(), realm, not_before, &credential.name))
    }

    fn meters(&self) -> MutexGuard<'_, HashMap<String, Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a credential has used, begun anew if its limits have changed.
    fn meter(&self, credential: &Credential) -> Arc<Meter> {
        let limits = self.limits();
        // The admin is limited only where that is said of everybody.
        let rates = Rates {
            requests_per_second: credential.requests_per_second.or(limits.requests_per_second),
            bulk_per_day: credential.bulk_per_day.or(limits.bulk_per_day),
        };
        let mut meters = self.meters();
        match meters.get(&credential.name) {
            Some(meter) if meter.rates == rates => Arc::clone(meter),
            // As many as there are credentials, and those that were removed since the start.
            Some(_) | None => {
                let meter = Arc::new(Meter::new(rates, &self.clock));
                meters.insert(credential.name.clone(), Arc::clone(&meter));
                meter
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({})", self.folder.display())
    }
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, Uptime, NoOpMiddleware<Duration>>;

/// The limits of one credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rates {
    requests_per_second: Option<u32>,
    bulk_per_day: Option<u64>,
}

/// Two token buckets: one fills in a second, the other in a day. In memory: a restart fills both.
struct Meter {
    rates: Rates,
    requests: Option<Bucket>,
    entries: Option<Bucket>,
}

impl Meter {
    fn new(rates: Rates, clock: &Arc<dyn Clock>) -> Self {
        let bucket = |size: u64, period: Duration| {
            // More than 2^32 a day is no limit.
            let size = NonZeroU32::new(u32::try_from(size).unwrap_or(u32::MAX))?;
            let quota = Quota::with_period(period / size.get())?.allow_burst(size);
            Some(RateLimiter::direct_with_clock(quota, Uptime(Arc::clone(clock))))
        };
        Self {
            rates,
            requests: rates.requests_per_second.and_then(|size| bucket(size.into(), Duration::from_secs(1))),
            entries: rates.bulk_per_day.and_then(|size| bucket(size, DAY)),
        }
    }
}

fn take(bucket: &Bucket, number: u32) -> Result<(), Overrun> {
    let Some(number) = NonZeroU32::new(number) else {
        return Ok(());
    };
    match bucket.check_n(number) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(until)) => Err(Overrun::Wait(until.wait_time_from(bucket.clock().now()))),
        Err(too_many) => Err(Overrun::Never { limit: too_many.0 }),
    }
}

/// The server's clock, as the buckets read it.
#[derive(Clone)]
struct Uptime(Arc<dyn Clock>);

impl MeterClock for Uptime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.now().uptime
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    use revocast_core::{Now, UnixMillis};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct SetClock(AtomicU64);

    impl Clock for SetClock {
        fn now(&self) -> Now {
            let secs = self.0.load(Ordering::Relaxed);
            Now::new(UnixMillis::from_millis((NOW + secs) * 1_000), Duration::from_secs(secs))
        }
    }

    struct Site {
        folder: tempfile::TempDir,
        gate: Gate,
        clock: Arc<SetClock>,
    }

    const ADMIN_SECRET: &str = "the-admin-secret-of-this-test-which-is-long";

    fn site(limits: ApiLimits) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SetClock(AtomicU64::new(0)));
        let admin = AdminToken::new(ADMIN_SECRET).unwrap();
        let gate = Gate::open(folder.path(), &admin, limits, false, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        Site { folder, gate, clock }
    }

    fn add(site: &Site, name: &str, change: impl FnOnce(&mut Credential)) -> String {
        let (secret, hash) = SecretHash::draw(UnixTime::from_secs(NOW)).unwrap();
        let mut credential = Credential::new(name, vec![Role::Revoker], Realms::All, hash);
        change(&mut credential);
        CredentialsFile::change(site.folder.path(), |file| file.add(credential)).unwrap();
        secret
    }

    fn who(site: &Site, secret: &str) -> Option<String> {
        site.gate.identify(Offer::Secret(secret.as_bytes())).map(|credential| credential.name.clone())
    }

    #[test]
    fn what_the_file_says_holds_from_the_next_request_on() {
        let site = site(ApiLimits::default());
        assert_eq!(who(&site, ADMIN_SECRET).as_deref(), Some("admin"));
        assert_eq!(who(&site, ""), None);
        let secret = add(&site, "ci", |_| {});
        assert_eq!(who(&site, &secret).as_deref(), Some("ci"));
        // The new secret and the old one.
        let (second, hash) = SecretHash::draw(UnixTime::from_secs(NOW)).unwrap();
        CredentialsFile::change(site.folder.path(), |file| file.find("ci").map(|ci| ci.rotate(hash))).unwrap();
        assert_eq!((who(&site, &secret), who(&site, &second)), (Some("ci".into()), Some("ci".into())));
        CredentialsFile::change(site.folder.path(), |file| file.remove("ci")).unwrap();
        assert_eq!((who(&site, &secret), who(&site, &second)), (None, None));
        assert_eq!(who(&site, ADMIN_SECRET).as_deref(), Some("admin"));
    }

    #[test]
    fn a_bad_file_changes_nothing_and_a_bad_start_does_not_happen() {
        let site = site(ApiLimits::default());
        let secret = add(&site, "ci", |_| {});
        assert!(who(&site, &secret).is_some());
        let path = site.folder.path().join(CREDENTIALS_FILE);
        fs::write(&path, "{oops").unwrap();
        assert_eq!(who(&site, &secret).as_deref(), Some("ci"));
        assert!(site.gate.reload().is_err());
        let admin = AdminToken::new(ADMIN_SECRET).unwrap();
        let started = Gate::open(site.folder.path(), &admin, ApiLimits::default(), false, site.clock.clone());
        assert!(matches!(started, Err(CredentialsFileError::Malformed { .. })));
        fs::remove_file(&path).unwrap();
        assert_eq!(who(&site, &secret), None);
    }

    #[test]
    fn a_name_must_fit_its_secret_and_an_expired_one_is_nobody() {
        let site = site(ApiLimits::default());
        let (ci, ops) =
            (add(&site, "ci", |_| {}), add(&site, "ops", |one| one.expires = Some(UnixTime::from_secs(NOW + 5))));
        let named = |name, secret: &str| site.gate.identify(Offer::Named { name, secret: secret.as_bytes() });
        assert!(named("ci", &ci).is_some() && named("ops", &ops).is_some() && named(ADMIN, ADMIN_SECRET).is_some());
        assert!(named("ops", &ci).is_none() && named("", &ci).is_none() && named("ci", "").is_none());
        site.clock.0.store(5, Ordering::Relaxed);
        assert!(named("ops", &ops).is_none() && who(&site, &ops).is_none());
        assert!(named("ci", &ci).is_some());
    }

    #[test]
    fn requests_and_entries_are_counted_for_each_credential() {
        let limits = ApiLimits { requests_per_second: Some(3), bulk_per_day: Some(100), ..ApiLimits::default() };
        let site = site(limits);
        let (ci, ops) = (add(&site, "ci", |_| {}), add(&site, "ops", |one| one.bulk_per_day = Some(1_000)));
        let of = |secret: &str| site.gate.identify(Offer::Secret(secret.as_bytes())).unwrap();
        let (ci, ops) = (of(&ci), of(&ops));
        for _ in 0..3 {
            assert_eq!(site.gate.count_request(&ci), Ok(()));
        }
        let Err(Overrun::Wait(wait)) = site.gate.count_request(&ci) else { panic!("a fourth") };
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(site.gate.count_request(&ops), Ok(()), "one does not use up the other's");
        site.clock.0.store(1, Ordering::Relaxed);
        assert_eq!(site.gate.count_request(&ci), Ok(()));

        assert_eq!(site.gate.count_entries(&ci, 100), Ok(()));
        let Err(Overrun::Wait(wait)) = site.gate.count_entries(&ci, 50) else { panic!("over a day's") };
        assert!((Duration::from_hours(11)..Duration::from_hours(13)).contains(&wait), "{wait:?}");
        assert_eq!(site.gate.count_entries(&ci, 101), Err(Overrun::Never { limit: 100 }));
        assert_eq!(site.gate.count_entries(&ops, 900), Ok(()));
        // Half a day later half of it is there again.
        site.clock.0.store(12 * 3_600 + 2, Ordering::Relaxed);
        assert_eq!(site.gate.count_entries(&ci, 50), Ok(()));
        // Limits change while it serves.
        site.gate.set_limits(ApiLimits { bulk_per_day: None, ..limits });
        assert_eq!(site.gate.count_entries(&ci, 1_000_000), Ok(()));
    }
}
