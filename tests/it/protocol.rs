//! Frames, headers and messages that no client sends: each ends its stream or its connection with the right
//! error, and affects nobody else.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use oncelog::proto::v1;
use oncelog_harness::frames::{self, Ended, Peer, code, flag, frame, kind};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service as _, http},
};

use crate::support::{
    DataDir, TestServer, event, events, list, list_request, patiently, publish, until, xorshift,
};

/// More than any queue of the server holds.
const FLOOD: usize = 20_000;
/// The most that the server sends unasked: settings and their ack, the window of the connection, the last pong.
const GREETING_FRAMES: usize = 4;

async fn greet(server: &TestServer) -> Peer {
    let peer = Peer::greet(server.server.address()).await;
    peer.expect("settings")
}

/// Attacks with `bytes`, and returns the server's reactions.
async fn attack(server: &TestServer, what: &str, bytes: &[u8]) -> Ended {
    let ended = patiently(what, greet(server).await.attack(bytes)).await;
    assert_serves(server, what).await;
    ended
}

/// Asserts that the connection ended, with the error `code` if one arrived.
fn assert_goaway(what: &str, ended: &Ended, code: u32) {
    assert!(!ended.survived, "{what}: {ended:?}");
    assert!(
        ended.goaway.is_none_or(|reply| reply == code),
        "{what}: {ended:?}"
    );
}

/// Asserts that another client is served, and that no request holds a share of the budget.
async fn assert_serves(server: &TestServer, what: &str) {
    let client = &mut server.client().await;
    let reply = patiently(what, publish(client, vec![event("after", what)])).await;
    assert_eq!(reply.received, 1, "{what}");
    let ingest = server.server.partition().ingest();
    until("the budget is whole", || ingest.held() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_frame_ends_its_connection() {
    let server = TestServer::start().await;
    let half_a_field = &frames::field("x", "y")[..2];
    for (what, bytes, code) in [
        (
            "a frame larger than agreed",
            frames::frame_header(0xff_ffff, kind::DATA, flag::NONE, 1),
            code::FRAME_SIZE_ERROR,
        ),
        (
            "a setting of four bytes",
            frame(kind::SETTINGS, flag::NONE, 0, &[0; 4]),
            code::PROTOCOL_ERROR,
        ),
        (
            "a ping of seven bytes",
            frame(kind::PING, flag::NONE, 0, &[0; 7]),
            code::PROTOCOL_ERROR,
        ),
        (
            "a ping on a stream",
            frame(kind::PING, flag::NONE, 1, &[0; 8]),
            code::PROTOCOL_ERROR,
        ),
        (
            "data on a stream that was never opened",
            frame(kind::DATA, flag::NONE, 1, b"x"),
            code::PROTOCOL_ERROR,
        ),
        (
            "an even stream",
            frames::call(2, "Publish"),
            code::PROTOCOL_ERROR,
        ),
        (
            "a continuation of nothing",
            frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
            code::PROTOCOL_ERROR,
        ),
        (
            "a frame within a header",
            [
                frame(
                    kind::HEADERS,
                    flag::NONE,
                    1,
                    &frames::call_fields("Publish"),
                ),
                frame(kind::PING, flag::NONE, 0, &[0; 8]),
            ]
            .concat(),
            code::PROTOCOL_ERROR,
        ),
        (
            "a header that is no HPACK",
            frame(kind::HEADERS, flag::END_HEADERS, 1, &[0xff; 64]),
            code::PROTOCOL_ERROR,
        ),
        (
            "a header that is cut",
            frame(kind::HEADERS, flag::END_HEADERS, 1, half_a_field),
            code::PROTOCOL_ERROR,
        ),
        (
            "a header name in capitals",
            frame(
                kind::HEADERS,
                flag::END_HEADERS,
                1,
                &[frames::call_fields("Publish"), frames::field("Upper", "x")].concat(),
            ),
            code::PROTOCOL_ERROR,
        ),
        (
            "a window over 2^31 - 1",
            frames::window_update(0, 0x7fff_ffff),
            code::FLOW_CONTROL_ERROR,
        ),
        (
            "an initial window over 2^31 - 1",
            frames::settings(&[(4, u32::MAX)]),
            code::PROTOCOL_ERROR,
        ),
    ] {
        let ended = attack(&server, what, &bytes).await;
        assert_goaway(what, &ended, code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_frame_of_a_stream_ends_that_stream() {
    let server = TestServer::start().await;
    let opened = |rest: Vec<u8>| [frames::call(1, "StreamingPublish"), rest].concat();
    let unheard_of = frame(0xbe, 0xff, 1, &[7; 100]);
    for (what, bytes, code) in [
        (
            "a stream's window over 2^31 - 1",
            opened(frames::window_update(1, 0x7fff_ffff)),
            Some(code::FLOW_CONTROL_ERROR),
        ),
        (
            "more than the window of a stream",
            opened(frame(kind::DATA, flag::NONE, 1, &[0; 60_000]).repeat(100)),
            Some(code::FLOW_CONTROL_ERROR),
        ),
        (
            "a header without a path",
            frame(
                kind::HEADERS,
                flag::END_HEADERS,
                1,
                &frames::field(":method", "POST"),
            ),
            Some(code::PROTOCOL_ERROR),
        ),
        ("a frame of no known kind", opened(unheard_of), None),
        (
            "a reset of a stream that has data to come",
            opened(
                [
                    frames::reset(1, code::CANCEL),
                    frame(kind::DATA, flag::NONE, 1, b"late"),
                ]
                .concat(),
            ),
            None,
        ),
    ] {
        let mut peer = greet(&server).await;
        peer.send(&bytes).await.expect("sent");
        if let Some(code) = code {
            let reply = patiently(what, async {
                loop {
                    let frame = peer.next_of(1).await.expect(what);
                    if let Some(code) = frame.code() {
                        break code;
                    }
                }
            });
            assert_eq!(reply.await, code, "{what}");
        }
        let ended = patiently(what, peer.attack(&[])).await;
        assert!(ended.survived, "{what}: {ended:?}");
        // Frames on their way to a stream that is reset may get an error for being late.
        let mut resets = ended.resets.keys();
        assert!(
            resets.all(|code| *code == code::STREAM_CLOSED),
            "{what}: {ended:?}"
        );
        assert_serves(&server, what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_its_connection_or_costs_nothing() {
    let server = TestServer::start().await;
    let stream = |round: usize| 2 * round as u32 + 1;
    let flood = async |what: &str, rounds: usize, bytes: &dyn Fn(usize) -> Vec<u8>| {
        let ended = patiently(what, greet(&server).await.flood(rounds, bytes)).await;
        assert_serves(&server, what).await;
        ended
    };

    // CVE-2023-44487.
    let ended = flood("rapid reset", FLOOD, &|round| {
        let stream = stream(round);
        [
            frames::call(stream, "StreamingPublish"),
            frames::reset(stream, code::CANCEL),
        ]
        .concat()
    })
    .await;
    assert_goaway("rapid reset", &ended, code::ENHANCE_YOUR_CALM);

    // CVE-2025-8671: the server is made to reset streams itself.
    let ended = flood("resets by the server", FLOOD, &|round| {
        let stream = stream(round);
        [
            frames::call(stream, "StreamingPublish"),
            frames::window_update(stream, 0x7fff_ffff),
        ]
        .concat()
    })
    .await;
    assert_goaway("resets by the server", &ended, code::ENHANCE_YOUR_CALM);

    // CVE-2024-27316.
    let ended = flood("continuations", FLOOD, &|round| match round {
        0 => frame(
            kind::HEADERS,
            flag::NONE,
            1,
            &frames::call_fields("Publish"),
        ),
        _ => frame(kind::CONTINUATION, flag::NONE, 1, &frames::field("x", "y")),
    })
    .await;
    assert_goaway("continuations", &ended, code::ENHANCE_YOUR_CALM);

    let ended = flood("empty continuations", FLOOD, &|round| match round {
        0 => frame(
            kind::HEADERS,
            flag::NONE,
            1,
            &frames::call_fields("Publish"),
        ),
        _ => frame(kind::CONTINUATION, flag::NONE, 1, &[]),
    })
    .await;
    assert_goaway("empty continuations", &ended, code::ENHANCE_YOUR_CALM);

    // Frames that are each answered go on, and get no further answers.
    for (what, bytes) in [
        ("settings", frames::settings(&[(4, 65_535)])),
        ("pings", frame(kind::PING, flag::NONE, 0, &[0; 8])),
    ] {
        let ended = flood(what, FLOOD, &|_| bytes.clone()).await;
        assert!(ended.survived, "{what}: {ended:?}");
        assert!(ended.frames <= FLOOD + GREETING_FRAMES, "{what}: {ended:?}");
    }

    let ended = flood("empty data", FLOOD, &|round| match round {
        0 => frames::call(1, "StreamingPublish"),
        _ => frame(kind::DATA, flag::NONE, 1, &[]),
    })
    .await;
    assert_goaway("empty data", &ended, code::ENHANCE_YOUR_CALM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_header_is_refused() {
    const HEADER_BYTES: usize = 32 * 1024;
    /// Too large: in the Huffman code of HPACK.
    const STATUS_431: &[u8] = &[0x69, 0x90, 0xff];
    let server = TestServer::start().await;
    let fields = [
        frames::call_fields("Publish"),
        frames::field("x", &"x".repeat(HEADER_BYTES)),
    ]
    .concat();
    let call = frame(kind::HEADERS, flag::END_HEADERS, 1, &fields);
    let mut peer = greet(&server).await;
    peer.send(&call).await.expect("sent");
    let answer = patiently("an answer", peer.next_of(1))
        .await
        .expect("alive");
    assert_eq!(answer.kind, kind::HEADERS);
    assert!(answer.payload.ends_with(STATUS_431), "{answer:?}");
    assert_serves(&server, "a huge header").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_or_random_bytes_hold_nothing() {
    const LENGTHS: usize = 60;
    const ROUNDS: u64 = 200;
    let server = TestServer::start().await;
    let body = v1::StreamingPublishRequest {
        events: events("cut", 0..3),
    }
    .encode_to_vec();
    let message = frames::message(0, body.len() as u32, &body);
    let whole = [
        frames::call(1, "StreamingPublish"),
        frame(kind::DATA, flag::END_STREAM, 1, &message),
    ]
    .concat();
    for length in (0..whole.len()).step_by(whole.len().div_ceil(LENGTHS)) {
        patiently("cut", greet(&server).await.cut(&whole[..length])).await;
    }
    assert_eq!(list(&mut server.client().await, "cut").await, []);

    let mut random = 0x9e37_79b9;
    for round in 0..ROUNDS {
        let mut bytes = Vec::new();
        for _ in 0..1 + round % 40 {
            random = xorshift(random);
            let payload: Vec<_> = random.to_be_bytes().repeat(1 + round as usize % 7);
            if random & 1 == 0 {
                bytes.extend(payload);
            } else {
                let [kind, flags, stream, ..] = random.to_le_bytes().map(|byte| byte >> 3);
                bytes.extend(frame(kind % 12, flags, u32::from(stream % 4), &payload));
            }
        }
        let peer = Peer::connect(server.server.address()).await;
        let peer = if round % 3 == 0 {
            peer.expect("connected")
        } else {
            greet(&server).await
        };
        patiently("random", peer.cut(&bytes)).await;
    }
    assert_serves(&server, "random").await;
}

/// The DATA of a complete request.
fn request(stream: u32, flags: u8, events: Vec<v1::Event>) -> Vec<u8> {
    let body = v1::StreamingPublishRequest { events }.encode_to_vec();
    let message = frames::message(0, body.len() as u32, &body);
    frame(kind::DATA, flags, stream, &message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goaway_in_mid_stream_lets_the_stream_end() {
    let server = TestServer::start().await;
    let mut peer = greet(&server).await;
    // The server has seen no stream, and no error.
    let goaway = frame(kind::GOAWAY, flag::NONE, 0, &[0; 8]);
    let bytes = [
        frames::call(1, "StreamingPublish"),
        request(1, flag::NONE, events("a", 0..1)),
        goaway,
        request(1, flag::END_STREAM, events("a", 1..2)),
    ];
    peer.send(&bytes.concat()).await.expect("sent");
    let mut answers = Vec::new();
    patiently("the end", async {
        while let Some(frame) = peer.next().await.expect("in order") {
            answers.extend((frame.stream == 1).then_some((frame.kind, frame.flags)));
        }
    })
    .await;
    let trailers = (kind::HEADERS, flag::END_STREAM | flag::END_HEADERS);
    assert_eq!(answers.last(), Some(&trailers), "{answers:?}");
    assert!(answers.iter().any(|(kind, _)| *kind == kind::DATA));
    assert_eq!(list(&mut server.client().await, "a").await.len(), 2);
    assert_serves(&server, "a goaway").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_read_hold_what_they_may_and_no_more() {
    const READERS_MAX: usize = 4;
    const PEERS: u64 = 4;
    const REQUESTS: u64 = 200;
    /// SETTINGS_INITIAL_WINDOW_SIZE: no response may be sent.
    const NO_WINDOW: (u16, u32) = (4, 0);
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.readers_max = READERS_MAX;
    let server = TestServer::start_with(data_dir, options).await;
    publish(&mut server.client().await, events("a", 0..1)).await;

    let mut peers = Vec::new();
    for number in 0..PEERS {
        let peer = Peer::greet_with(server.server.address(), &[NO_WINDOW]).await;
        let mut peer = peer.expect("settings");
        let mut bytes = frames::follow(1);
        bytes.extend(frames::call(3, "StreamingPublish"));
        for id in 0..REQUESTS {
            bytes.extend(request(
                3,
                flag::NONE,
                events("b", number * REQUESTS + id..number * REQUESTS + id + 1),
            ));
        }
        peer.send(&bytes).await.expect("sent");
        // It has its place before others try to take one.
        let admitted = peer.next_of(1).await.expect("a response");
        assert_eq!(
            (admitted.kind, admitted.flags),
            (kind::HEADERS, flag::END_HEADERS)
        );
        peers.push(peer);
    }
    let list_is_refused = async |server: &TestServer| {
        let listed = server.client().await.list_events(list_request("a")).await;
        listed.is_err_and(|status| status.code() == Code::ResourceExhausted)
    };
    patiently("every place is taken", async {
        while !list_is_refused(&server).await {}
    })
    .await;
    // Their responses are covered until they have been sent, and others are served.
    let client = &mut server.client().await;
    let acked = patiently("others", publish(client, vec![event("after", 1)])).await;
    assert_eq!(acked.unique_processed, 1);
    assert!(server.server.partition().ingest().held() > 0);

    drop(peers);
    patiently("the places are free", async {
        while list_is_refused(&server).await {}
    })
    .await;
    assert_serves(&server, "peers that went").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_for_http_is_a_bad_request() {
    let server = TestServer::start().await;
    for garbage in [
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\u{0} HTTP/1.1\r\n\r\n",
        "POST /publish HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        "POST /publish HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "POST /publish HTTP/1.1\r\nhost: t\r\ntransfer-encoding: xyz\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}\r\n\r\n",
    ] {
        let mut peer = Peer::connect(server.server.address())
            .await
            .expect("connected")
            .0;
        peer.write_all(garbage.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // Unread data can destroy the end of the connection.
        _ = patiently(garbage, peer.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 400 "),
            "{garbage:?}: {answer:?}"
        );
    }
    assert_serves(&server, "garbage").await;
}

/// The status of a Publish whose body is `bytes`.
async fn status_of(server: &TestServer, method: &str, bytes: Vec<u8>) -> Status {
    let uri = format!(
        "{}/oncelog.v1.AggregatorService/{method}",
        server.endpoint()
    );
    let request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(
            Full::new(Bytes::from(bytes)).map_err(|never| match never {}),
        ))
        .expect("a request");
    let mut channel = server.channel().await;
    std::future::poll_fn(|cx| channel.poll_ready(cx))
        .await
        .expect("ready");
    let (head, body) = channel.call(request).await.expect("answered").into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    let body = body.collect().await.expect("whole");
    let trailers = body.trailers().cloned().unwrap_or_default();
    Status::from_header_map(&trailers).expect("a status")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_message_gets_the_right_error() {
    let server = TestServer::start().await;
    let too_large = server.data_dir.options().request_bytes_max as u32 + 1;
    let valid = v1::PublishRequest {
        events: events("valid", 0..1),
    }
    .encode_to_vec();
    let bytes = valid.len() as u32;
    for (what, body, code, says) in [
        (
            "a length over the limit",
            frames::message(0, too_large, b""),
            Code::InvalidArgument,
            "--max-request-bytes",
        ),
        (
            "the largest length",
            frames::message(0, u32::MAX, b""),
            Code::InvalidArgument,
            "--max-request-bytes",
        ),
        (
            "a flag that is none",
            frames::message(7, bytes, &valid),
            Code::InvalidArgument,
            "compression flag",
        ),
        (
            "compressed, by what is not said",
            frames::message(1, bytes, &valid),
            Code::Internal,
            "compress",
        ),
        (
            "half a prefix",
            vec![0, 0],
            Code::InvalidArgument,
            "ended within a request",
        ),
        (
            "half a message",
            frames::message(0, bytes, &valid[..4]),
            Code::InvalidArgument,
            "ended within a request",
        ),
        (
            "no protobuf",
            frames::message(0, 4, &[0xff; 4]),
            Code::InvalidArgument,
            "request 0",
        ),
    ] {
        for method in ["Publish", "StreamingPublish"] {
            let reply = patiently(what, status_of(&server, method, body.clone())).await;
            assert_eq!(reply.code(), code, "{what}: {reply}");
            assert!(reply.message().contains(says), "{what}: {reply}");
        }
        assert_serves(&server, what).await;
    }
    // A message of no bytes is a request without events.
    for method in ["Publish", "StreamingPublish"] {
        let reply = status_of(&server, method, frames::message(0, 0, b"")).await;
        assert_eq!(reply.code(), Code::Ok, "{reply}");
    }
    assert_eq!(list(&mut server.client().await, "valid").await, []);
}
