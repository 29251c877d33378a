//! `revocast serve`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use revocast_server::clock::SystemClock;
use revocast_server::server::{Server, StartError};
use serde_json::json;

use crate::args::Serve;
use crate::output::{Failure, Output};
use crate::{asked_to_end, config, keygen, runtime};

pub fn run(output: Output, arguments: &Serve) -> Result<ExitCode, Failure> {
    let chosen = config::read(arguments.config.as_deref(), &arguments.settings);
    let mut config = chosen.check().map_err(|mistakes| config::failure(&mistakes).usage())?;
    output.start_logging_as(config.log.as_deref(), config.log_format)?;
    for name in chosen.strangers() {
        tracing::warn!(variable = name, "a variable that no setting is called by");
    }
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
