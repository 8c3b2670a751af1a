//! oncelog itself: the real program, as a separate process.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use super::{Promise, Running, Store, Stream, grpc::GrpcStream};
use crate::{Result, event::Events, process::Process};

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
        let mut command = Command::new(&self.program);
        command.args(["serve", "--log-format", "json", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(dir);
        Ok(Box::new(GrpcServer::spawn(command)?))
    }
}

/// A process that serves oncelog's contract, and reports its address in a line of JSON on stderr.
pub struct GrpcServer {
    process: Process,
    address: String,
}

impl GrpcServer {
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::piped()).spawn();
        let program = Path::new(command.get_program()).display().to_string();
        let mut child = child.map_err(|error| format!("{program}: {error}"))?;
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let process = Process::new(child);
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        while let Some(line) = lines.next().transpose()? {
            // Lines that are not JSON say why it ends.
            let message: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = message["address"].as_str() {
                let address = address.to_owned();
                // A full pipe must not stop it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { process, address });
            }
            said = said + "\n" + &line;
        }
        Err(format!("{program} ended without serving:{said}").into())
    }
}

#[tonic::async_trait]
impl Running for GrpcServer {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>> {
        let stream = GrpcStream::connect(&self.address, events).await?;
        Ok(Box::new(stream))
    }
}
