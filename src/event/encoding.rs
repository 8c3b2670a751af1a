//! The canonical encoding of `oncelog.v1.Event`, read in place.
//!
//! Canonical is what an encoder of ordered fields and ordered maps writes: every field at most once, in
//! the order of its number, without default values, with the shortest varints and no unknown
//! fields. Equal events have equal canonical encodings, so a hash of the bytes is a hash of the content.
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

use bytes::BufMut;
use thiserror::Error;

/// The bytes are no canonical encoding: they may be another encoding of an event, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the canonical encoding of an event")]
pub struct NotCanonical;

/// A `google.protobuf.Timestamp`, of any value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds on top of them.
    pub nanos: i32,
}

/// The payload of an event, encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// An encoded `google.protobuf.Struct`, not looked into.
    Json(&'a [u8]),
    /// Opaque bytes.
    Data(&'a [u8]),
}

/// The fields of an encoded event, borrowed. They are well-formed, not yet checked against limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventView<'a> {
    /// Field 1.
    pub topic: &'a str,
    /// Field 2.
    pub event_id: &'a str,
    /// Field 3.
    pub timestamp: Option<Timestamp>,
    /// Field 4.
    pub source: &'a str,
    /// Fields 5 and 6.
    pub payload: Option<Payload<'a>>,
    /// Field 7, by key.
    pub attributes: Vec<(&'a str, &'a str)>,
}

/// Wire types.
pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const LEN: u32 = 2;

impl<'a> EventView<'a> {
    /// Reads a canonical encoding. A JSON payload is taken as it is: whether it is canonical too,
    /// [`is_canonical_struct`](super::is_canonical_struct) tells.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, NotCanonical> {
        let mut event = Self::default();
        let mut rest = encoded;
        let mut last = 0;
        while !rest.is_empty() {
            let (field, value) = take_len_field(&mut rest)?;
            let repeats = field == last && field == 7;
            let second_payload = field == 6 && event.payload.is_some();
            if (field <= last && !repeats) || second_payload {
                return Err(NotCanonical);
            }
            last = field;
            match field {
                1 => event.topic = non_empty_str(value)?,
                2 => event.event_id = non_empty_str(value)?,
                3 => event.timestamp = Some(parse_timestamp(value)?),
                4 => event.source = non_empty_str(value)?,
                5 => event.payload = Some(Payload::Json(value)),
                6 => event.payload = Some(Payload::Data(value)),
                7 => {
                    let (key, value) = parse_map_entry(value)?;
                    if event
                        .attributes
                        .last()
                        .is_some_and(|(last, _)| *last >= key)
                    {
                        return Err(NotCanonical);
                    }
                    event.attributes.push((key, value));
                }
                _ => return Err(NotCanonical),
            }
        }
        Ok(event)
    }
}

/// Takes one length-delimited field off the front: its number and its value.
pub(super) fn take_len_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), NotCanonical> {
    let (field, wire_type) = take_tag(rest)?;
    if wire_type != LEN {
        return Err(NotCanonical);
    }
    Ok((field, take_len(rest)?))
}

/// Takes the value of a length-delimited field.
pub(super) fn take_len<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], NotCanonical> {
    let len = take_varint(rest).ok_or(NotCanonical)?;
    let len = usize::try_from(len).map_err(|_| NotCanonical)?;
    let (value, after) = rest.split_at_checked(len).ok_or(NotCanonical)?;
    *rest = after;
    Ok(value)
}

/// Takes the number and the wire type of a field.
pub(super) fn take_tag(rest: &mut &[u8]) -> Result<(u32, u32), NotCanonical> {
    let tag = take_varint(rest).ok_or(NotCanonical)?;
    let tag = u32::try_from(tag).map_err(|_| NotCanonical)?;
    Ok((tag >> 3, tag & 7))
}

fn non_empty_str(value: &[u8]) -> Result<&str, NotCanonical> {
    if value.is_empty() {
        return Err(NotCanonical);
    }
    std::str::from_utf8(value).map_err(|_| NotCanonical)
}

fn parse_timestamp(mut rest: &[u8]) -> Result<Timestamp, NotCanonical> {
    let mut timestamp = Timestamp::default();
    let mut last = 0;
    while !rest.is_empty() {
        let (field, wire_type) = take_tag(&mut rest)?;
        let value = take_varint(&mut rest).ok_or(NotCanonical)?;
        if wire_type != VARINT || field <= last || value == 0 {
            return Err(NotCanonical);
        }
        last = field;
        // Negative numbers are encoded as the 64 bits of their two's complement.
        let value = value.cast_signed();
        match field {
            1 => timestamp.seconds = value,
            2 => timestamp.nanos = i32::try_from(value).map_err(|_| NotCanonical)?,
            _ => return Err(NotCanonical),
        }
    }
    Ok(timestamp)
}

/// A map is a repeated message of key 1 and value 2; both are left out when empty.
fn parse_map_entry(mut rest: &[u8]) -> Result<(&str, &str), NotCanonical> {
    let mut entry = ("", "");
    let mut last = 0;
    while !rest.is_empty() {
        let (field, value) = take_len_field(&mut rest)?;
        if field <= last {
            return Err(NotCanonical);
        }
        last = field;
        match field {
            1 => entry.0 = non_empty_str(value)?,
            2 => entry.1 = non_empty_str(value)?,
            _ => return Err(NotCanonical),
        }
    }
    Ok(entry)
}

/// Appends `value` as a protobuf varint of 1 to 10 bytes.
pub fn put_varint(mut value: u64, buf: &mut impl BufMut) {
    while value >= 0x80 {
        buf.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// The bytes [`put_varint`] writes for `value`.
pub fn varint_len(value: u64) -> usize {
    let bits = (u64::BITS - value.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

/// Takes a varint off the front of `rest`. `None` if there is none, it is longer than it needs to be, or
/// it does not fit 64 bits.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::v1;

    fn any_event() -> impl Strategy<Value = v1::Event> {
        let timestamp = proptest::option::of((any::<i64>(), any::<i32>()));
        let data = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        let attributes = proptest::collection::btree_map(".{0,4}", ".{0,4}", 0..4);
        (".{0,4}", ".{0,4}", timestamp, ".{0,4}", data, attributes).prop_map(
            |(topic, event_id, timestamp, source, data, attributes)| v1::Event {
                topic,
                event_id,
                timestamp: timestamp
                    .map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                source,
                payload: data.map(|data| v1::event::Payload::Data(data.into())),
                attributes,
            },
        )
    }

    proptest! {
        #[test]
        fn what_prost_writes_is_canonical(event in any_event()) {
            let encoded = event.encode_to_vec();
            let view = EventView::parse(&encoded).expect("canonical");
            prop_assert_eq!(view.topic, &event.topic);
            prop_assert_eq!(view.event_id, &event.event_id);
            prop_assert_eq!(view.source, &event.source);
            let timestamp = view.timestamp.map(|t| (t.seconds, t.nanos));
            prop_assert_eq!(timestamp, event.timestamp.map(|t| (t.seconds, t.nanos)));
            let attributes: BTreeMap<String, String> =
                view.attributes.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            prop_assert_eq!(attributes, event.attributes);
        }

        /// Whatever is taken as canonical is what prost would write for it.
        #[test]
        fn what_is_canonical_prost_writes(
            event in any_event(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let mut encoded = event.encode_to_vec();
            if !encoded.is_empty() {
                let at = at.index(encoded.len());
                if cut { encoded.truncate(at) } else { encoded[at] = byte }
            }
            if let Ok(view) = EventView::parse(&encoded)
                && !matches!(view.payload, Some(Payload::Json(_)))
            {
                let decoded = v1::Event::decode(&*encoded).expect("canonical is well-formed");
                prop_assert_eq!(decoded.encode_to_vec(), encoded);
            }
        }

        #[test]
        fn varints_round_trip(value in any::<u64>()) {
            let mut encoded = Vec::new();
            put_varint(value, &mut encoded);
            prop_assert_eq!(encoded.len(), varint_len(value));
            let mut rest = &*encoded;
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn other_encodings_are_told_apart() {
        let topic_twice = b"\x0a\x01a\x0a\x01b";
        let out_of_order = b"\x12\x01a\x0a\x01b";
        let empty_topic = b"\x0a\x00";
        let long_varint = b"\x0a\x81\x00a";
        let unknown_field = b"\x42\x01a";
        let two_payloads = b"\x2a\x00\x32\x00";
        let attributes_out_of_order = b"\x3a\x03\x0a\x01b\x3a\x03\x0a\x01a";
        let attribute_twice = b"\x3a\x03\x0a\x01a\x3a\x03\x0a\x01a";
        for encoded in [
            &topic_twice[..],
            out_of_order,
            empty_topic,
            long_varint,
            unknown_field,
            two_payloads,
            attributes_out_of_order,
            attribute_twice,
        ] {
            assert_eq!(EventView::parse(encoded), Err(NotCanonical), "{encoded:?}");
        }
    }
}
