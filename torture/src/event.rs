//! Events derived from a number, from which the number can be read back.
//!
//! The event of a number and a content is always the same: nobody has to remember it.

use bytes::Bytes;
use oncelog::proto::v1::{Event, event::Payload};
use prost_types::Timestamp;

use crate::Result;

/// How many contents an event has. The first is the published one, the others are conflicts.
pub const CONTENTS: u8 = 4;

/// 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;
const SOURCES: [&str; CONTENTS as usize] = ["torture", "torture-1", "torture-2", "torture-3"];
const HEX: &[u8; 16] = b"0123456789abcdef";
/// The longest payload of [`PayloadBytes::Mixed`].
const MIXED_BYTES_MAX: usize = 64 * 1024;

/// The length of payloads.
#[derive(Clone, Copy, Debug)]
pub enum PayloadBytes {
    /// All of this length.
    Fixed(usize),
    /// Most under 100 bytes, some of a few hundred, a few of up to 64 KiB.
    Mixed,
}

/// The recipe of events.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    pub topics: u64,
    pub payload: PayloadBytes,
}

impl Events {
    /// The event of a number below 2^48.
    pub fn make(&self, number: u64, content: u8) -> Event {
        let [a, b] = [number + 1, number + (1 << 48)].map(mix);
        Event {
            topic: self.topic(number % self.topics),
            event_id: id(a, b, number),
            timestamp: Some(Timestamp {
                seconds: EPOCH_SECONDS + (number / 1000) as i64,
                nanos: (number % 1000) as i32 * 1_000_000,
            }),
            source: SOURCES[usize::from(content)].to_owned(),
            payload: Some(Payload::Data(self.payload(a, content))),
            attributes: Default::default(),
        }
    }

    /// The name of a topic.
    pub fn topic(&self, topic: u64) -> String {
        format!("topic-{topic:02}")
    }

    /// The number and the content of `event`, if it matches them to the last byte.
    pub fn read(&self, event: &Event) -> Result<(u64, u8)> {
        let unknown = || format!("an event that nobody made: {event:?}");
        let number = event.event_id.rsplit_once('-').map(|(_, number)| number);
        let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
        let content = SOURCES.iter().position(|source| *source == event.source);
        let (number, content) = number.zip(content).ok_or_else(unknown)?;
        let content = u8::try_from(content)?;
        if *event != self.make(number, content) {
            return Err(format!("event {number} is there with other bytes: {event:?}").into());
        }
        Ok((number, content))
    }

    fn payload(&self, random: u64, content: u8) -> Bytes {
        let bytes = match self.payload {
            PayloadBytes::Fixed(bytes) => bytes,
            PayloadBytes::Mixed => {
                let longest = match random % 512 {
                    0 => MIXED_BYTES_MAX,
                    1..=32 => 512,
                    _ => 100,
                };
                (random >> 32) as usize % longest
            }
        };
        let mut payload = Vec::with_capacity(bytes.next_multiple_of(8));
        let mut word = random ^ u64::from(content);
        while payload.len() < bytes {
            word = xorshift(word);
            payload.extend_from_slice(&word.to_le_bytes());
        }
        payload.truncate(bytes);
        payload.into()
    }
}

/// An id that looks like a UUIDv4 and ends with the number.
fn id(a: u64, b: u64, number: u64) -> String {
    let digits = [(a, 8), (a >> 32, 4), (a >> 48, 3), (b, 3), (number, 12)];
    let mut id = String::with_capacity(36);
    for (at, (mut bits, len)) in digits.into_iter().enumerate() {
        id.push_str(["", "-", "-4", "-8", "-"][at]);
        let mut text = [0; 12];
        for digit in text[..len].iter_mut().rev() {
            *digit = HEX[(bits & 15) as usize];
            bits >>= 4;
        }
        id.extend(text[..len].iter().map(|digit| char::from(*digit)));
    }
    id
}

/// Decorrelates neighbours. Never 0 unless the number is 0.
fn mix(number: u64) -> u64 {
    xorshift(xorshift(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// George Marsaglia, "Xorshift RNGs", 2003.
fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_event_carries_its_number_and_content() {
        for payload in [PayloadBytes::Fixed(20), PayloadBytes::Mixed] {
            let events = Events { topics: 7, payload };
            let mut made = HashSet::new();
            for number in (0..200).chain([1 << 40, (1 << 48) - 1]) {
                for content in 0..CONTENTS {
                    let event = events.make(number, content);
                    assert_eq!(event.event_id.len(), 36);
                    assert_eq!(events.read(&event).expect("made here"), (number, content));
                    made.insert(format!("{event:?}"));
                }
            }
            assert_eq!(made.len(), 202 * usize::from(CONTENTS));
        }
    }

    #[test]
    fn another_byte_is_noticed() {
        let payload = PayloadBytes::Fixed(20);
        let events = Events { topics: 7, payload };
        let mut event = events.make(5, 0);
        event.payload = events.make(5, 1).payload;
        assert!(events.read(&event).is_err());
        let mut event = events.make(5, 0);
        event.topic = events.topic(6);
        assert!(events.read(&event).is_err());
        event.event_id = "x".to_owned();
        assert!(events.read(&event).is_err());
    }
}
