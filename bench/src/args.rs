//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::{
    Result,
    event::IdKind,
    measure::Course,
    plan::{Load, Resend},
    store::{Store, oncelog::Oncelog},
};

/// Measures oncelog, the disk below it, and what users would pick instead
#[derive(Debug, Parser)]
pub struct Args {
    /// Unique events
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub unique: u64,
    /// Streams, each on its own connection
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub streams: u64,
    /// Events per request
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=16384))]
    pub batch: u64,
    /// Requests a stream may have sent that are not acknowledged
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub in_flight: u64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256)]
    pub payload: usize,
    /// Topics
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10000))]
    pub topics: u64,
    /// Resends, in percent of all events sent
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=90))]
    pub resends: u64,
    /// Which events are sent again
    #[arg(long, value_enum, default_value_t = Resend::Uniform)]
    pub resend: Resend,
    /// What event ids look like
    #[arg(long, value_enum, default_value_t = IdKind::Uuid4)]
    pub ids: IdKind,
    /// Makes ids, payloads and resends
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Events sent one at a time after the load
    #[arg(long, default_value_t = 2000)]
    pub singles: u64,
    /// Take a sample each time so many more events are stored
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_events: u64,
    /// The server
    #[arg(long, default_value = "target/release/oncelog")]
    pub program: PathBuf,
    /// Where data directories are made; they are removed at the end
    #[arg(long, default_value = "target/bench")]
    pub scratch: PathBuf,
}

impl Args {
    pub fn stores(&self) -> Result<Vec<Box<dyn Store>>> {
        Ok(vec![Box::new(Oncelog {
            program: self.program.clone(),
        })])
    }

    pub fn course(&self) -> Course {
        Course {
            load: Load {
                first: 0,
                unique: self.unique,
                streams: self.streams,
                batch: self.batch as usize,
                in_flight: self.in_flight as usize,
                resend_percent: self.resends,
                resend: self.resend,
                seed: self.seed,
            },
            singles: self.singles,
            sample_events: self.sample_events,
        }
    }
}
