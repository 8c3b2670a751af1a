//! `oncelog publish`: lines of JSON in, a summary out.

use std::{
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::Path,
    pin::pin,
    process::ExitCode,
    thread,
    time::Instant,
};

use thiserror::Error;
use tokio::{
    signal,
    sync::{mpsc, oneshot},
};

use super::{
    INTERRUPTED, Outcome, client_runtime,
    input::{self, Item},
    output::{self, Output, Progress},
};
use crate::{
    client::{PendingAck, PublishError, Publisher, PublisherOptions},
    config::PublishArgs,
    proto::v1,
};

/// The exit status when events were rejected.
const REJECTED: u8 = 1;
/// The exit status when publishing failed.
const FAILED: u8 = 2;
/// How many batches may have been read and not yet sent.
const BATCHES_READ_MAX: usize = 4;
/// How many pending items may wait to be counted; more than a window of the publisher.
const PENDING_MAX: usize = 128;

pub(super) fn run(args: PublishArgs) -> Outcome {
    let progress = Progress::of_events();
    progress.show_warnings();
    let mut tally = Tally::new(progress.clone());
    let published = client_runtime()?.block_on(async {
        let interrupt = pin!(signal::ctrl_c());
        tokio::select! {
            published = publish(&args, &mut tally) => Some(published),
            Ok(()) = interrupt => None,
        }
    });
    progress.clear();
    let mut output = Output::new();
    output.line(tally.summary().as_bytes())?;
    output.flush()?;
    Ok(match published {
        None => ExitCode::from(INTERRUPTED),
        Some(Err(error)) => {
            output::error(&error);
            ExitCode::from(FAILED)
        }
        Some(Ok(())) if tally.rejected > 0 => ExitCode::from(REJECTED),
        Some(Ok(())) => ExitCode::SUCCESS,
    })
}

/// Why part of the input was not published.
#[derive(Debug, Error)]
enum Failure {
    #[error("cannot read {file}")]
    Read {
        file: String,
        #[source]
        error: io::Error,
    },
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// A part of the input on its way to being counted, in the order of its lines.
enum Pending {
    Sent(Vec<u64>, PendingAck),
    Rejected(u64, String),
}

/// Publishes the input to its end. A read failure is reported after everything read before it is acked.
async fn publish(args: &PublishArgs, tally: &mut Tally) -> Result<(), Failure> {
    let publisher = Publisher::connect(&args.server.server, PublisherOptions::default())?;
    let (mut items, end) = read(&args.file, args.batch_size);
    let (sent, mut pending) = mpsc::channel(PENDING_MAX);
    let send = async {
        while let Some(item) = items.recv().await {
            let item = match item {
                Item::Batch(lines, events) => Pending::Sent(lines, publisher.send(events).await?),
                Item::Rejected(line, reason) => Pending::Rejected(line, reason),
            };
            if sent.send(item).await.is_err() {
                break;
            }
        }
        drop(sent);
        Ok(publisher.finish().await?)
    };
    let count = async {
        while let Some(item) = pending.recv().await {
            match item {
                Pending::Sent(lines, ack) => tally.count(&lines, ack.await?),
                Pending::Rejected(line, reason) => tally.reject(line, &reason),
            }
        }
        Ok::<_, Failure>(())
    };
    tokio::try_join!(send, count)?;
    match end.await {
        Ok(Err(error)) => Err(Failure::Read {
            file: args.file.display().to_string(),
            error,
        }),
        Ok(Ok(())) => Ok(()),
        Err(_) => unreachable!("the reading thread does not panic"),
    }
}

/// Reads `file` on its own thread, which nobody joins: it may be blocked on a terminal.
fn read(
    file: &Path,
    batch_size_max: usize,
) -> (mpsc::Receiver<Item>, oneshot::Receiver<io::Result<()>>) {
    let file = file.to_owned();
    let (items, read) = mpsc::channel(BATCHES_READ_MAX);
    let (end, ended) = oneshot::channel();
    thread::spawn(move || {
        let result = open(&file).and_then(|input| {
            input::read(input, batch_size_max, |item| {
                match items.blocking_send(item) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            })
        });
        // If publishing has failed, nobody listens any more.
        let _ = end.send(result);
    });
    (read, ended)
}

fn open(file: &Path) -> io::Result<Box<dyn Read>> {
    Ok(if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file)?)
    })
}

/// The outcomes so far.
struct Tally {
    progress: Progress,
    start: Instant,
    stored: u64,
    duplicates: u64,
    conflicts: u64,
    rejected: u64,
}

impl Tally {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            start: Instant::now(),
            stored: 0,
            duplicates: 0,
            conflicts: 0,
            rejected: 0,
        }
    }

    fn count(&mut self, lines: &[u64], outcomes: Vec<v1::EventOutcome>) {
        for (line, outcome) in lines.iter().zip(outcomes) {
            match outcome.outcome() {
                v1::Outcome::Stored => self.stored += 1,
                v1::Outcome::Duplicate => self.duplicates += 1,
                v1::Outcome::Conflict => {
                    self.duplicates += 1;
                    self.conflicts += 1;
                }
                v1::Outcome::Rejected => {
                    self.reject(*line, &outcome.reason);
                    continue;
                }
                v1::Outcome::Unspecified => {
                    self.reject(*line, &format!("unknown outcome {}", outcome.outcome));
                    continue;
                }
            }
            self.progress.advance(1);
        }
    }

    fn reject(&mut self, line: u64, reason: &str) {
        self.rejected += 1;
        self.progress.advance(1);
        self.progress
            .note(&format!("line {line}: rejected: {reason}"));
    }

    /// One line; duplicates include conflicts, as in the contract.
    fn summary(&self) -> String {
        let received = self.stored + self.duplicates + self.rejected;
        let seconds = self.start.elapsed().as_secs_f64();
        format!(
            "received {received}, stored {}, duplicates {} (conflicts {}), rejected {}, \
             {seconds:.2} s, {:.0} events/s",
            self.stored,
            self.duplicates,
            self.conflicts,
            self.rejected,
            received as f64 / seconds.max(f64::EPSILON),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_add_up() {
        let mut tally = Tally::new(Progress::none());
        let outcomes = [
            v1::Outcome::Stored,
            v1::Outcome::Duplicate,
            v1::Outcome::Conflict,
            v1::Outcome::Rejected,
        ];
        let outcomes = outcomes.map(|outcome| v1::EventOutcome {
            outcome: outcome.into(),
            ..v1::EventOutcome::default()
        });
        tally.count(&[1, 2, 3, 4], outcomes.to_vec());
        tally.reject(5, "no event");
        let summary = tally.summary();
        let counts = "received 5, stored 1, duplicates 2 (conflicts 1), rejected 2, ";
        assert!(summary.starts_with(counts), "{summary}");
    }
}
