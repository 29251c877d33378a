//! The binary: the only place that prints and exits.
//!
//! Each command is a module that returns what it found or a [`Failure`]; what to print, and where, is
//! decided by [`output`]. Exit codes: 0 done, 1 failed, 2 called wrongly, 3 at least one token rejected.

#![expect(unreachable_pub, reason = "nothing in a binary can be reached; `pub` says what other modules may use")]

mod admin;
mod agent;
mod args;
mod config;
mod credential;
mod demo;
mod device;
mod enrolled;
mod fleet;
mod holding;
mod import;
mod inspect;
mod issued;
mod issuer_key;
mod keygen;
mod ledger;
mod notify;
mod output;
mod own_token;
mod plan;
mod rotate;
mod serve;
mod sidecar;
mod state;
mod upload;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Arguments, Command, DeviceCommand, PublisherKeyCommand, RootKeyCommand, TokenCommand};
use crate::output::{Failure, Output};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.json);
    let outcome = match arguments.command {
        Command::Demo(demo) => demo::run(output, demo),
        Command::Keygen { out } => keygen::run(output, &out),
        Command::Serve(serve) => serve::run(output, &serve),
        Command::Config { command } => config::run(output, &command),
        Command::Credential { command, keys } => credential::run(output, &keys, command),
        Command::IssuerKey { command, keys } => issuer_key::run(output, &keys, command),
        Command::PublisherKey { command: PublisherKeyCommand::Rotate(publisher) } => {
            rotate::publisher(output, &publisher)
        }
        Command::RootKey { command: RootKeyCommand::Rotate(root) } => rotate::root(output, &root),
        Command::Device { command } => match command {
            DeviceCommand::Keygen(keygen) => device::keygen(output, &keygen),
            DeviceCommand::Enroll(enroll) => enrolled::enroll(output, &enroll),
            DeviceCommand::List { realm, server } => enrolled::list(output, &realm, &server),
            DeviceCommand::Dismiss { name, reason } => enrolled::dismiss(output, &name, reason.as_deref()),
            DeviceCommand::Token { name, lifetime } => enrolled::token(output, &name, lifetime),
        },
        Command::Token { command: TokenCommand::Issue(issue) } => enrolled::issue(output, &issue),
        Command::Realm { command, server } => admin::realm(output, &server, command),
        Command::Revoke(revoke) => admin::revoke(output, &revoke),
        Command::Reinstate { realm, jti, reason, server } => admin::reinstate(output, &server, &realm, &jti, reason),
        Command::Cutoff { scope, not_before, server } => admin::cut_off(output, &server, scope, not_before),
        Command::Lift { scope, server } => admin::lift(output, &server, scope),
        Command::Issued { command, server } => issued::run(output, &server, command),
        Command::Import(import) => import::run(output, &import),
        Command::Ledger { command } => ledger::run(output, command),
        Command::Jti { realm, count, server } => admin::jti(output, &server, &realm, count),
        Command::Publish { dry_run: _, realm, server } => plan::run(output, &server, realm),
        Command::Status { server } => admin::status(output, &server),
        Command::Fleet { realm, watch, server } => fleet::run(output, &server, realm.as_deref(), watch),
        Command::Agent(agent) => agent::run(output, &agent),
        Command::Verify(verify) => verify::run(&verify),
        Command::Inspect { file, verify, keys } => inspect::run(output, &file, verify.as_deref(), keys.as_deref()),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => output.failure(&failure),
    }
}

/// A runtime for the commands that talk to the network all the time.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        // The publisher builds filters on one thread while another serves.
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).max(2))
        .enable_all()
        .build()
        .map_err(|error| Failure::new("no-runtime", "the asynchronous runtime cannot be started", &error))
}

/// Requests to end: an interrupt from a terminal, or SIGTERM. One that arrives once this is made is not lost.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    /// From now on a request no longer ends the process by itself. Needs a runtime.
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::new("no-signals", "the process cannot be asked to end", &error))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
