//! GET /healthz and /readyz: does the process answer, and can it store events?

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;

use super::{error::Failure, json_response};
use crate::{
    aggregator::Aggregator,
    partition::{Health, PublishError},
};

#[derive(Serialize)]
struct Answer {
    status: &'static str,
}

pub(super) async fn healthz() -> Response {
    json_response(StatusCode::OK, &Answer { status: "ok" })
}

pub(super) async fn readyz(State(aggregator): State<Aggregator>) -> Result<Response, Failure> {
    if aggregator.stopping.is_cancelled() {
        return Err(Failure::stopping());
    }
    let health = *aggregator.partition.health().borrow();
    match health {
        Health::Serving => Ok(json_response(StatusCode::OK, &Answer { status: "ready" })),
        Health::Failed => Err((&PublishError::Failed).into()),
    }
}
