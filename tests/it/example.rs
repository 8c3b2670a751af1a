//! The publisher example.

use std::{path::PathBuf, process::Command};

use crate::support::{Counts, DataDir, Process, counters, run};

/// Where `cargo test` builds the example: next to this program's folder.
fn publisher() -> PathBuf {
    let tests = std::env::current_exe().expect("a path");
    let target = tests.ancestors().nth(2).expect("target/debug/deps/it");
    target.join("examples").join("publisher")
}

#[tokio::test]
async fn the_example_stores_its_events_once() {
    let publisher = publisher();
    assert!(
        publisher.exists(),
        "`cargo test --test it` alone builds no examples: run `cargo test`, or `cargo build --examples` first"
    );
    let server = Process::start(&DataDir::new());
    let mut client = server.client().await;
    for (expected_counts, counted) in [
        (
            "stored 4000, duplicates 1000",
            Counts::new().stored(4000).duplicates(1000),
        ),
        (
            "stored 0, duplicates 5000",
            Counts::new().stored(4000).duplicates(6000),
        ),
    ] {
        let ended = run(Command::new(&publisher).arg(server.endpoint())).assert_code(0);
        let expected = format!("sent 5000, {expected_counts}, conflicts 0, rejected 0, ");
        assert!(ended.stdout.starts_with(&expected), "{ended:?}");
        assert_eq!(counters(&mut client).await, counted);
    }
}
