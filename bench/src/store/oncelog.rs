//! oncelog itself: the real program, as a separate process.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use oncelog_harness::{
    process::Process,
    server::{self, Server, Starting},
};

use super::{Promise, Running, Store, Stream, grpc::GrpcStream};
use crate::{Result, event::Events};

pub struct Oncelog {
    pub program: PathBuf,
}

#[tonic::async_trait(?Send)]
impl Store for Oncelog {
    fn name(&self) -> &'static str {
        "oncelog"
    }

    fn promise(&self) -> Promise {
        Promise::new("fdatasync", "whole history", true)
    }

    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>> {
        let command = server::command(&[], &self.program, dir, "127.0.0.1:0", &[]);
        Ok(Box::new(GrpcServer::spawn(command)?))
    }
}

/// A process that serves the contract of oncelog.
pub struct GrpcServer(Server);

impl GrpcServer {
    pub fn spawn(command: Command) -> Result<Self> {
        Ok(Self(Starting::spawn(command)?.serving()?))
    }
}

#[tonic::async_trait]
impl Running for GrpcServer {
    fn process(&mut self) -> &mut Process {
        self.0.process()
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        let stream = GrpcStream::connect(&self.0.address, events).await?;
        Ok(Box::new(stream))
    }
}
