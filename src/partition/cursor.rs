//! The position of a reader, in the form that readers carry: opaque outside this file.
//!
//! Format: hex of `version (1), log id (8, LE), sequence (8, LE), checksum (4, LE), crc32c of these 21 bytes (4,
//! LE)`. The sequence is that of the last event the reader has passed, 0 before the first; the checksum is that of
//! the batch holding this event, 0 before the first. The id ties a cursor to its log. The checksum ties it to its
//! history: a copy of the log that has diverged, or a log that lost its end, has another batch there. The crc
//! catches cut or mistyped cursors.
//!
//! Version 1, which has no checksum of a batch, is still accepted.

use std::fmt::Write as _;

use thiserror::Error;

use crate::{event::Sequence, log::Batch};

const VERSION: u8 = 2;
const BODY_BYTES: usize = 1 + 8 + 8 + 4;
/// The version without a checksum of a batch.
const VERSION_1: u8 = 1;
const BODY_BYTES_1: usize = 1 + 8 + 8;
const CRC_BYTES: usize = 4;
const BYTES_MAX: usize = BODY_BYTES + CRC_BYTES;

/// Why a cursor is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CursorError {
    /// Not a text that a reader produced.
    #[error("not a cursor of this server; pass it unchanged as the server sent it")]
    Malformed,
    /// Written by a server with another log.
    #[error(
        "a cursor of another log, which this server does not have; {}",
        WHAT_TO_DO
    )]
    OtherLog,
    /// Points past the durable tail: the events read there are not here.
    #[error(
        "a cursor past the end of this log, which was restored or has lost its end; {}",
        WHAT_TO_DO
    )]
    PastTail,
    /// The log has other events at its position.
    #[error(
        "a cursor of another history: this log was restored or copied, and has other events at its position; {}",
        WHAT_TO_DO
    )]
    OtherHistory,
}

impl CursorError {
    /// Whether the cursor is well-formed but its history is not this log's.
    pub fn is_of_another_history(self) -> bool {
        match self {
            Self::Malformed => false,
            Self::OtherLog | Self::PastTail | Self::OtherHistory => true,
        }
    }
}

const WHAT_TO_DO: &str = "read from the start or from an earlier cursor that this server accepts, and skip the events you have, by event_id";

/// A position in a log: after an event, with the checksum of the batch that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The sequence of the event, 0 before the first.
    pub sequence: Sequence,
    /// Proves the history; 0 before the first event.
    pub checksum: u32,
}

impl Mark {
    /// Before the first event, where all logs are the same.
    pub const START: Self = Self {
        sequence: 0,
        checksum: 0,
    };

    /// After the last event of `batch`.
    pub fn after(batch: &Batch) -> Self {
        Self {
            sequence: batch.end_sequence() - 1,
            checksum: batch.checksum(),
        }
    }

    /// The sequence of the next event.
    pub fn next(self) -> Sequence {
        self.sequence + 1
    }
}

/// A decoded cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The sequence of the last event passed.
    pub sequence: Sequence,
    /// The checksum of the batch with this sequence. A cursor of version 1 has none.
    pub checksum: Option<u32>,
}

impl Cursor {
    /// The cursor's mark, if `checksum` is that of the batch at its position.
    pub fn prove(self, checksum: u32) -> Result<Mark, CursorError> {
        if self.checksum.is_some_and(|expected| expected != checksum) {
            return Err(CursorError::OtherHistory);
        }
        Ok(Mark {
            sequence: self.sequence,
            checksum,
        })
    }
}

/// The cursor of log `log_id` at `mark`.
pub fn encode(log_id: u64, mark: Mark) -> String {
    let mut body = [VERSION; BODY_BYTES];
    body[1..9].copy_from_slice(&log_id.to_le_bytes());
    body[9..17].copy_from_slice(&mark.sequence.to_le_bytes());
    body[17..].copy_from_slice(&mark.checksum.to_le_bytes());
    with_crc(&body)
}

fn with_crc(body: &[u8]) -> String {
    let crc = crc32c::crc32c(body).to_le_bytes();
    body.iter()
        .chain(&crc)
        .fold(String::with_capacity(2 * BYTES_MAX), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}

/// A cursor of the current version, after `change` has altered the id of its log and its mark.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn forged(cursor: &str, change: impl FnOnce(&mut u64, &mut Mark)) -> Option<String> {
    let bytes = from_hex(cursor)?;
    let mut id = u64::from_le_bytes(*bytes.get(1..)?.first_chunk()?);
    let Cursor { sequence, checksum } = decode(cursor, id).ok()?;
    let checksum = checksum?;
    let mut mark = Mark { sequence, checksum };
    change(&mut id, &mut mark);
    Some(encode(id, mark))
}

/// The text of a cursor of version 1, as older servers produced it.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn encode_1(log_id: u64, sequence: Sequence) -> String {
    let mut body = [VERSION_1; BODY_BYTES_1];
    body[1..9].copy_from_slice(&log_id.to_le_bytes());
    body[9..].copy_from_slice(&sequence.to_le_bytes());
    with_crc(&body)
}

/// The text of a cursor with this body and the right version.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn repaired(data: &[u8]) -> Option<String> {
    let mut body = data
        .get(..BODY_BYTES)
        .or(data.get(..BODY_BYTES_1))?
        .to_vec();
    body[0] = match body.len() {
        BODY_BYTES => VERSION,
        _ => VERSION_1,
    };
    Some(with_crc(&body))
}

/// Decodes `cursor`, if log `log_id` produced it.
pub fn decode(cursor: &str, log_id: u64) -> Result<Cursor, CursorError> {
    let bytes = from_hex(cursor).ok_or(CursorError::Malformed)?;
    let (body, crc) = bytes
        .split_last_chunk::<CRC_BYTES>()
        .ok_or(CursorError::Malformed)?;
    let version = match body.len() {
        BODY_BYTES => VERSION,
        BODY_BYTES_1 => VERSION_1,
        _ => return Err(CursorError::Malformed),
    };
    if body[0] != version || crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(CursorError::Malformed);
    }
    let number = |at: usize| {
        let bytes = body[at..at + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(bytes)
    };
    if number(1) != log_id {
        return Err(CursorError::OtherLog);
    }
    let checksum = body.get(BODY_BYTES_1..).and_then(<[u8]>::first_chunk);
    Ok(Cursor {
        sequence: number(9),
        checksum: checksum.map(|checksum| u32::from_le_bytes(*checksum)),
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() > 2 * BYTES_MAX || !text.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Vec::with_capacity(BYTES_MAX);
    for pair in text.as_bytes().chunks_exact(2) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(sequence: Sequence, checksum: u32) -> Mark {
        Mark { sequence, checksum }
    }

    proptest! {
        #[test]
        fn round_trips(log_id: u64, sequence: Sequence, checksum: u32) {
            let cursor = decode(&encode(log_id, mark(sequence, checksum)), log_id);
            prop_assert_eq!(cursor, Ok(Cursor { sequence, checksum: Some(checksum) }));
        }

        #[test]
        fn version_1_is_taken(log_id: u64, sequence: Sequence, checksum: u32) {
            let cursor = decode(&encode_1(log_id, sequence), log_id);
            prop_assert_eq!(cursor, Ok(Cursor { sequence, checksum: None }));
            let proven = cursor.expect("decoded").prove(checksum);
            prop_assert_eq!(proven, Ok(mark(sequence, checksum)));
        }

        #[test]
        fn another_history_refuses(sequence: Sequence, checksum: u32, other: u32) {
            let cursor = decode(&encode(7, mark(sequence, checksum)), 7).expect("decoded");
            prop_assert_eq!(cursor.prove(checksum), Ok(mark(sequence, checksum)));
            prop_assume!(checksum != other);
            prop_assert_eq!(cursor.prove(other), Err(CursorError::OtherHistory));
        }

        #[test]
        fn another_log_refuses(log_id: u64, other: u64, sequence: Sequence, checksum: u32) {
            prop_assume!(log_id != other);
            for cursor in [encode(log_id, mark(sequence, checksum)), encode_1(log_id, sequence)] {
                prop_assert_eq!(decode(&cursor, other), Err(CursorError::OtherLog));
            }
        }

        #[test]
        fn a_changed_digit_is_noticed(
            sequence: Sequence,
            checksum: u32,
            at in any::<prop::sample::Index>(),
            digit in 0..16u32,
        ) {
            for cursor in [encode(7, mark(sequence, checksum)), encode_1(7, sequence)] {
                let mut changed: Vec<char> = cursor.chars().collect();
                let at = at.index(changed.len());
                changed[at] = char::from_digit(digit, 16).expect("a digit");
                let changed: String = changed.into_iter().collect();
                if changed != cursor {
                    prop_assert_eq!(decode(&changed, 7), Err(CursorError::Malformed));
                }
            }
        }

        #[test]
        fn another_length_is_refused(
            sequence: Sequence,
            checksum: u32,
            more in "[0-9a-f]{1,9}",
            fewer in 1..9usize,
        ) {
            for cursor in [encode(7, mark(sequence, checksum)), encode_1(7, sequence)] {
                let longer = format!("{cursor}{more}");
                prop_assert_eq!(decode(&longer, 7), Err(CursorError::Malformed));
                let shorter = &cursor[..cursor.len() - fewer];
                prop_assert_eq!(decode(shorter, 7), Err(CursorError::Malformed));
            }
        }

        #[test]
        fn garbage_is_refused(text in ".{0,60}") {
            prop_assert_eq!(decode(&text, 7), Err(CursorError::Malformed));
        }
    }
}
