//! StreamingPublish: an answer per request, in order, while later requests are on their way.

use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Status, Streaming};

use super::{
    Aggregator, STREAM_REQUESTS_MAX, convert,
    convert::Events,
    intake::Arrivals,
    status,
    wire::{RawPublishRequest, RawStreamingPublishResponse},
};
use crate::{
    event::Violation,
    partition::{PendingOutcomes, Rejection},
};

/// A request that was taken and is not answered.
struct Taken {
    /// The events that broke a limit, by their place in the request.
    violations: Vec<(usize, Violation)>,
    /// The outcomes of the others.
    pending: PendingOutcomes,
}

pub(super) fn streaming_publish(
    aggregator: Aggregator,
    request: Request<Streaming<RawPublishRequest>>,
) -> impl Stream<Item = Result<RawStreamingPublishResponse, Status>> {
    let topics_max = aggregator.limits.topics_max;
    let (taken, answers) = mpsc::channel(STREAM_REQUESTS_MAX);
    tokio::spawn(take_all(aggregator, request, taken));
    unfold(
        (answers, 0),
        move |(mut answers, acknowledged)| async move {
            let taken: Result<Taken, Status> = answers.recv().await?;
            let response = match taken {
                Ok(taken) => answer(taken, acknowledged + 1, topics_max).await,
                Err(status) => Err(status),
            };
            if response.is_err() {
                answers.close();
                while answers.recv().await.is_some() {}
            }
            Some((response, (answers, acknowledged + 1)))
        },
    )
}

/// Takes requests until the stream ends, for whatever reason, or nobody waits for the answers.
async fn take_all(
    aggregator: Aggregator,
    request: Request<Streaming<RawPublishRequest>>,
    taken: mpsc::Sender<Result<Taken, Status>>,
) {
    let arrivals = Arrivals::of(&request);
    let mut requests = request.into_inner();
    let mut number = 0;
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = aggregator.stopping.cancelled() => Err(status::stopping()),
            () = taken.closed() => return,
        };
        let next = match request {
            Ok(Some(request)) => take(&aggregator, &arrivals, number, request).await,
            Ok(None) => return,
            Err(status) => Err(status),
        };
        let ends = next.is_err();
        if taken.send(next).await.is_err() || ends {
            return;
        }
        number += 1;
    }
}

async fn take(
    aggregator: &Aggregator,
    arrivals: &Arrivals,
    number: u64,
    request: RawPublishRequest,
) -> Result<Taken, Status> {
    let (request, share) = arrivals.take(request);
    let events = convert::events(&request, aggregator.limits.event_bytes_max)
        .map_err(|violation| status::invalid_request(number, &violation))?;
    let Events { valid, violations } = events;
    let partition = &aggregator.partition;
    let submitted = partition.submit(valid, Rejection::OfEvent, share).await;
    let pending = submitted.map_err(|error| status::publish(&error))?;
    if !violations.is_empty() {
        partition.count_rejected(violations.len() as u64);
    }
    Ok(Taken {
        violations,
        pending,
    })
}

async fn answer(
    taken: Taken,
    acknowledged_requests: u64,
    topics_max: usize,
) -> Result<RawStreamingPublishResponse, Status> {
    let outcomes = taken.pending.await;
    let outcomes = outcomes.map_err(|error| status::publish(&error))?;
    Ok(convert::publish_response(
        acknowledged_requests,
        &outcomes,
        &taken.violations,
        topics_max,
    ))
}
