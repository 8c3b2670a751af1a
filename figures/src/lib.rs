//! What the benchmark and the torture of oncelog share: where something was measured, how much disk it took, and how
//! figures are written and drawn.

pub mod chart;
pub mod disk;
pub mod machine;
pub mod number;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;
