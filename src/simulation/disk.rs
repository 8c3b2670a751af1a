//! A disk in memory that keeps after a crash only what a real one may keep.
//!
//! Unsynced writes may survive or not, in any order and sector by sector; an unsynced name may be gone. A failed
//! sync loses the data it should have written, although it can still be read: later syncs do not write it. Owns the
//! faults that are due.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{chance::Chance, jobs, lie::Lie};
use crate::platform::{Disk, DiskDir, DiskFile, parent_of};

/// The unit that a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: u64 = 512;
/// The units of unsynced data that a file system or disk may lose together, in bytes.
const EXTENT_BYTES: [u64; 2] = [4 * 1024, 64 * 1024];
/// How often a file loses extents instead of sectors.
const EXTENTS_PERCENT: u64 = 30;
/// How often a read returns less than it could.
const SHORT_READS_PERCENT: u64 = 10;
/// A simulation that does more than this without a crash does not end.
const OPERATIONS_MAX: u64 = 200_000;
const ROOT: usize = 0;

/// `EIO` and `ENOSPC` of Linux.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The faults of a life. Numbers count operations from now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub crash_in: Option<u64>,
    pub fail_write_in: Option<u64>,
    pub fail_sync_in: Option<u64>,
    pub fail_read_in: Option<u64>,
    /// An append to the log, which the log itself fails.
    pub fail_append_in: Option<u64>,
    /// How many bytes all files may have together.
    pub capacity: Option<u64>,
}

/// Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

/// Everything on a disk.
pub(crate) struct Content(Vec<Node>);

struct State {
    nodes: Vec<Node>,
    chance: Chance,
    lie: Option<Lie>,
    faults: Faults,
    /// Since the last restart.
    operations: u64,
    operations_before: u64,
    crashed: bool,
    /// Faults met since the last restart.
    faults_met: u64,
    faults_met_before: u64,
}

#[derive(Clone)]
enum Node {
    File(File),
    Folder(Folder),
}

#[derive(Clone, Default)]
struct File {
    /// Its last name.
    name: String,
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Unsynced writes: offset and content.
    writes: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Default)]
struct Folder {
    now: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// Unsynced changes: names and their targets; each list applies at once.
    changes: Vec<Vec<(String, Option<usize>)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write,
    Sync,
    Read,
    Names,
}

impl File {
    fn write(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        if content.len() < to {
            content.resize(to, 0);
        }
        content[from..to].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        for (offset, bytes) in self.writes.drain(..) {
            Self::write(&mut self.durable, offset, &bytes);
        }
    }

    /// Syncs some of the unsynced data.
    fn sync_some(&mut self, chance: &mut Chance) {
        let writes = std::mem::take(&mut self.writes);
        if chance.percent(EXTENTS_PERCENT) {
            self.sync_extents(writes, chance);
        } else {
            self.sync_sectors(writes, chance);
        }
    }

    /// Syncs some sectors of some writes, in any order.
    fn sync_sectors(&mut self, mut writes: Vec<(u64, Vec<u8>)>, chance: &mut Chance) {
        while !writes.is_empty() {
            let (offset, bytes) = writes.swap_remove(chance.place(writes.len()));
            let fate = chance.below(3);
            for piece in pieces(offset, bytes.len(), SECTOR_BYTES) {
                if fate == 1 || (fate == 2 && chance.percent(50)) {
                    let at = offset + piece.start as u64;
                    Self::write(&mut self.durable, at, &bytes[piece]);
                }
            }
        }
    }

    /// Syncs some extents, each with all its writes or none.
    fn sync_extents(&mut self, writes: Vec<(u64, Vec<u8>)>, chance: &mut Chance) {
        let extent_bytes = EXTENT_BYTES[chance.place(EXTENT_BYTES.len())];
        let mut is_kept: BTreeMap<u64, bool> = BTreeMap::new();
        for (offset, bytes) in writes {
            for piece in pieces(offset, bytes.len(), extent_bytes) {
                let at = offset + piece.start as u64;
                let is_kept = is_kept.entry(at / extent_bytes);
                if *is_kept.or_insert_with(|| chance.percent(50)) {
                    Self::write(&mut self.durable, at, &bytes[piece]);
                }
            }
        }
    }
}

/// Splits a write of `len` bytes into pieces within one unit of the disk each.
fn pieces(offset: u64, len: usize, unit_bytes: u64) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = (offset + at as u64 + 1).next_multiple_of(unit_bytes) - offset;
        let piece = at..len.min(end as usize);
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

impl Folder {
    fn change(&mut self, changes: Vec<(String, Option<usize>)>) {
        apply(&mut self.now, &changes);
        self.changes.push(changes);
    }

    fn sync(&mut self, changes: usize) {
        for changes in self.changes.drain(..changes) {
            apply(&mut self.durable, &changes);
        }
    }
}

fn apply(names: &mut BTreeMap<String, usize>, changes: &[(String, Option<usize>)]) {
    for (name, node) in changes {
        match node {
            Some(node) => _ = names.insert(name.clone(), *node),
            None => _ = names.remove(name),
        }
    }
}

impl Default for SimDisk {
    /// A disk without faults.
    fn default() -> Self {
        Self::new(Chance::new(0), None)
    }
}

impl SimDisk {
    pub(super) fn new(chance: Chance, lie: Option<Lie>) -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes: vec![Node::Folder(Folder::default())],
            chance,
            lie,
            faults: Faults::default(),
            operations: 0,
            operations_before: 0,
            crashed: false,
            faults_met: 0,
            faults_met_before: 0,
        })))
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Whether the log is to fail its next append.
    pub fn is_append_fault_due(&self) -> bool {
        let mut state = self.state();
        let is_due = due(&mut state.faults.fail_append_in);
        state.faults_met += u64::from(is_due);
        is_due
    }

    /// Lifts the limit on the bytes of all files.
    pub fn make_space(&self) {
        self.state().faults.capacity = None;
    }

    /// The bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// The faults and operations so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        let faults = state.faults_met_before + state.faults_met;
        (faults, state.operations_before + state.operations)
    }

    pub fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// Whether there was a fault since the last restart.
    pub fn has_faulted(&self) -> bool {
        self.state().faults_met > 0
    }

    /// Stops everything: from now on nothing is read or written.
    pub fn crash(&self) {
        self.state().crashed = true;
    }

    /// Starts again after the end of the process, and of the power if `power_lost`.
    pub fn restart(&self, power_lost: bool) {
        let mut state = self.state();
        let State { nodes, chance, .. } = &mut *state;
        if power_lost {
            for node in nodes {
                match node {
                    Node::File(file) => {
                        file.sync_some(chance);
                        file.now = file.durable.clone();
                    }
                    Node::Folder(folder) => {
                        let kept = chance.place(folder.changes.len() + 1);
                        folder.sync(kept);
                        folder.changes.clear();
                        folder.now = folder.durable.clone();
                    }
                }
            }
        }
        state.crashed = false;
        state.faults = Faults::default();
        state.faults_met_before += std::mem::take(&mut state.faults_met);
        state.operations_before += std::mem::take(&mut state.operations);
    }

    /// Everything on the disk, for [`SimDisk::put_back`].
    pub fn content(&self) -> Content {
        Content(self.state().nodes.clone())
    }

    /// Restores the disk to an earlier content.
    pub fn put_back(&self, content: Content) {
        self.state().nodes = content.0;
    }

    /// Makes everything on the disk durable.
    pub fn sync_everything(&self) {
        self.state().sync_tree(ROOT);
    }

    /// Flips a bit of a file below `dir`. False if no file there has content.
    pub fn turn_a_bit(&self, dir: &Path) -> bool {
        let mut state = self.state();
        let Ok(dir) = state.find(dir) else {
            return false;
        };
        let mut files = Vec::new();
        state.files(dir, &mut files);
        files.retain(|file| !state.file(*file).now.is_empty());
        if files.is_empty() {
            return false;
        }
        let node = files[state.chance.place(files.len())];
        let len = state.file(node).now.len();
        // Most of a segment is space set aside.
        let used = state.file(node).now.iter().rposition(|byte| *byte != 0);
        let at = state.chance.place(used.map_or(len, |used| used + 1));
        let bit = 1 << state.chance.below(8);
        let file = state.file(node);
        file.now[at] ^= bit;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= bit;
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets other jobs run, and fails if a fault is due.
    fn operate(&self, operation: Operation) -> io::Result<()> {
        if operation != Operation::Read {
            jobs::pause();
        }
        self.state().operate(operation)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.operate(Operation::Read)?;
        let node = self.state().find(path)?;
        let disk = self.clone();
        Ok(Arc::new(SimFile { disk, node }))
    }
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn due(count: &mut Option<u64>) -> bool {
    let Some(left) = count else { return false };
    let is_due = *left == 0;
    *count = left.checked_sub(1);
    is_due
}

impl State {
    fn operate(&mut self, operation: Operation) -> io::Result<()> {
        if self.crashed {
            return Err(error(EIO));
        }
        self.operations += 1;
        assert!(
            self.operations < OPERATIONS_MAX || thread::panicking(),
            "the disk is used without end"
        );
        if operation != Operation::Read && due(&mut self.faults.crash_in) {
            self.crashed = true;
            return Err(error(EIO));
        }
        let count = match operation {
            Operation::Write | Operation::Names => &mut self.faults.fail_write_in,
            Operation::Sync => &mut self.faults.fail_sync_in,
            Operation::Read => &mut self.faults.fail_read_in,
        };
        if due(count) {
            self.faults_met += 1;
            return Err(error(EIO));
        }
        Ok(())
    }

    /// Whether a sync of this file lies: it reports success and does nothing.
    fn lies_of_sync(&mut self, node: usize) -> bool {
        let Some(lie) = self.lie else { return false };
        let name = &self.file(node).name;
        match lie {
            Lie::BatchUnsynced => name.ends_with(".log"),
            Lie::HeaderUnsynced => name == "next.tmp",
            Lie::CountersUnsynced => name == "counters.json.new",
            Lie::AppendBelieved
            | Lie::NameUnsynced
            | Lie::SyncTriedAgain
            | Lie::ShortReadBelieved => false,
        }
    }

    fn check_space(&mut self, bytes: u64) -> io::Result<()> {
        let Some(capacity) = self.faults.capacity else {
            return Ok(());
        };
        if self.used_bytes() + bytes <= capacity {
            return Ok(());
        }
        self.faults_met += 1;
        Err(error(ENOSPC))
    }

    fn used_bytes(&mut self) -> u64 {
        let mut files = Vec::new();
        self.files(ROOT, &mut files);
        files
            .iter()
            .map(|file| self.file(*file).now.len() as u64)
            .sum()
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
                let Node::Folder(folder) = &self.nodes[node] else {
                    return Err(io::ErrorKind::NotADirectory.into());
                };
                node = *folder.now.get(name).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(node)
    }

    /// The folder that holds `path`, and its name there.
    fn parent(&mut self, path: &Path) -> io::Result<(&mut Folder, String)> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let node = self.find(path.parent().unwrap_or(Path::new("")))?;
        match &mut self.nodes[node] {
            Node::Folder(folder) => Ok((folder, name)),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn folder(&mut self, dir: &Path) -> io::Result<&mut Folder> {
        let node = self.find(dir)?;
        match &mut self.nodes[node] {
            Node::Folder(folder) => Ok(folder),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&mut self, node: usize) -> &mut File {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Folder(_) => unreachable!("only files are opened"),
        }
    }

    fn files(&self, node: usize, files: &mut Vec<usize>) {
        match &self.nodes[node] {
            Node::File(_) => files.push(node),
            Node::Folder(folder) => folder
                .now
                .values()
                .for_each(|node| self.files(*node, files)),
        }
    }

    fn sync_tree(&mut self, node: usize) {
        let children: Vec<usize> = match &mut self.nodes[node] {
            Node::File(file) => return file.sync(),
            Node::Folder(folder) => {
                folder.sync(folder.changes.len());
                folder.now.values().copied().collect()
            }
        };
        for child in children {
            self.sync_tree(child);
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.state().find(path).is_ok() {
            return Ok(());
        }
        self.create_dir(parent_of(path))?;
        self.operate(Operation::Names)?;
        let mut state = self.state();
        let node = state.nodes.len();
        state.nodes.push(Node::Folder(Folder::default()));
        let (parent, name) = state.parent(path)?;
        parent.change(vec![(name, Some(node))]);
        drop(state);
        self.sync_dir(parent_of(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.operate(Operation::Read)?;
        Ok(self.state().folder(dir)?.now.keys().cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.operate(Operation::Names)?;
        let mut state = self.state();
        if state.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.check_space(1)?;
        let node = state.nodes.len();
        let (_, name) = state.parent(path)?;
        state.nodes.push(Node::File(File {
            name,
            ..File::default()
        }));
        let (parent, name) = state.parent(path)?;
        parent.change(vec![(name, Some(node))]);
        drop(state);
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            node,
        }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(Operation::Names)?;
        let mut state = self.state();
        let node = state.find(from)?;
        let (_, old) = state.parent(from)?;
        let (parent, new) = state.parent(to)?;
        parent.change(vec![(old, None), (new.clone(), Some(node))]);
        if let Node::File(file) = &mut state.nodes[node] {
            file.name = new;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate(Operation::Names)?;
        let mut state = self.state();
        state.find(path)?;
        let (parent, name) = state.parent(path)?;
        parent.change(vec![(name, None)]);
        Ok(())
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        let names: Vec<String> = {
            let mut state = self.state();
            if state.crashed {
                return Err(error(EIO));
            }
            let node = state.find(dir)?;
            match &state.nodes[node] {
                Node::Folder(_) => state.folder(dir)?.now.keys().cloned().collect(),
                Node::File(_) => Vec::new(),
            }
        };
        for name in names {
            self.remove_tree(&dir.join(name))?;
        }
        self.remove(dir)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Arc<dyn DiskDir>> {
        let (disk, path) = (self.clone(), dir.to_owned());
        Ok(Arc::new(SimDir { disk, path }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate(Operation::Sync)?;
        let mut state = self.state();
        let is_of_log = dir.file_name().is_some_and(|name| name == "log");
        if is_of_log && state.lie == Some(Lie::NameUnsynced) {
            return Ok(());
        }
        let folder = state.folder(dir)?;
        folder.sync(folder.changes.len());
        Ok(())
    }

    fn sync_tree(&self, dir: &Path) -> io::Result<()> {
        self.operate(Operation::Sync)?;
        let mut state = self.state();
        let node = state.find(dir)?;
        state.sync_tree(node);
        Ok(())
    }

    fn tree_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.operate(Operation::Read)?;
        let mut state = self.state();
        let node = state.find(dir)?;
        let mut files = Vec::new();
        state.files(node, &mut files);
        let bytes = |file: &usize| state.file(*file).now.len() as u64;
        Ok(files.iter().map(bytes).sum())
    }

    fn is_of_os(&self) -> bool {
        false
    }
}

struct SimDir {
    disk: SimDisk,
    path: PathBuf,
}

impl DiskDir for SimDir {
    fn sync(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.path)
    }
}

struct SimFile {
    disk: SimDisk,
    node: usize,
}

impl SimFile {
    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.operate(Operation::Sync);
        let mut state = self.disk.state();
        match &synced {
            Ok(()) if state.lies_of_sync(self.node) => {}
            Ok(()) => state.file(self.node).sync(),
            // From now on the data that it should have written passes for written.
            Err(_) if !state.crashed => {
                let State { nodes, chance, .. } = &mut *state;
                if let Node::File(file) = &mut nodes[self.node] {
                    file.sync_some(chance);
                }
            }
            Err(_) => {}
        }
        synced
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.operate(Operation::Read)?;
        let mut state = self.disk.state();
        let len = state.file(self.node).now.len();
        let from = len.min(offset as usize);
        let mut bytes = buf.len().min(len - from);
        if bytes > 1 && state.chance.percent(SHORT_READS_PERCENT) {
            bytes = 1 + state.chance.place(bytes - 1);
        }
        buf[..bytes].copy_from_slice(&state.file(self.node).now[from..from + bytes]);
        if bytes > 0 && state.lie == Some(Lie::ShortReadBelieved) {
            return Ok(buf.len());
        }
        Ok(bytes)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let was_crashed = self.disk.has_crashed();
        let begun = self.disk.operate(Operation::Write);
        let mut state = self.disk.state();
        let len = state.file(self.node).now.len() as u64;
        let grown = (offset + buf.len() as u64).saturating_sub(len);
        let written = begun.and_then(|()| match grown {
            0 => Ok(()),
            grown => state.check_space(grown),
        });
        let bytes = match &written {
            Ok(()) => buf,
            Err(_) if was_crashed => &[],
            // Perhaps only a part of it.
            Err(_) => &buf[..state.chance.place(buf.len() + 1)],
        };
        let file = state.file(self.node);
        File::write(&mut file.now, offset, bytes);
        file.writes.push((offset, bytes.to_vec()));
        written
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.sync();
        if synced.is_err() && self.disk.state().lie == Some(Lie::SyncTriedAgain) {
            return self.sync();
        }
        synced
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(self.node).now.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    //! Helpers for other tests.

    use super::SimDisk;

    impl SimDisk {
        /// Kills the process after this many further operations that change the disk.
        pub(crate) fn crash_in(&self, operations: u64) {
            self.state().faults.crash_in = Some(operations);
        }
    }
}
