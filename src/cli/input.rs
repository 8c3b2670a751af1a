//! Events from lines of JSON, in batches.
//!
//! Keeps only one line and one batch of the input in memory.

use std::{
    io::{self, BufRead, BufReader, Read},
    mem,
    ops::ControlFlow,
};

use prost::Message as _;

use crate::{
    json::{
        event::{Names, parse_line},
        flaw::Flaw,
    },
    proto::v1,
};

/// The longest line.
const LINE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The largest event that a server can be configured to accept.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A batch is passed on before its events exceed this size, encoded.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How much is read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// An item of the input, in the order of its lines.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    /// Events for one request, with their line numbers.
    Batch(Vec<u64>, Vec<v1::Event>),
    /// A line that holds no event, and why.
    Rejected(u64, String),
}

/// Reads lines to the end of the input, until it fails, or until `pass` breaks.
///
/// A batch is passed on when it has `batch_size_max` events or about 1 MiB, and before waiting for more
/// input.
pub(super) fn read(
    input: impl Read,
    batch_size_max: usize,
    mut pass: impl FnMut(Item) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut line = Vec::new();
    let mut batch = Batch::default();
    let mut number = 0;
    loop {
        if !input.buffer().contains(&b'\n') && batch.pass_on(&mut pass).is_break() {
            return Ok(());
        }
        let whole = match read_line(&mut input, &mut line) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        number += 1;
        let event = match line.trim_ascii() {
            _ if !whole => Err(format!("longer than {LINE_BYTES_MAX} bytes")),
            b"" => continue,
            json => parse(json),
        };
        let flow = match event {
            Ok((event, bytes)) => batch.add(number, event, bytes, batch_size_max, &mut pass),
            Err(reason) => match batch.pass_on(&mut pass) {
                ControlFlow::Continue(()) => pass(Item::Rejected(number, reason)),
                stop => stop,
            },
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

/// Reads the next line into `line`. Returns whether it is whole, that is, not too long; `None` at the end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let mut start = input.take(LINE_BYTES_MAX as u64 + 1);
    if start.read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    let whole = line.ends_with(b"\n") || line.len() <= LINE_BYTES_MAX;
    if !whole {
        input.skip_until(b'\n')?;
    }
    Ok(Some(whole))
}

/// The event of a line, and its encoded size.
fn parse(line: &[u8]) -> Result<(v1::Event, usize), String> {
    let event = parse_line(line, Names::ListedAndContract, EVENT_BYTES_MAX);
    let event = event.map_err(|flaws| describe(&flaws))?;
    let encoded = event.encoded();
    let message = v1::Event::decode(encoded.clone()).expect("a valid event is well-formed");
    Ok((message, encoded.len()))
}

/// The flaws of an event, on one line.
fn describe(flaws: &[Flaw]) -> String {
    let flaws = flaws.iter().map(|flaw| match &flaw.field {
        Some(field) => format!("{field}: {}", flaw.msg),
        None => flaw.msg.clone(),
    });
    flaws.collect::<Vec<_>>().join("; ")
}

/// The batch being filled.
#[derive(Default)]
struct Batch {
    lines: Vec<u64>,
    events: Vec<v1::Event>,
    bytes: usize,
}

impl Batch {
    fn add(
        &mut self,
        line: u64,
        event: v1::Event,
        bytes: usize,
        size_max: usize,
        pass: &mut impl FnMut(Item) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.bytes + bytes > BATCH_BYTES_MAX {
            self.pass_on(pass)?;
        }
        self.lines.push(line);
        self.events.push(event);
        self.bytes += bytes;
        if self.events.len() < size_max {
            return ControlFlow::Continue(());
        }
        self.pass_on(pass)
    }

    fn pass_on(&mut self, pass: &mut impl FnMut(Item) -> ControlFlow<()>) -> ControlFlow<()> {
        if self.events.is_empty() {
            return ControlFlow::Continue(());
        }
        let batch = mem::take(self);
        pass(Item::Batch(batch.lines, batch.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(input: impl Read, batch_size_max: usize) -> Vec<Item> {
        let mut items = Vec::new();
        let read = read(input, batch_size_max, |item| {
            items.push(item);
            ControlFlow::Continue(())
        });
        read.expect("memory");
        items
    }

    fn line(event_id: &str) -> String {
        format!(
            "{{\"topic\":\"t\",\"eventId\":\"{event_id}\",\"timestamp\":\"1970-01-01T00:00:00Z\",\"source\":\"s\"}}\n"
        )
    }

    fn batch(lines: &[u64], event_ids: &[&str]) -> Item {
        let event = |event_id: &&str| v1::Event {
            topic: "t".to_owned(),
            event_id: (*event_id).to_owned(),
            timestamp: Some(prost_types::Timestamp::default()),
            source: "s".to_owned(),
            ..v1::Event::default()
        };
        Item::Batch(lines.to_vec(), event_ids.iter().map(event).collect())
    }

    #[test]
    fn lines_become_batches_and_rejections() {
        let mut input = [line("a"), "\n \r\n".to_owned(), line("b"), line("c")].concat();
        input.push_str("{\"evnetId\":1}\n");
        input.push_str(line("d").trim_end());
        let items = items(input.as_bytes(), 2);
        assert_eq!(
            items[..2],
            [batch(&[1, 4], &["a", "b"]), batch(&[5], &["c"])]
        );
        assert!(matches!(&items[2], Item::Rejected(6, reason) if reason.contains("evnetId")));
        assert_eq!(items[3..], [batch(&[7], &["d"])]);
    }

    #[test]
    fn a_pause_of_the_input_ends_a_batch() {
        let (first, second) = ([line("a"), line("b")].concat(), line("c"));
        let items = items(first.as_bytes().chain(second.as_bytes()), 256);
        assert_eq!(items, [batch(&[1, 2], &["a", "b"]), batch(&[3], &["c"])]);
    }

    #[test]
    fn large_events_end_a_batch() {
        let data = format!(",\"data\":\"{}\"}}", "AAAA".repeat(BATCH_BYTES_MAX / 6));
        let large = line("large").replace('}', &data);
        let lines = [&*large, &large, &line("a")].concat();
        let items = items(lines.as_bytes(), 256);
        let lines = items.iter().map(|item| match item {
            Item::Batch(lines, _) => lines.clone(),
            Item::Rejected(line, reason) => panic!("{line}: {reason}"),
        });
        assert_eq!(lines.flatten().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(items.len() > 1);
    }

    #[test]
    fn a_line_without_end_is_skipped() {
        let endless = io::repeat(b'x').take(2 * LINE_BYTES_MAX as u64);
        let rest = ["\n".to_owned(), line("a")].concat();
        let items = items(endless.chain(rest.as_bytes()), 256);
        assert_eq!(items.len(), 2);
        assert!(matches!(&items[0], Item::Rejected(1, reason) if reason.contains("33554432")));
        assert_eq!(items[1], batch(&[2], &["a"]));
    }

    #[test]
    fn reading_stops_with_the_reader() {
        let mut passed = 0;
        let lines = line("a").repeat(10);
        let read = read(lines.as_bytes(), 1, |_| {
            passed += 1;
            ControlFlow::Break(())
        });
        read.expect("memory");
        assert_eq!(passed, 1);
    }
}
