//! Survey: finds and opens the generations in a folder and reports unusable folders.
//!
//! Opening removes nothing; the caller decides about the rejected ones.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use super::{
    disk,
    error::{Fault, IndexOpenError, Trouble},
    folder::Folder,
    generation::Generation,
    manifest::Manifest,
};
use crate::{
    event::Sequence,
    platform::{Disk, Jobs},
};

/// The folder of an unusable generation.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The folder.
    pub path: PathBuf,
    /// Why, for the operator.
    pub reason: Arc<str>,
}

/// The generations of a folder.
pub(super) struct Survey {
    /// Sorted, without overlaps.
    pub(super) generations: Vec<Arc<Generation>>,
    pub(super) rejected: Vec<Rejected>,
}

/// Fails if a newer version wrote a generation in the folder `dir`. Changes nothing.
pub(super) fn refuse_newer(disk: &dyn Disk, dir: &Path) -> Result<(), IndexOpenError> {
    for (path, _) in folders(disk, dir).map_err(IndexOpenError::io(dir))? {
        if let Err(newer @ Trouble::Newer { .. }) = Manifest::load(disk, &path) {
            return Err(newer.into_open_error(&path));
        }
    }
    Ok(())
}

/// Removes unusable generations, with a warning for each reason.
pub(super) fn remove(disk: &dyn Disk, rejected: Vec<Rejected>) -> Result<(), IndexOpenError> {
    let mut reasons: BTreeMap<Arc<str>, Vec<PathBuf>> = BTreeMap::new();
    for Rejected { path, reason } in rejected {
        reasons.entry(reason).or_default().push(path);
    }
    for (reason, paths) in reasons {
        let (count, first) = (paths.len(), paths[0].display());
        tracing::warn!(%first, count, %reason, "removing generations of the index");
        for path in paths {
            disk::remove_folder(disk, &path).map_err(IndexOpenError::io(&path))?;
        }
    }
    Ok(())
}

/// Opens the generations in `folder` that end at or below `tail`.
pub(super) fn survey(
    jobs: &dyn Jobs,
    folder: &Folder,
    tail: Sequence,
) -> Result<Survey, IndexOpenError> {
    let dir = &*folder.path;
    let mut rejected = Vec::new();
    let mut reject = |path: &Path, fault: Fault| {
        rejected.push(Rejected {
            path: path.to_owned(),
            reason: fault.0,
        });
    };
    let mut found = Vec::new();
    for (path, range) in folders(&*folder.disk, dir).map_err(IndexOpenError::io(dir))? {
        if range.end > tail {
            let reason = format!("it is ahead of the log, which ends at {tail}");
            reject(&path, Fault::new(reason));
        } else {
            found.push((path, range));
        }
    }
    let mut opened = Vec::new();
    for (path, outcome) in open_all(jobs, folder, found) {
        match outcome {
            Ok(generation) => opened.push(generation),
            Err(Trouble::Damage(fault)) => reject(&path, fault),
            Err(trouble) => return Err(trouble.into_open_error(&path)),
        }
    }
    // A crash between installing a merged generation and removing its parents leaves both.
    opened.sort_by_key(|one| Reverse(one.range().end - one.range().start));
    let mut generations: Vec<Arc<Generation>> = Vec::new();
    for generation in opened {
        let range = generation.range();
        let overlaps = |other: &Arc<Generation>| {
            let other = other.range();
            range.start < other.end && other.start < range.end
        };
        if generations.iter().any(overlaps) {
            let reason = Fault::new("a larger generation covers the same sequences");
            reject(generation.path(), reason);
        } else {
            generations.push(Arc::new(generation));
        }
    }
    generations.sort_by_key(|generation| generation.range().start);
    Ok(Survey {
        generations,
        rejected,
    })
}

/// The folders in `dir`, if it exists, that are named like generations.
pub(super) fn folders(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(PathBuf, Range<Sequence>)>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let folder = |name: &String| Some((dir.join(name), disk::parse_folder_name(name)?));
    Ok(names.iter().filter_map(folder).collect())
}

/// Opens generations, as many in parallel as there are processors.
fn open_all(
    jobs: &dyn Jobs,
    folder: &Folder,
    folders: Vec<(PathBuf, Range<Sequence>)>,
) -> Vec<(PathBuf, Result<Generation, Trouble>)> {
    let at_a_time = jobs.parallelism();
    let open = |(_, range): &(PathBuf, Range<Sequence>)| {
        // The store asserts its reads: its panic means that the files are damaged.
        let opened = || Generation::open(folder, range.clone());
        catch_unwind(AssertUnwindSafe(opened))
            .unwrap_or_else(|_| Err(Fault::new("sled panicked").into()))
    };
    let mut opened = Vec::with_capacity(folders.len());
    for group in folders.chunks(at_a_time) {
        let [first, others @ ..] = group else {
            break;
        };
        thread::scope(|scope| {
            let others: Vec<_> = others
                .iter()
                .map(|other| (other, scope.spawn(|| open(other))))
                .collect();
            opened.push((first.0.clone(), open(first)));
            for ((path, _), thread) in others {
                opened.push((path.clone(), thread.join().expect("panics are caught")));
            }
        });
    }
    opened
}
