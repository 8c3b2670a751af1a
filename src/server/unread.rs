//! Responses that the client does not read.
//!
//! A connection asks for the next part of a response when the last has been sent, or nearly so. A response of which the
//! client reads nothing for long is dropped, with its permits and its memory; the client finds an error behind the part
//! that the connection already has. A follower that waits for an event is not dropped: the connection has asked for its
//! next part.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, http::HeaderMap};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::grpc;

/// The unfinished responses of a connection. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct OpenResponses(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    responses: BTreeMap<u64, Arc<Mutex<State>>>,
    begun: u64,
}

struct State {
    /// None once dropped.
    body: Option<Body>,
    is_grpc: bool,
    /// Since when the connection has had a part without asking for the next.
    unread_since: Option<Instant>,
    /// Whether the client has received the error.
    error_sent: bool,
}

/// A response that the connection takes part by part.
pub(super) struct OpenResponse {
    responses: OpenResponses,
    number: u64,
    state: Arc<Mutex<State>>,
}

impl OpenResponses {
    /// Starts a response.
    pub fn begin(&self, body: Body, is_grpc: bool) -> OpenResponse {
        let state = Arc::new(Mutex::new(State {
            body: Some(body),
            is_grpc,
            unread_since: Some(Instant::now()),
            error_sent: false,
        }));
        let mut open = lock(&self.0);
        let number = open.begun;
        open.begun += 1;
        open.responses.insert(number, Arc::clone(&state));
        OpenResponse {
            responses: self.clone(),
            number,
            state,
        }
    }

    /// Drops responses of which the client has read nothing for `limit`. Returns whether one dropped earlier has
    /// stayed unread as long again.
    pub fn drop_unread(&self, now: Instant, limit: Duration) -> bool {
        let mut bodies = Vec::new();
        let mut is_stuck = false;
        for state in lock(&self.0).responses.values() {
            let mut state = lock(state);
            if state.unread_since.is_some_and(|since| now - since >= limit) {
                is_stuck |= state.body.is_none();
                bodies.extend(state.body.take());
                state.unread_since = Some(now);
            }
        }
        if !bodies.is_empty() {
            tracing::debug!(
                responses = bodies.len(),
                "dropped responses that the client does not read"
            );
        }
        is_stuck
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A body that panicked is not polled again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenResponse {
    pub fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = lock(&self.state);
        let Some(body) = &mut state.body else {
            return Poll::Ready(state.send_error());
        };
        let polled = std::pin::Pin::new(body).poll_frame(cx);
        let has_part = matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        state.unread_since = has_part.then(Instant::now);
        polled
    }

    pub fn is_end_stream(&self) -> bool {
        let state = lock(&self.state);
        match &state.body {
            Some(body) => body.is_end_stream(),
            None => state.error_sent,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        let state = lock(&self.state);
        state.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl State {
    /// The end of a dropped response.
    fn send_error(&mut self) -> Option<Result<Frame<Bytes>, axum::Error>> {
        self.unread_since = None;
        if std::mem::replace(&mut self.error_sent, true) {
            return None;
        }
        let mut trailers = HeaderMap::new();
        if self.is_grpc && grpc::response_not_read().add_header(&mut trailers).is_ok() {
            return Some(Ok(Frame::trailers(trailers)));
        }
        Some(Err(axum::Error::new(io::Error::from(
            io::ErrorKind::TimedOut,
        ))))
    }
}

impl Drop for OpenResponse {
    fn drop(&mut self) {
        lock(&self.responses.0).responses.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A body of one part, after which it waits, and the memory it holds meanwhile.
    fn body() -> (Body, std::sync::Weak<()>) {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let part = stream::once(async { Ok::<_, io::Error>("part") });
        let waiting = stream::pending().map(move |end| {
            _ = &held;
            end
        });
        (Body::from_stream(part.chain(waiting)), weak)
    }

    fn poll(response: &OpenResponse) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        response.poll_frame(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_response_is_dropped_and_says_so() {
        for is_grpc in [true, false] {
            let responses = OpenResponses::default();
            let (body, held) = body();
            let response = responses.begin(body, is_grpc);
            assert!(matches!(poll(&response), Poll::Ready(Some(Ok(_)))));
            tokio::time::advance(LIMIT / 2).await;
            assert!(!responses.drop_unread(Instant::now(), LIMIT));
            assert!(held.upgrade().is_some());
            tokio::time::advance(LIMIT / 2).await;
            assert!(!responses.drop_unread(Instant::now(), LIMIT));
            assert!(held.upgrade().is_none());
            assert!(
                !responses.drop_unread(Instant::now(), LIMIT),
                "the limit begins anew"
            );
            tokio::time::advance(LIMIT).await;
            assert!(
                responses.drop_unread(Instant::now(), LIMIT),
                "its part is still there"
            );
            match poll(&response) {
                Poll::Ready(Some(Ok(end))) => {
                    let trailers = end.into_trailers().expect("there are no more parts");
                    assert_eq!(trailers["grpc-status"], "14");
                    assert!(is_grpc);
                }
                Poll::Ready(Some(Err(_))) => assert!(!is_grpc),
                other @ (Poll::Ready(None) | Poll::Pending) => panic!("no end: {other:?}"),
            }
            tokio::time::advance(LIMIT).await;
            assert!(
                !responses.drop_unread(Instant::now(), LIMIT),
                "the connection asked again"
            );
            assert!(response.is_end_stream());
            drop(response);
            assert!(lock(&responses.0).responses.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_waits_for_more_is_kept() {
        let responses = OpenResponses::default();
        let (body, held) = body();
        let response = responses.begin(body, true);
        assert!(poll(&response).is_ready());
        assert!(
            poll(&response).is_pending(),
            "the connection has asked for more"
        );
        tokio::time::advance(10 * LIMIT).await;
        assert!(!responses.drop_unread(Instant::now(), LIMIT));
        assert!(held.upgrade().is_some());
    }
}
