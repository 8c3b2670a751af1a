//! Folder: where an index is, the secret that it hashes with, and its limits; what building and opening generations share.

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::{RunLimits, disk::folder_name, secret::Secret};
use crate::{event::Sequence, platform::Disk};

/// The folder of an index. Cheap to clone.
#[derive(Clone)]
pub(super) struct Folder {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) secret: Secret,
    /// Of the generations that are built.
    pub(super) runs: RunLimits,
}

impl Folder {
    /// Where the generation of `range` is, or would be.
    pub(super) fn generation(&self, range: &Range<Sequence>) -> PathBuf {
        self.path.join(folder_name(range))
    }
}
