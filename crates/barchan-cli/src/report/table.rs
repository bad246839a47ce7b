//! The report as text: a table for each workload, then the comparison.

use super::{line, maybe, number, put, speed, vary};
use crate::bench::compare::{self, Verdict};
use crate::bench::config::Mode;
use crate::bench::model::{Report, WorkloadInfo};
use crate::bench::summary::{self, Cell, Row};

/// The whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    for workload in report.workloads.iter().filter(|w| w.unavailable.is_none()) {
        out.push_str(&workload_table(report, workload));
        out.push('\n');
    }
    for (why, names) in summary::unavailable(report) {
        line(&mut out, format_args!("Not available here: {}: {why}\n", names.join(", ")));
    }
    out.push_str(&vary::render(report));
    if !vary::is_varied(report) {
        out.push_str(&comparison(report));
    }
    let disagreements = summary::disagreements(report);
    for (workload, configs) in disagreements {
        line(
            &mut out,
            format_args!("WRONG RESULTS: {workload} gave other results on {}", configs.join(", ")),
        );
    }
    line(
        &mut out,
        format_args!(
            "\n{}{} on {} ({} cores, Linux {}), {} rounds, {}",
            if report.interrupted { "INTERRUPTED: " } else { "" },
            report.command,
            report.machine.cpu.as_deref().unwrap_or("unknown CPU"),
            report.machine.cores,
            report.machine.kernel.as_deref().unwrap_or("unknown"),
            report.rounds,
            report.started,
        ),
    );
    out
}

pub(super) fn workload_table(report: &Report, workload: &WorkloadInfo) -> String {
    let mut out = String::new();
    let rows = summary::rows(report, workload);
    let width = rows.iter().map(|row| row.info().name.chars().count()).fold(32, usize::max);
    line(&mut out, format_args!("{}: {}  ({})", workload.name, workload.title, workload.command));
    line(
        &mut out,
        format_args!(
            "  {:<width$} {:>7} {:>17} {:>23} {:>9} {:>7} {:>8}",
            "", "seconds", "[min – max]", "pause ms p50/p99/max", "alloc ms", "colls", "heap MB"
        ),
    );
    let mut notes = Vec::new();
    for row in &rows {
        let name = &row.info().name;
        match row {
            Row::Measured { cell, .. } => {
                line(&mut out, format_args!("  {name:<width$} {}", numbers(cell)));
                let fewer = summary::fewer_rounds(report, row);
                notes.extend(fewer.map(|note| format!("‡ {name}: {note}")));
                if cell.gave_up {
                    notes.push(format!("† {name}: the collector left incremental mode on its way"));
                }
            }
            Row::Failed { .. } => line(&mut out, format_args!("  {name:<width$} FAILED")),
            Row::Unavailable { .. } => {} // named once, below all tables
        }
        notes.extend(row.failures().iter().map(|why| format!("! {name}, {why}")));
    }
    for note in notes {
        line(&mut out, format_args!("  {note}"));
    }
    out
}

fn numbers(cell: &Cell) -> String {
    let time = cell.total_s;
    let pauses = format!(
        "{} / {} / {}",
        maybe(cell.pause_p50_ms),
        maybe(cell.pause_p99_ms),
        maybe(cell.pause_max_ms.map(|s| s.median))
    );
    format!(
        "{:>7} {:>17} {pauses:>23} {:>9} {:>7.0} {:>8}{}",
        format!("{:.3}", time.median),
        format!("[{:.2} – {:.2}]", time.min, time.max),
        maybe(cell.alloc_longest_ms.map(|s| s.median)),
        cell.collections,
        number(cell.heap_peak_mb.median),
        if cell.gave_up { " †" } else { "" },
    )
}

fn comparison(report: &Report) -> String {
    let verdicts = compare::all(report);
    let mut out = String::new();
    let not_judged = compare::not_judged(report);
    if verdicts.is_empty() {
        let why = not_judged.as_deref().unwrap_or("barchan and a baseline share no mode here.");
        line(&mut out, format_args!("No comparison: {why}"));
        return out;
    }
    line(
        &mut out,
        format_args!(
            "barchan against the better baseline's same mode (ratio of medians; below 1 is better)"
        ),
    );
    line(
        &mut out,
        format_args!(
            "  {:<16} {:<14} {:<32} {:>16} {:>16} {:>16} {:>16}",
            "workload", "mode", "better baseline", "time", "heap", "p99 pause", "max pause"
        ),
    );
    for verdict in &verdicts {
        line(&mut out, format_args!("  {}", verdict_line(verdict)));
    }
    for verdict in &verdicts {
        if let Some((baseline, time)) = &verdict.gave_up {
            let judged = match time.passed {
                _ if verdict.mode == Mode::Incremental => "not judged: it keeps no limit of pauses",
                true => "✓",
                false => "✗",
            };
            line(
                &mut out,
                format_args!(
                    "  † {} {}: {baseline} left the mode on its way and was faster than the \
                     baseline above; time {:.2} (≤{:.2}) {judged}",
                    verdict.workload,
                    verdict.mode.name(),
                    time.ratio(),
                    time.allowed
                ),
            );
        }
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passed()).count();
    line(
        &mut out,
        format_args!(
            "  {passed} of {} hold in every respect. ✓ within what is allowed, ✗ not.",
            verdicts.len()
        ),
    );
    if let Some(note) = not_judged {
        line(&mut out, format_args!("  {note}"));
    }
    out
}

fn verdict_line(verdict: &Verdict) -> String {
    let mut text =
        format!("{:<16} {:<14} {:<32}", verdict.workload, verdict.mode.name(), verdict.baseline);
    for check in [Some(verdict.time), Some(verdict.heap), verdict.pause_p99, verdict.pause_max] {
        let cell = check.map_or_else(
            || "–".to_owned(),
            |check| {
                let mark = if check.passed { '✓' } else { '✗' };
                format!("{:.2} (≤{:.2}) {mark}", check.ratio(), check.allowed)
            },
        );
        put(&mut text, format_args!(" {cell:>16}"));
    }
    put(&mut text, format_args!("  {}", speed(verdict.time.ratio())));
    if let Some(flaw) = verdict.flaw {
        put(&mut text, format_args!("; ✗ {flaw}"));
    }
    text
}
