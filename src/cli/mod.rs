//! The command line: one file per command.
//!
//! A command takes its parsed arguments, owns its runtime, and returns the exit status. It prints only
//! through `output`.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod input;
mod list;
mod open_files;
mod output;
mod publish;
mod serve;
mod stats;
mod verify;

use std::{process::ExitCode, sync::Arc};

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tonic::{Status, transport::Channel};

use crate::{
    client::{self, Cause},
    config::Command,
};

/// The exit status of an interrupted command: 128 plus the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// The result of a command; an error is printed and ends the program with status 1.
type Outcome = Result<ExitCode, Box<dyn std::error::Error + Send + Sync>>;

/// Runs `command` and prints its error, if any.
pub fn run(command: Command) -> ExitCode {
    let outcome = match command {
        Command::Serve(args) => serve::run(args),
        Command::Publish(args) => publish::run(args),
        Command::List(args) => list::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Health(args) => health::run(args),
        Command::Verify(args) => verify::run(args),
    };
    match outcome {
        Ok(exit) => exit,
        // The reader of the pipe has seen enough, as in `oncelog list | head`.
        Err(error) if output::is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&*error);
            ExitCode::FAILURE
        }
    }
}

/// The runtime of a command that talks to a server. The command itself runs on the main thread and may
/// block there; the connection runs on the worker.
fn client_runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
}

/// A call that was made once and failed.
#[derive(Debug, Error)]
#[error("no answer from {server}: {cause}")]
struct CallError {
    server: Arc<str>,
    #[source]
    cause: Cause,
}

impl CallError {
    fn new(server: &str, status: Status) -> Self {
        Self {
            server: server.into(),
            cause: status.into(),
        }
    }
}

/// Connects to `server` for calls made only once.
async fn connect(
    server: &str,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync + 'static>> {
    let connected = client::endpoint(server)?.connect().await;
    Ok(connected.map_err(|error| CallError::new(server, Status::from_error(error.into())))?)
}
