//! Table 6: for each workload the better stock collector in each mode, and ours, beside the paper's figures.

use super::figures;
use crate::bench::config::{Collector, Config, DirtySource, Mode};
use crate::bench::model::{GuestCounts, Outcome, Report, WorkloadInfo};
use crate::bench::summary::{self, Cell, Spread};

/// A line of the table: a mode of the better stock collector, or one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The faster of Debian's and the pinned collector in this mode.
    Stock(Mode),
    /// The patched collector in this mode with this source.
    Ours(Mode, DirtySource),
}

impl Line {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 14] = [
        Self::Stock(Mode::Full),
        Self::Stock(Mode::FullParallel),
        Self::Stock(Mode::Generational),
        Self::Ours(Mode::Generational, DirtySource::PagemapScan),
        Self::Ours(Mode::Generational, DirtySource::GuestDirect),
        Self::Ours(Mode::Generational, DirtySource::GuestTlb),
        Self::Ours(Mode::Generational, DirtySource::GuestPte),
        Self::Ours(Mode::Generational, DirtySource::GuestPml),
        Self::Stock(Mode::Incremental),
        Self::Ours(Mode::Incremental, DirtySource::PagemapScan),
        Self::Ours(Mode::Incremental, DirtySource::GuestDirect),
        Self::Ours(Mode::Incremental, DirtySource::GuestTlb),
        Self::Ours(Mode::Incremental, DirtySource::GuestPte),
        Self::Ours(Mode::Incremental, DirtySource::GuestPml),
    ];

    /// Its name in the table.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Stock(mode) if mode.needs_dirty_bits() => {
                format!("stock, {}, mprotect", mode.name())
            }
            Self::Stock(mode) => format!("stock, {}", mode.name()),
            Self::Ours(mode, dirty) if dirty.needs_guest_mode() => {
                format!("barchan, {}, {} (Dune mode)", mode.name(), dirty.name())
            }
            Self::Ours(mode, dirty) => format!("barchan, {}, {}", mode.name(), dirty.name()),
        }
    }

    fn is(self, config: Config) -> bool {
        match self {
            Self::Stock(mode) => config.mode == mode && config.collector.is_baseline(),
            Self::Ours(mode, dirty) => {
                config.collector == Collector::Barchan
                    && (config.mode, config.dirty) == (mode, dirty)
            }
        }
    }
}

/// The cell of a line: the fastest of its configurations; one that left incremental mode on its way only
/// if there is no other.
pub(crate) fn cell(report: &Report, workload: &WorkloadInfo, line: Line) -> Option<Cell> {
    summary::rows(report, workload)
        .iter()
        .filter_map(|row| row.cell())
        .filter(|cell| line.is(cell.config))
        .min_by(|a, b| {
            let key = |cell: &Cell| (cell.gave_up, cell.total_s.median);
            let ((a_left, a), (b_left, b)) = (key(a), key(b));
            a_left.cmp(&b_left).then(a.total_cmp(&b))
        })
        .cloned()
}

/// What the paper has of a variant: its name and the figure.
type InThePaper = (&'static str, figures::Figure);

/// The variants in Dune mode.
pub(crate) const VARIANTS: [(DirtySource, Option<InThePaper>); 4] = [
    (DirtySource::GuestDirect, Some(("direct port", |w| w.direct_ms))),
    (DirtySource::GuestTlb, Some(("TLB control", |w| w.tlb_ms))),
    (DirtySource::GuestPte, Some(("dirty bits", |w| w.dirty_ms))),
    (DirtySource::GuestPml, None),
];

/// A variant in Dune mode over the better stock collector by mprotect, in one mode; below 1 it is faster.
pub(crate) fn over_stock(
    report: &Report,
    workload: &WorkloadInfo,
    mode: Mode,
    dirty: DirtySource,
) -> Option<f64> {
    let ours = cell(report, workload, Line::Ours(mode, dirty))?;
    let stock = cell(report, workload, Line::Stock(mode))?;
    Some(ours.total_s.median / stock.total_s.median)
}

/// The same ratio in the paper, of its figure for `dirty`.
pub(crate) fn paper_over_normal(
    workload: &WorkloadInfo,
    (dirty, (_, of)): (DirtySource, InThePaper),
) -> Option<f64> {
    let (ten, ratio) = figures::TEN_DOCUMENTS;
    if workload.name == ten {
        return (dirty == DirtySource::GuestPte).then_some(ratio);
    }
    let figures = figures::TABLE_6.iter().find(|figures| figures.name == workload.name)?;
    Some(of(figures) / figures.normal_ms)
}

/// What is counted in guest mode.
pub(crate) type Count = fn(&GuestCounts) -> u64;

/// The median of one of guest mode's counts.
pub(crate) fn count(
    report: &Report,
    workload: &WorkloadInfo,
    config: Config,
    count: Count,
) -> Option<f64> {
    let name = config.to_string();
    let counts = report
        .runs
        .iter()
        .filter(|run| run.workload == workload.name && run.config == name)
        .filter_map(|run| match &run.outcome {
            Outcome::Measured { sample } => sample.guest,
            Outcome::Failed { .. } => None,
        })
        .map(|counts| count(&counts) as f64);
    Some(Spread::of(counts)?.median)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::model::{ConfigInfo, Run, Sample};
    use crate::bench::paper::collector::configs;
    use crate::machine::Machine;

    /// gcbench with the given seconds of each configuration, in one round.
    pub(crate) fn example(seconds: &[(&str, f64, bool)]) -> Report {
        let info = |config: Config| ConfigInfo {
            name: config.to_string(),
            config,
            setting: None,
            environment: BTreeMap::new(),
            unavailable: None,
            reported_source: None,
        };
        let run = |(name, total_s, incremental): &(&str, f64, bool)| {
            let guest = name.contains("/guest-").then_some(GuestCounts {
                exits: 30,
                monitor_faults: 20,
                protection_faults: 40,
                flushes: 50,
                system_calls: 10,
            });
            let sample = Sample {
                total_s: *total_s,
                incremental: *incremental,
                pause_p50_ms: Some(1.0),
                pause_p99_ms: Some(2.0),
                pause_max_ms: Some(3.0),
                guest,
                ..Sample::default()
            };
            Run {
                workload: "gcbench".to_owned(),
                config: (*name).to_owned(),
                round: 1,
                outcome: Outcome::Measured { sample: Box::new(sample) },
            }
        };
        Report {
            format: crate::bench::model::FORMAT,
            barchan_version: "0".to_owned(),
            command: "barchan bench paper".to_owned(),
            started: "2026-11-28T15:00:00Z".to_owned(),
            duration_s: 1.0,
            rounds: 1,
            interrupted: false,
            quick: false,
            pause_ms: 5,
            markers: 2,
            machine: Machine::default(),
            collectors: Vec::new(),
            workloads: vec![WorkloadInfo {
                name: "gcbench".to_owned(),
                title: "trees".to_owned(),
                command: "gcbench --scale 0.5".to_owned(),
                unavailable: None,
                target: 1.0,
            }],
            configs: configs().into_iter().map(info).collect(),
            runs: seconds.iter().map(run).collect(),
        }
    }

    /// Numbers of which every line can be told from the others.
    pub(crate) fn some() -> Report {
        example(&[
            ("debian/full", 1.5, false),
            ("pinned/full", 1.4, false),
            ("debian/incremental/mprotect", 2.0, true),
            ("pinned/incremental/mprotect", 1.0, false),
            ("barchan/incremental/pagemap-scan", 0.7, true),
            ("barchan/incremental/guest-direct", 1.8, true),
            ("barchan/incremental/guest-pte", 1.2, true),
        ])
    }

    #[test]
    fn a_line_is_the_better_one_that_stayed_in_its_mode() {
        let report = some();
        let workload = &report.workloads[0];
        let of = |line| cell(&report, workload, line).map(|cell| cell.config.to_string());
        assert_eq!(of(Line::Stock(Mode::Full)).as_deref(), Some("pinned/full"));
        let stock = of(Line::Stock(Mode::Incremental));
        assert_eq!(stock.as_deref(), Some("debian/incremental/mprotect"), "the other left it");
        assert_eq!(of(Line::Stock(Mode::Generational)), None);
        let ratio = |dirty| over_stock(&report, workload, Mode::Incremental, dirty);
        let ratios = VARIANTS.map(|(dirty, _)| ratio(dirty));
        assert_eq!(ratios, [Some(1.8 / 2.0), None, Some(1.2 / 2.0), None]);
        let paper =
            |workload| VARIANTS.map(|(dirty, paper)| paper_over_normal(workload, (dirty, paper?)));
        let [rest @ .., pml] = paper(workload);
        assert_eq!(rest, [1176.0, 933.0, 888.0].map(|ms| Some(ms / 1224.0)));
        assert_eq!(pml, None);
        let guest = Config {
            collector: Collector::Barchan,
            mode: Mode::Incremental,
            dirty: DirtySource::GuestPte,
        };
        assert_eq!(count(&report, workload, guest, |c| c.exits), Some(30.0));
        assert_eq!(count(&report, workload, guest, |c| c.flushes), Some(50.0));
        let ten = WorkloadInfo { name: figures::TEN_DOCUMENTS.0.to_owned(), ..workload.clone() };
        assert_eq!(count(&report, &ten, guest, |c| c.exits), None, "it was not measured");
        assert_eq!(paper(&ten), [None, None, Some(0.872), None]);
    }

    #[test]
    fn every_configuration_is_in_a_line() {
        for config in configs() {
            assert_eq!(Line::ALL.iter().filter(|line| line.is(config)).count(), 1, "{config}");
        }
    }
}
