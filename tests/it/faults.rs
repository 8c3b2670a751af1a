//! Disks that fail or are full.

use oncelog::{log::FileLogOptions, platform::faulty::FaultyDisk};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use tonic_types::StatusExt as _;

use crate::{
    http_support::Http,
    support::{
        Client, DataDir, TestServer, event, event_with_data, events, get_event, ids, list,
        patiently, publish, try_publish,
    },
};

async fn start(disk: &FaultyDisk) -> TestServer {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.partition.platform = disk.platform();
    options.partition.log = FileLogOptions {
        segment_bytes_min: 64 * 1024,
        segment_bytes_max: 64 * 1024,
        ..FileLogOptions::default()
    };
    TestServer::start_with(data_dir, options).await
}

async fn is_serving(server: &TestServer) -> bool {
    let mut health = HealthClient::new(server.channel().await);
    let response = health.check(HealthCheckRequest::default()).await;
    response.expect("answered").into_inner().status() == ServingStatus::Serving
}

/// Waits until grpc.health.v1 reports this status.
async fn await_status(server: &TestServer, status: ServingStatus) {
    let mut health = HealthClient::new(server.channel().await);
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("watching").into_inner();
    loop {
        let reply = patiently("another status", watch.message()).await;
        if reply.expect("alive").expect("a status").status() == status {
            return;
        }
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// Publishes until that fails. Returns the stored ids, and the error.
async fn fill(client: &mut Client) -> (Vec<String>, Status) {
    let mut stored = Vec::new();
    loop {
        let id = format!("{:03}", stored.len());
        match try_publish(client, vec![vec![event_with_data("a", &id, vec![7; 4000])]]).await {
            Ok(response) => assert_eq!(response.unique_processed, 1),
            Err(error) => return (stored, error),
        }
        stored.push(id);
        assert!(stored.len() < 100, "there is no room for so much");
    }
}

async fn assert_poisoned(fault: impl FnOnce(&FaultyDisk)) {
    let disk = FaultyDisk::default();
    let server = start(&disk).await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..3)).await;
    assert!(is_serving(&server).await);

    fault(&disk);
    let error = try_publish(client, vec![vec![event("a", 3)]]).await;
    let error = error.expect_err("not durable");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("until it is restarted"), "{error}");

    // The disk works again, but nobody knows what the failed sync lost: nothing more is accepted.
    disk.fail_syncs(false);
    disk.fail_writes(false);
    let error = try_publish(client, vec![vec![event("a", 4)]]).await;
    assert_eq!(error.expect_err("poisoned").code(), Code::Unavailable);
    assert_eq!(
        ids(&list(client, "a").await),
        ["0", "1", "2"],
        "reads go on"
    );
    await_status(&server, ServingStatus::NotServing).await;

    let server = TestServer::start_in(server.stop().await).await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..5)).await;
    assert_eq!(ids(&list(client, "a").await), ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn an_index_that_cannot_be_read_now_is_read_later() {
    let disk = FaultyDisk::default();
    let data_dir = DataDir::new();
    let options = || {
        let mut options = data_dir.options();
        options.partition.platform = disk.platform();
        options.partition.index.keys_per_generation = 100;
        options
    };
    let server = TestServer::start_with(data_dir.clone(), options()).await;
    let client = &mut server.client().await;
    for from in [0, 200] {
        publish(client, events("a", from..from + 200)).await;
    }
    // The first 200 are in a generation, at the latest when it opens.
    let server = TestServer::start_with(server.stop().await, options()).await;
    assert!(!data_dir.generations().is_empty());
    let client = &mut server.client().await;
    disk.fail_reads(true);
    let error = try_publish(client, vec![events("a", 0..10)]).await;
    let error = error.expect_err("it is unknown whether they are stored");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("send again later"), "{error}");
    assert!(is_serving(&server).await);

    disk.fail_reads(false);
    let response = publish(&mut server.client().await, events("a", 0..410)).await;
    assert_eq!(
        (response.unique_processed, response.duplicate_dropped),
        (10, 400)
    );
    assert!(is_serving(&server).await);
}

#[tokio::test]
async fn a_failed_sync_poisons_the_writer() {
    assert_poisoned(|disk| disk.fail_syncs(true)).await;
}

#[tokio::test]
async fn a_failed_write_poisons_the_writer() {
    assert_poisoned(|disk| disk.fail_writes(true)).await;
}

#[tokio::test]
async fn a_full_disk_refuses_and_heals() {
    let disk = FaultyDisk::default();
    let server = start(&disk).await;
    let client = &mut server.client().await;
    disk.no_space(true);
    let (mut stored, error) = fill(client).await;
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("disk is full"), "{error}");
    assert_eq!(reason(&error), "DISK_FULL");
    assert!(error.get_details_retry_info().is_some(), "send it again");
    await_status(&server, ServingStatus::NotServing).await;
    assert_eq!(ids(&list(client, "a").await), stored);
    // A duplicate needs no space.
    let again = event_with_data("a", &stored[0], vec![7; 4000]);
    assert_eq!(publish(client, vec![again]).await.duplicate_dropped, 1);
    let new_topic = event_with_data("b", 1, vec![7; 60_000]);
    try_publish(client, vec![vec![new_topic.clone()]])
        .await
        .expect_err("full");

    disk.no_space(false);
    // It notices by itself, and then accepts what it refused.
    await_status(&server, ServingStatus::Serving).await;
    publish(client, vec![new_topic]).await;
    let id = format!("{:03}", stored.len());
    publish(client, vec![event_with_data("a", &id, vec![7; 4000])]).await;
    stored.push(id);
    assert_eq!(ids(&list(client, "a").await), stored);
    assert_eq!(list(client, "b").await.len(), 1);
}

#[tokio::test]
async fn an_unwritten_segment_is_retried() {
    // No file can be opened; or the sync of the next segment fails, and those of batches do not.
    for fault in [FaultyDisk::no_files, FaultyDisk::fail_full_syncs] {
        let disk = FaultyDisk::default();
        let server = start(&disk).await;
        let client = &mut server.client().await;
        let http = Http::from(&server);
        fault(&disk, true);
        let (stored, error) = fill(client).await;
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert_eq!(reason(&error), "LOG_BEHIND");
        assert!(error.message().contains("keeps trying"), "{error}");
        await_status(&server, ServingStatus::NotServing).await;
        assert_eq!(http.get("/readyz").await.status, 503);
        assert_eq!(
            http.get("/healthz").await.status,
            200,
            "a restart is no help"
        );

        fault(&disk, false);
        // It notices by itself.
        await_status(&server, ServingStatus::Serving).await;
        assert_eq!(http.get("/readyz").await.status, 200);
        publish(client, vec![event_with_data("b", 1, vec![7; 60_000])]).await;
        assert_eq!(ids(&list(client, "a").await), stored);
    }
}

/// The writer syncs a request of one event, the syncer a large one.
#[tokio::test]
async fn a_panic_is_no_stop() {
    for events_sent in [1, 1000] {
        let disk = FaultyDisk::default();
        let server = start(&disk).await;
        let client = &mut server.client().await;
        let http = Http::from(&server);
        publish(client, events("a", 0..3)).await;
        disk.panic_in_syncs(true);
        let sent = events("a", 3..3 + events_sent);
        for _ in 0..3 {
            let error = patiently("an answer", try_publish(client, vec![sent.clone()])).await;
            let error = error.expect_err("not durable");
            assert_eq!(error.code(), Code::Unavailable);
            assert_eq!(reason(&error), "SERVER_BUG");
            assert!(error.message().contains("a bug in the server"), "{error}");
        }
        await_status(&server, ServingStatus::NotServing).await;
        for path in ["/healthz", "/readyz"] {
            let (_, msg) = http.get(path).await.flaw(503);
            assert!(msg.contains("a bug in the server"), "{msg}");
        }
        // The index belongs to the writer: a query of it does not report a stop either.
        let missing = patiently("an answer", get_event(client, "a", "no such event")).await;
        let missing = missing.expect_err("there is none");
        assert!(
            missing.code() == Code::NotFound || reason(&missing) == "SERVER_BUG",
            "{missing}"
        );
        assert_eq!(ids(&list(client, "a").await), ["0", "1", "2"]);

        disk.panic_in_syncs(false);
        let server = TestServer::start_in(server.stop().await).await;
        let client = &mut server.client().await;
        // Written and unsynced events may be there: resending is safe.
        publish(client, sent).await;
        assert_eq!(list(client, "a").await.len() as u64, 3 + events_sent);
    }
}
