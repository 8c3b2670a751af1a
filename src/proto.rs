//! The code generated from `proto/oncelog/v1/aggregator.proto`, and its descriptor.

/// Messages and client of package `oncelog.v1`.
#[allow(missing_docs, clippy::wildcard_enum_match_arm)]
pub mod v1 {
    tonic::include_proto!("oncelog.v1");
}

/// The service trait, with the raw messages of [`crate::grpc::wire`] in place of the frequent ones.
#[allow(missing_docs)]
pub(crate) mod server {
    include!(concat!(env!("OUT_DIR"), "/server/oncelog.v1.rs"));
}

/// The encoded `google.protobuf.FileDescriptorSet` of the contract and all it imports.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/oncelog.v1.bin"));
