//! Events and batches for the tests of this module.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use super::{Batch, BatchBuilder};
use crate::{
    event::{Event, Sequence, Topic, UnixNanos},
    proto::v1,
};

pub fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

pub fn event(topic: &str, event_id: &str, data: &[u8]) -> Event {
    let event = v1::Event {
        topic: topic.into(),
        event_id: event_id.into(),
        payload: Some(v1::event::Payload::Data(Bytes::copy_from_slice(data))),
        ..v1::Event::default()
    };
    Event::from_stored(event.encode_to_vec().into()).expect("canonical")
}

pub fn batch(first_sequence: Sequence, received_at: UnixNanos, events: &[Event]) -> Batch {
    let mut builder = BatchBuilder::new(first_sequence);
    for event in events {
        builder.push(event);
    }
    builder.finish(received_at)
}

/// Events over some topics, at least one.
pub fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let data = proptest::collection::vec(any::<u8>(), 0..200);
    let event = ("[a-d]{1,2}", "[a-z0-9]{1,8}", data)
        .prop_map(|(topic, event_id, data)| event(&topic, &event_id, &data));
    proptest::collection::vec(event, 1..40)
}
