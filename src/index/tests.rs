//! The index as a whole, as its writer, its readers and a restart see it while parts move.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    testing::{SECRET, batch_of, build, entry, key_at, platform, topic, topic_at},
    *,
};
use crate::platform::faulty::FaultyDisk;

/// Every batch has this many events.
const BATCH: Sequence = 2;
const TOPICS: [&str; 3] = ["orders", "orders eu", "payments"];

fn options() -> IndexOptions {
    IndexOptions {
        keys_per_generation: 100,
        merge_fanout: 3,
        ..IndexOptions::default()
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// An empty index in `dir` on `disk`; the merge of the generation `range` waits.
fn open_held(disk: &FaultyDisk, dir: &Path, range: &Range<Sequence>) -> Index {
    let name = format!("{}.tmp", disk::folder_name(range));
    disk.hold_folder(Some(&name));
    let platform = Platform {
        disk: Arc::new(disk.clone()),
        ..platform()
    };
    Index::open(&platform, dir, options(), 1).expect("opens")
}

fn await_held(disk: &FaultyDisk) {
    while !disk.is_held() {
        thread::yield_now();
    }
}

/// An index in `dir` of the events below `tail`, with nothing missing.
fn open(dir: &Path, tail: Sequence) -> Index {
    let mut index = Index::open(&platform(), dir, options(), tail).expect("opens");
    for range in index.missing() {
        let mut rebuild = index.rebuild(range.clone());
        for first in range.step_by(BATCH as usize) {
            let batch = first..(first + BATCH).min(tail);
            rebuild
                .add_batch(batch.clone().map(topic_at), first)
                .expect("built");
            for sequence in batch {
                let key = key_at(sequence);
                rebuild.insert(&key, SECRET.key_hash(&key), entry(sequence));
            }
        }
        rebuild.finish().expect("built");
    }
    assert_eq!(index.missing(), []);
    index
}

fn insert(index: &mut Index, sequence: Sequence) {
    let key = key_at(sequence);
    index.insert(&key, SECRET.key_hash(&key), entry(sequence));
}

fn get(index: &Index, sequence: Sequence, looked_to: Sequence) -> Option<Entry> {
    let key = key_at(sequence);
    let found = index.get(&key, SECRET.key_hash(&key), looked_to);
    found.expect("readable")
}

fn get_sealed(view: &View, sequence: Sequence) -> Option<Entry> {
    let key = key_at(sequence);
    view.get(&key, SECRET.key_hash(&key)).expect("readable")
}

/// The number of folders of the index.
fn folders(dir: &Path) -> usize {
    let found = fs::read_dir(dir).expect("listed");
    found
        .filter(|found| found.as_ref().is_ok_and(|found| found.path().is_dir()))
        .count()
}

/// Stores the events `range`, batch by batch.
fn store(index: &mut Index, range: Range<Sequence>) {
    for first in range.step_by(BATCH as usize) {
        for sequence in first..first + BATCH {
            insert(index, sequence);
        }
        let topics = (first..first + BATCH).map(topic_at);
        index.parts.add_positions(topics, first);
        index.seal_if_full(first + BATCH).expect("sealed");
    }
}

fn check_keys(index: &Index, tail: Sequence) {
    for sequence in FIRST_SEQUENCE..tail + 10 {
        let expected = (sequence < tail).then(|| entry(sequence));
        assert_eq!(get(index, sequence, FIRST_SEQUENCE), expected, "{sequence}");
    }
}

/// Reads all positions of a topic page by page, as a reader of that topic does.
fn all_positions(reader: &IndexReader, name: &str, max: usize) -> Vec<Sequence> {
    let mut all: Vec<Sequence> = Vec::new();
    let mut from = FIRST_SEQUENCE;
    loop {
        let mut page = reader.positions(&topic(name), from, max).expect("readable");
        assert!(page.len() <= max);
        if page.first() == all.last() {
            page.drain(..page.len().min(1));
        }
        let Some(last) = page.last() else {
            return all;
        };
        from = last + BATCH;
        all.extend(page);
    }
}

fn expected_positions(name: &str, tail: Sequence) -> Vec<Sequence> {
    let mut positions: Vec<_> = (FIRST_SEQUENCE..tail)
        .filter(|&sequence| topic_at(sequence) == name)
        .map(batch_of)
        .collect();
    positions.dedup();
    positions
}

fn check_positions(index: &Index, tail: Sequence) {
    for name in TOPICS {
        assert_eq!(
            all_positions(&index.reader(), name, 7),
            expected_positions(name, tail)
        );
    }
}

fn ranges(index: &Index) -> Vec<Range<Sequence>> {
    let generations = index.reader().generations();
    generations.into_iter().map(|(range, _)| range).collect()
}

/// Waits until the merging thread has left exactly these generations.
fn await_ranges(index: &Index, expected: &[Range<Sequence>]) {
    while ranges(index) != expected {
        thread::yield_now();
    }
}

#[test]
fn keys_are_found_wherever_they_are() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    store(&mut index, 1..1_251);
    check_keys(&index, 1_251);
    check_positions(&index, 1_251);
    index.seal_now(1_251).expect("sealed");
    assert_eq!(index.reader().sealed_to(), 1_251);
    let view = index.reader().view();
    assert!((1..1_251).all(|sequence| {
        let key = key_at(sequence);
        view.may_contain(&key, SECRET.key_hash(&key))
    }));
    assert_eq!(get_sealed(&view, 700), Some(entry(700)));
    check_keys(&index, 1_251);
    drop((view, index));
    let index = open(dir.path(), 1_251);
    check_keys(&index, 1_251);
    check_positions(&index, 1_251);
}

/// A batch may take the number of recent keys past that of a generation, not just to it.
#[test]
fn more_keys_than_a_generation_needs_are_sealed() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    let tail = FIRST_SEQUENCE + options().keys_per_generation as Sequence + 1;
    for sequence in FIRST_SEQUENCE..tail {
        insert(&mut index, sequence);
        let topics = std::iter::once(topic_at(sequence));
        index.parts.add_positions(topics, sequence);
    }
    index.seal_if_full(tail).expect("sealed");
    assert_eq!(index.recent.len(), 0);
    check_keys(&index, tail);
}

#[test]
fn generations_are_merged_in_tiers_and_their_folders_removed() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    let view = index.reader().view();
    store(&mut index, 1..1_201);
    index.seal_now(1_201).expect("sealed");
    await_ranges(&index, &[1..901, 901..1_201]);
    assert_eq!(index.reader().generations()[0], (1..901, 900));
    check_keys(&index, 1_201);
    check_positions(&index, 1_201);
    assert_eq!(view.sealed_to(), 1);
    assert!(index.reader().storage_bytes() > 0);
    drop(index);
    assert_eq!(
        folders(dir.path()),
        2,
        "what no view shows is removed at the latest when the thread stops"
    );
    // Neither takes the other for a leftover.
    let index = Index::open(&platform(), dir.path(), options(), 1_201).expect("opens");
    assert_eq!(index.missing(), []);
    assert_eq!(ranges(&index), [1..901, 901..1_201]);
}

#[test]
fn a_great_merge_blocks_no_smaller_one() {
    let (dir, disk) = (dir(), FaultyDisk::default());
    let mut index = open_held(&disk, dir.path(), &(1..901));
    store(&mut index, 1..901);
    index.seal_now(901).expect("sealed");
    await_held(&disk);
    store(&mut index, 901..4_901);
    index.seal_now(4_901).expect("sealed");
    let threes = (1..4_801).step_by(300).map(|from| from..from + 300);
    let expected: Vec<_> = threes.chain(std::iter::once(4_801..4_901)).collect();
    await_ranges(&index, &expected);
    check_keys(&index, 4_901);
    disk.hold_folder(None);
    await_ranges(
        &index,
        &[
            1..2_701,
            2_701..3_601,
            3_601..4_501,
            4_501..4_801,
            4_801..4_901,
        ],
    );
    check_keys(&index, 4_901);
    check_positions(&index, 4_901);
    #[cfg(target_os = "linux")]
    {
        let opened = fs::read_dir("/proc/self/fd").expect("listed");
        let opened = opened.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let last = dir.path().join(disk::folder_name(&(4_801..4_901)));
        assert_eq!(opened.filter(|file| file.starts_with(&last)).count(), 3);
    }
}

#[test]
fn a_seal_waits_for_a_merge_rather_than_pass_the_bound() {
    let (dir, disk) = (dir(), FaultyDisk::default());
    let mut index = open_held(&disk, dir.path(), &(1..901));
    let (reader, tail) = (index.reader(), 12_001);
    let bound = tiers::generations_max(0, options());
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            store(&mut index, 1..tail);
            index.seal_now(tail).expect("sealed");
        });
        while reader.generations().len() < bound {
            assert!(!writer.is_finished());
            thread::yield_now();
        }
        // Only the held merge is possible: all others are too small, or of the held tier.
        for _ in 0..200 {
            assert!(reader.generations().len() <= bound);
            thread::park_timeout(Duration::from_millis(1));
        }
        assert!(!writer.is_finished());
        disk.hold_folder(None);
        while !writer.is_finished() {
            let keys = reader.generations().iter().map(|(_, keys)| keys).sum();
            let bound = tiers::generations_max(keys, options());
            assert!(reader.generations().len() <= bound);
            thread::yield_now();
        }
    });
    check_keys(&index, tail);
}

#[test]
fn a_merge_that_is_interrupted_leaves_nothing() {
    let (dir, disk) = (dir(), FaultyDisk::default());
    let mut index = open_held(&disk, dir.path(), &(1..301));
    store(&mut index, 1..301);
    index.seal_now(301).expect("sealed");
    await_held(&disk);
    index.workers.control().stop();
    disk.hold_folder(None);
    drop(index);
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .expect("listed")
        .map(|found| found.expect("listed").file_name().into_string())
        .map(|name| name.expect("UTF-8"))
        .collect();
    names.sort();
    let parents = [1..101, 101..201, 201..301].map(|range| disk::folder_name(&range));
    assert_eq!(names[..3], parents);
    assert_eq!(names[3..], ["secret"]);
    check_keys(&open(dir.path(), 301), 301);
}

#[test]
fn readers_see_each_position_once_while_parts_move() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    let tail = AtomicU64::new(1);
    let end = 2_401;
    thread::scope(|scope| {
        for name in TOPICS {
            let (reader, tail) = (index.reader(), &tail);
            scope.spawn(move || {
                loop {
                    let durable = tail.load(Ordering::Acquire);
                    let mut seen = all_positions(&reader, name, 16);
                    assert!(seen.is_sorted_by(|one, other| one < other));
                    seen.retain(|&position| position < durable);
                    assert_eq!(seen, expected_positions(name, durable));
                    let view = reader.view();
                    for sequence in (1..view.sealed_to()).step_by(97) {
                        assert_eq!(get_sealed(&view, sequence), Some(entry(sequence)));
                    }
                    if durable == end {
                        break;
                    }
                }
            });
        }
        for first in (1..end).step_by(20) {
            store(&mut index, first..first + 20);
            tail.store(first + 20, Ordering::Release);
        }
    });
    check_keys(&index, end);
}

#[test]
fn the_writer_looks_only_where_the_caller_did_not() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    store(&mut index, 1..51);
    index.seal_now(51).expect("sealed");
    let looked_to = index.reader().view().sealed_to();
    assert_eq!(looked_to, 51);
    store(&mut index, 51..81);
    index.seal_now(81).expect("sealed");
    store(&mut index, 81..91);
    let found = |sequence| get(&index, sequence, looked_to);
    assert_eq!(found(10), None, "the caller has looked there");
    assert_eq!(found(60), Some(entry(60)), "sealed since");
    assert_eq!(found(90), Some(entry(90)), "recent");
}

/// A merge may combine searched and unsearched parts into one generation.
#[test]
fn a_half_searched_generation_is_searched() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    store(&mut index, 1..101);
    index.seal_now(101).expect("sealed");
    let looked_to = index.reader().view().sealed_to();
    assert_eq!(looked_to, 101);
    store(&mut index, 101..301);
    index.seal_now(301).expect("sealed");
    await_ranges(&index, std::slice::from_ref(&(1..301)));
    for sequence in 101..301 {
        assert_eq!(get(&index, sequence, looked_to), Some(entry(sequence)));
    }
    assert_eq!(get(&index, 100, 301), None, "the caller has looked there");
}

#[test]
fn keys_in_flight_stay_when_the_rest_is_sealed() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    store(&mut index, 1..51);
    for sequence in 51..55 {
        insert(&mut index, sequence);
    }
    index.seal_now(51).expect("sealed");
    assert_eq!(index.reader().sealed_to(), 51);
    check_keys(&index, 55);
    index.truncate(53);
    check_keys(&index, 53);
    index.truncate(51);
    check_keys(&index, 51);
    store(&mut index, 51..61);
    check_keys(&index, 61);
    check_positions(&index, 61);
}

#[test]
fn lost_generations_are_rebuilt() {
    let dir = dir();
    drop(build(dir.path(), 1..301));
    let damaged = build(dir.path(), 301..551).path().to_owned();
    drop(build(dir.path(), 551..601));
    drop(build(dir.path(), 601..701));
    fs::write(damaged.join("filter"), "").expect("written");
    fs::create_dir(dir.path().join("left.tmp")).expect("created");

    let (reader, rejected) = inspect(&platform(), dir.path(), 651).expect("opens");
    let mut found: Vec<_> = rejected.iter().map(|one| one.reason.to_string()).collect();
    found.sort();
    assert!(
        found[0].contains("failed to fill whole buffer"),
        "{found:?}"
    );
    assert_eq!(found[1], "it is ahead of the log, which ends at 651");
    assert_eq!(reader.generations(), [(1..301, 300), (551..601, 50)]);
    assert!(damaged.exists(), "an inspection removes nothing");
    drop(reader);

    let index = Index::open(&platform(), dir.path(), options(), 651).expect("opens");
    assert_eq!(index.missing(), [301..551, 601..651]);
    assert_eq!(folders(dir.path()), 2);
    drop(index);
    let index = open(dir.path(), 651);
    assert_eq!(
        index.reader().sealed_to(),
        601,
        "the last range is in memory"
    );
    check_keys(&index, 651);
    check_positions(&index, 651);
}

#[test]
fn without_its_secret_it_is_rebuilt() {
    type Damage = fn(&Path);
    let damages: [Damage; 2] = [
        |path| fs::remove_file(path).expect("removed"),
        |path| fs::write(path, "no secret").expect("written"),
    ];
    for damage in damages {
        let dir = dir();
        drop(build(dir.path(), 1..101));
        let secret = dir.path().join("secret");
        let before = fs::read(&secret).expect("a file");
        damage(&secret);
        // Another secret: under it every duplicate would look like a conflict.
        let index = Index::open(&Platform::default(), dir.path(), options(), 101).expect("opens");
        assert_eq!(index.missing(), std::slice::from_ref(&(1..101)));
        assert_eq!(folders(dir.path()), 0);
        drop(index);
        assert_ne!(fs::read(&secret).expect("a file"), before);
        let opened = Index::open(&platform(), dir.path(), options(), 101).expect("opens");
        assert_ne!(opened.secret(), SECRET, "the one that was drawn stays");
    }
}

/// All files below `dir`, by path.
fn contents(dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for found in fs::read_dir(dir).expect("listed") {
        let path = found.expect("listed").path();
        if path.is_dir() {
            contents(&path, into);
        } else {
            let content = fs::read(&path).expect("read");
            into.insert(path, content);
        }
    }
}

#[test]
fn data_of_a_newer_version_is_refused_and_untouched() {
    let with_crc = |before: &[u8], after: &dyn Fn(u32) -> Vec<u8>| {
        [before, &*after(crc32c::crc32c(before))].concat()
    };
    let manifest = with_crc(
        br#"{"format":4,"what":"this version does not know""#,
        &|crc| format!(",\"crc32c\":{crc}}}").into_bytes(),
    );
    let secret = with_crc(b"olsecret\x02\0\0\0longer than version 1 has it", &|crc| {
        crc.to_le_bytes().to_vec()
    });
    for (is_manifest, content, version, known) in [(true, manifest, 4, 3), (false, secret, 2, 1)] {
        let dir = dir();
        drop(build(dir.path(), 1..101));
        let of_newer = build(dir.path(), 101..201).path().to_owned();
        drop(build(dir.path(), 301..401));
        fs::create_dir(dir.path().join("left.tmp")).expect("created");
        fs::write(dir.path().join("left.tmp/file"), "x").expect("written");
        let newer = if is_manifest {
            of_newer.join("generation.json")
        } else {
            dir.path().join("secret")
        };
        fs::write(&newer, content).expect("written");
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        contents(dir.path(), &mut before);
        let opened = Index::open(&platform(), dir.path(), options(), 201).map(drop);
        let inspected = inspect(&platform(), dir.path(), 201).map(drop);
        for refused in [opened, inspected] {
            let error = refused.expect_err("it is of a newer version").to_string();
            let expected = format!(
                "{} has format version {version}; this oncelog knows version {known}",
                newer.display()
            );
            assert!(error.starts_with(&expected), "{error}");
        }
        contents(dir.path(), &mut after);
        assert_eq!(before, after);
    }
}

#[test]
fn an_older_version_is_rebuilt() {
    let dir = dir();
    for range in [1..101, 101..201] {
        let path = build(dir.path(), range).path().join("generation.json");
        let json = fs::read_to_string(&path).expect("read");
        fs::write(&path, json.replace("\"format\":3", "\"format\":2")).expect("written");
    }
    let (_, rejected) = inspect(&platform(), dir.path(), 201).expect("opens");
    for Rejected { reason, .. } in rejected {
        assert_eq!(
            &*reason,
            "it has format version 2, and this oncelog writes 3"
        );
    }
    let index = open(dir.path(), 201);
    check_keys(&index, 201);
    check_positions(&index, 201);
}

#[test]
fn an_interrupted_merge_keeps_the_merged_generation() {
    let dir = dir();
    drop(build(dir.path(), 1..101));
    drop(build(dir.path(), 101..201));
    drop(build(dir.path(), 1..201));
    drop(build(dir.path(), 151..251));
    let index = open(dir.path(), 251);
    assert_eq!(index.reader().generations(), [(1..201, 200)]);
    assert_eq!(folders(dir.path()), 1);
    check_keys(&index, 251);
}

#[test]
fn a_reader_that_is_left_keeps_the_index_from_opening_and_nothing_is_removed() {
    let dir = dir();
    drop(build(dir.path(), 1..101));
    let (reader, _) = inspect(&platform(), dir.path(), 101).expect("opens");
    let error = Index::open(&platform(), dir.path(), options(), 101)
        .err()
        .expect("locked");
    let IndexOpenError::Io { source, .. } = error else {
        panic!("{error}");
    };
    assert!(
        source.to_string().contains("could not acquire lock"),
        "{source}"
    );
    drop(reader);
    let index = open(dir.path(), 101);
    assert_eq!(index.reader().generations(), [(1..101, 100)]);
}

#[test]
fn an_unwritable_folder_refuses_and_heals() {
    let dir = dir();
    let mut index = open(dir.path(), 1);
    // A file in the place of the temporary folder makes the build fail.
    let obstacle = dir
        .path()
        .join(format!("{}.tmp", disk::folder_name(&(1..101))));
    fs::write(&obstacle, "").expect("written");
    // Two parts are frozen; the third has to wait, and may not.
    store(&mut index, 1..201);
    for first in (201..301).step_by(BATCH as usize) {
        for sequence in first..first + BATCH {
            insert(&mut index, sequence);
        }
        let topics = (first..first + BATCH).map(topic_at);
        index.parts.add_positions(topics, first);
    }
    let refused = index.seal_if_full(301).expect_err("two parts wait");
    assert!(matches!(refused, IndexError::Seal { .. }), "{refused}");
    check_keys(&index, 301);
    check_positions(&index, 301);
    fs::remove_file(&obstacle).expect("removed");
    while index.seal_if_full(301).is_err() {
        thread::park_timeout(Duration::from_millis(10));
    }
    index.seal_now(301).expect("sealed");
    check_keys(&index, 301);
}

#[derive(Clone, Debug)]
enum IndexOp {
    Store(u8),
    /// Inserts without making durable, then truncates.
    Abort(u8),
    Seal,
    Reopen,
    /// Reopens after losing one generation.
    Lose(u8),
}

fn steps() -> impl Strategy<Value = Vec<IndexOp>> {
    let step = prop_oneof![
        6 => (1u8..60).prop_map(IndexOp::Store),
        1 => (1u8..60).prop_map(IndexOp::Abort),
        2 => Just(IndexOp::Seal),
        1 => Just(IndexOp::Reopen),
        1 => any::<u8>().prop_map(IndexOp::Lose),
    ];
    prop::collection::vec(step, 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn it_is_a_map(steps in steps()) {
        let dir = dir();
        let mut index = open(dir.path(), 1);
        let mut tail = 1;
        let mut model = HashMap::new();
        for step in steps {
            match step {
                IndexOp::Store(batches) => {
                    let end = tail + Sequence::from(batches) * BATCH;
                    store(&mut index, tail..end);
                    model.extend((tail..end).map(|sequence| (sequence, entry(sequence))));
                    tail = end;
                }
                IndexOp::Abort(events) => {
                    for sequence in tail..tail + Sequence::from(events) {
                        insert(&mut index, sequence);
                    }
                    index.seal_if_full(tail).expect("sealed");
                    index.truncate(tail);
                }
                IndexOp::Seal => index.seal_now(tail).expect("sealed"),
                IndexOp::Reopen => {
                    drop(index);
                    index = open(dir.path(), tail);
                }
                IndexOp::Lose(which) => {
                    drop(index);
                    let folders: BTreeMap<_, _> = fs::read_dir(dir.path())
                        .expect("listed")
                        .map(|found| found.expect("listed").path())
                        .filter(|path| path.is_dir())
                        .enumerate()
                        .collect();
                    if let Some(lost) = folders.get(&(usize::from(which) % folders.len().max(1))) {
                        fs::remove_dir_all(lost).expect("removed");
                    }
                    index = open(dir.path(), tail);
                }
            }
            for sequence in 1..tail + 20 {
                prop_assert_eq!(get(&index, sequence, 1), model.get(&sequence).copied());
            }
        }
        for name in TOPICS {
            prop_assert_eq!(all_positions(&index.reader(), name, 5), expected_positions(name, tail));
        }
    }
}
