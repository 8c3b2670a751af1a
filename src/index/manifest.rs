//! Manifest: the last file written of a generation, which describes its content.
//!
//! Owns the file `generation.json`. A generation without an intact manifest was not finished. From version 3 on, every
//! version has its number in `format` and ends with `,"crc32c":<CRC32C of all before>}`, so that a newer version is
//! not mistaken for damage.

use std::{io, ops::Range, path::Path};

use serde::{Deserialize, Serialize};

use super::error::{Fault, Trouble};
use crate::{event::Sequence, platform::Disk};

pub(super) const FILE: &str = "generation.json";
/// 3: contents and keys are hashed under the secret of the index; 2 hashed them without one.
const FORMAT: u32 = 3;
/// The start of the last member.
const CRC_MEMBER: &str = ",\"crc32c\":";

/// The description of a file of runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runs {
    /// The key of the first run; empty if there is none.
    pub(super) first: Vec<u8>,
    /// The length of the file.
    pub(super) bytes: u64,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// The first sequence it covers.
    first: Sequence,
    /// The first sequence after those it covers.
    end: Sequence,
    pub(super) keys: u64,
    pub(super) key_runs: Runs,
    #[serde(rename = "slice_runs")]
    pub(super) position_runs: Runs,
    /// The length of the store's main file, which never shrinks.
    pub(super) store_bytes: u64,
    /// The name of the secret behind its hashes.
    pub(super) secret: u64,
    /// Of everything before it.
    crc32c: u32,
}

/// The members of every version.
#[derive(Deserialize)]
struct AnyVersion {
    format: u32,
    crc32c: u32,
}

impl Manifest {
    pub(super) fn new(
        range: Range<Sequence>,
        keys: u64,
        key_runs: Runs,
        position_runs: Runs,
        store_bytes: u64,
        secret: u64,
    ) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            first: range.start,
            end: range.end,
            keys,
            key_runs,
            position_runs,
            store_bytes,
            secret,
            crc32c: 0,
        };
        manifest.crc32c = checksum(&manifest.json());
        manifest
    }

    pub(super) fn range(&self) -> Range<Sequence> {
        self.first..self.end
    }

    /// Writes it to a new file in `folder`, without syncing.
    pub(super) fn save(&self, disk: &dyn Disk, folder: &Path) -> io::Result<()> {
        disk.write_new(&folder.join(FILE), &self.json()).map(drop)
    }

    /// Reads the manifest in `folder`.
    pub(super) fn load(disk: &dyn Disk, folder: &Path) -> Result<Self, Trouble> {
        let path = folder.join(FILE);
        Self::parse(&disk.read(&path)?).map_err(|trouble| trouble.of(&path))
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, Trouble> {
        let malformed = |error| Fault::new(format!("{FILE} is malformed: {error}"));
        let AnyVersion { format, crc32c } = serde_json::from_slice(json).map_err(malformed)?;
        if format < FORMAT {
            let reason =
                format!("it has format version {format}, and this oncelog writes {FORMAT}");
            return Err(Fault::new(reason).into());
        }
        if crc32c != checksum(json) {
            return Err(Fault::new(format!("{FILE} does not match its checksum")).into());
        }
        if format > FORMAT {
            return Err(Trouble::newer(format, FORMAT));
        }
        Ok(serde_json::from_slice(json).map_err(malformed)?)
    }

    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and bytes are JSON")
    }

    /// The manifest in `json` with format and checksum corrected, if there is one.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn repair(json: &[u8]) -> Option<Self> {
        let found: Self = serde_json::from_slice(json).ok()?;
        let mut manifest = Self {
            format: FORMAT,
            ..found
        };
        manifest.crc32c = checksum(&manifest.json());
        Some(manifest)
    }
}

/// The CRC32C of a manifest up to the member that holds it; of nothing if there is no such member.
fn checksum(json: &[u8]) -> u32 {
    let member = CRC_MEMBER.as_bytes();
    let mut windows = json.windows(member.len());
    let end = windows.rposition(|window| window == member).unwrap_or(0);
    crc32c::crc32c(&json[..end])
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
            secret: u64,
            at in any::<prop::sample::Index>(),
            digit in b'0'..=b'9',
        ) {
            let [key_runs, position_runs] = runs;
            let manifest = Manifest::new(range.clone(), keys, key_runs, position_runs, store_bytes, secret);
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
        let (keys, positions) = (runs(b"a\0b", 5000), runs(b"a\0\0\x01", 70));
        let manifest = Manifest::new(1..100, 99, keys, positions, 4096, 7);
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

    #[test]
    fn versions_are_not_damage() {
        let with_crc = |content: &str| {
            let crc = crc32c::crc32c(content.as_bytes());
            Manifest::parse(format!("{content}{CRC_MEMBER}{crc}}}").as_bytes())
        };
        let newer = with_crc(r#"{"format":4,"what":"a later version has""#);
        assert!(matches!(
            newer,
            Err(Trouble::Newer {
                version: 4,
                known: 3,
                ..
            })
        ));
        let changed = Manifest::parse(br#"{"format":4,"what":"is not so","crc32c":1}"#);
        assert!(matches!(changed, Err(Trouble::Damage(_))));
        let older = Manifest::parse(br#"{"format":2,"first":1,"crc32c":1}"#);
        let Err(Trouble::Damage(Fault(reason))) = older else {
            panic!("version 2 is not read");
        };
        assert!(reason.contains("has format version 2"), "{reason}");
    }
}
