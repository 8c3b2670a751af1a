//! Builder: writes a generation, in order, into a folder that appears when it is whole and durable.
//!
//! Owns the order in which a generation's files are written. Where its keys come from, memory or other
//! generations, is the callers'.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use xxhash_rust::xxh3::xxh3_64;

use super::{
    Entry,
    disk::{TempFolder, folder_name},
    error::BuildError,
    fence::FencedWriter,
    filter::Filter,
    generation::{FILTER_FILE, Generation, KEYS_TREE, SLICES_TREE, Unusable},
    manifest::Manifest,
    run::{RUN_KEYS_MAX, RunWriter},
    slices::SlicesWriter,
    store::Store,
};
use crate::{event::Sequence, platform::Disk};

/// A generation that is being built. Dropped before it is finished, it leaves nothing.
pub(super) struct Builder {
    range: Range<Sequence>,
    filter: Filter,
    run: RunWriter,
    /// The hashes of the keys in the run.
    hashes: Vec<u64>,
    slices_run: SlicesWriter,
    key_count: u64,
    // The store, declared before its folder: it is closed before the folder is removed.
    keys: FencedWriter,
    slices: FencedWriter,
    store: Store,
    folder: TempFolder,
    disk: Arc<dyn Disk>,
}

impl Builder {
    /// Begins a generation in the folder `dir`, of the sequences `range` and at most `keys_max` keys.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        range: Range<Sequence>,
        keys_max: u64,
    ) -> Result<Self, BuildError> {
        let folder = TempFolder::create(Arc::clone(disk), dir.join(folder_name(&range)))?;
        let store = Store::open(&**disk, folder.path(), keys_max)?;
        let runs = |name| -> Result<_, BuildError> {
            let tree = store.open_tree(name)?;
            let path = folder.path().join(name);
            Ok(FencedWriter::create(tree, &**disk, &path)?)
        };
        Ok(Self {
            filter: Filter::with_capacity(keys_max),
            run: RunWriter::new(range.start),
            hashes: Vec::with_capacity(RUN_KEYS_MAX),
            slices_run: SlicesWriter::default(),
            key_count: 0,
            keys: runs(KEYS_TREE)?,
            slices: runs(SLICES_TREE)?,
            range,
            store,
            folder,
            disk: Arc::clone(disk),
        })
    }

    /// Adds a key above all so far; one that equals the last is left out. True if it began a run, for callers
    /// that look up now and then.
    pub(super) fn push_key(&mut self, key: &[u8], entry: Entry) -> Result<bool, BuildError> {
        assert!(
            self.range.contains(&entry.sequence),
            "a generation holds the sequences it covers"
        );
        let full = self.run.is_full();
        if full {
            self.put_run()?;
        }
        if self.run.push(key, entry) {
            self.hashes.push(xxh3_64(key));
            self.key_count += 1;
        }
        Ok(full)
    }

    /// Adds slices, ascending and by topic in ascending order.
    pub(super) fn push_slices(
        &mut self,
        topic: &str,
        slices: &[Sequence],
    ) -> Result<(), BuildError> {
        for &slice in slices {
            if self.slices_run.is_full_for(topic) {
                self.put_slices_run()?;
            }
            self.slices_run.push(topic, slice);
        }
        Ok(())
    }

    /// Makes it durable, gives it its name and opens it.
    pub(super) fn finish(mut self) -> Result<Generation, BuildError> {
        self.put_run()?;
        self.put_slices_run()?;
        // The folder first: of what is left when something fails, the last is dropped first.
        let Self {
            folder,
            range,
            filter,
            key_count,
            store,
            keys,
            slices,
            disk,
            ..
        } = self;
        let (key_runs, slice_runs) = (keys.finish()?, slices.finish()?);
        store.flush()?;
        drop(store);
        filter.save(&*disk, &folder.path().join(FILTER_FILE))?;
        let store_bytes = Store::bytes(&*disk, folder.path())?;
        Manifest::new(range.clone(), key_count, key_runs, slice_runs, store_bytes)
            .save(&*disk, folder.path())?;
        let path = folder.publish()?;
        Generation::open(&disk, &path, range).map_err(|unusable| match unusable {
            Unusable::Unreadable(error) => error.into(),
            Unusable::Damaged(fault) => io::Error::other(fault.0.to_string()).into(),
        })
    }

    fn put_run(&mut self) -> Result<(), BuildError> {
        if let Some((first, body)) = self.run.take() {
            self.keys.put(first, body)?;
        }
        self.filter.insert(&self.hashes);
        self.hashes.clear();
        Ok(())
    }

    fn put_slices_run(&mut self) -> Result<(), BuildError> {
        if let Some((key, body)) = self.slices_run.take() {
            self.slices.put(&key, &body)?;
        }
        Ok(())
    }
}

/// sled asserts what it writes and reads: its panic must not end a thread of the index.
pub(super) fn caught<T>(build: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    catch_unwind(AssertUnwindSafe(build))
        .unwrap_or_else(|_| Err(io::Error::other("building panicked").into()))
}
