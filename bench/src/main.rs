#![allow(clippy::print_stdout, clippy::print_stderr)]
//! Measures oncelog as its users would, in one run with the disk below it and with the alternatives.
//!
//! ```text
//! cargo run --release -p oncelog-bench -- --unique 1000000
//! ```

mod args;
mod disk;
mod event;
mod measure;
mod plan;
mod plot;
mod publish;
mod recorder;
mod report;
mod store;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command as Process, ExitCode},
    sync::Arc,
};

use clap::Parser as _;
use oncelog_harness::{Error, Result};

#[cfg(feature = "peers")]
use self::store::{
    nats::{Nats, Sync},
    postgres::Postgres,
    redis::Redis,
    sqlite::{self, Sqlite},
};
use self::{
    args::{Cli, Command, RunArgs, StoreName},
    event::Events,
    measure::measure,
    report::{Report, Skipped},
    store::{Store, null::Null, oncelog::Oncelog},
};

/// Requests are large and short-lived: the system's allocator would return their pages and fault them in
/// again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => run(&cli.run),
        Some(Command::Publish(args)) => publish::publish(&args),
        Some(Command::ServeNull) => store::null::serve(),
        #[cfg(feature = "peers")]
        Some(Command::ServeSqlite { dir, socket }) => sqlite::serve(&dir, &socket),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oncelog-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    fs::create_dir_all(&args.scratch)?;
    let payload = usize::try_from(args.payload)?;
    let events = Arc::new(Events::new(args.ids, args.topics, payload, args.seed));
    let mut report = Report::new(args, &events)?;
    for name in &args.stores {
        let (store, course) = match find(*name, args)? {
            Found::Ours(store) => (store, args.course()),
            #[cfg(feature = "peers")]
            Found::Peer(store) => {
                let course = args.peer_course(store.is_slow());
                (store, course)
            }
            Found::Missing(reason) => {
                let store = serde_json::to_value(name)?;
                let store = store.as_str().unwrap_or_default().to_owned();
                eprintln!("{store} is skipped: {reason}");
                report.skipped.push(Skipped { store, reason });
                continue;
            }
        };
        report.disk.push(disk::measure(&args.scratch, &events)?);
        eprintln!("{}: {} unique events", store.name(), course.load.unique);
        let dir = tempfile::tempdir_in(&args.scratch)?;
        let measured = runtime.block_on(measure(&*store, dir.path(), &events, &course));
        let figures = measured.map_err(|error| format!("{}: {error}", store.name()))?;
        report.stores.push(figures);
    }
    report.disk.push(disk::measure(&args.scratch, &events)?);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    println!("{report}");
    Ok(())
}

/// A requested store.
enum Found {
    Ours(Box<dyn Store>),
    #[cfg(feature = "peers")]
    Peer(Box<dyn Store>),
    Missing(String),
}

#[cfg(feature = "peers")]
fn peer(found: Result<impl Store + 'static>) -> Found {
    match found {
        Ok(store) => Found::Peer(Box::new(store)),
        Err(reason) => Found::Missing(reason.to_string()),
    }
}

fn find(name: StoreName, args: &RunArgs) -> Result<Found> {
    #[cfg(feature = "peers")]
    let nats: Vec<PathBuf> = args.nats.iter().cloned().collect();
    Ok(match name {
        StoreName::Oncelog => Found::Ours(Box::new(Oncelog {
            program: match &args.program {
                Some(program) => program.clone(),
                None => build()?,
            },
        })),
        StoreName::Null => Found::Ours(Box::new(Null)),
        #[cfg(feature = "peers")]
        StoreName::Postgres => peer(Postgres::find()),
        #[cfg(feature = "peers")]
        StoreName::Redis => peer(Redis::find()),
        #[cfg(feature = "peers")]
        StoreName::Sqlite => peer(Ok(Sqlite)),
        #[cfg(feature = "peers")]
        StoreName::Nats => peer(Nats::find(Sync::Default, &nats)),
        #[cfg(feature = "peers")]
        StoreName::NatsAlways => peer(Nats::find(Sync::Always, &nats)),
        #[cfg(not(feature = "peers"))]
        StoreName::Postgres
        | StoreName::Redis
        | StoreName::Sqlite
        | StoreName::Nats
        | StoreName::NatsAlways => Found::Missing("built without the feature `peers`".to_owned()),
    })
}

/// Builds the oncelog of this workspace, next to this program.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Process::new(cargo);
    command.current_dir(workspace);
    command.args([
        "build",
        "--release",
        "--package",
        "oncelog",
        "--bin",
        "oncelog",
    ]);
    if !command.status()?.success() {
        return Err("oncelog does not build".into());
    }
    Ok(std::env::current_exe()?.with_file_name("oncelog"))
}
