//! A client's memory of everything it sent and every reply, over all rounds on a data directory.
//!
//! The model for a data directory: everything promised is there, once, in its place, with the content that came
//! first; everything sent without a promise is there at most once; nothing else is there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use oncelog::proto::v1::{EventOutcome, Outcome};
use serde::Serialize;

use crate::{Result, event::CONTENTS};

/// Of 100 events sent, how many are resends and how many conflicts; the rest are new.
const RESENDS_PERCENT: u64 = 20;
const CONFLICTS_PERCENT: u64 = 1;
/// Every second resend is of one of the last this many events.
const RECENT: u64 = 2000;
/// One request in this many carries an event that breaks a limit.
const REQUESTS_PER_INVALID: u64 = 50;

/// An event as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Event {
        number: u64,
        content: u8,
    },
    /// Breaks a limit: must be rejected.
    Invalid,
}

/// What is known about an event.
#[derive(Clone, Copy, Default)]
struct Known {
    /// 0 while unknown.
    sequence: u64,
    /// The contents sent, as a set of bits.
    sent: u8,
    /// Those of them that cannot be the stored one.
    refuted: u8,
    /// One more than the number of lists begun before it was acked or read, from which on it must be there forever; 0
    /// if it never was.
    promised: u32,
    /// It was acked as stored now.
    was_stored: bool,
    /// The list in which it was last found.
    found_in: u32,
}

/// The memory, shared by all publishers and readers of a data directory.
#[derive(Default)]
pub struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    known: Vec<Known>,
    counts: Counts,
    lists: u32,
}

/// Counts of replies so far, in events.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    pub acked: u64,
    pub stored: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub rejected: u64,
    /// By lists and by following readers, and compared with earlier replies.
    pub read: u64,
}

impl Counts {
    /// The sum of both.
    pub fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.rejected += other.rejected;
        self.read += other.read;
    }

    /// The difference since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            acked: self.acked - before.acked,
            stored: self.stored - before.stored,
            duplicates: self.duplicates - before.duplicates,
            conflicts: self.conflicts - before.conflicts,
            rejected: self.rejected - before.rejected,
            read: self.read - before.read,
        }
    }
}

impl Memory {
    /// Draws the events of a request and remembers them as sent: new ones until there are `new_to` in total, resends,
    /// conflicts.
    pub fn draw(&self, random: &mut Rng, events: usize, new_to: u64) -> Vec<Sent> {
        let mut state = self.state();
        let mut request = Vec::with_capacity(events + 1);
        if random.u64(..REQUESTS_PER_INVALID) == 0 {
            request.push(Sent::Invalid);
        }
        for _ in 0..events {
            let end = state.known.len() as u64;
            let percent = random.u64(..100);
            let is_new = end == 0 || end < new_to && percent >= RESENDS_PERCENT + CONFLICTS_PERCENT;
            let sent = if is_new {
                state.new_event()
            } else {
                let from = if random.bool() {
                    end.saturating_sub(RECENT)
                } else {
                    0
                };
                let is_conflict = percent < CONFLICTS_PERCENT;
                state.resend(
                    random.u64(from..end),
                    is_conflict.then(|| random.u8(1..CONTENTS)),
                )
            };
            request.push(sent);
        }
        request
    }

    /// Draws only resends, of any age.
    pub fn draw_resends(&self, random: &mut Rng, events: usize) -> Vec<Sent> {
        let mut state = self.state();
        let end = state.known.len() as u64;
        (0..events.min(state.known.len()))
            .map(|_| {
                let is_conflict = random.u64(..100) < CONFLICTS_PERCENT;
                state.resend(
                    random.u64(..end),
                    is_conflict.then(|| random.u8(1..CONTENTS)),
                )
            })
            .collect()
    }

    /// Draws a new event, and remembers it as sent.
    pub fn draw_new(&self) -> Sent {
        self.state().new_event()
    }

    /// Up to `max` events that were sent and never promised, for sending again.
    pub fn draw_open(&self, max: usize) -> Vec<Sent> {
        let mut state = self.state();
        let open = (0u64..)
            .zip(&state.known)
            .filter(|(_, known)| known.promised == 0);
        let open: Vec<u64> = open.map(|(number, _)| number).take(max).collect();
        open.into_iter()
            .map(|number| state.resend(number, None))
            .collect()
    }

    /// Takes the ack of a request. An error is a broken promise.
    pub fn acked(&self, request: &[Sent], outcomes: &[EventOutcome]) -> Result<()> {
        if request.len() != outcomes.len() {
            return Err(format!("{} outcomes for {} events", outcomes.len(), request.len()).into());
        }
        let mut state = self.state();
        for (sent, outcome) in request.iter().zip(outcomes) {
            state
                .take_outcome(*sent, outcome)
                .map_err(|error| format!("{sent:?} was reported as {outcome:?}, {error}"))?;
        }
        Ok(())
    }

    /// Takes the ack of a call that reports no sequences: all its events are there.
    pub fn acked_in_all(&self, request: &[Sent]) {
        let mut state = self.state();
        for sent in request {
            if let Sent::Event { number, .. } = sent {
                state.promise(*number);
                state.counts.acked += 1;
            }
        }
    }

    /// Takes an event that a reader got. An error is a broken promise.
    pub fn read(&self, sequence: u64, number: u64, content: u8) -> Result<()> {
        self.state().read(sequence, number, content).map(drop)
    }

    /// Starts to compare a list of everything.
    pub fn list(&self) -> List<'_> {
        let mut state = self.state();
        state.lists += 1;
        List {
            id: state.lists,
            memory: self,
            last: 0,
        }
    }

    /// All counts so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Events sent so far.
    pub fn sent(&self) -> u64 {
        self.state().known.len() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic here ends the program.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn known(&mut self, number: u64) -> &mut Known {
        &mut self.known[number as usize]
    }

    fn promise(&mut self, number: u64) {
        let now = self.lists + 1;
        let known = self.known(number);
        if known.promised == 0 {
            known.promised = now;
        }
    }

    fn new_event(&mut self) -> Sent {
        let number = self.known.len() as u64;
        self.known.push(Known {
            sent: 1,
            ..Known::default()
        });
        Sent::Event { number, content: 0 }
    }

    /// Sends an event again, with a content that may be the stored one, or with the given one.
    fn resend(&mut self, number: u64, content: Option<u8>) -> Sent {
        let known = self.known(number);
        let possible = (known.sent & !known.refuted).trailing_zeros() as u8;
        let content = content.unwrap_or(possible);
        known.sent |= 1 << content;
        Sent::Event { number, content }
    }

    fn take_outcome(&mut self, sent: Sent, reported: &EventOutcome) -> Result<()> {
        let outcome = reported.outcome();
        self.counts.acked += 1;
        let (number, content) = match (sent, outcome) {
            (Sent::Event { number, content }, _) => (number, content),
            (Sent::Invalid, Outcome::Rejected)
                if reported.sequence == 0 && !reported.reason.is_empty() =>
            {
                self.counts.rejected += 1;
                return Ok(());
            }
            (Sent::Invalid, _) => return Err("and breaks a limit".into()),
        };
        let known = self.known(number);
        match outcome {
            Outcome::Stored if known.was_stored => return Err("for the second time".into()),
            Outcome::Stored => known.was_stored = true,
            Outcome::Duplicate | Outcome::Conflict => {}
            Outcome::Rejected | Outcome::Unspecified => return Err("and is valid".into()),
        }
        known.is_at(reported.sequence)?;
        let is_conflict = outcome == Outcome::Conflict;
        let bit = 1 << content;
        known.refute(if is_conflict { bit } else { !bit })?;
        self.promise(number);
        self.counts.stored += u64::from(outcome == Outcome::Stored);
        self.counts.duplicates += u64::from(outcome == Outcome::Duplicate);
        self.counts.conflicts += u64::from(is_conflict);
        Ok(())
    }

    fn read(&mut self, sequence: u64, number: u64, content: u8) -> Result<&mut Known> {
        let known = self.known.get_mut(number as usize);
        let broken =
            |error| format!("event {number} is at {sequence} with content {content}, {error}");
        let known = known.ok_or_else(|| broken("but was never sent".into()))?;
        if known.sent & 1 << content == 0 {
            return Err(broken("which was never sent".into()).into());
        }
        let settled = known
            .is_at(sequence)
            .and_then(|()| known.refute(!(1 << content)));
        settled.map_err(broken)?;
        self.counts.read += 1;
        self.promise(number);
        Ok(self.known(number))
    }
}

impl Known {
    fn is_at(&mut self, sequence: u64) -> Result<()> {
        if sequence == 0 {
            return Err("which is no sequence".into());
        }
        if self.sequence != 0 && self.sequence != sequence {
            return Err(format!("but was at {}", self.sequence).into());
        }
        self.sequence = sequence;
        Ok(())
    }

    fn refute(&mut self, contents: u8) -> Result<()> {
        self.refuted |= contents;
        if self.sent & !self.refuted == 0 {
            return Err("but no content that was sent can be the stored one".into());
        }
        Ok(())
    }
}

/// The comparison of a list of everything.
pub struct List<'a> {
    id: u32,
    memory: &'a Memory,
    last: u64,
}

impl List<'_> {
    /// Takes the next event. An error is a broken promise.
    pub fn add(&mut self, sequence: u64, number: u64, content: u8) -> Result<()> {
        if sequence != self.last + 1 {
            return Err(format!("sequence {sequence} follows {}", self.last).into());
        }
        self.last = sequence;
        let id = self.id;
        self.memory
            .state()
            .read(sequence, number, content)?
            .found_in = id;
        Ok(())
    }

    /// Ends the list, and returns how many events it had. An error is a promised event that it lacks.
    pub fn finish(self) -> Result<u64> {
        let state = self.memory.state();
        // Events promised while the list is read may be past its end.
        let lost =
            |known: &&Known| (1..=self.id).contains(&known.promised) && known.found_in != self.id;
        let count = state.known.iter().filter(lost).count();
        match state.known.iter().position(|known| lost(&known)) {
            Some(number) => Err(format!(
                "{count} events are lost, the first is event {number}, promised at {}; the list ends at {}",
                state.known[number].sequence, self.last
            )
            .into()),
            None => Ok(self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event_outcome(outcome: Outcome, sequence: u64) -> EventOutcome {
        EventOutcome {
            outcome: outcome.into(),
            sequence,
            reason: if outcome == Outcome::Rejected {
                "why".to_owned()
            } else {
                String::new()
            },
        }
    }

    fn event(number: u64, content: u8) -> Sent {
        Sent::Event { number, content }
    }

    /// A memory of `count` new events.
    fn memory(count: u64) -> Memory {
        let memory = Memory::default();
        for number in 0..count {
            assert_eq!(memory.draw_new(), event(number, 0));
        }
        memory
    }

    fn ack(memory: &Memory, sent: Sent, outcome: Outcome, sequence: u64) -> Result<()> {
        memory.acked(&[sent], &[event_outcome(outcome, sequence)])
    }

    fn list(memory: &Memory, events: &[(u64, u64, u8)]) -> Result<u64> {
        let mut list = memory.list();
        for (sequence, number, content) in events {
            list.add(*sequence, *number, *content)?;
        }
        list.finish()
    }

    fn broken<T>(result: Result<T>) -> String {
        result.err().expect("a broken promise").to_string()
    }

    #[test]
    fn acked_events_are_there_once() {
        let memory = memory(3);
        ack(&memory, event(0, 0), Outcome::Stored, 1).expect("possible");
        ack(&memory, event(1, 0), Outcome::Duplicate, 2).expect("its first ack was lost");
        assert_eq!(list(&memory, &[(1, 0, 0), (2, 1, 0)]).expect("whole"), 2);
        assert!(
            broken(list(&memory, &[(1, 0, 0)])).contains("1 events are lost, the first is event 1")
        );
        assert!(broken(list(&memory, &[(1, 1, 0), (2, 0, 0)])).contains("was at 2"));
        assert!(broken(list(&memory, &[(1, 0, 0), (2, 0, 0)])).contains("was at 1"));
        assert!(broken(list(&memory, &[(1, 0, 0), (3, 1, 0)])).contains("3 follows 1"));
        // The third was never acked: it may be there, and if so it stays.
        assert_eq!(
            list(&memory, &[(1, 0, 0), (2, 1, 0), (3, 2, 0)]).expect("whole"),
            3
        );
        assert!(broken(list(&memory, &[(1, 0, 0), (2, 1, 0)])).contains("event 2"));
        assert!(broken(list(&memory, &[(1, 9, 0)])).contains("never sent"));
    }

    #[test]
    fn events_seen_or_stored_stay() {
        let memory = memory(2);
        memory.read(1, 1, 0).expect("possible");
        memory.acked_in_all(&[event(0, 0), Sent::Invalid]);
        assert!(broken(list(&memory, &[])).contains("2 events are lost"));
        assert_eq!(list(&memory, &[(1, 1, 0), (2, 0, 0)]).expect("whole"), 2);
        assert!(broken(memory.read(3, 1, 0)).contains("was at 1"));
        let counts = memory.counts();
        assert_eq!((counts.acked, counts.read), (1, 3));
    }

    #[test]
    fn events_promised_during_a_list_may_be_past_its_end() {
        let memory = memory(2);
        ack(&memory, event(0, 0), Outcome::Stored, 1).expect("possible");
        let mut list = memory.list();
        ack(&memory, event(1, 0), Outcome::Stored, 2).expect("possible");
        list.add(1, 0, 0).expect("promised");
        assert_eq!(list.finish().expect("whole"), 1);
        assert!(broken(self::list(&memory, &[(1, 0, 0)])).contains("event 1"));
    }

    #[test]
    fn the_first_content_stays() {
        let memory = memory(1);
        let mut random = Rng::with_seed(1);
        while memory.state().known(0).sent != 0b1111 {
            memory.draw(&mut random, 1, 0);
        }
        ack(&memory, event(0, 2), Outcome::Conflict, 1).expect("another was stored");
        ack(&memory, event(0, 1), Outcome::Duplicate, 1).expect("this one");
        assert!(broken(ack(&memory, event(0, 1), Outcome::Conflict, 1)).contains("no content"));
        let memory = self::memory(1);
        assert!(broken(ack(&memory, event(0, 0), Outcome::Conflict, 1)).contains("no content"));
        assert!(broken(memory.read(1, 0, 3)).contains("never sent"));
    }

    #[test]
    fn acks_must_agree() {
        let memory = memory(2);
        ack(&memory, event(0, 0), Outcome::Stored, 1).expect("possible");
        assert!(broken(ack(&memory, event(0, 0), Outcome::Stored, 1)).contains("second time"));
        assert!(broken(ack(&memory, event(0, 0), Outcome::Duplicate, 2)).contains("was at 1"));
        assert!(broken(ack(&memory, event(1, 0), Outcome::Stored, 0)).contains("no sequence"));
        assert!(broken(ack(&memory, event(1, 0), Outcome::Rejected, 0)).contains("is valid"));
        assert!(broken(ack(&memory, Sent::Invalid, Outcome::Stored, 2)).contains("limit"));
        ack(&memory, Sent::Invalid, Outcome::Rejected, 0).expect("as it should be");
        assert!(memory.acked(&[event(0, 0)], &[]).is_err());
    }

    #[test]
    fn a_load_is_mixed() {
        let memory = Memory::default();
        let mut random = Rng::with_seed(7);
        let sent: Vec<Sent> = (0..100)
            .flat_map(|_| memory.draw(&mut random, 100, 5000))
            .collect();
        assert_eq!(memory.sent(), 5000);
        let conflicts = sent
            .iter()
            .filter(|sent| matches!(sent, Sent::Event { content: 1.., .. }));
        assert!((20..400).contains(&conflicts.count()));
        assert!(sent.contains(&Sent::Invalid));
        assert_eq!(memory.draw_open(10).len(), 10);
        assert_eq!(memory.draw_resends(&mut random, 50).len(), 50);
        assert_eq!(memory.sent(), 5000);
    }
}
