//! The place and time of a measurement.

use std::{fs, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::Result;

/// The machine, by its own description.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The model of its processor.
    pub cpu: String,
    /// How many threads run at once.
    pub cores: usize,
    /// All memory.
    pub memory_bytes: u64,
    /// The file system, and its device.
    pub disk: String,
    /// The kernel and its release.
    pub kernel: String,
}

impl Machine {
    /// This machine, with the disk below `dir`.
    pub fn here(dir: &Path) -> Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let cpu = value_of(&cpu, "model name").unwrap_or("unknown").to_owned();
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = value_of(&memory, "MemTotal").and_then(|total| total.split(' ').next());
        let system = rustix::system::uname();
        Ok(Self {
            cpu,
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory.unwrap_or("0").parse::<u64>()? * 1024,
            disk: disk(&dir.canonicalize()?)?,
            kernel: format!(
                "{} {}",
                system.sysname().to_string_lossy(),
                system.release().to_string_lossy()
            ),
        })
    }
}

/// The value of the first line `name: value`.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
    Some(value.trim())
}

/// The file system that holds `dir`, and its device. See proc_pid_mountinfo(5).
fn disk(dir: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = (0, "unknown".to_owned());
    for mount in mounts.lines() {
        let Some((head, tail)) = mount.split_once(" - ") else {
            continue;
        };
        let point = Path::new(head.split(' ').nth(4).ok_or("no mount point")?);
        let mut tail = tail.split(' ');
        let (kind, source) = (tail.next().unwrap_or(""), tail.next().unwrap_or(""));
        let depth = point.components().count();
        // Of two on the same mount point the later one is on top.
        if dir.starts_with(point) && depth >= found.0 {
            found = (depth, format!("{kind} on {source}"));
        }
    }
    Ok(found.1)
}

/// The date of today, in UTC.
pub fn today() -> String {
    let now = prost_types::Timestamp::from(SystemTime::now()).to_string();
    now.chars().take_while(|char| *char != 'T').collect()
}
