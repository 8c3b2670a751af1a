//! Fenced: runs in a file, found through a sled tree. Each run names the next one, so that a lost run is
//! noticed.
//!
//! The tree maps the key of each run to its place in the file: sled keeps one small entry per run instead of
//! the run itself, which would take several times its size in sled's cache and be written twice. After damage
//! to its file, sled 0.34.7 may open without entries it once had, and without an error. So each run holds a
//! fence, the key of the next run, and a checksum. A lookup takes the greatest run at or below a probe; its
//! fence above the probe proves that no run between them was lost. Knows nothing of the content of runs.
//!
//! In the file a run is `fence length (u16), fence, body, CRC32C (u32) of the key and everything before`; in
//! the tree, `offset (u64), length (u32)`; all little-endian. The last run has an empty fence.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use sled::IVec;

use super::{
    error::{BuildError, Fault, Trouble},
    manifest::Runs,
    store::Tree,
};
use crate::platform::{Disk, DiskFile, DiskWriter};

const LEN_BYTES: usize = 2;
const CRC_BYTES: usize = 4;
/// The longest run: one key and its body, each far shorter.
const RUN_BYTES_MAX: u32 = 1024 * 1024;
/// How much is written at a time.
const WRITE_BYTES: usize = 256 * 1024;
/// The file is synced each time this much was written: one sync at the end would hold up those of the log.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// Fills a tree and its file with runs in ascending order.
pub(super) struct FencedWriter {
    tree: Tree,
    file: BufWriter<DiskWriter>,
    /// The length of the file, and of its synced part.
    bytes: u64,
    synced: u64,
    /// The last run, waiting for its fence.
    waiting: Option<(Vec<u8>, Vec<u8>)>,
    first: Vec<u8>,
}

impl FencedWriter {
    /// Writes into `tree`, which must be empty, and a new file at `path`.
    pub(super) fn create(tree: Tree, disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let file = DiskWriter::new(disk.create(path)?);
        Ok(Self {
            tree,
            file: BufWriter::with_capacity(WRITE_BYTES, file),
            bytes: 0,
            synced: 0,
            waiting: None,
            first: Vec::new(),
        })
    }

    /// Adds a run. Its `key` is not empty and above all so far.
    pub(super) fn put(&mut self, key: &[u8], body: &[u8]) -> Result<(), BuildError> {
        match self.waiting.take() {
            Some((mut last, mut waiting)) => {
                assert!(*last < *key, "runs come in ascending order");
                self.write(&last, &waiting, key)?;
                last.clear();
                last.extend_from_slice(key);
                waiting.clear();
                waiting.extend_from_slice(body);
                self.waiting = Some((last, waiting));
            }
            None => {
                self.first = key.to_vec();
                self.waiting = Some((key.to_vec(), body.to_vec()));
            }
        }
        Ok(())
    }

    /// Writes the last run. The end of the file, and the tree, remain unsynced.
    pub(super) fn finish(mut self) -> Result<Runs, BuildError> {
        if let Some((last, body)) = self.waiting.take() {
            self.write(&last, &body, &[])?;
        }
        self.file.flush()?;
        Ok(Runs {
            first: self.first,
            bytes: self.bytes,
        })
    }

    fn write(&mut self, key: &[u8], body: &[u8], fence: &[u8]) -> Result<(), BuildError> {
        let len = u16::try_from(fence.len()).expect("keys are short");
        let mut crc = crc32c::crc32c(key);
        for part in [&len.to_le_bytes(), fence, body] {
            crc = crc32c::crc32c_append(crc, part);
            self.file.write_all(part)?;
        }
        self.file.write_all(&crc.to_le_bytes())?;
        let len = LEN_BYTES + fence.len() + body.len() + CRC_BYTES;
        let len = u32::try_from(len).expect("a run is short");
        let place = Place {
            offset: self.bytes,
            len,
        };
        self.tree.insert(key, &place.encode())?;
        self.bytes += u64::from(len);
        if self.bytes - self.synced >= SYNC_BYTES {
            self.file.flush()?;
            self.file.get_ref().file().sync_data()?;
            self.synced = self.bytes;
        }
        Ok(())
    }
}

/// The place of a run in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Place {
    const BYTES: usize = 12;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (offset, rest) = bytes.split_first_chunk()?;
        let place = Self {
            offset: u64::from_le_bytes(*offset),
            len: u32::from_le_bytes(rest.try_into().ok()?),
        };
        (place.len <= RUN_BYTES_MAX).then_some(place)
    }
}

/// A filled tree and its file, for lookups.
pub(super) struct Fenced {
    tree: Tree,
    file: Arc<dyn DiskFile>,
    /// The key of the first run; empty if there is none.
    first: Vec<u8>,
}

impl Fenced {
    /// `first` is the result of [`FencedWriter::finish`], `file` its file.
    pub(super) fn new(tree: Tree, file: Arc<dyn DiskFile>, first: Vec<u8>) -> Self {
        Self { tree, file, first }
    }

    /// The first run, or none if the tree was written empty.
    pub(super) fn first(&self) -> Result<Option<Run>, Trouble> {
        self.at(&self.first)
    }

    /// The next run after `run`, or none after the last one.
    pub(super) fn after(&self, run: &Run) -> Result<Option<Run>, Trouble> {
        self.at(run.fence())
    }

    /// The run with the greatest key at or below `probe`, or none if `probe` is below the first.
    pub(super) fn floor(&self, probe: &[u8]) -> Result<Option<Run>, Trouble> {
        if self.first.is_empty() || probe < self.first.as_slice() {
            return Ok(None);
        }
        let Some((key, place)) = self.tree.floor(probe).map_err(Trouble::Store)? else {
            return Err(Fault::new("the first run is lost").into());
        };
        let run = self.read(key, &place)?;
        if !run.fence().is_empty() && run.fence() <= probe {
            return Err(Fault::new("a run is lost").into());
        }
        Ok(Some(run))
    }

    fn at(&self, key: &[u8]) -> Result<Option<Run>, Trouble> {
        if key.is_empty() {
            return Ok(None);
        }
        match self.tree.get(key).map_err(Trouble::Store)? {
            Some(place) => self.read(key.into(), &place).map(Some),
            None => Err(Fault::new("a run is lost").into()),
        }
    }

    fn read(&self, key: IVec, place: &[u8]) -> Result<Run, Trouble> {
        let place = Place::decode(place).ok_or_else(|| Fault::new("a run has no place"))?;
        let mut bytes = vec![0; place.len as usize];
        self.file.read_exact_at(&mut bytes, place.offset)?;
        Ok(Run::check(key, bytes)?)
    }
}

/// A run that was read and checked.
pub(super) struct Run {
    key: IVec,
    bytes: Vec<u8>,
    fence_len: usize,
}

impl Run {
    pub(super) fn check(key: IVec, bytes: Vec<u8>) -> Result<Self, Fault> {
        let fault = || Fault::new("a run does not match its checksum");
        let (content, crc) = bytes.split_last_chunk().ok_or_else(fault)?;
        let expected = crc32c::crc32c_append(crc32c::crc32c(&key), content);
        if u32::from_le_bytes(*crc) != expected {
            return Err(fault());
        }
        let (len, rest) = content.split_first_chunk().ok_or_else(fault)?;
        let fence_len = usize::from(u16::from_le_bytes(*len));
        if fence_len > rest.len() {
            return Err(fault());
        }
        Ok(Self {
            key,
            bytes,
            fence_len,
        })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[LEN_BYTES + self.fence_len..self.bytes.len() - CRC_BYTES]
    }

    /// The key of the next run; empty for the last one.
    pub(super) fn fence(&self) -> &[u8] {
        &self.bytes[LEN_BYTES..LEN_BYTES + self.fence_len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::platform::OsDisk;

    /// Runs in a folder of their own.
    struct Filled {
        runs: Fenced,
        tree: sled::Tree,
        dir: TempDir,
        _db: sled::Db,
    }

    impl Filled {
        fn new(keys: &[&str]) -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let db = sled::Config::new().temporary(true).open().expect("a store");
            let tree = db.open_tree("runs").expect("a tree");
            let path = dir.path().join("runs");
            let mut writer =
                FencedWriter::create(Tree::Sled(tree.clone()), &OsDisk, &path).expect("created");
            for key in keys {
                let body = format!("body of {key}");
                writer
                    .put(key.as_bytes(), body.as_bytes())
                    .expect("written");
            }
            let Runs { first, bytes } = writer.finish().expect("written");
            let file = OsDisk.open_read(&path).expect("opens");
            assert_eq!(file.len().expect("readable"), bytes);
            Self {
                runs: Fenced::new(Tree::Sled(tree.clone()), file, first),
                tree,
                dir,
                _db: db,
            }
        }

        fn floor(&self, probe: &str) -> Option<String> {
            let run = self.runs.floor(probe.as_bytes()).expect("whole")?;
            assert_eq!(
                run.body(),
                [b"body of ", run.key()].concat(),
                "each run has its own body"
            );
            Some(String::from_utf8(run.key().to_vec()).expect("text"))
        }
    }

    proptest! {
        // Each case opens a store.
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn runs_round_trip_in_order(
            keys in prop::collection::btree_set("[a-c]{1,4}", 1..40),
            probes in prop::collection::vec("[a-d]{0,4}", 20),
        ) {
            let names: Vec<&str> = keys.iter().map(String::as_str).collect();
            let filled = Filled::new(&names);
            let mut read = Vec::new();
            let mut run = filled.runs.first().expect("whole");
            while let Some(here) = run {
                read.push(String::from_utf8(here.key().to_vec()).expect("text"));
                run = filled.runs.after(&here).expect("whole");
            }
            prop_assert!(read.iter().eq(&keys));
            for probe in probes.iter().chain(&keys) {
                let found = filled.floor(probe);
                prop_assert_eq!(found.as_ref(), keys.range(..=probe.clone()).next_back());
            }
        }
    }

    proptest! {
        #[test]
        fn places_round_trip(offset: u64, len in 0..=RUN_BYTES_MAX, more in 1..=u32::MAX - RUN_BYTES_MAX) {
            let place = Place { offset, len };
            let encoded = place.encode();
            prop_assert_eq!(Place::decode(&encoded), Some(place));
            prop_assert_eq!(Place::decode(&encoded[1..]), None);
            let longer = Place { offset, len: RUN_BYTES_MAX + more };
            prop_assert_eq!(Place::decode(&longer.encode()), None);
        }
    }

    #[test]
    fn a_probe_finds_the_run_at_or_below_it() {
        let filled = Filled::new(&["b", "d", "f"]);
        for (probe, expected) in [
            ("a", None),
            ("b", Some("b")),
            ("c", Some("b")),
            ("d", Some("d")),
            ("zz", Some("f")),
        ] {
            assert_eq!(filled.floor(probe).as_deref(), expected, "{probe}");
        }
        let mut keys = Vec::new();
        let mut run = filled.runs.first().expect("whole");
        while let Some(here) = run {
            keys.push(here.key().to_vec());
            run = filled.runs.after(&here).expect("whole");
        }
        assert_eq!(keys, [b"b", b"d", b"f"]);
        let none = Filled::new(&[]).runs;
        assert!(none.floor(b"a").expect("whole").is_none());
        assert!(none.first().expect("whole").is_none());
    }

    #[test]
    fn a_lost_run_is_noticed() {
        for lost in ["b", "d", "f"] {
            let filled = Filled::new(&["b", "d", "f"]);
            filled.tree.remove(lost).expect("removed");
            for probe in [lost.to_owned(), format!("{lost}x")] {
                assert!(filled.runs.floor(probe.as_bytes()).is_err(), "{probe}");
            }
            assert!(filled.runs.floor(b"a").expect("before all").is_none());
        }
    }

    #[test]
    fn a_misplaced_run_is_noticed() {
        let Filled { runs, tree, .. } = Filled::new(&["b", "d"]);
        let place = tree.get("b").expect("read").expect("there");
        for at in 0..place.len() {
            for bit in 0..8 {
                let mut changed = place.to_vec();
                changed[at] ^= 1 << bit;
                tree.insert("b", changed).expect("written");
                assert!(runs.floor(b"b").is_err(), "bit {bit} of byte {at}");
            }
        }
        tree.insert("b", &place[1..]).expect("written");
        assert!(runs.floor(b"b").is_err());
        tree.insert("d", place).expect("written");
        assert!(runs.floor(b"d").is_err());
    }

    #[test]
    fn a_changed_run_is_noticed() {
        let filled = Filled::new(&["b", "d"]);
        let path = filled.dir.path().join("runs");
        let whole = std::fs::read(&path).expect("read");
        let of_b = whole.len() - (LEN_BYTES + "body of d".len() + CRC_BYTES);
        for at in 0..of_b {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).expect("written");
            assert!(filled.runs.floor(b"b").is_err(), "byte {at}");
        }
        std::fs::write(&path, &whole[..of_b - 1]).expect("written");
        assert!(filled.runs.floor(b"b").is_err());
        std::fs::write(&path, &whole).expect("written");
        assert_eq!(filled.floor("c").as_deref(), Some("b"));
    }
}
