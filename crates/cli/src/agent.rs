//! `revocast agent`: a device as a process, with a small HTTP interface on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use revocast_core::{Claims, Config, Digest, Hold, Jti, Profile, RealmId, UnixTime, Verdict};
use revocast_device::{
    Checker, ClientId, Credentials, Device, DeviceConfig, DiskStore, KeySet, Policy, Prefix, StartError, Status,
    SystemClock, TlsRoots, Validator, ValidatorConfig, random_seed, trust_from_file,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::{Agent, ProfileArgument};
use crate::output::{Failure, Output};
use crate::verify::{Judged, key_set};
use crate::{asked_to_end, runtime};

/// Where the agent answers unless told otherwise.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8181);

/// More than the largest token, so that one that is too large is told so by the validator.
const BODY_BYTES_MAX: usize = 32 * 1024;

pub fn run(output: Output, arguments: &Agent) -> Result<ExitCode, Failure> {
    output.start_logging()?;
    let listen = arguments.listen.unwrap_or(LISTEN_DEFAULT);
    if !listen.ip().is_loopback() {
        return Err(Failure::plain(
            "not-loopback",
            format!("{listen} can be reached from outside; the agent answers on loopback only"),
        )
        .help(
            "questions carry tokens in the clear: put a proxy with TLS and authentication before it if others must ask",
        )
        .usage());
    }
    let config = device_config(arguments)?;
    let tokens = tokens(arguments)?;
    runtime()?.block_on(async {
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
                StartError::Store(_) | StartError::Interrupted => failure,
            }
        })?;
        let shared =
            Arc::new(Shared { checker: device.checker(), status: device.status(), tokens, validator: OnceLock::new() });
        let words = format!("answers on http://{address}, state in {}", arguments.state.display());
        output.result(
            words,
            &json!({ "listen": format!("http://{address}"), "state": arguments.state.display().to_string() }),
        );
        let logging = tokio::spawn(log_changes(device.status(), device.checker()));
        let serving = axum::serve(listener, router(shared)).with_graceful_shutdown(asked_to_end());
        serving.await.map_err(|error| Failure::new("io", "the interface failed", &error))?;
        logging.abort();
        device.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn device_config(arguments: &Agent) -> Result<DeviceConfig, Failure> {
    let bad = |what: &str, error: &dyn std::error::Error| Failure::new("bad-argument", what, error).usage();
    let broker = arguments.broker.parse().map_err(|error| bad("--broker", &error))?;
    let realm = RealmId::new(&arguments.realm).map_err(|error| bad("--realm", &error))?;
    let trust = trust_from_file(&arguments.trust).map_err(|error| bad("--trust", &error))?;
    let client_id = if let Some(text) = &arguments.client_id {
        ClientId::new(text)
    } else {
        // Stable as long as the state is, and different for every state folder.
        let folder = std::path::absolute(&arguments.state).unwrap_or_else(|_| arguments.state.clone());
        let digest = Digest::of(folder.as_os_str().as_encoded_bytes()).to_string();
        ClientId::new(&format!("agent-{}", digest.get(..16).unwrap_or(&digest)))
    };
    let seed = random_seed().map_err(|error| bad("no random seed", &error))?;
    let profile = match arguments.profile {
        ProfileArgument::Filter => Profile::Filter,
        ProfileArgument::List => Profile::List,
        ProfileArgument::Exact => Profile::Exact,
    };
    let replica = Config {
        hold: Hold::Profile(profile),
        staleness_max: Duration::from_secs(arguments.staleness),
        epoch_jitter: Duration::from_secs(arguments.epoch_jitter),
        ..Config::exact(seed)
    };
    let client_id = client_id.map_err(|error| bad("--client-id", &error))?;
    let prefix = Prefix::new(&arguments.prefix).map_err(|error| bad("--prefix", &error))?;
    let mut config = DeviceConfig::new(broker, client_id, realm, trust, replica).with_prefix(prefix);
    if let Some(path) = &arguments.broker_ca {
        config = config.with_tls(TlsRoots::from_pem_file(path).map_err(|error| bad("--broker-ca", &error))?);
    }
    if let (Some(username), Some(path)) = (&arguments.broker_user, &arguments.broker_password_file) {
        let password = std::fs::read_to_string(path).map_err(|error| bad("--broker-password-file", &error))?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        config = config.with_credentials(Credentials { username: username.clone(), password });
    }
    Ok(config)
}

/// What tokens must meet, apart from the issuer, which the realm's keys name.
struct Tokens {
    keys: KeySet,
    audiences: Vec<String>,
    token_type: Option<String>,
    leeway: u32,
}

fn tokens(arguments: &Agent) -> Result<Option<Tokens>, Failure> {
    let Some(path) = &arguments.jwks else { return Ok(None) };
    Ok(Some(Tokens {
        keys: key_set(path)?,
        audiences: arguments.audience.clone(),
        token_type: arguments.token_type.clone(),
        leeway: arguments.leeway,
    }))
}

struct Shared {
    checker: Checker,
    status: watch::Receiver<Status>,
    tokens: Option<Tokens>,
    validator: OnceLock<Validator<Checker>>,
}

impl Shared {
    /// The validator, once the realm's keys have told the issuer.
    fn validator(&self) -> Result<&Validator<Checker>, Problem> {
        let Some(tokens) = &self.tokens else {
            return Err(Problem(
                StatusCode::NOT_IMPLEMENTED,
                "no-jwks",
                "start the agent with --jwks and --audience".into(),
            ));
        };
        if let Some(validator) = self.validator.get() {
            return Ok(validator);
        }
        let Some(issuer) = self.checker.issuer() else {
            return Err(Problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-state",
                "the realm's keys have not arrived yet".into(),
            ));
        };
        let mut config = ValidatorConfig::new(&*issuer, tokens.audiences.clone(), tokens.keys.clone())
            .with_leeway_secs(tokens.leeway);
        if let Some(token_type) = &tokens.token_type {
            config = config.with_type(token_type);
        }
        let validator = Validator::new(config, self.checker.clone(), Policy::strict())
            .map_err(|error| Problem(StatusCode::INTERNAL_SERVER_ERROR, "bad-rules", error.to_string()))?;
        Ok(self.validator.get_or_init(|| validator))
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/check", get(check))
        .route("/verify", post(verify))
        .route("/status", get(status))
        .fallback(|| async {
            Problem(StatusCode::NOT_FOUND, "unknown-path", "GET /check, POST /verify, GET /status".into())
        })
        .method_not_allowed_fallback(|| async {
            Problem(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "GET /check, POST /verify, GET /status".into())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

/// A problem document (RFC 9457).
struct Problem(StatusCode, &'static str, String);

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
    let now = SystemClock::now();
    let (verdict, age) = (shared.checker.check(now, &claims), shared.checker.age(now));
    let mut answer = json!({
        "verdict": verdict.name(),
        "decision": Policy::strict().decide(&verdict, age).name(),
        "position": shared.checker.position().to_string(),
    });
    let detail = match verdict {
        Verdict::Revoked { why } => Some(("why", json!(why.name()))),
        Verdict::NotRevoked { .. } => None,
        Verdict::Suspect { false_positive_rate } => Some(("false_positive_rate", json!(false_positive_rate))),
        Verdict::Unknown { doubt } => Some(("doubt", json!(doubt.name()))),
    };
    if let (Some((name, value)), Some(fields)) = (detail, answer.as_object_mut()) {
        fields.insert(name.to_owned(), value);
    }
    Ok(Json(answer))
}

async fn verify(State(shared): State<Arc<Shared>>, token: String) -> Result<Json<Value>, Problem> {
    let outcome = shared.validator()?.validate(SystemClock::now(), token.trim());
    Ok(Json(json!(Judged::of(&outcome))))
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(status_object(&shared.status.borrow(), &shared.checker))
}

fn status_object(status: &Status, checker: &Checker) -> Value {
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
        "recent_entries": set.recent_entries(),
        "refusals": status.refusals_total(),
        "last_refusal": status.last_refusal.as_ref().map(revocast_core::Refusal::name),
        "persisted": status.persisted,
        "persist_failures": status.persist_failures,
    })
}

/// Logs what changes, as long as the device runs.
async fn log_changes(mut status: watch::Receiver<Status>, checker: Checker) {
    let (mut connected, mut position, mut doubt) = (None, None, None);
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
            if doubt != Some(now.doubt) {
                doubt = Some(now.doubt);
                match now.doubt {
                    None => tracing::info!("answers are current"),
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
