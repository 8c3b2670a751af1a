//! The program on a disk that is full, by a limit on the size of files.

use std::process::Command;

use oncelog::proto::v1;
use tonic::Code;

use crate::support::{
    DataDir, Process, counters, event, event_with_data, get_event, ids, list, publish, try_publish,
};

/// Blocks of 512 bytes; in shells where they have 1024 the limit is twice as high, which is as good.
const FILE_BLOCKS_MAX: u64 = 6 * 1024;
const DATA_BYTES: usize = 64 * 1024;
/// What fits in no case: the files grow from 1 MiB to the limit.
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
            Ok(told) => assert_eq!(told.unique_processed, 1),
            Err(error) => break error,
        }
        acked.push(format!("{id:04}"));
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().contains("disk is full"), "{error}");
    assert!(!acked.is_empty());
    let next = acked.len() as u64;

    // It serves what it has, and knows it.
    server.run(&["health"]).assert_code(0);
    assert_eq!(ids(&list(client, "a").await), acked);
    let first = get_event(client, "a", "0000").await.expect("stored");
    assert_eq!(first.event, Some(large(0)));
    assert_eq!(publish(client, vec![large(0)]).await.duplicate_dropped, 1);
    for id in next..next + 3 {
        let error = try_publish(client, vec![vec![large(id)]]).await;
        assert_eq!(error.expect_err("full").code(), Code::ResourceExhausted);
    }
    assert_eq!(counters(client).await[1], next);
    server.kill();

    let server = Process::start(&data_dir);
    let client = &mut server.client().await;
    assert_eq!(ids(&list(client, "a").await), acked);
    let mut stored = 0;
    for id in 0..next + 20 {
        let told = publish(client, vec![large(id)]).await;
        assert_eq!(told.conflicts, 0);
        stored += told.unique_processed;
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
