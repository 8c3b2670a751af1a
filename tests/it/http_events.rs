//! GET /events: pages, streams of lines, and server-sent events.

use hyper::Method;
use oncelog::proto::v1;
use serde_json::{Value, json};

use crate::{
    http_support::{ACCEPT_LINES, ACCEPT_STREAM, EventSource, Http, ids, json_event, json_lines},
    support::{DataDir, TestServer, event, event_with_data, events, publish},
};

/// The pages of a list, by their `Link` headers.
async fn pages(http: Http, path: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut path = path.to_owned();
    loop {
        let answer = http.get(&path).await;
        let link = answer.header("link").to_owned();
        let cursor = answer.header("oncelog-cursor").to_owned();
        let page = answer.expect(200).as_array().expect("an array").clone();
        if let Some(last) = page.last().filter(|_| !link.is_empty()) {
            assert_eq!(last["cursor"], cursor);
        }
        pages.push(page);
        if link.is_empty() {
            return pages;
        }
        let next = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""));
        path = next.expect("a link").to_owned();
    }
}

#[tokio::test]
async fn pages_are_linked_without_gap_or_repeat() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let client = &mut server.client().await;
    publish(client, events("a b/é", 0..25)).await;
    publish(client, events("other", 0..30)).await;
    for (limit, sizes) in [
        (10, vec![10, 10, 5]),
        (25, vec![25]),
        (24, vec![24, 1]),
        (99, vec![25]),
    ] {
        let pages = pages(http, &format!("/events?topic=a%20b/%C3%A9&limit={limit}")).await;
        assert_eq!(
            pages.iter().map(Vec::len).collect::<Vec<_>>(),
            sizes,
            "{limit}"
        );
        let expected: Vec<_> = (0..25).map(|id| id.to_string()).collect();
        assert_eq!(ids(&pages.concat()), expected);
    }
    let all = pages(http, "/events?limit=7").await.concat();
    let sequences: Vec<_> = all.iter().map(|event| event["sequence"].as_u64()).collect();
    assert_eq!(sequences, (1..=55).map(Some).collect::<Vec<_>>());

    // The cursor at the end finds later events.
    let end = http.get("/events?topic=other").await;
    let cursor = end.header("oncelog-cursor").to_owned();
    publish(client, events("other", 30..31)).await;
    let later = http
        .get(&format!("/events?topic=other&cursor={cursor}"))
        .await;
    assert_eq!(ids(later.expect(200).as_array().expect("an array")), ["30"]);
    let latest = http.get("/events?start=latest").await;
    assert_eq!(latest.expect(200), json!([]));
}

#[tokio::test]
async fn pages_have_limits() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let client = &mut server.client().await;
    publish(client, events("small", 0..10_500)).await;
    let sizes = |pages: Vec<Vec<Value>>| pages.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(
        sizes(pages(http, "/events").await),
        [[1000; 10].as_slice(), &[500]].concat()
    );
    for size in sizes(pages(http, "/events?limit=1000000").await) {
        assert!(size <= 10_000);
    }
    let large = (0..6).map(|id| event_with_data("large", id, vec![0; 600_000]));
    for event in large {
        publish(client, vec![event]).await;
    }
    assert_eq!(sizes(pages(http, "/events?topic=large").await), [1; 6]);
}

#[tokio::test]
async fn a_bad_request_is_named() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let other = TestServer::start().await;
    let other = Http::from(&other).get("/events").await;
    let other = format!("/events?cursor={}", other.header("oncelog-cursor"));
    for (path, field, says) in [
        (
            "/events?cursor=abc",
            "cursor",
            "not a cursor of this server",
        ),
        (&other, "cursor", "a cursor of another log"),
        (
            "/events?limit=0",
            "limit",
            "the limit is 1 to 9223372036854775807",
        ),
        ("/events?limit=x", "limit", "a whole number is expected"),
        (
            "/events?start=middle",
            "start",
            "neither earliest nor latest",
        ),
        (
            "/events?topic=a%00b",
            "topic",
            "a control character at byte 1",
        ),
        ("/events?topic=%ff", "topic", "not UTF-8"),
        ("/events?topic=a&topic=b", "topic", "given twice"),
        (
            "/events?topics=a",
            "topics",
            "not a parameter; the parameters are topic, cursor",
        ),
    ] {
        let (loc, msg) = http.get(path).await.flaw(422);
        assert_eq!(loc, json!(["query", field]));
        assert!(msg.contains(says), "{msg}");
    }
    let headers = [ACCEPT_STREAM, ("last-event-id", "abc")];
    let (loc, _) = http
        .send(Method::GET, "/events", &headers, "")
        .await
        .flaw(422);
    assert_eq!(loc, json!(["header", "last-event-id"]));
    let html = [("accept", "text/html")];
    let (loc, _) = http.send(Method::GET, "/events", &html, "").await.flaw(406);
    assert_eq!(loc, json!(["header", "accept"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_stream_everything() {
    const EVENTS: u64 = 12_000;
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let lines = json_lines((0..EVENTS).map(|id| json_event("t", id)));
    http.publish_lines(lines).await.expect(200);
    publish(&mut server.client().await, vec![event("u", 0)]).await;
    let listed = http.lines("/events?topic=t").await;
    let expected: Vec<_> = (0..EVENTS).map(|id| id.to_string()).collect();
    assert_eq!(ids(&listed), expected);
    assert_eq!(http.lines("/events").await.len() as u64, EVENTS + 1);
    assert_eq!(http.lines("/events?limit=11000").await.len(), 11_000);

    // Every line has the cursor to continue from.
    let cursor = listed[9999]["cursor"].as_str().expect("a cursor");
    let rest = http
        .lines(&format!("/events?topic=t&cursor={cursor}"))
        .await;
    assert_eq!(rest, listed[10_000..]);
    let headers = [ACCEPT_LINES, ("last-event-id", cursor)];
    let rest = http
        .send(Method::GET, "/events?topic=t", &headers, "")
        .await;
    assert_eq!(rest.json_lines(), listed[10_000..]);
}

#[tokio::test]
async fn an_event_stream_follows_and_resumes_over_a_restart() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    http.publish(&json_event("t", 1)).await.expect(200);
    let mut source = EventSource::open(http, "/events?topic=t", &[]).await;
    let first = source.next().await.expect("an event");
    assert_eq!(first["event_id"], "1");
    assert_eq!(first["cursor"], source.last_id);
    let mut live = EventSource::open(http, "/events?topic=t&start=latest", &[]).await;
    live.caught_up().await;
    http.publish(&json!([json_event("u", 1), json_event("t", 2)]))
        .await
        .expect(200);
    assert_eq!(source.next().await.expect("an event")["event_id"], "2");
    assert_eq!(live.next().await.expect("an event")["event_id"], "2");
    http.publish(&json_event("u", 2)).await.expect(200);

    let stopped = tokio::spawn(server.restart());
    assert_eq!(source.next().await, None);
    let server = stopped.await.expect("no panic");
    let http = Http::from(&server);
    http.publish(&json_event("t", 3)).await.expect(200);
    let headers = [("last-event-id", &*source.last_id)];
    // The id takes precedence over the cursor in the address that a browser repeats.
    let path = format!(
        "/events?topic=t&cursor={}",
        first["cursor"].as_str().expect("text")
    );
    let mut source = EventSource::open(http, &path, &headers).await;
    assert_eq!(source.next().await.expect("an event")["event_id"], "3");
}

#[tokio::test(start_paused = true)]
async fn a_silent_event_stream_shows_that_it_lives() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let mut source = EventSource::open(http, "/events?topic=t", &[]).await;
    for _ in 0..3 {
        source.caught_up().await;
        // Text between two blocks is not an event.
        assert!(!source.take_arrived().contains("data:"));
    }
}

#[tokio::test]
async fn an_event_stream_ends_at_its_limit() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    http.publish_lines(json_lines((0..5).map(|id| json_event("t", id))))
        .await
        .expect(200);
    let mut source = EventSource::open(http, "/events?limit=3", &[]).await;
    let mut seen = Vec::new();
    while let Some(event) = source.next().await {
        seen.push(event);
    }
    assert_eq!(ids(&seen), ["0", "1", "2"]);
}

#[tokio::test]
async fn readers_of_both_edges_count_together() {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.readers_max = 2;
    let server = TestServer::start_with(data_dir, options).await;
    let http = Http::from(&server);
    let follow = v1::ListEventsRequest {
        follow: true,
        ..v1::ListEventsRequest::default()
    };
    let mut grpc = server
        .client()
        .await
        .list_events(follow)
        .await
        .expect("open")
        .into_inner();
    grpc.message().await.expect("alive").expect("a response");
    let source = EventSource::open(http, "/events", &[]).await;
    let answer = http.get("/events").await;
    assert_eq!(answer.header("retry-after"), "10");
    let (loc, msg) = answer.flaw(503);
    assert_eq!(loc, json!(["server"]));
    assert!(msg.contains("--max-readers"), "{msg}");
    drop((source, grpc));
    let again = async { while http.get("/events").await.status != 200 {} };
    crate::support::patiently("a reader is let in", again).await;
}
