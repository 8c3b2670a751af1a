//! Fuzz targets of the command line: its flags, and the lines it publishes and prints.

use std::{ffi::OsStr, ops::ControlFlow, os::unix::ffi::OsStrExt as _};

use super::{
    input::{self, Item},
    list,
};
use crate::{
    client,
    config::{self, Command, ServeArgs, ServerArgs},
    json::{
        event::{Names, parse_line},
        listed::write,
    },
    proto::v1,
};

/// How many events of the lines are passed on together.
const BATCH_SIZE_MAX: usize = 3;

/// Parses each line as an argument. An environment variable is read as the flag of its name.
pub fn config(data: &[u8]) {
    let args = data.split(|byte| *byte == b'\n').map(OsStr::from_bytes);
    match config::parse_from([OsStr::new("oncelog")].into_iter().chain(args)) {
        Ok(Command::Serve(args)) => assert_served(&args),
        Ok(Command::Publish(args)) => {
            assert!((1..=16_384).contains(&args.batch_size));
            connect(&args.server);
        }
        Ok(Command::List(args)) => {
            assert!(args.limit != Some(0));
            connect(&args.server);
        }
        Ok(Command::Stats(args)) => {
            assert!(args.max_topics > 0);
            connect(&args.server);
        }
        Ok(Command::Health(args)) => connect(&args.server),
        Ok(Command::Verify(_)) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn assert_served(args: &ServeArgs) {
    assert!(args.max_event_bytes >= 1024);
    assert!(args.max_event_bytes <= args.max_request_bytes);
    assert!(args.max_request_bytes <= args.max_ingest_bytes);
    assert!((1..=10_000_000).contains(&args.max_topics));
    assert!((1..=1_000_000).contains(&args.max_readers));
    assert!((1..=1_000_000).contains(&args.max_connections));
    assert!(args.grace_seconds <= 3600);
    for origin in &args.http_cors_origin {
        assert!(origin == "*" || origin.to_str().is_ok_and(|origin| origin.contains("://")));
    }
    assert!(args.log.default_level().is_some());
}

fn connect(args: &ServerArgs) {
    match client::endpoint(&args.server) {
        Ok(endpoint) => assert_eq!(endpoint.uri().scheme_str(), Some("http")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Reads lines like `oncelog publish`, and prints their events like `oncelog list`.
pub fn cli_lines(data: &[u8]) {
    let lines = data.split_inclusive(|byte| *byte == b'\n').count() as u64;
    let mut last = 0;
    let read = input::read(data, BATCH_SIZE_MAX, |item| {
        match item {
            Item::Batch(numbers, events) => {
                assert_eq!(numbers.len(), events.len());
                assert!((1..=BATCH_SIZE_MAX).contains(&events.len()));
                for number in numbers {
                    assert!(number > last);
                    last = number;
                }
                events.into_iter().for_each(print);
            }
            Item::Rejected(number, reason) => {
                assert!(number > last);
                last = number;
                assert!(!reason.is_empty());
            }
        }
        ControlFlow::Continue(())
    });
    read.expect("memory");
    assert!(last <= lines);
}

/// A stored event is printed as the same event.
fn print(event: v1::Event) {
    let stored = list::stored_event(&v1::StoredEvent {
        event: Some(event),
        sequence: u64::MAX,
        received_at: None,
    });
    let stored = stored.expect("a valid event can be printed");
    let mut line = Vec::new();
    write(&stored, None, &mut line);
    assert!(!line.contains(&b'\n'), "an event is one line");
    for names in [Names::Listed, Names::ListedAndContract] {
        let again = parse_line(&line, names, 2 * stored.encoded.len());
        let again = again.expect("what is printed can be published");
        assert_eq!(*again.encoded(), stored.encoded);
    }
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    pub(crate) fn configs() -> Vec<(&'static str, Vec<u8>)> {
        let configs = [
            (
                "serve",
                "serve\n--listen\n[::]:1\n--data-dir=/tmp/x\n--max-topics\n1\n--max-readers\n7\n--grace-seconds\n0\n--log-format\njson\n--log\noncelog=debug,info",
            ),
            (
                "limits",
                "--max-event-bytes=1024\n--max-request-bytes\n67108864\n--max-ingest-bytes=68719476736",
            ),
            (
                "origins",
                "--http-cors-origin\nhttps://a.example,http://[::1]:8080,*",
            ),
            (
                "publish",
                "publish\nevents.ndjson\n--batch-size\n16384\n--server\nhttp://127.0.0.1:50051",
            ),
            (
                "list",
                "list\n--topic\norders\n--follow\n--cursor\n01ab\n--limit\n3\n--server=localhost:1",
            ),
            (
                "stats",
                "stats\n--watch\n--json\n--topic-prefix\no\n--max-topics\n4294967295",
            ),
            ("verify", "verify\n--data-dir\n."),
            ("help", "help\nlist"),
            ("wrong", "--max-event-bytes\n5000000\n--listen\nlocalhost"),
        ];
        configs.map(|(name, args)| (name, args.into())).into()
    }

    pub(crate) fn lines() -> Vec<(&'static str, Vec<u8>)> {
        let event = r#"{"topic":"t","eventId":"1","timestamp":"2026-01-01T00:00:00.5Z","source":"s","json":{"n":1,"a":[null,true,"x",{}]},"attributes":{"k":"v"}}"#;
        let data = r#"{"topic":"t","event_id":"2","timestamp":"2026-01-01T01:00:00+01:00","source":"s","data":"AAH_"}"#;
        let listed = r#"{"topic":"t","event_id":"3","timestamp":"2026-01-01T00:00:00Z","source":"s","payload":{"id":9007199254740993},"attributes":{},"sequence":7,"received_at":"2026-01-01T00:00:01Z"}"#;
        let lines = [
            event,
            "",
            data,
            listed,
            event,
            data,
            "{\"evnetId\":1}",
            "x",
            "{}",
        ]
        .join("\n");
        vec![("lines", lines.into()), ("event", event.into())]
    }
}
