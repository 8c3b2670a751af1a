//! Folders that appear and disappear whole: built under another name, synced, renamed.
//!
//! Owns the folders' names and the order of syncs. Knows nothing of their files.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    event::Sequence,
    platform::{Disk, parent_of},
};

/// The suffix of a folder that is being built or removed.
const TEMP_SUFFIX: &str = ".tmp";

/// The name of the folder of a generation: `<first>-<end>`, 20 digits each.
pub(super) fn folder_name(range: &Range<Sequence>) -> String {
    format!("{:020}-{:020}", range.start, range.end)
}

/// The sequences in a name from [`folder_name`].
pub(super) fn parse_folder_name(name: &str) -> Option<Range<Sequence>> {
    let (first, end) = name.split_once('-')?;
    let range = first.parse().ok()?..end.parse().ok()?;
    (!range.is_empty() && folder_name(&range) == name).then_some(range)
}

/// Removes folders left half-built or half-removed in `dir`.
pub(super) fn remove_temp_folders(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for name in disk.list(dir)? {
        if name.ends_with(TEMP_SUFFIX) {
            disk.remove_tree(&dir.join(name))?;
        }
    }
    Ok(())
}

fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMP_SUFFIX);
    name.into()
}

/// A folder that is being built; dropped before it is installed, it is removed.
pub(super) struct TempFolder {
    disk: Arc<dyn Disk>,
    target: PathBuf,
    path: PathBuf,
    installed: bool,
}

impl TempFolder {
    /// Creates the empty folder that becomes `target`, removing the leftovers of an earlier attempt.
    pub(super) fn create(disk: Arc<dyn Disk>, target: PathBuf) -> io::Result<Self> {
        let path = temp_path(&target);
        remove_if_there(&*disk, &path)?;
        remove_if_there(&*disk, &target)?;
        disk.create_dir(&path)?;
        Ok(Self {
            disk,
            target,
            path,
            installed: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder durable and gives it its final name.
    pub(super) fn install(mut self) -> io::Result<()> {
        self.disk.sync_tree(&self.path)?;
        self.disk.rename(&self.path, &self.target)?;
        self.installed = true;
        sync_parent(&*self.disk, &self.target)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if !self.installed
            && let Err(error) = self.disk.remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished folder");
        }
    }
}

/// Removes the folder `path`. It keeps its name until it is removed, or a crash leaves it under a temporary
/// name; it never has its name with only a part of its files.
pub(super) fn remove_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let temp = temp_path(path);
    remove_if_there(disk, &temp)?;
    disk.rename(path, &temp)?;
    disk.remove_tree(&temp)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove_tree(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in the folder that contains `path` durable.
pub(super) fn sync_parent(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.sync_dir(parent_of(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::platform::OsDisk;

    proptest! {
        /// Names sort like their first sequences.
        #[test]
        fn any_name_round_trips(one: Range<Sequence>, other: Range<Sequence>) {
            for range in [&one, &other] {
                let parsed = parse_folder_name(&folder_name(range));
                prop_assert_eq!(parsed, (!range.is_empty()).then(|| range.clone()));
            }
            let starts = one.start.cmp(&other.start);
            prop_assert_eq!(folder_name(&one).cmp(&folder_name(&other)), starts.then(one.end.cmp(&other.end)));
        }
    }

    #[test]
    fn names_round_trip_and_no_others_parse() {
        let range = 7..1_000;
        let name = folder_name(&range);
        assert_eq!(name, "00000000000000000007-00000000000000001000");
        assert_eq!(parse_folder_name(&name), Some(range));
        for other in [
            "7-1000",
            "lost+found",
            &format!("{name}.tmp"),
            &folder_name(&(7..7)),
        ] {
            assert_eq!(parse_folder_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_folder_appears_when_it_is_installed() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("target");
        let abandoned = TempFolder::create(Arc::new(OsDisk), target.clone()).expect("created");
        let path = abandoned.path().to_owned();
        fs::write(path.join("file"), "1").expect("written");
        drop(abandoned);
        assert!(!path.exists() && !target.exists());

        fs::create_dir(&path).expect("a leftover");
        fs::write(path.join("old"), "1").expect("written");
        let temp = TempFolder::create(Arc::new(OsDisk), target.clone()).expect("created");
        fs::create_dir(temp.path().join("inner")).expect("created");
        fs::write(temp.path().join("inner/file"), "12345").expect("written");
        temp.install().expect("installed");
        assert!(!path.exists());
        assert_eq!(OsDisk.tree_bytes(&target).expect("measured"), 5);
        remove_folder(&OsDisk, &target).expect("removed");
        TempFolder::create(Arc::new(OsDisk), target)
            .map(std::mem::forget)
            .expect("a crash while building");
        remove_temp_folders(&OsDisk, dir.path()).expect("removed");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
    }
}
