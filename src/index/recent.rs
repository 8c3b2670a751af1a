//! Recent: the exact keys that are in no generation yet, in memory, in order of insertion.
//!
//! Owns their bytes. Knows nothing of positions, threads or files; the caller decides when to seal.

use std::{hint::black_box, vec};

use hashbrown::{HashTable, hash_table};

use super::{Entry, secret::KeyHash};
use crate::event::{Key, Sequence};

/// Key bytes are kept in chunks of this size, so that growing never copies them.
const CHUNK_BYTES: usize = 1024 * 1024;
/// The bits of [`Slot::place`] that hold the length of the key.
const LEN_BITS: u32 = 16;
const _: () = assert!(Key::BYTES_MAX < 1 << LEN_BITS && Key::BYTES_MAX < CHUNK_BYTES);

/// Keys with their entries, of strictly increasing sequences. About 100 bytes for a key of 50 bytes.
#[derive(Default)]
pub(super) struct Recent {
    chunks: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    /// Indexes into `slots`, placed by the hash of the key.
    table: HashTable<u32>,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: KeyHash,
    entry: Entry,
    /// `(chunk * CHUNK_BYTES + offset) << LEN_BITS | length` of the key.
    place: u64,
}

impl Slot {
    /// Chunk, offset in it, length.
    fn place(self) -> (usize, usize, usize) {
        let len = (self.place & ((1 << LEN_BITS) - 1)) as usize;
        let at = (self.place >> LEN_BITS) as usize;
        (at / CHUNK_BYTES, at % CHUNK_BYTES, len)
    }
}

fn key_of(chunks: &[Vec<u8>], slot: Slot) -> &[u8] {
    let (chunk, at, len) = slot.place();
    &chunks[chunk][at..at + len]
}

impl Recent {
    /// An empty one with room for `keys`, so that filling it never stalls to grow.
    pub(super) fn with_capacity(keys: usize) -> Self {
        Self {
            chunks: Vec::new(),
            slots: Vec::with_capacity(keys),
            table: HashTable::with_capacity(keys),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many keys have a sequence below `tail`.
    pub(super) fn len_below(&self, tail: Sequence) -> usize {
        self.slots
            .partition_point(|slot| slot.entry.sequence < tail)
    }

    pub(super) fn get(&self, key: &Key, hash: KeyHash) -> Option<Entry> {
        let found = self.table.find(hash.0, |&index| {
            let slot = self.slots[index as usize];
            slot.hash == hash && key_of(&self.chunks, slot) == key.as_bytes()
        });
        found.map(|&index| self.slots[index as usize].entry)
    }

    /// Adds a key. If it is there already its first entry stays: the log has a key twice only if it was
    /// tampered with, and then the first is the acked one.
    pub(super) fn insert(&mut self, key: &Key, hash: KeyHash, entry: Entry) {
        self.insert_bytes(key.as_bytes(), hash, entry);
    }

    fn insert_bytes(&mut self, key: &[u8], hash: KeyHash, entry: Entry) {
        assert!(
            self.slots
                .last()
                .is_none_or(|last| last.entry.sequence < entry.sequence),
            "sequences increase"
        );
        let (chunks, slots) = (&mut self.chunks, &mut self.slots);
        let same = |&index: &u32| {
            let slot = slots[index as usize];
            slot.hash == hash && key_of(chunks, slot) == key
        };
        let rehash = |&index: &u32| slots[index as usize].hash.0;
        if let hash_table::Entry::Vacant(vacant) = self.table.entry(hash.0, same, rehash) {
            vacant.insert(u32::try_from(slots.len()).expect("fewer than 2^32 keys in memory"));
            let place = push_key(chunks, key);
            slots.push(Slot { hash, entry, place });
        }
    }

    /// Forgets every key with a sequence at or above `tail`.
    pub(super) fn truncate(&mut self, tail: Sequence) {
        while let Some(slot) = self.slots.pop_if(|slot| slot.entry.sequence >= tail) {
            let index = self.slots.len();
            match self
                .table
                .find_entry(slot.hash.0, |&other| other as usize == index)
            {
                Ok(found) => drop(found.remove()),
                Err(_) => unreachable!("every slot is in the table"),
            }
            let (chunk, at, _) = slot.place();
            self.chunks.truncate(chunk + 1);
            self.chunks[chunk].truncate(at);
        }
    }

    /// Keeps the keys below `tail` and returns the others, with room for `keys`.
    pub(super) fn split_off(&mut self, tail: Sequence, keys: usize) -> Self {
        let mut rest = Self::with_capacity(keys);
        for &slot in &self.slots[self.len_below(tail)..] {
            rest.insert_bytes(key_of(&self.chunks, slot), slot.hash, slot.entry);
        }
        self.truncate(tail);
        rest
    }

    /// All keys, their hashes and entries in the order of the keys' bytes.
    pub(super) fn sorted(&self) -> impl Iterator<Item = Sorted<'_>> {
        // The first bytes decide most comparisons, and they are at hand.
        let mut order: Vec<(u128, &Slot)> = self
            .slots
            .iter()
            .map(|slot| (front_of(key_of(&self.chunks, *slot)), slot))
            .collect();
        order.sort_unstable_by(|(front, slot), (other_front, other)| {
            front
                .cmp(other_front)
                .then_with(|| key_of(&self.chunks, **slot).cmp(key_of(&self.chunks, **other)))
        });
        Together {
            order: order.into_iter(),
            chunks: &self.chunks,
            group: Vec::new().into_iter(),
        }
    }
}

/// Sorted keys are scattered over memory: fetching many at a time overlaps the waits.
struct Together<'a> {
    order: vec::IntoIter<(u128, &'a Slot)>,
    chunks: &'a [Vec<u8>],
    group: vec::IntoIter<Sorted<'a>>,
}

/// A key with its hash and its entry.
type Sorted<'a> = (&'a [u8], KeyHash, Entry);

impl<'a> Iterator for Together<'a> {
    type Item = Sorted<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        const GROUP_KEYS: usize = 64;
        if self.group.len() == 0 {
            let slots = self.order.by_ref().take(GROUP_KEYS).map(|(_, slot)| *slot);
            let group: Vec<_> = slots
                .map(|slot| (key_of(self.chunks, slot), slot.hash, slot.entry))
                .collect();
            let ends = group.iter().map(|(key, ..)| (key.first(), key.last()));
            black_box(ends.fold(0, |sum, (first, last)| {
                sum ^ first.unwrap_or(&0) ^ last.unwrap_or(&0)
            }));
            self.group = group.into_iter();
        }
        self.group.next()
    }
}

/// The first 16 bytes of a key as a number: one is below another only if its key is.
fn front_of(key: &[u8]) -> u128 {
    let mut front = [0; size_of::<u128>()];
    let len = key.len().min(front.len());
    front[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(front)
}

/// Appends a copy of `key` and returns its place.
fn push_key(chunks: &mut Vec<Vec<u8>>, key: &[u8]) -> u64 {
    if chunks
        .last()
        .is_none_or(|chunk| chunk.len() + key.len() > CHUNK_BYTES)
    {
        chunks.push(Vec::with_capacity(CHUNK_BYTES));
    }
    let number = chunks.len() - 1;
    let chunk = &mut chunks[number];
    let at = number * CHUNK_BYTES + chunk.len();
    chunk.extend_from_slice(key);
    (at as u64) << LEN_BITS | key.len() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::index::testing::{SECRET, entry, key};

    fn insert(recent: &mut Recent, key: &Key, sequence: Sequence) {
        recent.insert(key, SECRET.key_hash(key), entry(sequence));
    }

    fn get(recent: &Recent, key: &Key) -> Option<Entry> {
        recent.get(key, SECRET.key_hash(key))
    }

    #[derive(Clone, Debug)]
    enum RecentOp {
        Insert(u16),
        Truncate(u8),
        Split(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<RecentOp>> {
        let step = prop_oneof![
            8 => any::<u16>().prop_map(|id| RecentOp::Insert(id % 300)),
            1 => any::<u8>().prop_map(RecentOp::Truncate),
            1 => any::<u8>().prop_map(RecentOp::Split),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn is_a_map(steps in steps()) {
            let mut recent = Recent::default();
            let mut model: HashMap<u16, Entry> = HashMap::new();
            let mut tail = 1;
            for step in steps {
                match step {
                    RecentOp::Insert(id) => {
                        insert(&mut recent, &key("t", &id.to_string()), tail);
                        model.entry(id).or_insert(entry(tail));
                        tail += 1;
                    }
                    RecentOp::Truncate(back) => {
                        tail = tail.saturating_sub(u64::from(back % 8)).max(1);
                        recent.truncate(tail);
                        model.retain(|_, entry| entry.sequence < tail);
                    }
                    RecentOp::Split(back) => {
                        let at = tail.saturating_sub(u64::from(back));
                        let rest = recent.split_off(at, 1);
                        prop_assert!(recent.slots.iter().all(|slot| slot.entry.sequence < at));
                        recent = rest;
                        model.retain(|_, entry| entry.sequence >= at);
                    }
                }
                prop_assert_eq!(recent.len(), model.len());
                prop_assert_eq!(recent.table.len(), model.len());
            }
            for id in 0..300 {
                prop_assert_eq!(get(&recent, &key("t", &id.to_string())), model.get(&id).copied());
            }
            let sorted: Vec<_> = recent.sorted().map(|(key, ..)| key.to_vec()).collect();
            prop_assert!(sorted.is_sorted());
            prop_assert_eq!(sorted.len(), model.len());
        }
    }

    #[test]
    fn truncating_gives_chunks_back() {
        let mut recent = Recent::default();
        let id = |at: u64| format!("{at:0>200}");
        for at in 1..=12_000 {
            insert(&mut recent, &key("t", &id(at)), at);
        }
        assert!(recent.chunks.len() > 2);
        recent.truncate(3);
        assert_eq!(recent.chunks.len(), 1);
        assert_eq!(get(&recent, &key("t", &id(2))), Some(entry(2)));
        assert_eq!(get(&recent, &key("t", &id(3))), None);
        insert(&mut recent, &key("t", &id(3)), 3);
        assert_eq!(get(&recent, &key("t", &id(3))), Some(entry(3)));
    }

    #[test]
    fn keys_are_sorted_by_all_their_bytes() {
        let mut recent = Recent::default();
        let ids = (0..100).map(|at| format!("the same first sixteen bytes {at:03}"));
        for (at, id) in ids
            .clone()
            .rev()
            .chain(["a".into(), "a\u{e000}".into()])
            .enumerate()
        {
            insert(&mut recent, &key("t", &id), at as Sequence + 1);
        }
        let sorted: Vec<_> = recent.sorted().map(|(key, ..)| key.to_vec()).collect();
        assert!(sorted.is_sorted_by(|one, other| one < other));
        assert_eq!(sorted.len(), 102);
    }

    #[test]
    fn keys_are_compared_whole() {
        let mut recent = Recent::default();
        insert(&mut recent, &key("ab", "c"), 1);
        assert_eq!(get(&recent, &key("a", "bc")), None);
        assert_eq!(get(&recent, &key("ab", "c")), Some(entry(1)));
    }
}
