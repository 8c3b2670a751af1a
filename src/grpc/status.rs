//! Errors as gRPC statuses: the only place that chooses their codes and messages.
//!
//! Messages say what a caller can do; causes stay in the server's log.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::reason::Reason;
use crate::{
    call::{ARRIVAL_SECONDS_MAX, PROGRESS_BYTES_MIN, PROGRESS_SECONDS, UNREAD_SECONDS_MAX},
    event::Violation,
    limits::{RETRY_LATER_SECONDS, RETRY_MUCH_LATER_SECONDS, RETRY_SOON_SECONDS},
    partition::{CursorError, PublishError, ReadError},
};

/// `google.rpc.ErrorInfo.domain` of all errors.
const DOMAIN: &str = "oncelog";

/// After how many seconds to send again; never if somebody has to act first.
const NEVER: Option<u64> = None;
const SOON: Option<u64> = Some(RETRY_SOON_SECONDS);
const LATER: Option<u64> = Some(RETRY_LATER_SECONDS);
const MUCH_LATER: Option<u64> = Some(RETRY_MUCH_LATER_SECONDS);

/// INVALID_ARGUMENT for a field of a unary request.
pub(super) fn invalid_field(violation: &Violation) -> Status {
    let mut details =
        ErrorDetails::with_bad_request_violation(violation.field, violation.description.as_str());
    let metadata = [("field".to_owned(), violation.field.to_owned())];
    details.set_error_info(Reason::InvalidField.name(), DOMAIN, metadata);
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
    details.set_error_info(Reason::InvalidEvent.name(), DOMAIN, metadata);
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
    details.set_error_info(Reason::InvalidRequest.name(), DOMAIN, metadata);
    let message = format!("request {request} (counted from 0): {violation}");
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// DEADLINE_EXCEEDED for a request that stopped arriving.
pub(super) fn stalled_request(request: u64) -> Status {
    let message = format!(
        "request {request} (counted from 0) did not arrive within {ARRIVAL_SECONDS_MAX} s of its start, or \
         less than {PROGRESS_BYTES_MIN} bytes of it within {PROGRESS_SECONDS} s"
    );
    failed(
        Code::DeadlineExceeded,
        Reason::RequestStalled,
        SOON,
        message,
    )
}

/// INTERNAL for a compressed request whose stream names no encoding; the code is gRPC's.
pub(super) fn no_encoding() -> Status {
    let message = "a compressed request without a grpc-encoding header";
    failed(Code::Internal, Reason::InvalidRequest, NEVER, message)
}

/// INVALID_ARGUMENT for a request shorter than announced.
pub(super) fn cut_request(requests: u64) -> Status {
    let message = format!("the stream ended within a request, after {requests} that had begun");
    failed(Code::InvalidArgument, Reason::RequestCut, NEVER, message)
}

/// NOT_FOUND for a key that is not stored.
pub(super) fn no_such_event() -> Status {
    let message = "no event with this topic and event_id is stored";
    failed(Code::NotFound, Reason::NoSuchEvent, NEVER, message)
}

/// UNAVAILABLE for a response that the client does not read.
pub(crate) fn response_not_read() -> Status {
    let message = format!(
        "no part of the response was read for {UNREAD_SECONDS_MAX} s; call again, a list from its last cursor"
    );
    failed(Code::Unavailable, Reason::ResponseNotRead, SOON, message)
}

/// UNAVAILABLE for a request that waited too long for its share of the ingest budget.
pub(super) fn overloaded(seconds: u64) -> Status {
    let message = format!(
        "overloaded: no room for the request within {seconds} s (--max-ingest-bytes); send it again later"
    );
    failed(Code::Unavailable, Reason::Overloaded, SOON, message)
}

/// UNAVAILABLE for a response for which there is no memory.
pub(super) fn too_many_unread() -> Status {
    let message = "overloaded: too many responses in memory have not been read; try again later";
    failed(Code::Unavailable, Reason::Overloaded, SOON, message)
}

/// UNAVAILABLE for a call beyond the limit on calls.
pub(crate) fn too_many_calls() -> Status {
    let message = "too many calls are open; close some on this connection, or try again later";
    failed(Code::Unavailable, Reason::TooManyCalls, LATER, message)
}

/// RESOURCE_EXHAUSTED for a reader beyond the limit.
pub(super) fn too_many_readers(max: usize) -> Status {
    let message = format!(
        "{max} streams of stored events are open, which is the limit (--max-readers); try again later"
    );
    failed(
        Code::ResourceExhausted,
        Reason::TooManyReaders,
        LATER,
        message,
    )
}

/// UNAVAILABLE for a stream that ends because the server stops.
pub(super) fn stopping() -> Status {
    publish(&PublishError::Stopping)
}

/// The status of a request that was not acknowledged.
pub(super) fn publish(error: &PublishError) -> Status {
    let (code, reason, again) = match error {
        PublishError::TopicLimit { .. } => (Code::ResourceExhausted, Reason::TooManyTopics, NEVER),
        PublishError::DiskFull => (Code::ResourceExhausted, Reason::DiskFull, LATER),
        PublishError::IndexBehind => (Code::Unavailable, Reason::IndexBehind, LATER),
        PublishError::IndexUnreadable => (Code::Unavailable, Reason::IndexUnreadable, LATER),
        PublishError::LogBehind => (Code::Unavailable, Reason::LogBehind, LATER),
        PublishError::Failed | PublishError::MaybeStored => {
            (Code::Unavailable, Reason::StorageFailed, MUCH_LATER)
        }
        // To a client of this server it is the same as a stop.
        PublishError::Fenced => (Code::Unavailable, Reason::Stopping, SOON),
        PublishError::Bug => (Code::Unavailable, Reason::ServerBug, MUCH_LATER),
        PublishError::Stopping => (Code::Unavailable, Reason::Stopping, SOON),
    };
    failed(code, reason, again, error.to_string())
}

/// The status of a failed read.
pub(super) fn read(error: &ReadError) -> Status {
    let (code, reason, again) = match error {
        ReadError::Cursor(cursor) => return bad_cursor(*cursor),
        ReadError::LogDamaged(_) => (Code::DataLoss, Reason::LogDamaged, NEVER),
        ReadError::LogUnreadable => (Code::Unavailable, Reason::LogUnreadable, LATER),
        ReadError::IndexDamaged => (Code::Unavailable, Reason::IndexDamaged, MUCH_LATER),
        ReadError::IndexUnreadable => (Code::Unavailable, Reason::IndexUnreadable, LATER),
        ReadError::Bug => (Code::Unavailable, Reason::ServerBug, MUCH_LATER),
        ReadError::Stopping => (Code::Unavailable, Reason::Stopping, SOON),
    };
    failed(code, reason, again, error.to_string())
}

/// A status with its reason, and after how many seconds to send again if that helps.
fn failed(code: Code, reason: Reason, again: Option<u64>, message: impl Into<String>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason.name(), DOMAIN, HashMap::new());
    if let Some(seconds) = again {
        details.set_retry_info(Some(Duration::from_secs(seconds)));
    }
    Status::with_error_details(code, message, details)
}

/// INVALID_ARGUMENT for a cursor.
fn bad_cursor(cursor: CursorError) -> Status {
    let violation = Violation::new("cursor", cursor.to_string());
    if !cursor.is_of_another_history() {
        return invalid_field(&violation);
    }
    let mut details =
        ErrorDetails::with_bad_request_violation(violation.field, violation.description.as_str());
    let metadata = [("field".to_owned(), violation.field.to_owned())];
    details.set_error_info(Reason::CursorOfAnotherHistory.name(), DOMAIN, metadata);
    Status::with_error_details(Code::InvalidArgument, violation.to_string(), details)
}
