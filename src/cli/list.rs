//! `oncelog list`: stored events, one line of JSON each.

use std::{pin::pin, process::ExitCode};

use tokio::signal;

use super::{
    INTERRUPTED, Outcome, client_runtime,
    contract::Contract,
    output::{Output, Progress, WriteError, note},
};
use crate::{
    client::{Reader, ReaderOptions},
    config::{ListArgs, Start},
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
        contract: Contract::new(),
        output: Output::new(),
        skipped: false,
    };
    let mut interrupt = pin!(signal::ctrl_c());
    let outcome = loop {
        let response = tokio::select! {
            // First, or a long list would never be interrupted.
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
    contract: Contract,
    output: Output,
    /// Whether there was an event that JSON cannot hold.
    skipped: bool,
}

impl Printer {
    fn print(&mut self, events: &[v1::StoredEvent], flush: bool) -> Result<(), WriteError> {
        for event in events {
            match self.contract.stored_event(event) {
                Ok(line) => self.output.line(&line)?,
                Err(error) => {
                    self.skipped = true;
                    note(&format!(
                        "sequence {}: not printed: {error}",
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
