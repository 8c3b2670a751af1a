//! Processes: started, measured and killed together with all their descendants.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use crate::Result;

/// The file that collects the output of [`Process::spawn`].
const OUTPUT: &str = "output";
/// How often to check whether a process has ended.
const END_POLL: Duration = Duration::from_millis(2);

/// A process and its descendants. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// The resources of a process, current and total.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, including its descendants.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// The most resident memory so far.
    pub peak_rss_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
}

impl Process {
    /// Watches a child.
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    /// Starts a process whose output goes to `dir/output`.
    pub fn spawn(mut command: Command, dir: &Path) -> Result<Self> {
        let output = fs::File::create(dir.join(OUTPUT))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?);
        let child = command.stderr(output).spawn();
        let program = Path::new(command.get_program()).display().to_string();
        let child = child.map_err(|error| format!("{program}: {error}"))?;
        Ok(Self { child })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.try_wait()?.is_some())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGTERM and waits for its end. `None` if it takes longer than `time`.
    pub fn terminate(&mut self, time: Duration) -> Result<Option<ExitStatus>> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < time {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(END_POLL);
        }
        Ok(None)
    }

    /// Its current resources.
    pub fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let bytes = |name| kib_of(&status, name).map(|kib| kib * 1024);
        Ok(Usage {
            cpu_seconds: cpu_seconds(self.id())?,
            rss_bytes: bytes("VmRSS:").ok_or("no VmRSS")?,
            peak_rss_bytes: bytes("VmHWM:").ok_or("no VmHWM")?,
            open_files: fs::read_dir(proc.join("fd"))?.count() as u64,
        })
    }

    /// Kills all of it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        // Parents first: they can then start no others, and none is missed.
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

/// Finds a program on the `PATH` or in one of `places`.
pub fn find_program(name: &str, places: &[PathBuf]) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path)
        .chain(places.iter().cloned())
        .map(|folder| folder.join(name));
    let found = programs.find(|program| program.is_file());
    found.ok_or_else(|| format!("{name} is not installed").into())
}

/// The user that a process runs as.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Its id.
    pub uid: u32,
    /// The id of its group.
    pub gid: u32,
}

impl User {
    /// The first of `names` that exists, if this program runs as root.
    pub fn instead_of_root(names: &[&str]) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let find = |name: &&str| {
            let mut fields = users
                .lines()
                .map(|line| line.split(':'))
                .find(|fields| fields.clone().next() == Some(*name))?
                .skip(2)
                .map_while(|field| field.parse().ok());
            let (uid, gid) = (fields.next()?, fields.next()?);
            Some(Self { uid, gid })
        };
        let user = names.iter().find_map(find);
        user.map(Some)
            .ok_or_else(|| format!("does not run as root, and there is no user {names:?}").into())
    }
}

/// CPU seconds, user and system, of a process and its descendants, including those that have ended.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for pid in tree(pid)? {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => ticks += stat_ticks(&stat)?,
            // It has just ended: from now on its parent has its time.
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

/// The memory of a process, in bytes: without descendants, its peak so far.
///
/// With descendants, their current memory; shared memory counts once.
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
    // ESRCH: the process ended after the file was opened.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_process_is_killed_with_what_it_has_started() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo started; wait"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("works");
        let mut output = BufReader::new(child.stdout.take().expect("works"));
        let mut process = Process::new(child);
        let mut said = String::new();
        output.read_line(&mut said).expect("works");
        assert_eq!(said, "started\n");
        assert!(has_children(process.id()).expect("works"));
        assert!(memory_bytes(process.id()).expect("works") > 0);
        process.kill().expect("works");
        // Both kept the pipe open.
        said.clear();
        assert_eq!(output.read_line(&mut said).expect("works"), 0);
    }

    #[test]
    fn cpu_time_counts_processes_that_have_ended() {
        let stat = "1 (a) name) S 0 1 1 0 -1 0 0 0 0 0 11 22 33 44 20 0 1 0 5";
        assert_eq!(stat_ticks(stat).expect("works"), 110);
        assert!(stat_ticks("no stat").is_err());
    }
}
