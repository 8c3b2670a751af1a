//! Manifest: the last file written of a generation, which says what is in it.
//!
//! Owns the file `generation.json`. A generation without a whole manifest was not finished.

use std::{io, ops::Range, path::Path};

use serde::{Deserialize, Serialize};

use super::error::Fault;
use crate::{event::Sequence, platform::Disk};

const FILE: &str = "generation.json";
const FORMAT: u32 = 2;

/// What is in a file of runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runs {
    /// The key of the first run; empty if there is none.
    pub(super) first: Vec<u8>,
    /// The length of the file.
    pub(super) bytes: u64,
}

/// What is in a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// The first sequence it covers.
    first: Sequence,
    /// The first sequence after those it covers.
    end: Sequence,
    pub(super) keys: u64,
    pub(super) key_runs: Runs,
    pub(super) slice_runs: Runs,
    /// The length of the store's main file, which never gets shorter.
    pub(super) store_bytes: u64,
    /// Of this manifest with 0 here.
    crc32c: u32,
}

impl Manifest {
    pub(super) fn new(
        range: Range<Sequence>,
        keys: u64,
        key_runs: Runs,
        slice_runs: Runs,
        store_bytes: u64,
    ) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            first: range.start,
            end: range.end,
            keys,
            key_runs,
            slice_runs,
            store_bytes,
            crc32c: 0,
        };
        manifest.crc32c = manifest.checksum();
        manifest
    }

    pub(super) fn range(&self) -> Range<Sequence> {
        self.first..self.end
    }

    /// Writes it to a new file in `folder`, without syncing it.
    pub(super) fn save(&self, disk: &dyn Disk, folder: &Path) -> io::Result<()> {
        disk.write_new(&folder.join(FILE), &self.json()).map(drop)
    }

    /// Reads the one in `folder`.
    pub(super) fn load(disk: &dyn Disk, folder: &Path) -> io::Result<Result<Self, Fault>> {
        let json = disk.read(&folder.join(FILE))?;
        Ok(Self::parse(&json))
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, Fault> {
        let manifest: Self = serde_json::from_slice(json)
            .map_err(|error| Fault::new(format!("{FILE} is malformed: {error}")))?;
        if manifest.format != FORMAT {
            return Err(Fault::new(format!(
                "{FILE} has format {}, this version reads {FORMAT}",
                manifest.format
            )));
        }
        if manifest.crc32c != manifest.checksum() {
            return Err(Fault::new(format!("{FILE} does not match its checksum")));
        }
        Ok(manifest)
    }

    fn checksum(&self) -> u32 {
        let blank = Self {
            crc32c: 0,
            ..self.clone()
        };
        crc32c::crc32c(&blank.json())
    }

    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and bytes are JSON")
    }

    /// The manifest in `json` with format and checksum made right, if there is one.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn repair(json: &[u8]) -> Option<Self> {
        let found: Self = serde_json::from_slice(json).ok()?;
        let mut manifest = Self {
            format: FORMAT,
            ..found
        };
        manifest.crc32c = manifest.checksum();
        Some(manifest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_runs()(first in prop::collection::vec(any::<u8>(), 0..20), bytes: u64) -> Runs {
            Runs { first, bytes }
        }
    }

    proptest! {
        #[test]
        fn any_manifest_round_trips(
            range: Range<Sequence>,
            keys: u64,
            runs in [any_runs(), any_runs()],
            store_bytes: u64,
            at in any::<prop::sample::Index>(),
            digit in b'0'..=b'9',
        ) {
            let [key_runs, slice_runs] = runs;
            let manifest = Manifest::new(range.clone(), keys, key_runs, slice_runs, store_bytes);
            prop_assert_eq!(manifest.range(), range);
            let json = manifest.json();
            prop_assert_eq!(&Manifest::parse(&json).expect("whole"), &manifest);
            prop_assert!(Manifest::parse(&json[..at.index(json.len())]).is_err());
            let mut changed = json.clone();
            changed[at.index(json.len())] = digit;
            prop_assert!(changed == json || Manifest::parse(&changed).is_err());
        }
    }

    #[test]
    fn it_round_trips_and_damage_is_seen() {
        let runs = |first: &[u8], bytes| Runs {
            first: first.to_vec(),
            bytes,
        };
        let (keys, slices) = (runs(b"a\0b", 5000), runs(b"a\0\0\x01", 70));
        let manifest = Manifest::new(1..100, 99, keys, slices, 4096);
        let json = manifest.json();
        assert_eq!(Manifest::parse(&json).expect("whole"), manifest);
        for at in 0..json.len() {
            for bit in 0..8 {
                let mut damaged = json.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    Manifest::parse(&damaged).is_err(),
                    "{}",
                    String::from_utf8_lossy(&damaged)
                );
            }
        }
    }
}
