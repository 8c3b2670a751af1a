//! What is wrong with an event in JSON, and where.

use std::borrow::Cow;

use crate::event::Violation;

/// How many flaws of an event are remembered, beside those of its fields.
pub(crate) const FLAWS_MAX: usize = 100;
/// How much of a name that is no field is repeated, in characters.
const UNKNOWN_NAME_CHARS_MAX: usize = 64;

/// What is wrong with an event.
#[derive(Debug)]
pub(crate) struct Flaw {
    /// The field, unless it is the event as a whole.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong and what the limit is.
    pub msg: String,
    /// Whether it is the limit on the size of an event.
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

/// A name that no field has.
pub(super) fn unknown(name: &str) -> Flaw {
    let name: String = name.chars().take(UNKNOWN_NAME_CHARS_MAX).collect();
    Flaw {
        field: Some(name.into()),
        ..Flaw::of_event(
            "not a field of an event; these are topic, event_id, timestamp, source, payload, data, attributes",
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
