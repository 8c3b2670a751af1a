//! Fields and varints of protobuf, as in canonical encodings.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

use bytes::BufMut;
use thiserror::Error;

/// The bytes are not a canonical encoding: they may encode an event differently, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the canonical encoding of an event")]
pub struct NotCanonical;

/// Wire types.
pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const LEN: u32 = 2;

/// The tag of a length-delimited field.
pub(super) const fn len_tag(field: u8) -> u8 {
    field << 3 | LEN as u8
}

/// Splits one length-delimited field off the front: its number and its value.
pub(super) fn take_len_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), NotCanonical> {
    let (field, wire_type) = take_tag(rest)?;
    if wire_type != LEN {
        return Err(NotCanonical);
    }
    Ok((field, take_len(rest)?))
}

/// Reads the value of a length-delimited field.
pub(super) fn take_len<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], NotCanonical> {
    let len = take_varint(rest).ok_or(NotCanonical)?;
    let len = usize::try_from(len).map_err(|_| NotCanonical)?;
    let (value, after) = rest.split_at_checked(len).ok_or(NotCanonical)?;
    *rest = after;
    Ok(value)
}

/// Reads the number and the wire type of a field.
pub(super) fn take_tag(rest: &mut &[u8]) -> Result<(u32, u32), NotCanonical> {
    let tag = take_varint(rest).ok_or(NotCanonical)?;
    let tag = u32::try_from(tag).map_err(|_| NotCanonical)?;
    Ok((tag >> 3, tag & 7))
}

/// Appends `value` as a protobuf varint of 1 to 10 bytes.
pub fn put_varint(mut value: u64, buf: &mut impl BufMut) {
    while value >= 0x80 {
        buf.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// The number of bytes that [`put_varint`] writes for `value`.
pub fn varint_len(value: u64) -> usize {
    let bits = (u64::BITS - value.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

/// Splits a varint off the front of `rest`. `None` if there is none, it is longer than necessary, or it does
/// not fit 64 bits.
#[inline]
pub fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    match **rest {
        // Most are one byte.
        [byte @ ..0x80, ref after @ ..] => {
            *rest = after;
            Some(u64::from(byte))
        }
        _ => take_long_varint(rest),
    }
}

fn take_long_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (at, byte) in rest.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * at as u32;
        if shift >= u64::BITS || (bits << shift) >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            if *byte == 0 && at > 0 {
                return None;
            }
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

/// Appends a length-delimited field.
pub(super) fn put_field(tag: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    put_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// Starts a length-delimited field whose length is not known yet. Returns the start of its content, for
/// [`close_field`].
pub(super) fn open_field(tag: u8, out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[tag, 0]);
    out.len()
}

/// Writes the length of the field whose content starts at `start`.
pub(super) fn close_field(start: usize, out: &mut Vec<u8>) {
    let len = out.len() - start;
    if len < 0x80 {
        out[start - 1] = len as u8;
        return;
    }
    let mut encoded = Vec::with_capacity(varint_len(len as u64));
    put_varint(len as u64, &mut encoded);
    out.splice(start - 1..start, encoded);
}
