//! Programs that crash, are killed, or run out of memory: signal, core and address as natively.

use crate::same::{Case, available, installed};

#[test]
fn programs_that_crash_end_as_natively() {
    for (signal, status) in
        [("SEGV", 139), ("ABRT", 134), ("KILL", 137), ("FPE", 136), ("INT", 130)]
    {
        // In a shell's background SIGINT is ignored, and no shell changes that.
        let script = format!("env --default-signal bash -c 'kill -{signal} $$'; echo $?");
        let says = format!("{status}\n");
        Case { command: &["bash", "-c", &script], status: 0, says: &says, runs: 2 }.same();
    }
}

/// `crash.c` does each in a child, and prints how that ended; the signal's number is the test's own.
#[test]
fn each_way_to_crash_ends_as_natively() {
    if !available() || !installed("cc") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("crash");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dune/crash.c");
    let mut compiler = std::process::Command::new("cc");
    let made =
        compiler.args(["-O0", "-w", "-pthread", source, "-lutil", "-o"]).arg(&program).status();
    assert!(made.expect("cc starts").success());
    let program = program.to_str().expect("UTF-8");
    for (way, says) in [
        ("null", "signal 11 "),
        ("null-handled", "handled 11 code 1 at 0x0"),
        ("wild-handled", "handled 11 code 1 at 0x123456789000"),
        ("overflow", "signal 11 "),
        ("overflow-thread", "signal 11 "),
        ("abort", "signal 6 "),
        ("divide", "signal 8 "),
        ("illegal", "signal 4 "),
        ("trap", "signal 5 "),
        ("kill", "signal 9 core 0"),
        ("kill-spinning", "signal 9 core 0"),
        ("ctrl-c", "signal 2 core 0"),
        ("ctrl-c-spinning", "signal 2 core 0"),
        ("ctrl-c-handled", "exit 7"),
        ("ctrl-backslash", "signal 3 "),
        ("memory", "exit 5"),
    ] {
        Case { command: &[program, way], status: 0, says, runs: 3 }.same();
    }
    // Where the system writes cores to files at all, it writes one here.
    if std::fs::read_to_string("/proc/sys/kernel/core_pattern").is_ok_and(|p| p.trim() == "core") {
        Case { command: &[program, "null"], status: 0, says: "core 1", runs: 1 }.same();
    }
}
