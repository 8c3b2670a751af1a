//! GetEvent: did this event land?

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Aggregator, convert, status};
use crate::{
    proto::v1,
    response::{self, ResponseShare},
};

pub(super) async fn get_event(
    aggregator: &Aggregator,
    request: Request<v1::GetEventRequest>,
) -> Result<Response<v1::GetEventResponse>, Status> {
    let unread = response::unread(request.extensions());
    let key = convert::key(&request.into_inner())
        .map_err(|violation| status::invalid_field(&violation))?;
    let event = aggregator.partition.get(key).await;
    match event.map_err(|error| status::read(&error))? {
        Some(event) => {
            let found = v1::GetEventResponse {
                event: Some(convert::stored_event(&event)),
            };
            let bytes = found.encoded_len();
            let reserved = aggregator.response_memory.reserve(&unread, bytes).await;
            let reserved = reserved.map_err(|_| status::too_many_unread())?;
            let mut response = Response::new(found);
            let share = ResponseShare::keep(reserved, bytes);
            response.extensions_mut().insert(share);
            Ok(response)
        }
        None => Err(status::no_such_event()),
    }
}
