//! Figures as JSON.

use std::{fs, path::Path};

use oncelog_harness::machine::{self, Machine};
use serde::Serialize;

use crate::Result;

/// Figures, and how they were obtained.
#[derive(Serialize)]
struct Origin<'a, T> {
    date: String,
    command: String,
    machine: Machine,
    figures: &'a T,
}

/// Writes figures to a file, if one is given.
pub fn write(path: Option<&Path>, figures: &impl Serialize) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let origin = Origin {
        date: machine::today(),
        command: format!("oncelog-torture {}", arguments.join(" ")),
        machine: Machine::here(Path::new("."))?,
        figures,
    };
    let mut text = serde_json::to_string_pretty(&origin)?;
    text.push('\n');
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
