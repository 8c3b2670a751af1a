//! The `oncelog` program: parses what it is told, and does it.

use std::process::ExitCode;

use oncelog::{cli, config};

/// Requests are many small allocations that are freed on other threads; mimalloc is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(config::parse())
}
