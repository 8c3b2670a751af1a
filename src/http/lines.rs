//! POST /publish of a stream of lines (application/x-ndjson): any amount, in bounded memory.
//!
//! Lines are stored in their order as they arrive. What cannot be stored ends the stream: the events before
//! are durable, nothing after is looked at, and the answer counts what is stored. So either can be sent again:
//! what follows, or everything.

use std::{collections::VecDeque, iter};

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    error::{Failure, Step},
    event::{self, Flaw},
    payload,
    publish::{Totals, as_text},
    upload::{self, Upload, arrival_deadline, take_share},
};
use crate::{
    aggregator::{Aggregator, REQUEST_EVENTS_MAX, STREAM_REQUESTS_MAX},
    event::Event,
    partition::{PendingOutcomes, Rejection},
};

/// How much of a line may wait for its rest without a share of the budget, in bytes.
const FREE_BYTES_MAX: usize = 64 * 1024;
/// Lines are submitted together up to this part of the largest request, so that their encoding is no larger
/// than one.
const GROUP_PART: usize = 8;

/// Publishes the lines of a body. A failure tells what is durable.
pub(super) async fn publish(
    aggregator: &Aggregator,
    upload: &mut Upload<'_>,
) -> Result<Totals, Failure> {
    let mut stream = LineStream {
        aggregator,
        arrived: BytesMut::new(),
        share: None,
        lines: 0,
        pending: VecDeque::new(),
        totals: Totals::default(),
    };
    let end = stream.take_all(upload).await;
    // Whatever ended the stream: what the answer says of earlier lines is durable.
    let end = stream.await_pending(0).await.and(end);
    end.map_err(|failure| failure.after(stream.totals))?;
    Ok(stream.totals)
}

struct LineStream<'a> {
    aggregator: &'a Aggregator,
    /// The beginning of a line.
    arrived: BytesMut,
    /// Its share, if it is long.
    share: Option<OwnedSemaphorePermit>,
    /// Lines that were taken.
    lines: u64,
    pending: VecDeque<PendingOutcomes>,
    totals: Totals,
}

/// The events of some lines, up to the first that is none.
struct Parsed {
    events: Vec<Event>,
    end: Result<(), Failure>,
}

impl LineStream<'_> {
    async fn take_all(&mut self, upload: &mut Upload<'_>) -> Result<(), Failure> {
        let line_bytes_max = self.aggregator.limits.request_bytes_max;
        let mut deadline = arrival_deadline();
        while let Some(part) = upload.next(deadline, "a line").await? {
            let end_of_line = part.iter().rposition(|byte| *byte == b'\n');
            let arrived_before = self.arrived.len();
            self.arrived.extend_from_slice(&part);
            if let Some(at) = end_of_line {
                let complete = self.arrived.split_to(arrived_before + at + 1).freeze();
                self.take(&complete).await?;
                deadline = arrival_deadline();
            }
            if self.arrived.len() > line_bytes_max {
                return Err(Failure::line_too_large(self.lines, line_bytes_max));
            }
            if self.arrived.len() > FREE_BYTES_MAX && self.share.is_none() {
                self.share = Some(take_share(self.aggregator, line_bytes_max).await?);
            }
        }
        let last = self.arrived.split().freeze();
        self.take(&last).await
    }

    /// Submits the events of complete lines, in groups.
    async fn take(&mut self, lines: &Bytes) -> Result<(), Failure> {
        let group_bytes_max = self.aggregator.limits.request_bytes_max / GROUP_PART;
        for group in groups(lines, group_bytes_max) {
            let bytes = group.iter().map(|line| line.len()).sum();
            let share = match self.share.take() {
                Some(share) => share,
                None => take_share(self.aggregator, bytes).await?,
            };
            let parsed = self.parse(&group);
            self.submit(parsed.events, share).await?;
            parsed.end?;
        }
        Ok(())
    }

    async fn submit(
        &mut self,
        events: Vec<Event>,
        mut share: OwnedSemaphorePermit,
    ) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        upload::cover(self.aggregator, &mut share, &events)?;
        let partition = &self.aggregator.partition;
        let submitted = partition.submit(events, Rejection::OfRequest, share).await;
        let pending = submitted.map_err(|error| Failure::from(&error))?;
        self.pending.push_back(pending);
        self.await_pending(STREAM_REQUESTS_MAX).await
    }

    fn parse(&mut self, group: &[&[u8]]) -> Parsed {
        let mut events = Vec::with_capacity(group.len());
        for line in group {
            match self.parse_line(line.trim_ascii()) {
                Ok(event) => events.extend(event),
                Err(failure) => {
                    let end = Err(failure);
                    return Parsed { events, end };
                }
            }
            self.lines += 1;
        }
        let end = Ok(());
        Parsed { events, end }
    }

    /// The event of a line, unless it is blank.
    fn parse_line(&self, line: &[u8]) -> Result<Option<Event>, Failure> {
        let limits = self.aggregator.limits;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() > limits.request_bytes_max {
            let bytes_max = limits.request_bytes_max;
            return Err(Failure::line_too_large(self.lines, bytes_max));
        }
        let event = parse_event(line, limits.event_bytes_max);
        event.map(Some).map_err(|flaws| {
            self.aggregator.partition.count_rejected(1);
            let loc = || vec!["body".into(), Step::Index(self.lines)];
            Failure::events(flaws.into_iter().map(|flaw| (loc(), flaw)))
        })
    }

    /// Waits for outcomes until no more than `left` groups wait for theirs.
    async fn await_pending(&mut self, left: usize) -> Result<(), Failure> {
        while self.pending.len() > left {
            let pending = self.pending.pop_front().expect("not empty");
            let outcomes = pending.await.map_err(|error| Failure::from(&error))?;
            for outcome in outcomes {
                self.totals.count(outcome);
            }
        }
        Ok(())
    }
}

/// Lines in groups of at most `bytes_max` bytes and as many as a request may have; a longer line is a group.
pub(super) fn groups(lines: &[u8], bytes_max: usize) -> impl Iterator<Item = Vec<&[u8]>> {
    let mut lines = lines.split_inclusive(|byte| *byte == b'\n').peekable();
    iter::from_fn(move || {
        let mut group = vec![lines.next()?];
        let mut bytes = group[0].len();
        while let Some(line) = lines
            .next_if(|line| bytes + line.len() <= bytes_max && group.len() < REQUEST_EVENTS_MAX)
        {
            bytes += line.len();
            group.push(line);
        }
        Some(group)
    })
}

pub(super) fn parse_event(line: &[u8], event_bytes_max: usize) -> Result<Event, Vec<Flaw>> {
    let no_json = |msg| vec![Flaw::of_event(msg)];
    let text = as_text(line).map_err(no_json)?;
    let json: &RawValue = serde_json::from_str(text)
        .map_err(|error| no_json(format!("not JSON: {}", payload::without_place(&error))))?;
    event::parse(json, event_bytes_max)
}
