//! `barchan run`: an unmodified program on the patched collector, and what it did.
//!
//! The program finds the collector through `LD_LIBRARY_PATH` and is told what to do by the
//! collector's own variables. A small object is preloaded that notes the collector's events
//! in files (`preload/summary.c`); it is read when the program has ended, by whatever means.

pub(crate) mod attend;
pub(crate) mod dune;
pub(crate) mod record;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use ::dune::stats::Snapshot;
use barchan::Source;
use barchan_boehm::{Error, ErrorKind, Flavour, Layout, Result, SystemCollector};
use clap::builder::PossibleValuesParser;
use serde_json::Value;

use crate::cli::{Mode, Ring, RunArgs, RunOn};
use crate::{build, guest, note, require_writable, write_file};
use attend::Attendant;
use record::Summary;

/// What `--tracker` takes: the names of the library's sources, and `auto`.
pub(crate) fn trackers() -> PossibleValuesParser {
    let names = Source::ALL.map(Source::name).into_iter();
    PossibleValuesParser::new(names.chain(["auto"]))
}

/// Exit codes for a program that could not be started, as shells have them.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs the subcommand.
pub(crate) fn command(layout: &Layout, args: &RunArgs) -> Result<ExitCode> {
    let records = tempfile::Builder::new()
        .prefix("barchan-run-")
        .tempdir()
        .map_err(|e| Error::io("create a directory in", &std::env::temp_dir(), &e))?;
    let Some((program, arguments)) = args.program.split_first() else {
        return Err(Error::new(ErrorKind::Missing, "no program given")); // clap requires one
    };

    args.stats.as_deref().map_or(Ok(()), require_writable)?;
    let mut command = Command::new(program);
    command.args(arguments);
    // Where guest mode's records go; the collector's lie beside it.
    let guest_records = records.path().join("guest");
    let mut preload = Vec::new();
    let mut collector_dir = None;
    if args.dune {
        std::fs::create_dir(&guest_records).map_err(|e| Error::io("create", &guest_records, &e))?;
        command.env("BARCHAN_DUNE_DIR", &guest_records);
        if let Some(ring) = args.ring {
            command.env("BARCHAN_DUNE_RING", if ring == Ring::Zero { "0" } else { "3" });
        }
        preload.push(build::dune_library(layout)?);
    }
    if !args.dune || args.tracker.is_some() {
        let library_dir = library_dir(layout, args.collector())?;
        preload.push(build::preload(layout)?);
        set_environment(&mut command, args, &library_dir, records.path());
        collector_dir = Some(library_dir);
    }
    command.env("LD_PRELOAD", prepend(preload, "LD_PRELOAD"));
    let attendant = Attendant::new()
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot handle signals: {e}")))?;
    let started =
        command.spawn().and_then(|mut child| Ok((child.id(), attendant.wait(&mut child)?)));
    let (pid, status) = match started {
        Ok(ended) => ended,
        Err(e) => {
            let why = format!("cannot start {}: {e}", Path::new(program).display());
            note(format_args!("error: {why}"));
            let is_there = e.kind() != std::io::ErrorKind::NotFound;
            let code = if is_there { NOT_EXECUTABLE } else { NOT_FOUND };
            write_stats(args, serde_json::json!({"exit_code": code, "signal": null, "error": why}));
            return Ok(ExitCode::from(code));
        }
    };
    let summaries = record::read_all(records.path(), u64::from(pid));
    let guests = args.dune.then(|| dune::read(&guest_records, pid));
    let mut said = format!("barchan: {} ended with {status}\n", Path::new(program).display());
    if let Some(guests) = &guests {
        said.push_str(&dune::render(program, guests));
    }
    if let Some(dir) = &collector_dir {
        said.push_str(&render(program, args, dir, u64::from(pid), &summaries));
    }
    note(format_args!("{}", said.trim_end()));
    write_stats(args, stats(args, status, &summaries, guests.as_deref()));
    Ok(exit_code(status))
}

fn library_dir(layout: &Layout, collector: RunOn) -> Result<PathBuf> {
    let flavour = match collector {
        RunOn::Debian => return Ok(SystemCollector::find()?.library_dir().to_path_buf()),
        RunOn::Pinned => Flavour::STOCK,
        RunOn::Barchan => Flavour::PATCHED,
    };
    let built = barchan_boehm::Collector::built(layout, flavour).ok_or_else(|| {
        Error::new(ErrorKind::Missing, format!("the {flavour} collector is not built"))
            .tried(format!("looked in {}", layout.collector(flavour).display()))
            .remedy("barchan build")
    })?;
    build::warn_if_outdated(layout, &built);
    Ok(built.library_dir())
}

fn set_environment(command: &mut Command, args: &RunArgs, library_dir: &Path, records: &Path) {
    // What the user set for another mode must not mix with the mode asked for here.
    for name in ["GC_ENABLE_INCREMENTAL", "GC_DISABLE_INCREMENTAL", "GC_PAUSE_TIME_TARGET"] {
        command.env_remove(name);
    }
    command
        .env("LD_LIBRARY_PATH", prepend([library_dir], "LD_LIBRARY_PATH"))
        .env("BARCHAN_SUMMARY_DIR", records);
    let limit = match args.mode() {
        Mode::Full => None,
        Mode::Generational => Some(999_999),
        Mode::Incremental => Some(args.pause_ms()),
    };
    if let Some(limit) = limit {
        command.env("GC_ENABLE_INCREMENTAL", "1").env("GC_PAUSE_TIME_TARGET", limit.to_string());
    }
    if let Some(markers) = args.markers {
        command.env("GC_MARKERS", markers.to_string());
    }
    if let Some(tracker) = &args.tracker {
        command.env("BARCHAN_TRACKER", tracker);
        command.envs(guest::variable_of(tracker).filter(|_| args.dune));
    }
}

/// Paths in front of what a variable with a list of paths holds.
pub(crate) fn prepend<P: AsRef<OsStr>>(
    paths: impl IntoIterator<Item = P>,
    variable: &str,
) -> OsString {
    let mut list = OsString::new();
    let before = std::env::var_os(variable).filter(|rest| !rest.is_empty());
    let paths = paths.into_iter().map(|path| path.as_ref().to_owned());
    for (n, path) in paths.chain(before).enumerate() {
        if n > 0 {
            list.push(":");
        }
        list.push(path);
    }
    list
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn render(
    program: &OsStr,
    args: &RunArgs,
    collector_dir: &Path,
    pid: u64,
    summaries: &[Summary],
) -> String {
    let mut out = String::new();
    let (own, others) = match summaries {
        [own, others @ ..] if own.pid == pid => (Some(own), others),
        others => (None, others),
    };
    out.push_str(&own.map_or_else(
        || {
            format!(
                "barchan: {} did not load libgc.so.1 at its start, or could leave no record of it, so there is no \
                 summary. (A collector that is linked into the program, or a setuid program's, is left as it \
                 is; one that the program loads itself, by dlopen, was this one: GC_PRINT_STATS=1 lets it \
                 tell. A record takes 16 kB in {}, and a program that stays the same user.)\n",
                Path::new(program).display(),
                std::env::temp_dir().display()
            )
        },
        |own| render_one(own, args),
    ));
    for other in summaries.iter().filter(|summary| !record::is_from(summary, collector_dir)) {
        out.push_str(&format!("barchan: {}\n", elsewhere(other, collector_dir)));
    }
    for other in others.iter().filter(|other| other.collections > 0) {
        out.push_str(&format!(
            "barchan: child {} ({}): {} collections, longest pause {} ms\n",
            other.pid,
            other.program,
            other.collections,
            ms(other.pause_max_ms)
        ));
    }
    out
}

/// What is said of a process on another collector than the one meant.
pub(crate) fn elsewhere(summary: &Summary, wanted: &Path) -> String {
    let found = summary.gc_library.as_deref().unwrap_or(Path::new("a collector"));
    format!(
        "{} ({}) loaded {}, not the collector in {}: it names its library's place itself \
         (DT_RPATH; `patchelf --remove-rpath` takes that away), or changes LD_LIBRARY_PATH",
        summary.program,
        summary.pid,
        found.display(),
        wanted.display()
    )
}

fn render_one(summary: &Summary, args: &RunArgs) -> String {
    let source = summary.source.as_deref().unwrap_or("not told by this collector");
    let is_fallback = args.collector() == RunOn::Barchan && summary.dirty_bits.is_none();
    let variable = std::env::var(barchan::ENV).ok();
    let mode = match args.tracker.as_deref().or(variable.as_deref()) {
        _ if !summary.incremental => "unused (full mode)".to_owned(),
        Some(name) if is_fallback => {
            format!("{source}, the collector's own ({name} was asked for)")
        }
        None if is_fallback => format!("{source}, the collector's own"),
        _ => source.to_owned(),
    };
    let mut out = format!(
        "  collector    libgc {}, dirty bits: {mode}\n\
         \x20 collections  {}\n\
         \x20 pauses       {}: p50 {} ms, p99 {} ms, max {} ms, {:.1} ms of {:.2} s in all\n\
         \x20 peak heap    {:.1} MB\n",
        summary.gc_version,
        summary.collections,
        summary.pauses,
        ms(summary.pause_p50_ms),
        ms(summary.pause_p99_ms),
        ms(summary.pause_max_ms),
        summary.pause_sum_ms,
        summary.seconds,
        summary.heap_peak_bytes as f64 / 1e6,
    );
    if let Some(bits) = summary.dirty_bits.as_ref().filter(|_| summary.incremental) {
        let share = 100.0 * bits.pages_dirty as f64 / bits.pages_scanned.max(1) as f64;
        out.push_str(&format!(
            "  dirty pages  {} of {} scanned ({share:.1} %), {} scans in {:.1} ms\n\
             \x20 arming       {} pages in {} calls and {:.1} ms, {} lifted in advance\n\
             \x20 faults       {} first writes to armed pages, {:.2} us each\n",
            bits.pages_dirty,
            bits.pages_scanned,
            bits.scans,
            bits.scan_us as f64 / 1e3,
            bits.pages_armed,
            bits.arm_runs,
            bits.arm_us as f64 / 1e3,
            bits.pages_disarmed,
            bits.faults,
            bits.fault_ns as f64 / 1e3,
        ));
        out.push_str(&policy(bits.full_preferred, summary.collections));
    }
    if summary.died_in_pause {
        out.push_str("  it ended while the world was stopped for a collection\n");
    }
    out
}

/// What the collector chose between partial and full collections.
fn policy(full_preferred: u64, collections: u64) -> String {
    if full_preferred == 0 {
        return "  policy       partial collections were never found to cost more than full ones\n"
            .to_owned();
    }
    format!(
        "  policy       {full_preferred} of {collections} collections were full since partial ones cost \
         more (GC_BARCHAN_POLICY=partial turns this off)\n"
    )
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.2}"))
}

/// What `--stats` says of a program that has ended.
fn stats(
    args: &RunArgs,
    status: ExitStatus,
    summaries: &[Summary],
    guests: Option<&[Snapshot]>,
) -> Value {
    let mut value = serde_json::json!({"exit_code": status.code(), "signal": status.signal()});
    if let Some(guests) = guests {
        value["guest_processes"] = dune::to_json(guests);
    }
    if guests.is_none() || args.tracker.is_some() {
        value["processes"] = serde_json::json!(summaries);
    }
    value
}

/// Writes what `--stats` asks for. The exit code is the program's, whatever becomes of this.
fn write_stats(args: &RunArgs, mut value: Value) {
    let Some(path) = &args.stats else { return };
    let program: Vec<_> = args.program.iter().map(|arg| arg.to_string_lossy()).collect();
    value["program"] = serde_json::json!(program);
    if let Err(error) = write_file(path, &format!("{value:#}\n")) {
        note(format_args!("error: {error}"));
    }
}
