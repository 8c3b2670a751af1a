//! The state of a server under load.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use oncelog_harness::disk::DiskUse;
use oncelog_harness::server::Server;
use serde::Serialize;

use super::load::Progress;

use crate::Result;

/// The progress of a load, and the resources its server uses.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    pub seconds: f64,
    pub sent: u64,
    pub stored: u64,
    /// Of requests acked since the last sample.
    pub ack_ms: Latency,
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
    pub open_files: u64,
    pub data_bytes: u64,
    pub data_files: u64,
}

/// The latency of acks, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Takes samples.
pub struct Sampler {
    progress: Arc<Progress>,
    data_dir: PathBuf,
    began: Instant,
}

impl Sampler {
    /// The load starts now.
    pub fn new(progress: Arc<Progress>, data_dir: &Path) -> Self {
        Self {
            progress,
            data_dir: data_dir.to_owned(),
            began: Instant::now(),
        }
    }

    /// Takes a sample.
    pub fn take(&mut self, server: &Server) -> Result<Sample> {
        let ack_ms = Latency::of(self.progress.take_latencies_us());
        let (sent, stored) = (
            self.progress.sent.load(Relaxed),
            self.progress.stored.load(Relaxed),
        );
        let seconds = self.began.elapsed().as_secs_f64();
        let usage = server.usage()?;
        let disk = DiskUse::of(&self.data_dir)?;
        Ok(Sample {
            seconds,
            sent,
            stored,
            ack_ms,
            cpu_seconds: usage.cpu_seconds,
            rss_bytes: usage.rss_bytes,
            open_files: usage.open_files,
            data_bytes: disk.bytes,
            data_files: disk.files,
        })
    }
}

impl Latency {
    fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let last = micros.len().saturating_sub(1);
        let at = |share: f64| {
            let at = (last as f64 * share).round() as usize;
            micros
                .get(at)
                .map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_of_the_sorted() {
        let latency = Latency::of((0..=1000).rev().map(|ms| ms * 1000).collect());
        assert_eq!(
            [latency.p50, latency.p99, latency.max],
            [500.0, 990.0, 1000.0]
        );
        assert_eq!(Latency::of(Vec::new()).max, 0.0);
    }
}
