//! `revocast serve`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use revocast_server::clock::SystemClock;
use revocast_server::config::{BrokerSection, ConfigFile};
use revocast_server::server::{Server, StartError};
use serde_json::json;

use crate::args::Serve;
use crate::output::{Failure, Output};
use crate::{asked_to_end, keygen, runtime};

pub fn run(output: Output, arguments: Serve) -> Result<ExitCode, Failure> {
    output.start_logging()?;
    let unusable =
        |error: &dyn std::error::Error| Failure::new("bad-config", "the configuration cannot be used", error).usage();
    let mut file = match &arguments.config {
        Some(path) => ConfigFile::read(path).map_err(|error| unusable(&error))?,
        None => ConfigFile::default(),
    };
    // The command line wins over the file.
    file.data = arguments.data.or(file.data);
    file.listen = arguments.listen.or(file.listen);
    file.keys = arguments.keys.or(file.keys);
    if arguments.embedded_broker.is_some() {
        file.embedded_broker = arguments.embedded_broker;
        file.broker = None;
    }
    if arguments.broker.is_some() {
        file.embedded_broker = None;
    }
    let named = arguments.broker.is_some()
        || arguments.broker_ca.is_some()
        || arguments.broker_user.is_some()
        || arguments.broker_password_file.is_some();
    if named {
        let section = file.broker.get_or_insert_with(BrokerSection::default);
        section.url = arguments.broker.or(section.url.take());
        section.ca = arguments.broker_ca.or(section.ca.take());
        section.username = arguments.broker_user.or(section.username.take());
        section.password_file = arguments.broker_password_file.or(section.password_file.take());
    }
    let mut config = file.check().map_err(|error| unusable(&error))?;
    config.resume = arguments.resume;
    if arguments.confirm_clock {
        config.publishing.restart_jump_max = Duration::MAX;
    }
    runtime()?.block_on(async {
        let server = Server::start(config, Arc::new(SystemClock::new())).await.map_err(|error| failure(&error))?;
        let api = format!("http://{}", server.local_addr());
        let broker = server.broker_addr().map(|address| format!("mqtt://{address}"));
        let words = match &broker {
            Some(broker) => format!("api {api}\nbroker {broker}"),
            None => format!("api {api}"),
        };
        output.result(words, &json!({ "api": api, "broker": broker }));
        let failed = tokio::select! {
            () = asked_to_end() => None,
            cause = server.failed() => Some(cause),
        };
        server.stop().await;
        match failed {
            None => Ok(ExitCode::SUCCESS),
            Some(cause) => Err(Failure::plain("ledger-stopped", format!("the ledger stopped writing: {cause}"))
                .help("restart the server: what the disk then says is the truth")),
        }
    })
}

fn failure(error: &StartError) -> Failure {
    match error {
        StartError::Keys(error) => keygen::failure(error),
        StartError::Busy { .. } => Failure::plain("busy-port", error.to_string()),
        other => Failure::new("not-started", "the server did not start", other),
    }
}
