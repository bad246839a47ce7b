//! One run of one workload: start it, wait no longer than allowed, read its line of JSON.
//!
//! The program gets a clean environment as far as the collectors are concerned: no `GC_*`
//! and no `BARCHAN_*` but those of the configuration. While it runs, this process sleeps; once
//! a second it looks whether it is to stop.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::model::{Outcome, Sample};

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
}

/// Runs the job, until `stop` is raised. Every way to fail ends in [`Outcome::Failed`]: the benchmark goes on.
pub(crate) fn run(job: &Job, stop: &AtomicBool) -> Outcome {
    match run_inner(job, stop) {
        Ok(sample) => Outcome::Measured { sample },
        Err(why) => Outcome::Failed { why },
    }
}

fn run_inner(job: &Job, stop: &AtomicBool) -> Result<Sample, String> {
    let begin = Instant::now();
    let mut child =
        spawn(job).map_err(|e| format!("cannot start {}: {e}", job.program.display()))?;
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let output = loop {
        let left = job.timeout.saturating_sub(begin.elapsed());
        match output.recv_timeout(left.min(LOOK)) {
            Ok(text) => break text,
            Err(RecvTimeoutError::Timeout) if left > LOOK && !stop.load(Ordering::Relaxed) => {}
            Err(RecvTimeoutError::Timeout) => {
                // Both can only fail if the program has just ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("killed after {} s", begin.elapsed().as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break String::new(),
        }
    };
    let status = child.wait().map_err(|e| format!("cannot wait for it: {e}"))?;
    let errors = errors.recv().unwrap_or_default();
    if !status.success() {
        let said = last_lines(&errors);
        let colon = if said.is_empty() { "" } else { ": " };
        return Err(format!("{status}{colon}{said}"));
    }
    let last = output.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last)
        .map_err(|e| format!("its report is no JSON: {e}: {last:.60}"))?;
    check_library(&value, &job.library_dir)?;
    sample(&value).ok_or_else(|| format!("its report lacks a field: {last:.200}"))
}

fn spawn(job: &Job) -> std::io::Result<Child> {
    let mut command = Command::new(&job.program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("GC_") || text.starts_with("BARCHAN_") || text == "LD_PRELOAD" {
            command.env_remove(&name);
        }
    }
    command
        .args(&job.args)
        .env("LD_LIBRARY_PATH", &job.library_dir)
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
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
fn check_library(value: &Value, wanted: &Path) -> Result<(), String> {
    let Some(found) = value["gc_library"].as_str() else { return Ok(()) };
    let dir = Path::new(found).parent().and_then(|dir| dir.canonicalize().ok());
    if dir.is_some() && dir == wanted.canonicalize().ok() {
        return Ok(());
    }
    Err(format!("it loaded {found}, not the collector in {}", wanted.display()))
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
        alloc_longest_ms: ms(&value["alloc"]["longest_us"])?,
        collections: value["collections"].as_u64()?,
        heap_peak_bytes: value["heap_peak_bytes"].as_u64()?,
        max_rss_bytes: value["max_rss_bytes"].as_u64()?,
        minor_faults: value["minor_faults"].as_u64()?,
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
