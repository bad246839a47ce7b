//! The measurements of a benchmark, as `--json` writes them and `barchan report` reads them.
//!
//! Everything a report shows is derived from this, so that it can be derived again. Units
//! are in the names; a value that was not measured is `null`, never 0.

use std::collections::BTreeMap;
use std::path::Path;

use barchan_boehm::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Collector, Config};
use super::paper::{self, model::Paper};
use super::vary::Setting;
use crate::machine::Machine;

/// The format that this version writes. Raised when a reader would be misled.
pub(crate) const FORMAT: u32 = 1;

/// What a file of measurements holds.
#[derive(Debug)]
pub(crate) enum Any {
    /// A plain benchmark.
    Plain(Box<Report>),
    /// One of the paper's tables.
    Paper(Box<Paper>),
}

/// A whole benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
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
    #[serde(default)]
    pub(crate) interrupted: bool,
    /// Whether sizes were those of `--quick`.
    pub(crate) quick: bool,
    /// Time limit of a pause in incremental mode.
    pub(crate) pause_ms: u32,
    /// Marker threads in every mode but `full`.
    pub(crate) markers: u32,
    /// Where it was measured.
    pub(crate) machine: Machine,
    /// What was measured.
    pub(crate) collectors: Vec<CollectorInfo>,
    /// The workloads, in the order of the table.
    pub(crate) workloads: Vec<WorkloadInfo>,
    /// The configurations, in the order of the table.
    pub(crate) configs: Vec<ConfigInfo>,
    /// Every run, in the order in which they were made.
    pub(crate) runs: Vec<Run>,
}

/// One collector.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CollectorInfo {
    /// Which one.
    pub(crate) collector: Collector,
    /// Its version, as far as it tells, and where it comes from.
    pub(crate) description: String,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkloadInfo {
    /// Its name.
    pub(crate) name: String,
    /// What it does.
    pub(crate) title: String,
    /// Its command line, without the directory.
    pub(crate) command: String,
    /// Why it could not be run here, if it could not.
    #[serde(default)]
    pub(crate) unavailable: Option<String>,
    /// Speed-up that is asked of the patched collector; 1.0 means "not slower".
    pub(crate) target: f64,
}

/// One configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConfigInfo {
    /// Its name.
    pub(crate) name: String,
    /// What it is made of.
    #[serde(flatten)]
    pub(crate) config: Config,
    /// The setting of `--vary`, if there is one.
    #[serde(default)]
    pub(crate) setting: Option<Setting>,
    /// The collector's environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Why it could not be measured here, if it could not.
    pub(crate) unavailable: Option<String>,
    /// The source of dirty bits that the collector said it used, where it says.
    pub(crate) reported_source: Option<String>,
}

/// One run of one workload under one configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The workload's name.
    pub(crate) workload: String,
    /// The configuration's name.
    pub(crate) config: String,
    /// The round, from 1.
    pub(crate) round: u32,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It ended well, and its self-checks passed.
    Measured {
        /// The measurements.
        sample: Box<Sample>,
    },
    /// It did not.
    Failed {
        /// Why.
        why: String,
    },
}

/// The measurements of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Wall time of the workload.
    pub(crate) total_s: f64,
    /// CPU time in user mode, all threads.
    pub(crate) user_s: f64,
    /// CPU time in the kernel, all threads.
    pub(crate) sys_s: f64,
    /// Stops of the world.
    pub(crate) pauses: u64,
    /// Median pause.
    pub(crate) pause_p50_ms: Option<f64>,
    /// 99th percentile of the pauses.
    pub(crate) pause_p99_ms: Option<f64>,
    /// Longest pause.
    pub(crate) pause_max_ms: Option<f64>,
    /// Longest allocation that a thread of the workload saw; only our own workloads tell.
    pub(crate) alloc_longest_ms: Option<f64>,
    /// Collections.
    pub(crate) collections: u64,
    /// Largest heap.
    pub(crate) heap_peak_bytes: u64,
    /// Largest resident set of the process.
    pub(crate) max_rss_bytes: u64,
    /// Page faults that needed no I/O; only our own workloads tell.
    pub(crate) minor_faults: Option<u64>,
    /// The source of dirty bits that the collector says it uses at the end.
    pub(crate) source: Option<String>,
    /// Whether the collector was still incremental at the end.
    pub(crate) incremental: bool,
    /// What guest mode did, for a run in it.
    #[serde(default)]
    pub(crate) guest: Option<GuestCounts>,
    /// The workload's own results: alike in every run, or something is broken.
    pub(crate) results: BTreeMap<String, Value>,
}

/// Events of guest mode in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestCounts {
    /// Runs of a virtual CPU that ended, for whatever reason.
    pub(crate) exits: u64,
    /// Page faults that the monitor handled.
    pub(crate) monitor_faults: u64,
    /// Faults of protected pages, which the program handled itself.
    #[serde(default)]
    pub(crate) protection_faults: u64,
    /// Flushes of a CPU's TLB that the program asked for.
    #[serde(default)]
    pub(crate) flushes: u64,
    /// System calls.
    pub(crate) system_calls: u64,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], or [`ErrorKind::BadResult`] for a file that is no report.
    pub(crate) fn read(path: &Path) -> Result<Any> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let no_report = |why: String| {
            Error::new(
                ErrorKind::BadResult,
                format!("{} is no report of a benchmark", path.display()),
            )
            .tried(why)
            .remedy("give the file that `barchan bench --json FILE` wrote")
        };
        let value: Value = serde_json::from_str(&text).map_err(|e| no_report(e.to_string()))?;
        let is_paper = value["kind"] == paper::model::KIND;
        let expected = if is_paper { paper::model::FORMAT } else { FORMAT };
        match value["format"].as_u64() {
            Some(format) if format == u64::from(expected) => {}
            Some(format) => {
                return Err(no_report(format!(
                    "it has format {format}, this version reads {expected}"
                )));
            }
            None => return Err(no_report("it names no format".to_owned())),
        }
        if is_paper {
            let paper = Paper::from_value(value).map_err(no_report)?;
            return Ok(Any::Paper(Box::new(paper)));
        }
        let report = serde_json::from_value(value).map_err(|e| no_report(e.to_string()))?;
        Ok(Any::Plain(Box::new(report)))
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(ErrorKind::BadResult, format!("cannot write JSON: {e}")))?;
        text.push('\n');
        Ok(text)
    }
}
