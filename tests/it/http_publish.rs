//! POST /publish: bad bodies, limits, streams of lines, and the same events over gRPC.

use hyper::Method;
use oncelog::proto::v1::{self, event::Payload};
use prost_types::{Struct, Value as PbValue, value::Kind};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    http_support::{ACCEPT_LINES, Http, JSON, LINES, ids, json_event, json_lines, totals},
    support::{
        self, Counts, DataDir, Process, TestServer, counters, event, event_with_data, list,
        patiently, publish, take_all, until,
    },
};

#[tokio::test]
async fn a_bad_body_is_described_and_stores_nothing() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let good = json_event("t", 1).to_string();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, loc, says) in [
        (
            "".into(),
            json!(["body"]),
            "not JSON: EOF while parsing a value",
        ),
        (
            "{".into(),
            json!(["body"]),
            "not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (format!("[{good},"), json!(["body"]), "not JSON: EOF"),
        (
            format!("{good} x"),
            json!(["body"]),
            "not JSON: trailing characters at line 1",
        ),
        ("NaN".into(), json!(["body"]), "not JSON: expected value"),
        (
            "7".into(),
            json!(["body"]),
            "an event object is expected, not a number",
        ),
        (
            format!("[{good},7]"),
            json!(["body", 1]),
            "an event object is expected, not a number",
        ),
        (
            deep.clone(),
            json!(["body", 0]),
            "an event object is expected, not an array",
        ),
        (
            good.replace(r#"{"list""#, &format!(r#"{{"deep":{deep},"list""#)),
            json!(["body", "payload"]),
            "nested too deeply",
        ),
        (
            good.replace("null", "NaN"),
            json!(["body"]),
            "not JSON: expected value",
        ),
        (
            good.replace("null", r#"{"a":1,"\u0061":1}"#),
            json!(["body", "payload"]),
            "a repeated name in one object",
        ),
        (
            good.replacen('{', r#"{"topic":"u","#, 1),
            json!(["body", "topic"]),
            "given twice",
        ),
        (
            format!("[{}]", vec!["{}"; 16_385].join(",")),
            json!(["body"]),
            "16385 events; the limit of a request is 16384",
        ),
    ] {
        let answer = http.send(Method::POST, "/publish", &[JSON], body).await;
        let (found, msg) = answer.flaw(422);
        assert_eq!(found, loc, "{msg}");
        assert!(msg.contains(says), "{msg}");
    }
    let not_utf8 = good.replace("test", "te\u{1}").into_bytes();
    let not_utf8: Vec<u8> = not_utf8
        .into_iter()
        .map(|b| if b == 1 { 0xff } else { b })
        .collect();
    let answer = http.send(Method::POST, "/publish", &[JSON], not_utf8).await;
    let (loc, msg) = answer.flaw(422);
    assert_eq!(loc, json!(["body"]));
    assert!(msg.contains("invalid UTF-8 at byte"), "{msg}");

    let many = http.publish(&json!(vec![json!({}); 50])).await.expect(422);
    assert_eq!(many["detail"].as_array().expect("a list").len(), 100);
    assert_eq!(http.get("/events").await.expect(200), json!([]));
    let nothing = http.publish(&json!([])).await.expect(200);
    assert_eq!(totals(&nothing), Counts::new());
}

#[tokio::test]
async fn only_json_is_taken() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let body = json_event("t", 1).to_string();
    for (name, value) in [
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "text/plain"),
        ("content-length-is-all", ""),
    ] {
        let answer = http
            .send(Method::POST, "/publish", &[(name, value)], body.clone())
            .await;
        let (loc, msg) = answer.flaw(415);
        assert_eq!(loc, json!(["header", "content-type"]));
        assert!(msg.contains("curl --json"), "{msg}");
    }
    let compressed = [JSON, ("content-encoding", "gzip")];
    let answer = http
        .send(Method::POST, "/publish", &compressed, body.clone())
        .await;
    assert_eq!(answer.flaw(415).0, json!(["header", "content-encoding"]));
    let with_charset = [("content-type", "Application/JSON; charset=utf-8")];
    let answer = http
        .send(Method::POST, "/publish", &with_charset, body)
        .await;
    assert_eq!(totals(&answer.expect(200)), Counts::new().stored(1));
}

const REQUEST_BYTES_MAX: usize = 64 * 1024;

async fn start_small() -> TestServer {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.event_bytes_max = REQUEST_BYTES_MAX / 2;
    options.request_bytes_max = REQUEST_BYTES_MAX;
    options.partition.ingest_bytes_max = 2 * REQUEST_BYTES_MAX;
    options.partition.topics_max = 2;
    TestServer::start_with(data_dir, options).await
}

fn event_of_size(id: u64, bytes: usize) -> Value {
    let mut event = json_event("t", id);
    event["payload"] = json!({"x": "x".repeat(bytes)});
    event
}

#[tokio::test]
async fn limits_are_named() {
    let server = start_small().await;
    let http = Http::from(&server);
    let held = || server.server.partition().ingest().held();

    let (loc, msg) = http
        .publish(&event_of_size(1, REQUEST_BYTES_MAX))
        .await
        .flaw(413);
    assert_eq!(loc, json!(["body"]));
    assert!(msg.contains("--max-request-bytes"), "{msg}");
    let large = event_of_size(1, REQUEST_BYTES_MAX / 2);
    let (loc, msg) = http
        .publish(&json!([json_event("t", 0), large]))
        .await
        .flaw(413);
    assert_eq!(loc, json!(["body", 1]));
    assert!(msg.contains("--max-event-bytes"), "{msg}");
    // JSON within the limit whose encoding exceeds it.
    let mut numbers = json_event("t", 1);
    numbers["payload"] = json!({"x": vec![0; 2500]});
    let numbers: Vec<_> = (0..3)
        .map(|id| {
            let mut event = numbers.clone();
            event["event_id"] = json!(id.to_string());
            event
        })
        .collect();
    let (_, msg) = http.publish(&json!(numbers)).await.flaw(413);
    assert!(msg.contains("encoded; the limit of a request"), "{msg}");
    let (loc, msg) = http
        .publish(&json!([
            json_event("a", 1),
            json_event("b", 1),
            json_event("c", 1)
        ]))
        .await
        .flaw(422);
    assert_eq!(loc, json!(["body"]));
    assert!(msg.contains("--max-topics"), "{msg}");
    assert_eq!(http.lines("/events").await.len(), 0);
    until("the budget is whole", || held() == 0).await;

    // A chunked body proves too large as it arrives.
    let mut chunked = b"POST /publish HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n\
        connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..200 {
        chunked.extend_from_slice(format!("400\r\n{}\r\n", " ".repeat(1024)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = http.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("more than 65536 bytes"), "{answer}");
    // A body that announces its size is refused without being asked for.
    let expect = b"POST /publish HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n\
        expect: 100-continue\r\ncontent-length: 1000000\r\n\r\n";
    let answer = http.raw(expect).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    until("the budget is whole", || held() == 0).await;
}

#[tokio::test]
async fn a_body_is_asked_for_when_it_is_expected_to_be() {
    let server = TestServer::start().await;
    let body = json_event("t", 1).to_string();
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\nconnection: close\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(server.server.address())
        .await
        .expect("connected");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut asked = [0; 25];
    patiently("100", stream.read_exact(&mut asked))
        .await
        .expect("read");
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    patiently("200", stream.read_to_string(&mut answer))
        .await
        .expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_arriving_gives_its_share_back() {
    let server = start_small().await;
    let http = Http::from(&server);
    for (content_type, what) in [
        ("application/json", "the body did not arrive within 60 s"),
        ("application/x-ndjson", "a line did not arrive within 60 s"),
    ] {
        let half = format!(
            "POST /publish HTTP/1.1\r\nhost: t\r\ncontent-type: {content_type}\r\n\
             transfer-encoding: chunked\r\n\r\n5\r\n{{\"top\r\n"
        );
        let answer = http.raw(half.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(what), "{answer}");
    }
    assert_eq!(server.server.partition().ingest().held(), 0);
}

#[tokio::test(start_paused = true)]
async fn overload_is_reported_and_passes() {
    let server = start_small().await;
    let http = Http::from(&server);
    let taken = take_all(server.server.partition().ingest());
    for answer in [
        http.publish(&json_event("t", 1)).await,
        http.publish_lines(json_lines([json_event("t", 1)])).await,
    ] {
        assert_eq!(answer.header("retry-after"), "1");
        let body = answer.expect(503);
        let msg = body["detail"][0]["msg"].as_str().expect("a message");
        assert!(msg.contains("--max-ingest-bytes"), "{msg}");
    }
    drop(taken);
    tokio::time::resume();
    let answer = http.publish(&json_event("t", 1)).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_any_amount_are_stored_in_bounded_memory() {
    const EVENTS: u64 = 5000;
    let server = start_small().await;
    let http = Http::from(&server);
    // Many times the budget, with blank lines, and without a newline at the end.
    let mut lines = json_lines((0..EVENTS).map(|id| json_event("t", id)));
    assert!(lines.len() > 8 * REQUEST_BYTES_MAX);
    lines.insert_str(0, "\n\r\n  \n");
    lines += &json_event("u", 0).to_string();
    let answer = http.publish_lines(lines.clone()).await.expect(200);
    let expected = json!({
        "status": "ok", "received": EVENTS + 1, "enqueued": EVENTS + 1, "unique_processed": EVENTS + 1,
        "duplicate_dropped": 0, "conflicts": 0
    });
    assert_eq!(answer, expected);
    let again = http.publish_lines(lines).await.expect(200);
    assert_eq!(totals(&again), Counts::new().duplicates(EVENTS + 1));
    let listed = http.lines("/events?topic=t").await;
    let expected: Vec<_> = (0..EVENTS).map(|id| id.to_string()).collect();
    assert_eq!(ids(&listed), expected);
    let held = || server.server.partition().ingest().held();
    until("the budget is whole", || held() == 0).await;
}

#[tokio::test]
async fn a_bad_line_ends_the_stream_and_the_answer_counts_what_is_stored() {
    let server = start_small().await;
    let http = Http::from(&server);
    let before = json_lines((0..1000).map(|id| json_event("t", id)));
    let after = json_lines((1000..1010).map(|id| json_event("t", id)));
    let mut no_topic = json_event("t", "bad");
    no_topic["topic"] = json!(7);
    for (status, bad, field, says) in [
        (
            422,
            "{".to_owned(),
            None,
            "not JSON: EOF while parsing an object",
        ),
        (
            422,
            no_topic.to_string(),
            Some("topic"),
            "a string is expected",
        ),
        (
            422,
            "[]".to_owned(),
            None,
            "an event object is expected, not an array",
        ),
        (
            413,
            event_of_size(7, REQUEST_BYTES_MAX / 2).to_string(),
            None,
            "--max-event-bytes",
        ),
        (
            413,
            "x".repeat(REQUEST_BYTES_MAX + 1),
            None,
            "--max-request-bytes",
        ),
    ] {
        let body = format!("{before}\n{bad}\n{after}");
        let answer = http.publish_lines(body).await.expect(status);
        assert_eq!(answer["received"], 1000, "{says}");
        let detail = &answer["detail"][0];
        let mut loc = vec![json!("body"), json!(1001)];
        loc.extend(field.map(Value::from));
        assert_eq!(detail["loc"], json!(loc), "{answer}");
        assert!(
            detail["msg"].as_str().expect("text").contains(says),
            "{answer}"
        );
        assert_eq!(http.lines("/events").await.len(), 1000);
    }
    // The rest is sent again, alone or with everything.
    let answer = http.publish_lines(before + &after).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(10).duplicates(1000));
}

/// The same events as JSON and as messages.
fn both() -> Vec<(Value, v1::Event)> {
    let number = |number| PbValue {
        kind: Some(Kind::NumberValue(number)),
    };
    let fields = [
        ("n".to_owned(), number(12.0)),
        ("f".to_owned(), number(0.1)),
        (
            "a".to_owned(),
            PbValue {
                kind: Some(Kind::NullValue(0)),
            },
        ),
    ];
    let with_json = v1::Event {
        payload: Some(Payload::Json(Struct {
            fields: fields.into(),
        })),
        attributes: [("k".to_owned(), "v".to_owned())].into(),
        ..event("t", "json")
    };
    let timestamp = "2023-11-14T22:13:20.000000005Z";
    let json = |id, payload: Value| {
        let payload = payload.as_object().expect("an object").clone();
        let mut event =
            json!({"topic": "t", "event_id": id, "timestamp": timestamp, "source": "test"});
        event.as_object_mut().expect("an object").extend(payload);
        event
    };
    vec![
        (
            json(
                "json",
                json!({"payload": {"n": 12, "f": 0.1, "a": null}, "attributes": {"k": "v"}}),
            ),
            with_json,
        ),
        (
            json("data", json!({"payload": null, "data": "AP8="})),
            event_with_data("t", "data", vec![0, 255]),
        ),
        (json("none", json!({"payload": null})), event("t", "none")),
        (
            json("empty", json!({"payload": {}})),
            v1::Event {
                payload: Some(Payload::Json(Struct::default())),
                ..event("t", "empty")
            },
        ),
    ]
}

/// One object that a Struct holds and one that it does not, over every edge and in every form: each is stored once.
#[tokio::test]
async fn a_payload_is_the_same_over_every_edge_and_in_every_form() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let client = &mut server.client().await;
    let number = |number| PbValue {
        kind: Some(Kind::NumberValue(number)),
    };
    let held = Struct {
        fields: [
            ("a".to_owned(), number(12.0)),
            ("b".to_owned(), number(0.1)),
        ]
        .into(),
    };
    let text = |id: &str, text: &str| v1::Event {
        payload: Some(Payload::JsonText(text.to_owned())),
        ..event("t", id)
    };
    let messages = vec![
        v1::Event {
            payload: Some(Payload::Json(held.clone())),
            ..event("t", "held")
        },
        text("held", r#"{"a":12,"b":0.1}"#),
        text("held", r#" {"b": 1e-1, "\u0061": 12.0} "#),
        text("large", r#"{"a":1.50,"id":9007199254740993}"#),
        text("large", r#"{ "id" : 9007199254740993, "a" : 1.50 }"#),
    ];
    let answer = publish(client, messages).await;
    assert_eq!((answer.unique_processed, answer.duplicate_dropped), (2, 3));
    assert_eq!(answer.conflicts, 0);

    let line = |id: &str, payload: &str| {
        format!(
            r#"{{"topic":"t","event_id":"{id}","timestamp":"2023-11-14T22:13:20.000000005Z","source":"test","payload":{payload}}}"#
        )
    };
    let held_line = line("held", r#"{"b":0.10,"a":12}"#);
    let large_line = line("large", r#"{"id":9007199254740993,"a":1.50}"#);
    let answer = http
        .publish_lines(format!("{held_line}\n{large_line}\n"))
        .await
        .expect(200);
    assert_eq!(totals(&answer), Counts::new().duplicates(2));
    // The next number is different content.
    let next = large_line.replace("993", "992");
    let answer = http.publish_lines(next).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().duplicates(1).conflicts(1));

    let listed = http.get("/events").await;
    let body = &listed.body;
    assert!(body.contains(r#""payload":{"a":12,"b":0.1}"#), "{body}");
    assert!(
        body.contains(r#""payload":{"a":1.50,"id":9007199254740993}"#),
        "{body}"
    );
    // A listing can be published again.
    let lines = http.send(Method::GET, "/events", &[ACCEPT_LINES], "").await;
    let answer = http.publish_lines(lines.body).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().duplicates(2));
    let stored = list(client, "t").await;
    let payloads: Vec<_> = stored
        .into_iter()
        .filter_map(|stored| stored.event.expect("an event").payload)
        .collect();
    let canonical = r#"{"a":1.50,"id":9007199254740993}"#.to_owned();
    assert_eq!(
        payloads,
        [Payload::Json(held), Payload::JsonText(canonical)]
    );
}

#[tokio::test]
async fn an_event_is_the_same_over_http_and_grpc() {
    let server = TestServer::start().await;
    let http = Http::from(&server);
    let client = &mut server.client().await;
    let (json, messages): (Vec<_>, Vec<_>) = both().into_iter().unzip();

    let answer = http.publish(&json!(json[..2])).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(2));
    let reply = publish(client, messages.clone()).await;
    assert_eq!(
        (
            reply.unique_processed,
            reply.duplicate_dropped,
            reply.conflicts
        ),
        (2, 2, 0)
    );
    let answer = http.publish(&json!(json)).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().duplicates(4));

    let stored: Vec<_> = list(client, "t")
        .await
        .into_iter()
        .filter_map(|s| s.event)
        .collect();
    assert_eq!(stored, messages);
    let listed = http.lines("/events").await;
    for (json, listed) in json.iter().zip(&listed) {
        for (field, value) in json.as_object().expect("an object") {
            assert_eq!(&listed[field], value, "{listed}");
        }
    }
    assert_eq!(listed[2].get("data"), None);
    // A listing can be published elsewhere unchanged.
    let other = TestServer::start().await;
    let answer = Http::from(&other).publish(&json!(listed)).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(4));
    let copied = list(&mut other.client().await, "t").await;
    let copied: Vec<_> = copied.into_iter().filter_map(|s| s.event).collect();
    assert_eq!(copied, messages);
    assert_eq!(counters(client).await, http.counters().await);
}

#[tokio::test]
async fn answered_events_survive_a_kill() {
    let data_dir = DataDir::new();
    let mut process = Process::start(&data_dir);
    let http = Http::from(&process);
    let lines = json_lines((0..500).map(|id| json_event("t", id)));
    let answer = http.publish_lines(lines.clone()).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().stored(500));
    http.publish(&json_event("u", 1)).await.expect(200);
    process.kill();

    let process = Process::start(&data_dir);
    let http = Http::from(&process);
    assert_eq!(http.lines("/events").await.len(), 501);
    let answer = http.publish_lines(lines).await.expect(200);
    assert_eq!(totals(&answer), Counts::new().duplicates(500));
    assert_eq!(http.lines("/events?topic=t").await.len(), 500);
}

#[tokio::test]
async fn a_stop_answers_publishers_and_waits_for_nobody_idle() {
    let server = TestServer::start().await;
    let address = server.server.address();
    let mut idle = TcpStream::connect(address).await.expect("connected");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n")
        .await
        .expect("sent");
    let mut answered = [0; 15];
    patiently("an answer", idle.read_exact(&mut answered))
        .await
        .expect("read");
    let silent = TcpStream::connect(address).await.expect("connected");

    let mut publishing = TcpStream::connect(address).await.expect("connected");
    let line = json_lines([json_event("t", 1)]);
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: t\r\n{}: {}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n",
        LINES.0,
        LINES.1,
        line.len()
    );
    publishing.write_all(head.as_bytes()).await.expect("sent");
    let client = &mut server.client().await;
    let follow = v1::ListEventsRequest {
        follow: true,
        limit: 1,
        ..support::list_request("t")
    };
    let mut stored = client.list_events(follow).await.expect("open").into_inner();
    while patiently("the line", stored.message())
        .await
        .expect("alive")
        .is_some()
    {}

    let stopped = tokio::spawn(server.stop());
    let mut answer = String::new();
    patiently("503", publishing.read_to_string(&mut answer))
        .await
        .expect("read");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains(r#""received":1,"#), "{answer}");
    patiently("the stop", stopped).await.expect("no panic");
    drop((idle, silent));
}
