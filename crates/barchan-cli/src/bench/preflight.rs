//! Before the first round: which configurations can be measured on this machine, and why
//! the others cannot.
//!
//! A collector that lacks the source it was asked for falls back to mprotect in silence;
//! its numbers would be those of another configuration. So each configuration with dirty
//! bits is run once on a tiny workload and asked what it uses.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use barchan_boehm::{Layout, SystemCollector};

use super::config::{Collector, Config, DirtySource};
use super::runner::{self, Job};
use crate::machine;

/// A configuration that can be measured.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// The directory with its collector.
    pub(crate) library_dir: PathBuf,
    /// What it says it uses, if it says.
    pub(crate) reported_source: Option<String>,
    /// More of the environment than the configuration says.
    pub(crate) environment: Vec<(String, String)>,
    /// Where guest mode leaves its counts, for a configuration in it.
    pub(crate) guest_records: Option<PathBuf>,
}

/// The directory with the configuration's collector.
///
/// # Errors
/// One sentence that says why there is none.
pub(crate) fn library_dir(layout: &Layout, config: Config) -> Result<PathBuf, String> {
    match config.flavour() {
        None => SystemCollector::find()
            .map(|system| system.library_dir().to_path_buf())
            .map_err(|_| "the system has no libgc.so.1 (apt-get install libgc1)".to_owned()),
        Some(flavour) => {
            let dir = layout.library_dir(flavour);
            if dir.join("libgc.so.1").is_file() {
                return Ok(dir);
            }
            Err(format!("the {flavour} collector is not built (barchan build)"))
        }
    }
}

/// Checks one configuration.
///
/// # Errors
/// One sentence that says why it cannot be measured here.
pub(crate) fn check(
    layout: &Layout,
    config: Config,
    environment: &[(String, String)],
) -> Result<Ready, String> {
    if config.dirty == DirtySource::SoftDirty && !machine::has_soft_dirty() {
        return Err("the kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned());
    }
    let library_dir = library_dir(layout, config)?;
    let reported_source = trial(&layout.workloads(), &library_dir, config, environment)?;
    Ok(Ready { library_dir, reported_source, environment: Vec::new(), guest_records: None })
}

/// Whether a line on standard error says that the collector does something else than it was told.
fn is_complaint(line: &str) -> bool {
    line.starts_with("GC: ") || line.starts_with("GC Warning: ")
}

/// Runs a tiny workload; what the collector says that it uses, if it says.
///
/// # Errors
/// One sentence that says why it is not what the configuration means.
pub(super) fn trial(
    workloads: &Path,
    library_dir: &Path,
    config: Config,
    environment: &[(String, String)],
) -> Result<Option<String>, String> {
    let job = Job {
        program: workloads.join("list"),
        args: ["--json", "--scale", "0.01"].map(str::to_owned).to_vec(),
        library_dir: library_dir.to_path_buf(),
        environment: environment.to_vec(),
        timeout: Duration::from_secs(60),
        watched: None,
    };
    let (sample, said) = runner::run_and_listen(&job, &AtomicBool::new(false))
        .map_err(|why| format!("a trial run failed: {why}"))?;
    if let Some(complaint) = said.lines().find(|line| is_complaint(line)) {
        return Err(complaint.to_owned());
    }
    if !config.mode.needs_dirty_bits() {
        return Ok(None);
    }
    if !sample.incremental {
        return Err("the collector did not turn incremental mode on".to_owned());
    }
    match (config.dirty.reported_as(), sample.source.as_deref()) {
        (Some(wanted), Some(found)) if wanted != found => {
            Err(format!("asked for {}, the collector uses {found}", config.dirty.name()))
        }
        (_, Some("none")) if config.collector == Collector::Barchan => {
            Err("the patched collector found no source of dirty bits".to_owned())
        }
        _ => Ok(sample.source),
    }
}
