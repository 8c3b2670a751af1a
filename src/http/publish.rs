//! POST /publish: one event, an array of them, or a stream of lines.

use std::fmt;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    error::{DETAILS_MAX, Failure, LocPart},
    json_response, lines,
    totals::Totals,
    upload::Upload,
};
use crate::{
    aggregator::Aggregator,
    event::Event,
    json::{
        event::{self as json, Names, as_text},
        flaw::Flaw,
    },
    limits::REQUEST_EVENTS_MAX,
    submitter::Submitter,
};

const JSON: &str = "application/json";
pub(super) const LINES: &str = "application/x-ndjson";

#[derive(Serialize)]
struct PublishBody {
    status: &'static str,
    #[serde(flatten)]
    totals: Totals,
}

pub(super) async fn publish(State(aggregator): State<Aggregator>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    let mut upload = Upload::new(&aggregator, &head);
    let published = match format(&head.headers) {
        Ok(Format::Json) => publish_json(&aggregator, &mut upload).await,
        Ok(Format::Lines) => lines::publish(&aggregator, &mut upload).await,
        Err(failure) => Err(failure),
    };
    match published {
        Ok(totals) => json_response(
            StatusCode::OK,
            &PublishBody {
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

/// Refuses the content types that a page of another origin could send without a preflight: forms, or none.
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
    let events = parse_body(&body, aggregator.limits.event_bytes_max).map_err(|refused| {
        aggregator.partition.count_rejected(refused.events);
        refused.failure
    })?;
    drop(body);
    upload.cover_events(&mut share, &events).await?;
    let mut submitter = Submitter::new(&aggregator.partition);
    let submitted = submitter.submit(events, share).await;
    submitted.map_err(|error| Failure::from(&error))?;
    let finished = submitter.finish().await;
    finished.map_err(|error| Failure::from(&error))?;
    Ok(submitter.totals().into())
}

/// Why a body is refused as a whole.
pub(super) struct Refused {
    /// How many events count as rejected: a bad one rejects its whole request.
    events: u64,
    pub failure: Failure,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { events: 0, failure }
    }
}

/// All events of a body, or its flaws.
pub(super) fn parse_body(body: &[u8], event_bytes_max: usize) -> Result<Vec<Event>, Refused> {
    let text = as_text(body).map_err(Failure::body)?;
    if !text.trim_start().starts_with('[') {
        let raw: &RawValue = serde_json::from_str(text).map_err(|error| not_json(&error))?;
        let parsed = json::parse(raw, Names::Listed, event_bytes_max);
        return parsed.map(|event| vec![event]).map_err(|flaws| {
            let flaws = flaws.into_iter();
            let failure = Failure::events(flaws.map(|flaw| (vec!["body".into()], flaw)));
            Refused { events: 1, failure }
        });
    }
    let Elements { first, count } = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    if count > REQUEST_EVENTS_MAX {
        let msg = format!("{count} events; the limit of a request is {REQUEST_EVENTS_MAX}");
        return Err(Failure::body(msg).into());
    }
    let mut events = Vec::with_capacity(count);
    let mut flawed: Vec<(Vec<LocPart>, Flaw)> = Vec::new();
    for (at, raw) in (0..).zip(first) {
        match json::parse(raw, Names::Listed, event_bytes_max) {
            Ok(event) => events.push(event),
            Err(flaws) => {
                let loc = || vec!["body".into(), LocPart::Index(at)];
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
    Err(Refused {
        events: count as u64,
        failure: Failure::events(flawed),
    })
}

/// The elements of an array, unparsed. A small body can have millions: those beyond the limit of a request
/// are only counted.
struct Elements<'a> {
    first: Vec<&'a RawValue>,
    count: usize,
}

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ElementsVisitor)
    }
}

struct ElementsVisitor;

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Elements<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < REQUEST_EVENTS_MAX
            && let Some(element) = seq.next_element()?
        {
            first.push(element);
        }
        let mut count = first.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Elements { first, count })
    }
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::body(format!("not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_beyond_the_limit_are_only_counted() {
        let count = 3 * REQUEST_EVENTS_MAX;
        let json = format!("[{}0]", "0,".repeat(count - 1));
        let elements: Elements<'_> = serde_json::from_str(&json).expect("JSON");
        assert_eq!(elements.count, count);
        assert_eq!(elements.first.len(), REQUEST_EVENTS_MAX);
        let refused = parse_body(json.as_bytes(), 1024).expect_err("refused");
        let json = refused.failure.into_json();
        assert!(
            json.contains("49152 events; the limit of a request is 16384"),
            "{json}"
        );
        assert!(parse_body(b"[0,]", 1024).is_err());
        assert!(parse_body(b"[", 1024).is_err());
    }
}
