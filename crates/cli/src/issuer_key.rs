//! `issuer-key`: the keys that sign tokens, in the folder of the keys. A running server looks at them itself.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use revocast_core::{RealmId, UnixTime};
use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::issuer::{Algorithm, Held, KeyringError, Keyrings, Standing, TokenKey, TokenKeyError};
use revocast_server::keys::Keys;
use revocast_server::service::MAX_TOKEN_LIFETIME_MAX;
use serde_json::{Value, json};

use crate::args::{IssuerKeyCommand, Start};
use crate::keygen;
use crate::output::{Failure, Output};

pub fn run(output: Output, keys: &Path, command: IssuerKeyCommand) -> Result<ExitCode, Failure> {
    let folder = Folder { output, keys, now: SystemClock::new().unix_time() };
    match command {
        IssuerKeyCommand::Generate { realm, alg } => folder.generate(id(&realm)?, alg),
        IssuerKeyCommand::Import { file, realm, alg, start } => folder.import(&file, id(&realm)?, alg, start),
        IssuerKeyCommand::List { realm } => folder.list(id(&realm)?),
        IssuerKeyCommand::Rotate { realm, alg, start } => folder.rotate(id(&realm)?, alg, start),
        IssuerKeyCommand::Remove { kid, realm, force } => folder.remove(id(&realm)?, &kid, force),
        IssuerKeyCommand::Export { file, realm, secret } => folder.export(&file, id(&realm)?, secret),
    }
}

/// Algorithms on the command line.
pub fn algorithm(text: &str) -> Result<Algorithm, String> {
    text.parse()
}

fn id(realm: &str) -> Result<RealmId, Failure> {
    RealmId::new(realm).map_err(|error| Failure::new("bad-argument", "--realm", &error).usage())
}

/// The keys of a server, changed beside it.
struct Folder<'a> {
    output: Output,
    keys: &'a Path,
    now: UnixTime,
}

impl Folder<'_> {
    fn rings(&self) -> Result<Keyrings, Failure> {
        let keys = Keys::load(self.keys).map_err(|error| keygen::failure(&error))?;
        Keyrings::new(self.keys, keys.issuer()).map_err(|error| failure(&error))
    }

    fn generate(&self, realm: RealmId, algorithm: Algorithm) -> Result<ExitCode, Failure> {
        if self.rings()?.has_own(realm).map_err(|error| failure(&error))? {
            return Err(Failure::plain("keys-there", format!("realm {realm} has keys of its own"))
                .help(format!("make the next one, which signs later: revocast issuer-key rotate --realm {realm}")));
        }
        let key = TokenKey::generate(algorithm).map_err(|error| unmade(&error, realm))?;
        self.add(realm, key, self.now)
    }

    fn import(&self, file: &Path, realm: RealmId, algorithm: Algorithm, start: Start) -> Result<ExitCode, Failure> {
        self.rings()?;
        let text = crate::output::read_file(file, "the key")?;
        let text = String::from_utf8(text)
            .map_err(|_| Failure::plain("bad-key", format!("{} is no text; PEM is wanted", file.display())).usage())?;
        let key = TokenKey::import(algorithm, &text).map_err(|error| {
            Failure::new("bad-key", format!("{} cannot be used", file.display()), &error)
                .help("older forms of PEM are converted with: openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW")
                .usage()
        })?;
        self.add(realm, key, self.signs_from(start))
    }

    fn rotate(&self, realm: RealmId, algorithm: Option<Algorithm>, start: Start) -> Result<ExitCode, Failure> {
        let ring = self.rings()?.ring(realm).map_err(|error| failure(&error))?;
        let before = ring.active(self.now).map(TokenKey::algorithm);
        let algorithm = algorithm.or(before).unwrap_or(Algorithm::EdDsa);
        let key = TokenKey::generate(algorithm).map_err(|error| unmade(&error, realm))?;
        self.add(realm, key, self.signs_from(start))
    }

    fn signs_from(&self, start: Start) -> UnixTime {
        if start.now { self.now } else { self.now.plus(start.lead) }
    }

    fn add(&self, realm: RealmId, key: TokenKey, signs_from: UnixTime) -> Result<ExitCode, Failure> {
        let key = Arc::new(key);
        let held = Held { key: Arc::clone(&key), created: self.now, signs_from };
        let path = Keyrings::add(self.keys, realm, &held).map_err(|error| failure(&error))?;
        let when = if signs_from <= self.now {
            "signs from now on".to_owned()
        } else {
            format!("is published now and signs from {signs_from}")
        };
        let words = format!("{} key {} of realm {realm} {when}: {}", key.algorithm(), key.kid(), path.display());
        let value = json!({
            "realm": realm.to_string(), "kid": key.kid(), "alg": key.algorithm().name(),
            "signs_from": signs_from.secs(), "file": path.display().to_string(),
        });
        self.output.result(words, &value);
        Ok(ExitCode::SUCCESS)
    }

    fn list(&self, realm: RealmId) -> Result<ExitCode, Failure> {
        let ring = self.rings()?.ring(realm).map_err(|error| failure(&error))?;
        let (mut words, mut values) = (Vec::new(), Vec::new());
        // The realm's longest lifetime stands in the ledger; here a key may be listed as retiring for too long.
        for (held, standing) in ring.standings(self.now, MAX_TOKEN_LIFETIME_MAX) {
            let note = match standing {
                Standing::Next => format!("from {}", held.signs_from),
                Standing::Active | Standing::Over => String::new(),
                Standing::Retiring { .. } => "until its last token is expired".to_owned(),
            };
            words.push(
                format!("{}  {}  {} {note}", held.key.kid(), held.key.algorithm(), standing.name())
                    .trim_end()
                    .to_owned(),
            );
            values.push(json!({
                "kid": held.key.kid(), "alg": held.key.algorithm().name(), "standing": standing.name(),
                "created": held.created.secs(), "signs_from": held.signs_from.secs(),
            }));
        }
        self.output.result(words.join("\n"), &Value::from(values));
        Ok(ExitCode::SUCCESS)
    }

    fn remove(&self, realm: RealmId, kid: &str, force: bool) -> Result<ExitCode, Failure> {
        let ring = self.rings()?.ring(realm).map_err(|error| failure(&error))?;
        let used = ring
            .standings(self.now, MAX_TOKEN_LIFETIME_MAX)
            .any(|(held, standing)| held.key.kid() == kid && standing != Standing::Over);
        if used && !force {
            return Err(Failure::plain(
                "key-in-use",
                format!("key {kid} signs, will sign, or has signed tokens that may be honored"),
            )
            .help("if it was stolen, or none of its tokens is left: --force"));
        }
        Keyrings::remove(self.keys, realm, kid).map_err(|error| failure(&error))?;
        self.output.result(
            format!("key {kid} of realm {realm} is removed; a cutoff by kid {kid} tells it to those who keep key sets"),
            &json!({ "realm": realm.to_string(), "kid": kid }),
        );
        Ok(ExitCode::SUCCESS)
    }

    fn export(&self, file: &Path, realm: RealmId, secret: bool) -> Result<ExitCode, Failure> {
        let ring = self.rings()?.ring(realm).map_err(|error| failure(&error))?;
        let published = ring.published(self.now, MAX_TOKEN_LIFETIME_MAX);
        let pick = if secret { TokenKey::secret_jwk } else { TokenKey::jwk };
        let keys: Vec<Value> = published.filter_map(pick).collect();
        if keys.is_empty() {
            let what = if secret { "no HS256 key" } else { "no public key" };
            return Err(Failure::plain("no-keys", format!("realm {realm} has {what}")));
        }
        let count = keys.len();
        let text = format!("{:#}\n", json!({ "keys": keys }));
        let write = || {
            let mode = if secret { 0o600 } else { 0o644 };
            let mut out = File::options().write(true).create_new(true).mode(mode).open(file)?;
            out.write_all(text.as_bytes())?;
            out.sync_all()
        };
        write().map_err(|error| {
            Failure::new("not-written", format!("{} cannot be written", file.display()), &error)
                .help("name a file that is not there yet")
        })?;
        let what = if secret { "secret" } else { "public" };
        let words = format!("{count} {what} keys of realm {realm}: {}", file.display());
        self.output.result(words, &json!({ "file": file.display().to_string(), "keys": count, "secret": secret }));
        Ok(ExitCode::SUCCESS)
    }
}

fn unmade(error: &TokenKeyError, realm: RealmId) -> Failure {
    let failure = Failure::new("no-key", "the key cannot be made", error);
    match error {
        TokenKeyError::Rsa { algorithm } => failure
            .help(format!(
                "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out rsa.pem && \
                 revocast issuer-key import rsa.pem --realm {realm} --alg {algorithm} && rm rsa.pem"
            ))
            .usage(),
        _ => failure,
    }
}

fn failure(error: &KeyringError) -> Failure {
    let failure = Failure::new("issuer-keys", "the keys of the issuer cannot be used", error);
    match error {
        KeyringError::Unknown { .. } => failure.help("see which there are: revocast issuer-key list"),
        KeyringError::Full { .. } => failure.help("see which are over: revocast issuer-key list"),
        _ => failure,
    }
}
