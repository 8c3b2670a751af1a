//! Simulation: a partition on one thread, over a disk, a clock and randomness derived from a seed.
//!
//! A seed is a few lives of a server, with publishers that resend, readers that resume, and everything that can go
//! wrong: crashes at every write and sync, with or without power loss, full disks, failed writes, syncs and reads,
//! flipped bits. A model checks everything seen against everything promised. The same seed always does the same.
//!
//! Owns [`run`]. For tests and `torture/`; not part of a server.

mod chance;
mod disk;
mod follower;
mod get;
mod jobs;
mod lie;
mod log;
mod model;
mod submission;
mod world;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    ops::AddAssign,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::Once,
};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use disk::SimDisk;
pub use lie::Lie;

use serde::Serialize;

use chance::Chance;
use world::World;

/// Counts of a simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// How often a server was opened.
    pub lives: u64,
    /// Lives that ended at a point chosen by the seed, in the death of the process alone.
    pub kills: u64,
    /// The same, with all unsynced data in doubt.
    pub power_losses: u64,
    /// Failed writes, syncs and reads, including writes that found no space.
    pub faults: u64,
    /// Bits that were flipped.
    pub turned_bits: u64,
    /// Events sent, including resends.
    pub sent: u64,
    /// Events stored.
    pub stored: u64,
    /// Events shown to readers.
    pub read: u64,
    /// Operations of the disk.
    pub operations: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.lives += other.lives;
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.faults += other.faults;
        self.turned_bits += other.turned_bits;
        self.sent += other.sent;
        self.stored += other.stored;
        self.read += other.read;
        self.operations += other.operations;
    }
}

/// A broken promise, and the command that breaks it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// The lie in use, if any.
    pub lie: Option<Lie>,
    /// The observation.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, lie, what } = self;
        writeln!(f, "seed {seed}: {what}")?;
        let command = "cargo run --release -p oncelog-torture -- simulate";
        write!(f, "  again: {command} --seed {seed} --seeds 1")?;
        match lie {
            Some(lie) => write!(f, " --lie {lie:?}"),
            None => Ok(()),
        }
    }
}

thread_local! {
    /// The first panic of a simulation on this thread: the store catches some.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Runs the simulation of `seed`, over a platform that may lie.
pub fn run(seed: u64, lie: Option<Lie>) -> Result<Figures, Broken> {
    remember_panics();
    IS_RUNNING.set(true);
    PANIC.take();
    let chance = Chance::new(seed);
    let done = catch_unwind(AssertUnwindSafe(|| World::new(chance, lie).run()));
    IS_RUNNING.set(false);
    let panicked = PANIC.take();
    match (done, panicked) {
        (Ok(figures), None) => Ok(figures),
        (done, panicked) => {
            jobs::abandon();
            let what = panicked.or_else(|| done.err().map(|panic| said(&*panic).to_owned()));
            let what = what.unwrap_or_default();
            Err(Broken { seed, lie, what })
        }
    }
}

/// Keeps the panics of simulating threads, and leaves those of others to the previous hook.
fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_RUNNING.get() {
                return before(panic);
            }
            PANIC.with_borrow_mut(|first| {
                first.get_or_insert_with(|| {
                    let place = panic.location().map(ToString::to_string);
                    format!("{} ({})", said(panic.payload()), place.unwrap_or_default())
                });
            });
        }));
    });
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = 300;
    /// How many seeds suffice to notice every lie.
    const LIE_SEEDS_MAX: u64 = 1_000;

    /// `.ci/mutants` asks for more.
    fn seeds() -> u64 {
        let asked = std::env::var("ONCELOG_SIMULATION_SEEDS");
        asked.map_or(SEEDS, |asked| asked.parse().expect("a number of seeds"))
    }

    #[test]
    fn nothing_is_lost() {
        for seed in 0..seeds() {
            if let Err(broken) = run(seed, None) {
                panic!("{broken}");
            }
        }
    }

    #[test]
    fn a_seed_does_the_same_again() {
        for seed in 0..20 {
            assert_eq!(run(seed, None), run(seed, None));
        }
    }

    #[test]
    fn every_lie_is_noticed() {
        for lie in Lie::ALL {
            // A seed that fails without the lie has not noticed it.
            let noticed = (0..LIE_SEEDS_MAX)
                .find(|seed| run(*seed, Some(*lie)).is_err() && run(*seed, None).is_ok());
            assert!(
                noticed.is_some(),
                "{lie:?} is not noticed in {LIE_SEEDS_MAX} seeds"
            );
        }
    }
}
