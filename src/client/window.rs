//! The bounds of a publisher: its options, and the window of unacked requests.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limits of a [`Publisher`](super::Publisher).
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// How many requests may be unacked; at least 1. Default 64.
    pub requests_in_flight_max: usize,
    /// How many bytes unacked requests may have together, encoded; a request larger than that travels alone.
    /// Default 16 MiB.
    pub bytes_in_flight_max: u32,
    /// How long the server may acknowledge nothing before the stream counts as broken. Default 30 s.
    pub ack_timeout: Duration,
    /// How long to keep retrying after the first break without an ack. Default 60 s.
    pub give_up_after: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            requests_in_flight_max: 64,
            bytes_in_flight_max: 16 * 1024 * 1024,
            ack_timeout: Duration::from_secs(30),
            give_up_after: Duration::from_secs(60),
        }
    }
}

/// Bounds the requests that are sent and not acked.
#[derive(Clone, Debug)]
pub(super) struct Window {
    requests: Arc<Semaphore>,
    pub requests_max: usize,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

impl Window {
    pub fn new(options: &PublisherOptions) -> Self {
        let requests_max = options.requests_in_flight_max.max(1);
        let bytes_max = options.bytes_in_flight_max.max(1);
        Self {
            requests: Arc::new(Semaphore::new(requests_max)),
            requests_max,
            bytes: Arc::new(Semaphore::new(bytes_max as usize)),
            bytes_max,
        }
    }

    /// Waits for room for a request of `len` bytes; `None` once the window is closed.
    pub async fn enter(&self, len: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let bytes = u32::try_from(len).map_or(self.bytes_max, |len| len.min(self.bytes_max));
        let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        Some([request, bytes])
    }

    /// Admits no more requests.
    pub fn close(&self) {
        self.requests.close();
        self.bytes.close();
    }
}
