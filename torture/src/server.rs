//! The program under torture, as a process of its own.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use crate::Result;

/// A server. Killed when dropped.
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: String,
    /// How long it took to recover, by its own account.
    pub recovery_ms: u64,
}

/// What a server has used so far.
pub struct Usage {
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
    pub peak_rss_bytes: u64,
    pub open_files: u64,
}

impl Server {
    /// Starts `program` on a data directory and waits until it serves. `wrapped` is what starts it, such as `strace`
    /// with its options; empty for nothing.
    pub fn start(
        wrapped: &[&OsStr],
        program: &Path,
        data_dir: &Path,
        listen: &str,
        options: &[&str],
    ) -> Result<Self> {
        let mut words = wrapped.iter().copied().chain([program.as_os_str()]);
        let first = words.next().unwrap_or(program.as_os_str());
        let mut process = Command::new(first)
            .args(words)
            .args(["serve", "--log-format", "json", "--listen", listen])
            .arg("--data-dir")
            .arg(data_dir)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", Path::new(first).display()))?;
        let stderr = process.stderr.take().ok_or("no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        while let Some(line) = lines.next().transpose()? {
            // What is no JSON is why it ends.
            let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = told["address"].as_str() {
                let address = address.to_owned();
                let recovery_ms = told["recovery_ms"].as_u64().ok_or("no recovery_ms")?;
                // Nobody may be stopped by a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self {
                    process,
                    address,
                    recovery_ms,
                });
            }
            said.push_str(&line);
            said.push('\n');
        }
        process.wait()?;
        Err(format!("the server ended without serving:\n{said}").into())
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        Ok(self.process.wait()?)
    }

    pub fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.process.id()));
        let stat = fs::read_to_string(proc.join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
        // utime and stime are fields 14 and 15; the first here is field 3. See proc_pid_stat(5).
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        let status = fs::read_to_string(proc.join("status"))?;
        let bytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next());
            Ok(kib.ok_or("a line of status is missing")?.parse::<u64>()? * 1024)
        };
        Ok(Usage {
            cpu_seconds: ticks as f64 / clock_ticks_per_second() as f64,
            rss_bytes: bytes("VmRSS:")?,
            peak_rss_bytes: bytes("VmHWM:")?,
            open_files: fs::read_dir(proc.join("fd"))?.count() as u64,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.kill();
    }
}
