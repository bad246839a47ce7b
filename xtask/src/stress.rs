//! `cargo xtask stress`: the self-checking mutator on the patched collector, for minutes or hours.
//!
//! Every sixth run or so is of `mtalloc` instead: its threads do nothing but allocate, so that one is
//! always in the middle of it when a collection comes.
//!
//! Each run takes another corner of what can be set: the source of dirty bits, the policy, the
//! limit of a pause, the number of markers and of threads, choices switched off, assertions in
//! the collector or not. The corners follow from the seed, so that a failure can be had again by
//! the command that is printed with it.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use barchan_boehm::series::CHOICES;
use barchan_boehm::{Flavour, Layout};

use crate::step::{End, interrupt_flag};
use crate::{cargo, setup, step};

/// A run that takes longer hangs: the longest takes about half a minute on one core.
const LIMIT: Duration = Duration::from_secs(600);
/// How often the state is told.
const TELL: Duration = Duration::from_secs(60);

/// Limits of a pause in microseconds; none, and such that every heap is too large for.
const PAUSES_US: &[u64] = &[0, 50, 200, 1000, 5000];
/// What `mtalloc` gets for `GC_PAUSE_TIME_TARGET`, in milliseconds: 999999 is no limit, 0 one that no heap keeps.
const PAUSES_MS: &[u64] = &[0, 1, 3, 5, 999_999];
const POLICIES: &[&str] = &["auto", "partial", "alternate"];

/// `cargo xtask stress`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask stress                      ten minutes
  cargo xtask stress --seconds 28800      eight hours
Failures are printed as they come, each with the command that has it again. The exit code is 1
if there was one.")]
pub(crate) struct Args {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,

    /// Where the sequence of runs begins
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Only this source of dirty bits
    #[arg(long, value_name = "NAME")]
    tracker: Option<String>,

    /// Do not look for missing packages
    #[arg(long)]
    skip_setup: bool,
}

/// Numbers that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let count = u64::try_from(all.len()).expect("a few");
        &all[usize::try_from(self.below(count)).expect("below a usize")]
    }
}

/// One run: what is set.
struct Corner {
    program: &'static str,
    library: PathBuf,
    environment: Vec<(&'static str, String)>,
    arguments: Vec<String>,
}

impl Corner {
    fn new(random: &mut Random, libraries: &[PathBuf], sources: &[String]) -> Self {
        let mut environment = vec![
            ("GC_ENABLE_INCREMENTAL", "1".to_owned()),
            ("GC_MARKERS", (1 + random.below(3)).to_string()),
            ("BARCHAN_TRACKER", random.of(sources).clone()),
            ("GC_BARCHAN_POLICY", (*random.of(POLICIES)).to_owned()),
        ];
        // Most runs switch none off.
        if random.below(3) == 0 {
            environment.push(("GC_BARCHAN_OFF", (*random.of(CHOICES)).to_owned()));
        }
        let library = random.of(libraries).clone();
        if random.below(6) == 0 {
            environment.push(("GC_PAUSE_TIME_TARGET", random.of(PAUSES_MS).to_string()));
            let arguments = vec![
                format!("--threads={}", 1 + random.below(8)),
                format!("--scale={}", random.of(&["0.05", "0.1", "0.3"])),
                format!("--seed={}", random.below(1 << 32)),
            ];
            return Self { program: "mtalloc", library, environment, arguments };
        }
        let pause_us = *random.of(PAUSES_US);
        if pause_us == 0 {
            environment.push(("GC_PAUSE_TIME_TARGET", "999999".to_owned()));
        }
        let operations = [4000, 20_000, 60_000, 150_000];
        let mut arguments = vec![
            format!("--threads={}", 1 + random.below(4)),
            format!("--operations={}", random.of(&operations)),
            format!("--pause-us={pause_us}"),
            format!("--seed={}", random.below(1 << 32)),
        ];
        if random.below(8) == 0 {
            environment.retain(|(name, _)| *name != "GC_ENABLE_INCREMENTAL");
            arguments.push("--late".to_owned());
        }
        Self { program: "stress", library, environment, arguments }
    }

    fn command(&self, programs: &Path) -> Command {
        let mut command = Command::new(programs.join(self.program));
        command.env("LD_LIBRARY_PATH", &self.library).args(&self.arguments);
        for name in ["GC_ENABLE_INCREMENTAL", "GC_PAUSE_TIME_TARGET", "GC_BARCHAN_OFF"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// As it is typed in a shell.
impl fmt::Display for Corner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LD_LIBRARY_PATH={}", self.library.display())?;
        for (name, value) in &self.environment {
            write!(f, " {name}={value}")?;
        }
        write!(f, " build/workloads/{} {}", self.program, self.arguments.join(" "))
    }
}

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.skip_setup {
        setup::install(setup::BUILD)?;
    }
    let root = cargo::root()?;
    let layout = Layout::new(&root).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut libraries = Vec::new();
    for assertions in [false, true] {
        let mut build = cargo::barchan(&["build", "--only", "patched", "--only", "workloads"])?;
        if assertions {
            build.arg("--assertions");
        }
        if !build.status().context("cannot start cargo")?.success() {
            bail!("the collector could not be built");
        }
        libraries.push(layout.library_dir(Flavour::PATCHED.with_assertions(assertions)));
    }
    let sources = sources(args.tracker.as_deref())?;
    println!("sources of dirty bits: {}", sources.join(", "));

    let programs = layout.workloads();
    let output = layout.build().join("stress.log");
    let interrupted = interrupt_flag()?;
    let mut random = Random(args.seed);
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let mut told = start;
    let (mut runs, mut failures) = (0_u64, 0_u64);
    while Instant::now() < end && !interrupted.load(Relaxed) {
        let corner = Corner::new(&mut random, &libraries, &sources);
        match one(&corner, &programs, &output, &interrupted)? {
            End::Success => runs += 1,
            End::Interrupted => break,
            End::Failure(why) => {
                runs += 1;
                failures += 1;
                println!("FAILED ({why}): {corner}");
                for line in last_lines(&output, 5) {
                    println!("    {line}");
                }
            }
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            println!(
                "{} of {} s, {runs} runs, {failures} failed",
                start.elapsed().as_secs(),
                args.seconds
            );
        }
    }
    println!("{runs} runs in {} s, {failures} failed", start.elapsed().as_secs());
    if runs == 0 {
        bail!("nothing was run in {} s", args.seconds);
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs `corner`; what it prints goes into the file `output`.
fn one(
    corner: &Corner,
    programs: &Path,
    output: &Path,
    interrupted: &AtomicBool,
) -> anyhow::Result<End> {
    let file =
        File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut command = corner.command(programs);
    command.stderr(file);
    step::run_quietly(command, LIMIT, interrupted, |_| {})
}

fn last_lines(file: &Path, count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// The sources that work on this machine, or the one that was asked for.
fn sources(only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let output = cargo::barchan(&["doctor", "--json"])?.output().context("cannot start cargo")?;
    let doctor: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("barchan doctor --json printed no JSON")?;
    let all = doctor["sources"].as_array().context("barchan doctor names no sources")?;
    let usable: Vec<_> = all
        .iter()
        .filter(|source| source["available"] == true)
        .filter_map(|source| source["name"].as_str())
        .map(str::to_owned)
        .collect();
    match only {
        None if usable.is_empty() => bail!("no source of dirty bits works here: barchan doctor"),
        None => Ok(usable),
        Some(name) if usable.iter().any(|usable| usable == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("{name} does not work here, but {}", usable.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corners(seed: u64) -> Vec<String> {
        let mut random = Random(seed);
        let libraries = [PathBuf::from("/a"), PathBuf::from("/b")];
        let sources = ["mprotect".to_owned(), "pagemap-scan".to_owned()];
        (0..600).map(|_| Corner::new(&mut random, &libraries, &sources).to_string()).collect()
    }

    #[test]
    fn corners_follow_from_the_seed_and_reach_everything() {
        assert_eq!(corners(7), corners(7));
        assert_ne!(corners(7), corners(8));
        let all = corners(7).join("\n");
        let settings = ["=/a", "=/b", "=mprotect", "=pagemap-scan", "--late", "GC_MARKERS=3"];
        let wanted = settings.iter().chain(POLICIES).chain(CHOICES);
        for setting in wanted {
            assert!(all.contains(setting), "no corner has {setting}");
        }
        for pause in PAUSES_MS {
            let set = format!("GC_PAUSE_TIME_TARGET={pause} build/workloads/mtalloc ");
            assert!(all.contains(&set), "no corner has {pause} ms");
        }
        for pause in PAUSES_US {
            assert!(all.contains(&format!("--pause-us={pause} ")), "no corner has {pause} us");
        }
    }
}
