//! The `oncelog` program: parses what it is told, and does it.

use std::process::ExitCode;

use oncelog::{cli, config};

fn main() -> ExitCode {
    cli::run(config::parse())
}
