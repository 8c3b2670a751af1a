//! Disks that fail or are full.

use oncelog::{log::FileLogOptions, platform::faulty::FaultyDisk};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    DataDir, TestServer, event, event_with_data, events, ids, list, publish, try_publish,
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

    // The disk works again, but what the failed sync lost is not known: nothing more is taken.
    disk.fail_syncs(false);
    disk.fail_writes(false);
    let error = try_publish(client, vec![vec![event("a", 4)]]).await;
    assert_eq!(error.expect_err("poisoned").code(), Code::Unavailable);
    assert_eq!(
        ids(&list(client, "a").await),
        ["0", "1", "2"],
        "reads go on"
    );
    let mut health = HealthClient::new(server.channel().await);
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("watching").into_inner();
    while watch
        .message()
        .await
        .expect("alive")
        .expect("a status")
        .status()
        != ServingStatus::NotServing
    {}

    let server = TestServer::start_in(server.stop().await).await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..5)).await;
    assert_eq!(ids(&list(client, "a").await), ["0", "1", "2", "3", "4"]);
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
    let mut stored = Vec::new();
    let error = loop {
        let id = format!("{:03}", stored.len());
        match try_publish(client, vec![vec![event_with_data("a", &id, vec![7; 4000])]]).await {
            Ok(response) => assert_eq!(response.unique_processed, 1),
            Err(error) => break error,
        }
        stored.push(id);
        assert!(stored.len() < 100, "the disk is full");
    };
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("disk is full"), "{error}");
    assert!(is_serving(&server).await);
    assert_eq!(ids(&list(client, "a").await), stored);
    // What is stored already needs no space.
    let again = event_with_data("a", &stored[0], vec![7; 4000]);
    assert_eq!(publish(client, vec![again]).await.duplicate_dropped, 1);
    let new_topic = event_with_data("b", 1, vec![7; 60_000]);
    try_publish(client, vec![vec![new_topic.clone()]])
        .await
        .expect_err("full");

    disk.no_space(false);
    let mut tries = 0;
    while try_publish(client, vec![vec![new_topic.clone()]])
        .await
        .is_err()
    {
        tries += 1;
        assert!(tries < 100_000, "there is space again");
    }
    let id = format!("{:03}", stored.len());
    publish(client, vec![event_with_data("a", &id, vec![7; 4000])]).await;
    stored.push(id);
    assert_eq!(ids(&list(client, "a").await), stored);
    assert_eq!(list(client, "b").await.len(), 1);
}
