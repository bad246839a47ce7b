//! `cargo xtask guest-test` itself: what fails in a guest is reported as failed, in time, and
//! nothing is a success by accident. Each test boots a machine (QEMU, some seconds).

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// One machine at a time: two would slow each other down to their limits.
static ONE: Mutex<()> = Mutex::new(());

/// Why no guest can be run here, if so.
static LACKS: LazyLock<Option<String>> = LazyLock::new(|| {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = ["qemu-system-x86_64", "busybox", "gcc-12"]
        .into_iter()
        .find(|program| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    missing.map(|program| format!("{program} is missing (cargo xtask setup --guest)"))
});

struct Outcome {
    success: bool,
    text: String,
}

impl Outcome {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Self { success: output.status.success(), text }
    }

    #[track_caller]
    fn passes(&self) {
        assert!(self.success && self.text.contains("passed in"), "{}", self.text);
    }

    #[track_caller]
    fn fails_with(&self, why: &str) {
        assert!(!self.success && self.text.contains("FAILED"), "{}", self.text);
        assert!(self.text.contains(why), "{why:?} is not in\n{}", self.text);
    }
}

/// Runs a shell script in a guest; `None`, with the reason printed, where that is not possible.
fn guest(options: &[&str], script: &str) -> Option<Outcome> {
    if let Some(why) = &*LACKS {
        println!("skipped: {why}");
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let output = command(options, script).output().expect("xtask starts");
    Some(Outcome::of(&output))
}

/// Without KVM in the guest, unless `options` has [`KVM`].
fn command(options: &[&str], script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["guest-test", "--host", "tcg", "--skip-setup"]);
    if !options.contains(&KVM) {
        command.arg("--no-kvm");
    }
    command.args(options.iter().filter(|option| **option != KVM));
    command.args(["--", "/bin/sh", "-c", script]);
    command
}

/// An option of this file's.
const KVM: &str = "with KVM";

/// The module that misbehaves, built for the guest's kernel; `None` where guests cannot be run.
fn faulty(fault: &str) -> Option<String> {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        // Fetches the kernel with its headers, if it is not there.
        guest(&[], "true").expect("guests can be run").passes();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = root.canonicalize().expect("the checkout is there");
        let dir = root.join("build/guest/faulty");
        fs::create_dir_all(&dir).expect("build/ is writable");
        for name in ["Kbuild", "faulty.c"] {
            let source = root.join("xtask/tests/guest_test/faulty").join(name);
            fs::copy(source, dir.join(name)).expect("build/ is writable");
        }
        let output = Command::new("make")
            .arg("-C")
            .arg(root.join("build/guest/kernel/6.1/build"))
            .arg(format!("M={}", dir.display()))
            .arg("modules")
            .output()
            .expect("make starts");
        assert!(output.status.success(), "{}", Outcome::of(&output).text);
        dir.join("faulty.ko")
    });
    if let Some(why) = &*LACKS {
        println!("skipped: {why}");
        return None;
    }
    Some(format!("{} fault={fault}", BUILT.display()))
}

#[test]
fn success_is_reported_with_the_tests_output() {
    let Some(outcome) = guest(&["--env", "WORD=it's"], "echo \"$WORD me\"; uname -r; nproc") else {
        return;
    };
    outcome.passes();
    for line in ["it's me", "2"] {
        assert!(outcome.text.lines().any(|l| l == line), "{line}: {}", outcome.text);
    }
    assert!(outcome.text.lines().any(|l| l.starts_with("6.1.")), "{}", outcome.text);
}

#[test]
fn a_test_that_fails_is_reported_as_failed() {
    let Some(outcome) = guest(&[], "exit 3") else { return };
    outcome.fails_with("dash failed with exit status 3");
}

#[test]
fn a_test_that_crashes_is_reported_with_its_signal() {
    let Some(outcome) = guest(&[], "kill -SEGV $$") else { return };
    outcome.fails_with("was ended by signal 11");
}

#[test]
fn a_hang_ends_in_time() {
    let start = Instant::now();
    let Some(outcome) = guest(&["--timeout", "20"], "echo here; sleep 1000") else { return };
    outcome.fails_with("not done after 20 s");
    outcome.fails_with("began and did not end");
    assert!(outcome.text.contains("here\n"), "{}", outcome.text);
    assert!(start.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_machine_that_goes_away_is_no_success() {
    let Some(outcome) = guest(&[], "echo o >/proc/sysrq-trigger; sleep 1000") else { return };
    outcome.fails_with("the emulator ended early");
}

#[test]
fn a_panic_is_noticed_at_once() {
    let Some(outcome) = guest(&[], "echo c >/proc/sysrq-trigger; sleep 1000") else { return };
    outcome.fails_with("the kernel panicked");
    assert!(outcome.text.contains("sysrq triggered crash"), "{}", outcome.text);
}

#[test]
fn lines_that_look_like_a_verdict_do_not_count() {
    let script = "for w in 'status 0 0' end; do echo \"@0123456789abcdef $w\"; done; exit 1";
    let Some(outcome) = guest(&[], script) else { return };
    outcome.fails_with("failed with exit status 1");
}

#[test]
fn a_console_that_was_silenced_is_no_success() {
    let Some(outcome) = guest(&[], "dmesg -n 1") else { return };
    outcome.fails_with("the kernel's console does not show the marks of this run");
}

/// QEMU does not stand it that the kernel changes its code with the first virtual machine and after the last
/// (`xtask/src/guest/tcg.rs`).
#[test]
fn a_virtual_machine_is_held_while_the_test_runs() {
    // KVM has a directory for each machine, named by process and descriptor.
    let Some(outcome) = guest(&[KVM], "ls -d /sys/kernel/debug/kvm/*-*") else { return };
    outcome.passes();
    let Some(outcome) = guest(&[], "ls -d /sys/kernel/debug/kvm/*-*") else { return };
    outcome.fails_with("dash failed with exit status");
}

#[test]
fn a_module_is_loaded_for_the_test_and_unloaded_after_it() {
    let Some(module) = faulty("none") else { return };
    guest(&["--module", &module], "grep -q '^faulty ' /proc/modules").expect("checked").passes();
    guest(&["--module", &module], "rmmod faulty")
        .expect("checked")
        .fails_with("the module faulty could not be unloaded");
    guest(&["--module", &module.replace("none", "refuse")], "true")
        .expect("checked")
        .fails_with("the module faulty could not be loaded");
}

#[test]
fn a_warning_of_the_kernel_fails_a_test_that_succeeds() {
    for fault in ["warn", "late"] {
        let Some(module) = faulty(fault) else { return };
        let outcome = guest(&["--module", &module], "true").expect("checked");
        outcome.fails_with("the kernel says: ");
        outcome.fails_with("tainted by a bug (bits 0x200)");
        guest(
            &[
                "--module",
                &module,
                "--allow",
                "faulty",
                "--allow",
                "cut here",
                "--allow",
                "Call Trace",
            ],
            "true",
        )
        .expect("checked")
        .passes();
    }
}

#[test]
fn an_oops_ends_the_run() {
    let Some(module) = faulty("oops") else { return };
    let outcome = guest(&["--module", &module], "true").expect("checked");
    outcome.fails_with("the kernel panicked");
    outcome.fails_with("NULL pointer dereference");
}

#[test]
fn a_module_for_another_kernel_is_refused_before_booting() {
    let Some(module) = faulty("none") else { return };
    let outcome = guest(&["--kernel", "6.12", "--module", &module], "true").expect("checked");
    assert!(!outcome.success && outcome.text.contains("was built for another kernel"));
}

#[test]
fn files_go_in_and_come_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, result) = (dir.path().join("in"), dir.path().join("out"));
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(&source, &bytes).expect("the directory is writable");
    let file = format!("{}:/data/in", source.display());
    let fetch = format!("/tmp/out:{}", result.display());
    let script = "cat /data/in /data/in >/tmp/out";
    let Some(outcome) = guest(&["--file", &file, "--fetch", &fetch], script) else { return };
    outcome.passes();
    assert_eq!(fs::read(&result).expect("it came out"), [&bytes[..], &bytes[..]].concat());
    let outcome = guest(&["--fetch", "/tmp/none"], "true").expect("checked");
    outcome.fails_with("the guest sent no /tmp/none");
}

#[test]
fn an_interrupt_leaves_no_emulator_behind() {
    if let Some(why) = &*LACKS {
        println!("skipped: {why}");
        return;
    }
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for signal in ["TERM", "KILL"] {
        let mark = format!("unique-{}-{signal}", std::process::id());
        let mut xtask = command(&["--append", &mark], "sleep 1000")
            .process_group(0)
            .spawn()
            .expect("xtask starts");
        let deadline = Instant::now() + Duration::from_secs(120);
        while emulators(&mark) == 0 {
            assert!(Instant::now() < deadline, "no emulator was started");
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = Command::new("kill").args(["-s", signal, &xtask.id().to_string()]).status();
        assert!(status.expect("kill starts").success());
        xtask.wait().expect("xtask is our child");
        let deadline = Instant::now() + Duration::from_secs(30);
        while emulators(&mark) > 0 {
            assert!(Instant::now() < deadline, "the emulator survived SIG{signal}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// How many QEMUs run with `mark` on their command line.
fn emulators(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter(|line| line.starts_with("qemu") && line.contains(mark)).count()
}
