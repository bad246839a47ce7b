//! The tests that the CI runs on each host: a test that needs virtualization, or a kernel other than
//! this machine's, is added here.
//!
//! Everything for one host runs in one machine, since booting takes as long as many tests.

use std::path::PathBuf;

use super::kernel::Series;
use super::payload::Test;
use super::{Host, collector, payload};
use crate::cargo;

type Environment = [(String, String)];

/// A test of the suite.
struct Entry {
    package: &'static str,
    /// Its name among the package's integration tests.
    test: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Where it runs.
    wanted: fn(Host, Series) -> bool,
}

/// Where the guest-mode runtime is in the guest.
pub(crate) const RUNTIME: &str = "/test/libbarchan_dune.so";

/// An integration test of `crates/dune`.
const fn runtime(test: &'static str, wanted: fn(Host, Series) -> bool) -> Entry {
    Entry { package: "dune", test, arguments: &["--show-output"], environment: &[], wanted }
}

/// The same, with the program at ring 0.
const fn at_ring_0(test: &'static str, wanted: fn(Host, Series) -> bool) -> Entry {
    let entry = runtime(test, wanted);
    Entry { environment: &[("BARCHAN_DUNE_RING", "0")], ..entry }
}

/// The oracle of the trackers of `crates/barchan`.
const fn oracle(
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    wanted: fn(Host, Series) -> bool,
) -> Entry {
    Entry { package: "barchan", test: "oracle", arguments, environment, wanted }
}

/// For the oracle of the trackers that protect pages.
const IN_GUEST_MODE: &[(&str, &str)] = &[
    ("BARCHAN_ORACLE_ROUNDS", "20"),
    ("BARCHAN_TEST_SOURCES", "guest-tlb,guest-direct"),
    ("LD_PRELOAD", RUNTIME),
];

/// The suite, but for the probe, which begins it.
const SUITE: &[Entry] = &[
    // Debian's kernels have soft-dirty bits, which the kernels of many clouds lack; and 6.1 shows
    // what is done without PAGEMAP_SCAN.
    Entry {
        package: "barchan",
        test: "semantics",
        arguments: &["--show-output"],
        environment: &[],
        wanted: |host, _| host == Host::Tcg,
    },
    Entry {
        package: "barchan",
        test: "mappings",
        arguments: &["--show-output"],
        environment: &[],
        wanted: |host, _| host == Host::Tcg,
    },
    oracle(
        &["--nocapture", "--exact", "soft_dirty"],
        &[("BARCHAN_ORACLE_SECONDS", "10")],
        |host, _| host == Host::Tcg,
    ),
    oracle(
        &["--nocapture", "--exact", "pagemap_scan"],
        &[("BARCHAN_ORACLE_SECONDS", "10")],
        |host, series| host == Host::Tcg && series == Series::V6_12,
    ),
    // The same in guest mode: over the processor's own dirty bits, and over protection, on one kernel each.
    oracle(
        &["--nocapture", "--exact", "guest_pte"],
        &[
            ("BARCHAN_ORACLE_ROUNDS", "60"),
            ("BARCHAN_TEST_SOURCES", "guest-pte"),
            ("LD_PRELOAD", RUNTIME),
        ],
        |host, _| host == Host::Tcg,
    ),
    oracle(&["--nocapture", "--exact", "guest_tlb"], IN_GUEST_MODE, |host, series| {
        host == Host::Tcg && series == Series::V6_1
    }),
    oracle(&["--nocapture", "--exact", "guest_direct"], IN_GUEST_MODE, |host, series| {
        host == Host::Tcg && series == Series::V6_12
    }),
    // Guest mode: the runtime's own tests.
    runtime("enter", |host, _| host != Host::Native),
    runtime("faults", |host, _| host == Host::Tcg),
    runtime("memory", |host, _| host == Host::Tcg),
    runtime("dirty", |host, _| host == Host::Tcg),
    runtime("large", |host, _| host == Host::Tcg),
    runtime("shootdown", |host, _| host == Host::Tcg),
    runtime("protection", |host, _| host == Host::Tcg),
    runtime("signals", |host, _| host == Host::Tcg),
    runtime("tasks", |host, _| host == Host::Tcg),
    runtime("spaces", |host, _| host == Host::Tcg),
    runtime("spaces_tracking", |host, _| host == Host::Tcg),
    // The program at ring 0: what is there only, and then the same as at ring 3.
    runtime("ring0", |host, _| host != Host::Native),
    Entry {
        package: "dune",
        test: "ring0",
        arguments: &["--nocapture", "the_preloaded_runtime"],
        environment: &[("BARCHAN_DUNE_RING", "0"), ("LD_PRELOAD", RUNTIME)],
        wanted: |host, _| host == Host::Tcg,
    },
    at_ring_0("enter", |host, _| host != Host::Native),
    // The kernel makes no difference to these: half a minute on each.
    at_ring_0("faults", |host, series| host == Host::Tcg && series == Series::V6_1),
    at_ring_0("dirty", |host, series| host == Host::Tcg && series == Series::V6_1),
    at_ring_0("protection", |host, series| host == Host::Tcg && series == Series::V6_1),
    at_ring_0("signals", |host, series| host == Host::Tcg && series == Series::V6_12),
    at_ring_0("tasks", |host, series| host == Host::Tcg && series == Series::V6_12),
];

/// Of the patched collector in guest mode (`collector`) what takes some 20 s; all of it takes an hour and more.
const ON_THE_COLLECTOR: [&str; 3] =
    ["dirtybitstest_guest-pte", "subthreadcreatetest_guest-direct", "w3m_guest-pte"];

/// Where that runs.
fn has_collector(host: Host, series: Series) -> bool {
    host == Host::Tcg && series == Series::V6_1
}

/// The names of the runtime's own tests, which run on every host that guest mode runs on.
pub(crate) fn runtime_tests() -> Vec<&'static str> {
    SUITE
        .iter()
        .filter(|entry| entry.package == "dune" && entry.environment.is_empty())
        .map(|entry| entry.test)
        .collect()
}

/// The program of [`probe`].
pub(crate) fn probe_program() -> anyhow::Result<PathBuf> {
    cargo::test_program("kvm-probe", &["--bin", "kvm-probe"], false)
}

/// The test of the host itself.
pub(crate) fn probe(host: Host, environment: &Environment) -> anyhow::Result<Test> {
    let program = probe_program()?;
    let expect = host.kind().map(|kind| ["--expect".to_owned(), kind.to_owned()]);
    let arguments = expect.into_iter().flatten().collect();
    Ok(payload::Test { program, arguments, environment: environment.to_vec() })
}

/// What the suite needs beside its programs: files of this machine, and where they go.
pub(crate) fn files(host: Host, series: Series) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = if has_collector(host, series) { collector::files()? } else { Vec::new() };
    let mut wanted = SUITE.iter().filter(|entry| (entry.wanted)(host, series));
    if wanted.any(|entry| entry.environment.contains(&("LD_PRELOAD", RUNTIME))) {
        files.push((cargo::shared_library("dune-preload", "barchan_dune")?, RUNTIME.to_owned()));
    }
    Ok(files)
}

/// The suite of a host, built.
pub(crate) fn tests(
    host: Host,
    series: Series,
    environment: &Environment,
) -> anyhow::Result<Vec<Test>> {
    let mut tests = vec![probe(host, environment)?];
    for entry in SUITE.iter().filter(|entry| (entry.wanted)(host, series)) {
        let own =
            entry.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        tests.push(Test {
            program: cargo::test_program(entry.package, &["--test", entry.test], false)?,
            arguments: entry.arguments.iter().map(|word| (*word).to_owned()).collect(),
            environment: own.chain(environment.iter().cloned()).collect(),
        });
    }
    if has_collector(host, series) {
        let names = ON_THE_COLLECTOR.map(str::to_owned);
        tests.push(collector::test(host, &names, environment)?);
    }
    Ok(tests)
}
