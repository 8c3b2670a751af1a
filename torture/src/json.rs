//! Figures for machines.

use std::{fs, path::Path};

use serde::Serialize;

use crate::Result;

/// Writes figures to a file, if one is given.
pub fn write(path: Option<&Path>, figures: &impl Serialize) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
