//! The client of this crate against a program that is killed again and again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use oncelog::{
    client::{Publisher, PublisherOptions, Reader, ReaderOptions},
    event::Sequence,
    proto::v1::{self, Outcome},
};

use crate::support::{
    DataDir, Process, counters, event_with_data, list, patiently, publish, until,
};

const KILLS: u64 = 3;
const EVENTS_PER_REQUEST: u64 = 10;
/// The least number of events acked between two kills.
const EVENTS_PER_ROUND: u64 = 300;
const IN_FLIGHT: usize = 16;

fn sent(id: u64) -> v1::Event {
    event_with_data("a", id, id.to_be_bytes().repeat(32))
}

/// Publishes until stopped, and a little more. Returns the sequence of each id.
async fn publish_all(
    endpoint: String,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
) -> Vec<Sequence> {
    let options = PublisherOptions {
        requests_in_flight_max: IN_FLIGHT,
        ..PublisherOptions::default()
    };
    let publisher = Publisher::connect(&endpoint, options).expect("an address");
    let mut waiting = std::collections::VecDeque::new();
    let mut sequences = Vec::new();
    let mut next = 0;
    let mut requests_left = 20;
    loop {
        if requests_left > 0 {
            let ids = next..next + EVENTS_PER_REQUEST;
            next = ids.end;
            let ack = publisher.send(ids.map(sent).collect()).await;
            waiting.push_back(ack.expect("sent"));
            requests_left -= u64::from(stop.load(SeqCst));
        }
        if waiting.len() < IN_FLIGHT && requests_left > 0 {
            continue;
        }
        let Some(ack) = waiting.pop_front() else {
            break;
        };
        let outcomes = ack.await.expect("acked");
        assert_eq!(outcomes.len() as u64, EVENTS_PER_REQUEST);
        for reply in outcomes {
            // A duplicate was stored by an attempt whose ack was lost.
            assert!(
                matches!(reply.outcome(), Outcome::Stored | Outcome::Duplicate),
                "{reply:?}"
            );
            sequences.push(reply.sequence);
        }
        acked.store(sequences.len() as u64, SeqCst);
    }
    publisher.finish().await.expect("everything is acked");
    sequences
}

/// Follows until `end` events are there, once that number is known.
async fn follow(endpoint: String, end: Arc<AtomicU64>) -> Vec<v1::StoredEvent> {
    let request = v1::ListEventsRequest {
        topic: "a".to_owned(),
        follow: true,
        ..v1::ListEventsRequest::default()
    };
    let mut reader = Reader::connect(&endpoint, request, ReaderOptions::default());
    let reader = reader.as_mut().expect("an address");
    let mut seen = Vec::new();
    while (seen.len() as u64) < end.load(SeqCst) {
        let response = reader.next().await.expect("a list").expect("no end");
        seen.extend(response.events);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_and_reader_outlive_the_server() {
    let data_dir = DataDir::new();
    let mut server = Process::start(&data_dir);
    let address = server.address.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let acked = Arc::new(AtomicU64::new(0));
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let publisher = tokio::spawn(publish_all(
        server.endpoint(),
        Arc::clone(&stop),
        Arc::clone(&acked),
    ));
    let reader = tokio::spawn(follow(server.endpoint(), Arc::clone(&end)));
    for _ in 0..KILLS {
        let enough = acked.load(SeqCst) + EVENTS_PER_ROUND;
        until("publishing goes on", || {
            assert!(!publisher.is_finished() && !reader.is_finished());
            acked.load(SeqCst) >= enough
        })
        .await;
        server.kill();
        server = Process::start_again(&data_dir, &address);
    }
    stop.store(true, SeqCst);
    let sequences = patiently("all acks", publisher).await.expect("no panic");
    let count = sequences.len() as u64;
    assert!(count > KILLS * EVENTS_PER_ROUND);
    assert_eq!(sequences, (1..=count).collect::<Vec<_>>());

    let client = &mut server.client().await;
    assert_eq!(counters(client).await.stored, count);
    // One more wakes the reader.
    end.store(count + 1, SeqCst);
    publish(client, vec![sent(count)]).await;
    let stored = list(client, "a").await;
    let seen = patiently("all events", reader).await.expect("no panic");
    assert_eq!(seen, stored);
    for (id, stored) in (0..).zip(stored) {
        assert_eq!(stored.event, Some(sent(id)));
        assert_eq!(stored.sequence, id + 1);
    }
    assert_eq!(seen.len() as u64, count + 1);
}
