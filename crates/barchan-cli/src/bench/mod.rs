//! `barchan bench`: every collector on every workload, in interleaved rounds.
//!
//! Within a round, workload by workload, every configuration runs once; the order of the
//! configurations rotates from round to round. A run that fails is a row of the report,
//! not the end of the benchmark.

pub(crate) mod compare;
pub(crate) mod config;
pub(crate) mod model;
pub(crate) mod paper;
mod preflight;
mod progress;
mod runner;
pub(crate) mod summary;
pub(crate) mod vary;
pub(crate) mod workload;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use barchan_boehm::{Error, ErrorKind, Flavour, Layout, Result, SystemCollector};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::BenchArgs;
use crate::run::attend;
use crate::{build, machine::Machine, note, report, require_writable, write_file};
use config::{Collector, Config, Mode};
use model::{CollectorInfo, ConfigInfo, Outcome, Report, Run, WorkloadInfo};
use preflight::Ready;
use progress::{Key, Progress};
use runner::{Job, Watched};
use vary::Setting;
use workload::{Program, Subject, Workload};

/// Rounds of a full benchmark.
const ROUNDS: u32 = 5;

/// A configuration that took over so many times as long as the fastest one in its mode is not
/// run again: nothing hangs on its median, and it would take most of the benchmark's time.
pub(crate) const HOPELESS: f64 = 8.0;

/// Exit code after ^C, as shells have it, and after another request to end.
const INTERRUPTED: u8 = 128 + 2;

/// What is to be measured, and with which settings.
struct Plan {
    subjects: Vec<Subject>,
    configs: Vec<Config>,
    /// What every configuration is run with; one `None` if nothing is varied.
    settings: Vec<Option<Setting>>,
    rounds: u32,
    quick: bool,
    scale: f64,
    pause_ms: u32,
    markers: u32,
    timeout: Duration,
    no_skip: bool,
}

impl Plan {
    fn new(args: &BenchArgs) -> Self {
        Self {
            subjects: match Program::new(&args.program) {
                Some(program) => vec![Subject::Theirs(program)],
                None => workload::select(&args.workload).into_iter().map(Subject::Ours).collect(),
            },
            configs: match args.program.is_empty() || !args.config.is_empty() {
                true => config::select(&args.config),
                false => config::for_programs(),
            },
            settings: match &args.vary {
                Some(vary) => vary.settings().map(Some).collect(),
                None => vec![None],
            },
            rounds: args.rounds.unwrap_or(if args.quick { 1 } else { ROUNDS }),
            quick: args.quick,
            scale: args.runs.scale.unwrap_or(1.0),
            pause_ms: args.pause_ms,
            markers: args.runs.markers(),
            timeout: Duration::from_secs(args.timeout),
            no_skip: args.runs.no_skip,
        }
    }

    fn environment(&self, config: Config, setting: Option<&Setting>) -> Vec<(String, String)> {
        let mut environment = config.environment(self.markers, self.pause_ms);
        if let Some(Setting { variable, value: Some(value) }) = setting {
            environment.push((variable.clone(), value.clone()));
        }
        environment
    }

    /// The arguments of a workload; sizes of `--quick` and of `--scale` multiply.
    fn arguments(&self, workload: &Workload) -> Vec<String> {
        let mut args: Vec<String> = workload.full.iter().map(|arg| (*arg).to_owned()).collect();
        let scale = self.scale * if self.quick { workload.quick_scale } else { 1.0 };
        if scale < 1.0 {
            args.extend(["--scale".to_owned(), format!("{scale}")]);
        }
        args
    }

    /// The command that measures the same again.
    fn command(&self, args: &BenchArgs) -> String {
        let mut words = vec!["barchan bench".to_owned()];
        if self.quick {
            words.push("--quick".to_owned());
        }
        words.push(format!("--rounds {}", self.rounds));
        words.extend(args.workload.iter().map(|name| format!("--workload {name}")));
        words.extend(args.config.iter().map(|selector| format!("--config {selector}")));
        if let Some(scale) = args.runs.scale {
            words.push(format!("--scale {scale}"));
        }
        if let Some(vary) = &args.vary {
            words.push(format!("--vary {vary}"));
        }
        if self.no_skip {
            words.push("--no-skip".to_owned());
        }
        words.push(format!("--pause-ms {} --markers {}", self.pause_ms, self.markers));
        words.push(format!("--timeout {}", self.timeout.as_secs()));
        for subject in &self.subjects {
            if let Subject::Theirs(program) = subject {
                words.push(format!("-- {}", program.command()));
            }
        }
        words.join(" ")
    }
}

/// A configuration with a setting, and how to run it or why that cannot be done here.
struct Candidate {
    config: Config,
    setting: Option<Setting>,
    ready: std::result::Result<Ready, String>,
}

impl Candidate {
    /// Every configuration of the plan with every setting.
    fn all(layout: &Layout, plan: &Plan) -> Vec<Self> {
        let mut all = Vec::new();
        for config in &plan.configs {
            for setting in &plan.settings {
                let environment = plan.environment(*config, setting.as_ref());
                all.push(Self {
                    config: *config,
                    setting: setting.clone(),
                    ready: preflight::check(layout, *config, &environment),
                });
            }
        }
        all
    }

    /// The name in reports.
    fn name(&self) -> String {
        match &self.setting {
            None => self.config.to_string(),
            Some(setting) => format!("{} {setting}", self.config),
        }
    }
}

/// Runs the subcommand.
pub(crate) fn command(layout: &Layout, args: &BenchArgs) -> Result<ExitCode> {
    let mut plan = Plan::new(args);
    if !args.list && !args.runs.no_build {
        build_needed(layout, &plan)?;
    }
    let patched = Collector::Barchan;
    if args.runs.no_build && plan.configs.iter().any(|config| config.collector == patched) {
        if let Some(built) = barchan_boehm::Collector::built(layout, Flavour::PATCHED) {
            build::warn_if_outdated(layout, &built);
        }
    }
    let candidates = Candidate::all(layout, &plan);
    if args.list {
        crate::print(&list(&plan, &candidates))?;
        return Ok(ExitCode::SUCCESS);
    }
    require_one(&candidates, "none of the configurations can be run here")?;
    let files = Files::new(layout, args.runs.json.as_deref(), args.html.as_deref(), "report.html")?;
    let stop = stop_on_interrupt()?;
    rehearse(layout, &mut plan, &candidates, &stop)?;
    let report = measure(layout, plan.command(args), &plan, &candidates, &stop);
    publish(&files, &report)
}

/// Fails with `what`, and the reason of each, if none of the candidates can be run here.
fn require_one(candidates: &[Candidate], what: &str) -> Result<()> {
    if candidates.iter().any(|candidate| candidate.ready.is_ok()) {
        return Ok(());
    }
    let why: Vec<_> = candidates
        .iter()
        .filter_map(|c| Some(format!("{}: {}", c.name(), c.ready.as_ref().err()?)))
        .collect();
    Err(Error::new(ErrorKind::Missing, what).tried(why.join("\n")).remedy("barchan build"))
}

/// Runs a program of the user's twice, on the first collector: whether it can be measured, and its output compared.
fn rehearse(
    layout: &Layout,
    plan: &mut Plan,
    candidates: &[Candidate],
    stop: &AtomicBool,
) -> Result<()> {
    let first = candidates.iter().find_map(|c| Some((c, c.ready.as_ref().ok()?)));
    let (Some(Subject::Theirs(program)), Some((candidate, ready))) = (plan.subjects.first(), first)
    else {
        return Ok(());
    };
    build::preload(layout)?;
    note(format_args!("trying {} twice on {}", program.command(), candidate.name()));
    let run = || match runner::run(&job(layout, plan, &plan.subjects[0], candidate, ready), stop) {
        Outcome::Measured { sample } => Ok(sample.results),
        Outcome::Failed { why } => Err(Error::new(
            ErrorKind::BadResult,
            format!("{} cannot be measured: {why}", program.command()),
        )
        .tried(format!("ran it on {}", candidate.name()))
        .remedy("see that it runs by itself, ends well, and loads libgc.so.1 dynamically")),
    };
    let is_same = run()? == run()?;
    if let Some(Subject::Theirs(program)) = plan.subjects.first_mut() {
        program.output_is_compared = is_same;
    }
    Ok(())
}

/// A flag that ^C raises, or a request to end: what has been measured is then still reported. A second one ends
/// the command at once.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in attend::not_ignored([SIGINT, SIGTERM, SIGHUP]) {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|e| Error::new(ErrorKind::Io, format!("cannot handle signals: {e}")))?;
    }
    Ok(stop)
}

/// Builds what the plan needs; `make` and cmake do nothing if it is there.
fn build_needed(layout: &Layout, plan: &Plan) -> Result<()> {
    build::workloads(layout)?;
    let mut flavours = vec![Flavour::STOCK]; // the workloads have just had it built
    for config in &plan.configs {
        let skip =
            config.dirty == config::DirtySource::SoftDirty && !crate::machine::has_soft_dirty();
        if let Some(flavour) = config.flavour().filter(|f| !skip && !flavours.contains(f)) {
            flavours.push(flavour);
        }
    }
    for flavour in flavours.into_iter().skip(1) {
        build::collector(layout, flavour)?;
    }
    Ok(())
}

fn list(plan: &Plan, candidates: &[Candidate]) -> String {
    let mut out = "Workloads:\n".to_owned();
    for subject in &plan.subjects {
        let why = subject.unavailable().map(|why| format!(" (not available: {why})"));
        let why = why.unwrap_or_default();
        out.push_str(&format!("  {:<16} {}{why}\n", subject.name(), subject.title()));
    }
    out.push_str("\nConfigurations:\n");
    for candidate in candidates {
        let state = match &candidate.ready {
            Ok(Ready { reported_source: Some(source), .. }) => format!("ready (reports {source})"),
            Ok(_) => "ready".to_owned(),
            Err(why) => format!("not available: {why}"),
        };
        out.push_str(&format!("  {:<34} {state}\n", candidate.name()));
    }
    out
}

/// All rounds.
fn measure(
    layout: &Layout,
    command: String,
    plan: &Plan,
    candidates: &[Candidate],
    stop: &AtomicBool,
) -> Report {
    let ready: Vec<(&Candidate, &Ready)> =
        candidates.iter().filter_map(|c| Some((c, c.ready.as_ref().ok()?))).collect();
    let modes: Vec<(String, Mode)> = ready.iter().map(|(c, _)| (c.name(), c.config.mode)).collect();
    let mut report = Report {
        format: model::FORMAT,
        barchan_version: env!("CARGO_PKG_VERSION").to_owned(),
        command,
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        duration_s: 0.0,
        interrupted: false,
        rounds: plan.rounds,
        quick: plan.quick,
        pause_ms: plan.pause_ms,
        markers: plan.markers,
        machine: Machine::read(Some(layout.root())),
        collectors: collectors(layout, plan),
        workloads: plan.subjects.iter().map(|subject| workload_info(plan, subject)).collect(),
        configs: candidates.iter().map(|candidate| config_info(plan, candidate)).collect(),
        runs: Vec::new(),
    };
    let mut left = VecDeque::from(schedule(plan.rounds, plan.subjects.len(), ready.len()));
    left.retain(|&(_, w, _)| report.workloads[w].unavailable.is_none());
    let mut progress = Progress::new(left.len());
    while let Some((round, w, c)) = left.pop_front() {
        let (subject, (candidate, ready), config) = (&plan.subjects[w], ready[c], &modes[c].0);
        let workload = subject.name();
        if !plan.no_skip && is_hopeless(&report.runs, &workload, &modes, c) {
            let before = left.len();
            left.retain(|&(_, workload, config)| (workload, config) != (w, c));
            progress.skip(before - left.len() + 1);
            progress.say(&format!(
                "{config} takes over {HOPELESS} times as long on {workload} as the fastest in its mode: \
                 not run again"
            ));
            continue;
        }
        let keys: Vec<Key> =
            std::iter::once((w, c)).chain(left.iter().map(|&(_, w, c)| (w, c))).collect();
        progress.begin(&format!("round {round}: {workload} on {config}"), &keys);
        let begin = Instant::now();
        let outcome = runner::run(&job(layout, plan, subject, candidate, ready), stop);
        let outcome = match &ready.guest_records {
            Some(records) => paper::collector::add_counts(outcome, records),
            None => outcome,
        };
        if stop.load(Ordering::Relaxed) {
            report.interrupted = true; // the program was ended: its run counts for nothing
            break;
        }
        progress.end((w, c), begin.elapsed());
        if let Outcome::Failed { why } = &outcome {
            progress.say(&format!("FAILED {workload} on {config}, round {round}: {why}"));
        }
        report.runs.push(Run { workload, config: config.clone(), round, outcome });
    }
    report.duration_s = progress.finish().as_secs_f64();
    report
}

/// Whether the first run on the workload of one of the configurations, given by name and mode, says
/// that more are a waste.
fn is_hopeless(runs: &[Run], workload: &str, modes: &[(String, Mode)], which: usize) -> bool {
    let seconds = |run: &Run| match &run.outcome {
        Outcome::Measured { sample } => Some(sample.total_s),
        Outcome::Failed { .. } => None,
    };
    let of_config = |name: &str| {
        runs.iter().find(|run| run.workload == workload && run.config == name).and_then(seconds)
    };
    let (name, mode) = &modes[which];
    let fastest = modes
        .iter()
        .filter(|(_, other)| other == mode)
        .filter_map(|(other, _)| of_config(other))
        .min_by(f64::total_cmp);
    match (of_config(name), fastest) {
        (Some(own), Some(fastest)) => own > HOPELESS * fastest,
        _ => false,
    }
}

fn job(
    layout: &Layout,
    plan: &Plan,
    subject: &Subject,
    candidate: &Candidate,
    ready: &Ready,
) -> Job {
    let (program, args, watched) = match subject {
        Subject::Ours(workload) => {
            let mut args = plan.arguments(workload);
            args.push("--json".to_owned());
            (layout.workloads().join(workload.program), args, None)
        }
        Subject::Theirs(program) => {
            let watched = Watched {
                preload: layout.preload(),
                output_is_compared: program.output_is_compared,
            };
            (program.path().to_owned(), program.arguments().to_vec(), Some(watched))
        }
    };
    let mut environment = plan.environment(candidate.config, candidate.setting.as_ref());
    environment.extend(ready.environment.iter().cloned());
    Job {
        program,
        args,
        library_dir: ready.library_dir.clone(),
        environment,
        timeout: plan.timeout,
        watched,
    }
}

/// The order of all runs: (round, workload, configuration). The configurations start one
/// further in each round, so that none always follows the same neighbour's heat.
fn schedule(rounds: u32, workloads: usize, configs: usize) -> Vec<(u32, usize, usize)> {
    let mut order = Vec::new();
    for round in 1..=rounds {
        for workload in 0..workloads {
            let first = round as usize - 1 + workload;
            order.extend((0..configs).map(|i| (round, workload, (first + i) % configs)));
        }
    }
    order
}

fn workload_info(plan: &Plan, subject: &Subject) -> WorkloadInfo {
    let command = match subject {
        Subject::Ours(workload) => {
            let mut words = vec![workload.program.to_owned()];
            words.extend(plan.arguments(workload));
            words.join(" ")
        }
        Subject::Theirs(program) => program.command(),
    };
    WorkloadInfo {
        name: subject.name(),
        title: subject.title(),
        command,
        unavailable: subject.unavailable(),
        target: subject.target(),
    }
}

fn config_info(plan: &Plan, candidate: &Candidate) -> ConfigInfo {
    let Candidate { config, setting, ready } = candidate;
    ConfigInfo {
        name: candidate.name(),
        config: *config,
        setting: setting.clone(),
        environment: plan.environment(*config, setting.as_ref()).into_iter().collect(),
        unavailable: ready.as_ref().err().cloned(),
        reported_source: ready.as_ref().ok().and_then(|ready| ready.reported_source.clone()),
    }
}

fn collectors(layout: &Layout, plan: &Plan) -> Vec<CollectorInfo> {
    let describe = |collector: Collector| match collector {
        Collector::Debian => SystemCollector::find().ok().map(|system| {
            let version = system.version().unwrap_or("unknown version");
            format!("libgc1 {version}, as installed in {}", system.library_dir().display())
        }),
        Collector::Pinned => stamp(layout, Flavour::STOCK)
            .map(|stamp| format!("bdwgc 8.3.0-dev, pinned and unpatched (build {stamp})")),
        Collector::Barchan => stamp(layout, Flavour::PATCHED)
            .map(|stamp| format!("bdwgc 8.3.0-dev with Barchan's series (build {stamp})")),
    };
    Collector::ALL
        .into_iter()
        .filter(|collector| plan.configs.iter().any(|config| config.collector == *collector))
        .map(|collector| CollectorInfo {
            collector,
            description: describe(collector).unwrap_or_else(|| "not available".to_owned()),
        })
        .collect()
}

/// The beginning of a build's stamp.
fn stamp(layout: &Layout, flavour: Flavour) -> Option<String> {
    let stamp = barchan_boehm::Collector::built(layout, flavour)?.stamp().ok()?;
    Some(stamp.chars().take(12).collect())
}

/// Writes the files and prints the table; fails if a run failed or results disagree.
fn publish(files: &Files<'_>, measured: &Report) -> Result<ExitCode> {
    let page = report::html::render(measured);
    files.publish(measured.to_json(), &page, &report::table::render(measured))?;
    if measured.interrupted {
        note(format_args!("interrupted: {} runs had been made", measured.runs.len()));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    judge(measured).map(|()| ExitCode::SUCCESS)
}

/// Where results go; that it can be written is known before anything is measured.
struct Files<'a> {
    json: Option<&'a Path>,
    html: PathBuf,
}

impl<'a> Files<'a> {
    fn new(
        layout: &Layout,
        json: Option<&'a Path>,
        html: Option<&Path>,
        default_html: &str,
    ) -> Result<Self> {
        let html = match html {
            Some(path) => path.to_owned(),
            None => {
                let dir = layout.build();
                std::fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, &e))?;
                dir.join(default_html)
            }
        };
        if json.is_some_and(|json| json == html) {
            let what = format!("{} cannot hold both measurements and report", html.display());
            return Err(Error::new(ErrorKind::Io, what).remedy("give --json and --html two files"));
        }
        json.map_or(Ok(()), require_writable)?;
        require_writable(&html)?;
        Ok(Self { json, html })
    }

    /// Writes what was measured, and the page that shows it, and prints the table; each, if another fails.
    fn publish(&self, json: Result<String>, page: &str, table: &str) -> Result<()> {
        let measurements = self.json.map_or(Ok(()), |path| {
            write_file(path, &json?)?;
            note(format_args!("measurements: {}", path.display()));
            Ok(())
        });
        let written = write_file(&self.html, page)
            .inspect(|()| note(format_args!("report: {}", self.html.display())));
        crate::print(table)?;
        written.and(measurements)
    }
}

/// Fails if a run failed or results disagree.
fn judge(measured: &Report) -> Result<()> {
    let failed =
        measured.runs.iter().filter(|run| matches!(run.outcome, Outcome::Failed { .. })).count();
    let disagreements = summary::disagreements(measured);
    if failed == 0 && disagreements.is_empty() {
        return Ok(());
    }
    let mut what = Vec::new();
    if failed > 0 {
        what.push(format!("{failed} of {} runs failed", measured.runs.len()));
    }
    if !disagreements.is_empty() {
        what.push("results are not alike in all runs".to_owned());
    }
    Err(Error::new(ErrorKind::BadResult, what.join(", and "))
        .remedy("see what the table says below each workload, and WRONG RESULTS below all of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_far_behind_in_its_own_mode_is_hopeless() {
        let run = |config: &str, total_s: f64| Run {
            workload: "list".to_owned(),
            config: config.to_owned(),
            round: 1,
            outcome: Outcome::Measured {
                sample: Box::new(model::Sample { total_s, ..model::Sample::default() }),
            },
        };
        let runs = [
            run("debian/full", 1.0),
            run("pinned/generational/userfaultfd", 81.0),
            run("debian/generational/mprotect", 70.0),
            run("barchan/generational", 10.0),
        ];
        let modes: Vec<_> =
            Config::all().into_iter().map(|config| (config.to_string(), config.mode)).collect();
        let hopeless = |name: &str| {
            let which = modes.iter().position(|(config, _)| config == name);
            is_hopeless(&runs, "list", &modes, which.expect("a configuration"))
        };
        assert!(hopeless("pinned/generational/userfaultfd"));
        assert!(!hopeless("debian/generational/mprotect"));
        assert!(!hopeless("barchan/generational") && !hopeless("debian/full"));
        assert!(!hopeless("barchan/incremental"), "it has not been run");
    }

    #[test]
    fn each_round_has_every_pair_once_and_the_order_rotates() {
        let order = schedule(3, 2, 4);
        assert_eq!(order.len(), 24);
        for round in 1..=3 {
            let mut pairs: Vec<_> =
                order.iter().filter(|run| run.0 == round).map(|run| (run.1, run.2)).collect();
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), 8, "round {round}");
        }
        let first_of = |round| order.iter().find(|r| r.0 == round && r.1 == 0).map(|r| r.2);
        assert_eq!([first_of(1), first_of(2), first_of(3)], [Some(0), Some(1), Some(2)]);
    }
}
