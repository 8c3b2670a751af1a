//! Errors as HTTP responses: the only place that chooses their status codes and messages.
//!
//! All errors have one shape, `{"detail": [{"loc": [...], "msg": "..."}]}`: the place, from the outside in,
//! and what a caller can do. Causes stay in the server's log.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{json_response, totals::Totals};
use crate::{
    call::{ARRIVAL_SECONDS_MAX, PROGRESS_BYTES_MIN, PROGRESS_SECONDS},
    event::Violation,
    json::flaw::{FLAWS_MAX, Flaw},
    limits::{
        RETRY_LATER_SECONDS, RETRY_MUCH_LATER_SECONDS, RETRY_SOON_SECONDS, SHARE_WAIT_SECONDS_MAX,
    },
    partition::{CursorError, PublishError, ReadError},
};

/// How many flaws of a request are reported.
pub(super) const DETAILS_MAX: usize = FLAWS_MAX;

/// One part of the path to a flaw: a member name, or an index.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum LocPart {
    Name(Cow<'static, str>),
    Index(u64),
}

impl From<&'static str> for LocPart {
    fn from(name: &'static str) -> Self {
        Self::Name(name.into())
    }
}

/// A flaw and its place.
#[derive(Debug, Serialize)]
struct Detail {
    loc: Vec<LocPart>,
    msg: String,
    /// The reason of the same error over gRPC, if programs act on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    detail: Vec<Detail>,
    retry_after: Option<u64>,
    /// The events that a stream had stored before it failed.
    stored: Option<Totals>,
}

#[derive(Serialize)]
struct ErrorBody {
    detail: Vec<Detail>,
    #[serde(flatten)]
    stored: Option<Totals>,
}

impl Failure {
    fn new(status: StatusCode, loc: impl Into<Vec<LocPart>>, msg: impl Into<String>) -> Self {
        let detail = Detail {
            loc: loc.into(),
            msg: msg.into(),
            reason: None,
        };
        Self {
            status,
            detail: vec![detail],
            retry_after: None,
            stored: None,
        }
    }

    fn unavailable(msg: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, ["server".into()], msg)
        }
    }

    /// Adds what is durable of a stream.
    pub fn after(self, stored: Totals) -> Self {
        Self {
            stored: Some(stored),
            ..self
        }
    }

    /// A body that is not JSON, or not of events.
    pub fn body(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, ["body".into()], msg)
    }

    /// Events that break limits, by place.
    pub fn events(flaws: impl IntoIterator<Item = (Vec<LocPart>, Flaw)>) -> Self {
        let mut too_large = false;
        let mut detail = Vec::new();
        for (mut loc, flaw) in flaws {
            too_large |= flaw.too_large;
            if detail.len() < DETAILS_MAX {
                loc.extend(flaw.field.map(LocPart::Name));
                let msg = flaw.msg;
                detail.push(Detail {
                    loc,
                    msg,
                    reason: None,
                });
            }
        }
        Self {
            status: if too_large {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            },
            detail,
            retry_after: None,
            stored: None,
        }
    }

    /// A parameter of the query.
    pub fn query(name: impl Into<Cow<'static, str>>, msg: impl Into<String>) -> Self {
        let loc = ["query".into(), LocPart::Name(name.into())];
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, loc, msg)
    }

    /// A parameter that breaks a limit.
    pub fn query_limit(violation: Violation) -> Self {
        Self::query(violation.field, violation.description)
    }

    /// A header field.
    fn header(status: StatusCode, name: &'static str, msg: impl Into<String>) -> Self {
        Self::new(status, ["header".into(), name.into()], msg)
    }

    /// A body in an unsupported format.
    pub fn content_type() -> Self {
        Self::header(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-type",
            "send Content-Type: application/json (curl --json) for an event or an array of events, or \
             application/x-ndjson for a stream of them, one a line",
        )
    }

    /// A body that is compressed.
    pub fn content_encoding() -> Self {
        Self::header(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-encoding",
            "compressed bodies are not accepted; send it uncompressed",
        )
    }

    /// A request for a format that does not exist.
    pub fn not_acceptable() -> Self {
        Self::header(
            StatusCode::NOT_ACCEPTABLE,
            "accept",
            "the formats are application/json, application/x-ndjson and text/event-stream",
        )
    }

    /// A `Last-Event-ID` that is a refused cursor.
    pub fn last_cursor(cursor: CursorError) -> Self {
        Self::last_event_id(cursor.to_string()).of_cursor(cursor)
    }

    fn of_cursor(mut self, cursor: CursorError) -> Self {
        if cursor.is_of_another_history() {
            for detail in &mut self.detail {
                detail.reason = Some("CURSOR_OF_ANOTHER_HISTORY");
            }
        }
        self
    }

    /// A `Last-Event-ID` that is not a cursor.
    pub fn last_event_id(msg: impl Into<String>) -> Self {
        Self::header(StatusCode::UNPROCESSABLE_ENTITY, "last-event-id", msg)
    }

    /// A body over the limit.
    pub fn body_too_large(bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ["body".into()],
            format!(
                "more than {bytes_max} bytes, which is the limit of a request (--max-request-bytes); send \
                 fewer events at a time, or a stream of them as application/x-ndjson"
            ),
        )
    }

    /// Events whose encoding is over the limit, though their JSON is not.
    pub fn events_too_large(bytes: usize, bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ["body".into()],
            format!(
                "{bytes} bytes encoded; the limit of a request is {bytes_max} bytes (--max-request-bytes)"
            ),
        )
    }

    /// A line over the limit.
    pub fn line_too_large(line: u64, bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ["body".into(), LocPart::Index(line)],
            format!(
                "a line of more than {bytes_max} bytes, which is the limit (--max-request-bytes)"
            ),
        )
    }

    /// A body that stopped arriving.
    pub fn stalled(what: &str) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            ["body".into()],
            format!(
                "{what} did not arrive within {ARRIVAL_SECONDS_MAX} s, or less than {PROGRESS_BYTES_MIN} bytes of \
                 it within {PROGRESS_SECONDS} s"
            ),
        )
    }

    /// A body that ended early.
    pub fn cut() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            ["body".into()],
            "the connection broke before the end of the body",
        )
    }

    /// A request that waited too long for its share of the ingest budget.
    pub fn overloaded() -> Self {
        Self::unavailable(
            format!(
                "overloaded: no room for the request within {SHARE_WAIT_SECONDS_MAX} s \
                 (--max-ingest-bytes); send it again later"
            ),
            RETRY_SOON_SECONDS,
        )
    }

    /// A response for which there is no memory.
    pub fn too_many_unread() -> Self {
        let msg = "overloaded: too many responses in memory have not been read; try again later";
        Self::unavailable(msg, RETRY_SOON_SECONDS)
    }

    /// A call beyond the limit on calls.
    fn too_many_calls() -> Self {
        let msg = "too many calls are open; close some on this connection, or try again later";
        Self::unavailable(msg, RETRY_LATER_SECONDS)
    }

    /// A reader beyond the limit.
    pub fn too_many_readers(max: usize) -> Self {
        Self::unavailable(
            format!("{max} readers are open; the limit is {max} (--max-readers)"),
            RETRY_LATER_SECONDS,
        )
    }

    /// A request that came too late, because the server is stopping.
    pub fn stopping() -> Self {
        (&PublishError::Stopping).into()
    }
}

impl From<&PublishError> for Failure {
    fn from(error: &PublishError) -> Self {
        let msg = error.to_string();
        match error {
            PublishError::TopicLimit { .. } => Self::body(msg),
            PublishError::DiskFull
            | PublishError::IndexBehind
            | PublishError::IndexUnreadable
            | PublishError::LogBehind => Self::unavailable(msg, RETRY_LATER_SECONDS),
            PublishError::Failed | PublishError::MaybeStored | PublishError::Bug => {
                Self::unavailable(msg, RETRY_MUCH_LATER_SECONDS)
            }
            PublishError::Fenced | PublishError::Stopping => {
                Self::unavailable(msg, RETRY_SOON_SECONDS)
            }
        }
    }
}

impl From<&ReadError> for Failure {
    fn from(error: &ReadError) -> Self {
        let msg = error.to_string();
        match error {
            ReadError::Cursor(cursor) => {
                Self::query("cursor", cursor.to_string()).of_cursor(*cursor)
            }
            ReadError::LogDamaged(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, ["server".into()], msg)
            }
            ReadError::LogUnreadable | ReadError::IndexUnreadable => {
                Self::unavailable(msg, RETRY_LATER_SECONDS)
            }
            ReadError::IndexDamaged | ReadError::Bug => {
                Self::unavailable(msg, RETRY_MUCH_LATER_SECONDS)
            }
            ReadError::Stopping => Self::unavailable(msg, RETRY_SOON_SECONDS),
        }
    }
}

impl Failure {
    /// The failure as the data of an event in a stream, whose status has already been sent.
    pub fn into_json(self) -> String {
        serde_json::to_string(&self.into_body()).expect("an answer is JSON")
    }

    fn into_body(self) -> ErrorBody {
        ErrorBody {
            detail: self.detail,
            stored: self.stored,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = json_response(status, &self.into_body());
        if let Some(seconds) = retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The response to a call beyond the limit on calls.
pub(crate) fn too_many_calls() -> Response<Body> {
    Failure::too_many_calls().into_response()
}

/// The response to an unknown path.
pub(crate) async fn not_found() -> Response<Body> {
    Failure::new(
        StatusCode::NOT_FOUND,
        ["path".into()],
        "the paths are /publish, /events, /stats, /healthz, /readyz and /openapi.json",
    )
    .into_response()
}

/// The response to a method that a path does not have; the router adds the list of those it has.
pub(super) async fn method_not_allowed(method: Method) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        ["method".into()],
        format!("no {method} here; see the Allow header"),
    )
}
