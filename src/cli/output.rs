//! Output of the command line: the only place that writes to standard output and standard error.

use std::{
    error::Error,
    fmt,
    io::{self, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use thiserror::Error;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{self as log, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// How often a progress bar is drawn.
const TICK: std::time::Duration = std::time::Duration::from_millis(100);

/// Standard output cannot be written to.
#[derive(Debug, Error)]
#[error("cannot write to standard output")]
pub(super) struct WriteError(#[from] io::Error);

/// Buffered standard output, locked while the command runs.
pub(super) struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
    is_terminal: bool,
}

impl Output {
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        Self {
            is_terminal: stdout.is_terminal(),
            stdout: BufWriter::new(stdout),
        }
    }

    /// Writes `text` and a newline.
    pub fn line(&mut self, text: &[u8]) -> Result<(), WriteError> {
        self.stdout.write_all(text)?;
        Ok(self.stdout.write_all(b"\n")?)
    }

    /// Clears the screen, if there is one.
    pub fn clear(&mut self) -> Result<(), WriteError> {
        if self.is_terminal {
            self.stdout.write_all(b"\x1b[H\x1b[2J\x1b[3J")?;
        }
        Ok(())
    }

    /// Flushes the output.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        Ok(self.stdout.flush()?)
    }
}

/// Whether a command failed because nobody reads its output any more.
pub(super) fn is_closed_pipe(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    let write = error.downcast_ref::<WriteError>();
    write.is_some_and(|WriteError(error)| error.kind() == ErrorKind::BrokenPipe)
}

/// Prints `error` with its causes on one line of standard error.
pub(super) fn error(error: &(dyn Error + 'static)) {
    note(&format!("error: {}", explain(error)));
}

/// Prints one line to standard error. A failure to do so is ignored.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The error, any causes that it does not name itself, and a hint if there is one.
fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut refused = false;
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        let system = error.downcast_ref::<io::Error>();
        refused |= system.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        cause = error.source();
    }
    if refused {
        text.push_str("; is the server running there?");
    }
    text
}

/// Standard error with a progress bar below it, drawn only on a terminal. Clones share the bar.
#[derive(Clone)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Draws the number of events so far and their rate.
    pub fn of_events() -> Self {
        let style = ProgressStyle::with_template("{spinner} {human_pos} events, {rate}/s")
            .expect("a constant template")
            .with_key(
                "rate",
                |state: &ProgressState, text: &mut dyn fmt::Write| {
                    // Writing to memory does not fail.
                    let _ = write!(text, "{:.0}", state.per_sec());
                },
            );
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Draws nothing.
    pub fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Counts `events` more.
    pub fn advance(&self, events: usize) {
        self.0.inc(events as u64);
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        self.0.suspend(|| note(line));
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }

    /// Prints the client's warnings above the bar, for the rest of the program.
    pub fn show_warnings(&self) {
        let lines = log::layer()
            .with_writer(self.clone())
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .without_time();
        tracing_subscriber::registry()
            .with(Targets::new().with_target("oncelog", LevelFilter::WARN))
            .with(lines)
            .init();
    }
}

impl<'a> MakeWriter<'a> for Progress {
    type Writer = &'a Progress;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Error)]
    #[error("no answer from s: {0}")]
    struct Named(#[source] io::Error);

    #[test]
    fn causes_are_named_once() {
        let other = Named(io::Error::other("why"));
        assert_eq!(explain(&other), "no answer from s: why");
        let write = WriteError(io::Error::other("why"));
        assert_eq!(explain(&write), "cannot write to standard output: why");
        let refused = Named(ErrorKind::ConnectionRefused.into());
        assert_eq!(
            explain(&refused),
            "no answer from s: connection refused; is the server running there?"
        );
    }

    #[test]
    fn only_the_pipe_of_the_output_may_close() {
        let broken = || io::Error::from(ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&WriteError(broken())));
        assert!(!is_closed_pipe(&WriteError(ErrorKind::StorageFull.into())));
        assert!(!is_closed_pipe(&Named(broken())));
    }
}
