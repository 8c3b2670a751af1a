//! oncelog: an event aggregator that stores every event exactly once.

pub mod cli;
pub mod client;
pub mod config;
pub mod event;
pub mod grpc;
pub mod index;
pub mod log;
pub mod partition;
pub mod proto;
