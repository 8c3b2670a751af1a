//! Fuzz targets of the log: batches. `files` has those of a segment and its readers.
//!
//! A checksum stops nearly every input, so the code behind it is reached with corrected checksums.

use bytes::Bytes;

pub use super::files::fuzzing::segment;
use super::{
    Batch, BatchBuilder,
    header::{ENTRY_BYTES, FIXED_BYTES},
};
use crate::event::{Event, StoredEvent, Topic};

/// Decodes a batch unchanged, and with its checksums corrected.
pub fn batch(data: &[u8]) {
    let mut bytes = data.to_vec();
    decode_batch(&bytes);
    repair_batch(&mut bytes);
    decode_batch(&bytes);
}

fn decode_batch(bytes: &[u8]) {
    match Batch::decode(Bytes::copy_from_slice(bytes)) {
        Ok(batch) => {
            assert_eq!(batch.encoded(), bytes);
            assert_consistent(&batch);
        }
        Err(error) => assert!(error.to_string().len() < 100, "{error}"),
    }
}

/// A batch's own description holds, and a builder makes the same batch from its events.
pub(super) fn assert_consistent(batch: &Batch) {
    let events = batch.events();
    assert_eq!(events.len(), batch.count() as usize);
    assert_eq!(
        batch.end_sequence() - batch.first_sequence(),
        u64::from(batch.count())
    );
    for (event, sequence) in events.iter().zip(batch.first_sequence()..) {
        assert_eq!(event.sequence, sequence);
        assert_eq!(event.received_at, batch.received_at());
    }
    let mut by_topic = 0;
    for (name, count) in batch.topics() {
        let topic = Topic::new(name).expect("a batch has topics only");
        assert!(batch.has_topic(&topic));
        let of_topic: Vec<_> = batch.events_of(&topic).collect();
        assert_eq!(of_topic.len(), count as usize);
        assert!(of_topic.is_sorted_by(|a, b| a.sequence < b.sequence));
        by_topic += of_topic.len();
    }
    assert_eq!(by_topic, events.len());
    if let Some(built) = rebuild(batch, &events) {
        assert_eq!(built.encoded(), batch.encoded());
    }
}

/// The batch of the same events, unless a topic has bytes that are no event: a batch does not look inside
/// events.
fn rebuild(batch: &Batch, events: &[StoredEvent]) -> Option<Batch> {
    let mut builder = BatchBuilder::new(batch.first_sequence());
    for stored in events {
        let event = Event::from_stored(stored.encoded.clone()).ok()?;
        let topic = Topic::new(event.key().topic()).ok()?;
        batch
            .events_of(&topic)
            .find(|of_topic| of_topic.sequence == stored.sequence)?;
        builder.push(&event);
    }
    Some(builder.finish(batch.received_at()))
}

/// Corrects the checksums of a batch, as far as it has any.
pub(super) fn repair_batch(bytes: &mut [u8]) {
    let Some(header_bytes) = number(bytes, 4) else {
        return;
    };
    let (mut entry, mut data) = (FIXED_BYTES, header_bytes);
    while entry < header_bytes.min(bytes.len()) {
        let end = entry + ENTRY_BYTES + usize::from(bytes[entry]);
        let Some(group_bytes) = end.checked_sub(8).and_then(|at| number(bytes, at)) else {
            break;
        };
        let Some(group) = bytes.get(data..data + group_bytes) else {
            break;
        };
        let crc = crc32c::crc32c(group);
        let Some(entry_crc) = bytes.get_mut(end - 4..end) else {
            break;
        };
        entry_crc.copy_from_slice(&crc.to_le_bytes());
        (entry, data) = (end, data + group_bytes);
    }
    if let Some(header) = bytes.get(4..header_bytes) {
        let crc = crc32c::crc32c(header);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The `u32` at an offset.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    pub(crate) use crate::log::files::fuzzing::seeds::segments;
    use crate::log::support::{batch, event};

    pub(crate) fn batches() -> Vec<(&'static str, Vec<u8>)> {
        let one = batch(1, 2, &[event("a", "1", b"")]);
        let long = "x".repeat(255);
        let many = [("b", "1"), ("a", "1"), ("b", "2"), (&long, "1"), ("a", "2")];
        let many = many.map(|(topic, id)| event(topic, id, b"some data"));
        let many = batch(7, 1_700_000_000_000_000_000, &many);
        let last = batch(u64::MAX - 1, u64::MAX, &[event("a", "1", b"")]);
        let seeds = [("one", one), ("many", many), ("last", last)];
        seeds
            .map(|(name, batch)| (name, batch.encoded().to_vec()))
            .into()
    }
}
