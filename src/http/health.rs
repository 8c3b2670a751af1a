//! GET /healthz and /readyz: would a restart help, and can the server store events?

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;

use super::{error::Failure, json_response};
use crate::{aggregator::Aggregator, partition::Health};

#[derive(Serialize)]
struct HealthBody {
    status: &'static str,
}

/// Fails when only a restart helps; for supervisors.
pub(super) async fn healthz(State(aggregator): State<Aggregator>) -> Result<Response, Failure> {
    let health = *aggregator.partition.health().borrow();
    match health {
        Health::Serving | Health::Refusing(_) => {
            Ok(json_response(StatusCode::OK, &HealthBody { status: "ok" }))
        }
        Health::Failed(error) => Err((&error).into()),
    }
}

/// Fails whenever events cannot be stored; for load balancers.
pub(super) async fn readyz(State(aggregator): State<Aggregator>) -> Result<Response, Failure> {
    if aggregator.stopping.is_cancelled() {
        return Err(Failure::stopping());
    }
    let health = *aggregator.partition.health().borrow();
    match health {
        Health::Serving => Ok(json_response(
            StatusCode::OK,
            &HealthBody { status: "ready" },
        )),
        Health::Refusing(error) | Health::Failed(error) => Err((&error).into()),
    }
}
