//! Code shared by oncelog's benchmark and torture: the machine and disk space of a measurement, and how figures are
//! formatted and drawn.

pub mod chart;
pub mod disk;
pub mod machine;
pub mod number;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;
