//! GET / and /openapi.json: what there is, for people and for programs.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

const LANDING: &str = include_str!("landing.txt");
const OPENAPI: &str = include_str!("openapi.json");

pub(super) async fn landing() -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        LANDING,
    )
        .into_response()
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
