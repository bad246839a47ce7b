//! The verdicts: the patched collector against the better baseline's same mode.
//!
//! For each workload and mode the baseline is the configuration with the lowest median
//! time among Debian's and the pinned collector's, whatever source of dirty bits it uses. One that
//! left the mode on its way (the pinned one does under mprotect, with a heap of over 128 MB) is
//! not in the same mode: it is the baseline only if there is no other. If it was faster than
//! the baseline, then generational mode must not be slower than it either.
//! The allowances are the project's own promises; heap and pauses are judged against that
//! same configuration, so that nobody wins by using more memory or stopping longer.
//! Settings of `--vary` are not judged here: see [`super::vary`].

use super::config::{Collector, Mode};
use super::model::{Report, WorkloadInfo};
use super::summary::{Cell, Row};

/// How much slower generational and incremental mode may be.
const DIRTY_TIME_ALLOWANCE: f64 = 1.05;
/// How much slower the full modes may be.
const FULL_TIME_ALLOWANCE: f64 = 1.03;
/// How much larger the peak heap may be.
const HEAP_ALLOWANCE: f64 = 1.15;
/// How much longer pauses may be: as much as their own scatter between rounds ...
const PAUSE_ALLOWANCE: f64 = 1.05;
/// ... and below this difference nobody can tell them apart.
const PAUSE_GRACE_MS: f64 = 0.2;

/// One workload in one mode.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// The workload.
    pub(crate) workload: String,
    /// The mode.
    pub(crate) mode: Mode,
    /// Name of the baseline's configuration.
    pub(crate) baseline: String,
    /// Time of the patched collector over the baseline's.
    pub(crate) time: Check,
    /// Peak heap likewise.
    pub(crate) heap: Check,
    /// 99th percentile of the pauses likewise, where both paused.
    pub(crate) pause_p99: Option<Check>,
    /// Longest pause likewise.
    pub(crate) pause_max: Option<Check>,
    /// Why what was measured does not count as the mode: runs that failed, or that left it.
    pub(crate) flaw: Option<&'static str>,
    /// A configuration that left the mode and was faster than the baseline, and the time of the
    /// patched collector over its own.
    pub(crate) gave_up: Option<(String, Check)>,
}

/// A ratio and what it may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    /// The patched collector's value.
    pub(crate) ours: f64,
    /// The baseline's value.
    pub(crate) theirs: f64,
    /// The largest ratio that passes.
    pub(crate) allowed: f64,
    /// Whether it passes.
    pub(crate) passed: bool,
}

impl Check {
    fn new(ours: f64, theirs: f64, allowed: f64, grace: f64) -> Self {
        let limit = (theirs * allowed).max(if grace > 0.0 { theirs + grace } else { 0.0 });
        Self { ours, theirs, allowed, passed: ours <= limit }
    }

    /// Ours over theirs.
    pub(crate) fn ratio(self) -> f64 {
        self.ours / self.theirs
    }
}

impl Verdict {
    /// Every check with its name.
    pub(crate) fn checks(&self) -> impl Iterator<Item = (&'static str, Check)> {
        [
            Some(("time", self.time)),
            Some(("heap", self.heap)),
            self.pause_p99.map(|check| ("p99 pause", check)),
            self.pause_max.map(|check| ("max pause", check)),
            self.gave_up
                .as_ref()
                .filter(|_| self.mode != Mode::Incremental)
                .map(|(_, check)| ("time against one that left the mode", *check)),
        ]
        .into_iter()
        .flatten()
    }

    /// Whether all of them pass, and nothing went wrong on the way.
    pub(crate) fn passed(&self) -> bool {
        self.flaw.is_none() && self.checks().all(|(_, check)| check.passed)
    }
}

/// The patched collector's row in a mode, if it was tried there.
fn ours<'a, 'r>(rows: &'a [Row<'r>], mode: Mode) -> Option<&'a Row<'r>> {
    rows.iter().find(|row| {
        let info = row.info();
        let is_ours = info.config.mode == mode && info.config.collector == Collector::Barchan;
        is_ours && info.setting.is_none() && !matches!(row, Row::Unavailable { .. })
    })
}

/// What was measured of the baselines in a mode.
fn baselines<'a>(rows: &'a [Row<'_>], mode: Mode) -> impl Iterator<Item = &'a Cell> {
    rows.iter()
        .filter(|row| row.info().setting.is_none())
        .filter_map(Row::cell)
        .filter(move |cell| cell.config.mode == mode && cell.config.collector.is_baseline())
}

/// The verdicts on one workload, for the modes in which both sides were measured.
pub(crate) fn verdicts(workload: &WorkloadInfo, rows: &[Row<'_>]) -> Vec<Verdict> {
    Mode::ALL
        .into_iter()
        .filter_map(|mode| {
            let row = ours(rows, mode)?;
            let ours = row.cell()?;
            let flaw = match (row.failures(), ours.gave_up) {
                ([_, ..], _) => Some("some of its runs failed"),
                ([], true) => Some("it left the mode on its way"),
                ([], false) => None,
            };
            let fastest = |gave_up: bool| {
                baselines(rows, mode)
                    .filter(|cell| cell.gave_up == gave_up)
                    .min_by(|a, b| a.total_s.median.total_cmp(&b.total_s.median))
            };
            let (stayed, left) = (fastest(false), fastest(true));
            let theirs = stayed.or(left)?;
            let left = left.filter(|cell| cell.total_s.median < theirs.total_s.median);
            Some(verdict(workload, mode, flaw, ours, theirs, left))
        })
        .collect()
}

fn verdict(
    workload: &WorkloadInfo,
    mode: Mode,
    flaw: Option<&'static str>,
    ours: &Cell,
    theirs: &Cell,
    left: Option<&Cell>,
) -> Verdict {
    let allowed = match (mode.needs_dirty_bits(), workload.target > 1.0) {
        (false, _) => FULL_TIME_ALLOWANCE,
        (true, false) => DIRTY_TIME_ALLOWANCE,
        (true, true) => 1.0 / workload.target,
    };
    let pause = |ours: Option<f64>, theirs: Option<f64>| {
        Some(Check::new(ours?, theirs?, PAUSE_ALLOWANCE, PAUSE_GRACE_MS))
    };
    let longest = |cell: &Cell| cell.pause_max_ms.map(|spread| spread.median);
    Verdict {
        workload: workload.name.clone(),
        mode,
        baseline: theirs.config.to_string(),
        time: Check::new(ours.total_s.median, theirs.total_s.median, allowed, 0.0),
        heap: Check::new(ours.heap_peak_mb.median, theirs.heap_peak_mb.median, HEAP_ALLOWANCE, 0.0),
        pause_p99: pause(ours.pause_p99_ms, theirs.pause_p99_ms),
        pause_max: pause(longest(ours), longest(theirs)),
        flaw,
        gave_up: left.map(|left| {
            let (ours, theirs) = (ours.total_s.median, left.total_s.median);
            (left.config.to_string(), Check::new(ours, theirs, DIRTY_TIME_ALLOWANCE, 0.0))
        }),
    }
}

/// Which workloads are not judged in which modes although a baseline was measured, since the patched
/// collector has no run that ended well; `None` if there are no such.
pub(crate) fn not_judged(report: &Report) -> Option<String> {
    let mut failed = Vec::new();
    for workload in &report.workloads {
        let rows = super::summary::rows(report, workload);
        for mode in Mode::ALL {
            let is_failed = matches!(ours(&rows, mode), Some(Row::Failed { .. }));
            if is_failed && baselines(&rows, mode).next().is_some() {
                failed.push(format!("{} {}", workload.name, mode.name()));
            }
        }
    }
    let count = failed.len();
    (count > 0).then(|| {
        format!("{count} not judged, as every run of barchan failed: {}.", failed.join(", "))
    })
}

/// All verdicts of a report.
pub(crate) fn all(report: &Report) -> Vec<Verdict> {
    report
        .workloads
        .iter()
        .flat_map(|workload| verdicts(workload, &super::summary::rows(report, workload)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowances_are_ratios_with_a_grace_for_tiny_pauses() {
        assert!(Check::new(1.03, 1.0, 1.03, 0.0).passed);
        assert!(!Check::new(1.04, 1.0, 1.03, 0.0).passed);
        assert!(!Check::new(0.6, 1.0, 0.5, 0.0).passed, "a target of 2x is not met at 1.67x");
        assert!(Check::new(0.3, 0.15, PAUSE_ALLOWANCE, PAUSE_GRACE_MS).passed);
        assert!(!Check::new(8.0, 7.0, PAUSE_ALLOWANCE, PAUSE_GRACE_MS).passed);
    }
}
