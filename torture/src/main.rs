#![allow(clippy::print_stdout, clippy::print_stderr)]
//! Tries to make oncelog lose, repeat or reorder an event, and reports what it tried.
//!
//! ```text
//! cargo run --release -p oncelog-torture -- --help
//! ```

mod all;
mod client;
mod crash;
mod event;
mod json;
mod network;
mod simulate;
mod soak;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oncelog_harness::{Error, Result};

/// Tries to make oncelog lose, repeat or reorder an event
#[derive(Debug, Parser)]
#[command(name = "oncelog-torture")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All of these, one after the other
    All(all::AllArgs),
    /// Simulate the store over a disk, a clock and randomness derived from a seed
    Simulate(simulate::SimulateArgs),
    /// Kill, stop, starve and damage the real program under load, and check everything it promised
    Crash(crash::CrashArgs),
    /// Load the real program's port with connections, streams, network faults and attacks
    Network(network::NetworkArgs),
    /// Load the real program at full speed over a long history, sample its resources, and count everything at the
    /// end
    Soak(soak::SoakArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oncelog-torture: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command, and returns its figures for the docs.
async fn run(command: Command) -> Result<String> {
    Ok(match command {
        Command::All(args) => Box::pin(all::run(&args)).await?,
        Command::Simulate(args) => simulate::run(args).await?.markdown(),
        Command::Crash(args) => crash::run(&args).await?.markdown(),
        Command::Network(args) => network::run(&args).await?.markdown(),
        Command::Soak(args) => soak::run(&args).await?.markdown(),
    })
}
