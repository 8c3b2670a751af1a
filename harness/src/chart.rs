//! Lines over a shared axis, in panels above one another, drawn as SVG.

use std::fmt::{self, Display, Formatter};

const WIDTH: f64 = 880.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const PANEL_GAP: f64 = 64.0;
const LEGEND_TOP: f64 = 30.0;
const LEGEND_LINE: f64 = 22.0;
const LEGEND_COLUMNS: usize = 3;
/// The width of a key beside a panel's title.
const KEY_WIDTH: f64 = 120.0;
/// The most ticks of a linear axis.
const TICKS_MAX: f64 = 6.0;

const INK: &str = "#212529";
const FAINT: &str = "#868e96";
const GRID: &str = "#e9ecef";

/// A chart.
#[derive(Debug)]
pub struct Chart {
    /// The meaning of the shared axis.
    pub title: String,
    /// The scale of the shared axis.
    pub scale: Scale,
    /// The keys of lines that every panel has; empty if each panel has its own.
    pub legend: Vec<Key>,
    /// From top to bottom.
    pub panels: Vec<Panel>,
    /// The height of each panel.
    pub panel_height: f64,
}

/// Lines in one frame.
#[derive(Debug)]
pub struct Panel {
    /// The meaning of its axis, with its unit.
    pub title: String,
    /// The scale of its axis.
    pub scale: Scale,
    /// In drawing order.
    pub lines: Vec<Line>,
}

/// A line.
#[derive(Debug)]
pub struct Line {
    /// Its key.
    pub key: Key,
    /// Its points: on the shared axis, and on that of the panel.
    pub points: Vec<(f64, f64)>,
}

/// The name and look of a line.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name.
    pub label: String,
    /// Its color, as `#rrggbb`.
    pub color: &'static str,
    /// Whether it is the highlighted one.
    pub is_bold: bool,
}

/// The arrangement of values on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// Around the values, which must be positive.
    Logarithmic,
}

impl Display for Chart {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let points = self.panels.iter().flat_map(Panel::points);
        let shared = Axis::over(self.scale, points.map(|(x, _)| x));
        let legend_height = self.legend.len().div_ceil(LEGEND_COLUMNS) as f64 * LEGEND_LINE;
        let first_top = LEGEND_TOP + legend_height + 34.0;
        let step = self.panel_height + PANEL_GAP;
        let height = first_top + step * self.panels.len() as f64 - PANEL_GAP + 52.0;
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="13">"#
        )?;
        writeln!(
            out,
            r##"<rect width="100%" height="100%" fill="#ffffff"/>"##
        )?;
        let column = (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS as f64;
        for (at, key) in self.legend.iter().enumerate() {
            let left = LEFT + (at % LEGEND_COLUMNS) as f64 * column;
            let middle = LEGEND_TOP + (at / LEGEND_COLUMNS) as f64 * LEGEND_LINE;
            key.draw(out, left, middle)?;
        }
        let mut top = first_top;
        for panel in &self.panels {
            let frame = Frame {
                top,
                height: self.panel_height,
                shared: &shared,
                values: Axis::over(panel.scale, panel.points().map(|(_, y)| y)),
            };
            frame.draw(out, &panel.title)?;
            if self.legend.is_empty() && panel.lines.len() > 1 {
                let keys = panel.lines.len() as f64 * KEY_WIDTH;
                let mut left = WIDTH - RIGHT - keys;
                for line in &panel.lines {
                    line.key.draw(out, left, top - 16.5)?;
                    left += KEY_WIDTH;
                }
            }
            for line in &panel.lines {
                frame.draw_line(out, line)?;
            }
            top += step;
        }
        writeln!(
            out,
            r#"<text x="{}" y="{}" text-anchor="middle" fill="{INK}">{}</text>"#,
            (LEFT + WIDTH - RIGHT) / 2.0,
            height - 12.0,
            self.title
        )?;
        writeln!(out, "</svg>")
    }
}

impl Panel {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines.iter().flat_map(|line| line.points.clone())
    }
}

impl Key {
    fn draw(&self, out: &mut Formatter<'_>, left: f64, middle: f64) -> fmt::Result {
        let (right, text, baseline) = (left + 22.0, left + 29.0, middle + 4.5);
        let (width, color) = (if self.is_bold { 4 } else { 3 }, self.color);
        writeln!(
            out,
            r#"<path d="M{left} {middle}H{right}" stroke="{color}" stroke-width="{width}"/><text x="{text}" y="{baseline}" fill="{INK}" font-size="12.5">{}</text>"#,
            self.label
        )
    }
}

/// A panel in its place.
struct Frame<'a> {
    top: f64,
    height: f64,
    shared: &'a Axis,
    values: Axis,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.shared.place(value)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - self.values.place(value))
    }

    fn draw(&self, out: &mut Formatter<'_>, title: &str) -> fmt::Result {
        let (top, right, bottom) = (self.top, WIDTH - RIGHT, self.top + self.height);
        let title_y = top - 12.0;
        writeln!(
            out,
            r#"<text x="{LEFT}" y="{title_y}" fill="{INK}" font-weight="600">{title}</text>"#
        )?;
        for tick in self.values.ticks() {
            let y = self.y(tick);
            let (label, label_x, label_y) = (short(tick), LEFT - 10.0, y + 4.5);
            writeln!(
                out,
                r#"<path d="M{LEFT} {y:.1}H{right}" stroke="{GRID}"/><text x="{label_x}" y="{label_y:.1}" text-anchor="end" fill="{FAINT}">{label}</text>"#
            )?;
        }
        for tick in self.shared.ticks() {
            let (x, label, label_y) = (self.x(tick), short(tick), bottom + 20.0);
            writeln!(
                out,
                r#"<path d="M{x:.1} {top}V{bottom}" stroke="{GRID}"/><text x="{x:.1}" y="{label_y}" text-anchor="middle" fill="{FAINT}">{label}</text>"#
            )?;
        }
        writeln!(
            out,
            r#"<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="{FAINT}"/>"#
        )
    }

    fn draw_line(&self, out: &mut Formatter<'_>, line: &Line) -> fmt::Result {
        let points = line.points.iter();
        let points = points.map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y)));
        let width = if line.key.is_bold { 3.0 } else { 1.75 };
        writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{width}" stroke-linejoin="round" stroke-linecap="round"/>"#,
            points.collect::<Vec<_>>().join(" "),
            line.key.color,
        )
    }
}

struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let values = values.filter(|value| *value > 0.0);
        let (least, most) = values.fold((f64::MAX, 0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        // With a small margin on both sides, and never empty.
        let (from, to) = match scale {
            Scale::Linear if most == 0.0 => (0.0, 1.0),
            Scale::Linear => (0.0, most * 1.03),
            Scale::Logarithmic if most == 0.0 => (1.0, 10.0),
            Scale::Logarithmic => (least / 1.15, most * 1.15),
        };
        Self { scale, from, to }
    }

    /// The place of a value, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value / self.to,
            Scale::Logarithmic => {
                (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
            }
        }
    }

    /// Round values within the axis: 1, 2 and 5 of each decade, or a subset if those are too many.
    fn ticks(&self) -> Vec<f64> {
        let round = |decade: i32| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(decade));
        let decades = match self.scale {
            Scale::Linear => {
                let least = (self.to / TICKS_MAX).log10().floor() as i32;
                let mut steps = (least..=least + 1).flat_map(round);
                let step = steps.find(|step| self.to / step <= TICKS_MAX);
                let step = step.unwrap_or(self.to);
                let count = (self.to / step) as u32;
                return (0..=count).map(|tick| f64::from(tick) * step).collect();
            }
            Scale::Logarithmic => self.from.log10().floor() as i32..=self.to.log10().ceil() as i32,
        };
        decades
            .flat_map(round)
            .filter(|tick| (self.from..=self.to).contains(tick))
            .collect()
    }
}

/// 0.5, 20, 100k, 5M.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        // A tick below 1 is a tenth, a fifth or a half.
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let axis = Axis::over(Scale::Logarithmic, [90.0, 2_500.0].into_iter());
        assert_eq!(axis.ticks(), [100.0, 200.0, 500.0, 1000.0, 2000.0]);
        assert_eq!(axis.place(axis.from), 0.0);
        assert!((axis.place(axis.to) - 1.0).abs() < 1e-9);
        let axis = Axis::over(Scale::Linear, [90.0, 2_500.0].into_iter());
        assert_eq!(axis.ticks(), [0.0, 500.0, 1000.0, 1500.0, 2000.0, 2500.0]);
        assert_eq!([axis.place(0.0), axis.place(axis.to)], [0.0, 1.0]);
        assert_eq!(
            [0.5, 20.0, 200_000.0, 5e6].map(short),
            ["0.5", "20", "200k", "5M"]
        );
    }

    /// How often a label occurs.
    fn labels(svg: &str, label: &str) -> usize {
        svg.matches(&format!(">{label}</text>")).count()
    }

    #[test]
    fn every_line_is_drawn_within_its_panel() {
        let key = |label: &str| Key {
            label: label.to_owned(),
            color: "#000000",
            is_bold: false,
        };
        let panel = |lines: &[&str]| Panel {
            title: "a panel".to_owned(),
            scale: Scale::Linear,
            lines: lines
                .iter()
                .map(|label| Line {
                    key: key(label),
                    points: vec![(0.0, 1.0), (10.0, 0.0), (20.0, 2.0)],
                })
                .collect(),
        };
        let mut chart = Chart {
            title: "the axis".to_owned(),
            scale: Scale::Linear,
            legend: Vec::new(),
            panels: vec![panel(&["one", "other"]), panel(&["alone"])],
            panel_height: 100.0,
        };
        let svg = chart.to_string();
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert_eq!(svg.matches("a panel").count(), 2);
        // A single line needs no key.
        assert_eq!(
            ["one", "other", "alone"].map(|label| labels(&svg, label)),
            [1, 1, 0]
        );
        // The first panel spans 64 to 164.
        assert!(
            svg.contains(r#"points="76.0,115.5 454.6,164.0 833.3,66.9""#),
            "{svg}"
        );
        chart.legend = vec![key("all")];
        let svg = chart.to_string();
        assert_eq!(["one", "all"].map(|label| labels(&svg, label)), [0, 1]);
    }
}
