//! The running kernel's opinion: calls are made, and every byte that changed must be one that the table names.
//!
//! Each case runs in a process of its own, with a time limit, on an arena in which all its argument
//! blocks and buffers lie, between guards. The arena is compared as a whole before and after each call. Each
//! case runs on three patterns, one the complement of another, so that a byte that is written but
//! does not change in one run does so in the next.

mod arena;
mod chance;
mod exempt;
mod files;
mod ipc;
mod memory;
mod polling;
mod sockets;
mod tasks;
mod time;
mod tracing;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arena::Run;
use dune::effects;

/// A case: a name, and what it does.
type Case = (&'static str, fn(&mut Run));

/// Names the case that a child process runs.
const CASE: &str = "DUNE_EFFECTS_CASE";
/// A child that takes longer is killed. Other jobs may hold up this one for a while.
const LIMIT: Duration = Duration::from_secs(120);
/// The calls that a child has made, as `called NUMBER RESULT`.
const CALLED: &str = "called ";

fn cases() -> impl Iterator<Item = Case> {
    [
        files::CASES,
        polling::CASES,
        sockets::CASES,
        time::CASES,
        tasks::CASES,
        tracing::CASES,
        memory::CASES,
        ipc::CASES,
        chance::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Not a test: what the children of the others run.
#[test]
#[ignore = "a child process of the other tests"]
fn child() {
    let Ok(name) = std::env::var(CASE) else { return };
    let (_, case) = cases().find(|(n, _)| *n == name).expect("a case of that name");
    let dir = std::env::temp_dir().join(format!("dune-effects-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory");
    let result = std::panic::catch_unwind(|| {
        for pattern in [0u8, 0xff, 0x35] {
            let own = dir.join(pattern.to_string());
            std::fs::create_dir(&own).expect("a directory");
            std::env::set_current_dir(own).expect("chdir");
            let mut run = Run::new(pattern);
            case(&mut run);
            for (number, result) in run.calls {
                println!("{CALLED}{number} {result}");
            }
        }
    });
    std::env::set_current_dir("/").expect("chdir");
    std::fs::remove_dir_all(&dir).ok();
    assert!(result.is_ok(), "see above");
}

/// Runs one case in a child; what it printed, or why it failed.
fn run(name: &str) -> Result<String, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(exe)
        .args(["--exact", "kernel::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CASE, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut outputs: Vec<Box<dyn std::io::Read + Send>> = Vec::new();
    outputs.extend(child.stdout.take().map(|o| Box::new(o) as _));
    outputs.extend(child.stderr.take().map(|o| Box::new(o) as _));
    let readers: Vec<_> = outputs
        .into_iter()
        .map(|mut output| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                output.read_to_end(&mut bytes).ok();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        })
        .collect();
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // It and what it may have left behind, which would keep its output open.
    // SAFETY: a group of our own making; if nobody is left, it is an error.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    child.wait().ok();
    let text: String = readers.into_iter().map(|r| r.join().unwrap_or_default()).collect();
    match status {
        Some(status) if status.success() && text.contains("1 passed") => Ok(text),
        Some(status) => Err(format!("{status}\n{}", without_calls(&text))),
        None => Err(format!("not done after {} s\n{}", LIMIT.as_secs(), without_calls(&text))),
    }
}

fn without_calls(text: &str) -> String {
    text.lines().filter(|line| !line.contains(CALLED)).collect::<Vec<_>>().join("\n")
}

/// The numbers that were called, each with whether it ever succeeded.
fn run_all(cases: impl Iterator<Item = Case>) -> BTreeMap<u64, bool> {
    let mut called: BTreeMap<u64, bool> = BTreeMap::new();
    let mut failures = Vec::new();
    for (name, _) in cases {
        let start = Instant::now();
        let result = run(name);
        println!("case {name}: {} ms", start.elapsed().as_millis());
        match result {
            Ok(text) => {
                for line in text.lines() {
                    if let Some((number, result)) =
                        line.strip_prefix(CALLED).and_then(|rest| rest.split_once(' '))
                    {
                        let (number, result): (i64, i64) = match (number.parse(), result.parse()) {
                            (Ok(number), Ok(result)) => (number, result),
                            _ => continue,
                        };
                        *called.entry(number as u64).or_default() |= !(-4095..0).contains(&result);
                    }
                }
                let skips: BTreeSet<_> =
                    text.lines().filter(|line| line.starts_with("skipped")).collect();
                skips.iter().for_each(|line| println!("{line} ({name})"));
            }
            Err(why) => failures.push(format!("case {name}: {why}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    called
}

#[test]
fn every_byte_that_the_kernel_writes_is_one_that_the_table_names() {
    let called = run_all(cases().filter(|(name, _)| !name.starts_with("chance")));
    let succeeded = called.values().filter(|succeeded| **succeeded).count();
    println!("{} calls tried, {succeeded} of them with success", called.len());
    let mut forgotten = Vec::new();
    for number in 0..=effects::LAST_KNOWN {
        let Some(name) = effects::name(number) else { continue };
        let exempt = exempt::REASONS.iter().find(|(exempt, _)| *exempt == name);
        match (called.contains_key(&number), exempt) {
            (false, None) => forgotten.push(name),
            (true, Some(_)) => panic!("{name} is called, and listed as if it could not be"),
            _ => {}
        }
    }
    assert!(forgotten.is_empty(), "neither called nor listed with a reason: {forgotten:?}");
    assert!(succeeded >= 150, "only {succeeded} calls succeeded");
}

#[test]
fn calls_by_chance_write_what_the_table_names() {
    let called = run_all(cases().filter(|(name, _)| name.starts_with("chance")));
    let succeeded = called.values().filter(|succeeded| **succeeded).count();
    println!("{} calls tried, {succeeded} of them with success", called.len());
    assert!(called.len() >= 250, "only {} calls were tried", called.len());
}
