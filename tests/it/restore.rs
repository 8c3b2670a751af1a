//! Cursors from before a restore: a reader must learn that this server has other events than it has read.

use std::{fs, path::Path};

use hyper::Method;
use oncelog::proto::v1;
use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    http_support::{ACCEPT_LINES, ACCEPT_STREAM, Http},
    support::{
        Client, DataDir, TestServer, events, list_request, list_responses, publish, sequences,
    },
};

const REASON: &str = "CURSOR_OF_ANOTHER_HISTORY";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn after(cursor: &str, topic: &str) -> v1::ListEventsRequest {
    v1::ListEventsRequest {
        cursor: cursor.to_owned(),
        ..list_request(topic)
    }
}

/// Every cursor of a list, with the sequence it stands after.
async fn cursors(http: Http, client: &mut Client) -> Vec<(u64, String)> {
    let lines = http.send(Method::GET, "/events", &[ACCEPT_LINES], "").await;
    let lines = lines.json_lines().into_iter().map(|event| {
        let sequence = event["sequence"].as_u64().expect("a number");
        (
            sequence,
            event["cursor"].as_str().expect("a text").to_owned(),
        )
    });
    let mut cursors: Vec<_> = lines.collect();
    let last = cursors.last().expect("not empty").0;
    // A topic in none of the last batches: its reader ends at the tail all the same.
    for topic in ["", "a", "b", "none"] {
        for response in list_responses(client, list_request(topic)).await {
            let sequence = response.events.last().map_or(last, |event| event.sequence);
            if response.caught_up {
                cursors.push((last, response.cursor));
            } else {
                cursors.push((sequence, response.cursor));
            }
        }
    }
    cursors
}

async fn assert_refused(http: Http, client: &mut Client, cursor: &str) {
    for topic in ["", "a", "b"] {
        let refused = client.list_events(after(cursor, topic)).await;
        let error = refused.expect_err("another history");
        assert_eq!(error.code(), Code::InvalidArgument);
        let info = error.get_details_error_info().expect("a reason");
        assert_eq!(info.reason, REASON);
        let request = error.get_details_bad_request().expect("a field");
        assert_eq!(request.field_violations[0].field, "cursor");
        assert!(error.message().contains("read from the start"), "{error}");
    }
    let query = format!("/events?cursor={cursor}");
    for accept in [None, Some(ACCEPT_LINES), Some(ACCEPT_STREAM)] {
        let accept: Vec<_> = accept.into_iter().collect();
        let refused = http.send(Method::GET, &query, &accept, "").await;
        assert_http_refused(refused.expect(422), "query");
    }
    let resumes = [ACCEPT_STREAM, ("last-event-id", cursor)];
    let refused = http.send(Method::GET, "/events", &resumes, "").await;
    assert_http_refused(refused.expect(422), "header");
}

fn assert_http_refused(answer: Value, place: &str) {
    let detail = &answer["detail"][0];
    assert_eq!(detail["reason"], REASON, "{answer}");
    assert_eq!(detail["loc"][0], place);
    let msg = detail["msg"].as_str().expect("a text");
    assert!(msg.contains("read from the start"), "{msg}");
}

#[tokio::test]
async fn a_cursor_of_before_a_restore_is_refused() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..5)).await;
    publish(client, events("b", 0..5)).await;
    let before = cursors(Http::from(&server), client).await;
    let original = server.stop().await;
    let restored = DataDir::new();
    copy(original.path(), restored.path());

    // The original goes on, and its readers with it.
    let server = TestServer::start_in(original).await;
    let client = &mut server.client().await;
    for id in 10..20 {
        publish(client, events("a", id..id + 1)).await;
    }
    let of_original = cursors(Http::from(&server), client).await;
    assert_eq!(of_original.last().expect("some").0, 20);

    // Both live at once; the copy gets different events.
    let clone = TestServer::start_in(restored).await;
    let http = Http::from(&clone);
    let client = &mut clone.client().await;
    for id in 100..107 {
        publish(client, events("a", id..id + 1)).await;
    }
    for (sequence, cursor) in &of_original {
        if *sequence > 17 {
            // Past the end of the copy, for now.
            assert_refused(http, client, cursor).await;
        }
    }
    publish(client, events("a", 107..115)).await;
    for (sequence, cursor) in &of_original {
        if *sequence > 10 {
            assert_refused(http, client, cursor).await;
        }
    }
    // The common part is not another history, not even after a restart, when it is read from the log.
    let clone = clone.restart().await;
    let client = &mut clone.client().await;
    for (sequence, cursor) in of_original.iter().chain(&before) {
        if *sequence > 10 {
            assert_refused(Http::from(&clone), client, cursor).await;
            continue;
        }
        let responses = list_responses(client, after(cursor, "")).await;
        let listed: Vec<_> = responses.into_iter().flat_map(|r| r.events).collect();
        let expected: Vec<_> = (*sequence + 1..=25).collect();
        assert_eq!(sequences(&listed), expected);
    }
}

#[tokio::test]
async fn a_cursor_of_a_lost_tail_is_refused() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..10)).await;
    let data_dir = server.stop().await;
    let backup = DataDir::new();
    copy(data_dir.path(), backup.path());
    let server = TestServer::start_in(data_dir).await;
    let client = &mut server.client().await;
    publish(client, events("a", 10..15)).await;
    let cursors = cursors(Http::from(&server), client).await;
    drop(server);

    // The earlier backup takes its place.
    let server = TestServer::start_in(backup).await;
    let client = &mut server.client().await;
    let lost: Vec<_> = cursors.iter().filter(|(at, _)| *at > 10).collect();
    assert!(lost.len() > 5);
    for (_, cursor) in &lost {
        assert_refused(Http::from(&server), client, cursor).await;
    }
    // The same events come again, in a different batch: the cursor may be refused, but nothing is skipped.
    publish(client, events("a", 10..15)).await;
    for (_, cursor) in lost {
        assert_refused(Http::from(&server), client, cursor).await;
    }
}

/// A cursor from before cursors proved anything.
#[tokio::test]
async fn a_cursor_of_version_1_is_taken() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..10)).await;
    let cursors = cursors(Http::from(&server), client).await;
    let (_, cursor) = cursors.iter().find(|(at, _)| *at == 4).expect("is there");
    let body = |digits: std::ops::Range<usize>| {
        let bytes = digits.step_by(2);
        bytes.map(|at| u8::from_str_radix(&cursor[at..at + 2], 16).expect("hex"))
    };
    let mut old: Vec<u8> = [1].into_iter().chain(body(2..34)).collect();
    old.extend(crc32c::crc32c(&old).to_le_bytes());
    let old: String = old.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = list_responses(client, after(&old, "")).await;
    assert_eq!(listed[0].events.len(), 6);
    let server = server.restart().await;
    let client = &mut server.client().await;
    let listed = list_responses(client, after(&old, "")).await;
    assert_eq!(listed[0].events.len(), 6);
}
