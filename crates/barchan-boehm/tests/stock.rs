//! Builds the stock collector for real and looks at what came out.

use std::path::{Path, PathBuf};
use std::process::Command;

use barchan_boehm::{Collector, Flavour, Layout, SystemCollector, build, elf};

fn stock() -> Collector {
    let layout = Layout::new(Layout::compiled_root()).expect("the tests run in a checkout");
    build(&layout, Flavour::STOCK, &mut |line| eprintln!("{line}")).expect("stock builds")
}

fn compile(source: &str, collector: &Collector, out: &Path) -> PathBuf {
    let c = out.join("program.c");
    std::fs::write(&c, source).expect("write");
    let program = out.join("program");
    let status = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(&c)
        .arg("-I")
        .arg(collector.prefix().join("include"))
        .arg("-L")
        .arg(collector.library_dir())
        .arg("-lgc")
        .status()
        .expect("cc runs");
    assert!(status.success());
    program
}

#[test]
fn a_second_build_is_skipped() {
    stock();
    let layout = Layout::new(Layout::compiled_root()).expect("the tests run in a checkout");
    let mut lines = Vec::new();
    build(&layout, Flavour::STOCK, &mut |line| lines.push(line.to_owned())).expect("stock builds");
    assert!(lines.iter().any(|line| line == "stock: up to date"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("cmake")), "{lines:?}");
}

#[test]
fn exports_every_symbol_of_the_distribution() {
    let system = match SystemCollector::find() {
        Ok(system) => system,
        Err(error) => {
            eprintln!("SKIPPED: nothing to compare with: {error}");
            return;
        }
    };
    let ours = elf::exports(&stock().library_dir().join("libgc.so.1")).expect("nm");
    let theirs = elf::exports(&system.library_dir().join("libgc.so.1")).expect("nm");
    assert!(theirs.len() > 250, "only {} symbols read", theirs.len());
    let missing: Vec<_> = theirs.difference(&ours).collect();
    assert!(missing.is_empty(), "not exported: {missing:?}");
}

#[test]
fn a_program_runs_on_it() {
    let collector = stock();
    let dir = tempfile::tempdir().expect("temporary directory");
    let source = "#include <gc.h>\n#include <stdio.h>\nint main(void) {\
        GC_INIT(); for (int i = 0; i < 100000; i++) GC_MALLOC(100);\
        printf(\"%u %d\\n\", GC_get_version() >> 16, GC_get_gc_no() > 0); return 0; }";
    let program = compile(source, &collector, dir.path());
    let output = Command::new(program)
        .env("LD_LIBRARY_PATH", collector.library_dir())
        .output()
        .expect("program runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "8 1\n");
}

#[test]
fn upstreams_tests_are_there() {
    let tests = stock().tests_dir();
    for name in ["gctest", "cordtest", "threadleaktest", "disclaimtest", "cpptest"] {
        assert!(tests.join(name).is_file(), "no {name} in {}", tests.display());
    }
}
