//! The result of a soak: figures and a plot.

use oncelog_harness::chart::{Chart, Key, Line, Panel, Scale};
use serde::Serialize;

use super::{
    SoakArgs,
    sample::{Latency, Sample},
};

const PANEL_HEIGHT: f64 = 150.0;
const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// The result of a soak.
#[derive(Debug, Serialize)]
pub struct SoakReport {
    unique: u64,
    resend_percent: u64,
    payload_bytes: u32,
    streams: u64,
    events_per_request: u64,
    requests_in_flight: u64,
    topics: u64,
    seed: u64,
    sent: u64,
    seconds: f64,
    sent_per_second: f64,
    cpu_us_per_event_sent: f64,
    ack_ms_max: f64,
    peak_rss_bytes: u64,
    open_files_max: u64,
    disk_bytes: u64,
    disk_bytes_per_unique: f64,
    listed_per_second: f64,
    recovery_ms_after_kill: u64,
    verify_seconds: f64,
    samples: Vec<Sample>,
}

/// Measurements after the load.
pub struct AfterLoad {
    pub list_seconds: f64,
    pub verify_seconds: f64,
    pub recovery_ms: u64,
    pub disk_bytes: u64,
    pub peak_rss_bytes: u64,
}

impl SoakReport {
    /// The result of a load, from all its samples.
    pub fn new(args: &SoakArgs, after: &AfterLoad, samples: Vec<Sample>) -> Self {
        let end = samples.last().copied().unwrap_or_default();
        let ack_ms_max = samples.iter().map(|sample| sample.ack_ms.max);
        let open_files = samples.iter().map(|sample| sample.open_files);
        Self {
            unique: args.unique,
            resend_percent: args.resends,
            payload_bytes: args.payload,
            streams: args.streams,
            events_per_request: args.batch,
            requests_in_flight: args.in_flight,
            topics: args.topics,
            seed: args.seed,
            sent: end.sent,
            seconds: end.seconds,
            sent_per_second: end.sent as f64 / end.seconds,
            cpu_us_per_event_sent: end.cpu_seconds * 1e6 / end.sent as f64,
            ack_ms_max: ack_ms_max.fold(0.0, f64::max),
            peak_rss_bytes: after.peak_rss_bytes,
            open_files_max: open_files.max().unwrap_or(0),
            disk_bytes: after.disk_bytes,
            disk_bytes_per_unique: after.disk_bytes as f64 / args.unique as f64,
            listed_per_second: args.unique as f64 / after.list_seconds,
            recovery_ms_after_kill: after.recovery_ms,
            verify_seconds: after.verify_seconds,
            samples,
        }
    }

    pub fn print(&self) {
        println!(
            "{} events sent in {:.0} s, {} of them unique: {:.0} events/s, {:.2} us of server CPU each; the slowest ack took \
             {:.0} ms",
            self.sent,
            self.seconds,
            self.unique,
            self.sent_per_second,
            self.cpu_us_per_event_sent,
            self.ack_ms_max
        );
        println!(
            "peak memory {:.0} MiB, {} open files at most, {:.0} bytes of disk per unique event",
            self.peak_rss_bytes as f64 / MIB,
            self.open_files_max,
            self.disk_bytes_per_unique
        );
        println!(
            "counted and listed exactly what was acked, at {:.0} events/s; recovered from kill -9 in {} ms, verified in {:.0} s",
            self.listed_per_second, self.recovery_ms_after_kill, self.verify_seconds
        );
    }

    /// For the docs.
    pub fn markdown(&self) -> String {
        let tenth = self.samples.len() / 10;
        let first = self.samples.get(..=tenth).unwrap_or_default();
        let last = self
            .samples
            .get(self.samples.len().saturating_sub(tenth + 1)..);
        let last = last.unwrap_or_default();
        let rate = |samples: &[Sample]| match samples {
            [from, .., to] => (to.sent - from.sent) as f64 / (to.seconds - from.seconds),
            _ => 0.0,
        };
        let median = |samples: &[Sample], value: fn(&Latency) -> f64| {
            let mut values: Vec<f64> = samples.iter().skip(1).map(|s| value(&s.ack_ms)).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let most = |samples: &[Sample], value: fn(&Sample) -> f64| {
            samples.iter().map(value).fold(0.0, f64::max)
        };
        let row = |name: &str, value: &dyn Fn(&[Sample]) -> f64| {
            let [first, last, all] = [first, last, &self.samples].map(value);
            format!("| {name} | {first:.0} | {last:.0} | {all:.0} |\n")
        };
        let rows = [
            row("events sent and acked per second", &|samples| rate(samples)),
            row("ack of a request, p50, ms", &|samples| {
                median(samples, |ack| ack.p50)
            }),
            row("ack of a request, p99, ms", &|samples| {
                median(samples, |ack| ack.p99)
            }),
            row("ack of a request, slowest, ms", &|samples| {
                most(samples, |s| s.ack_ms.max)
            }),
            row("memory at most, MiB", &|samples| {
                most(samples, |s| s.rss_bytes as f64 / MIB)
            }),
            row("open files at most", &|samples| {
                most(samples, |s| s.open_files as f64)
            }),
            row("files on disk at most", &|samples| {
                most(samples, |s| s.data_files as f64)
            }),
        ];
        format!(
            "{} events sent in {:.0} s over {} streams in requests of {}, {} of them unique, with payloads of {} bytes: {:.2} us \
             of server CPU per event sent, {:.0} bytes of disk per unique event, {:.0} MiB of memory at its peak. The counters and \
             a list of all events are exactly what was acked; after a kill -9 it served again in {} ms; `oncelog verify` took {:.0} \
             s.\n\n| | first tenth | last tenth | all |\n|---|---|---|---|\n{}\n\
             ![rate, latency, CPU, memory, disk and files against the number of unique events](soak.svg)\n",
            self.sent,
            self.seconds,
            self.streams,
            self.events_per_request,
            self.unique,
            self.payload_bytes,
            self.cpu_us_per_event_sent,
            self.disk_bytes_per_unique,
            self.peak_rss_bytes as f64 / MIB,
            self.recovery_ms_after_kill,
            self.verify_seconds,
            rows.concat()
        )
    }

    /// All samples against the size of the history.
    pub fn chart(&self) -> Chart {
        let at = |name, color, value: fn(&Sample) -> f64| {
            let points = self.samples.iter().skip(1);
            let points = points.map(|sample| (sample.stored as f64, value(sample)));
            line(name, color, points.collect())
        };
        let between = |name, color, value: fn(&Sample, &Sample) -> f64| {
            let pairs = self.samples.windows(2);
            let points = pairs.map(|pair| (pair[1].stored as f64, value(&pair[0], &pair[1])));
            line(name, color, points.collect())
        };
        let latency = |name, color, value: fn(&Latency) -> f64| {
            let points = self.samples.iter().skip(1);
            let points = points.map(|sample| (sample.stored as f64, value(&sample.ack_ms)));
            line(name, color, points.collect())
        };
        let panel = |title: &str, scale, lines| Panel {
            title: title.to_owned(),
            scale,
            lines,
        };
        let panels = vec![
            panel(
                "events per second",
                Scale::Linear,
                vec![
                    between("sent", "#e8590c", |from, to| {
                        (to.sent - from.sent) as f64 / (to.seconds - from.seconds)
                    }),
                    between("stored", "#1971c2", |from, to| {
                        (to.stored - from.stored) as f64 / (to.seconds - from.seconds)
                    }),
                ],
            ),
            panel(
                "request to ack, milliseconds (logarithmic)",
                Scale::Logarithmic,
                vec![
                    latency("median", "#e8590c", |ack| ack.p50),
                    latency("p99", "#1971c2", |ack| ack.p99),
                    latency("slowest", "#868e96", |ack| ack.max),
                ],
            ),
            panel(
                "server CPU per event sent, microseconds",
                Scale::Linear,
                vec![between("CPU", "#e8590c", |from, to| {
                    (to.cpu_seconds - from.cpu_seconds) * 1e6 / (to.sent - from.sent).max(1) as f64
                })],
            ),
            panel(
                "server memory, MiB",
                Scale::Linear,
                vec![at("RSS", "#e8590c", |sample| sample.rss_bytes as f64 / MIB)],
            ),
            panel(
                "data directory, GiB",
                Scale::Linear,
                vec![at("bytes", "#e8590c", |sample| {
                    sample.data_bytes as f64 / GIB
                })],
            ),
            panel(
                "files",
                Scale::Linear,
                vec![
                    at("open", "#e8590c", |sample| sample.open_files as f64),
                    at("on disk", "#1971c2", |sample| sample.data_files as f64),
                ],
            ),
        ];
        Chart {
            title: "unique events stored".to_owned(),
            scale: Scale::Linear,
            legend: Vec::new(),
            panels,
            panel_height: PANEL_HEIGHT,
        }
    }
}

/// Prints progress: the rate between two samples, and the other figures of the second.
pub fn print_sample(from: &Sample, to: &Sample) {
    println!(
        "{:>11} stored  {:>7.0} events/s  ack {:>6.1} / {:>6.1} / {:>6.1} ms  {:>5.0} MiB  {:>4} open files  {:>6.2} GiB",
        to.stored,
        (to.sent - from.sent) as f64 / (to.seconds - from.seconds),
        to.ack_ms.p50,
        to.ack_ms.p99,
        to.ack_ms.max,
        to.rss_bytes as f64 / MIB,
        to.open_files,
        to.data_bytes as f64 / GIB,
    );
}

fn line(name: &str, color: &'static str, points: Vec<(f64, f64)>) -> Line {
    Line {
        key: Key {
            label: name.to_owned(),
            color,
            is_bold: false,
        },
        points,
    }
}
