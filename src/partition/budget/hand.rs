//! Bytes read from a connection that wait their turn: bounded beside the budget, and never waited for.

use std::sync::atomic::Ordering::Relaxed;

use super::{Account, Budget};

/// Bytes read from a connection and not yet taken. Releases its memory when dropped.
pub struct Hand {
    pub(super) budget: Budget,
    pub(super) account: Account,
    pub(super) bytes: usize,
}

impl Hand {
    /// Sets its size to `bytes`. Returns whether there is room; if not, it keeps its old size.
    pub fn hold(&mut self, bytes: usize) -> bool {
        if bytes == self.bytes {
            return true;
        }
        let account = &self.account.0;
        let mut state = self.budget.lock();
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if account.hands.load(Relaxed) + more > state.hands_free.saturating_sub(more) {
                return false;
            }
            state.hands_free -= more;
            account.hands.fetch_add(more, Relaxed);
        } else {
            state.hands_free += self.bytes - bytes;
            account.hands.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.hold(0);
    }
}
