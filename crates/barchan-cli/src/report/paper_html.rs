//! The tables of `bench paper` as one HTML page, with the figures of the plain report and one of Tables 2
//! and 3.

use dune_bench::Row;

use super::html::{self, FOOT, escape, put};
use super::paper::{
    MICRO_NOTES, NOT_THERE, amount, collector_heading, host, milliseconds, of_paper, paper_lines,
    pauses, times,
};
use super::{grouped, maybe, paper_plot};
use crate::bench::config::Mode;
use crate::bench::model::{Report, WorkloadInfo};
use crate::bench::paper::model::{Micro, Paper};
use crate::bench::paper::summary;
use crate::bench::paper::table6::{self, Line};
use crate::bench::summary as rounds;

/// The whole page.
pub(crate) fn render(paper: &Paper) -> String {
    let mut page = String::with_capacity(256 * 1024);
    html::head(&mut page, "Dune's tables again", &paper.started);
    let machine = &paper.machine;
    put(
        &mut page,
        format_args!(
            "<h1>Dune's tables again</h1>\n<p class=\"soft\">Tables 2, 3 and 6 of Belay et al., OSDI \
             2012, measured on {}, {} cores, Linux {}; guest mode: {}. {} rounds, interleaved{}. {}.</p>\n\
             <pre><code>{}</code></pre>\n",
            escape(machine.cpu.as_deref().unwrap_or("unknown CPU")),
            machine.cores,
            escape(machine.kernel.as_deref().unwrap_or("of unknown release")),
            escape(&host(paper)),
            paper.rounds,
            if paper.interrupted { ", interrupted before the end" } else { "" },
            escape(&paper.started),
            escape(&paper.command)
        ),
    );
    if let Some(emulator) = &paper.guest.emulated_by {
        put(
            &mut page,
            format_args!("<p class=\"wrong\"><b>Emulated</b> by {}.</p>\n", escape(emulator)),
        );
    }
    if let Some(micro) = &paper.micro {
        operations(&mut page, paper, micro);
    }
    if let Some(report) = &paper.collector {
        collector(&mut page, report);
    }
    page.push_str("<h2>Conditions</h2>\n");
    let mut facts = html::machine_facts(machine);
    facts.push(("guest mode", host(paper)));
    facts.push(("version", format!("barchan {}", paper.barchan_version)));
    facts.push(("date", paper.started.clone()));
    facts.push(("duration", format!("{:.0} s", paper.duration_s)));
    html::fact_list(&mut page, &facts);
    if let Some(report) = &paper.collector {
        html::environments(&mut page, report);
    }
    page.push_str(FOOT);
    page
}

fn operations(page: &mut String, paper: &Paper, micro: &Micro) {
    let cells = summary::cells(micro);
    let rate = summary::rate(micro)
        .map_or_else(String::new, |rate| format!(" ({:.3} GHz)", rate.median / 1e9));
    put(
        page,
        format_args!(
            "<h2>Tables 2 and 3: what an operation costs</h2>\n<p class=\"soft\">Cycles of the time \
             stamp counter{rate}, median of {} rounds.</p>\n<figure class=\"card\" \
             style=\"margin-inline:0\">\n{}<figcaption class=\"note\">Dots: median here; lines: range \
             of the rounds; hollow diamonds: the paper's own figures.</figcaption>\n</figure>\n",
            paper.rounds,
            paper_plot::figure(&cells)
        ),
    );
    page.push_str(
        "<div class=\"card\"><table><tr><th>operation</th><th>by</th><th class=\"n\">cycles</th>\
         <th class=\"n\">min – max</th><th class=\"n\">ns</th><th class=\"n\">× Linux</th>\
         <th class=\"n\">exits</th><th class=\"n\">paper, cycles</th><th class=\"n\">paper, × Linux</th>\
         </tr>\n",
    );
    let mut last: Option<Row> = None;
    for cell in &cells {
        let name = if last == Some(cell.row) { "" } else { cell.row.name() };
        last = Some(cell.row);
        put(
            page,
            format_args!(
                "<tr><td title=\"{}\"><b>{name}</b></td><td>{}</td>",
                escape(cell.row.title()),
                cell.means.name()
            ),
        );
        match &cell.numbers {
            Ok(n) => {
                let values = [
                    amount(n.ticks.median),
                    format!("{} – {}", amount(n.ticks.min), amount(n.ticks.max)),
                    amount(n.ns.median),
                    times(n.over_linux),
                    maybe(n.exits),
                    n.paper.map_or_else(|| "–".to_owned(), grouped),
                    times(n.paper_over_linux),
                ];
                for value in values {
                    put(page, format_args!("<td class=\"n\">{value}</td>"));
                }
            }
            Err(why) => put(page, format_args!("<td colspan=\"7\">{}</td>", escape(why))),
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    for row in Row::ALL {
        let (name, title) = (row.name(), escape(row.title()));
        put(page, format_args!("<p class=\"note\"><b>{name}</b>: {title}.</p>\n"));
    }
    for note in MICRO_NOTES {
        put(page, format_args!("<p class=\"note\">{}</p>\n", escape(note)));
    }
}

fn collector(page: &mut String, report: &Report) {
    let columns: Vec<&WorkloadInfo> =
        report.workloads.iter().filter(|w| w.unavailable.is_none()).collect();
    put(
        page,
        format_args!(
            "<h2>Table 6: the collector</h2>\n<p class=\"soft\">Wall time in ms, median [min – max]; \
             pauses p50/p99/max in ms. {}.</p>\n<div class=\"card\"><table><tr><th></th>",
            escape(&collector_heading(report))
        ),
    );
    for workload in &columns {
        put(page, format_args!("<th class=\"n\">{}</th>", escape(&workload.name)));
    }
    page.push_str("</tr>\n");
    let mut row = |name: &str, cell: &dyn Fn(&WorkloadInfo) -> String| {
        put(page, format_args!("<tr><td>{}</td>", escape(name)));
        for workload in &columns {
            put(page, format_args!("<td class=\"n\">{}</td>", cell(workload)));
        }
        page.push_str("</tr>\n");
    };
    for (name, value) in paper_lines() {
        row(name, &|workload| of_paper(workload, value));
    }
    for line in Line::ALL {
        row(&line.name(), &|workload| {
            table6::cell(report, workload, line).map_or_else(
                || "–".to_owned(),
                |cell| {
                    let (time, pauses) = (milliseconds(&cell), pauses(&cell));
                    format!("<b>{}</b><br>{}", escape(&time), escape(&pauses))
                },
            )
        });
    }
    for mode in [Mode::Generational, Mode::Incremental] {
        row(&format!("guest-pte over stock, {}", mode.name()), &|workload| {
            times(table6::dirty_over_stock(report, workload, mode))
        });
    }
    row("paper: dirty bits over Boehm on Linux", &|workload| {
        times(table6::paper_dirty_over_normal(workload))
    });
    page.push_str("</table></div>\n");
    put(page, format_args!("<p class=\"note\">{}</p>\n", escape(NOT_THERE)));
    for (why, names) in rounds::unavailable(report) {
        let (names, why) = (escape(&names.join(", ")), escape(why));
        put(page, format_args!("<p class=\"note\">Not available here: {names}: {why}.</p>\n"));
    }
    for (workload, configs) in rounds::disagreements(report) {
        let (workload, configs) = (escape(workload), escape(&configs.join(", ")));
        put(
            page,
            format_args!(
                "<p class=\"wrong\"><b>Wrong results:</b> {workload} gave other results on \
                 {configs}.</p>\n"
            ),
        );
    }
    for workload in columns {
        html::section(page, report, workload);
    }
}

#[cfg(test)]
mod tests {
    use super::super::paper::tests::paper;
    use super::*;

    #[test]
    fn the_page_has_both_parts_and_needs_no_network() {
        let page = render(&paper());
        for needs_a_network in ["http:", "https:", "<script", "<link", "src="] {
            assert!(!page.contains(needs_a_network), "the page holds {needs_a_network}");
        }
        assert_eq!(page.matches("<svg").count(), 2, "operations, and one workload");
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf\""), "a number went wrong");
        for wanted in [
            "Example &lt;CPU&gt;",
            "not here: no /dev/kvm",
            "class=\"paper\"",
            "SCALED DOWN to 0.5",
            "0.60×",
            "1,224",
            "direct and TLB are not there",
        ] {
            assert!(page.contains(wanted), "no {wanted:?}");
        }
    }

    #[test]
    fn a_part_that_was_not_measured_is_not_there() {
        let mut paper = paper();
        paper.collector = None;
        let page = render(&paper);
        assert!(page.contains("Tables 2 and 3") && !page.contains("Table 6"));
        assert!(page.ends_with("</html>\n"));
    }
}
