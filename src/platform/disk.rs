//! The file system as the store uses it.
//!
//! Owns [`Disk`], [`DiskFile`] and the operating system's, [`OsDisk`].

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

/// A file system. A change is durable only after the sync that covers it.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents where missing; durable on return.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in any order. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file for reading and writing; fails if it exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to read.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to read and write.
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing any that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all that is in it.
    fn remove_tree(&self, dir: &Path) -> io::Result<()>;
    /// Opens a directory, to sync it later.
    fn open_dir(&self, dir: &Path) -> io::Result<Arc<dyn DiskDir>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything in a directory durable, except its own name.
    fn sync_tree(&self, dir: &Path) -> io::Result<()>;
    /// The bytes of all files in a directory.
    fn tree_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Creates a directory if missing; if it exists, makes its name durable: a process may have died between
    /// creating it and syncing its name.
    fn ensure_dir(&self, path: &Path) -> io::Result<()> {
        use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
        self.create_dir(path)?;
        match self.sync_dir(parent_of(path)) {
            // This process could not have created it either.
            Err(error)
                if matches!(
                    error.kind(),
                    PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported
                ) =>
            {
                Ok(())
            }
            synced => synced,
        }
    }

    /// Whether its paths are those of the operating system, for code that bypasses this trait.
    fn is_of_os(&self) -> bool {
        true
    }

    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open_read(path)?;
        let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut content = vec![0; len];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }

    /// Creates a file with this content; fails if it exists. Not durable on return.
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.create(path)?;
        file.write_all_at(content, 0)?;
        Ok(file)
    }
}

/// The directory that holds `path`.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Whether `error` means that the disk, a quota or the limit on file sizes is exhausted, which passes when
/// somebody makes space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// An open file. Offsets and lengths are in bytes.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads into `buf` from `offset`. Returns how many bytes it read, possibly fewer than there are; none at the
    /// end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the content durable, and as much of the length as is needed to read it.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the content and everything about the file but its name durable.
    fn sync_all(&self) -> io::Result<()>;
    /// The length.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`; fails if the file ends first.
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the length is zero.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// An open directory. Syncing it takes no new file descriptor.
pub trait DiskDir: Send + Sync + 'static {
    /// Makes its names durable.
    fn sync(&self) -> io::Result<()>;
}

/// Writes a file from start to end.
pub struct DiskWriter {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl DiskWriter {
    /// Writes `file`, which must be empty.
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, offset: 0 }
    }

    /// The file.
    pub fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }
}

impl io::Write for DiskWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(buf, self.offset)?;
        self.offset += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file from start to end.
pub struct DiskReader {
    file: Arc<dyn DiskFile>,
    offset: u64,
    len: u64,
}

impl DiskReader {
    /// Reads `file`, which must not grow meanwhile.
    pub fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self {
            file,
            offset: 0,
            len,
        })
    }

    /// The length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.len
    }
}

impl io::Read for DiskReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = (self.len - self.offset).min(buf.len() as u64);
        let read = self.file.read_at(&mut buf[..bytes as usize], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = parent_of(path);
        self.create_dir(parent)?;
        fs::create_dir(path)?;
        self.sync_dir(parent)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Ok(Arc::new(options.open(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::open(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Arc<dyn DiskDir>> {
        Ok(Arc::new(File::open(dir)?))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.open_dir(dir)?.sync()
    }

    fn sync_tree(&self, dir: &Path) -> io::Result<()> {
        for found in fs::read_dir(dir)? {
            let path = found?.path();
            if path.is_dir() {
                self.sync_tree(&path)?;
            } else {
                File::open(&path)?.sync_all()?;
            }
        }
        self.sync_dir(dir)
    }

    fn tree_bytes(&self, dir: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for found in fs::read_dir(dir)? {
            let found = found?;
            let metadata = found.metadata()?;
            bytes += if metadata.is_dir() {
                self.tree_bytes(&found.path())?
            } else {
                metadata.len()
            };
        }
        Ok(bytes)
    }
}

impl DiskDir for File {
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl DiskFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
