//! The events of the load: each follows from its number, and its number from its id.
//!
//! So nothing sent has to be remembered, and everything read back can be checked exactly. Events are encoded
//! by hand from a template: making them must cost less than storing them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Result;

/// The encoded event is about 350 bytes with a payload of 256.
const SOURCE: &str = "checkout.eu-west-1.shop";
/// 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: u64 = 1_767_225_600;
/// How many events happen in one second of the events' clock.
const EVENTS_PER_SECOND: u64 = 100_000;
/// The smallest varint of five bytes: nanoseconds are never smaller, so that all events have the same length.
const FIVE_BYTES: u64 = 1 << 28;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const UUID_LEN: usize = 36;
/// `text` ids: `eu-west-1/customer-<16 hex digits>/order-<12 digits>/line-0001/payment-authorized`.
const TEXT: [&[u8]; 3] = [
    b"eu-west-1/customer-",
    b"/order-",
    b"/line-0001/payment-authorized",
];
const TEXT_HEX_LEN: usize = 16;
const TEXT_NUMBER_LEN: usize = 12;

/// The format of event ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdKind {
    /// Random, unordered
    Uuid4,
    /// Random, ordered by time
    Uuid7,
    /// 83 bytes of text with little variation
    Text,
}

/// The events of a run.
#[derive(Debug)]
pub struct Events {
    id_kind: IdKind,
    seed: u64,
    /// One per topic, complete except for the parts that vary.
    templates: Vec<Vec<u8>>,
    topics: Vec<String>,
    id_at: usize,
    id_len: usize,
    seconds_at: usize,
    nanos_at: usize,
    payload_at: usize,
}

impl Events {
    /// Events of `topics` topics with `payload_bytes` bytes of payload.
    pub fn new(id_kind: IdKind, topics: u64, payload_bytes: usize, seed: u64) -> Self {
        let id_len = match id_kind {
            IdKind::Uuid4 | IdKind::Uuid7 => UUID_LEN,
            IdKind::Text => {
                TEXT.iter().map(|part| part.len()).sum::<usize>() + TEXT_HEX_LEN + TEXT_NUMBER_LEN
            }
        };
        let digits = (topics - 1).to_string().len();
        let topics: Vec<String> = (0..topics)
            .map(|topic| format!("topic-{topic:0digits$}"))
            .collect();
        let mut events = Self {
            id_kind,
            seed: mix(seed),
            templates: Vec::new(),
            id_at: 0,
            id_len,
            seconds_at: 0,
            nanos_at: 0,
            payload_at: 0,
            topics,
        };
        for topic in &events.topics {
            let mut template = Vec::new();
            put_field(&mut template, 1, topic.as_bytes());
            put_field(&mut template, 2, &vec![0; id_len]);
            events.id_at = template.len() - id_len;
            // A timestamp of two varints of five bytes.
            put_field(
                &mut template,
                3,
                &[1 << 3, 0, 0, 0, 0, 0, 2 << 3, 0, 0, 0, 0, 0],
            );
            events.seconds_at = template.len() - 11;
            events.nanos_at = template.len() - 5;
            put_field(&mut template, 4, SOURCE.as_bytes());
            put_field(&mut template, 6, &vec![0; payload_bytes]);
            events.payload_at = template.len() - payload_bytes;
            events.templates.push(template);
        }
        events
    }

    /// The length of each event, encoded.
    pub fn encoded_len(&self) -> usize {
        self.templates[0].len()
    }

    /// The topics.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// The index of an event's topic.
    pub fn topic_of(&self, number: u64) -> usize {
        (number % self.topics.len() as u64) as usize
    }

    /// How many of the events below `end` are of a topic.
    pub fn count_of_topic(&self, topic: usize, end: u64) -> u64 {
        (end + self.topics.len() as u64 - 1 - topic as u64) / self.topics.len() as u64
    }

    /// Appends the encoded event.
    pub fn put(&self, number: u64, buffer: &mut Vec<u8>) {
        let at = buffer.len();
        buffer.extend_from_slice(&self.templates[self.topic_of(number)]);
        let event = &mut buffer[at..];
        self.write_id(number, &mut event[self.id_at..][..self.id_len]);
        let random = mix(number ^ self.seed);
        let seconds = EPOCH_SECONDS + number / EVENTS_PER_SECOND;
        put_varint5(&mut event[self.seconds_at..][..5], seconds);
        let nanos = FIVE_BYTES + random % (NANOS_PER_SECOND - FIVE_BYTES);
        put_varint5(&mut event[self.nanos_at..][..5], nanos);
        let mut word = random;
        for chunk in event[self.payload_at..].chunks_mut(8) {
            word = word.wrapping_add(GOLDEN);
            let bytes = (word ^ (word >> 29)).wrapping_mul(GOLDEN).to_be_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// The number of the event with this id.
    pub fn number(&self, id: &[u8]) -> Result<u64> {
        let number = match self.id_kind {
            IdKind::Uuid4 => unhex(id, &UUID4_DIGITS).map(|mixed| unmix(mixed) ^ self.seed),
            IdKind::Uuid7 => unhex(id, &UUID7_DIGITS).map(|mixed| unmix(mixed) ^ self.seed),
            IdKind::Text => {
                let at = TEXT[0].len() + TEXT_HEX_LEN + TEXT[1].len();
                let digits = id.get(at..at + TEXT_NUMBER_LEN);
                let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
                digits.and_then(|digits| digits.parse().ok())
            }
        };
        number.ok_or_else(|| format!("not an id of this run: {}", id.escape_ascii()).into())
    }

    /// Passes each event, split into parts, to `take`.
    #[cfg(feature = "peers")]
    pub fn for_each(&self, numbers: &[u64], mut take: impl FnMut([&[u8]; 3])) {
        let mut encoded = Vec::with_capacity(self.encoded_len());
        for number in numbers {
            encoded.clear();
            self.put(*number, &mut encoded);
            take(self.split(&encoded));
        }
    }

    /// Splits an encoded event into its topic, its id, and the rest.
    pub fn split<'a>(&self, encoded: &'a [u8]) -> [&'a [u8]; 3] {
        let topic_end = self.id_at - 2;
        let (key, body) = encoded.split_at(self.id_at + self.id_len);
        [&key[2..topic_end], &key[self.id_at..], body]
    }

    /// Whether these are the parts of the event with this number, byte for byte. Overwrites `scratch`.
    pub fn is(&self, number: u64, parts: [&[u8]; 3], scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        self.put(number, scratch);
        self.split(scratch) == parts
    }

    fn write_id(&self, number: u64, id: &mut [u8]) {
        let mixed = mix(number ^ self.seed);
        let filler = mix(mixed);
        match self.id_kind {
            IdKind::Uuid4 => {
                hex(filler, id, &UUID_REST);
                hex(mixed, id, &UUID4_DIGITS);
                (id[14], id[19]) = (b'4', VARIANT[(filler % 4) as usize]);
                dashes(id);
            }
            IdKind::Uuid7 => {
                let millis = EPOCH_SECONDS * 1000 + number / (EVENTS_PER_SECOND / 1000);
                hex(millis << 16, id, &UUID_FIRST);
                hex(filler, id, &UUID_REST);
                hex(mixed, id, &UUID7_DIGITS);
                (id[14], id[19]) = (b'7', VARIANT[(filler % 4) as usize]);
                dashes(id);
            }
            IdKind::Text => {
                let mut at = 0;
                let mut put = |part: &[u8]| {
                    id[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                };
                let mut digits = [0; TEXT_HEX_LEN];
                hex(mixed, &mut digits, &std::array::from_fn(|at| at));
                let mut decimal = [0; TEXT_NUMBER_LEN];
                let mut rest = number;
                for digit in decimal.iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
                put(TEXT[0]);
                put(&digits);
                put(TEXT[1]);
                put(&decimal);
                put(TEXT[2]);
            }
        }
    }
}

/// The places of the 16 digits of the mixed number in a UUIDv4, around version and variant.
const UUID4_DIGITS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 32, 33, 34, 35];
/// The same in a UUIDv7, after time, version and variant.
const UUID7_DIGITS: [usize; 16] = [
    20, 21, 22, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 17,
];
/// The time in a UUIDv7, and four places that are overwritten.
const UUID_FIRST: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17];
/// The other random digits of a UUID, and two places that are overwritten.
const UUID_REST: [usize; 16] = [
    14, 15, 16, 17, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 30, 31,
];
const VARIANT: [u8; 4] = *b"89ab";
const HEX: &[u8; 16] = b"0123456789abcdef";

fn dashes(id: &mut [u8]) {
    for at in [8, 13, 18, 23] {
        id[at] = b'-';
    }
}

fn hex(value: u64, id: &mut [u8], places: &[usize; 16]) {
    for (digit, at) in places.iter().enumerate() {
        id[*at] = HEX[(value >> (60 - 4 * digit) & 0xf) as usize];
    }
}

fn unhex(id: &[u8], places: &[usize; 16]) -> Option<u64> {
    if id.len() != UUID_LEN {
        return None;
    }
    let mut value = 0;
    for at in places {
        let digit = match id[*at] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(digit);
    }
    Some(value)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
/// The inverses of `MIX` modulo 2^64.
const UNMIX: [u64; 2] = [0x96de_1b17_3f11_9089, 0x3196_42b2_d24d_8ec3];

/// The output function of SplitMix64 (Steele, Lea, Flood, 2014): one to one.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ (x >> 30)).wrapping_mul(MIX[0]);
    let x = (x ^ (x >> 27)).wrapping_mul(MIX[1]);
    x ^ (x >> 31)
}

fn unmix(x: u64) -> u64 {
    let x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(UNMIX[1]);
    let x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(UNMIX[0]);
    (x ^ (x >> 30) ^ (x >> 60)).wrapping_sub(GOLDEN)
}

fn put_field(buffer: &mut Vec<u8>, number: u8, value: &[u8]) {
    buffer.push(number << 3 | 2);
    put_varint(buffer, value.len() as u64);
    buffer.extend_from_slice(value);
}

/// Appends a varint.
pub fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// Writes a varint of five bytes: `value` is at least 2^28 and below 2^35.
fn put_varint5(place: &mut [u8], value: u64) {
    for (at, byte) in place.iter_mut().enumerate() {
        *byte = (value >> (7 * at)) as u8 | if at < 4 { 0x80 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oncelog::event::EventView;

    use super::*;

    const KINDS: [IdKind; 3] = [IdKind::Uuid4, IdKind::Uuid7, IdKind::Text];

    #[test]
    fn the_id_encodes_the_number() {
        for kind in KINDS {
            let events = Events::new(kind, 10, 100, 7);
            let mut ids = HashSet::new();
            for number in (0..1000).chain((10..40).map(|bit| 1 << bit)) {
                let mut encoded = Vec::new();
                events.put(number, &mut encoded);
                let id = encoded[events.id_at..][..events.id_len].to_vec();
                assert_eq!(events.number(&id).expect("works"), number, "{kind:?}");
                ids.insert(id.clone());
                let parts = events.split(&encoded);
                assert_eq!(parts[1], id);
                assert!(events.is(number, parts, &mut Vec::new()));
                assert!(!events.is(number + 1, parts, &mut Vec::new()));
            }
            assert_eq!(ids.len(), 1030);
        }
    }

    #[test]
    fn an_event_is_a_canonical_encoding() {
        for kind in KINDS {
            for payload_bytes in [1, 8, 100, 256, 20_000] {
                let events = Events::new(kind, 12, payload_bytes, 1);
                let mut encoded = Vec::new();
                events.put(123_456_789, &mut encoded);
                assert_eq!(encoded.len(), events.encoded_len());
                let event = EventView::parse(&encoded).expect("works");
                assert_eq!(event.topic, "topic-09");
                assert_eq!(event.source, SOURCE);
                let timestamp = event.timestamp.expect("works");
                assert_eq!(timestamp.seconds, EPOCH_SECONDS as i64 + 1234);
                assert!((0..1_000_000_000).contains(&timestamp.nanos));
            }
        }
    }

    #[test]
    fn topics_share_the_events() {
        let events = Events::new(IdKind::Uuid4, 3, 1, 1);
        for end in 0..10 {
            for topic in 0..3 {
                let count = (0..end).filter(|number| events.topic_of(*number) == topic);
                assert_eq!(events.count_of_topic(topic, end), count.count() as u64);
            }
        }
    }
}
