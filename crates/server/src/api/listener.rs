//! Connections of the API: a limit on their number, a deadline for every request head.
//!
//! `axum::serve` has neither, so a few thousand connections that send a byte a minute would end it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::tls::ServerTls;

/// Connections at a time; the next ones wait in the system's backlog.
const CONNECTIONS_MAX: usize = 2_048;

/// How long the head of a request may take, and how long a connection may be idle before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request head: a bearer token and a path, with room.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// How long requests under way may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept: it is mostly a lack of file descriptors, and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping` says so, then lets requests under way end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            // A sender that is gone means the same.
            _ = stopping.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX);
        let service = TowerToHyperService::new(router.clone());
        let (watcher, acceptor) = (graceful.watcher(), tls.as_ref().map(|tls| tls.acceptor()));
        tokio::spawn(async move {
            let ended = match acceptor {
                None => watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await,
                // Whoever connects and says nothing is not waited for longer than half a request.
                Some(acceptor) => match timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        return;
                    }
                    Err(_) => return,
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(slot);
        });
    }
    drop(listener);
    if timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the server stopped");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are small and somebody waits for each.
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn served() -> (std::net::SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here"));
        (address, stop, tokio::spawn(serve(listener, None, router, stopping)))
    }

    /// Somebody opens a connection, sends half a request and waits. Time is given, so the test does not.
    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_not_waited_for() {
        let (address, _stop, _task) = served().await;
        for part in ["", "G", "GET / HTTP/1.1\r\nhost: x\r\n"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(part.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let ended = timeout(HEAD_TIMEOUT * 2, socket.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{part:?} is still waited for");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{part:?}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn stopping_ends_what_is_idle() {
        let (address, stop, task) = served().await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        stop.send_replace(true);
        timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        let mut rest = Vec::new();
        timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
