//! The `oncelog` program: parses its arguments and runs the command.

use std::process::ExitCode;

use oncelog::{cli, config};

fn main() -> ExitCode {
    cli::run(config::parse())
}
