//! The durable tail, and the batches just below it.
//!
//! Owns what readers may see: nothing at or past the tail. Keeps the newest batches in memory, within a limit,
//! so that followers need not read the log.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::cursor::Mark;
use crate::{event::Sequence, log::Batch};

/// The durable tail of a partition. One writer moves it; any number of readers wait for it.
pub struct DurableTail {
    /// After the last durable event.
    tail: watch::Sender<Mark>,
    cache: Mutex<Cache>,
    cache_bytes_max: usize,
}

#[derive(Default)]
struct Cache {
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl DurableTail {
    /// Everything up to `tail` is durable. Keeps at most `cache_bytes_max` of batches, or just the newest
    /// one.
    pub fn new(tail: Mark, cache_bytes_max: usize) -> Self {
        Self {
            tail: watch::Sender::new(tail),
            cache: Mutex::default(),
            cache_bytes_max,
        }
    }

    /// Everything below it is durable.
    pub fn get(&self) -> Sequence {
        self.mark().next()
    }

    /// The tail, with the proof of the batch before it.
    pub fn mark(&self) -> Mark {
        *self.tail.borrow()
    }

    /// Sees every later move of the tail.
    pub fn watch(&self) -> watch::Receiver<Mark> {
        self.tail.subscribe()
    }

    /// Moves the tail past `batch`, which is durable and starts at the tail.
    pub fn advance(&self, batch: Batch) {
        let tail = Mark::after(&batch);
        assert_eq!(batch.first_sequence(), self.get(), "batches have no gaps");
        let mut cache = self.cache();
        cache.bytes += batch.bytes();
        cache.batches.push_back(batch);
        while cache.bytes > self.cache_bytes_max && cache.batches.len() > 1 {
            let oldest = cache.batches.pop_front().expect("more than one");
            cache.bytes -= oldest.bytes();
        }
        drop(cache);
        self.tail.send_replace(tail);
    }

    /// The batch that holds `sequence`, if it is in memory.
    pub fn recent(&self, sequence: Sequence) -> Option<Batch> {
        let cache = self.cache();
        let after = cache
            .batches
            .partition_point(|batch| batch.first_sequence() <= sequence);
        let batch = cache.batches.get(after.checked_sub(1)?)?;
        (sequence < batch.end_sequence()).then(|| batch.clone())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Nothing between lock and unlock leaves the cache half changed.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::BatchBuilder, partition::support::event};

    /// A batch of two events.
    fn batch(first: Sequence) -> Batch {
        let mut builder = BatchBuilder::new(first);
        builder.push(&event("t", first as usize, 100));
        builder.push(&event("t", first as usize + 1, 100));
        builder.finish(first)
    }

    #[test]
    fn the_newest_batches_are_kept_as_far_as_they_fit() {
        let bytes = batch(101).bytes();
        let tail = DurableTail::new(Mark::START, 3 * bytes + bytes / 2);
        for first in (1..=201).step_by(2) {
            tail.advance(batch(first));
        }
        assert_eq!(tail.get(), 203);
        for sequence in 1..=203 {
            let found = tail.recent(sequence);
            let is_kept = (197..203).contains(&sequence);
            let expected = is_kept.then(|| sequence - (sequence - 1) % 2);
            assert_eq!(
                found.map(|batch| batch.first_sequence()),
                expected,
                "{sequence}"
            );
        }
        // A single batch is kept whatever its size.
        let tail = DurableTail::new(Mark::START, 0);
        tail.advance(batch(1));
        tail.advance(batch(3));
        assert!(tail.recent(2).is_none() && tail.recent(3).is_some());
    }
}
