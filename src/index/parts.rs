//! Parts: the sealed parts of the index at a given moment, and the positions in none of them yet.
//!
//! Owns the one lock between the writer, the readers and the sealer, held only to clone or swap a pointer.
//! Changes that readers must see together are made here in one step.

use std::{
    ops::Range,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{
    Entry, error::IndexError, generation::Generation, positions::RecentPositions, recent::Recent,
    secret::KeyHash,
};
use crate::event::{FIRST_SEQUENCE, Key, Sequence};

/// An immutable part in memory, waiting to become a generation.
pub(super) struct Frozen {
    /// The sequences it covers.
    pub(super) range: Range<Sequence>,
    pub(super) keys: Recent,
    pub(super) positions: RecentPositions,
}

/// An immutable part.
#[derive(Clone)]
pub(super) enum Part {
    Frozen(Arc<Frozen>),
    Generation(Arc<Generation>),
}

impl Part {
    fn range(&self) -> Range<Sequence> {
        match self {
            Self::Frozen(frozen) => frozen.range.clone(),
            Self::Generation(generation) => generation.range(),
        }
    }

    fn may_contain(&self, key: &Key, hash: KeyHash) -> bool {
        match self {
            Self::Frozen(frozen) => frozen.keys.get(key, hash).is_some(),
            Self::Generation(generation) => generation.may_contain(hash),
        }
    }

    fn get(&self, key: &Key, hash: KeyHash) -> Result<Option<Entry>, IndexError> {
        match self {
            Self::Frozen(frozen) => Ok(frozen.keys.get(key, hash)),
            Self::Generation(generation) => generation.get(key, hash),
        }
    }

    fn positions(
        &self,
        topic: &str,
        from: Sequence,
        max: usize,
        page: &mut Vec<Sequence>,
    ) -> Result<(), IndexError> {
        match self {
            Self::Frozen(frozen) => {
                page.extend_from_slice(frozen.positions.page(topic, from, max - page.len()));
                Ok(())
            }
            Self::Generation(generation) => generation.positions(topic, from, max, page),
        }
    }
}

/// The sealed parts at one moment. Cheap to clone; keeps its parts alive.
#[derive(Clone)]
pub struct View {
    /// Sorted by sequence, without overlaps, and without gaps unless a rebuild is in progress.
    parts: Arc<[Part]>,
}

impl View {
    /// The first sequence that is in no sealed part.
    pub fn sealed_to(&self) -> Sequence {
        self.parts
            .last()
            .map_or(FIRST_SEQUENCE, |part| part.range().end)
    }

    /// False if the key is certainly in no sealed part. Answers from memory.
    pub fn may_contain(&self, key: &Key, hash: KeyHash) -> bool {
        self.parts.iter().any(|part| part.may_contain(key, hash))
    }

    /// The entry of exactly this key, if a sealed part has it. May read the disk: not for async workers.
    pub fn get(&self, key: &Key, hash: KeyHash) -> Result<Option<Entry>, IndexError> {
        self.get_from(key, hash, FIRST_SEQUENCE)
    }

    /// The same, only in parts that hold sequences at or above `looked_to`.
    pub(super) fn get_from(
        &self,
        key: &Key,
        hash: KeyHash,
        looked_to: Sequence,
    ) -> Result<Option<Entry>, IndexError> {
        for part in self.parts.iter().rev() {
            if part.range().end <= looked_to {
                break;
            }
            if let Some(entry) = part.get(key, hash)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    pub(super) fn generations(&self) -> impl DoubleEndedIterator<Item = &Arc<Generation>> {
        self.parts.iter().filter_map(|part| match part {
            Part::Frozen(_) => None,
            Part::Generation(generation) => Some(generation),
        })
    }

    fn frozen(&self) -> impl Iterator<Item = &Arc<Frozen>> {
        self.parts.iter().filter_map(|part| match part {
            Part::Frozen(frozen) => Some(frozen),
            Part::Generation(_) => None,
        })
    }

    /// The positions of `topic` in sealed parts, starting with the part that holds `from`.
    pub(super) fn positions(
        &self,
        topic: &str,
        from: Sequence,
        max: usize,
    ) -> Result<Vec<Sequence>, IndexError> {
        let mut page = Vec::new();
        let first = self.parts.partition_point(|part| part.range().end <= from);
        for part in &self.parts[first..] {
            if page.len() == max {
                break;
            }
            part.positions(topic, from, max, &mut page)?;
        }
        Ok(page)
    }
}

/// The state shared by the writer, the readers and the sealer.
pub(super) struct Parts {
    state: RwLock<State>,
}

struct State {
    view: View,
    /// Positions of the batches that no sealed part covers.
    positions: RecentPositions,
}

impl Parts {
    pub(super) fn new(generations: Vec<Arc<Generation>>) -> Self {
        let parts = generations.into_iter().map(Part::Generation).collect();
        Self {
            state: RwLock::new(State {
                view: View { parts },
                positions: RecentPositions::default(),
            }),
        }
    }

    pub(super) fn view(&self) -> View {
        self.read().view.clone()
    }

    pub(super) fn frozen_count(&self) -> usize {
        self.read().view.frozen().count()
    }

    pub(super) fn oldest_frozen(&self) -> Option<Arc<Frozen>> {
        self.read().view.frozen().next().cloned()
    }

    pub(super) fn add_positions<'a>(
        &self,
        topics: impl Iterator<Item = &'a str>,
        first_sequence: Sequence,
    ) {
        let mut state = self.write();
        topics.for_each(|topic| state.positions.add(topic, first_sequence));
    }

    /// Takes over the positions from a rebuild.
    pub(super) fn set_positions(&self, positions: RecentPositions) {
        self.write().positions = positions;
    }

    /// A view, and the page of positions that none of its parts has.
    pub(super) fn view_with_positions(
        &self,
        topic: &str,
        from: Sequence,
        max: usize,
    ) -> (View, Vec<Sequence>) {
        let state = self.read();
        (
            state.view.clone(),
            state.positions.page(topic, from, max).to_vec(),
        )
    }

    /// Appends a frozen part of these keys that ends at `end`, with the positions below it.
    pub(super) fn freeze(&self, keys: Recent, end: Sequence) {
        let mut state = self.write();
        let frozen = Arc::new(Frozen {
            range: state.view.sealed_to()..end,
            keys,
            positions: state.positions.take_below(end),
        });
        assert!(
            !frozen.range.is_empty(),
            "only what is not sealed is frozen"
        );
        let parts = state.view.parts.iter().cloned();
        state.view.parts = parts.chain([Part::Frozen(frozen)]).collect();
    }

    /// Replaces the parts that a generation covers.
    pub(super) fn replace_with(&self, generation: Arc<Generation>) {
        let range = generation.range();
        let mut state = self.write();
        let (before, rest) = split_where(&state.view.parts, |part| part.range().end <= range.start);
        let (covered, after) = split_where(rest, |part| part.range().start < range.end);
        assert!(
            covered
                .iter()
                .all(|part| range.start <= part.range().start && part.range().end <= range.end),
            "a generation covers parts whole"
        );
        let replacement = [Part::Generation(generation)];
        state.view.parts = [before, &replacement, after].concat().into();
    }

    // No holder panics between two changes that belong together, so poison means nothing here.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn split_where(parts: &[Part], is_left: impl Fn(&Part) -> bool) -> (&[Part], &[Part]) {
    parts.split_at(parts.partition_point(is_left))
}
