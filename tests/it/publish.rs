//! Publish and StreamingPublish: what is stored, and the responses.

use oncelog::proto::v1::{self, Outcome};
use tonic::Code;

use crate::support::{
    Counts, PublishStream, TestServer, counters, event, event_with_data, events, get_event, ids,
    list, outcomes, publish, sequences, totals, try_publish,
};

#[tokio::test]
async fn an_event_is_stored_as_it_was_sent() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let json = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let fields = [("b".to_owned(), json("2")), ("a".to_owned(), json("1"))].into();
    let with_json = v1::Event {
        payload: Some(v1::event::Payload::Json(prost_types::Struct { fields })),
        attributes: [("trace", "7"), ("empty", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..event("orders", "json")
    };
    let sent = vec![
        event("orders", "none"),
        event_with_data("orders", "data", vec![0, 255]),
        event_with_data("orders", "empty data", vec![]),
        with_json,
    ];
    assert_eq!(
        totals(publish(client, sent.clone()).await),
        Counts::new().stored(4)
    );

    let stored = list(client, "orders").await;
    assert_eq!(sequences(&stored), [1, 2, 3, 4]);
    for (stored, sent) in stored.iter().zip(sent) {
        assert_eq!(stored.event.as_ref(), Some(&sent));
        assert!(
            stored
                .received_at
                .is_some_and(|at| at.seconds > 1_700_000_000)
        );
        let got = get_event(client, "orders", &sent.event_id).await;
        assert_eq!(&got.expect("stored"), stored);
    }
}

#[tokio::test]
async fn an_event_that_never_came_is_not_found() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, vec![event("a", "1")]).await;
    for (topic, id) in [("a", "2"), ("b", "1")] {
        let error = get_event(client, topic, id).await.expect_err("not stored");
        assert_eq!(error.code(), Code::NotFound);
    }
}

#[tokio::test]
async fn duplicates_are_dropped_wherever_they_come_from() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let in_one_request = vec![event("a", 1), event("a", 2), event("a", 1)];
    assert_eq!(
        totals(publish(client, in_one_request).await),
        Counts::new().stored(2).duplicates(1)
    );
    let over_requests = vec![
        events("a", 1..4),
        events("a", 3..5),
        vec![],
        events("a", 1..5),
    ];
    let response = try_publish(client, over_requests).await.expect("published");
    assert_eq!(totals(response), Counts::new().stored(2).duplicates(7));
    assert_eq!(
        totals(publish(client, events("a", 1..5)).await),
        Counts::new().duplicates(4)
    );
    // The same ids in another topic are different events.
    assert_eq!(
        totals(publish(client, events("b", 1..5)).await),
        Counts::new().stored(4)
    );

    let mut other = server.client().await;
    assert_eq!(
        totals(publish(&mut other, events("b", 1..5)).await),
        Counts::new().duplicates(4)
    );
    assert_eq!(ids(&list(client, "a").await), ["1", "2", "3", "4"]);
    assert_eq!(
        counters(client).await,
        Counts::new().stored(8).duplicates(16)
    );

    let server = server.restart().await;
    let client = &mut server.client().await;
    assert_eq!(
        totals(publish(client, events("a", 1..6)).await),
        Counts::new().stored(1).duplicates(4)
    );
    assert_eq!(
        counters(client).await,
        Counts::new().stored(9).duplicates(20)
    );
}

#[tokio::test]
async fn a_topic_and_an_id_do_not_run_together() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let ambiguous = vec![
        event("ab", "c"),
        event("a", "bc"),
        event("abc", "d"),
        event("abc", "c"),
    ];
    assert_eq!(
        totals(publish(client, ambiguous).await),
        Counts::new().stored(4)
    );
}

#[tokio::test]
async fn the_first_content_stays() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, vec![event_with_data("a", 1, vec![1])]).await;
    let changes = [
        event_with_data("a", 1, vec![2]),
        event("a", 1),
        v1::Event {
            source: "other".to_owned(),
            ..event_with_data("a", 1, vec![1])
        },
        v1::Event {
            timestamp: Some(prost_types::Timestamp {
                seconds: 9,
                nanos: 0,
            }),
            ..event_with_data("a", 1, vec![1])
        },
        v1::Event {
            attributes: [("k".to_owned(), "v".to_owned())].into(),
            ..event_with_data("a", 1, vec![1])
        },
    ];
    let mut stream = PublishStream::open(client).await;
    for change in &changes {
        assert_eq!(
            stream.publish(vec![change.clone()]).await,
            [(Outcome::Conflict, 1)]
        );
    }
    let same = stream.publish(vec![event_with_data("a", 1, vec![1])]).await;
    assert_eq!(same, [(Outcome::Duplicate, 1)]);
    // A conflict within one request, with an event that is not durable yet.
    let both = vec![event("a", 2), event_with_data("a", 2, vec![1])];
    assert_eq!(
        stream.publish(both).await,
        [(Outcome::Stored, 2), (Outcome::Conflict, 2)]
    );

    let stored = list(client, "a").await;
    assert_eq!(stored[0].event, Some(event_with_data("a", 1, vec![1])));
    assert_eq!(stored[1].event, Some(event("a", 2)));
    assert_eq!(
        counters(client).await,
        Counts::new().stored(2).duplicates(7).conflicts(6)
    );
    let response = publish(client, changes.to_vec()).await;
    assert_eq!(totals(response), Counts::new().duplicates(5).conflicts(5));
}

#[tokio::test]
async fn twenty_publishers_of_one_event_store_it_once() {
    let server = TestServer::start().await;
    for round in 0..20 {
        let mut publishers = Vec::new();
        for _ in 0..20 {
            let mut client = server.client().await;
            let sent = vec![event("race", round)];
            publishers.push(tokio::spawn(
                async move { publish(&mut client, sent).await },
            ));
        }
        let mut sum = Counts::new();
        for publisher in publishers {
            sum = sum + totals(publisher.await.expect("no panic"));
        }
        assert_eq!(sum, Counts::new().stored(1).duplicates(19));
    }
    let client = &mut server.client().await;
    assert_eq!(list(client, "race").await.len(), 20);
    assert_eq!(
        counters(client).await,
        Counts::new().stored(20).duplicates(380)
    );
}

#[tokio::test]
async fn concurrent_streams_of_the_same_events_agree() {
    let server = TestServer::start().await;
    let mut streams = Vec::new();
    for publisher in 0..4 {
        let mut client = server.client().await;
        streams.push(tokio::spawn(async move {
            let mut stream = PublishStream::open(&mut client).await;
            let mut reply = Vec::new();
            for request in 0..50 {
                // Each publisher sends all events, in its own order.
                let at = |n: u64| (n * 7 + publisher * 131) % 500;
                let request = events("shared", (request * 10..request * 10 + 10).map(at));
                let sent: Vec<String> = request.iter().map(|e| e.event_id.clone()).collect();
                reply.extend(sent.into_iter().zip(stream.publish(request).await));
            }
            reply
        }));
    }
    let mut stored = 0;
    let mut place = std::collections::HashMap::new();
    for stream in streams {
        for (id, (outcome, sequence)) in stream.await.expect("no panic") {
            stored += usize::from(outcome == Outcome::Stored);
            assert_eq!(*place.entry(id).or_insert(sequence), sequence);
        }
    }
    assert_eq!(stored, 500);
    assert_eq!(list(&mut server.client().await, "").await.len(), 500);
}

#[tokio::test]
async fn each_request_is_answered_in_order() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut stream = PublishStream::open(client).await;
    for request in 0..10 {
        stream.send(events("a", [request, request + 1])).await;
    }
    stream.send(vec![]).await;
    for request in 0..10 {
        let response = stream.receive().await.expect("alive").expect("a response");
        assert_eq!(response.acknowledged_requests, request + 1);
        let first = match request {
            0 => (Outcome::Stored, 1),
            _ => (Outcome::Duplicate, request + 1),
        };
        assert_eq!(outcomes(&response), [first, (Outcome::Stored, request + 2)]);
    }
    let empty = stream.receive().await.expect("alive").expect("a response");
    assert_eq!((empty.acknowledged_requests, empty.outcomes.len()), (11, 0));
    let PublishStream {
        requests,
        mut responses,
    } = stream;
    drop(requests);
    assert_eq!(responses.message().await.expect("ended well"), None);
}

#[tokio::test]
async fn an_answer_comes_before_the_stream_ends() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut stream = PublishStream::open(client).await;
    assert_eq!(
        stream.publish(vec![event("a", 1)]).await,
        [(Outcome::Stored, 1)]
    );
    // Acknowledged means visible, while the stream is open.
    assert_eq!(ids(&list(&mut server.client().await, "a").await), ["1"]);
    assert_eq!(
        stream.publish(vec![event("a", 2)]).await,
        [(Outcome::Stored, 2)]
    );
}

#[tokio::test]
async fn a_bad_event_fails_its_request_only() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let requests = vec![
        events("a", 0..3),
        vec![event("a", 3), event("a", ""), event("a", 4)],
        events("a", 5..8),
    ];
    let error = try_publish(client, requests)
        .await
        .expect_err("a bad event");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .starts_with("request 1, event 1 (counted from 0): event_id: "),
        "{error}"
    );
    assert_eq!(ids(&list(client, "").await), ["0", "1", "2"]);
    assert_eq!(counters(client).await, Counts::new().stored(3).rejected(3));
    // Resending everything, corrected, is safe.
    assert_eq!(
        totals(publish(client, events("a", 0..8)).await),
        Counts::new().stored(5).duplicates(3)
    );
}

#[tokio::test]
async fn a_bad_event_of_a_stream_is_rejected_alone() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut stream = PublishStream::open(client).await;
    stream
        .send(vec![
            event("a", 1),
            event("a\n", 2),
            event("a", 3),
            event("a", ""),
        ])
        .await;
    let response = stream.receive().await.expect("alive").expect("a response");
    assert_eq!(
        outcomes(&response),
        [
            (Outcome::Stored, 1),
            (Outcome::Rejected, 0),
            (Outcome::Stored, 2),
            (Outcome::Rejected, 0)
        ]
    );
    assert!(
        response.outcomes[1].reason.starts_with("topic: "),
        "{response:?}"
    );
    assert!(
        response.outcomes[3].reason.starts_with("event_id: "),
        "{response:?}"
    );
    assert_eq!(
        stream.publish(vec![event("a", 4)]).await,
        [(Outcome::Stored, 3)]
    );
    assert_eq!(counters(client).await, Counts::new().stored(3).rejected(2));
}

#[tokio::test]
async fn compressed_requests_are_taken() {
    use tonic::codec::CompressionEncoding::{Gzip, Zstd};
    let server = TestServer::start().await;
    for (topic, encoding) in [("gzip", Gzip), ("zstd", Zstd)] {
        let mut client = server.client().await.send_compressed(encoding);
        let sent = vec![event_with_data(topic, 1, vec![7; 100_000])];
        assert_eq!(
            totals(publish(&mut client, sent.clone()).await),
            Counts::new().stored(1)
        );
        assert_eq!(
            list(&mut client, topic).await[0].event.as_ref(),
            sent.first()
        );
    }
}
