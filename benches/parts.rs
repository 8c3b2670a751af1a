//! The parts of the write and read path, one at a time: `cargo bench`.
//!
//! Events are 350 bytes, keys a topic of ten and a UUIDv4-like id, as in the end-to-end benchmark (`bench/`),
//! which also measures the RPC without a store (`--stores null`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::{Bencher, black_box, counter::ItemsCount};
use oncelog::{
    event::{Event, EventId, Key, Sequence, Topic},
    index::{Entry, Index, IndexOptions, KeyHash, View},
    log::{Batch, BatchBuilder, FileLog, FileLogOptions, Log as _},
    platform::Platform,
    proto::v1::{self, event::Payload},
};
use prost::Message as _;
use tempfile::TempDir;

/// Events in a batch: a single one, one request, and many requests together.
const BATCHES: [u64; 3] = [1, 256, 4096];
/// How many keys are looked up.
const LOOKUPS: u64 = 4096;
/// The number of keys in the index searched, and in each generation sealed.
const KEYS: u64 = 256 * 1024;
const KEYS_PER_GENERATION: u64 = 64 * 1024;
/// How long the sealer may take.
const SEALED_WITHIN: Duration = Duration::from_secs(60);

fn main() {
    divan::main();
}

/// George Marsaglia, "Xorshift RNGs", 2003; a few rounds decorrelate neighbours.
fn random(number: u64) -> u64 {
    (0..4).fold(number + 1, |mut x, _| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^ (x << 17)
    })
}

fn topic(number: u64) -> String {
    format!("topic-{}", number % 10)
}

fn id(number: u64) -> String {
    let [a, b] = [random(number), random(!number >> 1)];
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{number:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 48 & 0xfff,
    )
}

fn key(number: u64) -> Key {
    let topic = Topic::new(&topic(number)).expect("valid");
    Key::new(&topic, &EventId::new(&id(number)).expect("valid"))
}

fn entry(number: u64) -> Entry {
    Entry {
        sequence: number + 1,
        content_hash: random(number),
    }
}

fn encoded(number: u64) -> Bytes {
    let payload: Vec<u8> = (0..32)
        .flat_map(|word| random(number ^ word << 40).to_be_bytes())
        .collect();
    let event = v1::Event {
        topic: topic(number),
        event_id: id(number),
        timestamp: Some(prost_types::Timestamp {
            seconds: 1_767_225_600 + number as i64,
            nanos: 500_000_000,
        }),
        source: "checkout.eu-west-1.shop".to_owned(),
        payload: Some(Payload::Data(payload.into())),
        attributes: Default::default(),
    };
    event.encode_to_vec().into()
}

fn event(encoded: Bytes) -> Event {
    let event = Event::from_canonical(encoded).expect("canonical");
    event.expect("valid")
}

fn events(count: u64) -> Vec<Event> {
    (0..count).map(|number| event(encoded(number))).collect()
}

fn batch(first_sequence: Sequence, events: &[Event]) -> Batch {
    let mut batch = BatchBuilder::new(first_sequence);
    for event in events {
        batch.push(event);
    }
    batch.finish(1_767_225_600_000_000_000)
}

/// A handler's work on each event: read it in place, check the limits, hash.
#[divan::bench(args = BATCHES)]
fn validate(bencher: Bencher, count: u64) {
    let encoded: Vec<_> = (0..count).map(encoded).collect();
    bencher.counter(ItemsCount::new(count)).bench(|| {
        encoded
            .iter()
            .cloned()
            .map(event)
            .for_each(|event| drop(black_box(event)))
    });
}

#[divan::bench(args = BATCHES)]
fn encode_batch(bencher: Bencher, count: u64) {
    let events = events(count);
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| batch(1, &events));
}

#[divan::bench(args = BATCHES)]
fn decode_batch(bencher: Bencher, count: u64) {
    let encoded = batch(1, &events(count)).encoded().clone();
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| Batch::decode(encoded.clone()).expect("whole").events());
}

/// Includes encoding the batch, because its first sequence is the log's tail. The disk is that of the temporary
/// directory: set `TMPDIR` to choose.
#[divan::bench(args = BATCHES, max_time = 2)]
fn append_and_sync(bencher: Bencher, count: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = FileLogOptions::default();
    let mut log = FileLog::open(&Platform::default(), dir.path(), &options).expect("opened");
    let events = events(count);
    bencher
        .counter(ItemsCount::new(count))
        .bench_local(|| log.append(&batch(log.tail(), &events)).expect("appended"));
}

/// An index with `KEYS` keys, in sealed generations of the given size.
struct Sealed {
    index: Index,
    _dir: TempDir,
}

impl Sealed {
    fn new(keys: u64, keys_per_generation: u64, merge_fanout: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = IndexOptions {
            keys_per_generation: keys_per_generation as usize,
            merge_fanout,
            ..IndexOptions::default()
        };
        let mut index = Index::open(&Platform::default(), &dir.path().join("index"), options, 1)
            .expect("opened");
        for number in 0..keys {
            let key = key(number);
            index.insert(&key, index.secret().key_hash(&key), entry(number));
            if (number + 1) % keys_per_generation == 0 {
                index.seal_if_full(number + 2).expect("sealed");
            }
        }
        Self { index, _dir: dir }
    }

    /// Waits until the keys are in this many generations on disk.
    fn settle(&self, generations: usize, keys: u64) {
        let reader = self.index.reader();
        let began = Instant::now();
        loop {
            let sealed = reader.generations();
            let held: u64 = sealed.iter().map(|(_, keys)| keys).sum();
            if sealed.len() == generations && held == keys {
                return;
            }
            assert!(began.elapsed() < SEALED_WITHIN, "not sealed: {sealed:?}");
            std::thread::yield_now();
        }
    }

    fn view(&self) -> View {
        self.index.reader().view()
    }

    /// With the hashes that a handler computes in advance.
    fn hashed(&self, keys: Vec<Key>) -> Vec<(Key, KeyHash)> {
        let secret = self.index.secret();
        let hash = |key: Key| (key.clone(), secret.key_hash(&key));
        keys.into_iter().map(hash).collect()
    }
}

/// Several generations, so that a lookup meets filters that say no before one that says yes.
fn sealed() -> Sealed {
    let generations = KEYS / KEYS_PER_GENERATION;
    let sealed = Sealed::new(KEYS, KEYS_PER_GENERATION, usize::MAX);
    sealed.settle(generations as usize, KEYS);
    sealed
}

/// Random keys among the `KEYS` from `first` on.
fn lookups(first: u64) -> Vec<Key> {
    let numbers = (0..LOOKUPS).map(|at| first + random(at) % KEYS);
    numbers.map(key).collect()
}

/// The filters alone: most keys of a load are in none of them.
#[divan::bench]
fn filter_absent(bencher: Bencher) {
    let sealed = sealed();
    let (view, keys) = (sealed.view(), sealed.hashed(lookups(KEYS)));
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        keys.iter()
            .filter(|(key, hash)| view.may_contain(key, *hash))
            .count()
    });
}

#[divan::bench]
fn check_absent(bencher: Bencher) {
    let sealed = sealed();
    let (view, keys) = (sealed.view(), sealed.hashed(lookups(KEYS)));
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        let found = keys
            .iter()
            .filter(|(key, hash)| view.get(key, *hash).expect("read").is_some());
        assert_eq!(found.count(), 0);
    });
}

#[divan::bench]
fn check_sealed(bencher: Bencher) {
    let sealed = sealed();
    let (view, keys) = (sealed.view(), sealed.hashed(lookups(0)));
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        let found = keys
            .iter()
            .filter(|(key, hash)| view.get(key, *hash).expect("read").is_some());
        assert_eq!(found.count() as u64, LOOKUPS);
    });
}

#[divan::bench]
fn check_recent(bencher: Bencher) {
    let sealed = Sealed::new(KEYS, 2 * KEYS, usize::MAX);
    let (index, keys) = (&sealed.index, sealed.hashed(lookups(0)));
    bencher.counter(ItemsCount::new(LOOKUPS)).bench_local(|| {
        let found = keys
            .iter()
            .filter(|(key, hash)| index.get(key, *hash, 1).expect("read").is_some());
        assert_eq!(found.count() as u64, LOOKUPS);
    });
}

/// From keys in memory to a synced generation; inserting the keys counts too.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn build_generation(bencher: Bencher) {
    bencher
        .counter(ItemsCount::new(KEYS_PER_GENERATION))
        .bench_local(|| {
            let sealed = Sealed::new(KEYS_PER_GENERATION, KEYS_PER_GENERATION, usize::MAX);
            sealed.settle(1, KEYS_PER_GENERATION);
            sealed
        });
}

/// Builds four generations and merges them into one: the time beyond four times `build_generation` is the merge.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn build_and_merge_generations(bencher: Bencher) {
    let fanout = 4;
    let keys = fanout * KEYS_PER_GENERATION;
    bencher.counter(ItemsCount::new(keys)).bench_local(|| {
        let sealed = Sealed::new(keys, KEYS_PER_GENERATION, fanout as usize);
        sealed.settle(1, keys);
        sealed
    });
}
