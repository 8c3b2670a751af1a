//! HTTP with a failed disk, damaged data and a stop: the responses, and how streams end.

use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use oncelog::platform::faulty::FaultyDisk;
use serde_json::{Value, json};

use crate::{
    http_support::{ACCEPT_LINES, EventSource, Http, ids, json_event, json_lines},
    support::{DataDir, TestServer, event_with_data, flip, patiently, publish},
};

/// The complete lines of a body that ends with a broken connection.
async fn lines_until_it_breaks(mut body: Incoming) -> Vec<Value> {
    let mut arrived = Vec::new();
    loop {
        let frame = patiently("a line", body.frame()).await;
        match frame.expect("it does not end as if that were all") {
            Ok(frame) => arrived.extend_from_slice(&frame.into_data().expect("data")),
            Err(_) => break,
        }
    }
    let whole = arrived.split_inclusive(|byte| *byte == b'\n');
    let whole = whole.filter(|line| line.ends_with(b"\n"));
    whole
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect()
}

#[tokio::test]
async fn a_failed_disk_is_unavailable_and_reads_go_on() {
    let disk = FaultyDisk::default();
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.partition.platform = disk.platform();
    let server = TestServer::start_with(data_dir, options).await;
    let http = Http::from(&server);
    http.publish(&json_event("t", 1)).await.expect(200);

    disk.fail_syncs(true);
    let answers = [
        http.publish(&json_event("t", 2)).await,
        http.publish_lines(json_lines([json_event("t", 3)])).await,
        http.get("/readyz").await,
        http.get("/healthz").await,
    ];
    for answer in answers {
        assert_eq!(answer.header("retry-after"), "60");
        let answer = answer.expect(503);
        assert_eq!(answer["detail"][0]["loc"], json!(["server"]));
        let msg = answer["detail"][0]["msg"].as_str().expect("a message");
        assert!(msg.contains("until it is restarted"), "{msg}");
    }
    assert_eq!(ids(&http.lines("/events").await), ["1"]);
}

#[tokio::test]
async fn damage_is_reported_and_never_looks_like_the_end() {
    const EVENTS: u64 = 80;
    const DATA_BYTES: usize = 300_000;
    let server = TestServer::start().await;
    let http = Http::from(&server);
    // More than readers get from memory; the third is damaged.
    for id in 0..EVENTS {
        let event = event_with_data("t", id, vec![7; DATA_BYTES]);
        publish(&mut server.client().await, vec![event]).await;
    }
    flip(&server.data_dir.segments()[0], 5 * DATA_BYTES as u64 / 2);

    let response = http.open(Method::GET, "/events", &[ACCEPT_LINES], "").await;
    assert_eq!(response.status(), 200);
    let lines = lines_until_it_breaks(response.into_body()).await;
    // The broken connection can take the last lines with it.
    assert!(["0", "1"].starts_with(&ids(&lines)));

    // Pages end before it, and lead to it.
    let mut seen = Vec::new();
    let mut path = "/events".to_owned();
    while seen.len() < 2 {
        let answer = http.get(&path).await;
        assert!(answer.header("link").contains("next"));
        path = format!("/events?cursor={}", answer.header("oncelog-cursor"));
        seen.extend(answer.expect(200).as_array().expect("an array").clone());
    }
    assert_eq!(ids(&seen), ["0", "1"]);
    let (loc, msg) = http.get(&path).await.flaw(500);
    assert_eq!(loc, json!(["server"]));
    assert!(msg.contains(".log"), "{msg}");
    let mut source = EventSource::open(http, &path, &[]).await;
    let reply = source.next().await.expect("an error");
    assert_eq!(reply["detail"][0]["loc"], json!(["server"]));
    assert_eq!(source.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_a_stop_cuts_do_not_look_like_all() {
    const EVENTS: u64 = 100;
    let server = TestServer::start().await;
    let http = Http::from(&server);
    for id in 0..EVENTS {
        // More than a connection buffers.
        let event = event_with_data("t", id, vec![7; 500_000]);
        publish(&mut server.client().await, vec![event]).await;
    }
    let response = http.open(Method::GET, "/events", &[ACCEPT_LINES], "").await;
    let stopped = tokio::spawn(server.restart());
    let lines = lines_until_it_breaks(response.into_body()).await;
    assert!((lines.len() as u64) < EVENTS);

    let server = patiently("the restart", stopped).await.expect("no panic");
    let cursor = lines
        .last()
        .map_or("", |last| last["cursor"].as_str().expect("text"));
    let rest = Http::from(&server)
        .lines(&format!("/events?cursor={cursor}"))
        .await;
    let all: Vec<_> = lines.into_iter().chain(rest).collect();
    let expected: Vec<_> = (0..EVENTS).map(|id| id.to_string()).collect();
    assert_eq!(ids(&all), expected);
}
