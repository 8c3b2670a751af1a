//! Publish: a stream of requests, one response.

use tonic::{Request, Status, Streaming};

use super::{
    Aggregator,
    intake::{self, Requests},
    status,
    wire::RawPublishRequest,
};
use crate::{
    event::Event,
    partition::Share,
    proto::v1,
    submitter::{Submitter, Totals},
};

pub(super) async fn publish(
    aggregator: &Aggregator,
    request: Request<Streaming<RawPublishRequest>>,
) -> Result<v1::PublishResponse, Status> {
    let mut stream = PublishStream {
        aggregator,
        requests: Requests::of(aggregator, &request),
        taken: 0,
        submitter: Submitter::new(&aggregator.partition),
    };
    let end = stream.take_all().await;
    // However the stream ended, the response reports only durable events of earlier requests.
    let finished = stream.submitter.finish().await;
    finished.map_err(|error| status::publish(&error))?;
    end.map(|()| response(stream.submitter.totals()))
}

struct PublishStream<'a> {
    aggregator: &'a Aggregator,
    requests: Requests,
    taken: u64,
    submitter: Submitter<'a>,
}

impl PublishStream<'_> {
    async fn take_all(&mut self) -> Result<(), Status> {
        loop {
            let request = tokio::select! {
                request = self.requests.next() => request?,
                () = self.aggregator.stopping.cancelled() => return Err(status::stopping()),
            };
            let Some((request, mut share)) = request else {
                return Ok(());
            };
            let events = self.valid_events(request.into(), &mut share).await?;
            let submitted = self.submitter.submit(events, share).await;
            submitted.map_err(|error| status::publish(&error))?;
            self.taken += 1;
        }
    }

    /// All events of a request, or its first violation.
    async fn valid_events(
        &mut self,
        request: RawPublishRequest,
        share: &mut Share,
    ) -> Result<Vec<Event>, Status> {
        let events = intake::events(self.aggregator, self.taken, request, share).await?;
        let Some((at, violation)) = events.violations.iter().next() else {
            // One response for all requests: of this one only the outcomes remain.
            share.set_answer(0);
            return Ok(events.valid);
        };
        let partition = &self.aggregator.partition;
        partition.count_rejected(events.count() as u64);
        Err(status::invalid_event(self.taken, at, violation))
    }
}

fn response(totals: Totals) -> v1::PublishResponse {
    let Totals {
        received,
        unique_processed,
        duplicate_dropped,
        conflicts,
    } = totals;
    v1::PublishResponse {
        received,
        unique_processed,
        duplicate_dropped,
        conflicts,
    }
}
