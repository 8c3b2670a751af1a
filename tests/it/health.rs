//! grpc.health.v1, and reflection in both versions.

use std::time::Instant;

use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{TestServer, patiently};

const AGGREGATOR: &str = "oncelog.v1.AggregatorService";

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn the_server_and_its_service_are_serving() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in ["", AGGREGATOR] {
        let answer = health.check(request(service)).await.expect("known");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let error = health.check(request("oncelog.v1.Other")).await;
    assert_eq!(error.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn watchers_see_the_stop_and_do_not_delay_it() {
    let server = TestServer::start().await;
    let mut watches = Vec::new();
    for service in ["", AGGREGATOR] {
        let mut health = HealthClient::new(server.channel().await);
        let watch = health.watch(request(service)).await.expect("watching");
        let mut watch = watch.into_inner();
        let first = watch.message().await.expect("alive").expect("a status");
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let grace = server.data_dir.options().grace;
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < grace, "watchers held up the stop");
    for mut watch in watches {
        let last = watch.message().await.expect("alive").expect("a status");
        assert_eq!(last.status(), ServingStatus::NotServing);
    }
}

/// The same test for both versions of the reflection protocol, which differ only in their package.
macro_rules! reflection_test {
    ($test:ident, $version:ident) => {
        #[tokio::test]
        async fn $test() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let server = TestServer::start().await;
            let mut client = ServerReflectionClient::new(server.channel().await);
            let ask = |message| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message),
            };
            let questions = [
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol(AGGREGATOR.to_owned())),
                ask(MessageRequest::FileContainingSymbol(
                    "google.rpc.ErrorInfo".to_owned(),
                )),
                ask(MessageRequest::FileContainingSymbol(
                    "oncelog.v1.Other".to_owned(),
                )),
            ];
            let answers = client
                .server_reflection_info(tokio_stream::iter(questions))
                .await;
            let mut answers = answers.expect("answered").into_inner();

            let answer = answers.message().await.expect("alive").expect("services");
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("{answer:?}");
            };
            let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
            for name in [AGGREGATOR, "grpc.health.v1.Health"] {
                assert!(names.contains(&name), "{names:?}");
            }

            let answer = answers.message().await.expect("alive").expect("a file");
            let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response
            else {
                panic!("{answer:?}");
            };
            let files = files.file_descriptor_proto.iter();
            let files: Vec<_> = files
                .map(|file| FileDescriptorProto::decode(&**file).expect("a descriptor"))
                .collect();
            let contract = files.iter().find(|file| file.package() == "oncelog.v1");
            let services = &contract.expect("the contract").service;
            assert_eq!(services[0].name(), "AggregatorService");
            let methods: Vec<_> = services[0].method.iter().map(|rpc| rpc.name()).collect();
            let expected = [
                "Publish",
                "StreamingPublish",
                "ListEvents",
                "GetEvent",
                "GetStats",
            ];
            assert_eq!(methods, expected);

            // The types of error details are readable too.
            let answer = answers.message().await.expect("alive").expect("a file");
            let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response
            else {
                panic!("{answer:?}");
            };
            let files = files.file_descriptor_proto.iter();
            let mut messages = files.flat_map(|file| {
                let file = FileDescriptorProto::decode(&**file).expect("a descriptor");
                file.message_type
            });
            assert!(messages.any(|message| message.name() == "ErrorInfo"));

            let end = patiently("an answer", answers.message()).await;
            let unknown = match end {
                Ok(answer) => matches!(
                    answer.expect("an answer").message_response,
                    Some(MessageResponse::ErrorResponse(error))
                        if error.error_code == Code::NotFound as i32
                ),
                Err(status) => status.code() == Code::NotFound,
            };
            assert!(unknown, "an unknown symbol is not found");
        }
    };
}

reflection_test!(reflection_v1_serves_the_contract, v1);
reflection_test!(reflection_v1alpha_serves_the_contract, v1alpha);
