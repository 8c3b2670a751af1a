//! The log in files: segments, zero-filled ahead, each batch synced before it counts.
//!
//! Owns the files of the log; nothing outside this folder touches them. Locking the data directory is the
//! caller's task.

mod check;
mod directory;
mod file;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod prepare;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod support;
mod walk;

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

pub use check::{Checked, Damage, check};
pub use file::{FileLog, FileLogOptions, ReadWindows};
pub use reader::FileReader;

/// Why an append failed: the file system's error, and where.
#[derive(Debug, Error)]
enum WriteError {
    #[error("the next segment needs {bytes} bytes in {}: {source}", path.display())]
    NoSpace {
        path: PathBuf,
        bytes: u64,
        source: Arc<io::Error>,
    },
    #[error("{}: {source}", path.display())]
    Failed {
        path: PathBuf,
        source: Arc<io::Error>,
    },
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub enum LogOpenError {
    /// The file system refused.
    #[error("opening the log failed at {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
    /// Acknowledged events are damaged or missing; no crash leaves a log like this. Nothing was changed.
    #[error(
        "the log is damaged: {} at offset {offset}: {reason}; `oncelog verify` lists all damage",
        path.display()
    )]
    Damaged {
        /// The file, or the directory where a file is missing.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// The fault.
        reason: String,
    },
    /// A newer oncelog wrote the file.
    #[error(
        "{} has format version {version}; this oncelog knows version {}: run the one that wrote it",
        path.display(),
        segment::FORMAT_VERSION
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its format version.
        version: u32,
    },
}
