use std::collections::BTreeSet;

use super::*;

/// A folder for a config file.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, text: &str) -> Chosen {
        fs::write(self.path("revocast.toml"), text).unwrap();
        Chosen::read(Some(&self.path("revocast.toml")), [], [])
    }

    /// What is wrong, without the folder.
    fn told(&self, text: &str) -> String {
        let error = self.read(text).check().expect_err(text).to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn checked(text: &str) -> Result<ServerConfig, Mistakes> {
    Desk::new().read(text).check()
}

fn refusal(text: &str) -> String {
    Desk::new().told(text)
}

/// A text that every source takes for this setting.
fn sample(setting: &Setting) -> &'static str {
    match setting.value {
        "DIR" | "FILE" => "/some/where",
        "URL" => "mqtt://b",
        "ADDR" => "127.0.0.1:7",
        "SECONDS" | "BYTES" | "N" => "7",
        "RATE" | "SHARE" => "0.0625",
        "BOOL" => "true",
        "FORMAT" => "json",
        "off|signed|plain" => "signed",
        "off|takeover|emqx|rabbitmq" => "emqx",
        "TOPIC" | "TEMPLATE" | "ID" | "NAME" | "LEVEL" => "some",
        other => panic!("{}: no sample for {other}", setting.name),
    }
}

#[test]
fn every_value_can_be_set_in_the_file_by_a_variable_and_by_a_flag() {
    let desk = Desk::new();
    for setting in SETTINGS {
        let text = sample(setting);
        let literal = match setting.value {
            "SECONDS" | "BYTES" | "N" | "RATE" | "SHARE" | "BOOL" => text.to_owned(),
            _ => format!("'{text}'"),
        };
        let by_file = desk.read(&format!("\n{} = {literal}\n", setting.name));
        let by_variable = Chosen::read(None, [(setting.variable(), text.to_owned())], []);
        let by_flag = Chosen::read(None, [], [(setting.name, text)]);
        for (chosen, origin) in [
            (&by_file, Origin::File { path: desk.path("revocast.toml"), line: 2 }),
            (&by_variable, Origin::Variable { name: setting.variable() }),
            (&by_flag, Origin::Flag { name: setting.flag() }),
        ] {
            assert_eq!(chosen.origin(setting.name), origin, "{chosen:?}");
            assert_ne!(chosen.config(), &Choices::default(), "{}", setting.name);
            assert_eq!(chosen.config(), by_flag.config(), "{}", setting.name);
        }
        assert!(!setting.help.ends_with('.') && setting.help.starts_with(char::is_uppercase), "{}", setting.help);
    }
    assert_eq!(Setting::named("broker_ca").map(|setting| (setting.variable(), setting.flag())), {
        Some(("REVOCAST_BROKER_CA".into(), "broker-ca".into()))
    });
    let names: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(names.len(), SETTINGS.len());
}

#[test]
fn the_flag_wins_over_the_variable_and_the_variable_over_the_file() {
    let desk = Desk::new();
    let path = desk.path("revocast.toml");
    fs::write(&path, "prefix = 'file'\nchunk_bytes = 2048\nheartbeat_seconds = 3\n").unwrap();
    let variables =
        [("REVOCAST_PREFIX", "variable"), ("REVOCAST_CHUNK_BYTES", "4096")].map(|(a, b)| (a.into(), b.into()));
    let chosen = Chosen::read(Some(&path), variables, [("prefix", "flag")]);
    let config = chosen.config();
    assert_eq!((config.prefix.as_deref(), config.chunk_bytes, config.heartbeat_seconds), {
        (Some("flag"), Some(4096), Some(3))
    });
    let told = chosen.to_toml();
    for line in [
        "prefix = \"flag\" # --prefix",
        "chunk_bytes = 4096 # REVOCAST_CHUNK_BYTES",
        &format!("heartbeat_seconds = 3 # {} line 3", path.display()),
        "grace_seconds = 600 # default",
        "# broker_user is not set",
    ] {
        assert!(told.lines().any(|found| found == line), "{line} in:\n{told}");
    }
}

#[test]
fn what_is_printed_gives_the_same_configuration_again() {
    let desk = Desk::new();
    let some: Vec<(&str, &str)> = SETTINGS.iter().map(|setting| (setting.name, sample(setting))).collect();
    let all = Chosen::read(None, [], some);
    assert_eq!(desk.read(&all.to_toml()).config(), all.config());
    // With the defaults written down, they hold as if they were chosen.
    let none = desk.read(&Chosen::default().to_toml());
    assert_eq!(none.config(), &Choices::defaults());
}

#[test]
fn what_takes_effect_without_a_restart_is_taken_over_and_all_that_differs_is_told() {
    let choices = |lines: &str| Desk::new().read(lines).config().clone();
    let mut old = choices("data = 'd'\nheartbeat_seconds = 3\nlog = 'debug'");
    let new = choices("data = 'e'\nheartbeat_seconds = 4\nconcurrent_requests = 9");
    let differs: Vec<(&str, Effect)> =
        old.adopt(&new).into_iter().map(|setting| (setting.name, setting.effect)).collect();
    assert_eq!(
        differs,
        [
            ("data", Effect::Restart),
            ("heartbeat_seconds", Effect::Reload),
            ("concurrent_requests", Effect::Reload),
            ("log", Effect::Reload),
        ]
    );
    assert_eq!(old, choices("data = 'd'\nheartbeat_seconds = 4\nconcurrent_requests = 9"));
}

#[test]
fn the_least_is_a_folder_and_a_broker() {
    let config = checked("data = 'd'\nembedded_broker = '127.0.0.1:0'").unwrap();
    assert_eq!((config.listen, config.keys), (LISTEN_DEFAULT, PathBuf::from("d/keys")));
    assert_eq!(config.limits, ApiLimits::default());
    assert_eq!((config.ledger, config.tls, config.approve), (LedgerChoice::Embedded, None, false));
    let none = refusal("");
    assert!(none.starts_with("data is not set; give --data DIR"), "{none}");
    assert!(none.contains("\nbroker is not set; give --broker URL or"), "{none}");
}

#[test]
fn everything_can_be_chosen() {
    let desk = Desk::new();
    let file = |name: &str, text: &str| {
        fs::write(desk.path(name), text).unwrap();
        desk.path(name).display().to_string()
    };
    let (password, pem) = (file("password", "secret\n"), file("pem", "-"));
    let config = desk
        .read(&format!(
            "listen = '0.0.0.0:1'\ndata = 'd'\nkeys = 'k'\nprefix = 'site/revocast'\nchunk_bytes = 2048\n\
             heartbeat_seconds = 5\ngrace_seconds = 0\nfalse_positive_rate = 1e-4\nadvertise = 'https://a'\n\
             broker = 'mqtt://b'\nbroker_client_id = 'c'\nbroker_user = 'u'\nbroker_password_file = '{password}'\n\
             ledger = 'postgres://revocast@db:5432/revocast'\nledger_password_file = '{password}'\n\
             ledger_ca = '{pem}'\ntls_certificate = '{pem}'\ntls_key = '{pem}'\nlease_seconds = 9\n\
             request_timeout_seconds = 1\nconcurrent_requests = 2\nrequests_per_second = 3\nbulk_per_day = 4\n\
             approve = true\nlog = 'debug'\nlog_format = 'json'\n"
        ))
        .check()
        .unwrap();
    let BrokerChoice::Remote(broker) = &config.broker else { panic!("not remote") };
    let credentials = broker.credentials.as_ref().unwrap();
    assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u", "secret"));
    let LedgerChoice::Postgres { password: Some(password), .. } = &config.ledger else { panic!("no password") };
    assert_eq!(password.expose(), "secret");
    assert!(!format!("{config:?}").contains("secret"));
    assert_eq!((config.publishing.heartbeat, config.lease), (Duration::from_secs(5), Duration::from_secs(9)));
    let limits = config.limits;
    assert_eq!((limits.concurrent_requests, limits.requests_per_second, limits.bulk_per_day), (2, Some(3), Some(4)));
}

#[test]
fn every_mistake_is_told_with_its_line_its_variable_or_its_flag() {
    let desk = Desk::new();
    let path = desk.path("revocast.toml");
    fs::write(&path, "listening_address = 'x'\nchunk_bytes = 'many'\n\nprefix = '#'\n[broker]\nurl = 'mqtt://b'\n")
        .unwrap();
    let variables = [("REVOCAST_GRACE_SECONDS", "soon"), ("REVOCAST_BROKER_USER", ""), ("REVOCAST_GRACE", "1")];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let chosen = Chosen::read(Some(&path), variables, [("concurrent_requests", "0"), ("listen", "everywhere")]);
    let told = chosen.check().unwrap_err().to_string();
    let at = |line| format!("{} line {line}: ", path.display());
    for mistake in [
        format!("{}unknown setting listening_address; revocast config print lists all of them", at(1)),
        format!("{}chunk_bytes: invalid type: string \"many\"", at(2)),
        format!("{}prefix is \"#\"", at(4)),
        format!("{}broker: invalid type: map", at(5)),
        "REVOCAST_GRACE_SECONDS: invalid type: string \"soon\"".to_owned(),
        "REVOCAST_BROKER_USER: is empty; unset it".to_owned(),
        "--concurrent-requests: concurrent_requests is 0".to_owned(),
        "--listen: invalid socket address".to_owned(),
        "data is not set".to_owned(),
    ] {
        assert!(told.lines().any(|line| line.starts_with(&mistake)), "{mistake} in:\n{told}");
    }
    assert_eq!(told.lines().count(), 9, "{told}");
    assert_eq!(chosen.strangers(), ["REVOCAST_GRACE"]);
}

#[test]
fn a_file_that_is_none_is_told_alone() {
    let desk = Desk::new();
    let none = Chosen::read(Some(&desk.path("none")), [], []).check().unwrap_err().to_string();
    assert!(none.contains("none cannot be read: No such file") && none.lines().count() == 1, "{none}");
    let twice = desk.told("data = 'd'\ndata = 'e'\n");
    assert!(twice.starts_with("revocast.toml line 2: duplicate key"), "{twice}");
    assert!(desk.told("data = \n").starts_with("revocast.toml line 1: "));
    assert!(desk.told("brokr = 'mqtt://b'").contains("did you mean broker?"));
    assert!(desk.told("[limits]\nx = 1").contains("there are no sections; write limits_NAME"));
    fs::write(desk.path("large"), vec![b'#'; (1 << 20) + 1]).unwrap();
    let large = Chosen::read(Some(&desk.path("large")), [], []).check().unwrap_err().to_string();
    assert!(large.contains("more than 1 MiB"), "{large}");
}

#[test]
fn a_broker_that_was_chosen_nearer_to_the_command_line_pushes_out_the_other() {
    let desk = Desk::new();
    let path = desk.path("revocast.toml");
    fs::write(&path, "data = 'd'\nembedded_broker = '127.0.0.1:0'\n").unwrap();
    let remote = Chosen::read(Some(&path), [], [("broker", "mqtt://b")]).check().unwrap();
    assert!(matches!(remote.broker, BrokerChoice::Remote(_)));
    fs::write(&path, "data = 'd'\nbroker = 'mqtt://b'\n").unwrap();
    let variable = [("REVOCAST_EMBEDDED_BROKER".to_owned(), "127.0.0.1:0".to_owned())];
    let embedded = Chosen::read(Some(&path), variable, []).check().unwrap();
    assert!(matches!(embedded.broker, BrokerChoice::Embedded(_)));
}

#[test]
fn values_out_of_range_are_refused() {
    let base = "data = 'd'\nembedded_broker = '127.0.0.1:0'\n";
    for (line, start) in [
        ("chunk_bytes = 2047", "chunk_bytes is 2047; from 2048 to 262144 is possible"),
        ("chunk_bytes = 262145", "chunk_bytes is 262145"),
        ("chunk_bytes = -1", "chunk_bytes: invalid value: integer `-1`"),
        ("heartbeat_seconds = 0", "heartbeat_seconds is 0ns"),
        ("heartbeat_seconds = 18446744073709551615", ""),
        ("grace_seconds = 99999999", "grace_seconds is 99999999s"),
        ("false_positive_rate = 0.0", "false_positive_rate is 0.0"),
        ("false_positive_rate = nan", "false_positive_rate is NaN"),
        ("false_positive_rate = 0.5", "false_positive_rate is 0.5"),
        ("epoch_age_seconds = 1", "epoch_age_seconds is 1s"),
        ("epoch_dead_share = 0.0", "epoch_dead_share is 0.0"),
        ("epoch_recent_share = 1.5", "epoch_recent_share is 1.5"),
        ("lease_seconds = 1", "lease_seconds is 1s"),
        ("token_lifetime_seconds = 0", "token_lifetime_seconds is 0ns"),
        ("token_topic = 'tokens'", "token_topic cannot be used: the token topic has 0 levels {device_id}"),
        ("token_topic = 'tokens/{device_id}/#'", "token_topic cannot be used: the token topic has the level \"#\""),
        ("requests_per_second = 0", "requests_per_second is 0"),
        ("request_timeout_seconds = 0", "request_timeout_seconds is 0ns"),
        ("concurrent_requests = 0", "concurrent_requests is 0"),
        ("approve = 'yes'", "approve: invalid type"),
        ("log_format = 'xml'", "log_format: unknown variant `xml`"),
    ] {
        let told = refusal(&format!("{base}{line}\n"));
        assert!(told.starts_with(&format!("revocast.toml line 3: {start}")), "{line}: {told}");
    }
    for prefix in ["", "/a", "a/", "a//b", "a/+", "#", "$SYS", "a\\u0000", &"x".repeat(257)] {
        let told = refusal(&format!("{base}prefix = \"{prefix}\""));
        assert!(told.starts_with("revocast.toml line 3: prefix is"), "{prefix}: {told}");
    }
}

#[test]
fn brokers_ledgers_and_certificates_that_cannot_be_are_refused() {
    let told = |lines: &str| refusal(&format!("data = 'd'\n{lines}"));
    let broker = |lines: &str| told(&format!("broker = {lines}"));
    let ledger = |lines: &str| told(&format!("embedded_broker = '127.0.0.1:0'\n{lines}"));
    for (told, wanted) in [
        (broker("'http://b'"), "line 2: broker is \"http://b\": a broker URL begins with"),
        (broker("'mqtt://u:p@b'"), "a broker URL holds no credentials"),
        (broker("'mqtts://b'"), "broker_ca is not set; give --broker-ca FILE"),
        (broker("'mqtts://b'\nbroker_ca = '/nonexistent'"), "line 3: broker_ca cannot be used"),
        (broker("'mqtt://b'\nbroker_ca = 'x'"), "line 3: broker_ca is set but broker is not mqtts://"),
        (broker("'mqtt://b'\nbroker_password_file = 'x'"), "broker_password_file is set but broker_user is not"),
        (
            broker("'mqtt://b'\nbroker_user = 'u'\nbroker_password_file = '/nonexistent'"),
            "line 4: /nonexistent cannot be read",
        ),
        (broker("'mqtt://b'\nbroker_client_id = ''"), "line 3: broker_client_id is"),
        (broker("'mqtt://b'\nbroker_certificate = '/dev/null'"), "broker_certificate is set but broker_key is not"),
        (broker("'mqtt://b'\nembedded_broker = '127.0.0.1:0'"), "line 2: both a broker and"),
        (ledger("ledger = 'mysql://b'"), "line 3: a ledger is postgres://user@host:port/name"),
        (ledger("ledger = 'postgres://u:p@h/d'"), "line 3: a ledger URL holds no password"),
        (ledger("ledger = 'postgres://h/d?password=x'"), "line 3: a ledger URL holds no password"),
        (ledger("ledger_ca = '/dev/null'"), "ledger_ca is set but ledger is not"),
        (ledger("tls_key = '/dev/null'"), "tls_key is set but tls_certificate is not"),
        (ledger("tls_certificate = '/none'\ntls_key = '/dev/null'"), "line 3: /none cannot be read"),
        (ledger("advertise = 'host:1'"), "line 3: advertise is \"host:1\"; it is a URL"),
        (ledger("bridge_in = 'plain'"), "line 3: bridge_in is set but bridge_realm is not"),
        (ledger("bridge_out = true"), "line 3: bridge_out is set but bridge_realm is not"),
        (ledger("bridge_out = true\nbridge_realm = 'A b'"), "line 4: bridge_realm is \"A b\"; a realm has"),
        (ledger("bridge_in = 'yes'"), "line 3: bridge_in: unknown variant `yes`, expected one of"),
        (ledger("bridge_topic = 'revocast/x'"), "line 3: bridge_topic is \"revocast/x\""),
        (ledger("bridge_topic = '+'"), "line 3: bridge_topic is \"+\""),
        (ledger("bridge_per_day = 0"), "line 3: bridge_per_day is 0; from 1"),
        (ledger("sessions = 'emqx'"), "line 3: sessions is set but one of sessions_url"),
        (
            ledger(
                "sessions = 'emqx'\nsessions_url = 'http://u:p@h'\nsessions_user = 'u'\nsessions_password_file = '/dev/null'",
            ),
            "line 4: sessions_url is \"http://u:p@h\"",
        ),
        (
            ledger(
                "sessions = 'rabbitmq'\nsessions_url = 'https://h'\nsessions_user = 'u'\nsessions_password_file = '/dev/null'",
            ),
            "sessions_ca is not set; give --sessions-ca FILE",
        ),
    ] {
        assert!(told.contains(wanted) && told.lines().count() == 1, "{wanted}: {told}");
    }
}
