//! The run: consecutive keys with their entries, packed into one value.
//!
//! Owns the encoding. Each item is `varint of the bytes shared with the previous key, varint of the remaining
//! bytes, those bytes, varint of the sequence above the generation's first, content hash (u64, little-endian)`.
//! The key before the first item is the key of the run: the shortest prefix of the first item's key that is
//! above all keys of the previous run, so that the tree of runs is small.

use std::cmp::Ordering;

use super::{Entry, RunLimits, error::Fault};
use crate::event::{Sequence, put_varint, take_varint};

/// Packs keys in ascending order.
pub(super) struct RunWriter {
    base: Sequence,
    run_key: Vec<u8>,
    last: Vec<u8>,
    body: Vec<u8>,
    keys: usize,
    limits: RunLimits,
}

impl RunWriter {
    /// `base` is the first sequence of the generation.
    pub(super) fn new(base: Sequence, limits: RunLimits) -> Self {
        Self {
            base,
            run_key: Vec::new(),
            last: Vec::new(),
            body: Vec::with_capacity(limits.bytes_full),
            keys: 0,
            limits,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.keys >= self.limits.keys_max
            || (self.keys > 0 && self.body.len() >= self.limits.bytes_full)
    }

    /// Adds a key above all so far. One equal to the last is skipped, and gives false: of equal keys the
    /// first counts.
    pub(super) fn push(&mut self, key: &[u8], entry: Entry) -> bool {
        let mut shared = common(&self.last, key);
        match (self.last.get(shared), key.get(shared)) {
            (None, None) => return false,
            (last, next) => assert!(last < next, "keys come in ascending order"),
        }
        if self.keys == 0 {
            shared += 1;
            self.run_key.clear();
            self.run_key.extend_from_slice(&key[..shared]);
            self.body.clear();
        }
        let rest = &key[shared..];
        put_varint(shared as u64, &mut self.body);
        put_varint(rest.len() as u64, &mut self.body);
        self.body.extend_from_slice(rest);
        put_varint(entry.sequence - self.base, &mut self.body);
        self.body
            .extend_from_slice(&entry.content_hash.to_le_bytes());
        self.last.clear();
        self.last.extend_from_slice(key);
        self.keys += 1;
        true
    }

    /// Key and body of the run, none if it is empty; the next key starts a new run.
    pub(super) fn take(&mut self) -> Option<(&[u8], &[u8])> {
        let keys = std::mem::take(&mut self.keys);
        (keys > 0).then_some((&self.run_key, &self.body))
    }
}

/// One item of a body: the suffix it adds to the previous key, and the entry.
struct Item<'a> {
    shared: usize,
    rest: &'a [u8],
    entry: Entry,
}

fn take_item<'a>(body: &mut &'a [u8], base: Sequence) -> Option<Item<'a>> {
    let shared = usize::try_from(take_varint(body)?).ok()?;
    let len = usize::try_from(take_varint(body)?).ok()?;
    let (rest, after) = body.split_at_checked(len)?;
    *body = after;
    let sequence = base.checked_add(take_varint(body)?)?;
    let (content_hash, after) = body.split_first_chunk()?;
    *body = after;
    Some(Item {
        shared,
        rest,
        entry: Entry {
            sequence,
            content_hash: u64::from_le_bytes(*content_hash),
        },
    })
}

fn malformed() -> Fault {
    Fault::new("a run is malformed")
}

/// Finds `key` in the run with the key `run_key`, which is not above `key`.
pub(super) fn find(
    run_key: &[u8],
    mut body: &[u8],
    base: Sequence,
    key: &[u8],
) -> Result<Option<Entry>, Fault> {
    // How many bytes `key` shares with the key before the item. As long as the items are below `key`, one
    // that shares more with its predecessor is below as well, and one that shares less is above.
    let mut matched = common(run_key, key);
    while !body.is_empty() {
        let item = take_item(&mut body, base).ok_or_else(malformed)?;
        match item.shared.cmp(&matched) {
            Ordering::Greater => {}
            Ordering::Less => return Ok(None),
            Ordering::Equal => match item.rest.cmp(&key[matched..]) {
                Ordering::Less => matched += common(item.rest, &key[matched..]),
                Ordering::Equal => return Ok(Some(item.entry)),
                Ordering::Greater => return Ok(None),
            },
        }
    }
    Ok(None)
}

/// Reads a run from front to back, one key at a time.
pub(super) struct RunCursor {
    base: Sequence,
    key: Vec<u8>,
    body: Vec<u8>,
    at: usize,
}

impl RunCursor {
    pub(super) fn new(run_key: &[u8], body: &[u8], base: Sequence) -> Self {
        Self {
            base,
            key: run_key.to_vec(),
            body: body.to_vec(),
            at: 0,
        }
    }

    /// Moves to the next key, at first to the first. None at the end.
    pub(super) fn advance(&mut self) -> Result<Option<Entry>, Fault> {
        let mut rest = &self.body[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let item = take_item(&mut rest, self.base).ok_or_else(malformed)?;
        if item.shared > self.key.len() {
            return Err(malformed());
        }
        self.key.truncate(item.shared);
        self.key.extend_from_slice(item.rest);
        let entry = item.entry;
        self.at = self.body.len() - rest.len();
        Ok(Some(entry))
    }

    /// The current key.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}

/// The length of the common prefix of two keys.
fn common(one: &[u8], other: &[u8]) -> usize {
    const WORD_BYTES: usize = size_of::<u64>();
    let words = one
        .chunks_exact(WORD_BYTES)
        .zip(other.chunks_exact(WORD_BYTES))
        .take_while(|(one, other)| one == other)
        .count();
    let at = words * WORD_BYTES;
    let rest = one[at..].iter().zip(&other[at..]);
    at + rest.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::index::testing::entry;

    type Packed = (Vec<u8>, Vec<u8>);

    fn pack(keys: &BTreeMap<Vec<u8>, u64>) -> Vec<Packed> {
        let mut writer = RunWriter::new(10, RunLimits::default());
        let mut runs = Vec::new();
        let mut take = |writer: &mut RunWriter| {
            if let Some((first, body)) = writer.take() {
                runs.push((first.to_vec(), body.to_vec()));
            }
        };
        for (key, sequence) in keys {
            if writer.is_full() {
                take(&mut writer);
            }
            assert!(writer.push(key, entry(*sequence)));
            assert!(!writer.push(key, entry(0)), "an equal key is left out");
        }
        take(&mut writer);
        runs
    }

    /// Keys of few letters, so that they share long prefixes.
    fn keys(most: usize) -> impl Strategy<Value = BTreeMap<Vec<u8>, u64>> {
        let key = prop::collection::vec(0u8..3, 1..8);
        prop::collection::btree_map(key, 10u64..1 << 40, 1..most)
    }

    proptest! {
        #[test]
        fn runs_round_trip(keys in keys(200)) {
            let mut read = BTreeMap::new();
            for (first, body) in pack(&keys) {
                let mut cursor = RunCursor::new(&first, &body, 10);
                let mut in_run = 0;
                while let Some(found) = cursor.advance().expect("well-formed") {
                    prop_assert_eq!(found, entry(found.sequence));
                    read.insert(cursor.key().to_vec(), found.sequence);
                    in_run += 1;
                }
                prop_assert!((1..=RunLimits::default().keys_max).contains(&in_run));
            }
            prop_assert_eq!(read, keys);
        }

        #[test]
        fn lookups_are_exact(keys in keys(60), probes in keys(60)) {
            let runs = pack(&keys);
            for probe in keys.keys().chain(probes.keys()) {
                let Some((first, body)) = runs.iter().rev().find(|(first, _)| first <= probe) else {
                    prop_assert!(!keys.contains_key(probe));
                    continue;
                };
                let found = find(first, body, 10, probe).expect("well-formed");
                prop_assert_eq!(found, keys.get(probe).map(|&sequence| entry(sequence)));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = find(b"a", &body, 10, b"abc");
            let mut cursor = RunCursor::new(b"a", &body, 10);
            while let Ok(Some(_)) = cursor.advance() {}
        }
    }

    #[test]
    fn long_keys_end_a_run_early() {
        let keys = (0..100).map(|at| (vec![at; 500], 10)).collect();
        let runs = pack(&keys);
        assert!(
            runs.iter()
                .all(|(_, body)| body.len() < RunLimits::default().bytes_full + 600)
        );
        assert!(runs.len() > 2);
    }
}
