//! The stores' processes: started, watched and killed whole, with whatever they start themselves.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Child,
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use crate::Result;

/// A process and its descendants. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills all of it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        // The first first: it can start no others then, and none is missed.
        let tree = tree(self.child.id())?;
        self.child.kill()?;
        for pid in tree
            .iter()
            .skip(1)
            .filter_map(|pid| Pid::from_raw(*pid as i32))
        {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            _ = self.kill();
        }
    }
}

/// CPU seconds, user and system, of a process, its descendants, and those of them that have ended.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for pid in tree(pid)? {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => ticks += stat_ticks(&stat)?,
            // Ended meanwhile: from now on its parent has its time.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ticks as f64 / clock_ticks_per_second() as f64)
}

/// utime, stime, cutime and cstime, fields 14 to 17 of proc_pid_stat(5).
fn stat_ticks(stat: &str) -> Result<u64> {
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(4);
    Ok(ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}

/// The memory of a process, in bytes, if it has no descendants: its peak so far.
///
/// Of several, what they use now; what they share counts once.
pub fn memory_bytes(pid: u32) -> Result<u64> {
    let tree = tree(pid)?;
    if tree.len() == 1 {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = kib_of(&status, "VmHWM:").ok_or("no VmHWM")?;
        return Ok(kib * 1024);
    }
    let mut kib = 0;
    for pid in tree {
        match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(rollup) => kib += kib_of(&rollup, "Pss:").unwrap_or(0),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(kib * 1024)
}

/// Whether a process has started others.
pub fn has_children(pid: u32) -> Result<bool> {
    Ok(tree(pid)?.len() > 1)
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A process and its descendants, parents first.
fn tree(pid: u32) -> Result<Vec<u32>> {
    let mut tree = vec![pid];
    let mut at = 0;
    while let Some(pid) = tree.get(at) {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        at += 1;
        let tasks = match fs::read_dir(tasks) {
            Ok(tasks) => tasks,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            tree.extend(children.split_whitespace().flat_map(str::parse::<u32>));
        }
    }
    Ok(tree)
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH: the file was opened and the process has ended.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3)
}

/// The bytes a directory takes on disk.
pub fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed meanwhile.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        };
    }
    Ok(bytes)
}
