//! Watching a guest: its logs as they grow, the clock, and the user.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::emulator::Emulator;
use super::machine::Run;
use super::verdict::{End, Report};

/// How often the logs are looked at.
const TICK: Duration = Duration::from_millis(50);
/// A tick that is longer means that we were stopped; more than this does not count.
const LONGEST_TICK: Duration = Duration::from_secs(2);
/// How long is waited for the rest of the logs, after a panic and after the guest's last line.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a line of progress is printed where it cannot be overwritten.
const PROGRESS: Duration = Duration::from_secs(30);

/// Time that was spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) clock: Duration,
    /// The emulator's processor time, in seconds.
    pub(crate) cpu_seconds: f64,
}

/// What was seen.
pub(crate) struct Seen {
    pub(crate) end: End,
    pub(crate) report: Report,
    pub(crate) kernel_log: String,
    /// How long booting took, until the test began; none if it did not.
    pub(crate) boot: Option<Spent>,
    pub(crate) all: Spent,
}

/// Watches until the guest is done, or cannot be any more.
///
/// The test's output is printed as it comes. `files` tells that the guest sends files out, whose
/// end is waited for.
pub(crate) fn watch(
    emulator: &mut Emulator,
    run: &Run,
    nonce: &str,
    limit: Duration,
    files: bool,
    mut report: Report,
    interrupted: &AtomicBool,
) -> anyhow::Result<Seen> {
    let start = Instant::now();
    let spent = |emulator: &Emulator| Spent {
        clock: start.elapsed(),
        cpu_seconds: emulator.cpu_seconds().unwrap_or_default(),
    };
    let mut kernel = Tail::new(&run.kernel_log);
    let mut test = Tail::new(&run.test_log);
    let mut boot = None;
    let mut panicked = None;
    let mut done = None;
    let mut progress = Progress::new();
    // The limit is not used up while we, and the emulator with us, are stopped or suspended.
    let (mut counted, mut last) = (Duration::ZERO, Instant::now());
    let marked = format!("barchan-guest {nonce} end");
    let files_end = format!("@{nonce} end\n");
    let end = loop {
        // The order matters: what was there when it ended is still read.
        let ended = emulator.ended()?;
        kernel.read()?;
        test.read()?;
        while let Some(line) = test.line() {
            if let Some(output) = report.line(&line, nonce) {
                progress.clear();
                println!("{output}");
            }
        }
        if report.begun > 0 && boot.is_none() {
            boot = Some(spent(emulator));
        }
        if panicked.is_none() && kernel.contains("Kernel panic") {
            panicked = Some(Instant::now());
        }
        if report.ended {
            let all_there =
                kernel.contains(&marked) && (!files || ends_with(&run.files, files_end.as_bytes()));
            // What does not come soon is missing, and will be found so.
            if all_there || counted >= *done.get_or_insert(counted) + LAST_WORDS {
                break End::Done;
            }
        }
        if panicked.is_some_and(|since| since.elapsed() >= LAST_WORDS) {
            break End::Panicked;
        }
        if let Some(status) = ended {
            break End::Exited(status.to_string());
        }
        if interrupted.load(Relaxed) {
            break End::Interrupted;
        }
        counted += last.elapsed().min(LONGEST_TICK);
        last = Instant::now();
        if counted >= limit {
            break End::TimedOut(limit.as_secs());
        }
        progress.show(start.elapsed(), stage(&report, &kernel));
        std::thread::sleep(TICK);
    };
    progress.clear();
    if let Some(rest) = test.rest() {
        println!("{rest}");
    }
    let kernel_log = String::from_utf8_lossy(&kernel.bytes).into_owned();
    Ok(Seen { end, report, kernel_log, boot, all: spent(emulator) })
}

fn stage(report: &Report, kernel: &Tail) -> &'static str {
    match (report.release.is_some(), report.begun > 0, report.ended) {
        (_, _, true) => "ending",
        (_, true, _) => "test runs",
        (true, ..) => "modules",
        _ if kernel.bytes.is_empty() => "booting",
        _ => "kernel starts",
    }
}

fn ends_with(path: &Path, text: &[u8]) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.ends_with(text))
}

/// A file that grows.
struct Tail {
    path: PathBuf,
    file: Option<File>,
    bytes: Vec<u8>,
    taken: usize,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, bytes: Vec::new(), taken: 0 }
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(&self.path) {
                Ok(file) => none.insert(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot read {}", self.path.display()));
                }
            },
        };
        file.read_to_end(&mut self.bytes)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(())
    }

    /// The next complete line.
    fn line(&mut self) -> Option<String> {
        let rest = &self.bytes[self.taken..];
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..length]).trim_end_matches('\r').to_owned();
        self.taken += length + 1;
        Some(line)
    }

    /// What is left without the end of a line.
    fn rest(&self) -> Option<String> {
        let rest = &self.bytes[self.taken..];
        (!rest.is_empty()).then(|| String::from_utf8_lossy(rest).into_owned())
    }

    fn contains(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// A line on standard error that says how far it is.
struct Progress {
    terminal: bool,
    shown: Option<(&'static str, Duration)>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, elapsed: Duration, stage: &'static str) {
        let due = if self.terminal { Duration::from_secs(1) } else { PROGRESS };
        let show = self.shown.is_none_or(|(last, at)| last != stage || elapsed >= at + due);
        if show {
            let end = if self.terminal { "\r" } else { "\n" };
            eprint!("guest: {stage} ({} s)   {end}", elapsed.as_secs());
            std::io::stderr().flush().ok();
            self.shown = Some((stage, elapsed));
        }
    }

    fn clear(&self) {
        if self.terminal && self.shown.is_some() {
            eprint!("{:40}\r", "");
        }
    }
}
