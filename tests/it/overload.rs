//! Many streams, small budgets, stalled publishers, and readers that do not read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use oncelog::proto::v1::{self, ListEventsRequest, Outcome};
use oncelog_harness::frames::{self, Peer, flag, frame, kind};
use prost::Message as _;
use tokio::sync::{Barrier, mpsc};
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, Service as _, http},
};

use crate::support::{
    Counts, DataDir, PublishStream, TestServer, counters, event, event_with_data, list, outcomes,
    patiently, publish, sequences, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_publish_at_once() {
    const CONNECTIONS: u64 = 8;
    const STREAMS: u64 = 1000;
    let server = TestServer::start().await;
    let all_open = Arc::new(Barrier::new(STREAMS as usize));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(server.client().await);
    }
    let mut streams = Vec::new();
    for stream in 0..STREAMS {
        let mut client = clients[(stream % CONNECTIONS) as usize].clone();
        let all_open = Arc::clone(&all_open);
        streams.push(tokio::spawn(async move {
            let mut publisher = PublishStream::open(&mut client).await;
            let own = publisher.publish(vec![event("own", stream)]).await;
            assert_eq!(own[0].0, Outcome::Stored);
            // All of them have published, and none has ended.
            all_open.wait().await;
            let reply = publisher
                .publish(vec![event("shared", 0), event("more", stream)])
                .await;
            assert_eq!(reply[1].0, Outcome::Stored);
            reply[0]
        }));
    }
    let mut stored = Vec::new();
    let mut originals = Vec::new();
    for stream in streams {
        let reply = patiently("an ack", stream).await.expect("no panic");
        let (outcome, sequence) = reply;
        if outcome == Outcome::Stored {
            stored.push(sequence);
        } else {
            assert_eq!(outcome, Outcome::Duplicate);
        }
        originals.push(sequence);
    }
    assert_eq!(stored.len(), 1);
    originals.dedup();
    assert_eq!(originals, stored, "all outcomes name the stored one");
    let client = &mut clients[0];
    assert_eq!(
        counters(client).await,
        Counts::new().stored(2001).duplicates(999)
    );
    assert_eq!(list(client, "").await.len(), 2001);
}

const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// A server whose ingest budget has room for this many of its largest requests.
async fn start_with_budget(requests: usize) -> TestServer {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.event_bytes_max = REQUEST_BYTES_MAX;
    options.request_bytes_max = REQUEST_BYTES_MAX;
    options.partition.ingest_bytes_max = requests * REQUEST_BYTES_MAX;
    TestServer::start_with(data_dir, options).await
}

fn held(server: &TestServer) -> usize {
    server.server.partition().ingest().held()
}

/// A request of nearly the largest size.
fn large(topic: &str, id: u64) -> Vec<v1::Event> {
    let byte = u8::try_from(id % 251).expect("small");
    vec![event_with_data(
        topic,
        id,
        vec![byte; REQUEST_BYTES_MAX - 1024],
    )]
}

async fn publish_large(server: &TestServer, streams: u64, requests: u64) {
    let mut publishers = Vec::new();
    for stream in 0..streams {
        // Two streams per connection, and two streams of each kind.
        let mut client = server.client().await;
        for _ in 0..2 {
            let mut publisher = PublishStream::open(&mut client).await;
            publishers.push(tokio::spawn(async move {
                let topic = format!("topic-{stream}");
                let sender = publisher.requests.clone();
                let send = async move {
                    for id in 0..requests {
                        let events = large(&topic, id);
                        let request = v1::StreamingPublishRequest { events };
                        sender.send(request).await.expect("open");
                    }
                };
                let receive = async {
                    for _ in 0..requests {
                        let reply = publisher.receive().await.expect("alive").expect("an ack");
                        let [(Outcome::Stored | Outcome::Duplicate, _)] = outcomes(&reply)[..]
                        else {
                            panic!("{reply:?}");
                        };
                    }
                };
                tokio::join!(send, receive);
            }));
        }
    }
    for publisher in publishers {
        patiently("large requests", publisher)
            .await
            .expect("no panic");
    }
}

async fn assert_large(server: &TestServer, streams: u64, requests: u64) {
    let client = &mut server.client().await;
    for stream in 0..streams {
        let topic = format!("topic-{stream}");
        let stored = list(client, &topic).await;
        let stored: Vec<_> = stored.into_iter().filter_map(|s| s.event).collect();
        let expected: Vec<_> = (0..requests).flat_map(|id| large(&topic, id)).collect();
        assert!(stored == expected, "{} of {topic}", stored.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_one_request_is_shared_without_deadlock() {
    const STREAMS: u64 = 8;
    const REQUESTS: u64 = 6;
    let server = start_with_budget(1).await;
    publish_large(&server, STREAMS, REQUESTS).await;
    assert_large(&server, STREAMS, REQUESTS).await;
    let unique = STREAMS * REQUESTS;
    let expected = Counts::new().stored(unique).duplicates(unique);
    assert_eq!(counters(&mut server.client().await).await, expected);
    until("the budget is whole", || held(&server) == 0).await;
}

/// A StreamingPublish whose bytes are sent by hand.
struct HalfSent {
    parts: mpsc::Sender<Bytes>,
    rest: Bytes,
    _response: http::Response<Body>,
}

struct Parts(mpsc::Receiver<Bytes>);

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0
            .poll_recv(cx)
            .map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

impl HalfSent {
    /// Sends the first half of a request and waits until it is admitted.
    async fn start(server: &TestServer, events: Vec<v1::Event>) -> Self {
        let encoded = v1::StreamingPublishRequest { events }.encode_to_vec();
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(encoded.len() as u32);
        message.extend_from_slice(&encoded);
        let mut half = message.freeze();
        let rest = half.split_off(half.len() / 2);

        let (parts, body) = mpsc::channel(2);
        let before = held(server);
        parts.send(half).await.expect("open");
        let uri = format!(
            "{}/oncelog.v1.AggregatorService/StreamingPublish",
            server.endpoint()
        );
        let request = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Parts(body)))
            .expect("a request");
        let mut channel = server.channel().await;
        std::future::poll_fn(|cx| channel.poll_ready(cx))
            .await
            .expect("ready");
        let response = channel.call(request).await.expect("opened");
        until("the half is let in", || {
            held(server) >= before + encoded.len() / 2
        })
        .await;
        Self {
            parts,
            rest,
            _response: response,
        }
    }

    async fn finish(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        self.parts.send(rest).await.expect("open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_request_leaves_the_rest_of_the_budget_to_others() {
    let server = start_with_budget(2).await;
    let mut stalled = HalfSent::start(&server, large("stalled", 0)).await;
    publish_large(&server, 3, 5).await;
    assert_large(&server, 3, 5).await;
    let client = &mut server.client().await;
    assert_eq!(list(client, "stalled").await, []);
    // It continues, and is stored like any other.
    let follow = ListEventsRequest {
        topic: "stalled".to_owned(),
        follow: true,
        limit: 1,
        ..ListEventsRequest::default()
    };
    let stored = client.list_events(follow).await.expect("open");
    stalled.finish().await;
    let mut stored = stored.into_inner();
    let events = patiently("the stalled event", async {
        loop {
            let response = stored.message().await.expect("alive");
            let events = response.expect("an event").events;
            if !events.is_empty() {
                return events;
            }
        }
    })
    .await;
    assert_eq!(events[0].event, Some(large("stalled", 0).remove(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_goes_away_gives_its_share_back() {
    let server = start_with_budget(1).await;
    let stalled = HalfSent::start(&server, large("stalled", 0)).await;
    assert!(held(&server) > REQUEST_BYTES_MAX / 3, "no room for another");
    let mut client = server.client().await;
    let waiting = tokio::spawn(async move { publish(&mut client, large("a", 0)).await });
    drop(stalled);
    let reply = patiently("the share", waiting).await.expect("no panic");
    assert_eq!(reply.unique_processed, 1);
    let client = &mut server.client().await;
    assert_eq!(counters(client).await, Counts::new().stored(1));
}

/// More than the flow control windows of a connection hold.
pub const BACKLOG_EVENTS: u64 = 6000;
const DATA_BYTES: usize = 4096;

fn backlog(id: u64) -> v1::Event {
    let byte = u8::try_from(id % 251).expect("small");
    event_with_data("a", id, vec![byte; DATA_BYTES])
}

pub async fn publish_backlog(server: &TestServer, ids: std::ops::Range<u64>) {
    let client = &mut server.client().await;
    for first in ids.clone().step_by(200) {
        let ids = first..(first + 200).min(ids.end);
        let count = ids.end - ids.start;
        let reply = patiently("publishing", publish(client, ids.map(backlog).collect())).await;
        assert_eq!(reply.unique_processed, count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_stops_nobody_and_misses_nothing() {
    let server = TestServer::start().await;
    publish_backlog(&server, 0..BACKLOG_EVENTS).await;
    let mut stalled = Vec::new();
    for follow in [false, true] {
        let request = ListEventsRequest {
            topic: "a".to_owned(),
            follow,
            ..ListEventsRequest::default()
        };
        let opened = server.client().await.list_events(request).await;
        stalled.push(opened.expect("opened").into_inner());
    }

    const EVENTS: u64 = BACKLOG_EVENTS + 1000;
    publish_backlog(&server, BACKLOG_EVENTS..EVENTS).await;
    let client = &mut server.client().await;
    let all = patiently("another reader", list(client, "a")).await;
    assert_eq!(sequences(&all), (1..=EVENTS).collect::<Vec<_>>());

    // Without follow a list ends at the durable tail of its start.
    for (mut stream, count) in stalled.into_iter().zip([BACKLOG_EVENTS, EVENTS]) {
        let mut next = 0;
        while next < count {
            let response = patiently("the backlog", stream.message()).await;
            for stored in response.expect("alive").expect("more").events {
                assert_eq!(stored.sequence, next + 1);
                assert_eq!(stored.event, Some(backlog(next)));
                next += 1;
            }
        }
        assert_eq!(next, count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_sees_everything() {
    const ROUNDS: u64 = 30;
    let server = TestServer::start().await;
    let request = ListEventsRequest {
        topic: "a".to_owned(),
        follow: true,
        ..ListEventsRequest::default()
    };
    let client = &mut server.client().await;
    let mut stream = client
        .list_events(request)
        .await
        .expect("open")
        .into_inner();
    let mut seen = Vec::new();
    // It takes one response while hundreds of events are published, and falls behind.
    for round in 0..ROUNDS {
        publish_backlog(&server, round * 200..round * 200 + 200).await;
        let response = patiently("a response", stream.message()).await;
        seen.extend(response.expect("alive").expect("more").events);
    }
    while (seen.len() as u64) < ROUNDS * 200 {
        let response = patiently("the rest", stream.message()).await;
        seen.extend(response.expect("alive").expect("more").events);
    }
    for (id, stored) in (0..).zip(&seen) {
        assert_eq!(
            (stored.sequence, &stored.event),
            (id + 1, &Some(backlog(id)))
        );
    }
    assert_eq!(seen.len() as u64, ROUNDS * 200);
}

/// A request for more counters than a response may have gets that many.
#[tokio::test]
async fn counters_of_many_topics_are_capped() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let topics: Vec<_> = (0..10_001)
        .map(|topic| event(&format!("t{topic}"), 1))
        .collect();
    publish(client, topics).await;
    let request = v1::GetStatsRequest {
        max_topics: 100_000,
        ..v1::GetStatsRequest::default()
    };
    let stats = client.get_stats(request).await.expect("stats").into_inner();
    assert_eq!(stats.topics.len(), 10_000);
    assert_eq!(stats.topic_count, 10_001);
}

/// The largest request, as announced by its prefix.
const ANNOUNCED_BYTES: u32 = 4 * 1024 * 1024;
/// SETTINGS_INITIAL_WINDOW_SIZE. RFC 9113, section 6.5.2.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// An encoded event without fields, in an encoded request.
const EMPTY_EVENT: [u8; 2] = [1 << 3 | 2, 0];
const REQUEST_EVENTS: usize = 16_384;

pub async fn peer(server: &TestServer, settings: &[(u16, u32)]) -> Peer {
    let peer = Peer::greet_with(server.server.address(), settings).await;
    peer.expect("settings")
}

/// The ids of the streams that a client opens, in order.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|at| 2 * at + 1)
}

/// A publisher of one event, and of a large one, gets its acks in time.
async fn assert_acked_in_time(server: &TestServer, topic: &str) {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
    let client = &mut server.client().await;
    for (id, bytes) in [(1, 10), (2, 900_000)] {
        let events = vec![event_with_data(topic, id, vec![1; bytes])];
        let acked = tokio::time::timeout(LIMIT, publish(client, events)).await;
        assert_eq!(acked.expect("in time").unique_processed, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_announced_and_not_sent_hold_nothing() {
    let server = TestServer::start().await;
    let mut peers = Vec::new();
    for compressed in [0, 1] {
        let mut peer = peer(&server, &[]).await;
        for stream in streams(100) {
            let announced = frames::message(compressed, ANNOUNCED_BYTES, b"");
            let opened = [
                frames::call(stream, "StreamingPublish"),
                frame(kind::DATA, flag::NONE, stream, &announced),
            ];
            peer.send(&opened.concat()).await.expect("sent");
        }
        peers.push(peer);
    }
    assert_acked_in_time(&server, "others").await;
    until("nothing is held", || held(&server) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_responses_are_covered_until_they_have_been_sent() {
    // How much a stream may send before the server has read any of it.
    const STREAMS: u32 = 16;
    const REQUESTS: usize = 3;
    let server = TestServer::start().await;
    let mut rude = peer(&server, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let request = EMPTY_EVENT.repeat(REQUEST_EVENTS);
    let message = frames::message(0, request.len() as u32, &request);
    for stream in streams(STREAMS) {
        rude.send(&frames::call(stream, "StreamingPublish"))
            .await
            .expect("sent");
        for part in message.repeat(REQUESTS).chunks(16_384) {
            let part = frame(kind::DATA, flag::NONE, stream, part);
            rude.send(&part).await.expect("sent");
        }
    }
    let whole = server.data_dir.options().partition.ingest_bytes_max;
    let taken = || async { counters(&mut server.client().await).await.rejected as usize };
    patiently("all that there is room for", async {
        let mut before = 0;
        loop {
            let now = taken().await;
            if now > 0 && now == before {
                break;
            }
            before = now;
        }
    })
    .await;
    // A response has more than one byte per event.
    assert!(held(&server) > taken().await, "{}", held(&server));
    assert!(held(&server) <= whole, "{}", held(&server));
    assert_acked_in_time(&server, "others").await;
    drop(rude);
    until("the budget is whole", || held(&server) == 0).await;
}

#[tokio::test]
async fn a_single_unread_response_is_covered() {
    let server = TestServer::start().await;
    let mut rude = peer(&server, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let request = EMPTY_EVENT.repeat(REQUEST_EVENTS);
    let message = frames::message(0, request.len() as u32, &request);
    rude.send(&frames::call(1, "StreamingPublish"))
        .await
        .expect("sent");
    for part in message.chunks(16_384) {
        let part = frame(kind::DATA, flag::NONE, 1, part);
        rude.send(&part).await.expect("sent");
    }
    patiently("the request is taken", async {
        while counters(&mut server.client().await).await.rejected == 0 {}
    })
    .await;
    // Its response is made long before all of these.
    assert_acked_in_time(&server, "others").await;
    for _ in 0..20 {
        counters(&mut server.client().await).await;
    }
    // It has more than one byte per event.
    assert!(held(&server) > REQUEST_EVENTS, "{}", held(&server));
    drop(rude);
    until("the budget is whole", || held(&server) == 0).await;
}

#[tokio::test]
async fn a_call_without_events_is_small_and_comes_in_time() {
    let server = TestServer::start().await;
    let mut slow = peer(&server, &[]).await;
    for (stream, announced) in [(1, ANNOUNCED_BYTES), (3, 100)] {
        let message = frames::message(0, announced, b"half");
        let opened = [
            frames::call(stream, "GetEvent"),
            frame(kind::DATA, flag::NONE, stream, &message),
        ];
        slow.send(&opened.concat()).await.expect("sent");
    }
    let refused = patiently("a status", slow.next_of(1)).await.expect("alive");
    assert_eq!(refused.kind, kind::HEADERS);
    tokio::time::pause();
    let late = slow.next_of(3).await.expect("alive");
    assert_eq!(late.kind, kind::HEADERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_on_many_streams_at_once_are_only_held_back() {
    const STREAMS: u64 = 64;
    const DATA: usize = 250 * 1000;
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut publishers = Vec::new();
    for stream in 0..STREAMS {
        let mut client = client.clone();
        publishers.push(tokio::spawn(async move {
            let byte = u8::try_from(stream).expect("small");
            let events =
                (0..4).map(|id| event_with_data(&stream.to_string(), id, vec![byte; DATA]));
            publish(&mut client, events.collect())
                .await
                .unique_processed
        }));
    }
    for publisher in publishers {
        let stored = patiently("an ack", publisher).await.expect("acked");
        assert_eq!(stored, 4);
    }
    until("the budget is whole", || held(&server) == 0).await;
}
