//! Faults of the disk that strace puts in the way of system calls.

use std::{ffi::OsString, fs, path::Path, process::Command};

use fastrand::Rng;

use crate::Result;

/// How often calls that fail from some time on may succeed before, at most.
const CALLS_BEFORE_MAX: u32 = 400;

/// A fault, as strace is told.
pub struct Fault {
    /// What fails, and how.
    inject: String,
    /// System calls that are watched.
    calls: &'static str,
}

/// Calls that write content, and what can fail.
const WRITES: [(&str, &str); 4] = [
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("pwrite64,write", "ENOSPC"),
    ("rename,renameat,renameat2", "EIO"),
];
/// Calls that make durable.
const SYNCS: [&str; 3] = ["fdatasync", "fsync", "fdatasync,fsync"];

impl Fault {
    /// A sync that fails: once, or from then on.
    pub fn of_sync(random: &mut Rng) -> Self {
        Self::error(SYNCS[random.usize(..SYNCS.len())], "EIO", random)
    }

    /// A write that fails: once, or from then on.
    pub fn of_write(random: &mut Rng) -> Self {
        let (calls, error) = WRITES[random.usize(..WRITES.len())];
        Self::error(calls, error, random)
    }

    fn error(calls: &'static str, error: &str, random: &mut Rng) -> Self {
        // Early ones as often as late ones: a start makes few calls.
        let most = CALLS_BEFORE_MAX >> random.u32(..8);
        let (number, forever) = (random.u32(1..=most), if random.bool() { "+" } else { "" });
        Self {
            inject: format!("{calls}:error={error}:when={number}{forever}"),
            calls,
        }
    }

    /// Syncs that take milliseconds.
    pub fn of_slow_sync(random: &mut Rng) -> Self {
        let microseconds = random.u32(2_000..60_000);
        let calls = SYNCS[2];
        Self {
            inject: format!("{calls}:delay_enter={microseconds}"),
            calls,
        }
    }

    /// What fails, and how.
    pub fn text(&self) -> &str {
        &self.inject
    }

    /// What a server is started with, so that it meets the fault; what strace sees goes to `trace`.
    pub fn wrapped(&self, trace: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = [
            "strace",
            "-D",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-s",
            "0",
            "-o",
        ]
        .map(OsString::from)
        .into();
        words.push(trace.into());
        words.extend(["-e".into(), format!("trace={}", self.calls).into()]);
        words.extend(["-e".into(), format!("inject={}", self.inject).into()]);
        words
    }

    /// How many calls met it.
    pub fn count(trace: &Path) -> Result<u64> {
        let lines = fs::read(trace)?;
        let lines = String::from_utf8_lossy(&lines);
        let is_met = |line: &&str| line.contains("(INJECTED)") || line.contains("(DELAYED)");
        Ok(lines.lines().filter(is_met).count() as u64)
    }
}

/// Why no faults can be put in the way; `None` if they can.
pub fn why_not() -> Option<String> {
    // It may be there and not be allowed to.
    let tried = Command::new("strace")
        .args(["-D", "-qq", "-o", "/dev/null", "true"])
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "strace: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("strace: {error}")),
    }
}
