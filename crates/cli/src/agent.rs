//! `revocast agent`: a device as a process, with a small HTTP interface on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use revocast_core::{Claims, Config, Digest, Doubt, Finding, Hold, Jti, Profile, RealmId, UnixTime, Verdict};
use revocast_device::{
    Asker, BrokerUrl, Checker, ClientId, Credentials, Decision, Device, DeviceConfig, DiskStore, InboxError,
    KeyAddress, KeyFile, KeySourceError, LiveKeys, Policy, Prefix, StartError, Status, SystemClock, TlsRoots,
    random_seed, trust_from_file,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::args::Agent;
use crate::output::{Failure, Output, read_file};
use crate::sidecar::{Rules, Sidecar};
use crate::{Ends, holding, own_token, runtime};

/// Where the agent answers unless told otherwise.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8181);

/// More than the largest token, so that one that is too large is told so by the validator.
const BODY_BYTES_MAX: usize = 32 * 1024;

pub fn run(output: Output, arguments: &Agent) -> Result<ExitCode, Failure> {
    output.start_logging()?;
    let listen = arguments.listen.unwrap_or(LISTEN_DEFAULT);
    if !listen.ip().is_loopback() && arguments.allow_remote {
        tracing::warn!(%listen, "others can ask this agent, and show it tokens, over a connection that is not encrypted");
    } else if !listen.ip().is_loopback() {
        return Err(Failure::plain(
            "not-loopback",
            format!("{listen} can be reached from outside; the agent answers on loopback only"),
        )
        .help(
            "questions carry tokens in the clear: put a proxy with TLS and authentication before it if others must ask; \
             --allow-remote is for a network that nobody else is on, such as that of a pod",
        )
        .usage());
    }
    let mut config = device_config(arguments)?;
    let (rules, source) = rules(arguments)?.unzip();
    let source = source.flatten();
    if let (Some(rules), None) = (&rules, &source) {
        // Nobody named a place for keys: those that the server publishes.
        config = config.with_issuer_keys(rules.keys.clone());
    }
    runtime()?.block_on(async {
        let mut ends = Ends::listen()?;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Failure::new("busy-port", format!("cannot listen on {listen}"), &error)
                .help("choose another with --listen, or port 0 for any free one")
        })?;
        let address = listener.local_addr().map_err(|error| Failure::new("io", "the address is not known", &error))?;
        let store = DiskStore::open(&arguments.state)
            .map_err(|error| Failure::new("state", "the state folder cannot be used", &error))?;
        let device = Device::start(config, store).await.map_err(|error| {
            let failure = Failure::new("not-started", "the agent did not start", &error);
            match error {
                StartError::Link(_) => failure.help("name them with --broker-ca FILE, for mqtts:// only").usage(),
                StartError::Inbox(InboxError::NoAudience) => {
                    failure.help("name the audience of its tokens with --audience, or with --token-audience").usage()
                }
                StartError::Inbox(_) => failure.help("an identity is of one device in one realm").usage(),
                StartError::Budget { budget, needed } => too_small(budget, needed),
                StartError::Store(_) | StartError::Interrupted => failure,
            }
        })?;
        let asked_for = arguments.memory.is_none().then(|| profile(arguments));
        let shared = Arc::new(Shared {
            checker: device.checker(),
            asker: (!arguments.no_ask).then(|| device.asker()),
            status: device.status(),
            asked_for,
        });
        let sidecar = Arc::new(Sidecar::new(device.checker(), (!arguments.no_ask).then(|| device.asker()), rules));
        // A token is given to nobody but programs on this machine.
        let own_token = if listen.ip().is_loopback() { own_token::router(device.inbox()) } else { Router::new() };
        let words = format!("answers on http://{address}, state in {}", arguments.state.display());
        output.result(
            words,
            &json!({ "listen": format!("http://{address}"), "state": arguments.state.display().to_string() }),
        );
        let following = source.map(|source| tokio::spawn(source.follow()));
        let logging = tokio::spawn(log_changes(device.status(), device.checker(), asked_for));
        let (status, (tell, told)) = (device.status(), oneshot::channel());
        let ended = async move {
            tokio::select! {
                () = ends.next() => {}
                budget = outgrown(status) => drop(tell.send(budget)),
            }
        };
        let serving = axum::serve(listener, router(shared, sidecar, own_token)).with_graceful_shutdown(ended);
        serving.await.map_err(|error| Failure::new("io", "the interface failed", &error))?;
        logging.abort();
        if let Some(following) = following {
            following.abort();
        }
        device.stop().await;
        match told.await {
            Ok((budget, needed)) => Err(too_small(budget, needed)),
            // It was asked to end.
            Err(_) => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Waits until it turns out that the budget holds nothing of the realm, while no older base is held either: an agent
/// that can never answer should not look like one that soon will. Gives the budget, and the one that would do.
async fn outgrown(mut status: watch::Receiver<Status>) -> (u64, u64) {
    let seen = status.wait_for(|status| status.holding.profile.is_none() && status.holding.needed.is_some()).await;
    let found = seen.ok().and_then(|status| status.holding.budget.zip(status.holding.needed));
    match found {
        Some(found) => found,
        // The device has ended, or there is no budget: there is nothing to wait for.
        None => std::future::pending().await,
    }
}

fn too_small(budget: u64, needed: u64) -> Failure {
    Failure::plain(
        "budget-too-small",
        format!("a memory budget of {budget} bytes holds nothing of this realm; {needed} bytes would do"),
    )
    .help(format!("start the agent with --memory {needed}, and more if the realm grows"))
    .usage()
}

/// The profile that is held, whatever it takes, where no budget is given.
fn profile(arguments: &Agent) -> Profile {
    arguments.profile.map_or(Profile::Exact, Profile::from)
}

fn device_config(arguments: &Agent) -> Result<DeviceConfig, Failure> {
    let bad = |what: &str, error: &dyn std::error::Error| Failure::new("bad-argument", what, error).usage();
    let broker: BrokerUrl = arguments.at.broker.parse().map_err(|error| bad("--broker", &error))?;
    if arguments.at.broker_token && !broker.is_secure() {
        tracing::warn!(%broker, "this agent's token goes to the broker over a connection that is not encrypted");
    }
    let realm = RealmId::new(&arguments.realm).map_err(|error| bad("--realm", &error))?;
    let trust = trust_from_file(&arguments.trust).map_err(|error| bad("--trust", &error))?;
    let identity = own_token::identity(arguments)?;
    let client_id = if let Some(text) = &arguments.client_id {
        ClientId::new(text)
    } else if let Some(identity) = &identity {
        // The server delivers to the device under its name.
        ClientId::new(identity.device().as_str())
    } else {
        // Stable as long as the state is, and different for every state folder.
        let folder = std::path::absolute(&arguments.state).unwrap_or_else(|_| arguments.state.clone());
        let digest = Digest::of(folder.as_os_str().as_encoded_bytes()).to_string();
        ClientId::new(&format!("agent-{}", digest.get(..16).unwrap_or(&digest)))
    };
    let seed = random_seed().map_err(|error| bad("no random seed", &error))?;
    let replica = match arguments.memory {
        Some(budget) => Config::within(budget, seed).map_err(|error| too_small(error.budget, error.needed))?,
        None => Config { hold: Hold::Profile(profile(arguments)), ..Config::exact(seed) },
    };
    let replica = Config {
        staleness_max: Duration::from_secs(arguments.staleness),
        epoch_jitter: Duration::from_secs(arguments.epoch_jitter),
        ..replica
    };
    let client_id = client_id.map_err(|error| bad("--client-id", &error))?;
    let prefix = Prefix::new(&arguments.prefix).map_err(|error| bad("--prefix", &error))?;
    let mut config = DeviceConfig::new(broker, client_id, realm, trust, replica).with_prefix(prefix);
    if let Some(path) = &arguments.at.broker_ca {
        let mut tls = TlsRoots::from_pem_file(path).map_err(|error| bad("--broker-ca", &error))?;
        if let (Some(certificate), Some(key)) = (&arguments.at.broker_certificate, &arguments.at.broker_key) {
            let ours = tls.with_identity_files(certificate, key);
            tls = ours.map_err(|error| bad("--broker-certificate", &error))?;
        }
        config = config.with_tls(tls);
    }
    if let (Some(username), Some(path)) = (&arguments.at.broker_user, &arguments.at.broker_password_file) {
        let password = std::fs::read_to_string(path).map_err(|error| bad("--broker-password-file", &error))?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        config = config.with_credentials(Credentials { username: username.clone(), password });
    }
    if let Some(identity) = identity {
        config = config.with_inbox(own_token::inbox(arguments, identity)?);
    }
    if arguments.at.broker_token {
        config = config.with_token_as_password();
    }
    Ok(config)
}

/// What tokens must meet, and where keys come from if a place was named; nothing without an audience.
fn rules(arguments: &Agent) -> Result<Option<(Rules, Option<KeySource>)>, Failure> {
    if arguments.audience.is_empty() {
        return Ok(None);
    }
    let place = arguments.jwks.as_deref();
    let source = place.map(|place| KeySource::of(place, arguments.jwks_ca.as_deref())).transpose()?;
    let rules = Rules {
        keys: source.as_ref().map(KeySource::keys).unwrap_or_default(),
        audiences: arguments.audience.clone(),
        token_type: arguments.token_type.clone(),
        leeway: arguments.leeway,
        lifetime_max: Duration::from_secs(arguments.lifetime),
        origin: arguments.origin.clone(),
    };
    Ok(Some((rules, source)))
}

/// How often a file of keys is looked at.
const KEY_FILE_EVERY: Duration = Duration::from_secs(5);

/// Where the issuer's keys come from.
enum KeySource {
    File(KeyFile),
    Address(Box<KeyAddress>),
}

impl KeySource {
    fn of(place: &Path, roots: Option<&Path>) -> Result<Self, Failure> {
        let bad = |error: &KeySourceError| Failure::new("bad-jwks", "the issuer's keys cannot be used", error).usage();
        let address = place.to_str().filter(|text| text.contains("://"));
        match (address, roots) {
            (None, _) => KeyFile::open(place).map(Self::File).map_err(|error| bad(&error)),
            (Some(address), Some(roots)) => {
                let roots = read_file(roots, "the certificates")?;
                let address = KeyAddress::new(address, &roots).map_err(|error| bad(&error))?;
                Ok(Self::Address(Box::new(address)))
            }
            (Some(address), None) => Err(Failure::plain("no-jwks-ca", format!("nobody vouches for {address}"))
                .help("name certificates with --jwks-ca FILE, such as /etc/ssl/certs/ca-certificates.crt")
                .usage()),
        }
    }

    fn keys(&self) -> LiveKeys {
        match self {
            Self::File(file) => file.keys(),
            Self::Address(address) => address.keys(),
        }
    }

    /// Looks once; says how long to wait before the next time.
    fn refresh(&mut self) -> (Result<bool, KeySourceError>, Duration) {
        match self {
            Self::File(file) => (file.refresh(), KEY_FILE_EVERY),
            Self::Address(address) => (address.refresh(), address.wait()),
        }
    }

    /// Looks for as long as the agent runs.
    async fn follow(mut self) {
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let (outcome, wait) = self.refresh();
                (self, outcome, wait)
            });
            let Ok((source, outcome, wait)) = looked.await else { return };
            self = source;
            match outcome {
                Ok(true) => tracing::info!("the issuer's keys are new"),
                Ok(false) => {}
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "the issuer's keys stay as they are");
                }
            }
            tokio::time::sleep(wait).await;
        }
    }
}

struct Shared {
    checker: Checker,
    /// `None` with `--no-ask`.
    asker: Option<Asker>,
    status: watch::Receiver<Status>,
    /// The profile that was asked for, where no budget is given.
    asked_for: Option<Profile>,
}

fn router(shared: Arc<Shared>, sidecar: Arc<Sidecar>, own_token: Router) -> Router {
    const PATHS: &str = "GET /check, POST /verify, POST /introspect, GET /auth, /authz/..., GET /status, GET /token";
    Router::new()
        .route("/check", get(check))
        .route("/status", get(status))
        .with_state(shared)
        .merge(sidecar.router())
        .merge(own_token)
        .fallback(|| async { Problem(StatusCode::NOT_FOUND, "unknown-path", PATHS.into()) })
        .method_not_allowed_fallback(|| async { Problem(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", PATHS.into()) })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A problem document (RFC 9457).
pub struct Problem(pub StatusCode, pub &'static str, pub String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, name, detail) = self;
        let body = json!({
            "type": format!("urn:revocast:problem:{name}"),
            "title": name, "status": status.as_u16(), "detail": detail,
        });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    jti: String,
    exp: u64,
    iat: Option<u64>,
    sub: Option<String>,
    kid: Option<String>,
    client: Option<String>,
}

async fn check(
    State(shared): State<Arc<Shared>>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(question) =
        question.map_err(|error| Problem(StatusCode::UNPROCESSABLE_ENTITY, "bad-question", error.body_text()))?;
    let jti = Jti::new(&question.jti)
        .map_err(|error| Problem(StatusCode::UNPROCESSABLE_ENTITY, "bad-jti", error.to_string()))?;
    let claims = Claims {
        jti,
        iat: question.iat.map(UnixTime::from_secs),
        exp: UnixTime::from_secs(question.exp),
        sub: question.sub.as_deref(),
        kid: question.kid.as_deref(),
        client: question.client.as_deref(),
    };
    let decide = || {
        let now = SystemClock::now();
        let (verdict, age) = (shared.checker.check(now, &claims), shared.checker.age(now));
        (verdict, Policy::strict().decide(&verdict, age))
    };
    let (mut verdict, mut decision) = decide();
    let mut asked = None;
    if let (Decision::Ask { .. }, Some(asker)) = (decision, &shared.asker) {
        let found = asker.ask(&claims).await;
        (verdict, decision) = decide();
        // What the device would still rather ask about has just been answered, or was not.
        match (&found, decision) {
            (Ok(Finding::NotRevoked), Decision::Ask { .. }) => decision = Decision::Accept,
            (Ok(Finding::NotRevoked), _) => {}
            (Ok(Finding::Revoked { why }), _) => {
                verdict = Verdict::Revoked { why: *why };
                decision = Policy::strict().decide(&verdict, None);
            }
            (Err(_), _) => decision = decision.unanswered(),
        }
        asked = Some(found.as_ref().map_or("unanswered", Finding::name));
        if let Err(error) = found {
            tracing::info!(%error, "the server was not asked, or did not answer; denied");
        }
    }
    let mut answer = json!({
        "verdict": verdict.name(),
        "decision": decision.name(),
        "position": shared.checker.position().to_string(),
    });
    let detail = match verdict {
        Verdict::Revoked { why } => Some(("why", json!(why.name()))),
        Verdict::NotRevoked { .. } => None,
        Verdict::Suspect { false_positive_rate } => Some(("false_positive_rate", json!(false_positive_rate))),
        Verdict::Unknown { doubt } => Some(("doubt", json!(doubt.name()))),
    };
    if let Some(fields) = answer.as_object_mut() {
        let asked = asked.map(|asked| ("asked", json!(asked)));
        fields.extend(detail.into_iter().chain(asked).map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(Json(answer))
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(status_object(&shared.status.borrow(), &shared.checker, shared.asked_for))
}

fn status_object(status: &Status, checker: &Checker, asked_for: Option<Profile>) -> Value {
    let set = checker.set();
    let now = SystemClock::now();
    json!({
        "connected": status.connected,
        "last_loss": status.last_loss,
        "term": status.term.0,
        "epoch": set.position().epoch.0,
        "sequence": set.position().sequence.0,
        "doubt": set.doubt(now).map(|doubt| doubt.name()),
        "age_seconds": set.freshness().age(now).map(|age| age.as_secs()),
        "horizon": set.horizon().secs(),
        "memory_bytes": set.size_bytes(),
        "holding": holding::value(&status.holding, &set, asked_for),
        "recent_entries": set.recent_entries(),
        "refusals": status.refusals_total(),
        "last_refusal": status.last_refusal.as_ref().map(revocast_core::Refusal::name),
        "persisted": status.persisted,
        "persist_failures": status.persist_failures,
    })
}

/// Logs what changes, as long as the device runs.
async fn log_changes(mut status: watch::Receiver<Status>, checker: Checker, asked_for: Option<Profile>) {
    let (mut connected, mut position, mut doubt) = (None, None, None);
    let mut held = None;
    loop {
        {
            let now = status.borrow_and_update();
            if connected != Some(now.connected) {
                connected = Some(now.connected);
                match (now.connected, &now.last_loss) {
                    (true, _) => tracing::info!("connected to the broker"),
                    (false, Some(cause)) => {
                        tracing::warn!(%cause, "no connection to the broker; answering from what is held");
                    }
                    (false, None) => tracing::info!("connecting to the broker"),
                }
            }
            if position != Some(now.position) {
                position = Some(now.position);
                let set = checker.set();
                tracing::info!(position = %set.position(), recent = set.recent_entries(), bytes = set.size_bytes(), "moved");
            }
            // What came since the base is no news here.
            let holding = (now.holding.profile, now.holding.offers.clone(), now.holding.needed);
            if held.as_ref() != Some(&holding) {
                held = Some(holding);
                tracing::info!("holds {}", holding::words(&now.holding, asked_for));
            }
            if doubt != Some(now.doubt) {
                doubt = Some(now.doubt);
                match now.doubt {
                    None => tracing::info!("answers are current"),
                    Some(Doubt::Overflow) => tracing::warn!(
                        doubt = "overflow",
                        "more was revoked since the base than there is room for; answers are \"unknown\" where nothing \
                         is revoked, until the next base or a restart with more --memory"
                    ),
                    Some(doubt) => {
                        tracing::warn!(doubt = doubt.name(), "answers are \"unknown\" where nothing is revoked");
                    }
                }
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}
