//! What a data directory survives, and what makes it refused.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use oncelog::{
    index::IndexOptions,
    proto::v1::{self, Outcome},
    server::ServerOptions,
};

use crate::support::{
    Counts, DataDir, Process, PublishStream, TestServer, counters, event, event_with_data, events,
    flip, ids, list, oncelog, publish, run, sequences, stats, try_publish,
};

/// The size of a segment's header, after which the batches begin.
const SEGMENT_HEADER_BYTES: u64 = 64;

/// Ends a server with its files as a crash of the process would leave them: without saving the counters.
async fn crash(server: TestServer) -> DataDir {
    let data_dir = server.data_dir.clone();
    let counters = data_dir.path().join("counters.json");
    let before = fs::read(&counters).ok();
    server.stop().await;
    match before {
        Some(before) => fs::write(&counters, before).expect("written"),
        None => fs::remove_file(&counters).expect("removed"),
    }
    data_dir
}

fn zero(file: &Path, range: std::ops::Range<u64>) {
    let zeros = vec![0; (range.end - range.start) as usize];
    let file = fs::File::options().write(true).open(file).expect("a file");
    file.write_all_at(&zeros, range.start).expect("written");
}

/// Where the last batch of a file starts, and where the written data ends.
fn last_batch(file: &Path, data_before_it: &[u8]) -> std::ops::Range<u64> {
    let bytes = fs::read(file).expect("a file");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty")
        + 1;
    let before = bytes
        .windows(data_before_it.len())
        .rposition(|w| w == data_before_it);
    let before = before.expect("the batch before it") + data_before_it.len();
    let begin = bytes[before..]
        .iter()
        .position(|byte| *byte != 0)
        .expect("a batch")
        + before;
    begin as u64..end as u64
}

async fn refusal(data_dir: &DataDir) -> String {
    let started = TestServer::try_start(data_dir.clone(), data_dir.options()).await;
    started.map(|_| ()).expect_err("refused").to_string()
}

#[tokio::test]
async fn a_clean_restart_keeps_everything() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, events("a", 0..10)).await;
    publish(client, events("b", 0..5)).await;
    publish(
        client,
        vec![event("a", 1), event_with_data("b", 2, vec![1])],
    )
    .await;
    try_publish(client, vec![vec![event("", 1)]])
        .await
        .expect_err("invalid");
    let before = (
        list(client, "").await,
        counters(client).await,
        stats(client).await,
    );
    assert_eq!(
        before.1,
        Counts::new()
            .stored(15)
            .duplicates(2)
            .conflicts(1)
            .rejected(1)
    );

    let server = server.restart().await;
    let client = &mut server.client().await;
    let after = (
        list(client, "").await,
        counters(client).await,
        stats(client).await,
    );
    assert_eq!((&after.0, after.1), (&before.0, before.1));
    assert_eq!(after.2.topics, before.2.topics);
    assert_eq!(after.2.durable_tail, before.2.durable_tail);
    assert_eq!(server.server.recovery().events, 15);
    publish(client, vec![event("a", 10)]).await;
    assert_eq!(sequences(&list(client, "a").await).last(), Some(&16));
}

#[tokio::test]
async fn unique_events_are_counted_exactly_after_a_crash() {
    let server = TestServer::start().await;
    publish(&mut server.client().await, events("a", 0..10)).await;
    let server = TestServer::start_in(server.stop().await).await;
    let client = &mut server.client().await;
    publish(client, events("a", 5..20)).await;
    publish(client, events("b", 0..3)).await;
    let server = TestServer::start_in(crash(server).await).await;
    let client = &mut server.client().await;
    // The duplicates since the clean stop are lost; the counters still balance.
    assert_eq!(counters(client).await, Counts::new().stored(23));
    let topics = stats(client).await.topics;
    let unique: Vec<_> = topics
        .iter()
        .map(|t| (&*t.topic, t.unique_processed))
        .collect();
    assert_eq!(unique, [("a", 20), ("b", 3)]);
}

#[tokio::test]
async fn two_servers_do_not_share_a_data_directory() {
    let server = TestServer::start().await;
    let error = refusal(&server.data_dir).await;
    assert!(
        error.contains("another oncelog has this data directory"),
        "{error}"
    );
    assert!(
        error.contains(&*server.data_dir.path().to_string_lossy()),
        "{error}"
    );
    publish(&mut server.client().await, vec![event("a", 1)]).await;
}

#[tokio::test]
async fn a_torn_last_batch_was_never_acked() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(
        client,
        vec![event_with_data("a", 1, b"the batch before".to_vec())],
    )
    .await;
    publish(client, vec![event_with_data("a", 2, vec![7; 3000])]).await;
    let data_dir = crash(server).await;
    let segment = data_dir.segments().pop().expect("a segment");
    let whole = fs::read(&segment).expect("a file");
    let batch = last_batch(&segment, b"the batch before");
    let cuts = [
        batch.start + 1,
        batch.start + 20,
        batch.start + 512,
        batch.end - 1,
    ];
    for cut in cuts {
        fs::write(&segment, &whole).expect("written");
        zero(&segment, cut..batch.end);
        let server = TestServer::start_in(data_dir.clone()).await;
        let client = &mut server.client().await;
        assert_eq!(ids(&list(client, "a").await), ["1"], "cut at {cut}");
        let response = publish(client, vec![event("a", 1), event("a", 2)]).await;
        assert_eq!(
            response.unique_processed, 1,
            "what was torn can be sent again"
        );
        crash(server).await;
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_with_file_and_offset() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    for id in 0..3 {
        publish(client, vec![event_with_data("a", id, vec![7; 3000])]).await;
    }
    let data_dir = crash(server).await;
    let segment = data_dir.segments().pop().expect("a segment");
    let before = fs::read(&segment).expect("a file");
    flip(&segment, SEGMENT_HEADER_BYTES + 1500);
    let error = refusal(&data_dir).await;
    let name = segment.file_name().expect("a name").to_string_lossy();
    assert!(error.contains(&*name), "{error}");
    assert!(
        error.contains(&format!("offset {SEGMENT_HEADER_BYTES}")),
        "{error}"
    );
    assert!(error.contains("oncelog verify"), "{error}");
    // Nothing was touched: with the byte repaired, everything is there.
    flip(&segment, SEGMENT_HEADER_BYTES + 1500);
    assert!(fs::read(&segment).expect("a file") == before);
    let server = TestServer::start_in(data_dir).await;
    assert_eq!(list(&mut server.client().await, "a").await.len(), 3);
}

#[tokio::test]
async fn damage_at_the_end_is_refused_after_a_clean_stop() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    publish(client, vec![event("a", 1)]).await;
    publish(client, vec![event_with_data("a", 2, vec![7; 3000])]).await;
    // The counters prove that the last batch was durable.
    let data_dir = server.stop().await;
    let segment = data_dir.segments().pop().expect("a segment");
    let bytes = fs::read(&segment).expect("a file");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty") as u64;
    flip(&segment, end - 1000);
    let error = refusal(&data_dir).await;
    assert!(
        error.contains("damaged") && error.contains("offset"),
        "{error}"
    );
}

fn small_generations(data_dir: &DataDir) -> ServerOptions {
    let mut options = data_dir.options();
    options.partition.index = IndexOptions {
        keys_per_generation: 50,
        ..IndexOptions::default()
    };
    options
}

/// Publishes until there are generations.
async fn with_generations() -> DataDir {
    let data_dir = DataDir::new();
    let options = small_generations(&data_dir);
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    for request in 0..40 {
        let topic = format!("topic-{}", request % 3);
        publish(client, events(&topic, request * 10..request * 10 + 10)).await;
    }
    let data_dir = server.stop().await;
    assert!(!data_dir.generations().is_empty());
    data_dir
}

async fn assert_whole(data_dir: DataDir) {
    let options = small_generations(&data_dir);
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    assert_eq!(list(client, "").await.len(), 400);
    for topic in 0..3 {
        let expected = (0..40).filter(|request| request % 3 == topic).count() * 10;
        assert_eq!(
            list(client, &format!("topic-{topic}")).await.len(),
            expected
        );
    }
    let mut stream = PublishStream::open(client).await;
    for request in 0..40 {
        let topic = format!("topic-{}", request % 3);
        let reply = stream
            .publish(events(&topic, request * 10..request * 10 + 10))
            .await;
        let expected = (request * 10 + 1..request * 10 + 11).map(|n| (Outcome::Duplicate, n));
        assert_eq!(reply, expected.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn sealed_generations_remember() {
    assert_whole(with_generations().await).await;
}

#[tokio::test]
async fn a_deleted_index_is_rebuilt() {
    let data_dir = with_generations().await;
    fs::remove_dir_all(data_dir.path().join("index")).expect("removed");
    assert_whole(data_dir).await;
}

#[tokio::test]
async fn a_missing_generation_is_rebuilt() {
    let data_dir = with_generations().await;
    let generations = data_dir.generations();
    fs::remove_dir_all(&generations[generations.len() / 2]).expect("removed");
    assert_whole(data_dir).await;
}

#[tokio::test]
async fn damaged_files_of_the_index_are_rebuilt() {
    for pick in 0..8 {
        let data_dir = with_generations().await;
        let generation = &data_dir.generations()[0];
        let mut files = Vec::new();
        collect_files(generation, &mut files);
        let Some(file) = files.get(pick) else {
            break;
        };
        let len = fs::metadata(file).expect("a file").len();
        for offset in (0..len).step_by(97) {
            flip(file, offset);
        }
        assert_whole(data_dir).await;
    }
}

fn collect_files(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[tokio::test]
async fn lost_or_damaged_counters_are_counted_again() {
    let data_dir = with_generations().await;
    for damage in ["", "{", "[]"] {
        let file = data_dir.path().join("counters.json");
        if damage.is_empty() {
            fs::remove_file(&file).expect("removed");
        } else {
            fs::write(&file, damage).expect("written");
        }
        let server = TestServer::start_in(data_dir.clone()).await;
        let client = &mut server.client().await;
        assert_eq!(counters(client).await, Counts::new().stored(400));
        assert_eq!(stats(client).await.topic_count, 3);
        server.stop().await;
    }
}

/// The names and contents of all files of a data directory.
fn contents(data_dir: &DataDir) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    collect_files(data_dir.path(), &mut files);
    let content = |file: PathBuf| {
        let content = fs::read(&file).expect("a file");
        (file, content)
    };
    files.into_iter().map(content).collect()
}

#[tokio::test]
async fn counters_of_a_newer_version_refuse_the_start_and_stay() {
    let data_dir = with_generations().await;
    let file = data_dir.path().join("counters.json");
    let snapshot = r#"{"version":3,"tail":1,"and":"more"}"#;
    let crc = crc32c::crc32c(snapshot.as_bytes());
    fs::write(
        &file,
        format!(r#"{{"crc32c":{crc},"snapshot":{snapshot}}}"#),
    )
    .expect("written");
    let before = contents(&data_dir);

    let refused = Process::spawn(&mut Process::command(&data_dir, "127.0.0.1:0"));
    let refused = refused.err().expect("a newer version").assert_code(1);
    let expected = format!(
        "{} has format version 3; this oncelog knows version 2",
        file.display()
    );
    assert!(refused.stderr.contains(&expected), "{refused:?}");
    let verified = run(oncelog(&["verify", "--data-dir"]).arg(data_dir.path())).assert_code(1);
    assert!(verified.stdout.contains(&expected), "{verified:?}");
    assert!(!verified.stdout.contains("counted again"), "{verified:?}");
    assert!(contents(&data_dir) == before, "nothing was touched");
}

#[tokio::test]
async fn stopping_ends_streams_in_order() {
    let server = TestServer::start().await;
    let client = &mut server.client().await;
    let mut publisher = PublishStream::open(&mut client.clone()).await;
    assert_eq!(
        publisher.publish(vec![event("a", 1)]).await,
        [(Outcome::Stored, 1)]
    );
    let follow = v1::ListEventsRequest {
        follow: true,
        ..crate::support::list_request("a")
    };
    let mut reader = client
        .list_events(follow)
        .await
        .expect("opened")
        .into_inner();
    let first = reader.message().await.expect("alive").expect("a response");
    assert_eq!(first.events.len(), 1);

    let data_dir = server.stop().await;
    let last = reader
        .message()
        .await
        .expect("alive")
        .expect("a last cursor");
    assert!(last.events.is_empty());
    let end = reader.message().await.expect_err("the server has gone");
    assert_eq!(end.code(), tonic::Code::Unavailable);
    let end = publisher.receive().await.expect_err("the server has gone");
    assert_eq!(end.code(), tonic::Code::Unavailable);

    let server = TestServer::start_in(data_dir).await;
    let client = &mut server.client().await;
    publish(client, vec![event("a", 2)]).await;
    let resumed = v1::ListEventsRequest {
        cursor: last.cursor,
        ..crate::support::list_request("a")
    };
    let responses = crate::support::list_responses(client, resumed).await;
    assert_eq!(ids(&responses[0].events), ["2"]);
}
