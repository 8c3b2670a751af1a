//! Generates the Rust side of the contract without protoc.
//!
//! Two passes over the same descriptors: one with all messages and the client, as any user of the contract
//! would generate them, and one with only the service trait, whose frequent messages are replaced by the raw
//! ones of `grpc::wire`, which keep events encoded.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO: &str = "oncelog/v1/aggregator.proto";
const PROTO_ROOT: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile([PROTO], [PROTO_ROOT])?;
    fs::write(out.join("oncelog.v1.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        // Ordered maps make the encoding of a message canonical.
        .btree_map(".")
        .compile_fds(descriptors.clone())?;

    let server = out.join("server");
    fs::create_dir_all(&server)?;
    tonic_prost_build::configure()
        .build_client(false)
        .out_dir(server)
        .extern_path(
            ".oncelog.v1.PublishRequest",
            "crate::grpc::wire::RawPublishRequest",
        )
        .extern_path(
            ".oncelog.v1.StreamingPublishRequest",
            "crate::grpc::wire::RawPublishRequest",
        )
        .extern_path(
            ".oncelog.v1.StreamingPublishResponse",
            "crate::grpc::wire::RawStreamingPublishResponse",
        )
        .extern_path(
            ".oncelog.v1.ListEventsResponse",
            "crate::grpc::wire::RawListEventsResponse",
        )
        .extern_path(".oncelog.v1", "crate::proto::v1")
        .compile_fds(descriptors)?;
    Ok(())
}
