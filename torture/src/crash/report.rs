//! The results of rounds: a line for each, and figures by kind.

use std::{collections::BTreeMap, time::Instant};

use serde::Serialize;

use super::{
    memory::Counts,
    round::{Kind, RoundResult},
};

/// All rounds so far.
#[derive(Serialize)]
pub struct Report {
    seed: u64,
    pub rounds: u32,
    skipped: u32,
    seconds: f64,
    #[serde(flatten)]
    counts: Counts,
    kinds: BTreeMap<Kind, Of>,
    #[serde(skip)]
    began: Instant,
}

/// The rounds of a kind.
#[derive(Default, Serialize)]
struct Of {
    passed: u32,
    /// Passed rounds in which nothing was harmed: the fault was never met.
    unharmed: u32,
    /// See [`RoundResult`].
    harms: u64,
    skipped: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_skipped: Option<String>,
    recovery_ms_max: u64,
    #[serde(flatten)]
    counts: Counts,
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rounds: 0,
            skipped: 0,
            seconds: 0.0,
            counts: Counts::default(),
            kinds: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    /// Records a round that kept every promise, on a store with these counts before and after it.
    pub fn passed(
        &mut self,
        round: u32,
        kind: Kind,
        before: Counts,
        after: Counts,
        recovery_ms: u64,
        result: &RoundResult,
    ) {
        let counts = after.since(&before);
        self.rounds += 1;
        self.seconds = self.began.elapsed().as_secs_f64();
        self.counts.add(&counts);
        let of = self.kinds.entry(kind).or_default();
        of.passed += 1;
        of.unharmed += u32::from(result.harms == 0);
        of.harms += result.harms;
        of.recovery_ms_max = of.recovery_ms_max.max(recovery_ms);
        of.counts.add(&counts);
        println!(
            "{round:>4}  {:<14} {:>9} acked  recovered in {recovery_ms:>4} ms  {}",
            kind.name(),
            self.counts.acked,
            result.text,
        );
    }

    /// Records a round that was impossible.
    pub fn skipped(&mut self, round: u32, kind: Kind, why: &str) {
        self.skipped += 1;
        let of = self.kinds.entry(kind).or_default();
        of.skipped += 1;
        of.why_skipped = Some(why.to_owned());
        println!("{round:>4}  {:<14} skipped: {why}", kind.name());
    }

    /// For the docs.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{}.\n\n\
             | round | passed | kills, faults met, places damaged | events acked | longest recovery, ms |\n\
             |---|---|---|---|---|\n",
            self.in_all()
        );
        for (kind, of) in &self.kinds {
            let passed = match &of.why_skipped {
                Some(why) => format!("{}, {} skipped ({why})", of.passed, of.skipped),
                None => of.passed.to_string(),
            };
            text += &format!(
                "| `{}` | {passed} | {} | {} | {} |\n",
                kind.name(),
                of.harms,
                of.counts.acked,
                of.recovery_ms_max
            );
        }
        text
    }

    /// The figures by kind.
    pub fn print(&self) {
        println!(
            "\n{:<14} {:>6} {:>8} {:>7} {:>6} {:>11} {:>11} {:>17}",
            "kind", "passed", "unharmed", "skipped", "harms", "acked", "read", "recovery, at most"
        );
        for (kind, of) in &self.kinds {
            println!(
                "{:<14} {:>6} {:>8} {:>7} {:>6} {:>11} {:>11} {:>14} ms",
                kind.name(),
                of.passed,
                of.unharmed,
                of.skipped,
                of.harms,
                of.counts.acked,
                of.counts.read,
                of.recovery_ms_max
            );
        }
        println!("{}", self.in_all());
    }

    fn in_all(&self) -> String {
        let Counts {
            acked,
            stored,
            duplicates,
            conflicts,
            rejected,
            read,
        } = self.counts;
        let in_totals = acked - stored - duplicates - conflicts - rejected;
        format!(
            "{} rounds, {} skipped, in {:.0} s with seed {}: {acked} events acked, {stored} of them as stored, {duplicates} as \
             duplicates, {conflicts} as conflicts, {rejected} as rejected and {in_totals} in the totals of a stream; {read} \
             read and compared; every promise kept",
            self.rounds, self.skipped, self.seconds, self.seed
        )
    }
}
