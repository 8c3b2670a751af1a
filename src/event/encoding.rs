//! The canonical encoding of `oncelog.v1.Event`: the only place that reads it in place, and the only one that
//! writes it.
//!
//! Canonical means as written by an encoder of ordered fields and ordered maps: every field at most once, in the
//! order in which the contract declares them (so attributes come after any payload), without default values, with
//! the shortest varints and no unknown fields, and a JSON payload in its one form. Equal events have equal canonical
//! encodings, so a hash of the bytes is a hash of the content. Format:
//! <https://protobuf.dev/programming-guides/encoding/>.

use super::{
    payload::Payload,
    protobuf::{
        NotCanonical, VARINT, len_tag, put_field, put_varint, take_len_field, take_tag, take_varint,
    },
};

/// Tags of the fields of an event.
const TOPIC_TAG: u8 = len_tag(1);
const EVENT_ID_TAG: u8 = len_tag(2);
const TIMESTAMP_TAG: u8 = len_tag(3);
const SOURCE_TAG: u8 = len_tag(4);
const STRUCT_TAG: u8 = len_tag(5);
const DATA_TAG: u8 = len_tag(6);
const ATTRIBUTES_TAG: u8 = len_tag(7);
const TEXT_TAG: u8 = len_tag(8);
/// Key and value of an attribute.
const KEY_TAG: u8 = len_tag(1);
const VALUE_TAG: u8 = len_tag(2);
/// Seconds and nanoseconds of a timestamp.
const SECONDS_TAG: u8 = 1 << 3;
const NANOS_TAG: u8 = 2 << 3;

/// A `google.protobuf.Timestamp`, with any values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds on top of that.
    pub nanos: i32,
}

/// The fields of an event, borrowed, not yet checked against limits.
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
    /// Fields 5, 6 and 8.
    pub payload: Option<Payload<'a>>,
    /// Field 7, by key.
    pub attributes: Vec<(&'a str, &'a str)>,
}

impl<'a> EventView<'a> {
    /// Reads a canonical encoding. A JSON payload is accepted in whatever form: that of a stored event is
    /// canonical, or was under the rules of an earlier version.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, NotCanonical> {
        let mut event = Self::default();
        let mut rest = encoded;
        let mut last = 0;
        while !rest.is_empty() {
            let (field, value) = take_len_field(&mut rest)?;
            let place = match field {
                6 | 8 => 5,
                field => field,
            };
            if place < last || (place == last && place != 7) {
                return Err(NotCanonical);
            }
            last = place;
            match field {
                1 => event.topic = non_empty_str(value)?,
                2 => event.event_id = non_empty_str(value)?,
                3 => event.timestamp = Some(parse_timestamp(value)?),
                4 => event.source = non_empty_str(value)?,
                5 => event.payload = Some(Payload::Struct(value)),
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
                8 => event.payload = Some(Payload::Text(non_empty_str(value)?)),
                _ => return Err(NotCanonical),
            }
        }
        Ok(event)
    }

    /// Writes the canonical encoding. Attributes must be sorted by key, without repeats, and a JSON payload must be in
    /// its canonical form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len_max());
        put_text(TOPIC_TAG, self.topic, &mut out);
        put_text(EVENT_ID_TAG, self.event_id, &mut out);
        if let Some(timestamp) = self.timestamp {
            put_field(TIMESTAMP_TAG, &encode_timestamp(timestamp), &mut out);
        }
        put_text(SOURCE_TAG, self.source, &mut out);
        match self.payload {
            Some(Payload::Struct(encoded)) => put_field(STRUCT_TAG, encoded, &mut out),
            Some(Payload::Data(data)) => put_field(DATA_TAG, data, &mut out),
            Some(Payload::Text(text)) => put_field(TEXT_TAG, text.as_bytes(), &mut out),
            None => {}
        }
        let mut entry = Vec::new();
        for (key, value) in &self.attributes {
            entry.clear();
            put_text(KEY_TAG, key, &mut entry);
            put_text(VALUE_TAG, value, &mut entry);
            put_field(ATTRIBUTES_TAG, &entry, &mut out);
        }
        out
    }

    /// At least the size of the encoding.
    fn encoded_len_max(&self) -> usize {
        /// A tag and the longest length.
        const FIELD: usize = 11;
        /// A timestamp, and the tags and lengths of the other fields.
        const FIXED: usize = 6 * FIELD + 22;
        let payload = match self.payload {
            Some(Payload::Struct(bytes) | Payload::Data(bytes)) => bytes.len(),
            Some(Payload::Text(text)) => text.len(),
            None => 0,
        };
        let names = self.topic.len() + self.event_id.len() + self.source.len();
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(key, value)| 3 * FIELD + key.len() + value.len());
        FIXED + names + payload + attributes.sum::<usize>()
    }
}

/// Appends a field, unless it is empty.
fn put_text(tag: u8, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        put_field(tag, text.as_bytes(), out);
    }
}

fn encode_timestamp(timestamp: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(22);
    // Negative numbers are encoded as the 64 bits of their two's complement.
    for (tag, value) in [
        (SECONDS_TAG, timestamp.seconds),
        (NANOS_TAG, timestamp.nanos.into()),
    ] {
        if value != 0 {
            out.push(tag);
            put_varint(value.cast_unsigned(), &mut out);
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::{
        super::protobuf::{take_varint, varint_len},
        *,
    };
    use crate::proto::v1;

    fn any_event() -> impl Strategy<Value = v1::Event> {
        let timestamp = proptest::option::of((any::<i64>(), any::<i32>()));
        let payload = prop_oneof![
            Just(None),
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|data| Some(v1::event::Payload::Data(data.into()))),
            ".{1,4}".prop_map(|text| Some(v1::event::Payload::JsonText(text))),
        ];
        let attributes = proptest::collection::btree_map(".{0,4}", ".{0,4}", 0..4);
        (".{0,4}", ".{0,4}", timestamp, ".{0,4}", payload, attributes).prop_map(
            |(topic, event_id, timestamp, source, payload, attributes)| v1::Event {
                topic,
                event_id,
                timestamp: timestamp
                    .map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                source,
                payload,
                attributes,
            },
        )
    }

    proptest! {
        #[test]
        fn prost_output_is_canonical(event in any_event()) {
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
            prop_assert_eq!(view.encode(), encoded);
        }

        /// Any encoding accepted as canonical equals prost's.
        #[test]
        fn prost_writes_canonical_bytes_unchanged(
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
                && !matches!(view.payload, Some(Payload::Struct(_)))
            {
                prop_assert_eq!(view.encode(), &*encoded);
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
    fn other_encodings_are_recognized() {
        let topic_twice = b"\x0a\x01a\x0a\x01b";
        let out_of_order = b"\x12\x01a\x0a\x01b";
        let empty_topic = b"\x0a\x00";
        let long_varint = b"\x0a\x81\x00a";
        let unknown_field = b"\x4a\x01a";
        let empty_text = b"\x42\x00";
        let two_payloads = b"\x2a\x00\x32\x00";
        let two_json_payloads = b"\x2a\x00\x42\x01a";
        let text_after_attributes = b"\x3a\x03\x0a\x01a\x42\x01a";
        let attributes_out_of_order = b"\x3a\x03\x0a\x01b\x3a\x03\x0a\x01a";
        let attribute_twice = b"\x3a\x03\x0a\x01a\x3a\x03\x0a\x01a";
        for encoded in [
            &topic_twice[..],
            out_of_order,
            empty_topic,
            long_varint,
            unknown_field,
            two_payloads,
            two_json_payloads,
            text_after_attributes,
            empty_text,
            attributes_out_of_order,
            attribute_twice,
        ] {
            assert_eq!(EventView::parse(encoded), Err(NotCanonical), "{encoded:?}");
        }
    }
}
