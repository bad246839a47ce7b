//! Table 6: which configurations are measured, whether they can be here, and how they are started in guest
//! mode.
//!
//! Rounds, progress and measurements are those of a plain `bench`. What is added: the patched collector
//! with one source of dirty bits each, natively and in guest mode, and a trial that asks the library
//! itself which source it uses and guest mode whether the program was in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use barchan_boehm::{Error, Layout, Result};
use tempfile::TempDir;

use super::figures;
use super::model::Guest;
use crate::bench::config::{Collector, Config, DirtySource, Mode};
use crate::bench::model::{GuestCounts, Outcome, Report};
use crate::bench::preflight::{self, Ready};
use crate::bench::workload::{self, Subject, Workload};
use crate::bench::{Candidate, Plan, build_needed, require_one};
use crate::build;
use crate::cli::{DEFAULT_PAUSE_MS, PaperArgs};
use crate::run::{dune, record};

/// The workloads with these names, all for none: the four of Table 6, and the ten documents.
pub(crate) fn workloads(names: &[String]) -> Vec<&'static Workload> {
    let all = workload::select(&figures::TABLE_6.map(|column| column.name.to_owned()));
    let wanted =
        |workload: &&Workload| names.is_empty() || names.iter().any(|n| n == workload.name);
    all.into_iter().chain([&workload::TEN_DOCUMENTS]).filter(wanted).collect()
}

/// The configurations, by mode.
pub(crate) fn configs() -> Vec<Config> {
    let mut all = Vec::new();
    for mode in Mode::ALL {
        let sides: &[(Collector, DirtySource)] = if mode.needs_dirty_bits() {
            &[
                (Collector::Debian, DirtySource::Mprotect),
                (Collector::Pinned, DirtySource::Mprotect),
                (Collector::Barchan, DirtySource::PagemapScan),
                (Collector::Barchan, DirtySource::GuestDirect),
                (Collector::Barchan, DirtySource::GuestTlb),
                (Collector::Barchan, DirtySource::GuestPte),
                (Collector::Barchan, DirtySource::GuestPml),
            ]
        } else {
            &[(Collector::Debian, DirtySource::None), (Collector::Pinned, DirtySource::None)]
        };
        all.extend(sides.iter().map(|&(collector, dirty)| Config { collector, mode, dirty }));
    }
    all
}

/// What is needed to measure.
pub(super) struct Prepared {
    plan: Plan,
    candidates: Vec<Candidate>,
    /// Guest mode's counts, until they are read.
    _records: TempDir,
}

/// Builds, and tries every configuration.
pub(super) fn prepare(layout: &Layout, args: &PaperArgs, guest: &Guest) -> Result<Prepared> {
    let mut configs = configs();
    configs.retain(|c| args.config.is_empty() || args.config.iter().any(|s| s.matches(*c)));
    let plan = Plan {
        subjects: workloads(&args.workload).into_iter().map(Subject::Ours).collect(),
        configs,
        settings: vec![None],
        rounds: args.rounds,
        quick: false,
        scale: args.runs.scale.unwrap_or(1.0),
        pause_ms: args.pause_ms.unwrap_or(DEFAULT_PAUSE_MS),
        markers: args.runs.markers(),
        timeout: Duration::from_secs(args.timeout),
        no_skip: args.runs.no_skip,
    };
    let mut library = layout.dune_library();
    if !args.runs.no_build {
        build_needed(layout, &plan)?;
        if guest.why.is_none() {
            library = build::dune_library(layout)?;
        }
    }
    let records = tempfile::Builder::new()
        .prefix("barchan-paper-")
        .tempdir()
        .map_err(|e| Error::io("create a directory in", &std::env::temp_dir(), &e))?;
    let summary = build::preload(layout)?;
    let candidates: Vec<Candidate> = plan
        .configs
        .iter()
        .map(|config| {
            let environment = plan.environment(*config, None);
            let trial = Trial { layout, library: &library, summary: &summary, guest };
            let ready = match config.collector {
                Collector::Barchan => trial.check(*config, &environment, records.path()),
                _ => preflight::check(layout, *config, &environment),
            };
            Candidate { config: *config, setting: None, ready }
        })
        .collect();
    require_one(&candidates, "no collector can be run here")?;
    Ok(Prepared { plan, candidates, _records: records })
}

impl Prepared {
    /// All rounds.
    pub(super) fn measure(self, layout: &Layout, command: String, stop: &AtomicBool) -> Report {
        crate::bench::measure(layout, command, &self.plan, &self.candidates, stop)
    }
}

/// The trial of a configuration of the patched collector.
struct Trial<'a> {
    layout: &'a Layout,
    /// What moves a program into guest mode.
    library: &'a Path,
    /// What notes the collector's events.
    summary: &'a Path,
    guest: &'a Guest,
}

impl Trial<'_> {
    fn check(
        &self,
        config: Config,
        environment: &[(String, String)],
        records: &Path,
    ) -> std::result::Result<Ready, String> {
        let in_guest = config.dirty.needs_guest_mode();
        if let Some(why) = self.guest.why.as_ref().filter(|_| in_guest) {
            return Err(why.clone());
        }
        if config.dirty == DirtySource::GuestPml && !Path::new("/dev/dune").exists() {
            return Err("the processor's log of written pages (PML) takes the kernel module, and \
                        there is no /dev/dune"
                .to_owned());
        }
        if in_guest && !self.library.is_file() {
            return Err(format!("{} is not built", self.library.display()));
        }
        let library_dir = preflight::library_dir(self.layout, config)?;
        let guest_records = in_guest.then(|| records.join("guest"));
        let noted = records.join(format!("trial-{}-{}", config.mode.name(), config.dirty.name()));
        for dir in guest_records.iter().chain([&noted]) {
            std::fs::create_dir_all(dir)
                .map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        }
        let text = |path: &Path| path.display().to_string();
        let own = match &guest_records {
            Some(dir) => vec![
                ("LD_PRELOAD".to_owned(), text(self.library)),
                ("BARCHAN_DUNE_DIR".to_owned(), text(dir)),
            ],
            None => Vec::new(),
        };
        let mut all = environment.to_vec();
        all.extend(own.iter().filter(|(name, _)| name != "LD_PRELOAD").cloned());
        let preload = [in_guest.then_some(self.library), Some(self.summary)];
        let preload: Vec<_> = preload.into_iter().flatten().map(text).collect();
        all.push(("LD_PRELOAD".to_owned(), preload.join(":")));
        all.push(("BARCHAN_SUMMARY_DIR".to_owned(), text(&noted)));
        preflight::trial(&self.layout.workloads(), &library_dir, config, &all)?;
        if let Some(dir) = &guest_records {
            take_counts(dir).ok_or("a trial run did not enter guest mode")?;
        }
        let source = source(&noted).ok_or("a trial run did not say what it uses")?;
        if source != config.dirty.name() {
            return Err(format!("asked for {}, the library uses {source}", config.dirty.name()));
        }
        let reported_source = Some(source);
        Ok(Ready { library_dir, reported_source, environment: own, guest_records })
    }
}

/// The source of dirty bits that the library said it uses.
fn source(dir: &Path) -> Option<String> {
    files(dir).iter().find_map(|path| record::read(path)?.source)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Reads guest mode's counts of the last run and removes them; `None` if it was not in guest mode.
fn take_counts(dir: &Path) -> Option<GuestCounts> {
    let processes = dune::read(dir, 0);
    for path in files(dir) {
        // What cannot be removed would be counted twice, and the exits would show it.
        let _ = std::fs::remove_file(path);
    }
    let mut counts = GuestCounts::default();
    for process in &processes {
        counts.exits += process.exits;
        counts.monitor_faults += process.faults;
        counts.protection_faults += process.protection_faults;
        counts.flushes += process.flushes;
        counts.system_calls += process.calls.iter().map(|(_, count)| count).sum::<u64>();
    }
    (counts.exits > 0).then_some(counts)
}

/// Adds guest mode's counts to what came of a run. One that was not in guest mode has failed: the
/// program then runs natively, and would be measured as something else.
pub(crate) fn add_counts(outcome: Outcome, dir: &Path) -> Outcome {
    let counts = take_counts(dir);
    match (outcome, counts) {
        (Outcome::Measured { mut sample }, Some(counts)) => {
            sample.guest = Some(counts);
            Outcome::Measured { sample }
        }
        (Outcome::Measured { .. }, None) => {
            Outcome::Failed { why: "it did not enter guest mode".to_owned() }
        }
        (failed, _) => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_both_stock_collectors_and_dirty_modes_have_ours_on_both_sides() {
        let names: Vec<_> = configs().iter().map(Config::to_string).collect();
        assert_eq!(names.len(), 2 * 2 + 2 * 7);
        for name in [
            "debian/full",
            "pinned/full-parallel",
            "debian/incremental/mprotect",
            "barchan/generational/pagemap-scan",
            "barchan/incremental/guest-direct",
            "barchan/generational/guest-tlb",
            "barchan/incremental/guest-pte",
            "barchan/generational/guest-pml",
        ] {
            assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
        }
    }

    #[test]
    fn a_run_that_was_not_in_guest_mode_is_no_measurement_of_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let measured = || Outcome::Measured { sample: Box::default() };
        let Outcome::Failed { why } = add_counts(measured(), dir.path()) else {
            panic!("no counts")
        };
        assert_eq!(why, "it did not enter guest mode");
        let killed = Outcome::Failed { why: "killed".to_owned() };
        let Outcome::Failed { why } = add_counts(killed, dir.path()) else { panic!("it failed") };
        assert_eq!(why, "killed");
    }
}
