//! Who may do what: every request is judged here before its body is read.
//!
//! The rule of an operation is the `security` of its own documentation, so that the document cannot say
//! anything else: `security(("bearer" = ["revoker"]))` lets in credentials with that role (or one of several),
//! `security(())` lets in everybody. Without either an operation is the admin's alone.

use std::collections::HashMap;
use std::sync::Arc;

use axum::RequestExt as _;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use revocast_core::RealmId;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use crate::credentials::{Credential, Realms, Role};
use crate::service::Service;

/// Name of the security scheme in the document.
pub(super) const BEARER: &str = "bearer";

/// Whom an operation lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Everybody,
    OneOf(Vec<Role>),
}

/// The rule of every operation, by path template and method.
#[derive(Debug)]
pub(super) struct Rules(HashMap<String, HashMap<Method, Rule>>);

impl Rules {
    /// Takes them from the document.
    pub(super) fn of(document: &Value) -> Self {
        let paths = document["paths"].as_object().into_iter().flatten();
        let rules = paths.map(|(path, item)| {
            let operations = item.as_object().into_iter().flatten();
            let rules = operations.filter_map(|(method, operation)| {
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?;
                Some((method, rule(operation)))
            });
            (path.clone(), rules.collect())
        });
        Self(rules.collect())
    }

    /// The rule of an operation; one that nobody described is the admin's.
    fn find(&self, path: &str, method: &Method) -> Rule {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let found = self.0.get(path).and_then(|rules| rules.get(method));
        found.cloned().unwrap_or_else(|| Rule::OneOf(vec![Role::Admin]))
    }
}

fn rule(operation: &Value) -> Rule {
    let alternatives = operation["security"].as_array().map_or(&[][..], Vec::as_slice);
    if alternatives.iter().any(|alternative| alternative.as_object().is_some_and(Map::is_empty)) {
        return Rule::Everybody;
    }
    let bearer = alternatives.iter().find_map(|alternative| alternative[BEARER].as_array());
    let roles: Vec<Role> =
        bearer.into_iter().flatten().filter_map(|role| role.as_str().and_then(|role| role.parse().ok())).collect();
    if roles.is_empty() { Rule::OneOf(vec![Role::Admin]) } else { Rule::OneOf(roles) }
}

/// Who asks; there once the guard let a request in.
#[derive(Clone, Debug)]
pub(super) struct Caller(Arc<Credential>);

impl Caller {
    /// Whom the ledger names as the actor.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the caller may speak of this realm.
    pub(super) fn may_enter(&self, realm: RealmId) -> bool {
        self.0.realms.contain(realm)
    }

    /// Whether the caller may speak of every realm, also those yet to be founded.
    pub(super) fn is_for_all_realms(&self) -> bool {
        self.0.realms == Realms::All
    }

    /// The same, as a refusal: for operations whose path names no realm.
    pub(super) fn enter(&self, realm: RealmId) -> Result<(), Problem> {
        if self.may_enter(realm) { Ok(()) } else { Err(foreign_realm(&self.0, &realm.to_string())) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            // A handler that wants a caller, on an operation that is open to everybody: our own mistake.
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake")
                .detail("nobody was asked for credentials")
        })
    }
}

/// Judges requests by the rules.
pub(super) struct Guard {
    service: Arc<Service>,
    rules: Rules,
}

impl Guard {
    pub(super) const fn new(service: Arc<Service>, rules: Rules) -> Self {
        Self { service, rules }
    }

    fn admit(&self, request: &Request, path: &str, realm: Option<&str>) -> Result<Option<Caller>, Problem> {
        let Rule::OneOf(roles) = self.rules.find(path, request.method()) else {
            return Ok(None);
        };
        let credential = self.identify(request.headers())?;
        if !credential.has_one_of(&roles) {
            return Err(missing_role(&credential, &roles));
        }
        // A name that no realm can have is told by whoever looks for it.
        let foreign = realm.filter(|name| RealmId::new(name).is_ok_and(|realm| !credential.realms.contain(realm)));
        match foreign {
            Some(realm) => Err(foreign_realm(&credential, realm)),
            None => Ok(Some(Caller(credential))),
        }
    }

    /// Whose the bearer token is.
    fn identify(&self, headers: &HeaderMap) -> Result<Arc<Credential>, Problem> {
        let offered = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        // The scheme's name is case-insensitive (RFC 9110 section 11.1).
        let token = offered
            .and_then(|value| value.split_at_checked(7))
            .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token));
        match token {
            Some(token) if self.service.keys().admin().matches(token) => Ok(Arc::new(Credential::admin())),
            Some(_) => Err(unidentified(true)),
            None => Err(unidentified(false)),
        }
    }
}

/// Middleware: lets a request in with its [`Caller`], or answers it.
pub(super) async fn guard(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let (path, realm) = place(&mut request).await;
    match guard.admit(&request, &path, realm.as_deref()) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The path template of a request, and the realm in its path.
async fn place(request: &mut Request) -> (String, Option<String>) {
    let matched = request.extract_parts::<MatchedPath>().await;
    let path = matched.map_or_else(|_| String::new(), |path| path.as_str().to_owned());
    // What is no text is no realm; whoever looks for it says so.
    let params = request.extract_parts::<RawPathParams>().await.ok();
    let mut params = params.iter().flatten();
    let realm = params.find_map(|(name, value)| (name == "realm").then(|| value.to_owned()));
    (path, realm)
}

/// No usable credentials.
fn unidentified(offered: bool) -> Problem {
    let problem = |kind, title, challenge| Problem::new(StatusCode::UNAUTHORIZED, kind, title).challenge(challenge);
    if offered {
        let challenge = r#"Bearer realm="revocast", error="invalid_token""#;
        problem("credentials-wrong", "the bearer token is not that of a credential of this server", challenge)
    } else {
        problem("credentials-missing", "a bearer token is required", r#"Bearer realm="revocast""#)
    }
}

fn missing_role(credential: &Credential, needed: &[Role]) -> Problem {
    let list = |roles: &[Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" or ");
    let (name, own) = (&credential.name, list(&credential.roles));
    let members = Map::from_iter([("needs".to_owned(), json!(needed))]);
    Problem::new(StatusCode::FORBIDDEN, "role-missing", "the credential has not the role for this")
        .detail(format!("credential {name} is {own}, and this needs {}", list(needed)))
        .members(members)
}

fn foreign_realm(credential: &Credential, realm: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "realm-foreign", "the credential is not for this realm")
        .detail(format!("credential {} is not for realm {realm}", credential.name))
}
