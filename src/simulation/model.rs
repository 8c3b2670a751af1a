//! Model: the promises so far, and whether everything seen agrees with them.
//!
//! Owns the record of replies to publishers and events shown to readers. A broken promise is a panic that names
//! it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    event::{Event, EventView, FIRST_SEQUENCE, Key, Sequence, StoredEvent, Topic},
    partition::{Counters, Outcome, Partition, TopicCounters},
    proto::v1,
};

/// The identity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub topic: u8,
    pub id: u16,
}

/// An event as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sent {
    pub name: Name,
    pub content: u8,
}

/// Duplicates, conflicts and rejections, in replies or as counted by a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// By topic; absent means 0.
    pub duplicates: BTreeMap<u8, u64>,
    pub conflicts: u64,
    pub rejected: u64,
}

impl Dropped {
    /// The server's counters, which must balance.
    pub fn counted(partition: &Partition) -> Self {
        let (counters, topics_len) = partition.totals();
        let Counters {
            received,
            unique_processed,
            duplicate_dropped,
            conflicts,
            rejected,
        } = counters;
        assert_eq!(
            unique_processed,
            partition.durable_tail() - FIRST_SEQUENCE,
            "unique events are those of the log"
        );
        assert_eq!(
            received,
            unique_processed + duplicate_dropped + rejected,
            "the counters do not balance: {counters:?}"
        );
        assert!(conflicts <= duplicate_dropped, "{counters:?}");
        let topics = partition.topics("", usize::MAX);
        assert_eq!(topics.len(), topics_len, "the number of topics");
        let stored: u64 = topics.iter().map(|(_, topic)| topic.unique_processed).sum();
        assert_eq!(stored, unique_processed, "the topics do not balance");
        let duplicates: BTreeMap<u8, u64> = topics
            .iter()
            .filter(|(_, topic)| topic.duplicate_dropped > 0)
            .map(|(topic, counters)| {
                let topic = parse_topic(topic.as_str()).expect("a topic that was sent");
                (topic, counters.duplicate_dropped)
            })
            .collect();
        assert!(
            duplicates.values().sum::<u64>() <= duplicate_dropped,
            "the topics have more duplicates than there are"
        );
        Self {
            duplicates,
            conflicts,
            rejected,
        }
    }

    pub fn count_duplicate(&mut self, topic: u8) {
        *self.duplicates.entry(topic).or_default() += 1;
    }

    /// The sum of both.
    pub fn plus(&self, more: &Self) -> Self {
        let mut sum = self.clone();
        for (topic, duplicates) in &more.duplicates {
            *sum.duplicates.entry(*topic).or_default() += duplicates;
        }
        sum.conflicts += more.conflicts;
        sum.rejected += more.rejected;
        sum
    }

    /// Whether no count here exceeds the other's.
    pub fn is_within(&self, other: &Self) -> bool {
        let duplicates = |topic| other.duplicates.get(topic).copied().unwrap_or_default();
        self.conflicts <= other.conflicts
            && self.rejected <= other.rejected
            && self
                .duplicates
                .iter()
                .all(|(topic, count)| *count <= duplicates(topic))
    }
}

/// What is known about the event at a sequence.
#[derive(Debug)]
struct Fact {
    name: Name,
    is: Option<u8>,
    is_not: BTreeSet<u8>,
}

#[derive(Default)]
pub(super) struct Model {
    facts: BTreeMap<Sequence, Fact>,
    places: BTreeMap<Name, Sequence>,
    /// How many requests with an event may have stored it.
    sendings: BTreeMap<Sent, u64>,
    /// In this life of the server.
    pub answered: Dropped,
}

impl Name {
    pub fn key(self) -> Key {
        Sent {
            name: self,
            content: 0,
        }
        .event()
        .key()
        .clone()
    }
}

/// One name is a prefix of another, and their keys differ only far behind it.
pub(super) fn topic_name(topic: u8) -> String {
    format!("topic{:t>1$}", "", usize::from(topic))
}

fn parse_topic(name: &str) -> Option<u8> {
    let rest = name.strip_prefix("topic")?;
    let topic = u8::try_from(rest.len()).ok()?;
    (topic_name(topic) == name).then_some(topic)
}

const LONG_ID: &str = "an id whose front is that of many others: ";

/// Numbers do not sort like their names, so that keys do not come sorted.
fn id_name(id: u16) -> String {
    let number = id.reverse_bits();
    match id % 3 {
        0 => format!("{number}"),
        1 => format!("{LONG_ID}{number}"),
        _ => format!("{LONG_ID}{number:a>150}"),
    }
}

fn parse_id(name: &str) -> Option<u16> {
    let number = name.strip_prefix(LONG_ID).unwrap_or(name);
    let number: u16 = number.trim_start_matches('a').parse().ok()?;
    let id = number.reverse_bits();
    (id_name(id) == name).then_some(id)
}

impl Sent {
    /// The longest exceeds the smallest segment.
    fn payload(self) -> Vec<u8> {
        let seed = usize::from(self.name.id) * 7 + usize::from(self.content);
        let len = match seed % 40 {
            0 => 5000,
            1..=3 => 1500,
            _ => seed * 31 % 300,
        };
        vec![self.content.wrapping_add(1); len]
    }

    fn encoded(self) -> Bytes {
        let event = v1::Event {
            topic: topic_name(self.name.topic),
            event_id: id_name(self.name.id),
            timestamp: Some(prost_types::Timestamp::default()),
            source: format!("{}", self.content),
            payload: Some(v1::event::Payload::Data(self.payload().into())),
            ..v1::Event::default()
        };
        event.encode_to_vec().into()
    }

    pub fn event(self) -> Event {
        let encoded = self.encoded();
        let event = Event::from_canonical(encoded).expect("canonical");
        event.expect("it is within the limits")
    }

    /// The stored event, which must match to the last byte.
    pub fn of(stored: &StoredEvent) -> Self {
        let view = EventView::parse(&stored.encoded).expect("what is stored is canonical");
        let sent = Self {
            name: Name {
                topic: parse_topic(view.topic).expect("a topic that was sent"),
                id: parse_id(view.event_id).expect("an id that was sent"),
            },
            content: view.source.parse().expect("a source that was sent"),
        };
        assert_eq!(stored.encoded, sent.encoded(), "an event has changed");
        sent
    }
}

impl Model {
    pub fn send(&mut self, sent: Sent) {
        *self.sendings.entry(sent).or_default() += 1;
    }

    /// A request was refused, with the claim that it stored nothing.
    pub fn refused(&mut self, sent: &[Sent]) {
        for sent in sent {
            let sendings = self.sendings.get_mut(sent).expect("it was sent");
            *sendings -= 1;
        }
    }

    /// A name known to be stored.
    pub fn stored(&self, place: u64) -> Option<Name> {
        let place = place.checked_rem(self.facts.len() as u64)?;
        let (_, fact) = self.facts.iter().nth(place as usize)?;
        Some(fact.name)
    }

    /// Where this name is known to be stored.
    pub fn place(&self, name: Name) -> Option<Sequence> {
        self.places.get(&name).copied()
    }

    /// The result of a look-up of a name, which was known to be stored at `known` when the look-up began.
    pub fn got(&mut self, name: Name, known: Option<Sequence>, got: Option<&StoredEvent>) {
        match got {
            Some(stored) => {
                let sent = Sent::of(stored);
                assert_eq!(sent.name, name, "another event than was asked for");
                self.learn(stored.sequence, sent);
            }
            None => assert_eq!(known, None, "{name:?} is stored, and not found"),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = Name> {
        self.places.keys().copied()
    }

    /// Above all known sequences.
    pub fn tail(&self) -> Sequence {
        self.facts
            .last_key_value()
            .map_or(FIRST_SEQUENCE, |(sequence, _)| sequence + 1)
    }

    /// The reply to a request that was made when the durable tail was `asked_at`.
    pub fn answered(&mut self, sent: &[Sent], outcomes: &[Outcome], asked_at: Sequence) {
        assert_eq!(sent.len(), outcomes.len(), "an outcome for every event");
        let mut last = asked_at - 1;
        for (sent, outcome) in sent.iter().zip(outcomes) {
            match *outcome {
                Outcome::Stored(sequence) => {
                    assert!(sequence > last, "{sequence} of {sent:?} is out of order");
                    last = sequence;
                    let known = self.places.get(&sent.name);
                    assert!(
                        known.is_none_or(|at| *at == sequence),
                        "{sent:?} is stored at {sequence} and at {known:?}"
                    );
                    self.learn(sequence, *sent);
                }
                Outcome::Duplicate(sequence) => {
                    self.answered.count_duplicate(sent.name.topic);
                    self.learn(sequence, *sent);
                }
                Outcome::Conflict(sequence) => {
                    self.answered.count_duplicate(sent.name.topic);
                    self.answered.conflicts += 1;
                    let fact = self.fact(sequence, sent.name);
                    assert_ne!(fact.is, Some(sent.content), "{sent:?} is no conflict");
                    fact.is_not.insert(sent.content);
                }
                Outcome::TopicLimit => {
                    self.answered.rejected += 1;
                    let topic = sent.name.topic;
                    let begun = self.places.keys().any(|name| name.topic == topic);
                    assert!(!begun, "topic {topic} has events, and is beyond the limit");
                }
            }
        }
    }

    /// An event is durable at `sequence`.
    pub fn learn(&mut self, sequence: Sequence, sent: Sent) {
        assert!(
            self.sendings
                .get(&sent)
                .is_some_and(|sendings| *sendings > 0),
            "{sent:?} is stored, and was not sent or is said not to be"
        );
        let fact = self.fact(sequence, sent.name);
        assert!(
            fact.is.is_none_or(|is| is == sent.content) && !fact.is_not.contains(&sent.content),
            "{sent:?} at {sequence} has another content than {fact:?}"
        );
        fact.is = Some(sent.content);
    }

    fn fact(&mut self, sequence: Sequence, name: Name) -> &mut Fact {
        let place = self.places.entry(name).or_insert(sequence);
        assert_eq!(*place, sequence, "{name:?} is stored twice");
        let fact = self.facts.entry(sequence).or_insert_with(|| Fact {
            name,
            is: None,
            is_not: BTreeSet::new(),
        });
        assert_eq!(fact.name, name, "two events have sequence {sequence}");
        fact
    }

    /// Everything stored, as read in order, agrees with everything reported and with the counters.
    pub fn check(&mut self, all: &[StoredEvent], counted: &[(Topic, TopicCounters)]) {
        let mut received_at = 0;
        let mut topics: BTreeMap<String, TopicCounters> = BTreeMap::new();
        for (stored, sequence) in all.iter().zip(FIRST_SEQUENCE..) {
            assert_eq!(stored.sequence, sequence, "the log has a gap");
            assert!(
                stored.received_at >= received_at,
                "time goes back at {sequence}"
            );
            received_at = stored.received_at;
            let sent = Sent::of(stored);
            let topic = topics.entry(topic_name(sent.name.topic)).or_default();
            topic.unique_processed += 1;
            topic.last_received_at = received_at;
            self.learn(sequence, sent);
        }
        let counted: BTreeMap<String, TopicCounters> = counted
            .iter()
            .map(|(topic, counters)| {
                let of_log = TopicCounters {
                    duplicate_dropped: 0,
                    ..*counters
                };
                (topic.as_str().to_owned(), of_log)
            })
            .collect();
        assert_eq!(counted, topics, "the topics are counted as they are stored");
        let lost = self
            .facts
            .range(FIRST_SEQUENCE + all.len() as Sequence..)
            .next();
        assert!(lost.is_none(), "acknowledged or shown, and lost: {lost:?}");
    }
}
