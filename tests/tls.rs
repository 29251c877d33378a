//! Certificates on both ways to a broker: the publisher's and the device's.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use revocast_device::{KeyAddress, KeySourceError};
use revocast_tests::postgres::Postgres;
use revocast_tests::process::{Mosquitto, Process, Site, Via, now, revocast, until_true};

/// An authority, and certificates that it signed, as files of a site.
struct Authority {
    file: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(site: &Site, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // OpenSSL takes a certificate for self-signed whose subject is its issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = site.write(&format!("{name}.pem"), params.self_signed(&key).unwrap().pem());
        Self { file, issuer: Issuer::new(params, key) }
    }

    /// Files of a certificate and its private key.
    fn sign(&self, site: &Site, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = site.write(&format!("{name}.crt.pem"), certificate.pem());
        (file, site.write(&format!("{name}.key.pem"), key.serialize_pem()))
    }
}

#[test]
fn a_broker_that_wants_certificates_is_given_them_by_publisher_and_device() {
    let site = Site::new();
    let ca = Authority::new(&site, "ca");
    let (certificate, key) = ca.sign(&site, "broker");
    let mosquitto = Mosquitto::start_with(&format!(
        "cafile {}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true\n",
        ca.file
    ));
    let url = mosquitto.url().replacen("mqtt://", "mqtts://", 1);
    let (certificate, key) = ca.sign(&site, "publisher");
    let publisher = ["--broker-ca", &ca.file, "--broker-certificate", &certificate, "--broker-key", &key];
    let server = site.found_with(Via::Broker(&url), &publisher);
    let exp = now() + 3_600;
    let sequence = server.revoke("t", exp);
    server.wait_until_published();

    let (certificate, key) = ca.sign(&site, "device");
    let device = ["--broker-ca", &ca.file, "--broker-certificate", &certificate, "--broker-key", &key];
    let agent = site.agent_with("device", &url, &device);
    agent.wait_until_at(sequence);
    agent.wait_until_says("revoked", "t", exp);
    let later = server.revoke("u", exp);
    agent.wait_until_at(later);

    // One without a certificate, and one whose certificate somebody else signed: the broker lets neither in.
    let stranger = Authority::new(&site, "stranger");
    let (certificate, key) = stranger.sign(&site, "stranger-device");
    let foreign = ["--broker-ca", &ca.file, "--broker-certificate", &certificate, "--broker-key", &key];
    for (name, more) in [("bare", &["--broker-ca", &ca.file][..]), ("foreign", &foreign)] {
        let mut outsider = site.agent_with(name, &url, more);
        until_true("the broker's refusal", || outsider.process().log().contains("broker"));
        let status = outsider.status();
        assert!(!status.to_string().contains("\"connected\":true"), "{name}: {status}");
        assert_eq!(outsider.verdict("t", exp), "unknown", "{name} knows nothing, and says so");
    }
    // And a broker that another authority vouches for is not believed.
    let wrong = ["--broker-ca", &stranger.file];
    let misled = site.agent_with("misled", &url, &wrong);
    assert_eq!(misled.verdict("t", exp), "unknown");
}

#[test]
fn a_database_that_wants_tls_is_reached_by_it_alone() {
    let site = Site::new();
    let (ca, stranger) = (Authority::new(&site, "ca"), Authority::new(&site, "stranger"));
    let (certificate, key) = ca.sign(&site, "database");
    let mut postgres = Postgres::start();
    let read = |file: &str| std::fs::read_to_string(file).unwrap();
    postgres.require_tls(&read(&certificate), &read(&key));
    let (url, password) = (postgres.database(), postgres.password_file().display().to_string());
    let at = ["--ledger", url.as_str(), "--ledger-password-file", password.as_str()];
    let with =
        |roots: &str| [&at[..], &["--ledger-ca", roots]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();

    let trusted = with(&ca.file);
    let trusted: Vec<&str> = trusted.iter().map(String::as_str).collect();
    let mut server = site.found_with(Via::Embedded, &trusted);
    let agent = site.agent("door", &server.broker());
    let exp = now() + 3_600;
    agent.wait_until_at(server.revoke("t", exp));
    agent.wait_until_says("revoked", "t", exp);
    let encrypted = "SELECT count(*) > 0 AND bool_and(s.ssl) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
                     WHERE a.application_name = 'revocast'";
    assert_eq!(postgres.sql(&url, encrypted), "t", "every connection of the server");
    assert!(server.process().stop().success());

    let verify = |more: &[String]| {
        let more = more.iter().map(String::as_str);
        revocast(["--json", "ledger", "verify"].into_iter().chain(more))
    };
    let _ = verify(&with(&ca.file)).ok();
    // Nobody is believed whom another authority vouches for, and without TLS this server lets nobody in.
    verify(&with(&stranger.file)).fails(1, &["ledger-not-opened", "certificate"]);
    verify(&at.map(str::to_owned)).fails(1, &["ledger-not-opened", "no encryption"]);
}

#[test]
fn certificates_that_do_not_fit_are_told_at_the_start() {
    let site = Site::new();
    let ca = Authority::new(&site, "ca");
    let (certificate, _) = ca.sign(&site, "one");
    let (_, other_key) = ca.sign(&site, "two");
    let data = site.text("data");
    for more in [
        ["--tls-certificate", &certificate, "--tls-key", &other_key],
        ["--tls-certificate", &certificate, "--tls-key", &certificate],
    ] {
        let mut command = revocast_tests::process::configured(&[]);
        command
            .args(["serve", "--data", &data, "--listen", "127.0.0.1:0", "--embedded-broker", "127.0.0.1:0"])
            .args(more);
        let mut server = Process::start("server", &mut command);
        assert!(!server.wait().success());
        assert!(
            server.log().contains(".pem cannot be used") || server.log().contains("is not PEM"),
            "{}",
            server.log()
        );
    }
}

#[test]
fn the_command_line_speaks_tls_to_a_server_that_somebody_vouches_for() {
    let site = Site::new();
    let ca = Authority::new(&site, "ca");
    let (certificate, key) = ca.sign(&site, "api");
    let server = site.serve_with(Via::Embedded, &["--tls-certificate", &certificate, "--tls-key", &key]);
    let url = server.url().replacen("http://", "https://", 1);
    let token = site.text("data/keys/admin.token");
    let call = |arguments: &[&str], ca: &[&str]| {
        let server = ["--server", url.as_str(), "--admin-token-file", token.as_str()];
        revocast(arguments.iter().chain(&server).chain(ca).copied())
    };
    let trusted = ["--ca", ca.file.as_str()];
    let _ = call(&["realm", "create", "fleet", "--issuer", "https://issuer.example"], &trusted).ok();
    assert!(call(&["realm", "list"], &trusted).ok().stdout.starts_with("fleet"));
    // Nobody is believed without a certificate that vouches, nor with another one.
    call(&["realm", "list"], &[]).fails(2, &["nobody vouches for the server", "--ca FILE"]);
    let stranger = Authority::new(&site, "stranger");
    call(&["realm", "list"], &["--ca", &stranger.file]).fails(1, &["does not answer", "does --ca vouch"]);
    call(&["realm", "list"], &["--ca", &key]).fails(2, &["something in it is no certificate"]);
    let plain = server.url();
    let plain = ["realm", "list", "--server", &plain, "--admin-token-file", &token];
    revocast(plain).fails(1, &["does not answer"]);
}

#[test]
fn keys_come_over_https_from_whom_somebody_vouches_for() {
    let site = Site::new();
    let ca = Authority::new(&site, "ca");
    let (certificate, key) = ca.sign(&site, "api");
    let server = site.serve_with(Via::Embedded, &["--tls-certificate", &certificate, "--tls-key", &key]);
    let url = server.url().replacen("http://", "https://", 1);
    let token = site.text("data/keys/admin.token");
    let created = ["realm", "create", "fleet", "--issuer", "https://issuer.example", "--ca", &ca.file];
    let _ = revocast(created.iter().copied().chain(["--server", &url, "--admin-token-file", &token])).ok();

    let address = |path: &str, roots: &str| KeyAddress::new(&format!("{url}{path}"), &std::fs::read(roots).unwrap());
    let mut address_of_keys = address("/v1/realms/fleet/jwks.json", &ca.file).unwrap();
    let keys = address_of_keys.keys();
    assert!(keys.keys().is_none());
    assert!(address_of_keys.refresh().unwrap(), "the first set is new");
    let first = keys.keys().unwrap();
    assert_eq!(first.len(), 1);
    assert!(!address_of_keys.refresh().unwrap(), "the same one is not");
    assert_eq!(address_of_keys.wait().as_secs(), 300);

    // Nobody else, nothing else; and what is held stays.
    let stranger = Authority::new(&site, "stranger");
    let mut foreign = address("/v1/realms/fleet/jwks.json", &stranger.file).unwrap();
    for seconds in [1, 2, 4] {
        assert!(matches!(foreign.refresh(), Err(KeySourceError::Unreachable { .. })));
        assert_eq!(foreign.wait().as_secs(), seconds);
    }
    assert!(foreign.keys().keys().is_none());
    assert!(matches!(address("/nowhere", &ca.file).unwrap().refresh(), Err(KeySourceError::Unreachable { .. })));
    assert!(address("/healthz", &ca.file).unwrap().refresh().is_err());
    assert!(matches!(KeyAddress::new(&server.url(), b""), Err(KeySourceError::NotHttps { .. })));
    drop(server);
    assert!(address_of_keys.refresh().is_err());
    assert!(std::sync::Arc::ptr_eq(&first, &keys.keys().unwrap()));
}
