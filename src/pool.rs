//! A pool of memory: bytes that are shared out, and how many of them each connection holds.
//!
//! Owns the counts and the waiting. How much a connection may have is for the user of a pool to say.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// The bytes that nobody holds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Free>);

#[derive(Debug)]
struct Free {
    bytes: Mutex<usize>,
    released: Notify,
}

/// The bytes that one connection holds. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolAccount(Arc<AtomicUsize>);

/// Some bytes of a pool; released when dropped.
#[derive(Debug)]
pub(crate) struct PoolShare {
    pool: Pool,
    account: PoolAccount,
    bytes: usize,
}

impl Pool {
    /// A pool of `bytes`, all of them free.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Free {
            bytes: Mutex::new(bytes),
            released: Notify::new(),
        }))
    }

    /// A share of `bytes`, if as many are free and `allows` it, given the bytes that `account` holds and those that
    /// are free.
    pub fn try_take(
        &self,
        account: &PoolAccount,
        bytes: usize,
        allows: impl FnOnce(usize, usize) -> bool,
    ) -> Option<PoolShare> {
        let mut free = self.lock();
        // Changed only under the lock.
        let held = account.0.load(Relaxed);
        if bytes > *free || !allows(held, *free) {
            return None;
        }
        *free -= bytes;
        account.0.fetch_add(bytes, Relaxed);
        Some(PoolShare {
            pool: self.clone(),
            account: account.clone(),
            bytes,
        })
    }

    /// Waits until `try_take` returns a share, trying again after each release.
    pub async fn take(&self, try_take: impl Fn() -> Option<PoolShare>) -> PoolShare {
        loop {
            let mut released = std::pin::pin!(self.0.released.notified());
            // From now on a release is noticed.
            released.as_mut().enable();
            if let Some(share) = try_take() {
                return share;
            }
            released.await;
        }
    }

    /// The bytes that are free.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // Nothing between lock and unlock panics.
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolAccount {
    /// The bytes that it holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl PoolShare {
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
        let mut free = self.pool.lock();
        *free += surplus;
        self.account.0.fetch_sub(surplus, Relaxed);
        drop(free);
        self.pool.0.released.notify_waiters();
    }

    /// Absorbs another share of the same account.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for PoolShare {
    fn drop(&mut self) {
        self.shrink(0);
    }
}
