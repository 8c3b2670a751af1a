//! A batch: the events made durable together, the unit of the log.
//!
//! Owns [`Batch`] and its decoding. A batch is immutable and was checked when it was made, so reading its
//! events cannot fail. Made by [`BatchBuilder`](super::BatchBuilder) or from its encoding.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::header::{Fixed, Group, Header, NotABatch, take_entry};
use crate::event::{Sequence, StoredEvent, Topic, UnixNanos};

/// Events of consecutive sequences, received at one time. Cheap to clone.
///
/// A batch that was read for one topic has only the events of this topic loaded.
#[derive(Clone)]
pub struct Batch(Arc<Inner>);

struct Inner {
    header: Header,
    loaded: Loaded,
}

enum Loaded {
    /// The encoded batch, header included.
    All(Bytes),
    /// The bytes of one group.
    One { group: usize, data: Bytes },
    /// Nothing but the header: the batch lacks the requested topic.
    None,
}

impl Batch {
    /// Wraps a batch known to be well-formed.
    pub(super) fn from_parts(header: Header, encoded: Bytes) -> Self {
        Self(Arc::new(Inner {
            header,
            loaded: Loaded::All(encoded),
        }))
    }

    /// Decodes and checks all of a batch. The events share the memory of `encoded`.
    pub fn decode(encoded: Bytes) -> Result<Self, NotABatch> {
        let fixed = Fixed::parse(&encoded)?;
        let header_bytes = fixed.header_bytes as usize;
        if header_bytes > encoded.len() {
            return Err(NotABatch("shorter than its header"));
        }
        let header = Header::parse(encoded.slice(..header_bytes), encoded.len())?;
        let mut seen = vec![false; header.fixed.count as usize];
        for group in &header.groups {
            let data = &encoded[group.data.clone()];
            header.check_group(group, data, |index| seen[index as usize] = true)?;
        }
        // There are as many events as indexes, so none is missing if and only if none occurs twice.
        if seen.contains(&false) {
            return Err(NotABatch("two events in one place"));
        }
        Ok(Self::from_parts(header, encoded))
    }

    /// Wraps a checked header and, if the batch has the requested topic, the bytes of its group.
    pub(super) fn from_group(
        header: Header,
        group: Option<(usize, Bytes)>,
    ) -> Result<Self, NotABatch> {
        let loaded = match group {
            Some((group, data)) => {
                header.check_group(&header.groups[group], &data, |_| ())?;
                Loaded::One { group, data }
            }
            None => Loaded::None,
        };
        Ok(Self(Arc::new(Inner { header, loaded })))
    }

    /// The sequence of the first event.
    pub fn first_sequence(&self) -> Sequence {
        self.0.header.fixed.first_sequence
    }

    /// The sequence after the last event's.
    pub fn end_sequence(&self) -> Sequence {
        self.0.header.fixed.end_sequence()
    }

    /// The number of events, at least one.
    pub fn count(&self) -> u32 {
        self.0.header.fixed.count
    }

    /// When the events were accepted.
    pub fn received_at(&self) -> UnixNanos {
        self.0.header.fixed.received_at
    }

    /// The checksum of the batch: that of its header, which holds the checksums of its events.
    pub fn checksum(&self) -> u32 {
        self.0.header.fixed.header_crc
    }

    /// The topics of the batch with their event counts, ascending.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        let header = &self.0.header;
        let groups = header.groups.iter();
        groups.map(|group| (header.topic(group), group.events))
    }

    /// Whether there are events of a topic.
    pub fn has_topic(&self, topic: &Topic) -> bool {
        self.0.header.find(topic.as_str()).is_some()
    }

    /// All events by sequence.
    ///
    /// # Panics
    /// If the batch was read for one topic.
    pub fn events(&self) -> Vec<StoredEvent> {
        let none = StoredEvent {
            sequence: 0,
            received_at: 0,
            batch_checksum: 0,
            encoded: Bytes::new(),
        };
        let mut events = vec![none; self.count() as usize];
        for group in 0..self.0.header.groups.len() {
            for event in self.group_events(group) {
                let index = event.sequence - self.first_sequence();
                events[index as usize] = event;
            }
        }
        events
    }

    /// The events of one topic by sequence.
    ///
    /// # Panics
    /// If the batch was read for another topic.
    pub fn events_of(&self, topic: &Topic) -> impl Iterator<Item = StoredEvent> {
        let group = self.0.header.find(topic.as_str());
        group.into_iter().flat_map(|group| self.group_events(group))
    }

    fn group_events(&self, group: usize) -> impl Iterator<Item = StoredEvent> {
        let Group { data, events, .. } = &self.0.header.groups[group];
        let (buffer, range) = match &self.0.loaded {
            Loaded::All(encoded) => (encoded, data.clone()),
            Loaded::One { group: one, data } if *one == group => (data, 0..data.len()),
            Loaded::One { .. } | Loaded::None => panic!("the batch was read for another topic"),
        };
        let mut rest = &buffer[range];
        (0..*events).map(move |_| {
            let (index, event) = take_entry(&mut rest).expect("checked when it was made");
            StoredEvent {
                sequence: self.first_sequence() + u64::from(index),
                received_at: self.received_at(),
                batch_checksum: self.checksum(),
                encoded: buffer.slice_ref(event),
            }
        })
    }

    /// The encoded batch, as [`decode`](Self::decode) accepts it.
    ///
    /// # Panics
    /// If the batch was read for one topic.
    pub fn encoded(&self) -> &Bytes {
        match &self.0.loaded {
            Loaded::All(encoded) => encoded,
            Loaded::One { .. } | Loaded::None => panic!("the batch was read for one topic"),
        }
    }

    /// How much memory each of its events keeps alive, in bytes.
    pub fn shared_bytes(&self) -> usize {
        match &self.0.loaded {
            Loaded::All(encoded) => encoded.len(),
            Loaded::One { data, .. } => data.len(),
            Loaded::None => 0,
        }
    }

    /// About how much memory the batch holds, in bytes.
    pub fn bytes(&self) -> usize {
        let header = &self.0.header;
        let loaded = match &self.0.loaded {
            Loaded::All(encoded) => encoded.len(),
            Loaded::One { data, .. } => header.bytes.len() + data.len(),
            Loaded::None => header.bytes.len(),
        };
        size_of::<Inner>() + header.groups.len() * size_of::<Group>() + loaded
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("first_sequence", &self.first_sequence())
            .field("count", &self.count())
            .field("topics", &self.0.header.groups.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::{
        header::{ENTRY_BYTES, FIXED_BYTES},
        support::{any_events, batch, event, topic},
    };

    proptest! {
        #[test]
        fn batches_round_trip(
            events in any_events(),
            first in 1..1_000_000u64,
            received_at in any::<u64>(),
        ) {
            let built = batch(first, received_at, &events);
            let decoded = Batch::decode(built.encoded().clone()).expect("a batch");
            for batch in [&built, &decoded] {
                prop_assert_eq!(batch.first_sequence(), first);
                prop_assert_eq!(batch.end_sequence(), first + events.len() as u64);
                prop_assert_eq!(batch.received_at(), received_at);
                let stored = batch.events();
                prop_assert_eq!(stored.len(), events.len());
                for (index, (stored, event)) in stored.iter().zip(&events).enumerate() {
                    prop_assert_eq!(stored.sequence, first + index as u64);
                    prop_assert_eq!(stored.received_at, received_at);
                    prop_assert_eq!(&stored.encoded, event.encoded());
                }
                let mut count = 0;
                for (name, events_of) in batch.topics() {
                    let topic = topic(name);
                    prop_assert!(batch.has_topic(&topic));
                    let of_topic: Vec<_> = batch.events_of(&topic).collect();
                    prop_assert_eq!(of_topic.len(), events_of as usize);
                    let expected: Vec<_> = stored
                        .iter()
                        .zip(&events)
                        .filter(|(_, event)| event.key().topic() == name)
                        .map(|(stored, _)| stored.clone())
                        .collect();
                    prop_assert_eq!(of_topic, expected);
                    count += events_of;
                }
                prop_assert_eq!(count, batch.count());
            }
            prop_assert_eq!(&built.0.header, &decoded.0.header);
        }

        #[test]
        fn changed_bytes_are_no_batch(
            events in any_events(),
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
        ) {
            let encoded = batch(1, 2, &events).encoded().to_vec();
            let at = at.index(encoded.len());
            prop_assert!(Batch::decode(encoded[..at].to_vec().into()).is_err());
            let mut longer = encoded.clone();
            longer.push(flip);
            prop_assert!(Batch::decode(longer.into()).is_err());
            let mut flipped = encoded;
            flipped[at] ^= flip;
            prop_assert!(Batch::decode(flipped.into()).is_err());
        }

        /// Garbage behind correct checksums is refused without a panic or a large allocation as well.
        #[test]
        fn garbage_is_no_panic(
            events in any_events(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let built = batch(1, 2, &events);
            let mut encoded = built.encoded().to_vec();
            for (at, byte) in changes {
                let at = at.index(encoded.len());
                encoded[at] = byte;
            }
            let header = &built.0.header;
            let mut crc_at = FIXED_BYTES;
            for group in &header.groups {
                crc_at += ENTRY_BYTES + group.topic.len();
                let crc = crc32c::crc32c(&encoded[group.data.clone()]);
                encoded[crc_at - 4..crc_at].copy_from_slice(&crc.to_le_bytes());
            }
            let crc = crc32c::crc32c(&encoded[4..header.bytes.len()]);
            encoded[..4].copy_from_slice(&crc.to_le_bytes());
            if let Ok(batch) = Batch::decode(encoded.into()) {
                prop_assert_eq!(batch.events().len(), batch.count() as usize);
            }
        }

        #[test]
        fn noise_is_no_batch(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Batch::decode(noise.into()).is_err());
        }
    }

    #[test]
    fn a_topic_that_is_not_there_has_no_events() {
        let batch = batch(1, 0, &[event("a", "1", b"")]);
        assert!(!batch.has_topic(&topic("b")));
        assert_eq!(batch.events_of(&topic("b")).count(), 0);
    }
}
