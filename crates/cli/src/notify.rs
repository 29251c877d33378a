//! Tells the service manager how the server is, if it asked for that (`sd_notify`, `Type=notify`).

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Clone, Copy, Debug)]
pub enum State {
    /// The API answers.
    Ready,
    /// The configuration is read again.
    Reloading,
    /// The server ends.
    Stopping,
}

/// Tells it. Nobody may be listening, and then nothing is lost.
pub fn tell(state: State) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    // A name that begins with @ is no file.
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let text = match state {
        State::Ready => "READY=1",
        State::Reloading => "RELOADING=1",
        State::Stopping => "STOPPING=1",
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told: {text}");
    }
}
