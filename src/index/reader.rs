//! IndexReader: lookups in sealed parts, and the batches of a topic, from any thread.
//!
//! Does not see unsealed keys: those are private to the writer.

use std::{ops::Range, sync::Arc};

use super::{
    error::IndexError,
    parts::{Parts, View},
    secret::Secret,
};
use crate::event::{Sequence, Topic};

/// Reads the index. A cheap clone; keeps the generations it sees open after the index is dropped, which
/// prevents reopening the index.
#[derive(Clone)]
pub struct IndexReader {
    parts: Arc<Parts>,
    secret: Secret,
}

impl IndexReader {
    pub(super) fn new(parts: Arc<Parts>, secret: Secret) -> Self {
        Self { parts, secret }
    }

    /// The secret that keys and contents are hashed with.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    /// The current sealed parts. Take one for each request.
    pub fn view(&self) -> View {
        self.parts.view()
    }

    /// The first sequence that is in no sealed part.
    pub fn sealed_to(&self) -> Sequence {
        self.view().sealed_to()
    }

    /// The first sequences, ascending, of the batches that contain `topic`: the last one at or below `from`,
    /// if its batch may hold `from`, and the following ones; at most `max`, which is 2 or more, so that a
    /// page always leads on. Continue at the end of the last batch of a page: its position may be repeated as
    /// the first. May read the disk: not for async workers.
    pub fn positions(
        &self,
        topic: &Topic,
        from: Sequence,
        max: usize,
    ) -> Result<Vec<Sequence>, IndexError> {
        assert!(max >= 2, "a page must lead beyond the batch it begins with");
        let (view, recent) = self.parts.view_with_positions(topic.as_str(), from, max);
        let mut page = view.positions(topic.as_str(), from, max)?;
        page.extend(recent.into_iter().take(max - page.len()));
        Ok(page)
    }

    /// The bytes of all generations on disk.
    pub fn storage_bytes(&self) -> u64 {
        let view = self.view();
        view.generations()
            .map(|generation| generation.bytes())
            .sum()
    }

    /// The generations in order: the sequences and the number of keys of each.
    pub fn generations(&self) -> Vec<(Range<Sequence>, u64)> {
        let view = self.view();
        view.generations()
            .map(|generation| (generation.range(), generation.key_count()))
            .collect()
    }
}
