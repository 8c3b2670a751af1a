//! The requests of each stream: its own share of the events, in order, and resends of events it has sent.
//!
//! A plan follows from the seed alone, so every store gets the same events in the same requests.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::event::mix;

/// How far back a recent resend reaches, in events of all streams.
pub const RECENT_EVENTS: u64 = 100_000;

/// Which events are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resend {
    /// Uniformly from everything sent so far
    Uniform,
    /// Uniformly from the last 100,000 events
    Recent,
}

/// The load of all streams together.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The first event.
    pub first: u64,
    /// How many consecutive events follow.
    pub unique: u64,
    /// How many streams share them.
    pub streams: u64,
    /// Events per request.
    pub batch: usize,
    /// Unacknowledged requests per stream.
    pub in_flight: usize,
    /// Resends, in percent of all events sent.
    pub resend_percent: u64,
    /// Which events those are.
    pub resend: Resend,
    pub seed: u64,
}

impl Load {
    /// The plans of the streams.
    pub fn plans(&self) -> impl Iterator<Item = Plan> {
        (0..self.streams).map(|stream| Plan {
            load: *self,
            stream,
            next: 0,
            own: (self.unique + self.streams - 1 - stream) / self.streams,
            random: mix(mix(self.seed) ^ stream),
        })
    }
}

/// The rest of a stream's requests.
#[derive(Clone, Debug)]
pub struct Plan {
    pub load: Load,
    stream: u64,
    /// How many of its own events it has sent.
    next: u64,
    own: u64,
    random: u64,
}

impl Plan {
    /// Puts the numbers of the next request's events into `numbers`; none when everything has been sent.
    pub fn next(&mut self, numbers: &mut Vec<u64>) {
        numbers.clear();
        let recent = RECENT_EVENTS / self.load.streams;
        while numbers.len() < self.load.batch && self.next < self.own {
            self.random = mix(self.random);
            let at = if self.next > 0 && self.random % 100 < self.load.resend_percent {
                let back = match self.load.resend {
                    Resend::Uniform => self.next,
                    Resend::Recent => self.next.min(recent),
                };
                self.next - 1 - (self.random >> 16) % back
            } else {
                self.next += 1;
                self.next - 1
            };
            numbers.push(self.load.first + at * self.load.streams + self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_send_every_event_and_the_share_of_resends() {
        for resend in [Resend::Uniform, Resend::Recent] {
            let load = Load {
                first: 500,
                unique: 300_001,
                streams: 4,
                batch: 100,
                in_flight: 1,
                resend_percent: 20,
                resend,
                seed: 3,
            };
            let mut seen = vec![0; 300_501];
            let (mut sent, mut newest) = (0, 0);
            for mut plan in load.plans() {
                let mut numbers = Vec::new();
                loop {
                    plan.next(&mut numbers);
                    for number in &numbers {
                        sent += 1;
                        seen[*number as usize] += 1;
                        newest = newest.max(*number);
                        assert!(resend == Resend::Uniform || newest - number <= RECENT_EVENTS);
                    }
                    if numbers.is_empty() {
                        break;
                    }
                    assert!(numbers.len() <= 100);
                }
                newest = 0;
            }
            assert!(seen[..500].iter().all(|times| *times == 0));
            assert!(seen[500..].iter().all(|times| *times > 0));
            let share = (sent - load.unique) * 1000 / sent;
            assert!((195..205).contains(&share), "{share}");
        }
    }
}
