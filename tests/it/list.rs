//! ListEvents: order, resuming, following, and slow readers.

use oncelog::proto::v1;
use tonic::{Code, Streaming};

use crate::support::{
    Client, TestServer, event, event_with_data, events, ids, list, list_request, list_responses,
    publish, sequences, try_publish,
};

async fn open(
    client: &mut Client,
    request: v1::ListEventsRequest,
) -> Streaming<v1::ListEventsResponse> {
    let stream = client.list_events(request).await;
    stream.expect("opened").into_inner()
}

fn follow(topic: &str) -> v1::ListEventsRequest {
    v1::ListEventsRequest {
        follow: true,
        ..list_request(topic)
    }
}

async fn next(stream: &mut Streaming<v1::ListEventsResponse>) -> v1::ListEventsResponse {
    let response = stream.message().await.expect("alive");
    response.expect("a response")
}

/// The next `count` events of a stream.
async fn take(
    stream: &mut Streaming<v1::ListEventsResponse>,
    count: usize,
) -> Vec<v1::StoredEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next(stream).await.events);
    }
    assert_eq!(events.len(), count, "no more than were published");
    events
}

#[tokio::test]
async fn topics_are_listed_in_order_of_acceptance() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let requests = (0..50).map(|n| vec![event("b", n), event("a", n), event("b", n + 50)]);
    try_publish(client, requests.collect())
        .await
        .expect("published");

    let all = list(client, "").await;
    assert_eq!(sequences(&all), (1..=150).collect::<Vec<_>>());
    for topic in ["a", "b"] {
        let of_topic = |stored: &&v1::StoredEvent| {
            stored
                .event
                .as_ref()
                .is_some_and(|event| event.topic == topic)
        };
        let expected: Vec<_> = all.iter().filter(of_topic).cloned().collect();
        assert_eq!(list(client, topic).await, expected);
    }
    let times: Vec<_> = all
        .iter()
        .map(|stored| stored.received_at.map(|at| (at.seconds, at.nanos)))
        .collect();
    assert!(times.is_sorted(), "the server's clock does not go back");
}

#[tokio::test]
async fn an_unknown_topic_is_an_empty_list() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    for topic in ["", "nobody"] {
        let responses = list_responses(client, list_request(topic)).await;
        assert_eq!(responses.len(), 1);
        assert!(responses[0].events.is_empty() && responses[0].caught_up);
        assert!(!responses[0].cursor.is_empty());
    }
    publish(client, vec![event("somebody", 1)]).await;
    assert!(list(client, "nobody").await.is_empty());
}

#[tokio::test]
async fn a_list_resumes_from_every_cursor() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    for n in 0..40 {
        publish(
            client,
            vec![event("a", n), event("b", n), event("a", n + 40)],
        )
        .await;
    }
    for topic in ["", "a", "b"] {
        let all = list(client, topic).await;
        let mut cursor = String::new();
        let mut seen = Vec::new();
        while seen.len() < all.len() {
            let page = v1::ListEventsRequest {
                cursor: cursor.clone(),
                limit: 3,
                ..list_request(topic)
            };
            let responses = list_responses(client, page).await;
            let events: Vec<_> = responses.iter().flat_map(|r| r.events.clone()).collect();
            assert!((1..=3).contains(&events.len()));
            seen.extend(events);
            cursor = responses.last().expect("a response").cursor.clone();
        }
        assert_eq!(seen, all);
        let rest = v1::ListEventsRequest {
            cursor,
            ..list_request(topic)
        };
        let responses = list_responses(client, rest).await;
        assert!(responses.iter().all(|r| r.events.is_empty()));
    }
    // A cursor survives a restart, and is valid for any topic.
    let page = v1::ListEventsRequest {
        limit: 3,
        ..list_request("")
    };
    let cursor = list_responses(client, page).await[0].cursor.clone();
    let server = server.restart().await;
    let client = &mut server.client().await;
    let rest = v1::ListEventsRequest {
        cursor,
        ..list_request("b")
    };
    let responses = list_responses(client, rest).await;
    assert_eq!(responses[0].events.len(), 39);
}

#[tokio::test]
async fn a_bad_cursor_is_refused() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..3)).await;
    let other = TestServer::start().await;
    let other_client = &mut other.client().await;
    publish(other_client, events("a", 0..3)).await;
    let foreign = list_responses(other_client, list_request("")).await[0]
        .cursor
        .clone();
    for (cursor, says) in [
        ("x", "not a cursor"),
        ("00", "not a cursor"),
        (&*"0".repeat(42), "not a cursor"),
        (&*foreign, "another log"),
    ] {
        let request = v1::ListEventsRequest {
            cursor: cursor.to_owned(),
            ..list_request("")
        };
        let error = client.list_events(request).await.expect_err("a bad cursor");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with("cursor: "), "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    let request = v1::ListEventsRequest {
        start: 9,
        ..list_request("")
    };
    let error = client.list_events(request).await.expect_err("a bad start");
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client
        .list_events(list_request("a\n"))
        .await
        .expect_err("a bad topic");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn latest_begins_at_the_durable_tail() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..3)).await;
    let latest = |follow| v1::ListEventsRequest {
        start: v1::StartPosition::Latest.into(),
        follow,
        ..list_request("a")
    };
    let responses = list_responses(client, latest(false)).await;
    assert_eq!(responses.len(), 1);
    assert!(responses[0].events.is_empty() && responses[0].caught_up);

    let mut stream = open(client, latest(true)).await;
    assert!(next(&mut stream).await.events.is_empty());
    publish(client, events("a", 3..5)).await;
    assert_eq!(ids(&take(&mut stream, 2).await), ["3", "4"]);
    // The earlier cursor works there too.
    let resumed = v1::ListEventsRequest {
        cursor: responses[0].cursor.clone(),
        ..list_request("a")
    };
    let responses = list_responses(client, resumed).await;
    assert_eq!(ids(&responses[0].events), ["3", "4"]);
}

#[tokio::test]
async fn a_limit_ends_a_list_that_follows() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..3)).await;
    let request = v1::ListEventsRequest {
        limit: 5,
        ..follow("a")
    };
    let mut stream = open(client, request).await;
    assert_eq!(take(&mut stream, 3).await.len(), 3);
    publish(client, events("a", 3..9)).await;
    assert_eq!(ids(&take(&mut stream, 2).await), ["3", "4"]);
    assert_eq!(stream.message().await.expect("ended well"), None);
}

#[tokio::test]
async fn following_an_unknown_topic_waits_for_its_first_event() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut stream = open(client, follow("later")).await;
    let first = next(&mut stream).await;
    assert!(first.events.is_empty() && first.caught_up);
    publish(client, vec![event("other", 1)]).await;
    publish(client, vec![event("later", 1)]).await;
    assert_eq!(ids(&take(&mut stream, 1).await), ["1"]);
}

/// Readers that start at any time, stop, and resume, while publishers write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_has_no_gap_and_no_repeat() {
    const PUBLISHERS: u64 = 4;
    const REQUESTS: u64 = 60;
    let server = TestServer::start().await;
    let mut publishers = Vec::new();
    for publisher in 0..PUBLISHERS {
        let mut client = server.client().await;
        publishers.push(tokio::spawn(async move {
            for request in 0..REQUESTS {
                let own = format!("topic-{}", publisher % 2);
                let id = publisher * REQUESTS + request;
                let sent = vec![
                    event("all", id),
                    event(&own, id),
                    event("all", id + 100_000),
                ];
                publish(&mut client, sent).await;
            }
        }));
    }
    let mut readers = Vec::new();
    for (topic, share) in [("", 3), ("all", 2), ("topic-0", 1)] {
        let expected = match topic {
            "topic-0" => REQUESTS * PUBLISHERS / 2,
            _ => REQUESTS * PUBLISHERS * share,
        };
        for limit in [7, 50, 0] {
            let mut client = server.client().await;
            readers.push(tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut request = v1::ListEventsRequest {
                    limit,
                    ..follow(topic)
                };
                while (seen.len() as u64) < expected {
                    let mut stream = open(&mut client, request.clone()).await;
                    while let Some(response) = stream.message().await.expect("alive") {
                        seen.extend(response.events);
                        request.cursor = response.cursor;
                        if seen.len() as u64 >= expected {
                            break;
                        }
                    }
                }
                assert_eq!(seen.len() as u64, expected);
                (topic, seen)
            }));
        }
    }
    for publisher in publishers {
        publisher.await.expect("no panic");
    }
    let client = &mut server.client().await;
    for reader in readers {
        let (topic, seen) = reader.await.expect("no panic");
        assert_eq!(seen, list(client, topic).await);
    }
}

#[tokio::test]
async fn a_silent_stream_sends_keep_alives() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, vec![event("a", 1)]).await;
    let mut stream = open(client, follow("a")).await;
    assert_eq!(take(&mut stream, 1).await.len(), 1);
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let heartbeat = next(&mut stream).await;
    assert!(heartbeat.events.is_empty() && heartbeat.caught_up);
    assert!(!heartbeat.cursor.is_empty());
    let waited = before.elapsed().as_secs();
    assert!((14..=16).contains(&waited), "{waited} s");
}

#[tokio::test]
async fn responses_stay_under_a_mebibyte() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let large = |n: u64| event_with_data("a", n, vec![0; 300_000]);
    for request in 0..3 {
        publish(
            client,
            (request * 10..request * 10 + 10).map(large).collect(),
        )
        .await;
    }
    let largest = event_with_data("a", "largest", vec![0; (1 << 20) - 100]);
    publish(client, vec![largest]).await;
    for topic in ["", "a"] {
        let responses = list_responses(client, list_request(topic)).await;
        assert_eq!(responses.iter().map(|r| r.events.len()).sum::<usize>(), 31);
        for response in responses {
            let bytes = prost::Message::encoded_len(&response);
            assert!(
                bytes < 1 << 20 || response.events.len() == 1,
                "{bytes} bytes"
            );
        }
    }
}

#[tokio::test]
async fn readers_beyond_the_limit_are_refused() {
    let data_dir = crate::support::DataDir::new();
    let mut options = data_dir.options();
    options.readers_max = 2;
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    let first = open(client, follow("a")).await;
    let _second = open(client, follow("a")).await;
    let error = client.list_events(follow("a")).await.expect_err("a third");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("--max-readers"), "{error}");
    drop(first);
    // Its place is free as soon as the server has noticed.
    for _ in 0..1000 {
        if client.list_events(follow("a")).await.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the place of a reader that left is not free");
}

#[tokio::test]
async fn many_tiny_events_fit_their_responses() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut requests = Vec::new();
    for request in 0..3 {
        requests.push(
            (request * 16_000..request * 16_000 + 16_000)
                .map(|n| event("t", n))
                .collect(),
        );
    }
    try_publish(client, requests).await.expect("published");
    for topic in ["", "t"] {
        let responses = list_responses(client, list_request(topic)).await;
        assert_eq!(
            responses.iter().map(|r| r.events.len()).sum::<usize>(),
            48_000
        );
        for response in responses {
            assert!(prost::Message::encoded_len(&response) < 1 << 20);
        }
    }
}
