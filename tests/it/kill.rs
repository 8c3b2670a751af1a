//! kill -9 of the real program under load.

use std::collections::{BTreeMap, HashSet};

use oncelog::{event::Sequence, proto::v1::Outcome};

use crate::support::{
    Client, DataDir, Process, PublishStream, counters, event_with_data, list, outcomes, publish,
};

fn sent(id: u64) -> oncelog::proto::v1::Event {
    event_with_data(
        ["a", "b", "c"][(id % 3) as usize],
        id,
        id.to_be_bytes().repeat(32),
    )
}

/// The acks: the sequence of each id.
type Acked = BTreeMap<u64, Sequence>;

/// Publishes ids until the connection breaks; every second request repeats earlier ones.
async fn publish_until_killed(mut client: Client, first: u64) -> Acked {
    let mut stream = PublishStream::open(&mut client).await;
    let mut acked = Acked::new();
    let mut waiting = std::collections::VecDeque::new();
    let mut request = 0;
    loop {
        let begin = first + request / 2 * 20;
        let ids: Vec<u64> = (begin..begin + 20).collect();
        let events = ids.iter().map(|id| sent(*id)).collect();
        let message = oncelog::proto::v1::StreamingPublishRequest { events };
        if stream.requests.send(message).await.is_err() {
            break;
        }
        waiting.push_back(ids);
        request += 1;
        if waiting.len() < 8 {
            continue;
        }
        let Ok(Some(response)) = stream.receive().await else {
            break;
        };
        let ids = waiting.pop_front().expect("a request");
        for (id, (outcome, sequence)) in ids.into_iter().zip(outcomes(&response)) {
            assert!(
                matches!(outcome, Outcome::Stored | Outcome::Duplicate),
                "{outcome:?}"
            );
            assert_eq!(*acked.entry(id).or_insert(sequence), sequence);
        }
    }
    acked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acked_is_lost_and_nothing_is_stored_twice() {
    const ROUNDS: u64 = 5;
    const STREAMS: u64 = 4;
    /// More than a stream publishes in a round.
    const IDS: u64 = 1_000_000;
    let data_dir = DataDir::new();
    let mut acked = Acked::new();
    for round in 0..ROUNDS {
        let mut process = Process::start(&data_dir);
        let mut publishers = Vec::new();
        for stream in 0..STREAMS {
            // Pairs of streams publish the same events.
            let first = (round * STREAMS + stream / 2) * IDS;
            publishers.push(tokio::spawn(publish_until_killed(
                process.client().await,
                first,
            )));
        }
        let client = &mut process.client().await;
        let enough = counters(client).await.stored + 500 + round * 700;
        while counters(client).await.stored < enough {}
        process.kill();
        for publisher in publishers {
            for (id, sequence) in publisher.await.expect("no panic") {
                assert_eq!(*acked.entry(id).or_insert(sequence), sequence);
            }
        }
        assert!(!acked.is_empty());

        let process = Process::start(&data_dir);
        let client = &mut process.client().await;
        let stored = list(client, "").await;
        let mut places = BTreeMap::new();
        for stored in &stored {
            let event = stored.event.clone().expect("an event");
            let id = event.event_id.parse().expect("a number");
            assert_eq!(event, sent(id));
            assert_eq!(places.insert(id, stored.sequence), None, "stored twice");
        }
        for (id, sequence) in &acked {
            assert_eq!(places.get(id), Some(sequence), "acked and lost");
        }
        // Resending everything stores the rest once.
        let all: HashSet<u64> = places.keys().chain(acked.keys()).copied().collect();
        let more = (0..50).map(|n| (round * STREAMS + 3) * IDS + n);
        let mut resent: Vec<u64> = all.iter().copied().chain(more).collect();
        resent.sort_unstable();
        let mut unique = 0;
        for ids in resent.chunks(1000) {
            let response = publish(client, ids.iter().map(|id| sent(*id)).collect()).await;
            assert_eq!(response.conflicts, 0);
            unique += response.unique_processed;
        }
        assert_eq!(unique, 50);
        assert_eq!(list(client, "").await.len(), places.len() + 50);
    }
}
