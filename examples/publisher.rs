//! Publishes 5000 events over 10 topics, every fifth one again: 4000 are stored, 1000 are duplicates.
//!
//! ```text
//! cargo run --release --example publisher [http://127.0.0.1:50051]
//! ```
//!
//! The same event always has the same id and the same content, so that a second run stores nothing: that is
//! all a publisher must ensure. It may send an event as often as it likes.

// An example has no other place to print.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, time::Instant};

use oncelog::{
    client::{Publisher, PublisherOptions},
    proto::v1::{Event, Outcome, event::Payload},
};
use prost_types::{Struct, Timestamp, Value, value::Kind};

const EVENTS: u64 = 5000;
const EVENTS_PER_REQUEST: u64 = 50;
const TOPICS: u64 = 10;
/// 2026-01-01T00:00:00Z.
const FIRST_SECOND: i64 = 1_767_225_600;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = env::args()
        .nth(1)
        .or_else(|| env::var("ONCELOG_SERVER").ok())
        .unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
    let start = Instant::now();

    // Connects when there is something to send, and reconnects whenever the connection breaks.
    let publisher = Publisher::connect(&server, PublisherOptions::default())?;
    let mut acks = Vec::new();
    for first in (0..EVENTS).step_by(EVENTS_PER_REQUEST as usize) {
        let events = (first..first + EVENTS_PER_REQUEST).map(|position| event(number(position)));
        // Waits only while too many events are unacknowledged; the ack itself comes later.
        acks.push(publisher.send(events.collect()).await?);
    }

    let (mut stored, mut duplicates, mut conflicts, mut rejected) = (0, 0, 0, 0);
    for ack in acks {
        // One outcome per event, in order. Every event not rejected is durable now.
        for outcome in ack.await? {
            match outcome.outcome() {
                Outcome::Stored => stored += 1,
                Outcome::Duplicate => duplicates += 1,
                Outcome::Conflict => conflicts += 1,
                Outcome::Rejected | Outcome::Unspecified => {
                    rejected += 1;
                    eprintln!("rejected: {}", outcome.reason);
                }
            }
        }
    }
    publisher.finish().await?;

    let seconds = start.elapsed().as_secs_f64();
    println!(
        "sent {EVENTS}, stored {stored}, duplicates {duplicates}, conflicts {conflicts}, \
         rejected {rejected}, {:.0} events/s",
        EVENTS as f64 / seconds
    );
    if stored + duplicates + conflicts + rejected != EVENTS {
        return Err("not every event has an outcome".into());
    }
    Ok(())
}

/// The number of the event at `position`: every fifth was sent before, just now or long ago.
fn number(position: u64) -> u64 {
    if position % 5 == 4 {
        let back = if position.is_multiple_of(2) {
            1
        } else {
            position / 2
        };
        return number(position - back);
    }
    position / 5 * 4 + position % 5
}

/// The event with this number, always the same.
fn event(number: u64) -> Event {
    let field = |kind| Value { kind: Some(kind) };
    let json = [
        (
            "order".to_owned(),
            field(Kind::StringValue(number.to_string())),
        ),
        (
            "total".to_owned(),
            field(Kind::NumberValue((number % 1000) as f64)),
        ),
    ];
    Event {
        topic: format!("orders-{}", number % TOPICS),
        event_id: format!("order-{number}"),
        timestamp: Some(Timestamp {
            seconds: FIRST_SECOND + number as i64,
            nanos: 0,
        }),
        source: "examples/publisher".to_owned(),
        payload: Some(Payload::Json(Struct {
            fields: json.into(),
        })),
        attributes: [("region".to_owned(), "eu".to_owned())].into(),
    }
}
