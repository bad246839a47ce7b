//! `barchan bench paper`: Tables 2, 3 and 6 of the Dune paper again, on this machine.
//!
//! | Module | Holds |
//! |---|---|
//! | `figures` | what the paper measured |
//! | `micro` | Tables 2 and 3: processes that measure one operation each (`dune-bench`) |
//! | `collector` | Table 6: configurations for the rounds of a plain `bench` |
//! | `model` | the measurements, as JSON |
//! | `summary`, `table6` | medians, ranges, ratios |

pub(crate) mod collector;
pub(crate) mod figures;
pub(crate) mod micro;
pub(crate) mod model;
pub(crate) mod summary;
pub(crate) mod table6;

use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use barchan_boehm::{Error, ErrorKind, Layout, Result};
use clap::builder::PossibleValuesParser;
use dune_bench::clock::Rate;
use dune_bench::emulator::Emulator;

use super::config::{Config, Selector};
use super::{Files, INTERRUPTED, judge, stop_on_interrupt};
use crate::cli::{PaperArgs, PaperPart};
use crate::machine::Machine;
use crate::{guest, note, report};
use model::{Guest, MicroOutcome, Paper};

pub(crate) use micro::probe;

/// What `--workload` takes: the paper's four, and the ten documents of its text.
pub(crate) fn workloads() -> PossibleValuesParser {
    PossibleValuesParser::new(collector::workloads(&[]).iter().map(|workload| workload.name))
}

/// What `--config` takes.
pub(crate) fn selector(text: &str) -> std::result::Result<Selector, String> {
    Selector::among(text, &collector::configs()).ok_or_else(|| {
        let names: Vec<_> = collector::configs().iter().map(Config::to_string).collect();
        format!("no configuration has these parts; there are {}", names.join(", "))
    })
}

/// Runs the subcommand.
pub(crate) fn command(layout: &Layout, args: &PaperArgs) -> Result<ExitCode> {
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let guest = find_guest();
    // Built first: a build between two measurements would warm the machine up.
    let collector = match args.only {
        Some(PaperPart::Micro) => None,
        _ => Some(collector::prepare(layout, args, &guest)?),
    };
    let files = Files::new(layout, args.runs.json.as_deref(), args.html.as_deref(), "paper.html")?;
    let machine = Machine::read(Some(layout.root()));
    let stop = stop_on_interrupt()?;
    let begin = Instant::now();
    let (micro, mut interrupted) = match args.only {
        Some(PaperPart::Collector) => (None, false),
        _ => {
            let (micro, interrupted) = micro::measure(args.rounds, &guest, &stop);
            (Some(micro), interrupted)
        }
    };
    let collector = collector
        .filter(|_| !interrupted)
        .map(|prepared| prepared.measure(layout, words(args), &stop));
    interrupted |= collector.as_ref().is_some_and(|report| report.interrupted);
    let paper = Paper {
        kind: model::KIND.to_owned(),
        format: model::FORMAT,
        barchan_version: env!("CARGO_PKG_VERSION").to_owned(),
        command: words(args),
        started,
        duration_s: begin.elapsed().as_secs_f64(),
        rounds: args.rounds,
        interrupted,
        machine,
        guest,
        micro,
        collector,
    };
    publish(&files, &paper)
}

/// The command that measures the same again.
fn words(args: &PaperArgs) -> String {
    let mut words = vec!["barchan bench paper".to_owned()];
    match args.only {
        Some(PaperPart::Micro) => words.push("--only micro".to_owned()),
        Some(PaperPart::Collector) => words.push("--only collector".to_owned()),
        None => {}
    }
    words.push(format!("--rounds {}", args.rounds));
    words.extend(args.runs.scale.map(|scale| format!("--scale {scale}")));
    words.extend(args.workload.iter().map(|name| format!("--workload {name}")));
    words.extend(args.config.iter().map(|selector| format!("--config {selector}")));
    words.extend(args.runs.no_skip.then(|| "--no-skip".to_owned()));
    words.extend(args.pause_ms.map(|ms| format!("--pause-ms {ms}")));
    words.extend(args.runs.markers.map(|markers| format!("--markers {markers}")));
    words.push(format!("--timeout {}", args.timeout));
    words.join(" ")
}

fn find_guest() -> Guest {
    let found = guest::try_entering();
    let why = (!found.available)
        .then(|| found.why.unwrap_or_else(|| "guest mode is not to be had here".to_owned()));
    let emulator = Emulator::find();
    let emulated_by =
        emulator.map(|emulator| format!("{}: {}", emulator.name(), emulator.figures()));
    let instructions_per_s =
        emulator.filter(|emulator| *emulator == Emulator::Bochs).map(|_| Rate::start().end());
    Guest { kind: found.kind, emulated_by, instructions_per_s, why }
}

/// Writes the files and prints the tables; fails if something that could be measured was not.
fn publish(files: &Files<'_>, paper: &Paper) -> Result<ExitCode> {
    let page = report::paper_html::render(paper);
    files.publish(paper.to_json(), &page, &report::paper::render(paper))?;
    if paper.interrupted {
        note(format_args!("interrupted: the tables hold what had been measured"));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let failed = paper
        .micro
        .iter()
        .flat_map(|micro| &micro.runs)
        .filter(|run| matches!(run.outcome, MicroOutcome::Failed { .. }))
        .count();
    if failed > 0 {
        return Err(Error::new(
            ErrorKind::BadResult,
            format!("{failed} measurements of operations failed"),
        )
        .remedy("see the rows that say FAILED"));
    }
    paper.collector.as_ref().map_or(Ok(()), judge).map(|()| ExitCode::SUCCESS)
}
