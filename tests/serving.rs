//! How an operator runs a server: configuration from three places, reading it again, ending in order.

use std::process::Command;

use revocast_tests::process::{Process, Site, configured, revocast};
use serde_json::Value;

/// What `config print` says, as JSON.
fn printed(variables: &[(&str, &str)], arguments: &[&str]) -> Value {
    let mut command = configured(variables);
    command.args(["--json", "config", "print"]).args(arguments);
    let mut process = Process::start("config print", &mut command);
    let line = process.line().unwrap_or_else(|| panic!("{}", process.log()));
    assert!(process.wait().success(), "{}", process.log());
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let site = Site::new();
    let file = site.write("revocast.toml", "prefix = 'file'\nchunk_bytes = 2048\nheartbeat_seconds = 3\n");
    let variables = [("REVOCAST_PREFIX", "variable"), ("REVOCAST_CHUNK_BYTES", "4096"), ("REVOCAST_CONFIG", &file)];
    let printed = printed(&variables, &["--prefix", "flag", "--log-format", "json"]);
    let said = |name: &str| {
        let setting = &printed[name];
        (setting["value"].clone(), setting["origin"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(said("prefix"), ("flag".into(), "--prefix".into()));
    assert_eq!(said("chunk_bytes"), (4096.into(), "REVOCAST_CHUNK_BYTES".into()));
    assert_eq!(said("heartbeat_seconds"), (3.into(), format!("{file} line 3")));
    assert_eq!(said("grace_seconds"), (600.into(), "default".into()));
    assert_eq!(said("broker_user"), (Value::Null, "default".into()));
    assert_eq!(said("log_format"), ("json".into(), "--log-format".into()));
}

#[test]
fn what_is_printed_serves_as_a_config_file() {
    let site = Site::new();
    let flags = ["--data", &site.text("data"), "--embedded-broker", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
        .map(str::to_owned);
    let first = revocast(["config", "print"].map(str::to_owned).iter().chain(&flags)).ok();
    let file = site.write("printed.toml", &first.stdout);
    assert_eq!(revocast(["config", "check", &file]).ok().stdout, "the configuration is good\n");
    let second = revocast(["config", "print", &file]).ok();
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.filter_map(|line| Some(line.split_once(" # ")?.0.to_owned())).collect()
    };
    assert_eq!(values(&first.stdout), values(&second.stdout));
    assert!(!values(&first.stdout).is_empty());
    let mut server = Process::start("server", configured(&[]).args(["--json", "serve", "--config", &file]));
    assert!(server.line().is_some_and(|line| line.contains("\"api\"")), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn config_check_tells_all_mistakes_and_what_nothing_is_called_by() {
    let site = Site::new();
    let file = site.write("revocast.toml", "listne = 'x'\nchunk_bytes = 'many'\nbroker = 'http://b'\n");
    revocast(["config", "check", &file, "--grace-seconds", "-1", "--data", &site.text("data")]).fails(2, &["-1"]);
    let ran = revocast(["config", "check", &file, "--grace-seconds", "soon", "--data", &site.text("data")]);
    let lines: [String; 4] = [
        format!("{file} line 1: unknown setting listne; did you mean listen?"),
        format!("{file} line 2: chunk_bytes: invalid type"),
        format!("{file} line 3: broker is \"http://b\": a broker URL begins with mqtt:// or mqtts://"),
        "--grace-seconds: invalid type".to_owned(),
    ];
    ran.fails(1, &lines.each_ref().map(String::as_str));

    let data = site.text("data");
    let good = ["--data", &data, "--embedded-broker", "127.0.0.1:0"];
    let mut command: Command = configured(&[("REVOCAST_GRACE", "1")]);
    let mut process = Process::start("config check", command.args(["--json", "config", "check"]).args(good));
    let told: Value = serde_json::from_str(&process.line().expect("an answer")).expect("JSON");
    assert!(process.wait().success());
    assert_eq!(told["unknown_variables"], Value::from(vec!["REVOCAST_GRACE"]));
    // Keys that are not there, a password that cannot be read.
    revocast(["config", "check", "--data", &site.text("none"), "--embedded-broker", "127.0.0.1:0"])
        .fails(1, &["revocast keygen --out"]);
    let none = site.text("none");
    let broker = ["--broker", "mqtt://b", "--broker-user", "u", "--broker-password-file", &none];
    revocast(["config", "check", "--data", &data].iter().copied().chain(broker))
        .fails(1, &["--broker-password-file: ", "cannot be read: No such file"]);
}
