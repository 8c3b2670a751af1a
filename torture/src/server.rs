//! The program under torture, as a separate process.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use crate::Result;

/// How long a server may take to serve.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a server may take to end once asked to.
const STOP_MAX: Duration = Duration::from_secs(45);
/// How often to check whether a process has ended.
const END_POLL: Duration = Duration::from_millis(2);
/// How many lines of its output are kept.
const LINES_MAX: usize = 200;

/// Checks that a server can start, and makes the folder of data directories.
pub fn prepare(program: &Path, scratch: &Path) -> Result<()> {
    match program.is_file() {
        true => Ok(fs::create_dir_all(scratch)?),
        false => {
            let program = program.display();
            Err(format!("{program}: build it first: cargo build --release --bin oncelog").into())
        }
    }
}

/// A server. Killed when dropped.
pub struct Server {
    process: Process,
    /// Its address.
    pub address: String,
    /// How long it took to recover, by its own account.
    pub recovery_ms: u64,
}

/// A server that may not serve yet. Killed when dropped.
pub struct Starting {
    process: Process,
    serving: mpsc::Receiver<Serving>,
}

/// The line that a server logs when it serves.
struct Serving {
    address: String,
    recovery_ms: u64,
}

/// The resources that a server has used so far.
pub struct Usage {
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
    pub peak_rss_bytes: u64,
    pub open_files: u64,
}

impl Server {
    /// Starts `program` on a data directory and waits until it serves.
    pub fn start(program: &Path, data_dir: &Path, listen: &str) -> Result<Self> {
        Starting::spawn(&[], program, data_dir, listen, &[])?.serving()
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends SIGTERM and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.process.child), Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < STOP_MAX {
            if let Some(status) = self.process.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(END_POLL);
        }
        let seconds = STOP_MAX.as_secs();
        Err(format!(
            "it has not ended {seconds} s after SIGTERM:\n{}",
            self.said()
        )
        .into())
    }

    /// The last lines of its output.
    pub fn said(&self) -> String {
        self.process.said.text()
    }

    pub fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.process.child.id()));
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

impl Starting {
    /// Starts `program` on a data directory without waiting until it serves. `wrapped` is the command that starts
    /// it, such as `strace` with its options; empty for none.
    pub fn spawn(
        wrapped: &[&OsStr],
        program: &Path,
        data_dir: &Path,
        listen: &str,
        options: &[&str],
    ) -> Result<Self> {
        let mut words = wrapped.iter().copied().chain([program.as_os_str()]);
        let first = words.next().unwrap_or(program.as_os_str());
        let mut child = Command::new(first)
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
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let said = Said::default();
        let (serves, serving) = mpsc::channel();
        let heard = said.clone();
        std::thread::spawn(move || heard.listen(stderr, &serves));
        let process = Process { child, said };
        Ok(Self { process, serving })
    }

    /// Waits until it serves.
    pub fn serving(mut self) -> Result<Server> {
        let Ok(serving) = self.serving.recv_timeout(START_MAX) else {
            let end = match self.process.child.try_wait()? {
                Some(status) => format!("the server ended without serving, {status}"),
                None => format!("the server does not serve after {} s", START_MAX.as_secs()),
            };
            return Err(format!("{end}:\n{}", self.process.said.text()).into());
        };
        Ok(Server {
            process: self.process,
            address: serving.address,
            recovery_ms: serving.recovery_ms,
        })
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

/// Killed when dropped.
struct Process {
    child: Child,
    said: Said,
}

impl Process {
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.kill();
    }
}

/// The last lines of a process's output.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<VecDeque<String>>>);

impl Said {
    /// Reads its output to the end, so that a full pipe never stops it, and reports when it serves.
    fn listen(&self, stderr: ChildStderr, serves: &mpsc::Sender<Serving>) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // Lines that are not JSON say why it ends.
            let message: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(address), Some(recovery_ms)) =
                (message["address"].as_str(), message["recovery_ms"].as_u64())
            {
                let address = address.to_owned();
                // If it took too long, nobody waits for it any more.
                _ = serves.send(Serving {
                    address,
                    recovery_ms,
                });
            }
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}
