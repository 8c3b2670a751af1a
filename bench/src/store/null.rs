//! A server with the same contract and transport that counts events and stores nothing.
//!
//! Its cost is that of the RPC: no store behind this contract can be faster.

use std::{
    convert::Infallible,
    future::Future,
    path::Path,
    pin::Pin,
    process::Command,
    task::{Context, Poll},
};

use futures_util::stream::unfold;
use http::{Request, Response};
use oncelog::{
    grpc::wire::RawPublishRequest,
    proto::v1::{EventOutcome, Outcome, StreamingPublishResponse},
    server::{REQUEST_BYTES_MAX, transport},
};
use tokio::net::TcpListener;
use tonic::{
    Status, Streaming,
    body::Body,
    codegen::Service,
    server::{Grpc, NamedService, StreamingService},
    transport::server::TcpIncoming,
};
use tonic_prost::ProstCodec;

use super::{Keeps, Promise, Running, Store, oncelog::GrpcServer};
use crate::{Result, wire::take_field};

/// The null-store server, as a separate process: this program, started with its command.
pub struct Null;

#[tonic::async_trait(?Send)]
impl Store for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn promise(&self) -> Promise {
        Promise::new("nothing", "nowhere", false)
    }

    fn keeps(&self) -> Keeps {
        Keeps::Nothing
    }

    async fn start(&self, _dir: &Path) -> Result<Box<dyn Running>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE);
        Ok(Box::new(GrpcServer::spawn(command)?))
    }
}

/// The command that serves.
pub const SERVE: &str = "serve-null";

/// Serves until killed.
#[allow(clippy::print_stderr)]
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        eprintln!("{{\"address\":\"{}\"}}", listener.local_addr()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = transport().add_service(NullService);
        Ok(router.serve_with_incoming(incoming).await?)
    })
}

#[derive(Clone)]
struct NullService;

impl NamedService for NullService {
    const NAME: &'static str = "oncelog.v1.AggregatorService";
}

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
type Responses =
    Pin<Box<dyn futures_util::Stream<Item = Result<StreamingPublishResponse, Status>> + Send>>;

impl Service<Request<Body>> for NullService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async {
            if !request.uri().path().ends_with("/StreamingPublish") {
                return Ok(Status::unimplemented("it stores nothing").into_http());
            }
            let codec = ProstCodec::<StreamingPublishResponse, RawPublishRequest>::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
            Ok(grpc.streaming(NullService, request).await)
        })
    }
}

impl StreamingService<RawPublishRequest> for NullService {
    type Response = StreamingPublishResponse;
    type ResponseStream = Responses;
    type Future = BoxFuture<tonic::Response<Responses>, Status>;

    fn call(&mut self, request: tonic::Request<Streaming<RawPublishRequest>>) -> Self::Future {
        let state = (request.into_inner(), 0);
        let responses = unfold(state, |(mut requests, answered)| async move {
            let request = requests.message().await.transpose()?;
            let response = request.and_then(|request| answer(&request, answered + 1));
            Some((response, (requests, answered + 1)))
        });
        Box::pin(async { Ok(tonic::Response::new(Box::pin(responses) as Responses)) })
    }
}

fn answer(
    request: &RawPublishRequest,
    acknowledged_requests: u64,
) -> Result<StreamingPublishResponse, Status> {
    let mut rest = &request.0[..];
    let mut outcomes = Vec::new();
    loop {
        match take_field(&mut rest) {
            Ok(Some(_)) => outcomes.push(EventOutcome {
                outcome: Outcome::Stored.into(),
                sequence: acknowledged_requests,
                reason: String::new(),
            }),
            Ok(None) => break,
            Err(error) => return Err(Status::invalid_argument(error.to_string())),
        }
    }
    Ok(StreamingPublishResponse {
        acknowledged_requests,
        outcomes,
    })
}
