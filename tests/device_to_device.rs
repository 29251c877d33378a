//! One device calls another with a token that is bound to its key: the example, over HTTP and over a real broker.

use std::path::Path;
use std::process::Command;

use revocast_tests::process::{Mosquitto, tool};

#[test]
fn one_device_calls_another_over_http_and_over_mqtt() {
    let mosquitto = Mosquitto::start();
    let binary = tool("REVOCAST_BIN");
    let example = binary.parent().unwrap_or(Path::new(".")).join("examples/device_to_device");
    let ran = Command::new(example).arg(mosquitto.url()).output().expect("the example, which tests/run builds");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let told = String::from_utf8(ran.stdout).expect("text");
    let expected = "\
http with a proof: 200 opened for good
http with the same proof again: 401 (the proof was shown before)
http without a proof: 401 (the token is bound to a key, and no proof of it was shown)
http with a thief's proof: 401 (the proof was made with another key)
http with a revoked token: 401 (the token is revoked (token))
mqtt with a proof: opened for good
mqtt with the same proof again: the proof was shown before
mqtt without a proof: the token is bound to a key, and no proof of it was shown
mqtt with another payload: the proof was made for another call
mqtt with a revoked token: the token is revoked (token)
";
    assert_eq!(told, expected);
}
