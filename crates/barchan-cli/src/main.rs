//! The command `barchan`: build the collector, look at the machine, run programs on the
//! collector, and measure it.
//!
//! | Module | Holds |
//! |---|---|
//! | `cli` | the command line |
//! | `build` | `barchan build` |
//! | `doctor` | `barchan doctor` |
//! | `guest` | guest mode: what kind of host there is |
//! | `run` | `barchan run`, and what it reads back from the program |
//! | `bench` | `barchan bench`: what is run, how, and what comes of it |
//! | `report` | the table and the HTML page, for `bench` and `barchan report` |
//! | `machine` | what the machine is: the stamp of every report |
//!
//! The command links no collector and tracks no memory; it starts programs and reads
//! what they say.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod cli;
mod doctor;
mod guest;
mod machine;
mod report;
mod run;

use std::io::Write as _;
use std::process::ExitCode;

use barchan_boehm::{Error, ErrorKind, Layout, Result};
use clap::{CommandFactory as _, Parser as _};

use cli::{BenchCommand, Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            note(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let root = cli.root;
    let layout = |root: Option<_>| Layout::new(root.unwrap_or_else(Layout::compiled_root));
    match cli.command {
        Command::Build(args) => build::command(&layout(root)?, &args),
        Command::Doctor(args) => {
            // Without a checkout it tells what the machine has; with one that is none, what is wrong.
            let was_named = root.is_some();
            let layout = layout(root);
            let layout = if was_named { Some(layout?) } else { layout.ok() };
            doctor::command(layout.as_ref(), &args)
        }
        Command::Run(args) => {
            if let Some(text) = args.conflict() {
                Cli::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
            }
            run::command(&layout(root)?, &args)
        }
        Command::Bench(args) => match &args.what {
            None => bench::command(&layout(root)?, &args),
            Some(BenchCommand::Paper(args)) => {
                if let Some(text) = args.conflict() {
                    Cli::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
                }
                bench::paper::command(&layout(root)?, args)
            }
        },
        Command::Report(args) => report::command(&args),
        Command::GuestProbe => guest::probe(),
        Command::PaperProbe(args) => bench::paper::probe(&args),
        Command::SourceProbe => guest::probe_source(),
    }
}

/// Prints a result.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::new(ErrorKind::Io, format!("cannot write to standard output: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Says a line on standard error. What cannot be said there cannot be said.
fn note(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Fails if `path`, which is to be written when much work is done, cannot be; makes it if it is not there.
fn require_writable(path: &std::path::Path) -> Result<()> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|e| Error::io("write", path, &e))
}

/// Writes text to a file that the user named.
fn write_file(path: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
