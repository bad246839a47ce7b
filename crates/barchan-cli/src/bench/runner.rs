//! One run of one workload: start it, wait no longer than allowed, read its line of JSON; or of a
//! program of the user's: the same, with what a preloaded object notes.
//!
//! The program gets a clean environment as far as the collectors are concerned: no `GC_*`
//! and no `BARCHAN_*` but those of the configuration. While it runs, this process sleeps; once
//! a second it looks whether it is to stop.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;
use wait4::{ResourceUsage, Wait4 as _};

use super::model::{Outcome, Sample};
use crate::run::{elsewhere, prepend, record};

/// How often to look whether to stop.
const LOOK: Duration = Duration::from_secs(1);

/// A command to run and its limit.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// The workload's binary.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// The directory with the collector.
    pub(crate) library_dir: PathBuf,
    /// The collector's environment.
    pub(crate) environment: Vec<(String, String)>,
    /// When to give up.
    pub(crate) timeout: Duration,
    /// For a program that tells nothing itself.
    pub(crate) watched: Option<Watched>,
}

/// How a program of the user's is measured.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// The object that notes what its collector does.
    pub(crate) preload: PathBuf,
    /// Whether its output is a result.
    pub(crate) output_is_compared: bool,
}

/// Runs the job, until `stop` is raised. Every way to fail ends in [`Outcome::Failed`]: the benchmark goes on.
pub(crate) fn run(job: &Job, stop: &AtomicBool) -> Outcome {
    match run_and_listen(job, stop) {
        Ok((sample, _)) => Outcome::Measured { sample: Box::new(sample) },
        Err(why) => Outcome::Failed { why },
    }
}

/// The same, with what was written to standard error.
pub(crate) fn run_and_listen(job: &Job, stop: &AtomicBool) -> Result<(Sample, String), String> {
    let records = records(job)?;
    let begin = Instant::now();
    let mut child = spawn(job, records.as_ref().map(TempDir::path))
        .map_err(|e| format!("cannot start {}: {e}", job.program.display()))?;
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let output = loop {
        let left = job.timeout.saturating_sub(begin.elapsed());
        match output.recv_timeout(left.min(LOOK)) {
            Ok(text) => break text,
            Err(RecvTimeoutError::Timeout) if left > LOOK && !stop.load(Ordering::Relaxed) => {}
            Err(RecvTimeoutError::Timeout) => {
                // Both can only fail if the program has just ended by itself.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Err(format!("killed after {} s", begin.elapsed().as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break String::new(),
        }
    };
    let used = child.wait4().map_err(|e| format!("cannot wait for it: {e}"))?;
    let total_s = begin.elapsed().as_secs_f64();
    let status = used.status;
    let errors = errors.recv().unwrap_or_default();
    if !status.success() {
        let said = last_lines(&errors);
        let colon = if said.is_empty() { "" } else { ": " };
        return Err(format!("{status}{colon}{said}"));
    }
    if let (Some(watched), Some(records)) = (&job.watched, records) {
        let results = watched.output_is_compared.then(|| summed(&output)).into_iter().collect();
        let noted = noted(records.path(), &job.library_dir, &used.rusage)?;
        return Ok((Sample { total_s, results, ..noted }, errors));
    }
    let last = output.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last)
        .map_err(|e| format!("its report is no JSON: {e}: {last:.60}"))?;
    check_library(value["gc_library"].as_str(), &job.library_dir)?;
    let sample = sample(&value).ok_or_else(|| format!("its report lacks a field: {last:.200}"))?;
    Ok((sample, errors))
}

/// Where the preloaded object leaves its records, for a program that it watches.
fn records(job: &Job) -> Result<Option<TempDir>, String> {
    let make = || tempfile::Builder::new().prefix("barchan-bench-").tempdir();
    job.watched.as_ref().map(|_| make()).transpose().map_err(|e| {
        format!("cannot create a directory in {}: {e}", std::env::temp_dir().display())
    })
}

/// Starts it, in a process group of its own: with its children it is ended.
fn spawn(job: &Job, records: Option<&Path>) -> std::io::Result<Child> {
    let mut command = Command::new(&job.program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("GC_") || text.starts_with("BARCHAN_") || text == "LD_PRELOAD" {
            command.env_remove(&name);
        }
    }
    command
        .args(&job.args)
        .env("LD_LIBRARY_PATH", library_path(job))
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let (Some(watched), Some(records)) = (&job.watched, records) {
        command.env("LD_PRELOAD", &watched.preload).env("BARCHAN_SUMMARY_DIR", records);
    }
    command.spawn()
}

/// Where libraries are looked for: a program of the user's may have places of its own, too.
fn library_path(job: &Job) -> OsString {
    match job.watched {
        Some(_) => prepend([&job.library_dir], "LD_LIBRARY_PATH"),
        None => job.library_dir.clone().into(),
    }
}

/// What the preloaded object noted of the process that collected most, with what the program and
/// all its children used.
fn noted(records: &Path, library_dir: &Path, used: &ResourceUsage) -> Result<Sample, String> {
    let summary = record::read_all(records, 0)
        .into_iter()
        .max_by_key(|summary| summary.collections)
        .ok_or("it loaded no libgc.so.1 at its start (one that is linked statically cannot be exchanged)")?;
    if !record::is_from(&summary, library_dir) {
        return Err(elsewhere(&summary, library_dir));
    }
    Ok(Sample {
        user_s: used.utime.as_secs_f64(),
        sys_s: used.stime.as_secs_f64(),
        pauses: summary.pauses,
        pause_p50_ms: summary.pause_p50_ms,
        pause_p99_ms: summary.pause_p99_ms,
        pause_max_ms: summary.pause_max_ms,
        collections: summary.collections,
        heap_peak_bytes: summary.heap_peak_bytes,
        max_rss_bytes: used.maxrss,
        source: summary.source,
        // Where nothing was collected, the mode was not left.
        incremental: summary.incremental || summary.collections == 0,
        ..Sample::default()
    })
}

/// An output as a result: its length, and a checksum (CRC-32).
fn summed(output: &str) -> (String, Value) {
    let mut sum = flate2::Crc::new();
    sum.update(output.as_bytes());
    ("output".to_owned(), format!("{} bytes, CRC-32 {:08x}", output.len(), sum.sum()).into())
}

/// Reads a pipe to its end on a thread of its own.
fn collect(pipe: Option<impl std::io::Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What could be read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        // The receiver is gone after a time-out.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// The last few lines, on one.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

/// Refuses a run on another collector than the one that was meant.
fn check_library(found: Option<&str>, wanted: &Path) -> Result<(), String> {
    match found.filter(|found| !record::is_in(Path::new(found), wanted)) {
        None => Ok(()),
        Some(found) => Err(format!("it loaded {found}, not the collector in {}", wanted.display())),
    }
}

/// The workload's JSON, in this program's units.
fn sample(value: &Value) -> Option<Sample> {
    let pause = &value["pause_us"];
    let ms = |us: &Value| us.as_f64().map(|us| us / 1e3);
    Some(Sample {
        total_s: value["total_s"].as_f64()?,
        user_s: value["user_s"].as_f64()?,
        sys_s: value["sys_s"].as_f64()?,
        pauses: pause["count"].as_u64()?,
        pause_p50_ms: ms(&pause["p50"]),
        pause_p99_ms: ms(&pause["p99"]),
        pause_max_ms: ms(&pause["max"]),
        alloc_longest_ms: Some(ms(&value["alloc"]["longest_us"])?),
        collections: value["collections"].as_u64()?,
        heap_peak_bytes: value["heap_peak_bytes"].as_u64()?,
        max_rss_bytes: value["max_rss_bytes"].as_u64()?,
        minor_faults: Some(value["minor_faults"].as_u64()?),
        source: value["vdb"].as_str().map(str::to_owned),
        incremental: value["incremental"].as_bool()?,
        guest: None, // who started it in guest mode adds them
        results: value["results"]
            .as_object()?
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(script: &str, timeout_ms: u64) -> Job {
        Job {
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            library_dir: "/nonexistent".into(),
            environment: vec![("GC_MARKERS".to_owned(), "1".to_owned())],
            timeout: Duration::from_millis(timeout_ms),
            watched: None,
        }
    }

    fn shell(script: &str, timeout_ms: u64) -> Outcome {
        run(&job(script, timeout_ms), &AtomicBool::new(false))
    }

    fn why(outcome: Outcome) -> String {
        match outcome {
            Outcome::Failed { why } => why,
            Outcome::Measured { sample } => panic!("measured {sample:?}"),
        }
    }

    #[test]
    fn failures_say_why() {
        let text = why(shell("echo oops >&2; exit 3", 10_000));
        assert_eq!(text, "exit status: 3: oops");
        assert!(why(shell("kill -SEGV $$", 10_000)).contains("signal: 11"));
        assert!(why(shell("exec sleep 60", 100)).starts_with("killed after"));
        let stopped = run(&job("exec sleep 60", 60_000), &AtomicBool::new(true));
        assert_eq!(why(stopped), "killed after 1 s");
        // Its children too, which otherwise hold its output.
        let text = why(shell("sleep 60 & sleep 60; true", 100));
        assert!(text.starts_with("killed after"), "{text}");
        assert!(why(shell("echo no json", 10_000)).contains("no JSON"));
        assert!(why(shell("echo '{\"total_s\":1}'", 10_000)).contains("lacks a field"));
        let text = why(shell("echo '{\"gc_library\":\"/usr/lib/libgc.so.1\"}'", 10_000));
        assert!(text.contains("it loaded /usr/lib/libgc.so.1"), "{text}");
    }

    #[test]
    fn a_workloads_line_is_understood() {
        let line = r#"{"workload":"list","ok":true,"scale":1,"params":{},"results":{"sum":7},
            "gc_version":"8.3.0","incremental":true,"parallel":1,"vdb":"uffdwp","vdb_bits":128,
            "env":{},"total_s":1.5,"user_s":1.25,"sys_s":0.25,"check_s":0.1,
            "pause_us":{"count":2,"p50":1000.0,"p99":2500.0,"max":2500.0,"sum":3500.0,
            "unlisted":0},"alloc":{"calls":10,"longest_us":2600.0,"over_1ms":2,"over_5ms":0},
            "collections":3,"allocated_bytes":5,"heap_peak_bytes":6,"heap_end_bytes":6,
            "max_rss_bytes":7,"minor_faults":8,"major_faults":0}"#;
        let outcome = shell(&format!("printf '%s' '{}'", line.replace('\n', " ")), 10_000);
        let Outcome::Measured { sample } = outcome else { panic!("{outcome:?}") };
        assert_eq!((sample.total_s, sample.pause_p99_ms), (1.5, Some(2.5)));
        assert_eq!((sample.collections, sample.heap_peak_bytes), (3, 6));
        assert_eq!(sample.results["sum"], 7);
        assert_eq!(sample.source.as_deref(), Some("uffdwp"));
    }
}
