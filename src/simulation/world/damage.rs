//! Damage: bits that flip while no server runs.

use std::path::Path;

use super::{DATA_DIR, REQUEST_EVENTS_MAX, STEPS_MAX, World};
use crate::{
    event::FIRST_SEQUENCE,
    log::{self, Batch, LogOpenError, LogReadError},
    partition::{OpenError, Partition, ReadError, Rejection, Start},
    simulation::{
        follower::Follower,
        jobs,
        model::{Name, Sent},
        submission::{Reply, Submission},
    },
};

impl World {
    /// Flips a bit of a file while no server runs: afterwards the server's answers are right, or errors. The disk
    /// is restored afterwards.
    pub(super) fn turn_a_bit(&mut self) {
        let log_dir = Path::new(DATA_DIR).join("log");
        let mut last = FIRST_SEQUENCE;
        let on_batch = |batch: &Batch| last = batch.first_sequence();
        let Ok(checked) = log::check(&log_dir, &*self.options.platform.disk, on_batch) else {
            return;
        };
        // A last batch with a flipped bit looks like an unfinished one, if nothing else knows of it.
        let is_saved = self.before.as_ref().is_some_and(|before| before.saved);
        let tail_min = if is_saved { checked.tail } else { last };
        let content = self.disk.content();
        let dir = if self.chance.percent(50) {
            &log_dir
        } else {
            Path::new(DATA_DIR)
        };
        if !self.disk.turn_a_bit(dir) {
            return;
        }
        self.figures.turned_bits += 1;
        self.figures.lives += 1;
        let opened = self.try_open();
        let was_opened = opened.is_ok();
        if let Ok((partition, threads, _)) = opened {
            let tail = partition.durable_tail();
            assert!(
                tail == checked.tail || tail == tail_min,
                "the log ended at {}, its last batch began at {last}, and after a turned bit it ends at {tail}",
                checked.tail
            );
            self.read_damaged(&partition);
            if tail == checked.tail {
                self.resend_damaged(&partition);
            }
            drop(partition);
            // The counters may be the damaged file.
            _ = threads.stop();
        }
        jobs::end();
        self.disk.put_back(content);
        if was_opened {
            // The content that it was opened with, and vouched for, it made durable.
            self.disk.sync_everything();
        }
        self.disk.restart(false);
    }

    pub(super) fn read_damaged(&mut self, partition: &Partition) {
        for topic in 0..=self.topics {
            let topic = topic.checked_sub(1).map(|topic| topic as u8);
            let mut follower = Follower::new(topic, Start::Earliest);
            loop {
                match follower.step(partition, &mut self.model, &mut self.chance) {
                    Ok((_, true)) => {}
                    Ok((_, false)) => break,
                    Err(error) => {
                        let is_io = matches!(&error, ReadError::LogUnreadable);
                        assert!(!is_io, "a turned bit makes {error}");
                        break;
                    }
                }
            }
        }
    }

    pub(super) fn resend_damaged(&mut self, partition: &Partition) {
        let names: Vec<Name> = self.model.names().collect();
        for names in names.chunks(REQUEST_EVENTS_MAX as usize) {
            let sent: Vec<Sent> = names
                .iter()
                .map(|&name| Sent { name, content: 0 })
                .collect();
            sent.iter().for_each(|sent| self.model.send(*sent));
            let mut request = Submission::begin(partition, sent, Rejection::OfEvent);
            let answer = (0..STEPS_MAX).find_map(|_| {
                jobs::turn();
                request.step(partition)
            });
            match answer.expect("a request is answered") {
                Reply::Outcomes(outcomes) => {
                    self.model
                        .answered(&request.sent, &outcomes, request.asked_at);
                }
                // It refuses everything from now on.
                Reply::Error(_) | Reply::None => return,
            }
        }
    }
}

pub(super) fn is_damage(error: &OpenError) -> bool {
    match error {
        OpenError::Log(error) => !matches!(error, LogOpenError::Io { .. }),
        OpenError::Read(error) => is_damaged(error),
        OpenError::Locked { .. }
        | OpenError::Io { .. }
        | OpenError::Thread(_)
        | OpenError::Index(_)
        | OpenError::Rebuild(_)
        | OpenError::Counters(_) => false,
    }
}

fn is_damaged(error: &LogReadError) -> bool {
    matches!(error, LogReadError::Damaged { .. })
}
