//! Speed and CPU against the size of the history, drawn as SVG.

use std::fmt::Write as _;

use crate::{
    measure::{Figures, Sample},
    plan::Resend,
    report::Report,
};

/// A point is the mean over a window in which the history grows by this factor, and which lasts this long: CPU time is
/// counted in hundredths of a second.
const WINDOW_GROWTH: f64 = 1.25;
const WINDOW_SECONDS: f64 = 0.25;

const WIDTH: f64 = 880.0;
const PANEL_HEIGHT: f64 = 300.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const PANEL_GAP: f64 = 64.0;
const LEGEND_TOP: f64 = 30.0;
const LEGEND_LINE: f64 = 22.0;
const LEGEND_COLUMNS: usize = 3;

const INK: &str = "#212529";
const FAINT: &str = "#868e96";
const GRID: &str = "#e9ecef";

/// A line of the plot.
struct Series {
    label: String,
    color: &'static str,
    /// Our own is drawn thicker.
    is_ours: bool,
    points: Vec<Point>,
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

/// Of the series of one label, the one that goes furthest, in the place of the first.
fn longest(series: impl Iterator<Item = Series>) -> Vec<Series> {
    let end = |series: &Series| series.points.last().map_or(0.0, |point| point.history);
    let mut kept: Vec<Series> = Vec::new();
    for one in series {
        match kept.iter_mut().find(|other| other.label == one.label) {
            Some(other) if end(other) < end(&one) => *other = one,
            Some(_) => {}
            None => kept.push(one),
        }
    }
    kept
}

/// Draws the stores of all reports that hold samples enough; of the same load and store the longest run.
pub fn plot(reports: &[Report]) -> String {
    let series = reports
        .iter()
        .flat_map(|report| report.stores.iter().map(move |store| (report, store)))
        .filter(|(_, store)| store.store != "null")
        .map(|(report, store)| series(report, store))
        .filter(|series| series.points.len() > 1);
    let series = longest(series);
    let all = || series.iter().flat_map(|series| &series.points);
    let histories = Axis::over(all().map(|point| point.history));
    let legend_height = series.len().div_ceil(LEGEND_COLUMNS) as f64 * LEGEND_LINE;
    let first_top = LEGEND_TOP + legend_height + 34.0;
    let second_top = first_top + PANEL_HEIGHT + PANEL_GAP;
    let height = second_top + PANEL_HEIGHT + 52.0;

    let mut svg = String::new();
    let out = &mut svg;
    line(
        out,
        format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="13">"#
        ),
    );
    line(
        out,
        format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##),
    );
    legend(out, &series);
    for (title, top, value) in [
        (
            "events sent and acknowledged per second",
            first_top,
            Point::sent_per_second as fn(&Point) -> f64,
        ),
        (
            "server CPU per event sent, microseconds",
            second_top,
            Point::cpu_us,
        ),
    ] {
        let values = Axis::over(all().map(value));
        panel(out, title, top, &histories, &values);
        for series in &series {
            let points = series.points.iter().map(|point| {
                let y = top + PANEL_HEIGHT * (1.0 - values.place(value(point)));
                format!("{:.1},{y:.1}", x(histories.place(point.history)))
            });
            let width = if series.is_ours { 3.0 } else { 1.75 };
            line(
                out,
                format_args!(
                    r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{width}" stroke-linejoin="round" stroke-linecap="round"/>"#,
                    points.collect::<Vec<_>>().join(" "),
                    series.color,
                ),
            );
        }
    }
    line(
        out,
        format_args!(
            r#"<text x="{}" y="{}" text-anchor="middle" fill="{INK}">unique events stored before (all scales are logarithmic)</text>"#,
            (LEFT + WIDTH - RIGHT) / 2.0,
            height - 12.0
        ),
    );
    line(out, format_args!("</svg>"));
    svg
}

fn series(report: &Report, figures: &Figures) -> Series {
    let is_ours = figures.store == "oncelog";
    let (label, color) = match (&*figures.store, report.load.resend) {
        ("oncelog", Resend::Uniform) => ("oncelog", "#e8590c"),
        ("oncelog", Resend::Recent) => ("oncelog", "#1971c2"),
        ("postgres", _) => ("PostgreSQL", "#343a40"),
        ("redis", _) => ("Redis", "#c2255c"),
        ("sqlite", _) => ("SQLite", "#6741d9"),
        ("nats", _) => ("NATS, no sync", "#2f9e44"),
        ("nats-always", _) => ("NATS, sync always", "#94d82d"),
        (other, _) => (other, FAINT),
    };
    let resends = match report.load.resend {
        Resend::Uniform => "resends of any age",
        Resend::Recent => "recent resends",
    };
    Series {
        label: match is_ours {
            true => format!("{label}, {resends}"),
            false => label.to_owned(),
        },
        color,
        is_ours,
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

/// A logarithmic axis.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let values = values.filter(|value| *value > 0.0);
        let (least, most) = values.fold((f64::MAX, 0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        if most == 0.0 {
            return Self {
                from: 1.0,
                to: 10.0,
            };
        }
        // With a little room on both sides, and never empty.
        Self {
            from: least / 1.15,
            to: most * 1.15,
        }
    }

    /// Where a value stands, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
    }

    /// 1, 2 and 5 of each decade, within the axis.
    fn ticks(&self) -> Vec<f64> {
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        decades
            .flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(decade)))
            .filter(|tick| (self.from..=self.to).contains(tick))
            .collect()
    }
}

fn x(place: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * place
}

fn legend(out: &mut String, series: &[Series]) {
    let column = (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS as f64;
    for (at, series) in series.iter().enumerate() {
        let left = LEFT + (at % LEGEND_COLUMNS) as f64 * column;
        let middle = LEGEND_TOP + (at / LEGEND_COLUMNS) as f64 * LEGEND_LINE;
        let (right, text, baseline) = (left + 22.0, left + 29.0, middle + 4.5);
        let (width, color) = (if series.is_ours { 4 } else { 3 }, series.color);
        line(
            out,
            format_args!(
                r#"<path d="M{left} {middle}H{right}" stroke="{color}" stroke-width="{width}"/><text x="{text}" y="{baseline}" fill="{INK}" font-size="12.5">{}</text>"#,
                series.label
            ),
        );
    }
}

fn panel(out: &mut String, title: &str, top: f64, histories: &Axis, values: &Axis) {
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL_HEIGHT);
    let title_y = top - 12.0;
    line(
        out,
        format_args!(
            r#"<text x="{LEFT}" y="{title_y}" fill="{INK}" font-weight="600">{title}</text>"#
        ),
    );
    for tick in values.ticks() {
        let y = top + PANEL_HEIGHT * (1.0 - values.place(tick));
        let (label, label_x, label_y) = (short(tick), LEFT - 10.0, y + 4.5);
        line(
            out,
            format_args!(
                r#"<path d="M{LEFT} {y:.1}H{right}" stroke="{GRID}"/><text x="{label_x}" y="{label_y:.1}" text-anchor="end" fill="{FAINT}">{label}</text>"#
            ),
        );
    }
    for tick in histories.ticks() {
        let (x, label, label_y) = (x(histories.place(tick)), short(tick), bottom + 20.0);
        line(
            out,
            format_args!(
                r#"<path d="M{x:.1} {top}V{bottom}" stroke="{GRID}"/><text x="{x:.1}" y="{label_y}" text-anchor="middle" fill="{FAINT}">{label}</text>"#
            ),
        );
    }
    line(
        out,
        format_args!(r#"<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="{FAINT}"/>"#),
    );
}

/// 0.5, 20, 100k, 5M.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        // A tick below 1 is a tenth, a fifth or a half of something.
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let axis = Axis::over([90.0, 2_500.0].into_iter());
        assert_eq!(axis.ticks(), [100.0, 200.0, 500.0, 1000.0, 2000.0]);
        assert_eq!(axis.place(axis.from), 0.0);
        assert!((axis.place(axis.to) - 1.0).abs() < 1e-9);
        assert_eq!(
            [0.5, 20.0, 200_000.0, 5e6].map(short),
            ["0.5", "20", "200k", "5M"]
        );
    }

    #[test]
    fn of_one_label_the_longest_is_drawn() {
        let series = |label: &str, history| Series {
            label: label.to_owned(),
            color: "#000000",
            is_ours: true,
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
            .map(|series| (series.label.as_str(), series.points[0].history))
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
