//! The header of an encoded batch: its summary, and the directory of its topics.
//!
//! Owns the layout, all integers little-endian:
//!
//! ```text
//! u32 header_crc      crc32c of the header behind this field
//! u32 header_bytes    of the whole header
//! u32 count           events
//! u32 groups
//! u64 first_sequence
//! u64 received_at
//! per group, ascending by topic:
//!   u8 topic_bytes, topic, u32 events, u32 bytes, u32 crc32c of the group
//! ```
//!
//! The groups follow the header, one per topic, with, for each event: varint index in the batch, varint
//! bytes, the canonical encoding. The checksums of the header and the groups cover every byte of the batch,
//! so a group can be read and checked alone. Reads no files.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use crate::event::{FIRST_SEQUENCE, Sequence, Topic, UnixNanos, take_varint};

/// The bytes of a header before the directory.
pub(super) const FIXED_BYTES: usize = 32;
/// The bytes of a directory entry without the topic.
pub(super) const ENTRY_BYTES: usize = 13;
const CRC_BYTES: usize = 4;

/// Why the bytes are not an encoded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a batch: {0}")]
pub struct NotABatch(pub(super) &'static str);

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fixed {
    pub header_crc: u32,
    pub header_bytes: u32,
    pub count: u32,
    pub groups: u32,
    pub first_sequence: Sequence,
    pub received_at: UnixNanos,
}

impl Fixed {
    /// Reads the fields and checks them against each other, but not against the checksum.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, NotABatch> {
        if bytes.len() < FIXED_BYTES {
            return Err(NotABatch("shorter than a header"));
        }
        let fixed = Self {
            header_crc: bytes.get_u32_le(),
            header_bytes: bytes.get_u32_le(),
            count: bytes.get_u32_le(),
            groups: bytes.get_u32_le(),
            first_sequence: bytes.get_u64_le(),
            received_at: bytes.get_u64_le(),
        };
        let directory = (fixed.header_bytes as usize).checked_sub(FIXED_BYTES);
        let groups_max = directory.unwrap_or(0) / (ENTRY_BYTES + 1);
        if fixed.groups == 0 || fixed.groups > fixed.count || fixed.groups as usize > groups_max {
            return Err(NotABatch("impossible number of topics"));
        }
        let last = fixed.first_sequence.checked_add(u64::from(fixed.count));
        if fixed.first_sequence < FIRST_SEQUENCE || last.is_none() {
            return Err(NotABatch("impossible sequence"));
        }
        Ok(fixed)
    }

    /// The sequence after the last event's.
    pub fn end_sequence(&self) -> Sequence {
        self.first_sequence + u64::from(self.count)
    }

    /// Appends the fields after the checksum.
    pub fn put_checked(&self, buf: &mut Vec<u8>) {
        buf.put_u32_le(self.header_bytes);
        buf.put_u32_le(self.count);
        buf.put_u32_le(self.groups);
        buf.put_u64_le(self.first_sequence);
        buf.put_u64_le(self.received_at);
    }
}

/// A directory entry: the events of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Where the topic's name is in the header.
    pub topic: Range<usize>,
    pub events: u32,
    /// Where the group is in the encoded batch.
    pub data: Range<usize>,
    pub crc: u32,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub bytes: Bytes,
    pub fixed: Fixed,
    /// Ascending by topic.
    pub groups: Vec<Group>,
}

impl Header {
    /// Reads the header of a batch of `batch_bytes`, and checks everything that needs no group.
    pub fn parse(bytes: Bytes, batch_bytes: usize) -> Result<Self, NotABatch> {
        let fixed = Fixed::parse(&bytes)?;
        if bytes.len() != fixed.header_bytes as usize {
            return Err(NotABatch("the header has the wrong length"));
        }
        if crc32c::crc32c(&bytes[CRC_BYTES..]) != fixed.header_crc {
            return Err(NotABatch("the header fails its checksum"));
        }
        let mut header = Self {
            bytes,
            fixed,
            groups: Vec::with_capacity(fixed.groups as usize),
        };
        let mut at = FIXED_BYTES;
        let mut data_at = header.bytes.len();
        for _ in 0..fixed.groups {
            let group = header.parse_group(&mut at, data_at)?;
            if let Some(last) = header.groups.last()
                && header.bytes[last.topic.clone()] >= header.bytes[group.topic.clone()]
            {
                return Err(NotABatch("topics out of order"));
            }
            data_at = group.data.end;
            header.groups.push(group);
        }
        let events: u64 = header.groups.iter().map(|g| u64::from(g.events)).sum();
        if at != header.bytes.len() || data_at != batch_bytes || events != u64::from(fixed.count) {
            return Err(NotABatch("the directory does not add up"));
        }
        Ok(header)
    }

    fn parse_group(&self, at: &mut usize, data_at: usize) -> Result<Group, NotABatch> {
        const SHORT: NotABatch = NotABatch("the directory is cut short");
        let mut rest = self.bytes.get(*at..).ok_or(SHORT)?;
        let topic_bytes = usize::from(*rest.first().ok_or(SHORT)?);
        let topic = *at + 1..*at + 1 + topic_bytes;
        rest.advance(1);
        let name = rest.get(..topic_bytes).ok_or(SHORT)?;
        let name = std::str::from_utf8(name).map_err(|_| NotABatch("not a topic"))?;
        Topic::new(name).map_err(|_| NotABatch("not a topic"))?;
        rest.advance(topic_bytes);
        if rest.len() < ENTRY_BYTES - 1 {
            return Err(SHORT);
        }
        let events = rest.get_u32_le();
        let bytes = rest.get_u32_le() as usize;
        let crc = rest.get_u32_le();
        // An event takes at least two bytes, so no count here asks for more memory than was read.
        if events == 0 || events as usize > bytes / 2 {
            return Err(NotABatch("impossible number of events"));
        }
        let end = data_at
            .checked_add(bytes)
            .ok_or(NotABatch("too many bytes"))?;
        *at += ENTRY_BYTES + topic_bytes;
        Ok(Group {
            topic,
            events,
            data: data_at..end,
            crc,
        })
    }

    /// The name of a group's topic.
    pub fn topic(&self, group: &Group) -> &str {
        std::str::from_utf8(&self.bytes[group.topic.clone()]).expect("checked when it was made")
    }

    /// The group of a topic.
    pub fn find(&self, topic: &str) -> Option<usize> {
        self.groups
            .binary_search_by(|group| self.bytes[group.topic.clone()].cmp(topic.as_bytes()))
            .ok()
    }

    /// Checks the bytes of a group; calls `seen` with the index of each event in the batch.
    pub fn check_group(
        &self,
        group: &Group,
        data: &[u8],
        mut seen: impl FnMut(u32),
    ) -> Result<(), NotABatch> {
        let is_whole = crc32c::crc32c(data) == group.crc;
        if data.len() != group.data.len() || !is_whole {
            return Err(NotABatch("the events of a topic fail their checksum"));
        }
        let mut rest = data;
        let mut index_min = 0;
        for _ in 0..group.events {
            let (index, _) = take_entry(&mut rest).ok_or(NotABatch("an event is cut short"))?;
            if index < index_min || index >= self.fixed.count {
                return Err(NotABatch("events out of order"));
            }
            index_min = index + 1;
            seen(index);
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(NotABatch("more events than the directory says"))
        }
    }
}

/// Splits one event off the front of a group: its index in the batch and its encoding.
pub(super) fn take_entry<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let index = u32::try_from(take_varint(rest)?).ok()?;
    let bytes = usize::try_from(take_varint(rest)?).ok()?;
    let (event, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some((index, event))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::support::{any_events, batch, event};

    /// Before the checksum is known to be right, no number asks for more memory than the header has bytes.
    #[test]
    fn impossible_numbers_of_topics_are_refused() {
        let is_possible = |groups, count, directory| {
            let fixed = Fixed {
                header_crc: 0,
                header_bytes: u32::try_from(FIXED_BYTES + directory).expect("short"),
                count,
                groups,
                first_sequence: FIRST_SEQUENCE,
                received_at: 0,
            };
            let mut bytes = vec![0; 4];
            fixed.put_checked(&mut bytes);
            Fixed::parse(&bytes).is_ok()
        };
        let directory = 100 * (ENTRY_BYTES + 1);
        assert!(is_possible(100, 100, directory));
        assert!(!is_possible(101, 101, directory));
        assert!(!is_possible(100, 99, directory));
        assert!(!is_possible(0, 100, directory));
    }

    #[test]
    fn events_at_one_place_are_refused() {
        let events = [event("t", "a", b""), event("t", "b", b"")];
        let batch = batch(1, 0, &events);
        let encoded = batch.encoded();
        let fixed = Fixed::parse(encoded).expect("a batch");
        let bytes = encoded.slice(..fixed.header_bytes as usize);
        let mut header = Header::parse(bytes, encoded.len()).expect("a header");
        let group = &mut header.groups[0];
        let mut data = encoded[group.data.clone()].to_vec();
        let mut rest = &data[..];
        take_entry(&mut rest).expect("the first");
        let second = data.len() - rest.len();
        assert_eq!(data[second], 1);
        data[second] = 0;
        group.crc = crc32c::crc32c(&data);
        let checked = header.check_group(&header.groups[0], &data, |_| ());
        assert!(checked.is_err());
    }

    proptest! {
        /// The header alone has everything but the events.
        #[test]
        fn headers_round_trip(
            events in any_events(),
            first in 1..1_000_000u64,
            received_at: u64,
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
        ) {
            let batch = batch(first, received_at, &events);
            let encoded = batch.encoded();
            let fixed = Fixed::parse(encoded).expect("a batch");
            prop_assert_eq!(fixed.received_at, received_at);
            let bytes = encoded.slice(..fixed.header_bytes as usize);
            let header = Header::parse(bytes.clone(), encoded.len()).expect("a header");
            prop_assert_eq!(header.fixed, fixed);
            let mut again = fixed.header_crc.to_le_bytes().to_vec();
            fixed.put_checked(&mut again);
            prop_assert_eq!(&again, &encoded[..FIXED_BYTES]);
            let mut end = bytes.len();
            for (at, group) in header.groups.iter().enumerate() {
                prop_assert_eq!(header.find(header.topic(group)), Some(at));
                prop_assert_eq!(group.data.start, end);
                prop_assert!(header.check_group(group, &encoded[group.data.clone()], |_| ()).is_ok());
                end = group.data.end;
            }
            prop_assert_eq!(end, encoded.len());
            prop_assert_eq!(header.find("not a topic of these"), None);

            prop_assert!(Header::parse(bytes.clone(), encoded.len() + 1).is_err());
            let mut damaged = bytes.to_vec();
            damaged[at.index(bytes.len())] ^= flip;
            prop_assert!(Header::parse(damaged.into(), encoded.len()).is_err());
        }
    }
}
