//! GET / and /openapi.json: descriptions for people and programs.

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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        event::{ATTRIBUTES_MAX, NAME_BYTES_MAX},
        http::{error::DETAILS_MAX, events::LIMIT_MAX},
        limits::{REQUEST_EVENTS_MAX, STATS_TOPICS_DEFAULT, STATS_TOPICS_MAX},
    };

    /// The parameter of an endpoint.
    fn parameter<'a>(openapi: &'a Value, path: &str, name: &str) -> &'a Value {
        let parameters = openapi["paths"][path]["get"]["parameters"].as_array();
        let mut parameters = parameters.expect("a list").iter();
        let found = parameters.find(|parameter| parameter["name"] == name);
        &found.expect("a parameter")["schema"]
    }

    #[test]
    fn the_limits_of_the_document_are_those_of_the_code() {
        let openapi: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let schemas = &openapi["components"]["schemas"];
        let body = &openapi["paths"]["/publish"]["post"]["requestBody"]["content"];
        assert_eq!(
            body["application/json"]["schema"]["oneOf"][1]["maxItems"],
            REQUEST_EVENTS_MAX
        );
        let event = &schemas["Event"]["properties"];
        for name in ["topic", "event_id", "source"] {
            assert_eq!(event[name]["maxLength"], NAME_BYTES_MAX);
        }
        assert_eq!(event["attributes"]["maxProperties"], ATTRIBUTES_MAX);
        assert_eq!(
            event["attributes"]["propertyNames"]["maxLength"],
            NAME_BYTES_MAX
        );
        assert_eq!(
            schemas["Failure"]["properties"]["detail"]["maxItems"],
            DETAILS_MAX
        );
        let max_topics = parameter(&openapi, "/stats", "max_topics");
        assert_eq!(max_topics["maximum"], STATS_TOPICS_MAX);
        assert_eq!(max_topics["default"], STATS_TOPICS_DEFAULT);
        let limit = parameter(&openapi, "/events", "limit");
        assert_eq!(limit["maximum"], LIMIT_MAX);
    }
}
