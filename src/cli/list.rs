//! `oncelog list`: stored events, one line of JSON each.

use std::{pin::pin, process::ExitCode};

use prost::Message as _;
use tokio::signal;

use super::{
    INTERRUPTED, Outcome, client_runtime,
    output::{Output, Progress, WriteError, note},
};
use crate::{
    client::{Reader, ReaderOptions},
    config::{ListArgs, Start},
    event::{EventView, StoredEvent},
    json,
    proto::v1,
};

pub(super) fn run(args: ListArgs) -> Outcome {
    Progress::none().show_warnings();
    client_runtime()?.block_on(list(args))
}

async fn list(args: ListArgs) -> Outcome {
    let start = match args.start {
        Start::Earliest => v1::StartPosition::Earliest,
        Start::Latest => v1::StartPosition::Latest,
    };
    let request = v1::ListEventsRequest {
        topic: args.topic,
        cursor: args.cursor,
        start: start.into(),
        limit: args.limit.unwrap_or(0),
        follow: args.follow,
    };
    let mut reader = Reader::connect(&args.server.server, request, ReaderOptions::default())?;
    let mut printer = Printer {
        output: Output::new(),
        skipped: false,
    };
    let mut interrupt = pin!(signal::ctrl_c());
    let outcome = loop {
        let response = tokio::select! {
            // First, or a long list could never be interrupted.
            biased;
            Ok(()) = &mut interrupt => break Ok(ExitCode::from(INTERRUPTED)),
            response = reader.next() => response,
        };
        match response {
            Ok(Some(response)) => printer.print(&response.events, args.follow)?,
            Ok(None) if printer.skipped => break Ok(ExitCode::FAILURE),
            Ok(None) => break Ok(ExitCode::SUCCESS),
            Err(error) => break Err(error.into()),
        }
    };
    printer.output.flush()?;
    if !reader.cursor().is_empty() {
        note(&format!("cursor: {}", reader.cursor()));
    }
    outcome
}

struct Printer {
    output: Output,
    /// Whether an event could not be printed.
    skipped: bool,
}

impl Printer {
    fn print(&mut self, events: &[v1::StoredEvent], flush: bool) -> Result<(), WriteError> {
        let mut line = Vec::new();
        for event in events {
            match stored_event(event) {
                Some(stored) => {
                    line.clear();
                    json::listed::write(&stored, None, &mut line);
                    self.output.line(&line)?;
                }
                None => {
                    self.skipped = true;
                    note(&format!(
                        "sequence {}: not printed: it has no timestamp",
                        event.sequence
                    ));
                }
            }
        }
        if flush {
            self.output.flush()?;
        }
        Ok(())
    }
}

/// The event in a message, if a server could have stored it.
pub(super) fn stored_event(message: &v1::StoredEvent) -> Option<StoredEvent> {
    const NANOS_PER_SECOND: u64 = 1_000_000_000;
    let received_at = message.received_at.unwrap_or_default();
    let seconds = u64::try_from(received_at.seconds).ok()?;
    let nanos = u64::try_from(received_at.nanos).ok()?;
    let encoded = message.event.as_ref()?.encode_to_vec();
    EventView::parse(&encoded).ok()?.timestamp?;
    Some(StoredEvent {
        sequence: message.sequence,
        received_at: seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)?,
        // Used only for cursors, which a client takes from responses.
        batch_checksum: 0,
        encoded: encoded.into(),
    })
}
