//! Builder: writes a generation, in order, into a folder that appears once it is whole and durable.
//!
//! Owns the order in which a generation's files are written. The source of its keys, memory or other
//! generations, is the caller's.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{
    Entry,
    disk::TempFolder,
    error::{BuildError, Trouble},
    fence::FencedWriter,
    filter::Filter,
    folder::Folder,
    generation::{FILTER_FILE, Generation, KEYS_TREE, POSITIONS_TREE},
    manifest::Manifest,
    positions::PositionRunWriter,
    run::RunWriter,
    secret::KeyHash,
    store::{Store, close},
};
use crate::event::Sequence;

/// A generation that is being built. Dropped before it is finished, it leaves nothing behind.
pub(super) struct Builder {
    range: Range<Sequence>,
    filter: Filter,
    run: RunWriter,
    /// The hashes of the keys in the run.
    hashes: Vec<KeyHash>,
    positions_run: PositionRunWriter,
    key_count: u64,
    // The store, declared before its folder, so that it is closed before the folder is removed.
    keys: FencedWriter,
    positions: FencedWriter,
    store: Store,
    temp: TempFolder,
    folder: Folder,
}

impl Builder {
    /// Starts a generation of the sequences `range` and at most `keys_max` keys.
    pub(super) fn create(
        folder: &Folder,
        range: Range<Sequence>,
        keys_max: u64,
    ) -> Result<Self, BuildError> {
        let (disk, limits) = (&folder.disk, folder.runs);
        let temp = TempFolder::create(disk.clone(), folder.generation(&range))?;
        let store = Store::open(&**disk, temp.path(), keys_max)?;
        let runs = |name| -> Result<_, BuildError> {
            let tree = store.open_tree(name)?;
            let path = temp.path().join(name);
            Ok(FencedWriter::create(tree, &**disk, &path)?)
        };
        Ok(Self {
            filter: Filter::with_capacity(keys_max),
            run: RunWriter::new(range.start, limits),
            hashes: Vec::with_capacity(limits.keys_max),
            positions_run: PositionRunWriter::new(limits.positions_max),
            key_count: 0,
            keys: runs(KEYS_TREE)?,
            positions: runs(POSITIONS_TREE)?,
            range,
            store,
            temp,
            folder: folder.clone(),
        })
    }

    /// Adds a key above all so far; one equal to the last is skipped. True if it started a run, for callers
    /// that check something now and then.
    pub(super) fn push_key(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        entry: Entry,
    ) -> Result<bool, BuildError> {
        assert!(
            self.range.contains(&entry.sequence),
            "a generation holds the sequences it covers"
        );
        let full = self.run.is_full();
        if full {
            self.put_run()?;
        }
        if self.run.push(key, entry) {
            self.hashes.push(hash);
            self.key_count += 1;
        }
        Ok(full)
    }

    /// Adds positions, ascending and by topic in ascending order.
    pub(super) fn push_positions(
        &mut self,
        topic: &str,
        positions: &[Sequence],
    ) -> Result<(), BuildError> {
        for &position in positions {
            if self.positions_run.is_full_for(topic) {
                self.put_positions_run()?;
            }
            self.positions_run.push(topic, position);
        }
        Ok(())
    }

    /// Makes it durable, gives it its name and opens it.
    pub(super) fn finish(mut self) -> Result<Generation, BuildError> {
        self.put_run()?;
        self.put_positions_run()?;
        // The folder first: if something fails, the last of these is dropped first.
        let Self {
            temp,
            range,
            filter,
            key_count,
            store,
            keys,
            positions,
            folder,
            ..
        } = self;
        let disk = &*folder.disk;
        let (key_runs, position_runs) = (keys.finish()?, positions.finish()?);
        store.flush()?;
        close(store)?;
        filter.save(disk, &temp.path().join(FILTER_FILE))?;
        let store_bytes = Store::bytes(disk, temp.path())?;
        let secret = folder.secret.name();
        Manifest::new(
            range.clone(),
            key_count,
            key_runs,
            position_runs,
            store_bytes,
            secret,
        )
        .save(disk, temp.path())?;
        temp.install()?;
        match finished(&folder, &range)? {
            Some(generation) => Ok(generation),
            None => Err(io::Error::other("the new files are damaged").into()),
        }
    }

    fn put_run(&mut self) -> Result<(), BuildError> {
        if let Some((first, body)) = self.run.take() {
            self.keys.put(first, body)?;
        }
        self.filter.insert(&self.hashes);
        self.hashes.clear();
        Ok(())
    }

    fn put_positions_run(&mut self) -> Result<(), BuildError> {
        if let Some((key, body)) = self.positions_run.take() {
            self.positions.put(&key, &body)?;
        }
        Ok(())
    }
}

/// The generation of `range`, if an earlier attempt finished it and could not open it, for example because the
/// store did not release its lock: it is as good as a new one, and is not rebuilt.
pub(super) fn finished(
    folder: &Folder,
    range: &Range<Sequence>,
) -> Result<Option<Generation>, BuildError> {
    match Generation::open(folder, range.clone()) {
        Ok(generation) => Ok(Some(generation)),
        Err(Trouble::Damage(_)) => Ok(None),
        Err(Trouble::Unreadable(error) | Trouble::Store(error)) => Err(error.into()),
        Err(Trouble::Newer { .. }) => Err(io::Error::other("a newer version wrote it").into()),
    }
}

/// Runs `build`. sled asserts its reads and writes, and its panic must not end a thread of the index.
pub(super) fn caught<T>(build: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    catch_unwind(AssertUnwindSafe(build))
        .unwrap_or_else(|_| Err(io::Error::other("building panicked").into()))
}
