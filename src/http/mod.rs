//! The HTTP edge: JSON for curl, webhooks and browsers, one file per endpoint, on the same partition and
//! under the same limits as the gRPC edge.

mod accept;
mod error;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod lines;
mod pages;
mod publish;
mod query;
mod stats;
mod stream;
mod totals;
mod upload;

use std::time::Duration;

use axum::{
    Router,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub(crate) use self::error::{not_found, too_many_calls};
use crate::aggregator::Aggregator;

/// How long a browser may cache the permissions of another origin.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(3600);

/// Stands for any origin.
pub(crate) const ANY_ORIGIN: &str = "*";

/// The endpoints over `aggregator`. Pages of `origins` may call them from a browser.
pub(crate) fn routes(aggregator: Aggregator, origins: &[HeaderValue]) -> Router {
    let routes = Router::new()
        .route("/", get(pages::landing))
        .route("/openapi.json", get(pages::openapi))
        .route("/publish", post(publish::publish))
        .route("/events", get(events::events))
        .route("/stats", get(stats::stats))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(aggregator);
    if origins.is_empty() {
        return routes;
    }
    routes.layer(cors(origins))
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origin = if origins.iter().any(|origin| origin == ANY_ORIGIN) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, events::LAST_EVENT_ID])
        .expose_headers([header::LINK, header::RETRY_AFTER, events::CURSOR])
        .max_age(PREFLIGHT_AGE_MAX)
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let json = serde_json::to_vec(body).expect("an answer is JSON");
    (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
}
