//! Builds the patched collector for real and holds it against the distribution's.

use std::collections::BTreeSet;
use std::process::Command;

use barchan_boehm::series::CHOICES;
use barchan_boehm::tool::Tool;
use barchan_boehm::{Collector, Flavour, Layout, SystemCollector, build, elf, libbarchan};

fn patched() -> Collector {
    let layout = Layout::new(Layout::compiled_root()).expect("the tests run in a checkout");
    build(&layout, Flavour::PATCHED, &mut |line| eprintln!("{line}")).expect("patched builds")
}

#[test]
fn exports_every_symbol_of_the_distribution_and_none_of_the_library() {
    let ours = elf::exports(&patched().library_dir().join("libgc.so.1")).expect("nm");
    let leaked: Vec<_> = ours.iter().filter(|name| name.starts_with("barchan_")).collect();
    assert!(leaked.is_empty(), "the library linked in shows: {leaked:?}");

    let system = match SystemCollector::find() {
        Ok(system) => system,
        Err(error) => {
            eprintln!("SKIPPED: nothing to compare with: {error}");
            return;
        }
    };
    let theirs = elf::exports(&system.library_dir().join("libgc.so.1")).expect("nm");
    assert!(theirs.len() > 250, "only {} symbols read", theirs.len());
    let missing: Vec<_> = theirs.difference(&ours).collect();
    assert!(missing.is_empty(), "not exported: {missing:?}");
}

#[test]
fn needs_no_file_that_the_stock_collector_does_not_bring() {
    let library = patched().library_dir().join("libgc.so.1");
    let dynamic = Tool::new("readelf").args(["--dynamic", "--wide"]).arg(&library).run();
    let dynamic = dynamic.expect("readelf");
    let needed: BTreeSet<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0))
        .collect();
    assert!(needed.contains("libc.so.6"), "{needed:?}");
    assert!(!needed.iter().any(|name| name.contains("barchan")), "{needed:?}");
}

#[test]
fn brings_the_library_header_and_pkg_config_file() {
    let prefix = patched().prefix();
    let shared = prefix.join("lib").join(libbarchan::SONAME);
    assert_eq!(elf::soname(&shared).expect("soname"), libbarchan::SONAME);
    for wanted in ["lib/libbarchan.a", "lib/libbarchan.so", "include/barchan.h"] {
        assert!(prefix.join(wanted).exists(), "no {wanted}");
    }
    let output = match Command::new("pkg-config")
        .args(["--cflags", "--libs", "barchan"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: pkg-config cannot be started: {error}");
            return;
        }
    };
    let flags = String::from_utf8_lossy(&output.stdout);
    let include = format!("-I{}", prefix.join("include").display());
    assert!(flags.contains(&include) && flags.contains("-lbarchan"), "{flags}");
}

/// What the collector logs and how it ends, with one variable set beside those that turn
/// incremental collection and the log on.
fn log_of_incremental_run(name: &str, value: &str) -> String {
    let output = Command::new(patched().tests_dir().join("realloctest"))
        .env_remove("BARCHAN_TRACKER")
        .env_remove("GC_DISABLE_BARCHAN")
        .envs([
            ("GC_ENABLE_INCREMENTAL", "1"),
            ("GC_PRINT_STATS", "1"),
            ("GC_PRINT_VERBOSE_STATS", "1"), // to hear upstream's mprotect strategy
            (name, value),
        ])
        .output()
        .expect("realloctest starts");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}={value}: {}\n{log}", output.status);
    log
}

/// Whether it is one of upstream's own strategies that the log names.
fn fell_back(log: &str) -> bool {
    // The strategies that upstream has for Linux on x86-64; each names itself once.
    ["Using Linux userfaultfd subsystem", "Initializing mprotect virtual dirty bit"]
        .iter()
        .any(|line| log.contains(line))
}

#[test]
fn says_why_it_cannot_track_and_falls_back() {
    let log = log_of_incremental_run("BARCHAN_TRACKER", "no-such-tracker");
    assert!(log.contains("Barchan cannot track writes: "), "{log}");
    assert!(log.contains("known are ") && log.contains("pagemap-scan"), "no reason: {log}");
    assert!(!log.contains("Using Barchan"), "{log}");
    assert!(fell_back(&log), "no strategy is named: {log}");

    let log = log_of_incremental_run("GC_DISABLE_BARCHAN", "1");
    assert!(log.contains("disabled by GC_DISABLE_BARCHAN"), "{log}");
    assert!(!log.contains("Using Barchan") && fell_back(&log), "{log}");
}

#[test]
fn switches_off_what_is_named_and_reports_what_is_not_known() {
    let log = log_of_incremental_run("GC_BARCHAN_OFF", &CHOICES.join(","));
    for name in CHOICES {
        assert!(
            log.contains(&format!("Switched off by GC_BARCHAN_OFF: {name}\n")),
            "{name}: {log}"
        );
    }
    assert!(!log.contains("unknown name"), "{log}");

    let log = log_of_incremental_run("GC_BARCHAN_OFF", "heat,,heat-up,");
    assert_eq!(log.matches("Switched off by GC_BARCHAN_OFF: ").count(), 1, "{log}");
    assert_eq!(log.matches("unknown name").count(), 1, "{log}");
    assert!(log.contains("GC_BARCHAN_OFF has an unknown name: heat-up\n"), "{log}");
}

#[test]
fn logs_the_source_that_it_uses() {
    for source in ["pagemap-scan", "mprotect", "all-dirty"] {
        let log = log_of_incremental_run("BARCHAN_TRACKER", source);
        if log.contains(&format!("tracker {source} is not available")) {
            eprintln!("SKIPPED: {source} is not on this machine, and the collector says so");
            assert!(fell_back(&log), "no strategy is named: {log}");
            continue;
        }
        assert!(log.contains(&format!("Using Barchan virtual dirty bits: {source}")), "{log}");
    }
}
