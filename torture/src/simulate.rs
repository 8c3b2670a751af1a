//! Simulates the store, seed by seed, on all processors.
//!
//! The library has the simulation itself; this decides which seeds run, and reports the results.

use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use oncelog::simulation::{self, Figures, Lie};
use serde::Serialize;

use crate::{Result, json};

/// How often a long run reports.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// The first seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1000)]
    pub seeds: u64,
    /// Run for this many minutes instead, whatever the number of seeds
    #[arg(long, conflicts_with = "seeds")]
    pub minutes: Option<f64>,
    /// Let the disk lie in this way, which must be noticed; `all` tries one lie after the other
    #[arg(long, value_name = "NAME")]
    pub lie: Option<String>,
    /// Writes the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The results of the seeds.
#[derive(Debug, Serialize)]
pub struct SimulateReport {
    first_seed: u64,
    seeds: u64,
    seconds: f64,
    seeds_per_minute: f64,
    #[serde(flatten)]
    figures: Figures,
    /// Each lie, and how many seeds it took to notice it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lies: Vec<Noticed>,
}

/// A lie that was noticed.
#[derive(Debug, Serialize)]
struct Noticed {
    lie: String,
    is: &'static str,
    seeds: u64,
    broken: String,
}

/// Runs the seeds.
pub async fn run(args: SimulateArgs) -> Result<SimulateReport> {
    let run = move || {
        let report = match args.lie.as_deref() {
            None => simulate(&args)?,
            Some("all") => lie_all(&args, Lie::ALL)?,
            Some(name) => lie_all(&args, &[lie(name)?])?,
        };
        json::write(args.json.as_deref(), &report)?;
        Ok(report)
    };
    // The store blocks where it waits.
    tokio::task::spawn_blocking(run).await?
}

fn lie(name: &str) -> Result<Lie> {
    let found = Lie::ALL.iter().find(|lie| format!("{lie:?}") == name);
    found.copied().ok_or_else(|| {
        let names: Vec<String> = Lie::ALL.iter().map(|lie| format!("{lie:?}")).collect();
        format!(
            "--lie: there is no {name}; choose one of all, {}",
            names.join(", ")
        )
        .into()
    })
}

fn simulate(args: &SimulateArgs) -> Result<SimulateReport> {
    let began = Instant::now();
    let next = AtomicU64::new(args.seed);
    let end = args.seed.saturating_add(args.seeds);
    let goes_on = |seed| match args.minutes {
        Some(minutes) => began.elapsed().as_secs_f64() < minutes * 60.0,
        None => seed < end,
    };
    let done = Mutex::new((0, Figures::default(), Vec::new(), began));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(seed) {
                return;
            }
            let result = simulation::run(seed, None);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let (seeds, figures, failures, last_report) = &mut *done;
            *seeds += 1;
            match result {
                Ok(more) => *figures += more,
                Err(broken) => {
                    println!("{broken}");
                    failures.push(seed);
                }
            }
            if last_report.elapsed() >= PROGRESS_INTERVAL {
                *last_report = Instant::now();
                println!("{seeds} seeds in {:.0} s", began.elapsed().as_secs_f64());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let (seeds, figures, failures, _) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        return Err(format!("{} of {seeds} seeds broke a promise", failures.len()).into());
    }
    let seconds = began.elapsed().as_secs_f64();
    let report = SimulateReport {
        first_seed: args.seed,
        seeds,
        seconds,
        seeds_per_minute: seeds as f64 * 60.0 / seconds,
        figures,
        lies: Vec::new(),
    };
    println!("{}", report.summary());
    Ok(report)
}

impl SimulateReport {
    fn summary(&self) -> String {
        let Figures {
            lives,
            kills,
            power_losses,
            faults,
            turned_bits,
            sent,
            stored,
            read,
            operations,
        } = self.figures;
        format!(
            "{} seeds from {} in {:.0} s ({:.0} a minute): {lives} starts of the server, {kills} kills, {power_losses} power \
             losses, {faults} faults of the disk, {turned_bits} turned bits; {sent} events sent, {stored} stored, {read} read, \
             {operations} operations of the disk; every promise kept",
            self.seeds, self.first_seed, self.seconds, self.seeds_per_minute
        )
    }

    /// For the docs.
    pub fn markdown(&self) -> String {
        if self.lies.is_empty() {
            return format!("{}.\n", self.summary());
        }
        let mut text = format!(
            "{} lies, each noticed:\n\n| lie | what it is | seeds until it was noticed |\n|---|---|---|\n",
            self.lies.len()
        );
        for Noticed { lie, is, seeds, .. } in &self.lies {
            text += &format!("| `{lie}` | {is} | {seeds} |\n");
        }
        text
    }
}

fn lie_all(args: &SimulateArgs, all: &[Lie]) -> Result<SimulateReport> {
    let began = Instant::now();
    let mut lies = Vec::new();
    for lie in all {
        let seeds = args.seed..args.seed.saturating_add(args.seeds);
        // A seed that fails without the lie has not noticed it.
        let noticed = seeds
            .clone()
            .filter_map(|seed| simulation::run(seed, Some(*lie)).err())
            .find(|broken| simulation::run(broken.seed, None).is_ok());
        let Some(broken) = noticed else {
            let seeds = args.seeds;
            return Err(format!("{lie:?} is not noticed in {seeds} seeds").into());
        };
        println!("{lie:?} is noticed: {broken}");
        lies.push(Noticed {
            lie: format!("{lie:?}"),
            is: lie.what(),
            seeds: broken.seed - args.seed + 1,
            broken: broken.what,
        });
    }
    let seeds = lies.iter().map(|noticed| noticed.seeds).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} lies noticed with {seeds} seeds in {seconds:.0} s",
        lies.len()
    );
    Ok(SimulateReport {
        first_seed: args.seed,
        seeds,
        seconds,
        seeds_per_minute: seeds as f64 * 60.0 / seconds,
        figures: Figures::default(),
        lies,
    })
}
