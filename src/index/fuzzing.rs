//! Fuzz targets of the index: runs of keys and their fences, runs of positions, filters, manifests.

use std::collections::BTreeMap;

use super::{
    Entry, RunLimits, disk,
    fence::{Place, Run},
    filter::Filter,
    manifest::Manifest,
    positions::{self, PositionRunWriter},
    run::{RunCursor, RunWriter, find},
    secret::{KeyHash, Secret},
};
use crate::event::Sequence;

/// The first sequence of the generations here.
const BASE: Sequence = 10;

/// Looks keys up in an arbitrary run, reads it, and packs the keys in the input. The input is the lengths (u8) of
/// the run's key and of a key to look for, these keys, and the run.
pub fn run(data: &[u8]) {
    let Some(([run_key_len, probe_len], rest)) = data.split_first_chunk() else {
        return;
    };
    let (run_key, rest) = split(rest, *run_key_len);
    let (probe, body) = split(rest, *probe_len);
    read_run(run_key, probe, body);
    check_fence(run_key, body);
    pack_and_find(probe, body);
}

fn split(bytes: &[u8], at: u8) -> (&[u8], &[u8]) {
    bytes.split_at(usize::from(at).min(bytes.len()))
}

fn read_run(run_key: &[u8], probe: &[u8], body: &[u8]) {
    let found = find(run_key, body, BASE, probe);
    let mut cursor = RunCursor::new(run_key, body, BASE);
    let mut items: Vec<(Vec<u8>, Entry)> = Vec::new();
    while let Ok(Some(entry)) = cursor.advance() {
        assert!(cursor.key().len() <= run_key.len() + body.len());
        assert!(entry.sequence >= BASE);
        items.push((cursor.key().to_vec(), entry));
    }
    // If a writer packs it the same way, it is a run, and lookups in it are exact.
    if repack(run_key, &items).is_some_and(|packed| packed == body) {
        for (key, entry) in &items {
            let found = find(run_key, body, BASE, key).expect("well-formed");
            assert_eq!(found, Some(*entry));
        }
        if run_key <= probe {
            let expected = items.iter().find(|(key, _)| key == probe);
            assert_eq!(
                found.expect("well-formed"),
                expected.map(|(_, entry)| *entry)
            );
        }
    }
}

/// The body of a run of these items, if they are in order and fit into one.
fn repack(run_key: &[u8], items: &[(Vec<u8>, Entry)]) -> Option<Vec<u8>> {
    let (_, before) = run_key.split_last()?;
    let (first, _) = items.first()?;
    if !first.starts_with(run_key) || !items.is_sorted_by(|(a, _), (b, _)| a < b) {
        return None;
    }
    let mut writer = RunWriter::new(BASE, RunLimits::default());
    // The key before the run decides the length of the run's key.
    if !before.is_empty() {
        let (_, entry) = items[0];
        writer.push(before, entry);
        writer.take();
    }
    for (key, entry) in items {
        if writer.is_full() {
            return None;
        }
        assert!(writer.push(key, *entry), "the keys are different");
    }
    let (key, body) = writer.take()?;
    assert_eq!(key, run_key);
    Some(body.to_vec())
}

fn check_fence(key: &[u8], bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(run) = Run::check(key.into(), bytes.to_vec()) {
            assert_eq!(run.key(), key);
            // The length of the fence comes first, the checksum last.
            let content = [run.fence(), run.body()].concat();
            assert_eq!(content, bytes[2..bytes.len() - 4]);
        }
    };
    check(bytes);
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), bytes);
    check(&[bytes, &crc.to_le_bytes()].concat());
    if let Some(place) = Place::decode(bytes) {
        assert_eq!(place.encode(), bytes);
    }
}

/// Packs the lines of `text` as keys, and looks up each of them and `probe`.
fn pack_and_find(probe: &[u8], text: &[u8]) {
    let lines = text.split(|byte| *byte == b'\n');
    let keys: BTreeMap<&[u8], Entry> = lines
        .filter(|key| !key.is_empty())
        .zip(BASE..)
        .map(|(key, sequence)| {
            let content_hash = !sequence;
            let entry = Entry {
                sequence,
                content_hash,
            };
            (key, entry)
        })
        .collect();
    let mut writer = RunWriter::new(BASE, RunLimits::default());
    let mut runs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut take = |writer: &mut RunWriter| {
        if let Some((key, body)) = writer.take() {
            runs.push((key.to_vec(), body.to_vec()));
        }
    };
    for (key, entry) in &keys {
        if writer.is_full() {
            take(&mut writer);
        }
        assert!(writer.push(key, *entry), "the keys are different");
    }
    take(&mut writer);
    assert!(runs.is_sorted_by(|(a, _), (b, _)| a < b));
    for key in keys.keys().copied().chain([probe]) {
        let after = runs.partition_point(|(run_key, _)| run_key.as_slice() <= key);
        let found = match after.checked_sub(1) {
            Some(at) => find(&runs[at].0, &runs[at].1, BASE, key).expect("well-formed"),
            None => None,
        };
        assert_eq!(found, keys.get(key).copied());
    }
    let items: usize = runs
        .iter()
        .map(|(key, body)| {
            let mut cursor = RunCursor::new(key, body, BASE);
            let mut items = 0;
            while cursor.advance().expect("well-formed").is_some() {
                items += 1;
            }
            assert!((1..=RunLimits::default().keys_max).contains(&items));
            items
        })
        .sum();
    assert_eq!(items, keys.len());
}

/// Reads a run of positions. The input is the length (u8) of its key, the key, and the run.
pub fn positions(data: &[u8]) {
    let Some((key_len, rest)) = data.split_first() else {
        return;
    };
    let (key, body) = split(rest, *key_len);
    let Ok((topic, decoded)) = positions::decode(key, body) else {
        return;
    };
    assert!(decoded.is_sorted());
    assert!(decoded.len() <= body.len() + 1);
    for from in [0, decoded[0], decoded[decoded.len() / 2], Sequence::MAX] {
        for max in [1, 2, usize::MAX] {
            let page = positions::page(&decoded, from, max);
            assert!((1..=max).contains(&page.len()));
            assert!(page[0] <= from || page[0] == decoded[0]);
        }
    }
    assert_eq!(positions::run_key(topic, decoded[0]), key);
    if !decoded.is_sorted_by(|a, b| a < b) {
        return;
    }
    let mut writer = PositionRunWriter::new(RunLimits::default().positions_max);
    for &position in &decoded {
        if writer.is_full_for(topic) {
            return;
        }
        writer.push(topic, position);
    }
    assert_eq!(writer.take(), Some((key.to_vec(), body.to_vec())));
}

/// Reads a filter unchanged, and with its checksum corrected.
pub fn filter(data: &[u8]) {
    read_filter(data);
    let crc = crc32c::crc32c(data).to_le_bytes();
    read_filter(&[data, &crc].concat());
}

fn read_filter(bytes: &[u8]) {
    let Ok(mut filter) = Filter::read(bytes, bytes.len() as u64) else {
        return;
    };
    let mut written = Vec::new();
    filter.write(&mut written).expect("memory");
    assert_eq!(written, bytes);
    for hash in [0, 1, 1 << 63, u64::MAX].map(KeyHash) {
        filter.insert(&[hash]);
        assert!(filter.may_contain(hash));
    }
}

/// Reads a manifest unchanged, and with its checksum corrected; also a folder's name, and a secret.
pub fn manifest(data: &[u8]) {
    if let Ok(secret) = Secret::parse(data) {
        assert_eq!(secret.encode(), data);
    }
    if let Ok(manifest) = Manifest::parse(data) {
        assert_eq!(Manifest::parse(&manifest.json()).ok(), Some(manifest));
    }
    if let Some(manifest) = Manifest::repair(data) {
        assert_eq!(Manifest::parse(&manifest.json()).ok(), Some(manifest));
    }
    if let Ok(name) = str::from_utf8(data)
        && let Some(range) = disk::parse_folder_name(name)
    {
        assert!(range.start < range.end);
        assert_eq!(disk::folder_name(&range), name);
    }
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use super::{super::manifest::Runs, *};

    fn packed(run_key: &[u8], probe: &[u8], body: &[u8]) -> Vec<u8> {
        let lens = [run_key, probe].map(|key| u8::try_from(key.len()).expect("short"));
        [&lens[..], run_key, probe, body].concat()
    }

    pub(crate) fn runs() -> Vec<(&'static str, Vec<u8>)> {
        let mut writer = RunWriter::new(BASE, RunLimits::default());
        let mut run = |from: u64, probe: &str| {
            for at in from..from + RunLimits::default().keys_max as u64 {
                let key = format!("orders\0event {at:04}");
                let entry = Entry {
                    sequence: BASE + at * at,
                    content_hash: !at,
                };
                writer.push(key.as_bytes(), entry);
            }
            let (key, body) = writer.take().expect("holds keys");
            packed(key, probe.as_bytes(), body)
        };
        let first = run(0, "orders\0event 0007");
        let second = run(64, "orders\0event 0100x");
        let fence = [&3u16.to_le_bytes()[..], b"nexta body"].concat();
        let lines = (0..200).map(|at| format!("t\0id {}\n", at * 7919 % 1009));
        let lines: String = lines.collect();
        vec![
            ("first", first),
            ("second", second),
            ("fence", packed(b"key", b"", &fence)),
            (
                "place",
                packed(b"key", b"", &Place { offset: 7, len: 9 }.encode()),
            ),
            ("lines", packed(b"", b"t\0id 7", lines.as_bytes())),
        ]
    }

    pub(crate) fn positions() -> Vec<(&'static str, Vec<u8>)> {
        let seed = |topic: &str, positions: &[Sequence]| {
            let mut writer = PositionRunWriter::new(RunLimits::default().positions_max);
            for &position in positions {
                writer.push(topic, position);
            }
            let (key, body) = writer.take().expect("holds positions");
            let len = u8::try_from(key.len()).expect("short");
            [&[len][..], &key, &body].concat()
        };
        let many: Vec<_> = (1..129).map(|at| at * at * at).collect();
        vec![
            ("one", seed("t", &[1])),
            ("many", seed("orders", &many)),
            ("far", seed("é", &[1, u64::MAX])),
        ]
    }

    pub(crate) fn filters() -> Vec<(&'static str, Vec<u8>)> {
        let mut filter = Filter::with_capacity(100);
        filter.insert(&[1, 1 << 40, u64::MAX].map(KeyHash));
        let mut whole = Vec::new();
        filter.write(&mut whole).expect("memory");
        let unchecked = whole[..whole.len() - 4].to_vec();
        vec![("whole", whole), ("unchecked", unchecked)]
    }

    pub(crate) fn manifests() -> Vec<(&'static str, Vec<u8>)> {
        let runs = |first: &[u8], bytes| Runs {
            first: first.to_vec(),
            bytes,
        };
        let (keys, positions) = (runs(b"a\0b", 5000), runs(b"a\0\0\x01", 70));
        let manifest = Manifest::new(1..100, 99, keys, positions, 4096, 7);
        vec![
            ("whole", manifest.json()),
            ("folder", disk::folder_name(&(1..100)).into_bytes()),
        ]
    }
}
