//! What the tests, the benchmark and the torture of oncelog share: servers as processes, connections that misbehave, and
//! where something was measured and how its figures are drawn.

pub mod chart;
pub mod disk;
pub mod frames;
pub mod machine;
pub mod number;
pub mod process;
pub mod proxy;
pub mod server;

/// Why a run ends early.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// Of whatever can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
