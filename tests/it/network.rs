//! Networks that cut, stall, delay, truncate and vanish, and more connections than allowed.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use oncelog::{
    client::{PendingAck, Publisher, PublisherOptions, Reader, ReaderOptions},
    event::Sequence,
    proto::v1::{self, Outcome},
};
use oncelog_harness::{
    frames::{self, Peer, flag, frame, kind},
    proxy::{Proxy, SOUND, draw},
};
use tokio::{
    io::AsyncReadExt as _,
    task::{JoinHandle, JoinSet},
};

use crate::support::{
    DataDir, PublishStream, TestServer, event, event_with_data, events, list, patiently, publish,
    stats, until, xorshift,
};

const TOPICS: [&str; 2] = ["a", "b"];
/// How many publishers send the same events of a topic, each of them all.
const PUBLISHERS_PER_TOPIC: usize = 2;
const EVENTS_PER_REQUEST: u64 = 10;
const DATA_BYTES: usize = 200;
const IN_FLIGHT: usize = 8;
/// How long a network may do nothing before its connection counts as broken.
const STALL_MAX: Duration = Duration::from_millis(250);

fn sent(topic: &str, id: u64) -> v1::Event {
    event_with_data(topic, id, id.to_be_bytes().repeat(DATA_BYTES / 8))
}

/// Publishers and readers behind a proxy, at work.
struct Load {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    publishers: JoinSet<(&'static str, Vec<Sequence>)>,
    /// The topic of each reader, empty for all.
    readers: Vec<(&'static str, JoinHandle<Vec<v1::StoredEvent>>)>,
    /// How many events there are of each topic, and in total, once known.
    counts: Vec<Arc<AtomicU64>>,
}

impl Load {
    fn start(endpoint: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(0));
        let mut publishers = JoinSet::new();
        for topic in TOPICS {
            for _ in 0..PUBLISHERS_PER_TOPIC {
                let publish = publish_all(
                    endpoint.to_owned(),
                    topic,
                    Arc::clone(&stop),
                    Arc::clone(&acked),
                );
                publishers.spawn(publish);
            }
        }
        let mut readers = Vec::new();
        let mut counts = Vec::new();
        for topic in TOPICS.into_iter().chain([""]) {
            let count = Arc::new(AtomicU64::new(u64::MAX));
            let follow = follow(endpoint.to_owned(), topic, Arc::clone(&count));
            readers.push((topic, tokio::spawn(follow)));
            counts.push(count);
        }
        Self {
            stop,
            acked,
            publishers,
            readers,
            counts,
        }
    }

    fn acked(&self) -> u64 {
        self.acked.load(SeqCst)
    }

    /// Ends the load, and checks every promise.
    async fn finish(mut self, server: &TestServer) {
        self.stop.store(true, SeqCst);
        let mut reported: [Vec<Sequence>; TOPICS.len()] = Default::default();
        while let Some(publisher) = patiently("all acks", self.publishers.join_next()).await {
            let (topic, sequences) = publisher.expect("no panic");
            let reported = &mut reported[TOPICS.iter().position(|t| *t == topic).expect("a topic")];
            let both = reported.len().min(sequences.len());
            assert_eq!(reported[..both], sequences[..both], "of the same events");
            if sequences.len() > both {
                *reported = sequences;
            }
        }
        let client = &mut server.client().await;
        let mut all = 0;
        for (topic, reported) in TOPICS.into_iter().zip(&reported) {
            let stored = list(client, topic).await;
            assert_eq!(
                stored.len(),
                reported.len(),
                "each event is stored once, in its order"
            );
            for ((id, stored), sequence) in (0..).zip(&stored).zip(reported) {
                assert_eq!(
                    (stored.sequence, &stored.event),
                    (*sequence, &Some(sent(topic, id)))
                );
            }
            all += stored.len() as u64;
        }
        assert_eq!(stats(client).await.unique_processed, all);

        // One more of each topic wakes every reader.
        let ends = reported.iter().map(|reported| reported.len() as u64 + 1);
        let ends = ends.chain([all + TOPICS.len() as u64]);
        for (count, end) in self.counts.iter().zip(ends) {
            count.store(end, SeqCst);
        }
        for topic in TOPICS {
            publish(client, vec![event(topic, "the last")]).await;
        }
        for (topic, reader) in self.readers {
            let seen = patiently("a reader", reader).await.expect("no panic");
            assert_eq!(seen, list(client, topic).await, "of topic {topic:?}");
        }
    }
}

/// Publishes events 0, 1, 2 and so on until stopped. Returns their sequences.
async fn publish_all(
    endpoint: String,
    topic: &'static str,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
) -> (&'static str, Vec<Sequence>) {
    let options = PublisherOptions {
        requests_in_flight_max: IN_FLIGHT,
        ack_timeout: STALL_MAX,
        ..PublisherOptions::default()
    };
    let publisher = Publisher::connect(&endpoint, options).expect("an address");
    let mut sequences = Vec::new();
    let mut take = async |ack: PendingAck| {
        for outcome in ack.await.expect("acked") {
            assert!(
                matches!(outcome.outcome(), Outcome::Stored | Outcome::Duplicate),
                "{outcome:?}"
            );
            sequences.push(outcome.sequence);
        }
        acked.fetch_add(EVENTS_PER_REQUEST, SeqCst);
    };
    let mut waiting = VecDeque::new();
    for request in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        let ids = request * EVENTS_PER_REQUEST..(request + 1) * EVENTS_PER_REQUEST;
        let events = ids.map(|id| sent(topic, id)).collect();
        waiting.push_back(publisher.send(events).await.expect("sent"));
        if waiting.len() == IN_FLIGHT
            && let Some(ack) = waiting.pop_front()
        {
            take(ack).await;
        }
    }
    for ack in waiting {
        take(ack).await;
    }
    publisher.finish().await.expect("everything is acked");
    (topic, sequences)
}

/// Follows a topic until it has seen `count` events.
async fn follow(endpoint: String, topic: &str, count: Arc<AtomicU64>) -> Vec<v1::StoredEvent> {
    let request = v1::ListEventsRequest {
        topic: topic.to_owned(),
        follow: true,
        ..v1::ListEventsRequest::default()
    };
    let options = ReaderOptions {
        silence_max: STALL_MAX,
        ..ReaderOptions::default()
    };
    let mut reader = Reader::connect(&endpoint, request, options).expect("an address");
    let mut seen = Vec::new();
    while (seen.len() as u64) < count.load(SeqCst) {
        let response = reader.next().await.expect("a list").expect("no end");
        seen.extend(response.events);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_gets_through_a_bad_network_once() {
    const CONNECTIONS: u64 = 40;
    /// The most bytes that pass before a connection fails.
    const BYTES_MAX: u64 = 128 * 1024;
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.server.address(), |number| {
        if number < CONNECTIONS {
            draw(xorshift(xorshift((number + 1) << 16)), BYTES_MAX)
        } else {
            SOUND
        }
    });
    let proxy = proxy.await.expect("a port");
    let load = Load::start(&proxy.endpoint());
    until("many connections have failed", || {
        proxy.opened() > CONNECTIONS
    })
    .await;
    load.finish(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_in_mid_stream_is_found_again() {
    const RESTARTS: usize = 4;
    const EVENTS_BETWEEN: u64 = 400;
    let mut server = TestServer::start().await;
    let proxy = Proxy::start(server.server.address(), |_| SOUND).await;
    let proxy = proxy.expect("a port");
    let load = Load::start(&proxy.endpoint());
    for _ in 0..RESTARTS {
        let enough = load.acked() + EVENTS_BETWEEN;
        until("publishing goes on", || load.acked() >= enough).await;
        server = patiently("a restart", server.restart()).await;
        proxy.redirect(server.server.address());
    }
    load.finish(&server).await;
}

/// Waits in virtual time, as long as it takes.
async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    const SECONDS_MAX: u64 = 300;
    let waited = tokio::time::timeout(Duration::from_secs(SECONDS_MAX), future).await;
    waited.unwrap_or_else(|_| panic!("not within {SECONDS_MAX} s: {what}"))
}

fn call_with(message: &[u8]) -> Vec<u8> {
    [
        frames::call(1, "StreamingPublish"),
        frame(kind::DATA, flag::NONE, 1, message),
    ]
    .concat()
}

#[tokio::test]
async fn peers_that_vanish_are_given_up() {
    const MESSAGE_BYTES: u32 = 10_000;
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.server.address(), |_| SOUND).await;
    let proxy = proxy.expect("a port");
    let half = call_with(&frames::message(
        0,
        MESSAGE_BYTES,
        &[0; MESSAGE_BYTES as usize / 2],
    ));
    let list = frames::follow(1);
    let mut peers = Vec::new();
    for bytes in [&[][..], &half, &half[..20], &list] {
        let mut peer = Peer::greet(proxy.address).await.expect("settings");
        peer.send(bytes).await.expect("sent");
        peers.push(peer);
    }
    let ingest = server.server.partition().ingest();
    until("half a request is let in", || ingest.held() > 0).await;

    proxy.vanish();
    tokio::time::pause();
    let mut closed = proxy.closed_by_server();
    let all = closed.wait_for(|closed| *closed == peers.len() as u64);
    in_time("the server gives up", all).await.expect("a proxy");
    tokio::time::resume();
    until("the budget is whole", || ingest.held() == 0).await;
    publish(&mut server.client().await, vec![event("a", 1)]).await;
}

#[tokio::test]
async fn a_client_gives_up_a_server_that_vanishes() {
    let server = TestServer::start().await;
    let address = server.server.address();
    let lost = Proxy::start(address, |_| SOUND).await.expect("a port");
    let proxy = Proxy::start(lost.address, |_| SOUND).await.expect("a port");
    let options = PublisherOptions {
        ack_timeout: Duration::from_millis(500),
        ..PublisherOptions::default()
    };
    let publisher = Publisher::connect(&proxy.endpoint(), options);
    let publisher = publisher.expect("an address");
    let ack = publisher.send(events("a", 0..5)).await.expect("sent");
    assert_eq!(ack.await.expect("acked").len(), 5);

    lost.vanish();
    proxy.redirect(address);
    let ack = publisher.send(events("a", 5..9)).await.expect("sent");
    assert_eq!(in_time("an ack", ack).await.expect("acked").len(), 4);
    assert_eq!(list(&mut server.client().await, "a").await.len(), 9);
}

#[tokio::test]
async fn a_header_must_arrive_in_time() {
    let server = TestServer::start().await;
    let http1 = b"GET /stats HTTP/1.1\r\nhost: t\r\nx: ";
    for (what, greets, bytes) in [
        ("silence", false, &b""[..]),
        ("half a preface", false, &frames::PREFACE[..20]),
        ("half a header of HTTP/1.1", false, http1),
        (
            "half a frame",
            true,
            &frames::call(1, "StreamingPublish")[..20],
        ),
        (
            "half a header of HTTP/2",
            true,
            &frame(
                kind::HEADERS,
                flag::NONE,
                1,
                &frames::call_fields("Publish"),
            ),
        ),
    ] {
        let peer = if greets {
            Peer::greet(server.server.address()).await
        } else {
            Peer::connect(server.server.address()).await
        };
        let mut peer = peer.expect("connected");
        peer.send(bytes).await.expect("sent");
        tokio::time::pause();
        let mut rest = Vec::new();
        // Cleanly or not.
        _ = in_time(what, peer.0.read_to_end(&mut rest)).await;
        tokio::time::resume();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_closed() {
    const CONNECTIONS_MAX: usize = 3;
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.connections_max = CONNECTIONS_MAX;
    let server = TestServer::start_with(data_dir, options).await;
    let address = server.server.address();
    let mut client = server.client().await;
    let mut stream = PublishStream::open(&mut client).await;
    let mut peers = Vec::new();
    for _ in 1..CONNECTIONS_MAX {
        peers.push(Peer::greet(address).await.expect("settings"));
    }
    for _ in 0..CONNECTIONS_MAX {
        Peer::greet(address).await.err().expect("closed");
    }
    // Open connections are served, and closing one frees its place.
    let [(Outcome::Stored, _)] = stream.publish(events("a", 0..1)).await[..] else {
        panic!("not stored");
    };
    peers.pop();
    patiently("a place", async {
        while Peer::greet(address).await.is_err() {}
    })
    .await;
}
