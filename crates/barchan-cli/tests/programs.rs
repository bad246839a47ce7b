//! Programs that Debian built, run unmodified under the patched collector: guile, ecl, w3m, nix and crystal; and one that
//! crystal compiles.
//!
//! Each runs real work in every mode and must print, byte for byte, what it prints under the
//! distribution's own collector. That it was the patched collector that ran is checked by what the
//! dynamic linker says; that it was in the mode asked for, by the collector's log.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use barchan_boehm::{Collector, Flavour, Layout, SystemCollector, build};
use tempfile::TempDir;

/// How long one run of a program may take, in seconds; it is killed then, and fails. The longest
/// takes a minute on an idle machine.
const LIMIT_S: u32 = 400;

/// `timeout` says this when it had to end the program.
const TIMED_OUT: i32 = 124;

/// How a line of the collector's log begins in the modes that use dirty bits.
const DIRTY_PAGES: &str = "Marked from ";

type Environment = &'static [(&'static str, &'static str)];

/// The collector's modes, as the environment sets them.
const MODES: [(&str, Environment); 3] = [
    ("full", &[]),
    ("incremental", &[("GC_ENABLE_INCREMENTAL", "1"), ("GC_PAUSE_TIME_TARGET", "5")]),
    ("generational", &[("GC_ENABLE_INCREMENTAL", "1"), ("GC_PAUSE_TIME_TARGET", "999999")]),
];

/// The programs use both processors of a small machine: one test at a time, or the time limits
/// would be about something else.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn patched() -> &'static Collector {
    static PATCHED: OnceLock<Collector> = OnceLock::new();
    PATCHED.get_or_init(|| {
        let layout = Layout::new(Layout::compiled_root()).expect("the tests run in a checkout");
        build(&layout, Flavour::PATCHED, &mut |line| eprintln!("{line}")).expect("patched builds")
    })
}

/// A program with its arguments and what it needs in the environment.
struct Subject {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    scratch: TempDir,
}

impl Subject {
    /// Finds the program, or says why the test is skipped.
    fn find(name: &str, package: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some(program) =
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
        else {
            println!("SKIPPED: {name} is not installed (apt-get install {package})");
            return None;
        };
        Self::of(name, program, tempfile::tempdir().expect("a temporary directory"))
    }

    /// Says why the test of this program is skipped, if it is.
    fn of(name: &str, program: PathBuf, scratch: TempDir) -> Option<Self> {
        if let Err(why) = SystemCollector::find() {
            println!("SKIPPED: {name}: nothing to compare with: {why}");
            return None;
        }
        let subject = Self { program, arguments: Vec::new(), environment: Vec::new(), scratch };
        if !subject.linker_says(None).contains("libgc.so.1") {
            println!("SKIPPED: this {name} does not use libgc.so.1");
            return None;
        }
        Some(subject)
    }

    fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// A file for the program to read.
    fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        fs::write(&path, contents).expect("a file for the program");
        path
    }

    /// The program with nothing of the caller's environment that the collector, or the program,
    /// would heed; `collector` in place of the system's.
    fn command(&self, starter: Command, collector: Option<&Collector>) -> Command {
        let mut command = starter;
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["GC_", "BARCHAN_", "GUILE_", "ECL", "NIX_", "CRYSTAL_", "LD_"]
                .iter()
                .any(|own| text.starts_with(own))
            {
                command.env_remove(&name);
            }
        }
        command
            .env("HOME", self.scratch.path())
            .env("LC_ALL", "C.UTF-8")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.scratch.path())
            .stdin(Stdio::null());
        if let Some(collector) = collector {
            command.env("LD_LIBRARY_PATH", collector.library_dir());
        }
        command
    }

    /// Which libraries the program gets.
    fn linker_says(&self, collector: Option<&Collector>) -> String {
        let output = self
            .command(Command::new(&self.program), collector)
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .output()
            .expect("the program starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the program; what went wrong if it did not end well.
    fn run(&self, collector: Option<&Collector>, mode: Environment) -> Result<Vec<u8>, String> {
        let mut timeout = Command::new("timeout");
        timeout.arg("--kill-after=5").arg(LIMIT_S.to_string());
        timeout.arg(&self.program).args(&self.arguments);
        let output = self
            .command(timeout, collector)
            .envs(mode.iter().copied())
            .env("GC_PRINT_STATS", "1")
            .env("GC_LOG_FILE", self.log())
            .output()
            .expect("timeout (coreutils) is needed and starts");
        if output.status.success() { Ok(output.stdout) } else { Err(failure(&output)) }
    }

    /// Where the collector's log of the last run is.
    fn log(&self) -> PathBuf {
        self.scratch.path().join("gc.log")
    }

    /// Whether the collector of the last run looked at dirty pages: it says so in its log for
    /// every collection, unless it runs in full mode.
    fn looked_at_dirty_pages(&self) -> bool {
        let log = fs::read(self.log()).expect("the collector wrote its log");
        String::from_utf8_lossy(&log).lines().any(|line| line.starts_with(DIRTY_PAGES))
    }

    /// Runs it in every mode under the patched collector, and compares with the system's.
    #[track_caller]
    fn compare(&self) {
        let name = self.program.display();
        let ours = self.linker_says(Some(patched()));
        let wanted = patched().library_dir().join("libgc.so.1");
        assert!(ours.contains(&*wanted.to_string_lossy()), "{name} would not get ours: {ours}");

        let expected = self.run(None, &[]).unwrap_or_else(|why| {
            panic!("{name} fails under the system's collector, which is to be compared with: {why}")
        });
        assert!(expected.len() > 200, "{name} prints next to nothing: {expected:?}");
        let mut mistakes = String::new();
        for (mode, environment) in MODES {
            match self.run(Some(patched()), environment) {
                Ok(printed) if printed == expected => {
                    let dirty = self.looked_at_dirty_pages();
                    assert_eq!(dirty, mode != "full", "{name} did not run in {mode} mode");
                    println!("{name} {mode}: same output");
                }
                Ok(printed) => {
                    let _ = writeln!(mistakes, "{mode}: {}", difference(&expected, &printed));
                }
                Err(why) => {
                    let _ = writeln!(mistakes, "{mode}: {why}");
                }
            }
        }
        assert!(mistakes.is_empty(), "{name} under the patched collector:\n{mistakes}");
    }
}

/// How a program ended, and the end of what it said.
fn failure(output: &Output) -> String {
    let how = match output.status.code() {
        Some(TIMED_OUT) => format!("killed after {LIMIT_S} s"),
        _ => output.status.to_string(),
    };
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!("{how}\n{}", lines[lines.len().saturating_sub(10)..].join("\n"))
}

/// The first lines in which two outputs differ.
fn difference(expected: &[u8], printed: &[u8]) -> String {
    let (expected, printed) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(printed));
    let (mut old, mut new) = (expected.lines(), printed.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (old, new) if old == new => {}
            (old, new) => return format!("line {number} is {new:?}, not {old:?}"),
        }
    }
    "the outputs differ in line ends".to_owned()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// Some megabytes of text with lines of many lengths.
fn text() -> String {
    (0..60_000_u64).fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "line {line} of the file, {}", line * line);
        text
    })
}

/// A table whose columns w3m can only lay out when it has seen all rows.
fn table(rows: u64) -> String {
    let mut page = "<html><body><h1>A table</h1><table border=1>\n".to_owned();
    for row in 0..rows {
        let square = row * row;
        let _ = writeln!(page, "<tr><td>{row}</td><td>row {row}</td><td><b>{square}</b></td></tr>");
    }
    page + "</table></body></html>\n"
}

fn w3m(rows: u64) -> Option<Subject> {
    let subject = Subject::find("w3m", "w3m")?;
    let page = subject.file("table.html", &table(rows));
    Some(subject.arg("-dump").arg("-cols").arg("80").arg("-T").arg("text/html").arg(page))
}

#[test]
fn guile_runs_the_same() {
    let _alone = alone();
    let Some(subject) = Subject::find("guile", "guile-3.0") else { return };
    let file = subject.file("lines.txt", &text());
    subject.arg("--no-auto-compile").arg("-q").arg(script("heap.scm")).arg(file).compare();
}

#[test]
fn ecl_runs_the_same() {
    let _alone = alone();
    let Some(subject) = Subject::find("ecl", "ecl") else { return };
    let file = subject.file("lines.txt", &text());
    let subject = subject.env("HEAP_FILE", file);
    subject.arg("--norc").arg("--shell").arg(script("heap.lisp")).compare();
}

fn nix() -> Option<Subject> {
    let subject = Subject::find("nix-instantiate", "nix-bin")?;
    let subject = subject.arg("--store").arg("dummy://").arg("--eval").arg("--strict");
    Some(subject.arg("--json").arg(script("heap.nix")))
}

/// Nix asks for a quarter of the memory, up to 384 MiB, before it begins.
#[test]
fn nix_evaluates_the_same() {
    let _alone = alone();
    let Some(subject) = nix() else { return };
    subject.compare();
}

#[test]
fn nix_evaluates_the_same_in_a_small_heap() {
    let _alone = alone();
    let Some(subject) = nix() else { return };
    subject.env("GC_INITIAL_HEAP_SIZE", "16m").compare();
}

/// The compiler goes through its standard library.
#[test]
fn crystal_compiles_the_same() {
    let _alone = alone();
    let Some(subject) = Subject::find("crystal", "crystal") else { return };
    subject.arg("tool").arg("hierarchy").arg(script("heap.cr")).compare();
}

/// Fibers: the collector is told of their stacks.
#[test]
fn what_crystal_compiled_runs_the_same() {
    let _alone = alone();
    let Some(compiler) = Subject::find("crystal", "crystal") else { return };
    let program = compiler.scratch.path().join("heap");
    let compiler = compiler.arg("build").arg("--no-debug").arg("-o").arg(&program);
    let compiler = compiler.arg(script("heap.cr"));
    if let Err(why) = compiler.run(None, &[]) {
        panic!("crystal does not compile, under the system's collector: {why}");
    }
    let Some(subject) = Subject::of("program", program, compiler.scratch) else { return };
    subject.compare();
}

#[test]
fn w3m_lays_out_a_table_the_same() {
    let _alone = alone();
    let Some(subject) = w3m(4_000) else { return };
    subject.compare();
}

/// Debian's own collector aborts here in incremental mode: the kernel allows a process only so
/// many mappings, and mprotect needs one for each run of clean pages. So this is compared with
/// what Debian's prints in full mode, which runs beside it (w3m needs most of a minute).
#[test]
fn w3m_lays_out_a_table_that_is_too_long_for_mprotect() {
    let _alone = alone();
    let (Some(ours), Some(theirs)) = (w3m(40_000), w3m(40_000)) else { return };
    let (_, incremental) = MODES[1];
    let ours_lib = patched();
    let (expected, printed) = std::thread::scope(|scope| {
        let expected = scope.spawn(|| theirs.run(None, &[]));
        let printed = ours.run(Some(ours_lib), incremental);
        (expected.join().expect("it only runs a program"), printed)
    });
    let expected = expected.unwrap_or_else(|why| panic!("under Debian's collector: {why}"));
    let printed = printed.unwrap_or_else(|why| panic!("under the patched collector: {why}"));
    assert!(ours.looked_at_dirty_pages(), "w3m did not run in incremental mode");
    assert!(expected.len() > 1_000_000, "a table of {} bytes", expected.len());
    assert!(printed == expected, "{}", difference(&expected, &printed));
}
