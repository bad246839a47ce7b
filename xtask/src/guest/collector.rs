//! The patched collector in guest mode, in a guest: bdwgc's own test programs and programs that Debian built.
//!
//! Here is what `collector.sh` needs there. Natively it is `crates/barchan-cli/tests/dune/collector.rs`, by which what counts
//! as passed goes. What the real programs must print is what they print here, natively, on Debian's collector.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use barchan_boehm::{Collector, Flavour, Layout};

use super::Host;
use super::payload::Test;
use crate::{cargo, kmod};

/// The sources that there are in guest mode only, as the script takes them; and over /dev/dune.
const SOURCES: &str = "guest-pte guest-tlb guest-direct";
pub(crate) const SOURCES_OVER_DUNE: &str = "guest-pte guest-tlb guest-direct guest-pml";

/// Where the script finds what it runs.
const DIRECTORY: &str = "/collector";

/// The libraries that bdwgc's programs are linked to; `barchan run` has them found in the prefix.
const LIBRARIES: &[&str] = &["libgc.so.1", "libcord.so.1", "libgccpp.so.1", "libgctba.so.1"];

/// A program that Debian built: its name, and its command in a directory with the files of [`prepare`].
const PROGRAMS: &[(&str, &str)] = &[
    ("guile", "guile --no-auto-compile -q heap.scm lines"),
    ("ecl", "ecl --norc --shell heap.lisp"),
    ("w3m", "w3m -dump -cols 80 -T text/html rows.html"),
];

/// For all of them; `HEAP_FILE` is what ecl's script reads.
const ENVIRONMENT: &[(&str, &str)] = &[("LC_ALL", "C.UTF-8"), ("HEAP_FILE", "lines")];

/// Files and directories of this machine that they need beside their libraries, if they are here.
const NEEDED: &[&str] = &[
    "/usr/lib/locale/C.utf8",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "/usr/lib/x86_64-linux-gnu/ecl-21.2.1/encodings",
    "/etc/w3m",
];

/// What 5 ms of a processor, the collector's own limit of a pause, are on an emulated one: at Bochs's clock they are 250,000
/// instructions, a few pages' worth.
pub(crate) fn pause_ms(host: Host) -> &'static str {
    match host {
        Host::Native => "5",
        Host::Tcg => "100",
        Host::Bochs => "300",
    }
}

/// The test, which runs what has one of `names` in its name, or everything.
pub(super) fn test(
    host: Host,
    names: &[String],
    environment: &[(String, String)],
) -> anyhow::Result<Test> {
    let program = cargo::root()?.join("xtask/src/guest/collector.sh");
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    // What was asked for comes last, so it holds.
    let own = [("SOURCES", SOURCES), ("PAUSE_MS", pause_ms(host))];
    let own = ENVIRONMENT.iter().chain(&own).map(owned);
    let environment = own.chain(environment.iter().cloned()).collect();
    Ok(Test { program, arguments: names.to_vec(), environment })
}

/// Builds what the test needs in the guest; each file, and where it goes.
pub(super) fn files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let root = cargo::root()?;
    let built = cargo::barchan(&["build", "--only", "patched"])?.status();
    if !built.context("cannot start cargo")?.success() {
        bail!("barchan build failed");
    }
    let layout = Layout::new(&root).map_err(|e| anyhow::anyhow!("{e}"))?;
    let collector =
        Collector::built(&layout, Flavour::PATCHED).context("it has just been built")?;
    let mut files = kmod::guest_mode(true)?;
    let library_dir = collector.library_dir();
    let stamp = layout.collector(Flavour::PATCHED).join("stamp");
    let libraries = LIBRARIES.iter().map(|name| library_dir.join(name));
    for path in libraries.chain([stamp, root.join(PRELOAD)]) {
        let inside = path.strip_prefix(&root).context("a build is below the checkout")?;
        let target = format!("/barchan/{}", inside.display());
        files.push((path, target));
    }
    files.push((root.join(PRELOAD_SOURCE), format!("/barchan/{PRELOAD_SOURCE}")));
    let tests = collector.tests_dir();
    let programs = collector.declared_tests().map_err(|e| anyhow::anyhow!("{e}"))?;
    if programs.len() < 20 {
        bail!("bdwgc's build does not declare its tests: {programs:?}");
    }
    for name in &programs {
        files.push((tests.join(name), format!("{DIRECTORY}/bdwgc/{name}")));
    }
    files.push((prepare(&root, &programs)?, DIRECTORY.to_owned()));
    for name in PROGRAMS.iter().map(|(name, _)| format!("/usr/bin/{name}")) {
        files.push((PathBuf::from(&name), name));
    }
    let needed = NEEDED.iter().map(|path| (*path).to_owned()).chain(parts_of_guile()?);
    files.extend(needed.filter(|path| Path::new(path).exists()).map(|path| ((&path).into(), path)));
    Ok(files)
}

/// The object that `barchan run` preloads, and its source: there is no compiler in the guest.
pub(crate) const PRELOAD: &str = "build/preload/libbarchan-summary.so";
pub(crate) const PRELOAD_SOURCE: &str = "crates/barchan-cli/preload/summary.c";

/// A directory with the list of bdwgc's programs and, for each real one, its command, what it must print, and the files
/// that they read.
fn prepare(root: &Path, upstreams: &[String]) -> anyhow::Result<PathBuf> {
    let dir = root.join("build/guest/collector");
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    let scripts = root.join("crates/barchan-cli/tests/programs");
    for name in ["heap.scm", "heap.lisp"] {
        let path = scripts.join(name);
        write(name, &fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?)?;
    }
    let mut lines = String::new();
    for n in 0..2_000 {
        writeln!(lines, "line {n} of the file, {}", n * n)?;
    }
    write("lines", lines.as_bytes())?;
    let mut rows = "<table border=1>".to_owned();
    for n in 0..1_000 {
        writeln!(rows, "<tr><td>{n}</td><td>row {n}</td><td><b>{}</b></td></tr>", n * n)?;
    }
    write("rows.html", rows.as_bytes())?;
    write("upstreams", (upstreams.join("\n") + "\n").as_bytes())?;
    for (name, command) in PROGRAMS {
        let words: Vec<_> = command.split(' ').collect();
        write(&format!("{name}.command"), format!("{command}\n").as_bytes())?;
        write(&format!("{name}.expected"), &natively(&words, &dir)?)?;
    }
    Ok(dir)
}

/// What a program prints here, on the collector that it was built for.
fn natively(words: &[&str], dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).envs(ENVIRONMENT.iter().copied()).current_dir(dir);
    let output = command.stdin(Stdio::null()).output();
    let output = output
        .with_context(|| format!("{} is not installed: cargo xtask setup --test", words[0]))?;
    if !output.status.success() || output.stdout.len() <= 200 {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{words:?} ended natively with {}, having printed little: {said}", output.status);
    }
    Ok(output.stdout)
}

/// The modules that the test's program loads: Guile maps the files that hold them compiled.
fn parts_of_guile() -> anyhow::Result<Vec<String>> {
    let script = "(use-modules (ice-9 threads) (ice-9 rdelim) (srfi srfi-1)) \
                  (display (call-with-input-file \"/proc/self/maps\" read-string))";
    let output = Command::new("guile").args(["--no-auto-compile", "-q", "-c", script]).output();
    let text = output.context("guile is not installed: cargo xtask setup --test")?.stdout;
    let text = String::from_utf8_lossy(&text);
    let mut files: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line[line.find('/')?..].to_owned()))
        .filter(|path| path.ends_with(".go"))
        .collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        bail!("guile does not map the modules that it has loaded");
    }
    Ok(files)
}
