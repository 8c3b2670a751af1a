//! GetEvent: did this event land?

use tonic::Status;

use super::{Aggregator, convert, status};
use crate::proto::v1;

pub(super) async fn get_event(
    aggregator: &Aggregator,
    request: &v1::GetEventRequest,
) -> Result<v1::GetEventResponse, Status> {
    let key = convert::key(request).map_err(|violation| status::invalid_field(&violation))?;
    let event = aggregator.partition.get(key).await;
    match event.map_err(|error| status::read(&error))? {
        Some(event) => Ok(v1::GetEventResponse {
            event: Some(convert::stored_event(&event)),
        }),
        None => Err(Status::not_found(
            "no event with this topic and event_id is stored",
        )),
    }
}
