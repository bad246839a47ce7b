//! From single measurements to the cells of Tables 2 and 3: medians and ranges over the rounds, and ratios.

use dune_bench::{Means, Row};

use super::figures;
use super::model::{Micro, MicroOutcome, MicroSample};
use crate::bench::summary::Spread;

/// A row by one of its means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// The row.
    pub(crate) row: Row,
    /// The means.
    pub(crate) means: Means,
    /// The numbers, or why there are none.
    pub(crate) numbers: Result<Numbers, String>,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Numbers {
    /// Ticks of the time stamp counter for one operation.
    pub(crate) ticks: Spread,
    /// Nanoseconds for one operation.
    pub(crate) ns: Spread,
    /// Runs of the guest's CPU that ended, for each operation.
    pub(crate) exits: Option<f64>,
    /// Over the best that Linux has natively.
    pub(crate) over_linux: Option<f64>,
    /// The paper's figure for this side, in cycles; none for means that it did not measure.
    pub(crate) paper: Option<f64>,
    /// The paper's figure over its figure of Linux.
    pub(crate) paper_over_linux: Option<f64>,
}

/// All cells, row by row.
pub(crate) fn cells(micro: &Micro) -> Vec<Cell> {
    Row::ALL.into_iter().flat_map(|row| row_cells(micro, row)).collect()
}

/// The cells of one row that was measured or tried; none if the benchmark was cut short before it.
fn row_cells(micro: &Micro, row: Row) -> Vec<Cell> {
    let ticks = |means: Means| spread(&samples(micro, row, means), |sample| sample.tsc_ticks);
    let best = row
        .means()
        .iter()
        .filter(|means| means.is_native() && failed(micro, row, **means) == 0)
        .filter_map(|means| Some(ticks(*means)?.median))
        .min_by(f64::total_cmp);
    let paper = figures::operation(row);
    let cell = |means: Means| {
        let samples = samples(micro, row, means);
        let numbers = match (ticks(means), spread(&samples, MicroSample::ns)) {
            _ if failed(micro, row, means) > 0 => Err(why_not(micro, row, means)?),
            (Some(ticks), Some(ns)) => Ok(Numbers {
                ticks,
                ns,
                exits: Spread::of(samples.iter().filter_map(|s| s.exits)).map(|s| s.median),
                over_linux: best.filter(|best| *best > 0.0).map(|best| ticks.median / best),
                paper: match means {
                    Means::Linux => Some(paper.linux),
                    Means::Guest => Some(paper.dune),
                    Means::UserDispatch | Means::Userfaultfd => None,
                },
                paper_over_linux: (means == Means::Guest).then(|| paper.dune / paper.linux),
            }),
            _ => Err(why_not(micro, row, means)?),
        };
        Some(Cell { row, means, numbers })
    };
    row.means().iter().filter_map(|means| cell(*means)).collect()
}

fn samples(micro: &Micro, row: Row, means: Means) -> Vec<MicroSample> {
    micro
        .of(row, means)
        .filter_map(|outcome| match outcome {
            MicroOutcome::Measured { sample } => Some(*sample),
            _ => None,
        })
        .collect()
}

fn spread(samples: &[MicroSample], value: fn(&MicroSample) -> f64) -> Option<Spread> {
    Spread::of(samples.iter().map(value))
}

fn failed(micro: &Micro, row: Row, means: Means) -> usize {
    micro.of(row, means).filter(|outcome| matches!(outcome, MicroOutcome::Failed { .. })).count()
}

/// Why there are no numbers: one failure is enough, as the others may be of the same kind unnoticed.
fn why_not(micro: &Micro, row: Row, means: Means) -> Option<String> {
    micro.of(row, means).find_map(|outcome| match outcome {
        MicroOutcome::Unavailable { why } => Some(format!("not here: {why}")),
        MicroOutcome::Failed { why } => Some(format!(
            "FAILED in {} of {} rounds: {why}",
            failed(micro, row, means),
            micro.of(row, means).count()
        )),
        MicroOutcome::Measured { .. } => None,
    })
}

/// The counter's rate, over all measurements.
pub(crate) fn rate(micro: &Micro) -> Option<Spread> {
    Spread::of(micro.runs.iter().filter_map(|run| match &run.outcome {
        MicroOutcome::Measured { sample } => Some(sample.tsc_ticks_per_s),
        _ => None,
    }))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::paper::model::MicroRun;

    fn run(row: Row, means: Means, ticks: f64) -> MicroRun {
        let sample = MicroSample {
            tsc_ticks: ticks,
            tsc_ticks_per_s: 2e9,
            operations: 100,
            exits: (means == Means::Guest).then_some(1.0),
            monitor_faults: None,
        };
        outcome(row, means, MicroOutcome::Measured { sample })
    }

    fn outcome(row: Row, means: Means, outcome: MicroOutcome) -> MicroRun {
        let (row, means) = (row.name().to_owned(), means.name().to_owned());
        MicroRun { row, means, round: 1, outcome }
    }

    /// A trap of three rounds natively, and none in guest mode.
    pub(crate) fn example() -> Micro {
        let why = "no /dev/kvm".to_owned();
        let mut runs: Vec<_> =
            [5000.0, 4000.0, 9000.0].map(|t| run(Row::Trap, Means::Linux, t)).into();
        runs.push(run(Row::Trap, Means::Userfaultfd, 2500.0));
        runs.push(outcome(Row::Trap, Means::Guest, MicroOutcome::Unavailable { why }));
        runs.push(run(Row::Getpid, Means::Linux, 200.0));
        runs.push(run(Row::Getpid, Means::Guest, 1000.0));
        runs.push(run(Row::Appel1, Means::Linux, 500.0));
        let why = "9 faults".to_owned();
        runs.push(outcome(Row::Appel1, Means::Linux, MicroOutcome::Failed { why }));
        Micro { runs }
    }

    #[test]
    fn cells_are_medians_over_rounds_and_ratios_to_the_best_of_linux() {
        let cells = cells(&example());
        let find = |row, means| {
            let cell = cells.iter().find(|cell| (cell.row, cell.means) == (row, means));
            cell.expect("a cell").numbers.clone()
        };
        let linux = find(Row::Trap, Means::Linux).expect("measured");
        assert_eq!(
            (linux.ticks.median, linux.ticks.min, linux.ticks.max),
            (5000.0, 4000.0, 9000.0)
        );
        assert_eq!((linux.ns.median, linux.over_linux), (2500.0, Some(2.0)));
        assert_eq!((linux.paper, linux.paper_over_linux), (Some(2821.0), None));
        let best = find(Row::Trap, Means::Userfaultfd).expect("measured");
        assert_eq!((best.over_linux, best.paper), (Some(1.0), None));
        assert_eq!(find(Row::Trap, Means::Guest), Err("not here: no /dev/kvm".to_owned()));
        let guest = find(Row::Getpid, Means::Guest).expect("measured");
        assert_eq!(
            (guest.over_linux, guest.exits, guest.paper),
            (Some(5.0), Some(1.0), Some(895.0))
        );
        assert_eq!(guest.paper_over_linux.map(|r| (r * 100.0).round()), Some(649.0));
        assert_eq!(
            find(Row::Appel1, Means::Linux),
            Err("FAILED in 1 of 2 rounds: 9 faults".to_owned())
        );
        assert_eq!(cells.len(), 6, "what was not tried has no cell");
        assert_eq!(rate(&example()).map(|rate| rate.median), Some(2e9));
    }
}
