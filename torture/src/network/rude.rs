//! One rude client: ten connections, each of which takes all it can get, all at once.
//!
//! Meanwhile, memory must have a bound that does not depend on the client, a well-behaved publisher must be acked in
//! time, and afterwards the memory must be released. The server has its default settings, because most people run
//! those.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::ValueEnum;
use oncelog::{
    client::{Publisher, PublisherOptions, Reader, ReaderOptions},
    proto::v1::{Event, GetStatsRequest, ListEventsRequest, event::Payload},
};
use oncelog_harness::{frames, server::Server};
use prost::Message as _;
use prost_types::Timestamp;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    bomb,
    connection::{Connection, Reads},
    load::{Latencies, Round, watch},
};

use crate::Result;

const MIB: u64 = 1024 * 1024;
/// The most memory the server may use during all of it.
const MEMORY_BYTES_MAX: u64 = 768 * MIB;
/// A server that uses this much is lost: the machine is saved instead.
const MEMORY_BYTES_CUT: u64 = 4096 * MIB;
/// How much more the server may use than before once the client is gone: the events stored meanwhile are in its index.
const KEPT_BYTES_MAX: u64 = 128 * MIB;
/// The longest the 99th of a hundred acks of a well-behaved publisher may take.
const ACK_P99_MAX: Duration = Duration::from_secs(1);
/// How long releasing the memory may take.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// How long the last ack may take once the client is gone.
const LAST_ACK_MAX: Duration = Duration::from_secs(90);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How often ended streams are replaced.
const RENEW_INTERVAL: Duration = Duration::from_millis(20);
/// How long a client that was thrown out waits before it reconnects.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// Nearly as many topics as a server allows by default: a well-behaved publisher has some of its own.
const TOPICS: usize = 99_000;
/// The topics per request when they are created.
const REQUEST_TOPICS: usize = 5000;
/// The length of their names: the longest, so that their counters are large.
const TOPIC_BYTES: usize = 255;
/// A topic that has one small event in each of many batches.
const SPARSE_TOPIC: &str = "sparse";
const SPARSE_EVENTS: usize = 600;
/// The other event in each of those batches. Larger than a server reads at once, so that each small event takes a new
/// read.
const BETWEEN_BYTES: usize = 20 * 1024;

/// The default limit of a request, `--max-request-bytes`.
const REQUEST_BYTES: u32 = 4 * 1024 * 1024;
/// The limit on events of a request, as events of no bytes: a field of the request, and its length of 0.
const EMPTY_EVENTS: usize = 16_384;
const EMPTY_EVENT: [u8; 2] = [1 << 3 | 2, 0];

/// Calls without events, which need no large messages.
const CALLS_WITHOUT_EVENTS: [&str; 5] = [
    "/oncelog.v1.AggregatorService/GetEvent",
    "/oncelog.v1.AggregatorService/ListEvents",
    "/oncelog.v1.AggregatorService/GetStats",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// The behaviour of one connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Rudeness {
    /// 64 gRPC streams announce a request of 4 MiB each and send nothing
    Announce,
    /// The same, announced as compressed
    AnnounceCompressed,
    /// The same over JSON
    AnnounceJson,
    /// 50 streams publish requests of 16,384 empty events and read no response
    AnswersUnread,
    /// 500 messages of 4 MiB, all but the last byte, to each call without events
    Unfinished,
    /// 32 streams send messages that are 1000 times as large decompressed
    Bombs,
    /// 300 lists of a topic with one small event per batch, of which one byte is read
    ListsUnread,
    /// Lists started and cut, again and again
    ListsCut,
    /// 60 requests for the counters of 100,000 topics, of which one byte is read
    StatsUnread,
    /// 300 server-sent event streams of all events, of which one byte is read
    EventsUnread,
}

impl Rudeness {
    /// Runs until `end`. Returns how many streams it has started.
    async fn run(self, server: SocketAddr, end: Instant) -> u64 {
        let begun = AtomicU64::new(0);
        let again_and_again = async {
            loop {
                // However it ended, it starts again: thrown out or refused.
                _ = self.attack(server, &begun).await;
                sleep(RECONNECT_DELAY).await;
            }
        };
        _ = timeout_at(end, again_and_again).await;
        begun.into_inner()
    }

    async fn attack(self, server: SocketAddr, begun: &AtomicU64) -> io::Result<()> {
        match self {
            Self::Announce => {
                let fields = frames::call_fields("StreamingPublish");
                let prefix = frames::message(0, REQUEST_BYTES, b"");
                hold(server, begun, &vec![(fields, prefix); 64]).await
            }
            Self::AnnounceCompressed => {
                let fields = [
                    frames::call_fields("Publish"),
                    frames::field("grpc-encoding", "gzip"),
                ]
                .concat();
                let prefix = frames::message(1, REQUEST_BYTES, b"");
                hold(server, begun, &vec![(fields, prefix); 64]).await
            }
            Self::AnnounceJson => {
                let json = [
                    ("content-type", "application/json"),
                    ("content-length", &REQUEST_BYTES.to_string()),
                ];
                let fields = [
                    frames::request_fields("POST", "/publish"),
                    frames::fields(&json),
                ]
                .concat();
                hold(server, begun, &vec![(fields, Vec::new()); 64]).await
            }
            Self::AnswersUnread => {
                let events = EMPTY_EVENT.repeat(EMPTY_EVENTS);
                let request = frames::message(0, events.len() as u32, &events);
                repeat(server, begun, "StreamingPublish", 50, &request).await
            }
            Self::Unfinished => {
                let message = vec![0; REQUEST_BYTES as usize - 1];
                let message = Bytes::from(frames::message(0, REQUEST_BYTES, &message));
                let calls = CALLS_WITHOUT_EVENTS.iter().cycle().take(2500);
                let streams: Vec<_> = calls
                    .map(|path| (frames::grpc_fields(path), message.clone()))
                    .collect();
                hold(server, begun, &streams).await
            }
            Self::Bombs => {
                let fields = [
                    frames::call_fields("Publish"),
                    frames::field("grpc-encoding", "gzip"),
                ]
                .concat();
                let bomb = bomb::gzip();
                let message = frames::message(1, bomb.len() as u32, &bomb);
                hold(server, begun, &vec![(fields, message); 32]).await
            }
            Self::ListsUnread => {
                let streams = vec![list(SPARSE_TOPIC); 300];
                ask(server, begun, &streams).await
            }
            Self::ListsCut => {
                let mut connection = Connection::open(server, Reads::Byte).await?;
                let lists = [list(SPARSE_TOPIC), list("")];
                loop {
                    let mut streams = Vec::new();
                    for list in lists.iter().cycle().take(64) {
                        streams.push(begin(&mut connection, list).await?);
                        begun.fetch_add(1, Relaxed);
                    }
                    // Long enough for the scans to start.
                    connection.stay(RENEW_INTERVAL).await?;
                    for stream in streams {
                        connection.cancel(stream).await?;
                    }
                }
            }
            Self::StatsUnread => {
                let request = GetStatsRequest {
                    max_topics: TOPICS as u32,
                    ..GetStatsRequest::default()
                };
                let request = request.encode_to_vec();
                let message = frames::message(0, request.len() as u32, &request);
                let streams = vec![(frames::call_fields("GetStats"), message); 60];
                ask(server, begun, &streams).await
            }
            Self::EventsUnread => {
                let fields = [
                    frames::request_fields("GET", "/events"),
                    frames::field("accept", "text/event-stream"),
                ]
                .concat();
                let streams = vec![(fields, Vec::new()); 300];
                ask(server, begun, &streams).await
            }
        }
    }
}

/// A single behaviour, or all at once.
#[derive(Clone, Copy, Debug)]
pub struct Only(pub Option<Rudeness>);

/// Parses the name of a behaviour, or `all`.
pub fn parse_only(name: &str) -> Result<Only, String> {
    match name {
        "all" => Ok(Only(None)),
        name => Rudeness::from_str(name, false).map(|way| Only(Some(way))),
    }
}

/// A list of a topic, or of all if it is empty: the header, and the message.
fn list(topic: &str) -> (Vec<u8>, Vec<u8>) {
    let request = ListEventsRequest {
        topic: topic.to_owned(),
        ..ListEventsRequest::default()
    };
    let request = request.encode_to_vec();
    let message = frames::message(0, request.len() as u32, &request);
    (frames::call_fields("ListEvents"), message)
}

/// Sends each of `streams`, a header and a body, as far as flow control allows, never ends it, and starts it again
/// whenever the server has ended it.
async fn hold(
    server: SocketAddr,
    begun: &AtomicU64,
    streams: &[(Vec<u8>, impl AsRef<[u8]>)],
) -> io::Result<()> {
    let mut connection = Connection::open(server, Reads::All).await?;
    // The id of the stream, if open, and how much of its body has been sent.
    let mut open = vec![(0, 0); streams.len()];
    loop {
        for ((fields, body), (stream, sent)) in streams.iter().zip(&mut open) {
            if !connection.is_open(*stream) {
                (*stream, *sent) = (connection.begin(fields, false).await?, 0);
                begun.fetch_add(1, Relaxed);
            }
            if let Some(more) = connection.send(*stream, &body.as_ref()[*sent..]).await? {
                *sent += more;
            }
        }
        connection.stay(RENEW_INTERVAL).await?;
    }
}

/// Sends each of `streams` whole, reads a byte of each response, and repeats it whenever the server has ended
/// it.
async fn ask(
    server: SocketAddr,
    begun: &AtomicU64,
    streams: &[(Vec<u8>, Vec<u8>)],
) -> io::Result<()> {
    let mut connection = Connection::open(server, Reads::Byte).await?;
    let mut open = vec![0; streams.len()];
    loop {
        for (request, stream) in streams.iter().zip(&mut open) {
            if !connection.is_open(*stream) {
                *stream = begin(&mut connection, request).await?;
                begun.fetch_add(1, Relaxed);
            }
        }
        connection.stay(RENEW_INTERVAL).await?;
    }
}

/// Sends a small request whole.
async fn begin(
    connection: &mut Connection,
    (fields, body): &(Vec<u8>, Vec<u8>),
) -> io::Result<u32> {
    let stream = connection.begin(fields, false).await?;
    connection.send(stream, body).await?;
    connection.end(stream).await?;
    Ok(stream)
}

/// Sends `message` again and again over each of `count` streams of a call, as far as flow control allows, and reads
/// nothing.
async fn repeat(
    server: SocketAddr,
    begun: &AtomicU64,
    method: &str,
    count: usize,
    message: &[u8],
) -> io::Result<()> {
    let mut connection = Connection::open(server, Reads::Nothing).await?;
    let fields = frames::call_fields(method);
    let mut open = vec![(0, 0); count];
    loop {
        let mut all_sent = 0;
        for (stream, sent) in &mut open {
            if !connection.is_open(*stream) {
                (*stream, *sent) = (connection.begin(&fields, false).await?, 0);
                begun.fetch_add(1, Relaxed);
            }
            if let Some(more) = connection.send(*stream, &message[*sent..]).await? {
                *sent = (*sent + more) % message.len();
                all_sent += more;
            }
        }
        if all_sent == 0 {
            connection.wait().await?;
        }
    }
}

/// The result.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RudeReport {
    pub seconds: u64,
    /// Streams that were started, by behaviour.
    pub streams: Vec<(String, u64)>,
    /// Before, at most, and after.
    pub rss_mib: [u64; 3],
    /// Events that a well-behaved publisher published meanwhile, one at a time.
    pub acked: usize,
    pub ack_p50_ms: u64,
    pub ack_p99_ms: u64,
    pub ack_ms_max: u64,
}

impl RudeReport {
    /// The limits that were broken.
    fn broken(&self) -> Vec<String> {
        let [before, peak, after] = self.rss_mib;
        let mut broken = Vec::new();
        let mut hold = |what: &str, is: u64, max: u64, unit: &str| {
            if is > max {
                broken.push(format!("{what}: {is} {unit}; the limit is {max} {unit}"));
            }
        };
        hold("memory", peak, MEMORY_BYTES_MAX / MIB, "MiB");
        let kept = after.saturating_sub(before);
        hold("memory kept", kept, KEPT_BYTES_MAX / MIB, "MiB");
        let p99_max = ACK_P99_MAX.as_millis() as u64;
        hold("p99 of an ack", self.ack_p99_ms, p99_max, "ms");
        broken
    }

    /// In one line.
    pub fn text(&self) -> String {
        let [before, peak, after] = self.rss_mib;
        let streams: u64 = self.streams.iter().map(|(_, begun)| begun).sum();
        format!(
            "one rude client, {} connections and {streams} streams in {} s: memory {before} MiB before, {peak} at most, {after} \
             after; meanwhile {} events were acked one at a time, p50 {} ms, p99 {} ms, {} ms at most",
            self.streams.len(),
            self.seconds,
            self.acked,
            self.ack_p50_ms,
            self.ack_p99_ms,
            self.ack_ms_max,
        )
    }
}

/// Starts a server with default settings and attacks it for `seconds`, with one behaviour or all at once.
pub async fn run(
    program: &Path,
    scratch: &Path,
    seconds: u64,
    only: Option<Rudeness>,
) -> Result<RudeReport> {
    let data_dir = tempfile::tempdir_in(scratch)?;
    let data_dir = data_dir.path();
    let mut server = Server::start(program, data_dir, "127.0.0.1:0")?;
    fill(&server.address).await?;
    let (cursor, stored) = end(&server.address).await?;
    if !server.terminate()?.success() {
        return Err("the server did not stop in order".into());
    }
    forget_pages(&data_dir.join("log"))?;
    let mut server = Server::start(program, data_dir, "127.0.0.1:0")?;
    let round = Round::new(&server.address, 0);
    let before = server.usage()?.rss_bytes;

    let stop = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn(watch(round.clone(), Arc::clone(&stop)));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    let address = server.address.parse()?;
    for rudeness in Rudeness::value_variants() {
        if only.is_none_or(|only| only == *rudeness) {
            clients.spawn(async move { (*rudeness, rudeness.run(address, until).await) });
        }
    }
    let mut peak = before;
    while Instant::now() < until && peak < MEMORY_BYTES_CUT {
        sleep(SAMPLE_INTERVAL).await;
        peak = server.usage()?.peak_rss_bytes;
    }
    let mut report = RudeReport {
        seconds,
        ..RudeReport::default()
    };
    if peak >= MEMORY_BYTES_CUT {
        server.kill()?;
        let (peak, limit) = (peak / MIB, MEMORY_BYTES_MAX / MIB);
        return Err(format!(
            "a rude client: memory: {peak} MiB and growing; the limit is {limit} MiB"
        )
        .into());
    }
    while let Some(client) = clients.join_next().await {
        let (rudeness, begun) = client?;
        report.streams.push((format!("{rudeness:?}"), begun));
    }
    report.streams.sort();
    stop.store(true, Relaxed);
    let latencies = timeout(LAST_ACK_MAX, watching)
        .await
        .map_err(|_| format!("no ack {} s after a rude client", LAST_ACK_MAX.as_secs()))???;
    report.took(&latencies);
    peak = server.usage()?.peak_rss_bytes;
    let left = Instant::now();
    let mut after = server.usage()?.rss_bytes;
    while after > before + KEPT_BYTES_MAX && left.elapsed() < RETURN_MAX {
        sleep(SAMPLE_INTERVAL).await;
        after = server.usage()?.rss_bytes;
    }
    report.rss_mib = [before, peak, after].map(|bytes| bytes / MIB);
    println!("{}", report.text());
    for (name, begun) in &report.streams {
        println!("{begun:>8}  {name}");
    }
    round.check(cursor, stored + 1).await?;
    if !server.terminate()?.success() {
        return Err("the server did not stop in order".into());
    }
    let broken = report.broken();
    match broken.is_empty() {
        true => Ok(report),
        false => Err(format!("a rude client: {}", broken.join("; ")).into()),
    }
}

impl RudeReport {
    fn took(&mut self, latencies: &Latencies) {
        self.acked = latencies.count();
        self.ack_p50_ms = latencies.share_ms(0.5);
        self.ack_p99_ms = latencies.share_ms(0.99);
        self.ack_ms_max = latencies.share_ms(1.0);
    }
}

/// Stores an event in each of many topics, and many small batches in one.
pub async fn fill(address: &str) -> Result<()> {
    let publisher = Publisher::connect(address, PublisherOptions::default())?;
    // One topic is the sparse one.
    let topics = (1..TOPICS).map(|topic| format!("{topic:0>TOPIC_BYTES$}"));
    let topics: Vec<_> = topics.collect();
    for topics in topics.chunks(REQUEST_TOPICS) {
        let events = topics.iter().map(|topic| event(topic, 0, 20));
        // Acked before the next that waits for its ack.
        drop(publisher.send(events.collect()).await?);
    }
    for number in 0..SPARSE_EVENTS {
        let events = vec![
            event(SPARSE_TOPIC, number, 20),
            event(&topics[0], 1 + number, BETWEEN_BYTES),
        ];
        publisher.send(events).await?.await?;
    }
    Ok(publisher.finish().await?)
}

fn event(topic: &str, number: usize, bytes: usize) -> Event {
    Event {
        topic: topic.to_owned(),
        event_id: number.to_string(),
        timestamp: Some(Timestamp::default()),
        source: "torture".to_owned(),
        payload: Some(Payload::Data(vec![0; bytes].into())),
        attributes: Default::default(),
    }
}

/// The cursor after all stored events, and the last sequence.
pub async fn end(address: &str) -> Result<(String, u64)> {
    let request = ListEventsRequest::default();
    let mut reader = Reader::connect(address, request, ReaderOptions::default())?;
    let mut last = 0;
    while let Some(response) = reader.next().await? {
        last = response
            .events
            .last()
            .map_or(last, |stored| stored.sequence);
    }
    Ok((reader.cursor().to_owned(), last))
}

/// Drops the system's cached pages of the files in a folder.
fn forget_pages(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
