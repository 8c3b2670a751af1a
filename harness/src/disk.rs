//! The disk space of a directory.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// The unit of [`MetadataExt::blocks`], whatever the file system.
const BLOCK_BYTES: u64 = 512;

/// The disk space of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes of all blocks of its files.
    pub bytes: u64,
    /// Files, without directories.
    pub files: u64,
}

impl DiskUse {
    /// The space of `dir` and everything below it. Files may come and go meanwhile.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut used = Self::default();
        used.add(dir)?;
        Ok(used)
    }

    fn add(&mut self, dir: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => self.add(&entry.path())?,
                Ok(metadata) => self.add_file(&metadata),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add_file(&mut self, metadata: &Metadata) {
        self.bytes += metadata.blocks() * BLOCK_BYTES;
        self.files += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_files_are_counted() {
        let dir = tempfile::tempdir().expect("works");
        assert_eq!(DiskUse::of(dir.path()).expect("works"), DiskUse::default());
        fs::create_dir(dir.path().join("inner")).expect("works");
        fs::write(dir.path().join("inner/file"), [7; 5000]).expect("works");
        let used = DiskUse::of(dir.path()).expect("works");
        assert_eq!((used.bytes, used.files), (8192, 1));
        let gone = dir.path().join("gone");
        assert_eq!(DiskUse::of(&gone).expect("works"), DiskUse::default());
    }
}
