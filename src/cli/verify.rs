//! `oncelog verify`: reads everything stored, and reports any damage and its place.
//!
//! It reads the log to its end, with every checksum, looks up every event in the index, and finds keys stored
//! twice. Needs exclusive use of the data directory.

use std::{collections::HashSet, ops::Range, path::Path, process::ExitCode};

use super::{Outcome, output::Output};
use crate::{
    config::VerifyArgs,
    event::{Event, FIRST_SEQUENCE, Key, Sequence, Topic},
    index::{self, Entry, IndexReader},
    log::{self, Batch},
    partition::{CountersError, Snapshot, lock_data_dir},
    platform::{OsDisk, Platform},
};

/// Events are looked up in groups of this size, sorted by key, so that the index is read in order.
const LOOKUP_EVENTS: usize = 256 * 1024;
/// The fewest positions of a topic that can be requested.
const POSITIONS_MIN: usize = 2;
/// How many wrong entries of the index are reported one by one.
const REPORTED_MAX: u64 = 100;

pub(super) fn run(args: VerifyArgs) -> Outcome {
    let data_dir = &args.data_dir;
    let log_dir = data_dir.join("log");
    if !log_dir.is_dir() {
        return Err(format!("{}: not an oncelog data directory", data_dir.display()).into());
    }
    let _lock = lock_data_dir(data_dir)?;
    let mut report = Report::default();

    let index_dir = data_dir.join("index");
    let mut check = IndexCheck::new(&index_dir, &mut report)?;
    let (mut batches, mut events) = (0u64, 0u64);
    let checked = log::check(&log_dir, &OsDisk, |batch| {
        batches += 1;
        events += u64::from(batch.count());
        check.add(batch, &mut report);
    })?;
    check.finish(&mut report);
    for damage in &checked.damage {
        report.problem(format!("log: {damage}"));
    }
    if let Some(unfinished) = &checked.unfinished {
        report.remark(format!(
            "log: {unfinished}; if a crash left it, it was never acknowledged, and the next start removes it"
        ));
    }
    check_tail(data_dir, checked.tail, &check.generations, &mut report);

    report.remark(format!(
        "{events} events in {batches} batches; the index holds {} of them in {} generations, the rest is \
         read from the log at the next start",
        check.sealed,
        check.generations.len()
    ));
    report.print()
}

/// Checks the log's end against what other files know of the durable tail.
fn check_tail(
    data_dir: &Path,
    tail: Sequence,
    generations: &[(Range<Sequence>, u64)],
    report: &mut Report,
) {
    let counted = match Snapshot::load(&OsDisk, data_dir) {
        Ok(snapshot) => snapshot.map_or(FIRST_SEQUENCE, |snapshot| snapshot.tail),
        Err(error @ CountersError::UnknownVersion { .. }) => {
            report.problem(format!("counters: {error}"));
            FIRST_SEQUENCE
        }
        Err(error @ (CountersError::Damaged { .. } | CountersError::Io { .. })) => {
            report.problem(format!(
                "counters: {error}; events are counted again from the log at the next start"
            ));
            FIRST_SEQUENCE
        }
    };
    let sealed = generations
        .last()
        .map_or(FIRST_SEQUENCE, |(range, _)| range.end);
    let durable = counted.max(sealed);
    if tail < durable {
        report.problem(format!(
            "log: ends at sequence {tail}, but everything below {durable} was durable: \
             acknowledged events are missing"
        ));
    }
}

#[derive(Default)]
struct Report {
    problems: Vec<String>,
    remarks: Vec<String>,
    /// Wrong entries of the index, including those not reported one by one.
    wrong: u64,
}

impl Report {
    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    fn wrong_entry(&mut self, problem: String) {
        self.wrong += 1;
        if self.wrong <= REPORTED_MAX {
            self.problem(problem);
        }
    }

    fn print(mut self) -> Outcome {
        if self.wrong > REPORTED_MAX {
            let more = self.wrong - REPORTED_MAX;
            self.problem(format!("index: {more} more entries are wrong"));
        }
        let mut output = Output::new();
        for line in self.problems.iter().chain(&self.remarks) {
            output.line(line.as_bytes())?;
        }
        let (verdict, exit) = match self.problems.len() {
            0 => ("no damage found".to_owned(), ExitCode::SUCCESS),
            1 => ("1 problem".to_owned(), ExitCode::FAILURE),
            count => (format!("{count} problems"), ExitCode::FAILURE),
        };
        output.line(verdict.as_bytes())?;
        output.flush()?;
        Ok(exit)
    }
}

/// Compares the log's events, as they are read, with the index.
struct IndexCheck {
    index: IndexReader,
    /// The sequences of each generation, and how many keys it holds.
    generations: Vec<(Range<Sequence>, u64)>,
    waiting: Vec<(Key, Entry)>,
    /// How many events were looked up that a generation covers.
    sealed: u64,
    /// Keys of events that no generation covers.
    unsealed: HashSet<Box<[u8]>>,
}

impl IndexCheck {
    fn new(
        dir: &Path,
        report: &mut Report,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // Reading the log shows whether a generation is ahead of it.
        let (index, rejected) = index::inspect(&Platform::default(), dir, Sequence::MAX)?;
        for rejected in rejected {
            let path = rejected.path.display();
            report.remark(format!(
                "index: {path}: {}; the next start removes it, and rebuilds it if necessary",
                rejected.reason
            ));
        }
        Ok(Self {
            generations: index.generations(),
            index,
            waiting: Vec::new(),
            sealed: 0,
            unsealed: HashSet::new(),
        })
    }

    fn add(&mut self, batch: &Batch, report: &mut Report) {
        let secret = self.index.secret();
        for stored in batch.events() {
            match Event::from_stored(stored.encoded) {
                Ok(event) => {
                    let entry = Entry {
                        sequence: stored.sequence,
                        content_hash: secret.content_hash(event.encoded()),
                    };
                    self.waiting.push((event.key().clone(), entry));
                }
                Err(error) => {
                    report.problem(format!("log: sequence {}: {error}", stored.sequence));
                }
            }
        }
        if self.is_covered(batch.first_sequence()) {
            self.look_up_topics(batch, report);
        }
        if self.waiting.len() >= LOOKUP_EVENTS {
            self.look_up(report);
        }
    }

    fn look_up_topics(&self, batch: &Batch, report: &mut Report) {
        let first = batch.first_sequence();
        for (name, _) in batch.topics() {
            let Ok(topic) = Topic::new(name) else {
                report.problem(format!(
                    "log: sequence {first}: a topic that breaks the limits"
                ));
                continue;
            };
            match self.index.positions(&topic, first, POSITIONS_MIN) {
                Err(error) => report.wrong_entry(format!("index: {error}")),
                Ok(positions) if positions.first() == Some(&first) => {}
                Ok(_) => report.wrong_entry(format!(
                    "sequence {first}: its batch is not in the index under topic {name:?}"
                )),
            }
        }
    }

    fn finish(&mut self, report: &mut Report) {
        self.look_up(report);
        let keys: u64 = self.generations.iter().map(|(_, keys)| keys).sum();
        if keys != self.sealed {
            report.problem(format!(
                "index: its generations hold {keys} keys for {} events",
                self.sealed
            ));
        }
    }

    fn look_up(&mut self, report: &mut Report) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        let view = self.index.view();
        for (key, entry) in waiting {
            let covered = self.is_covered(entry.sequence);
            self.sealed += u64::from(covered);
            let twice = !covered && !self.unsealed.insert(key.as_bytes().into());
            let expected = covered.then_some(entry);
            match view.get(&key, self.index.secret().key_hash(&key)) {
                Err(error) => report.wrong_entry(format!("index: {error}")),
                Ok(found) if found == expected && !twice => {}
                Ok(found) => {
                    let found = found.map(|found| found.sequence);
                    report.wrong_entry(format!(
                        "sequence {}: its key {key:?} is in the index {}{}",
                        entry.sequence,
                        found.map_or("nowhere".to_owned(), |at| format!("at sequence {at}")),
                        if twice { ", and twice in the log" } else { "" },
                    ));
                }
            }
        }
    }

    fn is_covered(&self, sequence: Sequence) -> bool {
        let after = self
            .generations
            .partition_point(|(range, _)| range.start <= sequence);
        let last = after.checked_sub(1).map(|at| &self.generations[at]);
        last.is_some_and(|(range, _)| range.contains(&sequence))
    }
}
