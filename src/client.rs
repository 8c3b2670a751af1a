//! The Rust client: a [`Publisher`] that resends until its events are durable, and a [`Reader`] that resumes
//! where it was.
//!
//! Owns connecting, retrying and giving up. The other calls of the contract need none of that: make them
//! through [`AggregatorServiceClient`](crate::proto::v1::aggregator_service_client) over a channel of
//! [`endpoint`].

mod backoff;
#[cfg(test)]
mod fake;
mod publisher;
mod reader;
mod window;
mod worker;

use std::{error::Error, fmt, time::Duration};

use thiserror::Error;
use tonic::{Status, transport::Endpoint};

pub use publisher::{PendingAck, Publisher};
pub use reader::{ReadError, Reader, ReaderOptions};
pub use window::PublisherOptions;
pub use worker::PublishError;

/// The largest message the client accepts: the largest event that a server can be configured to accept (16
/// MiB), and room for its envelope.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024 + 64 * 1024;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be silent before it is probed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long the reply to a probe may take before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 flow control: how much a server may send before a stream, and the connection, have read it. A list
/// comes in messages of 128 KiB and more; with the default of 64 KiB each would wait for the client.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The largest HTTP/2 frame a server may send: the default of 16 KiB costs both sides a system call each.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// The address of a server is invalid.
#[derive(Clone, Debug, Error)]
#[error("{server:?} is not the address of a server; expected http://host:port")]
pub struct InvalidEndpoint {
    /// The address as given.
    pub server: String,
}

/// Describes the connection to `server`, `http://host:port` or just `host:port`: TCP_NODELAY, HTTP/2
/// keepalive, 5 s to connect, windows and frames large enough to list fast.
pub fn endpoint(server: &str) -> Result<Endpoint, InvalidEndpoint> {
    let invalid = || InvalidEndpoint {
        server: server.to_owned(),
    };
    let uri = if server.contains("://") {
        server.to_owned()
    } else {
        format!("http://{server}")
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| invalid())?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().port().is_none() {
        return Err(invalid());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX))
}

/// Why a call failed: the status of the server, or of the connection to it.
///
/// Displays the code, the message and the root cause, for example an error of the operating system, which is
/// also the source.
#[derive(Clone, Debug)]
pub struct Cause(Status);

impl Cause {
    /// The status with its details.
    pub fn status(&self) -> &Status {
        &self.0
    }
}

impl From<Status> for Cause {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.code())?;
        if !self.0.message().is_empty() {
            write!(f, ": {}", self.0.message())?;
        }
        match self.source().map(ToString::to_string) {
            Some(root) if !self.0.message().contains(&root) => write!(f, ": {root}"),
            Some(_) | None => Ok(()),
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The layers between say "transport error" in several ways.
        let mut root = self.0.source()?;
        while let Some(deeper) = root.source() {
            root = deeper;
        }
        Some(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_needs_a_port_but_no_scheme() {
        for server in ["http://127.0.0.1:50051", "127.0.0.1:50051"] {
            let endpoint = endpoint(server).expect("valid");
            assert_eq!(endpoint.uri().to_string(), "http://127.0.0.1:50051/");
        }
        assert!(endpoint("[::1]:50051").is_ok());
        for server in ["", "localhost", "https://a:1", "http://", "a b:1"] {
            let error = endpoint(server).expect_err("invalid");
            assert_eq!(error.server, server);
        }
    }
    #[derive(Debug, Error)]
    #[error("transport error")]
    struct Transport(#[source] std::io::Error);

    #[test]
    fn a_cause_names_its_root() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let cause = Cause::from(Status::from_error(Transport(refused).into()));
        let root = cause.source().expect("a root");
        assert!(root.is::<std::io::Error>());
        assert_eq!(
            cause.to_string(),
            "Unknown: transport error: connection refused"
        );
        let cause = Cause::from(Status::unavailable("stopping"));
        assert_eq!(cause.to_string(), "Unavailable: stopping");
        assert!(cause.source().is_none());
    }
}
