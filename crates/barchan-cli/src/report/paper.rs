//! The tables of `bench paper` as text.

use dune_bench::{Means, Row};

use super::grid::{self, Grid};
use super::{grouped, line, maybe, number, table};
use crate::bench::config::{Collector, Config, Mode};
use crate::bench::model::{Report, WorkloadInfo};
use crate::bench::paper::figures::{self, Figure, TABLE_6};
use crate::bench::paper::model::{Micro, Paper};
use crate::bench::paper::summary;
use crate::bench::paper::table6::{self, Line, VARIANTS};
use crate::bench::summary as rounds;

/// What the micro table's words mean, for readers of either report.
pub(super) const MICRO_NOTES: [&str; 4] = [
    "linux: natively, by what the paper used; user-dispatch and userfaultfd: natively, by what Linux \
     has had since; guest: in guest mode.",
    "× Linux: over the best native one of the row. exits: runs of the virtual CPU that ended, for each \
     operation. paper: cycles of the paper's machine, a Xeon of 2012.",
    "In guest mode every system call passes through the monitor: ptrace is getpid once more, and \
     ptrace-sysemu a call that the monitor answers itself.",
    "appel1 and appel2 are 100 faults each. Cycles are those of the time stamp counter, which has a \
     rate of its own, whatever the core's clock does.",
];

/// The whole report.
pub(crate) fn render(paper: &Paper) -> String {
    let mut out = String::new();
    if let Some(emulator) = &paper.guest.emulated_by {
        line(&mut out, format_args!("EMULATED by {emulator}\n"));
    }
    if let Some(micro) = &paper.micro {
        out.push_str(&micro_table(paper, micro));
        out.push('\n');
    }
    if let Some(report) = &paper.collector {
        let unit = Unit::of(paper);
        out.push_str(&collector_table(report, unit));
        out.push('\n');
        if let Some(note) = unit.seconds_note() {
            line(&mut out, format_args!("{note}\n"));
        }
        for workload in &report.workloads {
            out.push_str(&table::workload_table(report, workload));
            out.push('\n');
        }
        for (workload, configs) in rounds::disagreements(report) {
            let configs = configs.join(", ");
            line(
                &mut out,
                format_args!("WRONG RESULTS: {workload} gave other results on {configs}"),
            );
        }
    }
    let machine = &paper.machine;
    line(
        &mut out,
        format_args!(
            "{}{} on {} ({} cores, Linux {}), guest mode: {}, {} rounds, {}",
            if paper.interrupted { "INTERRUPTED: " } else { "" },
            paper.command,
            machine.cpu.as_deref().unwrap_or("unknown CPU"),
            machine.cores,
            machine.kernel.as_deref().unwrap_or("unknown"),
            host(paper),
            paper.rounds,
            paper.started,
        ),
    );
    out
}

/// The kind of guest mode's host, or why there is none.
pub(super) fn host(paper: &Paper) -> String {
    match (&paper.guest.kind, &paper.guest.why) {
        (_, Some(why)) => format!("none ({why})"),
        (Some(kind), None) => kind.clone(),
        (None, None) => "unknown".to_owned(),
    }
}

/// A number of cycles or nanoseconds.
pub(super) fn amount(value: f64) -> String {
    if value.abs() >= 100.0 { grouped(value) } else { number(value) }
}

/// A ratio, or a dash.
pub(super) fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{}×", number(ratio)))
}

fn micro_table(paper: &Paper, micro: &Micro) -> String {
    let mut out = String::new();
    let rate = summary::rate(micro)
        .map_or_else(|| "unknown rate".to_owned(), |rate| format!("{:.3} GHz", rate.median / 1e9));
    line(
        &mut out,
        format_args!(
            "Tables 2 and 3: one operation, in cycles of the time stamp counter ({rate}) and in ns; \
             median [min – max] of {} rounds",
            paper.rounds
        ),
    );
    out.push_str(&micro_grid(micro).text());
    for row in Row::ALL {
        line(&mut out, format_args!("  {}: {}", row.name(), row.title()));
    }
    for note in MICRO_NOTES {
        line(&mut out, format_args!("  {note}"));
    }
    out
}

/// Tables 2 and 3, row by row.
pub(super) fn micro_grid(micro: &Micro) -> Grid {
    let mut grid = ["cycles", "[min – max]", "ns", "× Linux", "exits", "paper", "× Linux"]
        .into_iter()
        .fold(Grid::new().text_column("").text_column("by"), Grid::number_column);
    let mut last: Option<Row> = None;
    for cell in summary::cells(micro) {
        let name = if last == Some(cell.row) { "" } else { cell.row.name() };
        last = Some(cell.row);
        let named = grid::Row::default().cell(name).cell(cell.means.name());
        grid.push(match &cell.numbers {
            Ok(n) => named
                .cell(amount(n.ticks.median))
                .cell(format!("[{} – {}]", amount(n.ticks.min), amount(n.ticks.max)))
                .cell(amount(n.ns.median))
                .cell(times(n.over_linux))
                .cell(maybe(n.exits))
                .cell(n.paper.map_or_else(|| "–".to_owned(), grouped))
                .cell(times(n.paper_over_linux)),
            Err(why) => {
                let paper = grouped(figures::operation(cell.row).dune);
                named.remark(match cell.means {
                    Means::Guest => format!("{why}; the paper has {paper}"),
                    _ => why.clone(),
                })
            }
        });
    }
    grid
}

/// Whether the workloads had less than the paper's sizes.
pub(super) fn scaled(report: &Report) -> Option<&str> {
    report.workloads.iter().find_map(|w| Some(w.command.split_once("--scale ")?.1))
}

/// What a run of the collector is told in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// Milliseconds of wall time.
    Milliseconds,
    /// Millions of instructions executed, so many of which are a second of the emulator's clock.
    MegaInstructions(f64),
}

impl Unit {
    pub(super) fn of(paper: &Paper) -> Self {
        paper.guest.instructions_per_s.map_or(Self::Milliseconds, Self::MegaInstructions)
    }

    /// Its name, with what it is of.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Milliseconds => "wall time in ms",
            Self::MegaInstructions(_) => {
                "millions of INSTRUCTIONS EXECUTED, those of the kernel and of guest mode's monitor included"
            }
        }
    }

    /// Of pauses.
    pub(super) fn short(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::MegaInstructions(_) => "millions of instructions",
        }
    }

    fn factor(self) -> f64 {
        match self {
            Self::Milliseconds => 1.0,
            Self::MegaInstructions(per_second) => per_second / 1e9,
        }
    }

    fn of_ms(self, ms: f64) -> f64 {
        ms * self.factor()
    }

    /// What the times of the tables below are.
    pub(super) fn seconds_note(self) -> Option<String> {
        let Self::MegaInstructions(per_second) = self else { return None };
        Some(format!(
            "Times below are those of the emulator's clock: a second is {} million instructions.",
            number(per_second / 1e6)
        ))
    }
}

/// The heading of Table 6, with what must be known to read it.
pub(super) fn collector_heading(report: &Report, unit: Unit) -> String {
    let sizes = scaled(report).map_or_else(
        || "the paper's sizes".to_owned(),
        |scale| {
            format!("SCALED DOWN to {scale} of the paper's sizes, which its own figures are of")
        },
    );
    let pause = match unit {
        Unit::Milliseconds => format!("{} ms", report.pause_ms),
        Unit::MegaInstructions(_) => {
            let instructions = unit.of_ms(f64::from(report.pause_ms));
            format!(
                "{} ms of its clock, {} {},",
                report.pause_ms,
                number(instructions),
                unit.short()
            )
        }
    };
    format!(
        "{sizes}; {} markers (1 in mode full), pauses of {pause} aimed at in mode incremental",
        report.markers
    )
}

fn collector_table(report: &Report, unit: Unit) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "Table 6: the collector, {}, median [min – max]; below it the collector if there \
             was a choice, and pauses p50/p99/max in {}",
            unit.title(),
            unit.short()
        ),
    );
    line(&mut out, format_args!("  {}", collector_heading(report, unit)));
    out.push_str(&collector_grid(report, unit).text());
    let columns = columns(report);
    if columns.iter().any(|w| Line::ALL.iter().any(|l| gave_up(report, w, *l))) {
        line(&mut out, format_args!("  † left incremental mode on its way"));
    }
    for (why, names) in rounds::unavailable(report) {
        line(&mut out, format_args!("  Not available here: {}: {why}", names.join(", ")));
    }
    out
}

/// The workloads that were measured.
pub(super) fn columns(report: &Report) -> Vec<&WorkloadInfo> {
    report.workloads.iter().filter(|w| w.unavailable.is_none()).collect()
}

/// Table 6: a column for each workload; the paper's lines, ours, and ratios.
pub(super) fn collector_grid(report: &Report, unit: Unit) -> Grid {
    let columns = columns(report);
    let mut grid = columns
        .iter()
        .fold(Grid::new().text_column(""), |grid, workload| grid.number_column(&workload.name));
    let row = |grid: &mut Grid, name: String, cell: &dyn Fn(&WorkloadInfo) -> String| {
        let named = grid::Row::default().cell(name);
        grid.push(columns.iter().fold(named, |row, workload| row.cell(cell(workload))));
    };
    for (name, value) in PAPER_LINES {
        row(&mut grid, name.to_owned(), &|workload| of_paper(workload, value));
    }
    for table_line in Line::ALL {
        let named = grid::Row::default().cell(table_line.name());
        let cell = |workload: &WorkloadInfo| table6::cell(report, workload, table_line);
        grid.push(columns.iter().fold(named, |row, workload| match cell(workload) {
            Some(cell) => row.cell_of_two(total(&cell, unit), pauses(&cell, unit)),
            None => row.cell("–"),
        }));
    }
    for mode in [Mode::Generational, Mode::Incremental] {
        for (dirty, _) in VARIANTS {
            row(&mut grid, format!("{} over stock, {}", dirty.name(), mode.name()), &|workload| {
                times(table6::over_stock(report, workload, mode, dirty))
            });
        }
    }
    for (dirty, paper) in VARIANTS {
        let Some(paper @ (name, _)) = paper else { continue };
        row(&mut grid, format!("paper: {name} over Boehm on Linux"), &|workload| {
            times(table6::paper_over_normal(workload, (dirty, paper)))
        });
    }
    for mode in [Mode::Generational, Mode::Incremental] {
        for (dirty, _) in VARIANTS {
            let config = Config { collector: Collector::Barchan, mode, dirty };
            row(&mut grid, format!("{EVENTS} of {}, {}", dirty.name(), mode.name()), &|workload| {
                events(report, workload, config)
            });
        }
    }
    grid
}

/// What [`events`] tells.
const EVENTS: &str = "exits/faults/flushes";

/// Exits; faults of the monitor and of protected pages together; flushes.
fn events(report: &Report, workload: &WorkloadInfo, config: Config) -> String {
    let counts: [table6::Count; 3] =
        [|c| c.exits, |c| c.monitor_faults + c.protection_faults, |c| c.flushes];
    counts
        .map(|count| {
            let median = table6::count(report, workload, config, count);
            median.map_or_else(|| "–".to_owned(), grouped)
        })
        .join("/")
}

fn gave_up(report: &Report, workload: &WorkloadInfo, table_line: Line) -> bool {
    table6::cell(report, workload, table_line).is_some_and(|cell| cell.gave_up)
}

/// The paper's own lines.
const PAPER_LINES: [(&str, Figure); 6] = [
    ("paper: collections", |w| w.collections),
    ("paper: allocated, MB", |w| w.allocated_mb),
    ("paper: Boehm, incremental, on Linux", |w| w.normal_ms),
    ("paper: Dune, direct port", |w| w.direct_ms),
    ("paper: Dune, TLB control", |w| w.tlb_ms),
    ("paper: Dune, dirty bits", |w| w.dirty_ms),
];

/// The paper's figure of a workload.
fn of_paper(workload: &WorkloadInfo, value: Figure) -> String {
    TABLE_6
        .iter()
        .find(|figures| figures.name == workload.name)
        .map_or_else(|| "–".to_owned(), |figures| grouped(value(figures)))
}

/// Median and range of a cell's time.
fn total(cell: &rounds::Cell, unit: Unit) -> String {
    let [median, min, max] = [cell.total_s.median, cell.total_s.min, cell.total_s.max]
        .map(|s| amount(unit.of_ms(s * 1e3)));
    format!("{median} [{min} – {max}]{}", if cell.gave_up { " †" } else { "" })
}

/// A cell's pauses, and whose they are if there was a choice.
fn pauses(cell: &rounds::Cell, unit: Unit) -> String {
    let collector = cell.config.collector;
    let whose =
        if collector.is_baseline() { format!("{}: ", collector.name()) } else { String::new() };
    format!(
        "{whose}{}/{}/{}",
        maybe(cell.pause_p50_ms.map(|ms| unit.of_ms(ms))),
        maybe(cell.pause_p99_ms.map(|ms| unit.of_ms(ms))),
        maybe(cell.pause_max_ms.map(|spread| unit.of_ms(spread.median)))
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::paper::model::{FORMAT, Guest, KIND};
    use crate::bench::paper::summary::tests::example;
    use crate::bench::paper::table6::tests::some;
    use crate::machine::Machine;

    /// Both parts, on a machine without guest mode.
    pub(crate) fn paper() -> Paper {
        Paper {
            kind: KIND.to_owned(),
            format: FORMAT,
            barchan_version: "0".to_owned(),
            command: "barchan bench paper --rounds 3".to_owned(),
            started: "2026-11-28T15:00:00Z".to_owned(),
            duration_s: 1.0,
            rounds: 3,
            interrupted: false,
            machine: Machine { cpu: Some("Example <CPU>".to_owned()), ..Machine::default() },
            guest: Guest {
                kind: None,
                emulated_by: None,
                instructions_per_s: None,
                why: Some("no /dev/kvm".to_owned()),
            },
            micro: Some(example()),
            collector: Some(some()),
        }
    }

    #[track_caller]
    fn find<'a>(text: &'a str, part: &str) -> &'a str {
        text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {text}"))
    }

    #[test]
    fn a_row_has_cycles_and_time_ratios_and_the_papers_figures() {
        let text = render(&paper());
        let linux = find(&text, "  trap    linux ");
        for wanted in ["5,000", "[4,000 – 9,000]", "2,500", "2.00×", "2,821"] {
            assert!(linux.contains(wanted), "{wanted} in {linux}");
        }
        let best = find(&text, " userfaultfd ");
        assert!(best.contains("1.00×") && best.ends_with('–'), "{best}");
        assert!(find(&text, "getpid").contains("138"));
        let guest = find(&text, "895");
        assert!(guest.contains("5.00×") && guest.ends_with("6.49×"), "{guest}");
        assert!(text.contains("guest        not here: no /dev/kvm; the paper has 587"), "{text}");
    }

    #[test]
    fn table_6_has_the_papers_lines_ours_ratios_and_what_is_missing() {
        let text = render(&paper());
        assert!(find(&text, "Boehm, incremental, on Linux").ends_with(" 1,224"));
        assert!(find(&text, "stock, full ").contains("1,400 [1,400 – 1,400]"));
        assert!(find(&text, "stock, incremental, mprotect").contains("2,000 [2,000"));
        assert!(text.contains("debian: 1.00/2.00/3.00"), "{text}");
        assert!(find(&text, "barchan, incremental, guest-pte").contains("1,200 ["));
        assert!(find(&text, "guest-pte over stock, incremental").ends_with("0.60×"));
        assert!(find(&text, "guest-pte over stock, generational").ends_with('–'));
        assert!(find(&text, "guest-direct over stock, incremental").ends_with("0.90×"));
        assert!(find(&text, "guest-tlb over stock, incremental").ends_with('–'));
        assert!(find(&text, "paper: dirty bits over").ends_with("0.73×"));
        assert!(find(&text, "paper: TLB control over").ends_with("0.76×"));
        let events = find(&text, "exits/faults/flushes of guest-pte, incremental");
        assert!(events.ends_with(" 30/60/50"), "{events}");
        let events = find(&text, "exits/faults/flushes of guest-tlb, incremental");
        assert!(events.ends_with(" –/–/–"), "{events}");
        assert!(text.contains("SCALED DOWN to 0.5"), "{text}");
        assert!(find(&text, "guest-pml over stock, generational").ends_with('–'), "{text}");
        assert!(!text.contains("paper: guest-pml"), "the paper has none: {text}");
        assert!(text.contains("guest mode: none (no /dev/kvm)"), "{text}");
    }

    #[test]
    fn emulated_figures_say_so_first() {
        let mut paper = paper();
        paper.guest.emulated_by = Some("Bochs: cycles are instructions executed".to_owned());
        assert!(render(&paper).starts_with("EMULATED by Bochs: cycles are instructions"));
        assert!(find(&render(&paper), "Table 6").contains("wall time in ms"));
    }

    #[test]
    fn where_instructions_are_counted_table_6_is_of_them() {
        let mut paper = paper();
        paper.guest.instructions_per_s = Some(50e6);
        let text = render(&paper);
        assert!(find(&text, "Table 6").contains("millions of INSTRUCTIONS"), "{text}");
        // 1.4 s at 50 million a second.
        assert!(find(&text, "stock, full ").contains("70.0 [70.0 – 70.0]"), "{text}");
        assert!(text.contains("debian: 0.05/0.10/0.15"), "{text}");
        assert!(text.contains("pauses of 5 ms of its clock, 0.25 millions"), "{text}");
        assert!(text.contains("a second is 50.0 million instructions"), "{text}");
        assert!(find(&text, "guest-pte over stock, incremental").ends_with("0.60×"));
    }

    #[test]
    fn a_report_survives_being_written_and_read() {
        let paper = paper();
        let text = paper.to_json().expect("JSON");
        let value = serde_json::from_str(&text).expect("JSON");
        let again = Paper::from_value(value).expect("a report");
        assert_eq!(render(&again), render(&paper));
        let value = serde_json::from_str(&text.replace("\"trap\"", "\"tarp\"")).expect("JSON");
        assert_eq!(Paper::from_value(value).expect_err("no such row"), "it measures tarp by linux");
    }
}
