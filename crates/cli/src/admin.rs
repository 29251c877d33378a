//! The commands that talk to a server's API: `realm`, `revoke`, `reinstate`, `cutoff`, `lift`, `jti`, `status`.
//! [`issued`](crate::issued) talks to it too.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_core::RealmId;
use serde_json::{Value, json};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::args::{Fingerprint, RealmCommand, Revoke, ScopeArguments, ServerArguments};
use crate::output::{Failure, Output};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a server said.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its JSON, or null.
    pub value: Value,
    /// When it asks to be asked again.
    pub retry_after: Option<Duration>,
}

/// A server's API.
pub struct Api {
    agent: ureq::Agent,
    base: String,
    authorization: String,
}

impl Api {
    /// The server that was named, with the bearer token from its file.
    pub fn new(server: &ServerArguments) -> Result<Self, Failure> {
        let url = &server.server;
        let secure = url.starts_with("https://");
        if !(secure || url.starts_with("http://")) || url.contains(char::is_whitespace) {
            let what = format!("--server: {url:?} is no URL of the kind http://host:port or https://host:port");
            return Err(Failure::plain("bad-server", what).usage());
        }
        let tls = match (secure, &server.ca) {
            (true, Some(path)) => Some(trusting(path)?),
            (true, None) => {
                return Err(Failure::plain("no-ca", "nobody vouches for the server")
                    .help("name the certificates that do, PEM, with --ca FILE or REVOCAST_CA")
                    .usage());
            }
            // A variable that is set for other commands does no harm.
            (false, _) => None,
        };
        let path = &server.admin_token_file;
        let token = std::fs::read_to_string(path).map_err(|error| {
            Failure::new("no-admin-token", format!("the bearer token {} cannot be read", path.display()), &error)
                .help("name it with --admin-token-file or REVOCAST_ADMIN_TOKEN_FILE; keygen wrote it as admin.token")
                .usage()
        })?;
        Ok(Self::connect(url, token.trim(), tls))
    }

    /// A server at `base` with this bearer token.
    pub fn with_token(base: &str, token: &str) -> Self {
        Self::connect(base, token, None)
    }

    fn connect(base: &str, token: &str, tls: Option<TlsConfig>) -> Self {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A bearer token goes to the server that was named, and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(Duration::from_mins(1)));
        if let Some(tls) = tls {
            config = config.tls_config(tls).https_only(true);
        }
        let agent = config.build().new_agent();
        Self { agent, base: base.trim_end_matches('/').to_owned(), authorization: format!("Bearer {token}") }
    }

    /// GET
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// POST
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    /// PUT
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.put(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    /// DELETE
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// GET of an object that is no JSON.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        let mut response = request.call().map_err(|error| self.unreachable(&error))?;
        if response.status().as_u16() != 200 {
            return self.answer(Ok(response)).map(|_| Vec::new());
        }
        response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(|error| self.unreadable(&error))
    }

    /// PUT of one.
    pub fn put_bytes(&self, path: &str, bytes: &[u8]) -> Result<Value, Failure> {
        let request = self.agent.put(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.answer(request.header("content-type", "application/octet-stream").send(bytes))
    }

    /// POST of JSON lines. What the server answers, whatever it says; a failure only if it does not.
    pub fn post_lines(&self, path: &str, lines: &[u8]) -> Result<Answer, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("authorization", &self.authorization);
        self.heard(request.header("content-type", "application/x-ndjson").send(lines))
    }

    fn answer(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
        match self.heard(sent)? {
            Answer { status: 200..=299, value, .. } => Ok(value),
            Answer { status, value, .. } => Err(Self::refusal(status, &value)),
        }
    }

    fn heard(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, Failure> {
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.map_err(|error| self.unreadable(&error))?;
        Ok(Answer { status, value: serde_json::from_str(&text).unwrap_or(Value::Null), retry_after })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let failure = Failure::new("server-unreachable", format!("the server {} does not answer", self.base), error);
        if self.base.starts_with("https://") {
            return failure.help("does it speak TLS, and does --ca vouch for its certificate under this name?");
        }
        failure.help("is it running? start it with: revocast serve --data DIR --embedded-broker 127.0.0.1:1883")
    }

    fn unreadable(&self, error: &ureq::Error) -> Failure {
        Failure::new("bad-answer", format!("the answer of {} cannot be read", self.base), error)
    }

    /// What a problem document says (RFC 9457).
    pub fn refusal(status: u16, value: &Value) -> Failure {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let kind = text("type").and_then(|kind| kind.rsplit(':').next().map(str::to_owned));
        let detail = text("detail").or(text("title")).unwrap_or_else(|| "no reason given".to_owned());
        let failure = Failure::plain(
            kind.unwrap_or_else(|| "refused".to_owned()),
            format!("the server refused ({status}): {detail}"),
        );
        match status {
            401 => failure.help("the bearer token is wrong; --admin-token-file names the one that keygen wrote"),
            _ => failure,
        }
    }
}

/// TLS to a server for which the certificates in this file vouch.
fn trusting(path: &Path) -> Result<TlsConfig, Failure> {
    let unusable =
        |what: String| Failure::plain("bad-ca", format!("--ca: {} cannot be used: {what}", path.display())).usage();
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut roots = Vec::new();
    for item in parse_pem(&pem) {
        match item.map_err(|error| unusable(error.to_string()))? {
            PemItem::Certificate(certificate) => roots.push(certificate),
            _ => return Err(unusable("something in it is no certificate".to_owned())),
        }
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        // Handed over: with none installed, or two, the plain builder panics.
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build())
}

pub fn realm(output: Output, server: &ServerArguments, command: RealmCommand) -> Result<ExitCode, Failure> {
    let api = Api::new(server)?;
    match command {
        RealmCommand::Create { name, issuer, fingerprint, width, leeway, max_token_lifetime } => {
            let function = match fingerprint {
                Fingerprint::Xxh3 => "xxh3",
                Fingerprint::Sha256 => "sha256",
            };
            let width: u8 = width.parse().unwrap_or(48);
            let body = json!({
                "name": name, "issuer": issuer, "fingerprint": function, "width": width,
                "leeway": leeway, "max_token_lifetime": max_token_lifetime,
            });
            let realm = api.post("/v1/realms", &body)?;
            output.result(format!("realm {name} of issuer {issuer}"), &realm);
        }
        RealmCommand::List => {
            let realms = realms(&api)?;
            let mut words = String::new();
            for realm in &realms {
                let _ = writeln!(words, "{}  {}", text(realm, "name"), text(realm, "issuer"));
            }
            let words = if words.is_empty() {
                "no realms; found one with: revocast realm create NAME --issuer ISS"
            } else {
                words.trim_end()
            };
            output.result(words, &json!(realms));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every realm, as the server shows it.
pub fn realms(api: &Api) -> Result<Vec<Value>, Failure> {
    let answer = api.get("/v1/realms")?;
    let list = answer.get("realms").unwrap_or(&answer).as_array().cloned();
    list.ok_or_else(|| Failure::plain("bad-answer", "the server's list of realms cannot be read"))
}

pub fn revoke(output: Output, arguments: &Revoke) -> Result<ExitCode, Failure> {
    check_realm(&arguments.realm)?;
    let api = Api::new(&arguments.server)?;
    let (jti, exp) = match (&arguments.token, &arguments.jti, arguments.exp) {
        (Some(token), ..) => {
            let token = UnverifiedToken::read(token)?;
            check_issuer(&api, &arguments.realm, &token.issuer)?;
            (token.jti, token.exp)
        }
        (None, Some(jti), Some(exp)) => (jti.clone(), exp),
        (None, ..) => {
            return Err(Failure::plain("usage", "name the token with --jti and --exp, or with --token").usage());
        }
    };
    let mut body = json!({ "jti": jti, "exp": exp });
    if let (Some(reason), Some(fields)) = (&arguments.reason, body.as_object_mut()) {
        fields.insert("reason".to_owned(), json!(reason));
    }
    let receipt = api.post(&format!("/v1/realms/{}/revocations", arguments.realm), &body)?;
    let new = receipt.get("recorded").and_then(Value::as_bool).unwrap_or(false);
    let words = format!(
        "{} {jti}: entry {}, kept until {}",
        if new { "revoked" } else { "was revoked already:" },
        text(&receipt, "sequence"),
        text(&receipt, "exp")
    );
    output.result(words, &receipt);
    Ok(ExitCode::SUCCESS)
}

pub fn reinstate(
    output: Output,
    server: &ServerArguments,
    realm: &str,
    jti: &str,
    reason: Option<String>,
) -> Result<ExitCode, Failure> {
    check_realm(realm)?;
    let api = Api::new(server)?;
    let mut body = json!({ "jti": jti });
    if let (Some(reason), Some(fields)) = (reason, body.as_object_mut()) {
        fields.insert("reason".to_owned(), json!(reason));
    }
    let receipt = api.post(&format!("/v1/realms/{realm}/reinstatements"), &body)?;
    let new = receipt.get("recorded").and_then(Value::as_bool).unwrap_or(false);
    let words = if new {
        format!("reinstated {jti}: entry {}", text(&receipt, "sequence"))
    } else {
        format!("{jti} is not revoked; nothing to undo")
    };
    output.result(words, &receipt);
    Ok(ExitCode::SUCCESS)
}

/// The members of a request that name a scope, and the scope in words.
fn scope(arguments: ScopeArguments) -> (String, serde_json::Map<String, Value>) {
    let ScopeArguments { sub, kid, client, reason, .. } = arguments;
    let (kind, name) = match (sub, kid, client) {
        (Some(sub), ..) => ("sub", Some(sub)),
        (None, Some(kid), _) => ("kid", Some(kid)),
        (None, None, Some(client)) => ("client", Some(client)),
        (None, None, None) => ("realm", None),
    };
    let words = name.as_ref().map_or_else(|| "the whole realm".to_owned(), |name| format!("{kind} {name}"));
    let mut members = serde_json::Map::new();
    members.insert("scope".to_owned(), json!(kind));
    members.extend(name.map(|name| ("name".to_owned(), json!(name))));
    members.extend(reason.map(|reason| ("reason".to_owned(), json!(reason))));
    (words, members)
}

pub fn cut_off(
    output: Output,
    server: &ServerArguments,
    arguments: ScopeArguments,
    not_before: Option<u64>,
) -> Result<ExitCode, Failure> {
    check_realm(&arguments.realm)?;
    let api = Api::new(server)?;
    let path = format!("/v1/realms/{}/cutoffs", arguments.realm);
    let (scope, mut body) = scope(arguments);
    body.extend(not_before.map(|time| ("not_before".to_owned(), json!(time))));
    let receipt = api.post(&path, &Value::Object(body))?;
    if receipt.get("asked_by").is_some() {
        let words = format!(
            "not in force yet: another credential must ask for the same, or with --not-before {}, until {}",
            text(&receipt, "not_before"),
            text(&receipt, "until")
        );
        output.result(words, &receipt);
        return Ok(ExitCode::SUCCESS);
    }
    let new = receipt.get("recorded").and_then(Value::as_bool).unwrap_or(false);
    let words = format!(
        "{} {scope}: entry {}, tokens issued before {} are revoked",
        if new { "cut off" } else { "was cut off already:" },
        text(&receipt, "sequence"),
        text(&receipt, "not_before")
    );
    output.result(words, &receipt);
    Ok(ExitCode::SUCCESS)
}

pub fn lift(output: Output, server: &ServerArguments, arguments: ScopeArguments) -> Result<ExitCode, Failure> {
    check_realm(&arguments.realm)?;
    let api = Api::new(server)?;
    let path = format!("/v1/realms/{}/lifts", arguments.realm);
    let (scope, body) = scope(arguments);
    let receipt = api.post(&path, &Value::Object(body))?;
    let new = receipt.get("recorded").and_then(Value::as_bool).unwrap_or(false);
    let words = if new {
        format!("lifted the cutoff of {scope}: entry {}", text(&receipt, "sequence"))
    } else {
        format!("{scope} is not cut off; nothing to lift")
    };
    output.result(words, &receipt);
    Ok(ExitCode::SUCCESS)
}

pub fn jti(output: Output, server: &ServerArguments, realm: &str, count: u32) -> Result<ExitCode, Failure> {
    check_realm(realm)?;
    let answer = Api::new(server)?.get(&format!("/v1/realms/{realm}/jti?count={count}"))?;
    let jtis = answer.get("jtis").and_then(Value::as_array);
    let jtis = jtis.ok_or_else(|| Failure::plain("bad-answer", "the server's jtis cannot be read"))?;
    let words: Vec<&str> = jtis.iter().filter_map(Value::as_str).collect();
    output.result(words.join("\n"), &answer);
    Ok(ExitCode::SUCCESS)
}

pub fn status(output: Output, server: &ServerArguments) -> Result<ExitCode, Failure> {
    let status = Api::new(server)?.get("/v1/status")?;
    let words = serde_json::to_string_pretty(&status).unwrap_or_else(|_| status.to_string());
    output.result(words, &status);
    Ok(ExitCode::SUCCESS)
}

/// A member in words: a text without quotes, anything else as JSON.
pub fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".to_owned(),
    }
}

/// A name that could be one: it becomes part of a path.
pub fn check_realm(realm: &str) -> Result<(), Failure> {
    RealmId::new(realm).map(drop).map_err(|error| Failure::new("bad-argument", "--realm", &error).usage())
}

/// A token of the realm's issuer, or its `jti` would name another token.
fn check_issuer(api: &Api, realm: &str, issuer: &str) -> Result<(), Failure> {
    let realms = realms(api)?;
    match realms.iter().find(|found| text(found, "name") == realm).map(|found| text(found, "issuer")) {
        Some(expected) if expected != issuer => Err(Failure::plain(
            "wrong-issuer",
            format!("the token was issued by {issuer}, but realm {realm} belongs to {expected}"),
        )
        .usage()),
        // The server says it better if there is no such realm.
        Some(_) | None => Ok(()),
    }
}

/// What a token says of itself. Nothing is believed but for the worse: the server keeps the revocation
/// as long as any token of this issuer can live.
struct UnverifiedToken {
    issuer: String,
    jti: String,
    exp: u64,
}

impl UnverifiedToken {
    fn read(token: &str) -> Result<Self, Failure> {
        let bad = |what: &str| Failure::plain("bad-token", format!("--token: {what}")).usage();
        let mut parts = token.trim().split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(bad("a JWT has three parts, separated by dots"));
        };
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| bad("its payload is not base64url"))?;
        let claims: Value = serde_json::from_slice(&payload).map_err(|_| bad("its payload is not JSON"))?;
        let string = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            issuer: string("iss").ok_or_else(|| bad("it has no iss"))?,
            jti: string("jti").ok_or_else(|| bad("it has no jti, so it cannot be revoked by itself"))?,
            exp: claims.get("exp").and_then(Value::as_u64).ok_or_else(|| bad("it has no whole-numbered exp"))?,
        })
    }
}
