//! Conversions between the contract's messages and the domain's types.

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field},
};

use super::wire::{
    AnyEvent, AnyPayload, RawListEventsResponse, RawPublishRequest, RawStreamingPublishResponse,
};
use crate::{
    event::{
        Event, EventId, EventView, Json, JsonError, Key, Payload, Sequence, StoredEvent, Timestamp,
        Topic, UnixNanos, Violation, put_varint, varint_len,
    },
    limits::{EVENT_MEMORY_BYTES, REQUEST_EVENTS_MAX},
    partition::{Counters, Outcome, TopicCounters},
    proto::v1,
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// More than an outcome without a reason takes in a response, and than a reason takes beside its text.
const OUTCOME_BYTES: usize = 16;
const REASON_OVERHEAD_BYTES: usize = 8;
/// The size of the memory chunks that hold a request's keys.
const KEY_SPACE_BYTES: usize = 16 * 1024;

/// Tags of length-delimited fields: `number << 3 | 2`, or `| 0` for varints.
const EVENTS_FIELD: u32 = 1;
const EVENTS_TAG: u8 = 1 << 3 | 2;
const ACKNOWLEDGED_TAG: u8 = 1 << 3;
const OUTCOMES_TAG: u8 = 2 << 3 | 2;
const OUTCOME_TAG: u8 = 1 << 3;
const OUTCOME_SEQUENCE_TAG: u8 = 2 << 3;
const OUTCOME_REASON_TAG: u8 = 3 << 3 | 2;
const STORED_EVENT_TAG: u8 = 1 << 3 | 2;
const STORED_SEQUENCE_TAG: u8 = 2 << 3;
const STORED_RECEIVED_AT_TAG: u8 = 3 << 3 | 2;
const CURSOR_TAG: u8 = 2 << 3 | 2;
const CAUGHT_UP_TAG: u8 = 3 << 3;

/// The events of a request, in order.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The valid events.
    pub valid: Vec<Event>,
    /// The violations of the others.
    pub violations: Violations,
    /// The memory of valid events that had to be re-encoded, beyond the request.
    copied_bytes: usize,
}

impl Events {
    /// How many events the request has.
    pub fn count(&self) -> usize {
        self.valid.len() + self.violations.count()
    }

    /// Their memory, beyond the request.
    pub fn memory_bytes(&self) -> usize {
        self.valid.len() * EVENT_MEMORY_BYTES + self.copied_bytes + self.violations.memory_bytes()
    }

    /// An upper bound on the length of a response with an outcome for each.
    pub fn answer_bytes_max(&self) -> usize {
        (self.count() + 1) * OUTCOME_BYTES + self.violations.reason_bytes()
    }
}

/// The violations of a request by the place of their event. There can be thousands, most equal to the previous one,
/// which is then stored once.
#[derive(Debug, Default)]
pub(super) struct Violations {
    /// The place of an event, and of its violation in `distinct`.
    places: Vec<(u32, u32)>,
    distinct: Vec<Violation>,
    reason_bytes: usize,
}

impl Violations {
    pub fn push(&mut self, place: usize, violation: Violation) {
        if self.distinct.last() != Some(&violation) {
            self.distinct.push(violation);
        }
        let index = self.distinct.len() - 1;
        self.reason_bytes += REASON_OVERHEAD_BYTES
            + self.distinct[index].field.len()
            + self.distinct[index].description.len();
        let small = |at: usize| u32::try_from(at).expect("a request has few events");
        self.places.push((small(place), small(index)));
    }

    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// In the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Violation)> + Clone {
        let places = self.places.iter();
        places.map(|(place, index)| (*place as usize, &self.distinct[*index as usize]))
    }

    /// Their memory.
    pub fn memory_bytes(&self) -> usize {
        let texts = self
            .distinct
            .iter()
            .map(|violation| violation.description.len());
        size_of_val(&*self.places) + size_of_val(&*self.distinct) + texts.sum::<usize>()
    }

    fn reason_bytes(&self) -> usize {
        self.reason_bytes
    }
}

/// How many events a request claims to have, without looking at them, up to the number allowed.
pub(super) fn count_events(request: &[u8]) -> usize {
    let mut rest = request;
    let mut count = 0;
    while count < REQUEST_EVENTS_MAX
        && let Ok((EVENTS_FIELD, WireType::LengthDelimited)) = decode_key(&mut rest)
        && take_len_prefixed(&mut rest).is_some()
    {
        count += 1;
    }
    count
}

/// Checks the events of a publish request. Fails if it is not an encoded request or has too many events.
pub(super) fn events(
    request: &RawPublishRequest,
    event_bytes_max: usize,
) -> Result<Events, Violation> {
    let mut events = Events::default();
    let mut key_space = BytesMut::new();
    let mut rest = &*request.0;
    while !rest.is_empty() {
        let (field, wire_type) = decode_key(&mut rest).map_err(|_| malformed())?;
        if field != EVENTS_FIELD {
            // A field from the future.
            skip_field(wire_type, field, &mut rest, DecodeContext::default())
                .map_err(|_| malformed())?;
            continue;
        }
        check_wire_type(WireType::LengthDelimited, wire_type).map_err(|_| malformed())?;
        let encoded = take_len_prefixed(&mut rest).ok_or_else(malformed)?;
        if events.count() == REQUEST_EVENTS_MAX {
            return Err(Violation::new(
                "events",
                format!("more than {REQUEST_EVENTS_MAX} events; that is the limit of a request"),
            ));
        }
        if events.valid.is_empty() {
            // Assuming the others are alike.
            let count = (rest.len() / encoded.len().max(1) + 1).min(REQUEST_EVENTS_MAX);
            events.valid.reserve(count);
        }
        if key_space.capacity() < Key::BYTES_MAX {
            key_space.reserve(KEY_SPACE_BYTES.min(request.0.len()));
        }
        match event(&request.0, encoded, event_bytes_max, &mut key_space) {
            Ok(event) => {
                if !request.0.as_ptr_range().contains(&event.encoded().as_ptr()) {
                    events.copied_bytes += event.encoded().len();
                }
                events.valid.push(event);
            }
            Err(violation) => events.violations.push(events.count(), violation),
        }
    }
    Ok(events)
}

fn take_len_prefixed<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = decode_varint(rest).ok()?;
    let (value, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = after;
    Some(value)
}

fn malformed() -> Violation {
    Violation::new("events", "the request is not an encoded publish request")
}

/// An event of a request, in whatever encoding its publisher chose.
fn event(
    request: &Bytes,
    encoded: &[u8],
    bytes_max: usize,
    key_space: &mut BytesMut,
) -> Result<Event, Violation> {
    if encoded.len() > bytes_max {
        return Err(too_large(encoded.len(), bytes_max));
    }
    match Event::from_canonical_in(request.slice_ref(encoded), key_space) {
        Ok(event) => event,
        Err(_) => any_event(encoded, bytes_max, key_space),
    }
}

fn too_large(bytes: usize, bytes_max: usize) -> Violation {
    Violation::new(
        "event",
        format!("{bytes} bytes encoded; the limit is {bytes_max} bytes (--max-event-bytes)"),
    )
}

/// An event that is not in its canonical encoding.
fn any_event(
    encoded: &[u8],
    bytes_max: usize,
    key_space: &mut BytesMut,
) -> Result<Event, Violation> {
    let event = AnyEvent::decode(encoded).map_err(|error| {
        // The full chain of fields to the error can be long.
        let error = error.to_string();
        let cause = error.rsplit(": ").next().unwrap_or_default();
        Violation::new("event", format!("not an encoded oncelog.v1.Event: {cause}"))
    })?;
    let json = match &event.payload {
        Some(AnyPayload::Json(encoded)) => Some(("json", Json::from_struct(&encoded.0))),
        Some(AnyPayload::JsonText(text)) => Some(("json_text", Json::from_text(text, bytes_max))),
        Some(AnyPayload::Data(_)) | None => None,
    };
    let json = json.map(|(field, json)| {
        json.map_err(|error| {
            if !matches!(error, JsonError::TooLarge) {
                return Violation::new(field, error.to_string());
            }
            // A Struct takes more bytes than its text; only writing it shows how many.
            let description = format!(
                "more than {bytes_max} bytes as json, in which it is stored; the limit is {bytes_max} bytes \
                 (--max-event-bytes)"
            );
            Violation::new("event", description)
        })
    });
    let json = json.transpose()?;
    let data = match &event.payload {
        Some(AnyPayload::Data(data)) => Some(Payload::Data(data)),
        Some(AnyPayload::Json(_) | AnyPayload::JsonText(_)) | None => None,
    };
    let attributes = event.attributes.iter();
    let fields = EventView {
        topic: &event.topic,
        event_id: &event.event_id,
        timestamp: event.timestamp.map(|at| Timestamp {
            seconds: at.seconds,
            nanos: at.nanos,
        }),
        source: &event.source,
        payload: json.as_ref().map(Json::as_payload).or(data),
        attributes: attributes.map(|(key, value)| (&**key, &**value)).collect(),
    };
    let event = Event::new_in(&fields, key_space)?;
    if event.encoded().len() > bytes_max {
        return Err(too_large(event.encoded().len(), bytes_max));
    }
    Ok(event)
}

/// The key of a GetEvent.
pub(super) fn key(request: &v1::GetEventRequest) -> Result<Key, Violation> {
    let topic = Topic::new(&request.topic)?;
    let event_id = EventId::new(&request.event_id)?;
    Ok(Key::new(&topic, &event_id))
}

/// A response of StreamingPublish: the outcome of each event of a request. `violations` are those of the events
/// that broke a limit, by their place in the request; `outcomes` are those of the others.
pub(super) fn publish_response(
    acknowledged_requests: u64,
    outcomes: &[Outcome],
    violations: &Violations,
    topics_max: usize,
) -> RawStreamingPublishResponse {
    let total = outcomes.len() + violations.count();
    let bytes = (total + 1) * OUTCOME_BYTES + violations.reason_bytes();
    let mut buf = BytesMut::with_capacity(bytes);
    buf.put_u8(ACKNOWLEDGED_TAG);
    put_varint(acknowledged_requests, &mut buf);
    let mut outcomes = outcomes.iter();
    let mut violations = violations.iter().peekable();
    for at in 0..total {
        match violations.next_if(|(place, _)| *place == at) {
            Some((_, violation)) => put_rejected(violation, &mut buf),
            None => match *outcomes.next().expect("one outcome per submitted event") {
                Outcome::Stored(at) => put_outcome(v1::Outcome::Stored, at, "", &mut buf),
                Outcome::Duplicate(at) => put_outcome(v1::Outcome::Duplicate, at, "", &mut buf),
                Outcome::Conflict(at) => put_outcome(v1::Outcome::Conflict, at, "", &mut buf),
                Outcome::TopicLimit => put_rejected(&topic_limit(topics_max), &mut buf),
            },
        }
    }
    RawStreamingPublishResponse(buf.freeze())
}

fn put_rejected(violation: &Violation, buf: &mut BytesMut) {
    put_outcome(v1::Outcome::Rejected, 0, &violation.to_string(), buf);
}

fn put_outcome(outcome: v1::Outcome, sequence: Sequence, reason: &str, buf: &mut BytesMut) {
    let outcome = i32::from(outcome).cast_unsigned().into();
    let reason_len = reason.len() as u64;
    let mut len = 1 + varint_len(outcome);
    if sequence > 0 {
        len += 1 + varint_len(sequence);
    }
    if reason_len > 0 {
        len += 1 + varint_len(reason_len) + reason.len();
    }
    buf.put_u8(OUTCOMES_TAG);
    put_varint(len as u64, buf);
    buf.put_u8(OUTCOME_TAG);
    put_varint(outcome, buf);
    if sequence > 0 {
        buf.put_u8(OUTCOME_SEQUENCE_TAG);
        put_varint(sequence, buf);
    }
    if reason_len > 0 {
        buf.put_u8(OUTCOME_REASON_TAG);
        put_varint(reason_len, buf);
        buf.put_slice(reason.as_bytes());
    }
}

fn topic_limit(max: usize) -> Violation {
    Violation::new(
        "topic",
        format!("a new topic; the limit is {max} topics (--max-topics)"),
    )
}

/// A stored event as a message.
pub(super) fn stored_event(event: &StoredEvent) -> v1::StoredEvent {
    v1::StoredEvent {
        event: Some(
            v1::Event::decode(event.encoded.clone()).expect("stored events are well-formed"),
        ),
        sequence: event.sequence,
        received_at: Some(timestamp(event.received_at)),
    }
}

/// The counters of a topic as a message.
pub(super) fn topic_stats((topic, counters): (Topic, TopicCounters)) -> v1::TopicStats {
    v1::TopicStats {
        topic: topic.as_str().to_owned(),
        unique_processed: counters.unique_processed,
        duplicate_dropped: counters.duplicate_dropped,
        last_received_at: Some(timestamp(counters.last_received_at)),
    }
}

/// The counters over all topics as a message; the caller adds the rest.
pub(super) fn stats(counters: Counters) -> v1::GetStatsResponse {
    v1::GetStatsResponse {
        received: counters.received,
        unique_processed: counters.unique_processed,
        duplicate_dropped: counters.duplicate_dropped,
        conflicts: counters.conflicts,
        rejected: counters.rejected,
        ..v1::GetStatsResponse::default()
    }
}

fn timestamp(at: UnixNanos) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: (at / NANOS_PER_SECOND).cast_signed(),
        nanos: i32::try_from(at % NANOS_PER_SECOND).expect("under a billion"),
    }
}

/// A response of ListEvents, around the encoded events.
pub(super) fn list_events_response(
    events: &[StoredEvent],
    cursor: &str,
    caught_up: bool,
) -> RawListEventsResponse {
    /// More than the tags, lengths, sequence and time of a stored event take.
    const EVENT_OVERHEAD: usize = 64;
    let events_len: usize = events.iter().map(|event| event.encoded.len()).sum();
    let capacity = events_len + events.len() * EVENT_OVERHEAD + cursor.len() + EVENT_OVERHEAD;
    let mut buf = Vec::with_capacity(capacity);
    // The events of a batch share one time: it is encoded once.
    for batch in events.chunk_by(|a, b| a.received_at == b.received_at) {
        let received_at = timestamp(batch[0].received_at).encode_to_vec();
        for event in batch {
            put_stored_event(event, &received_at, &mut buf);
        }
    }
    buf.put_u8(CURSOR_TAG);
    put_varint(cursor.len() as u64, &mut buf);
    buf.put_slice(cursor.as_bytes());
    if caught_up {
        buf.put_u8(CAUGHT_UP_TAG);
        buf.put_u8(1);
    }
    RawListEventsResponse(buf.into())
}

fn put_stored_event(event: &StoredEvent, received_at: &[u8], buf: &mut Vec<u8>) {
    let event_len = event.encoded.len() as u64;
    let received_at_len = received_at.len() as u64;
    let field_len = |len: u64| 1 + varint_len(len) as u64 + len;
    let stored_len =
        field_len(event_len) + 1 + varint_len(event.sequence) as u64 + field_len(received_at_len);

    buf.put_u8(EVENTS_TAG);
    put_varint(stored_len, buf);
    buf.put_u8(STORED_EVENT_TAG);
    put_varint(event_len, buf);
    buf.put_slice(&event.encoded);
    buf.put_u8(STORED_SEQUENCE_TAG);
    put_varint(event.sequence, buf);
    buf.put_u8(STORED_RECEIVED_AT_TAG);
    put_varint(received_at_len, buf);
    buf.put_slice(received_at);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::{Value, value::Kind};

    use super::*;

    const EVENT_BYTES_MAX: usize = 1024;

    fn valid_event() -> v1::Event {
        v1::Event {
            topic: "orders".to_owned(),
            event_id: "1".to_owned(),
            timestamp: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: 0,
            }),
            source: "shop".to_owned(),
            ..v1::Event::default()
        }
    }

    fn one(encoded: &[u8]) -> Result<Event, Violation> {
        let encoded = Bytes::copy_from_slice(encoded);
        event(&encoded, &encoded, EVENT_BYTES_MAX, &mut BytesMut::new())
    }

    #[test]
    fn every_encoding_of_an_event_is_one_content() {
        let canonical = valid_event().encode_to_vec();
        let stored = one(&canonical).expect("valid");
        assert_eq!(stored.encoded(), &canonical);

        // The same fields with source first, and an unknown one.
        let mut other = b"\x22\x04shop\xfa\x01\x01x".to_vec();
        other.extend_from_slice(&canonical);
        let other = one(&other).expect("valid");
        assert_eq!(other.encoded(), &canonical);
    }

    #[test]
    fn the_order_of_json_members_is_no_content() {
        let member = |name: &str| {
            let value = prost_types::Value {
                kind: Some(prost_types::value::Kind::BoolValue(true)),
            };
            let fields = [(name.to_owned(), value)].into();
            prost_types::Struct { fields }.encode_to_vec()
        };
        let with_json = |json: Vec<u8>| {
            let mut encoded = valid_event().encode_to_vec();
            encoded.push(5 << 3 | 2);
            put_varint(json.len() as u64, &mut encoded);
            encoded.extend(json);
            one(&encoded).expect("valid").encoded().clone()
        };
        let (a, b) = (member("a"), member("b"));
        assert_eq!(
            with_json([&*a, &*b].concat()),
            with_json([&*b, &*a].concat())
        );
        assert_ne!(with_json(a), with_json(b));
    }

    #[test]
    fn a_null_of_any_number_is_null() {
        let with_null = |number| {
            let null = Value {
                kind: Some(Kind::NullValue(number)),
            };
            let values = vec![null.clone(); 2];
            let list = Value {
                kind: Some(Kind::ListValue(prost_types::ListValue { values })),
            };
            let fields = [("list".to_owned(), list), ("null".to_owned(), null)].into();
            let event = v1::Event {
                payload: Some(v1::event::Payload::Json(prost_types::Struct { fields })),
                ..valid_event()
            };
            one(&event.encode_to_vec()).expect("valid")
        };
        assert_eq!(with_null(-1).encoded(), with_null(0).encoded());
        assert_eq!(with_null(7).encoded(), with_null(0).encoded());
    }

    #[test]
    fn an_event_over_the_limit_is_refused() {
        let event = v1::Event {
            payload: Some(v1::event::Payload::Data(vec![0; EVENT_BYTES_MAX].into())),
            ..valid_event()
        };
        let violation = one(&event.encode_to_vec()).expect_err("too large");
        assert_eq!(violation.field, "event");
        assert!(violation.description.contains("the limit is 1024 bytes"));
    }

    #[test]
    fn unknown_fields_of_a_request_are_skipped() {
        let mut encoded = v1::PublishRequest {
            events: vec![valid_event(); 2],
        }
        .encode_to_vec();
        encoded.extend(b"\x10\x01\x1a\x02ab");
        let request = RawPublishRequest(encoded.into());
        let events = events(&request, EVENT_BYTES_MAX).expect("valid");
        assert_eq!((events.valid.len(), events.count()), (2, 2));
    }

    fn any_stored_event() -> impl Strategy<Value = StoredEvent> {
        ("[a-z]{1,3}", 1..u64::MAX, any::<u64>()).prop_map(|(topic, sequence, received_at)| {
            let event = v1::Event {
                topic,
                ..valid_event()
            };
            StoredEvent {
                sequence,
                received_at,
                batch_checksum: 0,
                encoded: event.encode_to_vec().into(),
            }
        })
    }

    /// A valid event, and each of its fields encoded separately.
    fn any_event() -> impl Strategy<Value = (v1::Event, Vec<Vec<u8>>)> {
        let name = || "[^\\p{Cc}]{1,9}";
        let at = (-62_135_596_800..=253_402_300_799i64, 0..1_000_000_000i32);
        let data = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        let attributes = proptest::collection::btree_map(".{1,4}", ".{0,4}", 0..4);
        (name(), name(), at, name(), data, attributes).prop_map(
            |(topic, event_id, (seconds, nanos), source, data, attributes)| {
                let event = v1::Event {
                    topic,
                    event_id,
                    timestamp: Some(prost_types::Timestamp { seconds, nanos }),
                    source,
                    payload: data.map(|data| v1::event::Payload::Data(data.into())),
                    attributes,
                };
                let none = v1::Event::default;
                let whole = event.clone();
                let mut parts = vec![
                    v1::Event {
                        topic: whole.topic,
                        ..none()
                    },
                    v1::Event {
                        event_id: whole.event_id,
                        ..none()
                    },
                    v1::Event {
                        timestamp: whole.timestamp,
                        ..none()
                    },
                    v1::Event {
                        source: whole.source,
                        ..none()
                    },
                    v1::Event {
                        payload: whole.payload,
                        ..none()
                    },
                ];
                parts.extend(whole.attributes.into_iter().map(|pair| v1::Event {
                    attributes: [pair].into(),
                    ..none()
                }));
                let parts = parts.iter().map(v1::Event::encode_to_vec).collect();
                (event, parts)
            },
        )
    }

    proptest! {
        /// Fields in any order, some twice, with unknown ones: the content is the same, and no longer than the
        /// input.
        #[test]
        fn any_encoding_of_an_event_is_one_content(
            (event, parts) in any_event(),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let canonical = event.encode_to_vec();
            let stored = one(&canonical).expect("valid");
            prop_assert_eq!(stored.encoded(), &canonical);
            let mut again: Vec<u8> = order
                .iter()
                .flat_map(|at| parts[at.index(parts.len())].clone())
                .collect();
            again.extend(b"\xfa\x01\x01x");
            again.extend(parts.concat());
            let again = one(&again).expect("valid");
            prop_assert_eq!(again.encoded(), stored.encoded());
            prop_assert_eq!(again.key(), stored.key());
            prop_assert_eq!(again.encoded(), stored.encoded());
        }

        #[test]
        fn a_list_response_is_what_the_contract_says(
            events in proptest::collection::vec(any_stored_event(), 0..5),
            cursor in ".{0,9}",
            caught_up: bool,
        ) {
            let raw = list_events_response(&events, &cursor, caught_up);
            let decoded = v1::ListEventsResponse::decode(raw.0).expect("well-formed");
            let events = events.iter().map(stored_event).collect();
            prop_assert_eq!(decoded, v1::ListEventsResponse { events, cursor, caught_up });
        }

        #[test]
        fn a_publish_response_is_what_the_contract_says(
            acknowledged_requests in 1..u64::MAX,
            kinds in proptest::collection::vec((0..5, 1..Sequence::MAX), 0..9),
        ) {
            let (mut outcomes, mut violations) = (Vec::new(), Violations::default());
            let mut expected = v1::StreamingPublishResponse {
                acknowledged_requests,
                ..v1::StreamingPublishResponse::default()
            };
            for (at, (kind, sequence)) in kinds.into_iter().enumerate() {
                let mut message = v1::EventOutcome { sequence, ..v1::EventOutcome::default() };
                let (outcome, kind) = match kind {
                    0 => (Outcome::Stored(sequence), v1::Outcome::Stored),
                    1 => (Outcome::Duplicate(sequence), v1::Outcome::Duplicate),
                    2 => (Outcome::Conflict(sequence), v1::Outcome::Conflict),
                    _ => (Outcome::TopicLimit, v1::Outcome::Rejected),
                };
                message.set_outcome(kind);
                if kind == v1::Outcome::Rejected {
                    message.sequence = 0;
                    message.reason = topic_limit(7).to_string();
                }
                if kind == v1::Outcome::Rejected && sequence % 2 == 0 {
                    violations.push(at, topic_limit(7));
                } else {
                    outcomes.push(outcome);
                }
                expected.outcomes.push(message);
            }
            let raw = publish_response(acknowledged_requests, &outcomes, &violations, 7);
            prop_assert_eq!(raw.0, expected.encode_to_vec());
        }

        #[test]
        fn garbage_is_no_panic(encoded in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(events) = events(&RawPublishRequest(encoded.into()), EVENT_BYTES_MAX) {
                for event in events.valid {
                    prop_assert!(Event::from_stored(event.encoded().clone()).is_ok());
                }
            }
        }
    }
}
