//! Measures one store: load, latency, reading, restart, and the proof that it holds exactly what was sent.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use oncelog_harness::disk::DiskUse;
use oncelog_harness::process::{cpu_seconds, has_children, memory_bytes};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    event::Events,
    plan::Load,
    recorder::{Latency, Recorder},
    store::{Keeps, Promise, Running, Seen, Store},
};

/// Readers that read everything at the same time.
const READERS: usize = 4;
/// How long to read one topic after another.
const TOPICS_READ_MIN: Duration = Duration::from_secs(1);
/// How often to check progress and memory.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// A store has settled once it uses less than this share of a core for this long; the wait has this limit.
const SETTLED_SHARE: f64 = 0.02;
const SETTLED_INTERVAL: Duration = Duration::from_millis(500);
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// The plan of a measurement.
#[derive(Clone, Debug)]
pub struct Course {
    pub load: Load,
    /// Events sent one at a time after the load.
    pub singles: u64,
    /// A sample is taken each time this many more unique events are stored.
    pub sample_events: u64,
}

/// The figures of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    pub store: String,
    pub promise: Promise,
    pub unique: u64,
    pub sent: u64,
    /// Events per request.
    pub batch: usize,
    /// From the first request to the last ack.
    pub seconds: f64,
    pub sent_per_second: f64,
    pub unique_per_second: f64,
    /// From handing over a request of the load to its ack.
    pub latency_load: Latency,
    /// The same with one event at a time.
    pub latency_single: Latency,
    /// Per event sent, including deferred work after the last ack.
    pub server_cpu_us: f64,
    /// The deferred part of it.
    pub server_cpu_us_after: f64,
    pub client_cpu_us: f64,
    /// At its peak, during load and reading.
    pub memory_bytes: u64,
    /// RSS of one process; PSS, summed and sampled, of several.
    pub memory_kind: String,
    /// For a store that keeps events.
    pub kept: Option<Kept>,
    pub samples: Vec<Sample>,
}

/// The figures of stored events.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub disk_bytes_per_event: f64,
    /// Beyond the encoded event.
    pub disk_bytes_beyond: f64,
    pub read_all_per_second: f64,
    pub read_topic_per_second: f64,
    pub read_four_per_second: f64,
    /// Per event read by the single reader of everything.
    pub read_server_cpu_us: f64,
    pub read_client_cpu_us: f64,
    /// From kill -9 to serving again.
    pub restart_seconds: f64,
}

/// The state of a load at a given moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub seconds: f64,
    pub sent: u64,
    pub stored: u64,
    pub server_cpu_seconds: f64,
    pub memory_bytes: u64,
}

/// The cost of a load.
struct Run {
    recorder: Arc<Recorder>,
    seconds: f64,
    samples: Vec<Sample>,
    server_cpu_seconds: f64,
    client_cpu_seconds: f64,
}

/// Measures `store` on `dir`, which must be new.
pub async fn measure(
    store: &dyn Store,
    dir: &Path,
    events: &Arc<Events>,
    course: &Course,
) -> Result<Figures> {
    let mut running = store.start(dir).await?;
    let pid = running.process().id();
    let run = load(&mut *running, events, &course.load, course.sample_events).await?;
    let (sent, stored) = run.recorder.counts();
    let after_seconds = settle(pid).await?;
    let disk = DiskUse::of(dir)?.bytes as f64 / course.load.unique as f64;

    let singles = Load {
        first: course.load.first + course.load.unique,
        unique: course.singles,
        streams: 1,
        batch: 1,
        in_flight: 1,
        resend_percent: 0,
        ..course.load
    };
    let single = load(&mut *running, events, &singles, u64::MAX).await?;
    let end = singles.first + singles.unique;
    let micros = |seconds: f64, events: u64| seconds * 1e6 / events as f64;
    let mut figures = Figures {
        store: store.name().to_owned(),
        promise: store.promise(),
        unique: course.load.unique,
        sent,
        batch: course.load.batch,
        seconds: run.seconds,
        sent_per_second: sent as f64 / run.seconds,
        unique_per_second: course.load.unique as f64 / run.seconds,
        latency_load: run.recorder.latency(),
        latency_single: single.recorder.latency(),
        server_cpu_us: micros(run.server_cpu_seconds + after_seconds, sent),
        server_cpu_us_after: micros(after_seconds, sent),
        client_cpu_us: micros(run.client_cpu_seconds, sent),
        memory_bytes: 0,
        memory_kind: match has_children(pid)? {
            true => "PSS".to_owned(),
            false => "RSS".to_owned(),
        },
        kept: None,
        samples: run.samples,
    };
    if store.keeps() == Keeps::Events {
        for (reported, expected) in [
            (stored, course.load.unique),
            (single.recorder.counts().1, course.singles),
        ] {
            if reported != expected {
                return Err(
                    format!("the store reported {reported} stored events, not {expected}").into(),
                );
            }
        }
        let all = read(&*running, pid, events, end, None, 1).await?;
        let mut topics = Reading::default();
        for topic in 0..events.topics().len() {
            topics.add(&read(&*running, pid, events, end, Some(topic), 1).await?);
            if topics.seconds >= TOPICS_READ_MIN.as_secs_f64() {
                break;
            }
        }
        let four = read(&*running, pid, events, end, None, READERS).await?;
        figures.memory_bytes = memory_bytes(pid)?;
        running.process().kill()?;
        drop(running);
        figures.kept = Some(Kept {
            disk_bytes_per_event: disk,
            disk_bytes_beyond: disk - events.encoded_len() as f64,
            read_all_per_second: all.per_second(),
            read_topic_per_second: topics.per_second(),
            read_four_per_second: four.per_second(),
            read_server_cpu_us: micros(all.server_cpu_seconds, all.events),
            read_client_cpu_us: micros(all.client_cpu_seconds, all.events),
            restart_seconds: restart(store, dir, events, end).await?,
        });
    }
    for sample in figures.samples.iter().chain(&single.samples) {
        figures.memory_bytes = figures.memory_bytes.max(sample.memory_bytes);
    }
    Ok(figures)
}

/// Restarts a store on the files that a kill has left, and checks that it holds exactly the events below
/// `end`, byte for byte. Returns how many seconds it took to serve.
async fn restart(store: &dyn Store, dir: &Path, events: &Arc<Events>, end: u64) -> Result<f64> {
    let began = Instant::now();
    let running = store.start(dir).await?;
    let seconds = began.elapsed().as_secs_f64();
    let mut seen = Seen::new(Arc::clone(events), end, None, true);
    let mut stream = running.stream(Arc::clone(events)).await?;
    stream.read(None, &mut seen).await?;
    seen.complete()?;
    Ok(seconds)
}

/// Sends a load and waits for its acks.
async fn load(
    running: &mut dyn Running,
    events: &Arc<Events>,
    load: &Load,
    sample_events: u64,
) -> Result<Run> {
    let pid = running.process().id();
    let recorder = Arc::new(Recorder::default());
    let mut streams = Vec::new();
    for plan in load.plans() {
        streams.push((running.stream(Arc::clone(events)).await?, plan));
    }
    let server_before = cpu_seconds(pid)?;
    let client_before = cpu_seconds_here()?;
    let watch = Watch::start(pid, Arc::clone(&recorder), sample_events);
    let began = Instant::now();
    let mut tasks = Vec::new();
    for (mut stream, plan) in streams {
        let recorder = Arc::clone(&recorder);
        tasks.push(tokio::spawn(
            async move { stream.publish(plan, recorder).await },
        ));
    }
    for task in tasks {
        task.await??;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Run {
        server_cpu_seconds: cpu_seconds(pid)? - server_before,
        client_cpu_seconds: cpu_seconds_here()? - client_before,
        samples: watch.stop()?,
        recorder,
        seconds,
    })
}

/// The cost of reading.
#[derive(Default)]
struct Reading {
    events: u64,
    seconds: f64,
    server_cpu_seconds: f64,
    client_cpu_seconds: f64,
}

impl Reading {
    fn per_second(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.seconds += other.seconds;
        self.server_cpu_seconds += other.server_cpu_seconds;
        self.client_cpu_seconds += other.client_cpu_seconds;
    }
}

/// Reads the events below `end`, of one topic or of all, with `readers` in parallel.
async fn read(
    running: &dyn Running,
    pid: u32,
    events: &Arc<Events>,
    end: u64,
    topic: Option<usize>,
    readers: usize,
) -> Result<Reading> {
    let mut streams = Vec::new();
    for _ in 0..readers {
        let seen = Seen::new(Arc::clone(events), end, topic, false);
        streams.push((running.stream(Arc::clone(events)).await?, seen));
    }
    let server_before = cpu_seconds(pid)?;
    let client_before = cpu_seconds_here()?;
    let began = Instant::now();
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|(mut stream, mut seen)| {
            tokio::spawn(async move {
                stream.read(topic, &mut seen).await?;
                seen.complete()
            })
        })
        .collect();
    let mut events = 0;
    for task in tasks {
        events += task.await??;
    }
    Ok(Reading {
        events,
        seconds: began.elapsed().as_secs_f64(),
        server_cpu_seconds: cpu_seconds(pid)? - server_before,
        client_cpu_seconds: cpu_seconds_here()? - client_before,
    })
}

/// Waits until a store has finished its deferred work; returns the CPU seconds that took.
async fn settle(pid: u32) -> Result<f64> {
    let began = Instant::now();
    let first = cpu_seconds(pid)?;
    let mut last = first;
    loop {
        tokio::time::sleep(SETTLED_INTERVAL).await;
        let now = cpu_seconds(pid)?;
        let share = (now - last) / SETTLED_INTERVAL.as_secs_f64();
        if share < SETTLED_SHARE || began.elapsed() > SETTLE_MAX {
            return Ok(now - first);
        }
        last = now;
    }
}

fn cpu_seconds_here() -> Result<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Samples a load from a separate thread.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

impl Watch {
    fn start(pid: u32, recorder: Arc<Recorder>, sample_events: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let sample = |memory_bytes| -> Result<Sample> {
                let (sent, stored) = recorder.counts();
                Ok(Sample {
                    seconds: began.elapsed().as_secs_f64(),
                    sent,
                    stored,
                    server_cpu_seconds: cpu_seconds(pid)?,
                    memory_bytes,
                })
            };
            let mut memory = memory_bytes(pid)?;
            let mut memory_at = began;
            let mut samples = vec![sample(memory)?];
            let mut next = sample_events;
            while !stopped.load(Relaxed) {
                std::thread::sleep(WATCH_INTERVAL);
                if memory_at.elapsed() >= MEMORY_INTERVAL {
                    memory = memory.max(memory_bytes(pid)?);
                    memory_at = Instant::now();
                }
                let (_, stored) = recorder.counts();
                if stored >= next {
                    samples.push(sample(memory)?);
                    next = stored.saturating_add(sample_events);
                }
            }
            samples.push(sample(memory.max(memory_bytes(pid)?))?);
            Ok(samples)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Vec<Sample>> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "the watch panicked")?
    }
}
