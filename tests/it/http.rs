//! The original API: its own test cases, without their sleeps, and what surrounds them.

use hyper::Method;
use serde_json::json;

use crate::{
    http_support::{Http, JSON, ids, json_event, totals},
    support::{Counts, TestServer, patiently},
};

#[tokio::test]
async fn one_event_is_published() {
    let server = TestServer::start().await;
    let answer = Http::from(&server).publish(&json_event("t", 1)).await;
    let expected = json!({
        "status": "ok", "received": 1, "enqueued": 1, "unique_processed": 1, "duplicate_dropped": 0, "conflicts": 0
    });
    assert_eq!(answer.expect(200), expected);
}

#[tokio::test]
async fn many_events_are_published_and_listed() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let events: Vec<_> = (0..10).map(|id| json_event("t", id)).collect();
    let answer = http.publish(&json!(events)).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(10));

    let listed = http.get("/events").await.expect(200);
    let listed = listed.as_array().expect("an array");
    assert_eq!(listed.len(), 10);
    for (sequence, (event, listed)) in (1..).zip(events.iter().zip(listed)) {
        for field in ["topic", "event_id", "source", "payload"] {
            assert_eq!(listed[field], event[field]);
        }
        assert_eq!(listed["timestamp"], "2026-01-01T10:00:00.500Z");
        assert_eq!(listed["sequence"], sequence);
        assert!(listed["received_at"].as_str().expect("text").ends_with('Z'));
    }
}

#[tokio::test]
async fn a_duplicate_is_dropped() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let twice = json!([json_event("t", 1), json_event("t", 1)]);
    let first = http.publish(&twice).await.expect(200);
    assert_eq!(totals(&first), Counts::new().stored(1).duplicates(1));
    let second = http.publish(&json_event("t", 1)).await.expect(200);
    assert_eq!(totals(&second), Counts::new().duplicates(1));
    let mut other = json_event("t", 1);
    other["payload"] = json!({});
    let conflict = http.publish(&other).await.expect(200);
    assert_eq!(totals(&conflict), Counts::new().duplicates(1).conflicts(1));
    assert_eq!(
        http.counters().await,
        Counts::new().stored(1).duplicates(3).conflicts(1)
    );
    assert_eq!(http.lines("/events").await.len(), 1);
}

#[tokio::test]
async fn events_are_listed_by_topic() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let events = json!([
        json_event("a", 1),
        json_event("b", 2),
        json_event("a b&é", 3)
    ]);
    http.publish(&events).await.expect(200);
    for (path, expected) in [
        ("/events?topic=a", &["1"][..]),
        ("/events?topic=b", &["2"]),
        ("/events?topic=a%20b%26%C3%A9", &["3"]),
        ("/events?topic=a+b%26%C3%A9", &["3"]),
        ("/events?topic=unknown", &[]),
        ("/events?topic=", &["1", "2", "3"]),
        ("/events", &["1", "2", "3"]),
    ] {
        let listed = http.get(path).await.expect(200);
        assert_eq!(
            ids(listed.as_array().expect("an array")),
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn an_empty_server_lists_nothing() {
    let server = TestServer::start().await;
    let answer = Http::from(&server).get("/events").await;
    assert_eq!(answer.header("link"), "");
    assert_eq!(answer.expect(200), json!([]));
}

#[tokio::test]
async fn stats_have_their_shape() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let stats = http.get("/stats").await.expect(200);
    for counter in [
        "received",
        "unique_processed",
        "duplicate_dropped",
        "conflicts",
        "rejected",
        "topic_count",
    ] {
        assert_eq!(stats[counter], 0, "{counter}");
    }
    assert_eq!(stats["topics"], json!([]));
    assert!(stats["uptime_seconds"].is_u64());
    assert_eq!(stats["durable_tail"], 1);
    assert_eq!(stats["server_version"], env!("CARGO_PKG_VERSION"));

    http.publish(&json!([json_event("new", 1), json_event("other", 1)]))
        .await
        .expect(200);
    let stats = http.get("/stats").await.expect(200);
    assert_eq!(stats["topics"], json!(["new", "other"]));
    assert_eq!(stats["topic_stats"][0]["unique_processed"], 1);
    assert!(stats["storage_bytes"].as_u64() > Some(0));
    let some = http.get("/stats?topic_prefix=n&max_topics=1").await;
    assert_eq!(some.expect(200)["topics"], json!(["new"]));
    let (loc, _) = http.get("/stats?max_topics=0").await.flaw(422);
    assert_eq!(loc, json!(["query", "max_topics"]));
}

#[tokio::test]
async fn a_missing_field_is_unprocessable() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    for field in ["topic", "event_id", "timestamp", "source", "payload"] {
        let mut event = json_event("t", 1);
        event.as_object_mut().expect("an object").remove(field);
        let (loc, msg) = http.publish(&event).await.flaw(422);
        assert_eq!(loc, json!(["body", field]));
        assert!(msg.starts_with("missing"), "{msg}");
        let (loc, _) = http
            .publish(&json!([json_event("t", 0), event]))
            .await
            .flaw(422);
        assert_eq!(loc, json!(["body", 1, field]));
    }
    assert_eq!(http.get("/events").await.expect(200), json!([]));
    assert_eq!(http.counters().await, Counts::new().rejected(15));
}

#[tokio::test]
async fn a_bad_timestamp_is_unprocessable() {
    let server = TestServer::start().await;
    let mut event = json_event("t", 1);
    event["timestamp"] = json!("not a timestamp");
    let (loc, msg) = Http::from(&server).publish(&event).await.flaw(422);
    assert_eq!(loc, json!(["body", "timestamp"]));
    assert!(msg.contains("ISO 8601"), "{msg}");
}

#[tokio::test]
async fn methods_and_paths_are_checked() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    for (method, path, allow) in [
        (Method::GET, "/publish", "POST"),
        (Method::DELETE, "/events", "GET,HEAD"),
        (Method::POST, "/stats", "GET,HEAD"),
    ] {
        let answer = http.send(method.clone(), path, &[], "").await;
        assert_eq!(answer.header("allow"), allow, "{path}");
        let (loc, msg) = answer.flaw(405);
        assert_eq!(loc, json!(["method"]));
        assert!(msg.contains(method.as_str()), "{msg}");
    }
    let (loc, msg) = http.get("/event").await.flaw(404);
    assert_eq!(loc, json!(["path"]));
    assert!(msg.contains("/events"), "{msg}");

    let grpc = [("content-type", "application/grpc")];
    let unimplemented = http.send(Method::POST, "/no.Such/Call", &grpc, "").await;
    assert_eq!(unimplemented.header("grpc-status"), "12");

    let head = http.send(Method::HEAD, "/events", &[], "").await;
    assert_eq!((head.status.as_u16(), &*head.body), (200, ""));
    assert_eq!(head.header("oncelog-cursor").len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_speak_ends() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    // Nothing, the start of either protocol, and half a header.
    for silent in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"GET /events HTTP/1.1\r\nhost: t\r\n",
    ] {
        let answer = http.raw(silent).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
            "{answer}"
        );
    }
    let header = format!(
        "GET / HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let answer = http.raw(header.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_identical_publishes_at_once_store_one() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let publishes = (0..20).map(|_| {
        tokio::spawn(async move { totals(&http.publish(&json_event("t", 1)).await.expect(200)) })
    });
    let publishes: Vec<_> = publishes.collect();
    let mut sum = Counts::new();
    for publish in publishes {
        let totals = patiently("a publish", publish).await.expect("no panic");
        sum = sum + totals;
    }
    assert_eq!(sum, Counts::new().stored(1).duplicates(19));
    assert_eq!(
        http.counters().await,
        Counts::new().stored(1).duplicates(19)
    );
}

#[tokio::test]
async fn pages_for_people_and_programs() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let landing = http.get("/").await;
    assert_eq!(landing.header("content-type"), "text/plain; charset=utf-8");
    assert!(landing.body.contains("GET  /openapi.json"));
    let openapi = http.get("/openapi.json").await.expect(200);
    assert_eq!(openapi["openapi"], "3.1.0");
    assert_eq!(openapi["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, methods) in openapi["paths"].as_object().expect("paths") {
        assert!(landing.body.contains(path.as_str()), "{path}");
        for method in methods.as_object().expect("methods").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let answer = http.send(method, path, &[], "").await;
            assert!(![404, 405].contains(&answer.status.as_u16()), "{path}");
        }
    }
    assert_eq!(
        http.get("/healthz").await.expect(200),
        json!({"status": "ok"})
    );
    assert_eq!(
        http.get("/readyz").await.expect(200),
        json!({"status": "ready"})
    );
}

#[tokio::test]
async fn other_origins_are_let_in_by_name() {
    let data_dir = crate::support::DataDir::new();
    let mut options = data_dir.options();
    options.http_cors_origins = vec!["https://a.example".parse().expect("an origin")];
    let server = TestServer::start_with(data_dir, options).await;
    let http = Http::from(&server);
    let preflight = |origin| async move {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        let answer = http.send(Method::OPTIONS, "/publish", &headers, "").await;
        answer.header("access-control-allow-origin").to_owned()
    };
    assert_eq!(preflight("https://a.example").await, "https://a.example");
    assert_eq!(preflight("https://b.example").await, "");
    let headers = [JSON, ("origin", "https://a.example")];
    let body = json_event("t", 1).to_string();
    let answer = http.send(Method::POST, "/publish", &headers, body).await;
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://a.example"
    );

    let closed = TestServer::start().await;
    let headers = [("origin", "https://a.example")];
    let answer = Http::from(&closed)
        .send(Method::GET, "/events", &headers, "")
        .await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}
