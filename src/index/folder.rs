//! Folder: the place of an index, its secret and its limits, shared by building and opening generations.

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::{RunLimits, disk::folder_name, secret::Secret};
use crate::{event::Sequence, platform::Disk};

/// The folder of an index. Cheap to clone.
#[derive(Clone)]
pub(super) struct Folder {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) secret: Secret,
    /// For generations being built.
    pub(super) runs: RunLimits,
}

impl Folder {
    /// The place of the generation of `range`, whether or not it exists.
    pub(super) fn generation(&self, range: &Range<Sequence>) -> PathBuf {
        self.path.join(folder_name(range))
    }
}
