//! Submission: events on their way through the partition, step by step, so that others can run in between.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use super::model::Sent;
use crate::{
    event::{Event, Sequence},
    partition::{
        Account, LookUp, LookedUp, Outcome, Partition, PendingOutcomes, PublishError, Rejection,
    },
};

/// A request and its progress.
pub(super) struct Submission {
    pub sent: Vec<Sent>,
    rejection: Rejection,
    /// The durable tail when it was made.
    pub asked_at: Sequence,
    stage: Stage,
}

enum Stage {
    LookUp(LookUp),
    LookedUp(LookedUp),
    Pending(PendingOutcomes),
    /// Neither accepted nor answered.
    Lost,
}

/// The result of a request.
pub(super) enum Reply {
    Outcomes(Vec<Outcome>),
    Error(PublishError),
    /// The server ended first.
    None,
}

impl Submission {
    pub fn begin(partition: &Partition, sent: Vec<Sent>, rejection: Rejection) -> Self {
        let events: Vec<Event> = sent.iter().map(|sent| sent.event()).collect();
        Self {
            sent,
            rejection,
            asked_at: partition.durable_tail(),
            stage: Stage::LookUp(partition.look_up(events)),
        }
    }

    /// Takes one step, and returns the reply once there is one.
    pub fn step(&mut self, partition: &Partition) -> Option<Reply> {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::LookUp(look_up) => match look_up.run() {
                Ok(looked_up) => self.stage = Stage::LookedUp(looked_up),
                Err(error) => return Some(Reply::Error(error)),
            },
            Stage::LookedUp(looked_up) => {
                let share = partition.ingest().share(&Account::default(), 0);
                match partition.try_submit(looked_up, self.rejection, share) {
                    Some(pending) => self.stage = Stage::Pending(pending),
                    None => return Some(Reply::None),
                }
            }
            Stage::Pending(mut pending) => {
                let polled = Pin::new(&mut pending).poll(&mut Context::from_waker(Waker::noop()));
                match polled {
                    Poll::Ready(Ok(outcomes)) => return Some(Reply::Outcomes(outcomes.outcomes)),
                    Poll::Ready(Err(error)) => return Some(Reply::Error(error)),
                    Poll::Pending => self.stage = Stage::Pending(pending),
                }
            }
            Stage::Lost => return Some(Reply::None),
        }
        None
    }

    /// Whether nothing has been done for it yet.
    pub fn is_new(&self) -> bool {
        matches!(self.stage, Stage::LookUp(_))
    }

    /// Whether it has been looked up, and nothing more.
    pub fn is_looked_up(&self) -> bool {
        matches!(self.stage, Stage::LookedUp(_))
    }

    /// The reply, if it came before the server ended.
    pub fn end(mut self, partition: &Partition) -> (Vec<Sent>, Sequence, Reply) {
        let reply = match self.stage {
            Stage::Pending(_) => self.step(partition),
            Stage::LookUp(_) | Stage::LookedUp(_) | Stage::Lost => None,
        };
        (self.sent, self.asked_at, reply.unwrap_or(Reply::None))
    }
}
