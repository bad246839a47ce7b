//! The report as one HTML page: no script, no file besides it, light and dark.

use super::{count, maybe, number, plot, put, speed, vary};
use crate::bench::compare::{self, Verdict};
use crate::bench::config::Mode;
use crate::bench::model::{Report, WorkloadInfo};
use crate::bench::summary::{self, Cell, Row};
use crate::machine::Machine;

pub(super) const STYLE: &str = include_str!("style.css");

/// The beginning of a page.
pub(super) fn head(page: &mut String, title: &str, started: &str) {
    put(
        page,
        format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}, {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
            escape(title),
            escape(started.get(..10).unwrap_or(started))
        ),
    );
}

/// The end of a page.
pub(super) const FOOT: &str = "</main>\n</body>\n</html>\n";

/// The whole page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::with_capacity(256 * 1024);
    head(&mut page, "Barchan benchmark", &report.started);
    header(&mut page, report);
    verdicts(&mut page, report);
    wrong_results(&mut page, report);
    page.push_str(&vary::render_html(report));
    for workload in report.workloads.iter().filter(|w| w.unavailable.is_none()) {
        section(&mut page, report, workload);
    }
    conditions(&mut page, report);
    page.push_str(FOOT);
    page
}

/// Text as it may stand in HTML, attributes included.
pub(crate) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

fn header(page: &mut String, report: &Report) {
    let machine = &report.machine;
    put(
        page,
        format_args!(
            "<h1>Garbage collectors side by side</h1>\n<p class=\"soft\">{}, {} cores, Linux {}. \
             {} rounds, interleaved{}{}. {}.</p>\n<pre><code>{}</code></pre>\n",
            escape(machine.cpu.as_deref().unwrap_or("unknown CPU")),
            machine.cores,
            escape(machine.kernel.as_deref().unwrap_or("of unknown release")),
            report.rounds,
            if report.quick { ", at quick sizes" } else { "" },
            if report.interrupted { ", interrupted before the end" } else { "" },
            escape(&report.started),
            escape(&report.command)
        ),
    );
    page.push_str("<div class=\"legend\">");
    for info in &report.collectors {
        let name = info.collector.name();
        put(
            page,
            format_args!(
                "<span><i class=\"swatch {name}\"></i><b>{name}</b> <span class=\"soft\">{}</span></span>",
                escape(&info.description)
            ),
        );
    }
    page.push_str("</div>\n");
    for (why, names) in summary::unavailable(report) {
        put(
            page,
            format_args!(
                "<p class=\"note\">Not available here: {}: {}.</p>\n",
                escape(&names.join(", ")),
                escape(why)
            ),
        );
    }
}

fn verdicts(page: &mut String, report: &Report) {
    let all = compare::all(report);
    if all.is_empty() {
        return;
    }
    let passed = all.iter().filter(|verdict| verdict.passed()).count();
    put(
        page,
        format_args!(
            "<h2>barchan against the better baseline</h2>\n<p>Medians, in the same mode, against \
             the faster of the baselines with whatever source of dirty bits is its best. {passed} \
             of {} hold in every respect: time, peak heap and pauses.</p>\n<div class=\"card\">\n\
             <table class=\"verdicts\"><tr><th>workload</th>",
            all.len()
        ),
    );
    let modes: Vec<Mode> =
        Mode::ALL.into_iter().filter(|mode| all.iter().any(|v| v.mode == *mode)).collect();
    for mode in &modes {
        put(page, format_args!("<th>{}</th>", mode.name()));
    }
    page.push_str("</tr>\n");
    for workload in report.workloads.iter().filter(|w| w.unavailable.is_none()) {
        put(page, format_args!("<tr><td><b>{}</b></td>", escape(&workload.name)));
        for mode in &modes {
            page.push_str("<td>");
            if let Some(v) = all.iter().find(|v| v.workload == workload.name && v.mode == *mode) {
                verdict(page, v);
            }
            page.push_str("</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n</div>\n");
    if let Some(note) = compare::not_judged(report) {
        put(page, format_args!("<p class=\"wrong\">{}</p>\n", escape(&note)));
    }
}

/// Which results are not those of the other runs.
pub(super) fn wrong_results(page: &mut String, report: &Report) {
    for (workload, configs) in summary::disagreements(report) {
        put(
            page,
            format_args!(
                "<p class=\"wrong\"><b>Wrong results:</b> {} gave other results on {}.</p>\n",
                escape(workload),
                escape(&configs.join(", "))
            ),
        );
    }
}

fn verdict(page: &mut String, verdict: &Verdict) {
    let class = if verdict.passed() { "pass" } else { "miss" };
    let mark = if verdict.passed() { "✓" } else { "✗" };
    let baseline = verdict.baseline.replacen(&format!("/{}", verdict.mode.name()), "", 1);
    put(
        page,
        format_args!(
            "<div class=\"verdict {class}\"><b>{mark} {}</b><small>than {}</small><dl>",
            speed(verdict.time.ratio()),
            escape(&baseline.replace('/', " · "))
        ),
    );
    for (name, check) in verdict.checks() {
        let class = if check.passed { "" } else { " class=\"over\"" };
        put(
            page,
            format_args!(
                "<dt{class}>{name}</dt><dd{class}>{:.2} <i>≤ {:.2}</i></dd>",
                check.ratio(),
                check.allowed
            ),
        );
    }
    page.push_str("</dl>");
    if let Some(flaw) = verdict.flaw {
        put(page, format_args!("<small>{flaw}</small>"));
    }
    page.push_str("</div>");
}

pub(super) fn section(page: &mut String, report: &Report, workload: &WorkloadInfo) {
    let mut rows = summary::rows(report, workload);
    rows.retain(|row| !matches!(row, Row::Unavailable { .. }));
    put(
        page,
        format_args!(
            "<h2>{}</h2>\n<p class=\"soft\">{}: <code>{}</code></p>\n<figure class=\"card\" \
             style=\"margin-inline:0\">\n{}<figcaption class=\"note\">Bars: median; whiskers: \
             fastest and slowest round. Pauses: ring p50, dot p99, tick longest (median of the \
             rounds).</figcaption>\n</figure>\n",
            escape(&workload.name),
            escape(&workload.title),
            escape(&workload.command),
            plot::figure(&format!("{}: time, pauses and peak heap", workload.name), &rows)
        ),
    );
    let mut notes = Vec::new();
    for row in &rows {
        let name = &row.info().name;
        notes.extend(summary::fewer_rounds(report, row).map(|note| format!("‡ {name}: {note}")));
        if row.cell().is_some_and(|cell| cell.gave_up) {
            notes.push(format!("† {name}: the collector left incremental mode on its way"));
        }
        notes.extend(row.failures().iter().map(|why| format!("✗ {name}, {why}")));
    }
    for note in notes {
        put(page, format_args!("<p class=\"note\">{}</p>\n", escape(&note)));
    }
    numbers(page, &rows);
}

fn numbers(page: &mut String, rows: &[Row<'_>]) {
    page.push_str(
        "<details><summary>Numbers</summary><div class=\"card\"><table><tr><th>configuration</th>\
         <th class=\"n\">seconds</th><th class=\"n\">min – max</th><th class=\"n\">pause p50 ms</th>\
         <th class=\"n\">p99</th><th class=\"n\">max</th><th class=\"n\">longest alloc ms</th>\
         <th class=\"n\">collections</th><th class=\"n\">minor faults</th>\
         <th class=\"n\">peak heap MB</th></tr>\n",
    );
    for row in rows {
        put(page, format_args!("<tr><td>{}</td>", escape(&row.info().name)));
        match row {
            Row::Measured { cell, .. } => cells(page, cell),
            Row::Failed { .. } => page.push_str("<td colspan=\"9\" class=\"wrong\">failed</td>"),
            Row::Unavailable { .. } => {} // named once, at the top
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div></details>\n");
}

fn cells(page: &mut String, cell: &Cell) {
    let values = [
        format!("{:.3}", cell.total_s.median),
        format!("{:.3} – {:.3}", cell.total_s.min, cell.total_s.max),
        maybe(cell.pause_p50_ms),
        maybe(cell.pause_p99_ms),
        maybe(cell.pause_max_ms.map(|s| s.median)),
        maybe(cell.alloc_longest_ms.map(|s| s.median)),
        format!("{:.0}", cell.collections),
        count(cell.minor_faults),
        number(cell.heap_peak_mb.median),
    ];
    for value in values {
        put(page, format_args!("<td class=\"n\">{value}</td>"));
    }
}

/// What is known of a machine, with names.
pub(super) fn machine_facts(machine: &Machine) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    vec![
        ("CPU", machine.cpu.clone().unwrap_or_else(unknown)),
        ("cores", machine.cores.to_string()),
        ("microcode", machine.microcode.clone().unwrap_or_else(unknown)),
        ("virtual machine", if machine.virtual_machine { "yes" } else { "no" }.to_owned()),
        (
            "memory",
            machine.memory_bytes.map_or_else(unknown, |b| format!("{:.1} GB", b as f64 / 1e9)),
        ),
        ("kernel", machine.kernel.clone().unwrap_or_else(unknown)),
        ("distribution", machine.distribution.clone().unwrap_or_else(unknown)),
        ("huge pages", machine.transparent_huge_pages.clone().unwrap_or_else(unknown)),
        ("C library", machine.libc.clone().unwrap_or_else(unknown)),
        ("load at the start", maybe(machine.load_1min)),
        ("commit", machine.commit.clone().unwrap_or_else(unknown)),
    ]
}

/// Names and values.
pub(super) fn fact_list(page: &mut String, facts: &[(&str, String)]) {
    page.push_str("<div class=\"card\"><dl class=\"machine\">");
    for (name, value) in facts {
        put(page, format_args!("<dt>{name}</dt><dd>{}</dd>", escape(value)));
    }
    page.push_str("</dl></div>\n");
}

fn conditions(page: &mut String, report: &Report) {
    let mut facts = machine_facts(&report.machine);
    facts.extend([
        ("version", format!("barchan {}", report.barchan_version)),
        ("date", report.started.clone()),
        ("duration", format!("{:.0} s", report.duration_s)),
        ("markers", format!("{} (1 in mode full)", report.markers)),
        ("pause limit", format!("{} ms in mode incremental", report.pause_ms)),
    ]);
    page.push_str("<h2>Conditions</h2>\n");
    fact_list(page, &facts);
    environments(page, report);
}

/// The environment of each configuration, folded up.
pub(super) fn environments(page: &mut String, report: &Report) {
    page.push_str(
        "<details><summary>Environment of each configuration</summary>\
         <div class=\"card\"><table><tr><th>configuration</th><th>environment</th>\
         <th>dirty bits, as the collector reports them</th></tr>\n",
    );
    for info in &report.configs {
        let environment: Vec<String> =
            info.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let source = match (&info.unavailable, &info.reported_source) {
            (Some(why), _) => format!("not available: {why}"),
            (None, Some(source)) => source.clone(),
            (None, None) => "–".to_owned(),
        };
        put(
            page,
            format_args!(
                "<tr><td>{}</td><td><code>{}</code></td><td>{}</td></tr>\n",
                escape(&info.name),
                escape(&environment.join(" ")),
                escape(&source)
            ),
        );
    }
    page.push_str("</table></div></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
