//! The program on a full disk, simulated by a limit on the size of files.

use std::{process::Command, time::Instant};

use oncelog::proto::v1;
use serde_json::Value;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    http_support::Http,
    support::{
        Client, DataDir, PATIENCE, Process, counters, event, event_with_data, get_event, ids, list,
        patiently, publish, try_publish,
    },
};

/// Blocks of 512 bytes; where the shell's have 1024 the limit is twice as high, which works as well.
const FILE_BLOCKS_MAX: u64 = 6 * 1024;
const DATA_BYTES: usize = 64 * 1024;
/// More than ever fits: the files grow from 1 MiB to the limit.
const EVENTS_MAX: u64 = 64 * 1024 * 1024 / DATA_BYTES as u64;

fn large(id: u64) -> v1::Event {
    let byte = u8::try_from(id % 251).expect("small");
    event_with_data("a", format!("{id:04}"), vec![byte; DATA_BYTES])
}

/// Serves under a limit on file sizes, which only a shell can set.
fn start_limited(data_dir: &DataDir) -> Process {
    let serve = Process::command(data_dir, "127.0.0.1:0");
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            &format!("ulimit -f {FILE_BLOCKS_MAX}; exec \"$0\" \"$@\""),
        ])
        .arg(serve.get_program())
        .args(serve.get_args());
    Process::spawn(&mut shell).expect("serving")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_acked() {
    let data_dir = DataDir::new();
    let mut server = start_limited(&data_dir);
    let client = &mut server.client().await;
    let mut acked = Vec::new();
    let error = loop {
        let id = acked.len() as u64;
        assert!(id < EVENTS_MAX, "the disk is full");
        match try_publish(client, vec![vec![large(id)]]).await {
            Ok(reply) => assert_eq!(reply.unique_processed, 1),
            Err(error) => break error,
        }
        acked.push(format!("{id:04}"));
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().contains("disk is full"), "{error}");
    assert!(!acked.is_empty());
    let next = acked.len() as u64;

    // It serves its events, and reports that it accepts no more.
    assert_eq!(
        server.run(&["health"]).assert_code(1).stdout,
        "NOT_SERVING\n"
    );
    assert_eq!(ids(&list(client, "a").await), acked);
    let first = get_event(client, "a", "0000").await.expect("stored");
    assert_eq!(first.event, Some(large(0)));
    assert_eq!(publish(client, vec![large(0)]).await.duplicate_dropped, 1);
    for id in next..next + 3 {
        let error = try_publish(client, vec![vec![large(id)]]).await;
        assert_eq!(error.expect_err("full").code(), Code::ResourceExhausted);
    }
    assert_eq!(counters(client).await.stored, next);
    server.kill();

    let server = Process::start(&data_dir);
    let client = &mut server.client().await;
    assert_eq!(ids(&list(client, "a").await), acked);
    let mut stored = 0;
    for id in 0..next + 20 {
        let reply = publish(client, vec![large(id)]).await;
        assert_eq!(reply.conflicts, 0);
        stored += reply.unique_processed;
    }
    assert_eq!(stored, 20);
    publish(client, vec![event("b", 1)]).await;
    let all = list(client, "a").await;
    assert_eq!(all.len() as u64, next + 20);
    for (id, stored) in (0..).zip(all) {
        assert_eq!(stored.event, Some(large(id)));
    }
    server.terminate().assert_code(0);
}

/// Waits until `oncelog health` exits with this code.
fn await_health(server: &Process, code: i32) {
    let deadline = Instant::now() + PATIENCE;
    while server.run(&["health"]).code != Some(code) {
        assert!(Instant::now() < deadline, "its health does not change");
    }
}

/// Publishes until refused, and a little more. Returns how many events are stored, and the refusal.
async fn fill(client: &mut Client) -> (u64, Status) {
    let mut acked = 0;
    let refused = loop {
        assert!(acked < EVENTS_MAX, "there is no room");
        match try_publish(client, vec![vec![large(acked)]]).await {
            Ok(reply) => acked += reply.unique_processed,
            Err(error) => break error,
        }
    };
    for _ in 0..20 {
        let again = try_publish(client, vec![vec![large(acked)]]).await;
        assert_eq!(again.expect_err("no room").code(), refused.code());
    }
    (acked, refused)
}

/// It has logged once that it stores no events and why, and once that it does again.
fn assert_logged_once(server: &Process, cause: &str) {
    let lines = server.logged();
    let of_health = |line: &&Value| line["message"].to_string().contains("events are stored");
    let lines: Vec<_> = lines.iter().filter(of_health).collect();
    let [refusing, healed] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert_eq!(refusing["level"], "ERROR");
    assert!(refusing["cause"].to_string().contains(cause), "{refusing}");
    assert_eq!(healed["level"], "INFO");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_logged_once_and_heals() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let client = &mut server.client().await;
    let http = Http::from(&server);
    server.limit("fsize", "3000000");
    let (acked, refused) = fill(client).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    await_health(&server, 1);
    let (_, msg) = http.get("/readyz").await.flaw(503);
    assert_eq!(msg, refused.message());
    assert_eq!(
        http.get("/healthz").await.status,
        200,
        "a restart is no help"
    );

    // There is space again, and nobody publishes.
    server.limit("fsize", "unlimited");
    await_health(&server, 0);
    assert_eq!(http.get("/readyz").await.status, 200);
    assert_eq!(
        publish(client, vec![large(acked)]).await.unique_processed,
        1
    );
    assert_logged_once(&server, "the log has no space");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_open_files_poison_nothing() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let client = &mut server.client().await;
    // Opened in advance: the server cannot accept connections either.
    let channel = Channel::from_shared(server.endpoint()).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("watching").into_inner();
    server.limit("nofile", "8");
    let (acked, refused) = fill(client).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("keeps trying"), "{refused}");

    server.limit("nofile", "1024");
    for expected in [
        ServingStatus::Serving,
        ServingStatus::NotServing,
        ServingStatus::Serving,
    ] {
        let reply = patiently("another status", watch.message()).await;
        let reply = reply.expect("alive").expect("a status");
        assert_eq!(reply.status(), expected);
    }
    assert_eq!(
        publish(client, vec![large(acked)]).await.unique_processed,
        1
    );
    assert_logged_once(&server, "Too many open files");
}
