//! A server of oncelog's contract as a separate process: started, watched and stopped.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use crate::{
    Result,
    process::{Process, Usage},
};

/// How long a server may take to serve.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a server may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(45);
/// How many lines of its log are kept.
const LINES_MAX: usize = 200;

/// Checks that the program was built, and creates the directory of its data directories.
pub fn prepare(program: &Path, scratch: &Path) -> Result<()> {
    match program.is_file() {
        true => Ok(fs::create_dir_all(scratch)?),
        false => {
            let program = program.display();
            Err(format!("{program}: build it first: cargo build --release --bin oncelog").into())
        }
    }
}

/// The command that starts `program` on a data directory. `wrapper` runs it, such as `strace` with its options; empty
/// for none.
pub fn command(
    wrapper: &[&OsStr],
    program: &Path,
    data_dir: &Path,
    listen: &str,
    options: &[&str],
) -> Command {
    let mut words = wrapper.iter().copied().chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
    command
        .args(words)
        .args(["serve", "--log-format", "json", "--listen", listen])
        .arg("--data-dir")
        .arg(data_dir)
        .args(options);
    command
}

/// A server. Killed when dropped.
pub struct Server {
    process: Process,
    log: LogLines,
    /// Its address.
    pub address: String,
    /// How long its recovery took, by its log.
    pub recovery_ms: u64,
}

/// A server that may not serve yet. Killed when dropped.
pub struct Starting {
    process: Process,
    log: LogLines,
    serving: mpsc::Receiver<Serving>,
    /// The first word of its command.
    program: String,
}

/// The line that a server logs when it serves.
struct Serving {
    address: String,
    recovery_ms: u64,
}

impl Server {
    /// Starts `program` on a data directory with default options, and waits until it serves.
    pub fn start(program: &Path, data_dir: &Path, listen: &str) -> Result<Self> {
        Starting::spawn(command(&[], program, data_dir, listen, &[]))?.serving()
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends SIGTERM and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let ended = self.process.terminate(STOP_MAX)?;
        let seconds = STOP_MAX.as_secs();
        let log = || format!("still running {seconds} s after SIGTERM:\n{}", self.log());
        Ok(ended.ok_or_else(log)?)
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Its current resources.
    pub fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Starting {
    /// Starts a server that logs JSON to standard error, and does not wait until it serves.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::piped()).spawn();
        let program = Path::new(command.get_program()).display().to_string();
        let mut child = child.map_err(|error| format!("{program}: {error}"))?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        let process = Process::new(child);
        let log = LogLines::default();
        let (serves, serving) = mpsc::channel();
        let lines = log.clone();
        std::thread::spawn(move || lines.read(stderr, &serves));
        Ok(Self {
            process,
            log,
            serving,
            program,
        })
    }

    /// Waits until it serves.
    pub fn serving(mut self) -> Result<Server> {
        let Ok(serving) = self.serving.recv_timeout(START_MAX) else {
            let program = &self.program;
            let end = match self.process.try_wait()? {
                Some(status) => format!("{program} ended without serving, {status}"),
                None => format!("{program} does not serve after {} s", START_MAX.as_secs()),
            };
            return Err(format!("{end}:\n{}", self.log.text()).into());
        };
        Ok(Server {
            process: self.process,
            log: self.log,
            address: serving.address,
            recovery_ms: serving.recovery_ms,
        })
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

/// The last lines of a log.
#[derive(Clone, Default)]
struct LogLines(Arc<Mutex<VecDeque<String>>>);

impl LogLines {
    /// Reads the log to its end, so that the server never blocks on a full pipe, and reports when it serves.
    fn read(&self, stderr: ChildStderr, serves: &mpsc::Sender<Serving>) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // A line that is not JSON is an error that ends the server.
            let logged: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = logged["address"].as_str() {
                let serving = Serving {
                    address: address.to_owned(),
                    recovery_ms: logged["recovery_ms"].as_u64().unwrap_or(0),
                };
                // If it took too long, nobody waits for it any more.
                _ = serves.send(serving);
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
