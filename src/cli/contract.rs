//! The JSON of the contract's messages, as proto3 maps it.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Deserializer, Serializer};

use crate::proto::{FILE_DESCRIPTOR_SET, v1};

/// The messages that the command line reads and prints.
#[derive(Clone)]
pub(super) struct Contract {
    event: MessageDescriptor,
    stored_event: MessageDescriptor,
    stats: MessageDescriptor,
}

impl Contract {
    pub fn new() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the compiler wrote it");
        let message = |name| pool.get_message_by_name(name).expect("in the contract");
        Self {
            event: message("oncelog.v1.Event"),
            stored_event: message("oncelog.v1.StoredEvent"),
            stats: message("oncelog.v1.GetStatsResponse"),
        }
    }

    /// Reads one event; an unknown field is an error.
    pub fn parse_event(&self, json: &[u8]) -> Result<v1::Event, String> {
        let mut deserializer = Deserializer::from_slice(json);
        let event = DynamicMessage::deserialize(self.event.clone(), &mut deserializer);
        let event = event.and_then(|event| deserializer.end().map(|()| event));
        let event = event.map_err(|error| describe(&error))?;
        event.transcode_to().map_err(|error| error.to_string())
    }

    /// Writes a stored event on one line. Fails on what JSON cannot hold, like a number that is not finite.
    pub fn stored_event(&self, event: &v1::StoredEvent) -> Result<Vec<u8>, serde_json::Error> {
        to_json(&self.stored_event, event, &SerializeOptions::new())
    }

    /// Writes counters on one line, those that are 0 too.
    pub fn stats(&self, stats: &v1::GetStatsResponse) -> Result<Vec<u8>, serde_json::Error> {
        let options = SerializeOptions::new().skip_default_fields(false);
        to_json(&self.stats, stats, &options)
    }
}

fn to_json(
    descriptor: &MessageDescriptor,
    message: &impl Message,
    options: &SerializeOptions,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut dynamic = DynamicMessage::new(descriptor.clone());
    dynamic
        .transcode_from(message)
        .expect("descriptor and message are generated from one contract");
    let mut json = Vec::new();
    dynamic.serialize_with_options(&mut Serializer::new(&mut json), options)?;
    Ok(json)
}

/// Says what is wrong without the number of the line, which is always 1 within an event.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::{ListValue, Struct, Timestamp, Value, value::Kind};

    use super::*;

    /// A value that JSON has.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Kind::NullValue(0)),
            any::<bool>().prop_map(Kind::BoolValue),
            (-1e300..1e300f64).prop_map(Kind::NumberValue),
            ".{0,9}".prop_map(Kind::StringValue),
        ];
        let leaf = leaf.prop_map(|kind| Value { kind: Some(kind) });
        leaf.prop_recursive(3, 12, 4, |value| {
            let kind = prop_oneof![
                prop::collection::vec(value.clone(), 0..4)
                    .prop_map(|values| Kind::ListValue(ListValue { values })),
                prop::collection::btree_map(".{0,3}", value, 0..4)
                    .prop_map(|fields| Kind::StructValue(Struct { fields })),
            ];
            kind.prop_map(|kind| Value { kind: Some(kind) })
        })
    }

    fn any_event() -> impl Strategy<Value = v1::Event> {
        let at = (-62_135_596_800..=253_402_300_799i64, 0..1_000_000_000i32);
        let payload = prop_oneof![
            Just(None),
            prop::collection::vec(any::<u8>(), 0..20)
                .prop_map(|data| Some(v1::event::Payload::Data(data.into()))),
            prop::collection::btree_map(".{0,3}", any_value(), 0..4)
                .prop_map(|fields| Some(v1::event::Payload::Json(Struct { fields }))),
        ];
        let attributes = prop::collection::btree_map(".{0,3}", ".{0,3}", 0..4);
        (".{0,9}", ".{0,9}", at, ".{0,9}", payload, attributes).prop_map(
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
        #[test]
        fn any_event_that_is_printed_can_be_published(event in any_event()) {
            let contract = Contract::new();
            let stored = v1::StoredEvent {
                event: Some(event.clone()),
                sequence: 7,
                received_at: None,
            };
            let line = contract.stored_event(&stored).expect("printable");
            prop_assert!(!line.contains(&b'\n'));
            let json: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            let again = contract.parse_event(json["event"].to_string().as_bytes());
            prop_assert_eq!(again, Ok(event));
        }
    }

    #[test]
    fn events_are_read_in_both_spellings() {
        let contract = Contract::new();
        let camel = br#"{"topic":"t","eventId":"1","timestamp":"2026-01-01T00:00:00Z","source":"s",
            "data":"AAE=","attributes":{"k":"v"}}"#;
        let snake =
            br#"{"topic":"t","event_id":"1","timestamp":"2026-01-01T00:00:00.000Z","source":"s",
            "data":"AAE","attributes":{"k":"v"}}"#;
        let event = contract.parse_event(camel).expect("valid");
        assert_eq!(event.event_id, "1");
        assert_eq!(event.timestamp.expect("set").seconds, 1_767_225_600);
        assert_eq!(event.attributes["k"], "v");
        assert!(matches!(&event.payload, Some(v1::event::Payload::Data(data)) if **data == [0, 1]));
        assert_eq!(contract.parse_event(snake), Ok(event));
    }

    #[test]
    fn what_is_no_event_is_described() {
        let contract = Contract::new();
        for (json, says) in [
            ("{", "EOF while parsing an object at column 1"),
            (r#"{"topik":"t"}"#, "unrecognized field name 'topik'"),
            (r#"{"topic":"t"} x"#, "trailing characters at column 15"),
            (
                r#"{"topic":7}"#,
                "invalid type: integer `7`, expected a string",
            ),
            (r#"{"timestamp":"yesterday"}"#, "timestamp"),
            (r#"{"json":[]}"#, "invalid type"),
        ] {
            let error = contract.parse_event(json.as_bytes()).expect_err("no event");
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("line"), "{error}");
        }
    }

    #[test]
    fn what_is_printed_can_be_published() {
        let contract = Contract::new();
        let number = |value| Struct {
            fields: [(
                "n".to_owned(),
                Value {
                    kind: Some(Kind::NumberValue(value)),
                },
            )]
            .into(),
        };
        let event = v1::Event {
            topic: "t".to_owned(),
            event_id: "a \"b\"".to_owned(),
            timestamp: Some(prost_types::Timestamp {
                seconds: -1,
                nanos: 7,
            }),
            source: "s".to_owned(),
            payload: Some(v1::event::Payload::Json(number(0.5))),
            attributes: [("k".to_owned(), String::new())].into(),
        };
        let mut stored = v1::StoredEvent {
            event: Some(event.clone()),
            sequence: u64::MAX,
            received_at: None,
        };
        let line = contract.stored_event(&stored).expect("printable");
        let json: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(json["sequence"], "18446744073709551615");
        let again = contract.parse_event(json["event"].to_string().as_bytes());
        assert_eq!(again, Ok(event.clone()));

        stored.event = Some(v1::Event {
            payload: Some(v1::event::Payload::Json(number(f64::NAN))),
            ..event
        });
        assert!(contract.stored_event(&stored).is_err());
    }

    #[test]
    fn counters_of_zero_are_printed() {
        let line = Contract::new()
            .stats(&v1::GetStatsResponse::default())
            .expect("printable");
        let json: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(json["uniqueProcessed"], "0");
        assert_eq!(json["topics"], serde_json::json!([]));
    }
}
