//! POST /publish of a stream of lines (application/x-ndjson): of any length, in bounded memory.
//!
//! Lines are stored in order as they arrive. The first that cannot be stored ends the stream: all events
//! before it are durable, nothing after it is read, and the response counts the stored events. So the client
//! may send either the rest or everything again.

use std::iter;

use bytes::{Bytes, BytesMut};

use super::{
    error::{Failure, LocPart},
    totals::Totals,
    upload::Upload,
};
use crate::{
    aggregator::Aggregator,
    call::Pace,
    event::Event,
    json::{
        event::{Names, parse_line},
        flaw::Flaw,
    },
    limits::{EVENT_MEMORY_BYTES, REQUEST_EVENTS_MAX, SHARE_BYTES_MIN},
    partition::Share,
    submitter::Submitter,
};

/// Lines are submitted in groups of at most this part of the largest request, so that their encoding is no
/// larger than one.
const GROUP_PART: usize = 8;

/// Publishes the lines of a body. A failure includes what is durable.
pub(super) async fn publish(
    aggregator: &Aggregator,
    upload: &mut Upload<'_>,
) -> Result<Totals, Failure> {
    let mut stream = LineStream {
        aggregator,
        arrived: BytesMut::new(),
        share: upload.share(0),
        lines: 0,
        submitter: Submitter::new(&aggregator.partition),
    };
    let end = stream.take_all(upload).await;
    // However the stream ended, the response reports only durable events of earlier lines.
    let finished = stream.submitter.finish().await;
    let end = finished.map_err(|error| Failure::from(&error)).and(end);
    let totals = stream.submitter.totals().into();
    end.map_err(|failure| failure.after(totals))?;
    Ok(totals)
}

struct LineStream<'a> {
    aggregator: &'a Aggregator,
    /// The start of a line.
    arrived: BytesMut,
    /// Covers that, unless it is very short.
    share: Share,
    /// How many lines were taken.
    lines: u64,
    submitter: Submitter<'a>,
}

/// The events of some lines, up to the first bad one.
struct Parsed {
    events: Vec<Event>,
    end: Result<(), Failure>,
}

impl LineStream<'_> {
    async fn take_all(&mut self, upload: &mut Upload<'_>) -> Result<(), Failure> {
        let line_bytes_max = self.aggregator.limits.request_bytes_max;
        let mut pace = Pace::idle();
        while let Some(mut part) = upload.next(&mut pace, "a line").await? {
            let end_of_line = part.iter().rposition(|byte| *byte == b'\n');
            let arrived_before = self.arrived.len();
            let len = arrived_before + part.len();
            upload
                .gathered(&mut self.share, &mut part, len, None, &mut pace)
                .await?;
            self.arrived.extend_from_slice(&part);
            if let Some(at) = end_of_line {
                let complete = self.arrived.split_to(arrived_before + at + 1).freeze();
                let rest = Bytes::copy_from_slice(&self.arrived);
                self.arrived = rest.into();
                let share = std::mem::replace(&mut self.share, upload.share(0));
                self.take(upload, &complete, share).await?;
                let rest = self.arrived.len();
                if rest > SHARE_BYTES_MIN {
                    upload.cover(&mut self.share, rest).await?;
                }
                pace = if self.arrived.is_empty() {
                    Pace::idle()
                } else {
                    Pace::begin()
                };
            } else if arrived_before == 0 {
                pace = Pace::begin();
            }
            if self.arrived.len() > line_bytes_max {
                return Err(Failure::line_too_large(self.lines, line_bytes_max));
            }
        }
        let last = std::mem::take(&mut self.arrived).freeze();
        let share = std::mem::replace(&mut self.share, upload.share(0));
        self.take(upload, &last, share).await
    }

    /// Submits the events of complete lines, in groups. `share` covers the lines, and then the events of the first
    /// group.
    async fn take(
        &mut self,
        upload: &mut Upload<'_>,
        lines: &Bytes,
        share: Share,
    ) -> Result<(), Failure> {
        let group_bytes_max = self.aggregator.limits.request_bytes_max / GROUP_PART;
        let mut share = Some(share);
        let mut groups = groups(lines, group_bytes_max).peekable();
        while let Some(group) = groups.next() {
            let lines_bytes = groups.peek().map_or(0, |_| lines.len());
            upload.hold(lines_bytes + self.arrived.len())?;
            let bytes: usize = group.iter().map(|line| line.len()).sum();
            let bytes = bytes + group.len() * EVENT_MEMORY_BYTES;
            let mut share = share.take().unwrap_or_else(|| upload.share(bytes));
            upload.cover(&mut share, bytes.max(SHARE_BYTES_MIN)).await?;
            let parsed = self.parse(&group);
            self.submit(upload, parsed.events, share).await?;
            parsed.end?;
        }
        upload.hold(0)
    }

    async fn submit(
        &mut self,
        upload: &mut Upload<'_>,
        events: Vec<Event>,
        mut share: Share,
    ) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        upload.cover_events(&mut share, &events).await?;
        let submitted = self.submitter.submit(events, share).await;
        submitted.map_err(|error| Failure::from(&error))
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
            let loc = || vec!["body".into(), LocPart::Index(self.lines)];
            Failure::events(flaws.into_iter().map(|flaw| (loc(), flaw)))
        })
    }
}

/// Splits lines into groups of at most `bytes_max` bytes and as many lines as a request may have events; a
/// longer line is its own group.
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
    parse_line(line, Names::Listed, event_bytes_max)
}
