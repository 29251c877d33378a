//! `revocast demo`: a revocation on its way from an HTTP request to devices that refuse a real token,
//! and everything restarted on the way. Nothing is simulated: API, ledger, broker and devices are the
//! ones that `serve` and `agent` run, each device with its own connection and state folder.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::{Config, Hold, Profile, RealmId, Sequence, Trust, Verdict};
use revocast_device::{
    BrokerUrl, ClientId, Device, DeviceConfig, DiskStore, KeySet, Policy, Rejection, SystemClock, Validator,
    ValidatorConfig, random_seed,
};
use revocast_server::clock::{Clock as _, SystemClock as ServerClock};
use revocast_server::config::{BrokerChoice, Choices};
use revocast_server::keys::{IssuerKey, Keys};
use revocast_server::server::Server;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use crate::admin::Api;
use crate::args::Demo;
use crate::output::{Failure, Output};
use crate::{holding, keygen, runtime};

const REALM: &str = "demo";
const ISSUER: &str = "https://issuer.demo.example";
const AUDIENCE: &str = "https://api.demo.example";

/// Revocations whose way to every device is timed one by one.
const TIMED: usize = 20;

/// Longest wait for anything that should happen by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Devices in the field spread a move to a new epoch over ten minutes; nobody would wait for that here.
const EPOCH_JITTER: Duration = Duration::from_millis(500);

/// Revocations in one request: below the server's limit.
const BATCH: usize = 1_000;

/// A ladder of twice what the server lets grow on an empty base: a new epoch is sure to come.
const LADDER_BYTES_SURE: u64 = 8 * 1024;

/// Tokens that are issued at the end, with `jti`s that the server drew. In one request: its limit is higher.
const CLEAN: usize = 200;

pub fn run(output: Output, arguments: Demo) -> Result<ExitCode, Failure> {
    let folder = Scratch::new()?;
    runtime()?.block_on(async {
        let mut demo = Show::begin(output, arguments, folder.path()).await?;
        demo.accept_one()?;
        demo.revoke_one_by_one().await?;
        demo.revoke_the_rest().await?;
        demo.restart_one_without_network().await?;
        demo.restart_everything().await?;
        let summary = demo.finish().await?;
        let wrongly_accepted = summary.get("wrongly_accepted").and_then(Value::as_u64);
        if output.is_json() {
            output.result("", &summary);
        }
        if wrongly_accepted == Some(0) {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::plain(
                "wrongly-accepted",
                "a revoked token was accepted; this must never happen, please report it",
            ))
        }
    })
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let seed = random_seed().map_err(|error| Failure::new("no-random", "no random bytes", &error))?;
        let path = std::env::temp_dir().join(format!("revocast-demo-{seed:016x}"));
        std::fs::create_dir_all(&path)
            .map_err(|error| Failure::new("io", format!("{} cannot be made", path.display()), &error))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A token as its issuer made it.
#[derive(Clone)]
struct Issued {
    jti: String,
    exp: u64,
    text: String,
}

/// A device of the demo, and the way to start it again.
struct Follower {
    name: String,
    profile: Profile,
    device: Option<Device>,
}

struct Show {
    output: Output,
    arguments: Demo,
    folder: PathBuf,
    keys: KeySet,
    mint: Mint,
    trust: Trust,
    admin: String,
    server: Option<Server>,
    api: SocketAddr,
    broker: SocketAddr,
    followers: Vec<Follower>,
    bad: Vec<Issued>,
    good: Vec<Issued>,
    /// How many of `bad` are revoked so far.
    revoked: usize,
    propagation: Vec<Duration>,
    catch_up: Duration,
    facts: BTreeMap<&'static str, Value>,
    started: Instant,
}

impl Show {
    async fn begin(output: Output, arguments: Demo, folder: &Path) -> Result<Self, Failure> {
        let started = Instant::now();
        let key_folder = folder.join("data").join("keys");
        let keys =
            Keys::generate(&key_folder, ServerClock::new().unix_time()).map_err(|error| keygen::failure(&error))?;
        let jwks = keys.issuer().jwks().to_string();
        let key_set = KeySet::from_jwks(jwks.as_bytes())
            .map_err(|error| Failure::new("bad-jwks", "our own key set cannot be read", &error))?;
        let now = ServerClock::new().unix_time().secs();
        let count = arguments.revocations as usize;
        let mint = Mint::new(keys.issuer(), now)?;
        let bad = (0..count).map(|_| mint.issue_random()).collect::<Result<Vec<_>, _>>()?;
        let good = (0..count.max(200)).map(|_| mint.issue_random()).collect::<Result<Vec<_>, _>>()?;
        output.progress(format!("issued {} tokens, EdDSA, valid for an hour", bad.len() + good.len()));
        let mut show = Self {
            output,
            arguments,
            folder: folder.to_owned(),
            keys: key_set,
            mint,
            trust: keys.trust().map_err(|error| keygen::failure(&error))?,
            admin: keys.admin().as_str().to_owned(),
            server: None,
            api: (Ipv4Addr::LOCALHOST, 0).into(),
            broker: (Ipv4Addr::LOCALHOST, 0).into(),
            followers: Vec::new(),
            bad,
            good,
            revoked: 0,
            propagation: Vec::new(),
            catch_up: Duration::ZERO,
            facts: BTreeMap::new(),
            started,
        };
        show.start_server().await?;
        show.output.progress(format!("server on http://{}, embedded broker on mqtt://{}", show.api, show.broker));
        // Our own issuer mints the jtis, so nobody can choose them.
        let realm = json!({ "name": REALM, "issuer": ISSUER, "fingerprint": "xxh3", "max_token_lifetime": 7_200 });
        show.post("/v1/realms", realm).await?;
        show.followers = (0..arguments.devices)
            .map(|number| Follower { name: format!("device-{number}"), profile: Profile::Exact, device: None })
            // One more holds the filter alone, to meet its false positives.
            .chain([Follower { name: "small-device".to_owned(), profile: Profile::Filter, device: None }])
            .collect();
        for at in 0..show.followers.len() {
            show.start_follower(at).await?;
        }
        show.wait_until_current(Sequence(0)).await?;
        show.output.progress(format!("{} devices follow, one of them with a filter alone", show.followers.len()));
        Ok(show)
    }

    // ---- acts --------------------------------------------------------------------------------

    fn accept_one(&self) -> Result<(), Failure> {
        let Some(token) = self.bad.first().cloned() else { return Ok(()) };
        for follower in &self.followers {
            self.verify(follower, &token)?.map_err(|rejection| {
                Failure::plain("wrongly-refused", format!("{} refused a good token: {rejection}", follower.name))
            })?;
        }
        self.output.progress(format!("token {} is accepted by all {} devices", token.jti, self.followers.len()));
        Ok(())
    }

    async fn revoke_one_by_one(&mut self) -> Result<(), Failure> {
        let timed: Vec<Issued> = self.bad.iter().take(TIMED).cloned().collect();
        for token in timed {
            let watchers: Vec<_> = self
                .followers
                .iter()
                .filter_map(|follower| follower.device.as_ref())
                .map(|device| tokio::spawn(watch_for(device.checker(), device.status(), token.clone())))
                .collect();
            let asked = Instant::now();
            let body = json!({ "jti": token.jti, "exp": token.exp, "reason": "demo" });
            self.post(&format!("/v1/realms/{REALM}/revocations"), body).await?;
            let acknowledged = Instant::now();
            for watcher in watchers {
                let refused = tokio::time::timeout(PATIENCE, watcher).await;
                let Ok(Ok(refused)) = refused else {
                    return Err(Failure::plain("too-slow", format!("a device did not refuse {} in time", token.jti)));
                };
                self.propagation.push(refused.saturating_duration_since(asked));
            }
            if self.revoked == 0 {
                let slowest = self.propagation.iter().max().copied().unwrap_or_default();
                self.output.progress(format!(
                    "token {} is revoked: durable after {} ms, refused by the last device after {} ms",
                    token.jti,
                    millis(acknowledged - asked),
                    millis(slowest)
                ));
            }
            self.revoked += 1;
        }
        self.propagation.sort_unstable();
        self.output.progress(format!(
            "{} revocations, one by one: p50 {} ms, p99 {} ms from the request until a device refuses",
            self.revoked,
            millis(self.percentile(50)),
            millis(self.percentile(99))
        ));
        Ok(())
    }

    /// The rest in bulk, while the first device is away.
    async fn revoke_the_rest(&mut self) -> Result<(), Failure> {
        // The delta of one revocation, before larger ones follow.
        self.learn_sizes().await?;
        if let Some(device) = self.followers.first_mut().and_then(|follower| follower.device.take()) {
            device.stop().await;
        }
        let rest: Vec<Value> =
            self.bad.iter().skip(self.revoked).map(|token| json!({ "jti": token.jti, "exp": token.exp })).collect();
        let asked = Instant::now();
        for batch in rest.chunks(BATCH) {
            self.post(&format!("/v1/realms/{REALM}/revocations/batch"), json!({ "revocations": batch })).await?;
        }
        self.revoked = self.bad.len();
        let head = self.head().await?;
        self.wait_until_current(head).await?;
        self.output.progress(format!(
            "{} more in bulk: all devices that are there have them after {} ms",
            rest.len(),
            millis(asked.elapsed())
        ));
        let started = Instant::now();
        self.start_follower(0).await?;
        self.wait_until_current(head).await?;
        self.catch_up = started.elapsed();
        self.output.progress(format!("device-0 was away meanwhile and caught up in {} ms", millis(self.catch_up)));
        Ok(())
    }

    /// What a device knew it still knows, with nobody to ask.
    async fn restart_one_without_network(&mut self) -> Result<(), Failure> {
        let broker = std::mem::replace(&mut self.broker, (Ipv4Addr::LOCALHOST, 1).into());
        self.stop_follower(0).await;
        let started = Instant::now();
        self.start_follower(0).await?;
        let loaded = started.elapsed();
        let wrong = self.followers.first().map_or(Ok(0), |follower| self.count_accepted(follower, &self.bad))?;
        let kept = self.bad.len() - wrong;
        self.output.progress(format!(
            "device-0 restarted without a network: state loaded in {} ms, {kept} of {} revoked tokens refused",
            millis(loaded),
            self.bad.len()
        ));
        self.facts.insert("refused_offline", json!(kept));
        self.broker = broker;
        self.stop_follower(0).await;
        self.start_follower(0).await
    }

    async fn restart_everything(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        for at in 0..self.followers.len() {
            self.stop_follower(at).await;
        }
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        self.start_server().await?;
        for at in 0..self.followers.len() {
            self.start_follower(at).await?;
        }
        let head = self.head().await?;
        self.wait_until_current(head).await?;
        self.output.progress(format!(
            "server, broker and devices restarted, all current again after {} ms; nothing is lost",
            millis(started.elapsed())
        ));
        Ok(())
    }

    async fn finish(&mut self) -> Result<Value, Failure> {
        let sizes = self.sizes_of_newest().await?;
        self.wait_for_epoch(number(&sizes, "epoch")).await?;
        let clean = self.issue_clean().await?;
        let (mut accepted, mut refused, mut suspects, mut clean_suspects) = (0, 0, 0, 0);
        let mut small = None;
        for follower in &self.followers {
            accepted += self.count_accepted(follower, &self.bad)?;
            let checked = self.good.len();
            match follower.profile {
                Profile::Filter => {
                    suspects += checked - self.count_accepted(follower, &self.good)?;
                    clean_suspects += clean.len() - self.count_accepted(follower, &clean)?;
                    small = follower.device.as_ref();
                }
                Profile::Exact | Profile::List | Profile::Covered | Profile::Folded | Profile::FoldedTwice => {
                    refused += checked - self.count_accepted(follower, &self.good)?;
                    refused += clean.len() - self.count_accepted(follower, &clean)?;
                }
            }
        }
        let memory = self.followers.first().and_then(|follower| follower.device.as_ref());
        let memory = memory.map_or(0, |device| device.checker().set().size_bytes());
        let asked_for = Some(Profile::Filter);
        let small_holds = small.map(|device| {
            let held = device.status().borrow().holding.clone();
            (holding::words(&held, asked_for), holding::value(&held, &device.checker().set(), asked_for))
        });
        let (small_words, small_holds) = small_holds.unwrap_or_default();
        let snapshot = number(&sizes, "snapshot_bytes");
        let bits = |bytes: u64| bytes as f64 * 8.0 / self.bad.len().max(1) as f64;
        let max = self.propagation.last().copied().unwrap_or_default();
        let mut summary = json!({
            "devices": self.arguments.devices,
            "revocations": self.arguments.revocations,
            "tokens": self.bad.len() + self.good.len() + clean.len(),
            "propagation_ms": {
                "p50": millis_exact(self.percentile(50)),
                "p99": millis_exact(self.percentile(99)),
                "max": millis_exact(max),
            },
            "catch_up_ms": millis_exact(self.catch_up),
            "wrongly_accepted": accepted,
            "wrongly_refused": refused,
            "false_positives": suspects,
            "clean_tokens": clean.len(),
            "clean_false_positives": clean_suspects,
            "small_device": small_holds,
            "snapshot_bytes": snapshot,
            "filter_bytes": number(&sizes, "filter_bytes"),
            "snapshot_bits_per_revocation": rounded(bits(snapshot)),
            "memory_bytes": memory,
            "seconds": rounded(self.started.elapsed().as_secs_f64()),
        });
        if let Some(fields) = summary.as_object_mut() {
            fields.extend(self.facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
        let delta = number(&summary, "delta_bytes");
        self.output.progress(format!(
            "\n{devices} devices, {revocations} revocations, {tokens} tokens\n\
             refused after         p50 {p50} ms, p99 {p99} ms, max {max} ms\n\
             wrongly accepted      {accepted}\n\
             wrongly refused       {refused}\n\
             false positives       {suspects} of {checked} good tokens, on the device that holds the filter alone;\n\
             {nothing:22}{clean_suspects} of {clean} whose jti the server drew\n\
             that device holds     {small_words}\n\
             one revocation        {delta} bytes on the wire\n\
             snapshot              {snapshot} bytes, {bits:.1} bits a revocation\n\
             in memory             {memory} bytes",
            devices = self.arguments.devices,
            revocations = self.arguments.revocations,
            tokens = self.bad.len() + self.good.len() + clean.len(),
            nothing = "",
            clean = clean.len(),
            p50 = millis(self.percentile(50)),
            p99 = millis(self.percentile(99)),
            max = millis(max),
            checked = self.good.len(),
            bits = bits(snapshot),
        ));
        for at in 0..self.followers.len() {
            self.stop_follower(at).await;
        }
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        Ok(summary)
    }

    // ---- parts -------------------------------------------------------------------------------

    /// Tokens whose `jti`s the server drew: no filter in force flags them.
    async fn issue_clean(&self) -> Result<Vec<Issued>, Failure> {
        let answer = self.get(&format!("/v1/realms/{REALM}/jti?count={CLEAN}")).await?;
        let jtis = answer.get("jtis").and_then(Value::as_array);
        let jtis = jtis.ok_or_else(|| Failure::plain("bad-answer", format!("the server drew no jtis: {answer}")))?;
        Ok(jtis.iter().filter_map(Value::as_str).map(|jti| self.mint.issue(jti.to_owned())).collect())
    }

    /// On any free ports the first time, so that busy ones do not matter; on the same ones later.
    async fn start_server(&mut self) -> Result<(), Failure> {
        let choices = Choices {
            data: Some(self.folder.join("data")),
            listen: Some(self.api),
            embedded_broker: Some(self.broker),
            ..Choices::default()
        };
        let config = choices.check().map_err(|error| Failure::new("bad-config", "the demo's configuration", &error))?;
        debug_assert!(matches!(config.broker, BrokerChoice::Embedded(_)), "the demo brings its broker");
        let server = Server::start(config, Arc::new(ServerClock::new()))
            .await
            .map_err(|error| Failure::new("not-started", "the server did not start", &error))?;
        self.api = server.local_addr();
        self.broker = server.broker_addr().unwrap_or(self.broker);
        self.server = Some(server);
        Ok(())
    }

    async fn start_follower(&mut self, at: usize) -> Result<(), Failure> {
        let broken = |error: &dyn std::error::Error| Failure::new("device", "a device did not start", error);
        let Some(follower) = self.followers.get_mut(at) else { return Ok(()) };
        let seed = random_seed().map_err(|error| broken(&error))?;
        let config = DeviceConfig::new(
            format!("mqtt://{}", self.broker).parse::<BrokerUrl>().map_err(|error| broken(&error))?,
            ClientId::new(&follower.name).map_err(|error| broken(&error))?,
            RealmId::new(REALM).map_err(|error| broken(&error))?,
            self.trust.clone(),
            Config { hold: Hold::Profile(follower.profile), epoch_jitter: EPOCH_JITTER, ..Config::exact(seed) },
        );
        let store = DiskStore::open(&self.folder.join(&follower.name)).map_err(|error| broken(&error))?;
        follower.device = Some(Device::start(config, store).await.map_err(|error| broken(&error))?);
        Ok(())
    }

    async fn stop_follower(&mut self, at: usize) {
        if let Some(device) = self.followers.get_mut(at).and_then(|follower| follower.device.take()) {
            device.stop().await;
        }
    }

    /// Waits until every running device has reached `head` and believes what it has.
    async fn wait_until_current(&self, head: Sequence) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        for follower in &self.followers {
            let Some(device) = &follower.device else { continue };
            let checker = device.checker();
            let mut status = device.status();
            while checker.position().sequence < head || checker.doubt(SystemClock::now()).is_some() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let status = status.borrow();
                    return Err(Failure::plain(
                        "too-slow",
                        format!(
                            "{} stands at {} after {} s, not at {head}; connected: {}, doubt: {:?}, refusals: {}, last: {:?}",
                            follower.name,
                            checker.position(),
                            PATIENCE.as_secs(),
                            status.connected,
                            checker.doubt(SystemClock::now()),
                            status.refusals_total(),
                            status.last_refusal
                        ),
                    ));
                }
                let _ = tokio::time::timeout(left.min(Duration::from_millis(100)), status.changed()).await;
            }
        }
        Ok(())
    }

    /// Waits until every device stands on the newest base.
    async fn wait_for_epoch(&self, epoch: u64) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        for follower in &self.followers {
            let Some(device) = &follower.device else { continue };
            let mut status = device.status();
            while device.checker().position().epoch.0 < epoch {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let at = device.checker().position();
                    return Err(Failure::plain(
                        "too-slow",
                        format!("{} stands at {at}, not in epoch {epoch}", follower.name),
                    ));
                }
                let _ = tokio::time::timeout(left.min(Duration::from_millis(100)), status.changed()).await;
            }
        }
        Ok(())
    }

    /// The whole validation, as a device does it: signature, claims, revocation.
    fn verify(&self, follower: &Follower, token: &Issued) -> Result<Result<(), Rejection>, Failure> {
        let Some(device) = &follower.device else { return Ok(Ok(())) };
        let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], self.keys.clone());
        let validator = Validator::new(rules, device.checker(), Policy::strict())
            .map_err(|error| Failure::new("validator", "no validator can be made", &error))?;
        Ok(validator.verify(SystemClock::now(), &token.text).map(drop).map_err(|rejected| rejected.rejection))
    }

    /// How many of some tokens a device accepts: all by its checker; each tenth, and whatever the
    /// checker lets pass, with its signature as well.
    fn count_accepted(&self, follower: &Follower, tokens: &[Issued]) -> Result<usize, Failure> {
        let Some(device) = &follower.device else { return Ok(0) };
        let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], self.keys.clone());
        let checker = device.checker();
        let validator = Validator::new(rules, checker.clone(), Policy::strict())
            .map_err(|error| Failure::new("validator", "no validator can be made", &error))?;
        let mut accepted = 0;
        for (at, token) in tokens.iter().enumerate() {
            let passes = matches!(verdict(&checker, token), Verdict::NotRevoked { .. });
            let whole = at % 10 == 0;
            let validated = if whole { validator.verify(SystemClock::now(), &token.text).is_ok() } else { passes };
            accepted += usize::from(passes || validated);
        }
        Ok(accepted)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let last = self.propagation.len().saturating_sub(1);
        self.propagation.get((last * percent).div_ceil(100)).copied().unwrap_or_default()
    }

    async fn learn_sizes(&mut self) -> Result<(), Failure> {
        let sizes = self.sizes().await?;
        self.facts.insert("delta_bytes", json!(number(&sizes, "delta_bytes")));
        Ok(())
    }

    /// What the server says of the published objects, once all that is in the ledger is published.
    async fn sizes(&self) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let realm = self.realm_status().await?;
            let published = realm.get("published").cloned().unwrap_or(Value::Null);
            if number(&published, "sequence") >= number(&realm, "head") {
                return Ok(published);
            }
            if Instant::now() > deadline {
                return Err(Failure::plain("too-slow", format!("the server has not published its ledger: {realm}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same, once an epoch that is sure to come is there: the first one is empty, and says nothing about filters.
    async fn sizes_of_newest(&self) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sizes = self.sizes().await?;
            let comes = number(&sizes, "epoch") < 2 && number(&sizes, "ladder_bytes") > LADDER_BYTES_SURE;
            if !comes || Instant::now() > deadline {
                return Ok(sizes);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn head(&self) -> Result<Sequence, Failure> {
        Ok(Sequence(number(&self.realm_status().await?, "head")))
    }

    async fn realm_status(&self) -> Result<Value, Failure> {
        let status = self.get("/v1/status").await?;
        let realms = status.get("realms").and_then(Value::as_array);
        realms
            .and_then(|realms| realms.first())
            .cloned()
            .ok_or_else(|| Failure::plain("bad-answer", format!("the server does not know the demo's realm: {status}")))
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let (api, path) = (self.client(), path.to_owned());
        let answer = tokio::task::spawn_blocking(move || api.get(&path)).await;
        answer.map_err(|error| Failure::new("interrupted", "the demo was interrupted", &error))?
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, Failure> {
        let (api, path) = (self.client(), path.to_owned());
        let answer = tokio::task::spawn_blocking(move || api.post(&path, &body)).await;
        answer.map_err(|error| Failure::new("interrupted", "the demo was interrupted", &error))?
    }

    fn client(&self) -> Api {
        Api::with_token(&format!("http://{}", self.api), &self.admin)
    }
}

/// The moment at which a device says that a token is revoked.
async fn watch_for(
    checker: revocast_device::Checker,
    mut status: tokio::sync::watch::Receiver<revocast_device::Status>,
    token: Issued,
) -> Instant {
    loop {
        status.mark_unchanged();
        // A filter that matches makes the strict policy refuse as well.
        if !matches!(verdict(&checker, &token), Verdict::NotRevoked { .. } | Verdict::Unknown { .. }) {
            return Instant::now();
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), status.changed()).await;
    }
}

fn verdict(checker: &revocast_device::Checker, token: &Issued) -> Verdict {
    use revocast_core::{Claims, Doubt, Jti, UnixTime};
    match Jti::new(&token.jti) {
        Ok(jti) => checker.check(SystemClock::now(), &Claims::new(jti, UnixTime::from_secs(token.exp))),
        Err(_) => Verdict::Unknown { doubt: Doubt::NotFollowed },
    }
}

/// Makes real tokens: `EdDSA` (RFC 8037), signed with the issuer key that `keygen` makes.
struct Mint {
    key: Ed25519KeyPair,
    kid: String,
    now: u64,
}

impl Mint {
    fn new(issuer: &IssuerKey, now: u64) -> Result<Self, Failure> {
        let key = Ed25519KeyPair::from_seed_unchecked(issuer.seed())
            .map_err(|_| Failure::plain("keys", "the issuer key cannot sign"))?;
        Ok(Self { key, kid: issuer.kid(), now })
    }

    fn issue_random(&self) -> Result<Issued, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Failure::new("no-random", "no random bytes", &error))?;
        Ok(self.issue(URL_SAFE_NO_PAD.encode(random)))
    }

    fn issue(&self, jti: String) -> Issued {
        let exp = self.now + 3_600;
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.kid });
        let claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "demo", "jti": jti, "iat": self.now, "exp": exp });
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        Issued { jti, exp, text: format!("{message}.{signature}") }
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn millis(span: Duration) -> String {
    let millis = span.as_secs_f64() * 1_000.0;
    if millis < 10.0 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}

fn millis_exact(span: Duration) -> f64 {
    rounded(span.as_secs_f64() * 1_000.0)
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
