//! ListEvents: catch up, then follow.

use futures_util::stream::unfold;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Aggregator, convert, status, wire::RawListEventsResponse};
use crate::{
    aggregator::SILENCE_MAX,
    event::{Sequence, Topic},
    log::FileReader,
    partition::{Reader, Start},
    proto::v1,
};

pub(super) fn list_events(
    aggregator: &Aggregator,
    request: v1::ListEventsRequest,
) -> Result<impl Stream<Item = Result<RawListEventsResponse, Status>> + use<>, Status> {
    let permit = aggregator
        .admit_reader()
        .map_err(|_| status::too_many_readers(aggregator.limits.readers_max))?;
    let start = start(&request)?;
    let topic = match &*request.topic {
        "" => None,
        topic => Some(Topic::new(topic).map_err(|violation| status::invalid_field(&violation))?),
    };
    let partition = &aggregator.partition;
    let reader = partition
        .reader(topic, &start)
        .map_err(|error| status::read(&error))?;
    let listing = Listing {
        reader,
        until: if request.follow {
            Sequence::MAX
        } else {
            partition.durable_tail()
        },
        follow: request.follow,
        left: (request.limit > 0).then_some(request.limit),
        last_sent: None,
        told_caught_up: false,
        stopping: aggregator.stopping.clone(),
        end: None,
        _permit: permit,
    };
    Ok(unfold(listing, |mut listing| async {
        let response = listing.next().await.transpose()?;
        Some((response, listing))
    }))
}

fn start(request: &v1::ListEventsRequest) -> Result<Start, Status> {
    if !request.cursor.is_empty() {
        return Ok(Start::After(request.cursor.clone()));
    }
    match v1::StartPosition::try_from(request.start) {
        Ok(v1::StartPosition::Unspecified | v1::StartPosition::Earliest) => Ok(Start::Earliest),
        Ok(v1::StartPosition::Latest) => Ok(Start::Latest),
        Err(_) => Err(status::invalid_field(&crate::event::Violation::new(
            "start",
            format!("{} is not a StartPosition", request.start),
        ))),
    }
}

/// A ListEvents stream. Pulled by the connection: it reads only what is about to be sent.
struct Listing {
    reader: Reader<FileReader>,
    /// Where it ends; with follow, nowhere.
    until: Sequence,
    follow: bool,
    /// How many more events may be sent, if that is limited.
    left: Option<u64>,
    last_sent: Option<Instant>,
    /// Whether the last response said that it was at the durable tail.
    told_caught_up: bool,
    stopping: CancellationToken,
    /// Set once everything is sent: how the stream ends.
    end: Option<Result<(), Status>>,
    _permit: OwnedSemaphorePermit,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<RawListEventsResponse>, Status> {
        loop {
            if let Some(end) = &mut self.end {
                return std::mem::replace(end, Ok(())).map(|()| None);
            }
            if self.stopping.is_cancelled() {
                self.end = Some(Err(status::stopping()));
                return Ok(Some(self.response(&[], false)));
            }
            let events_max = self.left.map_or(usize::MAX, |left| {
                usize::try_from(left).unwrap_or(usize::MAX)
            });
            let chunk = self.reader.read(self.until, events_max).await;
            let chunk = chunk.map_err(|error| self.fail(status::read(&error)))?;
            if !chunk.events.is_empty() {
                if let Some(left) = &mut self.left {
                    *left -= chunk.events.len() as u64;
                    if *left == 0 {
                        self.end = Some(Ok(()));
                    }
                }
                return Ok(Some(self.response(&chunk.events, chunk.caught_up)));
            }
            let untold = chunk.caught_up && !self.told_caught_up;
            if self.follow && chunk.caught_up {
                if untold || self.await_more().await {
                    return Ok(Some(self.response(&[], true)));
                }
            } else if self.reader.next_sequence() >= self.until {
                self.end = Some(Ok(()));
                // The first response always carries a cursor, even when there is no event.
                if untold || self.last_sent.is_none() {
                    return Ok(Some(self.response(&[], chunk.caught_up)));
                }
            }
        }
    }

    /// Waits at the durable tail. Returns whether it is time to send a response without events.
    async fn await_more(&mut self) -> bool {
        let silent_since = self.last_sent.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => false,
            () = self.reader.wait() => false,
            () = sleep_until(silent_since + SILENCE_MAX) => true,
        }
    }

    fn response(
        &mut self,
        events: &[crate::event::StoredEvent],
        caught_up: bool,
    ) -> RawListEventsResponse {
        self.last_sent = Some(Instant::now());
        self.told_caught_up = caught_up;
        convert::list_events_response(events, &self.reader.cursor(), caught_up)
    }

    /// Nothing follows an error.
    fn fail(&mut self, status: Status) -> Status {
        self.end = Some(Ok(()));
        status
    }
}
