//! Streams of stored events: lines that end, and server-sent events that follow.
//!
//! Every event carries the cursor after it, so however a stream is cut, a reader resumes after its last event.
//! If the server cuts a stream of lines it breaks the connection, so that the lines never look complete.
//! Format: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::io::Write as _;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream::unfold;

use super::{accept::Format, error::Failure};
use crate::{
    covered::covered,
    json,
    listing::{Listing, Part},
    partition::ReadError,
};

/// How long a browser waits before it reconnects, in milliseconds.
const RETRY_MILLIS: u32 = 1000;

/// Lists change.
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// What a list depends on beside its address.
pub(super) const VARY: HeaderValue = HeaderValue::from_static("accept");
/// Asks proxies not to buffer a stream.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// All events up to the durable tail, one per line.
pub(super) fn lines(listing: Listing) -> Response {
    let body = unfold(listing, |mut listing| async {
        let lines = match listing.next().await {
            Ok(part) => Ok(part.map(|part| in_lines(&listing, part))),
            Err(error) => {
                // Logs errors that are not the reader's fault.
                let failure = Failure::from(&error);
                tracing::debug!(?failure, "a stream of lines was cut");
                Err(error)
            }
        };
        Some((lines.transpose()?, listing))
    });
    response(Format::Lines, Body::from_stream(body))
}

fn in_lines(listing: &Listing, part: Part) -> Bytes {
    let mut text = Vec::with_capacity(2 * encoded_bytes(&part));
    for stored in &part.events {
        let cursor = listing.cursor_after(stored);
        json::listed::write(stored, Some(&cursor), &mut text);
        text.push(b'\n');
    }
    with_memory_of(part, text)
}

/// The text of a part, with the share of its memory.
fn with_memory_of(part: Part, mut text: Vec<u8>) -> Bytes {
    // It may be kept for long.
    text.shrink_to_fit();
    covered(text.into(), part.share)
}

fn encoded_bytes(part: &Part) -> usize {
    part.events.iter().map(|event| event.encoded.len()).sum()
}

/// Live events. Positions are also sent as ids without an event, which browsers remember.
pub(super) fn event_stream(listing: Listing) -> Response {
    let begin = format!("retry: {RETRY_MILLIS}\n\n");
    let body = unfold((listing, Some(begin)), |(mut listing, begin)| async {
        if let Some(begin) = begin {
            return Some((Ok(begin.into()), (listing, None)));
        }
        let text = match listing.next().await {
            Ok(part) => in_event_stream(&listing, part?),
            Err(ReadError::Stopping) => return None,
            Err(error) => {
                let failure = Failure::from(&error).into_json();
                format!("event: error\ndata: {failure}\n\n").into()
            }
        };
        Some((Ok::<Bytes, ReadError>(text), (listing, None)))
    });
    response(Format::EventStream, Body::from_stream(body))
}

fn in_event_stream(listing: &Listing, part: Part) -> Bytes {
    let mut text = Vec::with_capacity(2 * encoded_bytes(&part));
    let mut last = String::new();
    for stored in &part.events {
        last = listing.cursor_after(stored);
        text.extend_from_slice(b"data: ");
        json::listed::write(stored, Some(&last), &mut text);
        write!(text, "\nid: {last}\n\n").expect("a Vec takes everything");
    }
    if last != part.cursor {
        let place = if part.caught_up { "caught up" } else { "go on" };
        write!(text, ": {place}\nid: {}\n\n", part.cursor).expect("a Vec takes everything");
    }
    with_memory_of(part, text)
}

fn response(format: Format, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, format.content_type());
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(header::VARY, VARY);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}
