//! What is fuzzed of events: their canonical encoding, against the encoder of the contract.

use bytes::Bytes;
use prost::Message as _;
use prost_types::Struct;

use super::{Event, EventId, EventView, Payload, Topic, is_canonical_struct};
use crate::proto::v1;

/// Takes the input for an encoded event, and for an encoded JSON object.
pub fn event(data: &[u8]) {
    if is_canonical_struct(data) {
        let decoded = Struct::decode(data).expect("canonical is well-formed");
        assert_eq!(decoded.encode_to_vec(), data);
    }
    let decoded = v1::Event::decode(data);
    let encoded = Bytes::copy_from_slice(data);
    let stored = Event::from_stored(encoded.clone());
    let Ok(view) = EventView::parse(data) else {
        assert!(stored.is_err());
        assert!(
            decoded.is_ok_and(|event| event.encode_to_vec() != data)
                || v1::Event::decode(data).is_err()
        );
        return;
    };
    let payload_is_canonical = match view.payload {
        Some(Payload::Json(json)) => is_canonical_struct(json),
        Some(Payload::Data(_)) | None => true,
    };
    if !payload_is_canonical {
        return;
    }
    let decoded = decoded.expect("canonical is well-formed");
    assert_eq!(decoded.encode_to_vec(), data);
    assert_eq!(decoded.topic, view.topic);
    assert_eq!(decoded.attributes.len(), view.attributes.len());
    match Event::new(encoded, &view) {
        Ok(event) => assert_valid(&event),
        Err(violation) => assert!(violation.to_string().len() < 256, "{violation}"),
    }
}

/// An event holds what its type promises, and comes back from the log as it is.
pub(crate) fn assert_valid(event: &Event) {
    let view = EventView::parse(event.encoded()).expect("canonical");
    let topic = Topic::new(view.topic).expect("valid");
    assert_eq!(event.key().topic(), view.topic);
    let event_id = EventId::new(view.event_id).expect("valid");
    assert_eq!(*event.key(), super::Key::new(&topic, &event_id));
    let again = Event::new(event.encoded().clone(), &view).expect("valid");
    let stored = Event::from_stored(event.encoded().clone()).expect("canonical");
    for other in [again, stored] {
        assert_eq!(other.key(), event.key());
        assert_eq!(other.encoded(), event.encoded());
    }
    let decoded = v1::Event::decode(event.encoded().clone()).expect("well-formed");
    assert_eq!(*event.encoded(), decoded.encode_to_vec());
}

/// Inputs to begin with, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use prost_types::{ListValue, Timestamp, Value, value::Kind};

    use super::*;

    /// A JSON object with every kind of value.
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
