//! Very many connections to the real program: idle and active ones, failing, vanishing and attacking ones.
//! Everything acked is stored and read once, memory stays within its limit, and all of it is released.

mod attack;
mod bomb;
mod connection;
mod load;
mod matrix;
mod report;
mod rude;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Args;
use fastrand::Rng;
use oncelog::client::PublisherOptions;
use oncelog_harness::{
    frames::{self, Peer, flag, frame, kind},
    process::Usage,
    proxy::{Proxy, SOUND, draw},
    server::{self, Server, Starting},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::{Barrier, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::{
    attack::Attack,
    load::{Round, Stream, Together, follow, publish_together, watch},
    report::Report,
};

use crate::{Result, json};

const MIB: u64 = 1024 * 1024;
/// Requests in the server at a time: much less than the streams send at once.
const INGEST_BYTES_MAX: u64 = 32 * MIB;
/// The server's memory beside requests and connections: unsealed keys of the index, events for readers.
const BASE_BYTES_MAX: u64 = 256 * MIB;
/// The memory of a connection: its buffers and tasks, and the data sent ahead.
const CONNECTION_BYTES_MAX: u64 = 64 * 1024;
/// Files of the log and the index that may be opened in a round.
const KEPT_FILES_MAX: u64 = 16;
/// This program's files beside its connections.
const OWN_FILES: usize = 500;
/// How long it may take until everything is released. A vanished peer is given up after 50 s.
const RETURN_MAX: Duration = Duration::from_secs(120);
const RETURN_POLL: Duration = Duration::from_millis(100);
/// How many connections are opened at a time.
const OPENING: usize = 100;
/// Events of a stream before its large one. Pairs of streams send the same.
const STREAM_EVENTS: u64 = 50;
/// Readers that follow from the start of a round to its end.
const FOLLOWERS: usize = 20;
/// Publishers, and as many readers, behind the proxy.
const PROXIED: u64 = 20;
const PROXIED_EVENTS: u64 = 2000;
/// The most bytes that pass before a connection of the proxy fails.
const FAULT_BYTES_MAX: u64 = 128 * 1024;
/// A stream behind the proxy is given up after this.
const STALL_MAX: Duration = Duration::from_millis(250);
/// Of how many connections one vanishes, and one attacks in each way.
const VANISHING_SHARE: usize = 50;
const ATTACKING_SHARE: usize = 100;

#[derive(Args, Debug)]
pub struct NetworkArgs {
    /// Connections that are open and do nothing
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    connections: usize,
    /// Streams that publish at once, each on its own connection
    #[arg(long, value_name = "COUNT", default_value_t = 2000)]
    streams: usize,
    /// Seed of all random choices; by default a random one, which is printed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Run for this many minutes, with a new seed each round
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    minutes: u64,
    /// Then one client takes all it can get for this long; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    rude: u64,
    /// Only that client, and only in this way, or in `all` at once
    #[arg(long, value_name = "WAY", value_parser = rude::parse_only)]
    rude_only: Option<rude::Only>,
    /// Then every endpoint meets every rude behaviour, each for this long; 0 for never
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    matrix: u64,
    /// Only pairs whose name contains this, such as `GetStats, NeverReads`
    #[arg(long, value_name = "TEXT")]
    matrix_only: Option<String>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The server
    #[arg(long, value_name = "FILE", default_value = "target/release/oncelog")]
    program: PathBuf,
    /// Where the data directory is made
    #[arg(long, value_name = "DIR", default_value = "target")]
    scratch: PathBuf,
}

/// Runs one round, or as many as there is time for, and then the rude client.
pub async fn run(args: &NetworkArgs) -> Result<Report> {
    let (program, scratch) = (&args.program, &args.scratch);
    server::prepare(program, scratch)?;
    let is_part = args.rude_only.is_some() || args.matrix_only.is_some();
    let mut report = match is_part {
        true => Report::default(),
        false => rounds(args).await?,
    };
    if args.rude > 0 && (!is_part || args.rude_only.is_some()) {
        let only = args.rude_only.and_then(|only| only.0);
        report.rude = Some(rude::run(program, scratch, args.rude, only).await?);
    }
    if args.matrix > 0 && (!is_part || args.matrix_only.is_some()) {
        // Thousands of connections.
        room(0, 0)?;
        let time = Duration::from_millis(args.matrix);
        report.matrix = matrix::run(program, scratch, time, args.matrix_only.as_deref()).await?;
    }
    json::write(args.json.as_deref(), &report)?;
    Ok(report)
}

async fn rounds(args: &NetworkArgs) -> Result<Report> {
    let connections = room(args.connections, args.streams)?;
    let data_dir = tempfile::tempdir_in(&args.scratch)?;
    let connections_max = (2 * (connections + args.streams) + OWN_FILES).to_string();
    let ingest_bytes_max = INGEST_BYTES_MAX.to_string();
    let options = [
        ["--max-connections", &connections_max],
        ["--max-ingest-bytes", &ingest_bytes_max],
    ];
    let command = server::command(
        &[],
        &args.program,
        data_dir.path(),
        "127.0.0.1:0",
        options.as_flattened(),
    );
    let server = Starting::spawn(command)?.serving()?;
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    println!("seed {seed}");
    let mut all = Rounds {
        address: server.address.parse()?,
        connections,
        streams: args.streams,
        cursor: String::new(),
        next_sequence: 1,
        next_number: 0,
        report: Report {
            seed,
            idle_connections: connections,
            streams: args.streams,
            ..Report::default()
        },
        server,
    };
    all.warm_up().await?;
    let before = all.server.usage()?;
    all.report.at_rest(&before);
    let began = Instant::now();
    let end = began + Duration::from_secs(60 * args.minutes);
    for number in 0.. {
        let mut random = Rng::with_seed(seed + number);
        all.round(&mut random, &before)
            .await
            .map_err(|error| format!("seed {}: {error}", seed + number))?;
        all.report.seconds = began.elapsed().as_secs_f64();
        if Instant::now() >= end {
            break;
        }
    }
    if !all.server.terminate()?.success() {
        return Err("the server did not stop in order".into());
    }
    all.report.print();
    Ok(all.report)
}

/// Raises the limit on open files, and returns how many idle connections there is room for beside the streams.
fn room(connections: usize, streams: usize) -> Result<usize> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: most,
            maximum: most,
        },
    )?;
    let files = most.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    // This program has both ends of the proxy's connections.
    let taken = streams + 2 * connections / VANISHING_SHARE + OWN_FILES;
    let room = files.saturating_sub(taken).min(connections);
    if room < connections {
        println!("{room} idle connections: ulimit -Hn is {files}");
    }
    Ok(room)
}

/// One server, round after round.
struct Rounds {
    server: Server,
    address: SocketAddr,
    connections: usize,
    streams: usize,
    /// After the last event of the rounds so far.
    cursor: String,
    next_sequence: u64,
    next_number: u64,
    report: Report,
}

impl Rounds {
    fn begin(&self) -> Round {
        Round::new(&self.address.to_string(), self.next_number)
    }

    /// Does not count as leaked what every server has sooner or later: its threads, the first files.
    async fn warm_up(&mut self) -> Result<()> {
        let round = self.begin();
        publish_at_once(&round, OPENING, async || Ok(())).await?;
        self.check(&round).await
    }

    /// Checks the acks of the round, and moves past its events.
    async fn check(&mut self, round: &Round) -> Result<()> {
        let (cursor, events) = round.check(self.cursor.clone(), self.next_sequence).await?;
        self.cursor = cursor;
        self.next_sequence += events;
        self.next_number = round.next();
        self.report.stored += events;
        Ok(())
    }

    async fn round(&mut self, random: &mut Rng, before: &Usage) -> Result<()> {
        let round = self.begin();
        let vanished = self.vanish().await?;
        let end = Arc::new(AtomicU64::new(u64::MAX));
        let mut followers = JoinSet::new();
        for _ in 0..FOLLOWERS {
            followers.spawn(self.follow(self.address, &end, Duration::from_secs(45)));
        }

        let mut idle = self.open_idle().await?;
        publish_at_once(&round, self.streams, async || {
            self.report.peak(&self.server.usage()?);
            Ok(())
        })
        .await?;
        let proxy = self
            .fail(&round, random.u64(..), &end, &mut followers)
            .await?;
        self.attack(&round, random).await?;
        let left = idle.len();
        while idle.try_join_next().is_some() {}
        if idle.len() < left {
            return Err(format!("{} idle connections were closed", left - idle.len()).into());
        }
        self.report.peak(&self.server.usage()?);

        self.check(&round).await?;
        // One more event wakes the followers.
        end.store(self.next_sequence + 1, Relaxed);
        let last = Stream::open(&round.address, &round, PublisherOptions::default())?;
        last.publish(round.numbers(1)).await?;
        last.finish().await?;
        while let Some(follower) = followers.join_next().await {
            follower??;
        }
        self.check(&round).await?;
        self.report.acked += round.acked();
        self.report.failed_connections += proxy.opened();
        self.report.rounds += 1;

        drop((proxy, idle));
        let after = self.all_back(before).await?;
        drop(vanished);
        self.report.at_rest(&after);
        println!(
            "round {}: {} events acked, {} MiB and {} files after",
            self.report.rounds,
            round.acked(),
            after.rss_bytes / MIB,
            after.open_files
        );
        self.hold_memory()
    }

    /// Peers that vanish silently in mid-stream.
    async fn vanish(&mut self) -> Result<(Proxy, Vec<Peer>)> {
        let proxy = Proxy::start(self.address, |_| SOUND).await?;
        let mut peers = Vec::new();
        for _ in 0..self.connections / VANISHING_SHARE {
            let mut peer = Peer::greet(proxy.address).await?;
            peer.send(&frames::call(1, "StreamingPublish")).await?;
            peers.push(peer);
        }
        proxy.vanish();
        self.report.vanished_connections += peers.len();
        Ok((proxy, peers))
    }

    /// Connections that only answer pings. They close when the set is dropped.
    async fn open_idle(&self) -> Result<JoinSet<()>> {
        let opening = Arc::new(Semaphore::new(OPENING));
        let mut greeting = JoinSet::new();
        for _ in 0..self.connections {
            let place = Arc::clone(&opening).acquire_owned().await?;
            let address = self.address;
            greeting.spawn(async move {
                let peer = Peer::greet(address).await;
                drop(place);
                peer
            });
        }
        let mut idle = JoinSet::new();
        while let Some(peer) = greeting.join_next().await {
            idle.spawn(answer_pings(peer??));
        }
        Ok(idle)
    }

    fn follow(
        &self,
        address: SocketAddr,
        end: &Arc<AtomicU64>,
        silence_max: Duration,
    ) -> impl Future<Output = Result<()>> + use<> {
        follow(
            address.to_string(),
            self.cursor.clone(),
            self.next_sequence,
            Arc::clone(end),
            silence_max,
        )
    }

    /// Publishers and readers behind a proxy whose connections fail until every publisher has finished.
    async fn fail(
        &self,
        round: &Round,
        seed: u64,
        end: &Arc<AtomicU64>,
        followers: &mut JoinSet<Result<()>>,
    ) -> Result<Proxy> {
        let failing = Arc::new(AtomicBool::new(true));
        let fails = Arc::clone(&failing);
        let proxy = Proxy::start(self.address, move |number| {
            if fails.load(Relaxed) {
                draw(Rng::with_seed(seed ^ number).u64(..), FAULT_BYTES_MAX)
            } else {
                SOUND
            }
        })
        .await?;
        let options = PublisherOptions {
            ack_timeout: STALL_MAX,
            ..PublisherOptions::default()
        };
        let mut publishers = JoinSet::new();
        for _ in 0..PROXIED {
            let stream = Stream::open(&proxy.endpoint(), round, options.clone())?;
            let numbers = round.numbers(PROXIED_EVENTS);
            publishers.spawn(async move {
                stream.publish(numbers).await?;
                stream.finish().await
            });
            followers.spawn(self.follow(proxy.address, end, STALL_MAX));
        }
        while let Some(publisher) = publishers.join_next().await {
            publisher??;
        }
        failing.store(false, Relaxed);
        Ok(proxy)
    }

    /// One attack after the other, while another client publishes.
    async fn attack(&mut self, round: &Round, random: &mut Rng) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let watching = tokio::spawn(watch(round.clone(), Arc::clone(&stop)));
        let peers = (self.connections / ATTACKING_SHARE).max(1);
        for attack in Attack::ALL {
            attack.run(self.address, peers, random).await?;
            *self.report.attacks.entry(attack.name()).or_default() += peers;
        }
        stop.store(true, Relaxed);
        self.report.took(&watching.await??);
        Ok(())
    }

    /// Waits until memory and files are released.
    async fn all_back(&self, before: &Usage) -> Result<Usage> {
        let back = async {
            loop {
                let usage = self.server.usage()?;
                let memory = usage.rss_bytes <= before.rss_bytes + BASE_BYTES_MAX;
                if memory && usage.open_files <= before.open_files + KEPT_FILES_MAX {
                    return Ok(usage);
                }
                sleep(RETURN_POLL).await;
            }
        };
        if let Ok(usage) = timeout(RETURN_MAX, back).await {
            return usage;
        }
        let usage = self.server.usage()?;
        Err(format!(
            "{} s after the last client the server has {} MiB and {} files; before the first, {} and {}",
            RETURN_MAX.as_secs(),
            usage.rss_bytes / MIB,
            usage.open_files,
            before.rss_bytes / MIB,
            before.open_files
        )
        .into())
    }

    fn hold_memory(&self) -> Result<()> {
        let connections = (self.connections + self.streams) as u64;
        let most = BASE_BYTES_MAX + INGEST_BYTES_MAX + connections * CONNECTION_BYTES_MAX;
        let peak = self.server.usage()?.peak_rss_bytes;
        if peak > most {
            let (peak, most) = (peak / MIB, most / MIB);
            return Err(format!("the server had {peak} MiB; the limit is {most} MiB").into());
        }
        Ok(())
    }
}

/// Publishes over many streams, and calls `all_open` while all of them are open.
async fn publish_at_once(
    round: &Round,
    streams: usize,
    all_open: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let together = Arc::new(Together {
        open: Barrier::new(streams + 1),
        go_on: Barrier::new(streams + 1),
    });
    let mut publishers = JoinSet::new();
    let mut numbers = 0..0;
    for stream in 0..streams {
        if stream % 2 == 0 {
            numbers = round.numbers(STREAM_EVENTS);
        }
        let publish = publish_together(round.clone(), numbers.clone(), Arc::clone(&together));
        publishers.spawn(publish);
    }
    let ended_early =
        async |publishers: &mut JoinSet<Result<()>>| match publishers.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        };
    tokio::select! {
        ended = ended_early(&mut publishers) => ended?,
        _ = together.open.wait() => {}
    }
    all_open().await?;
    together.go_on.wait().await;
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    Ok(())
}

/// Until the server ends the connection.
async fn answer_pings(mut peer: Peer) {
    while let Ok(Some(arrived)) = peer.next().await {
        if arrived.kind == kind::PING && arrived.flags == flag::NONE {
            let pong = frame(kind::PING, flag::ACK, 0, &arrived.payload);
            if peer.send(&pong).await.is_err() {
                return;
            }
        }
    }
}
