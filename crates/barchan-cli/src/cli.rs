//! The command line: what can be asked for, and the help that teaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::config::Selector;
use crate::bench::vary::Vary;
use crate::bench::workload;

/// Longest pause that incremental mode aims at unless told otherwise.
pub(crate) const DEFAULT_PAUSE_MS: u32 = 5;

/// More threads that mark the collector does not have.
const MAX_MARKERS: u32 = 16;

/// A drop-in libgc.so.1 with dirty bits by the kernel: build it, run programs on it, measure it.
#[derive(Debug, Parser)]
#[command(
    name = "barchan",
    version,
    propagate_version = true,
    after_help = "\
Start with:
  barchan doctor                     what this machine offers
  barchan build                      the collectors and the workloads, into ./build
  barchan run -- w3m -dump big.html  a program of yours on the patched collector
  barchan bench --quick              every collector side by side, in a few minutes

Exit codes: 0 success, 1 failure, 2 wrong usage; `barchan run` ends with its program's."
)]
pub(crate) struct Cli {
    /// Checkout of the project, with boehm-patch/ and workloads/ [default: where this
    /// command was compiled]
    #[arg(long, global = true, env = "BARCHAN_ROOT", value_name = "DIR", hide_env_values = true)]
    pub(crate) root: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build the collectors (stock and patched) and the workloads into ./build
    Build(BuildArgs),
    /// Say which sources of dirty bits this machine has, and what would give the others
    Doctor(DoctorArgs),
    /// Run a program, unmodified, on the patched collector and sum up what it did
    Run(RunArgs),
    /// Time every collector on every workload, in interleaved rounds
    Bench(Box<BenchArgs>),
    /// Draw the table and the HTML page of an earlier `bench --json` again
    Report(ReportArgs),
    /// Enter guest mode, measure, print JSON and end: what `doctor` starts to know the host
    #[command(hide = true)]
    GuestProbe,
    /// Measure one row of `bench paper` by one of its means, print JSON and end
    #[command(hide = true)]
    PaperProbe(PaperProbeArgs),
    /// Choose a source of dirty bits automatically and print it as JSON: what `doctor` starts in guest mode
    #[command(hide = true)]
    SourceProbe,
}

/// `barchan build`
#[derive(Debug, Args)]
#[command(after_help = "\
Upstream is pinned: it is fetched by cargo once and checked against a hash.
Environment: BARCHAN_BDWGC=DIR builds from your own checkout of bdwgc instead.
What is up to date is not built again.")]
pub(crate) struct BuildArgs {
    /// Only these parts (may be repeated) [default: all that `barchan bench` needs]
    #[arg(long, value_enum, value_name = "PART")]
    pub(crate) only: Vec<Part>,

    /// Build collectors that check themselves (GC_ASSERTIONS) instead: slow, for tests, in
    /// directories of their own
    #[arg(long)]
    pub(crate) assertions: bool,
}

/// A part of the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The pinned upstream, untouched
    Stock,
    /// The pinned upstream, compiled for soft-dirty bits
    StockSoftDirty,
    /// The patched collector
    Patched,
    /// The benchmark programs
    Workloads,
}

/// `barchan doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON for machines
    #[arg(long)]
    pub(crate) json: bool,
}

/// `barchan run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  barchan run -- guile script.scm
  barchan run --mode incremental --pause-ms 5 -- w3m -dump page.html
  barchan run --tracker mprotect --stats stats.json -- ecl --shell test.lisp
  barchan run --dune -- python3 script.py
  barchan run --dune --tracker guest-pte -- guile script.scm
  barchan run --dune --ring 0 -- ./uses-invlpg

With --dune the program, and every program that it executes, runs in guest mode: any that is
dynamically linked; where that cannot be entered, this is said and the program runs without. With
--tracker too it runs there on the collector, in the mode asked for; with --dune alone its collector,
if it has one, is left as it is. Without --dune the program must load libgc.so.1 dynamically. A source
that --tracker names and that is not there is told, and the collector's own is used.

The program's output is left alone: the summary goes to standard error when it ends, by whatever means.
SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 sent to this command are handed on to it. Other
variables of the collector pass through; docs/tuning.md says which mode is for whom. The exit code is
the program's, 128 + N if signal N ended it, 127 if it was not found, 126 if it could not be started.")]
pub(crate) struct RunArgs {
    /// Source of dirty bits; auto: the best this machine has [default: auto]
    #[arg(long, value_name = "TRACKER", value_parser = crate::run::trackers())]
    pub(crate) tracker: Option<String>,

    /// What the collector does with them [default: generational]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,

    /// Pause that incremental mode aims at, in milliseconds [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=999_998))]
    pub(crate) pause_ms: Option<u32>,

    /// Threads that mark, in a program that has threads or asks for them [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MARKERS)))]
    pub(crate) markers: Option<u32>,

    /// Collector to run on: the patched one, the pinned upstream, or the system's [default: barchan]
    #[arg(long, value_enum)]
    pub(crate) collector: Option<RunOn>,

    /// Run it in guest mode, on a virtual CPU with page tables of its own
    #[arg(long)]
    pub(crate) dune: bool,

    /// Privilege level in guest mode; 0: the program may use privileged instructions itself, which needs
    /// VT-x or SVM, and is no security boundary [default: 3]
    #[arg(long, value_enum, requires = "dune")]
    pub(crate) ring: Option<Ring>,

    /// Also write the summary as JSON to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "PROG ARGS")]
    pub(crate) program: Vec<std::ffi::OsString>,
}

/// A privilege level of `barchan run --dune`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ring {
    /// The program may use privileged instructions
    #[value(name = "0")]
    Zero,
    /// As any program
    #[value(name = "3")]
    Three,
}

impl RunArgs {
    /// Options that would have no effect beside each other, which clap cannot tell.
    pub(crate) fn conflict(&self) -> Option<String> {
        self.left_alone().or_else(|| {
            if self.pause_ms.is_some() && self.mode() != Mode::Incremental {
                return Some("--pause-ms needs --mode incremental".to_owned());
            }
            let tracker = self.tracker.as_deref().filter(|name| *name != "auto")?;
            if self.collector() != RunOn::Barchan {
                return Some(format!(
                    "--tracker {tracker} needs the patched collector, not another by --collector"
                ));
            }
            (self.mode() == Mode::Full)
                .then(|| format!("--tracker {tracker} has no effect with --mode full"))
        })
    }

    /// What says how the collector is to run, where guest mode leaves the program its own.
    fn left_alone(&self) -> Option<String> {
        let given = [
            ("--mode", self.mode.is_some()),
            ("--pause-ms", self.pause_ms.is_some()),
            ("--markers", self.markers.is_some()),
            ("--collector", self.collector.is_some()),
        ];
        let given: Vec<_> = given.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        (self.dune && self.tracker.is_none() && !given.is_empty()).then(|| {
            format!(
                "{} cannot be used with --dune unless --tracker is given too: the program's own \
                 collector is left as it is (--tracker auto takes the best source)",
                given.join(", ")
            )
        })
    }

    /// The mode.
    pub(crate) fn mode(&self) -> Mode {
        self.mode.unwrap_or(Mode::Generational)
    }

    /// The pause that incremental mode aims at.
    pub(crate) fn pause_ms(&self) -> u32 {
        self.pause_ms.unwrap_or(DEFAULT_PAUSE_MS)
    }

    /// The collector.
    pub(crate) fn collector(&self) -> RunOn {
        self.collector.unwrap_or(RunOn::Barchan)
    }
}

/// A mode of the collector, as a user asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Mark the whole heap each time; no dirty bits
    Full,
    /// Mark in small steps, with a time limit for each pause
    Incremental,
    /// Mark only what was written since the last collection; no time limit
    Generational,
}

/// A collector to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RunOn {
    /// The patched collector
    Barchan,
    /// The pinned upstream
    Pinned,
    /// The one the distribution installed
    Debian,
}

/// `barchan bench`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Collectors: debian (the libgc1 that is installed), pinned (the upstream that is patched),
barchan (the patched collector). Modes: full (one marker), full-parallel, generational,
incremental. A configuration is written collector/mode/dirty-bit-source, for instance
pinned/generational/mprotect; --config also takes parts of it, such as barchan or
debian/full. --list shows all of them.

A program of your own, on the collector that is installed and on the patched one in every mode:
  barchan bench -- guile script.scm
  barchan bench --rounds 9 -- env GC_INITIAL_HEAP_SIZE=16m nix-instantiate heap.nix
It must load libgc.so.1 dynamically, end by itself with status 0, and reads nothing from standard input. Time is
that of the whole program; pauses and heap are those of the process that collected most. Variables
GC_... and BARCHAN_... that are set around the command do not reach it: `env`, as above, does. If two runs on
one collector have the same output, then all must.

Rounds are interleaved: each round runs every configuration once, in an order that rotates,
so that a slow minute of the machine hits all of them. Keep the machine idle meanwhile.

Time against heap, each collector at several sizes of the heap, and what is read at the same heap:
  barchan bench --workload tree-clustered --vary GC_FREE_SPACE_DIVISOR=1,2,3,5,8,12
What single choices of the patched collector are good for (boehm-patch/README.md has the names):
  barchan bench --config barchan/generational --vary GC_BARCHAN_OFF=,heat,lift,trial"
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Option<BenchCommand>,

    /// Small sizes and one round, unless --rounds says otherwise: for a first look
    #[arg(long)]
    pub(crate) quick: bool,

    /// How often each pair of workload and configuration is run [default: 5; quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: Option<u32>,

    /// Run only this workload (may be repeated)
    #[arg(long, value_name = "W", value_parser = workload::names())]
    pub(crate) workload: Vec<String>,

    /// Run only these configurations (may be repeated; parts of names are enough)
    #[arg(long, value_name = "C")]
    pub(crate) config: Vec<Selector>,

    /// Run each configuration once for each value of an environment variable; an empty value
    /// leaves it unset
    #[arg(long, value_name = "VAR=V1,V2,...")]
    pub(crate) vary: Option<Vary>,

    /// Pause that incremental mode aims at, in milliseconds
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PAUSE_MS,
          value_parser = clap::value_parser!(u32).range(1..=999_998))]
    pub(crate) pause_ms: u32,

    /// Seconds after which a run is killed and counted as failed
    #[arg(long, value_name = "S", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,

    /// Write the report to FILE [default: build/report.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Show the workloads and configurations, and whether they can run here; then stop
    #[arg(long)]
    pub(crate) list: bool,

    #[command(flatten)]
    pub(crate) runs: RunsArgs,

    /// A program of your own and its arguments, after --, instead of the workloads: on Debian's
    /// collector and on the patched one, unless --config says otherwise
    #[arg(last = true, value_name = "PROG ARGS", conflicts_with_all = ["workload", "quick", "scale"])]
    pub(crate) program: Vec<String>,
}

/// What all benchmarks of the collector are told.
#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Run every configuration in every round, also those that took over 8 times as long as the
    /// fastest in the same mode, which are not run again otherwise
    #[arg(long)]
    pub(crate) no_skip: bool,

    /// Scale the sizes of the collector's workloads by F, above 0 and up to 1
    #[arg(long, value_name = "F", value_parser = scale)]
    pub(crate) scale: Option<f64>,

    /// Threads that mark, in every mode but `full` [default: one a core, 16 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MARKERS)))]
    pub(crate) markers: Option<u32>,

    /// Write all measurements to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Do not build first
    #[arg(long)]
    pub(crate) no_build: bool,
}

impl RunsArgs {
    /// The threads that mark: those asked for, or one a core as far as the collector can have so many.
    pub(crate) fn markers(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).unwrap_or(MAX_MARKERS);
        self.markers.unwrap_or(cores.min(MAX_MARKERS))
    }
}

/// A benchmark other than the plain one.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Tables 2, 3 and 6 of the Dune paper again, on this machine
    Paper(Box<PaperArgs>),
}

/// `barchan bench paper`
#[derive(Debug, Args)]
#[command(after_help = "\
Dune: Belay et al., Safe user-level access to privileged CPU features, OSDI 2012. What it measured
is measured again here, beside its own figures:

  Tables 2 and 3  what an operation costs: a system call, a page fault, a TLB miss; intercepting a
                  system call; a fault that the program handles itself, and Appel and Li's two
                  programs on it. Natively by what the paper used and by the best that Linux has
                  today (syscall user dispatch, userfaultfd), and in guest mode. In ticks of the
                  time stamp counter and in nanoseconds; each measurement is a process of its own.
  Table 6         the collector on the four workloads with the paper's parameters, and on ten of the
                  XML documents, one after the other: the better of the stock collectors (debian,
                  pinned) in each mode, the patched one with pagemap-scan natively, and in guest
                  mode with the paper's three variants: guest-direct, guest-tlb and guest-pte
                  (dirty bits), which is what `barchan run --dune --tracker guest-pte` starts; and
                  guest-pml, on the processor's log of written pages, over /dev/dune.

Rounds are interleaved: each round measures everything once, in an order that rotates. What this
machine cannot give is a row that says why. Keep the machine idle meanwhile.

Examples:
  barchan bench paper --only micro                     about a minute
  barchan bench paper --only collector --scale 0.1     small sizes, some minutes; labelled so
  barchan bench paper --json paper.json                everything: an hour or more
  barchan report paper.json --html paper.html          draws it again")]
pub(crate) struct PaperArgs {
    /// Only the operations (micro: Tables 2 and 3) or only the collector (Table 6)
    #[arg(long, value_enum, value_name = "PART")]
    pub(crate) only: Option<PaperPart>,

    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Run only this workload of the collector (may be repeated)
    #[arg(long, value_name = "W", value_parser = crate::bench::paper::workloads())]
    pub(crate) workload: Vec<String>,

    /// Run only these configurations of the collector (may be repeated; parts of names, as
    /// generational, pinned/full or guest-pte, are enough, and guest- for all that begin so)
    #[arg(long, value_name = "C", value_parser = crate::bench::paper::selector)]
    pub(crate) config: Vec<Selector>,

    /// Pause that incremental mode aims at, in milliseconds [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=999_998))]
    pub(crate) pause_ms: Option<u32>,

    /// Seconds after which a run is killed and counted as failed
    #[arg(long, value_name = "S", default_value_t = 600,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,

    /// Write the report to FILE [default: build/paper.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) runs: RunsArgs,
}

/// A part of `barchan bench paper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PaperPart {
    /// Tables 2 and 3: operations
    Micro,
    /// Table 6: the collector
    Collector,
}

impl PaperArgs {
    /// Options that say how the collector is to run, where it is not run.
    pub(crate) fn conflict(&self) -> Option<String> {
        let given = [
            ("--scale", self.runs.scale.is_some()),
            ("--workload", !self.workload.is_empty()),
            ("--config", !self.config.is_empty()),
            ("--pause-ms", self.pause_ms.is_some()),
            ("--markers", self.runs.markers.is_some()),
            ("--no-skip", self.runs.no_skip),
        ];
        let given: Vec<_> = given.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        (self.only == Some(PaperPart::Micro) && !given.is_empty()).then(|| {
            format!(
                "{} cannot be used with --only micro: the operations have no such setting",
                given.join(", ")
            )
        })
    }
}

/// `barchan paper-probe`
#[derive(Debug, Args)]
pub(crate) struct PaperProbeArgs {
    /// Name of the row
    #[arg(value_parser = row)]
    pub(crate) row: dune_bench::Row,
    /// Name of the means
    #[arg(value_parser = means)]
    pub(crate) means: dune_bench::Means,
}

fn row(text: &str) -> Result<dune_bench::Row, String> {
    dune_bench::Row::named(text).ok_or_else(|| "no row has this name".to_owned())
}

fn means(text: &str) -> Result<dune_bench::Means, String> {
    dune_bench::Means::named(text).ok_or_else(|| "no means have this name".to_owned())
}

/// `barchan report`
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// What `barchan bench --json` or `barchan bench paper --json` wrote; several files of the first
    /// kind, measured on one machine, are drawn as one
    #[arg(value_name = "FILE.json", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Also write the HTML page to OUT
    #[arg(long, value_name = "OUT")]
    pub(crate) html: Option<PathBuf>,

    /// Also write each figure of the page to a file of its own in DIR (SVG)
    #[arg(long, value_name = "DIR")]
    pub(crate) figures: Option<PathBuf>,
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(f) if f > 0.0 && f <= 1.0 => Ok(f),
        _ => Err("a number above 0 and up to 1 is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scales_out_of_range_are_refused() {
        for text in ["0", "-1", "1.01", "NaN", "", "x"] {
            assert!(scale(text).is_err(), "{text:?}");
        }
        assert_eq!(scale("0.25"), Ok(0.25));
    }
}
