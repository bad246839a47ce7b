//! The figure of one workload: time, pauses and peak heap side by side, a row for each
//! configuration, as inline SVG. Colours come from the page's style sheet by class.

use super::html::escape;
use super::{count, maybe, number, put};
use crate::bench::config::{DirtySource, Mode};
use crate::bench::summary::{Cell, Row};

/// Width of the drawing in user units.
pub(super) const WIDTH: f64 = 1120.0;
/// Height of a configuration's row.
const ROW: f64 = 22.0;
/// Height of the line that names a mode.
const HEADING: f64 = 26.0;
/// Height of panel titles and axes.
pub(super) const TOP: f64 = 44.0;
/// Room below the last row.
const BOTTOM: f64 = 10.0;

/// A panel: where it is, and what its axis spans.
pub(super) struct Panel {
    pub(super) left: f64,
    pub(super) width: f64,
    pub(super) title: &'static str,
    pub(super) axis: Axis,
}

/// A mapping of values to 0..1.
pub(crate) enum Axis {
    Linear { max: f64 },
    Log { min_decade: i32, max_decade: i32 },
}

impl Axis {
    /// From 0 to a little above the largest value.
    pub(crate) fn linear(values: impl Iterator<Item = f64>) -> Self {
        Self::Linear { max: values.fold(0.0, f64::max).max(1e-9) * 1.12 }
    }

    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if high == 0.0 {
            return Self::Log { min_decade: -1, max_decade: 1 };
        }
        // Decades of milliseconds: far within i32.
        let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Self::Log { min_decade: low, max_decade: high.max(low + 1) }
    }

    /// Where a value is, 0 at the start of the axis and 1 at its end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        match self {
            Self::Linear { max } => value / max,
            Self::Log { min_decade, max_decade } => {
                let span = f64::from(max_decade - min_decade);
                ((value.max(1e-9).log10() - f64::from(*min_decade)) / span).clamp(0.0, 1.0)
            }
        }
    }

    fn label(&self, tick: f64) -> String {
        match self {
            Self::Log { .. } if tick >= 1e4 => power_label(tick),
            _ => tick_label(tick),
        }
    }

    /// Round values to label.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        match self {
            Self::Linear { max } => {
                let step = nice_step(max / 6.0);
                (0..).map(|i| f64::from(i) * step).take_while(|tick| tick <= max).collect()
            }
            Self::Log { min_decade, max_decade } => {
                (*min_decade..=*max_decade).map(|decade| 10_f64.powi(decade)).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let decade = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * decade >= rough).unwrap_or(10.0);
    factor * decade
}

impl Panel {
    pub(super) fn x(&self, value: f64) -> f64 {
        self.left + self.axis.place(value) * self.width
    }
}

/// The figure; the title is for readers that see no pictures.
pub(crate) fn figure(title: &str, rows: &[Row<'_>]) -> String {
    let cells = || rows.iter().filter_map(Row::cell);
    let pauses = |cell: &Cell| {
        [cell.pause_p50_ms, cell.pause_p99_ms, cell.pause_max_ms.map(|s| s.max)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let panels = [
        Panel {
            left: 176.0,
            width: 360.0,
            title: "time, s",
            axis: Axis::linear(cells().map(|c| c.total_s.max)),
        },
        Panel {
            left: 600.0,
            width: 270.0,
            title: "pauses, ms (log)",
            axis: Axis::log(cells().flat_map(pauses)),
        },
        Panel {
            left: 912.0,
            width: 192.0,
            title: "peak heap, MB",
            axis: Axis::linear(cells().map(|c| c.heap_peak_mb.max)),
        },
    ];
    let (body, height) = body(rows, &panels);
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">",
            height + BOTTOM,
            escape(title)
        ),
    );
    for panel in &panels {
        grid(&mut svg, panel, height);
    }
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

pub(super) fn grid(svg: &mut String, panel: &Panel, height: f64) {
    let middle = panel.left;
    put(
        svg,
        format_args!("<text class=\"panel\" x=\"{middle:.1}\" y=\"14\">{}</text>", panel.title),
    );
    for tick in panel.axis.ticks() {
        let x = panel.x(tick);
        put(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{height:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                TOP - 8.0,
                panel.axis.label(tick)
            ),
        );
    }
}

/// A tick's value without needless zeros.
pub(crate) fn tick_label(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A power of ten that is too long to write out.
fn power_label(tick: f64) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let decade = format!("{:.0}", tick.log10().abs());
    let exponent: String = decade.bytes().map(|digit| DIGITS[usize::from(digit - b'0')]).collect();
    format!("10{exponent}")
}

/// All rows, and how far down they reach.
fn body(rows: &[Row<'_>], panels: &[Panel; 3]) -> (String, f64) {
    let mut svg = String::new();
    let mut y = TOP;
    let mut mode: Option<Mode> = None;
    for row in rows {
        let config = row.info().config;
        if mode != Some(config.mode) {
            mode = Some(config.mode);
            put(
                &mut svg,
                format_args!(
                    "<text class=\"mode\" x=\"0\" y=\"{:.1}\">{}</text>\
                     <line class=\"rule\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                    y + 18.0,
                    config.mode.name(),
                    y + 2.0,
                    y + 2.0
                ),
            );
            y += HEADING;
        }
        put(&mut svg, format_args!("<g class=\"{}\">", config.collector.name()));
        put(
            &mut svg,
            format_args!(
                "<text class=\"label\" x=\"164\" y=\"{:.1}\">{}</text>",
                y + 15.0,
                label(row)
            ),
        );
        match row {
            Row::Measured { cell, .. } => marks(&mut svg, cell, panels, y),
            Row::Failed { .. } => remark(&mut svg, panels, y, "failed"),
            Row::Unavailable { why, .. } => remark(&mut svg, panels, y, why),
        }
        svg.push_str("</g>\n");
        y += ROW;
    }
    (svg, y)
}

fn label(row: &Row<'_>) -> String {
    let config = row.info().config;
    let name = match config.dirty {
        DirtySource::None | DirtySource::Best => config.collector.name().to_owned(),
        dirty => format!("{} · {}", config.collector.name(), dirty.name()),
    };
    match &row.info().setting {
        None => name,
        Some(setting) => {
            format!("{name} · {}", escape(setting.value.as_deref().unwrap_or("unset")))
        }
    }
}

fn remark(svg: &mut String, panels: &[Panel; 3], y: f64, text: &str) {
    put(
        svg,
        format_args!(
            "<text class=\"remark\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            panels[0].left,
            y + 15.0,
            escape(text)
        ),
    );
}

fn marks(svg: &mut String, cell: &Cell, panels: &[Panel; 3], y: f64) {
    let [time, pause, heap] = panels;
    let middle = y + ROW / 2.0;
    put(svg, format_args!("<g><title>{}</title>", escape(&tooltip(cell))));
    // An invisible strip, so that the tool tip shows anywhere in the row.
    put(
        svg,
        format_args!(
            "<rect class=\"hit\" x=\"0\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{ROW}\"/>"
        ),
    );
    bar(svg, time, cell.total_s.median, y);
    whisker(svg, time, cell.total_s.min, cell.total_s.max, middle);
    let beyond = time.x(cell.total_s.max) + 8.0;
    let dagger = if cell.gave_up { " †" } else { "" };
    value(svg, beyond, y, &format!("{:.2}{dagger}", cell.total_s.median));

    if let (Some(p50), Some(p99), Some(max)) =
        (cell.pause_p50_ms, cell.pause_p99_ms, cell.pause_max_ms)
    {
        let (from, to) = (pause.x(p50), pause.x(max.median));
        put(
            svg,
            format_args!(
                "<line class=\"span\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
                 <circle class=\"p50\" cx=\"{from:.1}\" cy=\"{middle:.1}\" r=\"4\"/>\
                 <circle class=\"p99\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"4.5\"/>\
                 <line class=\"max\" x1=\"{to:.1}\" x2=\"{to:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                pause.x(p99),
                middle - 6.0,
                middle + 6.0
            ),
        );
    }
    bar(svg, heap, cell.heap_peak_mb.median, y);
    value(svg, heap.x(cell.heap_peak_mb.median) + 6.0, y, &number(cell.heap_peak_mb.median));
    svg.push_str("</g>");
}

fn bar(svg: &mut String, panel: &Panel, to: f64, y: f64) {
    put(
        svg,
        format_args!(
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" rx=\"2\"/>",
            panel.left,
            y + 4.0,
            (panel.x(to) - panel.left).max(1.0),
            ROW - 8.0
        ),
    );
}

fn whisker(svg: &mut String, panel: &Panel, from: f64, to: f64, y: f64) {
    let (from, to) = (panel.x(from), panel.x(to));
    if to - from < 1.5 {
        return; // narrower than the stroke
    }
    put(
        svg,
        format_args!(
            "<path class=\"whisker\" d=\"M{from:.1} {y:.1}H{to:.1}M{from:.1} {:.1}v8M{to:.1} {:.1}v8\"/>",
            y - 4.0,
            y - 4.0
        ),
    );
}

fn value(svg: &mut String, x: f64, y: f64, text: &str) {
    put(
        svg,
        format_args!("<text class=\"value\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>", y + 15.0),
    );
}

fn tooltip(cell: &Cell) -> String {
    format!(
        "{}\n{:.3} s [{:.3} – {:.3}], {} rounds\npauses p50 {} / p99 {} / max {} ms\n\
         longest allocation {} ms\n{:.0} collections, {} minor faults\npeak heap {} MB",
        cell.config,
        cell.total_s.median,
        cell.total_s.min,
        cell.total_s.max,
        cell.rounds,
        maybe(cell.pause_p50_ms),
        maybe(cell.pause_p99_ms),
        maybe(cell.pause_max_ms.map(|s| s.median)),
        maybe(cell.alloc_longest_ms.map(|s| s.median)),
        cell.collections,
        count(cell.minor_faults),
        number(cell.heap_peak_mb.median),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_numbers() {
        assert_eq!(nice_step(0.3), 0.5);
        assert_eq!(nice_step(7.0), 10.0);
        assert_eq!(nice_step(120.0), 200.0);
        assert_eq!(tick_label(0.1), "0.1");
        assert_eq!(tick_label(100.0), "100");
    }

    #[test]
    fn a_log_axis_spans_whole_decades() {
        let axis = Axis::log([0.3, 45.0].into_iter());
        assert_eq!(axis.ticks(), [0.1, 1.0, 10.0, 100.0]);
        assert!((axis.place(1.0) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((axis.label(1e5), axis.label(100.0)), ("10⁵".to_owned(), "100".to_owned()));
        assert_eq!(Axis::Linear { max: 3e4 }.label(2e4), "20000");
        let empty = Axis::log(std::iter::empty());
        assert_eq!(empty.ticks().len(), 3);
    }
}
