//! `oncelog verify` and its output.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::Result;

/// The verdict of `oncelog verify` on an undamaged log.
pub struct Verdict {
    /// Whether it found nothing.
    is_clean: bool,
    text: String,
}

impl Verdict {
    /// An error if it found anything.
    pub fn clean(self) -> Result<()> {
        match self.is_clean {
            true => Ok(()),
            false => Err(format!("oncelog verify:\n{}", self.text).into()),
        }
    }
}

/// Runs it on a data directory without a server. An error if it reports damage to the log.
pub fn verify(program: &Path, data_dir: &Path) -> Result<Verdict> {
    let output = Command::new(program)
        .args(["verify", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let is_clean = match output.status.code() {
        Some(0) => true,
        Some(1) => false,
        _ => return Err(format!("oncelog verify ended with {}:\n{text}", output.status).into()),
    };
    // A batch cut off by a crash is not damage, and verify says so.
    let is_damage = |line: &str| line.starts_with("log:") && !line.contains("if a crash left it");
    if text.lines().any(is_damage) {
        return Err(format!("oncelog verify: the log is damaged:\n{text}").into());
    }
    Ok(Verdict { is_clean, text })
}
