//! From single runs to one cell for each workload and configuration: medians and ranges.

use std::collections::BTreeMap;

use serde_json::Value;

use super::HOPELESS;
use super::config::Config;
use super::model::{ConfigInfo, Outcome, Report, Sample, WorkloadInfo};

/// Median and range of a value over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The middle value; the mean of the two middle ones for an even number.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of some values; `None` for none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Self { median: (values[lower] + values[upper]) / 2.0, min, max })
    }
}

/// What was measured for one workload under one configuration.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// The configuration.
    pub(crate) config: Config,
    /// Rounds that ended well.
    pub(crate) rounds: usize,
    /// Wall time in seconds.
    pub(crate) total_s: Spread,
    /// Median over the rounds of each round's median pause.
    pub(crate) pause_p50_ms: Option<f64>,
    /// Median over the rounds of each round's 99th percentile.
    pub(crate) pause_p99_ms: Option<f64>,
    /// Longest pause of each round.
    pub(crate) pause_max_ms: Option<Spread>,
    /// Longest allocation of each round.
    pub(crate) alloc_longest_ms: Option<Spread>,
    /// Collections.
    pub(crate) collections: f64,
    /// Largest heap.
    pub(crate) heap_peak_mb: Spread,
    /// Page faults.
    pub(crate) minor_faults: Option<f64>,
    /// Whether an incremental configuration stopped being incremental on its way.
    pub(crate) gave_up: bool,
}

/// One configuration's line below a workload.
#[derive(Clone, Debug)]
pub(crate) enum Row<'a> {
    /// Measured, at least once.
    Measured {
        /// The configuration.
        info: &'a ConfigInfo,
        /// Its numbers.
        cell: Cell,
        /// Why other rounds of it failed.
        failures: Vec<String>,
    },
    /// Every round failed.
    Failed {
        /// The configuration.
        info: &'a ConfigInfo,
        /// Why.
        failures: Vec<String>,
    },
    /// It cannot be had on this machine.
    Unavailable {
        /// The configuration.
        info: &'a ConfigInfo,
        /// Why.
        why: &'a str,
    },
}

impl<'a> Row<'a> {
    /// The numbers, if there are any.
    pub(crate) fn cell(&self) -> Option<&Cell> {
        match self {
            Self::Measured { cell, .. } => Some(cell),
            _ => None,
        }
    }

    /// The configuration.
    pub(crate) fn info(&self) -> &'a ConfigInfo {
        match self {
            Self::Measured { info, .. }
            | Self::Failed { info, .. }
            | Self::Unavailable { info, .. } => info,
        }
    }

    /// Why rounds failed.
    pub(crate) fn failures(&self) -> &[String] {
        match self {
            Self::Measured { failures, .. } | Self::Failed { failures, .. } => failures,
            Self::Unavailable { .. } => &[],
        }
    }
}

/// All lines of one workload, in the order of the configurations.
pub(crate) fn rows<'a>(report: &'a Report, workload: &WorkloadInfo) -> Vec<Row<'a>> {
    report.configs.iter().filter_map(|info| row(report, workload, info)).collect()
}

fn row<'a>(report: &'a Report, workload: &WorkloadInfo, info: &'a ConfigInfo) -> Option<Row<'a>> {
    if let Some(why) = &info.unavailable {
        return Some(Row::Unavailable { info, why });
    }
    let mut samples = Vec::new();
    let mut failures = Vec::new();
    for run in &report.runs {
        if run.workload != workload.name || run.config != info.name {
            continue;
        }
        match &run.outcome {
            Outcome::Measured { sample } => samples.push(sample.as_ref()),
            Outcome::Failed { why } => failures.push(format!("round {}: {why}", run.round)),
        }
    }
    match cell(info.config, &samples) {
        Some(cell) => Some(Row::Measured { info, cell, failures }),
        None if failures.is_empty() => None, // the benchmark was cut short before it
        None => Some(Row::Failed { info, failures }),
    }
}

fn cell(config: Config, samples: &[&Sample]) -> Option<Cell> {
    let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(|s| value(s)));
    let optional =
        |value: fn(&Sample) -> Option<f64>| Spread::of(samples.iter().filter_map(|s| value(s)));
    Some(Cell {
        config,
        rounds: samples.len(),
        total_s: spread(|s| s.total_s)?,
        pause_p50_ms: optional(|s| s.pause_p50_ms).map(|s| s.median),
        pause_p99_ms: optional(|s| s.pause_p99_ms).map(|s| s.median),
        pause_max_ms: optional(|s| s.pause_max_ms),
        alloc_longest_ms: optional(|s| s.alloc_longest_ms),
        collections: spread(|s| s.collections as f64)?.median,
        heap_peak_mb: spread(|s| s.heap_peak_bytes as f64 / 1e6)?,
        minor_faults: optional(|s| s.minor_faults.map(|count| count as f64)).map(|s| s.median),
        gave_up: config.mode.needs_dirty_bits() && samples.iter().any(|s| !s.incremental),
    })
}

/// Why a configuration has fewer rounds than the others, if it is not that they failed.
pub(crate) fn fewer_rounds(report: &Report, row: &Row<'_>) -> Option<String> {
    let rounds = row.cell()?.rounds;
    let missing = rounds + row.failures().len() < report.rounds as usize;
    (missing && !report.interrupted).then(|| {
        format!(
            "{rounds} of {} rounds, as it took over {HOPELESS} times as long as the fastest in its mode",
            report.rounds
        )
    })
}

/// Why configurations and workloads could not be measured at all, and which; each reason
/// once.
pub(crate) fn unavailable(report: &Report) -> BTreeMap<&str, Vec<&str>> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for info in &report.configs {
        if let Some(why) = &info.unavailable {
            reasons.entry(why).or_default().push(&info.name);
        }
    }
    for info in &report.workloads {
        if let Some(why) = &info.unavailable {
            reasons.entry(why).or_default().push(&info.name);
        }
    }
    reasons
}

/// Workloads whose results were not alike in all runs: a lost object, or a bug in one.
/// Each comes with the configurations that disagree with the first run.
pub(crate) fn disagreements(report: &Report) -> BTreeMap<&str, Vec<&str>> {
    let mut first: BTreeMap<&str, &BTreeMap<String, Value>> = BTreeMap::new();
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for run in &report.runs {
        let Outcome::Measured { sample } = &run.outcome else { continue };
        let expected = *first.entry(&run.workload).or_insert(&sample.results);
        if *expected != sample.results {
            let configs = found.entry(&run.workload).or_default();
            if !configs.contains(&run.config.as_str()) {
                configs.push(&run.config);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).expect("three values");
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).expect("four values").median, 2.5);
    }
}
