//! The files under docs/examples, run as they stand but for ports and paths.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use revocast_server::config::{Effect, SETTINGS};
use revocast_tests::process::{
    AUDIENCE, Process, REALM, Site, Via, free_port, now, revocast, text, tool, until, until_true,
};
use rumqttc::{Client, ConnectReturnCode, Connection, Event, MqttOptions, Packet, QoS};

/// An example file.
fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_configuration_names_every_setting_and_is_good() {
    let site = Site::new();
    let text = example("revocast.toml");
    for setting in SETTINGS {
        let line = text.lines().find(|line| line.trim_start_matches('#').starts_with(&format!("{} = ", setting.name)));
        let line = line.unwrap_or_else(|| panic!("{} does not stand in it", setting.name));
        assert_eq!(line.contains("(reload)"), setting.effect == Effect::Reload, "{line}");
    }
    let certificate = rcgen::generate_simple_self_signed(["broker.example".to_owned()]).unwrap();
    let _ = site.write("broker-ca.crt", certificate.cert.pem());
    for name in ["server.crt", "clients-ca.crt", "ledger-ca.crt", "broker-client.crt"] {
        let _ = site.write(name, certificate.cert.pem());
    }
    for name in ["server.key", "broker-client.key"] {
        let _ = site.write(name, certificate.signing_key.serialize_pem());
    }
    for name in ["broker.password", "ledger.password", "sessions.password"] {
        let _ = site.write(name, "secret\n");
    }
    let here =
        |text: &str| text.replace("/etc/revocast/", &site.text("")).replace("/var/lib/revocast", &site.text("data"));
    let file = site.write("revocast.toml", here(&text));
    assert_eq!(revocast(["config", "check", &file]).ok().stdout, "the configuration is good\n");
    // And with everything in it that is commented out, but for the second broker.
    let all: Vec<String> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '#']) && !rest.starts_with("embedded") => rest.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    let file = site.write("all.toml", here(&all.join("\n")));
    assert_eq!(revocast(["config", "check", &file]).ok().stdout, "the configuration is good\n");
    let printed = revocast(["config", "print", &file]).ok().stdout;
    assert_eq!(printed.matches(" is not set").count(), 1, "{printed}");
    assert!(!printed.contains("secret"), "{printed}");
}

/// Somebody with a user name and a password at the broker.
struct User {
    client: Client,
    connection: Connection,
}

impl User {
    fn connect(port: u16, user: &str, password: &str) -> Result<Self, ConnectReturnCode> {
        let mut options = MqttOptions::new(format!("{user}-{}", free_port()), "127.0.0.1", port);
        options.set_credentials(user, password).set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 100);
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => break,
                Ok(Event::Incoming(Packet::ConnAck(ack))) => return Err(ack.code),
                Err(rumqttc::ConnectionError::ConnectionRefused(code)) => return Err(code),
                Ok(_) => {}
                Err(error) => panic!("{user}: {error}"),
            }
        }
        Ok(Self { client, connection })
    }

    fn publish(&self, topic: &str, payload: &str) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).expect("room in the queue");
    }

    /// Polls until `done` says so.
    fn poll(&mut self, mut done: impl FnMut(&Packet) -> bool) {
        for event in self.connection.iter() {
            if let Event::Incoming(packet) = event.expect("a connection")
                && done(&packet)
            {
                return;
            }
        }
    }

    /// Subscribes, whatever the broker says to it.
    fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).expect("room in the queue");
        self.poll(|packet| matches!(packet, Packet::SubAck(_)));
    }

    /// The payloads that come until `last` does, that included.
    fn hear_until(&mut self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        self.poll(|packet| {
            if let Packet::Publish(publish) = packet {
                heard.push(String::from_utf8_lossy(&publish.payload).into_owned());
            }
            heard.last().is_some_and(|heard| heard == last)
        });
        heard
    }
}

/// Server and device work with the access rules; a device that somebody took over can report and ask in its own name, and
/// nothing else.
#[test]
fn mosquitto_with_its_access_rules_carries_everything_and_lets_no_device_speak_for_others() {
    let site = Site::new();
    let passwords = site.write("passwords", "revocast:server-secret\ndoor:door-secret\ngate:gate-secret\n");
    let hashed = Command::new(tool("REVOCAST_MOSQUITTO").with_file_name("../bin/mosquitto_passwd"))
        .args(["-U", &passwords])
        .status();
    assert!(hashed.is_ok_and(|status| status.success()), "mosquitto_passwd comes with mosquitto");
    let acl = site.write("mosquitto.acl", example("mosquitto.acl"));
    std::fs::create_dir_all(site.path("persistence")).unwrap();
    let port = free_port();
    let config: String = example("mosquitto.conf")
        .replace("listener 8883", &format!("listener {port} 127.0.0.1"))
        .replace("/etc/mosquitto/passwords", &passwords)
        .replace("/etc/mosquitto/mosquitto.acl", &acl)
        .replace("/var/lib/mosquitto/", &format!("{}/", site.text("persistence")))
        .lines()
        .filter(|line| !line.starts_with("certfile") && !line.starts_with("keyfile"))
        .fold(String::new(), |text, line| text + line + "\n");
    // As root it would become somebody else, who may not enter the folder.
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let config = site.write("mosquitto.conf", config + if root { "user root\n" } else { "" });
    let mut mosquitto = Process::start("mosquitto", Command::new(tool("REVOCAST_MOSQUITTO")).args(["-c", &config]));
    until("mosquitto listens", || {
        assert!(mosquitto.is_running(), "{}", mosquitto.log());
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let url = format!("mqtt://127.0.0.1:{port}");

    let password = site.write("server.password", "server-secret\n");
    let server =
        site.found_with(Via::Broker(&url), &["--broker-user", "revocast", "--broker-password-file", &password]);
    let password = site.write("door.password", "door-secret\n");
    let mut watcher = User::connect(port, "revocast", "server-secret").unwrap();
    watcher.subscribe(&format!("revocast/{REALM}/devices/+/report"));
    let identity = site.text("door.identity");
    let enrollment = revocast(["device", "keygen", "--id", "door", "--realm", REALM, "--out", &identity]).ok().stdout;
    let enrollment = site.write("door.json", enrollment);
    let _ = server.command(&["device", "enroll", &enrollment, "--audience", AUDIENCE]).ok();
    let named = ["--broker-user", "door", "--broker-password-file", &password];
    let agent =
        site.agent_with("door", &url, &[&named[..], &["--identity", &identity, "--audience", AUDIENCE]].concat());
    let exp = now() + 1_000;
    let sequence = server.revoke("lost", exp);
    agent.wait_until_at(sequence);
    // It may ask for its token, and hear it.
    until("the door holds a token", || {
        let (_, token) = agent.ask("GET", "/token", b"").unwrap();
        (text(&token, "state") == "held").then_some(())
    });
    assert_eq!((agent.verdict("lost", exp), agent.verdict("good", exp)), ("revoked".into(), "not-revoked".into()));
    // Its report arrives, so it may write there.
    watcher.poll(|packet| matches!(packet, Packet::Publish(publish) if publish.topic.contains("/devices/door/report")));

    // A device that was taken over.
    let mut gate = User::connect(port, "gate", "gate-secret").unwrap();
    watcher.subscribe("revocast/#");
    let manifest = format!("revocast/{REALM}/manifest");
    for topic in [
        &manifest,
        &format!("revocast/{REALM}/keys"),
        &format!("revocast/{REALM}/live"),
        &format!("revocast/{REALM}/ladder/0-1"),
        &format!("revocast/{REALM}/e/1/index"),
        &format!("revocast/{REALM}/devices/door/report"),
        &format!("revocast/{REALM}/devices/door/ask"),
        &format!("revocast/{REALM}/devices/door/answer"),
        &format!("revocast/{REALM}/devices/gate/answer"),
        &format!("revocast/{REALM}/devices/door/renew"),
        &format!("revocast/{REALM}/jwks"),
        "device_tokens/door",
        "device_tokens/gate",
        "elsewhere",
    ] {
        gate.publish(topic, "forged");
    }
    gate.publish(&format!("revocast/{REALM}/devices/gate/report"), "its own");
    let mut acknowledged = 0;
    gate.poll(|packet| {
        acknowledged += u32::from(matches!(packet, Packet::PubAck(_)));
        acknowledged == 15
    });
    assert!(watcher.hear_until("its own").iter().all(|heard| heard != "forged"), "one of them came through");

    // It hears what is for all, and what is for it.
    let others = ["answer", "report"].map(|name| format!("revocast/{REALM}/devices/+/{name}"));
    for topic in others.iter().chain([&manifest, &"device_tokens/+".to_owned()]) {
        gate.subscribe(topic);
    }
    for (device, text) in [("door", "for the door"), ("gate", "for the gate")] {
        watcher.publish(&format!("revocast/{REALM}/devices/{device}/report"), "a report");
        watcher.publish(&format!("device_tokens/{device}"), &format!("a token {text}"));
        watcher.publish(&format!("revocast/{REALM}/devices/{device}/answer"), text);
    }
    let both = std::thread::spawn(move || watcher.hear_until("for the gate"));
    let heard = gate.hear_until("for the gate");
    assert!(!heard.iter().any(|text| text.ends_with("for the door") || text == "a report"), "{heard:?}");
    assert!(heard.iter().any(|text| text == "a token for the gate"), "{heard:?}");
    assert!(both.join().unwrap().iter().any(|text| text == "for the door"), "the server may");

    for (user, password) in [("gate", "wrong"), ("nobody", "")] {
        assert!(User::connect(port, user, password).is_err(), "{user}");
    }
    // Nothing of all this disturbed the device.
    let sequence = server.revoke("lost-too", exp);
    agent.wait_until_at(sequence);
    until_true("still right", || agent.verdict("lost-too", exp) == "revoked");
}

/// NATS speaks MQTT over subjects of its own, and keeps what is retained in a stream: server and device work over it with
/// the permissions of the example, also after it was started again, and a device speaks for itself alone.
#[test]
fn nats_with_its_permissions_carries_everything_and_lets_no_device_speak_for_others() {
    let site = Site::new();
    let (port, client_port) = (free_port(), free_port());
    let mut config = example("nats.conf")
        .replace("port: 8883", &format!("host: 127.0.0.1, port: {port}"))
        .replace("/var/lib/nats", &site.text("jetstream"))
        .replacen("\"$2a$11$HASH\"", "server-secret", 1)
        .replacen("\"$2a$11$HASH\"", "gate-secret", 1);
    let (from, to) = (config.find("  tls {").expect("TLS"), config.find("  ack_wait").expect("what follows it"));
    config.replace_range(from..to, "");
    let _ = writeln!(config, "listen: 127.0.0.1:{client_port}");
    let config = site.write("nats.conf", config);
    let start = || {
        let mut nats = Process::start("nats-server", Command::new(tool("REVOCAST_NATS")).args(["-c", &config]));
        until("NATS listens", || {
            assert!(nats.is_running(), "{}", nats.log());
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        nats
    };
    let mut nats = start();
    let url = format!("mqtt://127.0.0.1:{port}");
    let password = site.write("server.password", "server-secret\n");
    let server =
        site.found_with(Via::Broker(&url), &["--broker-user", "revocast", "--broker-password-file", &password]);
    let password = site.write("gate.password", "gate-secret\n");
    let agent = site.agent_with("gate-7", &url, &["--broker-user", "gate-7", "--broker-password-file", &password]);
    let exp = now() + 1_000;
    let sequence = server.revoke("lost", exp);
    agent.wait_until_at(sequence);
    assert_eq!((agent.verdict("lost", exp), agent.verdict("good", exp)), ("revoked".into(), "not-revoked".into()));

    let mut watcher = User::connect(port, "revocast", "server-secret").unwrap();
    watcher.subscribe(&format!("revocast/{REALM}/#"));
    let mut gate = User::connect(port, "gate-7", "gate-secret").unwrap();
    for topic in ["manifest", "live", "devices/door/report", "devices/gate-7/answer"] {
        gate.publish(&format!("revocast/{REALM}/{topic}"), "forged");
    }
    gate.publish(&format!("revocast/{REALM}/devices/gate-7/report"), "its own");
    let mut acknowledged = 0;
    gate.poll(|packet| {
        acknowledged += u32::from(matches!(packet, Packet::PubAck(_)));
        acknowledged == 5
    });
    assert!(watcher.hear_until("its own").iter().all(|heard| heard != "forged"), "one of them came through");
    assert!(User::connect(port, "gate-7", "wrong").is_err());

    // What it retains it has on disk.
    drop((watcher, gate));
    nats.kill();
    nats = start();
    let sequence = server.revoke("lost-too", exp);
    agent.wait_until_at(sequence);
    until_true("still right", || agent.verdict("lost-too", exp) == "revoked");
    assert!(nats.is_running());
}
