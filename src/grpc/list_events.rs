//! ListEvents: catch up, then follow.

use futures_util::stream::unfold;
use tokio_stream::Stream;
use tonic::{Request, Status};

use super::{Aggregator, convert, status, wire::RawListEventsResponse};
use crate::{
    call::Call,
    event::{Topic, Violation},
    listing::Listing,
    partition::Start,
    proto::v1,
};

pub(super) async fn list_events(
    aggregator: &Aggregator,
    request: Request<v1::ListEventsRequest>,
) -> Result<impl Stream<Item = Result<RawListEventsResponse, Status>> + use<>, Status> {
    let call = request.extensions().get::<Call>();
    let call = call.expect("every call is admitted").clone();
    let request = request.into_inner();
    let permit = aggregator
        .admit_reader()
        .map_err(|_| status::too_many_readers(aggregator.limits.readers_max))?;
    let start = start(&request)?;
    let topic = match &*request.topic {
        "" => None,
        topic => Some(Topic::new(topic).map_err(|violation| status::invalid_field(&violation))?),
    };
    let reader = aggregator
        .partition
        .reader(topic, &start, permit, call.chunks())
        .await
        .map_err(|error| status::read(&error))?;
    let limit = (request.limit > 0).then_some(request.limit);
    let listing = Listing::new(aggregator, reader, limit, request.follow);
    Ok(unfold((listing, call), |(mut listing, call)| async {
        let response = match listing.next().await {
            Ok(part) => Ok(part.map(|part| {
                if let Some(share) = part.share {
                    call.leave_with_chunk(share);
                }
                convert::list_events_response(&part.events, &part.cursor, part.caught_up)
            })),
            Err(error) => Err(status::read(&error)),
        };
        Some((response.transpose()?, (listing, call)))
    }))
}

pub(super) fn start(request: &v1::ListEventsRequest) -> Result<Start, Status> {
    if !request.cursor.is_empty() {
        return Ok(Start::After(request.cursor.clone()));
    }
    match v1::StartPosition::try_from(request.start) {
        Ok(v1::StartPosition::Unspecified | v1::StartPosition::Earliest) => Ok(Start::Earliest),
        Ok(v1::StartPosition::Latest) => Ok(Start::Latest),
        Err(_) => Err(status::invalid_field(&Violation::new(
            "start",
            format!("{} is not a StartPosition", request.start),
        ))),
    }
}
