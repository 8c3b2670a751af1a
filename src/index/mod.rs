//! The index: which keys are stored, and which batches have events of each topic.
//!
//! The log decides, the index remembers: all of it is derived from the log and can be rebuilt. It maps each key of
//! the whole history, compared byte for byte, to its sequence and content hash, and each topic to the batches that
//! contain it. Callers hash keys and contents with its [`Secret`] in advance, so that the writer need not. Owns the
//! folder `index` of the data directory; the only module that names sled. Does not read the log, and decides nothing
//! about events.
//!
//! A key goes from `recent`, in memory and private to the writer, into a frozen part, in memory and visible
//! to readers, and then into a generation on disk, which is merged with others into larger ones:
//!
//! ```text
//! generation [1, 400) | generation [400, 500) | frozen [500, 600) | recent [600, ...)
//! ```
//!
//! The number of generations is bounded, and with it the file descriptors: `tiers.rs` has the formula, and a seal
//! waits for a merge when the bound is reached. With the defaults there are at most 32, and one more for every 134
//! million keys; each has three files open.

mod builder;
mod control;
mod disk;
mod error;
mod fence;
mod filter;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod generation;
mod manifest;
mod merge;
mod merger;
mod merges;
mod parts;
#[cfg(any(test, feature = "simulation"))]
mod plain;
mod positions;
mod reader;
mod rebuild;
mod recent;
mod run;
mod sealer;
mod secret;
mod store;
mod survey;
mod tiers;
mod workers;

use std::{ops::Range, path::Path, sync::Arc};

pub use error::{IndexError, IndexOpenError};
pub use parts::View;
pub use reader::IndexReader;
pub use rebuild::Rebuild;
pub use secret::{KeyHash, Secret};
pub use survey::Rejected;

use crate::{
    event::{FIRST_SEQUENCE, Key, Sequence},
    platform::{Disk, Platform},
};
use folder::Folder;
use generation::Generation;
use parts::Parts;
use recent::Recent;
use survey::Survey;
use workers::Workers;

/// What the index knows about a stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub sequence: Sequence,
    /// [`Secret::content_hash`] of its canonical encoding.
    pub content_hash: u64,
}

/// The sizes of the index's parts.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Keys are sealed once this many are in memory, at about 100 bytes each; up to four times as many may be
    /// while the disk falls behind.
    pub keys_per_generation: usize,
    /// How many adjacent generations of one tier are merged into one of the next; at least 2.
    pub merge_fanout: usize,
    /// How many tiers are merged, each by its own thread; at least 1. A generation that has passed all of them stays
    /// as it is: with the defaults at 256 times `keys_per_generation`, 134 million keys. That limits how long a
    /// merge takes, and how much an interrupted one loses.
    pub merge_tiers: usize,
    /// How many frozen parts may wait to be sealed before the writer has to wait; at least 1.
    pub frozen_max: usize,
    /// How much is read for one lookup.
    pub runs: RunLimits,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            keys_per_generation: 512 * 1024,
            merge_fanout: 4,
            merge_tiers: 4,
            frozen_max: 2,
            runs: RunLimits::default(),
        }
    }
}

/// The length of a generation's runs: a lookup reads one.
#[derive(Clone, Copy, Debug)]
pub struct RunLimits {
    /// The most keys of a run. More make the store smaller and lookups slower; of 32, 64 and 128, the default
    /// costs little of either.
    pub keys_max: usize,
    /// A run with this many bytes accepts no more keys, so that long keys do not make large values.
    pub bytes_full: usize,
    /// The most positions of a run.
    pub positions_max: usize,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            keys_max: 64,
            bytes_full: 8 * 1024,
            positions_max: 128,
        }
    }
}

/// The writer's side of the index. There is one; it runs the threads that seal and merge.
pub struct Index {
    folder: Folder,
    options: IndexOptions,
    parts: Arc<Parts>,
    /// The keys in no sealed part.
    recent: Recent,
    /// Where the sealed parts end.
    recent_from: Sequence,
    missing: Vec<Range<Sequence>>,
    positions: Option<PositionsWriter>,
    workers: Workers,
}

/// Adds the positions of new batches. There is one; it goes with the end of the log.
pub struct PositionsWriter {
    parts: Arc<Parts>,
}

impl PositionsWriter {
    /// Adds a batch that contains `topics`, once it is durable and before the durable tail moves over it.
    /// Batches come in order.
    pub fn add_batch<'a>(
        &mut self,
        topics: impl Iterator<Item = &'a str>,
        first_sequence: Sequence,
    ) {
        self.parts.add_positions(topics, first_sequence);
    }
}

impl Index {
    /// Opens the index in the folder `dir`, creating it if missing, for a log whose durable tail is `tail`. Removes
    /// generations that are damaged, unfinished, superseded, of an older version or ahead of the tail, and logs a
    /// warning; if one has a newer version, fails and changes nothing. Before anything else, rebuild the ranges of
    /// [`Index::missing`].
    pub fn open(
        platform: &Platform,
        dir: &Path,
        options: IndexOptions,
        tail: Sequence,
    ) -> Result<Self, IndexOpenError> {
        let disk = &*platform.disk;
        assert!(options.keys_per_generation > 0, "a generation holds keys");
        assert!(options.merge_fanout >= 2, "a merge has two parents or more");
        assert!(options.merge_tiers > 0, "the smallest tier is merged");
        assert!(
            options.frozen_max > 0,
            "a part is frozen before it is sealed"
        );
        survey::refuse_newer(disk, dir)?;
        let secret = secret::load(disk, dir)?;
        disk.create_dir(dir).map_err(IndexOpenError::io(dir))?;
        let secret = match secret {
            Ok(secret) => secret,
            Err(fault) => {
                // The first start has none; any other logs each generation that it removes.
                tracing::debug!(reason = &*fault.0, "drawing a secret for the index");
                secret::draw(platform, dir).map_err(IndexOpenError::io(dir))?
            }
        };
        let folder = Folder {
            disk: Arc::clone(&platform.disk),
            path: dir.to_owned(),
            secret,
            runs: options.runs,
        };
        disk::remove_temp_folders(disk, dir).map_err(IndexOpenError::io(dir))?;
        let Survey {
            generations,
            rejected,
        } = survey::survey(&*platform.jobs, &folder, tail)?;
        survey::remove(disk, rejected)?;
        let missing = gaps(&generations, tail);
        let parts = Arc::new(Parts::new(generations));
        let workers = Workers::spawn(&platform.jobs, &folder, options, &parts)
            .map_err(IndexOpenError::io(dir))?;
        Ok(Self {
            folder,
            options,
            recent: Recent::with_capacity(options.keys_per_generation),
            recent_from: parts.view().sealed_to(),
            positions: Some(PositionsWriter {
                parts: Arc::clone(&parts),
            }),
            parts,
            missing,
            workers,
        })
    }

    /// The ranges of sequences to rebuild from the log, ascending. They start and end between batches; the
    /// one that ends at the durable tail was in memory before.
    pub fn missing(&self) -> Vec<Range<Sequence>> {
        self.missing.clone()
    }

    /// Fills one of the missing ranges. Lookups are exact once none is missing.
    pub fn rebuild(&mut self, range: Range<Sequence>) -> Rebuild<'_> {
        assert!(
            self.missing.contains(&range),
            "only what is missing is rebuilt"
        );
        Rebuild::new(self, range)
    }

    /// The secret that keys and contents are hashed with.
    pub fn secret(&self) -> Secret {
        self.folder.secret
    }

    /// The writer of positions of new batches.
    ///
    /// # Panics
    /// If it was taken before.
    pub fn take_positions_writer(&mut self) -> PositionsWriter {
        self.positions.take().expect("there is one")
    }

    /// A reader of the sealed parts.
    pub fn reader(&self) -> IndexReader {
        IndexReader::new(Arc::clone(&self.parts), self.folder.secret)
    }

    /// The entry of exactly this key, which has this hash, for a caller that searched a [`View`] whose
    /// [`sealed_to`](View::sealed_to) is `looked_to`: searches memory and the parts sealed since.
    pub fn get(
        &self,
        key: &Key,
        hash: KeyHash,
        looked_to: Sequence,
    ) -> Result<Option<Entry>, IndexError> {
        if let Some(entry) = self.recent.get(key, hash) {
            return Ok(Some(entry));
        }
        self.get_sealed(key, hash, looked_to)
    }

    /// The same, without the unsealed keys in memory.
    pub fn get_sealed(
        &self,
        key: &Key,
        hash: KeyHash,
        looked_to: Sequence,
    ) -> Result<Option<Entry>, IndexError> {
        if self.recent_from <= looked_to {
            return Ok(None);
        }
        self.parts.view().get_from(key, hash, looked_to)
    }

    /// Where the sealed parts end.
    pub fn sealed_to(&self) -> Sequence {
        self.recent_from
    }

    /// Adds a key that is not in the index. Sequences strictly increase.
    pub fn insert(&mut self, key: &Key, hash: KeyHash, entry: Entry) {
        self.recent.insert(key, hash, entry);
    }

    /// Forgets the keys with a sequence at or above `tail`, which is not below the durable tail: a batch
    /// that could not be written.
    pub fn truncate(&mut self, tail: Sequence) {
        assert!(
            tail >= self.parts.view().sealed_to(),
            "what is sealed is durable"
        );
        self.recent.truncate(tail);
    }

    /// Hands the keys below `durable_tail` to the sealer if there are enough for a generation. The positions of
    /// all batches below must have been added. Blocks while the sealer is two generations behind. Fails when it
    /// is and cannot write, until it can again: publishes must then be refused, as memory would grow without
    /// bound. A failure loses nothing.
    pub fn seal_if_full(&mut self, durable_tail: Sequence) -> Result<(), IndexError> {
        let enough = self.options.keys_per_generation;
        if self.recent.len() < enough || self.recent.len_below(durable_tail) < enough {
            return Ok(());
        }
        self.wait_for_fewer_than(self.options.frozen_max)?;
        self.freeze(durable_tail);
        Ok(())
    }

    /// Seals the keys below `durable_tail` and waits until they are on disk. The positions of all batches below
    /// must have been added.
    #[cfg(test)]
    pub(crate) fn seal_now(&mut self, durable_tail: Sequence) -> Result<(), IndexError> {
        if self.recent.len_below(durable_tail) > 0 {
            self.wait_for_fewer_than(self.options.frozen_max)?;
            self.freeze(durable_tail);
        }
        self.wait_for_fewer_than(1)
    }

    fn freeze(&mut self, end: Sequence) {
        let rest = self.recent.split_off(end, self.options.keys_per_generation);
        let frozen = std::mem::replace(&mut self.recent, rest);
        self.parts.freeze(frozen, end);
        self.recent_from = end;
        self.workers.control().wake();
    }

    /// Blocks until fewer than `frozen` parts wait to be sealed. Fails if the last seal failed.
    fn wait_for_fewer_than(&self, frozen: usize) -> Result<(), IndexError> {
        let waits = || self.parts.frozen_count() >= frozen;
        self.workers.wait_while(waits)
    }
}

/// Opens the generations in the folder `dir` for inspection, while no server runs: removes nothing, rebuilds
/// nothing, and reports unusable generations. Lookups see only sealed keys; a lookup that finds damage marks
/// the generation, so that the next [`Index::open`] rebuilds it.
pub fn inspect(
    platform: &Platform,
    dir: &Path,
    tail: Sequence,
) -> Result<(IndexReader, Vec<Rejected>), IndexOpenError> {
    let disk = Arc::clone(&platform.disk);
    survey::refuse_newer(&*disk, dir)?;
    // Without the secret no generation is usable: with another one, each reports that.
    let secret = secret::load(&*disk, dir)?.unwrap_or_else(|_| Secret::draw(platform));
    let folder = Folder {
        disk,
        path: dir.to_owned(),
        secret,
        runs: RunLimits::default(),
    };
    let Survey {
        generations,
        rejected,
    } = survey::survey(&*platform.jobs, &folder, tail)?;
    let parts = Arc::new(Parts::new(generations));
    Ok((IndexReader::new(parts, secret), rejected))
}

/// Fails if a newer version wrote anything in the folder `dir`. Changes nothing.
pub fn refuse_newer(disk: &dyn Disk, dir: &Path) -> Result<(), IndexOpenError> {
    survey::refuse_newer(disk, dir)?;
    secret::load(disk, dir).map(drop)
}

/// The end of the last generation in the folder `dir`, by its name, intact or not; the first sequence if
/// there is none. Everything below was durable in the log when it was sealed.
pub fn covered_to(disk: &dyn Disk, dir: &Path) -> Result<Sequence, IndexOpenError> {
    let folders = survey::folders(disk, dir).map_err(IndexOpenError::io(dir))?;
    let ends = folders.iter().map(|(_, range)| range.end);
    Ok(ends.max().unwrap_or(FIRST_SEQUENCE))
}

/// The sequences below `tail` that `generations` do not cover.
fn gaps(generations: &[Arc<Generation>], tail: Sequence) -> Vec<Range<Sequence>> {
    let mut from = FIRST_SEQUENCE;
    let mut gaps = Vec::new();
    for range in generations.iter().map(|generation| generation.range()) {
        gaps.push(from..range.start);
        from = range.end;
    }
    gaps.push(from..tail);
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

#[cfg(test)]
mod testing {
    //! Helpers shared by the tests of the index.

    use std::{ops::Range, path::Path, sync::Arc};

    use super::{
        Entry, Secret, folder::Folder, generation::Generation, parts::Frozen,
        positions::RecentPositions, recent::Recent, sealer,
    };
    use crate::{
        event::{EventId, Key, Sequence, Topic},
        platform::{OsDisk, Platform},
    };

    pub(super) fn topic(name: &str) -> Topic {
        Topic::new(name).expect("valid")
    }

    pub(super) fn key(topic: &str, event_id: &str) -> Key {
        let event_id = EventId::new(event_id).expect("valid");
        Key::new(&self::topic(topic), &event_id)
    }

    /// An entry whose content hash follows from its sequence.
    pub(super) fn entry(sequence: Sequence) -> Entry {
        Entry {
            sequence,
            content_hash: !sequence,
        }
    }

    /// The key of the event with this sequence: one of three topics, batches of two.
    pub(super) fn key_at(sequence: Sequence) -> Key {
        key(topic_at(sequence), &format!("event {sequence}"))
    }

    pub(super) fn topic_at(sequence: Sequence) -> &'static str {
        ["orders", "orders eu", "payments"][(sequence % 3) as usize]
    }

    /// The generation of the events `range`, in batches of two.
    pub(super) fn build(dir: &Path, range: Range<Sequence>) -> Generation {
        let mut keys = Recent::default();
        let mut positions = RecentPositions::default();
        for sequence in range.clone() {
            let key = key_at(sequence);
            keys.insert(&key, SECRET.key_hash(&key), entry(sequence));
            positions.add(topic_at(sequence), batch_of(sequence));
        }
        let frozen = Frozen {
            range,
            keys,
            positions,
        };
        sealer::build(&folder(dir), &frozen, || Ok(())).expect("built")
    }

    /// `dir` as the folder of an index with [`SECRET`].
    pub(super) fn folder(dir: &Path) -> Folder {
        if Secret::load(&OsDisk, dir).is_err() {
            SECRET.save(&OsDisk, dir).expect("saved");
        }
        Folder {
            disk: Arc::new(OsDisk),
            path: dir.to_owned(),
            secret: SECRET,
            runs: super::RunLimits::default(),
        }
    }

    /// A platform whose indexes all have [`SECRET`].
    pub(super) fn platform() -> Platform {
        Platform {
            random: || SECRET_HALF,
            ..Platform::default()
        }
    }

    const SECRET_HALF: u64 = 7;
    pub(super) const SECRET: Secret = Secret::of_halves([SECRET_HALF; 2]);

    /// The first sequence of the batch of two that holds `sequence`.
    pub(super) fn batch_of(sequence: Sequence) -> Sequence {
        (sequence - 1) / 2 * 2 + 1
    }
}

#[cfg(test)]
mod tests;
