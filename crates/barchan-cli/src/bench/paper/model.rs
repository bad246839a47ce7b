//! The measurements of `bench paper`, as `--json` writes them and `barchan report` reads them.
//!
//! Units are in the names; a value that was not measured is `null`, never 0.

use barchan_boehm::{Error, ErrorKind, Result};
use dune_bench::{Means, Row};
use serde::{Deserialize, Serialize};

use crate::bench::model::Report;
use crate::machine::Machine;

/// What tells this report from that of a plain `bench`.
pub(crate) const KIND: &str = "paper";

/// The format that this version writes. Raised when a reader would be misled.
pub(crate) const FORMAT: u32 = 2;

/// All that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Paper {
    /// [`KIND`].
    pub(crate) kind: String,
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Version of the command that measured.
    pub(crate) barchan_version: String,
    /// The command line that makes this report.
    pub(crate) command: String,
    /// When it started, RFC 3339, UTC.
    pub(crate) started: String,
    /// How long it took.
    pub(crate) duration_s: f64,
    /// Rounds that were asked for.
    pub(crate) rounds: u32,
    /// Whether it was stopped before all rounds were made.
    pub(crate) interrupted: bool,
    /// Where it was measured.
    pub(crate) machine: Machine,
    /// The host of guest mode.
    pub(crate) guest: Guest,
    /// Tables 2 and 3.
    pub(crate) micro: Option<Micro>,
    /// Table 6: a report of the benchmark, with configurations of its own.
    pub(crate) collector: Option<Report>,
}

/// The host of guest mode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Its kind: VT-x, SVM, PVM.
    pub(crate) kind: Option<String>,
    /// What emulates it, if something does: then times are the emulator's.
    pub(crate) emulated_by: Option<String>,
    /// Instructions in a second of the emulator's clock, if that counts them.
    #[serde(default)]
    pub(crate) instructions_per_s: Option<f64>,
    /// Why there is none.
    pub(crate) why: Option<String>,
}

/// Tables 2 and 3.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Micro {
    /// Every measurement, in the order in which they were made.
    pub(crate) runs: Vec<MicroRun>,
}

/// One measurement of a row by one of its means.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MicroRun {
    /// The row's name.
    pub(crate) row: String,
    /// The means' name.
    pub(crate) means: String,
    /// The round, from 1.
    pub(crate) round: u32,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) outcome: MicroOutcome,
}

/// What came of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(crate) enum MicroOutcome {
    /// It ended well.
    Measured {
        /// The measurement.
        sample: MicroSample,
    },
    /// This machine has no such thing.
    Unavailable {
        /// Why.
        why: String,
    },
    /// It did not end well.
    Failed {
        /// Why.
        why: String,
    },
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MicroSample {
    /// Ticks of the time stamp counter for one operation, the median of many.
    pub(crate) tsc_ticks: f64,
    /// The counter's rate.
    pub(crate) tsc_ticks_per_s: f64,
    /// Operations that the median is of.
    pub(crate) operations: u64,
    /// Runs of the guest's CPU that ended, for each operation.
    pub(crate) exits: Option<f64>,
    /// Page faults that the monitor handled, for each operation.
    pub(crate) monitor_faults: Option<f64>,
}

impl MicroSample {
    /// Nanoseconds for one operation.
    pub(crate) fn ns(&self) -> f64 {
        self.tsc_ticks * 1e9 / self.tsc_ticks_per_s
    }
}

impl From<dune_bench::Sample> for MicroSample {
    fn from(sample: dune_bench::Sample) -> Self {
        Self {
            tsc_ticks: sample.ticks,
            tsc_ticks_per_s: sample.ticks_per_s,
            operations: sample.operations,
            exits: sample.exits,
            monitor_faults: sample.monitor_faults,
        }
    }
}

impl Micro {
    /// The measurements of a row by some means.
    pub(crate) fn of(&self, row: Row, means: Means) -> impl Iterator<Item = &MicroOutcome> {
        self.runs
            .iter()
            .filter(move |run| run.row == row.name() && run.means == means.name())
            .map(|run| &run.outcome)
    }
}

impl Paper {
    /// Reads a report of this kind.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn from_value(value: serde_json::Value) -> std::result::Result<Self, String> {
        let paper: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let unknown = paper
            .micro
            .iter()
            .flat_map(|micro| &micro.runs)
            .find(|run| Row::named(&run.row).is_none() || Means::named(&run.means).is_none());
        match unknown {
            Some(run) => Err(format!("it measures {} by {}", run.row, run.means)),
            None => Ok(paper),
        }
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|e| Error::new(ErrorKind::BadResult, format!("cannot write JSON: {e}")))
    }
}
