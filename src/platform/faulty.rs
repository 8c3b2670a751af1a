//! A disk that fails on demand, for tests.
//!
//! Owns [`FaultyDisk`]. Faults are switches, which affect all files until switched off.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use super::{Disk, DiskDir, DiskFile, OsDisk, Platform};

/// Too many open files, on Linux.
const EMFILE: i32 = 24;

/// The operating system's disk, with faults. Clones share their switches.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk {
    switches: Arc<Switches>,
}

#[derive(Debug, Default)]
struct Switches {
    fail_reads: AtomicBool,
    fail_writes: AtomicBool,
    fail_syncs: AtomicBool,
    fail_full_syncs: AtomicBool,
    no_space: AtomicBool,
    no_files: AtomicBool,
    panic_in_syncs: AtomicBool,
    data_syncs: AtomicU64,
    /// The folder that nobody may create at the moment.
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    name: Option<String>,
    /// Whether a thread is waiting.
    is_reached: bool,
}

struct FaultyDir {
    dir: Arc<dyn DiskDir>,
    switches: Arc<Switches>,
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    switches: Arc<Switches>,
}

impl FaultyDisk {
    /// The operating system's platform, with this disk.
    pub fn platform(&self) -> Platform {
        Platform {
            disk: Arc::new(self.clone()),
            ..Platform::default()
        }
    }

    /// Whether reads fail.
    pub fn fail_reads(&self, on: bool) {
        self.switches.fail_reads.store(on, SeqCst);
    }

    /// Whether writes fail.
    pub fn fail_writes(&self, on: bool) {
        self.switches.fail_writes.store(on, SeqCst);
    }

    /// Whether syncs fail, of files and directories.
    pub fn fail_syncs(&self, on: bool) {
        self.switches.fail_syncs.store(on, SeqCst);
    }

    /// Whether syncs of whole files fail; those of data alone do not.
    pub fn fail_full_syncs(&self, on: bool) {
        self.switches.fail_full_syncs.store(on, SeqCst);
    }

    /// Whether the disk is full: no file can be created or grow.
    pub fn no_space(&self, on: bool) {
        self.switches.no_space.store(on, SeqCst);
    }

    /// Whether no file can be opened or created, as if too many were open.
    pub fn no_files(&self, on: bool) {
        self.switches.no_files.store(on, SeqCst);
    }

    /// Whether syncing a file's data panics, as a bug would.
    pub fn panic_in_syncs(&self, on: bool) {
        self.switches.panic_in_syncs.store(on, SeqCst);
    }

    /// Makes any thread that creates a folder of this name wait until a later call releases it.
    pub fn hold_folder(&self, name: Option<&str>) {
        let name = name.map(str::to_owned);
        let is_reached = false;
        *self.held() = Held { name, is_reached };
        self.switches.released.notify_all();
    }

    /// Whether a thread is waiting for the held folder.
    pub fn is_held(&self) -> bool {
        self.held().is_reached
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        let held = self.switches.held.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// How often file data was synced, including failures.
    pub fn data_syncs(&self) -> u64 {
        self.switches.data_syncs.load(SeqCst)
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile {
            file,
            switches: self.switches.clone(),
        })
    }
}

impl Switches {
    fn read(&self) -> io::Result<()> {
        /// `EIO` of Linux.
        const EIO: i32 = 5;
        if self.fail_reads.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        fail_if(self.fail_writes.load(SeqCst), io::ErrorKind::Other)
    }

    fn sync(&self) -> io::Result<()> {
        fail_if(self.fail_syncs.load(SeqCst), io::ErrorKind::Other)
    }

    fn open(&self) -> io::Result<()> {
        if self.no_files.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        Ok(())
    }

    fn grow(&self) -> io::Result<()> {
        fail_if(self.no_space.load(SeqCst), io::ErrorKind::StorageFull)
    }
}

fn fail_if(fails: bool, kind: io::ErrorKind) -> io::Result<()> {
    if fails {
        return Err(io::Error::new(kind, "injected fault"));
    }
    Ok(())
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut held = self.held();
        while held
            .name
            .as_deref()
            .is_some_and(|name| path.ends_with(name))
        {
            held.is_reached = true;
            let next = self.switches.released.wait(held);
            held = next.unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        OsDisk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.switches.open()?;
        self.switches.grow()?;
        Ok(self.wrap(OsDisk.create(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.switches.open()?;
        Ok(self.wrap(OsDisk.open_read(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.switches.open()?;
        Ok(self.wrap(OsDisk.open_write(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        OsDisk.remove_tree(dir)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Arc<dyn DiskDir>> {
        self.switches.open()?;
        Ok(Arc::new(FaultyDir {
            dir: OsDisk.open_dir(dir)?,
            switches: self.switches.clone(),
        }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.switches.open()?;
        self.switches.sync()?;
        OsDisk.sync_dir(dir)
    }

    fn sync_tree(&self, dir: &Path) -> io::Result<()> {
        self.switches.sync()?;
        OsDisk.sync_tree(dir)
    }

    fn tree_bytes(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.tree_bytes(dir)
    }
}

impl DiskDir for FaultyDir {
    fn sync(&self) -> io::Result<()> {
        self.switches.sync()?;
        self.dir.sync()
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.switches.read()?;
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.switches.write()?;
        if offset + buf.len() as u64 > self.file.len()? {
            self.switches.grow()?;
        }
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.switches.data_syncs.fetch_add(1, SeqCst);
        assert!(!self.switches.panic_in_syncs.load(SeqCst), "planted panic");
        self.switches.sync()?;
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        let fails = self.switches.fail_full_syncs.load(SeqCst);
        fail_if(fails, io::ErrorKind::Other)?;
        self.switches.sync()?;
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
