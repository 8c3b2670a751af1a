//! Plain: the ordered maps of a generation in one file, for a simulated disk.
//!
//! Stands in for sled where sled's files cannot be, and guarantees no more than sled: after damage to its file it opens
//! with the entries that it can still read, and after a failed read it fails until it is reopened.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use sled::IVec;

use crate::platform::{Disk, DiskFile};

const FILE: &str = "plain";
const LEN_BYTES: usize = 2;

type Maps = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// The maps and their file.
pub(super) struct PlainStore {
    maps: Arc<Mutex<Maps>>,
    file: Arc<dyn DiskFile>,
    failed: Arc<AtomicBool>,
}

/// One map.
#[derive(Clone)]
pub(super) struct PlainTree {
    name: Vec<u8>,
    maps: Arc<Mutex<Maps>>,
    file: Arc<dyn DiskFile>,
    failed: Arc<AtomicBool>,
}

impl PlainStore {
    /// Opens or creates the file in `folder`.
    pub(super) fn open(disk: &dyn Disk, folder: &Path) -> io::Result<Self> {
        let path = path(folder);
        let (file, content) = match disk.read(&path) {
            Ok(content) => (disk.open_write(&path)?, content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (disk.create(&path)?, Vec::new())
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            maps: Arc::new(Mutex::new(decode(&content))),
            file,
            failed: Arc::default(),
        })
    }

    pub(super) fn bytes(disk: &dyn Disk, folder: &Path) -> io::Result<u64> {
        disk.open_read(&path(folder))?.len()
    }

    pub(super) fn has_tree(&self, name: &str) -> bool {
        lock(&self.maps).contains_key(name.as_bytes())
    }

    pub(super) fn open_tree(&self, name: &str) -> PlainTree {
        let name = name.as_bytes().to_vec();
        lock(&self.maps).entry(name.clone()).or_default();
        PlainTree {
            name,
            maps: Arc::clone(&self.maps),
            file: Arc::clone(&self.file),
            failed: Arc::clone(&self.failed),
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        let mut content = Vec::new();
        for (name, map) in &*lock(&self.maps) {
            put(&mut content, [name, b"", b""]);
            for (key, value) in map {
                put(&mut content, [name, key, value]);
            }
        }
        self.file.write_all_at(&content, 0)
    }
}

impl PlainTree {
    pub(super) fn insert(&self, key: &[u8], value: &[u8]) {
        let mut maps = lock(&self.maps);
        let map = maps.entry(self.name.clone()).or_default();
        map.insert(key.to_vec(), value.to_vec());
    }

    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<IVec>> {
        self.touch()?;
        let maps = lock(&self.maps);
        let value = maps.get(&self.name).and_then(|map| map.get(key));
        Ok(value.map(|value| IVec::from(&**value)))
    }

    pub(super) fn floor(&self, probe: &[u8]) -> io::Result<Option<(IVec, IVec)>> {
        self.touch()?;
        let maps = lock(&self.maps);
        let bounds = (std::ops::Bound::Unbounded, std::ops::Bound::Included(probe));
        let map = maps.get(&self.name);
        let found = map.and_then(|map| map.range::<[u8], _>(bounds).next_back());
        Ok(found.map(|(key, value)| (IVec::from(&**key), IVec::from(&**value))))
    }

    /// Reads, so that the disk's faults take effect.
    fn touch(&self) -> io::Result<()> {
        if self.failed.load(SeqCst) {
            return Err(io::Error::other("an earlier read failed"));
        }
        let read = self.file.read_at(&mut [0], 0);
        self.failed.store(read.is_err(), SeqCst);
        read.map(drop)
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

fn lock(maps: &Mutex<Maps>) -> MutexGuard<'_, Maps> {
    maps.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry: map, key and value, each preceded by its length, and the CRC32C of it all.
fn put(content: &mut Vec<u8>, fields: [&[u8]; 3]) {
    let begin = content.len();
    for field in fields {
        let len = u16::try_from(field.len()).expect("entries are short");
        content.extend_from_slice(&len.to_le_bytes());
        content.extend_from_slice(field);
    }
    let crc = crc32c::crc32c(&content[begin..]);
    content.extend_from_slice(&crc.to_le_bytes());
}

/// All entries before the first damaged one.
fn decode(mut content: &[u8]) -> Maps {
    let mut maps = Maps::new();
    while let Some((fields, rest)) = take(content) {
        let [name, key, value] = fields;
        let map = maps.entry(name.to_vec()).or_default();
        if !key.is_empty() {
            map.insert(key.to_vec(), value.to_vec());
        }
        content = rest;
    }
    maps
}

fn take(content: &[u8]) -> Option<([&[u8]; 3], &[u8])> {
    let mut rest = content;
    let mut fields = [&[][..]; 3];
    for field in &mut fields {
        let (len, after) = rest.split_first_chunk::<LEN_BYTES>()?;
        (*field, rest) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    }
    let entry = &content[..content.len() - rest.len()];
    let (crc, rest) = rest.split_first_chunk()?;
    (u32::from_le_bytes(*crc) == crc32c::crc32c(entry)).then_some((fields, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::OsDisk;

    #[test]
    fn flushed_entries_are_there_after_reopening() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = PlainStore::open(&OsDisk, dir.path()).expect("created");
        let tree = store.open_tree("keys");
        store.open_tree("empty");
        for key in ["b", "d"] {
            tree.insert(key.as_bytes(), key.as_bytes());
        }
        store.flush().expect("written");
        let len = PlainStore::bytes(&OsDisk, dir.path()).expect("there");
        let reopened = PlainStore::open(&OsDisk, dir.path()).expect("opened");
        assert!(reopened.has_tree("empty") && !reopened.has_tree("other"));
        let tree = reopened.open_tree("keys");
        let floor = |tree: &PlainTree, probe| tree.floor(probe).expect("read");
        assert_eq!(tree.get(b"b").expect("read"), Some(b"b".into()));
        assert_eq!(floor(&tree, b"a"), None);
        assert_eq!(floor(&tree, b"c"), Some((b"b".into(), b"b".into())));
        store.file.write_all_at(b"x", len - 1).expect("written");
        let damaged = PlainStore::open(&OsDisk, dir.path()).expect("opened");
        assert_eq!(floor(&damaged.open_tree("keys"), b"z"), floor(&tree, b"c"));
    }
}
