//! `revocast serve`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use revocast_server::clock::{Clock as _, SystemClock};
use revocast_server::config::{Choices, Effect, LedgerChoice, ServerConfig};
use revocast_server::keys::Keys;
use revocast_server::server::{Server, StartError};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Serve;
use crate::notify::{self, State};
use crate::output::{Failure, LogFilter, Output, targets};
use crate::{Ends, config, keygen, runtime};

/// How long what is still going on when the server has ended is waited for.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);

pub fn run(output: Output, arguments: &Serve) -> Result<ExitCode, Failure> {
    let chosen = config::read(arguments.config.as_deref(), &arguments.settings);
    let mut config = chosen.check().map_err(|mistakes| config::failure(&mistakes).usage())?;
    let logs = output.start_logging_as(config.log.as_deref(), config.log_format)?;
    for name in chosen.strangers() {
        tracing::warn!(variable = name, "a variable that no setting is called by");
    }
    config.resume = arguments.resume;
    if arguments.confirm_clock {
        config.publishing.restart_jump_max = Duration::MAX;
    }
    let mut in_force = chosen.config().clone();
    make_first_keys(&config)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        // From the first moment on: whoever asks a server that starts to read its configuration shall not end it, and
        // whoever has read that it serves can ask it to end.
        let mut hangups = signal(SignalKind::hangup())
            .map_err(|error| Failure::new("no-signals", "the process cannot be told to reload", &error))?;
        let mut ends = Ends::listen()?;
        let server = tokio::select! {
            started = Server::start(config, Arc::new(SystemClock::new())) => started.map_err(|error| failure(&error))?,
            // Nothing was acknowledged yet.
            () = ends.next() => return Ok(ExitCode::SUCCESS),
        };
        let scheme = if server.tls().is_some() { "https" } else { "http" };
        let api = format!("{scheme}://{}", server.local_addr());
        let broker = server.broker_addr().map(|address| format!("mqtt://{address}"));
        let words = match &broker {
            Some(broker) => format!("api {api}\nbroker {broker}"),
            None => format!("api {api}"),
        };
        output.result(words, &json!({ "api": api, "broker": broker }));
        notify::tell(State::Ready);
        let failed = loop {
            tokio::select! {
                () = ends.next() => break None,
                cause = server.failed() => break Some(cause),
                _ = hangups.recv() => {
                    notify::tell(State::Reloading);
                    reload(&server, &logs, arguments, &mut in_force);
                    notify::tell(State::Ready);
                }
            }
        };
        notify::tell(State::Stopping);
        tokio::select! {
            () = server.stop() => {}
            // What is acknowledged is durable; nothing else needs waiting for.
            () = ends.next() => {
                return Err(Failure::plain("ended-at-once", "asked to end twice: ended before everything was done"));
            }
        }
        match failed {
            None => Ok(ExitCode::SUCCESS),
            Some(cause) => Err(Failure::plain("ledger-stopped", format!("the ledger stopped writing: {cause}"))
                .help("restart the server: what the disk then says is the truth")),
        }
    });
    // A thread that reads a long ledger, or what was told not to wait for, keeps nobody waiting.
    runtime.shutdown_timeout(SHUTDOWN_PATIENCE);
    outcome
}

/// Makes the keys of a server that begins with nothing: no keys, and an empty folder for its ledger. A ledger that is
/// there, or is shared, was founded with keys that belong here; new ones would be believed by no device.
fn make_first_keys(config: &ServerConfig) -> Result<(), Failure> {
    let empty = match fs::read_dir(&config.data) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if config.ledger != LedgerChoice::Embedded || !empty || config.keys.symlink_metadata().is_ok() {
        return Ok(());
    }
    let folder = &config.keys;
    Keys::generate(folder, SystemClock::new().unix_time()).map_err(|error| keygen::failure(&error))?;
    tracing::warn!(folder = %folder.display(), "an empty folder: made new keys; keep a copy of root.key offline");
    Ok(())
}

/// Reads the configuration again and takes over what takes effect without a restart. If anything of it cannot be
/// used, all stays as it is.
fn reload(server: &Server, logs: &LogFilter, arguments: &Serve, in_force: &mut Choices) {
    let chosen = config::read(arguments.config.as_deref(), &arguments.settings);
    let config = match chosen.check() {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes.0 {
                tracing::error!(%mistake, "the new configuration cannot be used; the old one stays in force");
            }
            return;
        }
    };
    let targets = match targets(config.log.as_deref()) {
        Ok(targets) => targets,
        Err(failure) => {
            tracing::error!(mistake = %failure, "the new configuration cannot be used; the old one stays in force");
            return;
        }
    };
    if let Err(error) = server.reload(&config) {
        let mistake = Failure::new("reload", "what it names", &error);
        tracing::error!(%mistake, "the new configuration cannot be used; the old one stays in force");
        return;
    }
    logs.set(targets);
    for setting in in_force.adopt(chosen.config()) {
        match setting.effect {
            Effect::Reload => tracing::info!(setting = setting.name, "changed"),
            Effect::Restart => tracing::warn!(setting = setting.name, "changed; takes effect with the next start"),
        }
    }
    tracing::info!("configuration read again");
}

fn failure(error: &StartError) -> Failure {
    match error {
        StartError::Keys(error) => keygen::failure(error),
        StartError::Busy { .. } => Failure::plain("busy-port", error.to_string()),
        other => Failure::new("not-started", "the server did not start", other),
    }
}
