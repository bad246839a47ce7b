//! The figure of `--vary` with a variable whose values are names, as `GC_BARCHAN_OFF`: what each value changes against
//! the variable unset. A panel for each workload, a row for each value.

use super::html::escape;
use super::put;
use crate::bench::config::Config;
use crate::bench::summary::Row;
use crate::bench::vary::{self, Setting};

/// What is drawn of one value on one workload, as ratios of times to the median with the variable unset.
struct Mark {
    setting: Setting,
    median: f64,
    fastest: f64,
    slowest: f64,
}

/// The marks of one workload.
struct Panel<'a> {
    workload: &'a str,
    marks: Vec<Mark>,
}

const WIDTH: f64 = 1120.0;
/// Where the panels begin, right of the values' names.
const LEFT: f64 = 130.0;
/// Room between two panels.
const GAP: f64 = 14.0;
/// Room for a mark's number, at the right of a panel.
const NUMBER: f64 = 34.0;
const TOP: f64 = 44.0;
const ROW: f64 = 22.0;
/// Ratios beyond these are drawn at the edge; their numbers are right.
const EDGES: [f64; 2] = [0.5, 2.0];

/// A figure for each configuration that was measured with a name and without, with its title.
pub(super) fn figures(measured: &[(&str, Vec<Row<'_>>)]) -> Vec<(String, String)> {
    let mut configs: Vec<Config> = Vec::new();
    for (_, rows) in measured {
        for against in vary::against_unset(rows) {
            if against.setting.is_a_name() && !configs.contains(&against.cell.config) {
                configs.push(against.cell.config);
            }
        }
    }
    let draw = |config: Config| {
        let panels: Vec<Panel<'_>> = measured
            .iter()
            .map(|(workload, rows)| Panel { workload, marks: marks(rows, config) })
            .filter(|panel| !panel.marks.is_empty())
            .collect();
        let title = format!("{config}: what single values change");
        let svg = figure(&title, &panels);
        (title, svg)
    };
    configs.into_iter().map(draw).collect()
}

fn marks(rows: &[Row<'_>], config: Config) -> Vec<Mark> {
    vary::against_unset(rows)
        .into_iter()
        .filter(|against| against.cell.config == config && against.setting.is_a_name())
        .map(|against| {
            let unset = against.unset.total_s.median.max(1e-9);
            let time = against.cell.total_s;
            Mark {
                setting: against.setting.clone(),
                median: time.median / unset,
                fastest: time.min / unset,
                slowest: time.max / unset,
            }
        })
        .collect()
}

fn figure(title: &str, panels: &[Panel<'_>]) -> String {
    let mut settings: Vec<&Setting> = Vec::new();
    for mark in panels.iter().flat_map(|panel| &panel.marks) {
        if !settings.contains(&&mark.setting) {
            settings.push(&mark.setting);
        }
    }
    let all = || panels.iter().flat_map(|panel| &panel.marks);
    let [low, high] = EDGES;
    let least = all().map(|mark| mark.fastest).fold(0.9, f64::min).max(low);
    let most = all().map(|mark| mark.slowest).fold(1.1, f64::max).min(high);
    let width = (WIDTH - LEFT) / panels.len().max(1) as f64 - GAP;
    let place = |ratio: f64| {
        (ratio.clamp(least, most) - least) / (most - least) * (width - NUMBER).max(1.0)
    };
    let floor = TOP + ROW * settings.len() as f64;
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">",
            floor + 10.0,
            escape(title)
        ),
    );
    for (n, setting) in settings.iter().enumerate() {
        put(
            &mut svg,
            format_args!(
                "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 12.0,
                TOP + ROW * n as f64 + 15.0,
                escape(setting.value.as_deref().unwrap_or("unset"))
            ),
        );
    }
    for (n, panel) in panels.iter().enumerate() {
        let left = LEFT + n as f64 * (width + GAP);
        let middle = left + place(1.0);
        put(
            &mut svg,
            format_args!(
                "<g class=\"barchan\"><text class=\"panel\" x=\"{left:.1}\" y=\"14\">{}</text>\
                 <line class=\"grid\" x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{TOP}\" y2=\"{floor:.1}\"/>\
                 <text class=\"tick\" x=\"{middle:.1}\" y=\"{:.1}\">1</text>",
                escape(panel.workload),
                TOP - 8.0
            ),
        );
        for mark in &panel.marks {
            let Some(row) = settings.iter().position(|setting| **setting == mark.setting) else {
                continue;
            };
            let top = TOP + ROW * row as f64;
            let end = left + place(mark.median);
            put(
                &mut svg,
                format_args!(
                    "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"10\"/>\
                     <line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                     <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
                    middle.min(end),
                    top + 6.0,
                    (end - middle).abs(),
                    left + place(mark.fastest),
                    left + place(mark.slowest),
                    left + width - NUMBER + 6.0,
                    top + 15.0,
                    mark.median,
                    y = top + 11.0,
                ),
            );
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}
