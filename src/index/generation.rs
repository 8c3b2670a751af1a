//! Generation: a sealed, immutable part of the index, in a folder of its own: a sled database, the files of
//! runs that it leads to, and a filter.
//!
//! Owns reading a generation: the checks on opening, exact lookups, positions, and the handling of damage.
//! Nothing is ever written into one, except by sled for itself, and the mark of damage.
//! [`Builder`](super::builder::Builder) builds them.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard},
};

use super::{
    Entry, disk,
    error::{Fault, IndexError, Trouble},
    fence::{Fenced, Run},
    filter::Filter,
    folder::Folder,
    manifest::{Manifest, Runs},
    positions, run,
    secret::KeyHash,
    store::{Store, close},
};
use crate::{
    event::{Key, Sequence},
    platform::Disk,
};

pub(super) const FILTER_FILE: &str = "filter";
/// The names of the trees; each leads to the runs in the file of its name.
pub(super) const KEYS_TREE: &str = "keys";
/// The name on disk.
pub(super) const POSITIONS_TREE: &str = "slices";
/// Written when a generation proves damaged, so that the next start removes it. Holds the reason.
const DAMAGED_FILE: &str = "damaged";

/// An open generation.
pub(super) struct Generation {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    range: Range<Sequence>,
    key_count: u64,
    bytes: u64,
    filter: Filter,
    manifest: Manifest,
    /// None after a failure, until it is reopened.
    opened: RwLock<Option<Opened>>,
    /// Set when it proves damaged; from then on it answers nothing.
    damage: OnceLock<Fault>,
}

/// The store and the files it leads into.
struct Opened {
    keys: Fenced,
    positions: Fenced,
}

impl Opened {
    fn open(disk: &dyn Disk, path: &Path, manifest: &Manifest) -> Result<Self, Trouble> {
        let store = Store::open(disk, path, manifest.keys)?;
        let runs = |name: &str, written: &Runs| {
            if !store.has_tree(name) {
                return Err(Fault::new(format!("its tree {name} is lost")).into());
            }
            let tree = store.open_tree(name)?;
            let file = disk.open_read(&path.join(name))?;
            if file.len()? != written.bytes {
                return Err(Fault::new(format!("its file {name} has the wrong length")).into());
            }
            Ok::<_, Trouble>(Fenced::new(tree, file, written.first.clone()))
        };
        let opened = Self {
            keys: runs(KEYS_TREE, &manifest.key_runs)?,
            positions: runs(POSITIONS_TREE, &manifest.position_runs)?,
        };
        opened.keys.first().map_err(Trouble::settled)?;
        opened.positions.first().map_err(Trouble::settled)?;
        Ok(opened)
    }
}

impl Generation {
    /// Opens and checks the generation of `range`.
    pub(super) fn open(folder: &Folder, range: Range<Sequence>) -> Result<Self, Trouble> {
        let Folder { disk, secret, .. } = folder;
        let path = &*folder.generation(&range);
        if let Ok(reason) = disk.read(&path.join(DAMAGED_FILE)) {
            let reason = String::from_utf8_lossy(&reason);
            return Err(Fault::new(format!("marked as damaged: {reason}")).into());
        }
        let manifest = Manifest::load(&**disk, path)?;
        if manifest.range() != range {
            return Err(Fault::new("its manifest belongs to another folder").into());
        }
        if manifest.secret != secret.name() {
            return Err(Fault::new("its hashes were made under another secret").into());
        }
        if Store::bytes(&**disk, path)? < manifest.store_bytes {
            return Err(Fault::new("its store was truncated").into());
        }
        let filter = Filter::load(&**disk, &path.join(FILTER_FILE))?;
        let opened = Opened::open(&**disk, path, &manifest)?;
        Ok(Self {
            disk: Arc::clone(disk),
            path: path.to_owned(),
            range,
            key_count: manifest.keys,
            bytes: disk.tree_bytes(path)?,
            filter,
            manifest,
            opened: RwLock::new(Some(opened)),
            damage: OnceLock::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The sequences it covers.
    pub(super) fn range(&self) -> Range<Sequence> {
        self.range.clone()
    }

    pub(super) fn key_count(&self) -> u64 {
        self.key_count
    }

    /// The bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damage.get().is_some()
    }

    /// False if the key is certainly not in it. Answers from memory.
    pub(super) fn may_contain(&self, hash: KeyHash) -> bool {
        self.filter.may_contain(hash)
    }

    /// The entry of exactly this key. Reads the disk unless the filter says no.
    pub(super) fn get(&self, key: &Key, hash: KeyHash) -> Result<Option<Entry>, IndexError> {
        if !self.may_contain(hash) {
            return Ok(None);
        }
        let base = self.range.start;
        self.read(|opened| match opened.keys.floor(key.as_bytes())? {
            Some(found) => Ok(run::find(found.key(), found.body(), base, key.as_bytes())?),
            None => Ok(None),
        })
    }

    /// Appends to `page` the last position of `topic` at or below `from` and the following ones, until it has
    /// `max`.
    pub(super) fn positions(
        &self,
        topic: &str,
        from: Sequence,
        max: usize,
        page: &mut Vec<Sequence>,
    ) -> Result<(), IndexError> {
        let prefix = positions::topic_prefix(topic);
        let of_topic = |run: &Run| run.key().starts_with(&prefix);
        let before = page.len();
        self.read(|this| {
            // Positions read by a failed attempt are read again.
            page.truncate(before);
            let mut next = match this.positions.floor(&positions::run_key(topic, from))? {
                // The topic's positions begin above `from`: with the next run, or there are none.
                Some(run) if !of_topic(&run) => this.positions.after(&run)?,
                Some(run) => Some(run),
                None => this.positions.first()?,
            };
            while let Some(run) = next.filter(|run| page.len() < max && of_topic(run)) {
                let (_, positions) = positions::decode(run.key(), run.body())?;
                page.extend_from_slice(positions::page(&positions, from, max - page.len()));
                next = this.positions.after(&run)?;
            }
            Ok(())
        })
    }

    /// The first run of keys.
    pub(super) fn first_keys(&self) -> Result<Option<Run>, IndexError> {
        self.read(|this| this.keys.first())
    }

    /// The next run of keys.
    pub(super) fn keys_after(&self, run: &Run) -> Result<Option<Run>, IndexError> {
        self.read(|this| this.keys.after(run))
    }

    /// The first run of positions.
    pub(super) fn first_positions(&self) -> Result<Option<Run>, IndexError> {
        self.read(|this| this.positions.first())
    }

    /// The next run of positions.
    pub(super) fn positions_after(&self, run: &Run) -> Result<Option<Run>, IndexError> {
        self.read(|this| this.positions.after(run))
    }

    /// Logs how it was made, for the operator.
    pub(super) fn trace(&self, what: &'static str) {
        let Range { start, end } = self.range;
        let (keys, bytes) = (self.key_count, self.bytes);
        tracing::info!(
            first = start,
            end,
            keys,
            bytes,
            "{what} an index generation"
        );
    }

    /// Closes the store and removes the folder.
    pub(super) fn remove(self) -> io::Result<()> {
        self.close();
        disk::remove_folder(&*self.disk, &self.path)
    }

    fn close(&self) {
        if let Err(error) = close(self.lock_opened().take()) {
            tracing::warn!(path = %self.path.display(), %error, "closing an index generation");
        }
    }

    /// Runs `read`, and if the store fails, reopens it and tries once more. On damage, which a panic of sled also means
    /// (it asserts its reads), the generation is marked and answers nothing any more.
    fn read<T>(
        &self,
        mut read: impl FnMut(&Opened) -> Result<T, Trouble>,
    ) -> Result<T, IndexError> {
        if let Some(fault) = self.damage.get() {
            return Err(self.damaged(fault));
        }
        let mut outcome = self.attempt(&mut read);
        if let Err(Trouble::Store(_)) = outcome {
            outcome = self.reopen().and_then(|()| self.attempt(&mut read));
        }
        let trouble = match outcome {
            Ok(found) => return Ok(found),
            Err(trouble) => trouble.settled(),
        };
        match trouble {
            Trouble::Unreadable(source) | Trouble::Store(source) => {
                let (path, source) = (self.path.clone(), Arc::new(source));
                Err(IndexError::Unreadable { path, source })
            }
            Trouble::Damage(fault) => Err(self.mark(fault)),
            Trouble::Newer { .. } => Err(self.mark(Fault::new("it became another"))),
        }
    }

    /// Unwraps a decoded value; a fault is damage.
    pub(super) fn check<T>(&self, decoded: Result<T, Fault>) -> Result<T, IndexError> {
        decoded.map_err(|fault| self.mark(fault))
    }

    fn attempt<T>(
        &self,
        read: &mut impl FnMut(&Opened) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = &*opened else {
            return Err(Trouble::Store(io::Error::other("the store is closed")));
        };
        catch_unwind(AssertUnwindSafe(|| read(opened)))
            .unwrap_or_else(|_| Err(Trouble::Store(io::Error::other("sled panicked"))))
    }

    fn reopen(&self) -> Result<(), Trouble> {
        let mut opened = self.lock_opened();
        _ = close(opened.take());
        let open = || Opened::open(&*self.disk, &self.path, &self.manifest);
        *opened = Some(
            catch_unwind(AssertUnwindSafe(open))
                .unwrap_or_else(|_| Err(Fault::new("sled panicked").into()))?,
        );
        Ok(())
    }

    fn lock_opened(&self) -> RwLockWriteGuard<'_, Option<Opened>> {
        self.opened.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, fault: &Fault) -> IndexError {
        IndexError::Damaged {
            path: self.path.clone(),
            reason: Arc::clone(&fault.0),
        }
    }

    /// Stops it answering. The file is written afterwards: other threads may go on in the meantime.
    fn mark(&self, fault: Fault) -> IndexError {
        let (path, reason) = (self.path.display(), Arc::clone(&fault.0));
        if self.damage.set(fault).is_ok() {
            tracing::error!(%path, reason = &*reason, "an index generation is damaged");
            let file = self.path.join(DAMAGED_FILE);
            if let Err(error) = self.disk.write_new(&file, reason.as_bytes()) {
                tracing::error!(%path, %error, "cannot mark the damaged generation");
            }
        }
        self.damaged(&Fault(reason))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::index::testing::{SECRET, batch_of, build, entry, folder, key, key_at, topic_at};
    use crate::platform::faulty::FaultyDisk;

    const RANGE: Range<Sequence> = 101..1_101;

    fn get(generation: &Generation, sequence: Sequence) -> Result<Option<Entry>, IndexError> {
        let key = key_at(sequence);
        generation.get(&key, SECRET.key_hash(&key))
    }

    type Change = fn(&mut Vec<u8>);

    fn built() -> (TempDir, Generation) {
        let dir = tempfile::tempdir().expect("a folder");
        let generation = build(dir.path(), RANGE);
        (dir, generation)
    }

    fn reopen(generation: Generation) -> Result<Generation, Trouble> {
        let path = generation.path().to_owned();
        drop(generation);
        open(&path)
    }

    fn open(path: &Path) -> Result<Generation, Trouble> {
        Generation::open(&folder(path.parent().expect("a folder")), RANGE)
    }

    fn reason<T>(outcome: Result<T, Trouble>) -> String {
        match outcome {
            Ok(_) => "usable".to_owned(),
            Err(Trouble::Damage(fault)) => fault.0.to_string(),
            Err(trouble) => panic!("{trouble:?}"),
        }
    }

    fn corrupt(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).expect("read");
        change(&mut bytes);
        fs::write(path, bytes).expect("written");
    }

    #[test]
    fn lookups_are_exact() {
        let (_dir, generation) = built();
        let generation = reopen(generation).unwrap_or_else(|_| panic!("whole"));
        for sequence in RANGE {
            let found = get(&generation, sequence).expect("readable");
            assert_eq!(found, Some(entry(sequence)));
        }
        // Past the filter, which would hide most of the work that an absent key takes.
        let probe = |key: Key| {
            let found = generation.read(|opened| opened.keys.floor(key.as_bytes()));
            let run = found.expect("whole")?;
            run::find(run.key(), run.body(), RANGE.start, key.as_bytes()).expect("well-formed")
        };
        for sequence in (1..101).chain(1_101..1_300) {
            assert_eq!(probe(key_at(sequence)), None, "{sequence}");
            assert_eq!(get(&generation, sequence).expect("readable"), None);
        }
        for (topic, id) in [
            ("a", "before all"),
            ("zz", "after all"),
            ("ordersevent 102", "x"),
        ] {
            assert_eq!(probe(key(topic, id)), None);
        }
        assert_eq!(generation.key_count(), 1_000);
        assert!(generation.bytes() > 0);
    }

    #[test]
    fn positions_are_complete_from_any_sequence() {
        let (_dir, generation) = built();
        for topic in ["orders", "orders eu", "payments", "order", "a", "z"] {
            let mut all: Vec<_> = RANGE
                .filter(|&sequence| topic_at(sequence) == topic)
                .map(batch_of)
                .collect();
            all.dedup();
            for from in (0..1_200).step_by(37) {
                for max in [2, 100, 10_000] {
                    let mut page = Vec::new();
                    generation
                        .positions(topic, from, max, &mut page)
                        .expect("readable");
                    assert_eq!(
                        page,
                        positions::page(&all, from, max),
                        "{topic} from {from}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_lost_run_is_noticed_and_the_generation_marked() {
        for positions in [false, true] {
            let (_dir, generation) = built();
            let path = generation.path().to_owned();
            drop(generation);
            let db = sled::open(path.join("sled")).expect("open");
            let tree = db.open_tree(if positions { POSITIONS_TREE } else { KEYS_TREE });
            let tree = tree.expect("a tree");
            let (lost, _) = tree.iter().nth(2).expect("some runs").expect("readable");
            tree.remove(lost).expect("removed");
            db.flush().expect("flushed");
            drop((tree, db));

            let generation = open(&path).unwrap_or_else(|_| panic!("opens"));
            let mut failed = false;
            for sequence in RANGE {
                let outcome = if positions {
                    let (mut page, from) = (Vec::new(), sequence);
                    generation.positions(topic_at(sequence), from, 2, &mut page)
                } else {
                    let found = get(&generation, sequence);
                    found.map(|found| assert_eq!(found, Some(entry(sequence))))
                };
                failed |= matches!(outcome, Err(IndexError::Damaged { .. }));
                assert_eq!(failed, generation.is_damaged());
            }
            assert!(failed);
            assert_eq!(
                reason(reopen(generation)),
                "marked as damaged: a run is lost"
            );
        }
    }

    #[test]
    fn damaged_files_are_noticed_when_it_is_opened() {
        let cases: [(&str, Change, &str); 6] = [
            (
                "filter",
                |bytes| bytes[100] ^= 1,
                "filter: checksum does not match",
            ),
            (
                "generation.json",
                |bytes| bytes.truncate(9),
                "generation.json is malformed",
            ),
            (
                "sled/db",
                |bytes| bytes.truncate(700),
                "its store was truncated",
            ),
            ("sled/db", |bytes| bytes.fill(0), "its tree keys is lost"),
            (
                "keys",
                |bytes| bytes.truncate(5_000),
                "its file keys has the wrong length",
            ),
            (
                "slices",
                |bytes| bytes[0] ^= 1,
                "a run does not match its checksum",
            ),
        ];
        for (file, change, expected) in cases {
            let (_dir, generation) = built();
            let path = generation.path().to_owned();
            drop(generation);
            corrupt(&path.join(file), change);
            let found = reason(open(&path));
            assert!(
                found.starts_with(expected) || file == "sled/db",
                "{file}: {found}"
            );
            assert_ne!(found, "usable", "{file}");
        }
        let (_dir, generation) = built();
        let path = generation.path().to_owned();
        drop(generation);
        let other = path.with_file_name(disk::folder_name(&(101..1_100)));
        fs::rename(&path, &other).expect("renamed");
        let folder = folder(path.parent().expect("a folder"));
        let renamed = Generation::open(&folder, 101..1_100);
        assert_eq!(reason(renamed), "its manifest belongs to another folder");
        fs::rename(&other, &path).expect("renamed");
        fs::remove_file(path.join("generation.json")).expect("removed");
        assert_ne!(reason(open(&path)), "usable");
    }

    #[test]
    fn an_unfinished_snapshot_is_removed() {
        let (_dir, generation) = built();
        let leftover = generation
            .path()
            .join("sled/snap.00000000000000FF.generating");
        fs::write(&leftover, "torn").expect("written");
        assert_eq!(reason(reopen(generation)), "usable");
        assert!(!leftover.exists());
    }

    #[test]
    fn a_failed_read_can_succeed_later() {
        let disk = FaultyDisk::default();
        let dir = tempfile::tempdir().expect("a folder");
        drop(build(dir.path(), RANGE));
        let folder = Folder {
            disk: Arc::new(disk.clone()),
            ..folder(dir.path())
        };
        let generation = Generation::open(&folder, RANGE).unwrap_or_else(|_| panic!("whole"));
        disk.fail_reads(true);
        let failed = get(&generation, 200).expect_err("it cannot be read");
        assert!(matches!(failed, IndexError::Unreadable { .. }), "{failed}");
        let mut page = Vec::new();
        let failed = generation.positions("orders", 200, 2, &mut page);
        assert!(matches!(failed, Err(IndexError::Unreadable { .. })));
        let opened = Generation::open(&folder, RANGE);
        assert!(matches!(opened, Err(Trouble::Unreadable(_))));
        assert!(!generation.is_damaged());
        disk.fail_reads(false);
        for sequence in RANGE {
            let found = get(&generation, sequence).expect("it can be read again");
            assert_eq!(found, Some(entry(sequence)));
        }
        assert!(!generation.path().join(DAMAGED_FILE).exists());
    }

    #[test]
    fn a_store_that_failed_is_opened_again() {
        let (_dir, generation) = built();
        let mut reads = 0;
        let answer = generation.read(|opened| {
            reads += 1;
            match reads {
                1 => Err(Trouble::Store(io::Error::from_raw_os_error(5))),
                _ => opened.keys.first(),
            }
        });
        assert!(answer.expect("read again").is_some());
        assert_eq!(reads, 2);
        let answer = generation.read(|_| -> Result<(), _> { panic!("sled does") });
        assert!(
            matches!(answer, Err(IndexError::Damaged { .. })),
            "twice is damage"
        );
        assert!(generation.is_damaged());
    }

    #[test]
    fn removing_leaves_nothing() {
        let (_dir, generation) = built();
        let path = generation.path().to_owned();
        generation.remove().expect("removed");
        assert!(!path.exists());
    }
}
