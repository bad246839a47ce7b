//! Running a program natively and in guest mode, and comparing.
//!
//! What a program does natively is not taken on trust: each test says with which status it ends and a text
//! that it prints, so that "not found" is never equal to "not found".

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Emulated hosts and busy machines are slow.
const LIMIT: Duration = Duration::from_secs(600);

/// How often each program runs in guest mode, if `BARCHAN_DUNE_RUNS` says so.
pub(crate) fn asked_runs() -> Option<u32> {
    std::env::var("BARCHAN_DUNE_RUNS").ok().and_then(|n| n.parse().ok())
}

/// How a program ended, and what it printed.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command, or panics when it takes too long. Output goes to files: no pipe can be full. Time in which the
/// machine, or this process with the command, stood still does not count.
pub(crate) fn finish(command: &mut Command) -> End {
    finish_within(LIMIT, command)
}

fn finish_within(limit: Duration, command: &mut Command) -> End {
    let directory = tempfile::tempdir().expect("a directory");
    let [out, err] = ["out", "err"].map(|name| directory.path().join(name));
    let file = |path| std::fs::File::create(path).expect("a file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file(&out))
        .stderr(file(&err))
        .spawn()
        .expect("it starts");
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).expect("a file")).into_owned();
    let (mut passed, mut last) = (Duration::ZERO, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        passed += last.elapsed().min(Duration::from_secs(1));
        last = Instant::now();
        if passed > limit {
            kill_all(child.id());
            let _ = child.wait();
            panic!("{command:?} did not end within {limit:?}: {}{}", read(&out), read(&err));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    End { status, stdout: read(&out), stderr: read(&err) }
}

/// Kills a process and all that come from it, in whatever groups and sessions they are. They are stopped before: none
/// makes another meanwhile, or leaves its own to somebody else by ending.
fn kill_all(first: u32) {
    let signal = |signal, processes: &[u32]| {
        let processes = processes.iter().map(u32::to_string);
        let _ = Command::new("kill").arg(signal).args(processes).stderr(Stdio::null()).status();
    };
    let (mut all, mut stopped) = (vec![first], 0);
    while stopped < all.len() {
        signal("-STOP", &all[stopped..]);
        stopped = all.len();
        let new = |(process, parent)| {
            (all.contains(&parent) && !all.contains(&process)).then_some(process)
        };
        all.extend(parents().into_iter().filter_map(new).collect::<Vec<_>>());
    }
    signal("-KILL", &all);
}

/// All processes that have not ended, each with its parent.
fn parents() -> Vec<(u32, u32)> {
    let of = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let alive = fields.next()? != "Z";
        Some((process, fields.next()?.parse().ok()?)).filter(|_| alive)
    };
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

pub(crate) fn barchan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barchan"));
    command.env_remove("BARCHAN_ROOT").env_remove("LD_PRELOAD");
    command
}

/// Whether guest mode works here, tried once; prints why not.
pub(crate) fn available() -> bool {
    static FOUND: OnceLock<Value> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let output = finish(barchan().args(["doctor", "--json"]));
        let mut report: Value = serde_json::from_str(&output.stdout).expect("JSON");
        report["guest_mode"].take()
    });
    let available = found["available"] == true;
    if !available {
        println!("skipped: no guest mode here: {}", found["why"]);
    }
    available
}

/// Whether `program` is there; prints that it is not.
pub(crate) fn installed(program: &str) -> bool {
    // Not every shell knows the option; that it starts is enough.
    let there = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !there {
        println!("skipped: {program} is not installed (cargo xtask setup --test)");
    }
    there
}

/// A program to run, and what it must come to natively.
pub(crate) struct Case<'a> {
    /// How to call it.
    pub(crate) command: &'a [&'a str],
    /// The exit status.
    pub(crate) status: i32,
    /// Part of the standard output.
    pub(crate) says: &'a str,
    /// How often it runs in guest mode if nobody says.
    pub(crate) runs: u32,
}

impl Case<'_> {
    /// Compares the program in guest mode with itself natively, if it and guest mode are here.
    pub(crate) fn same(&self) {
        self.same_but_for(|stdout| stdout.to_owned());
    }

    /// As [`Self::same`]; of the output only what `of` makes of it is compared.
    pub(crate) fn same_but_for(&self, of: impl Fn(&str) -> String) {
        let [program, arguments @ ..] = self.command else { panic!("no program") };
        if !available() || !program.starts_with('/') && !installed(program) {
            return;
        }
        let native = self.native();
        let directory = tempfile::tempdir().expect("a directory");
        let stats = directory.path().join("stats.json");
        for run in 0..asked_runs().unwrap_or(self.runs) {
            let mut command = barchan();
            command.args(["run", "--dune", "--stats"]).arg(&stats).args(["--", program]);
            let guest = finish(command.args(arguments));
            let said = &guest.stderr;
            assert_eq!(of(&guest.stdout), of(&native.stdout), "run {run}: {said}");
            assert_eq!(guest.status.code(), native.status.code(), "run {run}: {said}");
            let text = std::fs::read_to_string(&stats).expect("counts");
            let counts: Value = serde_json::from_str(&text).expect("JSON");
            let processes = counts["guest_processes"].as_array().expect("a list");
            assert!(!processes.is_empty(), "it was not in guest mode: {said}");
            assert!(processes.iter().any(|p| p["exits"].as_u64() > Some(0)), "{text}");
        }
    }

    /// What it does natively, which must be what the test says.
    fn native(&self) -> End {
        let [program, arguments @ ..] = self.command else { panic!("no program") };
        let native = finish(Command::new(program).args(arguments));
        assert_eq!(
            (native.status.code(), native.status.signal()),
            (Some(self.status), None),
            "natively: {}{}",
            native.stdout,
            native.stderr
        );
        let says = native.stdout.contains(self.says);
        assert!(says, "natively no {:?}: {}{}", self.says, native.stdout, native.stderr);
        native
    }
}

#[test]
#[should_panic(expected = "natively")]
fn a_program_that_is_not_there_is_no_success() {
    let command = &["sh", "-c", "a-program-that-is-not-there; echo done"];
    Case { command, status: 0, says: "some output", runs: 1 }.native();
}

#[test]
#[should_panic(expected = "natively")]
fn a_program_that_fails_natively_is_no_success() {
    let command = &["sh", "-c", "exec a-program-that-is-not-there"];
    Case { command, status: 0, says: "", runs: 1 }.native();
}

#[test]
fn what_takes_too_long_leaves_nobody_behind() {
    // One in a session of its own, and one whose parent is not the first.
    let script = "echo; setsid sleep 1000 & echo $!; (sleep 1000 & echo $!; wait); wait";
    let ended = std::panic::catch_unwind(|| {
        finish_within(Duration::from_secs(2), Command::new("sh").args(["-c", script]));
    });
    let said = ended.expect_err("it does not end").downcast::<String>().expect("a text");
    let started: Vec<u32> = said.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(started.len(), 2, "{said}");
    let start = Instant::now();
    while parents().iter().any(|(process, _)| started.contains(process)) {
        assert!(start.elapsed() < Duration::from_secs(60), "one of {started:?} is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}
