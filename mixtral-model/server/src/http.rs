//! Connections: how many there are, how long they may take, and how they end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::ServerOptions;

/// Bytes of a request's head, and of what is held of a body that is being read.
const HEAD: usize = 64 << 10;

/// Headers of a request.
const HEADERS: usize = 64;

/// How long to wait where the system gives no connection, as it has no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How long requests that were given up have to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Accepts connections until it is to end; then lets those that are open come to theirs, and calls `give_up` where that takes too long.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    options: &ServerOptions,
    mut ending: watch::Receiver<bool>,
    give_up: impl FnOnce(),
) {
    let places = Arc::new(Semaphore::new(options.connections));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(options.client_time);
    builder.max_buf_size(HEAD).max_headers(HEADERS);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            // Whoever could wish it is gone: as good as a wish.
            _ = ending.wait_for(|&wished| wished) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Pieces of a text are small, and wanted now.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(options.client_time));
        let service = TowerToHyperService::new(app.clone());
        let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // What went wrong is the client's affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let mut ended = pin!(graceful.shutdown());
    if tokio::time::timeout(options.grace, &mut ended).await.is_err() {
        give_up();
        let _ = tokio::time::timeout(LAST_WORDS, ended).await;
    }
}
