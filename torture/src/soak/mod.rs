//! A soak: one server at full speed over a long history, sampled throughout, which must end with exactly the events
//! that were sent.

mod load;
mod report;
mod sample;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::{Args, value_parser};
use oncelog::{
    client::{Reader, ReaderOptions},
    proto::v1::{GetStatsResponse, ListEventsRequest},
};
use oncelog_harness::disk::DiskUse;
use oncelog_harness::server::{self, Server};

pub use self::report::SoakReport;
use self::{
    load::{Acked, Load},
    report::{AfterLoad, print_sample},
    sample::{Sample, Sampler},
};

use crate::{
    Result,
    client::stats,
    event::{Events, PayloadBytes},
    json,
    verify::verify,
};

/// How many samples a run has.
const SAMPLES: u64 = 100;
/// One of this many samples is printed.
const SAMPLES_PER_LINE: u64 = 10;

/// The arguments of `soak`.
#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// Unique events; with payloads of 64 bytes, a million take 200 MB of disk
    #[arg(long, value_name = "COUNT", default_value_t = 50_000_000, value_parser = value_parser!(u64).range(1000..=4_000_000_000))]
    unique: u64,
    /// Resends, in percent of all events sent, uniform over what their stream has sent
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = value_parser!(u64).range(0..=90))]
    resends: u64,
    /// Bytes of payload
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = value_parser!(u32).range(0..=65536))]
    payload: u32,
    /// StreamingPublish streams
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = value_parser!(u64).range(1..=1000))]
    streams: u64,
    /// Events per request
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = value_parser!(u64).range(1..=4096))]
    batch: u64,
    /// Requests that a stream has in flight
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = value_parser!(u64).range(1..=1024))]
    in_flight: u64,
    /// Topics
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = value_parser!(u64).range(1..=10_000))]
    topics: u64,
    /// Seed of resends
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the samples in this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// The server
    #[arg(long, value_name = "FILE", default_value = "target/release/oncelog")]
    program: PathBuf,
    /// Where the data directory is made; it is removed at the end
    #[arg(long, value_name = "DIR", default_value = "target")]
    scratch: PathBuf,
}

/// Runs the soak.
pub async fn run(args: &SoakArgs) -> Result<SoakReport> {
    server::prepare(&args.program, &args.scratch)?;
    let dir = tempfile::Builder::new()
        .prefix("soak-")
        .tempdir_in(&args.scratch)?;
    let data_dir = dir.path().join("data");
    let events = Events {
        topics: args.topics,
        payload: PayloadBytes::Fixed(args.payload as usize),
    };
    let mut server = Server::start(&args.program, &data_dir, "127.0.0.1:0")?;
    let load = Load::start(&server.address, events, args);
    let (acked, samples) = sample(load, &server, &data_dir, args).await?;
    check_stats(&stats(&server.address).await?, &acked, args)?;

    let began = Instant::now();
    check_list(&server, events, &acked, args).await?;
    let list_seconds = began.elapsed().as_secs_f64();
    let usage = server.usage()?;
    let disk = DiskUse::of(&data_dir)?;

    server.kill()?;
    let mut server = Server::start(&args.program, &data_dir, "127.0.0.1:0")?;
    check_unique(&stats(&server.address).await?, args)?;
    let recovery_ms = server.recovery_ms;
    let ended = server.terminate()?;
    if !ended.success() {
        return Err(format!("SIGTERM ended it with {ended}:\n{}", server.log()).into());
    }
    let began = Instant::now();
    verify(&args.program, &data_dir)?.clean()?;
    let verify_seconds = began.elapsed().as_secs_f64();

    let after = AfterLoad {
        list_seconds,
        verify_seconds,
        recovery_ms,
        disk_bytes: disk.bytes,
        peak_rss_bytes: usage.peak_rss_bytes,
    };
    let report = SoakReport::new(args, &after, samples);
    report.print();
    json::write(args.json.as_deref(), &report)?;
    if let Some(path) = &args.plot {
        std::fs::write(path, report.chart().to_string())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

/// Takes samples until the load is done.
async fn sample(
    load: Load,
    server: &Server,
    data_dir: &Path,
    args: &SoakArgs,
) -> Result<(Acked, Vec<Sample>)> {
    let mut sampler = Sampler::new(Arc::clone(load.progress()), data_dir);
    let mut samples = vec![sampler.take(server)?];
    for number in 1..=SAMPLES {
        load.reach(args.unique * number / SAMPLES).await;
        let sample = sampler.take(server)?;
        if number % SAMPLES_PER_LINE == 0 {
            print_sample(&samples[samples.len() - SAMPLES_PER_LINE as usize], &sample);
        }
        samples.push(sample);
    }
    Ok((load.finish().await?, samples))
}

/// The counters must match the acks exactly.
fn check_stats(stats: &GetStatsResponse, acked: &Acked, args: &SoakArgs) -> Result<()> {
    let reported = [
        stats.received,
        stats.duplicate_dropped,
        stats.conflicts,
        stats.rejected,
    ];
    let expected = [acked.sent, acked.sent - args.unique, 0, 0];
    if reported != expected {
        return Err(format!(
            "received, duplicates, conflicts and rejected must be {expected:?}, and are {reported:?}"
        )
        .into());
    }
    check_unique(stats, args)
}

/// Checks the counters that are exact after a crash as well.
fn check_unique(stats: &GetStatsResponse, args: &SoakArgs) -> Result<()> {
    let reported = [stats.unique_processed, stats.durable_tail];
    let expected = [args.unique, args.unique + 1];
    if reported != expected {
        return Err(format!(
            "unique events and the tail must be {expected:?}, and are {reported:?}"
        )
        .into());
    }
    Ok(())
}

/// Every event must be listed once, with its content, where it was acked.
async fn check_list(server: &Server, events: Events, acked: &Acked, args: &SoakArgs) -> Result<()> {
    let request = ListEventsRequest::default();
    let mut reader = Reader::connect(&server.address, request, ReaderOptions::default())?;
    let mut last = 0;
    while let Some(response) = reader.next().await? {
        for stored in response.events {
            let event = stored.event.ok_or("a stored event without event")?;
            let (number, _) = events.read(&event)?;
            let sequence = stored.sequence;
            // No sequence repeats and each event has one, so no event occurs twice.
            if sequence != last + 1 || acked.sequence(number) != Some(sequence) {
                let reported = acked.sequence(number);
                return Err(format!(
                    "event {number} is listed at {sequence} after {last}, and was acked at {reported:?}"
                )
                .into());
            }
            last = sequence;
        }
    }
    match last == args.unique {
        true => Ok(()),
        false => Err(format!("{last} of {} events are listed", args.unique).into()),
    }
}
