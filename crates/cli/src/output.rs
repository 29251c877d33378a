//! How results and failures are told: in words, or as JSON.

use std::error::Error;
use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use revocast_server::config::LogFormat;
use serde_json::{Value, json};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// Called with arguments that cannot be used.
const USAGE: u8 = 2;

/// Tells what a command found.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Words, or JSON.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// A result: the words for people, the value for programs.
    pub fn result(self, words: impl Display, value: &Value) {
        let text = if self.json { value.to_string() } else { words.to_string() };
        // Nobody listens any more: there is nobody to tell.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Something on the way to a result; with JSON it goes to standard error.
    pub fn progress(self, words: impl Display) {
        let _ = if self.json {
            writeln!(std::io::stderr().lock(), "{words}")
        } else {
            writeln!(std::io::stdout().lock(), "{words}")
        };
    }

    /// A failure, with its causes and what to do; gives the exit code.
    pub fn failure(self, failure: &Failure) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        let _ = if self.json {
            let value = json!({ "error": failure.name, "detail": failure.detail, "help": failure.help });
            writeln!(stderr, "{value}")
        } else {
            let help = failure.help.as_ref().map(|help| format!("\n  {help}")).unwrap_or_default();
            writeln!(stderr, "revocast: {}{help}", failure.detail)
        };
        ExitCode::from(failure.code)
    }

    /// Sends logs to standard error. `REVOCAST_LOG` is a level, or targets with levels.
    pub fn start_logging(self) -> Result<(), Failure> {
        let text = std::env::var("REVOCAST_LOG").ok().filter(|text| !text.is_empty());
        self.start_logging_as(text.as_deref(), None).map(drop)
    }

    /// Sends logs to standard error: which of them, and in which form.
    pub fn start_logging_as(self, filter: Option<&str>, format: Option<LogFormat>) -> Result<LogFilter, Failure> {
        let (filter, handle) = reload::Layer::new(targets(filter)?);
        let registry = tracing_subscriber::registry().with(filter);
        if self.json || format == Some(LogFormat::Json) {
            registry.with(fmt::layer().json().with_writer(std::io::stderr)).init();
        } else {
            // Escape sequences have no place in a file.
            let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colors)).init();
        }
        Ok(LogFilter(handle))
    }
}

/// What is logged, to be changed while the program runs.
pub struct LogFilter(reload::Handle<Targets, Registry>);

impl LogFilter {
    /// Logs something else from now on.
    pub fn set(&self, targets: Targets) {
        // Fails only if the logs are gone, and then there is nowhere to say it.
        let _ = self.0.reload(targets);
    }
}

/// What is logged: a level for what is ours, or targets with levels.
pub fn targets(filter: Option<&str>) -> Result<Targets, Failure> {
    let ours = |level: LevelFilter| {
        Targets::new()
            .with_target("revocast", level)
            .with_target("revocast_device", level)
            .with_target("revocast_server", level)
            .with_default(LevelFilter::WARN)
    };
    let Some(text) = filter else { return Ok(ours(LevelFilter::INFO)) };
    match text.parse::<LevelFilter>() {
        Ok(level) => Ok(ours(level)),
        Err(_) => text.parse().map_err(|error| {
            Failure::new("bad-log-filter", format!("REVOCAST_LOG={text} is no level and no filter"), &error).usage()
        }),
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    name: String,
    detail: String,
    help: Option<String>,
    code: u8,
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Failure {
    /// A failure with the chain of its causes in one line.
    pub fn new(name: &str, what: impl Display, cause: &dyn Error) -> Self {
        let mut detail = what.to_string();
        let mut next = Some(cause);
        while let Some(error) = next {
            let text = error.to_string();
            // Many errors repeat their cause, or say no more than we did.
            if !text.is_empty() && !detail.contains(&text) {
                detail.push_str(": ");
                detail.push_str(&text);
            }
            next = error.source();
        }
        Self { name: name.to_owned(), detail, help: None, code: 1 }
    }

    /// A failure without a cause of its own.
    pub fn plain(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), detail: detail.into(), help: None, code: 1 }
    }

    /// Says what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The caller's mistake: exit code 2.
    pub fn usage(mut self) -> Self {
        self.code = USAGE;
        self
    }
}

/// Reads a file that somebody named.
pub fn read_file(path: &std::path::Path, what: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::new("unreadable-file", format!("{what} {} cannot be read", path.display()), &error).usage()
    })
}
