//! The body of a request, and its share of the ingest budget.
//!
//! A body takes its share before it is gathered, from the same budget as requests over gRPC; so whatever
//! comes, the memory it takes has a limit. The share goes with the events until they are answered.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, Version, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use super::error::Failure;
use crate::{
    aggregator::{ARRIVAL_SECONDS_MAX, Aggregator, SHARE_BYTES_MIN, SHARE_WAIT_SECONDS_MAX},
    event::Event,
};

/// What is read and dropped of a body that is answered before its end, so that the sender sees the answer: a
/// connection that is closed over unread bytes is reset.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_SECONDS_MAX: u64 = 10;

/// The body of a request as it arrives.
pub(super) struct Upload<'a> {
    aggregator: &'a Aggregator,
    parts: BodyDataStream,
    /// The length that was told in advance.
    length: Option<u64>,
    /// Whether the sender goes on sending when it has an answer already. Over HTTP/2 the stream is reset
    /// after the answer, and nothing else.
    sends_on: bool,
    /// Whether it has begun: who expects a 100 waits for the first look at the body.
    has_begun: bool,
}

impl<'a> Upload<'a> {
    pub fn new(aggregator: &'a Aggregator, head: &Parts, body: Body) -> Self {
        Self {
            aggregator,
            parts: body.into_data_stream(),
            length: content_length(&head.headers),
            sends_on: head.version < Version::HTTP_2,
            has_begun: !head.headers.contains_key(header::EXPECT),
        }
    }

    /// The next part of the body, `None` at its end.
    pub async fn next(&mut self, deadline: Instant, what: &str) -> Result<Option<Bytes>, Failure> {
        self.has_begun = true;
        let part = tokio::select! {
            part = timeout_at(deadline, self.parts.next()) => part,
            () = self.aggregator.stopping.cancelled() => return Err(Failure::stopping()),
        };
        let Ok(part) = part else {
            // What does not come is not waited for again.
            self.sends_on = false;
            return Err(Failure::stalled(what));
        };
        part.transpose().map_err(|_| Failure::cut())
    }

    /// The whole body, and a share for it and for its events.
    pub async fn gather(&mut self) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
        let bytes_max = self.aggregator.limits.request_bytes_max;
        let length = match self.length.map(usize::try_from) {
            Some(Ok(length)) if length <= bytes_max => Some(length),
            Some(_) => return Err(Failure::body_too_large(bytes_max)),
            None => None,
        };
        let share = take_share(self.aggregator, length.unwrap_or(bytes_max)).await?;
        let deadline = arrival_deadline();
        let mut body = BytesMut::with_capacity(length.unwrap_or(0));
        while let Some(part) = self.next(deadline, "the body").await? {
            if body.len() + part.len() > bytes_max {
                return Err(Failure::body_too_large(bytes_max));
            }
            body.extend_from_slice(&part);
        }
        Ok((body.freeze(), share))
    }

    /// Reads what is left and drops it, if that is little enough.
    pub async fn discard(mut self) {
        if !self.sends_on || !self.has_begun {
            return;
        }
        let discard = async {
            let mut bytes_left = DISCARD_BYTES_MAX;
            while let Some(Ok(part)) = self.parts.next().await {
                match bytes_left.checked_sub(part.len()) {
                    Some(left) => bytes_left = left,
                    None => return,
                }
            }
        };
        tokio::select! {
            _ = timeout(Duration::from_secs(DISCARD_SECONDS_MAX), discard) => {}
            () = self.aggregator.stopping.cancelled() => {}
        }
    }
}

/// When what begins to arrive now must have arrived.
pub(super) fn arrival_deadline() -> Instant {
    Instant::now() + Duration::from_secs(ARRIVAL_SECONDS_MAX)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Takes the share of a body of `bytes` from the budget: for the body and for the encoding of its events.
pub(super) async fn take_share(
    aggregator: &Aggregator,
    bytes: usize,
) -> Result<OwnedSemaphorePermit, Failure> {
    let bytes_max = aggregator.limits.request_bytes_max;
    let share = (2 * bytes).clamp(SHARE_BYTES_MIN.min(bytes_max), bytes_max);
    let budget = Arc::clone(aggregator.partition.ingest());
    let share = u32::try_from(share).expect("a request is under 4 GiB");
    let acquired = in_time(aggregator, budget.acquire_many_owned(share)).await?;
    acquired.map_err(|_| Failure::stopping())
}

async fn in_time<F: Future>(aggregator: &Aggregator, wait: F) -> Result<F::Output, Failure> {
    tokio::select! {
        waited = timeout(Duration::from_secs(SHARE_WAIT_SECONDS_MAX), wait) => {
            waited.map_err(|_| Failure::overloaded())
        }
        () = aggregator.stopping.cancelled() => Err(Failure::stopping()),
    }
}

/// Makes sure that a share covers the events it goes with. Their encoding can be larger than the JSON was:
/// a number takes two bytes in an array, and eleven encoded. Who holds a share does not wait for more.
pub(super) fn cover(
    aggregator: &Aggregator,
    share: &mut OwnedSemaphorePermit,
    events: &[Event],
) -> Result<(), Failure> {
    let encoded: usize = events.iter().map(|event| event.encoded().len()).sum();
    let Some(missing) = encoded.checked_sub(share.num_permits()) else {
        return Ok(());
    };
    let bytes_max = aggregator.limits.request_bytes_max;
    if encoded > bytes_max {
        return Err(Failure::events_too_large(encoded, bytes_max));
    }
    let budget = Arc::clone(aggregator.partition.ingest());
    let missing = u32::try_from(missing).map_err(|_| Failure::overloaded())?;
    let more = budget.try_acquire_many_owned(missing);
    share.merge(more.map_err(|_| Failure::overloaded())?);
    Ok(())
}
