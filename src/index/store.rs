//! Store: the ordered maps of a generation, in sled.
//!
//! Owns opening sled, its limits and its traps; only this file and `error.rs` name it. sled opens files by
//! itself. On a disk other than the operating system's, the maps are in one plain file instead.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use sled::IVec;

use super::error::{is_locked, sled_io};
#[cfg(any(test, feature = "simulation"))]
use super::plain::{PlainStore, PlainTree};
use crate::platform::Disk;

const STORE_FOLDER: &str = "sled";
/// sled's main file in its folder.
const STORE_FILE: &str = "db";

/// sled's cache, in bytes: this much for each key, within the limits. Enough for all it has.
const CACHE_BYTES_PER_KEY: u64 = 4;
const CACHE_BYTES_MIN: u64 = 4 * 1024 * 1024;
const CACHE_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// How long to wait for a closed store to release its lock, which sled does in the background.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// The store of a generation.
pub(super) enum Store {
    Sled(sled::Db),
    #[cfg(any(test, feature = "simulation"))]
    Plain(PlainStore),
}

/// An ordered map.
#[derive(Clone)]
pub(super) enum Tree {
    Sled(sled::Tree),
    #[cfg(any(test, feature = "simulation"))]
    Plain(PlainTree),
}

/// Drops `store`, whether or not it is the last handle. sled asserts on closing that its files can be synced: its
/// panic becomes the result of closing, not the end of a thread.
pub(super) fn close<T>(store: T) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(|| drop(store)))
        .map_err(|_| io::Error::other("sled panicked while it was closed"))
}

impl Store {
    /// Opens or creates the store of the generation in `folder`, which has `keys` keys.
    pub(super) fn open(disk: &dyn Disk, folder: &Path, keys: u64) -> io::Result<Self> {
        #[cfg(any(test, feature = "simulation"))]
        if !disk.is_of_os() {
            return Ok(Self::Plain(PlainStore::open(disk, folder)?));
        }
        let store_folder = folder.join(STORE_FOLDER);
        disk.create_dir(&store_folder)?;
        remove_unfinished_snapshots(disk, &store_folder)?;
        let config = || {
            sled::Config::new()
                .path(&store_folder)
                .cache_capacity(
                    (keys * CACHE_BYTES_PER_KEY).clamp(CACHE_BYTES_MIN, CACHE_BYTES_MAX),
                )
                .flush_every_ms(None)
        };
        let begin = Instant::now();
        loop {
            match config().open().map_err(sled_io) {
                Err(error) if is_locked(&error) && begin.elapsed() < LOCK_WAIT_MAX => {
                    thread::sleep(LOCK_POLL);
                }
                done => return Ok(Self::Sled(done?)),
            }
        }
    }

    /// The length of the main file of the closed store in `folder`. It never shrinks.
    pub(super) fn bytes(disk: &dyn Disk, folder: &Path) -> io::Result<u64> {
        #[cfg(any(test, feature = "simulation"))]
        if !disk.is_of_os() {
            return PlainStore::bytes(disk, folder);
        }
        disk.open_read(&folder.join(STORE_FOLDER).join(STORE_FILE))?
            .len()
    }

    /// Whether it has a map of this name.
    pub(super) fn has_tree(&self, name: &str) -> bool {
        match self {
            Self::Sled(db) => {
                let names = db.tree_names();
                names.iter().any(|found| found == name.as_bytes())
            }
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(store) => store.has_tree(name),
        }
    }

    /// The map of this name, created if missing.
    pub(super) fn open_tree(&self, name: &str) -> io::Result<Tree> {
        match self {
            Self::Sled(db) => Ok(Tree::Sled(db.open_tree(name).map_err(sled_io)?)),
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(store) => Ok(Tree::Plain(store.open_tree(name))),
        }
    }

    /// Writes out the maps. Not durable on return, whatever sled's documentation promises.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Sled(db) => db.flush().map(drop).map_err(sled_io),
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(store) => store.flush(),
        }
    }
}

impl Tree {
    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self {
            Self::Sled(tree) => tree.insert(key, value).map(drop).map_err(sled_io),
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(tree) => {
                tree.insert(key, value);
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<IVec>> {
        match self {
            Self::Sled(tree) => tree.get(key).map_err(sled_io),
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(tree) => tree.get(key),
        }
    }

    /// The greatest key at or below `probe`, and its value.
    pub(super) fn floor(&self, probe: &[u8]) -> io::Result<Option<(IVec, IVec)>> {
        match self {
            Self::Sled(tree) => tree
                .range(..=probe)
                .next_back()
                .transpose()
                .map_err(sled_io),
            #[cfg(any(test, feature = "simulation"))]
            Self::Plain(tree) => tree.floor(probe),
        }
    }
}

/// A kill while sled writes a snapshot leaves a file that sled later takes for damage; it is derived from the
/// main file.
fn remove_unfinished_snapshots(disk: &dyn Disk, store_folder: &Path) -> io::Result<()> {
    for name in disk.list(store_folder)? {
        if name.starts_with("snap.") && name.ends_with(".generating") {
            disk.remove(&store_folder.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a sync failed");
        }
    }

    #[test]
    fn a_panic_of_closing_is_an_error() {
        assert!(close(Panics).is_err());
        assert!(close(()).is_ok());
    }
}
