//! The requests of a publish stream, each with its share of the ingest budget.
//!
//! gRPC would gather a message whole before a handler sees it, and reserve the size that its prefix announces, so a
//! bound on the handlers' memory would not bound the server's. So the publish calls read their messages here. A
//! share covers the bytes received of a message and grows with them. A share that cannot grow waits, and meanwhile
//! its stream is not read: HTTP/2 flow control is the back-pressure. It does not wait forever, because it keeps
//! other requests of its connection from arriving.
//!
//! Format: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{Instant, timeout};
use tonic::{Request, Status};

use super::{
    compression::{Encoding, decompress, decompressed_bytes_max},
    convert::{self, Events},
    status,
    wire::RawPublishRequest,
};
use crate::{
    aggregator::Aggregator,
    call::{ArrivalError, Arriving, Call, Pace},
    event::Violation,
    limits::{EVENT_MEMORY_BYTES, SHARE_BYTES_MIN, SHARE_WAIT_SECONDS_MAX},
    partition::{Budget, Hand, Share},
};

/// A compression flag of one byte and a length of four.
const PREFIX_BYTES: usize = 5;
const NOT_COMPRESSED: u8 = 0;
const COMPRESSED: u8 = 1;

/// The requests of one stream, in order.
pub(super) struct Requests {
    call: Call,
    body: Arriving,
    budget: Budget,
    encoding: Option<Encoding>,
    request_bytes_max: usize,
    /// The unread rest of the last frame, and a hand that holds it while it waits.
    arrived: Bytes,
    frame_bytes: usize,
    hand: Hand,
    /// How many requests have started to arrive.
    begun: u64,
}

impl Requests {
    /// The requests of the call that starts with `request`; nothing else may read its messages.
    pub fn of<T>(aggregator: &Aggregator, request: &Request<T>) -> Self {
        let call = request.extensions().get::<Call>();
        let call = call.expect("every call comes through the door").clone();
        let budget = aggregator.partition.ingest().clone();
        Self {
            body: call.take_body(),
            encoding: Encoding::of(request.metadata()),
            request_bytes_max: aggregator.limits.request_bytes_max,
            arrived: Bytes::new(),
            frame_bytes: 0,
            hand: budget.hand(call.account()),
            begun: 0,
            budget,
            call,
        }
    }

    /// Their call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The next request, uncompressed, and the share that covers it. `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Share)>, Status> {
        let Some((prefix, mut pace)) = self.prefix().await? else {
            return Ok(None);
        };
        let bytes = (&prefix[1..]).get_u32() as usize;
        let number = self.begun;
        self.begun += 1;
        if bytes > self.request_bytes_max {
            return Err(too_large(number, bytes, self.request_bytes_max));
        }
        let encoding = match (prefix[0], self.encoding) {
            (NOT_COMPRESSED, _) => None,
            (COMPRESSED, Some(encoding)) => Some(encoding),
            (COMPRESSED, None) => return Err(status::no_encoding()),
            (flag, _) => {
                let description = format!("compression flag {flag}; it is 0 or 1");
                let violation = Violation::new("request", description);
                return Err(status::invalid_request(number, &violation));
            }
        };
        let (mut message, mut share) = self.gather(bytes, &mut pace).await?;
        if let Some(encoding) = encoding {
            message = self
                .decompress(number, encoding, &message, &mut share)
                .await?;
        }
        self.keep_rest()?;
        Ok(Some((message, share)))
    }

    /// The prefix of the next message, timed from now on.
    async fn prefix(&mut self) -> Result<Option<([u8; PREFIX_BYTES], Pace)>, Status> {
        let mut prefix = [0; PREFIX_BYTES];
        let mut len = 0;
        let mut pace = None;
        loop {
            let part = self.arrived.len().min(PREFIX_BYTES - len);
            self.arrived.copy_to_slice(&mut prefix[len..len + part]);
            len += part;
            if len > 0 {
                pace.get_or_insert_with(Pace::begin);
            }
            if len == PREFIX_BYTES {
                let pace = pace.unwrap_or_else(Pace::begin);
                return Ok(Some((prefix, pace)));
            }
            if !self.read(pace.as_mut()).await? {
                return match len {
                    0 => Ok(None),
                    _ => Err(status::cut_request(self.begun)),
                };
            }
        }
    }

    /// The next message, of `bytes` bytes.
    async fn gather(&mut self, bytes: usize, pace: &mut Pace) -> Result<(Bytes, Share), Status> {
        let mut share = self.budget.share(self.call.account(), bytes);
        let mut gathered = BytesMut::new();
        loop {
            let part = self.arrived.len().min(bytes - gathered.len());
            let len = gathered.len() + part;
            if len == bytes {
                self.cover(&mut share, bytes.max(SHARE_BYTES_MIN), pace)
                    .await?;
            } else if len > SHARE_BYTES_MIN.max(share.bytes()) {
                // Twice the bytes received, so that large messages are not copied for each part.
                self.cover(&mut share, bytes.min(2 * len), pace).await?;
            }
            if len > gathered.capacity() {
                let room = share.bytes().max(len).min(bytes);
                gathered.reserve(room - gathered.len());
            }
            gathered.extend_from_slice(&self.arrived[..part]);
            self.arrived.advance(part);
            if len == bytes {
                return Ok((gathered.freeze(), share));
            }
            if !self.read(Some(pace)).await? {
                return Err(status::cut_request(self.begun));
            }
        }
    }

    /// Reads the next part of the body if the previous one is used up. Returns whether there is one.
    async fn read(&mut self, pace: Option<&mut Pace>) -> Result<bool, Status> {
        // Even empty, it would keep the connection's buffer alive.
        self.arrived = Bytes::new();
        self.hand.hold(0);
        match self.body.next(pace).await {
            Ok(Some(part)) => {
                self.frame_bytes = part.len();
                self.arrived = part;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(ArrivalError::Stalled) => {
                Err(status::stalled_request(self.begun.saturating_sub(1)))
            }
            Err(ArrivalError::Broken(error)) => Err(Status::from_error(Box::new(error))),
        }
    }

    /// Grows `share` to `bytes`, waiting if it must.
    async fn cover(
        &mut self,
        share: &mut Share,
        bytes: usize,
        pace: &mut Pace,
    ) -> Result<(), Status> {
        if share.try_grow(bytes) {
            return Ok(());
        }
        self.keep_rest()?;
        let began = Instant::now();
        wait(share, bytes).await?;
        pace.skip(began);
        Ok(())
    }

    /// Holds the received bytes, and no more memory than that, while they wait to be taken.
    fn keep_rest(&mut self) -> Result<(), Status> {
        if self.arrived.len() <= self.frame_bytes / 2 {
            self.arrived = Bytes::copy_from_slice(&self.arrived);
            self.frame_bytes = self.arrived.len();
        }
        match self.hand.hold(self.arrived.len()) {
            true => Ok(()),
            false => Err(status::overloaded(SHARE_WAIT_SECONDS_MAX)),
        }
    }

    async fn decompress(
        &mut self,
        number: u64,
        encoding: Encoding,
        message: &[u8],
        share: &mut Share,
    ) -> Result<Bytes, Status> {
        let limit = self.request_bytes_max;
        let bytes_max = decompressed_bytes_max(encoding, message).unwrap_or(limit);
        if bytes_max > limit {
            return Err(too_large(number, bytes_max, limit));
        }
        wait(share, message.len() + bytes_max).await?;
        let decompressed = decompress(encoding, message, bytes_max).map_err(|error| {
            let violation = Violation::new("request", error.to_string());
            status::invalid_request(number, &violation)
        })?;
        share.shrink(decompressed.len().max(SHARE_BYTES_MIN));
        Ok(decompressed)
    }
}

/// Checks the events of request `number`. Afterwards its share covers them and their response.
pub(super) async fn events(
    aggregator: &Aggregator,
    number: u64,
    request: RawPublishRequest,
    share: &mut Share,
) -> Result<Events, Status> {
    let bytes = request.0.len();
    wait(
        share,
        bytes + convert::count_events(&request.0) * EVENT_MEMORY_BYTES,
    )
    .await?;
    let events = convert::events(&request, aggregator.limits.event_bytes_max)
        .map_err(|violation| status::invalid_request(number, &violation))?;
    drop(request);
    let answer = events.answer_bytes_max();
    wait(share, bytes + events.memory_bytes() + answer).await?;
    share.set_answer(answer + events.violations.memory_bytes());
    Ok(events)
}

/// Grows `share` to `bytes`, waiting if it must, but not forever.
pub(super) async fn wait(share: &mut Share, bytes: usize) -> Result<(), Status> {
    if share.try_grow(bytes) {
        return Ok(());
    }
    let limit = Duration::from_secs(SHARE_WAIT_SECONDS_MAX);
    let grown = timeout(limit, share.grow(bytes)).await;
    grown.map_err(|_| status::overloaded(SHARE_WAIT_SECONDS_MAX))
}

fn too_large(number: u64, bytes: usize, bytes_max: usize) -> Status {
    let description =
        format!("{bytes} bytes; the limit of a request is {bytes_max} bytes (--max-request-bytes)");
    status::invalid_request(number, &Violation::new("request", description))
}
