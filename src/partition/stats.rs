//! The counters of a partition and its topics, and the file that keeps them across restarts.
//!
//! The file is a snapshot of all counters as of a durable tail. Later events are counted again from the log,
//! so unique events are exact even after a crash; a crash, and only a crash, loses the duplicates, conflicts
//! and rejections since the snapshot.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::{
    event::{FIRST_SEQUENCE, Sequence, Topic, UnixNanos},
    log::Batch,
    platform::Disk,
};

const FILE_NAME: &str = "counters.json";
const FILE_VERSION: u32 = 2;

/// Counters over the life of a data directory. Always,
/// received = unique_processed + duplicate_dropped + rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Events of all answered requests.
    pub received: u64,
    /// Events stored.
    pub unique_processed: u64,
    /// Events dropped because their key was already stored.
    pub duplicate_dropped: u64,
    /// How many of `duplicate_dropped` had content other than the stored event's.
    pub conflicts: u64,
    /// Events that broke a limit.
    pub rejected: u64,
}

/// Counters of one topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCounters {
    /// Events stored in it.
    pub unique_processed: u64,
    /// Events dropped because their key was already stored in it.
    pub duplicate_dropped: u64,
    /// When its last event was stored.
    pub last_received_at: UnixNanos,
}

/// What the requests answered with one batch add to the counters, apart from the batch itself.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Duplicates, conflicts among them, by topic.
    pub duplicates: BTreeMap<Topic, u64>,
    /// How many of them are conflicts.
    pub conflicts: u64,
    /// Events that broke a limit.
    pub rejected: u64,
}

/// All counters as of a durable tail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    /// Every stored event below it is counted.
    pub tail: Sequence,
    /// Over all topics.
    pub counters: Counters,
    topics: BTreeMap<String, TopicCounters>,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'a> {
    /// Of the bytes of `snapshot`.
    crc32c: u32,
    #[serde(borrow)]
    snapshot: &'a RawValue,
}

/// Members of every version since 2, whatever else it has.
#[derive(Deserialize)]
struct AnyContent<'a> {
    crc32c: u32,
    #[serde(borrow)]
    snapshot: &'a RawValue,
}

/// Members of a snapshot of any version, whatever else it has.
#[derive(Deserialize)]
struct AnySnapshot {
    version: u64,
}

/// The file of counters cannot be used.
#[derive(Clone, Debug, Error)]
pub enum CountersError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The file is damaged.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer oncelog wrote the file. Nothing was changed.
    #[error(
        "{} has format version {version}; this oncelog knows version {FILE_VERSION}: run the one that wrote it, or remove \
         the file: duplicates, conflicts and rejections are then counted from 0",
        path.display()
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its format version.
        version: u64,
    },
}

impl CountersError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            version: FILE_VERSION,
            tail: FIRST_SEQUENCE,
            counters: Counters::default(),
            topics: BTreeMap::new(),
        }
    }
}

impl Snapshot {
    /// Reads the snapshot of a data directory; `None` if it has none yet.
    pub fn load(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, CountersError> {
        let path = data_dir.join(FILE_NAME);
        let text = match disk.read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CountersError::io(&path, error)),
        };
        match Self::parse(&text) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(reason) => Err(match newer_version(&text) {
                Some(version) => CountersError::UnknownVersion { path, version },
                None => CountersError::Damaged { path, reason },
            }),
        }
    }

    /// Reads and checks the content of the file.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let content: Content<'_> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let json = content.snapshot.get();
        if crc32c::crc32c(json.as_bytes()) != content.crc32c {
            return Err("the checksum does not match".to_owned());
        }
        let snapshot: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        snapshot.check()?;
        Ok(snapshot)
    }

    /// The content of the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let snapshot = serde_json::value::to_raw_value(self).expect("numbers and names are JSON");
        encode(&snapshot)
    }

    /// Replaces the snapshot of a data directory; durable on return.
    pub fn save(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), CountersError> {
        let path = data_dir.join(FILE_NAME);
        let new = data_dir.join(format!("{FILE_NAME}.new"));
        let write = || {
            match disk.remove(&new) {
                // Left by an earlier attempt.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let file = disk.write_new(&new, &self.encode())?;
            file.sync_all()?;
            disk.rename(&new, &path)?;
            disk.sync_dir(data_dir)
        };
        write().map_err(|error| CountersError::io(&path, error))
    }

    /// Checks the invariants of a snapshot; the file may come from anywhere.
    fn check(&self) -> Result<(), String> {
        let Counters {
            received,
            unique_processed,
            duplicate_dropped,
            conflicts,
            rejected,
        } = self.counters;
        if self.version != FILE_VERSION {
            return Err(format!(
                "version {}, this server knows {FILE_VERSION}",
                self.version
            ));
        }
        let sum = unique_processed
            .checked_add(duplicate_dropped)
            .and_then(|sum| sum.checked_add(rejected));
        let stored = self
            .topics
            .values()
            .try_fold(0u64, |sum, topic| sum.checked_add(topic.unique_processed));
        if sum != Some(received)
            || conflicts > duplicate_dropped
            || stored != Some(unique_processed)
            || self.tail.checked_sub(FIRST_SEQUENCE) != Some(unique_processed)
            || self.topics.keys().any(|topic| Topic::new(topic).is_err())
        {
            return Err("the counters contradict each other".to_owned());
        }
        Ok(())
    }
}

/// The version of an intact file that a newer oncelog wrote. In a damaged file the version itself may be damaged.
fn newer_version(text: &[u8]) -> Option<u64> {
    let content: AnyContent<'_> = serde_json::from_slice(text).ok()?;
    let json = content.snapshot.get();
    let is_whole = crc32c::crc32c(json.as_bytes()) == content.crc32c;
    let snapshot: AnySnapshot = serde_json::from_str(json).ok()?;
    (is_whole && snapshot.version > FILE_VERSION.into()).then_some(snapshot.version)
}

fn encode(snapshot: &RawValue) -> Vec<u8> {
    let content = Content {
        crc32c: crc32c::crc32c(snapshot.get().as_bytes()),
        snapshot,
    };
    serde_json::to_vec(&content).expect("numbers and names are JSON")
}

/// The file with this JSON as its snapshot, if it is JSON.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn repaired(snapshot: &[u8]) -> Option<Vec<u8>> {
    let snapshot: Box<RawValue> = serde_json::from_slice(snapshot).ok()?;
    Some(encode(&snapshot))
}

/// The counters of a running partition, shared. Every method takes a short lock.
pub struct Stats(Mutex<State>);

struct State {
    tail: Sequence,
    counters: Counters,
    topics: BTreeMap<Topic, TopicCounters>,
}

impl Stats {
    /// Continues from a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        let topics = snapshot.topics.into_iter().map(|(topic, counters)| {
            let topic = Topic::new(&topic).expect("a snapshot holds valid topics");
            (topic, counters)
        });
        Self(Mutex::new(State {
            tail: snapshot.tail,
            counters: snapshot.counters,
            topics: topics.collect(),
        }))
    }

    /// Every stored event below it is counted.
    pub fn tail(&self) -> Sequence {
        self.state().tail
    }

    /// Counts a durable batch, which must start where the last one counted ended.
    pub fn add_batch(&self, batch: &Batch) {
        let mut state = self.state();
        assert_eq!(
            batch.first_sequence(),
            state.tail,
            "batches are counted once"
        );
        state.tail = batch.end_sequence();
        state.counters.received += batch.count() as u64;
        state.counters.unique_processed += batch.count() as u64;
        for (name, events) in batch.topics() {
            if !state.topics.contains_key(name) {
                let topic = Topic::new(name).expect("the log holds valid topics");
                state.topics.insert(topic, TopicCounters::default());
            }
            let topic = state.topics.get_mut(name).expect("inserted above");
            topic.unique_processed += events as u64;
            topic.last_received_at = batch.received_at();
        }
    }

    /// Counts events that were answered and not stored.
    pub fn add_dropped(&self, dropped: &Dropped) {
        let mut state = self.state();
        for (name, duplicates) in &dropped.duplicates {
            state.counters.received += duplicates;
            state.counters.duplicate_dropped += duplicates;
            let topic = state.topics.get_mut(name);
            topic
                .expect("a duplicate's topic has an event")
                .duplicate_dropped += duplicates;
        }
        state.counters.conflicts += dropped.conflicts;
        state.counters.received += dropped.rejected;
        state.counters.rejected += dropped.rejected;
    }

    /// The counters over all topics, and how many topics there are.
    pub fn totals(&self) -> (Counters, usize) {
        let state = self.state();
        (state.counters, state.topics.len())
    }

    /// The first `max` topics by name that begin with `prefix`.
    pub fn topics(&self, prefix: &str, max: usize) -> Vec<(Topic, TopicCounters)> {
        let state = self.state();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        state
            .topics
            .range::<str, _>(from)
            .take_while(|(topic, _)| topic.as_str().starts_with(prefix))
            .take(max)
            .map(|(topic, counters)| (topic.clone(), *counters))
            .collect()
    }

    /// All topics.
    pub fn topic_names(&self) -> Vec<Topic> {
        self.state().topics.keys().cloned().collect()
    }

    /// All counters at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            version: FILE_VERSION,
            tail: state.tail,
            counters: state.counters,
            topics: state
                .topics
                .iter()
                .map(|(topic, counters)| (topic.as_str().to_owned(), *counters))
                .collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between lock and unlock is a broken invariant, and has stopped the writer that met it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::{log::BatchBuilder, partition::support::event, platform::OsDisk};

    /// Any balanced snapshot.
    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let count = 0..1u64 << 40;
        let topic = (count.clone(), count.clone(), any::<u64>());
        let topics = prop::collection::btree_map("[^\\p{Cc}]{1,9}", topic, 0..9);
        (topics, count, any::<prop::sample::Index>()).prop_map(|(topics, rejected, conflicts)| {
            let topics: BTreeMap<_, _> = topics
                .into_iter()
                .map(
                    |(name, (unique_processed, duplicate_dropped, last_received_at))| {
                        let counters = TopicCounters {
                            unique_processed,
                            duplicate_dropped,
                            last_received_at,
                        };
                        (name, counters)
                    },
                )
                .collect();
            let unique_processed = topics.values().map(|topic| topic.unique_processed).sum();
            let duplicate_dropped = topics.values().map(|topic| topic.duplicate_dropped).sum();
            Snapshot {
                tail: FIRST_SEQUENCE + unique_processed,
                counters: Counters {
                    received: unique_processed + duplicate_dropped + rejected,
                    unique_processed,
                    duplicate_dropped,
                    conflicts: conflicts.index(duplicate_dropped as usize + 1) as u64,
                    rejected,
                },
                topics,
                ..Snapshot::default()
            }
        })
    }

    proptest! {
        #[test]
        fn any_snapshot_round_trips(
            snapshot in any_snapshot(),
            cut in any::<prop::sample::Index>(),
            more in 1..1000u64,
        ) {
            let text = snapshot.encode();
            prop_assert_eq!(Snapshot::parse(&text), Ok(snapshot.clone()));
            prop_assert_eq!(Stats::new(snapshot.clone()).snapshot(), snapshot.clone());
            prop_assert!(Snapshot::parse(&text[..cut.index(text.len())]).is_err());
            for change in [
                |snapshot: &mut Snapshot, more| snapshot.counters.received += more,
                |snapshot: &mut Snapshot, more| snapshot.counters.unique_processed += more,
                |snapshot: &mut Snapshot, more| snapshot.counters.rejected += more,
                |snapshot: &mut Snapshot, more| snapshot.tail += more,
            ] {
                let mut changed = snapshot.clone();
                change(&mut changed, more);
                prop_assert!(changed.check().is_err());
            }
        }
    }

    fn snapshot() -> Snapshot {
        let topic = TopicCounters {
            unique_processed: 2,
            duplicate_dropped: 1,
            last_received_at: 3,
        };
        Snapshot {
            tail: 3,
            counters: Counters {
                received: 4,
                unique_processed: 2,
                duplicate_dropped: 1,
                conflicts: 1,
                rejected: 1,
            },
            topics: BTreeMap::from([("a".to_owned(), topic)]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_snapshot_survives_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Snapshot::load(&OsDisk, dir.path()).expect("readable"), None);
        snapshot().save(&OsDisk, dir.path()).expect("saved");
        let loaded = Snapshot::load(&OsDisk, dir.path()).expect("readable");
        assert_eq!(loaded, Some(snapshot()));
        assert_eq!(Stats::new(snapshot()).snapshot(), snapshot());
    }

    /// They prove how far the log went: a start without them must not go on.
    #[test]
    fn unreadable_counters_are_not_missing_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Snapshot::load(&OsDisk, dir.path());
        assert_eq!(missing.expect("there is none yet"), None);
        fs::create_dir(dir.path().join(FILE_NAME)).expect("created");
        let error = Snapshot::load(&OsDisk, dir.path()).expect_err("no file");
        assert!(matches!(error, CountersError::Io { .. }), "{error}");
    }

    #[test]
    fn a_damaged_file_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        for damage in [
            |s: &mut Snapshot| s.counters.received += 1,
            |s: &mut Snapshot| s.counters.conflicts = 2,
            |s: &mut Snapshot| s.tail += 1,
            |s: &mut Snapshot| s.topics.clear(),
            |s: &mut Snapshot| s.version -= 1,
        ] {
            let mut damaged = snapshot();
            damage(&mut damaged);
            damaged.save(&OsDisk, dir.path()).expect("saved");
            let error = Snapshot::load(&OsDisk, dir.path()).expect_err("damaged");
            assert!(matches!(error, CountersError::Damaged { .. }), "{error}");
        }
        fs::write(dir.path().join(FILE_NAME), "{\"version\":1").expect("written");
        Snapshot::load(&OsDisk, dir.path()).expect_err("cut");
    }

    /// A file of version 3, with a member only that version knows.
    fn newer() -> Vec<u8> {
        let snapshot = br#"{"version":3,"tail":[3],"more":{}}"#;
        let content = String::from_utf8(repaired(snapshot).expect("JSON")).expect("UTF-8");
        content.replacen('{', r#"{"key":"k","#, 1).into_bytes()
    }

    #[test]
    fn a_newer_version_is_refused_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, newer()).expect("written");
        let error = Snapshot::load(&OsDisk, dir.path()).expect_err("newer");
        let expected = format!(
            "{} has format version 3; this oncelog knows version 2",
            path.display()
        );
        assert!(error.to_string().starts_with(&expected), "{error}");

        // A damaged file has no known version.
        let turned = String::from_utf8(snapshot().encode()).expect("UTF-8");
        let turned = turned.replace(r#""version":2"#, r#""version":3"#);
        fs::write(&path, turned).expect("written");
        let error = Snapshot::load(&OsDisk, dir.path()).expect_err("damaged");
        assert!(matches!(error, CountersError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let content = snapshot().encode();
        assert_eq!(Snapshot::parse(&content), Ok(snapshot()));
        for at in 0..content.len() {
            for bit in 0..8 {
                let mut damaged = content.clone();
                damaged[at] ^= 1 << bit;
                Snapshot::parse(&damaged).expect_err("damaged");
                assert_eq!(newer_version(&damaged), None);
            }
        }
    }

    #[test]
    fn the_time_of_a_topic_is_that_of_its_last_batch() {
        let stats = Stats::new(Snapshot::default());
        for (first, topic, received_at) in [(1, "a", 10), (2, "b", 20), (3, "a", 30)] {
            let mut builder = BatchBuilder::new(first);
            builder.push(&event(topic, first as usize, 1));
            stats.add_batch(&builder.finish(received_at));
        }
        let times: Vec<_> = stats
            .topics("", 10)
            .iter()
            .map(|(topic, counters)| (topic.as_str().to_owned(), counters.last_received_at))
            .collect();
        assert_eq!(times, [("a".to_owned(), 30), ("b".to_owned(), 20)]);
    }

    #[test]
    fn topics_are_listed_by_prefix() {
        let topics = ["a", "ab", "ac", "b"].map(|name| (name.to_owned(), TopicCounters::default()));
        let stats = Stats::new(Snapshot {
            topics: topics.into(),
            ..Snapshot::default()
        });
        let names = |prefix, max| -> Vec<String> {
            let topics = stats.topics(prefix, max);
            topics.iter().map(|(t, _)| t.as_str().to_owned()).collect()
        };
        assert_eq!(names("", 2), ["a", "ab"]);
        assert_eq!(names("a", 10), ["a", "ab", "ac"]);
        assert_eq!(names("ab", 10), ["ab"]);
        assert!(names("x", 10).is_empty());
    }
}
