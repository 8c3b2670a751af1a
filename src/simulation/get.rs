//! Get: the look-up of one event by its key, step by step, so that others can run in between.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use super::model::Name;
use crate::{
    event::{Key, Sequence, StoredEvent},
    partition::{Find, Found, Partition, ReadError},
};

/// The key, and the progress of its look-up.
pub(super) struct Get {
    pub name: Name,
    /// Where the event was known to be stored when it began.
    pub known: Option<Sequence>,
    key: Key,
    stage: Stage,
}

enum Stage {
    Begun(Find),
    Asked(Found),
    At(Sequence),
    /// Answered, or the server ended first.
    Lost,
}

/// The result. None if the server accepted no more questions.
pub(super) type Got = Option<Result<Option<StoredEvent>, ReadError>>;

impl Get {
    pub fn begin(partition: &Partition, name: Name, known: Option<Sequence>) -> Self {
        let key = name.key();
        Self {
            name,
            known,
            stage: Stage::Begun(partition.look_for(key.clone())),
            key,
        }
    }

    /// Takes one step, and returns the result once there is one.
    pub fn step(&mut self, partition: &Partition) -> Option<Got> {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Begun(find) => {
                if find.reads_disk() {
                    match find.run() {
                        Ok(Some(entry)) => {
                            self.stage = Stage::At(entry.sequence);
                            return None;
                        }
                        Ok(None) => {}
                        Err(error) => return Some(Some(Err(error.into()))),
                    }
                }
                match partition.try_find(find) {
                    Some(found) => self.stage = Stage::Asked(found),
                    None => return Some(None),
                }
            }
            Stage::Asked(mut found) => {
                match Pin::new(&mut found).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(Ok(Some(entry)))) => self.stage = Stage::At(entry.sequence),
                    Poll::Ready(Ok(Ok(None))) => return Some(Some(Ok(None))),
                    Poll::Ready(Ok(Err(error))) => return Some(Some(Err(error))),
                    Poll::Ready(Err(_)) => return Some(None),
                    Poll::Pending => self.stage = Stage::Asked(found),
                }
            }
            Stage::At(sequence) => return Some(Some(partition.read_event(&self.key, sequence))),
            Stage::Lost => return Some(None),
        }
        None
    }
}
