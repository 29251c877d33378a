//! Follows a realm and says what to do with one token.
//!
//! `cargo run -p revocast-device --example follow -- mqtt://127.0.0.1 acme trust.json jwks.json ISSUER AUDIENCE TOKEN`

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use revocast_core::{Config, RealmId};
use revocast_device::{
    ClientId, Device, DeviceConfig, DiskStore, KeySet, Policy, SystemClock, Validator, ValidatorConfig, random_seed,
    trust_from_file,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, realm, trust, jwks, issuer, audience, token] = arguments.as_slice() else {
        return Err("usage: follow BROKER REALM TRUST JWKS ISSUER AUDIENCE TOKEN".into());
    };

    let trust = trust_from_file(Path::new(trust))?;
    let config = Config::exact(random_seed()?);
    let config =
        DeviceConfig::new(broker.parse()?, ClientId::new("follow-example")?, RealmId::new(realm)?, trust, config);
    let device = Device::start(config, DiskStore::open(Path::new("follow-state"))?).await?;

    // From stored state it could answer at once; here it waits until it is up to date.
    let mut status = device.status();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|status| status.doubt.is_none())).await??;

    let rules = ValidatorConfig::new(issuer, [audience], KeySet::from_jwks(&std::fs::read(jwks)?)?);
    let validator = Validator::new(rules, device.checker(), Policy::strict())?;
    match validator.verify(SystemClock::now(), token) {
        Ok(token) => println!("accept {}", token.jti()),
        Err(rejected) => println!("reject ({}): {rejected}", rejected.reason()),
    }
    device.stop().await;
    Ok(())
}
