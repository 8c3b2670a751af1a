//! The position of a reader, as readers carry it: opaque outside this file.
//!
//! Format: hex of `version (1), log id (8, LE), sequence (8, LE), crc32c of these 17 bytes (4, LE)`, where
//! sequence is that of the last event the reader has passed, 0 before the first. The id ties a cursor
//! to its log, the checksum catches what was cut or mistyped.

use std::fmt::Write as _;

use thiserror::Error;

use crate::event::Sequence;

const VERSION: u8 = 1;
const BODY_BYTES: usize = 1 + 8 + 8;
const BYTES: usize = BODY_BYTES + 4;

/// Why a cursor is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CursorError {
    /// Not a text that a reader gave out.
    #[error("not a cursor of this server; take it unchanged from what the server sent")]
    Malformed,
    /// Written by a server with another log.
    #[error("a cursor of another log; this data directory did not give it out")]
    OtherLog,
    /// Points past the durable tail.
    #[error("a cursor past the durable tail of this log")]
    PastTail,
}

/// The cursor of log `log_id` after the event at `sequence`.
pub fn encode(log_id: u64, sequence: Sequence) -> String {
    let mut body = [VERSION; BODY_BYTES];
    body[1..9].copy_from_slice(&log_id.to_le_bytes());
    body[9..].copy_from_slice(&sequence.to_le_bytes());
    with_checksum(&body)
}

fn with_checksum(body: &[u8; BODY_BYTES]) -> String {
    let crc = crc32c::crc32c(body).to_le_bytes();
    body.iter()
        .chain(&crc)
        .fold(String::with_capacity(2 * BYTES), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}

/// The text of a cursor with this body, its version apart.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn repaired(mut body: [u8; BODY_BYTES]) -> String {
    body[0] = VERSION;
    with_checksum(&body)
}

/// The sequence that `cursor` stands after, if log `log_id` gave it out.
pub fn decode(cursor: &str, log_id: u64) -> Result<Sequence, CursorError> {
    let bytes = from_hex(cursor).ok_or(CursorError::Malformed)?;
    let (body, crc) = bytes.split_at(BODY_BYTES);
    if body[0] != VERSION || crc32c::crc32c(body).to_le_bytes() != crc {
        return Err(CursorError::Malformed);
    }
    let number = |at: usize| {
        let bytes = body[at..at + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(bytes)
    };
    if number(1) != log_id {
        return Err(CursorError::OtherLog);
    }
    Ok(number(9))
}

fn from_hex(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(log_id: u64, sequence: Sequence) {
            prop_assert_eq!(decode(&encode(log_id, sequence), log_id), Ok(sequence));
        }

        #[test]
        fn another_log_refuses(log_id: u64, other: u64, sequence: Sequence) {
            prop_assume!(log_id != other);
            let cursor = encode(log_id, sequence);
            prop_assert_eq!(decode(&cursor, other), Err(CursorError::OtherLog));
        }

        #[test]
        fn a_changed_digit_is_noticed(sequence: Sequence, at in 0..2 * BYTES, digit in 0..16u32) {
            let cursor = encode(7, sequence);
            let mut changed: Vec<char> = cursor.chars().collect();
            changed[at] = char::from_digit(digit, 16).expect("a digit");
            let changed: String = changed.into_iter().collect();
            prop_assume!(changed != cursor);
            prop_assert_eq!(decode(&changed, 7), Err(CursorError::Malformed));
        }

        #[test]
        fn garbage_is_refused(text in ".{0,60}") {
            prop_assert_eq!(decode(&text, 7), Err(CursorError::Malformed));
        }
    }
}
