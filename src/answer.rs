//! Large answers in memory: what they take together, and what holds their share until they have left.
//!
//! For answers that are made whole before they are sent: counters, pages, single events. Lists that are streamed are
//! bounded where they are read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::aggregator::SHARE_WAIT_SECONDS_MAX;

/// The memory of all large answers, in bytes.
const ANSWERS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The memory for answers.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Semaphore>);

/// Too many answers are in memory that nobody reads.
pub(crate) struct TooManyAnswers;

/// The memory of an answer; given back when it has left.
#[derive(Clone)]
pub(crate) struct AnswerShare {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)))
    }
}

impl Answers {
    /// Waits a while for the memory of an answer of at most `bytes`.
    pub async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, TooManyAnswers> {
        let bytes = u32::try_from(bytes.min(ANSWERS_BYTES_MAX)).expect("the limit is small");
        let wait = Duration::from_secs(SHARE_WAIT_SECONDS_MAX);
        let permit = timeout(wait, Arc::clone(&self.0).acquire_many_owned(bytes)).await;
        let permit = permit.map_err(|_| TooManyAnswers)?;
        Ok(permit.expect("it is never closed"))
    }
}

impl AnswerShare {
    /// Keeps of what was reserved what an answer of `bytes` takes.
    pub fn keep(mut reserved: OwnedSemaphorePermit, bytes: usize) -> Self {
        let kept = reserved.split(bytes.min(reserved.num_permits()));
        Self {
            _permit: Arc::new(kept.unwrap_or(reserved)),
        }
    }
}

struct Held {
    bytes: Vec<u8>,
    _share: AnswerShare,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that hold their share until they have left.
pub(crate) fn held(bytes: Vec<u8>, reserved: OwnedSemaphorePermit) -> Bytes {
    let share = AnswerShare::keep(reserved, bytes.len());
    Bytes::from_owner(Held {
        bytes,
        _share: share,
    })
}

/// Lets the body of a response hold the share that is in its extensions. A gRPC body ends with a frame of trailers, which
/// is asked for when what came before has left.
pub(crate) async fn hold(mut response: Response) -> Response {
    match response.extensions_mut().remove::<AnswerShare>() {
        Some(share) => response.map(|body| {
            Body::new(HeldBody {
                body,
                _share: share,
            })
        }),
        None => response,
    }
}

struct HeldBody {
    body: Body,
    _share: AnswerShare,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_its_memory_until_it_has_left() {
        let answers = Answers::default();
        let free = || answers.0.available_permits();
        let Ok(reserved) = answers.reserve(ANSWERS_BYTES_MAX).await else {
            panic!("all is free");
        };
        assert!(answers.reserve(1).await.is_err());
        let bytes = held(vec![7; 1000], reserved);
        assert_eq!(free(), ANSWERS_BYTES_MAX - 1000);
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(free(), ANSWERS_BYTES_MAX - 1000);
        drop(part);
        assert_eq!(free(), ANSWERS_BYTES_MAX);

        let Ok(reserved) = answers.reserve(5000).await else {
            panic!("all is free");
        };
        let mut response = Response::new(Body::from("body"));
        let share = AnswerShare::keep(reserved, 4);
        response.extensions_mut().insert(share);
        let held = hold(response).await;
        assert_eq!(free(), ANSWERS_BYTES_MAX - 4);
        drop(held);
        assert_eq!(free(), ANSWERS_BYTES_MAX);
    }
}
