//! Speed and CPU against the size of the history, drawn as SVG.

use oncelog_harness::chart::{Chart, Key, Line, Panel, Scale};

use crate::{
    measure::{Figures, Sample},
    plan::Resend,
    report::Report,
};

/// A point is the mean over a window in which the history grows by this factor, and which lasts at least this long:
/// CPU time is counted in hundredths of a second.
const WINDOW_GROWTH: f64 = 1.25;
const WINDOW_SECONDS: f64 = 0.25;

const PANEL_HEIGHT: f64 = 300.0;
const OTHER: &str = "#868e96";

/// A store under a load.
struct Series {
    /// oncelog's is the highlighted one.
    key: Key,
    points: Vec<Point>,
}

impl Series {
    fn line(&self, value: fn(&Point) -> f64) -> Line {
        let points = self.points.iter();
        Line {
            key: self.key.clone(),
            points: points.map(|point| (point.history, value(point))).collect(),
        }
    }
}

/// A window of a load.
struct Point {
    /// Unique events stored, in the middle of the window.
    history: f64,
    sent: f64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Point {
    fn sent_per_second(&self) -> f64 {
        self.sent / self.seconds
    }

    fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.sent
    }
}

/// Of several series with one label, the one that reaches furthest, in the place of the first.
fn longest(series: impl Iterator<Item = Series>) -> Vec<Series> {
    let end = |series: &Series| series.points.last().map_or(0.0, |point| point.history);
    let mut kept: Vec<Series> = Vec::new();
    for one in series {
        match kept
            .iter_mut()
            .find(|other| other.key.label == one.key.label)
        {
            Some(other) if end(other) < end(&one) => *other = one,
            Some(_) => {}
            None => kept.push(one),
        }
    }
    kept
}

/// Draws the stores of all reports with enough samples; of the same load and store, the longest run.
pub fn plot(reports: &[Report]) -> String {
    let series = reports
        .iter()
        .flat_map(|report| report.stores.iter().map(move |store| (report, store)))
        .filter(|(_, store)| store.store != "null")
        .map(|(report, store)| series(report, store))
        .filter(|series| series.points.len() > 1);
    let series = longest(series);
    let panel = |title: &str, value: fn(&Point) -> f64| Panel {
        title: title.to_owned(),
        scale: Scale::Logarithmic,
        lines: series.iter().map(|series| series.line(value)).collect(),
    };
    let chart = Chart {
        title: "unique events stored before (all scales are logarithmic)".to_owned(),
        scale: Scale::Logarithmic,
        legend: series.iter().map(|series| series.key.clone()).collect(),
        panels: vec![
            panel(
                "events sent and acknowledged per second",
                Point::sent_per_second,
            ),
            panel("server CPU per event sent, microseconds", Point::cpu_us),
        ],
        panel_height: PANEL_HEIGHT,
    };
    chart.to_string()
}

fn series(report: &Report, figures: &Figures) -> Series {
    let is_bold = figures.store == "oncelog";
    let (label, color) = match (&*figures.store, report.load.resend) {
        ("oncelog", Resend::Uniform) => ("oncelog", "#e8590c"),
        ("oncelog", Resend::Recent) => ("oncelog", "#1971c2"),
        ("postgres", _) => ("PostgreSQL", "#343a40"),
        ("redis", _) => ("Redis", "#c2255c"),
        ("sqlite", _) => ("SQLite", "#6741d9"),
        ("nats", _) => ("NATS, no sync", "#2f9e44"),
        ("nats-always", _) => ("NATS, sync always", "#94d82d"),
        (other, _) => (other, OTHER),
    };
    let resends = match report.load.resend {
        Resend::Uniform => "resends of any age",
        Resend::Recent => "recent resends",
    };
    Series {
        key: Key {
            label: match is_bold {
                true => format!("{label}, {resends}"),
                false => label.to_owned(),
            },
            color,
            is_bold,
        },
        points: windows(&figures.samples),
    }
}

fn windows(samples: &[Sample]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut samples = samples.iter().filter(|sample| sample.stored > 0);
    let Some(mut from) = samples.next() else {
        return points;
    };
    for to in samples {
        let growth = to.stored as f64 / from.stored as f64;
        let seconds = to.seconds - from.seconds;
        if growth < WINDOW_GROWTH || seconds < WINDOW_SECONDS {
            continue;
        }
        points.push(Point {
            history: (from.stored as f64 * to.stored as f64).sqrt(),
            sent: (to.sent - from.sent) as f64,
            seconds,
            cpu_seconds: to.server_cpu_seconds - from.server_cpu_seconds,
        });
        from = to;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_label_the_longest_is_drawn() {
        let series = |label: &str, history| Series {
            key: Key {
                label: label.to_owned(),
                color: "#000000",
                is_bold: true,
            },
            points: vec![Point {
                history,
                sent: 1.0,
                seconds: 1.0,
                cpu_seconds: 1.0,
            }],
        };
        let all = [
            series("a", 1.0),
            series("b", 5.0),
            series("a", 3.0),
            series("b", 2.0),
        ];
        let kept = longest(all.into_iter());
        let kept: Vec<_> = kept
            .iter()
            .map(|series| (series.key.label.as_str(), series.points[0].history))
            .collect();
        assert_eq!(kept, [("a", 3.0), ("b", 5.0)]);
    }

    #[test]
    fn windows_grow_with_the_history() {
        let samples: Vec<Sample> = (0..=1000)
            .map(|step: u64| Sample {
                seconds: step as f64 * 0.1,
                sent: step * 25_000,
                stored: step * 20_000,
                server_cpu_seconds: step as f64 * 0.05,
                memory_bytes: 0,
            })
            .collect();
        let points = windows(&samples);
        assert!((10..40).contains(&points.len()), "{}", points.len());
        for point in points {
            assert!((point.sent_per_second() - 250_000.0).abs() < 1.0);
            assert!((point.cpu_us() - 2.0).abs() < 1e-6);
        }
        assert!(windows(&[]).is_empty());
    }
}
