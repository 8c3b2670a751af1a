//! Stored events as JSON, in the form in which they are listed and can be published again.

use std::{fmt, io::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use crate::event::{EventView, Payload, StoredEvent, UnixNanos};

/// Appends a stored event as one line, with the `cursor` that resumes after it, if known.
pub(crate) fn write(event: &StoredEvent, cursor: Option<&str>, json: &mut Vec<u8>) {
    let view = EventView::parse(&event.encoded).expect("stored events are canonical");
    let at = view.timestamp.expect("checked when it was stored");
    let at = prost_types::Timestamp {
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
        Some(payload) => payload.write_json(json),
        None => json.extend_from_slice(b"null"),
    }
    if let Some(Payload::Data(data)) = view.payload {
        write_formatted(json, format_args!(",\"data\":\"{}\"", BASE64.encode(data)));
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
        format_args!("}},\"sequence\":{sequence},\"received_at\":\"{received_at}\""),
    );
    if let Some(cursor) = cursor {
        write_formatted(json, format_args!(",\"cursor\":\"{cursor}\""));
    }
    json.push(b'}');
}

/// A time of the server's clock, printed as ISO 8601 in UTC.
pub(crate) fn timestamp_of(at: UnixNanos) -> prost_types::Timestamp {
    const NANOS_PER_SECOND: u64 = 1_000_000_000;
    prost_types::Timestamp {
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
