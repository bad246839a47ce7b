//! `cargo xtask kmod`: the kernel module, built against each kernel's headers without a warning,
//! then its selftests in Bochs.
//!
//! The sources are copied first: a build leaves its products among them, and two kernels would
//! get in each other's way. A warning of the compiler, of sparse or of objtool that names one of
//! our files is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::guest::{Kernel, Series};
use crate::{cargo, setup};

/// What Bochs needs to be told: it claims bugs of a CPU, and has no means against them.
const PARAMETERS: &str = "allow_l1tf=1 large_pages=2";

/// Tests of the process runtime that run in guest mode.
const DUNE_TESTS: &[&str] = &["enter", "faults", "dirty", "signals", "memory", "tasks"];

/// `cargo xtask kmod`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this kernel
    #[arg(long, value_enum)]
    kernel: Option<Series>,

    /// Build, and do not run anything
    #[arg(long)]
    build_only: bool,

    /// Also the guest tests of crates/dune, over /dev/dune
    #[arg(long)]
    dune: bool,

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
        let selftest = dir.join("tests/build/dunetest");
        let mut program = vec!["--".into(), selftest.to_string_lossy().into_owned()];
        program.extend(args.tests.iter().cloned());
        failed |= !run_in_guest(args, series, &dir, &program)?;
        if args.tests.is_empty() {
            let package = ["-p", "dune-sys", "--test", "device", "--", "--nocapture"];
            failed |= !run_in_guest(args, series, &dir, &package.map(str::to_owned))?;
        }
        for test in DUNE_TESTS.iter().filter(|_| args.dune) {
            let package = ["-p", "dune", "--test", test, "--", "--nocapture"];
            failed |= !run_in_guest(args, series, &dir, &package.map(str::to_owned))?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds the module and its selftests; where they are.
fn build(series: Series) -> anyhow::Result<PathBuf> {
    let kernel = Kernel::get(series)?;
    let root = cargo::root()?;
    let dir = root.join("build/kmod").join(series.to_string());
    fs::remove_dir_all(&dir).ok();
    copy(&root.join("kmod"), &dir)?;
    println!("kmod: building against {}", kernel.release);
    let mut make = Command::new("make");
    make.arg("-C").arg(&dir).arg(format!("KDIR={}", kernel.build_dir().display()));
    if has_sparse() {
        make.arg("C=2");
    } else {
        println!("skipped: sparse (apt-get install sparse)");
    }
    quietly(&mut make, &dir, "the module")?;
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

/// `cargo xtask guest-test` with the module; whether it passed.
fn run_in_guest(
    args: &Args,
    series: Series,
    dir: &Path,
    program: &[String],
) -> anyhow::Result<bool> {
    let mut test = Command::new(std::env::current_exe().context("cannot find myself")?);
    test.args(["guest-test", "--host", "bochs", "--no-kvm", "--skip-setup"]).args([
        "--kernel",
        &series.to_string(),
        "--cpus",
        &args.cpus.to_string(),
    ]);
    // Swap for the selftests.
    if series == Series::V6_1 {
        test.args(["--module", "lzo-rle"]);
    }
    test.args(["--env", "BARCHAN_DUNE_HOST=dune", "--module", "zram"])
        .arg("--module")
        .arg(format!("{} {PARAMETERS}", dir.join("dune.ko").display()))
        .args(program)
        .current_dir(cargo::root()?);
    Ok(test.status().context("cannot start the guest")?.success())
}
