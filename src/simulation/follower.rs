//! Follower: a reader that resumes from its cursor, again and again.

use super::{
    chance::Chance,
    model::{Model, Sent, topic_name},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence, StoredEvent, Topic},
    partition::{CursorError, Partition, ReadError, Reader, Start, forged},
};

/// Reads one topic, or all.
pub(super) struct Follower {
    topic: Option<u8>,
    start: Start,
    reader: Option<Reader>,
    /// Where it started; it must see everything after that.
    from: Option<Sequence>,
    seen: Vec<(Sequence, Sent)>,
}

impl Follower {
    pub fn new(topic: Option<u8>, start: Start) -> Self {
        Self {
            topic,
            start,
            reader: None,
            from: None,
            seen: Vec::new(),
        }
    }

    /// Drops the reader; the next step resumes.
    pub fn disconnect(&mut self) {
        self.reader = None;
    }

    /// Tries a cursor from a history that the server does not have. It must be refused.
    pub fn forge(&self, partition: &Partition, chance: &mut Chance) -> Result<(), ReadError> {
        let Start::After(cursor) = &self.start else {
            return Ok(());
        };
        let tail = partition.durable_tail();
        let kind = chance.below(3);
        let distance = 1 + chance.below(3);
        let mut is_at_start = false;
        let cursor = forged(cursor, |log_id, mark| match kind {
            0 => *log_id ^= distance,
            1 => mark.sequence = tail - 1 + distance,
            _ => {
                is_at_start = mark.sequence == 0;
                mark.checksum ^= 1 << distance;
            }
        });
        if is_at_start {
            return Ok(());
        }
        let start = Start::After(cursor.expect("a cursor that was given out"));
        let expected = match kind {
            0 => CursorError::OtherLog,
            1 => CursorError::PastTail,
            _ => CursorError::OtherHistory,
        };
        match partition.reader_here(None, &start).map(drop) {
            Err(ReadError::Cursor(error)) if error == expected => Ok(()),
            Ok(()) => panic!("a forged cursor is taken, and should be refused with: {expected}"),
            Err(error) => Err(error),
        }
    }

    /// Reads some events. Returns how many, and whether there are more.
    pub fn step(
        &mut self,
        partition: &Partition,
        model: &mut Model,
        chance: &mut Chance,
    ) -> Result<(u64, bool), ReadError> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let topic = self
                    .topic
                    .map(|topic| Topic::new(&topic_name(topic)).expect("it is valid"));
                partition.reader_here(topic, &self.start)?
            }
        };
        let from = *self.from.get_or_insert(match self.start {
            Start::Latest => reader.next_sequence(),
            Start::Earliest | Start::After(_) => FIRST_SEQUENCE,
        });
        let events_max = 1 + chance.place(12);
        let chunk = reader.read_here(Sequence::MAX, events_max)?;
        assert!(
            chunk.events.len() <= events_max,
            "more events than asked for"
        );
        for event in &chunk.events {
            let sent = Sent::of(event);
            let last = self.seen.last().map_or(from - 1, |(last, _)| *last);
            assert!(
                event.sequence > last,
                "{} is read after {last}",
                event.sequence
            );
            match self.topic {
                Some(topic) => assert_eq!(sent.name.topic, topic, "an event of another topic"),
                None => assert_eq!(event.sequence, last + 1, "a reader skips an event"),
            }
            model.learn(event.sequence, sent);
            self.seen.push((event.sequence, sent));
        }
        let is_behind = reader.next_sequence() < partition.durable_tail();
        assert_eq!(
            chunk.caught_up, !is_behind,
            "a reader does not know where it is"
        );
        self.start = Start::After(match chunk.events.last() {
            Some(last) if chance.percent(50) => reader.cursor_after(last),
            Some(_) | None => reader.cursor(),
        });
        if !chance.percent(20) {
            self.reader = Some(reader);
        }
        Ok((chunk.events.len() as u64, is_behind))
    }

    /// Checks it against all stored events, once it has read to the end.
    pub fn check(&self, all: &[StoredEvent]) {
        let from = self.from.unwrap_or(FIRST_SEQUENCE);
        let expected: Vec<_> = all
            .iter()
            .filter(|event| event.sequence >= from)
            .map(|event| (event.sequence, Sent::of(event)))
            .filter(|(_, sent)| self.topic.is_none_or(|topic| sent.name.topic == topic))
            .collect();
        assert_eq!(
            self.seen, expected,
            "a reader of {:?} from {from} missed events",
            self.topic
        );
    }
}
