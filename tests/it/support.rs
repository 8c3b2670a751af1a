//! Servers, clients and events for the tests.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc as std_mpsc},
    time::Duration,
};

use oncelog::{
    event::Sequence,
    partition::{Account, Budget, Share},
    proto::v1::{self, aggregator_service_client::AggregatorServiceClient},
    server::{Server, ServerError, ServerOptions},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

pub type Client = AggregatorServiceClient<Channel>;

/// A data directory that lives as long as the test.
#[derive(Clone)]
pub struct DataDir(Arc<TempDir>);

impl DataDir {
    pub fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().expect("a directory")))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The files of the log, in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        files(&self.path().join("log"), |name| name.ends_with(".log"))
    }

    /// The folders of the generations, in order.
    pub fn generations(&self) -> Vec<PathBuf> {
        files(&self.path().join("index"), |name| {
            name.starts_with(|first: char| first.is_ascii_digit()) && !name.contains('.')
        })
    }

    pub fn options(&self) -> ServerOptions {
        ServerOptions::new(self.path())
    }
}

fn files(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| is_wanted(&path.file_name().expect("a name").to_string_lossy()))
        .collect();
    paths.sort();
    paths
}

/// A server in this process.
pub struct TestServer {
    pub data_dir: DataDir,
    pub server: Server,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_in(DataDir::new()).await
    }

    pub async fn start_in(data_dir: DataDir) -> Self {
        let options = data_dir.options();
        Self::start_with(data_dir, options).await
    }

    pub async fn start_with(data_dir: DataDir, options: ServerOptions) -> Self {
        Self::try_start(data_dir, options).await.expect("started")
    }

    pub async fn try_start(data_dir: DataDir, options: ServerOptions) -> Result<Self, ServerError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Server::start(listener, options).await?;
        Ok(Self { data_dir, server })
    }

    pub async fn stop(self) -> DataDir {
        self.server.stop().await.expect("stopped in order");
        self.data_dir
    }

    pub async fn restart(self) -> Self {
        Self::start_in(self.stop().await).await
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.endpoint()).expect("an address");
        endpoint.connect().await.expect("connected")
    }

    pub async fn client(&self) -> Client {
        Client::new(self.channel().await).max_decoding_message_size(16 << 20)
    }
}

/// Takes everything the budget has for requests, as many connections would.
pub fn take_all(budget: &Budget) -> Vec<Share> {
    const BYTES: usize = 1024;
    let mut taken = Vec::new();
    loop {
        let mut share = budget.share(&Account::default(), BYTES);
        if !share.try_grow(BYTES) {
            return taken;
        }
        taken.push(share);
    }
}

/// How long a condition may take. Much longer than it needs, so that only a hang fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, letting everything else run meanwhile.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// Fails instead of hanging.
pub async fn patiently<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// The program with its arguments, without its environment variables.
pub fn oncelog(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncelog"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ONCELOG_") {
            command.env_remove(name);
        }
    }
    command
}

/// How a program ended, and its output.
#[derive(Debug)]
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// The lines of standard output, which are JSON.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("JSON")).collect()
    }
}

/// Runs a command that ends by itself.
pub fn run(command: &mut Command) -> Ended {
    run_with_input(command, "")
}

pub fn run_with_input(command: &mut Command, input: &str) -> Ended {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        // A program that does not want its input closes the pipe.
        scope.spawn(move || _ = stdin.write_all(input.as_bytes()));
        child.wait_with_output().expect("ended")
    });
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A serving program. Killed when dropped.
pub struct Process {
    child: Child,
    stderr: std_mpsc::Receiver<String>,
    pub address: String,
    /// The log line that reports that it is serving.
    pub started: serde_json::Value,
}

impl Process {
    /// Serves a data directory on its own port.
    pub fn start(data_dir: &DataDir) -> Self {
        Self::spawn(&mut Self::command(data_dir, "127.0.0.1:0")).expect("serving")
    }

    /// Serves on the address of an earlier server.
    pub fn start_again(data_dir: &DataDir, address: &str) -> Self {
        const TRIES: usize = 100;
        let mut refusal = None;
        for _ in 0..TRIES {
            match Self::spawn(&mut Self::command(data_dir, address)) {
                Ok(process) => return process,
                Err(ended) if ended.stderr.contains("in use") => refusal = Some(ended),
                Err(ended) => panic!("{ended:?}"),
            }
        }
        panic!("{address} stays busy: {refusal:?}");
    }

    pub fn command(data_dir: &DataDir, listen: &str) -> Command {
        let mut command = oncelog(&["serve", "--log-format", "json", "--listen", listen]);
        command.arg("--data-dir").arg(data_dir.path());
        command
    }

    /// Runs a command that serves and logs JSON. Returns how it ended if it did before serving.
    pub fn spawn(command: &mut Command) -> Result<Self, Ended> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("started");
        let stderr = child.stderr.take().expect("piped");
        let (lines, received) = std_mpsc::channel();
        // Read to the end, whether or not anyone listens: a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                _ = lines.send(line.expect("text"));
            }
        });
        let mut process = Self {
            child,
            stderr: received,
            address: String::new(),
            started: serde_json::Value::Null,
        };
        let mut before = String::new();
        while let Ok(line) = process.stderr.recv() {
            let json = serde_json::from_str(&line).unwrap_or(serde_json::Value::Null);
            if let Some(address) = json["address"].as_str() {
                process.address = address.to_owned();
                process.started = json;
                return Ok(process);
            }
            before += &line;
            before += "\n";
        }
        let mut ended = process.wait();
        ended.stderr.insert_str(0, &before);
        Err(ended)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn client(&self) -> Client {
        let client = Client::connect(self.endpoint()).await.expect("connected");
        client.max_decoding_message_size(16 << 20)
    }

    /// Runs a command that talks to this server.
    pub fn run(&self, args: &[&str]) -> Ended {
        run(&mut self.oncelog(args))
    }

    /// A command that talks to this server.
    pub fn oncelog(&self, args: &[&str]) -> Command {
        let mut command = oncelog(args);
        command.arg("--server").arg(self.endpoint());
        command
    }

    /// Sets its limit on `resource`, named as in prlimit(1), from now on; `unlimited` for none.
    pub fn limit(&self, resource: &str, limit: &str) {
        // Only the soft limit: it can be raised again.
        let resource = format!("--{resource}={limit}:");
        let pid = self.child.id().to_string();
        let set = Command::new("prlimit")
            .args(["--pid", &pid, &resource])
            .status();
        assert!(set.expect("prlimit runs").success());
    }

    /// The lines logged since it started to serve, or since the last call.
    pub fn logged(&self) -> Vec<serde_json::Value> {
        let lines = self.stderr.try_iter();
        lines
            .map(|line| serde_json::from_str(&line).expect("JSON"))
            .collect()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGTERM; returns how it ended.
    pub fn terminate(mut self) -> Ended {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.expect("kill runs").success());
        self.wait()
    }

    fn wait(&mut self) -> Ended {
        let status = self.child.wait().expect("ended");
        let stderr: Vec<String> = self.stderr.iter().collect();
        Ended {
            code: status.code(),
            stdout: String::new(),
            stderr: stderr.join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Flips a bit of the byte at `offset`.
pub fn flip(file: &Path, offset: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .expect("within the file");
    file.write_all_at(&[byte[0] ^ 0x10], offset)
        .expect("written");
}

/// The next pseudo-random number. George Marsaglia, "Xorshift RNGs", 2003.
pub fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

/// A valid event without payload.
pub fn event(topic: &str, event_id: impl ToString) -> v1::Event {
    v1::Event {
        topic: topic.to_owned(),
        event_id: event_id.to_string(),
        timestamp: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        }),
        source: "test".to_owned(),
        payload: None,
        attributes: BTreeMap::new(),
    }
}

/// Many valid events of one topic.
pub fn events(topic: &str, ids: impl IntoIterator<Item = u64>) -> Vec<v1::Event> {
    ids.into_iter().map(|id| event(topic, id)).collect()
}

/// An event with a payload.
pub fn event_with_data(topic: &str, event_id: impl ToString, data: Vec<u8>) -> v1::Event {
    v1::Event {
        payload: Some(v1::event::Payload::Data(data.into())),
        ..event(topic, event_id)
    }
}

/// Publishes requests on one Publish stream.
pub async fn try_publish(
    client: &mut Client,
    requests: Vec<Vec<v1::Event>>,
) -> Result<v1::PublishResponse, Status> {
    let requests = requests
        .into_iter()
        .map(|events| v1::PublishRequest { events });
    let response = client.publish(tokio_stream::iter(requests)).await?;
    Ok(response.into_inner())
}

/// Publishes events in one request.
pub async fn publish(client: &mut Client, events: Vec<v1::Event>) -> v1::PublishResponse {
    try_publish(client, vec![events]).await.expect("published")
}

/// A StreamingPublish driven step by step.
pub struct PublishStream {
    pub requests: mpsc::Sender<v1::StreamingPublishRequest>,
    pub responses: Streaming<v1::StreamingPublishResponse>,
}

impl PublishStream {
    pub async fn open(client: &mut Client) -> Self {
        let (requests, rx) = mpsc::channel(16);
        let responses = client.streaming_publish(ReceiverStream::new(rx)).await;
        Self {
            requests,
            responses: responses.expect("opened").into_inner(),
        }
    }

    pub async fn send(&self, events: Vec<v1::Event>) {
        let request = v1::StreamingPublishRequest { events };
        self.requests.send(request).await.expect("open");
    }

    pub async fn receive(&mut self) -> Result<Option<v1::StreamingPublishResponse>, Status> {
        self.responses.message().await
    }

    /// Sends a request and returns the outcomes of its events.
    pub async fn publish(&mut self, events: Vec<v1::Event>) -> Vec<(v1::Outcome, Sequence)> {
        self.send(events).await;
        let response = self.receive().await.expect("alive").expect("a response");
        outcomes(&response)
    }
}

pub fn outcomes(response: &v1::StreamingPublishResponse) -> Vec<(v1::Outcome, Sequence)> {
    let outcomes = response.outcomes.iter();
    outcomes
        .map(|outcome| (outcome.outcome(), outcome.sequence))
        .collect()
}

pub fn list_request(topic: &str) -> v1::ListEventsRequest {
    v1::ListEventsRequest {
        topic: topic.to_owned(),
        ..v1::ListEventsRequest::default()
    }
}

/// All responses of a ListEvents that ends.
pub async fn list_responses(
    client: &mut Client,
    request: v1::ListEventsRequest,
) -> Vec<v1::ListEventsResponse> {
    assert!(!request.follow, "would not end");
    let mut stream = client
        .list_events(request)
        .await
        .expect("listed")
        .into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await.expect("alive") {
        responses.push(response);
    }
    responses
}

/// All events of a topic, or of all.
pub async fn list(client: &mut Client, topic: &str) -> Vec<v1::StoredEvent> {
    let responses = list_responses(client, list_request(topic)).await;
    responses.into_iter().flat_map(|r| r.events).collect()
}

pub fn ids(events: &[v1::StoredEvent]) -> Vec<&str> {
    let events = events.iter().map(|stored| stored.event.as_ref());
    events
        .map(|event| &*event.expect("an event").event_id)
        .collect()
}

pub fn sequences(events: &[v1::StoredEvent]) -> Vec<Sequence> {
    events.iter().map(|stored| stored.sequence).collect()
}

pub async fn stats(client: &mut Client) -> v1::GetStatsResponse {
    let stats = client.get_stats(v1::GetStatsRequest::default()).await;
    stats.expect("stats").into_inner()
}

/// How many events had each outcome. They add up to the number received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub stored: u64,
    /// Includes the conflicts.
    pub duplicates: u64,
    pub conflicts: u64,
    pub rejected: u64,
}

impl Counts {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn stored(self, stored: u64) -> Self {
        Self { stored, ..self }
    }

    pub fn duplicates(self, duplicates: u64) -> Self {
        Self { duplicates, ..self }
    }

    pub fn conflicts(self, conflicts: u64) -> Self {
        Self { conflicts, ..self }
    }

    pub fn rejected(self, rejected: u64) -> Self {
        Self { rejected, ..self }
    }

    /// The same counts, which must add up to `received`.
    pub fn balanced(self, received: u64) -> Self {
        assert_eq!(
            received,
            self.stored + self.duplicates + self.rejected,
            "{self:?}"
        );
        assert!(self.conflicts <= self.duplicates, "{self:?}");
        self
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            stored: self.stored + other.stored,
            duplicates: self.duplicates + other.duplicates,
            conflicts: self.conflicts + other.conflicts,
            rejected: self.rejected + other.rejected,
        }
    }
}

/// The counters of a server.
pub async fn counters(client: &mut Client) -> Counts {
    let stats = stats(client).await;
    let counts = Counts {
        stored: stats.unique_processed,
        duplicates: stats.duplicate_dropped,
        conflicts: stats.conflicts,
        rejected: stats.rejected,
    };
    counts.balanced(stats.received)
}

/// The totals of a Publish stream.
pub fn totals(response: v1::PublishResponse) -> Counts {
    let counts = Counts {
        stored: response.unique_processed,
        duplicates: response.duplicate_dropped,
        conflicts: response.conflicts,
        rejected: 0,
    };
    counts.balanced(response.received)
}

pub async fn get_event(
    client: &mut Client,
    topic: &str,
    id: &str,
) -> Result<v1::StoredEvent, Status> {
    let request = v1::GetEventRequest {
        topic: topic.to_owned(),
        event_id: id.to_owned(),
    };
    let response = client.get_event(request).await?.into_inner();
    Ok(response.event.expect("an event"))
}
