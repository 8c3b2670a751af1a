//! The index while it is constantly sealed and merged.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use oncelog::{
    event::Sequence,
    index::IndexOptions,
    proto::v1::{self, Outcome},
    server::ServerOptions,
};

use crate::support::{
    Client, DataDir, PublishStream, TestServer, counters, event, event_with_data, get_event, list,
    oncelog, patiently, run, try_publish, until, xorshift,
};

const TOPICS: u64 = 3;
const PUBLISHERS: u64 = 4;
const EVENTS_PER_PUBLISHER: u64 = 1500;
const EVENTS: u64 = PUBLISHERS * EVENTS_PER_PUBLISHER;
const EVENTS_PER_REQUEST: usize = 20;
const RESENDS_PERCENT: u64 = 30;

fn options(data_dir: &DataDir) -> ServerOptions {
    let mut options = data_dir.options();
    options.partition.index = IndexOptions {
        keys_per_generation: 200,
        merge_fanout: 2,
        ..IndexOptions::default()
    };
    options
}

fn topic(id: u64) -> String {
    format!("topic-{}", id % TOPICS)
}

fn sent(id: u64) -> v1::Event {
    event(&topic(id), id)
}

/// All acks so far: the sequence of each id.
type Acked = Arc<Mutex<HashMap<u64, Sequence>>>;

fn of(acked: &Acked, id: u64) -> Option<Sequence> {
    acked.lock().expect("no panic").get(&id).copied()
}

/// Publishes the ids that are `publisher` modulo the number of publishers, and resends of any acked ones.
async fn publish(mut client: Client, publisher: u64, acked: Acked) {
    let mut stream = PublishStream::open(&mut client).await;
    let mut random = publisher + 1;
    let mut next = 0;
    while next < EVENTS_PER_PUBLISHER {
        let mut ids = Vec::new();
        while ids.len() < EVENTS_PER_REQUEST && next < EVENTS_PER_PUBLISHER {
            random = xorshift(random);
            let other = (random >> 8) % (next * PUBLISHERS + 1);
            if random % 100 < RESENDS_PERCENT && of(&acked, other).is_some() {
                ids.push(other);
            } else {
                ids.push(next * PUBLISHERS + publisher);
                next += 1;
            }
        }
        let reply = stream.publish(ids.iter().map(|id| sent(*id)).collect());
        let reply = patiently("an ack", reply).await;
        let mut acked = acked.lock().expect("no panic");
        for (id, (outcome, sequence)) in ids.into_iter().zip(reply) {
            match acked.insert(id, sequence) {
                None => assert_eq!(outcome, Outcome::Stored, "{id}"),
                Some(known) => {
                    assert_eq!((outcome, sequence), (Outcome::Duplicate, known), "{id}");
                }
            }
        }
    }
}

/// Follows a topic until all its events are there.
async fn follow(mut client: Client, topic: String, count: usize) -> Vec<v1::StoredEvent> {
    let request = v1::ListEventsRequest {
        topic,
        follow: true,
        limit: count as u64,
        ..v1::ListEventsRequest::default()
    };
    let mut stream = client
        .list_events(request)
        .await
        .expect("open")
        .into_inner();
    let mut seen = Vec::new();
    while let Some(response) = stream.message().await.expect("alive") {
        seen.extend(response.events);
    }
    seen
}

/// Looks up acked events until stopped. Returns how many look-ups it made.
async fn ask(mut client: Client, acked: Acked, stop: Arc<AtomicBool>) -> u64 {
    let mut random = 99;
    let mut asked = 0;
    while !stop.load(SeqCst) {
        random = xorshift(random);
        let id = random % EVENTS;
        let Some(sequence) = of(&acked, id) else {
            tokio::task::yield_now().await;
            continue;
        };
        let stored = get_event(&mut client, &topic(id), &id.to_string()).await;
        let stored = stored.expect("acked, so it is there");
        assert_eq!(stored.sequence, sequence);
        assert_eq!(stored.event, Some(sent(id)));
        asked += 1;
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_followers_and_lookups_agree_while_it_is_merged() {
    let data_dir = DataDir::new();
    let server = TestServer::start_with(data_dir.clone(), options(&data_dir)).await;
    let acked = Acked::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut followers = Vec::new();
    for topic in 0..TOPICS {
        let count = (0..EVENTS).filter(|id| id % TOPICS == topic).count();
        let name = format!("topic-{topic}");
        followers.push(tokio::spawn(follow(server.client().await, name, count)));
    }
    let asking = ask(server.client().await, Arc::clone(&acked), Arc::clone(&stop));
    let asking = tokio::spawn(asking);
    let mut publishers = Vec::new();
    for publisher in 0..PUBLISHERS {
        let client = server.client().await;
        publishers.push(tokio::spawn(publish(client, publisher, Arc::clone(&acked))));
    }
    for publisher in publishers {
        publisher.await.expect("no panic");
    }
    stop.store(true, SeqCst);
    assert!(asking.await.expect("no panic") > 0);

    let client = &mut server.client().await;
    let acked = acked.lock().expect("no panic").clone();
    assert_eq!(acked.len() as u64, EVENTS);
    let mut followed = 0;
    for (topic, follower) in (0..TOPICS).zip(followers) {
        let seen = patiently("all of a topic", follower)
            .await
            .expect("no panic");
        assert_eq!(seen, list(client, &format!("topic-{topic}")).await);
        assert!(seen.is_sorted_by_key(|stored| stored.sequence));
        for stored in &seen {
            let event = stored.event.as_ref().expect("an event");
            let id = event.event_id.parse().expect("a number");
            assert_eq!(acked.get(&id), Some(&stored.sequence));
        }
        followed += seen.len() as u64;
    }
    assert_eq!(followed, EVENTS);
    let unique = counters(client).await.stored;
    assert_eq!(unique, EVENTS);

    let data_dir = server.stop().await;
    let generations = data_dir.generations().len() as u64;
    assert!(
        (1..EVENTS / 200).contains(&generations),
        "{generations} generations: none was merged"
    );
    let verify = run(oncelog(&["verify", "--data-dir"]).arg(data_dir.path()));
    verify.assert_code(0);

    let options = options(&data_dir);
    let server = TestServer::start_with(data_dir, options).await;
    let mut stream = PublishStream::open(&mut server.client().await).await;
    let ids: Vec<u64> = (0..EVENTS).collect();
    for ids in ids.chunks(500) {
        let reply = stream
            .publish(ids.iter().map(|id| sent(*id)).collect())
            .await;
        let expected = ids.iter().map(|id| (Outcome::Duplicate, acked[id]));
        assert_eq!(reply, expected.collect::<Vec<_>>());
    }
}

/// The part of xxh3-64's public secret that is mixed with every 16 bytes of a text of 129 to 240.
#[rustfmt::skip]
const XXH3_SECRET: [u8; 16 * 8] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
];

/// Two contents of one key with the same xxh3-64: in a block of 16 bytes whose first half equals the secret's, the
/// other half is multiplied by zero.
fn colliding() -> [v1::Event; 2] {
    let first = event_with_data("orders", 1, vec![0x11; 160]);
    let encoded = first.encode_to_vec();
    let data_at = encoded.len() - 160;
    let block = data_at.next_multiple_of(16);
    [0x22, 0x33].map(|other| {
        let mut data = vec![0x11; 160];
        let at = block - data_at;
        data[at..at + 8].copy_from_slice(&XXH3_SECRET[block..block + 8]);
        data[at + 8..at + 16].fill(other);
        event_with_data("orders", 1, data)
    })
}

#[tokio::test]
async fn a_conflict_is_reported_whatever_its_public_hash() {
    let [one, other] = colliding();
    let [one_hash, other_hash] = [&one, &other].map(|event| xxh3_64(&event.encode_to_vec()));
    assert_eq!(one_hash, other_hash, "the contents are chosen well");
    let data_dir = DataDir::new();
    let server = TestServer::start_with(data_dir.clone(), options(&data_dir)).await;
    let mut stream = PublishStream::open(&mut server.client().await).await;
    let reply = stream.publish(vec![one.clone(), other.clone()]).await;
    assert_eq!(reply, [(Outcome::Stored, 1), (Outcome::Conflict, 1)]);
    // In a generation, in memory, and after a restart.
    for ids in [2..=500, 501..=1000] {
        stream.publish(ids.map(sent).collect()).await;
    }
    drop(stream);
    until("a seal", || !data_dir.generations().is_empty()).await;
    let server = server.restart().await;
    let mut stream = PublishStream::open(&mut server.client().await).await;
    let reply = stream.publish(vec![other, one]).await;
    assert_eq!(reply, [(Outcome::Conflict, 1), (Outcome::Duplicate, 1)]);
}

/// What an operator can do about an index that the disk cannot read: the message says it, and it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_cannot_be_opened_is_removed_and_rebuilt() {
    let server = TestServer::start().await;
    let ids = || (0..100).map(|id| event("a", id)).collect::<Vec<_>>();
    let stored = try_publish(&mut server.client().await, vec![ids()]).await;
    assert_eq!(stored.expect("acked").unique_processed, 100);
    let data_dir = server.stop().await;
    let index = data_dir.path().join("index");
    // Reading a folder fails for everyone.
    let secret = index.join("secret");
    std::fs::remove_file(&secret).expect("is there");
    std::fs::create_dir(&secret).expect("created");
    for _ in 0..2 {
        let refused = TestServer::try_start(data_dir.clone(), data_dir.options()).await;
        let refused = refused.err().expect("it cannot be opened").to_string();
        assert!(
            refused.contains("remove the folder of the index"),
            "{refused}"
        );
        assert!(refused.contains("index"), "{refused}");
    }
    std::fs::remove_dir_all(&index).expect("removed");
    let server = TestServer::start_in(data_dir).await;
    let resent = try_publish(&mut server.client().await, vec![ids()]).await;
    assert_eq!(resent.expect("acked").duplicate_dropped, 100);
}
