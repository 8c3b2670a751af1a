//! The results of the rounds.

use std::collections::BTreeMap;

use oncelog_harness::process::Usage;
use serde::Serialize;

use super::{
    load::Latencies,
    matrix::{self, Cell},
    rude::RudeReport,
};

const MIB: u64 = 1024 * 1024;

/// All rounds so far.
#[derive(Default, Serialize)]
pub struct Report {
    pub seed: u64,
    pub rounds: u32,
    pub seconds: f64,
    /// Idle connections in a round.
    pub idle_connections: usize,
    /// Streams open at once in a round.
    pub streams: usize,
    pub acked: u64,
    pub stored: u64,
    /// Connections through the proxy, each of which failed.
    pub failed_connections: u64,
    /// Connections whose peer vanished.
    pub vanished_connections: usize,
    /// Attacking connections, by attack.
    pub attacks: BTreeMap<&'static str, usize>,
    /// The longest that an ack took during attacks.
    pub ack_ms_max: u64,
    /// Before the first round, at most, and after the last.
    pub rss_mib: [u64; 3],
    pub open_files: [u64; 3],
    /// The result of the rude client, if it ran.
    pub rude: Option<RudeReport>,
    /// Every endpoint against every rude behaviour, if that ran.
    pub matrix: Vec<Cell>,
}

impl Report {
    /// Records usage under load.
    pub fn peak(&mut self, usage: &Usage) {
        self.rss_mib[1] = self.rss_mib[1].max(usage.peak_rss_bytes / MIB);
        self.open_files[1] = self.open_files[1].max(usage.open_files);
    }

    /// Records usage when nobody is connected.
    pub fn at_rest(&mut self, usage: &Usage) {
        let at = if self.rounds == 0 { 0 } else { 2 };
        self.rss_mib[at] = usage.rss_bytes / MIB;
        self.open_files[at] = usage.open_files;
        self.peak(usage);
    }

    pub fn took(&mut self, latencies: &Latencies) {
        self.ack_ms_max = self.ack_ms_max.max(latencies.share_ms(1.0));
    }

    /// For the docs.
    pub fn markdown(&self) -> String {
        let mut attacks = String::from("| attack | connections |\n|---|---|\n");
        for (name, connections) in &self.attacks {
            attacks += &format!("| {name} | {connections} |\n");
        }
        let row = |name: &str, [before, peak, after]: [u64; 3]| {
            format!("| {name} | {before} | {peak} | {after} |\n")
        };
        let mut rude = self
            .rude
            .as_ref()
            .map_or_else(String::new, |rude| format!("\nThen {}.\n", rude.text()));
        if !self.matrix.is_empty() {
            rude += &format!("\nThen {}.\n", matrix::text(&self.matrix));
        }
        format!(
            "{} rounds in {:.0} s with seed {}, each with {} idle connections and {} streams that publish at once; in all {} \
             connections that the proxy failed, {} whose peer vanished, {} that attacked. {} events were acked and {} stored, \
             each once, and each was read once. Under attack an ack took {} ms at most.\n\n\
             | | before | at most | after |\n|---|---|---|---|\n{}{}\n{attacks}{rude}",
            self.rounds,
            self.seconds,
            self.seed,
            self.idle_connections,
            self.streams,
            self.failed_connections,
            self.vanished_connections,
            self.attacks.values().sum::<usize>(),
            self.acked,
            self.stored,
            self.ack_ms_max,
            row("memory, MiB", self.rss_mib),
            row("open files", self.open_files),
        )
    }

    pub fn print(&self) {
        for (name, connections) in &self.attacks {
            println!("{connections:>8}  {name}");
        }
        let [rss_before, rss_peak, rss_after] = self.rss_mib;
        let [files_before, files_peak, files_after] = self.open_files;
        println!(
            "{} rounds in {:.0} s with seed {}: {} idle connections and {} streams at once, {} connections that failed, \
             {} that vanished, {} that attacked",
            self.rounds,
            self.seconds,
            self.seed,
            self.idle_connections,
            self.streams,
            self.failed_connections,
            self.vanished_connections,
            self.attacks.values().sum::<usize>(),
        );
        println!(
            "{} events acked, {} stored, each once and read once; under attack an ack took {} ms at most",
            self.acked, self.stored, self.ack_ms_max
        );
        println!("memory {rss_before} MiB before, {rss_peak} at most, {rss_after} after");
        println!("open files {files_before} before, {files_peak} at most, {files_after} after");
    }
}
