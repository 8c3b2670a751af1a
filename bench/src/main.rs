#![allow(clippy::print_stdout)]
//! Measures oncelog as its users would, in one run with the disk below it and with what they would pick instead.
//!
//! ```text
//! cargo run --release -p oncelog-bench -- --unique 1000000
//! ```

mod args;
mod event;
mod measure;
mod plan;
mod process;
mod store;
mod wire;

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;

use self::{args::Args, event::Events, measure::measure};

/// Requests are large and short-lived: the system's allocator gives their pages back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let events = Arc::new(Events::new(args.ids, args.topics, args.payload, args.seed));
    std::fs::create_dir_all(&args.scratch)?;
    for store in args.stores()? {
        let dir = tempfile::tempdir_in(&args.scratch)?;
        let figures = runtime.block_on(measure(&*store, dir.path(), &events, &args.course()))?;
        println!("{}", serde_json::to_string_pretty(&figures)?);
    }
    Ok(())
}
