//! The tables of `bench paper` as one HTML page, with the figures of the plain report and one of Tables 2
//! and 3.

use dune_bench::Row;

use super::html::{self, FOOT, escape};
use super::paper::{
    MICRO_NOTES, Unit, collector_grid, collector_heading, columns, host, micro_grid,
};
use super::paper_plot;
use super::put;
use crate::bench::model::Report;
use crate::bench::paper::model::{Micro, Paper};
use crate::bench::paper::summary;
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
        collector(&mut page, report, Unit::of(paper));
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
    page.push_str(&micro_grid(micro).html());
    for row in Row::ALL {
        let (name, title) = (row.name(), escape(row.title()));
        put(page, format_args!("<p class=\"note\"><b>{name}</b>: {title}.</p>\n"));
    }
    for note in MICRO_NOTES {
        put(page, format_args!("<p class=\"note\">{}</p>\n", escape(note)));
    }
}

fn collector(page: &mut String, report: &Report, unit: Unit) {
    put(
        page,
        format_args!(
            "<h2>Table 6: the collector</h2>\n<p class=\"soft\">Figures: {}, median [min – max]; \
             pauses p50/p99/max in {}. {}.</p>\n{}",
            unit.title(),
            unit.short(),
            escape(&collector_heading(report, unit)),
            collector_grid(report, unit).html()
        ),
    );
    for (why, names) in rounds::unavailable(report) {
        let (names, why) = (escape(&names.join(", ")), escape(why));
        put(page, format_args!("<p class=\"note\">Not available here: {names}: {why}.</p>\n"));
    }
    html::wrong_results(page, report);
    if let Some(note) = unit.seconds_note() {
        put(page, format_args!("<p class=\"note\">{}</p>\n", escape(&note)));
    }
    for workload in columns(report) {
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
            "guest-pml over stock",
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
