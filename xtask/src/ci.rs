//! `cargo xtask ci`: every check and every test, one step after the other, counted.
//!
//! A step that fails does not stop the next ones: one run tells all there is to mend. Each
//! step has a time limit, and so has the whole: a hang is a failure, not a lost machine.

use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use barchan_boehm::{Flavour, Layout};

use crate::guest::{self, Series};
use crate::step::{End, interrupt_flag};
use crate::tally::Tally;
use crate::{cargo, setup, step};

/// The step that needs this machine's own /dev/kvm.
const NATIVE: &str = "native";

/// Minutes after which a run is ended, whatever it is at: twice what it takes on two cores.
const TOTAL_MINUTES: u64 = 60;

/// `cargo xtask ci`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Counted are the tests of libtest (unit, integration and documentation tests of every crate),
the checks of workloads/test.sh and those of `cargo xtask guest-test --suite` on every host; a step that fails without a count counts as one failed.
The step list names what was skipped, and why. The exit code is 1 if anything failed.")]
pub(crate) struct Args {
    /// Do not look for missing packages
    #[arg(long)]
    skip_setup: bool,

    /// Minutes after which the run is ended, whatever it is at
    #[arg(long, value_name = "N", default_value_t = TOTAL_MINUTES,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    limit_minutes: u64,
}

/// What came of a step.
struct Outcome {
    name: &'static str,
    took: Duration,
    tally: Tally,
    failure: Option<String>,
}

/// The run: what has been done, and how long there is.
struct Run {
    deadline: Instant,
    interrupted: std::sync::Arc<AtomicBool>,
    outcomes: Vec<Outcome>,
}

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if !args.skip_setup {
        setup::for_tests()?;
    }
    let mut run = Run {
        deadline: start + Duration::from_secs(60 * args.limit_minutes),
        interrupted: interrupt_flag()?,
        outcomes: Vec::new(),
    };
    let mut steps = steps()?;
    if let Some(why) = guest::native_unusable() {
        steps.retain(|(name, ..)| *name != NATIVE);
        run.skip(NATIVE, &why);
    }
    for (name, minutes, command) in steps {
        if !run.step(name, minutes, command)? {
            break;
        }
    }
    Ok(run.conclude(start.elapsed()))
}

/// The steps: a name, a limit in minutes, and what is run.
fn steps() -> anyhow::Result<Vec<(&'static str, u64, Command)>> {
    let root = cargo::root()?;
    let layout = Layout::new(&root).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut clippy = cargo::cargo(&["clippy", "--workspace", "--all-targets"])?;
    clippy.args(["--", "-D", "warnings"]);
    // Skipped tests say why; without --show-output libtest would swallow it.
    let tests = cargo::cargo(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"])?;
    let mut workloads = Command::new(root.join("workloads/test.sh"));
    let libraries = [Flavour::STOCK, Flavour::PATCHED].map(|flavour| layout.library_dir(flavour));
    workloads.env("GC_LIBRARY_PATHS", std::env::join_paths(libraries)?);
    // The tests have built it.
    let checked = Flavour::PATCHED.with_assertions(true);
    workloads.env("GC_CHECKED_PATH", layout.library_dir(checked));
    // In emulation: the module is tested on every machine, and fetches what it needs itself.
    let mut module = Command::new(std::env::current_exe()?);
    module.arg("kmod");
    // What takes two CPUs, on one kernel.
    let mut module_smp = Command::new(std::env::current_exe()?);
    module_smp.args(["kmod", "--skip-setup", "--kernel", "6.12", "--cpus", "2"]);
    module_smp.args(["--", "smp_", "event_"]);
    // The model checker's own atomics: all is built again, into a directory of its own.
    let mut loom = cargo::cargo(&["test", "-p", "dune", "--test", "shootdown_loom", "--release"])?;
    loom.args(["--target-dir", "target/loom"]).env("RUSTFLAGS", "--cfg loom");
    let suite = |host, kernel| {
        let mut command = cargo::cargo(&["run", "--quiet", "--package", "xtask", "--"])?;
        command.args(guest::suite_command(host, kernel));
        anyhow::Ok(command)
    };
    Ok(vec![
        ("format", 2, cargo::cargo(&["fmt", "--all", "--check"])?),
        ("lint", 10, clippy),
        ("build", 15, cargo::barchan(&["build"])?),
        ("tests", 30, tests),
        ("loom", 10, loom),
        ("workloads", 15, workloads),
        ("kmod", 20, module),
        ("kmod-smp", 15, module_smp),
        (NATIVE, 10, suite("native", None)?),
        ("tcg-6.1", 10, suite("tcg", Some(Series::V6_1))?),
        ("tcg-6.12", 10, suite("tcg", Some(Series::V6_12))?),
        ("bochs-6.1", 15, suite("bochs", Some(Series::V6_1))?),
        ("bochs-6.12", 15, suite("bochs", Some(Series::V6_12))?),
    ])
}

impl Run {
    /// Notes that a step is not run, and why.
    fn skip(&mut self, name: &'static str, why: &str) {
        let skipped = vec![format!("skipped: step {name}: {why}")];
        let tally = Tally { skipped, ..Tally::default() };
        self.outcomes.push(Outcome { name, took: Duration::ZERO, tally, failure: None });
    }

    /// Runs one step; `false` if there should be no other.
    fn step(&mut self, name: &'static str, minutes: u64, command: Command) -> anyhow::Result<bool> {
        println!("\n==> {name}");
        let start = Instant::now();
        let limit =
            Duration::from_secs(60 * minutes).min(self.deadline.saturating_duration_since(start));
        let mut tally = Tally::default();
        let end = step::run(command, limit, &self.interrupted, |line| tally.line(line))?;
        let interrupted = end == End::Interrupted;
        let failure = match end {
            End::Success if tally.failed == 0 => None,
            End::Success => Some("failures were counted, yet it exited with 0".to_owned()),
            End::Failure(why) => Some(why),
            End::Interrupted => Some("interrupted".to_owned()),
        };
        if failure.is_some() {
            tally.failed = tally.failed.max(1);
        }
        self.outcomes.push(Outcome { name, took: start.elapsed(), tally, failure });
        Ok(!interrupted)
    }

    /// Prints the list of steps and, last, the sum.
    fn conclude(&self, took: Duration) -> ExitCode {
        let mut sum = Tally::default();
        println!(
            "\n{:<12} {:>8} {:>8} {:>8} {:>8}",
            "step", "seconds", "passed", "failed", "ignored"
        );
        for Outcome { name, took, tally, failure } in &self.outcomes {
            sum.add(tally);
            let Tally { passed, failed, ignored, .. } = tally;
            let seconds = took.as_secs_f64();
            let failure = failure.as_ref().map(|why| format!("   FAILED: {why}"));
            println!(
                "{name:<12} {seconds:>8.1} {passed:>8} {failed:>8} {ignored:>8}{}",
                failure.unwrap_or_default()
            );
        }
        println!("{:<12} {:>8.1}", "all", took.as_secs_f64());
        sum.skipped.sort();
        sum.skipped.dedup();
        for reason in &sum.skipped {
            println!("{reason}");
        }
        println!("{} passed, {} failed", sum.passed, sum.failed);
        if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
