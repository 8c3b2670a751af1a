//! Errors as a gRPC status: the only place that chooses codes and words for them.
//!
//! Messages tell what a caller can do; causes stay in the server's log.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    event::Violation,
    partition::{PublishError, ReadError},
};

/// `google.rpc.ErrorInfo.domain` of all errors.
const DOMAIN: &str = "oncelog";

/// INVALID_ARGUMENT for a field of a unary request.
pub(super) fn invalid_field(violation: &Violation) -> Status {
    let mut details =
        ErrorDetails::with_bad_request_violation(violation.field, violation.description.as_str());
    let metadata = [("field".to_owned(), violation.field.to_owned())];
    details.set_error_info("INVALID_FIELD", DOMAIN, metadata);
    Status::with_error_details(Code::InvalidArgument, violation.to_string(), details)
}

/// INVALID_ARGUMENT for an event of a publish request; both indexes count from 0.
pub(super) fn invalid_event(request: u64, event: usize, violation: &Violation) -> Status {
    let field = format!("events[{event}].{}", violation.field);
    let mut details =
        ErrorDetails::with_bad_request_violation(field, violation.description.as_str());
    let metadata = [
        ("request".to_owned(), request.to_string()),
        ("event".to_owned(), event.to_string()),
        ("field".to_owned(), violation.field.to_owned()),
    ];
    details.set_error_info("INVALID_EVENT", DOMAIN, metadata);
    let message = format!(
        "request {request}, event {event} (counted from 0): {violation}; \
         no event of this request is stored, those of earlier requests are durable"
    );
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// INVALID_ARGUMENT for a publish request as a whole; its index counts from 0.
pub(super) fn invalid_request(request: u64, violation: &Violation) -> Status {
    let mut details =
        ErrorDetails::with_bad_request_violation(violation.field, violation.description.as_str());
    let metadata = [("request".to_owned(), request.to_string())];
    details.set_error_info("INVALID_REQUEST", DOMAIN, metadata);
    let message = format!("request {request} (counted from 0): {violation}");
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// DEADLINE_EXCEEDED for a request that stopped arriving.
pub(super) fn stalled_request(request: u64, seconds: u64) -> Status {
    Status::deadline_exceeded(format!(
        "request {request} (counted from 0) did not arrive within {seconds} s of its beginning"
    ))
}

/// INVALID_ARGUMENT for a request that ends before its length.
pub(super) fn cut_request(requests: u64) -> Status {
    Status::invalid_argument(format!(
        "the stream ended within a request, after {requests} that had begun"
    ))
}

/// UNAVAILABLE for a request that waited too long for its share of the ingest budget.
pub(super) fn overloaded(seconds: u64) -> Status {
    let message = format!(
        "overloaded: no room for the request within {seconds} s (--max-ingest-bytes); send it again later"
    );
    Status::with_error_details(Code::Unavailable, message, info("OVERLOADED"))
}

/// RESOURCE_EXHAUSTED for a reader beyond the limit.
pub(super) fn too_many_readers(max: usize) -> Status {
    let details = info("TOO_MANY_READERS");
    let message = format!("{max} ListEvents streams are open; the limit is {max} (--max-readers)");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// UNAVAILABLE for a stream that ends because the server stops.
pub(super) fn stopping() -> Status {
    publish(&PublishError::Stopping)
}

/// The status of a request that was not acknowledged.
pub(super) fn publish(error: &PublishError) -> Status {
    let (code, reason) = match error {
        PublishError::TopicLimit { .. } => (Code::ResourceExhausted, "TOO_MANY_TOPICS"),
        PublishError::DiskFull => (Code::ResourceExhausted, "DISK_FULL"),
        PublishError::IndexBehind => (Code::Unavailable, "INDEX_BEHIND"),
        PublishError::LogBehind => (Code::Unavailable, "LOG_BEHIND"),
        PublishError::Bug => (Code::Unavailable, "SERVER_BUG"),
        PublishError::Failed => (Code::Unavailable, "STORAGE_FAILED"),
        PublishError::Stopping => (Code::Unavailable, "STOPPING"),
    };
    Status::with_error_details(code, error.to_string(), info(reason))
}

/// The status of a read that failed.
pub(super) fn read(error: &ReadError) -> Status {
    let (code, reason) = match error {
        ReadError::Cursor(cursor) => {
            return invalid_field(&Violation::new("cursor", cursor.to_string()));
        }
        ReadError::LogDamaged(_) => (Code::DataLoss, "LOG_DAMAGED"),
        ReadError::LogUnreadable => (Code::Unavailable, "LOG_UNREADABLE"),
        ReadError::IndexDamaged => (Code::Unavailable, "INDEX_DAMAGED"),
        ReadError::IndexUnreadable => (Code::Unavailable, "INDEX_UNREADABLE"),
        ReadError::Bug => (Code::Unavailable, "SERVER_BUG"),
        ReadError::Stopping => (Code::Unavailable, "STOPPING"),
    };
    Status::with_error_details(code, error.to_string(), info(reason))
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}
