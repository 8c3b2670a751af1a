//! `oncelog serve`: the server, from its flags to its exit.

use std::{
    io::{self, IsTerminal as _},
    panic,
    process::ExitCode,
    thread,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing_subscriber::{
    Layer as _, Registry, fmt::layer, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use super::{Outcome, open_files};
use crate::{
    config::{LogFormat, ServeArgs},
    partition::PartitionOptions,
    platform,
    server::{Server, ServerError, ServerOptions, limit_arenas},
};

/// The signal that Linux sends a process that exceeds its limit on file sizes. Without a handler it kills.
const SIGXFSZ: i32 = 25;

pub(super) fn run(args: ServeArgs) -> Outcome {
    log_to_stderr(&args);
    log_panics();
    limit_arenas();
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(args));
    // Everything still running has had its time.
    runtime.shutdown_background();
    outcome
}

fn log_to_stderr(args: &ServeArgs) {
    let lines = layer::<Registry>()
        .with_target(false)
        .with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(args.log.clone()))
        .init();
}

/// Logs a panic like any other line.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(
            thread = thread.name(),
            place,
            "a bug: panicked: {}",
            platform::panic_text(panic.payload()),
        );
    }));
}

async fn serve(args: ServeArgs) -> Outcome {
    // Handled from the start: a server asked to stop while it recovers stops once it has recovered.
    let mut stop = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let _file_size_limit = signal(SignalKind::from_raw(SIGXFSZ))?;
    let address = args.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { address, source })?;
    let server = Server::start(listener, options(&args)).await?;
    tracing::info!(
        address = %server.address(),
        data_dir = %args.data_dir.display(),
        events = server.recovery().events,
        replayed = server.recovery().replayed,
        recovery_ms = u64::try_from(server.recovery_time().as_millis()).unwrap_or(u64::MAX),
        "oncelog {} is serving", env!("CARGO_PKG_VERSION"),
    );
    let [terminate, interrupt] = &mut stop;
    tokio::select! {
        () = received(terminate) => {}
        () = received(interrupt) => {}
    }
    tracing::info!(grace_seconds = args.grace_seconds, "stopping");
    server.stop().await?;
    tracing::info!("stopped; everything acknowledged is durable");
    Ok(ExitCode::SUCCESS)
}

async fn received(signal: &mut io::Result<Signal>) {
    match signal {
        Ok(signal) => _ = signal.recv().await,
        Err(error) => {
            tracing::warn!(%error, "cannot listen for a signal");
            std::future::pending().await
        }
    }
}

fn options(args: &ServeArgs) -> ServerOptions {
    let connections_max = open_files::room_for_connections(args.max_connections);
    if connections_max < args.max_connections {
        tracing::warn!(
            max_connections = args.max_connections,
            connections_max,
            "the limit on open files does not allow as many connections"
        );
    }
    ServerOptions {
        partition: PartitionOptions {
            topics_max: args.max_topics,
            ingest_bytes_max: args.max_ingest_bytes,
            ..PartitionOptions::new(&args.data_dir)
        },
        event_bytes_max: args.max_event_bytes,
        request_bytes_max: args.max_request_bytes,
        readers_max: args.max_readers,
        connections_max,
        http_cors_origins: args.http_cors_origin.clone(),
        grace: Duration::from_secs(args.grace_seconds),
    }
}
