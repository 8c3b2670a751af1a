//! The body of a request with events, and its share of the ingest budget.
//!
//! A share covers the received bytes of a body and grows with them, so the memory of any body has a limit. The share
//! goes with the events until they are answered.

use std::time::Duration;

use axum::http::{HeaderMap, Version, header, request::Parts};
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};

use super::error::Failure;
use crate::{
    aggregator::Aggregator,
    call::{ArrivalError, Arriving, Call, Pace},
    event::Event,
    limits::{EVENT_MEMORY_BYTES, SHARE_BYTES_MIN, SHARE_WAIT_SECONDS_MAX},
    partition::{Hand, SMALL_BYTES_MAX, Share},
};

/// How much of a body is read and dropped if the response comes before its end, so that the sender sees the
/// response: closing a connection with unread bytes resets it.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_SECONDS_MAX: u64 = 10;

/// The body of a request as it arrives.
pub(super) struct Upload<'a> {
    aggregator: &'a Aggregator,
    call: Call,
    body: Arriving,
    hand: Hand,
    /// The announced length.
    length: Option<u64>,
    /// Whether the sender goes on sending after it has a response. Over HTTP/2 the stream is reset
    /// after the response.
    sends_on: bool,
    /// Whether reading has begun: a client that expects a 100 waits for the first read.
    has_begun: bool,
}

impl<'a> Upload<'a> {
    pub fn new(aggregator: &'a Aggregator, head: &Parts) -> Self {
        let call = head.extensions.get::<Call>();
        let call = call.expect("every call is admitted").clone();
        Self {
            aggregator,
            body: call.take_body(),
            hand: aggregator.partition.ingest().hand(call.account()),
            call,
            length: content_length(&head.headers),
            sends_on: head.version < Version::HTTP_2,
            has_begun: !head.headers.contains_key(header::EXPECT),
        }
    }

    /// The next part of the body, `None` at its end.
    pub async fn next(&mut self, pace: &mut Pace, what: &str) -> Result<Option<Bytes>, Failure> {
        self.has_begun = true;
        let part = tokio::select! {
            part = self.body.next(Some(pace)) => part,
            () = self.aggregator.stopping.cancelled() => return Err(Failure::stopping()),
        };
        part.map_err(|error| match error {
            ArrivalError::Stalled => {
                // Bytes that do not come are not awaited again.
                self.sends_on = false;
                Failure::stalled(what)
            }
            ArrivalError::Broken(_) => Failure::cut(),
        })
    }

    /// The whole body, and the share that covers it.
    pub async fn gather(&mut self) -> Result<(Bytes, Share), Failure> {
        let bytes_max = self.aggregator.limits.request_bytes_max;
        let length = match self.length.map(usize::try_from) {
            Some(Ok(length)) if length <= bytes_max => Some(length),
            Some(_) => return Err(Failure::body_too_large(bytes_max)),
            None => None,
        };
        let mut share = self.share(length.unwrap_or(0));
        let mut pace = Pace::begin();
        let mut body = BytesMut::new();
        while let Some(mut part) = self.next(&mut pace, "the body").await? {
            let len = body.len() + part.len();
            if len > bytes_max {
                return Err(Failure::body_too_large(bytes_max));
            }
            self.gathered(&mut share, &mut part, len, length, &mut pace)
                .await?;
            if len > body.capacity() {
                body.reserve(share.bytes().max(len).min(bytes_max) - body.len());
            }
            body.extend_from_slice(&part);
        }
        self.cover(&mut share, body.len().max(SHARE_BYTES_MIN))
            .await?;
        Ok((body.freeze(), share))
    }

    /// An empty share, for `expected` bytes if that is known.
    pub fn share(&self, expected: usize) -> Share {
        let budget = self.aggregator.partition.ingest();
        budget.share(self.call.account(), expected)
    }

    /// Grows a share to cover `len` received bytes, of `length` if that is known. The last of them, `part`, waits in a
    /// hand if it must.
    pub async fn gathered(
        &mut self,
        share: &mut Share,
        part: &mut Bytes,
        len: usize,
        length: Option<usize>,
        pace: &mut Pace,
    ) -> Result<(), Failure> {
        if len <= SHARE_BYTES_MIN.max(share.bytes()) {
            return Ok(());
        }
        let length = length.unwrap_or(self.aggregator.limits.request_bytes_max);
        if len > SMALL_BYTES_MAX {
            share.expect(length);
        }
        // Twice the bytes received, so that large bodies are not copied for each part.
        let bytes = length.min(2 * len).max(len);
        if share.try_grow(bytes) {
            return Ok(());
        }
        // Keeps none of the connection's buffer.
        *part = Bytes::copy_from_slice(part);
        self.hold(part.len())?;
        let began = Instant::now();
        self.cover(share, bytes).await?;
        pace.skip(began);
        self.hold(0)
    }

    /// Holds received bytes that wait their turn.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Failure> {
        match self.hand.hold(bytes) {
            true => Ok(()),
            false => Err(Failure::overloaded()),
        }
    }

    /// Grows a share to `bytes`, waiting if it must, but not forever.
    pub async fn cover(&mut self, share: &mut Share, bytes: usize) -> Result<(), Failure> {
        let limit = Duration::from_secs(SHARE_WAIT_SECONDS_MAX);
        tokio::select! {
            grown = timeout(limit, share.grow(bytes)) => grown.map_err(|_| Failure::overloaded()),
            () = self.aggregator.stopping.cancelled() => Err(Failure::stopping()),
        }
    }

    /// Grows a share to cover events and their encoding, which can be larger than their JSON: a number takes
    /// two bytes in an array, and eleven encoded.
    pub async fn cover_events(
        &mut self,
        share: &mut Share,
        events: &[Event],
    ) -> Result<(), Failure> {
        let encoded: usize = events.iter().map(|event| event.encoded().len()).sum();
        let bytes_max = self.aggregator.limits.request_bytes_max;
        if encoded > bytes_max {
            return Err(Failure::events_too_large(encoded, bytes_max));
        }
        let bytes = encoded + events.len() * EVENT_MEMORY_BYTES;
        self.cover(share, bytes.max(SHARE_BYTES_MIN)).await?;
        share.shrink(bytes.max(SHARE_BYTES_MIN));
        Ok(())
    }

    /// Reads and drops the rest, if it is small enough.
    pub async fn discard(mut self) {
        if !self.sends_on || !self.has_begun {
            return;
        }
        let discard = async {
            let mut bytes_left = DISCARD_BYTES_MAX;
            while let Ok(Some(part)) = self.body.next(None).await {
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

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}
