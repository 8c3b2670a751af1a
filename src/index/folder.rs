//! Folder: where an index is, and the secret that it hashes with; what building and opening generations share.

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::{disk::folder_name, secret::Secret};
use crate::{event::Sequence, platform::Disk};

/// The folder of an index. Cheap to clone.
#[derive(Clone)]
pub(super) struct Folder {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) secret: Secret,
}

impl Folder {
    /// Where the generation of `range` is, or would be.
    pub(super) fn generation(&self, range: &Range<Sequence>) -> PathBuf {
        self.path.join(folder_name(range))
    }
}
