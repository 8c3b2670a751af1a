//! Events as JSON: `{topic, event_id, timestamp, source, payload, attributes}`, and what a listed one has beside.
//!
//! An event is read into its canonical encoding, so the same event is the same content whether it comes over
//! HTTP or gRPC. What is listed can be published again.

use std::{borrow::Cow, collections::BTreeMap, fmt, io::Write as _};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use prost::Message as _;
use prost_types::Timestamp;
use serde::{
    Deserialize,
    de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    error::DETAILS_MAX,
    payload::{self, Refusal},
};
use crate::event::{Event, EventView, Payload, StoredEvent, UnixNanos, Violation, put_varint};

/// Tags of the fields of an `oncelog.v1.Event`, which are all length-delimited.
const TOPIC_TAG: u8 = 1 << 3 | 2;
const EVENT_ID_TAG: u8 = 2 << 3 | 2;
const TIMESTAMP_TAG: u8 = 3 << 3 | 2;
const SOURCE_TAG: u8 = 4 << 3 | 2;
const JSON_TAG: u8 = 5 << 3 | 2;
const DATA_TAG: u8 = 6 << 3 | 2;
const ATTRIBUTES_TAG: u8 = 7 << 3 | 2;
/// Key and value of an attribute.
const KEY_TAG: u8 = 1 << 3 | 2;
const VALUE_TAG: u8 = 2 << 3 | 2;

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How much of a name that is no field is repeated, in characters.
const UNKNOWN_NAME_CHARS_MAX: usize = 64;

/// What is wrong with an event.
#[derive(Debug)]
pub(super) struct Flaw {
    /// The field, unless it is the event as a whole.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong and what the limit is.
    pub msg: String,
    /// Whether it is the limit on the size of an event.
    pub too_large: bool,
}

impl Flaw {
    fn of(field: &'static str, msg: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            msg: msg.into(),
            too_large: false,
        }
    }

    pub fn of_event(msg: impl Into<String>) -> Self {
        Self {
            field: None,
            msg: msg.into(),
            too_large: false,
        }
    }
}

impl From<Violation> for Flaw {
    fn from(violation: Violation) -> Self {
        Self::of(violation.field, violation.description)
    }
}

/// The members of an event, not looked into.
#[derive(Default)]
struct Members<'a> {
    topic: Option<&'a RawValue>,
    event_id: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    source: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    attributes: Option<&'a RawValue>,
    flaws: Vec<Flaw>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    Topic,
    EventId,
    Timestamp,
    Source,
    Payload,
    Data,
    Attributes,
    Sequence,
    ReceivedAt,
    Cursor,
    Unknown(String),
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key()? {
            let (slot, name) = match name {
                Name::Topic => (&mut members.topic, "topic"),
                Name::EventId => (&mut members.event_id, "event_id"),
                Name::Timestamp => (&mut members.timestamp, "timestamp"),
                Name::Source => (&mut members.source, "source"),
                Name::Payload => (&mut members.payload, "payload"),
                Name::Data => (&mut members.data, "data"),
                Name::Attributes => (&mut members.attributes, "attributes"),
                // The server's, in what it lists.
                Name::Sequence | Name::ReceivedAt | Name::Cursor => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Name::Unknown(name) => {
                    map.next_value::<IgnoredAny>()?;
                    members.add(unknown(&name));
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                members.add(Flaw::of(name, "given twice"));
            }
        }
        Ok(members)
    }
}

fn unknown(name: &str) -> Flaw {
    let name: String = name.chars().take(UNKNOWN_NAME_CHARS_MAX).collect();
    Flaw {
        field: Some(name.into()),
        ..Flaw::of_event(
            "not a field of an event; these are topic, event_id, timestamp, source, payload, data, attributes",
        )
    }
}

fn too_large(bytes_max: usize) -> Flaw {
    Flaw {
        too_large: true,
        ..Flaw::of_event(format!(
            "more than {bytes_max} bytes encoded, which is the limit of an event (--max-event-bytes)"
        ))
    }
}

/// Reads an event that is at most `bytes_max` bytes when encoded. Tells of every field that is wrong.
pub(super) fn parse(json: &RawValue, bytes_max: usize) -> Result<Event, Vec<Flaw>> {
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let mut members = if json.get().starts_with('{') {
        // Cannot fail on what is JSON but by a name that is not Unicode.
        let members = deserializer.deserialize_map(MembersVisitor);
        members.map_err(|error| vec![Flaw::of_event(payload::without_place(&error))])?
    } else {
        let msg = format!("an event object is expected, not {}", kind(json));
        return Err(vec![Flaw::of_event(msg)]);
    };
    let mut flaws = std::mem::take(&mut members.flaws);
    let encoded = members.encode(bytes_max, &mut flaws);
    if !flaws.is_empty() {
        return Err(flaws);
    }
    if encoded.len() > bytes_max {
        return Err(vec![too_large(bytes_max)]);
    }
    let encoded = Bytes::from(encoded);
    let view = EventView::parse(&encoded).expect("encoded canonically");
    Event::new(encoded.clone(), &view).map_err(|violation| vec![violation.into()])
}

impl Members<'_> {
    /// Remembers a flaw, unless there are as many as are told: a small event can have very many names.
    fn add(&mut self, flaw: Flaw) {
        if self.flaws.len() < DETAILS_MAX {
            self.flaws.push(flaw);
        }
    }

    /// Encodes what is right, and tells what is wrong. Limits on values are not looked at.
    fn encode(&self, bytes_max: usize, flaws: &mut Vec<Flaw>) -> Vec<u8> {
        let mut out = Vec::new();
        let put_text = |tag, name, json, out: &mut Vec<u8>| {
            let text = required_text(json).map_err(|msg| Flaw::of(name, msg))?;
            put_bytes(tag, text.as_bytes(), out);
            Ok(())
        };
        let put = [
            put_text(TOPIC_TAG, "topic", self.topic, &mut out),
            put_text(EVENT_ID_TAG, "event_id", self.event_id, &mut out),
            put_timestamp(self.timestamp, &mut out),
            put_text(SOURCE_TAG, "source", self.source, &mut out),
            self.put_payload(bytes_max, &mut out),
            put_attributes(self.attributes, &mut out),
        ];
        flaws.extend(put.into_iter().filter_map(Result::err));
        out
    }

    fn put_payload(&self, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), Flaw> {
        let json = self.payload.filter(|json| json.get() != "null");
        match (json, self.data) {
            (Some(_), Some(_)) => Err(Flaw::of("data", "given beside payload; give one of them")),
            (Some(json), None) if json.get().starts_with('{') => {
                let encoded = payload::encode(json, bytes_max);
                let encoded = encoded.map_err(|refusal| match refusal {
                    Refusal::TooLarge => too_large(bytes_max),
                    Refusal::Invalid(msg) => Flaw::of("payload", msg),
                })?;
                put_message(JSON_TAG, &encoded, out);
                Ok(())
            }
            (Some(json), None) => Err(Flaw::of(
                "payload",
                format!("an object is expected, not {}", kind(json)),
            )),
            (None, Some(data)) => {
                let text = text(data).map_err(|msg| Flaw::of("data", msg))?;
                let bytes = BASE64.decode(text.as_bytes());
                let bytes = bytes.map_err(|_| Flaw::of("data", "not base64"))?;
                put_message(DATA_TAG, &bytes, out);
                Ok(())
            }
            (None, None) if self.payload.is_some() => Ok(()),
            (None, None) => Err(Flaw::of(
                "payload",
                "missing; give an object, or null for an event without one",
            )),
        }
    }
}

fn required_text(json: Option<&RawValue>) -> Result<Cow<'_, str>, String> {
    text(json.ok_or("missing; it is required")?)
}

fn text(json: &RawValue) -> Result<Cow<'_, str>, String> {
    if !json.get().starts_with('"') {
        return Err(format!("a string is expected, not {}", kind(json)));
    }
    if let Ok(text) = serde_json::from_str(json.get()) {
        return Ok(Cow::Borrowed(text));
    }
    let unescaped = serde_json::from_str(json.get()).map(Cow::Owned);
    unescaped.map_err(|error| payload::without_place(&error))
}

fn kind(json: &RawValue) -> &'static str {
    match json.get().as_bytes()[0] {
        b'{' => "an object",
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}

/// ISO 8601 with any offset; without one it is UTC.
fn put_timestamp(json: Option<&RawValue>, out: &mut Vec<u8>) -> Result<(), Flaw> {
    let flaw = |msg| Flaw::of("timestamp", msg);
    let text = required_text(json).map_err(flaw)?;
    let timestamp: Result<Timestamp, _> = text.parse();
    let timestamp = timestamp.map_err(|_| {
        flaw("not an ISO 8601 date and time like 2026-01-01T12:00:00.5+02:00".to_owned())
    })?;
    put_message(TIMESTAMP_TAG, &timestamp.encode_to_vec(), out);
    Ok(())
}

fn attributes(json: &RawValue) -> Result<BTreeMap<String, String>, String> {
    if !json.get().starts_with('{') {
        return Err(format!("an object is expected, not {}", kind(json)));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let attributes = deserializer.deserialize_map(AttributesVisitor);
    attributes.map_err(|error| payload::without_place(&error))
}

struct AttributesVisitor;

impl<'de> Visitor<'de> for AttributesVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut attributes = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            if attributes.insert(key, value).is_some() {
                return Err(A::Error::custom("a key twice"));
            }
        }
        Ok(attributes)
    }
}

fn put_attributes(json: Option<&RawValue>, out: &mut Vec<u8>) -> Result<(), Flaw> {
    let attributes = json.map(attributes).transpose();
    let attributes = attributes.map_err(|msg| Flaw::of("attributes", msg))?;
    let mut entry = Vec::new();
    for (key, value) in attributes.iter().flatten() {
        entry.clear();
        put_bytes(KEY_TAG, key.as_bytes(), &mut entry);
        put_bytes(VALUE_TAG, value.as_bytes(), &mut entry);
        put_message(ATTRIBUTES_TAG, &entry, out);
    }
    Ok(())
}

/// Appends a field that is left out when it is empty.
fn put_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        put_message(tag, bytes, out);
    }
}

/// Appends a field that is there when it is empty, too.
fn put_message(tag: u8, encoded: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    put_varint(encoded.len() as u64, out);
    out.extend_from_slice(encoded);
}

/// Appends a stored event on one line. A reader resumes after it with `cursor`.
pub(super) fn write(event: &StoredEvent, cursor: &str, json: &mut Vec<u8>) {
    let view = EventView::parse(&event.encoded).expect("stored events are canonical");
    let at = view.timestamp.expect("checked when it was stored");
    let at = Timestamp {
        seconds: at.seconds,
        nanos: at.nanos,
    };
    json.extend_from_slice(b"{\"topic\":");
    write_text(view.topic, json);
    json.extend_from_slice(b",\"event_id\":");
    write_text(view.event_id, json);
    write_formatted(json, format_args!(",\"timestamp\":\"{at}\",\"source\":"));
    write_text(view.source, json);
    json.extend_from_slice(b",\"payload\":");
    match view.payload {
        Some(Payload::Json(encoded)) => payload::write_json(encoded, json),
        Some(Payload::Data(data)) => {
            json.extend_from_slice(b"null,\"data\":\"");
            json.extend_from_slice(BASE64.encode(data).as_bytes());
            json.push(b'"');
        }
        None => json.extend_from_slice(b"null"),
    }
    json.extend_from_slice(b",\"attributes\":{");
    let mut separator = None;
    for (key, value) in view.attributes {
        json.extend(separator.replace(b','));
        write_text(key, json);
        json.push(b':');
        write_text(value, json);
    }
    let received_at = timestamp_of(event.received_at);
    let sequence = event.sequence;
    write_formatted(
        json,
        format_args!(
            "}},\"sequence\":{sequence},\"received_at\":\"{received_at}\",\"cursor\":\"{cursor}\"}}"
        ),
    );
}

/// A time of the server's clock, which is printed as ISO 8601 in UTC.
pub(super) fn timestamp_of(at: UnixNanos) -> Timestamp {
    const NANOS_PER_SECOND: u64 = 1_000_000_000;
    Timestamp {
        seconds: (at / NANOS_PER_SECOND).cast_signed(),
        nanos: i32::try_from(at % NANOS_PER_SECOND).expect("under a billion"),
    }
}

fn write_formatted(json: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    json.write_fmt(text).expect("a Vec takes everything");
}

fn write_text(text: &str, json: &mut Vec<u8>) {
    serde_json::to_writer(json, text).expect("a Vec takes everything");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::v1;

    const BYTES_MAX: usize = 1 << 16;

    fn parsed(json: &str) -> Result<Event, Vec<Flaw>> {
        parse(serde_json::from_str(json).expect("JSON"), BYTES_MAX)
    }

    fn valid() -> serde_json::Value {
        serde_json::json!({
            "topic": "t", "event_id": "1", "timestamp": "2026-01-01T00:00:00Z", "source": "s", "payload": {"n": 1}
        })
    }

    fn with(field: &str, value: serde_json::Value) -> String {
        let mut event = valid();
        event[field] = value;
        event.to_string()
    }

    fn flaw(json: &str) -> (String, String) {
        let mut flaws = parsed(json).expect_err("wrong");
        assert_eq!(flaws.len(), 1, "{flaws:?}");
        let flaw = flaws.remove(0);
        (flaw.field.unwrap_or_default().into_owned(), flaw.msg)
    }

    fn message(event: &Event) -> v1::Event {
        v1::Event::decode(event.encoded().clone()).expect("well-formed")
    }

    fn listed(event: &Event) -> String {
        let stored = StoredEvent {
            sequence: 7,
            received_at: 1_700_000_000_000_000_001,
            batch_checksum: 0,
            encoded: event.encoded().clone(),
        };
        let mut json = Vec::new();
        write(&stored, "c", &mut json);
        String::from_utf8(json).expect("UTF-8")
    }

    fn any_event() -> impl Strategy<Value = v1::Event> {
        let name = || "[^\\p{Cc}]{1,20}";
        let at = (-62_135_596_800i64..=253_402_300_799, 0..1_000_000_000i32);
        let payload = prop_oneof![
            Just(None),
            proptest::collection::vec(any::<u8>(), 0..40)
                .prop_map(|data| Some(v1::event::Payload::Data(data.into()))),
            proptest::collection::btree_map(".{0,4}", any::<bool>(), 0..4).prop_map(|fields| {
                let value = |value| prost_types::Value {
                    kind: Some(prost_types::value::Kind::BoolValue(value)),
                };
                let fields = fields.into_iter().map(|(k, v)| (k, value(v))).collect();
                Some(v1::event::Payload::Json(prost_types::Struct { fields }))
            }),
        ];
        let attributes = proptest::collection::btree_map(".{1,4}", ".{0,4}", 0..4);
        (name(), name(), at, name(), payload, attributes).prop_map(
            |(topic, event_id, (seconds, nanos), source, payload, attributes)| v1::Event {
                topic,
                event_id,
                timestamp: Some(Timestamp { seconds, nanos }),
                source,
                payload,
                attributes,
            },
        )
    }

    proptest! {
        /// Whatever is listed can be published again, and is the same content.
        #[test]
        fn an_event_is_what_the_contract_has_and_comes_back(event in any_event()) {
            let encoded = Bytes::from(event.encode_to_vec());
            let published = Event::from_stored(encoded.clone()).expect("canonical");
            let again = parsed(&listed(&published)).expect("valid");
            prop_assert_eq!(again.encoded(), &encoded);
            prop_assert_eq!(again.encoded(), published.encoded());
        }

        /// The offset is no content, only the instant is.
        #[test]
        fn any_offset_is_the_same_instant(
            seconds in -62_000_000_000i64..253_000_000_000,
            nanos in 0..1_000_000_000i32,
            minutes in -1439..1440i64,
        ) {
            let local = Timestamp { seconds: seconds + minutes * 60, nanos }.to_string();
            let sign = if minutes < 0 { '-' } else { '+' };
            let (hours, minutes) = (minutes.abs() / 60, minutes.abs() % 60);
            let local = local.strip_suffix('Z').expect("UTC");
            let json = with("timestamp", format!("{local}{sign}{hours:02}:{minutes:02}").into());
            let expected = Timestamp { seconds, nanos };
            prop_assert_eq!(message(&parsed(&json).expect("valid")).timestamp, Some(expected));
        }

        #[test]
        fn garbage_is_no_panic(text in ".{0,40}", field in "[a-z_]{1,12}") {
            _ = parsed(&with(&field, text.into()));
        }
    }

    #[test]
    fn timestamps_are_iso_8601() {
        for (text, printed) in [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00.5", "2026-01-01T00:00:00.500Z"),
            ("2026-01-01 02:30:00+02:30", "2026-01-01T00:00:00Z"),
            (
                "2025-12-31T19:00:00.123456-05:00",
                "2026-01-01T00:00:00.123456Z",
            ),
            (
                "2026-01-01T00:00:00.123456789Z",
                "2026-01-01T00:00:00.123456789Z",
            ),
            ("2026-01-01", "2026-01-01T00:00:00Z"),
            ("2024-02-29T12:00:00z", "2024-02-29T12:00:00Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            (
                "9999-12-31T23:59:59.999999999Z",
                "9999-12-31T23:59:59.999999999Z",
            ),
        ] {
            let event = parsed(&with("timestamp", text.into())).expect(text);
            let json: serde_json::Value = serde_json::from_str(&listed(&event)).expect("JSON");
            assert_eq!(json["timestamp"], printed, "{text}");
        }
        for text in [
            "yesterday",
            "",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00 UTC",
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "10000-01-01T00:00:00Z",
            "1767225600",
        ] {
            assert_eq!(
                flaw(&with("timestamp", text.into())).0,
                "timestamp",
                "{text}"
            );
        }
    }

    #[test]
    fn every_flaw_is_named() {
        use serde_json::json;
        for (field, value, says) in [
            ("topic", json!(7), "a string is expected, not a number"),
            ("topic", json!(""), "missing; the limit is 1 to 255 bytes"),
            ("topic", json!("a\nb"), "a control character at byte 1"),
            ("event_id", json!(null), "a string is expected, not null"),
            ("source", json!(["s"]), "a string is expected, not an array"),
            ("timestamp", json!(1), "a string is expected, not a number"),
            ("payload", json!([]), "an object is expected, not an array"),
            ("payload", json!("x"), "an object is expected, not a string"),
            ("data", json!("AA=="), "given beside payload"),
            (
                "attributes",
                json!([]),
                "an object is expected, not an array",
            ),
            (
                "attributes",
                json!({"k": 1}),
                "invalid type: integer `1`, expected a string",
            ),
            ("attributes", json!({"": "v"}), "a key of 0 bytes"),
            (
                "topik",
                json!("t"),
                "not a field of an event; these are topic",
            ),
        ] {
            let (named, msg) = flaw(&with(field, value));
            assert_eq!(named, field);
            assert!(msg.contains(says), "{msg}");
        }
        for (json, field, says) in [
            (r#"[1]"#, "", "an event object is expected, not an array"),
            (r#"true"#, "", "an event object is expected, not a boolean"),
        ] {
            let (named, msg) = flaw(json);
            assert_eq!((&*named, &*msg), (field, says));
        }
        let twice = with("topic", "t".into()).replacen('{', r#"{"topic":"u","#, 1);
        assert_eq!(flaw(&twice), ("topic".to_owned(), "given twice".to_owned()));
        let twice = with("attributes", json!({})).replace("{}", r#"{"a":"1","a":"2"}"#);
        assert_eq!(
            flaw(&twice),
            ("attributes".to_owned(), "a key twice".to_owned())
        );

        let all: Vec<_> = parsed("{}").expect_err("empty");
        let named: Vec<_> = all
            .iter()
            .filter_map(|flaw| flaw.field.as_deref())
            .collect();
        assert_eq!(
            named,
            ["topic", "event_id", "timestamp", "source", "payload"]
        );
    }

    #[test]
    fn no_more_flaws_are_remembered_than_told() {
        let names: Vec<String> = (0..10 * DETAILS_MAX)
            .map(|at| format!("\"{at}\":0"))
            .collect();
        let flaws = parsed(&format!("{{{}}}", names.join(","))).expect_err("no event");
        // And the five fields that are missing.
        assert_eq!(flaws.len(), DETAILS_MAX + 5);
    }

    #[test]
    fn an_event_over_the_limit_is_told_apart() {
        let large = serde_json::json!({"n": "x".repeat(BYTES_MAX)});
        let flaws = parsed(&with("payload", large)).expect_err("too large");
        assert!(flaws[0].too_large, "{flaws:?}");
        assert!(flaws[0].msg.contains("more than 65536 bytes"), "{flaws:?}");
    }
}
