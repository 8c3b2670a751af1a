#![allow(clippy::print_stdout, clippy::print_stderr)]
//! Tries to make oncelog lose, repeat or reorder an event, and says what it tried.
//!
//! ```text
//! cargo run --release -p oncelog-torture -- --help
//! ```

mod json;
mod server;
mod simulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// Tries to make oncelog lose, repeat or reorder an event
#[derive(Debug, Parser)]
#[command(name = "oncelog-torture")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate the store over a disk, a clock and chance that follow from a seed
    Simulate(simulate::SimulateArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oncelog-torture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Simulate(args) => simulate::run(&args).map(drop),
    }
}
