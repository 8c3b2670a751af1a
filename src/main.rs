//! The `oncelog` program.

fn main() {}
