//! TLS of the API: certificates from files, read again while the server serves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// How the API speaks TLS.
pub struct ServerTls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl ServerTls {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, config })
    }

    /// Reads the files again: connections from now on have the new certificate. If it cannot be used, the one from
    /// before stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = Arc::new(read(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// What takes the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTls({})", self.files.certificate.display())
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unusable { path, source }
    };
    // The provider is handed over: with none installed, or two, the plain builder panics.
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable(&files.certificate))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(unusable(path))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Unusable {
                path: path.clone(),
                source: rustls::Error::General(error.to_string()),
            })?)
        }
    };
    let (chain, key) = identity(&files.certificate, &files.key)?;
    let mut config = builder.with_single_cert(chain, key).map_err(unusable(&files.certificate))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A certificate chain and its private key, from PEM files.
pub(crate) fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes(key)?);
    let secret = secret.map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
    Ok((chain, secret))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = bytes(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let read = read.map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if read.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(read) }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

/// Why certificates or keys for TLS cannot be used; the operator's to mend.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not PEM, or not what is looked for there.
    #[error("{} is not PEM of the kind that is expected there", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// There is no certificate in it.
    #[error("{} holds no certificate", .path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The certificate and the key do not belong together, or cannot be used for this.
    #[error("{} cannot be used", .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::get;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ClientConfig;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;
    use tokio_rustls::TlsConnector;

    use super::*;

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
        }

        /// Writes a certificate for a name, and its key.
        fn sign(&self, name: &str, certificate: &Path, key: &Path) {
            let pair = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            std::fs::write(certificate, params.signed_by(&pair, &self.issuer).unwrap().pem()).unwrap();
            std::fs::write(key, pair.serialize_pem()).unwrap();
        }
    }

    /// Asks over TLS, as `name`, trusting `authority`; nothing if the handshake or the request fails.
    async fn ask(
        address: SocketAddr,
        name: &'static str,
        authority: &Authority,
        ours: Option<(&Path, &Path)>,
    ) -> Option<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match ours {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, key) = identity(certificate, key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn served(tls: &Arc<ServerTls>) -> (SocketAddr, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here"));
        tokio::spawn(crate::api::serve(listener, Some(Arc::clone(tls)), router, stopping));
        (address, stop)
    }

    fn files(folder: &Path, client_ca: Option<&str>) -> TlsFiles {
        let client_ca = client_ca.map(|name| folder.join(name));
        TlsFiles { certificate: folder.join("server.crt"), key: folder.join("server.key"), client_ca }
    }

    #[tokio::test]
    async fn a_new_certificate_serves_the_next_connection() {
        let (folder, old, new) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
        let files = files(folder.path(), None);
        old.sign("one.example", &files.certificate, &files.key);
        let tls = Arc::new(ServerTls::load(files.clone()).unwrap());
        let (address, _stop) = served(&tls).await;
        assert!(ask(address, "one.example", &old, None).await.unwrap().ends_with("here"));
        assert!(ask(address, "one.example", &new, None).await.is_none(), "an authority that nobody trusts");
        assert!(ask(address, "two.example", &old, None).await.is_none(), "another name");

        // One that cannot be used changes nothing.
        std::fs::write(&files.key, "no key").unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::Pem { .. })));
        assert!(ask(address, "one.example", &old, None).await.is_some());
        new.sign("two.example", &files.certificate, &files.key);
        tls.reload().unwrap();
        assert!(ask(address, "two.example", &new, None).await.unwrap().ends_with("here"));
        assert!(ask(address, "one.example", &old, None).await.is_none());
        // Who speaks without TLS is not answered, and takes nothing away.
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        assert!(ask(address, "two.example", &new, None).await.is_some());
    }

    #[tokio::test]
    async fn a_client_needs_a_certificate_where_that_is_asked() {
        let (folder, ca, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
        let files = files(folder.path(), Some("clients.pem"));
        std::fs::write(folder.path().join("clients.pem"), &ca.pem).unwrap();
        ca.sign("one.example", &files.certificate, &files.key);
        let tls = Arc::new(ServerTls::load(files).unwrap());
        let (address, _stop) = served(&tls).await;
        let (certificate, key) = (folder.path().join("client.crt"), folder.path().join("client.key"));
        ca.sign("client", &certificate, &key);
        assert!(ask(address, "one.example", &ca, Some((&certificate, &key))).await.unwrap().ends_with("here"));
        assert!(ask(address, "one.example", &ca, None).await.is_none());
        other.sign("client", &certificate, &key);
        assert!(ask(address, "one.example", &ca, Some((&certificate, &key))).await.is_none());
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let (folder, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let files = files(folder.path(), None);
        assert!(matches!(ServerTls::load(files.clone()), Err(TlsError::Io { .. })));
        ca.sign("one.example", &files.certificate, &files.key);
        let spare = folder.path().join("spare.crt");
        ca.sign("one.example", &spare, &files.key);
        let error = ServerTls::load(files.clone()).unwrap_err();
        assert!(matches!(error, TlsError::Unusable { ref path, .. } if *path == files.certificate), "{error}");
        std::fs::write(&files.certificate, "").unwrap();
        assert!(matches!(ServerTls::load(files.clone()), Err(TlsError::Empty { .. })));
        std::fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
        assert!(matches!(ServerTls::load(files), Err(TlsError::Pem { .. })));
    }
}
