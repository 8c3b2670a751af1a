//! Fuzz targets of events: their canonical encoding and JSON payloads, compared with other encoders and
//! parsers.

use bytes::Bytes;
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use serde_json::value::RawValue;

use super::{Event, EventId, EventView, Json, JsonError, Topic, structs};
use crate::proto::v1;

/// The limit on an object here, in bytes.
const JSON_BYTES_MAX: usize = 1 << 16;

/// Decodes the input as an encoded event, and as an encoded JSON object.
pub fn event(data: &[u8]) {
    json_struct(data);
    let decoded = v1::Event::decode(data);
    let encoded = Bytes::copy_from_slice(data);
    let stored = Event::from_stored(encoded.clone());
    if EventView::parse(data).is_err() {
        assert!(stored.is_err());
        assert!(Event::from_canonical(encoded).is_err());
        assert!(decoded.map_or(true, |event| event.encode_to_vec() != data));
        return;
    }
    let Ok(event) = Event::from_canonical(encoded) else {
        return;
    };
    let decoded = decoded.expect("canonical is well-formed");
    assert_eq!(decoded.encode_to_vec(), data);
    match event {
        Ok(event) => assert_valid(&event),
        Err(violation) => assert!(violation.to_string().len() < 256, "{violation}"),
    }
}

/// Decodes the input as an encoded JSON object: the contract's decoder must read the result as the same
/// object.
fn json_struct(data: &[u8]) {
    let canonical = match Json::from_struct(data) {
        Ok(Json::Struct(canonical)) => canonical,
        Ok(Json::Text(_)) => unreachable!("a Struct is held by a Struct"),
        Err(_) => return assert!(!structs::is_canonical(data)),
    };
    assert!(canonical.len() <= data.len());
    assert_eq!(structs::is_canonical(data), canonical == data);
    assert!(structs::is_canonical(&canonical));
    if let Ok(mut decoded) = Struct::decode(data) {
        decoded.fields.values_mut().for_each(number_nulls);
        assert_eq!(decoded.encode_to_vec(), canonical);
    }
    let text = json_of(&Json::Struct(canonical.clone()));
    assert_eq!(
        Json::from_text(&text, usize::MAX),
        Ok(Json::Struct(canonical))
    );
}

/// Makes all nulls equal: theirs is an open enum, so the number could be any.
fn number_nulls(value: &mut Value) {
    match &mut value.kind {
        Some(Kind::NullValue(number)) => *number = 0,
        Some(Kind::ListValue(list)) => list.values.iter_mut().for_each(number_nulls),
        Some(Kind::StructValue(json)) => json.fields.values_mut().for_each(number_nulls),
        Some(Kind::NumberValue(_) | Kind::StringValue(_) | Kind::BoolValue(_)) | None => {}
    }
}

/// Parses the input as the text of a JSON object.
pub fn json_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
    let json = match Json::from_text(text, JSON_BYTES_MAX) {
        Ok(json) => json,
        Err(JsonError::NotJson { expected, at }) => {
            assert!(at <= text.len());
            // Another parser may accept values that are no object, or text that is not Unicode.
            assert!(
                !is_json
                    || at == 0
                    || expected.starts_with("an object")
                    || expected.starts_with("Unicode")
            );
            return;
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(is_json, "another parser takes it too");
    let again = json_of(&json);
    assert!(!again.contains('\n'));
    // Canonical text is a fixed point, with the same value.
    assert_eq!(Json::from_text(&again, usize::MAX).as_ref(), Ok(&json));
    if let (Ok(given), Ok(canonical)) = (
        serde_json::from_str::<serde_json::Value>(text),
        serde_json::from_str::<serde_json::Value>(&again),
    ) {
        assert_eq!(without_integers(given), without_integers(canonical));
    }
    if let Json::Text(canonical) = &json {
        assert_eq!(numbers(text), numbers(canonical), "digits are kept");
        assert!(canonical.len() <= JSON_BYTES_MAX);
    }
}

fn json_of(json: &Json) -> String {
    let mut text = Vec::new();
    json.as_payload().write_json(&mut text);
    String::from_utf8(text).expect("UTF-8")
}

/// The other parser distinguishes 12 from 12.0.
fn without_integers(mut json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match &mut json {
        Number(number) => number.as_f64().into(),
        Array(values) => std::mem::take(values)
            .into_iter()
            .map(without_integers)
            .collect(),
        Object(members) => std::mem::take(members)
            .into_iter()
            .map(|(name, value)| (name, without_integers(value)))
            .collect(),
        Null | Bool(_) | String(_) => json,
    }
}

/// The numbers in a JSON text, as written, in no particular order.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut outside = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                while let Some(char) = chars.next() {
                    match char {
                        '\\' => _ = chars.next(),
                        '"' => break,
                        _ => {}
                    }
                }
                outside.push(' ');
            }
            '+' | '-' | '.' | 'e' | 'E' | '0'..='9' => outside.push(char),
            _ => outside.push(' '),
        }
    }
    // The ends of true and false are not numbers.
    let words = outside.split_whitespace();
    found.extend(words.filter(|word| *word != "e").map(str::to_owned));
    found.sort();
    found
}

/// An event keeps the promises of its type, and comes back from the log unchanged.
pub(crate) fn assert_valid(event: &Event) {
    let view = EventView::parse(event.encoded()).expect("canonical");
    let topic = Topic::new(view.topic).expect("valid");
    assert_eq!(event.key().topic(), view.topic);
    let event_id = EventId::new(view.event_id).expect("valid");
    assert_eq!(*event.key(), super::Key::new(&topic, &event_id));
    let again = Event::new(&view).expect("valid");
    let canonical = Event::from_canonical(event.encoded().clone());
    let canonical = canonical.expect("canonical").expect("valid");
    let stored = Event::from_stored(event.encoded().clone()).expect("canonical");
    for other in [again, canonical, stored] {
        assert_eq!(other.key(), event.key());
        assert_eq!(other.encoded(), event.encoded());
    }
    let decoded = v1::Event::decode(event.encoded().clone()).expect("well-formed");
    assert_eq!(*event.encoded(), decoded.encode_to_vec());
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use prost_types::{ListValue, Timestamp};

    use super::*;

    /// A JSON object that no Struct can hold, in canonical text.
    const TEXT: &str = r#"{"a":[0.12345678901234567890,1E400,-0],"id":9007199254740993}"#;

    pub(crate) fn texts() -> Vec<(&'static str, Vec<u8>)> {
        let held = r#" {"b": [1.50, -0, 1e2, true, null, "\u00e9\n"], "a": {"": {}}} "#;
        let unordered = r#"{"z":18446744073709551615,"\u0061":false,"Z":"\ud83d\ude00/\/"}"#;
        vec![
            ("canonical", TEXT.into()),
            ("held", held.into()),
            ("unordered", unordered.into()),
            ("twice", r#"{"a":1,"\u0061":2}"#.into()),
            (
                "deep",
                format!("{{\"a\":{}{}}}", "[".repeat(32), "]".repeat(32)).into(),
            ),
            ("wrong", r#"{"a":01,"b":"\ud800"}"#.into()),
        ]
    }

    /// A JSON object with every kind of value, including some outside JSON.
    fn json() -> Struct {
        let value = |kind| Value { kind: Some(kind) };
        let number = |number| value(Kind::NumberValue(number));
        let list = vec![
            value(Kind::NullValue(0)),
            value(Kind::BoolValue(false)),
            value(Kind::BoolValue(true)),
            number(-0.0),
            number(f64::NAN),
            number(1e300),
            Value { kind: None },
        ];
        let list = value(Kind::ListValue(ListValue { values: list }));
        let text = value(Kind::StringValue("é".to_owned()));
        let inner = Struct {
            fields: [(String::new(), text), ("list".to_owned(), list)].into(),
        };
        let fields = [("a".to_owned(), value(Kind::StructValue(inner)))];
        Struct {
            fields: fields.into(),
        }
    }

    pub(crate) fn messages() -> Vec<(&'static str, v1::Event)> {
        let event = |event_id: &str, payload| v1::Event {
            topic: "orders".to_owned(),
            event_id: event_id.to_owned(),
            timestamp: Some(Timestamp {
                seconds: -62_135_596_800,
                nanos: 999_999_999,
            }),
            source: "shop".to_owned(),
            payload,
            attributes: [
                ("b".to_owned(), String::new()),
                ("a".to_owned(), "1".to_owned()),
            ]
            .into(),
        };
        let data = v1::event::Payload::Data(vec![0, 1, 0xff].into());
        let long = v1::Event {
            topic: "t".repeat(256),
            ..event("long", None)
        };
        vec![
            ("data", event("data", Some(data))),
            (
                "json",
                event("json", Some(v1::event::Payload::Json(json()))),
            ),
            (
                "text",
                event("text", Some(v1::event::Payload::JsonText(TEXT.to_owned()))),
            ),
            ("none", event("none", None)),
            ("long", long),
            ("empty", v1::Event::default()),
        ]
    }

    pub(crate) fn events() -> Vec<(&'static str, Vec<u8>)> {
        let events = messages().into_iter();
        let mut events: Vec<_> = events
            .map(|(name, event)| (name, event.encode_to_vec()))
            .collect();
        events.push(("struct", json().encode_to_vec()));
        events
    }
}
