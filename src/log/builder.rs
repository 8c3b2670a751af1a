//! Builds a batch from events.
//!
//! Owns [`BatchBuilder`]. Copies each event once, when the batch is finished, so that [`push`] is cheap.
//! Does not look for duplicates.
//!
//! [`push`]: BatchBuilder::push

use bytes::{BufMut, Bytes};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Batch,
    header::{ENTRY_BYTES, FIXED_BYTES, Fixed, Group, Header},
};
use crate::event::{Event, Sequence, UnixNanos, put_varint, varint_len};

/// The most bytes of an encoded batch: its lengths have 32 bits.
pub const BATCH_BYTES_MAX: usize = 1 << 30;

/// A batch in the making.
pub struct BatchBuilder {
    first_sequence: Sequence,
    /// By arrival, with the topic of each.
    events: Vec<(u32, Bytes)>,
    topics: Vec<TopicSoFar>,
    /// The names of the topics, concatenated.
    names: Vec<u8>,
    /// Indexes into `topics` by the hash of the name.
    by_name: HashTable<u32>,
    bytes: usize,
}

struct TopicSoFar {
    hash: u64,
    name: std::ops::Range<usize>,
    events: u32,
    bytes: usize,
}

impl BatchBuilder {
    /// A batch without events; the first will have `first_sequence`.
    pub fn new(first_sequence: Sequence) -> Self {
        Self {
            first_sequence,
            events: Vec::new(),
            topics: Vec::new(),
            names: Vec::new(),
            by_name: HashTable::new(),
            bytes: FIXED_BYTES,
        }
    }

    /// Adds an event and assigns its sequence.
    ///
    /// # Panics
    /// If the batch outgrows [`BATCH_BYTES_MAX`]: the caller must finish a batch long before.
    pub fn push(&mut self, event: &Event) -> Sequence {
        let sequence = self.next_sequence();
        let topic = self.topic(event.key().topic_bytes());
        let encoded = event.encoded();
        let index = self.events.len() as u64;
        let bytes = varint_len(index) + varint_len(encoded.len() as u64) + encoded.len();
        self.bytes += bytes;
        assert!(self.bytes <= BATCH_BYTES_MAX, "a batch has a limit");
        let so_far = &mut self.topics[topic as usize];
        so_far.events += 1;
        so_far.bytes += bytes;
        self.events.push((topic, encoded.clone()));
        sequence
    }

    /// The index of a topic, new or known.
    fn topic(&mut self, name: &[u8]) -> u32 {
        // Events of a topic often come in a row.
        if let Some((last, _)) = self.events.last()
            && self.names[self.topics[*last as usize].name.clone()] == *name
        {
            return *last;
        }
        let hash = xxh3_64(name);
        let (topics, names) = (&mut self.topics, &mut self.names);
        let found = self.by_name.find(hash, |topic| {
            let topic = &topics[*topic as usize];
            topic.hash == hash && names[topic.name.clone()] == *name
        });
        if let Some(topic) = found {
            return *topic;
        }
        let topic = u32::try_from(topics.len()).expect("BATCH_BYTES_MAX holds fewer");
        let start = names.len();
        names.extend_from_slice(name);
        topics.push(TopicSoFar {
            hash,
            name: start..names.len(),
            events: 0,
            bytes: 0,
        });
        self.by_name
            .insert_unique(hash, topic, |topic| topics[*topic as usize].hash);
        self.bytes += ENTRY_BYTES + name.len();
        topic
    }

    /// The number of events.
    pub fn count(&self) -> usize {
        self.events.len()
    }

    /// The number of topics.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Whether there is no event yet.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The size of the encoded batch, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The sequence of the next event pushed.
    pub fn next_sequence(&self) -> Sequence {
        self.first_sequence + self.events.len() as u64
    }

    /// Makes the batch, accepted at `received_at`.
    ///
    /// # Panics
    /// If there is no event: the log has no empty batches.
    pub fn finish(self, received_at: UnixNanos) -> Batch {
        assert!(!self.is_empty(), "the log has no empty batches");
        let header_bytes = FIXED_BYTES + self.topics.len() * ENTRY_BYTES + self.names.len();
        let by_topic = self.by_topic();
        let mut encoded = Vec::with_capacity(self.bytes);
        encoded.resize(header_bytes, 0);
        let mut groups = Vec::with_capacity(self.topics.len());
        let mut directory = Vec::with_capacity(header_bytes - FIXED_BYTES);
        let mut events = by_topic.events.into_iter();
        for topic in by_topic.topics {
            let topic = &self.topics[topic as usize];
            let start = encoded.len();
            for index in events.by_ref().take(topic.events as usize) {
                let (_, event) = &self.events[index as usize];
                put_varint(u64::from(index), &mut encoded);
                put_varint(event.len() as u64, &mut encoded);
                encoded.extend_from_slice(event);
            }
            debug_assert_eq!(encoded.len() - start, topic.bytes);
            let crc = crc32c::crc32c(&encoded[start..]);
            let name_at = FIXED_BYTES + directory.len() + 1;
            directory.put_u8(topic.name.len() as u8);
            directory.extend_from_slice(&self.names[topic.name.clone()]);
            directory.put_u32_le(topic.events);
            directory.put_u32_le(topic.bytes as u32);
            directory.put_u32_le(crc);
            groups.push(Group {
                topic: name_at..name_at + topic.name.len(),
                events: topic.events,
                data: start..encoded.len(),
                crc,
            });
        }
        let mut fixed = Fixed {
            header_crc: 0,
            header_bytes: header_bytes as u32,
            count: self.events.len() as u32,
            groups: groups.len() as u32,
            first_sequence: self.first_sequence,
            received_at,
        };
        let mut header = Vec::with_capacity(header_bytes);
        fixed.put_checked(&mut header);
        header.extend_from_slice(&directory);
        fixed.header_crc = crc32c::crc32c(&header);
        encoded[..4].copy_from_slice(&fixed.header_crc.to_le_bytes());
        encoded[4..header_bytes].copy_from_slice(&header);
        let encoded = Bytes::from(encoded);
        let header = Header {
            bytes: encoded.slice(..header_bytes),
            fixed,
            groups,
        };
        Batch::from_parts(header, encoded)
    }

    /// The topics by name, and the events by topic and arrival, as indexes.
    fn by_topic(&self) -> ByTopic {
        let mut topics: Vec<u32> = (0..self.topics.len() as u32).collect();
        let name = |topic: &u32| &self.names[self.topics[*topic as usize].name.clone()];
        topics.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        // Where each topic's next event goes: a counting sort.
        let mut next = vec![0; topics.len()];
        let mut start = 0;
        for topic in &topics {
            next[*topic as usize] = start;
            start += self.topics[*topic as usize].events as usize;
        }
        let mut events = vec![0; self.events.len()];
        for (index, (topic, _)) in self.events.iter().enumerate() {
            let place = &mut next[*topic as usize];
            events[*place] = index as u32;
            *place += 1;
        }
        ByTopic { topics, events }
    }
}

struct ByTopic {
    topics: Vec<u32>,
    events: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        event::StoredEvent,
        log::support::{any_events, event},
    };

    proptest! {
        /// Pushed events come back in order, and take the predicted space.
        #[test]
        fn events_keep_their_order(events in any_events(), first in 1..1_000_000u64) {
            let mut builder = BatchBuilder::new(first);
            let sequences: Vec<_> = events.iter().map(|event| builder.push(event)).collect();
            prop_assert!(sequences.iter().copied().eq(first..builder.next_sequence()));
            let (bytes, topics) = (builder.bytes(), builder.topic_count());
            let batch = builder.finish(9);
            prop_assert_eq!(batch.encoded().len(), bytes);
            prop_assert_eq!(batch.topics().len(), topics);
            let expected: Vec<_> = sequences
                .iter()
                .zip(&events)
                .map(|(sequence, event)| StoredEvent {
                    sequence: *sequence,
                    received_at: 9,
                    batch_checksum: batch.checksum(),
                    encoded: event.encoded().clone(),
                })
                .collect();
            prop_assert_eq!(batch.events(), expected);
        }
    }

    #[test]
    fn the_size_so_far_is_the_size_in_the_end() {
        let mut builder = BatchBuilder::new(7);
        assert!(builder.is_empty());
        for (index, topic) in ["b", "a", "a", "ccc", "b"].into_iter().enumerate() {
            let sequence = builder.push(&event(topic, &index.to_string(), b"data"));
            assert_eq!(sequence, 7 + index as u64);
        }
        assert_eq!(builder.count(), 5);
        assert_eq!(builder.next_sequence(), 12);
        let bytes = builder.bytes();
        let batch = builder.finish(0);
        assert_eq!(batch.encoded().len(), bytes);
        let topics: Vec<_> = batch.topics().collect();
        assert_eq!(topics, [("a", 2), ("b", 2), ("ccc", 1)]);
    }
}
