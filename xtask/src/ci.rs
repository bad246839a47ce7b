//! `cargo xtask ci`: every check and every test, one step after the other, counted.
//!
//! Only what keeps one processor busy and does not look at the clock goes on in two lanes at once: Bochs, whose time
//! is that of the instructions it has executed, and the model checker. A step that fails does not stop the next ones:
//! one run tells all there is to mend. Each step has a time limit, and so has the whole: a hang is a failure, not a
//! lost machine.

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

/// Something to run, for so many minutes at most.
struct Step {
    name: &'static str,
    minutes: u64,
    command: Command,
}

/// All that there is to do.
struct Plan {
    before: Vec<Step>,
    /// Two lanes at once, each one step after the other.
    lanes: [Vec<Step>; 2],
    after: Vec<Step>,
}

/// What came of a step.
struct Outcome {
    name: &'static str,
    took: Duration,
    tally: Tally,
    failure: Option<String>,
    /// The user has interrupted it: there should be no other.
    is_interrupted: bool,
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
    let mut plan = plan()?;
    if let Some(why) = guest::native_unusable() {
        plan.after.retain(|step| step.name != NATIVE);
        run.skip(NATIVE, &why);
    }
    if run.one_by_one(plan.before)? && run.in_lanes(plan.lanes)? {
        run.one_by_one(plan.after)?;
    }
    Ok(run.conclude(start.elapsed()))
}

fn plan() -> anyhow::Result<Plan> {
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
    let step = |name, minutes, command| Step { name, minutes, command };
    Ok(Plan {
        before: vec![
            step("format", 2, cargo::cargo(&["fmt", "--all", "--check"])?),
            step("lint", 10, clippy),
            step("build", 15, cargo::barchan(&["build"])?),
            step("tests", 30, tests),
            step("workloads", 15, workloads),
        ],
        lanes: [
            vec![step("kmod", 20, module), step("kmod-smp", 15, module_smp)],
            vec![
                step("loom", 10, loom),
                step("bochs-6.1", 15, suite("bochs", Some(Series::V6_1))?),
                step("bochs-6.12", 15, suite("bochs", Some(Series::V6_12))?),
            ],
        ],
        after: vec![
            step(NATIVE, 10, suite("native", None)?),
            step("tcg-6.1", 10, suite("tcg", Some(Series::V6_1))?),
            step("tcg-6.12", 10, suite("tcg", Some(Series::V6_12))?),
        ],
    })
}

impl Step {
    /// Runs it; each line is shown after `prefix`.
    fn run(
        self,
        prefix: &str,
        deadline: Instant,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Outcome> {
        let Self { name, minutes, command } = self;
        println!("\n{prefix}==> {name}");
        let start = Instant::now();
        let limit =
            Duration::from_secs(60 * minutes).min(deadline.saturating_duration_since(start));
        let mut tally = Tally::default();
        let end = step::run_quietly(command, limit, interrupted, |line| {
            println!("{prefix}{line}");
            tally.line(line);
        })?;
        let is_interrupted = end == End::Interrupted;
        let failure = match end {
            End::Success if tally.failed == 0 => None,
            End::Success => Some("failures were counted, yet it exited with 0".to_owned()),
            End::Failure(why) => Some(why),
            End::Interrupted => Some("interrupted".to_owned()),
        };
        if failure.is_some() {
            tally.failed = tally.failed.max(1);
        }
        Ok(Outcome { name, took: start.elapsed(), tally, failure, is_interrupted })
    }
}

/// Runs steps one after the other, up to one that is interrupted; `prefix` is what each line of a step begins with.
fn run_all(
    steps: Vec<Step>,
    prefix: impl Fn(&str) -> String,
    deadline: Instant,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for step in steps {
        let prefix = prefix(step.name);
        outcomes.push(step.run(&prefix, deadline, interrupted)?);
        if outcomes.last().is_some_and(|outcome| outcome.is_interrupted) {
            break;
        }
    }
    Ok(outcomes)
}

impl Run {
    /// Notes that a step is not run, and why.
    fn skip(&mut self, name: &'static str, why: &str) {
        let mut tally = Tally::default();
        tally.skipped.push(format!("skipped: step {name}: {why}"));
        self.outcomes.push(Outcome {
            name,
            took: Duration::ZERO,
            tally,
            failure: None,
            is_interrupted: false,
        });
    }

    /// Runs steps one after the other; `false` if there should be no others.
    fn one_by_one(&mut self, steps: Vec<Step>) -> anyhow::Result<bool> {
        let outcomes = run_all(steps, |_| String::new(), self.deadline, &self.interrupted)?;
        self.outcomes.extend(outcomes);
        Ok(!self.is_interrupted())
    }

    /// Runs two lanes of steps at once, each one step after the other; `false` if there should be no others.
    fn in_lanes(&mut self, [first, second]: [Vec<Step>; 2]) -> anyhow::Result<bool> {
        let (deadline, interrupted) = (self.deadline, &*self.interrupted);
        let run = |lane| run_all(lane, |name| format!("{name:<10} | "), deadline, interrupted);
        let (first, second) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| run(second));
            let first = run(first);
            (first, beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        self.outcomes.extend(first?);
        self.outcomes.extend(second?);
        Ok(!self.is_interrupted())
    }

    fn is_interrupted(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.is_interrupted)
    }

    /// Prints the list of steps and, last, the sum.
    fn conclude(&self, took: Duration) -> ExitCode {
        let mut sum = Tally::default();
        println!(
            "\n{:<12} {:>8} {:>8} {:>8} {:>8}",
            "step", "seconds", "passed", "failed", "ignored"
        );
        for Outcome { name, took, tally, failure, .. } in &self.outcomes {
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
        // Last, where it is found after an hour of output.
        for Outcome { name, tally, failure, .. } in &self.outcomes {
            if let Some(why) = failure {
                println!("FAILED: {name}: {why}");
                tally.failures.iter().for_each(|line| println!("{name}: {line}"));
            }
        }
        println!("{} passed, {} failed", sum.passed, sum.failed);
        if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
