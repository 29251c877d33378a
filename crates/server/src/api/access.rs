//! Who may do what: every request is judged here before its body is read.
//!
//! The rule of an operation is the `security` of its own documentation, so that the document cannot say
//! anything else: `security(("bearer" = ["revoker"]))` lets in credentials with that role (or one of several),
//! `security(())` lets in everybody. Without either an operation is the admin's alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt as _;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use revocast_core::{RealmId, UnixTime};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use crate::credentials::{Approval, Credential, Gate, Offer, Overrun, Realms, Role};

/// Name of the security scheme in the document.
pub(super) const BEARER: &str = "bearer";

/// The same of the one for clients that know nothing better.
pub(super) const BASIC: &str = "basic";

/// Whom an operation lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Everybody,
    OneOf {
        roles: Vec<Role>,
        /// Whether name and secret will do (HTTP Basic), for clients that know nothing better.
        basic: bool,
    },
}

impl Rule {
    const ADMIN: [Role; 1] = [Role::Admin];
}

/// The rule of every operation, by path template and method.
#[derive(Debug)]
pub(super) struct Rules {
    operations: HashMap<String, HashMap<Method, Rule>>,
    undescribed: Rule,
}

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
        Self { operations: rules.collect(), undescribed: Rule::OneOf { roles: Rule::ADMIN.to_vec(), basic: false } }
    }

    /// The rule of an operation; one that nobody described is the admin's.
    fn find(&self, path: &str, method: &Method) -> &Rule {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.operations.get(path).and_then(|rules| rules.get(method)).unwrap_or(&self.undescribed)
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
    let basic = alternatives.iter().any(|alternative| alternative[BASIC].is_array());
    Rule::OneOf { roles: if roles.is_empty() { Rule::ADMIN.to_vec() } else { roles }, basic }
}

/// Who asks; there once the guard let a request in.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    credential: Arc<Credential>,
    gate: Arc<Gate>,
}

impl Caller {
    /// Whom the ledger names as the actor.
    pub(super) fn name(&self) -> &str {
        &self.credential.name
    }

    /// Whether the caller has a role, or is the admin.
    pub(super) fn is(&self, role: Role) -> bool {
        self.credential.has_one_of(&[role])
    }

    /// Whether the caller may speak of this realm.
    pub(super) fn may_enter(&self, realm: RealmId) -> bool {
        self.credential.realms.contain(realm)
    }

    /// Whether the caller may speak of every realm, also those yet to be founded.
    pub(super) fn is_for_all_realms(&self) -> bool {
        self.credential.realms == Realms::All
    }

    /// The same, as a refusal: for operations whose path names no realm.
    pub(super) fn enter(&self, realm: RealmId) -> Result<(), Denied> {
        if self.may_enter(realm) {
            Ok(())
        } else {
            Err(Denied::Realm { name: self.name().to_owned(), realm: realm.to_string() })
        }
    }

    /// Counts entries that are about to be recorded against the caller's quota.
    pub(super) fn charge(&self, entries: usize) -> Result<(), Denied> {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        let counted = self.gate.count_entries(&self.credential, entries);
        counted.map_err(|overrun| Denied::Quota { name: self.name().to_owned(), overrun })
    }

    /// How long a request may take.
    pub(super) fn request_timeout(&self) -> Duration {
        self.gate.limits().request_timeout
    }

    /// Asks for a cutoff of a whole realm; nothing if this caller alone is enough for it.
    pub(super) fn approve(&self, realm: RealmId, not_before: Option<UnixTime>) -> Option<Approval> {
        self.gate.approve(&self.credential, realm, not_before)
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

/// Lets a credential do something in a realm, or says why not.
pub(super) fn admit(
    gate: &Arc<Gate>,
    offer: Option<Offer<'_>>,
    needs: &[Role],
    realm: Option<&str>,
) -> Result<Caller, Denied> {
    let credential = gate.identify(offer.ok_or(Denied::Missing)?).ok_or(Denied::Wrong)?;
    let name = || credential.name.clone();
    if !credential.has_one_of(needs) {
        return Err(Denied::Role { name: name(), has: credential.roles.clone(), needs: needs.to_vec() });
    }
    // A name that no realm can have is told by whoever looks for it.
    let foreign = realm.filter(|name| RealmId::new(name).is_ok_and(|realm| !credential.realms.contain(realm)));
    if let Some(realm) = foreign {
        return Err(Denied::Realm { name: name(), realm: realm.to_owned() });
    }
    gate.count_request(&credential).map_err(|overrun| Denied::Rate { name: name(), overrun })?;
    Ok(Caller { credential, gate: Arc::clone(gate) })
}

/// Judges requests by the rules.
pub(super) struct Guard {
    gate: Arc<Gate>,
    rules: Rules,
}

impl Guard {
    pub(super) const fn new(gate: Arc<Gate>, rules: Rules) -> Self {
        Self { gate, rules }
    }

    /// Lets a request in, with its [`Caller`] where the operation asks for one.
    pub(super) async fn judge(&self, request: &mut Request) -> Result<(), Denied> {
        let (path, realm) = place(request).await;
        let caller = self.admit(request, path.as_ref().map_or("", MatchedPath::as_str), realm.as_deref())?;
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        Ok(())
    }

    fn admit(&self, request: &Request, path: &str, realm: Option<&str>) -> Result<Option<Caller>, Denied> {
        match self.rules.find(path, request.method()) {
            Rule::Everybody => Ok(None),
            Rule::OneOf { roles, basic: allowed } => {
                let named = if *allowed { basic(request.headers()) } else { None };
                let offer = match &named {
                    Some((name, secret)) => Some(Offer::Named { name, secret: secret.as_bytes() }),
                    None => bearer(request.headers()).map(Offer::Secret),
                };
                admit(&self.gate, offer, roles, realm).map(Some)
            }
        }
    }
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    scheme(headers, b"Bearer ")
}

/// Name and secret of a request (RFC 7617); empty ones where they cannot be read.
pub(super) fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let decoded = STANDARD.decode(scheme(headers, b"Basic ")?).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.and_then(|text| text.split_once(':').map(|(name, secret)| (name.to_owned(), secret.to_owned())));
    Some(pair.unwrap_or_default())
}

/// What follows the name of a scheme, which is case-insensitive (RFC 9110 section 11.1).
pub(super) fn scheme<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let offered = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes)?;
    let (scheme, rest) = offered.split_at_checked(name.len())?;
    scheme.eq_ignore_ascii_case(name).then_some(rest)
}

/// The path template of a request, and the realm in its path.
async fn place(request: &mut Request) -> (Option<MatchedPath>, Option<String>) {
    let path = request.extract_parts::<MatchedPath>().await.ok();
    // What is no text is no realm; whoever looks for it says so.
    let params = request.extract_parts::<RawPathParams>().await.ok();
    let mut params = params.iter().flatten();
    let realm = params.find_map(|(name, value)| (name == "realm").then(|| value.to_owned()));
    (path, realm)
}

/// Why somebody was not let in, or not that far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Missing,
    Wrong,
    Role { name: String, has: Vec<Role>, needs: Vec<Role> },
    Realm { name: String, realm: String },
    Rate { name: String, overrun: Overrun },
    Quota { name: String, overrun: Overrun },
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let list = |roles: &[Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" or ");
        let unauthorized = |kind, title| Self::new(StatusCode::UNAUTHORIZED, kind, title);
        let too_many = |kind, title| Self::new(StatusCode::TOO_MANY_REQUESTS, kind, title);
        match denied {
            Denied::Missing => unauthorized("credentials-missing", "a bearer token is required")
                .challenge(r#"Bearer realm="revocast""#),
            Denied::Wrong => unauthorized("credentials-wrong", "the bearer token is not one of this server")
                .challenge(r#"Bearer realm="revocast", error="invalid_token""#),
            Denied::Role { name, has, needs } => {
                Self::new(StatusCode::FORBIDDEN, "role-missing", "the credential has not the role for this")
                    .detail(format!("credential {name} is {}, and this needs {}", list(&has), list(&needs)))
                    .members(Map::from_iter([("needs".to_owned(), json!(needs))]))
            }
            Denied::Realm { name, realm } => {
                Self::new(StatusCode::FORBIDDEN, "realm-foreign", "the credential is not for this realm")
                    .detail(format!("credential {name} is not for realm {realm}"))
            }
            Denied::Rate { name, overrun } => {
                let problem = too_many("rate-exceeded", "the credential asks too often");
                match overrun {
                    Overrun::Wait(wait) => {
                        problem.detail(format!("credential {name} has used up its rate")).retry(wait)
                    }
                    Overrun::Never { limit } => {
                        problem.detail(format!("credential {name} may ask {limit} times a second"))
                    }
                }
            }
            Denied::Quota { name, overrun } => {
                let problem = too_many("quota-exceeded", "the credential has used up its quota of entries");
                match overrun {
                    Overrun::Wait(wait) => {
                        problem.detail(format!("credential {name} has used up its quota of a day")).retry(wait)
                    }
                    Overrun::Never { limit } => {
                        problem.detail(format!("credential {name} may record {limit} entries a day; split the request"))
                    }
                }
            }
        }
    }
}
