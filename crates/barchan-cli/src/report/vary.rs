//! What `--vary` asked: time against peak heap, the comparison at equal heap, and what a value
//! changes against the variable unset. As text, and as HTML with a figure for each workload.

use super::grid::{self, Grid};
use super::html::escape;
use super::plot::{Axis, tick_label};
use super::switches;
use super::{number, put};
use crate::bench::config::{Config, Mode};
use crate::bench::model::{Report, WorkloadInfo};
use crate::bench::summary::{self, Row};
use crate::bench::vary::{self, AgainstUnset, AtEqualHeap, Curve};

/// Whether a variable was varied.
pub(crate) fn is_varied(report: &Report) -> bool {
    report.configs.iter().any(|info| info.setting.is_some())
}

fn measured(report: &Report) -> impl Iterator<Item = (&WorkloadInfo, Vec<Row<'_>>)> {
    report
        .workloads
        .iter()
        .filter(|workload| workload.unavailable.is_none())
        .map(|workload| (workload, summary::rows(report, workload)))
}

const AT_EQUAL_HEAP: &str = "barchan at equal peak heap: beside the fastest baseline whose heap is \
                             not larger, read along its curve (ratio of times; below 1 is better)";
const AGAINST_UNSET: &str = "each value against the variable unset (ratio of medians)";

/// The sections as text; empty if nothing was varied.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    for (title, grid) in grids(report) {
        put(&mut text, format_args!("{title}\n{}\n", grid.text()));
    }
    text
}

/// The tables that have a row, with their titles.
fn grids(report: &Report) -> impl Iterator<Item = (&'static str, Grid)> {
    [(AT_EQUAL_HEAP, at_equal_heap(report)), (AGAINST_UNSET, against_unset(report))]
        .into_iter()
        .filter(|(_, grid)| !grid.is_empty())
}

fn at_equal_heap(report: &Report) -> Grid {
    let mut grid = Grid::new()
        .text_column("workload")
        .text_column("mode")
        .text_column("setting")
        .number_column("heap MB")
        .number_column("seconds")
        .text_column("same mode")
        .text_column("a full mode");
    for (workload, rows) in measured(report) {
        for at in vary::at_equal_heap(&vary::curves(&rows)) {
            grid.push(
                grid::Row::default()
                    .cell(&workload.name)
                    .cell(at.config.mode.name())
                    .cell(at.point.setting.to_string())
                    .cell(number(at.point.heap_mb))
                    .cell(format!("{:.3}", at.point.seconds))
                    .cell(rival(&at, at.same_mode))
                    .cell(rival(&at, at.full)),
            );
        }
    }
    grid
}

fn against_unset(report: &Report) -> Grid {
    let mut grid = Grid::new()
        .text_column("workload")
        .text_column("configuration")
        .text_column("setting")
        .number_column("time")
        .number_column("heap")
        .number_column("p99 pause")
        .number_column("max pause");
    for (workload, rows) in measured(report) {
        for against in vary::against_unset(&rows) {
            let named = grid::Row::default()
                .cell(&workload.name)
                .cell(against.cell.config.to_string())
                .cell(against.setting.to_string());
            grid.push(ratios(&against).into_iter().fold(named, grid::Row::cell));
        }
    }
    grid
}

fn rival(at: &AtEqualHeap, rival: Option<(Config, f64)>) -> String {
    match rival {
        Some((config, seconds)) => {
            format!("{:.2} ({config} {seconds:.3})", at.point.seconds / seconds)
        }
        None => "none with a heap as small".to_owned(),
    }
}

/// Time, heap, 99th percentile and maximum of the pauses.
fn ratios(against: &AgainstUnset<'_>) -> [String; 4] {
    let AgainstUnset { cell, unset, .. } = against;
    let ratio = |ours: Option<f64>, theirs: Option<f64>| match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => "–".to_owned(),
    };
    [
        ratio(Some(cell.total_s.median), Some(unset.total_s.median)),
        ratio(Some(cell.heap_peak_mb.median), Some(unset.heap_peak_mb.median)),
        ratio(cell.pause_p99_ms, unset.pause_p99_ms),
        ratio(cell.pause_max_ms.map(|s| s.median), unset.pause_max_ms.map(|s| s.median)),
    ]
}

/// The sections of the page; empty if nothing was varied.
pub(crate) fn render_html(report: &Report) -> String {
    let mut page = String::new();
    if !is_varied(report) {
        return page;
    }
    let curves = measured(report)
        .map(|(workload, rows)| (workload, vary::curves(&rows)))
        .filter(|(_, curves)| !curves.is_empty());
    for (n, (workload, curves)) in curves.enumerate() {
        if n == 0 {
            page.push_str("<h2>Time against peak heap</h2>\n");
        }
        card(
            &mut page,
            &figure(workload, &curves),
            &format!(
                "{}: a point for each setting, medians. Left and down is better.",
                workload.name
            ),
        );
    }
    let rows: Vec<_> =
        measured(report).map(|(workload, rows)| (workload.name.as_str(), rows)).collect();
    for (title, svg) in switches::figures(&rows) {
        put(&mut page, format_args!("<h2>{}</h2>\n", escape(&title)));
        card(
            &mut page,
            &svg,
            "Time over the median time with the variable unset: bars: median, lines: fastest and slowest round. \
             Above 1: what the value changes made the program slower, so what it switches off is worth that.",
        );
    }
    for (title, grid) in grids(report) {
        put(&mut page, format_args!("<p>{title}</p>{}", grid.html()));
    }
    page
}

fn card(page: &mut String, svg: &str, caption: &str) {
    put(
        page,
        format_args!(
            "<figure class=\"card\" style=\"margin-inline:0\">\n{svg}<figcaption class=\"note\">{}</figcaption>\
             </figure>\n",
            escape(caption)
        ),
    );
}

/// Width and height of a figure, and the rectangle of its axes.
const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 16.0;
const FLOOR: f64 = 376.0;

fn figure(workload: &WorkloadInfo, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let heap = Axis::linear(points().map(|point| point.heap_mb));
    let time = Axis::linear(points().map(|point| point.seconds));
    let x = |heap_mb: f64| LEFT + heap.place(heap_mb) * (RIGHT - LEFT);
    let y = |seconds: f64| FLOOR - time.place(seconds) * (FLOOR - TOP);
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}: time against peak heap\">",
            escape(&workload.name)
        ),
    );
    for tick in heap.ticks() {
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{FLOOR}\"/>\
                 <text class=\"tick\" x=\"{0:.1}\" y=\"{1}\">{2}</text>",
                x(tick),
                FLOOR + 16.0,
                tick_label(tick)
            ),
        );
    }
    for tick in time.ticks() {
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
                 <text class=\"tick\" x=\"{1}\" y=\"{2:.1}\">{3}</text>",
                y(tick),
                LEFT - 18.0,
                y(tick) + 4.0,
                tick_label(tick)
            ),
        );
    }
    put(
        &mut svg,
        format_args!(
            "<text class=\"panel\" x=\"{LEFT}\" y=\"{}\">peak heap, MB; upwards: time, s</text>",
            FLOOR + 36.0
        ),
    );
    for (n, curve) in curves.iter().enumerate() {
        let name = curve.config.to_string();
        put(&mut svg, format_args!("<g class=\"{}\">", curve.config.collector.name()));
        let path: Vec<String> = curve
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.heap_mb), y(point.seconds)))
            .collect();
        let dash = dash(curve.config.mode);
        put(
            &mut svg,
            format_args!("<polyline class=\"curve\"{dash} points=\"{}\"/>", path.join(" ")),
        );
        for point in &curve.points {
            put(
                &mut svg,
                format_args!(
                    "<circle class=\"p99\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}, {}: {:.3} s, {} MB\
                     </title></circle>",
                    x(point.heap_mb),
                    y(point.seconds),
                    escape(&name),
                    escape(&point.setting.to_string()),
                    point.seconds,
                    number(point.heap_mb)
                ),
            );
        }
        let row = TOP + 8.0 + 22.0 * n as f64;
        put(
            &mut svg,
            format_args!(
                "<line class=\"curve\"{dash} x1=\"{}\" x2=\"{}\" y1=\"{row:.1}\" y2=\"{row:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\">{}</text></g>\n",
                RIGHT + 24.0,
                RIGHT + 64.0,
                RIGHT + 72.0,
                row + 4.0,
                escape(&name)
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A dash pattern for each mode; the colour is the collector's.
fn dash(mode: Mode) -> String {
    let pattern = match mode {
        Mode::Full => return String::new(),
        Mode::FullParallel => "9 3",
        Mode::Generational => "4 3",
        Mode::Incremental => "1.5 3",
    };
    format!(" stroke-dasharray=\"{pattern}\"")
}
