//! StreamingPublish: a response to each request, in order, while later requests arrive.

use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Status, Streaming};

use super::{
    Aggregator, STREAM_REQUESTS_MAX,
    convert::{self, Events, Violations},
    intake::{self, Requests},
    status,
    wire::{RawPublishRequest, RawStreamingPublishResponse},
};
use crate::{
    call::Call,
    partition::{Outcomes, PendingOutcomes, Rejection, Share},
};

/// A request that was taken and has no response yet.
struct Taken {
    violations: Violations,
    /// The outcomes of the other events, and the share that covers both.
    pending: PendingOutcomes,
}

pub(super) fn streaming_publish(
    aggregator: Aggregator,
    request: Request<Streaming<RawPublishRequest>>,
) -> impl Stream<Item = Result<RawStreamingPublishResponse, Status>> {
    let topics_max = aggregator.limits.topics_max;
    let requests = Requests::of(&aggregator, &request);
    let call = requests.call().clone();
    let (taken, answers) = mpsc::channel(STREAM_REQUESTS_MAX);
    tokio::spawn(take_all(aggregator, requests, taken));
    unfold(
        (answers, call, 0),
        move |(mut answers, call, acknowledged)| async move {
            let taken: Result<Taken, Status> = answers.recv().await?;
            let response = match taken {
                Ok(taken) => answer(taken, &call, acknowledged + 1, topics_max).await,
                Err(status) => Err(status),
            };
            if response.is_err() {
                answers.close();
                while answers.recv().await.is_some() {}
            }
            Some((response, (answers, call, acknowledged + 1)))
        },
    )
}

/// Takes requests until the stream ends for any reason, or nobody waits for the responses.
async fn take_all(
    aggregator: Aggregator,
    mut requests: Requests,
    taken: mpsc::Sender<Result<Taken, Status>>,
) {
    let mut number = 0;
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = aggregator.stopping.cancelled() => Err(status::stopping()),
            () = taken.closed() => return,
        };
        let next = match request {
            Ok(Some((request, share))) => take(&aggregator, number, request.into(), share).await,
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
    number: u64,
    request: RawPublishRequest,
    mut share: Share,
) -> Result<Taken, Status> {
    let events = intake::events(aggregator, number, request, &mut share).await?;
    let Events {
        valid, violations, ..
    } = events;
    let partition = &aggregator.partition;
    let submitted = partition.submit(valid, Rejection::OfEvent, share).await;
    let pending = submitted.map_err(|error| status::publish(&error))?;
    if violations.count() > 0 {
        partition.count_rejected(violations.count() as u64);
    }
    Ok(Taken {
        violations,
        pending,
    })
}

async fn answer(
    taken: Taken,
    call: &Call,
    acknowledged_requests: u64,
    topics_max: usize,
) -> Result<RawStreamingPublishResponse, Status> {
    let answered = taken.pending.await;
    let Outcomes {
        outcomes,
        mut share,
    } = answered.map_err(|error| status::publish(&error))?;
    let response = convert::publish_response(
        acknowledged_requests,
        &outcomes,
        &taken.violations,
        topics_max,
    );
    share.shrink(response.0.len());
    call.leave_with(share);
    Ok(response)
}
