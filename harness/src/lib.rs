//! Code shared by oncelog's tests, benchmark and torture: servers as processes, misbehaving connections, the machine of
//! a measurement, and the format of figures.

pub mod chart;
pub mod disk;
pub mod frames;
pub mod machine;
pub mod number;
pub mod process;
pub mod proxy;
pub mod server;

/// Why a run ended early.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// The result of any function here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
