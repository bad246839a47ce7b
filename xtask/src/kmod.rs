//! `cargo xtask kmod`: the kernel module, built against each kernel's headers without a warning,
//! then its selftests in Bochs; if asked for, guest mode over it, by tests and by real programs.
//!
//! The sources are copied first: a build leaves its products among them, and two kernels would
//! get in each other's way. A warning of the compiler, of sparse or of objtool that names one of
//! our files is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::guest::{
    COLLECTOR_SECONDS, Kernel, RUNTIME, SOURCES_OVER_DUNE, Series, guest_test, runtime_tests,
};
use crate::{cargo, setup};

/// What Bochs needs to be told: it claims bugs of a CPU, and has no means against them.
pub(crate) const PARAMETERS: &str = "allow_l1tf=1 large_pages=2";

/// What the kernel is told besides: the console stays on in a suspend, else the end of the run is lost.
const COMMAND_LINE: &str = "no_console_suspend";

/// Bochs tells a wrong size for XSAVEC, for which the kernel believes nothing of XSAVE; without XSAVEC it believes the rest.
const WITH_XSAVE: &str = "clearcpuid=xsavec";

/// `cargo xtask kmod`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this kernel
    #[arg(long, value_enum)]
    kernel: Option<Series>,

    /// Build, and do not run anything
    #[arg(long)]
    build_only: bool,

    /// Also the guest tests of crates/dune, and the oracle of each tracker of guest mode, over /dev/dune
    #[arg(long)]
    dune: bool,

    /// Also unmodified programs in guest mode: a shell pipeline, CPython, gcc
    #[arg(long)]
    programs: bool,

    /// Also bdwgc's own test programs, guile, ecl and w3m on the patched collector in guest mode: hours. Of the names
    /// those that begin with collector choose among these
    #[arg(long)]
    collector: bool,

    /// Also with kvm_intel loaded: which of the two has VMX when, and what round trips cost, here and there
    #[arg(long)]
    kvm: bool,

    /// Let the kernel of the emulated machine use XSAVE, AVX and AVX-512: without this it uses FXSAVE
    #[arg(long)]
    xsave: bool,

    /// Virtual CPUs of the emulated machine
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,

    /// Do not look for missing Debian packages
    #[arg(long)]
    skip_setup: bool,

    /// Only selftests whose names contain one of these
    #[arg(last = true, value_name = "NAME")]
    tests: Vec<String>,
}

/// Which other hypervisor is loaded.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    /// `kvm_intel`, as it is by default
    Kvm,
    /// `kvm_intel`, with VMX off while it has no virtual machine: its only way before Linux 6.12
    IdleKvm,
}

/// A machine that is started, and what runs in it.
struct Boot {
    beside: Beside,
    /// Arguments of guest-test.
    more: &'static [&'static str],
    cpus: u32,
    /// For the kernel's command line.
    append: &'static str,
    limit_seconds: u64,
    program: Vec<String>,
}

/// The programs: three, each twice, and files of 60 MB, which Bochs reads from a CD.
const LIMIT_SECONDS: u64 = 1800;

/// All that watches the debug kernel makes it several times slower.
const DEBUG_LIMIT_SECONDS: u64 = 7200;

/// What the kernel says when it kills for want of memory, which two tests bring about: with a backtrace, but all
/// else that is bad fails them too.
const KILLS: &[&str] = &["--allow", "Call Trace:"];

/// The test restarts the machine, by a reset of all there is: the BIOS of Bochs sets IA32_FEATURE_CONTROL once more,
/// which no other reset clears, and does not survive the exception. Nor does it survive a reset of two CPUs ("Keyboard
/// error:21"), so that machine has one, whatever was asked for.
const RESTARTS: &[&str] = &["--restarts", "1"];
const FULL_RESET: &str = "reboot=pci";

/// A page of 1 GiB has to be set aside while the kernel starts.
const ONE_GIB: &[&str] = &["--memory", "2560"];
const SET_ASIDE: &str = "hugepagesz=1G hugepages=1";

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.skip_setup {
        setup::for_guests()?;
    }
    let series = args.kernel.map_or_else(|| Series::FETCHED.to_vec(), |one| vec![one]);
    let mut failed = false;
    for series in series {
        let dir = build(series)?;
        if args.build_only {
            continue;
        }
        for boot in boots(args, series, &dir)? {
            failed |= !run_in_guest(args, series, &dir, &boot)?;
        }
        // Those that take Bochs a start each: on one kernel.
        let all = args.tests.is_empty() && series == Series::V6_1;
        for refusal in OTHER_REFUSALS {
            if all || args.tests.iter().any(|name| refusal.test.contains(name.as_str())) {
                failed |= !is_refused(series, &dir, refusal)?;
            }
        }
        if args.tests.is_empty() {
            failed |= !is_refused(series, &dir, &WITHOUT_VTX)?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is run in Bochs, a machine each.
fn boots(args: &Args, series: Series, dir: &Path) -> anyhow::Result<Vec<Boot>> {
    let boot = |program| Boot {
        beside: Beside::Nothing,
        more: &[],
        cpus: args.cpus,
        append: "",
        limit_seconds: if series == Series::Debug { DEBUG_LIMIT_SECONDS } else { LIMIT_SECONDS },
        program,
    };
    let selftests = |names: &[String]| [&["--".to_owned(), selftest(dir)], names].concat();
    let selftest = |name: &str| boot(selftests(&[name.to_owned()]));
    let package = |package, tests: &[&'static str]| {
        let tests = tests.iter().flat_map(|test| ["--test", test]);
        let words = ["-p", package].into_iter().chain(tests).chain(["--", "--nocapture"]);
        boot(words.map(str::to_owned).collect())
    };
    // Tests that need a machine of their own, by what their names hold.
    const APART: [&str; 3] = ["oom_", "of_1_gib", "reboot_"];
    let (collectors, names): (Vec<_>, Vec<_>) =
        args.tests.iter().cloned().partition(|name| is_collectors(name));
    let (apart, together): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| APART.iter().any(|part| name.contains(part)));
    // Without names on one kernel: each costs a start of the machine.
    let by_default = args.tests.is_empty() && series == Series::V6_1;
    let wanted = |part: &str| by_default || apart.iter().any(|name| name.contains(part));
    let mut boots = Vec::new();
    if args.tests.is_empty() || !together.is_empty() {
        boots.push(boot(selftests(&together)));
    }
    if wanted("oom_") {
        boots.push(Boot { more: KILLS, ..selftest("oom_") });
    }
    if wanted("of_1_gib") {
        boots.push(Boot { more: ONE_GIB, append: SET_ASIDE, ..selftest("of_1_gib") });
    }
    // The debug kernel warns of what the emulator tells it while it starts, which would count the second time.
    if wanted("reboot_") && series != Series::Debug {
        boots.push(Boot { more: RESTARTS, cpus: 1, append: FULL_RESET, ..selftest("reboot_") });
    }
    if args.tests.is_empty() {
        boots.push(package("dune-sys", &["device"]));
    }
    if args.kvm {
        boots.push(Boot { beside: Beside::Kvm, ..selftest("kvm_and_dune") });
        boots.push(Boot { beside: Beside::IdleKvm, ..selftest("count_") });
    }
    if args.dune {
        boots.push(package("dune", &runtime_tests()));
        for source in ["guest-pte", "guest-tlb", "guest-direct"] {
            boots.push(boot(trackers(source, &["oracle"])?));
        }
    }
    if args.dune || by_default {
        // The only tracker that is to be had over this module and nowhere else.
        boots.push(boot(trackers("guest-pml", &["oracle", "semantics", "mappings"])?));
    }
    if args.programs {
        boots.push(boot(programs()?));
    }
    if args.collector && (args.tests.is_empty() || !collectors.is_empty()) {
        let sources = format!("SOURCES={SOURCES_OVER_DUNE}");
        let options = ["--collector", "--env", &sources, "--"].map(str::to_owned);
        let program = [&options[..], &collectors].concat();
        boots.push(Boot { limit_seconds: COLLECTOR_SECONDS, ..boot(program) });
    }
    Ok(boots)
}

/// Whether a name is one of `guest/collector.sh`'s tests, or the beginning of several.
fn is_collectors(name: &str) -> bool {
    name.starts_with("collector")
}

fn selftest(dir: &Path) -> String {
    dir.join("tests/build/dunetest").to_string_lossy().into_owned()
}

/// Builds the module and its selftests; where they are.
pub(crate) fn build(series: Series) -> anyhow::Result<PathBuf> {
    let kernel = Kernel::get(series)?;
    let root = cargo::root()?;
    let dir = root.join("build/kmod").join(series.to_string());
    fs::remove_dir_all(&dir).ok();
    copy(&root.join("kmod"), &dir)?;
    println!("kmod: building against {}", kernel.release);
    let sparse = has_sparse();
    if !sparse {
        println!("skipped: sparse (apt-get install sparse)");
    }
    for (target, what) in [("modules", "the module"), ("test_modules", "the selftests' module")] {
        let mut make = Command::new("make");
        make.arg("-C").arg(&dir).arg(format!("KDIR={}", kernel.build_dir().display()));
        make.args(sparse.then_some("C=2")).arg(target);
        // Debian's headers say so themselves.
        make.args((series == Series::Debug).then_some("CC=gcc-12"));
        quietly(&mut make, &dir, what)?;
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(dir.join("tests"));
    quietly(&mut make, &dir, "the selftests")?;
    Ok(dir)
}

fn has_sparse() -> bool {
    Command::new("sparse").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Runs make; fails if it does, or if something warns of one of our files.
fn quietly(make: &mut Command, dir: &Path, what: &str) -> anyhow::Result<()> {
    let output = make.output().context("cannot start make")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if !output.status.success() {
        bail!("{what} did not build:\n{text}");
    }
    let ours = |line: &&str| line.contains(&*dir.to_string_lossy()) || !line.contains('/');
    let warnings: Vec<_> =
        text.lines().filter(|l| l.to_lowercase().contains("warning")).filter(ours).collect();
    if !warnings.is_empty() {
        bail!("{what} built with warnings:\n{}", warnings.join("\n"));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            // Products of a build in place.
            if entry.file_name() != "build" {
                copy(&entry.path(), &target)?;
            }
        } else if entry.path().extension().is_none_or(|extension| extension != "o") {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Tests of all trackers (crates/barchan), of `source`, which guest mode has.
fn trackers(source: &str, tests: &[&str]) -> anyhow::Result<Vec<String>> {
    let runtime = cargo::shared_library("dune-preload", "barchan_dune")?;
    let mut words = vec!["--file".to_owned(), format!("{}:{RUNTIME}", runtime.display())];
    words.extend(["--env".to_owned(), format!("LD_PRELOAD={RUNTIME}")]);
    let sources = format!("BARCHAN_TEST_SOURCES={source}");
    let with_log = format!("BARCHAN_DUNE_PML={}", u8::from(source == "guest-pml"));
    for set in ["BARCHAN_ORACLE_ROUNDS=20", &sources, &with_log] {
        words.extend(["--env".to_owned(), set.to_owned()]);
    }
    words.extend(["-p", "barchan"].map(str::to_owned));
    words.extend(tests.iter().flat_map(|test| ["--test".to_owned(), (*test).to_owned()]));
    // The proof that the oracle sees what is lost is made elsewhere, and takes it long here.
    let options = ["--", "--nocapture", "--test-threads=1", "--skip", "is_caught"];
    words.extend(options.map(str::to_owned));
    Ok(words)
}

/// The command `barchan` and what it needs for `run --dune` in a guest; each file, and where it goes.
pub(crate) fn guest_mode(release: bool) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let pin = "boehm-patch/upstream/Cargo.toml";
    Ok(vec![
        (
            cargo::test_program("barchan-cli", &["--bin", "barchan"], release)?,
            "/usr/bin/barchan".to_owned(),
        ),
        (
            cargo::shared_library("dune-preload", "barchan_dune")?,
            "/barchan/target/release/libbarchan_dune.so".to_owned(),
        ),
        (cargo::root()?.join(pin), format!("/barchan/{pin}")),
        (cargo::root()?.join("xtask/src/guest/cargo.sh"), "/usr/bin/cargo".to_owned()),
    ])
}

/// The test of unmodified programs: what to bring into the guest, and the script that runs them.
fn programs() -> anyhow::Result<Vec<String>> {
    let root = cargo::root()?;
    let brought = |(source, target): (PathBuf, String)| format!("{}:{target}", source.display());
    let mut files: Vec<_> = guest_mode(false)?.into_iter().map(brought).collect();
    for name in ["bash", "cat", "tr", "seq", "sort", "md5sum", "gcc", "as", "ld", "python3"] {
        files.push(at_the_same_path(&format!("/usr/bin/{name}")));
    }
    files.extend(parts_of_gcc()?.iter().map(|path| at_the_same_path(path)));
    files.extend(parts_of_python()?.iter().map(|path| at_the_same_path(path)));
    let mut arguments: Vec<_> =
        files.into_iter().flat_map(|file| ["--file".to_owned(), file]).collect();
    arguments.push("--".into());
    arguments.push(root.join("xtask/src/guest/programs.sh").to_string_lossy().into_owned());
    Ok(arguments)
}

/// Not where links lead to: gcc and python3 are links, and find their files from the path they are called by.
fn at_the_same_path(path: &str) -> String {
    format!("{path}:{path}")
}

/// What gcc starts and links with, at the paths where it looks for them.
fn parts_of_gcc() -> anyhow::Result<Vec<String>> {
    const PARTS: &[(&str, &[&str])] = &[
        ("prog", &["cc1", "collect2"]),
        ("file", &["liblto_plugin.so", "crtbeginS.o", "crtendS.o", "libgcc.a", "libgcc_s.so"]),
        ("file", &["libgcc_s.so.1", "Scrt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a"]),
    ];
    // cc1 includes this before anything else.
    let mut files = vec!["/usr/include/stdc-predef.h".to_owned()];
    for (kind, names) in PARTS {
        for name in *names {
            let question = format!("-print-{kind}-name={name}");
            let path = PathBuf::from(said("/usr/bin/gcc", &[&question])?.trim());
            let plain = path.parent().and_then(|dir| dir.canonicalize().ok());
            let dir = plain.with_context(|| format!("gcc does not say where its {name} is"))?;
            files.push(dir.join(name).to_string_lossy().into_owned());
        }
    }
    Ok(files)
}

/// The modules of CPython that the test's program loads.
fn parts_of_python() -> anyhow::Result<Vec<String>> {
    let script = "import os, sys, threading\n\
                  for m in sys.modules.values():\n \
                  if getattr(m, '__file__', None): print(m.__file__)";
    let text = said("/usr/bin/python3", &["-I", "-S", "-c", script])?;
    let mut files: Vec<_> = text.lines().map(str::to_owned).collect();
    files.dedup();
    Ok(files)
}

/// What a program prints.
fn said(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let start = || format!("cannot start {program}: cargo xtask setup --test");
    let output = Command::new(program).args(arguments).output().with_context(start)?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `cargo xtask guest-test` with the module; whether it passed.
fn run_in_guest(args: &Args, series: Series, dir: &Path, boot: &Boot) -> anyhow::Result<bool> {
    let mut test = guest_test();
    let more = if args.xsave { WITH_XSAVE } else { "" };
    test.args(["--host", "bochs", "--skip-setup"]);
    test.args(["--append", &format!("{COMMAND_LINE} {more} {}", boot.append)]);
    test.args(["--kernel", &series.to_string(), "--cpus", &boot.cpus.to_string()]);
    match (boot.beside, series) {
        (Beside::Nothing, _) => {
            test.arg("--no-kvm");
        }
        (Beside::IdleKvm, Series::V6_12) => {
            test.args(["--no-kvm", "--module", "kvm enable_virt_at_load=0"]);
            test.args(["--module", "kvm_intel"]);
        }
        (Beside::Kvm | Beside::IdleKvm, _) => {}
    }
    if series == Series::Debug {
        test.args(["--env", "DUNETEST_SECONDS=1500"]);
    }
    test.args(["--timeout", &boot.limit_seconds.to_string()]);
    // Swap for the selftests.
    if series == Series::V6_1 {
        test.args(["--module", "lzo-rle"]);
    }
    test.args(["--env", "BARCHAN_DUNE_HOST=dune", "--module", "zram"])
        .arg("--module")
        .arg(format!("{} {PARAMETERS}", dir.join("dune.ko").display()))
        .arg("--module")
        .arg(dir.join("tests/nmi/dune_nmi.ko"))
        .args(boot.more)
        .args(&boot.program)
        .current_dir(cargo::root()?);
    Ok(test.status().context("cannot start the guest")?.success())
}

/// A machine on which the module must not load.
struct Refusal {
    host: &'static str,
    /// Arguments of guest-test.
    more: &'static [&'static str],
    test: &'static str,
}

/// QEMU's has SVM and no VT-x.
const WITHOUT_VTX: Refusal = Refusal { host: "tcg", more: &[], test: "load_without_vtx" };

/// As the kernel sees it when the firmware has locked it; and a Core 2.
const OTHER_REFUSALS: &[Refusal] = &[
    Refusal {
        host: "bochs",
        more: &["--append", "clearcpuid=vmx"],
        test: "load_disabled_by_firmware",
    },
    Refusal {
        host: "bochs",
        more: &["--cpu-model", "core2_penryn_t9600"],
        test: "load_without_ept",
    },
];

fn is_refused(series: Series, dir: &Path, refusal: &Refusal) -> anyhow::Result<bool> {
    let module = format!("{}:/dune.ko", dir.join("dune.ko").display());
    let mut test = guest_test();
    test.args(["--host", refusal.host, "--cpus", "1", "--no-kvm", "--skip-setup"])
        .args(["--kernel", &series.to_string(), "--file", &module])
        .args(refusal.more)
        .args(["--", &selftest(dir), refusal.test])
        .current_dir(cargo::root()?);
    Ok(test.status().context("cannot start the guest")?.success())
}
