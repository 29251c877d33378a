//! `config`: what `serve` would be configured with, and what is wrong with it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use revocast_server::config::{Chosen, Mistakes, SETTINGS};
use revocast_server::keys::Keys;
use serde_json::{Value, json};

use crate::args::{ConfigArguments, ConfigCommand, SettingArguments};
use crate::keygen;
use crate::output::{Failure, Output};

/// Reads the file, the environment and the command line.
pub fn read(file: Option<&Path>, settings: &SettingArguments) -> Chosen {
    // A variable that is not UTF-8 is not one of ours, or its value is no setting's.
    let variables = std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text)));
    let variables = variables.map(|(name, text)| (name, text.to_string_lossy().into_owned()));
    Chosen::read(file, variables, settings.given())
}

/// All mistakes, a line each.
pub fn failure(mistakes: &Mistakes) -> Failure {
    let mut detail = "the configuration cannot be used".to_owned();
    for mistake in &mistakes.0 {
        let _ = if mistakes.0.len() == 1 { write!(detail, ": {mistake}") } else { write!(detail, "\n  {mistake}") };
    }
    Failure::plain("bad-config", detail)
}

pub fn run(output: Output, command: &ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Check(arguments) => check(output, arguments),
        ConfigCommand::Print(arguments) => print(output, arguments),
    }
}

fn check(output: Output, arguments: &ConfigArguments) -> Result<ExitCode, Failure> {
    let chosen = read(arguments.file.as_deref(), &arguments.settings);
    let config = chosen.check().map_err(|mistakes| failure(&mistakes))?;
    crate::output::targets(config.log.as_deref())?;
    Keys::load(&config.keys).map_err(|error| keygen::failure(&error))?;
    let warnings = chosen.strangers();
    let mut words = "the configuration is good".to_owned();
    for name in warnings {
        let _ = write!(words, "\nwarning: {name} is set, and no setting is called that");
    }
    output.result(words, &json!({ "good": true, "unknown_variables": warnings }));
    Ok(ExitCode::SUCCESS)
}

fn print(output: Output, arguments: &ConfigArguments) -> Result<ExitCode, Failure> {
    let chosen = read(arguments.file.as_deref(), &arguments.settings);
    // Something can be shown only if all of it can be read.
    if let Some(mistakes) = chosen.unreadable() {
        return Err(failure(&mistakes));
    }
    let defaults = revocast_server::config::Choices::defaults();
    let values: serde_json::Map<String, Value> = SETTINGS
        .iter()
        .map(|setting| {
            let value = chosen.config().value(setting.name).or_else(|| defaults.value(setting.name));
            (setting.name.to_owned(), json!({ "value": value, "origin": chosen.origin(setting.name).to_string() }))
        })
        .collect();
    output.result(chosen.to_toml(), &Value::Object(values));
    Ok(ExitCode::SUCCESS)
}
