#![allow(clippy::print_stdout)]
//! Loads a real server over loopback, kills it as often as told, and checks that it holds exactly what
//! was acknowledged.
//!
//! ```text
//! cargo build --release && cargo run --release --example soak -- --unique 1000000 --kills 20
//! ```
//!
//! Starts `target/release/oncelog` on a fresh data directory, publishes unique events and resends of
//! earlier ones over several StreamingPublish streams, and meanwhile kills the server with SIGKILL and
//! starts it again, every time on the same directory. Then it lists everything and fails unless each
//! event is there exactly once with its content, and unless every acknowledged sequence is the one listed.
//! CPU and memory of the server are read from /proc.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use oncelog::{
    client::{PendingAck, Publisher, PublisherOptions, Reader, ReaderOptions},
    proto::v1::{Event, ListEventsRequest, Outcome, event::Payload},
};
use prost_types::Timestamp;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Requests a stream has in flight before it looks at the oldest ack.
const IN_FLIGHT: usize = 32;
/// `sysconf(_SC_CLK_TCK)` on Linux.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Unique events
    #[arg(long, default_value_t = 1_000_000)]
    unique: u64,
    /// Resends, in percent of all events sent, uniform over what the stream has sent
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..90))]
    resends: u64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// StreamingPublish streams
    #[arg(long, default_value_t = 4)]
    streams: u64,
    /// Events per request
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Topics
    #[arg(long, default_value_t = 10)]
    topics: u64,
    /// How often the server is killed, evenly over the load
    #[arg(long, default_value_t = 0)]
    kills: u64,
    /// The server
    #[arg(long, default_value = "target/release/oncelog")]
    program: PathBuf,
    /// Where the data directory is made; it is removed at the end
    #[arg(long, default_value = "target")]
    scratch: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Arc::new(Args::parse());
    let data_dir = tempfile::tempdir_in(&args.scratch)?;
    let mut server = Server::start(&args.program, data_dir.path(), "127.0.0.1:0")?;
    let url: Arc<str> = format!("http://{}", server.address).into();

    let acked = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut streams = Vec::new();
    for stream in 0..args.streams {
        let (args, url, acked) = (Arc::clone(&args), Arc::clone(&url), Arc::clone(&acked));
        streams.push(tokio::spawn(publish(args, url, stream, acked)));
    }
    let mut cpu_seconds = 0.0;
    let total = args.unique * 100 / (100 - args.resends);
    for kill in 1..=args.kills {
        let until = total * kill / (args.kills + 1);
        while acked.load(Relaxed) < until && !streams.iter().all(|stream| stream.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cpu_seconds += server.usage()?.cpu_seconds;
        server.kill()?;
        server = Server::start(&args.program, data_dir.path(), &server.address)?;
        println!(
            "kill -9 {kill:>3} after {:>9} acked events, serving again after {} ms",
            acked.load(Relaxed),
            server.recovery_ms
        );
    }
    let mut sequences = vec![0; usize::try_from(args.unique)?];
    let mut counts = Counts::default();
    for stream in streams {
        let acks = stream.await??;
        counts.add(&acks.counts);
        for (id, sequence) in acks.sequences {
            let known = &mut sequences[usize::try_from(id)?];
            if *known != 0 && *known != sequence {
                return Err(format!("event {id} was acked at {known} and at {sequence}").into());
            }
            *known = sequence;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let usage = server.usage()?;
    cpu_seconds += usage.cpu_seconds;
    println!(
        "sent {} in {seconds:.1} s: {:.0} events/s, {:.0} unique/s; stored {}, duplicates {}",
        counts.sent,
        counts.sent as f64 / seconds,
        args.unique as f64 / seconds,
        counts.stored,
        counts.duplicates,
    );
    println!(
        "server: {:.2} us CPU per event sent, peak RSS {} MiB, {} bytes on disk per unique event",
        cpu_seconds * 1e6 / counts.sent as f64,
        usage.peak_rss_kib / 1024,
        disk_bytes(data_dir.path())? / args.unique,
    );

    let listed = Instant::now();
    check_list(&args, &url, &sequences).await?;
    let seconds = listed.elapsed().as_secs_f64();
    println!(
        "listed exactly the {} acked events, {:.0} events/s, server peak RSS {} MiB",
        args.unique,
        args.unique as f64 / seconds,
        server.usage()?.peak_rss_kib / 1024
    );
    server.kill()?;
    let server = Server::start(&args.program, data_dir.path(), "127.0.0.1:0")?;
    println!(
        "restarted after kill -9: serving after {} ms, RSS {} MiB",
        server.recovery_ms,
        server.usage()?.peak_rss_kib / 1024
    );
    Ok(())
}

#[derive(Default)]
struct Counts {
    sent: u64,
    stored: u64,
    duplicates: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.stored += other.stored;
        self.duplicates += other.duplicates;
    }
}

/// What a stream was told.
#[derive(Default)]
struct Acks {
    counts: Counts,
    sequences: Vec<(u64, u64)>,
}

impl Acks {
    async fn take(&mut self, ids: Vec<u64>, ack: PendingAck) -> Result<()> {
        for (id, told) in ids.into_iter().zip(ack.await?) {
            self.counts.sent += 1;
            match told.outcome() {
                Outcome::Stored => self.counts.stored += 1,
                Outcome::Duplicate => self.counts.duplicates += 1,
                Outcome::Conflict | Outcome::Rejected | Outcome::Unspecified => {
                    return Err(format!("event {id}: {told:?}").into());
                }
            }
            self.sequences.push((id, told.sequence));
        }
        Ok(())
    }
}

/// Publishes the ids that are `stream` modulo the number of streams, and resends of them.
async fn publish(
    args: Arc<Args>,
    url: Arc<str>,
    stream: u64,
    acked: Arc<AtomicU64>,
) -> Result<Acks> {
    let options = PublisherOptions {
        requests_in_flight_max: IN_FLIGHT,
        ..PublisherOptions::default()
    };
    let publisher = Publisher::connect(&url, options)?;
    let mut waiting = std::collections::VecDeque::new();
    let mut acks = Acks::default();
    let mut random = stream + 1;
    let own = (args.unique - stream).div_ceil(args.streams);
    let mut next = 0;
    while next < own {
        let mut ids = Vec::with_capacity(args.batch);
        while ids.len() < args.batch && next < own {
            random = xorshift(random);
            let resend = next > 0 && random % 100 < args.resends;
            let number = if resend { (random >> 8) % next } else { next };
            next += u64::from(!resend);
            ids.push(number * args.streams + stream);
        }
        let events = ids.iter().map(|id| event(&args, *id)).collect();
        waiting.push_back((ids, publisher.send(events).await?));
        if waiting.len() >= IN_FLIGHT {
            let (ids, ack) = waiting.pop_front().expect("not empty");
            let count = ids.len() as u64;
            acks.take(ids, ack).await?;
            acked.fetch_add(count, Relaxed);
        }
    }
    for (ids, ack) in waiting {
        acks.take(ids, ack).await?;
    }
    publisher.finish().await?;
    Ok(acks)
}

/// George Marsaglia, "Xorshift RNGs", 2003.
fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

/// The event of an id: whenever it is made, it is the same. The id looks like a UUIDv4.
fn event(args: &Args, id: u64) -> Event {
    let [a, b] = [id + 1, id + (1 << 40)].map(|seed| (0..4).fold(seed, |x, _| xorshift(x)));
    let payload = [a, b, id].map(u64::to_be_bytes).concat();
    Event {
        topic: format!("topic-{}", id % args.topics),
        event_id: format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xfff,
            b >> 48 & 0xfff,
            id
        ),
        timestamp: Some(Timestamp {
            seconds: 1_767_225_600 + id as i64,
            nanos: 0,
        }),
        source: "examples/soak".to_owned(),
        payload: Some(Payload::Data(
            payload.into_iter().cycle().take(args.payload).collect(),
        )),
        attributes: Default::default(),
    }
}

/// Lists everything and compares it with what was acked.
async fn check_list(args: &Args, url: &str, sequences: &[u64]) -> Result<()> {
    let request = ListEventsRequest::default();
    let mut reader = Reader::connect(url, request, ReaderOptions::default())?;
    let mut seen = vec![false; sequences.len()];
    let mut last = 0;
    while let Some(response) = reader.next().await? {
        for stored in response.events {
            let got = stored.event.ok_or("a stored event without event")?;
            let (_, id) = got.event_id.rsplit_once('-').ok_or("not an id")?;
            let id = u64::from_str_radix(id, 16)?;
            let at = usize::try_from(id)?;
            if got != event(args, id) || std::mem::replace(&mut seen[at], true) {
                return Err(format!("event {id} is there twice, or with another content").into());
            }
            if stored.sequence != sequences[at] || stored.sequence != last + 1 {
                return Err(format!(
                    "event {id}: acked {}, listed {} after {last}",
                    sequences[at], stored.sequence
                )
                .into());
            }
            last = stored.sequence;
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(lost) => Err(format!("event {lost} was acked and is lost").into()),
        None => Ok(()),
    }
}

/// The program, as a process of its own. Killed when dropped.
struct Server {
    process: Child,
    address: String,
    recovery_ms: u64,
}

struct Usage {
    cpu_seconds: f64,
    peak_rss_kib: u64,
}

impl Server {
    fn start(program: &Path, data_dir: &Path, listen: &str) -> Result<Self> {
        let mut process = Command::new(program)
            .args([
                "serve",
                "--log-format",
                "json",
                "--listen",
                listen,
                "--data-dir",
            ])
            .arg(data_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                format!(
                    "{}: {error}; cargo build --release first",
                    program.display()
                )
            })?;
        let stderr = process.stderr.take().ok_or("no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        while let Some(line) = lines.next().transpose()? {
            // What is no JSON is why it ends.
            let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = told["address"].as_str() {
                let address = address.to_owned();
                let recovery_ms = told["recovery_ms"].as_u64().ok_or("no recovery_ms")?;
                // Nobody may be stopped by a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self {
                    process,
                    address,
                    recovery_ms,
                });
            }
            println!("{line}");
        }
        Err("the server ended without serving".into())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.process.id()));
        let stat = fs::read_to_string(proc.join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
        // utime and stime are fields 14 and 15; the first here is field 3. See proc_pid_stat(5).
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        let status = fs::read_to_string(proc.join("status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.split_whitespace().next());
        Ok(Usage {
            cpu_seconds: ticks as f64 / CLOCK_TICKS_PER_SECOND,
            peak_rss_kib: peak.ok_or("no VmHWM")?.parse()?,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.kill();
    }
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            std::os::unix::fs::MetadataExt::blocks(&entry.metadata()?) * 512
        };
    }
    Ok(bytes)
}
