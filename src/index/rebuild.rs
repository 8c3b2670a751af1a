//! Rebuild: fills a part of the index from the log.
//!
//! Owns the part read so far; the caller reads the log.

use std::{ops::Range, sync::Arc};

use super::{
    Entry, Index, builder::caught, error::IndexError, parts::Frozen, positions::RecentPositions,
    recent::Recent, sealer, secret::KeyHash,
};
use crate::event::{Key, Sequence};

/// Takes the batches of a missing range in order: each batch, then its events. Dropped before
/// [`Rebuild::finish`], it leaves the unbuilt rest missing.
pub struct Rebuild<'a> {
    index: &'a mut Index,
    /// The unbuilt rest.
    range: Range<Sequence>,
    keys: Recent,
    positions: RecentPositions,
}

impl<'a> Rebuild<'a> {
    pub(super) fn new(index: &'a mut Index, range: Range<Sequence>) -> Self {
        let keys = Recent::with_capacity(index.options.keys_per_generation);
        Self {
            index,
            range,
            keys,
            positions: RecentPositions::default(),
        }
    }

    /// Starts a batch with events of `topics`. Builds a generation of the earlier batches if they fill one.
    pub fn add_batch<'t>(
        &mut self,
        topics: impl Iterator<Item = &'t str>,
        first_sequence: Sequence,
    ) -> Result<(), IndexError> {
        assert!(
            self.range.contains(&first_sequence),
            "a batch is of the range"
        );
        if self.keys.len() >= self.index.options.keys_per_generation {
            self.build(first_sequence)?;
        }
        topics.for_each(|topic| self.positions.add(topic, first_sequence));
        Ok(())
    }

    /// Adds an event of the batch.
    pub fn insert(&mut self, key: &Key, hash: KeyHash, entry: Entry) {
        assert!(
            self.range.contains(&entry.sequence),
            "an event is of the range"
        );
        self.keys.insert(key, hash, entry);
    }

    /// Ends the range, which is then no longer missing. The rest goes into a generation, or into memory if
    /// the range ends at the tail of the log.
    pub fn finish(mut self) -> Result<(), IndexError> {
        if self.range.start >= self.index.parts.view().sealed_to() {
            self.index.missing.retain(|missing| *missing != self.range);
            self.index.parts.set_positions(self.positions);
            self.index.recent = self.keys;
            return Ok(());
        }
        self.build(self.range.end)
    }

    /// Builds the generation of the events added so far, which ends at `end`.
    fn build(&mut self, end: Sequence) -> Result<(), IndexError> {
        self.index.workers.wait_for_merges()?;
        let folder = &self.index.folder;
        let capacity = self.index.options.keys_per_generation;
        let frozen = Frozen {
            range: self.range.start..end,
            keys: std::mem::replace(&mut self.keys, Recent::with_capacity(capacity)),
            positions: std::mem::take(&mut self.positions),
        };
        let generation = caught(|| sealer::build(folder, &frozen, || Ok(())))
            .map_err(|error| error.into_index_error(&folder.path))?;
        self.index.parts.replace_with(Arc::new(generation));
        self.index.recent_from = self.index.parts.view().sealed_to();
        self.index.workers.control().wake();
        let left = end..self.range.end;
        let missing = std::mem::replace(&mut self.range, left.clone());
        for range in &mut self.index.missing {
            if *range == missing {
                *range = left.clone();
            }
        }
        self.index.missing.retain(|range| !range.is_empty());
        Ok(())
    }
}
