//! The kinds of rounds: how a server is harmed, and what must hold meanwhile.

use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use oncelog::client::ReadError;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    damage,
    fault::Fault,
    load::{PublishFailed, Shape},
    store::Store,
};
use crate::Result;

/// A kind of round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// kill -9 under load
    Kill,
    /// kill -9 while it starts and recovers, and right after
    KillStart,
    /// kill -9 and start, several times under publishers that resend
    Restart,
    /// SIGTERM under load
    Terminate,
    /// No space on its disk, and space again; or kill -9 without space
    DiskFull,
    /// fdatasync and fsync fail
    SyncFault,
    /// Writes and renames fail
    WriteFault,
    /// Syncs are slow
    SlowSync,
    /// The index is damaged, cut or removed
    IndexDamage,
    /// The saved counters are damaged, cut or removed
    CounterDamage,
}

impl Kind {
    /// In the order of rounds.
    pub const ALL: [Self; 10] = [
        Self::Kill,
        Self::DiskFull,
        Self::KillStart,
        Self::SyncFault,
        Self::IndexDamage,
        Self::Restart,
        Self::WriteFault,
        Self::Terminate,
        Self::SlowSync,
        Self::CounterDamage,
    ];

    /// How long its data directory is kept.
    pub fn kept(self) -> Kept {
        match self {
            Self::DiskFull => Kept::Never,
            Self::IndexDamage => Kept::Large,
            Self::Kill
            | Self::KillStart
            | Self::Restart
            | Self::Terminate
            | Self::SyncFault
            | Self::WriteFault
            | Self::SlowSync
            | Self::CounterDamage => Kept::Plain,
        }
    }

    /// Whether strace injects its faults.
    pub fn takes_strace(self) -> bool {
        matches!(self, Self::SyncFault | Self::WriteFault | Self::SlowSync)
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// How long a data directory is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// For one round.
    Never,
    /// For some rounds, of any kind.
    Plain,
    /// For more rounds, of its kind: its index has generations.
    Large,
}

/// The result of a round.
pub struct RoundResult {
    /// How often the server or its files were harmed: kills, stops, calls that met a fault, damaged places.
    pub harms: u64,
    /// Details of the round.
    pub text: String,
}

/// The most new events of a round.
const NEW_EVENTS: u64 = 30_000;
/// Events that are published again after a round.
const RESENDS: usize = 2000;
/// New events of a round that must fill a generation of the index, which takes 524,288.
const GENERATION_EVENTS: u64 = 560_000;
/// Events that are published again after damage to the index.
const INDEX_RESENDS: usize = 20_000;
/// How often a server may find damage to its index, and require a restart.
const DAMAGE_RESTARTS_MAX: u32 = 8;

/// The longest time until a server is harmed.
const MOMENT_MAX: Duration = Duration::from_millis(900);
/// How long a publisher keeps trying when its server does not come back.
const GONE: Duration = Duration::from_millis(200);
/// The same when it does.
const COMES_BACK: Duration = Duration::from_secs(60);
/// How long it may take to fill a disk, to notice that there is space again, or to make a generation.
const CHANGE_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Runs a round on a store whose server is stopped.
pub async fn run(kind: Kind, store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    match kind {
        Kind::Kill => kill(store, random).await,
        Kind::KillStart => kill_start(store, random).await,
        Kind::Restart => restart(store, random).await,
        Kind::Terminate => terminate(store, random).await,
        Kind::DiskFull => disk_full(store, random).await,
        Kind::SyncFault => fault(store, &Fault::of_sync(random), random).await,
        Kind::WriteFault => fault(store, &Fault::of_write(random), random).await,
        Kind::SlowSync => slow_sync(store, random).await,
        Kind::IndexDamage => index_damage(store, random).await,
        Kind::CounterDamage => counter_damage(store, random).await,
    }
}

fn shape(store: &Store, give_up_after: Duration, random: &mut Rng) -> Shape {
    Shape {
        streams: random.usize(2..=4),
        request_events_max: [1, 20, 200][random.usize(..3)],
        new_to: store.target.memory.sent() + NEW_EVENTS,
        give_up_after,
    }
}

/// Waits for a moment, more often short than long.
async fn moment(random: &mut Rng) {
    sleep(MOMENT_MAX.mul_f64(random.f64() * random.f64())).await;
}

/// After every round: everything promised is there, and the server accepts, reports and counts events again.
async fn recover(store: &mut Store, random: &mut Rng) -> Result<()> {
    store.start().await?;
    store.compare(random).await?;
    store.resend(RESENDS, random).await?;
    store.stop().await
}

async fn verify_and_recover(store: &mut Store, random: &mut Rng) -> Result<()> {
    store.verify_clean()?;
    recover(store, random).await
}

async fn kill(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.start().await?;
    let shape = shape(store, GONE, random);
    let load = store.load(shape, random);
    moment(random).await;
    store.kill().await?;
    load.finish().await?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        harms: 1,
        text: format!(
            "{} streams, requests of up to {}",
            shape.streams, shape.request_events_max
        ),
    })
}

async fn kill_start(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    // First without faults, to have an address and something to recover.
    store.start().await?;
    let shape = shape(store, COMES_BACK, random);
    let load = store.load(shape, random);
    moment(random).await;
    store.kill().await?;
    let mut waits = Vec::new();
    for _ in 0..random.u32(2..=5) {
        let mut starting = store.spawn(&[])?;
        let longest = 20 + 2 * store.recovery_ms;
        let wait = Duration::from_micros(random.u64(..longest * 1000));
        sleep(wait).await;
        starting.kill()?;
        waits.push(format!("{:.1}", wait.as_secs_f64() * 1e3));
    }
    store.start().await?;
    sleep(Duration::from_millis(random.u64(..60))).await;
    store.kill().await?;
    store.start().await?;
    load.finish_whole().await?;
    store.kill().await?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        // Under load before, after a start, and at the end.
        harms: waits.len() as u64 + 3,
        text: format!("killed {} ms after its start", waits.join(", ")),
    })
}

async fn restart(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.start().await?;
    let shape = shape(store, COMES_BACK, random);
    let load = store.load(shape, random);
    let kills = random.u32(2..=4);
    for _ in 0..kills {
        moment(random).await;
        store.kill().await?;
        store.start().await?;
    }
    load.finish_whole().await?;
    store.kill().await?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        harms: u64::from(kills) + 1,
        text: format!("{kills} kills, every publisher got through"),
    })
}

async fn terminate(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.start().await?;
    let shape = shape(store, GONE, random);
    let load = store.load(shape, random);
    moment(random).await;
    let asked = Instant::now();
    store.terminate().await?;
    let took = asked.elapsed();
    load.finish().await?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        harms: 1,
        text: format!("stopped in {} ms", took.as_millis()),
    })
}

async fn disk_full(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.start().await?;
    store.place.take_space()?;
    let shape = Shape {
        new_to: u64::MAX,
        request_events_max: 200,
        ..shape(store, COMES_BACK, random)
    };
    let load = store.load(shape, random);
    wait_for_space(store, false).await?;
    wait_for_readiness(store, false).await?;
    let stored = store.compare_list().await?;
    let is_killed = random.bool();
    if is_killed {
        store.kill().await?;
        store.start().await?;
        store.compare_list().await?;
    }
    moment(random).await;
    store.place.give_space()?;
    wait_for_space(store, true).await?;
    wait_for_readiness(store, true).await?;
    load.finish_whole().await?;
    if random.bool() {
        store.kill().await?;
    } else {
        store.terminate().await?;
    }
    verify_and_recover(store, random).await?;
    let killed = if is_killed {
        ", killed without space"
    } else {
        ""
    };
    Ok(RoundResult {
        harms: 1 + u64::from(is_killed),
        text: format!(
            "{}, full at {stored} events{killed}, took events again",
            store.place.kind()
        ),
    })
}

/// Waits until events are accepted, or refused for lack of space.
async fn wait_for_space(store: &Store, there_is: bool) -> Result<()> {
    let deadline = Instant::now() + CHANGE_MAX;
    while Instant::now() < deadline {
        match store.offer().await? {
            None if there_is => return Ok(()),
            None => {}
            Some(status) if status.code() != Code::ResourceExhausted => {
                return Err(format!("a disk without space: {status:?}").into());
            }
            Some(_) if !there_is => return Ok(()),
            Some(_) => {}
        }
        sleep(POLL).await;
    }
    let what = if there_is {
        "takes no events again"
    } else {
        "is not full"
    };
    Err(format!("the disk {what} after {} s", CHANGE_MAX.as_secs()).into())
}

/// Waits until the server reports that it can store events, or that it cannot.
async fn wait_for_readiness(store: &Store, is_ready: bool) -> Result<()> {
    let deadline = Instant::now() + CHANGE_MAX;
    while store.is_serving()? != is_ready {
        if Instant::now() > deadline {
            let what = if is_ready { "not ready" } else { "ready" };
            return Err(format!(
                "still {what} after {} s:\n{}",
                CHANGE_MAX.as_secs(),
                store.said()
            )
            .into());
        }
        sleep(POLL).await;
    }
    Ok(())
}

async fn fault(store: &mut Store, fault: &Fault, random: &mut Rng) -> Result<RoundResult> {
    // First without faults: it has something to lose, and both know each other's address.
    store.start().await?;
    store.stop().await?;
    store.forget_counters();
    let trace = store.place.path().join("trace");
    let end = match store.start_wrapped(&fault.wrapped(&trace)).await {
        Err(error) => {
            let error = error.to_string();
            if error.contains("panicked at") {
                return Err(error.into());
            }
            "did not start".to_owned()
        }
        Ok(()) => {
            let load = store.load(shape(store, GONE, random), random);
            moment(random).await;
            let refusal = store.offer().await?;
            if let Some(status) = &refusal
                && status.code() == Code::Unavailable
                && store.is_serving()?
            {
                return Err(format!("it is healthy and refuses events: {status:?}").into());
            }
            store.compare_list().await?;
            if random.u8(..4) == 0 {
                store.end().await?;
            } else {
                store.kill().await?;
            }
            load.finish().await?;
            match refusal {
                Some(status) => format!("refused events, {:?}, and was read", status.code()),
                None => "took events and was read".to_owned(),
            }
        }
    };
    let harms = Fault::count(&trace)?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        harms,
        text: format!("{} met {harms} times, {end}", fault.text()),
    })
}

async fn slow_sync(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    let fault = Fault::of_slow_sync(random);
    let trace = store.place.path().join("trace");
    store.start_wrapped(&fault.wrapped(&trace)).await?;
    let load = store.load(shape(store, GONE, random), random);
    moment(random).await;
    let end = if random.bool() {
        store.kill().await?;
        "killed"
    } else {
        store.terminate().await?;
        "stopped in order"
    };
    load.finish().await?;
    let harms = Fault::count(&trace)?;
    verify_and_recover(store, random).await?;
    Ok(RoundResult {
        harms,
        text: format!("{} met {harms} times, {end}", fault.text()),
    })
}

async fn index_damage(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.may_panic = true;
    store.start().await?;
    let memory = store.target.memory.clone();
    let shape = Shape {
        streams: 4,
        request_events_max: 1000,
        new_to: memory.sent() + GENERATION_EVENTS,
        give_up_after: GONE,
    };
    let load = store.load(shape, random);
    let deadline = Instant::now() + CHANGE_MAX;
    while memory.sent() < shape.new_to && Instant::now() < deadline {
        sleep(POLL).await;
    }
    // Sometimes in the middle of sealing or merging.
    if random.u8(..3) > 0 {
        while !has_generation(store)? && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }
    moment(random).await;
    store.kill().await?;
    load.finish().await?;
    store.verify_clean()?;
    let damaged = damage::index(&store.data_dir(), random)?;
    let damage = match damaged.is_empty() {
        true => "no generation yet".to_owned(),
        false => damaged.join(", "),
    };
    // verify marks damaged generations; without it the server has to find the damage.
    if random.bool() {
        store.verify()?;
    }
    let mut restarts = 0;
    loop {
        store.start().await?;
        let Err(error) = compare_and_resend(store, random).await else {
            break;
        };
        restarts += 1;
        if !error.may_be_damage
            || !store.said().contains("damage")
            || restarts > DAMAGE_RESTARTS_MAX
        {
            return Err(format!("{damage}: {}; it said:\n{}", error.error, store.said()).into());
        }
        store.end().await?;
    }
    store.stop().await?;
    store.verify_clean()?;
    store.may_panic = false;
    Ok(RoundResult {
        harms: damaged.len() as u64,
        text: format!("{damage}; {restarts} more restarts to rebuild it"),
    })
}

fn has_generation(store: &Store) -> Result<bool> {
    let dir = store.data_dir().join("index");
    for found in std::fs::read_dir(dir)? {
        let found = found?;
        if found.file_type()?.is_dir() && !found.file_name().to_string_lossy().ends_with(".tmp") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A failed check.
struct Failure {
    error: crate::Error,
    /// Whether the server may be refusing to answer from a damaged index.
    may_be_damage: bool,
}

async fn compare_and_resend(store: &mut Store, random: &mut Rng) -> Result<(), Failure> {
    let refused = |error: crate::Error| Failure {
        may_be_damage: matches!(error.downcast_ref(), Some(ReadError::GaveUp { .. })),
        error,
    };
    store.compare(random).await.map_err(refused)?;
    match store.resend(INDEX_RESENDS, random).await {
        Ok(()) => Ok(()),
        Err(PublishFailed::Broke(error)) => Err(Failure {
            error: error.into(),
            may_be_damage: true,
        }),
        Err(PublishFailed::Promise(error)) => Err(Failure {
            error,
            may_be_damage: false,
        }),
    }
}

async fn counter_damage(store: &mut Store, random: &mut Rng) -> Result<RoundResult> {
    store.start().await?;
    let load = store.load(shape(store, GONE, random), random);
    moment(random).await;
    if random.bool() {
        store.terminate().await?;
    } else {
        store.kill().await?;
    }
    load.finish().await?;
    store.verify_clean()?;
    let damage = damage::counters(&store.data_dir(), random)?;
    store.verify()?;
    recover(store, random).await?;
    store.verify_clean()?;
    Ok(RoundResult {
        harms: u64::from(damage.is_some()),
        text: damage.unwrap_or_else(|| "never saved".to_owned()),
    })
}
