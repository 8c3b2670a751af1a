//! Fuzz targets of the gRPC edge: the requests of every call.

use bytes::Bytes;
use prost::Message as _;

use super::{
    convert::{self, Events},
    list_events, status,
    wire::RawPublishRequest,
};
use crate::{
    event::{Event, Topic},
    http,
    limits::REQUEST_EVENTS_MAX,
    partition,
    partition::Outcome,
    proto::v1,
};

/// The limit on an event here, in bytes.
const EVENT_BYTES_MAX: usize = 1024;
/// More than any status message has, in bytes.
const MESSAGE_BYTES_MAX: usize = 512;

/// Decodes the input as a request of Publish or StreamingPublish.
pub fn grpc_publish(data: &[u8]) {
    let request = RawPublishRequest(Bytes::copy_from_slice(data));
    let decoded = v1::PublishRequest::decode(data);
    let events = match convert::events(&request, EVENT_BYTES_MAX) {
        Ok(events) => events,
        Err(violation) => {
            assert!(decoded.is_err() || decoded.is_ok_and(|d| d.events.len() > REQUEST_EVENTS_MAX));
            let status = status::invalid_request(0, &violation);
            assert!(status.message().len() <= MESSAGE_BYTES_MAX);
            return;
        }
    };
    assert!(events.count() <= REQUEST_EVENTS_MAX);
    if let Ok(decoded) = decoded {
        assert_eq!(decoded.events.len(), events.count());
    }
    let places = events.violations.iter().map(|(place, _)| place);
    assert!(places.clone().all(|place| place < events.count()));
    assert!(places.is_sorted_by(|a, b| a < b));
    events.valid.iter().for_each(assert_valid);
    assert_answered(&events);
}

fn assert_valid(event: &Event) {
    assert!(event.encoded().len() <= EVENT_BYTES_MAX);
    crate::event::fuzzing::assert_valid(event);
    let again = http::fuzzing::relist(event);
    assert_eq!(again.encoded(), event.encoded());
}

/// Each event has an outcome, and a rejected one a short reason.
fn assert_answered(events: &Events) {
    let outcomes: Vec<_> = (1..)
        .map(Outcome::Stored)
        .take(events.valid.len())
        .collect();
    let raw = convert::publish_response(1, &outcomes, &events.violations, 1);
    let response = v1::StreamingPublishResponse::decode(raw.0).expect("well-formed");
    assert_eq!(response.outcomes.len(), events.count());
    for outcome in &response.outcomes {
        let rejected = outcome.outcome() == v1::Outcome::Rejected;
        assert_eq!(rejected, outcome.sequence == 0);
        assert_eq!(rejected, !outcome.reason.is_empty());
        assert!(outcome.reason.len() <= MESSAGE_BYTES_MAX);
    }
    for (place, violation) in events.violations.iter() {
        assert_eq!(response.outcomes[place].reason, violation.to_string());
        let status = status::invalid_event(0, place, violation);
        assert!(status.message().len() <= MESSAGE_BYTES_MAX);
    }
}

/// Decodes the input as a request of ListEvents, GetEvent and GetStats.
pub fn grpc_queries(data: &[u8]) {
    if let Ok(request) = v1::ListEventsRequest::decode(data) {
        match list_events::start(&request) {
            Ok(_) => partition::fuzzing::cursor(request.cursor.as_bytes()),
            Err(status) => assert!((1..MESSAGE_BYTES_MAX).contains(&status.message().len())),
        }
        if let Err(violation) = Topic::new(&request.topic) {
            let status = status::invalid_field(&violation);
            assert!((1..MESSAGE_BYTES_MAX).contains(&status.message().len()));
        }
    }
    if let Ok(request) = v1::GetEventRequest::decode(data) {
        match convert::key(&request) {
            Ok(key) => {
                let names = [&request.topic, &request.event_id].map(|name| name.as_bytes());
                assert_eq!(key.as_bytes(), names.join(&0));
                assert_eq!(key.topic(), request.topic);
            }
            Err(violation) => {
                let status = status::invalid_field(&violation);
                assert!((1..MESSAGE_BYTES_MAX).contains(&status.message().len()));
            }
        }
    }
    if let Ok(request) = v1::GetStatsRequest::decode(data) {
        partition::fuzzing::list_topics(&request.topic_prefix, request.max_topics as usize);
    }
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;
    use crate::event::fuzzing::seeds::messages;

    pub(crate) fn publish() -> Vec<(&'static str, Vec<u8>)> {
        let events: Vec<_> = messages().into_iter().map(|(_, event)| event).collect();
        let whole = v1::PublishRequest { events }.encode_to_vec();
        // The fields of the events in another order, twice, and from the future.
        let mut odd = b"\x10\x01\x0a\x2c\x22\x04shop\xfa\x01\x01x\x0a\x01a\x12\x01b\x0a\x01c\x1a\x06\x08\x81\x80\x80\x80\x00".to_vec();
        odd.extend(b"\x2a\x0c\x0a\x0a\x12\x08\x32\x06\x0a\x04\x08\xff\xff\x03\x1a\x02ab");
        vec![
            ("whole", whole),
            ("odd", odd),
            ("future", b"\x10\x01\x1a\x02ab".to_vec()),
        ]
    }

    pub(crate) fn queries() -> Vec<(&'static str, Vec<u8>)> {
        let list = v1::ListEventsRequest {
            topic: "orders".to_owned(),
            cursor: "0161206c6f67206964".to_owned(),
            start: 2,
            limit: 10,
            follow: true,
        };
        let get = v1::GetEventRequest {
            topic: "orders".to_owned(),
            event_id: "o-1".to_owned(),
        };
        let stats = v1::GetStatsRequest {
            topic_prefix: "a".to_owned(),
            max_topics: 2,
        };
        let unknown = v1::ListEventsRequest {
            start: 3,
            ..v1::ListEventsRequest::default()
        };
        vec![
            ("list", list.encode_to_vec()),
            ("get", get.encode_to_vec()),
            ("stats", stats.encode_to_vec()),
            ("unknown", unknown.encode_to_vec()),
        ]
    }
}
