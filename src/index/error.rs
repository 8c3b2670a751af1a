//! Errors of the index, and which I/O errors say nothing about the files read.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use crate::platform::is_full;

/// Why a lookup or a seal failed. Cheap to clone: one failure answers a whole batch.
#[derive(Clone, Debug, Error)]
pub enum IndexError {
    /// A generation proved to have lost entries. It is marked; the next [`Index::open`](super::Index::open)
    /// removes it and has it refilled from the log.
    #[error("{}: index generation is damaged: {reason}", path.display())]
    Damaged {
        /// The folder of the generation.
        path: PathBuf,
        /// The evidence.
        reason: Arc<str>,
    },
    /// A generation cannot be read at the moment; that says nothing about its content. The next lookup tries
    /// again.
    #[error("{}: an index generation cannot be read at the moment: {source}", path.display())]
    Unreadable {
        /// The folder of the generation.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The parts in memory are full and the disk has no space to seal them. Heals by itself: the sealer
    /// retries about every second.
    #[error("{}: no disk space to seal the index", path.display())]
    Full {
        /// The folder of the index.
        path: PathBuf,
        /// The last failure.
        source: Arc<io::Error>,
    },
    /// The parts in memory are full and cannot be sealed for another reason. The sealer retries about every
    /// second.
    #[error("{}: the index cannot be sealed", path.display())]
    Seal {
        /// The folder of the index.
        path: PathBuf,
        /// The last failure.
        source: Arc<io::Error>,
    },
}

/// Why an index could not be opened. Damaged generations are not a reason: they are rebuilt.
#[derive(Debug, Error)]
pub enum IndexOpenError {
    /// A folder or file cannot be read or written, for a reason outside the index, for example its owner, or
    /// a reader of an earlier [`Index`](super::Index) that is still alive.
    #[error(
        "{}: cannot open the index; if that stays so, and the disk is the cause, remove the folder of the \
         index, which is then rebuilt from the log",
        path.display()
    )]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A newer version wrote a file. Nothing was changed.
    #[error(
        "{} has format version {version}; this oncelog knows version {known}: run the one that wrote it, or remove \
         the folder of the index, which is then rebuilt from the log",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version that this build reads.
        known: u32,
    },
}

impl IndexOpenError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Why a generation was not built.
#[derive(Debug, Error)]
pub(super) enum BuildError {
    /// The index is being dropped, or something more urgent came up.
    #[error("stopped")]
    Stopped,
    /// A parent of a merge cannot be read.
    #[error(transparent)]
    Parent(#[from] IndexError),
    /// Writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BuildError {
    /// The same error, for users of the index in the folder `dir`.
    pub(super) fn into_index_error(self, dir: &Path) -> IndexError {
        let path = dir.to_owned();
        match self {
            Self::Parent(error) => error,
            Self::Io(error) if is_full(&error) => IndexError::Full {
                path,
                source: Arc::new(error),
            },
            Self::Io(error) => IndexError::Seal {
                path,
                source: Arc::new(error),
            },
            Self::Stopped => IndexError::Seal {
                path,
                source: Arc::new(io::ErrorKind::Interrupted.into()),
            },
        }
    }
}

/// An error of sled as an I/O error, of the same kind if it was one.
pub(super) fn sled_io(error: sled::Error) -> io::Error {
    if let sled::Error::Io(error) = error {
        error
    } else {
        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
    }
}

/// Whether `error` means that a file differs from what was written. Any other error comes from the system and may pass:
/// the files may be intact and must not be discarded.
pub(super) fn is_damage(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::InvalidData,
        // An offset beyond any file.
        io::ErrorKind::InvalidInput,
        // sled's own errors.
        io::ErrorKind::Other,
    ];
    kinds.contains(&error.kind()) && !is_locked(error)
}

/// Whether sled could not lock its file; it has no error kind for that.
pub(super) fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().contains("could not acquire lock")
}

/// Why a file of the index could not be read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is unfinished or not as written.
    Damage(Fault),
    /// It may be intact, but cannot be read at the moment.
    Unreadable(io::Error),
    /// Its store failed, perhaps because of damage: sled repeats an error until it is reopened.
    Store(io::Error),
    /// A newer version wrote it.
    Newer {
        /// Empty until [`Trouble::of`] names it.
        path: PathBuf,
        version: u32,
        known: u32,
    },
}

impl Trouble {
    pub(super) fn newer(version: u32, known: u32) -> Self {
        Self::Newer {
            path: PathBuf::new(),
            version,
            known,
        }
    }

    /// The error of opening the index, if it is not damage that can be repaired; `path` was being read.
    pub(super) fn into_open_error(self, path: &Path) -> IndexOpenError {
        let path = path.to_owned();
        match self {
            Self::Newer {
                path,
                version,
                known,
            } => IndexOpenError::Newer {
                path,
                version,
                known,
            },
            Self::Unreadable(source) | Self::Store(source) => IndexOpenError::Io { path, source },
            Self::Damage(Fault(reason)) => IndexOpenError::Io {
                path,
                source: io::Error::new(io::ErrorKind::InvalidData, &*reason),
            },
        }
    }

    /// Classifies a failure of a store that was just opened: there is no earlier error that it could be
    /// repeating.
    pub(super) fn settled(self) -> Self {
        match self {
            Self::Store(error) => error.into(),
            Self::Damage(_) | Self::Unreadable(_) | Self::Newer { .. } => self,
        }
    }

    /// Adds the name of its file.
    pub(super) fn of(self, file: &Path) -> Self {
        match self {
            Self::Newer { version, known, .. } => Self::Newer {
                path: file.to_owned(),
                version,
                known,
            },
            Self::Damage(_) | Self::Unreadable(_) | Self::Store(_) => self,
        }
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Damage(fault)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if is_damage(&error) {
            Self::Damage(error.into())
        } else {
            Self::Unreadable(error)
        }
    }
}

/// The fault in a generation, in words for the operator.
#[derive(Clone, Debug)]
pub(super) struct Fault(pub(super) Arc<str>);

impl Fault {
    pub(super) fn new(reason: impl Into<Arc<str>>) -> Self {
        Self(reason.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reason that a publisher gets depends on it.
    #[test]
    fn a_seal_on_a_full_disk_says_so() {
        let of = |error: io::Error| BuildError::Io(error).into_index_error(Path::new("index"));
        let full = of(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, IndexError::Full { .. }), "{full}");
        let other = of(io::ErrorKind::PermissionDenied.into());
        assert!(matches!(other, IndexError::Seal { .. }), "{other}");
    }
}
