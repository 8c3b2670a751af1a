//! Disk faults, injected into system calls by strace.

use std::{ffi::OsString, fs, path::Path, process::Command};

use fastrand::Rng;

use crate::Result;

/// A fault, as arguments of strace.
pub struct Fault {
    /// The calls to fail, and how.
    inject: String,
    /// The system calls to trace.
    calls: &'static str,
}

/// Calls that fail from some point on.
struct Failing {
    calls: &'static str,
    error: &'static str,
    /// The most of them that may succeed before: hardly more than a round makes.
    before_max: u32,
}

/// Calls that write content or install it. Not `write`: the server writes its files with `pwrite64`, and wakes its own
/// threads with `write`, which no disk can make fail.
const WRITES: [Failing; 3] = [
    Failing {
        calls: "pwrite64",
        error: "EIO",
        before_max: 400,
    },
    Failing {
        calls: "pwrite64",
        error: "ENOSPC",
        before_max: 400,
    },
    Failing {
        calls: "rename,renameat,renameat2",
        error: "EIO",
        before_max: 3,
    },
];
/// Calls that make data durable.
const SYNCS: [Failing; 3] = [
    Failing {
        calls: "fdatasync",
        error: "EIO",
        before_max: 400,
    },
    Failing {
        calls: "fsync",
        error: "EIO",
        before_max: 8,
    },
    Failing {
        calls: ANY_SYNC,
        error: "EIO",
        before_max: 400,
    },
];
const ANY_SYNC: &str = "fdatasync,fsync";

impl Fault {
    /// A failing sync: once, or from then on.
    pub fn of_sync(random: &mut Rng) -> Self {
        Self::error(&SYNCS, random)
    }

    /// A failing write: once, or from then on.
    pub fn of_write(random: &mut Rng) -> Self {
        Self::error(&WRITES, random)
    }

    fn error(failing: &[Failing], random: &mut Rng) -> Self {
        let Failing {
            calls,
            error,
            before_max,
        } = failing[random.usize(..failing.len())];
        // Early ones as often as late ones: a start makes few calls.
        let most = (before_max >> random.u32(..8)).max(1);
        let (number, forever) = (random.u32(1..=most), if random.bool() { "+" } else { "" });
        Self {
            inject: format!("{calls}:error={error}:when={number}{forever}"),
            calls,
        }
    }

    /// Syncs that take milliseconds.
    pub fn of_slow_sync(random: &mut Rng) -> Self {
        let microseconds = random.u32(2_000..60_000);
        let calls = ANY_SYNC;
        Self {
            inject: format!("{calls}:delay_enter={microseconds}"),
            calls,
        }
    }

    /// A description of the fault.
    pub fn text(&self) -> &str {
        &self.inject
    }

    /// The command that starts a server so that it meets the fault; strace's output goes to `trace`.
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

/// Why faults cannot be injected; `None` if they can.
pub fn why_not() -> Option<String> {
    // It may be installed but not permitted.
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
