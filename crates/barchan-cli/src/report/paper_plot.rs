//! The figure of Tables 2 and 3: cycles, and ratios to Linux, on logarithmic axes; the paper's figures as
//! hollow diamonds beside ours.

use dune_bench::{Means, Row};

use super::html::escape;
use super::paper::{amount, times};
use super::plot::{Axis, Panel, TOP, WIDTH, grid};
use super::put;
use crate::bench::paper::figures;
use crate::bench::paper::summary::{Cell, Numbers};

/// Height of a line.
const LINE: f64 = 20.0;
/// Room above each row of the table.
const GAP: f64 = 10.0;

/// The figure of some cells.
pub(super) fn figure(cells: &[Cell]) -> String {
    let numbers = || cells.iter().filter_map(|cell| cell.numbers.as_ref().ok());
    let papers = || {
        cells.iter().flat_map(|cell| {
            let of = figures::operation(cell.row);
            [of.linux, of.dune]
        })
    };
    let cycles = Panel {
        left: 220.0,
        width: 520.0,
        title: "cycles of the time stamp counter (log)",
        axis: Axis::log(numbers().flat_map(|n| [n.ticks.min, n.ticks.max]).chain(papers())),
    };
    let ratios = numbers().flat_map(|n| [n.over_linux, n.paper_over_linux]).flatten();
    let ratio = Panel {
        left: 830.0,
        width: 270.0,
        title: "times the best of Linux (log)",
        axis: Axis::log(ratios),
    };
    let (body, height) = body(cells, &cycles, &ratio);
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"Tables 2 and 3: cycles of \
             each operation, and ratios to Linux\">",
            height + GAP
        ),
    );
    grid(&mut svg, &cycles, height);
    grid(&mut svg, &ratio, height);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// The class that has the means' colour.
pub(super) fn class(means: Means) -> &'static str {
    match means {
        Means::Linux => "debian",
        Means::UserDispatch | Means::Userfaultfd => "pinned",
        Means::Guest => "barchan",
    }
}

fn body(cells: &[Cell], cycles: &Panel, ratio: &Panel) -> (String, f64) {
    let mut svg = String::new();
    let mut y = TOP;
    let mut last: Option<Row> = None;
    for cell in cells {
        if last != Some(cell.row) {
            last = Some(cell.row);
            y += GAP;
            put(
                &mut svg,
                format_args!(
                    "<text class=\"mode\" x=\"0\" y=\"{:.1}\">{}</text>",
                    y + 14.0,
                    cell.row.name()
                ),
            );
        }
        put(
            &mut svg,
            format_args!(
                "<g class=\"{}\"><text class=\"label\" x=\"208\" y=\"{:.1}\">{}</text>",
                class(cell.means),
                y + 14.0,
                cell.means.name()
            ),
        );
        match &cell.numbers {
            Ok(numbers) => marks(&mut svg, cell, numbers, cycles, ratio, y),
            Err(why) => put(
                &mut svg,
                format_args!(
                    "<text class=\"remark\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    cycles.left,
                    y + 14.0,
                    escape(why)
                ),
            ),
        }
        svg.push_str("</g>\n");
        y += LINE;
    }
    (svg, y)
}

fn marks(svg: &mut String, cell: &Cell, n: &Numbers, cycles: &Panel, ratio: &Panel, y: f64) {
    let middle = y + LINE / 2.0;
    let paper = n.paper.map_or_else(String::new, |paper| format!("\nthe paper: {}", amount(paper)));
    put(
        svg,
        format_args!(
            "<g><title>{} by {}\n{} cycles [{} – {}], {} ns{paper}</title>\
             <rect class=\"hit\" x=\"0\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{LINE}\"/>",
            cell.row.name(),
            cell.means.name(),
            amount(n.ticks.median),
            amount(n.ticks.min),
            amount(n.ticks.max),
            amount(n.ns.median),
        ),
    );
    let [from, to, at] = [n.ticks.min, n.ticks.max, n.ticks.median].map(|v| cycles.x(v));
    put(
        svg,
        format_args!(
            "<line class=\"span\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <circle class=\"p99\" cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"4.5\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            cycles.left + cycles.width + 10.0,
            middle + 4.0,
            amount(n.ticks.median)
        ),
    );
    if let Some(paper) = n.paper {
        diamond(svg, cycles.x(paper), middle);
    }
    if let Some(over) = n.over_linux {
        let at = ratio.x(over);
        put(
            svg,
            format_args!(
                "<circle class=\"p99\" cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"4.5\"><title>{}</title></circle>",
                times(Some(over))
            ),
        );
    }
    if let Some(paper) = n.paper_over_linux {
        diamond(svg, ratio.x(paper), middle);
    }
    svg.push_str("</g>");
}

/// The paper's figure.
fn diamond(svg: &mut String, x: f64, y: f64) {
    put(
        svg,
        format_args!(
            "<path class=\"paper\" d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\"/>",
            x - 5.5,
            y - 5.5,
            x + 5.5,
            y + 5.5
        ),
    );
}
