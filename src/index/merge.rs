//! Merge: makes one generation of several adjacent ones.
//!
//! Owns the order in which the parents' keys and positions are read. [`tiers`](super::tiers) decides which
//! generations are merged.

use std::sync::Arc;

use super::{
    Entry,
    builder::{Builder, finished},
    error::{BuildError, Fault},
    fence::Run,
    folder::Folder,
    generation::Generation,
    positions,
    run::RunCursor,
};
/// Merges adjacent `parents` into one generation. Calls `go_on` between runs; its error ends the merge.
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
    merge_positions(parents, &mut builder, &mut go_on)?;
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
    // Of equal keys the oldest comes first, because `min_by` prefers it, and the builder skips the others: see
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

    /// Moves to the next key. False after the last one.
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

/// Runs of positions sort by topic and sequence, and no sequences of two parents interleave.
fn merge_positions(
    parents: &[Arc<Generation>],
    builder: &mut Builder,
    go_on: &mut impl FnMut() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut sources = Vec::with_capacity(parents.len());
    for parent in parents {
        sources.extend(parent.first_positions()?.map(|run| (parent, run)));
    }
    while let Some(at) =
        (0..sources.len()).min_by(|&one, &other| sources[one].1.key().cmp(sources[other].1.key()))
    {
        let (parent, run) = &sources[at];
        let (topic, positions) = parent.check(positions::decode(run.key(), run.body()))?;
        builder.push_positions(topic, &positions)?;
        go_on()?;
        match parent.positions_after(run)? {
            Some(next) => sources[at].1 = next,
            None => drop(sources.remove(at)),
        }
    }
    Ok(())
}
