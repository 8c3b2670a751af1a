//! Publish: a stream of requests, one response.

use std::collections::VecDeque;

use tonic::{Request, Status, Streaming};

use super::{
    Aggregator, STREAM_REQUESTS_MAX,
    intake::{self, Requests},
    status,
    wire::RawPublishRequest,
};
use crate::{
    event::Event,
    partition::{Outcome, PendingOutcomes, Rejection, Share},
    proto::v1,
};

pub(super) async fn publish(
    aggregator: &Aggregator,
    request: Request<Streaming<RawPublishRequest>>,
) -> Result<v1::PublishResponse, Status> {
    let mut stream = PublishStream {
        aggregator,
        requests: Requests::of(aggregator, &request),
        taken: 0,
        pending: VecDeque::new(),
        totals: v1::PublishResponse::default(),
    };
    let end = stream.take_all().await;
    // However the stream ended, the response reports only durable events of earlier requests.
    stream.await_pending(0).await?;
    end.map(|()| stream.totals)
}

struct PublishStream<'a> {
    aggregator: &'a Aggregator,
    requests: Requests,
    taken: u64,
    pending: VecDeque<PendingOutcomes>,
    totals: v1::PublishResponse,
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
            let partition = &self.aggregator.partition;
            let submitted = partition.submit(events, Rejection::OfRequest, share).await;
            self.pending
                .push_back(submitted.map_err(|error| status::publish(&error))?);
            self.taken += 1;
            self.await_pending(STREAM_REQUESTS_MAX).await?;
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

    /// Waits until no more than `left` requests are waiting for outcomes.
    async fn await_pending(&mut self, left: usize) -> Result<(), Status> {
        while self.pending.len() > left {
            let pending = self.pending.pop_front().expect("not empty");
            let outcomes = pending.await.map_err(|error| status::publish(&error))?;
            for outcome in outcomes.outcomes {
                self.count(outcome);
            }
        }
        Ok(())
    }

    fn count(&mut self, outcome: Outcome) {
        self.totals.received += 1;
        match outcome {
            Outcome::Stored(_) => self.totals.unique_processed += 1,
            Outcome::Duplicate(_) => self.totals.duplicate_dropped += 1,
            Outcome::Conflict(_) => {
                self.totals.duplicate_dropped += 1;
                self.totals.conflicts += 1;
            }
            Outcome::TopicLimit => unreachable!("the limit on topics fails the whole request"),
        }
    }
}
