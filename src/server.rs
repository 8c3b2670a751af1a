//! The composition root: listener, partition, services, and the order in which they start and stop.

mod admission;
mod connection;
mod incoming;
mod memory;
mod unread;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    http::{HeaderMap, HeaderValue, header::CONTENT_TYPE},
    middleware::map_response,
    response::Response,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::timeout_at,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::Routes,
    transport::server::{Router, Server as TonicServer},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::incoming::incoming;
pub use self::memory::limit_arenas;
use crate::{
    aggregator::Aggregator,
    call::CALL_BYTES_MAX,
    event::EVENT_BYTES_MAX,
    grpc, http,
    limits::Limits,
    partition::{self, Health, OpenError, Partition, PartitionOptions, Recovery, Threads},
    proto::{FILE_DESCRIPTOR_SET, server::aggregator_service_server::SERVICE_NAME as AGGREGATOR},
    response,
};

/// The name of the whole server in grpc.health.v1.
const WHOLE_SERVER: &str = "";
/// The prefix of every gRPC content type.
const GRPC_CONTENT_TYPE: &[u8] = b"application/grpc";
/// The default limit on one encoded publish request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 * EVENT_BYTES_MAX;
/// The default limit on streams of stored events at a time.
pub const READERS_MAX: usize = 1024;
/// The default limit on connections at a time.
pub const CONNECTIONS_MAX: usize = 16_384;
/// The default grace period, in seconds.
pub const GRACE_SECONDS: u64 = 30;

/// How often a silent connection is pinged, and how long its reply may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 streams of one connection.
const CONNECTION_STREAMS_MAX: u32 = 1024;
/// How many of its streams a connection may make the server reset, before it is closed. CVE-2025-8671; by default
/// tonic has no limit.
const CONNECTION_RESETS_MAX: usize = 1024;
/// HTTP/2 flow control: how much a stream and a connection may send before the server reads it. A connection has
/// room for 128 streams that wait for their share of the ingest budget, so that one that has its share can go on.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The largest HTTP/2 frame a client may send: the default of 16 KiB costs both sides a system call each. A
/// connection gathers a whole frame before anything sees it.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// How long the partition may take to stop when open streams have used up the grace period.
const STOP_MIN: Duration = Duration::from_secs(5);

/// The options of a server.
#[derive(Clone)]
pub struct ServerOptions {
    /// The partition: data directory, limits on topics and ingest.
    pub partition: PartitionOptions,
    /// The largest encoded event, in bytes.
    pub event_bytes_max: usize,
    /// The largest encoded publish request, in bytes.
    pub request_bytes_max: usize,
    /// The most streams of stored events at a time, over gRPC and HTTP.
    pub readers_max: usize,
    /// The most connections at a time; more are closed as they come. Each takes a file descriptor.
    pub connections_max: usize,
    /// The origins whose pages may call the HTTP endpoints from a browser; `*` is any origin.
    pub http_cors_origins: Vec<HeaderValue>,
    /// How long open streams may take to end when the server stops.
    pub grace: Duration,
}

impl ServerOptions {
    /// The defaults, for `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            partition: PartitionOptions::new(data_dir),
            event_bytes_max: EVENT_BYTES_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            readers_max: READERS_MAX,
            connections_max: CONNECTIONS_MAX,
            http_cors_origins: Vec::new(),
            grace: Duration::from_secs(GRACE_SECONDS),
        }
    }
}

/// Why a server did not start, or did not stop cleanly.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The data directory cannot be served.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The listener failed.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Its address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// HTTP/2 serving failed.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The counters could not be saved. Nothing acknowledged is lost: it is in the log.
    #[error("saving the counters: {0}")]
    Save(#[from] partition::CountersError),
}

/// A running server. Dropping it without [`Server::stop`] leaves it running.
pub struct Server {
    address: SocketAddr,
    recovery: Recovery,
    recovery_time: Duration,
    partition: Partition,
    threads: Threads,
    health: HealthReporter,
    following: JoinHandle<()>,
    stopping: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    grace: Duration,
}

impl Server {
    /// Recovers the data directory and serves on `listener`. On return the health is SERVING.
    pub async fn start(listener: TcpListener, options: ServerOptions) -> Result<Self, ServerError> {
        let address = listener
            .local_addr()
            .map_err(|source| ServerError::Listen {
                address: SocketAddr::from(([0, 0, 0, 0], 0)),
                source,
            })?;
        let began = Instant::now();
        let partition_options = options.partition.clone();
        let opened = tokio::task::spawn_blocking(move || partition::open(partition_options));
        let (partition, threads, recovery) = opened.await.expect("opening does not panic")?;
        let recovery_time = began.elapsed();

        let stopping = CancellationToken::new();
        let (health, router) = router(&partition, &options, &stopping);
        report_health(&health, ServingStatus::Serving).await;
        let following = tokio::spawn(follow_health(health.clone(), partition.health()));
        let places = Arc::new(Semaphore::new(options.connections_max));
        let incoming = incoming(listener, places);
        tokio::spawn(memory::give_back(stopping.clone()));
        let stopped = stopping.clone().cancelled_owned();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
        Ok(Self {
            address,
            recovery,
            recovery_time,
            partition,
            threads,
            health,
            following,
            stopping,
            serving,
            grace: options.grace,
        })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The result of recovery.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// How long it took to recover.
    pub fn recovery_time(&self) -> Duration {
        self.recovery_time
    }

    /// The partition behind the services.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Stops cleanly: health NOT_SERVING, no new requests, streams end with what they have, the queue drains,
    /// the counters are saved. Streams that take longer than the grace period are cut.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        let deadline = tokio::time::Instant::now() + self.grace;
        self.following.abort();
        // Once it has ended, nothing reports SERVING any more.
        _ = (&mut self.following).await;
        report_health(&self.health, ServingStatus::NotServing).await;
        self.stopping.cancel();
        // Watchers have seen the change; a watch does not end by itself.
        self.health.clear_service_status(WHOLE_SERVER).await;
        self.health.clear_service_status(AGGREGATOR).await;
        let served = match timeout_at(deadline, &mut self.serving).await {
            Ok(served) => served.expect("serving does not panic"),
            Err(_) => {
                tracing::warn!(grace = ?self.grace, "cut the streams that were still open");
                self.serving.abort();
                Ok(())
            }
        };
        let threads = self.threads;
        let stopped = tokio::task::spawn_blocking(move || threads.stop());
        match timeout_at(
            deadline.max(tokio::time::Instant::now() + STOP_MIN),
            stopped,
        )
        .await
        {
            Ok(stopped) => stopped.expect("stopping does not panic")?,
            Err(_) => tracing::warn!(
                "the queue was not empty in time; what was not acknowledged must be sent again"
            ),
        }
        Ok(served?)
    }
}

fn router(
    partition: &Partition,
    options: &ServerOptions,
    stopping: &CancellationToken,
) -> (HealthReporter, Router) {
    let limits = Limits {
        event_bytes_max: options.event_bytes_max,
        request_bytes_max: options.request_bytes_max,
        readers_max: options.readers_max,
        topics_max: options.partition.topics_max,
    };
    let aggregator = Aggregator::new(partition.clone(), limits, stopping.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that clients like grpcurl can print them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1();
    let v1 = v1.expect("the descriptors are those of this build");
    let v1alpha = reflection().build_v1alpha();
    let v1alpha = v1alpha.expect("the descriptors are those of this build");
    let http = http::routes(aggregator.clone(), &options.http_cors_origins);
    let routes = Routes::from(http.fallback(no_such_path))
        .add_service(grpc::service(aggregator))
        .add_service(health_service.max_decoding_message_size(CALL_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(CALL_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(CALL_BYTES_MAX));
    let routes = routes
        .into_axum_router()
        .layer(map_response(response::hold));
    let router = transport()
        .accept_http1(true)
        .add_routes(admission::guard(routes).into());
    (health, router)
}

/// The HTTP/2 settings of every oncelog server.
pub fn transport() -> TonicServer {
    TonicServer::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_max_local_error_reset_streams(Some(CONNECTION_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
}

/// A gRPC client gets a gRPC error, everyone else an HTTP one.
async fn no_such_path(headers: HeaderMap) -> Response {
    if speaks_grpc(&headers) {
        return Status::unimplemented("").into_http();
    }
    http::not_found().await
}

fn speaks_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(GRPC_CONTENT_TYPE))
}

async fn report_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status(WHOLE_SERVER, status).await;
    health.set_service_status(AGGREGATOR, status).await;
}

/// Reports the partition's health as it changes.
async fn follow_health(reporter: HealthReporter, mut health: watch::Receiver<Health>) {
    while health.changed().await.is_ok() {
        let status = match *health.borrow_and_update() {
            Health::Serving => ServingStatus::Serving,
            Health::Refusing(_) | Health::Failed(_) => ServingStatus::NotServing,
        };
        report_health(&reporter, status).await;
    }
}
