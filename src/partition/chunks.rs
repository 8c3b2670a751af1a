//! The memory for chunks: events read for readers and not yet sent.
//!
//! A connection may hold as much of it as [`connection_bytes_max`] allows. If it has no room for a chunk of the usual
//! size, chunks are small, and those count nothing: the number of readers bounds them. An event larger than such a
//! chunk waits for its memory.

use super::budget::connection_bytes_max;
use crate::pool::{Pool, PoolAccount, PoolShare};

/// The memory for chunks, in bytes.
const CHUNKS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The memory for chunks of a partition. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChunkMemory(Pool);

/// The memory of one connection's readers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ChunkAccount(PoolAccount);

/// A share of the memory for chunks; released when dropped.
pub(crate) type ChunkShare = PoolShare;

impl Default for ChunkMemory {
    fn default() -> Self {
        Self(Pool::new(CHUNKS_BYTES_MAX))
    }
}

impl ChunkMemory {
    /// A share of `bytes`, if the connection may have that much.
    pub fn try_take(&self, account: &ChunkAccount, bytes: usize) -> Option<ChunkShare> {
        // The largest event that can be configured finds room.
        let bytes = bytes.min(CHUNKS_BYTES_MAX / 2);
        self.0.try_take(&account.0, bytes, |held, free| {
            held == 0 || held + bytes <= connection_bytes_max(CHUNKS_BYTES_MAX, free + held)
        })
    }

    /// A share of `bytes`; waits until others have released it.
    pub async fn take(&self, account: &ChunkAccount, bytes: usize) -> ChunkShare {
        self.0.take(|| self.try_take(account, bytes)).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const EVENT: usize = 1024 * 1024;

    impl ChunkMemory {
        /// Takes all of it.
        pub fn take_all(&self) -> Vec<ChunkShare> {
            let mut all = Vec::new();
            while let Some(share) = self.try_take(&ChunkAccount::default(), EVENT) {
                all.push(share);
            }
            assert_eq!(self.free(), 0);
            all
        }

        pub fn free(&self) -> usize {
            self.0.free()
        }
    }

    #[test]
    fn connections_that_read_nothing_leave_room_for_others() {
        let memory = ChunkMemory::default();
        let mut held = Vec::new();
        for connections in 1..=4 {
            let account = ChunkAccount::default();
            while let Some(share) = memory.try_take(&account, EVENT) {
                held.push(share);
            }
            let left = CHUNKS_BYTES_MAX / (connections + 1);
            assert!(memory.free() >= left, "{connections}: {}", memory.free());
        }
        let other = memory.try_take(&ChunkAccount::default(), EVENT);
        assert!(other.is_some());
    }

    #[test]
    fn a_large_event_waits_until_memory_is_released() {
        let memory = ChunkMemory::default();
        let mut all = memory.take_all();
        let account = ChunkAccount::default();
        let mut waiting = Box::pin(memory.take(&account, EVENT));
        assert!((&mut waiting).now_or_never().is_none());
        all.pop();
        let share = waiting.now_or_never().expect("it was released");
        assert_eq!(share.bytes(), EVENT);
        drop((all, share));
        assert_eq!(memory.free(), CHUNKS_BYTES_MAX);
        assert_eq!(account.0.held(), 0);
    }

    #[test]
    fn the_largest_event_finds_room() {
        let memory = ChunkMemory::default();
        let account = ChunkAccount::default();
        assert!(memory.try_take(&account, 4 * CHUNKS_BYTES_MAX).is_some());
    }
}
