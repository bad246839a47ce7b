//! The patched collector in guest mode: its benchmark programs, and programs that Debian built.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use barchan_boehm::{Collector, Flavour, Layout};
use serde_json::Value;

use crate::same::{asked_runs, available, barchan, finish, installed};

/// The sources that there are in guest mode only, and the modes.
const SOURCES: [&str; 3] = ["guest-pte", "guest-tlb", "guest-direct"];
const MODES: [&str; 2] = ["generational", "incremental"];

/// Whether the patched collector is built; prints that it is not.
fn built() -> bool {
    let library =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../build/collector/patched/prefix/lib/libgc.so.1");
    let built = Path::new(library).exists();
    if !built {
        println!("skipped: the collector is not built: barchan build");
    }
    built
}

/// Runs a command on the patched collector in guest mode, which must end well; its output.
#[track_caller]
fn run(command: &[&str], source: &str, mode: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let stats = directory.path().join("stats.json");
    let output = finish(
        barchan()
            .args(["run", "--dune", "--tracker", source, "--mode", mode, "--stats"])
            .arg(&stats)
            .arg("--")
            .args(command)
            .env("LC_ALL", "C.UTF-8"),
    );
    let said = &output.stderr;
    assert!(output.status.success(), "{command:?}, {source}, {mode}: {}: {said}", output.status);
    let text = std::fs::read(&stats).expect("written");
    let stats: Value = serde_json::from_slice(&text).expect("JSON");
    assert!(stats["guest_processes"][0]["exits"].as_u64() > Some(0), "{stats}");
    let process = &stats["processes"][0];
    assert_eq!(process["source"], source, "{stats}");
    assert!(process["dirty_bits"]["pages_armed"].as_u64() > Some(0), "{stats}");
    output.stdout
}

#[test]
fn the_collector_on_the_guests_page_tables() {
    let workload = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build/workloads/gcbench");
    if !built() || !available() {
        return;
    }
    if !Path::new(workload).exists() {
        println!("skipped: the workloads are not built: barchan build");
        return;
    }
    let command = [workload, "--scale", "0.1", "--stretch-depth", "15", "--long-depth", "13"];
    let command = [&command[..], &["--max-depth", "12", "--json"]].concat();
    for (source, mode) in SOURCES.into_iter().flat_map(|s| MODES.map(|mode| (s, mode))) {
        let printed = run(&command, source, mode);
        let result: Value = serde_json::from_str(&printed).expect("one line of JSON");
        assert_eq!(result["ok"], true, "it checks its own results: {result}");
        assert_eq!(result["incremental"], true, "{result}");
    }
}

/// bdwgc's programs that are about dirty bits: they must have had pages armed.
const ABOUT_DIRTY_BITS: [&str; 2] = ["gctest", "dirtybitstest"];

/// What gctest says when the heap is larger than it expects; in incremental mode the pace follows the clock, and it
/// happens natively as well (`crates/barchan-boehm/tests/upstream_tests.rs`).
const HEAP_BOUND: &str = "Unexpected heap growth";

/// The collector that is built.
fn collector() -> Collector {
    let layout = Layout::new(Layout::compiled_root()).expect("a checkout");
    Collector::built(&layout, Flavour::PATCHED).expect("it is built")
}

/// Threads are stopped by signals while handlers of protected pages run.
#[test]
fn gctest_on_handlers_of_protected_pages() {
    if !built() || !available() {
        return;
    }
    passes(&collector().tests_dir().join("gctest"), "guest-direct", "generational", 0);
}

#[test]
fn bdwgcs_own_programs() {
    if asked_runs().is_none() {
        println!(
            "skipped: half an hour and more on a host that shadows page tables; set BARCHAN_DUNE_RUNS=1"
        );
        return;
    }
    if !built() || !available() {
        return;
    }
    let tests = collector().tests_dir();
    let programs = collector().declared_tests().expect("cmake's list of tests");
    assert!(programs.len() >= 20, "bdwgc's tests are missing: {programs:?}");
    for program in &programs {
        let path = tests.join(program);
        for (source, mode) in SOURCES.into_iter().flat_map(|s| MODES.map(|mode| (s, mode))) {
            let left = if mode == "incremental" { 2 } else { 0 };
            passes(&path, source, mode, left);
            println!("{program} on {source}, {mode}: ok");
        }
    }
}

/// Runs one of bdwgc's programs in guest mode, which must end well; `again` so many times if all that it says is that
/// the heap has grown.
#[track_caller]
fn passes(program: &Path, source: &str, mode: &str, again: u32) {
    let directory = tempfile::tempdir().expect("a directory");
    let stats = directory.path().join("stats.json");
    let mut command = barchan();
    command.args(["run", "--dune", "--tracker", source, "--mode", mode, "--stats"]).arg(&stats);
    // It is about dirty bits, so none of the collections that need none.
    command.arg("--").arg(program).env("GC_BARCHAN_POLICY", "partial");
    let output = finish(command.current_dir(directory.path()));
    let said = format!("{}{}", output.stdout, output.stderr);
    if again > 0 && !output.status.success() && said.contains(HEAP_BOUND) {
        println!("again: the heap outgrew gctest's bound");
        return passes(program, source, mode, again - 1);
    }
    let what = format!("{}, {source}, {mode}", program.display());
    assert!(output.status.success(), "{what}: {}: {said}", output.status);
    let text = std::fs::read(&stats).expect("written");
    let stats: Value = serde_json::from_slice(&text).expect("JSON");
    assert!(stats["guest_processes"][0]["exits"].as_u64() > Some(0), "{what}: {stats}");
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if ABOUT_DIRTY_BITS.contains(&name) {
        let process = &stats["processes"][0];
        assert_eq!(process["source"], source, "{what}: {stats}");
        assert!(process["dirty_bits"]["pages_armed"].as_u64() > Some(0), "{what}: {stats}");
    }
}

/// A program prints on the patched collector in guest mode what it prints natively on its own.
#[track_caller]
fn prints_the_same(command: &[&str]) {
    if !built() || !installed(command[0]) || !available() {
        return;
    }
    let mut native = Command::new(command[0]);
    let native = finish(native.args(&command[1..]).env("LC_ALL", "C.UTF-8"));
    assert!(native.status.success(), "natively: {}: {}", native.status, native.stderr);
    assert!(native.stdout.len() > 200, "natively it prints next to nothing: {}", native.stdout);
    let sources = if asked_runs().is_some() { &SOURCES[..] } else { &SOURCES[..1] };
    for (source, mode) in sources.iter().flat_map(|s| MODES.map(|mode| (s, mode))) {
        let printed = run(command, source, mode);
        assert!(printed == native.stdout, "{source}, {mode}: another output: {printed}");
        println!("{} on {source}, {mode}: same output", command[0]);
    }
}

/// A script of the native comparison (`tests/programs.rs`).
fn script(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A file with what `line` says of the numbers below `count`.
fn file(count: u64, line: impl Fn(&mut String, u64)) -> tempfile::NamedTempFile {
    let mut text = String::new();
    (0..count).for_each(|number| line(&mut text, number));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("a file to read");
    file
}

fn lines() -> tempfile::NamedTempFile {
    file(2_000, |text, n| writeln!(text, "line {n} of the file, {}", n * n).expect("a String"))
}

#[test]
fn guile_on_the_collector() {
    let lines = lines();
    let path = lines.path().to_string_lossy().into_owned();
    prints_the_same(&["guile", "--no-auto-compile", "-q", &script("heap.scm"), &path]);
}

#[test]
fn ecl_on_the_collector() {
    let lines = lines();
    let path = format!("HEAP_FILE={}", lines.path().display());
    // `env` is what finds ecl, so that natively and here the same variable is set.
    if installed("ecl") {
        let script = script("heap.lisp");
        prints_the_same(&["env", &path, "ecl", "--norc", "--shell", &script]);
    }
}

#[test]
fn w3m_on_the_collector() {
    let rows = file(1_000, |text, n| {
        let head = if n == 0 { "<table border=1>" } else { "" };
        writeln!(text, "{head}<tr><td>{n}</td><td>row {n}</td><td><b>{}</b></td></tr>", n * n)
            .expect("a String");
    });
    let path = rows.path().to_string_lossy().into_owned();
    prints_the_same(&["w3m", "-dump", "-cols", "80", "-T", "text/html", &path]);
}
