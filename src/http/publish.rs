//! POST /publish: one event, an array of them, or a stream of lines.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    error::{DETAILS_MAX, Failure, Step},
    event::{self, Flaw},
    json_response, lines,
    upload::{self, Upload},
};
use crate::{
    aggregator::{Aggregator, REQUEST_EVENTS_MAX},
    event::Event,
    partition::{Outcome, Rejection},
};

const JSON: &str = "application/json";
pub(super) const LINES: &str = "application/x-ndjson";

/// What became of the events of a request, all of them durable.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Totals {
    received: u64,
    /// The original's word for what waits to be processed; an answer means stored, so it is all of them.
    enqueued: u64,
    unique_processed: u64,
    duplicate_dropped: u64,
    conflicts: u64,
}

impl Totals {
    pub fn count(&mut self, outcome: Outcome) {
        self.received += 1;
        self.enqueued += 1;
        match outcome {
            Outcome::Stored(_) => self.unique_processed += 1,
            Outcome::Duplicate(_) => self.duplicate_dropped += 1,
            Outcome::Conflict(_) => {
                self.duplicate_dropped += 1;
                self.conflicts += 1;
            }
            Outcome::TopicLimit => unreachable!("the limit on topics fails the whole request"),
        }
    }
}

#[derive(Serialize)]
struct Answer {
    status: &'static str,
    #[serde(flatten)]
    totals: Totals,
}

pub(super) async fn publish(State(aggregator): State<Aggregator>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut upload = Upload::new(&aggregator, &head, body);
    let published = match format(&head.headers) {
        Ok(Format::Json) => publish_json(&aggregator, &mut upload).await,
        Ok(Format::Lines) => lines::publish(&aggregator, &mut upload).await,
        Err(failure) => Err(failure),
    };
    match published {
        Ok(totals) => json_response(
            StatusCode::OK,
            &Answer {
                status: "ok",
                totals,
            },
        ),
        Err(failure) => {
            upload.discard().await;
            failure.into_response()
        }
    }
}

enum Format {
    Json,
    Lines,
}

/// A content type that a page of another origin could send without being asked is not taken: a form, or none.
fn format(headers: &HeaderMap) -> Result<Format, Failure> {
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return Err(Failure::content_encoding());
    }
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next());
    match essence.map(|essence| essence.trim().to_ascii_lowercase()) {
        Some(essence) if essence == JSON => Ok(Format::Json),
        Some(essence) if essence == LINES => Ok(Format::Lines),
        _ => Err(Failure::content_type()),
    }
}

async fn publish_json(aggregator: &Aggregator, upload: &mut Upload<'_>) -> Result<Totals, Failure> {
    let (body, mut share) = upload.gather().await?;
    let events = parse_body(aggregator, &body)?;
    drop(body);
    upload::cover(aggregator, &mut share, &events)?;
    let partition = &aggregator.partition;
    let submitted = partition.submit(events, Rejection::OfRequest, share).await;
    let outcomes = submitted.map_err(|error| Failure::from(&error))?.await;
    let mut totals = Totals::default();
    for outcome in outcomes.map_err(|error| Failure::from(&error))? {
        totals.count(outcome);
    }
    Ok(totals)
}

/// All events of a body, or what is wrong with it. Bad events count as rejected, with all of their request.
fn parse_body(aggregator: &Aggregator, body: &[u8]) -> Result<Vec<Event>, Failure> {
    let text = as_text(body).map_err(Failure::body)?;
    let bytes_max = aggregator.limits.event_bytes_max;
    if !text.trim_start().starts_with('[') {
        let json: &RawValue = serde_json::from_str(text).map_err(|error| not_json(&error))?;
        let parsed = event::parse(json, bytes_max);
        return parsed.map(|event| vec![event]).map_err(|flaws| {
            aggregator.partition.count_rejected(1);
            let flaws = flaws.into_iter();
            Failure::events(flaws.map(|flaw| (vec!["body".into()], flaw)))
        });
    }
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    if elements.len() > REQUEST_EVENTS_MAX {
        return Err(Failure::body(format!(
            "{} events; the limit of a request is {REQUEST_EVENTS_MAX}",
            elements.len()
        )));
    }
    let mut events = Vec::with_capacity(elements.len());
    let mut flawed: Vec<(Vec<Step>, Flaw)> = Vec::new();
    for (at, json) in (0..).zip(&elements) {
        match event::parse(json, bytes_max) {
            Ok(event) => events.push(event),
            Err(flaws) => {
                let loc = || vec!["body".into(), Step::Index(at)];
                flawed.extend(flaws.into_iter().map(|flaw| (loc(), flaw)));
            }
        }
        if flawed.len() >= DETAILS_MAX {
            break;
        }
    }
    if flawed.is_empty() {
        return Ok(events);
    }
    aggregator.partition.count_rejected(elements.len() as u64);
    Err(Failure::events(flawed))
}

/// The text of a body or of a line, or what is wrong with it.
pub(super) fn as_text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map_err(|error| format!("not JSON: no UTF-8 at byte {}", error.valid_up_to()))
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::body(format!("not JSON: {error}"))
}
