//! The reports of a load's streams: acks and their latency.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Latency {
    pub fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            let at = (micros.len() as f64 * share) as usize;
            micros
                .get(at)
                .map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        Self {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
        }
    }
}

/// Records the acks of all streams.
#[derive(Debug, Default)]
pub struct Recorder {
    sent: AtomicU64,
    stored: AtomicU64,
    latencies_us: Mutex<Vec<u32>>,
}

impl Recorder {
    /// A request of `events` events was acknowledged after `latency`; `stored` of them were new.
    pub fn acked(&self, events: u64, stored: u64, latency: Duration) {
        self.sent.fetch_add(events, Relaxed);
        self.stored.fetch_add(stored, Relaxed);
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let mut latencies = self.latencies_us.lock();
        latencies
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut())
            .push(micros);
    }

    /// Events acknowledged, and how many of them were new.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.stored.load(Relaxed))
    }

    pub fn latency(&self) -> Latency {
        let latencies = self.latencies_us.lock();
        Latency::of(latencies.unwrap_or_else(PoisonError::into_inner).clone())
    }
}
