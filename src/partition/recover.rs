//! Recovery: brings the index and the counters up to the log, whatever kind of log it is.
//!
//! The log decides: whatever the others have beyond it was never durable, and whatever they lack is read from
//! it.

use std::{ops::Range, path::Path, time::Duration};

use super::{
    OpenError, PartitionOptions,
    stats::{CountersError, Snapshot, Stats},
};
use crate::{
    event::{Event, Sequence},
    index::{self, Entry, Index},
    log::{Batch, Log, LogReadError, LogReader},
    platform::Platform,
};

/// How often a long replay reports progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The result of opening.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Events in the log.
    pub events: u64,
    /// Events read from the log to bring the index up to date.
    pub replayed: u64,
}

/// What the files beside the log know before it is opened.
pub(super) struct Known {
    /// Everything below was durable in the log.
    pub tail_min: Sequence,
    counters: Snapshot,
}

/// A partition whose index and counters are at its log's tail.
pub(super) struct Recovered {
    pub index: Index,
    pub stats: Stats,
    pub tail: Sequence,
    pub last: Option<Batch>,
    pub recovery: Recovery,
}

/// Reads what other files know about the end of the log. Fails, before anything is changed, if a newer version wrote
/// any of them.
pub(super) fn known(platform: &Platform, data_dir: &Path) -> Result<Known, OpenError> {
    let (disk, index_dir) = (&*platform.disk, data_dir.join("index"));
    index::refuse_newer(disk, &index_dir)?;
    let counters = load_counters(platform, data_dir)?;
    // A clean stop and a sealed generation both prove that events were durable.
    let sealed_to = index::covered_to(disk, &index_dir)?;
    Ok(Known {
        tail_min: counters.tail.max(sealed_to),
        counters,
    })
}

/// Brings index and counters up to `log`.
pub(super) fn recover(
    options: &PartitionOptions,
    known: Known,
    log: &impl Log,
) -> Result<Recovered, OpenError> {
    let platform = &options.platform;
    let (reader, tail) = (log.reader(), log.tail());
    let index_dir = options.data_dir.join("index");
    let mut index = Index::open(platform, &index_dir, options.index, tail)?;
    let replayed = fill_index(platform, &mut index, &reader)?;
    let stats = Stats::new(known.counters);
    for batch in batches(&reader, stats.tail()..tail) {
        stats.add_batch(&batch?);
    }
    Ok(Recovered {
        index,
        stats,
        tail,
        last: last_batch(&reader, tail)?,
        recovery: Recovery {
            events: tail - reader.head(),
            replayed,
        },
    })
}

/// The last saved counters. Damaged ones are ignored: the events in the log are counted again.
fn load_counters(platform: &Platform, data_dir: &Path) -> Result<Snapshot, OpenError> {
    match Snapshot::load(&*platform.disk, data_dir) {
        Ok(snapshot) => Ok(snapshot.unwrap_or_default()),
        Err(error @ CountersError::Damaged { .. }) => {
            tracing::warn!(%error, "stored events are counted again from the log; \
                the counts of duplicates, conflicts and rejections begin at 0");
            Ok(Snapshot::default())
        }
        Err(error @ (CountersError::Io { .. } | CountersError::UnknownVersion { .. })) => {
            Err(error.into())
        }
    }
}

/// Reads into the index what it lacks. Returns how many events that took.
fn fill_index(
    platform: &Platform,
    index: &mut Index,
    log: &impl LogReader,
) -> Result<u64, OpenError> {
    let mut replayed = 0;
    let mut reported = platform.jobs.now();
    let secret = index.secret();
    for range in index.missing() {
        let events = range.end - range.start;
        let mut rebuild = index.rebuild(range.clone());
        for batch in batches(log, range) {
            let batch = batch?;
            let topics = batch.topics().map(|(topic, _)| topic);
            rebuild.add_batch(topics, batch.first_sequence())?;
            for event in batch.events() {
                let sequence = event.sequence;
                let event = Event::from_stored(event.encoded)
                    .expect("the log holds what its checksums cover");
                let entry = Entry {
                    sequence,
                    content_hash: secret.content_hash(event.encoded()),
                };
                rebuild.insert(event.key(), secret.key_hash(event.key()), entry);
                replayed += 1;
            }
            let now = platform.jobs.now();
            if now.saturating_duration_since(reported) >= PROGRESS_INTERVAL {
                reported = now;
                tracing::info!(replayed, events, "reading the log into the index");
            }
        }
        rebuild.finish()?;
    }
    Ok(replayed)
}

/// The batches of a range of the log that starts and ends at a batch boundary.
fn batches(
    log: &impl LogReader,
    range: Range<Sequence>,
) -> impl Iterator<Item = Result<Batch, LogReadError>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let batch = log.read(next, None).transpose()?;
        if let Ok(batch) = &batch {
            next = batch.end_sequence();
        }
        Some(batch)
    })
}

fn last_batch(log: &impl LogReader, tail: Sequence) -> Result<Option<Batch>, LogReadError> {
    match tail - 1 {
        0 => Ok(None),
        last => log.read(last, None),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::{
        index::IndexOptions,
        partition::{
            open,
            support::{event, opened_with, stop, store},
        },
    };

    /// The counters and a generation each prove that the log was longer.
    #[tokio::test]
    async fn a_log_shorter_than_other_files_prove_is_refused() {
        for lost in ["counters.json", "index"] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut options = PartitionOptions::new(dir.path());
            options.index = IndexOptions {
                keys_per_generation: 2,
                ..IndexOptions::default()
            };
            let (partition, threads) = opened_with(options.clone()).await;
            for id in 0..4 {
                store(&partition, vec![event("t", id, 1)]).await;
            }
            while partition.0.index.generations().is_empty() {
                tokio::task::yield_now().await;
            }
            drop(partition);
            stop(threads).await;
            let path = dir.path().join(lost);
            if path.is_dir() {
                fs::remove_dir_all(path).expect("removed");
            } else {
                fs::remove_file(path).expect("removed");
            }
            fs::remove_dir_all(dir.path().join("log")).expect("removed");
            let refused = open(options).map(drop).expect_err("events are lost");
            assert!(matches!(refused, OpenError::Log(_)), "{lost}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_start_reports_the_events_found_and_replayed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened_with(PartitionOptions::new(dir.path())).await;
        store(&partition, (0..5).map(|id| event("t", id, 1)).collect()).await;
        drop(partition);
        stop(threads).await;
        // A start without an index reads all of the log, and one of a new log nothing.
        fs::remove_dir_all(dir.path().join("index")).expect("removed");
        let (_, threads, recovery) = open(PartitionOptions::new(dir.path())).expect("opened");
        assert_eq!((recovery.events, recovery.replayed), (5, 5));
        stop(threads).await;
        let new = tempfile::tempdir().expect("a directory");
        let (_, threads, recovery) = open(PartitionOptions::new(new.path())).expect("opened");
        assert_eq!((recovery.events, recovery.replayed), (0, 0));
        stop(threads).await;
    }

    /// All files in a folder, with their contents.
    fn files(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
        let mut paths: Vec<_> = fs::read_dir(dir)
            .expect("listed")
            .map(|entry| entry.expect("listed").path())
            .collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                files(&path, found);
            } else {
                let content = fs::read(&path).expect("read");
                found.push((path, content));
            }
        }
    }

    #[tokio::test]
    async fn a_newer_index_is_refused_before_the_log_is_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened_with(PartitionOptions::new(dir.path())).await;
        store(&partition, vec![event("t", 1, 1)]).await;
        drop(partition);
        stop(threads).await;
        // Leftovers that a start removes.
        fs::write(dir.path().join("log/next.tmp"), "left").expect("written");
        let mut secret = b"olsecret\x02\0\0\0longer than version 1 has it".to_vec();
        secret.extend_from_slice(&crc32c::crc32c(&secret).to_le_bytes());
        fs::write(dir.path().join("index/secret"), secret).expect("written");
        let (mut before, mut after) = (Vec::new(), Vec::new());
        files(dir.path(), &mut before);
        let refused = open(PartitionOptions::new(dir.path())).map(drop);
        let refused = refused.expect_err("it is of a newer version");
        assert!(matches!(refused, OpenError::Index(_)), "{refused}");
        files(dir.path(), &mut after);
        assert_eq!(before, after);
    }
}
