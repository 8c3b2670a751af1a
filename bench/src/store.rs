//! What is measured: oncelog, and what users would pick instead, behind one trait.

pub mod grpc;
pub mod oncelog;

use std::{path::Path, sync::Arc};

use crate::{Result, event::Events, measure::Recorder, plan::Plan, process::Process};

/// A store that can be started on a directory.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// Its name on the command line and in the report.
    fn name(&self) -> &'static str;

    /// What an acknowledgement promises.
    fn durability(&self) -> &'static str;

    /// How far back duplicates are found.
    fn horizon(&self) -> &'static str;

    /// Starts it on `dir`, new or as the last one left it, and returns once it serves.
    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>>;
}

/// A store that serves.
#[tonic::async_trait]
pub trait Running: Send + Sync {
    /// Its process.
    fn process(&mut self) -> &mut Process;

    /// Opens what a stream needs, so that connecting is not measured.
    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>>;
}

/// A connection that publishes, or reads.
#[tonic::async_trait]
pub trait Stream: Send {
    /// Sends a plan to its end, and returns when all of it is acknowledged.
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()>;

    /// Gives every event, of one topic or of all, to `seen`.
    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()>;
}

/// What a reader has seen of the events below `end`.
#[derive(Debug)]
pub struct Seen {
    events: Arc<Events>,
    end: u64,
    /// The topic all of them must have.
    topic: Option<usize>,
    /// A bit per event.
    bits: Vec<u64>,
    count: u64,
    /// With it, every event is compared byte for byte.
    scratch: Option<Vec<u8>>,
}

impl Seen {
    /// Nothing seen yet. With `compare`, an event that differs by a byte is an error; without, its id decides.
    pub fn new(events: Arc<Events>, end: u64, topic: Option<usize>, compare: bool) -> Self {
        Self {
            events,
            end,
            topic,
            bits: vec![0; end.div_ceil(64) as usize],
            count: 0,
            scratch: compare.then(Vec::new),
        }
    }

    /// Takes an event that was read: its key, and what else it has, encoded.
    pub fn take(&mut self, topic: &[u8], id: &[u8], body: &[u8]) -> Result<()> {
        let number = self.events.number(id)?;
        if number >= self.end
            || self
                .topic
                .is_some_and(|topic| topic != self.events.topic_of(number))
        {
            return Err(format!("event {number} was read and does not belong here").into());
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.bits[word] & bit != 0 {
            return Err(format!("event {number} was read twice").into());
        }
        self.bits[word] |= bit;
        self.count += 1;
        if let Some(scratch) = &mut self.scratch
            && !self.events.is(number, [topic, id, body], scratch)
        {
            return Err(format!("event {number} is not what was sent").into());
        }
        Ok(())
    }

    /// How many events were read: all there are, or this is an error.
    pub fn complete(self) -> Result<u64> {
        let expected = match self.topic {
            Some(topic) => self.events.count_of_topic(topic, self.end),
            None => self.end,
        };
        if self.count == expected {
            return Ok(self.count);
        }
        let lost = (0..self.end)
            .filter(|number| {
                self.topic
                    .is_none_or(|topic| topic == self.events.topic_of(*number))
            })
            .find(|number| self.bits[(number / 64) as usize] >> (number % 64) & 1 == 0);
        Err(format!(
            "read {} of {expected} events; event {lost:?} is lost",
            self.count
        )
        .into())
    }
}
