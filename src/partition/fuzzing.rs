//! Fuzz targets of a partition: cursors, and the file of counters.

use super::{
    cursor::{self, CursorError, Mark},
    stats::{self, Snapshot, Stats},
};

/// Decodes the input as a cursor, unchanged and with the right version and checksum.
pub fn cursor(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        decode_cursor(text);
    }
    if let Some(repaired) = cursor::repaired(data) {
        decode_cursor(&repaired);
    }
}

fn decode_cursor(text: &str) {
    const LOG_ID: u64 = u64::from_le_bytes(*b"a log id");
    match cursor::decode(text, LOG_ID) {
        Ok(decoded) => {
            let sequence = decoded.sequence;
            let again = match decoded.checksum {
                Some(checksum) => cursor::encode(LOG_ID, Mark { sequence, checksum }),
                None => cursor::encode_1(LOG_ID, sequence),
            };
            assert!(again.eq_ignore_ascii_case(text), "{again} was {text}");
            let other = cursor::decode(text, !LOG_ID);
            assert_eq!(other, Err(CursorError::OtherLog));
        }
        Err(error) => assert!(matches!(
            error,
            CursorError::Malformed | CursorError::OtherLog
        )),
    }
}

/// Parses the input as the file of counters, unchanged and with the right checksum.
pub fn counters(data: &[u8]) {
    read_counters(data);
    if let Some(repaired) = stats::repaired(data) {
        read_counters(&repaired);
    }
}

fn read_counters(data: &[u8]) {
    let snapshot = match Snapshot::parse(data) {
        Ok(snapshot) => snapshot,
        Err(reason) => {
            assert!(!reason.is_empty());
            return;
        }
    };
    let stats = Stats::new(snapshot.clone());
    assert_eq!(stats.snapshot(), snapshot);
    assert_eq!(stats.tail(), snapshot.tail);
    let (counters, topics) = stats.totals();
    assert_eq!(
        counters.received,
        counters.unique_processed + counters.duplicate_dropped + counters.rejected
    );
    assert_eq!(stats.topics("", usize::MAX).len(), topics);
    assert_eq!(Snapshot::parse(&snapshot.encode()), Ok(snapshot));
}

/// Lists topics as GetStats does.
pub(crate) fn list_topics(prefix: &str, max: usize) {
    const TOPICS: &[u8] = br#"{"version":2,"tail":1,"counters":{"received":0,"unique_processed":0,"duplicate_dropped":0,"conflicts":0,"rejected":0},"topics":{"a":{"unique_processed":0,"duplicate_dropped":0,"last_received_at":0},"ab":{"unique_processed":0,"duplicate_dropped":0,"last_received_at":0},"\u00e9":{"unique_processed":0,"duplicate_dropped":0,"last_received_at":0}}}"#;
    let topics = stats::repaired(TOPICS).expect("JSON");
    let stats = Stats::new(Snapshot::parse(&topics).expect("balanced"));
    let all = stats.topics("", usize::MAX);
    let listed = stats.topics(prefix, max);
    let expected = all
        .iter()
        .filter(|(topic, _)| topic.as_str().starts_with(prefix));
    assert!(listed.iter().eq(expected.take(max)));
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;

    pub(crate) fn cursors() -> Vec<(&'static str, Vec<u8>)> {
        let log_id = u64::from_le_bytes(*b"a log id");
        let mark = Mark {
            sequence: 7,
            checksum: 0x0102_0304,
        };
        let cursor = cursor::encode(log_id, mark);
        let mut body = vec![1];
        body.extend(b"a log id");
        body.extend(u64::MAX.to_le_bytes());
        let body_1 = body.clone();
        body.extend([7; 4]);
        vec![
            ("upper", cursor.to_uppercase().into_bytes()),
            ("other", cursor::encode(1, mark).into_bytes()),
            ("version-1", cursor::encode_1(log_id, 7).into_bytes()),
            ("body-1", body_1),
            ("cut", cursor.as_bytes()[1..].to_vec()),
            ("whole", cursor.into_bytes()),
            ("body", body),
        ]
    }

    pub(crate) fn counters() -> Vec<(&'static str, Vec<u8>)> {
        let empty = Snapshot::default().encode();
        let some = br#"{"version":2,"tail":4,"counters":{"received":9,"unique_processed":3,"duplicate_dropped":4,"conflicts":1,"rejected":2},"topics":{"a":{"unique_processed":1,"duplicate_dropped":4,"last_received_at":1700000000000000000},"b":{"unique_processed":2,"duplicate_dropped":0,"last_received_at":18446744073709551615}}}"#;
        vec![("empty", empty), ("some", some.to_vec())]
    }
}
