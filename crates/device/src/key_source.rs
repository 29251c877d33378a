//! Where key sets come from: a file that is read again when it changes, and (feature `https-keys`) an address.
//!
//! Neither is asked because of what a token says: an unknown `kid` makes nobody fetch anything. A set that cannot be
//! read never takes the place of one that could.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use revocast_core::Digest;
use thiserror::Error;

use crate::validator::{KeySet, KeySetError, LiveKeys, SET_BYTES_MAX};

/// A key set in a file.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    keys: LiveKeys,
    read: Digest,
}

/// Why a key set was not taken from a file or an address. The one that is held stays.
#[derive(Debug, Error)]
pub enum KeySourceError {
    /// The file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What was found is no key set to be used.
    #[error("{place} holds no key set that can be used")]
    Set {
        /// Path or address.
        place: String,
        /// What is wrong with it.
        #[source]
        source: KeySetError,
    },
    /// Not `https://`. Keys that came over a connection that anybody may change vouch for nothing.
    #[cfg(feature = "https-keys")]
    #[error("{address} is no https:// address")]
    NotHttps {
        /// The address.
        address: String,
    },
    /// No certificate among those that should vouch for the address.
    #[cfg(feature = "https-keys")]
    #[error("there is no PEM certificate to vouch for the address")]
    NoRoots,
    /// The address does not answer, or not in time, or with more than a key set has.
    #[cfg(feature = "https-keys")]
    #[error("{address} gave no key set")]
    Unreachable {
        /// The address.
        address: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
}

impl KeyFile {
    /// Reads the file for the first time.
    pub fn open(path: &Path) -> Result<Self, KeySourceError> {
        let bytes = read(path)?;
        let keys = LiveKeys::new(parse(&path.display().to_string(), &bytes)?);
        Ok(Self { path: path.to_owned(), keys, read: Digest::of(&bytes) })
    }

    /// What validators are given: the set that was read last.
    #[must_use]
    pub fn keys(&self) -> LiveKeys {
        self.keys.clone()
    }

    /// Reads the file again; says whether there was something new. An error leaves the set as it is.
    ///
    /// What counts is what stands in it, not when it was written: two changes in one second are two.
    pub fn refresh(&mut self) -> Result<bool, KeySourceError> {
        let bytes = read(&self.path)?;
        let digest = Digest::of(&bytes);
        if digest == self.read {
            return Ok(false);
        }
        self.keys.replace(parse(&self.path.display().to_string(), &bytes)?);
        self.read = digest;
        Ok(true)
    }
}

/// Reads no more than a key set may have, and a byte.
fn read(path: &Path) -> Result<Vec<u8>, KeySourceError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(source) => Err(KeySourceError::Unreadable { path: path.to_owned(), source }),
    }
}

fn parse(place: &str, bytes: &[u8]) -> Result<KeySet, KeySourceError> {
    KeySet::from_jwks(bytes).map_err(|source| KeySourceError::Set { place: place.to_owned(), source })
}

#[cfg(feature = "https-keys")]
pub use https::KeyAddress;

#[cfg(feature = "https-keys")]
mod https {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Digest, KeySourceError, LiveKeys, SET_BYTES_MAX, parse};
    use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

    /// How long an address may take for all of its answer.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// How often an address that answers is asked.
    const EVERY: Duration = Duration::from_mins(5);

    /// How soon one is asked again that did not answer; twice as late with each failure, up to [`EVERY`].
    const AGAIN: Duration = Duration::from_secs(1);

    /// Bytes of an `ETag` that is sent back.
    const TAG_BYTES_MAX: usize = 1024;

    /// The two answers that count.
    const OK: u16 = 200;
    const NOT_MODIFIED: u16 = 304;

    /// A key set at an `https://` address, such as the `jwks_uri` of an issuer.
    #[derive(Debug)]
    pub struct KeyAddress {
        address: String,
        agent: ureq::Agent,
        keys: LiveKeys,
        read: Option<Digest>,
        tag: Option<String>,
        failures: u32,
    }

    impl KeyAddress {
        /// Knows where to ask, and asks nobody yet. `roots` are the certificates (PEM) that may vouch for the address.
        ///
        /// Redirects are not followed: keys come from where the operator said.
        pub fn new(address: &str, roots: &[u8]) -> Result<Self, KeySourceError> {
            if !address.starts_with("https://") {
                return Err(KeySourceError::NotHttps { address: address.to_owned() });
            }
            let roots: Vec<Certificate<'static>> = parse_pem(roots)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if roots.is_empty() {
                return Err(KeySourceError::NoRoots);
            }
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::Specific(Arc::new(roots)))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            let config = ureq::Agent::config_builder()
                .tls_config(tls)
                .https_only(true)
                .max_redirects(0)
                .proxy(None)
                .timeout_global(Some(PATIENCE));
            let keys = LiveKeys::default();
            Ok(Self {
                address: address.to_owned(),
                agent: config.build().into(),
                keys,
                read: None,
                tag: None,
                failures: 0,
            })
        }

        /// What validators are given: the set that was fetched last, none before the first.
        #[must_use]
        pub fn keys(&self) -> LiveKeys {
            self.keys.clone()
        }

        /// Asks; says whether there was something new. An error leaves the set as it is. Blocks up to ten seconds.
        pub fn refresh(&mut self) -> Result<bool, KeySourceError> {
            let outcome = self.ask();
            self.failures = if outcome.is_ok() { 0 } else { self.failures.saturating_add(1) };
            outcome
        }

        /// When to ask again.
        #[must_use]
        pub fn wait(&self) -> Duration {
            match self.failures.checked_sub(1) {
                None => EVERY,
                Some(doublings) => AGAIN.saturating_mul(1 << doublings.min(16)).min(EVERY),
            }
        }

        fn ask(&mut self) -> Result<bool, KeySourceError> {
            let unreachable =
                |source| KeySourceError::Unreachable { address: self.address.clone(), source: Box::new(source) };
            let mut request = self.agent.get(&self.address);
            if let Some(tag) = &self.tag {
                request = request.header("if-none-match", tag);
            }
            let mut answer = request.call().map_err(unreachable)?;
            if answer.status().as_u16() == NOT_MODIFIED {
                return Ok(false);
            }
            if answer.status().as_u16() != OK {
                return Err(unreachable(ureq::Error::StatusCode(answer.status().as_u16())));
            }
            let body = answer.body_mut().with_config().limit(SET_BYTES_MAX as u64).read_to_vec();
            let body = body.map_err(unreachable)?;
            let digest = Digest::of(&body);
            let set = parse(&self.address, &body)?;
            let tag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
            self.tag = tag.filter(|tag| tag.len() <= TAG_BYTES_MAX).map(str::to_owned);
            if self.read.replace(digest) == Some(digest) {
                return Ok(false);
            }
            self.keys.replace(set);
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(kid: &str) -> String {
        format!(r#"{{"keys":[{{"kty":"oct","kid":"{kid}","k":"{}"}}]}}"#, "A".repeat(43))
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        assert!(matches!(KeyFile::open(&path), Err(KeySourceError::Unreadable { .. })));
        std::fs::write(&path, set("a")).unwrap();
        let mut file = KeyFile::open(&path).unwrap();
        let keys = file.keys();
        let first = keys.keys().unwrap();
        assert!(!file.refresh().unwrap());

        std::fs::write(&path, "{").unwrap();
        assert!(matches!(file.refresh(), Err(KeySourceError::Set { .. })));
        std::fs::write(&path, " ".repeat(SET_BYTES_MAX + 2)).unwrap();
        assert!(matches!(file.refresh(), Err(KeySourceError::Set { source: KeySetError::TooLarge { .. }, .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.refresh(), Err(KeySourceError::Unreadable { .. })));
        assert!(std::sync::Arc::ptr_eq(&first, &keys.keys().unwrap()));

        std::fs::write(&path, set("b")).unwrap();
        assert!(file.refresh().unwrap());
        assert!(!std::sync::Arc::ptr_eq(&first, &keys.keys().unwrap()));
        assert!(!file.refresh().unwrap());
    }

    #[cfg(feature = "https-keys")]
    #[test]
    fn an_address_must_be_https_and_somebody_must_vouch_for_it() {
        assert!(matches!(KeyAddress::new("http://a.example/k", b""), Err(KeySourceError::NotHttps { .. })));
        assert!(matches!(KeyAddress::new("https://a.example/k", b"x"), Err(KeySourceError::NoRoots)));
    }
}
