//! `oncelog health`: whether the server is serving, for people and for health checks.

use std::{process::ExitCode, time::Duration};

use tokio::time::timeout;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{CallError, Outcome, client_runtime, connect, output::Output};
use crate::config::HealthArgs;

/// How long connecting and the reply may take together.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(args: HealthArgs) -> Outcome {
    client_runtime()?.block_on(async {
        let server = &*args.server.server;
        let Ok(checked) = timeout(TIMEOUT, check(server)).await else {
            let late = Status::deadline_exceeded(format!("no answer in {} s", TIMEOUT.as_secs()));
            return Err(CallError::new(server, late).into());
        };
        checked
    })
}

async fn check(server: &str) -> Outcome {
    let mut client = HealthClient::new(connect(server).await?);
    let request = HealthCheckRequest {
        // The whole server.
        service: String::new(),
    };
    let answer = client.check(request).await;
    let answer = answer.map_err(|status| CallError::new(server, status))?;
    let status = answer.into_inner().status();
    let mut output = Output::new();
    output.line(status.as_str_name().as_bytes())?;
    output.flush()?;
    Ok(match status {
        ServingStatus::Serving => ExitCode::SUCCESS,
        ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown => {
            ExitCode::FAILURE
        }
    })
}
