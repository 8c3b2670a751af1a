//! Rounds against the real program: it is killed, stopped and starved under load, its disk fails, and after
//! every round everything it ever promised is checked.

mod damage;
mod disk;
mod fault;
mod follower;
mod load;
mod memory;
mod report;
mod round;
mod store;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use fastrand::Rng;
use oncelog_harness::server;

pub use self::report::Report;
use self::{
    disk::Place,
    round::{Kept, Kind},
    store::Store,
};
use crate::{
    Result,
    event::{Events, PayloadBytes},
    json,
};

const TOPICS: u64 = 10;
/// How many rounds a data directory is kept for.
const STORE_ROUNDS: u32 = Kind::ALL.len() as u32;
/// The same for one whose index has generations, in rounds of its kind.
const LARGE_STORE_ROUNDS: u32 = 4;
/// Mixes the number of a round into the seed.
const ROUND_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The arguments of `crash`.
#[derive(Args, Clone, Debug)]
pub struct CrashArgs {
    /// Rounds; 20 have every kind twice
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    rounds: u32,
    /// Run for this many minutes instead
    #[arg(long, value_name = "COUNT", conflicts_with = "rounds")]
    minutes: Option<u64>,
    /// Seed of all random choices; by default a random one, which is printed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Skip this many rounds, to reproduce a failure
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    skip: u32,
    /// Only rounds of this kind
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The server
    #[arg(long, value_name = "FILE", default_value = "target/release/oncelog")]
    program: PathBuf,
    /// Where data directories are made; that of a failed round is kept
    #[arg(long, value_name = "DIR", default_value = "target")]
    scratch: PathBuf,
}

/// Runs the rounds.
pub async fn run(args: &CrashArgs) -> Result<Report> {
    server::prepare(&args.program, &args.scratch)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let mut rounds = Rounds {
        report: Report::new(seed),
        no_strace: fault::why_not(),
        plain: None,
        large: None,
        seed,
        args: args.clone(),
    };
    println!("seed {seed}");
    let deadline = args
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let end = |round| match deadline {
        Some(deadline) => Instant::now() >= deadline,
        None => round >= args.skip + args.rounds,
    };
    for round in args.skip.. {
        if end(round) {
            break;
        }
        rounds.run(round).await?;
    }
    rounds.report.print();
    if rounds.report.rounds == 0 {
        return Err("every round was skipped".into());
    }
    json::write(args.json.as_deref(), &rounds.report)?;
    Ok(rounds.report)
}

/// All rounds, and the data directories that outlive a round.
struct Rounds {
    args: CrashArgs,
    seed: u64,
    report: Report,
    /// Why strace is unavailable, if so.
    no_strace: Option<String>,
    plain: Option<Store>,
    large: Option<Store>,
}

impl Rounds {
    async fn run(&mut self, round: u32) -> Result<()> {
        let kinds = Kind::ALL.len();
        let kind = self.args.only.unwrap_or(Kind::ALL[round as usize % kinds]);
        let mut random = Rng::with_seed(self.seed ^ u64::from(round + 1).wrapping_mul(ROUND_SEED));
        if round.is_multiple_of(STORE_ROUNDS) {
            self.plain = None;
        }
        if round.is_multiple_of(STORE_ROUNDS * LARGE_STORE_ROUNDS) {
            self.large = None;
        }
        let mut store = match self.store(kind) {
            Ok(store) => store,
            Err(why) => {
                self.report.skipped(round, kind, &why.to_string());
                return Ok(());
            }
        };
        let before = store.counts();
        let ran = tokio::select! {
            ran = round::run(kind, &mut store, &mut random) => ran,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Err(format!("interrupted in round {round}").into());
            }
        };
        match ran {
            Ok(result) => self.report.passed(
                round,
                kind,
                before,
                store.counts(),
                store.recovery_ms,
                &result,
            ),
            Err(error) => return Err(self.failed(round, kind, store, &error)),
        }
        match kind.kept() {
            Kept::Never => {}
            Kept::Large => self.large = Some(store),
            Kept::Plain => self.plain = Some(store),
        }
        Ok(())
    }

    /// The store for a round. The error says why there can be no such round.
    fn store(&mut self, kind: Kind) -> Result<Store> {
        let new = |place, payload| {
            let events = Events {
                topics: TOPICS,
                payload,
            };
            Store::new(&self.args.program, place, events)
        };
        let folder = || Place::folder(&self.args.scratch);
        if let Some(why) = &self.no_strace
            && kind.takes_strace()
        {
            return Err(why.clone().into());
        }
        match kind.kept() {
            Kept::Never => Ok(new(
                Place::small_disk(&self.args.scratch)?,
                PayloadBytes::Mixed,
            )),
            Kept::Large => match self.large.take() {
                Some(store) => Ok(store),
                None => Ok(new(folder()?, PayloadBytes::Fixed(8))),
            },
            Kept::Plain => match self.plain.take() {
                Some(store) => Ok(store),
                None => Ok(new(folder()?, PayloadBytes::Mixed)),
            },
        }
    }

    /// Keeps the data of a failed round, and says how to reproduce it.
    fn failed(&self, round: u32, kind: Kind, store: Store, error: &crate::Error) -> crate::Error {
        let kept = store.keep().map_or_else(
            |error| format!("its data directory is lost: {error}"),
            |path| format!("its data directory is below {}", path.display()),
        );
        let skip = match kind.kept() {
            Kept::Never => round,
            Kept::Large => round - round % (STORE_ROUNDS * LARGE_STORE_ROUNDS),
            Kept::Plain => round - round % STORE_ROUNDS,
        };
        let only = self
            .args
            .only
            .map(|kind| format!(" --only {}", kind.name()))
            .unwrap_or_default();
        let (seed, rounds) = (self.seed, round - skip + 1);
        format!(
            "round {round}, {}: {error}\n{kept}\nagain: oncelog-torture crash --seed {seed} --skip {skip} --rounds {rounds}{only}",
            kind.name()
        )
        .into()
    }
}
