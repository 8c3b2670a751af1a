//! Fenced: a sled tree of runs in which each run names the next one, so that a lost run is noticed.
//!
//! sled 0.34.7 may come up without entries that were in it, and without an error, after its file was
//! damaged. Here each value holds a fence, the key of the run that follows, and a checksum. A lookup is the
//! greatest run at or below a probe; the fence above the probe proves that no run between was lost. Knows
//! nothing of what is in a run.
//!
//! A value is `fence length (u16), fence, body, CRC32C (u32) of key and value before it`, little-endian. The
//! last run has an empty fence.

use sled::IVec;

use super::error::Fault;

const LEN_BYTES: usize = 2;
const CRC_BYTES: usize = 4;

/// Fills a tree with runs in ascending order.
pub(super) struct FencedWriter {
    tree: sled::Tree,
    /// The last run, which waits for its fence.
    waiting: Option<(Vec<u8>, Vec<u8>)>,
    first: Vec<u8>,
}

impl FencedWriter {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self {
            tree,
            waiting: None,
            first: Vec::new(),
        }
    }

    /// Adds a run whose `key`, not empty, is above all so far.
    pub(super) fn put(&mut self, key: &[u8], body: &[u8]) -> sled::Result<()> {
        match self.waiting.replace((key.to_vec(), body.to_vec())) {
            Some((last, body)) => {
                assert!(*last < *key, "runs come in ascending order");
                self.write(&last, &body, key)
            }
            None => {
                self.first = key.to_vec();
                Ok(())
            }
        }
    }

    /// Writes the last run and returns the key of the first one, empty if there is none.
    pub(super) fn finish(mut self) -> sled::Result<Vec<u8>> {
        if let Some((last, body)) = self.waiting.take() {
            self.write(&last, &body, &[])?;
        }
        Ok(self.first)
    }

    fn write(&self, key: &[u8], body: &[u8], fence: &[u8]) -> sled::Result<()> {
        let len = u16::try_from(fence.len()).expect("keys are short");
        let mut value = Vec::with_capacity(LEN_BYTES + fence.len() + body.len() + CRC_BYTES);
        value.extend_from_slice(&len.to_le_bytes());
        value.extend_from_slice(fence);
        value.extend_from_slice(body);
        let crc = checksum(key, &value);
        value.extend_from_slice(&crc.to_le_bytes());
        self.tree.insert(key, value)?;
        Ok(())
    }
}

/// A filled tree, for lookups.
pub(super) struct Fenced {
    tree: sled::Tree,
    /// The key of the first run; empty if there is none.
    first: Vec<u8>,
}

impl Fenced {
    /// `first` is what [`FencedWriter::finish`] returned.
    pub(super) fn new(tree: sled::Tree, first: Vec<u8>) -> Self {
        Self { tree, first }
    }

    /// The first run, or none if the tree was written empty.
    pub(super) fn first(&self) -> Result<Option<Run>, Fault> {
        self.at(&self.first)
    }

    /// The run that follows `run`, or none after the last one.
    pub(super) fn after(&self, run: &Run) -> Result<Option<Run>, Fault> {
        self.at(run.fence())
    }

    /// The run with the greatest key at or below `probe`, or none if `probe` is below the first.
    pub(super) fn floor(&self, probe: &[u8]) -> Result<Option<Run>, Fault> {
        if self.first.is_empty() || probe < self.first.as_slice() {
            return Ok(None);
        }
        let Some(found) = self.tree.range(..=probe).next_back() else {
            return Err(Fault::new("the first run is lost"));
        };
        let (key, value) = found?;
        let run = Run::check(key, value)?;
        if !run.fence().is_empty() && run.fence() <= probe {
            return Err(Fault::new("a run is lost"));
        }
        Ok(Some(run))
    }

    fn at(&self, key: &[u8]) -> Result<Option<Run>, Fault> {
        if key.is_empty() {
            return Ok(None);
        }
        match self.tree.get(key)? {
            Some(value) => Run::check(key.into(), value).map(Some),
            None => Err(Fault::new("a run is lost")),
        }
    }
}

/// A run that was read and checked.
pub(super) struct Run {
    key: IVec,
    value: IVec,
    fence_len: usize,
}

impl Run {
    fn check(key: IVec, value: IVec) -> Result<Self, Fault> {
        let fault = || Fault::new("a run does not match its checksum");
        let checked = value.len().checked_sub(CRC_BYTES).ok_or_else(fault)?;
        let (content, crc) = value.split_at(checked);
        if crc != checksum(&key, content).to_le_bytes() {
            return Err(fault());
        }
        let (len, rest) = content.split_first_chunk().ok_or_else(fault)?;
        let fence_len = usize::from(u16::from_le_bytes(*len));
        if fence_len > rest.len() {
            return Err(fault());
        }
        Ok(Self {
            key,
            value,
            fence_len,
        })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.value[LEN_BYTES + self.fence_len..self.value.len() - CRC_BYTES]
    }

    /// The key of the next run; empty for the last one.
    pub(super) fn fence(&self) -> &[u8] {
        &self.value[LEN_BYTES..LEN_BYTES + self.fence_len]
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (sled::Db, sled::Tree) {
        let db = sled::Config::new().temporary(true).open().expect("a store");
        let tree = db.open_tree("runs").expect("a tree");
        (db, tree)
    }

    fn filled(keys: &[&str]) -> (sled::Db, sled::Tree, Fenced) {
        let (db, tree) = tree();
        let mut writer = FencedWriter::new(tree.clone());
        for key in keys {
            writer
                .put(key.as_bytes(), format!("body of {key}").as_bytes())
                .expect("written");
        }
        let first = writer.finish().expect("written");
        (db, tree.clone(), Fenced::new(tree, first))
    }

    fn floor(runs: &Fenced, probe: &str) -> Option<String> {
        let run = runs.floor(probe.as_bytes()).expect("whole")?;
        assert_eq!(
            run.body(),
            [b"body of ", run.key()].concat(),
            "each run has its own body"
        );
        Some(String::from_utf8(run.key().to_vec()).expect("text"))
    }

    #[test]
    fn a_probe_finds_the_run_at_or_below_it() {
        let (_db, _, runs) = filled(&["b", "d", "f"]);
        for (probe, expected) in [
            ("a", None),
            ("b", Some("b")),
            ("c", Some("b")),
            ("d", Some("d")),
            ("zz", Some("f")),
        ] {
            assert_eq!(floor(&runs, probe).as_deref(), expected, "{probe}");
        }
        let mut keys = Vec::new();
        let mut run = runs.first().expect("whole");
        while let Some(here) = run {
            keys.push(here.key().to_vec());
            run = runs.after(&here).expect("whole");
        }
        assert_eq!(keys, [b"b", b"d", b"f"]);
        let (_db, _, none) = filled(&[]);
        assert!(none.floor(b"a").expect("whole").is_none());
        assert!(none.first().expect("whole").is_none());
    }

    #[test]
    fn a_lost_run_is_noticed() {
        for lost in ["b", "d", "f"] {
            let (_db, tree, runs) = filled(&["b", "d", "f"]);
            tree.remove(lost).expect("removed");
            let probe = format!("{lost}x");
            assert!(runs.floor(probe.as_bytes()).is_err(), "{lost}");
            assert!(runs.floor(b"a").expect("before all").is_none());
        }
    }

    #[test]
    fn a_changed_or_misplaced_run_is_noticed() {
        let (_db, tree, runs) = filled(&["b", "d"]);
        let value = tree.get("b").expect("read").expect("there");
        for at in 0..value.len() {
            let mut changed = value.to_vec();
            changed[at] ^= 1;
            tree.insert("b", changed).expect("written");
            assert!(runs.floor(b"b").is_err(), "byte {at}");
        }
        tree.insert("d", value).expect("written");
        assert!(runs.floor(b"d").is_err());
    }
}
