//! Every endpoint against every rude behaviour, one pair at a time.
//!
//! docs/reliability.md has the table of what bounds each pair. Here each is tried against the real program with its
//! default settings: memory must stay within a limit, and another client's events must be acked in time.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::ValueEnum;
use oncelog_harness::{frames, server::Server};
use serde::Serialize;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
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
/// The most memory the server may use during any pair.
const MEMORY_BYTES_MAX: u64 = 768 * MIB;
/// The longest the 99th of a hundred acks may take during any pair.
const ACK_P99_MS_MAX: u64 = 1000;
/// How long to wait for the last ack of a pair.
const LAST_ACK_MAX: Duration = Duration::from_secs(20);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// How often bytes drip, and ended streams are replaced.
const TICK: Duration = Duration::from_millis(20);
const RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// Streams of an HTTP/2 connection, or HTTP/1.1 connections; and the number for thousands.
const STREAMS: usize = 64;
const THOUSANDS_OF_STREAMS: usize = 4000;
const THOUSANDS_OF_CONNECTIONS: usize = 1000;
/// The default limit of a request, `--max-request-bytes`.
const REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Requests that an HTTP/1.1 client sends in a row without reading.
const PIPELINED: usize = 1000;

/// A rude behaviour.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
pub enum Way {
    /// Whole requests, and at most a byte of a response is read
    NeverReads,
    /// A byte at a time
    Drips,
    /// A request of 4 MiB without its end
    StopsHalfway,
    /// A request that is 64 MiB by gzip
    GzipBomb,
    /// A request that is 64 MiB by zstd
    ZstdBomb,
    /// Whole requests, each cancelled at once
    Cancels,
    /// Thousands of whole requests at once
    Thousands,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
enum Wire {
    Grpc,
    Http2,
    Http1,
}

/// An endpoint under attack.
struct Endpoint {
    name: &'static str,
    wire: Wire,
    method: &'static str,
    path: &'static str,
    fields: &'static [(&'static str, &'static str)],
    /// A whole request.
    body: Bytes,
}

/// The gRPC calls, and a message that each accepts: an invalid event, a topic, a key, a service.
const CALLS: [(&str, &str, &[u8]); 8] = [
    (
        "Publish",
        "/oncelog.v1.AggregatorService/Publish",
        &[1 << 3 | 2, 0],
    ),
    (
        "StreamingPublish",
        "/oncelog.v1.AggregatorService/StreamingPublish",
        &[1 << 3 | 2, 0],
    ),
    (
        "ListEvents",
        "/oncelog.v1.AggregatorService/ListEvents",
        b"",
    ),
    (
        "GetEvent",
        "/oncelog.v1.AggregatorService/GetEvent",
        b"\x0a\x01t\x12\x01e",
    ),
    (
        "GetStats",
        "/oncelog.v1.AggregatorService/GetStats",
        // max_topics = 100,000
        b"\x10\xa0\x8d\x06",
    ),
    ("health Check", "/grpc.health.v1.Health/Check", b""),
    ("health Watch", "/grpc.health.v1.Health/Watch", b""),
    (
        "reflection",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        // list_services = "*"
        b"\x3a\x01*",
    ),
];

type HttpRequest = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [u8],
);

const REQUESTS: [HttpRequest; 9] = [
    (
        "POST /publish, JSON",
        "POST",
        "/publish",
        &[("content-type", "application/json")],
        b"[{}]",
    ),
    (
        "POST /publish, NDJSON",
        "POST",
        "/publish",
        &[("content-type", "application/x-ndjson")],
        b"{}\n",
    ),
    ("GET /events", "GET", "/events?limit=10000", &[], b""),
    (
        "GET /events, NDJSON",
        "GET",
        "/events",
        &[("accept", "application/x-ndjson")],
        b"",
    ),
    (
        "GET /events, SSE",
        "GET",
        "/events",
        &[("accept", "text/event-stream")],
        b"",
    ),
    ("GET /stats", "GET", "/stats?max_topics=10000", &[], b""),
    ("GET /readyz", "GET", "/readyz", &[], b""),
    ("GET /openapi.json", "GET", "/openapi.json", &[], b""),
    (
        "POST /nothing",
        "POST",
        "/nothing",
        &[("content-type", "application/json")],
        b"{}",
    ),
];

fn endpoints() -> Vec<Endpoint> {
    let calls = CALLS.iter().map(|(name, path, message)| Endpoint {
        name,
        wire: Wire::Grpc,
        method: "POST",
        path,
        fields: &[("content-type", "application/grpc"), ("te", "trailers")],
        body: frames::message(0, message.len() as u32, message).into(),
    });
    let requests = [Wire::Http2, Wire::Http1].into_iter().flat_map(|wire| {
        REQUESTS
            .iter()
            .map(move |&(name, method, path, fields, body)| Endpoint {
                name,
                wire,
                method,
                path,
                fields,
                body: Bytes::from_static(body),
            })
    });
    calls.chain(requests).collect()
}

/// A request to send: header fields beside those of its endpoint, and its body.
#[derive(Clone)]
struct Sent {
    more: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Endpoint {
    /// The request in this behaviour.
    fn sent(&self, way: Way) -> Sent {
        let is_grpc = self.wire == Wire::Grpc;
        let bomb = |encoding: &str, bomb: Bytes| {
            let body = match is_grpc {
                true => frames::message(1, bomb.len() as u32, &bomb).into(),
                false => bomb,
            };
            let name = if is_grpc {
                "grpc-encoding"
            } else {
                "content-encoding"
            };
            Sent {
                more: vec![
                    (name, encoding.to_owned()),
                    ("content-length", body.len().to_string()),
                ],
                body,
            }
        };
        match way {
            Way::GzipBomb => bomb("gzip", bomb::gzip()),
            Way::ZstdBomb => bomb("zstd", bomb::zstd()),
            Way::StopsHalfway => {
                // Spaces are JSON that continues.
                let most = vec![b' '; REQUEST_BYTES - 1];
                let body = match is_grpc {
                    true => frames::message(0, REQUEST_BYTES as u32, &most),
                    false => most,
                };
                Sent {
                    more: vec![("content-length", (body.len() + 1).to_string())],
                    body: body.into(),
                }
            }
            Way::NeverReads | Way::Drips | Way::Cancels | Way::Thousands => Sent {
                more: vec![("content-length", self.body.len().to_string())],
                body: self.body.clone(),
            },
        }
    }

    /// Attacks until stopped.
    async fn attack(&self, way: Way, sent: &Sent, server: SocketAddr) {
        loop {
            // However it ended, it starts again: thrown out or refused.
            _ = match self.wire {
                Wire::Grpc | Wire::Http2 => self.attack_streams(way, sent, server).await,
                Wire::Http1 => self.attack_connections(way, sent, server).await,
            };
            sleep(RECONNECT_DELAY).await;
        }
    }

    async fn attack_streams(&self, way: Way, sent: &Sent, server: SocketAddr) -> io::Result<()> {
        let reads = if way == Way::NeverReads {
            Reads::Byte
        } else {
            Reads::All
        };
        let mut fields = frames::request_fields(self.method, self.path);
        fields.extend(frames::fields(self.fields));
        for (name, value) in &sent.more {
            fields.extend(frames::field(name, value));
        }
        let mut connection = Connection::open(server, reads).await?;
        let count = if way == Way::Thousands {
            THOUSANDS_OF_STREAMS
        } else {
            STREAMS
        };
        let at_once = if way == Way::Drips { 1 } else { usize::MAX };
        // The id of the stream, if open, and how much of its body has been sent.
        let mut open = vec![(0, 0); count];
        loop {
            for (stream, at) in &mut open {
                if !connection.is_open(*stream) {
                    (*stream, *at) = (connection.begin(&fields, false).await?, 0);
                }
                let left = &sent.body[*at..];
                if left.is_empty() {
                    continue;
                }
                let part = &left[..left.len().min(at_once)];
                *at += connection.send(*stream, part).await?.unwrap_or(0);
                let is_whole = *at == sent.body.len();
                if is_whole && way != Way::StopsHalfway && connection.is_open(*stream) {
                    connection.end(*stream).await?;
                }
                if way == Way::Cancels {
                    connection.cancel(*stream).await?;
                }
            }
            connection.stay(TICK).await?;
        }
    }

    async fn attack_connections(
        &self,
        way: Way,
        sent: &Sent,
        server: SocketAddr,
    ) -> io::Result<()> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: test\r\n", self.method, self.path);
        let fields = self.fields.iter().map(|(name, value)| (*name, *value));
        let more = sent.more.iter();
        let more = more.map(|(name, value)| (*name, &**value));
        for (name, value) in fields.chain(more) {
            head += &format!("{name}: {value}\r\n");
        }
        let request = Bytes::from([head.as_bytes(), b"\r\n", &sent.body].concat());
        let count = if way == Way::Thousands {
            THOUSANDS_OF_CONNECTIONS
        } else {
            STREAMS
        };
        let mut connections = JoinSet::new();
        for _ in 0..count {
            let request = request.clone();
            connections.spawn(async move {
                let mut connection = TcpStream::connect(server).await?;
                match way {
                    Way::NeverReads => {
                        for _ in 0..PIPELINED {
                            connection.write_all(&request).await?;
                        }
                    }
                    Way::Drips => {
                        for byte in &request {
                            connection.write_all(&[*byte]).await?;
                            sleep(TICK).await;
                        }
                    }
                    Way::StopsHalfway
                    | Way::GzipBomb
                    | Way::ZstdBomb
                    | Way::Cancels
                    | Way::Thousands => connection.write_all(&request).await?,
                }
                if way != Way::Cancels {
                    std::future::pending::<()>().await;
                }
                io::Result::Ok(())
            });
        }
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

/// The result of a pair.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub endpoint: String,
    pub way: Way,
    pub rss_mib: u64,
    pub acked: usize,
    pub ack_p99_ms: u64,
}

impl Cell {
    fn holds(&self) -> bool {
        self.rss_mib <= MEMORY_BYTES_MAX / MIB && self.ack_p99_ms <= ACK_P99_MS_MAX
    }

    fn text(&self) -> String {
        let Self {
            endpoint,
            way,
            rss_mib,
            acked,
            ack_p99_ms,
        } = self;
        format!("{endpoint}, {way:?}: {rss_mib} MiB, p99 of {acked} acks {ack_p99_ms} ms")
    }
}

/// The worst of all pairs, in one line.
pub fn text(cells: &[Cell]) -> String {
    let worst = |by: fn(&Cell) -> u64| {
        let worst = cells.iter().max_by_key(|cell| by(cell));
        worst.map_or_else(String::new, Cell::text)
    };
    format!(
        "{} pairs of an endpoint and a way to be rude; most memory with {}; slowest acks with {}",
        cells.len(),
        worst(|cell| cell.rss_mib),
        worst(|cell| cell.ack_p99_ms)
    )
}

/// A server with default settings, and its stored events so far.
struct Target {
    server: Server,
    address: SocketAddr,
    round: Round,
    /// After the events it was filled with.
    cursor: String,
    stored: u64,
    _data_dir: TempDir,
}

impl Target {
    async fn start(program: &Path, scratch: &Path) -> Result<Self> {
        let data_dir = tempfile::tempdir_in(scratch)?;
        let server = Server::start(program, data_dir.path(), "127.0.0.1:0")?;
        super::rude::fill(&server.address).await?;
        let (cursor, stored) = super::rude::end(&server.address).await?;
        Ok(Self {
            address: server.address.parse()?,
            round: Round::new(&server.address, 0),
            server,
            cursor,
            stored,
            _data_dir: data_dir,
        })
    }

    /// Checks that everything acked is stored once, and stops the server.
    async fn finish(mut self) -> Result<()> {
        self.round.check(self.cursor, self.stored + 1).await?;
        match self.server.terminate()?.success() {
            true => Ok(()),
            false => Err("the server did not stop in order".into()),
        }
    }

    /// Runs `attack` for a while. Returns the most memory that the server used, in MiB, and how long another client's
    /// acks took, if all came.
    async fn suffer(
        &self,
        time: Duration,
        attack: impl Future<Output = ()>,
    ) -> Result<(u64, Option<Latencies>)> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut watching = tokio::spawn(watch(self.round.clone(), Arc::clone(&stop)));
        let end = Instant::now() + time;
        let mut most = 0;
        let sample = async {
            loop {
                most = most.max(self.server.usage()?.rss_bytes);
                sleep(SAMPLE_INTERVAL).await;
            }
        };
        let both = async {
            tokio::select! {
                () = attack => Ok(()),
                sampled = sample => sampled,
            }
        };
        let both: Result<Result<()>, _> = timeout_at(end, both).await;
        if let Ok(ended) = both {
            ended?;
        }
        stop.store(true, Relaxed);
        let watched = timeout(LAST_ACK_MAX, &mut watching).await;
        if watched.is_err() {
            watching.abort();
        }
        let latencies = watched.ok().transpose()?.transpose()?;
        Ok((most / MIB, latencies))
    }
}

/// Tries every pair for `time` on a server with default settings, or only those whose name contains `only`. A server
/// that fails is replaced by a new one, so that one pair does not affect the next.
pub async fn run(
    program: &Path,
    scratch: &Path,
    time: Duration,
    only: Option<&str>,
) -> Result<Vec<Cell>> {
    let mut target = Target::start(program, scratch).await?;
    let mut cells = Vec::new();
    for endpoint in endpoints() {
        for way in Way::value_variants() {
            let name = format!("{:?} {}", endpoint.wire, endpoint.name);
            if only.is_some_and(|only| !format!("{name}, {way:?}").contains(only)) {
                continue;
            }
            let sent = endpoint.sent(*way);
            // A machine busy with something else is slow once; a pair that fails, fails twice.
            for is_last in [false, true] {
                let attack = endpoint.attack(*way, &sent, target.address);
                let suffered = target.suffer(time, attack).await;
                let (rss_mib, latencies) =
                    suffered.map_err(|error| format!("{name}, {way:?}: {error}"))?;
                let cell = Cell {
                    endpoint: name.clone(),
                    way: *way,
                    rss_mib,
                    acked: latencies.as_ref().map_or(0, Latencies::count),
                    ack_p99_ms: latencies.as_ref().map_or_else(
                        || LAST_ACK_MAX.as_millis() as u64,
                        |latencies| latencies.share_ms(0.99),
                    ),
                };
                let holds = cell.holds();
                if !holds || only.is_some() {
                    println!("{}", cell.text());
                }
                if !holds {
                    let next = Target::start(program, scratch).await?;
                    let held = std::mem::replace(&mut target, next);
                    // Unacked events may or may not be stored.
                    if latencies.is_some() {
                        held.finish().await?;
                    }
                }
                if holds || is_last {
                    cells.push(cell);
                    break;
                }
            }
        }
    }
    println!("{}", text(&cells));
    target.finish().await?;
    let broken = cells.iter().filter(|cell| !cell.holds());
    let broken: Vec<_> = broken.map(Cell::text).collect();
    match broken.is_empty() {
        true => Ok(cells),
        false => Err(format!("beyond the limits:\n{}", broken.join("\n")).into()),
    }
}
