//! Merging: which generations become one, and how.
//!
//! Owns the tiers: a merge takes as many adjacent generations of one tier as the fanout says, so that the
//! number of generations grows with the logarithm of the history and a key is written once a tier.

use std::{ops::Range, sync::Arc};

use super::{
    Entry, IndexOptions,
    builder::{Builder, finished},
    error::{BuildError, Fault},
    fence::Run,
    folder::Folder,
    generation::Generation,
    parts::View,
    run::RunCursor,
    slices,
};
use crate::event::Sequence;

/// The generations to merge next, if any.
pub(super) fn candidates(view: &View, options: IndexOptions) -> Option<Vec<Arc<Generation>>> {
    let generations: Vec<_> = view.generations().collect();
    let described: Vec<_> = generations
        .iter()
        .map(|generation| Described {
            range: generation.range(),
            keys: generation.key_count(),
            damaged: generation.is_damaged(),
        })
        .collect();
    let chosen = choose(&described, options)?;
    Some(
        generations[chosen]
            .iter()
            .map(|&one| Arc::clone(one))
            .collect(),
    )
}

/// What the choice depends on.
struct Described {
    range: Range<Sequence>,
    keys: u64,
    damaged: bool,
}

/// The smallest tier first, in it the oldest.
fn choose(generations: &[Described], options: IndexOptions) -> Option<Range<usize>> {
    // A generation counts as the greatest tier of those after it: one that a rebuild left between greater
    // ones is merged with them, it would never meet equals.
    let mut tiers: Vec<_> = generations
        .iter()
        .rev()
        .scan(0, |greatest, generation| {
            *greatest = tier(generation.keys, options).max(*greatest);
            Some(*greatest)
        })
        .collect();
    tiers.reverse();
    let fanout = options.merge_fanout;
    (0..(generations.len() + 1).saturating_sub(fanout))
        .map(|from| from..from + fanout)
        .filter(|window| {
            let window = window.clone();
            let generations = &generations[window.clone()];
            tiers[window.start] == tiers[window.end - 1]
                && generations.iter().all(|generation| !generation.damaged)
                && generations
                    .windows(2)
                    .all(|pair| pair[0].range.end == pair[1].range.start)
        })
        .min_by_key(|window| tiers[window.start])
}

/// How often a generation of `keys` can be divided by the fanout and still be full.
fn tier(keys: u64, options: IndexOptions) -> u32 {
    (keys / options.keys_per_generation as u64)
        .checked_ilog(options.merge_fanout as u64)
        .unwrap_or(0)
}

/// Merges adjacent `parents` into one generation. Calls `go_on` between runs; an error of it ends the merge.
pub(super) fn merge(
    folder: &Folder,
    parents: &[Arc<Generation>],
    mut go_on: impl FnMut() -> Result<(), BuildError>,
) -> Result<Generation, BuildError> {
    let (Some(first), Some(last)) = (parents.first(), parents.last()) else {
        unreachable!("a merge has parents");
    };
    let range = first.range().start..last.range().end;
    if let Some(generation) = finished(folder, &range)? {
        return Ok(generation);
    }
    let keys_max = parents.iter().map(|parent| parent.key_count()).sum();
    let mut builder = Builder::create(folder, range, keys_max)?;
    merge_keys(folder, parents, &mut builder, &mut go_on)?;
    merge_slices(parents, &mut builder, &mut go_on)?;
    builder.finish()
}

fn merge_keys(
    folder: &Folder,
    parents: &[Arc<Generation>],
    builder: &mut Builder,
    go_on: &mut impl FnMut() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut sources = Vec::with_capacity(parents.len());
    for parent in parents {
        sources.extend(KeySource::begin(parent)?);
    }
    // The oldest of equal keys comes first, as `min_by` prefers it, and the builder leaves out the others: see
    // `Recent::insert`.
    while let Some(at) =
        (0..sources.len()).min_by(|&one, &other| sources[one].key().cmp(sources[other].key()))
    {
        let source = &mut sources[at];
        let key_hash = folder.secret.hash_key(source.key());
        if builder.push_key(source.key(), key_hash, source.entry)? {
            go_on()?;
        }
        if !source.advance()? {
            sources.remove(at);
        }
    }
    Ok(())
}

/// The keys of a parent in order; always at a key.
struct KeySource<'a> {
    parent: &'a Generation,
    run: Run,
    cursor: RunCursor,
    entry: Entry,
}

impl<'a> KeySource<'a> {
    fn begin(parent: &'a Generation) -> Result<Option<Self>, BuildError> {
        match parent.first_keys()? {
            Some(run) => Self::enter(parent, run).map(Some),
            None => Ok(None),
        }
    }

    /// At the first key of `run`.
    fn enter(parent: &'a Generation, run: Run) -> Result<Self, BuildError> {
        let mut cursor = RunCursor::new(run.key(), run.body(), parent.range().start);
        let first = cursor.advance();
        let entry = parent
            .check(first.and_then(|first| first.ok_or_else(|| Fault::new("a run is empty"))))?;
        Ok(Self {
            parent,
            run,
            cursor,
            entry,
        })
    }

    fn key(&self) -> &[u8] {
        self.cursor.key()
    }

    /// Goes to the next key. False after the last one.
    fn advance(&mut self) -> Result<bool, BuildError> {
        if let Some(entry) = self.parent.check(self.cursor.advance())? {
            self.entry = entry;
            return Ok(true);
        }
        let Some(run) = self.parent.keys_after(&self.run)? else {
            return Ok(false);
        };
        *self = Self::enter(self.parent, run)?;
        Ok(true)
    }
}

/// Runs of slices sort by topic and sequence, and no sequences of two parents interleave.
fn merge_slices(
    parents: &[Arc<Generation>],
    builder: &mut Builder,
    go_on: &mut impl FnMut() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut sources = Vec::with_capacity(parents.len());
    for parent in parents {
        sources.extend(parent.first_slices()?.map(|run| (parent, run)));
    }
    while let Some(at) =
        (0..sources.len()).min_by(|&one, &other| sources[one].1.key().cmp(sources[other].1.key()))
    {
        let (parent, run) = &sources[at];
        let (topic, slices) = parent.check(slices::decode(run.key(), run.body()))?;
        builder.push_slices(topic, &slices)?;
        go_on()?;
        match parent.slices_after(run)? {
            Some(next) => sources[at].1 = next,
            None => drop(sources.remove(at)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> IndexOptions {
        IndexOptions {
            keys_per_generation: 10,
            merge_fanout: 4,
            ..IndexOptions::default()
        }
    }

    fn chosen(keys: &[u64]) -> Option<Range<usize>> {
        chosen_of(&described(keys))
    }

    fn chosen_of(generations: &[Described]) -> Option<Range<usize>> {
        choose(generations, options())
    }

    fn described(keys: &[u64]) -> Vec<Described> {
        let mut end = 1;
        keys.iter()
            .map(|&keys| {
                let first = end;
                end += keys;
                Described {
                    range: first..end,
                    keys,
                    damaged: false,
                }
            })
            .collect()
    }

    #[test]
    fn equals_are_merged_oldest_and_smallest_first() {
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[10, 11, 39]), None);
        assert_eq!(chosen(&[10, 11, 39, 12, 10]), Some(0..4));
        assert_eq!(chosen(&[40, 10, 11, 12]), None);
        assert_eq!(chosen(&[40, 10, 11, 12, 13]), Some(1..5));
        assert_eq!(chosen(&[40, 41, 42, 43, 10, 10, 10, 10]), Some(4..8));
        assert_eq!(chosen(&[40, 41, 42, 43, 10, 10, 10]), Some(0..4));
    }

    #[test]
    fn what_a_rebuild_left_between_greater_ones_is_merged_with_them() {
        assert_eq!(chosen(&[160, 10, 160, 10, 160]), Some(0..4));
    }

    #[test]
    fn gaps_and_damage_are_left_alone() {
        let mut generations = described(&[10, 10, 10, 10]);
        generations[2].damaged = true;
        assert_eq!(chosen_of(&generations), None);
        let mut generations = described(&[10, 10, 10, 10]);
        generations[1].range.end -= 1;
        assert_eq!(chosen_of(&generations), None);
    }
}
