//! Limits, field by field, over both publish calls.

use oncelog::{
    event::JSON_DEPTH_MAX,
    grpc::wire::RawPublishRequest,
    proto::v1::{self, Outcome},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{
    Client, Counts, DataDir, PublishStream, TestServer, counters, event, event_with_data, list,
    publish, try_publish,
};

fn at(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

fn attributes(count: usize, key_bytes: usize, value_bytes: usize) -> v1::Event {
    let pairs = (0..count).map(|n| (format!("{n:0key_bytes$}"), "v".repeat(value_bytes)));
    v1::Event {
        attributes: pairs.collect(),
        ..event("t", format!("{count} {key_bytes} {value_bytes}"))
    }
}

fn with(change: impl FnOnce(&mut v1::Event)) -> v1::Event {
    let mut event = event("t", "id");
    change(&mut event);
    event
}

async fn refused(client: &mut Client, event: v1::Event) -> Status {
    let error = try_publish(client, vec![vec![event]]).await;
    error.expect_err("out of limits")
}

#[tokio::test]
async fn every_limit_is_checked_and_named() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let long = || "x".repeat(256);
    let name_limit = "the limit is 1 to 255 bytes";
    let json = |number| {
        let kind = Some(prost_types::value::Kind::NumberValue(number));
        let fields = [("n".to_owned(), prost_types::Value { kind })].into();
        Some(v1::event::Payload::Json(prost_types::Struct { fields }))
    };
    let text = |text: &str| Some(v1::event::Payload::JsonText(text.to_owned()));
    let cases = [
        (
            "json",
            with(|e| e.payload = json(f64::NAN)),
            "NaN or infinite",
        ),
        (
            "json",
            with(|e| e.payload = json(f64::INFINITY)),
            "NaN or infinite",
        ),
        (
            "json_text",
            with(|e| e.payload = text(r#"{"a":1,"a":1e400}"#)),
            "a repeated name in one object",
        ),
        ("json_text", with(|e| e.payload = text("[1]")), "not JSON"),
        (
            "json_text",
            with(|e| e.payload = text(&format!("{{\"a\":{}1{}}}", "[".repeat(32), "]".repeat(32)))),
            "nested too deeply; the limit is 32",
        ),
        (
            "json_text",
            with(|e| e.payload = text(r#"{"a":NaN}"#)),
            "a value is expected at byte 5",
        ),
        ("topic", with(|e| e.topic.clear()), name_limit),
        ("topic", with(|e| e.topic = long()), name_limit),
        (
            "topic",
            with(|e| e.topic = "a\0b".to_owned()),
            "a control character at byte 1",
        ),
        ("event_id", with(|e| e.event_id.clear()), name_limit),
        ("event_id", with(|e| e.event_id = long()), name_limit),
        (
            "event_id",
            with(|e| e.event_id = "a\u{7f}".to_owned()),
            "a control character at byte 1",
        ),
        ("source", with(|e| e.source.clear()), name_limit),
        ("source", with(|e| e.source = long()), name_limit),
        (
            "source",
            with(|e| e.source = "é\u{9f}".to_owned()),
            "a control character at byte 2",
        ),
        ("timestamp", with(|e| e.timestamp = None), "required"),
        (
            "timestamp",
            with(|e| e.timestamp = at(0, -1)),
            "out of range",
        ),
        (
            "timestamp",
            with(|e| e.timestamp = at(0, 1_000_000_000)),
            "out of range",
        ),
        (
            "timestamp",
            with(|e| e.timestamp = at(253_402_300_800, 0)),
            "out of range",
        ),
        (
            "timestamp",
            with(|e| e.timestamp = at(-62_135_596_801, 0)),
            "out of range",
        ),
        (
            "attributes",
            attributes(65, 3, 0),
            "65 pairs; the limit is 64",
        ),
        ("attributes", attributes(1, 256, 0), "a key of 256 bytes"),
        (
            "attributes",
            with(|e| _ = e.attributes.insert(String::new(), "v".to_owned())),
            "a key of 0 bytes",
        ),
        (
            "attributes",
            attributes(2, 96, 4001),
            "8194 bytes of keys and values; the limit is 8192 bytes",
        ),
        (
            "event",
            event_with_data("t", "id", vec![0; 1 << 20]),
            "the limit is 1048576 bytes",
        ),
    ];
    let rejected = cases.len() as u64;
    let mut stream = PublishStream::open(&mut client.clone()).await;
    for (field, event, says) in cases {
        let error = refused(client, event.clone()).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        let expected = format!("request 0, event 0 (counted from 0): {field}: ");
        assert!(error.message().starts_with(&expected), "{error}");
        assert!(error.message().contains(says), "{error}");

        let details = error.get_error_details();
        let violation = &details.bad_request().expect("details").field_violations[0];
        assert_eq!(violation.field, format!("events[0].{field}"));
        assert!(violation.description.contains(says), "{violation:?}");
        let info = details.error_info().expect("details");
        assert_eq!((&*info.reason, &*info.domain), ("INVALID_EVENT", "oncelog"));
        assert_eq!(info.metadata["field"], field);
        assert!(
            error.details().len() + error.message().len() < 2048,
            "fits a header block"
        );

        stream.send(vec![event]).await;
        let response = stream.receive().await.expect("alive").expect("a response");
        let reply = &response.outcomes[0];
        assert_eq!((reply.outcome(), reply.sequence), (Outcome::Rejected, 0));
        assert!(
            reply.reason.starts_with(&format!("{field}: ")) && reply.reason.contains(says),
            "{reply:?}"
        );
    }
    assert!(list(client, "").await.is_empty());
    assert_eq!(counters(client).await, Counts::new().rejected(2 * rejected));
}

#[tokio::test]
async fn an_event_that_just_fits_is_accepted() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let longest = "é".repeat(127) + "x";
    let largest = event_with_data("t", "largest", vec![]);
    // The tag and three bytes of length are added to the data.
    let room = (1 << 20) - prost::Message::encoded_len(&largest) - 2;
    let fitting = [
        v1::Event {
            topic: longest.clone(),
            event_id: longest.clone(),
            source: longest.clone(),
            ..event("", "")
        },
        with(|e| e.timestamp = at(253_402_300_799, 999_999_999)),
        with(|e| {
            e.event_id = "first".to_owned();
            e.timestamp = at(-62_135_596_800, 0);
        }),
        with(|e| {
            e.event_id = "epoch".to_owned();
            e.timestamp = at(0, 0);
        }),
        attributes(64, 3, 125),
        attributes(1, 255, 7937),
        event_with_data("t", "largest", vec![1; room]),
    ];
    for event in fitting {
        let response = publish(client, vec![event.clone()]).await;
        assert_eq!(response.unique_processed, 1, "{:.99}", format!("{event:?}"));
        let stored = list(client, &event.topic).await;
        assert_eq!(stored.last().expect("stored").event.as_ref(), Some(&event));
    }
}

#[tokio::test]
async fn a_request_over_its_limit_is_refused() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let large = |n: u64| event_with_data("t", n, vec![0; 1_000_000]);
    let requests = vec![vec![event("t", "first")], (0..5).map(large).collect()];
    let error = try_publish(client, requests).await.expect_err("too large");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("request 1 (counted from 0)"),
        "{error}"
    );
    assert!(
        error
            .message()
            .contains("the limit of a request is 4194304 bytes"),
        "{error}"
    );
    assert_eq!(
        list(client, "t").await.len(),
        1,
        "the request before is durable"
    );

    let many = (0..16_385).map(|n| event("t", n)).collect();
    let error = try_publish(client, vec![many]).await.expect_err("too many");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("16384 events"), "{error}");
}

#[tokio::test]
async fn a_new_topic_beyond_the_limit_is_refused() {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.partition.topics_max = 2;
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    publish(client, vec![event("a", 1)]).await;

    let both = vec![vec![event("b", 1), event("c", 1)]];
    let error = try_publish(client, both).await.expect_err("one too many");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(
        error.message().contains("limit of 2 topics (--max-topics)")
            && !error.message().contains("again"),
        "{error}"
    );
    let details = error.get_error_details();
    let info = details.error_info().expect("a reason");
    assert_eq!(info.reason, "TOO_MANY_TOPICS");
    assert!(details.retry_info().is_none(), "it does not pass by itself");
    assert_eq!(
        list(client, "").await.len(),
        1,
        "no event of the request is stored"
    );

    let mut stream = PublishStream::open(client).await;
    stream
        .send(vec![
            event("b", 1),
            event("c", 1),
            event("a", 2),
            event("b", 2),
        ])
        .await;
    let response = stream.receive().await.expect("alive").expect("a response");
    let outcomes: Vec<_> = response
        .outcomes
        .iter()
        .map(|reply| reply.outcome())
        .collect();
    use Outcome::{Rejected, Stored};
    assert_eq!(outcomes, [Stored, Rejected, Stored, Stored]);
    assert!(
        response.outcomes[1]
            .reason
            .contains("the limit is 2 topics (--max-topics)")
    );
    assert_eq!(counters(client).await, Counts::new().stored(4).rejected(3));
}

/// A JSON payload of nested lists.
fn nested(depth: usize) -> v1::Event {
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let mut inner = value(prost_types::value::Kind::BoolValue(true));
    for _ in 0..depth {
        let values = vec![inner];
        inner = value(prost_types::value::Kind::ListValue(
            prost_types::ListValue { values },
        ));
    }
    let fields = [("nested".to_owned(), inner)].into();
    v1::Event {
        payload: Some(v1::event::Payload::Json(prost_types::Struct { fields })),
        ..event("deep", depth)
    }
}

#[tokio::test]
async fn a_payload_too_deep_for_readers_is_refused() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    // The payload itself is one level.
    let deepest = JSON_DEPTH_MAX as usize - 1;
    for depth in [deepest + 1, 60, 500] {
        let error = refused(client, nested(depth)).await;
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(
            error
                .message()
                .contains("json: nested too deeply; the limit is 32"),
            "{error}"
        );
    }
    publish(client, vec![nested(deepest)]).await;
    assert_eq!(list(client, "deep").await.len(), 1);
}

/// Encoders of languages whose maps are lists can write it; decoders would keep one of the values.
#[tokio::test]
async fn a_name_twice_in_a_struct_is_refused() {
    let server = TestServer::start().await;
    let mut encoded = prost::Message::encode_to_vec(&with(|_| {}));
    let member = b"\x0a\x07\x0a\x01a\x12\x02\x20\x01";
    encoded.extend([5 << 3 | 2, 2 * member.len() as u8]);
    encoded.extend(member.repeat(2));
    let mut request = vec![1 << 3 | 2, encoded.len() as u8];
    request.extend(encoded);
    let error = refused_as_it_is(&server, &request).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .contains("json: a repeated name in one object"),
        "{error}"
    );
}

#[tokio::test]
async fn a_lowered_limit_on_topics_keeps_those_there_are() {
    let server = TestServer::start().await;
    publish(
        &mut server.client().await,
        vec![event("a", 1), event("b", 1)],
    )
    .await;
    let data_dir = server.stop().await;
    let mut options = data_dir.options();
    options.partition.topics_max = 1;
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    assert_eq!(
        publish(client, vec![event("a", 2), event("b", 2)])
            .await
            .unique_processed,
        2
    );
    try_publish(client, vec![vec![event("c", 1)]])
        .await
        .expect_err("a new topic");
}

/// Publishes bytes that may not be a request.
async fn refused_as_it_is(server: &TestServer, body: &[u8]) -> Status {
    use tonic::codegen::http::uri::PathAndQuery;
    let path = PathAndQuery::from_static("/oncelog.v1.AggregatorService/Publish");
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.expect("connected");
    let body = RawPublishRequest(body.to_vec().into());
    let request = tonic::Request::new(tokio_stream::once(body));
    let codec = tonic_prost::ProstCodec::<RawPublishRequest, v1::PublishResponse>::default();
    let published = grpc.client_streaming(request, path, codec).await;
    published.expect_err("refused")
}

#[tokio::test]
async fn garbage_is_no_event() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    for (body, says) in [
        (&b"\x0a\x05ab"[..], "not an encoded publish request"),
        (b"\x08\x01", "not an encoded publish request"),
        (b"\x0a\x02\x0a\xff", "not an encoded oncelog.v1.Event"),
        (b"\x0a\x03\x0a\x01\xff", "not an encoded oncelog.v1.Event"),
    ] {
        let error = refused_as_it_is(&server, body).await;
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(says), "{error}");
    }
    assert_eq!(
        publish(client, vec![event("t", 1)]).await.unique_processed,
        1
    );
}
