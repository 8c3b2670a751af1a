//! The frame of a batch in a segment file.
//!
//! Owns the layout: at an offset that is a multiple of [`ALIGN`], `u32 batch_bytes`, `u32 crc32c`, then the
//! encoded batch; zeros up to the next multiple. The checksum covers the salt of the segment, the offset,
//! `batch_bytes` and the fixed part of the batch's header. So a publisher's bytes, even a copy of a frame,
//! are no frame of this segment, and 40 bytes are enough to recognize one.

use crate::log::header::{FIXED_BYTES, Fixed};

/// Where frames begin, in bytes.
pub(super) const ALIGN: u64 = 8;
/// The bytes of a frame before the batch.
pub(super) const PREFIX_BYTES: usize = 8;
/// The bytes that identify a frame.
pub(super) const HEAD_BYTES: usize = PREFIX_BYTES + FIXED_BYTES;

/// A frame whose head was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub offset: u64,
    pub batch_bytes: u32,
    pub fixed: Fixed,
}

impl Frame {
    /// The bytes to write before an encoded batch.
    pub fn prefix(salt: u64, offset: u64, batch: &[u8]) -> [u8; PREFIX_BYTES] {
        let batch_bytes = u32::try_from(batch.len()).expect("a batch has at most BATCH_BYTES_MAX");
        let crc = checksum(salt, offset, batch_bytes, &batch[..FIXED_BYTES]);
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..4].copy_from_slice(&batch_bytes.to_le_bytes());
        prefix[4..].copy_from_slice(&crc.to_le_bytes());
        prefix
    }

    /// The frame that starts with `head`, if it is one.
    pub fn parse(salt: u64, offset: u64, head: &[u8; HEAD_BYTES]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, fixed @ ..] = head;
        let batch_bytes = u32::from_le_bytes([*a, *b, *c, *d]);
        let crc = u32::from_le_bytes([*e, *f, *g, *h]);
        if batch_bytes == 0 || crc != checksum(salt, offset, batch_bytes, fixed) {
            return None;
        }
        let fixed = Fixed::parse(fixed).ok()?;
        (fixed.header_bytes <= batch_bytes).then_some(Self {
            offset,
            batch_bytes,
            fixed,
        })
    }

    /// Where the batch starts.
    pub fn batch_offset(&self) -> u64 {
        self.offset + PREFIX_BYTES as u64
    }

    /// Where the batch ends.
    pub fn end(&self) -> u64 {
        self.batch_offset() + u64::from(self.batch_bytes)
    }

    /// Where the next frame starts.
    pub fn next_offset(&self) -> u64 {
        self.end().next_multiple_of(ALIGN)
    }
}

fn checksum(salt: u64, offset: u64, batch_bytes: u32, fixed: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &batch_bytes.to_le_bytes());
    crc32c::crc32c_append(crc, fixed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::support::{any_events, batch, event};

    proptest! {
        #[test]
        fn frames_round_trip_in_their_place(
            events in any_events(),
            first in 1..1_000_000u64,
            salt: u64,
            block in 0..u64::MAX / 16,
            other: u64,
            at in 0..HEAD_BYTES,
            flip in 1..=u8::MAX,
        ) {
            let offset = block * ALIGN;
            let batch = batch(first, 2, &events);
            let mut head = [0; HEAD_BYTES];
            head[..PREFIX_BYTES].copy_from_slice(&Frame::prefix(salt, offset, batch.encoded()));
            head[PREFIX_BYTES..].copy_from_slice(&batch.encoded()[..FIXED_BYTES]);
            let frame = Frame::parse(salt, offset, &head).expect("a frame");
            prop_assert_eq!(frame.offset, offset);
            prop_assert_eq!(frame.batch_bytes as usize, batch.encoded().len());
            prop_assert_eq!(frame.fixed.first_sequence, first);
            prop_assert_eq!(frame.fixed.end_sequence(), batch.end_sequence());
            prop_assert!(frame.next_offset() >= frame.end());
            prop_assert!(frame.next_offset() < frame.end() + ALIGN);
            if other != salt {
                prop_assert_eq!(Frame::parse(other, offset, &head), None);
            }
            prop_assert_eq!(Frame::parse(salt, offset + ALIGN, &head), None);
            head[at] ^= flip;
            prop_assert_eq!(Frame::parse(salt, offset, &head), None);
        }
    }

    #[test]
    fn a_frame_is_one_in_its_place_only() {
        let batch = batch(3, 0, &[event("a", "1", b"data")]);
        let mut head = [0; HEAD_BYTES];
        head[..PREFIX_BYTES].copy_from_slice(&Frame::prefix(1, 64, batch.encoded()));
        head[PREFIX_BYTES..].copy_from_slice(&batch.encoded()[..FIXED_BYTES]);
        let frame = Frame::parse(1, 64, &head).expect("a frame");
        assert_eq!(frame.fixed.first_sequence, 3);
        assert_eq!(frame.batch_bytes as usize, batch.encoded().len());
        assert_eq!(frame.next_offset() % ALIGN, 0);
        assert_eq!(Frame::parse(2, 64, &head), None);
        assert_eq!(Frame::parse(1, 72, &head), None);
        assert_eq!(Frame::parse(1, 64, &[0; HEAD_BYTES]), None);
        for at in 0..HEAD_BYTES {
            let mut flipped = head;
            flipped[at] ^= 1;
            assert_eq!(Frame::parse(1, 64, &flipped), None, "byte {at}");
        }
    }
}
