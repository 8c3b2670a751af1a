//! Positions: the batches that have events of a topic.
//!
//! A position is the first sequence of a batch that contains the topic; the log finds the batch by it. Owns the
//! positions of the newest batches in memory and the encoding of those in a generation: a run of positions of one
//! topic has the key `topic ++ 0x00 ++ first position (u64, big-endian)` and, as its body, each further position
//! as the varint of its distance from the previous one.

use std::collections::HashMap;

use super::error::Fault;
use crate::event::{Key, Sequence, put_varint, take_varint};

/// Positions in memory, by topic.
#[derive(Default)]
pub(super) struct RecentPositions {
    topics: HashMap<Box<str>, Vec<Sequence>>,
    /// The greatest position.
    newest: Sequence,
}

impl RecentPositions {
    /// Adds a batch that contains `topic`; naming a topic of the newest batch again changes nothing.
    pub(super) fn add(&mut self, topic: &str, first: Sequence) {
        let positions = match self.topics.get_mut(topic) {
            Some(positions) => positions,
            None => self.topics.entry(topic.into()).or_default(),
        };
        match positions.last() {
            Some(&last) if last == first => {}
            last => {
                assert!(
                    last.is_none_or(|&last| last < first),
                    "batches come in order"
                );
                positions.push(first);
            }
        }
        self.newest = self.newest.max(first);
    }

    /// Removes and returns the positions below `tail`.
    pub(super) fn take_below(&mut self, tail: Sequence) -> Self {
        if self.newest < tail {
            return std::mem::take(self);
        }
        let mut taken = Self::default();
        self.topics.retain(|topic, positions| {
            let kept = positions.split_off(positions.partition_point(|&position| position < tail));
            let below = std::mem::replace(positions, kept);
            if let Some(&last) = below.last() {
                taken.newest = taken.newest.max(last);
                taken.topics.insert(topic.clone(), below);
            }
            !positions.is_empty()
        });
        taken
    }

    /// The [`page`] of positions of `topic`.
    pub(super) fn page(&self, topic: &str, from: Sequence, max: usize) -> &[Sequence] {
        self.topics
            .get(topic)
            .map_or(&[], |positions| page(positions, from, max))
    }

    /// All positions, topics in the order of their bytes.
    pub(super) fn sorted(&self) -> impl Iterator<Item = (&str, &[Sequence])> {
        let mut topics: Vec<_> = self
            .topics
            .iter()
            .map(|(topic, positions)| (&**topic, positions.as_slice()))
            .collect();
        topics.sort_unstable_by_key(|&(topic, _)| topic);
        topics.into_iter()
    }
}

/// The last of ascending positions at or below `from`, and the following ones; at most `max`.
pub(super) fn page(positions: &[Sequence], from: Sequence, max: usize) -> &[Sequence] {
    let above = positions.partition_point(|&position| position <= from);
    let rest = &positions[above.saturating_sub(1)..];
    &rest[..rest.len().min(max)]
}

/// `topic ++ 0x00`, the prefix of the topic's runs and of no other's.
pub(super) fn topic_prefix(topic: &str) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(topic.len() + 1 + size_of::<Sequence>());
    prefix.extend_from_slice(topic.as_bytes());
    prefix.push(Key::SEPARATOR);
    prefix
}

/// The key of the run of `topic` that starts with `first`.
pub(super) fn run_key(topic: &str, first: Sequence) -> Vec<u8> {
    let mut key = topic_prefix(topic);
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Topic and positions of a run.
pub(super) fn decode<'a>(
    key: &'a [u8],
    mut body: &[u8],
) -> Result<(&'a str, Vec<Sequence>), Fault> {
    let malformed = || Fault::new("a run of positions is malformed");
    let (topic, first) = key.split_last_chunk().ok_or_else(malformed)?;
    let topic = topic
        .strip_suffix(&[Key::SEPARATOR])
        .ok_or_else(malformed)?;
    let topic = str::from_utf8(topic).map_err(|_| malformed())?;
    let mut last = u64::from_be_bytes(*first);
    let mut positions = vec![last];
    while !body.is_empty() {
        let distance = take_varint(&mut body).ok_or_else(malformed)?;
        last = last.checked_add(distance).ok_or_else(malformed)?;
        positions.push(last);
    }
    Ok((topic, positions))
}

/// Packs positions that come by topic in ascending order, and ascending within a topic.
pub(super) struct PositionRunWriter {
    topic: String,
    positions: Vec<Sequence>,
    /// The most positions of a run.
    positions_max: usize,
}

impl PositionRunWriter {
    pub(super) fn new(positions_max: usize) -> Self {
        Self {
            topic: String::new(),
            positions: Vec::new(),
            positions_max,
        }
    }

    /// Whether the current run accepts no position of `topic`.
    pub(super) fn is_full_for(&self, topic: &str) -> bool {
        self.positions.len() >= self.positions_max
            || (!self.positions.is_empty() && self.topic != topic)
    }

    /// Adds a position; the run must have room for it.
    pub(super) fn push(&mut self, topic: &str, position: Sequence) {
        match self.positions.last() {
            Some(&last) => assert!(last < position, "positions come in ascending order"),
            None => {
                self.topic.clear();
                self.topic.push_str(topic);
            }
        }
        self.positions.push(position);
    }

    /// Key and body of the run, none if it is empty; the next position starts a new run.
    pub(super) fn take(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let key = run_key(&self.topic, *self.positions.first()?);
        let mut body = Vec::new();
        for pair in self.positions.windows(2) {
            put_varint(pair[1] - pair[0], &mut body);
        }
        self.positions.clear();
        Some((key, body))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn topics() -> impl Strategy<Value = BTreeMap<String, BTreeSet<Sequence>>> {
        let positions = prop::collection::btree_set(any::<u64>(), 1..300);
        prop::collection::btree_map("[a-c ]{1,3}", positions, 1..5)
    }

    proptest! {
        #[test]
        fn runs_round_trip_in_order(topics in topics()) {
            let mut recent = RecentPositions::default();
            for (topic, positions) in &topics {
                positions.iter().for_each(|&position| recent.add(topic, position));
            }
            let mut writer = PositionRunWriter::new(128);
            let mut runs = Vec::new();
            for (topic, positions) in recent.sorted() {
                for &position in positions {
                    if writer.is_full_for(topic) {
                        runs.extend(writer.take());
                    }
                    writer.push(topic, position);
                }
            }
            runs.extend(writer.take());
            prop_assert!(runs.is_sorted_by(|(one, _), (other, _)| one < other));
            let mut read: BTreeMap<String, BTreeSet<Sequence>> = BTreeMap::new();
            for (key, body) in &runs {
                let (topic, positions) = decode(key, body).expect("well-formed");
                prop_assert!(positions.len() <= 128);
                read.entry(topic.to_owned()).or_default().extend(positions);
            }
            prop_assert_eq!(read, topics);
        }

        #[test]
        fn any_bytes_are_read_without_panic(key: Vec<u8>, body: Vec<u8>) {
            let _ = decode(&key, &body);
        }
    }

    #[test]
    fn a_page_begins_with_the_batch_that_may_hold_from() {
        for (from, max, expected) in [
            (0, 9, &[10, 20, 30][..]),
            (10, 9, &[10, 20, 30]),
            (19, 9, &[10, 20, 30]),
            (20, 9, &[20, 30]),
            (25, 1, &[20]),
            (99, 9, &[30]),
        ] {
            assert_eq!(page(&[10, 20, 30], from, max), expected, "from {from}");
        }
        assert!(page(&[], 5, 9).is_empty());
    }

    #[test]
    fn taking_leaves_the_newer_positions() {
        let mut recent = RecentPositions::default();
        for (topic, position) in [("a", 1), ("b", 1), ("a", 1), ("a", 5), ("c", 9)] {
            recent.add(topic, position);
        }
        let taken = recent.take_below(5);
        assert_eq!(taken.page("a", 0, 9), [1]);
        assert_eq!(taken.page("b", 0, 9), [1]);
        assert_eq!(recent.page("a", 0, 9), [5]);
        assert_eq!(recent.page("b", 0, 9), [] as [u64; 0]);
        assert_eq!(recent.page("c", 0, 9), [9]);
        let taken = recent.take_below(9);
        assert_eq!(taken.page("a", 0, 9), [5]);
        assert_eq!(recent.page("c", 0, 9), [9]);
    }
}
