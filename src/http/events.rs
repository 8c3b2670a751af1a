//! GET /events: a page of stored events, all of them as a stream, or live events.

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{accept::Format, error::Failure, query, stream};
use crate::{
    aggregator::Aggregator,
    call::Call,
    event::{Sequence, Topic},
    json,
    listing::Listing,
    partition::{ReadError, Reader, Start},
    response::{self, Unread},
};

/// The most events of a page, and the default.
const PAGE_EVENTS_MAX: u64 = 10_000;
const PAGE_EVENTS_DEFAULT: u64 = 1000;
/// A page ends with the read that takes it to this many bytes of encoded events.
const PAGE_BYTES: usize = 512 * 1024;
/// The most memory that a page takes, in bytes, unless a single event is larger.
const PAGE_MEMORY_BYTES: usize = 4 * PAGE_BYTES;
/// The largest limit that a request may set.
pub(super) const LIMIT_MAX: u64 = i64::MAX as u64;

/// The header of every page with the cursor to continue from.
pub(super) const CURSOR: HeaderName = HeaderName::from_static("oncelog-cursor");
/// The header with which a browser resumes.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The characters left unescaped in a query: the unreserved ones of RFC 3986.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A parsed request.
pub(super) struct Wanted {
    pub format: Format,
    pub topic: Option<Topic>,
    pub start: Start,
    pub limit: Option<u64>,
}

pub(super) async fn events(
    State(aggregator): State<Aggregator>,
    Extension(call): Extension<Call>,
    Extension(unread): Extension<Unread>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let wanted = wanted(query.as_deref(), &headers)?;
    let permit = aggregator
        .admit_reader()
        .map_err(|_| Failure::too_many_readers(aggregator.limits.readers_max))?;
    let reader = aggregator
        .partition
        .reader(wanted.topic.clone(), &wanted.start, permit, call.chunks())
        .await;
    let reader = reader.map_err(|error| {
        if let ReadError::Cursor(cursor) = &error
            && headers.contains_key(LAST_EVENT_ID)
        {
            return Failure::last_cursor(*cursor);
        }
        Failure::from(&error)
    })?;
    let (limit, follow) = (wanted.limit, wanted.format == Format::EventStream);
    match wanted.format {
        Format::Json => page(&aggregator, &unread, reader, &wanted).await,
        Format::Lines => {
            let listing = Listing::new(&aggregator, reader, limit, follow);
            Ok(stream::lines(listing))
        }
        Format::EventStream => {
            let listing = Listing::new(&aggregator, reader, limit, follow);
            Ok(stream::event_stream(listing))
        }
    }
}

pub(super) fn wanted(query: Option<&str>, headers: &HeaderMap) -> Result<Wanted, Failure> {
    let names = ["topic", "cursor", "start", "limit"];
    let [topic, cursor, start, limit] = query::parameters(query, names)?;
    let topic = topic.filter(|topic| !topic.is_empty());
    let topic = topic.map(|topic| Topic::new(&topic)).transpose();
    let last_event_id = headers.get(LAST_EVENT_ID).map(|id| id.to_str());
    let last_event_id = last_event_id.transpose();
    let last_event_id = last_event_id.map_err(|_| Failure::last_event_id("not ASCII"))?;
    // A browser that reconnects sends the same query and its last position.
    let cursor = last_event_id.or(cursor.as_deref());
    let start = match (cursor.filter(|cursor| !cursor.is_empty()), start.as_deref()) {
        (Some(cursor), _) => Start::After(cursor.to_owned()),
        (None, None | Some("earliest")) => Start::Earliest,
        (None, Some("latest")) => Start::Latest,
        (None, Some(_)) => return Err(Failure::query("start", "neither earliest nor latest")),
    };
    Ok(Wanted {
        format: Format::of(headers)?,
        topic: topic.map_err(Failure::query_limit)?,
        start,
        limit: query::positive("limit", limit.as_deref(), LIMIT_MAX)?,
    })
}

/// A JSON array of events, with the cursor to continue from in the headers.
async fn page(
    aggregator: &Aggregator,
    unread: &Unread,
    mut reader: Reader,
    wanted: &Wanted,
) -> Result<Response, Failure> {
    let reserved = aggregator
        .response_memory
        .reserve(unread, PAGE_MEMORY_BYTES)
        .await;
    let reserved = reserved.map_err(|_| Failure::too_many_unread())?;
    let until = aggregator.partition.durable_tail();
    let limit = wanted.limit.unwrap_or(PAGE_EVENTS_DEFAULT);
    let mut left = usize::try_from(limit.min(PAGE_EVENTS_MAX)).expect("small");
    let mut bytes_left = PAGE_BYTES;
    let mut page = vec![b'['];
    let mut separator = None;
    while left > 0 && bytes_left > 0 && reader.next_sequence() < until {
        let chunk = match reader.read(until, left).await {
            Ok(chunk) => chunk,
            Err(error) if separator.is_none() => return Err(Failure::from(&error)),
            // The next page starts with the error, and reports it.
            Err(_) => break,
        };
        left -= chunk.events.len();
        for stored in &chunk.events {
            bytes_left = bytes_left.saturating_sub(stored.encoded.len());
            page.extend(separator.replace(b','));
            let cursor = reader.cursor_after(stored);
            json::listed::write(stored, Some(&cursor), &mut page);
        }
    }
    page.push(b']');
    let cursor = reader.cursor();
    let has_more = has_more(&mut reader, until).await;

    let mut response = Body::from(response::held(page, reserved)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, Format::Json.content_type());
    headers.insert(header::CACHE_CONTROL, stream::NO_STORE);
    headers.insert(header::VARY, stream::VARY);
    if has_more {
        headers.insert(header::LINK, link(wanted, &cursor));
    }
    headers.insert(CURSOR, value(&cursor));
    Ok(response)
}

/// Whether there is an event, or an error, between the reader and `until`. The next page reads it again.
async fn has_more(reader: &mut Reader, until: Sequence) -> bool {
    while reader.next_sequence() < until {
        let chunk = reader.read(until, 1).await;
        if chunk.map_or(true, |chunk| !chunk.events.is_empty()) {
            return true;
        }
    }
    false
}

/// The same request, continued from the cursor. RFC 8288.
pub(super) fn link(wanted: &Wanted, cursor: &str) -> HeaderValue {
    let mut query = format!("cursor={cursor}");
    if let Some(topic) = &wanted.topic {
        query = format!(
            "topic={}&{query}",
            utf8_percent_encode(topic.as_str(), QUERY)
        );
    }
    if let Some(limit) = wanted.limit {
        query = format!("{query}&limit={limit}");
    }
    value(&format!("</events?{query}>; rel=\"next\""))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("visible ASCII")
}
