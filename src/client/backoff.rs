//! When to retry after a break, and when to give up.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;

/// The longest wait after the first failure.
const DELAY_INITIAL: Duration = Duration::from_millis(50);
/// The longest wait after any failure.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// The failures since the last progress.
#[derive(Debug)]
pub(super) struct Backoff {
    give_up_after: Duration,
    failures: u32,
    broken_since: Option<Instant>,
}

impl Backoff {
    /// Gives up once failures have gone on for `give_up_after`.
    pub fn new(give_up_after: Duration) -> Self {
        Self {
            give_up_after,
            failures: 0,
            broken_since: None,
        }
    }

    /// Forgets the failures so far.
    pub fn progress(&mut self) {
        self.failures = 0;
        self.broken_since = None;
    }

    /// Counts a failure. Returns how long to wait before the next attempt; `None` to give up.
    pub fn failure(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let broken_for = now - *self.broken_since.get_or_insert(now);
        let left = self
            .give_up_after
            .checked_sub(broken_for)
            .filter(|left| !left.is_zero())?;
        let delay = DELAY_INITIAL
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(DELAY_MAX);
        self.failures += 1;
        Some(jittered(delay).min(left))
    }

    /// Whether there was exactly one failure since the last progress.
    pub fn is_first(&self) -> bool {
        self.failures == 1
    }
}

/// A random part of `delay`, between half and all of it, so that clients cut off together do not all come
/// back at once.
fn jittered(delay: Duration) -> Duration {
    // Every RandomState has new keys, so its hash of nothing is random.
    let random = RandomState::new().build_hasher().finish();
    let fraction = f64::from(u32::try_from(random >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    delay.mul_f64(0.5 + fraction / 2.0)
}

/// Whether a call that failed with `code` may succeed when retried.
pub(super) fn is_transient(code: Code) -> bool {
    match code {
        // The codes of a broken connection, a server that starts or stops, and a full disk that may heal.
        Code::Unavailable
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Aborted => true,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
        // Never the code of a failed call.
        Code::Ok => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_end() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let start = Instant::now();
        let mut delays = Vec::new();
        while let Some(delay) = backoff.failure() {
            delays.push(delay);
            tokio::time::advance(delay).await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        assert!((DELAY_INITIAL / 2..=DELAY_INITIAL).contains(&delays[0]));
        assert!(delays.iter().all(|delay| *delay <= DELAY_MAX));
        assert!(delays[8] >= DELAY_MAX / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        assert!(backoff.failure().is_some() && backoff.is_first());
        tokio::time::advance(Duration::from_secs(2)).await;
        backoff.progress();
        let delay = backoff.failure().expect("the clock starts over");
        assert!(delay <= DELAY_INITIAL);
    }
}
