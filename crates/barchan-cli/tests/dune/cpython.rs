//! CPython's own regression tests, of Debian's package libpython3.11-testsuite: each test ends in guest mode as
//! it does natively, passed, failed or skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::same::{asked_runs, available, barchan, finish};

const PYTHON: &str = "/usr/bin/python3";

/// What became of each test, from the JUnit file that regrtest writes.
fn results(xml: &str) -> BTreeMap<String, &'static str> {
    xml.split("<testcase ")
        .skip(1)
        .map(|case| {
            let name = case.split("name=\"").nth(1).and_then(|rest| rest.split('"').next());
            let case = case.split("</testcase>").next().unwrap_or(case);
            let became = ["failure", "error", "skipped"]
                .into_iter()
                .find(|what| case.contains(&format!("<{what}")))
                .unwrap_or("passed");
            (name.expect("a name").to_owned(), became)
        })
        .collect()
}

/// Runs the tests of `module`; how often if nobody says, 0: not at all.
fn module(module: &str, runs: u32) {
    if asked_runs().unwrap_or(runs) == 0 {
        println!("skipped: {module} takes a minute or more; BARCHAN_DUNE_RUNS=1 runs it");
        return;
    }
    if !available() {
        return;
    }
    let there = format!("import test.{module}");
    if !Command::new(PYTHON).args(["-c", &there]).status().is_ok_and(|s| s.success()) {
        println!("skipped: {PYTHON} has no {module} (cargo xtask setup --test)");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let xml = directory.path().join("results.xml");
    let run = |mut command: Command| {
        let _ = std::fs::remove_file(&xml);
        // Natively too these hang on machines whose vsock has no loopback.
        command.args(["-m", "test", "-v", "--ignore", "*VSOCK*", "--junit-xml"]).arg(&xml);
        command.arg(module);
        command.current_dir(directory.path()).env_remove("PYTHONUNBUFFERED");
        let end = finish(&mut command);
        (end, std::fs::read_to_string(&xml).map(|text| results(&text)).unwrap_or_default())
    };
    let (native, expected) = run(Command::new(PYTHON));
    assert_eq!(native.status.code(), Some(0), "natively: {}{}", native.stdout, native.stderr);
    assert!(expected.values().any(|became| *became == "passed"), "natively: {expected:?}");
    for round in 0..asked_runs().unwrap_or(runs) {
        let mut command = barchan();
        command.args(["run", "--dune", "--", PYTHON]);
        let (guest, got) = run(command);
        let said = format!("round {round}: {}{}", guest.stdout, guest.stderr);
        assert!(guest.stderr.contains("guest mode "), "it was not in guest mode: {said}");
        let names: BTreeSet<_> = got.keys().chain(expected.keys()).collect();
        let differ: Vec<_> = names
            .into_iter()
            .filter(|name| got.get(*name) != expected.get(*name))
            .map(|name| {
                format!("{name}: natively {:?}, here {:?}", expected.get(name), got.get(name))
            })
            .collect();
        assert!(differ.is_empty(), "{differ:#?}\n{said}");
        assert_eq!(guest.status.code(), Some(0), "{said}");
    }
}

#[test]
fn test_mmap() {
    module("test_mmap", 2);
}

#[test]
fn test_time() {
    module("test_time", 1);
}

#[test]
fn test_fork1() {
    module("test_fork1", 1);
}

#[test]
fn test_os() {
    module("test_os", 0);
}

#[test]
fn test_socket() {
    module("test_socket", 0);
}

#[test]
fn test_threading() {
    module("test_threading", 0);
}

#[test]
fn test_signal() {
    module("test_signal", 0);
}

#[test]
fn test_subprocess() {
    module("test_subprocess", 0);
}

#[test]
fn results_are_told_apart() {
    let xml = "<testsuite><testcase name=\"a.b\" status=\"run\"><system-out>x</system-out></testcase>\
               <testcase name=\"c\"><failure type=\"E\">t</failure></testcase>\
               <testcase name=\"d\"><skipped>y</skipped></testcase></testsuite>";
    let expected = [("a.b", "passed"), ("c", "failure"), ("d", "skipped")];
    assert_eq!(results(xml), expected.map(|(name, what)| (name.to_owned(), what)).into());
}
