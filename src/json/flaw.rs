//! A fault in an event in JSON, and its place.

use std::borrow::Cow;

use crate::event::Violation;

/// How many flaws of an event are kept, beside those of its fields.
pub(crate) const FLAWS_MAX: usize = 100;
/// How much of an unknown name is repeated, in characters.
const UNKNOWN_NAME_CHARS_MAX: usize = 64;

/// A fault in an event.
#[derive(Debug)]
pub(crate) struct Flaw {
    /// The field, unless the fault concerns the whole event.
    pub field: Option<Cow<'static, str>>,
    /// The fault and the limit.
    pub msg: String,
    /// Whether the fault is the size of the event.
    pub too_large: bool,
}

impl Flaw {
    pub fn of(field: &'static str, msg: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            msg: msg.into(),
            too_large: false,
        }
    }

    pub fn of_event(msg: impl Into<String>) -> Self {
        Self {
            field: None,
            msg: msg.into(),
            too_large: false,
        }
    }
}

impl From<Violation> for Flaw {
    fn from(violation: Violation) -> Self {
        Self::of(violation.field, violation.description)
    }
}

/// A name of no known field.
pub(super) fn unknown(name: &str) -> Flaw {
    let name: String = name.chars().take(UNKNOWN_NAME_CHARS_MAX).collect();
    Flaw {
        field: Some(name.into()),
        ..Flaw::of_event(
            "not a field of an event; the fields are topic, event_id, timestamp, source, payload, data, attributes",
        )
    }
}

/// An event over the limit on its size.
pub(super) fn too_large(bytes_max: usize) -> Flaw {
    Flaw {
        too_large: true,
        ..Flaw::of_event(format!(
            "more than {bytes_max} bytes encoded, which is the limit of an event (--max-event-bytes)"
        ))
    }
}
