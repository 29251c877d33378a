//! A `tower` layer that lets in requests with a good token, for axum and hyper. Whatever else takes `tower` layers over the
//! types of `http` should work; nobody has tried.
//!
//! It takes exactly one token from `Authorization: Bearer` (RFC 6750) or `Authorization: DPoP` with its proof
//! (RFC 9449), verifies it, and puts the [`Token`] into the request's extensions. Everything else is answered
//! here, as those two say, with an empty body; the service behind is not called.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, CACHE_CONTROL, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use crate::clock::SystemClock;
use crate::fallback::Asker;
use crate::possession::{Call, Presented, Proofs};
use crate::validator::{Rejected, Revocations, Token, Validator};

/// The header that carries a proof (RFC 9449 section 4.1).
const PROOF: HeaderName = HeaderName::from_static("dpop");

/// Characters of an `error_description`: a sentence.
const DESCRIPTION_CHARS_MAX: usize = 160;

/// A token as a request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The token.
    pub token: &'a str,
    /// What proves that the caller may show it, if the caller says so (`Authorization: DPoP`).
    pub proof: Option<&'a str>,
}

/// A request that asks in a way that has no one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Two tokens, of which two readers could take one each.
    #[error("more than one token was sent")]
    Several,
    /// `Authorization: DPoP` and no proof beside it, or more than one.
    #[error("exactly one DPoP header goes with Authorization: DPoP")]
    Proofs,
    /// A header that is no text.
    #[error("the header cannot be read")]
    Unreadable,
}

impl<'a> Credential<'a> {
    /// Reads the headers of a request; `None` if it carries no token there.
    pub fn from_headers(headers: &'a HeaderMap) -> Result<Option<Self>, CredentialError> {
        let Some(value) = only(headers, &AUTHORIZATION).map_err(|()| CredentialError::Several)? else {
            return Ok(None);
        };
        let value = value.to_str().map_err(|_| CredentialError::Unreadable)?;
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        let token = token.trim_matches(' ');
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Some(Self { token, proof: None }));
        }
        if !scheme.eq_ignore_ascii_case("dpop") {
            return Ok(None);
        }
        let proof = only(headers, &PROOF).map_err(|()| CredentialError::Proofs)?.ok_or(CredentialError::Proofs)?;
        let proof = proof.to_str().map_err(|_| CredentialError::Unreadable)?;
        Ok(Some(Self { token, proof: Some(proof) }))
    }
}

/// The value of a header that may stand once; an error if it stands twice.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(()),
        (found, None) => Ok(found),
    }
}

/// Lets in requests with a good token. Clone it for as many services as there are.
pub struct RevocastLayer<R> {
    rules: Rules<R>,
}

/// What a request must meet.
struct Rules<R> {
    validator: Arc<Validator<R>>,
    asker: Option<Asker>,
    class: Arc<str>,
    proofs: Option<(Arc<Proofs>, Arc<str>)>,
    scopes: Arc<[String]>,
    realm: Arc<str>,
    query: bool,
}

impl<R> Clone for Rules<R> {
    fn clone(&self) -> Self {
        Self {
            validator: Arc::clone(&self.validator),
            asker: self.asker.clone(),
            class: Arc::clone(&self.class),
            proofs: self.proofs.clone(),
            scopes: Arc::clone(&self.scopes),
            realm: Arc::clone(&self.realm),
            query: self.query,
        }
    }
}

impl<R> Clone for RevocastLayer<R> {
    fn clone(&self) -> Self {
        Self { rules: self.rules.clone() }
    }
}

impl<R> fmt::Debug for RevocastLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocastLayer({})", self.rules.realm)
    }
}

impl<R: Revocations> RevocastLayer<R> {
    /// Takes tokens from the header `Authorization` and verifies them.
    #[must_use]
    pub fn new(validator: Validator<R>) -> Self {
        let rules = Rules {
            validator: Arc::new(validator),
            asker: None,
            class: "".into(),
            proofs: None,
            scopes: [].into(),
            realm: "revocast".into(),
            query: false,
        };
        Self { rules }
    }

    /// Asks the server where the policy says so. Without, such a token is refused.
    #[must_use]
    pub fn with_asker(mut self, asker: Asker) -> Self {
        self.rules.asker = Some(asker);
        self
    }

    /// The class of operation that decides about the policy.
    #[must_use]
    pub fn for_class(mut self, class: &str) -> Self {
        self.rules.class = class.into();
        self
    }

    /// Takes tokens that are bound to a key, with their proofs. `origin` is where callers reach this service
    /// (`https://api.example`): proofs name it, and a server behind a proxy cannot know it.
    ///
    /// Services that answer for one origin must share one memory of proofs.
    #[must_use]
    pub fn with_proofs(mut self, proofs: Arc<Proofs>, origin: &str) -> Self {
        self.rules.proofs = Some((proofs, origin.trim_end_matches('/').into()));
        self
    }

    /// Requires a scope (the claim `scope`, RFC 9068 section 2.2.3); may be given more than once.
    #[must_use]
    pub fn with_scope(mut self, scope: &str) -> Self {
        self.rules.scopes = self.rules.scopes.iter().cloned().chain([scope.to_owned()]).collect();
        self
    }

    /// What is protected, for the challenge that callers see: the `realm` of RFC 9110.
    #[must_use]
    pub fn with_realm(mut self, realm: &str) -> Self {
        self.rules.realm = quotable(realm).into();
        self
    }

    /// Also takes a token from the parameter `access_token` of the query (RFC 6750 section 2.3).
    ///
    /// Addresses end up in logs, histories and `Referer` headers, and tokens with them. For callers that cannot
    /// set headers, such as `WebSocket` in a browser.
    #[must_use]
    pub fn with_query(mut self) -> Self {
        self.rules.query = true;
        self
    }

    /// Judges a request as the layer does, for callers that are no `tower` service.
    pub async fn admit(&self, request: &Parts) -> Result<Token, NotAdmitted> {
        self.rules.judge(request).await
    }

    /// What the layer answers to a request that is not admitted.
    #[must_use]
    pub fn answer<B: Default>(&self, refused: &NotAdmitted) -> Response<B> {
        self.rules.answer(refused)
    }
}

impl<R, S> Layer<S> for RevocastLayer<R> {
    type Service = Gate<R, S>;

    fn layer(&self, inner: S) -> Gate<R, S> {
        Gate { rules: self.rules.clone(), inner }
    }
}

/// A service behind a [`RevocastLayer`].
pub struct Gate<R, S> {
    rules: Rules<R>,
    inner: S,
}

impl<R, S: Clone> Clone for Gate<R, S> {
    fn clone(&self) -> Self {
        Self { rules: self.rules.clone(), inner: self.inner.clone() }
    }
}

impl<R, S> fmt::Debug for Gate<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({})", self.rules.realm)
    }
}

impl<R, S, Asked, Answered> Service<Request<Asked>> for Gate<R, S>
where
    R: Revocations + 'static,
    S: Service<Request<Asked>, Response = Response<Answered>> + Clone + Send + 'static,
    S::Future: Send,
    Asked: Send + 'static,
    Answered: Default,
{
    type Response = Response<Answered>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        // The one that was found to be ready goes, another takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let rules = self.rules.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let in_query = rules.query && access_token(parts.uri.query()).next().is_some();
            match rules.judge(&parts).await {
                Ok(token) => {
                    parts.extensions.insert(token);
                    let mut response = inner.call(Request::from_parts(parts, body)).await?;
                    if in_query {
                        // RFC 6750 section 2.3: no shared cache may keep what such an address gave.
                        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private"));
                    }
                    Ok(response)
                }
                Err(refusal) => Ok(rules.answer(&refusal)),
            }
        })
    }
}

/// The values of the parameter `access_token`.
fn access_token(query: Option<&str>) -> impl Iterator<Item = &str> {
    query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("access_token="))
}

impl<R: Revocations> Rules<R> {
    async fn judge(&self, parts: &Parts) -> Result<Token, NotAdmitted> {
        let bad = NotAdmitted::Request;
        let in_header = Credential::from_headers(&parts.headers).map_err(bad)?;
        let mut in_query = access_token(parts.uri.query().filter(|_| self.query));
        let credential = match (in_header, in_query.next(), in_query.next()) {
            (Some(_), Some(_), _) | (None, Some(_), Some(_)) => return Err(bad(CredentialError::Several)),
            (Some(credential), None, _) => credential,
            (None, Some(token), None) => Credential { token, proof: None },
            (None, None, _) => return Err(NotAdmitted::Nothing),
        };
        let uri;
        let presented = match (credential.proof, &self.proofs) {
            (None, _) => Presented::from(credential.token),
            (Some(proof), Some((proofs, origin))) => {
                uri = format!("{origin}{}", parts.uri.path());
                let call = Call::Http { method: parts.method.as_str(), uri: &uri };
                Presented::proven(credential.token, proof, call, proofs)
            }
            // Proofs are not understood here, so the scheme is not offered.
            (Some(_), None) => return Err(NotAdmitted::Nothing),
        };
        let judged = match &self.asker {
            Some(asker) => asker.verify_or_ask(&self.validator, &SystemClock, &self.class, presented).await,
            None => self.validator.verify_for(SystemClock::now(), &self.class, presented),
        };
        let token = judged.map_err(NotAdmitted::Token)?;
        match self.scopes.iter().find(|scope| !token.has_scope(scope)) {
            None => Ok(token),
            Some(_) => Err(NotAdmitted::Scope { needed: self.scopes.join(" ") }),
        }
    }
}

/// Why a request is not let in.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// It carries no token where tokens are taken from.
    #[error("there is no token")]
    Nothing,
    /// It asks in a way that has no one meaning.
    #[error(transparent)]
    Request(CredentialError),
    /// The token is not to be honored.
    #[error(transparent)]
    Token(Rejected),
    /// The token is good, but not for this.
    #[error("the scope {needed:?} is needed")]
    Scope {
        /// All scopes that are needed, with spaces between them.
        needed: String,
    },
}

impl NotAdmitted {
    /// The name used in logs, metrics and JSON; that of the rejection, if the token is to blame.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Nothing => "no-token",
            Self::Request(_) => "bad-request",
            Self::Token(rejected) => rejected.reason(),
            Self::Scope { .. } => "scope-missing",
        }
    }
}

impl<R> Rules<R> {
    /// The answer that RFC 6750 section 3 and RFC 9449 section 7.1 ask for.
    fn answer<B: Default>(&self, refused: &NotAdmitted) -> Response<B> {
        let (status, told) = match refused {
            // Whoever sent no token is told no error.
            NotAdmitted::Nothing => (StatusCode::UNAUTHORIZED, String::new()),
            NotAdmitted::Request(_) => (StatusCode::BAD_REQUEST, told("invalid_request", &refused.to_string())),
            NotAdmitted::Token(rejected) => {
                let error = if rejected.rejection.is_about_proof() { "invalid_dpop_proof" } else { "invalid_token" };
                (StatusCode::UNAUTHORIZED, told(error, &refused.to_string()))
            }
            NotAdmitted::Scope { needed } => {
                let told = told("insufficient_scope", "another scope is needed");
                (StatusCode::FORBIDDEN, format!(r#"{told}, scope="{}""#, quotable(needed)))
            }
        };
        let mut response = Response::new(B::default());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let mut challenge = |scheme: &str, more: &str| {
            if let Ok(value) = HeaderValue::try_from(format!(r#"{scheme} realm="{}"{told}{more}"#, self.realm)) {
                headers.append(WWW_AUTHENTICATE, value);
            }
        };
        challenge("Bearer", "");
        if self.proofs.is_some() {
            challenge("DPoP", r#", algs="EdDSA""#);
        }
        response
    }
}

fn told(error: &str, description: &str) -> String {
    let description: String = quotable(description).chars().take(DESCRIPTION_CHARS_MAX).collect();
    format!(r#", error="{error}", error_description="{description}""#)
}

/// A text with nothing in it that could end a quoted string (RFC 6750 section 3).
fn quotable(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '\'' }).collect()
}

#[cfg(test)]
mod tests;
