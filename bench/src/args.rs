//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use serde::{Deserialize, Serialize};

use crate::{
    event::IdKind,
    measure::Course,
    plan::{Load, Resend},
};

/// Measures oncelog, the disk below it, and the alternatives
///
/// Every store runs as its own process on a fresh directory, gets the same events and the same resends, is read back,
/// killed with SIGKILL, started again, and must then hold exactly the events that were sent, byte for byte. Peers
/// that are not installed are skipped.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The other commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the figures of reports into docs/performance.md, and plot them in docs/performance.svg
    Publish(PublishArgs),
    /// Be the server that stores nothing
    #[command(hide = true)]
    ServeNull,
    /// Be the server around SQLite
    #[cfg(feature = "peers")]
    #[command(hide = true)]
    ServeSqlite { dir: PathBuf, socket: PathBuf },
}

#[derive(Args, Debug)]
pub struct PublishArgs {
    /// Reports written with --json
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// The folder of performance.md and performance.svg
    #[arg(long, default_value = "docs")]
    pub docs: PathBuf,
}

/// The stores that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreName {
    Oncelog,
    /// A server that replies like oncelog and stores nothing
    Null,
    Postgres,
    Redis,
    Sqlite,
    /// JetStream with default settings: acks before the sync
    Nats,
    /// JetStream with sync_interval: always
    NatsAlways,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// What to measure, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = StoreName::value_variants().to_vec())]
    pub stores: Vec<StoreName>,
    /// Unique events
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..))]
    pub unique: u64,
    /// Most unique events for a peer
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..))]
    pub peer_unique: u64,
    /// Most unique events for a peer that takes seconds for 10,000
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(u64).range(1..))]
    pub slow_peer_unique: u64,
    /// Streams, each on its own connection
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..=1000))]
    pub streams: u64,
    /// Events per request
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(1..=16384))]
    pub batch: u64,
    /// Events per request of a peer
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u64).range(1..=16384))]
    pub peer_batch: u64,
    /// Unacknowledged requests per stream
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u64).range(1..=1024))]
    pub in_flight: u64,
    /// The same for a peer
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u64).range(1..=1024))]
    pub peer_in_flight: u64,
    /// Bytes of payload; the encoded event has about 90 more
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub payload: u64,
    /// Topics
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=10_000))]
    pub topics: u64,
    /// Resends, in percent of all events sent
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(0..=90))]
    pub resends: u64,
    /// Which events are sent again
    #[arg(long, value_enum, default_value_t = Resend::Uniform)]
    pub resend: Resend,
    /// Format of event ids
    #[arg(long, value_enum, default_value_t = IdKind::Uuid4)]
    pub ids: IdKind,
    /// Seed of ids, payloads and resends
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Events sent one at a time after the load
    #[arg(long, default_value_t = 2000, value_parser = value_parser!(u64).range(1..))]
    pub singles: u64,
    /// Take a sample each time this many more events are stored
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..))]
    pub sample_events: u64,
    /// Also write the report here, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The oncelog to measure, instead of a new build
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// Where nats-server is, if not on the PATH
    #[arg(long, value_name = "FOLDER")]
    pub nats: Option<PathBuf>,
    /// Where data directories are made and removed again; on the disk to be measured
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    pub scratch: PathBuf,
}

impl RunArgs {
    /// The measurement of oncelog and the null store.
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

    /// The measurement of a peer.
    #[cfg(feature = "peers")]
    pub fn peer_course(&self, is_slow: bool) -> Course {
        let mut course = self.course();
        course.load.unique = self.unique.min(match is_slow {
            true => self.slow_peer_unique,
            false => self.peer_unique,
        });
        course.load.batch = self.peer_batch as usize;
        course.load.in_flight = self.peer_in_flight as usize;
        course
    }
}
