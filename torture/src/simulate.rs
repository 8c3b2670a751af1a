//! Simulates the store, seed by seed, on all processors.
//!
//! The simulation itself is part of the library; here is which seeds are run, and what they came to.

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
use oncelog::simulation::{self, Bug, Figures};
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
    /// Goes on for so many minutes instead, whatever the number of seeds
    #[arg(long, conflicts_with = "seeds")]
    pub minutes: Option<f64>,
    /// Plants a bug in the store, to see it caught; `all` plants one after the other
    #[arg(long, value_name = "NAME")]
    pub bug: Option<String>,
    /// Writes the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What the seeds came to.
#[derive(Debug, Serialize)]
pub struct SimulateReport {
    first_seed: u64,
    seeds: u64,
    seconds: f64,
    seeds_per_minute: f64,
    #[serde(flatten)]
    figures: Figures,
    /// Each planted bug, and how many seeds it took to catch it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    planted: Vec<Caught>,
}

/// A planted bug that was caught.
#[derive(Debug, Serialize)]
struct Caught {
    bug: String,
    is: &'static str,
    seeds: u64,
    broken: String,
}

/// Runs the seeds.
pub async fn run(args: SimulateArgs) -> Result<SimulateReport> {
    let run = move || {
        let report = match args.bug.as_deref() {
            None => simulate(&args)?,
            Some("all") => plant(&args, Bug::ALL)?,
            Some(name) => plant(&args, &[bug(name)?])?,
        };
        json::write(args.json.as_deref(), &report)?;
        Ok(report)
    };
    // The store blocks where it waits.
    tokio::task::spawn_blocking(run).await?
}

fn bug(name: &str) -> Result<Bug> {
    let found = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    found.copied().ok_or_else(|| {
        let names: Vec<String> = Bug::ALL.iter().map(|bug| format!("{bug:?}")).collect();
        format!("--bug: {name} is none; they are all, {}", names.join(", ")).into()
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
            let (seeds, figures, failures, told) = &mut *done;
            *seeds += 1;
            match result {
                Ok(more) => *figures += more,
                Err(broken) => {
                    println!("{broken}");
                    failures.push(seed);
                }
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                *told = Instant::now();
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
        planted: Vec::new(),
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
        if self.planted.is_empty() {
            return format!("{}.\n", self.summary());
        }
        let mut text = format!(
            "{} planted bugs, each caught:\n\n| planted | what it is | seeds until it was caught |\n|---|---|---|\n",
            self.planted.len()
        );
        for Caught { bug, is, seeds, .. } in &self.planted {
            text += &format!("| `{bug}` | {is} | {seeds} |\n");
        }
        text
    }
}

fn plant(args: &SimulateArgs, bugs: &[Bug]) -> Result<SimulateReport> {
    let began = Instant::now();
    let mut planted = Vec::new();
    for bug in bugs {
        let seeds = args.seed..args.seed.saturating_add(args.seeds);
        // What fails without it as well is no catch.
        let caught = seeds
            .clone()
            .filter_map(|seed| simulation::run(seed, Some(*bug)).err())
            .find(|broken| simulation::run(broken.seed, None).is_ok());
        let Some(broken) = caught else {
            let seeds = args.seeds;
            return Err(format!("{bug:?} is not caught by {seeds} seeds").into());
        };
        println!("{bug:?} is caught by {broken}");
        planted.push(Caught {
            bug: format!("{bug:?}"),
            is: bug.what(),
            seeds: broken.seed - args.seed + 1,
            broken: broken.what,
        });
    }
    let seeds = planted.iter().map(|caught| caught.seeds).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} planted bugs caught with {seeds} seeds in {seconds:.0} s",
        planted.len()
    );
    Ok(SimulateReport {
        first_seed: args.seed,
        seeds,
        seconds,
        seeds_per_minute: seeds as f64 * 60.0 / seconds,
        figures: Figures::default(),
        planted,
    })
}
