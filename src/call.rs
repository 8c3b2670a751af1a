//! A call: one request of a client and its response, over either protocol.
//!
//! Every call on the port passes admission, which puts the body of the request behind a guard: only a few KiB of it
//! may be read, in a limited time. That is enough for every query; only a handler that takes events takes the body
//! from the guard, and is then responsible for the memory. So an endpoint cannot forget to bound what it reads.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::poll_fn;
use http_body::{Body as _, Frame, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use crate::{
    covered::covered,
    partition::{Account, ChunkAccount, ChunkShare, Share},
};

/// How much may be read of a request without events.
pub(crate) const CALL_BYTES_MAX: usize = 16 * 1024;
/// How long it may take to arrive.
pub(crate) const CALL_SECONDS_MAX: u64 = 30;
/// How long a request may take to arrive once it has begun, not counting time in which the server does not read.
pub(crate) const ARRIVAL_SECONDS_MAX: u64 = 60;
/// The least rate at which a request must arrive: this many bytes in this many seconds.
pub(crate) const PROGRESS_BYTES_MIN: usize = 16 * 1024;
pub(crate) const PROGRESS_SECONDS: u64 = 10;
/// How long a part of a response may stay unread before the response is dropped. Long enough for a client that works
/// through one part before it reads the next; proxies wait as long (`stream_idle_timeout` of Envoy).
pub(crate) const UNREAD_SECONDS_MAX: u64 = 300;

/// A call. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Call(Arc<State>);

struct State {
    account: Account,
    chunks: ChunkAccount,
    body: Mutex<Option<Body>>,
    /// Covers responses that the connection has not taken yet.
    leaving: Mutex<Option<Share>>,
    leaving_chunk: Mutex<Option<ChunkShare>>,
}

impl Call {
    /// A call on a connection with these accounts, and its guarded body.
    pub fn new(account: Account, chunks: ChunkAccount, body: Body) -> (Self, Guarded) {
        let call = Self(Arc::new(State {
            account,
            chunks,
            body: Mutex::new(Some(body)),
            leaving: Mutex::new(None),
            leaving_chunk: Mutex::new(None),
        }));
        let guarded = Guarded {
            call: call.clone(),
            bytes_left: CALL_BYTES_MAX,
            deadline: None,
        };
        (call, guarded)
    }

    /// The account of the call's connection.
    pub fn account(&self) -> &Account {
        &self.0.account
    }

    /// The memory of its connection's readers.
    pub fn chunks(&self) -> &ChunkAccount {
        &self.0.chunks
    }

    /// Takes the body from its guard, for a handler that bounds its own memory.
    pub fn take_body(&self) -> Arriving {
        let body = lock(&self.0.body).take();
        Arriving(body.unwrap_or_default())
    }

    /// Attaches a share to the next part of the response, until that has been sent.
    pub fn leave_with(&self, share: Share) {
        let mut leaving = lock(&self.0.leaving);
        match &mut *leaving {
            Some(earlier) => earlier.merge(share),
            None => *leaving = Some(share),
        }
    }

    /// The same for the memory of events that were read.
    pub fn leave_with_chunk(&self, share: ChunkShare) {
        let mut leaving = lock(&self.0.leaving_chunk);
        match &mut *leaving {
            Some(earlier) => earlier.merge(share),
            None => *leaving = Some(share),
        }
    }

    /// Bytes of a response, together with the shares that cover them.
    pub fn covered(&self, bytes: Bytes) -> Bytes {
        let bytes = covered(bytes, lock(&self.0.leaving).take());
        covered(bytes, lock(&self.0.leaving_chunk).take())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing between lock and unlock leaves a half-changed state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a request without events: small, and in time.
pub(crate) struct Guarded {
    call: Call,
    bytes_left: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Why a body is not read any further.
#[derive(Debug, Error)]
pub(crate) enum GuardError {
    #[error("more than {CALL_BYTES_MAX} bytes, which is the limit of a request without events")]
    TooLarge,
    #[error("the request did not arrive within {CALL_SECONDS_MAX} s")]
    Late,
    #[error(transparent)]
    Broken(axum::Error),
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = GuardError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GuardError>>> {
        let polled = match &mut *lock(&self.call.0.body) {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => return Poll::Ready(None),
        };
        let Poll::Ready(frame) = polled else {
            let limit = Duration::from_secs(CALL_SECONDS_MAX);
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Some(Err(GuardError::Late)));
        };
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => 0,
        };
        let Some(bytes_left) = self.bytes_left.checked_sub(bytes) else {
            return Poll::Ready(Some(Err(GuardError::TooLarge)));
        };
        self.bytes_left = bytes_left;
        Poll::Ready(frame.map(|frame| frame.map_err(GuardError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        let body = lock(&self.call.0.body);
        body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = lock(&self.call.0.body);
        body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// The body of a request with events, as it arrives.
pub(crate) struct Arriving(Body);

/// Why nothing more arrives.
#[derive(Debug)]
pub(crate) enum ArrivalError {
    /// It did not arrive in time, or too slowly.
    Stalled,
    /// The connection broke, or the client cancelled.
    Broken(axum::Error),
}

impl Arriving {
    /// The next part, `None` at the end. Without a pace it may take any time.
    pub async fn next(&mut self, pace: Option<&mut Pace>) -> Result<Option<Bytes>, ArrivalError> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.0).poll_frame(cx));
            let frame = match &pace {
                Some(pace) => timeout_at(pace.deadline(), frame)
                    .await
                    .map_err(|_| ArrivalError::Stalled)?,
                None => frame.await,
            };
            match frame {
                Some(Ok(frame)) => {
                    let Ok(part) = frame.into_data() else {
                        continue; // Trailers say nothing here.
                    };
                    if let Some(pace) = pace {
                        pace.arrived(part.len());
                    }
                    return Ok(Some(part));
                }
                Some(Err(error)) => return Err(ArrivalError::Broken(error)),
                None => return Ok(None),
            }
        }
    }
}

/// The rate at which a request must arrive.
pub(crate) struct Pace {
    /// When all of it must have arrived.
    end: Instant,
    /// When [`PROGRESS_BYTES_MIN`] must have arrived, and how many of them are missing.
    step: Instant,
    missing: usize,
}

impl Pace {
    /// For a request that starts now.
    pub fn begin() -> Self {
        let now = Instant::now();
        Self {
            end: now + Duration::from_secs(ARRIVAL_SECONDS_MAX),
            step: now + Duration::from_secs(PROGRESS_SECONDS),
            missing: PROGRESS_BYTES_MIN,
        }
    }

    /// For a request that has not started to arrive: its start may take any time.
    pub fn idle() -> Self {
        let begun = Self::begin();
        Self {
            step: begun.end,
            ..begun
        }
    }

    /// Skips the time since `began`, in which nothing was read.
    pub fn skip(&mut self, began: Instant) {
        let now = Instant::now();
        self.end += now - began;
        self.step = now + Duration::from_secs(PROGRESS_SECONDS);
        self.missing = PROGRESS_BYTES_MIN;
    }

    fn deadline(&self) -> Instant {
        self.end.min(self.step)
    }

    fn arrived(&mut self, bytes: usize) {
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            self.step = Instant::now() + Duration::from_secs(PROGRESS_SECONDS);
            self.missing = PROGRESS_BYTES_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::partition::ChunkMemory;

    #[test]
    fn a_chunk_is_covered_until_it_has_been_sent() {
        let memory = ChunkMemory::default();
        let account = ChunkAccount::default();
        let before = memory.free();
        let take = |bytes| {
            let share = memory.try_take(&account, bytes);
            share.expect("there is room")
        };
        let (call, _guarded) =
            Call::new(Account::default(), ChunkAccount::default(), Body::empty());
        call.leave_with_chunk(take(50));
        call.leave_with_chunk(take(10));
        let first = call.covered(Bytes::from_static(b"two parts"));
        // The connection asks for the next part while it still has the first.
        call.leave_with_chunk(take(30));
        let second = call.covered(Bytes::from_static(b"a part"));
        assert_eq!(before - memory.free(), 90);
        drop(first);
        assert_eq!(before - memory.free(), 30);
        drop(second);
        assert_eq!(before - memory.free(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_was_read_does_not_count() {
        let waited = Duration::from_secs(PROGRESS_SECONDS - 1);
        let mut pace = Pace::begin();
        for _ in 0..10 {
            let began = Instant::now();
            tokio::time::sleep(waited).await;
            pace.skip(began);
            let left = pace.deadline() - Instant::now();
            assert_eq!(left, Duration::from_secs(PROGRESS_SECONDS));
        }
        let left = pace.end - Instant::now();
        assert_eq!(left, Duration::from_secs(ARRIVAL_SECONDS_MAX));
    }

    #[tokio::test]
    async fn a_guarded_body_is_limited_as_a_whole() {
        for (parts, is_taken) in [(2, true), (3, false)] {
            let part = || Ok::<_, std::io::Error>(Bytes::from(vec![0; CALL_BYTES_MAX / 2]));
            let parts: Vec<_> = (0..parts).map(|_| part()).collect();
            let body = Body::from_stream(futures_util::stream::iter(parts));
            let (_call, guarded) = Call::new(Account::default(), ChunkAccount::default(), body);
            let read = guarded.collect().await;
            let is_too_large = matches!(read, Err(GuardError::TooLarge));
            assert_eq!((read.is_ok(), is_too_large), (is_taken, !is_taken));
        }
    }
}
