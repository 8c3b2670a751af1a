//! Events and their names: the unit of storage, and the limits on it.
//!
//! Owns [`Topic`], [`EventId`], [`Key`], [`Event`] and their validation; any value of these types is valid.
//! Knows nothing of files, the index or transports.

mod encoding;
mod fields;
mod form;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod members;
mod number;
mod payload;
mod protobuf;
mod struct_json;
mod structs;
mod text;

use std::{fmt, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use thiserror::Error;

pub use encoding::{EventView, Timestamp};
pub use form::JsonError;
pub use payload::{Json, Payload};
pub use protobuf::{NotCanonical, put_varint, take_varint, varint_len};

/// The position of an event in the log. The first event has sequence 1; there are no gaps.
pub type Sequence = u64;

/// The sequence of the first event of a log.
pub const FIRST_SEQUENCE: Sequence = 1;

/// A point in time in nanoseconds since 1970-01-01T00:00:00Z, by the server's clock.
pub type UnixNanos = u64;

/// The longest topic, event id, source or attribute key, in bytes; the shortest has one byte.
pub const NAME_BYTES_MAX: usize = 255;
/// The most attributes of one event.
pub const ATTRIBUTES_MAX: usize = 64;
/// The most bytes of an event's attributes, keys and values together.
pub const ATTRIBUTES_BYTES_MAX: usize = 8 * 1024;
/// How deep the objects and arrays of a JSON payload may nest, including the payload itself.
///
/// Protobuf decoders accept 100 nested messages. An object takes three of them (a `Struct`, the entry of its map, a
/// `Value`), and a `ListEventsResponse` has the payload at its third.
pub const JSON_DEPTH_MAX: u32 = 32;
/// The default limit on one encoded event, in bytes.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// 0001-01-01T00:00:00Z, the first second of a `google.protobuf.Timestamp`.
const TIMESTAMP_SECONDS_MIN: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z, its last second.
const TIMESTAMP_SECONDS_MAX: i64 = 253_402_300_799;
const TIMESTAMP_NANOS_MAX: i32 = 999_999_999;

/// A broken limit: the field, its value's fault, and the limit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// The field in the contract, for example `event_id`.
    pub field: &'static str,
    /// The fault and the limit. Never repeats the publisher's content.
    pub description: String,
}

impl Violation {
    /// A violation of the limits on `field`.
    pub fn new(field: &'static str, description: impl Into<String>) -> Self {
        Self {
            field,
            description: description.into(),
        }
    }
}

/// The name of a stream of events: 1 to [`NAME_BYTES_MAX`] bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks `name` against the limits.
    pub fn new(name: &str) -> Result<Self, Violation> {
        check_name("topic", name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The name of an event within its topic: 1 to [`NAME_BYTES_MAX`] bytes of UTF-8 without control
/// characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId(Box<str>);

impl EventId {
    /// Checks `name` against the limits.
    pub fn new(name: &str) -> Result<Self, Violation> {
        check_name("event_id", name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identity of an event, as bytes: `topic ++ 0x00 ++ event_id`.
///
/// Names contain no NUL, so different pairs have different bytes, and the keys of a topic sort together.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    bytes: Bytes,
    topic_len: u8,
}

impl Key {
    /// The separator between topic and event id.
    pub const SEPARATOR: u8 = 0;
    /// The longest key, in bytes.
    pub const BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 1;

    /// The key of an event.
    pub fn new(topic: &Topic, event_id: &EventId) -> Self {
        Self::from_names(topic.as_str(), event_id.as_str(), &mut BytesMut::new())
    }

    /// The key of checked names, built in `space`.
    fn from_names(topic: &str, event_id: &str, space: &mut BytesMut) -> Self {
        space.reserve(topic.len() + 1 + event_id.len());
        space.put_slice(topic.as_bytes());
        space.put_u8(Self::SEPARATOR);
        space.put_slice(event_id.as_bytes());
        Self {
            bytes: space.split().freeze(),
            topic_len: u8::try_from(topic.len()).expect("a topic has at most 255 bytes"),
        }
    }

    /// `topic ++ 0x00 ++ event_id`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name of the topic.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(self.topic_bytes()).expect("a key is made of two strings")
    }

    /// The name of the topic, as bytes.
    pub fn topic_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.topic_len)]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.bytes), f)
    }
}

/// A valid event in its canonical encoding, with the details that the write path needs.
#[derive(Clone, Debug)]
pub struct Event {
    key: Key,
    encoded: Bytes,
}

impl Event {
    /// Takes an encoded event unchanged, if the encoding is canonical, and checks it against the limits.
    pub fn from_canonical(encoded: Bytes) -> Result<Result<Self, Violation>, NotCanonical> {
        Self::from_canonical_in(encoded, &mut BytesMut::new())
    }

    /// The same, with the key built in `key_space`: events that arrive together share the memory of their
    /// keys.
    pub fn from_canonical_in(
        encoded: Bytes,
        key_space: &mut BytesMut,
    ) -> Result<Result<Self, Violation>, NotCanonical> {
        let view = EventView::parse(&encoded)?;
        if view.payload.is_some_and(|payload| !payload.is_canonical()) {
            return Err(NotCanonical);
        }
        let checked = check_event(&view);
        let key = checked.map(|()| Key::from_names(view.topic, view.event_id, key_space));
        drop(view);
        Ok(key.map(|key| Self { key, encoded }))
    }

    /// Checks the fields of an event against the limits, and encodes it. The attributes must be sorted by key,
    /// without repeats, and a JSON payload must come from [`Json`].
    pub fn new(fields: &EventView<'_>) -> Result<Self, Violation> {
        Self::new_in(fields, &mut BytesMut::new())
    }

    /// The same, with the key built in `key_space`.
    pub fn new_in(fields: &EventView<'_>, key_space: &mut BytesMut) -> Result<Self, Violation> {
        check_event(fields)?;
        let key = Key::from_names(fields.topic, fields.event_id, key_space);
        let encoded = fields.encode().into();
        Ok(Self { key, encoded })
    }

    /// Takes back an event that was checked when it was stored.
    pub fn from_stored(encoded: Bytes) -> Result<Self, NotCanonical> {
        let view = EventView::parse(&encoded)?;
        if view.topic.len().max(view.event_id.len()) > NAME_BYTES_MAX {
            return Err(NotCanonical);
        }
        let key = Key::from_names(view.topic, view.event_id, &mut BytesMut::new());
        Ok(Self { key, encoded })
    }

    /// The event's key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The canonical encoding of the `oncelog.v1.Event`.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }
}

/// An event with its position in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the log.
    pub sequence: Sequence,
    /// When it was accepted.
    pub received_at: UnixNanos,
    /// The checksum of its batch, which cursors use as proof of their position.
    pub batch_checksum: u32,
    /// The canonical encoding of the `oncelog.v1.Event`.
    pub encoded: Bytes,
}

/// Checks every field of an event against its limits.
fn check_event(event: &EventView<'_>) -> Result<(), Violation> {
    check_name("topic", event.topic)?;
    check_name("event_id", event.event_id)?;
    let Some(timestamp) = event.timestamp else {
        return Err(Violation::new("timestamp", "missing; it is required"));
    };
    if !(TIMESTAMP_SECONDS_MIN..=TIMESTAMP_SECONDS_MAX).contains(&timestamp.seconds)
        || !(0..=TIMESTAMP_NANOS_MAX).contains(&timestamp.nanos)
    {
        return Err(Violation::new(
            "timestamp",
            "out of range; the limit is 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z, \
             nanos 0 to 999999999",
        ));
    }
    check_name("source", event.source)?;
    check_attributes(event)
}

fn check_attributes(event: &EventView<'_>) -> Result<(), Violation> {
    if event.attributes.len() > ATTRIBUTES_MAX {
        return Err(Violation::new(
            "attributes",
            format!(
                "{} pairs; the limit is {ATTRIBUTES_MAX}",
                event.attributes.len()
            ),
        ));
    }
    let mut bytes = 0;
    for (key, value) in &event.attributes {
        if key.is_empty() || key.len() > NAME_BYTES_MAX {
            return Err(Violation::new(
                "attributes",
                format!(
                    "a key of {} bytes; the limit is 1 to {NAME_BYTES_MAX} bytes",
                    key.len()
                ),
            ));
        }
        bytes += key.len() + value.len();
    }
    if bytes > ATTRIBUTES_BYTES_MAX {
        return Err(Violation::new(
            "attributes",
            format!(
                "{bytes} bytes of keys and values; the limit is {ATTRIBUTES_BYTES_MAX} bytes together"
            ),
        ));
    }
    Ok(())
}

fn check_name(field: &'static str, name: &str) -> Result<(), Violation> {
    if name.is_empty() {
        return Err(Violation::new(
            field,
            format!("missing; the limit is 1 to {NAME_BYTES_MAX} bytes"),
        ));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Violation::new(
            field,
            format!(
                "{} bytes; the limit is 1 to {NAME_BYTES_MAX} bytes",
                name.len()
            ),
        ));
    }
    // No early exit: that compiles to few instructions, and nearly all names pass.
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    if name.bytes().fold(true, |all, byte| all & printable(byte)) {
        return Ok(());
    }
    let control = name.char_indices().find(|(_, char)| char.is_control());
    match control {
        Some((at, _)) => Err(Violation::new(
            field,
            format!("a control character at byte {at}; none is allowed"),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(topic: &str, event_id: &str) -> Key {
        Key::new(
            &Topic::new(topic).expect("valid"),
            &EventId::new(event_id).expect("valid"),
        )
    }

    #[test]
    fn names_have_limits() {
        let longest = "é".repeat(127) + "x";
        assert_eq!(longest.len(), NAME_BYTES_MAX);
        assert!(Topic::new(&longest).is_ok());
        for (name, says) in [
            ("", "topic: missing; the limit is 1 to 255 bytes"),
            (
                &*(longest + "x"),
                "topic: 256 bytes; the limit is 1 to 255 bytes",
            ),
            (
                "a\nb",
                "topic: a control character at byte 1; none is allowed",
            ),
            (
                "é\u{85}",
                "topic: a control character at byte 2; none is allowed",
            ),
            (
                "a\0b",
                "topic: a control character at byte 1; none is allowed",
            ),
        ] {
            let violation = Topic::new(name).expect_err("out of limits");
            assert_eq!(violation.to_string(), says);
        }
    }

    #[test]
    fn a_name_that_was_never_stored_is_not_taken_back() {
        let event = |topic: &str, event_id: &str| crate::proto::v1::Event {
            topic: topic.to_owned(),
            event_id: event_id.to_owned(),
            ..Default::default()
        };
        let longest = "x".repeat(NAME_BYTES_MAX);
        let taken = |event: crate::proto::v1::Event| {
            Event::from_stored(prost::Message::encode_to_vec(&event).into()).is_ok()
        };
        assert!(taken(event(&longest, &longest)));
        assert!(!taken(event(&format!("{longest}x"), "1")));
        assert!(!taken(event("t", &format!("{longest}x"))));
    }

    proptest! {
        /// Keys sort by topic, then by event id, and are equal only if both are.
        #[test]
        fn keys_sort_as_their_names(
            one in ("[a-c ]{1,3}", "[a-c ]{1,3}"),
            other in ("[a-c ]{1,3}", "[a-c ]{1,3}"),
        ) {
            let [first, second] = [&one, &other].map(|(topic, event_id)| key(topic, event_id));
            prop_assert_eq!(first.topic(), &one.0);
            prop_assert_eq!(first.as_bytes().cmp(second.as_bytes()), one.cmp(&other));
            prop_assert_eq!(first == second, one == other);
        }
    }

    #[test]
    fn keys_are_unambiguous() {
        assert_ne!(key("ab", "c").as_bytes(), key("a", "bc").as_bytes());
        assert_eq!(key("ab", "c").topic(), "ab");
        assert_eq!(key("ab", "c").as_bytes(), b"ab\0c");
    }
}
