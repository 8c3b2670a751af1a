//! Responses that the client does not read.

use std::time::Duration;

use oncelog::proto::v1::ListEventsRequest;
use oncelog_harness::frames::{self, flag, kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    overload::{BACKLOG_EVENTS, INITIAL_WINDOW_SIZE, peer, publish_backlog},
    support::{Client, DataDir, TestServer, event, list_request, patiently, publish, stats},
};

/// Lets time pass in steps, between which connections reply to each other's pings.
async fn pass(seconds: u64, client: &mut Client) {
    const STEP_SECONDS: u64 = 5;
    for _ in 0..seconds / STEP_SECONDS {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(STEP_SECONDS)).await;
        tokio::time::resume();
        stats(client).await;
    }
}

/// How many readers may start now.
async fn free_readers(server: &TestServer) -> usize {
    let client = &mut server.client().await;
    let mut open = Vec::new();
    let follow = ListEventsRequest {
        follow: true,
        ..list_request("none")
    };
    while let Ok(list) = client.list_events(follow.clone()).await {
        open.push(list);
    }
    open.len()
}

#[tokio::test]
async fn unread_responses_are_dropped_and_followers_are_not() {
    const READERS: usize = 3;
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.readers_max = READERS;
    let server = TestServer::start_with(data_dir, options).await;
    publish_backlog(&server, 0..BACKLOG_EVENTS).await;
    let client = &mut server.client().await;
    let stalled = client.list_events(list_request("a")).await.expect("open");
    let mut idle = client
        .list_events(ListEventsRequest {
            follow: true,
            ..list_request("idle")
        })
        .await
        .expect("open")
        .into_inner();
    let mut lines = tokio::net::TcpStream::connect(server.server.address())
        .await
        .expect("connected");
    let request = b"GET /events HTTP/1.1\r\nhost: t\r\naccept: application/x-ndjson\r\n\r\n";
    lines.write_all(request).await.expect("sent");
    patiently("the beginning", lines.readable())
        .await
        .expect("readable");
    assert_eq!(free_readers(&server).await, 0);

    pass(290, client).await;
    assert_eq!(free_readers(&server).await, 0);
    // Connections that read nothing are dropped this long after they were full; the follower is not.
    let mut passed = 290;
    while free_readers(&server).await < READERS - 1 {
        assert!(passed < 450, "they are still there");
        pass(10, client).await;
        passed += 10;
    }
    pass(60, client).await;
    assert_eq!(free_readers(&server).await, READERS - 1);
    publish(client, vec![event("idle", 1)]).await;
    patiently("an event", async {
        while idle
            .message()
            .await
            .expect("alive")
            .expect("more")
            .events
            .is_empty()
        {}
    })
    .await;
    // A client that reads on gets the error.
    let mut stalled = stalled.into_inner();
    let status = patiently("the end", async {
        loop {
            match stalled.message().await {
                Ok(response) => assert!(response.is_some(), "it ended as if that were all"),
                Err(status) => return status,
            }
        }
    })
    .await;
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(
        details.error_info().expect("a reason").reason,
        "RESPONSE_NOT_READ"
    );
    assert!(details.retry_info().is_some());
    let mut rest = Vec::new();
    _ = patiently("the end", lines.read_to_end(&mut rest)).await;
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "it ended as if that were all"
    );
}

#[tokio::test]
async fn a_connection_that_never_reads_is_closed() {
    let server = TestServer::start().await;
    publish_backlog(&server, 0..200).await;
    // Its pings are answered; it grants no window.
    let no_window = (INITIAL_WINDOW_SIZE, 0);
    let mut rude = peer(&server, &[no_window]).await;
    rude.send(&frames::follow(1)).await.expect("sent");
    let client = &mut server.client().await;
    let ended = async {
        while let Ok(Some(frame)) = rude.next().await {
            if frame.kind == kind::PING && frame.flags & flag::ACK == 0 {
                let ack = frames::frame(kind::PING, flag::ACK, 0, &frame.payload);
                _ = rude.send(&ack).await;
            }
        }
    };
    let mut ended = std::pin::pin!(ended);
    for step in 0..130 {
        pass(5, client).await;
        if futures_util::poll!(ended.as_mut()).is_ready() {
            assert!(step > 2 * 300 / 5 - 2, "too early");
            return;
        }
    }
    panic!("it is still there");
}
