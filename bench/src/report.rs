//! The result of a run, as JSON and as a table.

use std::{
    fmt::{self, Display, Write as _},
    fs,
    path::Path,
};

use oncelog_harness::{
    machine::{self, Machine},
    number::grouped,
};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    args::RunArgs,
    disk::DiskFigures,
    event::{Events, IdKind},
    measure::{Figures, Kept},
    plan::Resend,
    recorder::Latency,
};

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub date: String,
    pub command: String,
    pub machine: Machine,
    pub load: LoadShape,
    /// Measured before each store and after the last.
    pub disk: Vec<DiskFigures>,
    pub stores: Vec<Figures>,
    pub skipped: Vec<Skipped>,
}

/// The load of every store.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LoadShape {
    pub unique: u64,
    pub event_bytes: usize,
    pub payload_bytes: u64,
    pub streams: u64,
    pub topics: u64,
    pub resend_percent: u64,
    pub resend: Resend,
    pub ids: IdKind,
    pub seed: u64,
}

/// A store that was not measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Skipped {
    pub store: String,
    pub reason: String,
}

impl Report {
    /// An empty run.
    pub fn new(args: &RunArgs, events: &Events) -> Result<Self> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let command = format!(
            "cargo run --release -p oncelog-bench -- {}",
            arguments.join(" ")
        );
        Ok(Self {
            date: machine::today(),
            command: command.trim_end_matches([' ', '-']).to_owned(),
            machine: Machine::here(&args.scratch)?,
            load: LoadShape {
                unique: args.unique,
                event_bytes: events.encoded_len(),
                payload_bytes: args.payload,
                streams: args.streams,
                topics: args.topics,
                resend_percent: args.resends,
                resend: args.resend,
                ids: args.ids,
                seed: args.seed,
            },
            disk: Vec::new(),
            stores: Vec::new(),
            skipped: Vec::new(),
        })
    }

    /// Reads a report written as JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let report = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let report = serde_json::from_slice(&report);
        Ok(report.map_err(|error| format!("{} is no report: {error}", path.display()))?)
    }

    /// Its distinguishing features.
    pub fn title(&self) -> String {
        let resends = match self.load.resend {
            Resend::Uniform => "resends of any age",
            Resend::Recent => "recent resends",
        };
        format!(
            "{} unique events, {resends}",
            Count(self.load.unique as f64)
        )
    }

    /// The median figure of the disk.
    fn disk(&self, figure: impl Fn(&DiskFigures) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.disk.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn store(&self, name: &str) -> Option<&Figures> {
        self.stores.iter().find(|figures| figures.store == name)
    }

    /// The fastest peer with the same promises as oncelog.
    fn best_peer(&self) -> Option<&Figures> {
        let peers = self
            .stores
            .iter()
            .filter(|figures| figures.store != "oncelog");
        let equal = peers.filter(|figures| figures.promise.is_equal);
        equal.max_by(|one, other| one.unique_per_second.total_cmp(&other.unique_per_second))
    }
}

/// Markdown that is readable as text.
impl Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, load) = (&self.machine, &self.load);
        writeln!(
            out,
            "{}: {}, {} cores, {} of memory, {}, {}.\n",
            self.date,
            machine.cpu,
            machine.cores,
            Bytes(machine.memory_bytes as f64),
            machine.disk,
            machine.kernel,
        )?;
        writeln!(out, "```sh\n{}\n```\n", self.command)?;
        writeln!(
            out,
            "Events of {} bytes with payloads of {}, {} topics, {} streams; {} % of the events sent are resends, {}; \
             ids: {}.\n",
            load.event_bytes,
            load.payload_bytes,
            load.topics,
            load.streams,
            load.resend_percent,
            match load.resend {
                Resend::Uniform => "uniform over all history",
                Resend::Recent => "of the last 100,000 events",
            },
            match load.ids {
                IdKind::Uuid4 => "UUIDv4",
                IdKind::Uuid7 => "UUIDv7",
                IdKind::Text => "text of 83 bytes",
            },
        )?;
        write!(out, "{}", self.table())?;
        for Skipped { store, reason } in &self.skipped {
            writeln!(out, "\n{store} was skipped: {reason}.")?;
        }
        writeln!(out)?;
        self.write_disk(out)
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::default();
        let stores = &self.stores;
        table.row("", stores, |figures| figures.store.clone());
        table.row("an ack comes after", stores, |figures| {
            figures.promise.durability.clone()
        });
        table.row("duplicates are found in", stores, |figures| {
            figures.promise.horizon.clone()
        });
        table.row("unique events", stores, |figures| {
            Count(figures.unique as f64).to_string()
        });
        table.row("events per request", stores, |figures| {
            figures.batch.to_string()
        });
        table.row("**events/s sent**", stores, |figures| {
            Count(figures.sent_per_second).to_string()
        });
        table.row("**unique events/s**", stores, |figures| {
            Count(figures.unique_per_second).to_string()
        });
        let latency =
            |of: Latency| format!("{:.2} / {:.1} / {:.1}", of.p50_ms, of.p99_ms, of.p999_ms);
        table.row(
            "ack at this load, p50 / p99 / p99.9, ms",
            stores,
            |figures| latency(figures.latency_load),
        );
        table.row("ack of one event at a time, ms", stores, |figures| {
            latency(figures.latency_single)
        });
        table.row("**server CPU per event sent, us**", stores, |figures| {
            format!("{:.2}", figures.server_cpu_us)
        });
        table.row("of it after the last ack", stores, |figures| {
            format!("{:.2}", figures.server_cpu_us_after)
        });
        table.row("client CPU per event sent, us", stores, |figures| {
            format!("{:.2}", figures.client_cpu_us)
        });
        table.row("server memory at its peak", stores, |figures| {
            format!(
                "{} {}",
                Bytes(figures.memory_bytes as f64),
                figures.memory_kind
            )
        });
        let mut kept = |name, figure: fn(&Kept) -> String| {
            table.row(name, stores, |figures| {
                figures.kept.as_ref().map_or("-".to_owned(), figure)
            });
        };
        kept("disk per unique event, bytes", |kept| {
            format!("{:.0}", kept.disk_bytes_per_event)
        });
        kept("of it beyond the encoded event", |kept| {
            format!("{:.0}", kept.disk_bytes_beyond)
        });
        kept("read back, all, events/s", |kept| {
            Count(kept.read_all_per_second).to_string()
        });
        kept("read back, one topic, events/s", |kept| {
            Count(kept.read_topic_per_second).to_string()
        });
        kept("read back, all by 4 readers, events/s", |kept| {
            Count(kept.read_four_per_second).to_string()
        });
        kept("server CPU per event read, us", |kept| {
            format!("{:.2}", kept.read_server_cpu_us)
        });
        kept("kill -9 to serving again, s", |kept| {
            format!("{:.2}", kept.restart_seconds)
        });
        table
    }

    fn write_disk(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let append_256 = self.disk(|figures| figures.append_256_per_second);
        let append_4096 = self.disk(|figures| figures.append_4096_per_second);
        let single_ms = self.disk(|figures| figures.single.p50_ms);
        writeln!(
            out,
            "The disk alone, median of {} measurements between the stores: `write` and `fdatasync` of {} events/s in groups \
             of 256, {} in groups of 4096; one event in {single_ms:.2} ms.",
            self.disk.len(),
            Count(append_256),
            Count(append_4096),
        )?;
        let Some(at) = self
            .stores
            .iter()
            .position(|figures| figures.store == "oncelog")
        else {
            return Ok(());
        };
        let ours = &self.stores[at];
        let around = &self.disk[at..=at + 1];
        let mean = |figure: fn(&DiskFigures) -> f64| around.iter().map(figure).sum::<f64>() / 2.0;
        writeln!(
            out,
            "oncelog stores {:.0} % of what the disk took right before and after it in groups of 256, and {:.0} % of that in \
             groups of 4096; it acks one event {:.2} ms after the bare sync.",
            ours.unique_per_second / mean(|figures| figures.append_256_per_second) * 100.0,
            ours.unique_per_second / mean(|figures| figures.append_4096_per_second) * 100.0,
            ours.latency_single.p50_ms - mean(|figures| figures.single.p50_ms),
        )?;
        if let Some(null) = self.store("null") {
            let share = ours.sent_per_second / null.sent_per_second * 100.0;
            writeln!(
                out,
                "It takes {share:.0} % of the events/s that the server without a store takes."
            )?;
        }
        if let Some(peer) = self.best_peer() {
            let ratio = ours.unique_per_second / peer.unique_per_second;
            writeln!(
                out,
                "It stores {ratio:.1} times as much as {}, the fastest peer that syncs before it acks and finds duplicates \
                 in the whole history.",
                peer.store,
            )?;
        }
        Ok(())
    }
}

/// A table in Markdown, with columns as wide as they need to be.
#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn row(&mut self, name: &str, stores: &[Figures], cell: impl Fn(&Figures) -> String) {
        let cells = stores.iter().map(cell);
        self.rows
            .push(std::iter::once(name.to_owned()).chain(cells).collect());
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].len()).max();
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for (at, row) in self.rows.iter().enumerate() {
            let mut line = String::from("|");
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, " {cell:width$} |")?;
            }
            writeln!(out, "{line}")?;
            if at == 0 {
                let rules = widths.iter().map(|width| "-".repeat(width + 2));
                writeln!(out, "|{}|", rules.collect::<Vec<_>>().join("|"))?;
            }
        }
        Ok(())
    }
}

/// A number to three digits, with separators.
struct Count(f64);

impl Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        if rest >= 1000.0 {
            let unit = 10_f64.powf(rest.log10().floor() - 2.0);
            rest = (rest / unit).round() * unit;
        }
        out.write_str(&grouped(&format!("{rest:.0}")))
    }
}

struct Bytes(f64);

impl Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        match self.0 / MIB {
            mib if mib < 10_240.0 => write!(out, "{mib:.0} MiB"),
            mib => write!(out, "{:.0} GiB", mib / 1024.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short_and_readable() {
        let shown = |count: f64| Count(count).to_string();
        assert_eq!(shown(0.0), "0");
        assert_eq!(shown(999.4), "999");
        assert_eq!(shown(1_000_000.0), "1,000,000");
        assert_eq!(shown(123_456.0), "123,000");
        assert_eq!(shown(87_654.3), "87,700");
        assert_eq!(shown(1_234.0), "1,230");
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!(Bytes(187.4 * 1024.0 * 1024.0).to_string(), "187 MiB");
        assert_eq!(Bytes(24.0 * 1024.0 * 1024.0 * 1024.0).to_string(), "24 GiB");
    }
}
