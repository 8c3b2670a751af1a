//! The gRPC edge.

pub mod wire;
