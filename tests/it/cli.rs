//! The program as users run it, against real servers.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use oncelog::{
    index::IndexOptions,
    partition::lock_data_dir,
    platform::faulty::FaultyDisk,
    proto::v1::{ListEventsRequest, Outcome},
};
use serde_json::Value;

use crate::support::{
    Counts, DataDir, Ended, PATIENCE, Process, PublishStream, TestServer, counters, event,
    event_with_data, events, flip, oncelog, publish, run, run_with_input, try_publish,
};

/// A line for `oncelog publish`.
fn line(topic: &str, id: u64) -> String {
    format!(
        "{{\"topic\":\"{topic}\",\"event_id\":\"{id}\",\"timestamp\":\"2026-01-01T00:00:00Z\",\
         \"source\":\"test\",\"payload\":{{\"n\":{id},\"deep\":[null,true,\"\\u00e9\"]}}}}\n"
    )
}

fn lines(topic: &str, ids: std::ops::Range<u64>) -> String {
    ids.map(|id| line(topic, id)).collect()
}

fn assert_summary(ended: &Ended, counts: &str) {
    assert!(ended.stdout.starts_with(counts), "{ended:?}");
}

fn publish_lines(server: &Process, input: &str) -> Ended {
    run_with_input(&mut server.oncelog(&["publish"]), input)
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["event_id"].as_str().expect("an id"))
        .collect()
}

/// The cursor that a list prints at its end.
fn cursor(ended: &Ended) -> &str {
    let cursor = ended
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("cursor: "));
    cursor.expect("a cursor on standard error")
}

#[test]
fn a_file_is_published_once() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let file = data_dir.path().join("events.ndjson");
    fs::write(&file, lines("a", 0..1000)).expect("written");
    let file = file.to_str().expect("UTF-8");

    let first = server.run(&["publish", file]).assert_code(0);
    assert_summary(
        &first,
        "received 1000, stored 1000, duplicates 0 (conflicts 0), rejected 0, ",
    );
    let second = server
        .run(&["publish", "--batch-size", "7", file])
        .assert_code(0);
    assert_summary(
        &second,
        "received 1000, stored 0, duplicates 1000 (conflicts 0), rejected 0, ",
    );
    assert_eq!(
        server.run(&["list"]).assert_code(0).json_lines().len(),
        1000
    );

    let missing = server.run(&["publish", "/no/such/file"]).assert_code(2);
    assert!(missing.stderr.contains("/no/such/file"), "{missing:?}");
}

#[test]
fn rejected_lines_are_reported_by_number() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let input = [
        line("a", 1),
        "not JSON\n".to_owned(),
        "\n".to_owned(),
        line("", 2),
        line("a", 3),
        line("a", 1).replace("test", "another source"),
        "{\"topik\":\"a\"}\n".to_owned(),
        line("a", 4),
    ]
    .concat();
    let ended = publish_lines(&server, &input).assert_code(1);
    assert_summary(
        &ended,
        "received 7, stored 3, duplicates 1 (conflicts 1), rejected 3, ",
    );
    let output: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(output.len(), 3, "{output:?}");
    for (output, (number, what)) in output.iter().zip([
        ("line 2: ", ""),
        ("line 4: ", "topic"),
        ("line 7: ", "topik"),
    ]) {
        assert!(
            output.starts_with(number) && output.contains(what),
            "{output}"
        );
    }
    let listed = server.run(&["list"]).assert_code(0).json_lines();
    assert_eq!(ids(&listed), ["1", "3", "4"]);
    assert_eq!(listed[0]["source"], "test", "the first stays");
}

#[test]
fn a_list_is_printed_whole_by_topic_or_in_parts() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let input = lines("a", 0..20) + &lines("b", 0..5) + &lines("a", 20..30);
    publish_lines(&server, &input).assert_code(0);

    let all = server.run(&["list"]).assert_code(0).json_lines();
    let sequences = all.iter().map(|line| line["sequence"].as_u64());
    let sequences: Vec<_> = sequences.map(|n| n.expect("a sequence")).collect();
    assert_eq!(sequences, (1..=35).collect::<Vec<_>>());
    assert_eq!(
        all[0]["payload"]["deep"],
        serde_json::json!([null, true, "é"])
    );
    let b = server
        .run(&["list", "--topic", "b"])
        .assert_code(0)
        .json_lines();
    assert_eq!(ids(&b), ["0", "1", "2", "3", "4"]);
    let none = server.run(&["list", "--topic", "c"]).assert_code(0);
    assert_eq!(none.stdout, "");

    let mut parts = server
        .run(&["list", "--topic", "a", "--limit", "12"])
        .assert_code(0);
    let mut printed = parts.json_lines();
    assert_eq!(printed.len(), 12);
    while printed.len() < 30 {
        parts = server
            .run(&[
                "list",
                "--topic",
                "a",
                "--limit",
                "7",
                "--cursor",
                cursor(&parts),
            ])
            .assert_code(0);
        let more = parts.json_lines();
        assert!(!more.is_empty() && more.len() <= 7);
        printed.extend(more);
    }
    let of_a: Vec<_> = all
        .into_iter()
        .filter(|line| line["topic"] == "a")
        .collect();
    assert_eq!(printed, of_a);

    let bad = server.run(&["list", "--cursor", "nonsense"]).assert_code(1);
    assert!(bad.stderr.contains("cursor"), "{bad:?}");
}

/// A running command, and the lines it prints. Killed when dropped.
struct Follower {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Follower {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
        let stdout = child.stdout.take().expect("piped");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    fn take(&mut self, count: usize) -> Vec<Value> {
        let lines = self.lines.by_ref().take(count);
        let lines: Vec<Value> = lines
            .map(|line| serde_json::from_str(&line.expect("text")).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), count, "it goes on");
        lines
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn following_prints_events_as_they_come() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    publish_lines(&server, &lines("a", 0..3)).assert_code(0);
    let mut follower = Follower::start(&mut server.oncelog(&["list", "--follow", "--topic", "a"]));
    assert_eq!(ids(&follower.take(3)), ["0", "1", "2"]);
    for id in 3..6 {
        publish_lines(&server, &(line("b", id) + &line("a", id))).assert_code(0);
        assert_eq!(ids(&follower.take(1)), [id.to_string()]);
    }
}

#[test]
fn a_list_can_be_published_elsewhere() {
    let (data_dir, elsewhere_dir) = (DataDir::new(), DataDir::new());
    let server = Process::start(&data_dir);
    let elsewhere = Process::start(&elsewhere_dir);
    let with_data = "{\"topic\":\"b\",\"event_id\":\"x \\\"y\\\"\",\"timestamp\":\
        \"1969-12-31T23:59:59.000000007Z\",\"source\":\"s\",\"data\":\"AAH/\",\
        \"attributes\":{\"k\":\"\",\"l\":\"é\"}}\n";
    publish_lines(&server, &(lines("a", 0..50) + with_data)).assert_code(0);
    let large = "{\"topic\":\"c\",\"eventId\":\"1\",\"timestamp\":\"2026-01-01T00:00:00Z\",\"source\":\"s\",\
        \"json\":{\"id\":9007199254740993,\"a\":1.50}}\n";
    publish_lines(&server, large).assert_code(0);
    let listed = server.run(&["list"]).assert_code(0);
    assert!(
        listed
            .stdout
            .contains(r#""payload":{"a":1.50,"id":9007199254740993}"#),
        "{listed:?}"
    );
    let ended = publish_lines(&elsewhere, &listed.stdout).assert_code(0);
    assert_summary(&ended, "received 52, stored 52, ");
    // The content is the same: sent back home, every event is a duplicate, and none a conflict.
    let ended = publish_lines(&server, &listed.stdout).assert_code(0);
    assert_summary(
        &ended,
        "received 52, stored 0, duplicates 52 (conflicts 0), ",
    );
    let copied = elsewhere.run(&["list"]).assert_code(0);
    let without_times = |listed: &Ended| -> Vec<Value> {
        let mut lines = listed.json_lines();
        for line in &mut lines {
            line.as_object_mut()
                .expect("an object")
                .remove("received_at");
        }
        lines
    };
    assert_eq!(without_times(&copied), without_times(&listed));
}

#[test]
fn counters_are_printed_for_people_and_programs() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let input = lines("orders", 0..1200) + &lines("orders", 0..5) + &lines("users", 0..2);
    publish_lines(&server, &input).assert_code(0);

    let table = server.run(&["stats"]).assert_code(0).stdout;
    for (name, count) in [
        ("received", "1,207"),
        ("stored", "1,202"),
        ("duplicates", "5"),
        ("durable tail", "1,203"),
        ("topics", "2"),
    ] {
        let line = table.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.ends_with(count)), "{table}");
    }
    let topic = table.lines().find(|line| line.starts_with("orders"));
    assert!(topic.is_some_and(|line| line.contains("1,200")), "{table}");

    let json = server
        .run(&["stats", "--json", "--topic-prefix", "u"])
        .assert_code(0);
    let [stats] = &json.json_lines()[..] else {
        panic!("{json:?}");
    };
    assert_eq!(stats["received"], 1207);
    assert_eq!(stats["unique_processed"], 1202);
    assert_eq!(stats["duplicate_dropped"], 5);
    assert_eq!(stats["conflicts"], 0);
    assert_eq!(stats["server_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["topics"], serde_json::json!(["users"]));
    assert_eq!(stats["topic_stats"][0]["topic"], "users");
    assert_eq!(stats["topic_count"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_in_the_exit_status() {
    let disk = FaultyDisk::default();
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.partition.platform = disk.platform();
    let server = TestServer::start_with(data_dir, options).await;
    let endpoint = server.endpoint();
    let health = || run(&mut oncelog(&["health", "--server", &endpoint]));
    assert_eq!(health().assert_code(0).stdout, "SERVING\n");
    disk.fail_syncs(true);
    let failed = try_publish(&mut server.client().await, vec![vec![event("a", 1)]]).await;
    failed.expect_err("not durable");
    // Another task reports that it has failed.
    let deadline = Instant::now() + PATIENCE;
    while health().code == Some(0) {
        assert!(Instant::now() < deadline, "it is not serving");
    }
    assert_eq!(health().assert_code(1).stdout, "NOT_SERVING\n");
}

#[test]
fn an_unreachable_server_is_reported() {
    // It accepts connections and closes them.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || listener.incoming().for_each(drop));
    let health = run(&mut oncelog(&["health", "--server", &address])).assert_code(1);
    assert!(health.stderr.contains(&address), "{health:?}");
    // The port of tcpmux, which nobody runs.
    for command in ["health", "stats"] {
        let ended = run(&mut oncelog(&[command, "--server", "127.0.0.1:1"])).assert_code(1);
        assert!(
            ended.stderr.contains("is the server running there?"),
            "{ended:?}"
        );
    }
}

fn verify(data_dir: &DataDir) -> Ended {
    run(oncelog(&["verify", "--data-dir"]).arg(data_dir.path()))
}

/// A data directory with 400 events and generations of the index.
async fn with_generations() -> DataDir {
    let data_dir = DataDir::new();
    let mut options = data_dir.options();
    options.partition.index = IndexOptions {
        keys_per_generation: 50,
        ..IndexOptions::default()
    };
    let server = TestServer::start_with(data_dir, options).await;
    let client = &mut server.client().await;
    for request in 0..40 {
        publish(client, events("a", request * 10..request * 10 + 10)).await;
    }
    let data_dir = server.stop().await;
    assert!(!data_dir.generations().is_empty());
    data_dir
}

#[tokio::test]
async fn a_whole_data_directory_is_verified() {
    let data_dir = with_generations().await;
    let whole = verify(&data_dir).assert_code(0);
    assert!(whole.stdout.contains("400 events in "), "{whole:?}");
    assert!(whole.stdout.contains("no damage found"));
    // It has changed nothing.
    assert_eq!(verify(&data_dir).assert_code(0).stdout, whole.stdout);
}

#[tokio::test]
async fn damage_to_the_log_is_reported_with_file_and_offset() {
    let data_dir = DataDir::new();
    let server = TestServer::start_in(data_dir).await;
    let client = &mut server.client().await;
    for id in 0..20 {
        publish(client, vec![event_with_data("a", id, vec![id; 1000])]).await;
    }
    let data_dir = server.stop().await;
    let segment = data_dir.segments()[0].clone();
    let bytes = fs::read(&segment).expect("a file");
    let flipped = bytes.windows(100).position(|data| data == [10; 100]);
    let flipped = flipped.expect("the data of event 10") as u64;
    flip(&segment, flipped);

    let ended = verify(&data_dir).assert_code(1);
    let problem = ended.stdout.lines().next().expect("a problem");
    let place = format!("log: {} at offset ", segment.display());
    let offset = problem.strip_prefix(&place).expect("the file");
    let offset = offset.split(':').next().expect("an offset");
    let offset: u64 = offset.parse().expect("a number");
    assert!(
        (flipped - 1300..flipped).contains(&offset),
        "{problem}: the batch with {flipped}"
    );
    let refused = Process::spawn(&mut Process::command(&data_dir, "127.0.0.1:0"));
    let refused = refused.err().expect("a damaged log is not served");
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains(&format!("offset {offset}"))
            && refused.stderr.contains(segment.to_str().expect("UTF-8")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn damage_to_the_index_is_reported() {
    let data_dir = with_generations().await;
    let generation = data_dir.generations()[0].clone();
    let mut damaged = None;
    for entry in fs::read_dir(&generation).expect("a directory") {
        let path = entry.expect("an entry").path();
        let bytes = fs::metadata(&path).expect("a file").len();
        if path.is_file() && bytes > 0 {
            for offset in (0..bytes).step_by(97) {
                flip(&path, offset);
            }
            damaged = Some(path);
        }
    }
    damaged.expect("a file of the index");
    let output = verify(&data_dir);
    let path = generation.to_str().expect("UTF-8");
    let line = output.stdout.lines().find(|line| line.contains(path));
    assert!(
        line.is_some_and(|line| line.starts_with("index: ")),
        "{output:?}"
    );

    fs::remove_dir_all(data_dir.path().join("index")).expect("removed");
    let output = verify(&data_dir).assert_code(0);
    assert!(
        output
            .stdout
            .contains("the index holds 0 of them in 0 generations"),
        "{output:?}"
    );
}

#[test]
fn a_data_directory_is_verified_only_while_no_server_has_it() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    let refused = verify(&data_dir).assert_code(1);
    assert!(refused.stderr.contains("another oncelog"), "{refused:?}");

    let second = Process::spawn(&mut Process::command(&data_dir, "127.0.0.1:0"));
    let second = second.err().expect("refused");
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("another oncelog"), "{second:?}");
    assert!(
        second
            .stderr
            .contains(data_dir.path().to_str().expect("UTF-8"))
    );

    server.terminate().assert_code(0);
    verify(&data_dir).assert_code(0);
    let missing = data_dir.path().join("missing");
    let ended = run(oncelog(&["verify", "--data-dir"]).arg(&missing)).assert_code(1);
    assert!(ended.stderr.contains("not an oncelog data directory"));
    assert!(!missing.exists(), "verifying creates nothing");
}

/// A child holds all open files of its parent between fork and exec, and with them the lock.
#[test]
fn children_that_start_beside_it_do_not_keep_a_lock() {
    const CHILDREN: usize = 200;
    let data_dir = DataDir::new();
    thread::scope(|scope| {
        let children = scope.spawn(|| {
            for _ in 0..CHILDREN {
                let child = Command::new("true").status();
                assert!(child.expect("it runs").success());
            }
        });
        while !children.is_finished() {
            let lock = lock_data_dir(data_dir.path());
            drop(lock.expect("nobody else has it"));
        }
    });
}

#[test]
fn a_port_in_use_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let ended = Process::spawn(&mut Process::command(&DataDir::new(), &address));
    let ended = ended.err().expect("refused");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&address), "{ended:?}");
    assert!(ended.stderr.contains("in use"), "{ended:?}");
}

#[tokio::test]
async fn variables_set_what_flags_do_and_serving_is_the_default() {
    let data_dir = DataDir::new();
    let mut command = oncelog(&[]);
    command
        .env("ONCELOG_LISTEN", "127.0.0.1:0")
        .env("ONCELOG_DATA_DIR", data_dir.path())
        .env("ONCELOG_LOG_FORMAT", "json")
        .env("ONCELOG_MAX_TOPICS", "1")
        .env("ONCELOG_MAX_EVENT_BYTES", "2000");
    let server = Process::spawn(&mut command).expect("serving");
    assert_eq!(
        server.started["data_dir"],
        data_dir.path().to_str().expect("UTF-8")
    );
    let client = &mut server.client().await;
    publish(client, events("a", 0..3)).await;
    let topic = try_publish(client, vec![vec![event("b", 1)]]).await;
    let topic = topic.expect_err("a second topic");
    assert_eq!(topic.code(), tonic::Code::ResourceExhausted);
    let large = vec![event_with_data("a", 9, vec![0; 2000])];
    let large = try_publish(client, vec![large]).await;
    assert!(large.expect_err("large").message().contains("2000"));

    let listed = run(oncelog(&["list"]).env("ONCELOG_SERVER", server.endpoint()));
    assert_eq!(listed.assert_code(0).json_lines().len(), 3);
    let bad = run(oncelog(&[]).env("ONCELOG_MAX_TOPICS", "many")).assert_code(2);
    assert!(bad.stderr.contains("many"), "{bad:?}");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let data_dir = DataDir::new();
    let mut command = Process::command(&data_dir, "127.0.0.1:0");
    for name in [
        "DATA_DIR",
        "GRACE_SECONDS",
        "LISTEN",
        "LOG",
        "LOG_FORMAT",
        "MAX_EVENT_BYTES",
        "MAX_TOPICS",
        "HTTP_CORS_ORIGIN",
        "SERVER",
    ] {
        command.env(format!("ONCELOG_{name}"), "");
    }
    let server = Process::spawn(&mut command).expect("it serves, and says so");
    run(server.oncelog(&["health"]).env("ONCELOG_SERVER", "")).assert_code(0);
    let help = run(oncelog(&["serve", "--help"]).env("ONCELOG_LOG", "")).assert_code(0);
    assert!(help.stdout.contains("[default: info]"), "{help:?}");
}

#[test]
fn a_bad_log_filter_is_refused() {
    for filter in ["verbose", "nonsense", ""] {
        let flag = run(&mut oncelog(&["serve", "--log", filter])).assert_code(2);
        assert!(flag.stderr.contains("--log"), "{flag:?}");
        assert!(
            flag.stderr.contains("off, error, warn, info, debug, trace") || filter.is_empty(),
            "{flag:?}"
        );
    }
    let variable = run(oncelog(&[]).env("ONCELOG_LOG", "verbose")).assert_code(2);
    assert!(
        variable.stderr.contains("'verbose' is not a level"),
        "{variable:?}"
    );
    // A pair does not silence the rest.
    let data_dir = DataDir::new();
    let mut command = Process::command(&data_dir, "127.0.0.1:0");
    command.env("ONCELOG_LOG", "h2=debug");
    Process::spawn(&mut command).expect("it says that it serves");
}

#[tokio::test]
async fn sigterm_stops_in_order_with_streams_open() {
    const GRACE_SECONDS: u64 = 30;
    let data_dir = DataDir::new();
    let mut command = Process::command(&data_dir, "127.0.0.1:0");
    command.args(["--grace-seconds", &GRACE_SECONDS.to_string()]);
    let server = Process::spawn(&mut command).expect("serving");
    let client = &mut server.client().await;
    let mut stream = PublishStream::open(&mut client.clone()).await;
    let output = stream.publish(vec![event("a", 1), event("a", 1)]).await;
    assert_eq!(output, [(Outcome::Stored, 1), (Outcome::Duplicate, 1)]);
    let follow = ListEventsRequest {
        follow: true,
        ..ListEventsRequest::default()
    };
    let mut reader = client.list_events(follow).await.expect("open").into_inner();
    let first = reader.message().await.expect("alive").expect("an event");
    assert_eq!(first.events.len(), 1);

    let began = Instant::now();
    let ended = tokio::task::spawn_blocking(|| server.terminate()).await;
    let ended = ended.expect("no panic").assert_code(0);
    assert!(began.elapsed() < Duration::from_secs(GRACE_SECONDS));
    assert!(ended.stderr.contains("stopped"), "{ended:?}");

    let server = Process::start(&data_dir);
    assert_eq!(server.started["events"], 1);
    // A crash would have lost the count of the duplicate.
    let client = &mut server.client().await;
    assert_eq!(
        counters(client).await,
        Counts::new().stored(1).duplicates(1)
    );
}

#[test]
fn the_start_up_line_reports_the_recovery() {
    let data_dir = DataDir::new();
    let server = Process::start(&data_dir);
    assert_eq!(server.started["events"], 0);
    publish_lines(&server, &lines("a", 0..42)).assert_code(0);
    server.terminate().assert_code(0);

    let server = Process::start(&data_dir);
    let started = &server.started;
    assert_eq!(started["events"], 42);
    assert_eq!(started["address"], server.address);
    assert_eq!(
        started["data_dir"],
        data_dir.path().to_str().expect("UTF-8")
    );
    assert!(started["recovery_ms"].is_u64(), "{started}");
    drop(server);

    // The same for people.
    let mut command = oncelog(&["--listen", "127.0.0.1:0", "--data-dir"]);
    let command = command.arg(data_dir.path()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let line = stderr.lines().find_map(|line| {
        let line = line.expect("text");
        line.contains("is serving").then_some(line)
    });
    child.kill().expect("killed");
    child.wait().expect("ended");
    let line = line.expect("a line");
    for what in [
        "address=127.0.0.1:",
        "data_dir=",
        "events=42",
        "recovery_ms=",
    ] {
        assert!(line.contains(what), "{line}");
    }
}
