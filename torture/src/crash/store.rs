//! A data directory across rounds: its server, the memory of it, and the comparison of the two.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use oncelog::{
    client::{Reader, ReaderOptions},
    proto::v1::{GetStatsResponse, ListEventsRequest},
};
use oncelog_harness::server::{self, Server, Starting};
use tonic::Status;

use super::{
    disk::Place,
    follower::Follower,
    load::{Load, PublishFailed, Shape, Target, check_refusal},
    memory::{Counts, Memory, Sent},
};

use crate::{
    Result,
    client::stats,
    event::Events,
    verify::{Verdict, verify},
};

/// The server's grace period.
const GRACE_SECONDS: &str = "10";
/// How long a stop may take by our clock.
const GRACE_MAX: Duration = Duration::from_secs(15);
/// How long a failing list is retried.
const LIST_RETRY_MAX: Duration = Duration::from_secs(3);
/// Events per request when stored events are published again.
const RESEND_EVENTS: usize = 500;

/// Text that a server must never print.
const PANIC: &str = "panicked at";

/// A data directory, and everything that belongs to it.
pub struct Store {
    program: PathBuf,
    pub place: Place,
    /// The same after every start.
    address: String,
    pub target: Target,
    server: Option<Server>,
    followers: Vec<Follower>,
    /// The counters at the last stop, if the next start must have the same.
    counters: Option<[u64; 5]>,
    /// How long the last start took to recover.
    pub recovery_ms: u64,
    /// Whether sled may have panicked on a damaged file; it asserts its reads.
    pub may_panic: bool,
}

impl Store {
    /// A store of `events` in a new data directory at `place`.
    pub fn new(program: &Path, place: Place, events: Events) -> Self {
        let target = Target {
            address: String::new(),
            events,
            memory: Arc::new(Memory::default()),
        };
        Self {
            program: program.to_owned(),
            place,
            address: format!("{}:0", host()),
            followers: vec![Follower::new(String::new()), Follower::new(events.topic(0))],
            target,
            server: None,
            counters: None,
            recovery_ms: 0,
            may_panic: false,
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// Keeps the data directory of a killed server, and returns its path.
    pub fn keep(self) -> Result<PathBuf> {
        let Self { place, server, .. } = self;
        drop(server);
        place.keep()
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.target.memory.counts()
    }

    /// Starts the server; readers continue, and saved counters must be unchanged.
    pub async fn start(&mut self) -> Result<()> {
        self.start_wrapped(&[]).await?;
        if let Some(before) = self.counters.take() {
            let now = counters(&stats(&self.target.address).await?);
            if now != before {
                return Err(format!(
                    "a stop in order changed the counters from {before:?} to {now:?}"
                )
                .into());
            }
        }
        Ok(())
    }

    /// Starts the server under a wrapper like strace.
    pub async fn start_wrapped(&mut self, wrapped: &[OsString]) -> Result<()> {
        let server = self.spawn(wrapped)?.serving()?;
        self.serves(server)
    }

    /// Starts the server without waiting.
    pub fn spawn(&self, wrapped: &[OsString]) -> Result<Starting> {
        let wrapped: Vec<&OsStr> = wrapped.iter().map(OsString::as_os_str).collect();
        let options = ["--grace-seconds", GRACE_SECONDS];
        Starting::spawn(server::command(
            &wrapped,
            &self.program,
            &self.data_dir(),
            &self.address,
            &options,
        ))
    }

    fn serves(&mut self, server: Server) -> Result<()> {
        self.address.clone_from(&server.address);
        self.target.address.clone_from(&server.address);
        self.recovery_ms = server.recovery_ms;
        self.server = Some(server);
        for follower in &mut self.followers {
            follower.resume(&self.target)?;
        }
        Ok(())
    }

    pub fn load(&self, shape: Shape, random: &mut Rng) -> Load {
        Load::start(&self.target, shape, random)
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        self.counters = None;
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            self.check_said(&server)?;
        }
        self.pause_followers().await
    }

    /// SIGTERM, after which it must end cleanly and in time.
    pub async fn terminate(&mut self) -> Result<()> {
        self.counters = None;
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        let asked = Instant::now();
        let status = server.terminate()?;
        let took = asked.elapsed();
        if !status.success() {
            return Err(format!("SIGTERM ended it with {status}:\n{}", server.log()).into());
        }
        if took > GRACE_MAX {
            return Err(
                format!("it took {took:?} to stop; the grace period is {GRACE_SECONDS} s").into(),
            );
        }
        self.check_said(&server)?;
        self.pause_followers().await
    }

    /// SIGTERM to a server that nobody uses, whose counters must survive.
    pub async fn stop(&mut self) -> Result<()> {
        let before = counters(&stats(&self.target.address).await?);
        self.terminate().await?;
        self.counters = Some(before);
        Ok(())
    }

    /// SIGTERM to a server whose disk fails: it must end, cleanly or not.
    pub async fn end(&mut self) -> Result<()> {
        self.counters = None;
        if let Some(mut server) = self.server.take() {
            server.terminate()?;
            self.check_said(&server)?;
        }
        self.pause_followers().await
    }

    /// Accepts that the counters have changed.
    pub fn forget_counters(&mut self) {
        self.counters = None;
    }

    async fn pause_followers(&mut self) -> Result<()> {
        for follower in &mut self.followers {
            follower.pause().await?;
        }
        Ok(())
    }

    fn check_said(&self, server: &Server) -> Result<()> {
        let said = server.log();
        if said.contains(PANIC) && !self.may_panic {
            return Err(format!("the server panicked:\n{said}").into());
        }
        Ok(())
    }

    /// Runs `oncelog verify`. An error if it reports damage to the log.
    pub fn verify(&self) -> Result<Verdict> {
        verify(&self.program, &self.data_dir())
    }

    /// Runs `oncelog verify`, which must find nothing.
    pub fn verify_clean(&self) -> Result<()> {
        self.verify()?.clean()
    }

    /// Whether the server reports that it can store events.
    pub fn is_serving(&self) -> Result<bool> {
        let output = Command::new(&self.program)
            .args(["health", "--server", &self.target.address])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        match said.trim() {
            "SERVING" => Ok(true),
            "NOT_SERVING" => Ok(false),
            _ => Err(format!("oncelog health: {output:?}").into()),
        }
    }

    /// Lists everything and compares it with the memory. Returns how many events there are.
    pub async fn compare_list(&self) -> Result<u64> {
        let mut list = self.target.memory.list();
        let mut reader = self.reader(String::new())?;
        while let Some(response) = reader.next().await? {
            for stored in response.events {
                let event = stored.event.ok_or("a stored event without event")?;
                let (number, content) = self.target.events.read(&event)?;
                list.add(stored.sequence, number, content)?;
            }
        }
        list.finish()
    }

    fn reader(&self, topic: String) -> Result<Reader> {
        let request = ListEventsRequest {
            topic,
            ..ListEventsRequest::default()
        };
        let options = ReaderOptions {
            give_up_after: LIST_RETRY_MAX,
            ..ReaderOptions::default()
        };
        Ok(Reader::connect(&self.target.address, request, options)?)
    }

    /// After a round, compares everything the server has with the memory: the whole list, one topic's list, the
    /// counters, and what following readers saw. Nothing may be published meanwhile.
    pub async fn compare(&mut self, random: &mut Rng) -> Result<()> {
        let events = self.compare_list().await?;
        let stats = stats(&self.target.address).await?;
        if stats.unique_processed != events || stats.durable_tail != events + 1 {
            return Err(format!("{events} events are listed, the counters say {stats:?}").into());
        }
        let drawn = random.u64(..self.target.events.topics);
        for topic in [0, drawn] {
            let name = self.target.events.topic(topic);
            let (count, last) = self.list_topic(name.clone()).await?;
            let counted = stats.topics.iter().find(|counted| counted.topic == name);
            let counted = counted.map_or(0, |counted| counted.unique_processed);
            if counted != count {
                return Err(
                    format!("topic {name}: {count} events are listed, {counted} counted").into(),
                );
            }
            if topic == 0 {
                self.followers[1].catch_up(count, last).await?;
            }
        }
        self.followers[0].catch_up(events, events).await
    }

    /// Lists a topic. Returns how many events it has, and the sequence of the last.
    async fn list_topic(&self, topic: String) -> Result<(u64, u64)> {
        let mut reader = self.reader(topic.clone())?;
        let (mut count, mut last) = (0, 0);
        while let Some(response) = reader.next().await? {
            for stored in response.events {
                let event = stored.event.ok_or("a stored event without event")?;
                let (number, content) = self.target.events.read(&event)?;
                if stored.sequence <= last || event.topic != topic {
                    let sequence = stored.sequence;
                    return Err(format!(
                        "topic {topic}: {sequence} of {:?} follows {last}",
                        event.topic
                    )
                    .into());
                }
                self.target.memory.read(stored.sequence, number, content)?;
                (count, last) = (count + 1, stored.sequence);
            }
        }
        Ok((count, last))
    }

    /// Publishes events of all ages again, and events that were never promised; every outcome must be right.
    pub async fn resend(&self, events: usize, random: &mut Rng) -> Result<(), PublishFailed> {
        let memory = &self.target.memory;
        let mut resends: Vec<Sent> = memory.draw_resends(random, events);
        // The rest keep the question open for later rounds.
        resends.extend(memory.draw_open(events / 2));
        self.target.publish(&resends, RESEND_EVENTS).await
    }

    /// Publishes one new event; returns the server's refusal, if any.
    pub async fn offer(&self) -> Result<Option<Status>> {
        let new = self.target.memory.draw_new();
        match self.target.call(vec![vec![new]]).await? {
            Ok(()) => Ok(None),
            Err(status) => check_refusal(&status).map(|()| Some(status)),
        }
    }

    /// The server's last output.
    pub fn said(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }
}

/// A local address from which no other connection starts: while a server is away, nobody may take a port of its
/// address.
fn host() -> String {
    static HOSTS: AtomicU32 = AtomicU32::new(0);
    let host = HOSTS.fetch_add(1, Relaxed);
    let [_, a, b, _] = std::process::id().to_be_bytes();
    let [.., c] = std::process::id().to_be_bytes();
    format!(
        "127.{}.{b}.{}",
        64 + a % 64,
        1 + (u32::from(c) + host) % 250
    )
}

fn counters(stats: &GetStatsResponse) -> [u64; 5] {
    [
        stats.received,
        stats.unique_processed,
        stats.duplicate_dropped,
        stats.conflicts,
        stats.rejected,
    ]
}
