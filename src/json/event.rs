//! Events as JSON, in the form in which they are published: `{topic, event_id, timestamp, source, payload,
//! attributes}`.
//!
//! An event is the same content whether it comes over HTTP, gRPC or the command line. A listed event can be published
//! again.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{
    Deserialize,
    de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::flaw::{FLAWS_MAX, Flaw, too_large, unknown};
use crate::event::{Event, EventView, Json, JsonError, Payload, Timestamp};

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The same in the alphabet for file names, which proto3 accepts too.
const BASE64_URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The members of an event, unparsed.
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
    #[serde(rename = "eventId")]
    ContractEventId,
    Json,
    Unknown(String),
}

/// The names that the members of an event may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// The names used in listings.
    Listed,
    /// Those and the names that proto3 gives to the contract's fields: `eventId`, `json`. As in proto3, the payload
    /// is optional, and bytes may be in the URL-safe alphabet.
    ListedAndContract,
}

struct MembersVisitor(Names);

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let takes_contract = self.0 == Names::ListedAndContract;
        let mut members = Members::default();
        while let Some(name) = map.next_key()? {
            let (slot, name) = match name {
                Name::Topic => (&mut members.topic, "topic"),
                Name::EventId => (&mut members.event_id, "event_id"),
                Name::ContractEventId if takes_contract => (&mut members.event_id, "event_id"),
                Name::Json if takes_contract => (&mut members.payload, "payload"),
                Name::Timestamp => (&mut members.timestamp, "timestamp"),
                Name::Source => (&mut members.source, "source"),
                Name::Payload => (&mut members.payload, "payload"),
                Name::Data => (&mut members.data, "data"),
                Name::Attributes => (&mut members.attributes, "attributes"),
                // Members that the server adds to listings.
                Name::Sequence | Name::ReceivedAt | Name::Cursor => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Name::ContractEventId | Name::Json => {
                    map.next_value::<IgnoredAny>()?;
                    let is_json = matches!(name, Name::Json);
                    members.add(unknown(if is_json { "json" } else { "eventId" }));
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

/// Reads an event of at most `bytes_max` bytes when encoded. Reports every field that is wrong.
pub(crate) fn parse(json: &RawValue, names: Names, bytes_max: usize) -> Result<Event, Vec<Flaw>> {
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let mut members = if json.get().starts_with('{') {
        // On valid JSON this fails only for a name that is not Unicode.
        let members = deserializer.deserialize_map(MembersVisitor(names));
        members.map_err(|error| vec![Flaw::of_event(without_place(&error))])?
    } else {
        let msg = format!("an event object is expected, not {}", kind(json));
        return Err(vec![Flaw::of_event(msg)]);
    };
    let mut flaws = std::mem::take(&mut members.flaws);
    let event = members.event(names, bytes_max, &mut flaws);
    let Some(event) = event.filter(|_| flaws.is_empty()) else {
        return Err(flaws);
    };
    if event.encoded().len() > bytes_max {
        return Err(vec![too_large(bytes_max)]);
    }
    Ok(event)
}

/// Reads an event's line.
pub(crate) fn parse_line(line: &[u8], names: Names, bytes_max: usize) -> Result<Event, Vec<Flaw>> {
    let no_json = |msg| vec![Flaw::of_event(msg)];
    let text = as_text(line).map_err(no_json)?;
    let json = serde_json::from_str(text)
        .map_err(|error| no_json(format!("not JSON: {}", without_place(&error))))?;
    parse(json, names, bytes_max)
}

/// The text of a body or line, or the fault in it.
pub(crate) fn as_text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map_err(|error| format!("not JSON: invalid UTF-8 at byte {}", error.valid_up_to()))
}

/// The fault without its place, which is relative to the value and would be misread as one in the body.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// A payload as read.
enum Content {
    Json(Json),
    Data(Vec<u8>),
}

impl Content {
    fn as_payload(&self) -> Payload<'_> {
        match self {
            Self::Json(json) => json.as_payload(),
            Self::Data(data) => Payload::Data(data),
        }
    }
}

impl Members<'_> {
    /// Keeps a flaw, unless there are already as many as are reported: a small event can have very many
    /// names.
    fn add(&mut self, flaw: Flaw) {
        if self.flaws.len() < FLAWS_MAX {
            self.flaws.push(flaw);
        }
    }

    /// The event; adds its faults to `flaws`.
    fn event(&self, names: Names, bytes_max: usize, flaws: &mut Vec<Flaw>) -> Option<Event> {
        let mut note = |flaw| flaws.push(flaw);
        let required = |name, json| required_text(json).map_err(|msg| Flaw::of(name, msg));
        let topic = required("topic", self.topic).map_err(&mut note).ok();
        let event_id = required("event_id", self.event_id).map_err(&mut note).ok();
        let timestamp = timestamp(self.timestamp)
            .map_err(|msg| note(Flaw::of("timestamp", msg)))
            .ok();
        let source = required("source", self.source).map_err(&mut note).ok();
        let content = self.content(names, bytes_max).map_err(&mut note).ok();
        let attributes = self.attributes.map(attributes).transpose();
        let attributes = attributes
            .map_err(|msg| note(Flaw::of("attributes", msg)))
            .ok();

        let (content, attributes) = (content?, attributes?.unwrap_or_default());
        let fields = EventView {
            topic: &topic?,
            event_id: &event_id?,
            timestamp: Some(timestamp?),
            source: &source?,
            payload: content.as_ref().map(Content::as_payload),
            attributes: attributes
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
        };
        let event = Event::new(&fields).map_err(Flaw::from);
        event.map_err(note).ok()
    }

    fn content(&self, names: Names, bytes_max: usize) -> Result<Option<Content>, Flaw> {
        let json = self.payload.filter(|json| json.get() != "null");
        match (json, self.data) {
            (Some(_), Some(_)) => Err(Flaw::of("data", "given beside payload; give one of them")),
            (Some(json), None) if json.get().starts_with('{') => {
                let json = Json::from_text(json.get(), bytes_max);
                let json = json.map_err(|error| {
                    if matches!(error, JsonError::TooLarge) {
                        return too_large(bytes_max);
                    }
                    Flaw::of("payload", error.to_string())
                })?;
                Ok(Some(Content::Json(json)))
            }
            (Some(json), None) => Err(Flaw::of(
                "payload",
                format!("an object is expected, not {}", kind(json)),
            )),
            (None, Some(data)) => {
                let text = text(data).map_err(|msg| Flaw::of("data", msg))?;
                let data = match names {
                    Names::ListedAndContract if text.contains(['-', '_']) => {
                        BASE64_URL_SAFE.decode(text.as_bytes())
                    }
                    Names::Listed | Names::ListedAndContract => BASE64.decode(text.as_bytes()),
                };
                let data = data.map_err(|_| Flaw::of("data", "not base64"))?;
                Ok(Some(Content::Data(data)))
            }
            (None, None) if self.payload.is_some() || names == Names::ListedAndContract => Ok(None),
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
    unescaped.map_err(|error| without_place(&error))
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
fn timestamp(json: Option<&RawValue>) -> Result<Timestamp, String> {
    let parsed: Result<prost_types::Timestamp, _> = required_text(json)?.parse();
    let parsed = parsed
        .map_err(|_| "not an ISO 8601 date and time like 2026-01-01T12:00:00.5+02:00".to_owned())?;
    Ok(Timestamp {
        seconds: parsed.seconds,
        nanos: parsed.nanos,
    })
}

fn attributes(json: &RawValue) -> Result<BTreeMap<String, String>, String> {
    if !json.get().starts_with('{') {
        return Err(format!("an object is expected, not {}", kind(json)));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let attributes = deserializer.deserialize_map(AttributesVisitor);
    attributes.map_err(|error| without_place(&error))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use bytes::Bytes;
    use prost::Message as _;

    use super::*;
    use crate::{event::StoredEvent, json::listed::write, proto::v1};

    const BYTES_MAX: usize = 1 << 16;

    fn parsed(json: &str) -> Result<Event, Vec<Flaw>> {
        parse(
            serde_json::from_str(json).expect("JSON"),
            Names::Listed,
            BYTES_MAX,
        )
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
        write(&stored, Some("c"), &mut json);
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
                timestamp: Some(prost_types::Timestamp { seconds, nanos }),
                source,
                payload,
                attributes,
            },
        )
    }

    proptest! {
        /// Any listed event can be published again, as the same content.
        #[test]
        fn an_event_is_what_the_contract_has_and_comes_back(event in any_event()) {
            let encoded = Bytes::from(event.encode_to_vec());
            let published = Event::from_stored(encoded.clone()).expect("canonical");
            let again = parsed(&listed(&published)).expect("valid");
            prop_assert_eq!(again.encoded(), &encoded);
            prop_assert_eq!(again.encoded(), published.encoded());
        }

        /// The content is the instant, not the offset.
        #[test]
        fn any_offset_is_the_same_instant(
            seconds in -62_000_000_000i64..253_000_000_000,
            nanos in 0..1_000_000_000i32,
            minutes in -1439..1440i64,
        ) {
            let local = prost_types::Timestamp { seconds: seconds + minutes * 60, nanos }.to_string();
            let sign = if minutes < 0 { '-' } else { '+' };
            let (hours, minutes) = (minutes.abs() / 60, minutes.abs() % 60);
            let local = local.strip_suffix('Z').expect("UTC");
            let json = with("timestamp", format!("{local}{sign}{hours:02}:{minutes:02}").into());
            let expected = prost_types::Timestamp { seconds, nanos };
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
                "not a field of an event; the fields are topic",
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
    fn names_of_the_contract_are_taken_where_they_are_asked_for() {
        let contract = r#"{"topic":"t","eventId":"1","timestamp":"2026-01-01T00:00:00Z","source":"s","json":{"n":1}}"#;
        let event = parse_line(contract.as_bytes(), Names::ListedAndContract, BYTES_MAX);
        let listed = parsed(&valid().to_string()).expect("valid");
        assert_eq!(event.expect("valid").encoded(), listed.encoded());
        let flaws = parsed(contract).expect_err("of the contract");
        let named: Vec<_> = flaws
            .iter()
            .filter_map(|flaw| flaw.field.as_deref())
            .collect();
        assert_eq!(named, ["eventId", "json", "event_id", "payload"]);

        let none = contract.replace(r#","json":{"n":1}"#, "");
        let parsed = |line: &str| parse_line(line.as_bytes(), Names::ListedAndContract, BYTES_MAX);
        assert_eq!(message(&parsed(&none).expect("valid")).payload, None);
        let data = contract.replace(r#""json":{"n":1}"#, r#""data":"AAH_""#);
        let data = message(&parsed(&data).expect("valid")).payload;
        assert_eq!(data, Some(v1::event::Payload::Data(vec![0, 1, 255].into())));
        let both = contract.replace(r#""json":{"n":1}"#, r#""json":{"n":1},"payload":{}"#);
        assert!(parsed(&both).is_err());
    }

    #[test]
    fn no_more_flaws_are_kept_than_reported() {
        let names: Vec<String> = (0..10 * FLAWS_MAX)
            .map(|at| format!("\"{at}\":0"))
            .collect();
        let flaws = parsed(&format!("{{{}}}", names.join(","))).expect_err("no event");
        // And the five missing fields.
        assert_eq!(flaws.len(), FLAWS_MAX + 5);
    }

    #[test]
    fn an_event_over_the_limit_is_marked_too_large() {
        let large = serde_json::json!({"n": "x".repeat(BYTES_MAX)});
        let flaws = parsed(&with("payload", large)).expect_err("too large");
        assert!(flaws[0].too_large, "{flaws:?}");
        assert!(flaws[0].msg.contains("more than 65536 bytes"), "{flaws:?}");
    }
}
