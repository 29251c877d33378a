//! One device calls another, over HTTP and over MQTT. The callee asks nobody: token, proof of possession and
//! revocation are checked with what it holds.
//!
//! `cargo run -p revocast-device --features tower --example device_to_device -- mqtt://127.0.0.1`
//!
//! What an issuer and a server would do stands in this file, in short: a token that is bound to the caller's key, and a
//! list of what is revoked. A real device takes its token from the server, and a `Device`'s `checker()` instead of the list.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::post;
use axum::{Extension, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use revocast_device::{
    BrokerUrl, Call, KeySet, Policy, Presented, Proofs, Prover, RevocastLayer, RevokedPairs, SystemClock, Token,
    Validator, ValidatorConfig,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

const ISSUER: &str = "https://issuer.example";
const DOOR: &str = "https://door.example";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = std::env::args().nth(1).ok_or("usage: device_to_device BROKER")?;

    // The caller's key, its token, and one that somebody revoked.
    let caller = Prover::from_seed(&[1; 32]);
    let issuer = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).map_err(|_| "no key")?;
    let token = bound_token(&issuer, &caller, "good");
    let revoked = bound_token(&issuer, &caller, "gone");

    // The callee: the issuer's public key, what is revoked, what it remembers of proofs.
    let jwk = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{}"}}]}}"#, b64(issuer.public_key()));
    let rules = ValidatorConfig::new(ISSUER, [DOOR], KeySet::from_jwks(jwk.as_bytes())?);
    let list: RevokedPairs = [(ISSUER.to_owned(), "gone".to_owned())].into_iter().collect();
    let validator = Validator::new(rules, list, Policy::strict())?;
    let proofs = Arc::new(Proofs::new(SystemClock::now()));
    // What was made within the second of a start could have been shown before it, and is refused.
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    over_http(validator.clone(), &proofs, &caller, &token, &revoked).await?;
    over_mqtt(&broker.parse()?, &validator, &proofs, &caller, &token, &revoked).await
}

/// The callee is an axum server behind the layer.
async fn over_http(
    validator: Validator<RevokedPairs>,
    proofs: &Arc<Proofs>,
    caller: &Prover,
    token: &str,
    revoked: &str,
) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let layer = RevocastLayer::new(validator).with_proofs(Arc::clone(proofs), &origin);
    let open = |Extension(token): Extension<Token>| async move { format!("opened for {}", token.jti()) };
    let app = Router::new().route("/open", post(open)).layer(layer);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let uri = format!("{origin}/open");
    let call = Call::Http { method: "POST", uri: &uri };
    let proof = caller.prove(SystemClock::now(), &call, token)?;
    println!("http with a proof: {}", post_with(&uri, token, Some(&proof)).await?);
    println!("http with the same proof again: {}", post_with(&uri, token, Some(&proof)).await?);
    println!("http without a proof: {}", post_with(&uri, token, None).await?);
    let thief = Prover::from_seed(&[9; 32]).prove(SystemClock::now(), &call, token)?;
    println!("http with a thief's proof: {}", post_with(&uri, token, Some(&thief)).await?);
    let proof = caller.prove(SystemClock::now(), &call, revoked)?;
    println!("http with a revoked token: {}", post_with(&uri, revoked, Some(&proof)).await?);
    Ok(())
}

/// What the callee answers to a call, in short.
async fn post_with(uri: &str, token: &str, proof: Option<&str>) -> Result<String, Box<dyn Error>> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let scheme = if proof.is_some() { "DPoP" } else { "Bearer" };
    let mut request = agent.post(uri).header("authorization", format!("{scheme} {token}"));
    if let Some(proof) = proof {
        request = request.header("dpop", proof);
    }
    let mut answer = tokio::task::spawn_blocking(move || request.send_empty()).await??;
    let challenge = answer.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
    let why = challenge.and_then(|text| text.split("error_description=\"").nth(1)?.split('"').next());
    Ok(match why {
        Some(why) => format!("{} ({why})", answer.status().as_u16()),
        None => format!("{} {}", answer.status().as_u16(), answer.body_mut().read_to_string()?),
    })
}

/// What is published over MQTT: what is asked for, beside the token and the proof.
#[derive(Deserialize, Serialize)]
struct Message {
    token: String,
    proof: Option<String>,
    payload: String,
}

/// The callee listens on a topic of its own.
async fn over_mqtt(
    broker: &BrokerUrl,
    validator: &Validator<RevokedPairs>,
    proofs: &Proofs,
    caller: &Prover,
    token: &str,
    revoked: &str,
) -> Result<(), Box<dyn Error>> {
    const TOPIC: &str = "doors/7/open";
    let mut options = MqttOptions::new("device-to-device", broker.host(), broker.port());
    options.set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 16);
    client.subscribe(TOPIC, QoS::AtLeastOnce).await?;

    let payload = "for ten seconds";
    let call = Call::Mqtt { topic: TOPIC, payload: payload.as_bytes() };
    let prove = |token: &str| caller.prove(SystemClock::now(), &call, token);
    let proof = prove(token)?;
    let message = |token: &str, proof: Option<&str>, payload: &str| Message {
        token: token.to_owned(),
        proof: proof.map(str::to_owned),
        payload: payload.to_owned(),
    };
    let calls = [
        ("with a proof", message(token, Some(&proof), payload)),
        ("with the same proof again", message(token, Some(&proof), payload)),
        ("without a proof", message(token, None, payload)),
        // What a broker could do: another payload beside a good proof.
        ("with another payload", message(token, Some(&prove(token)?), "for ever")),
        ("with a revoked token", message(revoked, Some(&prove(revoked)?), payload)),
    ];
    let mut told = 0;
    loop {
        match events.poll().await? {
            Event::Incoming(Packet::SubAck(_)) => {
                for (_, message) in &calls {
                    client.publish(TOPIC, QoS::AtLeastOnce, false, serde_json::to_vec(message)?).await?;
                }
            }
            Event::Incoming(Packet::Publish(published)) => {
                let message: Message = serde_json::from_slice(&published.payload)?;
                let call = Call::Mqtt { topic: &published.topic, payload: message.payload.as_bytes() };
                let presented = match &message.proof {
                    Some(proof) => Presented::proven(&message.token, proof, call, proofs),
                    None => Presented::from(&message.token),
                };
                let what = calls.get(told).map_or("", |(what, _)| what);
                match validator.verify(SystemClock::now(), presented) {
                    Ok(token) => println!("mqtt {what}: opened for {}", token.jti()),
                    Err(rejected) => println!("mqtt {what}: {rejected}"),
                }
                told += 1;
                if told == calls.len() {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

/// What an issuer would sign: a token for the door, bound to the caller's key.
fn bound_token(issuer: &Ed25519KeyPair, caller: &Prover, jti: &str) -> String {
    let now = SystemClock::now().wall.floor().secs();
    let claims = format!(
        r#"{{"iss":"{ISSUER}","aud":"{DOOR}","jti":"{jti}","iat":{now},"exp":{},"cnf":{{"jkt":"{}"}}}}"#,
        now + 900,
        caller.thumbprint()
    );
    let message = format!("{}.{}", b64(r#"{"alg":"EdDSA"}"#), b64(claims));
    format!("{message}.{}", b64(issuer.sign(message.as_bytes())))
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
