//! What is counted and measured, told in the format that Prometheus reads.
//!
//! Prometheus types stay in here. What happens is counted where it happens; what holds is looked up when it is asked
//! for. `docs/metrics.md` lists every name, and a test compares it with what is served.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use revocast_core::{RealmId, Refusal, UnixMillis};

use crate::fleet::{APPLY_BOUNDS_MS, View};
use crate::ledger::Action;
use crate::service::{RealmStatus, Status};

/// Upper bounds, in seconds, for what takes a disk or a network once: from a memory's speed to where people give up.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// The content type of the text that [`Metrics::encode`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The kind of an entry, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are those that are served")]
pub enum EntryKind {
    /// One token.
    revoke,
    /// Undoes it.
    reinstate,
    /// Every token in a scope.
    cutoff,
    /// Undoes it.
    lift,
}

impl From<&Action> for EntryKind {
    fn from(action: &Action) -> Self {
        match action {
            Action::Revoke { .. } => Self::revoke,
            Action::Reinstate { .. } => Self::reinstate,
            Action::Cutoff { .. } => Self::cutoff,
            Action::Lift { .. } => Self::lift,
        }
    }
}

impl EntryKind {
    /// The name, as in the ledger.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::revoke => "revoke",
            Self::reinstate => "reinstate",
            Self::cutoff => "cutoff",
            Self::lift => "lift",
        }
    }
}

/// A step of a publication, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are those that are served")]
pub enum StepKind {
    /// A delta, sent as it happens.
    live,
    /// Something that stands at the broker.
    retain,
    /// Something that is taken away there.
    clear,
    /// Something that was looked up there.
    read_back,
}

/// What became of a message on the bridge, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are those that are served")]
pub enum BridgeOutcome {
    /// It became an entry.
    recorded,
    /// The ledger said so already.
    known,
    /// Its token is expired for everybody.
    expired,
    /// We said it ourselves.
    echo,
    /// A bare `jti`, where only tokens are taken in.
    passed_over,
    /// No `jti` and no token of the realm.
    refused,
    /// More than the limits allow.
    limited,
    /// The ledger did not take it.
    failed,
}

/// What became of the session of a revoked device, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are those that are served")]
pub enum SessionOutcome {
    /// It was ended.
    ended,
    /// There was none.
    absent,
    /// It was not ended, though it was tried again and again.
    failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSession {
    outcome: SessionOutcome,
}

/// What a broker asked, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are those that are served")]
pub enum HookQuestion {
    /// Whether a client may connect.
    connect,
    /// Whether it may send something.
    publish,
    /// Whether it may hear something.
    subscribe,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHook {
    question: HookQuestion,
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBridge {
    outcome: BridgeOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEntry {
    realm: String,
    kind: EntryKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    realm: String,
    step: StepKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRealm {
    realm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

/// What was looked up for one answer.
#[derive(Debug, Default)]
struct Scene {
    status: Option<Status>,
    views: Vec<(RealmId, View)>,
    at: UnixMillis,
}

/// Counts what happens, and tells it.
pub struct Metrics {
    registry: Registry,
    scene: Arc<Mutex<Scene>>,
    entries: Family<OfEntry, Counter>,
    append: Histogram,
    steps: Family<OfStep, Counter>,
    bytes: Family<OfRealm, Counter>,
    failures: Family<OfRealm, Counter>,
    requests: Family<OfRequest, Counter>,
    request: Family<OfRoute, Histogram>,
    credentials_refused: Counter,
    bridge_heard: Family<OfBridge, Counter>,
    bridge_announced: Counter,
    hooks: Family<OfHook, Counter>,
    sessions: Family<OfSession, Counter>,
}

fn in_seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(started: UnixMillis) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            scene: Arc::default(),
            entries: Family::default(),
            append: in_seconds(),
            steps: Family::default(),
            bytes: Family::default(),
            failures: Family::default(),
            requests: Family::default(),
            request: Family::new_with_constructor(in_seconds),
            credentials_refused: Counter::default(),
            bridge_heard: Family::default(),
            bridge_announced: Counter::default(),
            hooks: Family::default(),
            sessions: Family::default(),
        };
        let scene = Scenery { scene: Arc::clone(&metrics.scene), started };
        let (registry, all) = (&mut metrics.registry, &metrics.entries);
        registry.register("revocast_entries", "Entries that this server recorded", all.clone());
        let append = "Time until a request was recorded and durable";
        registry.register("revocast_append_seconds", append, metrics.append.clone());
        let steps = "Steps of publications that the broker acknowledged";
        registry.register("revocast_publication_steps", steps, metrics.steps.clone());
        let bytes = "Payloads that the broker acknowledged, bytes";
        registry.register("revocast_publication_bytes", bytes, metrics.bytes.clone());
        let failures = "Publications that failed and were begun again";
        registry.register("revocast_publication_failures", failures, metrics.failures.clone());
        registry.register("revocast_http_requests", "Requests that were answered", metrics.requests.clone());
        let request = "Time until a request was answered";
        registry.register("revocast_http_request_seconds", request, metrics.request.clone());
        let refused = "Requests whose credentials were missing or wrong";
        registry.register("revocast_credentials_refused", refused, metrics.credentials_refused.clone());
        let heard = "Messages on the bridge, by what became of them";
        registry.register("revocast_bridge_heard", heard, metrics.bridge_heard.clone());
        let announced = "Revocations that were announced on the bridge";
        registry.register("revocast_bridge_announced", announced, metrics.bridge_announced.clone());
        let sessions = "Sessions of revoked devices, by what became of them";
        registry.register("revocast_sessions", sessions, metrics.sessions.clone());
        let hooks = "Questions of brokers about clients, by what they were told";
        registry.register("revocast_hooks", hooks, metrics.hooks.clone());
        registry.register_collector(Box::new(scene));
        metrics
    }

    /// A request to the ledger took this long, and recorded these entries.
    pub fn appended(&self, realm: RealmId, recorded: impl IntoIterator<Item = EntryKind>, took: Duration) {
        self.append.observe(took.as_secs_f64());
        // Batches are of one kind: they are counted at one go.
        let mut recorded = recorded.into_iter().peekable();
        while let Some(kind) = recorded.next() {
            let mut count = 1;
            while recorded.next_if_eq(&kind).is_some() {
                count += 1;
            }
            self.entries.get_or_create(&OfEntry { realm: realm.to_string(), kind }).inc_by(count);
        }
    }

    /// The broker has acknowledged some steps of a plan.
    pub fn published(&self, realm: RealmId, step: StepKind, bytes: usize) {
        let realm = realm.to_string();
        self.bytes.get_or_create(&OfRealm { realm: realm.clone() }).inc_by(bytes as u64);
        self.steps.get_or_create(&OfStep { realm, step }).inc();
    }

    /// A publication failed, and will be begun again.
    pub fn publication_failed(&self, realm: RealmId) {
        self.failures.get_or_create(&OfRealm { realm: realm.to_string() }).inc();
    }

    /// A request was answered. `route` is a template, of which there are few, never a path.
    pub fn answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        self.request.get_or_create(&OfRoute { route: route.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&OfRequest { method, route, status }).inc();
        if status == 401 {
            self.credentials_refused.inc();
        }
    }

    /// Messages on the bridge came to this.
    pub fn bridge_heard(&self, outcome: BridgeOutcome, count: u64) {
        if count > 0 {
            self.bridge_heard.get_or_create(&OfBridge { outcome }).inc_by(count);
        }
    }

    /// The session of a revoked device came to this.
    pub fn session_ended(&self, outcome: SessionOutcome) {
        self.sessions.get_or_create(&OfSession { outcome }).inc();
    }

    /// A broker asked about a client, and was told this.
    pub fn hook_answered(&self, question: HookQuestion, decision: &'static str) {
        self.hooks.get_or_create(&OfHook { question, decision }).inc();
    }

    /// A revocation was announced on the bridge.
    pub fn bridge_announced(&self) {
        self.bridge_announced.inc();
    }

    /// Everything as text, with what holds at this moment.
    pub fn encode(&self, status: Status, views: Vec<(RealmId, View)>, at: UnixMillis) -> Result<String, fmt::Error> {
        let mut scene = self.scene.lock().unwrap_or_else(PoisonError::into_inner);
        *scene = Scene { status: Some(status), views, at };
        drop(scene);
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

/// Tells what was looked up.
#[derive(Debug)]
struct Scenery {
    scene: Arc<Mutex<Scene>>,
    started: UnixMillis,
}

type Labels = Vec<(&'static str, String)>;

/// One value of a metric.
type Sample = (Labels, f64);

impl Collector for Scenery {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let scene = self.scene.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = Page { encoder };
        page.process(self.started)?;
        if let Some(status) = &scene.status {
            page.server(status)?;
            page.realms(&status.realms, scene.at)?;
        }
        page.fleet(&scene.views)
    }
}

struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

fn whether(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

impl Page<'_> {
    fn gauges(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counters(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, u64)>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            let none = None::<&prometheus_client::metrics::exemplar::Exemplar<[(String, String); 0], u64>>;
            metric.encode_family(&labels)?.encode_counter(&value, none)?;
        }
        Ok(())
    }

    fn process(&mut self, started: UnixMillis) -> fmt::Result {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        self.gauges("revocast_build_info", "The version that runs; always 1", [(version, 1.0)])?;
        let started = started.millis() as f64 / 1_000.0;
        self.gauge("process_start_time_seconds", "When the server was started, seconds since 1970", started)?;
        match resident_bytes() {
            Some(bytes) => self.gauge("process_resident_memory_bytes", "Memory that is in use", bytes as f64),
            // A system without /proc does not tell.
            None => Ok(()),
        }
    }

    fn server(&mut self, status: &Status) -> fmt::Result {
        let writable = "Whether the ledger takes entries";
        self.gauge("revocast_ledger_writable", writable, whether(status.ledger_writable))?;
        let leading = "Whether this server publishes";
        self.gauge("revocast_leading", leading, whether(status.office.is_leading()))?;
        let connected = "Whether the broker is connected";
        self.gauge("revocast_broker_connected", connected, whether(status.broker.is_up()))
    }

    fn realms(&mut self, realms: &[RealmStatus], now: UnixMillis) -> fmt::Result {
        let each = |value: fn(&RealmStatus) -> Option<f64>| {
            realms.iter().filter_map(move |status| Some((of(&status.realm.id), value(status)?))).collect::<Vec<_>>()
        };
        let published = realms.iter().filter_map(|status| Some((of(&status.realm.id), status.published.as_ref()?)));
        self.gauges("revocast_term", "Term of the ledger", each(|status| Some(f64::from(status.term.0))))?;
        let head = "The last sequence that the ledger has assigned";
        self.gauges("revocast_head_sequence", head, each(|status| Some(status.head.0 as f64)))?;
        let registered = "Issued tokens that the registry knows";
        self.gauges("revocast_registered_tokens", registered, each(|status| Some(status.coverage.registered as f64)))?;
        let of_published = |value: &dyn Fn(&crate::service::Published) -> Option<f64>| {
            published
                .clone()
                .filter_map(|(labels, published)| Some((labels, value(published)?)))
                .collect::<Vec<Sample>>()
        };
        let age = of_published(&|published| Some(now.since(published.at).as_secs_f64()));
        self.gauges("revocast_heartbeat_age_seconds", "Time since the last manifest was sealed", age)?;
        let epoch = of_published(&|published| Some(published.position.epoch.0 as f64));
        self.gauges("revocast_epoch", "Newest epoch that is published", epoch)?;
        let sequence = of_published(&|published| Some(published.position.sequence.0 as f64));
        self.gauges("revocast_published_sequence", "Last sequence that the manifest names", sequence)?;
        let live = of_published(&|published| Some(published.revocations as f64));
        self.gauges("revocast_revocations", "Live revocations, by fingerprint", live)?;
        let trouble = of_published(&|published| Some(whether(published.trouble.is_some())));
        self.gauges("revocast_publication_trouble", "Whether something keeps publication from going on", trouble)?;
        let bits = of_published(&|published| {
            (published.revocations > 0).then(|| published.sizes.snapshot as f64 * 8.0 / published.revocations as f64)
        });
        let help = "Bits that travel for each revocation in the snapshot of an exact device";
        self.gauges("revocast_bits_per_revocation", help, bits)?;
        let fill = of_published(&|published| Some(published.filter?.fill));
        self.gauges("revocast_filter_fill", "Share of the published filter's bits that are set", fill)?;
        let rate = of_published(&|published| Some(published.filter?.rate));
        let help = "False positives of the published filter, by its fill";
        self.gauges("revocast_filter_false_positive_rate", help, rate)?;
        let rate = of_published(&|published| published.filter?.meant);
        let help = "False positives that the published filter was built for";
        self.gauges("revocast_filter_false_positive_rate_meant", help, rate)?;
        let standing = realms.iter().filter_map(|status| Some((&status.realm.id, status.published.as_ref()?)));
        let sizes = standing.clone().flat_map(|(realm, published)| {
            let sizes = published.sizes;
            let named = [
                ("snapshot", sizes.snapshot),
                ("filter", sizes.filter),
                ("exceptions", sizes.exceptions),
                ("ladder", sizes.ladder),
                ("manifest", sizes.manifest),
            ];
            named.map(|(object, bytes)| (of_two(realm, "object", object), bytes as f64))
        });
        self.gauges("revocast_standing_bytes", "What stands at the broker, bytes", sizes)?;
        let questions = standing.flat_map(|(realm, published)| {
            let counts = [("answered", published.questions.answered), ("dropped", published.questions.dropped)];
            counts.map(|(outcome, count)| (of_two(realm, "outcome", outcome), count))
        });
        self.counters("revocast_questions", "Questions of devices about single tokens", questions)
    }

    fn fleet(&mut self, views: &[(RealmId, View)]) -> fmt::Result {
        let each = |value: fn(&View) -> f64| {
            views.iter().map(move |(realm, view)| (of(realm), value(view))).collect::<Vec<Sample>>()
        };
        let known = "Devices that have reported and are remembered";
        self.gauges("revocast_devices_known", known, each(|view| view.known as f64))?;
        self.gauges("revocast_devices_online", "Devices that reported lately", each(|view| view.online as f64))?;
        let proven = "Devices online whose reports are signed by their enrolled key";
        self.gauges("revocast_devices_proven", proven, each(|view| view.proven as f64))?;
        let current = "Devices online that stand at the head";
        self.gauges("revocast_devices_current", current, each(|view| view.current as f64))?;
        let attacked = "Devices that refuse again and again";
        self.gauges("revocast_devices_attacked", attacked, each(|view| view.attacked as f64))?;
        let profiles = views.iter().flat_map(|(realm, view)| {
            view.profiles.map(|(profile, count)| (of_two(realm, "profile", profile.name()), count as f64))
        });
        self.gauges("revocast_devices_by_profile", "Devices online by what they hold", profiles)?;
        let memory = each(|view| view.memory_max as f64);
        self.gauges("revocast_device_memory_max_bytes", "Largest revocation set of a device online", memory)?;
        let refusals = views.iter().flat_map(|(realm, view)| {
            let named = view.refusals.iter().enumerate().filter(|(_, count)| **count > 0);
            named.map(|(number, count)| {
                let name = u8::try_from(number).ok().and_then(Refusal::name_of).unwrap_or("other");
                (of_two(realm, "refusal", name), *count)
            })
        });
        self.counters(
            "revocast_device_refusals",
            "Refusals that devices reported, by the last that each named",
            refusals,
        )?;
        let heard = views.first().map(|(_, view)| view.heard).unwrap_or_default();
        let outcomes = [
            ("taken", heard.reports),
            ("malformed", heard.malformed),
            ("foreign", heard.foreign),
            ("forged", heard.forged),
            ("unproven", heard.unproven),
        ];
        let outcomes = outcomes.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count));
        self.counters("revocast_heard", "What was heard from devices and publishers", outcomes)?;
        self.counters("revocast_set_back", "Reports that claim less than before", [(Vec::new(), heard.set_back)])?;
        self.counters(
            "revocast_devices_forgotten",
            "Devices forgotten for lack of room",
            [(Vec::new(), heard.forgotten)],
        )?;
        let help = "Time from recording a revocation until a device's report of it arrived";
        let mut metric =
            self.encoder.encode_descriptor("revocast_device_apply_seconds", help, None, MetricType::Histogram)?;
        for (realm, view) in views {
            let (counts, sum) = &view.applied;
            let bounds = APPLY_BOUNDS_MS.iter().map(|ms| *ms as f64 / 1_000.0).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let count = counts.iter().sum();
            metric.encode_family(&of(realm))?.encode_histogram::<[(String, String); 0]>(
                sum.as_secs_f64(),
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

fn of(realm: &RealmId) -> Labels {
    vec![("realm", realm.to_string())]
}

fn of_two(realm: &RealmId, label: &'static str, value: &str) -> Labels {
    vec![("realm", realm.to_string()), (label, value.to_owned())]
}

/// Memory of this process that is in use, where the system tells (Linux).
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
