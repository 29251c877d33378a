use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use revocast_core::{Now, UnixMillis};
use ring::hmac;

use super::*;
use crate::policy::Policy;
use crate::possession::{Prover, Thumbprint};
use crate::validator::{KeySet, RevokedPairs, ValidatorConfig};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://api.example";

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn token(more: &str) -> String {
    let now = SystemClock::now().wall.floor().secs();
    let claims = format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","iat":{now},"exp":{}{more}}}"#, now + 1_000);
    let message = format!("{}.{}", b64(r#"{"alg":"HS256"}"#), b64(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]), message.as_bytes());
    format!("{message}.{}", b64(signature))
}

fn good() -> String {
    token(r#","jti":"good","scope":"read write:all""#)
}

fn bound(jkt: Thumbprint) -> String {
    token(&format!(r#","jti":"bound","cnf":{{"jkt":"{jkt}"}}"#))
}

fn layer() -> RevocastLayer<RevokedPairs> {
    let keys = KeySet::from_jwks(format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, b64([7; 32])).as_bytes());
    let rules = ValidatorConfig::new(ISSUER, [AUDIENCE], keys.unwrap());
    let revoked = [(ISSUER.to_owned(), "gone".to_owned())].into_iter().collect();
    RevocastLayer::new(Validator::new(rules, revoked, Policy::strict()).unwrap())
}

/// The service behind: says whose token it was let in with.
#[derive(Clone)]
struct Behind;

impl<B> Service<Request<B>> for Behind {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let token = request.extensions().get::<Token>().unwrap();
        std::future::ready(Ok(Response::new(token.jti().to_owned())))
    }
}

/// Status, `WWW-Authenticate`, body.
fn ask(layer: &RevocastLayer<RevokedPairs>, uri: &str, headers: &[(&str, &str)]) -> (u16, Vec<String>, String) {
    let mut request = Request::builder().method(Method::GET).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(layer.layer(Behind).call(request.body(()).unwrap())).unwrap();
    let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
    let challenges = challenges.map(|value| value.to_str().unwrap().to_owned()).collect();
    (answer.status().as_u16(), challenges, answer.into_body())
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn one_good_token_lets_in() {
    let layer = layer();
    for header in [bearer(&good()), format!("bearer {}", good()), format!("BEARER   {}", good())] {
        let (status, challenges, body) = ask(&layer, "/things", &[("authorization", &header)]);
        assert_eq!((status, challenges.len(), &*body), (200, 0, "good"), "{header}");
    }
}

#[test]
fn refusals_are_those_of_the_standard() {
    let layer = layer().with_realm("things \"of\" mine");
    let realm = r#"Bearer realm="things 'of' mine""#;
    let nothing = (401, vec![realm.to_owned()], String::new());
    assert_eq!(ask(&layer, "/", &[]), nothing);
    assert_eq!(ask(&layer, "/", &[("authorization", "Basic YTpi")]), nothing);
    // Proofs are not configured, so neither is their scheme.
    assert_eq!(ask(&layer, "/", &[("authorization", &format!("DPoP {}", good())), ("dpop", "x")]), nothing);
    // Neither is the query.
    assert_eq!(ask(&layer, &format!("/?access_token={}", good()), &[]), nothing);

    let told = |headers: &[(&str, &str)]| {
        let (status, challenges, body) = ask(&layer, "/", headers);
        assert_eq!((challenges.len(), &*body), (1, ""));
        let told = challenges[0].strip_prefix(realm).unwrap().to_owned();
        (status, told)
    };
    let gone = bearer(&token(r#","jti":"gone""#));
    let (status, why) = told(&[("authorization", &gone)]);
    assert_eq!((status, &*why), (401, r#", error="invalid_token", error_description="the token is revoked (token)""#));
    for text in ["Bearer", "Bearer ", "Bearer x", &bearer(&format!("{}x", good()))] {
        let (status, why) = told(&[("authorization", text)]);
        assert_eq!(status, 401, "{text}");
        assert!(why.starts_with(r#", error="invalid_token""#), "{why}");
    }
    // A name from a token cannot end the quoted string.
    let header = format!("{}.{}.AA", b64(r#"{"\", x=\"\\\n":1}"#), b64("{}"));
    let (_, why) = told(&[("authorization", &bearer(&header))]);
    assert_eq!(why.matches('"').count(), 4, "{why}");
    assert!(!why.contains('\\') && why.len() < 300, "{why}");

    let twice = [("authorization", &*bearer(&good())), ("authorization", &*bearer(&good()))];
    let (status, why) = told(&twice);
    assert_eq!(
        (status, &*why),
        (400, r#", error="invalid_request", error_description="more than one token was sent""#)
    );
    assert_eq!(told(&[("authorization", "DPoP x")]).0, 400);
    assert_eq!(told(&[("authorization", "DPoP x"), ("dpop", "a"), ("dpop", "b")]).0, 400);
}

#[test]
fn a_scope_that_is_missing_is_named() {
    let ask_for =
        |scope: &str| ask(&layer().with_scope("read").with_scope(scope), "/", &[("authorization", &bearer(&good()))]);
    assert_eq!(ask_for("write:all").0, 200);
    for scope in ["write", "all", "READ", "write:al", "admin"] {
        let (status, challenges, _) = ask_for(scope);
        assert_eq!(status, 403, "{scope}");
        assert!(challenges[0].contains(r#"error="insufficient_scope""#), "{challenges:?}");
        assert!(challenges[0].ends_with(&format!(r#"scope="read {scope}""#)), "{challenges:?}");
    }
    let none = ask(&layer().with_scope("read"), "/", &[("authorization", &bearer(&token(r#","jti":"a""#)))]);
    assert_eq!(none.0, 403);
}

#[test]
fn the_query_counts_only_if_asked_for_and_never_beside_a_header() {
    let layer = layer().with_query();
    let token = good();
    let uri = format!("/?a=b&access_token={token}");
    assert_eq!(ask(&layer, &uri, &[]).2, "good");
    assert_eq!(ask(&layer, &uri, &[("authorization", &bearer(&token))]).0, 400);
    assert_eq!(ask(&layer, &format!("{uri}&access_token={token}"), &[]).0, 400);
    assert_eq!(ask(&layer, "/?access_token=x", &[]).0, 401);
    assert_eq!(ask(&layer, "/?access_tokens=x", &[("authorization", &bearer(&token))]).0, 200);
}

#[test]
fn a_bound_token_needs_its_proof() {
    let earlier = Now::new(UnixMillis::from_millis(SystemClock::now().wall.millis() - 10_000), Duration::ZERO);
    let proofs = Arc::new(Proofs::new(earlier));
    let layer = layer().with_proofs(proofs, "https://api.example/");
    let prover = Prover::from_seed(&[1; 32]);
    let token = bound(prover.thumbprint());
    let prove = |method, uri| prover.prove(SystemClock::now(), &Call::Http { method, uri }, &token).unwrap();
    let show = |proof: &str| ask(&layer, "/open?x=y", &[("authorization", &format!("DPoP {token}")), ("dpop", proof)]);
    let proof = prove("GET", "https://api.example/open");
    assert_eq!(show(&proof).2, "bound");
    for (proof, error) in [
        (proof, "invalid_dpop_proof"),
        (prove("POST", "https://api.example/open"), "invalid_dpop_proof"),
        (prove("GET", "https://other.example/open"), "invalid_dpop_proof"),
        (prove("GET", "https://api.example/close"), "invalid_dpop_proof"),
        ("x".to_owned(), "invalid_dpop_proof"),
    ] {
        let (status, challenges, _) = show(&proof);
        assert_eq!(status, 401);
        assert!(challenges.iter().all(|it| it.contains(&format!("error=\"{error}\""))), "{challenges:?}");
        assert!(challenges[1].starts_with("DPoP ") && challenges[1].ends_with(r#"algs="EdDSA""#), "{challenges:?}");
    }
    // Shown as a bearer does, it is worth nothing.
    assert_eq!(ask(&layer, "/open", &[("authorization", &bearer(&token))]).0, 401);
    assert_eq!(ask(&layer, "/open", &[("authorization", &bearer(&good()))]).2, "good");
}

/// The layer in front of a service that hyper serves, on a connection of its own.
#[test]
fn hyper_serves_what_stands_behind_it() {
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let ask = async |authorization: String| {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let service = TowerToHyperService::new(layer().layer(Behind));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let serving = tokio::spawn(connection);
        let request =
            format!("GET /x HTTP/1.1\r\nhost: a\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        serving.await.unwrap().unwrap();
        answer
    };
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let let_in = ask(bearer(&good())).await;
        assert!(let_in.starts_with("HTTP/1.1 200") && let_in.ends_with("\r\n\r\ngood"), "{let_in}");
        let refused = ask(bearer(&token(r#","jti":"gone""#))).await;
        assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("error=\"invalid_token\""), "{refused}");
        assert!(refused.contains("cache-control: no-store"), "{refused}");
    });
}
