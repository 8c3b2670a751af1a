//! Fuzz targets of the HTTP edge: bodies, lines and queries.

use axum::http::{HeaderMap, HeaderValue, header};

use super::{
    error::{DETAILS_MAX, Failure},
    events::{self, LAST_EVENT_ID, LIMIT_MAX, wanted},
    lines,
    publish::parse_body,
    query,
};
use crate::{
    event::{Event, StoredEvent},
    json,
    limits::{REQUEST_EVENTS_MAX, STATS_TOPICS_MAX},
    partition::Start,
};

/// The limit on an event here, in bytes.
const EVENT_BYTES_MAX: usize = 4096;
/// More than any error says about one flaw, in bytes.
const MESSAGE_BYTES_MAX: usize = 512;
/// How many times larger the encoding of a body can be than the body: `0,` in an array takes 11 bytes.
const GROWTH_MAX: usize = 6;

/// Reads a JSON body.
pub fn http_json(data: &[u8]) {
    match parse_body(data, EVENT_BYTES_MAX) {
        Ok(events) => {
            assert!(events.len() <= REQUEST_EVENTS_MAX);
            let encoded: usize = events.iter().map(|event| event.encoded().len()).sum();
            assert!(encoded <= GROWTH_MAX * data.len());
            events.iter().for_each(assert_valid);
        }
        Err(refused) => assert_holds(refused.failure),
    }
}

/// Reads lines of JSON. The input is the size of a group in units of 16 bytes (u8), and the lines.
pub fn http_ndjson(data: &[u8]) {
    let Some((group_part, lines)) = data.split_first() else {
        return;
    };
    let group_bytes_max = usize::from(*group_part) * 16;
    let groups: Vec<_> = lines::groups(lines, group_bytes_max).collect();
    assert_eq!(groups.concat().concat(), lines);
    for group in &groups {
        let bytes: usize = group.iter().map(|line| line.len()).sum();
        assert!(group.len() == 1 || bytes <= group_bytes_max);
        assert!((1..=REQUEST_EVENTS_MAX).contains(&group.len()));
    }
    for line in groups.concat() {
        let line = line.trim_ascii();
        let (whole, rest) = line.split_at(line.iter().take_while(|byte| **byte != b'\n').count());
        assert!(rest.is_empty(), "a line has no end within");
        match lines::parse_event(whole, EVENT_BYTES_MAX) {
            Ok(event) => {
                assert_valid(&event);
                let body = parse_body(line, EVENT_BYTES_MAX);
                let body = body.ok().expect("an event is a body");
                assert_eq!(body.len(), 1);
                assert_eq!(body[0].encoded(), event.encoded());
            }
            Err(flaws) => {
                let flaws = flaws.into_iter();
                assert_holds(Failure::events(
                    flaws.map(|flaw| (vec!["body".into()], flaw)),
                ));
                let body = parse_body(line, EVENT_BYTES_MAX);
                assert!(body.is_err() || line.starts_with(b"["));
            }
        }
    }
}

/// Reads requests for `/events` and `/stats`. The input is a query, a line for the header `Accept`, and one for
/// `Last-Event-ID`.
pub fn http_query(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(Ok(query)) = lines.next().map(str::from_utf8) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [header::ACCEPT, LAST_EVENT_ID].into_iter().zip(lines) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    match wanted(Some(query), &headers) {
        Ok(wanted) => {
            assert!(
                wanted
                    .limit
                    .is_none_or(|limit| (1..=LIMIT_MAX).contains(&limit))
            );
            if let Start::After(cursor) = &wanted.start {
                assert!(!cursor.is_empty());
            }
            // The link to the next page repeats the request.
            let link = events::link(&wanted, "1a2b");
            let link = link.to_str().expect("ASCII");
            let next = link.strip_prefix("</events?");
            let next = next.and_then(|link| link.strip_suffix(">; rel=\"next\""));
            let next = events::wanted(next, &HeaderMap::new()).expect("our own link");
            assert_eq!(next.topic, wanted.topic);
            assert_eq!(next.limit, wanted.limit);
            assert_eq!(next.start, Start::After("1a2b".to_owned()));
        }
        Err(failure) => assert_holds(failure),
    }
    let topics =
        query::parameters(Some(query), ["topic_prefix", "max_topics"]).and_then(|[_, max]| {
            query::positive("max_topics", max.as_deref(), STATS_TOPICS_MAX as u64)
        });
    match topics {
        Ok(max) => assert!(max.is_none_or(|max| (1..=STATS_TOPICS_MAX as u64).contains(&max))),
        Err(failure) => assert_holds(failure),
    }
}

/// A failure has a place and a message, within the limits on a response.
fn assert_holds(failure: Failure) {
    let json = failure.into_json();
    let answer: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let detail = answer["detail"].as_array().expect("an array");
    assert!((1..=DETAILS_MAX).contains(&detail.len()), "{json}");
    for flaw in detail {
        let msg = flaw["msg"].as_str().expect("text");
        assert!((1..=MESSAGE_BYTES_MAX).contains(&msg.len()), "{msg}");
        let loc = flaw["loc"].to_string();
        assert!((1..=MESSAGE_BYTES_MAX).contains(&loc.len()), "{loc}");
    }
}

fn assert_valid(event: &Event) {
    assert!(event.encoded().len() <= EVENT_BYTES_MAX);
    crate::event::fuzzing::assert_valid(event);
    assert_eq!(relist(event).encoded(), event.encoded());
}

/// Lists an event, publishes the listing, and lists that: both listings must be equal.
pub(crate) fn relist(event: &Event) -> Event {
    let listed = list(event);
    let raw = serde_json::from_str(&listed).expect("JSON");
    let again = json::event::parse(raw, json::event::Names::Listed, 2 * event.encoded().len());
    let again = again.expect("what is listed can be published");
    assert_eq!(list(&again), listed);
    again
}

fn list(event: &Event) -> String {
    let stored = StoredEvent {
        sequence: 7,
        received_at: u64::MAX,
        batch_checksum: 0,
        encoded: event.encoded().clone(),
    };
    let mut line = Vec::new();
    json::listed::write(&stored, Some("1a2b"), &mut line);
    assert!(!line.contains(&b'\n'), "an event is one line");
    String::from_utf8(line).expect("UTF-8")
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    const EVENT: &str = r#"{"topic":"orders","event_id":"o-1","timestamp":"2026-01-01T00:00:00.5+02:00","source":"shop","payload":{"total":12,"lines":[{"sku":"a","n":1.5e3},null,true,"\u00e9"],"":{}},"attributes":{"trace":"1","b":""}}"#;
    const DATA: &str = r#"{"topic":"t","event_id":"1","timestamp":"2026-01-01 00:00:00","source":"s","payload":null,"data":"AAECAw==","sequence":7,"received_at":"x","cursor":"y"}"#;
    const WRONG: &str = r#"{"topic":7,"event_id":"","timestamp":"x","source":["s"],"payload":[],"attributes":{"a":1},"topik":0,"topic":"t"}"#;

    pub(crate) fn bodies() -> Vec<(&'static str, Vec<u8>)> {
        let array = format!("[{EVENT}, {DATA},\n{WRONG}]");
        let integers = EVENT.replace("12", "9007199254740993");
        let twice = EVENT.replace("\"\":{}", "\"total\":{}");
        let deep = EVENT.replace("12", &format!("{}{}", "[".repeat(48), "]".repeat(48)));
        let unsorted = r#"{"z":{"b":1,"a":-0.0},"y":[[],{}],"a":5e-324,"aa":-9223372036854775808}"#;
        let unsorted = EVENT.replace(r#""total":12"#, &format!("\"o\":{unsorted}"));
        let names: String = (0..300).map(|at| format!("\"{at}\":0,")).collect();
        let names = format!("{{{names}\"topic\":\"t\"}}");
        vec![
            ("event", EVENT.into()),
            ("data", DATA.into()),
            ("wrong", WRONG.into()),
            ("array", array.into()),
            ("integers", integers.into()),
            ("twice", twice.into()),
            ("deep", deep.into()),
            ("unsorted", unsorted.into()),
            ("names", names.into()),
        ]
    }

    pub(crate) fn lines() -> Vec<(&'static str, Vec<u8>)> {
        let lines = [EVENT, "", DATA, " \r", EVENT, WRONG, "[]"].join("\n");
        let seed = |part: u8| [&[part][..], lines.as_bytes()].concat();
        vec![("grouped", seed(30)), ("single", seed(0))]
    }

    pub(crate) fn queries() -> Vec<(&'static str, Vec<u8>)> {
        let queries = [
            ("none", "\n*/*;q=0.1, text/html\n"),
            (
                "topic",
                "topic=a+%C3%A9%26&limit=10&start=latest\napplication/x-ndjson;q=0.5, text/*\n",
            ),
            (
                "cursor",
                "cursor=0101&limit=9223372036854775807\ntext/event-stream\n01ab",
            ),
            (
                "stats",
                "topic_prefix=o%2F&max_topics=10000\nTEXT/html;q=NaN\n",
            ),
            ("wrong", "topic=%ff&topic=a&x=1&start=now&limit=0"),
        ];
        queries.map(|(name, query)| (name, query.into())).into()
    }
}
