//! Accepts connections, up to a limit.
//!
//! Every connection takes a file descriptor, and the log needs some to go on. So the number of connections is
//! limited, and those beyond the limit are closed at once, which clients take as a reason to come back later.
//! If descriptors run out even so, accepting pauses instead of failing in a loop.

use std::{io, sync::Arc, time::Duration};

use futures_util::stream::unfold;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;

use super::{KEEPALIVE_INTERVAL, connection::Connection};

/// How long accepting pauses after a failure.
const PAUSE: Duration = Duration::from_millis(100);
/// How often refused connections may be logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The connections of `listener`; each holds one of `places` until it ends.
pub(super) fn incoming(
    listener: TcpListener,
    places: Arc<Semaphore>,
) -> impl Stream<Item = io::Result<Connection>> {
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(KEEPALIVE_INTERVAL));
    let door = Door {
        incoming,
        connections_max: places.available_permits(),
        places,
        last_logged: None,
    };
    unfold(door, |mut door| async {
        let connection = door.next().await?;
        Some((Ok(connection), door))
    })
}

struct Door {
    incoming: TcpIncoming,
    connections_max: usize,
    places: Arc<Semaphore>,
    /// When refused connections were last logged.
    last_logged: Option<Instant>,
}

impl Door {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            match self.incoming.next().await? {
                Ok(stream) => {
                    if let Some(connection) = self.admit(stream) {
                        return Some(connection);
                    }
                }
                Err(error) if concerns_one(&error) => {}
                Err(error) => {
                    if self.may_log() {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream) -> Option<Connection> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Some(Connection::new(stream, place)),
            Err(_) => {
                if self.may_log() {
                    tracing::warn!(
                        connections_max = self.connections_max,
                        "as many connections are open as may be; more are closed (--max-connections)"
                    );
                }
                None
            }
        }
    }

    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self
            .last_logged
            .is_none_or(|last| now - last >= LOG_INTERVAL);
        if may {
            self.last_logged = Some(now);
        }
        may
    }
}

/// Whether a connection failed before it was accepted, so that the next may be tried at once.
fn concerns_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
