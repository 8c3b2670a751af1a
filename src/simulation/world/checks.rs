//! Checks: what must hold for a server and its log, whatever happened.

use std::path::Path;

use super::{DATA_DIR, World};
use crate::{
    event::{Sequence, StoredEvent},
    log,
    partition::{Health, Partition, ReadError, Start},
    simulation::model::Dropped,
};

impl World {
    /// A freshly opened server knows everything it should.
    pub(super) fn check_opened(&mut self, partition: &Partition) -> Dropped {
        let tail = partition.durable_tail();
        assert!(
            tail >= self.model.tail(),
            "the log ends at {tail}, below what was promised"
        );
        let dropped = Dropped::counted(partition);
        if let Some(before) = &self.before {
            if before.saved {
                assert_eq!(dropped, before.dropped, "a clean stop keeps all counters");
            }
            assert!(
                before.dropped_min.is_within(&dropped) && dropped.is_within(&before.dropped),
                "counted are {dropped:?}, saved {:?}, and at the end {:?}",
                before.dropped_min,
                before.dropped
            );
        }
        self.model.answered = Dropped::default();
        self.has_failed = false;
        dropped
    }

    /// Checks the health of a server against what has happened to it.
    pub(super) fn check_health(&self, partition: &Partition) {
        if self.disk.has_crashed() {
            return;
        }
        let health = *partition.health().borrow();
        assert!(
            self.disk.has_faulted() || health == Health::Serving,
            "nothing has failed, and its health is {health:?}"
        );
        assert!(
            !self.has_failed || matches!(health, Health::Failed(_)),
            "it failed, and its health is {health:?}"
        );
    }

    /// The log of a stopped server is whole, and ends with its last batch.
    pub(super) fn check_log(&self) {
        let log_dir = Path::new(DATA_DIR).join("log");
        let checked = log::check(&log_dir, &*self.options.platform.disk, |_| ());
        let checked = checked.expect("the log can be checked");
        assert!(
            checked.damage.is_empty(),
            "the log is damaged: {:?}",
            checked.damage
        );
        assert!(
            checked.unfinished.is_none(),
            "behind the log: {:?}",
            checked.unfinished
        );
    }

    pub(super) fn check_all(&mut self, all: &[StoredEvent], partition: &Partition) {
        self.model.check(all, &partition.topics("", usize::MAX));
        for follower in &self.followers {
            follower.check(all);
        }
    }

    pub(super) fn read_all(
        &mut self,
        partition: &Partition,
    ) -> Result<Vec<StoredEvent>, ReadError> {
        let mut reader = partition.reader_here(None, &Start::Earliest)?;
        let mut all = Vec::new();
        loop {
            let chunk = reader.read_here(Sequence::MAX, usize::MAX)?;
            all.extend(chunk.events);
            if chunk.caught_up {
                return Ok(all);
            }
        }
    }
}
