//! The memory for chunks: events read for readers and not yet sent.
//!
//! A connection may hold as much of it as [`connection_bytes_max`] allows. If it has no room for a chunk of the usual
//! size, chunks are small, and those count nothing: the number of readers bounds them. An event larger than such a
//! chunk waits for its memory.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

use super::budget::connection_bytes_max;

/// The memory for chunks, in bytes.
const CHUNKS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The memory for chunks of a partition. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChunkMemory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: Mutex<usize>,
    released: Notify,
}

/// The memory of one connection's readers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ChunkAccount(Arc<AtomicUsize>);

/// A share of the memory for chunks; released when dropped.
#[derive(Debug)]
pub(crate) struct ChunkShare {
    memory: ChunkMemory,
    account: ChunkAccount,
    bytes: usize,
}

impl Default for ChunkMemory {
    fn default() -> Self {
        Self(Arc::new(Pool {
            free: Mutex::new(CHUNKS_BYTES_MAX),
            released: Notify::new(),
        }))
    }
}

impl ChunkMemory {
    /// A share of `bytes`, if the connection may have that much.
    pub fn try_take(&self, account: &ChunkAccount, bytes: usize) -> Option<ChunkShare> {
        // The largest event that can be configured finds room.
        let bytes = bytes.min(CHUNKS_BYTES_MAX / 2);
        let mut free = self.lock();
        // Changed only under the lock.
        let held = account.0.load(Relaxed);
        let is_first = held == 0 && bytes <= *free;
        if !is_first && held + bytes > connection_bytes_max(CHUNKS_BYTES_MAX, *free + held) {
            return None;
        }
        *free -= bytes;
        account.0.fetch_add(bytes, Relaxed);
        Some(ChunkShare {
            memory: self.clone(),
            account: account.clone(),
            bytes,
        })
    }

    /// A share of `bytes`; waits until others have released it.
    pub async fn take(&self, account: &ChunkAccount, bytes: usize) -> ChunkShare {
        loop {
            let mut released = std::pin::pin!(self.0.released.notified());
            released.as_mut().enable();
            if let Some(share) = self.try_take(account, bytes) {
                return share;
            }
            released.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // Nothing between lock and unlock panics.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkShare {
    /// The bytes it covers.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Releases all beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        if surplus == 0 {
            return;
        }
        self.bytes -= surplus;
        let mut free = self.memory.lock();
        *free += surplus;
        self.account.0.fetch_sub(surplus, Relaxed);
        drop(free);
        self.memory.0.released.notify_waiters();
    }

    /// Absorbs another share of the same connection.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for ChunkShare {
    fn drop(&mut self) {
        self.shrink(0);
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
            assert_eq!(*self.lock(), 0);
            all
        }

        pub fn free(&self) -> usize {
            *self.lock()
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
        assert_eq!(account.0.load(Relaxed), 0);
    }

    #[test]
    fn the_largest_event_finds_room() {
        let memory = ChunkMemory::default();
        let account = ChunkAccount::default();
        assert!(memory.try_take(&account, 4 * CHUNKS_BYTES_MAX).is_some());
    }
}
