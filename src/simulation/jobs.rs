//! Jobs on one thread: each has its own stack and makes way at every operation that changes the disk.
//!
//! Owns the order of jobs, which follows from the seed, and the time, which passes only here. All state belongs
//! to the thread.

use std::{
    cell::{Cell, RefCell},
    io, thread,
    time::{Duration, Instant},
};

use generator::{Generator, Gn};

use super::chance::Chance;
use crate::{
    event::UnixNanos,
    platform::{Job, Jobs, Running, Step},
};

/// The stack of a job, in words.
const STACK_WORDS: usize = 64 * 1024;
/// Other jobs run at this percentage of disk operations outside jobs.
const PAUSE_PERCENT: u64 = 30;
/// Other jobs run at this percentage of the points between two changes.
const MAKES_WAY_PERCENT: u64 = 30;
/// After this many turns in which nothing was done, a waiting job waits forever.
const TURNS_MAX: u64 = 20_000;

thread_local! {
    static SLOTS: RefCell<Vec<Option<Slot>>> = const { RefCell::new(Vec::new()) };
    static CHANCE: RefCell<Chance> = RefCell::new(Chance::new(0));
    static NANOS: Cell<u64> = const { Cell::new(0) };
    /// How far the wall clock is ahead.
    static AHEAD_NANOS: Cell<u64> = const { Cell::new(0) };
    /// No job makes way at disk operations any more.
    static ENDING: Cell<bool> = const { Cell::new(false) };
    /// Jobs end after their step.
    static LEAVING: Cell<bool> = const { Cell::new(false) };
    static BEGAN: Instant = Instant::now();
}

struct Slot {
    run: Generator<'static, (), Step>,
}

/// Starts again, with no jobs.
pub(super) fn reset(chance: Chance) {
    abandon();
    CHANCE.set(chance);
    NANOS.set(1_700_000_000_000_000_000);
    AHEAD_NANOS.set(0);
    ENDING.set(false);
    LEAVING.set(false);
}

/// A number for [`crate::platform::Platform::random`].
pub(super) fn random() -> u64 {
    CHANCE.with_borrow_mut(Chance::next)
}

/// The wall clock, which may go back.
pub(super) fn time() -> UnixNanos {
    NANOS.get() + AHEAD_NANOS.get()
}

/// Somebody sets the wall clock.
pub(super) fn turn_the_clock(chance: &mut Chance) {
    AHEAD_NANOS.set(chance.below(3_600_000_000_000));
}

pub(super) fn pass(duration: Duration) {
    NANOS.set(NANOS.get() + duration.as_nanos() as u64);
}

/// A disk operation: takes a moment, now and then seconds, and lets other jobs run if the seed says so.
pub(super) fn pause() {
    let (slow, waits) = CHANCE.with_borrow_mut(|chance| (chance.percent(1), chance.below(3_000)));
    pass(Duration::from_millis(if slow { waits } else { 0 }) + Duration::from_micros(50));
    if ENDING.get() || thread::panicking() {
        return;
    }
    if generator::is_generator() {
        make_way(Step::Worked);
        return;
    }
    while CHANCE.with_borrow_mut(|chance| chance.percent(PAUSE_PERCENT)) {
        turn();
    }
}

/// Lets other jobs run, from the middle of a job.
#[expect(
    deprecated,
    reason = "the other way to do it cannot reach through the store's calls"
)]
fn make_way(step: Step) {
    generator::yield_with(step);
}

/// Runs one job until it makes way. False if there is none.
pub(super) fn turn() -> bool {
    let count = SLOTS.with_borrow(|slots| slots.len());
    let from = CHANCE.with_borrow_mut(|chance| chance.place(count.max(1)));
    (0..count).any(|at| resume((from + at) % count).is_some())
}

/// None if this job has ended, or is the running one.
fn resume(at: usize) -> Option<Step> {
    let mut slot = SLOTS.with_borrow_mut(|slots| slots[at].take())?;
    let step = slot.run.resume();
    if step != Some(Step::Ended) && !slot.run.is_done() {
        SLOTS.with_borrow_mut(|slots| slots[at] = Some(slot));
    }
    step
}

/// Lets all jobs do what there is to do at the moment.
pub(super) fn settle() {
    let mut was_idle = false;
    for _ in 0..TURNS_MAX {
        let count = SLOTS.with_borrow(|slots| slots.len());
        let is_idle = (0..count).filter_map(resume).all(|step| step == Step::Idle);
        if is_idle && was_idle {
            return;
        }
        was_idle = is_idle;
    }
    panic!("the jobs always have something to do");
}

/// After a crash or a stop: lets all jobs do what they still can, and then ends them.
pub(super) fn end() {
    ENDING.set(true);
    let mut was_idle = false;
    for _ in 0..TURNS_MAX {
        let count = SLOTS.with_borrow(|slots| slots.len());
        let steps: Vec<Step> = (0..count).filter_map(resume).collect();
        if steps.is_empty() {
            ENDING.set(false);
            LEAVING.set(false);
            return abandon();
        }
        // A job that waits for another must see how its work ended. A job that has just asked another for something
        // looks idle as well, and the other has its turn before the second time.
        if steps.iter().all(|step| *step == Step::Idle) {
            LEAVING.set(was_idle);
            was_idle = true;
        } else {
            was_idle = false;
        }
    }
    panic!("the jobs do not end");
}

/// Forgets all jobs in whatever state: what they hold is never dropped.
pub(super) fn abandon() {
    std::mem::forget(SLOTS.take());
}

/// Jobs on this thread.
pub(super) struct SimJobs;

impl Jobs for SimJobs {
    fn spawn(&self, _: &str, mut job: Box<dyn Job>) -> io::Result<Box<dyn Running>> {
        let run = Gn::new_opt(STACK_WORDS, move || {
            loop {
                let step = job.step();
                if step == Step::Ended || LEAVING.get() {
                    drop(job);
                    return Step::Ended;
                }
                make_way(step);
            }
        });
        let at = SLOTS.with_borrow_mut(|slots| {
            slots.push(Some(Slot { run }));
            slots.len() - 1
        });
        Ok(Box::new(SimRunning(at)))
    }

    fn help(&self) -> bool {
        pass(Duration::from_millis(1));
        if generator::is_generator() {
            make_way(Step::Idle);
            return true;
        }
        assert!(turn(), "a waiting job waits forever");
        true
    }

    fn make_way(&self) {
        let makes_way = CHANCE.with_borrow_mut(|chance| chance.percent(MAKES_WAY_PERCENT));
        if makes_way && !ENDING.get() && !thread::panicking() && generator::is_generator() {
            make_way(Step::Worked);
        }
    }

    fn now(&self) -> Instant {
        BEGAN.with(|began| *began) + Duration::from_nanos(NANOS.get())
    }

    fn parallelism(&self) -> usize {
        1
    }
}

struct SimRunning(usize);

impl Running for SimRunning {
    fn join(self: Box<Self>) -> thread::Result<()> {
        if thread::panicking() {
            return Ok(());
        }
        let is_running =
            || SLOTS.with_borrow(|slots| slots.get(self.0).is_some_and(Option::is_some));
        for _ in 0..TURNS_MAX {
            if !is_running() {
                return Ok(());
            }
            pass(Duration::from_millis(1));
            if generator::is_generator() {
                make_way(Step::Idle);
            } else {
                turn();
            }
        }
        panic!("a job does not end");
    }
}
